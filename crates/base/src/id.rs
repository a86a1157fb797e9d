//! Identifiers that cannot be swapped for one another, and the spelling of random ones.

use serde::{Deserialize, Serialize};

use crate::rng::{Rng, RngFault};

/// A namespace. Only [`NamespaceId::ROOT`] exists so far, but it is in keys, associated data, tokens and records from the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NamespaceId(pub u32);

impl NamespaceId {
    /// The root namespace.
    pub const ROOT: Self = Self(0);
}

/// One incarnation of a mount: a mount that is removed and made again at the same path gets a new one, so old records never open under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MountId(pub u64);

impl MountId {
    /// What the kernel itself keeps: mounts, policies, tokens, duties.
    pub const KERNEL: Self = Self(0);
}

/// A position in the commit log. The first commit is 1; 0 means "before everything".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl std::fmt::Display for Seq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// `len` characters drawn evenly from `0-9A-Za-z` (rejection sampling, no modulo bias).
///
/// # Errors
/// When the source of randomness fails.
pub fn base62(rng: &dyn Rng, len: usize) -> Result<String, RngFault> {
    let mut out = String::with_capacity(len);
    let mut buffer = [0_u8; 32];
    while out.len() < len {
        rng.fill(&mut buffer)?;
        for byte in buffer {
            // 248 = 4 * 62: bytes above would favour the first characters.
            if byte < 248
                && out.len() < len
                && let Some(c) = BASE62.get(usize::from(byte % 62))
            {
                out.push(char::from(*c));
            }
        }
    }
    Ok(out)
}

/// A random UUID, version 4 (RFC 9562 section 5.4), in lower case with hyphens.
///
/// # Errors
/// When the source of randomness fails.
pub fn uuid(rng: &dyn Rng) -> Result<String, RngFault> {
    use std::fmt::Write as _;
    let mut bytes = [0_u8; 16];
    rng.fill(&mut bytes)?;
    let mut out = String::with_capacity(36);
    for (i, byte) in bytes.into_iter().enumerate() {
        let byte = match i {
            6 => (byte & 0x0f) | 0x40,
            8 => (byte & 0x3f) | 0x80,
            _ => byte,
        };
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        write!(out, "{byte:02x}").map_err(|_| RngFault)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::SeededRng;

    #[test]
    fn base62_has_the_asked_length_and_alphabet() {
        let rng = SeededRng::new(7);
        for len in [0, 1, 24, 95] {
            let id = base62(&rng, len).unwrap();
            assert_eq!(id.len(), len);
            assert!(id.bytes().all(|b| b.is_ascii_alphanumeric()));
        }
    }

    #[test]
    fn base62_is_even() {
        let text = base62(&SeededRng::new(1), 62_000).unwrap();
        for c in BASE62 {
            let n = text.bytes().filter(|b| b == c).count();
            assert!((850..1150).contains(&n), "`{}` came {n} times", char::from(*c));
        }
    }

    #[test]
    fn uuid_carries_version_and_variant() {
        let id = uuid(&SeededRng::new(3)).unwrap();
        assert_eq!(id.len(), 36);
        assert_eq!(id.get(14..15), Some("4"));
        assert!(matches!(id.get(19..20), Some("8" | "9" | "a" | "b")));
    }
}
