//! What can go wrong with the trail.

use tlog::export::TreeName;

/// The access journal failed, so nothing may be answered any more: send [`crate::Released::unavailable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit journal failed; nothing is answered until the process is started anew")]
pub struct Poisoned;

/// Why the trail could not be opened or could not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The keys are behind the seal.
    #[error("the audit keys are sealed")]
    Sealed,
    /// The access journal cannot be read or written.
    #[error("could not use the access journal")]
    Journal(#[source] journal::Error),
    /// The access journal has failed.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
    /// The leaves of the commit log cannot be read.
    #[error("could not read the leaves of the commit log")]
    Leaves(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The change tree was fed a leaf that does not follow, and the commit log did not have the ones between.
    #[error("the change tree lacks the leaves before sequence `{0}`")]
    Gap(u64),
    /// The access journal holds something that is not an access leaf.
    #[error("record `{index}` of the access journal is not an access leaf")]
    NotALeaf {
        /// Its position.
        index: u64,
        /// Why.
        #[source]
        source: tlog::Error,
    },
    /// What is read back is not what was integrated.
    #[error("entries of the {tree} tree from `{from}` on are not what was recorded")]
    Damaged {
        /// Which tree.
        tree: TreeName,
        /// The first of the entries that were read.
        from: u64,
    },
    /// The committer could not be started.
    #[error("could not start the audit committer")]
    Thread(#[source] std::io::Error),
    /// There is no such entry or tile.
    #[error("the {tree} tree has no such entry or tile")]
    NotFound {
        /// Which tree.
        tree: TreeName,
    },
    /// A format refused: a cluster or node name that cannot be an origin, for example.
    #[error("could not encode for the log")]
    Format(#[from] tlog::Error),
    /// The random source failed.
    #[error("could not draw a boot id")]
    Random(#[from] base::RngFault),
    /// A proof directory could not be written.
    #[error("could not write `{}`", path.display())]
    Write {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
