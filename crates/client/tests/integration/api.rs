//! Calls, errors, logins, renewals.

use base::SecretString;
use client::{Client, Error, Login};
use serde_json::{Value, json};

use crate::fake::{Fake, Heard};

fn token(text: &str) -> Option<SecretString> {
    Some(SecretString::new(text.to_owned()))
}

#[tokio::test]
async fn calls_arrive_as_the_api_wants_them() {
    let mut fake = Fake::start().await;
    let client = Client::new(&fake.address, token("t")).unwrap();
    fake.knobs().other.1 = json!({"data": {"keys": ["a", "b/"], "version": 3, "data": {"x": 1}, "metadata": {"version": 3}}}).to_string();

    client.read("secret/data/a b", &[("version", "2")]).await.unwrap();
    assert_eq!(client.list("secret/metadata/").await.unwrap(), ["a", "b/"]);
    client.write("sys/policies/acl/p", &json!({"policy": "x"})).await.unwrap();
    client.delete("secret/data/a").await.unwrap();
    let secret = client.kv_get("secret", "a", Some(3)).await.unwrap().unwrap();
    assert_eq!((secret.version(), secret.data.get("x")), (Some(3), Some(&json!(1))));
    assert_eq!(client.kv_put("secret/", "a", &json!({"x": 1}), Some(2)).await.unwrap(), 3);

    for (method, target, body) in [
        ("GET", "/v1/secret/data/a%20b?version=2", ""),
        ("LIST", "/v1/secret/metadata/", ""),
        ("POST", "/v1/sys/policies/acl/p", r#"{"policy":"x"}"#),
        ("DELETE", "/v1/secret/data/a", ""),
        ("GET", "/v1/secret/data/a?version=3", ""),
        ("POST", "/v1/secret/data/a", r#"{"data":{"x":1},"options":{"cas":2}}"#),
    ] {
        assert_eq!(fake.next().await, Heard::Other { method: method.into(), target: target.into(), body: body.into() });
    }
    assert!(client.read("secret/data/../x", &[]).await.is_err() && fake.quiet(), "nothing was sent");
}

#[tokio::test]
async fn refusals_carry_status_and_texts() {
    let fake = Fake::start().await;
    let client = Client::new(&fake.address, token("hvs.canary")).unwrap();
    for (status, body, texts) in [
        (403, r#"{"errors":["permission denied"]}"#, vec!["permission denied"]),
        (404, r#"{"errors":[]}"#, vec![]),
        (503, "sealed", vec![]),
        (307, "", vec![]),
    ] {
        fake.knobs().other = (status, body.to_owned());
        let error = client.read("secret/data/x", &[]).await.err().unwrap();
        assert!(!client::explain(&error).contains("canary"));
        let Error::Refused { status: told, errors, url, method } = error else { panic!("{error}") };
        assert_eq!((told, errors), (status, texts.into_iter().map(str::to_owned).collect()));
        assert_eq!((method.as_str(), url), ("GET", format!("{}/v1/secret/data/x", fake.address)));
    }
    assert!(client.kv_get("secret", "x", None).await.is_err(), "a redirect is not an absence");
    fake.knobs().other = (404, r#"{"errors":[]}"#.to_owned());
    assert!(client.kv_get("secret", "x", None).await.unwrap().is_none());
    fake.knobs().other = (200, r#"{"data":null}"#.to_owned());
    assert!(matches!(client.list("secret/").await, Err(Error::Answer { .. })));
}

#[tokio::test]
async fn a_login_gives_the_token_that_follows() {
    let mut fake = Fake::start().await;
    let client = Client::new(&fake.address, None).unwrap();
    let auth = client.login_approle("role", SecretString::new("secret-1".into())).await.unwrap();
    assert_eq!((auth.client_token.expose().as_str(), auth.lease_duration), ("token-1", 3_600));
    assert_eq!(client.token().unwrap().expose(), "token-1");
    assert_eq!(fake.next().await, Heard::Login { secret_id: "secret-1".into() });

    let error = client.login_approle("role", SecretString::new("wrong-canary".into())).await.err().unwrap();
    assert_eq!(error.status(), Some(400));
    assert!(!client::explain(&error).contains("canary"));
    assert_eq!(client.token().unwrap().expose(), "token-1", "a failed login changes nothing");
}

#[tokio::test]
async fn many_who_were_refused_log_in_once_and_read_the_files_anew() {
    let mut fake = Fake::start().await;
    let folder = tempfile::tempdir().unwrap();
    let (role_id, secret_id) = (folder.path().join("r"), folder.path().join("s"));
    std::fs::write(&role_id, "role\n").unwrap();
    std::fs::write(&secret_id, "secret-1\n").unwrap();
    let client = Client::new(&fake.address, None).unwrap();
    client.login(Login::AppRoleFiles { mount: "approle".into(), role_id, secret_id: secret_id.clone() }).await.unwrap();
    let refused = client.token();
    std::fs::write(&secret_id, "secret-2\n").unwrap();
    let attempts: Vec<_> = (0..8)
        .map(|_| {
            let (client, refused) = (client.clone(), refused.clone());
            tokio::spawn(async move { client.login_again(refused.as_ref()).await })
        })
        .collect();
    for attempt in attempts {
        attempt.await.unwrap().unwrap();
    }
    for secret_id in ["secret-1", "secret-2"] {
        assert_eq!(fake.next().await, Heard::Login { secret_id: secret_id.into() });
    }
    assert!(fake.quiet());
    let alone = Client::new(&fake.address, token("t")).unwrap();
    assert!(matches!(alone.login_again(token("t").as_ref()).await, Err(Error::NoLogin)));
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires_and_replaced_when_it_cannot_be() {
    let mut fake = Fake::start().await;
    fake.knobs().lease_seconds = 1;
    let client = Client::new(&fake.address, None).unwrap();
    client.login_approle("role", SecretString::new("secret-1".into())).await.unwrap();
    fake.next().await;
    let keeper = client.keep_token();
    for _ in 0..2 {
        assert_eq!(fake.next().await, Heard::Renew { token: "token-1".into() });
    }
    fake.knobs().refuse_renewals = true;
    assert_eq!(fake.next().await, Heard::Renew { token: "token-1".into() });
    assert_eq!(fake.next().await, Heard::Login { secret_id: "secret-1".into() });
    assert_eq!(fake.next().await, Heard::Renew { token: "token-2".into() });
    drop(keeper);
}

#[tokio::test]
async fn a_given_token_is_looked_up_and_one_without_end_is_left_alone() {
    let mut fake = Fake::start().await;
    fake.knobs().other.1 = json!({"data": {"ttl": 1}}).to_string();
    let client = Client::new(&fake.address, token("given")).unwrap();
    let keeper = client.keep_token();
    assert!(matches!(fake.next().await, Heard::Other { target, .. } if target == "/v1/auth/token/lookup-self"));
    assert_eq!(fake.next().await, Heard::Renew { token: "given".into() });
    drop(keeper);

    let mut fake = Fake::start().await;
    fake.knobs().other.1 = json!({"data": {"ttl": 0, "extra": Value::Null}}).to_string();
    let client = Client::new(&fake.address, token("root")).unwrap();
    let _keeper = client.keep_token();
    fake.next().await;
    // whatever it does next would have to be heard before this
    client.set_token(SecretString::new("other".into()));
    assert!(matches!(fake.next().await, Heard::Other { target, .. } if target == "/v1/auth/token/lookup-self"));
}

#[tokio::test]
async fn a_given_token_is_renewed_although_the_server_was_away_when_it_was_looked_up() {
    let mut fake = Fake::start().await;
    fake.knobs().other = (503, r#"{"errors":["sealed"]}"#.to_owned());
    let client = Client::new(&fake.address, token("given")).unwrap();
    let _keeper = client.keep_token();
    fake.next().await;
    fake.knobs().other = (200, json!({"data": {"ttl": 1}}).to_string());
    assert!(matches!(fake.next().await, Heard::Other { target, .. } if target == "/v1/auth/token/lookup-self"));
    assert_eq!(fake.next().await, Heard::Renew { token: "given".into() });
}
