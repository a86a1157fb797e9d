//! What a rule can allow.

use std::fmt;

/// One word of a rule's `capabilities`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// Write what does not exist.
    Create,
    /// Remove.
    Delete,
    /// Nothing, whatever else is said.
    Deny,
    /// List the names below.
    List,
    /// Merge into what exists.
    Patch,
    /// Read.
    Read,
    /// Everything. An answer about the root policy; no rule can say it.
    Root,
    /// Reach a root-protected path, beside what the operation needs.
    Sudo,
    /// Write what exists, or what has no existence.
    Update,
}

impl Capability {
    /// All of them, by name.
    pub const ALL: [Self; 9] =
        [Self::Create, Self::Delete, Self::Deny, Self::List, Self::Patch, Self::Read, Self::Root, Self::Sudo, Self::Update];

    /// The word a rule may use; `root` is not one.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == word && *c != Self::Root)
    }

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Deny => "deny",
            Self::List => "list",
            Self::Patch => "patch",
            Self::Read => "read",
            Self::Root => "root",
            Self::Sudo => "sudo",
            Self::Update => "update",
        }
    }

    fn bit(self) -> u16 {
        1 << (self as u16)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Capability {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

/// A set of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u16);

impl Capabilities {
    /// Whether one is in the set.
    #[must_use]
    pub fn contains(self, capability: Capability) -> bool {
        self.0 & capability.bit() != 0
    }

    /// Adds one.
    pub fn insert(&mut self, capability: Capability) {
        self.0 |= capability.bit();
    }

    /// Both sets together.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// By name.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        Capability::ALL.into_iter().filter(move |c| self.contains(*c))
    }
}

impl FromIterator<Capability> for Capabilities {
    fn from_iter<I: IntoIterator<Item = Capability>>(all: I) -> Self {
        let mut set = Self::default();
        all.into_iter().for_each(|c| set.insert(c));
        set
    }
}
