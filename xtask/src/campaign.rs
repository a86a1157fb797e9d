//! Long runs that do not belong into every test: each seed is one run of a program, and one line of JSON here.
//!
//! A program takes `--seed N` and ends with 0 when all held; its last line that is a JSON object is passed on. The tests that roll dice
//! take the seed from the environment.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::demo;
use crate::packages;
use crate::shell::{self, Watch};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    PowerLoss,
    Model,
    Demo,
    Properties,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    name: Name,
    seed: u64,
    runs: u64,
}

/// Runs the campaign; fails after the last seed when any of them did.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let plan = parse(arguments)?;
    let program = Program::prepare(plan.name)?;
    let mut failed = 0u64;
    for seed in (plan.seed..).take(usize::try_from(plan.runs).unwrap_or(usize::MAX)) {
        let line = one(plan.name, &program, seed)?;
        if line.get("ok") != Some(&Value::Bool(true)) {
            failed += 1;
        }
        println!("{line}");
    }
    match failed {
        0 => Ok(()),
        _ => Err(format!("{failed} of {} runs failed", plan.runs)),
    }
}

/// Where the tests that roll dice are.
const PROPERTIES: &[&str] =
    &["test", "--locked", "--quiet", "--workspace", "--exclude=xtask", "--no-fail-fast", "--lib", "--test=core", "--test=public"];

/// A program that was built before the first run is timed.
struct Program {
    path: PathBuf,
    arguments: &'static [&'static str],
}

impl Program {
    fn prepare(name: Name) -> Result<Program, String> {
        match name {
            Name::PowerLoss => {
                Ok(Program { path: built(&["--package=keyward-testkit", "--bin=power_loss"], "power_loss")?, arguments: &[] })
            }
            Name::Model => Ok(Program { path: built(&["--package=keyward-lifecycle", "--example=model"], "model")?, arguments: &[] }),
            Name::Demo => {
                packages::ensure_for_demo()?;
                Ok(Program { path: demo::build()?, arguments: &["demo", "--script"] })
            }
            Name::Properties => {
                shell::run(shell::cargo(PROPERTIES.iter().chain(&["--no-run"]).copied()))?;
                Ok(Program { path: shell::cargo([""; 0]).get_program().into(), arguments: PROPERTIES })
            }
        }
    }
}

/// Builds one target and asks cargo where it put it.
fn built(target: &[&str], name: &str) -> Result<PathBuf, String> {
    let mut command = shell::cargo(["build", "--locked", "--quiet", "--message-format=json-render-diagnostics"]);
    command.args(target).stderr(Stdio::inherit());
    let output = command.output().map_err(|error| format!("could not run {}: {error}", shell::shown(&command)))?;
    if !output.status.success() {
        return Err(format!("{} ended with {}", shell::shown(&command), output.status));
    }
    executable(&String::from_utf8_lossy(&output.stdout), name)
        .ok_or_else(|| format!("{} made no executable `{name}`", shell::shown(&command)))
}

fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message.pointer("/target/name").and_then(Value::as_str) == Some(name))
        .find_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
}

fn one(name: Name, program: &Program, seed: u64) -> Result<Value, String> {
    let watch = Watch::start();
    let mut command = Command::new(&program.path);
    command.current_dir(shell::root()).args(program.arguments).stdin(Stdio::null()).stderr(Stdio::inherit());
    match name {
        Name::Properties => command.env("PROPTEST_RNG_SEED", seed.to_string()),
        Name::PowerLoss | Name::Model | Name::Demo => command.args(["--seed", &seed.to_string()]),
    };
    let output = command.output().map_err(|error| format!("could not run {}: {error}", shell::shown(&command)))?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(json!({
        "campaign": shown(name),
        "seed": seed,
        "ok": output.status.success(),
        "milliseconds": u64::try_from(watch.elapsed().as_millis()).unwrap_or(u64::MAX),
        "result": last_object(&String::from_utf8_lossy(&output.stdout)),
    }))
}

fn last_object(text: &str) -> Value {
    let found = text.lines().rev().find_map(|line| {
        let value: Value = serde_json::from_str(line).ok()?;
        value.is_object().then_some(value)
    });
    found.unwrap_or(Value::Null)
}

fn shown(name: Name) -> &'static str {
    match name {
        Name::PowerLoss => "power-loss",
        Name::Model => "model",
        Name::Demo => "demo",
        Name::Properties => "properties",
    }
}

fn parse(arguments: &[String]) -> Result<Plan, String> {
    let usage = "usage: cargo xtask campaign power-loss|model|demo|properties --seed N [--runs K]";
    let mut words = arguments.iter().map(String::as_str);
    let name = match words.next() {
        Some("power-loss") => Name::PowerLoss,
        Some("model") => Name::Model,
        Some("demo") => Name::Demo,
        Some("properties") => Name::Properties,
        _ => return Err(usage.to_owned()),
    };
    let (mut seed, mut runs) = (None, 1);
    while let Some(word) = words.next() {
        let number = || words.next().and_then(|word| word.parse().ok()).ok_or(usage.to_owned());
        let mut number = number;
        match word {
            "--seed" => seed = Some(number()?),
            "--runs" => runs = number()?,
            _ => return Err(usage.to_owned()),
        }
    }
    let seed = seed.ok_or(usage.to_owned())?;
    if runs == 0 {
        return Err("a campaign has at least one run".to_owned());
    }
    Ok(Plan { name, seed, runs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn parsed(line: &str) -> Result<Plan, String> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_seed_is_always_given() {
        let plan = |name, seed, runs| Ok(Plan { name, seed, runs });
        assert_eq!(parsed("model --seed 7"), plan(Name::Model, 7, 1));
        assert_eq!(parsed("properties --seed 3"), plan(Name::Properties, 3, 1));
        assert_eq!(parsed("power-loss --runs 20 --seed 0"), plan(Name::PowerLoss, 0, 20));
        for line in [
            "",
            "model",
            "model --seed",
            "model --seed x",
            "model --seed -1",
            "other --seed 1",
            "demo --seed 1 --fast",
            "demo --seed 1 --runs 0",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_program_decides_and_its_last_object_is_passed_on() {
        let directory = std::env::temp_dir().join(format!("xtask-campaign-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("program");
        fs::write(&path, "#!/bin/sh\necho '{\"first\":1}'\necho \"{\\\"got\\\":\\\"$*\\\"}\"\necho end\n[ \"$3\" != 9 ]\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let program = Program { path, arguments: &["demo"] };
        let good = one(Name::Demo, &program, 8).unwrap();
        let bad = one(Name::Demo, &program, 9).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(good["ok"], true);
        assert_eq!(good["result"]["got"], "demo --seed 8");
        assert_eq!((&bad["ok"], &bad["seed"]), (&json!(false), &json!(9)));
        assert!(one(Name::Demo, &program, 8).is_err());
    }

    #[test]
    fn the_dice_of_the_tests_have_the_seed() {
        let program = Program { path: PathBuf::from("/bin/sh"), arguments: &["-c", "[ \"$PROPTEST_RNG_SEED\" = 8 ]"] };
        let ok = |seed| one(Name::Properties, &program, seed).unwrap()["ok"] == true;
        assert_eq!((ok(8), ok(9)), (true, false));
    }

    #[test]
    fn words_that_are_no_object_are_no_result() {
        assert_eq!(last_object("1\ntrue\n[]\nok\n"), Value::Null);
        assert_eq!(last_object(""), Value::Null);
    }

    #[test]
    fn the_executable_is_the_one_of_that_name() {
        let messages = "{\"target\":{\"name\":\"other\"},\"executable\":\"/x/other\"}\nnoise\n\
                        {\"target\":{\"name\":\"model\"},\"executable\":null}\n\
                        {\"target\":{\"name\":\"model\"},\"executable\":\"/x/model\"}\n";
        assert_eq!(executable(messages, "model"), Some(PathBuf::from("/x/model")));
        assert_eq!(executable(messages, "absent"), None);
    }
}
