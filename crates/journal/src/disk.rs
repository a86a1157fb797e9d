//! The seam to the medium: a flat directory of named files.
//!
//! Everything the journal asks of a file system is here, so a test can stand in for one that
//! loses power. What is assumed of a medium: see `docs/format.md`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;

/// A flat directory of named files.
pub trait Disk: Send + Sync + 'static {
    /// The names of all files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes a new empty file; an existing one is an error.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Gives a file another name, replacing a file of that name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all names durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// One open file.
pub trait File: Send + Sync {
    /// Its length.
    fn len(&self) -> io::Result<u64>;
    /// Whether it is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `into` from `offset`; running past the end is an error.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`, growing the file when needed.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts or grows (with zeros) the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes everything written so far durable.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the file system, owned exclusively through a lock file.
#[derive(Debug)]
pub struct RealDisk {
    dir: PathBuf,
    handle: fs::File,
    _lock: fs::File,
}

impl RealDisk {
    /// Opens `dir` (made 0700 when missing) and takes its lock; a second owner is refused.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let shown = dir.display().to_string();
        if !dir.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("create directory", &shown))?;
            // The directory's own name must survive as well.
            if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(Error::io("sync parent of", &shown))?;
            }
        }
        let handle = fs::File::open(dir).map_err(Error::io("open directory", &shown))?;
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(dir.join(LOCK_FILE))
            .map_err(Error::io("open the lock of", &shown))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            rustix::io::Errno::WOULDBLOCK => Error::Locked { dir: dir.to_owned() },
            other => Error::io("lock", &shown)(other.into()),
        })?;
        Ok(Self { dir: dir.to_owned(), handle, _lock: lock })
    }

    fn options() -> fs::OpenOptions {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if !entry.file_type()?.is_file() {
                continue;
            }
            match entry.file_name().into_string() {
                Ok(name) if name != LOCK_FILE => names.push(name),
                // A name that is not text is none of ours.
                _ => {}
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = Self::options().create_new(true).open(self.dir.join(name))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(Self::options().open(self.dir.join(name))?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
}

struct RealFile(fs::File);

impl File for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Files in memory: for `-dev` servers and tests. A clone is the same disk.
#[derive(Clone, Default, Debug)]
pub struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<String, Arc<MemoryFile>>>>,
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// A disk holding these files.
    pub fn from_files(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let files = files.into_iter().map(|(name, bytes)| (name, Arc::new(MemoryFile(Mutex::new(bytes)))));
        Self { files: Arc::new(Mutex::new(files.collect())) }
    }

    /// A copy of every file, as an image that can be opened on its own.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.iter().map(|(name, file)| (name.clone(), file.bytes().clone())).collect()
    }

    fn map(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<MemoryFile>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.map().keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut files = self.map();
        if files.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let file = Arc::new(MemoryFile::default());
        files.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        match self.map().get(name) {
            Some(file) => Ok(Arc::clone(file) as Arc<dyn File>),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.map();
        let file = files.remove(from).ok_or(ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match self.map().remove(name) {
            Some(_) => Ok(()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Default, Debug)]
struct MemoryFile(Mutex<Vec<u8>>);

impl MemoryFile {
    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl File for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes();
        let (start, end) = bounds(offset, into.len())?;
        let from = bytes.get(start..end).ok_or(ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn write_at(&self, offset: u64, new: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes();
        let (start, end) = bounds(offset, new.len())?;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        if let Some(into) = bytes.get_mut(start..end) {
            into.copy_from_slice(new);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let (_, end) = bounds(len, 0)?;
        self.bytes().resize(end, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn bounds(offset: u64, len: usize) -> io::Result<(usize, usize)> {
    let start = usize::try_from(offset).map_err(|_| ErrorKind::InvalidInput)?;
    let end = start.checked_add(len).ok_or(ErrorKind::InvalidInput)?;
    Ok((start, end))
}

/// A disk whose syncs do nothing: the control that a power-loss test must see losing data.
///
/// Chosen at run time, never by a build flag, so that the code under test is the code that ships.
pub struct NoSyncDisk(Arc<dyn Disk>);

impl NoSyncDisk {
    /// Wraps `inner`, dropping its syncs.
    pub fn danger_without_sync(inner: Arc<dyn Disk>) -> Self {
        Self(inner)
    }
}

impl Disk for NoSyncDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(NoSyncFile(self.0.create(name)?)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(NoSyncFile(self.0.open(name)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

struct NoSyncFile(Arc<dyn File>);

impl File for NoSyncFile {
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
        Ok(())
    }
}

/// A disk that fails from a chosen moment on, like one that is full or broken. Chosen at run time, for tests.
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    fault: Arc<Fault>,
}

#[derive(Default)]
struct Fault {
    /// Operations that still succeed; `u64::MAX` is for ever.
    left: AtomicU64,
    /// Operations asked for after the first failure.
    refused: AtomicU64,
}

impl Fault {
    fn pass(&self) -> io::Result<()> {
        let spend = |left: u64| Some(if left == u64::MAX { left } else { left.saturating_sub(1) });
        match self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend) {
            Ok(0) | Err(_) => {
                self.refused.fetch_add(1, Ordering::SeqCst);
                Err(ErrorKind::StorageFull.into())
            }
            Ok(_) => Ok(()),
        }
    }
}

impl FaultyDisk {
    /// Wraps `inner`; nothing fails yet.
    pub fn new(inner: Arc<dyn Disk>) -> Self {
        Self { inner, fault: Arc::new(Fault { left: AtomicU64::new(u64::MAX), refused: AtomicU64::new(0) }) }
    }

    /// Lets `count` more changes and syncs succeed; all that follow find the disk full.
    pub fn fail_after(&self, count: u64) {
        self.fault.left.store(count, Ordering::SeqCst);
    }

    /// How many changes and syncs were refused.
    pub fn refused(&self) -> u64 {
        self.fault.refused.load(Ordering::SeqCst)
    }

    fn file(&self, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FaultyFile { inner, fault: Arc::clone(&self.fault) })
    }
}

impl Disk for FaultyDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.fault.pass()?;
        Ok(self.file(self.inner.create(name)?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.file(self.inner.open(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.fault.pass()?;
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.fault.pass()?;
        self.inner.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.fault.pass()?;
        self.inner.sync_dir()
    }
}

struct FaultyFile {
    inner: Arc<dyn File>,
    fault: Arc<Fault>,
}

impl File for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.fault.pass()?;
        self.inner.write_at(offset, bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.fault.pass()?;
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.fault.pass()?;
        self.inner.sync()
    }
}

const LOCK_FILE: &str = "LOCK";

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn conform(disk: &dyn Disk) {
        assert!(disk.list().unwrap().is_empty());
        assert!(disk.open("a").is_err(), "opening never creates");
        let file = disk.create("a").unwrap();
        assert!(disk.create("a").is_err(), "creating never reuses");
        assert!(file.is_empty().unwrap());
        file.write_at(4, b"xyz").unwrap();
        assert_eq!(file.len().unwrap(), 7);
        let mut read = [9; 7];
        file.read_at(0, &mut read).unwrap();
        assert_eq!(&read, b"\0\0\0\0xyz", "a gap reads as zeros");
        assert!(file.read_at(1, &mut read).is_err(), "reading past the end");
        file.sync().unwrap();
        file.set_len(5).unwrap();
        file.set_len(6).unwrap();
        let mut read = [9; 6];
        disk.open("a").unwrap().read_at(0, &mut read).unwrap();
        assert_eq!(&read, b"\0\0\0\0x\0");
        disk.create("b").unwrap();
        disk.rename("a", "b").unwrap();
        disk.sync_dir().unwrap();
        assert_eq!(disk.list().unwrap(), ["b"]);
        assert_eq!(disk.open("b").unwrap().len().unwrap(), 6);
        assert!(disk.rename("a", "c").is_err());
        disk.remove("b").unwrap();
        assert!(disk.remove("b").is_err());
        assert!(disk.list().unwrap().is_empty());
    }

    #[test]
    fn every_disk_behaves_alike() {
        let dir = tempfile::tempdir().unwrap();
        conform(&RealDisk::open(&dir.path().join("deep/er")).unwrap());
        conform(&MemoryDisk::new());
        conform(&NoSyncDisk::danger_without_sync(Arc::new(MemoryDisk::new())));
        conform(&FaultyDisk::new(Arc::new(MemoryDisk::new())));
    }

    #[test]
    fn one_owner_per_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = RealDisk::open(dir.path()).unwrap();
        let second = RealDisk::open(dir.path()).unwrap_err();
        assert!(matches!(second, Error::Locked { .. }));
        assert!(second.to_string().contains("in use by another process"));
        drop(first);
        RealDisk::open(dir.path()).unwrap();
    }

    #[test]
    fn files_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let disk = RealDisk::open(&data).unwrap();
        disk.create("a").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&data), 0o700);
        assert_eq!(mode(&data.join("a")), 0o600);
        assert_eq!(mode(&data.join(LOCK_FILE)), 0o600);
    }
}
