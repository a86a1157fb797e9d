//! AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce for each message.
//!
//! The nonce budget of one key is 2^32 messages; whoever owns a key retires it long before.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base::{Rng, RngFault, Secret, SecretBytes};

/// Bytes that sealing adds: nonce and tag.
pub const OVERHEAD: usize = NONCE_LEN + 16;
/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// A key that seals and opens.
pub struct Key(LessSafeKey);

/// Why a message could not be sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AeadError {
    /// The key has not 32 bytes.
    #[error("a sealing key has 32 bytes")]
    Key,
    /// No randomness for the nonce.
    #[error(transparent)]
    Rng(#[from] RngFault),
    /// Wrong key, wrong associated data, or changed bytes: which of them cannot be told.
    #[error("sealed bytes do not open")]
    Open,
}

impl Key {
    /// A key from its 32 bytes.
    ///
    /// # Errors
    /// [`AeadError::Key`] for any other length.
    pub fn new(bytes: &[u8]) -> Result<Self, AeadError> {
        UnboundKey::new(&AES_256_GCM, bytes).map(|k| Self(LessSafeKey::new(k))).map_err(|_| AeadError::Key)
    }

    /// 32 fresh bytes for a key.
    ///
    /// # Errors
    /// When the source of randomness fails.
    pub fn generate(rng: &dyn Rng) -> Result<SecretBytes, RngFault> {
        let mut bytes = vec![0; KEY_BYTES];
        rng.fill(&mut bytes)?;
        Ok(Secret::new(bytes))
    }
}

/// `nonce ‖ ciphertext ‖ tag`, bound to `aad`.
///
/// # Errors
/// [`AeadError::Rng`] when there is no nonce; [`AeadError::Open`] never.
pub fn seal(key: &Key, rng: &dyn Rng, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, AeadError> {
    let mut nonce = [0; NONCE_LEN];
    rng.fill(&mut nonce)?;
    let mut out = Vec::with_capacity(plain.len() + OVERHEAD);
    out.extend_from_slice(&nonce);
    out.extend_from_slice(plain);
    let body = out.get_mut(NONCE_LEN..).ok_or(AeadError::Open)?;
    let tag = key.0.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), body).map_err(|_| AeadError::Open)?;
    out.extend_from_slice(tag.as_ref());
    Ok(out)
}

/// Opens what [`seal`] made with the same key and `aad`.
///
/// # Errors
/// [`AeadError::Open`].
pub fn open(key: &Key, aad: &[u8], sealed: &[u8]) -> Result<SecretBytes, AeadError> {
    let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(AeadError::Open)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| AeadError::Open)?;
    let mut buffer = body.to_vec();
    let length = key.0.open_in_place(nonce, Aad::from(aad), &mut buffer).map_err(|_| AeadError::Open)?.len();
    buffer.truncate(length);
    Ok(Secret::new(buffer))
}

#[cfg(test)]
mod tests {
    use base::rng::SeededRng;

    use super::*;

    fn key(byte: u8) -> Key {
        Key::new(&[byte; 32]).unwrap()
    }

    #[test]
    fn opens_only_what_was_sealed() {
        let rng = SeededRng::new(1);
        let sealed = seal(&key(1), &rng, b"here", b"value").unwrap();
        assert_eq!(sealed.len(), 5 + OVERHEAD);
        assert_eq!(open(&key(1), b"here", &sealed).unwrap().expose(), b"value");
        assert!(open(&key(2), b"here", &sealed).is_err());
        assert!(open(&key(1), b"there", &sealed).is_err());
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert!(open(&key(1), b"here", &bad).is_err(), "byte {i}");
        }
        for n in 0..sealed.len() {
            assert!(open(&key(1), b"here", &sealed[..n]).is_err(), "{n} bytes");
        }
    }

    #[test]
    fn nonces_differ() {
        let rng = crate::rng::SystemRng::new();
        let (a, b) = (seal(&key(1), &rng, b"", b"x").unwrap(), seal(&key(1), &rng, b"", b"x").unwrap());
        assert_ne!(a[..NONCE_LEN], b[..NONCE_LEN]);
    }

    struct Broken;
    impl Rng for Broken {
        fn fill(&self, _: &mut [u8]) -> Result<(), RngFault> {
            Err(RngFault)
        }
    }

    #[test]
    fn no_randomness_no_ciphertext() {
        assert_eq!(seal(&key(1), &Broken, b"", b"x").unwrap_err(), AeadError::Rng(RngFault));
    }
}
