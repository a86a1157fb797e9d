//! Whole rotations through a real kernel, with a target that can be told to misbehave and consumers that do as a test says.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step fails the test")]

mod attacks;
mod consumers;
mod refusals;
mod rig;
mod runs;
mod target;
