//! `config`: what holds for all secrets of the mount.

use base::Refusal;
use engine::{Answer, Cx, Field, FieldKind, Key, Mount, Op, Permit, Route, Tx};
use serde::{Deserialize, Serialize};

use super::Kv;
use super::record::{go_duration, whole_seconds};

pub(super) const READ: Route<Kv> = Route::new(Op::Read, "config", &[], "The mount's settings.", read);
pub(super) const WRITE: Route<Kv> = Route::new(Op::Write, "config", FIELDS, "Change the mount's settings.", write);

pub(super) const FIELDS: &[Field] = &[
    Field::public("max_versions", FieldKind::Int, "Versions to keep of each secret; 0 keeps 10."),
    Field::public("cas_required", FieldKind::Bool, "Whether every write must name the version it replaces."),
    Field::public("delete_version_after", FieldKind::Duration, "The time after which a version counts as deleted; 0 for never."),
];

/// The settings of a mount, or what is unset.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Config {
    pub(super) max_versions: u64,
    pub(super) cas_required: bool,
    /// Seconds.
    pub(super) delete_version_after: u64,
}

impl Config {
    pub(super) fn load(tx: &mut Tx, mount: &Mount) -> Result<Self, Refusal> {
        Ok(tx.read(&key(mount))?.unwrap_or_default())
    }
}

fn key(mount: &Mount) -> Key {
    Key::new(mount.scope(), "config", &[])
}

fn read(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    #[derive(Serialize)]
    struct Shown {
        cas_required: bool,
        delete_version_after: String,
        max_versions: u64,
    }
    let config = Config::load(cx.tx, &cx.call.mount)?;
    Answer::data(&Shown {
        cas_required: config.cas_required,
        delete_version_after: go_duration(config.delete_version_after),
        max_versions: config.max_versions,
    })
}

fn write(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let mut config = Config::load(cx.tx, &cx.call.mount)?;
    let body = &cx.call.body;
    if let Some(max) = body.int("max_versions")? {
        config.max_versions = max;
    }
    if let Some(required) = body.bool("cas_required")? {
        config.cas_required = required;
    }
    if let Some(after) = body.duration("delete_version_after")? {
        config.delete_version_after = whole_seconds(after);
    }
    cx.tx.write(&key(&cx.call.mount), &config)?;
    Ok(Answer::Nothing)
}

#[cfg(test)]
mod tests {
    use crate::bench::Bench;

    #[test]
    fn defaults_and_changes() {
        let kv = Bench::kv();
        kv.reads("config", r#"{"cas_required":false,"delete_version_after":"0s","max_versions":0}"#);
        kv.write("config", r#"{"max_versions":"5","delete_version_after":"90m"}"#).nothing();
        kv.write("config", r#"{"cas_required":"true"}"#).nothing();
        kv.reads("config", r#"{"cas_required":true,"delete_version_after":"1h30m0s","max_versions":5}"#);
        kv.write("config", r#"{"max_versions":"many"}"#).invalid("field `max_versions`");
    }

    #[test]
    fn the_mount_settings_hold_for_every_secret() {
        let kv = Bench::kv();
        kv.write("config", r#"{"max_versions":2,"cas_required":true}"#).nothing();
        kv.write("data/a", r#"{"data":{}}"#).invalid("check-and-set parameter required for this call");
        for cas in 0..3 {
            kv.write("data/a", &format!(r#"{{"data":{{"n":{cas}}},"options":{{"cas":{cas}}}}}"#)).data();
        }
        let shown = kv.read("metadata/a").json();
        assert_eq!(shown["versions"].as_object().unwrap().keys().collect::<Vec<_>>(), ["2", "3"]);
        assert_eq!(shown["oldest_version"], 2);
    }

    #[test]
    fn versions_end_by_themselves() {
        let kv = Bench::kv();
        kv.write("config", r#"{"delete_version_after":"60s"}"#).nothing();
        let written = kv.write("data/a", r#"{"data":{"x":1}}"#).json();
        assert_eq!(written["deletion_time"], "2026-01-01T00:01:00Z");
        assert_eq!(kv.read("data/a").json()["metadata"]["deletion_time"], "2026-01-01T00:01:00Z");
        kv.pass_seconds(60);
        assert_eq!(kv.read("data/a").gone()["data"], serde_json::Value::Null);
        // the shorter of both times
        kv.write("metadata/b", r#"{"delete_version_after":"10s"}"#).nothing();
        assert_eq!(kv.write("data/b", r#"{"data":{"x":1}}"#).json()["deletion_time"], "2026-01-01T00:01:10Z");
    }
}
