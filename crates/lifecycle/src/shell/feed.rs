//! The lines of one watch: the complete wanted state of a rotation for this instance, whenever it differs from what was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::{Refusal, SecretBytes};
use engine::{Batch, Cx, Feed, Frame};
use serde::Serialize;

use super::records::{self, Holding, Offer, Rotation};
use super::{drive, holdings, runs};
use crate::core::{Event, Generation, Instance, ValueId, Wanted};

/// The time between heartbeats.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);

/// What was sent of one rotation, or is held by the consumer's own statement.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) rotation: String,
    pub(super) using: Option<Generation>,
    pub(super) standby: Option<Generation>,
}

/// One open watch.
pub(super) struct Follow {
    stream: String,
    instance: String,
    greeted: bool,
    sent: Vec<Sent>,
    /// What the last look found to send, not sent yet.
    staged: Vec<Sent>,
    live: Arc<Mutex<BTreeSet<String>>>,
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
    pub(super) fn new(stream: String, instance: String, sent: Vec<Sent>, live: Arc<Mutex<BTreeSet<String>>>) -> Self {
        live.lock().unwrap_or_else(PoisonError::into_inner).insert(stream.clone());
        Self { stream, instance, greeted: false, sent, staged: Vec::new(), live }
    }

    fn hello(&self) -> Result<Frame, Refusal> {
        let line = serde_json::json!({
            "type": "hello", "stream": self.stream, "instance": self.instance, "heartbeat_seconds": HEARTBEAT.as_secs(),
        });
        Ok(Frame { line: SecretBytes::new(line.to_string().into_bytes()), facts: BTreeMap::new() })
    }

    /// The line for one rotation, if what is wanted of this instance has changed or is asked anew.
    fn state(&self, cx: &mut Cx<'_>, sent: &Sent, mut holding: Holding) -> Result<Option<(Frame, Sent)>, Refusal> {
        let Some(rotation) = records::rotation(cx, &sent.rotation)? else { return Err(Refusal::missing()) };
        let wanted = wish(cx, &sent.rotation, &rotation, &self.instance)?;
        let (using, standby) = (wanted.using.map(|(g, _)| g), wanted.standby.map(|(g, _)| g));
        let asked = |generation: Generation| holding.offered.iter().any(|(offered, _)| *offered == generation);
        let news = (using, standby) != (sent.using, sent.standby) || ![using, standby].into_iter().flatten().all(asked);
        // A generation to use never goes down.
        if !news || using < sent.using {
            return Ok(None);
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
            records::put_holding(cx, &sent.rotation, &self.instance, &holding)?;
        }
        let mut values = Vec::new();
        for (generation, id) in [wanted.using, wanted.standby].into_iter().flatten() {
            values.push((generation, records::need_value(cx, &sent.rotation, id)?));
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
            rotation: &sent.rotation,
            path: &rotation.path,
            r#use: delivery(wanted.using),
            standby: delivery(wanted.standby),
            required_level: rotation.terms.required,
        };
        let line = serde_json::to_vec(&state).map_err(|_| Refusal::internal("a delivery could not be written"))?;
        let show = |g: Option<Generation>| g.map_or_else(|| "none".to_owned(), |g| g.to_string());
        let mut facts = BTreeMap::from([
            ("instance", self.instance.clone()),
            ("rotation", sent.rotation.clone()),
            ("using", show(using)),
            ("standby", show(standby)),
            ("path", rotation.path.as_str().to_owned()),
        ]);
        if let Some((_, version)) = rotation.published.filter(|(g, _)| Some(*g) == using) {
            facts.insert("version", version.to_string());
        }
        let staged = Sent { rotation: sent.rotation.clone(), using, standby };
        Ok(Some((Frame { line: SecretBytes::new(line), facts }, staged)))
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
        for sent in &self.sent {
            let holding = records::holding(cx, &sent.rotation, &self.instance)?;
            let Some(holding) = holding.filter(|holding| holding.stream.as_deref() == Some(&self.stream)) else {
                // It said goodbye, its rotation is gone, or a newer stream of the same instance has taken over.
                return Ok(Some(Batch { frames: Vec::new(), last: true }));
            };
            if let Some((frame, state)) = self.state(cx, sent, holding)? {
                frames.push(frame);
                staged.push(state);
            }
        }
        self.staged = staged;
        Ok((!frames.is_empty()).then_some(Batch { frames, last: false }))
    }

    fn sent(&mut self) {
        self.greeted = true;
        for staged in std::mem::take(&mut self.staged) {
            if let Some(sent) = self.sent.iter_mut().find(|sent| sent.rotation == staged.rotation) {
                *sent = staged;
            }
        }
    }

    fn heartbeat(&self) -> Duration {
        HEARTBEAT
    }

    fn closed(&self, cx: &mut Cx<'_>) -> Result<(), Refusal> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.stream);
        for sent in &self.sent {
            let Some(mut holding) = records::holding(cx, &sent.rotation, &self.instance)? else { continue };
            if holding.stream.as_deref() == Some(&self.stream) {
                holding.stream = None;
                holding.heard = cx.now();
                if cx.host.token_alive(cx.tx, &holding.accessor)? {
                    records::put_holding(cx, &sent.rotation, &self.instance, &holding)?;
                } else {
                    // The stream ended with its token: there is nothing to wait for that could bring it back.
                    holdings::gone(cx, &sent.rotation, &self.instance, holding)?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.stream);
    }
}

/// A consumer says goodbye: it needs nothing any more.
pub(super) fn leave(cx: &mut Cx<'_>, rotation: &str, instance: &str) -> Result<(), Refusal> {
    let key = records::holding_key(cx, rotation, instance);
    cx.tx.delete(&key)?;
    drive::feed_rotation(cx, rotation, Event::Left { instance: Instance(instance.to_owned()) })
}
