//! `holdings/:rotation`: who holds which generation, and what becomes of those whose stream is gone.

use std::time::Duration;

use base::{Refusal, Timestamp};
use engine::{Answer, Cx, Duty, DutyKey, NewDuty, Permit, duty};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use super::drive::{self, payload};
use super::records::{self, Holding};
use super::{Lifecycle, name};
use crate::core::{Event, Instance};

/// The duty that looks whether a stream is still open.
pub(super) const LAPSE: &str = "lifecycle-lapse";

#[derive(Serialize, Deserialize)]
struct Watched {
    #[serde(alias = "policy")]
    rotation: String,
    instance: String,
}

pub(super) fn read(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let rotation_name = name(cx.call.capture("rotation"), "rotation")?;
    let rotation = records::need_rotation(cx, &rotation_name)?;
    let (mut keys, mut info) = (Vec::new(), Map::new());
    for (instance, h) in records::holdings_of(cx, &rotation_name)? {
        keys.push(instance.clone());
        info.insert(
            instance,
            json!({
                "principal": h.principal,
                "generation": h.holds,
                "level": h.level,
                "presence": if h.lapsed { "lapsed" } else if h.stream.is_some() { "present" } else { "away" },
                "offered": h.offered.iter().map(|(generation, _)| generation).collect::<Vec<_>>(),
                "refused": h.refused.map(|(generation, reason)| json!({ "generation": generation, "reason": reason })),
                "heard": h.heard.rfc3339(),
            }),
        );
    }
    Answer::data(
        &json!({ "keys": keys, "key_info": info, "generation": rotation.in_force.map(|v| v.generation), "open_run": rotation.open }),
    )
}

/// Owes the next look at an instance's stream.
pub(super) fn owe_lapse(cx: &mut Cx<'_>, rotation: &str, instance: &str) -> Result<(), Refusal> {
    let Some(ttl) = records::rotation(cx, rotation)?.map(|p| p.holding_ttl) else { return Ok(()) };
    let due = cx.now().after(ttl);
    owe_look(cx, rotation, instance, due)
}

fn owe_look(cx: &mut Cx<'_>, rotation: &str, instance: &str, due: Timestamp) -> Result<(), Refusal> {
    let key = format!("lapse/{rotation}/{instance}");
    let owner = cx.call.mount.clone();
    duty::remove(cx.tx, &DutyKey { owner: owner.id, key: key.clone() })?;
    let watched = Watched { rotation: rotation.to_owned(), instance: instance.to_owned() };
    let duty = NewDuty { key, kind: LAPSE, due, act: false, lane: String::new(), payload: engine::answer::raw(&watched)? };
    cx.host.owe(cx.tx, &owner, duty).map(drop)
}

/// The time of a holding has come: a stream that is open renews it, one that is gone lapses it. Streams of an earlier process are gone.
pub(super) fn lapse(lifecycle: &Lifecycle, cx: &mut Cx<'_>, duty: &Duty) -> Result<Answer, Refusal> {
    let Watched { rotation, instance } = payload(duty)?;
    let Some(mut holding) = records::holding(cx, &rotation, &instance)? else { return Ok(Answer::Nothing) };
    if holding.stream.as_ref().is_some_and(|stream| lifecycle.is_live(stream)) {
        owe_lapse(cx, &rotation, &instance)?;
        return Ok(Answer::Nothing);
    }
    if holding.stream.take().is_some() {
        // The stream ended with the process before this one: the consumer gets the whole time to come back.
        holding.heard = cx.now();
    }
    let ttl = records::rotation(cx, &rotation)?.map_or(Duration::ZERO, |p| p.holding_ttl);
    let due = holding.heard.after(ttl);
    if !holding.lapsed && due > cx.now() {
        records::put_holding(cx, &rotation, &instance, &holding)?;
        return owe_look(cx, &rotation, &instance, due).map(|()| Answer::Nothing);
    }
    gone(cx, &rotation, &instance, holding).map(|()| Answer::Nothing)
}

/// The holder has gone without a goodbye. Who cannot come back under its token is waited for no longer than by the sessions at the target.
pub(super) fn gone(cx: &mut Cx<'_>, rotation: &str, instance: &str, mut holding: Holding) -> Result<(), Refusal> {
    let alive = cx.host.token_alive(cx.tx, &holding.accessor)?;
    let news = !std::mem::replace(&mut holding.lapsed, true);
    records::put_holding(cx, rotation, instance, &holding)?;
    cx.note("instance", instance);
    let who = Instance(instance.to_owned());
    if news {
        drive::feed_rotation(cx, rotation, Event::Lapsed { instance: who.clone() })?;
    }
    if alive {
        return owe_lapse(cx, rotation, instance);
    }
    drive::feed_rotation(cx, rotation, Event::TokenDead { instance: who })?;
    if records::rotation(cx, rotation)?.is_some_and(|p| p.open.is_none()) {
        // Nobody waits for it and it cannot come back under this token: forgotten.
        let key = records::holding_key(cx, rotation, instance);
        cx.tx.delete(&key)?;
    }
    Ok(())
}
