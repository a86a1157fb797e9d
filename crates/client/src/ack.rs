//! Acknowledgements: what a consumer says about a generation, with proof that it received it.

use crypto::encode::base64;
use crypto::mac;
use serde::Serialize;

use crate::{Client, Error};

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Delivered: the value is here, not in use.
    L1,
    /// Loaded: the process uses it, and its probe succeeded.
    L2,
    /// Refused: the value does not work here; the old one stays in use.
    Nack,
}

impl Level {
    /// As it stands on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::L1 => "L1",
            Self::L2 => "L2",
            Self::Nack => "NACK",
        }
    }
}

/// One acknowledgement, all but the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The rotation.
    pub rotation: String,
    /// Who says it.
    pub instance: String,
    /// About which generation.
    pub generation: u64,
    /// What.
    pub level: Level,
    /// The nonce that came with the generation.
    pub nonce: String,
    /// Why, with [`Level::Nack`]; else empty.
    pub reason: String,
}

impl Ack {
    /// The proof: HMAC-SHA-256 under the key that came with the generation, in base64.
    #[must_use]
    pub fn mac(&self, key: &mac::Key) -> String {
        let Self { rotation, instance, generation, level, nonce, reason } = self;
        let message = format!("keyward-ack-v1\n{rotation}\n{instance}\n{generation}\n{}\n{nonce}\n{reason}", level.as_str());
        base64(&mac::sign(key, message.as_bytes()))
    }
}

impl Client {
    /// Sends an acknowledgement once.
    ///
    /// # Errors
    /// [`Error::Refused`] with status 400 when the generation is not, or no longer, offered to this instance; with 403 when
    /// the token or the proof is refused.
    pub async fn ack(&self, ack: &Ack, key: &mac::Key) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            rotation: &'a str,
            instance: &'a str,
            generation: u64,
            level: &'a str,
            nonce: &'a str,
            mac: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            reason: &'a str,
        }
        let body = Body {
            rotation: &ack.rotation,
            instance: &ack.instance,
            generation: ack.generation,
            level: ack.level.as_str(),
            nonce: &ack.nonce,
            mac: &ack.mac(key),
            reason: &ack.reason,
        };
        self.write("sys/lifecycle/ack", &body).await.map(drop)
    }

    /// Leaves in order: the server stops waiting for this instance.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn goodbye(&self, instance: &str) -> Result<(), Error> {
        self.write("sys/lifecycle/goodbye", &serde_json::json!({ "instance": instance })).await.map(drop)
    }

    /// Leaves one rotation in order and goes on following the others. The server ends the stream; the next one follows what is left.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn goodbye_to(&self, instance: &str, rotation: &str) -> Result<(), Error> {
        self.write("sys/lifecycle/goodbye", &serde_json::json!({ "instance": instance, "rotation": rotation })).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack() -> Ack {
        Ack {
            rotation: "orders-db".into(),
            instance: "web-1".into(),
            generation: 7,
            level: Level::L2,
            nonce: "bm9uY2U".into(),
            reason: String::new(),
        }
    }

    /// The tag was made with `openssl dgst -sha256 -mac HMAC -macopt key:0123456789abcdef0123456789abcdef -binary | base64`.
    #[test]
    fn the_proof_has_the_bytes_of_the_document() {
        let key = mac::Key::new(b"0123456789abcdef0123456789abcdef");
        assert_eq!(ack().mac(&key), include_str!("ack/l2.b64").trim());
    }

    #[test]
    fn every_part_counts() {
        let key = mac::Key::new(b"key");
        let base = ack();
        let proofs = [
            base.clone(),
            Ack { rotation: "orders-dc".into(), ..base.clone() },
            Ack { instance: "web-2".into(), ..base.clone() },
            Ack { generation: 8, ..base.clone() },
            Ack { level: Level::L1, ..base.clone() },
            Ack { nonce: "x".into(), ..base.clone() },
            Ack { reason: "x".into(), ..base.clone() },
        ]
        .map(|ack| ack.mac(&key));
        for (at, proof) in proofs.iter().enumerate() {
            assert_eq!(proofs.iter().position(|other| other == proof), Some(at));
        }
        assert_ne!(base.mac(&key), base.mac(&mac::Key::new(b"other")));
    }
}
