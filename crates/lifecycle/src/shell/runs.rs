//! `rotate/:rotation` and `runs/…`: opening, looking at and steering runs.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{Refusal, Timestamp};
use engine::{Answer, Cx, Duty, DutyKey, NewDuty, Permit, duty};
use serde::Deserialize as _;
use serde_json::{Map, Value, json};

use super::drive::{self, payload};
use super::records::{self, Rotation, RunRecord};
use super::{Lifecycle, emergency, name};
use crate::core::{
    Consumer, Doubt, Effect, Event, Evidence, Found, Generation, Instance, Plan, Presence, Report, Run, RunId, Slot, Unproven, ValueId,
    Version, step,
};

/// The duty that opens runs on schedule.
pub(super) const PERIOD: &str = "lifecycle-period";

/// Runs in one list.
const LIST_MAX: usize = 1_000;

pub(super) fn rotate(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let rotation = name(cx.call.capture("rotation"), "rotation")?;
    let by = cx.call.caller()?.principal.clone();
    let reason = cx.call.body.text("reason")?.unwrap_or_default();
    let run = open(cx, &rotation, &by, &reason, None)?;
    Answer::data(&json!({ "run": run }))
}

/// Opens a run and lets it begin, in an emergency with that event.
pub(super) fn open(cx: &mut Cx<'_>, name: &str, by: &str, reason: &str, emergency: Option<Event>) -> Result<String, Refusal> {
    let mut rotation = records::need_rotation(cx, name)?;
    if let Some(run) = &rotation.open {
        return Err(Refusal::invalid(format!(
            "run `{run}` of this rotation is still open: `keyward lifecycle show {run}` says what it waits for; an emergency takes it over"
        )));
    }
    let now = cx.now();
    let id = format!("{name}-{}", base::id::base62(cx.host.rng(), 10)?);
    rotation.value_max = ValueId(rotation.value_max.0.saturating_add(1));
    let slot = rotation.in_force.as_ref().map_or(rotation.first_slot, |old| Slot(1 - old.slot.0.min(1)));
    let new = Version { generation: rotation.generation_max.next(), value: rotation.value_max, slot, worked: None };
    let plan =
        Plan { id: RunId(id.clone()), terms: rotation.terms.clone(), old: rotation.in_force.clone(), new, consumers: consumers(cx, name)? };
    let run = Run::open(plan, now);
    rotation.generation_max = run.generation_max();
    rotation.open = Some(id.clone());
    records::put_rotation(cx, name, &rotation)?;
    let order = records::run_order_key(cx, now, &id);
    cx.tx.write(&order, &name)?;
    let mut record = RunRecord::new(name, &rotation, by, reason, run);
    drive::feed(cx, &mut record, Event::Start)?;
    if let Some(emergency) = emergency {
        steer(cx, record, emergency)?;
    }
    Ok(id)
}

/// Everybody who holds the secret now.
fn consumers(cx: &mut Cx<'_>, rotation: &str) -> Result<BTreeMap<Instance, Consumer>, Refusal> {
    let mut found = BTreeMap::new();
    for (instance, holding) in records::holdings_of(cx, rotation)? {
        let mut consumer = Consumer::joined(holding.holds, holding.heard);
        consumer.proven = holding.proven;
        if holding.lapsed {
            consumer.presence = Presence::Lapsed;
            consumer.token_dead = !cx.host.token_alive(cx.tx, &holding.accessor)?;
        }
        found.insert(Instance(instance), consumer);
    }
    Ok(found)
}

/// What follows for the rotation when a run has closed: the version in force, and values that nobody needs any more are destroyed.
pub(super) fn close(cx: &mut Cx<'_>, record: &RunRecord) -> Result<(), Refusal> {
    let mut rotation = records::need_rotation(cx, &record.rotation)?;
    if rotation.open.as_deref() != Some(&record.run.id.0) {
        return Ok(());
    }
    rotation.open = None;
    rotation.in_force = record.run.in_force();
    let kept = rotation.in_force.as_ref().map(|v| v.value);
    for value in [Some(record.run.new.value), record.run.old.as_ref().map(|v| v.value)].into_iter().flatten() {
        if Some(value) != kept {
            let key = records::value_key(cx, &record.rotation, value);
            cx.tx.delete(&key)?;
        }
    }
    records::put_rotation(cx, &record.rotation, &rotation)?;
    let offers = records::table(cx, "offer", &[&record.rotation]);
    for instance in cx.tx.list(&offers, None, records::ROWS_MAX)? {
        let key = records::offer_key(cx, &record.rotation, &instance);
        cx.tx.delete(&key)?;
    }
    for (instance, holding) in records::holdings_of(cx, &record.rotation)? {
        // Who is gone and cannot come back under its token is forgotten: the run that waited for it is over.
        if holding.lapsed && !cx.host.token_alive(cx.tx, &holding.accessor)? {
            let key = records::holding_key(cx, &record.rotation, &instance);
            cx.tx.delete(&key)?;
        }
    }
    let own = DutyKey { owner: cx.call.mount.id, key: format!("timer/{}", record.run.id.0) };
    duty::remove(cx.tx, &own)
}

pub(super) fn list(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let prefix = records::table(cx, "run-order", &[]);
    let (mut keys, mut info) = (Vec::new(), Map::new());
    for row in cx.tx.scan(&prefix, None, LIST_MAX)? {
        let Some(id) = row.key.id().pop() else { continue };
        let Some(head) = records::run_head(cx, &id)? else { continue };
        // Only a run that is open waits for anybody.
        let Some(record) = (if head.run.closed.is_some() { Some(head) } else { records::run(cx, &id)? }) else { continue };
        info.insert(id.clone(), brief(&record));
        keys.push(id);
    }
    if keys.is_empty() {
        return Err(Refusal::missing());
    }
    Answer::data(&json!({ "keys": keys, "key_info": info }))
}

/// What lists show of a run; `docs/lifecycle.md` says what each member means.
fn brief(record: &RunRecord) -> Value {
    let run = &record.run;
    let state = match run {
        Run { closed: Some(_), .. } => "closed",
        Run { parked: Some(_), .. } => "parked",
        Run { hold: Some(_), .. } => "held",
        _ => "running",
    };
    json!({
        "rotation": record.rotation,
        "state": state,
        "phase": run.phase,
        "entered": run.entered.rfc3339(),
        "generation": run.new.generation,
        "opened": run.opened.rfc3339(),
        "opened_by": record.opened_by,
        "reason": record.reason,
        "closed": run.closed.as_ref().map(|c| c.at.rfc3339()),
        "verdict": run.closed.as_ref().map(|c| c.verdict),
        "held": run.hold.is_some(),
        "held_since": run.hold.map(Timestamp::rfc3339),
        "waits_for": with_roles(record, json!(run.laggards())),
        "parked": run.parked,
        "trouble": run.trouble,
        "attempts": run.attempts,
        "cause": run.cause,
        "emergency": emergency::show(record),
        "not_counted": run.not_counted(),
        "unproven": run.closed.as_ref().map(|closed| unproven(record, &closed.unproven)).unwrap_or_default(),
        "death_proven": run.closed.as_ref().is_some_and(|c| c.death.is_some()),
    })
}

pub(super) fn read(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let record = find(cx)?;
    let run = &record.run;
    let Value::Object(mut data) = brief(&record) else { return Err(Refusal::internal("a run could not be shown")) };
    let version = |version: &Version| json!({ "generation": version.generation, "slot": record.slot(version.slot) });
    let death = run.closed.as_ref().and_then(|closed| closed.death.as_ref()).map(|death| {
        json!({
            "slot": record.slot(death.slot),
            "value": death.worked.mac,
            "worked": death.worked.at.rfc3339(),
            "refused": death.refused_at.rfc3339(),
            "accepted_generation": if death.alive == run.new.value { run.new.generation } else { run.back },
            "sessions": death.sessions,
        })
    });
    data.insert("run".into(), run.id.0.clone().into());
    data.insert("path".into(), json!(record.path));
    data.insert("target".into(), json!(record.target));
    data.insert("old".into(), run.old.as_ref().map(version).unwrap_or_default());
    data.insert("new".into(), version(&run.new));
    data.insert("rollback_generation".into(), json!(run.back));
    data.insert("published".into(), json!(run.published));
    data.insert("consumers".into(), run.consumers.iter().map(|(instance, consumer)| (instance.0.clone(), show(consumer))).collect());
    data.insert("phases".into(), phases(run));
    data.insert("evidence".into(), with_roles(&record, run.evidence.iter().map(evidence).collect()));
    data.insert("evidence_dropped".into(), run.evidence_dropped.into());
    data.insert("death".into(), death.unwrap_or_default());
    Answer::data(&data)
}

/// What nobody proved, a sentence each.
fn unproven(record: &RunRecord, all: &[Unproven]) -> Vec<String> {
    all.iter()
        .map(|unproven| {
            let role = emergency::role(record, unproven.slot);
            let generation = if unproven.value == record.run.new.value { "new" } else { "old" };
            match unproven.what {
                Doubt::MayStillWork => {
                    format!("the {generation} value may still open {role}, and sessions may be open on it: nobody proved that it is dead")
                }
                Doubt::MayNotWork => format!("the {generation} value is in force and may not open {role}"),
            }
        })
        .collect()
}

/// The same with the role of each slot instead of its number.
pub(super) fn with_roles(record: &RunRecord, value: Value) -> Value {
    match value {
        Value::Array(values) => values.into_iter().map(|value| with_roles(record, value)).collect(),
        Value::Object(members) => members
            .into_iter()
            .map(|(name, value)| match Slot::deserialize(&value) {
                Ok(slot) if name == "slot" => (name, record.slot(slot).into()),
                _ => (name, with_roles(record, value)),
            })
            .collect(),
        value => value,
    }
}

fn show(consumer: &Consumer) -> Value {
    json!({
        "presence": consumer.presence,
        "token_ended": consumer.token_dead,
        "holds": consumer.holds,
        "acknowledged": consumer.acked.map(|(generation, level)| json!({ "generation": generation, "level": level })),
        "standby": consumer.standby,
        "refused": consumer.nack,
        "canary": consumer.canary,
        "heard": consumer.heard.rfc3339(),
    })
}

/// Every phase that began, with the time it took.
fn phases(run: &Run) -> Value {
    let begun: Vec<_> = run.evidence.iter().filter(|evidence| evidence.found == Found::Entered).collect();
    let ends = begun.iter().skip(1).map(|next| Some(next.at)).chain([None]);
    begun
        .iter()
        .zip(ends)
        .map(|(begun, end)| json!({ "phase": begun.phase, "at": begun.at.rfc3339(), "milliseconds": end.map(|end| milliseconds(end.since(begun.at))) }))
        .collect()
}

pub(super) fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn evidence(evidence: &Evidence) -> Value {
    json!({ "at": evidence.at.rfc3339(), "phase": evidence.phase, "found": evidence.found })
}

pub(super) fn resume(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let by = cx.call.caller()?.principal.clone();
    let record = find_open(cx)?;
    ask_again_who_refused(cx, &record.rotation)?;
    let record = steer(cx, record, Event::Resume { by })?;
    drive::take_up(cx, &record)?;
    Answer::data(&brief(&record))
}

/// Who refused is asked again: without a nonce it is sent the state anew.
pub(super) fn ask_again_who_refused(cx: &mut Cx<'_>, rotation: &str) -> Result<(), Refusal> {
    for (instance, mut holding) in records::holdings_of(cx, rotation)? {
        if let Some((refused, _)) = holding.refused.take() {
            holding.offered.retain(|(offered, _)| *offered != refused);
            records::put_holding(cx, rotation, &instance, &holding)?;
        }
    }
    Ok(())
}

pub(super) fn abort(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let by = cx.call.caller()?.principal.clone();
    let reason = cx.call.body.text("reason")?.unwrap_or_default();
    let confirmed = cx.call.body.bool("confirm")?.unwrap_or(false);
    let record = find_open(cx)?;
    let stays = record.run.old.as_ref().map(|old| format!("generation {} in {}", old.generation, emergency::role(&record, old.slot)));
    if let (Some(emergency), Some(stays), false) = (&record.run.emergency, &stays, confirmed) {
        return Err(Refusal::invalid(format!(
            "this run is an emergency (`{}`): to abort it leaves the old value, {stays}, in force for everybody; say so with `confirm` \
             (`-yes`)",
            emergency.reason
        )));
    }
    let record = steer(cx, record, Event::Abort { by, reason })?;
    let Value::Object(mut data) = brief(&record) else { return Err(Refusal::internal("a run could not be shown")) };
    let text = stays.map_or_else(|| "nothing: this was the first run".to_owned(), |stays| format!("the old value: {stays}"));
    data.insert("comes_into_force".into(), text.into());
    Answer::data(&data)
}

/// The last way out of a run: it ends where it is.
pub(super) fn close_by_hand(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let by = cx.call.caller()?.principal.clone();
    let body = &cx.call.body;
    let reason = body.need_text("reason")?;
    let confirmed = body.bool("confirm")?.unwrap_or(false);
    let accepted = body.bool("accept_unproven")?.unwrap_or(false);
    let record = find_open(cx)?;
    let lost = unproven(&record, &record.run.unproven());
    let kept = match record.run.kept() {
        Some(version) => format!("generation {} in {} is left in force", version.generation, emergency::role(&record, version.slot)),
        None => "no value is left in force".to_owned(),
    };
    if !confirmed {
        let unproven = if lost.is_empty() { String::new() } else { format!("; {}", lost.join("; ")) };
        return Err(Refusal::invalid(format!(
            "closing run `{}` in `{}`: {kept}{unproven}; say `confirm` (`-yes`) if that is meant",
            record.run.id.0,
            record.run.phase.name()
        )));
    }
    if !lost.is_empty() && !accepted {
        return Err(Refusal::invalid(format!(
            "closing run `{}` gives up a proof: {}; say `accept_unproven` (`-accept-unproven`) if that is meant",
            record.run.id.0,
            lost.join("; ")
        )));
    }
    if !lost.is_empty() {
        cx.note("unproven", lost.join("; "));
    }
    let record = steer(cx, record, Event::Close { by, reason })?;
    Answer::data(&brief(&record))
}

/// Gives an operator's word to a run; what is not possible is said instead.
pub(super) fn steer(cx: &mut Cx<'_>, mut record: RunRecord, event: Event) -> Result<RunRecord, Refusal> {
    let refused = step(&record.run, &event, cx.now()).effects.into_iter().find_map(|effect| match effect {
        Effect::Report(Report::NotPossible(why)) => Some(why),
        _ => None,
    });
    if let Some(why) = refused {
        return Err(Refusal::invalid(why));
    }
    drive::feed(cx, &mut record, event)?;
    Ok(record)
}

fn find_open(cx: &mut Cx<'_>) -> Result<RunRecord, Refusal> {
    let record = find(cx)?;
    if record.run.closed.is_some() { Err(Refusal::invalid("the run is closed")) } else { Ok(record) }
}

fn find(cx: &mut Cx<'_>) -> Result<RunRecord, Refusal> {
    let id = cx.call.capture("id").to_owned();
    records::run(cx, &id)?.ok_or_else(Refusal::missing)
}

/// Owes the next scheduled run; a period of zero withdraws it.
pub(super) fn schedule(cx: &mut Cx<'_>, rotation: &str, period: Duration) -> Result<(), Refusal> {
    let key = format!("period/{rotation}");
    let owner = cx.call.mount.clone();
    duty::remove(cx.tx, &DutyKey { owner: owner.id, key: key.clone() })?;
    if period.is_zero() {
        return Ok(());
    }
    let due = cx.now().after(period);
    let duty = NewDuty { key, kind: PERIOD, due, act: false, lane: String::new(), payload: engine::answer::raw(&rotation)? };
    cx.host.owe(cx.tx, &owner, duty).map(drop)
}

/// A scheduled run is due. One that is open already stands for it: missed runs coalesce.
pub(super) fn period(cx: &mut Cx<'_>, duty: &Duty) -> Result<Answer, Refusal> {
    let name: String = payload(duty)?;
    let Some(rotation) = records::rotation(cx, &name)?.filter(|p| p.adopted) else { return Ok(Answer::Nothing) };
    if rotation.open.is_none() {
        open(cx, &name, "period", "scheduled", None)?;
    }
    schedule(cx, &name, rotation.period)?;
    Ok(Answer::Nothing)
}

/// The generation that somebody who is in no run should use.
pub(super) fn in_force(rotation: &Rotation) -> Option<(Generation, ValueId)> {
    rotation.in_force.as_ref().map(|v| (v.generation, v.value))
}
