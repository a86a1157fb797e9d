//! Reading, writing, listing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use base::{CanonPath, SecretBytes, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use crate::Error;
use crate::login::{Again, Token};

/// A client of one server. Clones share connections and the token.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    http: egress::Client,
    pub(crate) token: watch::Sender<Option<Arc<Token>>>,
    /// What to log in with again. Held across a login, so that many who were refused log in once.
    pub(crate) again: tokio::sync::Mutex<Again>,
    rng: Mutex<base::rng::SeededRng>,
}

impl Client {
    /// A client of the server at `address` (`http://host:port` or `unix:///path`) with a token, if there is one.
    ///
    /// # Errors
    /// [`Error::Transport`] when the address is not one.
    pub fn new(address: &str, token: Option<SecretString>) -> Result<Self, Error> {
        Self::with_options(address, token, egress::Options::default())
    }

    /// The same, with other limits.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_options(address: &str, token: Option<SecretString>, options: egress::Options) -> Result<Self, Error> {
        let parsed = egress::Address::parse(address).map_err(|source| Error::Transport { address: shown(&source).to_owned(), source })?;
        let http = egress::Client::new(parsed, options);
        let token = token.map(|secret| Arc::new(Token::given(secret)));
        let shared = Shared {
            http,
            token: watch::channel(token).0,
            again: tokio::sync::Mutex::new(Again::new()),
            rng: Mutex::new(crate::backoff::seeded()),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Where the server is, as text.
    #[must_use]
    pub fn address(&self) -> String {
        self.shared.http.address().to_string()
    }

    /// Replaces the token.
    pub fn set_token(&self, token: SecretString) {
        self.shared.token.send_replace(Some(Arc::new(Token::given(token))));
    }

    /// The token in use.
    #[must_use]
    pub fn token(&self) -> Option<SecretString> {
        self.shared.token.borrow().as_ref().map(|token| token.secret.clone())
    }

    /// Reads a path (`secret/data/app`), with query fields.
    ///
    /// # Errors
    /// [`Error`]; nothing at the path is [`Error::Refused`] with status 404.
    pub async fn read(&self, path: &str, query: &[(&str, &str)]) -> Result<Reply, Error> {
        self.call("GET", path, query, None).await
    }

    /// Writes a body to a path.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn write<T: Serialize + ?Sized + Sync>(&self, path: &str, body: &T) -> Result<Reply, Error> {
        self.call("POST", path, &[], Some(json(body)?)).await
    }

    /// Lists the keys below a path.
    ///
    /// # Errors
    /// [`Error`]; an empty folder is [`Error::Refused`] with status 404.
    pub async fn list(&self, path: &str) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Keys {
            keys: Vec<String>,
        }
        let reply = self.call("LIST", path, &[], None).await?;
        Ok(reply.data::<Keys>()?.keys)
    }

    /// Deletes what is at a path.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn delete(&self, path: &str) -> Result<Reply, Error> {
        self.call("DELETE", path, &[], None).await
    }

    /// Reads a version of a secret from a KV version 2 mount; the newest without `version`. `None` when there is nothing,
    /// or nothing any more.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn kv_get(&self, mount: &str, path: &str, version: Option<u64>) -> Result<Option<KvSecret>, Error> {
        let version = version.map(|number| number.to_string());
        let query: Vec<_> = version.iter().map(|number| ("version", number.as_str())).collect();
        match self.read(&format!("{}/data/{path}", mount.trim_end_matches('/')), &query).await {
            Ok(reply) => reply.data().map(Some),
            Err(Error::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a new version of a secret to a KV version 2 mount and returns its number. With `cas` only when that is the
    /// number of the newest version (0: nothing there).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn kv_put<T>(&self, mount: &str, path: &str, data: &T, cas: Option<u64>) -> Result<u64, Error>
    where
        T: Serialize + ?Sized + Sync,
    {
        #[derive(Serialize)]
        struct Options {
            cas: u64,
        }
        #[derive(Serialize)]
        struct Put<'a, T: ?Sized> {
            data: &'a T,
            #[serde(skip_serializing_if = "Option::is_none")]
            options: Option<Options>,
        }
        #[derive(Deserialize)]
        struct Made {
            version: u64,
        }
        let body = Put { data, options: cas.map(|cas| Options { cas }) };
        let reply = self.write(&format!("{}/data/{path}", mount.trim_end_matches('/')), &body).await?;
        Ok(reply.data::<Made>()?.version)
    }

    /// Any call of the API: `path` is what follows `/v1/`, plain; it is checked and percent-encoded here.
    ///
    /// # Errors
    /// [`Error`]; every status outside 200 to 299 is [`Error::Refused`].
    pub async fn call(&self, method: &str, path: &str, query: &[(&str, &str)], body: Option<SecretBytes>) -> Result<Reply, Error> {
        let sent = Sent { method: method.to_owned(), target: target(path, query)?, address: self.address() };
        let mut request = self.request(&sent);
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body);
        }
        let failed = |source| Error::Transport { address: self.address(), source };
        let answer = self.shared.http.send(request).await.map_err(failed)?;
        let status = answer.status;
        let raw = answer.body.bytes().await.map_err(failed)?;
        if (200..300).contains(&status) { Ok(Reply { status, raw, sent }) } else { Err(sent.refused(status, &raw)) }
    }

    /// Opens a stream of lines on a connection of its own.
    pub(crate) async fn stream(&self, path: &str, query: &[(&str, &str)], line_bytes_max: usize) -> Result<egress::Lines, Error> {
        let sent = Sent { method: "GET".to_owned(), target: target(path, query)?, address: self.address() };
        let failed = |source| Error::Transport { address: self.address(), source };
        let answer = self.shared.http.send_alone(self.request(&sent)).await.map_err(failed)?;
        if answer.status == 200 {
            return Ok(answer.body.lines(line_bytes_max));
        }
        let status = answer.status;
        let raw = answer.body.bytes_within(64 << 10).await.map_err(failed)?;
        Err(sent.refused(status, &raw))
    }

    /// A number below `bound` for jitter.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.shared.rng.lock().unwrap_or_else(PoisonError::into_inner).below(bound)
    }

    fn request(&self, sent: &Sent) -> egress::Request {
        let request = egress::Request::new(&sent.method, &sent.target).header("X-Vault-Request", "true");
        match self.shared.token.borrow().as_ref() {
            Some(token) => request.secret_header("X-Vault-Token", &token.secret),
            None => request,
        }
    }
}

fn shown(error: &egress::Error) -> &str {
    match error {
        egress::Error::Address { address } | egress::Error::Tls { address } => address,
        _ => "",
    }
}

/// What was asked, for error texts.
struct Sent {
    method: String,
    target: String,
    address: String,
}

impl Sent {
    fn url(&self) -> String {
        format!("{}{}", self.address, self.target)
    }

    fn refused(&self, status: u16, raw: &SecretBytes) -> Error {
        #[derive(Default, Deserialize)]
        struct Errors {
            #[serde(default)]
            errors: Vec<String>,
        }
        let errors = serde_json::from_slice::<Errors>(raw.expose()).unwrap_or_default().errors;
        Error::Refused { status, errors, method: self.method.clone(), url: self.url() }
    }

    fn lacks(&self, what: &'static str) -> Error {
        Error::Answer { what, method: self.method.clone(), url: self.url() }
    }
}

/// A successful answer.
pub struct Reply {
    /// The status, 200 to 299.
    pub status: u16,
    raw: SecretBytes,
    sent: Sent,
}

impl Reply {
    /// The body as it came; empty with 204.
    #[must_use]
    pub fn raw(&self) -> &SecretBytes {
        &self.raw
    }

    /// The whole body as JSON.
    ///
    /// # Errors
    /// [`Error::Answer`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(self.raw.expose()).map_err(|_| self.sent.lacks("readable body"))
    }

    /// The `data` member.
    ///
    /// # Errors
    /// [`Error::Answer`] when it is missing, null or of another shape.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, Error> {
        #[derive(Deserialize)]
        struct Envelope<T> {
            data: T,
        }
        serde_json::from_slice::<Envelope<T>>(self.raw.expose()).map(|body| body.data).map_err(|_| self.sent.lacks("readable `data`"))
    }

    /// The `auth` member of a login or a renewal.
    ///
    /// # Errors
    /// [`Error::Answer`].
    pub fn auth(&self) -> Result<Auth, Error> {
        #[derive(Deserialize)]
        struct Envelope {
            auth: Auth,
        }
        serde_json::from_slice::<Envelope>(self.raw.expose()).map(|body| body.auth).map_err(|_| self.sent.lacks("readable `auth`"))
    }

    /// What the server wants the caller to know.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        #[derive(Deserialize)]
        struct Envelope {
            #[serde(default)]
            warnings: Option<Vec<String>>,
        }
        serde_json::from_slice::<Envelope>(self.raw.expose()).ok().and_then(|body| body.warnings).unwrap_or_default()
    }
}

/// What a login gives.
#[derive(Clone, Deserialize)]
pub struct Auth {
    /// The token.
    #[serde(deserialize_with = "secret")]
    pub client_token: SecretString,
    /// Its accessor.
    #[serde(default)]
    pub accessor: String,
    /// Its policies.
    #[serde(default)]
    pub policies: Vec<String>,
    /// Seconds it lives; 0: without end.
    #[serde(default)]
    pub lease_duration: u64,
    /// Whether it can be renewed.
    #[serde(default)]
    pub renewable: bool,
}

pub(crate) fn secret<'de, D: serde::Deserializer<'de>>(from: D) -> Result<SecretString, D::Error> {
    String::deserialize(from).map(SecretString::new)
}

/// A version of a secret in a KV version 2 mount.
#[derive(Deserialize)]
pub struct KvSecret {
    /// The fields. Wiped by nobody: keep it short-lived.
    pub data: BTreeMap<String, Value>,
    /// Version, times and whatever else the server tells.
    pub metadata: BTreeMap<String, Value>,
}

impl KvSecret {
    /// The number of the version.
    #[must_use]
    pub fn version(&self) -> Option<u64> {
        self.metadata.get("version").and_then(Value::as_u64)
    }
}

/// Writes a body as JSON into a buffer of the right size, so that no growing buffer leaves copies behind.
pub(crate) fn json<T: Serialize + ?Sized>(body: &T) -> Result<SecretBytes, Error> {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, body).map_err(|_| Error::Body)?;
    let mut bytes = Vec::with_capacity(count.0);
    serde_json::to_writer(&mut bytes, body).map_err(|_| Error::Body)?;
    Ok(SecretBytes::new(bytes))
}

/// The target of a plain path below `/v1/` and a query, percent-encoded. Slashes separate segments; nothing else has a meaning.
///
/// # Errors
/// [`Error::Path`].
pub fn target<T: AsRef<str>>(path: &str, query: &[(T, T)]) -> Result<String, Error> {
    let mut target = format!("/v1/{}", CanonPath::from_plain(path.strip_prefix('/').unwrap_or(path))?.to_url());
    for (index, (name, value)) in query.iter().enumerate() {
        target.push(if index == 0 { '?' } else { '&' });
        encode(name.as_ref(), &mut target);
        target.push('=');
        encode(value.as_ref(), &mut target);
    }
    Ok(target)
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_argument_cannot_become_anything_but_a_path() {
        for (path, expected) in [
            ("secret/data/app", Some("/v1/secret/data/app")),
            ("/secret/data/app", Some("/v1/secret/data/app")),
            ("secret/metadata/", Some("/v1/secret/metadata/")),
            ("secret/data/a b?c#d%2f&=", Some("/v1/secret/data/a%20b%3Fc%23d%252f%26%3D")),
            ("secret/data/é", Some("/v1/secret/data/%C3%A9")),
            ("secret/data/../x", None),
            ("secret/./x", None),
            ("secret//x", None),
            ("//secret", None),
            ("secret/a\\b", None),
            ("secret/a\nb", None),
            ("", None),
        ] {
            assert_eq!(target::<&str>(path, &[]).ok().as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn query_fields_are_encoded() {
        assert_eq!(target("a", &[("instance", "web 1"), ("hold", "p:0&x=y")]).unwrap(), "/v1/a?instance=web%201&hold=p%3A0%26x%3Dy");
    }

    #[test]
    fn a_body_is_written_without_growing() {
        let body = json(&serde_json::json!({"a": "é\n", "b": [1, 2]})).unwrap();
        assert_eq!(body.expose().capacity(), body.expose().len());
        assert_eq!(body.expose(), "{\"a\":\"é\\n\",\"b\":[1,2]}".as_bytes());
    }

    #[test]
    fn the_texts_of_a_refusal_come_from_the_server_and_nothing_else_of_the_body() {
        let sent = Sent { method: "GET".into(), target: "/v1/x".into(), address: "http://h:1".into() };
        for (raw, texts) in [
            (r#"{"errors":["permission denied"]}"#, vec!["permission denied"]),
            (r#"{"errors":[]}"#, vec![]),
            (r#"{"data":{"password":"hunter2"}}"#, vec![]),
            ("<html>hunter2</html>", vec![]),
        ] {
            let error = sent.refused(403, &SecretBytes::new(raw.as_bytes().to_vec()));
            assert!(!error.to_string().contains("hunter2"));
            let Error::Refused { errors, .. } = error else { panic!() };
            assert_eq!(errors, texts);
        }
    }
}
