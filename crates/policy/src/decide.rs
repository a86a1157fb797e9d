//! May this caller do this?

use std::borrow::Cow;
use std::sync::Arc;

use base::path::CanonPath;
use base::refusal::Refusal;

use crate::{Capability, PolicyName, Rule, Rules};

/// One thing that a request wants. A request may want several; all must be permitted.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Of what.
    pub path: &'a CanonPath,
    /// What.
    pub op: Op,
    /// Whether the path is a root-protected one: `sudo` is needed as well.
    pub sudo: bool,
}

impl<'a> Ask<'a> {
    /// An ask for an ordinary path.
    #[must_use]
    pub fn new(op: Op, path: &'a CanonPath) -> Self {
        Self { path, op, sudo: false }
    }

    /// The same for a root-protected path.
    #[must_use]
    pub fn protected(self) -> Self {
        Self { sudo: true, ..self }
    }
}

/// What is to be done with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Needs `read`.
    Read,
    /// Needs `list`, decided on the path with and without its slash.
    List,
    /// Needs `create` if the thing does not exist and `update` if it does.
    Write,
    /// Needs `update`: a write to something that has no existence to ask for.
    Update,
    /// Needs `patch`.
    Patch,
    /// Needs `delete`.
    Delete,
}

/// Decides. `exists` is asked at most once, last, and only where the rules tell `create` from `update`.
///
/// # Errors
/// [`Refused::Denied`] with the cause for the record, or what `exists` failed with.
pub fn decide<E>(rules: &Rules, asks: &[Ask<'_>], exists: &mut dyn FnMut() -> Result<bool, E>) -> Result<Permit, Refused<E>> {
    let Some(first) = asks.first() else {
        return Err(Denied { capability: Capability::Deny, cause: Cause::NoRule, rule: None }.into());
    };
    if rules.is_root() {
        let capability = need(first.op).unwrap_or(Capability::Update);
        return Ok(Permit { reasons: asks.iter().map(|_| Reason { grant: Grant::Root, capability }).collect() });
    }
    let mut reasons = Vec::with_capacity(asks.len());
    let mut undecided = Vec::new();
    for ask in asks {
        let rule = speaker(rules, ask)?;
        let mut grant = |capability| {
            if !rule.allows(capability) {
                return Err(Denied::lacks(rule, capability));
            }
            reasons.push(Reason { grant: Grant::Rule(Arc::clone(rule)), capability });
            Ok(())
        };
        match need(ask.op) {
            Some(capability) => grant(capability)?,
            None => match (rule.allows(Capability::Create), rule.allows(Capability::Update)) {
                (true, true) => {
                    grant(Capability::Create)?;
                    grant(Capability::Update)?;
                }
                (false, false) => return Err(Denied::lacks(rule, Capability::Update).into()),
                _ => undecided.push(rule),
            },
        }
        if ask.sudo {
            grant(Capability::Sudo)?;
        }
    }
    if !undecided.is_empty() {
        let capability = if exists().map_err(Refused::Exists)? { Capability::Update } else { Capability::Create };
        for rule in undecided {
            if !rule.allows(capability) {
                return Err(Denied::lacks(rule, capability).into());
            }
            reasons.push(Reason { grant: Grant::Rule(Arc::clone(rule)), capability });
        }
    }
    Ok(Permit { reasons })
}

/// What a caller may do with a path, by name; `deny` alone if nothing, `root` alone for the root policy.
/// Says exactly what [`decide`] would permit.
#[must_use]
pub fn capabilities(rules: &Rules, path: &CanonPath) -> Vec<Capability> {
    if rules.is_root() {
        return vec![Capability::Root];
    }
    let plain = if path.is_folder() { None } else { rules.top(path.as_str()) };
    let listed = speaker(rules, &Ask::new(Op::List, path)).is_ok_and(|rule| rule.allows(Capability::List));
    let found: Vec<_> = Capability::ALL
        .into_iter()
        .filter(|c| match c {
            Capability::Deny | Capability::Root => false,
            Capability::List => listed,
            other => plain.is_some_and(|rule| rule.allows(*other)),
        })
        .collect();
    if found.is_empty() { vec![Capability::Deny] } else { found }
}

/// What an operation needs, unless existence decides.
fn need(op: Op) -> Option<Capability> {
    match op {
        Op::Read => Some(Capability::Read),
        Op::List => Some(Capability::List),
        Op::Write => None,
        Op::Update => Some(Capability::Update),
        Op::Patch => Some(Capability::Patch),
        Op::Delete => Some(Capability::Delete),
    }
}

/// The one rule that speaks about an ask; it does not deny. A folder can only be listed: whatever else is asked of the name with a slash would
/// be asked of the name, about which other rules may speak.
///
/// LIST (security rule A-R4): either spelling's most specific rule may deny. Otherwise an exact rule for the folder speaks, then
/// an exact rule for the name without its slash, then the closest pattern for the folder.
fn speaker<'r>(rules: &'r Rules, ask: &Ask<'_>) -> Result<&'r Arc<Rule>, Denied> {
    let capability = need(ask.op).unwrap_or(Capability::Update);
    let none = || Denied { capability, cause: Cause::NoRule, rule: None };
    let checked = |rule: Option<&'r Arc<Rule>>| match rule {
        Some(rule) if rule.denies() => Err(Denied { capability, cause: Cause::Deny, rule: Some(Arc::clone(rule)) }),
        rule => Ok(rule),
    };
    if ask.op != Op::List {
        if ask.path.is_folder() {
            return Err(none());
        }
        return checked(rules.top(ask.path.as_str()))?.ok_or_else(none);
    }
    let folder = if ask.path.is_folder() { Cow::Borrowed(ask.path.as_str()) } else { Cow::Owned(format!("{}/", ask.path.as_str())) };
    let with_slash = checked(rules.top(&folder))?;
    let without = checked(rules.top(ask.path.trimmed()))?;
    match (with_slash, without) {
        (Some(rule), _) if rule.is_exact() => Ok(rule),
        (_, Some(rule)) if rule.is_exact() => Ok(rule),
        (rule, _) => rule.ok_or_else(none),
    }
}

/// The proof that a decision was made and was yes. Only this crate makes one; it cannot be copied.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    reasons: Vec<Reason>,
}

impl Permit {
    /// The permit of a route that anybody may call, such as a login. The caller states that the route table says so; `cargo xtask tidy` knows
    /// the one place that may.
    pub fn public_route() -> Self {
        Self { reasons: Vec::new() }
    }

    /// Why, for the record. Empty for a public route.
    #[must_use]
    pub fn reasons(&self) -> &[Reason] {
        &self.reasons
    }
}

/// One reason of a [`Permit`].
#[derive(Debug)]
pub struct Reason {
    grant: Grant,
    capability: Capability,
}

#[derive(Debug)]
enum Grant {
    Root,
    Rule(Arc<Rule>),
}

impl Reason {
    /// The capability that was needed.
    #[must_use]
    pub fn capability(&self) -> Capability {
        self.capability
    }

    /// The path of the rule; `*` for the root policy.
    #[must_use]
    pub fn rule(&self) -> &str {
        match &self.grant {
            Grant::Root => "*",
            Grant::Rule(rule) => rule.path(),
        }
    }

    /// The policies whose rule grants it.
    #[must_use]
    pub fn policies(&self) -> Vec<PolicyName> {
        match &self.grant {
            Grant::Root => vec![PolicyName::root()],
            Grant::Rule(rule) => rule.policies(self.capability).cloned().collect(),
        }
    }
}

/// The rules say no. The caller only reads `permission denied`; the rest is for the record.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("permission denied")]
pub struct Denied {
    capability: Capability,
    cause: Cause,
    rule: Option<Arc<Rule>>,
}

/// Why the rules say no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The most specific rule denies.
    Deny,
    /// The most specific rule does not have the capability.
    Lacks,
    /// No rule speaks about the path.
    NoRule,
}

impl Denied {
    fn lacks(rule: &Arc<Rule>, capability: Capability) -> Self {
        Self { capability, cause: Cause::Lacks, rule: Some(Arc::clone(rule)) }
    }

    /// The capability that was needed.
    #[must_use]
    pub fn capability(&self) -> Capability {
        self.capability
    }

    /// Why.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// The rule that decided, if one spoke.
    #[must_use]
    pub fn rule(&self) -> Option<&str> {
        self.rule.as_deref().map(Rule::path)
    }

    /// The policies that deny.
    #[must_use]
    pub fn policies(&self) -> Vec<PolicyName> {
        match (&self.rule, self.cause) {
            (Some(rule), Cause::Deny) => rule.policies(Capability::Deny).cloned().collect(),
            _ => Vec::new(),
        }
    }
}

impl From<Denied> for Refusal {
    fn from(_: Denied) -> Self {
        Refusal::denied()
    }
}

/// No permit.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused<E> {
    /// The rules say no.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Whether the thing exists could not be told.
    #[error("could not tell whether the thing exists")]
    Exists(E),
}

impl From<Refused<Refusal>> for Refusal {
    fn from(refused: Refused<Refusal>) -> Self {
        match refused {
            Refused::Denied(denied) => denied.into(),
            Refused::Exists(refusal) => refusal,
        }
    }
}
