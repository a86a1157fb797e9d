//! Nothing leaves unrecorded, and no value is in any record.

use serde_json::{Value, json};

use crate::rig::{ROOT, Rig};

#[tokio::test]
async fn every_answer_points_to_its_record() {
    let rig = Rig::new().await;
    let mut seen = std::collections::BTreeSet::new();
    for (method, target, token, body) in [
        ("GET", "/v1/probe/count", ROOT, ""),
        ("POST", "/v1/probe/count", ROOT, "{}"),
        ("POST", "/v1/probe/refuse", ROOT, "{}"),
        ("GET", "/v1/probe/count", "wrong", ""),
        ("GET", "/v1/../x", "", ""),
        ("BREW", "/v1/x", "", ""),
        ("POST", "/v1/probe/count", ROOT, "{"),
        ("GET", "/v1/sys/health", "", ""),
        ("GET", "/elsewhere", "", ""),
        ("POST", "/v1/probe/act/x", ROOT, "{}"),
    ] {
        let (status, headers, _) = rig.raw(method, target, token, body.as_bytes().to_vec()).await;
        let (_, entry) = headers.iter().find(|(n, _)| *n == "x-audit-entry").unwrap_or_else(|| panic!("{method} {target} has no entry"));
        let (origin, index) = entry.rsplit_once('/').unwrap();
        let tree = if origin.ends_with("/change") { "change" } else { "access" };
        let leaf = rig.leaves(tree).await[index.parse::<usize>().unwrap()].clone();
        // An act is answered by the commit that settles it.
        let mark = if target.contains("/act/") { r#""outcome":"done""#.to_owned() } else { format!(r#""status":{status}"#) };
        assert!(leaf.contains(&mark), "{method} {target}: {leaf}");
        assert!(seen.insert(entry.clone()), "two answers share {entry}");
    }
}

#[tokio::test]
async fn no_value_is_in_any_record() {
    let rig = Rig::new().await;
    let token = rig.token("canary", r#"path "probe/*" { capabilities = ["read", "update"] }"#).await;
    let accessor = rig.call("GET", "auth/token/lookup-self", &token, Value::Null).await.1["data"]["accessor"].as_str().unwrap().to_owned();
    rig.call("POST", "probe/count", &token, json!({"secret": "CANARY", "n": 77_123, "other": {"deep": ["CANARY", 1]}})).await;
    rig.call("POST", "probe/count", "CANARY", json!({"secret": "CANARY"})).await;
    rig.raw("POST", "/v1/probe/count", &token, br#"{"secret":"CANARY"#.to_vec()).await;
    // A token where none belongs.
    for (path, caller) in [
        (format!("auth/token/revoke/{token}x"), ROOT),
        (format!("auth/token/revoke/{token}"), "wrong"),
        (format!("nothing/{token}/x"), ROOT),
        (format!("nothing/{ROOT}"), ROOT),
    ] {
        let mut head = crate::rig::head("POST", &format!("/v1/{path}"), caller);
        head.headers.push(("user-agent".into(), format!("ua-{token} {caller}")));
        rig.kernel.serve(head, Box::new(bytes::Bytes::new())).await;
    }
    let refused = rig.call("PUT", "sys/policies/acl/bad", ROOT, json!({"policy": "path \"x\" { CANARY = 1 }"})).await;
    assert_eq!(refused.0, 400);
    let mut all = rig.leaves("change").await;
    all.extend(rig.leaves("access").await);
    assert!(all.len() > 8);
    for leaf in &all {
        for canary in ["CANARY", ROOT, token.as_str(), accessor.as_str()] {
            assert!(!leaf.contains(canary), "{canary} in {leaf}");
        }
    }
    // Public fields and who was it are there, and a known value can be looked for.
    assert!(all.iter().any(|l| l.contains(r#""n":"77123""#)), "public fields are in clear");
    let (_, body) = rig.call("POST", "sys/audit-log/hash", ROOT, json!({"field": "secret", "input": "CANARY"})).await;
    let hash = body["data"]["hash"].as_str().unwrap();
    assert!(all.iter().any(|l| l.contains(hash)), "the investigator finds it");
}

/// What came by the query alone was not in the record.
#[tokio::test]
async fn what_comes_by_the_query_is_recorded_like_the_body() {
    let rig = Rig::new().await;
    let hash = async |field: &str, input: &str| {
        let (_, body) = rig.call("POST", "sys/audit-log/hash", ROOT, json!({"field": field, "input": input})).await;
        body["data"]["hash"].as_str().unwrap().to_owned()
    };
    for (method, target, token, body, fields) in [
        ("POST", "/v1/auth/token/revoke?token=nobody%27s", ROOT, "", vec![("token", "nobody's")]),
        (
            "POST",
            "/v1/probe/refuse?secret=query&other=query-2",
            ROOT,
            r#"{"secret":"body"}"#,
            vec![("secret", "body"), ("other", "query-2")],
        ),
        ("GET", "/v1/probe/count?more=1&more=2", ROOT, "", vec![("more/0", "1"), ("more/1", "2")]),
        ("GET", "/v1/probe/count?more=stranger", "wrong", "", vec![("more", "stranger")]),
        ("POST", "/v1/probe/count?more=broken", ROOT, "{", vec![("more", "broken"), ("body", "{")]),
    ] {
        let (_, headers, _) = rig.raw(method, target, token, body.as_bytes().to_vec()).await;
        let (_, entry) = headers.iter().find(|(n, _)| *n == "x-audit-entry").unwrap();
        let (origin, index) = entry.rsplit_once('/').unwrap();
        let tree = if origin.ends_with("/change") { "change" } else { "access" };
        let leaf: Value = serde_json::from_str(&rig.leaves(tree).await[index.parse::<usize>().unwrap()]).unwrap();
        let request = &leaf["record"]["request"];
        for (field, value) in fields {
            let found = if field == "body" { &request["body"] } else { &request["fields"][field] };
            assert_eq!(found, &json!(hash(field, value).await), "{method} {target}: {leaf}");
        }
    }
}

#[tokio::test]
async fn a_restart_goes_on_in_both_trees() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let rig = Rig::at(kernel::Place::Directory(path.clone())).await;
    rig.call("POST", "probe/count", ROOT, json!({})).await;
    let before = rig.leaves("change").await;
    let rig = Rig::again(&path, rig).await;
    assert_eq!(rig.call("GET", "probe/count", ROOT, Value::Null).await.1["data"]["count"], 1);
    rig.call("POST", "probe/count", ROOT, json!({})).await;
    let after = rig.leaves("change").await;
    assert_eq!(&after[..before.len()], &before[..]);
    assert!(after.len() > before.len());
    let boots = rig.leaves("access").await.iter().filter(|l| l.contains(r#""kind":"boot""#)).count();
    assert_eq!(boots, 2);
}
