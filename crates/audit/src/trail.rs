//! The runtime of both trees.
//!
//! The access tree is fed by the committer of this node's access journal; the change tree by whoever watches the commit
//! log, in order, through [`Trail::observe_change`]. Both hold durable leaves only, so whatever is signed here covers
//! synced leaves only.

use crate::prelog::{EVENTS_MAX, Prelog};
use crate::record::access_leaf;
use crate::reply::Place;
use crate::{Error, Frame, Hasher, Keys, Kind, Poisoned, Record, Recorded, Released, Reply};
use base::{Clock, Rng, Seq, Timestamp};
use bytes::Bytes;
use journal::{Admitted, Durable, Journal, Limits, LogName, Reader, Stage, Writer};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tlog::export::TreeName;
use tlog::leaf::{Access, Head, Heads};
use tlog::{Hash, Signer, Tree, leaf_hash};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Records that may wait for the disk; further callers wait for their turn.
pub const WAITING_MAX: usize = 4096;
/// Leaves of the commit log that are read at once.
const LEAVES_AT_ONCE: usize = 1024;

/// Where the leaves of the commit log come from.
pub trait Leaves: Send + Sync {
    /// Up to `limit` durable leaves from index `from` (sequence `from + 1`) on; fewer at the end of the log.
    fn read(&self, from: u64, limit: usize) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>>;
}

/// Both trees, the access journal, and the exit that every answer takes.
pub struct Trail {
    pub(crate) shared: Arc<Shared>,
    writer: Writer<Job>,
    room: Arc<Semaphore>,
}

/// What the trail and its committer both see.
pub(crate) struct Shared {
    clock: Arc<dyn Clock>,
    pub(crate) boot: String,
    log: LogName,
    pub(crate) reader: Reader,
    state: RwLock<State>,
    /// Holds the queue while the keys are sealed, nothing while records go to the journal.
    gate: Mutex<Option<Prelog>>,
    poisoned: AtomicBool,
}

#[derive(Default)]
pub(crate) struct State {
    change: Tree,
    access: Tree,
    /// Observed leaves that do not follow the change tree yet, by index.
    ahead: BTreeMap<u64, Hash>,
    open: Option<Arc<Open>>,
    hasher: Hasher,
}

/// What exists only while the seal is open.
pub(crate) struct Open {
    pub(crate) keys: Arc<Keys>,
    change: String,
    access: String,
    pub(crate) leaves: Arc<dyn Leaves>,
    /// The newest signed checkpoint of each tree, with its size.
    pub(crate) signed: Mutex<BTreeMap<TreeName, (u64, String)>>,
}

/// A record on its way to the journal.
struct Job {
    record: Record,
    time: Timestamp,
    waiter: oneshot::Sender<Durable>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Trail {
    /// Starts with the access journal, before any key is known. Events are queued in memory until [`Trail::open`].
    pub fn start(journal: Journal, clock: Arc<dyn Clock>, rng: &dyn Rng) -> Result<Trail, Error> {
        let mut access = Tree::default();
        let mut last = None;
        for record in journal.read_from(0) {
            let (index, bytes) = record.map_err(Error::Journal)?;
            access.push(leaf_hash(&bytes));
            last = Some((index, bytes));
        }
        let last_time = match last {
            Some((index, bytes)) => Access::decode(&bytes).map_err(|source| Error::NotALeaf { index, source })?.time,
            None => 0,
        };
        let mut prelog = Prelog::default();
        prelog.push(Record::new(Kind::Boot, Hasher::default()), clock.now());
        let shared = Arc::new(Shared {
            clock,
            boot: base::id::uuid(rng)?,
            log: journal.name().clone(),
            reader: journal.reader(),
            state: RwLock::new(State { access, ..State::default() }),
            gate: Mutex::new(Some(prelog)),
            poisoned: AtomicBool::new(false),
        });
        let stage = Committer { shared: Arc::clone(&shared), n: 0, last: Timestamp(last_time) };
        // room for every waiting caller and for a full queue of early events beside them
        let limits = Limits { queue: WAITING_MAX + EVENTS_MAX + 16, ..Limits::default() };
        let writer = journal::spawn("audit", journal, stage, limits).map_err(Error::Thread)?;
        Ok(Trail { shared, writer, room: Arc::new(Semaphore::new(WAITING_MAX)) })
    }

    /// Opens with the keys: catches the change tree up, writes the early events first, then lets records through.
    ///
    /// `cluster` and `node` make the origins `<cluster>/change` and `<cluster>/access/<node>`.
    pub async fn open(&self, cluster: &str, node: &str, keys: Keys, leaves: Arc<dyn Leaves>) -> Result<(), Error> {
        let (change, access) = (format!("{cluster}/change"), format!("{cluster}/access/{node}"));
        tlog::note::check_name(&change)?;
        tlog::note::check_name(&access)?;
        let keys = Arc::new(keys);
        let hasher = Hasher::new(Arc::clone(&keys));
        let (shared, source) = (Arc::clone(&self.shared), Arc::clone(&leaves));
        let caught_up = tokio::task::spawn_blocking(move || shared.catch_up(&*source)).await;
        caught_up.unwrap_or_else(|panicked| Err(Error::Leaves(Box::new(panicked))))?;
        {
            let mut state = self.shared.write();
            state.hasher = hasher.clone();
            state.open = Some(Arc::new(Open { keys, change, access, leaves, signed: Mutex::default() }));
        }
        let opened = self.drain(hasher)?;
        if let Some(opened) = opened {
            opened.await.map_err(|_| Poisoned)?;
        }
        Ok(())
    }

    /// Forgets the keys. Later events are queued until the next [`Trail::open`]; records under way are still written.
    pub fn close(&self) {
        let mut gate = self.shared.gate();
        gate.get_or_insert_default();
        let mut state = self.shared.write();
        state.open = None;
        state.hasher = Hasher::default();
    }

    /// A fresh record. Values given to it are hashed at once.
    pub fn record(&self, kind: Kind) -> Record {
        Record::new(kind, self.shared.read().hasher.clone())
    }

    /// Puts a record into the access tree; returns when it is durable. Waits its turn when many are before it.
    pub async fn record_access(&self, record: Record) -> Result<Recorded, Poisoned> {
        let permit = Arc::clone(&self.room).acquire_owned().await.map_err(|_| Poisoned)?;
        let Some(durable) = self.submit(record, permit)? else { return Ok(Recorded(Place::Queued)) };
        durable.await.map(Recorded::from).map_err(|_| Poisoned)
    }

    /// Writes the heads of both trees into the access tree. Does nothing while sealed. The caller decides how often:
    /// what a heartbeat has named cannot be cut from the change tree, unless the heartbeat is cut too.
    pub async fn heartbeat(&self) -> Result<(), Poisoned> {
        let mut record = Record::new(Kind::Heartbeat, Hasher::default());
        {
            let state = self.shared.read();
            if state.open.is_none() {
                return Ok(());
            }
            let head = |tree: &Tree| Head { size: tree.size(), root: tree.root() };
            record.heads(Heads { change: head(&state.change), access: head(&state.access) });
            record.as_of(Seq(state.change.size()));
        }
        self.record_access(record).await.map(drop)
    }

    /// Says that the process ends in order.
    pub async fn shutdown(&self) -> Result<(), Poisoned> {
        self.record_access(self.record(Kind::Shutdown)).await.map(drop)
    }

    /// Feeds the change tree a durable leaf. Leaves that are known already are passed over; those that come early are
    /// kept until the ones between are read.
    pub fn observe_change(&self, seq: Seq, leaf: &[u8]) {
        let Some(index) = seq.0.checked_sub(1) else { return };
        let hash = leaf_hash(leaf);
        let mut state = self.shared.write();
        if index >= state.change.size() {
            state.ahead.insert(index, hash);
            state.settle();
        }
    }

    /// Releases an answer whose record is on file.
    pub fn release(&self, reply: Reply, recorded: impl Into<Recorded>) -> Released {
        Released::new(reply, self.entry(&recorded.into()), None)
    }

    /// Releases the head of a stream whose opening is on file; each frame is released for itself.
    pub fn release_stream(&self, head: Reply, recorded: impl Into<Recorded>, frames: mpsc::Receiver<Frame>) -> Released {
        Released::new(head, self.entry(&recorded.into()), Some(frames))
    }

    /// Releases a frame whose record is on file.
    pub fn release_frame(&self, bytes: impl Into<Bytes>, _on_file: impl Into<Recorded>) -> Frame {
        Frame::new(bytes.into())
    }

    /// The heartbeat line of a stream: time and the signed head of the access tree, for the receiver to pin. It carries no
    /// value, so it needs no record.
    pub fn pulse(&self) -> Result<Frame, Error> {
        let time = self.shared.clock.now().rfc3339();
        let line = serde_json::json!({"type": "heartbeat", "time": time, "checkpoint": self.checkpoint(TreeName::Access)?});
        Ok(Frame::new(Bytes::from(format!("{line}\n"))))
    }

    /// `<origin>/<index>` of what is on file; nothing for an event that is still queued.
    pub fn entry(&self, recorded: &Recorded) -> Option<String> {
        let Place::Durable(durable) = &recorded.0 else { return None };
        let state = self.shared.read();
        let open = state.open.as_ref()?;
        let origin = if *durable.log() == self.shared.log { &open.access } else { &open.change };
        Some(format!("{origin}/{}", durable.index()))
    }

    /// Whether the journal failed. Nothing is released any more but [`Released::unavailable`].
    pub fn poisoned(&self) -> bool {
        self.shared.poisoned.load(Ordering::Acquire)
    }

    /// The id of this run of the process.
    pub fn boot(&self) -> &str {
        &self.shared.boot
    }

    /// Hands a record to the journal, or queues it while sealed.
    fn submit(&self, record: Record, permit: OwnedSemaphorePermit) -> Result<Option<oneshot::Receiver<Durable>>, Poisoned> {
        let time = self.shared.clock.now();
        // under the gate, so that no record overtakes the early events
        let mut gate = self.shared.gate();
        match gate.as_mut() {
            Some(prelog) => {
                prelog.push(record, time);
                Ok(None)
            }
            None => self.send(record, time, Some(permit)).map(Some),
        }
    }

    /// Writes the early events, then a record that counts them, and opens the gate. Nothing to do when it is open.
    fn drain(&self, hasher: Hasher) -> Result<Option<oneshot::Receiver<Durable>>, Poisoned> {
        let mut gate = self.shared.gate();
        let Some(prelog) = gate.as_mut() else { return Ok(None) };
        let (events, dropped, chain) = prelog.drain();
        let mut opened = Record::new(Kind::Unsealed, hasher);
        opened.count("queued", events.len() as u64).count("dropped", dropped);
        opened.fact("chain", &chain.map_or_else(|| "broken".to_owned(), |chain| crypto::encode::hex(&chain)));
        for (record, time) in events {
            self.send(record, time, None)?;
        }
        let opened = self.send(opened, self.shared.clock.now(), None)?;
        *gate = None;
        Ok(Some(opened))
    }

    fn send(&self, record: Record, time: Timestamp, permit: Option<OwnedSemaphorePermit>) -> Result<oneshot::Receiver<Durable>, Poisoned> {
        let (waiter, durable) = oneshot::channel();
        self.writer.submit(Job { record, time, waiter, permit }).map_err(|_| Poisoned)?;
        Ok(durable)
    }
}

impl Shared {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn gate(&self) -> MutexGuard<'_, Option<Prelog>> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the leaves that the change tree lacks. No lock is held while reading: the commit log's own committer may be
    /// waiting in [`Trail::observe_change`].
    fn catch_up(&self, leaves: &dyn Leaves) -> Result<(), Error> {
        loop {
            let from = self.read().change.size();
            let batch = leaves.read(from, LEAVES_AT_ONCE).map_err(Error::Leaves)?;
            if batch.is_empty() {
                return Ok(());
            }
            let hashes: Vec<Hash> = batch.iter().map(|leaf| leaf_hash(leaf)).collect();
            let mut state = self.write();
            for (index, hash) in (from..).zip(hashes) {
                if index >= state.change.size() {
                    state.ahead.insert(index, hash);
                }
            }
            state.settle();
        }
    }

    /// The change tree without holes, or why not.
    pub(crate) fn settled(&self, open: &Open) -> Result<(), Error> {
        if self.read().ahead.is_empty() {
            return Ok(());
        }
        self.catch_up(&*open.leaves)?;
        let state = self.read();
        if state.ahead.is_empty() { Ok(()) } else { Err(Error::Gap(state.change.size() + 1)) }
    }

    pub(crate) fn opened(&self) -> Result<Arc<Open>, Error> {
        self.read().open.clone().ok_or(Error::Sealed)
    }
}

impl State {
    pub(crate) fn tree(&self, name: TreeName) -> &Tree {
        match name {
            TreeName::Change => &self.change,
            TreeName::Access => &self.access,
        }
    }

    /// Moves what follows without a hole into the tree.
    fn settle(&mut self) {
        while let Some(first) = self.ahead.first_entry() {
            if *first.key() > self.change.size() {
                return;
            }
            let (index, hash) = first.remove_entry();
            if index == self.change.size() {
                self.change.push(hash);
            }
        }
    }
}

impl Open {
    pub(crate) fn origin(&self, tree: TreeName) -> &str {
        match tree {
            TreeName::Change => &self.change,
            TreeName::Access => &self.access,
        }
    }

    pub(crate) fn signer(&self, tree: TreeName) -> Result<Signer<'_>, Error> {
        Ok(Signer::new(self.origin(tree), &self.keys.signer)?)
    }
}

/// The committer's side: numbers records, gives them a time that never goes back, and integrates what was synced.
struct Committer {
    shared: Arc<Shared>,
    n: u64,
    last: Timestamp,
}

/// What is kept of a record until it is durable.
struct Held {
    hash: Hash,
    waiter: oneshot::Sender<Durable>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Stage for Committer {
    type Job = Job;
    type Held = Held;

    fn admit(&mut self, job: Job, _index: u64) -> Admitted<Held> {
        self.last = self.last.max(job.time);
        let as_of = job.record.as_of_or(self.shared.read().change.size());
        let leaf = access_leaf(&job.record, as_of, &self.shared.boot, self.n, self.last);
        self.n += 1;
        let held = Held { hash: leaf_hash(&leaf), waiter: job.waiter, _permit: job.permit };
        Admitted::Record(leaf, held)
    }

    fn synced(&mut self, batch: Vec<(Held, Durable)>) {
        {
            let mut state = self.shared.write();
            for (held, _) in &batch {
                state.access.push(held.hash);
            }
        }
        for (held, durable) in batch {
            if held.waiter.send(durable).is_err() {
                // the caller is gone; the leaf stands for an answer that nobody received
            }
        }
    }

    fn poisoned(&mut self, batch: Vec<Held>, _error: &journal::Error) {
        self.shared.poisoned.store(true, Ordering::Release);
        // dropping the waiters tells every caller
        drop(batch);
    }

    fn refuse(&mut self, job: Job) {
        drop(job);
    }
}
