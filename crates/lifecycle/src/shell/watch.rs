//! `watch`: the push stream that consumers follow. Who may read the secret may watch it.

use base::Refusal;
use engine::{Answer, Cx, Permit};

use super::feed::{self, Follow, Followed, Sent, Standing, Why};
use super::{Lifecycle, name};
use crate::core::Generation;

/// Rotations that one stream follows.
pub(super) const FOLLOWED_MAX: usize = 256;

/// Each rotation is decided by itself: `read` on its secret is asked for. A stream that would tell nothing is refused.
pub(super) fn open(lifecycle: &Lifecycle, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let instance = name(&cx.call.body.need_text("instance")?, "instance")?;
    let stream = base::id::base62(cx.host.rng(), 16)?;
    let (mut followed, mut refused) = (Vec::new(), Vec::new());
    for (rotation, holds) in held(cx)? {
        let entered = match feed::admit(cx, &rotation)? {
            Ok(_) => feed::enter(cx, &stream, &instance, &rotation, holds)?,
            Err(why) => Err(why),
        };
        let standing = match entered {
            Ok(using) => Standing::Served(Sent { using, standby: None }),
            Err(why) => {
                refused.push(why);
                Standing::Refused(None)
            }
        };
        followed.push(Followed { rotation, holds, standing });
    }
    cx.note("instance", &instance);
    match refused.first() {
        Some(first) if refused.len() == followed.len() => {
            Err(if refused.iter().all(|why| why == first) { *first } else { Why::Denied }.refusal())
        }
        _ => Ok(Answer::Stream(Box::new(Follow::new(stream, instance, followed, lifecycle.live.clone())))),
    }
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
