//! What auditors and exports are given: checkpoints, tiles, entries, proofs.

use crate::export::Directory;
use crate::trail::Open;
use crate::{Error, Question, Row, Trail};
use base::Timestamp;
use serde_json::Value;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::PoisonError;
use tlog::export::{Layout, TreeName};
use tlog::{Checkpoint, InclusionProof, Tile, bundle, leaf_hash, tile};

/// Leaves that one page of an answer looks at, and rows that it has, at most.
pub(crate) const LOOKED_AT_MAX: usize = 10_000;
const ROWS_MAX: usize = 1_000;
/// Leaves that are read at once.
const READ_AT_ONCE: usize = 256;

/// Where a page goes on: the next leaf of each tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Of the change tree.
    pub change: u64,
    /// Of the access tree.
    pub access: u64,
}

/// A part of the answer to a [`Question`].
#[derive(Debug)]
pub struct Page {
    /// In the order of time.
    pub rows: Vec<Row>,
    /// Leaves that were looked at.
    pub looked_at: usize,
    /// Where the next page begins; nothing at the end.
    pub next: Option<Cursor>,
}

/// One tree on the way.
struct Side {
    tree: TreeName,
    origin: String,
    next: u64,
    end: u64,
    /// Leaves from `next` on, with their times.
    ahead: VecDeque<(Timestamp, Value)>,
}

impl Side {
    fn time(&self) -> Option<Timestamp> {
        self.ahead.front().map(|(time, _)| *time)
    }
}

/// A leaf and its time.
fn read(tree: TreeName, index: u64, leaf: &[u8]) -> Result<(Timestamp, Value), Error> {
    let leaf: Option<Value> = serde_json::from_slice(leaf).ok();
    let time = leaf.as_ref().and_then(|leaf| leaf.get("time")?.as_u64());
    leaf.zip(time).map(|(leaf, time)| (Timestamp(time), leaf)).ok_or(Error::Damaged { tree, from: index })
}

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
        let mut directory = Directory::create(path)?;
        for tree in TreeName::FETCH_ORDER {
            let checkpoint = self.checkpoint(tree)?.into_bytes();
            for file in Layout::of_checkpoint(&checkpoint)? {
                directory.put(tree, file, &self.file(tree, file)?)?;
            }
            directory.put(tree, Layout::Checkpoint, &checkpoint)?;
        }
        directory.finish(&self.vkeys()?)
    }

    /// Rows that answer a question, in the order of time: those of the leaves from `cursor` on, or from the question's beginning. One call looks
    /// at no more than [`LOOKED_AT_MAX`] leaves; the page says where the next one goes on.
    pub fn who(&self, question: &mut Question, cursor: Option<Cursor>) -> Result<Page, Error> {
        let mut sides = [self.side(TreeName::Change, question, cursor)?, self.side(TreeName::Access, question, cursor)?];
        let mut page = Page { rows: Vec::new(), looked_at: 0, next: None };
        loop {
            for side in &mut sides {
                self.fill(side)?;
            }
            let [change, access] = &sides;
            let cursor = Cursor { change: change.next, access: access.next };
            let (change, access) = (change.time(), access.time());
            let from_change = match (change, access) {
                (None, None) => return Ok(page),
                (Some(change), Some(access)) => change <= access,
                (change, _) => change.is_some(),
            };
            let [change, access] = &mut sides;
            let side = if from_change { change } else { access };
            if side.time().is_some_and(|time| time > question.to) {
                // Nothing that follows is earlier.
                side.end = side.next;
                side.ahead.clear();
                continue;
            }
            if page.looked_at == LOOKED_AT_MAX || page.rows.len() == ROWS_MAX {
                page.next = Some(cursor);
                return Ok(page);
            }
            if let Some((_, leaf)) = side.ahead.pop_front() {
                page.rows.extend(question.row(side.tree, &side.origin, side.next, &leaf));
                side.next += 1;
                page.looked_at += 1;
            }
        }
    }

    /// The leaves of a tree from the cursor on, or from the first that is not before the question's beginning.
    fn side(&self, tree: TreeName, question: &Question, cursor: Option<Cursor>) -> Result<Side, Error> {
        self.settle(tree)?;
        let origin = self.shared.opened()?.origin(tree).to_owned();
        let end = self.shared.read().tree(tree).size();
        let next = match (cursor, tree) {
            (Some(cursor), TreeName::Change) => cursor.change.min(end),
            (Some(cursor), TreeName::Access) => cursor.access.min(end),
            (None, _) => {
                let (mut low, mut high) = (0, end);
                // Time never goes back within a tree.
                while low < high {
                    let middle = low + (high - low) / 2;
                    let leaf = self.leaves(tree, middle, 1)?.pop().ok_or(Error::NotFound { tree })?;
                    if read(tree, middle, &leaf)?.0 < question.from { low = middle + 1 } else { high = middle }
                }
                low
            }
        };
        Ok(Side { tree, origin, next, end, ahead: VecDeque::new() })
    }

    /// Sees to it that the next leaf is read.
    fn fill(&self, side: &mut Side) -> Result<(), Error> {
        if !side.ahead.is_empty() || side.next == side.end {
            return Ok(());
        }
        let count = usize::try_from(side.end - side.next).unwrap_or(usize::MAX).min(READ_AT_ONCE);
        for (index, leaf) in (side.next..).zip(self.leaves(side.tree, side.next, count)?) {
            side.ahead.push_back(read(side.tree, index, &leaf)?);
        }
        Ok(())
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
