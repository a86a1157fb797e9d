//! What is refused, and that it changes nothing.

use serde_json::{Value, json};

use crate::rig::{ROOT, Rig, rotation};
use crate::target::Trouble;

#[tokio::test]
async fn acknowledgements_that_prove_nothing() {
    let rig = Rig::new(json!({})).await;
    let (mut a, other) = (rig.join("a").await, rig.join("other").await);
    let delivery = a.told(1).await["use"].clone();
    let good = a.message("L2", &delivery, "");
    let with = |field: &str, value: Value| {
        let mut message = good.clone();
        message[field] = value;
        message
    };
    let stale = json!({"generation": 9, "nonce": delivery["nonce"], "ack_key": delivery["ack_key"]});
    for (what, message, status) in [
        ("another level under the same proof", with("level", json!("L1")), 403),
        ("another reason", with("reason", json!("x")), 403),
        ("another nonce", with("nonce", json!("0")), 403),
        ("another instance", with("instance", json!("other")), 403),
        ("an instance that is not there", with("instance", json!("nobody")), 403),
        ("a rotation that is not there", with("rotation", json!("q")), 403),
        ("an empty proof", with("mac", json!("AA==")), 403),
        ("not a proof", with("mac", json!("?")), 400),
        ("a level that cannot be claimed", with("level", json!("L3")), 400),
        ("a level that does not exist", with("level", json!("L9")), 400),
        ("a field too many", with("extra", json!(1)), 400),
        ("a generation that was never offered", a.message("L2", &stale, ""), 400),
    ] {
        let (got, body) = a.send(&message).await;
        assert_eq!(got, status, "{what}: {body}");
    }
    // The proof itself, sent by another identity.
    assert_eq!(other.send(&good).await.0, 403);
    let holdings = rig.ok("GET", "sys/lifecycle/holdings/p", Value::Null).await["data"]["key_info"].clone();
    assert_eq!(holdings["a"]["level"], Value::Null, "nothing of this counted");
    assert_eq!(a.send(&good).await.0, 204);
    assert_eq!(a.send(&good).await.0, 204, "saying it again changes nothing");
    let holdings = rig.ok("GET", "sys/lifecycle/holdings/p", Value::Null).await["data"]["key_info"].clone();
    assert_eq!(holdings["a"]["level"], "L2");
}

#[tokio::test]
async fn streams() {
    let rig = Rig::new(json!({})).await;
    let token = rig.token().await;
    let refused = async |instance: &str, token: &str, hold: &str| rig.join_as(instance, token, hold).await.err().map(|(status, _)| status);
    assert_eq!(refused("a", &token, "unknown").await, Some(403), "like a secret that may not be read");
    let blind = rig.ok("POST", "auth/token/create", json!({"policies": ["default"]})).await["auth"]["client_token"].clone();
    assert_eq!(refused("a", blind.as_str().unwrap(), "p").await, Some(403), "who may not read may not watch");
    for hold in ["", "p:x", "p&hold=p:1", "../p"] {
        assert_eq!(refused("a", &token, hold).await, Some(400), "`{hold}`");
    }
    for instance in ["", "a/b", &"x".repeat(65)] {
        assert_eq!(refused(instance, &token, "p").await, Some(400), "`{instance}`");
    }
    // A name belongs to the identity that uses it, until that is gone.
    let a = rig.join_as("a", &token, "p").await.unwrap();
    let second = rig.token().await;
    assert_eq!(refused("a", &second, "p").await, Some(403));
    drop(a);
    assert_eq!(refused("a", &second, "p").await, Some(403), "its token lives");
    rig.ok("POST", "auth/token/revoke", json!({"token": token})).await;
    let mut a = rig.join_as("a", &second, "p:1").await.unwrap();
    a.settle(1).await;
}

/// A host with two secrets, one of which its identity may not read, got neither, and the rotation of the other one waited for it.
#[tokio::test]
async fn each_rotation_of_a_stream_is_decided_by_itself() {
    let rig = Rig::new(json!({})).await;
    let other = json!({"path": "secret/data/other", "owner": "other", "slots": ["other_a", "other_b"]});
    let first = rig.ok("POST", "sys/lifecycle/rotations/q", rotation(other.clone())).await["data"]["run"].as_str().unwrap().to_owned();
    rig.run_until(&first, |run| run["state"] == "closed").await;
    let rules = async |paths: &[&str]| {
        let rules: String = paths.iter().map(|path| format!("path \"secret/data/{path}\" {{ capabilities = [\"read\"] }}\n")).collect();
        rig.ok("PUT", "sys/policies/acl/reader", json!({"policy": rules})).await;
    };
    let token = rig.token().await;
    let mut a = rig.join_as("a", &token, "p&hold=q&hold=nowhere").await.unwrap();
    let mut lines = Vec::new();
    for _ in 0..3 {
        lines.push(a.line().await.unwrap());
    }
    assert_eq!((&lines[0]["type"], &lines[0]["use"]["generation"]), (&json!("state"), &json!(1)), "{lines:?}");
    a.ack("L2", &lines[0]["use"]).await;
    let refused = |name: &str| json!({"type": "refused", "rotation": name, "reason": lines[1]["reason"]});
    assert_eq!(lines[1..], [refused("q"), refused("nowhere")], "one sentence for what is unknown and what may not be read");
    let holdings = rig.ok("GET", "sys/lifecycle/holdings/q", Value::Null).await;
    assert_eq!(holdings["data"]["keys"], json!([]), "nobody waits for who may not read");

    // The one that is delivered does not wait for the other.
    let run = rig.rotate().await;
    a.stage(3).await;
    a.settle(3).await;
    assert_eq!(rig.run_until(&run, |run| run["state"] == "closed").await["verdict"], "rotated");

    // The right comes, and goes, on the same stream.
    rules(&["app", "other"]).await;
    let state = a.line().await.unwrap();
    assert_eq!((&state["type"], &state["rotation"], &state["use"]["generation"]), (&json!("state"), &json!("q"), &json!(1)), "{state}");
    let presence = async || rig.ok("GET", "sys/lifecycle/holdings/q", Value::Null).await["data"]["key_info"]["a"]["presence"].clone();
    assert_eq!(presence().await, "present");
    rules(&["app"]).await;
    assert_eq!(a.line().await.unwrap(), refused("q"));
    assert_ne!(presence().await, "present", "to its run it is gone");
    let run = rig.rotate().await;
    a.stage(5).await;
    a.settle(5).await;
    assert_eq!(rig.run_until(&run, |run| run["state"] == "closed").await["verdict"], "rotated", "the others go on");
    rules(&["app", "other"]).await;
    assert_eq!(a.line().await.unwrap()["rotation"], "q");
    // A rotation that goes is refused, and delivered when it is written anew.
    rig.ok("DELETE", "sys/lifecycle/rotations/q", Value::Null).await;
    assert_eq!(a.line().await.unwrap(), refused("q"));
    rig.ok("POST", "sys/lifecycle/rotations/q", rotation(other)).await;
    let state = a.line().await.unwrap();
    assert_eq!((&state["type"], &state["rotation"]), (&json!("state"), &json!("q")), "{state}");
    // When nothing is left, the stream ends, and the next is refused as a whole.
    rules(&["nothing"]).await;
    while let Some(line) = a.line().await {
        assert!(line["type"] == "bye" || line["type"] == "state", "{line}");
    }
    assert_eq!(rig.join_as("a", &token, "p:5&hold=q").await.err().map(|(status, _)| status), Some(403));
}

/// An instance whose name another identity has in one rotation is refused there, and served elsewhere.
#[tokio::test]
async fn a_name_that_is_taken_in_one_rotation_is_free_in_another() {
    let rig = Rig::new(json!({})).await;
    let other = json!({"path": "secret/data/other", "owner": "other", "slots": ["other_a", "other_b"]});
    let first = rig.ok("POST", "sys/lifecycle/rotations/q", rotation(other)).await["data"]["run"].as_str().unwrap().to_owned();
    rig.run_until(&first, |run| run["state"] == "closed").await;
    let token = rig.token().await;
    let _first = rig.join_as("a", &token, "p").await.unwrap();
    let root = crate::rig::ROOT;
    let (status, body) = rig.join_as("a", root, "p").await.err().unwrap();
    assert_eq!((status, &body["errors"][0]), (403, &json!("this instance belongs to another identity")));
    let mut second = rig.join_as("a", root, "p&hold=q").await.unwrap();
    let reason = "this instance belongs to another identity";
    assert_eq!(second.line().await.unwrap(), json!({"type": "refused", "rotation": "p", "reason": reason}));
    assert_eq!(second.line().await.unwrap()["rotation"], "q");
    // Its holder goes for good: the name is free.
    rig.ok("POST", "auth/token/revoke", json!({"token": token})).await;
    let state = second.line().await.unwrap();
    assert_eq!((&state["type"], &state["rotation"]), (&json!("state"), &json!("p")), "{state}");
}

#[tokio::test]
async fn targets() {
    let rig = Rig::bare().await;
    let target = |change: Value| {
        let mut body = json!({"kind": "memory", "address": "here", "admin_password": "CANARY"});
        for (name, value) in change.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    for (what, change) in [
        ("an unknown kind", json!({"kind": "CANARY"})),
        ("an unknown field", json!({"extra": "CANARY"})),
        ("a missing field", json!({"address": ""})),
    ] {
        let (status, body) = rig.call("POST", "sys/lifecycle/targets/t", ROOT, target(change)).await;
        assert!(status == 400 && !body.to_string().contains("CANARY"), "{what}: {status} {body}");
    }
    for trouble in [Trouble::Unreachable, Trouble::RequestLost] {
        rig.world.trouble("check", &[trouble]);
        assert_eq!(rig.call("POST", "sys/lifecycle/targets/t", ROOT, target(json!({}))).await.0, 400, "{trouble:?}");
    }
    assert_eq!(rig.call("GET", "sys/lifecycle/targets/t", ROOT, Value::Null).await.0, 404, "none of them was stored");
    rig.ok("POST", "sys/lifecycle/targets/t", target(json!({}))).await;
    let shown = rig.ok("GET", "sys/lifecycle/targets/t", Value::Null).await;
    assert!(shown["data"]["address"] == "here" && !shown.to_string().contains("CANARY"), "{shown}");
    rig.rotation(json!({"target": "t"})).await;
    assert_eq!(rig.call("DELETE", "sys/lifecycle/targets/t", ROOT, Value::Null).await.0, 400, "a rotation uses it");
    rig.ok("DELETE", "sys/lifecycle/targets/main", Value::Null).await;
}

#[tokio::test]
async fn rotations() {
    let rig = Rig::bare().await;
    for (field, value) in [
        ("path", json!("secret/data/../x")),
        ("path", json!("nowhere/data/x")),
        ("path", json!("")),
        ("target", json!("none")),
        ("slots", json!(["one"])),
        ("slots", json!(["one", "one"])),
        ("slots", json!(["app", "two"])),
        ("owner", json!("x".repeat(64))),
        ("required_level", json!("L3")),
        ("required_level", json!("L0")),
        ("on_hard_deadline", json!("panic")),
        ("period", json!("1s")),
        ("session_poll", json!(0)),
        ("soft_deadline", json!("1h")),
        ("verifications", json!(0)),
        ("canaries", json!(-1)),
        ("attempts", json!("many")),
        ("soak", json!("-1s")),
        ("quiet", json!("1s")),
    ] {
        let (status, body) = rig.call("POST", "sys/lifecycle/rotations/p", ROOT, rotation(json!({field: value}))).await;
        assert!(status == 400 && body["errors"][0].as_str().unwrap().contains(field), "{field}: {status} {body}");
    }
    // Terms under which no run could ever come to its end.
    for (hard, soak, quiet) in [("30s", "1s", "30s"), ("30s", "31s", "1s"), ("500ms", "1s", "1s")] {
        let terms =
            json!({"on_hard_deadline": "rollback", "hard_deadline": hard, "soft_deadline": "200ms", "soak": soak, "quiet_period": quiet});
        let (status, body) = rig.call("POST", "sys/lifecycle/rotations/p", ROOT, rotation(terms)).await;
        let said = body["errors"][0].as_str().unwrap();
        let named = ["`hard_deadline`", "`soak`", "`quiet_period`", "`on_hard_deadline"].iter().all(|field| said.contains(field));
        assert!(status == 400 && named, "{hard} {soak} {quiet}: {status} {body}");
    }
    assert_eq!(rig.call("GET", "sys/lifecycle/rotations/p", ROOT, Value::Null).await.0, 404);
    assert!(rig.world.lock().history.is_empty());
    rig.rotation(json!({})).await;
    // One secret, one role: one rotation.
    for change in [json!({"slots": ["app_a", "other"]}), json!({"slots": ["other_a", "other_b"]})] {
        let (status, body) = rig.call("POST", "sys/lifecycle/rotations/q", ROOT, rotation(change)).await;
        assert!(status == 400 && body["errors"][0].as_str().unwrap().contains("`p`"), "{status} {body}");
    }
    let (status, body) = rig.call("POST", "sys/lifecycle/rotations/p", ROOT, json!({"owner": "another"})).await;
    assert_eq!(status, 400, "{body}");
    rig.ok("POST", "sys/lifecycle/rotations/p", json!({"quiet_period": "1.5s", "canaries": "2"})).await;
    let shown = rig.ok("GET", "sys/lifecycle/rotations/p", Value::Null).await["data"].clone();
    assert_eq!((&shown["quiet_period"], &shown["canaries"], &shown["generation"]), (&json!("1.5s"), &json!(2), &json!(1)));
    for (field, span) in [("period", "0s"), ("soak", "20ms"), ("backoff_max", "100ms"), ("hard_deadline", "600s")] {
        assert_eq!(shown[field], span, "{field}");
    }
    // What is shown can be written back.
    let mut back = shown;
    for computed in ["generation", "slot_in_force", "open_run"] {
        back.as_object_mut().unwrap().remove(computed);
    }
    rig.ok("POST", "sys/lifecycle/rotations/p", back).await;
    for (method, path) in [("POST", "rotate/none"), ("GET", "runs/none"), ("POST", "runs/none/abort"), ("GET", "holdings/none")] {
        assert_eq!(rig.call(method, &format!("sys/lifecycle/{path}"), ROOT, Value::Null).await.0, 404, "{path}");
    }
}
