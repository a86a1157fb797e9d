//! Policies: read them, compile a set of them once, decide many times.
//!
//! Pure: no clock, no store, no token. What a path *is* (which mount, whether it is a root-protected one, whether the
//! thing exists) the caller knows and says; this crate knows which rules speak about it and what they allow.
//!
//! A [`Permit`] can only be made here, and a handler cannot run without one.

mod capability;
mod decide;
mod name;
mod pattern;
mod rules;
#[cfg(test)]
mod tests;
mod text;
#[cfg(test)]
mod twin;

pub use capability::{Capabilities, Capability};
pub use decide::{Ask, Cause, Denied, Op, Permit, Reason, Refused, capabilities, decide};
pub use name::{NameError, PolicyName};
pub use rules::{Rule, Rules};
pub use text::{DEFAULT_TEXT, PathRule, Policy, PolicyError, TEXT_BYTES_MAX};
