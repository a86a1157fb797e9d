//! Outside systems whose credentials are rotated. One file per kind lives in `targets`; `lifecycle` knows only these traits.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Refusal, SecretString};
use serde::{Deserialize, Serialize};

use crate::BoxFuture;
use crate::call::Body;
use crate::route::Field;

/// A kind of outside system.
pub trait TargetKind: Send + Sync {
    /// Its name in a target's `kind`.
    fn name(&self) -> &'static str;

    /// The fields of its configuration, besides `kind`.
    fn fields(&self) -> &'static [Field];

    /// Reads a configuration out of a request. No I/O: whether the target answers is the business of [`RotationTarget::check`].
    ///
    /// # Errors
    /// 400 naming the field.
    fn read(&self, body: &Body) -> Result<TargetConfig, Refusal>;

    /// Opens a target by a configuration that [`TargetKind::read`] made. No I/O.
    ///
    /// # Errors
    /// When the configuration cannot be understood (an older version's).
    fn open(&self, config: &TargetConfig) -> Result<Arc<dyn RotationTarget>, Refusal>;
}

/// A target's configuration as it is stored (sealed) and, without `secrets`, shown.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct TargetConfig {
    /// The kind.
    pub kind: String,
    /// What may be shown.
    pub public: BTreeMap<String, String>,
    /// What may not: passwords of the administering role. Never leaves the store but to the target.
    pub secrets: BTreeMap<String, String>,
    /// What [`RotationTarget::check`] found; nothing before it. A target opened with an identity refuses every act when another system
    /// answers at its address.
    #[serde(default)]
    pub identity: Option<String>,
}

impl std::fmt::Debug for TargetConfig {
    /// Names the secrets, and no more.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, public, secrets, identity } = self;
        let names: Vec<_> = secrets.keys().collect();
        f.debug_struct("TargetConfig")
            .field("kind", kind)
            .field("public", public)
            .field("secrets", &names)
            .field("identity", identity)
            .finish()
    }
}

/// What a login showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Login {
    /// It succeeded over a fresh connection.
    Accepted,
    /// Refused because the password is wrong, in the target's own code (`28P01`). The only refusal that proves death.
    WrongPassword {
        /// The target's code.
        code: String,
    },
    /// It succeeded by the password that was tried, and cannot do what is needed.
    Unfit {
        /// What is missing.
        reason: String,
    },
    /// Refused for another reason (`28000`: no login right, no rule for this host). Proves nothing.
    Refused {
        /// The target's code.
        code: String,
    },
}

/// Why an act at a target did not give its result. Texts are for the operator and hold no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No connection could be made: certainly nothing was done.
    Unreachable(String),
    /// The target said no: nothing was done.
    Refused {
        /// The target's code.
        code: String,
        /// One sentence.
        text: String,
    },
    /// The connection broke or the time ran out after the act was sent: nobody knows.
    Unknown(String),
}

/// A session that a slot holds at the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The target's number for it.
    pub id: String,
    /// The client's address as the target sees it.
    pub client: String,
    /// What the client calls itself.
    pub application: String,
}

/// A target with two slots per secret (topology T2): two login roles that are members of one owner.
///
/// Every method is idempotent and holds the target's own lock on the principal while it acts, so it first waits for a statement of ours
/// that may still be finishing there. Every method ends within the target's configured time.
pub trait RotationTarget: Send + Sync {
    /// Verifies that the target can be trusted with a rotation: the administering role has the rights it needs and no more, and a login
    /// with a random password is refused **as a wrong password** (a target that accepts it, or is down, proves nothing and is refused).
    ///
    /// Returns the system's identity: the same for as long as it is the same system, whatever it is called and wherever it listens.
    fn check(&self) -> BoxFuture<'_, Result<String, Fault>>;

    /// Creates what is missing of `owner` (no login) and `slots` (login roles with unusable passwords, members of the owner, who act as
    /// the owner) and checks what is there. A role that is there is not changed: somebody may use it.
    ///
    /// Returns for each slot whether it is as this function makes it. Another one was made by somebody else, who may log in as it.
    fn adopt<'a>(&'a self, owner: &'a str, slots: &'a [String; 2]) -> BoxFuture<'a, Result<[bool; 2], Fault>>;

    /// Makes `password` the one and only password of `slot`, who acts as `owner` from then on. Sends a verifier, never the password.
    fn set<'a>(&'a self, owner: &'a str, slot: &'a str, password: &'a SecretString) -> BoxFuture<'a, Result<(), Fault>>;

    /// Logs in over a fresh connection and asks one harmless question.
    fn probe<'a>(&'a self, slot: &'a str, password: &'a SecretString) -> BoxFuture<'a, Result<Login, Fault>>;

    /// The sessions that `slot` holds now.
    fn sessions<'a>(&'a self, slot: &'a str) -> BoxFuture<'a, Result<Vec<Session>, Fault>>;

    /// Replaces the verifier of `slot` by one that no password fits, and ends its sessions; returns how many were ended.
    fn kill<'a>(&'a self, slot: &'a str) -> BoxFuture<'a, Result<u64, Fault>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_is_printed_shows_no_secret() {
        let secrets = BTreeMap::from([("admin_password".to_owned(), "canary".to_owned())]);
        let shown = format!("{:?}", TargetConfig { kind: "postgres".into(), secrets, ..TargetConfig::default() });
        assert!(shown.contains("postgres") && shown.contains("admin_password") && !shown.contains("canary"), "{shown}");
    }
}
