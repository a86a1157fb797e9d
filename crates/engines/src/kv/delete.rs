//! `delete/:path`: mark versions as deleted.

use base::Refusal;
use engine::{Answer, Cx, Field, FieldKind, Op, Permit, Route};

use super::Kv;
use super::record::{Place, versions, writable};

pub(super) const WRITE: Route<Kv> =
    Route::new(Op::Write, "delete/:path*", VERSIONS, "Mark versions as deleted; their values can be brought back.", write);

pub(super) const VERSIONS: &[Field] = &[Field::public("versions", FieldKind::List, "The versions.")];

fn write(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let place = Place::of(cx.call)?;
    let numbers = versions(cx.call)?;
    let Some(mut record) = writable(cx, &place)? else { return Ok(Answer::Nothing) };
    let now = cx.now();
    for number in numbers {
        if let Some(version) = record.versions.get_mut(&number).filter(|version| version.alive(now)) {
            version.deletion = Some(now);
            record.updated = now;
        }
    }
    record.save(cx.tx, &place)?;
    Ok(Answer::Nothing)
}

#[cfg(test)]
mod tests {
    use crate::bench::{Bench, at};

    #[test]
    fn marks_only_what_is_named() {
        let kv = Bench::kv();
        kv.write("delete/a", r#"{"versions":[1]}"#).nothing();
        for n in 1..=3 {
            kv.write("data/a", &format!(r#"{{"data":{{"n":{n}}}}}"#)).data();
        }
        kv.pass_seconds(1);
        kv.write("delete/a", r#"{"versions":[1,"3",9]}"#).nothing();
        assert_eq!(kv.read("data/a?version=1").gone()["metadata"]["deletion_time"], at(1));
        assert_eq!(kv.read("data/a?version=2").json()["data"]["n"], 2);
        kv.read("data/a").gone();
        for body in ["{}", r#"{"versions":[]}"#, r#"{"versions":null}"#] {
            kv.write("delete/a", body).invalid("no version number provided");
        }
        for body in [r#"{"versions":["x"]}"#, r#"{"versions":[-1]}"#, r#"{"versions":{}}"#, r#"{"versions":[[1]]}"#] {
            kv.write("delete/a", body).invalid("field `versions`");
        }
        kv.write("delete/a", r#"{"versions":"1,2"}"#).nothing();
        kv.read("data/a?version=2").gone();
    }
}
