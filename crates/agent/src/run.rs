//! `keyward run`: a program that gets its secrets in the environment, and is replaced when they change.
//!
//! The supervisor owns the listening sockets, so no connection is refused while the program changes. A new generation gets a
//! new process; only when that says it is ready is the generation acknowledged, and only then is the old process asked to
//! drain. A new process that ends or stays silent refuses the generation, and the old one goes on.
//!
//! One task owns all processes and reads one queue; nothing else decides.

use std::ffi::OsString;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use base::Rng;
use client::{Apply, Client, Consumer, Credential, Reason, WatchOptions};
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::process::{Happened, Plan, Process, Socket};
use crate::shim;

/// Connections that may wait while the program changes.
const BACKLOG: i32 = 1_024;
/// Waits between restarts of a program that crashes with the value in use.
const RESTART_MIN: Duration = Duration::from_millis(200);
/// The longest such wait.
const RESTART_MAX: Duration = Duration::from_secs(30);
/// A program that ran this long has not crashed at its start.
const RESTART_FORGET: Duration = Duration::from_secs(60);

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
    /// Time for a new process to say that it is ready.
    pub ready_deadline: Duration,
    /// Time for an old process to drain before it is killed.
    pub drain_deadline: Duration,
    /// A program, with first arguments, that calls [`crate::shim::become_command`] with the rest: `keyward exec-shim --`.
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
            ready_deadline: Duration::from_secs(30),
            drain_deadline: Duration::from_secs(60),
            shim,
            runtime_folder: std::env::temp_dir(),
            watch: WatchOptions::default(),
        }
    }
}

/// Runs the program until it ends by itself or `stop` resolves, and returns the code to exit with: the program's own, or
/// 128 and the number of the signal that ended it.
///
/// # Errors
/// [`Error`] when a socket cannot be opened.
pub async fn supervise(client: Client, options: Options, stop: impl Future<Output = ()> + Send) -> Result<u8, Error> {
    let opened = open(&options)?;
    supervise_opened(client, options, opened, stop).await
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
                opened.sockets.push(Socket::Unix(listener));
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
    stop: impl Future<Output = ()> + Send,
) -> Result<u8, Error> {
    if options.command.is_empty() {
        return Err(Error::Config("no command to run".to_owned()));
    }
    let folder = Folder::make(&options.runtime_folder)?;
    let plan = Plan {
        shim: options.shim.clone(),
        command: options.command.clone(),
        sockets: opened.sockets,
        socket_as_stdin: options.socket_as_stdin,
        folder: folder.0.clone(),
    };
    let (inbox, messages) = mpsc::unbounded_channel();
    let switch = Switch { inbox: inbox.clone(), variables: options.variables.clone() };
    let supervisor = Supervisor {
        plan,
        folder,
        runtime_folder: options.runtime_folder.clone(),
        ready_deadline: options.ready_deadline,
        drain_deadline: options.drain_deadline,
        inbox: inbox.clone(),
        last_number: 0,
        value: None,
        running: None,
        candidate: None,
        retiring: Vec::new(),
        unsettled: Vec::new(),
        restart_wait: RESTART_MIN,
        stopping: None,
    };
    let consumer = Consumer::start(client, &options.instance, vec![(options.rotation, switch)], options.watch);
    let ended = supervisor.run(messages);
    tokio::pin!(ended);
    let code = tokio::select! {
        code = &mut ended => code,
        () = stop => {
            inbox.send(Message::Stop).unwrap_or_default();
            ended.await
        }
    };
    consumer.close().await;
    Ok(code)
}

/// A folder of our own that goes when the run ends.
struct Folder(PathBuf);

impl Folder {
    fn make(below: &Path) -> Result<Self, Error> {
        let mut random = [0; 8];
        crypto::rng::SystemRng::new().fill(&mut random).map_err(|_| Error::Config("the source of randomness failed".to_owned()))?;
        let path = below.join(format!("keyward-run-{}", crypto::encode::hex(&random)));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| Error::File { doing: "make the folder", path: path.clone(), source })?;
        Ok(Self(path))
    }

    /// Whether it is there, and the one that was made: others can take a name that has become free.
    fn is_ours(&self) -> bool {
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

/// What the consumer asks of the supervisor.
struct Switch {
    inbox: mpsc::UnboundedSender<Message>,
    variables: Vec<Variable>,
}

impl Apply for Switch {
    async fn apply(&mut self, candidate: &Arc<Credential>) -> Result<(), Reason> {
        let value = environment(&self.variables, candidate)?;
        let (answer, answered) = oneshot::channel();
        let start = Message::Start { generation: candidate.generation(), value: Arc::new(value), answer };
        self.inbox.send(start).map_err(|_| Reason::not_yet("the supervisor is gone"))?;
        match answered.await {
            Ok(done) => done,
            // The supervisor is ending and decides no more: there is nothing to say about the value.
            Err(_) => std::future::pending().await,
        }
    }

    async fn settle(&mut self) {
        self.inbox.send(Message::Settle).unwrap_or_default();
    }
}

/// The variables of one generation. Wiped when they go.
struct Environment(Vec<(String, String)>);

impl Drop for Environment {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|(_, value)| drop(base::SecretString::new(value)));
    }
}

fn environment(variables: &[Variable], credential: &Credential) -> Result<Environment, Reason> {
    let mut set = Environment(Vec::with_capacity(variables.len()));
    for Variable { name, field } in variables {
        let value = credential.field(field).ok_or_else(|| Reason::new(format!("the value has no field `{field}`")))?;
        if value.contains('\0') {
            return Err(Reason::new(format!("the field `{field}` cannot stand in an environment variable")));
        }
        set.0.push((name.clone(), value.to_owned()));
    }
    Ok(set)
}

enum Message {
    Start { generation: u64, value: Arc<Environment>, answer: oneshot::Sender<Result<(), Reason>> },
    Settle,
    Happened(u64, Happened),
    ReadyOverdue(u64),
    DrainOverdue(u64),
    Restart,
    Stable(u64),
    Stop,
}

struct Candidate {
    process: Process,
    generation: u64,
    value: Arc<Environment>,
    answer: oneshot::Sender<Result<(), Reason>>,
}

struct Supervisor {
    plan: Plan,
    /// Where the notification sockets are, and where to make another folder when that one is gone.
    folder: Folder,
    runtime_folder: PathBuf,
    ready_deadline: Duration,
    drain_deadline: Duration,
    inbox: mpsc::UnboundedSender<Message>,
    last_number: u64,
    /// The generation and variables in use.
    value: Option<(u64, Arc<Environment>)>,
    running: Option<Process>,
    candidate: Option<Candidate>,
    /// Replaced, still serving what it accepted, until the generation is acknowledged.
    unsettled: Vec<Process>,
    /// Asked to drain.
    retiring: Vec<Process>,
    restart_wait: Duration,
    /// The code to end with, known when the running process ended.
    stopping: Option<Option<u8>>,
}

impl Supervisor {
    async fn run(mut self, mut messages: mpsc::UnboundedReceiver<Message>) -> u8 {
        while let Some(message) = messages.recv().await {
            if let Some(code) = self.hear(message) {
                return code;
            }
        }
        // Unreachable while `self` holds a sender; ending is the only sane answer.
        0
    }

    /// Handles one message; a code means that everything is over.
    fn hear(&mut self, message: Message) -> Option<u8> {
        match message {
            Message::Start { .. } if self.stopping.is_some() => {}
            Message::Start { generation, value, answer } => self.start(generation, value, answer),
            Message::Settle => self.settle(),
            Message::Happened(number, Happened::Ready) => self.ready(number),
            Message::Happened(number, Happened::Ended(status)) => return self.ended(number, status),
            Message::ReadyOverdue(number) => self.overdue(number),
            Message::DrainOverdue(number) => {
                if let Some(process) = self.retiring.iter().chain(&self.running).find(|process| process.number == number) {
                    tracing::warn!(process = number, "the process did not drain in time: killing it");
                    process.signal(Signal::KILL);
                }
            }
            Message::Restart => self.restart(),
            Message::Stable(number) => {
                if self.running.as_ref().is_some_and(|process| process.number == number) {
                    self.restart_wait = RESTART_MIN;
                }
            }
            Message::Stop => return self.stop(),
        }
        None
    }

    fn start(&mut self, generation: u64, value: Arc<Environment>, answer: oneshot::Sender<Result<(), Reason>>) {
        match self.spawn(&value) {
            Ok(process) => {
                tracing::info!(generation, process = process.number, "starting a process with the new value");
                self.later(self.ready_deadline, Message::ReadyOverdue(process.number));
                self.candidate = Some(Candidate { process, generation, value, answer });
            }
            Err(error) => say(answer, Err(Reason::new(client::explain(&error)))),
        }
    }

    fn ready(&mut self, number: u64) {
        let Some(candidate) = self.candidate.take_if(|candidate| candidate.process.number == number) else { return };
        tracing::info!(generation = candidate.generation, process = number, "ready");
        self.unsettled.extend(self.running.replace(candidate.process));
        self.value = Some((candidate.generation, candidate.value));
        self.restart_wait = RESTART_MIN;
        say(candidate.answer, Ok(()));
    }

    fn settle(&mut self) {
        for process in std::mem::take(&mut self.unsettled) {
            self.retire(process);
        }
    }

    fn retire(&mut self, process: Process) {
        tracing::info!(process = process.number, "asking the old process to drain");
        process.signal(Signal::TERM);
        self.later(self.drain_deadline, Message::DrainOverdue(process.number));
        self.retiring.push(process);
    }

    fn overdue(&mut self, number: u64) {
        let Some(candidate) = self.candidate.take_if(|candidate| candidate.process.number == number) else { return };
        // Killed now, gone when its end is heard.
        candidate.process.signal(Signal::KILL);
        self.retiring.push(candidate.process);
        say(candidate.answer, Err(Reason::new(format!("the new process was not ready within {:?}", self.ready_deadline))));
    }

    fn ended(&mut self, number: u64, status: ExitStatus) -> Option<u8> {
        self.unsettled.retain(|process| process.number != number);
        self.retiring.retain(|process| process.number != number);
        if let Some(candidate) = self.candidate.take_if(|candidate| candidate.process.number == number)
            && self.stopping.is_none()
        {
            // A value that a typing mistake kept from being tried is not refused.
            if self.value.is_none() && shim::is_no_program(status) {
                self.stopping = Some(Some(code(status)));
            } else {
                say(candidate.answer, Err(Reason::new(format!("the new process ended with {status} before it was ready"))));
            }
        }
        if self.running.take_if(|process| process.number == number).is_some() {
            if let Some(end) = &mut self.stopping {
                *end = Some(code(status));
            } else if status.success() && self.candidate.is_none() {
                tracing::info!(process = number, "the program ended by itself");
                self.stopping = Some(Some(0));
                self.stop_all();
            } else {
                let wait = self.restart_wait;
                self.restart_wait = (wait * 2).min(RESTART_MAX);
                let restart_ms = wait.as_millis();
                if status.success() {
                    tracing::warn!(process = number, %status, restart_ms, "the program ended before the next one was ready");
                } else {
                    tracing::warn!(process = number, %status, restart_ms, "the program crashed");
                }
                self.later(wait, Message::Restart);
            }
        }
        self.finished()
    }

    fn restart(&mut self) {
        if self.stopping.is_some() || self.running.is_some() {
            return;
        }
        let Some((generation, value)) = &self.value else { return };
        let (generation, value) = (*generation, Arc::clone(value));
        match self.spawn(&value) {
            Ok(process) => {
                tracing::info!(generation, process = process.number, "started again with the value in use");
                self.later(RESTART_FORGET, Message::Stable(process.number));
                self.running = Some(process);
            }
            Err(error) => {
                let wait = self.restart_wait;
                self.restart_wait = (wait * 2).min(RESTART_MAX);
                tracing::warn!(error = client::explain(&error), restart_ms = wait.as_millis(), "could not start the program again");
                self.later(wait, Message::Restart);
            }
        }
    }

    fn stop(&mut self) -> Option<u8> {
        if self.stopping.is_none() {
            self.stopping = Some(None);
            self.stop_all();
        }
        self.finished()
    }

    fn stop_all(&mut self) {
        self.settle();
        if let Some(candidate) = self.candidate.take() {
            self.retire(candidate.process);
        }
        // The running process stays in its place: its code is the one to end with.
        if let Some(process) = &self.running {
            process.signal(Signal::TERM);
            self.later(self.drain_deadline, Message::DrainOverdue(process.number));
        }
    }

    /// The code, when everything is over.
    fn finished(&self) -> Option<u8> {
        let over = self.running.is_none() && self.candidate.is_none() && self.unsettled.is_empty() && self.retiring.is_empty();
        self.stopping.filter(|_| over).map(|code| code.unwrap_or(0))
    }

    fn spawn(&mut self, value: &Environment) -> Result<Process, Error> {
        if !self.folder.is_ours() {
            // Somebody tidied up. The program must be started all the same.
            self.folder = Folder::make(&self.runtime_folder)?;
            self.plan.folder.clone_from(&self.folder.0);
        }
        self.last_number += 1;
        let inbox = self.inbox.clone();
        self.plan.start(self.last_number, &value.0, move |number, happened| {
            inbox.send(Message::Happened(number, happened)).unwrap_or_default();
        })
    }

    fn later(&self, after: Duration, message: Message) {
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            inbox.send(message).unwrap_or_default();
        });
    }
}

/// Answers a candidate; a consumer that was closed meanwhile does not want to know.
fn say(answer: oneshot::Sender<Result<(), Reason>>, done: Result<(), Reason>) {
    answer.send(done).unwrap_or_default();
}

fn code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
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

    #[test]
    fn a_missing_or_impossible_field_is_a_refusal_without_the_value() {
        let credential = Credential::from_fields(1, &[("username", "u"), ("password", "hunter\0two")]);
        let variables = |text: &str| vec![text.parse::<Variable>().unwrap()];
        assert_eq!(environment(&variables("A=username"), &credential).unwrap().0, [("A".to_owned(), "u".to_owned())]);
        for text in ["A=nope", "A=password"] {
            let reason = environment(&variables(text), &credential).err().unwrap();
            assert!(!format!("{reason:?}").contains("hunter"));
        }
    }
}
