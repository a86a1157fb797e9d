//! `role/:name` and `role/:name/role-id`.

use base::{Refusal, id};
use engine::{Answer, Cx, Field, FieldKind, Key, Mount, Op, Permit, PolicyName, Prefix, Removed, Route, Tx};
use serde::{Deserialize, Serialize};

use super::{AppRole, name, principal, secret_id};

pub(super) const LIST: Route<AppRole> = Route::new(Op::List, "role", &[], "The names of the roles.", list);
pub(super) const READ: Route<AppRole> = Route::new(Op::Read, "role/:name", &[], "Read a role.", read);
pub(super) const WRITE: Route<AppRole> =
    Route::new(Op::Write, "role/:name", FIELDS, "Make a role or change what is named of it.", write).strict().exists(exists);
pub(super) const DELETE: Route<AppRole> =
    Route::new(Op::Delete, "role/:name", &[], "Remove a role, all its secret ids, and every token that came from them.", delete);
pub(super) const READ_ID: Route<AppRole> = Route::new(Op::Read, "role/:name/role-id", &[], "Read the role's id.", read_id);
pub(super) const WRITE_ID: Route<AppRole> = Route::new(
    Op::Write,
    "role/:name/role-id",
    &[Field::new("role_id", FieldKind::Text, "The new id.")],
    "Give the role an id of one's own choice.",
    write_id,
)
.strict();

const FIELDS: &[Field] = &[
    Field::public("bind_secret_id", FieldKind::Bool, "Whether a login needs a secret id. Must be true."),
    Field::public("secret_id_num_uses", FieldKind::Int, "Logins that a secret id is good for; 0 for any number."),
    Field::public("secret_id_ttl", FieldKind::Duration, "How long a secret id lives; 0 for ever."),
    Field::public("token_policies", FieldKind::List, "Policies of the tokens."),
    Field::public("policies", FieldKind::List, "The older name of `token_policies`."),
    Field::public("token_ttl", FieldKind::Duration, "Time to live of the tokens; 0 leaves it to the mount."),
    Field::public("token_max_ttl", FieldKind::Duration, "The longest life of the tokens by renewal; 0 leaves it to the mount."),
    Field::public("token_explicit_max_ttl", FieldKind::Duration, "The longest life of the tokens, periodic ones too; 0 for none."),
    Field::public("token_period", FieldKind::Duration, "Makes the tokens periodic: each renewal lasts so long."),
    Field::public("token_num_uses", FieldKind::Int, "Uses of the tokens; 0 for any number."),
    Field::public("token_no_default_policy", FieldKind::Bool, "Leaves the policy `default` out."),
    Field::public("token_type", FieldKind::Text, "`default` or `service`."),
    Field::public("local_secret_ids", FieldKind::Bool, "Must be false."),
    Field::public("secret_id_bound_cidrs", FieldKind::List, "Not supported yet; may be empty."),
    Field::public("token_bound_cidrs", FieldKind::List, "Not supported yet; may be empty."),
    Field::new("role_id", FieldKind::Text, "The role's id, when the role is made."),
];

const ID_BYTES_MAX: usize = 128;
/// Roles in one list.
const ROLES_MAX: usize = 100_000;

/// A role. Times are in seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Role {
    pub(super) role_id: String,
    pub(super) secret_id_num_uses: u64,
    pub(super) secret_id_ttl: u64,
    pub(super) token_policies: Vec<String>,
    pub(super) token_ttl: u64,
    pub(super) token_max_ttl: u64,
    pub(super) token_explicit_max_ttl: u64,
    pub(super) token_period: u64,
    pub(super) token_num_uses: u64,
    pub(super) token_no_default_policy: bool,
    pub(super) token_type: String,
}

impl Role {
    pub(super) fn load(tx: &mut Tx, mount: &Mount, name: &str) -> Result<Option<Self>, Refusal> {
        Ok(tx.read(&key(mount, name))?)
    }

    /// The role that a role id belongs to.
    pub(super) fn by_id(tx: &mut Tx, mount: &Mount, role_id: &str) -> Result<Option<(String, Self)>, Refusal> {
        let Some(name) = tx.read::<String>(&id_key(mount, role_id))? else { return Ok(None) };
        Ok(Self::load(tx, mount, &name)?.map(|role| (name, role)))
    }
}

fn key(mount: &Mount, name: &str) -> Key {
    Key::new(mount.scope(), "role", &[name])
}

fn id_key(mount: &Mount, role_id: &str) -> Key {
    Key::new(mount.scope(), "role-id", &[role_id])
}

fn list(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    #[derive(Serialize)]
    struct Names {
        keys: Vec<String>,
    }
    let keys = cx.tx.list(&Prefix::new(cx.call.mount.scope(), "role", &[]), None, ROLES_MAX)?;
    if keys.is_empty() { Err(Refusal::missing()) } else { Answer::data(&Names { keys }) }
}

fn read(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    #[derive(Serialize)]
    struct Shown {
        bind_secret_id: bool,
        local_secret_ids: bool,
        secret_id_bound_cidrs: Option<Vec<String>>,
        secret_id_num_uses: u64,
        secret_id_ttl: u64,
        token_bound_cidrs: Vec<String>,
        token_explicit_max_ttl: u64,
        token_max_ttl: u64,
        token_no_default_policy: bool,
        token_num_uses: u64,
        token_period: u64,
        token_policies: Vec<String>,
        token_ttl: u64,
        token_type: String,
    }
    let role = named(cx)?.1.ok_or_else(Refusal::missing)?;
    Answer::data(&Shown {
        bind_secret_id: true,
        local_secret_ids: false,
        secret_id_bound_cidrs: None,
        secret_id_num_uses: role.secret_id_num_uses,
        secret_id_ttl: role.secret_id_ttl,
        token_bound_cidrs: Vec::new(),
        token_explicit_max_ttl: role.token_explicit_max_ttl,
        token_max_ttl: role.token_max_ttl,
        token_no_default_policy: role.token_no_default_policy,
        token_num_uses: role.token_num_uses,
        token_period: role.token_period,
        token_policies: role.token_policies,
        token_ttl: role.token_ttl,
        token_type: role.token_type,
    })
}

fn exists(_: &AppRole, cx: &mut Cx<'_>) -> Result<bool, Refusal> {
    Ok(named(cx)?.1.is_some())
}

fn write(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (name, before) = named(cx)?;
    let new = before.is_none();
    let mut role = before.unwrap_or_else(|| Role { token_type: "default".to_owned(), ..Role::default() });
    let body = &cx.call.body;
    let seconds = |field: &str| body.lifetime(field).map(|span| span.map(|span| span.as_secs()));

    for field in ["secret_id_bound_cidrs", "token_bound_cidrs"] {
        if body.list(field)?.is_some_and(|cidrs| !cidrs.is_empty()) {
            return Err(Refusal::invalid(format!("field `{field}`: not supported yet")));
        }
    }
    if body.bool("bind_secret_id")? == Some(false) {
        return Err(Refusal::invalid("at least one constraint should be enabled on the role: field `bind_secret_id` must be true"));
    }
    if body.bool("local_secret_ids")? == Some(true) {
        return Err(Refusal::invalid("field `local_secret_ids`: not supported yet"));
    }
    match body.text("token_type")?.as_deref() {
        None => {}
        Some("" | "default" | "default-service") => "default".clone_into(&mut role.token_type),
        Some("service") => "service".clone_into(&mut role.token_type),
        Some("batch" | "default-batch") => return Err(Refusal::invalid("field `token_type`: batch tokens are not supported yet")),
        Some(_) => return Err(Refusal::invalid("field `token_type`: expected `default` or `service`")),
    }
    let policies = match body.list("token_policies")? {
        Some(policies) => Some(("token_policies", policies)),
        None => body.list("policies")?.map(|policies| ("policies", policies)),
    };
    if let Some((field, policies)) = policies {
        let mut names = Vec::with_capacity(policies.len());
        for policy in policies {
            let policy = PolicyName::parse(&policy).map_err(|e| Refusal::invalid(format!("field `{field}`: {e}")))?;
            names.push(policy.as_str().to_owned());
        }
        names.sort();
        names.dedup();
        role.token_policies = names;
    }
    let set = |to: &mut u64, value: Option<u64>| {
        if let Some(value) = value {
            *to = value;
        }
    };
    set(&mut role.secret_id_num_uses, body.int("secret_id_num_uses")?);
    set(&mut role.secret_id_ttl, seconds("secret_id_ttl")?);
    set(&mut role.token_ttl, seconds("token_ttl")?);
    set(&mut role.token_max_ttl, seconds("token_max_ttl")?);
    set(&mut role.token_explicit_max_ttl, seconds("token_explicit_max_ttl")?);
    set(&mut role.token_period, seconds("token_period")?);
    set(&mut role.token_num_uses, body.int("token_num_uses")?);
    role.token_no_default_policy = body.bool("token_no_default_policy")?.unwrap_or(role.token_no_default_policy);
    if role.token_max_ttl > 0 && role.token_ttl > role.token_max_ttl {
        return Err(Refusal::invalid("field `token_ttl`: cannot be greater than `token_max_ttl`"));
    }

    match body.text("role_id")? {
        Some(role_id) => take_id(cx, &name, &mut role, role_id)?,
        None if new => {
            let role_id = id::uuid(cx.host.rng())?;
            take_id(cx, &name, &mut role, role_id)?;
        }
        None => {}
    }
    cx.tx.write(&key(&cx.call.mount, &name), &role)?;
    cx.note("role", name);
    Ok(Answer::Nothing)
}

fn delete(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (name, role) = named(cx)?;
    let Some(role) = role else { return Ok(Answer::Nothing) };
    let (mount, identity) = (&cx.call.mount, principal(&cx.call.mount, &name));
    let tokens = cx.host.revoke_identity(cx.tx, &identity)?;
    let secret_ids = secret_id::destroy_all(cx.tx, cx.host, mount, &name)?;
    cx.tx.delete(&id_key(mount, &role.role_id))?;
    cx.tx.delete(&key(mount, &name))?;
    cx.note("role", &name);
    cx.note("tokens_revoked", tokens.count);
    cx.note("secret_ids_destroyed", secret_ids.count);
    if (tokens, secret_ids) != Default::default() {
        let count = |removed: Removed| format!("{}{}", removed.count, if removed.more { " and more" } else { "" });
        cx.warn(format!(
            "the identity `{identity}` was revoked with its role: tokens ended: {}; secret ids destroyed: {}",
            count(tokens),
            count(secret_ids)
        ));
    }
    Ok(Answer::Nothing)
}

fn read_id(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    #[derive(Serialize)]
    struct Shown {
        role_id: String,
    }
    let role = named(cx)?.1.ok_or_else(Refusal::missing)?;
    Answer::data(&Shown { role_id: role.role_id })
}

fn write_id(_: &AppRole, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (name, role) = named(cx)?;
    let mut role = role.ok_or_else(Refusal::missing)?;
    let role_id = cx.call.body.need_text("role_id")?;
    take_id(cx, &name, &mut role, role_id)?;
    cx.tx.write(&key(&cx.call.mount, &name), &role)?;
    Ok(Answer::Nothing)
}

/// The role that the path names.
pub(super) fn named(cx: &mut Cx<'_>) -> Result<(String, Option<Role>), Refusal> {
    let name = name(cx.call.capture("name"))?;
    let role = Role::load(cx.tx, &cx.call.mount, &name)?;
    Ok((name, role))
}

/// Gives a role its id, which no other role has.
fn take_id(cx: &mut Cx<'_>, name: &str, role: &mut Role, role_id: String) -> Result<(), Refusal> {
    let printable = |c: char| c.is_ascii_graphic();
    if role_id.is_empty() || role_id.len() > ID_BYTES_MAX || !role_id.chars().all(printable) {
        return Err(Refusal::invalid(format!("field `role_id`: expected 1 to {ID_BYTES_MAX} printable characters without spaces")));
    }
    let mount = &cx.call.mount;
    if let Some(owner) = cx.tx.read::<String>(&id_key(mount, &role_id))?
        && owner != name
    {
        return Err(Refusal::invalid("field `role_id`: already in use by another role"));
    }
    if !role.role_id.is_empty() {
        cx.tx.delete(&id_key(mount, &role.role_id))?;
    }
    cx.tx.write(&id_key(mount, &role_id), &name)?;
    role.role_id = role_id;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::bench::Bench;

    #[test]
    fn made_read_changed_listed_removed() {
        let auth = Bench::approle();
        auth.list("role/").missing();
        auth.read("role/web").missing();
        auth.write("role/web", r#"{"token_policies":"App,default,app","token_ttl":"20m","secret_id_num_uses":"1","secret_id_ttl":600}"#)
            .nothing();
        let mut expected = json!({
            "bind_secret_id": true, "local_secret_ids": false, "secret_id_bound_cidrs": null, "secret_id_num_uses": 1, "secret_id_ttl": 600,
            "token_bound_cidrs": [], "token_explicit_max_ttl": 0, "token_max_ttl": 0, "token_no_default_policy": false, "token_num_uses": 0,
            "token_period": 0, "token_policies": ["app", "default"], "token_ttl": 1200, "token_type": "default",
        });
        assert_eq!(auth.read("role/web").json(), expected);
        // what is not named stays
        auth.write("role/web", r#"{"token_max_ttl":"1h","policies":["other"]}"#).nothing();
        expected["token_max_ttl"] = json!(3600);
        expected["token_policies"] = json!(["other"]);
        assert_eq!(auth.read("role/web").json(), expected);
        auth.write("role/abc", "{}").nothing();
        auth.list("role/").keys("abc web");
        auth.delete("role/web").nothing();
        auth.delete("role/web").nothing();
        auth.read("role/web").missing();
        auth.read("role/web/role-id").missing();
        auth.list("role/").keys("abc");
    }

    #[test]
    fn two_spellings_are_one_role() {
        let auth = Bench::approle();
        auth.write("role/Web", r#"{"token_policies":["a"]}"#).nothing();
        assert_eq!(auth.read("role/WEB").json()["token_policies"], json!(["a"]));
        auth.list("role/").keys("web");
        auth.delete("role/wEb").nothing();
        auth.list("role/").missing();
        let long = "a".repeat(129);
        for bad in ["-a", "a.", "a b", "%C3%A9", "a%00", long.as_str()] {
            if bad != "a%00" {
                auth.write(&format!("role/{bad}"), "{}").invalid("role name");
            }
        }
    }

    #[test]
    fn reserved_policies_cannot_be_attached() {
        let auth = Bench::approle();
        for field in ["token_policies", "policies"] {
            for policy in ["root", "ROOT", "r00t", "ro-ot", "response-wrapping"] {
                auth.write("role/web", &json!({field: ["app", policy]}).to_string()).invalid("policy name is reserved");
            }
            for policy in ["a b", "a/b", "é", "ｒoot", "root\u{200b}"] {
                auth.write("role/web", &json!({field: [policy]}).to_string()).invalid("policy name must be");
            }
        }
        auth.read("role/web").missing();
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        let auth = Bench::approle();
        for (body, text) in [
            (r#"{"bind_secret_id":false}"#, "at least one constraint"),
            (r#"{"secret_id_bound_cidrs":["10.0.0.0/8"]}"#, "field `secret_id_bound_cidrs`: not supported yet"),
            (r#"{"token_bound_cidrs":"10.0.0.0/8"}"#, "field `token_bound_cidrs`: not supported yet"),
            (r#"{"token_type":"batch"}"#, "batch tokens are not supported yet"),
            (r#"{"token_type":"x"}"#, "field `token_type`"),
            (r#"{"local_secret_ids":true}"#, "field `local_secret_ids`"),
            (r#"{"token_ttl":"2h","token_max_ttl":"1h"}"#, "field `token_ttl`"),
            (r#"{"secret_id_num_uses":-1}"#, "field `secret_id_num_uses`"),
            (r#"{"token_ttl":"soon"}"#, "field `token_ttl`"),
            (r#"{"role_id":"a b"}"#, "field `role_id`"),
        ] {
            auth.write("role/web", body).invalid(text);
        }
        auth.read("role/web").missing();
        // what Terraform and the CLI send as "nothing" is nothing
        auth.write("role/web", r#"{"bind_secret_id":true,"token_bound_cidrs":[],"secret_id_bound_cidrs":[],"token_type":"default"}"#)
            .nothing();
    }

    /// Half a second became 0, and 0 is for ever.
    #[test]
    fn a_part_of_a_second_is_not_for_ever() {
        let auth = Bench::approle();
        for field in ["secret_id_ttl", "token_ttl", "token_max_ttl", "token_explicit_max_ttl", "token_period"] {
            auth.write("role/web", &json!({ field: "500ms" }).to_string()).nothing();
            assert_eq!(auth.read("role/web").json()[field], 1, "{field}");
            auth.write("role/web", &json!({ field: "0.0000000001ns" }).to_string()).invalid(&format!("field `{field}`"));
            auth.delete("role/web").nothing();
        }
    }

    #[test]
    fn role_ids_are_unique() {
        let auth = Bench::approle();
        auth.write("role/a", "{}").nothing();
        auth.write("role/b", r#"{"role_id":"mine"}"#).nothing();
        assert_eq!(auth.read("role/b/role-id").json(), json!({"role_id": "mine"}));
        assert_eq!(auth.read("role/a/role-id").json()["role_id"].as_str().unwrap().len(), 36);
        auth.write("role/a/role-id", r#"{"role_id":"mine"}"#).invalid("already in use");
        auth.write("role/c", r#"{"role_id":"mine"}"#).invalid("already in use");
        auth.write("role/b/role-id", r#"{"role_id":"other"}"#).nothing();
        auth.write("role/a/role-id", r#"{"role_id":"mine"}"#).nothing();
        auth.write("role/a/role-id", "{}").invalid("field `role_id`");
        auth.write("role/none/role-id", r#"{"role_id":"x"}"#).missing();
        auth.delete("role/a").nothing();
        auth.write("role/c", r#"{"role_id":"mine"}"#).nothing();
    }
}
