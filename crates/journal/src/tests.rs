//! The journal as a whole, against a list of records.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use crate::disk::{FaultyDisk, MemoryDisk};
use crate::record::frame_size;
use crate::{Disk, Error, Journal, LogName, Options, RECORD_BYTES_MAX};

type Files = BTreeMap<String, Vec<u8>>;

fn options() -> Options {
    Options { segment_bytes: 8192, ..Options::new(LogName::new("log").unwrap(), 0x5eed) }
}

fn open(disk: &MemoryDisk) -> Result<Journal, Error> {
    Journal::open(Arc::new(disk.clone()), options())
}

fn open_files(files: &Files) -> Result<Journal, Error> {
    open(&MemoryDisk::from_files(files.clone()))
}

fn records(journal: &Journal) -> Vec<Vec<u8>> {
    read(journal, 0).unwrap()
}

fn read(journal: &Journal, from: u64) -> Result<Vec<Vec<u8>>, Error> {
    let found: Vec<_> = journal.read_from(from).collect::<Result<_, _>>()?;
    assert!(found.iter().map(|record| record.0).eq(from..from + found.len() as u64), "indexes are in order");
    Ok(found.into_iter().map(|record| record.1).collect())
}

/// A disk with these batches, each synced.
fn written(batches: &[&[Vec<u8>]]) -> MemoryDisk {
    let disk = MemoryDisk::new();
    let mut journal = open(&disk).unwrap();
    for batch in batches {
        for record in *batch {
            journal.append(record).unwrap();
        }
        journal.sync().unwrap();
    }
    disk
}

fn name(ordinal: u64) -> String {
    format!("log-{ordinal:016x}.segment")
}

const DATA: usize = 4096;

#[test]
fn records_come_back_across_segments_and_openings() {
    let disk = MemoryDisk::new();
    let mut all = Vec::new();
    for round in 0..5_u8 {
        let mut journal = open(&disk).unwrap();
        assert_eq!(journal.next_index(), all.len() as u64);
        for i in 0..40_u8 {
            let record = vec![round * 40 + i; usize::from(i) * 7 + 1];
            assert_eq!(journal.append(&record).unwrap(), all.len() as u64);
            all.push(record);
        }
        let proofs = journal.sync().unwrap();
        assert!(proofs.iter().map(crate::Durable::index).eq(all.len() as u64 - 40..all.len() as u64));
        assert!(proofs.iter().all(|proof| proof.log().as_str() == "log"));
        assert!(journal.sync().unwrap().is_empty(), "each proof is given once");
        journal.prepare().unwrap();
        assert_eq!(records(&journal), all);
    }
    assert!(disk.list().unwrap().len() > 3, "several segments");
    for from in 0..=all.len() {
        assert_eq!(read(&open(&disk).unwrap(), from as u64).unwrap(), all[from..]);
    }
}

#[test]
fn a_record_larger_than_a_segment_gets_its_own() {
    let disk = MemoryDisk::new();
    let mut journal = open(&disk).unwrap();
    journal.prepare().unwrap();
    let large = vec![7; 100_000];
    for record in [&b"before"[..], &large, b"behind"] {
        journal.append(record).unwrap();
    }
    assert_eq!(journal.sync().unwrap().len(), 3);
    drop(journal);
    assert_eq!(records(&open(&disk).unwrap()), [b"before".to_vec(), large, b"behind".to_vec()]);
    let mut journal = open(&disk).unwrap();
    for bytes in [0, RECORD_BYTES_MAX + 1] {
        assert!(matches!(journal.append(&vec![1; bytes]), Err(Error::RecordSize { .. })));
    }
    journal.append(b"a refused record does no harm").unwrap();
    journal.sync().unwrap();
}

#[test]
fn what_is_not_synced_is_not_read() {
    let disk = written(&[&[b"one".to_vec()]]);
    let mut journal = open(&disk).unwrap();
    journal.append(b"two").unwrap();
    assert_eq!(records(&journal), [b"one"]);
    journal.sync().unwrap();
    assert_eq!(records(&journal), [b"one".to_vec(), b"two".to_vec()]);
}

/// Any subset of the sectors of the last batch may be missing. The batch before is there, and no record of the torn batch that was cut
/// ever comes back.
#[test]
fn a_torn_batch_is_cut() {
    let before: Vec<_> = (0..3_u8).map(|i| vec![i + 1; 100]).collect();
    let torn: Vec<_> = (0..8_u8).map(|i| vec![i + 100; 200]).collect();
    let whole = written(&[&before, &torn]).files();
    let start = DATA + before.iter().map(|record| frame_size(record.len())).sum::<usize>();
    let end = start + torn.iter().map(|record| frame_size(record.len())).sum::<usize>();
    let sectors: Vec<_> = (start / 512..end.div_ceil(512)).collect();
    for mask in 0..1_u32 << sectors.len() {
        let mut files = whole.clone();
        let segment = files.get_mut(&name(1)).unwrap();
        for (bit, sector) in sectors.iter().enumerate() {
            if mask & (1 << bit) == 0 {
                segment[(sector * 512).max(start)..((sector + 1) * 512).min(end)].fill(0);
            }
        }
        let disk = MemoryDisk::from_files(files);
        let mut journal = open(&disk).unwrap();
        let found = records(&journal);
        assert_eq!(found[..3], before);
        assert_eq!(found[3..], torn[..found.len() - 3], "a prefix of the torn batch");
        // A short record, so that frames of the torn batch would line up behind it.
        journal.append(&[9; 200]).unwrap();
        journal.sync().unwrap();
        drop(journal);
        let again = records(&open(&disk).unwrap());
        assert_eq!(again.len(), found.len() + 1, "mask {mask:b}");
        assert_eq!(again.last().unwrap(), &[9; 200]);
    }
}

#[test]
fn damage_before_a_later_batch_refuses() {
    let batches: Vec<_> = (0..4_u8).map(|i| vec![vec![i + 1; 50], vec![i + 50; 70]]).collect();
    let files = written(&batches.iter().map(Vec::as_slice).collect::<Vec<_>>()).files();
    let batch = frame_size(50) + frame_size(70);
    for byte in DATA..DATA + 3 * batch {
        let padding = [50, 70].iter().any(|len| {
            let start = if *len == 50 { 0 } else { frame_size(50) };
            let at = (byte - DATA) % batch;
            at >= start + 24 + len && at < start + frame_size(*len)
        });
        let mut bad = files.clone();
        bad.get_mut(&name(1)).unwrap()[byte] ^= 0x10;
        let opened = open_files(&bad);
        if padding {
            assert_eq!(records(&opened.unwrap()).len(), 8, "padding means nothing");
        } else {
            let Err(Error::Corrupt { offset, index, .. }) = opened else { panic!("byte {byte}") };
            assert!(offset as usize <= byte && byte < offset as usize + frame_size(70), "byte {byte} was found at {offset}");
            assert_eq!(index, (byte - DATA) as u64 / batch as u64 * 2 + u64::from((byte - DATA) % batch >= frame_size(50)));
        }
    }
}

#[test]
fn damage_in_a_finished_segment_or_header_refuses() {
    let batches: Vec<_> = (0..60_u8).map(|i| vec![vec![i; 200]]).collect();
    let files = written(&batches.iter().map(Vec::as_slice).collect::<Vec<_>>()).files();
    assert!(files.len() >= 3);
    assert_eq!(records(&open_files(&files).unwrap()).len(), 60);
    let damage = |what: &str, change: &dyn Fn(&mut Files)| {
        let mut bad = files.clone();
        change(&mut bad);
        let opened = open_files(&bad);
        assert!(matches!(opened, Err(Error::Corrupt { .. })), "{what}");
    };
    damage("the last record of the first segment", &|files| {
        let segment = files.get_mut(&name(1)).unwrap();
        let last = segment.iter().rposition(|byte| *byte != 0).unwrap();
        segment[last] ^= 1;
    });
    damage("the last record of the first segment, wiped", &|files| {
        let segment = files.get_mut(&name(1)).unwrap();
        let last = segment.iter().rposition(|byte| *byte != 0).unwrap();
        segment[last - 220..].fill(0);
    });
    damage("a header", &|files| files.get_mut(&name(2)).unwrap()[20] ^= 1);
    damage("a wiped header before records", &|files| files.get_mut(&name(3)).unwrap()[..DATA].fill(0));
    damage("a wiped segment", &|files| files.get_mut(&name(2)).unwrap().fill(0));
    damage("a missing segment", &|files| drop(files.remove(&name(2)).unwrap()));
    damage("a missing first segment", &|files| drop(files.remove(&name(1)).unwrap()));
    damage("a shortened segment", &|files| files.get_mut(&name(2)).unwrap().truncate(8000));
    damage("swapped segments", &|files| {
        let (one, two) = (files[&name(1)].clone(), files[&name(2)].clone());
        files.extend([(name(1), two), (name(2), one)]);
    });
}

#[test]
fn a_log_below_its_checkpoint_refuses() {
    let disk = written(&[&[b"one".to_vec()], &[b"two".to_vec()]]);
    let mut files = disk.files();
    let cut = DATA + frame_size(3);
    files.get_mut(&name(1)).unwrap()[cut..].fill(0);
    let with = |checkpoint| Journal::open(Arc::new(MemoryDisk::from_files(files.clone())), Options { checkpoint, ..options() });
    assert_eq!(records(&with(1).unwrap()), [b"one"]);
    assert!(matches!(with(2), Err(Error::Short { found: 1, expected: 2, .. })));
}

#[test]
fn records_of_another_opening_do_not_pass() {
    // Two logs whose bytes line up; the second has another incarnation.
    let one = written(&[&[b"aaa".to_vec()], &[b"bbb".to_vec()]]).files();
    let other = MemoryDisk::new();
    let mut journal = Journal::open(Arc::new(other.clone()), Options { incarnation: 1, ..options() }).unwrap();
    journal.append(b"ccc").unwrap();
    journal.sync().unwrap();
    let mut files = other.files();
    let behind = DATA + frame_size(3)..DATA + 2 * frame_size(3);
    files.get_mut(&name(1)).unwrap()[behind.clone()].copy_from_slice(&one[&name(1)][behind]);
    assert_eq!(records(&open_files(&files).unwrap()), [b"ccc"]);
}

#[test]
fn damage_that_comes_after_opening_is_seen_by_readers() {
    let disk = written(&[&(0..20_u8).map(|i| vec![i; 300]).collect::<Vec<_>>()]);
    let journal = open(&disk).unwrap();
    let file = disk.open(&name(1)).unwrap();
    for (what, bytes) in [("zeros", vec![0; 400]), ("noise", vec![0x4b; 400])] {
        file.write_at(DATA as u64 + 2 * frame_size(300) as u64, &bytes).unwrap();
        let found: Vec<_> = journal.read_from(0).collect();
        assert_eq!(found.len(), 3, "{what}: two good records, then one error, then nothing");
        assert!(matches!(found[2], Err(Error::Corrupt { index: 2, .. })), "{what}");
    }
}

/// Whatever operation fails: an error instead of a proof, nothing tried again, and everything proven before is there.
#[test]
fn a_failing_disk_poisons() {
    for allowed in 0..60 {
        let inner = MemoryDisk::new();
        let disk = Arc::new(FaultyDisk::new(Arc::new(inner.clone())));
        let mut journal = Journal::open(disk.clone(), options()).unwrap();
        disk.fail_after(allowed);
        let mut proven = 0;
        let error = loop {
            let done = journal.append(&[1; 700]).and_then(|_| journal.sync()).and_then(|proofs| {
                proven += proofs.len();
                journal.prepare()
            });
            match done {
                Ok(()) => assert!(proven < 1000, "the disk never failed"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert_eq!(disk.refused(), 1);
        for result in [journal.append(b"x").map(drop), journal.sync().map(drop), journal.prepare()] {
            let again = result.unwrap_err();
            assert!(matches!(&again, Error::Poisoned { reason, .. } if reason.contains("no storage space")), "{again}");
        }
        assert_eq!(disk.refused(), 1, "a failed operation is never retried");
        assert!(records(&journal).len() >= proven, "what was proven can still be read");
        assert!(records(&open(&inner).unwrap()).len() >= proven);
    }
}

#[test]
fn two_logs_share_a_disk() {
    let disk = Arc::new(MemoryDisk::new());
    let with = |name: &str| Journal::open(disk.clone(), Options { name: LogName::new(name).unwrap(), ..options() }).unwrap();
    for (name, record) in [("log", b"one"), ("lo", b"two")] {
        let mut journal = with(name);
        journal.append(record).unwrap();
        journal.sync().unwrap();
    }
    assert_eq!(records(&with("log")), [b"one"]);
    assert_eq!(records(&with("lo")), [b"two"]);
    for bad in ["", "Log", "a-b", "a/b", &"x".repeat(33)] {
        assert!(LogName::new(bad).is_err(), "{bad}");
    }
}

#[test]
fn readers_follow_a_writer() {
    let mut journal = open(&MemoryDisk::new()).unwrap();
    let reader = journal.reader();
    let total = 2000_u64;
    let follower = std::thread::spawn(move || {
        let mut next = 0;
        while next < total {
            for record in reader.read_from(next) {
                let (index, bytes) = record.unwrap();
                assert_eq!((index, bytes), (next, next.to_be_bytes().to_vec()));
                next += 1;
            }
            std::thread::yield_now();
        }
    });
    for index in 0..total {
        journal.append(&index.to_be_bytes()).unwrap();
        if index % 7 == 6 {
            journal.sync().unwrap();
        }
    }
    journal.sync().unwrap();
    follower.join().unwrap();
}

/// The whole of what a journal is: a list, of which a prefix is durable.
#[derive(Default)]
struct Twin {
    records: Vec<Vec<u8>>,
    durable: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Append(u8, usize),
    Sync,
    Prepare,
    Reopen,
    Read(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (any::<u8>(), prop_oneof![1_usize..80, 500_usize..3000]).prop_map(|(byte, len)| Step::Append(byte, len)),
        3 => Just(Step::Sync),
        1 => Just(Step::Prepare),
        1 => Just(Step::Reopen),
        2 => (0_u64..40).prop_map(Step::Read),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #[test]
    fn a_journal_is_a_list(steps in steps()) {
        let disk = MemoryDisk::new();
        let mut journal = open(&disk).unwrap();
        let mut twin = Twin::default();
        for step in steps {
            match step {
                Step::Append(byte, len) => {
                    let record = vec![byte; len];
                    prop_assert_eq!(journal.append(&record).unwrap(), twin.records.len() as u64);
                    twin.records.push(record);
                }
                Step::Sync => {
                    let proofs = journal.sync().unwrap();
                    prop_assert_eq!(proofs.len(), twin.records.len() - twin.durable);
                    twin.durable = twin.records.len();
                }
                Step::Prepare => journal.prepare().unwrap(),
                Step::Reopen => {
                    drop(journal);
                    journal = open(&disk).unwrap();
                    let found = records(&journal);
                    // A full segment may have taken more with it than was asked for.
                    prop_assert!(found.len() >= twin.durable);
                    twin.records.truncate(found.len());
                    twin.durable = found.len();
                    prop_assert_eq!(&found, &twin.records);
                }
                Step::Read(from) => {
                    let found = read(&journal, from).unwrap();
                    let from = (from as usize).min(twin.records.len());
                    prop_assert!(found.len() + from >= twin.durable);
                    prop_assert_eq!(&found[..], &twin.records[from..from + found.len()]);
                }
            }
        }
    }
}
