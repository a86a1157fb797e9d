//! The only outgoing HTTP, and the only way to open a TCP connection to a place that somebody else named.
//!
//! [`Client`] speaks HTTP/1.1 to one server that the operator named (`http://host:port` or `unix:///path`). It follows no
//! redirect, retries nothing that may have reached the server, and puts a limit on everything it reads. TLS is not built
//! yet: `https` is refused, never downgraded. [`dial`] opens a raw connection after checking the resolved address against
//! a [`Guard`].

mod address;
mod body;
mod client;
mod guard;

pub use address::Address;
pub use body::{Body, Lines};
pub use client::{Client, Connection, Ends, Options, Request, Response};
pub use guard::{Guard, Target, dial};

/// Why a request got no answer, or a connection was not made. Never holds a header, a body or a token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address text is not one of the supported forms.
    #[error("address `{address}` is not `http://host:port` or `unix:///path`")]
    Address {
        /// As given, without user information.
        address: String,
    },
    /// TLS is asked for, which this build cannot do.
    #[error("address `{address}` asks for https, which is not supported yet: use http on loopback or a unix socket")]
    Tls {
        /// As given.
        address: String,
    },
    /// A method, target or header that cannot stand in a request.
    #[error("{what} cannot be sent")]
    Request {
        /// Which part.
        what: &'static str,
    },
    /// No connection. Nothing reached the server.
    #[error("could not connect to `{address}`")]
    Connect {
        /// Where to.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The address that a name stands for is closed to this caller.
    #[error("`{host}` stands for an address that may not be dialled")]
    Denied {
        /// The name that was asked for.
        host: String,
    },
    /// A time limit passed.
    #[error("no {what} within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The limit.
        after: std::time::Duration,
    },
    /// The exchange broke; the server may have acted.
    #[error("the connection failed while {doing}")]
    Broken {
        /// What was going on.
        doing: &'static str,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// The answer is larger than the limit.
    #[error("the answer has more than {limit} bytes{per}")]
    TooLarge {
        /// The limit.
        limit: usize,
        /// ` in one line`, or nothing.
        per: &'static str,
    },
}

impl Error {
    /// Whether it is certain that the server saw nothing of the request.
    #[must_use]
    pub fn never_sent(&self) -> bool {
        matches!(self, Self::Address { .. } | Self::Tls { .. } | Self::Request { .. } | Self::Connect { .. } | Self::Denied { .. })
            || matches!(self, Self::Timeout { what, .. } if *what == client::CONNECTION)
    }
}
