//! The machine: reads the rules, moves the run.

use std::time::Duration;

use base::Timestamp;

use super::event::{Act, Claim, Code, Effect, EffectId, Event, Fact, Login, Outcome, Report, Sessions, Step};
use super::rules::{Alive, Rules, Sound, trouble};
use super::run::{
    Cause, Closed, Consumer, Death, EVIDENCE_MAX, EVIDENCE_NOISE_MAX, Evidence, Found, Generation, Instance, Laggard, Level, Mac, Mark,
    Nack, OnHard, Pending, Phase, Presence, Run, Slot, Verdict, Version, Why,
};
use super::wanted::wanted;

/// Peers that one sentence names.
const NAMED_MAX: usize = 5;
/// Consumers that are named when they are left behind.
const BEHIND_MAX: usize = 100;
/// The longest pause in an emergency.
const URGENT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What `event` makes of `run`, and what is to be done about it.
///
/// Pure: equal arguments give equal answers. Echoes, late and reordered events are harmless.
#[must_use]
pub fn step(run: &Run, event: &Event, now: Timestamp) -> Step {
    step_under(&Sound, run, event, now)
}

/// [`step`] under given rules.
#[doc(hidden)]
#[must_use]
pub fn step_under<R: Rules>(rules: &R, run: &Run, event: &Event, now: Timestamp) -> Step {
    let mut machine = Machine { rules, run: run.clone(), now, effects: Vec::new() };
    machine.hear(event);
    machine.settle();
    machine.offer(run);
    Step { run: machine.run, effects: machine.effects }
}

impl Run {
    /// Who or what the run waits for now, by name.
    #[must_use]
    pub fn laggards(&self) -> Vec<Laggard> {
        laggards(&Sound, self)
    }

    /// Instances that are there and have never acknowledged anything: named, and not waited for.
    #[must_use]
    pub fn not_counted(&self) -> Vec<&Instance> {
        let there = |consumer: &Consumer| consumer.presence == Presence::Present && !Sound.counts(consumer);
        self.consumers.iter().filter(|(_, consumer)| there(consumer)).map(|(instance, _)| instance).collect()
    }
}

pub(super) struct Machine<'a, R> {
    pub(super) rules: &'a R,
    pub(super) run: Run,
    pub(super) now: Timestamp,
    pub(super) effects: Vec<Effect>,
}

impl<R: Rules> Machine<'_, R> {
    fn hear(&mut self, event: &Event) {
        match event {
            Event::Start => {
                if self.run.phase == Phase::Plan && self.run.acts == 0 {
                    self.enter(Phase::Plan);
                }
            }
            Event::Outcome { id, outcome } => self.hear_outcome(id, outcome),
            Event::Ack { instance, generation, level } => self.hear_ack(instance, *generation, *level),
            Event::Nack { instance, generation, reason } => self.hear_nack(instance, *generation, reason),
            Event::Joined { instance, holds } => self.hear_joined(instance, *holds),
            Event::Left { instance } => self.hear_gone(instance, Presence::Left),
            Event::Lapsed { instance } => self.hear_gone(instance, Presence::Lapsed),
            Event::TokenDead { instance } => {
                let news = self.run.consumers.get_mut(instance).is_some_and(|consumer| !std::mem::replace(&mut consumer.token_dead, true));
                if news {
                    self.note(Found::TokenEnded { instance: instance.clone() });
                }
            }
            Event::Tick => {
                if let Pending::Later { at, act } = &self.run.pending
                    && *at <= self.now
                {
                    let act = act.clone();
                    self.emit(act);
                }
            }
            Event::Resume { by } => self.hear_resume(by),
            Event::Abort { by, reason } => self.hear_abort(by, reason),
            Event::Emergency { by, reason, declared, grace } => self.hear_emergency(by, reason, *declared, *grace),
            Event::Dismissed { instance, by, reason } => {
                self.hear_gone(instance, Presence::Left);
                self.note(Found::Dismissed { instance: instance.clone(), by: by.clone(), reason: reason.clone() });
            }
            Event::Close { by, reason } => self.hear_close(by, reason),
        }
    }

    // ---- consumers

    fn hear_ack(&mut self, instance: &Instance, generation: Generation, claim: Claim) {
        let wanted = wanted(&self.run, instance);
        let now = self.now;
        let Some(consumer) = self.run.consumers.get_mut(instance) else { return };
        consumer.heard = now;
        let before = (consumer.acked, consumer.standby);
        consumer.proven |= wanted.offers(generation);
        if self.rules.takes_ack(&wanted, generation) {
            let level = match consumer.acked {
                Some((acked, level)) if acked == generation => level.max(claim.level()),
                _ => claim.level(),
            };
            consumer.acked = Some((generation, level));
            consumer.holds = Some(generation);
        } else if wanted.is_standby(generation) {
            consumer.standby = Some(generation);
        }
        if before != (consumer.acked, consumer.standby) {
            self.note(Found::Acknowledged { instance: instance.clone(), generation, level: claim.level() });
        }
    }

    fn hear_nack(&mut self, instance: &Instance, generation: Generation, reason: &str) {
        if self.rules.refusal_is_ack() {
            return self.hear_ack(instance, generation, Claim::L2);
        }
        let wanted = wanted(&self.run, instance);
        let now = self.now;
        let Some(consumer) = self.run.consumers.get_mut(instance) else { return };
        consumer.heard = now;
        if !wanted.offers(generation) {
            return;
        }
        let nack = Nack { generation, reason: reason.to_owned() };
        if consumer.nack.as_ref() == Some(&nack) {
            return;
        }
        consumer.nack = Some(nack);
        let counts = self.rules.counts(consumer);
        self.note(Found::Refused { instance: instance.clone(), generation, reason: reason.to_owned() });
        if !counts {
            return;
        }
        if generation == self.run.new.generation && self.rules.may_roll_back(&self.run) {
            self.roll_back(Cause::Refused { instance: instance.clone(), reason: reason.to_owned() });
        } else if !matches!(self.run.phase, Phase::Closed) {
            self.hold();
        }
    }

    fn hear_joined(&mut self, instance: &Instance, holds: Option<Generation>) {
        let known = self.run.consumers.get(instance);
        if known.is_none() && !self.rules.takes_joiner(&self.run, instance) {
            return;
        }
        let mut consumer = Consumer::joined(holds, self.now);
        if let Some(known) = known {
            consumer.canary = known.canary;
            consumer.offered = known.offered;
            consumer.proven = known.proven;
            // The same process after a broken stream still has what it proved; one that says otherwise must prove again.
            // After a goodbye it is another process, which has proven nothing.
            consumer.acked = known.acked.filter(|(acked, _)| holds == Some(*acked) && known.presence != Presence::Left);
            consumer.nack = known.nack.clone().filter(|_| known.presence != Presence::Left);
        }
        if self.rules.statement_is_ack() {
            consumer.acked = holds.map(|holds| (holds, Level::L2));
        }
        // Whoever says that it has the new generation is treated as if it had been told to use it: a rollback must hear from it.
        consumer.offered |= self.run.rolled_out || (self.run.old.is_some() && holds == Some(self.run.new.generation));
        let news = self.run.consumers.insert(instance.clone(), consumer).is_none_or(|known| known.presence != Presence::Present);
        if news {
            self.note(Found::Joined { instance: instance.clone() });
        }
    }

    fn hear_gone(&mut self, instance: &Instance, presence: Presence) {
        let Some(consumer) = self.run.consumers.get_mut(instance) else { return };
        if consumer.presence == presence || (presence == Presence::Lapsed && consumer.presence == Presence::Left) {
            return;
        }
        consumer.presence = presence;
        consumer.standby = None;
        consumer.clear.clear();
        let instance = instance.clone();
        self.note(if presence == Presence::Left { Found::Left { instance } } else { Found::Lapsed { instance } });
    }

    // ---- outcomes

    fn hear_outcome(&mut self, id: &EffectId, outcome: &Outcome) {
        if !self.rules.answers(&self.run, id) {
            return;
        }
        let Pending::Owed { act, asked, .. } = std::mem::replace(&mut self.run.pending, Pending::Nothing) else { return };
        match &act {
            Act::Generate { value } => match outcome {
                Outcome::Done(_) => {
                    self.note(Found::Stored { value: *value });
                    self.enter(Phase::Set);
                }
                // Storing again under the same name keeps what is stored.
                _ => self.fail(act, outcome),
            },
            Act::Set { slot, .. } => self.after_set(act.clone(), *slot, outcome),
            Act::Probe { .. } => self.after_probe(act, outcome),
            Act::Publish { generation, .. } => match outcome {
                Outcome::Done(_) => {
                    self.run.published = Some(*generation);
                    self.went_well();
                    self.note(Found::Published { generation: *generation });
                }
                Outcome::Refused(Code::Denied { reason }) => self.park(reason.clone()),
                _ => self.fail(act, outcome),
            },
            Act::WatchSessions { slot } => self.after_watch(act.clone(), *slot, asked, outcome),
            Act::Kill { slot } => self.after_kill(act.clone(), *slot, outcome),
            Act::ProveDeath { .. } => self.after_proof(act, outcome),
        }
    }

    fn after_set(&mut self, act: Act, slot: Slot, outcome: &Outcome) {
        self.run.touched |= self.rules.may_have_happened(outcome);
        if matches!(outcome, Outcome::Done(_)) {
            self.note(Found::Applied { slot });
        }
        if self.run.cause.is_some() {
            return self.stop();
        }
        match outcome {
            Outcome::Done(_) => self.enter(self.rules.after_set(&self.run)),
            Outcome::Unknown => {
                self.trouble(outcome);
                let probe = self.rules.after_unknown_set(&mut self.run);
                self.emit(probe);
            }
            Outcome::Refused(Code::Unreachable) => self.fail(act, outcome),
            Outcome::Refused(Code::Denied { reason }) => self.stop_because(reason.clone()),
        }
    }

    fn after_probe(&mut self, act: Act, outcome: &Outcome) {
        let login = match outcome {
            Outcome::Done(Fact::Login(login)) if *login != Login::Unreachable => login,
            // Nothing was learnt.
            _ => return self.fail(act, outcome),
        };
        let set_again = self.rules.first_act(&self.run, Phase::Set);
        let kill_again = self.rules.first_act(&self.run, self.run.phase);
        match (self.run.phase, login) {
            (Phase::Plan, Login::Accepted { mac }) => {
                self.worked(mac, false);
                self.enter(Phase::Prepare);
            }
            // In an emergency it is well that the value in force does not work.
            (Phase::Plan, _) if self.run.emergency.is_some() => {
                self.trouble(outcome);
                self.enter(Phase::Prepare);
            }
            (Phase::Plan | Phase::Verify, Login::Refused { .. }) => self.fail(act, outcome),
            (Phase::Plan, _) => {
                let said = trouble(outcome).unwrap_or_default();
                self.stop_because(format!("the value in force does not work: {said}"));
            }
            (Phase::Set, Login::Accepted { .. }) => self.enter(self.rules.after_set(&self.run)),
            (Phase::Set, _) => self.fail_then(set_again, outcome),
            (Phase::Verify, Login::Accepted { mac }) => {
                self.worked(mac, true);
                self.run.passes = self.run.passes.saturating_add(1);
                if self.run.passes < self.run.terms.verifies {
                    self.emit(act);
                } else {
                    // Nothing is in use on a first run, so nothing can be staged or tried by a few; in an emergency there is no time for it.
                    let carefully = self.run.old.is_some() && self.run.emergency.is_none();
                    self.enter(if carefully { Phase::Stage } else { Phase::Rollout });
                }
            }
            (Phase::Verify, Login::WrongPassword { .. }) => self.fail(act, outcome),
            (Phase::Verify, _) => self.stop_because(trouble(outcome).unwrap_or_default()),
            (Phase::RollbackCheck, _) if self.rules.still_good(outcome) => {
                self.run.back = self.rules.back_generation(&self.run);
                self.enter(Phase::RollbackRepublish);
            }
            (Phase::RollbackCheck, Login::WrongPassword { .. }) => {
                let said = trouble(outcome).unwrap_or_default();
                self.park(format!("there is no working value to go back to: {said}"));
            }
            (Phase::Revoke | Phase::RollbackRevoke, Login::WrongPassword { .. }) => self.pass_on(self.rules.after_kill(&self.run)),
            (Phase::Undo, Login::WrongPassword { .. }) => self.close(Verdict::Aborted, None),
            // Nothing else says that the kill arrived, and a second one does no harm.
            (Phase::Revoke | Phase::RollbackRevoke | Phase::Undo, _) => self.fail_then(kill_again, outcome),
            _ => self.fail(act, outcome),
        }
    }

    fn worked(&mut self, mac: &Mac, new: bool) {
        let mark = Mark { mac: mac.clone(), at: self.now };
        let version = if new { Some(&mut self.run.new) } else { self.run.old.as_mut() };
        let Some(version) = version else { return };
        version.worked = Some(mark);
        let value = version.value;
        self.note(Found::LoginWorked { value, mac: mac.clone() });
    }

    fn after_watch(&mut self, act: Act, slot: Slot, asked: Timestamp, outcome: &Outcome) {
        let draining = matches!(self.run.phase, Phase::Drain | Phase::RollbackDrain);
        let Some(seen) = self.rules.sessions_seen(outcome) else {
            self.run.silent = None;
            return self.fail(act, outcome);
        };
        self.went_well();
        if self.run.phase == Phase::Plan {
            return self.choose(slot, &seen);
        }
        self.look(slot, &seen);
        if !draining {
            // Outside a drain the look is only about lapsed instances; `watch_lapsed` repeats it while there are any.
            self.run.pending = Pending::Later { at: self.now.after(self.run.terms.poll), act };
            return;
        }
        self.run.silent = if seen.count() == 0 { self.run.silent.or(Some(self.now)) } else { None };
        let quiet = self.run.terms.quiet;
        if self.rules.silent_enough(self.run.silent, asked, quiet) && self.everybody() {
            return self.enter(if self.run.phase == Phase::Drain { Phase::Revoke } else { Phase::RollbackRevoke });
        }
        let poll = self.now.after(self.run.terms.poll);
        let due = self.run.silent.map(|since| since.after(quiet)).filter(|due| *due > self.now);
        self.run.pending = Pending::Later { at: due.map_or(poll, |due| due.min(poll)), act };
    }

    /// The new value goes to `slot` if that is nobody's. Before the first run both slots are alike, so the second will do as well.
    fn choose(&mut self, slot: Slot, seen: &Sessions) {
        self.note(Found::Sessions { slot, count: seen.count() });
        if !self.rules.free(seen) {
            if self.run.old.is_none() && slot == Slot(0) {
                self.run.new.slot = Slot(1);
                return self.emit(Act::WatchSessions { slot: Slot(1) });
            }
            if self.run.emergency.is_some() {
                // The slot's value has been dead since the last run: its sessions are ended, and the look is repeated.
                return self.emit(Act::Kill { slot });
            }
            let who: Vec<String> = seen.peers.iter().take(NAMED_MAX).map(|peer| format!("`{}` ({})", peer.name, peer.count)).collect();
            return self.stop_because(format!("somebody is logged in to the slot that was to get the new value: {}", who.join(", ")));
        }
        match &self.run.old {
            Some(old) => self.emit(Act::Probe { slot: old.slot, value: old.value }),
            None => self.enter(Phase::Prepare),
        }
    }

    /// Takes note of who is logged in to `slot`.
    fn look(&mut self, slot: Slot, seen: &Sessions) {
        let names: Vec<(String, u32)> =
            seen.peers.iter().filter(|peer| peer.count > 0).map(|peer| (peer.name.clone(), peer.count)).collect();
        // A session that no known instance put its name on could be anybody's.
        let unattributed = names.iter().any(|(name, _)| !self.run.consumers.contains_key(&Instance(name.clone())));
        for (instance, consumer) in &mut self.run.consumers {
            let could_be_its = unattributed || names.iter().any(|(name, _)| *name == instance.0);
            if consumer.presence == Presence::Lapsed && !could_be_its {
                consumer.clear.insert(slot);
            } else {
                consumer.clear.remove(&slot);
            }
        }
        self.run.sessions = names;
        self.note(Found::Sessions { slot, count: seen.count() });
    }

    fn after_kill(&mut self, act: Act, slot: Slot, outcome: &Outcome) {
        match outcome {
            Outcome::Done(fact) => {
                let terminated = if let Fact::Killed { terminated } = fact { *terminated } else { 0 };
                self.note(Found::Killed { slot, terminated });
                if self.run.phase == Phase::Plan {
                    self.again(Act::WatchSessions { slot });
                } else if self.run.phase == Phase::Undo {
                    let probe = self.undone();
                    self.emit(probe);
                } else {
                    self.pass_on(self.rules.after_kill(&self.run));
                }
            }
            Outcome::Unknown if self.run.phase == Phase::Plan => self.fail(Act::WatchSessions { slot }, outcome),
            Outcome::Unknown if self.run.phase == Phase::Undo => {
                self.trouble(outcome);
                let probe = self.undone();
                self.emit(probe);
            }
            Outcome::Unknown => {
                self.trouble(outcome);
                let going = if self.run.phase == Phase::Revoke { self.run.old.as_ref() } else { Some(&self.run.new) };
                if let Some(going) = going {
                    self.emit(Act::Probe { slot: going.slot, value: going.value });
                }
            }
            Outcome::Refused(_) => self.fail(act, outcome),
        }
    }

    /// How to see that the new value is invalid although it never worked: beside the old one, or alone on a first run.
    fn undone(&self) -> Act {
        let new = &self.run.new;
        match &self.run.old {
            Some(old) => Act::ProveDeath { slot: new.slot, dead: new.value, alive_slot: old.slot, alive: old.value },
            None => Act::Probe { slot: new.slot, value: new.value },
        }
    }

    fn after_proof(&mut self, act: Act, outcome: &Outcome) {
        let Outcome::Done(Fact::Death(probe)) = outcome else { return self.fail(act, outcome) };
        if self.run.phase == Phase::Undo {
            return match self.rules.invalid(probe) {
                Ok(_) => self.close(Verdict::Aborted, None),
                Err(alive) => self.not_dead(act, alive),
            };
        }
        let back = self.run.phase.is_rollback();
        let (going, staying) =
            if back { (Some(&self.run.new), self.run.old.as_ref()) } else { (self.run.old.as_ref(), Some(&self.run.new)) };
        let (Some(going), Some(staying)) = (going, staying) else { return };
        let (value, slot, alive) = (going.value, going.slot, staying.value);
        match self.rules.dead(going.worked.as_ref(), probe) {
            Ok(mac) => {
                let worked = going.worked.clone().unwrap_or(Mark { mac, at: self.now });
                let sessions = probe.sessions.unwrap_or(0);
                self.note(Found::Dead { value });
                let death = Death { value, slot, worked, refused_at: self.now, alive, sessions };
                self.close(if back { Verdict::RolledBack } else { Verdict::Rotated }, Some(death));
            }
            Err(alive) => self.not_dead(act, alive),
        }
    }

    fn not_dead(&mut self, proof: Act, alive: Alive) {
        let said = match &alive {
            Alive::StillAccepted => "the value still works after it was revoked".to_owned(),
            Alive::Sessions(count) => format!("{count} sessions are left after the value was revoked"),
            Alive::ProvesNothing(said) => said.clone(),
        };
        self.say_trouble(&said);
        if let Alive::ProvesNothing(_) = alive {
            return self.again(proof);
        }
        self.run.phase = match self.run.phase {
            Phase::Prove => Phase::Revoke,
            Phase::RollbackProve => Phase::RollbackRevoke,
            phase => phase,
        };
        // In an emergency sessions are ended as often as they come; a value that goes on working is an operator's matter.
        let ends_sessions = self.run.emergency.is_some() && matches!(alive, Alive::Sessions(_));
        if !ends_sessions && self.run.attempts.saturating_add(1) >= self.run.terms.attempts {
            return self.park(said);
        }
        if let Some(kill) = self.rules.first_act(&self.run, self.run.phase) {
            self.again(kill);
        }
    }

    // ---- moving

    /// Begins a phase.
    pub(super) fn enter(&mut self, phase: Phase) {
        if phase == Phase::Closed {
            // Only a broken rule comes here; the checker sees a run that ended without a proof.
            return self.close(Verdict::Rotated, None);
        }
        self.run.attempts = 0;
        self.run.hold = None;
        self.pass_on(phase);
    }

    /// Begins a phase without forgetting how often the last one failed.
    fn pass_on(&mut self, phase: Phase) {
        if phase == Phase::Closed {
            return self.enter(phase);
        }
        let run = &mut self.run;
        run.phase = phase;
        run.entered = self.now;
        if self.rules.forgets_parking() {
            run.parked = None;
        }
        run.passes = 0;
        run.pending = Pending::Nothing;
        run.trouble = None;
        run.soaking = None;
        run.silent = None;
        run.sessions.clear();
        if phase == Phase::Rollout {
            run.rolled_out = true;
            for consumer in run.consumers.values_mut() {
                consumer.offered |= consumer.presence != Presence::Left;
            }
        }
        self.note(Found::Entered);
        self.effects.push(Effect::Report(Report::Entered(phase)));
        if let Some(act) = self.rules.first_act(&self.run, phase) {
            self.emit(act);
        }
    }

    pub(super) fn emit(&mut self, act: Act) {
        self.run.acts = self.run.acts.saturating_add(1);
        let id = EffectId { run: self.run.id.clone(), phase: self.run.phase, n: self.run.acts };
        self.run.pending = Pending::Owed { id: id.clone(), act: act.clone(), asked: self.now };
        self.effects.push(Effect::Act { id, act });
    }

    fn went_well(&mut self) {
        self.run.attempts = 0;
        self.run.trouble = None;
    }

    fn trouble(&mut self, outcome: &Outcome) {
        if let Some(said) = trouble(outcome) {
            self.say_trouble(&said);
        }
    }

    fn say_trouble(&mut self, said: &str) {
        self.run.trouble = Some(said.to_owned());
        self.note(Found::Trouble { reason: said.to_owned() });
    }

    fn fail_then(&mut self, act: Option<Act>, outcome: &Outcome) {
        let Some(act) = act else { return };
        match trouble(outcome) {
            Some(said) => self.say_trouble(&said),
            None => self.say_trouble("the value still works after it was revoked"),
        }
        // A revocation that does nothing is not repaired by repeating it for ever.
        if matches!(act, Act::Kill { .. }) && self.run.attempts.saturating_add(1) >= self.run.terms.attempts {
            let said = self.run.trouble.clone().unwrap_or_default();
            return self.park(said);
        }
        self.again(act);
    }

    fn fail(&mut self, act: Act, outcome: &Outcome) {
        self.trouble(outcome);
        self.again(act);
    }

    /// After a failure: later once more, or enough.
    fn again(&mut self, act: Act) {
        self.run.attempts = self.run.attempts.saturating_add(1);
        let terms = &self.run.terms;
        let worn_out = self.run.attempts >= terms.attempts;
        let doublings = self.run.attempts.saturating_sub(1).min(30);
        let longest = if self.run.emergency.is_some() { terms.backoff_max.min(URGENT_PAUSE_MAX) } else { terms.backoff_max };
        let pause = terms.backoff.saturating_mul(1 << doublings).min(longest);
        if worn_out && self.run.emergency.is_none() && matches!(self.run.phase, Phase::Plan | Phase::Prepare | Phase::Set | Phase::Verify) {
            let said = self.run.trouble.clone().unwrap_or_default();
            return self.stop_because(said);
        }
        self.run.pending = Pending::Later { at: self.now.after(pause), act };
        if worn_out {
            self.hold();
        }
    }

    fn stop_because(&mut self, reason: String) {
        if self.run.emergency.is_some() {
            // To stop would leave the old value in force.
            return self.park(reason);
        }
        self.turn_back(Cause::Target { reason });
        self.stop();
    }

    pub(super) fn turn_back(&mut self, cause: Cause) {
        self.run.cause = Some(cause.clone());
        self.note(Found::TurnedBack { cause: cause.clone() });
        self.effects.push(Effect::Report(Report::TurningBack(cause)));
    }

    /// Nobody was given the new value: end the run, after making the value invalid where the target may know it.
    pub(super) fn stop(&mut self) {
        if self.run.touched {
            self.enter(Phase::Undo);
        } else {
            self.close(Verdict::Aborted, None);
        }
    }

    pub(super) fn roll_back(&mut self, cause: Cause) {
        self.turn_back(cause);
        self.enter(Phase::RollbackCheck);
    }

    fn park(&mut self, reason: String) {
        self.run.pending = Pending::Nothing;
        self.run.parked = Some(reason.clone());
        self.note(Found::Parked { reason: reason.clone() });
        self.effects.push(Effect::Report(Report::Parked(reason)));
    }

    pub(super) fn close(&mut self, verdict: Verdict, death: Option<Death>) {
        let run = &mut self.run;
        run.phase = Phase::Closed;
        run.entered = self.now;
        run.pending = Pending::Nothing;
        run.hold = None;
        run.parked = None;
        run.trouble = None;
        run.sessions.clear();
        run.closed = Some(Closed { at: self.now, verdict, death, unproven: Vec::new(), kept: None });
        self.note(Found::Entered);
        self.effects.push(Effect::Report(Report::Closed(verdict)));
    }

    // ---- what follows from the state alone

    fn settle(&mut self) {
        while self.run.parked.is_none() && self.leave_phase() {}
        if self.run.parked.is_none() && self.run.phase != Phase::Closed {
            self.be_patient();
            self.watch_lapsed();
        }
        let wake = self.next_wake();
        if wake != self.run.wake {
            self.run.wake = wake;
            self.effects.extend(wake.map(|at| Effect::Timer { at }));
        }
    }

    /// Moves on if the phase has what it waits for; says whether it did.
    fn leave_phase(&mut self) -> bool {
        match self.run.phase {
            Phase::Stage if self.everybody() => self.enter(Phase::Canary),
            Phase::Canary => {
                let well = self.canaries_are_well();
                if well {
                    self.enter(Phase::Rollout);
                }
                return well;
            }
            Phase::Rollout if self.is_published() && (self.everybody() || self.out_of_patience()) => {
                if self.run.old.is_none() {
                    self.close(Verdict::First, None);
                } else {
                    self.leave_behind();
                    self.enter(self.rules.after_rollout(&self.run));
                }
            }
            Phase::RollbackRepublish if self.is_published() && (self.everybody() || self.out_of_patience()) => {
                self.leave_behind();
                self.enter(if self.run.emergency.is_some() { Phase::RollbackRevoke } else { Phase::RollbackDrain });
            }
            _ => return false,
        }
        true
    }

    fn out_of_patience(&self) -> bool {
        self.rules.patience(&self.run).is_some_and(|until| self.now >= until)
    }

    /// In an emergency: names those who are not known to have left the value that is revoked now.
    fn leave_behind(&mut self) {
        let behind = laggards(self.rules, &self.run);
        if let (Some(emergency), false) = (&mut self.run.emergency, behind.is_empty()) {
            let count = behind.len();
            emergency.behind = behind.into_iter().take(BEHIND_MAX).collect();
            let who = emergency.behind.iter().map(|laggard| laggard.who.clone()).collect();
            self.note(Found::LeftBehind { who, count });
        }
    }

    pub(super) fn is_published(&self) -> bool {
        match self.run.phase {
            Phase::Rollout => self.run.published == Some(self.run.new.generation),
            Phase::RollbackRepublish => self.run.published == Some(self.run.back),
            _ => false,
        }
    }

    fn everybody(&self) -> bool {
        let required = required(self.rules, &self.run);
        let converged = required.iter().filter(|(_, lack)| lack.is_none()).count();
        self.rules.enough(converged, required.len())
    }

    fn canaries_are_well(&mut self) -> bool {
        let slot = watched(&self.run);
        let may_go_first = |consumer: &Consumer| consumer.presence == Presence::Present && self.rules.counts(consumer);
        let present = self.run.consumers.values().filter(|consumer| may_go_first(consumer)).count();
        let wanted = usize::try_from(self.run.terms.canaries).unwrap_or(usize::MAX).min(present);
        let mut active = self.run.consumers.values().filter(|consumer| consumer.canary && !self.rules.excused(consumer, slot)).count();
        for consumer in self.run.consumers.values_mut() {
            if active < wanted && may_go_first(consumer) && !consumer.canary {
                consumer.canary = true;
                consumer.offered = true;
                active = active.saturating_add(1);
                self.run.soaking = None;
            }
        }
        if active == 0 {
            return true;
        }
        if !self.everybody() {
            self.run.soaking = None;
            return false;
        }
        let since = *self.run.soaking.get_or_insert(self.now);
        self.now >= since.after(self.run.terms.soak)
    }

    /// Deadlines.
    fn be_patient(&mut self) {
        if !is_patient(self.run.phase) {
            return;
        }
        let hard = self.now >= self.run.entered.after(self.run.terms.hard);
        if hard && self.run.terms.on_hard == OnHard::Rollback && self.rules.may_roll_back(&self.run) {
            let phase = self.run.phase;
            return self.roll_back(Cause::Deadline { phase });
        }
        if self.now >= self.run.entered.after(self.run.terms.soft) {
            self.hold();
        }
    }

    pub(super) fn hold(&mut self) {
        if self.run.hold.is_none() {
            self.run.hold = Some(self.now);
            self.note(Found::Held);
            self.effects.push(Effect::Report(Report::Held(laggards(self.rules, &self.run))));
        }
    }

    /// A lapsed instance can only be let go by looking at the slot that is to die.
    fn watch_lapsed(&mut self) {
        let waits = matches!(self.run.phase, Phase::Canary | Phase::Rollout | Phase::RollbackRepublish);
        let lapsed = required(self.rules, &self.run).iter().any(|(_, lack)| *lack == Some(Why::Lapsed));
        match (&self.run.pending, watched(&self.run)) {
            (Pending::Nothing, Some(slot)) if waits && lapsed => self.emit(Act::WatchSessions { slot }),
            (Pending::Later { act: Act::WatchSessions { .. }, .. }, _) if waits && !lapsed => self.run.pending = Pending::Nothing,
            _ => {}
        }
    }

    fn next_wake(&self) -> Option<Timestamp> {
        let run = &self.run;
        if run.parked.is_some() || run.phase == Phase::Closed {
            return None;
        }
        let act = if let Pending::Later { at, .. } = &run.pending { Some(*at) } else { None };
        let soak = run.soaking.filter(|_| run.phase == Phase::Canary).map(|since| since.after(run.terms.soak));
        let patient = is_patient(run.phase);
        let soft = Some(run.entered.after(run.terms.soft)).filter(|_| patient && run.hold.is_none());
        let may = run.terms.on_hard == OnHard::Rollback && self.rules.may_roll_back(run);
        let hard = Some(run.entered.after(run.terms.hard)).filter(|_| patient && may);
        let waits = matches!(run.phase, Phase::Rollout | Phase::RollbackRepublish) && self.is_published();
        let patience = self.rules.patience(run).filter(|_| waits);
        [act, soak, soft, hard, patience].into_iter().flatten().min()
    }

    fn offer(&mut self, before: &Run) {
        for instance in self.run.consumers.keys() {
            if wanted(before, instance) != wanted(&self.run, instance) {
                self.effects.push(Effect::Offer { instance: instance.clone() });
            }
        }
    }

    pub(super) fn note(&mut self, found: Found) {
        let run = &mut self.run;
        let same = run.evidence.last().is_some_and(|last| last.phase == run.phase && last.found == found);
        let repeats = matches!(found, Found::Sessions { .. } | Found::Trouble { .. });
        if same && repeats {
            return;
        }
        // What comes as often as the world likes leaves room for what the run itself does.
        let max = if found.is_milestone() { EVIDENCE_MAX } else { EVIDENCE_NOISE_MAX };
        if run.evidence.len() >= max {
            run.evidence_dropped = run.evidence_dropped.saturating_add(1);
            return;
        }
        run.evidence.push(Evidence { at: self.now, phase: run.phase, found });
    }
}

fn is_patient(phase: Phase) -> bool {
    matches!(phase, Phase::Stage | Phase::Canary | Phase::Rollout | Phase::Drain | Phase::RollbackRepublish | Phase::RollbackDrain)
}

/// The slot that is to die if the run goes on as it does; none when nothing was alive before.
fn watched(run: &Run) -> Option<Slot> {
    let old = run.old.as_ref().map(|old| old.slot);
    match run.phase {
        Phase::Rollout | Phase::Drain | Phase::Revoke | Phase::Prove => old,
        // Before the rollout only the canaries are on the new slot; that is where a lapsed one must not be.
        _ => old.map(|_| run.new.slot),
    }
}

/// Everybody whom the phase waits for, with what each lacks.
fn required<'r>(rules: &impl Rules, run: &'r Run) -> Vec<(&'r Instance, Option<Why>)> {
    let slot = watched(run);
    let Version { generation: new, .. } = run.new;
    let required = run.terms.required;
    let (target, counts): (Generation, fn(&Consumer) -> bool) = match run.phase {
        // Nothing depends on who is not there to be staged.
        Phase::Stage => (new, |consumer| consumer.presence == Presence::Present),
        Phase::Canary => (new, |consumer| consumer.canary),
        Phase::Rollout | Phase::Drain => (new, |_| true),
        // Who was never told to use the new value still has the old one, under its old number.
        Phase::RollbackRepublish | Phase::RollbackDrain => (run.back, |consumer| consumer.offered),
        _ => return Vec::new(),
    };
    run.consumers
        .iter()
        .filter(|(_, consumer)| counts(consumer) && rules.counts(consumer) && !rules.excused(consumer, slot))
        .map(|(instance, consumer)| {
            let staged = run.phase == Phase::Stage && consumer.standby == Some(new);
            let lack = if staged || rules.converged(consumer, target, required) {
                None
            } else if let Some(nack) = consumer.nack.as_ref().filter(|nack| nack.generation == target) {
                Some(Why::Refused { reason: nack.reason.clone() })
            } else if consumer.presence == Presence::Lapsed {
                Some(Why::Lapsed)
            } else {
                let required = if run.phase == Phase::Stage { Level::L1 } else { required };
                Some(Why::NotAcknowledged { generation: target, required })
            };
            (instance, lack)
        })
        .collect()
}

fn laggards(rules: &impl Rules, run: &Run) -> Vec<Laggard> {
    let consumers = required(rules, run).into_iter().filter_map(|(instance, why)| Some(Laggard { who: instance.0.clone(), why: why? }));
    let draining = matches!(run.phase, Phase::Drain | Phase::RollbackDrain);
    let slot = watched(run).filter(|_| draining);
    let sessions = slot.into_iter().flat_map(|slot| {
        run.sessions.iter().map(move |(who, count)| Laggard { who: who.clone(), why: Why::Sessions { slot, count: *count } })
    });
    let target = run.trouble.iter().map(|reason| Laggard { who: "target".to_owned(), why: Why::Target { reason: reason.clone() } });
    consumers.chain(sessions).chain(target).collect()
}
