//! The directory of a cluster: where it may lie, what it holds, how it goes away.
//!
//! ```text
//! keyward-pg-<process>-<n>/   0700, of the account that runs the server
//!   lock                      locked by the owner for life: free means that the owner is dead
//!   data/                     PostgreSQL's
//!   s/                        the Unix socket
//!   log                       what the server says
//!   pg_hba.initdb             the rules as initdb wrote them
//! ```

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use super::account::{self, Account};
use super::{Error, Options};

const PREFIX: &str = "keyward-pg-";
/// `sun_path` holds 107 bytes; PostgreSQL adds `/s/.s.PGSQL.65535` to the directory and `.lock` for the lock file.
const SOCKET_BYTES_MAX: usize = 100;
/// How many names are tried when others are taken.
const NAMES_MAX: u32 = 1_000;
/// Below the range from which Linux hands out ports for outgoing connections, so that none of them takes ours while
/// the cluster is stopped.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

static CLUSTERS: AtomicU32 = AtomicU32::new(0);

/// The directory of one cluster.
pub(super) struct Home {
    directory: PathBuf,
    /// Held open for the lock.
    _lock: File,
}

impl Home {
    pub(super) fn create(parent: Option<&Path>, account: Option<&Account>) -> Result<Home, Error> {
        let candidates = match parent {
            Some(parent) => vec![parent.to_owned()],
            None => [env::temp_dir(), "/tmp".into(), "/var/tmp".into(), "/dev/shm".into()].to_vec(),
        };
        for parent in &candidates {
            if !account::reaches(account, parent) || !short_enough(parent) {
                continue;
            }
            sweep(parent, account);
            if let Some(directory) = make(parent)? {
                return Home::settle(directory, account);
            }
        }
        Err(Error::NoDirectory { account: account.map_or("our own".to_owned(), |account| account.name.clone()), tried: list(&candidates) })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    pub(super) fn sockets(&self) -> PathBuf {
        self.directory.join("s")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// The log for standard output and standard error of the server.
    pub(super) fn open_log(&self) -> Result<(Stdio, Stdio), Error> {
        let path = self.log();
        let open = || {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
            Ok((Stdio::from(file.try_clone()?), Stdio::from(file)))
        };
        open().map_err(|source| file_error("open", &path, source))
    }

    pub(super) fn log_length(&self) -> Result<u64, Error> {
        let path = self.log();
        match fs::metadata(&path) {
            Ok(found) => Ok(found.len()),
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(source) => Err(file_error("look at", &path, source)),
        }
    }

    /// The log from this byte on.
    pub(super) fn read_log(&self, from: u64) -> Result<String, Error> {
        let path = self.log();
        let read = || {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().map_err(|source| file_error("read", &path, source))
    }

    /// A file that `initdb` reads the superuser's password from; the caller removes it.
    pub(super) fn write_password(&self, password: &str, account: Option<&Account>) -> Result<PathBuf, Error> {
        let path = self.directory.join("password");
        write_for(&path, &format!("{password}\n"), account)?;
        Ok(path)
    }

    pub(super) fn keep_rules_of_initdb(&self) -> Result<(), Error> {
        let kept = self.directory.join("pg_hba.initdb");
        fs::copy(self.data().join("pg_hba.conf"), &kept).map(drop).map_err(|source| file_error("write", &kept, source))
    }

    pub(super) fn rules_of_initdb(&self) -> Result<String, Error> {
        let kept = self.directory.join("pg_hba.initdb");
        fs::read_to_string(&kept).map_err(|source| file_error("read", &kept, source))
    }

    pub(super) fn read_rules(&self) -> Result<String, Error> {
        let path = self.data().join("pg_hba.conf");
        fs::read_to_string(&path).map_err(|source| file_error("read", &path, source))
    }

    /// Replaces `pg_hba.conf` in one step.
    pub(super) fn write_rules(&self, text: &str, account: Option<&Account>) -> Result<(), Error> {
        let fresh = self.data().join("pg_hba.conf.new");
        let path = self.data().join("pg_hba.conf");
        write_for(&fresh, text, account)?;
        fs::rename(&fresh, &path).map_err(|source| file_error("replace", &path, source))
    }

    /// Writes the settings that differ from what `initdb` wrote, replacing an earlier call.
    pub(super) fn configure(&self, port: u16, options: &Options) -> Result<(), Error> {
        let port = port.to_string();
        let sockets = self.sockets();
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1"),
            ("port", &port),
            ("unix_socket_directories", sockets.to_str().unwrap_or_default()),
            ("unix_socket_permissions", "0700"),
        ];
        if options.danger_fsync_off {
            settings.push(("fsync", "off"));
        }
        settings.extend(options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let text = configuration(&settings)?;
        // Read last, so it wins; `initdb` made it for the account, and we write into that very file.
        let path = self.data().join("postgresql.auto.conf");
        fs::write(&path, text).map_err(|source| file_error("write", &path, source))
    }

    pub(super) fn remove(&self) {
        remove_shared_memory(&self.data());
        fs::remove_dir_all(&self.directory).ok();
    }

    fn settle(directory: PathBuf, account: Option<&Account>) -> Result<Home, Error> {
        let settle = || {
            // Under its final name the file is locked from the first moment, so a sweeper never takes it for stale.
            let fresh = directory.join("lock.new");
            let lock = File::create_new(&fresh)?;
            lock.lock()?;
            fs::rename(&fresh, directory.join("lock"))?;
            DirBuilder::new().mode(0o700).create(directory.join("s"))?;
            if let Some(account) = account {
                for path in [&directory.join("s"), &directory] {
                    std::os::unix::fs::chown(path, Some(account.user), Some(account.group))?;
                }
            }
            Ok(lock)
        };
        match settle() {
            Ok(lock) => Ok(Home { directory, _lock: lock }),
            Err(source) => {
                fs::remove_dir_all(&directory).ok();
                Err(file_error("prepare", &directory, source))
            }
        }
    }
}

/// Candidates for the port, from a place that differs between processes and between clusters of one process.
pub(super) struct Ports {
    next: u16,
}

pub(super) fn ports() -> Ports {
    let width = u32::from(PORTS.end - PORTS.start);
    let spread = std::process::id().wrapping_mul(37).wrapping_add(CLUSTERS.fetch_add(1, Ordering::Relaxed).wrapping_mul(101)) % width;
    Ports { next: PORTS.start + u16::try_from(spread).unwrap_or(0) }
}

impl Ports {
    /// The next port that nobody listens on at this moment.
    pub(super) fn next_free(&mut self) -> Result<u16, Error> {
        for _ in PORTS {
            let port = self.next;
            self.next = if port + 1 < PORTS.end { port + 1 } else { PORTS.start };
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return Ok(port);
            }
        }
        Err(Error::System { action: "find a free port", source: io::ErrorKind::AddrInUse.into() })
    }
}

/// 24 bytes of the kernel's randomness in hexadecimal.
pub(super) fn random_password() -> Result<String, Error> {
    let mut bytes = [0u8; 24];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|source| file_error("read", Path::new("/dev/urandom"), source))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn remove(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(|source| file_error("remove", path, source))
}

fn short_enough(parent: &Path) -> bool {
    let longest = parent.join(format!("{PREFIX}4194304-{NAMES_MAX}")).join("s/.s.PGSQL.65535");
    longest.as_os_str().len() < SOCKET_BYTES_MAX && longest.to_str().is_some()
}

/// Makes a directory that nobody else has made; none when this place cannot be written.
fn make(parent: &Path) -> Result<Option<PathBuf>, Error> {
    for number in 0..NAMES_MAX {
        let directory = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => return Ok(Some(directory)),
            Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => {}
            Err(closed) if matches!(closed.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
                return Ok(None);
            }
            Err(source) => return Err(file_error("make", &directory, source)),
        }
    }
    Ok(None)
}

/// Removes directories whose owner is dead. Best effort: what cannot be removed is left for the next time.
fn sweep(parent: &Path, account: Option<&Account>) {
    let ours = rustix::process::geteuid().as_raw();
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let Ok(found) = fs::symlink_metadata(entry.path()) else {
            continue;
        };
        let of_us = found.uid() == ours || account.is_some_and(|account| account.user == found.uid());
        if !named || !of_us || !found.is_dir() {
            continue;
        }
        let path = entry.path();
        if File::open(path.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok()) {
            remove_shared_memory(&path.join("data"));
            fs::remove_dir_all(&path).ok();
        }
    }
}

/// A server that was killed leaves a few bytes of System V shared memory behind, named in line 7 of its pid file.
fn remove_shared_memory(data: &Path) {
    let Ok(text) = fs::read_to_string(data.join("postmaster.pid")) else {
        return;
    };
    if let Some(id) = shared_memory_in(&text) {
        // Fails while a process still uses it, and then the last one to leave is not us.
        std::process::Command::new("ipcrm")
            .args(["-m", &id.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .ok();
    }
}

fn shared_memory_in(text: &str) -> Option<u64> {
    text.lines().nth(6)?.split_whitespace().nth(1)?.parse().ok()
}

fn configuration(settings: &[(&str, &str)]) -> Result<String, Error> {
    let mut text = String::new();
    for (name, value) in settings {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.');
        if name.is_empty() || !name.chars().all(plain) || value.chars().any(char::is_control) {
            return Err(Error::Setting { name: (*name).to_owned() });
        }
        let value = value.replace('\\', "\\\\").replace('\'', "''");
        text.push_str(&format!("{name} = '{value}'\n"));
    }
    Ok(text)
}

/// Writes a file that only the account can read.
fn write_for(path: &Path, text: &str, account: Option<&Account>) -> Result<(), Error> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        if let Some(account) = account {
            std::os::unix::fs::fchown(&file, Some(account.user), Some(account.group))?;
        }
        Ok(())
    };
    write().map_err(|source| file_error("write", path, source))
}

fn list(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
    shown.join(", ")
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_and_lines_cannot_be_added() {
        assert_eq!(configuration(&[("search_path", "it's"), ("a.b", r"c\d")]).unwrap(), "search_path = 'it''s'\na.b = 'c\\\\d'\n");
        for (name, value) in [("", "x"), ("a b", "x"), ("a", "x\ny"), ("a=b", "x"), ("a", "x\0")] {
            assert!(matches!(configuration(&[(name, value)]), Err(Error::Setting { .. })));
        }
    }

    #[test]
    fn a_long_parent_leaves_no_room_for_the_socket() {
        assert!(short_enough(Path::new("/tmp")));
        assert!(short_enough(Path::new("/var/tmp")));
        assert!(!short_enough(&Path::new("/tmp").join("x".repeat(80))));
    }

    #[test]
    fn a_taken_port_is_not_offered() {
        let mut ports = ports();
        let first = ports.next_free().unwrap();
        let _held = TcpListener::bind(("127.0.0.1", first)).unwrap();
        let mut again = Ports { next: first };
        let second = again.next_free().unwrap();
        assert_ne!(first, second);
        assert!(PORTS.contains(&first) && PORTS.contains(&second));
    }

    #[test]
    fn the_last_port_is_followed_by_the_first() {
        let mut ports = Ports { next: PORTS.end - 1 };
        ports.next_free().unwrap();
        assert!(ports.next < PORTS.end);
    }

    #[test]
    fn passwords_differ() {
        let one = random_password().unwrap();
        assert_eq!(one.len(), 48);
        assert_ne!(one, random_password().unwrap());
    }

    #[test]
    fn the_shared_memory_is_named_on_the_seventh_line() {
        let text = "1\n/d\n2\n20001\n/s\n127.0.0.1\n  20001   98\nready\n";
        assert_eq!(shared_memory_in(text), Some(98));
        assert_eq!(shared_memory_in("1\n/d\n"), None);
    }

    #[test]
    fn a_sweep_takes_the_dead_and_leaves_the_living() {
        let parent = env::temp_dir().join(format!("keyward-sweep-{}", std::process::id()));
        let dead = parent.join(format!("{PREFIX}1-0"));
        let living = parent.join(format!("{PREFIX}1-1"));
        let unborn = parent.join(format!("{PREFIX}1-2"));
        let other = parent.join("other");
        for directory in [&dead, &living, &unborn, &other] {
            fs::create_dir_all(directory).unwrap();
        }
        for directory in [&dead, &living, &other] {
            File::create(directory.join("lock")).unwrap();
        }
        let held = File::open(living.join("lock")).unwrap();
        held.lock().unwrap();
        sweep(&parent, None);
        let left = [&dead, &living, &unborn, &other].map(|directory| directory.exists());
        fs::remove_dir_all(&parent).unwrap();
        assert_eq!(left, [false, true, true, true]);
    }
}
