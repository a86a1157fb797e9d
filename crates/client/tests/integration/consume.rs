//! The consumer below the provider and the agent: what it proves later, what it follows later, and what it is refused for good.

use std::sync::Arc;
use std::time::Duration;

use base::SecretString;
use client::ack::Level;
use client::{Apply, Client, Consumer, Credential, Reason, Refusal, WatchOptions};
use serde_json::Value;
use tokio::sync::watch;

use crate::fake::{Fake, Heard, PATIENCE, ack, login, offer, state};

/// Takes everything, and proves it only when somebody says so.
struct Later {
    proven: watch::Receiver<bool>,
}

impl Apply for Later {
    async fn apply(&mut self, _: &Arc<Credential>) -> Result<(), Reason> {
        Ok(())
    }

    fn proves(&self) -> Level {
        if *self.proven.borrow() { Level::L2 } else { Level::L1 }
    }

    async fn improved(&mut self, said: Level) {
        if said == Level::L2 || self.proven.wait_for(|proven| *proven).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn start(fake: &Fake, rotations: &[&str]) -> (Consumer, watch::Sender<bool>) {
    let client = Client::new(&fake.address, Some(SecretString::new("token-0".into()))).unwrap();
    let (put, proven) = watch::channel(false);
    let appliers = rotations.iter().map(|name| ((*name).to_owned(), Later { proven: proven.clone() })).collect();
    let options = WatchOptions { retry_min: Duration::from_millis(2), retry_max: Duration::from_millis(10), ..WatchOptions::default() };
    (Consumer::start(client, "web-1", appliers, options), put)
}

#[tokio::test]
async fn a_rotation_that_is_refused_does_not_stop_the_others() {
    let mut fake = Fake::start().await;
    let (_consumer, proven) = start(&fake, &["p", "q"]);
    proven.send_replace(true);
    fake.next_watch().await;
    fake.send(&serde_json::json!({"type": "refused", "rotation": "q", "reason": "no"}).to_string());
    fake.send(&state("p", offer(1, login("one")), Value::Null));
    assert_eq!(fake.next().await, ack("L2", 1));
    fake.send(&state("q", offer(4, login("two")), Value::Null));
    assert_eq!(fake.next().await, ack("L2", 4), "it may come later, on the same stream");
}

#[tokio::test]
async fn what_is_proven_later_is_said_later_and_once() {
    let mut fake = Fake::start().await;
    let (consumer, proven) = start(&fake, &["p"]);
    fake.next_watch().await;
    let first = state("p", offer(1, login("one")), Value::Null);
    fake.send(&first);
    assert_eq!(fake.next().await, ack("L1", 1));
    proven.send_replace(true);
    assert_eq!(fake.next().await, ack("L2", 1));
    fake.send(&first);
    fake.send(&state("p", offer(2, login("two")), Value::Null));
    assert_eq!(fake.next().await, ack("L2", 2), "the same question is not answered twice");
    consumer.close().await;
    assert_eq!(fake.next().await, Heard::Goodbye { instance: "web-1".into() });
}

#[tokio::test]
async fn a_rotation_comes_and_goes_and_the_others_keep_what_they_hold() {
    let mut fake = Fake::start().await;
    let (mut consumer, proven) = start(&fake, &["p", "q"]);
    proven.send_replace(true);
    assert_eq!(fake.next_watch().await, ["p:0", "q:0"]);
    fake.send(&state("p", offer(5, login("one")), Value::Null));
    assert_eq!(fake.next().await, ack("L2", 5));
    consumer.remove("q").await;
    consumer.add("r", Later { proven: proven.subscribe() });
    assert_eq!(fake.next_watch().await, ["p:5", "r:0"]);
    fake.send(&state("r", offer(7, login("two")), Value::Null));
    assert_eq!(fake.next().await, ack("L2", 7));
    consumer.close().await;
}

#[tokio::test]
async fn a_lasting_refusal_is_told_from_one_that_passes() {
    for (status, lasting) in [(400, true), (403, true), (404, true), (429, false), (503, false)] {
        let mut fake = Fake::start().await;
        fake.knobs().refuse_streams = Some((status, "because".into()));
        let (consumer, _proven) = start(&fake, &["p"]);
        for _ in 0..3 {
            fake.next_watch().await;
        }
        let refused = tokio::select! {
            biased;
            refusal = tokio::time::timeout(PATIENCE, consumer.refused()), if lasting => Some(refusal.unwrap()),
            refusal = consumer.refused() => Some(refusal),
            () = std::future::ready(()) => None,
        };
        let expected = lasting.then(|| Refusal { status, errors: vec!["because".into()], lasting: true });
        assert_eq!(refused, expected, "{status}");
        consumer.stop().await;
    }
}

/// What held once goes on being used when the server refuses it later: the refusal may pass, and the program runs.
#[tokio::test]
async fn a_refusal_after_a_good_stream_is_no_reason_to_end() {
    let mut fake = Fake::start().await;
    let (consumer, _proven) = start(&fake, &["p"]);
    fake.next_watch().await;
    fake.send(&state("p", offer(5, login("one")), Value::Null));
    assert_eq!(fake.next().await, ack("L1", 5));
    fake.knobs().refuse_streams = Some((403, "permission denied".into()));
    fake.cut();
    for _ in 0..3 {
        fake.next_watch().await;
    }
    tokio::select! {
        biased;
        refusal = consumer.refused() => panic!("{refusal:?}"),
        () = std::future::ready(()) => {}
    }
    consumer.stop().await;
}
