//! A request as a handler sees it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use base::{CanonPath, MountId, NamespaceId, Refusal, SecretString, Timestamp, ttl};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use store::{Scope, Tx};

use crate::host::Host;
use crate::route::Op;

/// Everything a handler may touch while it runs. It is dropped and made anew when a conflict makes the handler run again.
pub struct Cx<'a> {
    /// The transaction: a snapshot to read, and what will be written.
    pub tx: &'a mut Tx,
    /// The request. Duties run with a call made by the kernel (no caller, no body).
    pub call: &'a Call,
    /// What the kernel does for rooms.
    pub host: &'a dyn Host,
    /// Warnings for the caller.
    pub warnings: Vec<String>,
    /// Public facts for the audit record (which version was served, which run was opened). Never secrets.
    pub facts: BTreeMap<&'static str, String>,
}

impl<'a> Cx<'a> {
    /// A fresh context.
    pub fn new(tx: &'a mut Tx, call: &'a Call, host: &'a dyn Host) -> Self {
        Self { tx, call, host, warnings: Vec::new(), facts: BTreeMap::new() }
    }

    /// The time of this transaction: never before anything committed.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.tx.now()
    }

    /// Adds a public fact to the audit record.
    pub fn note(&mut self, name: &'static str, value: impl ToString) {
        self.facts.insert(name, value.to_string());
    }

    /// Adds a warning for the caller.
    pub fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }
}

/// Where an engine is mounted.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Its incarnation.
    pub id: MountId,
    /// Its namespace.
    pub namespace: NamespaceId,
    /// The path, as a folder: `secret/`, `auth/approle/`, `sys/lifecycle/`.
    pub path: CanonPath,
    /// The engine's type name.
    pub kind: String,
    /// `<type>_<8 hexadecimal digits>`.
    pub accessor: String,
    /// Options given at mount (`version` of kv).
    pub options: BTreeMap<String, String>,
}

impl Mount {
    /// The part of the key space that belongs to this mount.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope::new(self.namespace, self.id)
    }
}

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The identity that acknowledgements are bound to: `approle/<role>`, or `token/<random>` for a token made directly.
    pub principal: String,
    /// The token's accessor.
    pub accessor: String,
    /// Shown in records.
    pub display_name: String,
    /// The token's policies.
    pub policies: Vec<String>,
    /// Whether the token has the root policy.
    pub root: bool,
    /// SHA-256 of the token.
    pub token_hash: [u8; 32],
}

/// A request, read under the limits of its route.
#[derive(Debug)]
pub struct Call {
    /// The UUID that also stands in the envelope and the audit record.
    pub id: String,
    /// The operation.
    pub op: Op,
    /// The mount that answers.
    pub mount: Mount,
    /// The path below the mount; nothing for the mount itself.
    pub path: Option<CanonPath>,
    /// What the route's pattern captured.
    pub captures: Captures,
    /// The body's members and, for GET and DELETE, the query's.
    pub body: Body,
    /// Who calls; nothing on anonymous routes and for duties.
    pub caller: Option<Caller>,
    /// From where; nothing for duties.
    pub remote: Option<IpAddr>,
}

impl Call {
    /// The caller, on routes that have one.
    ///
    /// # Errors
    /// On anonymous routes.
    pub fn caller(&self) -> Result<&Caller, Refusal> {
        self.caller.as_ref().ok_or_else(Refusal::bad_token)
    }

    /// What the pattern captured under `name`; empty when it captured nothing.
    #[must_use]
    pub fn capture(&self, name: &str) -> &str {
        self.captures.get(name)
    }

    /// What the pattern captured, as a path.
    ///
    /// # Errors
    /// When it captured nothing.
    pub fn capture_path(&self, name: &str) -> Result<CanonPath, Refusal> {
        CanonPath::from_plain(self.capture(name)).map_err(|e| Refusal::invalid(e.to_string()))
    }
}

/// What a route's pattern captured, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captures(Vec<(&'static str, String)>);

impl Captures {
    pub(crate) fn set(&mut self, name: &'static str, value: String) {
        self.0.push((name, value));
    }

    /// The value of `name`, or the empty text.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| *n == name).map_or("", |(_, v)| v.as_str())
    }
}

/// The members of a JSON body as raw text: read when asked for, in the loose types of Vault clients. Refusals name the field and never
/// repeat its value.
#[derive(Debug, Default)]
pub struct Body(BTreeMap<String, Box<RawValue>>);

impl Body {
    /// From the members of an object.
    #[must_use]
    pub fn new(members: BTreeMap<String, Box<RawValue>>) -> Self {
        Self(members)
    }

    /// From a JSON object, already guarded; empty input is an empty body.
    ///
    /// # Errors
    /// When it is not an object.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        serde_json::from_slice(bytes).map(Self).map_err(|e| {
            Refusal::invalid(format!("failed to parse JSON input: expected an object (line {}, column {})", e.line(), e.column()))
        })
    }

    /// Adds a member of the query as text; a member that came more than once becomes a list.
    pub fn add_query(&mut self, name: &str, values: &[String]) {
        let raw = match values {
            [one] => serde_json::value::to_raw_value(one),
            many => serde_json::value::to_raw_value(many),
        };
        if let Ok(raw) = raw {
            self.0.insert(name.to_owned(), raw);
        }
    }

    /// Adds the members of the query that the body does not have itself.
    pub fn add_missing(&mut self, query: &[(String, Vec<String>)]) {
        for (name, values) in query {
            if !self.has(name) {
                self.add_query(name, values);
            }
        }
    }

    /// The members' names and raw values.
    pub fn members(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.0.iter().map(|(name, raw)| (name.as_str(), raw.as_ref()))
    }

    /// Whether the member is there and not `null`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.raw(name).is_some()
    }

    /// The member as it came; `null` counts as absent.
    #[must_use]
    pub fn raw(&self, name: &str) -> Option<&RawValue> {
        self.0.get(name).map(AsRef::as_ref).filter(|raw| raw.get() != "null")
    }

    /// The member as any type.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn typed<T: DeserializeOwned>(&self, name: &str, expected: &str) -> Result<Option<T>, Refusal> {
        self.raw(name).map(|raw| serde_json::from_str(raw.get()).map_err(|_| wrong(name, expected))).transpose()
    }

    /// Text.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn text(&self, name: &str) -> Result<Option<String>, Refusal> {
        self.typed(name, "text")
    }

    /// Text that must be there and not empty.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn need_text(&self, name: &str) -> Result<String, Refusal> {
        self.text(name)?.filter(|t| !t.is_empty()).ok_or_else(|| Refusal::invalid(format!("field `{name}`: missing")))
    }

    /// Secret text.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn secret(&self, name: &str) -> Result<Option<SecretString>, Refusal> {
        Ok(self.text(name)?.map(SecretString::new))
    }

    /// A whole number that is not negative, or text that is one.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn int(&self, name: &str) -> Result<Option<u64>, Refusal> {
        self.loose(name, "a whole number that is not negative", |text| text.parse().ok())
    }

    /// A boolean, or text that is one in Go's spelling.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, Refusal> {
        self.loose(name, "a boolean", |text| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        })
    }

    /// Seconds as a number, or a duration as text.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>, Refusal> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let text = serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned());
        ttl::parse(&text).map(Some).map_err(|e| Refusal::invalid(format!("field `{name}`: {e}")))
    }

    /// How long something lives: a [`Body::duration`] in whole seconds, a part of one counted as one.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn lifetime(&self, name: &str) -> Result<Option<Duration>, Refusal> {
        Ok(self.duration(name)?.map(ttl::whole_seconds))
    }

    /// An array of text, or comma-separated text; items are trimmed, empty ones dropped.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn list(&self, name: &str) -> Result<Option<Vec<String>>, Refusal> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let items = match serde_json::from_str::<Vec<String>>(raw.get()) {
            Ok(items) => items,
            Err(_) => serde_json::from_str::<String>(raw.get())
                .map_err(|_| wrong(name, "an array of text or comma-separated text"))?
                .split(',')
                .map(str::to_owned)
                .collect(),
        };
        Ok(Some(items.iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()))
    }

    /// An object of text values.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn map(&self, name: &str) -> Result<Option<BTreeMap<String, String>>, Refusal> {
        self.typed(name, "an object of text values")
    }

    fn loose<T: DeserializeOwned>(&self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Refusal> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        if let Ok(value) = serde_json::from_str::<T>(raw.get()) {
            return Ok(Some(value));
        }
        let text = serde_json::from_str::<String>(raw.get()).map_err(|_| wrong(name, expected))?;
        parse(&text).map(Some).ok_or_else(|| wrong(name, expected))
    }
}

fn wrong(name: &str, expected: &str) -> Refusal {
    Refusal::invalid(format!("field `{name}`: expected {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Body {
        Body::from_json(text.as_bytes()).unwrap()
    }

    #[test]
    fn loose_types() {
        let b = body(r#"{"a":"5","b":5,"c":"true","d":"1h","e":90,"f":"x, y,","g":["x"],"h":null}"#);
        assert_eq!(b.int("a").unwrap(), Some(5));
        assert_eq!(b.int("b").unwrap(), Some(5));
        assert_eq!(b.bool("c").unwrap(), Some(true));
        assert_eq!(b.duration("d").unwrap(), Some(Duration::from_secs(3600)));
        assert_eq!(b.duration("e").unwrap(), Some(Duration::from_secs(90)));
        assert_eq!(b.list("f").unwrap(), Some(vec!["x".into(), "y".into()]));
        assert_eq!(b.list("g").unwrap(), Some(vec!["x".into()]));
        assert!(!b.has("h") && b.int("nothing").unwrap().is_none());
    }

    #[test]
    fn refusals_name_the_field_and_hide_the_value() {
        let b = body(r#"{"a":"CANARY","b":{"x":"CANARY"},"c":["CANARY",1]}"#);
        for refusal in [
            b.int("a").unwrap_err(),
            b.bool("a").unwrap_err(),
            b.duration("a").unwrap_err(),
            b.text("b").unwrap_err(),
            b.duration("b").unwrap_err(),
            b.list("c").unwrap_err(),
            b.map("c").unwrap_err(),
        ] {
            assert!(refusal.errors[0].starts_with("field `"), "{refusal:?}");
            assert!(!format!("{refusal:?}").contains("CANARY"), "{refusal:?}");
        }
        let broken = Body::from_json(br#"["CANARY"]"#).unwrap_err();
        assert!(!format!("{broken:?}").contains("CANARY"));
    }
}
