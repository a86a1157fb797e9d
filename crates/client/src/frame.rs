//! The lines of the push stream. Pure: bytes in, frames out.

use std::sync::Arc;
use std::time::Duration;

use crypto::encode::from_base64;
use crypto::mac;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::Credential;

/// A heartbeat is never believed to be rarer than this.
const HEARTBEAT_SECONDS_MAX: f64 = 300.0;
/// Nor more frequent.
const HEARTBEAT_SECONDS_MIN: f64 = 0.01;

/// One line.
pub enum Frame {
    /// The first line of a stream.
    Hello {
        /// How often a heartbeat is promised.
        heartbeat: Duration,
    },
    /// The complete wanted state of one rotation.
    State(Box<State>),
    /// One rotation is not delivered on this stream; the others are.
    Refused {
        /// The rotation.
        rotation: String,
        /// Why.
        reason: String,
    },
    /// Still here.
    Heartbeat {
        /// The newest signed checkpoint of the access log.
        checkpoint: Option<String>,
    },
    /// The server closes the stream.
    Bye {
        /// Why.
        reason: String,
    },
    /// A kind of line that this client does not know; to be skipped.
    Unknown,
}

/// What one rotation wants of this instance.
#[derive(Clone)]
pub struct State {
    /// The rotation.
    pub rotation: String,
    /// The value to use, if there is one.
    pub wanted: Option<Offer>,
    /// A value to hold ready, not to be used yet.
    pub standby: Option<Offer>,
}

/// A value with what is needed to acknowledge it.
#[derive(Clone)]
pub struct Offer {
    /// The value.
    pub credential: Arc<Credential>,
    /// Proves that it was received.
    pub ack_key: mac::Key,
    /// Binds an acknowledgement to this delivery.
    pub nonce: String,
}

/// Why a line is not a frame. Never quotes it: it may hold a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a JSON object with a `type`.
    #[error("a line of the stream is not a frame")]
    Json,
    /// A known frame with a member missing or of another kind.
    #[error("a `{0}` frame of the stream cannot be read")]
    Member(&'static str),
}

/// Reads one line.
///
/// # Errors
/// [`Error`].
pub fn parse(line: &[u8]) -> Result<Frame, Error> {
    #[derive(Deserialize)]
    struct Kind {
        r#type: String,
    }
    // The derived reader would also take an array for a struct.
    if !line.trim_ascii_start().starts_with(b"{") {
        return Err(Error::Json);
    }
    let kind: Kind = serde_json::from_slice(line).map_err(|_| Error::Json)?;
    match kind.r#type.as_str() {
        "hello" => {
            #[derive(Deserialize)]
            struct Hello {
                heartbeat_seconds: f64,
            }
            let hello: Hello = serde_json::from_slice(line).map_err(|_| Error::Member("hello"))?;
            let heartbeat = Duration::from_secs_f64(hello.heartbeat_seconds.clamp(HEARTBEAT_SECONDS_MIN, HEARTBEAT_SECONDS_MAX));
            Ok(Frame::Hello { heartbeat })
        }
        "state" => state(line).ok_or(Error::Member("state")),
        "refused" => {
            #[derive(Deserialize)]
            struct Refused {
                rotation: String,
                #[serde(default)]
                reason: String,
            }
            let refused: Refused = serde_json::from_slice(line).map_err(|_| Error::Member("refused"))?;
            Ok(Frame::Refused { rotation: refused.rotation, reason: refused.reason })
        }
        "heartbeat" => {
            #[derive(Deserialize)]
            struct Heartbeat {
                checkpoint: Option<String>,
            }
            let heartbeat: Heartbeat = serde_json::from_slice(line).map_err(|_| Error::Member("heartbeat"))?;
            Ok(Frame::Heartbeat { checkpoint: heartbeat.checkpoint })
        }
        "bye" => {
            #[derive(Deserialize)]
            struct Bye {
                #[serde(default)]
                reason: String,
            }
            let bye: Bye = serde_json::from_slice(line).map_err(|_| Error::Member("bye"))?;
            Ok(Frame::Bye { reason: bye.reason })
        }
        _ => Ok(Frame::Unknown),
    }
}

fn state(line: &[u8]) -> Option<Frame> {
    #[derive(Deserialize)]
    struct Raw<'a> {
        rotation: String,
        #[serde(borrow, default)]
        r#use: Option<RawOffer<'a>>,
        #[serde(borrow, default)]
        standby: Option<RawOffer<'a>>,
    }
    #[derive(Deserialize)]
    struct RawOffer<'a> {
        generation: u64,
        #[serde(default)]
        version: Option<u64>,
        #[serde(borrow)]
        value: &'a RawValue,
        #[serde(deserialize_with = "crate::api::secret")]
        ack_key: base::SecretString,
        nonce: String,
    }
    let offer = |raw: Option<RawOffer<'_>>| -> Option<Option<Offer>> {
        let Some(raw) = raw else { return Some(None) };
        let key = base::SecretBytes::new(from_base64(raw.ack_key.expose())?);
        let credential = Credential::parse(raw.generation, raw.version, raw.value)?;
        Some(Some(Offer { credential: Arc::new(credential), ack_key: mac::Key::new(key.expose()), nonce: raw.nonce }))
    };
    let raw: Raw<'_> = serde_json::from_slice(line).ok()?;
    Some(Frame::State(Box::new(State { rotation: raw.rotation, wanted: offer(raw.r#use)?, standby: offer(raw.standby)? })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind() {
        let Frame::Hello { heartbeat } = parse(br#"{"type":"hello","stream":"s","heartbeat_seconds":5,"audit":"o/1"}"#).unwrap() else {
            panic!()
        };
        assert_eq!(heartbeat, Duration::from_secs(5));

        let line = br#"{"type":"state","rotation":"p","path":"secret/data/x","use":{"generation":7,"run":"r","version":3,
            "value":{"username":"u","password":"w"},"ack_key":"a2V5","nonce":"n"},"standby":null,"required_level":"L2"}"#;
        let Frame::State(state) = parse(line).unwrap() else { panic!() };
        let wanted = state.wanted.unwrap();
        assert_eq!((state.rotation.as_str(), wanted.nonce.as_str(), state.standby.is_none()), ("p", "n", true));
        assert_eq!((wanted.credential.generation(), wanted.credential.version()), (7, Some(3)));
        assert_eq!(wanted.credential.field("password"), Some("w"));
        assert_eq!(mac::sign(&wanted.ack_key, b"m"), mac::sign(&mac::Key::new(b"key"), b"m"));

        let Frame::Refused { rotation, reason } = parse(br#"{"type":"refused","rotation":"q","reason":"no"}"#).unwrap() else { panic!() };
        assert_eq!((rotation.as_str(), reason.as_str()), ("q", "no"));

        assert!(matches!(parse(br#"{"type":"heartbeat","time":"t"}"#).unwrap(), Frame::Heartbeat { checkpoint: None }));
        assert!(matches!(parse(br#"{"type":"bye"}"#).unwrap(), Frame::Bye { .. }));
        assert!(matches!(parse(br#"{"type":"later"}"#).unwrap(), Frame::Unknown));
    }

    #[test]
    fn a_heartbeat_interval_is_kept_within_reason() {
        for (seconds, expected) in [("0", 0.01), ("-1", 0.01), ("1e9", 300.0)] {
            let line = format!(r#"{{"type":"hello","heartbeat_seconds":{seconds}}}"#);
            let Frame::Hello { heartbeat, .. } = parse(line.as_bytes()).unwrap() else { panic!() };
            assert_eq!(heartbeat, Duration::from_secs_f64(expected));
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_being_quoted() {
        let state = |offer: &str| format!(r#"{{"type":"state","rotation":"p","use":{offer}}}"#);
        for line in [
            "hunter2".to_owned(),
            "[\"hunter2\"]".to_owned(),
            r#"{"type":7,"x":"hunter2"}"#.to_owned(),
            r#"{"type":"hello","heartbeat_seconds":"hunter2"}"#.to_owned(),
            state(r#""hunter2""#),
            state(r#"{"generation":-1,"value":{"p":"hunter2"},"ack_key":"a2V5","nonce":"n"}"#),
            state(r#"{"generation":1,"value":["hunter2"],"ack_key":"a2V5","nonce":"n"}"#),
            state(r#"{"generation":1,"value":{"p":"hunter2"},"ack_key":"%hunter2","nonce":"n"}"#),
            state(r#"{"generation":1,"value":{"p":"hunter2"},"nonce":"n"}"#),
            state(r#"{"generation":1,"value":{"p":"hunter2"#),
        ] {
            let error = parse(line.as_bytes()).err().unwrap_or_else(|| panic!("{line}"));
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }
}
