//! Names of policies.

use std::fmt;

/// Characters of a name at most.
const NAME_MAX: usize = 128;
/// Policies of the house: nobody writes them and nobody attaches them.
const RESERVED: [&str; 3] = ["root", "response-wrapping", "control-group"];

/// The name of a policy: lower-case ASCII letters, digits, `_`, `-` and `.`, the first and last of them a letter, a digit or `_`.
///
/// There is no `Deserialize`: a name from a client goes through [`PolicyName::parse`], which refuses reserved names; a
/// name from our own store goes through [`PolicyName::stored`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct PolicyName(Box<str>);

impl PolicyName {
    /// Reads a name that somebody wants to write or attach. Upper-case letters are folded. Nothing else is repaired.
    ///
    /// # Errors
    /// [`NameError`]; a name that is, or looks like, one of the reserved ones is refused.
    pub fn parse(raw: &str) -> Result<Self, NameError> {
        let name = Self::stored(&raw.to_ascii_lowercase())?;
        let skeleton = skeleton(&name.0);
        if RESERVED.iter().any(|reserved| skeleton == self::skeleton(reserved)) {
            return Err(NameError::Reserved);
        }
        Ok(name)
    }

    /// Reads a name that this server has stored. Reserved names are accepted: never use it for input.
    ///
    /// # Errors
    /// [`NameError::Grammar`].
    pub fn stored(text: &str) -> Result<Self, NameError> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-' | '.');
        let outer = |c: char| inner(c) && !matches!(c, '-' | '.');
        if text.len() <= NAME_MAX && text.chars().all(inner) && text.starts_with(outer) && text.ends_with(outer) {
            Ok(Self(text.into()))
        } else {
            Err(NameError::Grammar)
        }
    }

    /// The policy that allows everything.
    #[must_use]
    pub fn root() -> Self {
        Self("root".into())
    }

    /// The policy that every token has unless it was asked not to.
    #[must_use]
    pub fn default_policy() -> Self {
        Self("default".into())
    }

    /// Whether it is the policy that allows everything.
    #[must_use]
    pub fn is_root(&self) -> bool {
        &*self.0 == "root"
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a name looks like to a hasty reader.
fn skeleton(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_ascii_alphanumeric())
        .map(|c| match c {
            '0' => 'o',
            '1' | 'i' => 'l',
            '5' => 's',
            c => c.to_ascii_lowercase(),
        })
        .collect()
}

/// Why a name was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not of the grammar.
    #[error("policy name must be 1 to 128 of `a-z 0-9 _ - .`, not starting or ending with `-` or `.`")]
    Grammar,
    /// A policy of the house.
    #[error("policy name is reserved")]
    Reserved,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_and_folded() {
        for (raw, name) in [("app", "app"), ("App-Read.v2", "app-read.v2"), ("_", "_"), ("default", "default"), ("rooter", "rooter")] {
            assert_eq!(PolicyName::parse(raw).unwrap().as_str(), name);
        }
    }

    #[test]
    fn refused() {
        let long = "a".repeat(129);
        for raw in ["", " app", "app ", "a b", "-a", "a-", ".a", "a/b", "a%b", "é", "ａ", "a\0", "roоt", "a\u{200b}", long.as_str()] {
            assert_eq!(PolicyName::parse(raw), Err(NameError::Grammar), "{raw:?}");
        }
        for raw in ["root", "ROOT", "Root", "r00t", "ro-ot", "r.o.o.t", "roo_t", "response-wrapping", "Response_Wrapping", "control-group"]
        {
            assert_eq!(PolicyName::parse(raw), Err(NameError::Reserved), "{raw:?}");
        }
    }

    #[test]
    fn the_store_knows_root() {
        assert!(PolicyName::stored("root").unwrap().is_root());
        assert_eq!(PolicyName::stored("Root"), Err(NameError::Grammar));
    }
}
