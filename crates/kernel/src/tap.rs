//! Where commits are heard of: the change tree grows, the duty runner wakes, streams look again.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError, Weak};

use base::{MountId, Seq};
use store::{Applied, Observer, Scope};
use tokio::sync::watch;

use crate::Kernel;

/// Told by the store's committer of every commit, in order, after it is durable and before its waiters are.
#[derive(Default)]
pub(crate) struct Tap {
    kernel: OnceLock<Weak<Kernel>>,
    listeners: Mutex<BTreeMap<MountId, watch::Sender<Seq>>>,
}

impl Tap {
    /// From now on commits are passed on to the kernel.
    pub(crate) fn attach(&self, kernel: Weak<Kernel>) {
        // A second kernel cannot be attached: the first stays.
        let _first_wins = self.kernel.set(kernel);
    }

    /// Hears of commits that touch a mount.
    pub(crate) fn subscribe(&self, mount: MountId) -> watch::Receiver<Seq> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.entry(mount).or_insert_with(|| watch::channel(Seq(0)).0).subscribe()
    }
}

impl Observer for Tap {
    fn applied(&self, batch: &[Applied<'_>]) {
        let kernel = self.kernel.get().and_then(Weak::upgrade);
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let mut owed = false;
        for commit in batch {
            if let Some(kernel) = &kernel {
                kernel.shared.trail.observe_change(commit.seq, commit.leaf);
            }
            for key in commit.keys {
                let scope = key.scope();
                owed |= scope == Scope::KERNEL && key.table() == "due";
                if let Some(listener) = listeners.get(&scope.mount) {
                    listener.send_replace(commit.seq);
                }
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
