//! Broken rules. Each breaks exactly one rule of the machine; the checker must notice every one.

use std::time::Duration;

use base::Timestamp;
use lifecycle::core::{
    Act, Alive, Consumer, DeathProbe, EffectId, Fact, Generation, Instance, Level, Login, Mac, Mark, Outcome, Pending, Phase, Presence,
    Rules, Run, Sessions, Slot, Sound, ValueId, Wanted,
};

/// One broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    SetWithoutLooking,
    SetBeforeStored,
    PublishBeforeVerify,
    RegenerateAfterLostAnswer,
    LostAnswerIsRefusal,
    StopDuringSet,
    EchoesCount,
    AnyLevelIsEnough,
    AnyGenerationIsEnough,
    RefusalIsAck,
    StatementIsAck,
    JoinersIgnored,
    LapsedIsConverged,
    LapsedWithLiveTokenIsGone,
    RetireBeforeConvergence,
    SkipDrain,
    KillBeforeDrain,
    BlindIsSilent,
    QuietNotWaited,
    RevokeBelieved,
    DeathByTargetDown,
    DeathWithSessions,
    DeathWithoutControl,
    RollbackAfterRevoke,
    RollbackToDeadValue,
    ReuseGeneration,
    StaysParked,
    EmergencyTurnsBack,
    SilentDoNotCount,
}

/// All of them, with where to look first: so many faults, in this setup. A hint that is wrong costs time only.
pub(crate) const ALL: [(Mutant, u8, &str); 29] = [
    (Mutant::SetWithoutLooking, 0, "somebody on the idle slot"),
    (Mutant::SetBeforeStored, 0, "nobody, one may come"),
    (Mutant::PublishBeforeVerify, 0, "nobody, one may come"),
    (Mutant::RegenerateAfterLostAnswer, 1, "nobody, one may come"),
    (Mutant::LostAnswerIsRefusal, 2, "nobody, one may come"),
    (Mutant::StopDuringSet, 1, "nobody, one may come"),
    (Mutant::EchoesCount, 0, "nobody, one may come"),
    (Mutant::AnyLevelIsEnough, 0, "one consumer, hold"),
    (Mutant::AnyGenerationIsEnough, 0, "one consumer, hold"),
    (Mutant::RefusalIsAck, 1, "one consumer, hold"),
    (Mutant::StatementIsAck, 1, "one consumer, hold"),
    (Mutant::JoinersIgnored, 1, "nobody, one may come"),
    (Mutant::LapsedIsConverged, 1, "one consumer, hold"),
    (Mutant::LapsedWithLiveTokenIsGone, 1, "one consumer, hold"),
    (Mutant::RetireBeforeConvergence, 1, "one there, one may come"),
    (Mutant::SkipDrain, 0, "one consumer, hold"),
    (Mutant::KillBeforeDrain, 0, "nobody, one may come"),
    (Mutant::BlindIsSilent, 1, "one consumer, hold"),
    (Mutant::QuietNotWaited, 0, "one consumer, hold"),
    (Mutant::RevokeBelieved, 0, "nobody, one may come"),
    (Mutant::DeathByTargetDown, 2, "nobody, one may come"),
    (Mutant::DeathWithSessions, 2, "nobody, one may come"),
    (Mutant::DeathWithoutControl, 2, "nobody, one may come"),
    (Mutant::RollbackAfterRevoke, 1, "nobody, one may come"),
    (Mutant::RollbackToDeadValue, 1, "nobody, one may come"),
    (Mutant::ReuseGeneration, 0, "nobody, one may come"),
    (Mutant::StaysParked, 2, "nobody, one may come"),
    (Mutant::EmergencyTurnsBack, 2, "one consumer, hold"),
    (Mutant::SilentDoNotCount, 1, "one consumer, hold"),
];

impl Rules for Mutant {
    fn answers(&self, run: &Run, id: &EffectId) -> bool {
        match self {
            Self::EchoesCount => matches!(run.pending, Pending::Owed { .. }),
            _ => Sound.answers(run, id),
        }
    }

    fn first_act(&self, run: &Run, phase: Phase) -> Option<Act> {
        match (self, phase) {
            (Self::SetBeforeStored, Phase::Prepare) => Sound.first_act(run, Phase::Set),
            (Self::KillBeforeDrain, Phase::Drain) => Sound.first_act(run, Phase::Revoke),
            _ => Sound.first_act(run, phase),
        }
    }

    fn free(&self, seen: &Sessions) -> bool {
        *self == Self::SetWithoutLooking || Sound.free(seen)
    }

    fn after_set(&self, run: &Run) -> Phase {
        match self {
            Self::PublishBeforeVerify => Phase::Rollout,
            _ => Sound.after_set(run),
        }
    }

    fn after_rollout(&self, run: &Run) -> Phase {
        match self {
            Self::SkipDrain => Phase::Revoke,
            _ => Sound.after_rollout(run),
        }
    }

    fn after_kill(&self, run: &Run) -> Phase {
        match self {
            Self::RevokeBelieved => Phase::Closed,
            _ => Sound.after_kill(run),
        }
    }

    fn after_unknown_set(&self, run: &mut Run) -> Act {
        match self {
            Self::RegenerateAfterLostAnswer => {
                run.new.value = ValueId(run.new.value.0 + 1);
                Act::Generate { value: run.new.value }
            }
            _ => Sound.after_unknown_set(run),
        }
    }

    fn may_have_happened(&self, outcome: &Outcome) -> bool {
        match self {
            Self::LostAnswerIsRefusal => matches!(outcome, Outcome::Done(_)),
            _ => Sound.may_have_happened(outcome),
        }
    }

    fn may_stop_now(&self, run: &Run) -> bool {
        *self == Self::StopDuringSet || Sound.may_stop_now(run)
    }

    fn takes_joiner(&self, run: &Run, instance: &Instance) -> bool {
        *self != Self::JoinersIgnored && Sound.takes_joiner(run, instance)
    }

    fn statement_is_ack(&self) -> bool {
        *self == Self::StatementIsAck
    }

    fn refusal_is_ack(&self) -> bool {
        *self == Self::RefusalIsAck
    }

    fn takes_ack(&self, wanted: &Wanted, generation: Generation) -> bool {
        *self == Self::AnyGenerationIsEnough || Sound.takes_ack(wanted, generation)
    }

    fn converged(&self, consumer: &Consumer, generation: Generation, required: Level) -> bool {
        match self {
            Self::AnyLevelIsEnough => Sound.converged(consumer, generation, Level::L0),
            Self::AnyGenerationIsEnough => consumer.presence == Presence::Present && consumer.acked.is_some(),
            _ => Sound.converged(consumer, generation, required),
        }
    }

    fn excused(&self, consumer: &Consumer, slot: Option<Slot>) -> bool {
        match self {
            Self::LapsedIsConverged => consumer.presence != Presence::Present,
            Self::LapsedWithLiveTokenIsGone => Sound.excused(&Consumer { token_dead: true, ..consumer.clone() }, slot),
            _ => Sound.excused(consumer, slot),
        }
    }

    fn enough(&self, converged: usize, required: usize) -> bool {
        match self {
            Self::RetireBeforeConvergence => converged >= 1 || required == 0,
            _ => Sound.enough(converged, required),
        }
    }

    fn sessions_seen(&self, outcome: &Outcome) -> Option<Sessions> {
        match (self, outcome) {
            (Self::BlindIsSilent, Outcome::Refused(_) | Outcome::Unknown) => Some(Sessions::default()),
            _ => Sound.sessions_seen(outcome),
        }
    }

    fn silent_enough(&self, silent: Option<Timestamp>, asked: Timestamp, quiet: Duration) -> bool {
        // Any look is enough, whatever it found.
        *self == Self::QuietNotWaited || Sound.silent_enough(silent, asked, quiet)
    }

    fn dead(&self, worked: Option<&Mark>, probe: &DeathProbe) -> Result<Mac, Alive> {
        let lenient = match self {
            Self::DeathByTargetDown if probe.dead == Login::Unreachable => {
                return Ok(worked.map_or_else(|| Mac(String::new()), |mark| mark.mac.clone()));
            }
            Self::DeathWithSessions => DeathProbe { sessions: Some(0), ..probe.clone() },
            Self::DeathWithoutControl => DeathProbe { alive: Login::Accepted { mac: Mac(String::new()) }, ..probe.clone() },
            _ => return Sound.dead(worked, probe),
        };
        Sound.dead(worked, &lenient)
    }

    fn counts(&self, consumer: &Consumer) -> bool {
        match self {
            Self::SilentDoNotCount => consumer.acked.is_some_and(|(generation, _)| generation > Generation(6)),
            _ => Sound.counts(consumer),
        }
    }

    fn may_roll_back(&self, run: &Run) -> bool {
        if *self == Self::EmergencyTurnsBack {
            return Sound.may_roll_back(&Run { emergency: None, ..run.clone() });
        }
        let late = matches!(run.phase, Phase::Revoke | Phase::Prove) && run.old.is_some();
        Sound.may_roll_back(run) || (late && matches!(self, Self::RollbackAfterRevoke | Self::RollbackToDeadValue))
    }

    fn still_good(&self, outcome: &Outcome) -> bool {
        match self {
            Self::RollbackToDeadValue => matches!(outcome, Outcome::Done(Fact::Login(_))),
            _ => Sound.still_good(outcome),
        }
    }

    fn forgets_parking(&self) -> bool {
        *self != Self::StaysParked
    }

    fn back_generation(&self, run: &Run) -> Generation {
        match self {
            Self::ReuseGeneration => run.new.generation,
            _ => Sound.back_generation(run),
        }
    }
}
