//! `role/:name/secret-id…`: handing out, looking up and destroying secret ids.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{Refusal, SecretString, Timestamp, id};
use crypto::encode::hex;
use crypto::hash::sha256;
use engine::answer::raw;
use engine::{Answer, Call, Cx, Duty, DutyKey, Field, FieldKind, Host, Key, Mount, NewDuty, Op, Permit, Prefix, Removed, Route, Tx, duty};
use serde::{Deserialize, Serialize};

use super::role::{Role, named};
use super::{AppRole, principal};

pub(super) const NEW: Route<AppRole> = Route::new(Op::Write, "role/:name/secret-id", FIELDS, "Hand out a new secret id.", new).strict();
pub(super) const CUSTOM: Route<AppRole> =
    Route::new(Op::Write, "role/:name/custom-secret-id", CUSTOM_FIELDS, "Take a secret id of one's own choice.", custom).strict();
pub(super) const LIST: Route<AppRole> = Route::new(Op::List, "role/:name/secret-id", &[], "The accessors of the role's secret ids.", list);
pub(super) const LOOKUP: Route<AppRole> =
    Route::new(Op::Write, "role/:name/secret-id/lookup", BY_SECRET, "What is known of a secret id.", lookup);
pub(super) const DESTROY: Route<AppRole> =
    Route::new(Op::Write, "role/:name/secret-id/destroy", BY_SECRET, "Destroy a secret id.", destroy);
pub(super) const DESTROY_BY_DELETE: Route<AppRole> =
    Route::new(Op::Delete, "role/:name/secret-id/destroy", BY_SECRET, "Destroy a secret id.", destroy);
pub(super) const LOOKUP_ACCESSOR: Route<AppRole> =
    Route::new(Op::Write, "role/:name/secret-id-accessor/lookup", BY_ACCESSOR, "What is known of a secret id.", lookup_accessor);
pub(super) const DESTROY_ACCESSOR: Route<AppRole> =
    Route::new(Op::Write, "role/:name/secret-id-accessor/destroy", BY_ACCESSOR, "Destroy a secret id.", destroy_accessor);
pub(super) const DESTROY_ACCESSOR_BY_DELETE: Route<AppRole> =
    Route::new(Op::Delete, "role/:name/secret-id-accessor/destroy", BY_ACCESSOR, "Destroy a secret id.", destroy_accessor);

const METADATA: Field = Field::new("metadata", FieldKind::Any, "Texts that the tokens carry: an object, or JSON text that is one.");
const NUM_USES: Field = Field::public("num_uses", FieldKind::Int, "Logins it is good for; the role's setting when left out.");
const TTL: Field = Field::public("ttl", FieldKind::Duration, "How long it lives; the role's setting when left out.");
const CIDRS: Field = Field::public("cidr_list", FieldKind::List, "Not supported yet; may be empty.");
const TOKEN_CIDRS: Field = Field::public("token_bound_cidrs", FieldKind::List, "Not supported yet; may be empty.");
const SECRET_ID: Field = Field::new("secret_id", FieldKind::Text, "The secret id.");

const FIELDS: &[Field] = &[METADATA, NUM_USES, TTL, CIDRS, TOKEN_CIDRS];
const CUSTOM_FIELDS: &[Field] = &[SECRET_ID, METADATA, NUM_USES, TTL, CIDRS, TOKEN_CIDRS];
const BY_SECRET: &[Field] = &[SECRET_ID];
const BY_ACCESSOR: &[Field] = &[Field::public("secret_id_accessor", FieldKind::Text, "The accessor.")];

/// Secret ids in one list.
const IDS_MAX: usize = 100_000;
/// Secret ids that one commit removes. Those that are left of more are good for nothing, and removed by jobs.
const DESTROYED_AT_ONCE_MAX: usize = 1_000;
/// Bytes of a secret id that somebody chose.
const CUSTOM_BYTES_MIN: usize = 20;
const CUSTOM_BYTES_MAX: usize = 1_024;
/// Members and bytes of metadata.
const METADATA_MAX: usize = 64;
const METADATA_BYTES_MAX: usize = 4_096;

/// A secret id, found by its role and its hash.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SecretId {
    accessor: String,
    created: Timestamp,
    updated: Timestamp,
    expires: Option<Timestamp>,
    /// Seconds; 0 for ever.
    ttl: u64,
    /// Logins left; nothing for any number.
    uses_left: Option<u64>,
    pub(super) metadata: BTreeMap<String, String>,
    /// How often the identity had been revoked when it was handed out.
    #[serde(default)]
    epoch: u64,
}

/// The SHA-256 of a secret id, in hexadecimal: all that is ever stored of it.
pub(super) struct Hash(String);

impl Hash {
    pub(super) fn of(secret_id: &SecretString) -> Self {
        Self(hex(&sha256(secret_id.expose().as_bytes())))
    }
}

fn key(mount: &Mount, role: &str, hash: &Hash) -> Key {
    Key::new(mount.scope(), "secret-id", &[role, &hash.0])
}

/// Accessors are found below their role: that of another role opens nothing.
fn accessor_key(mount: &Mount, role: &str, accessor: &str) -> Key {
    Key::new(mount.scope(), "accessor", &[role, accessor])
}

fn new(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let secret_id = SecretString::new(id::uuid(cx.host.rng())?);
    hand_out(cx, &secret_id)
}

fn custom(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let secret_id = need_secret(cx.call)?;
    let length = secret_id.expose().len();
    if !(CUSTOM_BYTES_MIN..=CUSTOM_BYTES_MAX).contains(&length) {
        return Err(Refusal::invalid(format!("field `secret_id`: expected {CUSTOM_BYTES_MIN} to {CUSTOM_BYTES_MAX} bytes")));
    }
    hand_out(cx, &secret_id)
}

fn hand_out(cx: &mut Cx<'_>, secret_id: &SecretString) -> Result<Answer, Refusal> {
    #[derive(Serialize)]
    struct Shown<'a> {
        secret_id: &'a str,
        secret_id_accessor: &'a str,
        secret_id_num_uses: u64,
        secret_id_ttl: u64,
    }
    let (role_name, role) = role(cx)?;
    let body = &cx.call.body;
    for field in ["cidr_list", "token_bound_cidrs"] {
        if body.list(field)?.is_some_and(|cidrs| !cidrs.is_empty()) {
            return Err(Refusal::invalid(format!("field `{field}`: not supported yet")));
        }
    }
    // narrower than the role, never wider; 0 is "without end" and so the widest
    let num_uses = body.int("num_uses")?.unwrap_or(role.secret_id_num_uses);
    if wider(num_uses, role.secret_id_num_uses) {
        return Err(Refusal::invalid("field `num_uses`: cannot be higher than the role's `secret_id_num_uses`"));
    }
    let ttl = body.lifetime("ttl")?.map_or(role.secret_id_ttl, |span| span.as_secs());
    if wider(ttl, role.secret_id_ttl) {
        return Err(Refusal::invalid("field `ttl`: cannot be longer than the role's `secret_id_ttl`"));
    }
    let metadata = metadata(cx.call)?;
    let hash = Hash::of(secret_id);
    let mount = &cx.call.mount;
    if cx.tx.exists(&key(mount, &role_name, &hash))? {
        return Err(Refusal::invalid("field `secret_id`: already registered"));
    }
    let now = cx.now();
    let accessor = id::uuid(cx.host.rng())?;
    let expires = (ttl > 0).then(|| now.after(Duration::from_secs(ttl)));
    let row = SecretId {
        accessor: accessor.clone(),
        created: now,
        updated: now,
        expires,
        ttl,
        uses_left: (num_uses > 0).then_some(num_uses),
        metadata,
        epoch: cx.host.epoch(cx.tx, &principal(mount, &role_name))?,
    };
    cx.tx.write(&key(mount, &role_name, &hash), &row)?;
    cx.tx.write(&accessor_key(mount, &role_name, &accessor), &hash.0)?;
    if let Some(due) = expires {
        let payload = raw(&End { role: role_name.clone(), accessor: accessor.clone() })?;
        let end = NewDuty { key: end_key(&accessor), kind: "end-secret-id", due, act: false, lane: String::new(), payload };
        cx.host.owe(cx.tx, mount, end)?;
    }
    cx.note("role", &role_name);
    cx.note("secret_id_accessor", &accessor);
    Answer::data(&Shown { secret_id: secret_id.expose(), secret_id_accessor: &accessor, secret_id_num_uses: num_uses, secret_id_ttl: ttl })
}

fn list(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    #[derive(Serialize)]
    struct Accessors {
        keys: Vec<String>,
    }
    let (role_name, _) = role(cx)?;
    let keys = cx.tx.list(&Prefix::new(cx.call.mount.scope(), "accessor", &[&role_name]), None, IDS_MAX)?;
    if keys.is_empty() { Err(Refusal::missing()) } else { Answer::data(&Accessors { keys }) }
}

fn lookup(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (role_name, _) = role(cx)?;
    let hash = Hash::of(&need_secret(cx.call)?);
    match find(cx, &role_name, &hash)? {
        Some(row) => shown(&row),
        None => Ok(Answer::Nothing),
    }
}

fn destroy(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (role_name, _) = role(cx)?;
    let hash = Hash::of(&need_secret(cx.call)?);
    if let Some(row) = cx.tx.read::<SecretId>(&key(&cx.call.mount, &role_name, &hash))? {
        cx.note("secret_id_accessor", &row.accessor);
        remove(cx.tx, &cx.call.mount, &role_name, &hash, &row.accessor)?;
    }
    Ok(Answer::Nothing)
}

fn lookup_accessor(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (role_name, accessor) = accessor(cx)?;
    let hash = hash_of(cx, &role_name, &accessor)?;
    let row = find(cx, &role_name, &hash)?.ok_or_else(no_accessor)?;
    shown(&row)
}

fn destroy_accessor(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (role_name, accessor) = accessor(cx)?;
    let hash = hash_of(cx, &role_name, &accessor)?;
    remove(cx.tx, &cx.call.mount, &role_name, &hash, &accessor)?;
    Ok(Answer::Nothing)
}

/// Uses a secret id for one login: the last use removes it in the same commit. Nothing when it does not exist or has ended.
pub(super) fn consume(cx: &mut Cx<'_>, role: &str, hash: &Hash) -> Result<Option<SecretId>, Refusal> {
    let Some(mut row) = find(cx, role, hash)? else { return Ok(None) };
    let mount = &cx.call.mount;
    match row.uses_left {
        None => {}
        Some(left) if left > 1 => {
            row.uses_left = Some(left - 1);
            row.updated = cx.now();
            cx.tx.write(&key(mount, role, hash), &row)?;
        }
        Some(_) => remove(cx.tx, mount, role, hash, &row.accessor)?,
    }
    cx.note("secret_id_accessor", &row.accessor);
    Ok(Some(row))
}

/// Removes the secret ids of a role whose identity was revoked, as many as fit the commit.
pub(super) fn destroy_all(tx: &mut Tx, host: &dyn Host, mount: &Mount, role: &str) -> Result<Removed, Refusal> {
    let epoch = host.epoch(tx, &principal(mount, role))?;
    // All of them are behind the epoch that has just begun. To look whether one is would let its logins put the commit off.
    sweep_page(tx, host, mount, &Rest { role: role.to_owned(), epoch, after: None }, |_, _| Ok(true))
}

/// The job that removes secret ids which were handed out before the identity was revoked.
pub(super) const SWEEP: &str = "sweep-secret-ids";

/// What is left to remove.
#[derive(Serialize, Deserialize)]
struct Rest {
    role: String,
    epoch: u64,
    /// Accessors up to here were looked at.
    after: Option<String>,
}

pub(super) fn sweep(cx: &mut Cx<'_>, duty: &Duty) -> Result<Answer, Refusal> {
    let rest: Rest =
        serde_json::from_str(duty.payload.get()).map_err(|_| Refusal::internal("a job to remove secret ids could not be read"))?;
    let mount = &cx.call.mount;
    let removed = sweep_page(cx.tx, cx.host, mount, &rest, |tx, hash| {
        let row = tx.read::<SecretId>(&key(mount, &rest.role, hash))?;
        Ok(row.is_none_or(|row| row.epoch < rest.epoch))
    })?;
    cx.note("role", &rest.role);
    cx.note("secret_ids_destroyed", removed.count);
    Ok(Answer::Nothing)
}

/// Removes those of a page of accessors that `dead` says are dead, and owes the next page.
fn sweep_page(
    tx: &mut Tx,
    host: &dyn Host,
    mount: &Mount,
    rest: &Rest,
    dead: impl Fn(&mut Tx, &Hash) -> Result<bool, Refusal>,
) -> Result<Removed, Refusal> {
    let page = Prefix::new(mount.scope(), "accessor", &[&rest.role]);
    let accessors = tx.list(&page, rest.after.as_deref(), DESTROYED_AT_ONCE_MAX)?;
    let mut removed = Removed { count: 0, more: accessors.len() == DESTROYED_AT_ONCE_MAX };
    for accessor in &accessors {
        let Some(hash) = tx.read(&accessor_key(mount, &rest.role, accessor))?.map(Hash) else { continue };
        if dead(tx, &hash)? {
            remove(tx, mount, &rest.role, &hash, accessor)?;
            removed.count += 1;
        }
    }
    if removed.more {
        let rest = Rest { role: rest.role.clone(), epoch: rest.epoch, after: accessors.last().cloned() };
        let key = format!("sweep/{}/{}", rest.role, rest.epoch);
        let duty = NewDuty { key, kind: SWEEP, due: tx.now(), act: false, lane: String::new(), payload: raw(&rest)? };
        host.owe(tx, mount, duty)?;
    }
    Ok(removed)
}

/// What the timer carries.
#[derive(Serialize, Deserialize)]
struct End {
    role: String,
    accessor: String,
}

/// The time of a secret id has come.
pub(super) fn end(cx: &mut Cx<'_>, duty: &Duty) -> Result<Answer, Refusal> {
    let end: End = serde_json::from_str(duty.payload.get()).map_err(|_| Refusal::internal("the end of a secret id could not be read"))?;
    let mount = &cx.call.mount;
    if let Some(hash) = cx.tx.read(&accessor_key(mount, &end.role, &end.accessor))? {
        let hash = Hash(hash);
        cx.tx.delete(&key(mount, &end.role, &hash))?;
        cx.tx.delete(&accessor_key(mount, &end.role, &end.accessor))?;
    }
    cx.note("role", &end.role);
    cx.note("secret_id_accessor", &end.accessor);
    Ok(Answer::Nothing)
}

fn end_key(accessor: &str) -> String {
    format!("secret-id/{accessor}")
}

fn remove(tx: &mut Tx, mount: &Mount, role: &str, hash: &Hash, accessor: &str) -> Result<(), Refusal> {
    tx.delete(&key(mount, role, hash))?;
    tx.delete(&accessor_key(mount, role, accessor))?;
    duty::remove(tx, &DutyKey { owner: mount.id, key: end_key(accessor) })
}

/// A secret id that has not ended, of an identity that was not revoked since. Both are checked here and not left to jobs.
fn find(cx: &mut Cx<'_>, role: &str, hash: &Hash) -> Result<Option<SecretId>, Refusal> {
    let (now, mount) = (cx.now(), &cx.call.mount);
    let epoch = cx.host.epoch(cx.tx, &principal(mount, role))?;
    let row = cx.tx.read::<SecretId>(&key(mount, role, hash))?;
    Ok(row.filter(|row| row.epoch >= epoch && row.expires.is_none_or(|at| at > now)))
}

fn hash_of(cx: &mut Cx<'_>, role: &str, accessor: &str) -> Result<Hash, Refusal> {
    cx.tx.read(&accessor_key(&cx.call.mount, role, accessor))?.map(Hash).ok_or_else(no_accessor)
}

fn no_accessor() -> Refusal {
    Refusal::missing_because("failed to find accessor entry for the given `secret_id_accessor`")
}

fn role(cx: &mut Cx<'_>) -> Result<(String, Role), Refusal> {
    let (name, role) = named(cx)?;
    let role = role.ok_or_else(|| Refusal::missing_because(format!("role \"{name}\" does not exist")))?;
    Ok((name, role))
}

fn accessor(cx: &mut Cx<'_>) -> Result<(String, String), Refusal> {
    let (role_name, _) = role(cx)?;
    let accessor = cx.call.body.need_text("secret_id_accessor")?;
    Ok((role_name, accessor))
}

fn need_secret(call: &Call) -> Result<SecretString, Refusal> {
    call.body.secret("secret_id")?.filter(|secret| !secret.expose().is_empty()).ok_or_else(|| Refusal::invalid("missing secret_id"))
}

fn wider(asked: u64, allowed: u64) -> bool {
    allowed > 0 && (asked == 0 || asked > allowed)
}

fn metadata(call: &Call) -> Result<BTreeMap<String, String>, Refusal> {
    let wrong = || Refusal::invalid("field `metadata`: expected an object of text values, or JSON text that is one");
    let metadata = match call.body.text("metadata") {
        Ok(None) => BTreeMap::new(),
        Ok(Some(text)) if text.is_empty() => BTreeMap::new(),
        Ok(Some(text)) => serde_json::from_str(&text).map_err(|_| wrong())?,
        Err(_) => call.body.map("metadata").map_err(|_| wrong())?.unwrap_or_default(),
    };
    let bytes: usize = metadata.iter().map(|(name, text)| name.len() + text.len()).sum();
    if metadata.len() > METADATA_MAX || bytes > METADATA_BYTES_MAX {
        return Err(Refusal::invalid(format!("field `metadata`: more than {METADATA_MAX} texts or {METADATA_BYTES_MAX} bytes")));
    }
    if metadata.contains_key("role_name") {
        return Err(Refusal::invalid("field `metadata`: `role_name` is set by the login"));
    }
    Ok(metadata)
}

fn shown(row: &SecretId) -> Result<Answer, Refusal> {
    #[derive(Serialize)]
    struct Shown<'a> {
        cidr_list: [String; 0],
        creation_time: String,
        expiration_time: String,
        last_updated_time: String,
        metadata: &'a BTreeMap<String, String>,
        secret_id_accessor: &'a str,
        secret_id_num_uses: u64,
        secret_id_ttl: u64,
        token_bound_cidrs: [String; 0],
    }
    Answer::data(&Shown {
        cidr_list: [],
        creation_time: row.created.rfc3339(),
        // Go's zero time stands for "never"
        expiration_time: row.expires.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), Timestamp::rfc3339),
        last_updated_time: row.updated.rfc3339(),
        metadata: &row.metadata,
        secret_id_accessor: &row.accessor,
        secret_id_num_uses: row.uses_left.unwrap_or(0),
        secret_id_ttl: row.ttl,
        token_bound_cidrs: [],
    })
}

#[cfg(test)]
mod tests {
    use engine::Removed;
    use serde_json::json;

    use super::DESTROYED_AT_ONCE_MAX;
    use crate::bench::{Bench, at};

    fn with_role(body: &str) -> Bench {
        let auth = Bench::approle();
        auth.write("role/web", body).nothing();
        auth
    }

    #[test]
    fn handed_out_looked_up_listed_destroyed() {
        let auth = with_role(r#"{"secret_id_num_uses":3,"secret_id_ttl":"10m"}"#);
        auth.list("role/web/secret-id/").missing();
        let made = auth.write("role/web/secret-id", r#"{"metadata":"{\"host\":\"a\"}"}"#).json();
        assert_eq!((&made["secret_id_ttl"], &made["secret_id_num_uses"]), (&json!(600), &json!(3)));
        let (secret, accessor) = (made["secret_id"].as_str().unwrap(), made["secret_id_accessor"].as_str().unwrap());
        assert!(secret.len() == 36 && accessor.len() == 36 && secret != accessor);
        let known = json!({
            "cidr_list": [], "creation_time": at(0), "expiration_time": at(600), "last_updated_time": at(0), "metadata": {"host": "a"},
            "secret_id_accessor": accessor, "secret_id_num_uses": 3, "secret_id_ttl": 600, "token_bound_cidrs": [],
        });
        let (by_secret, by_accessor) = (json!({"secret_id": secret}).to_string(), json!({"secret_id_accessor": accessor}).to_string());
        assert_eq!(auth.write("role/web/secret-id/lookup", &by_secret).json(), known);
        assert_eq!(auth.write("role/web/secret-id-accessor/lookup", &by_accessor).json(), known);
        auth.list("role/web/secret-id/").keys(accessor);
        // only the hash is stored
        assert!(!auth.everything().contains(secret));
        auth.write("role/web/secret-id-accessor/destroy", &by_accessor).nothing();
        auth.write("role/web/secret-id/lookup", &by_secret).nothing();
        auth.write("role/web/secret-id-accessor/lookup", &by_accessor).missing_with("failed to find accessor entry");
        auth.write("role/web/secret-id-accessor/destroy", &by_accessor).missing_with("failed to find accessor entry");
        auth.write("role/web/secret-id/destroy", &by_secret).nothing();
        auth.list("role/web/secret-id/").missing();
        assert_eq!(auth.duties(), 0);
    }

    #[test]
    fn an_accessor_of_another_role_opens_nothing() {
        let auth = with_role("{}");
        auth.write("role/other", "{}").nothing();
        let made = auth.write("role/web/secret-id", "{}").json();
        let (by_secret, by_accessor) =
            (json!({"secret_id": made["secret_id"]}).to_string(), json!({"secret_id_accessor": made["secret_id_accessor"]}).to_string());
        auth.write("role/other/secret-id-accessor/destroy", &by_accessor).missing_with("failed to find accessor entry");
        auth.write("role/other/secret-id-accessor/lookup", &by_accessor).missing_with("failed to find accessor entry");
        auth.write("role/other/secret-id/destroy", &by_secret).nothing();
        auth.delete("role/other").nothing();
        auth.write("role/web/secret-id/lookup", &by_secret).json();
        // any spelling of the role finds them all
        auth.write("role/WEB/secret-id-accessor/destroy", &by_accessor).nothing();
        assert_eq!(auth.count("secret-id") + auth.count("accessor"), 0);
    }

    #[test]
    fn they_end_by_the_clock_and_by_the_timer() {
        let auth = with_role(r#"{"secret_id_ttl":"60s"}"#);
        let made = auth.write("role/web/secret-id", r#"{"ttl":"30s"}"#).json();
        let by_secret = json!({"secret_id": made["secret_id"]}).to_string();
        auth.write("role/web/secret-id", "{}").json();
        assert_eq!(auth.duties(), 2);
        auth.pass_seconds(30);
        // before the timer ran
        auth.write("role/web/secret-id/lookup", &by_secret).nothing();
        assert_eq!(auth.count("secret-id"), 2);
        assert_eq!(auth.run_duties(), 1);
        assert_eq!((auth.count("secret-id"), auth.count("accessor"), auth.duties()), (1, 1, 1));
        // gone with the role, timer too
        assert!(auth.delete("role/web").nothing_but()[0].ends_with("secret ids destroyed: 1"));
        assert_eq!((auth.count("secret-id"), auth.count("accessor"), auth.duties()), (0, 0, 0));
    }

    #[test]
    fn those_of_a_revoked_identity_are_dead_at_once_however_many() {
        let auth = with_role(r#"{"role_id":"web"}"#);
        let hand_out = || auth.write("role/web/secret-id", "{}").json()["secret_id"].as_str().unwrap().to_owned();
        let login = |secret: &str| auth.write("login", &json!({"role_id": "web", "secret_id": secret}).to_string());
        let old: Vec<_> = (0..DESTROYED_AT_ONCE_MAX + 3).map(|_| hand_out()).collect();
        login(&old[7]).login();
        assert_eq!(auth.revoke("WEB"), Removed { count: DESTROYED_AT_ONCE_MAX, more: true });
        let new = hand_out();
        assert_eq!(auth.count("secret-id"), 4);
        for secret in &old {
            login(secret).invalid("invalid role or secret ID");
            auth.write("role/web/secret-id/lookup", &json!({"secret_id": secret}).to_string()).nothing();
        }
        login(&new).login();
        assert_eq!((auth.run_duties(), auth.duties(), auth.count("secret-id"), auth.count("accessor")), (1, 0, 1, 1));
        login(&new).login();
    }

    /// What could not be removed with its role at once must not open the next role of that name.
    #[test]
    fn those_of_a_removed_role_open_no_later_role_of_its_name() {
        let auth = with_role(r#"{"role_id":"web"}"#);
        let made: Vec<_> = (0..DESTROYED_AT_ONCE_MAX + 3).map(|_| auth.write("role/web/secret-id", "{}").json()).collect();
        let warned = auth.delete("role/web").nothing_but();
        assert!(warned.len() == 1 && warned[0].contains("`approle/web`") && warned[0].contains("destroyed: 1000 and more"), "{warned:?}");
        auth.write("role/web", r#"{"role_id":"web"}"#).nothing();
        for made in made {
            auth.write("login", &json!({"role_id": "web", "secret_id": made["secret_id"]}).to_string())
                .invalid("invalid role or secret ID");
        }
        auth.run_duties();
        assert_eq!((auth.count("secret-id"), auth.count("accessor"), auth.duties()), (0, 0, 0));
        assert_eq!(auth.delete("role/web").nothing_but(), [""; 0], "nothing was made, so nothing is said");
    }

    /// A secret id for half a second lived for ever.
    #[test]
    fn a_part_of_a_second_is_not_for_ever() {
        let auth = with_role("{}");
        let made = auth.write("role/web/secret-id", r#"{"ttl":"500ms"}"#).json();
        assert_eq!(made["secret_id_ttl"], 1);
        auth.pass_seconds(1);
        auth.write("role/web/secret-id/lookup", &json!({"secret_id": made["secret_id"]}).to_string()).nothing();
    }

    #[test]
    fn narrower_than_the_role_never_wider() {
        let auth = with_role(r#"{"secret_id_num_uses":3,"secret_id_ttl":"60s"}"#);
        for (body, text) in [
            (r#"{"num_uses":4}"#, "field `num_uses`"),
            (r#"{"num_uses":0}"#, "field `num_uses`"),
            (r#"{"ttl":"61s"}"#, "field `ttl`"),
            (r#"{"ttl":0}"#, "field `ttl`"),
            (r#"{"cidr_list":["10.0.0.0/8"]}"#, "field `cidr_list`: not supported yet"),
            (r#"{"token_bound_cidrs":["10.0.0.0/8"]}"#, "field `token_bound_cidrs`: not supported yet"),
            (r#"{"metadata":"x"}"#, "field `metadata`"),
            (r#"{"metadata":{"role_name":"root"}}"#, "field `metadata`"),
        ] {
            auth.write("role/web/secret-id", body).invalid(text);
        }
        let made = auth.write("role/web/secret-id", r#"{"num_uses":1,"ttl":5,"metadata":{"a":"b"}}"#).json();
        assert_eq!((&made["secret_id_num_uses"], &made["secret_id_ttl"]), (&json!(1), &json!(5)));
        auth.write("role/none/secret-id", "{}").missing_with("role \"none\" does not exist");
        auth.write("role/web/secret-id/lookup", "{}").invalid("missing secret_id");
    }

    #[test]
    fn chosen_secret_ids() {
        let auth = with_role("{}");
        let chosen = json!({"secret_id": "chosen-by-somebody-else"}).to_string();
        assert_eq!(auth.write("role/web/custom-secret-id", &chosen).json()["secret_id"], "chosen-by-somebody-else");
        let again = auth.write("role/web/custom-secret-id", &chosen).invalid("already registered");
        assert!(!format!("{again:?}").contains("chosen-by"));
        auth.write("role/web/custom-secret-id", r#"{"secret_id":"short"}"#).invalid("field `secret_id`");
        auth.write("role/web/custom-secret-id", "{}").invalid("missing secret_id");
    }
}
