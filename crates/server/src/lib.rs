//! The composition root: HTTP, the command line, and the wiring of all parts to a running server.

pub mod cli;
pub mod http;
pub mod wiring;

/// The version of this program. Clients see [`wiring::VERSION`].
pub const BUILD: &str = env!("CARGO_PKG_VERSION");
