//! Where a record lives: namespace, mount, table and a path of identifiers, in one sorted spelling.

use base::{MountId, NamespaceId};

/// The part of the key space that belongs to one incarnation of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// The namespace.
    pub namespace: NamespaceId,
    /// The mount.
    pub mount: MountId,
}

impl Scope {
    /// The kernel's own scope in the root namespace.
    pub const KERNEL: Self = Self { namespace: NamespaceId::ROOT, mount: MountId::KERNEL };

    /// The store's own scope (keyring). No transaction may write here.
    pub(crate) const STORE: Self = Self { namespace: NamespaceId::ROOT, mount: MountId(u64::MAX) };

    /// A mount in a namespace.
    #[must_use]
    pub fn new(namespace: NamespaceId, mount: MountId) -> Self {
        Self { namespace, mount }
    }

    fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&self.namespace.0.to_be_bytes());
        bytes.extend_from_slice(&self.mount.0.to_be_bytes());
        bytes
    }
}

/// The place of one record. Keys sort by namespace, mount, table and then identifier by identifier.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<[u8]>);

impl Key {
    /// The key of `id` in `table`. Any text is an identifier, the empty one too.
    #[must_use]
    pub fn new(scope: Scope, table: &'static str, id: &[&str]) -> Self {
        Self(encode(scope, table, id).into())
    }

    /// The encoded key, as `docs/format.md` describes it.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whose record this is.
    #[must_use]
    pub fn scope(&self) -> Scope {
        let namespace = self.0.first_chunk::<4>().copied().map_or(0, u32::from_be_bytes);
        let mount = self.0.get(4..SCOPE_BYTES).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
        Scope { namespace: NamespaceId(namespace), mount: MountId(mount) }
    }

    /// The table's name.
    #[must_use]
    pub fn table(&self) -> String {
        self.parts().next().unwrap_or_default()
    }

    /// The identifiers below the table.
    #[must_use]
    pub fn id(&self) -> Vec<String> {
        self.parts().skip(1).collect()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // A key has a scope and a table name at least.
        (bytes.len() > SCOPE_BYTES).then(|| Self(bytes.into()))
    }

    /// Bytes that are a key, or bound a range of keys.
    pub(crate) fn from_raw(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The place just behind this key, before everything below it.
    pub(crate) fn next(&self) -> Self {
        Self([&self.0, &[SEPARATOR][..]].concat().into())
    }

    fn parts(&self) -> impl Iterator<Item = String> + '_ {
        self.0.get(SCOPE_BYTES..).unwrap_or_default().split(|byte| *byte == SEPARATOR).map(unescape)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scope = self.scope();
        write!(f, "{}:{}:{}", scope.namespace.0, scope.mount.0, self.parts().collect::<Vec<_>>().join("/"))
    }
}

/// All keys below a table, below an identifier, or whose next identifier starts with a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Ends with a separator: what comes next is a whole identifier.
    base: Vec<u8>,
    /// The start that the next identifier must have.
    start: Vec<u8>,
}

impl Prefix {
    /// All keys with more identifiers than `id`, and these in front.
    #[must_use]
    pub fn new(scope: Scope, table: &'static str, id: &[&str]) -> Self {
        let mut base = encode(scope, table, id);
        base.push(SEPARATOR);
        Self { base, start: Vec::new() }
    }

    /// Only those whose next identifier starts with `text`.
    #[must_use]
    pub fn starting(mut self, text: &str) -> Self {
        self.start.clear();
        escape(text, &mut self.start);
        self
    }

    /// The first key of the range, and the first one behind it.
    pub(crate) fn bounds(&self) -> (Key, Key) {
        let low = [self.base.as_slice(), &self.start].concat();
        let high = successor(low.clone());
        (Key(low.into()), Key(high.into()))
    }

    /// The place behind all keys whose next identifier is `text`.
    pub(crate) fn behind(&self, text: &str) -> Key {
        let mut key = self.base.clone();
        escape(text, &mut key);
        // What is below `text` continues with a separator; a longer identifier with something greater.
        key.push(ESCAPE);
        Key(key.into())
    }

    /// The identifier that follows the prefix in a key of its range.
    pub(crate) fn next_id(&self, key: &Key) -> String {
        let rest = key.0.get(self.base.len()..).unwrap_or_default();
        unescape(rest.split(|byte| *byte == SEPARATOR).next().unwrap_or_default())
    }
}

/// The smallest byte string that sorts behind everything starting with `bytes`.
fn successor(mut bytes: Vec<u8>) -> Vec<u8> {
    while let Some(last) = bytes.pop() {
        if last < u8::MAX {
            bytes.push(last.saturating_add(1));
            break;
        }
    }
    bytes
}

fn encode(scope: Scope, table: &'static str, id: &[&str]) -> Vec<u8> {
    let mut bytes = scope.encode();
    escape(table, &mut bytes);
    for part in id {
        bytes.push(SEPARATOR);
        escape(part, &mut bytes);
    }
    bytes
}

/// Frees a text of the separator without changing how texts sort: 00 becomes 01 01, and 01 becomes 01 02.
fn escape(text: &str, into: &mut Vec<u8>) {
    for byte in text.bytes() {
        match byte {
            SEPARATOR | ESCAPE => into.extend_from_slice(&[ESCAPE, byte.saturating_add(1)]),
            _ => into.push(byte),
        }
    }
}

fn unescape(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied();
    while let Some(byte) = rest.next() {
        match byte {
            ESCAPE => out.extend(rest.next().map(|next| next.saturating_sub(1))),
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

const SCOPE_BYTES: usize = 12;
const SEPARATOR: u8 = 0;
const ESCAPE: u8 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: Scope = Scope { namespace: NamespaceId(3), mount: MountId(9) };

    fn text() -> impl Strategy<Value = String> {
        // Few letters, so that prefixes of one another and the escaped bytes are common.
        proptest::collection::vec(prop::sample::select(vec!['\0', '\u{1}', '\u{2}', 'a', 'b', '/', 'é', '\u{10ffff}']), 0..5)
            .prop_map(|chars| chars.into_iter().collect())
    }

    fn ids() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec(text(), 0..4)
    }

    fn key(id: &[String]) -> Key {
        Key::new(HERE, "t", &id.iter().map(String::as_str).collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn keys_round_trip_and_sort_like_their_parts(a in ids(), b in ids()) {
            prop_assert_eq!(key(&a).id(), a.clone());
            prop_assert_eq!(key(&a).scope(), HERE);
            prop_assert_eq!(key(&a).table(), "t");
            prop_assert_eq!(key(&a).cmp(&key(&b)), a.cmp(&b));
        }

        #[test]
        fn a_prefix_holds_exactly_what_is_below_it(above in ids(), start in text(), other in ids()) {
            let parts = above.iter().map(String::as_str).collect::<Vec<_>>();
            let (low, high) = Prefix::new(HERE, "t", &parts).starting(&start).bounds();
            let key = key(&other);
            let inside = key >= low && key < high;
            let below = other.starts_with(&above) && other.get(above.len()).is_some_and(|next| next.starts_with(&start));
            prop_assert_eq!(inside, below, "{:?} under {:?} + {:?}", other, above, start);
            if inside {
                prop_assert_eq!(&Prefix::new(HERE, "t", &parts).next_id(&key), &other[above.len()]);
            }
        }

        #[test]
        fn behind_skips_one_identifier_and_all_below_it(above in ids(), text in text(), other in text(), below in ids()) {
            let parts = above.iter().map(String::as_str).collect::<Vec<_>>();
            let behind = Prefix::new(HERE, "t", &parts).behind(&text);
            let next = [above.clone(), vec![other.clone()], below].concat();
            prop_assert_eq!(key(&next) >= behind, other > text);
        }
    }

    #[test]
    fn the_bytes_are_the_documented_ones() {
        let key = Key::new(HERE, "kv", &["a\0b", ""]);
        assert_eq!(key.as_bytes(), b"\0\0\0\x03\0\0\0\0\0\0\0\x09kv\0a\x01\x01b\0");
        assert_eq!(format!("{key:?}"), "3:9:kv/a\0b/");
    }
}
