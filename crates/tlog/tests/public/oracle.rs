//! An independent implementation of trees, tiles and checkpoints beside ours, on random input.

use proptest::prelude::*;
use tlog::{Tile, Tree, leaf_hash, merkle};
use tlog_tiles as theirs;

/// Hashes as the other implementation stores them.
struct Stored(Vec<theirs::Hash>);

impl theirs::HashReader for Stored {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<theirs::Hash>, theirs::Error> {
        Ok(indexes.iter().map(|index| self.0[usize::try_from(*index).unwrap()]).collect())
    }
}

fn both(size: u64) -> (Tree, Stored) {
    let (mut ours, mut stored) = (Tree::default(), Stored(Vec::new()));
    for n in 0..size {
        let entry = n.to_be_bytes();
        ours.push(leaf_hash(&entry));
        let more = theirs::stored_hashes(n, &entry, &stored).unwrap();
        stored.0.extend(more);
    }
    (ours, stored)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn roots_and_proofs_agree(size in 1_u64..700, a in any::<u64>(), b in any::<u64>()) {
        let (ours, stored) = both(size);
        let root = theirs::tree_hash(size, &stored).unwrap();
        prop_assert_eq!(ours.root(), root.0);

        let index = a % size;
        let proof = ours.prove_inclusion(index, size).unwrap();
        let other: Vec<_> = theirs::prove_record(size, index, &stored).unwrap().iter().map(|hash| hash.0).collect();
        prop_assert_eq!(&proof, &other);
        merkle::verify_inclusion(index, size, &ours.leaf(index).unwrap(), &other, &root.0).unwrap();

        let old = 1 + b % size;
        let proof = ours.prove_consistency(old, size).unwrap();
        let other: Vec<_> = theirs::prove_tree(size, old, &stored).unwrap().iter().map(|hash| hash.0).collect();
        prop_assert_eq!(&proof, &other);
        let old_root = theirs::tree_hash(old, &stored).unwrap();
        merkle::verify_consistency(old, size, &proof, &old_root.0, &root.0).unwrap();
    }

    #[test]
    fn tiles_and_their_paths_agree(size in 1_u64..1200) {
        let (ours, stored) = both(size);
        for file in Tile::all(size) {
            let (level, index, width, entries) = match file {
                Tile::Hashes { level, index, width } => (level, index, width, false),
                Tile::Entries { index, width } => (0, index, width, true),
            };
            let tile = theirs::Tile::new(8, level, index, u32::from(width), entries);
            // the other implementation names the tile height in its paths, and data tiles `data`
            let path = tile.path().replacen("tile/8/", "tile/", 1).replacen("/data/", "/entries/", 1);
            prop_assert_eq!(&path, &file.path());
            prop_assert_eq!(Tile::parse(&path).unwrap(), file);
            if !entries {
                prop_assert_eq!(ours.tile(level, index, width).unwrap(), tile.read_data(&stored).unwrap());
            }
        }
    }
}
