//! The errors of this crate.

/// Why bytes are not what they claim to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The JSON has no canonical form here: a fraction, a number beyond 2^53, or nesting beyond the cap.
    #[error("json has no canonical form: {0}")]
    NotCanonical(&'static str),
    /// The bytes are not JSON at all, or not in the shape of a leaf.
    #[error("leaf is malformed: {0}")]
    Leaf(&'static str),
    /// A proof was asked for an index or a size that the tree does not have.
    #[error("index or size `{asked}` is beyond the tree of size `{size}`")]
    Beyond {
        /// What was asked for.
        asked: u64,
        /// What there is.
        size: u64,
    },
    /// A proof does not lead to the root it was checked against.
    #[error("proof does not hold: {0}")]
    Proof(&'static str),
    /// An entry does not fit the 65,535 bytes that a bundle can carry.
    #[error("entry of `{0}` bytes is longer than a bundle can carry")]
    EntryTooLong(usize),
    /// A bundle ends inside an entry.
    #[error("bundle ends inside entry `{0}`")]
    BundleTruncated(u64),
    /// A tile path is not one.
    #[error("tile path is malformed")]
    TilePath,
    /// A note breaks the signed-note format.
    #[error("note is malformed: {0}")]
    Note(&'static str),
    /// A verifier or signer name is not allowed in a note.
    #[error("key name `{0}` is empty or holds a space or a plus")]
    KeyName(String),
    /// A verifier key does not parse.
    #[error("verifier key is malformed: {0}")]
    Vkey(&'static str),
    /// A signature line of a known key does not verify: the text or the line was altered after signing.
    #[error("signature of `{0}` does not verify")]
    BadSignature(String),
    /// None of the signatures is by a known key.
    #[error("no signature by a known key")]
    UnknownKey,
    /// A checkpoint body breaks the format.
    #[error("checkpoint is malformed: {0}")]
    Checkpoint(&'static str),
    /// A `.tlog-proof` breaks the format.
    #[error("proof file is malformed: {0}")]
    ProofFile(&'static str),
}
