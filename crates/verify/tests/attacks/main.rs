//! Attacks on an exported log: each must be noticed, and named as what it is.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests fail the test")]

mod command;
mod logs;

use logs::{ACCESSES, CHANGES, Export, Logs, SECOND_BOOT, access_leaf, change_leaf, checkpoint, heads, origin, place};
use serde_json::json;
use tlog::Tile;
use tlog::export::{Layout, TreeName};
use tlog::leaf::{Access, Change};
use verify::{Report, Verdict};

const BOTH: [TreeName; 2] = [TreeName::Change, TreeName::Access];

/// The verdict, and the tree and entry that it names.
fn said(report: &Report) -> (Verdict, Option<TreeName>, Option<u64>) {
    let decisive = report.decisive.as_ref();
    (report.verdict, decisive.and_then(|f| f.tree), decisive.and_then(|f| f.index))
}

#[track_caller]
fn expect(report: &Report, verdict: Verdict, tree: TreeName, index: Option<u64>) {
    assert_eq!(said(report), (verdict, Some(tree), index), "{report}");
}

#[test]
fn an_honest_export_is_intact() {
    let logs = Logs::honest();
    let mut export = Export::of(&logs, 1);
    for size in [1, 256, 300, CHANGES] {
        export.pin(&checkpoint(TreeName::Change, &logs.change[..size as usize], 1));
    }
    for size in [0, 255, ACCESSES] {
        export.pin(&checkpoint(TreeName::Access, &logs.access[..size as usize], 1));
    }
    let report = export.verify();
    assert_eq!(report.verdict, Verdict::Intact, "{report}");
    assert_eq!(report.trees[&TreeName::Change].checked, CHANGES);
    assert_eq!(report.to_json()["entries"], CHANGES + ACCESSES);
    assert!(!report.to_string().contains("came from the export"));
}

#[test]
fn without_a_given_key_it_says_whose_key_it_believed() {
    let mut export = Export::of(&Logs::honest(), 1);
    export.options.keys.clear();
    let report = export.verify();
    assert_eq!(report.verdict, Verdict::Intact);
    assert!(report.to_string().contains("the keys came from the export itself"), "{report}");
    assert_eq!(report.to_json()["keys"], "export");
    export.remove("vkeys");
    assert_eq!(export.verify().verdict, Verdict::NotTrusted);
}

#[test]
fn small_and_empty_logs_are_intact_too() {
    for size in [0, 1, 2, 255, 256, 257, 512] {
        let mut logs = Logs::honest();
        logs.change.truncate(size);
        logs.access = vec![Access { as_of: 0, boot: "b".into(), n: 0, time: 1, record: json!({"kind": "boot"}) }.encode().unwrap()];
        let report = Export::of(&logs, 1).verify();
        assert_eq!(report.verdict, Verdict::Intact, "{size}: {report}");
    }
}

/// Every byte of an entry counts: also its length, its last byte, and those of the first and last entry.
#[test]
fn one_flipped_byte_in_an_entry_names_the_entry() {
    let mut logs = Logs::honest();
    let export = Export::of(&logs, 1);
    for name in BOTH {
        let leaves = logs.of(name).clone();
        for index in [0, 1, 255, 256, 377, leaves.len() as u64 - 1] {
            let (path, start) = place(name, &leaves, index);
            for offset in [0, 7, leaves[index as usize].len() - 1] {
                export.edit(&path, |bytes| bytes[start + offset] ^= 0x01);
                expect(&export.verify(), Verdict::Tampered, name, Some(index));
                export.edit(&path, |bytes| bytes[start + offset] ^= 0x01);
            }
            // the length in front of it
            for length in [start - 2, start - 1] {
                export.edit(&path, |bytes| bytes[length] ^= 0x01);
                expect(&export.verify(), Verdict::Tampered, name, Some(index));
                export.edit(&path, |bytes| bytes[length] ^= 0x01);
            }
        }
    }
    assert_eq!(export.verify().verdict, Verdict::Intact);
}

#[test]
fn one_flipped_byte_in_a_tile_names_the_entry() {
    let export = Export::of(&Logs::honest(), 1);
    for (path, byte, index) in [
        ("change/tile/0/000", 0, 0),
        ("change/tile/0/001", 33, 257),
        ("change/tile/0/002.p/188", 187 * 32 + 31, 699),
        ("access/tile/0/000", 8191, 255),
        ("change/tile/1/000.p/2", 0, 0),
        ("change/tile/1/000.p/2", 32, 256),
        ("access/tile/1/000.p/2", 63, 256),
    ] {
        let name = TreeName::parse(path.split('/').next().unwrap()).unwrap();
        export.edit(path, |bytes| bytes[byte] ^= 0x80);
        expect(&export.verify(), Verdict::Tampered, name, Some(index));
        export.edit(path, |bytes| bytes[byte] ^= 0x80);
    }
    export.edit("change/tile/0/000", |bytes| bytes.truncate(8000));
    expect(&export.verify(), Verdict::Tampered, TreeName::Change, Some(0));
}

/// Millions of wrong entries must not cost more memory than as many right ones.
#[test]
fn a_tile_of_wrong_hashes_is_told_once() {
    let export = Export::of(&Logs::honest(), 1);
    for path in ["change/tile/0/000", "change/tile/0/001", "access/tile/0/001"] {
        export.edit(path, |bytes| bytes.fill(0));
    }
    let report = export.verify();
    expect(&report, Verdict::Tampered, TreeName::Change, Some(0));
    let kept: Vec<_> = report.findings.iter().filter(|f| f.message.contains("whose hash was kept")).map(|f| f.index).collect();
    assert_eq!(kept, [Some(0), Some(256), Some(256)]);
}

#[test]
fn no_flipped_byte_in_a_checkpoint_goes_unnoticed() {
    let export = Export::of(&Logs::honest(), 1);
    for name in BOTH {
        let path = Layout::Checkpoint.path(name);
        let length = std::fs::read(export.dir.path().join(&path)).unwrap().len();
        for byte in 0..length {
            export.edit(&path, |bytes| bytes[byte] ^= 0x01);
            let report = export.verify();
            assert!(matches!(report.verdict, Verdict::Tampered | Verdict::NotTrusted), "byte {byte}: {report}");
            export.edit(&path, |bytes| bytes[byte] ^= 0x01);
        }
    }
    assert_eq!(export.verify().verdict, Verdict::Intact);
}

/// An edit of the history, and the entry of each tree that shows it.
type Edit = (&'static str, fn(&mut Vec<Vec<u8>>), u64);

const EDITS: [Edit; 6] = [
    ("delete a middle entry", |leaves| drop(leaves.remove(321)), 321),
    ("delete the first entry", |leaves| drop(leaves.remove(0)), 0),
    ("swap two entries", |leaves| leaves.swap(123, 456), 123),
    ("swap two neighbours", |leaves| leaves.swap(256, 257), 256),
    ("duplicate an entry", |leaves| leaves.insert(200, leaves[199].clone()), 200),
    ("insert a foreign entry", |leaves| leaves.insert(300, b"{}".to_vec()), 300),
];

#[test]
fn an_edited_history_is_noticed_without_the_key_and_with_it() {
    for name in BOTH {
        for (edit, apply, index) in EDITS {
            let honest = Logs::honest();
            let mut logs = honest.clone();
            apply(logs.of(name));
            // all hashes are made anew, the checkpoint stays
            let export = Export::of(&honest, 1);
            export.write_tiles(&logs);
            let report = export.verify();
            assert_eq!((report.verdict, said(&report).2), (Verdict::Tampered, Some(index)), "{edit} in {name}: {report}");
            // signed anew with the stolen key: the hashes hold, the sequence does not
            export.sign(&logs, 1);
            let report = export.verify();
            assert_eq!(said(&report), (Verdict::Tampered, Some(name), Some(index)), "{edit} in {name}, stolen key: {report}");
        }
    }
}

#[test]
fn a_rewritten_entry_is_noticed_by_what_vouches_for_it() {
    let rewrite = |logs: &mut Logs, seq: u64| {
        let mut change = Change::decode(&logs.change[seq as usize - 1]).unwrap();
        change.record = json!({"kind": "request", "request": {"operation": "read", "path": "harmless"}});
        logs.change[seq as usize - 1] = change.encode().unwrap();
    };
    let honest = Logs::honest();
    // heartbeats know 149, 249, … changes; entry 320 lies between the third and the fourth
    let mut logs = honest.clone();
    rewrite(&mut logs, 321);
    let export = Export::of(&honest, 1);
    export.write_tiles(&logs);
    expect(&export.verify(), Verdict::Tampered, TreeName::Change, Some(249));
    // with the stolen key the root fits, but the heartbeats in the other tree do not
    export.sign(&logs, 1);
    expect(&export.verify(), Verdict::Tampered, TreeName::Change, Some(249));
    // after the last heartbeat, which knows 649, the root of the checkpoint tells
    let mut logs = honest.clone();
    rewrite(&mut logs, 690);
    let export = Export::of(&honest, 1);
    export.write_tiles(&logs);
    expect(&export.verify(), Verdict::Tampered, TreeName::Change, Some(649));
    // and when that is signed anew with the stolen key, only a pin
    let mut export = Export::of(&logs, 1);
    assert_eq!(export.verify().verdict, Verdict::Intact, "nothing here knows what it was");
    export.pin(&checkpoint(TreeName::Change, &honest.change[..680], 1));
    assert_eq!(export.verify().verdict, Verdict::Intact, "the pin is older than the entry");
    export.pin(&checkpoint(TreeName::Change, &honest.change[..695], 1));
    expect(&export.verify(), Verdict::Tampered, TreeName::Change, Some(680));
}

#[test]
fn a_dropped_tail_is_noticed_by_heartbeats_and_pins() {
    let honest = Logs::honest();
    for (dropped, verdict) in [(1, Verdict::Intact), (50, Verdict::Intact), (200, Verdict::Incomplete)] {
        let mut logs = honest.clone();
        logs.change.truncate(honest.change.len() - dropped);
        // the whole directory is of an older day: without a pin only the other tree tells
        let mut export = Export::of(&logs, 1);
        let found = export.verify();
        assert_eq!(found.verdict, verdict, "{dropped}: {found}");
        export.pin(&checkpoint(TreeName::Change, &honest.change, 1));
        expect(&export.verify(), Verdict::Incomplete, TreeName::Change, Some(CHANGES - dropped as u64));
        // the files alone are shorter than their checkpoint
        let export = Export::of(&honest, 1);
        let all: Vec<_> = Tile::all(CHANGES).collect();
        for file in all.into_iter().filter(|file| !Tile::all(CHANGES - dropped as u64).any(|kept| kept == *file)) {
            export.remove(&Layout::Tile(file).path(TreeName::Change));
        }
        export.write_tiles(&logs);
        let report = export.verify();
        assert_eq!(said(&report).0, Verdict::Incomplete, "{report}");
    }
    let mut logs = honest.clone();
    logs.access.truncate(500);
    let mut export = Export::of(&logs, 1);
    export.pin(&checkpoint(TreeName::Access, &honest.access, 1));
    expect(&export.verify(), Verdict::Incomplete, TreeName::Access, Some(500));
}

#[test]
fn a_missing_file_is_incomplete() {
    let export = Export::of(&Logs::honest(), 1);
    for (path, index) in [
        ("change/checkpoint", None),
        ("change/tile/entries/001", Some(256)),
        ("change/tile/entries/002.p/188", Some(512)),
        ("change/tile/0/001", Some(256)),
        ("change/tile/1/000.p/2", Some(0)),
        ("access/tile/entries/000", Some(0)),
    ] {
        let name = TreeName::parse(path.split('/').next().unwrap()).unwrap();
        let full = export.dir.path().join(path);
        let away = export.dir.path().join("away");
        std::fs::rename(&full, &away).unwrap();
        expect(&export.verify(), Verdict::Incomplete, name, index);
        std::fs::rename(&away, &full).unwrap();
    }
    // a bundle that ends early, between two entries
    let logs = Logs::honest();
    let (path, start) = place(TreeName::Change, &logs.change, 600);
    export.edit(&path, |bytes| bytes.truncate(start - 2));
    expect(&export.verify(), Verdict::Incomplete, TreeName::Change, Some(600));
}

#[test]
fn another_key_is_not_trusted() {
    let logs = Logs::honest();
    let mut export = Export::of(&logs, 2);
    expect(&export.verify(), Verdict::NotTrusted, TreeName::Change, None);
    // by its own word alone it is intact; a pin of the true key tells
    export.options.keys.clear();
    assert_eq!(export.verify().verdict, Verdict::Intact);
    export.pin(&checkpoint(TreeName::Change, &logs.change[..9], 1));
    expect(&export.verify(), Verdict::NotTrusted, TreeName::Change, None);
    // a forged history under another key: the pin names it
    let mut forged = logs.clone();
    forged.change = (1..=CHANGES).map(change_leaf).collect();
    let mut change = Change::decode(&forged.change[4]).unwrap();
    change.record = json!({"kind": "forged"});
    forged.change[4] = change.encode().unwrap();
    let mut export = Export::of(&forged, 2);
    export.options.keys.clear();
    export.pin(&checkpoint(TreeName::Change, &logs.change[..9], 1));
    expect(&export.verify(), Verdict::Tampered, TreeName::Change, Some(0));
}

#[test]
fn trees_may_not_change_places() {
    let logs = Logs::honest();
    let export = Export::of(&logs, 1);
    let dir = export.dir.path();
    std::fs::rename(dir.join("change"), dir.join("x")).unwrap();
    std::fs::rename(dir.join("access"), dir.join("change")).unwrap();
    std::fs::rename(dir.join("x"), dir.join("access")).unwrap();
    assert_eq!(export.verify().verdict, Verdict::Tampered);
    // another cluster's tree, signed by the same key
    let export = Export::of(&logs, 1);
    let foreign = String::from_utf8(checkpoint(TreeName::Access, &logs.access, 1)).unwrap().replace("c0ffee", "decaf");
    export.put(TreeName::Access, Layout::Checkpoint, foreign.as_bytes());
    assert_eq!(export.verify().verdict, Verdict::NotTrusted);
}

/// What the owner of the key does, and what is found.
type Lie = (&'static str, fn(&mut Logs), Verdict, TreeName, Option<u64>);

#[test]
fn lies_of_the_owner_of_the_key_are_found_where_they_contradict() {
    let cases: [Lie; 9] = [
        (
            "a commit is backdated",
            |logs| {
                let mut change = Change::decode(&logs.change[650]).unwrap();
                change.time = 5;
                logs.change[650] = change.encode().unwrap();
            },
            Verdict::Tampered,
            TreeName::Change,
            Some(650),
        ),
        ("an access is backdated", |logs| redo(logs, 550, |leaf| leaf.time = 5), Verdict::Tampered, TreeName::Access, Some(550)),
        (
            "a boot comes back",
            |logs| redo(logs, 599, |leaf| (leaf.boot, leaf.n, leaf.record) = ("boot-one".into(), 0, json!({"kind": "boot"}))),
            Verdict::Tampered,
            TreeName::Access,
            Some(599),
        ),
        (
            "a boot without its record",
            |logs| redo(logs, SECOND_BOOT, |leaf| leaf.record = json!({"kind": "request"})),
            Verdict::Tampered,
            TreeName::Access,
            Some(SECOND_BOOT),
        ),
        ("a count is left out", |logs| redo(logs, 599, |leaf| leaf.n += 1), Verdict::Tampered, TreeName::Access, Some(599)),
        (
            "decided as of a commit that is not there",
            |logs| redo(logs, 599, |leaf| leaf.as_of = CHANGES + 3),
            Verdict::Incomplete,
            TreeName::Change,
            Some(CHANGES),
        ),
        (
            "a heartbeat with another head",
            |logs| {
                let mut heads = heads(&logs.change, 640, &logs.access[..560]);
                heads.access.root = [1; 32];
                logs.access[599] = access_leaf(599, json!({"kind": "heartbeat", "heads": heads.to_json()}));
            },
            Verdict::Tampered,
            TreeName::Access,
            Some(499),
        ),
        (
            "a heartbeat that knows the future",
            |logs| {
                let heads = heads(&logs.change, 640, &logs.access);
                logs.access[599] = access_leaf(599, json!({"kind": "heartbeat", "heads": heads.to_json()}));
            },
            Verdict::Tampered,
            TreeName::Access,
            Some(599),
        ),
        (
            "another spelling of the same record",
            |logs| {
                let text = String::from_utf8(logs.access[599].clone()).unwrap();
                logs.access[599] = text.replacen("{\"as_of\"", "{ \"as_of\"", 1).into_bytes();
            },
            Verdict::Tampered,
            TreeName::Access,
            Some(599),
        ),
    ];
    for (lie, apply, verdict, tree, index) in cases {
        let mut logs = Logs::honest();
        apply(&mut logs);
        let report = Export::of(&logs, 1).verify();
        assert_eq!(said(&report), (verdict, Some(tree), index), "{lie}: {report}");
    }
}

fn redo(logs: &mut Logs, index: u64, change: impl FnOnce(&mut Access)) {
    let mut leaf = Access::decode(&logs.access[index as usize]).unwrap();
    change(&mut leaf);
    logs.access[index as usize] = leaf.encode().unwrap();
}

#[test]
fn hostile_text_in_a_field_forges_nothing() {
    let evil = format!("x\n\u{2014} {} AAAA\n\0\u{1b}[2J\",\"kind\":\"boot", origin(TreeName::Change));
    let mut logs = Logs::honest();
    logs.access[599] = access_leaf(599, json!({"kind": "request", "request": {"path": evil}}));
    assert_eq!(Export::of(&logs, 1).verify().verdict, Verdict::Intact);
    // the text of a finding comes from the directory: it must not reach a terminal as control codes
    redo(&mut logs, 599, |leaf| leaf.boot = "\u{1b}[2Jx\n".to_owned());
    let report = Export::of(&logs, 1).verify();
    expect(&report, Verdict::Tampered, TreeName::Access, Some(599));
    assert!(!report.to_string().contains('\u{1b}'));
}

/// A directory may hold anything in place of a file: it is neither waited for nor read without end.
#[test]
fn what_is_no_file_and_what_is_too_long_is_told_without_being_read() {
    let logs = Logs::honest();
    for path in ["change/checkpoint", "change/tile/entries/000", "change/tile/0/000", "change/tile/1/000.p/2"] {
        let export = Export::of(&logs, 1);
        let full = export.dir.path().join(path);
        let cut = |export: &Export, length: u64| {
            std::fs::OpenOptions::new().write(true).open(&full).unwrap().set_len(length).unwrap();
            export.verify().verdict
        };
        // a file with a hole: it takes no room on the disk, and none in memory
        assert_eq!(cut(&export, 1 << 40), Verdict::Tampered, "{path}");
        std::fs::remove_file(&full).unwrap();
        for other in ["/dev/zero", "/"] {
            std::os::unix::fs::symlink(other, &full).unwrap();
            assert_eq!(export.verify().verdict, Verdict::Incomplete, "{path} is {other}");
            std::fs::remove_file(&full).unwrap();
        }
        assert!(std::process::Command::new("mkfifo").arg(&full).status().unwrap().success());
        assert_eq!(export.verify().verdict, Verdict::Incomplete, "{path} is a pipe");
        // the same for keys and pins
        let mut export = Export::of(&logs, 1);
        export.options.pins.push("/dev/zero".into());
        assert_eq!(export.verify().verdict, Verdict::Incomplete);
        export.options.pins.clear();
        export.options.keys.clear();
        export.edit("vkeys", |bytes| *bytes = b"#".repeat(1 << 20));
        assert_eq!(export.verify().verdict, Verdict::NotTrusted);
    }
}

#[test]
fn an_origin_reaches_no_terminal_as_control_codes() {
    let export = Export::of(&Logs::honest(), 1);
    let forged = format!("evil\u{9b}2J\n7\n{}\n\n\u{2014} x AAAAAAAA\n", "A".repeat(43) + "=");
    export.put(TreeName::Change, Layout::Checkpoint, forged.as_bytes());
    let report = export.verify().to_string();
    assert!(report.contains("evil") && !report.contains('\u{9b}'), "{report}");
}

#[test]
fn a_checkpoint_of_an_absurd_size_costs_nothing() {
    let export = Export::of(&Logs::honest(), 1);
    let forged = format!("{}\n{}\n{}\n\n\u{2014} x AAAAAAAA\n", origin(TreeName::Change), u64::MAX, "A".repeat(43) + "=");
    export.put(TreeName::Change, Layout::Checkpoint, forged.as_bytes());
    assert_eq!(export.verify().verdict, Verdict::NotTrusted);
}
