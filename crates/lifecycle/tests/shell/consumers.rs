//! Runs with consumers: who is told what when, and what a run waits for.

use serde_json::{Value, json};

use crate::rig::{ROOT, Rig};

#[tokio::test]
async fn everybody_is_staged_then_a_canary_then_the_rest() {
    let rig = Rig::new(json!({})).await;
    let (mut a, mut b) = (rig.join("a").await, rig.join("b").await);
    let old = a.settle(1).await;
    b.settle(1).await;
    assert_eq!((&old["value"]["username"], &old["version"]), (&json!("app_a"), &json!(1)));

    let run = rig.rotate().await;
    let staged = a.staged(3).await;
    assert_eq!((&staged["use"]["generation"], &staged["standby"]["version"]), (&json!(1), &Value::Null), "ready, and not to be used yet");
    a.ack("L1", &staged["standby"]).await;
    assert_eq!(rig.run(&run).await["phase"], "stage", "`b` has not got it");
    b.stage(3).await;

    let new = a.told(3).await["use"].clone();
    let canary = rig.run_until(&run, |run| run["phase"] == "canary").await;
    assert!(canary["consumers"]["a"]["canary"] == true && canary["consumers"]["b"]["canary"] == false);
    assert_eq!(rig.secret().await.2, 1, "`current` has not moved");
    // Delivered is not loaded.
    a.ack("L1", &new).await;
    let held = rig.run_until(&run, |run| run["state"] == "held").await;
    assert_eq!((&held["phase"], &held["waits_for"][0]["who"]), (&json!("canary"), &json!("a")), "{held:#}");
    a.ack("L2", &new).await;

    let new = b.told(3).await["use"].clone();
    assert_eq!((rig.secret().await.2, &new["version"]), (2, &json!(2)), "`current` has moved before the rest is told");
    assert!(rig.world.accepts("app_a", old["value"]["password"].as_str().unwrap()));
    let held = rig.run_until(&run, |run| run["state"] == "held" && run["phase"] == "rollout").await;
    assert_eq!(held["waits_for"], json!([{"who": "b", "why": {"not_acknowledged": {"generation": 3, "required": "L2"}}}]));
    b.ack("L2", &new).await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!((&closed["verdict"], &closed["death_proven"]), (&json!("rotated"), &json!(true)));
    let holdings = rig.ok("GET", "sys/lifecycle/holdings/p", Value::Null).await["data"].clone();
    for instance in ["a", "b"] {
        let holding = &holdings["key_info"][instance];
        assert_eq!((&holding["generation"], &holding["level"], &holding["presence"]), (&json!(3), &json!("L2"), &json!("present")));
    }
}

#[tokio::test]
async fn a_refusal_by_the_canary_brings_everybody_back() {
    let rig = Rig::new(json!({})).await;
    let before = rig.secret().await;
    let (mut a, mut b) = (rig.join("a").await, rig.join("b").await);
    a.settle(1).await;
    b.settle(1).await;
    let run = rig.rotate().await;
    a.stage(3).await;
    b.stage(3).await;
    let bad = a.told(3).await["use"].clone();
    let (status, body) = a.say("NACK", &bad, "cannot write: read only").await;
    assert_eq!(status, 204, "{body}");
    let back = a.told(4).await["use"].clone();
    assert_eq!(back["value"]["password"], json!(before.1), "the old value under a new number");
    a.ack("L2", &back).await;
    let state = b.told(4).await;
    assert_eq!(state["standby"], Value::Null, "what was ready is withdrawn");
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!(closed["verdict"], "rolled_back");
    assert_eq!(closed["cause"], json!({"refused": {"instance": "a", "reason": "cannot write: read only"}}));
    assert_eq!((&closed["death"]["slot"], &closed["death_proven"]), (&json!("app_b"), &json!(true)), "{closed:#}");
    assert!(!rig.world.accepts("app_b", bad["value"]["password"].as_str().unwrap()));
    assert!(rig.world.accepts("app_a", &before.1));
    assert_eq!((rig.secret().await.1, rig.secret().await.2), (before.1, 2));
}

#[tokio::test]
async fn who_is_gone_without_a_word_is_waited_for_until_its_token_has_ended() {
    let rig = Rig::new(json!({})).await;
    let mut a = rig.join("a").await;
    a.settle(1).await;
    rig.world.connect("app_a", "a");
    let run = rig.rotate().await;
    a.stage(3).await;
    a.told(3).await;
    a.cut();
    let held = rig.run_until(&run, |run| run["waits_for"] == json!([{"who": "a", "why": "lapsed"}])).await;
    assert_eq!((&held["phase"], &held["consumers"]["a"]["presence"]), (&json!("canary"), &json!("lapsed")));
    // Its token has ended, but somebody is still logged in under its name.
    rig.ok("POST", "auth/token/revoke", json!({"token": a.token})).await;
    let held = rig.run_until(&run, |run| run["phase"] == "rollout" || run["phase"] == "drain").await;
    assert_ne!(held["state"], "closed");
    rig.run_until(&run, |run| run["state"] == "held" && run["waits_for"].to_string().contains("\"a\"")).await;
    assert!(rig.world.lock().passwords["app_a"].is_some(), "it may still use the old value");
    rig.world.disconnect("a");
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!((&closed["verdict"], &closed["death_proven"]), (&json!("rotated"), &json!(true)));
    assert_eq!(rig.ok("GET", "sys/lifecycle/holdings/p", Value::Null).await["data"]["keys"], json!([]), "it is forgotten");
}

#[tokio::test]
async fn who_says_goodbye_is_not_waited_for() {
    let rig = Rig::new(json!({})).await;
    let (mut a, mut b) = (rig.join("a").await, rig.join("b").await);
    a.settle(1).await;
    b.settle(1).await;
    let run = rig.rotate().await;
    a.stage(3).await;
    b.goodbye().await;
    while b.line().await.is_some() {}
    let state = a.told(3).await;
    a.ack("L2", &state["use"]).await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!((&closed["verdict"], &closed["consumers"]["b"]["presence"]), (&json!("rotated"), &json!("left")));
}

/// An agent whose configuration lost one `file` of several leaves that rotation and no other.
#[tokio::test]
async fn one_rotation_can_be_left_without_the_others() {
    let rig = Rig::new(json!({})).await;
    let mut a = rig.join("a").await;
    a.settle(1).await;
    let holders = async || rig.ok("GET", "sys/lifecycle/holdings/p", Value::Null).await["data"]["keys"].clone();
    a.goodbye_to("another").await;
    assert_eq!(holders().await, json!(["a"]));
    a.goodbye_to("p").await;
    assert_eq!(holders().await, json!([]));
    while a.line().await.is_some() {}
}

#[tokio::test]
async fn who_comes_during_a_run_counts() {
    let rig = Rig::new(json!({})).await;
    rig.world.connect("app_a", "somebody");
    let run = rig.rotate().await;
    let drain = rig.run_until(&run, |run| run["phase"] == "drain" && run["waits_for"][0]["who"] == "somebody").await;
    assert_eq!(drain["waits_for"][0]["why"], json!({"sessions": {"slot": "app_a", "count": 1}}), "roles are named, not numbered");
    // It says that it holds the old generation, as if it had been started from a file.
    let token = rig.token().await;
    let mut late = rig.join_as("late", &token, "p:1").await.unwrap();
    let new = late.told(3).await["use"].clone();
    rig.world.disconnect("somebody");
    let held = rig.run_until(&run, |run| run["state"] == "held" && run["waits_for"][0]["who"] == "late").await;
    assert_eq!(held["phase"], "drain", "{held:#}");
    late.ack("L2", &new).await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!(closed["verdict"], "rotated");
}

#[tokio::test]
async fn a_stream_is_taken_up_where_it_broke() {
    let rig = Rig::new(json!({"canaries": 0})).await;
    let token = rig.token().await;
    // A mere statement is answered with the value.
    let mut a = rig.join_as("a", &token, "p:1").await.unwrap();
    a.settle(1).await;
    a.cut();
    // What is proven is not sent again: the next line is about the next generation.
    let mut a = rig.join_as("a", &token, "p:1").await.unwrap();
    let run = rig.rotate().await;
    let state = a.line().await.unwrap();
    assert_eq!((&state["use"]["generation"], &state["standby"]["generation"]), (&json!(1), &json!(3)));
    a.cut();
    // Away while it changes; back with what it has, and asked anew even for what it had said: the run forgot it when the stream broke.
    let first = state["standby"]["nonce"].clone();
    let mut a = rig.join_as("a", &token, "p:1").await.unwrap();
    let staged = a.staged(3).await["standby"].clone();
    assert_ne!(staged["nonce"], first);
    a.ack("L1", &staged).await;
    a.cut();
    rig.run_until(&run, |run| run["phase"] == "rollout").await;
    let mut a = rig.join_as("a", &token, "p:1").await.unwrap();
    a.settle(3).await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!(closed["verdict"], "rotated");
    // A second stream of the same instance ends the first.
    let second = rig.join_as("a", &token, "p:3").await.unwrap();
    assert_eq!(a.line().await.unwrap()["type"], "bye");
    drop(second);
}

#[tokio::test]
async fn what_an_earlier_process_said_does_not_count_for_the_next_one() {
    let rig = Rig::new(json!({})).await;
    let token = rig.token().await;
    let mut a = rig.join_as("a", &token, "p").await.unwrap();
    a.settle(1).await;
    rig.world.connect("app_a", "a");
    let run = rig.rotate().await;
    a.stage(3).await;
    let new = a.told(3).await["use"].clone();
    let late = a.message("L2", &new, "");
    // The process dies before its acknowledgement arrives; the next one begins with the old value, under the same name and token.
    a.cut();
    let mut a = rig.join_as("a", &token, "p:1").await.unwrap();
    let new = a.told(3).await["use"].clone();
    let (status, body) = a.send(&late).await;
    assert_eq!(status, 403, "{body}");
    assert_eq!(rig.run(&run).await["phase"], "canary", "nobody has converged");
    a.ack("L2", &new).await;
    rig.world.disconnect("a");
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!(closed["verdict"], "rotated");
}

#[tokio::test]
async fn a_hard_deadline_turns_the_run_back_where_the_rotation_says_so() {
    let rig = Rig::new(json!({"on_hard_deadline": "rollback", "soft_deadline": "50ms", "hard_deadline": "400ms"})).await;
    let (mut a, mut b) = (rig.join("a").await, rig.join("b").await);
    a.settle(1).await;
    b.settle(1).await;
    let run = rig.rotate().await;
    a.stage(3).await;
    b.stage(3).await;
    let new = a.told(3).await;
    a.ack("L2", &new["use"]).await;
    // `b` is told to use the new value and stays silent.
    b.told(3).await;
    a.settle(4).await;
    let held = rig.run_until(&run, |run| run["phase"] == "rollback_republish" && run["state"] == "held").await;
    assert_eq!((&held["waits_for"][0]["who"], &held["cause"]), (&json!("b"), &json!({"deadline": {"phase": "rollout"}})), "{held:#}");
    assert!(rig.world.lock().passwords["app_b"].is_some(), "`b` may use the new value: it lives until `b` is back");
    b.settle(4).await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!((&closed["verdict"], &closed["death_proven"]), (&json!("rolled_back"), &json!(true)));
}

/// A replica that was started with the wrong field turned a rotation back for everybody, and then kept it from going back.
#[tokio::test]
async fn who_never_had_a_value_neither_stops_a_run_nor_turns_it_back() {
    let rig = Rig::bare().await;
    rig.world.trouble("set", &[crate::target::Trouble::Unreachable; 3]);
    let made = rig.ok("POST", "sys/lifecycle/rotations/p", crate::rig::rotation(json!({"backoff": "50ms"}))).await;
    let run = made["data"]["run"].as_str().unwrap().to_owned();
    let mut wrong = rig.join("wrong").await;
    let first = wrong.told(1).await["use"].clone();
    assert_eq!(wrong.say("NACK", &first, "no field `usr`").await.0, 204);
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!((&closed["verdict"], &closed["not_counted"]), (&json!("first"), &json!(["wrong"])), "{closed}");

    let mut right = rig.join("right").await;
    let value = right.told(1).await["use"].clone();
    right.ack("L2", &value).await;
    let run = rig.rotate().await;
    right.stage(3).await;
    right.settle(3).await;
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!((&closed["verdict"], &closed["not_counted"]), (&json!("rotated"), &json!(["wrong"])), "{closed}");
}

/// Every run has an exit. What it gives up is said before and after, and the rotation goes on from there.
#[tokio::test]
async fn a_run_that_cannot_go_on_is_closed_by_hand() {
    let rig = Rig::new(json!({"attempts": 2, "backoff": "20ms", "backoff_max": "20ms"})).await;
    rig.world.trouble("kill", &[crate::target::Trouble::Unreachable; 1_000]);
    let run = rig.rotate().await;
    rig.run_until(&run, |run| run["phase"] == "revoke" && run["state"] == "held").await;
    let close = format!("sys/lifecycle/runs/{run}/close");
    for (body, said) in [
        (json!({}), "`reason`: missing"),
        (json!({"reason": "target gone"}), "may still open"),
        (json!({"reason": "target gone", "confirm": true}), "accept_unproven"),
    ] {
        let (status, answer) = rig.call("POST", &close, ROOT, body).await;
        assert!(status == 400 && answer.to_string().contains(said), "{said}: {status} {answer}");
    }
    assert!(rig.run(&run).await["verdict"].is_null());
    rig.ok("POST", &close, json!({"reason": "target gone", "confirm": true, "accept_unproven": true})).await;
    let closed = rig.run(&run).await;
    assert_eq!((&closed["verdict"], &closed["death_proven"]), (&json!("abandoned"), &json!(false)));
    assert!(closed["unproven"][0].as_str().unwrap().contains("the old value may still open `app_"), "{closed}");
    let (status, _) = rig.call("POST", &close, ROOT, json!({"reason": "again", "confirm": true})).await;
    assert_eq!(status, 400, "it is closed");
    // The next run begins from what was left in force.
    rig.world.lock().troubles.clear();
    let next = rig.rotate().await;
    assert_eq!(rig.run_until(&next, |run| run["state"] == "closed").await["verdict"], "rotated");
}

#[tokio::test]
async fn a_dismissed_consumer_is_not_waited_for() {
    let rig = Rig::new(json!({})).await;
    let mut a = rig.join("a").await;
    let value = a.told(1).await["use"].clone();
    a.ack("L2", &value).await;
    let run = rig.rotate().await;
    rig.run_until(&run, |run| run["consumers"]["a"]["presence"] == "present").await;
    for (body, status) in [
        (json!({"instance": "a"}), 400),
        (json!({"instance": "nosuch", "reason": "x"}), 404),
        (json!({"instance": "a", "reason": "scrapped", "rotation": "p"}), 200),
        (json!({"instance": "a", "reason": "scrapped"}), 404),
    ] {
        assert_eq!(rig.call("POST", "sys/lifecycle/dismiss", ROOT, body.clone()).await.0, status, "{body}");
    }
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!(closed["verdict"], "rotated");
    assert!(closed["evidence"].to_string().contains("scrapped"), "{closed}");
}

/// The usual run waits for one that is behind; an emergency takes it over, names it, and does not wait.
#[tokio::test]
async fn an_emergency_takes_over_and_leaves_behind() {
    let rig = Rig::new(json!({})).await;
    let mut a = rig.join("a").await;
    let value = a.told(1).await["use"].clone();
    a.ack("L2", &value).await;
    let run = rig.rotate().await;
    rig.run_until(&run, |run| run["phase"] == "stage").await;
    let path = "sys/lifecycle/emergency/p";
    assert_eq!(rig.ok("GET", path, Value::Null).await["data"]["ready"], json!(["a"]));
    for (body, said) in [
        (json!({}), "`reason`: missing"),
        (json!({"reason": "leaked", "deadline": "1y"}), "deadline"),
        (json!({"reason": "leaked", "deadline": "2h"}), "at most"),
    ] {
        let (status, answer) = rig.call("POST", path, ROOT, body).await;
        assert!(status == 400 && answer.to_string().contains(said), "{said}: {status} {answer}");
    }
    let declared = rig.ok("POST", path, json!({"reason": "leaked", "deadline": "50ms"})).await["data"].clone();
    assert_eq!((&declared["run"], &declared["taken_over"]), (&json!(run), &json!(true)));
    let (status, answer) = rig.call("POST", &format!("sys/lifecycle/runs/{run}/abort"), ROOT, json!({})).await;
    assert_eq!(status, 400, "{answer}");
    let closed = rig.run_until(&run, |run| run["state"] == "closed").await;
    assert_eq!((&closed["verdict"], &closed["death_proven"]), (&json!("rotated"), &json!(true)));
    assert_eq!(closed["emergency"]["behind"][0]["who"], "a", "{closed}");
    assert!(closed["emergency"]["dead_after_milliseconds"].is_u64());
}
