//! An identity is revoked as a whole: its tokens, what they made, its streams.

use kernel::REVOKED_AT_ONCE_MAX;
use serde_json::{Value, json};

use crate::rig::{ROOT, Rig};
use crate::streams::{line, watch};

const POLICY: &str = r#"
    path "probe/*" { capabilities = ["read"] }
    path "auth/token/create" { capabilities = ["update", "sudo"] }
    path "auth/token/renew-self" { capabilities = ["update"] }
"#;

/// The token of a login, which may watch and make tokens.
async fn login(rig: &Rig) -> String {
    rig.call("PUT", "sys/policies/acl/door", ROOT, json!({ "policy": POLICY })).await;
    rig.login(json!({}), json!({"policies": ["door"], "ttl": "1h"})).await["client_token"].as_str().unwrap().to_owned()
}

async fn make(rig: &Rig, parent: &str, body: Value) -> Value {
    let (status, body) = rig.call("POST", "auth/token/create", parent, body).await;
    assert_eq!(status, 200, "{body}");
    body["auth"].clone()
}

fn text(auth: &Value) -> String {
    auth["client_token"].as_str().unwrap().to_owned()
}

async fn lives(rig: &Rig, token: &str) -> bool {
    match rig.call("GET", "probe/count", token, Value::Null).await.0 {
        200 => true,
        403 => false,
        other => panic!("{other}"),
    }
}

async fn revoke(rig: &Rig, identity: &str) -> (u16, Value) {
    rig.call("POST", "sys/identities/revoke", ROOT, json!({"identity": identity, "reason": "seen where it must not be"})).await
}

#[tokio::test]
async fn all_that_an_identity_holds_ends_in_one_commit() {
    let rig = Rig::new().await;
    let first = login(&rig).await;
    let child = text(&make(&rig, &first, json!({})).await);
    let orphan = text(&make(&rig, &child, json!({"no_parent": true})).await);
    let of_orphan = text(&make(&rig, &orphan, json!({"no_parent": true})).await);
    let other = rig.token("other", POLICY).await;
    let below_other = text(&make(&rig, &other, json!({})).await);
    let family = [&first, &child, &orphan, &of_orphan];
    let mut streams = Vec::new();
    for token in [&first, &child, &orphan, &other] {
        let mut stream = watch(&rig, token).await;
        line(&mut stream).await.unwrap();
        streams.push(stream);
    }
    let (status, body) = revoke(&rig, "door/somebody").await;
    let data = &body["data"];
    assert_eq!(status, 200, "{body}");
    // The orphans came from the identity, so they count as its own; the child hangs on one of them.
    assert_eq!((&data["tokens_revoked"], &data["child_tokens_revoked"]), (&json!(3), &json!(1)), "{body}");
    assert_eq!((&data["secret_ids_destroyed"], &data["streams_ended"]), (&json!(7), &json!(3)), "{body}");
    assert_eq!((&data["identity"], &data["removal_goes_on"], &data["login_kept"]), (&json!("door/somebody"), &json!(false), &json!(true)));
    assert_eq!(data["policies"], json!(["default", "door"]));
    let mut stays = streams.pop().unwrap();
    for mut stream in streams {
        let end = line(&mut stream).await.unwrap();
        assert!(end.contains("no longer permitted"), "{end}");
        assert_eq!(line(&mut stream).await, None);
    }
    for token in family {
        assert!(!lives(&rig, token).await);
        assert_eq!(rig.call("POST", "auth/token/renew-self", token, json!({})).await.0, 403);
    }
    assert!(lives(&rig, &other).await && lives(&rig, &below_other).await);
    rig.call("POST", "probe/count", ROOT, json!({})).await;
    assert_eq!(line(&mut stays).await.as_deref(), Some("{\"count\":1}\n"), "others are served as before");
    // Who logs in anew is not what was revoked, until it is revoked again.
    let next = login(&rig).await;
    assert!(lives(&rig, &next).await);
    assert_eq!(revoke(&rig, "door/somebody").await.1["data"]["tokens_revoked"], 1);
    assert!(!lives(&rig, &next).await);
    let leaf = rig.leaves("change").await.into_iter().find(|leaf| leaf.contains("sys/identities/revoke")).unwrap();
    for fact in [r#""identity":"door/somebody""#, r#""reason":"seen where it must not be""#, r#""tokens_revoked":"4""#] {
        assert!(leaf.contains(fact), "{leaf}");
    }
}

#[tokio::test]
async fn of_more_tokens_than_fit_a_commit_none_works_after_it() {
    let rig = Rig::new().await;
    let mut tokens = Vec::new();
    for _ in 0..REVOKED_AT_ONCE_MAX + 20 {
        tokens.push(login(&rig).await);
    }
    let children: Vec<_> =
        [make(&rig, &tokens[0], json!({})).await, make(&rig, tokens.last().unwrap(), json!({})).await].iter().map(text).collect();
    let (_, body) = revoke(&rig, "door/somebody").await;
    assert_eq!((&body["data"]["tokens_revoked"], &body["data"]["removal_goes_on"]), (&json!(REVOKED_AT_ONCE_MAX), &json!(true)), "{body}");
    let new = login(&rig).await;
    for token in tokens.iter().chain(&children) {
        assert!(!lives(&rig, token).await);
    }
    // Jobs remove the rest, and leave alone what was made since.
    let mut listed = Vec::new();
    for _ in 0..2_000 {
        listed = accessors(&rig).await;
        if rig.call("LIST", "sys/duties", ROOT, Value::Null).await.1["data"]["keys"].to_string().matches("sweep").count() == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert!(lives(&rig, &new).await);
    let swept: usize = rig
        .leaves("change")
        .await
        .iter()
        .filter(|leaf| leaf.contains("sweep-identity") || leaf.contains("revoke-below"))
        .filter_map(|leaf| leaf.split(r#""tokens":""#).nth(1)?.split('"').next()?.parse::<usize>().ok())
        .sum();
    assert!((20..=22).contains(&swept), "{swept}");
}

async fn accessors(rig: &Rig) -> Vec<String> {
    let (status, body) = rig.call("LIST", "auth/token/accessors/", ROOT, Value::Null).await;
    assert_eq!(status, 200, "{body}");
    body["data"]["keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_is_no_identity_is_refused_with_a_sentence() {
    let rig = Rig::new().await;
    let login = login(&rig).await;
    let (_, looked) = rig.call("GET", "auth/token/lookup-self", ROOT, Value::Null).await;
    let root = format!("token/{}", looked["data"]["accessor"].as_str().unwrap());
    for (identity, status, said) in [
        ("root", 400, "`root` is not revoked as an identity"),
        (root.as_str(), 400, "`root` is not revoked as an identity"),
        ("door/nobody", 404, "no identity is named `door/nobody`"),
        ("door", 404, "no identity is named `door`"),
        ("nothing/x", 404, "no auth method is mounted at `auth/nothing/`"),
        ("token/aaaaaaaaaaaaaaaaaaaaaaaa", 404, "no token has the accessor"),
        ("a//b", 400, "field `identity`"),
        ("", 400, "field `identity`: missing"),
    ] {
        let (got, body) = revoke(&rig, identity).await;
        assert!(got == status && body.to_string().contains(said), "{identity}: {got} {body}");
    }
    let (status, body) = rig.call("POST", "sys/identities/revoke", ROOT, json!({"identity": "door/somebody"})).await;
    assert!(status == 400 && body.to_string().contains("field `reason`: missing"), "{body}");
    let (status, body) =
        rig.call("POST", "sys/identities/revoke", ROOT, json!({"identity": "door/somebody", "reason": "x", "since": "1h"})).await;
    assert!(status == 400 && body.to_string().contains("unknown field"), "{body}");
    assert!(lives(&rig, &login).await);
}

#[tokio::test]
async fn tokens_are_identities_of_their_own() {
    let rig = Rig::new().await;
    rig.call("PUT", "sys/policies/acl/door", ROOT, json!({ "policy": POLICY })).await;
    let made = make(&rig, ROOT, json!({"policies": ["door"]})).await;
    let orphan = text(&make(&rig, &text(&made), json!({"no_parent": true})).await);
    let (_, body) = revoke(&rig, &format!("token/{}", made["accessor"].as_str().unwrap())).await;
    let name = body["data"]["identity"].as_str().unwrap().to_owned();
    assert!(name.starts_with("token/") && !name.ends_with(made["accessor"].as_str().unwrap()), "{body}");
    assert!(!lives(&rig, &text(&made)).await && !lives(&rig, &orphan).await);
    // Again by its name: nothing is left.
    assert_eq!(revoke(&rig, &name).await.0, 404);
    // One token of a login is not its identity.
    let (one, two) = (login(&rig).await, login(&rig).await);
    let below = text(&make(&rig, &one, json!({})).await);
    let accessor =
        rig.call("POST", "auth/token/lookup", ROOT, json!({ "token": one })).await.1["data"]["accessor"].as_str().unwrap().to_owned();
    let (_, body) = revoke(&rig, &format!("token/{accessor}")).await;
    assert_eq!((&body["data"]["tokens_revoked"], &body["data"]["child_tokens_revoked"]), (&json!(1), &json!(1)), "{body}");
    assert!(body["warnings"][0].as_str().unwrap().contains("`door/somebody`, which keeps its other tokens"), "{body}");
    assert!(!lives(&rig, &one).await && !lives(&rig, &below).await && lives(&rig, &two).await);
}

#[tokio::test]
async fn accessors_are_listed_to_holders_of_sudo() {
    let rig = Rig::new().await;
    let mut made = Vec::new();
    for n in 0..4 {
        made.push(make(&rig, ROOT, json!({"display_name": n.to_string(), "ttl": "1h"})).await["accessor"].as_str().unwrap().to_owned());
    }
    made.push(rig.call("GET", "auth/token/lookup-self", ROOT, Value::Null).await.1["data"]["accessor"].as_str().unwrap().to_owned());
    made.sort();
    assert_eq!(accessors(&rig).await, made);
    let (_, page) = rig.call("LIST", &format!("auth/token/accessors/?limit=2&after={}", made[1]), ROOT, Value::Null).await;
    assert_eq!(page["data"]["keys"], json!(made[2..4]));
    assert!(page["warnings"][0].as_str().unwrap().contains(&format!("`after={}`", made[3])), "{page}");
    let info = &page["data"]["key_info"][&made[2]];
    assert!(info["display_name"].as_str().unwrap().starts_with("token") || info["display_name"] == "root", "{info}");
    let lister = rig.token("lister", r#"path "auth/token/accessors/" { capabilities = ["list"] }"#).await;
    assert_eq!(rig.call("LIST", "auth/token/accessors/", &lister, Value::Null).await.0, 403);
    let lister = rig.token("sudoer", r#"path "auth/token/accessors/" { capabilities = ["list", "sudo"] }"#).await;
    assert_eq!(rig.call("LIST", "auth/token/accessors/", &lister, Value::Null).await.0, 200);
    // Those that have ended are not listed, also before they are removed.
    rig.clock.advance(std::time::Duration::from_secs(3_600));
    assert_eq!(accessors(&rig).await.len(), 1, "root alone");
}
