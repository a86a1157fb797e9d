//! A kernel with the rotation machine, and consumers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base::time::SystemClock;
use base::{Limits, SecretBytes, SecretString};
use bytes::Bytes;
use crypto::encode::{base64, from_base64};
use crypto::mac;
use kernel::{Config, Head, Kernel, Lifetimes, Place};
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use crate::target::World;

pub const ROOT: &str = "root-token";
/// Longer than anything takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Rig {
    pub kernel: Arc<Kernel>,
    pub world: World,
    pub key: SecretBytes,
}

pub fn kernel(place: Place, world: &World) -> Arc<Kernel> {
    kernel_with(place, lifecycle::Lifecycle::new([Arc::new(world.clone()) as Arc<dyn engine::TargetKind>]))
}

pub fn kernel_with(place: Place, lifecycle: lifecycle::Lifecycle) -> Arc<Kernel> {
    Kernel::open(Config {
        place,
        limits: Limits::default(),
        lifetimes: Lifetimes { default: Duration::from_secs(3_600), max: Duration::from_secs(7_200) },
        version: "1.21.4".into(),
        cluster_name: "test".into(),
        heartbeat: Duration::from_secs(3_600),
        grace: Duration::from_secs(8),
        clock: Arc::new(SystemClock),
        rng: Arc::new(crypto::rng::SystemRng::new()),
        engines: vec![Arc::new(engines::Kv), Arc::new(lifecycle)],
    })
    .unwrap()
}

impl Rig {
    /// A kernel with a target and nothing rotated yet.
    pub async fn bare() -> Self {
        Self::at(Place::Memory).await
    }

    pub async fn at(place: Place) -> Self {
        let world = World::default();
        let kernel = kernel(place, &world);
        let made = kernel.initialise(Some(SecretString::new(ROOT.into()))).await.unwrap();
        let rig = Self { kernel, world, key: made.root_key };
        rig.ok("POST", "sys/mounts/secret", json!({"type": "kv-v2"})).await;
        rig.ok("POST", "sys/lifecycle/targets/main", json!({"kind": "memory", "address": "here", "admin_password": "ADMIN"})).await;
        rig
    }

    /// A kernel with a rotation whose first run has closed.
    pub async fn new(terms: Value) -> Self {
        let rig = Self::bare().await;
        rig.rotation(terms).await;
        rig
    }

    pub async fn rotation(&self, terms: Value) {
        let made = self.ok("POST", "sys/lifecycle/rotations/p", rotation(terms)).await;
        let run = made["data"]["run"].as_str().unwrap().to_owned();
        let closed = self.run_until(&run, |run| run["state"] == "closed").await;
        assert_eq!((&closed["verdict"], &closed["death_proven"]), (&json!("first"), &json!(false)), "{closed:#}");
    }

    /// The kernel of a later process over the same directory.
    pub async fn again(dir: &Path, world: World, key: SecretBytes) -> Self {
        let kernel = kernel(Place::Directory(dir.to_owned()), &world);
        kernel.unseal(&key).await.unwrap();
        Self { kernel, world, key }
    }

    pub async fn call(&self, method: &str, path: &str, token: &str, body: Value) -> (u16, Value) {
        let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(&body).unwrap() };
        let released = self.kernel.serve(head(method, path, token), Box::new(Bytes::from(bytes))).await;
        let (status, _, body) = released.into_parts();
        match body {
            audit::Body::Bytes(bytes) => (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)),
            audit::Body::Frames(_) => panic!("a stream"),
        }
    }

    pub async fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.call(method, path, ROOT, body).await;
        assert!(status == 200 || status == 204, "{method} {path}: {status} {answer}");
        answer
    }

    pub async fn rotate(&self) -> String {
        self.ok("POST", "sys/lifecycle/rotate/p", json!({"reason": "test"})).await["data"]["run"].as_str().unwrap().to_owned()
    }

    pub async fn run(&self, run: &str) -> Value {
        self.ok("GET", &format!("sys/lifecycle/runs/{run}"), Value::Null).await["data"].clone()
    }

    /// Looks at a run until it is as wanted.
    pub async fn run_until(&self, run: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let looking = async {
            loop {
                last = self.run(run).await;
                if wanted(&last) {
                    return last.clone();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(run) => run,
            Err(_) => panic!("the run stayed at {last:#}"),
        }
    }

    /// The secret as plain clients read it: username, password, version.
    pub async fn secret(&self) -> (String, String, u64) {
        let data = self.ok("GET", "secret/data/app", Value::Null).await["data"].clone();
        let text = |field: &str| data["data"][field].as_str().unwrap().to_owned();
        (text("username"), text("password"), data["metadata"]["version"].as_u64().unwrap())
    }

    /// A token that may read the secret, and nothing else besides what every token may.
    pub async fn token(&self) -> String {
        let policy = r#"path "secret/data/app" { capabilities = ["read"] }"#;
        self.ok("PUT", "sys/policies/acl/reader", json!({"policy": policy})).await;
        let made = self.ok("POST", "auth/token/create", json!({"policies": ["reader"]})).await;
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    pub async fn join(&self, instance: &str) -> Consumer {
        let token = self.token().await;
        self.join_as(instance, &token, "p").await.unwrap()
    }

    pub async fn join_as(&self, instance: &str, token: &str, hold: &str) -> Result<Consumer, (u16, Value)> {
        let path = format!("sys/lifecycle/watch?instance={instance}&hold={hold}");
        let released = self.kernel.serve(head("GET", &path, token), Box::new(Bytes::new())).await;
        let (status, _, body) = released.into_parts();
        let frames = match body {
            audit::Body::Frames(frames) => frames,
            audit::Body::Bytes(bytes) => return Err((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))),
        };
        let mut consumer =
            Consumer { kernel: Arc::clone(&self.kernel), instance: instance.to_owned(), token: token.to_owned(), frames: Some(frames) };
        assert_eq!(consumer.line().await.unwrap()["type"], "hello");
        Ok(consumer)
    }
}

/// A rotation body with quick terms, changed by `terms`.
pub fn rotation(terms: Value) -> Value {
    let mut body = json!({
        "path": "secret/data/app", "target": "main", "owner": "app", "slots": ["app_a", "app_b"],
        "soak": "20ms", "quiet_period": "60ms", "session_poll": "20ms", "soft_deadline": "200ms", "hard_deadline": "10m",
        "backoff": "20ms", "backoff_max": "100ms", "holding_ttl": "300ms",
    });
    for (name, value) in terms.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn head(method: &str, path: &str, token: &str) -> Head {
    let headers = if token.is_empty() { Vec::new() } else { vec![("x-vault-token".to_owned(), token.to_owned())] };
    Head { method: method.into(), target: format!("/v1/{path}"), headers, remote: ([127, 0, 0, 1], 4_000).into() }
}

/// A consumer that does what the test says.
pub struct Consumer {
    kernel: Arc<Kernel>,
    pub instance: String,
    pub token: String,
    frames: Option<Receiver<audit::Frame>>,
}

impl Consumer {
    /// The next line that is no heartbeat; nothing at the end of the stream.
    pub async fn line(&mut self) -> Option<Value> {
        let frames = self.frames.as_mut().unwrap();
        let listening = async {
            loop {
                let line: Value = serde_json::from_slice(&frames.recv().await?.into_bytes()).unwrap();
                if line["type"] != "heartbeat" {
                    return Some(line);
                }
            }
        };
        tokio::time::timeout(PATIENCE, listening).await.unwrap_or_else(|_| panic!("{} hears nothing", self.instance))
    }

    /// The next wanted state in which the generation to use is this one.
    pub async fn told(&mut self, using: u64) -> Value {
        loop {
            let state = self.line().await.unwrap();
            assert_eq!(state["type"], "state", "{state}");
            if state["use"]["generation"] == using {
                return state;
            }
        }
    }

    /// The next wanted state in which the standby is this generation.
    pub async fn staged(&mut self, standby: u64) -> Value {
        loop {
            let state = self.line().await.unwrap();
            if state["standby"]["generation"] == standby {
                return state;
            }
        }
    }

    /// Says something about a delivery (`use` or `standby` of a state).
    pub async fn say(&self, level: &str, delivery: &Value, reason: &str) -> (u16, Value) {
        self.send(&self.message(level, delivery, reason)).await
    }

    pub fn message(&self, level: &str, delivery: &Value, reason: &str) -> Value {
        let (generation, nonce) = (&delivery["generation"], delivery["nonce"].as_str().unwrap());
        let key = mac::Key::new(&from_base64(delivery["ack_key"].as_str().unwrap()).unwrap());
        let text = format!("keyward-ack-v1\np\n{}\n{generation}\n{level}\n{nonce}\n{reason}", self.instance);
        let proof = base64(&mac::sign(&key, text.as_bytes()));
        json!({"rotation": "p", "instance": self.instance, "generation": generation, "level": level, "nonce": nonce, "mac": proof, "reason": reason})
    }

    pub async fn send(&self, body: &Value) -> (u16, Value) {
        self.post("sys/lifecycle/ack", body).await
    }

    pub async fn ack(&self, level: &str, delivery: &Value) {
        let (status, body) = self.say(level, delivery, "").await;
        assert_eq!(status, 204, "{} {level}: {body}", self.instance);
    }

    /// Takes the first value there is and uses it.
    pub async fn settle(&mut self, generation: u64) -> Value {
        let state = self.told(generation).await;
        self.ack("L2", &state["use"]).await;
        state["use"].clone()
    }

    /// Takes the standby of a generation.
    pub async fn stage(&mut self, generation: u64) {
        let state = self.staged(generation).await;
        self.ack("L1", &state["standby"]).await;
    }

    pub async fn goodbye(&self) {
        let (status, body) = self.post("sys/lifecycle/goodbye", &json!({"instance": self.instance})).await;
        assert_eq!(status, 204, "{body}");
    }

    /// Leaves one rotation only.
    pub async fn goodbye_to(&self, rotation: &str) {
        let (status, body) = self.post("sys/lifecycle/goodbye", &json!({"instance": self.instance, "rotation": rotation})).await;
        assert_eq!(status, 204, "{body}");
    }

    /// The stream breaks.
    pub fn cut(&mut self) {
        self.frames = None;
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let bytes = Bytes::from(serde_json::to_vec(body).unwrap());
        let (status, _, body) = self.kernel.serve(head("POST", path, &self.token), Box::new(bytes)).await.into_parts();
        let audit::Body::Bytes(bytes) = body else { panic!("a stream") };
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }
}
