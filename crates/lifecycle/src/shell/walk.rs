//! Random walks through the shell: consumers come and go, targets fail, operators interfere, rotations are deleted and written anew. After
//! every transaction each instance is offered what its run wants of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base::rng::SeededRng;
use base::time::ManualClock;
use base::{CanonPath, MountId, NamespaceId, Refusal, Rng};
use engine::{
    Answer, AnyEngine as _, Body, Call, Caller, Captures, Cx, Duty, DutyKey, Feed, Host, Mount, Need, NewDuty, Op, Owner as _, Permit,
    Routed, TargetConfig, Tx, duty,
};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use store::{IndexPlace, MemoryLog, NoObserver, RootKey, Store};

use super::records::{self, Holding, Offer, Rotation, RunRecord, Target};
use super::{Lifecycle, ack, acts, drive, feed, rotations, runs, targets};
use crate::core::{
    Act, Code, Consumer, DeathProbe, EVIDENCE_MAX, Event, Evidence, Fact, Found, Generation, Instance, Login, Mac, Outcome, Peer, Plan,
    Presence, Run, RunId, Sessions, Slot, ValueId, Version, Wanted, wanted,
};

const INSTANCES: u64 = 4;
const WALKS: u64 = 16;
const STEPS: usize = 1_000;

/// The kernel, as far as the walk needs one.
struct House {
    rng: SeededRng,
    dead: Mutex<BTreeSet<String>>,
    version: AtomicU64,
}

impl Host for House {
    fn rng(&self) -> &dyn Rng {
        &self.rng
    }

    fn owe(&self, tx: &mut Tx, owner: &Mount, new: NewDuty) -> Result<DutyKey, Refusal> {
        duty::owe(tx, owner.id, new, "boot")
    }

    fn claim(&self, _: &mut Tx, _: &CanonPath, _: Option<&str>) -> Result<(), Refusal> {
        Ok(())
    }

    fn claimant(&self, _: &mut Tx, _: &Mount) -> Result<Option<String>, Refusal> {
        Ok(None)
    }

    fn publish(&self, _: &mut Tx, _: &CanonPath, _: &str, _: &RawValue) -> Result<u64, Refusal> {
        Ok(self.version.fetch_add(1, Ordering::Relaxed))
    }

    fn token_alive(&self, _: &mut Tx, accessor: &str) -> Result<bool, Refusal> {
        Ok(!self.dead.lock().unwrap().contains(accessor))
    }

    fn permits(&self, _: &mut Tx, _: &Caller, _: Need, _: &CanonPath) -> Result<bool, Refusal> {
        Ok(true)
    }

    fn epoch(&self, _: &mut Tx, _: &str) -> Result<u64, Refusal> {
        Ok(0)
    }

    fn revoke_identity(&self, _: &mut Tx, _: &str) -> Result<engine::Removed, Refusal> {
        Err(Refusal::unsupported())
    }
}

/// An open stream, and what it told last.
struct Stream {
    feed: Box<dyn Feed>,
    /// Who opened it.
    who: String,
    told: Option<(Option<Generation>, Option<Generation>)>,
}

struct Walk {
    runtime: tokio::runtime::Runtime,
    clock: Arc<ManualClock>,
    store: Store,
    mount: Mount,
    house: House,
    lifecycle: Lifecycle,
    dice: SeededRng,
    streams: Vec<(String, Stream)>,
    /// What the target accepts.
    slots: BTreeMap<Slot, ValueId>,
    /// Tokens made so far: a dead one is followed by another.
    tokens: u64,
    /// Whether refusals, lost answers and changes of mind are rare, so that many a run gets to its end.
    calm: bool,
    /// How often each thing came about, for a walk that goes nowhere.
    seen: BTreeMap<String, u32>,
}

impl Walk {
    fn new(seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let clock = Arc::new(ManualClock::new());
        let rng = Arc::new(SeededRng::new(seed));
        let log = MemoryLog::new(&*rng).unwrap();
        let store = Store::open(Box::new(log), IndexPlace::Memory, clock.clone(), rng, Arc::new(NoObserver)).unwrap();
        runtime.block_on(store.initialise(&RootKey::new(&[7; 32]).unwrap(), Box::new(|_| b"{}".to_vec()))).unwrap();
        let mount = Mount {
            id: MountId(3),
            namespace: NamespaceId::ROOT,
            path: CanonPath::from_plain("sys/lifecycle/").unwrap(),
            kind: "lifecycle".into(),
            accessor: "lifecycle_00000003".into(),
            options: BTreeMap::new(),
        };
        let house = House { rng: SeededRng::new(seed), dead: Mutex::default(), version: AtomicU64::new(1) };
        let (lifecycle, dice) = (Lifecycle::new([]), SeededRng::new(seed ^ 0x5a5a));
        let (streams, slots, seen) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let mut walk =
            Self { runtime, clock, store, mount, house, lifecycle, dice, streams, slots, tokens: 0, calm: seed.is_multiple_of(2), seen };
        walk.within(|_, cx| {
            let config = TargetConfig { kind: "memory".into(), identity: Some("it".into()), ..TargetConfig::default() };
            let (key, target) = (records::target_key(cx, "main"), Target { config, checked: cx.now() });
            Ok(cx.tx.write(&key, &target)?)
        })
        .unwrap();
        walk
    }

    fn chance(&self, percent: u64) -> bool {
        self.dice.below(100) < percent
    }

    fn pick<T: Clone>(&self, from: &[T]) -> Option<T> {
        let n = usize::try_from(self.dice.below(u64::try_from(from.len().max(1)).unwrap())).unwrap();
        from.get(n).cloned()
    }

    fn call(&self, who: &str, op: Op, path: &str, body: &Value) -> (Call, Option<usize>) {
        let path = CanonPath::from_plain(path).unwrap();
        let (index, captures) = match engine::route::find(&self.lifecycle.metas(), op, Some(&path)) {
            Routed::To(index, captures) => (Some(index), captures),
            _ => (None, Captures::default()),
        };
        let caller = Caller {
            principal: who.split('/').next().unwrap().to_owned(),
            accessor: who.to_owned(),
            display_name: String::new(),
            policies: Vec::new(),
            root: false,
            token_hash: [0; 32],
        };
        let body = Body::from_json(body.to_string().as_bytes()).unwrap();
        let (mount, path) = (self.mount.clone(), Some(path));
        (Call { id: "0".into(), op, mount, path, captures, body, caller: Some(caller), remote: None }, index)
    }

    fn commit(&mut self, tx: Tx) {
        if !tx.is_read_only() {
            self.runtime.block_on(self.store.commit(tx, Box::new(|_| b"{}".to_vec()))).unwrap();
        }
        self.check();
    }

    /// A transaction in nobody's name.
    fn within<T>(&mut self, act: impl FnOnce(&Self, &mut Cx<'_>) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mut tx = self.store.begin().unwrap();
        let call = self.call("nobody", Op::Write, "none", &json!({})).0;
        let done = act(self, &mut Cx::new(&mut tx, &call, &self.house));
        if done.is_ok() && !tx.is_read_only() {
            self.runtime.block_on(self.store.commit(tx, Box::new(|_| b"{}".to_vec()))).unwrap();
        }
        done
    }

    /// A request, as the kernel serves it.
    fn ask(&mut self, who: &str, op: Op, path: &str, body: &Value) -> Result<Answer, Refusal> {
        let mut tx = self.store.begin().unwrap();
        let (call, index) = self.call(who, op, path, body);
        let answer = self.lifecycle.handle(index.unwrap(), &mut Cx::new(&mut tx, &call, &self.house), Permit::public_route());
        if answer.is_err() {
            tx.refuse();
        }
        self.commit(tx);
        answer
    }

    fn rotation(&mut self) -> Option<Rotation> {
        self.within(|_, cx| records::rotation(cx, "p")).unwrap()
    }

    fn holdings(&mut self) -> Vec<(String, Holding)> {
        self.within(|_, cx| records::holdings_of(cx, "p")).unwrap()
    }

    /// What an instance should have, from the run itself.
    fn expected(cx: &mut Cx<'_>, rotation: &Rotation, instance: &str) -> Wanted {
        let open = rotation.open.clone().map(|id| records::run(cx, &id).unwrap().unwrap().run);
        let of_run = open.map(|run| wanted(&run, &Instance(instance.to_owned()))).filter(|wanted| *wanted != Wanted::default());
        of_run.unwrap_or(Wanted { using: runs::in_force(rotation), standby: None })
    }

    fn check(&mut self) {
        let dead = self.house.dead.lock().unwrap().clone();
        self.within(|_, cx| {
            let rotation = records::rotation(cx, "p")?;
            let open = rotation.as_ref().and_then(|rotation| rotation.open.clone());
            let prefix = records::table(cx, "offer", &["p"]);
            for (instance, offer) in records::all::<Offer>(cx, &prefix, 1_000)? {
                assert_eq!(Some(&offer.run), open.as_ref(), "{instance} is offered something of a run that is over");
            }
            for (instance, holding) in records::holdings_of(cx, "p")? {
                let key = DutyKey { owner: cx.call.mount.id, key: format!("lapse/p/{instance}") };
                let over = holding.lapsed && dead.contains(&holding.accessor);
                assert!(over || duty::find(cx.tx, &key)?.is_some(), "nobody will see when {instance} is gone: {holding:?}");
            }
            let Some(rotation) = rotation else { return Ok(()) };
            let mut instances: BTreeSet<String> = records::holdings_of(cx, "p")?.into_iter().map(|(instance, _)| instance).collect();
            if let Some(id) = &open {
                let consumers = records::run(cx, id)?.unwrap().run.consumers;
                for (instance, holding) in records::holdings_of(cx, "p")? {
                    let presence = consumers.get(&Instance(instance.clone())).map(|consumer| consumer.presence);
                    let expected = if holding.lapsed { Presence::Lapsed } else { Presence::Present };
                    assert_eq!(presence, Some(expected), "{instance} is not to its run what it is");
                }
                instances.extend(consumers.into_keys().map(|instance| instance.0));
            }
            for instance in instances {
                let expected = Self::expected(cx, &rotation, &instance);
                assert_eq!(feed::wish(cx, "p", &rotation, &instance)?, expected, "{instance}");
            }
            Ok(())
        })
        .unwrap();
    }

    // ---- what happens

    fn step(&mut self) {
        match self.dice.below(100) {
            0..34 => self.settle(),
            34..47 => self.clock.advance(Duration::from_millis([5, 30, 200][usize::try_from(self.dice.below(3)).unwrap()])),
            47..52 => self.join(),
            52..67 => self.listen(),
            67..92 => self.speak(),
            92 => self.cut(),
            93 => self.leave(),
            94 => self.kill_token(),
            95 => self.operate(Op::Write, "rotate/p"),
            96..98 => self.steer(if self.chance(if self.calm { 5 } else { 50 }) { "abort" } else { "resume" }),
            98 => self.operate(Op::Delete, "rotations/p"),
            _ => self.write_rotation(),
        }
    }

    fn write_rotation(&mut self) {
        let on_hard = if self.chance(75) { "hold" } else { "rollback" };
        let body = json!({
            "path": "secret/data/app", "target": "main", "owner": "app", "slots": ["app_a", "app_b"], "on_hard_deadline": on_hard,
            "soak": "20ms", "quiet_period": "60ms", "session_poll": "20ms", "soft_deadline": "200ms", "hard_deadline": "3s", "attempts": 3,
            "backoff": "20ms", "backoff_max": "100ms", "holding_ttl": "600ms", "canaries": self.dice.below(3),
        });
        let _changed = self.ask("op/1", Op::Write, "rotations/p", &body).unwrap();
    }

    fn operate(&mut self, op: Op, path: &str) {
        let said = if self.ask("op/1", op, path, &json!({})).is_ok() { "did" } else { "refused" };
        *self.seen.entry(format!("{said} {path}")).or_default() += 1;
    }

    fn steer(&mut self, word: &str) {
        if let Some(run) = self.rotation().and_then(|rotation| rotation.open) {
            let said = if self.ask("op/1", Op::Write, &format!("runs/{run}/{word}"), &json!({})).is_ok() { "did" } else { "refused" };
            *self.seen.entry(format!("{said} {word}")).or_default() += 1;
        }
    }

    fn join(&mut self) {
        let n = self.dice.below(INSTANCES);
        let (instance, known) = (format!("i{n}"), self.holdings());
        // Now and then it is somebody else who comes under the same name.
        let who = if self.chance(85) { n } else { self.dice.below(INSTANCES) };
        let mut accessor = format!("who{who}/{}", self.tokens);
        if let Some((_, holding)) = known.iter().find(|(name, h)| *name == instance && h.principal == format!("who{who}")) {
            if self.house.dead.lock().unwrap().contains(&holding.accessor) {
                self.tokens += 1;
                accessor = format!("who{who}/{}", self.tokens);
            } else {
                accessor.clone_from(&holding.accessor);
            }
        }
        let newest = self.rotation().map_or(0, |rotation| rotation.generation_max.0);
        let held = known.iter().find(|(name, _)| *name == instance).and_then(|(_, h)| h.holds).map_or(0, |g| g.0);
        let hold = self.pick(&[0, held, held, newest, newest.saturating_sub(1)]).unwrap();
        let body = json!({"instance": instance, "hold": [format!("p:{hold}")]});
        if self.rotation().is_some_and(|rotation| rotation.adopted)
            && let Ok(Answer::Stream(feed)) = self.ask(&accessor, Op::Read, "watch", &body)
        {
            self.streams.push((instance, Stream { feed, who: accessor, told: None }));
        }
    }

    /// A stream looks, and tells what is due.
    fn listen(&mut self) {
        if self.streams.is_empty() {
            return;
        }
        let n = usize::try_from(self.dice.below(u64::try_from(self.streams.len()).unwrap())).unwrap();
        let (instance, mut stream) = self.streams.swap_remove(n);
        let (call, _) = self.call(&stream.who, Op::Write, "none", &json!({}));
        for look in 0.. {
            assert!(look < 4, "a stream that always finds something to say");
            let mut tx = self.store.begin().unwrap();
            let polled = stream.feed.poll(&mut Cx::new(&mut tx, &call, &self.house));
            let Ok(batch) = polled else { return self.end(&stream) };
            self.commit(tx);
            let Some(batch) = batch else { break };
            if batch.last {
                return self.end(&stream);
            }
            for facts in batch.frames.iter().map(|frame| &frame.facts).filter(|facts| facts.contains_key("rotation")) {
                let number = |name: &str| facts[name].parse().ok().map(Generation);
                stream.told = Some((number("using"), number("standby")));
            }
            stream.feed.sent();
        }
        if let Some((using, standby)) = stream.told {
            self.within(|_, cx| {
                let rotation = records::rotation(cx, "p")?.unwrap();
                let expected = Self::expected(cx, &rotation, &instance);
                let now = (expected.using.map(|(g, _)| g), expected.standby.map(|(g, _)| g));
                assert!((using, standby) == now || now.0 < using, "{instance} was told {using:?} {standby:?}, not {now:?}");
                Ok(())
            })
            .unwrap();
        }
        self.streams.push((instance, stream));
    }

    fn end(&mut self, stream: &Stream) {
        let (call, _) = self.call("nobody", Op::Write, "none", &json!({}));
        let mut tx = self.store.begin().unwrap();
        stream.feed.closed(&mut Cx::new(&mut tx, &call, &self.house)).unwrap();
        self.commit(tx);
    }

    fn cut(&mut self) {
        if !self.streams.is_empty() {
            let n = usize::try_from(self.dice.below(u64::try_from(self.streams.len()).unwrap())).unwrap();
            let (_, stream) = self.streams.swap_remove(n);
            self.end(&stream);
        }
    }

    fn leave(&mut self) {
        let known = self.holdings();
        if let Some((instance, holding)) = self.pick(&known) {
            let _said = self.ask(&holding.accessor, Op::Write, "goodbye", &json!({"instance": instance})).unwrap();
        }
    }

    fn kill_token(&mut self) {
        let known = self.holdings();
        if let Some((_, holding)) = self.pick(&known) {
            self.house.dead.lock().unwrap().insert(holding.accessor);
        }
    }

    /// An acknowledgement or a refusal of something that was offered.
    fn speak(&mut self) {
        let known = self.holdings();
        let Some((instance, holding)) = self.pick(&known) else { return };
        let Some((generation, nonce)) = self.pick(&holding.offered) else { return };
        let level = if self.chance(if self.calm { 0 } else { 2 }) { "NACK" } else { self.pick(&["L2", "L2", "L1"]).unwrap() };
        let rotation = self.rotation().unwrap();
        let expected = self.within(|_, cx| Ok(Self::expected(cx, &rotation, &instance))).unwrap();
        let body = self.words(&rotation, &instance, (generation, &nonce), level);
        // Now and then it is another token of the same identity that speaks, as after a new login.
        let mut accessor = holding.accessor.clone();
        if self.chance(5) {
            self.tokens += 1;
            accessor = format!("{}/{}", holding.principal, self.tokens);
        }
        if self.ask(&accessor, Op::Write, "ack", &body).is_err() {
            return;
        }
        *self.seen.entry(format!("said {level}")).or_default() += 1;
        let after = self.holdings().into_iter().find(|(name, _)| *name == instance).unwrap().1;
        if level != "NACK" {
            let holds = if expected.is_used(generation) { Some(generation) } else { holding.holds };
            assert_eq!(after.holds, holds, "{instance} said {level} of {generation} and should have {expected:?}");
            let taken = self.within(|_, cx| {
                let Some(id) = &rotation.open else { return Ok(None) };
                Ok(records::run(cx, id)?.unwrap().run.consumers.remove(&Instance(instance)).and_then(|consumer| consumer.acked))
            });
            let taken = taken.unwrap().map(|(acked, _)| acked);
            assert!(rotation.open.is_none() || !expected.is_used(generation) || taken == Some(generation), "its run took {taken:?}");
        }
    }

    /// What an instance says of what it was offered.
    fn words(&mut self, rotation: &Rotation, instance: &str, (generation, nonce): (Generation, &str), level: &str) -> Value {
        let key = self.within(|_, cx| {
            let value = ack::value_of(cx, rotation, generation)?;
            Ok(value.map(|value| records::need_value(cx, "p", value).unwrap().ack_key))
        });
        let key = key.unwrap().map_or_else(Vec::new, |key| crypto::encode::from_base64(&key).unwrap());
        let text = ack::message("p", instance, generation.0, level, nonce, "");
        let mac = crypto::encode::base64(&crypto::mac::sign(&crypto::mac::Key::new(&key), text.as_bytes()));
        json!({"rotation": "p", "instance": instance, "generation": generation, "level": level, "nonce": nonce, "mac": mac, "reason": ""})
    }

    /// Settles one of the duties that are due, like the runner.
    fn settle(&mut self) {
        let mut tx = self.store.begin().unwrap();
        let now = tx.now();
        let rows = tx.scan(&duty::all(), None, 1_000).unwrap();
        let due: Vec<Duty> = rows.iter().map(|row| serde_json::from_slice::<Duty>(row.value.expose()).unwrap()).collect();
        let due: Vec<Duty> = due.into_iter().filter(|duty| duty.due <= now).collect();
        let Some(owed) = self.pick(&due) else { return };
        let outcome = match owed.kind.as_str() {
            acts::ACT => {
                let act: drive::ActDuty = drive::payload(&owed).unwrap();
                self.seen.entry(act.id.phase.name().to_owned()).and_modify(|n| *n += 1).or_insert(1);
                match self.perform(act.act) {
                    Outcome::Unknown => engine::Outcome::Unknown { text: "lost".into() },
                    outcome => engine::Outcome::done(&outcome),
                }
            }
            rotations::ADOPT => engine::Outcome::done(&[true, true]),
            _ => engine::Outcome::done(&true),
        };
        duty::remove(&mut tx, &owed.id).unwrap();
        let (call, _) = self.call("nobody", Op::Write, "none", &json!({}));
        match self.lifecycle.settle(&mut Cx::new(&mut tx, &call, &self.house), &owed, &outcome) {
            Ok(_) => {}
            // It stays owed.
            Err(refusal) if refusal.kind.is_ours() => return,
            Err(_) => {
                tx.refuse();
                duty::remove(&mut tx, &owed.id).unwrap();
            }
        }
        self.commit(tx);
    }

    fn perform(&mut self, act: Act) -> Outcome {
        if self.chance(if self.calm { 1 } else { 6 }) {
            return Outcome::Refused(Code::Unreachable);
        }
        let lost = self.chance(if self.calm { 1 } else { 5 });
        if lost && self.chance(50) {
            return Outcome::Unknown;
        }
        let fact = match act {
            Act::Set { slot, value } => {
                self.slots.insert(slot, value);
                Fact::Applied
            }
            Act::Probe { slot, value } => Fact::Login(self.login(slot, value)),
            Act::WatchSessions { .. } => {
                let who = if self.chance(50) { "stranger".to_owned() } else { format!("i{}", self.dice.below(INSTANCES)) };
                let peers = if self.chance(90) { Vec::new() } else { vec![Peer { name: who, count: 1 }] };
                Fact::Sessions(Sessions { peers })
            }
            Act::Kill { slot } => {
                self.slots.remove(&slot);
                Fact::Killed { terminated: 0 }
            }
            Act::ProveDeath { slot, dead, alive_slot, alive } => {
                let (dead, alive) = (self.login(slot, dead), self.login(alive_slot, alive));
                Fact::Death(DeathProbe { dead, alive, sessions: Some(0) })
            }
            Act::Generate { .. } | Act::Publish { .. } => panic!("not an act of the target"),
        };
        if lost { Outcome::Unknown } else { Outcome::Done(fact) }
    }

    fn login(&self, slot: Slot, value: ValueId) -> Login {
        let mac = Mac(format!("{}", value.0));
        if self.slots.get(&slot) == Some(&value) { Login::Accepted { mac } } else { Login::WrongPassword { mac } }
    }
}

#[test]
fn each_instance_is_offered_what_its_run_wants_of_it() {
    let first = std::env::var("PROPTEST_RNG_SEED").map_or(1, |seed| seed.parse::<u64>().unwrap());
    let mut seen = BTreeMap::<String, u32>::new();
    for walk in 0..WALKS {
        let mut walk = Walk::new(first.wrapping_mul(WALKS).wrapping_add(walk));
        walk.write_rotation();
        for _ in 0..STEPS {
            walk.step();
        }
        for (what, n) in walk.seen {
            *seen.entry(what).or_default() += n;
        }
    }
    for what in ["drain", "prove", "rollback_prove", "undo", "did rotate/p", "did abort", "did resume", "did rotations/p", "said NACK"] {
        assert!(seen.get(what).is_some_and(|n| *n > 0), "`{what}` never came about: {seen:?}");
    }
}

/// Whoever was written off and spoke again under a new token was never looked at again: later runs waited for it for ever.
#[test]
fn a_new_token_of_one_that_was_written_off_is_looked_at() {
    let mut walk = Walk::new(2);
    walk.write_rotation();
    while walk.rotation().unwrap().in_force.is_none() {
        walk.settle();
        walk.clock.advance(Duration::from_millis(30));
    }
    let rotation = walk.rotation().unwrap();
    let generation = rotation.in_force.as_ref().unwrap().generation;
    walk.house.dead.lock().unwrap().insert("who0/0".into());
    walk.within(|_, cx| {
        let holding = Holding {
            principal: "who0".into(),
            accessor: "who0/0".into(),
            stream: None,
            lapsed: true,
            holds: None,
            level: None,
            offered: vec![(generation, "once".into())],
            refused: None,
            heard: cx.now(),
            proven: true,
        };
        records::put_holding(cx, "p", "i0", &holding)
    })
    .unwrap();
    let body = walk.words(&rotation, "i0", (generation, "once"), "L2");
    walk.ask("who0/1", Op::Write, "ack", &body).unwrap();
    let owed = walk.within(|_, cx| {
        let key = DutyKey { owner: cx.call.mount.id, key: "lapse/p/i0".into() };
        duty::find(cx.tx, &key)
    });
    assert!(owed.unwrap().is_some());
}

/// A target that was stored before targets had identities could never be written again, and nobody's slots were claimed at it.
#[test]
fn a_target_without_an_identity_gets_one() {
    let mut walk = Walk::new(1);
    walk.write_rotation();
    let check = |walk: &mut Walk, found: &str| {
        walk.within(|_, cx| {
            let (key, config) = (records::candidate_key(cx, "check"), TargetConfig { kind: "memory".into(), ..TargetConfig::default() });
            cx.tx.write(&key, &targets::Candidate { name: "main".into(), config, expected: None })?;
            let owner = cx.call.mount.clone();
            let payload = engine::answer::raw(&"check")?;
            let new = NewDuty { key: "check".into(), kind: targets::CHECK, due: cx.now(), act: true, lane: String::new(), payload };
            let id = cx.host.owe(cx.tx, &owner, new)?;
            let owed = duty::find(cx.tx, &id)?.unwrap();
            duty::remove(cx.tx, &id)?;
            targets::checked(cx, &owed, &engine::Outcome::done(&found)).map(drop)
        })
    };
    walk.within(|_, cx| {
        let key = records::target_key(cx, "main");
        let mut target: Target = cx.tx.read(&key)?.unwrap();
        for slot in ["app_a", "app_b"] {
            let key = records::slot_key(cx, &target, slot);
            cx.tx.delete(&key)?;
        }
        target.config.identity = None;
        Ok(cx.tx.write(&key, &target)?)
    })
    .unwrap();
    check(&mut walk, "it").unwrap();
    walk.within(|_, cx| {
        let target = targets::find(cx, "main")?;
        assert_eq!(target.config.identity.as_deref(), Some("it"));
        for slot in ["app_a", "app_b"] {
            let key = records::slot_key(cx, &target, slot);
            assert_eq!(cx.tx.read::<String>(&key)?.as_deref(), Some("p"));
        }
        Ok(())
    })
    .unwrap();
    let refused = check(&mut walk, "another").unwrap_err().errors.join("");
    assert!(refused.contains("rotation `p`") && refused.contains("`another`, not `it`"), "{refused}");
}

/// The record of a request that moved several runs named the last one only.
#[test]
fn every_run_that_was_moved_is_named() {
    let mut walk = Walk::new(1);
    walk.write_rotation();
    let rotation = walk.rotation().unwrap();
    walk.within(|_, cx| {
        cx.note("rotation", "p");
        records::put_rotation(cx, "q", &rotation)?;
        for id in ["r", "s", "r"] {
            let new = Version { generation: Generation(1), value: ValueId(1), slot: Slot(0), worked: None };
            let plan = Plan { id: RunId(id.into()), terms: rotations::defaults(), old: None, new, consumers: BTreeMap::new() };
            let name = if id == "r" { "p" } else { "q" };
            let mut record = RunRecord::new(name, &rotation, "me", "", Run::open(plan, cx.now()));
            drive::feed(cx, &mut record, Event::Left { instance: Instance("i".into()) })?;
        }
        assert_eq!((cx.facts["run"].as_str(), cx.facts["rotation"].as_str()), ("r, s", "p, q"));
        let phases: Vec<&str> = cx.facts["phase"].split(", ").collect();
        assert!(matches!(phases[..], [one, other] if one == other), "{phases:?}");
        Ok(())
    })
    .unwrap();
}

/// A run is stored in parts: nothing of it is lost, stale or there twice, however often it is stored within one transaction, and whatever
/// became of the transactions before.
#[test]
fn a_run_that_is_read_back_is_the_one_that_was_stored() {
    let mut walk = Walk::new(1);
    walk.write_rotation();
    let rotation = walk.rotation().unwrap();
    let now = walk.within(|_, cx| Ok(cx.now())).unwrap();
    let new = Version { generation: Generation(1), value: ValueId(1), slot: Slot(0), worked: None };
    let plan = Plan { id: RunId("r".into()), terms: rotations::defaults(), old: None, new, consumers: BTreeMap::new() };
    let mut kept = Run::open(plan, now);
    // As runs were stored before they had parts.
    kept.consumers.insert(Instance("whole".into()), Consumer::joined(None, now));
    kept.evidence.push(Evidence { at: now, phase: kept.phase, found: Found::Entered });
    walk.within(|_, cx| {
        let key = records::run_key(cx, "r");
        Ok(cx.tx.write(&key, &RunRecord::new("p", &rotation, "me", "", kept.clone()))?)
    })
    .unwrap();
    while kept.evidence.len() < EVIDENCE_MAX {
        let mut next = kept.clone();
        let done = walk.within(|walk, cx| {
            let mut record = records::run(cx, "r")?.unwrap();
            assert_eq!(record.run, kept);
            for _ in 0..=walk.dice.below(2) {
                for _ in 0..walk.dice.below(4) {
                    let consumer = Consumer::joined(Some(Generation(walk.dice.below(9))), now);
                    record.run.consumers.insert(Instance(format!("i{}", walk.dice.below(200))), consumer);
                }
                let room = EVIDENCE_MAX - record.run.evidence.len();
                for _ in 0..usize::try_from(walk.dice.below(30)).unwrap().min(room) {
                    let found = Found::Sessions { slot: Slot(0), count: u32::try_from(walk.dice.below(1_000)).unwrap() };
                    record.run.evidence.push(Evidence { at: now, phase: record.run.phase, found });
                }
                record.run.acts += 1;
                next.clone_from(&record.run);
                records::put_run(cx, &mut record)?;
                if walk.chance(50) {
                    record = records::run(cx, "r")?.unwrap();
                }
                assert_eq!(record.run, next);
            }
            // A conflict: none of it happened.
            if walk.chance(20) { Err(Refusal::missing()) } else { Ok(()) }
        });
        if done.is_ok() {
            kept = next;
        }
    }
}
