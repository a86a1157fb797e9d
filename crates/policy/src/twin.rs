//! A second evaluator, obvious and slow, written from the rules of `docs/policies.md` and not from the compiled one. Kept for ever:
//! the two are compared on random sets of policies. Every rule is a [`Clause`]; leaving one out must be noticed by the comparison,
//! otherwise the comparison is blind.

use std::cmp::Ordering;
use std::collections::BTreeSet;

/// One path block of one policy.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) path: String,
    pub(crate) words: BTreeSet<&'static str>,
}

/// The rules, one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clause {
    /// An exact path is closer than any with a wildcard; else the later first wildcard is closer.
    FirstWildcard,
    /// Without a star at the end is closer than with.
    Star,
    /// Fewer open segments are closer.
    Pluses,
    /// Longer is closer.
    Length,
    /// The greater text is closer.
    Text,
    /// What policies say about the same path adds up.
    Union,
    /// Deny beats all that is said about the same path.
    DenyBeats,
    /// Deny also speaks about paths that differ in the case of letters.
    DenyFolds,
    /// ... and is preferred to another line that is as close.
    DenyPreferred,
    /// The closest line for a folder denies its list.
    ListFolderDenies,
    /// The closest line for the name without the slash denies its list.
    ListNameDenies,
    /// An exact line for the name without the slash allows the list of the folder.
    ListNameAllows,
    /// ... but not where an exact line for the folder speaks.
    ListFolderFirst,
    /// A folder is listed, and nothing else.
    FolderOnlyListed,
    /// `sudo` is needed on protected paths.
    Sudo,
    /// A write of what does not exist needs `create`.
    Create,
    /// A write of what exists needs `update`.
    Update,
}

impl Clause {
    pub(crate) const ALL: [Self; 17] = [
        Self::FirstWildcard,
        Self::Star,
        Self::Pluses,
        Self::Length,
        Self::Text,
        Self::Union,
        Self::DenyBeats,
        Self::DenyFolds,
        Self::DenyPreferred,
        Self::ListFolderDenies,
        Self::ListNameDenies,
        Self::ListNameAllows,
        Self::ListFolderFirst,
        Self::FolderOnlyListed,
        Self::Sudo,
        Self::Create,
        Self::Update,
    ];
}

/// The evaluator, complete or with one clause left out.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Twin {
    pub(crate) without: Option<Clause>,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Word(&'static str),
    WriteExisting,
    WriteNew,
}

impl Twin {
    pub(crate) fn permits(self, lines: &[Line], path: &str, want: Want, sudo: bool) -> bool {
        let word = match want {
            Want::Word(word) => word,
            Want::WriteExisting if self.holds(Clause::Update) => "update",
            Want::WriteNew if self.holds(Clause::Create) => "create",
            Want::WriteExisting => "create",
            Want::WriteNew => "update",
        };
        if word != "list" && path.ends_with('/') && self.holds(Clause::FolderOnlyListed) {
            return false;
        }
        let says = if word == "list" { self.list(lines, path) } else { self.closest(lines, path).map(|(_, words)| words) };
        let Some(says) = says else { return false };
        if says.contains("deny") {
            return false;
        }
        says.contains(word) && (!sudo || !self.holds(Clause::Sudo) || says.contains("sudo"))
    }

    fn holds(self, clause: Clause) -> bool {
        self.without != Some(clause)
    }

    fn list(self, lines: &[Line], path: &str) -> Option<BTreeSet<&'static str>> {
        let name = path.trim_end_matches('/');
        let folder = format!("{name}/");
        let exact = |closest: &Option<(String, BTreeSet<&'static str>)>| {
            closest.as_ref().is_some_and(|(pattern, _)| first_wildcard(pattern).is_none())
        };
        let denies = |closest: &Option<(String, BTreeSet<&'static str>)>| closest.as_ref().is_some_and(|(_, words)| words.contains("deny"));
        let for_folder = self.closest(lines, &folder);
        let for_name = self.closest(lines, name);
        if self.holds(Clause::ListFolderDenies) && denies(&for_folder) {
            return None;
        }
        if self.holds(Clause::ListNameDenies) && denies(&for_name) {
            return None;
        }
        let chosen = if exact(&for_folder) && self.holds(Clause::ListFolderFirst) {
            for_folder
        } else if exact(&for_name) && self.holds(Clause::ListNameAllows) {
            for_name
        } else {
            for_folder
        };
        chosen.map(|(_, mut words)| {
            // what denies was seen above
            words.remove("deny");
            words
        })
    }

    /// The path of the closest line, and all that is said about this path.
    fn closest(self, lines: &[Line], path: &str) -> Option<(String, BTreeSet<&'static str>)> {
        // all lines about one path are one line
        let mut about: Vec<Line> = Vec::new();
        for line in lines {
            match about.iter_mut().find(|a| a.path == line.path) {
                Some(_) if !self.holds(Clause::Union) => {}
                Some(a) => a.words.extend(&line.words),
                None => about.push(line.clone()),
            }
        }
        for line in &mut about {
            if line.words.contains("deny") {
                if self.holds(Clause::DenyBeats) {
                    line.words = BTreeSet::from(["deny"]);
                } else if line.words.len() > 1 {
                    line.words.remove("deny");
                }
            }
        }
        let mut best: Option<(&Line, bool)> = None;
        for line in &about {
            let plain = matches(&line.path, path);
            let folded =
                self.holds(Clause::DenyFolds) && line.words.contains("deny") && matches(&line.path.to_lowercase(), &path.to_lowercase());
            if !plain && !folded {
                continue;
            }
            let new = (line, !plain);
            best = match best {
                Some(old) if self.compare(old, new) == Ordering::Greater => Some(old),
                _ => Some(new),
            };
        }
        best.map(|(line, _)| (line.path.clone(), line.words.clone()))
    }

    fn compare(self, (a, a_folded): (&Line, bool), (b, b_folded): (&Line, bool)) -> Ordering {
        let (a, b) = (&a.path, &b.path);
        let clause = |clause: Clause, order: Ordering| if self.holds(clause) { order } else { Ordering::Equal };
        // no wildcard at all is later than any place
        let place = |p: &str| first_wildcard(p).unwrap_or(usize::MAX);
        let length = |p: &str| if first_wildcard(p).is_none() { 0 } else { p.chars().count() };
        let pluses = |p: &str| p.trim_end_matches('*').split('/').filter(|s| *s == "+").count();
        clause(Clause::FirstWildcard, place(a).cmp(&place(b)))
            .then(clause(Clause::Star, b.ends_with('*').cmp(&a.ends_with('*'))))
            .then(clause(Clause::Pluses, pluses(b).cmp(&pluses(a))))
            .then(clause(Clause::Length, length(a).cmp(&length(b))))
            .then(clause(Clause::DenyPreferred, a_folded.cmp(&b_folded)))
            .then(clause(Clause::Text, a.cmp(b)))
            // left out means the other way round, for an order that is still total
            .then_with(|| b.cmp(a))
    }
}

/// In characters.
fn first_wildcard(pattern: &str) -> Option<usize> {
    let letters: Vec<char> = pattern.chars().collect();
    (0..letters.len()).find(|&i| {
        let starts = i == 0 || letters[i - 1] == '/';
        let ends = i + 1 == letters.len() || letters[i + 1] == '/' || (letters[i + 1] == '*' && i + 2 == letters.len());
        (letters[i] == '+' && starts && ends) || (letters[i] == '*' && i + 1 == letters.len())
    })
}

fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, open) = match pattern.strip_suffix('*') {
        Some(stem) => (stem, true),
        None => (pattern, false),
    };
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    if path.len() < pattern.len() || (path.len() > pattern.len() && !open) {
        return false;
    }
    (0..pattern.len()).all(|i| {
        let last = i + 1 == pattern.len();
        pattern[i] == "+" || pattern[i] == path[i] || (open && last && path[i].starts_with(pattern[i]))
    })
}
