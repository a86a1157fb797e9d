//! A host with two secrets, one of which its identity may not read: a real agent, over a real PostgreSQL.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::rig::{ROOT, Server};
use crate::rotation;

/// Bounds each wait.
const PATIENCE: Duration = Duration::from_secs(120);

async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            match look() {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

fn login(file: &Path) -> Option<Value> {
    std::fs::read(file).ok().map(|text| serde_json::from_slice(&text).unwrap())
}

/// The lines of this severity in a log.
fn logged(log: &Path, level: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["level"] == level).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_delivers_what_it_may_and_names_what_it_may_not() {
    let (cluster, _superuser) = rotation::cluster().await;
    let server = Server::start().await;
    rotation::prepare(&server, &cluster).await;
    let post = async |path: &str, body: Value| {
        let (status, answer) = server.call("POST", path, ROOT, body).await;
        assert!(status < 300, "{path}: {status} {answer}");
        answer
    };
    let grant = async |paths: &[&str]| {
        let rules: String = paths.iter().map(|path| format!("path \"secret/data/{path}\" {{ capabilities = [\"read\"] }}\n")).collect();
        post("sys/policies/acl/host", json!({ "policy": rules })).await;
    };
    post("sys/lifecycle/rotations/orders-db", json!({"required_level": "L1"})).await;
    let mail = json!({"path": "secret/data/mail/db", "target": "main", "owner": "mail", "slots": ["mail_a", "mail_b"]});
    let made = post("sys/lifecycle/rotations/mail-db", mail).await;
    let first = format!("sys/lifecycle/runs/{}", made["data"]["run"].as_str().unwrap());
    server.until(&first, |run| run["data"]["phase"] == "closed").await;
    grant(&["orders/db"]).await;
    post("sys/auth/approle", json!({"type": "approle"})).await;
    post("auth/approle/role/host", json!({"token_policies": "host"})).await;
    let (_, role) = server.call("GET", "auth/approle/role/host/role-id", ROOT, Value::Null).await;
    let secret = post("auth/approle/role/host/secret-id", json!({})).await;

    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("role-id"), role["data"]["role_id"].as_str().unwrap()).unwrap();
    std::fs::write(at("secret-id"), secret["data"]["secret_id"].as_str().unwrap()).unwrap();
    let config = json!({
        "address": server.address, "instance": "host-1",
        "approle": {"role_id_file": at("role-id"), "secret_id_file": at("secret-id")},
        "file": {"orders-db": {"path": at("orders.json")}, "mail-db": {"path": at("mail.json")}},
    });
    std::fs::write(at("agent.json"), config.to_string()).unwrap();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_keyward"));
    agent.args(["agent", "-log-format=json", "-config"]).arg(at("agent.json")).stdin(Stdio::null());
    let log = at("log");
    let mut agent = agent.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();

    let one = until("the permitted file", || login(&at("orders.json"))).await;
    let errors = until("the error", || Some(logged(&log, "ERROR")).filter(|errors| !errors.is_empty())).await;
    assert_eq!(errors.len(), 1, "one clear error: {errors:?}");
    let said = errors[0].to_string();
    assert!(said.contains("mail-db") && said.contains("may not read its secret") && !said.contains("orders-db"), "{said}");
    assert!(login(&at("mail.json")).is_none());

    // The rotation of the permitted one does not wait for the other.
    let rotate = async || {
        let body = post("sys/lifecycle/rotate/orders-db", json!({"reason": "test"})).await;
        let run = format!("sys/lifecycle/runs/{}", body["data"]["run"].as_str().unwrap());
        let closed = server.until(&run, |run| run["data"]["phase"] == "closed").await["data"].clone();
        assert_eq!((&closed["verdict"], &closed["death_proven"]), (&json!("rotated"), &json!(true)), "{closed:#}");
        assert_eq!(closed["consumers"]["host-1"]["presence"], "present", "{closed:#}");
    };
    rotate().await;
    let two = until("the new value", || login(&at("orders.json")).filter(|now| *now != one)).await;
    assert!(rotation::login(&cluster, &two).await.is_ok());
    assert_eq!(rotation::login(&cluster, &one).await.map(drop), Err("28P01".into()));

    // The right comes: it is delivered, by the same agent. It goes: that file only is no longer kept fresh, and the error says so.
    grant(&["orders/db", "mail/db"]).await;
    let mail = until("the other file", || login(&at("mail.json"))).await;
    assert_eq!(mail["username"], "mail_a");
    assert_eq!(logged(&log, "ERROR").len(), 1);
    grant(&["orders/db"]).await;
    until("the second error", || Some(logged(&log, "ERROR")).filter(|errors| errors.len() == 2)).await;
    rotate().await;

    kill_process(Pid::from_child(&agent), Signal::TERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || agent.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0), "{:?}", std::fs::read_to_string(&log));
    let records = server.records().await;
    let records = String::from_utf8_lossy(&records);
    let refusals: Vec<_> = records.match_indices("\"refused\":\"there is no such rotation").collect();
    assert_eq!(refusals.len(), 2, "each refusal is recorded");
    server.stop().await;
}
