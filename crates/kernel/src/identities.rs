//! Identities: what tokens are made for, revoked as a whole.
//!
//! A *mark* on the principal counts how often it was revoked. A token carries the count of its principal, and of every principal that it came
//! from, as it was when the token was made. One whose count is behind the mark is dead at its next use: so one small write ends any number of
//! tokens, and all streams, which look at the mark with each look.
//!
//! The rows of those tokens are removed in the same commit as far as they fit, and by jobs after it.

use std::collections::BTreeSet;

use base::Refusal;
use engine::{NewDuty, duty};
use serde::{Deserialize, Serialize};
use store::{Key, Prefix, Scope, Tx};

use crate::tokens::{self, OWNER, REVOKED_AT_ONCE_MAX, Token};

/// The principal of the root token. It is not revoked as an identity: everything came from it.
pub const ROOT: &str = "root";

/// A principal that a token came from, and how often that had been revoked by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The principal.
    pub principal: String,
    /// Its epoch.
    pub epoch: u64,
}

/// What a revocation removed in its own commit.
#[derive(Default)]
pub struct Ended {
    /// Tokens that were made for the identity, or came from it as orphans.
    pub tokens: usize,
    /// Tokens below those.
    pub below: usize,
    /// Whether there may be more, which are dead and will be removed by jobs.
    pub more: bool,
    /// The principals of all of them.
    pub principals: BTreeSet<String>,
    /// The policies of all of them.
    pub policies: BTreeSet<String>,
}

/// How often a principal was revoked.
///
/// # Errors
/// When the store cannot be read.
pub fn epoch(tx: &mut Tx, principal: &str) -> Result<u64, Refusal> {
    Ok(tx.read(&mark_key(principal))?.unwrap_or(0))
}

/// Whether the token came from a principal that was revoked since.
///
/// # Errors
/// When the store cannot be read.
pub fn is_revoked(tx: &mut Tx, token: &Token) -> Result<bool, Refusal> {
    for origin in token.origins() {
        if epoch(tx, origin.principal)? > origin.epoch {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Revokes the identity. Of what is looked at, `look` sees it: it is no part of the commit, so a client that uses or renews its token all the
/// time cannot put its own revocation off. What it makes meanwhile is behind the mark.
///
/// # Errors
/// When the store cannot be read or written.
pub fn revoke(tx: &mut Tx, look: &mut Tx, principal: &str) -> Result<Ended, Refusal> {
    let epoch = epoch(tx, principal)?.saturating_add(1);
    tx.write(&mark_key(principal), &epoch)?;
    let mut sweep = Sweep::new(tx, look);
    let hashes = sweep.look.list(&tokens_of(principal), None, REVOKED_AT_ONCE_MAX)?;
    for hash in hashes {
        sweep.end(&hash, &mut |token| token.is_behind(principal, epoch))?;
    }
    let ended = sweep.finish()?;
    // Tokens that were made meanwhile, and those that did not fit.
    owe_sweep(tx, &Rest { principal: principal.to_owned(), epoch, after: None })?;
    Ok(ended)
}

/// Removes one token with all below it, without its identity.
///
/// # Errors
/// When the store cannot be read or written.
pub fn end_one(tx: &mut Tx, look: &mut Tx, hash: &str) -> Result<Ended, Refusal> {
    let mut sweep = Sweep::new(tx, look);
    sweep.end(hash, &mut |_| true)?;
    sweep.finish()
}

/// What is left to remove of a revoked identity.
#[derive(Serialize, Deserialize)]
struct Rest {
    principal: String,
    epoch: u64,
    /// Tokens up to here were looked at.
    after: Option<String>,
}

/// The job that removes the dead tokens of a revoked identity.
pub const SWEEP: &str = "sweep-identity";
/// The job that finds tokens which were stored before there was a row from principal to token.
pub const INDEX: &str = "index-tokens";

fn owe_sweep(tx: &mut Tx, rest: &Rest) -> Result<(), Refusal> {
    let key = format!("sweep/{}/{}", rest.principal, rest.epoch);
    owe(tx, SWEEP, key, rest)
}

fn owe(tx: &mut Tx, kind: &'static str, key: String, payload: &impl Serialize) -> Result<(), Refusal> {
    let (due, payload) = (tx.now(), engine::answer::raw(payload)?);
    duty::owe(tx, OWNER, NewDuty { key, kind, due, act: false, lane: String::new(), payload }, "").map(drop)
}

/// One page of [`SWEEP`]: removes what is dead, leaves what was made since, owes the next page. Returns how many tokens were removed.
///
/// # Errors
/// When the store cannot be read or written.
pub fn sweep(tx: &mut Tx, look: &mut Tx, payload: &str) -> Result<usize, Refusal> {
    let rest: Rest = serde_json::from_str(payload).map_err(|_| Refusal::internal("a job to remove tokens could not be read"))?;
    let hashes = look.list(&tokens_of(&rest.principal), rest.after.as_deref(), REVOKED_AT_ONCE_MAX)?;
    let (last, full) = (hashes.last().cloned(), hashes.len() == REVOKED_AT_ONCE_MAX);
    let mut sweep = Sweep::new(tx, look);
    for hash in hashes {
        sweep.end(&hash, &mut |token| token.is_behind(&rest.principal, rest.epoch))?;
    }
    let ended = sweep.finish()?;
    if full {
        owe_sweep(tx, &Rest { after: last, ..rest })?;
    }
    Ok(ended.tokens + ended.below)
}

/// Removes tokens with all below them, as many as fit one commit; what is below those that do not fit is owed.
struct Sweep<'a> {
    tx: &'a mut Tx,
    look: &'a mut Tx,
    room: usize,
    /// Accessors of removed tokens whose children were not looked at.
    open: Vec<String>,
    ended: Ended,
}

impl<'a> Sweep<'a> {
    fn new(tx: &'a mut Tx, look: &'a mut Tx) -> Self {
        Self { tx, look, room: REVOKED_AT_ONCE_MAX, open: Vec::new(), ended: Ended::default() }
    }

    /// Removes the token with this hash if it is one that `dead` says is dead.
    fn end(&mut self, hash: &str, dead: &mut dyn FnMut(&Token) -> bool) -> Result<(), Refusal> {
        let Some(token) = tokens::stored(self.look, hash)?.filter(|token| dead(token)) else { return Ok(()) };
        self.ended.tokens += 1;
        self.take(hash, token)
    }

    fn take(&mut self, hash: &str, token: Token) -> Result<(), Refusal> {
        tokens::remove(self.tx, hash, &token)?;
        self.room = self.room.saturating_sub(1);
        self.ended.principals.insert(token.principal);
        self.ended.policies.extend(token.policies);
        self.open.push(token.accessor);
        Ok(())
    }

    fn finish(mut self) -> Result<Ended, Refusal> {
        self.ended.more = self.room == 0;
        while let Some(parent) = self.open.pop() {
            let children = self.look.list(&tokens::children(&parent), None, self.room.saturating_add(1))?;
            if children.len() > self.room {
                self.ended.more = true;
                tokens::owe_rest(self.tx, &parent)?;
            }
            for child in children.into_iter().take(self.room) {
                let Some(token) = tokens::stored(self.look, &child)?.filter(|token| token.parent_accessor == parent) else { continue };
                self.ended.below += 1;
                self.take(&child, token)?;
            }
        }
        Ok(self.ended)
    }
}

/// Tokens that are given their rows in one commit.
const INDEXED_AT_ONCE: usize = 1_000;

/// Owes the job that writes the rows from principal to token for tokens that were stored before there were any. Nothing to do where it is done,
/// and in a store that began with them. Until it is done those tokens are revoked by the mark alone, and counted by none.
///
/// # Errors
/// When the store cannot be read or written.
pub fn owe_index(tx: &mut Tx) -> Result<(), Refusal> {
    if tx.exists(&indexed_key())? { Ok(()) } else { owe(tx, INDEX, INDEX.to_owned(), &None::<String>) }
}

/// Says that every token has its row.
///
/// # Errors
/// When the store cannot be written.
pub fn indexed(tx: &mut Tx) -> Result<(), Refusal> {
    Ok(tx.write(&indexed_key(), &true)?)
}

/// One page of [`INDEX`]. What is dead by a mark is removed instead.
///
/// # Errors
/// When the store cannot be read or written.
pub fn index(tx: &mut Tx, look: &mut Tx, payload: &str) -> Result<usize, Refusal> {
    let after: Option<String> = serde_json::from_str(payload).map_err(|_| Refusal::internal("a job to index tokens could not be read"))?;
    let hashes = look.list(&tokens::all(), after.as_deref(), INDEXED_AT_ONCE)?;
    for hash in &hashes {
        // Read by the commit itself: a token that is removed meanwhile must not get a row.
        let Some(token) = tokens::stored(tx, hash)? else { continue };
        if is_revoked(tx, &token)? {
            tokens::remove(tx, hash, &token)?;
            tokens::owe_rest(tx, &token.accessor)?;
        } else {
            add(tx, hash, &token)?;
        }
    }
    if hashes.len() == INDEXED_AT_ONCE {
        owe(tx, INDEX, INDEX.to_owned(), &hashes.last())?;
    } else {
        indexed(tx)?;
    }
    Ok(hashes.len())
}

/// Whether a token of this principal is stored.
///
/// # Errors
/// When the store cannot be read.
pub fn has_tokens(tx: &mut Tx, principal: &str) -> Result<bool, Refusal> {
    Ok(!tx.list(&tokens_of(principal), None, 1)?.is_empty())
}

/// Writes the rows that find a token from the principals that it came from.
pub(crate) fn add(tx: &mut Tx, hash: &str, token: &Token) -> Result<(), Refusal> {
    for origin in token.origins() {
        tx.write(&token_key(origin.principal, hash), &true)?;
    }
    Ok(())
}

/// Removes those rows.
pub(crate) fn forget(tx: &mut Tx, hash: &str, token: &Token) -> Result<(), Refusal> {
    for origin in token.origins() {
        tx.delete(&token_key(origin.principal, hash))?;
    }
    Ok(())
}

fn mark_key(principal: &str) -> Key {
    Key::new(Scope::KERNEL, "revoked", &[principal])
}

fn tokens_of(principal: &str) -> Prefix {
    Prefix::new(Scope::KERNEL, "principal", &[principal])
}

fn token_key(principal: &str, hash: &str) -> Key {
    Key::new(Scope::KERNEL, "principal", &[principal, hash])
}

fn indexed_key() -> Key {
    Key::new(Scope::KERNEL, "principal-index", &["complete"])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use base::SecretString;
    use base::time::ManualClock;
    use store::{CommitError, IndexPlace, MemoryLog, NoObserver, RootKey, Store};

    use super::*;

    struct Bench(Store);

    impl Bench {
        async fn new() -> Self {
            let rng = Arc::new(base::rng::SeededRng::new(1));
            let log = MemoryLog::new(&*rng).unwrap();
            let store = Store::open(Box::new(log), IndexPlace::Memory, Arc::new(ManualClock::new()), rng, Arc::new(NoObserver)).unwrap();
            store.initialise(&RootKey::new(&[7; 32]).unwrap(), Box::new(|_| b"{}".to_vec())).await.unwrap();
            Self(store)
        }

        fn begin(&self) -> Tx {
            self.0.begin().unwrap()
        }

        /// Whether it was committed.
        async fn commit(&self, tx: Tx) -> bool {
            match self.0.commit(tx, Box::new(|_| b"{}".to_vec())).await {
                Ok(_) => true,
                Err(CommitError::Conflict) => false,
                Err(other) => panic!("{other}"),
            }
        }

        async fn insert(&self, name: &str, change: impl FnOnce(&mut Token)) -> String {
            let mut tx = self.begin();
            let mut token = Token {
                accessor: format!("accessor-{name}"),
                parent: None,
                parent_accessor: String::new(),
                principal: "approle/web".into(),
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
                epoch: epoch(&mut tx, "approle/web").unwrap(),
                made_by: Vec::new(),
            };
            change(&mut token);
            let hash = tokens::insert(&mut tx, &SecretString::new(name.to_owned()), &token).unwrap();
            assert!(self.commit(tx).await);
            hash
        }

        fn lives(&self, hash: &str) -> bool {
            tokens::find(&mut self.begin(), hash).unwrap().is_some()
        }

        fn is_stored(&self, hash: &str) -> bool {
            tokens::stored(&mut self.begin(), hash).unwrap().is_some()
        }
    }

    /// Who renews, uses or makes tokens without pause must not put its own revocation off.
    #[tokio::test]
    async fn what_the_identity_does_meanwhile_does_not_hold_its_revocation_up() {
        let bench = Bench::new().await;
        let hash = bench.insert("one", |_| {}).await;
        let mut renewal = bench.begin();
        let token = tokens::find(&mut renewal, &hash).unwrap().unwrap();
        tokens::update(&mut renewal, &hash, &token).unwrap();
        let mut late = bench.begin();
        assert!(tokens::find(&mut late, &hash).unwrap().is_some());
        tokens::update(&mut late, &hash, &token).unwrap();

        let (mut tx, mut look) = (bench.begin(), bench.begin());
        assert_eq!(revoke(&mut tx, &mut look, "approle/web").unwrap().tokens, 1);
        assert!(bench.commit(renewal).await);
        let meanwhile = bench.insert("two", |_| {}).await;
        let child =
            bench.insert("three", |token| (token.parent, token.parent_accessor) = (Some(hash.clone()), "accessor-one".into())).await;
        assert!(bench.commit(tx).await, "it waits for nobody");
        assert!(!bench.commit(late).await, "a renewal that began before does not bring it back");
        assert!(!bench.is_stored(&hash));
        assert!(!bench.lives(&meanwhile) && !bench.lives(&child), "what it made meanwhile is dead as well");
        // A login that has looked at the mark before the commit cannot commit after it.
        let mut login = bench.begin();
        let old = epoch(&mut login, "approle/web").unwrap();
        tokens::insert(&mut login, &SecretString::new("four".into()), &Token { epoch: old, ..token }).unwrap();
        let (mut tx, mut look) = (bench.begin(), bench.begin());
        revoke(&mut tx, &mut look, "approle/web").unwrap();
        assert!(bench.commit(tx).await && !bench.commit(login).await);
    }

    /// Tokens of before have no row from their principal, and no epoch.
    #[tokio::test]
    async fn tokens_of_before_are_revoked_and_found() {
        let bench = Bench::new().await;
        let mut hashes = Vec::new();
        for n in 0..INDEXED_AT_ONCE + 5 {
            hashes.push(bench.insert(&n.to_string(), |_| {}).await);
        }
        let other = bench.insert("other", |token| token.principal = "approle/other".into()).await;
        let mut tx = bench.begin();
        for hash in &hashes {
            tx.delete(&token_key("approle/web", hash)).unwrap();
        }
        tx.delete(&token_key("approle/other", &other)).unwrap();
        // As they were written then.
        let key = Key::new(Scope::KERNEL, "token", &[&hashes[0]]);
        let mut old: BTreeMap<String, serde_json::Value> = tx.read(&key).unwrap().unwrap();
        assert!(old.remove("epoch").is_some() && old.remove("made_by").is_some());
        tx.write(&key, &old).unwrap();
        owe_index(&mut tx).unwrap();
        assert!(bench.commit(tx).await);

        let (mut tx, mut look) = (bench.begin(), bench.begin());
        assert_eq!(revoke(&mut tx, &mut look, "approle/web").unwrap().tokens, 0);
        assert!(bench.commit(tx).await);
        assert!(hashes.iter().all(|hash| !bench.lives(hash)), "the mark needs no row");
        assert!(bench.lives(&other) && !has_tokens(&mut bench.begin(), "approle/other").unwrap());
        for page in 0..2 {
            let mut tx = bench.begin();
            let id = engine::DutyKey { owner: OWNER, key: INDEX.to_owned() };
            let owed = duty::find(&mut tx, &id).unwrap().unwrap();
            duty::remove(&mut tx, &id).unwrap();
            assert_eq!(index(&mut tx, &mut bench.begin(), owed.payload.get()).unwrap(), [INDEXED_AT_ONCE, 6][page]);
            assert!(bench.commit(tx).await);
        }
        assert!(hashes.iter().all(|hash| !bench.is_stored(hash)));
        assert!(bench.lives(&other) && has_tokens(&mut bench.begin(), "approle/other").unwrap());
        let mut tx = bench.begin();
        owe_index(&mut tx).unwrap();
        assert!(tx.is_read_only(), "it is done once");
    }

    #[test]
    fn the_first_of_many_makers_is_never_forgotten() {
        let maker = |n: usize| Origin { principal: format!("token/{n}"), epoch: 0 };
        let mut made_by = vec![Origin { principal: "approle/web".into(), epoch: 3 }];
        for n in 0..tokens::MAKERS_MAX * 2 {
            let token = Token { made_by, ..token(&maker(n).principal) };
            made_by = tokens::makers(&token, &[token.clone(), super::tests::token("root")]);
            assert_eq!(made_by[0], maker(n));
            assert_eq!(made_by.last().unwrap().principal, "approle/web");
            assert!(made_by.len() <= tokens::MAKERS_MAX);
        }
    }

    fn token(principal: &str) -> Token {
        serde_json::from_value(serde_json::json!({
            "accessor": "", "parent": null, "principal": principal, "display_name": "", "policies": [], "meta": {}, "path": "", "created": 0,
            "creation_ttl": {"secs": 0, "nanos": 0}, "expires": null, "expires_at_most": null, "explicit_max_ttl": {"secs": 0, "nanos": 0},
            "period": {"secs": 0, "nanos": 0}, "renewable": false, "uses": null, "renewed": null,
        }))
        .unwrap()
    }
}
