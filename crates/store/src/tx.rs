//! A transaction as a handler sees it: one snapshot, its own writes, and a note of everything it looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::{Secret, SecretBytes, Seq, Timestamp};
use serde::{Serialize, de::DeserializeOwned};

use crate::commit::Reads;
use crate::entry::{CHANGES_BYTES_MAX, Found, KEY_BYTES_MAX, Sealed};
use crate::key::Scope;
use crate::keyring::Keyring;
use crate::store::{Core, Snapshot};
use crate::{Error, Key, Prefix};

/// A transaction: reads see one snapshot and its own writes; nothing is shared until it commits.
///
/// Everything read is validated at the commit. Dropping a transaction leaves no trace.
pub struct Tx {
    core: Arc<Core>,
    keyring: Arc<Keyring>,
    snapshot: Snapshot,
    now: Timestamp,
    reads: Reads,
    /// Writes that survive a refusal.
    kept: BTreeMap<Key, Sealed>,
    /// All other writes; they hide the kept ones.
    fresh: BTreeMap<Key, Sealed>,
}

/// A found record.
pub struct Row {
    /// The identifier that follows the prefix.
    pub id: String,
    /// The whole key.
    pub key: Key,
    /// The value.
    pub value: SecretBytes,
}

impl Tx {
    pub(crate) fn new(core: Arc<Core>, keyring: Arc<Keyring>, snapshot: Snapshot, now: Timestamp) -> Self {
        Self { core, keyring, snapshot, now, reads: Reads::default(), kept: BTreeMap::new(), fresh: BTreeMap::new() }
    }

    pub(crate) fn into_parts(self) -> (Snapshot, Reads, Vec<(Key, Sealed)>) {
        let mut changes = self.kept;
        changes.extend(self.fresh);
        (self.snapshot, self.reads, changes.into_iter().collect())
    }

    /// Sets the value at `key`.
    pub fn put(&mut self, key: &Key, value: &[u8]) -> Result<(), Error> {
        check(key)?;
        if value.len() > CHANGES_BYTES_MAX {
            return Err(Error::TooLarge { what: "value", bytes: value.len() });
        }
        let sealed = self.keyring.seal(&*self.core.rng, key, self.snapshot.seq(), value)?;
        self.fresh.insert(key.clone(), Some(sealed.into()));
        Ok(())
    }

    /// Sets the value at `key`, as JSON.
    pub fn write<T: Serialize>(&mut self, key: &Key, value: &T) -> Result<(), Error> {
        let bytes = serde_json::to_vec(value).map_err(|_| Error::Json { key: format!("{key:?}") })?;
        self.put(key, Secret::new(bytes).expose())
    }

    /// Removes the value at `key`, if any.
    pub fn delete(&mut self, key: &Key) -> Result<(), Error> {
        check(key)?;
        self.fresh.insert(key.clone(), None);
        Ok(())
    }

    /// The value at `key`.
    pub fn get(&mut self, key: &Key) -> Result<Option<SecretBytes>, Error> {
        match self.sealed(key)? {
            Some(sealed) => self.keyring.unseal(key, &sealed).map(Some),
            None => Ok(None),
        }
    }

    /// The value at `key`, read as JSON.
    pub fn read<T: DeserializeOwned>(&mut self, key: &Key) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key)? else { return Ok(None) };
        serde_json::from_slice(value.expose()).map(Some).map_err(|_| Error::Json { key: format!("{key:?}") })
    }

    /// Whether there is a value at `key`; it is not opened.
    pub fn exists(&mut self, key: &Key) -> Result<bool, Error> {
        Ok(self.sealed(key)?.is_some())
    }

    /// Up to `limit` records under `prefix`, in order; with `after`, those whose next identifier sorts behind it.
    pub fn scan(&mut self, prefix: &Prefix, after: Option<&str>, limit: usize) -> Result<Vec<Row>, Error> {
        let (low, high) = window(prefix, after);
        let rows = self.sealed_range(low, high, limit)?;
        rows.into_iter()
            .map(|(key, sealed)| {
                let value = self.keyring.unseal(&key, &sealed)?;
                Ok(Row { id: prefix.next_id(&key), key, value })
            })
            .collect()
    }

    /// Like [`Tx::scan`], but only the next identifiers, each once; nothing is opened.
    pub fn list(&mut self, prefix: &Prefix, after: Option<&str>, limit: usize) -> Result<Vec<String>, Error> {
        let (mut low, high) = window(prefix, after);
        let mut found = Vec::<String>::new();
        while found.len() < limit {
            let rows = self.sealed_range(low, high.clone(), limit - found.len())?;
            let Some((last, _)) = rows.last() else { break };
            low = prefix.behind(&prefix.next_id(last));
            found.extend(rows.iter().map(|(key, _)| prefix.next_id(key)));
            found.dedup();
        }
        Ok(found)
    }

    /// What it looked at so far. A commit that touches none of it changes nothing of what it found.
    #[must_use]
    pub fn reads(&self) -> &Reads {
        &self.reads
    }

    /// Marks every write so far as kept: it survives [`Tx::refuse`].
    pub fn keep(&mut self) {
        self.kept.append(&mut self.fresh);
    }

    /// Drops every write that was not kept. What was read stays part of the validation.
    pub fn refuse(&mut self) {
        self.fresh.clear();
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.fresh.is_empty() && self.kept.is_empty()
    }

    /// The commit this transaction sees as the last one.
    #[must_use]
    pub fn snapshot(&self) -> Seq {
        self.snapshot.seq()
    }

    /// The later of the wall clock and the last commit's time, as it was when the transaction began.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    fn sealed(&mut self, key: &Key) -> Result<Sealed, Error> {
        if let Some(own) = self.fresh.get(key).or_else(|| self.kept.get(key)) {
            return Ok(own.clone());
        }
        self.reads.keys.insert(key.clone());
        self.core.get(key, self.snapshot.seq())
    }

    fn sealed_range(&mut self, low: Key, high: Key, limit: usize) -> Result<Vec<Found>, Error> {
        let own = |writes: &BTreeMap<Key, Sealed>| {
            let range = (low < high).then(|| writes.range(low.clone()..high.clone())).into_iter().flatten();
            range.map(|(key, value)| (key.clone(), value.clone())).collect::<BTreeMap<_, _>>()
        };
        let mut writes = own(&self.kept);
        writes.extend(own(&self.fresh));
        let rows = self.core.range(&low, &high, self.snapshot.seq(), writes, limit)?;
        // A scan that filled its limit has not seen what lies behind its last row.
        let seen = match rows.last() {
            Some((last, _)) if rows.len() >= limit => last.next(),
            _ if limit == 0 => low.clone(),
            _ => high,
        };
        self.reads.ranges.push((low, seen));
        Ok(rows)
    }
}

fn window(prefix: &Prefix, after: Option<&str>) -> (Key, Key) {
    let (low, high) = prefix.bounds();
    let low = after.map_or(low.clone(), |after| prefix.behind(after).max(low));
    (low, high)
}

fn check(key: &Key) -> Result<(), Error> {
    let bytes = key.as_bytes().len();
    if bytes > KEY_BYTES_MAX {
        return Err(Error::TooLarge { what: "key", bytes });
    }
    if key.scope() == Scope::STORE {
        return Err(Error::Reserved { key: format!("{key:?}") });
    }
    Ok(())
}
