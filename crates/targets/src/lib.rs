//! Kinds of outside systems whose credentials Keyward rotates. One file per kind, unaware of each other.
//!
//! Each implements [`engine::TargetKind`] and [`engine::RotationTarget`]; `lifecycle` knows nothing else of them.

pub mod postgres;

use std::sync::Arc;

use base::Rng;
use engine::TargetKind;

/// All kinds.
#[must_use]
pub fn kinds(rng: &Arc<dyn Rng>) -> Vec<Arc<dyn TargetKind>> {
    vec![Arc::new(postgres::Kind::new(Arc::clone(rng)))]
}
