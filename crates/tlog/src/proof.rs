//! `.tlog-proof` files (C2SP tlog-proof): one leaf, its way to the root, and the checkpoint of that root.

use crate::{Checkpoint, Error, Hash, Vkey, leaf_hash, merkle};
use crypto::encode::{base64, from_base64};

const HEADER: &str = "c2sp.org/tlog-proof@v1\n";
/// Most hashes on the way to a root: the height of the tallest tree.
const PATH_MAX: usize = 64;

/// A proof that can be checked without the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InclusionProof {
    /// Index of the leaf.
    pub index: u64,
    /// Hashes from the leaf's sibling upwards.
    pub path: Vec<Hash>,
    /// The signed checkpoint, as published.
    pub checkpoint: String,
    /// Bytes that travel along and are authenticated by nothing.
    pub extra: Option<Vec<u8>>,
}

impl InclusionProof {
    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = HEADER.to_owned();
        if let Some(extra) = &self.extra {
            text.push_str(&format!("extra {}\n", base64(extra)));
        }
        text.push_str(&format!("index {}\n", self.index));
        for hash in &self.path {
            text.push_str(&base64(hash));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.checkpoint);
        text
    }

    /// Parses a file.
    pub fn parse(text: &str) -> Result<InclusionProof, Error> {
        let rest = text.strip_prefix(HEADER).ok_or(Error::ProofFile("header"))?;
        let (head, checkpoint) = rest.split_once("\n\n").ok_or(Error::ProofFile("no checkpoint"))?;
        let mut lines = head.split('\n').peekable();
        let extra = match lines.next_if(|line| line.starts_with("extra ")) {
            Some(line) => Some(line.strip_prefix("extra ").and_then(from_base64).ok_or(Error::ProofFile("extra"))?),
            None => None,
        };
        let index = lines.next().and_then(|line| line.strip_prefix("index ")).ok_or(Error::ProofFile("index"))?;
        let index = index.parse().map_err(|_| Error::ProofFile("index"))?;
        let path = lines
            .map(|line| from_base64(line).and_then(|hash| hash.try_into().ok()).ok_or(Error::ProofFile("hash")))
            .collect::<Result<Vec<Hash>, _>>()?;
        let proof = InclusionProof { index, path, checkpoint: checkpoint.to_owned(), extra };
        if proof.path.len() > PATH_MAX || proof.text() != text {
            return Err(Error::ProofFile("another spelling"));
        }
        Ok(proof)
    }

    /// Checks that `entry` is in the log that one of `known` signs for. Returns the checkpoint that says so.
    pub fn verify(&self, entry: &[u8], known: &[Vkey]) -> Result<Checkpoint, Error> {
        let checkpoint = Checkpoint::open(self.checkpoint.as_bytes(), known)?;
        merkle::verify_inclusion(self.index, checkpoint.size, &leaf_hash(entry), &self.path, &checkpoint.root)?;
        Ok(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Signer, Tree};
    use crypto::sign::SigningKey;

    #[test]
    fn a_proof_file_stands_alone() {
        let key = SigningKey::from_seed(&[9; 32]).unwrap();
        let signer = Signer::new("c/access/n", &key).unwrap();
        let mut tree = Tree::default();
        for n in 0..11_u8 {
            tree.push(leaf_hash(&[n]));
        }
        let checkpoint = Checkpoint { origin: "c/access/n".to_owned(), size: 11, root: tree.root(), extensions: vec![] };
        for extra in [None, Some(b"salt".to_vec())] {
            let proof = InclusionProof {
                index: 6,
                path: tree.prove_inclusion(6, 11).unwrap(),
                checkpoint: checkpoint.sign(&signer).unwrap(),
                extra,
            };
            let read = InclusionProof::parse(&proof.text()).unwrap();
            assert_eq!(read, proof);
            let known = [signer.vkey().clone()];
            assert_eq!(read.verify(&[6], &known), Ok(checkpoint.clone()));
            assert!(read.verify(&[7], &known).is_err());
            assert_eq!(read.verify(&[6], &[]), Err(Error::UnknownKey));
            let moved = InclusionProof { index: 7, ..read };
            assert!(moved.verify(&[6], &known).is_err());
            for bad in [
                proof.text().replace("@v1", "@v2"),
                proof.text().replace("index 6", "index 06"),
                proof.text().replace("index 6\n", ""),
                proof.text().replacen("\n\n", "\n", 1),
            ] {
                assert!(InclusionProof::parse(&bad).is_err(), "{bad}");
            }
        }
    }
}
