//! What can go wrong with a journal.

use std::io;
use std::path::PathBuf;

/// Everything the journal refuses or fails at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A log name outside the permitted alphabet.
    #[error("log name `{name}` is not 1 to 32 lower-case letters and digits")]
    LogName {
        /// The refused name.
        name: String,
    },
    /// Another process (or another handle of this one) owns the directory.
    #[error("data directory `{}` is in use by another process", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The medium failed while the journal was being opened or read.
    #[error("could not {action} `{file}`")]
    Io {
        /// What was being attempted.
        action: &'static str,
        /// The file or directory it was attempted on.
        file: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Synced bytes are not what was written: a person has to look.
    #[error("`{file}` is damaged at byte `{offset}` (record `{index}`): {what}")]
    Corrupt {
        /// The segment.
        file: String,
        /// Where in the segment.
        offset: u64,
        /// The record that was expected there.
        index: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The log is shorter than something that is known to have been synced.
    #[error("log `{log}` ends at `{found}` records, but `{expected}` are known to have been durable")]
    Short {
        /// The log.
        log: String,
        /// Records found.
        found: u64,
        /// Records that must be there.
        expected: u64,
    },
    /// A record that is empty or above [`crate::RECORD_BYTES_MAX`].
    #[error("a record of `{bytes}` bytes is outside the permitted size")]
    RecordSize {
        /// Its size.
        bytes: usize,
    },
    /// A write or sync failed earlier. It is never retried: what reached the medium is unknown.
    #[error("log `{log}` is poisoned by an earlier failure: {reason}")]
    Poisoned {
        /// The log.
        log: String,
        /// The failure.
        reason: String,
    },
    /// The caller's idea of where the log ends is wrong.
    #[error("append expected position `{expected}`, but the log is at `{actual}`")]
    Position {
        /// What the caller expected.
        expected: u64,
        /// Where the log is.
        actual: u64,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, file: &str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, file: file.to_owned(), source }
    }
}
