//! Emergencies on a real PostgreSQL: a stranger has the password, keeps a session open and comes back as often as it is thrown out.
//!
//! Six consumers: five with the client library and a connection of their own, one `keyward agent` as a process that can be stopped.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use client::{Client, CredentialProvider, ProviderOptions};
use demo::cluster::{Cluster, Mode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::rotation::{cluster, login};

/// For what only a failing test waits for.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server as a process of its own on a data directory, so that it can be killed.
struct Server {
    child: Child,
    address: String,
    token: String,
    client: Client,
}

fn start(data: &Path, port: u16) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
    command.arg("server").arg(format!("-data={}", data.display())).arg(format!("-listen-address=127.0.0.1:{port}"));
    command.env("KEYWARD_LOG", "warn").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

impl Server {
    async fn open(data: &Path) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (child, address) = (start(data, port), format!("http://127.0.0.1:{port}"));
        let file = data.join("root-token");
        let reading = async {
            loop {
                match std::fs::read_to_string(&file) {
                    Ok(token) if token.ends_with('\n') => return token.trim().to_owned(),
                    _ => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let token = timeout(PATIENCE, reading).await.unwrap();
        let client = Client::new(&address, Some(base::SecretString::new(token.clone()))).unwrap();
        let server = Self { child, address, token, client };
        server.get("sys/lifecycle/runs", |_| true).await;
        server
    }

    fn kill_and_start(&mut self, data: &Path) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let port = self.address.rsplit(':').next().unwrap().parse().unwrap();
        self.child = start(data, port);
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let reply = self.client.write(path, &body).await.unwrap_or_else(|error| panic!("{path}: {}", client::explain(&error)));
        reply.data().unwrap_or(Value::Null)
    }

    /// Asks until the answer is as wanted; what is not there, and a server that is not there, is asked again.
    async fn get(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let asking = async {
            loop {
                match self.client.read(path, &[]).await {
                    Ok(reply) => {
                        last = reply.data().unwrap();
                        if wanted(&last) {
                            return;
                        }
                    }
                    Err(client::Error::Refused { status: 404, .. }) if wanted(&Value::Null) => return,
                    Err(error) => last = client::explain(&error).into(),
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let met = timeout(PATIENCE, asking).await.is_ok();
        assert!(met, "`{path}` stayed at {last:#}");
        last
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
        command.args(args).env("VAULT_ADDR", &self.address).env("VAULT_TOKEN", &self.token);
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

/// Works all the time over one connection, and opens another with the newest value when that one is gone.
struct Worker {
    provider: Arc<CredentialProvider>,
    done: Arc<AtomicU64>,
    /// Statements that failed although a fresh connection with the newest value was used: what a user would have seen.
    failed: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Worker {
    async fn start(server: &Server, cluster: &Arc<Cluster>, name: &str) -> Self {
        let client = Client::new(&server.address, Some(base::SecretString::new(server.token.clone()))).unwrap();
        let probed = Arc::clone(cluster);
        let provider = CredentialProvider::start(client, ProviderOptions::new("orders-db", name), move |value| {
            let (data, cluster) = (fields(&value), Arc::clone(&probed));
            async move { login(&cluster, &data).await.map(drop) }
        });
        let provider = Arc::new(provider);
        timeout(PATIENCE, provider.ready()).await.unwrap();
        let (done, failed, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn({
            let (provider, cluster) = (Arc::clone(&provider), Arc::clone(cluster));
            let (done, failed, stop) = (Arc::clone(&done), Arc::clone(&failed), Arc::clone(&stop));
            async move {
                let mut open: Option<(u64, tokio_postgres::Client)> = None;
                while !stop.load(Ordering::Acquire) {
                    let newest = provider.credential().unwrap();
                    if open.as_ref().is_none_or(|(generation, _)| *generation != newest.generation()) {
                        match login(&cluster, &fields(&newest)).await {
                            Ok(session) => open = Some((newest.generation(), session)),
                            Err(_) => {
                                failed.fetch_add(1, Ordering::AcqRel);
                                open = None;
                            }
                        }
                    }
                    if let Some((_, session)) = &open {
                        match session.query_one("SELECT 1", &[]).await {
                            Ok(_) => _ = done.fetch_add(1, Ordering::AcqRel),
                            Err(_) => open = None,
                        }
                    }
                    sleep(Duration::from_millis(10)).await;
                }
            }
        });
        Self { provider, done, failed, stop, task }
    }

    fn generation(&self) -> u64 {
        self.provider.credential().unwrap().generation()
    }
}

fn fields(value: &client::Credential) -> Value {
    json!({"username": value.field("username").unwrap(), "password": value.field("password").unwrap()})
}

/// Has the password, holds a session, and comes back at once when it is thrown out, with the same password.
async fn stranger(cluster: Arc<Cluster>, data: Value, inside: Arc<AtomicBool>, stop: Arc<AtomicBool>) {
    let mut session = None;
    while !stop.load(Ordering::Acquire) {
        let lives = match &session {
            Some(session) => tokio_postgres::Client::query_one(session, "SELECT 1", &[]).await.is_ok(),
            None => false,
        };
        if !lives {
            session = login(&cluster, &data).await.ok();
        }
        inside.store(session.is_some(), Ordering::Release);
        sleep(Duration::from_millis(2)).await;
    }
}

struct Intruder {
    data: Value,
    inside: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Intruder {
    async fn enter(server: &Server, cluster: &Arc<Cluster>) -> Self {
        let data = server.get("secret/data/orders/db", Value::is_object).await["data"].clone();
        let (inside, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn(stranger(Arc::clone(cluster), data.clone(), Arc::clone(&inside), Arc::clone(&stop)));
        let entering = async {
            while !inside.load(Ordering::Acquire) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, entering).await.unwrap();
        Self { data, inside, stop, task }
    }

    /// The death that the server tells, tried by hand.
    async fn proves_dead(self, cluster: &Cluster) {
        let leaving = async {
            while self.inside.load(Ordering::Acquire) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, leaving).await.unwrap();
        assert_eq!(login(cluster, &self.data).await.map(drop), Err("28P01".into()));
        self.stop.store(true, Ordering::Release);
        self.task.await.unwrap();
    }
}

fn told(what: &str, run: &Value, workers: &[Worker]) {
    assert_eq!((&run["verdict"], &run["death_proven"]), (&json!("rotated"), &json!(true)), "{what}: {run:#}");
    let seconds = run["emergency"]["dead_after_milliseconds"].as_u64().unwrap();
    let saw: Vec<_> =
        workers.iter().map(|w| format!("{} done, {} failed", w.done.load(Ordering::Acquire), w.failed.load(Ordering::Acquire))).collect();
    println!("{what}: proven dead {seconds} ms after the declaration; behind: {}; consumers: {saw:?}", run["emergency"]["behind"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leaked_value_dies_under_the_stranger_who_has_it() {
    let (cluster, _root) = cluster().await;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut server = Server::open(&data).await;
    prepare(&server, &cluster).await;
    let mut cluster = Arc::new(cluster);
    let mut workers = Vec::new();
    for n in 1..=5 {
        workers.push(Worker::start(&server, &cluster, &format!("worker-{n}")).await);
    }
    let mut agent = agent(&server, dir.path()).await;
    let holds = |holdings: &Value, generation: u64, count: usize| {
        let all = holdings["key_info"].as_object().unwrap();
        all.values().filter(|h| h["generation"] == generation && h["level"] == "L2").count() == count
    };
    server.get("sys/lifecycle/holdings/orders-db", |h| h.is_object() && holds(h, 1, 6)).await;

    // By the command, to its end. The old value goes as soon as all six have left it, long before the deadline.
    let intruder = Intruder::enter(&server, &cluster).await;
    let begun = Instant::now();
    let args = ["lifecycle", "rotate", "-emergency", "orders-db", "-reason=password in a public repository", "-deadline=1m", "-yes"];
    let mut command = server.command(&args);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let wall = begun.elapsed();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("proven dead"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    intruder.proves_dead(&cluster).await;
    let runs = server.get("sys/lifecycle/runs", Value::is_object).await;
    let run = server.get(&format!("sys/lifecycle/runs/{}", runs["keys"][0].as_str().unwrap()), Value::is_object).await;
    told(&format!("six consumers ({} ms by the command)", wall.as_millis()), &run, &workers);
    assert_eq!(run["emergency"]["behind"], json!([]), "{run:#}");
    server.get("sys/lifecycle/holdings/orders-db", |h| holds(h, 3, 6)).await;
    assert!(workers.iter().all(|worker| worker.generation() == 3));

    // One consumer is stopped: named, not waited for; it catches up when it goes on.
    let pid = Pid::from_raw(i32::try_from(agent.id()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let intruder = Intruder::enter(&server, &cluster).await;
    let run = declare(&server, "3s").await;
    let run = server.get(&run, |r| r["phase"] == "closed").await;
    intruder.proves_dead(&cluster).await;
    told("one of six stopped, deadline 3 s", &run, &workers);
    assert!(run["emergency"]["behind"].to_string().contains("agent-6"), "{run:#}");
    kill_process(pid, Signal::CONT).unwrap();
    server.get("sys/lifecycle/holdings/orders-db", |h| holds(h, 5, 6)).await;

    // The server is killed in the middle.
    let intruder = Intruder::enter(&server, &cluster).await;
    let run = declare(&server, "10s").await;
    server.kill_and_start(&data);
    let run = server.get(&run, |r| r["phase"] == "closed").await;
    intruder.proves_dead(&cluster).await;
    told("server killed in the middle", &run, &workers);

    // PostgreSQL is restarted in the middle. The workers are gone by then: the cluster is ours alone while it restarts.
    for worker in workers {
        worker.stop.store(true, Ordering::Release);
        worker.task.await.unwrap();
        Arc::into_inner(worker.provider).unwrap().close().await;
    }
    let leaked = server.get("secret/data/orders/db", Value::is_object).await["data"].clone();
    let run = declare(&server, "3s").await;
    let restarting = tokio::task::spawn_blocking(move || {
        let own = Arc::get_mut(&mut cluster).unwrap();
        own.stop(Mode::Immediate).unwrap();
        own.start().unwrap();
        cluster
    });
    let cluster = restarting.await.unwrap();
    let run = server.get(&run, |r| r["phase"] == "closed").await;
    assert_eq!(login(&cluster, &leaked).await.map(drop), Err("28P01".into()));
    told("PostgreSQL restarted in the middle", &run, &[]);
    agent.kill().unwrap();
    agent.wait().unwrap();
}

async fn declare(server: &Server, deadline: &str) -> String {
    let body = json!({"reason": "seen on a paste site", "deadline": deadline});
    let answer = server.post("sys/lifecycle/emergency/orders-db", body).await;
    format!("sys/lifecycle/runs/{}", answer["run"].as_str().unwrap())
}

async fn prepare(server: &Server, cluster: &Cluster) {
    server.post("sys/mounts/secret", json!({"type": "kv-v2"})).await;
    let target = json!({
        "kind": "postgres", "address": format!("{}:{}", cluster.host(), cluster.port()), "database": cluster.superuser().database,
        "admin_username": "keyward", "admin_password": "admin-password",
    });
    server.post("sys/lifecycle/targets/main", target).await;
    let rotation = json!({"path": "secret/data/orders/db", "target": "main", "owner": "orders", "slots": ["orders_a", "orders_b"]});
    let first = server.post("sys/lifecycle/rotations/orders-db", rotation).await;
    server.get(&format!("sys/lifecycle/runs/{}", first["run"].as_str().unwrap()), |r| r["phase"] == "closed").await;
}

/// An agent under an AppRole, with a file and a health probe.
async fn agent(server: &Server, dir: &Path) -> Child {
    server.post("sys/policies/acl/orders", json!({"policy": r#"path "secret/data/orders/db" { capabilities = ["read"] }"#})).await;
    server.post("sys/auth/approle", json!({"type": "approle"})).await;
    server.post("auth/approle/role/orders", json!({"token_policies": ["orders"]})).await;
    let role_id = server.get("auth/approle/role/orders/role-id", Value::is_object).await["role_id"].as_str().unwrap().to_owned();
    let secret_id = server.post("auth/approle/role/orders/secret-id", json!({})).await["secret_id"].as_str().unwrap().to_owned();
    std::fs::write(dir.join("role-id"), role_id).unwrap();
    std::fs::write(dir.join("secret-id"), secret_id).unwrap();
    let config = format!(
        r#"address = "{}"
instance = "agent-6"
approle {{
  role_id_file = "{dir}/role-id"
  secret_id_file = "{dir}/secret-id"
}}
file "orders-db" {{
  path = "{dir}/db.json"
  allow_disk = true
  health {{ command = ["true"] }}
}}
"#,
        server.address,
        dir = dir.display(),
    );
    let file = dir.join("agent.hcl");
    std::fs::write(&file, config).unwrap();
    let mut command = server.command(&["agent", &format!("-config={}", file.display())]);
    command.env("KEYWARD_LOG", "error").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}
