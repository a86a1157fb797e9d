//! Things that happen to a rotation and its runs from outside, at the worst moment. Each test tells the fault that it keeps out.

use std::path::Path;
use std::sync::Arc;

use kernel::Place;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::rig::{ROOT, Rig, rotation};

async fn until(rig: &Rig, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let looking = async {
        loop {
            let (_, body) = rig.call("GET", path, ROOT, Value::Null).await;
            if wanted(&body["data"]) {
                return body["data"].clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), looking).await.unwrap_or_else(|_| panic!("`{path}` did not come to it"))
}

async fn owed(rig: &Rig, kind: &str, count: usize) {
    let of_kind = |duties: &Value| duties["key_info"].as_object().map(|all| all.values().filter(|duty| duty["kind"] == kind).count());
    until(rig, "sys/duties", |duties| of_kind(duties) == Some(count)).await;
}

/// A rotation that was deleted and written anew while its target was being prepared counted as accepted by the old preparation.
#[tokio::test]
async fn an_adoption_accepts_what_was_adopted() {
    let rig = Arc::new(Rig::bare().await);
    let gate = Arc::new(Notify::new());
    rig.world.lock().gates.insert("adopt", Arc::clone(&gate));
    let write = |slots: Value| {
        let rig = Arc::clone(&rig);
        tokio::spawn(async move { rig.call("POST", "sys/lifecycle/rotations/p", ROOT, rotation(json!({"slots": slots}))).await })
    };
    let first = write(json!(["a", "b"]));
    owed(&rig, "lifecycle-adopt", 1).await;
    rig.ok("DELETE", "sys/lifecycle/rotations/p", Value::Null).await;
    let second = write(json!(["c", "d"]));
    owed(&rig, "lifecycle-adopt", 2).await;
    rig.world.lock().gates.clear();
    gate.notify_one();
    let (status, body) = first.await.unwrap();
    assert!(status == 400 && body["errors"][0].as_str().unwrap().contains("written anew"), "{status} {body}");
    let (status, body) = second.await.unwrap();
    assert_eq!(status, 200, "{body}");
    assert!(rig.world.lock().passwords.contains_key("c"));
}

/// A deletion while the target was being prepared was answered with an internal error.
#[tokio::test]
async fn an_adoption_of_what_was_deleted_is_the_callers_to_see() {
    let rig = Arc::new(Rig::bare().await);
    let gate = Arc::new(Notify::new());
    rig.world.lock().gates.insert("adopt", Arc::clone(&gate));
    let its = Arc::clone(&rig);
    let first = tokio::spawn(async move { its.call("POST", "sys/lifecycle/rotations/p", ROOT, rotation(json!({}))).await });
    owed(&rig, "lifecycle-adopt", 1).await;
    rig.ok("DELETE", "sys/lifecycle/rotations/p", Value::Null).await;
    gate.notify_one();
    let (status, body) = first.await.unwrap();
    assert_eq!(status, 400, "{body}");
    rig.ok("POST", "secret/data/app", json!({"data": {"still": "mine"}})).await;
}

/// The store that a run publishes into could be unmounted without a word: the next run set the slot at the target, and could not
/// publish what it had set.
#[tokio::test]
async fn a_mount_with_a_managed_secret_stays() {
    let rig = Rig::new(json!({})).await;
    let unmount = async || rig.call("DELETE", "sys/mounts/secret", ROOT, Value::Null).await;
    let (status, body) = unmount().await;
    let text = "cannot unmount `secret/`: the rotation `p` manages a secret there; delete the rotation first";
    assert_eq!((status, &body["errors"][0]), (400, &json!(text)));
    let run = rig.rotate().await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!((&closed["verdict"], rig.secret().await.0), (&json!("rotated"), "app_b".to_owned()));
    rig.ok("DELETE", "sys/lifecycle/rotations/p", Value::Null).await;
    assert_eq!(unmount().await.0, 204);
}

/// Writing a rotation again, as configuration tools do every hour, put its next run off every time.
#[tokio::test]
async fn writing_a_rotation_again_does_not_put_its_run_off() {
    let rig = Rig::new(json!({})).await;
    let due = async |period: &str, soak: &str| {
        rig.ok("POST", "sys/lifecycle/rotations/p", json!({"period": period, "soak": soak})).await;
        let duties = rig.ok("GET", "sys/duties", Value::Null).await["data"]["key_info"].clone();
        duties.as_object().unwrap().values().find(|duty| duty["kind"] == "lifecycle-period").map(|duty| duty["due"].clone())
    };
    let first = due("1h", "1s").await;
    assert!(first.is_some());
    assert_eq!(due("1h", "2s").await, first);
    assert_ne!(due("2h", "2s").await, first);
    assert_eq!(due("0", "2s").await, None);
}

/// A rotation that was deleted and written anew counted its generations from one again: agents that hold a higher one got nothing.
#[tokio::test]
async fn generations_outlive_the_rotation() {
    let rig = Rig::new(json!({})).await;
    let run = rig.rotate().await;
    let last = rig.run_until(&run, |run| run["state"] == "closed").await["new"]["generation"].as_u64().unwrap();
    rig.ok("DELETE", "sys/lifecycle/rotations/p", Value::Null).await;
    rig.rotation(json!({})).await;
    let again = rig.ok("GET", "sys/lifecycle/rotations/p", Value::Null).await["data"]["generation"].as_u64().unwrap();
    assert!(again > last, "{again} after {last}");
}

/// Intervals of a nanosecond made the server turn in circles.
#[tokio::test]
async fn no_interval_is_a_hot_loop() {
    let rig = Rig::bare().await;
    for field in ["session_poll", "backoff", "backoff_max", "holding_ttl"] {
        for span in ["1ns", "999us", "0"] {
            let (status, body) = rig.call("POST", "sys/lifecycle/rotations/p", ROOT, rotation(json!({field: span}))).await;
            assert!(status == 400 && body.to_string().contains(&format!("field `{field}`")), "{field} {span}: {status} {body}");
        }
    }
}

/// Who could write rotations could take over any secret and any role of any target, those included that they may not touch.
#[tokio::test]
async fn a_rotation_needs_rights_on_its_secret_and_its_target() {
    let rig = Rig::bare().await;
    let token = async |name: &str, more: &str| {
        let rules = format!(r#"path "sys/lifecycle/rotations/*" {{ capabilities = ["create", "update", "delete"] }} {more}"#);
        rig.ok("PUT", &format!("sys/policies/acl/{name}"), json!({"policy": rules})).await;
        let made = rig.ok("POST", "auth/token/create", json!({"policies": [name]})).await;
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    };
    let (secret, target) =
        (r#"path "secret/data/app" { capabilities = ["update"] }"#, r#"path "sys/lifecycle/targets/main" { capabilities = ["update"] }"#);
    let (stranger, tenant) = (token("stranger", target).await, token("tenant", secret).await);
    let owner = token("owner", &format!("{secret} {target}")).await;
    // A role of the target is named by those only who were let use the target: what it may do is more than one secret.
    for change in [json!({}), json!({"owner": "pg_execute_server_program"}), json!({"target": "nowhere"})] {
        assert_eq!(rig.call("POST", "sys/lifecycle/rotations/p", &tenant, rotation(change)).await.0, 403);
    }
    assert!(rig.world.lock().passwords.is_empty(), "the target heard nothing of it");
    assert_eq!(rig.call("POST", "sys/lifecycle/rotations/p", &stranger, rotation(json!({}))).await.0, 403);
    rig.ok("POST", "secret/data/app", json!({"data": {"still": "mine"}})).await;
    let (status, body) = rig.call("POST", "sys/lifecycle/rotations/p", &owner, rotation(json!({}))).await;
    assert_eq!(status, 200, "{body}");
    until(&rig, "sys/lifecycle/rotations/p", |p| p["open_run"].is_null()).await;
    // Neither its terms nor its end are a stranger's, whatever path they name.
    for body in [json!({"soak": "1s"}), json!({"soak": "1s", "path": "secret/data/other"})] {
        assert_eq!(rig.call("POST", "sys/lifecycle/rotations/p", &stranger, body).await.0, 403);
    }
    assert_eq!(rig.call("DELETE", "sys/lifecycle/rotations/p", &stranger, Value::Null).await.0, 403);
    assert_eq!(rig.call("POST", "sys/lifecycle/rotations/p", &tenant, json!({"soak": "1s", "target": "other"})).await.0, 403);
    assert_eq!(rig.call("POST", "sys/lifecycle/rotations/p", &owner, json!({"soak": "1s"})).await.0, 204);
    assert_eq!(rig.call("DELETE", "sys/lifecycle/rotations/p", &tenant, Value::Null).await.0, 204, "the target is asked nothing");
}

/// What cannot be done was answered like something that was done.
#[tokio::test]
async fn an_abort_that_is_not_possible_is_refused() {
    let rig = Rig::new(json!({})).await;
    rig.world.connect("app_a", "old");
    let run = rig.rotate().await;
    rig.run_until(&run, |run| run["phase"] == "drain").await;
    rig.world.connect("app_b", "new");
    let abort = format!("sys/lifecycle/runs/{run}/abort");
    rig.ok("POST", &abort, json!({"reason": "test"})).await;
    rig.run_until(&run, |run| run["phase"] == "rollback_drain").await;
    let (status, body) = rig.call("POST", &abort, ROOT, json!({"reason": "again"})).await;
    assert!(status == 400 && body.to_string().contains("going back already"), "{status} {body}");
    rig.world.disconnect("new");
    assert_eq!(rig.run_until(&run, |run| run["state"] == "closed").await["verdict"], "rolled_back");
}

/// An act that was parked (here by a server that did not know the kind of its target) was parked for ever.
#[tokio::test]
async fn resume_takes_up_an_act_that_was_parked() {
    let dir = tempfile::tempdir().unwrap();
    let place = |n: u32| dir.path().join(n.to_string());
    let rig = Rig::at(Place::Directory(place(0))).await;
    rig.rotation(json!({})).await;
    rig.world.connect("app_a", "somebody");
    let run = rig.rotate().await;
    rig.run_until(&run, |run| run["phase"] == "drain").await;
    copy(&place(0), &place(1));
    let (world, key) = (rig.world.clone(), rig.key.clone());
    rig.kernel.shutdown().await;

    let kernel = crate::rig::kernel_with(Place::Directory(place(1)), lifecycle::Lifecycle::new([]));
    kernel.unseal(&key).await.unwrap();
    let rig = Rig { kernel, world: world.clone(), key: key.clone() };
    until(&rig, "sys/duties", |duties| duties["key_info"].to_string().contains("expected one of")).await;
    copy(&place(1), &place(2));
    rig.kernel.shutdown().await;

    world.disconnect("somebody");
    let rig = Rig::again(&place(2), world, key).await;
    rig.ok("POST", &format!("sys/lifecycle/runs/{run}/resume"), Value::Null).await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!(closed["verdict"], "rotated");
    assert_eq!(rig.call("GET", "secret/data/app", ROOT, Value::Null).await.0, 200);
    rig.kernel.shutdown().await;
}

/// What a process had proven before it said goodbye counted for the next one of its name that stated to hold the same.
#[tokio::test]
async fn nothing_proven_outlives_a_goodbye() {
    let rig = Rig::new(json!({})).await;
    rig.world.connect("app_a", "somebody");
    let token = rig.token().await;
    let mut a = rig.join_as("a", &token, "p").await.unwrap();
    a.settle(1).await;
    let run = rig.rotate().await;
    a.stage(3).await;
    a.settle(3).await;
    rig.run_until(&run, |run| run["phase"] == "drain").await;
    a.goodbye().await;
    let mut next = rig.join_as("a", &token, "p:3").await.unwrap();
    let state = next.told(3).await;
    assert_eq!(rig.run(&run).await["consumers"]["a"]["acknowledged"], Value::Null);
    rig.world.disconnect("somebody");
    let held = rig.run_until(&run, |run| run["state"] == "held" && run["waits_for"].to_string().contains(r#""who":"a""#)).await;
    assert_eq!(held["phase"], "drain");
    next.ack("L2", &state["use"]).await;
    assert_eq!(rig.run_until(&run, |run| run["state"] == "closed").await["verdict"], "rotated");
}

/// The data of a server as a kill would leave it. The log may rename a file meanwhile: then it is copied again, from the beginning.
fn copy(from: &Path, to: &Path) {
    let copied = || -> std::io::Result<()> {
        std::fs::create_dir(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            if entry.file_name() != "index.redb" {
                std::fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
        }
        Ok(())
    };
    let tries = (0..100).map(|_| copied().inspect_err(|_| std::fs::remove_dir_all(to).unwrap()));
    assert!(tries.into_iter().any(|copied| copied.is_ok()), "the files do not hold still");
}
