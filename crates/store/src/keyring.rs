//! The keys that seal values, themselves sealed by a root key that lives elsewhere.

use std::collections::BTreeMap;

use base::{Rng, RngFault, Secret, SecretBytes, Seq};
use crypto::aead;

use crate::key::Scope;
use crate::{Error, Key};

/// The key that opens the keyring. Where it comes from (key file, shares, KMS) is not the store's business.
pub struct RootKey(aead::Key);

impl RootKey {
    /// From 32 bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        aead::Key::new(bytes).map(Self).map_err(|_| Error::WrongRootKey)
    }

    /// 32 new bytes, to be kept (in a key file, say) and given to [`RootKey::new`].
    pub fn generate(rng: &dyn Rng) -> Result<SecretBytes, RngFault> {
        aead::Key::generate(rng)
    }
}

/// The open keyring.
pub(crate) struct Keyring {
    cluster: String,
    /// Data keys by term; the last one seals.
    terms: BTreeMap<u32, aead::Key>,
}

impl Keyring {
    /// A new cluster with its first data key: the open keyring and its sealed record.
    pub(crate) fn create(root: &RootKey, rng: &dyn Rng) -> Result<(Self, Vec<u8>), Error> {
        let cluster = base::id::uuid(rng)?;
        let first = aead::Key::generate(rng)?;
        let mut plain = Vec::with_capacity(TERM_BYTES);
        plain.extend_from_slice(&FIRST_TERM.to_be_bytes());
        plain.extend_from_slice(first.expose());
        let plain = Secret::new(plain);
        let sealed = aead::seal(&root.0, rng, &keyring_aad(&cluster), plain.expose()).map_err(|_| RngFault)?;
        let record = [&[KEYRING], cluster.as_bytes(), &sealed].concat();
        let terms = read_terms(plain.expose()).ok_or(Error::WrongRootKey)?;
        Ok((Self { cluster, terms }, record))
    }

    /// Opens a keyring's record.
    pub(crate) fn open(root: &RootKey, record: &[u8]) -> Result<Self, Error> {
        let cluster = cluster_of(record).ok_or(Error::WrongRootKey)?;
        let sealed = record.get(CLUSTER_END..).unwrap_or_default();
        let plain = aead::open(&root.0, &keyring_aad(&cluster), sealed).map_err(|_| Error::WrongRootKey)?;
        let terms = read_terms(plain.expose()).ok_or(Error::WrongRootKey)?;
        Ok(Self { cluster, terms })
    }

    /// Seals a value for one key and one base.
    pub(crate) fn seal(&self, rng: &dyn Rng, key: &Key, base: Seq, value: &[u8]) -> Result<Vec<u8>, Error> {
        let (term, data) = self.terms.last_key_value().ok_or(Error::Sealed)?;
        let sealed = aead::seal(data, rng, &self.value_aad(key, base, *term), value).map_err(|_| RngFault)?;
        Ok([&[VALUE][..], &term.to_be_bytes(), &base.0.to_be_bytes(), &sealed].concat())
    }

    /// Opens a value of this key.
    pub(crate) fn unseal(&self, key: &Key, record: &[u8]) -> Result<SecretBytes, Error> {
        let unreadable = || Error::Record { key: format!("{key:?}") };
        let (head, sealed) = record.split_at_checked(VALUE_HEAD).ok_or_else(unreadable)?;
        let [VALUE, head @ ..] = head else { return Err(unreadable()) };
        let (term, base) = head.split_at_checked(4).ok_or_else(unreadable)?;
        let term = u32::from_be_bytes(term.try_into().map_err(|_| unreadable())?);
        let base = Seq(u64::from_be_bytes(base.try_into().map_err(|_| unreadable())?));
        let data = self.terms.get(&term).ok_or_else(unreadable)?;
        aead::open(data, &self.value_aad(key, base, term), sealed).map_err(|_| unreadable())
    }

    /// Everything but the last part has a fixed length. The key holds namespace and mount.
    fn value_aad(&self, key: &Key, base: Seq, term: u32) -> Vec<u8> {
        [b"keyward-value-v1\n", self.cluster.as_bytes(), &base.0.to_be_bytes(), &term.to_be_bytes(), key.as_bytes()].concat()
    }
}

/// Where the keyring's record lives.
pub(crate) fn keyring_key() -> Key {
    Key::new(Scope::STORE, "keyring", &[])
}

/// The cluster id of a keyring's record; it can be read without any key.
pub(crate) fn cluster_of(record: &[u8]) -> Option<String> {
    let [KEYRING, cluster @ ..] = record.get(..CLUSTER_END)? else { return None };
    String::from_utf8(cluster.to_vec()).ok()
}

fn keyring_aad(cluster: &str) -> Vec<u8> {
    [b"keyward-keyring-v1\n", cluster.as_bytes()].concat()
}

fn read_terms(plain: &[u8]) -> Option<BTreeMap<u32, aead::Key>> {
    if plain.is_empty() || !plain.len().is_multiple_of(TERM_BYTES) {
        return None;
    }
    let term = |bytes: &[u8]| {
        let (term, key) = bytes.split_at_checked(4)?;
        Some((u32::from_be_bytes(term.try_into().ok()?), aead::Key::new(key).ok()?))
    };
    plain.chunks_exact(TERM_BYTES).map(term).collect()
}

const VALUE: u8 = 1;
const KEYRING: u8 = 2;
const FIRST_TERM: u32 = 1;
const TERM_BYTES: usize = 4 + aead::KEY_BYTES;
/// Version, term, base.
const VALUE_HEAD: usize = 13;
/// Version and the 36 characters of a UUID.
const CLUSTER_END: usize = 37;

#[cfg(test)]
mod tests {
    use base::rng::SeededRng;
    use base::{MountId, NamespaceId};

    use super::*;

    fn key(namespace: u32, mount: u64, id: &str) -> Key {
        Key::new(Scope::new(NamespaceId(namespace), MountId(mount)), "t", &[id])
    }

    fn ring(seed: u64) -> (Keyring, Vec<u8>) {
        Keyring::create(&RootKey::new(&[1; 32]).unwrap(), &SeededRng::new(seed)).unwrap()
    }

    #[test]
    fn a_value_opens_only_where_it_was_sealed() {
        let (ring, _) = ring(1);
        let rng = SeededRng::new(2);
        let here = key(0, 1, "a");
        let sealed = ring.seal(&rng, &here, Seq(4), b"secret").unwrap();
        assert_eq!(ring.unseal(&here, &sealed).unwrap().expose(), b"secret");
        for elsewhere in [key(0, 1, "b"), key(0, 2, "a"), key(1, 1, "a")] {
            assert!(matches!(ring.unseal(&elsewhere, &sealed), Err(Error::Record { .. })), "{elsewhere:?}");
        }
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(ring.unseal(&here, &bad).is_err(), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(ring.unseal(&here, &sealed[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_value_of_another_cluster_does_not_open() {
        let ((one, _), (two, _)) = (ring(1), ring(2));
        let same_keys = Keyring { cluster: two.cluster.clone(), terms: ring(1).0.terms };
        let sealed = one.seal(&SeededRng::new(2), &key(0, 1, "a"), Seq(4), b"secret").unwrap();
        assert!(same_keys.unseal(&key(0, 1, "a"), &sealed).is_err());
    }

    #[test]
    fn the_keyring_opens_with_its_root_key_alone() {
        let (ring, record) = ring(1);
        let sealed = ring.seal(&SeededRng::new(2), &key(0, 1, "a"), Seq(4), b"secret").unwrap();
        let again = Keyring::open(&RootKey::new(&[1; 32]).unwrap(), &record).unwrap();
        assert_eq!(again.unseal(&key(0, 1, "a"), &sealed).unwrap().expose(), b"secret");
        assert_eq!(cluster_of(&record), Some(ring.cluster));
        assert!(matches!(Keyring::open(&RootKey::new(&[2; 32]).unwrap(), &record), Err(Error::WrongRootKey)));
        for at in 0..record.len() {
            let mut bad = record.clone();
            bad[at] ^= 1;
            assert!(Keyring::open(&RootKey::new(&[1; 32]).unwrap(), &bad).is_err(), "byte {at}");
        }
        assert!(RootKey::new(&[1; 31]).is_err());
    }
}
