//! Running other programs.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Cargo, the one that runs us, in the root of the checkout.
pub(crate) fn cargo<I: IntoIterator<Item = S>, S: Into<OsString>>(arguments: I) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).args(arguments.into_iter().map(Into::<OsString>::into));
    command
}

/// Runs a program with its output visible.
pub(crate) fn run(mut command: Command) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("could not run {}: {error}", shown(&command)))?;
    if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", shown(&command))) }
}

/// Runs a program for what it writes to standard output.
pub(crate) fn read(mut command: Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("could not run {}: {error}", shown(&command)))?;
    if !output.status.success() {
        return Err(format!("{} ended with {}: {}", shown(&command), output.status, String::from_utf8_lossy(&output.stderr).trim()));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{} wrote bytes that are no text", shown(&command)))
}

/// Whether a program runs and succeeds; its output is dropped.
pub(crate) fn succeeds(mut command: Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let mut text = format!("`{}", name.to_string_lossy());
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text.push('`');
    text
}

/// Measures how long something takes.
pub(crate) struct Watch(Instant);

impl Watch {
    #[expect(clippy::disallowed_methods, reason = "how long a build takes on this machine is the real clock's business")]
    pub(crate) fn start() -> Watch {
        Watch(Instant::now())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_reported_with_the_command() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo out; echo problem >&2; exit 3"]);
        let failed = read(command).unwrap_err();
        assert!(failed.contains("`sh -c") && failed.contains("problem") && failed.contains('3'), "{failed}");
        assert!(run(Command::new("/absent/program")).unwrap_err().contains("could not run `program`"));
        assert!(!succeeds(Command::new("/bin/false")));
        assert!(succeeds(Command::new("/bin/true")));
    }

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("Cargo.lock").is_file());
    }
}
