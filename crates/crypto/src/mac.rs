//! HMAC-SHA-256 (RFC 2104).

use aws_lc_rs::hmac;

/// A prepared key. The library keeps its copy in the prepared state; the caller wipes the bytes it was made from.
#[derive(Clone)]
pub struct Key(hmac::Key);

impl Key {
    /// Prepares a key of any length (32 random bytes wherever Keyward makes one).
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }
}

/// The tag of `message`.
#[must_use]
pub fn sign(key: &Key, message: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(hmac::sign(&key.0, message).as_ref()) {
        *to = *from;
    }
    out
}

/// Whether `tag` is the tag of `message`, in constant time.
#[must_use]
pub fn verify(key: &Key, message: &[u8], tag: &[u8]) -> bool {
    hmac::verify(&key.0, message, tag).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_4231_case_2() {
        let key = Key::new(b"Jefe");
        let tag = sign(&key, b"what do ya want for nothing?");
        assert_eq!(crate::encode::hex(&tag), "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert!(verify(&key, b"what do ya want for nothing?", &tag));
        assert!(!verify(&key, b"what do ya want for nothing!", &tag));
        assert!(!verify(&key, b"what do ya want for nothing?", &tag[..31]));
    }
}
