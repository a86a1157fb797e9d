//! Merkle trees as in RFC 6962 §2.1 and RFC 9162 §2.1, over SHA-256.

use crate::Error;
use crypto::hash::sha256;

/// A leaf, node or root hash.
pub type Hash = [u8; 32];

/// The hash of a leaf: the prefix keeps a leaf from ever being read as a node.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    let mut input = Vec::with_capacity(entry.len() + 1);
    input.push(0);
    input.extend_from_slice(entry);
    sha256(&input)
}

/// The hash of an inner node.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut input = Vec::with_capacity(65);
    input.push(1);
    input.extend_from_slice(left);
    input.extend_from_slice(right);
    sha256(&input)
}

/// The root of a tree without leaves.
pub fn empty_root() -> Hash {
    sha256(b"")
}

/// The right edge of a tree: enough to append and to know the root, in O(log n) memory.
#[derive(Debug, Clone, Default)]
pub struct Frontier {
    size: u64,
    /// Roots of the complete subtrees, largest first: one for each set bit of `size`.
    peaks: Vec<Hash>,
}

impl Frontier {
    /// Appends a leaf hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.peaks.push(node);
        self.size += 1;
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Root over all leaves.
    pub fn root(&self) -> Hash {
        fold_peaks(self.peaks.iter().copied())
    }
}

/// An append-only tree that keeps every complete node, so that it can prove and serve tiles.
///
/// Growth: two hashes a leaf, 64 bytes; ten million leaves take 640 MB.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// `levels[l][i]` covers the leaves from `i * 2^l` up to `(i + 1) * 2^l`.
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// Appends a leaf hash and returns its index.
    pub fn push(&mut self, leaf: Hash) -> u64 {
        let index = self.size();
        let mut node = leaf;
        for level in 0.. {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            let Some(row) = self.levels.get_mut(level) else { break };
            row.push(node);
            match row.as_slice() {
                [.., left, right] if row.len() % 2 == 0 => node = node_hash(left, right),
                _ => break,
            }
        }
        index
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, |row| row.len() as u64)
    }

    /// Root over all leaves.
    pub fn root(&self) -> Hash {
        self.root_at(self.size()).unwrap_or_else(|_| empty_root())
    }

    /// Root over the first `size` leaves.
    pub fn root_at(&self, size: u64) -> Result<Hash, Error> {
        if size == 0 { Ok(empty_root()) } else { self.range(0, size) }
    }

    /// Hash of leaf `index`.
    pub fn leaf(&self, index: u64) -> Result<Hash, Error> {
        self.node(0, index)
    }

    /// The complete node at `level` (0 for leaves) and `index`.
    pub fn node(&self, level: u32, index: u64) -> Result<Hash, Error> {
        let row = self.levels.get(level as usize);
        let found = row.zip(usize::try_from(index).ok()).and_then(|(row, i)| row.get(i));
        found.copied().ok_or(Error::Beyond { asked: index, size: row.map_or(0, |row| row.len() as u64) })
    }

    /// Proof that leaf `index` is in the tree of the first `size` leaves (RFC 9162 §2.1.3.1).
    pub fn prove_inclusion(&self, index: u64, size: u64) -> Result<Vec<Hash>, Error> {
        if index >= size || size > self.size() {
            return Err(Error::Beyond { asked: index.max(size), size: self.size() });
        }
        let (mut low, mut high) = (0, size);
        let mut path = Vec::new();
        while high - low > 1 {
            let middle = low + split(high - low);
            if index < middle {
                path.push(self.range(middle, high)?);
                high = middle;
            } else {
                path.push(self.range(low, middle)?);
                low = middle;
            }
        }
        path.reverse();
        Ok(path)
    }

    /// Proof that the first `old` leaves are a prefix of the first `new` (RFC 9162 §2.1.4.1).
    pub fn prove_consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, Error> {
        if old > new || new > self.size() {
            return Err(Error::Beyond { asked: old.max(new), size: self.size() });
        }
        if old == 0 || old == new {
            return Ok(Vec::new());
        }
        let (mut low, mut high) = (0, new);
        let mut path = Vec::new();
        // walk towards the node whose right edge is `old`; siblings on the way are the proof
        while high != old {
            let middle = low + split(high - low);
            if old <= middle {
                path.push(self.range(middle, high)?);
                high = middle;
            } else {
                path.push(self.range(low, middle)?);
                low = middle;
            }
        }
        // a node that starts at 0 is the old root itself, which the verifier holds already
        if low != 0 {
            path.push(self.range(low, high)?);
        }
        path.reverse();
        Ok(path)
    }

    /// Hash of the leaves `low..high`, where `low` is a multiple of the next power of two of the length.
    fn range(&self, low: u64, high: u64) -> Result<Hash, Error> {
        if high > self.size() || low >= high {
            return Err(Error::Beyond { asked: high, size: self.size() });
        }
        let mut peaks = Vec::new();
        let mut at = low;
        while at < high {
            let level = (high - at).ilog2();
            peaks.push(self.node(level, at >> level)?);
            at += 1 << level;
        }
        Ok(fold_peaks(peaks.into_iter()))
    }
}

/// Checks an inclusion proof (RFC 9162 §2.1.3.2).
pub fn verify_inclusion(index: u64, size: u64, leaf: &Hash, proof: &[Hash], root: &Hash) -> Result<(), Error> {
    if index >= size {
        return Err(Error::Beyond { asked: index, size });
    }
    let (mut f, mut s) = (index, size - 1);
    let mut node = *leaf;
    for step in proof {
        if s == 0 {
            return Err(Error::Proof("too long"));
        }
        if f & 1 == 1 || f == s {
            node = node_hash(step, &node);
            while f & 1 == 0 && f != 0 {
                f >>= 1;
                s >>= 1;
            }
        } else {
            node = node_hash(&node, step);
        }
        f >>= 1;
        s >>= 1;
    }
    match (s, node == *root) {
        (0, true) => Ok(()),
        (0, false) => Err(Error::Proof("another root")),
        _ => Err(Error::Proof("too short")),
    }
}

/// Checks a consistency proof (RFC 9162 §2.1.4.2). From an empty tree nothing can be proven about a longer one, so that is
/// refused.
pub fn verify_consistency(old: u64, new: u64, proof: &[Hash], old_root: &Hash, new_root: &Hash) -> Result<(), Error> {
    if old > new {
        return Err(Error::Beyond { asked: old, size: new });
    }
    if old == new {
        let same = proof.is_empty() && old_root == new_root && (old > 0 || *old_root == empty_root());
        return if same { Ok(()) } else { Err(Error::Proof("another root")) };
    }
    if old == 0 {
        return Err(Error::Proof("an empty tree proves nothing"));
    }
    let mut steps = proof.iter();
    let first = if old.is_power_of_two() { Some(old_root) } else { steps.next() };
    let first = *first.ok_or(Error::Proof("too short"))?;
    let shift = (old - 1).trailing_ones();
    let (mut f, mut s) = ((old - 1) >> shift, (new - 1) >> shift);
    let (mut from_old, mut from_new) = (first, first);
    for step in steps {
        if s == 0 {
            return Err(Error::Proof("too long"));
        }
        if f & 1 == 1 || f == s {
            from_old = node_hash(step, &from_old);
            from_new = node_hash(step, &from_new);
            while f & 1 == 0 && f != 0 {
                f >>= 1;
                s >>= 1;
            }
        } else {
            from_new = node_hash(&from_new, step);
        }
        f >>= 1;
        s >>= 1;
    }
    if s != 0 {
        return Err(Error::Proof("too short"));
    }
    if from_old == *old_root && from_new == *new_root { Ok(()) } else { Err(Error::Proof("another root")) }
}

/// Largest power of two smaller than `n`, for `n` above 1.
fn split(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// Joins complete subtrees, largest first, into one root.
fn fold_peaks(peaks: impl DoubleEndedIterator<Item = Hash>) -> Hash {
    peaks.rev().reduce(|right, left| node_hash(&left, &right)).unwrap_or_else(empty_root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crypto::encode::{from_hex, hex};
    use proptest::prelude::*;

    /// The definition of RFC 6962 §2.1, word for word: slow and obvious.
    fn naive_root(leaves: &[Vec<u8>]) -> Hash {
        match leaves {
            [] => sha256(b""),
            [one] => leaf_hash(one),
            many => {
                let k = split(many.len() as u64) as usize;
                node_hash(&naive_root(&many[..k]), &naive_root(&many[k..]))
            }
        }
    }

    fn leaves(n: usize) -> Vec<Vec<u8>> {
        (0..n).map(|i| format!("leaf {i}").into_bytes()).collect()
    }

    fn tree(leaves: &[Vec<u8>]) -> Tree {
        let mut tree = Tree::default();
        for leaf in leaves {
            tree.push(leaf_hash(leaf));
        }
        tree
    }

    #[test]
    fn the_eight_leaf_tree_of_certificate_transparency() {
        let inputs = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut tree = Tree::default();
        let mut frontier = Frontier::default();
        assert_eq!(hex(&tree.root()), roots[0]);
        for (input, root) in inputs.iter().zip(&roots[1..]) {
            let leaf = leaf_hash(&from_hex(input).unwrap());
            tree.push(leaf);
            frontier.push(leaf);
            assert_eq!(hex(&tree.root()), *root);
            assert_eq!(frontier.root(), tree.root());
        }
        for (size, root) in roots.iter().enumerate() {
            assert_eq!(hex(&tree.root_at(size as u64).unwrap()), *root);
        }
    }

    #[test]
    fn every_proof_of_every_small_tree_holds_and_no_other_root_does() {
        let all = leaves(40);
        let tree = tree(&all);
        let wrong = [7; 32];
        for size in 1..=40_u64 {
            let root = naive_root(&all[..size as usize]);
            assert_eq!(tree.root_at(size).unwrap(), root);
            for index in 0..size {
                let proof = tree.prove_inclusion(index, size).unwrap();
                let leaf = leaf_hash(&all[index as usize]);
                verify_inclusion(index, size, &leaf, &proof, &root).unwrap();
                assert!(verify_inclusion(index, size, &wrong, &proof, &root).is_err());
                assert!(verify_inclusion(index, size, &leaf, &proof, &wrong).is_err());
                // an index of the same depth on the other side must not verify
                for other in (0..size).filter(|other| *other != index) {
                    assert!(verify_inclusion(other, size, &leaf, &proof, &root).is_err(), "{index} as {other} of {size}");
                }
            }
            assert!(verify_consistency(0, size, &[], &empty_root(), &root).is_err());
            for old in 1..=size {
                let proof = tree.prove_consistency(old, size).unwrap();
                let old_root = tree.root_at(old).unwrap();
                verify_consistency(old, size, &proof, &old_root, &root).unwrap();
                assert!(verify_consistency(old, size, &proof, &wrong, &root).is_err());
                assert!(verify_consistency(old, size, &proof, &old_root, &wrong).is_err());
                let mut longer = proof.clone();
                longer.push(wrong);
                assert!(verify_consistency(old, size, &longer, &old_root, &root).is_err());
            }
        }
    }

    #[test]
    fn asking_beyond_the_tree_is_refused() {
        let tree = tree(&leaves(5));
        assert!(tree.prove_inclusion(5, 5).is_err());
        assert!(tree.prove_inclusion(0, 6).is_err());
        assert!(tree.prove_consistency(3, 6).is_err());
        assert!(tree.prove_consistency(4, 3).is_err());
        assert!(tree.root_at(6).is_err());
        assert!(tree.leaf(5).is_err());
        assert!(verify_inclusion(5, 5, &[0; 32], &[], &[0; 32]).is_err());
        assert!(verify_consistency(2, 1, &[], &[0; 32], &[0; 32]).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_proof_never_verifies(size in 2_u64..300, pick in any::<u64>(), step in any::<usize>(), bit in 0_usize..256) {
            let all = leaves(size as usize);
            let tree = tree(&all);
            let index = pick % size;
            let mut proof = tree.prove_inclusion(index, size).unwrap();
            let leaf = leaf_hash(&all[index as usize]);
            verify_inclusion(index, size, &leaf, &proof, &tree.root()).unwrap();
            let step = step % proof.len();
            proof[step][bit / 8] ^= 1 << (bit % 8);
            prop_assert!(verify_inclusion(index, size, &leaf, &proof, &tree.root()).is_err());
            proof.pop();
            prop_assert!(verify_inclusion(index, size, &leaf, &proof, &tree.root()).is_err());
        }

        #[test]
        fn frontier_and_tree_agree(size in 0_usize..600) {
            let all = leaves(size);
            let mut frontier = Frontier::default();
            for leaf in &all {
                frontier.push(leaf_hash(leaf));
            }
            prop_assert_eq!(frontier.root(), tree(&all).root());
            prop_assert_eq!(frontier.size(), size as u64);
        }
    }
}
