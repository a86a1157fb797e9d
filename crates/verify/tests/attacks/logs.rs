//! Honest logs in memory, and the directory they are exported to.

use crypto::sign::SigningKey;
use serde_json::json;
use std::fs;
use tempfile::TempDir;
use tlog::export::{self, Layout, TreeName};
use tlog::leaf::{Access, Change, Head, Heads};
use tlog::{Checkpoint, Signer, Tile, Tree, bundle, leaf_hash};
use verify::{Options, Report, verify};

pub(crate) const CHANGES: u64 = 700;
pub(crate) const ACCESSES: u64 = 600;
/// The access leaf at which the second boot begins.
pub(crate) const SECOND_BOOT: u64 = 400;

/// Leaves of both trees.
#[derive(Clone)]
pub(crate) struct Logs {
    pub(crate) change: Vec<Vec<u8>>,
    pub(crate) access: Vec<Vec<u8>>,
}

impl Logs {
    /// Two boots, a heartbeat every hundred leaves, values that a record may hold.
    pub(crate) fn honest() -> Logs {
        let change: Vec<_> = (1..=CHANGES).map(change_leaf).collect();
        let mut access: Vec<Vec<u8>> = Vec::new();
        for index in 0..ACCESSES {
            let record = match index {
                0 | SECOND_BOOT => json!({"kind": "boot"}),
                _ if index % 100 == 99 => {
                    json!({"kind": "heartbeat", "heads": heads(&change, index + 50, &access).to_json()})
                }
                _ => json!({"kind": "request", "request": {"path": format!("secret/data/{index}")}, "response": {"status": 200}}),
            };
            access.push(access_leaf(index, record));
        }
        Logs { change, access }
    }

    pub(crate) fn of(&mut self, tree: TreeName) -> &mut Vec<Vec<u8>> {
        match tree {
            TreeName::Change => &mut self.change,
            TreeName::Access => &mut self.access,
        }
    }
}

pub(crate) fn change_leaf(seq: u64) -> Vec<u8> {
    let record = json!({"kind": "request", "request": {"operation": "update", "path": format!("secret/data/{seq}")}});
    Change { seq, time: 1_000_000 + seq, changes: leaf_hash(&seq.to_be_bytes()), record }.encode().unwrap()
}

pub(crate) fn access_leaf(index: u64, record: serde_json::Value) -> Vec<u8> {
    let (boot, n) = if index < SECOND_BOOT { ("boot-one", index) } else { ("boot-two", index - SECOND_BOOT) };
    Access { as_of: (index + 50).min(CHANGES), boot: boot.to_owned(), n, time: 2_000_000 + index, record }.encode().unwrap()
}

pub(crate) fn heads(change: &[Vec<u8>], changes: u64, access: &[Vec<u8>]) -> Heads {
    let head = |leaves: &[Vec<u8>]| Head { size: leaves.len() as u64, root: tree(leaves).root() };
    Heads { change: head(&change[..changes as usize]), access: head(access) }
}

pub(crate) fn tree(leaves: &[Vec<u8>]) -> Tree {
    let mut tree = Tree::default();
    for leaf in leaves {
        tree.push(leaf_hash(leaf));
    }
    tree
}

pub(crate) fn origin(tree: TreeName) -> &'static str {
    match tree {
        TreeName::Change => "c0ffee/change",
        TreeName::Access => "c0ffee/access/node-1",
    }
}

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

/// A signed checkpoint over leaves.
pub(crate) fn checkpoint(name: TreeName, leaves: &[Vec<u8>], seed: u8) -> Vec<u8> {
    let (key, tree) = (key(seed), tree(leaves));
    let checkpoint =
        Checkpoint { origin: origin(name).to_owned(), size: tree.size(), root: tree.root(), extensions: vec!["boot boot-two".to_owned()] };
    checkpoint.sign(&Signer::new(origin(name), &key).unwrap()).unwrap().into_bytes()
}

/// An export on disk.
pub(crate) struct Export {
    pub(crate) dir: TempDir,
    pub(crate) options: Options,
}

impl Export {
    /// Writes logs as an honest server with this key would, to be checked against the key with seed 1.
    pub(crate) fn of(logs: &Logs, seed: u8) -> Export {
        let dir = tempfile::tempdir().unwrap();
        let given = key(1);
        let keys = [TreeName::Change, TreeName::Access].map(|tree| Signer::new(origin(tree), &given).unwrap().vkey().clone()).to_vec();
        let options = Options { dir: dir.path().to_owned(), keys, pins: Vec::new() };
        let export = Export { dir, options };
        export.write_tiles(logs);
        export.sign(logs, seed);
        export
    }

    /// Writes tiles and bundles, as anyone can.
    pub(crate) fn write_tiles(&self, logs: &Logs) {
        for (name, leaves) in [(TreeName::Change, &logs.change), (TreeName::Access, &logs.access)] {
            let tree = tree(leaves);
            for file in Tile::all(tree.size()) {
                let bytes = match file {
                    Tile::Hashes { level, index, width } => tree.tile(level, index, width).unwrap(),
                    Tile::Entries { index, width } => {
                        let first = index as usize * 256;
                        bundle::encode(&leaves[first..first + usize::from(width)]).unwrap()
                    }
                };
                self.put(name, Layout::Tile(file), &bytes);
            }
        }
    }

    /// Writes checkpoints and keys, as only the owner of a key can.
    pub(crate) fn sign(&self, logs: &Logs, seed: u8) {
        let signer = key(seed);
        let mut keys = Vec::new();
        for (name, leaves) in [(TreeName::Change, &logs.change), (TreeName::Access, &logs.access)] {
            self.put(name, Layout::Checkpoint, &checkpoint(name, leaves, seed));
            keys.push(Signer::new(origin(name), &signer).unwrap().vkey().clone());
        }
        fs::write(self.dir.path().join(export::VKEYS), export::vkeys(&keys)).unwrap();
    }

    pub(crate) fn put(&self, tree: TreeName, file: Layout, bytes: &[u8]) {
        let path = self.dir.path().join(file.path(tree));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Changes one file in place.
    pub(crate) fn edit(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.dir.path().join(path);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        fs::remove_file(self.dir.path().join(path)).unwrap();
    }

    pub(crate) fn pin(&mut self, bytes: &[u8]) {
        let path = self.dir.path().join(format!("pin-{}", self.options.pins.len()));
        fs::write(&path, bytes).unwrap();
        self.options.pins.push(path);
    }

    pub(crate) fn verify(&self) -> Report {
        verify(&self.options)
    }
}

/// Where entry `index` begins in the bundle file that holds it: the file, and the offset of its first byte.
pub(crate) fn place(tree: TreeName, leaves: &[Vec<u8>], index: u64) -> (String, usize) {
    let tile = Tile::bundles(leaves.len() as u64).nth((index / 256) as usize).unwrap();
    let first = (index / 256 * 256) as usize;
    let offset: usize = leaves[first..index as usize].iter().map(|leaf| leaf.len() + 2).sum();
    (Layout::Tile(tile).path(tree), offset + 2)
}
