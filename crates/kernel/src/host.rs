//! The kernel as the rooms see it.

use base::{CanonPath, Refusal, Rng};
use engine::{Caller, DutyKey, Host, Mount, Need, NewDuty, Removed, duty};
use policy::{Ask, Refused};
use serde_json::value::RawValue;
use store::Tx;

use crate::{Kernel, Plug, identities, mounts, tokens};

impl Host for Kernel {
    fn rng(&self) -> &dyn Rng {
        self.shared.rng.as_ref()
    }

    fn owe(&self, tx: &mut Tx, owner: &Mount, duty: NewDuty) -> Result<DutyKey, Refusal> {
        duty::owe(tx, owner.id, duty, &self.shared.boot)
    }

    fn claim(&self, tx: &mut Tx, path: &CanonPath, rotation: Option<&str>) -> Result<(), Refusal> {
        if rotation.is_none() && mounts::find(tx, path)?.is_none() {
            // What is no longer mounted has nothing to give back.
            return Ok(());
        }
        let (plug, mount, below) = self.publishing(tx, path)?;
        let publish = plug.engine.publishing().ok_or_else(|| nowhere(path))?;
        publish.claim(tx, &mount, &below, rotation)
    }

    fn claimant(&self, tx: &mut Tx, mount: &Mount) -> Result<Option<String>, Refusal> {
        match self.engines.get(mount.kind.as_str()).and_then(|plug| plug.engine.publishing()) {
            Some(publish) => publish.claimant(tx, mount),
            None => Ok(None),
        }
    }

    fn publish(&self, tx: &mut Tx, path: &CanonPath, rotation: &str, value: &RawValue) -> Result<u64, Refusal> {
        let (plug, mount, below) = self.publishing(tx, path)?;
        let publish = plug.engine.publishing().ok_or_else(|| nowhere(path))?;
        publish.publish(tx, &mount, &below, rotation, value)
    }

    fn token_alive(&self, tx: &mut Tx, accessor: &str) -> Result<bool, Refusal> {
        Ok(tokens::by_accessor(tx, accessor)?.is_some())
    }

    fn permits(&self, tx: &mut Tx, caller: &Caller, need: Need, path: &CanonPath) -> Result<bool, Refusal> {
        let rules = self.shared.policies.rules(tx, &caller.policies)?;
        match policy::decide::<Refusal>(&rules, &[Ask::new(need, path)], &mut || Ok(true)) {
            Ok(_) => Ok(true),
            Err(Refused::Denied(_)) => Ok(false),
            Err(Refused::Exists(refusal)) => Err(refusal),
        }
    }

    fn epoch(&self, tx: &mut Tx, principal: &str) -> Result<u64, Refusal> {
        identities::epoch(tx, principal)
    }

    fn revoke_identity(&self, tx: &mut Tx, principal: &str) -> Result<Removed, Refusal> {
        let ended = identities::revoke(tx, &mut self.shared.store.begin()?, principal)?;
        Ok(Removed { count: ended.tokens + ended.below, more: ended.more })
    }
}

impl Kernel {
    fn publishing(&self, tx: &mut Tx, path: &CanonPath) -> Result<(&Plug, Mount, CanonPath), Refusal> {
        let mount = mounts::find(tx, path)?.ok_or_else(|| nowhere(path))?;
        let below = path.below(&mount.path).ok_or_else(|| nowhere(path))?;
        Ok((self.engine(&mount.kind)?, mount, below))
    }
}

fn nowhere(path: &CanonPath) -> Refusal {
    Refusal::invalid(format!("field `path`: no engine that stores values is mounted at `{path}`"))
}
