//! Transparency-log formats, pure: canonical JSON, RFC 6962 Merkle trees, C2SP tiles, signed notes, checkpoints and proofs.
//!
//! This crate decides what the bytes of a log mean and whether they agree with each other. It opens no file, reads no
//! clock and keeps no key beyond the call; who may append, when a leaf is durable and what a record says is left to
//! `audit`, and reading an export from a directory to `verify`.

pub mod bundle;
pub mod checkpoint;
mod error;
pub mod export;
pub mod jcs;
pub mod leaf;
pub mod merkle;
pub mod note;
pub mod proof;
pub mod tile;

pub use checkpoint::Checkpoint;
pub use error::Error;
pub use merkle::{Frontier, Hash, Tree, leaf_hash, node_hash};
pub use note::{Note, Signer, Vkey};
pub use proof::InclusionProof;
pub use tile::Tile;
