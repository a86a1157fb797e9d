//! The committer: validates, orders, appends, syncs once per batch, applies, tells, answers.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base::{Seq, Timestamp};
use journal::{Admitted, Durable, RECORD_BYTES_MAX, Stage};
use tokio::sync::oneshot;

use crate::entry::{self, CHANGES_BYTES_MAX, Entry, Hash, LEAF_BYTES_MAX, Sealed};
use crate::overlay::Resident;
use crate::store::{Core, Snapshot};
use crate::{CommitError, Key};

/// What the committer knows of a commit before it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Its position.
    pub seq: Seq,
    /// Its time.
    pub time: Timestamp,
    /// SHA-256 of its sealed changes.
    pub changes: [u8; 32],
}

/// Builds the leaf of a commit. Runs on the committer's thread, so it should do little.
pub type LeafFn = Box<dyn FnOnce(&Stamp) -> Vec<u8> + Send>;

/// A commit that is durable and visible.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Its position.
    pub seq: Seq,
    /// Its time.
    pub time: Timestamp,
    /// Proof of the sync.
    pub durable: Durable,
}

/// A commit as the observer sees it.
pub struct Applied<'a> {
    /// Its position.
    pub seq: Seq,
    /// Its time.
    pub time: Timestamp,
    /// Its leaf.
    pub leaf: &'a [u8],
    /// The keys it wrote or deleted.
    pub keys: &'a [Key],
}

/// Told of every batch by the committer: after the sync, in order, before the waiters are answered.
pub trait Observer: Send + Sync {
    /// These commits are durable and visible.
    fn applied(&self, batch: &[Applied<'_>]);
    /// The store failed: no commit will succeed any more. Told once.
    fn poisoned(&self, reason: &str) {
        let _ = reason;
    }
}

/// An observer that does not look.
pub struct NoObserver;

impl Observer for NoObserver {
    fn applied(&self, _: &[Applied<'_>]) {}
}

/// The answer to a submitted transaction, once there is one.
pub struct Ticket(oneshot::Receiver<Answer>);

type Answer = Result<Committed, CommitError>;

impl Ticket {
    /// Blocks until the answer is there. Not for async code: a ticket is a future as well.
    pub fn wait(self) -> Result<Committed, CommitError> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(ended()))
    }
}

impl Future for Ticket {
    type Output = Result<Committed, CommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(ended())))
    }
}

pub(crate) fn ended() -> CommitError {
    CommitError::Poisoned { reason: "the committer has ended".to_owned() }
}

/// What a transaction looked at: found or missing, one by one or in a scan.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Reads {
    /// The records.
    pub keys: BTreeSet<Key>,
    /// The scans, each from its first key to below its second.
    pub ranges: Vec<(Key, Key)>,
}

/// A transaction on its way to the log.
pub(crate) struct Job {
    pub(crate) snapshot: Snapshot,
    pub(crate) reads: Reads,
    pub(crate) changes: Vec<(Key, Sealed)>,
    pub(crate) leaf: LeafFn,
    pub(crate) answer: oneshot::Sender<Answer>,
}

impl Job {
    pub(crate) fn new(snapshot: Snapshot, reads: Reads, changes: Vec<(Key, Sealed)>, leaf: LeafFn) -> (Self, Ticket) {
        let (answer, ticket) = oneshot::channel();
        (Self { snapshot, reads, changes, leaf, answer }, Ticket(ticket))
    }
}

/// A transaction in the batch that is being synced.
pub(crate) struct Held {
    entry: Resident,
    time: Timestamp,
    leaf: Vec<u8>,
    keys: Vec<Key>,
    answer: oneshot::Sender<Answer>,
}

pub(crate) struct Committer {
    pub(crate) core: Arc<Core>,
    pub(crate) epoch: u64,
    /// The end of the chain, with what is in flight.
    pub(crate) hash: Hash,
    pub(crate) time: Timestamp,
    /// The last commit of each key that a live snapshot may not have seen, with what is in flight.
    pub(crate) recent: BTreeMap<Key, Seq>,
    /// The size of `recent` at which old keys are dropped from it.
    pub(crate) sweep_at: usize,
}

impl Committer {
    pub(crate) fn new(core: Arc<Core>, epoch: u64, hash: Hash, time: Timestamp) -> Self {
        Self { core, epoch, hash, time, recent: BTreeMap::new(), sweep_at: SWEEP_AT_LEAST }
    }

    /// Serializable means: what it read is what it would read now. A commit behind its snapshot that touched a key or range it looked
    /// at is a conflict, also when the range was empty (a phantom).
    fn validate(&self, snapshot: Seq, reads: &Reads) -> Result<(), CommitError> {
        let newer = |seq: &Seq| *seq > snapshot;
        let key = reads.keys.iter().any(|key| self.recent.get(key).is_some_and(newer));
        let mut ranges = reads.ranges.iter().filter(|(low, high)| low < high);
        if key || ranges.any(|(low, high)| self.recent.range(low..high).any(|(_, seq)| newer(seq))) {
            return Err(CommitError::Conflict);
        }
        Ok(())
    }

    fn order(&mut self, job: Job, seq: Seq) -> Result<(Vec<u8>, Held), (oneshot::Sender<Answer>, CommitError)> {
        let Job { snapshot, reads, changes, leaf, answer } = job;
        if let Err(error) = self.validate(snapshot.seq(), &reads) {
            return Err((answer, error));
        }
        let encoded = entry::encode_changes(&changes);
        if encoded.len() > CHANGES_BYTES_MAX {
            return Err((answer, CommitError::TooLarge { what: "transaction", bytes: encoded.len() }));
        }
        let time = self.core.clock.now().max(self.time);
        let leaf = leaf(&Stamp { seq, time, changes: crypto::hash::sha256(&encoded) });
        if leaf.len() > LEAF_BYTES_MAX {
            return Err((answer, CommitError::TooLarge { what: "record", bytes: leaf.len() }));
        }
        let entry = Entry { seq, epoch: self.epoch, time, prev: self.hash, base: snapshot.seq(), changes, leaf };
        let bytes = entry::encode(&entry, &encoded);
        debug_assert!(bytes.len() <= RECORD_BYTES_MAX, "the limits above keep an entry below a record's limit");
        let keys: Vec<_> = entry.changes.iter().map(|change| change.0.clone()).collect();
        self.recent.extend(keys.iter().map(|key| (key.clone(), seq)));
        self.hash = entry::hash(&bytes);
        self.time = time;
        let resident = Resident { seq, hash: self.hash, changes: entry.changes.into() };
        Ok((bytes, Held { entry: resident, time, leaf: entry.leaf, keys, answer }))
    }

    fn sweep(&mut self) {
        if self.recent.len() >= self.sweep_at {
            let oldest = self.core.oldest_snapshot();
            self.recent.retain(|_, seq| *seq > oldest);
            self.sweep_at = self.recent.len().saturating_mul(2).max(SWEEP_AT_LEAST);
        }
    }
}

impl Stage for Committer {
    type Job = Job;
    type Held = Held;

    fn admit(&mut self, job: Job, index: u64) -> Admitted<Held> {
        match self.order(job, Seq(index).next()) {
            Ok((bytes, held)) => Admitted::Record(bytes, held),
            Err((answer, error)) => {
                tell(answer, Err(error));
                Admitted::Answered
            }
        }
    }

    fn synced(&mut self, batch: Vec<(Held, Durable)>) {
        let Some((last, _)) = batch.last() else { return };
        self.core.publish(batch.iter().map(|(held, _)| held.entry.clone()), last.entry.seq, last.time);
        let applied: Vec<_> =
            batch.iter().map(|(held, _)| Applied { seq: held.entry.seq, time: held.time, leaf: &held.leaf, keys: &held.keys }).collect();
        self.core.observer.applied(&applied);
        for (held, durable) in batch {
            tell(held.answer, Ok(Committed { seq: held.entry.seq, time: held.time, durable }));
        }
        self.sweep();
    }

    fn poisoned(&mut self, batch: Vec<Held>, error: &journal::Error) {
        let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
        let reason = format!("{error}{cause}");
        self.core.poison(&reason);
        for held in batch {
            tell(held.answer, Err(CommitError::Poisoned { reason: reason.clone() }));
        }
    }

    fn refuse(&mut self, job: Job) {
        tell(job.answer, Err(self.core.poison_error()));
    }
}

/// Answers a waiter; one that has gone away wants no answer.
fn tell(answer: oneshot::Sender<Answer>, what: Answer) {
    drop(answer.send(what));
}

const SWEEP_AT_LEAST: usize = 4096;
