//! `metadata/:path`: what is known of a secret besides its values; lists.

use std::collections::BTreeMap;

use base::{Refusal, Timestamp};
use engine::{Answer, Cx, Field, FieldKind, Op, Permit, Route};
use serde::Serialize;

use super::Kv;
use super::config::Config;
use super::record::{Place, Record, exists, go_duration, whole_seconds, writable};

pub(super) const READ: Route<Kv> = Route::new(Op::Read, "metadata/:path*", &[], "What is known of a secret and its versions.", read);
pub(super) const LIST: Route<Kv> = Route::new(
    Op::List,
    "metadata/:path**",
    &[Field::public("after", FieldKind::Text, "Begin behind this name."), Field::public("limit", FieldKind::Int, "At most so many names.")],
    "The names in a folder.",
    list,
);
pub(super) const WRITE: Route<Kv> = Route::new(Op::Write, "metadata/:path*", FIELDS, "Set a secret's own settings.", write).exists(exists);
pub(super) const PATCH: Route<Kv> = Route::new(Op::Patch, "metadata/:path*", FIELDS, "Change some of a secret's own settings.", patch);
pub(super) const DELETE: Route<Kv> = Route::new(Op::Delete, "metadata/:path*", &[], "Remove a secret with all its versions.", delete);

const FIELDS: &[Field] = &[
    Field::public("max_versions", FieldKind::Int, "Versions to keep; 0 leaves it to the mount."),
    Field::public("cas_required", FieldKind::Bool, "Whether every write must name the version it replaces."),
    Field::public(
        "delete_version_after",
        FieldKind::Duration,
        "The time after which a version counts as deleted; 0 leaves it to the mount.",
    ),
    Field::new("custom_metadata", FieldKind::Map, "Text of one's own, shown with the secret. Not for secrets."),
];

/// Names in one answer at most; the rest is reached with `after`.
const NAMES_MAX: usize = 100_000;
/// Members, bytes of a name and bytes of a text of `custom_metadata`.
const CUSTOM_MAX: usize = 64;
const CUSTOM_NAME_BYTES_MAX: usize = 128;
const CUSTOM_TEXT_BYTES_MAX: usize = 512;

fn read(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    #[derive(Serialize)]
    struct Shown<'a> {
        cas_required: bool,
        created_time: String,
        current_version: u64,
        custom_metadata: Option<&'a BTreeMap<String, String>>,
        delete_version_after: String,
        max_versions: u64,
        oldest_version: u64,
        updated_time: String,
        versions: BTreeMap<u64, ShownVersion>,
    }
    #[derive(Serialize)]
    struct ShownVersion {
        created_time: String,
        deletion_time: String,
        destroyed: bool,
    }
    let place = Place::of(cx.call)?;
    let record = Record::load(cx.tx, &place)?.ok_or_else(Refusal::missing)?;
    let versions = record.versions.iter().map(|(number, version)| {
        let shown = ShownVersion {
            created_time: version.created.rfc3339(),
            deletion_time: version.deletion.map(Timestamp::rfc3339).unwrap_or_default(),
            destroyed: version.destroyed,
        };
        (*number, shown)
    });
    Answer::data(&Shown {
        cas_required: record.cas_required,
        created_time: record.created.rfc3339(),
        current_version: record.current,
        custom_metadata: record.custom.as_ref(),
        delete_version_after: go_duration(record.delete_version_after),
        max_versions: record.max_versions,
        oldest_version: record.oldest,
        updated_time: record.updated.rfc3339(),
        versions: versions.collect(),
    })
}

fn list(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    #[derive(Serialize)]
    struct Names {
        keys: Vec<String>,
    }
    let limit = cx.call.body.int("limit")?.filter(|limit| *limit > 0);
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).map_or(NAMES_MAX, |limit| limit.min(NAMES_MAX));
    let after = cx.call.body.text("after")?.filter(|after| !after.is_empty());
    // a folder's own entries lie behind its name: begin behind those too
    let after = after.map(|after| format!("{after}\0"));
    let folder = Place::folder(&cx.call.mount, cx.call.capture("path"));
    let mut keys = cx.tx.list(&folder, after.as_deref(), limit.saturating_add(1))?;
    if keys.len() > limit {
        keys.truncate(limit);
        if limit == NAMES_MAX {
            cx.warn(format!("only the first {NAMES_MAX} names are shown; ask again with `after`"));
        }
    }
    if keys.is_empty() {
        return Err(Refusal::missing());
    }
    Answer::data(&Names { keys })
}

fn write(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let place = Place::of(cx.call)?;
    let mut record = writable(cx, &place)?.unwrap_or_else(|| Record::new(cx.now()));
    if let Some(custom) = cx.call.body.map("custom_metadata")? {
        record.custom = Some(custom);
    }
    settle(cx, &place, record)
}

fn patch(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let place = Place::of(cx.call)?;
    let mut record = writable(cx, &place)?.ok_or_else(Refusal::missing)?;
    let change: Option<BTreeMap<String, Option<String>>> = cx.call.body.typed("custom_metadata", "an object of text values")?;
    if let Some(change) = change {
        let custom = record.custom.get_or_insert_default();
        for (name, text) in change {
            match text {
                Some(text) => custom.insert(name, text),
                None => custom.remove(&name),
            };
        }
    }
    settle(cx, &place, record)
}

/// The settings that write and patch read in the same way, the limits, and the save.
fn settle(cx: &mut Cx<'_>, place: &Place, mut record: Record) -> Result<Answer, Refusal> {
    let body = &cx.call.body;
    if let Some(max) = body.int("max_versions")? {
        record.max_versions = max;
    }
    if let Some(after) = body.duration("delete_version_after")? {
        record.delete_version_after = whole_seconds(after);
    }
    if let Some(required) = body.bool("cas_required")? {
        record.cas_required = required;
        if !required && Config::load(cx.tx, &cx.call.mount)?.cas_required {
            cx.warn("\"cas_required\" set to false, but is mandated by backend config. This value will be ignored.");
        }
    }
    if let Some(custom) = &record.custom {
        let fits = custom.len() <= CUSTOM_MAX
            && custom.iter().all(|(name, text)| {
                !name.is_empty() && name.len() <= CUSTOM_NAME_BYTES_MAX && !text.is_empty() && text.len() <= CUSTOM_TEXT_BYTES_MAX
            })
            && custom.iter().all(|(name, text)| !name.contains(char::is_control) && !text.contains(char::is_control));
        if !fits {
            return Err(Refusal::invalid(format!(
                "field `custom_metadata`: at most {CUSTOM_MAX} printable texts of 1 to {CUSTOM_TEXT_BYTES_MAX} bytes, with names of 1 to {CUSTOM_NAME_BYTES_MAX} bytes"
            )));
        }
    }
    record.custom = record.custom.filter(|custom| !custom.is_empty());
    record.updated = cx.now();
    record.save(cx.tx, place)?;
    Ok(Answer::Nothing)
}

fn delete(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let place = Place::of(cx.call)?;
    if let Some(record) = writable(cx, &place)? {
        record.remove(cx.tx, &place)?;
    }
    Ok(Answer::Nothing)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::bench::{Bench, at};

    #[test]
    fn shows_all_versions() {
        let kv = Bench::kv();
        kv.read("metadata/a").missing();
        kv.write("data/a", r#"{"data":{"x":1}}"#).data();
        kv.pass_seconds(1);
        kv.write("data/a", r#"{"data":{"x":2}}"#).data();
        kv.pass_seconds(1);
        kv.write("delete/a", r#"{"versions":[1]}"#).nothing();
        assert_eq!(
            kv.read("metadata/a").json(),
            json!({
                "cas_required": false, "created_time": at(0), "current_version": 2, "custom_metadata": null,
                "delete_version_after": "0s", "max_versions": 0, "oldest_version": 0, "updated_time": at(2),
                "versions": {
                    "1": {"created_time": at(0), "deletion_time": at(2), "destroyed": false},
                    "2": {"created_time": at(1), "deletion_time": "", "destroyed": false},
                },
            })
        );
    }

    #[test]
    fn settings_before_the_first_version() {
        let kv = Bench::kv();
        kv.write("metadata/a", r#"{"max_versions":3,"delete_version_after":"2h","custom_metadata":{"owner":"x"}}"#).nothing();
        let shown = kv.read("metadata/a").json();
        assert_eq!(
            (&shown["max_versions"], &shown["delete_version_after"], &shown["current_version"], &shown["versions"]),
            (&json!(3), &json!("2h0m0s"), &json!(0), &json!({}))
        );
        kv.read("data/a").missing();
        kv.write("data/a", r#"{"data":{}, "options":{"cas":0}}"#).data();
        assert_eq!(kv.read("data/a").json()["metadata"]["custom_metadata"], json!({"owner": "x"}));
    }

    #[test]
    fn custom_metadata_replaced_and_patched() {
        let kv = Bench::kv();
        kv.patch("metadata/a", r#"{"custom_metadata":{"x":"1"}}"#).missing();
        kv.write("metadata/a", r#"{"custom_metadata":{"x":"1","y":"2"}}"#).nothing();
        kv.patch("metadata/a", r#"{"custom_metadata":{"x":null,"z":"3"},"max_versions":"4"}"#).nothing();
        let shown = kv.read("metadata/a").json();
        assert_eq!((&shown["custom_metadata"], &shown["max_versions"]), (&json!({"y": "2", "z": "3"}), &json!(4)));
        kv.write("metadata/a", r#"{"custom_metadata":{"w":"1"}}"#).nothing();
        assert_eq!(kv.read("metadata/a").json()["custom_metadata"], json!({"w": "1"}));
        kv.write("metadata/a", r#"{"custom_metadata":{}}"#).nothing();
        assert_eq!(kv.read("metadata/a").json()["custom_metadata"], json!(null));
        let many: std::collections::BTreeMap<_, _> = (0..65).map(|n| (format!("k{n}"), "v")).collect();
        for bad in
            [json!({"x": 1}), json!({"x": ""}), json!({"": "x"}), json!({"k": "v".repeat(513)}), json!({"k".repeat(129): "v"}), json!(many)]
        {
            kv.write("metadata/a", &json!({"custom_metadata": bad}).to_string()).invalid("field `custom_metadata`");
        }
    }

    #[test]
    fn delete_removes_everything() {
        let kv = Bench::kv();
        kv.delete("metadata/a").nothing();
        for n in 0..3 {
            kv.write("data/a", &format!(r#"{{"data":{{"canary":"CANARY{n}"}}}}"#)).data();
        }
        kv.write("data/a/b", r#"{"data":{"other":"stays"}}"#).data();
        kv.delete("metadata/a").nothing();
        kv.read("data/a").missing();
        kv.read("metadata/a").missing();
        let all = kv.everything();
        assert!(!all.contains("CANARY") && all.contains("stays"));
        assert_eq!(kv.write("data/a", r#"{"data":{}}"#).json()["version"], 1);
    }

    #[test]
    fn lists_names_and_folders() {
        let kv = Bench::kv();
        kv.list("metadata/").missing();
        for path in ["a", "a/b", "a/b/c", "a-b", "a0", "z/y", "é/x"] {
            kv.write(&format!("data/{path}"), r#"{"data":{}}"#).data();
        }
        kv.list("metadata/").keys("a a-b a/ a0 z/ é/");
        kv.list("metadata/a/").keys("b b/");
        kv.list("metadata/a/b").keys("c");
        kv.list("metadata/z/y/").missing();
        kv.list("metadata/nope/").missing();
        kv.list("metadata/?limit=2").keys("a a-b");
        kv.list("metadata/?after=a-b&limit=2").keys("a/ a0");
        kv.list("metadata/?after=a/").keys("a0 z/ é/");
        kv.list("metadata/?after=é/").missing();
        kv.delete("metadata/z/y").nothing();
        kv.list("metadata/?after=a0").keys("é/");
    }
}
