//! Runs without consumers: what the target and the process do to them.

use std::time::Duration;

use kernel::Place;
use serde_json::{Value, json};

use crate::rig::{Rig, rotation};
use crate::target::{Trouble, World};

#[tokio::test]
async fn a_rotation_ends_with_the_old_password_dead() {
    let rig = Rig::new(json!({})).await;
    let (username, old, version) = rig.secret().await;
    assert_eq!((username.as_str(), version), ("app_a", 1));
    assert!(rig.world.accepts("app_a", &old));
    for (n, (slot, other)) in [("app_b", "app_a"), ("app_a", "app_b")].into_iter().enumerate() {
        let before = rig.secret().await.1;
        let run = rig.rotate().await;
        let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
        let (username, password, version) = rig.secret().await;
        assert_eq!((username.as_str(), usize::try_from(version).unwrap()), (slot, n + 2), "the slots take turns");
        assert!(rig.world.accepts(slot, &password) && !rig.world.accepts(other, &before));
        assert_eq!(
            (&closed["verdict"], &closed["death_proven"], &closed["death"]["slot"]),
            (&json!("rotated"), &json!(true), &json!(other))
        );
        let phases: Vec<_> = closed["phases"].as_array().unwrap().iter().map(|phase| phase["phase"].as_str().unwrap()).collect();
        assert_eq!(
            phases,
            ["plan", "prepare", "set", "verify", "stage", "canary", "rollout", "drain", "revoke", "prove", "closed"],
            "{closed:#}"
        );
        let found = |what: &str| closed["evidence"].as_array().unwrap().iter().find_map(|e| e["found"].get(what)).unwrap();
        assert_eq!((&found("applied")["slot"], &found("killed")["slot"]), (&json!(slot), &json!(other)), "{closed:#}");
        let drained = closed["phases"].as_array().unwrap().iter().find(|phase| phase["phase"] == "drain").unwrap();
        assert!(drained["milliseconds"].as_u64().unwrap() >= 60, "the quiet period was not waited for: {drained}");
        // Nothing that is shown of a run is a value.
        assert!(!closed.to_string().contains(&password) && !closed.to_string().contains(&before));
    }
    let list = rig.ok("GET", "sys/lifecycle/runs", Value::Null).await["data"].clone();
    assert_eq!(list["keys"].as_array().unwrap().len(), 3);
    assert_eq!(list["key_info"][list["keys"][2].as_str().unwrap()]["verdict"], "first", "the newest comes first");
    // What a run did is told also when its rotation is gone.
    rig.ok("DELETE", "sys/lifecycle/rotations/p", Value::Null).await;
    let run = rig.ok("GET", &format!("sys/lifecycle/runs/{}", list["keys"][0].as_str().unwrap()), Value::Null).await["data"].clone();
    assert_eq!(
        (&run["path"], &run["target"], &run["new"]["slot"], &run["death"]["slot"]),
        (&json!("secret/data/app"), &json!("main"), &json!("app_a"), &json!("app_b"))
    );
}

/// Whatever happens to one act on its way, the run ends the same, with the one value that was stored before the target heard of it.
#[tokio::test]
async fn lost_answers_change_nothing() {
    use Trouble::{AnswerLost, Pretended, RequestLost, Unreachable};
    for (act, troubles) in [
        ("set", vec![AnswerLost]),
        ("set", vec![RequestLost, AnswerLost]),
        ("set", vec![Unreachable, Unreachable]),
        ("probe", vec![Unreachable, RequestLost, Unreachable]),
        ("kill", vec![AnswerLost]),
        ("kill", vec![RequestLost]),
        ("kill", vec![Pretended]),
        ("kill", vec![Unreachable, Unreachable, RequestLost]),
        ("sessions", vec![Unreachable, RequestLost]),
    ] {
        let rig = Rig::new(json!({"backoff": "1ms"})).await;
        let (_, old, _) = rig.secret().await;
        let made = rig.world.lock().history.len();
        rig.world.trouble(act, &troubles);
        let run = rig.rotate().await;
        let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
        assert_eq!((&closed["verdict"], &closed["death_proven"]), (&json!("rotated"), &json!(true)), "{act} {troubles:?}: {closed:#}");
        let (_, new, _) = rig.secret().await;
        assert!(rig.world.accepts("app_b", &new) && !rig.world.accepts("app_a", &old), "{act} {troubles:?}");
        let state = rig.world.lock();
        assert!(state.history[made..].iter().all(|(slot, set)| slot == "app_b" && *set == new), "{act} {troubles:?}: a second value");
        assert!(state.troubles.values().all(std::collections::VecDeque::is_empty), "{act} {troubles:?}: not all of it happened");
    }
}

#[tokio::test]
async fn a_target_that_never_learns_the_value_stops_the_run() {
    let rig = Rig::new(json!({"attempts": 2, "backoff": "1ms"})).await;
    let before = rig.secret().await;
    rig.world.trouble("set", &[Trouble::Unreachable; 2]);
    let run = rig.rotate().await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!(closed["verdict"], "aborted", "{closed:#}");
    assert!(closed["cause"]["target"]["reason"].is_string(), "{closed:#}");
    assert_eq!(rig.secret().await, before);
    assert!(rig.world.accepts("app_a", &before.1));
    // The next run takes higher numbers: none is used twice.
    let run = rig.rotate().await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!((&closed["verdict"], &closed["generation"]), (&json!("rotated"), &json!(5)));
}

#[tokio::test]
async fn a_value_in_force_that_does_not_work_is_nothing_to_start_from() {
    let rig = Rig::new(json!({})).await;
    rig.world.lock().passwords.insert("app_a".into(), Some("changed by hand".into()));
    let run = rig.rotate().await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!(closed["verdict"], "aborted");
    assert_eq!(rig.world.lock().history.len(), 1, "nothing was set");
}

/// A role that was there keeps its password in the first run, also when nobody is logged in just now.
#[tokio::test]
async fn the_first_run_takes_the_slot_that_was_made_for_it() {
    let rig = Rig::bare().await;
    rig.world.lock().passwords.insert("app_a".into(), Some("of a nightly job".into()));
    rig.rotation(json!({})).await;
    assert_eq!(rig.secret().await.0, "app_b");
    assert!(rig.world.accepts("app_a", "of a nightly job"));
}

/// A login that somebody outside of Keyward uses is never taken from under them.
#[tokio::test]
async fn a_slot_in_use_is_left_alone() {
    let rig = Rig::bare().await;
    rig.world.connect("app_a", "legacy");
    rig.rotation(json!({})).await;
    assert_eq!(rig.secret().await.0, "app_b", "the first run takes the slot that nobody uses");
    assert_eq!(rig.ok("GET", "sys/lifecycle/rotations/p", Value::Null).await["data"]["slot_in_force"], "app_b");
    let before = rig.world.lock().history.len();
    let run = rig.rotate().await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!(closed["verdict"], "aborted", "{closed:#}");
    assert!(closed["cause"]["target"]["reason"].as_str().unwrap().contains("`legacy` (1)"), "{closed:#}");
    assert_eq!(rig.world.lock().history.len(), before, "nothing was set");
    rig.world.disconnect("legacy");
    let run = rig.rotate().await;
    rig.run_until(&run, |run| run["verdict"] == "rotated").await;
    assert_eq!(rig.secret().await.0, "app_a");
}

#[tokio::test]
async fn two_slots_in_use_leave_nothing_to_begin_with() {
    let rig = Rig::bare().await;
    rig.world.connect("app_a", "legacy");
    rig.world.connect("app_b", "legacy too");
    let made = rig.ok("POST", "sys/lifecycle/rotations/p", rotation(json!({}))).await;
    let run = made["data"]["run"].as_str().unwrap();
    let closed = rig.run_until(run, |run| run["state"] == "closed").await;
    assert_eq!(closed["verdict"], "aborted", "{closed:#}");
    assert!(rig.world.lock().history.is_empty(), "nothing was set");
    rig.world.disconnect("legacy");
    let run = rig.rotate().await;
    rig.run_until(&run, |run| run["verdict"] == "first").await;
    assert_eq!(rig.secret().await.0, "app_a");
}

/// A target is what it was when it was checked, or what it says is about something else.
#[tokio::test]
async fn another_system_at_the_same_address_proves_nothing() {
    let rig = Rig::new(json!({"backoff": "5ms", "attempts": 2})).await;
    rig.world.connect("app_a", "slow");
    let run = rig.rotate().await;
    rig.run_until(&run, |run| run["phase"] == "drain").await;
    rig.world.lock().identity = "a copy".into();
    rig.world.disconnect("slow");
    let held = rig.run_until(&run, |run| run["trouble"].is_string()).await;
    assert_eq!(held["phase"], "drain", "{held:#}");
    assert!(held["trouble"].as_str().unwrap().contains("another system"), "{held:#}");
    let again = json!({"kind": "memory", "address": "there", "admin_password": "ADMIN"});
    let (status, body) = rig.call("POST", "sys/lifecycle/targets/main", crate::rig::ROOT, again.clone()).await;
    assert!(status == 400 && body["errors"][0].as_str().unwrap().contains("`p`"), "{body}");
    rig.world.lock().identity = String::new();
    rig.ok("POST", "sys/lifecycle/targets/main", again).await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!((&closed["verdict"], &closed["death_proven"]), (&json!("rotated"), &json!(true)));
}

/// What `pg_upgrade` leaves behind is another system with the same roles: whoever says so goes on there, and its roles are as taken as before.
#[tokio::test]
async fn a_system_that_was_replaced_is_gone_on_with_by_its_identity() {
    let rig = Rig::new(json!({"backoff": "5ms"})).await;
    rig.world.connect("app_a", "slow");
    let run = rig.rotate().await;
    rig.run_until(&run, |run| run["phase"] == "drain").await;
    rig.world.lock().identity = "upgraded".into();
    rig.world.disconnect("slow");
    rig.run_until(&run, |run| run["trouble"].is_string()).await;
    let config = |identity: &str| json!({"kind": "memory", "address": "here", "admin_password": "ADMIN", "identity": identity});
    let (status, body) = rig.call("POST", "sys/lifecycle/targets/main", crate::rig::ROOT, config("guessed")).await;
    assert!(
        status == 400 && body["errors"][0].as_str().unwrap().contains("field `identity`: the system that answers is `upgraded`"),
        "{body}"
    );
    rig.ok("POST", "sys/lifecycle/targets/main", config("upgraded")).await;
    assert_eq!(rig.ok("GET", "sys/lifecycle/targets/main", Value::Null).await["data"]["identity"], "upgraded");
    rig.run_until(&run, |run| run["verdict"] == "rotated").await;
    rig.ok("POST", "sys/lifecycle/targets/alias", config("upgraded")).await;
    let second = rotation(json!({"path": "secret/data/other", "target": "alias", "slots": ["app_b", "app_c"]}));
    let (status, body) = rig.call("POST", "sys/lifecycle/rotations/q", crate::rig::ROOT, second).await;
    assert!(status == 400 && body["errors"][0].as_str().unwrap().contains("rotation `p`"), "{body}");
}

/// Two rotations on one login would each kill what the other has just set.
#[tokio::test]
async fn one_system_under_two_names_is_one_system() {
    let rig = Rig::new(json!({})).await;
    let config = json!({"kind": "memory", "address": "also here", "admin_password": "ADMIN"});
    rig.ok("POST", "sys/lifecycle/targets/alias", config.clone()).await;
    let second = |target: &str| rotation(json!({"path": "secret/data/other", "target": target, "slots": ["app_b", "app_c"]}));
    let (status, body) = rig.call("POST", "sys/lifecycle/rotations/q", crate::rig::ROOT, second("alias")).await;
    assert!(status == 400 && body["errors"][0].as_str().unwrap().contains("rotation `p`"), "{body}");
    rig.world.lock().identity = "another".into();
    rig.ok("POST", "sys/lifecycle/targets/elsewhere", config).await;
    rig.ok("POST", "sys/lifecycle/rotations/q", second("elsewhere")).await;
}

#[tokio::test]
async fn an_operator_turns_a_draining_run_back_and_cannot_later() {
    let rig = Rig::new(json!({})).await;
    let (_, old, _) = rig.secret().await;
    rig.world.connect("app_a", "somebody");
    let run = rig.rotate().await;
    let held = rig.run_until(&run, |run| run["phase"] == "drain" && run["state"] == "held").await;
    assert_eq!(held["waits_for"][0]["who"], "somebody", "{held:#}");
    let (_, new, _) = rig.secret().await;
    assert!(rig.world.accepts("app_a", &old) && rig.world.accepts("app_b", &new), "both work while somebody is missing");
    rig.ok("POST", &format!("sys/lifecycle/runs/{run}/abort"), json!({"reason": "no"})).await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!(
        (&closed["verdict"], &closed["death_proven"], &closed["death"]["slot"]),
        (&json!("rolled_back"), &json!(true), &json!("app_b"))
    );
    assert_eq!(rig.secret().await, ("app_a".to_owned(), old.clone(), 3), "the old value is a new version");
    assert!(rig.world.accepts("app_a", &old) && !rig.world.accepts("app_b", &new));
    let (status, body) = rig.call("POST", &format!("sys/lifecycle/runs/{run}/abort"), crate::rig::ROOT, json!({})).await;
    assert_eq!(status, 400, "{body}");
    // The rotation goes on above the generation of the rollback.
    rig.world.disconnect("somebody");
    let run = rig.rotate().await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!((&closed["old"]["generation"], &closed["new"]["generation"]), (&json!(4), &json!(5)));
}

#[tokio::test]
async fn what_cannot_be_proven_dead_parks_the_run_until_it_can() {
    let rig = Rig::new(json!({"attempts": 3, "backoff": "1ms"})).await;
    let (_, old, _) = rig.secret().await;
    rig.world.trouble("kill", &[Trouble::Pretended; 3]);
    let run = rig.rotate().await;
    let parked = rig.run_until(&run, |run| run["state"] == "parked").await;
    assert!(parked["parked"].as_str().unwrap().contains("still works") && rig.world.accepts("app_a", &old), "{parked:#}");
    rig.ok("POST", &format!("sys/lifecycle/runs/{run}/resume"), Value::Null).await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!((&closed["verdict"], &closed["death_proven"]), (&json!("rotated"), &json!(true)));
    assert!(!rig.world.accepts("app_a", &old));
}

#[tokio::test]
async fn a_period_opens_runs_and_one_run_is_open_at_a_time() {
    let rig = Rig::new(json!({"period": "1h"})).await;
    rig.world.connect("app_a", "somebody");
    let run = rig.rotate().await;
    let (status, body) = rig.call("POST", "sys/lifecycle/rotate/p", crate::rig::ROOT, json!({})).await;
    assert!(status == 400 && body["errors"][0].as_str().unwrap().contains(&run), "{body}");
    let (status, _) = rig.call("DELETE", "sys/lifecycle/rotations/p", crate::rig::ROOT, Value::Null).await;
    assert_eq!(status, 400, "not under an open run");
    rig.world.disconnect("somebody");
    rig.run_until(&run, |run| run["state"] == "closed").await;
    rig.ok("DELETE", "sys/lifecycle/rotations/p", Value::Null).await;
    rig.ok("POST", "secret/data/app", json!({"data": {"mine": "again"}})).await;
}

/// A process that ends in the middle of a change, and the one after it.
#[test]
fn a_killed_process_is_followed_by_one_that_finishes() {
    let dir = tempfile::tempdir().unwrap();
    let first = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (world, key, run): (World, _, String) = first.block_on(async {
        let rig = Rig::at(Place::Directory(dir.path().to_owned())).await;
        rig.rotation(json!({})).await;
        // The change arrives and its answer never does.
        rig.world.trouble("set", &[Trouble::Hangs]);
        let made = rig.world.lock().history.len();
        let run = rig.rotate().await;
        let arrived = async {
            while rig.world.lock().history.len() == made {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), arrived).await.unwrap();
        assert_eq!(rig.run(&run).await["phase"], "set");
        (rig.world.clone(), rig.key.clone(), run)
    });
    // Nothing is settled, nothing is said: the tasks are gone.
    first.shutdown_timeout(Duration::from_secs(5));
    let second = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    second.block_on(async {
        let rig = Rig::again(dir.path(), world, key).await;
        let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
        assert_eq!((&closed["verdict"], &closed["death_proven"]), (&json!("rotated"), &json!(true)), "{closed:#}");
        assert!(closed["evidence"].to_string().contains("the answer was lost"), "{closed:#}");
        let (_, new, _) = rig.secret().await;
        let mut set = rig.world.lock().history.clone();
        set.retain(|(slot, _)| slot == "app_b");
        assert!(set.len() == 1 && set[0].1 == new, "the same value, and no second change: {}", set.len());
        rig.kernel.shutdown().await;
    });
}

#[tokio::test]
async fn a_rotation_that_the_target_does_not_take_is_not_written() {
    let rig = Rig::bare().await;
    rig.world.trouble("adopt", &[Trouble::Unreachable]);
    let (status, body) = rig.call("POST", "sys/lifecycle/rotations/p", crate::rig::ROOT, rotation(json!({}))).await;
    assert_eq!(status, 400, "{body}");
    assert_eq!(rig.call("GET", "sys/lifecycle/rotations/p", crate::rig::ROOT, Value::Null).await.0, 404);
    rig.ok("POST", "secret/data/app", json!({"data": {"still": "mine"}})).await;
    rig.rotation(json!({})).await;
}
