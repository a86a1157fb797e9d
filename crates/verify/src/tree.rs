//! One tree: read from its files, hashed, and compared with what it and the other tree say.

use crate::file;
use crate::report::{Finding, Summary, Verdict};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tlog::export::{Layout, TreeName};
use tlog::leaf::{Access, Change, Heads};
use tlog::note::NOTE_BYTES_MAX;
use tlog::{Checkpoint, Error, Hash, Tile, Tree, Vkey, bundle, leaf_hash, tile};

/// A tree as far as it could be read.
pub(crate) struct Loaded {
    name: TreeName,
    dir: PathBuf,
    checkpoint: Option<Checkpoint>,
    tree: Tree,
    /// Whether every entry that the checkpoint covers was read.
    whole: bool,
    /// The longest prefix that a head or pin confirms, and the shortest that one contradicts.
    good: Cell<u64>,
    bad: Cell<Option<u64>>,
}

impl Loaded {
    /// Reads checkpoint, entries and tiles once, compares their hashes, and gives every entry to `content`, up to the first
    /// that it refuses.
    pub(crate) fn read(dir: &Path, name: TreeName, keys: &[Vkey], content: Content<'_>, findings: &mut Vec<Finding>) -> Loaded {
        let mut loaded = Loaded {
            name,
            dir: dir.to_owned(),
            checkpoint: None,
            tree: Tree::default(),
            whole: false,
            good: Cell::new(0),
            bad: Cell::new(None),
        };
        loaded.checkpoint = loaded.read_checkpoint(keys, findings);
        if let Some(size) = loaded.size() {
            loaded.whole = loaded.read_entries(size, content, findings);
            if loaded.whole {
                loaded.compare_upper_tiles(size, findings);
            }
        }
        loaded
    }

    pub(crate) fn name(&self) -> TreeName {
        self.name
    }

    pub(crate) fn origin(&self) -> Option<&str> {
        self.checkpoint.as_ref().map(|checkpoint| checkpoint.origin.as_str())
    }

    pub(crate) fn into_summary(self) -> Option<(TreeName, Summary)> {
        let checkpoint = self.checkpoint?;
        let root = crypto::encode::hex(&checkpoint.root);
        Some((self.name, Summary { origin: checkpoint.origin, size: checkpoint.size, root, checked: self.tree.size() }))
    }

    /// What the access tree says about both trees: decided as of commits that are there, heads that are true.
    pub(crate) fn check_accesses(&self, accesses: &Accesses, change: &Loaded, findings: &mut Vec<Finding>) {
        if let (Some((index, as_of)), Some(size)) = (accesses.latest, change.size())
            && as_of > size
        {
            let message = format!("the access tree's entry {index} was decided as of commit {as_of}, but the change tree has {size}");
            change.add(findings, Verdict::Incomplete, Some(size), message);
        }
        for (index, heads) in &accesses.heads {
            let says = format!("the heartbeat in the access tree's entry {index}");
            if heads.access.size > *index {
                let message = format!("{says} claims {} entries before itself", heads.access.size);
                self.add(findings, Verdict::Tampered, Some(*index), message);
            } else {
                self.check_prefix(heads.access.size, &heads.access.root, &says, findings);
            }
            change.check_prefix(heads.change.size, &heads.change.root, &says, findings);
        }
    }

    /// The first `size` entries must have this root, because `says` says so.
    pub(crate) fn check_prefix(&self, size: u64, root: &Hash, says: &str, findings: &mut Vec<Finding>) {
        let Some(own) = self.size() else { return };
        if size > own {
            let message = format!("{says} knows {size} entries, but there are {own}");
            return self.add(findings, Verdict::Incomplete, Some(own), message);
        }
        // entries that could not be read were reported as missing
        let Ok(found) = self.tree.root_at(size) else { return };
        if found == *root {
            self.good.set(self.good.get().max(size));
        } else if self.bad.get().is_none_or(|bad| size < bad) {
            self.bad.set(Some(size));
            let message = format!("the first {size} entries are not those that {says} vouches for");
            self.add(findings, Verdict::Tampered, None, message);
        }
    }

    /// The entries must lead to the root that the checkpoint names; and where a root went wrong is said as closely as the
    /// heads and pins allow.
    pub(crate) fn check_root(&self, findings: &mut Vec<Finding>) {
        let Some(checkpoint) = &self.checkpoint else { return };
        if self.whole && self.tree.root() != checkpoint.root {
            self.bad.set(self.bad.get().or(Some(checkpoint.size)));
            self.add(findings, Verdict::Tampered, None, "the entries do not lead to the root of the checkpoint".to_owned());
        }
        let named = findings.iter().any(|f| f.tree == Some(self.name) && f.verdict == Verdict::Tampered && f.index.is_some());
        if let (Some(bad), false) = (self.bad.get(), named) {
            // a confirmed prefix longer than a contradicted one means that one of the two lies: then nothing is known
            let good = if self.good.get() < bad { self.good.get() } else { 0 };
            let message = format!("the first change is at or after entry {good} and before entry {bad}");
            self.add(findings, Verdict::Tampered, Some(good), message);
        }
    }

    fn size(&self) -> Option<u64> {
        self.checkpoint.as_ref().map(|checkpoint| checkpoint.size)
    }

    fn read_checkpoint(&self, keys: &[Vkey], findings: &mut Vec<Finding>) -> Option<Checkpoint> {
        let bytes = self.file(Layout::Checkpoint, None, findings)?;
        match Checkpoint::dangerous_unverified(&bytes) {
            Ok(checkpoint) => {
                match Checkpoint::open(&bytes, keys) {
                    Ok(_) => {}
                    Err(Error::UnknownKey) => {
                        self.add(findings, Verdict::NotTrusted, None, "the checkpoint is not signed by a key to believe".to_owned());
                    }
                    Err(error) => self.add(findings, Verdict::Tampered, None, format!("checkpoint: {error}")),
                }
                Some(checkpoint)
            }
            Err(error) => {
                self.add(findings, Verdict::Tampered, None, format!("checkpoint: {error}"));
                None
            }
        }
    }

    /// Reads bundle after bundle and its tile of leaf hashes; stops at the first that is missing.
    fn read_entries(&mut self, size: u64, content: Content<'_>, findings: &mut Vec<Finding>) -> bool {
        let mut sound = true;
        for (entries, hashes) in Tile::bundles(size).zip(Tile::level(size, 0)) {
            let first = entries.first_leaf();
            let Tile::Entries { width, .. } = entries else { return false };
            let Some(bytes) = self.file(Layout::Tile(entries), Some(first), findings) else { return false };
            let Some(tile_bytes) = self.file(Layout::Tile(hashes), Some(first), findings) else { return false };
            let known = tile::hashes(&tile_bytes).unwrap_or_default();
            if known.len() != usize::from(width) {
                self.add(findings, Verdict::Tampered, Some(first), format!("`{}` has another length", hashes.path()));
            }
            // One finding for each tile: a finding takes more memory than a leaf, and the first one decides.
            let (mut known, mut told) = (known.iter(), false);
            for entry in bundle::entries(&bytes) {
                let index = self.tree.size();
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) => {
                        self.add(findings, Verdict::Tampered, Some(index), error.to_string());
                        return false;
                    }
                };
                if index - first >= u64::from(width) {
                    self.add(findings, Verdict::Tampered, Some(index), "an entry too many in its bundle".to_owned());
                    return false;
                }
                let hash = leaf_hash(entry);
                if known.next().is_some_and(|known| *known != hash) && !std::mem::replace(&mut told, true) {
                    self.add(findings, Verdict::Tampered, Some(index), "the entry is not the one whose hash was kept".to_owned());
                }
                self.tree.push(hash);
                if sound && let Err(message) = content(index, entry) {
                    self.add(findings, Verdict::Tampered, Some(index), message);
                    sound = false;
                }
            }
            let index = self.tree.size();
            if index - first < u64::from(width) {
                self.add(findings, Verdict::Incomplete, Some(index), format!("`{}` ends early", entries.path()));
                return false;
            }
        }
        true
    }

    /// Tiles above the leaf hashes follow from them. When leaves differ already, this would only repeat it less exactly.
    fn compare_upper_tiles(&self, size: u64, findings: &mut Vec<Finding>) {
        if findings.iter().any(|finding| finding.tree == Some(self.name) && finding.verdict == Verdict::Tampered) {
            return;
        }
        for upper in (1..8).flat_map(|level| Tile::level(size, level)) {
            let Tile::Hashes { level, index, width } = upper else { continue };
            let Some(bytes) = self.file(Layout::Tile(upper), Some(upper.first_leaf()), findings) else { return };
            let expected = self.tree.tile(level, index, width).unwrap_or_default();
            if bytes != expected {
                let differs = bytes.chunks(32).zip(expected.chunks(32)).take_while(|(a, b)| a == b).count() as u64;
                let leaf = upper.first_leaf() + differs * tile::WIDTH.pow(u32::from(level));
                self.add(findings, Verdict::Tampered, Some(leaf), format!("`{}` does not follow from the entries", upper.path()));
                return;
            }
        }
    }

    fn path(&self, file: Layout) -> PathBuf {
        self.dir.join(file.path(self.name))
    }

    /// A file's bytes; when it cannot be read, that is a finding. Of one that is too long there is one byte too many.
    fn file(&self, file: Layout, index: Option<u64>, findings: &mut Vec<Finding>) -> Option<Vec<u8>> {
        let most = match file {
            Layout::Checkpoint => NOTE_BYTES_MAX,
            Layout::Tile(Tile::Hashes { width, .. }) => usize::from(width) * size_of::<Hash>(),
            Layout::Tile(Tile::Entries { width, .. }) => usize::from(width) * (size_of::<u16>() + bundle::ENTRY_MAX),
        };
        match file::read(&self.path(file), most) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                let what = if error.kind() == ErrorKind::NotFound { "is missing".to_owned() } else { error.to_string() };
                self.add(findings, Verdict::Incomplete, index, format!("`{}` {what}", file.path(self.name)));
                None
            }
        }
    }

    fn add(&self, findings: &mut Vec<Finding>, verdict: Verdict, index: Option<u64>, message: String) {
        findings.push(Finding::new(verdict, Some(self.name), index, message));
    }
}

/// Checks one entry, given with its index.
pub(crate) type Content<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), String>;

/// What change leaves say about each other.
#[derive(Default)]
pub(crate) struct Changes {
    last_time: u64,
}

impl Changes {
    /// Sequence contiguous from 1, time never back.
    pub(crate) fn check(&mut self, index: u64, entry: &[u8]) -> Result<(), String> {
        let change = Change::decode(entry).map_err(|error| error.to_string())?;
        if change.seq != index + 1 {
            return Err(format!("sequence `{}` where `{}` must be", change.seq, index + 1));
        }
        not_back(&mut self.last_time, change.time)
    }
}

/// What access leaves say about each other, and what they say about both trees.
#[derive(Default)]
pub(crate) struct Accesses {
    last_time: u64,
    /// Every boot that was seen.
    boots: BTreeSet<String>,
    /// The present boot, and the count that its next leaf must have.
    boot: String,
    next: u64,
    /// The leaf decided as of the latest commit, and that commit.
    latest: Option<(u64, u64)>,
    /// The heads that leaves carry.
    heads: Vec<(u64, Heads)>,
}

impl Accesses {
    /// Boots one after the other, each beginning with its boot record and counted without a gap; time never back.
    pub(crate) fn check(&mut self, index: u64, entry: &[u8]) -> Result<(), String> {
        let access = Access::decode(entry).map_err(|error| error.to_string())?;
        if self.latest.is_none_or(|(_, as_of)| access.as_of > as_of) {
            self.latest = Some((index, access.as_of));
        }
        if let Some(heads) = Heads::of_record(&access.record).map_err(|error| error.to_string())? {
            self.heads.push((index, heads));
        }
        if access.boot != self.boot {
            if access.n != 0 || access.kind() != "boot" {
                return Err(format!("boot `{}` does not begin with its boot record", access.boot));
            }
            if !self.boots.insert(access.boot.clone()) {
                return Err(format!("boot `{}` appears again after another", access.boot));
            }
            self.boot = access.boot;
            self.next = 0;
        }
        if access.n != self.next {
            return Err(format!("count `{}` of the boot where `{}` must be", access.n, self.next));
        }
        self.next += 1;
        not_back(&mut self.last_time, access.time)
    }
}

fn not_back(last: &mut u64, time: u64) -> Result<(), String> {
    if time < *last {
        return Err(format!("time `{time}` is before `{last}` of the entry before it"));
    }
    *last = time;
    Ok(())
}
