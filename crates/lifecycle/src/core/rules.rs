//! The rules that make a rotation safe, each under its own name.
//!
//! The machine asks them through a trait so that a test can put a broken rule in place of a sound one and show that the model
//! checker notices. Nothing but tests implements the trait again; the machine is compiled for [`Sound`] without indirection.

use std::time::Duration;

use base::Timestamp;

use super::event::{Act, Code, DeathProbe, EffectId, Fact, Login, Outcome, Sessions};
use super::run::{Consumer, Generation, Instance, Level, Mac, Mark, Pending, Phase, Presence, Run, Slot};
use super::wanted::Wanted;

/// The rules. Every default is the sound one.
#[doc(hidden)]
pub trait Rules {
    /// INVARIANT: idempotence. An outcome counts only for the act that is owed, by its name; everything else is an echo.
    fn answers(&self, run: &Run, id: &EffectId) -> bool {
        matches!(&run.pending, Pending::Owed { id: owed, .. } if owed == id)
    }

    /// What a phase begins with.
    fn first_act(&self, run: &Run, phase: Phase) -> Option<Act> {
        let new = &run.new;
        let set = (new.slot, new.value);
        match (phase, run.old.as_ref()) {
            (Phase::Plan, _) => Some(Act::WatchSessions { slot: new.slot }),
            (Phase::RollbackCheck, Some(old)) => Some(Act::Probe { slot: old.slot, value: old.value }),
            (Phase::Prepare, _) => Some(Act::Generate { value: new.value }),
            (Phase::Set, _) => Some(Act::Set { slot: set.0, value: set.1 }),
            (Phase::Verify, _) => Some(Act::Probe { slot: set.0, value: set.1 }),
            (Phase::Rollout, _) => Some(Act::Publish { generation: new.generation, value: new.value }),
            (Phase::RollbackRepublish, Some(old)) => Some(Act::Publish { generation: run.back, value: old.value }),
            (Phase::Drain, Some(old)) => Some(Act::WatchSessions { slot: old.slot }),
            (Phase::RollbackDrain, _) => Some(Act::WatchSessions { slot: new.slot }),
            (Phase::Revoke, Some(old)) => Some(Act::Kill { slot: old.slot }),
            (Phase::RollbackRevoke | Phase::Undo, _) => Some(Act::Kill { slot: new.slot }),
            (Phase::Prove, Some(old)) => Some(Act::ProveDeath { slot: old.slot, dead: old.value, alive_slot: new.slot, alive: new.value }),
            (Phase::RollbackProve, Some(old)) => {
                Some(Act::ProveDeath { slot: new.slot, dead: new.value, alive_slot: old.slot, alive: old.value })
            }
            _ => None,
        }
    }

    /// INVARIANT: a slot that somebody is logged in to is never given another value.
    fn free(&self, seen: &Sessions) -> bool {
        seen.count() == 0
    }

    /// INVARIANT: `current` never points at an unverified version.
    fn after_set(&self, _run: &Run) -> Phase {
        Phase::Verify
    }

    /// INVARIANT: nothing is revoked that was not seen to fall silent, except in an emergency.
    fn after_rollout(&self, run: &Run) -> Phase {
        if run.emergency.is_some() { Phase::Revoke } else { Phase::Drain }
    }

    /// In an emergency, who is behind is waited for until this time and no longer. Otherwise nobody is left behind.
    fn patience(&self, run: &Run) -> Option<Timestamp> {
        run.emergency.as_ref().map(|emergency| emergency.declared.after(emergency.grace))
    }

    /// Who never acknowledged anything and holds nothing has no value to lose: it is named, and neither waited for nor heard when it
    /// refuses.
    fn counts(&self, consumer: &Consumer) -> bool {
        !consumer.has_nothing()
    }

    /// INVARIANT: a revocation is believed only when it is proven.
    fn after_kill(&self, run: &Run) -> Phase {
        if run.phase.is_rollback() { Phase::RollbackProve } else { Phase::Prove }
    }

    /// INVARIANT: ambiguity is resolved by probing, with the value that is stored; never by another value.
    fn after_unknown_set(&self, run: &mut Run) -> Act {
        Act::Probe { slot: run.new.slot, value: run.new.value }
    }

    /// An act that was not refused may have happened.
    fn may_have_happened(&self, outcome: &Outcome) -> bool {
        !matches!(outcome, Outcome::Refused(_))
    }

    /// A run does not turn away from a target while a change of it is on its way.
    fn may_stop_now(&self, run: &Run) -> bool {
        !matches!(run.pending, Pending::Owed { act: Act::Set { .. }, .. })
    }

    /// The consumer set is live: who comes during a run counts.
    fn takes_joiner(&self, _run: &Run, _instance: &Instance) -> bool {
        true
    }

    /// What somebody says it holds is no acknowledgement.
    fn statement_is_ack(&self) -> bool {
        false
    }

    /// A refusal is not an acknowledgement.
    fn refusal_is_ack(&self) -> bool {
        false
    }

    /// An acknowledgement of what was not offered is worth nothing.
    fn takes_ack(&self, wanted: &Wanted, generation: Generation) -> bool {
        wanted.is_used(generation)
    }

    /// Is this far enough?
    fn far_enough(&self, level: Level, required: Level) -> bool {
        level >= required
    }

    /// INVARIANT: unknown is not converged; a refused generation is not converged, whatever was acknowledged before or after.
    fn converged(&self, consumer: &Consumer, generation: Generation, required: Level) -> bool {
        consumer.presence == Presence::Present
            && consumer.nack.as_ref().is_none_or(|nack| nack.generation != generation)
            && consumer.acked.is_some_and(|(acked, level)| acked == generation && self.far_enough(level, required))
    }

    /// An instance is out of the reckoning by goodbye, or by a lapsed stream *and* a dead token *and* no session that could be
    /// its own on the slot that is to die (`None`: no slot is).
    fn excused(&self, consumer: &Consumer, slot: Option<Slot>) -> bool {
        match consumer.presence {
            Presence::Present => false,
            Presence::Left => true,
            Presence::Lapsed => consumer.token_dead && slot.is_none_or(|slot| consumer.clear.contains(&slot)),
        }
    }

    /// Everybody means everybody.
    fn enough(&self, converged: usize, required: usize) -> bool {
        converged == required
    }

    /// A target that does not answer has not said that nobody is logged in.
    fn sessions_seen(&self, outcome: &Outcome) -> Option<Sessions> {
        match outcome {
            Outcome::Done(Fact::Sessions(sessions)) => Some(sessions.clone()),
            _ => None,
        }
    }

    /// Silence is measured from the answer to the first look that found nobody to the question of the last one.
    fn silent_enough(&self, silent: Option<Timestamp>, asked: Timestamp, quiet: Duration) -> bool {
        silent.is_some_and(|since| asked >= since.after(quiet))
    }

    /// INVARIANT: a death has four facts. The value that is refused now is one that worked before, and [`Rules::invalid`] holds.
    fn dead(&self, worked: Option<&Mark>, probe: &DeathProbe) -> Result<Mac, Alive> {
        let mac = self.invalid(probe)?;
        if worked.is_none_or(|mark| mark.mac != mac) {
            return Err(Alive::ProvesNothing("the value that was refused is not one that worked before".to_owned()));
        }
        Ok(mac)
    }

    /// The three facts that one probe can show: the value is refused as a wrong password, another value works at the same time, and
    /// no session is left on the slot.
    fn invalid(&self, probe: &DeathProbe) -> Result<Mac, Alive> {
        let mac = match &probe.dead {
            Login::WrongPassword { mac } => mac,
            Login::Accepted { .. } | Login::Unfit { .. } => return Err(Alive::StillAccepted),
            Login::Refused { code } => {
                return Err(Alive::ProvesNothing(format!("refused with `{code}`, which says nothing about the password")));
            }
            Login::Unreachable => return Err(Alive::ProvesNothing("the target did not answer".to_owned())),
        };
        if !matches!(probe.alive, Login::Accepted { .. }) {
            return Err(Alive::ProvesNothing("the value in force was not accepted in the same probe".to_owned()));
        }
        match probe.sessions {
            Some(0) => Ok(mac.clone()),
            Some(count) => Err(Alive::Sessions(count)),
            None => Err(Alive::ProvesNothing("the sessions could not be seen".to_owned())),
        }
    }

    /// INVARIANT: going back is offered only while nothing was done against the old value, and never in an emergency: the old value is in
    /// the wrong hands.
    fn may_roll_back(&self, run: &Run) -> bool {
        run.emergency.is_none() && run.old.is_some() && matches!(run.phase, Phase::Stage | Phase::Canary | Phase::Rollout | Phase::Drain)
    }

    /// INVARIANT: a rollback is to a value that the target still accepts.
    fn still_good(&self, outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Done(Fact::Login(Login::Accepted { .. })))
    }

    /// What a run was parked for is behind it once it moves on or turns back.
    fn forgets_parking(&self) -> bool {
        true
    }

    /// INVARIANT: generations only grow.
    fn back_generation(&self, run: &Run) -> Generation {
        run.new.generation.next()
    }
}

/// Why a death is not proven.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alive {
    /// The value still works.
    StillAccepted,
    /// So many sessions are left.
    Sessions(u32),
    /// Nothing was shown.
    ProvesNothing(String),
}

/// The rules as they are.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sound;

impl Rules for Sound {}

/// What is said of an outcome that was not wanted; `None` for one that is fine.
pub(super) fn trouble(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Unknown => Some("the answer was lost".to_owned()),
        Outcome::Refused(Code::Unreachable) | Outcome::Done(Fact::Login(Login::Unreachable)) => {
            Some("the target did not answer".to_owned())
        }
        Outcome::Refused(Code::Denied { reason }) => Some(reason.clone()),
        Outcome::Done(Fact::Login(Login::WrongPassword { .. })) => Some("the target says that the password is wrong".to_owned()),
        Outcome::Done(Fact::Login(Login::Refused { code })) => Some(format!("the target refused the login with `{code}`")),
        Outcome::Done(Fact::Login(Login::Unfit { reason })) => Some(reason.clone()),
        Outcome::Done(_) => None,
    }
}
