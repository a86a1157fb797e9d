//! Signatures ahead of their bodies: everything here answers that the store is sealed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::{Clock, Rng, RngFault, SecretBytes, Seq, Timestamp};
use journal::{Disk, Durable};
use serde::{Serialize, de::DeserializeOwned};

use crate::{CommitError, Error, Key, Prefix};

/// A commit log.
pub trait Log: Send {}

/// The log over a directory.
pub struct FileLog(());

impl FileLog {
    /// Opens or makes the log named `changes` in `dir` and takes the directory's lock.
    pub fn open(dir: &Path, rng: &dyn Rng) -> Result<Self, Error> {
        let _ = (dir, rng);
        Err(Error::Sealed)
    }

    /// The same over any disk (the access journal may share it under another name).
    pub fn on(disk: Arc<dyn Disk>, rng: &dyn Rng) -> Result<Self, Error> {
        let _ = (disk, rng);
        Err(Error::Sealed)
    }
}

impl Log for FileLog {}

/// The same log in memory.
pub struct MemoryLog(());

impl MemoryLog {
    /// An empty log.
    pub fn new(rng: &dyn Rng) -> Result<FileLog, Error> {
        let _ = rng;
        Err(Error::Sealed)
    }
}

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

/// The key that opens the keyring.
pub struct RootKey(());

impl RootKey {
    /// 32 bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        let _ = bytes;
        Err(Error::WrongRootKey)
    }

    /// 32 new bytes, to be kept in a key file, and given to [`RootKey::new`].
    pub fn generate(rng: &dyn Rng) -> Result<SecretBytes, RngFault> {
        let _ = rng;
        Err(RngFault)
    }
}

/// What the committer knows of a commit before it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Its position.
    pub seq: Seq,
    /// Its time.
    pub time: Timestamp,
    /// SHA-256 of its sealed changes.
    pub changes: [u8; 32],
}

/// Builds the leaf of a commit.
pub type LeafFn = Box<dyn FnOnce(&Stamp) -> Vec<u8> + Send>;

/// A commit that is durable and visible.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Its position.
    pub seq: Seq,
    /// Its time.
    pub time: Timestamp,
    /// Proof of the sync.
    pub durable: Durable,
}

/// A commit as the observer sees it.
pub struct Applied<'a> {
    /// Its position.
    pub seq: Seq,
    /// Its time.
    pub time: Timestamp,
    /// Its leaf.
    pub leaf: &'a [u8],
    /// The keys it wrote or deleted.
    pub keys: &'a [Key],
}

/// Told of every batch by the committer: after the sync, in order, before the waiters are answered.
pub trait Observer: Send + Sync {
    /// These commits are durable and visible.
    fn applied(&self, batch: &[Applied<'_>]);
    /// The log failed: no commit will succeed any more.
    fn poisoned(&self, reason: &str) {
        let _ = reason;
    }
}

/// An observer that does not look.
pub struct NoObserver;

impl Observer for NoObserver {
    fn applied(&self, _: &[Applied<'_>]) {}
}

/// A found record.
pub struct Row {
    /// The identifier that follows the prefix.
    pub id: String,
    /// The whole key.
    pub key: Key,
    /// The value.
    pub value: SecretBytes,
}

/// What [`Store::fsck`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fsck {
    /// Entries read.
    pub entries: u64,
    /// Records compared.
    pub records: u64,
    /// Values opened (0 when sealed).
    pub opened: u64,
    /// What is wrong, in words; empty when nothing is.
    pub problems: Vec<String>,
}

/// A store. A clone is the same store; the threads end with the last clone.
#[derive(Clone)]
pub struct Store(());

impl Store {
    /// Opens the log, and catches the index up from it in the background.
    pub fn open(
        log: Box<dyn Log>,
        index: IndexPlace,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, Error> {
        let _ = (log, index, clock, rng, observer);
        Err(Error::Sealed)
    }

    /// Whether the log holds a keyring.
    pub fn initialised(&self) -> bool {
        false
    }

    /// Makes the cluster id and the keyring, commits them as the first entry, and leaves the store unsealed.
    pub async fn initialise(&self, root: &RootKey, leaf: LeafFn) -> Result<Committed, Error> {
        let _ = (root, leaf);
        Err(Error::Sealed)
    }

    /// Opens the keyring.
    pub fn unseal(&self, root: &RootKey) -> Result<(), Error> {
        let _ = root;
        Err(Error::Sealed)
    }

    /// Forgets the keyring. Transactions begun before keep theirs.
    pub fn seal(&self) {}

    /// Whether the keyring is closed.
    pub fn sealed(&self) -> bool {
        true
    }

    /// The cluster's UUID, known as soon as the log is initialised.
    pub fn cluster_id(&self) -> Option<String> {
        None
    }

    /// The last durable and visible commit.
    pub fn head(&self) -> Seq {
        Seq(0)
    }

    /// Why no commit will succeed any more, if so.
    pub fn poisoned(&self) -> Option<String> {
        None
    }

    /// A transaction on a snapshot of now.
    pub fn begin(&self) -> Result<Tx, Error> {
        Err(Error::Sealed)
    }

    /// Commits; the answer comes after the sync. A transaction without writes may be committed too (its leaf counts).
    pub async fn commit(&self, tx: Tx, leaf: LeafFn) -> Result<Committed, CommitError> {
        let _ = (tx, leaf);
        Err(CommitError::Overloaded)
    }

    /// Change-tree leaves in order, beginning with commit `from` (the first is 1), up to the head at the time of the call.
    pub fn leaves(&self, from: Seq) -> impl Iterator<Item = Result<(Seq, Vec<u8>), Error>> + Send + use<> {
        let _ = from;
        std::iter::empty()
    }

    /// Compares the index with the fold of the log, checks the hash chain, and opens every value when unsealed.
    pub fn fsck(&self) -> Result<Fsck, Error> {
        Err(Error::Sealed)
    }
}

/// A transaction: reads see one snapshot and its own writes; nothing is shared until it commits.
pub struct Tx(());

impl Tx {
    /// The commit this transaction sees as the last one.
    pub fn snapshot(&self) -> Seq {
        Seq(0)
    }

    /// The later of the wall clock and the last commit's time.
    pub fn now(&self) -> Timestamp {
        Timestamp::ZERO
    }

    /// The value at `key`.
    pub fn get(&mut self, key: &Key) -> Result<Option<SecretBytes>, Error> {
        let _ = key;
        Err(Error::Sealed)
    }

    /// Whether there is a value at `key`.
    pub fn exists(&mut self, key: &Key) -> Result<bool, Error> {
        let _ = key;
        Err(Error::Sealed)
    }

    /// The value at `key`, read as JSON.
    pub fn read<T: DeserializeOwned>(&mut self, key: &Key) -> Result<Option<T>, Error> {
        let _ = key;
        Err(Error::Sealed)
    }

    /// Sets the value at `key`.
    pub fn put(&mut self, key: &Key, value: &[u8]) -> Result<(), Error> {
        let _ = (key, value);
        Err(Error::Sealed)
    }

    /// Sets the value at `key`, as JSON.
    pub fn write<T: Serialize>(&mut self, key: &Key, value: &T) -> Result<(), Error> {
        let _ = (key, value);
        Err(Error::Sealed)
    }

    /// Removes the value at `key`, if any.
    pub fn delete(&mut self, key: &Key) -> Result<(), Error> {
        let _ = key;
        Err(Error::Sealed)
    }

    /// Up to `limit` records under `prefix`, in order; with `after`, those whose next identifier sorts behind it (records below
    /// `after` itself included).
    pub fn scan(&mut self, prefix: &Prefix, after: Option<&str>, limit: usize) -> Result<Vec<Row>, Error> {
        let _ = (prefix, after, limit);
        Err(Error::Sealed)
    }

    /// Like [`Tx::scan`], but only the next identifiers, each once; nothing is opened.
    pub fn list(&mut self, prefix: &Prefix, after: Option<&str>, limit: usize) -> Result<Vec<String>, Error> {
        let _ = (prefix, after, limit);
        Err(Error::Sealed)
    }

    /// Marks every write so far as kept: it survives [`Tx::refuse`].
    pub fn keep(&mut self) {}

    /// Drops every write that was not kept. What was read stays part of the validation.
    pub fn refuse(&mut self) {}

    /// Whether there is nothing to write.
    pub fn is_read_only(&self) -> bool {
        true
    }
}
