//! The record: an allow-list of what is kept in clear, and values as HMACs.

use crate::hash::Hasher;
use base::{Seq, Timestamp};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use tlog::leaf::{Access, Change, Heads};

/// Largest body whose fields are hashed one by one; above it the body is hashed as a whole.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Most fields hashed one by one.
pub const FIELDS_MAX: usize = 64;
/// Longest text in clear, in bytes; the rest is replaced by its length and HMAC.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Most policies named.
const LIST_MAX: usize = 64;

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request and its answer.
    Request,
    /// A duty that was owed, performed or settled.
    Duty,
    /// A step of a rotation or another act of the server itself.
    System,
    /// A frame pushed on a stream.
    Push,
    /// The process began.
    Boot,
    /// The keys became available; what was queued before is counted here.
    Unsealed,
    /// Heads of both trees.
    Heartbeat,
    /// The process ends in order.
    Shutdown,
}

impl Kind {
    /// As it stands in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Request => "request",
            Kind::Duty => "duty",
            Kind::System => "system",
            Kind::Push => "push",
            Kind::Boot => "boot",
            Kind::Unsealed => "unsealed",
            Kind::Heartbeat => "heartbeat",
            Kind::Shutdown => "shutdown",
        }
    }
}

/// Who asked. Empty members are left out of the record.
#[derive(Debug, Clone, Default)]
pub struct Auth {
    /// The identity that rules are about: `approle/<role>`, `token/<accessor>`, `root`.
    pub principal: String,
    /// A name for people.
    pub display: String,
    /// The token's accessor; recorded as an HMAC.
    pub accessor: String,
    /// Kind of token.
    pub token_type: String,
    /// Policies that applied.
    pub policies: Vec<String>,
    /// The rule that allowed or refused.
    pub rule: String,
}

/// What was asked. Empty members are left out of the record.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Id of the request.
    pub id: String,
    /// `read`, `update`, …
    pub operation: String,
    /// The canonical path, or the raw target when it has none.
    pub path: String,
    /// Mount point.
    pub mount: String,
    /// Address and port of the peer.
    pub remote: String,
    /// Whose client it says it is.
    pub agent: String,
}

/// One record under construction. Whoever handles a request again starts from a fresh one.
#[derive(Clone)]
pub struct Record {
    hasher: Hasher,
    kind: Kind,
    as_of: Option<Seq>,
    auth: Option<Auth>,
    request: Option<Request>,
    fields: Values,
    status: Option<u16>,
    version: Option<u64>,
    returned: Values,
    error: String,
    facts: BTreeMap<&'static str, Fact>,
    heads: Option<Heads>,
}

#[derive(Clone)]
enum Fact {
    Text(String),
    Number(u64),
}

/// Values of a body: by field, or as a whole.
#[derive(Clone, Default)]
struct Values {
    fields: BTreeMap<String, String>,
    body: Option<String>,
}

impl Record {
    /// An empty record. [`crate::Trail::record`] supplies the hasher.
    pub fn new(kind: Kind, hasher: Hasher) -> Record {
        Record {
            hasher,
            kind,
            as_of: None,
            auth: None,
            request: None,
            fields: Values::default(),
            status: None,
            version: None,
            returned: Values::default(),
            error: String::new(),
            facts: BTreeMap::new(),
            heads: None,
        }
    }

    /// The commit as of which the answer was decided. Without it the last one known when the record is written.
    pub fn as_of(&mut self, seq: Seq) -> &mut Record {
        self.as_of = Some(seq);
        self
    }

    /// Who asked.
    pub fn auth(&mut self, auth: Auth) -> &mut Record {
        self.auth = Some(auth);
        self
    }

    /// What was asked.
    pub fn request(&mut self, request: Request) -> &mut Record {
        self.request = Some(request);
        self
    }

    /// The body of the request: each value by its path, or as a whole when it is large or no JSON object.
    pub fn request_body(&mut self, raw: &[u8]) -> &mut Record {
        self.fields.add(&self.hasher, raw);
        self
    }

    /// One value of the request.
    pub fn request_value(&mut self, field: &str, value: &[u8]) -> &mut Record {
        self.fields.add_one(&self.hasher, field, value);
        self
    }

    /// The status of the answer.
    pub fn status(&mut self, status: u16) -> &mut Record {
        self.status = Some(status);
        self
    }

    /// Which version of a secret was served or written.
    pub fn version(&mut self, version: u64) -> &mut Record {
        self.version = Some(version);
        self
    }

    /// The body of the answer, like [`Record::request_body`].
    pub fn response_body(&mut self, raw: &[u8]) -> &mut Record {
        self.returned.add(&self.hasher, raw);
        self
    }

    /// One value of the answer.
    pub fn response_value(&mut self, field: &str, value: &[u8]) -> &mut Record {
        self.returned.add_one(&self.hasher, field, value);
        self
    }

    /// Why it was refused or failed. Public text only: it must hold no value.
    pub fn error(&mut self, text: &str) -> &mut Record {
        self.error = text.to_owned();
        self
    }

    /// A readable fact: policy, run, phase, instance, generation, target. Never a value.
    pub fn fact(&mut self, name: &'static str, text: &str) -> &mut Record {
        self.facts.insert(name, Fact::Text(text.to_owned()));
        self
    }

    /// A readable number.
    pub fn count(&mut self, name: &'static str, number: u64) -> &mut Record {
        self.facts.insert(name, Fact::Number(number));
        self
    }

    pub(crate) fn heads(&mut self, heads: Heads) -> &mut Record {
        self.heads = Some(heads);
        self
    }

    pub(crate) fn as_of_or(&self, known: u64) -> u64 {
        self.as_of.map_or(known, |seq| seq.0)
    }

    /// What the record is about.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The record as JSON, with texts and lists cut to `caps`.
    pub(crate) fn to_value(&self, caps: Caps) -> Value {
        let mut out = Map::new();
        out.insert("kind".to_owned(), self.kind.as_str().into());
        if let Some(auth) = &self.auth {
            let mut part = Part::new(self, caps);
            part.text("principal", &auth.principal).text("display", &auth.display);
            part.text("token_type", &auth.token_type).text("rule", &auth.rule);
            if !auth.accessor.is_empty() {
                part.put("accessor", self.hasher.value("accessor", auth.accessor.as_bytes()).into());
            }
            let shown = auth.policies.iter().take(caps.list);
            let policies: Vec<Value> = shown.map(|policy| part.cut("policies", policy).into()).collect();
            if auth.policies.len() > policies.len() {
                part.put("policies_elided", (auth.policies.len() - policies.len()).into());
            }
            if !policies.is_empty() {
                part.put("policies", policies.into());
            }
            out.insert("auth".to_owned(), part.into_value());
        }
        if self.request.is_some() || !self.fields.is_empty() {
            let request = self.request.clone().unwrap_or_default();
            let mut part = Part::new(self, caps);
            part.text("id", &request.id).text("operation", &request.operation).text("path", &request.path);
            part.text("mount", &request.mount).text("remote", &request.remote).text("agent", &request.agent);
            part.values(&self.fields);
            out.insert("request".to_owned(), part.into_value());
        }
        if self.status.is_some() || self.version.is_some() || !self.returned.is_empty() {
            let mut part = Part::new(self, caps);
            if let Some(status) = self.status {
                part.put("status", status.into());
            }
            if let Some(version) = self.version {
                part.number("version", version);
            }
            part.values(&self.returned);
            out.insert("response".to_owned(), part.into_value());
        }
        if !self.facts.is_empty() {
            let mut part = Part::new(self, caps);
            for (name, fact) in &self.facts {
                match fact {
                    Fact::Text(text) => part.text(name, text),
                    Fact::Number(number) => part.number(name, *number),
                };
            }
            out.insert("facts".to_owned(), part.into_value());
        }
        if !self.error.is_empty() {
            out.insert("error".to_owned(), Part::new(self, caps).cut("error", &self.error).into());
        }
        if let Some(heads) = &self.heads {
            out.insert("heads".to_owned(), heads.to_json());
        }
        Value::Object(out)
    }
}

/// The leaf of a commit: what `store`'s leaf function returns.
///
/// Always succeeds: a record that would not fit is written with less and says so.
pub fn change_leaf(record: &Record, seq: Seq, time: Timestamp, changes: &[u8; 32]) -> Vec<u8> {
    for caps in Caps::STEPS {
        let leaf = Change { seq: seq.0, time: time.0, changes: *changes, record: record.to_value(caps) };
        if let Ok(bytes) = leaf.encode() {
            return bytes;
        }
    }
    let changes = crypto::encode::hex(changes);
    let (kind, seq, time) = (record.kind.as_str(), seq.0, time.0);
    format!(r#"{{"changes":"{changes}","record":{{"elided":true,"kind":"{kind}"}},"seq":{seq},"time":{time},"type":"change"}}"#)
        .into_bytes()
}

/// The leaf of an access, like [`change_leaf`].
pub(crate) fn access_leaf(record: &Record, as_of: u64, boot: &str, n: u64, time: Timestamp) -> Vec<u8> {
    for caps in Caps::STEPS {
        let record = record.to_value(caps);
        if let Ok(bytes) = (Access { as_of, boot: boot.to_owned(), n, time: time.0, record }).encode() {
            return bytes;
        }
    }
    let (kind, time) = (record.kind.as_str(), time.0);
    format!(r#"{{"as_of":{as_of},"boot":"{boot}","n":{n},"record":{{"elided":true,"kind":"{kind}"}},"time":{time},"type":"access"}}"#)
        .into_bytes()
}

/// How much of a record is kept.
#[derive(Clone, Copy)]
pub(crate) struct Caps {
    text: usize,
    list: usize,
    fields: usize,
}

impl Caps {
    /// What is tried in turn until the leaf fits a bundle.
    pub(crate) const STEPS: [Caps; 2] =
        [Caps { text: TEXT_BYTES_MAX, list: LIST_MAX, fields: FIELDS_MAX }, Caps { text: 128, list: 4, fields: 0 }];
}

/// One object of a record under construction.
struct Part<'a> {
    record: &'a Record,
    caps: Caps,
    out: Map<String, Value>,
}

impl<'a> Part<'a> {
    fn new(record: &'a Record, caps: Caps) -> Part<'a> {
        Part { record, caps, out: Map::new() }
    }

    fn put(&mut self, name: &str, value: Value) {
        self.out.insert(name.to_owned(), value);
    }

    fn text(&mut self, name: &str, text: &str) -> &mut Self {
        if !text.is_empty() {
            let cut = self.cut(name, text);
            self.put(name, cut.into());
        }
        self
    }

    /// Numbers beyond 2^53 have no canonical form and are written as text.
    fn number(&mut self, name: &str, number: u64) -> &mut Self {
        let value = if number <= tlog::jcs::INTEGER_MAX { number.into() } else { number.to_string().into() };
        self.put(name, value);
        self
    }

    fn values(&mut self, values: &Values) {
        let shown: Map<String, Value> =
            values.fields.iter().take(self.caps.fields).map(|(name, hash)| (self.cut("name", name), Value::from(hash.as_str()))).collect();
        if values.fields.len() > shown.len() {
            self.put("fields_elided", (values.fields.len() - shown.len()).into());
        }
        if !shown.is_empty() {
            self.put("fields", shown.into());
        }
        if let Some(body) = &values.body {
            self.put("body", body.as_str().into());
        }
    }

    /// A text that is short enough, or its beginning with the length and HMAC of the whole.
    fn cut(&self, name: &str, text: &str) -> String {
        if text.len() <= self.caps.text {
            return text.to_owned();
        }
        let end = (0..=self.caps.text / 2).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        let start = text.get(..end).unwrap_or_default();
        format!("{start}\u{2026} ({} bytes, {})", text.len(), self.record.hasher.value(name, text.as_bytes()))
    }

    fn into_value(self) -> Value {
        Value::Object(self.out)
    }
}

impl Values {
    fn is_empty(&self) -> bool {
        self.fields.is_empty() && self.body.is_none()
    }

    fn add(&mut self, hasher: &Hasher, raw: &[u8]) {
        if raw.is_empty() {
            return;
        }
        let small = raw.len() <= BODY_BYTES_MAX;
        let parsed = if small { serde_json::from_slice::<Value>(raw).ok().filter(Value::is_object) } else { None };
        let mut found = BTreeMap::new();
        if let Some(value) = parsed
            && flatten(hasher, &mut String::new(), &value, &mut found)
            && found.len() + self.fields.len() <= FIELDS_MAX
        {
            self.fields.append(&mut found);
        } else {
            self.body = Some(hasher.value("body", raw));
        }
    }

    fn add_one(&mut self, hasher: &Hasher, field: &str, value: &[u8]) {
        if self.fields.len() < FIELDS_MAX {
            self.fields.insert(field.to_owned(), hasher.value(field, value));
        }
    }
}

/// Hashes every value below `path`; false when there are too many. Texts count as their characters, anything else as its
/// JSON. Paths join names with `/`, with `~` and `/` inside a name escaped as in RFC 6901.
fn flatten(hasher: &Hasher, path: &mut String, value: &Value, found: &mut BTreeMap<String, String>) -> bool {
    let mut into = |name: &str, value: &Value| {
        let length = path.len();
        if length > 0 {
            path.push('/');
        }
        path.push_str(&name.replace('~', "~0").replace('/', "~1"));
        let fits = flatten(hasher, path, value, found);
        path.truncate(length);
        fits
    };
    match value {
        Value::Object(members) if !members.is_empty() => return members.iter().all(|(name, value)| into(name, value)),
        Value::Array(items) if !items.is_empty() => {
            return items.iter().enumerate().all(|(position, item)| into(&position.to_string(), item));
        }
        Value::String(text) => found.insert(path.clone(), hasher.value(path, text.as_bytes())),
        other => found.insert(path.clone(), hasher.value(path, other.to_string().as_bytes())),
    };
    found.len() <= FIELDS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::tests::keys;
    use serde_json::json;
    use std::sync::Arc;

    fn hasher() -> Hasher {
        Hasher::new(Arc::new(keys(1)))
    }

    fn leaf_of(record: &Record) -> (Vec<u8>, Access) {
        let bytes = access_leaf(record, 5, "boot", 0, Timestamp(9));
        let leaf = Access::decode(&bytes).unwrap();
        (bytes, leaf)
    }

    #[test]
    fn a_record_has_the_documented_members_and_no_value() {
        let mut record = Record::new(Kind::Request, hasher());
        record
            .auth(Auth { principal: "approle/orders".into(), accessor: "acc".into(), policies: vec!["p".into()], ..Auth::default() })
            .request(Request { id: "r1".into(), operation: "update".into(), path: "secret/data/a".into(), ..Request::default() })
            .request_body(br#"{"data":{"password":"hunter2","n":1,"deep":[true,null],"a/b~c":{}},"options":{"cas":0}}"#)
            .status(200)
            .version(3)
            .response_value("data/password", b"hunter2");
        let (bytes, leaf) = leaf_of(&record);
        let text = String::from_utf8(bytes).unwrap();
        assert!(!text.contains("hunter2") && !text.contains("\"acc\""), "{text}");
        let fields = leaf.record["request"]["fields"].as_object().unwrap();
        let names: Vec<_> = fields.keys().map(String::as_str).collect();
        assert_eq!(names, ["data/a~1b~0c", "data/deep/0", "data/deep/1", "data/n", "data/password", "options/cas"]);
        // the same value on the same path has the same HMAC, wherever it appears
        assert_eq!(fields["data/password"], hasher().value("data/password", b"hunter2"));
        assert_eq!(fields["data/password"], leaf.record["response"]["fields"]["data/password"]);
        // numbers and booleans are hashed too
        assert_eq!(fields["data/n"], hasher().value("data/n", b"1"));
        assert_eq!(leaf.record["response"]["version"], 3);
        assert_eq!(leaf.record["auth"]["policies"], json!(["p"]));
        assert_eq!(leaf.record["auth"].get("display"), None);
    }

    #[test]
    fn a_body_that_is_large_many_or_no_object_is_one_hash() {
        let many: Map<String, Value> = (0..=FIELDS_MAX).map(|n| (n.to_string(), n.into())).collect();
        let many = serde_json::to_vec(&many).unwrap();
        let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(BODY_BYTES_MAX)).into_bytes();
        for raw in [&many[..], &large, b"[1]", b"not json", b"\xff"] {
            let mut record = Record::new(Kind::Request, hasher());
            record.request_body(raw);
            let request = leaf_of(&record).1.record["request"].clone();
            assert_eq!(request, json!({"body": hasher().value("body", raw)}));
        }
        let mut record = Record::new(Kind::Request, hasher());
        record.request_body(b"");
        assert_eq!(leaf_of(&record).1.record, json!({"kind": "request"}));
    }

    #[test]
    fn an_entry_of_70_kb_is_elided_when_it_is_recorded() {
        let long = "p\u{e9}\n\u{2014} \0".repeat(10_000);
        let mut record = Record::new(Kind::Request, hasher());
        record
            .request(Request { path: long.clone(), agent: long.clone(), remote: long.clone(), ..Request::default() })
            .auth(Auth { policies: vec![long.clone(); 500], display: long.clone(), principal: long.clone(), ..Auth::default() })
            .fact("run", &long)
            .error(&long);
        for n in 0..500 {
            record.request_value(&format!("{n}{long}"), b"x").response_value(&format!("{n}{long}"), b"x");
        }
        let (bytes, leaf) = leaf_of(&record);
        assert!(bytes.len() < 65_535, "{}", bytes.len());
        let path = leaf.record["request"]["path"].as_str().unwrap();
        assert!(path.contains(&format!("({} bytes, hmac-sha256:", long.len())), "{path}");
        assert_eq!(leaf.record["request"]["fields_elided"], FIELDS_MAX);
        assert_eq!(leaf.record["auth"]["policies_elided"], 496);
        let change = change_leaf(&record, Seq(1), Timestamp(1), &[0; 32]);
        assert_eq!(Change::decode(&change).unwrap().seq, 1);
    }

    #[test]
    fn a_hostile_field_stays_inside_its_string() {
        let mut record = Record::new(Kind::Request, hasher());
        let evil = "x\n\u{2014} cluster/change AAAA\n\0\",\"kind\":\"boot";
        record.request(Request { path: evil.into(), agent: evil.into(), ..Request::default() });
        record.request_body(&serde_json::to_vec(&json!({evil: evil})).unwrap());
        let (bytes, leaf) = leaf_of(&record);
        assert!(!bytes.contains(&b'\n') && !bytes.contains(&0));
        assert_eq!(leaf.record["request"]["path"], evil);
        assert_eq!(leaf.kind(), "request");
    }

    #[test]
    fn what_cannot_be_encoded_still_leaves_a_readable_leaf() {
        // a time beyond 2^53 microseconds has no canonical form; the commit must not fail for it
        let record = Record::new(Kind::Duty, hasher());
        let bytes = change_leaf(&record, Seq(7), Timestamp(u64::MAX), &[1; 32]);
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((value["seq"].as_u64(), value["record"]["elided"].as_bool()), (Some(7), Some(true)));
        let mut record = Record::new(Kind::Duty, hasher());
        record.count("generation", u64::MAX).version(u64::MAX);
        assert_eq!(leaf_of(&record).1.record["facts"]["generation"], u64::MAX.to_string());
    }

    #[test]
    fn before_the_seal_opens_values_are_left_out() {
        let mut record = Record::new(Kind::Request, Hasher::default());
        record.request_body(br#"{"key":"unseal share"}"#);
        let (bytes, leaf) = leaf_of(&record);
        assert!(!String::from_utf8(bytes).unwrap().contains("share"));
        assert_eq!(leaf.record["request"]["fields"], json!({"key": "sealed"}));
    }
}
