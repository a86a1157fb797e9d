//! `watch`: the push stream that consumers follow. Who may read the secret may watch it.

use base::{CanonPath, Refusal};
use engine::{Answer, Cx, Need, Permit};

use super::feed::{Follow, Sent};
use super::records::{self, Holding};
use super::{Lifecycle, drive, holdings, name};
use crate::core::{Event, Generation, Instance};

/// Rotations that one stream follows.
pub(super) const FOLLOWED_MAX: usize = 256;

/// `read` on every secret that is followed.
pub(super) fn also(_: &Lifecycle, cx: &mut Cx<'_>) -> Result<Vec<(Need, CanonPath)>, Refusal> {
    let mut asks = Vec::new();
    for (rotation, _) in held(cx)? {
        // An unknown rotation is refused like a secret that may not be read.
        let rotation = records::rotation(cx, &rotation)?.filter(|p| p.adopted).ok_or_else(Refusal::denied)?;
        asks.push((Need::Read, rotation.path));
    }
    Ok(asks)
}

pub(super) fn open(lifecycle: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let caller = cx.call.caller()?.clone();
    let instance = name(&cx.call.body.need_text("instance")?, "instance")?;
    let stream = base::id::base62(cx.host.rng(), 16)?;
    let now = cx.now();
    let mut sent = Vec::new();
    for (rotation, holds) in held(cx)? {
        let mut known = records::holding(cx, &rotation, &instance)?;
        if let Some(other) = known.take_if(|k| k.principal != caller.principal) {
            if cx.host.token_alive(cx.tx, &other.accessor)? {
                return Err(Refusal::forbidden("this instance belongs to another identity"));
            }
            // The name is free again: its holder is gone, and nothing it proved counts for the next one.
            drive::feed_rotation(cx, &rotation, Event::Left { instance: Instance(instance.clone()) })?;
        }
        let proven = known.as_ref().is_some_and(|known| known.proven);
        let (level, mut offered, refused) = match known {
            Some(k) if k.holds == holds => (k.level, k.offered, k.refused),
            Some(k) => (None, Vec::new(), k.refused),
            None => (None, Vec::new(), None),
        };
        // Nonces live as long as a stream, but for what is proven: all else is asked anew, so that it is answered anew.
        offered.retain(|(generation, _)| level.is_some() && holds == Some(*generation));
        // What is proven to be held need not be sent again; a mere statement is answered with the value, to be acknowledged.
        let using = if level.is_some() { holds } else { None };
        let holding = Holding {
            principal: caller.principal.clone(),
            accessor: caller.accessor.clone(),
            stream: Some(stream.clone()),
            lapsed: false,
            holds,
            level,
            offered,
            refused,
            heard: now,
            proven,
        };
        records::put_holding(cx, &rotation, &instance, &holding)?;
        holdings::owe_lapse(cx, &rotation, &instance)?;
        drive::feed_rotation(cx, &rotation, Event::Joined { instance: Instance(instance.clone()), holds })?;
        sent.push(Sent { rotation, using, standby: None });
    }
    cx.note("instance", &instance);
    Ok(Answer::Stream(Box::new(Follow::new(stream, instance, sent, lifecycle.live.clone()))))
}

/// The rotations that are followed, with the generation held of each.
fn held(cx: &Cx<'_>) -> Result<Vec<(String, Option<Generation>)>, Refusal> {
    let list = cx.call.body.list("hold")?.unwrap_or_default();
    if list.is_empty() || list.len() > FOLLOWED_MAX {
        return Err(Refusal::invalid(format!("field `hold`: expected 1 to {FOLLOWED_MAX} times `rotation` or `rotation:generation`")));
    }
    let mut held: Vec<(String, Option<Generation>)> = Vec::with_capacity(list.len());
    for item in list {
        let (rotation, generation) = item.split_once(':').unwrap_or((&item, "0"));
        let rotation = name(rotation, "hold")?;
        let generation: u64 = generation.parse().map_err(|_| Refusal::invalid("field `hold`: expected a whole number after the colon"))?;
        if held.iter().any(|(known, _)| *known == rotation) {
            return Err(Refusal::invalid("field `hold`: a rotation is named twice"));
        }
        held.push((rotation, (generation > 0).then_some(Generation(generation))));
    }
    Ok(held)
}
