//! Moves runs: an event goes in, the next run is stored, what follows from it is owed — all in one transaction.

use std::collections::VecDeque;

use base::{Refusal, Timestamp};
use engine::{Answer, Cx, Duty, DutyKey, NewDuty, duty};
use serde::{Deserialize, Serialize};

use super::records::{self, Offer, RunRecord};
use super::{acts, emergency, runs};
use crate::core::{Act, Effect, EffectId, Event, Fact, Outcome, Pending, Report, step, wanted};

/// The duty that wakes a run.
pub(super) const TIMER: &str = "lifecycle-timer";

/// What the duty of an act carries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ActDuty {
    pub(super) id: EffectId,
    pub(super) act: Act,
}

/// Gives `event` to the run and does what follows. Acts within the store are done at once and their outcome fed back.
pub(super) fn feed(cx: &mut Cx<'_>, record: &mut RunRecord, event: Event) -> Result<(), Refusal> {
    let mut events = VecDeque::from([event]);
    while let Some(event) = events.pop_front() {
        let now = cx.now();
        let next = step(&record.run, &event, now);
        record.run = next.run;
        for effect in next.effects {
            match effect {
                Effect::Act { id, act } => {
                    if let Some(outcome) = acts::within(cx, record, &act)? {
                        events.push_back(Event::Outcome { id, outcome });
                    } else {
                        owe(cx, record, ActDuty { id, act })?;
                    }
                }
                Effect::Timer { at } => wake(cx, &record.run.id.0, at)?,
                Effect::Offer { instance } => {
                    let offer = Offer { run: record.run.id.0.clone(), wanted: wanted(&record.run, &instance) };
                    let key = records::offer_key(cx, &record.rotation, &instance.0);
                    cx.tx.write(&key, &offer)?;
                }
                Effect::Report(report) => tell(cx, &report),
            }
        }
    }
    name_run(cx, record);
    if record.run.closed.is_some() {
        runs::close(cx, record)?;
    }
    records::put_run(cx, record)?;
    if record.run.closed.is_some() { emergency::follow(cx, record) } else { Ok(()) }
}

/// Gives `event` to the open run of a rotation, if there is one.
pub(super) fn feed_rotation(cx: &mut Cx<'_>, rotation: &str, event: Event) -> Result<(), Refusal> {
    let Some(id) = records::rotation(cx, rotation)?.and_then(|p| p.open) else { return Ok(()) };
    let Some(mut record) = records::run(cx, &id)? else { return Ok(()) };
    feed(cx, &mut record, event)
}

/// Owes the act that a run waits for once more if nobody will perform it: it was parked, or is gone.
pub(super) fn take_up(cx: &mut Cx<'_>, record: &RunRecord) -> Result<(), Refusal> {
    let Pending::Owed { id, act, .. } = &record.run.pending else { return Ok(()) };
    let key = DutyKey { owner: cx.call.mount.id, key: key(id) };
    if duty::find(cx.tx, &key)?.is_some_and(|owed| owed.parked.is_empty()) {
        return Ok(());
    }
    duty::remove(cx.tx, &key)?;
    owe(cx, record, ActDuty { id: id.clone(), act: act.clone() })
}

fn key(id: &EffectId) -> String {
    format!("act/{}/{}/{}", id.run.0, id.phase.name(), id.n)
}

fn owe(cx: &mut Cx<'_>, record: &RunRecord, act: ActDuty) -> Result<(), Refusal> {
    let target = records::need_rotation(cx, &record.rotation)?.target;
    let (owner, due) = (cx.call.mount.clone(), cx.now());
    let duty = NewDuty {
        key: key(&act.id),
        kind: acts::ACT,
        due,
        act: true,
        lane: format!("target/{target}"),
        payload: engine::answer::raw(&act)?,
    };
    cx.host.owe(cx.tx, &owner, duty).map(drop)
}

/// Replaces the run's one timer.
fn wake(cx: &mut Cx<'_>, run: &str, at: Timestamp) -> Result<(), Refusal> {
    let key = format!("timer/{run}");
    let owner = cx.call.mount.clone();
    duty::remove(cx.tx, &DutyKey { owner: owner.id, key: key.clone() })?;
    let due = at.max(cx.now());
    let duty = NewDuty { key, kind: TIMER, due, act: false, lane: String::new(), payload: engine::answer::raw(&run)? };
    cx.host.owe(cx.tx, &owner, duty).map(drop)
}

/// A run's time has come.
pub(super) fn tick(cx: &mut Cx<'_>, duty: &Duty) -> Result<Answer, Refusal> {
    let id: String = payload(duty)?;
    if let Some(mut record) = records::run(cx, &id)?
        && record.run.closed.is_none()
    {
        // The timer is spent: the core asks for the next one only if it differs from the last.
        record.run.wake = None;
        feed(cx, &mut record, Event::Tick)?;
    }
    Ok(Answer::Nothing)
}

fn tell(cx: &mut Cx<'_>, report: &Report) {
    let text = match report {
        Report::Entered(phase) => format!("entered {}", phase.name()),
        Report::Held(laggards) => {
            format!("waits for {}", laggards.iter().map(|l| l.who.as_str()).collect::<Vec<_>>().join(", "))
        }
        Report::Parked(reason) => format!("waits for an operator: {reason}"),
        Report::TurningBack(_) => "turns back".to_owned(),
        Report::NotPossible(what) => (*what).to_owned(),
        Report::Closed(verdict) => format!("closed: {}", verdict.name()),
    };
    also(cx, "report", text);
}

/// Names a run in the record. One request may move several: their ids, rotations and phases stand in the same order.
fn name_run(cx: &mut Cx<'_>, record: &RunRecord) {
    let said = |cx: &Cx<'_>, name: &str| cx.facts.get(name).map(|all| all.split(", ").map(str::to_owned).collect::<Vec<_>>());
    let known = said(cx, "run");
    let place = known.as_ref().and_then(|runs| runs.iter().position(|run| *run == record.run.id.0));
    for (name, text) in [("run", record.run.id.0.as_str()), ("rotation", &record.rotation), ("phase", record.run.phase.name())] {
        // What the request itself named is one of them.
        let mut all = known.as_ref().and_then(|_| said(cx, name)).unwrap_or_default();
        match place.and_then(|place| all.get_mut(place)) {
            Some(before) => text.clone_into(before),
            None => all.push(text.to_owned()),
        }
        cx.note(name, all.join(", "));
    }
}

/// Adds a public fact to those of the same name.
pub(super) fn also(cx: &mut Cx<'_>, name: &'static str, text: impl ToString) {
    let said = cx.facts.entry(name).or_default();
    if !said.is_empty() {
        said.push_str("; ");
    }
    said.push_str(&text.to_string());
}

pub(super) fn payload<T: serde::de::DeserializeOwned>(duty: &Duty) -> Result<T, Refusal> {
    serde_json::from_str(duty.payload.get())
        .map_err(|_| Refusal::internal(format!("the payload of duty `{}` could not be read", duty.id.key)))
}

/// The outcome of an act that ended within the store.
pub(super) fn done(fact: Fact) -> Option<Outcome> {
    Some(Outcome::Done(fact))
}
