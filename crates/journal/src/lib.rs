//! An append-only log of opaque records that survives power loss.
//!
//! The journal knows bytes, positions and one medium ([`Disk`]); what the records mean is left to
//! `store` (the commit log) and `audit` (the access journal). It promises three things:
//!
//! - a [`Durable`] exists only for a record that was synced, and only this crate can make one;
//! - after a crash every synced record is there, and what was never synced is cut off;
//! - damage to synced bytes is never mistaken for a crash: it refuses to open.
//!
//! The bytes are described in `docs/format.md`.

mod disk;
mod error;
mod group;
mod read;
mod record;
mod segment;
mod write;

#[cfg(test)]
mod tests;

pub use disk::{Disk, FaultyDisk, File, MemoryDisk, NoSyncDisk, RealDisk};
pub use error::Error;
pub use group::{Admitted, Limits, Sink, Stage, Turned, Writer, spawn};
pub use read::{Reader, Records};
pub use record::RECORD_BYTES_MAX;
pub use write::{Journal, Options};

/// The name of a log: part of its file names and of every [`Durable`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogName(std::sync::Arc<str>);

impl LogName {
    /// A name of 1 to 32 lower-case letters and digits.
    pub fn new(name: &str) -> Result<Self, Error> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if name.is_empty() || name.len() > 32 || !name.bytes().all(plain) {
            return Err(Error::LogName { name: name.to_owned() });
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Proof that the record at `index` of a log was synced to its medium.
///
/// The fields are private: outside this crate nobody can write one down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable {
    log: LogName,
    index: u64,
}

impl Durable {
    pub(crate) fn new(log: LogName, index: u64) -> Self {
        Self { log, index }
    }

    /// The log that holds the record.
    pub fn log(&self) -> &LogName {
        &self.log
    }

    /// The record's position, counted from 0.
    pub fn index(&self) -> u64 {
        self.index
    }
}
