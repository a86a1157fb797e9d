//! Acts: those within the store, done at once, and those on the target, performed as duties.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Refusal, SecretString};
use engine::{Answer, Cx, Duty, Fault, RotationTarget, Work};

use super::drive::{self, ActDuty, done, payload};
use super::records::{self, RunRecord, Value};
use super::{Lifecycle, targets};
use crate::core::{Act, Code, DeathProbe, Event, Fact, Login, Mac, Outcome, Peer, Pending, Sessions, ValueId};

/// The duty of an act at a target.
pub(super) const ACT: &str = "lifecycle-act";

/// Characters of a generated password.
const PASSWORD_LENGTH: usize = crypto::password::LENGTH;

/// Does an act that needs nothing but this transaction; nothing for those that touch a target.
pub(super) fn within(cx: &mut Cx<'_>, record: &RunRecord, act: &Act) -> Result<Option<Outcome>, Refusal> {
    match act {
        Act::Generate { value } => {
            if records::value(cx, &record.rotation, *value)?.is_none() {
                let username = records::need_rotation(cx, &record.rotation)?.slot(record.run.new.slot).to_owned();
                let made = generate(cx, username)?;
                let key = records::value_key(cx, &record.rotation, *value);
                cx.tx.write(&key, &made)?;
            }
            Ok(done(Fact::Stored))
        }
        Act::Publish { generation, value } => {
            let mut rotation = records::need_rotation(cx, &record.rotation)?;
            if rotation.published.is_none_or(|(last, _)| last < *generation) {
                let value = records::need_value(cx, &record.rotation, *value)?;
                let data = engine::answer::raw(&BTreeMap::from([("username", &value.username), ("password", &value.password)]))?;
                // Claimed again, in case what is mounted there now has not heard of the claim.
                let claimed = cx.host.claim(cx.tx, &rotation.path, Some(&record.rotation));
                let version = match claimed.and_then(|()| cx.host.publish(cx.tx, &rotation.path, &record.rotation, &data)) {
                    Ok(version) => version,
                    // The run hears of it and waits for an operator; a refusal passed on would undo the step that asked.
                    Err(refusal) => {
                        let reason = format!("the value could not be published: {}", refusal.errors.join("; "));
                        return Ok(Some(Outcome::Refused(Code::Denied { reason })));
                    }
                };
                rotation.published = Some((*generation, version));
                records::put_rotation(cx, &record.rotation, &rotation)?;
                drive::also(cx, "version", version);
            }
            drive::also(cx, "generation", *generation);
            Ok(done(Fact::Published))
        }
        Act::Set { .. } | Act::Probe { .. } | Act::WatchSessions { .. } | Act::Kill { .. } | Act::ProveDeath { .. } => Ok(None),
    }
}

fn generate(cx: &mut Cx<'_>, username: String) -> Result<Value, Refusal> {
    let key = engine::Key::new(cx.call.mount.scope(), "mac-key", &["1"]);
    let mac_key: String = match cx.tx.read(&key)? {
        Some(known) => known,
        None => {
            let mut bytes = [0; 32];
            cx.host.rng().fill(&mut bytes)?;
            let made = crypto::encode::base64(&bytes);
            cx.tx.write(&key, &made)?;
            made
        }
    };
    let password = crypto::password::generate(cx.host.rng(), PASSWORD_LENGTH)?;
    let mut ack_key = [0; 32];
    cx.host.rng().fill(&mut ack_key)?;
    let mac = crypto::mac::sign(&crypto::mac::Key::new(mac_key.as_bytes()), password.expose().as_bytes());
    Ok(Value { username, password: password.expose().clone(), ack_key: crypto::encode::base64(&ack_key), mac: crypto::encode::hex(&mac) })
}

/// One login at one slot.
struct Key {
    slot: String,
    password: SecretString,
    mac: Mac,
}

pub(super) fn perform(lifecycle: &Lifecycle, cx: &mut Cx<'_>, duty: &Duty) -> Result<Work, Refusal> {
    let ActDuty { id, act } = payload(duty)?;
    let record = records::run_head(cx, &id.run.0)?.ok_or_else(|| Refusal::internal(format!("run `{}` is missing", id.run.0)))?;
    if !matches!(&record.run.pending, Pending::Owed { id: owed, .. } if *owed == id) {
        // The run has turned elsewhere since. It will not listen, so nothing is done.
        let text = "the run no longer waits for this act".to_owned();
        return Ok(Box::pin(std::future::ready(engine::Outcome::Unknown { text })));
    }
    let rotation = records::need_rotation(cx, &record.rotation)?;
    let target = targets::open(lifecycle, cx, &rotation.target)?;
    let login = |cx: &mut Cx<'_>, slot: &str, value: ValueId| -> Result<Key, Refusal> {
        let value = records::need_value(cx, &record.rotation, value)?;
        Ok(Key { slot: slot.to_owned(), password: SecretString::new(value.password), mac: Mac(value.mac) })
    };
    Ok(match act {
        Act::Set { slot, value } => {
            let key = login(cx, rotation.slot(slot), value)?;
            let owner = rotation.owner.clone();
            Box::pin(async move { for_the_run(target.set(&owner, &key.slot, &key.password).await.map(|()| Fact::Applied)) })
        }
        Act::Probe { slot, value } => {
            let key = login(cx, rotation.slot(slot), value)?;
            Box::pin(async move { for_the_run(Ok(Fact::Login(probe(&target, &key).await))) })
        }
        Act::WatchSessions { slot } => {
            let slot = rotation.slot(slot).to_owned();
            Box::pin(async move { for_the_run(sessions(&target, &slot).await.map(Fact::Sessions)) })
        }
        Act::Kill { slot } => {
            let slot = rotation.slot(slot).to_owned();
            let killed = |n: u64| Fact::Killed { terminated: u32::try_from(n).unwrap_or(u32::MAX) };
            Box::pin(async move { for_the_run(target.kill(&slot).await.map(killed)) })
        }
        Act::ProveDeath { slot, dead, alive_slot, alive } => {
            let (dead, alive) = (login(cx, rotation.slot(slot), dead)?, login(cx, rotation.slot(alive_slot), alive)?);
            Box::pin(async move {
                // The three questions of one probe, one right after the other: was it refused, does the other work, is nobody left?
                let refused = probe(&target, &dead).await;
                let works = probe(&target, &alive).await;
                let left = sessions(&target, &dead.slot).await.ok().map(|s| s.count());
                for_the_run(Ok(Fact::Death(DeathProbe { dead: refused, alive: works, sessions: left })))
            })
        }
        Act::Generate { .. } | Act::Publish { .. } => return Err(Refusal::internal("an act within the store was owed as a duty")),
    })
}

async fn probe(target: &Arc<dyn RotationTarget>, key: &Key) -> Login {
    match target.probe(&key.slot, &key.password).await {
        Ok(engine::Login::Accepted) => Login::Accepted { mac: key.mac.clone() },
        Ok(engine::Login::WrongPassword { .. }) => Login::WrongPassword { mac: key.mac.clone() },
        Ok(engine::Login::Unfit { reason }) => Login::Unfit { reason },
        Ok(engine::Login::Refused { code }) => Login::Refused { code },
        Err(Fault::Refused { code, .. }) => Login::Refused { code },
        Err(Fault::Unreachable(_) | Fault::Unknown(_)) => Login::Unreachable,
    }
}

async fn sessions(target: &Arc<dyn RotationTarget>, slot: &str) -> Result<Sessions, Fault> {
    let mut peers: BTreeMap<String, u32> = BTreeMap::new();
    for session in target.sessions(slot).await? {
        let name = if session.application.is_empty() { session.client } else { session.application };
        let count = peers.entry(name).or_default();
        *count = count.saturating_add(1);
    }
    Ok(Sessions { peers: peers.into_iter().map(|(name, count)| Peer { name, count }).collect() })
}

/// The outcome of an act whose failure its run hears of.
fn for_the_run(result: Result<Fact, Fault>) -> engine::Outcome {
    let outcome = match result {
        Ok(fact) => Outcome::Done(fact),
        Err(Fault::Unreachable(_)) => Outcome::Refused(Code::Unreachable),
        Err(Fault::Refused { code, text }) => Outcome::Refused(Code::Denied { reason: format!("{code}: {text}") }),
        Err(Fault::Unknown(text)) => return engine::Outcome::Unknown { text },
    };
    engine::Outcome::done(&outcome)
}

pub(super) fn settle(cx: &mut Cx<'_>, duty: &Duty, outcome: &engine::Outcome) -> Result<Answer, Refusal> {
    let ActDuty { id, .. } = payload(duty)?;
    let outcome = match outcome {
        engine::Outcome::Done(seen) => {
            serde_json::from_str(seen.get()).map_err(|_| Refusal::internal("what an act saw could not be read"))?
        }
        engine::Outcome::Refused { code, text } => Outcome::Refused(Code::Denied { reason: format!("{code}: {text}") }),
        engine::Outcome::Unknown { .. } => Outcome::Unknown,
    };
    if let Some(mut record) = records::run(cx, &id.run.0)?
        && record.run.closed.is_none()
    {
        drive::feed(cx, &mut record, Event::Outcome { id, outcome })?;
    }
    Ok(Answer::Nothing)
}
