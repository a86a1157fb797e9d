//! The shapes of Vault's HTTP API that every room shares (the success envelope and the error body).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;

/// The success envelope: exactly these members, every one present (`mount_type` included, which OpenBao omits and every client accepts).
#[derive(Debug, Default, Serialize)]
pub struct Envelope {
    /// A UUID that also stands in the audit record.
    pub request_id: String,
    /// Empty when nothing was leased.
    pub lease_id: String,
    /// Whether the lease can be renewed.
    pub renewable: bool,
    /// Seconds.
    pub lease_duration: u64,
    /// The answer.
    pub data: Option<Box<RawValue>>,
    /// Only when the answer was wrapped.
    pub wrap_info: Option<()>,
    /// Things the caller should know.
    pub warnings: Option<Vec<String>>,
    /// Only when a token was made or renewed.
    pub auth: Option<Auth>,
    /// The type of the mount that answered.
    pub mount_type: String,
}

/// The `auth` member of the envelope.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Auth {
    /// The token itself.
    pub client_token: String,
    /// Its accessor.
    pub accessor: String,
    /// All policies: sorted, without duplicates, lower case.
    pub policies: Vec<String>,
    /// The policies of the token itself.
    pub token_policies: Vec<String>,
    /// Metadata of the login.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Seconds.
    pub lease_duration: u64,
    /// Whether the token can be renewed.
    pub renewable: bool,
    /// Empty while identity is not built.
    pub entity_id: String,
    /// `service` or `batch`.
    pub token_type: String,
    /// Whether the token has no parent.
    pub orphan: bool,
    /// Second factors still asked for: none yet.
    pub mfa_requirement: Option<()>,
    /// Uses left; 0 means without limit.
    pub num_uses: u64,
}

/// The error body: `{"errors":[…]}`.
#[derive(Debug, Serialize)]
pub struct Errors<'a> {
    /// Texts for the caller.
    pub errors: &'a [String],
}
