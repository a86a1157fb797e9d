//! Tokens: lifetimes, trees, uses.

use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::{ROOT, Rig};

async fn make(rig: &Rig, parent: &str, body: Value) -> Result<Value, String> {
    let (status, body) = rig.call("POST", "auth/token/create", parent, body).await;
    if status == 200 { Ok(body["auth"].clone()) } else { Err(format!("{status} {body}")) }
}

#[tokio::test]
async fn a_token_looks_at_itself() {
    let rig = Rig::new().await;
    let auth = make(&rig, ROOT, json!({"policies": "p, default", "ttl": "10m", "meta": {"a": "b"}, "display_name": "x"})).await.unwrap();
    assert_eq!((auth["policies"].clone(), auth["lease_duration"].as_u64()), (json!(["default", "p"]), Some(600)));
    let token = auth["client_token"].as_str().unwrap();
    assert!(token.starts_with("hvs.") && token.len() == 28);
    let (status, body) = rig.call("GET", "auth/token/lookup-self", token, Value::Null).await;
    let data = &body["data"];
    assert_eq!(status, 200);
    assert_eq!((data["display_name"].as_str(), data["ttl"].as_u64(), data["orphan"].as_bool()), (Some("token-x"), Some(600), Some(false)));
    assert_eq!((data["meta"].clone(), data["type"].as_str()), (json!({"a": "b"}), Some("service")));
    assert_eq!(data["accessor"], auth["accessor"]);
    assert_eq!(data["id"], token, "a token may see itself");
    let writer = rig.token("writer", r#"path "auth/token/lookup-self" { capabilities = ["update"] }"#).await;
    let (_, body) = rig.call("POST", "auth/token/lookup-self", &writer, json!({"token": ROOT})).await;
    assert_eq!(body["data"]["id"], writer, "and no other, whatever it names");
    let (_, body) = rig.call("GET", "auth/token/lookup-self", ROOT, Value::Null).await;
    assert_eq!((body["data"]["ttl"].as_u64(), body["data"]["expire_time"].clone()), (Some(0), Value::Null));
    let (status, body) = rig.call("POST", "auth/token/lookup", ROOT, json!({"token": "nothing"})).await;
    assert_eq!((status, body), (403, json!({"errors": ["bad token"]})));
}

/// Metadata of any size was kept, and read at each use of the token.
#[tokio::test]
async fn what_a_token_carries_is_bounded() {
    let rig = Rig::new().await;
    let names = |n: usize| json!((0..n).map(|n| (format!("name-{n}"), "")).collect::<std::collections::BTreeMap<_, _>>());
    for (field, fits, too_much) in [
        ("meta", names(64), names(65)),
        ("meta", json!({"a": "x".repeat(512)}), json!({"a": "x".repeat(513)})),
        ("meta", json!({"a".repeat(128): ""}), json!({"a".repeat(129): ""})),
        ("meta", json!({}), json!({"": ""})),
        ("display_name", json!("x".repeat(250)), json!("x".repeat(251))),
    ] {
        assert!(make(&rig, ROOT, json!({ field: fits })).await.is_ok(), "{field}");
        let error = make(&rig, ROOT, json!({ field: too_much })).await.unwrap_err();
        assert!(error.starts_with("400") && error.contains(&format!("field `{field}`")), "{error}");
    }
}

#[tokio::test]
async fn expiry_is_checked_at_use() {
    let rig = Rig::new().await;
    let auth = make(&rig, ROOT, json!({"ttl": 60})).await.unwrap();
    let token = auth["client_token"].as_str().unwrap().to_owned();
    rig.clock.advance(Duration::from_secs(59));
    assert_eq!(rig.call("GET", "auth/token/lookup-self", &token, Value::Null).await.0, 200);
    let (_, renewed) = rig.call("POST", "auth/token/renew-self", &token, json!({"increment": "30s"})).await;
    assert_eq!((&renewed["auth"]["lease_duration"], &renewed["auth"]["client_token"]), (&json!(30), &json!(token)));
    let (_, other) = rig.call("POST", "auth/token/renew-self", &token, json!({"token": ROOT, "increment": "30s"})).await;
    assert_eq!(other["auth"]["client_token"], token.as_str(), "the caller's own is meant, whatever is named");
    let (_, blind) = rig.call("POST", "auth/token/renew-accessor", ROOT, json!({"accessor": auth["accessor"], "increment": "30s"})).await;
    assert_eq!((&blind["auth"]["lease_duration"], &blind["auth"]["client_token"]), (&json!(30), &json!("")));
    rig.clock.advance(Duration::from_secs(29));
    assert_eq!(rig.call("GET", "auth/token/lookup-self", &token, Value::Null).await.0, 200);
    rig.clock.advance(Duration::from_secs(1));
    assert_eq!(rig.call("GET", "auth/token/lookup-self", &token, Value::Null).await.0, 403);
}

#[tokio::test]
async fn no_renewal_goes_beyond_the_maximum() {
    let rig = Rig::new().await;
    let auth = make(&rig, ROOT, json!({"ttl": "1h"})).await.unwrap();
    let token = auth["client_token"].as_str().unwrap().to_owned();
    rig.clock.advance(Duration::from_secs(3_000));
    let (_, body) = rig.call("POST", "auth/token/renew-self", &token, json!({"increment": "24h"})).await;
    assert_eq!(body["auth"]["lease_duration"], 4_200, "{body}");
    assert!(body["warnings"][0].as_str().unwrap().contains("exceeded the effective max_ttl"));
    let periodic = make(&rig, ROOT, json!({"period": "1h"})).await.unwrap();
    let periodic = periodic["client_token"].as_str().unwrap().to_owned();
    for _ in 0..5 {
        rig.clock.advance(Duration::from_secs(3_000));
        assert_eq!(rig.call("POST", "auth/token/renew-self", &periodic, json!({})).await.1["auth"]["lease_duration"], 3_600);
    }
    for (ttl, want) in [(json!("0"), 3_600), (json!(99_999_999), 7_200), (json!("3s"), 3), (json!("500ms"), 1)] {
        assert_eq!(make(&rig, ROOT, json!({"policies": ["default"], "ttl": ttl})).await.unwrap()["lease_duration"], want);
    }
    let error = make(&rig, ROOT, json!({"ttl": "0.0000000001ns"})).await.unwrap_err();
    assert!(error.starts_with("400") && error.contains("field `ttl`"), "{error}");
}

/// A root token with an end could make one without.
#[tokio::test]
async fn a_root_token_with_an_end_hands_on_no_endless_life() {
    let rig = Rig::new().await;
    let short = make(&rig, ROOT, json!({"policies": ["root"], "ttl": "60s"})).await.unwrap();
    let short = short["client_token"].as_str().unwrap();
    for body in [json!({}), json!({"no_parent": true}), json!({"policies": ["root"], "ttl": 0})] {
        let error = make(&rig, short, body.clone()).await.unwrap_err();
        assert!(
            error.starts_with("400") && error.contains("expiring root tokens cannot create non-expiring root tokens"),
            "{body}: {error}"
        );
    }
    assert_eq!(make(&rig, short, json!({"no_parent": true, "ttl": "30s"})).await.unwrap()["lease_duration"], 30);
    assert_eq!(make(&rig, short, json!({"policies": ["default"]})).await.unwrap()["lease_duration"], 3_600);
    assert_eq!(make(&rig, ROOT, json!({})).await.unwrap()["lease_duration"], 0, "that of one without an end may have none");
}

#[tokio::test]
async fn a_root_token_ends_by_its_explicit_maximum() {
    let rig = Rig::new().await;
    let auth = make(&rig, ROOT, json!({"policies": ["root"], "explicit_max_ttl": "60s"})).await.unwrap();
    assert_eq!((auth["lease_duration"].as_u64(), auth["renewable"].as_bool()), (Some(60), Some(true)));
    let token = auth["client_token"].as_str().unwrap();
    rig.clock.advance(Duration::from_secs(50));
    assert_eq!(rig.call("POST", "auth/token/renew-self", token, json!({})).await.1["auth"]["lease_duration"], 10);
    rig.clock.advance(Duration::from_secs(10));
    assert_eq!(rig.call("GET", "auth/token/lookup-self", token, Value::Null).await.0, 403);
}

/// A periodic token of a login outlived its explicit maximum by renewal.
#[tokio::test]
async fn a_login_that_says_how_long_at_most_is_obeyed_by_periodic_tokens_too() {
    let rig = Rig::new().await;
    let auth = rig.login(json!({}), json!({"period": "20s", "explicit_ttl_max": "50s"})).await;
    let token = auth["client_token"].as_str().unwrap();
    assert_eq!(auth["lease_duration"], 20);
    for left in [20, 20, 5] {
        rig.clock.advance(Duration::from_secs(15));
        assert_eq!(rig.call("POST", "auth/token/renew-self", token, json!({})).await.1["auth"]["lease_duration"], left);
    }
    assert_eq!(rig.call("GET", "auth/token/lookup-self", token, Value::Null).await.1["data"]["explicit_max_ttl"], 50);
    rig.clock.advance(Duration::from_secs(5));
    assert_eq!(rig.call("GET", "auth/token/lookup-self", token, Value::Null).await.0, 403);
    for (wishes, first) in [
        (json!({"period": "20s", "explicit_ttl_max": "5s"}), 5),
        (json!({"ttl": "20s", "explicit_ttl_max": "5s"}), 5),
        (json!({"ttl": "20s", "ttl_max": "4s", "explicit_ttl_max": "5s"}), 4),
        (json!({"ttl": "20s", "ttl_max": "9s"}), 9),
    ] {
        assert_eq!(rig.login(json!({}), wishes.clone()).await["lease_duration"], first, "{wishes}");
    }
}

/// The times that an auth method was enabled with were shown and never applied.
#[tokio::test]
async fn an_auth_method_bounds_the_tokens_of_its_logins() {
    let rig = Rig::new().await;
    let config = json!({"max_lease_ttl": "60s", "default_lease_ttl": "30s"});
    for (wishes, first) in [(json!({}), 30), (json!({"ttl": "10h"}), 60), (json!({"ttl_max": "20s"}), 20), (json!({"period": "10h"}), 60)] {
        assert_eq!(rig.login(config.clone(), wishes.clone()).await["lease_duration"], first, "{wishes}");
    }
    for (wishes, left) in [(json!({}), 35), (json!({"period": "10h"}), 60)] {
        let auth = rig.login(config.clone(), wishes.clone()).await;
        let token = auth["client_token"].as_str().unwrap();
        rig.clock.advance(Duration::from_secs(25));
        let (_, body) = rig.call("POST", "auth/token/renew-self", token, json!({"increment": "10h"})).await;
        assert_eq!(body["auth"]["lease_duration"], left, "{wishes}: {body}");
    }
}

#[tokio::test]
async fn an_auth_method_may_allow_more_than_the_system() {
    let rig = Rig::new().await;
    let auth = rig.login(json!({"max_lease_ttl": "10h"}), json!({"ttl": "9h"})).await;
    assert_eq!(auth["lease_duration"], 9 * 3_600);
}

#[tokio::test]
async fn children_stay_below_their_parent() {
    let rig = Rig::new().await;
    let policy = r#"path "auth/token/create" { capabilities = ["update"] } path "auth/token/create-orphan" { capabilities = ["update"] }"#;
    let parent = rig.token("maker", policy).await;
    for (body, text) in [
        (json!({"policies": ["other"]}), "child policies must be subset of parent"),
        (json!({"policies": ["root"]}), "root tokens may only be created by root"),
        (json!({"policies": ["ROOT"]}), "root tokens may only be created by root"),
        (json!({"no_parent": true}), "root or sudo privileges required"),
        (json!({"id": "chosen"}), "root or sudo privileges required"),
        (json!({"period": "1h"}), "root or sudo privileges required"),
        (json!({"type": "batch"}), "only `service`"),
        (json!({"policies": ["bad name"]}), "field `policies`"),
    ] {
        let error = make(&rig, &parent, body.clone()).await.unwrap_err();
        assert!(error.starts_with("400") && error.contains(text), "{body}: {error}");
    }
    assert_eq!(rig.call("POST", "auth/token/create-orphan", &parent, json!({})).await.0, 403);
    let child = make(&rig, &parent, json!({"policies": ["maker"]})).await.unwrap()["client_token"].as_str().unwrap().to_owned();
    let grandchild = make(&rig, &child, json!({})).await.unwrap()["client_token"].as_str().unwrap().to_owned();
    assert_eq!(rig.call("POST", "auth/token/revoke-self", &parent, json!({})).await.0, 204);
    for token in [&parent, &child, &grandchild] {
        assert_eq!(rig.call("GET", "auth/token/lookup-self", token, Value::Null).await.0, 403);
    }
}

#[tokio::test]
async fn children_can_outlive_their_parent() {
    let rig = Rig::new().await;
    let policy = r#"path "auth/token/create" { capabilities = ["update"] } path "auth/token/revoke-orphan" { capabilities = ["update"] }"#;
    let parent = rig.token("maker", policy).await;
    let child = make(&rig, &parent, json!({})).await.unwrap()["client_token"].as_str().unwrap().to_owned();
    assert_eq!(rig.call("POST", "auth/token/revoke-orphan", &parent, json!({"token": parent})).await.0, 403, "sudo is needed");
    assert_eq!(rig.call("POST", "auth/token/revoke-orphan", ROOT, json!({"token": parent})).await.0, 204);
    assert_eq!(rig.call("GET", "auth/token/lookup-self", &parent, Value::Null).await.0, 403);
    let (status, body) = rig.call("GET", "auth/token/lookup-self", &child, Value::Null).await;
    assert_eq!((status, body["data"]["orphan"].as_bool()), (200, Some(true)));
}

#[tokio::test]
async fn a_use_is_used_even_when_refused() {
    let rig = Rig::new().await;
    let auth = make(&rig, ROOT, json!({"policies": ["default"], "num_uses": 3})).await.unwrap();
    let token = auth["client_token"].as_str().unwrap().to_owned();
    assert_eq!(rig.call("GET", "auth/token/lookup-self", &token, Value::Null).await.1["data"]["num_uses"], 2);
    assert_eq!(rig.call("GET", "sys/mounts", &token, Value::Null).await.0, 403);
    assert_eq!(rig.call("GET", "auth/token/lookup-self", &token, Value::Null).await.0, 200);
    assert_eq!(rig.call("GET", "auth/token/lookup-self", &token, Value::Null).await.0, 403);
    assert!(make(&rig, &token, json!({})).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_use_has_one_winner() {
    let rig = std::sync::Arc::new(Rig::new().await);
    let auth = make(&rig, ROOT, json!({"policies": ["default"], "num_uses": 1})).await.unwrap();
    let token = auth["client_token"].as_str().unwrap().to_owned();
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (rig, token) = (std::sync::Arc::clone(&rig), token.clone());
            tokio::spawn(async move { rig.call("POST", "sys/capabilities-self", &token, json!({"path": "a"})).await.0 })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        won += u32::from(task.await.unwrap() == 200);
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn accessors_are_not_tokens() {
    let rig = Rig::new().await;
    let auth = make(&rig, ROOT, json!({"policies": ["default"]})).await.unwrap();
    let accessor = auth["accessor"].as_str().unwrap();
    assert_eq!(rig.call("GET", "auth/token/lookup-self", accessor, Value::Null).await.0, 403);
    let (_, body) = rig.call("POST", "auth/token/lookup-accessor", ROOT, json!({"accessor": accessor})).await;
    assert_eq!((body["data"]["id"].as_str(), body["data"]["accessor"].as_str()), (Some(""), Some(accessor)));
    assert_eq!(rig.call("POST", "auth/token/lookup-accessor", ROOT, json!({"accessor": "x"})).await.0, 400);
    assert_eq!(rig.call("POST", "auth/token/revoke-accessor", ROOT, json!({"accessor": accessor})).await.0, 204);
    let (status, body) = rig.call("POST", "auth/token/revoke-accessor", ROOT, json!({"accessor": accessor})).await;
    assert_eq!((status, body["warnings"][0].as_str()), (200, Some("No token found with this accessor")));
}

/// A token with more children than one commit takes could not be revoked at all; then its children lived until they were swept, and for
/// ever under a new token of the same text.
#[tokio::test]
async fn a_large_family_does_not_save_a_token() {
    let rig = Rig::new().await;
    let parent = make(&rig, ROOT, json!({"id": "chosen-1"})).await.unwrap()["client_token"].as_str().unwrap().to_owned();
    let mut children = Vec::new();
    for _ in 0..kernel::REVOKED_AT_ONCE_MAX + 5 {
        children.push(make(&rig, &parent, json!({})).await.unwrap()["client_token"].as_str().unwrap().to_owned());
    }
    assert_eq!(rig.call("POST", "auth/token/revoke", ROOT, json!({"token": parent})).await.0, 204);
    assert_eq!(rig.call("GET", "auth/token/lookup-self", &parent, Value::Null).await.0, 403);
    make(&rig, ROOT, json!({"id": "chosen-1"})).await.unwrap();
    for child in &children {
        assert_eq!(rig.call("GET", "auth/token/lookup-self", child, Value::Null).await.0, 403);
    }
    assert_eq!(rig.call("GET", "auth/token/lookup-self", &parent, Value::Null).await.0, 200);
}

#[tokio::test]
async fn a_child_ends_with_those_above_it() {
    let rig = Rig::new().await;
    let mut family = vec![make(&rig, ROOT, json!({"policies": ["root"], "ttl": "60s"})).await.unwrap()];
    for _ in 0..2 {
        let parent = family.last().unwrap()["client_token"].as_str().unwrap();
        family.push(make(&rig, parent, json!({"policies": ["root"], "ttl": "1h"})).await.unwrap());
    }
    let token = |n: usize| family[n]["client_token"].as_str().unwrap();
    let orphan = make(&rig, token(1), json!({"policies": ["root"], "ttl": "1h", "no_parent": true})).await.unwrap();
    rig.clock.advance(Duration::from_secs(60));
    for n in 0..3 {
        assert_eq!(rig.call("GET", "auth/token/lookup-self", token(n), Value::Null).await.0, 403, "{n}");
    }
    assert_eq!(rig.call("GET", "auth/token/lookup-self", orphan["client_token"].as_str().unwrap(), Value::Null).await.0, 200);
}

#[tokio::test]
async fn a_family_has_a_last_generation() {
    let rig = Rig::new().await;
    let mut last = ROOT.to_owned();
    let error = loop {
        match make(&rig, &last, json!({})).await {
            Ok(child) => last = child["client_token"].as_str().unwrap().to_owned(),
            Err(error) => break error,
        }
    };
    assert!(error.starts_with("400") && error.contains("at most 32 ancestors"), "{error}");
    assert_eq!(rig.call("GET", "auth/token/lookup-self", &last, Value::Null).await.0, 200);
    assert!(make(&rig, &last, json!({"no_parent": true})).await.is_ok());
}

/// The tokens of an auth method lived on, renewable, when it was disabled.
#[tokio::test]
async fn tokens_end_with_their_auth_method() {
    let rig = Rig::new().await;
    let policy = json!({"policy": r#"path "auth/token/create" { capabilities = ["update"] }"#});
    assert_eq!(rig.call("PUT", "sys/policies/acl/maker", ROOT, policy).await.0, 204);
    let auth = rig.login(json!({}), json!({"policies": ["maker"]})).await;
    let token = auth["client_token"].as_str().unwrap().to_owned();
    let child = make(&rig, &token, json!({})).await.unwrap()["client_token"].as_str().unwrap().to_owned();
    assert_eq!(rig.call("GET", "auth/token/lookup-self", &child, Value::Null).await.0, 200);
    assert_eq!(rig.call("DELETE", "sys/auth/door", ROOT, Value::Null).await.0, 204);
    let refused = async || {
        for token in [&token, &child] {
            assert_eq!(rig.call("GET", "auth/token/lookup-self", token, Value::Null).await.0, 403);
            assert_eq!(rig.call("POST", "auth/token/renew-self", token, json!({})).await.0, 403);
            assert_eq!(rig.call("POST", "auth/token/renew", ROOT, json!({"token": token})).await.0, 403);
        }
    };
    refused().await;
    let again = rig.login(json!({}), json!({})).await;
    assert_eq!(rig.call("GET", "auth/token/lookup-self", again["client_token"].as_str().unwrap(), Value::Null).await.0, 200);
    refused().await;
}
