//! The store as a whole, against the model below.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base::rng::SeededRng;
use base::time::ManualClock;
use base::{Seq, Timestamp};
use journal::{Disk, FaultyDisk, LogName, MemoryDisk};

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
