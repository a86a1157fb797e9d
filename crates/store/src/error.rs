//! What can go wrong with the store.

use base::{RngFault, Seq};

/// Everything the store refuses or fails at, except a commit's own outcomes ([`CommitError`]).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The keyring is not open.
    #[error("the store is sealed")]
    Sealed,
    /// The log holds no keyring yet.
    #[error("the store is not initialised")]
    NotInitialised,
    /// The log holds a keyring already.
    #[error("the store is already initialised")]
    AlreadyInitialised,
    /// The root key is not the one that sealed the keyring.
    #[error("the root key does not open the keyring")]
    WrongRootKey,
    /// A sealed value was altered, moved or sealed under a key that the keyring lacks.
    #[error("the record at `{key}` does not open")]
    Record {
        /// The key, in its readable form.
        key: String,
    },
    /// A value is not the JSON that was asked for.
    #[error("the record at `{key}` could not be read or written as json")]
    Json {
        /// The key, in its readable form.
        key: String,
    },
    /// A write to the store's own scope.
    #[error("the key `{key}` is reserved")]
    Reserved {
        /// The key, in its readable form.
        key: String,
    },
    /// A key, value or transaction above its limit.
    #[error("`{what}` of `{bytes}` bytes is above the limit")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// The index holds commits that the log does not: the log was cut, or restored from an older copy.
    #[error("the index is at commit `{index}` but the log ends at `{log}`; if the log was restored on purpose, remove the index file")]
    IndexAhead {
        /// Last commit in the index.
        index: Seq,
        /// Last commit in the log.
        log: Seq,
    },
    /// The index was made from another log.
    #[error("the index does not belong to this log; if the log was restored on purpose, remove the index file")]
    IndexForeign,
    /// An entry of the log is not what the entry before it promised.
    #[error("log entry `{seq}` is broken: {what}")]
    Entry {
        /// The entry.
        seq: Seq,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The log failed.
    #[error(transparent)]
    Log(#[from] journal::Error),
    /// The index failed.
    #[error("the index failed while {action}")]
    Index {
        /// What was being attempted.
        action: &'static str,
        /// The cause.
        #[source]
        source: Box<redb::Error>,
    },
    /// The source of randomness failed.
    #[error(transparent)]
    Rng(#[from] RngFault),
    /// A thread of the store could not be started.
    #[error("could not start a thread of the store")]
    Thread(#[source] std::io::Error),
    /// The first commit failed.
    #[error("the keyring could not be committed")]
    Initialise(#[source] CommitError),
}

/// Why a transaction was not committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Something it read was changed by a commit after its snapshot: run it again.
    #[error("a concurrent commit changed what this transaction read")]
    Conflict,
    /// A write or sync failed, now or earlier. Whether this transaction is in the log is unknown until it is opened again.
    #[error("the log is poisoned: {reason}")]
    Poisoned {
        /// The failure.
        reason: String,
    },
    /// Too much is waiting. Nothing was written.
    #[error("too many commits are waiting")]
    Overloaded,
    /// The entry or its record is above the limit. Nothing was written.
    #[error("`{what}` of `{bytes}` bytes is above the limit")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
}
