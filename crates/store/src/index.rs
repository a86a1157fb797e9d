//! The local index: one fold of the log in a redb file. Disposable, and never ahead of the log.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::Seq;
use journal::Disk;
use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Database, DatabaseError, ReadableDatabase, StorageBackend, StorageError, TableDefinition};

use crate::entry::{Hash, Sealed};
use crate::overlay::Resident;
use crate::{Error, Key};

/// Where the index lives.
#[derive(Clone)]
pub enum IndexPlace {
    /// In memory, rebuilt at every start.
    Memory,
    /// In a file, made 0600 when missing.
    File(PathBuf),
    /// In a file of a disk.
    Disk(Arc<dyn Disk>, String),
}

pub(crate) struct Index(Database);

impl Index {
    /// Opens the index. One that redb cannot read is thrown away: the log has everything.
    pub(crate) fn open(place: &IndexPlace) -> Result<Self, Error> {
        let database = match create(place) {
            Err(DatabaseError::Storage(StorageError::Corrupted(_)) | DatabaseError::UpgradeRequired(_) | DatabaseError::RepairAborted) => {
                discard(place).map_err(failed("removing a damaged file"))?;
                create(place)
            }
            Err(DatabaseError::Storage(StorageError::Io(error))) if error.kind() == io::ErrorKind::InvalidData => {
                discard(place).map_err(failed("removing a damaged file"))?;
                create(place)
            }
            other => other,
        };
        let index = Self(database.map_err(failed("opening"))?);
        index.make_tables()?;
        Ok(index)
    }

    /// The last entry that it holds, and that entry's hash.
    pub(crate) fn applied(&self) -> Result<(Seq, Hash), Error> {
        attempt("reading its position", || {
            let stored = self.0.begin_read()?.open_table(META)?.get_owned(APPLIED)?;
            let parse = |bytes: &[u8]| {
                let (seq, hash) = bytes.split_at_checked(8)?;
                Some((Seq(u64::from_be_bytes(seq.try_into().ok()?)), hash.try_into().ok()?))
            };
            match stored {
                None => Ok((Seq(0), [0; 32])),
                Some(stored) => parse(stored.value()).ok_or_else(|| redb::Error::Corrupted("the applied position".to_owned())),
            }
        })
    }

    /// Folds the entries in, and records the last one as applied, all or nothing.
    pub(crate) fn apply(&self, entries: &[Resident]) -> Result<(), Error> {
        let Some(last) = entries.last() else { return Ok(()) };
        attempt("applying commits", || {
            let mut transaction = self.0.begin_write()?;
            transaction.set_quick_repair(true);
            {
                let mut records = transaction.open_table(RECORDS)?;
                for (key, value) in entries.iter().flat_map(|entry| entry.changes.iter()) {
                    match value {
                        Some(value) => drop(records.insert(key.as_bytes(), value.as_ref())?),
                        None => drop(records.remove(key.as_bytes())?),
                    }
                }
                let position = [&last.seq.0.to_be_bytes()[..], &last.hash].concat();
                transaction.open_table(META)?.insert(APPLIED, position.as_slice())?;
            }
            transaction.commit()?;
            Ok(())
        })
    }

    pub(crate) fn get(&self, key: &Key) -> Result<Sealed, Error> {
        attempt("reading a record", || {
            // Not `get`: what that returns lets its transaction end, and the writer free the page below it.
            let value = self.0.begin_read()?.open_table(RECORDS)?.get_owned(key.as_bytes())?;
            Ok(value.map(|value| value.value().into()))
        })
    }

    /// Records from `low` to below `high`, as they are now.
    pub(crate) fn range(&self, low: &Key, high: &Key) -> Result<impl Iterator<Item = Result<(Key, Sealed), Error>> + use<>, Error> {
        let rows = attempt("reading records", || {
            let table = self.0.begin_read()?.open_table(RECORDS)?;
            // redb refuses a range that ends before it begins.
            let range = if low < high { Some(table.range(low.as_bytes()..high.as_bytes())?) } else { None };
            Ok(range.into_iter().flatten())
        })?;
        Ok(rows.map(|row| {
            let (key, value) = row.map_err(failed("reading records"))?;
            Ok((Key::from_raw(key.value()), Some(value.value().into())))
        }))
    }

    fn make_tables(&self) -> Result<(), Error> {
        attempt("opening", || {
            // Nothing to write, and so nothing to sync, for one that was there.
            if self.0.begin_read()?.open_table(META).is_ok() {
                return Ok(());
            }
            let transaction = self.0.begin_write()?;
            transaction.open_table(RECORDS)?;
            transaction.open_table(META)?;
            transaction.commit()?;
            Ok(())
        })
    }
}

fn create(place: &IndexPlace) -> Result<Database, DatabaseError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    match place {
        IndexPlace::Memory => builder.create_with_backend(InMemoryBackend::new()),
        IndexPlace::File(path) => builder.create_with_backend(FileBackend::new(private_file(path)?)?),
        IndexPlace::Disk(disk, name) => {
            let file = match disk.open(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => disk.create(name)?,
                other => other?,
            };
            builder.create_with_backend(DiskBackend(file))
        }
    }
}

fn private_file(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn discard(place: &IndexPlace) -> io::Result<()> {
    match place {
        IndexPlace::Memory => Ok(()),
        IndexPlace::File(path) => fs::remove_file(path),
        IndexPlace::Disk(disk, name) => disk.remove(name),
    }
}

fn attempt<T>(action: &'static str, act: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Error> {
    act().map_err(failed(action))
}

fn failed<E: Into<redb::Error>>(action: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::Index { action, source: Box::new(error.into()) }
}

/// redb over a file of a [`Disk`], whose owner keeps others out.
struct DiskBackend(Arc<dyn journal::File>);

impl std::fmt::Debug for DiskBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DiskBackend")
    }
}

impl StorageBackend for DiskBackend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}

const RECORDS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const APPLIED: &str = "applied";
const CACHE_BYTES: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use base::{MountId, NamespaceId};

    use super::*;
    use crate::Scope;

    /// What `get` of redb returns does not keep its transaction alive. A value that outlived it let the writer free the page below, which
    /// redb notices in debug builds by a panic of the thread that applies commits.
    #[test]
    fn readers_keep_their_pages_while_the_writer_frees() {
        let index = Index::open(&IndexPlace::Memory).unwrap();
        let key = Key::new(Scope::new(NamespaceId::ROOT, MountId(1)), "t", &["a"]);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        // What was seen of one commit cannot be missing from what is seen later.
                        let seen = index.get(&key).unwrap().is_some();
                        assert!(!seen || index.applied().unwrap().0 > Seq(0));
                    }
                });
            }
            let writer = scope.spawn(|| {
                for seq in 1..=2_000 {
                    let changes = [(key.clone(), Some(vec![1; 300].into()))].into();
                    index.apply(&[Resident { seq: Seq(seq), hash: [0; 32], changes }]).unwrap();
                }
            });
            let written = writer.join();
            done.store(true, Ordering::Relaxed);
            assert!(written.is_ok(), "the writer met a reader's page");
        });
        assert_eq!(index.applied().unwrap().0, Seq(2_000));
    }
}
