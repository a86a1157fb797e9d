//! Does the index say what the log says, is the chain whole, does every value open?

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::keyring::{Keyring, keyring_key};
use crate::store::{Core, Snapshot};
use crate::{Error, Key};

/// What [`crate::Store::fsck`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fsck {
    /// Entries read.
    pub entries: u64,
    /// Records compared.
    pub records: u64,
    /// Values opened (0 when sealed).
    pub opened: u64,
    /// What is wrong, in words; empty when nothing is. At most the first hundred.
    pub problems: Vec<String>,
}

impl Fsck {
    fn problem(&mut self, what: impl FnOnce() -> String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(what());
        }
    }
}

pub(crate) fn run(core: &Arc<Core>) -> Result<Fsck, Error> {
    let snapshot = Snapshot::of(core);
    let mut report = Fsck::default();
    let expected = fold(core, &snapshot, &mut report)?;
    let found = core.range(&Key::from_raw(&[]), &Key::from_raw(&END), snapshot.seq(), BTreeMap::new(), usize::MAX)?;
    report.records = found.len() as u64;
    compare(&expected, found.into_iter().collect(), &mut report);
    if let Some(keyring) = core.keyring() {
        open_all(&keyring, &expected, &mut report);
    }
    Ok(report)
}

fn fold(core: &Core, snapshot: &Snapshot, report: &mut Fsck) -> Result<BTreeMap<Key, Arc<[u8]>>, Error> {
    let mut state = BTreeMap::new();
    let mut chain = [0; 32];
    for entry in core.entries(base::Seq(1)) {
        let (entry, hash) = entry?;
        if entry.seq > snapshot.seq() {
            break;
        }
        report.entries += 1;
        if entry.prev != chain {
            report.problem(|| format!("entry `{}` does not follow the entry before", entry.seq));
        }
        chain = hash;
        for (key, value) in entry.changes {
            match value {
                Some(value) => drop(state.insert(key, value)),
                None => drop(state.remove(&key)),
            }
        }
    }
    if report.entries != snapshot.seq().0 {
        let (entries, seq) = (report.entries, snapshot.seq());
        report.problem(|| format!("the log gives `{entries}` entries of `{seq}`"));
    }
    Ok(state)
}

fn compare(expected: &BTreeMap<Key, Arc<[u8]>>, mut found: BTreeMap<Key, Arc<[u8]>>, report: &mut Fsck) {
    for (key, value) in expected {
        match found.remove(key) {
            Some(other) if other == *value => {}
            Some(_) => report.problem(|| format!("the index holds another value at `{key:?}`")),
            None => report.problem(|| format!("the index lacks `{key:?}`")),
        }
    }
    for key in found.keys() {
        report.problem(|| format!("the index holds `{key:?}`, which the log does not"));
    }
}

fn open_all(keyring: &Keyring, state: &BTreeMap<Key, Arc<[u8]>>, report: &mut Fsck) {
    for (key, value) in state.iter().filter(|(key, _)| **key != keyring_key()) {
        match keyring.unseal(key, value) {
            Ok(_) => report.opened += 1,
            Err(error) => report.problem(|| error.to_string()),
        }
    }
}

const PROBLEMS_MAX: usize = 100;
/// Behind every key: no table's name begins with this byte.
const END: [u8; 13] = [0xff; 13];
