//! `holdings/:policy`: who holds which generation, and what becomes of those whose stream is gone.

use base::Refusal;
use engine::{Answer, Cx, Duty, DutyKey, NewDuty, Permit, duty};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use super::drive::{self, payload};
use super::records::{self};
use super::{Lifecycle, name};
use crate::core::{Event, Instance};

/// The duty that looks whether a stream is still open.
pub(super) const LAPSE: &str = "lifecycle-lapse";

#[derive(Serialize, Deserialize)]
struct Watched {
    policy: String,
    instance: String,
}

pub(super) fn read(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let policy_name = name(cx.call.capture("policy"), "policy")?;
    let policy = records::need_policy(cx, &policy_name)?;
    let (mut keys, mut info) = (Vec::new(), Map::new());
    for (instance, h) in records::holdings_of(cx, &policy_name)? {
        keys.push(instance.clone());
        info.insert(
            instance,
            json!({
                "principal": h.principal,
                "generation": h.holds,
                "level": if h.level.is_empty() { None } else { Some(h.level) },
                "presence": if h.lapsed { "lapsed" } else if h.stream.is_some() { "present" } else { "away" },
                "offered": h.offered.iter().map(|(generation, _)| generation).collect::<Vec<_>>(),
                "refused": h.refused.map(|(generation, reason)| json!({ "generation": generation, "reason": reason })),
                "heard": h.heard.rfc3339(),
            }),
        );
    }
    Answer::data(&json!({ "keys": keys, "key_info": info, "generation": policy.in_force.map(|v| v.generation), "open_run": policy.open }))
}

/// Owes the next look at an instance's stream.
pub(super) fn owe_lapse(cx: &mut Cx<'_>, policy: &str, instance: &str) -> Result<(), Refusal> {
    let Some(ttl) = records::policy(cx, policy)?.map(|p| p.holding_ttl) else { return Ok(()) };
    let key = format!("lapse/{policy}/{instance}");
    let owner = cx.call.mount.clone();
    duty::remove(cx.tx, &DutyKey { owner: owner.id, key: key.clone() })?;
    let watched = Watched { policy: policy.to_owned(), instance: instance.to_owned() };
    let due = cx.now().after(ttl);
    let duty = NewDuty { key, kind: LAPSE, due, act: false, lane: String::new(), payload: engine::answer::raw(&watched)? };
    cx.host.owe(cx.tx, &owner, duty).map(drop)
}

/// The time of a holding has come: a stream that is open renews it, one that is gone lapses it. Streams of an earlier process are gone.
pub(super) fn lapse(lifecycle: &Lifecycle, cx: &mut Cx<'_>, duty: &Duty) -> Result<Answer, Refusal> {
    let Watched { policy, instance } = payload(duty)?;
    let Some(mut holding) = records::holding(cx, &policy, &instance)? else { return Ok(Answer::Nothing) };
    if holding.stream.as_ref().is_some_and(|stream| lifecycle.is_live(stream)) {
        owe_lapse(cx, &policy, &instance)?;
        return Ok(Answer::Nothing);
    }
    let alive = cx.host.token_alive(cx.tx, &holding.accessor)?;
    let news = !holding.lapsed;
    holding.stream = None;
    holding.lapsed = true;
    records::put_holding(cx, &policy, &instance, &holding)?;
    cx.note("instance", &instance);
    let who = Instance(instance.clone());
    if news {
        drive::feed_policy(cx, &policy, Event::Lapsed { instance: who.clone() })?;
    }
    if alive {
        owe_lapse(cx, &policy, &instance)?;
    } else {
        drive::feed_policy(cx, &policy, Event::TokenDead { instance: who })?;
        if records::policy(cx, &policy)?.is_some_and(|p| p.open.is_none()) {
            // Nobody waits for it and it cannot come back under this token: forgotten.
            let key = records::holding_key(cx, &policy, &instance);
            cx.tx.delete(&key)?;
        }
    }
    Ok(Answer::Nothing)
}
