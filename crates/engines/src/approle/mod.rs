//! AppRole: machines log in with the id of a role and a secret id that was handed to them.
//!
//! Secret ids are stored by their hash alone. A secret id for one login is used up by the very commit that makes its token: of two
//! logins at the same time, one conflicts, runs again and finds nothing.

mod login;
mod role;
mod secret_id;

use base::Refusal;
use engine::{Answer, Cx, Duty, Engine, Host, Identities, Mount, Outcome, Owner, Removed, Route, Tx, Work};

use role::Role;

/// The auth method.
#[derive(Clone, Copy, Debug, Default)]
pub struct AppRole;

impl Engine for AppRole {
    const KIND: &'static str = "approle";

    fn routes() -> &'static [Route<Self>] {
        static ROUTES: [Route<AppRole>; 16] = [
            login::LOGIN,
            role::LIST,
            role::READ,
            role::WRITE,
            role::DELETE,
            role::READ_ID,
            role::WRITE_ID,
            secret_id::NEW,
            secret_id::LIST,
            secret_id::LOOKUP,
            secret_id::DESTROY,
            secret_id::DESTROY_BY_DELETE,
            secret_id::LOOKUP_ACCESSOR,
            secret_id::DESTROY_ACCESSOR,
            secret_id::DESTROY_ACCESSOR_BY_DELETE,
            secret_id::CUSTOM,
        ];
        &ROUTES
    }

    fn identities(&self) -> Option<&dyn Identities> {
        Some(self)
    }
}

impl Identities for AppRole {
    fn principal(&self, mount: &Mount, name: &str) -> Result<String, Refusal> {
        Ok(principal(mount, &self::name(name)?))
    }

    fn policies(&self, tx: &mut Tx, mount: &Mount, name: &str) -> Result<Option<Vec<String>>, Refusal> {
        let role = Role::load(tx, mount, &self::name(name)?)?;
        Ok(role.map(|role| {
            let mut policies = role.token_policies;
            if !role.token_no_default_policy {
                policies.push("default".to_owned());
            }
            policies
        }))
    }

    fn disarm(&self, tx: &mut Tx, host: &dyn Host, mount: &Mount, name: &str) -> Result<Removed, Refusal> {
        secret_id::destroy_all(tx, host, mount, &self::name(name)?)
    }
}

impl Owner for AppRole {
    /// Nothing is done in the world: a secret id ends, or those of a revoked role are removed.
    fn perform(&self, _: &mut Cx<'_>, _: &Duty) -> Result<Work, Refusal> {
        Ok(Box::pin(std::future::ready(Outcome::done(&()))))
    }

    fn settle(&self, cx: &mut Cx<'_>, duty: &Duty, _: &Outcome) -> Result<Answer, Refusal> {
        if duty.kind == secret_id::SWEEP { secret_id::sweep(cx, duty) } else { secret_id::end(cx, duty) }
    }
}

/// The identity of a role. `auth/approle/` gives `approle/<role>`: two mounts never share an identity.
fn principal(mount: &Mount, role: &str) -> String {
    format!("{}/{role}", identity(mount))
}

fn identity(mount: &Mount) -> &str {
    let path = mount.path.trimmed();
    path.strip_prefix("auth/").unwrap_or(path)
}

/// Names of roles, so that two spellings are never two roles: lower-cased letters, digits, `_`, `-` and `.`, beginning and ending with a
/// letter, a digit or `_`.
fn name(raw: &str) -> Result<String, Refusal> {
    let name = raw.to_ascii_lowercase();
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let outer = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.len() <= NAME_BYTES_MAX && name.chars().all(inner) && name.starts_with(outer) && name.ends_with(outer) {
        Ok(name)
    } else {
        Err(Refusal::invalid("a role name is 1 to 128 of `a-z 0-9 _ - .`, not beginning or ending with `-` or `.`"))
    }
}

const NAME_BYTES_MAX: usize = 128;
