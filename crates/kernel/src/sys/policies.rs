//! `sys/policies/acl`, and `sys/policy` as older clients know it.

use base::Refusal;
use engine::{Answer, Cx, Permit};
use policy::PolicyName;
use serde_json::{Map, Value, json};

use super::{System, doubled};
use crate::policies;

pub(super) fn list(_: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let names = policies::names(cx.tx)?;
    Answer::data(&json!({ "keys": names }))
}

pub(super) fn list_legacy(_: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let names = policies::names(cx.tx)?;
    let mut data = Map::new();
    data.insert("keys".into(), names.clone().into());
    data.insert("policies".into(), names.into());
    doubled(cx.call, &data)
}

pub(super) fn read(_: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (name, text) = find(cx)?;
    Answer::data(&json!({ "name": name, "policy": text }))
}

pub(super) fn read_legacy(_: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (name, text) = find(cx)?;
    let mut data = Map::new();
    data.insert("name".into(), name.into());
    data.insert("rules".into(), Value::String(text));
    doubled(cx.call, &data)
}

pub(super) fn write(_: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let name = name(cx)?;
    let text = match cx.call.body.text("policy")? {
        Some(text) => text,
        None => cx.call.body.text("rules")?.unwrap_or_default(),
    };
    if text.trim().is_empty() {
        return Err(Refusal::invalid("'policy' parameter not supplied or empty"));
    }
    // Clients may send the text in base64: a policy never reads as base64 by itself.
    let decoded = crypto::encode::from_base64(text.trim()).and_then(|bytes| String::from_utf8(bytes).ok());
    let text = decoded.unwrap_or(text);
    policies::put(cx.tx, &name, &text)?;
    cx.note("policy", name);
    // What was accepted is a policy and no secret; what was refused might be anything.
    cx.note("text", text);
    Ok(Answer::Nothing)
}

pub(super) fn delete(_: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let name = name(cx)?;
    policies::remove(cx.tx, &name)?;
    cx.note("policy", name);
    Ok(Answer::Nothing)
}

fn name(cx: &Cx<'_>) -> Result<PolicyName, Refusal> {
    PolicyName::parse(cx.call.capture("name")).map_err(|e| Refusal::invalid(format!("field `name`: {e}")))
}

fn find(cx: &mut Cx<'_>) -> Result<(String, String), Refusal> {
    if cx.call.capture("name") == PolicyName::root().as_str() {
        return Ok(("root".into(), String::new()));
    }
    let name = name(cx)?;
    let text = policies::text(cx.tx, &name)?.ok_or_else(Refusal::missing)?;
    Ok((name.to_string(), text))
}
