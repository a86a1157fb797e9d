//! The provider: what it hands out, what it acknowledges, what it refuses.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base::SecretString;
use client::{Client, CredentialProvider, ProviderOptions, WatchOptions};
use serde_json::{Value, json};

use crate::fake::{Fake, Heard, PATIENCE, ack, login, logs, offer, offer_with, state};

/// What a probe does with a password.
#[derive(Clone, Copy)]
enum Do {
    Fail(&'static str),
    Panic,
    Hang,
}

/// A provider whose probe accepts every password but the listed ones, and remembers what it was asked.
struct Rig {
    fake: Fake,
    provider: CredentialProvider,
    asked: Arc<Mutex<Vec<u64>>>,
    faults: Arc<Mutex<BTreeMap<&'static str, Do>>>,
}

async fn rig(faults: &[(&'static str, Do)]) -> Rig {
    logs();
    let mut fake = Fake::start().await;
    let client = Client::new(&fake.address, Some(SecretString::new("token-0".into()))).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let faults = Arc::new(Mutex::new(faults.iter().copied().collect::<BTreeMap<_, _>>()));
    let options = ProviderOptions {
        probe_deadline: Duration::from_millis(200),
        watch: WatchOptions { retry_min: Duration::from_millis(5), retry_max: Duration::from_millis(20), ..WatchOptions::default() },
        ..ProviderOptions::new("p", "web-1")
    };
    let (seen, table) = (Arc::clone(&asked), Arc::clone(&faults));
    let provider = CredentialProvider::start(client, options, move |candidate| {
        seen.lock().unwrap().push(candidate.generation());
        let fault = table.lock().unwrap().get(candidate.field("password").unwrap()).copied();
        async move {
            match fault {
                None => Ok(()),
                Some(Do::Fail(why)) => Err(why),
                Some(Do::Panic) => panic!("the probe panics"),
                Some(Do::Hang) => std::future::pending().await,
            }
        }
    });
    assert_eq!(fake.next_watch().await, ["p:0"]);
    Rig { fake, provider, asked, faults }
}

impl Rig {
    fn wants(&self, generation: u64, password: &str) {
        self.fake.send(&state("p", offer(generation, login(password)), Value::Null));
    }

    fn password(&self) -> Option<String> {
        Some(self.provider.credential()?.field("password")?.to_owned())
    }

    fn asked(&self) -> Vec<u64> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until everything sent so far was acted upon: a state of the same rotation that leads to a known acknowledgement.
    async fn settled(&mut self, generation: u64) {
        let password = self.password().unwrap();
        self.fake.send(&state("p", offer(generation, login(&password)), Value::Null));
        assert_eq!(self.fake.next().await, ack("L2", generation));
    }
}

#[tokio::test]
async fn a_value_is_handed_out_when_it_is_proven_and_not_before() {
    let mut rig = rig(&[]).await;
    assert!(rig.provider.credential().is_none());
    rig.wants(5, "one");
    assert_eq!(rig.fake.next().await, ack("L2", 5));
    assert_eq!(rig.provider.ready().await.generation(), 5);
    assert_eq!((rig.password().as_deref(), rig.asked()), (Some("one"), vec![5]));
}

/// An instance that had asked for a rotation that is not there was told for ever that it had lost its stream.
#[tokio::test]
async fn what_never_began_is_not_called_lost() {
    let lines = || {
        let text = String::from_utf8(logs().lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains("unmet-1") && line.contains("WARN")).map(str::to_owned).collect::<Vec<_>>()
    };
    logs();
    let mut fake = Fake::start().await;
    fake.knobs().refused_tokens.insert("token-0".into());
    let client = Client::new(&fake.address, Some(SecretString::new("token-0".into()))).unwrap();
    let watch = WatchOptions { retry_min: Duration::from_millis(5), retry_max: Duration::from_millis(20), ..WatchOptions::default() };
    let options = ProviderOptions { watch, ..ProviderOptions::new("absent", "unmet-1") };
    let _provider = CredentialProvider::start(client, options, |_| std::future::ready(Ok::<_, &str>(())));
    for _ in 0..3 {
        fake.next_watch().await;
    }
    let refused = lines();
    assert!(!refused.is_empty() && refused.iter().all(|line| line.contains("the rotation exists") && line.contains("absent")));
    fake.knobs().refused_tokens.clear();
    fake.next_watch().await;
    fake.send(&state("absent", offer(5, login("one")), Value::Null));
    assert_eq!(fake.next().await, ack("L2", 5));
    fake.cut();
    fake.next_watch().await;
    assert!(lines().iter().any(|line| line.contains("lost the stream")));
}

#[tokio::test]
async fn standby_is_delivered_then_used() {
    let mut rig = rig(&[]).await;
    rig.wants(5, "one");
    assert_eq!(rig.fake.next().await, ack("L2", 5));
    let standing = state("p", offer(5, login("one")), offer(6, login("two")));
    rig.fake.send(&standing);
    assert_eq!(rig.fake.next().await, ack("L1", 6));
    assert_eq!(rig.password().as_deref(), Some("one"), "held, not used");
    rig.fake.send(&standing);
    rig.wants(6, "two");
    assert_eq!(rig.fake.next().await, ack("L2", 6), "L1 was not said twice");
    assert_eq!((rig.password().as_deref(), rig.asked()), (Some("two"), vec![5, 6]));
}

/// An instance that came while the next value was being handed out did not use the value it had until it could say that the next one is here:
/// a server that went away meanwhile kept it from serving.
#[tokio::test]
async fn what_is_to_be_used_does_not_wait_for_what_is_held_ready() {
    let rig = rig(&[]).await;
    rig.fake.knobs().ack_statuses = std::iter::repeat_n(503, 1_000).collect();
    rig.fake.send(&state("p", offer(5, login("one")), offer(6, login("two"))));
    let ready = tokio::time::timeout(PATIENCE, rig.provider.ready()).await.unwrap();
    assert_eq!(ready.generation(), 5);
}

#[tokio::test]
async fn what_is_held_ready_does_not_wait_for_what_cannot_be_used_yet() {
    let mut rig = rig(&[("one", Do::Fail("database is starting"))]).await;
    rig.fake.send(&state("p", offer(5, login("one")), offer(6, login("two"))));
    while rig.fake.next().await != ack("L1", 6) {}
    assert!(rig.provider.credential().is_none());
    rig.faults.lock().unwrap().clear();
    while rig.fake.next().await != ack("L2", 5) {}
}

#[tokio::test]
async fn a_refused_value_is_never_handed_out_and_never_probed_again() {
    for (fault, reason) in [
        (Do::Fail("FATAL: role app may not write with p0isoned-canary"), "FATAL: role [username] may not write with [password]"),
        (Do::Panic, "the probe panicked"),
        (Do::Hang, "the probe did not end within 200ms"),
    ] {
        let mut rig = rig(&[("p0isoned-canary", fault)]).await;
        rig.wants(5, "good");
        assert_eq!(rig.fake.next().await, ack("L2", 5));
        rig.wants(6, "p0isoned-canary");
        let nack = || Heard::Ack { level: "NACK".into(), generation: 6, proven: true, reason: reason.into() };
        assert_eq!(rig.fake.next().await, nack());
        assert_eq!(rig.password().as_deref(), Some("good"));

        rig.wants(6, "p0isoned-canary");
        rig.fake.send(&state("p", offer_with(6, login("p0isoned-canary"), "asked again"), Value::Null));
        assert_eq!(rig.fake.next().await, nack(), "said once more, under the new nonce");
        // back to the value in use under a new generation
        rig.wants(7, "good");
        assert_eq!(rig.fake.next().await, ack("L2", 7));
        assert_eq!((rig.asked(), rig.password().as_deref()), (vec![5, 6], Some("good")));
    }
    assert!(!String::from_utf8_lossy(&logs().lock().unwrap()).contains("canary"), "a value stands in a log");
}

#[tokio::test]
async fn lower_generations_and_repetitions_change_nothing() {
    let mut rig = rig(&[]).await;
    rig.wants(7, "seven");
    assert_eq!(rig.fake.next().await, ack("L2", 7));
    rig.wants(6, "six");
    rig.wants(7, "seven");
    rig.wants(7, "forged under the same number");
    rig.settled(8).await;
    assert_eq!((rig.asked(), rig.password().as_deref()), (vec![7], Some("seven")));
    assert!(rig.fake.quiet());
}

#[tokio::test]
async fn after_a_drop_the_acknowledged_generation_is_stated() {
    let mut rig = rig(&[]).await;
    rig.wants(5, "one");
    assert_eq!(rig.fake.next().await, ack("L2", 5));
    rig.settled(6).await;
    // the acknowledgement is heard before its answer arrives: the one of 6 may still be under way, that of 5 is not
    rig.fake.cut();
    let holds = rig.fake.next_watch().await;
    assert!(holds == ["p:5"] || holds == ["p:6"], "{holds:?}");
    assert_eq!(rig.password().as_deref(), Some("one"), "the value stays in use without a stream");
}

#[tokio::test]
async fn what_could_not_be_acknowledged_is_not_stated_and_is_said_until_it_is_taken() {
    let mut rig = rig(&[]).await;
    rig.fake.knobs().ack_statuses = [503, 500, 429, 408].into();
    rig.wants(5, "one");
    for _ in 0..5 {
        assert_eq!(rig.fake.next().await, ack("L2", 5));
    }
    rig.fake.knobs().ack_statuses = [503].into();
    rig.wants(6, "two");
    assert_eq!(rig.fake.next().await, ack("L2", 6));
    rig.fake.knobs().after_hello = [state("p", offer(6, login("two")), Value::Null) + "\n"].into();
    rig.fake.cut();
    // in either order: the repeated acknowledgement and the new stream that still states the old generation
    let (mut said, mut stated) = (false, false);
    while !(said && stated) {
        match rig.fake.next().await {
            Heard::Ack { level, generation: 6, proven: true, .. } if level == "L2" => said = true,
            Heard::Watch { holds, .. } => {
                assert!(holds == ["p:5"] || said, "{holds:?}");
                stated = true;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rig.asked(), [5, 6]);
}

#[tokio::test]
async fn a_stale_acknowledgement_asks_for_the_state_again() {
    let mut rig = rig(&[]).await;
    rig.fake.knobs().ack_statuses = [400].into();
    rig.fake.knobs().after_hello = [state("p", offer_with(5, login("one"), "fresh"), Value::Null) + "\n"].into();
    rig.wants(5, "one");
    assert_eq!(rig.fake.next().await, ack("L2", 5));
    assert_eq!(rig.fake.next_watch().await, ["p:0"]);
    assert_eq!(rig.fake.next().await, ack("L2", 5));
    assert_eq!(rig.asked(), [5], "asked again, not probed again");
}

#[tokio::test]
async fn the_first_value_is_tried_until_it_works() {
    let mut rig = rig(&[("one", Do::Fail("database is starting"))]).await;
    rig.wants(5, "one");
    assert!(matches!(rig.fake.next().await, Heard::Ack { level, reason, .. } if level == "NACK" && reason == "database is starting"));
    assert!(rig.provider.credential().is_none());
    rig.faults.lock().unwrap().clear();
    let ready = tokio::time::timeout(PATIENCE, rig.provider.ready()).await.unwrap();
    assert_eq!(ready.generation(), 5);
    while rig.fake.next().await != ack("L2", 5) {}
}

#[tokio::test]
async fn a_newer_value_overtakes_one_that_cannot_be_acknowledged() {
    let mut rig = rig(&[]).await;
    rig.fake.knobs().ack_statuses = std::iter::repeat_n(503, 1_000).collect();
    rig.wants(5, "one");
    assert_eq!(rig.fake.next().await, ack("L2", 5));
    rig.wants(6, "two");
    while rig.fake.next().await != ack("L2", 6) {}
    assert_eq!(rig.password().as_deref(), Some("two"));
}

#[tokio::test]
async fn a_value_of_another_rotation_or_shape_is_not_used() {
    let mut rig = rig(&[]).await;
    rig.fake.send(&state("other", offer(9, login("x")), Value::Null));
    rig.wants(5, "one");
    assert_eq!(rig.fake.next().await, ack("L2", 5));
    rig.fake.send(&state("p", offer(6, json!("not an object")), Value::Null));
    let holds = rig.fake.next_watch().await;
    assert!(holds == ["p:5"] || holds == ["p:0"], "an unreadable frame ends the stream: {holds:?}");
    assert_eq!(rig.asked(), [5]);
}

#[tokio::test]
async fn closing_says_goodbye() {
    let mut rig = rig(&[]).await;
    rig.wants(5, "one");
    assert_eq!(rig.fake.next().await, ack("L2", 5));
    let Rig { mut fake, provider, .. } = rig;
    provider.close().await;
    assert_eq!(fake.next().await, Heard::Goodbye { instance: "web-1".into() });
    assert!(fake.quiet());
}
