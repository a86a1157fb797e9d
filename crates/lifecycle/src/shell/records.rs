//! What is stored, and where.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::{CanonPath, Refusal, Timestamp};
use engine::{Cx, Key, Prefix, TargetConfig};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::core::{Consumer, EVIDENCE_MAX, Evidence, Generation, Instance, Level, Run, Slot, Terms, ValueId, Version, Wanted};

/// A target, checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Target {
    pub(super) config: TargetConfig,
    pub(super) checked: Timestamp,
}

/// What a rotation says, and where it stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Rotation {
    /// The secret, as clients read it.
    pub(super) path: CanonPath,
    pub(super) target: String,
    /// The role that owns what both slots make.
    pub(super) owner: String,
    /// The two login roles.
    pub(super) slots: [String; 2],
    /// Time between runs; zero for rotation on request only.
    pub(super) period: Duration,
    /// How long a consumer without a stream counts as only gone for a moment.
    pub(super) holding_ttl: Duration,
    pub(super) terms: Terms,
    /// The slot of the first run: one that was made for the rotation, so that a role which somebody uses today keeps its password.
    #[serde(default = "first_slot")]
    pub(super) first_slot: Slot,
    /// The version in force.
    pub(super) in_force: Option<Version>,
    /// The kv version that was published for a generation, the newest.
    pub(super) published: Option<(Generation, u64)>,
    /// The highest generation ever spoken for.
    pub(super) generation_max: Generation,
    pub(super) value_max: ValueId,
    /// The run that is open.
    pub(super) open: Option<String>,
    /// Whether the target has what the rotation needs; false until then.
    pub(super) adopted: bool,
}

pub(super) fn first_slot() -> Slot {
    Slot(0)
}

impl Rotation {
    /// The role that a slot is.
    pub(super) fn slot(&self, slot: Slot) -> &str {
        role(&self.slots, slot)
    }
}

fn role([first, second]: &[String; 2], slot: Slot) -> &str {
    if slot.0 == 0 { first } else { second }
}

/// A secret value. Pending ones live only here; the kv engine gets one when `current` moves to it.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Value {
    pub(super) username: String,
    pub(super) password: String,
    /// The key that acknowledgements are made with, in base64.
    pub(super) ack_key: String,
    /// The keyed hash that says that two values are the same.
    pub(super) mac: String,
}

/// A run, with what the core does not need to know.
///
/// It is stored as a head under its own name and parts beside it: its consumers by hash, its evidence in order. What one consumer says then
/// writes the head and a part or two, not a record as long as the fleet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RunRecord {
    #[serde(alias = "policy")]
    pub(super) rotation: String,
    /// What the rotation rotated when the run began; it may be gone later.
    #[serde(default)]
    pub(super) path: Option<CanonPath>,
    #[serde(default)]
    pub(super) target: String,
    #[serde(default)]
    pub(super) slots: [String; 2],
    /// `first`, `period`, or the caller who asked.
    pub(super) opened_by: String,
    pub(super) reason: String,
    pub(super) run: Run,
    #[serde(skip)]
    stored: Stored,
}

/// What the parts of a run hold.
#[derive(Clone, Debug, Default)]
struct Stored {
    consumers: BTreeMap<Instance, Consumer>,
    /// Entries of evidence; it only ever grows.
    evidence: usize,
}

/// Parts over which the consumers of a run are spread.
const CONSUMER_PARTS: u8 = 64;
/// Entries in one part of the evidence.
const EVIDENCE_PART: usize = 64;

impl RunRecord {
    /// A run that is not stored yet, of the rotation of this name.
    pub(super) fn new(name: &str, rotation: &Rotation, opened_by: &str, reason: &str, run: Run) -> Self {
        let Rotation { path, target, slots, .. } = rotation.clone();
        let (rotation, opened_by, reason) = (name.to_owned(), opened_by.to_owned(), reason.to_owned());
        Self { rotation, path: Some(path), target, slots, opened_by, reason, run, stored: Stored::default() }
    }

    /// The role that a slot is.
    pub(super) fn slot(&self, slot: Slot) -> &str {
        role(&self.slots, slot)
    }
}

/// One running copy of a consumer, as far as one rotation goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Holding {
    pub(super) principal: String,
    pub(super) accessor: String,
    /// The id of its open stream.
    pub(super) stream: Option<String>,
    /// Gone without a goodbye.
    pub(super) lapsed: bool,
    /// The generation it holds, by its own statement or its proof.
    pub(super) holds: Option<Generation>,
    /// The proven level of that generation; nothing for a mere statement.
    pub(super) level: Option<Level>,
    /// What it was offered last, with the nonces: for use and as a standby.
    pub(super) offered: Vec<(Generation, String)>,
    pub(super) refused: Option<(Generation, String)>,
    pub(super) heard: Timestamp,
    /// It acknowledged some generation of this rotation once. Of holdings of before nothing is known, so they count.
    #[serde(default = "proven")]
    pub(super) proven: bool,
}

fn proven() -> bool {
    true
}

/// What an open run wants of one instance, once that is something else than what was in force before it. A row of its own, so that a
/// stream need not look at the run, which changes for everybody.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) run: String,
    pub(super) wanted: Wanted,
}

pub(super) fn target_key(cx: &Cx<'_>, name: &str) -> Key {
    Key::new(cx.call.mount.scope(), "target", &[name])
}

pub(super) fn candidate_key(cx: &Cx<'_>, duty: &str) -> Key {
    Key::new(cx.call.mount.scope(), "candidate", &[duty])
}

pub(super) fn rotation_key(cx: &Cx<'_>, name: &str) -> Key {
    Key::new(cx.call.mount.scope(), ROTATIONS, &[name])
}

/// The table of rotations. It keeps the name that it had when rotations were called policies: data of before opens.
pub(super) const ROTATIONS: &str = "policy";

/// The highest generation of a rotation that was deleted.
pub(super) fn generation_key(cx: &Cx<'_>, rotation: &str) -> Key {
    Key::new(cx.call.mount.scope(), "generation", &[rotation])
}

/// Finds the rotation that a slot belongs to: one open run for each principal, by whatever name its system is written.
pub(super) fn slot_key(cx: &Cx<'_>, target: &Target, slot: &str) -> Key {
    let TargetConfig { kind, identity, .. } = &target.config;
    Key::new(cx.call.mount.scope(), "slot", &[kind, identity.as_deref().unwrap_or_default(), slot])
}

pub(super) fn value_key(cx: &Cx<'_>, rotation: &str, value: ValueId) -> Key {
    Key::new(cx.call.mount.scope(), "value", &[rotation, &format!("{:016x}", value.0)])
}

pub(super) fn run_key(cx: &Cx<'_>, id: &str) -> Key {
    Key::new(cx.call.mount.scope(), "run", &[id])
}

/// Lists runs, the newest first.
pub(super) fn run_order_key(cx: &Cx<'_>, opened: Timestamp, id: &str) -> Key {
    Key::new(cx.call.mount.scope(), "run-order", &[&format!("{:016x}", u64::MAX - opened.0), id])
}

pub(super) fn holding_key(cx: &Cx<'_>, rotation: &str, instance: &str) -> Key {
    Key::new(cx.call.mount.scope(), "holding", &[rotation, instance])
}

pub(super) fn offer_key(cx: &Cx<'_>, rotation: &str, instance: &str) -> Key {
    Key::new(cx.call.mount.scope(), "offer", &[rotation, instance])
}

pub(super) fn table(cx: &Cx<'_>, table: &'static str, id: &[&str]) -> Prefix {
    Prefix::new(cx.call.mount.scope(), table, id)
}

/// All records of a table with their last identifier.
pub(super) fn all<T: DeserializeOwned>(cx: &mut Cx<'_>, prefix: &Prefix, limit: usize) -> Result<Vec<(String, T)>, Refusal> {
    cx.tx
        .scan(prefix, None, limit)?
        .into_iter()
        .map(|row| match serde_json::from_slice(row.value.expose()) {
            Ok(record) => Ok((row.id, record)),
            Err(_) => Err(Refusal::internal(format!("the record `{}` of a lifecycle table could not be read", row.id))),
        })
        .collect()
}

pub(super) fn rotation(cx: &mut Cx<'_>, name: &str) -> Result<Option<Rotation>, Refusal> {
    let key = rotation_key(cx, name);
    Ok(cx.tx.read(&key)?)
}

pub(super) fn need_rotation(cx: &mut Cx<'_>, name: &str) -> Result<Rotation, Refusal> {
    rotation(cx, name)?
        .filter(|rotation| rotation.adopted)
        .ok_or_else(|| Refusal::missing_because(format!("no rotation is named `{name}`")))
}

pub(super) fn put_rotation(cx: &mut Cx<'_>, name: &str, rotation: &Rotation) -> Result<(), Refusal> {
    let key = rotation_key(cx, name);
    Ok(cx.tx.write(&key, rotation)?)
}

/// The run without its consumers and its evidence: enough to say which act it waits for, and how it stands once it is closed.
pub(super) fn run_head(cx: &mut Cx<'_>, id: &str) -> Result<Option<RunRecord>, Refusal> {
    let key = run_key(cx, id);
    Ok(cx.tx.read(&key)?)
}

pub(super) fn run(cx: &mut Cx<'_>, id: &str) -> Result<Option<RunRecord>, Refusal> {
    let Some(mut record) = run_head(cx, id)? else { return Ok(None) };
    // A run that was stored whole holds in its head what the parts do not: the next time it is stored, they will.
    let prefix = table(cx, "run-consumers", &[id]);
    for (_, part) in all::<BTreeMap<Instance, Consumer>>(cx, &prefix, usize::from(CONSUMER_PARTS))? {
        record.stored.consumers.extend(part);
    }
    record.run.consumers.extend(record.stored.consumers.clone());
    let prefix = table(cx, "run-evidence", &[id]);
    for (_, part) in all::<Vec<Evidence>>(cx, &prefix, EVIDENCE_MAX.div_ceil(EVIDENCE_PART))? {
        record.stored.evidence = record.stored.evidence.saturating_add(part.len());
        record.run.evidence.extend(part);
    }
    Ok(Some(record))
}

/// Stores the head, and of the parts those that have changed.
pub(super) fn put_run(cx: &mut Cx<'_>, record: &mut RunRecord) -> Result<(), Refusal> {
    let (scope, id) = (cx.call.mount.scope(), record.run.id.0.clone());
    let (consumers, evidence) = (std::mem::take(&mut record.run.consumers), std::mem::take(&mut record.run.evidence));
    let key = run_key(cx, &id);
    cx.tx.write(&key, record)?;
    for (part, consumers) in changed_consumers(&record.stored.consumers, &consumers) {
        cx.tx.write(&Key::new(scope, "run-consumers", &[&id, &format!("{part:02x}")]), &consumers)?;
    }
    for (part, entries) in added_evidence(record.stored.evidence, &evidence) {
        cx.tx.write(&Key::new(scope, "run-evidence", &[&id, &format!("{part:08x}")]), &entries)?;
    }
    record.stored = Stored { consumers: consumers.clone(), evidence: evidence.len() };
    (record.run.consumers, record.run.evidence) = (consumers, evidence);
    Ok(())
}

/// The parts, whole, that hold a consumer which is not what is stored.
fn changed_consumers<'r>(
    stored: &BTreeMap<Instance, Consumer>,
    now: &'r BTreeMap<Instance, Consumer>,
) -> BTreeMap<u8, BTreeMap<&'r Instance, &'r Consumer>> {
    let mut parts: BTreeMap<u8, BTreeMap<&Instance, &Consumer>> = BTreeMap::new();
    let mut changed = BTreeSet::new();
    for (instance, consumer) in now {
        let [hash, ..] = crypto::hash::sha256(instance.0.as_bytes());
        let part = hash % CONSUMER_PARTS;
        parts.entry(part).or_default().insert(instance, consumer);
        if stored.get(instance) != Some(consumer) {
            changed.insert(part);
        }
    }
    parts.retain(|part, _| changed.contains(part));
    parts
}

/// The parts from the one on that the last stored entry is in, or that would be next, if there is something to add.
fn added_evidence(stored: usize, now: &[Evidence]) -> impl Iterator<Item = (usize, &[Evidence])> {
    let parts = if now.len() > stored { now.chunks(EVIDENCE_PART) } else { [].chunks(EVIDENCE_PART) };
    parts.enumerate().skip(stored / EVIDENCE_PART)
}

pub(super) fn value(cx: &mut Cx<'_>, rotation: &str, id: ValueId) -> Result<Option<Value>, Refusal> {
    let key = value_key(cx, rotation, id);
    Ok(cx.tx.read(&key)?)
}

pub(super) fn need_value(cx: &mut Cx<'_>, rotation: &str, id: ValueId) -> Result<Value, Refusal> {
    value(cx, rotation, id)?.ok_or_else(|| Refusal::internal(format!("value {} of rotation `{rotation}` is missing", id.0)))
}

pub(super) fn holding(cx: &mut Cx<'_>, rotation: &str, instance: &str) -> Result<Option<Holding>, Refusal> {
    let key = holding_key(cx, rotation, instance);
    Ok(cx.tx.read(&key)?)
}

pub(super) fn put_holding(cx: &mut Cx<'_>, rotation: &str, instance: &str, holding: &Holding) -> Result<(), Refusal> {
    let key = holding_key(cx, rotation, instance);
    Ok(cx.tx.write(&key, holding)?)
}

/// Rows of one table that are looked at: targets, rotations, and the holdings and offers of one rotation.
pub(super) const ROWS_MAX: usize = 100_000;

pub(super) fn holdings_of(cx: &mut Cx<'_>, rotation: &str) -> Result<Vec<(String, Holding)>, Refusal> {
    let prefix = table(cx, "holding", &[rotation]);
    all(cx, &prefix, ROWS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Found, Phase};

    #[test]
    fn what_one_consumer_says_writes_one_part() {
        let joined = |n: u64| (Instance(format!("i{n}")), Consumer::joined(Some(Generation(1)), Timestamp(n)));
        let stored: BTreeMap<_, _> = (0..500).map(joined).collect();
        let whole: Vec<_> = changed_consumers(&BTreeMap::new(), &stored).into_values().collect();
        assert!(whole.len() <= usize::from(CONSUMER_PARTS));
        let together: BTreeMap<_, _> = whole.into_iter().flatten().map(|(i, c)| (i.clone(), c.clone())).collect();
        assert_eq!(together, stored, "nobody is lost");
        assert!(changed_consumers(&stored, &stored).is_empty());
        let mut now = stored.clone();
        let one = Instance("i77".into());
        now.get_mut(&one).unwrap().acked = Some((Generation(3), Level::L2));
        let changed = changed_consumers(&stored, &now);
        assert_eq!(changed.len(), 1);
        let part = changed.values().next().unwrap();
        assert!(part[&one].acked.is_some() && part.len() > 1, "with those beside it");
        now.insert(Instance("new".into()), Consumer::joined(None, Timestamp(1)));
        assert!(changed_consumers(&stored, &now).values().any(|part| part.contains_key(&Instance("new".into()))));
    }

    #[test]
    fn evidence_is_added_at_its_end() {
        let entry = |n: u64| Evidence { at: Timestamp(n), phase: Phase::Drain, found: Found::Entered };
        let all: Vec<_> = (0..130).map(entry).collect();
        let parts = |stored: usize, now: usize| added_evidence(stored, &all[..now]).map(|(n, part)| (n, part.len())).collect::<Vec<_>>();
        assert_eq!(parts(0, 0), []);
        assert_eq!(parts(0, 130), [(0, 64), (1, 64), (2, 2)]);
        assert_eq!(parts(63, 64), [(0, 64)]);
        assert_eq!(parts(64, 65), [(1, 1)]);
        assert_eq!(parts(65, 65), []);
        assert_eq!(parts(100, 101), [(1, 37)]);
    }
}
