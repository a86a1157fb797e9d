//! The long form of the model check: as many states as asked for, one line of JSON.
//!
//! `cargo run --release -p keyward-lifecycle --example model -- [STATES_PER_SETUP] [SECONDS_PER_SETUP]`

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
    let mut arguments = std::env::args().skip(1);
    let mut number = |otherwise: u64| arguments.next().and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let states_max = usize::try_from(number(2_000_000)).unwrap_or(usize::MAX);
    let time_max = Duration::from_secs(number(300));
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
