//! Writes a proof directory from bytes that were fetched, wherever they came from.

use crate::Error;
use std::fs;
use std::path::{Path, PathBuf};
use tlog::export::{self, Layout, TreeName};

/// A proof directory under construction. The layout is described in [`tlog::export`].
///
/// Fetch the trees in [`TreeName::FETCH_ORDER`]: for each the checkpoint, then every file that [`Layout::of_checkpoint`]
/// names; end with [`Directory::finish`].
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Makes the directory, or takes an existing one.
    pub fn create(path: &Path) -> Result<Directory, Error> {
        fs::create_dir_all(path).map_err(failed(path))?;
        Ok(Directory { path: path.to_owned() })
    }

    /// Writes one file of a tree.
    pub fn put(&self, tree: TreeName, file: Layout, bytes: &[u8]) -> Result<(), Error> {
        self.write(&file.path(tree), bytes)
    }

    /// Writes the verifier keys (as text, one a line) and the manifest.
    pub fn finish(self, vkeys: &str) -> Result<(), Error> {
        let checkpoint = |tree| {
            let path = self.path.join(Layout::Checkpoint.path(tree));
            fs::read(&path).map_err(failed(&path))
        };
        let manifest = export::manifest(&checkpoint(TreeName::Change)?, &checkpoint(TreeName::Access)?)?;
        self.write(export::VKEYS, vkeys.as_bytes())?;
        self.write(export::MANIFEST, manifest.as_bytes())
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
