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

    /// Signals the process, its group, and everything that it has started.
    pub(crate) fn signal_all(&self, signal: Signal) {
        let Some(pid) = self.pid else { return };
        for below in descendants(pid) {
            kill_process(below, signal).unwrap_or_default();
        }
        kill_process_group(pid, signal).unwrap_or_default();
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
        self.signal_all(Signal::KILL);
    }
}

/// The processes below this one.
fn descendants(pid: Pid) -> Vec<Pid> {
    let pairs: Vec<(Pid, Pid)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
            parent_of(&stat)
        })
        .collect();
    let mut found = vec![pid];
    let mut seen = 0;
    while let Some(parent) = found.get(seen).copied() {
        found.extend(pairs.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        seen += 1;
    }
    found.remove(0);
    found
}

/// A process and its parent by a line of `/proc/*/stat`, where the name may hold anything.
fn parent_of(stat: &str) -> Option<(Pid, Pid)> {
    let (pid, rest) = stat.split_once(" (")?;
    let parent = rest.rsplit_once(") ")?.1.split(' ').nth(1)?;
    Some((Pid::from_raw(pid.parse().ok()?)?, Pid::from_raw(parent.parse().ok()?)?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read_whatever_the_name() {
        for (line, expect) in
            [("12 (sh) S 7 12 12 0", Some((12, 7))), ("12 (a) S 9 (b) c) S 7 12", Some((12, 7))), ("1 (init) S 0 1", None), ("", None)]
        {
            assert_eq!(parent_of(line).map(|(a, b)| (a.as_raw_pid(), b.as_raw_pid())), expect, "{line}");
        }
    }

    #[test]
    fn children_of_children_are_found() {
        let mut child = std::process::Command::new("sh").args(["-c", "sleep 60 & wait"]).process_group(0).spawn().unwrap();
        let pid = Pid::from_child(&child);
        let below = loop {
            let below = descendants(pid);
            if !below.is_empty() {
                break below;
            }
            std::thread::yield_now();
        };
        assert_eq!(below.len(), 1);
        assert!(descendants(Pid::from_raw(i32::try_from(std::process::id()).unwrap()).unwrap()).contains(&below[0]));
        kill_process_group(pid, Signal::KILL).unwrap();
        child.wait().unwrap();
    }
}
