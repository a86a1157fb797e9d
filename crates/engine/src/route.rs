//! Routes are a table: one static value feeds router, decision, validation and audit record.

use base::{CanonPath, Refusal};
use policy::{Op as Need, Permit};

use crate::answer::Answer;
use crate::call::{Captures, Cx};

/// What is done to a path. External operations only: nothing internal can be named by a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// GET.
    Read,
    /// LIST, or GET with `list=true`.
    List,
    /// POST or PUT: create or update, told apart by [`Route::exists`].
    Write,
    /// PATCH with `application/merge-patch+json`.
    Patch,
    /// DELETE.
    Delete,
}

impl Op {
    /// The word in the audit record.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::List => "list",
            Self::Write => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A valid token whose policies allow the path.
    Policy,
    /// The same, and the `sudo` capability.
    Sudo,
    /// Anyone, without a token (logins, health).
    Anonymous,
    /// The same, but the handler is told of a valid token and may show more for it. Only where Vault does so (`sys/internal/ui/mounts`).
    Optional,
    /// Any valid token; the handler decides what it shows. Only where Vault does so (`sys/internal/ui/mounts/:path`).
    Token,
}

/// The type a field is read as. Clients send everything loosely: numbers and booleans as strings, lists as comma-separated text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// Text.
    Text,
    /// A whole number, or text that is one.
    Int,
    /// A boolean, or text that is one.
    Bool,
    /// Seconds as a number, or Go's duration grammar.
    Duration,
    /// An array of text, or comma-separated text.
    List,
    /// An object of text values.
    Map,
    /// Any JSON.
    Any,
}

/// One field of a request body or query.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name on the wire.
    pub name: &'static str,
    /// How it is read.
    pub kind: FieldKind,
    /// Whether its value may stand in clear in the audit record. Off unless said otherwise.
    pub public: bool,
    /// One sentence for help.
    pub help: &'static str,
}

impl Field {
    /// A field whose value is only recorded as a keyed hash.
    #[must_use]
    pub const fn new(name: &'static str, kind: FieldKind, help: &'static str) -> Self {
        Self { name, kind, public: false, help }
    }

    /// A field whose value may stand in the audit record: names, versions, durations; never credentials.
    #[must_use]
    pub const fn public(name: &'static str, kind: FieldKind, help: &'static str) -> Self {
        Self { name, kind, public: true, help }
    }
}

/// What a route says of itself.
#[derive(Debug)]
pub struct Meta {
    /// Segments below the mount, joined by slashes: literal, `:name` for one segment, and as the last one `:name*` for one or more,
    /// `:name**` for none or more. The empty pattern is the mount itself.
    pub pattern: &'static str,
    /// The operation.
    pub op: Op,
    /// Who may call it.
    pub access: Access,
    /// The fields it reads. Unknown fields get a warning, or a refusal where `strict`.
    pub fields: &'static [Field],
    /// Refuse unknown fields instead of warning: on security objects (policies, roles, targets).
    pub strict: bool,
    /// Whether the handler is given the text of the caller's token, as the field `token`. No other handler sees it.
    pub sees_token: bool,
    /// One sentence for help.
    pub help: &'static str,
}

/// Tells whether the thing that is written exists.
pub type Exists<E> = fn(&E, &mut Cx<'_>) -> Result<bool, Refusal>;
/// Names further paths that must be permitted.
pub type Also<E> = fn(&E, &mut Cx<'_>) -> Result<Vec<(Need, CanonPath)>, Refusal>;
/// Handles the request.
pub type Handle<E> = fn(&E, &mut Cx<'_>, Permit) -> Result<Answer, Refusal>;

/// One route of an engine. `E` is the engine.
pub struct Route<E: 'static> {
    /// What it says of itself.
    pub meta: Meta,
    /// Whether the thing exists: asked only where the caller's rules tell create from update. A write without it is an update.
    pub exists: Option<Exists<E>>,
    /// Paths besides the request's own that must be permitted too (a watch needs `read` on each secret it names).
    pub also: Option<Also<E>>,
    /// The handler. Cannot run without a [`Permit`].
    pub handle: Handle<E>,
}

impl<E> Route<E> {
    /// A route for holders of a token whose policies allow it.
    pub const fn new(op: Op, pattern: &'static str, fields: &'static [Field], help: &'static str, handle: Handle<E>) -> Self {
        let meta = Meta { pattern, op, access: Access::Policy, fields, strict: false, sees_token: false, help };
        Self { meta, exists: None, also: None, handle }
    }

    /// Changes who may call it.
    #[must_use]
    pub const fn access(mut self, access: Access) -> Self {
        self.meta.access = access;
        self
    }

    /// Refuses unknown fields.
    #[must_use]
    pub const fn strict(mut self) -> Self {
        self.meta.strict = true;
        self
    }

    /// Gives the handler the text of the caller's token. Only where Vault shows a token to itself (`auth/token/lookup-self`, `renew-self`).
    #[must_use]
    pub const fn sees_token(mut self) -> Self {
        self.meta.sees_token = true;
        self
    }

    /// Tells create from update.
    #[must_use]
    pub const fn exists(mut self, exists: Exists<E>) -> Self {
        self.exists = Some(exists);
        self
    }

    /// Demands further permissions.
    #[must_use]
    pub const fn also(mut self, also: Also<E>) -> Self {
        self.also = Some(also);
        self
    }
}

/// Where a path leads within one engine.
#[derive(Debug)]
pub enum Routed {
    /// To the route with this index.
    To(usize, Captures),
    /// The pattern is known, the operation is not.
    Unsupported,
    /// No pattern matches.
    Unknown,
}

/// Finds the route for `op` on `path` (below the mount; nothing for the mount itself). The most literal pattern wins.
#[must_use]
pub fn find(metas: &[&'static Meta], op: Op, path: Option<&CanonPath>) -> Routed {
    let mut known = false;
    let mut best: Option<(usize, usize, Captures)> = None;
    for (index, meta) in metas.iter().enumerate() {
        let Some((literal, captures)) = capture(meta.pattern, path) else { continue };
        if meta.op != op {
            known = true;
            continue;
        }
        if best.as_ref().is_none_or(|(l, _, _)| literal > *l) {
            best = Some((literal, index, captures));
        }
    }
    match best {
        Some((_, index, captures)) => Routed::To(index, captures),
        None if known => Routed::Unsupported,
        None => Routed::Unknown,
    }
}

/// The captures, and how many segments were literal.
fn capture(pattern: &'static str, path: Option<&CanonPath>) -> Option<(usize, Captures)> {
    let segments: Vec<&str> = path.map(|p| p.segments().collect()).unwrap_or_default();
    let mut rest = segments.as_slice();
    let mut captures = Captures::default();
    let mut literal = 0;
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let Some(name) = part.strip_prefix(':') else {
            let (first, tail) = rest.split_first()?;
            if *first != part {
                return None;
            }
            literal += 1;
            rest = tail;
            continue;
        };
        if let Some(name) = name.strip_suffix("**") {
            captures.set(name, rest.join("/"));
            rest = &[];
        } else if let Some(name) = name.strip_suffix('*') {
            if rest.is_empty() {
                return None;
            }
            captures.set(name, rest.join("/"));
            rest = &[];
        } else {
            let (first, tail) = rest.split_first()?;
            captures.set(name, (*first).to_owned());
            rest = tail;
        }
    }
    rest.is_empty().then_some((literal, captures))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn meta(op: Op, pattern: &'static str) -> Meta {
        Meta { pattern, op, access: Access::Policy, fields: &[], strict: false, sees_token: false, help: "" }
    }

    static DATA_READ: Meta = meta(Op::Read, "data/:path*");
    static DATA_WRITE: Meta = meta(Op::Write, "data/:path*");
    static LIST: Meta = meta(Op::List, "metadata/:path**");
    static ROLE: Meta = meta(Op::Read, "role/:name");
    static ROLE_ID: Meta = meta(Op::Read, "role/:name/role-id");
    static TUNE: Meta = meta(Op::Read, ":path*");

    fn check(op: Op, path: &str, expect: &str) {
        let metas = [&DATA_READ, &DATA_WRITE, &LIST, &ROLE, &ROLE_ID];
        let path = CanonPath::parse(path).ok();
        let found = match find(&metas, op, path.as_ref()) {
            Routed::To(index, captures) => format!("{} {captures:?}", metas[index].pattern),
            Routed::Unsupported => "unsupported".into(),
            Routed::Unknown => "unknown".into(),
        };
        assert!(found.contains(expect), "{op:?} {path:?}: {found}");
    }

    #[test]
    fn rows() {
        check(Op::Read, "data/a/b", "a/b");
        check(Op::Read, "data", "unknown");
        check(Op::Delete, "data/a", "unsupported");
        check(Op::List, "metadata/", "metadata/:path**");
        check(Op::List, "metadata/a/", "\"a\"");
        check(Op::Read, "role/x", "\"x\"");
        check(Op::Read, "role/x/role-id", "role-id");
        check(Op::Read, "role/x/secret", "unknown");
    }

    #[test]
    fn the_most_literal_wins_in_any_order() {
        let path = CanonPath::parse("role/x").ok();
        for metas in [[&TUNE, &ROLE], [&ROLE, &TUNE]] {
            let Routed::To(index, _) = find(&metas, Op::Read, path.as_ref()) else { panic!("not found") };
            assert_eq!(metas[index].pattern, "role/:name");
        }
    }
}
