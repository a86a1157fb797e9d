//! Opening: the disk, the store, the seal, the audit trail, the runner.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use base::{CanonPath, Clock, Limits, MountId, Refusal, Rng, SecretBytes, SecretString, Seq};
use engine::AnyEngine;
use journal::{Disk, Journal, LogName, MemoryDisk, Options, RealDisk};
use policy::PolicyName;
use serde::{Deserialize, Serialize};
use store::{FileLog, IndexPlace, Key, RootKey, Scope, Store};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::duties::{self, Duties};
use crate::mounts::{self, Record};
use crate::sys::System;
use crate::sys::token::Tokens;
use crate::tap::Tap;
use crate::tokens::{self, Lifetimes, Token};
use crate::{Kernel, Plug, Shared, identities, policies};

/// Where the data is.
#[derive(Clone)]
pub enum Place {
    /// Nowhere: gone with the process.
    Memory,
    /// In this directory.
    Directory(PathBuf),
    /// On this disk, with an index that is rebuilt at each start: how a test or a measurement stands between server and medium.
    Disk(Arc<dyn Disk>),
}

/// What a kernel is opened with.
pub struct Config {
    /// Where the data is.
    pub place: Place,
    /// The limits of requests.
    pub limits: Limits,
    /// The limits of tokens.
    pub lifetimes: Lifetimes,
    /// The version that clients see.
    pub version: String,
    /// The name that clients see.
    pub cluster_name: String,
    /// The time between two heartbeats of the access tree.
    pub heartbeat: Duration,
    /// How long a shutdown waits for acts that were begun.
    pub grace: Duration,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// The randomness for secrets.
    pub rng: Arc<dyn Rng>,
    /// The engines besides the kernel's own.
    pub engines: Vec<Arc<dyn AnyEngine>>,
}

/// Why a kernel did not open.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory could not be used.
    #[error("the data directory could not be used")]
    Disk(#[from] journal::Error),
    /// The store could not be opened.
    #[error("the store could not be opened")]
    Store(#[from] store::Error),
    /// The audit trail could not be opened.
    #[error("the audit trail could not be opened")]
    Audit(#[from] audit::Error),
    /// No randomness.
    #[error(transparent)]
    Rng(#[from] base::RngFault),
    /// The first records could not be made.
    #[error("the first records could not be made: {0}")]
    First(String),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::First(refusal.log.unwrap_or_else(|| refusal.errors.join("; ")))
    }
}

/// What initialising made. Shown once.
pub struct Initialised {
    /// The key that opens the keyring: whoever has it and the data can read everything.
    pub root_key: SecretBytes,
    /// The first token, with the root policy.
    pub root_token: SecretString,
}

/// Tells every task that the server stops.
#[derive(Default)]
pub(crate) struct Stopping {
    stopped: std::sync::atomic::AtomicBool,
    notify: Notify,
}

impl Stopping {
    pub(crate) fn stop(&self) {
        self.stopped.store(true, std::sync::atomic::Ordering::Release);
        self.notify.notify_waiters();
    }

    /// Returns when the server stops.
    pub(crate) async fn wait(&self) {
        let notified = self.notify.notified();
        if !self.stopped.load(std::sync::atomic::Ordering::Acquire) {
            notified.await;
        }
    }
}

/// The keys of the audit trail, as they are stored, sealed.
#[derive(Serialize, Deserialize)]
struct AuditKeys {
    hmac: String,
    signer: String,
}

fn audit_keys() -> Key {
    Key::new(Scope::KERNEL, "audit", &["keys"])
}

impl Kernel {
    /// Opens what is in `config.place`, sealed.
    ///
    /// # Errors
    /// When the data cannot be used: by another process, damaged, or not ours.
    pub fn open(config: Config) -> Result<Arc<Self>, Error> {
        let (disk, index): (Arc<dyn Disk>, _) = match &config.place {
            Place::Memory => (Arc::new(MemoryDisk::new()), IndexPlace::Memory),
            Place::Directory(dir) => (Arc::new(RealDisk::open(dir)?), IndexPlace::File(dir.join("index.redb"))),
            Place::Disk(disk) => (Arc::clone(disk), IndexPlace::Memory),
        };
        let changes = FileLog::on(Arc::clone(&disk), config.rng.as_ref())?;
        let tap = Arc::new(Tap::default());
        let observer: Arc<dyn store::Observer> = tap.clone();
        let store = Store::open(Box::new(changes), index, Arc::clone(&config.clock), Arc::clone(&config.rng), observer)?;
        let mut incarnation = [0; 8];
        config.rng.fill(&mut incarnation)?;
        let options = Options::new(LogName::new("access")?, u64::from_be_bytes(incarnation));
        let access = Journal::open(disk, options)?;
        let trail = audit::Trail::start(access, Arc::clone(&config.clock), config.rng.as_ref())?;
        let shared = Arc::new(Shared {
            boot: trail.boot().to_owned(),
            store,
            trail,
            tap: Arc::clone(&tap),
            clock: config.clock,
            rng: config.rng,
            limits: config.limits,
            lifetimes: config.lifetimes,
            policies: policies::Cache::default(),
            version: config.version,
            cluster_name: config.cluster_name,
            in_memory: matches!(config.place, Place::Memory),
            mountable: config.engines.iter().map(|e| e.kind()).filter(|kind| *kind != "lifecycle").collect(),
            stopping: Arc::default(),
            failed: Stopping::default(),
            crowd: tokio::sync::Mutex::default(),
            places: Arc::default(),
        });
        let own: [Arc<dyn AnyEngine>; 2] = [Arc::new(System(Arc::clone(&shared))), Arc::new(Tokens(Arc::clone(&shared)))];
        let engines = own.into_iter().chain(config.engines).map(|e| (e.kind(), Plug { metas: e.metas(), engine: e })).collect();
        let (duties, tasks) = (Duties::default(), TaskTracker::new());
        let kernel = Arc::new(Self { shared, duties, tasks, grace: config.grace, engines });
        tap.attach(Arc::downgrade(&kernel));
        kernel.tasks.spawn(heartbeats(Arc::downgrade(&kernel), Arc::clone(&kernel.shared.stopping), config.heartbeat));
        Ok(kernel)
    }

    /// Whether there is a keyring.
    #[must_use]
    pub fn initialised(&self) -> bool {
        self.shared.store.initialised()
    }

    /// Makes the keyring, the system's mounts, the default policy and the first token, and goes on unsealed.
    ///
    /// # Errors
    /// When it was done before, or the store fails.
    pub async fn initialise(self: &Arc<Self>, root_token: Option<SecretString>) -> Result<Initialised, Error> {
        let rng = self.shared.rng.as_ref();
        let root_key = RootKey::generate(rng)?;
        let record = self.shared.trail.record(audit::Kind::System);
        let leaf: store::LeafFn = Box::new(move |s| audit::change_leaf(&record, s.seq, s.time, &s.changes));
        self.shared.store.initialise(&RootKey::new(root_key.expose())?, leaf).await?;
        let root_token = match root_token {
            Some(token) => token,
            None => tokens::fresh(rng)?,
        };
        let mut tx = self.shared.store.begin()?;
        let seed = || crypto::aead::Key::generate(rng).map(|bytes| crypto::encode::hex(bytes.expose()));
        tx.write(&audit_keys(), &AuditKeys { hmac: seed()?, signer: seed()? })?;
        policies::put(&mut tx, &PolicyName::default_policy(), policy::DEFAULT_TEXT)?;
        for (path, kind) in [("sys", "system"), ("auth/token", "token"), ("sys/lifecycle", "lifecycle")] {
            if self.engines.contains_key(kind) {
                let path = CanonPath::from_plain(path).map_err(|e| Error::First(e.to_string()))?;
                mounts::insert(&mut tx, rng, &path, fixed(kind))?;
            }
        }
        let now = tx.now();
        let token = Token {
            accessor: base::id::base62(rng, 24)?,
            parent: None,
            parent_accessor: String::new(),
            principal: "root".into(),
            display_name: "root".into(),
            policies: vec!["root".into()],
            meta: std::collections::BTreeMap::new(),
            path: "auth/token/root".into(),
            created: now,
            creation_ttl: Duration::ZERO,
            expires: None,
            expires_at_most: None,
            explicit_max_ttl: Duration::ZERO,
            period: Duration::ZERO,
            renewable: false,
            uses: None,
            renewed: None,
            mount: None,
            epoch: 0,
            made_by: Vec::new(),
        };
        tokens::insert(&mut tx, &root_token, &token)?;
        identities::indexed(&mut tx)?;
        let mut record = self.shared.trail.record(audit::Kind::System);
        record.fact("act", "initialise");
        let leaf: store::LeafFn = Box::new(move |s| audit::change_leaf(&record, s.seq, s.time, &s.changes));
        self.shared.store.commit(tx, leaf).await.map_err(|e| Error::First(e.to_string()))?;
        self.begin().await?;
        Ok(Initialised { root_key, root_token })
    }

    /// Opens the seal with the root key and begins to serve.
    ///
    /// # Errors
    /// When it is the wrong key.
    pub async fn unseal(self: &Arc<Self>, root_key: &SecretBytes) -> Result<(), Error> {
        self.shared.store.unseal(&RootKey::new(root_key.expose())?)?;
        self.begin().await
    }

    async fn begin(self: &Arc<Self>) -> Result<(), Error> {
        let mut tx = self.shared.store.begin()?;
        let stored: AuditKeys = tx.read(&audit_keys())?.ok_or_else(|| Error::First("the keys of the audit trail are missing".into()))?;
        let bytes =
            |hex: &str| crypto::encode::from_hex(hex).ok_or_else(|| Error::First("the keys of the audit trail could not be read".into()));
        let signer = crypto::sign::SigningKey::from_seed(&bytes(&stored.signer)?);
        let keys = audit::Keys {
            hmac: crypto::mac::Key::new(&bytes(&stored.hmac)?),
            signer: signer.ok_or_else(|| Error::First("the signing key has the wrong length".into()))?,
        };
        let cluster = self.shared.store.cluster_id().unwrap_or_default();
        self.shared.trail.open(&cluster, "1", keys, Arc::new(Leaves(self.shared.store.clone()))).await?;
        self.index_tokens().await?;
        self.tasks.spawn(duties::run(Arc::clone(self)));
        Ok(())
    }

    /// Data of before has tokens that are not found by their principals: see to it that they are.
    async fn index_tokens(&self) -> Result<(), Error> {
        let mut tx = self.shared.store.begin()?;
        identities::owe_index(&mut tx)?;
        if tx.is_read_only() {
            return Ok(());
        }
        let mut record = self.shared.trail.record(audit::Kind::System);
        record.fact("act", identities::INDEX);
        let leaf: store::LeafFn = Box::new(move |s| audit::change_leaf(&record, s.seq, s.time, &s.changes));
        self.shared.store.commit(tx, leaf).await.map(drop).map_err(|e| Error::First(e.to_string()))
    }

    /// Returns when a log has failed. Nothing is answered any more; the process should end, and be started anew to see what is on the disk.
    pub async fn failed(&self) {
        self.shared.failed.wait().await;
    }

    /// A log has failed: no act whose outcome could not be kept, and no stream that says that all is well.
    pub(crate) fn step_down(&self) {
        self.duties.stop();
        self.shared.stopping.stop();
        self.shared.failed.stop();
    }

    /// Stops admitting duties, answers those who wait for one that was not begun, closes streams with a reason, lets the acts that were
    /// begun come to their end for at most [`Config::grace`], and records the end. What could not be awaited is settled as unknown by the
    /// next process.
    pub async fn shutdown(&self) {
        self.duties.stop();
        self.shared.stopping.stop();
        self.tasks.close();
        if tokio::time::timeout(self.grace, self.tasks.wait()).await.is_err() {
            tracing::warn!(tasks = self.tasks.len(), "some acts did not end in time: their outcome will be looked up after the next start");
        }
        if let Err(poisoned) = self.shared.trail.shutdown().await {
            tracing::error!(reason = %poisoned, "the end of the process could not be recorded");
        }
    }
}

/// Records the heads of both trees at every interval, for as long as the kernel lives.
async fn heartbeats(kernel: Weak<Kernel>, stopping: Arc<Stopping>, interval: Duration) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = stopping.wait() => return,
        }
        let Some(kernel) = kernel.upgrade() else { return };
        if let Err(poisoned) = kernel.shared.trail.heartbeat().await {
            tracing::error!(reason = %poisoned, "no heartbeat could be recorded");
            kernel.step_down();
            return;
        }
    }
}

fn fixed(kind: &str) -> Record {
    Record {
        id: MountId(0),
        kind: kind.into(),
        accessor: String::new(),
        uuid: String::new(),
        description: match kind {
            "system" => "system endpoints used for control, policy and debugging".into(),
            "token" => "token based credentials".into(),
            _ => String::new(),
        },
        options: std::collections::BTreeMap::new(),
        default_lease_ttl: Duration::ZERO,
        max_lease_ttl: Duration::ZERO,
        fixed: true,
    }
}

/// The leaves of the change tree, read back from the log.
struct Leaves(Store);

impl audit::Leaves for Leaves {
    fn read(&self, from: u64, limit: usize) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
        let leaves = self.0.leaves(Seq(from.saturating_add(1))).take(limit);
        leaves.map(|leaf| leaf.map(|(_, bytes)| bytes).map_err(Into::into)).collect()
    }
}
