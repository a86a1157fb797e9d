//! What auditors and exports are given: checkpoints, tiles, entries, proofs.

use crate::export::Directory;
use crate::trail::Open;
use crate::{Error, Trail};
use std::path::Path;
use std::sync::PoisonError;
use tlog::export::{Layout, TreeName};
use tlog::{Checkpoint, InclusionProof, Tile, bundle, leaf_hash, tile};

impl Trail {
    /// The signed head of a tree. It covers synced leaves only, and names the run of the process that signed it.
    pub fn checkpoint(&self, tree: TreeName) -> Result<String, Error> {
        Ok(self.signed(&*self.shared.opened()?, tree)?.1)
    }

    /// A hash tile.
    pub fn tile(&self, tree: TreeName, level: u8, index: u64, width: u16) -> Result<Vec<u8>, Error> {
        self.settle(tree)?;
        self.shared.read().tree(tree).tile(level, index, width).map_err(|_| Error::NotFound { tree })
    }

    /// An entry bundle.
    pub fn entries(&self, tree: TreeName, index: u64, width: u16) -> Result<Vec<u8>, Error> {
        self.settle(tree)?;
        let start = index.checked_mul(tile::WIDTH).ok_or(Error::NotFound { tree })?;
        let end = start.checked_add(u64::from(width)).ok_or(Error::NotFound { tree })?;
        if width == 0 || u64::from(width) > tile::WIDTH || end > self.shared.read().tree(tree).size() {
            return Err(Error::NotFound { tree });
        }
        Ok(bundle::encode(self.leaves(tree, start, usize::from(width))?)?)
    }

    /// One entry.
    pub fn leaf(&self, tree: TreeName, index: u64) -> Result<Vec<u8>, Error> {
        self.settle(tree)?;
        if index >= self.shared.read().tree(tree).size() {
            return Err(Error::NotFound { tree });
        }
        self.leaves(tree, index, 1)?.pop().ok_or(Error::NotFound { tree })
    }

    /// The `.tlog-proof` of an entry, against the newest checkpoint.
    pub fn proof(&self, tree: TreeName, index: u64) -> Result<String, Error> {
        let (size, checkpoint) = self.signed(&*self.shared.opened()?, tree)?;
        let path = self.shared.read().tree(tree).prove_inclusion(index, size).map_err(|_| Error::NotFound { tree })?;
        Ok(InclusionProof { index, path, checkpoint, extra: None }.text())
    }

    /// Any file of a tree, by its place in the layout.
    pub fn file(&self, tree: TreeName, file: Layout) -> Result<Vec<u8>, Error> {
        match file {
            Layout::Checkpoint => self.checkpoint(tree).map(String::into_bytes),
            Layout::Tile(Tile::Hashes { level, index, width }) => self.tile(tree, level, index, width),
            Layout::Tile(Tile::Entries { index, width }) => self.entries(tree, index, width),
        }
    }

    /// The verifier key of a tree.
    pub fn vkey(&self, tree: TreeName) -> Result<String, Error> {
        Ok(self.shared.opened()?.signer(tree)?.vkey().to_string())
    }

    /// The verifier keys of both trees, one a line.
    pub fn vkeys(&self) -> Result<String, Error> {
        Ok(format!("{}\n{}\n", self.vkey(TreeName::Change)?, self.vkey(TreeName::Access)?))
    }

    /// What a record would hold for this value of this field: lets an investigator look for a known value.
    pub fn hash(&self, field: &str, value: &[u8]) -> Result<String, Error> {
        let open = self.shared.opened()?;
        Ok(crate::Hasher::new(std::sync::Arc::clone(&open.keys)).value(field, value))
    }

    /// Writes a proof directory.
    pub fn export(&self, path: &Path) -> Result<(), Error> {
        let directory = Directory::create(path)?;
        for tree in TreeName::FETCH_ORDER {
            let checkpoint = self.checkpoint(tree)?.into_bytes();
            for file in Layout::of_checkpoint(&checkpoint)? {
                directory.put(tree, file, &self.file(tree, file)?)?;
            }
            directory.put(tree, Layout::Checkpoint, &checkpoint)?;
        }
        directory.finish(&self.vkeys()?)
    }

    fn settle(&self, tree: TreeName) -> Result<(), Error> {
        match tree {
            TreeName::Change => self.shared.settled(&*self.shared.opened()?),
            TreeName::Access => Ok(()),
        }
    }

    fn signed(&self, open: &Open, tree: TreeName) -> Result<(u64, String), Error> {
        if tree == TreeName::Change {
            self.shared.settled(open)?;
        }
        let (size, root) = {
            let state = self.shared.read();
            (state.tree(tree).size(), state.tree(tree).root())
        };
        let mut signed = open.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, note)) = signed.get(&tree)
            && *known >= size
        {
            return Ok((*known, note.clone()));
        }
        let extensions = vec![format!("boot {}", self.shared.boot)];
        let checkpoint = Checkpoint { origin: open.origin(tree).to_owned(), size, root, extensions };
        let note = checkpoint.sign(&open.signer(tree)?)?;
        signed.insert(tree, (size, note.clone()));
        Ok((size, note))
    }

    /// Leaves from where they are kept. What comes back must be what was integrated: damage is never served.
    fn leaves(&self, tree: TreeName, from: u64, count: usize) -> Result<Vec<Vec<u8>>, Error> {
        let open = self.shared.opened()?;
        let leaves = match tree {
            TreeName::Change => open.leaves.read(from, count).map_err(Error::Leaves)?,
            TreeName::Access => {
                let records = self.shared.reader.read_from(from).take(count);
                records.map(|record| record.map(|(_, bytes)| bytes)).collect::<Result<_, _>>().map_err(Error::Journal)?
            }
        };
        let state = self.shared.read();
        let whole = leaves.len() == count && (from..).zip(&leaves).all(|(index, leaf)| state.tree(tree).leaf(index) == Ok(leaf_hash(leaf)));
        if whole { Ok(leaves) } else { Err(Error::Damaged { tree, from }) }
    }
}
