//! What is recorded, and the rule that nothing leaves unrecorded.
//!
//! A [`Record`] says who asked what and what came of it; values appear only as keyed HMACs. The [`Trail`] keeps both
//! trees: the access tree, whose journal it owns, and the change tree, which it is fed from the commit log in order.
//! [`Released`] is the only thing that the HTTP layer can send, and it is made only from a record that is durable.
//!
//! Left to others: what a request means (`kernel`), where the commit log lives (`store`), and the formats (`tlog`).

mod error;
pub mod export;
mod hash;
mod prelog;
mod record;
mod reply;
mod serve;
mod trail;
mod who;

pub use error::{Error, Poisoned};
pub use hash::{Hasher, Keys};
pub use record::{Auth, BODY_BYTES_MAX, FIELDS_MAX, Kind, Record, Request, TEXT_BYTES_MAX, change_leaf};
pub use reply::{Body, Frame, Recorded, Released, Reply};
pub use serve::{Cursor, Page};
pub use tlog::export::{Layout, TreeName};
pub use trail::{Leaves, Trail, WAITING_MAX};
pub use who::{IDENTITIES_MAX, Question, Row};
