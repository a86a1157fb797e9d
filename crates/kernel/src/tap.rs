//! Where commits are heard of: the change tree grows, the duty runner wakes, streams whose last look was touched look again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use store::{Applied, Key, Observer, Reads, Scope};
use tokio::sync::Notify;

use crate::Kernel;

/// Told by the store's committer of every commit, in order, after it is durable and before its waiters are.
#[derive(Default)]
pub(crate) struct Tap {
    kernel: OnceLock<Weak<Kernel>>,
    watches: Mutex<Watches>,
}

/// Who is to be woken by what.
#[derive(Default)]
struct Watches {
    next: u64,
    keys: BTreeMap<Key, BTreeMap<u64, Arc<Notify>>>,
    scans: BTreeMap<u64, Scans>,
}

/// The scans of one watch, each from its first key to below its second.
struct Scans {
    ranges: Vec<(Key, Key)>,
    wake: Arc<Notify>,
}

impl Watches {
    fn touched(&self, key: &Key) {
        self.keys.get(key).into_iter().flat_map(BTreeMap::values).for_each(|wake| wake.notify_one());
        let scans = self.scans.values().filter(|scans| scans.ranges.iter().any(|(low, high)| low <= key && key < high));
        scans.for_each(|scans| scans.wake.notify_one());
    }

    fn replace(&mut self, id: u64, wake: &Arc<Notify>, old: &Reads, new: &Reads) {
        for key in old.keys.difference(&new.keys) {
            if let Some(watchers) = self.keys.get_mut(key) {
                watchers.remove(&id);
                if watchers.is_empty() {
                    self.keys.remove(key);
                }
            }
        }
        for key in new.keys.difference(&old.keys) {
            self.keys.entry(key.clone()).or_default().insert(id, Arc::clone(wake));
        }
        if new.ranges.is_empty() {
            self.scans.remove(&id);
        } else {
            self.scans.insert(id, Scans { ranges: new.ranges.clone(), wake: Arc::clone(wake) });
        }
    }
}

impl Tap {
    /// From now on commits are passed on to the kernel.
    pub(crate) fn attach(&self, kernel: Weak<Kernel>) {
        // A second kernel cannot be attached: the first stays.
        let _first_wins = self.kernel.set(kernel);
    }

    /// The kernel that commits are passed on to.
    pub(crate) fn kernel(&self) -> Option<Arc<Kernel>> {
        self.kernel.get().and_then(Weak::upgrade)
    }

    /// A watch that looks at nothing yet.
    pub(crate) fn watch(self: &Arc<Self>) -> Watch {
        let mut watches = self.watches();
        watches.next = watches.next.wrapping_add(1);
        Watch { tap: Arc::clone(self), id: watches.next, reads: Reads::default(), wake: Arc::default() }
    }

    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears of commits that touch what was looked at last, and of no others.
pub(crate) struct Watch {
    tap: Arc<Tap>,
    id: u64,
    reads: Reads,
    wake: Arc<Notify>,
}

impl Watch {
    /// Watches what a transaction has looked at. What was not watched before may have changed since that look, so it is worth another: then
    /// the next [`Watch::changed`] returns at once.
    pub(crate) fn look(&mut self, reads: &Reads) {
        if self.reads == *reads {
            return;
        }
        self.tap.watches().replace(self.id, &self.wake, &self.reads, reads);
        let known = reads.keys.is_subset(&self.reads.keys) && reads.ranges.iter().all(|range| self.reads.ranges.contains(range));
        self.reads = reads.clone();
        if !known {
            self.wake.notify_one();
        }
    }

    /// Returns when something that was looked at may have changed.
    pub(crate) async fn changed(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.tap.watches().replace(self.id, &self.wake, &self.reads, &Reads::default());
    }
}

impl Observer for Tap {
    fn applied(&self, batch: &[Applied<'_>]) {
        let kernel = self.kernel();
        let watches = self.watches();
        let mut owed = false;
        for commit in batch {
            if let Some(kernel) = &kernel {
                kernel.shared.trail.observe_change(commit.seq, commit.leaf);
            }
            for key in commit.keys {
                owed |= key.scope() == Scope::KERNEL && key.table() == "due";
                watches.touched(key);
            }
        }
        if let (true, Some(kernel)) = (owed, kernel) {
            kernel.duties.wake();
        }
    }

    fn poisoned(&self, reason: &str) {
        tracing::error!(%reason, "the commit log failed: no change will be accepted until the server is started anew");
        if let Some(kernel) = self.kernel() {
            kernel.step_down();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use base::rng::SeededRng;
    use base::time::ManualClock;
    use proptest::prelude::*;
    use store::{IndexPlace, MemoryLog, Prefix, RootKey, Store, Tx};

    use super::*;

    /// Records that point somewhere, and records in a range.
    const POINTERS: u8 = 4;
    const ROWS: u8 = 6;
    /// Records that one look reads at most.
    const HOPS_MAX: usize = 5;

    #[derive(Clone, Debug)]
    enum Step {
        /// A commit of these writes, and removals.
        Commit(Vec<(u8, Option<u8>)>),
        /// The stream goes on: it begins a look, or ends the one it has begun.
        Stream,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let change = (0..POINTERS + ROWS, prop::option::weighted(0.8, any::<u8>()));
        let commit = prop::collection::vec(change, 1..4).prop_map(Step::Commit);
        prop::collection::vec(prop_oneof![commit, Just(Step::Stream)], 1..40)
    }

    fn key(n: u8) -> Key {
        let table = if n < POINTERS { "pointer" } else { "row" };
        Key::new(Scope::KERNEL, table, &[&n.to_string()])
    }

    /// What is there, as far as one look goes. Each record says what is read next, so the reads grow, shrink and come back.
    fn look(tx: &mut Tx) -> Vec<(String, u8)> {
        let (mut seen, mut next) = (Vec::new(), 0);
        for _ in 0..HOPS_MAX {
            let Some(found) = tx.get(&key(next % POINTERS)).unwrap() else { break };
            let value = found.expose().first().copied().unwrap_or(0);
            seen.push((next.to_string(), value));
            let (limit, rows) = (usize::from(value / 4 % 4), Prefix::new(Scope::KERNEL, "row", &[]));
            match value % 4 {
                0 => break,
                1 => seen.extend(tx.scan(&rows, None, limit).unwrap().into_iter().map(|row| (row.id, row.value.expose()[0]))),
                2 => seen.extend(tx.list(&rows, Some("5"), limit).unwrap().into_iter().map(|id| (id, 0))),
                _ => {}
            }
            next = value / 16;
        }
        seen
    }

    struct Bench {
        runtime: tokio::runtime::Runtime,
        store: Store,
        tap: Arc<Tap>,
    }

    impl Bench {
        fn new() -> Self {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (clock, rng, tap) = (Arc::new(ManualClock::new()), Arc::new(SeededRng::new(1)), Arc::new(Tap::default()));
            let log = MemoryLog::new(&*rng).unwrap();
            let store = Store::open(Box::new(log), IndexPlace::Memory, clock, rng, tap.clone()).unwrap();
            runtime.block_on(store.initialise(&RootKey::new(&[7; 32]).unwrap(), Box::new(|_| b"{}".to_vec()))).unwrap();
            Self { runtime, store, tap }
        }

        fn begin(&self) -> Tx {
            self.store.begin().unwrap()
        }

        fn commit(&self, changes: &[(u8, Option<u8>)]) {
            let mut tx = self.begin();
            for (n, value) in changes {
                match value {
                    Some(value) => tx.put(&key(*n), &[*value]).unwrap(),
                    None => tx.delete(&key(*n)).unwrap(),
                }
            }
            self.runtime.block_on(self.store.commit(tx, Box::new(|_| b"{}".to_vec()))).unwrap();
        }
    }

    fn is_woken(watch: &Watch) -> bool {
        std::pin::pin!(watch.changed()).poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    fn touches(reads: &Reads, changes: &[(u8, Option<u8>)]) -> bool {
        changes
            .iter()
            .map(|(n, _)| key(*n))
            .any(|key| reads.keys.contains(&key) || reads.ranges.iter().any(|(low, high)| *low <= key && key < *high))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The twin looks after every commit. Whenever the stream sleeps, it has seen what the twin sees, and nothing else wakes it. While
        /// it looks, it may be overtaken by commits.
        #[test]
        fn who_sleeps_has_missed_nothing(steps in steps()) {
            let bench = Bench::new();
            let mut watch = bench.tap.watch();
            let (mut begun, mut seen) = (Some(bench.begin()), Vec::new());
            for step in steps.into_iter().chain(std::iter::repeat_n(Step::Stream, 3)) {
                match (step, begun.take()) {
                    (Step::Commit(changes), looking) => {
                        bench.commit(&changes);
                        begun = looking;
                        if begun.is_none() {
                            let touched = touches(&watch.reads, &changes);
                            prop_assert_eq!(is_woken(&watch), touched, "{:?}", changes);
                            begun = touched.then(|| bench.begin());
                        }
                    }
                    (Step::Stream, Some(mut tx)) => {
                        seen = look(&mut tx);
                        watch.look(tx.reads());
                        begun = is_woken(&watch).then(|| bench.begin());
                    }
                    (Step::Stream, None) => {}
                }
                if begun.is_none() {
                    prop_assert_eq!(&seen, &look(&mut bench.begin()));
                }
            }
            prop_assert!(begun.is_none(), "it never comes to rest");
            drop(watch);
            let left = bench.tap.watches();
            prop_assert!(left.keys.is_empty() && left.scans.is_empty(), "it is still watched for");
        }
    }
}
