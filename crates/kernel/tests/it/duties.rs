//! Duties: owed with the decision, performed at least once, settled once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base::Limits;
use kernel::Place;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::rig::{ROOT, Rig};

#[tokio::test]
async fn the_request_waits_for_its_act() {
    let rig = Rig::new().await;
    let (status, body) = rig.call("POST", "probe/act/one", ROOT, json!({})).await;
    assert_eq!((status, body["data"]["outcome"].as_str()), (200, Some("done")));
    let (status, body) = rig.call("POST", "probe/act/no", ROOT, json!({})).await;
    assert_eq!((status, body), (400, json!({"errors": ["42501: must not"]})));
    assert_eq!(*rig.world.outcomes.lock().unwrap(), ["one done", "no refused"]);
    let (_, body) = rig.call("GET", "sys/duties", ROOT, Value::Null).await;
    assert_eq!(body["data"]["keys"], json!([]), "nothing is owed any more");
}

/// An answer that waited for an act was released by a record that named neither its request nor who had asked.
#[tokio::test]
async fn what_became_of_an_act_names_its_request() {
    let rig = Rig::new().await;
    let (_, body) = rig.call("POST", "probe/act/one", ROOT, json!({})).await;
    let request = body["request_id"].as_str().unwrap();
    assert_eq!(rig.call("POST", "probe/owe/two", ROOT, json!({})).await.0, 204);
    until_owed(&rig, 0).await;
    let changes = rig.leaves("change").await;
    let settled = |duty: &str| {
        let duty = format!(r#""duty":"{duty}""#);
        changes.iter().find(|leaf| leaf.contains(&duty) && leaf.contains(r#""outcome":"done""#)).unwrap()
    };
    assert!(settled("one").contains(&format!(r#""request":"{request}""#)), "{}", settled("one"));
    let asked = changes.iter().find(|leaf| leaf.contains("probe/act/one")).unwrap();
    assert!(asked.contains(&format!(r#""id":"{request}""#)) && asked.contains(r#""principal":"root""#), "{asked}");
    assert!(!settled("two-0").contains(r#""request""#), "nobody waited for it");
}

/// What failed for a reason of the server's own was taken for settled: the act was lost, and with it the run that had asked for it.
#[tokio::test]
async fn what_cannot_be_settled_stays_owed() {
    let rig = Rig::new().await;
    rig.world.failures.store(3, Ordering::SeqCst);
    let clock = Arc::clone(&rig.clock);
    let moving = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        loop {
            tick.tick().await;
            clock.advance(Duration::from_millis(100));
        }
    });
    let (status, body) = rig.call("POST", "probe/act/late", ROOT, json!({})).await;
    moving.abort();
    assert_eq!((status, body["data"]["outcome"].as_str()), (200, Some("done")));
    assert_eq!(rig.world.acts.load(Ordering::SeqCst), 4);
    assert_eq!(*rig.world.outcomes.lock().unwrap(), ["late done"]);
}

/// The whole request was given up at the same time as the wait for its act: the answer did not say that the act goes on, and the record not
/// what was asked.
#[tokio::test]
async fn an_act_that_takes_long_goes_on_without_its_request() {
    let rig = Rig::with(Place::Memory, Limits { act_timeout: Duration::from_millis(50), ..Limits::default() }).await;
    let gate = Arc::new(Notify::new());
    *rig.world.held.lock().unwrap() = Some(Arc::clone(&gate));
    let asked = tokio::time::timeout(Duration::from_secs(20), rig.call("POST", "probe/act/slow", ROOT, json!({}))).await;
    let (status, body) = asked.expect("it is answered");
    assert!(status == 503 && body["errors"][0].as_str().unwrap().contains("it is owed and goes on"), "{status} {body}");
    let leaves = rig.leaves("access").await;
    assert!(leaves.iter().any(|leaf| leaf.contains("probe/act/slow") && leaf.contains(r#""status":503"#)), "{leaves:?}");
    gate.notify_one();
    until(|| *rig.world.outcomes.lock().unwrap() == ["slow done"]).await;
}

/// What was withdrawn while it was performed, and owed anew for later, was settled at once by what had been under way.
#[tokio::test]
async fn what_is_owed_anew_is_not_settled_by_what_was_withdrawn() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    *rig.world.held.lock().unwrap() = Some(Arc::clone(&gate));
    let ask = |name: &str| {
        let (kernel, head) = (Arc::clone(&rig.kernel), crate::rig::head("POST", &format!("/v1/probe/act/{name}"), ROOT));
        tokio::spawn(async move { kernel.serve(head, Box::new(bytes::Bytes::new())).await.status() })
    };
    let first = ask("slow");
    until(|| rig.world.acts.load(Ordering::SeqCst) == 1).await;
    assert_eq!(rig.call("DELETE", "probe/act/slow", ROOT, Value::Null).await.0, 204);
    assert_eq!(rig.call("POST", "probe/later/slow", ROOT, json!({})).await.0, 204);
    // It is in the same lane, so the first has ended when it has.
    let behind = ask("behind");
    until_owed(&rig, 2).await;
    *rig.world.held.lock().unwrap() = None;
    gate.notify_one();
    assert_eq!((first.await.unwrap(), behind.await.unwrap()), (503, 200));
    assert_eq!(*rig.world.outcomes.lock().unwrap(), ["behind done"]);
    rig.clock.advance(Duration::from_secs(3_601));
    assert_eq!(rig.call("POST", "probe/act/one", ROOT, json!({})).await.0, 200);
    until_owed(&rig, 0).await;
    assert_eq!(*rig.world.outcomes.lock().unwrap(), ["behind done", "slow done", "one done"], "it is settled when it was due");
}

/// Who waited for an act that was put aside was told that it goes on.
#[tokio::test]
async fn who_waits_for_an_act_that_is_put_aside_is_told_so() {
    let rig = Rig::new().await;
    let (status, body) = rig.call("POST", "probe/act/odd", ROOT, json!({})).await;
    let text = body["errors"][0].as_str().unwrap();
    assert!(status == 503 && text.contains("is put aside") && !text.contains("goes on"), "{status} {body}");
    let (_, body) = rig.call("LIST", "sys/duties", ROOT, Value::Null).await;
    assert!(body.to_string().contains("nobody understands this"), "{body}");
}

#[tokio::test]
async fn debt_can_be_seen() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    *rig.world.held.lock().unwrap() = Some(Arc::clone(&gate));
    let kernel = Arc::clone(&rig.kernel);
    let waiting = tokio::spawn(async move {
        let released = kernel.serve(crate::rig::head("POST", "/v1/probe/act/slow", ROOT), Box::new(bytes::Bytes::new())).await;
        released.status()
    });
    until(|| rig.world.acts.load(Ordering::SeqCst) == 1).await;
    let (_, body) = rig.call("LIST", "sys/duties", ROOT, Value::Null).await;
    assert_eq!(body["data"]["keys"].as_array().unwrap().len(), 1);
    gate.notify_one();
    assert_eq!(waiting.await.unwrap(), 200);
}

/// The list of what is owed ended without a word, and one duty that could not be read hid all others.
#[tokio::test]
async fn the_list_of_debt_says_what_it_leaves_out() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    *rig.world.held.lock().unwrap() = Some(Arc::clone(&gate));
    assert_eq!(rig.call("POST", "probe/owe/slow", ROOT, json!({"n": 300})).await.0, 204);
    assert_eq!(rig.call("POST", "probe/spoil/one", ROOT, Value::Null).await.0, 204);
    let listed = async || {
        let (status, body) = rig.call("LIST", "sys/duties", ROOT, Value::Null).await;
        assert_eq!(status, 200, "{body}");
        (body["data"]["keys"].as_array().unwrap().len(), body["data"]["truncated"].clone(), body["data"]["unreadable"].clone())
    };
    assert_eq!(listed().await, (300, json!(false), json!(1)));
    assert_eq!(rig.call("POST", "probe/owe/more", ROOT, json!({"n": 800})).await.0, 204);
    assert_eq!(listed().await, (999, json!(true), json!(1)));
}

/// A server that is told to stop while an act is under way waits for what comes of it, so that the next one need not look it up.
#[tokio::test]
async fn a_shutdown_waits_for_the_act_that_was_begun() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let rig = Rig::at(Place::Directory(path.clone())).await;
    let gate = Arc::new(Notify::new());
    *rig.world.held.lock().unwrap() = Some(Arc::clone(&gate));
    assert_eq!(rig.call("POST", "probe/owe/slow", ROOT, json!({"n": 2})).await.0, 204);
    until(|| rig.world.acts.load(Ordering::SeqCst) == 1).await;
    let kernel = Arc::clone(&rig.kernel);
    let stopped = tokio::spawn(async move { kernel.shutdown().await });
    assert_eq!(rig.call("GET", "probe/count", ROOT, Value::Null).await.0, 200, "there was time to stop");
    assert!(!stopped.is_finished(), "the act is under way");
    gate.notify_one();
    stopped.await.unwrap();
    assert_eq!(*rig.world.outcomes.lock().unwrap(), ["slow-0 done"]);
    *rig.world.held.lock().unwrap() = None;
    let rig = Rig::again(&path, rig).await;
    until(|| rig.world.outcomes.lock().unwrap().len() == 2).await;
    assert_eq!(rig.world.outcomes.lock().unwrap()[1], "slow-1 unknown", "the second was owed, not begun: the next process cannot know");
}

/// Who waited for an act that was owed and not begun went on waiting for a server that begins nothing any more, until it was cut off.
#[tokio::test]
async fn a_shutdown_answers_those_whose_act_will_not_begin() {
    let rig = Rig::new().await;
    let gate = Arc::new(Notify::new());
    *rig.world.held.lock().unwrap() = Some(Arc::clone(&gate));
    let ask = |name: &str| {
        let (kernel, head) = (Arc::clone(&rig.kernel), crate::rig::head("POST", &format!("/v1/probe/act/{name}"), ROOT));
        tokio::spawn(async move { kernel.serve(head, Box::new(bytes::Bytes::new())).await.status() })
    };
    let begun = ask("one");
    until(|| rig.world.acts.load(Ordering::SeqCst) == 1).await;
    let behind = ask("two");
    until_owed(&rig, 2).await;
    let kernel = Arc::clone(&rig.kernel);
    let stopped = tokio::spawn(async move { kernel.shutdown().await });
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), behind).await.expect("it is answered").unwrap(), 503);
    let late = tokio::time::timeout(Duration::from_secs(5), ask("three")).await;
    assert_eq!(late.expect("it is answered").unwrap(), 503);
    assert!(!begun.is_finished() && !stopped.is_finished());
    gate.notify_one();
    assert_eq!(begun.await.unwrap(), 200);
    stopped.await.unwrap();
}

/// A server may be told to stop before it is unsealed, while it is being initialised, and more than once.
#[tokio::test]
async fn a_shutdown_needs_nothing_and_comes_to_an_end() {
    let (clock, world) = (Arc::new(base::time::ManualClock::new()), Arc::new(crate::rig::World::default()));
    let kernel = crate::rig::open(Place::Memory, &clock, &world);
    let stopping = async {
        kernel.shutdown().await;
        kernel.shutdown().await;
        let token = base::SecretString::new(ROOT.into());
        let (made, ()) = tokio::join!(kernel.initialise(Some(token)), kernel.shutdown());
        let rig = Rig { kernel: Arc::clone(&kernel), clock, world: Arc::clone(&world), key: made.unwrap().root_key };
        assert_eq!(rig.call("POST", "sys/mounts/probe", ROOT, json!({"type": "probe"})).await.0, 204);
        assert_eq!(rig.call("POST", "probe/owe/late", ROOT, json!({})).await.0, 204);
        let mut frames = crate::streams::watch(&rig, ROOT).await;
        while crate::streams::line(&mut frames).await.is_some() {}
        kernel.shutdown().await;
    };
    tokio::time::timeout(Duration::from_secs(30), stopping).await.unwrap();
    assert_eq!(world.acts.load(Ordering::SeqCst), 0, "nothing is begun any more");
}

/// Everything but the index. The log may rename a file meanwhile: then it is to be done again, from the beginning.
fn copied(from: &std::path::Path, to: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(to)? {
        std::fs::remove_file(entry?.path())?;
    }
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name() != "index.redb" {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// An act that an earlier process owed may have been done: its owner is told that nobody knows, and it is not performed blindly.
#[tokio::test]
async fn after_a_restart_an_owed_act_is_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let rig = Rig::at(Place::Directory(path.clone())).await;
    let gate = Arc::new(Notify::new());
    *rig.world.held.lock().unwrap() = Some(gate);
    let kernel = Arc::clone(&rig.kernel);
    let request = tokio::spawn(async move {
        kernel.serve(crate::rig::head("POST", "/v1/probe/act/cut", ROOT), Box::new(bytes::Bytes::new())).await.status()
    });
    until(|| rig.world.acts.load(Ordering::SeqCst) == 1).await;
    request.abort();
    let _aborted = request.await;
    let world = Arc::clone(&rig.world);
    let (clock, key) = (Arc::clone(&rig.clock), rig.key.clone());
    // What a kill leaves behind: the directory as it is, copied while the first process still holds it.
    let copy = dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::os::unix::fs::PermissionsExt::set_mode(&mut std::fs::metadata(&copy).unwrap().permissions(), 0o700);
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    until(|| copied(&path, &copy).is_ok()).await;
    *world.held.lock().unwrap() = None;
    let kernel = crate::rig::open(Place::Directory(copy), &clock, &world);
    kernel.unseal(&key).await.unwrap();
    until(|| !world.outcomes.lock().unwrap().is_empty()).await;
    assert_eq!(*world.outcomes.lock().unwrap(), ["cut unknown"]);
    assert_eq!(world.acts.load(Ordering::SeqCst), 1, "it was not performed again");
    drop(rig);
}

/// A lane full of waiting acts, or a table full of parked ones, hid everything that was due behind them.
#[tokio::test]
async fn what_cannot_begin_does_not_hide_what_can() {
    for (name, first) in [("blocked", 300), ("odd", 300)] {
        let rig = Rig::new().await;
        let gate = Arc::new(Notify::new());
        *rig.world.held.lock().unwrap() = Some(Arc::clone(&gate));
        assert_eq!(rig.call("POST", &format!("probe/owe/{name}"), ROOT, json!({"n": first})).await.0, 204);
        if name == "odd" {
            until_parked(&rig, first).await;
        } else {
            until(|| rig.world.acts.load(Ordering::SeqCst) == 1).await;
        }
        *rig.world.held.lock().unwrap() = None;
        rig.clock.advance(Duration::from_millis(1));
        let request = rig.call("POST", "probe/act/late", ROOT, json!({}));
        let (status, _) = tokio::time::timeout(Duration::from_secs(20), request).await.unwrap_or_else(|_| panic!("hidden behind `{name}`"));
        assert_eq!(status, 200);
    }
}

async fn until_parked(rig: &Rig, count: usize) {
    for _ in 0..2_000 {
        let parked = rig.leaves("change").await.iter().filter(|leaf| leaf.contains(r#""outcome":"parked""#)).count();
        if parked == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not all were parked");
}

/// An act that panicked kept its lane for ever.
#[tokio::test]
async fn a_panic_does_not_keep_the_lane() {
    let rig = Rig::new().await;
    let kernel = Arc::clone(&rig.kernel);
    let lost = tokio::spawn(async move {
        kernel.serve(crate::rig::head("POST", "/v1/probe/act/panic", ROOT), Box::new(bytes::Bytes::new())).await.status()
    });
    until(|| rig.world.acts.load(Ordering::SeqCst) >= 1).await;
    let request = rig.call("POST", "probe/act/one", ROOT, json!({}));
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), request).await.expect("the lane is free").0, 200);
    assert!(rig.world.acts.load(Ordering::SeqCst) < 20, "not in a hot loop");
    lost.abort();
}

/// Acts were performed over and over, as fast as the machine could, when their outcome could not be written any more.
#[tokio::test]
async fn nothing_is_performed_when_nothing_can_be_written() {
    let disk = Arc::new(crate::rig::BrokenDisk::default());
    let rig = Rig::at(Place::Disk(disk.clone())).await;
    let mut frames = crate::streams::watch(&rig, ROOT).await;
    assert!(crate::streams::line(&mut frames).await.is_some());
    let gate = Arc::new(Notify::new());
    *rig.world.held.lock().unwrap() = Some(Arc::clone(&gate));
    assert_eq!(rig.call("POST", "probe/owe/one", ROOT, json!({})).await.0, 204);
    until(|| rig.world.acts.load(Ordering::SeqCst) == 1).await;
    *rig.world.held.lock().unwrap() = None;
    disk.broken.store(true, Ordering::SeqCst);
    gate.notify_one();
    // A stream is not left open on a server that can change nothing.
    let bye = crate::streams::line(&mut frames).await.unwrap();
    assert!(bye.contains(r#""type":"bye""#), "{bye}");
    // Who runs the server is told to end it.
    tokio::time::timeout(Duration::from_secs(20), rig.kernel.failed()).await.expect("the kernel steps down");
    // As many turns as a few hundred requests take: an act that was begun again would have been performed again.
    for _ in 0..200 {
        assert_eq!(rig.call("GET", "sys/health", "", Value::Null).await.0, 503);
        assert_eq!(rig.call("POST", "probe/count", ROOT, json!({})).await.0, 503);
    }
    assert_eq!(rig.world.acts.load(Ordering::SeqCst), 1);
}

async fn until_owed(rig: &Rig, count: usize) {
    let waiting = async {
        while rig.call("LIST", "sys/duties", ROOT, Value::Null).await.1["data"]["keys"].as_array().unwrap().len() != count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
}

/// Waits for other tasks to bring something about.
async fn until(mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
}
