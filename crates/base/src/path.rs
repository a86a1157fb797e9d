//! The only spelling of a path.

use std::borrow::Cow;

use unicode_normalization::is_nfc;

/// Bytes of a canonical path at most.
pub const PATH_BYTES_MAX: usize = 4_096;
/// Segments of a canonical path at most.
pub const SEGMENTS_MAX: usize = 64;

/// Why a path was refused. Never repaired, never repeated in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// Nothing, or only slashes.
    Empty,
    /// Two slashes in a row, or one at the start.
    EmptySegment,
    /// `.` or `..`.
    Relative,
    /// A `%` without two hexadecimal digits.
    Escape,
    /// An escaped slash, backslash or NUL, or a backslash.
    Separator,
    /// A control byte, or a character that changes how text is shown.
    Control,
    /// Not UTF-8 in Normalization Form C.
    Unicode,
    /// Longer than [`PATH_BYTES_MAX`] or [`SEGMENTS_MAX`].
    TooLong,
}

impl std::fmt::Display for PathError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "path is empty",
            Self::EmptySegment => "path has an empty segment",
            Self::Relative => "path cannot contain parent references or relative segments",
            Self::Escape => "path has an incomplete percent escape",
            Self::Separator => "path has an escaped separator or a backslash",
            Self::Control => "path has an unprintable character",
            Self::Unicode => "path is not UTF-8 in normalization form C",
            Self::TooLong => "path is longer than 4096 bytes or 64 segments",
        })
    }
}

impl std::error::Error for PathError {}

/// A path below `/v1/`, parsed once from the raw target. Router, access rules, audit, caches and storage keys take this, never a string.
///
/// INVARIANT: one to 64 non-empty segments joined by single slashes, none of them `.` or `..`, without control characters, in NFC;
/// at most one slash at the end, which means "the folder" (LIST).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CanonPath(Box<str>);

impl CanonPath {
    /// Reads the part of a request target after `/v1/`, before `?`. Percent escapes are decoded exactly once.
    ///
    /// # Errors
    /// [`PathError`]; nothing is repaired.
    pub fn parse(raw: &str) -> Result<Self, PathError> {
        Self::check(&decode(raw)?)
    }

    /// Takes text that was never percent-encoded (configuration, a field of a body) under the same rules.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn from_plain(text: &str) -> Result<Self, PathError> {
        Self::check(text)
    }

    fn check(text: &str) -> Result<Self, PathError> {
        if text.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        let body = text.strip_suffix('/').unwrap_or(text);
        if body.is_empty() {
            return Err(PathError::Empty);
        }
        let mut count = 0;
        for segment in body.split('/') {
            count += 1;
            match segment {
                "" => return Err(PathError::EmptySegment),
                "." | ".." => return Err(PathError::Relative),
                _ => {}
            }
        }
        if count > SEGMENTS_MAX {
            return Err(PathError::TooLong);
        }
        if text.contains('\\') {
            return Err(PathError::Separator);
        }
        if text.chars().any(deceives) {
            return Err(PathError::Control);
        }
        if !is_nfc(text) {
            return Err(PathError::Unicode);
        }
        Ok(Self(text.into()))
    }

    /// The whole path, with its slash at the end if it is a folder.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments, without empty ones.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.trimmed().split('/')
    }

    /// Whether the path ends in a slash.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        self.0.ends_with('/')
    }

    /// The path without a slash at the end.
    #[must_use]
    pub fn trimmed(&self) -> &str {
        self.0.strip_suffix('/').unwrap_or(&self.0)
    }

    /// The same path as a folder, as LIST needs it.
    #[must_use]
    pub fn to_folder(&self) -> Self {
        if self.is_folder() { self.clone() } else { Self(format!("{}/", self.0).into()) }
    }

    /// The same path without the slash at the end.
    #[must_use]
    pub fn to_leaf(&self) -> Self {
        Self(self.trimmed().into())
    }

    /// What follows `mount` (which is taken as a folder), or nothing when `self` is not below it.
    /// The mount itself (`secret/` in `secret/`) gives nothing too: there is no path left to name.
    #[must_use]
    pub fn below(&self, mount: &Self) -> Option<Self> {
        let rest = self.0.strip_prefix(mount.trimmed())?.strip_prefix('/')?;
        if rest.is_empty() { None } else { Some(Self(rest.into())) }
    }

    /// Whether `self` is `other` or lies below it, segment by segment.
    #[must_use]
    pub fn starts_with(&self, other: &Self) -> bool {
        match self.trimmed().strip_prefix(other.trimmed()) {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }

    /// `self/rest`.
    ///
    /// # Errors
    /// [`PathError::TooLong`].
    pub fn join(&self, rest: &Self) -> Result<Self, PathError> {
        Self::check(&format!("{}/{}", self.trimmed(), rest.0))
    }

    /// Text that is safe as one segment of a URL: everything but unreserved characters escaped, slashes kept.
    #[must_use]
    pub fn to_url(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::with_capacity(self.0.len());
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/') {
                out.push(char::from(byte));
            } else {
                let _infallible = write!(out, "%{byte:02X}");
            }
        }
        out
    }
}

impl std::fmt::Display for CanonPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for CanonPath {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for CanonPath {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <Cow<'de, str>>::deserialize(from)?;
        Self::from_plain(&text).map_err(serde::de::Error::custom)
    }
}

/// Control characters, and the invisible ones that make two names look alike or reverse the text (Unicode `Cf` in use for that).
fn deceives(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn decode(raw: &str) -> Result<Cow<'_, str>, PathError> {
    if !raw.contains('%') {
        return Ok(Cow::Borrowed(raw));
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (Some(high), Some(low)) = (bytes.next().and_then(nibble), bytes.next().and_then(nibble)) else {
            return Err(PathError::Escape);
        };
        match high << 4 | low {
            b'/' | b'\\' | 0 => return Err(PathError::Separator),
            plain => out.push(plain),
        }
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| PathError::Unicode)
}

fn nibble(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(raw: &str, expect: Result<&str, PathError>) {
        assert_eq!(CanonPath::parse(raw).as_ref().map(CanonPath::as_str).map_err(|e| *e), expect, "{raw}");
    }

    #[test]
    fn one_spelling() {
        check("secret/data/app", Ok("secret/data/app"));
        check("secret/metadata/", Ok("secret/metadata/"));
        check("a%20b/c", Ok("a b/c"));
        check("caf%C3%A9", Ok("café"));
        // decoded exactly once: what remains is a literal name
        check("x/%252e%252e/y", Ok("x/%2e%2e/y"));
    }

    #[test]
    fn never_repaired() {
        use PathError::*;
        for (raw, error) in [
            ("", Empty),
            ("/", Empty),
            ("//", EmptySegment),
            ("/secret", EmptySegment),
            ("a//b", EmptySegment),
            ("a/b//", EmptySegment),
            ("a/./b", Relative),
            ("a/../b", Relative),
            ("a/%2e%2e/b", Relative),
            ("a/.%2e/b", Relative),
            ("..", Relative),
            ("a%2fb", Separator),
            ("a%5Cb", Separator),
            ("a\\b", Separator),
            ("a%00b", Separator),
            ("a%0ab", Control),
            ("a%7fb", Control),
            ("a%e2%80%aeb", Control),
            ("a%e2%80%8bb", Control),
            ("a%", Escape),
            ("a%2", Escape),
            ("a%zz", Escape),
            ("a%ff", Unicode),
            ("cafe%CC%81", Unicode),
        ] {
            check(raw, Err(error));
        }
        check(&"a/".repeat(65), Err(TooLong));
        check(&"a".repeat(4_097), Err(TooLong));
    }

    #[test]
    fn below_is_by_segment() {
        let p = |t: &str| CanonPath::parse(t).unwrap();
        assert_eq!(p("secret/data/x").below(&p("secret/")), Some(p("data/x")));
        assert_eq!(p("secretive/x").below(&p("secret/")), None);
        assert_eq!(p("secret/").below(&p("secret/")), None);
        assert!(p("a/b").starts_with(&p("a")) && !p("ab").starts_with(&p("a")));
    }

    proptest! {
        #[test]
        fn parsing_its_own_url_gives_the_same_path(text in "\\PC{0,40}(/\\PC{0,40}){0,4}") {
            if let Ok(path) = CanonPath::from_plain(&text) {
                prop_assert_eq!(CanonPath::parse(&path.to_url()), Ok(path.clone()));
                prop_assert_eq!(path.segments().collect::<Vec<_>>().join("/"), path.trimmed());
            }
        }

        #[test]
        fn no_accepted_path_climbs(raw in "[a./%2eEfF5cC0]{0,24}") {
            if let Ok(path) = CanonPath::parse(&raw) {
                prop_assert!(path.segments().all(|s| !s.is_empty() && s != "." && s != ".."));
            }
        }
    }
}
