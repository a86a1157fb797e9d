//! The last step between a supervisor and its program.
//!
//! A program that is handed listening sockets checks `LISTEN_PID` against its own process id, which nobody knows before the
//! process exists. So the supervisor starts this shim, which names itself and becomes the program.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};

/// What a shell ends with when there is no such program.
const NOT_FOUND: u8 = 127;
/// What a shell ends with when it cannot be executed.
const NOT_EXECUTABLE: u8 = 126;

/// Becomes `command` with `LISTEN_PID` set to this process. Returns only when that fails, with the code to exit with, after
/// saying so on standard error.
#[must_use]
pub fn become_command(command: &[OsString]) -> u8 {
    let Some((program, arguments)) = command.split_first() else { return NOT_FOUND };
    let mut next = Command::new(program);
    next.args(arguments);
    if std::env::var_os("LISTEN_FDS").is_some() {
        next.env("LISTEN_PID", std::process::id().to_string());
    }
    let error = next.exec();
    // There is nowhere else to complain when this fails.
    writeln!(std::io::stderr(), "could not start `{}`: {error}", program.to_string_lossy()).unwrap_or_default();
    if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE }
}

/// Whether a process ended because its program could not be started at all.
pub(crate) fn is_no_program(status: ExitStatus) -> bool {
    status.code().is_some_and(|code| code == i32::from(NOT_FOUND) || code == i32::from(NOT_EXECUTABLE))
}
