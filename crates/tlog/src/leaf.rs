//! The two kinds of leaves and what must hold inside each of them.
//!
//! A leaf is canonical JSON ([`crate::jcs`]); the tree hashes exactly these bytes. What a record says is `audit`'s
//! business: here it is one JSON object.

use crate::{Error, Hash, bundle, jcs};
use crypto::encode::{from_hex, hex};
use serde_json::{Map, Value, json};

/// A leaf of the change tree: one commit.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Position in the commit log, from 1; the leaf's index is one less.
    pub seq: u64,
    /// When, in microseconds since 1970.
    pub time: u64,
    /// SHA-256 of the sealed changes in the same log entry.
    pub changes: Hash,
    /// The record.
    pub record: Value,
}

/// A leaf of an access tree: one answer that changed nothing, or a word of the log about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Access {
    /// The change sequence as of which it was decided.
    pub as_of: u64,
    /// The run of the process that wrote it.
    pub boot: String,
    /// Count within the boot, from 0.
    pub n: u64,
    /// When, in microseconds since 1970.
    pub time: u64,
    /// The record.
    pub record: Value,
}

impl Change {
    /// The leaf's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        fit(json!({
            "changes": hex(&self.changes), "record": self.record, "seq": self.seq, "time": self.time, "type": "change",
        }))
    }

    /// Reads a leaf; refuses unknown members and any spelling but the canonical one.
    pub fn decode(bytes: &[u8]) -> Result<Change, Error> {
        let mut members = members(bytes, "change", 5)?;
        let changes = text(&mut members, "changes")?;
        Ok(Change {
            changes: from_hex(&changes).and_then(|hash| hash.try_into().ok()).ok_or(Error::Leaf("`changes`"))?,
            record: record(&mut members)?,
            seq: number(&members, "seq")?,
            time: number(&members, "time")?,
        })
    }
}

impl Access {
    /// The leaf's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        fit(json!({
            "as_of": self.as_of, "boot": self.boot, "n": self.n, "record": self.record, "time": self.time, "type": "access",
        }))
    }

    /// Reads a leaf; refuses unknown members and any spelling but the canonical one.
    pub fn decode(bytes: &[u8]) -> Result<Access, Error> {
        let mut members = members(bytes, "access", 6)?;
        Ok(Access {
            boot: text(&mut members, "boot")?,
            record: record(&mut members)?,
            as_of: number(&members, "as_of")?,
            n: number(&members, "n")?,
            time: number(&members, "time")?,
        })
    }

    /// The record's `kind`, or nothing.
    pub fn kind(&self) -> &str {
        self.record.get("kind").and_then(Value::as_str).unwrap_or_default()
    }
}

/// How far a tree is: its size and the root over it. Heartbeats carry one of each tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Number of leaves.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
}

impl Head {
    /// The form it has inside a record.
    pub fn to_json(&self) -> Value {
        json!({"root": hex(&self.root), "size": self.size})
    }

    /// Reads that form.
    pub fn from_json(value: &Value) -> Result<Head, Error> {
        let root = value.get("root").and_then(Value::as_str).and_then(from_hex).and_then(|root| root.try_into().ok());
        let size = value.get("size").and_then(Value::as_u64);
        Ok(Head { root: root.ok_or(Error::Leaf("`root`"))?, size: size.ok_or(Error::Leaf("`size`"))? })
    }
}

/// Heads of the change tree and of the access tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Of the change tree.
    pub change: Head,
    /// Of the access tree that the heartbeat itself is in.
    pub access: Head,
}

impl Heads {
    /// The form it has inside a record, as member `heads`.
    pub fn to_json(&self) -> Value {
        json!({"access": self.access.to_json(), "change": self.change.to_json()})
    }

    /// The heads that `record` carries, if any.
    pub fn of_record(record: &Value) -> Result<Option<Heads>, Error> {
        let Some(heads) = record.get("heads") else { return Ok(None) };
        let head = |name| heads.get(name).ok_or(Error::Leaf("`heads`")).and_then(Head::from_json);
        Ok(Some(Heads { change: head("change")?, access: head("access")? }))
    }
}

fn fit(value: Value) -> Result<Vec<u8>, Error> {
    let bytes = jcs::to_vec(&value)?;
    if bytes.len() > bundle::ENTRY_MAX { Err(Error::EntryTooLong(bytes.len())) } else { Ok(bytes) }
}

fn members(bytes: &[u8], kind: &str, count: usize) -> Result<Map<String, Value>, Error> {
    match jcs::parse(bytes)? {
        Value::Object(members) if members.len() == count && members.get("type").and_then(Value::as_str) == Some(kind) => Ok(members),
        _ => Err(Error::Leaf("another shape")),
    }
}

fn text(members: &mut Map<String, Value>, name: &'static str) -> Result<String, Error> {
    match members.remove(name) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(Error::Leaf(name)),
    }
}

fn record(members: &mut Map<String, Value>) -> Result<Value, Error> {
    members.remove("record").filter(Value::is_object).ok_or(Error::Leaf("record"))
}

fn number(members: &Map<String, Value>, name: &'static str) -> Result<u64, Error> {
    members.get(name).and_then(Value::as_u64).ok_or(Error::Leaf(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_have_the_documented_bytes() {
        let change = Change { seq: 1, time: 7, changes: [0xab; 32], record: json!({"kind": "request"}) };
        let bytes = change.encode().unwrap();
        let expected = format!(r#"{{"changes":"{}","record":{{"kind":"request"}},"seq":1,"time":7,"type":"change"}}"#, "ab".repeat(32));
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), expected);
        assert_eq!(Change::decode(&bytes).unwrap(), change);
        let access = Access { as_of: 3, boot: "b".to_owned(), n: 0, time: 7, record: json!({"kind": "boot"}) };
        let bytes = access.encode().unwrap();
        assert_eq!(
            String::from_utf8(bytes.clone()).unwrap(),
            r#"{"as_of":3,"boot":"b","n":0,"record":{"kind":"boot"},"time":7,"type":"access"}"#
        );
        assert_eq!(Access::decode(&bytes).unwrap(), access);
        assert_eq!(access.kind(), "boot");
        // one kind is never read as the other
        assert!(Change::decode(&bytes).is_err());
    }

    #[test]
    fn another_shape_is_refused() {
        for bad in [
            r#"{"as_of":3,"boot":"b","extra":1,"n":0,"record":{},"time":7,"type":"access"}"#,
            r#"{"as_of":3,"boot":"b","n":0,"record":[],"time":7,"type":"access"}"#,
            r#"{"as_of":-3,"boot":"b","n":0,"record":{},"time":7,"type":"access"}"#,
            r#"{"as_of":3,"boot":7,"n":0,"record":{},"time":7,"type":"access"}"#,
            r#"{"boot":"b","n":0,"record":{},"time":7,"type":"access"}"#,
            r#"[]"#,
            "",
        ] {
            assert!(Access::decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_leaf_that_no_bundle_could_carry_is_refused() {
        let record = json!({"x": "a".repeat(70_000)});
        let access = Access { as_of: 0, boot: "b".to_owned(), n: 0, time: 0, record };
        assert!(matches!(access.encode(), Err(Error::EntryTooLong(_))));
    }

    #[test]
    fn heads_travel_inside_a_record() {
        let heads = Heads { change: Head { size: 5, root: [1; 32] }, access: Head { size: 9, root: [2; 32] } };
        let record = json!({"kind": "heartbeat", "heads": heads.to_json()});
        assert_eq!(Heads::of_record(&record), Ok(Some(heads)));
        assert_eq!(Heads::of_record(&json!({})), Ok(None));
        assert!(Heads::of_record(&json!({"heads": {"change": heads.change.to_json()}})).is_err());
        assert!(Heads::of_record(&json!({"heads": {"change": {"root": "00", "size": 1}, "access": {}}})).is_err());
    }
}
