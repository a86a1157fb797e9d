//! The composition root: HTTP, the command line, and the wiring of configuration to a running server.

pub mod http;
pub mod wiring;
