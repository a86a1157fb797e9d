//! A set of policies, compiled.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::pattern::{Pattern, Specificity, fold};
use crate::{Capabilities, Capability, Policy, PolicyName};

/// What a distinct set of policies says, compiled once and shared.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    root: bool,
    exact: BTreeMap<Box<str>, Arc<Rule>>,
    /// Most specific first.
    wild: Vec<Arc<Rule>>,
    /// All that deny, in folded letters, most specific first.
    folded_denies: Vec<(Pattern, Arc<Rule>)>,
}

/// What all policies of a set say about one path.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pattern: Arc<Pattern>,
    capabilities: Capabilities,
    /// Who said what; by name.
    sources: BTreeMap<PolicyName, Capabilities>,
}

impl Rule {
    /// The path as written.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.pattern.text
    }

    /// What the policies together say; whoever denies is not outvoted, see [`Rule::denies`].
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Whether one of the policies denies.
    #[must_use]
    pub fn denies(&self) -> bool {
        self.capabilities.contains(Capability::Deny)
    }

    /// Which policies say `capability` here.
    pub fn policies(&self, capability: Capability) -> impl Iterator<Item = &PolicyName> {
        self.sources.iter().filter(move |(_, says)| says.contains(capability)).map(|(name, _)| name)
    }

    pub(crate) fn allows(&self, capability: Capability) -> bool {
        self.capabilities.contains(capability) && !self.denies()
    }

    pub(crate) fn is_exact(&self) -> bool {
        self.pattern.is_exact()
    }

    fn order(&self) -> (Specificity, &str) {
        (self.pattern.specificity, &self.pattern.text)
    }
}

impl Rules {
    /// Compiles a set. The order of policies, and of rules in them, changes nothing.
    pub fn compile<P: Borrow<Policy>>(policies: impl IntoIterator<Item = P>) -> Self {
        let mut merged: BTreeMap<Box<str>, Rule> = BTreeMap::new();
        for policy in policies {
            let policy = policy.borrow();
            for rule in policy.rules() {
                let pattern = &rule.pattern;
                let entry = merged.entry(pattern.text.clone()).or_insert_with(|| Rule {
                    pattern: Arc::clone(pattern),
                    capabilities: Capabilities::default(),
                    sources: BTreeMap::new(),
                });
                entry.capabilities = entry.capabilities.union(rule.capabilities);
                let says = entry.sources.entry(policy.name().clone()).or_default();
                *says = says.union(rule.capabilities);
            }
        }
        let mut rules = Self::default();
        for (text, rule) in merged {
            let rule = Arc::new(rule);
            if rule.denies() {
                rules.folded_denies.push((rule.pattern.folded(), Arc::clone(&rule)));
            }
            if rule.is_exact() {
                rules.exact.insert(text, rule);
            } else {
                rules.wild.push(rule);
            }
        }
        rules.wild.sort_by(|a, b| b.order().cmp(&a.order()));
        rules.folded_denies.sort_by(|(_, a), (_, b)| b.order().cmp(&a.order()));
        rules
    }

    /// The rules of the root policy: everything.
    #[must_use]
    pub fn root() -> Self {
        Self { root: true, ..Self::default() }
    }

    /// Whether these are the rules of the root policy.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.root
    }

    /// How many distinct rule paths there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.exact.len() + self.wild.len()
    }

    /// Whether no rule says anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether any rule allows anything in `folder`, and none that denies is closer. What may be listed about a mount to somebody who asks.
    #[must_use]
    pub fn touches(&self, folder: &base::CanonPath) -> bool {
        let allows = |rule: &Rule| !rule.denies() && rule.capabilities != Capabilities::default();
        let folder = folder.to_folder();
        // Deeper than any rule that denies can tell apart.
        let depth = self.folded_denies.iter().map(|(folded, _)| folded.text.split('/').count()).max().unwrap_or(0);
        let open = |rule: &Rule| {
            let mut samples = rule.pattern.samples(folder.as_str(), depth);
            samples.any(|path| self.top(&path).is_some_and(|top| allows(top)))
        };
        self.root || self.exact.values().chain(&self.wild).any(|rule| allows(rule) && open(rule))
    }

    /// The most specific rule about a path, exactly as spelled.
    ///
    /// A rule that denies also speaks about every path that differs only in the case of letters (security rule A-R4).
    /// Such a match is preferred to another that is equally specific.
    pub(crate) fn top(&self, path: &str) -> Option<&Arc<Rule>> {
        let plain = self.exact.get(path).or_else(|| self.wild.iter().find(|rule| rule.pattern.matches(path)));
        if self.folded_denies.is_empty() {
            return plain;
        }
        let folded_path = fold(path);
        let denier = self
            .folded_denies
            .iter()
            .filter(|(_, rule)| plain.is_none_or(|plain| rule.pattern.specificity >= plain.pattern.specificity))
            .find(|(folded, rule)| folded.matches(&folded_path) && !rule.pattern.matches(path))
            .map(|(_, rule)| rule);
        denier.or(plain)
    }
}
