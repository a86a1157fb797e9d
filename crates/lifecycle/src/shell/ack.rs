//! `ack` and `goodbye`: what consumers say. An acknowledgement proves that the speaker received the generation, and comes from the
//! identity that the instance belongs to.

use base::Refusal;
use engine::{Answer, Cx, Permit};

use super::records::{self, Rotation};
use super::{Lifecycle, drive, feed, holdings, name};
use crate::core::{Claim, Event, Generation, Instance, ValueId};

/// Bytes of a reason that are kept.
const REASON_MAX: usize = 500;

/// The bytes that an acknowledgement's MAC is over.
#[must_use]
pub(super) fn message(rotation: &str, instance: &str, generation: u64, level: &str, nonce: &str, reason: &str) -> String {
    format!("keyward-ack-v1\n{rotation}\n{instance}\n{generation}\n{level}\n{nonce}\n{reason}")
}

pub(super) fn write(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let body = &cx.call.body;
    let rotation_name = body.text("rotation")?.or(body.text("policy")?).ok_or_else(|| Refusal::invalid("field `rotation`: missing"))?;
    let rotation_name = name(&rotation_name, "rotation")?;
    let instance = name(&body.need_text("instance")?, "instance")?;
    let generation = body.int("generation")?.ok_or_else(|| Refusal::invalid("field `generation`: missing"))?;
    let level = body.need_text("level")?;
    let nonce = body.need_text("nonce")?;
    let reason = body.text("reason")?.unwrap_or_default();
    let mac = crypto::encode::from_base64(&body.need_text("mac")?).ok_or_else(|| Refusal::invalid("field `mac`: expected base64"))?;
    let claim = match level.as_str() {
        "L1" => Some(Claim::L1),
        "L2" => Some(Claim::L2),
        "NACK" => None,
        _ => return Err(Refusal::invalid("field `level`: expected `L1`, `L2` or `NACK`")),
    };
    let caller = cx.call.caller()?.clone();
    cx.note("instance", &instance);
    // One answer for an instance that is not there, one of another identity, and one that never received the value.
    let forged = || Refusal::forbidden("the acknowledgement does not come from the holder of this generation");
    let rotation = records::rotation(cx, &rotation_name)?.ok_or_else(forged)?;
    let mut holding = records::holding(cx, &rotation_name, &instance)?.filter(|h| h.principal == caller.principal).ok_or_else(forged)?;
    let wanted = Generation(generation);
    let Some((_, offered)) = holding.offered.iter().find(|(g, _)| *g == wanted) else {
        return Err(Refusal::invalid(format!("generation {generation} is not offered to this instance")));
    };
    let value = value_of(cx, &rotation, wanted)?.ok_or_else(|| Refusal::invalid(format!("generation {generation} is over")))?;
    let value = records::need_value(cx, &rotation_name, value)?;
    let key = crypto::encode::from_base64(&value.ack_key).ok_or_else(|| Refusal::internal("an acknowledgement key could not be read"))?;
    let text = message(&rotation_name, &instance, generation, &level, &nonce, &reason);
    let proven = crypto::mac::verify(&crypto::mac::Key::new(&key), text.as_bytes(), &mac);
    if !crypto::ct::eq(offered.as_bytes(), nonce.as_bytes()) || !proven {
        return Err(forged());
    }
    holding.heard = cx.now();
    let who = Instance(instance.clone());
    let event = match claim {
        Some(level) => {
            holding.proven = true;
            // What it refused before is behind it.
            holding.refused = holding.refused.filter(|(refused, _)| *refused > wanted);
            if holding.accessor != caller.accessor {
                holding.accessor.clone_from(&caller.accessor);
                // A lapsed holding whose token was dead is not looked at any more; this token will end, too.
                holdings::owe_lapse(cx, &rotation_name, &instance)?;
            }
            if feed::wish(cx, &rotation_name, &rotation, &instance)?.is_used(wanted) {
                let before = holding.level.filter(|_| holding.holds == Some(wanted));
                holding.holds = Some(wanted);
                holding.level = before.max(Some(level.level()));
            }
            Event::Ack { instance: who, generation: wanted, level }
        }
        None => {
            let reason: String = reason.chars().filter(|c| !c.is_control()).take(REASON_MAX).collect();
            holding.refused = Some((wanted, reason.clone()));
            Event::Nack { instance: who, generation: wanted, reason }
        }
    };
    records::put_holding(cx, &rotation_name, &instance, &holding)?;
    drive::feed_rotation(cx, &rotation_name, event)?;
    Ok(Answer::Nothing)
}

/// The value that a generation stands for, while anybody may speak of it.
pub(super) fn value_of(cx: &mut Cx<'_>, rotation: &Rotation, generation: Generation) -> Result<Option<ValueId>, Refusal> {
    if let Some(version) = rotation.in_force.as_ref().filter(|v| v.generation == generation) {
        return Ok(Some(version.value));
    }
    let Some(id) = &rotation.open else { return Ok(None) };
    let Some(run) = records::run_head(cx, id)?.map(|r| r.run) else { return Ok(None) };
    Ok(match &run.old {
        _ if run.new.generation == generation => Some(run.new.value),
        Some(old) if old.generation == generation || run.back == generation => Some(old.value),
        _ => None,
    })
}

pub(super) fn goodbye(_: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let instance = name(&cx.call.body.need_text("instance")?, "instance")?;
    let only = cx.call.body.text("rotation")?.map(|only| name(&only, "rotation")).transpose()?;
    let principal = cx.call.caller()?.principal.clone();
    cx.note("instance", &instance);
    let rotations = match only {
        Some(only) => {
            cx.note("rotation", &only);
            vec![only]
        }
        None => {
            let prefix = records::table(cx, records::ROTATIONS, &[]);
            cx.tx.list(&prefix, None, records::ROWS_MAX)?
        }
    };
    for rotation in rotations {
        if records::holding(cx, &rotation, &instance)?.is_some_and(|h| h.principal == principal) {
            feed::leave(cx, &rotation, &instance)?;
        }
    }
    Ok(Answer::Nothing)
}
