//! What is stored: one record per path with the metadata of all versions and, if it is small, the newest value; other values beside it.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{CanonPath, Refusal, Timestamp};
use engine::{Call, Cx, Key, Mount, Prefix, Scope, Tx};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::config::Config;

/// Bytes up to which the newest value is stored inside the record, so that a hot read is one record.
const INLINE_BYTES_MAX: usize = 4_096;
/// Versions kept where nobody says otherwise.
const VERSIONS_DEFAULT: u64 = 10;

/// All that is known of one path.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// The newest version; 0 before the first.
    pub(super) current: u64,
    /// The oldest version that is kept; 0 while nothing was dropped.
    pub(super) oldest: u64,
    pub(super) created: Timestamp,
    pub(super) updated: Timestamp,
    pub(super) versions: BTreeMap<u64, Version>,
    /// Versions to keep; 0 leaves it to the mount.
    #[serde(default)]
    pub(super) max_versions: u64,
    #[serde(default)]
    pub(super) cas_required: bool,
    /// Seconds after which a version counts as deleted; 0 leaves it to the mount.
    #[serde(default)]
    pub(super) delete_version_after: u64,
    #[serde(default)]
    pub(super) custom: Option<BTreeMap<String, String>>,
    /// The rotation that alone may write here.
    #[serde(default)]
    pub(super) managed: Option<String>,
    /// The value of the newest version, if it is small and not destroyed.
    #[serde(default)]
    value: Option<Box<RawValue>>,
}

/// One version.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Version {
    pub(super) created: Timestamp,
    /// From when on it counts as deleted. May lie ahead.
    #[serde(default)]
    pub(super) deletion: Option<Timestamp>,
    #[serde(default)]
    pub(super) destroyed: bool,
}

impl Version {
    /// Whether its value may be read.
    pub(super) fn alive(&self, now: Timestamp) -> bool {
        !self.destroyed && self.deletion.is_none_or(|at| at > now)
    }
}

/// A version as the wire shows it.
#[derive(Serialize)]
pub(super) struct Shown<'a> {
    created_time: String,
    custom_metadata: Option<&'a BTreeMap<String, String>>,
    deletion_time: String,
    destroyed: bool,
    version: u64,
}

impl Record {
    /// A record without versions.
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            current: 0,
            oldest: 0,
            created: now,
            updated: now,
            versions: BTreeMap::new(),
            max_versions: 0,
            cas_required: false,
            delete_version_after: 0,
            custom: None,
            managed: None,
            value: None,
        }
    }

    pub(super) fn load(tx: &mut Tx, place: &Place) -> Result<Option<Self>, Refusal> {
        Ok(tx.read(&place.record_key())?)
    }

    pub(super) fn save(&self, tx: &mut Tx, place: &Place) -> Result<(), Refusal> {
        Ok(tx.write(&place.record_key(), self)?)
    }

    /// Refuses a client's write to a path that a rotation owns.
    pub(super) fn check_unmanaged(&self) -> Result<(), Refusal> {
        match &self.managed {
            None => Ok(()),
            Some(rotation) => Err(Refusal::invalid(format!("this secret is managed by the rotation `{rotation}`: only it writes here"))),
        }
    }

    pub(super) fn version(&self, number: u64) -> Option<&Version> {
        self.versions.get(&number)
    }

    pub(super) fn shown<'a>(&'a self, number: u64, version: &Version) -> Shown<'a> {
        Shown {
            created_time: version.created.rfc3339(),
            custom_metadata: self.custom.as_ref(),
            deletion_time: version.deletion.map(Timestamp::rfc3339).unwrap_or_default(),
            destroyed: version.destroyed,
            version: number,
        }
    }

    /// The value of a version that is not destroyed.
    pub(super) fn value(&mut self, tx: &mut Tx, place: &Place, number: u64) -> Result<Option<Box<RawValue>>, Refusal> {
        if number == self.current && self.value.is_some() {
            return Ok(self.value.take());
        }
        Ok(tx.read(&place.value_key(number))?)
    }

    /// Gives a value back that was taken out to be looked at.
    pub(super) fn restore(&mut self, value: Box<RawValue>) {
        if value.get().len() <= INLINE_BYTES_MAX {
            self.value = Some(value);
        }
    }

    /// Adds the next version, drops those above the limit, and saves. Returns its number.
    pub(super) fn add(&mut self, tx: &mut Tx, place: &Place, config: &Config, value: &RawValue) -> Result<u64, Refusal> {
        let now = tx.now();
        if let Some(before) = self.value.take() {
            tx.write(&place.value_key(self.current), &before)?;
        }
        self.current += 1;
        let after = match (config.delete_version_after, self.delete_version_after) {
            (0, after) | (after, 0) => after,
            (mount, own) => mount.min(own),
        };
        let deletion = (after > 0).then(|| now.after(Duration::from_secs(after)));
        self.versions.insert(self.current, Version { created: now, deletion, destroyed: false });
        self.updated = now;
        if value.get().len() <= INLINE_BYTES_MAX {
            self.value = Some(value.to_owned());
        } else {
            tx.write(&place.value_key(self.current), &value)?;
        }

        let keep = [self.max_versions, config.max_versions, VERSIONS_DEFAULT].into_iter().find(|n| *n > 0).unwrap_or(VERSIONS_DEFAULT);
        if self.current >= keep {
            self.oldest = self.oldest.max(self.current - keep + 1);
        }
        let kept = self.versions.split_off(&self.oldest);
        for (dropped, _) in std::mem::replace(&mut self.versions, kept) {
            tx.delete(&place.value_key(dropped))?;
        }
        self.save(tx, place)?;
        Ok(self.current)
    }

    /// Removes a version's value for good. Does not save.
    pub(super) fn destroy(&mut self, tx: &mut Tx, place: &Place, number: u64) -> Result<(), Refusal> {
        let Some(version) = self.versions.get_mut(&number) else { return Ok(()) };
        version.destroyed = true;
        if number == self.current {
            self.value = None;
        }
        Ok(tx.delete(&place.value_key(number))?)
    }

    /// Removes everything.
    pub(super) fn remove(self, tx: &mut Tx, place: &Place) -> Result<(), Refusal> {
        for number in self.versions.into_keys() {
            tx.delete(&place.value_key(number))?;
        }
        Ok(tx.delete(&place.record_key())?)
    }
}

/// The place of a secret within its mount.
///
/// Folders keep their slash in the key and names have none, so listing a folder needs no record to be opened, and a secret `a` and a
/// folder `a/` are two entries.
pub(super) struct Place {
    scope: Scope,
    folders: Vec<String>,
    name: String,
}

impl Place {
    /// What the route captured as `path`.
    pub(super) fn of(call: &Call) -> Result<Self, Refusal> {
        Self::at(&call.mount, &call.capture_path("path")?)
    }

    pub(super) fn at(mount: &Mount, path: &CanonPath) -> Result<Self, Refusal> {
        let mut segments = path.segments();
        let name = segments.next_back().unwrap_or_default().to_owned();
        Ok(Self { scope: mount.scope(), folders: segments.map(|s| format!("{s}/")).collect(), name })
    }

    /// All entries of a folder; `path` is empty for the mount itself.
    pub(super) fn folder(mount: &Mount, path: &str) -> Prefix {
        let folders: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(|s| format!("{s}/")).collect();
        let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
        Prefix::new(mount.scope(), "secret", &folders)
    }

    fn record_key(&self) -> Key {
        Key::new(self.scope, "secret", &self.id(None))
    }

    fn value_key(&self, version: u64) -> Key {
        let version = format!("{version:020}");
        Key::new(self.scope, "value", &self.id(Some(&version)))
    }

    fn id<'a>(&'a self, last: Option<&'a str>) -> Vec<&'a str> {
        self.folders.iter().map(String::as_str).chain([self.name.as_str()]).chain(last).collect()
    }
}

/// Loads the record that a write would change, refusing a managed one.
pub(super) fn writable(cx: &mut Cx<'_>, place: &Place) -> Result<Option<Record>, Refusal> {
    let record = Record::load(cx.tx, place)?;
    if let Some(record) = &record {
        record.check_unmanaged()?;
    }
    Ok(record)
}

/// Whether anything is known of the path: what tells `create` from `update`.
pub(super) fn exists(_: &super::Kv, cx: &mut Cx<'_>) -> Result<bool, Refusal> {
    let place = Place::of(cx.call)?;
    Ok(Record::load(cx.tx, &place)?.is_some())
}

/// The versions that a body names.
pub(super) fn versions(call: &Call) -> Result<Vec<u64>, Refusal> {
    let wrong = || Refusal::invalid("field `versions`: expected an array of version numbers");
    let items = match call.body.raw("versions") {
        None => Vec::new(),
        // numbers, or texts that are numbers, or one text with commas
        Some(_) => match call.body.typed::<Vec<Box<RawValue>>>("versions", "") {
            Ok(Some(items)) => items.iter().map(|raw| raw.get().trim_matches('"').to_owned()).collect(),
            _ => match call.body.int("versions") {
                Ok(Some(one)) => vec![one.to_string()],
                _ => call.body.list("versions").map_err(|_| wrong())?.unwrap_or_default(),
            },
        },
    };
    let versions: Vec<u64> = items.iter().map(|item| item.parse().map_err(|_| wrong())).collect::<Result<_, _>>()?;
    if versions.is_empty() {
        return Err(Refusal::invalid("no version number provided"));
    }
    if versions.len() > VERSIONS_NAMED_MAX {
        return Err(Refusal::invalid(format!("field `versions`: more than {VERSIONS_NAMED_MAX}")));
    }
    Ok(versions)
}

/// Versions that one request may name.
const VERSIONS_NAMED_MAX: usize = 1_000;

/// Seconds as Go prints a duration: `0s`, `1m30s`, `2h0m0s`.
pub(super) fn go_duration(seconds: u64) -> String {
    let (hours, minutes, rest) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// A duration in whole seconds; what is shorter than one counts as one, so that it does not become "never".
pub(super) fn whole_seconds(span: Duration) -> u64 {
    span.as_secs().saturating_add(u64::from(span.subsec_nanos() > 0))
}
