//! No secret where it does not belong: PostgreSQL's log, our own log, the data directory, records, answers about runs and targets.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base::SecretString;
use kernel::Place;
use serde_json::{Value, json};
use server::wiring;

use crate::rig::{ROOT, Server};
use crate::rotation::{cluster, prepare};

/// Everything that is logged, from the finest level on.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn holds(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// Every file below. A log in use may rename one meanwhile: then it is looked at again.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    fn read(dir: &Path, found: &mut Vec<(String, Vec<u8>)>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                read(&path, found)?;
            } else {
                found.push((path.display().to_string(), std::fs::read(&path)?));
            }
        }
        Ok(())
    }
    (0..100)
        .find_map(|_| {
            let mut found = Vec::new();
            read(dir, &mut found).is_ok().then_some(found)
        })
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_where_it_does_not_belong() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let (cluster, root) = cluster().await;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let kernel = wiring::open(Place::Directory(data.clone())).unwrap();
    let made = kernel.initialise(Some(SecretString::new(ROOT.into()))).await.unwrap();
    let server = Server::serve(kernel).await;
    prepare(&server, &cluster).await;
    let token = server.token("reader", r#"path "secret/data/orders/*" { capabilities = ["read"] }"#).await;

    let mut secrets = vec![("admin password", "admin-password".to_owned()), ("root token", ROOT.to_owned()), ("token", token.clone())];
    secrets.push(("root key", crypto::encode::hex(made.root_key.expose())));
    let password = |body: &Value| body["data"]["data"]["password"].as_str().unwrap().to_owned();
    secrets.push(("first password", password(&server.call("GET", "secret/data/orders/db", &token, Value::Null).await.1)));
    let mut lines = server.lines("sys/lifecycle/watch?instance=one&hold=orders-db", &token).await.unwrap();
    let mut answers = Vec::new();
    // One rotation that fails in the middle: the administering role loses its right, so `ALTER ROLE` is refused and logged by PostgreSQL.
    root.batch_execute("ALTER ROLE keyward NOCREATEROLE").await.unwrap();
    server.call("POST", "sys/lifecycle/rotations/orders-db", ROOT, json!({"attempts": 2})).await;
    let (_, body) = server.call("POST", "sys/lifecycle/rotate/orders-db", ROOT, json!({"reason": "will fail"})).await;
    let run = format!("sys/lifecycle/runs/{}", body["data"]["run"].as_str().unwrap());
    // It cannot end while the target refuses; given its right back, it does.
    server.until(&run, |r| !r["data"]["trouble"].is_null() || r["data"]["phase"] == "closed").await;
    root.batch_execute("ALTER ROLE keyward CREATEROLE").await.unwrap();
    let aborted = server.until(&run, |r| r["data"]["phase"] == "closed" || !r["data"]["parked"].is_null()).await;
    assert_eq!(aborted["data"]["verdict"], "aborted", "{aborted:#}");
    answers.push(aborted);
    // One rotation that goes through, with its consumer gone.
    assert_eq!(server.call("POST", "sys/lifecycle/goodbye", &token, json!({"instance": "one"})).await.0, 204);
    let (_, body) = server.call("POST", "sys/lifecycle/rotate/orders-db", ROOT, json!({})).await;
    let run = format!("sys/lifecycle/runs/{}", body["data"]["run"].as_str().unwrap());
    answers.push(server.until(&run, |r| r["data"]["phase"] == "closed").await);
    secrets.push(("second password", password(&server.call("GET", "secret/data/orders/db", &token, Value::Null).await.1)));
    let mut keys = Vec::new();
    // The goodbye has ended the stream.
    while let Some(line) = tokio::time::timeout(std::time::Duration::from_secs(20), lines.next()).await.unwrap().unwrap() {
        let line: Value = serde_json::from_slice(line.expose()).unwrap();
        keys.extend(line["use"]["ack_key"].as_str().map(str::to_owned));
    }
    assert!(!keys.is_empty());
    secrets.extend(keys.into_iter().map(|key| ("ack key", key)));
    for path in [
        "sys/lifecycle/targets/main",
        "sys/lifecycle/rotations/orders-db",
        "sys/lifecycle/runs",
        "sys/lifecycle/holdings/orders-db",
        "sys/duties",
    ] {
        answers.push(server.call("GET", path, ROOT, Value::Null).await.1);
    }
    let leaves = server.records().await;
    server.stop().await;

    let mut places = files(&data);
    assert!(places.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > 10_000, "the data directory holds the data");
    let postgres = cluster.log().unwrap();
    assert!(postgres.contains("ERROR:") && postgres.contains("ALTER ROLE"), "PostgreSQL logged the statement that failed: {postgres}");
    places.push(("PostgreSQL's log".into(), postgres.into_bytes()));
    places.push(("our log".into(), log.0.lock().unwrap().clone()));
    assert!(places.iter().any(|(place, bytes)| place == "our log" && !bytes.is_empty()), "something was logged");
    places.push(("records".into(), leaves));
    places.push(("answers".into(), serde_json::to_vec(&answers).unwrap()));
    for (place, bytes) in &places {
        for (what, secret) in &secrets {
            assert!(!holds(bytes, secret), "the {what} is in {place}");
        }
    }
    // The same search finds what is there.
    assert!(places.iter().any(|(_, bytes)| holds(bytes, "orders_b")));
    for (path, _) in files(&data) {
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o077, 0, "{path} can be read by others");
    }
}
