//! The lines of one watch: the complete wanted state of a rotation for this instance, whenever it differs from what was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base::{Refusal, SecretBytes};
use engine::{Batch, Cx, Feed, Frame, Need};
use serde::Serialize;

use super::records::{self, Holding, Offer, Rotation};
use super::{drive, holdings, runs};
use crate::core::{Event, Generation, Instance, ValueId, Wanted};

/// The time between heartbeats.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);

/// What was sent of one rotation, or is held by the consumer's own statement.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    pub(super) using: Option<Generation>,
    pub(super) standby: Option<Generation>,
}

/// One rotation that a stream follows. Each is decided by itself.
#[derive(Clone, Debug)]
pub(super) struct Followed {
    pub(super) rotation: String,
    /// What the consumer said that it holds when it came.
    pub(super) holds: Option<Generation>,
    pub(super) standing: Standing,
}

/// How one rotation of a stream stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Standing {
    /// It is delivered.
    Served(Sent),
    /// It is not, for this reason; `None` before that was said.
    Refused(Option<Why>),
}

/// Why a rotation is not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It is unknown, or its secret may not be read: one answer for both.
    Denied,
    /// The name of the instance is another identity's.
    Taken,
}

impl Why {
    fn text(self) -> &'static str {
        match self {
            Self::Denied => "there is no such rotation, or this identity may not read its secret",
            Self::Taken => "this instance belongs to another identity",
        }
    }

    /// The refusal of a stream that has nothing else to tell.
    pub(super) fn refusal(self) -> Refusal {
        match self {
            Self::Denied => Refusal::denied(),
            Self::Taken => Refusal::forbidden(self.text()),
        }
    }
}

/// The rotation, if the caller may follow it.
pub(super) fn admit(cx: &mut Cx<'_>, name: &str) -> Result<Result<Rotation, Why>, Refusal> {
    let caller = cx.call.caller()?;
    let Some(rotation) = records::rotation(cx, name)?.filter(|rotation| rotation.adopted) else { return Ok(Err(Why::Denied)) };
    let permitted = cx.host.permits(cx.tx, caller, Need::Read, &rotation.path)?;
    Ok(if permitted { Ok(rotation) } else { Err(Why::Denied) })
}

/// The instance begins to follow a rotation on this stream. Returns the generation that it is known to use.
pub(super) fn enter(
    cx: &mut Cx<'_>,
    stream: &str,
    instance: &str,
    rotation: &str,
    holds: Option<Generation>,
) -> Result<Result<Option<Generation>, Why>, Refusal> {
    let caller = cx.call.caller()?;
    let mut known = records::holding(cx, rotation, instance)?;
    if let Some(other) = known.take_if(|k| k.principal != caller.principal) {
        if cx.host.token_alive(cx.tx, &other.accessor)? {
            return Ok(Err(Why::Taken));
        }
        // The name is free again: its holder is gone, and nothing it proved counts for the next one.
        drive::feed_rotation(cx, rotation, Event::Left { instance: Instance(instance.to_owned()) })?;
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
        stream: Some(stream.to_owned()),
        lapsed: false,
        holds,
        level,
        offered,
        refused,
        heard: cx.now(),
        proven,
    };
    records::put_holding(cx, rotation, instance, &holding)?;
    holdings::owe_lapse(cx, rotation, instance)?;
    drive::feed_rotation(cx, rotation, Event::Joined { instance: Instance(instance.to_owned()), holds })?;
    Ok(Ok(using))
}

/// One open watch.
pub(super) struct Follow {
    stream: String,
    instance: String,
    greeted: bool,
    followed: Vec<Followed>,
    /// What the last look found to send, not sent yet: by the place among those followed.
    staged: Vec<(usize, Standing)>,
    live: Arc<Mutex<BTreeSet<String>>>,
}

/// What a look at one rotation came to.
enum Look {
    /// Another stream of this instance has taken over, or it said goodbye.
    Over,
    /// Nothing to say.
    Same,
    /// To be said.
    News(Frame, Standing),
}

/// One generation as it is delivered.
#[derive(Serialize)]
struct Delivery<'a> {
    generation: Generation,
    run: Option<&'a str>,
    version: Option<u64>,
    value: BTreeMap<&'a str, &'a str>,
    ack_key: &'a str,
    nonce: &'a str,
}

#[derive(Serialize)]
struct State<'a> {
    r#type: &'a str,
    rotation: &'a str,
    path: &'a base::CanonPath,
    r#use: Option<Delivery<'a>>,
    standby: Option<Delivery<'a>>,
    required_level: crate::core::Level,
}

impl Follow {
    pub(super) fn new(stream: String, instance: String, followed: Vec<Followed>, live: Arc<Mutex<BTreeSet<String>>>) -> Self {
        lock(&live).insert(stream.clone());
        Self { stream, instance, greeted: false, followed, staged: Vec::new(), live }
    }

    fn hello(&self) -> Result<Frame, Refusal> {
        let line = serde_json::json!({
            "type": "hello", "stream": self.stream, "instance": self.instance, "heartbeat_seconds": HEARTBEAT.as_secs(),
        });
        Ok(Frame { line: SecretBytes::new(line.to_string().into_bytes()), facts: BTreeMap::new() })
    }

    /// Decides about one rotation, and says what is new.
    fn look(&self, cx: &mut Cx<'_>, followed: &Followed) -> Result<Look, Refusal> {
        let name = &followed.rotation;
        let (admitted, holding) = (admit(cx, name)?, records::holding(cx, name, &self.instance)?);
        let why = match (followed.standing, admitted) {
            (Standing::Served(sent), Ok(rotation)) => {
                return match holding.filter(|holding| holding.stream.as_deref() == Some(&self.stream)) {
                    Some(holding) => self.state(cx, name, &rotation, sent, holding, false),
                    None => Ok(Look::Over),
                };
            }
            (Standing::Refused(_), Ok(rotation)) => {
                // What it has proven since it came counts, if that was it.
                let own = holding.filter(|holding| cx.call.caller().is_ok_and(|caller| holding.principal == caller.principal));
                if own.as_ref().and_then(|holding| holding.stream.as_ref()).is_some_and(|stream| lock(&self.live).contains(stream)) {
                    return Ok(Look::Over);
                }
                let holds = own.and_then(|holding| holding.holds).max(followed.holds);
                match enter(cx, &self.stream, &self.instance, name, holds)? {
                    Ok(_) => {
                        let holding = records::holding(cx, name, &self.instance)?;
                        let holding = holding.ok_or_else(|| Refusal::internal("a holding that was just written is missing"))?;
                        return self.state(cx, name, &rotation, Sent::default(), holding, true);
                    }
                    Err(why) => why,
                }
            }
            (_, Err(why)) => why,
        };
        match followed.standing {
            Standing::Refused(Some(said)) if said == why => return Ok(Look::Same),
            // It goes on using what it has: to the rotation its stream is gone.
            Standing::Served(_) => self.leave(cx, name)?,
            Standing::Refused(_) => {}
        }
        let line = serde_json::json!({ "type": "refused", "rotation": name, "reason": why.text() });
        let mut facts =
            BTreeMap::from([("instance", self.instance.clone()), ("rotation", name.clone()), ("refused", why.text().to_owned())]);
        if let Some(rotation) = records::rotation(cx, name)? {
            facts.insert("path", rotation.path.as_str().to_owned());
        }
        Ok(Look::News(Frame { line: SecretBytes::new(line.to_string().into_bytes()), facts }, Standing::Refused(Some(why))))
    }

    /// To the rotation, this stream is gone.
    fn leave(&self, cx: &mut Cx<'_>, rotation: &str) -> Result<(), Refusal> {
        let Some(mut holding) = records::holding(cx, rotation, &self.instance)? else { return Ok(()) };
        if holding.stream.as_deref() == Some(&self.stream) {
            holding.stream = None;
            holding.heard = cx.now();
            if !cx.host.token_alive(cx.tx, &holding.accessor)? {
                // The stream ended with its token: there is nothing to wait for that could bring it back.
                return holdings::gone(cx, rotation, &self.instance, holding);
            }
            records::put_holding(cx, rotation, &self.instance, &holding)?;
        }
        Ok(())
    }

    /// The line for one rotation, if what is wanted of this instance has changed, is asked anew, or is to be said in any case.
    fn state(
        &self,
        cx: &mut Cx<'_>,
        name: &str,
        rotation: &Rotation,
        sent: Sent,
        mut holding: Holding,
        in_any_case: bool,
    ) -> Result<Look, Refusal> {
        let wanted = wish(cx, name, rotation, &self.instance)?;
        let (using, standby) = (wanted.using.map(|(g, _)| g), wanted.standby.map(|(g, _)| g));
        let asked = |generation: Generation| holding.offered.iter().any(|(offered, _)| *offered == generation);
        let news = (using, standby) != (sent.using, sent.standby) || ![using, standby].into_iter().flatten().all(asked);
        // A generation to use never goes down.
        if !(news || in_any_case) || using < sent.using {
            return Ok(Look::Same);
        }
        let mut offered = Vec::new();
        for generation in [using, standby].into_iter().flatten() {
            let nonce = match holding.offered.iter().find(|(g, _)| *g == generation) {
                Some((_, nonce)) => nonce.clone(),
                None => base::id::base62(cx.host.rng(), 22)?,
            };
            offered.push((generation, nonce));
        }
        if holding.offered != offered {
            holding.offered.clone_from(&offered);
            records::put_holding(cx, name, &self.instance, &holding)?;
        }
        let mut values = Vec::new();
        for (generation, id) in [wanted.using, wanted.standby].into_iter().flatten() {
            values.push((generation, records::need_value(cx, name, id)?));
        }
        let delivery = |wanted: Option<(Generation, ValueId)>| -> Option<Delivery<'_>> {
            let (generation, _) = wanted?;
            let (_, value) = values.iter().find(|(g, _)| *g == generation)?;
            let (_, nonce) = offered.iter().find(|(g, _)| *g == generation)?;
            Some(Delivery {
                generation,
                run: rotation.open.as_deref(),
                version: rotation.published.filter(|(g, _)| *g == generation).map(|(_, version)| version),
                value: BTreeMap::from([("username", value.username.as_str()), ("password", value.password.as_str())]),
                ack_key: &value.ack_key,
                nonce,
            })
        };
        let state = State {
            r#type: "state",
            rotation: name,
            path: &rotation.path,
            r#use: delivery(wanted.using),
            standby: delivery(wanted.standby),
            required_level: rotation.terms.required,
        };
        let line = serde_json::to_vec(&state).map_err(|_| Refusal::internal("a delivery could not be written"))?;
        let show = |g: Option<Generation>| g.map_or_else(|| "none".to_owned(), |g| g.to_string());
        let mut facts = BTreeMap::from([
            ("instance", self.instance.clone()),
            ("rotation", name.to_owned()),
            ("using", show(using)),
            ("standby", show(standby)),
            ("path", rotation.path.as_str().to_owned()),
        ]);
        if let Some((_, version)) = rotation.published.filter(|(g, _)| Some(*g) == using) {
            facts.insert("version", version.to_string());
        }
        Ok(Look::News(Frame { line: SecretBytes::new(line), facts }, Standing::Served(Sent { using, standby })))
    }
}

/// What this instance should have: what the open run offers it, or what is in force.
pub(super) fn wish(cx: &mut Cx<'_>, name: &str, rotation: &Rotation, instance: &str) -> Result<Wanted, Refusal> {
    let key = records::offer_key(cx, name, instance);
    let offer: Option<Offer> = match &rotation.open {
        Some(_) => cx.tx.read(&key)?,
        None => None,
    };
    let offered = offer.filter(|offer| Some(&offer.run) == rotation.open.as_ref()).map(|offer| offer.wanted);
    let rest = Wanted { using: runs::in_force(rotation), standby: None };
    Ok(offered.filter(|wanted| *wanted != Wanted::default()).unwrap_or(rest))
}

impl Feed for Follow {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Result<Option<Batch>, Refusal> {
        let (mut frames, mut staged) = (Vec::new(), Vec::new());
        if !self.greeted {
            frames.push(self.hello()?);
        }
        let mut served = false;
        for (at, followed) in self.followed.iter().enumerate() {
            let mut standing = followed.standing;
            match self.look(cx, followed)? {
                Look::Over => return Ok(Some(Batch { frames: Vec::new(), last: true })),
                Look::Same => {}
                Look::News(frame, news) => {
                    frames.push(frame);
                    staged.push((at, news));
                    standing = news;
                }
            }
            served |= matches!(standing, Standing::Served(_));
        }
        if !served {
            return Err(Refusal::denied());
        }
        self.staged = staged;
        Ok((!frames.is_empty()).then_some(Batch { frames, last: false }))
    }

    fn sent(&mut self) {
        self.greeted = true;
        for (at, standing) in std::mem::take(&mut self.staged) {
            if let Some(followed) = self.followed.get_mut(at) {
                followed.standing = standing;
            }
        }
    }

    fn heartbeat(&self) -> Duration {
        HEARTBEAT
    }

    fn closed(&self, cx: &mut Cx<'_>) -> Result<(), Refusal> {
        lock(&self.live).remove(&self.stream);
        self.followed.iter().try_for_each(|followed| self.leave(cx, &followed.rotation))
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        lock(&self.live).remove(&self.stream);
    }
}

fn lock(live: &Mutex<BTreeSet<String>>) -> MutexGuard<'_, BTreeSet<String>> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A consumer says goodbye: it needs nothing any more.
pub(super) fn leave(cx: &mut Cx<'_>, rotation: &str, instance: &str) -> Result<(), Refusal> {
    let key = records::holding_key(cx, rotation, instance);
    cx.tx.delete(&key)?;
    drive::feed_rotation(cx, rotation, Event::Left { instance: Instance(instance.to_owned()) })
}
