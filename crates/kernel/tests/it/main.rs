//! The kernel through its one entrance, with an engine made for the purpose.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step of the rig fails the test")]

mod access;
mod audit;
mod duties;
mod identities;
mod rig;
mod streams;
mod tokens;
