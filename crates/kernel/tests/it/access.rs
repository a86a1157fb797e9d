//! Who may do what, and what the others read.

use base::{Kind, Refusal};
use kernel::{BodyFault, BodySource};
use serde_json::{Value, json};

use crate::rig::{ROOT, Rig, head};

#[tokio::test]
async fn create_update_and_deny() {
    let rig = Rig::new().await;
    let creator = rig.token("creator", r#"path "probe/count" { capabilities = ["create"] }"#).await;
    let updater = rig.token("updater", r#"path "probe/+" { capabilities = ["update", "read"] }"#).await;
    let denied =
        rig.token("denied", r#"path "probe/*" { capabilities = ["read", "update"] } path "probe/count" { capabilities = ["deny"] }"#).await;
    for (token, status) in [(&updater, 403), (&denied, 403), (&creator, 200), (&creator, 403), (&updater, 200), (&denied, 403)] {
        assert_eq!(rig.call("POST", "probe/count", token, json!({})).await.0, status);
    }
    assert_eq!(rig.call("GET", "probe/count", &updater, Value::Null).await.1["data"]["count"], 2);
    assert_eq!(rig.call("GET", "probe/count", &denied, Value::Null).await.0, 403);
    // A slash at the end is no way round a rule.
    for method in ["GET", "HEAD", "POST", "DELETE"] {
        assert_eq!(rig.call(method, "probe/count/", &denied, Value::Null).await.0, 400, "{method}");
    }
    assert_eq!(rig.call("POST", "probe/guarded", &updater, json!({})).await.0, 403, "sudo is needed");
    assert_eq!(rig.call("POST", "probe/guarded", ROOT, json!({})).await.0, 204);
}

#[tokio::test]
async fn one_answer_for_every_token_that_is_not_one() {
    let rig = Rig::new().await;
    let revoked = rig.token("any", r#"path "probe/*" { capabilities = ["read"] }"#).await;
    assert_eq!(rig.call("POST", "auth/token/revoke", ROOT, json!({"token": revoked})).await.0, 204);
    let mut answers = Vec::new();
    for token in ["", "hvs.unknown", &revoked] {
        for path in ["probe/count", "probe/nothing", "nowhere/x", "sys/mounts"] {
            let (status, _, body) = rig.raw("GET", &format!("/v1/{path}"), token, Vec::new()).await;
            answers.push((status, body));
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0].0, 403);
    assert!(String::from_utf8_lossy(&answers[0].1).contains("invalid token"));
}

#[tokio::test]
async fn who_may_not_ask_does_not_learn_what_exists() {
    let rig = Rig::new().await;
    let token = rig.token("narrow", r#"path "probe/count" { capabilities = ["read"] }"#).await;
    for path in ["nowhere/x", "probe/nothing", "sys/mounts", "probe/act/x", "probe/choosy"] {
        let (status, body) = rig.call("GET", path, &token, Value::Null).await;
        assert_eq!((status, body["errors"][0].as_str().unwrap()), (403, "1 error occurred:\n\t* permission denied\n\n"), "{path}");
    }
    for (method, path, status, text) in [
        ("GET", "probe/choosy", 400, "wrong"),
        ("GET", "nowhere/x", 404, "no handler for route"),
        ("GET", "probe/nothing", 404, "unsupported path"),
        ("DELETE", "probe/count", 405, "unsupported operation"),
        ("LIST", "probe/count", 405, "unsupported operation"),
    ] {
        let (got, body) = rig.call(method, path, ROOT, Value::Null).await;
        assert_eq!(got, status, "{method} {path}");
        assert!(body["errors"][0].as_str().unwrap().contains(text), "{body}");
    }
}

#[tokio::test]
async fn bad_input_is_named_and_never_repeated() {
    let rig = Rig::new().await;
    for (target, body) in [
        ("/v1/probe/count", r#"{"n":"CANARY"#),
        ("/v1/probe/count", r#"["CANARY"]"#),
        ("/v1/probe/count", r#"{"a":"CANARY","a":"CANARY"}"#),
        ("/v1/probe/../CANARY", "{}"),
        ("/v1/probe/%zzCANARY", "{}"),
        ("/v1/probe/count?x=%zzCANARY", "{}"),
        ("/v1/sys/policies/acl/p", r#"{"policy":"path \"x\" { CANARY = 1 }"}"#),
        ("/v1/sys/mounts/x", r#"{"type":"CANARY"}"#),
        ("/v1/sys/mounts/x", r#"{"type":"probe","config":"CANARY"}"#),
        ("/v1/auth/token/create", r#"{"ttl":"CANARY"}"#),
        ("/v1/auth/token/create", r#"{"num_uses":-1,"display_name":"CANARY"}"#),
    ] {
        let (status, _, answer) = rig.raw("POST", target, ROOT, body.as_bytes().to_vec()).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!(status, 400, "{target} {body}: {answer}");
        assert!(!answer.contains("CANARY"), "{answer}");
    }
    let (status, body) = rig.call("POST", "probe/strict", ROOT, json!({"m": 1})).await;
    assert!(status == 400 && body["errors"][0].as_str().unwrap().contains("unknown field `m`; this path reads: n, secret"), "{body}");
    let (_, body) = rig.call("POST", "probe/count", ROOT, json!({"m": 1})).await;
    assert_eq!(body["warnings"], json!(["Endpoint ignored these unrecognized parameters: [m]"]));
}

#[tokio::test]
async fn mounts_are_right_on_the_wire() {
    let rig = Rig::new().await;
    let (_, body) = rig.call("GET", "sys/mounts", ROOT, Value::Null).await;
    assert_eq!(body["data"]["probe/"]["type"], "probe");
    assert_eq!(body["probe/"], body["data"]["probe/"], "old clients read the top level");
    assert!(body["data"]["probe/"]["accessor"].as_str().unwrap().starts_with("probe_"));
    for (path, text) in [
        ("probe", "path is already in use at probe/"),
        ("probe/below", "existing mount at probe/"),
        ("sys/x", "belongs to the system"),
        ("auth/x", "`sys/auth/`"),
        ("cubbyhole", "belongs to the system"),
        ("tune", "cannot be `tune`"),
    ] {
        let (status, body) = rig.call("POST", &format!("sys/mounts/{path}"), ROOT, json!({"type": "probe"})).await;
        assert!(status == 400 && body["errors"][0].as_str().unwrap().contains(text), "{path}: {body}");
    }
    assert_eq!(rig.call("DELETE", "sys/mounts/sys", ROOT, Value::Null).await.0, 400);
    // `tune` is a question about a mount, not a part of its path
    for path in ["sys/mounts/other/tune", "sys/mounts/probe/tune", "sys/auth/approle/tune", "sys/auth/a/b/tune"] {
        for method in ["GET", "POST", "DELETE"] {
            let (status, body) = rig.call(method, path, ROOT, json!({"type": "probe"})).await;
            assert!(status == 404 && body["errors"][0].as_str().unwrap().contains("unsupported path"), "{method} {path}: {status} {body}");
        }
    }
    // a mount made again at the same path is another one: nothing of the old shows
    rig.call("POST", "probe/count", ROOT, json!({})).await;
    assert_eq!(rig.call("DELETE", "sys/mounts/probe", ROOT, Value::Null).await.0, 204);
    assert_eq!(rig.call("GET", "probe/count", ROOT, Value::Null).await.0, 404);
    assert_eq!(rig.call("POST", "sys/mounts/probe", ROOT, json!({"type": "probe"})).await.0, 204);
    assert_eq!(rig.call("GET", "probe/count", ROOT, Value::Null).await.1["data"]["count"], 0);
    // As clients send what was not chosen.
    let config = json!({"default_lease_ttl": "", "max_lease_ttl": "system", "force_no_cache": false});
    assert_eq!(rig.call("POST", "sys/mounts/unchosen", ROOT, json!({"type": "probe", "config": config})).await.0, 204);
    let (_, body) = rig.call("GET", "sys/mounts", ROOT, Value::Null).await;
    assert_eq!(body["data"]["unchosen/"]["config"], body["data"]["probe/"]["config"]);
}

#[tokio::test]
async fn the_preflight_says_nothing_to_strangers() {
    let rig = Rig::new().await;
    let token = rig.token("reader", r#"path "probe/count" { capabilities = ["read"] }"#).await;
    let stranger = rig.token("stranger", r#"path "other/*" { capabilities = ["read"] }"#).await;
    let (status, body) = rig.call("GET", "sys/internal/ui/mounts/probe/count", &token, Value::Null).await;
    assert_eq!((status, body["data"]["path"].as_str()), (200, Some("probe/")));
    let list = async |token: &str| rig.call("GET", "sys/internal/ui/mounts", token, Value::Null).await.1["data"].clone();
    for token in ["", "hvs.unknown"] {
        assert_eq!(list(token).await, json!({"secret": {}, "auth": {}}), "{token}");
    }
    assert_eq!(list(ROOT).await["secret"], rig.call("GET", "sys/mounts", ROOT, Value::Null).await.1["data"]);
    assert_eq!(list(ROOT).await["auth"]["token/"]["type"], "token");
    assert_eq!(list(&token).await["secret"]["probe/"]["type"], "probe");
    assert_eq!(list(&stranger).await["secret"].get("probe/"), None);
    let shut = rig.token("shut", r#"path "pr*" { capabilities = ["read"] } path "probe/*" { capabilities = ["deny"] }"#).await;
    assert_eq!(list(&shut).await["secret"].get("probe/"), None);
    assert_eq!(rig.call("GET", "sys/internal/ui/mounts/probe/count", &shut, Value::Null).await.0, 403);
    let hidden = rig.call("GET", "sys/internal/ui/mounts/probe/count", &stranger, Value::Null).await;
    let absent = rig.call("GET", "sys/internal/ui/mounts/nowhere/count", &stranger, Value::Null).await;
    assert_eq!((hidden.0, absent.0), (403, 403));
    assert_eq!(hidden.1["errors"][0].as_str().unwrap().replace("probe", "nowhere"), absent.1["errors"][0].as_str().unwrap());
}

#[tokio::test]
async fn policies_keep_their_text() {
    let rig = Rig::new().await;
    let text = "# a comment\npath \"probe/*\" {\n  capabilities = [\"read\"]\n}\n";
    assert_eq!(rig.call("PUT", "sys/policy/Mixed", ROOT, json!({"policy": text})).await.0, 204);
    assert_eq!(rig.call("GET", "sys/policies/acl/mixed", ROOT, Value::Null).await.1["data"]["policy"], text);
    assert_eq!(rig.call("GET", "sys/policy/mixed", ROOT, Value::Null).await.1["rules"], text);
    let names = rig.call("LIST", "sys/policies/acl", ROOT, Value::Null).await.1;
    assert_eq!(names["data"]["keys"], json!(["default", "mixed", "root"]));
    assert_eq!(rig.call("PUT", "sys/policies/acl/root", ROOT, json!({"policy": text})).await.0, 400);
    assert_eq!(rig.call("DELETE", "sys/policies/acl/default", ROOT, Value::Null).await.0, 400);
    assert_eq!(rig.call("DELETE", "sys/policies/acl/mixed", ROOT, Value::Null).await.0, 204);
    assert_eq!(rig.call("GET", "sys/policies/acl/mixed", ROOT, Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_policy_that_is_narrowed_narrows_at_once() {
    let rig = Rig::new().await;
    let token = rig.token("p", r#"path "probe/*" { capabilities = ["read"] }"#).await;
    assert_eq!(rig.call("GET", "probe/count", &token, Value::Null).await.0, 200);
    rig.call("PUT", "sys/policies/acl/p", ROOT, json!({"policy": "path \"probe/other\" { capabilities = [\"read\"] }"})).await;
    assert_eq!(rig.call("GET", "probe/count", &token, Value::Null).await.0, 403);
    rig.call("DELETE", "sys/policies/acl/p", ROOT, Value::Null).await;
    assert_eq!(rig.call("GET", "probe/other", &token, Value::Null).await.0, 403);
    let (_, body) = rig.call("POST", "sys/capabilities", ROOT, json!({"token": token, "path": "probe/other"})).await;
    assert_eq!(body["capabilities"], json!(["deny"]));
    let (_, body) = rig.call("POST", "sys/capabilities-self", ROOT, json!({"paths": ["probe/other", "sys/x"]})).await;
    assert_eq!(body["data"], json!({"probe/other": ["root"], "sys/x": ["root"]}));
}

#[tokio::test]
async fn a_refusal_keeps_only_what_was_marked() {
    let rig = Rig::new().await;
    for n in 1..=3 {
        let (status, body) = rig.call("POST", "probe/refuse", ROOT, json!({})).await;
        assert_eq!((status, body["errors"][0].as_str().unwrap()), (400, format!("refused {n} times").as_str()));
    }
    assert_eq!(rig.call("GET", "probe/count", ROOT, Value::Null).await.1["data"]["count"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_writers_lose_nothing() {
    let rig = std::sync::Arc::new(Rig::new().await);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let rig = std::sync::Arc::clone(&rig);
            tokio::spawn(async move {
                let mut done = 0_u64;
                for _ in 0..25 {
                    done += u64::from(rig.call("POST", "probe/count", ROOT, json!({})).await.0 == 200);
                }
                done
            })
        })
        .collect();
    let mut acknowledged = 0;
    for task in tasks {
        acknowledged += task.await.unwrap();
    }
    assert_eq!(rig.call("GET", "probe/count", ROOT, Value::Null).await.1["data"]["count"], acknowledged);
    assert!(acknowledged >= 190, "{acknowledged} of 200");
}

#[tokio::test]
async fn health_tells_the_state() {
    let (clock, world) = (Default::default(), Default::default());
    let kernel = crate::rig::open(kernel::Place::Memory, &clock, &world);
    let rig = Rig { kernel, clock, world, key: Vec::new().into() };
    assert_eq!(rig.call("GET", "sys/health", "", Value::Null).await.0, 501);
    assert_eq!(rig.call("GET", "sys/health?uninitcode=299", "", Value::Null).await.0, 299);
    assert_eq!(rig.call("GET", "sys/health?uninitcode=x", "", Value::Null).await.0, 400);
    assert_eq!(rig.call("GET", "probe/count", ROOT, Value::Null).await.0, 503);
    rig.kernel.initialise(None).await.unwrap();
    let (status, body) = rig.call("GET", "sys/health", "", Value::Null).await;
    assert_eq!((status, body["sealed"].as_bool(), body["version"].as_str()), (200, Some(false), Some("1.21.4")));
    assert!(rig.kernel.initialise(None).await.is_err());
}

/// More callers at one record than a handler is run again were sent away with 429.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_at_one_record_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let rig = std::sync::Arc::new(Rig::at(kernel::Place::Directory(dir.path().join("data"))).await);
    let crowd: Vec<_> = (0..300)
        .map(|_| {
            let rig = std::sync::Arc::clone(&rig);
            tokio::spawn(async move { rig.call("POST", "probe/count", ROOT, json!({})).await.0 })
        })
        .collect();
    for one in crowd {
        assert_eq!(one.await.unwrap(), 200);
    }
    assert_eq!(rig.call("GET", "probe/count", ROOT, Value::Null).await.1["data"]["count"], 300);
}

#[tokio::test]
async fn who_needs_no_token_may_send_less() {
    let rig = Rig::new().await;
    let limits = base::Limits::default();
    assert!(limits.anonymous_body_bytes_max * 16 <= limits.body_bytes_max);
    let body = |bytes: usize| format!("{{\"a\":\"{}\"}}", "a".repeat(bytes - 8)).into_bytes();
    for (path, token, bytes, status) in [
        ("sys/internal/ui/mounts", "", limits.anonymous_body_bytes_max, 200),
        ("sys/internal/ui/mounts", "", limits.anonymous_body_bytes_max + 1, 413),
        ("probe/count", ROOT, limits.anonymous_body_bytes_max + 1, 200),
    ] {
        let (got, _, said) = rig.raw("GET", &format!("/v1/{path}"), token, body(bytes)).await;
        assert_eq!(got, status, "{path} {bytes}: {}", String::from_utf8_lossy(&said));
    }
}

struct Unread(BodyFault);

impl BodySource for Unread {
    fn read(self: Box<Self>, _: usize) -> engine::BoxFuture<'static, Result<bytes::Bytes, BodyFault>> {
        Box::pin(std::future::ready(Err(self.0)))
    }
}

#[tokio::test]
async fn a_request_that_does_not_arrive_is_told_why_and_recorded() {
    let rig = Rig::new().await;
    for (fault, status, text) in [
        (BodyFault::TooSlow, 408, "the body was not complete in time"),
        (BodyFault::TooLarge, 413, "http: request body too large"),
        (BodyFault::Broken, 400, "the body ended early"),
    ] {
        let released = rig.kernel.serve(head("POST", "/v1/probe/count", ROOT), Box::new(Unread(fault))).await;
        let (got, _, audit::Body::Bytes(body)) = released.into_parts() else { panic!("a stream") };
        assert_eq!((got, serde_json::from_slice::<Value>(&body).unwrap()), (status, json!({ "errors": [text] })));
        let leaves = rig.leaves("access").await;
        assert!(leaves.iter().any(|leaf| leaf.contains(text) && leaf.contains(&format!(r#""status":{status}"#))), "{text}");
    }
    let late = Refusal::of(Kind::Late, "the header block did not arrive in time");
    assert_eq!(rig.kernel.reject(([127, 0, 0, 1], 1).into(), late).await.status(), 408);
}
