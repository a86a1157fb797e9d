//! `emergency/:rotation`: the value in force is in the wrong hands and must die as soon as it can be replaced.
//!
//! A path of its own, so that a policy can permit it to whoever may not rotate otherwise, and the other way round.

use std::time::Duration;

use base::{Refusal, Timestamp};
use engine::{Answer, Cx, Permit};
use serde_json::{Value, json};

use super::records::{self, Rotation, RunRecord};
use super::{Lifecycle, drive, name, runs};
use crate::core::{Event, Slot, Verdict};

/// How long after the declaration the old value is revoked at the latest, unless another time is asked for.
const DEADLINE: Duration = Duration::from_secs(3);
/// The longest time that may be asked for: who can wait longer rotates in the usual way.
const DEADLINE_MAX: Duration = Duration::from_secs(3_600);

/// What an emergency would do now, and who would lose its connections by it.
pub(super) fn preview(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let rotation_name = name(cx.call.capture("rotation"), "rotation")?;
    let rotation = records::need_rotation(cx, &rotation_name)?;
    let dies = in_force(&rotation)?;
    let (mut ready, mut at_risk) = (Vec::new(), Vec::new());
    for (instance, holding) in records::holdings_of(cx, &rotation_name)? {
        let reason = match () {
            () if holding.lapsed => "its stream is gone, so the new value does not reach it",
            () if holding.stream.is_none() => "it has no stream now, so the new value may not reach it in time",
            () if !holding.proven => "it has never acknowledged a value",
            () => {
                ready.push(instance);
                continue;
            }
        };
        at_risk.push(json!({ "instance": instance, "principal": holding.principal, "reason": reason }));
    }
    Answer::data(&json!({
        "rotation": rotation_name,
        "path": rotation.path,
        "target": rotation.target,
        "dies": dies,
        "open_run": rotation.open,
        "ready": ready,
        "at_risk": at_risk,
        "not_known": "who only reads the secret, or has it by other ways, loses its connections and must read it again",
    }))
}

pub(super) fn declare(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let rotation_name = name(cx.call.capture("rotation"), "rotation")?;
    let by = cx.call.caller()?.principal.clone();
    let reason = cx.call.body.need_text("reason")?;
    let grace = cx.call.body.duration("deadline")?.unwrap_or(DEADLINE);
    if grace > DEADLINE_MAX {
        let max = engine::answer::span(DEADLINE_MAX);
        return Err(Refusal::invalid(format!("field `deadline`: at most `{max}`; whoever can wait longer rotates in the usual way")));
    }
    let rotation = records::need_rotation(cx, &rotation_name)?;
    let dies = in_force(&rotation)?;
    let declared = cx.now();
    let emergency = Event::Emergency { by: by.clone(), reason: reason.clone(), declared, grace };
    let (run, taken_over) = match &rotation.open {
        None => (runs::open(cx, &rotation_name, &by, &reason, Some(emergency))?, false),
        Some(id) => {
            let record = records::run(cx, id)?.ok_or_else(|| Refusal::internal(format!("run `{id}` is missing")))?;
            runs::ask_again_who_refused(cx, &rotation_name)?;
            let record = runs::steer(cx, record, emergency)?;
            drive::take_up(cx, &record)?;
            (id.clone(), true)
        }
    };
    cx.note("emergency", &reason);
    Answer::data(&json!({
        "run": run,
        "taken_over": taken_over,
        "dies": dies,
        "declared": declared.rfc3339(),
        "revoked_by": declared.after(grace).rfc3339(),
    }))
}

/// What is in force now: that is what dies.
fn in_force(rotation: &Rotation) -> Result<Value, Refusal> {
    let version = rotation.in_force.as_ref().ok_or_else(|| {
        Refusal::invalid(
            "this rotation has no value in force yet: let its first run end, or close it; nothing of it can have leaked before",
        )
    })?;
    Ok(json!({ "generation": version.generation, "slot": rotation.slot(version.slot) }))
}

/// A run that was turning back when the emergency was declared has ended with the leaked value in force: another one follows at once, on
/// the same clock.
pub(super) fn follow(cx: &mut Cx<'_>, ended: &RunRecord) -> Result<(), Refusal> {
    let verdict = ended.run.closed.as_ref().map(|closed| closed.verdict);
    let back = matches!(verdict, Some(Verdict::RolledBack | Verdict::Aborted));
    let Some(emergency) = ended.run.emergency.clone().filter(|emergency| back && emergency.again) else { return Ok(()) };
    let (by, reason) = (emergency.by.clone(), emergency.reason.clone());
    let event = Event::Emergency { by: emergency.by, reason: emergency.reason, declared: emergency.declared, grace: emergency.grace };
    runs::open(cx, &ended.rotation, &by, &reason, Some(event)).map(drop)
}

/// What is shown of a run's emergency.
pub(super) fn show(record: &RunRecord) -> Value {
    let run = &record.run;
    let Some(emergency) = &run.emergency else { return Value::Null };
    let dead = run.closed.as_ref().filter(|closed| closed.verdict == Verdict::Rotated).map(|closed| closed.at);
    json!({
        "declared": emergency.declared.rfc3339(),
        "declared_by": emergency.by,
        "reason": emergency.reason,
        "deadline": engine::answer::span(emergency.grace),
        "revoked_by": emergency.declared.after(emergency.grace).rfc3339(),
        "dead": dead.map(Timestamp::rfc3339),
        "dead_after_milliseconds": dead.map(|dead| runs::milliseconds(dead.since(emergency.declared))),
        "behind": runs::with_roles(record, json!(emergency.behind)),
        "another_run_follows": emergency.again,
    })
}

/// The role that a slot is, in a sentence.
pub(super) fn role(record: &RunRecord, slot: Slot) -> String {
    format!("`{}`", record.slot(slot))
}
