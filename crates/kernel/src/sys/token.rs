//! `auth/token/`: making, looking at, renewing and revoking tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{Refusal, SecretString, Timestamp};
use engine::{Access, Answer, Body, Call, Cx, Duty, Engine, Field, FieldKind, NewDuty, Op, Outcome, Owner, Permit, Route, Work, duty};
use policy::PolicyName;
use serde_json::{Map, Value, json};
use store::Tx;

use crate::identities::{self, Origin};
use crate::tokens::{self, Token};
use crate::{Shared, policies, reply};

/// The engine that answers `auth/token/`, and owes the end of every token.
pub struct Tokens(pub(crate) Arc<Shared>);

/// Members, bytes of a name and bytes of a text of `meta`.
const META_MAX: usize = 64;
const META_NAME_BYTES_MAX: usize = 128;
const META_TEXT_BYTES_MAX: usize = 512;
/// Bytes of a display name.
const DISPLAY_NAME_BYTES_MAX: usize = 256;
/// Accessors of one list.
const LISTED_MAX: usize = 10_000;

const NO: &[Field] = &[];
const CREATE: &[Field] = &[
    Field::new("id", FieldKind::Text, "the token itself; needs sudo"),
    Field::public("policies", FieldKind::List, "policies of the token, a subset of the caller's"),
    Field::public("meta", FieldKind::Map, "metadata"),
    Field::public("no_parent", FieldKind::Bool, "make an orphan; needs sudo"),
    Field::public("no_default_policy", FieldKind::Bool, "leave out `default`"),
    Field::public("renewable", FieldKind::Bool, "whether it can be renewed"),
    Field::public("ttl", FieldKind::Duration, "time to live"),
    Field::public("lease", FieldKind::Duration, "an older name of `ttl`"),
    Field::public("explicit_max_ttl", FieldKind::Duration, "no renewal goes beyond this"),
    Field::public("display_name", FieldKind::Text, "shown in records"),
    Field::public("num_uses", FieldKind::Int, "uses; 0 for no limit"),
    Field::public("period", FieldKind::Duration, "each renewal sets this time to live; needs sudo"),
    Field::public("type", FieldKind::Text, "`service`"),
];
const TOKEN: &[Field] = &[Field::new("token", FieldKind::Text, "the token"), INCREMENT];
const ACCESSOR: &[Field] = &[Field::new("accessor", FieldKind::Text, "the token's accessor"), INCREMENT];
const SELF: &[Field] = &[INCREMENT, Field::new("token", FieldKind::Text, "ignored: the caller's own is meant")];
const PAGE: &[Field] = &[
    Field::public("after", FieldKind::Text, "the last accessor of the page before"),
    Field::public("limit", FieldKind::Int, "accessors of one page"),
];
const INCREMENT: Field = Field::public("increment", FieldKind::Duration, "the time to live that is wished for");

static ROUTES: &[Route<Tokens>] = &[
    Route::new(Op::Write, "create", CREATE, "make a child token", create),
    Route::new(Op::Write, "create-orphan", CREATE, "make a token without a parent", create_orphan).access(Access::Sudo),
    Route::new(Op::Read, "lookup-self", NO, "the caller's token", lookup_self).sees_token(),
    Route::new(Op::Write, "lookup-self", SELF, "the caller's token", lookup_self).sees_token(),
    Route::new(Op::Write, "lookup", TOKEN, "a token", lookup),
    Route::new(Op::Write, "lookup-accessor", ACCESSOR, "the token of an accessor", lookup_accessor),
    Route::new(Op::Write, "renew-self", SELF, "renew the caller's token", renew_self).sees_token(),
    Route::new(Op::Write, "renew", TOKEN, "renew a token", renew),
    Route::new(Op::Write, "renew-accessor", ACCESSOR, "renew the token of an accessor", renew_accessor),
    Route::new(Op::Write, "revoke-self", SELF, "revoke the caller's token and all below it", revoke_self),
    Route::new(Op::Write, "revoke", TOKEN, "revoke a token and all below it", revoke),
    Route::new(Op::Write, "revoke-orphan", TOKEN, "revoke a token, not those below it", revoke_orphan).access(Access::Sudo),
    Route::new(Op::Write, "revoke-accessor", ACCESSOR, "revoke the token of an accessor and all below it", revoke_accessor),
    Route::new(Op::List, "accessors", PAGE, "the accessors of all tokens", list_accessors).access(Access::Sudo),
];

impl Engine for Tokens {
    const KIND: &'static str = "token";

    fn routes() -> &'static [Route<Self>] {
        ROUTES
    }
}

fn create(tokens: &Tokens, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let orphan = cx.call.body.bool("no_parent")?.unwrap_or(false);
    make(tokens, cx, orphan)
}

fn create_orphan(tokens: &Tokens, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    make(tokens, cx, true)
}

/// Makes a child of the caller's token: what it may do, how long it lives, then who it is.
fn make(tokens: &Tokens, cx: &mut Cx<'_>, orphan: bool) -> Result<Answer, Refusal> {
    let (call, rng, now) = (cx.call, cx.host.rng(), cx.now());
    let body = &call.body;
    let maker = Maker::of(tokens, cx)?;
    let period = body.lifetime("period")?.unwrap_or_default();
    maker.check_privileges(call, orphan, period)?;
    if !orphan && maker.ancestors >= tokens::ANCESTORS_MAX {
        return Err(Refusal::invalid(format!("a token has at most {} ancestors: make an orphan", tokens::ANCESTORS_MAX)));
    }
    if body.text("type")?.is_some_and(|t| !matches!(t.as_str(), "service" | "default" | "")) {
        return Err(Refusal::invalid("field `type`: only `service` tokens are made"));
    }
    let policies = maker.policies(body)?;
    let unknown = unknown(cx.tx, &policies)?;
    let life = Life::of(body, period, has(&policies, "root"), tokens.0.lifetimes)?;
    if maker.ends && life.ttl.is_zero() {
        return Err(Refusal::invalid("expiring root tokens cannot create non-expiring root tokens"));
    }
    let display = body.text("display_name")?.filter(|n| !n.is_empty()).map_or_else(|| "token".to_owned(), |n| format!("token-{n}"));
    if display.len() > DISPLAY_NAME_BYTES_MAX {
        return Err(Refusal::invalid(format!("field `display_name`: more than {DISPLAY_NAME_BYTES_MAX} bytes with `token-`")));
    }
    let accessor = base::id::base62(rng, 24)?;
    let token = Token {
        principal: format!("token/{}", base::id::base62(rng, 12)?),
        accessor,
        parent_accessor: if orphan { String::new() } else { maker.accessor },
        parent: (!orphan).then_some(maker.hash),
        epoch: 0,
        made_by: if orphan { maker.origins } else { Vec::new() },
        display_name: display,
        policies,
        meta: meta(body)?,
        path: "auth/token/create".into(),
        created: now,
        creation_ttl: life.ttl,
        expires: (!life.ttl.is_zero()).then(|| now.after(life.ttl)),
        expires_at_most: life.is_bounded().then(|| now.after(life.max)),
        explicit_max_ttl: life.explicit,
        period,
        renewable: body.bool("renewable")?.unwrap_or(true) && !life.ttl.is_zero(),
        uses: body.int("num_uses")?.filter(|n| *n > 0),
        renewed: None,
        mount: None,
    };
    let text = match body.text("id")?.filter(|id| !id.is_empty()) {
        Some(id) => chosen(cx.tx, id)?,
        None => tokens::fresh(rng)?,
    };
    for warning in life.warning().into_iter().chain(unknown) {
        cx.warn(warning);
    }
    let hash = tokens::insert(cx.tx, &text, &token)?;
    owe_expiry(cx.tx, &hash, &token)?;
    // Whoever looks at the log for what an identity did finds what its tokens made.
    cx.note("made", &token.principal);
    Ok(Answer::Auth(Box::new(reply::auth_of(text.expose(), &token, now))))
}

/// Who makes a token, and by what right.
struct Maker {
    hash: String,
    accessor: String,
    /// How many tokens it hangs on itself.
    ancestors: usize,
    /// What an orphan of it comes from.
    origins: Vec<Origin>,
    policies: Vec<String>,
    root: bool,
    /// Whether its own life has an end.
    ends: bool,
    /// Whether it may go beyond its own policies.
    sudo: bool,
}

impl Maker {
    fn of(tokens: &Tokens, cx: &mut Cx<'_>) -> Result<Self, Refusal> {
        let caller = cx.call.caller()?;
        let hash = tokens::hex(&caller.token_hash);
        let token = tokens::find(cx.tx, &hash)?.ok_or_else(Refusal::bad_token)?;
        if token.uses.is_some() {
            return Err(Refusal::invalid("restricted use token cannot generate child tokens"));
        }
        let ancestors = tokens::ancestors(cx.tx, &token)?.ok_or_else(Refusal::bad_token)?;
        let rules = tokens.0.policies.rules(cx.tx, &caller.policies)?;
        let sudo = caller.root || policy::capabilities(&rules, &create_path()?).contains(&engine::Capability::Sudo);
        Ok(Self {
            hash,
            ancestors: ancestors.len(),
            origins: tokens::makers(&token, &ancestors),
            accessor: token.accessor,
            policies: token.policies,
            root: caller.root,
            ends: token.expires.is_some(),
            sudo,
        })
    }

    /// Refuses the fields that need sudo to those without it.
    fn check_privileges(&self, call: &Call, orphan: bool, period: Duration) -> Result<(), Refusal> {
        // Who came by `create-orphan` has shown there that it has sudo.
        let orphan = orphan && call.path.as_ref().is_none_or(|path| path.trimmed() != "create-orphan");
        for (name, wanted) in [("no_parent", orphan), ("id", call.body.has("id")), ("period", !period.is_zero())] {
            if wanted && !self.sudo {
                return Err(Refusal::invalid(format!("root or sudo privileges required to use `{name}`")));
            }
        }
        Ok(())
    }

    /// The policies of the new token: those asked for, as far as they may be given, else the maker's own.
    fn policies(&self, body: &Body) -> Result<Vec<String>, Refusal> {
        let wanted = body.list("policies")?;
        let no_default = body.bool("no_default_policy")?.unwrap_or(false);
        let owns_default = has(&self.policies, "default");
        let names = match wanted {
            None => tokens::policy_set(&self.policies, !no_default && (self.root || owns_default)),
            Some(names) => {
                for name in names.iter().filter(|n| !n.eq_ignore_ascii_case("root")) {
                    PolicyName::parse(name).map_err(|e| Refusal::invalid(format!("field `policies`: {e}")))?;
                }
                tokens::policy_set(&names, !no_default && (self.sudo || owns_default))
            }
        };
        if has(&names, "root") && !self.root {
            return Err(Refusal::invalid("root tokens may only be created by root"));
        }
        if !self.sudo && !names.iter().all(|n| has(&self.policies, n)) {
            return Err(Refusal::invalid("child policies must be subset of parent"));
        }
        Ok(names)
    }
}

/// A warning for each policy that a token names and that is not there (yet).
fn unknown(tx: &mut Tx, names: &[String]) -> Result<Vec<String>, Refusal> {
    let mut warnings = Vec::new();
    for name in names.iter().filter(|n| *n != "root") {
        if let Ok(parsed) = PolicyName::parse(name)
            && policies::text(tx, &parsed)?.is_none()
        {
            warnings.push(format!("Policy \"{name}\" does not exist"));
        }
    }
    Ok(warnings)
}

/// How long a new token lives.
struct Life {
    /// Zero when nothing was asked for.
    asked: Duration,
    /// Zero for a root token without an end.
    ttl: Duration,
    /// The longest life by renewal.
    max: Duration,
    explicit: Duration,
    period: Duration,
}

impl Life {
    fn of(body: &Body, period: Duration, root: bool, limits: tokens::Lifetimes) -> Result<Self, Refusal> {
        let explicit = body.lifetime("explicit_max_ttl")?.unwrap_or_default();
        let asked = match body.lifetime("ttl")? {
            Some(ttl) => ttl,
            None => body.lifetime("lease")?.unwrap_or_default(),
        };
        let max = if explicit.is_zero() { limits.max } else { explicit.min(limits.max) };
        let ttl = match (period.is_zero(), asked.is_zero()) {
            (false, _) => period.min(max),
            (true, false) => asked.min(max),
            (true, true) if root && explicit.is_zero() => Duration::ZERO,
            (true, true) if root => max,
            (true, true) => limits.default.min(max),
        };
        Ok(Self { asked, ttl, max, explicit, period })
    }

    /// Whether renewals come to an end: not those of a periodic token without `explicit_max_ttl`.
    fn is_bounded(&self) -> bool {
        !self.ttl.is_zero() && (self.period.is_zero() || !self.explicit.is_zero())
    }

    /// Said when less is given than was asked for.
    fn warning(&self) -> Option<String> {
        let (asked, max) = (self.asked.as_secs(), self.max.as_secs());
        let capped = !self.asked.is_zero() && self.asked > self.ttl && self.period.is_zero();
        capped.then(|| format!("TTL of \"{asked}s\" exceeded the effective max_ttl of \"{max}s\"; TTL value is capped accordingly"))
    }
}

/// The metadata of a new token: it is read at each of its uses, so it is small.
fn meta(body: &Body) -> Result<BTreeMap<String, String>, Refusal> {
    let meta = body.map("meta")?.unwrap_or_default();
    let fits =
        |(name, text): (&String, &String)| !name.is_empty() && name.len() <= META_NAME_BYTES_MAX && text.len() <= META_TEXT_BYTES_MAX;
    if meta.len() > META_MAX || !meta.iter().all(fits) {
        return Err(Refusal::invalid(format!(
            "field `meta`: at most {META_MAX} texts of up to {META_TEXT_BYTES_MAX} bytes, with names of 1 to {META_NAME_BYTES_MAX} bytes"
        )));
    }
    Ok(meta)
}

/// The path whose `sudo` capability stands for more than the caller's own policies.
fn create_path() -> Result<base::CanonPath, Refusal> {
    base::CanonPath::from_plain("auth/token/create").map_err(|e| Refusal::internal(e.to_string()))
}

/// A token whose text the caller chose: no reserved prefix, no dot, not in use.
fn chosen(tx: &mut Tx, id: String) -> Result<SecretString, Refusal> {
    if id.contains('.') || id.starts_with("hvs") || id.starts_with("s.") || !id.bytes().all(|b| b.is_ascii_graphic()) || id.len() > 512 {
        return Err(Refusal::invalid("field `id`: up to 512 visible ASCII characters, without `.` and without a reserved prefix"));
    }
    let hash = tokens::hex(&tokens::hash(&id));
    if tokens::find(tx, &hash)?.is_some() {
        return Err(Refusal::invalid("field `id`: cannot create a token with a duplicate ID"));
    }
    // What is left of a dead one under this text hangs on the dead one, not on the new.
    tokens::revoke(tx, &hash)?;
    Ok(SecretString::new(id))
}

fn has(names: &[String], name: &str) -> bool {
    names.iter().any(|n| n == name)
}

fn lookup_self(_: &Tokens, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let hash = cx.call.caller()?.token_hash;
    let token = tokens::find(cx.tx, &tokens::hex(&hash))?.ok_or_else(Refusal::bad_token)?;
    let text = cx.call.body.text("token")?.filter(|text| tokens::hash(text) == hash);
    Answer::data(&show(&token, cx.now(), text.as_deref()))
}

fn lookup(_: &Tokens, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let text = cx.call.body.need_text("token")?;
    let token = tokens::find(cx.tx, &tokens::hex(&tokens::hash(&text)))?.ok_or_else(|| Refusal::forbidden("bad token"))?;
    Answer::data(&show(&token, cx.now(), Some(&text)))
}

fn lookup_accessor(_: &Tokens, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (_, token) = of_accessor(cx)?;
    Answer::data(&show(&token, cx.now(), Some("")))
}

fn of_accessor(cx: &mut Cx<'_>) -> Result<(String, Token), Refusal> {
    let accessor = cx.call.body.need_text("accessor")?;
    tokens::by_accessor(cx.tx, &accessor)?.ok_or_else(|| Refusal::invalid("invalid accessor"))
}

/// The accessors of living tokens, with whose they are.
fn list_accessors(_: &Tokens, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let limit = cx.call.body.int("limit")?.filter(|limit| *limit > 0);
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).map_or(LISTED_MAX, |limit| limit.min(LISTED_MAX));
    let after = cx.call.body.text("after")?.filter(|after| !after.is_empty());
    let mut stored = cx.tx.list(&tokens::accessors(), after.as_deref(), limit.saturating_add(1))?;
    if stored.len() > limit {
        stored.truncate(limit);
        cx.warn(format!(
            "only the first {limit} accessors were looked at; ask again with `after={}`",
            stored.last().map_or("", |last| last)
        ));
    }
    let (mut keys, mut info) = (Vec::new(), Map::new());
    for accessor in stored {
        // What has ended and was not removed yet is not listed.
        let Some((_, token)) = tokens::by_accessor(cx.tx, &accessor)? else { continue };
        let about = json!({
            "principal": token.principal, "display_name": token.display_name, "policies": token.policies,
            "creation_time": token.created.unix_seconds(), "expire_time": token.expires.map(Timestamp::rfc3339),
        });
        info.insert(accessor.clone(), about);
        keys.push(accessor);
    }
    Answer::data(&json!({ "keys": keys, "key_info": info }))
}

/// A token as lookups show it. `id` is what was presented: the store keeps no text.
fn show(token: &Token, now: Timestamp, id: Option<&str>) -> Map<String, Value> {
    let mut data = Map::new();
    let mut set = |name: &str, value: Value| data.insert(name.to_owned(), value);
    if let Some(id) = id {
        set("id", id.into());
    }
    set("accessor", token.accessor.as_str().into());
    set("policies", token.policies.clone().into());
    set("path", token.path.as_str().into());
    set("meta", if token.meta.is_empty() { Value::Null } else { json!(token.meta) });
    set("display_name", token.display_name.as_str().into());
    set("num_uses", token.uses.unwrap_or(0).into());
    set("orphan", token.parent.is_none().into());
    set("creation_time", token.created.unix_seconds().into());
    set("creation_ttl", token.creation_ttl.as_secs().into());
    set("ttl", token.ttl(now).into());
    set("expire_time", token.expires.map_or(Value::Null, |at| at.rfc3339().into()));
    set("issue_time", token.created.rfc3339().into());
    set("explicit_max_ttl", token.explicit_max_ttl.as_secs().into());
    set("entity_id", "".into());
    set("type", "service".into());
    set("renewable", token.renewable.into());
    if !token.period.is_zero() {
        set("period", token.period.as_secs().into());
    }
    if let Some(at) = token.renewed {
        set("last_renewal", at.rfc3339().into());
        set("last_renewal_time", at.unix_seconds().into());
    }
    data
}

fn renew_self(tokens: &Tokens, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let hash = cx.call.caller()?.token_hash;
    let text = cx.call.body.text("token")?.filter(|text| tokens::hash(text) == hash);
    extend(tokens, cx, &tokens::hex(&hash), text.as_deref().unwrap_or_default())
}

fn renew(tokens: &Tokens, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let text = cx.call.body.need_text("token")?;
    extend(tokens, cx, &tokens::hex(&tokens::hash(&text)), &text)
}

fn renew_accessor(tokens: &Tokens, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (hash, _) = of_accessor(cx)?;
    extend(tokens, cx, &hash, "")
}

/// Renews a token. `text` is what was presented, empty for who named an accessor: the store keeps no text.
fn extend(tokens: &Tokens, cx: &mut Cx<'_>, hash: &str, text: &str) -> Result<Answer, Refusal> {
    let mut token = tokens::find(cx.tx, hash)?.ok_or_else(|| Refusal::forbidden("bad token"))?;
    let (now, limits) = (cx.now(), tokens.0.lifetimes.of(cx.tx, token.mount)?);
    let (true, Some(_)) = (token.renewable, token.expires) else {
        return Err(Refusal::invalid("lease is not renewable"));
    };
    let wished = match cx.call.body.lifetime("increment")?.filter(|i| !i.is_zero()) {
        _ if !token.period.is_zero() => token.period.min(limits.max),
        Some(increment) => increment,
        None if token.creation_ttl.is_zero() => limits.default,
        None => token.creation_ttl,
    };
    let at_most = token.expires_at_most.unwrap_or(Timestamp(u64::MAX));
    let until = now.after(wished).min(at_most);
    if until < now.after(wished) {
        let max = at_most.since(token.created).as_secs();
        cx.warn(format!("TTL of \"{}s\" exceeded the effective max_ttl of \"{max}s\"; TTL value is capped accordingly", wished.as_secs()));
    }
    token.expires = Some(until);
    token.renewed = Some(now);
    tokens::update(cx.tx, hash, &token)?;
    Ok(Answer::Auth(Box::new(reply::auth_of(text, &token, now))))
}

fn revoke_self(_: &Tokens, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let hash = tokens::hex(&cx.call.caller()?.token_hash);
    end(cx, &hash)
}

fn revoke(_: &Tokens, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let text = cx.call.body.need_text("token")?;
    end(cx, &tokens::hex(&tokens::hash(&text)))
}

fn revoke_orphan(_: &Tokens, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let text = cx.call.body.need_text("token")?;
    let hash = tokens::hex(&tokens::hash(&text));
    tokens::orphan(cx.tx, &hash)?;
    end(cx, &hash)
}

fn revoke_accessor(_: &Tokens, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let accessor = cx.call.body.need_text("accessor")?;
    let Some((hash, _)) = tokens::by_accessor(cx.tx, &accessor)? else {
        cx.warn("No token found with this accessor");
        return Ok(Answer::Nothing);
    };
    end(cx, &hash)
}

fn end(cx: &mut Cx<'_>, hash: &str) -> Result<Answer, Refusal> {
    let count = tokens::revoke(cx.tx, hash)?;
    cx.note("tokens_revoked", count);
    Ok(Answer::Nothing)
}

/// Owes the removal of a token at its end. Access is refused from then on anyway; this only tidies.
pub(crate) fn owe_expiry(tx: &mut Tx, hash: &str, token: &Token) -> Result<(), Refusal> {
    let Some(due) = token.expires else { return Ok(()) };
    let duty = NewDuty {
        key: format!("expire/{hash}/{}", due.0),
        kind: tokens::EXPIRE,
        due,
        act: false,
        lane: String::new(),
        payload: engine::answer::raw(&hash)?,
    };
    duty::owe(tx, tokens::OWNER, duty, "").map(drop)
}

impl Owner for Tokens {
    fn perform(&self, _: &mut Cx<'_>, _: &Duty) -> Result<Work, Refusal> {
        Ok(Box::pin(std::future::ready(Outcome::done(&true))))
    }

    fn settle(&self, cx: &mut Cx<'_>, duty: &Duty, _: &Outcome) -> Result<Answer, Refusal> {
        let page = match duty.kind.as_str() {
            identities::SWEEP => Some(identities::sweep as fn(&mut Tx, &mut Tx, &str) -> Result<usize, Refusal>),
            identities::INDEX => Some(identities::index as _),
            _ => None,
        };
        if let Some(page) = page {
            let count = page(cx.tx, &mut self.0.store.begin()?, duty.payload.get())?;
            cx.note("tokens", count);
            return Ok(Answer::Nothing);
        }
        let name: String = serde_json::from_str(duty.payload.get()).map_err(|_| Refusal::internal("the duty names no token"))?;
        if duty.kind == tokens::REVOKE_BELOW {
            tokens::revoke_below(cx.tx, name)?;
            return Ok(Answer::Nothing);
        }
        // Renewed meanwhile: the end has moved.
        match tokens::find(cx.tx, &name)? {
            Some(token) => owe_expiry(cx.tx, &name, &token)?,
            None => {
                tokens::revoke(cx.tx, &name)?;
            }
        }
        Ok(Answer::Nothing)
    }
}
