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
        let kernel = self.kernel.get().and_then(Weak::upgrade);
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
        if let Some(kernel) = self.kernel.get().and_then(Weak::upgrade) {
            kernel.step_down();
        }
    }
}
