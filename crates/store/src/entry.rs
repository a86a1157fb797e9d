//! The bytes of a log entry: one transaction's sealed changes and its leaf, chained to the entry before.

use std::sync::Arc;

use base::{Seq, Timestamp};
use crypto::hash::sha256;

use crate::Key;

/// The largest leaf: what a tile's entry bundle can carry.
pub(crate) const LEAF_BYTES_MAX: usize = 65_535;
/// The largest set of changes in one transaction.
pub(crate) const CHANGES_BYTES_MAX: usize = 8 << 20;
/// The longest key.
pub(crate) const KEY_BYTES_MAX: usize = 4096;

/// A sealed value; `None` is a removal.
pub(crate) type Sealed = Option<Arc<[u8]>>;

/// A record that is there.
pub(crate) type Found = (Key, Arc<[u8]>);

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) seq: Seq,
    /// Which owner of the log wrote it; rises with every opening.
    pub(crate) epoch: u64,
    pub(crate) time: Timestamp,
    /// The hash of the entry before; zeros in front of the first.
    pub(crate) prev: Hash,
    /// The snapshot it read.
    pub(crate) base: Seq,
    pub(crate) changes: Vec<(Key, Sealed)>,
    pub(crate) leaf: Vec<u8>,
}

pub(crate) type Hash = [u8; 32];

/// The part of an entry that its `changes` hash covers.
pub(crate) fn encode_changes(changes: &[(Key, Sealed)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_u32(&mut bytes, changes.len());
    for (key, value) in changes {
        put_u32(&mut bytes, key.as_bytes().len());
        bytes.extend_from_slice(key.as_bytes());
        match value {
            None => bytes.push(REMOVE),
            Some(value) => {
                bytes.push(SET);
                put_u32(&mut bytes, value.len());
                bytes.extend_from_slice(value);
            }
        }
    }
    bytes
}

/// The whole entry, around changes that are encoded already.
pub(crate) fn encode(entry: &Entry, changes: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(changes.len().saturating_add(entry.leaf.len()).saturating_add(80));
    bytes.push(VERSION);
    for number in [entry.seq.0, entry.epoch, entry.time.0] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes.extend_from_slice(&entry.prev);
    bytes.extend_from_slice(&entry.base.0.to_be_bytes());
    bytes.extend_from_slice(changes);
    put_u32(&mut bytes, entry.leaf.len());
    bytes.extend_from_slice(&entry.leaf);
    bytes
}

/// Reads an entry; `None` when it is not one.
pub(crate) fn decode(bytes: &[u8]) -> Option<Entry> {
    let mut rest = bytes;
    let rest = &mut rest;
    if take(rest, 1)? != [VERSION] {
        return None;
    }
    let (seq, epoch, time) = (take_u64(rest)?, take_u64(rest)?, take_u64(rest)?);
    let prev = take(rest, 32)?.try_into().ok()?;
    let base = take_u64(rest)?;
    let mut changes = Vec::new();
    for _ in 0..take_u32(rest)? {
        let length = take_u32(rest)?;
        let key = Key::from_bytes(take(rest, length)?)?;
        let value = match take(rest, 1)? {
            [REMOVE] => None,
            [SET] => {
                let length = take_u32(rest)?;
                Some(take(rest, length)?.into())
            }
            _ => return None,
        };
        changes.push((key, value));
    }
    let length = take_u32(rest)?;
    let leaf = take(rest, length)?.to_vec();
    rest.is_empty().then_some(Entry { seq: Seq(seq), epoch, time: Timestamp(time), prev, base: Seq(base), changes, leaf })
}

/// The hash that the next entry names.
pub(crate) fn hash(bytes: &[u8]) -> Hash {
    sha256(bytes)
}

fn put_u32(into: &mut Vec<u8>, number: usize) {
    // The limits keep every length far below.
    into.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn take_u32(rest: &mut &[u8]) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(take(rest, 4)?.try_into().ok()?)).ok()
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(take(rest, 8)?.try_into().ok()?))
}

const VERSION: u8 = 1;
const REMOVE: u8 = 0;
const SET: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scope;

    fn entry() -> Entry {
        Entry {
            seq: Seq(7),
            epoch: 2,
            time: Timestamp(1_767_225_600_000_000),
            prev: [9; 32],
            base: Seq(6),
            changes: vec![
                (Key::new(Scope::KERNEL, "t", &["a"]), Some(b"sealed".as_slice().into())),
                (Key::new(Scope::KERNEL, "t", &["b"]), None),
            ],
            leaf: b"{}".to_vec(),
        }
    }

    #[test]
    fn an_entry_reads_back() {
        for entry in [entry(), Entry { changes: Vec::new(), leaf: Vec::new(), ..entry() }] {
            let bytes = encode(&entry, &encode_changes(&entry.changes));
            assert_eq!(decode(&bytes), Some(entry));
        }
    }

    #[test]
    fn cut_and_prolonged_entries_are_none() {
        let bytes = encode(&entry(), &encode_changes(&entry().changes));
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(decode(&[bytes.as_slice(), &[0]].concat()), None);
        assert_eq!(decode(&[&[2], &bytes[1..]].concat()), None, "another version");
    }

    #[test]
    fn lengths_that_lie_do_not_allocate_or_panic() {
        let bytes = encode(&entry(), &encode_changes(&entry().changes));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] = 0xff;
            let read = decode(&bad);
            assert!(read.is_none_or(|read| read != entry() || bytes[at] == 0xff));
        }
    }

    #[test]
    fn the_bytes_are_the_documented_ones() {
        let entry = Entry { changes: vec![entry().changes.remove(1)], ..entry() };
        let expected = [
            &[1_u8][..],
            &7_u64.to_be_bytes(),
            &2_u64.to_be_bytes(),
            &1_767_225_600_000_000_u64.to_be_bytes(),
            &[9; 32],
            &6_u64.to_be_bytes(),
            &[0, 0, 0, 1],
            &[0, 0, 0, 15],
            b"\0\0\0\0\0\0\0\0\0\0\0\0t\0b",
            &[0],
            &[0, 0, 0, 2],
            b"{}",
        ]
        .concat();
        assert_eq!(encode(&entry, &encode_changes(&entry.changes)), expected);
    }
}
