//! The store: opening, the state that all transactions share, and the thread that keeps the index up.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;

use base::{Clock, Rng, Seq, Timestamp};
use journal::{Turned, Writer};

use crate::commit::{Committer, Job, Reads, ended};
use crate::entry::{self, Entry, Found, Hash, Sealed};
use crate::index::Index;
use crate::keyring::{Keyring, cluster_of, keyring_key};
use crate::log::LogSink;
use crate::overlay::{Overlay, Resident};
use crate::{CommitError, Committed, Error, Fsck, IndexPlace, Key, LeafFn, Log, LogReader, Observer, RootKey, Ticket, Tx};

/// The sizes of a store.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The group commit's queue and batches.
    pub commits: journal::Limits,
    /// Entries that wait for the index before it is brought up. Every time costs it two syncs of its own.
    pub index_after_entries: usize,
    /// Bytes that wait for the index before it is brought up.
    pub index_after_bytes: usize,
    /// Bytes that may wait for the index. Above, commits are turned away.
    pub resident_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { commits: journal::Limits::default(), index_after_entries: 4096, index_after_bytes: 8 << 20, resident_bytes_max: 64 << 20 }
    }
}

/// A store. A clone is the same store; its threads end with the last clone.
#[derive(Clone)]
pub struct Store {
    writer: Writer<Job>,
    applier: Arc<Applier>,
    core: Arc<Core>,
}

impl Store {
    /// Opens the log and its index. What the index lacks is served from memory at once and folded in behind.
    pub fn open(
        log: Box<dyn Log>,
        index: IndexPlace,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, Error> {
        Self::open_with(log, index, clock, rng, observer, Options::default())
    }

    /// The same with chosen sizes.
    pub fn open_with(
        log: Box<dyn Log>,
        index: IndexPlace,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
        observer: Arc<dyn Observer>,
        options: Options,
    ) -> Result<Self, Error> {
        let index = Index::open(&index)?;
        let reader = log.reader();
        let head = Seq(log.next().0.saturating_sub(1));
        let (overlay, last) = catch_up(&index, &*reader, head, options)?;
        let (hash, epoch, time) = last.map_or(([0; 32], 0, Timestamp::ZERO), |last| (last.hash, last.epoch, last.time));
        let core = Arc::new(Core {
            clock,
            rng,
            observer,
            options,
            reader,
            index,
            overlay: RwLock::new(overlay),
            live: Mutex::new(Live { head, time, snapshots: BTreeMap::new() }),
            keyring: RwLock::new(None),
            poison: Mutex::new(None),
            apply: Mutex::new(false),
            wake: Condvar::new(),
        });
        let epoch = epoch.saturating_add(1);
        let committer = Committer::new(Arc::clone(&core), epoch, hash, time);
        let writer = journal::spawn("store-commit", LogSink { log, epoch }, committer, options.commits).map_err(Error::Thread)?;
        let applier = Arc::new(Applier::spawn(Arc::clone(&core)).map_err(Error::Thread)?);
        Ok(Self { writer, applier, core })
    }

    /// Makes the cluster id and the keyring, commits them as the first entry, and leaves the store unsealed.
    pub async fn initialise(&self, root: &RootKey, leaf: LeafFn) -> Result<Committed, Error> {
        if self.initialised() {
            return Err(Error::AlreadyInitialised);
        }
        let (keyring, record) = Keyring::create(root, &*self.core.rng)?;
        let mut reads = Reads::default();
        reads.keys.insert(keyring_key());
        let (job, ticket) = Job::new(Snapshot::of(&self.core), reads, vec![(keyring_key(), Some(record.into()))], leaf);
        self.enqueue(job).map_err(Error::Initialise)?;
        match ticket.await {
            Ok(committed) => {
                self.core.set_keyring(Some(keyring));
                Ok(committed)
            }
            Err(CommitError::Conflict) => Err(Error::AlreadyInitialised),
            Err(error) => Err(Error::Initialise(error)),
        }
    }

    /// Whether the log holds a keyring.
    #[must_use]
    pub fn initialised(&self) -> bool {
        matches!(self.core.keyring_record(), Ok(Some(_)))
    }

    /// The cluster's UUID, known as soon as the store is initialised, sealed or not.
    #[must_use]
    pub fn cluster_id(&self) -> Option<String> {
        cluster_of(&self.core.keyring_record().ok()??)
    }

    /// Opens the keyring.
    pub fn unseal(&self, root: &RootKey) -> Result<(), Error> {
        let record = self.core.keyring_record()?.ok_or(Error::NotInitialised)?;
        self.core.set_keyring(Some(Keyring::open(root, &record)?));
        Ok(())
    }

    /// Forgets the keyring. Transactions begun before keep theirs.
    pub fn seal(&self) {
        self.core.set_keyring(None);
    }

    /// Whether the keyring is closed.
    #[must_use]
    pub fn sealed(&self) -> bool {
        self.core.keyring().is_none()
    }

    /// A transaction on a snapshot of now.
    pub fn begin(&self) -> Result<Tx, Error> {
        let keyring = self.core.keyring().ok_or(Error::Sealed)?;
        let snapshot = Snapshot::of(&self.core);
        let now = self.core.clock.now().max(self.core.live().time);
        Ok(Tx::new(Arc::clone(&self.core), keyring, snapshot, now))
    }

    /// Commits; the answer comes after the sync. A transaction without writes may be committed too: its leaf counts.
    ///
    /// A refusal means that nothing was written, except [`CommitError::Poisoned`]: then the log has to be opened again to know.
    pub async fn commit(&self, tx: Tx, leaf: LeafFn) -> Result<Committed, CommitError> {
        self.submit(tx, leaf)?.await
    }

    /// Hands a transaction to the committer without waiting for the answer.
    pub fn submit(&self, tx: Tx, leaf: LeafFn) -> Result<Ticket, CommitError> {
        let (snapshot, reads, changes) = tx.into_parts();
        let (job, ticket) = Job::new(snapshot, reads, changes, leaf);
        self.enqueue(job)?;
        Ok(ticket)
    }

    /// The last durable and visible commit.
    #[must_use]
    pub fn head(&self) -> Seq {
        self.core.live().head
    }

    /// Why no commit will succeed any more, if so.
    #[must_use]
    pub fn poisoned(&self) -> Option<String> {
        self.core.poison.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Leaves in order, beginning with commit `from` (the first is 1), up to the head at the time of the call.
    pub fn leaves(&self, from: Seq) -> impl Iterator<Item = Result<(Seq, Vec<u8>), Error>> + Send + use<> {
        self.core.entries(from).map(|entry| entry.map(|(entry, _)| (entry.seq, entry.leaf)))
    }

    /// Compares the index with the fold of the log, checks the hash chain, and opens every value when unsealed.
    ///
    /// Reads everything and holds one copy of the sealed state while it does.
    pub fn fsck(&self) -> Result<Fsck, Error> {
        crate::fsck::run(&self.core)
    }

    /// Brings the index up to the oldest live snapshot now.
    pub fn flush_index(&self) -> Result<(), Error> {
        self.applier.catch_up(&self.core)
    }

    fn enqueue(&self, job: Job) -> Result<(), CommitError> {
        if self.core.overlay().bytes() > self.core.options.resident_bytes_max {
            return Err(CommitError::Overloaded);
        }
        self.writer.submit(job).map_err(|turned| match turned {
            Turned::Full(_) => CommitError::Overloaded,
            Turned::Stopped(_) => self.core.poison_error(),
        })
    }
}

/// What all transactions and threads of a store share.
pub(crate) struct Core {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) observer: Arc<dyn Observer>,
    options: Options,
    reader: Arc<dyn LogReader>,
    index: Index,
    overlay: RwLock<Overlay>,
    live: Mutex<Live>,
    keyring: RwLock<Option<Arc<Keyring>>>,
    poison: Mutex<Option<String>>,
    /// Whether the applier has to end.
    apply: Mutex<bool>,
    wake: Condvar,
}

/// What is visible, and to whom.
struct Live {
    head: Seq,
    /// The time of the last commit.
    time: Timestamp,
    /// How many live snapshots there are of each position.
    snapshots: BTreeMap<Seq, usize>,
}

impl Live {
    /// INVARIANT: every live snapshot, and every one to come, is at or behind this; the index never goes further.
    fn oldest(&self) -> Seq {
        self.snapshots.first_key_value().map_or(self.head, |(seq, _)| *seq)
    }
}

impl Core {
    /// The sealed value at a snapshot that is alive.
    pub(crate) fn get(&self, key: &Key, at: Seq) -> Result<Sealed, Error> {
        // The overlay first: what leaves it in the meantime is in the index before it does.
        let resident = self.overlay().get(key, at);
        match resident {
            Some(value) => Ok(value),
            None => self.index.get(key),
        }
    }

    /// Up to `limit` sealed records at a snapshot that is alive, seen through a transaction's own writes.
    pub(crate) fn range(&self, low: &Key, high: &Key, at: Seq, own: BTreeMap<Key, Sealed>, limit: usize) -> Result<Vec<Found>, Error> {
        // Held throughout, so that nothing leaves the overlay before the index is read.
        let overlay = self.overlay();
        let mut own = own.into_iter().peekable();
        let mut resident = overlay.range(low, high, at).peekable();
        let mut indexed = self.index.range(low, high)?.peekable();
        let mut rows = Vec::new();
        while rows.len() < limit {
            let index_key = match indexed.peek() {
                Some(Ok((key, _))) => Some(key),
                Some(Err(_)) => {
                    indexed.next().transpose()?;
                    continue;
                }
                None => None,
            };
            let keys = [own.peek().map(|row| &row.0), resident.peek().map(|row| &row.0), index_key];
            let Some(first) = keys.into_iter().flatten().min().cloned() else { break };
            // Each source hides those behind it.
            let index_row = indexed.next_if(|row| row.as_ref().is_ok_and(|row| row.0 == first)).transpose()?;
            let overlay_row = resident.next_if(|row| row.0 == first);
            let own_row = own.next_if(|row| row.0 == first);
            if let Some((key, Some(value))) = own_row.or(overlay_row).or(index_row) {
                rows.push((key, value));
            }
        }
        Ok(rows)
    }

    /// Decoded entries from `from` on, with the hash of each. The chain is not checked.
    pub(crate) fn entries(&self, from: Seq) -> impl Iterator<Item = Result<(Entry, Hash), Error>> + Send + use<> {
        self.reader.read_from(from).map(|record| decode(record?))
    }

    /// Makes a batch visible and wakes the applier when enough is waiting.
    pub(crate) fn publish(&self, batch: impl Iterator<Item = Resident>, head: Seq, time: Timestamp) {
        let waiting = {
            let mut overlay = self.overlay.write().unwrap_or_else(PoisonError::into_inner);
            batch.for_each(|entry| overlay.add(entry));
            self.is_due(&overlay)
        };
        let mut live = self.live();
        live.head = head;
        live.time = time;
        drop(live);
        if waiting {
            self.wake.notify_one();
        }
    }

    pub(crate) fn oldest_snapshot(&self) -> Seq {
        self.live().oldest()
    }

    pub(crate) fn keyring(&self) -> Option<Arc<Keyring>> {
        self.keyring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn poison(&self, reason: &str) {
        let mut poison = self.poison.lock().unwrap_or_else(PoisonError::into_inner);
        if poison.is_none() {
            *poison = Some(reason.to_owned());
            drop(poison);
            self.observer.poisoned(reason);
        }
    }

    pub(crate) fn poison_error(&self) -> CommitError {
        let poison = self.poison.lock().unwrap_or_else(PoisonError::into_inner);
        poison.as_ref().map_or_else(ended, |reason| CommitError::Poisoned { reason: reason.clone() })
    }

    fn keyring_record(self: &Arc<Self>) -> Result<Sealed, Error> {
        let snapshot = Snapshot::of(self);
        self.get(&keyring_key(), snapshot.seq())
    }

    fn set_keyring(&self, keyring: Option<Keyring>) {
        *self.keyring.write().unwrap_or_else(PoisonError::into_inner) = keyring.map(Arc::new);
    }

    fn overlay(&self) -> RwLockReadGuard<'_, Overlay> {
        self.overlay.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_due(&self, overlay: &Overlay) -> bool {
        overlay.len() >= self.options.index_after_entries || overlay.bytes() >= self.options.index_after_bytes
    }

    /// Moves one helping of entries from the overlay into the index; false when there was none to move.
    fn apply_some(&self) -> Result<bool, Error> {
        let entries = self.overlay().oldest(self.oldest_snapshot(), APPLY_BYTES);
        let Some(last) = entries.last() else { return Ok(false) };
        self.index.apply(&entries)?;
        self.overlay.write().unwrap_or_else(PoisonError::into_inner).forget(last.seq);
        Ok(true)
    }
}

/// Keeps a position readable for as long as it lives.
pub(crate) struct Snapshot {
    core: Arc<Core>,
    seq: Seq,
}

impl Snapshot {
    pub(crate) fn of(core: &Arc<Core>) -> Self {
        let mut live = core.live();
        let seq = live.head;
        *live.snapshots.entry(seq).or_default() += 1;
        drop(live);
        Self { core: Arc::clone(core), seq }
    }

    pub(crate) fn seq(&self) -> Seq {
        self.seq
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let mut live = self.core.live();
        if let Some(count) = live.snapshots.get_mut(&self.seq) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                live.snapshots.remove(&self.seq);
            }
        }
    }
}

/// The thread that brings the index up whenever enough is waiting, and once more at the end.
struct Applier {
    thread: Mutex<Option<JoinHandle<()>>>,
    core: Arc<Core>,
    /// One at a time.
    turn: Arc<Mutex<()>>,
}

impl Applier {
    fn spawn(core: Arc<Core>) -> std::io::Result<Self> {
        let turn = Arc::new(Mutex::new(()));
        let (its_core, its_turn) = (Arc::clone(&core), Arc::clone(&turn));
        let thread = std::thread::Builder::new().name("store-index".to_owned()).spawn(move || run(&its_core, &its_turn))?;
        Ok(Self { thread: Mutex::new(Some(thread)), core, turn })
    }

    fn catch_up(&self, core: &Core) -> Result<(), Error> {
        drain(core, &self.turn)
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        *self.core.apply.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.core.wake.notify_all();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // A panic was reported by the thread itself; the index catches up at the next opening.
            drop(thread.join());
        }
    }
}

fn run(core: &Core, turn: &Mutex<()>) {
    let mut ending = core.apply.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        while !*ending && !core.is_due(&core.overlay()) {
            ending = core.wake.wait(ending).unwrap_or_else(PoisonError::into_inner);
        }
        let last = *ending;
        drop(ending);
        if let Err(error) = drain(core, turn) {
            // The index is disposable, a store that can no longer bring it up is not healthy: it would fill the memory.
            let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            core.poison(&format!("{error}{cause}"));
            return;
        }
        if last {
            return;
        }
        ending = core.apply.lock().unwrap_or_else(PoisonError::into_inner);
        if !*ending && core.is_due(&core.overlay()) {
            // An old snapshot holds everything back; the next batch wakes us.
            ending = core.wake.wait(ending).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn drain(core: &Core, turn: &Mutex<()>) -> Result<(), Error> {
    let turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
    while core.apply_some()? {}
    drop(turn);
    Ok(())
}

/// What the last entry leaves for the next one.
struct Last {
    hash: Hash,
    epoch: u64,
    time: Timestamp,
}

/// Reads what the index lacks, and checks that both tell the same story.
fn catch_up(index: &Index, reader: &dyn LogReader, head: Seq, options: Options) -> Result<(Overlay, Option<Last>), Error> {
    let (applied, applied_hash) = index.applied()?;
    if applied > head {
        return Err(Error::IndexAhead { index: applied, log: head });
    }
    let mut overlay = Overlay::default();
    let mut last = None::<Last>;
    for record in reader.read_from(applied.max(Seq(1))) {
        let (entry, hash) = decode(record?)?;
        if entry.seq == applied {
            if hash != applied_hash {
                return Err(Error::IndexForeign);
            }
        } else {
            let expected = last.as_ref().map_or([0; 32], |last| last.hash);
            if entry.prev != expected {
                return Err(Error::Entry { seq: entry.seq, what: "it does not follow the entry before" });
            }
            overlay.add(Resident { seq: entry.seq, hash, changes: entry.changes.into() });
            if overlay.bytes() > options.resident_bytes_max {
                // A lost or very old index is rebuilt in helpings, not in memory.
                index.apply(&overlay.oldest(entry.seq, usize::MAX))?;
                overlay.forget(entry.seq);
            }
        }
        last = Some(Last { hash, epoch: entry.epoch, time: entry.time });
    }
    Ok((overlay, last))
}

fn decode((seq, bytes): (Seq, Vec<u8>)) -> Result<(Entry, Hash), Error> {
    let entry = entry::decode(&bytes).ok_or(Error::Entry { seq, what: "it cannot be read" })?;
    if entry.seq != seq {
        return Err(Error::Entry { seq, what: "it belongs elsewhere" });
    }
    Ok((entry, entry::hash(&bytes)))
}

/// How much goes into one transaction of the index.
const APPLY_BYTES: usize = 16 << 20;
