//! One delivered value of a managed secret.

use std::collections::BTreeMap;

use base::{SecretBytes, SecretString};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// A value of a managed secret under its generation. No `Debug`: it would show the value.
#[derive(Clone)]
pub struct Credential {
    generation: u64,
    version: Option<u64>,
    fields: BTreeMap<String, Field>,
}

/// A field: text, or any other JSON as it was written.
#[derive(Clone)]
struct Field {
    text: SecretString,
    is_text: bool,
}

impl Credential {
    /// From the value as it stands in a frame: an object.
    pub(crate) fn parse(generation: u64, version: Option<u64>, value: &RawValue) -> Option<Self> {
        let raw: BTreeMap<String, &RawValue> = serde_json::from_str(value.get()).ok()?;
        let field = |raw: &RawValue| {
            let is_text = raw.get().starts_with('"');
            let text = if is_text { serde_json::from_str(raw.get()).ok()? } else { raw.get().to_owned() };
            Some(Field { text: SecretString::new(text), is_text })
        };
        let fields = raw.into_iter().map(|(name, raw)| Some((name, field(raw)?))).collect::<Option<_>>()?;
        Some(Self { generation, version, fields })
    }

    /// A credential made by hand, for tests of whatever takes one.
    #[must_use]
    pub fn from_fields(generation: u64, fields: &[(&str, &str)]) -> Self {
        let field = |text: &str| Field { text: SecretString::new(text.to_owned()), is_text: true };
        let fields = fields.iter().map(|(name, text)| ((*name).to_owned(), field(text))).collect();
        Self { generation, version: None, fields }
    }

    /// Numbers deliveries of this secret; a later one has a higher number, also when it brings an older value back.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The version in the KV mount, once the value is current there.
    #[must_use]
    pub fn version(&self) -> Option<u64> {
        self.version
    }

    /// The text of a field; what is not text is given as JSON.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(|field| field.text.expose().as_str())
    }

    /// The names of the fields, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// The value as one JSON object with sorted names.
    #[must_use]
    pub fn json(&self) -> SecretBytes {
        let mut members = BTreeMap::new();
        for (name, field) in &self.fields {
            let member = if field.is_text { Member::Text(field.text.expose()) } else { Member::Raw(field.text.expose()) };
            members.insert(name.as_str(), member);
        }
        // Text and JSON that was parsed from JSON can always be written.
        crate::api::json(&members).unwrap_or_else(|_| SecretBytes::new(b"{}".to_vec()))
    }

    /// Whether the other one holds the same value, whatever its generation.
    #[must_use]
    pub fn same_value(&self, other: &Self) -> bool {
        self.fields.len() == other.fields.len()
            && self.fields.iter().zip(&other.fields).all(|((name, mine), (other_name, theirs))| {
                name == other_name
                    && mine.is_text == theirs.is_text
                    && crypto::ct::eq(mine.text.expose().as_bytes(), theirs.text.expose().as_bytes())
            })
    }

    /// Takes every value of this credential out of a text that will be sent or logged, and keeps the text short and printable.
    /// A value is found as it is, as JSON writes it, and with its line ends and other controls made to spaces.
    #[must_use]
    pub fn scrub(&self, text: &str) -> String {
        let mut values = Vec::new();
        for (name, field) in &self.fields {
            for value in field.texts() {
                values.push((SecretString::new(printable(value.expose())), name));
                values.extend(escaped(value.expose()).map(|value| (value, name)));
                values.push((value, name));
            }
        }
        // Longest first: a value may be part of another.
        values.sort_by_key(|(value, _)| std::cmp::Reverse(value.expose().len()));
        let mut clean = text.to_owned();
        for (value, name) in values.iter().filter(|(value, _)| !value.expose().is_empty()) {
            if clean.contains(value.expose().as_str()) {
                clean = clean.replace(value.expose().as_str(), &format!("[{name}]"));
            }
        }
        printable(&clean).chars().take(REASON_CHARS_MAX).collect()
    }
}

impl Field {
    /// Every text in it: its own, or those inside of its JSON, and the JSON as it stands.
    fn texts(&self) -> Vec<SecretString> {
        let mut texts = vec![self.text.clone()];
        if !self.is_text {
            let mut rest: Vec<Value> = serde_json::from_str(self.text.expose()).into_iter().collect();
            while let Some(value) = rest.pop() {
                match value {
                    Value::String(text) => texts.push(SecretString::new(text)),
                    Value::Array(items) => rest.extend(items),
                    Value::Object(members) => rest.extend(members.into_iter().map(|(_, member)| member)),
                    Value::Null | Value::Bool(_) | Value::Number(_) => {}
                }
            }
        }
        texts
    }
}

/// A text as it stands between the quotes of JSON.
fn escaped(text: &str) -> Option<SecretString> {
    let json = crate::api::json(text).ok()?;
    let inside = std::str::from_utf8(json.expose()).ok()?.strip_prefix('"')?.strip_suffix('"')?;
    Some(SecretString::new(inside.to_owned()))
}

/// A text on one line, without anything that moves a cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Characters of a reason at most.
const REASON_CHARS_MAX: usize = 300;

enum Member<'a> {
    Text(&'a str),
    Raw(&'a str),
}

impl serde::Serialize for Member<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => to.serialize_str(text),
            Self::Raw(json) => <&RawValue>::deserialize(&mut serde_json::Deserializer::from_str(json))
                .map_err(|_| serde::ser::Error::custom("not JSON"))?
                .serialize(to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Credential> {
        Credential::parse(1, None, serde_json::from_str(text).ok()?)
    }

    #[test]
    fn fields_are_text_and_everything_else_stays_json() {
        let credential = parse(r#"{"username":"a","port":5432,"tags":["x", 1],"password":"p\"\u00e9"}"#).unwrap();
        for (name, text) in
            [("username", Some("a")), ("password", Some("p\"é")), ("port", Some("5432")), ("tags", Some(r#"["x", 1]"#)), ("nope", None)]
        {
            assert_eq!(credential.field(name), text, "{name}");
        }
        assert_eq!(credential.json().expose(), "{\"password\":\"p\\\"é\",\"port\":5432,\"tags\":[\"x\", 1],\"username\":\"a\"}".as_bytes());
        for not in ["[]", "1", "null", r#""x""#] {
            assert!(parse(not).is_none(), "{not}");
        }
    }

    #[test]
    fn the_value_alone_decides_sameness() {
        let with = |generation, text| Credential { generation, ..parse(text).unwrap() };
        let base = with(1, r#"{"a":"1","b":2}"#);
        assert!(base.same_value(&with(2, r#"{"b":2,"a":"1"}"#)));
        for other in [r#"{"a":"1"}"#, r#"{"a":"1","b":3}"#, r#"{"a":"1","b":"2"}"#, r#"{"a":"1","c":2}"#] {
            assert!(!base.same_value(&with(1, other)), "{other}");
        }
    }

    #[test]
    fn a_reason_holds_no_value_and_is_short() {
        let credential = Credential::from_fields(1, &[("username", "orders_a"), ("password", "orders_a-longer"), ("empty", "")]);
        assert_eq!(credential.scrub("user \"orders_a\" with orders_a-longer\n failed"), "user \"[username]\" with [password]  failed");
        assert_eq!(credential.scrub(&"é".repeat(1_000)).chars().count(), REASON_CHARS_MAX);
    }

    #[test]
    fn a_value_is_recognised_however_it_is_quoted() {
        let credential =
            parse(r#"{"key":"-----BEGIN\nhunter2\n-----END","password":"hunt\"er\\3","login":{"all":["hunter4",{"x":"hunter5"}]}}"#)
                .unwrap();
        for (text, clean) in [
            ("bad key -----BEGIN\nhunter2\n-----END here", "bad key [key] here"),
            ("bad key -----BEGIN hunter2 -----END here", "bad key [key] here"),
            (r#"{"key":"-----BEGIN\nhunter2\n-----END"}"#, r#"{"key":"[key]"}"#),
            (r#"{"password":"hunt\"er\\3"}"#, r#"{"password":"[password]"}"#),
            ("no hunter4 and no hunter5", "no [login] and no [login]"),
        ] {
            assert_eq!(credential.scrub(text), clean);
        }
    }
}
