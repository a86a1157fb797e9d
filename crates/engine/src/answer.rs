//! What a handler answers. The kernel makes it true.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{Refusal, SecretBytes};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::call::Cx;
use crate::duty::DutyKey;

/// The outcome of a handler that did not refuse.
pub enum Answer {
    /// 200 with this as `data`.
    Data(Box<RawValue>),
    /// 200 with this as the whole body, outside the envelope (health, seal status), under the given status code if the state asks for one.
    Bare(Option<u16>, Box<RawValue>),
    /// 200 with these bytes (tiles, checkpoints).
    Raw {
        /// The `Content-Type`.
        content_type: &'static str,
        /// The bytes.
        body: Vec<u8>,
    },
    /// 204.
    Nothing,
    /// A token is to be made; the reply carries it in `auth`.
    Login(Grant),
    /// 200 with this as `auth`: a token that the handler itself made or renewed.
    Auth(Box<base::wire::Auth>),
    /// The answer comes when this duty, owed in the same transaction, is settled.
    After(DutyKey),
    /// A stream of lines that stays open.
    Stream(Box<dyn Feed>),
}

impl Answer {
    /// 200 with `value` as `data`.
    ///
    /// # Errors
    /// When `value` cannot be written as JSON.
    pub fn data(value: &impl Serialize) -> Result<Self, Refusal> {
        raw(value).map(Self::Data)
    }
}

/// `value` as raw JSON.
///
/// # Errors
/// When it cannot be written as JSON: ours to mend.
pub fn raw(value: &impl Serialize) -> Result<Box<RawValue>, Refusal> {
    to_raw_value(value).map_err(|e| Refusal::internal(format!("an answer could not be written: {e}")))
}

/// A time span as `Body::duration` reads it back.
#[must_use]
pub fn span(span: Duration) -> String {
    // The standard library's form has a unit that depends on the size; nothing would be nanoseconds.
    if span.is_zero() { "0s".to_owned() } else { format!("{span:?}") }
}

/// The token a login asks for. The kernel caps the times by the mount's limits, or the system's where the mount has none.
#[derive(Clone, Debug, Default)]
pub struct Grant {
    /// The identity that acknowledgements are bound to: `approle/<role>`.
    pub principal: String,
    /// Shown in records.
    pub display_name: String,
    /// Policies besides `default`.
    pub policies: Vec<String>,
    /// Leaves `default` out.
    pub no_default_policy: bool,
    /// Metadata shown in `auth`.
    pub metadata: BTreeMap<String, String>,
    /// Time to live; the mount's default when zero.
    pub ttl: Duration,
    /// The longest life by renewal; the mount's maximum when zero.
    pub ttl_max: Duration,
    /// The longest life of any token, periodic ones too; none when zero.
    pub explicit_ttl_max: Duration,
    /// A periodic token: each renewal sets this time to live, and only `explicit_ttl_max` ends it.
    pub period: Duration,
    /// Uses; 0 means without limit.
    pub num_uses: u64,
    /// The path that made it, for `lookup`: `auth/approle/login`.
    pub path: String,
}

/// One line of a stream, with what the audit record says of it.
pub struct Frame {
    /// One JSON object, without the line end.
    pub line: SecretBytes,
    /// Public facts (policy, generation, instance): the record of this line. A line without any is recorded with the next one, so a line that
    /// carries a value has some. `refused` is the reason of a line that refuses something: the record is one of a refusal.
    pub facts: BTreeMap<&'static str, String>,
}

/// The lines that are due now.
pub struct Batch {
    /// In order.
    pub frames: Vec<Frame>,
    /// The stream ends after these.
    pub last: bool,
}

/// An open stream. The kernel polls it when it opens and whenever a commit has touched what its last poll looked at, and sends a heartbeat with
/// the newest signed checkpoint of the access tree whenever nothing was sent for [`Feed::heartbeat`].
pub trait Feed: Send + Sync {
    /// What should be sent now, given what was sent. Runs in a transaction and may be run again: of what it says, it remembers nothing as sent
    /// until [`Feed::sent`].
    ///
    /// # Errors
    /// A refusal ends the stream (the token was revoked, the policy is gone).
    fn poll(&mut self, cx: &mut Cx<'_>) -> Result<Option<Batch>, Refusal>;

    /// The lines of the last poll are recorded and on their way.
    fn sent(&mut self);

    /// The time between heartbeats.
    fn heartbeat(&self) -> Duration;

    /// The stream is closed, by either side. Runs in a transaction of its own.
    ///
    /// # Errors
    /// Logged; nobody listens any more.
    fn closed(&self, cx: &mut Cx<'_>) -> Result<(), Refusal>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_back() {
        for (millis, text) in [(0, "0s"), (500, "500ms"), (1_500, "1.5s"), (5_000, "5s"), (604_800_000, "604800s")] {
            assert_eq!(span(Duration::from_millis(millis)), text);
            assert_eq!(base::ttl::parse(text), Ok(Duration::from_millis(millis)));
        }
    }
}
