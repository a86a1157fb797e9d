//! The store as a whole, against the model below.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base::rng::SeededRng;
use base::time::ManualClock;
use base::{Seq, Timestamp};
use journal::{Disk, FaultyDisk, LogName, MemoryDisk};
use redb::ReadableTable;

use crate::*;

/// The whole of what a store is, as a specification: a list of commits, each with the time it got and the keys it set or removed. The
/// state after a commit is the fold of the list up to it.
///
/// - A transaction reads the state of its snapshot, changed by its own writes.
/// - It commits if nothing it read (each key, each range from its start to where it was seen to end) was touched by a commit behind
///   its snapshot. Otherwise it is a conflict and leaves no trace.
/// - Times never fall.
#[derive(Clone, Default, Debug)]
struct Model {
    commits: Vec<BTreeMap<String, Option<String>>>,
}

impl Model {
    fn state(&self, at: usize) -> BTreeMap<String, String> {
        let mut state = BTreeMap::new();
        for (key, value) in self.commits[..at].iter().flatten() {
            match value {
                Some(value) => drop(state.insert(key.clone(), value.clone())),
                None => drop(state.remove(key)),
            }
        }
        state
    }

    fn touched_since(&self, at: usize, looked_at: impl Fn(&str) -> bool) -> bool {
        self.commits[at..].iter().flatten().any(|(key, _)| looked_at(key))
    }
}

struct Rig {
    disk: Arc<dyn Disk>,
    place: IndexPlace,
    clock: Arc<ManualClock>,
    observer: Arc<dyn Observer>,
    options: Options,
}

impl Rig {
    fn new() -> Self {
        Self::on(Arc::new(MemoryDisk::new()))
    }

    fn on(disk: Arc<dyn Disk>) -> Self {
        let index: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
        Self {
            disk,
            place: IndexPlace::Disk(index, "index".to_owned()),
            clock: Arc::new(ManualClock::new()),
            observer: Arc::new(NoObserver),
            options: Options::default(),
        }
    }

    fn open(&self) -> Result<Store, Error> {
        let name = LogName::new("changes").unwrap();
        let options = journal::Options { segment_bytes: 1 << 16, ..journal::Options::new(name, 77) };
        let log = FileLog::with(Arc::clone(&self.disk), options)?;
        let (clock, rng) = (self.clock.clone(), Arc::new(SeededRng::new(1)));
        Store::open_with(Box::new(log), self.place.clone(), clock, rng, self.observer.clone(), self.options)
    }

    /// Opened, unsealed, and initialised if need be.
    fn ready(&self) -> Store {
        let store = self.open().unwrap();
        if store.initialised() {
            store.unseal(&root()).unwrap();
        } else {
            block_on(store.initialise(&root(), leaf())).unwrap();
        }
        store
    }
}

fn root() -> RootKey {
    RootKey::new(&[5; 32]).unwrap()
}

fn leaf() -> LeafFn {
    Box::new(|stamp| format!("leaf {}", stamp.seq).into_bytes())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn key(id: &str) -> Key {
    Key::new(Scope::KERNEL, "t", &[id])
}

fn all() -> Prefix {
    Prefix::new(Scope::KERNEL, "t", &[])
}

fn put(store: &Store, id: &str, value: &str) -> Committed {
    let mut tx = store.begin().unwrap();
    tx.put(&key(id), value.as_bytes()).unwrap();
    store.submit(tx, leaf()).unwrap().wait().unwrap()
}

fn get(tx: &mut Tx, id: &str) -> Option<String> {
    tx.get(&key(id)).unwrap().map(|value| String::from_utf8(value.expose().clone()).unwrap())
}

fn value(store: &Store, id: &str) -> Option<String> {
    get(&mut store.begin().unwrap(), id)
}

fn rows(tx: &mut Tx, after: Option<&str>, limit: usize) -> Vec<(String, String)> {
    let text = |row: Row| (row.id, String::from_utf8(row.value.expose().clone()).unwrap());
    tx.scan(&all(), after, limit).unwrap().into_iter().map(text).collect()
}

fn state(store: &Store) -> BTreeMap<String, String> {
    rows(&mut store.begin().unwrap(), None, usize::MAX).into_iter().collect()
}

fn commit(store: &Store, tx: Tx) -> Result<Committed, CommitError> {
    store.submit(tx, leaf())?.wait()
}

#[test]
fn a_commit_is_there_after_a_restart() {
    let rig = Rig::new();
    let store = rig.ready();
    let done = put(&store, "a", "1");
    assert_eq!((done.seq, done.durable.index()), (Seq(2), 1));
    assert_eq!(done.durable.log().as_str(), "changes");
    let cluster = store.cluster_id().unwrap();
    drop(store);
    let store = rig.open().unwrap();
    assert_eq!((store.sealed(), store.initialised(), store.head()), (true, true, Seq(2)));
    assert_eq!(store.cluster_id().unwrap(), cluster, "known while sealed");
    assert!(matches!(store.begin(), Err(Error::Sealed)));
    assert!(matches!(store.unseal(&RootKey::new(&[6; 32]).unwrap()), Err(Error::WrongRootKey)));
    store.unseal(&root()).unwrap();
    assert_eq!(value(&store, "a").as_deref(), Some("1"));
    let leaves: Vec<_> = store.leaves(Seq(1)).map(Result::unwrap).collect();
    assert_eq!(leaves, [(Seq(1), b"leaf 1".to_vec()), (Seq(2), b"leaf 2".to_vec())]);
    assert_eq!(store.fsck().unwrap(), Fsck { entries: 2, records: 2, opened: 1, problems: Vec::new() });
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let rig = Rig { options: Options { index_after_entries: 1, ..Options::default() }, ..Rig::new() };
    let store = rig.ready();
    put(&store, "a", "1");
    put(&store, "b", "1");
    let mut old = store.begin().unwrap();
    for round in 0..20 {
        put(&store, "a", &format!("new {round}"));
        let mut tx = store.begin().unwrap();
        tx.delete(&key("b")).unwrap();
        tx.put(&key("c"), b"new").unwrap();
        commit(&store, tx).unwrap();
        // The index may not pass the old snapshot, however often it is asked to.
        store.flush_index().unwrap();
        assert_eq!(rows(&mut old, None, 9), [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "1".to_owned())]);
        assert_eq!(get(&mut old, "c"), None);
    }
    drop(old);
    store.flush_index().unwrap();
    assert_eq!(state(&store), BTreeMap::from([("a".into(), "new 19".into()), ("c".into(), "new".into())]));
    assert!(store.fsck().unwrap().problems.is_empty());
}

#[test]
fn a_transaction_sees_its_own_writes() {
    let store = Rig::new().ready();
    for id in ["a", "b", "c"] {
        put(&store, id, "old");
    }
    let mut tx = store.begin().unwrap();
    assert!(tx.is_read_only());
    tx.put(&key("b"), b"new").unwrap();
    tx.delete(&key("c")).unwrap();
    tx.put(&key("d"), b"new").unwrap();
    assert!(!tx.is_read_only());
    let row = |id: &str, value: &str| (id.to_owned(), value.to_owned());
    assert_eq!(rows(&mut tx, None, 9), [row("a", "old"), row("b", "new"), row("d", "new")]);
    assert_eq!(rows(&mut tx, Some("a"), 1), [row("b", "new")]);
    assert_eq!(tx.list(&all(), Some("b"), 9).unwrap(), ["d"]);
    assert_eq!((get(&mut tx, "b").as_deref(), get(&mut tx, "c")), (Some("new"), None));
    assert!(!tx.exists(&key("c")).unwrap());
    drop(tx);
    assert_eq!(state(&store).len(), 3, "dropped without a trace");
}

#[test]
fn a_list_names_each_identifier_once() {
    let store = Rig::new().ready();
    let mut tx = store.begin().unwrap();
    for id in [&["a"][..], &["a", "x"], &["a", "y", "z"], &["ab"], &["b", "x"], &["c"]] {
        tx.put(&Key::new(Scope::KERNEL, "t", id), b"v").unwrap();
    }
    tx.put(&Key::new(Scope::KERNEL, "tt", &["other table"]), b"v").unwrap();
    commit(&store, tx).unwrap();
    let mut tx = store.begin().unwrap();
    for limit in 1..6 {
        let expected: Vec<_> = ["a", "ab", "b", "c"].into_iter().take(limit).collect();
        assert_eq!(tx.list(&all(), None, limit).unwrap(), expected);
    }
    assert_eq!(tx.list(&all(), Some("a"), 9).unwrap(), ["ab", "b", "c"]);
    assert_eq!(tx.list(&all().starting("a"), None, 9).unwrap(), ["a", "ab"]);
    assert_eq!(tx.list(&Prefix::new(Scope::KERNEL, "t", &["a"]), None, 9).unwrap(), ["x", "y"]);
    assert_eq!(tx.scan(&all(), None, 9).unwrap().len(), 6);
    assert!(tx.scan(&all(), None, 0).unwrap().is_empty());
}

#[test]
fn json_values_round_trip_and_say_where_they_do_not() {
    let store = Rig::new().ready();
    let mut tx = store.begin().unwrap();
    tx.write(&key("a"), &vec![1, 2]).unwrap();
    assert_eq!(tx.read::<Vec<u8>>(&key("a")).unwrap(), Some(vec![1, 2]));
    assert_eq!(tx.read::<Vec<u8>>(&key("b")).unwrap(), None);
    assert!(matches!(tx.read::<String>(&key("a")), Err(Error::Json { key }) if key == "0:0:t/a"));
}

#[test]
fn a_stale_read_is_a_conflict() {
    let store = Rig::new().ready();
    put(&store, "a", "1");
    type Look = fn(&mut Tx);
    let looks: [(&str, Look, bool); 9] = [
        ("the key", |tx| drop(tx.get(&key("a")).unwrap()), true),
        ("whether it is there", |tx| assert!(tx.exists(&key("a")).unwrap()), true),
        ("a range around it", |tx| drop(tx.scan(&all(), None, 9).unwrap()), true),
        ("a list around it", |tx| drop(tx.list(&all(), None, 9).unwrap()), true),
        ("a range behind it", |tx| drop(tx.scan(&all(), Some("a"), 9).unwrap()), false),
        ("a range that ended at it", |tx| drop(tx.scan(&all(), None, 1).unwrap()), true),
        ("another key", |tx| drop(tx.get(&key("b")).unwrap()), false),
        (
            "a key written before it was read",
            |tx| {
                tx.put(&key("a"), b"own").unwrap();
                drop(tx.get(&key("a")).unwrap())
            },
            false,
        ),
        ("nothing", |_| {}, false),
    ];
    for (what, look, conflict) in looks {
        let mut tx = store.begin().unwrap();
        look(&mut tx);
        tx.put(&key("mine"), b"x").unwrap();
        put(&store, "a", "2");
        let head = store.head();
        match commit(&store, tx) {
            Err(CommitError::Conflict) => {
                assert!(conflict, "{what}");
                assert_eq!(store.head(), head, "a conflict leaves no trace");
            }
            other => assert!(other.is_ok() && !conflict, "{what}"),
        }
    }
}

/// The committer forgets which keys were touched when only transactions that are gone could have missed it.
#[test]
fn an_old_transaction_is_still_validated_after_many_commits() {
    let store = Rig::new().ready();
    let mut old = store.begin().unwrap();
    get(&mut old, "a");
    put(&store, "a", "1");
    for round in 0..3 {
        let mut tx = store.begin().unwrap();
        for n in 0..4000 {
            tx.delete(&key(&format!("{round} {n}"))).unwrap();
        }
        commit(&store, tx).unwrap();
    }
    assert_eq!(commit(&store, old).err(), Some(CommitError::Conflict));
}

#[test]
fn a_phantom_is_a_conflict() {
    let store = Rig::new().ready();
    for id in ["b", "d"] {
        put(&store, id, "1");
    }
    // (where the scan looked, what appeared, whether it would have been seen)
    let cases = [(None, 9, "a", true), (None, 9, "e", true), (None, 2, "c2", true), (None, 1, "c3", false), (Some("b"), 9, "a4", false)];
    for (after, limit, appears, seen) in cases {
        let mut tx = store.begin().unwrap();
        rows(&mut tx, after, limit);
        tx.put(&Key::new(Scope::KERNEL, "other", &["x"]), b"x").unwrap();
        put(&store, appears, "new");
        assert_eq!(commit(&store, tx).err(), seen.then_some(CommitError::Conflict), "after {after:?}, limit {limit}, {appears}");
        let mut tx = store.begin().unwrap();
        tx.delete(&key(appears)).unwrap();
        commit(&store, tx).unwrap();
    }
}

#[test]
fn write_skew_is_a_conflict() {
    let store = Rig::new().ready();
    put(&store, "x", "on");
    put(&store, "y", "on");
    // Each leaves if the other stays. Under snapshot isolation alone both would leave.
    let leave = |me: &str, other: &str| {
        let mut tx = store.begin().unwrap();
        assert_eq!(get(&mut tx, other).as_deref(), Some("on"));
        tx.put(&key(me), b"off").unwrap();
        tx
    };
    let (one, two) = (leave("x", "y"), leave("y", "x"));
    let (one, two) = (store.submit(one, leaf()).unwrap(), store.submit(two, leaf()).unwrap());
    assert!(one.wait().is_ok());
    assert_eq!(two.wait().err(), Some(CommitError::Conflict), "also within one batch");
}

#[test]
fn concurrent_increments_all_count() {
    let rig = Rig { options: Options { index_after_entries: 8, ..Options::default() }, ..Rig::new() };
    let store = rig.ready();
    let (threads, each) = (4, 50);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..each {
                    loop {
                        let mut tx = store.begin().unwrap();
                        let count: u64 = tx.read(&key("count")).unwrap().unwrap_or(0);
                        tx.write(&key("count"), &(count + 1)).unwrap();
                        match commit(&store, tx) {
                            Ok(_) => break,
                            Err(error) => assert_eq!(error, CommitError::Conflict),
                        }
                    }
                }
            });
        }
    });
    assert_eq!(store.begin().unwrap().read::<u64>(&key("count")).unwrap(), Some(threads * each));
    assert_eq!(store.head(), Seq(1 + threads * each));
    assert!(store.fsck().unwrap().problems.is_empty());
}

#[test]
fn a_refusal_keeps_what_was_kept() {
    let store = Rig::new().ready();
    put(&store, "uses", "2");
    let mut tx = store.begin().unwrap();
    get(&mut tx, "uses");
    tx.put(&key("uses"), b"1").unwrap();
    tx.keep();
    tx.put(&key("uses"), b"overwritten by the handler").unwrap();
    tx.put(&key("effect"), b"x").unwrap();
    tx.refuse();
    assert!(!tx.is_read_only());
    assert_eq!((get(&mut tx, "uses").as_deref(), get(&mut tx, "effect")), (Some("1"), None));
    let stale = {
        let mut tx = store.begin().unwrap();
        get(&mut tx, "uses");
        tx.put(&key("uses"), b"1").unwrap();
        tx.keep();
        tx.refuse();
        tx
    };
    commit(&store, tx).unwrap();
    assert_eq!(state(&store), BTreeMap::from([("uses".into(), "1".into())]));
    assert_eq!(commit(&store, stale).err(), Some(CommitError::Conflict), "a use is consumed once");
    let mut tx = store.begin().unwrap();
    tx.put(&key("x"), b"x").unwrap();
    tx.refuse();
    assert!(tx.is_read_only());
    assert_eq!(commit(&store, tx).unwrap().seq, Seq(4), "a leaf alone is a commit too");
}

#[test]
fn times_never_fall() {
    let rig = Rig::new();
    let store = rig.ready();
    let start = put(&store, "a", "1").time;
    rig.clock.jump(Timestamp(start.0 + 5_000_000));
    let later = put(&store, "a", "2").time;
    assert_eq!(later.0, start.0 + 5_000_000);
    rig.clock.jump(start);
    assert_eq!(store.begin().unwrap().now(), later);
    assert_eq!(put(&store, "a", "3").time, later);
    drop(store);
    assert_eq!(put(&rig.ready(), "a", "4").time, later, "also after a restart");
}

/// Remembers what it was told, and what could be read at that moment.
#[derive(Default)]
struct Witness {
    seen: Mutex<Vec<(Seq, String, Vec<Key>)>>,
    poisoned: Mutex<Vec<String>>,
}

impl Observer for Witness {
    fn applied(&self, batch: &[Applied<'_>]) {
        let told = batch.iter().map(|commit| (commit.seq, String::from_utf8(commit.leaf.to_vec()).unwrap(), commit.keys.to_vec()));
        self.seen.lock().unwrap().extend(told);
    }

    fn poisoned(&self, reason: &str) {
        self.poisoned.lock().unwrap().push(reason.to_owned());
    }
}

#[test]
fn the_observer_knows_before_the_waiter() {
    let witness = Arc::new(Witness::default());
    let rig = Rig { observer: witness.clone(), ..Rig::new() };
    let store = rig.ready();
    for n in 2..50_u64 {
        let mut tx = store.begin().unwrap();
        tx.put(&key("a"), b"x").unwrap();
        tx.delete(&key("b")).unwrap();
        let stamped = Arc::new(Mutex::new(None));
        let stamp_out = stamped.clone();
        let leaf: LeafFn = Box::new(move |stamp| {
            *stamp_out.lock().unwrap() = Some(stamp.clone());
            b"the leaf".to_vec()
        });
        let done = store.submit(tx, leaf).unwrap().wait().unwrap();
        let seen = witness.seen.lock().unwrap();
        assert_eq!(seen.len() as u64, n);
        assert_eq!(seen.last().unwrap(), &(done.seq, "the leaf".to_owned(), vec![key("a"), key("b")]));
        let stamp = stamped.lock().unwrap().clone().unwrap();
        assert_eq!((stamp.seq, stamp.time), (done.seq, done.time));
        assert_ne!(stamp.changes, [0; 32]);
    }
    let in_order = witness.seen.lock().unwrap().iter().map(|seen| seen.0.0).eq(1..50);
    assert!(in_order && witness.poisoned.lock().unwrap().is_empty());
}

#[test]
fn the_index_is_disposable() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let mut rig = Rig::on(disk);
    let index = MemoryDisk::new();
    rig.place = IndexPlace::Disk(Arc::new(index.clone()), "index".to_owned());
    let store = rig.ready();
    for n in 0..30 {
        put(&store, &format!("{}", n % 7), &format!("{n}"));
    }
    store.flush_index().unwrap();
    let behind = index.files();
    for n in 30..60 {
        put(&store, &format!("{}", n % 9), &format!("{n}"));
    }
    let expected = state(&store);
    drop(store);
    let up = index.files();
    let places = [
        ("up to date", MemoryDisk::from_files(up.clone())),
        ("behind", MemoryDisk::from_files(behind)),
        ("deleted", MemoryDisk::new()),
        ("no redb file at all", MemoryDisk::from_files([("index".to_owned(), vec![7; 8192])])),
    ];
    for (what, index) in places {
        for options in [Options::default(), Options { resident_bytes_max: 600, ..Options::default() }] {
            rig.place = IndexPlace::Disk(Arc::new(index.clone()), "index".to_owned());
            rig.options = options;
            let store = rig.ready();
            assert_eq!(state(&store), expected, "{what}");
            let report = store.fsck().unwrap();
            assert_eq!((report.entries, report.problems), (61, Vec::new()), "{what}");
        }
    }
    rig.place = IndexPlace::Memory;
    assert_eq!(state(&rig.ready()), expected);
}

#[test]
fn an_index_file_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let rig = Rig { place: IndexPlace::File(path.clone()), ..Rig::new() };
    put(&rig.ready(), "a", "1");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(value(&rig.ready(), "a").as_deref(), Some("1"));
}

#[test]
fn an_index_that_knows_more_than_the_log_refuses() {
    let (log, index) = (MemoryDisk::new(), MemoryDisk::new());
    let mut rig = Rig::on(Arc::new(log.clone()));
    rig.place = IndexPlace::Disk(Arc::new(index), "index".to_owned());
    put(&rig.ready(), "a", "1");
    let old = log.files();
    put(&rig.ready(), "a", "2");
    // Yesterday's log under today's index.
    rig.disk = Arc::new(MemoryDisk::from_files(old.clone()));
    assert!(matches!(rig.open().err(), Some(Error::IndexAhead { index: Seq(3), log: Seq(2) })));
    // The same length, another history.
    let fork = Rig { place: IndexPlace::Memory, ..Rig::on(Arc::new(MemoryDisk::from_files(old))) };
    put(&fork.ready(), "a", "forked");
    rig.disk = fork.disk;
    assert!(matches!(rig.open().err(), Some(Error::IndexForeign)));
    rig.place = IndexPlace::Memory;
    assert_eq!(value(&rig.ready(), "a").as_deref(), Some("forked"), "thrown away on purpose");
}

type Records<'a> = redb::Table<'a, &'static [u8], &'static [u8]>;

/// Changes records of an index behind the store's back.
fn tamper(index: &MemoryDisk, change: impl FnOnce(&mut Records<'_>)) {
    struct Backend(Arc<dyn journal::File>);
    impl std::fmt::Debug for Backend {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Backend")
        }
    }
    impl redb::StorageBackend for Backend {
        fn len(&self) -> std::io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
            self.0.read_at(offset, out)
        }
        fn set_len(&self, len: u64) -> std::io::Result<()> {
            self.0.set_len(len)
        }
        fn sync_data(&self) -> std::io::Result<()> {
            self.0.sync()
        }
        fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
            self.0.write_at(offset, data)
        }
    }
    let database = redb::Database::builder().create_with_backend(Backend(index.open("index").unwrap())).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&mut transaction.open_table(redb::TableDefinition::new("records")).unwrap());
    transaction.commit().unwrap();
}

#[test]
fn a_tampered_index_is_seen() {
    let index = MemoryDisk::new();
    let mut rig = Rig::new();
    rig.place = IndexPlace::Disk(Arc::new(index.clone()), "index".to_owned());
    let store = rig.ready();
    put(&store, "a", "old");
    store.flush_index().unwrap();
    drop(store);
    let mut before = Vec::new();
    tamper(&index, |records| before = records.get(key("a").as_bytes()).unwrap().unwrap().value().to_vec());
    let store = rig.ready();
    put(&store, "a", "new");
    put(&store, "b", "1");
    store.flush_index().unwrap();
    drop(store);
    let clean = index.files();
    let with = |what: &str, change: &dyn Fn(&mut Records<'_>)| {
        let index = MemoryDisk::from_files(clean.clone());
        tamper(&index, |records| change(records));
        let rig = Rig { place: IndexPlace::Disk(Arc::new(index), "index".to_owned()), disk: Arc::clone(&rig.disk), ..Rig::new() };
        let store = rig.ready();
        let problems = store.fsck().unwrap().problems;
        assert_eq!(problems.len(), 1, "{what}: {problems:?}");
        (store, problems.first().unwrap().clone())
    };
    let (store, problem) = with("an old value put back", &|records| {
        records.insert(key("a").as_bytes(), before.as_slice()).unwrap();
    });
    assert!(problem.contains("another value"), "{problem}");
    assert_eq!(value(&store, "a").as_deref(), Some("old"), "it opens: this is what the comparison is for");
    let (store, problem) = with("a record moved to another key", &|records| {
        let moved = records.get(key("a").as_bytes()).unwrap().unwrap().value().to_vec();
        records.insert(key("b").as_bytes(), moved.as_slice()).unwrap();
    });
    assert!(problem.contains("another value"), "{problem}");
    assert!(matches!(store.begin().unwrap().get(&key("b")), Err(Error::Record { .. })), "it does not open");
    let (_, problem) = with("a record taken away", &|records| drop(records.remove(key("a").as_bytes()).unwrap()));
    assert!(problem.contains("lacks"), "{problem}");
    let (_, problem) = with("a record added", &|records| drop(records.insert(key("z").as_bytes(), &b"z"[..]).unwrap()));
    assert!(problem.contains("which the log does not"), "{problem}");
}

/// Whatever the journal's checksums let through, the chain does not: here a log is written again, entry by entry, with one of them
/// changed.
#[test]
fn a_rewritten_log_breaks_the_chain() {
    let rig = Rig { place: IndexPlace::Memory, ..Rig::new() };
    let store = rig.ready();
    for id in ["a", "b", "c"] {
        put(&store, id, "1");
    }
    drop(store);
    let options = || journal::Options::new(LogName::new("changes").unwrap(), 77);
    let entries: Vec<_> =
        FileLog::with(rig.disk.clone(), options()).unwrap().reader().read_from(Seq(1)).map(|entry| entry.unwrap().1).collect();
    let rewritten = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut entries = entries.clone();
        change(&mut entries);
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
        let mut log = FileLog::with(disk.clone(), options()).unwrap();
        log.append(Seq(1), 1, &entries).unwrap();
        drop(log);
        Rig { place: IndexPlace::Memory, ..Rig::on(disk) }.open().err()
    };
    assert!(rewritten(&|_| {}).is_none());
    let leaf_changed = rewritten(&|entries| *entries[1].last_mut().unwrap() ^= 1);
    assert!(matches!(leaf_changed, Some(Error::Entry { seq: Seq(3), what: "it does not follow the entry before" })));
    let removed = rewritten(&|entries| drop(entries.remove(1)));
    assert!(matches!(removed, Some(Error::Entry { seq: Seq(2), what: "it belongs elsewhere" })));
    let swapped = rewritten(&|entries| entries.swap(1, 2));
    assert!(matches!(swapped, Some(Error::Entry { seq: Seq(2), .. })));
    let noise = rewritten(&|entries| entries[1] = b"noise".to_vec());
    assert!(matches!(noise, Some(Error::Entry { seq: Seq(2), what: "it cannot be read" })));
}

#[test]
fn a_flipped_bit_in_the_middle_of_the_log_refuses() {
    let log = MemoryDisk::new();
    let rig = Rig { place: IndexPlace::Memory, ..Rig::on(Arc::new(log.clone())) };
    let store = rig.ready();
    for id in ["a", "b", "c"] {
        put(&store, id, "1");
    }
    drop(store);
    let files = log.files();
    let (name, bytes) = files.iter().find(|(_, bytes)| bytes[..4096].iter().any(|byte| *byte != 0)).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    for at in (4096..used - 400).step_by(97) {
        let mut bad = files.clone();
        bad.get_mut(name).unwrap()[at] ^= 1;
        let rig = Rig { place: IndexPlace::Memory, ..Rig::on(Arc::new(MemoryDisk::from_files(bad))) };
        let refused = rig.open().err();
        assert!(matches!(refused, Some(Error::Log(journal::Error::Corrupt { .. }))), "byte {at}: {refused:?}");
    }
}

#[test]
fn a_full_disk_poisons_and_acknowledges_nothing() {
    for allowed in 0..12 {
        let inner = MemoryDisk::new();
        let disk = Arc::new(FaultyDisk::new(Arc::new(inner.clone())));
        let witness = Arc::new(Witness::default());
        let rig = Rig { observer: witness.clone(), place: IndexPlace::Memory, ..Rig::on(disk.clone()) };
        let store = rig.ready();
        disk.fail_after(allowed);
        let mut acknowledged = store.head();
        let reason = loop {
            let mut tx = store.begin().unwrap();
            tx.put(&key("a"), &[1; 9000]).unwrap();
            match commit(&store, tx) {
                Ok(done) => acknowledged = done.seq,
                Err(CommitError::Poisoned { reason }) => break reason,
                Err(other) => panic!("{other}"),
            }
        };
        assert!(reason.contains("no storage space"), "{reason}");
        let mut tx = store.begin().unwrap();
        tx.put(&key("b"), b"x").unwrap();
        assert!(matches!(commit(&store, tx), Err(CommitError::Poisoned { .. })), "nothing is committed any more");
        assert_eq!(store.poisoned().as_ref(), Some(&reason));
        assert_eq!(*witness.poisoned.lock().unwrap(), [reason], "told once");
        assert_eq!(disk.refused(), 1, "and nothing was tried again");
        assert_eq!(store.head(), acknowledged, "what was not synced was never visible");
        assert_eq!(witness.seen.lock().unwrap().last().unwrap().0, acknowledged);
        drop(store);
        let again = Rig { place: IndexPlace::Memory, ..Rig::on(Arc::new(inner)) }.ready();
        assert!(again.head() >= acknowledged);
    }
}

#[test]
fn too_much_is_turned_away() {
    let rig = Rig { options: Options { resident_bytes_max: 2000, ..Options::default() }, ..Rig::new() };
    let store = rig.ready();
    let old = store.begin().unwrap();
    put(&store, "a", &"x".repeat(3000));
    let mut tx = store.begin().unwrap();
    tx.put(&key("b"), b"x").unwrap();
    // The old snapshot keeps the index, and so the memory, from being brought up.
    store.flush_index().unwrap();
    assert_eq!(commit(&store, tx).err(), Some(CommitError::Overloaded));
    drop(old);
    store.flush_index().unwrap();
    put(&store, "b", "x");
}

#[test]
fn limits_are_kept_before_the_log_is_touched() {
    let store = Rig::new().ready();
    let mut tx = store.begin().unwrap();
    let long = Key::new(Scope::KERNEL, "t", &[&"k".repeat(5000)]);
    assert!(matches!(tx.put(&long, b"x"), Err(Error::TooLarge { what: "key", .. })));
    assert!(matches!(tx.put(&key("a"), &vec![0; (8 << 20) + 1]), Err(Error::TooLarge { what: "value", .. })));
    for keyring in [Key::new(Scope::STORE, "keyring", &[]), Key::new(Scope::STORE, "x", &["y"])] {
        assert!(matches!(tx.put(&keyring, b"x"), Err(Error::Reserved { .. })));
        assert!(matches!(tx.delete(&keyring), Err(Error::Reserved { .. })));
    }
    for id in ["a", "b"] {
        tx.put(&key(id), &vec![0; 5 << 20]).unwrap();
    }
    assert!(matches!(commit(&store, tx), Err(CommitError::TooLarge { what: "transaction", .. })));
    let tx = store.begin().unwrap();
    let refused = store.submit(tx, Box::new(|_| vec![b'x'; 65_536])).unwrap().wait();
    assert!(matches!(refused, Err(CommitError::TooLarge { what: "record", bytes: 65_536 })));
    let tx = store.begin().unwrap();
    assert_eq!(store.submit(tx, Box::new(|_| vec![b'x'; 65_535])).unwrap().wait().unwrap().seq, Seq(2));
    assert!(store.poisoned().is_none());
}

#[test]
fn two_processes_do_not_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let rng = SeededRng::new(1);
    let first = FileLog::open(dir.path(), &rng).unwrap();
    assert!(matches!(FileLog::open(dir.path(), &rng).err(), Some(Error::Log(journal::Error::Locked { .. }))));
    drop(first);
    FileLog::open(dir.path(), &rng).unwrap();
}

#[test]
fn sealing_and_initialising_happen_once_and_in_order() {
    let store = Rig::new().open().unwrap();
    assert_eq!((store.initialised(), store.sealed(), store.cluster_id()), (false, true, None));
    assert!(matches!(store.unseal(&root()), Err(Error::NotInitialised)));
    assert!(matches!(store.begin().err(), Some(Error::Sealed)));
    let (root_a, root_b) = (root(), root());
    let both = async { tokio::join!(store.initialise(&root_a, leaf()), store.initialise(&root_b, leaf())) };
    let (one, two) = block_on(both);
    assert_eq!(one.unwrap().seq, Seq(1));
    assert!(matches!(two, Err(Error::AlreadyInitialised)));
    assert!(matches!(block_on(store.initialise(&root(), leaf())), Err(Error::AlreadyInitialised)));
    let running = store.begin().unwrap();
    store.seal();
    assert!(store.sealed() && store.begin().is_err());
    assert!(commit(&store, running).is_ok(), "what had begun may end");
    store.unseal(&root()).unwrap();
    put(&store, "a", "1");
}

mod twin {
    //! Random transactions, several open at a time, against the model.

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Begin,
        Get(usize, usize),
        Scan(usize, Option<usize>, usize),
        Put(usize, usize),
        Delete(usize, usize),
        Commit(usize),
        FlushIndex,
        Restart,
        LoseIndex,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let (tx, id) = (0_usize..3, 0_usize..6);
        let step = prop_oneof![
            3 => Just(Step::Begin),
            4 => (tx.clone(), id.clone()).prop_map(|(tx, id)| Step::Get(tx, id)),
            3 => (tx.clone(), proptest::option::of(id.clone()), 0_usize..7).prop_map(|(tx, after, limit)| Step::Scan(tx, after, limit)),
            6 => (tx.clone(), id.clone()).prop_map(|(tx, id)| Step::Put(tx, id)),
            2 => (tx.clone(), id).prop_map(|(tx, id)| Step::Delete(tx, id)),
            5 => tx.prop_map(Step::Commit),
            1 => Just(Step::FlushIndex),
            1 => Just(Step::Restart),
            1 => Just(Step::LoseIndex),
        ];
        proptest::collection::vec(step, 1..80)
    }

    /// An open transaction, in both worlds.
    struct Open {
        tx: Tx,
        at: usize,
        writes: BTreeMap<String, Option<String>>,
        keys: Vec<String>,
        /// From (exclusive, or the beginning) to (inclusive, or the end).
        ranges: Vec<(Option<String>, Option<String>)>,
    }

    impl Open {
        fn view(&self, model: &Model) -> BTreeMap<String, String> {
            let mut model = model.clone();
            model.commits.truncate(self.at);
            model.commits.push(self.writes.clone());
            model.state(self.at + 1)
        }

        fn looked_at(&self, key: &str) -> bool {
            let inside = |(from, to): &(Option<String>, Option<String>)| {
                from.as_deref().is_none_or(|from| key > from) && to.as_deref().is_none_or(|to| key <= to)
            };
            self.keys.iter().any(|read| read == key) || self.ranges.iter().any(inside)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]
        #[test]
        fn the_store_is_the_model(steps in steps()) {
            let mut rig = Rig { options: Options { index_after_entries: 2, ..Options::default() }, ..Rig::new() };
            let mut store = rig.ready();
            let mut model = Model { commits: vec![BTreeMap::new()] };
            let mut open: Vec<Open> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                let pick = |which: usize, open: &[Open]| which.checked_rem(open.len());
                match step {
                    Step::Begin => {
                        let tx = store.begin().unwrap();
                        prop_assert_eq!(tx.snapshot(), Seq(model.commits.len() as u64));
                        let at = model.commits.len();
                        open.push(Open { tx, at, writes: BTreeMap::new(), keys: Vec::new(), ranges: Vec::new() });
                    }
                    Step::Get(which, id) => if let Some(which) = pick(which, &open) {
                        let one = &mut open[which];
                        let id = id.to_string();
                        let expected = one.view(&model).remove(&id);
                        prop_assert_eq!(get(&mut one.tx, &id), expected);
                        if !one.writes.contains_key(&id) {
                            one.keys.push(id);
                        }
                    },
                    Step::Scan(which, after, limit) => if let Some(which) = pick(which, &open) {
                        let one = &mut open[which];
                        let after = after.map(|id| id.to_string());
                        let behind = |row: &(String, String)| after.as_ref().is_none_or(|after| row.0 > *after);
                        let expected: Vec<_> = one.view(&model).into_iter().filter(behind).take(limit).collect();
                        let found = rows(&mut one.tx, after.as_deref(), limit);
                        prop_assert_eq!(&found, &expected);
                        if limit > 0 {
                            let end = if found.len() < limit { None } else { found.last().map(|row| row.0.clone()) };
                            one.ranges.push((after, end));
                        }
                    },
                    Step::Put(which, id) => if let Some(which) = pick(which, &open) {
                        let one = &mut open[which];
                        let value = format!("value {number}");
                        one.tx.put(&key(&id.to_string()), value.as_bytes()).unwrap();
                        one.writes.insert(id.to_string(), Some(value));
                    },
                    Step::Delete(which, id) => if let Some(which) = pick(which, &open) {
                        let one = &mut open[which];
                        one.tx.delete(&key(&id.to_string())).unwrap();
                        one.writes.insert(id.to_string(), None);
                    },
                    Step::Commit(which) => if let Some(which) = pick(which, &open) {
                        let one = open.remove(which);
                        let conflict = model.touched_since(one.at, |key| one.looked_at(key));
                        let writes = one.writes.clone();
                        match commit(&store, one.tx) {
                            Ok(done) => {
                                prop_assert!(!conflict);
                                model.commits.push(writes);
                                prop_assert_eq!(done.seq, Seq(model.commits.len() as u64));
                            }
                            Err(error) => {
                                prop_assert_eq!(error, CommitError::Conflict);
                                prop_assert!(conflict);
                            }
                        }
                    },
                    Step::FlushIndex => store.flush_index().unwrap(),
                    Step::Restart | Step::LoseIndex => {
                        open.clear();
                        drop(store);
                        if matches!(step, Step::LoseIndex) {
                            rig.place = IndexPlace::Disk(Arc::new(MemoryDisk::new()), "index".to_owned());
                        }
                        store = rig.ready();
                    }
                }
            }
            open.clear();
            prop_assert_eq!(state(&store), model.state(model.commits.len()));
            let report = store.fsck().unwrap();
            prop_assert_eq!((report.entries, report.problems), (model.commits.len() as u64, Vec::new()));
        }
    }
}
