//! Builds the two binaries and runs `keyward demo`.
//!
//! The dev profile: its dependencies are the ones that the tests have built or will build, and are optimised enough.

use std::io::{IsTerminal, stdout};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::packages;
use crate::shell;
use crate::workspace::Workspace;

const SCRIPT: &str = "--script";

/// Replaces this process by the demonstration, so that the terminal and its signals are the demonstration's.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    packages::ensure_for_demo()?;
    let binary = build()?;
    let mut command = Command::new(binary);
    command.arg("demo").args(forwarded(arguments, stdout().is_terminal()));
    Err(format!("could not run {}: {}", shell::shown(&command), command.exec()))
}

/// The server's binary, freshly built, with the verifier beside it.
pub(crate) fn build() -> Result<PathBuf, String> {
    shell::run(shell::cargo(["build", "--locked", "--package=keyward-server", "--package=keyward-verify", "--bins"]))?;
    Ok(Workspace::load()?.target.join("debug/keyward"))
}

fn forwarded(arguments: &[String], terminal: bool) -> Vec<String> {
    let mut all = arguments.to_vec();
    if !terminal && !all.iter().any(|argument| argument == SCRIPT) {
        all.insert(0, SCRIPT.to_owned());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_it_is_the_script() {
        for (given, terminal, expected) in [
            (&[][..], true, &[][..]),
            (&[], false, &["--script"]),
            (&["--seed", "7"], false, &["--script", "--seed", "7"]),
            (&["--seed", "7", "--script"], false, &["--seed", "7", "--script"]),
            (&["--script"], true, &["--script"]),
        ] {
            let given: Vec<String> = given.iter().map(|one| (*one).to_owned()).collect();
            assert_eq!(forwarded(&given, terminal), expected);
        }
    }
}
