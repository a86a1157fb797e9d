//! The only crate that names an AEAD, hash, signature or RNG library (aws-lc-rs).
//!
//! Nothing here is a construction of ours: each function is one call of the library with the parameters that Keyward uses, and typed
//! keys that are wiped. Callers never choose an algorithm.

pub mod aead;
pub mod ct;
pub mod encode;
pub mod hash;
pub mod mac;
pub mod password;
pub mod rng;
pub mod scram;
pub mod sign;
