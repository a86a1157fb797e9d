//! The server through HTTP, with real outside systems.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, reason = "a failed step fails the test")]

mod acks;
mod authorization;
mod bad_input;
mod command;
mod demo;
mod emergency;
mod identity;
mod leaks;
mod lies;
mod operator;
mod readme;
mod refused;
mod rig;
mod rotation;
mod samples;
mod supervisor;
mod terminal;
mod watch;
mod wire;
