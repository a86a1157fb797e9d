//! `data/:path`: values.

use std::collections::BTreeMap;

use base::Refusal;
use engine::answer::raw;
use engine::{Answer, Body, Call, Cx, Field, FieldKind, Op, Permit, Route};
use serde::Serialize;
use serde_json::value::RawValue;

use super::Kv;
use super::config::Config;
use super::record::{Place, Record, Shown, exists, writable};

pub(super) const READ: Route<Kv> = Route::new(
    Op::Read,
    "data/:path*",
    &[Field::public("version", FieldKind::Int, "The version to read; the newest when left out or 0.")],
    "Read a version of a secret.",
    read,
);
pub(super) const WRITE: Route<Kv> = Route::new(Op::Write, "data/:path*", FIELDS, "Write a new version.", write).exists(exists);
pub(super) const PATCH: Route<Kv> =
    Route::new(Op::Patch, "data/:path*", FIELDS, "Write a new version that changes parts of the newest.", patch);
pub(super) const DELETE: Route<Kv> =
    Route::new(Op::Delete, "data/:path*", &[], "Mark the newest version as deleted; its value can be brought back.", delete);

const FIELDS: &[Field] = &[
    Field::new("data", FieldKind::Any, "The value, an object."),
    Field::public("options", FieldKind::Any, "`cas`: the version that this write replaces; 0 for none."),
];

#[derive(Serialize)]
struct Value<'a> {
    data: Option<Box<RawValue>>,
    metadata: Shown<'a>,
}

fn read(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let place = Place::of(cx.call)?;
    let wanted = cx.call.body.int("version")?.unwrap_or(0);
    let mut record = Record::load(cx.tx, &place)?.ok_or_else(Refusal::missing)?;
    let number = if wanted == 0 { record.current } else { wanted };
    let version = *record.version(number).ok_or_else(Refusal::missing)?;
    cx.note("version", number);
    if !version.alive(cx.now()) {
        let gone = raw(&Value { data: None, metadata: record.shown(number, &version) })?;
        return Err(Refusal { data: Some(gone), ..Refusal::missing() });
    }
    let data = record.value(cx.tx, &place, number)?;
    if data.is_none() {
        return Err(Refusal::internal(format!("version {number} of a secret has no value")));
    }
    Answer::data(&Value { data, metadata: record.shown(number, &version) })
}

fn write(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let place = Place::of(cx.call)?;
    let value = object(cx.call)?;
    let config = Config::load(cx.tx, &cx.call.mount)?;
    let mut record = writable(cx, &place)?.unwrap_or_else(|| Record::new(cx.now()));
    check_cas(cx.call, &config, &record)?;
    add(cx, &place, &config, &mut record, value)
}

fn patch(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let place = Place::of(cx.call)?;
    let change = object(cx.call)?;
    let config = Config::load(cx.tx, &cx.call.mount)?;
    let mut record = writable(cx, &place)?.ok_or_else(Refusal::missing)?;
    let number = record.current;
    let version = *record.version(number).ok_or_else(Refusal::missing)?;
    if !version.alive(cx.now()) {
        let gone = raw(&Value { data: None, metadata: record.shown(number, &version) })?;
        return Err(Refusal { data: Some(gone), ..Refusal::missing() });
    }
    check_cas(cx.call, &config, &record)?;
    let before = record.value(cx.tx, &place, number)?.ok_or_else(|| Refusal::internal("the newest version of a secret has no value"))?;
    let after = merge(Some(&before), change)?;
    record.restore(before);
    add(cx, &place, &config, &mut record, &after)
}

fn add(cx: &mut Cx<'_>, place: &Place, config: &Config, record: &mut Record, value: &RawValue) -> Result<Answer, Refusal> {
    let number = record.add(cx.tx, place, config, value)?;
    cx.note("version", number);
    let version = *record.version(number).ok_or_else(|| Refusal::internal("a version that was just written is missing"))?;
    Answer::data(&record.shown(number, &version))
}

fn delete(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let place = Place::of(cx.call)?;
    let Some(mut record) = writable(cx, &place)? else { return Ok(Answer::Nothing) };
    let now = cx.now();
    let number = record.current;
    if let Some(version) = record.versions.get_mut(&number).filter(|version| version.alive(now)) {
        version.deletion = Some(now);
        record.updated = now;
        record.save(cx.tx, &place)?;
        cx.note("version", number);
    }
    Ok(Answer::Nothing)
}

/// The value that came.
fn object(call: &Call) -> Result<&RawValue, Refusal> {
    let value = call.body.raw("data").ok_or_else(|| Refusal::invalid("no data provided"))?;
    if value.get().starts_with('{') { Ok(value) } else { Err(Refusal::invalid("field `data`: expected an object")) }
}

fn check_cas(call: &Call, config: &Config, record: &Record) -> Result<(), Refusal> {
    let cas = match call.body.raw("options") {
        Some(options) => Body::from_json(options.get().as_bytes())
            .map_err(|_| Refusal::invalid("field `options`: expected an object"))?
            .int("cas")
            .map_err(|_| Refusal::invalid("field `options.cas`: expected a whole number that is not negative"))?,
        None => None,
    };
    match cas {
        Some(cas) if cas == record.current => Ok(()),
        Some(_) => Err(Refusal::invalid("check-and-set parameter did not match the current version")),
        None if config.cas_required || record.cas_required => Err(Refusal::invalid("check-and-set parameter required for this call")),
        None => Ok(()),
    }
}

/// RFC 7396, section 2, on raw text: what the patch does not name stays byte for byte.
fn merge(target: Option<&RawValue>, patch: &RawValue) -> Result<Box<RawValue>, Refusal> {
    fn members(value: &RawValue) -> Option<BTreeMap<String, &RawValue>> {
        serde_json::from_str(value.get()).ok()
    }
    let Some(patch_members) = members(patch).filter(|_| patch.get().starts_with('{')) else { return Ok(patch.to_owned()) };
    let mut result: BTreeMap<String, Box<RawValue>> =
        target.and_then(members).unwrap_or_default().into_iter().map(|(name, value)| (name, value.to_owned())).collect();
    for (name, value) in patch_members {
        if value.get() == "null" {
            result.remove(&name);
        } else {
            let merged = merge(result.get(&name).map(AsRef::as_ref), value)?;
            result.insert(name, merged);
        }
    }
    raw(&result)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::merge;
    use crate::bench::{Bench, at};

    #[test]
    fn written_and_read_back() {
        let kv = Bench::kv();
        kv.read("data/orders/db").missing();
        let written = kv.write("data/orders/db", r#"{"data":{"user":"u","n":1.50,"big":123456789012345678901234567890}}"#).json();
        assert_eq!(written, json!({"created_time": at(0), "custom_metadata": null, "deletion_time": "", "destroyed": false, "version": 1}));
        kv.pass_seconds(1);
        // the value is the very text that came
        assert_eq!(
            kv.read("data/orders/db").data(),
            format!(
                r#"{{"data":{{"user":"u","n":1.50,"big":123456789012345678901234567890}},"metadata":{{"created_time":"{}","custom_metadata":null,"deletion_time":"","destroyed":false,"version":1}}}}"#,
                at(0)
            )
        );
        kv.write("data/orders/db", r#"{"data":{"user":"w"}}"#).data();
        assert_eq!(kv.read("data/orders/db").json()["data"], json!({"user": "w"}));
        assert_eq!(kv.read("data/orders/db?version=1").json()["data"]["user"], "u");
        assert_eq!(kv.read("data/orders/db?version=0").json()["metadata"]["version"], 2);
        kv.read("data/orders/db?version=3").missing();
        kv.read("data/orders/db?version=x").invalid("field `version`");
        kv.read("data/orders").missing();
    }

    #[test]
    fn large_values_live_beside_the_record() {
        let kv = Bench::kv();
        let value = |fill: &str| format!(r#"{{"data":{{"v":"{}"}}}}"#, fill.repeat(5_000));
        for fill in ["a", "b"] {
            kv.write("data/big", &value(fill)).data();
        }
        kv.write("data/big", r#"{"data":{"v":"small"}}"#).data();
        assert_eq!(kv.read("data/big?version=1").json()["data"]["v"], "a".repeat(5_000));
        assert_eq!(kv.read("data/big?version=2").json()["data"]["v"], "b".repeat(5_000));
        assert_eq!(kv.read("data/big").json()["data"]["v"], "small");
    }

    #[test]
    fn check_and_set() {
        let kv = Bench::kv();
        let with = |cas: &str| format!(r#"{{"data":{{"x":1}},"options":{{"cas":{cas}}}}}"#);
        kv.write("data/a", &with("1")).invalid("check-and-set parameter did not match the current version");
        kv.write("data/a", &with("0")).data();
        kv.write("data/a", &with("0")).invalid("check-and-set parameter did not match");
        kv.write("data/a", &with("\"1\"")).data();
        kv.write("data/a", r#"{"data":{},"options":{}}"#).data();
        for bad in ["-1", "1.5", "\"x\"", "{}", "[1]", "true"] {
            kv.write("data/a", &with(bad)).invalid("field `options.cas`");
        }
        kv.write("data/a", r#"{"data":{},"options":1}"#).invalid("field `options`");
        kv.write("metadata/a", r#"{"cas_required":true}"#).nothing();
        kv.write("data/a", r#"{"data":{}}"#).invalid("check-and-set parameter required for this call");
        kv.write("data/a", &with("3")).data();
        assert_eq!(kv.read("data/a").json()["metadata"]["version"], 4);
    }

    #[test]
    fn what_is_no_value_is_refused() {
        let kv = Bench::kv();
        for (body, text) in [
            ("{}", "no data provided"),
            (r#"{"data":null}"#, "no data provided"),
            (r#"{"data":"CANARY"}"#, "field `data`: expected an object"),
            (r#"{"data":["CANARY"]}"#, "field `data`: expected an object"),
        ] {
            let refusal = kv.write("data/a", body).invalid(text);
            assert!(!format!("{refusal:?}").contains("CANARY"));
            kv.read("metadata/a").missing();
        }
    }

    #[test]
    fn soft_delete_answers_404_with_metadata() {
        let kv = Bench::kv();
        kv.delete("data/a").nothing();
        kv.write("data/a", r#"{"data":{"x":1}}"#).data();
        kv.pass_seconds(5);
        kv.delete("data/a").nothing();
        let gone = kv.read("data/a").gone();
        assert_eq!(
            gone,
            json!({"data": null, "metadata": {"created_time": at(0), "custom_metadata": null, "deletion_time": at(5), "destroyed": false, "version": 1}})
        );
        // a second delete does not move the time
        kv.pass_seconds(5);
        kv.delete("data/a").nothing();
        assert_eq!(kv.read("data/a").gone()["metadata"]["deletion_time"], at(5));
        // writing goes on with the next number
        assert_eq!(kv.write("data/a", r#"{"data":{"x":2}}"#).json()["version"], 2);
        assert_eq!(kv.read("data/a").json()["data"], json!({"x": 2}));
    }

    #[test]
    fn ten_versions_are_kept() {
        let kv = Bench::kv();
        for n in 1..=12 {
            assert_eq!(kv.write("data/a", &format!(r#"{{"data":{{"n":{n}}}}}"#)).json()["version"], n);
        }
        kv.read("data/a?version=2").missing();
        assert_eq!(kv.read("data/a?version=3").json()["data"]["n"], 3);
        assert_eq!(kv.read("metadata/a").json()["oldest_version"], 3);
        // values of dropped versions are gone, not only unnamed: versions 3 to 11 lie beside the record, 12 inside
        assert_eq!(kv.count("value"), 9);
        kv.write("metadata/a", r#"{"max_versions":2}"#).nothing();
        kv.write("data/a", r#"{"data":{"n":13}}"#).data();
        assert_eq!(kv.count("value"), 1);
        assert_eq!(kv.read("data/a?version=12").json()["data"]["n"], 12);
    }

    #[test]
    fn patches() {
        let kv = Bench::kv();
        kv.patch("data/a", r#"{"data":{"x":1}}"#).missing();
        kv.write("data/a", r#"{"data":{"x":1.50,"y":{"z":1,"w":2},"s":"t"}}"#).data();
        assert_eq!(kv.patch("data/a", r#"{"data":{"y":{"z":null,"v":[1]},"s":null,"n":null}}"#).json()["version"], 2);
        assert!(kv.read("data/a").data().starts_with(r#"{"data":{"x":1.50,"y":{"v":[1],"w":2}},"#));
        assert_eq!(kv.read("data/a?version=1").json()["data"]["s"], "t");
        kv.patch("data/a", r#"{"data":{},"options":{"cas":1}}"#).invalid("did not match");
        kv.patch("data/a", "{}").invalid("no data provided");
        kv.delete("data/a").nothing();
        kv.patch("data/a", r#"{"data":{"x":1}}"#).gone();
    }

    /// RFC 7396, appendix A, the rows whose patch is an object.
    #[test]
    fn merge_patch_examples_of_the_standard() {
        for (target, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r#"{}"#),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"a":1,"e":null}"#),
            (r#"[1,2]"#, r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            (r#"{}"#, r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            let raw = |text: &str| serde_json::value::RawValue::from_string(text.to_owned()).unwrap();
            assert_eq!(merge(Some(&raw(target)), &raw(patch)).unwrap().get(), result, "{target} {patch}");
        }
    }
}
