//! The long form of the model check: as many states as asked for, one line of JSON.
//!
//! `cargo run --release -p keyward-lifecycle --example model -- [--states N] [--seconds N] [--seed N]`, both bounds for each setup.
//! The search is exhaustive and draws nothing at random; the seed is accepted because every campaign has one.

#[path = "../tests/core/hunt.rs"]
mod hunt;
#[path = "../tests/core/mutants.rs"]
mod mutants;
#[path = "../tests/core/world.rs"]
mod world;

use std::process::ExitCode;
use std::time::Duration;

use hunt::{Bounds, hunt, setups, sound};
use serde_json::json;

#[expect(clippy::print_stdout, reason = "a campaign answers on standard output")]
fn main() -> ExitCode {
    let (mut states, mut seconds) = (2_000_000, 300);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|text| text.parse::<u64>().ok());
        match (name.as_str(), value) {
            ("--states", Some(value)) => states = value,
            ("--seconds", Some(value)) => seconds = value,
            ("--seed", Some(_)) => {}
            _ => {
                println!("{}", json!({ "campaign": "model", "ok": false, "problem": format!("`{name}` is not known or has no number") }));
                return ExitCode::FAILURE;
            }
        }
    }
    let (states_max, time_max) = (usize::try_from(states).unwrap_or(usize::MAX), Duration::from_secs(seconds));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let bounds = Bounds { states_max, time_max, threads, liveness: true };

    let mut explorations = Vec::new();
    let (mut states, mut flaws) = (0_u64, 0_u64);
    for setup in (0..=2).flat_map(setups) {
        let explored = sound(&setup, bounds);
        states += u64::try_from(explored.states).unwrap_or(0);
        flaws += u64::from(explored.flaw.is_some());
        explorations.push(json!({
            "setup": setup.name,
            "faults": setup.faults,
            "states": explored.states,
            "moves_max": explored.depth,
            "complete": explored.complete,
            "flaw": explored.flaw.map(|flaw| format!("{}: {:?} ends in {:?}", flaw.what, flaw.moves, flaw.last)),
        }));
    }
    let hunted: Vec<_> = mutants::ALL
        .into_iter()
        .map(|mutant| {
            let found = hunt(mutant, Bounds { liveness: false, ..bounds });
            json!({ "mutant": format!("{:?}", mutant.0), "found": found.as_ref().map(|(_, flaw)| flaw.what.clone()), "moves": found.map(|(_, flaw)| flaw.moves.len()) })
        })
        .collect();
    let found = hunted.iter().filter(|mutant| !mutant["found"].is_null()).count();
    let ok = flaws == 0 && found == hunted.len();
    println!(
        "{}",
        json!({ "campaign": "model", "ok": ok, "states": states, "flaws": flaws, "mutants": hunted.len(), "mutants_found": found, "explorations": explorations, "hunted": hunted })
    );
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
