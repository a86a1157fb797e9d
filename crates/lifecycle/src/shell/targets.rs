//! `targets/:name`: outside systems. A target is checked before it is accepted, so a rotation never meets one that proves nothing.

use std::sync::Arc;

use base::Refusal;
use engine::{Answer, Cx, Duty, Fault, NewDuty, Outcome, Permit, RotationTarget, TargetConfig, Work};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use super::drive::payload;
use super::records::{self, Rotation, Target};
use super::{Lifecycle, name};

/// The duty that checks a target.
pub(super) const CHECK: &str = "lifecycle-check-target";

#[derive(Serialize, Deserialize)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) config: TargetConfig,
    /// What the caller says that the system is.
    pub(super) expected: Option<String>,
}

pub(super) fn list(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let prefix = records::table(cx, "target", &[]);
    let names = cx.tx.list(&prefix, None, records::ROWS_MAX)?;
    if names.is_empty() { Err(Refusal::missing()) } else { Answer::data(&json!({ "keys": names })) }
}

pub(super) fn read(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let target = find(cx, &name(cx.call.capture("name"), "name")?)?;
    let mut data: Map<_, _> = target.config.public.into_iter().map(|(k, v)| (k, v.into())).collect();
    data.insert("kind".into(), target.config.kind.into());
    data.insert("identity".into(), target.config.identity.into());
    data.insert("checked".into(), target.checked.rfc3339().into());
    Answer::data(&data)
}

pub(super) fn write(lifecycle: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let name = name(cx.call.capture("name"), "name")?;
    let body = &cx.call.body;
    let kind = lifecycle.kind(&body.need_text("kind")?)?;
    let known = |field: &str| matches!(field, "kind" | "identity") || kind.fields().iter().any(|f| f.name == field);
    if let Some((unknown, _)) = body.members().find(|(field, _)| !known(field)) {
        let unknown: String = unknown.chars().take(64).collect();
        let fields = kind.fields().iter().map(|f| f.name).collect::<Vec<_>>().join(", ");
        return Err(Refusal::invalid(format!("unknown field `{unknown}`; a target of kind `{}` reads: identity, {fields}", kind.name())));
    }
    let mut config = kind.read(body)?;
    config.kind = kind.name().to_owned();
    let mut nonce = [0; 8];
    cx.host.rng().fill(&mut nonce)?;
    let key = format!("check/{name}/{}", crypto::encode::hex(&nonce));
    let candidate = records::candidate_key(cx, &key);
    let expected = body.text("identity")?.filter(|identity| !identity.is_empty());
    cx.tx.write(&candidate, &Candidate { name: name.clone(), config, expected })?;
    cx.note("target", &name);
    let (owner, due) = (cx.call.mount.clone(), cx.now());
    let duty = NewDuty { payload: engine::answer::raw(&key)?, key, kind: CHECK, due, act: true, lane: format!("target/{name}") };
    cx.host.owe(cx.tx, &owner, duty).map(Answer::After)
}

pub(super) fn check(lifecycle: &Lifecycle, cx: &mut Cx<'_>, duty: &Duty) -> Result<Work, Refusal> {
    let candidate = candidate(cx, duty)?;
    let target = lifecycle.kind(&candidate.config.kind)?.open(&candidate.config)?;
    Ok(Box::pin(async move { for_the_caller(target.check().await) }))
}

pub(super) fn checked(cx: &mut Cx<'_>, duty: &Duty, outcome: &Outcome) -> Result<Answer, Refusal> {
    let Candidate { name, config, expected } = candidate(cx, duty)?;
    let key = records::candidate_key(cx, &duty.id.key);
    cx.tx.delete(&key)?;
    cx.note("target", &name);
    cx.tx.keep();
    let identity: String = accepted(outcome, &format!("target `{name}` was not accepted"))?;
    if expected.as_ref().is_some_and(|expected| *expected != identity) {
        return Err(Refusal::invalid(format!("field `identity`: the system that answers is `{identity}`")));
    }
    let key = records::target_key(cx, &name);
    let known: Option<Target> = cx.tx.read(&key)?;
    let target = Target { config: TargetConfig { identity: Some(identity.clone()), ..config }, checked: cx.now() };
    if let Some(known) = known.filter(|known| known.config.identity != target.config.identity) {
        let users = users(cx, &name)?;
        if let (Some((rotation, _)), Some(before), None) = (users.first(), &known.config.identity, &expected) {
            return Err(Refusal::invalid(format!(
                "target `{name}` was not accepted: another system answers there than the one in which rotation `{rotation}` has its \
                 slots (it is `{identity}`, not `{before}`). Write it under another name; or, if the same roles live on there, as after \
                 `pg_upgrade`, say so by writing it with this `identity`"
            )));
        }
        for (rotation, Rotation { slots, .. }) in users {
            for slot in slots {
                let key = records::slot_key(cx, &known, &slot);
                cx.tx.delete(&key)?;
                claim(cx, &target, &slot, &rotation)?;
            }
        }
    }
    cx.tx.write(&key, &target)?;
    Ok(Answer::Nothing)
}

/// Claims a slot for a rotation: no two may have one.
///
/// # Errors
/// 400 with the name of the rotation that has it.
pub(super) fn claim(cx: &mut Cx<'_>, target: &Target, slot: &str, rotation: &str) -> Result<(), Refusal> {
    let key = records::slot_key(cx, target, slot);
    match cx.tx.read::<String>(&key)? {
        Some(other) if other != rotation => {
            Err(Refusal::invalid(format!("field `slots`: rotation `{other}` has the role `{slot}` of this system")))
        }
        _ => Ok(cx.tx.write(&key, &rotation)?),
    }
}

/// The rotations that use the target, by name.
fn users(cx: &mut Cx<'_>, target: &str) -> Result<Vec<(String, Rotation)>, Refusal> {
    let prefix = records::table(cx, records::ROTATIONS, &[]);
    let mut rotations = records::all::<Rotation>(cx, &prefix, records::ROWS_MAX)?;
    rotations.retain(|(_, rotation)| rotation.target == target);
    Ok(rotations)
}

pub(super) fn delete(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let name = name(cx.call.capture("name"), "name")?;
    if let Some((rotation, _)) = users(cx, &name)?.first() {
        return Err(Refusal::invalid(format!("rotation `{rotation}` uses this target")));
    }
    let key = records::target_key(cx, &name);
    cx.tx.delete(&key)?;
    cx.note("target", name);
    Ok(Answer::Nothing)
}

fn candidate(cx: &mut Cx<'_>, duty: &Duty) -> Result<Candidate, Refusal> {
    let key: String = payload(duty)?;
    let key = records::candidate_key(cx, &key);
    cx.tx.read(&key)?.ok_or_else(|| Refusal::internal("a target that was to be checked is missing"))
}

pub(super) fn find(cx: &mut Cx<'_>, name: &str) -> Result<Target, Refusal> {
    let key = records::target_key(cx, name);
    cx.tx.read(&key)?.ok_or_else(|| Refusal::missing_because(format!("no target is named `{name}`")))
}

/// Opens a target that was accepted.
pub(super) fn open(lifecycle: &Lifecycle, cx: &mut Cx<'_>, name: &str) -> Result<Arc<dyn RotationTarget>, Refusal> {
    let target = find(cx, name)?;
    lifecycle.kind(&target.config.kind)?.open(&target.config)
}

/// The outcome of an act whose failure is the caller's to mend.
pub(super) fn for_the_caller<T: Serialize>(result: Result<T, Fault>) -> Outcome {
    match result {
        Ok(found) => Outcome::done(&found),
        Err(Fault::Unreachable(text)) => Outcome::Refused { code: "unreachable".into(), text },
        Err(Fault::Refused { code, text }) => Outcome::Refused { code, text },
        Err(Fault::Unknown(text)) => Outcome::Unknown { text },
    }
}

/// What was found, or 400 unless it was done.
pub(super) fn accepted<T: DeserializeOwned>(outcome: &Outcome, what: &str) -> Result<T, Refusal> {
    match outcome {
        Outcome::Done(found) => serde_json::from_str(found.get()).map_err(|_| Refusal::internal("what a target said could not be read")),
        Outcome::Refused { code, text } => Err(Refusal::invalid(format!("{what}: {text} ({code})"))),
        Outcome::Unknown { text } => Err(Refusal::invalid(format!("{what}: {text}; write it again"))),
    }
}
