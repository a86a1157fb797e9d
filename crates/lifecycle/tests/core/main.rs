//! The rotation machine under a model checker, its broken twins, and random events.

mod hunt;
mod mutants;
mod random;
mod world;

use std::time::Duration;

use hunt::{Bounds, hunt, setups, sound};

/// Small enough for an ordinary test run; `cargo run --release --example model -p keyward-lifecycle` looks much further.
const STATES_MAX: [usize; 3] = [40_000, 80_000, 40_000];

#[test]
fn the_rules_hold_and_the_run_can_always_end() {
    for setup in (0..=2).flat_map(setups) {
        let states_max = STATES_MAX[usize::from(setup.faults)];
        let bounds = Bounds { states_max, time_max: Duration::from_secs(60), threads: 1, liveness: true };
        let explored = sound(&setup, bounds);
        println!(
            "{:<24} {} faults {:>7} states, {:>2} moves deep, {}",
            setup.name,
            setup.faults,
            explored.states,
            explored.depth,
            if explored.complete { "all of them" } else { "the first of them" }
        );
        assert!(explored.states > 20, "{}: hardly anything was explored", setup.name);
        if let Some(flaw) = explored.flaw {
            panic!("{}: {}\n{:?}\n{:?}", setup.name, flaw.what, flaw.moves, flaw.last);
        }
    }
}

#[test]
fn every_mutant_is_found() {
    let bounds = Bounds { states_max: 150_000, time_max: Duration::from_secs(60), threads: 1, liveness: false };
    let mut survivors = Vec::new();
    for mutant in mutants::ALL {
        let name = format!("{:?}", mutant.0);
        match hunt(mutant, bounds) {
            Some((setup, flaw)) => {
                println!(
                    "{name:<26} found after {:>2} moves with {} faults ({}): {}",
                    flaw.moves.len(),
                    setup.faults,
                    setup.name,
                    flaw.what
                );
            }
            None => {
                println!("{name:<26} SURVIVED");
                survivors.push(mutant.0);
            }
        }
    }
    assert!(survivors.is_empty(), "not found: {survivors:?}");
}
