//! What the kernel does for rooms.

use base::{CanonPath, Refusal, Rng};
use serde_json::value::RawValue;
use store::Tx;

use crate::Need;
use crate::call::{Caller, Mount};
use crate::duty::{DutyKey, NewDuty};

/// The kernel, as a room sees it. All methods act within the caller's transaction.
pub trait Host: Send + Sync {
    /// The source of randomness for secrets.
    fn rng(&self) -> &dyn Rng;

    /// Owes a duty; see [`crate::duty`].
    ///
    /// # Errors
    /// When the store cannot be read or written.
    fn owe(&self, tx: &mut Tx, owner: &Mount, duty: NewDuty) -> Result<DutyKey, Refusal>;

    /// Marks the secret at `path` (mount and path within it, as clients read it: `secret/data/orders/db`) as managed by `rotation`: clients'
    /// writes to it are refused from now on. `None` gives it back, also when nothing is mounted there any more. Claiming one's own claim
    /// changes nothing.
    ///
    /// # Errors
    /// 400 when nothing that publishes is mounted there, or another rotation manages it.
    fn claim(&self, tx: &mut Tx, path: &CanonPath, rotation: Option<&str>) -> Result<(), Refusal>;

    /// A rotation that has claimed a secret in `mount`, if there is one: what is claimed is not unmounted.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn claimant(&self, tx: &mut Tx, mount: &Mount) -> Result<Option<String>, Refusal>;

    /// Writes the next version of the secret at `path`, which `rotation` has claimed, and returns its number.
    ///
    /// # Errors
    /// As [`Host::claim`].
    fn publish(&self, tx: &mut Tx, path: &CanonPath, rotation: &str, value: &RawValue) -> Result<u64, Refusal>;

    /// Whether the token with this accessor is alive: not revoked, not expired.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn token_alive(&self, tx: &mut Tx, accessor: &str) -> Result<bool, Refusal>;

    /// Whether the rules of `caller` permit `need` at `path` now. A stream that asks is woken when they change. Not for [`Need::Write`], which
    /// depends on what exists.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn permits(&self, tx: &mut Tx, caller: &Caller, need: Need, path: &CanonPath) -> Result<bool, Refusal>;

    /// How often the identity `principal` was revoked. What an auth method hands out for it carries this number, and is good for nothing once
    /// the number has grown.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn epoch(&self, tx: &mut Tx, principal: &str) -> Result<u64, Refusal>;

    /// Revokes the identity `principal`: with this commit every token that was made for it, and every token that those made, opens nothing, and
    /// their streams end. Returns how many tokens were removed, and whether more are left to be removed by jobs.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    fn revoke_identity(&self, tx: &mut Tx, principal: &str) -> Result<Removed, Refusal>;
}

/// What was removed in one commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many.
    pub count: usize,
    /// Whether there may be more. They are good for nothing already, and jobs remove them.
    pub more: bool,
}

/// An auth method whose identities can be revoked.
pub trait Identities: Send + Sync {
    /// The identity that logins of this name at `mount` get. No look is taken whether it is there.
    ///
    /// # Errors
    /// 400 when there can be no such name.
    fn principal(&self, mount: &Mount, name: &str) -> Result<String, Refusal>;

    /// The policies that its logins get; nothing when it is not there.
    ///
    /// # Errors
    /// As [`Identities::principal`].
    fn policies(&self, tx: &mut Tx, mount: &Mount, name: &str) -> Result<Option<Vec<String>>, Refusal>;

    /// Removes what it logs in with, as far as it fits the commit, after its [`Host::epoch`] has grown.
    ///
    /// # Errors
    /// As [`Identities::principal`].
    fn disarm(&self, tx: &mut Tx, host: &dyn Host, mount: &Mount, name: &str) -> Result<Removed, Refusal>;
}

/// An engine that stores values which others publish. Paths are below the mount, as clients read them (`data/orders/db`).
pub trait Publish: Send + Sync {
    /// See [`Host::claim`].
    ///
    /// # Errors
    /// 400 when another rotation manages it.
    fn claim(&self, tx: &mut Tx, mount: &Mount, path: &CanonPath, rotation: Option<&str>) -> Result<(), Refusal>;

    /// See [`Host::claimant`].
    ///
    /// # Errors
    /// When the store cannot be read.
    fn claimant(&self, tx: &mut Tx, mount: &Mount) -> Result<Option<String>, Refusal>;

    /// See [`Host::publish`].
    ///
    /// # Errors
    /// 400 when `rotation` does not manage it.
    fn publish(&self, tx: &mut Tx, mount: &Mount, path: &CanonPath, rotation: &str, value: &RawValue) -> Result<u64, Refusal>;

    /// The secrets of the mount, at most `limit` of them, each with the rotation that has claimed it.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn secrets(&self, tx: &mut Tx, mount: &Mount, limit: usize) -> Result<Vec<(CanonPath, Option<String>)>, Refusal>;
}
