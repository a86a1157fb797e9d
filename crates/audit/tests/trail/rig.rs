//! A trail over a disk in memory, and a commit log that is a list.

use audit::{Keys, Kind, Leaves, Record, Recorded, Trail, change_leaf};
use base::rng::SeededRng;
use base::time::ManualClock;
use base::{Seq, Timestamp};
use crypto::mac;
use crypto::sign::SigningKey;
use journal::{Disk, File, Journal, LogName, MemoryDisk, Options};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The commit log: leaves, and whether they can be seen yet.
#[derive(Default)]
pub(crate) struct Commits(Mutex<Vec<Vec<u8>>>);

impl Commits {
    /// Commits a leaf without telling anybody.
    pub(crate) fn quietly(&self, record: &Record) -> (Seq, Vec<u8>) {
        let mut leaves = self.0.lock().unwrap();
        let seq = Seq(leaves.len() as u64 + 1);
        let leaf = change_leaf(record, seq, Timestamp(1_000 + seq.0), &[7; 32]);
        leaves.push(leaf.clone());
        (seq, leaf)
    }

    /// Damages a leaf in place, as a broken disk would.
    pub(crate) fn damage(&self, index: usize) {
        let mut leaves = self.0.lock().unwrap();
        let middle = leaves[index].len() / 2;
        leaves[index][middle] ^= 1;
    }
}

impl Leaves for Commits {
    fn read(&self, from: u64, limit: usize) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.lock().unwrap().iter().skip(usize::try_from(from)?).take(limit).cloned().collect())
    }
}

pub(crate) struct Rig {
    pub(crate) trail: Arc<Trail>,
    pub(crate) commits: Arc<Commits>,
    pub(crate) clock: Arc<ManualClock>,
}

impl Rig {
    /// Starts on a disk; sealed.
    pub(crate) fn start(disk: Arc<dyn Disk>, commits: Arc<Commits>, seed: u64) -> Rig {
        let journal = Journal::open(disk, Options::new(LogName::new("access").unwrap(), seed)).unwrap();
        let clock = Arc::new(ManualClock::new());
        let trail = Trail::start(journal, clock.clone(), &SeededRng::new(seed)).unwrap();
        Rig { trail: Arc::new(trail), commits, clock }
    }

    /// A fresh, opened one.
    pub(crate) async fn opened() -> Rig {
        let rig = Rig::start(Arc::new(MemoryDisk::new()), Arc::default(), 1);
        rig.open().await;
        rig
    }

    pub(crate) async fn open(&self) {
        self.trail.open("c0ffee", "node-1", keys(), self.commits.clone()).await.unwrap();
    }

    pub(crate) async fn access(&self, path: &str) -> Recorded {
        self.trail.record_access(request(&self.trail, path)).await.unwrap()
    }

    /// Commits and tells the trail, as the store's observer does.
    pub(crate) fn commit(&self, path: &str) {
        let (seq, leaf) = self.commits.quietly(&request(&self.trail, path));
        self.trail.observe_change(seq, &leaf);
    }

    pub(crate) fn verify(&self) -> verify::Report {
        let dir = tempfile::tempdir().unwrap();
        self.trail.export(dir.path()).unwrap();
        let keys = tlog::export::parse_vkeys(&self.trail.vkeys().unwrap()).unwrap();
        verify::verify(&verify::Options { dir: dir.path().to_owned(), keys, pins: vec![] })
    }
}

pub(crate) fn keys() -> Keys {
    Keys { hmac: mac::Key::new(&[1; 32]), signer: SigningKey::from_seed(&[2; 32]).unwrap() }
}

pub(crate) fn request(trail: &Trail, path: &str) -> Record {
    let mut record = trail.record(Kind::Request);
    record.request(audit::Request { path: path.to_owned(), operation: "read".to_owned(), ..audit::Request::default() });
    record.request_value("token", b"hvs.secret").status(200);
    record
}

/// A disk whose next syncs fail when told to, and which counts them.
pub(crate) struct Failing {
    inner: MemoryDisk,
    pub(crate) switch: Arc<Switch>,
}

#[derive(Default)]
pub(crate) struct Switch {
    pub(crate) broken: AtomicBool,
    pub(crate) syncs: AtomicU64,
}

impl Failing {
    pub(crate) fn new() -> Failing {
        Failing { inner: MemoryDisk::new(), switch: Arc::default() }
    }
}

struct FailingFile(Arc<dyn File>, Arc<Switch>);

impl Disk for Failing {
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(FailingFile(self.inner.create(name)?, self.switch.clone())))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(FailingFile(self.inner.open(name)?, self.switch.clone())))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.inner.sync_dir()
    }
}

impl File for FailingFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.1.syncs.fetch_add(1, Ordering::SeqCst);
        if self.1.broken.load(Ordering::SeqCst) { Err(io::Error::other("the disk is gone")) } else { self.0.sync() }
    }
}
