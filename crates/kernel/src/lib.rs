//! The kernel: one function serves a request; mounts, policies, tokens and duties are rows of the store.
//!
//! What a path means is left to the engines, what is recorded to `audit`, what is durable to `store`. Nothing here speaks HTTP beyond
//! the status of a reply, and nothing here knows an outside system.

mod duties;
mod entry;
mod head;
mod host;
mod identities;
mod mounts;
mod open;
mod policies;
mod reply;
mod serve;
mod streams;
mod sys;
mod tap;
mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{Clock, Limits, Refusal, Rng};
use engine::{AnyEngine, Meta};
use tokio_util::task::TaskTracker;

pub use head::{BodyFault, BodySource, Head};
pub use open::{Config, Error, Initialised, Place};
pub use tokens::{Lifetimes, REVOKED_AT_ONCE_MAX};

/// A running server, without its network.
pub struct Kernel {
    pub(crate) shared: Arc<Shared>,
    pub(crate) duties: duties::Duties,
    /// Whatever runs beside requests: its end is waited for at the shutdown.
    pub(crate) tasks: TaskTracker,
    pub(crate) grace: Duration,
    engines: BTreeMap<&'static str, Plug>,
}

/// An engine and what its routes say of themselves.
pub(crate) struct Plug {
    pub(crate) engine: Arc<dyn AnyEngine>,
    pub(crate) metas: Vec<&'static Meta>,
}

/// What the kernel and its own engines both hold.
pub(crate) struct Shared {
    pub(crate) store: store::Store,
    pub(crate) trail: audit::Trail,
    pub(crate) tap: Arc<tap::Tap>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) limits: Limits,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) policies: policies::Cache,
    pub(crate) version: String,
    pub(crate) cluster_name: String,
    pub(crate) boot: String,
    pub(crate) in_memory: bool,
    pub(crate) mountable: Vec<&'static str>,
    pub(crate) stopping: Arc<open::Stopping>,
    /// A log has failed: what cannot be recorded is not done, so this process can only end.
    pub(crate) failed: open::Stopping,
    /// Held by one at a time of those whose handlers met many conflicts.
    pub(crate) crowd: tokio::sync::Mutex<()>,
    /// Who holds how many streams.
    pub(crate) places: Arc<streams::Places>,
}

impl Shared {
    pub(crate) fn mountable(&self, kind: &str) -> bool {
        self.mountable.contains(&kind)
    }
}

impl Kernel {
    /// The type of each engine with what its routes say of themselves: the tables that requests are routed by.
    pub fn routes(&self) -> impl Iterator<Item = (&'static str, Vec<&'static Meta>)> {
        self.engines.iter().map(|(kind, plug)| (*kind, plug.metas.clone()))
    }

    pub(crate) fn engine(&self, kind: &str) -> Result<&Plug, Refusal> {
        self.engines
            .get(kind)
            .ok_or_else(|| Refusal::internal(format!("an engine of the type `{kind}` is mounted, but this server has none")))
    }

    /// A UUID for a request. Randomness that fails here stops the request later, where it matters: the id alone may be empty.
    pub(crate) fn request_id(&self) -> String {
        base::id::uuid(self.shared.rng.as_ref()).unwrap_or_default()
    }
}
