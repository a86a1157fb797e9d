//! What will be recorded of one request, gathered on its way. Whatever becomes of the request, one record is made from this.

use std::collections::BTreeMap;

use audit::{Auth, Record, Request};
use base::{Refusal, SecretString, Seq};
use bytes::Bytes;
use engine::{Caller, FieldKind, Meta};
use policy::{Denied, Permit};

use crate::head::{Asked, Head};

/// The record of a request in the making.
pub struct Entry {
    /// The UUID that also stands in the envelope.
    pub id: String,
    request: Request,
    body: Bytes,
    query: Vec<(String, Vec<String>)>,
    /// The token that was presented, once it was found to be one.
    token: Option<SecretString>,
    auth: Option<Auth>,
    facts: BTreeMap<&'static str, String>,
    as_of: Option<Seq>,
}

impl Entry {
    /// Begins with what the head says, in case nothing more becomes known.
    pub fn open(head: &Head, id: String) -> Self {
        let target = head.target.split('?').next().unwrap_or_default();
        let request = Request {
            id: id.clone(),
            operation: head.method.clone(),
            path: target.strip_prefix("/v1/").unwrap_or(target).to_owned(),
            mount: String::new(),
            remote: head.remote.to_string(),
            agent: head.header("user-agent").unwrap_or_default().to_owned(),
        };
        Self { id, request, body: Bytes::new(), query: Vec::new(), token: None, auth: None, facts: BTreeMap::new(), as_of: None }
    }

    /// The head could be read.
    pub fn asked(&mut self, asked: &Asked) {
        self.request.operation = asked.op.name().to_owned();
        self.request.path = asked.path.as_str().to_owned();
        self.query.clone_from(&asked.query);
    }

    /// The mount that answers.
    pub fn mount(&mut self, path: &str) {
        self.request.mount = path.to_owned();
    }

    /// The body was read. Values are recorded as keyed hashes, fields that the route calls public in clear.
    pub fn body(&mut self, bytes: Bytes) {
        self.body = bytes;
    }

    /// Forgets what an earlier attempt found out: the handler runs again.
    pub fn again(&mut self, snapshot: Seq) {
        self.auth = None;
        self.facts.clear();
        self.as_of = Some(snapshot);
    }

    /// The token that was presented is one: its text is hidden wherever the record would show it.
    pub fn token(&mut self, text: &str) {
        self.token = Some(SecretString::new(text.to_owned()));
    }

    /// Who calls.
    pub fn caller(&mut self, caller: &Caller) {
        self.auth = Some(Auth {
            principal: caller.principal.clone(),
            display: caller.display_name.clone(),
            accessor: caller.accessor.clone(),
            token_type: "service".into(),
            policies: caller.policies.clone(),
            rule: String::new(),
        });
    }

    /// The rules that allowed it.
    pub fn permitted(&mut self, permit: &Permit) {
        let reasons = permit.reasons().iter().map(|r| {
            let policies = r.policies().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            format!("{policies}: {} {}", r.capability(), r.rule())
        });
        self.rule(reasons.collect::<Vec<_>>().join("; "));
    }

    /// The rules that refused it.
    pub fn denied(&mut self, denied: &Denied) {
        let policies = denied.policies().iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        self.rule(format!("{policies}: {:?} {} {}", denied.cause(), denied.capability(), denied.rule().unwrap_or("-")));
    }

    fn rule(&mut self, rule: String) {
        if let Some(auth) = &mut self.auth {
            auth.rule = rule;
        }
    }

    /// Public facts of the handler.
    pub fn facts(&mut self, facts: &BTreeMap<&'static str, String>) {
        self.facts.extend(facts.iter().map(|(k, v)| (*k, v.clone())));
    }

    /// Fields of the body that the route calls public.
    pub fn public_fields(&mut self, meta: &Meta, body: &engine::Body) {
        for field in meta.fields.iter().filter(|f| f.public) {
            if let Some(raw) = body.raw(field.name)
                && reads(field, body)
            {
                let text = serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned());
                self.facts.insert(field.name, text);
            }
        }
    }

    /// Fills an empty record.
    pub fn record(&self, mut record: Record, status: u16, answer: Option<&[u8]>, refusal: Option<&Refusal>) -> Record {
        if let Some(seq) = self.as_of {
            record.as_of(seq);
        }
        if let Some(auth) = &self.auth {
            record.auth(auth.clone());
        }
        let hide = |text: &str| hidden(text, self.token.as_ref());
        let request = Request { path: hide(&self.request.path), agent: hide(&self.request.agent), ..self.request.clone() };
        record.request(request).status(status);
        self.fields(&mut record);
        if let Some(answer) = answer {
            record.response_body(answer);
        }
        for (name, text) in &self.facts {
            record.fact(name, &hide(text));
        }
        if let Some(refusal) = refusal {
            record.error(&hide(&refusal.errors.join("; ")));
        }
        record
    }
}

/// Stands in a record for a token that somebody put where none belongs.
const MARK: &str = "[token]";
/// How tokens begin: those made here, and Vault's other kinds.
const PREFIXES: [&str; 3] = ["hvs.", "hvb.", "hvr."];
/// Characters after the prefix from which on a text counts as a token.
const TOKEN_CHARS_MIN: usize = 20;
/// A presented token below this is a word that was chosen for a trial: to hide it would blot out paths.
const CHOSEN_BYTES_MIN: usize = 8;

/// `text` without `own`, and without what has the form of a token.
fn hidden(text: &str, own: Option<&SecretString>) -> String {
    let mut rest = match own.map(SecretString::expose).filter(|own| own.len() >= CHOSEN_BYTES_MIN) {
        Some(own) => text.replace(own, MARK),
        None => text.to_owned(),
    };
    for prefix in PREFIXES {
        let mut out = String::new();
        let mut pieces = rest.split(prefix);
        out.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            let behind = piece.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
            if piece.len() - behind.len() < TOKEN_CHARS_MIN {
                out.push_str(prefix);
                out.push_str(piece);
            } else {
                out.push_str(MARK);
                out.push_str(behind);
            }
        }
        rest = out;
    }
    rest
}

impl Entry {
    /// What came, by the body and by the query, as the handler reads it.
    fn fields(&self, record: &mut Record) {
        if let Ok(mut body) = engine::Body::from_json(&self.body)
            && !self.query.is_empty()
        {
            body.add_missing(&self.query);
            let members: BTreeMap<_, _> = body.members().collect();
            if let Ok(merged) = serde_json::to_vec(&members) {
                record.request_body(&merged);
                return;
            }
        }
        record.request_body(&self.body);
        for (name, values) in &self.query {
            for (position, value) in values.iter().enumerate() {
                let name = name.replace('~', "~0").replace('/', "~1");
                let path = if values.len() == 1 { name } else { format!("{name}/{position}") };
                record.request_value(&path, value.as_bytes());
            }
        }
    }
}

/// Whether a public field holds what it is declared to hold. Anything else may be a secret in the wrong place, and so may what can be
/// anything: of those the record has the keyed hash only.
fn reads(field: &engine::Field, body: &engine::Body) -> bool {
    match field.kind {
        FieldKind::Text => body.text(field.name).is_ok(),
        FieldKind::Int => body.int(field.name).is_ok(),
        FieldKind::Bool => body.bool(field.name).is_ok(),
        FieldKind::Duration => body.duration(field.name).is_ok(),
        FieldKind::List => body.list(field.name).is_ok(),
        FieldKind::Map => body.map(field.name).is_ok(),
        FieldKind::Any => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_hidden() {
        let token = "hvs.aB3aB3aB3aB3aB3aB3aB3aB3";
        for (text, own, shown) in [
            ("secret/data/a", "", "secret/data/a"),
            ("hvs.short/hvs.", "", "hvs.short/hvs."),
            (&format!("a/{token}"), "", "a/[token]"),
            (&format!("a/{token}x/{token}/b"), "", "a/[token]/[token]/b"),
            (&format!("ua-hvs.{token} (x)"), "", "ua-hvs.[token] (x)"),
            ("hvb.AAAAAAAAAAAAAAAAAAAAAAA-_A.c", "", "[token].c"),
            ("a/chosen-by-me/b", "chosen-by-me", "a/[token]/b"),
            ("a/root/b", "root", "a/root/b"),
        ] {
            let own = Some(own).filter(|own| !own.is_empty()).map(|own| SecretString::new(own.to_owned()));
            assert_eq!(hidden(text, own.as_ref()), shown, "{text}");
        }
    }
}
