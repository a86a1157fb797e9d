//! `keyward run`: a program that gets its secrets in the environment, and is replaced when they change.
//!
//! The supervisor owns the listening sockets, so no connection is refused while the program changes. A new generation gets a
//! new process; only when that is ready is the generation acknowledged, and only then is the old process asked to drain. A new
//! process that ends or stays silent refuses the generation, and the old one goes on. What decides all this is in
//! `supervisor`; what a process and everything below it is, in `process`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::Rng;
use client::{Client, Consumer, WatchOptions};
use rustix::process::Signal;
use tokio::sync::mpsc;

use crate::process::{Plan, Socket};
use crate::ready::Ready;
use crate::supervisor::{self, Supervisor};
use crate::{Error, spawn};

/// Connections that may wait while the program changes.
const BACKLOG: i32 = 1_024;

/// What is asked of a supervisor from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Drain the program and end. Asked again, the signal reaches the program as it is.
    End(Signal),
    /// Pass a signal on to the program.
    PassOn(Signal),
}

/// How an old process makes room for the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swap {
    /// The new one starts beside the old one, which ends when the new one is ready.
    #[default]
    Overlap,
    /// The old one ends first; if the new one fails, the old value is started again.
    StopThenStart,
}

impl std::str::FromStr for Swap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "overlap" => Ok(Self::Overlap),
            "stop-then-start" => Ok(Self::StopThenStart),
            _ => Err("expected `overlap` or `stop-then-start`".to_owned()),
        }
    }
}

/// What happens to the program when the supervisor ends in any other way than by itself, such as by SIGKILL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDeath {
    /// It is killed, with everything in its process group.
    #[default]
    End,
    /// It goes on alone.
    Leave,
}

impl std::str::FromStr for OnDeath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "end" => Ok(Self::End),
            "leave" => Ok(Self::Leave),
            _ => Err("expected `end` or `leave`".to_owned()),
        }
    }
}

/// A socket to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `host:port`, both numbers.
    Tcp(SocketAddr),
    /// A path.
    Unix(PathBuf),
}

impl std::str::FromStr for Listen {
    type Err = String;

    /// Reads `127.0.0.1:8080`, `[::1]:8080` or `unix:/path`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
            return if path.is_absolute() { Ok(Self::Unix(path)) } else { Err("expected an absolute path after `unix:`".to_owned()) };
        }
        text.parse().map(Self::Tcp).map_err(|_| "expected `address:port` or `unix:/path`".to_owned())
    }
}

/// One environment variable from one field of the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// The name of the variable.
    pub name: String,
    /// The field.
    pub field: String,
}

impl std::str::FromStr for Variable {
    type Err = String;

    /// Reads `PGPASSWORD=password`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, field) = text.split_once('=').ok_or("expected `NAME=field`")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(plain) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err("a name has letters, digits and `_`, and does not begin with a digit".to_owned());
        }
        if name.starts_with("LISTEN_") || name == "NOTIFY_SOCKET" {
            return Err(format!("`{name}` belongs to the supervisor"));
        }
        if field.is_empty() {
            return Err("expected the name of a field after `=`".to_owned());
        }
        Ok(Self { name: name.to_owned(), field: field.to_owned() })
    }
}

/// What to run and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The rotation.
    pub rotation: String,
    /// The name of this instance.
    pub instance: String,
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Sockets to own and hand on, from descriptor 3 upwards, as `LISTEN_FDS` says.
    pub listen: Vec<Listen>,
    /// Hand the first socket on as standard input too, for programs that expect it there.
    pub socket_as_stdin: bool,
    /// Variables to set.
    pub variables: Vec<Variable>,
    /// How a new process shows that it is ready.
    pub ready: Ready,
    /// Time for a new process to be ready.
    pub ready_deadline: Duration,
    /// How an old process makes room for the new one.
    pub swap: Swap,
    /// Start a program again that ended before it was ever ready, instead of ending with its code.
    pub restart: bool,
    /// What happens to the program when the supervisor is killed.
    pub on_death: OnDeath,
    /// Ask again and again what the server has refused for good, instead of ending.
    pub wait: bool,
    /// Time for an old process to drain before it is killed.
    pub drain_deadline: Duration,
    /// A program, with first arguments, that calls [`crate::shim::run`] with the rest: `keyward exec-shim --`.
    pub shim: Vec<OsString>,
    /// Where to make a folder for the notification sockets.
    pub runtime_folder: PathBuf,
    /// How to watch.
    pub watch: WatchOptions,
}

impl Options {
    /// A command under a rotation, without sockets and variables, with the usual deadlines.
    #[must_use]
    pub fn new(rotation: &str, instance: &str, command: Vec<OsString>, shim: Vec<OsString>) -> Self {
        Self {
            rotation: rotation.to_owned(),
            instance: instance.to_owned(),
            command,
            listen: Vec::new(),
            socket_as_stdin: false,
            variables: Vec::new(),
            ready: Ready::Auto,
            ready_deadline: Duration::from_secs(30),
            swap: Swap::default(),
            restart: false,
            on_death: OnDeath::default(),
            wait: false,
            drain_deadline: Duration::from_secs(60),
            shim,
            runtime_folder: std::env::temp_dir(),
            watch: WatchOptions::default(),
        }
    }
}

/// Runs the program until it ends by itself or is asked to, and returns the code to exit with: the program's own, or 128 and
/// the number of the signal that ended it.
///
/// # Errors
/// [`Error`] when a socket cannot be opened, and when the server refuses the rotation or the secret lacks a field, before the
/// program was ever started.
pub async fn supervise(client: Client, options: Options, asks: mpsc::UnboundedReceiver<Ask>) -> Result<u8, Error> {
    let opened = open(&options)?;
    supervise_opened(client, options, opened, asks).await
}

/// The sockets of a run, already listening.
pub struct Opened {
    sockets: Vec<Socket>,
    /// Where, with the ports that were chosen.
    pub addresses: Vec<SocketAddr>,
}

/// Opens the sockets of a run. From here on connections wait instead of being refused.
///
/// # Errors
/// [`Error::Listen`], [`Error::Unsafe`].
pub fn open(options: &Options) -> Result<Opened, Error> {
    let mut opened = Opened { sockets: Vec::new(), addresses: Vec::new() };
    for listen in &options.listen {
        match listen {
            Listen::Tcp(address) => {
                let failed = |source| Error::Listen { at: address.to_string(), source };
                let listener = std::net::TcpListener::bind(address).map_err(failed)?;
                rustix::net::listen(listener.as_fd(), BACKLOG).map_err(|error| failed(error.into()))?;
                opened.addresses.push(listener.local_addr().map_err(failed)?);
                opened.sockets.push(Socket::Tcp(listener));
            }
            Listen::Unix(path) => {
                let failed = |source| Error::Listen { at: path.display().to_string(), source };
                match std::fs::symlink_metadata(path) {
                    Ok(found) if found.file_type().is_socket() && found.uid() == rustix::process::geteuid().as_raw() => {
                        if is_heard(path).map_err(|error| failed(error.into()))? {
                            return Err(failed(rustix::io::Errno::ADDRINUSE.into()));
                        }
                        std::fs::remove_file(path).map_err(failed)?;
                    }
                    Ok(_) => return Err(Error::Unsafe { path: path.clone(), why: "is in the way and not a socket of ours" }),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(error)),
                }
                let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
                rustix::net::listen(listener.as_fd(), BACKLOG).map_err(|error| failed(error.into()))?;
                opened.sockets.push(Socket::Unix(listener, path.clone()));
            }
        }
    }
    Ok(opened)
}

/// Whether somebody listens on a socket. It must not be taken from them: a port could not be either.
fn is_heard(path: &Path) -> rustix::io::Result<bool> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let asking = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(connect(&asking, &SocketAddrUnix::new(path)?) != Err(rustix::io::Errno::CONNREFUSED))
}

/// [`supervise`] with sockets that were opened before.
///
/// # Errors
/// As [`supervise`].
pub async fn supervise_opened(
    client: Client,
    options: Options,
    opened: Opened,
    mut asks: mpsc::UnboundedReceiver<Ask>,
) -> Result<u8, Error> {
    if options.command.is_empty() {
        return Err(Error::Config("no command to run".to_owned()));
    }
    let handed = opened.sockets.iter().map(Socket::endpoint).collect::<Result<Vec<_>, _>>();
    let handed = handed.map_err(|source| Error::Listen { at: "a socket that was opened".to_owned(), source })?;
    for endpoint in &handed {
        tracing::info!(at = %endpoint, "listening");
    }
    let folder = Folder::make(&options.runtime_folder)?;
    let plan = Plan {
        shim: options.shim.clone(),
        command: options.command.clone(),
        sockets: opened.sockets,
        handed: handed.into(),
        socket_as_stdin: options.socket_as_stdin,
        folder: folder.0.clone(),
        guard: (options.on_death == OnDeath::End).then(|| spawn::Guard::new(&options.shim)),
        drain_deadline: options.drain_deadline,
    };
    let (supervisor, switch, inbox, messages) = Supervisor::new(&options, plan, folder);
    let orphans = Orphans::start();
    let consumer = Consumer::start(client, &options.instance, vec![(options.rotation.clone(), switch)], options.watch.clone());
    let ended = supervisor.run(messages);
    tokio::pin!(ended);
    let mut listening = true;
    let code = loop {
        tokio::select! {
            code = &mut ended => break code,
            ask = asks.recv(), if listening => match ask {
                Some(ask) => inbox.send(supervisor::Message::Asked(ask)).unwrap_or_default(),
                None => listening = false,
            },
            refusal = consumer.refused(), if !options.wait => {
                // Nothing was ever started, and the server does not know this instance.
                consumer.stop().await;
                return Err(Error::Refused { rotations: vec![options.rotation], instance: options.instance, refusal });
            }
        }
    };
    consumer.close().await;
    drop(orphans);
    code
}

/// Waits for the orphans of a container, for as long as it exists.
struct Orphans(Option<tokio::task::JoinHandle<()>>);

impl Orphans {
    fn start() -> Self {
        if !spawn::is_init() {
            return Self(None);
        }
        let mut children = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child()) {
            Ok(children) => children,
            Err(error) => {
                tracing::error!(%error, "orphans of this container are not waited for");
                return Self(None);
            }
        };
        Self(Some(tokio::spawn(async move {
            while children.recv().await.is_some() {
                spawn::reap_orphans();
            }
        })))
    }
}

impl Drop for Orphans {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// A folder of our own that goes when the run ends.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn make(below: &Path) -> Result<Self, Error> {
        let mut random = [0; 8];
        crypto::rng::SystemRng::new().fill(&mut random).map_err(|_| Error::Config("the source of randomness failed".to_owned()))?;
        let path = below.join(format!("keyward-run-{}", crypto::encode::hex(&random)));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| Error::File { doing: "make the folder", path: path.clone(), source })?;
        Ok(Self(path))
    }

    /// Whether it is there, and the one that was made: others can take a name that has become free.
    pub(crate) fn is_ours(&self) -> bool {
        let found = std::fs::symlink_metadata(&self.0);
        found.is_ok_and(|found| {
            found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.permissions().mode() & 0o777 == 0o700
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.is_ours()
            && let Err(error) = std::fs::remove_dir_all(&self.0)
        {
            tracing::warn!(%error, folder = %self.0.display(), "could not remove the folder of the notification sockets");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_sockets_are_read_strictly() {
        for (text, ok) in [
            ("PGUSER=username", true),
            ("_x1=a.b", true),
            ("PGUSER", false),
            ("=username", false),
            ("PGUSER=", false),
            ("1A=x", false),
            ("A-B=x", false),
            ("LISTEN_FDS=x", false),
            ("NOTIFY_SOCKET=x", false),
        ] {
            assert_eq!(text.parse::<Variable>().is_ok(), ok, "{text}");
        }
        for (text, ok) in [
            ("127.0.0.1:0", true),
            ("[::1]:80", true),
            ("unix:/run/x", true),
            ("unix:///run/x", true),
            ("unix:x", false),
            ("host:80", false),
        ] {
            assert_eq!(text.parse::<Listen>().is_ok(), ok, "{text}");
        }
    }
}
