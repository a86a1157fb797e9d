//! One child process: started with sockets and secrets, watched until it is ready and until it ends, with everything that it
//! started.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::net::UnixDatagram;
use tokio::signal::unix::{Signal as ChildSignals, SignalKind, signal};

use crate::notify::Notice;
use crate::ready::{self, Endpoint, How, Ready, Subject, View};
use crate::{Error, proc, shim, spawn};

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
/// How often it is looked whether the rest of a program has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long a program is left to work between two looks at whether it is idle: enough for what it has begun, hardly more.
const WORK: Duration = Duration::from_millis(1);
/// Looks for which it is believed that a program has the same processes, and the same sockets beside its connections.
const LOOKS_TRUSTED: u32 = 50;
/// How long an idle moment is waited for before a program that handles SIGTERM gets it.
const IDLE_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked whether all of a program has stopped, and how many times.
const STOPPED_LOOK: (Duration, u32) = (Duration::from_millis(1), 200);

/// A socket that the supervisor owns.
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Socket {
    fn handle(&self) -> std::io::Result<OwnedFd> {
        match self {
            Self::Tcp(listener) => listener.try_clone().map(OwnedFd::from),
            Self::Unix(listener, _) => listener.try_clone().map(OwnedFd::from),
        }
    }

    /// Where it is.
    pub(crate) fn endpoint(&self) -> std::io::Result<Endpoint> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Endpoint::Tcp),
            Self::Unix(_, path) => Ok(Endpoint::Unix(path.clone())),
        }
    }
}

/// What every start has in common.
pub(crate) struct Plan {
    /// A program and its first arguments that become the command: the shim.
    pub(crate) shim: Vec<OsString>,
    pub(crate) command: Vec<OsString>,
    pub(crate) sockets: Vec<Socket>,
    /// Where they are.
    pub(crate) handed: Arc<[Endpoint]>,
    /// The first socket also as standard input.
    pub(crate) socket_as_stdin: bool,
    /// A folder of our own for notification sockets.
    pub(crate) folder: PathBuf,
    /// Ends the program with this process, in whatever way this process ends.
    pub(crate) guard: Option<spawn::Guard>,
    /// Time for the rest of a program to end after its first process.
    pub(crate) drain_deadline: Duration,
}

/// What is different at each start.
pub(crate) struct Start<'a> {
    pub(crate) number: u64,
    pub(crate) environment: &'a [(String, String)],
    pub(crate) ready: Ready,
    /// Whether an older process may answer in its place.
    pub(crate) rival: bool,
    pub(crate) miss: ready::Miss,
}

/// Something that happened to a process.
#[derive(Debug)]
pub(crate) enum Happened {
    /// It says something.
    Said(Notice),
    /// It is seen to be ready.
    Ready(How),
    /// It is gone, and everything in its process group.
    Ended(ExitStatus),
}

/// A running process. Dropped, it is killed with everything in its group.
pub(crate) struct Process {
    pub(crate) number: u64,
    pub(crate) miss: ready::Miss,
    child: Arc<Child>,
    _task: Task,
}

struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The first process of a program, which leads a process group.
struct Child {
    pid: Pid,
    handle: OwnedFd,
    /// Whether it was waited for: its number may be somebody else's then.
    reaped: Mutex<bool>,
}

impl Plan {
    /// Starts the command with additional environment variables. What happens to it is told to `tell`.
    pub(crate) fn start(&self, start: Start<'_>, tell: impl Fn(u64, Happened) + Send + 'static) -> Result<Process, Error> {
        let program = self.command.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let failed = |source| Error::Start { program: program.clone(), source };
        let (shim, first) = self.shim.split_first().ok_or_else(|| Error::Config("no shim".to_owned()))?;

        let at = self.folder.join(format!("notify-{}", start.number));
        let notices = UnixDatagram::bind(&at).map_err(failed)?;

        let mut command = Command::new(shim);
        let bound = if self.guard.is_some() { shim::bound(std::process::id()) } else { shim::FREE.into() };
        command.args(first).arg(bound).args(&self.command);
        for name in WITHHELD {
            command.env_remove(name);
        }
        command.envs(start.environment.iter().map(|(name, value)| (name, value))).env("NOTIFY_SOCKET", &at);
        let mut mappings = Vec::new();
        for (socket, child_fd) in self.sockets.iter().zip(FIRST_DESCRIPTOR..) {
            mappings.push(FdMapping { parent_fd: socket.handle().map_err(failed)?, child_fd });
        }
        if !mappings.is_empty() {
            command.env("LISTEN_FDS", mappings.len().to_string());
        }
        command.fd_mappings(mappings).map_err(|error| failed(std::io::Error::other(error)))?;
        match self.sockets.first().filter(|_| self.socket_as_stdin) {
            Some(socket) => command.stdin(Stdio::from(socket.handle().map_err(failed)?)),
            None => command.stdin(Stdio::null()),
        };
        command.process_group(0);
        // From before the start: the end of a process that ends at once must not be missed.
        let ends = signal(SignalKind::child()).map_err(failed)?;
        let child = Arc::new(Child::start(command).map_err(failed)?);
        if let Some(guard) = &self.guard
            && let Err(error) = guard.add(child.pid)
        {
            tracing::warn!(%error, "the guard is not there: when this process is killed, only the first process of the program ends with it");
        }
        let subject = Subject { first: child.pid, handed: Arc::clone(&self.handed), rival: start.rival, miss: start.miss.clone() };
        let follow = Follow {
            child: Arc::clone(&child),
            ends,
            notices,
            at,
            speaks: matches!(start.ready, Ready::Auto),
            guard: self.guard.clone(),
            drain_deadline: self.drain_deadline,
        };
        let number = start.number;
        let seen = ready::watch(start.ready, subject);
        let task = tokio::spawn(async move { follow.run(seen, move |happened| tell(number, happened)).await });
        Ok(Process { number, miss: start.miss, child, _task: Task(task) })
    }
}

impl Process {
    /// Sends a signal, if the process still exists.
    ///
    /// SIGKILL, SIGSTOP, SIGTSTP and SIGCONT go to everything in its group, as a terminal would. Any other goes to the topmost
    /// processes of the program that handle it, or to the first process when nobody does.
    pub(crate) fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Whether the program has a handler for a signal.
    pub(crate) fn handles(&self, signal: Signal) -> bool {
        !proc::handlers(self.child.pid, signal).is_empty()
    }

    /// Asks a program to end at a moment at which it holds no connection from the sockets that it was handed.
    ///
    /// One that does not handle SIGTERM would break off what it does; it is waited for. One that handles it may do the same (so
    /// does Node without a handler in the script), or drain well: it is asked in any case after a short while.
    pub(crate) fn end_when_idle(&self, handed: Arc<[Endpoint]>, handles: bool) {
        let (child, number) = (Arc::clone(&self.child), self.number);
        tokio::spawn(async move {
            if !handles {
                return child.at_idle(number, &handed, Signal::KILL).await;
            }
            if tokio::time::timeout(IDLE_PATIENCE, child.at_idle(number, &handed, Signal::TERM)).await.is_err() {
                tracing::info!(process = number, "the old process is never without a connection: asking it to drain");
                child.signal(Signal::TERM);
                // It may have been stopped to be looked at.
                child.signal(Signal::CONT);
            }
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.signal(Signal::KILL);
    }
}

impl Child {
    fn start(command: Command) -> std::io::Result<Self> {
        let started = spawn::spawn(command)?;
        let pid = Pid::from_child(&started);
        let handle = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        Ok(Self { pid, handle, reaped: Mutex::new(false) })
    }

    fn signal(&self, signal: Signal) {
        let reaped = lock(&self.reaped);
        if *reaped {
            return;
        }
        let group = [Signal::KILL, Signal::STOP, Signal::TSTP, Signal::CONT].contains(&signal);
        let handlers = if group { Vec::new() } else { proc::handlers(self.pid, signal) };
        let sent = if group {
            kill_process_group(self.pid, signal)
        } else if handlers.is_empty() {
            pidfd_send_signal(&self.handle, signal)
        } else {
            handlers.iter().try_for_each(|one| one.signal(signal))
        };
        match sent {
            // It has ended, which is told in its own time.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::warn!(%error, ?signal, "could not signal a child process"),
        }
    }

    /// How it ended, if it has. It is not waited for, so that its number stays its own.
    fn ended(&self) -> rustix::io::Result<Option<ExitStatus>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(self.pid), options)?.map(exit_status))
    }

    fn reap(&self) {
        let mut reaped = lock(&self.reaped);
        spawn::reap(self.pid, || {
            if let Err(error) = waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
                tracing::warn!(%error, "could not wait for a child process");
            }
        });
        *reaped = true;
    }

    /// Sends a signal when the program holds no connection, or when that cannot be seen. All of it is stopped to look.
    ///
    /// A busy program is idle for moments only, so a look must be cheap: how many sockets it holds is counted, and whether one
    /// of them is a connection is looked up only when there are no more than it held beside its connections before.
    async fn at_idle(&self, number: u64, handed: &[Endpoint], signal: Signal) {
        let (mut members, mut beside) = (Vec::new(), None);
        for look in 0_u32.. {
            if *lock(&self.reaped) {
                return;
            }
            if look % LOOKS_TRUSTED == 0 {
                (members, beside) = (proc::program(self.pid), None);
            }
            self.signal(Signal::STOP);
            let idle = match self.idle(&members, &mut beside, handed).await {
                Ok(idle) => idle,
                Err(error) => {
                    tracing::warn!(process = number, %error, "it cannot be seen whether the old process is idle: ending it now");
                    self.signal(Signal::TERM);
                    return self.signal(Signal::CONT);
                }
            };
            if idle {
                tracing::info!(process = number, look, "the old process holds no connection: ending it");
                // While it is stopped, so that it takes no connection before it hears of it.
                self.signal(signal);
            }
            self.signal(Signal::CONT);
            if idle {
                return;
            }
            tokio::time::sleep(WORK).await;
        }
    }

    /// Whether a program that was asked to stop has stopped without a connection. `beside` is how many other sockets it holds.
    async fn idle(&self, members: &[proc::Stat], beside: &mut Option<usize>, handed: &[Endpoint]) -> std::io::Result<bool> {
        if !is_stopped(members).await {
            return Err(std::io::Error::other("it does not stop"));
        }
        let sockets = proc::sockets_of(members)?.len();
        if beside.is_some_and(|beside| sockets > beside) {
            return Ok(false);
        }
        let all = proc::program(self.pid);
        if !is_stopped(&all).await {
            return Err(std::io::Error::other("it does not stop"));
        }
        let view = View::of(self.pid).await?;
        let connections: usize = handed.iter().map(|from| view.accepted(from)).sum();
        *beside = Some(sockets.saturating_sub(connections));
        Ok(connections == 0)
    }
}

/// Waits until all of these have stopped, which none does while it is in the kernel.
async fn is_stopped(members: &[proc::Stat]) -> bool {
    for _ in 0..STOPPED_LOOK.1 {
        if members.iter().all(proc::Stat::is_still) {
            return true;
        }
        tokio::time::sleep(STOPPED_LOOK.0).await;
    }
    false
}

/// Watches a child to its end.
struct Follow {
    child: Arc<Child>,
    /// Ready when a child has ended.
    ends: ChildSignals,
    notices: UnixDatagram,
    at: PathBuf,
    /// Whether a program that says anything decides by its words alone.
    speaks: bool,
    guard: Option<spawn::Guard>,
    drain_deadline: Duration,
}

impl Follow {
    async fn run(mut self, seen: impl Future<Output = How> + Send, tell: impl Fn(Happened) + Send) {
        // Dropped when it has nothing more to say: it may hold connections to the program.
        let mut seen = Some(Box::pin(seen));
        let mut notice = vec![0; NOTICE_BYTES_MAX];
        let mut deaf = false;
        let status = loop {
            match self.child.ended() {
                Ok(Some(status)) => break status,
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "could not wait for a child process");
                    return;
                }
            }
            tokio::select! {
                biased;
                // Read to the end: a client that sends `BARRIER=1` waits until the descriptor that came with it is closed, which
                // the kernel does with one that nobody takes.
                received = self.notices.recv(&mut notice), if !deaf => {
                    deaf = received.is_err();
                    let text = received.ok().and_then(|length| notice.get(..length)).unwrap_or_default();
                    if let Some(notice) = Notice::parse(text) {
                        seen.take_if(|_| self.speaks);
                        tell(Happened::Said(notice));
                    }
                }
                how = the_one(&mut seen) => {
                    seen = None;
                    tell(Happened::Ready(how));
                }
                // Any child; which one is looked up above. It cannot stop coming while this runtime lives.
                _ = self.ends.recv() => {}
            }
        };
        // What it said last, before it ended.
        while let Ok(length) = self.notices.try_recv(&mut notice) {
            notice.get(..length).and_then(Notice::parse).into_iter().for_each(|notice| tell(Happened::Said(notice)));
        }
        self.end_the_rest().await;
        if let Some(guard) = &self.guard {
            guard.remove(self.child.pid);
        }
        self.child.reap();
        remove(&self.at);
        tell(Happened::Ended(status));
    }

    /// The first process has ended; what it left behind in its group holds the same value and the same sockets.
    async fn end_the_rest(&self) {
        let pid = self.child.pid;
        if proc::followers(pid).is_empty() {
            return;
        }
        tracing::info!("the first process of the program has ended: asking the others to end");
        kill_process_group(pid, Signal::TERM).unwrap_or_default();
        let gone = async {
            while !proc::followers(pid).is_empty() {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(self.drain_deadline, gone).await.is_err() {
            tracing::warn!("other processes of the program did not end in time: killing them");
        }
        // Whoever came in between, too.
        kill_process_group(pid, Signal::KILL).unwrap_or_default();
    }
}

/// What a future gives, as long as there is one.
async fn the_one<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn exit_status(status: WaitIdStatus) -> ExitStatus {
    let raw = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (code & 0xff) << 8,
        (None, Some(signal)) => signal & 0x7f,
        (None, None) => 0,
    };
    ExitStatus::from_raw(raw)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(%error, "could not remove a notification socket");
    }
}
