//! The text of a policy.

use std::collections::BTreeSet;
use std::sync::Arc;

use hcl::{Position, Value};

use crate::pattern::{Pattern, PatternError};
use crate::{Capabilities, Capability, PolicyName};

/// Bytes of a policy's text at most.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// The text of the policy `default` until somebody writes another.
pub const DEFAULT_TEXT: &str = include_str!("default.hcl");

/// Keys that a later version reads. Until then a policy with one of them is refused: what it would have narrowed must not be wide.
const LATER: [&str; 12] = [
    "allowed_parameters",
    "denied_parameters",
    "required_parameters",
    "min_wrapping_ttl",
    "max_wrapping_ttl",
    "mfa_methods",
    "control_group",
    "expiration",
    "pagination_limit",
    "list_scan_response_keys_filter_path",
    "response_keys_filter_path",
    "subscribe_event_types",
];

/// A policy that has been read and understood to its last word.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    name: PolicyName,
    rules: Vec<PathRule>,
}

/// One `path` block.
#[derive(Clone, Debug, PartialEq)]
pub struct PathRule {
    pub(crate) pattern: Arc<Pattern>,
    pub(crate) capabilities: Capabilities,
}

impl PathRule {
    /// The path as written, without a leading slash.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.pattern.text
    }

    /// What it says.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
}

impl Policy {
    /// Reads HCL or JSON.
    ///
    /// # Errors
    /// [`PolicyError`]: anything not understood refuses the whole text.
    pub fn parse(name: PolicyName, text: &str) -> Result<Self, PolicyError> {
        let limits = hcl::Limits { bytes_max: TEXT_BYTES_MAX, ..hcl::Limits::default() };
        let body = hcl::parse_within(text, &limits)?;
        for item in &body.items {
            match (item.key.as_str(), &item.value) {
                ("path", _) => {}
                ("name", Value::Text(_)) if item.labels.is_empty() => {}
                ("name", _) => return Err(PolicyError::Type { position: item.position, field: "name", expected: "a string" }),
                _ => return Err(PolicyError::Key { position: item.position, known: "`name`, `path`" }),
            }
        }
        let mut rules: Vec<PathRule> = Vec::new();
        let mut seen = BTreeSet::new();
        for block in body.blocks("path")? {
            let rule = rule(block)?;
            if !seen.insert(rule.pattern.text.clone()) {
                return Err(PolicyError::Duplicate { position: block.position });
            }
            rules.push(rule);
        }
        Ok(Self { name, rules })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &PolicyName {
        &self.name
    }

    /// Its rules, in the order of the text.
    #[must_use]
    pub fn rules(&self) -> &[PathRule] {
        &self.rules
    }
}

fn rule(block: hcl::Block<'_>) -> Result<PathRule, PolicyError> {
    let pattern = Pattern::parse(block.label).map_err(|cause| PolicyError::Path { position: block.position, cause })?;
    let mut capabilities = Capabilities::default();
    for item in &block.body.items {
        let position = item.position;
        if let Some(field) = LATER.into_iter().find(|later| item.key == *later) {
            return Err(PolicyError::Later { position, field });
        }
        match (item.key.as_str(), &item.value) {
            _ if !item.labels.is_empty() => return Err(PolicyError::Key { position, known: KNOWN }),
            ("comment", Value::Text(_)) => {}
            ("comment", _) => return Err(PolicyError::Type { position, field: "comment", expected: "a string" }),
            ("policy", Value::Text(word)) => {
                capabilities = capabilities.union(legacy(word).ok_or(PolicyError::Legacy { position })?);
            }
            ("policy", _) => return Err(PolicyError::Type { position, field: "policy", expected: "a string" }),
            ("capabilities", Value::List(words)) => {
                for (nth, word) in (1..).zip(words) {
                    let Value::Text(word) = word else {
                        return Err(PolicyError::Type { position, field: "capabilities", expected: "a list of strings" });
                    };
                    capabilities.insert(Capability::parse(word).ok_or(PolicyError::Capability { position, nth })?);
                }
            }
            ("capabilities", _) => return Err(PolicyError::Type { position, field: "capabilities", expected: "a list of strings" }),
            _ => return Err(PolicyError::Key { position, known: KNOWN }),
        }
    }
    Ok(PathRule { pattern: Arc::new(pattern), capabilities })
}

/// The words of the time before capabilities.
fn legacy(word: &str) -> Option<Capabilities> {
    use Capability::{Create, Delete, Deny, List, Read, Sudo, Update};
    let all: &[Capability] = match word {
        "deny" => &[Deny],
        "read" => &[Read, List],
        "write" => &[Create, Read, Update, Delete, List],
        "sudo" => &[Create, Read, Update, Delete, List, Sudo],
        _ => return None,
    };
    Some(all.iter().copied().collect())
}

const KNOWN: &str = "`capabilities`, `policy`, `comment`";

/// Why a policy was refused, and where in its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not HCL or JSON.
    #[error("failed to parse policy: {0}")]
    Text(#[from] hcl::Error),
    /// A key that means nothing here.
    #[error("failed to parse policy: {position}: invalid key; known here: {known}")]
    Key {
        /// Where.
        position: Position,
        /// What could stand there.
        known: &'static str,
    },
    /// A key with a value of the wrong type.
    #[error("failed to parse policy: {position}: `{field}` must be {expected}")]
    Type {
        /// Where.
        position: Position,
        /// Which key.
        field: &'static str,
        /// What it takes.
        expected: &'static str,
    },
    /// A key that exists, but not here yet.
    #[error("failed to parse policy: {position}: `{field}` is not supported yet")]
    Later {
        /// Where.
        position: Position,
        /// Which key.
        field: &'static str,
    },
    /// A word that is no capability.
    #[error(
        "failed to parse policy: {position}: invalid capability (word {nth} of the list); known: `create`, `read`, `update`, `delete`, `list`, `patch`, `sudo`, `deny`"
    )]
    Capability {
        /// Where.
        position: Position,
        /// Which of its words, from 1. The word itself may be a secret and is not repeated.
        nth: usize,
    },
    /// A word that `policy` does not know.
    #[error("failed to parse policy: {position}: invalid policy; known: `deny`, `read`, `write`, `sudo`")]
    Legacy {
        /// Where.
        position: Position,
    },
    /// A path that an earlier block speaks about.
    #[error("failed to parse policy: {position}: the path has a block already; say all about it in one")]
    Duplicate {
        /// Where the later block starts.
        position: Position,
    },
    /// A path that cannot be used.
    #[error("failed to parse policy: {position}: invalid path: {cause}")]
    Path {
        /// Where.
        position: Position,
        /// Why.
        cause: PatternError,
    },
}
