//! Children of the demonstration: each leads a process group of its own, and none outlives the demonstration.
//!
//! The kernel ends a child with the thread that made it. Children are therefore started on the main thread, through `keyward demo child`,
//! which asks for that end and then becomes the program that is wanted.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, kill_process, kill_process_group, set_parent_process_death_signal};
use tokio::process::Command;
use tokio::time::timeout;

/// A process and its group. Dropped, the group is killed.
pub(crate) struct Child {
    pub(crate) name: String,
    process: tokio::process::Child,
    pid: Option<Pid>,
    log: PathBuf,
}

/// What to start.
pub(crate) struct Start<'a> {
    pub(crate) name: &'a str,
    pub(crate) program: &'a Path,
    pub(crate) args: &'a [OsString],
    pub(crate) env: &'a [(&'a str, OsString)],
    /// The directory that takes its words.
    pub(crate) logs: &'a Path,
}

impl Child {
    /// Starts a program of ours. Call it on the main thread.
    pub(crate) fn start(start: &Start<'_>) -> io::Result<Self> {
        let log = start.logs.join(format!("{}.log", start.name));
        let words = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(start.program);
        command.args(["demo", "child", &std::process::id().to_string()]).arg(start.program).args(start.args);
        command.envs(start.env.iter().map(|(name, value)| (*name, value)));
        command.stdin(Stdio::null()).stdout(words.try_clone()?).stderr(words).process_group(0);
        let process = command.spawn()?;
        let pid = process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { name: start.name.to_owned(), process, pid, log })
    }

    /// Signals the process alone.
    pub(crate) fn signal(&self, signal: Signal) {
        // One that has ended needs no signal.
        self.pid.map(|pid| kill_process(pid, signal)).transpose().unwrap_or_default();
    }

    /// Signals the whole group.
    pub(crate) fn signal_group(&self, signal: Signal) {
        self.pid.map(|pid| kill_process_group(pid, signal)).transpose().unwrap_or_default();
    }

    /// Waits for the end; nothing when it does not come in time.
    pub(crate) async fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let status = timeout(limit, self.process.wait()).await.ok()?.ok()?;
        // Its number may belong to somebody else from now on.
        self.pid = None;
        Some(status)
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.process.try_wait().ok()??;
        self.pid = None;
        Some(status)
    }

    /// The end of what it said.
    pub(crate) fn said(&self) -> String {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(8)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal_group(Signal::KILL);
    }
}

/// `keyward demo child PARENT PROGRAM …`: asks the kernel to end this process with its parent and becomes the program. Returns only when
/// that fails.
pub(crate) fn become_program(parent: i32, command: &[OsString]) -> String {
    if let Err(e) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return format!("could not ask for an end with the parent: {e}");
    }
    if getppid().map(Pid::as_raw_pid) != Some(parent) {
        return "the parent is gone already".to_owned();
    }
    let Some((program, args)) = command.split_first() else { return "no program is named".to_owned() };
    let error = std::process::Command::new(program).args(args).exec();
    format!("could not start `{}`: {error}", program.display())
}
