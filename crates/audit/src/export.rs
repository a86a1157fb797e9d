//! Writes a proof directory from bytes that were fetched, wherever they came from.

use crate::Error;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tlog::export::{self, Layout, TreeName};

/// Folders below `tile/` that a tile's path can have: the level, seven groups of digits, and that of partial ones.
const FOLDERS_DEEP_MAX: usize = 10;

/// A proof directory under construction. The layout is described in [`tlog::export`].
///
/// Fetch the trees in [`TreeName::FETCH_ORDER`]: for each the checkpoint, then every file that [`Layout::of_checkpoint`]
/// names; end with [`Directory::finish`].
///
/// A directory that holds an earlier export is taken over: what is read by a checkpoint is replaced before the checkpoint is, and the tiles that the
/// new ones leave behind (those at the right edge, which have grown since) are removed at the end.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Tiles that belong to this export.
    tiles: BTreeSet<PathBuf>,
}

impl Directory {
    /// Makes the directory, or takes an existing one.
    pub fn create(path: &Path) -> Result<Directory, Error> {
        fs::create_dir_all(path).map_err(failed(path))?;
        Ok(Directory { path: path.to_owned(), tiles: BTreeSet::new() })
    }

    /// Writes one file of a tree.
    pub fn put(&mut self, tree: TreeName, file: Layout, bytes: &[u8]) -> Result<(), Error> {
        let name = file.path(tree);
        self.write(&name, bytes)?;
        self.tiles.insert(self.path.join(name));
        Ok(())
    }

    /// Writes the verifier keys (as text, one a line) and the manifest.
    pub fn finish(self, vkeys: &str) -> Result<(), Error> {
        let checkpoint = |tree| {
            let path = self.path.join(Layout::Checkpoint.path(tree));
            fs::read(&path).map_err(failed(&path))
        };
        let manifest = export::manifest(&checkpoint(TreeName::Change)?, &checkpoint(TreeName::Access)?)?;
        self.write(export::VKEYS, vkeys.as_bytes())?;
        self.write(export::MANIFEST, manifest.as_bytes())?;
        for tree in TreeName::FETCH_ORDER {
            let folder = self.path.join(tree.as_str());
            self.remove_others(&folder, &folder.join("tile"), FOLDERS_DEEP_MAX)?;
        }
        Ok(())
    }

    /// Removes tiles below `at` that are not of this export, and folders that are empty then. What has no name of a tile is not ours and stays.
    fn remove_others(&self, tree: &Path, at: &Path, deep: usize) -> Result<(), Error> {
        let listed = match fs::read_dir(at) {
            Ok(listed) => listed,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(at)(error)),
        };
        for entry in listed {
            let path = entry.map_err(failed(at))?.path();
            let kind = fs::symlink_metadata(&path).map_err(failed(&path))?.file_type();
            if kind.is_dir() && deep > 0 {
                self.remove_others(tree, &path, deep - 1)?;
                if fs::read_dir(&path).map_err(failed(&path))?.next().is_none() {
                    fs::remove_dir(&path).map_err(failed(&path))?;
                }
            }
            let name = path.strip_prefix(tree).ok().and_then(Path::to_str);
            if kind.is_file() && !self.tiles.contains(&path) && name.is_some_and(|name| Layout::parse(name).is_ok()) {
                fs::remove_file(&path).map_err(failed(&path))?;
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed(folder))?;
        }
        fs::write(&path, bytes).map_err(failed(&path))
    }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Write { path, source }
}
