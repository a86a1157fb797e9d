//! Acknowledgements: only from the identity that the instance belongs to, and only by who received the value.

use crypto::encode::{base64, from_base64};
use serde_json::{Value, json};

use crate::rig::{ROOT, Server};
use crate::rotation::{cluster, prepare};

const READER: &str = r#"path "secret/data/orders/*" { capabilities = ["read"] }"#;

async fn next(lines: &mut egress::Lines) -> Value {
    let line = tokio::time::timeout(std::time::Duration::from_secs(20), lines.next()).await.unwrap().unwrap().unwrap();
    serde_json::from_slice(line.expose()).unwrap()
}

/// The next state, whatever stands between.
pub async fn state(lines: &mut egress::Lines) -> Value {
    loop {
        let line = next(lines).await;
        if line["type"] == "state" {
            return line;
        }
        assert!(matches!(line["type"].as_str(), Some("hello" | "heartbeat")), "{line}");
    }
}

pub fn ack(delivery: &Value, instance: &str, level: &str, reason: &str) -> Value {
    let (generation, nonce) = (delivery["generation"].as_u64().unwrap(), delivery["nonce"].as_str().unwrap());
    let key = from_base64(delivery["ack_key"].as_str().unwrap()).unwrap();
    let text = format!("keyward-ack-v1\norders-db\n{instance}\n{generation}\n{level}\n{nonce}\n{reason}");
    let mac = base64(&crypto::mac::sign(&crypto::mac::Key::new(&key), text.as_bytes()));
    json!({"rotation": "orders-db", "instance": instance, "generation": generation, "level": level, "nonce": nonce, "mac": mac, "reason": reason})
}

fn with(mut body: Value, field: &str, value: impl Into<Value>) -> Value {
    body[field] = value.into();
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_acknowledgements_are_refused_and_real_ones_move_the_run() {
    let (cluster, _root) = cluster().await;
    let server = Server::start().await;
    prepare(&server, &cluster).await;
    let (owner, other) = (server.token("owner", READER).await, server.token("other", READER).await);
    let stranger = server.token("stranger", r#"path "secret/data/else/*" { capabilities = ["read"] }"#).await;

    // Who may not read the secret may not watch it; nor learn whether there is such a rotation.
    for hold in ["orders-db", "nothing"] {
        let (status, text) = server.lines(&format!("sys/lifecycle/watch?instance=x&hold={hold}"), &stranger).await.map(drop).unwrap_err();
        assert!(status == 403 && text.contains("permission denied"), "{text}");
    }
    let mut lines = server.lines("sys/lifecycle/watch?instance=one&hold=orders-db", &owner).await.unwrap();
    let first = state(&mut lines).await;
    assert_eq!((first["use"]["value"]["username"].as_str(), first["standby"].clone()), (Some("orders_a"), Value::Null), "{first}");
    // The name is taken by another identity.
    let (status, text) = server.lines("sys/lifecycle/watch?instance=one&hold=orders-db", &other).await.map(drop).unwrap_err();
    assert!(status == 403 && text.contains("another identity"), "{text}");

    let real = ack(&first["use"], "one", "L2", "");
    let mut others = server.lines("sys/lifecycle/watch?instance=two&hold=orders-db", &other).await.unwrap();
    let second = state(&mut others).await;
    let wrong_key = ack(&with(first["use"].clone(), "ack_key", base64(&[0; 32])), "one", "L2", "");
    for (token, body, status, text) in [
        (&other, real.clone(), 403, "does not come from the holder"),
        (&stranger, real.clone(), 403, "does not come from the holder"),
        (&owner, wrong_key, 403, "does not come from the holder"),
        (&owner, with(real.clone(), "mac", base64(&[7; 32])), 403, "does not come from the holder"),
        (&owner, with(real.clone(), "nonce", second["use"]["nonce"].clone()), 403, "does not come from the holder"),
        (&owner, with(real.clone(), "level", "L1"), 403, "does not come from the holder"),
        (&owner, with(real.clone(), "instance", "absent"), 403, "does not come from the holder"),
        (&owner, with(real.clone(), "generation", 99), 400, "not offered to this instance"),
        (&owner, with(real.clone(), "level", "L9"), 400, "field `level`"),
        (&owner, with(real.clone(), "extra", 1), 400, "unknown field `extra`"),
        (&owner, with(real.clone(), "mac", "!"), 400, "field `mac`"),
    ] {
        let (got, answer) = server.call("POST", "sys/lifecycle/ack", token, body.clone()).await;
        assert!(got == status && answer.to_string().contains(text), "{body}: {got} {answer}");
    }
    assert_eq!(server.call("POST", "sys/lifecycle/ack", &owner, real).await.0, 204);
    let (_, holdings) = server.call("GET", "sys/lifecycle/holdings/orders-db", ROOT, Value::Null).await;
    assert_eq!(holdings["data"]["key_info"]["one"]["level"], "L2", "{holdings:#}");
    assert_eq!(holdings["data"]["key_info"]["two"]["level"], Value::Null);
    assert_eq!(server.call("POST", "sys/lifecycle/goodbye", &other, json!({"instance": "two"})).await.0, 204);

    // A rotation: nobody converges by a forgery; the holder does.
    let (_, body) = server.call("POST", "sys/lifecycle/rotate/orders-db", ROOT, json!({})).await;
    let run = format!("sys/lifecycle/runs/{}", body["data"]["run"].as_str().unwrap());
    let staged = state(&mut lines).await;
    assert!(staged["standby"]["generation"].as_u64() > staged["use"]["generation"].as_u64(), "{staged}");
    let standby = staged["standby"].clone();
    let (got, _) = server.call("POST", "sys/lifecycle/ack", &other, ack(&standby, "one", "L1", "")).await;
    assert_eq!(got, 403);
    assert_eq!(server.call("GET", &run, ROOT, Value::Null).await.1["data"]["phase"], "stage");
    assert_eq!(server.call("POST", "sys/lifecycle/ack", &owner, ack(&standby, "one", "L1", "")).await.0, 204);
    let used = state(&mut lines).await;
    assert_eq!(used["use"]["generation"], standby["generation"]);
    assert_eq!(server.call("POST", "sys/lifecycle/ack", &owner, ack(&used["use"], "one", "L2", "")).await.0, 204);
    let closed = server.until(&run, |r| r["data"]["phase"] == "closed").await;
    assert_eq!((closed["data"]["verdict"].as_str(), closed["data"]["death_proven"].as_bool()), (Some("rotated"), Some(true)));

    // A canary that refuses brings everybody back, under a new generation.
    let (_, body) = server.call("POST", "sys/lifecycle/rotate/orders-db", ROOT, json!({})).await;
    let run = format!("sys/lifecycle/runs/{}", body["data"]["run"].as_str().unwrap());
    let staged = state(&mut lines).await;
    server.call("POST", "sys/lifecycle/ack", &owner, ack(&staged["standby"], "one", "L1", "")).await;
    let used = state(&mut lines).await;
    assert_eq!(server.call("POST", "sys/lifecycle/ack", &owner, ack(&used["use"], "one", "NACK", "insert failed")).await.0, 204);
    let back = state(&mut lines).await;
    assert!(back["use"]["generation"].as_u64() > used["use"]["generation"].as_u64());
    assert_eq!(back["use"]["value"], staged["use"]["value"], "the old value, as a new generation");
    assert_eq!(server.call("POST", "sys/lifecycle/ack", &owner, ack(&back["use"], "one", "L2", "")).await.0, 204);
    let closed = server.until(&run, |r| r["data"]["phase"] == "closed").await;
    assert_eq!(
        (closed["data"]["verdict"].as_str(), closed["data"]["death_proven"].as_bool()),
        (Some("rolled_back"), Some(true)),
        "{closed:#}"
    );
    server.stop().await;
}
