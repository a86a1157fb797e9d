//! `dismiss`: an operator takes a consumer out of the set, because it is known to be gone or is not to be waited for.

use base::Refusal;
use engine::{Answer, Cx, Permit};
use serde_json::json;

use super::records;
use super::{Lifecycle, drive, name};
use crate::core::{Event, Instance};

pub(super) fn write(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let body = &cx.call.body;
    let instance = name(&body.need_text("instance")?, "instance")?;
    let reason = body.need_text("reason")?;
    let only = body.text("rotation")?.map(|text| name(&text, "rotation")).transpose()?;
    let by = cx.call.caller()?.principal.clone();
    cx.note("instance", &instance);
    let rotations = match only {
        Some(rotation) => vec![rotation],
        None => {
            let prefix = records::table(cx, records::ROTATIONS, &[]);
            cx.tx.list(&prefix, None, records::ROWS_MAX)?
        }
    };
    let mut dismissed = Vec::new();
    for rotation in rotations {
        if records::holding(cx, &rotation, &instance)?.is_none() {
            continue;
        }
        // Its stream ends with its holding. If it comes back, it is a new consumer that has proven nothing.
        let key = records::holding_key(cx, &rotation, &instance);
        cx.tx.delete(&key)?;
        let event = Event::Dismissed { instance: Instance(instance.clone()), by: by.clone(), reason: reason.clone() };
        drive::feed_rotation(cx, &rotation, event)?;
        dismissed.push(rotation);
    }
    if dismissed.is_empty() {
        return Err(Refusal::missing_because(format!("no rotation knows an instance `{instance}`")));
    }
    cx.note("dismissed_from", dismissed.join(", "));
    Answer::data(&json!({ "instance": instance, "rotations": dismissed }))
}
