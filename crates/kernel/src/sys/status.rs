//! `sys/health`, `sys/seal-status`, `sys/leader`, `sys/init`, `sys/duties`: how the server is. The first four answer without a token, sealed or not.

use audit::Reply;
use base::Refusal;
use engine::{Answer, Cx, Duty, Op, Permit, duty};
use serde_json::json;

use crate::head::Asked;
use crate::{Shared, reply};

use super::System;

/// Answers if the path is one of those that need no open seal.
pub(crate) fn answer(shared: &Shared, asked: &Asked) -> Option<Result<Reply, Refusal>> {
    if asked.op != Op::Read {
        return match asked.path.as_str() {
            "sys/health" | "sys/seal-status" | "sys/leader" => Some(Err(Refusal::unsupported())),
            // The server initialises itself: there is no ceremony for the first who comes.
            "sys/init" if shared.store.initialised() => Some(Err(Refusal::invalid("Vault is already initialized"))),
            "sys/init" => Some(Err(Refusal::unsupported())),
            _ => None,
        };
    }
    match asked.path.as_str() {
        "sys/health" => Some(health(shared, asked)),
        "sys/seal-status" => Some(seal_status(shared)),
        "sys/leader" => Some(leader()),
        "sys/init" => Some(initialised(shared)),
        _ => None,
    }
}

fn health(shared: &Shared, asked: &Asked) -> Result<Reply, Refusal> {
    let (initialised, sealed) = (shared.store.initialised(), shared.store.sealed());
    let poisoned = shared.store.poisoned().is_some();
    let (name, normal) = match (initialised, sealed || poisoned) {
        (false, _) => ("uninitcode", 501),
        (true, true) => ("sealedcode", 503),
        (true, false) => ("activecode", 200),
    };
    let mut status = normal;
    for (param, values) in &asked.query {
        if param.ends_with("code") {
            let code = values.first().and_then(|v| v.parse::<u16>().ok()).filter(|c| (100..600).contains(c));
            let code = code.ok_or_else(|| Refusal::invalid(format!("query `{}`: expected a status code", short(param))))?;
            if param == name {
                status = code;
            }
        }
    }
    let mut body = json!({
        "initialized": initialised,
        "sealed": sealed,
        "standby": false,
        "performance_standby": false,
        "replication_performance_mode": "disabled",
        "replication_dr_mode": "disabled",
        "server_time_utc": shared.clock.now().unix_seconds(),
        "version": shared.version,
        "enterprise": false,
        "echo_duration_ms": 0,
        "clock_skew_ms": 0,
        "replication_primary_canary_age_ms": 0,
    });
    if let (false, Some(cluster), Some(members)) = (sealed, shared.store.cluster_id(), body.as_object_mut()) {
        members.insert("cluster_name".into(), shared.cluster_name.as_str().into());
        members.insert("cluster_id".into(), cluster.into());
    }
    Ok(reply::bare(status, &engine::answer::raw(&body)?))
}

fn short(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).take(32).collect()
}

fn seal_status(shared: &Shared) -> Result<Reply, Refusal> {
    let (initialised, sealed) = (shared.store.initialised(), shared.store.sealed());
    let mut body = json!({
        "type": "keyfile",
        "initialized": initialised,
        "sealed": sealed,
        "t": 1,
        "n": 1,
        "progress": 0,
        "nonce": "",
        "version": shared.version,
        "build_date": "",
        "migration": false,
        "recovery_seal": false,
        "storage_type": if shared.in_memory { "inmem" } else { "file" },
    });
    if let (false, Some(cluster), Some(members)) = (sealed, shared.store.cluster_id(), body.as_object_mut()) {
        members.insert("cluster_name".into(), shared.cluster_name.as_str().into());
        members.insert("cluster_id".into(), cluster.into());
    }
    Ok(reply::bare(200, &engine::answer::raw(&body)?))
}

fn initialised(shared: &Shared) -> Result<Reply, Refusal> {
    Ok(reply::bare(200, &engine::answer::raw(&json!({ "initialized": shared.store.initialised() }))?))
}

fn leader() -> Result<Reply, Refusal> {
    let body = json!({
        "ha_enabled": false,
        "is_self": false,
        "active_time": "0001-01-01T00:00:00Z",
        "leader_address": "",
        "leader_cluster_address": "",
        "performance_standby": false,
        "performance_standby_last_remote_wal": 0,
    });
    Ok(reply::bare(200, &engine::answer::raw(&body)?))
}

/// Duties that are listed at most.
const DUTIES_LISTED_MAX: usize = 1_000;

/// What is owed, the earliest first: what is overdue is debt. Says when there is more, and how much of it could not be read.
pub(super) fn duties(_: &System, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let now = cx.now();
    let mut keys = Vec::new();
    let mut info = serde_json::Map::new();
    let rows = cx.tx.scan(&duty::all(), None, DUTIES_LISTED_MAX + 1)?;
    let (truncated, mut unreadable) = (rows.len() > DUTIES_LISTED_MAX, 0_u64);
    for row in rows.into_iter().take(DUTIES_LISTED_MAX) {
        let Ok(duty) = serde_json::from_slice::<Duty>(row.value.expose()) else {
            unreadable += 1;
            continue;
        };
        let name = format!("{:x}/{}", duty.id.owner.0, duty.id.key);
        let overdue = now.since(duty.due).as_secs_f64();
        keys.push(name.clone());
        info.insert(
            name,
            json!({
                "kind": duty.kind, "lane": duty.lane, "due": duty.due.rfc3339(), "owed": duty.owed.rfc3339(), "attempts": duty.attempts,
                "overdue_seconds": (overdue * 1000.0).round() / 1000.0, "last": duty.last, "parked": duty.parked,
            }),
        );
    }
    Answer::data(&json!({ "keys": keys, "key_info": info, "truncated": truncated, "unreadable": unreadable }))
}
