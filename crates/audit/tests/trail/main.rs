//! The trail from outside: what is recorded, what is released, what an auditor is given.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

mod rig;

use audit::{Body, Cursor, Error, Kind, Poisoned, Question, Released, Reply, Row, TreeName};
use base::{Clock, Seq, Timestamp};
use journal::MemoryDisk;
use rig::{Commits, Failing, Rig, keys, request};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tlog::leaf::Access;
use tlog::{Checkpoint, InclusionProof, Vkey, bundle};
use verify::Verdict;

fn head(rig: &Rig, tree: TreeName) -> u64 {
    let note = rig.trail.checkpoint(tree).unwrap();
    let vkey = Vkey::parse(&rig.trail.vkey(tree).unwrap()).unwrap();
    Checkpoint::open(note.as_bytes(), &[vkey]).unwrap().size
}

fn accesses(rig: &Rig) -> Vec<Access> {
    let size = head(rig, TreeName::Access);
    (0..size).map(|index| Access::decode(&rig.trail.leaf(TreeName::Access, index).unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn an_answer_leaves_with_a_pointer_to_its_record_and_the_export_is_intact() {
    let rig = Rig::opened().await;
    for n in 0..300 {
        rig.commit(&format!("secret/data/{n}"));
    }
    for n in 0..300 {
        rig.access(&format!("secret/data/{n}")).await;
    }
    rig.trail.heartbeat().await.unwrap();
    let recorded = rig.access("secret/data/last").await;
    let released = rig.trail.release(Reply::json(200, "{}"), recorded);
    let index = head(&rig, TreeName::Access) - 1;
    assert!(released.headers().contains(&("x-audit-entry", format!("c0ffee/access/node-1/{index}"))), "{released:?}");
    assert!(matches!(released.into_parts(), (200, _, Body::Bytes(body)) if body == "{}"));
    let leaf = Access::decode(&rig.trail.leaf(TreeName::Access, index).unwrap()).unwrap();
    assert_eq!(leaf.record["request"]["path"], "secret/data/last");
    assert_eq!(leaf.as_of, 300);
    assert_eq!(leaf.record["request"]["fields"]["token"], rig.trail.hash("token", b"hvs.secret").unwrap());
    let report = rig.verify();
    assert_eq!(report.verdict, Verdict::Intact, "{report}");
    assert_eq!(report.trees[&TreeName::Change].checked, 300);
    // boot, unsealed, 300 accesses, heartbeat, last
    assert_eq!(report.trees[&TreeName::Access].checked, 304);
}

/// An export over an earlier one kept the tiles that had grown since: files that no checkpoint covers.
#[tokio::test]
async fn an_export_over_an_earlier_one_is_as_if_it_were_the_first() {
    let rig = Rig::opened().await;
    let temp = tempfile::tempdir().unwrap();
    let (again, fresh) = (temp.path().join("again"), temp.path().join("fresh"));
    for n in 0..300 {
        rig.commit(&format!("secret/data/{n}"));
        if matches!(n, 0 | 5 | 200 | 255) {
            rig.access(&format!("secret/data/{n}")).await;
            rig.trail.export(&again).unwrap();
        }
    }
    std::fs::write(again.join("change/tile/mine"), "of somebody else").unwrap();
    rig.trail.export(&again).unwrap();
    rig.trail.export(&fresh).unwrap();
    std::fs::remove_file(again.join("change/tile/mine")).unwrap();
    let files = |dir: &std::path::Path| {
        let mut found = std::collections::BTreeMap::new();
        let mut open = vec![dir.to_owned()];
        while let Some(at) = open.pop() {
            for entry in std::fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    found.insert(path.strip_prefix(dir).unwrap().to_owned(), Vec::new());
                    open.push(path);
                } else {
                    found.insert(path.strip_prefix(dir).unwrap().to_owned(), std::fs::read(path).unwrap());
                }
            }
        }
        found
    };
    assert_eq!(files(&again), files(&fresh));
}

#[tokio::test]
async fn who_saw_a_secret_is_told_page_by_page_in_the_order_of_time() {
    let rig = Rig::opened().await;
    let begun = rig.clock.now();
    for n in 0..700 {
        rig.commit("secret/data/a");
        rig.access(if n % 7 == 0 { "secret/data/b" } else { "secret/data/a" }).await;
        rig.clock.advance(Duration::from_secs(1));
    }
    let (begin, end) = (Timestamp::ZERO, Timestamp(u64::MAX));
    let all = |question: &mut Question| {
        let (mut rows, mut cursor, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = rig.trail.who(question, cursor).unwrap();
            rows.extend(page.rows.iter().map(Row::to_json));
            pages += 1;
            cursor = page.next;
            if cursor.is_none() {
                return (rows, pages);
            }
        }
    };
    let (rows, pages) = all(&mut Question::of_path("secret/a", begin, end));
    assert_eq!((rows.len(), pages), (1_300, 2));
    let times: Vec<_> = rows.iter().map(|row| Timestamp::parse_rfc3339(row["time"].as_str().unwrap()).unwrap()).collect();
    assert!(times.is_sorted());
    let entries: std::collections::BTreeSet<_> = rows.iter().map(|row| row["entry"].as_str().unwrap()).collect();
    assert_eq!(entries.len(), 1_300);
    // A part of the time: the trees are searched for its beginning, and left at its end.
    let at = |second: u64| begun.after(Duration::from_secs(second));
    let mut question = Question::of_path("secret/b", at(100), at(200));
    let page = rig.trail.who(&mut question, None).unwrap();
    let wanted: Vec<_> = (100..=200).filter(|n| n % 7 == 0).map(|n| json!(at(n).rfc3339())).collect();
    let got: Vec<_> = page.rows.iter().map(|row| row.to_json()["time"].clone()).collect();
    assert_eq!((got, page.next, page.looked_at), (wanted, None, 101));
    // A cursor from nowhere ends the answer.
    let nowhere = Cursor { change: u64::MAX, access: u64::MAX };
    assert_eq!(rig.trail.who(&mut question, Some(nowhere)).unwrap().rows.len(), 0);
}

#[tokio::test]
async fn proofs_stand_alone() {
    let rig = Rig::opened().await;
    for n in 0..40 {
        rig.commit(&format!("secret/data/{n}"));
        rig.access(&format!("secret/data/{n}")).await;
    }
    for tree in [TreeName::Change, TreeName::Access] {
        let known = [Vkey::parse(&rig.trail.vkey(tree).unwrap()).unwrap()];
        for index in [0, 17, head(&rig, tree) - 1] {
            let proof = InclusionProof::parse(&rig.trail.proof(tree, index).unwrap()).unwrap();
            proof.verify(&rig.trail.leaf(tree, index).unwrap(), &known).unwrap();
            assert!(proof.verify(b"another entry", &known).is_err());
        }
        let beyond = head(&rig, tree);
        assert!(matches!(rig.trail.proof(tree, beyond), Err(Error::NotFound { .. })));
        assert!(matches!(rig.trail.leaf(tree, beyond), Err(Error::NotFound { .. })));
        assert!(matches!(rig.trail.tile(tree, 0, 0, 200), Err(Error::NotFound { .. })));
        assert!(matches!(rig.trail.entries(tree, 0, 200), Err(Error::NotFound { .. })));
        assert!(matches!(rig.trail.entries(tree, 0, 0), Err(Error::NotFound { .. })));
        assert!(matches!(rig.trail.entries(tree, u64::MAX, 1), Err(Error::NotFound { .. })));
        // a narrower view of the same bundle, as an older checkpoint needs it
        assert_eq!(bundle::entries(&rig.trail.entries(tree, 0, 3).unwrap()).count(), 3);
    }
}

#[tokio::test]
async fn events_before_the_seal_opens_are_written_first_and_in_order() {
    let rig = Rig::start(Arc::new(MemoryDisk::new()), Arc::default(), 1);
    assert!(matches!(rig.trail.checkpoint(TreeName::Access), Err(Error::Sealed)));
    assert!(matches!(rig.trail.hash("a", b"b"), Err(Error::Sealed)));
    let at = rig.clock.now();
    let recorded = rig.access("sys/health").await;
    let released = rig.trail.release(Reply::empty(503), recorded);
    assert_eq!((released.status(), released.headers().len()), (503, 0), "there is no entry to point to yet");
    rig.clock.advance(Duration::from_secs(60));
    rig.access("sys/unseal").await;
    rig.trail.heartbeat().await.unwrap();
    rig.open().await;
    rig.access("secret/data/a").await;
    let leaves = accesses(&rig);
    let kinds: Vec<_> = leaves.iter().map(Access::kind).collect();
    assert_eq!(kinds, ["boot", "request", "request", "unsealed", "request"]);
    assert_eq!(leaves[1].time, at.0, "an early event keeps its own time");
    assert_eq!(leaves[1].record["request"]["fields"]["token"], "sealed");
    assert_eq!(leaves[3].record["facts"]["queued"], 3);
    assert_eq!(leaves[3].record["facts"]["dropped"], 0);
    assert_eq!(rig.verify().verdict, Verdict::Intact);
}

#[tokio::test]
async fn a_flood_before_the_seal_opens_is_counted() {
    let rig = Rig::start(Arc::new(MemoryDisk::new()), Arc::default(), 1);
    for _ in 0..2000 {
        rig.access("sys/health").await;
    }
    rig.open().await;
    let leaves = accesses(&rig);
    assert_eq!(leaves.len(), 1025);
    assert_eq!(leaves[1024].record["facts"]["queued"], 1024);
    assert_eq!(leaves[1024].record["facts"]["dropped"], 2001 - 1024);
    assert_eq!(rig.verify().verdict, Verdict::Intact);
}

#[tokio::test]
async fn sealing_again_queues_again() {
    let rig = Rig::opened().await;
    rig.access("secret/data/a").await;
    rig.trail.close();
    rig.access("sys/seal-status").await;
    assert!(matches!(rig.trail.checkpoint(TreeName::Access), Err(Error::Sealed)));
    // commits that come meanwhile are not lost
    rig.commit("from a duty that was finishing");
    rig.open().await;
    let kinds: Vec<_> = accesses(&rig).iter().map(|leaf| leaf.kind().to_owned()).collect();
    assert_eq!(kinds, ["boot", "unsealed", "request", "request", "unsealed"]);
    assert_eq!(head(&rig, TreeName::Change), 1);
    assert_eq!(rig.verify().verdict, Verdict::Intact);
}

#[tokio::test]
async fn a_restart_continues_both_trees() {
    let (disk, commits) = (Arc::new(MemoryDisk::new()), Arc::new(Commits::default()));
    let mut pins = Vec::new();
    for boot in 1..=3 {
        let rig = Rig::start(disk.clone(), commits.clone(), boot);
        // the clock of every process starts at the same time; this one was ahead
        if boot == 1 {
            rig.clock.advance(Duration::from_secs(3600));
        }
        rig.open().await;
        for n in 0..100 {
            rig.commit(&format!("a/{n}"));
            rig.access(&format!("a/{n}")).await;
        }
        rig.trail.heartbeat().await.unwrap();
        rig.trail.shutdown().await.unwrap();
        pins.push(rig.trail.checkpoint(TreeName::Access).unwrap());
        pins.push(rig.trail.checkpoint(TreeName::Change).unwrap());
        let dir = tempfile::tempdir().unwrap();
        rig.trail.export(dir.path()).unwrap();
        let mut options = verify::Options { dir: dir.path().to_owned(), ..verify::Options::default() };
        options.keys = tlog::export::parse_vkeys(&rig.trail.vkeys().unwrap()).unwrap();
        for (n, pin) in pins.iter().enumerate() {
            let path = dir.path().join(format!("pin-{n}"));
            std::fs::write(&path, pin).unwrap();
            options.pins.push(path);
        }
        let report = verify::verify(&options);
        assert_eq!(report.verdict, Verdict::Intact, "boot {boot}: {report}");
        let leaves = accesses(&rig);
        assert_eq!(leaves.len() as u64, boot * 104);
        assert!(leaves.is_sorted_by_key(|leaf| leaf.time), "time goes back over a restart");
        assert_eq!(leaves.last().unwrap().kind(), "shutdown");
    }
}

#[tokio::test]
async fn a_failed_sync_releases_nothing_ever_again() {
    let disk = Failing::new();
    let switch = disk.switch.clone();
    let rig = Rig::start(Arc::new(disk), Arc::default(), 1);
    rig.open().await;
    rig.access("before").await;
    assert!(!rig.trail.poisoned());
    let size = head(&rig, TreeName::Access);
    switch.broken.store(true, Ordering::SeqCst);
    assert_eq!(rig.trail.record_access(request(&rig.trail, "during")).await.map(drop), Err(Poisoned));
    // the disk recovers, the log does not
    switch.broken.store(false, Ordering::SeqCst);
    assert_eq!(rig.trail.record_access(request(&rig.trail, "after")).await.map(drop), Err(Poisoned));
    assert_eq!(rig.trail.heartbeat().await, Err(Poisoned));
    assert!(rig.trail.poisoned());
    assert_eq!(head(&rig, TreeName::Access), size, "nothing unsynced is signed");
    let unavailable = Released::unavailable();
    assert_eq!(unavailable.status(), 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_syncs_and_each_gets_its_own_entry() {
    let disk = Failing::new();
    let switch = disk.switch.clone();
    let rig = Rig::start(Arc::new(disk), Arc::default(), 1);
    rig.open().await;
    let before = switch.syncs.load(Ordering::SeqCst);
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let trail = rig.trail.clone();
            tokio::spawn(async move {
                let waiting = (0..250).map(|n| {
                    let trail = trail.clone();
                    tokio::spawn(async move {
                        let path = format!("{caller}/{n}");
                        let recorded = trail.record_access(request(&trail, &path)).await.unwrap();
                        (path, trail.entry(&recorded).unwrap())
                    })
                });
                let waiting: Vec<_> = waiting.collect();
                let mut entries = Vec::new();
                for one in waiting {
                    entries.push(one.await.unwrap());
                }
                entries
            })
        })
        .collect();
    let mut entries = Vec::new();
    for caller in callers {
        entries.extend(caller.await.unwrap());
    }
    assert_eq!(entries.len(), 2000);
    for (path, entry) in &entries {
        let index = entry.strip_prefix("c0ffee/access/node-1/").unwrap().parse().unwrap();
        let leaf = Access::decode(&rig.trail.leaf(TreeName::Access, index).unwrap()).unwrap();
        assert_eq!(leaf.record["request"]["path"], path.as_str());
    }
    let syncs = switch.syncs.load(Ordering::SeqCst) - before;
    assert!(syncs < 2000, "{syncs} syncs for 2000 records");
    assert_eq!(rig.verify().verdict, Verdict::Intact);
}

#[tokio::test]
async fn changes_may_come_early_twice_or_not_at_all() {
    let rig = Rig::start(Arc::new(MemoryDisk::new()), Arc::default(), 1);
    rig.commit("initialise, before the keys exist");
    rig.commits.quietly(&request(&rig.trail, "unseen"));
    let (third, leaf) = rig.commits.quietly(&request(&rig.trail, "seen early"));
    rig.trail.observe_change(third, &leaf);
    rig.open().await;
    assert_eq!(head(&rig, TreeName::Change), 3);
    rig.trail.observe_change(third, &leaf);
    assert_eq!(head(&rig, TreeName::Change), 3);
    // a hole while open is filled from the log
    rig.commits.quietly(&request(&rig.trail, "unseen again"));
    rig.commit("seen");
    assert_eq!(head(&rig, TreeName::Change), 5);
    assert_eq!(rig.verify().verdict, Verdict::Intact);
    // one that cannot be filled is never signed over
    rig.trail.observe_change(Seq(9), b"from nowhere");
    assert!(matches!(rig.trail.checkpoint(TreeName::Change), Err(Error::Gap(6))));
    assert!(rig.trail.checkpoint(TreeName::Access).is_ok());
}

#[tokio::test]
async fn damage_is_never_served() {
    let rig = Rig::opened().await;
    for n in 0..10 {
        rig.commit(&format!("{n}"));
    }
    assert!(rig.trail.entries(TreeName::Change, 0, 10).is_ok());
    rig.commits.damage(4);
    assert!(matches!(rig.trail.entries(TreeName::Change, 0, 10), Err(Error::Damaged { from: 0, .. })));
    assert!(rig.trail.entries(TreeName::Change, 0, 4).is_ok());
    assert!(rig.trail.leaf(TreeName::Change, 4).is_err());
}

#[tokio::test]
async fn a_stream_is_released_frame_by_frame() {
    let rig = Rig::opened().await;
    let (send, frames) = tokio::sync::mpsc::channel(8);
    let opened = rig.access("sys/lifecycle/watch").await;
    let entry = rig.trail.entry(&opened).unwrap();
    let released = rig.trail.release_stream(Reply::of(200, "application/x-ndjson", ""), opened, frames);
    assert!(released.headers().contains(&("x-audit-entry", entry)));
    let (_, _, Body::Frames(mut frames)) = released.into_parts() else { unreachable!("a stream") };
    let recorded = rig.access("push").await;
    send.send(rig.trail.release_frame("{\"type\":\"state\"}\n", recorded)).await.unwrap();
    send.send(rig.trail.pulse().unwrap()).await.unwrap();
    send.send(audit::Frame::bye("sealed")).await.unwrap();
    drop(send);
    let mut lines = Vec::new();
    while let Some(frame) = frames.recv().await {
        let bytes = frame.into_bytes();
        assert!(bytes.ends_with(b"\n"));
        lines.push(serde_json::from_slice::<serde_json::Value>(&bytes).unwrap());
    }
    let kinds: Vec<_> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["state", "heartbeat", "bye"]);
    let vkey = Vkey::parse(&rig.trail.vkey(TreeName::Access).unwrap()).unwrap();
    let pin = Checkpoint::open(lines[1]["checkpoint"].as_str().unwrap().as_bytes(), &[vkey]).unwrap();
    assert_eq!(pin.size, head(&rig, TreeName::Access));
    assert_eq!(pin.extensions, [format!("boot {}", rig.trail.boot())]);
    assert_eq!(lines[1]["time"], rig.clock.now().rfc3339());
}

#[tokio::test]
async fn names_that_cannot_be_an_origin_are_refused() {
    let rig = Rig::start(Arc::new(MemoryDisk::new()), Arc::default(), 1);
    for (cluster, node) in [("a b", "n"), ("a", "n+1"), ("a\n", "n"), ("a", "\u{2003}")] {
        let opened = rig.trail.open(cluster, node, keys(), rig.commits.clone()).await;
        assert!(matches!(opened, Err(Error::Format(_))), "{cluster:?} {node:?}");
    }
    assert!(matches!(rig.trail.vkeys(), Err(Error::Sealed)));
}

#[tokio::test]
async fn the_clock_may_jump_back_but_the_log_does_not() {
    let rig = Rig::opened().await;
    rig.access("a").await;
    let before = rig.clock.now();
    rig.clock.jump(Timestamp(before.0 - 10_000_000));
    rig.access("b").await;
    let leaves = accesses(&rig);
    assert_eq!(leaves[leaves.len() - 1].time, leaves[leaves.len() - 2].time);
    assert_eq!(rig.verify().verdict, Verdict::Intact);
}

#[tokio::test]
async fn an_early_heartbeat_says_nothing_and_a_later_one_gives_both_heads() {
    let rig = Rig::opened().await;
    rig.commit("a");
    let size = head(&rig, TreeName::Access);
    rig.trail.heartbeat().await.unwrap();
    let leaf = accesses(&rig).pop().unwrap();
    let heads = tlog::leaf::Heads::of_record(&leaf.record).unwrap().unwrap();
    assert_eq!((heads.change.size, heads.access.size, leaf.as_of), (1, size, 1));
    assert_eq!(leaf.record["kind"], Kind::Heartbeat.as_str());
}
