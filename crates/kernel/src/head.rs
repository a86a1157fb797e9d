//! The head of a request, as the HTTP room read it, and what can be told from it alone.

use std::net::SocketAddr;

use base::{CanonPath, Kind, Limits, Refusal};
use engine::{Body, Op};

/// The head of a request. Nothing in it is decoded or repaired.
#[derive(Clone, Debug)]
pub struct Head {
    /// The method, as it came.
    pub method: String,
    /// The target, as it came: path and query.
    pub target: String,
    /// Header fields: names in lower case, values that are UTF-8.
    pub headers: Vec<(String, String)>,
    /// From where.
    pub remote: SocketAddr,
}

/// A fault while a body was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// Larger than the limit.
    TooLarge,
    /// Not complete in time.
    TooSlow,
    /// The client went away or broke the framing.
    Broken,
}

/// A body that has not been read yet: the kernel says when, and how much at most.
pub trait BodySource: Send {
    /// Reads the whole body.
    fn read(self: Box<Self>, bytes_max: usize) -> engine::BoxFuture<'static, Result<bytes::Bytes, BodyFault>>;
}

impl BodySource for bytes::Bytes {
    fn read(self: Box<Self>, bytes_max: usize) -> engine::BoxFuture<'static, Result<bytes::Bytes, BodyFault>> {
        Box::pin(std::future::ready(if self.len() > bytes_max { Err(BodyFault::TooLarge) } else { Ok(*self) }))
    }
}

/// What the head asks for.
#[derive(Debug)]
pub struct Asked {
    /// The operation.
    pub op: Op,
    /// Whether only the head of the answer is wanted (HEAD): such a request cannot follow a stream.
    pub head_only: bool,
    /// The path below `/v1/`; a folder for LIST.
    pub path: CanonPath,
    /// The members of the query, except those that chose the operation.
    pub query: Vec<(String, Vec<String>)>,
}

impl Head {
    /// The first value of a header field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The token: `X-Vault-Token`, else `Authorization: Bearer`.
    ///
    /// # Errors
    /// 400 when two are given or it is too long.
    pub fn token(&self, limits: &Limits) -> Result<Option<&str>, Refusal> {
        if self.headers.iter().filter(|(n, _)| n == "x-vault-token").count() > 1 {
            return Err(Refusal::invalid("header `X-Vault-Token` is given twice"));
        }
        let bearer = || self.header("authorization").and_then(|v| v.strip_prefix("Bearer ")).map(str::trim);
        let token = self.header("x-vault-token").or_else(bearer).filter(|t| !t.is_empty());
        match token {
            Some(t) if t.len() > limits.token_bytes_max => Err(Refusal::of(Kind::TooLarge, "the token is too long")),
            Some(t) if !t.bytes().all(|b| b.is_ascii_graphic()) => Err(Refusal::invalid("the token has characters that no token has")),
            token => Ok(token),
        }
    }

    /// Method, path and query.
    ///
    /// # Errors
    /// 400, 404 or 405; the text never repeats the input.
    pub fn asked(&self, limits: &Limits) -> Result<Asked, Refusal> {
        let (raw, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let rest = raw.strip_prefix("/v1/").ok_or_else(Refusal::missing)?;
        let path = CanonPath::parse(rest).map_err(|e| Refusal::invalid(e.to_string()))?;
        let mut query = read_query(query, limits)?;
        let mut flag = |name: &str| -> Result<bool, Refusal> {
            let Some(at) = query.iter().position(|(n, _)| n == name) else { return Ok(false) };
            let (_, values) = query.swap_remove(at);
            match values.first().map(String::as_str) {
                Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
                Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
                _ => Err(Refusal::invalid(format!("query `{name}`: expected a boolean"))),
            }
        };
        let op = match self.method.as_str() {
            "GET" | "HEAD" => {
                if flag("list")? {
                    Op::List
                } else {
                    Op::Read
                }
            }
            "LIST" => Op::List,
            "POST" | "PUT" => Op::Write,
            "PATCH" => Op::Patch,
            "DELETE" => Op::Delete,
            _ => return Err(Refusal::unsupported()),
        };
        if op == Op::Patch {
            let kind = self.header("content-type").map(|v| v.split(';').next().unwrap_or_default().trim());
            if kind != Some("application/merge-patch+json") {
                return Err(Refusal::of(Kind::MediaType, "PATCH needs `Content-Type: application/merge-patch+json`"));
            }
        }
        // One spelling for each path: what is denied by its name cannot be had by its name with a slash.
        match op {
            Op::List => {}
            Op::Write if path.is_folder() => return Err(Refusal::invalid("cannot write to a path ending in '/'")),
            _ if path.is_folder() => return Err(Refusal::invalid("a path ending in '/' can only be listed")),
            _ => {}
        }
        if let Some(namespace) = self.header("x-vault-namespace").map(|n| n.trim_matches('/'))
            && !matches!(namespace, "" | "root")
        {
            return Err(Refusal::missing_because("namespace not found"));
        }
        if self.headers.iter().any(|(n, _)| n == "x-vault-wrap-ttl") && self.header("x-vault-wrap-ttl") != Some("0") {
            return Err(Refusal::invalid("header `X-Vault-Wrap-TTL`: response wrapping is not supported"));
        }
        let path = if op == Op::List { path.to_folder() } else { path };
        Ok(Asked { op, head_only: self.method == "HEAD", path, query })
    }
}

impl Asked {
    /// The body's members, and the query's where the body has none of that name.
    ///
    /// # Errors
    /// 400 when the body is not a JSON object within the limits.
    pub fn body(&self, bytes: &[u8], limits: &Limits) -> Result<Body, Refusal> {
        if !bytes.iter().all(u8::is_ascii_whitespace) {
            base::json::guard(bytes, limits).map_err(|e| Refusal::invalid(e.to_string()))?;
        }
        let mut body = Body::from_json(bytes)?;
        body.add_missing(&self.query);
        Ok(body)
    }
}

fn read_query(text: &str, limits: &Limits) -> Result<Vec<(String, Vec<String>)>, Refusal> {
    let mut members: Vec<(String, Vec<String>)> = Vec::new();
    let mut count = 0;
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        count += 1;
        if count > limits.json_strings_max {
            return Err(Refusal::invalid("the query has too many members"));
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decode(name)?, decode(value)?);
        match members.iter_mut().find(|(n, _)| *n == name) {
            Some((_, values)) => values.push(value),
            None => members.push((name, vec![value])),
        }
    }
    Ok(members)
}

/// Percent escapes and `+`, decoded once (the form encoding that browsers and clients use for queries).
fn decode(text: &str) -> Result<String, Refusal> {
    let wrong = || Refusal::invalid("the query has an incomplete escape or is not UTF-8");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
                match (digit(bytes.next()), digit(bytes.next())) {
                    (Some(high), Some(low)) => high << 4 | low,
                    _ => return Err(wrong()),
                }
            }
            plain => plain,
        });
    }
    String::from_utf8(out).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> Head {
        Head {
            method: method.into(),
            target: target.into(),
            headers: headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
            remote: ([127, 0, 0, 1], 1).into(),
        }
    }

    fn asked(method: &str, target: &str) -> Result<String, String> {
        let asked = head(method, target, &[]).asked(&Limits::default()).map_err(|r| format!("{:?} {:?}", r.kind, r.errors))?;
        Ok(format!("{} {} {:?}", asked.op.name(), asked.path, asked.query))
    }

    #[test]
    fn operations() {
        for (method, target, expect) in [
            ("GET", "/v1/secret/data/a", "read secret/data/a []"),
            ("GET", "/v1/secret/metadata?list=true", "list secret/metadata/ []"),
            ("LIST", "/v1/secret/metadata/", "list secret/metadata/ []"),
            ("PUT", "/v1/secret/data/a", "update secret/data/a []"),
            ("GET", "/v1/secret/data/a?version=2&x=a%20b+c", r#"read secret/data/a [("version", ["2"]), ("x", ["a b c"])]"#),
            ("GET", "/v1/sys/lifecycle/watch?hold=a:1&hold=b", r#"read sys/lifecycle/watch [("hold", ["a:1", "b"])]"#),
        ] {
            assert_eq!(asked(method, target), Ok(expect.into()));
        }
    }

    #[test]
    fn refusals() {
        for (method, target, expect) in [
            ("GET", "/v1/a/../b", "Invalid"),
            ("GET", "/v1//sys/health", "Invalid"),
            ("GET", "//v1/sys/health", "Missing"),
            ("GET", "/V1/sys/health", "Missing"),
            ("GET", "/v1/", "Invalid"),
            ("POST", "/v1/secret/", "Invalid"),
            ("GET", "/v1/secret/data/a/", "Invalid"),
            ("HEAD", "/v1/secret/data/a/", "Invalid"),
            ("DELETE", "/v1/secret/data/a/", "Invalid"),
            ("PATCH", "/v1/secret/data/a/", "MediaType"),
            ("FOO", "/v1/a", "Unsupported"),
            ("list", "/v1/a", "Unsupported"),
            ("GET", "/v1/a?list=maybe", "Invalid"),
            ("GET", "/v1/a?x=%zz", "Invalid"),
            ("PATCH", "/v1/a", "MediaType"),
        ] {
            let refusal = asked(method, target).unwrap_err();
            assert!(refusal.starts_with(expect), "{method} {target}: {refusal}");
        }
    }

    #[test]
    fn tokens() {
        let limits = Limits::default();
        let token = |headers: &[(&str, &str)]| head("GET", "/", headers).token(&limits).map(|t| t.map(str::to_owned)).map_err(|r| r.kind);
        assert_eq!(token(&[]), Ok(None));
        assert_eq!(token(&[("authorization", "Bearer b"), ("x-vault-token", "a")]), Ok(Some("a".into())));
        assert_eq!(token(&[("authorization", "Bearer b")]), Ok(Some("b".into())));
        assert_eq!(token(&[("authorization", "Basic b")]), Ok(None));
        assert_eq!(token(&[("x-vault-token", "a"), ("x-vault-token", "a")]), Err(Kind::Invalid));
        assert_eq!(token(&[("x-vault-token", "a b")]), Err(Kind::Invalid));
        assert_eq!(token(&[("x-vault-token", &"a".repeat(9_000))]), Err(Kind::TooLarge));
    }

    #[test]
    fn the_query_fills_what_the_body_lacks() {
        let limits = Limits::default();
        let asked = head("POST", "/v1/a?x=1&y=2", &[]).asked(&limits).unwrap();
        let body = asked.body(br#"{"x":"body"}"#, &limits).unwrap();
        assert_eq!(body.text("x").unwrap().as_deref(), Some("body"));
        assert_eq!(body.text("y").unwrap().as_deref(), Some("2"));
    }
}
