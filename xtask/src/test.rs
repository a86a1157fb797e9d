//! `cargo xtask test`: everything that must hold, cheap things first. All steps run, so that one run tells everything.

use crate::arrows;
use crate::demo;
use crate::packages;
use crate::shell::{self, Watch};
use crate::supply;
use crate::tidy;
use crate::tree;

/// Whether the script of the demonstration is the last test.
const WITH_DEMO: bool = true;

type Step = (&'static str, fn() -> Result<(), String>);

/// Runs the steps; fails when any of them did.
pub(crate) fn run() -> Result<(), String> {
    packages::ensure_for_tests()?;
    let mut steps: Vec<Step> = vec![
        ("format", format),
        ("arrows", arrows::check),
        ("tidy", tidy::check),
        ("verifier", tree::check),
        ("supply", supply::check),
        ("clippy", clippy),
        ("tests", tests),
    ];
    if WITH_DEMO {
        steps.push(("demo", script));
    }
    perform(&steps)
}

fn perform(steps: &[Step]) -> Result<(), String> {
    let whole = Watch::start();
    let mut failed = Vec::new();
    for (name, step) in steps {
        println!("== {name}");
        let watch = Watch::start();
        let done = step();
        let seconds = watch.elapsed().as_secs_f32();
        match done {
            Ok(()) => println!("== {name}: ok, {seconds:.1} s"),
            Err(reason) => {
                println!("== {name}: FAILED, {seconds:.1} s: {reason}");
                failed.push(*name);
            }
        }
    }
    let seconds = whole.elapsed().as_secs();
    if failed.is_empty() {
        println!("== all {} steps ok, {seconds} s", steps.len());
        return Ok(());
    }
    Err(format!("failed: {} ({} of {} steps, {seconds} s)", failed.join(", "), failed.len(), steps.len()))
}

fn format() -> Result<(), String> {
    shell::run(shell::cargo(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<(), String> {
    shell::run(shell::cargo(["clippy", "--locked", "--workspace", "--all-targets", "--", "-Dwarnings"]))
}

fn tests() -> Result<(), String> {
    shell::run(shell::cargo(["test", "--locked", "--workspace", "--no-fail-fast"]))
}

fn script() -> Result<(), String> {
    let mut command = std::process::Command::new(demo::build()?);
    command.args(["demo", "--script"]);
    shell::run(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Result<(), String> {
        Ok(())
    }

    fn bad() -> Result<(), String> {
        Err("because".to_owned())
    }

    #[test]
    fn one_failing_step_fails_the_whole_and_is_named() {
        assert_eq!(perform(&[("one", good), ("two", good)]), Ok(()));
        let failed = perform(&[("one", good), ("two", bad), ("three", good), ("four", bad)]).unwrap_err();
        assert!(failed.contains("two, four (2 of 4 steps"), "{failed}");
    }
}
