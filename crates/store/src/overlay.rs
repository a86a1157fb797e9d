//! What is durable in the log but not yet in the index, in all versions that a live snapshot may need.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use base::Seq;

use crate::Key;
use crate::entry::{Hash, Sealed};

/// Resident entries. Everything at or below the index's position was removed, everything above it is here.
#[derive(Default)]
pub(crate) struct Overlay {
    /// Versions of a key, oldest first.
    versions: BTreeMap<Key, Vec<(Seq, Sealed)>>,
    entries: VecDeque<Resident>,
    bytes: usize,
}

/// One entry's changes.
#[derive(Clone)]
pub(crate) struct Resident {
    pub(crate) seq: Seq,
    pub(crate) hash: Hash,
    pub(crate) changes: Arc<[(Key, Sealed)]>,
}

impl Resident {
    fn bytes(&self) -> usize {
        // Keys are held twice; the rest is what the maps take.
        let change = |(key, value): &(Key, Sealed)| key.as_bytes().len() * 2 + value.as_ref().map_or(0, |value| value.len()) + 128;
        self.changes.iter().map(change).sum::<usize>() + 96
    }
}

impl Overlay {
    pub(crate) fn add(&mut self, entry: Resident) {
        self.bytes = self.bytes.saturating_add(entry.bytes());
        for (key, value) in entry.changes.iter() {
            self.versions.entry(key.clone()).or_default().push((entry.seq, value.clone()));
        }
        self.entries.push_back(entry);
    }

    /// The value at a snapshot; `None` when the index has to be asked.
    pub(crate) fn get(&self, key: &Key, at: Seq) -> Option<Sealed> {
        self.versions.get(key).and_then(|versions| newest(versions, at))
    }

    /// Keys from `low` to below `high` with their value at a snapshot, as far as they are resident.
    pub(crate) fn range(&self, low: &Key, high: &Key, at: Seq) -> impl Iterator<Item = (Key, Sealed)> {
        let range = (low < high).then(|| self.versions.range(low..high)).into_iter().flatten();
        range.filter_map(move |(key, versions)| newest(versions, at).map(|value| (key.clone(), value)))
    }

    /// The oldest entries up to a position, as many as fit the budget (at least one).
    pub(crate) fn oldest(&self, up_to: Seq, bytes_max: usize) -> Vec<Resident> {
        let mut bytes = 0_usize;
        let fits = |entry: &&Resident| {
            let room = bytes == 0 || bytes < bytes_max;
            bytes = bytes.saturating_add(entry.bytes());
            room && entry.seq <= up_to
        };
        self.entries.iter().take_while(fits).cloned().collect()
    }

    /// Forgets everything up to a position: the index has it.
    pub(crate) fn forget(&mut self, up_to: Seq) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.seq <= up_to) {
            self.bytes = self.bytes.saturating_sub(entry.bytes());
            for (key, _) in entry.changes.iter() {
                if let Some(versions) = self.versions.get_mut(key) {
                    versions.retain(|version| version.0 > up_to);
                    if versions.is_empty() {
                        self.versions.remove(key);
                    }
                }
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn newest(versions: &[(Seq, Sealed)], at: Seq) -> Option<Sealed> {
    versions.iter().rev().find(|version| version.0 <= at).map(|version| version.1.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scope;

    fn key(id: &str) -> Key {
        Key::new(Scope::KERNEL, "t", &[id])
    }

    fn entry(seq: u64, changes: &[(&str, Option<&str>)]) -> Resident {
        let changes = changes.iter().map(|(id, value)| (key(id), value.map(|value| value.as_bytes().into())));
        Resident { seq: Seq(seq), hash: [0; 32], changes: changes.collect() }
    }

    fn get(overlay: &Overlay, id: &str, at: u64) -> Option<Option<String>> {
        overlay.get(&key(id), Seq(at)).map(|value| value.map(|value| String::from_utf8(value.to_vec()).unwrap()))
    }

    #[test]
    fn a_snapshot_sees_its_own_versions() {
        let mut overlay = Overlay::default();
        overlay.add(entry(1, &[("a", Some("1"))]));
        overlay.add(entry(2, &[("a", None), ("b", Some("2"))]));
        overlay.add(entry(3, &[("a", Some("3"))]));
        assert_eq!(get(&overlay, "a", 0), None);
        assert_eq!(get(&overlay, "a", 1), Some(Some("1".into())));
        assert_eq!(get(&overlay, "a", 2), Some(None), "a removal is not ignorance");
        assert_eq!(get(&overlay, "a", 9), Some(Some("3".into())));
        assert_eq!(overlay.range(&key("a"), &key("c"), Seq(1)).count(), 1);
        assert_eq!(overlay.range(&key("a"), &key("c"), Seq(2)).count(), 2);
        assert_eq!(overlay.range(&key("c"), &key("a"), Seq(2)).count(), 0, "an empty range is no panic");
    }

    #[test]
    fn what_is_forgotten_gives_its_bytes_back() {
        let mut overlay = Overlay::default();
        for seq in 1..=10 {
            overlay.add(entry(seq, &[("a", Some("x")), ("b", Some("y"))]));
        }
        let all = overlay.bytes();
        assert_eq!(overlay.oldest(Seq(10), usize::MAX).len(), 10);
        assert_eq!(overlay.oldest(Seq(4), usize::MAX).len(), 4);
        assert_eq!(overlay.oldest(Seq(10), 1).len(), 1, "at least one");
        overlay.forget(Seq(4));
        assert_eq!((overlay.len(), overlay.bytes()), (6, all / 10 * 6));
        assert_eq!(get(&overlay, "a", 4), None);
        assert_eq!(get(&overlay, "a", 5), Some(Some("x".into())));
        overlay.forget(Seq(10));
        assert_eq!((overlay.len(), overlay.bytes(), overlay.versions.len()), (0, 0, 0));
    }
}
