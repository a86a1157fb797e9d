//! What may be sent, and the proof without which nothing is.

use bytes::Bytes;
use journal::Durable;
use tokio::sync::mpsc;

/// An answer before it is released. A plain value: making one sends nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Headers, in order.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Bytes,
}

impl Reply {
    /// A JSON answer.
    pub fn json(status: u16, body: impl Into<Bytes>) -> Reply {
        Reply { status, headers: vec![("content-type", "application/json".to_owned())], body: body.into() }
    }

    /// An answer without a body.
    pub fn empty(status: u16) -> Reply {
        Reply { status, headers: Vec::new(), body: Bytes::new() }
    }

    /// An answer of another content type.
    pub fn of(status: u16, content_type: &str, body: impl Into<Bytes>) -> Reply {
        Reply { status, headers: vec![("content-type", content_type.to_owned())], body: body.into() }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

/// That an event is on record: durable, or queued because the keys are still sealed.
///
/// Only the trail makes one by itself; a commit's [`Durable`] turns into one, since its entry holds its record.
#[derive(Debug, Clone)]
pub struct Recorded(pub(crate) Place);

#[derive(Debug, Clone)]
pub(crate) enum Place {
    Durable(Durable),
    Queued,
}

impl From<Durable> for Recorded {
    fn from(durable: Durable) -> Recorded {
        Recorded(Place::Durable(durable))
    }
}

/// The only thing that the HTTP layer can send.
#[derive(Debug)]
pub struct Released {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Body,
}

/// The body of what is sent.
#[derive(Debug)]
pub enum Body {
    /// All at once.
    Bytes(Bytes),
    /// Frame by frame, each released for itself, until the sender is dropped.
    Frames(mpsc::Receiver<Frame>),
}

/// One frame of a stream that may be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame(Bytes);

impl Released {
    pub(crate) fn new(reply: Reply, entry: Option<String>, frames: Option<mpsc::Receiver<Frame>>) -> Released {
        let mut headers = reply.headers;
        if let Some(entry) = entry {
            headers.push(("x-audit-entry", entry));
        }
        let body = frames.map_or(Body::Bytes(reply.body), Body::Frames);
        Released { status: reply.status, headers, body }
    }

    /// What is sent when nothing can be recorded. It is the same for everybody and says nothing about the request.
    pub fn unavailable() -> Released {
        let body = Bytes::from_static(br#"{"errors":["the audit log is not available"]}"#);
        Released { status: 503, headers: vec![("content-type", "application/json".to_owned())], body: Body::Bytes(body) }
    }

    /// Status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Headers, in order.
    pub fn headers(&self) -> &[(&'static str, String)] {
        &self.headers
    }

    /// Takes it apart for sending.
    pub fn into_parts(self) -> (u16, Vec<(&'static str, String)>, Body) {
        (self.status, self.headers, self.body)
    }
}

impl Frame {
    pub(crate) fn new(bytes: Bytes) -> Frame {
        Frame(bytes)
    }

    /// The last line of a stream. It carries no value, so it needs no record.
    pub fn bye(reason: &'static str) -> Frame {
        Frame(Bytes::from(format!("{}\n", serde_json::json!({"type": "bye", "reason": reason}))))
    }

    /// The bytes to send.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}
