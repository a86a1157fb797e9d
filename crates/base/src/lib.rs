//! The vocabulary of Keyward: names, paths, time, secrets, limits and the shapes of the Vault HTTP API.
//!
//! Everything here is parsed once, at the edge; after that an invalid value has no type to live in.
//! No logic beyond parsing lives here, and no crate below this one exists.

pub mod id;
pub mod json;
pub mod limits;
pub mod path;
pub mod refusal;
pub mod rng;
pub mod secret;
pub mod time;
pub mod ttl;
pub mod wire;

pub use id::{MountId, NamespaceId, Seq};
pub use limits::Limits;
pub use path::CanonPath;
pub use refusal::{Kind, Refusal};
pub use rng::{Rng, RngFault};
pub use secret::{Secret, SecretBytes, SecretString};
pub use time::{Clock, Timestamp};
