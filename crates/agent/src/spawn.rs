//! Where child processes come from, and who makes sure that none is left behind.
//!
//! - All are started on one thread that lives as long as this process: the kernel ends a child that asked for it with the
//!   *thread* that started it.
//! - A guard, a small process of its own, holds one end of a pipe. When this process ends in whatever way, the guard reads the
//!   end of the pipe and kills the process groups that are still there: the kernel ends only the first process of a program.
//! - As the first process of a PID namespace this process inherits everybody whose parent has ended, and waits for them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use rustix::process::{Pid, WaitId, WaitIdOptions, getpid, waitid};

use crate::{proc, shim};

/// Where commands are sent to be started.
static STARTER: Mutex<Option<mpsc::Sender<Job>>> = Mutex::new(None);
/// The children of this process that somebody waits for.
static EXPECTED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

struct Job {
    command: Command,
    answer: mpsc::Sender<std::io::Result<Child>>,
}

/// Starts a command. Whoever takes the child waits for it, and calls [`waited_for`] in the same breath.
pub(crate) fn spawn(command: Command) -> std::io::Result<Child> {
    let (answer, answered) = mpsc::channel();
    let mut job = Job { command, answer };
    let mut starter = lock(&STARTER);
    if let Some(sender) = starter.as_ref() {
        match sender.send(job) {
            Ok(()) => return answered.recv().unwrap_or_else(|_| Err(gone())),
            Err(back) => job = back.0,
        }
    }
    let (sender, jobs) = mpsc::channel::<Job>();
    std::thread::Builder::new().name("starter".to_owned()).spawn(move || {
        while let Ok(Job { mut command, answer }) = jobs.recv() {
            // Under the lock: the reaper must not see a child that it does not know to be expected.
            let mut expected = lock(&EXPECTED);
            let started = command.spawn();
            expected.extend(started.as_ref().ok().and_then(|child| i32::try_from(child.id()).ok()));
            drop(expected);
            // Whoever asked waits for nothing else.
            answer.send(started).unwrap_or_default();
        }
    })?;
    let sent = sender.send(job);
    *starter = Some(sender);
    drop(starter);
    sent.map_err(|_| gone())?;
    answered.recv().unwrap_or_else(|_| Err(gone()))
}

fn gone() -> std::io::Error {
    std::io::Error::other("the thread that starts processes is gone")
}

/// Waits for an ended child, so that its number is free.
pub(crate) fn reap(pid: Pid, wait: impl FnOnce()) {
    let mut expected = lock(&EXPECTED);
    wait();
    expected.remove(&pid.as_raw_pid());
}

/// Whether this process is the first of its PID namespace, where it has to wait for everybody's children.
#[must_use]
pub(crate) fn is_init() -> bool {
    getpid() == Pid::INIT
}

/// Waits for ended processes that were left to this one.
pub(crate) fn reap_orphans() {
    let expected = lock(&EXPECTED);
    for pid in proc::zombies_of(getpid()).into_iter().filter(|pid| !expected.contains(&pid.as_raw_pid())) {
        // One that somebody waited for by now needs nothing.
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).unwrap_or_default();
        tracing::debug!(pid = pid.as_raw_pid(), "an orphan has ended");
    }
}

/// The process that outlives this one for an instant. Clones are the same.
#[derive(Clone)]
pub(crate) struct Guard {
    state: Arc<Mutex<State>>,
}

struct State {
    shim: Vec<OsString>,
    running: Option<Child>,
    groups: BTreeSet<i32>,
}

impl Guard {
    /// A guard that is started when there is something to guard. `shim` as for a program.
    pub(crate) fn new(shim: &[OsString]) -> Self {
        Self { state: Arc::new(Mutex::new(State { shim: shim.to_vec(), running: None, groups: BTreeSet::new() })) }
    }

    /// From now on this process group does not outlive this process.
    ///
    /// # Errors
    /// When the guard cannot be started.
    pub(crate) fn add(&self, group: Pid) -> std::io::Result<()> {
        let mut state = lock(&self.state);
        state.groups.insert(group.as_raw_pid());
        state.say(&format!("+{}\n", group.as_raw_pid()))
    }

    /// The process group has ended; its number may become somebody else's.
    pub(crate) fn remove(&self, group: Pid) {
        let mut state = lock(&self.state);
        state.groups.remove(&group.as_raw_pid());
        if let Err(error) = state.say(&format!("-{}\n", group.as_raw_pid())) {
            tracing::warn!(%error, "could not tell the guard that a process has ended");
        }
    }
}

impl State {
    fn say(&mut self, line: &str) -> std::io::Result<()> {
        if let Some(pipe) = self.running.as_mut().and_then(|guard| guard.stdin.as_mut())
            && pipe.write_all(line.as_bytes()).is_ok()
        {
            return Ok(());
        }
        // There is none yet, or somebody killed it.
        self.end();
        if self.groups.is_empty() {
            return Ok(());
        }
        let (program, first) = self.shim.split_first().ok_or_else(gone)?;
        let mut command = Command::new(program);
        command.args(first).arg(shim::GUARD).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut guard = spawn(command)?;
        let all: String = self.groups.iter().map(|group| format!("+{group}\n")).collect();
        let told = guard.stdin.as_mut().ok_or_else(gone).and_then(|pipe| pipe.write_all(all.as_bytes()));
        self.running = Some(guard);
        told
    }

    /// Closes the pipe and waits for the guard, which then kills what is left.
    fn end(&mut self) {
        let Some(mut guard) = self.running.take() else { return };
        drop(guard.stdin.take());
        if let Some(pid) = i32::try_from(guard.id()).ok().and_then(Pid::from_raw) {
            // It ends by itself at once. Nothing is left to do when it does not.
            reap(pid, || drop(guard.wait()));
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
