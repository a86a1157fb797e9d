//! What operators say to a run: try again, go back, hurry, end.

use std::time::Duration;

use base::Timestamp;

use super::event::{Effect, Report};
use super::rules::Rules;
use super::run::{Cause, Emergency, Found, Pending, Phase, Verdict};
use super::step::Machine;

impl<R: Rules> Machine<'_, R> {
    pub(super) fn hear_resume(&mut self, by: &str) {
        if self.run.phase == Phase::Closed {
            return;
        }
        self.note(Found::Operator { by: by.to_owned(), said: "resume".to_owned() });
        self.begin_anew();
    }

    /// Forgets what a phase failed at, and tries again what it waits for.
    fn begin_anew(&mut self) {
        self.run.parked = None;
        self.run.hold = None;
        self.run.attempts = 0;
        self.run.entered = self.now;
        for consumer in self.run.consumers.values_mut() {
            consumer.nack = None;
        }
        match &self.run.pending {
            Pending::Owed { .. } => {}
            Pending::Later { act, .. } => {
                let act = act.clone();
                self.emit(act);
            }
            Pending::Nothing => {
                if !self.is_published()
                    && let Some(act) = self.rules.first_act(&self.run, self.run.phase)
                {
                    self.emit(act);
                }
            }
        }
    }

    pub(super) fn hear_abort(&mut self, by: &str, reason: &str) {
        // Who aborts an emergency says that the old value may stay in force.
        let emergency = self.run.emergency.take();
        let cause = Cause::Operator { by: by.to_owned(), reason: reason.to_owned() };
        let why_not = match self.run.phase {
            Phase::Plan | Phase::Prepare | Phase::Set | Phase::Verify => {
                if self.run.cause.is_some() {
                    return;
                }
                self.turn_back(cause);
                if self.rules.may_stop_now(&self.run) {
                    self.stop();
                }
                return;
            }
            _ if self.rules.may_roll_back(&self.run) => return self.roll_back(cause),
            Phase::Rollout if self.run.old.is_none() => {
                "there is no earlier value to go back to: `resume` tries again, `close` ends the run where it is"
            }
            Phase::Closed => "the run is over",
            Phase::Undo => "the run is stopping already: `resume` tries again, `close` ends the run where it is",
            phase if phase.is_rollback() => "the run is going back already: `resume` tries again, `close` ends the run where it is",
            _ => {
                "the old value may be dead already, so the run can only go forward: `resume` tries again, `close` ends the run where it is"
            }
        };
        self.run.emergency = emergency;
        self.refuse(why_not);
    }

    pub(super) fn hear_emergency(&mut self, by: &str, reason: &str, declared: Timestamp, grace: Duration) {
        if self.run.phase == Phase::Closed {
            return self.refuse("the run is over");
        }
        if self.run.old.is_none() {
            return self.refuse("this is the first run: there is no earlier value that could die; let it end, or `close` it");
        }
        self.note(Found::Emergency { by: by.to_owned(), reason: reason.to_owned() });
        let phase = self.run.phase;
        let again = phase == Phase::Undo || (phase.is_rollback() && phase != Phase::RollbackCheck);
        let (by, reason) = (by.to_owned(), reason.to_owned());
        self.run.emergency = Some(match self.run.emergency.take() {
            // The clock runs since the first word.
            Some(known) => Emergency { grace: known.grace.min(grace), by, reason, ..known },
            None => Emergency { declared, by, reason, grace, again, behind: Vec::new() },
        });
        match phase {
            // Nothing was published yet, and nobody goes back to a value that is in the wrong hands.
            Phase::Stage | Phase::Canary | Phase::RollbackCheck => self.hurry_to(Phase::Rollout),
            Phase::Drain => self.hurry_to(Phase::Revoke),
            Phase::RollbackDrain => self.hurry_to(Phase::RollbackRevoke),
            Phase::Plan | Phase::Prepare | Phase::Set | Phase::Verify => {
                self.run.cause = None;
                self.begin_anew();
            }
            _ => self.begin_anew(),
        }
    }

    fn hurry_to(&mut self, phase: Phase) {
        self.run.cause = None;
        for consumer in self.run.consumers.values_mut() {
            consumer.nack = None;
        }
        self.enter(phase);
    }

    pub(super) fn hear_close(&mut self, by: &str, reason: &str) {
        if self.run.phase == Phase::Closed {
            return self.refuse("the run is over");
        }
        self.note(Found::Operator { by: by.to_owned(), said: format!("close: {reason}") });
        let (unproven, kept) = (self.run.unproven(), self.run.kept());
        self.close(Verdict::Abandoned, None);
        if let Some(closed) = &mut self.run.closed {
            (closed.unproven, closed.kept) = (unproven, kept);
        }
    }

    fn refuse(&mut self, why: &'static str) {
        self.effects.push(Effect::Report(Report::NotPossible(why)));
    }
}
