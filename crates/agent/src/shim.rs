//! The last step between a supervisor and its program, and the guard that outlives the supervisor for an instant.
//!
//! A program that is handed listening sockets checks `LISTEN_PID` against its own process id, which nobody knows before the
//! process exists; and only a process itself can ask the kernel to be ended with its parent. So the supervisor starts this shim,
//! which does both and becomes the program.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};

use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};

/// What a shell ends with when there is no such program.
const NOT_FOUND: u8 = 127;
/// What a shell ends with when it cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// First argument: be the guard.
pub(crate) const GUARD: &str = "guard";
/// First argument: become the program that follows, which may outlive its supervisor.
pub(crate) const FREE: &str = "free";

/// The first argument of a shim: become the program that follows, and end with the process of this number.
pub(crate) fn bound(parent: u32) -> OsString {
    parent.to_string().into()
}

/// What `keyward exec-shim --` does with the arguments that follow. Returns the code to exit with, after saying why on standard
/// error; a program that was started does not return.
#[must_use]
pub fn run(arguments: &[OsString]) -> u8 {
    let Some((how, command)) = arguments.split_first() else { return NOT_FOUND };
    if how == GUARD {
        return guard(std::io::stdin().lock());
    }
    if how != FREE
        && let Err(why) = end_with(how.to_str().and_then(|text| text.parse().ok()))
    {
        return complain(&why, 1);
    }
    become_program(command)
}

/// Asks the kernel to kill this process with its parent. The parent may have ended before that was asked.
fn end_with(parent: Option<i32>) -> Result<(), String> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("could not ask for an end with the supervisor: {error}"))?;
    let now = getppid().map(Pid::as_raw_pid);
    if parent.is_some() && now == parent { Ok(()) } else { Err("the supervisor has ended".to_owned()) }
}

fn become_program(command: &[OsString]) -> u8 {
    let Some((program, arguments)) = command.split_first() else { return NOT_FOUND };
    let mut next = Command::new(program);
    next.args(arguments);
    if std::env::var_os("LISTEN_FDS").is_some() {
        next.env("LISTEN_PID", std::process::id().to_string());
    }
    let error = next.exec();
    let code = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
    complain(&format!("could not start `{}`: {error}", program.to_string_lossy()), code)
}

/// Keeps the process groups of a pipe, `+7` and `-7`, and kills them when the pipe ends.
fn guard(pipe: impl BufRead) -> u8 {
    let mut groups: BTreeSet<i32> = BTreeSet::new();
    for line in pipe.lines().map_while(Result::ok) {
        let group = |text: &str| text.parse().ok().filter(|group: &i32| *group > 1);
        if let Some(group) = line.strip_prefix('+').and_then(group) {
            groups.insert(group);
        } else if let Some(group) = line.strip_prefix('-').and_then(group) {
            groups.remove(&group);
        }
    }
    for group in groups.into_iter().filter_map(Pid::from_raw) {
        // A group that is empty by now needs no signal.
        kill_process_group(group, Signal::KILL).unwrap_or_default();
    }
    0
}

fn complain(why: &str, code: u8) -> u8 {
    // There is nowhere else to complain when this fails.
    writeln!(std::io::stderr(), "{why}").unwrap_or_default();
    code
}

/// Whether a process ended because its program could not be started at all.
pub(crate) fn is_no_program(status: ExitStatus) -> bool {
    status.code().is_some_and(|code| code == i32::from(NOT_FOUND) || code == i32::from(NOT_EXECUTABLE))
}
