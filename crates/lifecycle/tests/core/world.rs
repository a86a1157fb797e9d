//! A small world for the rotation machine: a target with two slots, consumers that come, go, lag, refuse and lose their streams,
//! answers that get lost, echoes, and an operator. Explored state by state.
//!
//! The world keeps the truth (which password a slot really has, what a process really uses) beside what the machine believes, and
//! names a flaw as soon as the truth breaks an invariant.

#[path = "moves.rs"]
mod moves;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::Timestamp;
use lifecycle::core::{
    Act, Claim, Code, Consumer, DeathProbe, Effect, EffectId, Event, Fact, Generation, Instance, Laggard, Level, Login, Mac, Mark, OnHard,
    Outcome, Peer, Pending, Phase, Plan, Rules, Run, RunId, Sessions, Slot, Terms, ValueId, Verdict, Version, step_under, wanted,
};
use stateright::{Model, Property};

/// One unit of the world's time.
const UNIT: Duration = Duration::from_secs(1);
/// Every state is moved in time so that now is this.
const NOW: Timestamp = Timestamp(1_000_000_000);
/// What is longer ago than this many units is all the same to the machine.
const PAST_MAX: u64 = 6;

const OLD: Slot = Slot(0);
const NEW: Slot = Slot(1);
const OLD_VALUE: ValueId = ValueId(6);
const NEW_VALUE: ValueId = ValueId(7);
const STRANGER: &str = "stranger";

/// What is explored: who is there and what may go wrong.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub name: &'static str,
    /// There is a value in force.
    pub predecessor: bool,
    /// Consumers that are there at the beginning.
    pub present: usize,
    /// Consumers that may come.
    pub absent: usize,
    pub on_hard: OnHard,
    pub required: Level,
    /// Somebody whom nobody knows is logged in to the slot that would get the new value.
    pub squatter: bool,
    /// How many things may go wrong in one history.
    pub faults: u8,
}

pub(crate) struct World<R> {
    pub rules: R,
    pub setup: Setup,
    /// From every state, see whether the run still ends once nothing goes wrong any more.
    pub liveness: bool,
}

/// What the target does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    Up,
    Down,
    /// Up, but it calls every password wrong.
    Deaf,
}

/// A consumer process as it really is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    alive: bool,
    /// Its stream is open.
    linked: bool,
    token_dead: bool,
    using: Option<(Generation, ValueId)>,
    standby: Option<(Generation, ValueId)>,
    /// Received for use, not yet used.
    received: Option<(Generation, ValueId)>,
    /// The highest generation this process was told to use.
    told: Option<Generation>,
    refused: Option<Generation>,
    sessions: BTreeSet<Slot>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Letter {
    Ack(usize, Generation, bool),
    Nack(usize, Generation),
}

impl Letter {
    fn from(&self) -> usize {
        match self {
            Self::Ack(i, ..) | Self::Nack(i, _) => *i,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub run: Run,
    owed: Vec<(EffectId, Act)>,
    echo: Option<Event>,
    passwords: BTreeMap<Slot, Option<ValueId>>,
    /// A change that was sent and may still arrive.
    late: Option<(Slot, ValueId)>,
    mode: Mode,
    stored: BTreeSet<ValueId>,
    verified: BTreeSet<ValueId>,
    current: Option<(Generation, ValueId)>,
    names: BTreeMap<Generation, ValueId>,
    processes: Vec<Process>,
    stranger: Option<Slot>,
    mail: BTreeSet<Letter>,
    faults: u8,
    aborted: bool,
    pub flaw: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum How {
    /// Done and answered.
    Well,
    /// Done, the answer is lost (also: the manager is killed before it settles).
    AnswerLost,
    /// Not done, and the answer is lost.
    RequestLost,
    /// The answer is lost and the change arrives later.
    Delayed,
    /// The verifier is changed, the sessions are not ended, the answer is lost.
    Half,
    /// The target says that it is done and does nothing.
    Pretended,
    /// The store will not take the new version.
    Denied,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Move {
    Perform(usize, How),
    Arrive,
    Tick,
    Deliver(Letter),
    DeliverTwice(Letter),
    Echo,
    Receive(usize),
    Use(usize),
    Refuse(usize),
    CloseOld(usize),
    /// Its pool is empty for a while; it still uses what it used.
    Idle(usize),
    Work(usize),
    Cut(usize),
    EndToken(usize),
    Return(usize),
    Die(usize),
    Leave(usize),
    Join(usize),
    StrangerGoes,
    StrangerComes,
    Turn(Mode),
    Abort,
    Resume,
    Emergency,
}

fn name(i: usize) -> Instance {
    Instance(format!("i{i}"))
}

fn mac(value: ValueId) -> Mac {
    Mac(format!("m{}", value.0))
}

impl<R: Rules> World<R> {
    fn start(&self) -> State {
        let setup = &self.setup;
        let old = setup.predecessor.then_some(Version {
            generation: Generation(6),
            value: OLD_VALUE,
            slot: OLD,
            // It was verified by the run that brought it.
            worked: Some(Mark { mac: mac(OLD_VALUE), at: NOW }),
        });
        let using = old.as_ref().map(|old| (old.generation, old.value));
        let mut consumers = BTreeMap::new();
        let mut processes = Vec::new();
        for i in 0..setup.present + setup.absent {
            let here = i < setup.present;
            let using = using.filter(|_| here);
            processes.push(Process {
                alive: here,
                linked: here,
                token_dead: false,
                using,
                standby: None,
                received: None,
                told: using.map(|(generation, _)| generation),
                refused: None,
                sessions: using.iter().map(|_| OLD).collect(),
            });
            if here {
                let mut consumer = Consumer::joined(using.map(|(generation, _)| generation), NOW);
                consumer.acked = using.map(|(generation, _)| (generation, setup.required));
                consumer.proven = using.is_some();
                consumers.insert(name(i), consumer);
            }
        }
        let terms = Terms {
            required: setup.required,
            canaries: 1,
            soak: UNIT,
            quiet: UNIT,
            poll: UNIT,
            soft: UNIT * 2,
            hard: UNIT * 4,
            on_hard: setup.on_hard,
            verifies: 1,
            attempts: 2,
            backoff: UNIT,
            backoff_max: UNIT,
        };
        // Before a first run the slots are alike, and the machine begins with the first.
        let slot = if setup.predecessor { NEW } else { OLD };
        let new = Version { generation: Generation(7), value: NEW_VALUE, slot, worked: None };
        let run = Run::open(Plan { id: RunId("r".to_owned()), terms, old: old.clone(), new, consumers }, NOW);
        let stored: BTreeSet<ValueId> = old.iter().map(|old| old.value).collect();
        let mut state = State {
            run,
            owed: Vec::new(),
            echo: None,
            passwords: BTreeMap::from([(OLD, old.as_ref().map(|old| old.value)), (NEW, None)]),
            late: None,
            mode: Mode::Up,
            verified: stored.clone(),
            stored,
            current: using,
            names: using.into_iter().collect(),
            processes,
            stranger: setup.squatter.then_some(slot),
            mail: BTreeSet::new(),
            faults: setup.faults,
            aborted: false,
            flaw: None,
        };
        self.hear(&mut state, &Event::Start, NOW);
        state.settle();
        state
    }

    fn hear(&self, state: &mut State, event: &Event, now: Timestamp) -> bool {
        let step = step_under(&self.rules, &state.run, event, now);
        let moved = step.run != state.run;
        state.run = step.run;
        let mut acted = false;
        for effect in step.effects {
            if let Effect::Act { id, act } = effect {
                acted = true;
                state.owed.push((id, act));
            }
        }
        moved || acted
    }

    fn perform(&self, state: &mut State, k: usize, how: How) {
        if k >= state.owed.len() {
            return;
        }
        let (id, act) = state.owed.remove(k);
        let outcome = state.act_on_world(&act, how);
        let event = Event::Outcome { id, outcome };
        let ran = state.run.parked.is_none();
        self.hear(state, &event, NOW);
        if ran && state.mode == Mode::Down && state.run.phase == Phase::RollbackCheck && state.run.parked.is_some() {
            state.flaw = Some("a target that was only down parked the way back");
        }
        state.echo = Some(event);
    }

    fn apply(&self, state: &mut State, mv: &Move) {
        let mut now = NOW;
        match mv {
            Move::Perform(k, how) => {
                if *how != How::Well {
                    state.faults -= 1;
                }
                self.perform(state, *k, *how);
            }
            Move::Arrive => {
                if let Some((slot, value)) = state.late.take() {
                    state.passwords.insert(slot, Some(value));
                }
            }
            Move::Tick => {
                now = state.run.wake.unwrap_or(NOW).max(NOW);
                self.hear(state, &Event::Tick, now);
            }
            Move::Deliver(letter) => {
                state.mail.remove(letter);
                self.deliver(state, letter);
            }
            Move::DeliverTwice(letter) => {
                state.faults -= 1;
                self.deliver(state, letter);
            }
            Move::Echo => {
                state.faults -= 1;
                if let Some(event) = state.echo.take()
                    && self.hear(state, &event, NOW)
                {
                    state.flaw = Some("an echo moved the run");
                }
            }
            Move::Turn(mode) => {
                if *mode != Mode::Up {
                    state.faults -= 1;
                }
                state.mode = *mode;
            }
            Move::Abort => {
                state.faults -= 1;
                state.aborted = true;
                self.hear(state, &Event::Abort { by: "op".to_owned(), reason: "asked".to_owned() }, NOW);
            }
            Move::Resume => {
                self.hear(state, &Event::Resume { by: "op".to_owned() }, NOW);
            }
            Move::Emergency => {
                state.faults -= 1;
                let (by, reason) = ("op".to_owned(), "leaked".to_owned());
                self.hear(state, &Event::Emergency { by, reason, declared: NOW, grace: UNIT }, NOW);
            }
            Move::StrangerGoes => state.stranger = None,
            Move::StrangerComes => {
                state.faults -= 1;
                state.stranger = Some(OLD);
            }
            Move::Receive(i)
            | Move::Use(i)
            | Move::Refuse(i)
            | Move::CloseOld(i)
            | Move::Idle(i)
            | Move::Work(i)
            | Move::Cut(i)
            | Move::EndToken(i)
            | Move::Return(i)
            | Move::Die(i)
            | Move::Leave(i)
            | Move::Join(i) => {
                if let Some(event) = state.consume(mv, *i) {
                    self.hear(state, &event, NOW);
                }
            }
        }
        state.check();
        state.rebase(now);
        state.settle();
    }

    fn deliver(&self, state: &mut State, letter: &Letter) {
        let event = match letter {
            Letter::Ack(i, generation, loaded) => {
                Event::Ack { instance: name(*i), generation: *generation, level: if *loaded { Claim::L2 } else { Claim::L1 } }
            }
            Letter::Nack(i, generation) => Event::Nack { instance: name(*i), generation: *generation, reason: "unfit".to_owned() },
        };
        self.hear(state, &event, NOW);
    }

    /// Lets nothing go wrong any more and everybody do what they should. Says whether the run ends.
    pub(crate) fn ends(&self, state: &State) -> bool {
        let mut state = state.clone();
        state.faults = 0;
        for _ in 0..200 {
            if state.run.phase == Phase::Closed || state.flaw.is_some() {
                return true;
            }
            let mv = self.helpful(&state);
            self.apply(&mut state, &mv);
        }
        false
    }

    /// Whether an operator can close the run where it is, and is told what nobody knows: of every value that opens a slot and is not in
    /// force, and of one in force that opens none. Nobody is sent back to a lower generation.
    pub(crate) fn has_an_honest_exit(&self, state: &State) -> bool {
        if state.run.closed.is_some() {
            return true;
        }
        let close = Event::Close { by: "op".to_owned(), reason: "asked".to_owned() };
        let run = step_under(&self.rules, &state.run, &close, NOW).run;
        let Some(closed) = run.closed.as_ref().filter(|closed| closed.verdict == Verdict::Abandoned) else { return false };
        let in_force = run.in_force();
        let named = |value: ValueId| closed.unproven.iter().any(|unproven| unproven.value == value);
        let is_in_force = |value: ValueId| in_force.as_ref().is_some_and(|version| version.value == value);
        let open = state.passwords.values().flatten().chain(state.late.iter().map(|(_, value)| value));
        let nothing_hidden = open.into_iter().all(|value| is_in_force(*value) || named(*value));
        let sound = in_force.as_ref().is_none_or(|version| state.accepts(version.value) || named(version.value));
        let nobody_falls = state.processes.iter().enumerate().all(|(i, process)| {
            let next = wanted(&run, &name(i)).using.map(|(generation, _)| generation);
            next.is_none() || process.told <= next
        });
        nothing_hidden && sound && nobody_falls
    }

    fn helpful(&self, state: &State) -> Move {
        if state.mode != Mode::Up {
            return Move::Turn(Mode::Up);
        }
        let mut moves = Vec::new();
        state.moves(&mut moves);
        let rank = |mv: &Move| match mv {
            Move::Deliver(_) => 0,
            Move::Arrive => 1,
            Move::Return(_) => 2,
            Move::Receive(_) => 3,
            Move::Use(_) => 4,
            Move::CloseOld(_) | Move::StrangerGoes => 5,
            Move::Perform(_, How::Well) => 6,
            // The token of a dead process ends by itself.
            Move::EndToken(i) if state.processes.get(*i).is_some_and(|process| !process.alive) => 7,
            Move::Resume => 8,
            Move::Tick => 9,
            _ => 99,
        };
        moves.into_iter().filter(|mv| rank(mv) < 99).min_by_key(rank).unwrap_or(Move::Resume)
    }
}

impl State {
    fn accepts(&self, value: ValueId) -> bool {
        self.passwords.values().any(|password| *password == Some(value))
    }

    fn slot_of(&self, value: ValueId) -> Slot {
        if value == OLD_VALUE { OLD } else { self.run.new.slot }
    }

    fn password(&self, slot: Slot) -> Option<ValueId> {
        self.passwords.get(&slot).copied().flatten()
    }

    /// The instances that hold a session on `slot`, the stranger included.
    fn sessions(&self, slot: Slot) -> Vec<String> {
        let own = self.processes.iter().enumerate().filter(|(_, p)| p.sessions.contains(&slot)).map(|(i, _)| name(i).0);
        own.chain(self.stranger.filter(|at| *at == slot).map(|_| STRANGER.to_owned())).collect()
    }

    fn login(&self, slot: Slot, value: ValueId) -> Login {
        match self.mode {
            Mode::Up if self.password(slot) == Some(value) => Login::Accepted { mac: mac(value) },
            Mode::Up | Mode::Deaf => Login::WrongPassword { mac: mac(value) },
            Mode::Down => Login::Unreachable,
        }
    }

    fn act_on_world(&mut self, act: &Act, how: How) -> Outcome {
        let lost = matches!(how, How::AnswerLost | How::RequestLost | How::Delayed | How::Half);
        let outcome = if how == How::RequestLost { Outcome::Unknown } else { self.act_if_up(act, how) };
        if lost { Outcome::Unknown } else { outcome }
    }

    fn act_if_up(&mut self, act: &Act, how: How) -> Outcome {
        match act {
            Act::Generate { value } => {
                self.stored.insert(*value);
                if self.stored.iter().filter(|value| **value != OLD_VALUE).count() > 1 {
                    self.flaw = Some("a run made two values");
                }
                return Outcome::Done(Fact::Stored);
            }
            Act::Publish { .. } if how == How::Denied => return Outcome::Refused(Code::Denied { reason: "no".to_owned() }),
            Act::Publish { generation, value } => {
                if !self.verified.contains(value) {
                    self.flaw = Some("`current` points at a value that was never verified");
                }
                if self.names.insert(*generation, *value).is_some_and(|named| named != *value) {
                    self.flaw = Some("one generation stands for two values");
                }
                if self.current.is_none_or(|(current, _)| *generation > current) {
                    self.current = Some((*generation, *value));
                }
                return Outcome::Done(Fact::Published);
            }
            _ => {}
        }
        if self.mode == Mode::Down {
            return match act {
                Act::ProveDeath { .. } => {
                    Outcome::Done(Fact::Death(DeathProbe { dead: Login::Unreachable, alive: Login::Unreachable, sessions: None }))
                }
                Act::Probe { .. } => Outcome::Done(Fact::Login(Login::Refused { code: "53300".to_owned() })),
                _ => Outcome::Refused(Code::Unreachable),
            };
        }
        // Every act on a slot waits for a change that is still on its way, or makes sure that it never arrives.
        if how != How::Delayed {
            self.late = None;
        }
        match act {
            Act::Set { slot, value } => {
                if !self.stored.contains(value) {
                    self.flaw = Some("a value was set that is stored nowhere");
                }
                if self.stranger == Some(*slot) {
                    self.flaw = Some("a slot that somebody uses was given another value");
                }
                if how == How::Delayed {
                    self.late = Some((*slot, *value));
                } else {
                    self.passwords.insert(*slot, Some(*value));
                    self.verified.remove(value);
                }
                Outcome::Done(Fact::Applied)
            }
            Act::Probe { slot, value } => {
                let login = self.login(*slot, *value);
                if matches!(login, Login::Accepted { .. }) {
                    self.verified.insert(*value);
                }
                Outcome::Done(Fact::Login(login))
            }
            Act::WatchSessions { slot } => {
                let peers = self.sessions(*slot).into_iter().map(|name| Peer { name, count: 1 }).collect();
                Outcome::Done(Fact::Sessions(Sessions { peers }))
            }
            Act::Kill { slot } => {
                let sessions = self.sessions(*slot);
                // In an emergency that is what is asked for.
                let served = self.run.emergency.is_none() && sessions.iter().any(|who| who != STRANGER);
                if served && self.processes.iter().any(|p| p.alive && p.sessions.contains(slot) && !p.is_gone(*slot)) {
                    self.flaw = Some("a slot was revoked under a consumer's open session");
                }
                if how == How::Pretended {
                    return Outcome::Done(Fact::Killed { terminated: 0 });
                }
                self.passwords.insert(*slot, None);
                if how != How::Half {
                    for process in &mut self.processes {
                        process.sessions.remove(slot);
                    }
                    self.stranger = self.stranger.filter(|at| at != slot);
                }
                Outcome::Done(Fact::Killed { terminated: 0 })
            }
            Act::ProveDeath { slot, dead, alive_slot, alive } => {
                let sessions = u32::try_from(self.sessions(*slot).len()).ok();
                let probe = DeathProbe { dead: self.login(*slot, *dead), alive: self.login(*alive_slot, *alive), sessions };
                Outcome::Done(Fact::Death(probe))
            }
            Act::Generate { .. } | Act::Publish { .. } => Outcome::Unknown,
        }
    }

    /// A consumer does something; says what the manager hears of it at once.
    fn consume(&mut self, mv: &Move, i: usize) -> Option<Event> {
        let instance = name(i);
        let wanted = wanted(&self.run, &instance);
        let slots: BTreeMap<ValueId, Slot> =
            self.run.old.iter().map(|old| (old.value, old.slot)).chain([(self.run.new.value, self.run.new.slot)]).collect();
        let valid: BTreeSet<ValueId> = self.passwords.values().copied().flatten().filter(|_| self.mode == Mode::Up).collect();
        let mut letters = Vec::new();
        let mut flaw = None;
        let mut faults = 0;
        let process = self.processes.get_mut(i)?;
        let event = match mv {
            Move::Receive(_) => {
                if let Some((generation, value)) = wanted.using {
                    if process.told.is_some_and(|told| told > generation) {
                        flaw = Some("an instance was told to go to a lower generation");
                    }
                    process.told = Some(generation);
                    if process.using.is_none_or(|(using, _)| using != generation) {
                        process.received = Some((generation, value));
                        letters.push(Letter::Ack(i, generation, false));
                    } else {
                        letters.push(Letter::Ack(i, generation, true));
                    }
                }
                process.standby = wanted.standby;
                if let Some((generation, _)) = wanted.standby {
                    letters.push(Letter::Ack(i, generation, false));
                }
                None
            }
            Move::Use(_) => {
                let (generation, value) = process.received.take()?;
                if valid.contains(&value) {
                    process.using = Some((generation, value));
                    process.sessions.extend(slots.get(&value));
                    letters.push(Letter::Ack(i, generation, true));
                } else {
                    process.refused = Some(generation);
                    letters.push(Letter::Nack(i, generation));
                }
                None
            }
            Move::Refuse(_) => {
                faults = 1;
                let (generation, _) = process.received.take()?;
                process.refused = Some(generation);
                letters.push(Letter::Nack(i, generation));
                None
            }
            Move::CloseOld(_) => {
                let keep = process.using.and_then(|(_, value)| slots.get(&value).copied());
                process.sessions.retain(|slot| Some(*slot) == keep);
                None
            }
            Move::Idle(_) => {
                process.sessions.clear();
                None
            }
            Move::Work(_) => {
                process.sessions.extend(process.using.and_then(|(_, value)| slots.get(&value)));
                None
            }
            Move::Cut(_) => {
                faults = 1;
                process.linked = false;
                Some(Event::Lapsed { instance })
            }
            Move::EndToken(_) => {
                process.token_dead = true;
                Some(Event::TokenDead { instance })
            }
            Move::Return(_) => {
                // What was said on an earlier stream is not heard any more.
                self.mail.retain(|letter| letter.from() != i);
                if process.token_dead {
                    // Whoever lost its identity starts anew.
                    *process = Process { alive: true, ..Process::nobody() };
                }
                process.linked = true;
                let newest =
                    process.standby.into_iter().chain(process.received).chain(process.using).map(|(generation, _)| generation).max();
                Some(Event::Joined { instance, holds: newest })
            }
            Move::Die(_) => {
                faults = 1;
                *process = Process::nobody();
                Some(Event::Lapsed { instance })
            }
            Move::Leave(_) => {
                faults = 1;
                *process = Process::nobody();
                Some(Event::Left { instance })
            }
            Move::Join(_) => {
                self.mail.retain(|letter| letter.from() != i);
                faults = 1;
                *process = Process { alive: true, linked: true, ..Process::nobody() };
                // A new process takes what plain readers get, before it has a stream.
                if let Some((generation, value)) = self.current.filter(|(_, value)| valid.contains(value)) {
                    process.using = Some((generation, value));
                    process.told = Some(generation);
                    process.sessions.extend(slots.get(&value));
                }
                Some(Event::Joined { instance, holds: process.using.map(|(generation, _)| generation) })
            }
            _ => None,
        };
        self.mail.extend(letters);
        self.flaw = self.flaw.or(flaw);
        self.faults -= faults;
        event
    }

    /// What must be true in every state.
    fn check(&mut self) {
        if self.flaw.is_some() {
            return;
        }
        if self.current.is_some_and(|(_, value)| !self.accepts(value)) {
            self.flaw = Some("what `current` points at does not work at the target");
        }
        for (i, process) in self.processes.iter().enumerate() {
            if let Some((_, value)) = process.using {
                let slot = self.slot_of(value);
                let named = |laggard: &Laggard| laggard.who == name(i).0;
                let left_behind = self.run.emergency.as_ref().is_some_and(|emergency| emergency.behind.iter().any(named));
                if process.alive && !left_behind && !process.is_gone(slot) && !self.accepts(value) {
                    self.flaw = Some("a consumer uses a value that no longer works");
                }
            }
        }
        if self.run.emergency.is_some() && matches!(self.run.phase, Phase::Stage | Phase::Canary | Phase::Drain | Phase::RollbackDrain) {
            self.flaw = Some("an emergency waits where it should hurry");
        }
        let goes_on = matches!(self.run.pending, Pending::Owed { .. }) || self.run.wake.is_some();
        match self.run.parked {
            Some(_) if goes_on => self.flaw = Some("a run that waits for an operator goes on"),
            None if !goes_on && self.run.closed.is_none() && self.run.laggards().is_empty() => self.flaw = Some("a run waits for nobody"),
            _ => {}
        }
        let Some(closed) = &self.run.closed else { return };
        let (old, new) = (self.password(OLD) == Some(OLD_VALUE), self.password(NEW).is_some());
        let facts = closed.death.as_ref().is_some_and(|death| death.sessions == 0 && death.worked.mac == mac(death.value));
        self.flaw = match closed.verdict {
            Verdict::Rotated if old || !facts => Some("closed without a real death"),
            Verdict::Rotated if !self.sessions(OLD).is_empty() => Some("closed with a session on the dead slot"),
            Verdict::RolledBack if new || self.late.is_some() || !facts => Some("rolled back without a real death"),
            Verdict::RolledBack if !self.sessions(NEW).is_empty() => Some("rolled back with a session on the dead slot"),
            Verdict::RolledBack | Verdict::Aborted if self.run.emergency.as_ref().is_some_and(|emergency| !emergency.again) => {
                Some("an emergency ended with the leaked value in force")
            }
            // A first run has no other value to compare with: a target that lies twice is believed.
            Verdict::Aborted if self.run.old.is_some() && (new || self.late.is_some()) => {
                Some("stopped with the new value alive at the target")
            }
            _ => None,
        };
    }

    /// Moves the state in time so that `now` becomes [`NOW`] again, and forgets what the machine never reads.
    fn rebase(&mut self, now: Timestamp) {
        let shift = |at: Timestamp| {
            let past = now.0.saturating_sub(at.0).min(PAST_MAX * 1_000_000);
            let future = at.0.saturating_sub(now.0);
            Timestamp(NOW.0 - past + future)
        };
        let run = &mut self.run;
        run.entered = shift(run.entered);
        run.attempts = run.attempts.min(run.terms.attempts);
        run.soaking = run.soaking.map(shift);
        run.silent = run.silent.map(shift);
        run.wake = run.wake.map(shift);
        run.hold = run.hold.map(|_| NOW);
        if let Some(emergency) = &mut run.emergency {
            emergency.declared = shift(emergency.declared);
        }
        match &mut run.pending {
            Pending::Nothing => {}
            Pending::Owed { asked, .. } => *asked = shift(*asked),
            Pending::Later { at, .. } => *at = shift(*at),
        }
        for consumer in run.consumers.values_mut() {
            consumer.heard = NOW;
        }
        for version in run.old.iter_mut().chain([&mut run.new]) {
            version.worked = version.worked.take().map(|mark| Mark { at: NOW, ..mark });
        }
        run.evidence.clear();
        run.evidence_dropped = 0;
        if let Some(closed) = &mut run.closed {
            closed.at = NOW;
            if let Some(death) = &mut closed.death {
                death.worked.at = NOW;
                death.refused_at = NOW;
            }
        }
    }

    /// Gives the acts that are still owed the numbers 1, 2, …: only which is which matters.
    fn settle(&mut self) {
        let mut n = 0;
        for (id, _) in &mut self.owed {
            n += 1;
            let is_pending = matches!(&self.run.pending, Pending::Owed { id: pending, .. } if pending == id);
            id.n = n;
            if is_pending && let Pending::Owed { id: pending, .. } = &mut self.run.pending {
                pending.n = n;
            }
        }
        self.run.acts = n.max(1);
        // What was answered before is an echo now, whatever its number was.
        if let Some(Event::Outcome { id, .. }) = &mut self.echo {
            id.n = 0;
        }
        self.run.evidence.clear();
    }
}

impl Process {
    fn nobody() -> Self {
        Self {
            alive: false,
            linked: false,
            token_dead: false,
            using: None,
            standby: None,
            received: None,
            told: None,
            refused: None,
            sessions: BTreeSet::new(),
        }
    }

    /// Cut off, without a token and without a session: what the rules call gone although the process lives.
    fn is_gone(&self, slot: Slot) -> bool {
        !self.linked && self.token_dead && !self.sessions.contains(&slot)
    }
}

impl<R: Rules + Send + Sync> Model for World<R> {
    type State = State;
    type Action = Move;

    fn init_states(&self) -> Vec<State> {
        vec![self.start()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Move>) {
        state.moves(actions);
    }

    fn next_state(&self, state: &State, mv: Move) -> Option<State> {
        let mut next = state.clone();
        self.apply(&mut next, &mv);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("no flaw", |_: &Self, state: &State| state.flaw.is_none()),
            Property::always("an operator can close the run and is told what is not proven", Self::has_an_honest_exit),
        ];
        if self.liveness {
            properties.push(Property::always("the run can end", |world: &Self, state: &State| world.ends(state)));
        }
        properties
    }
}
