//! Tokens: who a caller is, until when, and what hangs on it. Looked up by hash; the token itself is never stored.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::{MountId, Refusal, Rng, SecretString, Timestamp};
use engine::{Caller, Grant, NewDuty, duty};
use serde::{Deserialize, Serialize};
use store::{Key, Prefix, Scope, Tx};

use crate::identities::Origin;
use crate::{identities, mounts};

/// Tokens that one commit revokes. What is left of a larger tree is owed and follows at once.
pub const REVOKED_AT_ONCE_MAX: usize = 1_000;

/// Ancestors of a token at most: each use asks for all of them.
pub const ANCESTORS_MAX: usize = 32;

/// Principals that an orphan is known to have come from: the nearest, and the first of all.
pub const MAKERS_MAX: usize = 32;

/// A token as it is stored, sealed, under the hash of its text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Token {
    /// Found by this without knowing the token.
    pub accessor: String,
    /// The hash of the token that made it; none for orphans.
    pub parent: Option<String>,
    /// The accessor of the token that made it: which of those that had its text, one after the other. Empty for orphans.
    #[serde(default)]
    pub parent_accessor: String,
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
    /// How often its principal had been revoked when it was made.
    #[serde(default)]
    pub epoch: u64,
    /// Of an orphan: the principals that it came from, the nearest first. It is revoked with each of them.
    #[serde(default)]
    pub made_by: Vec<Origin>,
}

/// A principal that a token came from, its own among them.
#[derive(Clone, Copy)]
pub struct OriginRef<'a> {
    /// The principal.
    pub principal: &'a str,
    /// How often it had been revoked when the token was made.
    pub epoch: u64,
}

impl Token {
    /// Its own principal, then those that it came from as an orphan. Who it hangs on as a child is not among them.
    pub fn origins(&self) -> impl Iterator<Item = OriginRef<'_>> {
        let own = OriginRef { principal: &self.principal, epoch: self.epoch };
        std::iter::once(own).chain(self.made_by.iter().map(|origin| OriginRef { principal: &origin.principal, epoch: origin.epoch }))
    }

    /// Whether it came from this principal before its revocation that began this epoch.
    #[must_use]
    pub fn is_behind(&self, principal: &str, epoch: u64) -> bool {
        self.origins().any(|origin| origin.principal == principal && origin.epoch < epoch)
    }

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

    /// Whether its own time has not come at `now`. Checked at every use: no sweeper decides this.
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

/// The row that finds a token from the accessor of the one that made it.
fn child_key(parent_accessor: &str, child: &str) -> Key {
    Key::new(Scope::KERNEL, "child", &[parent_accessor, child])
}

/// All tokens, by their hashes.
pub(crate) fn all() -> Prefix {
    Prefix::new(Scope::KERNEL, "token", &[])
}

/// All accessors.
pub(crate) fn accessors() -> Prefix {
    Prefix::new(Scope::KERNEL, "accessor", &[])
}

/// The hashes of the tokens that hang on the one with this accessor.
pub(crate) fn children(accessor: &str) -> Prefix {
    Prefix::new(Scope::KERNEL, "child", &[accessor])
}

/// The token with this hash as it is stored, dead or alive.
pub(crate) fn stored(tx: &mut Tx, hash: &str) -> Result<Option<Token>, Refusal> {
    Ok(tx.read(&key(hash))?)
}

/// The living token with this hash. It lives while its time has not come, the auth method that made it is there, no identity that it came from
/// was revoked since, and so for every token that it hangs on: what is still stored of a family whose head is gone opens nothing.
///
/// # Errors
/// When the store cannot be read.
pub fn find(tx: &mut Tx, hash: &str) -> Result<Option<Token>, Refusal> {
    let Some(token) = own_life(tx, hash)? else { return Ok(None) };
    Ok(ancestors(tx, &token)?.map(|_| token))
}

/// The tokens that `token` hangs on, the nearest first; nothing when one of them is gone, or when they are too many.
///
/// # Errors
/// When the store cannot be read.
pub fn ancestors(tx: &mut Tx, token: &Token) -> Result<Option<Vec<Token>>, Refusal> {
    let mut found: Vec<Token> = Vec::new();
    loop {
        let below = found.last().unwrap_or(token);
        let Some(hash) = &below.parent else { return Ok(Some(found)) };
        if found.len() == ANCESTORS_MAX {
            return Ok(None);
        }
        // Entries of before are known by the hash alone.
        let same = |parent: &Token| below.parent_accessor.is_empty() || parent.accessor == below.parent_accessor;
        let Some(parent) = own_life(tx, hash)?.filter(same) else { return Ok(None) };
        found.push(parent);
    }
}

/// The principals that an orphan comes from which `token` makes: its own, those of the tokens that it hangs on, and those that the first of them
/// came from itself. Root is not among them. Of many, the first of all stays: it is the identity that logged in, if one did.
#[must_use]
pub fn makers(token: &Token, ancestors: &[Token]) -> Vec<Origin> {
    let mut found: Vec<Origin> = Vec::new();
    for token in std::iter::once(token).chain(ancestors) {
        for OriginRef { principal, epoch } in token.origins() {
            if principal != identities::ROOT && found.iter().all(|known| known.principal != principal) {
                found.push(Origin { principal: principal.to_owned(), epoch });
            }
        }
    }
    if found.len() > MAKERS_MAX {
        let first = found.pop();
        found.truncate(MAKERS_MAX - 1);
        found.extend(first);
    }
    found
}

/// The token with this hash, if its own time has not come, the auth method that made it is there, and its identity was not revoked.
fn own_life(tx: &mut Tx, hash: &str) -> Result<Option<Token>, Refusal> {
    let now = tx.now();
    let Some(token) = tx.read::<Token>(&key(hash))?.filter(|token| token.alive(now)) else { return Ok(None) };
    let based = token.mount.map_or(Ok(true), |id| mounts::is_there(tx, id))?;
    Ok((based && !identities::is_revoked(tx, &token)?).then_some(token))
}

/// The hash of the living token with this accessor, and the token.
///
/// # Errors
/// When the store cannot be read.
pub fn by_accessor(tx: &mut Tx, accessor: &str) -> Result<Option<(String, Token)>, Refusal> {
    let Some(hash) = tx.read::<String>(&accessor_key(accessor))? else { return Ok(None) };
    Ok(find(tx, &hash)?.filter(|token| token.accessor == accessor).map(|token| (hash, token)))
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
    if token.parent.is_some() {
        tx.write(&child_key(&token.parent_accessor, &hash), &true)?;
    }
    identities::add(tx, &hash, token)?;
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
    let Some(token) = tx.read::<Token>(&key(hash))? else { return Ok(0) };
    remove(tx, hash, &token)?;
    Ok(revoke_below(tx, token.accessor)?.saturating_add(1))
}

/// Removes all below the token that had this accessor: as many as fit one commit, and owes the rest.
///
/// # Errors
/// When the store cannot be written.
pub fn revoke_below(tx: &mut Tx, accessor: String) -> Result<usize, Refusal> {
    let mut open = vec![accessor];
    let (mut room, mut done) = (REVOKED_AT_ONCE_MAX, 0);
    while let Some(parent) = open.pop() {
        let below = tx.list(&children(&parent), None, room.saturating_add(1))?;
        if below.len() > room {
            owe_rest(tx, &parent)?;
        }
        for child in below.into_iter().take(room) {
            room = room.saturating_sub(1);
            match tx.read::<Token>(&key(&child))?.filter(|token| token.parent_accessor == parent) {
                Some(token) => {
                    remove(tx, &child, &token)?;
                    open.push(token.accessor);
                    done += 1;
                }
                None => tx.delete(&child_key(&parent, &child))?,
            }
        }
    }
    Ok(done)
}

/// Removes all rows of one token.
pub(crate) fn remove(tx: &mut Tx, hash: &str, token: &Token) -> Result<(), Refusal> {
    tx.delete(&accessor_key(&token.accessor))?;
    identities::forget(tx, hash, token)?;
    if token.parent.is_some() {
        tx.delete(&child_key(&token.parent_accessor, hash))?;
    }
    Ok(tx.delete(&key(hash))?)
}

/// Lets the children of a token live on without a parent.
///
/// # Errors
/// 400 when there are more than fit one commit; when the store cannot be written.
pub fn orphan(tx: &mut Tx, hash: &str) -> Result<(), Refusal> {
    let Some(token) = tx.read::<Token>(&key(hash))? else { return Ok(()) };
    let below = tx.list(&children(&token.accessor), None, REVOKED_AT_ONCE_MAX.saturating_add(1))?;
    if below.len() > REVOKED_AT_ONCE_MAX {
        return Err(Refusal::invalid(format!(
            "the token has more than {REVOKED_AT_ONCE_MAX} children: they cannot all be orphaned at once"
        )));
    }
    for child in below {
        tx.delete(&child_key(&token.accessor, &child))?;
        if let Some(mut child_token) = tx.read::<Token>(&key(&child))?.filter(|child| child.parent_accessor == token.accessor) {
            child_token.parent = None;
            child_token.parent_accessor = String::new();
            update(tx, &child, &child_token)?;
        }
    }
    Ok(())
}

/// Owes the revocation of what is below a token that is gone itself.
pub(crate) fn owe_rest(tx: &mut Tx, accessor: &str) -> Result<(), Refusal> {
    let duty = NewDuty {
        key: format!("revoke-below/{accessor}"),
        kind: REVOKE_BELOW,
        due: tx.now(),
        act: false,
        lane: String::new(),
        payload: engine::answer::raw(&accessor)?,
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
        parent_accessor: String::new(),
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
        epoch: identities::epoch(tx, &grant.principal)?,
        made_by: Vec::new(),
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

/// The duty that removes what is below a token that is gone: its payload is that token's accessor.
pub const REVOKE_BELOW: &str = "revoke-below";

/// The mount id that token duties are owed by.
pub const OWNER: MountId = MountId::KERNEL;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base::time::ManualClock;
    use store::{IndexPlace, MemoryLog, NoObserver, RootKey, Store};

    use super::*;

    async fn store() -> Store {
        let rng = Arc::new(base::rng::SeededRng::new(1));
        let log = MemoryLog::new(&*rng).unwrap();
        let store = Store::open(Box::new(log), IndexPlace::Memory, Arc::new(ManualClock::new()), rng, Arc::new(NoObserver)).unwrap();
        store.initialise(&RootKey::new(&[7; 32]).unwrap(), Box::new(|_| b"{}".to_vec())).await.unwrap();
        store
    }

    fn token(tx: &mut Tx, name: &str, parent: Option<(&str, &Token)>) -> (String, Token) {
        let token = Token {
            accessor: format!("accessor-{name}-{}", tx.now().0),
            parent: parent.map(|(hash, _)| hash.to_owned()),
            parent_accessor: parent.map(|(_, token)| token.accessor.clone()).unwrap_or_default(),
            principal: String::new(),
            display_name: String::new(),
            policies: Vec::new(),
            meta: BTreeMap::new(),
            path: String::new(),
            created: tx.now(),
            creation_ttl: Duration::ZERO,
            expires: None,
            expires_at_most: None,
            explicit_max_ttl: Duration::ZERO,
            period: Duration::ZERO,
            renewable: false,
            uses: None,
            renewed: None,
            mount: None,
            epoch: 0,
            made_by: Vec::new(),
        };
        let hash = insert(tx, &SecretString::new(name.to_owned()), &token).unwrap();
        (hash, token)
    }

    /// What was owed named the text of the token that is gone, so a new one of that text kept the old one's children alive.
    #[tokio::test]
    async fn the_rest_of_a_family_goes_although_its_head_has_a_namesake() {
        let store = store().await;
        let mut tx = store.begin().unwrap();
        let (hash, old) = token(&mut tx, "chosen", None);
        let children: Vec<_> = (0..REVOKED_AT_ONCE_MAX + 5).map(|n| token(&mut tx, &format!("child-{n}"), Some((&hash, &old))).0).collect();
        assert_eq!(revoke(&mut tx, &hash).unwrap(), REVOKED_AT_ONCE_MAX + 1);
        let rest = duty::find(&mut tx, &engine::DutyKey { owner: OWNER, key: format!("revoke-below/{}", old.accessor) }).unwrap();
        assert_eq!(rest.unwrap().kind, REVOKE_BELOW);
        let mut new = token(&mut tx, "chosen", None).1;
        new.accessor = "another".into();
        insert(&mut tx, &SecretString::new("chosen".into()), &new).unwrap();
        let stored = |tx: &mut Tx| children.iter().filter(|child| tx.read::<Token>(&key(child)).unwrap().is_some()).count();
        assert_eq!(stored(&mut tx), 5);
        assert!(children.iter().all(|child| find(&mut tx, child).unwrap().is_none()), "and meanwhile they open nothing");
        assert_eq!(revoke_below(&mut tx, old.accessor).unwrap(), 5);
        assert_eq!(stored(&mut tx), 0);
        assert!(find(&mut tx, &hash).unwrap().is_some());
    }
}
