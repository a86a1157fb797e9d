//! Checkpoints (C2SP tlog-checkpoint): how long a log is and what its root is, said by its owner.

use crate::note::{Note, Signer, Vkey};
use crate::{Error, Hash};
use crypto::encode::{base64, from_base64};

/// The text of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log; also the name of its key.
    pub origin: String,
    /// Number of leaves.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
    /// Further lines, signed like the rest.
    pub extensions: Vec<String>,
}

impl Checkpoint {
    /// The text that is signed.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.origin, self.size, base64(&self.root));
        for line in &self.extensions {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// Parses what [`Checkpoint::text`] writes, and nothing else.
    pub fn parse_text(text: &str) -> Result<Checkpoint, Error> {
        let mut lines = text.split_terminator('\n').map(str::to_owned);
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(Error::Checkpoint("fewer than three lines"));
        };
        let size = size.parse().map_err(|_| Error::Checkpoint("size"))?;
        let root = from_base64(&root).and_then(|root| root.try_into().ok()).ok_or(Error::Checkpoint("root"))?;
        let extensions: Vec<String> = lines.collect();
        if origin.is_empty() || extensions.iter().any(String::is_empty) {
            return Err(Error::Checkpoint("empty line"));
        }
        let checkpoint = Checkpoint { origin, size, root, extensions };
        // writing it again refuses every other spelling: `+5`, `007`, a missing final newline
        if checkpoint.text() == text { Ok(checkpoint) } else { Err(Error::Checkpoint("another spelling")) }
    }

    /// Signs the checkpoint. The signer's name must be the origin.
    pub fn sign(&self, signer: &Signer<'_>) -> Result<String, Error> {
        if signer.vkey().name() != self.origin {
            return Err(Error::Checkpoint("signer is not the origin"));
        }
        Checkpoint::parse_text(&self.text())?;
        signer.sign(&self.text())
    }

    /// Opens a signed checkpoint: it must be signed by one of `known` whose name is the origin.
    pub fn open(bytes: &[u8], known: &[Vkey]) -> Result<Checkpoint, Error> {
        let note = Note::parse(bytes)?;
        let checkpoint = Checkpoint::parse_text(note.text())?;
        let by = note.verify(known)?;
        if by.iter().any(|vkey| vkey.name() == checkpoint.origin) { Ok(checkpoint) } else { Err(Error::UnknownKey) }
    }

    /// Reads a checkpoint without asking who signed it.
    pub fn dangerous_unverified(bytes: &[u8]) -> Result<Checkpoint, Error> {
        Checkpoint::parse_text(Note::parse(bytes)?.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::Algorithm;
    use crypto::sign::SigningKey;

    fn sample() -> Checkpoint {
        Checkpoint { origin: "c/change".to_owned(), size: 42, root: [3; 32], extensions: vec!["boot b1".to_owned()] }
    }

    #[test]
    fn an_independent_implementation_reads_the_same() {
        let ours = sample();
        let theirs = tlog_tiles::Checkpoint::from_bytes(ours.text().as_bytes()).unwrap();
        assert_eq!((theirs.origin(), theirs.size(), theirs.hash().0), ("c/change", 42, [3; 32]));
        assert_eq!(theirs.extension(), "boot b1\n");
        assert_eq!(theirs.to_bytes(), ours.text().as_bytes());
    }

    #[test]
    fn a_signed_checkpoint_opens_only_for_the_key_of_its_origin() {
        let (one, two) = (SigningKey::from_seed(&[1; 32]).unwrap(), SigningKey::from_seed(&[2; 32]).unwrap());
        let signed = sample().sign(&Signer::new("c/change", &one).unwrap()).unwrap();
        let known = |name, key: &SigningKey| [Vkey::new(name, Algorithm::Ed25519, key.public()).unwrap()];
        assert_eq!(Checkpoint::open(signed.as_bytes(), &known("c/change", &one)), Ok(sample()));
        assert_eq!(Checkpoint::open(signed.as_bytes(), &known("c/change", &two)), Err(Error::UnknownKey));
        assert_eq!(Checkpoint::open(signed.as_bytes(), &[]), Err(Error::UnknownKey));
        assert!(sample().sign(&Signer::new("c/access", &one).unwrap()).is_err());
        // the right key, but for another log: the key of one tree must not vouch for the other
        let other = Signer::new("c/access", &one).unwrap().sign(&sample().text()).unwrap();
        assert_eq!(Checkpoint::open(other.as_bytes(), &known("c/access", &one)), Err(Error::UnknownKey));
    }

    #[test]
    fn one_spelling_only() {
        let root = base64(&[3; 32]);
        assert!(Checkpoint::parse_text(&format!("o\n0\n{root}\n")).is_ok());
        for bad in [
            String::new(),
            format!("o\n1\n{root}"),
            format!("o\n01\n{root}\n"),
            format!("o\n+1\n{root}\n"),
            format!("o\n-1\n{root}\n"),
            format!("o\n18446744073709551616\n{root}\n"),
            format!("\n1\n{root}\n"),
            format!("o\n1\n{}\n", base64(&[3; 31])),
            format!("o\n1\n{root}\n\n"),
            format!("o\n1\n{root}\n\nx\n"),
            "o\n1\n".to_owned(),
        ] {
            assert!(Checkpoint::parse_text(&bad).is_err(), "{bad:?}");
        }
        let mut split = sample();
        split.extensions = vec!["a\n\nb".to_owned()];
        assert!(split.sign(&Signer::new("c/change", &SigningKey::from_seed(&[1; 32]).unwrap()).unwrap()).is_err());
    }
}
