//! What each instance should have. Derived from the run alone: whoever keeps it writes it down with the run it was derived from.

use serde::{Deserialize, Serialize};

use super::run::{Generation, Instance, Phase, Presence, Run, ValueId, Version};

/// The complete wanted state of one instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Wanted {
    /// What it should use.
    pub using: Option<(Generation, ValueId)>,
    /// What it should have ready.
    pub standby: Option<(Generation, ValueId)>,
}

impl Wanted {
    /// Is this generation offered, for use or as a standby?
    #[must_use]
    pub fn offers(&self, generation: Generation) -> bool {
        self.is_used(generation) || self.is_standby(generation)
    }

    /// Is this the generation to use?
    #[must_use]
    pub fn is_used(&self, generation: Generation) -> bool {
        self.using.is_some_and(|(using, _)| using == generation)
    }

    /// Is this the generation to have ready?
    #[must_use]
    pub fn is_standby(&self, generation: Generation) -> bool {
        self.standby.is_some_and(|(standby, _)| standby == generation)
    }
}

/// What `instance` should have now. Nothing for one that the run does not know or that said goodbye.
///
/// The generation to use never goes down for an instance: who was offered the new one keeps it until the old value comes back
/// under a higher number.
#[must_use]
pub fn wanted(run: &Run, instance: &Instance) -> Wanted {
    let Some(consumer) = run.consumers.get(instance).filter(|consumer| consumer.presence != Presence::Left) else {
        return Wanted::default();
    };
    let old = run.old.as_ref().map(of);
    let new = Some(of(&run.new));
    let back = run.old.as_ref().map(|old| (run.back, old.value));
    let using = |using| Wanted { using, standby: None };
    match run.phase {
        Phase::Plan | Phase::Prepare | Phase::Set | Phase::Verify | Phase::Undo => using(old),
        Phase::Stage | Phase::Canary if !consumer.offered => Wanted { using: old, standby: new },
        Phase::RollbackCheck if !consumer.offered => using(old),
        Phase::Stage | Phase::Canary | Phase::RollbackCheck => using(new),
        Phase::Rollout | Phase::Drain | Phase::Revoke | Phase::Prove => using(new),
        Phase::RollbackRepublish | Phase::RollbackDrain | Phase::RollbackRevoke | Phase::RollbackProve => using(back),
        Phase::Closed => using(run.in_force().as_ref().map(of)),
    }
}

fn of(version: &Version) -> (Generation, ValueId) {
    (version.generation, version.value)
}
