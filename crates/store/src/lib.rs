//! The commit log is the database: transactions over a hash-chained log, with a disposable index beside it.
//!
//! So far the seam: names, types and signatures.

mod error;
mod key;
mod refusal;
mod seam;

pub use error::{CommitError, Error};
pub use key::{Key, Prefix, Scope};
pub use seam::*;
