//! Starting, watching and ending the server's processes.
//!
//! The kernel ends a child with the *thread* that made it (`PR_SET_PDEATHSIG`), so a keeper thread makes the child and
//! stays until it is gone. Whoever kills the owner with -9 thereby also ends its cluster.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, SyncSender};
use std::thread;

pub(super) use rustix::process::Signal;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, kill_process, pidfd_open};

use super::account::{Account, setpriv};
use super::files::Home;
use super::programs::Programs;
use super::{Error, PATIENCE};

/// A program that answers `--version` later than this is not PostgreSQL.
const ANSWER_SECONDS_MAX: i64 = 10;
/// How much of a program's words an error repeats.
const SAID_BYTES_MAX: usize = 2_000;
/// How many changes in the data directory may pass before the server is ready.
const CHANGES_MAX: usize = 10_000;
/// The request for TLS of PostgreSQL's protocol: length 8, code 80877103. It is answered without authentication.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// A server process that has become ready.
pub(super) struct Running {
    child: Child,
    pidfd: OwnedFd,
    /// Dropping it lets the keeper thread end.
    _keeper: SyncSender<()>,
}

impl Running {
    pub(super) fn start(programs: &Programs, account: Option<&Account>, home: &Home) -> Result<Running, Error> {
        let data = home.data();
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC)
            .and_then(|watch| {
                let wanted = inotify::WatchFlags::CREATE
                    | inotify::WatchFlags::MODIFY
                    | inotify::WatchFlags::CLOSE_WRITE
                    | inotify::WatchFlags::MOVED_TO;
                inotify::add_watch(&watch, &data, wanted)?;
                Ok(watch)
            })
            .map_err(|source| Error::File { action: "watch", path: data.clone(), source: source.into() })?;
        let log_start = home.log_length()?;
        let (to_log, errors_to_log) = home.open_log()?;
        let mut command = command(&programs.postgres(), account);
        command
            .current_dir(home.directory())
            .arg("-D")
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(to_log)
            .stderr(errors_to_log)
            // A group of its own: an interrupt from the terminal is for the owner, which then stops the server.
            .process_group(0);
        let (child, keeper) = spawn_kept(command)?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).map_err(|source| system("open a pidfd", source.into()))?;
        let mut running = Running { child, pidfd, _keeper: keeper };
        running.wait_ready(&changes, home, log_start)?;
        Ok(running)
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), Error> {
        kill_process(Pid::from_child(&self.child), signal).map_err(|source| system("signal the server", source.into()))
    }

    /// Sends the signal and waits for the end.
    pub(super) fn stop(&mut self, signal: Signal) -> Result<(), Error> {
        if !self.is_alive() {
            return Ok(());
        }
        self.signal(signal)?;
        if !ready_within(&[&self.pidfd], PATIENCE.as_secs().cast_signed())? {
            return Err(Error::Patience { event: "the server to end" });
        }
        self.reap()
    }

    /// Kills the server and its children: none of them gets to say or write anything more.
    pub(super) fn kill(&mut self) -> Result<(), Error> {
        if !self.is_alive() {
            return Ok(());
        }
        let server = Pid::from_child(&self.child);
        // Stopped, it cannot make children that we would miss.
        self.signal(Signal::STOP)?;
        let children: Vec<(Pid, OwnedFd)> = children_of(self.child.id())
            .into_iter()
            .filter_map(|child| Some((child, pidfd_open(child, PidfdFlags::empty()).ok()?)))
            .collect();
        self.signal(Signal::KILL)?;
        for (child, _) in &children {
            // It may have ended since we looked; its pidfd tells.
            kill_process(*child, Signal::KILL).ok();
        }
        let ends = std::iter::once(&self.pidfd).chain(children.iter().map(|(_, pidfd)| pidfd));
        for end in ends {
            if !ready_within(&[end], PATIENCE.as_secs().cast_signed())? {
                return Err(Error::Patience { event: "a killed process to end" });
            }
        }
        debug_assert_eq!(server, Pid::from_child(&self.child));
        self.reap()
    }

    fn reap(&mut self) -> Result<(), Error> {
        self.child.wait().map(drop).map_err(|source| system("wait for the server", source))
    }

    /// Waits until `postmaster.pid` says `ready` for this very process.
    fn wait_ready(&mut self, changes: &OwnedFd, home: &Home, log_start: u64) -> Result<(), Error> {
        let mut drained = [0u8; 4096];
        for _ in 0..CHANGES_MAX {
            if is_ready(&home.data(), self.child.id()) {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(Error::EndedEarly { status, said: tail(&home.read_log(log_start)?) });
            }
            if !ready_within(&[changes, &self.pidfd], PATIENCE.as_secs().cast_signed())? {
                return Err(Error::Patience { event: "the server to be ready" });
            }
            if ready_within(&[changes], 0)? {
                rustix::io::read(changes, &mut drained).map_err(|source| system("read inotify events", source.into()))?;
            }
        }
        Err(Error::Patience { event: "the server to be ready" })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill().ok();
    }
}

/// A command that runs as the account and ends with the thread that makes it. It inherits no environment: what the
/// owner holds there is nobody else's business.
pub(super) fn command(program: &Path, account: Option<&Account>) -> Command {
    let mut command = match (setpriv(), account) {
        (Some(setpriv), account) => {
            let mut command = Command::new(setpriv);
            if let Some(account) = account {
                command.arg(format!("--reuid={}", account.user)).arg(format!("--regid={}", account.group)).arg("--clear-groups");
            }
            command.args(["--pdeathsig", "QUIT", "--"]).arg(program);
            command
        }
        // Root without setpriv never comes here: `account::unprivileged` refuses.
        (None, _) => Command::new(program),
    };
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
    command
}

/// Runs a program to its end.
pub(super) fn run(program: &'static str, mut command: Command) -> Result<(), Error> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| system("run a program of PostgreSQL", source))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Program { program, status: output.status, said: tail(&String::from_utf8_lossy(&output.stderr)) })
}

/// What a program answers on standard output, if it answers soon and succeeds. For programs that may be anything.
pub(super) fn first_answer(mut command: Command) -> Option<String> {
    let mut child = command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let ended =
        pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok().and_then(|pidfd| ready_within(&[&pidfd], ANSWER_SECONDS_MAX).ok());
    if ended != Some(true) {
        child.kill().ok();
    }
    let status = child.wait().ok()?;
    if !status.success() {
        return None;
    }
    let mut answer = Vec::new();
    child.stdout?.take(4096).read_to_end(&mut answer).ok()?;
    String::from_utf8(answer).ok()
}

/// Asks the server whether it speaks TLS, and waits for the answer, whatever it is.
pub(super) fn knock(host: &str, port: u16) -> Result<(), Error> {
    let asked = || {
        let mut connection = TcpStream::connect((host, port))?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(&TLS_REQUEST)?;
        let mut answer = [0u8; 1];
        connection.read_exact(&mut answer)
    };
    asked().map_err(|source| system("get an answer from the server", source))
}

fn spawn_kept(mut command: Command) -> Result<(Child, SyncSender<()>), Error> {
    let (born, birth) = mpsc::sync_channel(1);
    let (keeper, until_dropped) = mpsc::sync_channel::<()>(0);
    thread::Builder::new()
        .name("postgres-keeper".to_owned())
        .spawn(move || {
            if born.send(command.spawn()).is_ok() {
                // Returns when the other end is dropped.
                until_dropped.recv().ok();
            }
        })
        .map_err(|source| system("start a thread", source))?;
    let child = birth
        .recv()
        .map_err(|source| system("start a thread", std::io::Error::other(source)))?
        .map_err(|source| system("start the server", source))?;
    Ok((child, keeper))
}

fn is_ready(data: &Path, id: u32) -> bool {
    fs::read_to_string(data.join("postmaster.pid")).is_ok_and(|text| says_ready(&text, id))
}

/// Line 1 is the process, line 8 its state. The file of a killed server may still say `ready`.
fn says_ready(text: &str, id: u32) -> bool {
    let mut lines = text.lines();
    lines.next().and_then(|line| line.trim().parse().ok()) == Some(id) && lines.nth(6).is_some_and(|state| state.trim() == "ready")
}

/// Whether one of these becomes readable in time. For a pidfd that is the end of its process.
fn ready_within(watched: &[&OwnedFd], seconds: i64) -> Result<bool, Error> {
    let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let mut polled: Vec<PollFd<'_>> = watched.iter().map(|one| PollFd::from_borrowed_fd(one.as_fd(), PollFlags::IN)).collect();
    loop {
        match poll(&mut polled, Some(&limit)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(source) => return Err(system("poll", source.into())),
        }
    }
}

fn children_of(parent: u32) -> Vec<Pid> {
    fs::read_dir("/proc")
        .map(|entries| {
            entries
                .flatten()
                .filter_map(|entry| {
                    let id: i32 = entry.file_name().to_str()?.parse().ok()?;
                    let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
                    (parent_in(&stat)? == parent).then(|| Pid::from_raw(id)).flatten()
                })
                .collect()
        })
        .unwrap_or_default()
}

/// The fourth field of `/proc/N/stat`; the second is a name in parentheses that may hold anything.
fn parent_in(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

fn tail(text: &str) -> String {
    let text = text.trim_end();
    let start = (text.len().saturating_sub(SAID_BYTES_MAX)..=text.len()).find(|at| text.is_char_boundary(*at));
    start.and_then(|at| text.get(at..)).unwrap_or_default().to_owned()
}

fn system(action: &'static str, source: std::io::Error) -> Error {
    Error::System { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_belongs_to_one_process() {
        let file = |state: &str| format!("4242\n/d/data\n1700000000\n20001\n/d/s\n127.0.0.1\n  123 456\n{state}\n");
        for (text, id, expected) in [
            (file("ready   "), 4242, true),
            (file("ready   "), 4243, false),
            (file("starting"), 4242, false),
            (file("standby "), 4242, false),
            ("4242\n/d/data\n".to_owned(), 4242, false),
            (String::new(), 4242, false),
        ] {
            assert_eq!(says_ready(&text, id), expected, "{text}");
        }
    }

    #[test]
    fn a_name_cannot_forge_a_parent() {
        assert_eq!(parent_in("7 (postgres) S 42 7 7 0 -1"), Some(42));
        assert_eq!(parent_in("7 (a) S 1 (b) S 42 7 7"), Some(42));
        assert_eq!(parent_in("7 (postgres"), None);
    }

    #[test]
    fn an_error_repeats_the_end_and_splits_no_character() {
        assert_eq!(tail("short\n"), "short");
        let long = format!("{}{}", "é".repeat(3_000), "end");
        let kept = tail(&long);
        assert!(kept.ends_with("end") && kept.len() <= SAID_BYTES_MAX, "{}", kept.len());
    }

    #[test]
    fn a_child_sees_nothing_of_our_environment() {
        // PATH is surely set here and differs from the child's.
        let mut asked = command(Path::new("/usr/bin/env"), None);
        asked.arg("-0");
        let answer = first_answer(asked).unwrap();
        let mut names: Vec<&str> = answer.split_terminator('\0').filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "PATH"]);
    }

    #[test]
    fn a_failing_program_answers_nothing() {
        let mut asked = command(Path::new("/bin/sh"), None);
        asked.args(["-c", "echo postgres; exit 3"]);
        assert_eq!(first_answer(asked), None);
    }
}
