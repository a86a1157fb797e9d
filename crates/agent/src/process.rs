//! One child process: started with sockets and secrets, watched until it is ready and until it ends.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{Pid, Signal};
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::Error;

/// The first descriptor that a program is handed (`SD_LISTEN_FDS_START`).
const FIRST_DESCRIPTOR: i32 = 3;
/// Never handed on: what speaks to the supervisor itself, and the ways to its own token.
const WITHHELD: &[&str] = &[
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "KEYWARD_TOKEN",
    "VAULT_TOKEN",
    "BAO_TOKEN",
];
/// Bytes of one notification at most.
const NOTICE_BYTES_MAX: usize = 4 << 10;

/// A socket that the supervisor owns.
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    fn handle(&self) -> std::io::Result<OwnedFd> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(OwnedFd::from),
            Self::Unix(listener) => listener.try_clone().map(OwnedFd::from),
        }
    }
}

/// What every start has in common.
pub(crate) struct Plan {
    /// A program and its first arguments that become the command: the shim.
    pub(crate) shim: Vec<OsString>,
    pub(crate) command: Vec<OsString>,
    pub(crate) sockets: Vec<Socket>,
    /// The first socket also as standard input.
    pub(crate) socket_as_stdin: bool,
    /// A folder of our own for notification sockets.
    pub(crate) folder: PathBuf,
}

/// Something that happened to a process.
#[derive(Debug)]
pub(crate) enum Happened {
    /// It says that it is ready.
    Ready,
    /// It is gone.
    Ended(ExitStatus),
}

/// A handle of a running process. Dropped, it kills the process.
pub(crate) struct Process {
    pub(crate) number: u64,
    signals: mpsc::UnboundedSender<Signal>,
    _task: Guard,
}

struct Guard(tokio::task::JoinHandle<()>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Plan {
    /// Starts the command as process `number` with additional environment variables. What happens to it is told to `tell`.
    pub(crate) fn start(
        &self,
        number: u64,
        environment: &[(String, String)],
        tell: impl Fn(u64, Happened) + Send + 'static,
    ) -> Result<Process, Error> {
        let program = self.command.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let failed = |source| Error::Start { program: program.clone(), source };
        let (shim, first) = self.shim.split_first().ok_or_else(|| Error::Config("no shim".to_owned()))?;

        let at = self.folder.join(format!("notify-{number}"));
        let notices = UnixDatagram::bind(&at).map_err(failed)?;

        let mut command = std::process::Command::new(shim);
        command.args(first).args(&self.command);
        for name in WITHHELD {
            command.env_remove(name);
        }
        command.envs(environment.iter().map(|(name, value)| (name, value))).env("NOTIFY_SOCKET", &at);
        let mut mappings = Vec::new();
        for (socket, child_fd) in self.sockets.iter().zip(FIRST_DESCRIPTOR..) {
            mappings.push(FdMapping { parent_fd: socket.handle().map_err(failed)?, child_fd });
        }
        if !mappings.is_empty() {
            command.env("LISTEN_FDS", mappings.len().to_string());
        }
        command.fd_mappings(mappings).map_err(|error| failed(std::io::Error::other(error)))?;
        let mut command = Command::from(command);
        match self.sockets.first().filter(|_| self.socket_as_stdin) {
            Some(socket) => command.stdin(Stdio::from(socket.handle().map_err(failed)?)),
            None => command.stdin(Stdio::null()),
        };
        let child = command.process_group(0).kill_on_drop(true).spawn().map_err(failed)?;

        let (signals, asked) = mpsc::unbounded_channel();
        let task = tokio::spawn(follow(child, notices, at, asked, move |happened| tell(number, happened)));
        Ok(Process { number, signals, _task: Guard(task) })
    }
}

impl Process {
    /// Sends a signal, if the process still exists. SIGKILL goes to everything that it started and kept in its group.
    pub(crate) fn signal(&self, signal: Signal) {
        // A closed channel means that it is gone, which has been told already.
        self.signals.send(signal).unwrap_or_default();
    }
}

/// Watches a child to its end. Signals are sent from here only, before it is reaped, so that its number cannot be another's.
async fn follow(
    mut child: Child,
    notices: UnixDatagram,
    at: PathBuf,
    mut signals: mpsc::UnboundedReceiver<Signal>,
    tell: impl Fn(Happened) + Send,
) {
    let mut notice = vec![0; NOTICE_BYTES_MAX];
    let mut told = false;
    let mut deaf = false;
    let status = loop {
        tokio::select! {
            biased;
            // Read to the end: a client that sends `BARRIER=1` waits until the descriptor that came with it is closed, which
            // the kernel does with one that nobody takes.
            received = notices.recv(&mut notice), if !deaf => {
                deaf = received.is_err();
                let text = received.ok().and_then(|length| notice.get(..length)).unwrap_or_default();
                if !told && text.split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                    told = true;
                    tell(Happened::Ready);
                }
            }
            status = child.wait() => break status,
            Some(signal) = signals.recv() => send(&child, signal),
        }
    };
    remove(&at);
    match status {
        Ok(status) => tell(Happened::Ended(status)),
        Err(error) => tracing::error!(%error, "could not wait for a child process"),
    }
}

fn send(child: &Child, signal: Signal) {
    let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) else { return };
    let sent =
        if signal == Signal::KILL { rustix::process::kill_process_group(pid, signal) } else { rustix::process::kill_process(pid, signal) };
    if let Err(error) = sent {
        tracing::warn!(%error, ?signal, "could not signal a child process");
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(%error, "could not remove a notification socket");
    }
}
