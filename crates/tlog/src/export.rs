//! The shape of a proof directory: which files there are, and where.
//!
//! ```text
//! DIR/manifest.json          what this is, for people and tools; not signed, nothing relies on it
//! DIR/vkeys                  verifier keys, one a line
//! DIR/change/checkpoint      signed head of the change tree
//! DIR/change/tile/…          its tiles and entry bundles, C2SP tlog-tiles
//! DIR/access/…               the same for the access tree
//! ```

use crate::{Checkpoint, Error, Tile, Vkey};
use serde_json::json;

/// Verifier keys, one a line.
pub const VKEYS: &str = "vkeys";
/// The description for people and tools.
pub const MANIFEST: &str = "manifest.json";

/// One of the two trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TreeName {
    /// Every commit.
    Change,
    /// Every answer that changed nothing, of one node.
    Access,
}

impl TreeName {
    /// Both, in the order in which an export must fetch their checkpoints: access leaves speak about the change tree, so
    /// the change tree must be fetched after them to hold all they speak about.
    pub const FETCH_ORDER: [TreeName; 2] = [TreeName::Access, TreeName::Change];

    /// The folder and the name in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            TreeName::Change => "change",
            TreeName::Access => "access",
        }
    }

    /// Reads the name.
    pub fn parse(name: &str) -> Option<TreeName> {
        [TreeName::Change, TreeName::Access].into_iter().find(|tree| tree.as_str() == name)
    }
}

impl std::fmt::Display for TreeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One file of a tree, relative to the tree's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The signed checkpoint.
    Checkpoint,
    /// A tile or bundle.
    Tile(Tile),
}

impl Layout {
    /// Path below the export directory (and, in the API, below the log's prefix), with forward slashes.
    pub fn path(&self, tree: TreeName) -> String {
        match self {
            Layout::Checkpoint => format!("{tree}/checkpoint"),
            Layout::Tile(tile) => format!("{tree}/{}", tile.path()),
        }
    }

    /// Reads a path below the tree's folder: `checkpoint`, or that of a tile or bundle.
    pub fn parse(path: &str) -> Result<Layout, Error> {
        if path == "checkpoint" { Ok(Layout::Checkpoint) } else { Tile::parse(path).map(Layout::Tile) }
    }

    /// Every tile and bundle that belongs to a signed checkpoint. Trusts nothing about it but its size.
    pub fn of_checkpoint(checkpoint: &[u8]) -> Result<impl Iterator<Item = Layout> + use<>, Error> {
        let size = Checkpoint::dangerous_unverified(checkpoint)?.size;
        Ok(Tile::all(size).map(Layout::Tile))
    }
}

/// Text of the `vkeys` file.
pub fn vkeys(keys: &[Vkey]) -> String {
    keys.iter().map(|key| format!("{key}\n")).collect()
}

/// Reads a `vkeys` file; empty lines and lines that begin with `#` are passed over.
pub fn parse_vkeys(text: &str) -> Result<Vec<Vkey>, Error> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(Vkey::parse).collect()
}

/// Text of the manifest, from the signed checkpoints of both trees.
pub fn manifest(change: &[u8], access: &[u8]) -> Result<String, Error> {
    let part = |bytes: &[u8]| -> Result<_, Error> {
        let checkpoint = Checkpoint::dangerous_unverified(bytes)?;
        Ok(json!({"origin": checkpoint.origin, "root": crypto::encode::hex(&checkpoint.root), "size": checkpoint.size}))
    };
    let manifest = json!({
        "format": "keyward-audit-export", "version": 1,
        "hash": "sha-256, rfc 6962", "leaf": "json, rfc 8785", "tiles": "c2sp.org/tlog-tiles",
        "trees": {"change": part(change)?, "access": part(access)?},
    });
    Ok(format!("{manifest:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Signer;
    use crypto::sign::SigningKey;

    #[test]
    fn a_checkpoint_names_every_file_of_its_tree() {
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        let signer = Signer::new("c/change", &key).unwrap();
        let checkpoint = Checkpoint { origin: "c/change".to_owned(), size: 300, root: [0; 32], extensions: vec![] };
        let signed = checkpoint.sign(&signer).unwrap();
        let paths: Vec<_> = Layout::of_checkpoint(signed.as_bytes()).unwrap().map(|file| file.path(TreeName::Change)).collect();
        assert_eq!(
            paths,
            [
                "change/tile/entries/000",
                "change/tile/entries/001.p/44",
                "change/tile/0/000",
                "change/tile/0/001.p/44",
                "change/tile/1/000.p/1",
            ]
        );
        assert_eq!(Layout::Checkpoint.path(TreeName::Access), "access/checkpoint");
        assert_eq!(Layout::parse("checkpoint"), Ok(Layout::Checkpoint));
        assert_eq!(Layout::parse("tile/0/000.p/3"), Ok(Layout::Tile(Tile::Hashes { level: 0, index: 0, width: 3 })));
        assert!(Layout::parse("../checkpoint").is_err());
        let manifest: serde_json::Value = serde_json::from_str(&manifest(signed.as_bytes(), signed.as_bytes()).unwrap()).unwrap();
        assert_eq!(manifest["trees"]["change"]["size"], 300);
        let keys = [signer.vkey().clone()];
        assert_eq!(parse_vkeys(&format!("# a comment\n\n{}", vkeys(&keys))).unwrap(), keys);
        assert!(parse_vkeys("nonsense").is_err());
    }
}
