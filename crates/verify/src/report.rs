//! What was found, for people and for programs.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use tlog::export::TreeName;

/// Most findings that are listed; the first of a kind tells enough.
const LISTED_MAX: usize = 50;

/// The answer, in order of gravity: the gravest finding decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Everything that was checked holds.
    Intact,
    /// Something is missing, or shorter than it is known to have been.
    Incomplete,
    /// It is not signed by a key to believe.
    NotTrusted,
    /// Something is not what was recorded.
    Tampered,
}

impl Verdict {
    /// Exit code of the command.
    pub fn exit_code(self) -> u8 {
        match self {
            Verdict::Intact => 0,
            Verdict::Tampered => 1,
            Verdict::Incomplete => 2,
            Verdict::NotTrusted => 3,
        }
    }

    /// The word in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Intact => "intact",
            Verdict::Tampered => "tampered",
            Verdict::Incomplete => "incomplete",
            Verdict::NotTrusted => "not trusted",
        }
    }
}

/// One thing that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How grave it is.
    pub verdict: Verdict,
    /// Where.
    pub tree: Option<TreeName>,
    /// The entry; when only a range is known, its beginning.
    pub index: Option<u64>,
    /// What.
    pub message: String,
}

impl Finding {
    pub(crate) fn new(verdict: Verdict, tree: Option<TreeName>, index: Option<u64>, message: String) -> Finding {
        Finding { verdict, tree, index, message }
    }

    fn to_json(&self) -> Value {
        json!({
            "verdict": self.verdict.as_str(), "tree": self.tree.map(TreeName::as_str), "index": self.index, "message": self.message,
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.verdict.as_str())?;
        if let Some(tree) = self.tree {
            write!(f, ": {tree} tree")?;
        }
        if let Some(index) = self.index {
            write!(f, ", entry {index}")?;
        }
        write!(f, ": {}", plain(&self.message))
    }
}

/// Origins, file names and parts of entries come from the directory: they must not move the cursor of a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// What a tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its origin.
    pub origin: String,
    /// Its size by its checkpoint.
    pub size: u64,
    /// Its root by its checkpoint, in hexadecimal.
    pub root: String,
    /// Entries that were read and hashed.
    pub checked: u64,
}

/// The whole answer.
#[derive(Debug, Clone)]
pub struct Report {
    /// The gravest finding, or intact.
    pub verdict: Verdict,
    /// The finding that decided: among the gravest, the first entry of the first tree.
    pub decisive: Option<Finding>,
    /// Everything found, gravest first.
    pub findings: Vec<Finding>,
    /// The trees whose checkpoints could be read.
    pub trees: BTreeMap<TreeName, Summary>,
    /// Whether the keys came from the directory itself.
    pub keys_from_export: bool,
}

impl Report {
    pub(crate) fn new(mut findings: Vec<Finding>, trees: BTreeMap<TreeName, Summary>, keys_from_export: bool) -> Report {
        // an entry that is named tells more than a tree as a whole
        let order = |finding: &Finding| {
            (std::cmp::Reverse(finding.verdict), finding.index.is_none(), finding.tree, finding.index.unwrap_or(u64::MAX))
        };
        findings.sort_by_key(order);
        findings.truncate(LISTED_MAX);
        let decisive = findings.first().cloned();
        let verdict = decisive.as_ref().map_or(Verdict::Intact, |finding| finding.verdict);
        Report { verdict, decisive, findings, trees, keys_from_export }
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let trees: serde_json::Map<String, Value> = self
            .trees
            .iter()
            .map(|(name, tree)| {
                let tree = json!({"origin": tree.origin, "size": tree.size, "root": tree.root, "checked": tree.checked});
                (name.as_str().to_owned(), tree)
            })
            .collect();
        json!({
            "verdict": self.verdict.as_str(), "exit": self.verdict.exit_code(),
            "tree": self.decisive.as_ref().and_then(|finding| finding.tree).map(TreeName::as_str),
            "index": self.decisive.as_ref().and_then(|finding| finding.index),
            "message": self.decisive.as_ref().map(|finding| &finding.message),
            "entries": self.trees.values().map(|tree| tree.checked).sum::<u64>(),
            "keys": if self.keys_from_export { "export" } else { "given" },
            "trees": trees,
            "findings": self.findings.iter().map(Finding::to_json).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.verdict.as_str())?;
        for (name, tree) in &self.trees {
            let Summary { origin, size, root, checked } = tree;
            writeln!(f, "  {name}: {checked} of {size} entries checked, origin {}, root {root}", plain(origin))?;
        }
        for finding in &self.findings {
            writeln!(f, "  {finding}")?;
        }
        if self.keys_from_export {
            writeln!(f, "  the keys came from the export itself: it agrees with itself, which says nothing about who made it; give --key")?;
        }
        Ok(())
    }
}
