//! Wiring: a place to keep data becomes a kernel with its engines, and a listener that serves it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base::time::SystemClock;
use base::{Limits, Refusal, Rng, SecretString};
use crypto::rng::SystemRng;
use engine::TargetKind;
use kernel::{Config, Head, Kernel, Lifetimes, Place};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::http::{self, Serve};

/// The version that clients see: they choose features by it.
pub const VERSION: &str = "1.21.4";
/// Life of tokens and leases that ask for nothing, and the longest life by renewal: Vault's 768 hours.
const LIFETIME: Duration = Duration::from_secs(768 * 3_600);
/// How long a stopping server waits for acts that were begun: less than the connections have to drain.
const GRACE: Duration = Duration::from_secs(5);
/// Time between heartbeats of the access tree, which name the heads of both.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Opens a kernel with everything this binary knows.
///
/// # Errors
/// When the data cannot be used.
pub fn open(place: Place) -> Result<Arc<Kernel>, kernel::Error> {
    let rng: Arc<dyn Rng> = Arc::new(SystemRng::new());
    let kinds = targets::kinds(&rng);
    open_with(place, rng, kinds)
}

/// Opens a kernel that rotates at these kinds of targets.
///
/// # Errors
/// When the data cannot be used.
pub fn open_with(place: Place, rng: Arc<dyn Rng>, kinds: Vec<Arc<dyn TargetKind>>) -> Result<Arc<Kernel>, kernel::Error> {
    Kernel::open(Config {
        place,
        limits: Limits::default(),
        lifetimes: Lifetimes { default: LIFETIME, max: LIFETIME },
        version: VERSION.into(),
        cluster_name: "keyward".into(),
        heartbeat: HEARTBEAT,
        grace: GRACE,
        clock: Arc::new(SystemClock),
        engines: vec![Arc::new(engines::Kv), Arc::new(engines::AppRole), Arc::new(lifecycle::Lifecycle::new(kinds))],
        rng,
    })
}

/// Mounts kv version 2 at `secret/`, so that a server for trying has somewhere to put the first secret.
///
/// # Errors
/// When the kernel refuses it.
pub async fn mount_secret(kernel: &Arc<Kernel>, root_token: &SecretString) -> Result<(), kernel::Error> {
    let head = kernel::Head {
        method: "POST".into(),
        target: "/v1/sys/mounts/secret".into(),
        headers: vec![("x-vault-token".into(), root_token.expose().clone())],
        remote: SocketAddr::from(([127, 0, 0, 1], 0)),
    };
    let body = bytes::Bytes::from_static(br#"{"type":"kv","description":"key/value secret storage","options":{"version":"2"}}"#);
    match kernel.serve(head, Box::new(body)).await.status() {
        204 => Ok(()),
        status => Err(kernel::Error::First(format!("the first mount was answered with status {status}"))),
    }
}

/// Serves `kernel` on `listener` until `stop` becomes true.
pub async fn serve(kernel: Arc<Kernel>, listener: TcpListener, stop: watch::Receiver<bool>) {
    let closing = Arc::clone(&kernel);
    let mut stopped = stop.clone();
    // Streams end with a reason before connections are waited for.
    let shutdown = tokio::spawn(async move {
        if stopped.wait_for(|stop| *stop).await.is_ok() {
            closing.shutdown().await;
        }
    });
    http::run(listener, Arc::new(Door(kernel)), Arc::new(Limits::default()), stop).await;
    if let Err(error) = shutdown.await {
        tracing::error!(%error, "the shutdown did not end in order");
    }
}

/// The kernel as the HTTP room sees it.
struct Door(Arc<Kernel>);

impl Serve for Door {
    type Reply = audit::Released;

    async fn serve(self: &Arc<Self>, head: Head, body: http::Body) -> audit::Released {
        self.0.serve(head, Box::new(body)).await
    }

    async fn reject(self: &Arc<Self>, remote: SocketAddr, refusal: Refusal) -> audit::Released {
        self.0.reject(remote, refusal).await
    }
}
