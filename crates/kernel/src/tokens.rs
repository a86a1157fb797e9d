//! Tokens: who a caller is, until when, and what hangs on it. Looked up by hash; the token itself is never stored.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::{MountId, Refusal, Rng, SecretString, Timestamp};
use engine::{Caller, Grant, NewDuty, duty};
use serde::{Deserialize, Serialize};
use store::{Key, Prefix, Scope, Tx};

use crate::mounts;

/// Tokens that one commit revokes. What is left of a larger tree is owed and follows at once.
pub const REVOKED_AT_ONCE_MAX: usize = 1_000;

/// A token as it is stored, sealed, under the hash of its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Token {
    /// Found by this without knowing the token.
    pub accessor: String,
    /// The hash of the token that made it; none for orphans.
    pub parent: Option<String>,
    /// What acknowledgements are bound to.
    pub principal: String,
    /// Shown in records.
    pub display_name: String,
    /// Sorted, without duplicates.
    pub policies: Vec<String>,
    /// Metadata given at creation.
    pub meta: BTreeMap<String, String>,
    /// The path that made it.
    pub path: String,
    /// When it was made.
    pub created: Timestamp,
    /// The time to live it was made with.
    pub creation_ttl: Duration,
    /// When it dies unless renewed; none only for root tokens.
    pub expires: Option<Timestamp>,
    /// No renewal goes beyond this; none for root tokens and for periodic ones without `explicit_max_ttl`.
    pub expires_at_most: Option<Timestamp>,
    /// The `explicit_max_ttl` it was made with; zero for none.
    pub explicit_max_ttl: Duration,
    /// Each renewal sets this time to live; zero for tokens that are not periodic.
    pub period: Duration,
    /// Whether it can be renewed.
    pub renewable: bool,
    /// Uses left; none means without limit.
    pub uses: Option<u64>,
    /// When it was last renewed.
    pub renewed: Option<Timestamp>,
    /// The auth method whose login made it; none for a token made directly.
    #[serde(default)]
    pub mount: Option<MountId>,
}

impl Token {
    /// Whether the root policy is attached.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.policies.iter().any(|p| p == "root")
    }

    /// Seconds left, rounded down; 0 when it never dies.
    #[must_use]
    pub fn ttl(&self, now: Timestamp) -> u64 {
        self.expires.map_or(0, |at| at.since(now).as_secs())
    }

    /// Alive at `now`. Checked at every use: no sweeper decides this.
    #[must_use]
    pub fn alive(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|at| now < at)
    }

    /// The caller that holds it.
    #[must_use]
    pub fn caller(&self, hash: [u8; 32]) -> Caller {
        Caller {
            principal: self.principal.clone(),
            accessor: self.accessor.clone(),
            display_name: self.display_name.clone(),
            policies: self.policies.clone(),
            root: self.is_root(),
            token_hash: hash,
        }
    }
}

/// The hash that a token is looked up by.
#[must_use]
pub fn hash(token: &str) -> [u8; 32] {
    crypto::hash::sha256(token.as_bytes())
}

/// The text of a hash, as keys have it.
#[must_use]
pub fn hex(hash: &[u8; 32]) -> String {
    crypto::encode::hex(hash)
}

fn key(hash: &str) -> Key {
    Key::new(Scope::KERNEL, "token", &[hash])
}

fn accessor_key(accessor: &str) -> Key {
    Key::new(Scope::KERNEL, "accessor", &[accessor])
}

fn child_key(parent: &str, child: &str) -> Key {
    Key::new(Scope::KERNEL, "child", &[parent, child])
}

/// The living token with this hash.
///
/// # Errors
/// When the store cannot be read.
pub fn find(tx: &mut Tx, hash: &str) -> Result<Option<Token>, Refusal> {
    let token: Option<Token> = tx.read(&key(hash))?;
    let now = tx.now();
    Ok(token.filter(|t| t.alive(now)))
}

/// The hash of the living token with this accessor, and the token.
///
/// # Errors
/// When the store cannot be read.
pub fn by_accessor(tx: &mut Tx, accessor: &str) -> Result<Option<(String, Token)>, Refusal> {
    let Some(hash) = tx.read::<String>(&accessor_key(accessor))? else { return Ok(None) };
    Ok(find(tx, &hash)?.map(|token| (hash, token)))
}

/// Takes one use of a token that has a limit.
///
/// # Errors
/// When the store cannot be written.
pub fn take_use(tx: &mut Tx, hash: &str, token: &mut Token) -> Result<(), Refusal> {
    let Some(left) = token.uses else { return Ok(()) };
    let left = left.saturating_sub(1);
    token.uses = Some(left);
    tx.write(&key(hash), token)?;
    tx.keep();
    Ok(())
}

/// Stores a token that was just made.
///
/// # Errors
/// When the store cannot be written.
pub fn insert(tx: &mut Tx, text: &SecretString, token: &Token) -> Result<String, Refusal> {
    let hash = hex(&hash(text.expose()));
    tx.write(&key(&hash), token)?;
    tx.write(&accessor_key(&token.accessor), &hash)?;
    if let Some(parent) = &token.parent {
        tx.write(&child_key(parent, &hash), &true)?;
    }
    Ok(hash)
}

/// Writes back a token that was renewed.
///
/// # Errors
/// When the store cannot be written.
pub fn update(tx: &mut Tx, hash: &str, token: &Token) -> Result<(), Refusal> {
    Ok(tx.write(&key(hash), token)?)
}

/// Removes the token, and all below it: as many as fit one commit, and owes the rest.
///
/// # Errors
/// When the store cannot be written.
pub fn revoke(tx: &mut Tx, hash: &str) -> Result<usize, Refusal> {
    let mut open = vec![hash.to_owned()];
    let (mut room, mut done) = (REVOKED_AT_ONCE_MAX, 0);
    while let Some(hash) = open.pop() {
        let children = tx.list(&Prefix::new(Scope::KERNEL, "child", &[&hash]), None, room.saturating_add(1))?;
        if children.len() > room {
            owe_rest(tx, &hash)?;
        }
        for child in children.into_iter().take(room) {
            tx.delete(&child_key(&hash, &child))?;
            room = room.saturating_sub(1);
            open.push(child);
        }
        if let Some(token) = tx.read::<Token>(&key(&hash))? {
            tx.delete(&accessor_key(&token.accessor))?;
            if let Some(parent) = &token.parent {
                tx.delete(&child_key(parent, &hash))?;
            }
            tx.delete(&key(&hash))?;
            done += 1;
        }
    }
    Ok(done)
}

/// Lets the children of a token live on without a parent.
///
/// # Errors
/// 400 when there are more than fit one commit; when the store cannot be written.
pub fn orphan(tx: &mut Tx, hash: &str) -> Result<(), Refusal> {
    let children = tx.list(&Prefix::new(Scope::KERNEL, "child", &[hash]), None, REVOKED_AT_ONCE_MAX.saturating_add(1))?;
    if children.len() > REVOKED_AT_ONCE_MAX {
        return Err(Refusal::invalid(format!(
            "the token has more than {REVOKED_AT_ONCE_MAX} children: they cannot all be orphaned at once"
        )));
    }
    for child in children {
        tx.delete(&child_key(hash, &child))?;
        if let Some(mut token) = tx.read::<Token>(&key(&child))? {
            token.parent = None;
            update(tx, &child, &token)?;
        }
    }
    Ok(())
}

/// Owes the revocation of what is below a token that is gone itself.
fn owe_rest(tx: &mut Tx, hash: &str) -> Result<(), Refusal> {
    let duty = NewDuty {
        key: format!("revoke/{hash}"),
        kind: EXPIRE,
        due: tx.now(),
        act: false,
        lane: String::new(),
        payload: engine::answer::raw(&hash)?,
    };
    duty::owe(tx, OWNER, duty, "").map(drop)
}

/// The limits that every token is capped by: those of the system, or of the auth method that made it.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// For tokens that ask for nothing.
    pub default: Duration,
    /// The longest life by renewal.
    pub max: Duration,
}

impl Lifetimes {
    /// The limits of the auth method that made a token; `self` where it sets none, and for a token made directly.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn of(self, tx: &mut Tx, mount: Option<MountId>) -> Result<Self, Refusal> {
        let record = mount.map(|id| mounts::record(tx, id)).transpose()?.flatten();
        let own = |set: Option<Duration>, system: Duration| set.filter(|span| !span.is_zero()).unwrap_or(system);
        let max = own(record.as_ref().map(|r| r.max_lease_ttl), self.max);
        Ok(Self { default: own(record.as_ref().map(|r| r.default_lease_ttl), self.default).min(max), max })
    }
}

/// Makes the token that a login at `mount` asked for. Returns its text, its hash and the record.
///
/// # Errors
/// When randomness or the store fails, or the grant would attach the root policy.
pub fn grant(
    tx: &mut Tx,
    rng: &dyn Rng,
    grant: &Grant,
    mount: MountId,
    system: Lifetimes,
) -> Result<(SecretString, String, Token), Refusal> {
    let (now, limits) = (tx.now(), system.of(tx, Some(mount))?);
    let policies = policy_set(&grant.policies, !grant.no_default_policy);
    if policies.iter().any(|p| p == "root") {
        return Err(Refusal::internal(format!("a login at `{}` asked for the root policy", grant.path)));
    }
    let max = [grant.ttl_max, grant.explicit_ttl_max].into_iter().filter(|span| !span.is_zero()).fold(limits.max, Duration::min);
    let ttl = match (grant.period.is_zero(), grant.ttl.is_zero()) {
        (false, _) => grant.period.min(max),
        (true, true) => limits.default.min(max),
        (true, false) => grant.ttl.min(max),
    };
    let token = Token {
        accessor: base::id::base62(rng, 24)?,
        parent: None,
        principal: grant.principal.clone(),
        display_name: grant.display_name.clone(),
        policies,
        meta: grant.metadata.clone(),
        path: grant.path.clone(),
        created: now,
        creation_ttl: ttl,
        expires: Some(now.after(ttl)),
        expires_at_most: if grant.period.is_zero() {
            Some(now.after(max))
        } else {
            (!grant.explicit_ttl_max.is_zero()).then(|| now.after(grant.explicit_ttl_max.min(limits.max)))
        },
        explicit_max_ttl: grant.explicit_ttl_max,
        period: grant.period,
        renewable: true,
        uses: (grant.num_uses > 0).then_some(grant.num_uses),
        renewed: None,
        mount: Some(mount),
    };
    let text = fresh(rng)?;
    let hash = insert(tx, &text, &token)?;
    Ok((text, hash, token))
}

/// The text of a new service token: `hvs.` and 24 characters, the form that scanners recognise.
///
/// # Errors
/// When randomness fails.
pub fn fresh(rng: &dyn Rng) -> Result<SecretString, Refusal> {
    Ok(SecretString::new(format!("hvs.{}", base::id::base62(rng, 24)?)))
}

/// Sorted, lower case, without duplicates, with `default` if wanted.
#[must_use]
pub fn policy_set(names: &[String], default: bool) -> Vec<String> {
    let mut set: BTreeSet<String> = names.iter().map(|n| n.to_lowercase()).collect();
    if default && !set.contains("root") {
        set.insert("default".into());
    }
    set.into_iter().collect()
}

/// The duty that removes a token that has ended, and what is below it.
pub const EXPIRE: &str = "expire-token";

/// The mount id that token duties are owed by.
pub const OWNER: MountId = MountId::KERNEL;
