//! The commit log is the database: transactions over a hash-chained log, with a disposable index beside it.
//!
//! Each log entry holds the sealed changes of one transaction and its audit record (the leaf). State is the fold of the entries; the
//! index is one such fold, caught up from the log and rebuilt whenever it is missing. Transactions run on snapshots in parallel; one
//! committer validates what they read, orders, appends, syncs once per batch, applies and answers.
//!
//! What the records mean is left to the kernel and the engines; what the leaf says is left to `audit`.
//! The bytes are described in `docs/format.md`.

mod commit;
mod entry;
mod error;
mod fsck;
mod index;
mod key;
mod keyring;
mod log;
mod overlay;
mod refusal;
mod store;
mod tx;

pub use commit::{Applied, Committed, LeafFn, NoObserver, Observer, Reads, Stamp, Ticket};
pub use error::{CommitError, Error};
pub use fsck::Fsck;
pub use index::IndexPlace;
pub use key::{Key, Prefix, Scope};
pub use keyring::RootKey;
pub use log::{Entries, FileLog, Log, LogReader, MemoryLog};
pub use store::{Options, Store};
pub use tx::{Row, Tx};

#[cfg(test)]
mod tests;
