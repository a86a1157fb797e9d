//! `undelete/:path`: bring deleted versions back.

use base::Refusal;
use engine::{Answer, Cx, Op, Permit, Route};

use super::Kv;
use super::delete::VERSIONS;
use super::record::{Place, versions, writable};

pub(super) const WRITE: Route<Kv> = Route::new(Op::Write, "undelete/:path*", VERSIONS, "Bring deleted versions back.", write);

fn write(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let place = Place::of(cx.call)?;
    let numbers = versions(cx.call)?;
    let Some(mut record) = writable(cx, &place)? else { return Ok(Answer::Nothing) };
    let now = cx.now();
    for number in numbers {
        if let Some(version) = record.versions.get_mut(&number).filter(|version| !version.destroyed && version.deletion.is_some()) {
            version.deletion = None;
            record.updated = now;
        }
    }
    record.save(cx.tx, &place)?;
    Ok(Answer::Nothing)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::bench::Bench;

    #[test]
    fn brings_back_what_was_deleted_and_not_what_was_destroyed() {
        let kv = Bench::kv();
        kv.write("undelete/a", r#"{"versions":[1]}"#).nothing();
        for n in 1..=3 {
            kv.write("data/a", &format!(r#"{{"data":{{"n":{n}}}}}"#)).data();
        }
        kv.write("delete/a", r#"{"versions":[1,2,3]}"#).nothing();
        kv.write("destroy/a", r#"{"versions":[2]}"#).nothing();
        kv.write("undelete/a", r#"{"versions":[1,2,3]}"#).nothing();
        assert_eq!(kv.read("data/a?version=1").json()["data"], json!({"n": 1}));
        assert_eq!(kv.read("data/a?version=3").json()["metadata"]["deletion_time"], "");
        assert_eq!(kv.read("data/a?version=2").gone()["metadata"]["destroyed"], true);
        kv.write("undelete/a", "{}").invalid("no version number provided");
    }
}
