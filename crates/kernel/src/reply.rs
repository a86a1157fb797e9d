//! From answers and refusals to the bytes of a reply: Vault's envelope, and the one map from kind to status.

use audit::Reply;
use base::wire::{Auth, Envelope, Errors};
use base::{Kind, Refusal};
use serde_json::value::RawValue;

use crate::tokens::Token;

/// The status of a refusal.
#[must_use]
pub fn status(kind: Kind) -> u16 {
    match kind {
        Kind::Invalid => 400,
        Kind::Denied => 403,
        Kind::Missing => 404,
        Kind::Unsupported => 405,
        Kind::Late => 408,
        Kind::TooLarge => 413,
        Kind::MediaType => 415,
        Kind::Overloaded => 429,
        Kind::Internal => 500,
        Kind::Uninitialised => 501,
        Kind::Sealed | Kind::Unavailable => 503,
    }
}

/// The reply to a refusal: `{"errors":[…]}`, or the envelope where a refusal carries data or warnings.
#[must_use]
pub fn refusal(refusal: &Refusal, request_id: &str, mount_type: &str) -> Reply {
    let status = status(refusal.kind);
    if refusal.data.is_some() || (refusal.errors.is_empty() && !refusal.warnings.is_empty()) {
        let envelope = Envelope {
            request_id: request_id.to_owned(),
            data: refusal.data.clone(),
            warnings: some(&refusal.warnings),
            mount_type: mount_type.to_owned(),
            ..Envelope::default()
        };
        return json(status, &envelope);
    }
    json(status, &Errors { errors: &refusal.errors })
}

/// The reply to an answer with `data`, or 204 when there is neither data nor a warning.
#[must_use]
pub fn data(data: Option<Box<RawValue>>, warnings: &[String], request_id: &str, mount_type: &str) -> Reply {
    if data.is_none() && warnings.is_empty() {
        return Reply::empty(204);
    }
    let envelope = Envelope {
        request_id: request_id.to_owned(),
        data,
        warnings: some(warnings),
        mount_type: mount_type.to_owned(),
        ..Envelope::default()
    };
    json(200, &envelope)
}

/// The reply with `auth`: a token was made or renewed.
#[must_use]
pub fn auth(auth: Auth, warnings: &[String], request_id: &str, mount_type: &str) -> Reply {
    let envelope = Envelope {
        request_id: request_id.to_owned(),
        warnings: some(warnings),
        auth: Some(auth),
        mount_type: mount_type.to_owned(),
        ..Envelope::default()
    };
    json(200, &envelope)
}

/// The `auth` member for a token.
#[must_use]
pub fn auth_of(text: &str, token: &Token, now: base::Timestamp) -> Auth {
    Auth {
        client_token: text.to_owned(),
        accessor: token.accessor.clone(),
        policies: token.policies.clone(),
        token_policies: token.policies.clone(),
        metadata: (!token.meta.is_empty()).then(|| token.meta.clone()),
        lease_duration: token.ttl(now),
        renewable: token.renewable,
        entity_id: String::new(),
        token_type: "service".into(),
        orphan: token.parent.is_none(),
        mfa_requirement: None,
        num_uses: token.uses.unwrap_or(0),
    }
}

/// A body that is not the envelope.
#[must_use]
pub fn bare(status: u16, body: &RawValue) -> Reply {
    no_store(Reply::json(status, body.get().as_bytes().to_vec()))
}

fn json(status: u16, value: &impl serde::Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(bytes) => no_store(Reply::json(status, bytes)),
        Err(_) => no_store(Reply::json(500, r#"{"errors":["internal error"]}"#)),
    }
}

fn no_store(reply: Reply) -> Reply {
    reply.header("cache-control", "no-store")
}

fn some(warnings: &[String]) -> Option<Vec<String>> {
    (!warnings.is_empty()).then(|| warnings.to_vec())
}
