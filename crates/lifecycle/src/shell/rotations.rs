//! `rotations/:name`: which secret is rotated at which target, how, and on which terms.

use std::time::Duration;

use base::{CanonPath, Refusal};
use engine::answer::span;
use engine::{Answer, Cx, Duty, Field, FieldKind, Need, NewDuty, Op, Outcome, Permit, Work};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::drive::payload;
use super::records::{self, Rotation, Target};
use super::{Lifecycle, name, runs, targets};
use crate::core::{Generation, Level, OnHard, Slot, Terms, ValueId};

/// The duty that prepares a target for a rotation.
pub(super) const ADOPT: &str = "lifecycle-adopt";

pub(super) const FIELDS: &[Field] = &[
    Field::public("path", FieldKind::Text, "the secret, as clients read it: `secret/data/orders/db`"),
    Field::public("target", FieldKind::Text, "the target"),
    Field::public("owner", FieldKind::Text, "the role without login that owns what both slots make"),
    Field::public("slots", FieldKind::List, "the two login roles"),
    Field::public("period", FieldKind::Duration, "time between runs; 0 for rotation on request only"),
    Field::public("required_level", FieldKind::Text, "what every consumer must reach: `L1` or `L2`"),
    Field::public("canaries", FieldKind::Int, "how many instances go first"),
    Field::public("soak", FieldKind::Duration, "how long the canaries must stay well"),
    Field::public("quiet_period", FieldKind::Duration, "how long the old slot must be without a session"),
    Field::public("session_poll", FieldKind::Duration, "how often sessions are looked at"),
    Field::public("soft_deadline", FieldKind::Duration, "after this long in a phase the laggards are named"),
    Field::public("hard_deadline", FieldKind::Duration, "after this long in a phase `on_hard_deadline` decides"),
    Field::public("on_hard_deadline", FieldKind::Text, "`hold` or `rollback`"),
    Field::public("verifications", FieldKind::Int, "fresh logins with the new value before anybody gets it"),
    Field::public("attempts", FieldKind::Int, "failures in one phase before the run gives up or says that it is stuck"),
    Field::public("backoff", FieldKind::Duration, "pause after the first failure; doubles"),
    Field::public("backoff_max", FieldKind::Duration, "the longest pause"),
    Field::public("holding_ttl", FieldKind::Duration, "how long a consumer without a stream counts as gone for a moment only"),
];

pub(super) fn defaults() -> Terms {
    Terms {
        required: Level::L2,
        canaries: 1,
        soak: Duration::from_secs(10),
        quiet: Duration::from_secs(30),
        poll: Duration::from_secs(1),
        soft: Duration::from_secs(60),
        hard: Duration::from_secs(600),
        on_hard: OnHard::Hold,
        verifies: 2,
        attempts: 8,
        backoff: Duration::from_millis(500),
        backoff_max: Duration::from_secs(30),
    }
}

pub(super) fn list(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let prefix = records::table(cx, records::ROTATIONS, &[]);
    let names = cx.tx.list(&prefix, None, records::ROWS_MAX)?;
    if names.is_empty() { Err(Refusal::missing()) } else { Answer::data(&json!({ "keys": names })) }
}

pub(super) fn read(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let name = name(cx.call.capture("name"), "name")?;
    let rotation = records::need_rotation(cx, &name)?;
    Answer::data(&show(&rotation))
}

fn show(rotation: &Rotation) -> Value {
    let terms = &rotation.terms;
    json!({
        "path": rotation.path,
        "target": rotation.target,
        "owner": rotation.owner,
        "slots": rotation.slots,
        "period": span(rotation.period),
        "required_level": terms.required,
        "canaries": terms.canaries,
        "soak": span(terms.soak),
        "quiet_period": span(terms.quiet),
        "session_poll": span(terms.poll),
        "soft_deadline": span(terms.soft),
        "hard_deadline": span(terms.hard),
        "on_hard_deadline": terms.on_hard,
        "verifications": terms.verifies,
        "attempts": terms.attempts,
        "backoff": span(terms.backoff),
        "backoff_max": span(terms.backoff_max),
        "holding_ttl": span(rotation.holding_ttl),
        "generation": rotation.in_force.as_ref().map(|v| v.generation),
        "slot_in_force": rotation.in_force.as_ref().map(|v| rotation.slot(v.slot)),
        "open_run": rotation.open,
    })
}

/// Who writes a rotation takes its secret over, and names roles of its target: `update` is needed at both. Who deletes one gives the
/// secret back and asks nothing of the target.
pub(super) fn also(_: &Lifecycle, cx: &mut Cx<'_>) -> Result<Vec<(Need, CanonPath)>, Refusal> {
    // What is wrong with the input is said by the handler, to those who may write.
    let Ok(rotation_name) = name(cx.call.capture("name"), "name") else { return Ok(Vec::new()) };
    let (path, target) = match records::rotation(cx, &rotation_name)? {
        Some(rotation) => (Some(rotation.path), Some(rotation.target)),
        None => {
            let text = |field: &str| cx.call.body.text(field).ok().flatten();
            (
                text("path").and_then(|path| CanonPath::from_plain(&path).ok()),
                text("target").filter(|target| name(target, "target").is_ok()),
            )
        }
    };
    let target = match target.filter(|_| cx.call.op == Op::Write) {
        Some(target) => {
            let below = CanonPath::from_plain(&format!("targets/{target}")).and_then(|below| cx.call.mount.path.join(&below));
            Some(below.map_err(|e| Refusal::invalid(format!("field `target`: {e}")))?)
        }
        None => None,
    };
    Ok(path.into_iter().chain(target).map(|path| (Need::Update, path)).collect())
}

pub(super) fn write(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let name = name(cx.call.capture("name"), "name")?;
    cx.note("rotation", &name);
    let known = records::rotation(cx, &name)?;
    let before = known.as_ref().map(|known| known.period);
    let rotation = match known {
        Some(known) => change(cx, known)?,
        None => make(cx, &name)?,
    };
    let fresh = !rotation.adopted;
    records::put_rotation(cx, &name, &rotation)?;
    if !fresh {
        // Written again with the same period, the next run stays due when it was.
        if before != Some(rotation.period) {
            runs::schedule(cx, &name, rotation.period)?;
        }
        return Ok(Answer::Nothing);
    }
    let mut nonce = [0; 8];
    cx.host.rng().fill(&mut nonce)?;
    let (owner, due) = (cx.call.mount.clone(), cx.now());
    let duty = NewDuty {
        key: format!("adopt/{name}/{}", crypto::encode::hex(&nonce)),
        kind: ADOPT,
        due,
        act: true,
        lane: format!("target/{}", rotation.target),
        payload: engine::answer::raw(&Adoption { name, target: rotation.target, owner: rotation.owner, slots: rotation.slots })?,
    };
    cx.host.owe(cx.tx, &owner, duty).map(Answer::After)
}

/// What a target is prepared for. The rotation may be another one when the target answers.
#[derive(Serialize, Deserialize)]
struct Adoption {
    name: String,
    target: String,
    owner: String,
    slots: [String; 2],
}

impl Adoption {
    fn is_of(&self, rotation: &Rotation) -> bool {
        (&self.target, &self.owner, &self.slots) == (&rotation.target, &rotation.owner, &rotation.slots)
    }
}

fn make(cx: &mut Cx<'_>, rotation_name: &str) -> Result<Rotation, Refusal> {
    let body = &cx.call.body;
    let path = CanonPath::from_plain(&body.need_text("path")?).map_err(|e| Refusal::invalid(format!("field `path`: {e}")))?;
    let target = name(&body.need_text("target")?, "target")?;
    let slots: [String; 2] = body
        .list("slots")?
        .and_then(|slots| slots.try_into().ok())
        .filter(|[a, b]: &[String; 2]| a != b)
        .ok_or_else(|| Refusal::invalid("field `slots`: expected two different role names"))?;
    let owner = body.need_text("owner")?;
    if slots.contains(&owner) {
        return Err(Refusal::invalid("field `owner`: expected a role of its own, not one of the slots"));
    }
    for role in slots.iter().chain([&owner]) {
        if role.is_empty() || role.len() > 63 || role.contains('\0') {
            return Err(Refusal::invalid("fields `owner`, `slots`: role names have 1 to 63 bytes"));
        }
    }
    let target_key = records::target_key(cx, &target);
    let Some(system) = cx.tx.read::<Target>(&target_key)? else {
        return Err(Refusal::invalid(format!("field `target`: no target is named `{target}`")));
    };
    for slot in &slots {
        targets::claim(cx, &system, slot, rotation_name)?;
    }
    cx.host.claim(cx.tx, &path, Some(rotation_name))?;
    let generation_key = records::generation_key(cx, rotation_name);
    let blank = Rotation {
        path,
        target,
        owner,
        slots,
        period: Duration::ZERO,
        holding_ttl: Duration::from_secs(30),
        terms: defaults(),
        first_slot: records::first_slot(),
        in_force: None,
        published: None,
        generation_max: cx.tx.read(&generation_key)?.unwrap_or(Generation(0)),
        value_max: ValueId(0),
        open: None,
        adopted: false,
    };
    terms(cx, blank)
}

/// Later writes change the terms; an open run keeps those it was opened with.
fn change(cx: &mut Cx<'_>, rotation: Rotation) -> Result<Rotation, Refusal> {
    let body = &cx.call.body;
    let same = body.text("path")?.is_none_or(|p| p == rotation.path.as_str())
        && body.text("target")?.is_none_or(|t| t == rotation.target)
        && body.text("owner")?.is_none_or(|o| o == rotation.owner)
        && body.list("slots")?.is_none_or(|s| s == rotation.slots);
    if !same {
        return Err(Refusal::invalid(
            "fields `path`, `target`, `owner`, `slots`: cannot be changed; delete the rotation and write it anew",
        ));
    }
    terms(cx, rotation)
}

fn terms(cx: &Cx<'_>, mut rotation: Rotation) -> Result<Rotation, Refusal> {
    let body = &cx.call.body;
    let count = |field: &str, range: std::ops::RangeInclusive<u32>| -> Result<Option<u32>, Refusal> {
        let Some(n) = body.int(field)? else { return Ok(None) };
        let wrong = || Refusal::invalid(format!("field `{field}`: expected {} to {}", range.start(), range.end()));
        u32::try_from(n).ok().filter(|n| range.contains(n)).map(Some).ok_or_else(wrong)
    };
    let positive = |field: &str| -> Result<Option<Duration>, Refusal> {
        match body.duration(field)? {
            Some(span) if span < SPAN_MIN => Err(Refusal::invalid(format!("field `{field}`: expected at least a millisecond"))),
            span => Ok(span),
        }
    };
    let t = &mut rotation.terms;
    match body.text("required_level")?.as_deref() {
        None => {}
        Some("L1") => t.required = Level::L1,
        Some("L2") => t.required = Level::L2,
        Some(_) => return Err(Refusal::invalid("field `required_level`: expected `L1` or `L2`")),
    }
    match body.text("on_hard_deadline")?.as_deref() {
        None => {}
        Some("hold") => t.on_hard = OnHard::Hold,
        Some("rollback") => t.on_hard = OnHard::Rollback,
        Some(_) => return Err(Refusal::invalid("field `on_hard_deadline`: expected `hold` or `rollback`")),
    }
    t.canaries = count("canaries", 0..=1_000)?.unwrap_or(t.canaries);
    t.verifies = count("verifications", 1..=100)?.unwrap_or(t.verifies);
    t.attempts = count("attempts", 1..=1_000)?.unwrap_or(t.attempts);
    t.soak = body.duration("soak")?.unwrap_or(t.soak);
    t.quiet = body.duration("quiet_period")?.unwrap_or(t.quiet);
    t.poll = positive("session_poll")?.unwrap_or(t.poll);
    t.soft = positive("soft_deadline")?.unwrap_or(t.soft);
    t.hard = positive("hard_deadline")?.unwrap_or(t.hard);
    t.backoff = positive("backoff")?.unwrap_or(t.backoff);
    t.backoff_max = positive("backoff_max")?.unwrap_or(t.backoff_max);
    if t.soft > t.hard {
        return Err(Refusal::invalid("field `soft_deadline`: expected no more than `hard_deadline`"));
    }
    if t.on_hard == OnHard::Rollback && t.hard <= t.soak.max(t.quiet) {
        return Err(Refusal::invalid(
            "field `hard_deadline`: expected more than `soak` and `quiet_period` with `on_hard_deadline=rollback`: the deadline would turn \
             every run back",
        ));
    }
    rotation.holding_ttl = positive("holding_ttl")?.unwrap_or(rotation.holding_ttl);
    if let Some(period) = body.duration("period")? {
        if !period.is_zero() && period < PERIOD_MIN {
            return Err(Refusal::invalid("field `period`: expected 0 or at least a minute"));
        }
        rotation.period = period;
    }
    Ok(rotation)
}

/// The shortest pause: nothing is repeated as fast as the machine can.
const SPAN_MIN: Duration = Duration::from_millis(1);
/// The shortest time between two scheduled runs.
const PERIOD_MIN: Duration = Duration::from_secs(60);

pub(super) fn adopt(lifecycle: &Lifecycle, cx: &mut Cx<'_>, duty: &Duty) -> Result<Work, Refusal> {
    let adoption: Adoption = payload(duty)?;
    let target = targets::open(lifecycle, cx, &adoption.target)?;
    Ok(Box::pin(async move { targets::for_the_caller(target.adopt(&adoption.owner, &adoption.slots).await) }))
}

pub(super) fn adopted(_: &Lifecycle, cx: &mut Cx<'_>, duty: &Duty, outcome: &Outcome) -> Result<Answer, Refusal> {
    let adoption: Adoption = payload(duty)?;
    let Some(mut rotation) = records::rotation(cx, &adoption.name)?.filter(|rotation| adoption.is_of(rotation)) else {
        return Err(Refusal::invalid("the rotation was deleted or written anew meanwhile"));
    };
    let name = adoption.name;
    cx.note("rotation", &name);
    if rotation.adopted {
        // Written twice before the target answered: the first answer was enough.
        return Answer::data(&json!({ "run": rotation.open }));
    }
    match targets::accepted::<[bool; 2]>(outcome, &format!("rotation `{name}` was not accepted")) {
        Ok([first, second]) if second && !first => rotation.first_slot = Slot(1),
        Ok(_) => {}
        Err(refusal) => {
            // Not accepted is not written: the claim goes too.
            forget(cx, &name, &rotation)?;
            cx.tx.keep();
            return Err(refusal);
        }
    }
    rotation.adopted = true;
    records::put_rotation(cx, &name, &rotation)?;
    runs::schedule(cx, &name, rotation.period)?;
    let run = runs::open(cx, &name, "first", "the rotation was written", None)?;
    Answer::data(&json!({ "run": run }))
}

fn forget(cx: &mut Cx<'_>, name: &str, rotation: &Rotation) -> Result<(), Refusal> {
    cx.host.claim(cx.tx, &rotation.path, None)?;
    let system = targets::find(cx, &rotation.target)?;
    for slot in &rotation.slots {
        let key = records::slot_key(cx, &system, slot);
        cx.tx.delete(&key)?;
    }
    // Agents remember what they hold longer than this rotation lives: the next one of its name counts on.
    let key = records::generation_key(cx, name);
    cx.tx.write(&key, &rotation.generation_max)?;
    let key = records::rotation_key(cx, name);
    Ok(cx.tx.delete(&key)?)
}

pub(super) fn delete(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let name = name(cx.call.capture("name"), "name")?;
    cx.note("rotation", &name);
    let Some(rotation) = records::rotation(cx, &name)? else { return Ok(Answer::Nothing) };
    if let Some(run) = &rotation.open {
        return Err(Refusal::invalid(format!("run `{run}` is open: abort it or let it close first")));
    }
    forget(cx, &name, &rotation)?;
    runs::schedule(cx, &name, Duration::ZERO)?;
    for (instance, _) in records::holdings_of(cx, &name)? {
        let key = records::holding_key(cx, &name, &instance);
        cx.tx.delete(&key)?;
    }
    if let Some(version) = &rotation.in_force {
        let key = records::value_key(cx, &name, version.value);
        cx.tx.delete(&key)?;
    }
    Ok(Answer::Nothing)
}
