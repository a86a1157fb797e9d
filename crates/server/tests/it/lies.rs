//! Targets that lie or are not there: nothing is taken for a death but a death.

use std::sync::Arc;

use base::{Refusal, Rng, SecretString};
use crypto::rng::SystemRng;
use demo::cluster::Mode;
use engine::{BoxFuture, Fault, Field, Login, RotationTarget, Session, TargetConfig, TargetKind};
use kernel::Place;
use serde_json::{Value, json};
use server::wiring;

use crate::rig::{ROOT, Server};
use crate::rotation::{cluster, login, prepare};

/// PostgreSQL, but revoking does nothing and says that it did.
struct Lazy(Arc<dyn TargetKind>);
struct LazyTarget(Arc<dyn RotationTarget>);

impl TargetKind for Lazy {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn fields(&self) -> &'static [Field] {
        self.0.fields()
    }

    fn read(&self, body: &engine::Body) -> Result<TargetConfig, Refusal> {
        self.0.read(body)
    }

    fn open(&self, config: &TargetConfig) -> Result<Arc<dyn RotationTarget>, Refusal> {
        Ok(Arc::new(LazyTarget(self.0.open(config)?)))
    }
}

impl RotationTarget for LazyTarget {
    fn check(&self) -> BoxFuture<'_, Result<String, Fault>> {
        self.0.check()
    }

    fn adopt<'a>(&'a self, owner: &'a str, slots: &'a [String; 2]) -> BoxFuture<'a, Result<[bool; 2], Fault>> {
        self.0.adopt(owner, slots)
    }

    fn set<'a>(&'a self, owner: &'a str, slot: &'a str, password: &'a SecretString) -> BoxFuture<'a, Result<(), Fault>> {
        self.0.set(owner, slot, password)
    }

    fn probe<'a>(&'a self, slot: &'a str, password: &'a SecretString) -> BoxFuture<'a, Result<Login, Fault>> {
        self.0.probe(slot, password)
    }

    fn sessions<'a>(&'a self, slot: &'a str) -> BoxFuture<'a, Result<Vec<Session>, Fault>> {
        self.0.sessions(slot)
    }

    fn kill<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<u64, Fault>> {
        Box::pin(async { Ok(0) })
    }
}

async fn rotate(server: &Server) -> String {
    let (status, body) = server.call("POST", "sys/lifecycle/rotate/orders-db", ROOT, json!({})).await;
    assert_eq!(status, 200, "{body}");
    format!("sys/lifecycle/runs/{}", body["data"]["run"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoke_that_does_nothing_fails_the_proof() {
    let (cluster, _root) = cluster().await;
    let rng: Arc<dyn Rng> = Arc::new(SystemRng::new());
    let kinds = targets::kinds(&rng).into_iter().map(|kind| Arc::new(Lazy(kind)) as Arc<dyn TargetKind>).collect();
    let server = Server::with(wiring::open_with(Place::Memory, rng, kinds).unwrap()).await;
    prepare(&server, &cluster).await;
    let (status, body) = server.call("POST", "sys/lifecycle/rotations/orders-db", ROOT, json!({"attempts": 3})).await;
    assert_eq!(status, 204, "{body}");
    let run = rotate(&server).await;
    let parked = server.until(&run, |r| !r["data"]["parked"].is_null()).await;
    assert!(parked["data"]["parked"].as_str().unwrap().contains("still works"), "{parked:#}");
    assert_eq!((parked["data"]["verdict"].clone(), parked["data"]["death_proven"].as_bool()), (Value::Null, Some(false)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_down_is_not_a_death() {
    let (mut cluster, _root) = cluster().await;
    let server = Server::start().await;
    prepare(&server, &cluster).await;
    let (_, one) = server.call("GET", "secret/data/orders/db", ROOT, Value::Null).await;
    let one = one["data"]["data"].clone();
    let session = login(&cluster, &one).await.unwrap();
    let run = rotate(&server).await;
    server.until(&run, |r| r["data"]["phase"] == "drain").await;
    // With PostgreSQL gone no old session is left, and the old password is refused: neither is a proof.
    let mut cluster = tokio::task::spawn_blocking(move || {
        cluster.stop(Mode::Fast).unwrap();
        cluster
    })
    .await
    .unwrap();
    drop(session);
    assert!(login(&cluster, &one).await.is_err());
    let troubled = server.until(&run, |r| !r["data"]["trouble"].is_null()).await;
    assert_eq!(troubled["data"]["verdict"], Value::Null, "{troubled:#}");
    // It looks again and again, and finds nothing that would be one.
    let still = server.until(&run, |r| r["data"]["attempts"].as_u64() >= Some(3)).await;
    assert_eq!((still["data"]["verdict"].clone(), still["data"]["death_proven"].as_bool()), (Value::Null, Some(false)), "{still:#}");
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.start().unwrap();
        cluster
    })
    .await
    .unwrap();
    let closed = server.until(&run, |r| r["data"]["phase"] == "closed").await;
    assert_eq!((closed["data"]["verdict"].as_str(), closed["data"]["death_proven"].as_bool()), (Some("rotated"), Some(true)), "{closed:#}");
    assert_eq!(login(&cluster, &one).await.map(drop), Err("28P01".into()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_under_trust_is_refused() {
    let (mut cluster, _root) = cluster().await;
    let server = Server::start().await;
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.hba(&["local all all trust", "host all all 127.0.0.1/32 trust"]).unwrap();
        cluster
    })
    .await
    .unwrap();
    let target = json!({
        "kind": "postgres", "address": format!("{}:{}", cluster.host(), cluster.port()),
        "admin_username": "keyward", "admin_password": "CANARY-password",
    });
    let (status, body) = server.call("POST", "sys/lifecycle/targets/main", ROOT, target).await;
    let text = body["errors"][0].as_str().unwrap_or_default();
    assert!(status == 400 && text.contains("trust"), "{status} {body}");
    assert!(!body.to_string().contains("CANARY"), "{body}");
    assert_eq!(server.call("GET", "sys/lifecycle/targets/main", ROOT, Value::Null).await.0, 404);
    server.stop().await;
}
