//! What comes into a run and what goes out of it.

use serde::{Deserialize, Serialize};

use super::run::{Cause, Generation, Instance, Laggard, Level, Mac, Phase, Run, RunId, Slot, ValueId, Verdict};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The run may begin.
    Start,
    /// An act ended, or may have.
    Outcome {
        /// Which act.
        id: EffectId,
        /// How.
        outcome: Outcome,
    },
    /// A consumer proved that it has a generation.
    Ack {
        /// Who.
        instance: Instance,
        /// What.
        generation: Generation,
        /// How far.
        level: Claim,
    },
    /// A consumer refused a generation.
    Nack {
        /// Who.
        instance: Instance,
        /// What.
        generation: Generation,
        /// Why, in its words.
        reason: String,
    },
    /// A consumer's stream opened.
    Joined {
        /// Who.
        instance: Instance,
        /// What it says it holds. A statement, not a proof.
        holds: Option<Generation>,
    },
    /// A consumer said goodbye.
    Left {
        /// Who.
        instance: Instance,
    },
    /// A consumer's stream is gone and did not come back in time.
    Lapsed {
        /// Who.
        instance: Instance,
    },
    /// A consumer's token ended.
    TokenDead {
        /// Who.
        instance: Instance,
    },
    /// Time passed.
    Tick,
    /// An operator wants the run to try again.
    Resume {
        /// Who.
        by: String,
    },
    /// An operator wants the run to stop, and to go back where it must. An emergency is over with it.
    Abort {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// An operator says that the value in force is known to somebody who should not have it.
    Emergency {
        /// Who.
        by: String,
        /// Why.
        reason: String,
        /// When it was declared: earlier than now where an earlier run had to end first.
        declared: base::Timestamp,
        /// [`Emergency::grace`](super::Emergency::grace).
        grace: std::time::Duration,
    },
    /// An operator takes a consumer out of the set.
    Dismissed {
        /// Whom.
        instance: Instance,
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// An operator closes the run where it is, and gives up what is not proven.
    Close {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
}

/// How far a consumer can say that it came. L0 is not said but read; L3 is seen at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    /// Delivered.
    L1,
    /// Loaded, after a health probe.
    L2,
}

impl Claim {
    /// The level that is claimed.
    #[must_use]
    pub fn level(self) -> Level {
        match self {
            Self::L1 => Level::L1,
            Self::L2 => Level::L2,
        }
    }
}

/// Names one act of one run. The same name is never used for two acts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EffectId {
    /// The run.
    pub run: RunId,
    /// The phase that asked.
    pub phase: Phase,
    /// Counts the acts of the run.
    pub n: u32,
}

/// How an act ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It happened and this was seen.
    Done(Fact),
    /// It certainly did not happen.
    Refused(Code),
    /// It may have happened. Resolved by probing, never by guessing.
    Unknown,
}

/// Why an act did not happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The target could not be reached: trying again makes sense.
    Unreachable,
    /// It will not do it.
    Denied {
        /// What it said, without secrets.
        reason: String,
    },
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// The value is stored.
    Stored,
    /// The slot has the value.
    Applied,
    /// A fresh login was tried.
    Login(Login),
    /// `current` points at the generation.
    Published,
    /// Who is logged in.
    Sessions(Sessions),
    /// The slot's value was made invalid and its sessions ended.
    Killed {
        /// How many sessions were ended.
        terminated: u32,
    },
    /// The old and the other value were tried together.
    Death(DeathProbe),
}

/// What a login by a fresh connection gave.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Login {
    /// It worked.
    Accepted {
        /// The value that was tried.
        mac: Mac,
    },
    /// The target said that the password is wrong.
    WrongPassword {
        /// The value that was tried.
        mac: Mac,
    },
    /// The target refused for another reason, which says nothing about the password.
    Refused {
        /// The target's code.
        code: String,
    },
    /// The login worked but cannot do what is needed.
    Unfit {
        /// What is missing.
        reason: String,
    },
    /// No answer.
    Unreachable,
}

/// Who is logged in to a slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sessions {
    /// One entry per peer with at least one session.
    pub peers: Vec<Peer>,
}

/// Sessions of one peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Peer {
    /// The name that the session gave (an instance's name where clients set it), else where it comes from.
    pub name: String,
    /// How many.
    pub count: u32,
}

impl Sessions {
    /// All of them.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.peers.iter().fold(0, |sum, peer| sum.saturating_add(peer.count))
    }
}

/// Two logins and a look at the sessions, as one act.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeathProbe {
    /// With the value that should be dead.
    pub dead: Login,
    /// With the value that should work.
    pub alive: Login,
    /// Sessions on the slot of the first; `None` when they could not be seen.
    pub sessions: Option<u32>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Do this and answer with [`Event::Outcome`].
    Act {
        /// Its name.
        id: EffectId,
        /// What.
        act: Act,
    },
    /// What this instance should have changed: see [`wanted`](super::wanted).
    Offer {
        /// Who.
        instance: Instance,
    },
    /// Send [`Event::Tick`] at this time. Replaces the earlier one.
    Timer {
        /// When.
        at: base::Timestamp,
    },
    /// Tell whoever watches.
    Report(Report),
}

/// An act on the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Make a value and store it under this name, unless one is stored already.
    Generate {
        /// The name.
        value: ValueId,
    },
    /// Give the slot this value.
    Set {
        /// The slot.
        slot: Slot,
        /// The value.
        value: ValueId,
    },
    /// Log in freshly with this value, and try what consumers need.
    Probe {
        /// The slot.
        slot: Slot,
        /// The value.
        value: ValueId,
    },
    /// Let `current` point at this value under this generation, unless it points at a higher one.
    Publish {
        /// The generation.
        generation: Generation,
        /// The value.
        value: ValueId,
    },
    /// Look who is logged in to the slot.
    WatchSessions {
        /// The slot.
        slot: Slot,
    },
    /// Make the slot's value invalid, then end its sessions.
    Kill {
        /// The slot.
        slot: Slot,
    },
    /// Try both values and look at the sessions of the first one's slot.
    ProveDeath {
        /// Where the dead value lived.
        slot: Slot,
        /// The value that should be dead.
        dead: ValueId,
        /// Where the other value lives.
        alive_slot: Slot,
        /// The value that should work.
        alive: ValueId,
    },
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Report {
    /// A phase began.
    Entered(Phase),
    /// The run waits for these.
    Held(Vec<Laggard>),
    /// The run waits for an operator.
    Parked(String),
    /// The run turns back or stops.
    TurningBack(Cause),
    /// What an operator asked is not possible now.
    NotPossible(&'static str),
    /// The run is over.
    Closed(Verdict),
}

/// The next run, and what is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The next run.
    pub run: Run,
    /// What is to be done once it is durable.
    pub effects: Vec<Effect>,
}
