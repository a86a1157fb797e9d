//! `sys/mounts` and `sys/auth`: what is mounted where.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{CanonPath, MountId, Refusal};
use engine::{Answer, Cx, Permit};
use serde_json::{Map, Value, json};

use super::{System, doubled};
use crate::mounts::{self, Record};

/// Secrets engines and auth methods share the table; these live under `auth/`.
const AUTH_KINDS: &[&str] = &["approle"];

pub(super) fn list_secrets(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    list(system, cx, false)
}

pub(super) fn list_auth(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    list(system, cx, true)
}

pub(super) fn read_secrets(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    read(system, cx, false)
}

pub(super) fn read_auth(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    read(system, cx, true)
}

pub(super) fn write_secrets(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    write(system, cx, false)
}

pub(super) fn write_auth(system: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    write(system, cx, true)
}

pub(super) fn delete_secrets(_: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    delete(cx, false)
}

pub(super) fn delete_auth(_: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    delete(cx, true)
}

fn list(system: &System, cx: &mut Cx<'_>, auth: bool) -> Result<Answer, Refusal> {
    let mut data = Map::new();
    for (path, record) in mounts::all(cx.tx)? {
        if let Some(shown) = shown(&path, &record, auth) {
            data.insert(format!("{shown}/"), info(system, &record));
        }
    }
    doubled(cx.call, &data)
}

/// The name under which a mount stands in the list of auth methods, or in that of secrets engines.
pub(super) fn shown<'a>(path: &'a str, record: &Record, auth: bool) -> Option<&'a str> {
    match (auth, path.strip_prefix("auth/")) {
        (true, Some(rest)) => Some(rest),
        (false, None) if record.kind != "lifecycle" => Some(path),
        _ => None,
    }
}

fn read(system: &System, cx: &mut Cx<'_>, auth: bool) -> Result<Answer, Refusal> {
    let path = path(cx, auth)?;
    refuse_tune(&path, auth)?;
    match mounts::at(cx.tx, &path)? {
        Some(record) => match info(system, &record) {
            Value::Object(data) => doubled(cx.call, &data),
            _ => Err(Refusal::internal("a mount without description")),
        },
        None => Err(Refusal::invalid(format!("no {} at this path", if auth { "auth method" } else { "secrets engine" }))),
    }
}

fn write(system: &System, cx: &mut Cx<'_>, auth: bool) -> Result<Answer, Refusal> {
    let path = path(cx, auth)?;
    refuse_tune(&path, auth)?;
    let body = &cx.call.body;
    let mut kind = match body.text("type")? {
        Some(kind) => kind,
        None => body.need_text("plugin_name").map_err(|_| Refusal::invalid("field `type`: missing"))?,
    };
    let mut options = body.map("options")?.unwrap_or_default();
    match kind.as_str() {
        "kv-v2" => {
            kind = "kv".into();
            options.insert("version".into(), "2".into());
        }
        "kv-v1" | "generic" => {
            return Err(Refusal::invalid("field `type`: kv version 1 is not supported; use `kv` with option `version=2`"));
        }
        "kv" => match options.get("version").map(String::as_str) {
            Some("2") => {}
            // Elsewhere this means version 1: another API than the one that would be mounted.
            None | Some("") => {
                return Err(Refusal::invalid(
                    "field `type`: plain `kv` is version 1, which is not supported; use `kv-v2`, or `kv` with option `version=2`",
                ));
            }
            Some(_) => return Err(Refusal::invalid("field `options`: kv has version 2 only")),
        },
        _ if options.contains_key("version") => return Err(Refusal::invalid("field `options`: only kv has a version")),
        _ => {}
    }
    if !system.0.mountable(&kind) || AUTH_KINDS.contains(&kind.as_str()) != auth {
        let what = if auth { "auth method" } else { "secrets engine" };
        let there = system.0.mountable.iter().filter(|known| AUTH_KINDS.contains(*known) == auth);
        let there: Vec<_> = there.map(|known| if *known == "kv" { "`kv-v2`".to_owned() } else { format!("`{known}`") }).collect();
        return Err(Refusal::invalid(format!("field `type`: no such {what}; there is: {}", there.join(", "))));
    }
    if body.text("plugin_version")?.is_some_and(|v| !v.is_empty()) {
        return Err(Refusal::invalid("field `plugin_version`: there are no plugins"));
    }
    let (default_lease_ttl, max_lease_ttl) = tune(cx)?;
    let record = Record {
        id: MountId(0),
        kind,
        accessor: String::new(),
        uuid: String::new(),
        description: cx.call.body.text("description")?.unwrap_or_default(),
        options,
        default_lease_ttl,
        max_lease_ttl,
        fixed: false,
    };
    let record = mounts::insert(cx.tx, cx.host.rng(), &path, record)?;
    cx.note("mount_accessor", record.accessor);
    Ok(Answer::Nothing)
}

fn tune(cx: &Cx<'_>) -> Result<(Duration, Duration), Refusal> {
    let Some(raw) = cx.call.body.raw("config") else { return Ok((Duration::ZERO, Duration::ZERO)) };
    let config = engine::Body::from_json(raw.get().as_bytes()).map_err(|_| Refusal::invalid("field `config`: expected an object"))?;
    // Clients send the empty text, or `system`, for "as the server has it".
    let span = |name: &str| match config.text(name) {
        Ok(Some(text)) if matches!(text.as_str(), "" | "system") => Ok(Duration::ZERO),
        _ => config.lifetime(name).map(Option::unwrap_or_default),
    };
    let (default, max) = (span("default_lease_ttl")?, span("max_lease_ttl")?);
    if !max.is_zero() && default > max {
        return Err(Refusal::invalid("given default lease TTL greater than given max lease TTL"));
    }
    Ok((default, max))
}

fn delete(cx: &mut Cx<'_>, auth: bool) -> Result<Answer, Refusal> {
    let path = path(cx, auth)?;
    let record = mounts::at(cx.tx, &path)?;
    if record.is_none() {
        refuse_tune(&path, auth)?;
    }
    if let Some(record) = record
        && let Some(rotation) = cx.host.claimant(cx.tx, &record.at(path.to_folder()))?
    {
        return Err(Refusal::invalid(format!(
            "cannot unmount `{}/`: the rotation `{rotation}` manages a secret there; delete the rotation first",
            path.trimmed()
        )));
    }
    mounts::remove(cx.tx, &path)?;
    Ok(Answer::Nothing)
}

fn path(cx: &Cx<'_>, auth: bool) -> Result<CanonPath, Refusal> {
    let path = cx.call.capture("path");
    let path = if auth { format!("auth/{path}") } else { path.to_owned() };
    let path = CanonPath::from_plain(&path).map_err(|e| Refusal::invalid(e.to_string()))?;
    if !auth && path.segments().next() == Some("auth") {
        return Err(Refusal::invalid("field `path`: auth methods are mounted by `sys/auth/`"));
    }
    Ok(path)
}

/// `…/tune` below a mount's path is another question, which is not answered here: it names no mount.
fn refuse_tune(path: &CanonPath, auth: bool) -> Result<(), Refusal> {
    let depth = path.segments().count() - usize::from(auth);
    match path.segments().next_back() {
        Some(mounts::TUNE) if depth > 1 => Err(Refusal::missing_because("1 error occurred:\n\t* unsupported path\n\n")),
        _ => Ok(()),
    }
}

/// A mount as these paths show it.
pub(super) fn info(system: &System, record: &Record) -> Value {
    let lifetimes = system.0.lifetimes;
    let seconds = |own: Duration, system: Duration| if own.is_zero() { system.as_secs() } else { own.as_secs() };
    let options: Option<&BTreeMap<String, String>> = (!record.options.is_empty()).then_some(&record.options);
    json!({
        "type": record.kind,
        "description": record.description,
        "accessor": record.accessor,
        "uuid": record.uuid,
        "local": false,
        "seal_wrap": false,
        "external_entropy_access": false,
        "options": options,
        "plugin_version": "",
        "running_plugin_version": "",
        "running_sha256": "",
        "deprecation_status": "",
        "config": {
            "default_lease_ttl": seconds(record.default_lease_ttl, lifetimes.default),
            "max_lease_ttl": seconds(record.max_lease_ttl, lifetimes.max),
            "force_no_cache": false,
        },
    })
}
