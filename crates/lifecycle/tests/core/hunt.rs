//! Explores worlds: the sound rules must survive, every mutant must be found.

use std::time::Duration;

use base::time::{Clock, SystemClock};
use lifecycle::core::{Level, OnHard, Rules, Sound};
use stateright::{Checker, HasDiscoveries, Model};

use super::mutants::Mutant;
use super::world::{Move, Setup, State, World};

/// What an exploration came to.
pub(crate) struct Explored {
    pub states: usize,
    pub depth: usize,
    /// Every state within the setup was seen.
    pub complete: bool,
    pub flaw: Option<Flaw>,
}

/// The shortest history that breaks an invariant.
pub(crate) struct Flaw {
    pub what: String,
    pub moves: Vec<Move>,
    pub last: State,
}

/// How far to look.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub states_max: usize,
    pub time_max: Duration,
    pub threads: usize,
    pub liveness: bool,
}

pub(crate) fn setups(faults: u8) -> Vec<Setup> {
    let base = Setup {
        name: "",
        predecessor: true,
        present: 1,
        absent: 0,
        on_hard: OnHard::Rollback,
        required: Level::L2,
        squatter: false,
        faults,
    };
    // The smallest first: a mutant is looked for in each until it is found.
    vec![
        Setup { name: "nobody, one may come", present: 0, absent: 1, ..base.clone() },
        Setup { name: "first run", predecessor: false, absent: 1, ..base.clone() },
        Setup { name: "first run, somebody there", predecessor: false, present: 0, squatter: true, ..base.clone() },
        Setup { name: "somebody on the idle slot", squatter: true, ..base.clone() },
        Setup { name: "one consumer, hold", on_hard: OnHard::Hold, ..base.clone() },
        Setup { name: "one there, one may come", absent: 1, on_hard: OnHard::Hold, ..base.clone() },
        Setup { name: "one consumer", ..base.clone() },
        Setup { name: "two consumers", present: 2, ..base },
    ]
}

fn explore<R: Rules + Send + Sync + 'static>(rules: R, setup: &Setup, bounds: Bounds) -> Explored {
    let start = SystemClock.instant();
    let world = World { rules, setup: setup.clone(), liveness: bounds.liveness };
    let checker = world
        .checker()
        .threads(bounds.threads)
        .target_state_count(bounds.states_max)
        .timeout(bounds.time_max)
        .finish_when(HasDiscoveries::Any)
        .spawn_bfs()
        .join();
    let flaw = checker.discoveries().into_iter().next().map(|(property, path)| {
        let last = path.last_state().clone();
        Flaw { what: last.flaw.map_or_else(|| format!("violated: {property}"), str::to_owned), moves: path.into_actions(), last }
    });
    let states = checker.unique_state_count();
    // The checker does not say why it stopped.
    let cut = checker.state_count() >= bounds.states_max || start.elapsed() >= bounds.time_max;
    Explored { states, depth: checker.max_depth(), complete: flaw.is_none() && !cut, flaw }
}

pub(crate) fn sound(setup: &Setup, bounds: Bounds) -> Explored {
    explore(Sound, setup, bounds)
}

/// Looks for a mutant where it should be, then in every setup until it is found.
pub(crate) fn hunt((mutant, faults, name): (Mutant, u8, &str), bounds: Bounds) -> Option<(Setup, Flaw)> {
    let first = setups(faults).into_iter().filter(|setup| setup.name == name);
    first.chain((0..=2).flat_map(setups)).find_map(|setup| explore(mutant, &setup, bounds).flaw.map(|flaw| (setup, flaw)))
}
