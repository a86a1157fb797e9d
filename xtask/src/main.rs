//! Automation: `cargo xtask test`, `demo`, `campaign`, and the single checks.
//!
//! Depends on the standard library and `serde_json` alone, so that it builds in seconds on a fresh machine and can do
//! the set-up that everything else needs.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks to the terminal")]

mod arrows;
mod campaign;
mod demo;
mod packages;
mod rust;
mod shell;
mod supply;
mod test;
mod tidy;
mod tree;
mod workspace;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask <command>

  test                    everything that must hold: set-up, format, lints, tests, house rules
  demo [arguments…]       builds keyward and runs `keyward demo`, a live screen; without a terminal as `--script`
  campaign NAME --seed N [--runs K]
                          a long run, one JSON line for each seed; NAME is power-loss, model, demo or properties
  arrows                  compares the dependencies between crates with the table in ARCHITECTURE.md
  tidy                    the house rules about text
  supply                  bans, fences and licences of deny.toml; the packages of the verifier
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next();
    let rest: Vec<String> = arguments.collect();
    let done = match command.as_deref() {
        Some("test") => none(&rest).and_then(|()| test::run()),
        Some("demo") => demo::run(&rest),
        Some("campaign") => campaign::run(&rest),
        Some("arrows") => none(&rest).and_then(|()| arrows::check()),
        Some("tidy") => none(&rest).and_then(|()| tidy::check()),
        Some("supply") => none(&rest).and_then(|()| supply::check()).and_then(|()| tree::check()),
        None | Some("help" | "-h" | "--help") => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => Err(format!("unknown command `{other}`\n\n{HELP}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("xtask: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn none(rest: &[String]) -> Result<(), String> {
    match rest.first() {
        None => Ok(()),
        Some(first) => Err(format!("unexpected argument `{first}`")),
    }
}
