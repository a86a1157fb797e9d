//! Tiles: which there are for a size, where they live, what they hold (C2SP tlog-tiles).

use crate::{Error, Hash, Tree, node_hash};

/// Hashes or entries in a full tile.
pub const WIDTH: u64 = 256;
/// Tree levels that one tile spans.
pub const HEIGHT: u32 = 8;

/// One tile or bundle of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tile {
    /// `width` hashes of level `8 * level`, from `256 * index` on.
    Hashes {
        /// Tile level, not tree level.
        level: u8,
        /// Position among the tiles of the level.
        index: u64,
        /// 1 to 256.
        width: u16,
    },
    /// `width` entries from `256 * index` on.
    Entries {
        /// Position among the bundles.
        index: u64,
        /// 1 to 256.
        width: u16,
    },
}

impl Tile {
    /// Every tile and bundle of a tree of `size` leaves: full ones, and the partial one at each right edge.
    pub fn all(size: u64) -> impl Iterator<Item = Tile> {
        Tile::bundles(size).chain((0..8).flat_map(move |level| Tile::level(size, level)))
    }

    /// The entry bundles of a tree of `size` leaves, in order.
    pub fn bundles(size: u64) -> impl Iterator<Item = Tile> {
        row(size).map(|(index, width)| Tile::Entries { index, width })
    }

    /// The hash tiles of one level of a tree of `size` leaves, in order.
    pub fn level(size: u64, level: u8) -> impl Iterator<Item = Tile> {
        let hashes = size.checked_shr(HEIGHT * u32::from(level)).unwrap_or(0);
        row(hashes).map(move |(index, width)| Tile::Hashes { level, index, width })
    }

    /// Path below the log's prefix, for example `tile/0/x001/x234/067.p/112`.
    pub fn path(&self) -> String {
        let (kind, index, width) = match *self {
            Tile::Hashes { level, index, width } => (level.to_string(), index, width),
            Tile::Entries { index, width } => ("entries".to_owned(), index, width),
        };
        let mut groups = vec![format!("{:03}", index % 1000)];
        let mut rest = index / 1000;
        while rest > 0 {
            groups.push(format!("x{:03}", rest % 1000));
            rest /= 1000;
        }
        groups.reverse();
        let name = groups.join("/");
        if u64::from(width) == WIDTH { format!("tile/{kind}/{name}") } else { format!("tile/{kind}/{name}.p/{width}") }
    }

    /// Parses a path; accepts exactly what [`Tile::path`] writes.
    pub fn parse(path: &str) -> Result<Tile, Error> {
        let (kind, rest) = path.strip_prefix("tile/").and_then(|rest| rest.split_once('/')).ok_or(Error::TilePath)?;
        let (name, width) = match rest.split_once(".p/") {
            Some((name, width)) => (name, width.parse().map_err(|_| Error::TilePath)?),
            None => (rest, WIDTH as u16),
        };
        let mut index: u64 = 0;
        for group in name.split('/') {
            let digits: u64 = group.trim_start_matches('x').parse().map_err(|_| Error::TilePath)?;
            index = index.checked_mul(1000).and_then(|n| n.checked_add(digits)).ok_or(Error::TilePath)?;
        }
        let tile = match kind {
            "entries" => Tile::Entries { index, width },
            level => Tile::Hashes { level: level.parse().map_err(|_| Error::TilePath)?, index, width },
        };
        // writing it again refuses every other spelling: leading zeros, missing `x`, width 0 or 256
        let sane = (1..=WIDTH as u16).contains(&width) && tile.path() == path;
        if sane { Ok(tile) } else { Err(Error::TilePath) }
    }

    /// First leaf that this tile covers.
    pub fn first_leaf(&self) -> u64 {
        match *self {
            Tile::Hashes { level, index, .. } => index.saturating_mul(WIDTH).saturating_mul(WIDTH.saturating_pow(u32::from(level))),
            Tile::Entries { index, .. } => index.saturating_mul(WIDTH),
        }
    }
}

/// Index and width of each tile over a row of `hashes`.
fn row(hashes: u64) -> impl Iterator<Item = (u64, u16)> {
    (0..hashes.div_ceil(WIDTH)).map(move |index| (index, (hashes - index * WIDTH).min(WIDTH) as u16))
}

impl Tree {
    /// Bytes of a hash tile. It may be asked in any width that the tree can fill.
    pub fn tile(&self, level: u8, index: u64, width: u16) -> Result<Vec<u8>, Error> {
        if width == 0 || u64::from(width) > WIDTH {
            return Err(Error::TilePath);
        }
        let start = index.checked_mul(WIDTH).ok_or(Error::TilePath)?;
        let mut bytes = Vec::with_capacity(usize::from(width) * 32);
        for offset in 0..u64::from(width) {
            bytes.extend_from_slice(&self.node(u32::from(level) * HEIGHT, start + offset)?);
        }
        Ok(bytes)
    }
}

/// The hashes of a hash tile; none when its length is not a multiple of 32.
pub fn hashes(bytes: &[u8]) -> Option<&[Hash]> {
    let (hashes, rest) = bytes.as_chunks::<32>();
    rest.is_empty().then_some(hashes)
}

/// The node above a full tile.
pub fn root_of_full(hashes: &[Hash]) -> Option<Hash> {
    if hashes.len() as u64 != WIDTH {
        return None;
    }
    let mut row = hashes.to_vec();
    while row.len() > 1 {
        let (pairs, _) = row.as_chunks::<2>();
        row = pairs.iter().map(|[left, right]| node_hash(left, right)).collect();
    }
    row.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leaf_hash;

    fn tree(size: u64) -> Tree {
        let mut tree = Tree::default();
        for n in 0..size {
            tree.push(leaf_hash(&n.to_be_bytes()));
        }
        tree
    }

    #[test]
    fn paths_are_written_and_read() {
        let rows = [
            (Tile::Hashes { level: 0, index: 1_234_067, width: 256 }, "tile/0/x001/x234/067"),
            (Tile::Hashes { level: 2, index: 0, width: 1 }, "tile/2/000.p/1"),
            (Tile::Entries { index: 999, width: 256 }, "tile/entries/999"),
            (Tile::Entries { index: 1000, width: 255 }, "tile/entries/x001/000.p/255"),
        ];
        for (tile, path) in rows {
            assert_eq!(tile.path(), path);
            assert_eq!(Tile::parse(path).unwrap(), tile);
        }
        for bad in [
            "tile/0",
            "tile/0/",
            "tile/0/0",
            "tile/0/0000",
            "tile/00/000",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/",
            "tile/0/000.p/01",
            "tile/0/x000/001",
            "tile/0/001/000",
            "tile/0/x1/000",
            "tile/-1/000",
            "tile/entries/../../etc/passwd",
            "tile/0/+01",
            "tile/256/000",
            "/tile/0/000",
            "tile/0/000/",
            "tile/0/xx01/000",
            "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
        ] {
            assert_eq!(Tile::parse(bad), Err(Error::TilePath), "{bad}");
        }
    }

    #[test]
    fn a_tree_of_70_000_has_the_tiles_of_the_specification() {
        let all: Vec<Tile> = Tile::all(70_000).collect();
        let count = |wanted: u8| all.iter().filter(|t| matches!(t, Tile::Hashes { level, .. } if *level == wanted)).count();
        assert_eq!((count(0), count(1), count(2), count(3)), (274, 2, 1, 0));
        for last in [
            Tile::Hashes { level: 0, index: 273, width: 112 },
            Tile::Hashes { level: 1, index: 1, width: 17 },
            Tile::Hashes { level: 2, index: 0, width: 1 },
            Tile::Entries { index: 273, width: 112 },
        ] {
            assert!(all.contains(&last), "{last:?}");
        }
        assert_eq!(Tile::all(0).count(), 0);
        // the number is not walked before it is asked for
        assert_eq!(Tile::all(u64::MAX).nth(7).unwrap().first_leaf(), 7 * 256);
        // no empty partial tile after a full one
        assert_eq!(Tile::all(256).filter(|t| matches!(t, Tile::Hashes { level: 0, .. })).count(), 1);
    }

    #[test]
    fn a_full_tile_leads_to_the_tile_above() {
        let tree = tree(700);
        let above = tree.tile(1, 0, 2).unwrap();
        for index in 0..2 {
            let bytes = tree.tile(0, index, 256).unwrap();
            assert_eq!(bytes.len(), 8192);
            let root = root_of_full(hashes(&bytes).unwrap()).unwrap();
            assert_eq!(root, hashes(&above).unwrap()[index as usize]);
        }
        assert!(tree.tile(0, 2, 188).is_ok());
        assert!(tree.tile(0, 2, 189).is_err());
        assert!(tree.tile(1, 0, 3).is_err());
        assert!(tree.tile(0, 0, 0).is_err());
        assert!(tree.tile(0, u64::MAX, 1).is_err());
        assert!(hashes(&[0; 33]).is_none());
    }
}
