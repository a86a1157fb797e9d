//! The commit log: a small trait, and the journal as its implementation over a disk or memory.

use std::path::Path;
use std::sync::Arc;

use base::{Rng, Seq};
use journal::{Disk, Durable, Journal, LogName, MemoryDisk, RealDisk, Sink};

use crate::Error;

/// An ordered, durable list of entries. The first is number 1.
pub trait Log: Send + 'static {
    /// The number that the next entry gets.
    fn next(&self) -> Seq;
    /// Appends the entries as one batch if the first of them gets the number `expected`, and no later owner (a higher epoch) has
    /// written: one proof for each, in order, once all are durable. After an error the log is not used again.
    fn append(&mut self, expected: Seq, epoch: u64, entries: &[Vec<u8>]) -> Result<Vec<Durable>, journal::Error>;
    /// A reading end.
    fn reader(&self) -> Arc<dyn LogReader>;
    /// Called between batches, for work that no commit should wait for.
    fn rest(&mut self) -> Result<(), journal::Error> {
        Ok(())
    }
}

/// Entries in order, each with its number.
pub type Entries = Box<dyn Iterator<Item = Result<(Seq, Vec<u8>), journal::Error>> + Send>;

/// Reads a log beside its writer.
pub trait LogReader: Send + Sync {
    /// The entries from number `from` on that are durable now.
    fn read_from(&self, from: Seq) -> Entries;
}

/// A log of one process, on one disk.
pub struct FileLog(Journal);

impl FileLog {
    /// Opens or makes the log in `dir`, and takes the directory's lock.
    pub fn open(dir: &Path, rng: &dyn Rng) -> Result<Self, Error> {
        Self::on(Arc::new(RealDisk::open(dir)?), rng)
    }

    /// The same on any disk. Other logs may share it under other names.
    pub fn on(disk: Arc<dyn Disk>, rng: &dyn Rng) -> Result<Self, Error> {
        let mut incarnation = [0; 8];
        rng.fill(&mut incarnation)?;
        Self::with(disk, journal::Options::new(LogName::new("changes")?, u64::from_be_bytes(incarnation)))
    }

    /// The same with chosen options.
    pub fn with(disk: Arc<dyn Disk>, options: journal::Options) -> Result<Self, Error> {
        Ok(Self(Journal::open(disk, options)?))
    }
}

impl Log for FileLog {
    fn next(&self) -> Seq {
        Seq(self.0.next_index()).next()
    }

    // One process owns the directory, so an epoch can only be its own.
    fn append(&mut self, expected: Seq, _epoch: u64, entries: &[Vec<u8>]) -> Result<Vec<Durable>, journal::Error> {
        if expected != self.next() {
            return Err(journal::Error::Position { expected: expected.0, actual: self.next().0 });
        }
        self.0.write(entries)
    }

    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(Reader(self.0.reader()))
    }

    fn rest(&mut self) -> Result<(), journal::Error> {
        self.0.prepare()
    }
}

/// The same log in memory: for `-dev` servers and tests.
pub struct MemoryLog;

impl MemoryLog {
    /// An empty log.
    #[expect(clippy::new_ret_no_self, reason = "a memory log is a file log on a disk in memory")]
    pub fn new(rng: &dyn Rng) -> Result<FileLog, Error> {
        FileLog::on(Arc::new(MemoryDisk::new()), rng)
    }
}

struct Reader(journal::Reader);

impl LogReader for Reader {
    fn read_from(&self, from: Seq) -> Entries {
        let records = self.0.read_from(from.0.saturating_sub(1));
        Box::new(records.map(|record| record.map(|(index, bytes)| (Seq(index).next(), bytes))))
    }
}

/// Feeds a log from the group commit.
pub(crate) struct LogSink {
    pub(crate) log: Box<dyn Log>,
    pub(crate) epoch: u64,
}

impl Sink for LogSink {
    fn next_index(&self) -> u64 {
        self.log.next().0.saturating_sub(1)
    }

    fn write(&mut self, records: &[Vec<u8>]) -> Result<Vec<Durable>, journal::Error> {
        self.log.append(self.log.next(), self.epoch, records)
    }

    fn rest(&mut self) -> Result<(), journal::Error> {
        self.log.rest()
    }
}

#[cfg(test)]
mod tests {
    use base::rng::SeededRng;

    use super::*;

    fn conform(mut log: impl Log) {
        assert_eq!(log.next(), Seq(1));
        let reader = log.reader();
        let proofs = log.append(Seq(1), 1, &[b"a".to_vec(), b"b".to_vec()]).unwrap();
        assert_eq!(proofs.iter().map(Durable::index).collect::<Vec<_>>(), [0, 1]);
        assert!(matches!(log.append(Seq(1), 1, &[b"c".to_vec()]), Err(journal::Error::Position { expected: 1, actual: 3 })));
        log.append(Seq(3), 1, &[b"c".to_vec()]).unwrap();
        log.rest().unwrap();
        let read = |from| reader.read_from(from).map(Result::unwrap).collect::<Vec<_>>();
        assert_eq!(read(Seq(2)), [(Seq(2), b"b".to_vec()), (Seq(3), b"c".to_vec())]);
        assert_eq!(read(Seq(0)).len(), 3);
        assert_eq!(read(Seq(4)), []);
    }

    #[test]
    fn every_log_behaves_alike() {
        let dir = tempfile::tempdir().unwrap();
        conform(FileLog::open(dir.path(), &SeededRng::new(1)).unwrap());
        conform(MemoryLog::new(&SeededRng::new(1)).unwrap());
    }
}
