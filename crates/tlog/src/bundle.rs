//! Entry bundles: up to 256 entries, each after its big-endian u16 length.

use crate::Error;

/// Longest entry that a bundle can carry.
pub const ENTRY_MAX: usize = u16::MAX as usize;

/// Appends one entry to a bundle.
pub fn push(bundle: &mut Vec<u8>, entry: &[u8]) -> Result<(), Error> {
    let length = u16::try_from(entry.len()).map_err(|_| Error::EntryTooLong(entry.len()))?;
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    Ok(())
}

/// Encodes entries as one bundle.
pub fn encode<E: AsRef<[u8]>>(entries: impl IntoIterator<Item = E>) -> Result<Vec<u8>, Error> {
    let mut bundle = Vec::new();
    for entry in entries {
        push(&mut bundle, entry.as_ref())?;
    }
    Ok(bundle)
}

/// The entries of a bundle, in order. After an error there are no more.
pub fn entries(bundle: &[u8]) -> Entries<'_> {
    Entries { rest: bundle, position: 0 }
}

/// Iterator over a bundle.
#[derive(Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
    position: u64,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<&'a [u8], Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let taken =
            self.rest.split_first_chunk::<2>().and_then(|(length, rest)| rest.split_at_checked(usize::from(u16::from_be_bytes(*length))));
        let Some((entry, rest)) = taken else {
            self.rest = &[];
            return Some(Err(Error::BundleTruncated(self.position)));
        };
        self.rest = rest;
        self.position += 1;
        Some(Ok(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_and_a_cut_is_noticed() {
        let longest = vec![9; ENTRY_MAX];
        let bundle = encode([&b""[..], b"one", &longest]).unwrap();
        let back: Vec<_> = entries(&bundle).collect::<Result<_, _>>().unwrap();
        assert_eq!(back, [&b""[..], b"one", &longest]);
        for cut in [1, 3, 6, 8, 100] {
            let found: Vec<_> = entries(&bundle[..cut]).collect();
            assert!(matches!(found.last(), Some(Err(Error::BundleTruncated(_)))), "{cut}");
        }
    }

    #[test]
    fn an_entry_above_the_cap_is_refused() {
        assert_eq!(encode([vec![0; ENTRY_MAX + 1]]), Err(Error::EntryTooLong(ENTRY_MAX + 1)));
    }
}
