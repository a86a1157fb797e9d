//! A secret in a file: complete or not there, never readable by more than it should, never reached through a symbolic link.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base::SecretBytes;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::Error;

/// File systems that live in memory: tmpfs and ramfs.
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];
/// Bytes of a file that is read back at most.
const READ_BACK_BYTES_MAX: u64 = 1 << 20;

/// Where a secret is written, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// An absolute path.
    pub path: PathBuf,
    /// Permission bits of the file, `0400` if nobody says otherwise.
    pub mode: u32,
    /// The owner, if it is another than this process.
    pub uid: Option<u32>,
    /// The group, likewise.
    pub gid: Option<u32>,
    /// Whether the file may lie on a disk, where its blocks outlive it.
    pub allow_disk: bool,
}

/// An opened destination: the folder is held, so that nobody can put another one in its place while it exists.
pub(crate) struct Place {
    destination: Destination,
    folder: Mutex<Arc<OwnedFd>>,
    name: OsString,
    part: OsString,
    unloaded: OsString,
    /// Whether it was removed for good. Held while writing, so that no write ends after that.
    removed: Mutex<bool>,
}

impl Destination {
    /// For this process alone, in memory only.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), mode: 0o400, uid: None, gid: None, allow_disk: false }
    }

    /// Opens the folder of the destination.
    ///
    /// # Errors
    /// [`Error::Unsafe`], [`Error::File`].
    pub(crate) fn open(self) -> Result<Place, Error> {
        let unsafe_path = |why| Error::Unsafe { path: self.path.clone(), why };
        if self.mode & !0o777 != 0 || self.mode & 0o111 != 0 {
            return Err(unsafe_path("has permissions that a secret cannot have"));
        }
        if self.mode & 0o007 != 0 {
            return Err(unsafe_path("would be open to everybody"));
        }
        let Some(name) = self.path.file_name() else { return Err(unsafe_path("does not name a file")) };
        let folder = self.folder()?;
        let beside = |ending| {
            let mut beside = OsString::from(".");
            beside.push(name);
            beside.push(ending);
            beside
        };
        let (part, unloaded, name) = (beside(".keyward"), beside(".unloaded"), name.to_owned());
        let folder = Mutex::new(Arc::new(folder));
        Ok(Place { folder, name, part, unloaded, removed: Mutex::new(false), destination: self })
    }

    fn folder(&self) -> Result<OwnedFd, Error> {
        let unsafe_path = |why| Error::Unsafe { path: self.path.clone(), why };
        let Some(parent) = self.path.parent() else { return Err(unsafe_path("does not name a file")) };
        let folder = open_folder(parent).map_err(|error| match error {
            Ok(why) => unsafe_path(why),
            Err(source) => Error::File { doing: "open the folder", path: parent.to_owned(), source: source.into() },
        })?;
        let failed = |source: Errno| Error::File { doing: "look at the folder", path: parent.to_owned(), source: source.into() };
        let found = rustix::fs::fstat(&folder).map_err(failed)?;
        let mode = found.st_mode;
        if mode & 0o002 != 0 && mode & 0o1000 == 0 {
            return Err(unsafe_path("lies in a folder where everybody can replace it"));
        }
        let kind = rustix::fs::fstatfs(&folder).map_err(failed)?.f_type;
        if !self.allow_disk && !IN_MEMORY.iter().any(|known| i128::from(*known) == i128::from(kind)) {
            return Err(Error::OnDisk { path: self.path.clone(), folders: crate::proc::folders_in_memory() });
        }
        Ok(folder)
    }
}

impl Place {
    pub(crate) fn path(&self) -> &Path {
        &self.destination.path
    }

    /// Replaces the file by a complete one. Until the last step nothing with its name changes. From then on it counts as
    /// unloaded until [`Place::note_reloaded`], also for another process.
    pub(crate) fn write(&self, content: &SecretBytes) -> Result<(), Error> {
        let removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        if *removed {
            return Err(self.failed("write")(std::io::ErrorKind::NotFound.into()));
        }
        if self.is_folder_gone()? {
            *self.folder.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(self.destination.folder()?);
        }
        self.unlink(&self.part).map_err(|error| self.failed("remove what was left beside")(error.into()))?;
        let done = self.replace(content);
        if done.is_err() {
            // Nothing of a secret stays beside. The error of the write says more than one of the clean-up could.
            self.unlink(&self.part).unwrap_or_default();
        }
        done
    }

    /// The folder that is held.
    fn folder(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.folder.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the folder was removed, as a service manager does with one that belongs to a program when that stops.
    fn is_folder_gone(&self) -> Result<bool, Error> {
        let found = rustix::fs::fstat(self.folder()).map_err(|error| self.failed("look at the folder of")(error.into()))?;
        Ok(found.st_nlink == 0)
    }

    /// Whether there is anything at its path.
    pub(crate) fn is_there(&self) -> Result<bool, Error> {
        self.has(&self.name)
    }

    fn has(&self, name: &OsString) -> Result<bool, Error> {
        match rustix::fs::statat(self.folder(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(self.failed("look for")(error.into())),
        }
    }

    fn replace(&self, content: &SecretBytes) -> Result<(), Error> {
        let folder = self.folder();
        let (file, named) = self.unnamed(&folder).map_err(|error| self.failed("create a file beside")(error.into()))?;
        let mut file = std::fs::File::from(file);
        file.write_all(content.expose()).map_err(self.failed("write"))?;
        self.hand_over(&file).map_err(|error| self.failed("set the permissions of")(error.into()))?;
        file.sync_all().map_err(self.failed("sync"))?;
        if !named {
            let handle = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, handle, &folder, &self.part, AtFlags::SYMLINK_FOLLOW)
                .map_err(|error| self.failed("name the file beside")(error.into()))?;
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(&folder, &self.unloaded, flags, Mode::RUSR | Mode::WUSR) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(error) => return Err(self.failed("leave a mark beside")(error.into())),
        }
        rustix::fs::renameat(&folder, &self.part, &folder, &self.name).map_err(|error| self.failed("replace")(error.into()))?;
        rustix::fs::fsync(&folder).map_err(|error| self.failed("sync the folder of")(error.into()))
    }

    /// Whether the program has reloaded what the file holds, for this process or one before.
    pub(crate) fn is_reloaded(&self) -> Result<bool, Error> {
        self.has(&self.unloaded).map(|unloaded| !unloaded)
    }

    /// The program has reloaded it.
    pub(crate) fn note_reloaded(&self) -> Result<(), Error> {
        self.unlink(&self.unloaded).map_err(|error| self.failed("remove the mark beside")(error.into()))
    }

    /// What the file holds, if it is a file of ours; anything else counts as nothing.
    pub(crate) fn read(&self) -> Result<Option<SecretBytes>, Error> {
        let failed = self.failed("read");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(self.folder(), &self.name, flags, Mode::empty()) {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        };
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() || found.len() > READ_BACK_BYTES_MAX {
            return Ok(None);
        }
        let mut content = Vec::with_capacity(usize::try_from(found.len()).unwrap_or(0) + 1);
        file.take(READ_BACK_BYTES_MAX).read_to_end(&mut content).map_err(failed)?;
        Ok(Some(SecretBytes::new(content)))
    }

    /// Removes the file for good: a write that is under way ends before, and none follows.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        *self.removed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        let all = [&self.part, &self.name, &self.unloaded];
        all.into_iter().try_for_each(|name| self.unlink(name).map_err(|error| self.failed("remove")(error.into())))
    }

    fn failed(&self, doing: &'static str) -> impl Fn(std::io::Error) -> Error + Copy {
        move |source| Error::File { doing, path: self.destination.path.clone(), source }
    }

    fn unlink(&self, name: &OsString) -> Result<(), Errno> {
        match rustix::fs::unlinkat(self.folder(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A new file for this process alone: without a name where the file system can, else under the name beside. True: named.
    fn unnamed(&self, folder: &OwnedFd) -> Result<(OwnedFd, bool), Errno> {
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::openat(folder, ".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode) {
            Ok(file) => Ok((file, false)),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(folder, &self.part, flags, mode).map(|file| (file, true))
            }
            Err(error) => Err(error),
        }
    }

    /// Owner first, then permissions: the file is never open to its old group.
    fn hand_over(&self, file: &std::fs::File) -> Result<(), Errno> {
        let Destination { uid, gid, mode, .. } = self.destination;
        if uid.is_some() || gid.is_some() {
            rustix::fs::fchown(file, uid.map(rustix::fs::Uid::from_raw), gid.map(rustix::fs::Gid::from_raw))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
    }
}

/// Opens an absolute folder without following a symbolic link anywhere on the way. The error is a reason, or what failed.
fn open_folder(path: &Path) -> Result<OwnedFd, Result<&'static str, Errno>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let linked = |error| if matches!(error, Errno::LOOP | Errno::XDEV) { Ok("has a symbolic link on the way") } else { Err(error) };
    let root = rustix::fs::open("/", flags, Mode::empty()).map_err(Err)?;
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) {
        return Err(Ok("is not absolute"));
    }
    let below = parts.as_path();
    if below.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(Ok("has `..` in it"));
    }
    if below.as_os_str().is_empty() {
        return Ok(root);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&root, below, flags, Mode::empty(), resolve) {
        // An old kernel, or a filter that does not know the call: step by step, with the same result.
        Err(Errno::NOSYS | Errno::PERM) => below.components().try_fold(root, |at, part| {
            let next = rustix::fs::openat(&at, part.as_os_str(), flags | OFlags::NOFOLLOW, Mode::empty());
            next.map_err(|error| if error == Errno::NOTDIR { Ok("has something else than folders on the way") } else { linked(error) })
        }),
        other => other.map_err(linked),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn secret(text: &str) -> SecretBytes {
        SecretBytes::new(text.as_bytes().to_vec())
    }

    fn on_disk(path: PathBuf) -> Destination {
        Destination { allow_disk: true, ..Destination::new(path) }
    }

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        (folder, path)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_with_exactly_its_permissions() {
        let (_kept, folder) = folder();
        for mode in [0o400, 0o600, 0o440, 0o640] {
            let place = Destination { mode, ..on_disk(folder.join("s")) }.open().unwrap();
            place.write(&secret("first, longer")).unwrap();
            place.write(&secret("second")).unwrap();
            assert_eq!(place.read().unwrap().unwrap().expose(), b"second");
            assert_eq!(std::fs::metadata(folder.join("s")).unwrap().mode() & 0o7777, mode);
            assert_eq!(names(&folder), [".s.unloaded", "s"], "no copy stays beside");
            assert!(!place.is_reloaded().unwrap());
            place.note_reloaded().unwrap();
            assert!(place.is_reloaded().unwrap());
            assert_eq!(names(&folder), ["s"]);
        }
    }

    #[test]
    fn what_a_crash_left_beside_goes_and_a_removed_secret_leaves_nothing() {
        let (_kept, folder) = folder();
        std::fs::write(folder.join(".s.keyward"), "half").unwrap();
        let place = on_disk(folder.join("s")).open().unwrap();
        place.write(&secret("x")).unwrap();
        assert_eq!(names(&folder), [".s.unloaded", "s"]);
        std::fs::write(folder.join(".s.keyward"), "half").unwrap();
        place.remove().unwrap();
        assert!(names(&folder).is_empty());
        place.remove().unwrap();
        assert!(place.read().unwrap().is_none());
        // a write that its task left behind comes too late
        assert!(place.write(&secret("late")).is_err() && names(&folder).is_empty());
    }

    #[test]
    fn a_write_that_fails_leaves_nothing_of_the_secret_beside() {
        let (_kept, folder) = folder();
        std::fs::create_dir(folder.join("s")).unwrap();
        let place = on_disk(folder.join("s")).open().unwrap();
        assert!(matches!(place.write(&secret("x")), Err(Error::File { doing: "replace", .. })));
        assert_eq!(names(&folder), [".s.unloaded", "s"]);
    }

    #[test]
    fn paths_that_are_refused() {
        let (_kept, folder) = folder();
        std::fs::create_dir(folder.join("real")).unwrap();
        symlink(folder.join("real"), folder.join("link")).unwrap();
        std::fs::create_dir(folder.join("open")).unwrap();
        std::fs::set_permissions(folder.join("open"), std::fs::Permissions::from_mode(0o777)).unwrap();
        for (path, why) in [
            (folder.join("link/s"), "symbolic link"),
            (folder.join("real/../s"), "`..`"),
            (PathBuf::from("relative/s"), "not absolute"),
            (folder.join("open/s"), "everybody can replace"),
            (PathBuf::from("/"), "does not name a file"),
        ] {
            let error = on_disk(path.clone()).open().err().unwrap_or_else(|| panic!("{path:?}"));
            assert!(matches!(&error, Error::Unsafe { .. }) && error.to_string().contains(why), "{error}");
        }
        for mode in [0o444, 0o404, 0o700, 0o4400, 0o10_000] {
            assert!(Destination { mode, ..on_disk(folder.join("real/s")) }.open().is_err(), "{mode:o}");
        }
        assert!(matches!(on_disk(folder.join("none/s")).open(), Err(Error::File { .. })));
    }

    #[test]
    fn a_link_in_place_of_the_file_is_replaced_never_followed() {
        let (_kept, folder) = folder();
        std::fs::write(folder.join("victim"), "untouched").unwrap();
        for name in ["s", ".s.keyward"] {
            let place = on_disk(folder.join("s")).open().unwrap();
            symlink(folder.join("victim"), folder.join(name)).unwrap();
            assert!(name != "s" || place.read().unwrap().is_none());
            place.write(&secret("secret")).unwrap();
            assert_eq!(std::fs::read_to_string(folder.join("victim")).unwrap(), "untouched");
            assert!(std::fs::symlink_metadata(folder.join("s")).unwrap().is_file());
            place.remove().unwrap();
        }
    }

    #[test]
    fn a_folder_that_is_swapped_for_a_link_gains_nothing() {
        let (_kept, folder) = folder();
        let (inside, outside) = (folder.join("inside"), folder.join("outside"));
        [&inside, &outside].into_iter().for_each(|path| std::fs::create_dir(path).unwrap());
        let place = on_disk(inside.join("s")).open().unwrap();
        std::fs::rename(&inside, folder.join("moved")).unwrap();
        symlink(&outside, &inside).unwrap();
        place.write(&secret("secret")).unwrap();
        assert!(names(&outside).is_empty());
    }

    #[test]
    fn a_folder_that_was_removed_and_made_again_is_found_again_and_looked_at_again() {
        let (_kept, folder) = folder();
        let inside = folder.join("inside");
        std::fs::create_dir(&inside).unwrap();
        let place = on_disk(inside.join("s")).open().unwrap();
        place.write(&secret("one")).unwrap();
        assert!(place.is_there().unwrap());
        std::fs::remove_dir_all(&inside).unwrap();
        assert!(!place.is_there().unwrap());
        assert!(matches!(place.write(&secret("two")), Err(Error::File { doing: "open the folder", .. })));
        symlink(&folder, &inside).unwrap();
        assert!(matches!(place.write(&secret("two")), Err(Error::Unsafe { .. })));
        std::fs::remove_file(&inside).unwrap();
        std::fs::create_dir(&inside).unwrap();
        place.write(&secret("two")).unwrap();
        assert_eq!(std::fs::read(inside.join("s")).unwrap(), b"two");
    }

    #[test]
    fn disks_are_refused_unless_allowed_and_memory_is_not() {
        // the build folder is on a disk here and in every build that anybody runs
        let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = disk.path().canonicalize().unwrap().join("s");
        assert!(Destination::new(&path).open().err().unwrap().to_string().contains("lies on a disk"));
        assert!(on_disk(path).open().is_ok());
        if Path::new("/dev/shm").is_dir() {
            let memory = tempfile::tempdir_in("/dev/shm").unwrap();
            Destination::new(memory.path().join("s")).open().unwrap().write(&secret("x")).unwrap();
        }
    }

    /// What a neighbour sees who looks without pause while secrets are replaced: a half file, or permissions wider than asked.
    fn watched(folder: &Path, mode: u32, writes_max: usize, write: impl Fn(&SecretBytes)) -> Vec<String> {
        use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
        let values = ["a", "b"].map(|letter| letter.repeat(20_000));
        let (done, looks, caught) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut seen = Vec::new();
                while !done.load(Ordering::SeqCst) {
                    looks.fetch_add(1, Ordering::SeqCst);
                    for entry in std::fs::read_dir(folder).unwrap().flatten() {
                        let Ok(found) = entry.metadata() else { continue };
                        if found.mode() & 0o7777 & !mode != 0 {
                            seen.push(format!("{:?} has {:o}", entry.file_name(), found.mode() & 0o7777));
                        }
                    }
                    match std::fs::read_to_string(folder.join("s")) {
                        Ok(text) if !values.contains(&text) => seen.push(format!("{} bytes", text.len())),
                        _ => {}
                    }
                    caught.store(seen.len(), Ordering::SeqCst);
                }
                seen
            });
            let mut count = 0;
            // as many replacements and as many looks, unless something was seen before
            while caught.load(Ordering::SeqCst) == 0 && (count < writes_max || looks.load(Ordering::SeqCst) < writes_max) {
                write(&secret(&values[count % 2]));
                count += 1;
            }
            done.store(true, Ordering::SeqCst);
            watcher.join().unwrap()
        })
    }

    #[test]
    fn at_no_instant_is_a_file_half_or_wider_than_asked() {
        let (_kept, folder) = folder();
        let place = Destination { mode: 0o600, ..on_disk(folder.join("s")) }.open().unwrap();
        let seen = watched(&folder, 0o600, 200, |content| place.write(content).unwrap());
        assert!(seen.is_empty(), "{seen:?}");
    }

    /// The control of the test above: written in place, permissions afterwards. If this goes unnoticed the watcher is blind.
    #[test]
    fn control_a_naive_writer_is_caught() {
        let (_kept, folder) = folder();
        let path = folder.join("s");
        let seen = watched(&folder, 0o600, 100_000, |content| {
            if path.exists() {
                std::fs::remove_file(&path).unwrap();
            }
            std::fs::write(&path, content.expose()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        });
        assert!(!seen.is_empty());
    }
}
