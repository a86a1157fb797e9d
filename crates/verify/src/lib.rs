//! Checks a proof directory offline: signatures, hashes, and what the leaves say about each other.
//!
//! It trusts nothing in the directory but the arithmetic: a checkpoint counts when a key signs it, entries count when they
//! hash to its root, and a history counts when it has no gap. Which key to believe is the caller's to say. It shares the
//! formats with the server (`tlog`) and nothing else.
//!
//! Memory: 64 bytes a leaf.

mod file;
mod report;
mod tree;

pub use report::{Finding, Report, Summary, Verdict};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tlog::Checkpoint;
pub use tlog::Vkey;
use tlog::export;
pub use tlog::export::TreeName;
use tlog::note::NOTE_BYTES_MAX;
use tree::{Accesses, Changes, Loaded};

/// Bytes of the directory's own keys at most.
const VKEYS_BYTES_MAX: usize = 64 * 1024;

/// What to check, and what to believe.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The proof directory.
    pub dir: PathBuf,
    /// Keys to believe. When empty, the keys inside the directory are used, and the report says so.
    pub keys: Vec<Vkey>,
    /// Earlier checkpoints that the logs must continue.
    pub pins: Vec<PathBuf>,
}

/// Checks everything and reports.
pub fn verify(options: &Options) -> Report {
    verify_each(options, &mut |_, _, _| {})
}

/// The same, and gives every entry that is read to `each`, tree by tree in order. None of it is to be believed before the report says intact.
pub fn verify_each(options: &Options, each: &mut dyn FnMut(TreeName, u64, &[u8])) -> Report {
    let mut findings = Vec::new();
    let keys = if options.keys.is_empty() { own_keys(&options.dir, &mut findings) } else { options.keys.clone() };
    let (mut changes, mut accesses) = (Changes::default(), Accesses::default());
    let mut change_entry = |index, entry: &[u8]| {
        each(TreeName::Change, index, entry);
        changes.check(index, entry)
    };
    let change = Loaded::read(&options.dir, TreeName::Change, &keys, &mut change_entry, &mut findings);
    let mut access_entry = |index, entry: &[u8]| {
        each(TreeName::Access, index, entry);
        accesses.check(index, entry)
    };
    let access = Loaded::read(&options.dir, TreeName::Access, &keys, &mut access_entry, &mut findings);
    access.check_accesses(&accesses, &change, &mut findings);
    check_origins(&change, &access, &mut findings);
    for pin in &options.pins {
        check_pin(pin, &keys, [&change, &access], &mut findings);
    }
    // last, because what the leaves and heads say helps to tell where a root went wrong
    change.check_root(&mut findings);
    access.check_root(&mut findings);
    let trees: BTreeMap<_, _> = [change, access].into_iter().filter_map(Loaded::into_summary).collect();
    Report::new(findings, trees, options.keys.is_empty())
}

/// Keys that the directory brings along.
fn own_keys(dir: &Path, findings: &mut Vec<Finding>) -> Vec<Vkey> {
    let path = dir.join(export::VKEYS);
    let keys = file::read(&path, VKEYS_BYTES_MAX).map_err(|error| error.to_string()).and_then(|bytes| {
        let text = Some(bytes).filter(|bytes| bytes.len() <= VKEYS_BYTES_MAX).and_then(|bytes| String::from_utf8(bytes).ok());
        export::parse_vkeys(&text.ok_or("too long, or not text")?).map_err(|error| error.to_string())
    });
    match keys {
        Ok(keys) => keys,
        Err(error) => {
            findings.push(Finding::new(Verdict::NotTrusted, None, None, format!("no key given, and `{}`: {error}", path.display())));
            Vec::new()
        }
    }
}

/// Both trees must be of one cluster, and each of its kind.
fn check_origins(change: &Loaded, access: &Loaded, findings: &mut Vec<Finding>) {
    let (Some(change), Some(access)) = (change.origin(), access.origin()) else { return };
    let cluster = change.strip_suffix("/change");
    let of_cluster = cluster.and_then(|cluster| access.strip_prefix(cluster)).and_then(|rest| rest.strip_prefix("/access/"));
    if of_cluster.is_none_or(str::is_empty) {
        let message = format!("`{change}` and `{access}` are not the change and access trees of one cluster");
        findings.push(Finding::new(Verdict::NotTrusted, None, None, message));
    }
}

/// An earlier checkpoint must be a prefix of what is there now.
fn check_pin(path: &Path, keys: &[Vkey], trees: [&Loaded; 2], findings: &mut Vec<Finding>) {
    let shown = path.display();
    let mut add = |verdict, tree, index, message| findings.push(Finding::new(verdict, tree, index, message));
    let bytes = match file::read(path, NOTE_BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) => return add(Verdict::Incomplete, None, None, format!("pin `{shown}`: {error}")),
    };
    let pin = match Checkpoint::dangerous_unverified(&bytes) {
        Ok(pin) => pin,
        Err(error) => return add(Verdict::NotTrusted, None, None, format!("pin `{shown}`: {error}")),
    };
    let Some(tree) = trees.into_iter().find(|tree| tree.origin() == Some(&pin.origin)) else {
        return add(Verdict::Incomplete, None, None, format!("pin `{shown}` is of `{}`, which is not here", pin.origin));
    };
    if let Err(error) = Checkpoint::open(&bytes, keys) {
        add(Verdict::NotTrusted, Some(tree.name()), None, format!("pin `{shown}`: {error}"));
    }
    tree.check_prefix(pin.size, &pin.root, &format!("pin `{shown}`"), findings);
}
