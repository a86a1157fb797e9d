//! What a run remembers. Plain data: only [`step`](super::step) makes one run from another.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::Timestamp;
use serde::{Deserialize, Serialize};

use super::event::{Act, EffectId};

/// Names a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub String);

/// Names a secret value that the shell keeps. The value itself never comes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ValueId(pub u64);

/// Numbers deliveries of one rotation. Only ever grows; one number stands for one value for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One of the places for a credential at the target; the target says what it is called there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u8);

/// One running copy of a consumer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instance(pub String);

impl std::fmt::Display for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A keyed hash of a value: says that two values are the same without saying what they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mac(pub String);

/// How far a consumer is known to have taken a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Level {
    /// It read the value.
    L0,
    /// The value lies where the process would take it from.
    L1,
    /// The process says that it uses the value and is healthy with it.
    L2,
    /// The target saw the value in use.
    L3,
}

/// What happens when a phase passes its hard deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnHard {
    /// Wait, for ever if need be; both values keep working.
    Hold,
    /// Bring everybody back to the old value.
    Rollback,
}

/// What a rotation asks of its runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Terms {
    /// What every consumer must reach before the old value is touched.
    pub required: Level,
    /// How many instances go first.
    pub canaries: u32,
    /// How long the canaries must stay well.
    pub soak: Duration,
    /// How long the old slot must be without a session.
    pub quiet: Duration,
    /// How often sessions are looked at.
    pub poll: Duration,
    /// After this long in a phase the laggards are named.
    pub soft: Duration,
    /// After this long in a phase `on_hard` decides.
    pub hard: Duration,
    /// What the hard deadline does.
    pub on_hard: OnHard,
    /// Fresh logins with the new value before anybody gets it.
    pub verifies: u32,
    /// Failures in one phase before the run gives up, or where it cannot give up, before it says that it is stuck.
    pub attempts: u32,
    /// Pause after the first failure; doubles.
    pub backoff: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
}

/// One value in one slot under one generation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Its delivery number.
    pub generation: Generation,
    /// The value.
    pub value: ValueId,
    /// Where it lives at the target.
    pub slot: Slot,
    /// The last proof that it worked.
    pub worked: Option<Mark>,
}

/// A login that worked, and with which value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// Which value, by keyed hash.
    pub mac: Mac,
    /// When.
    pub at: Timestamp,
}

/// What a run is opened with.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The name of the run.
    pub id: RunId,
    /// What the rotation asks.
    pub terms: Terms,
    /// The value in force; `None` on the first run of a rotation.
    pub old: Option<Version>,
    /// The value to be made. Its generation must be above every one used before.
    pub new: Version,
    /// Who consumes the secret now, and which generation each is known to hold.
    pub consumers: BTreeMap<Instance, Consumer>,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nobody must be logged in to the slot that gets the new value; the value in force is tried, so that its death can be told later.
    Plan,
    /// The new value is made and stored before the target hears of it.
    Prepare,
    /// The new value is set in the idle slot.
    Set,
    /// Fresh logins with the new value.
    Verify,
    /// Everybody gets the new value as a standby.
    Stage,
    /// A few use it.
    Canary,
    /// `current` moves and everybody uses it.
    Rollout,
    /// The old slot must fall silent.
    Drain,
    /// The old value is made invalid.
    Revoke,
    /// Its death is proven.
    Prove,
    /// Going back: is the old value still good?
    RollbackCheck,
    /// The old value is published as a new generation and everybody returns to it.
    RollbackRepublish,
    /// The new slot must fall silent.
    RollbackDrain,
    /// The new value is made invalid.
    RollbackRevoke,
    /// Its death is proven.
    RollbackProve,
    /// Nobody was given the new value: it is made invalid and the run ends.
    Undo,
    /// Over.
    Closed,
}

impl Phase {
    /// How the phase is spelled in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Prepare => "prepare",
            Self::Set => "set",
            Self::Verify => "verify",
            Self::Stage => "stage",
            Self::Canary => "canary",
            Self::Rollout => "rollout",
            Self::Drain => "drain",
            Self::Revoke => "revoke",
            Self::Prove => "prove",
            Self::RollbackCheck => "rollback_check",
            Self::RollbackRepublish => "rollback_republish",
            Self::RollbackDrain => "rollback_drain",
            Self::RollbackRevoke => "rollback_revoke",
            Self::RollbackProve => "rollback_prove",
            Self::Undo => "undo",
            Self::Closed => "closed",
        }
    }

    /// Is the run on its way back to the old value?
    #[must_use]
    pub fn is_rollback(self) -> bool {
        matches!(self, Self::RollbackCheck | Self::RollbackRepublish | Self::RollbackDrain | Self::RollbackRevoke | Self::RollbackProve)
    }
}

/// Whether an instance is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// Its stream is open.
    Present,
    /// Its stream is gone without a goodbye: unknown, which is not converged.
    Lapsed,
    /// It said goodbye.
    Left,
}

/// What is known of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Consumer {
    /// Whether it is there.
    pub presence: Presence,
    /// Its token has ended.
    pub token_dead: bool,
    /// Slots in which the last look, made after the lapse, found no session that could be its own.
    pub clear: BTreeSet<Slot>,
    /// The generation it said it holds, or proved to.
    pub holds: Option<Generation>,
    /// The highest generation it acknowledged for use, and how far.
    pub acked: Option<(Generation, Level)>,
    /// The generation it acknowledged as a standby.
    pub standby: Option<Generation>,
    /// The generation it refused.
    pub nack: Option<Nack>,
    /// It goes first.
    pub canary: bool,
    /// It was told to use the new value at some time in this run.
    pub offered: bool,
    /// When something was last heard from it.
    pub heard: Timestamp,
    /// It acknowledged some generation of the rotation, in this run or before.
    #[serde(default = "proven")]
    pub proven: bool,
}

/// What runs of before knew of everybody.
fn proven() -> bool {
    true
}

impl Consumer {
    /// It never acknowledged anything and holds nothing: there is no value that it could lose.
    #[must_use]
    pub fn has_nothing(&self) -> bool {
        !self.proven && self.holds.is_none()
    }

    /// An instance that has just come.
    #[must_use]
    pub fn joined(holds: Option<Generation>, now: Timestamp) -> Self {
        Self {
            presence: Presence::Present,
            token_dead: false,
            clear: BTreeSet::new(),
            holds,
            acked: None,
            standby: None,
            nack: None,
            canary: false,
            offered: false,
            heard: now,
            proven: false,
        }
    }
}

/// A value in force that must die as soon as it can be replaced: somebody has it who should not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Emergency {
    /// When it was declared. The clock that ends when the old value is proven dead.
    pub declared: Timestamp,
    /// By whom.
    pub by: String,
    /// Why.
    pub reason: String,
    /// How long after the declaration the old value is revoked at the latest, once the new one is in force. Consumers that are behind by
    /// then are named and left behind.
    pub grace: Duration,
    /// The run was turning back when it was declared: it ends that first, and another emergency run must follow.
    pub again: bool,
    /// Who was behind when the old value was revoked.
    pub behind: Vec<Laggard>,
}

/// A refusal by a consumer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Nack {
    /// What it refused.
    pub generation: Generation,
    /// What it said.
    pub reason: String,
}

/// The one act that a run waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pending {
    /// Nothing.
    Nothing,
    /// An act was handed out and has not been answered.
    Owed {
        /// Which.
        id: EffectId,
        /// What.
        act: Act,
        /// When it was handed out.
        asked: Timestamp,
    },
    /// An act will be handed out.
    Later {
        /// When.
        at: Timestamp,
        /// What.
        act: Act,
    },
}

/// One who is missing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Laggard {
    /// An instance, a peer at the target, or `target`.
    pub who: String,
    /// What it lacks.
    pub why: Why,
}

/// What somebody lacks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It has not acknowledged this generation far enough.
    NotAcknowledged {
        /// The generation.
        generation: Generation,
        /// How far it must come.
        required: Level,
    },
    /// Its stream is gone, and it is not proven to be gone itself.
    Lapsed,
    /// It refused.
    Refused {
        /// What it said.
        reason: String,
    },
    /// It has sessions on the slot that must fall silent.
    Sessions {
        /// The slot.
        slot: Slot,
        /// How many.
        count: u32,
    },
    /// The target does not do or say what is needed.
    Target {
        /// What was seen.
        reason: String,
    },
}

/// Why a run turned back or stopped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// An instance refused the new value.
    Refused {
        /// Which.
        instance: Instance,
        /// What it said.
        reason: String,
    },
    /// The hard deadline of a phase passed.
    Deadline {
        /// Which phase.
        phase: Phase,
    },
    /// An operator asked.
    Operator {
        /// Who.
        by: String,
        /// What was said.
        reason: String,
    },
    /// The target did not do what is needed.
    Target {
        /// What was seen.
        reason: String,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Closed {
    /// When.
    pub at: Timestamp,
    /// How.
    pub verdict: Verdict,
    /// The proof of death of the value that went, where one went.
    pub death: Option<Death>,
    /// What an operator gave up proving.
    #[serde(default)]
    pub unproven: Vec<Unproven>,
    /// The version that an operator left in force.
    #[serde(default)]
    pub kept: Option<Version>,
}

/// Something that nobody proved before a run was closed by hand.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Unproven {
    /// The value.
    pub value: ValueId,
    /// Where it lives, or may live.
    pub slot: Slot,
    /// What is not known of it.
    pub what: Doubt,
}

/// What is not known of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doubt {
    /// It may still open the slot, and sessions may be open on it.
    MayStillWork,
    /// It is in force, and may not work.
    MayNotWork,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The new value is in force, the old one proven dead.
    Rotated,
    /// The new value is in force; there was none before it, so none had to die.
    First,
    /// The old value is in force under a new generation, the new one proven dead.
    RolledBack,
    /// The new value was never given to anybody and is not in force.
    Aborted,
    /// An operator closed the run where it was. [`Closed::unproven`] says what nobody knows.
    Abandoned,
}

impl Verdict {
    /// How the verdict is spelled in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rotated => "rotated",
            Self::First => "first",
            Self::RolledBack => "rolled_back",
            Self::Aborted => "aborted",
            Self::Abandoned => "abandoned",
        }
    }
}

/// The four facts that make a death.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Death {
    /// The value that died.
    pub value: ValueId,
    /// Where it lived.
    pub slot: Slot,
    /// The same value, by keyed hash, worked at this time,
    pub worked: Mark,
    /// was refused as a wrong password at this time,
    pub refused_at: Timestamp,
    /// while this other value worked in the same probe,
    pub alive: ValueId,
    /// and no session was left on the slot.
    pub sessions: u32,
}

/// Something that was found out, with its time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Evidence {
    /// When.
    pub at: Timestamp,
    /// In which phase.
    pub phase: Phase,
    /// What.
    pub found: Found,
}

/// What was found out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// The phase began.
    Entered,
    /// The new value is stored.
    Stored {
        /// It.
        value: ValueId,
    },
    /// The target says that a slot has a new value.
    Applied {
        /// The slot.
        slot: Slot,
    },
    /// A login with a value worked.
    LoginWorked {
        /// The value.
        value: ValueId,
        /// Its keyed hash.
        mac: Mac,
    },
    /// `current` moved.
    Published {
        /// To here.
        generation: Generation,
    },
    /// A consumer proved that it has a generation.
    Acknowledged {
        /// Who.
        instance: Instance,
        /// What.
        generation: Generation,
        /// How far.
        level: Level,
    },
    /// A consumer refused a generation.
    Refused {
        /// Who.
        instance: Instance,
        /// What.
        generation: Generation,
        /// What it said.
        reason: String,
    },
    /// A consumer came.
    Joined {
        /// Who.
        instance: Instance,
    },
    /// A consumer said goodbye.
    Left {
        /// Who.
        instance: Instance,
    },
    /// A consumer's stream is gone.
    Lapsed {
        /// Who.
        instance: Instance,
    },
    /// A lapsed consumer's token ended.
    TokenEnded {
        /// Who.
        instance: Instance,
    },
    /// Sessions on a slot, when the number changed.
    Sessions {
        /// The slot.
        slot: Slot,
        /// How many.
        count: u32,
    },
    /// A slot's value was made invalid.
    Killed {
        /// The slot.
        slot: Slot,
        /// Sessions that were ended with it.
        terminated: u32,
    },
    /// A value is dead.
    Dead {
        /// It.
        value: ValueId,
    },
    /// Something did not work and is tried again.
    Trouble {
        /// What was seen.
        reason: String,
    },
    /// The run waits for somebody.
    Held,
    /// The run waits for an operator.
    Parked {
        /// Why.
        reason: String,
    },
    /// The run turned back or stopped.
    TurnedBack {
        /// Why.
        cause: Cause,
    },
    /// An operator spoke.
    Operator {
        /// Who.
        by: String,
        /// What.
        said: String,
    },
    /// An operator declared an emergency.
    Emergency {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// The old value is revoked although these are not known to have left it.
    LeftBehind {
        /// Who; the first hundred.
        who: Vec<String>,
        /// How many in all.
        count: usize,
    },
    /// An operator took a consumer out of the set.
    Dismissed {
        /// Who.
        instance: Instance,
        /// By whom.
        by: String,
        /// Why.
        reason: String,
    },
}

impl Found {
    /// Does the run itself, or its operator, bring this about? What remains comes from consumers, sessions and failures, as often as they
    /// like.
    #[must_use]
    pub fn is_milestone(&self) -> bool {
        match self {
            Self::Acknowledged { .. }
            | Self::Refused { .. }
            | Self::Joined { .. }
            | Self::Left { .. }
            | Self::Lapsed { .. }
            | Self::TokenEnded { .. }
            | Self::Sessions { .. }
            | Self::Trouble { .. } => false,
            Self::Entered
            | Self::Stored { .. }
            | Self::Applied { .. }
            | Self::LoginWorked { .. }
            | Self::Published { .. }
            | Self::Killed { .. }
            | Self::Dead { .. }
            | Self::Held
            | Self::Parked { .. }
            | Self::TurnedBack { .. }
            | Self::Operator { .. }
            | Self::Emergency { .. }
            | Self::LeftBehind { .. }
            | Self::Dismissed { .. } => true,
        }
    }
}

/// Entries of evidence that one run keeps; later ones are counted only. Proofs of death are kept apart and never dropped.
pub const EVIDENCE_MAX: usize = 5_000;
/// Entries after which only milestones are kept.
pub const EVIDENCE_NOISE_MAX: usize = 2_000;

/// One rotation of one rotation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Run {
    /// Its name.
    pub id: RunId,
    /// What the rotation asked when it was opened.
    pub terms: Terms,
    /// When it was opened.
    pub opened: Timestamp,
    /// Where it is.
    pub phase: Phase,
    /// Since when.
    pub entered: Timestamp,
    /// The value that was in force when it was opened.
    pub old: Option<Version>,
    /// The value that it brings.
    pub new: Version,
    /// The generation kept for bringing the old value back.
    pub back: Generation,
    /// What `current` is known to point at.
    pub published: Option<Generation>,
    /// Everybody who consumes the secret, or did during the run.
    pub consumers: BTreeMap<Instance, Consumer>,
    /// What it waits for.
    pub pending: Pending,
    /// Acts handed out so far.
    pub acts: u32,
    /// Failures in this phase.
    pub attempts: u32,
    /// Logins that worked in this phase.
    pub passes: u32,
    /// The target may have heard of the new value.
    pub touched: bool,
    /// Everybody was told to use the new value.
    pub rolled_out: bool,
    /// Since when the canaries are well.
    pub soaking: Option<Timestamp>,
    /// Since when the slot that must fall silent is silent.
    pub silent: Option<Timestamp>,
    /// Sessions on that slot at the last look.
    pub sessions: Vec<(String, u32)>,
    /// Since when it is said that somebody is missing; [`Run::laggards`] says who.
    pub hold: Option<Timestamp>,
    /// What did not work at the last try, until something works again.
    pub trouble: Option<String>,
    /// Why it waits for an operator.
    pub parked: Option<String>,
    /// Why it turned back or stopped.
    pub cause: Option<Cause>,
    /// When it wants to be woken.
    pub wake: Option<Timestamp>,
    /// How it ended.
    pub closed: Option<Closed>,
    /// What was found out.
    pub evidence: Vec<Evidence>,
    /// Evidence that was only counted.
    pub evidence_dropped: u64,
    /// The old value must die as soon as it can.
    #[serde(default)]
    pub emergency: Option<Emergency>,
}

impl Run {
    /// Opens a run. Nothing happens before [`Event::Start`](super::Event::Start).
    #[must_use]
    pub fn open(plan: Plan, now: Timestamp) -> Self {
        let back = plan.new.generation.next();
        let published = plan.old.as_ref().map(|old| old.generation);
        Self {
            id: plan.id,
            terms: plan.terms,
            opened: now,
            phase: Phase::Plan,
            entered: now,
            old: plan.old,
            new: plan.new,
            back,
            published,
            consumers: plan.consumers,
            pending: Pending::Nothing,
            acts: 0,
            attempts: 0,
            passes: 0,
            touched: false,
            rolled_out: false,
            soaking: None,
            silent: None,
            sessions: Vec::new(),
            hold: None,
            trouble: None,
            parked: None,
            cause: None,
            wake: None,
            closed: None,
            evidence: Vec::new(),
            evidence_dropped: 0,
            emergency: None,
        }
    }

    /// The highest generation that this run has spoken for. The next run of the rotation must start above it.
    #[must_use]
    pub fn generation_max(&self) -> Generation {
        self.back
    }

    /// Whether everybody is led to the new value now.
    fn brought(&self) -> bool {
        self.published == Some(self.new.generation) && self.phase != Phase::RollbackRepublish
    }

    /// What would be in force if the run were closed now. Who was told to use the new value returns only to a higher number.
    #[must_use]
    pub fn kept(&self) -> Option<Version> {
        let told = self.phase == Phase::RollbackRepublish || self.published == Some(self.back);
        let told = told || self.consumers.values().any(|consumer| consumer.offered);
        match &self.old {
            _ if self.brought() => Some(self.new.clone()),
            Some(old) if told => Some(Version { generation: self.back, ..old.clone() }),
            old => old.clone(),
        }
    }

    /// What nobody would know if the run were closed now.
    #[must_use]
    pub fn unproven(&self) -> Vec<Unproven> {
        let (new, old) = (&self.new, self.old.as_ref());
        let brought = self.brought();
        let doubt = |version: &Version, what| Unproven { value: version.value, slot: version.slot, what };
        // A change that is on its way may still arrive.
        let heard = self.touched || matches!(&self.pending, Pending::Owed { act: Act::Set { .. }, .. });
        let lives_on = if brought { old } else { Some(new).filter(|_| heard) };
        let shaky = old.filter(|_| !brought && matches!(self.phase, Phase::Plan | Phase::RollbackCheck));
        let shaky = shaky.filter(|_| self.parked.is_some() || self.trouble.is_some());
        lives_on
            .map(|version| doubt(version, Doubt::MayStillWork))
            .into_iter()
            .chain(shaky.map(|version| doubt(version, Doubt::MayNotWork)))
            .collect()
    }

    /// The version in force after the run: what it brought, or what it went back to.
    #[must_use]
    pub fn in_force(&self) -> Option<Version> {
        match self.closed.as_ref().map(|closed| closed.verdict) {
            Some(Verdict::Rotated | Verdict::First) => Some(self.new.clone()),
            Some(Verdict::RolledBack) => self.old.clone().map(|old| Version { generation: self.back, ..old }),
            Some(Verdict::Abandoned) => self.closed.as_ref().and_then(|closed| closed.kept.clone()),
            Some(Verdict::Aborted) | None => self.old.clone(),
        }
    }
}
