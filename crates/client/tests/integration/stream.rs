//! The push stream under faults: how it ends, how it comes back, what it states.

use std::time::Duration;

use base::SecretString;
use client::{Client, Event, Subscription, Watch, WatchOptions};
use serde_json::Value;
use tokio::sync::mpsc::Receiver;

use crate::fake::{Fake, Heard, PATIENCE, login, offer, state};

fn options() -> WatchOptions {
    WatchOptions {
        retry_min: Duration::from_millis(5),
        retry_max: Duration::from_millis(20),
        line_bytes_max: 4_096,
        ..WatchOptions::default()
    }
}

fn open(fake: &Fake) -> (Watch, Receiver<Event>) {
    let client = Client::new(&fake.address, Some(SecretString::new("token-0".into()))).unwrap();
    let subscription = Subscription { instance: "web-1".into(), rotations: vec!["p".into(), "q".into()] };
    Watch::open(client, subscription, options())
}

async fn lost(events: &mut Receiver<Event>) -> String {
    loop {
        match tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap() {
            Event::Lost { reason, .. } => return reason,
            Event::Connected | Event::State(_) | Event::Refused { .. } => {}
        }
    }
}

async fn connected(events: &mut Receiver<Event>) {
    while !matches!(tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap(), Event::Connected) {}
}

#[tokio::test]
async fn it_states_what_is_held_each_time() {
    let mut fake = Fake::start().await;
    let (watch, mut events) = open(&fake);
    let heard = fake.next().await;
    assert_eq!(heard, Heard::Watch { instance: "web-1".into(), holds: vec!["p:0".into(), "q:0".into()], token: "token-0".into() });
    connected(&mut events).await;
    watch.hold("q", 7);
    watch.hold("q", 6);
    watch.hold("unknown", 1);
    fake.cut();
    assert_eq!(fake.next_watch().await, ["p:0", "q:7"]);
    connected(&mut events).await;
    watch.reconnect();
    assert_eq!(lost(&mut events).await, "asked to connect again");
    fake.next_watch().await;
}

#[tokio::test]
async fn every_way_to_end_is_noticed_and_answered_by_another_attempt() {
    let endless = "x".repeat(5_000);
    let nonsense = "hunter2\n".to_owned();
    let broken = state("p", offer(1, login("hunter2")), Value::Null).replace("ack_key", "key") + "\n";
    for (text, reason) in [
        (nonsense, "not a frame"),
        (broken, "`state` frame of the stream cannot be read"),
        (endless, "more than 4096 bytes in one line"),
        ("{\"type\":\"bye\",\"reason\":\"sealing\"}\n".to_owned(), "the server said goodbye: sealing"),
    ] {
        let mut fake = Fake::start().await;
        let (_watch, mut events) = open(&fake);
        fake.next_watch().await;
        connected(&mut events).await;
        fake.raw(&text);
        let told = lost(&mut events).await;
        assert!(told.contains(reason) && !told.contains("hunter2"), "{reason}: {told}");
        fake.next_watch().await;
        connected(&mut events).await;
        fake.send(&state("p", offer(1, login("x")), Value::Null));
        assert!(matches!(events.recv().await.unwrap(), Event::State(_)), "the next stream works");
    }
}

#[tokio::test]
async fn a_stream_without_greeting_or_heartbeat_is_dead() {
    let mut fake = Fake::start().await;
    fake.knobs().hello = r#"{"type":"heartbeat"}"#.to_owned();
    let (_watch, mut events) = open(&fake);
    fake.next_watch().await;
    assert!(lost(&mut events).await.contains("did not begin with a greeting"));
    fake.knobs().hello = r#"{"type":"hello","heartbeat_seconds":0.03}"#.to_owned();
    assert!(lost(&mut events).await.contains("nothing was heard for"));
}

#[tokio::test]
async fn heartbeats_keep_a_stream_alive_and_their_checkpoints_are_pinned() {
    let mut fake = Fake::start().await;
    fake.knobs().hello = r#"{"type":"hello","heartbeat_seconds":1.7}"#.to_owned();
    let (watch, mut events) = open(&fake);
    fake.next_watch().await;
    connected(&mut events).await;
    let note = |size: u64| format!("origin\n{size}\nroot{size}\n\n— origin sig\n");
    let beat = |size: u64| serde_json::json!({"type": "heartbeat", "time": "t", "checkpoint": note(size)}).to_string();
    // longer in sum than three missing heartbeats
    let mut ticks = tokio::time::interval(Duration::from_millis(280));
    for size in 0..20 {
        ticks.tick().await;
        fake.send(&beat(size));
    }
    fake.send(&state("p", Value::Null, Value::Null));
    assert!(matches!(events.recv().await.unwrap(), Event::State(_)), "nothing was lost in between");
    let kept: Vec<_> = (4..20).map(note).collect();
    assert_eq!(watch.checkpoints(), kept);
    assert!(watch.contradiction().is_none());
    fake.send(&beat(3));
    fake.send(&state("p", Value::Null, Value::Null));
    events.recv().await.unwrap();
    assert_eq!(watch.contradiction(), Some((note(19), note(3))));
}

#[tokio::test]
async fn unknown_lines_are_skipped() {
    let mut fake = Fake::start().await;
    let (_watch, mut events) = open(&fake);
    fake.next_watch().await;
    connected(&mut events).await;
    fake.raw("\n{\"type\":\"later\",\"x\":[1]}\r\n");
    fake.send(&state("q", Value::Null, Value::Null));
    let Event::State(state) = events.recv().await.unwrap() else { panic!() };
    assert_eq!(state.rotation, "q");
}

#[tokio::test]
async fn a_refused_token_leads_to_a_login() {
    let mut fake = Fake::start().await;
    fake.knobs().refused_tokens.insert("token-0".into());
    let client = Client::new(&fake.address, Some(SecretString::new("token-0".into()))).unwrap();
    let (role_id, secret_id) = (SecretString::new("role".into()), SecretString::new("secret-1".into()));
    client.login_later(client::Login::AppRole { mount: "approle".into(), role_id, secret_id }).await;
    let subscription = Subscription { instance: "web-1".into(), rotations: vec!["p".into()] };
    let (_watch, mut events) = Watch::open(client, subscription, options());
    fake.next_watch().await;
    assert_eq!(fake.next().await, Heard::Login { secret_id: "secret-1".into() });
    assert!(matches!(fake.next().await, Heard::Watch { token, .. } if token == "token-1"));
    assert!(lost(&mut events).await.contains("permission denied"));
    connected(&mut events).await;
}

#[tokio::test]
async fn a_server_that_is_away_is_waited_for() {
    // a port that refuses connections and cannot become anybody else's
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = format!("http://{}", held.local_addr().unwrap());
    let client = Client::new(&address, None).unwrap();
    let (_watch, mut events) = Watch::open(client, Subscription { instance: "i".into(), rotations: vec!["p".into()] }, options());
    for _ in 0..3 {
        assert!(lost(&mut events).await.contains("could not connect"));
    }
}

/// Two copies under one name take the stream from each other: each is greeted and given its state, and sent away. Unless the
/// waits grow they do so many times a second for as long as nobody looks.
#[tokio::test]
async fn a_stream_that_always_begins_well_and_ends_at_once_is_asked_for_less_and_less() {
    let fake = Fake::start().await;
    let line = state("p", offer(1, login("x")), Value::Null);
    let sent_away = format!("{line}\n{{\"type\":\"bye\",\"reason\":\"another stream of this instance\"}}\n");
    fake.knobs().after_hello = std::iter::repeat_n(sent_away, 7).collect();
    let client = Client::new(&fake.address, Some(SecretString::new("token-0".into()))).unwrap();
    let growing = WatchOptions { retry_min: Duration::from_millis(2), retry_max: Duration::from_secs(30), ..options() };
    let (_watch, mut events) = Watch::open(client, Subscription { instance: "web-1".into(), rotations: vec!["p".into()] }, growing);
    let mut waits = Vec::new();
    while waits.len() < 7 {
        if let Event::Lost { retry_in, .. } = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap() {
            waits.push(retry_in);
        }
    }
    assert!(waits[6] >= Duration::from_millis(64), "{waits:?}");
    // one that lasts makes the waits short again
    let mut fake = Fake::start().await;
    let (_watch, mut events) = open(&fake);
    for _ in 0..3 {
        fake.next_watch().await;
        connected(&mut events).await;
        let mut ticks = tokio::time::interval(options().retry_max);
        ticks.tick().await;
        ticks.tick().await;
        fake.send(&state("p", Value::Null, Value::Null));
        assert!(matches!(events.recv().await.unwrap(), Event::State(_)));
        fake.cut();
        let Event::Lost { retry_in, .. } = events.recv().await.unwrap() else { panic!() };
        assert!(retry_in <= Duration::from_millis(5), "{retry_in:?}");
    }
}

/// What is refused whoever asks (an unknown rotation, an instance of somebody else) must not cost the server a token each time.
#[tokio::test]
async fn a_stream_that_no_token_opens_does_not_log_in_each_time() {
    let mut fake = Fake::start().await;
    fake.knobs().refused_tokens.extend((0..100).map(|number| format!("token-{number}")));
    let client = Client::new(&fake.address, Some(SecretString::new("token-0".into()))).unwrap();
    let (role_id, secret_id) = (SecretString::new("role".into()), SecretString::new("secret-1".into()));
    client.login_later(client::Login::AppRole { mount: "approle".into(), role_id, secret_id }).await;
    let subscription = Subscription { instance: "web-1".into(), rotations: vec!["p".into()] };
    let (_watch, _events) = Watch::open(client, subscription, options());
    let (mut asked, mut logins) = (0, Vec::new());
    while logins.len() < 2 {
        match fake.next().await {
            Heard::Watch { .. } => asked += 1,
            Heard::Login { .. } => logins.push(asked),
            other => panic!("{other:?}"),
        }
    }
    // at once, then after half a second at least: at 20 ms from one attempt to the next that is many attempts later
    assert!(logins[0] == 1 && logins[1] >= 5, "{logins:?}");
}
