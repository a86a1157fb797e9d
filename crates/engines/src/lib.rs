//! The rooms that store and issue: secrets engines and auth methods. They never see each other, nor the kernel.
//!
//! The path is the address: what answers `…/metadata/…` of a kv mount is in `kv/metadata.rs`, with its stored types and tests.

pub mod approle;
pub mod kv;

#[cfg(test)]
mod bench;

pub use approle::AppRole;
pub use kv::Kv;
