//! Values in records: only as keyed HMACs.

use crypto::mac;
use crypto::sign::SigningKey;
use std::sync::Arc;

/// What stands for a value while the HMAC key is behind the seal.
const SEALED: &str = "sealed";

/// The keys of the audit log. They live behind the seal.
pub struct Keys {
    /// For values in records.
    pub hmac: mac::Key,
    /// For checkpoints of both trees.
    pub signer: SigningKey,
}

/// Turns values into what a record may hold. Without a key it still never shows a value.
#[derive(Clone, Default)]
pub struct Hasher(Option<Arc<Keys>>);

impl Hasher {
    pub(crate) fn new(keys: Arc<Keys>) -> Hasher {
        Hasher(Some(keys))
    }

    /// `hmac-sha256:<hex>` over the field path and the value. The path's length goes first, so that no other split of the
    /// same bytes has the same HMAC.
    pub fn value(&self, field: &str, value: &[u8]) -> String {
        let Some(keys) = &self.0 else { return SEALED.to_owned() };
        let mut message = Vec::with_capacity(8 + field.len() + value.len());
        message.extend_from_slice(&(field.len() as u64).to_be_bytes());
        message.extend_from_slice(field.as_bytes());
        message.extend_from_slice(value);
        let tag = mac::sign(&keys.hmac, &message);
        zero(&mut message);
        format!("hmac-sha256:{}", crypto::encode::hex(&tag))
    }
}

/// Wipes a copy of a value.
fn zero(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn keys(seed: u8) -> Keys {
        Keys { hmac: mac::Key::new(&[seed; 32]), signer: SigningKey::from_seed(&[seed; 32]).unwrap() }
    }

    #[test]
    fn the_same_value_under_another_path_or_key_looks_different() {
        let hasher = Hasher::new(Arc::new(keys(1)));
        let a = hasher.value("data/password", b"hunter2");
        assert!(a.starts_with("hmac-sha256:") && a.len() == 12 + 64, "{a}");
        assert_eq!(a, hasher.value("data/password", b"hunter2"));
        assert_ne!(a, hasher.value("data/passwor", b"dhunter2"));
        assert_ne!(a, hasher.value("data/other", b"hunter2"));
        assert_ne!(a, Hasher::new(Arc::new(keys(2))).value("data/password", b"hunter2"));
        assert_eq!(Hasher::default().value("key", b"hunter2"), "sealed");
    }
}
