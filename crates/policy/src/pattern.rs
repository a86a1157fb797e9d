//! The path of a rule: exact, prefix (`*` at the end) or with whole segments left open (`+`).

use std::borrow::Cow;

use base::path::{CanonPath, PathError};

/// A parsed rule path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// As written, without a leading slash.
    pub(crate) text: Box<str>,
    kind: Kind,
    pub(crate) specificity: Specificity,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Exact,
    /// The text without its `*`.
    Prefix(Box<str>),
    /// The segments, without a `*`; whether one followed.
    Segments(Box<[Box<str>]>, bool),
}

/// A segment that no rule can name: control characters have no place in a path.
const UNNAMED: &str = "\u{1}";

/// How closely a pattern names a path; the greater wins. In characters. The order of the fields is the order of comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Specificity {
    /// Where the first wildcard stands; an exact path has none.
    first_wildcard: usize,
    no_star: bool,
    plus_fewer: std::cmp::Reverse<usize>,
    length: usize,
}

/// Why a rule path was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// `+*`.
    #[error("`+*` is not a wildcard")]
    PlusStar,
    /// `{{…}}`.
    #[error("templates (`{{{{`…`}}}}`) are not supported yet")]
    Template,
    /// No request can have such a path, so the rule would silently do nothing.
    #[error("no request has such a path: {0}")]
    Path(PathError),
}

impl Pattern {
    pub(crate) fn parse(raw: &str) -> Result<Self, PatternError> {
        let text = raw.strip_prefix('/').unwrap_or(raw);
        if text.contains("{{") || text.contains("}}") {
            return Err(PatternError::Template);
        }
        if text.contains("+*") {
            return Err(PatternError::PlusStar);
        }
        let (stem, star) = match text.strip_suffix('*') {
            Some(stem) => (stem, true),
            None => (text, false),
        };
        // a prefix may stop within a segment: whatever follows completes it
        let sample = if star && !stem.ends_with('/') { Cow::Owned(format!("{stem}x")) } else { Cow::Borrowed(stem) };
        CanonPath::from_plain(&sample).map_err(PatternError::Path)?;

        let plus = stem.split('/').filter(|segment| *segment == "+").count();
        let kind = if plus > 0 {
            Kind::Segments(stem.split('/').map(Box::from).collect(), star)
        } else if star {
            Kind::Prefix(stem.into())
        } else {
            Kind::Exact
        };
        let length = stem.chars().count();
        let first_wildcard = if plus > 0 {
            stem.split('/').take_while(|segment| *segment != "+").map(|segment| segment.chars().count() + 1).sum()
        } else if star {
            length
        } else {
            usize::MAX
        };
        // an exact path has no closer and looser spelling
        let length = if kind == Kind::Exact { 0 } else { length };
        let specificity = Specificity { first_wildcard, no_star: !star, plus_fewer: std::cmp::Reverse(plus), length };
        Ok(Self { text: text.into(), kind, specificity })
    }

    pub(crate) fn is_exact(&self) -> bool {
        self.kind == Kind::Exact
    }

    pub(crate) fn matches(&self, path: &str) -> bool {
        match &self.kind {
            Kind::Exact => *self.text == *path,
            Kind::Prefix(prefix) => path.starts_with(&**prefix),
            Kind::Segments(segments, star) => {
                let mut have = path.split('/');
                let mut want = segments.iter().map(|s| &**s).peekable();
                while let Some(want_now) = want.next() {
                    let Some(have_now) = have.next() else { return false };
                    let last = want.peek().is_none();
                    let fits = want_now == "+" || want_now == have_now || (*star && last && have_now.starts_with(want_now));
                    if !fits {
                        return false;
                    }
                }
                *star || have.next().is_none()
            }
        }
    }

    /// Paths in `folder` that it matches, one for each depth up to `depth`. What it leaves open is filled with what no rule can name, so
    /// another pattern that matches one of them matches all of that depth, but for those that are named.
    pub(crate) fn samples(&self, folder: &str, depth: usize) -> impl Iterator<Item = String> + use<> {
        let (start, depth) = match self.within(folder) {
            None => (None, 0),
            Some(start) if self.text.ends_with('*') => (Some(start), depth),
            Some(start) => (Some(start), 0),
        };
        start.into_iter().flat_map(move |start| (0..=depth).map(move |n| start.clone() + &vec![UNNAMED; n].join("/")))
    }

    /// The shortest text that it matches and that lies in `folder`.
    fn within(&self, folder: &str) -> Option<String> {
        match &self.kind {
            Kind::Exact => self.text.starts_with(folder).then(|| self.text.to_string()),
            Kind::Prefix(prefix) if prefix.starts_with(folder) => Some(prefix.to_string()),
            Kind::Prefix(prefix) => folder.starts_with(&**prefix).then(|| folder.to_owned()),
            Kind::Segments(segments, star) => {
                let have: Vec<&str> = folder.trim_end_matches('/').split('/').collect();
                let fits = segments.iter().zip(&have).enumerate().all(|(nth, (want, have))| {
                    **want == *"+" || **want == **have || *star && nth + 1 == segments.len() && have.starts_with(&**want)
                });
                if !fits {
                    None
                } else if segments.len() > have.len() {
                    let rest = segments.iter().skip(have.len()).map(|want| if **want == *"+" { UNNAMED } else { want });
                    Some(have.iter().copied().chain(rest).collect::<Vec<_>>().join("/"))
                } else {
                    star.then(|| folder.to_owned())
                }
            }
        }
    }

    /// The same pattern in folded letters; matches folded paths.
    pub(crate) fn folded(&self) -> Self {
        let kind = match &self.kind {
            Kind::Exact => Kind::Exact,
            Kind::Prefix(prefix) => Kind::Prefix(fold(prefix).into()),
            Kind::Segments(segments, star) => Kind::Segments(segments.iter().map(|s| fold(s).into()).collect(), *star),
        };
        Self { text: fold(&self.text).into(), kind, specificity: self.specificity }
    }
}

/// One letter for one letter, so that positions stay: upper, then lower, where each is a single character.
pub(crate) fn fold(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|b| b.is_ascii() && !b.is_ascii_uppercase()) {
        return Cow::Borrowed(text);
    }
    fn single(mut letters: impl Iterator<Item = char>, or: char) -> char {
        match (letters.next(), letters.next()) {
            (Some(one), None) => one,
            _ => or,
        }
    }
    Cow::Owned(
        text.chars()
            .map(|c| {
                let upper = single(c.to_uppercase(), c);
                single(upper.to_lowercase(), upper)
            })
            .collect(),
    )
}
