//! What the kernel does for rooms.

use base::{CanonPath, Refusal, Rng};
use serde_json::value::RawValue;
use store::Tx;

use crate::call::Mount;
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
}
