//! Mounts are rows. A request finds its mount by asking for its prefixes, the longest first: what it found, and that nothing longer was
//! there, is part of what its commit validates. So there is no table in memory that could be stale.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{CanonPath, MountId, NamespaceId, Refusal, Rng};
use engine::Mount;
use serde::{Deserialize, Serialize};
use store::{Key, Prefix, Scope, Tx};

/// Segments that a mount's path may have.
pub const DEPTH_MAX: usize = 8;
/// No mount's last segment: `sys/mounts/:path/tune` is about the mount at `:path`.
pub const TUNE: &str = "tune";
/// Mounts that are listed at most.
pub const LIST_MAX: usize = 10_000;

/// A mount as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Its incarnation.
    pub id: MountId,
    /// The engine's type name.
    pub kind: String,
    /// `<type>_<8 hexadecimal digits>`.
    pub accessor: String,
    /// A UUID.
    pub uuid: String,
    /// For people.
    pub description: String,
    /// `version` of kv.
    pub options: BTreeMap<String, String>,
    /// Zero for the system's.
    pub default_lease_ttl: Duration,
    /// Zero for the system's.
    pub max_lease_ttl: Duration,
    /// Part of the system: cannot be removed.
    pub fixed: bool,
}

impl Record {
    /// The mount that this record is at `path`.
    #[must_use]
    pub fn at(&self, path: CanonPath) -> Mount {
        Mount {
            id: self.id,
            namespace: NamespaceId::ROOT,
            path,
            kind: self.kind.clone(),
            accessor: self.accessor.clone(),
            options: self.options.clone(),
        }
    }
}

fn key(path: &CanonPath) -> Key {
    Key::new(Scope::KERNEL, "mount", &[path.trimmed()])
}

/// The mount that `path` is in, or is.
///
/// # Errors
/// When the store cannot be read.
pub fn find(tx: &mut Tx, path: &CanonPath) -> Result<Option<Mount>, Refusal> {
    let segments: Vec<&str> = path.segments().collect();
    for depth in (1..=segments.len().min(DEPTH_MAX)).rev() {
        let prefix = segments.get(..depth).unwrap_or_default().join("/");
        if let Some(record) = tx.read::<Record>(&Key::new(Scope::KERNEL, "mount", &[&prefix]))? {
            let path = CanonPath::from_plain(&format!("{prefix}/")).map_err(|e| Refusal::internal(e.to_string()))?;
            return Ok(Some(record.at(path)));
        }
    }
    Ok(None)
}

/// The record at exactly this path.
///
/// # Errors
/// When the store cannot be read.
pub fn at(tx: &mut Tx, path: &CanonPath) -> Result<Option<Record>, Refusal> {
    Ok(tx.read(&key(path))?)
}

/// All mounts with their paths, without the slash at the end.
///
/// # Errors
/// When the store cannot be read.
pub fn all(tx: &mut Tx) -> Result<Vec<(String, Record)>, Refusal> {
    tx.scan(&Prefix::new(Scope::KERNEL, "mount", &[]), None, LIST_MAX)?
        .into_iter()
        .map(|row| match serde_json::from_slice(row.value.expose()) {
            Ok(record) => Ok((row.id, record)),
            Err(_) => Err(Refusal::internal(format!("the mount record at `{}` could not be read", row.id))),
        })
        .collect()
}

/// The mount of that incarnation, with its path.
///
/// # Errors
/// When the store cannot be read.
pub fn by_id(tx: &mut Tx, id: MountId) -> Result<Option<Mount>, Refusal> {
    Ok(located(tx, id)?.map(|(path, record)| record.at(path.to_folder())))
}

/// The record of that incarnation.
///
/// # Errors
/// When the store cannot be read.
pub fn record(tx: &mut Tx, id: MountId) -> Result<Option<Record>, Refusal> {
    Ok(located(tx, id)?.map(|(_, record)| record))
}

/// Whether that incarnation is still mounted.
///
/// # Errors
/// When the store cannot be read.
pub fn is_there(tx: &mut Tx, id: MountId) -> Result<bool, Refusal> {
    Ok(tx.exists(&id_key(id))?)
}

fn located(tx: &mut Tx, id: MountId) -> Result<Option<(CanonPath, Record)>, Refusal> {
    let Some(path) = tx.read::<CanonPath>(&id_key(id))? else { return Ok(None) };
    Ok(at(tx, &path)?.filter(|record| record.id == id).map(|record| (path, record)))
}

fn id_key(id: MountId) -> Key {
    Key::new(Scope::KERNEL, "mount-id", &[&format!("{:016x}", id.0)])
}

/// Mounts an engine.
///
/// # Errors
/// 400 when the path is taken, too deep, above or below another mount, one of the system's, or ends in `tune`.
pub fn insert(tx: &mut Tx, rng: &dyn Rng, path: &CanonPath, mut record: Record) -> Result<Record, Refusal> {
    if path.segments().count() > DEPTH_MAX {
        return Err(Refusal::invalid(format!("field `path`: a mount has at most {DEPTH_MAX} segments")));
    }
    if at(tx, path)?.is_some() {
        return Err(Refusal::invalid(format!("path is already in use at {}/", path.trimmed())));
    }
    if !record.fixed {
        let first = path.segments().next().unwrap_or_default();
        if matches!(first, "sys" | "identity" | "cubbyhole") || path.trimmed() == "auth" {
            return Err(Refusal::invalid(format!("field `path`: `{first}/` belongs to the system")));
        }
        if path.segments().next_back() == Some(TUNE) {
            return Err(Refusal::invalid(format!("field `path`: the last segment of a mount cannot be `{TUNE}`")));
        }
        for (other, _) in all(tx)? {
            let other = CanonPath::from_plain(&other).map_err(|e| Refusal::internal(e.to_string()))?;
            if path.starts_with(&other) || other.starts_with(path) {
                return Err(Refusal::invalid(format!("existing mount at {}/", other.trimmed())));
            }
        }
    }
    let last: u64 = tx.read(&last_id())?.unwrap_or(0);
    record.id = MountId(last.saturating_add(1));
    tx.write(&last_id(), &record.id.0)?;
    let mut digits = [0_u8; 4];
    rng.fill(&mut digits)?;
    record.accessor = format!("{}_{}", record.kind, crypto::encode::hex(&digits));
    record.uuid = base::id::uuid(rng)?;
    tx.write(&key(path), &record)?;
    tx.write(&id_key(record.id), &path.to_leaf())?;
    Ok(record)
}

/// Removes the mount at `path`. What is stored under it stays, out of reach: an id is never used again.
///
/// # Errors
/// 400 for a mount of the system.
pub fn remove(tx: &mut Tx, path: &CanonPath) -> Result<bool, Refusal> {
    let Some(record) = at(tx, path)? else { return Ok(false) };
    if record.fixed {
        return Err(Refusal::invalid(format!("cannot unmount `{}/`", path.trimmed())));
    }
    tx.delete(&key(path))?;
    tx.delete(&id_key(record.id))?;
    Ok(true)
}

fn last_id() -> Key {
    Key::new(Scope::KERNEL, "mount-last", &["id"])
}
