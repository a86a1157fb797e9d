//! What a client that was written for Vault sees: shapes, statuses and the texts that it matches.

use serde_json::{Value, json};

use crate::rig::{ROOT, Server};

async fn with_secret() -> Server {
    let server = Server::start().await;
    let mounted = server.call("POST", "sys/mounts/secret", ROOT, json!({"type": "kv-v2"})).await;
    assert_eq!(mounted, (204, Value::Null));
    server
}

fn names(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// One row: method, path, body, then the status and a JSON pointer with the value that must be there.
struct Row(&'static str, &'static str, Value, u16, &'static str, Value);

async fn check(server: &Server, token: &str, rows: Vec<Row>) {
    for Row(method, path, body, status, pointer, value) in rows {
        let (got, answer) = server.call(method, path, token, body.clone()).await;
        assert_eq!(got, status, "{method} {path} {body} → {answer}");
        assert_eq!(answer.pointer(pointer), Some(&value), "{method} {path} {body}: `{pointer}` in {answer}");
    }
}

#[tokio::test]
async fn health_and_seal_status() {
    let server = Server::start().await;
    let (status, health) = server.call("GET", "sys/health", "", Value::Null).await;
    assert_eq!(status, 200);
    for (name, value) in [("initialized", true), ("sealed", false), ("standby", false), ("performance_standby", false)] {
        assert_eq!(health[name], json!(value), "{name}");
    }
    assert!(health["version"].as_str().unwrap().split('.').all(|part| part.parse::<u32>().is_ok()), "a plain version, without a suffix");
    assert!(health["server_time_utc"].is_u64() && health["cluster_id"].is_string() && health.get("request_id").is_none());
    let (status, seal) = server.call("GET", "sys/seal-status", "", Value::Null).await;
    assert_eq!((status, &seal["sealed"], &seal["initialized"]), (200, &json!(false), &json!(true)));
    for name in
        ["type", "t", "n", "progress", "nonce", "version", "migration", "recovery_seal", "storage_type", "cluster_name", "cluster_id"]
    {
        assert!(seal.get(name).is_some(), "{name}");
    }
    for (query, status) in [("activecode=299", 299), ("sealedcode=299", 200), ("activecode=x", 400)] {
        assert_eq!(server.call("GET", &format!("sys/health?{query}"), "", Value::Null).await.0, status, "{query}");
    }
    assert_eq!(server.call("GET", "sys/init", "", Value::Null).await, (200, json!({"initialized": true})));
    let again = server.call("PUT", "sys/init", "", json!({"secret_shares": 1, "secret_threshold": 1})).await;
    assert_eq!(again, (400, json!({"errors": ["Vault is already initialized"]})));
    assert_eq!(server.call("HEAD", "sys/health", "", Value::Null).await, (200, Value::Null));
    server.stop().await;
}

#[tokio::test]
async fn the_envelope_has_every_member() {
    let server = with_secret().await;
    server.call("POST", "secret/data/a", ROOT, json!({"data": {"k": "v"}})).await;
    let (_, answer) = server.call("GET", "secret/data/a", ROOT, Value::Null).await;
    let all = ["auth", "data", "lease_duration", "lease_id", "mount_type", "renewable", "request_id", "warnings", "wrap_info"];
    assert_eq!(names(&answer), all);
    assert_eq!((&answer["mount_type"], &answer["lease_id"], &answer["lease_duration"]), (&json!("kv"), &json!(""), &json!(0)));
    let (_, answer) = server.call("POST", "auth/token/create", ROOT, json!({"policies": ["B", "a"], "ttl": "1h"})).await;
    assert_eq!(names(&answer), all);
    let auth = &answer["auth"];
    for name in [
        "client_token",
        "accessor",
        "policies",
        "token_policies",
        "metadata",
        "lease_duration",
        "renewable",
        "entity_id",
        "token_type",
        "orphan",
    ] {
        assert!(auth.get(name).is_some(), "{name}");
    }
    assert_eq!((&auth["policies"], &auth["lease_duration"]), (&json!(["a", "b", "default"]), &json!(3600)));
    assert!(auth["client_token"].as_str().unwrap().starts_with("hvs."));
    // historic paths say everything twice
    let (_, mounts) = server.call("GET", "sys/mounts", ROOT, Value::Null).await;
    assert_eq!(mounts["secret/"], mounts["data"]["secret/"]);
    assert_eq!(mounts["secret/"]["options"], json!({"version": "2"}));
    server.stop().await;
}

#[tokio::test]
async fn kv_version_2() {
    let server = with_secret().await;
    let rows = vec![
        Row("GET", "secret/data/a", Value::Null, 404, "/errors", json!([])),
        Row("LIST", "secret/metadata/", Value::Null, 404, "/errors", json!([])),
        Row("POST", "secret/data/a", json!({}), 400, "/errors/0", json!("no data provided")),
        Row("POST", "secret/data/a", json!({"data": {"k": "1"}, "options": {"cas": 0}}), 200, "/data/version", json!(1)),
        Row(
            "PUT",
            "secret/data/a",
            json!({"data": {"k": "x"}, "options": {"cas": "0"}}),
            400,
            "/errors/0",
            json!("check-and-set parameter did not match the current version"),
        ),
        Row("PUT", "secret/data/a", json!({"data": {"k": "2", "n": 1e0}, "options": {"cas": "1"}}), 200, "/data/version", json!(2)),
        Row("GET", "secret/data/a", Value::Null, 200, "/data/data/k", json!("2")),
        Row("GET", "secret/data/a?version=1", Value::Null, 200, "/data/data", json!({"k": "1"})),
        Row("GET", "secret/data/a?version=9", Value::Null, 404, "/errors", json!([])),
        Row("GET", "secret/data/a", Value::Null, 200, "/data/metadata/custom_metadata", Value::Null),
        Row("POST", "secret/data/d/e", json!({"data": {"k": "1"}}), 200, "/data/deletion_time", json!("")),
        Row("LIST", "secret/metadata", Value::Null, 200, "/data/keys", json!(["a", "d/"])),
        Row("GET", "secret/metadata/?list=true", Value::Null, 200, "/data/keys", json!(["a", "d/"])),
        Row("GET", "secret/metadata/a", Value::Null, 200, "/data/current_version", json!(2)),
        Row("GET", "secret/metadata/a", Value::Null, 200, "/data/delete_version_after", json!("0s")),
        Row(
            "PATCH",
            "secret/data/a",
            json!({"data": {"k": "3"}}),
            415,
            "/errors/0",
            json!("PATCH needs `Content-Type: application/merge-patch+json`"),
        ),
        Row("PATCH", "sys/mounts", Value::Null, 415, "/errors/0", json!("PATCH needs `Content-Type: application/merge-patch+json`")),
    ];
    check(&server, ROOT, rows).await;
    assert_eq!(server.call("DELETE", "secret/data/a", ROOT, Value::Null).await, (204, Value::Null));
    // a deleted version is answered 404 with the whole envelope: clients parse it
    let (status, gone) = server.call("GET", "secret/data/a", ROOT, Value::Null).await;
    assert_eq!((status, &gone["data"]["data"], &gone["data"]["metadata"]["version"]), (404, &Value::Null, &json!(2)));
    assert_ne!(gone["data"]["metadata"]["deletion_time"], json!(""));
    assert_eq!(server.call("POST", "secret/undelete/a", ROOT, json!({"versions": ["2"]})).await.0, 204);
    assert_eq!(server.call("GET", "secret/data/a", ROOT, Value::Null).await.0, 200);
    assert_eq!(server.call("POST", "secret/destroy/a", ROOT, json!({"versions": [1]})).await.0, 204);
    let (status, gone) = server.call("GET", "secret/data/a?version=1", ROOT, Value::Null).await;
    assert_eq!((status, &gone["data"]["metadata"]["destroyed"]), (404, &json!(true)));
    server.stop().await;
}

#[tokio::test]
async fn errors_in_the_words_that_clients_match() {
    let server = with_secret().await;
    server
        .call("POST", "sys/policies/acl/nothing", ROOT, json!({"policy": "path \"secret/data/mine\" { capabilities = [\"read\"] }"}))
        .await;
    let (_, made) = server.call("POST", "auth/token/create", ROOT, json!({"policies": ["nothing"], "no_default_policy": true})).await;
    let poor = made["auth"]["client_token"].as_str().unwrap();
    let denied = json!("1 error occurred:\n\t* permission denied\n\n");
    for (token, method, path, status, text) in [
        (poor, "GET", "secret/data/other", 403, denied.clone()),
        (poor, "LIST", "secret/metadata/", 403, denied.clone()),
        (poor, "GET", "no/such/mount", 403, denied.clone()),
        (poor, "GET", "sys/mounts", 403, denied),
        ("hvs.unknown", "GET", "secret/data/other", 403, json!("2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")),
        ("", "GET", "secret/data/other", 403, json!("2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")),
        ("", "GET", "sys/internal/ui/mounts/secret", 403, json!("2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")),
        (ROOT, "GET", "no/such/mount", 404, json!("no handler for route \"no/such/mount\". route entry not found.")),
        (ROOT, "GET", "sys/nonsense/x", 404, json!("1 error occurred:\n\t* unsupported path\n\n")),
        (ROOT, "DELETE", "sys/mounts", 405, json!("1 error occurred:\n\t* unsupported operation\n\n")),
        (ROOT, "POST", "secret/data/x/", 400, json!("cannot write to a path ending in '/'")),
        (
            poor,
            "GET",
            "sys/internal/ui/mounts/nowhere/x",
            403,
            json!("preflight capability check returned 403, please ensure client's policies grant access to path \"nowhere/x/\""),
        ),
    ] {
        let (got, answer) = server.call(method, path, token, Value::Null).await;
        assert_eq!((got, &answer["errors"][0]), (status, &text), "{method} {path}");
        assert_eq!(names(&answer), ["errors"]);
    }
    let (status, answer) = server.call("GET", "secret/mine", ROOT, Value::Null).await;
    assert!(
        status == 404 && answer["warnings"][0].as_str().unwrap().starts_with("Invalid path for a versioned K/V secrets engine"),
        "{answer}"
    );
    let (status, preflight) = server.call("GET", "sys/internal/ui/mounts/secret/mine", poor, Value::Null).await;
    assert_eq!((status, &preflight["data"]["options"]["version"], &preflight["data"]["path"]), (200, &json!("2"), &json!("secret/")));
    // version 1 is never made into version 2 behind its maker's back
    for (body, text) in [
        (json!({"type": "kv"}), "plain `kv` is version 1, which is not supported; use `kv-v2`, or `kv` with option `version=2`"),
        (json!({"type": "kv", "options": {}}), "plain `kv` is version 1"),
        (json!({"type": "kv", "options": {"version": ""}}), "plain `kv` is version 1"),
        (json!({"type": "kv", "options": {"version": "1"}}), "kv has version 2 only"),
        (json!({"type": "kv-v1"}), "kv version 1 is not supported"),
    ] {
        let (status, answer) = server.call("POST", "sys/mounts/other", ROOT, body).await;
        assert!(status == 400 && answer["errors"][0].as_str().unwrap().contains(text), "{answer}");
    }
    assert_eq!(server.call("POST", "sys/mounts/other", ROOT, json!({"type": "kv", "options": {"version": "2"}})).await.0, 204);
    assert_eq!(server.call("POST", "sys/mounts/secret", ROOT, json!({"type": "kv-v2"})).await.0, 400);
    server.stop().await;
}

#[tokio::test]
async fn policies_keep_their_text() {
    let server = Server::start().await;
    let text = "# comment\npath \"a/*\" {\n  capabilities = [\"read\"]\n}\n";
    assert_eq!(server.call("GET", "sys/policies/acl/none", ROOT, Value::Null).await, (404, json!({"errors": []})));
    assert_eq!(server.call("PUT", "sys/policies/acl/bad", ROOT, json!({"policy": "path \"a\" {"})).await.0, 400);
    assert_eq!(server.call("PUT", "sys/policies/acl/Mine", ROOT, json!({"policy": text})).await, (204, Value::Null));
    let rows = vec![
        Row("GET", "sys/policies/acl/mine", Value::Null, 200, "/data", json!({"name": "mine", "policy": text})),
        Row("LIST", "sys/policies/acl", Value::Null, 200, "/data/keys", json!(["default", "mine", "root"])),
        Row("GET", "sys/policy/mine", Value::Null, 200, "/rules", json!(text)),
        Row("GET", "sys/policy", Value::Null, 200, "/policies", json!(["default", "mine", "root"])),
    ];
    check(&server, ROOT, rows).await;
    for name in ["root", "default"] {
        assert_eq!(server.call("DELETE", &format!("sys/policies/acl/{name}"), ROOT, Value::Null).await.0, 400, "{name}");
    }
    server.stop().await;
}

#[tokio::test]
async fn tokens_live_and_die() {
    let server = Server::start().await;
    let create = |body: Value| server.call("POST", "auth/token/create", ROOT, body);
    let (_, parent) = create(json!({"ttl": "1h", "meta": {"team": "x"}, "display_name": "me", "policies": ["root"]})).await;
    let parent = parent["auth"]["client_token"].as_str().unwrap().to_owned();
    let (_, child) = server.call("POST", "auth/token/create", &parent, json!({"policies": ["default"]})).await;
    let child = child["auth"]["client_token"].as_str().unwrap().to_owned();
    let (status, me) = server.call("GET", "auth/token/lookup-self", &parent, Value::Null).await;
    assert_eq!(status, 200);
    for name in [
        "accessor",
        "creation_time",
        "creation_ttl",
        "display_name",
        "entity_id",
        "expire_time",
        "explicit_max_ttl",
        "id",
        "meta",
        "num_uses",
        "orphan",
        "path",
        "policies",
        "ttl",
        "type",
    ] {
        assert!(me["data"].get(name).is_some(), "{name} in {me}");
    }
    assert_eq!(
        (&me["data"]["id"], &me["data"]["display_name"], &me["data"]["meta"]),
        (&json!(parent), &json!("token-me"), &json!({"team": "x"}))
    );
    assert!(me["data"]["creation_time"].is_u64() && me["data"]["ttl"].as_u64().unwrap() <= 3600);
    let by_accessor = server.call("POST", "auth/token/lookup-accessor", ROOT, json!({"accessor": me["data"]["accessor"]})).await.1;
    assert_eq!(by_accessor["data"]["id"], json!(""));
    let (status, renewed) = server.call("POST", "auth/token/renew-self", &parent, json!({"increment": 1800})).await;
    assert_eq!((status, &renewed["auth"]["lease_duration"]), (200, &json!(1800)));
    // one use only
    let (_, once) = create(json!({"num_uses": 1, "policies": ["default"]})).await;
    let once = once["auth"]["client_token"].as_str().unwrap();
    assert_eq!(server.call("GET", "auth/token/lookup-self", once, Value::Null).await.0, 200);
    assert_eq!(server.call("GET", "auth/token/lookup-self", once, Value::Null).await.0, 403);
    // a parent takes its children along
    assert_eq!(server.call("POST", "auth/token/revoke", ROOT, json!({"token": parent})).await.0, 204);
    for dead in [&parent, &child] {
        assert_eq!(server.call("GET", "auth/token/lookup-self", dead, Value::Null).await.0, 403);
        let (status, bad) = server.call("POST", "auth/token/lookup", ROOT, json!({"token": dead})).await;
        assert_eq!((status, &bad["errors"][0]), (403, &json!("bad token")));
    }
    for (body, status) in [(json!({"ttl": "1y"}), 400), (json!({"ttl": -1}), 400), (json!({"ttl": "١h"}), 400), (json!({"ttl": []}), 400)]
    {
        assert_eq!(create(body.clone()).await.0, status, "{body}");
    }
    let (_, long) = create(json!({"ttl": "999999h", "policies": ["default"]})).await;
    assert!(long["auth"]["lease_duration"].as_u64().is_none_or(|seconds| seconds <= 768 * 3600), "capped: {long}");
    server.stop().await;
}
