//! `destroy/:path`: remove values for good.

use base::Refusal;
use engine::{Answer, Cx, Op, Permit, Route};

use super::Kv;
use super::delete::VERSIONS;
use super::record::{Place, versions, writable};

pub(super) const WRITE: Route<Kv> = Route::new(Op::Write, "destroy/:path*", VERSIONS, "Remove the values of versions for good.", write);

fn write(_: &Kv, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let place = Place::of(cx.call)?;
    let numbers = versions(cx.call)?;
    let Some(mut record) = writable(cx, &place)? else { return Ok(Answer::Nothing) };
    for number in numbers {
        record.destroy(cx.tx, &place, number)?;
    }
    record.updated = cx.now();
    record.save(cx.tx, &place)?;
    Ok(Answer::Nothing)
}

#[cfg(test)]
mod tests {
    use crate::bench::Bench;

    #[test]
    fn the_value_is_gone_from_the_store() {
        let kv = Bench::kv();
        kv.write("destroy/a", r#"{"versions":[1]}"#).nothing();
        for n in 1..=3 {
            kv.write("data/a", &format!(r#"{{"data":{{"canary":"CANARY{n}"}}}}"#)).data();
        }
        kv.write("destroy/a", r#"{"versions":[1,3,7]}"#).nothing();
        assert_eq!(kv.read("data/a").gone()["metadata"]["destroyed"], true);
        assert_eq!(kv.read("data/a?version=1").gone()["metadata"]["destroyed"], true);
        assert_eq!(kv.read("data/a?version=2").json()["data"]["canary"], "CANARY2");
        let all = kv.everything();
        assert!(all.contains("CANARY2") && !all.contains("CANARY1") && !all.contains("CANARY3"));
        // destroyed for ever: neither undelete nor a new version brings it back
        kv.write("undelete/a", r#"{"versions":[1,3]}"#).nothing();
        kv.write("data/a", r#"{"data":{}}"#).data();
        kv.read("data/a?version=3").gone();
        kv.write("destroy/a", "{}").invalid("no version number provided");
    }
}
