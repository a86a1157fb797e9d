//! One rotation run as a pure function: [`step`]`(run, event, now)` gives the next run and what is to be done about it.
//!
//! No clock, no disk, no network and no secret values: a run and its effects carry [`ValueId`]s, the shell keeps the values.
//! The shell, the model checker and the property tests call the same function.
//!
//! What the shell must guarantee, because the rules lean on it:
//! - the run that a step returns is durable before any of its effects is performed (write ahead);
//! - at most one step at a time per run;
//! - every [`Act`] ends in exactly one [`Event::Outcome`] or is repeated; an act that may have happened is answered `Unknown`;
//! - [`Act::Generate`] never overwrites a stored value, [`Act::Publish`] never moves to a generation that is not above the
//!   current one, and every act on one slot waits for an earlier one on that slot that may still be on its way;
//! - an [`Event::Ack`] or [`Event::Nack`] has proven possession and identity before it comes here, and answers what was sent since the
//!   instance last joined: what an earlier process of that name said is not heard.

mod event;
mod operator;
mod rules;
mod run;
mod step;
mod wanted;

pub use event::{Act, Claim, Code, DeathProbe, Effect, EffectId, Event, Fact, Login, Outcome, Peer, Report, Sessions, Step};
#[doc(hidden)]
pub use rules::{Alive, Rules, Sound};
pub use run::{
    Cause, Closed, Consumer, Death, Doubt, EVIDENCE_MAX, EVIDENCE_NOISE_MAX, Emergency, Evidence, Found, Generation, Instance, Laggard,
    Level, Mac, Mark, Nack, OnHard, Pending, Phase, Plan, Presence, Run, RunId, Slot, Terms, Unproven, ValueId, Verdict, Version, Why,
};
pub use step::step;
#[doc(hidden)]
pub use step::step_under;
pub use wanted::{Wanted, wanted};
