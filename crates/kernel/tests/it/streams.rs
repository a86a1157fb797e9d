//! Streams: every line recorded, ended with the token.

use std::sync::atomic::Ordering;

use audit::Body;
use base::Limits;
use kernel::Place;
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use crate::rig::{ROOT, Rig, head};

pub async fn watch(rig: &Rig, token: &str) -> Receiver<audit::Frame> {
    open(rig, "/v1/probe/watch", token).await
}

async fn open(rig: &Rig, target: &str, token: &str) -> Receiver<audit::Frame> {
    let released = rig.kernel.serve(head("GET", target, token), Box::new(bytes::Bytes::new())).await;
    assert_eq!(released.status(), 200);
    match released.into_parts().2 {
        Body::Frames(frames) => frames,
        Body::Bytes(bytes) => panic!("no stream: {bytes:?}"),
    }
}

pub async fn line(frames: &mut Receiver<audit::Frame>) -> Option<String> {
    let frame = tokio::time::timeout(std::time::Duration::from_secs(20), frames.recv()).await.unwrap();
    frame.map(|f| String::from_utf8(f.into_bytes().to_vec()).unwrap())
}

#[tokio::test]
async fn lines_follow_commits_and_are_recorded_first() {
    let rig = Rig::new().await;
    let mut frames = watch(&rig, ROOT).await;
    assert_eq!(line(&mut frames).await.as_deref(), Some("{\"count\":0}\n"));
    rig.call("POST", "probe/count", ROOT, json!({})).await;
    assert_eq!(line(&mut frames).await.as_deref(), Some("{\"count\":1}\n"));
    let leaves = rig.leaves("access").await;
    let pushed: Vec<_> = leaves.iter().filter(|l| l.contains(r#""kind":"push""#)).collect();
    assert_eq!(pushed.len(), 2);
    assert!(pushed[1].contains(r#""count":"1""#), "{}", pushed[1]);
    for _ in 0..2 {
        rig.call("POST", "probe/count", ROOT, json!({})).await;
    }
    let mut rest = String::new();
    while let Some(more) = line(&mut frames).await {
        rest += &more;
    }
    assert!(rest.contains("{\"count\":3}\n") && rest.ends_with("{\"reason\":\"the stream has ended\",\"type\":\"bye\"}\n"), "{rest}");
}

/// Lines that were due at once had one record, in which each overwrote what the one before had said: whose values had been sent was known of
/// the last policy only.
#[tokio::test]
async fn every_line_that_carries_something_has_its_record() {
    let rig = Rig::new().await;
    let mut frames = open(&rig, "/v1/probe/pair", ROOT).await;
    for expected in ["\"hello\"\n", "\"one\"\n", "\"two\"\n"] {
        assert_eq!(line(&mut frames).await.as_deref(), Some(expected));
    }
    let pushed = |leaves: Vec<String>| leaves.into_iter().filter(|leaf| leaf.contains(r#""kind":"push""#)).collect::<Vec<_>>();
    let (changes, accesses) = (pushed(rig.leaves("change").await), pushed(rig.leaves("access").await));
    let (Ok([first]), Ok([second])) = (<[String; 1]>::try_from(changes), <[String; 1]>::try_from(accesses)) else {
        panic!("not two records")
    };
    for (leaf, policy, lines) in [(first, "one", 2), (second, "two", 1)] {
        assert!(leaf.contains(&format!(r#""policy":"{policy}""#)) && leaf.contains(&format!(r#""frames":{lines}"#)), "{leaf}");
        assert!(leaf.contains(r#""principal":"root""#), "{leaf}");
    }
}

#[tokio::test]
async fn a_revoked_token_ends_its_stream() {
    let rig = Rig::new().await;
    let token = rig.token("w", r#"path "probe/watch" { capabilities = ["read"] }"#).await;
    let mut frames = watch(&rig, &token).await;
    assert!(line(&mut frames).await.is_some());
    rig.call("POST", "auth/token/revoke", ROOT, json!({"token": token})).await;
    let last = line(&mut frames).await.unwrap();
    assert!(last.contains("no longer permitted"), "{last}");
    assert_eq!(line(&mut frames).await, None);
}

/// Whatever ended a stream, its reader was told that it is no longer permitted.
#[tokio::test]
async fn a_stream_that_fails_does_not_blame_its_reader() {
    let rig = Rig::new().await;
    let mut frames = open(&rig, "/v1/probe/broken", ROOT).await;
    assert_eq!(line(&mut frames).await.as_deref(), Some("{\"reason\":\"the server could not go on with the stream\",\"type\":\"bye\"}\n"));
    assert_eq!(line(&mut frames).await, None);
}

/// A stream went on after its mount was gone.
#[tokio::test]
async fn a_stream_ends_with_its_mount() {
    let rig = Rig::new().await;
    let mut frames = watch(&rig, ROOT).await;
    assert!(line(&mut frames).await.is_some());
    assert_eq!(rig.call("DELETE", "sys/mounts/probe", ROOT, Value::Null).await.0, 204);
    let last = line(&mut frames).await.unwrap();
    assert!(last.contains("no longer permitted"), "{last}");
    assert_eq!(line(&mut frames).await, None);
}

/// Every commit on a mount made all its streams look: a thousand agents that came one after the other made a million looks.
#[tokio::test]
async fn a_stream_looks_again_when_what_it_saw_is_touched() {
    let rig = Rig::new().await;
    let mut frames = watch(&rig, ROOT).await;
    assert_eq!(line(&mut frames).await.as_deref(), Some("{\"count\":0}\n"));
    for _ in 0..50 {
        assert_eq!(rig.call("POST", "probe/elsewhere", ROOT, json!({})).await.0, 204);
    }
    rig.call("POST", "probe/count", ROOT, json!({})).await;
    assert_eq!(line(&mut frames).await.as_deref(), Some("{\"count\":1}\n"));
    let looks = rig.world.looks.load(Ordering::SeqCst);
    // The first look, one more because all of it was new, and those for the commit that counted.
    assert!((3..=6).contains(&looks), "{looks} looks");
}

#[tokio::test]
async fn a_stopping_server_says_bye() {
    let rig = Rig::new().await;
    let mut frames = watch(&rig, ROOT).await;
    assert!(line(&mut frames).await.is_some());
    rig.kernel.shutdown().await;
    let bye: Value = serde_json::from_str(&line(&mut frames).await.unwrap()).unwrap();
    assert_eq!(bye, json!({"type": "bye", "reason": "the server is stopping"}));
}

/// A stream that is woken all the time and has nothing to say got no heartbeat: each commit began the wait anew.
#[tokio::test]
async fn a_busy_mount_does_not_silence_the_heartbeat() {
    let rig = Rig::new().await;
    let mut frames = open(&rig, "/v1/probe/quiet", ROOT).await;
    assert_eq!(line(&mut frames).await.as_deref(), Some("{\"count\":0}\n"));
    let kernel = std::sync::Arc::clone(&rig.kernel);
    let noise = tokio::spawn(async move {
        loop {
            kernel.serve(head("POST", "/v1/probe/noise", ROOT), Box::new(bytes::Bytes::new())).await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    let beat = tokio::time::timeout(std::time::Duration::from_secs(20), frames.recv()).await;
    noise.abort();
    let beat = String::from_utf8(beat.expect("a heartbeat").unwrap().into_bytes().to_vec()).unwrap();
    assert!(beat.contains(r#""type":"heartbeat""#), "{beat}");
}

/// An open stream went on delivering after its token's rules had been taken away.
#[tokio::test]
async fn a_stream_ends_when_its_rules_no_longer_permit_it() {
    for (target, kept, lost) in [
        ("/v1/probe/watch", "", r#"path "probe/watch" { capabilities = ["read"] }"#),
        ("/v1/probe/beside", r#"path "probe/beside" { capabilities = ["read"] }"#, r#"path "probe/also" { capabilities = ["read"] }"#),
    ] {
        let rig = Rig::new().await;
        let token = rig.token("w", &format!("{kept} {lost}")).await;
        let mut frames = open(&rig, target, &token).await;
        assert_eq!(line(&mut frames).await.as_deref(), Some("{\"count\":0}\n"));
        let policy = format!(r#"{kept} path "else" {{ capabilities = ["read"] }}"#);
        assert_eq!(rig.call("PUT", "sys/policies/acl/w", ROOT, json!({"policy": policy})).await.0, 204);
        let last = line(&mut frames).await.unwrap();
        assert!(last.contains("no longer permitted"), "{target}: {last}");
        assert_eq!(line(&mut frames).await, None);
    }
}

/// Asks for a stream until there is a place for it.
async fn open_when_free(rig: &Rig, target: &str, token: &str) -> Receiver<audit::Frame> {
    let asking = async {
        loop {
            let released = rig.kernel.serve(head("GET", target, token), Box::new(bytes::Bytes::new())).await;
            match released.into_parts().2 {
                Body::Frames(frames) => return frames,
                Body::Bytes(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), asking).await.unwrap()
}

/// Nothing bounded the streams but the number of connections: one tenant could hold all of them.
#[tokio::test]
async fn streams_are_bounded_for_one_and_for_all() {
    let rig = Rig::with(Place::Memory, Limits { streams_max: 3, streams_per_principal_max: 2, ..Limits::default() }).await;
    let rule = r#"path "probe/*" { capabilities = ["read", "update"] }"#;
    let (greedy, other) = (rig.token("w", rule).await, rig.token("w", rule).await);
    let mut held = vec![watch(&rig, &greedy).await, watch(&rig, &greedy).await];
    let refused = |whose: &str| (429, json!({"errors": [format!("{whose} has too many streams open: end one, or try again later")]}));
    assert_eq!(rig.call("GET", "probe/watch", &greedy, Value::Null).await, refused("this identity"));
    held.push(watch(&rig, &other).await);
    assert_eq!(rig.call("GET", "probe/watch", &other, Value::Null).await, refused("the server"));
    assert_eq!(rig.call("GET", "probe/watch", &greedy, Value::Null).await, refused("this identity"));
    let leaves = rig.leaves("access").await;
    assert_eq!(leaves.iter().filter(|leaf| leaf.contains("too many streams") && leaf.contains(r#""status":429"#)).count(), 3);
    assert!(rig.call("GET", "probe/count", &greedy, Value::Null).await.0 == 200, "only streams are refused");

    // A place is free again when the reader vanishes,
    held.pop();
    held.push(open_when_free(&rig, "/v1/probe/watch", ROOT).await);
    // when its token ends (the last one holds the place of the server until then),
    assert_eq!(rig.call("GET", "probe/watch", ROOT, Value::Null).await.0, 429);
    assert_eq!(rig.call("POST", "auth/token/revoke", ROOT, json!({"token": greedy})).await.0, 204);
    rig.call("POST", "probe/count", ROOT, json!({})).await;
    held.push(open_when_free(&rig, "/v1/probe/watch", ROOT).await);
    held.push(open_when_free(&rig, "/v1/probe/watch", &other).await);
    // and when the stream has said all.
    for _ in 0..2 {
        rig.call("POST", "probe/count", ROOT, json!({})).await;
    }
    for _ in 0..3 {
        let mut one = open_when_free(&rig, "/v1/probe/watch", &other).await;
        while line(&mut one).await.is_some() {}
    }
}

/// A stream that was refused took no place.
#[tokio::test]
async fn what_never_opened_holds_no_place() {
    let rig = Rig::with(Place::Memory, Limits { streams_max: 1, ..Limits::default() }).await;
    let stranger = rig.token("w", r#"path "else" { capabilities = ["read"] }"#).await;
    for _ in 0..3 {
        assert_eq!(rig.call("GET", "probe/watch", &stranger, Value::Null).await.0, 403);
    }
    let held = watch(&rig, ROOT).await;
    for _ in 0..3 {
        assert_eq!(rig.call("GET", "probe/watch", ROOT, Value::Null).await.0, 429);
    }
    drop(held);
    drop(open_when_free(&rig, "/v1/probe/watch", ROOT).await);
}

/// HEAD opened a stream that nobody could read. Elsewhere it is GET without the body.
#[tokio::test]
async fn a_stream_cannot_be_asked_for_by_head() {
    let rig = Rig::with(Place::Memory, Limits { streams_max: 1, ..Limits::default() }).await;
    let unsupported = json!({"errors": ["1 error occurred:\n\t* unsupported operation\n\n"]});
    assert_eq!(rig.call("HEAD", "probe/watch", ROOT, Value::Null).await, (405, unsupported));
    let stranger = rig.token("w", r#"path "else" { capabilities = ["read"] }"#).await;
    assert_eq!(rig.call("HEAD", "probe/watch", &stranger, Value::Null).await.0, 403);
    assert_eq!(rig.call("HEAD", "probe/count", ROOT, Value::Null).await.0, 200);
    assert_eq!(rig.call("HEAD", "sys/health", "", Value::Null).await.0, 200);
    let mut frames = watch(&rig, ROOT).await;
    assert!(line(&mut frames).await.is_some(), "the one place is free");
}
