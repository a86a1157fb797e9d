//! The plug boundary: what a room (a secrets engine, an auth method, the rotation machine, a kind of target) may see of the server.
//!
//! A room answers requests with values: "here is data", "make a token", "owe this duty and answer when it is settled". The kernel makes
//! them true. Handlers are synchronous, run on a snapshot and may be run again; only a duty's performance is async and touches the world.

pub mod answer;
pub mod call;
pub mod duty;
pub mod host;
pub mod route;
pub mod target;

use std::future::Future;
use std::pin::Pin;

pub use answer::{Answer, Batch, Feed, Frame, Grant};
pub use call::{Body, Call, Caller, Captures, Cx, Mount};
pub use duty::{Duty, DutyKey, NewDuty, Outcome, Work};
pub use host::{Host, Identities, Publish, Removed};
pub use policy::{Capability, NameError, Op as Need, Permit, PolicyName};
pub use route::{Access, Field, FieldKind, Meta, Op, Route, Routed};
pub use store::{Key, Prefix, Scope, Tx};
pub use target::{Fault, Login, RotationTarget, Session, TargetConfig, TargetKind};

use base::Refusal;

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whoever owes duties.
pub trait Owner: Send + Sync {
    /// Reads what the act needs in `cx` (nothing is written there) and returns the act itself. The act is idempotent: it may be performed
    /// again after a crash, or while an earlier performance is still finishing at the target.
    ///
    /// # Errors
    /// When the duty cannot be understood; it is then parked with the reason.
    fn perform(&self, cx: &mut Cx<'_>, duty: &Duty) -> Result<Work, Refusal>;

    /// Records the outcome and what follows from it. Runs in the commit that removes the duty. The answer goes to the request that waits
    /// for the duty, if one does.
    ///
    /// # Errors
    /// A refusal for the waiting request. The duty is settled all the same, keeping writes marked with `tx.keep()` only.
    fn settle(&self, cx: &mut Cx<'_>, duty: &Duty, outcome: &Outcome) -> Result<Answer, Refusal>;
}

/// A secrets engine or auth method, as its author sees it.
pub trait Engine: Owner + Sized + 'static {
    /// The type name under which it is mounted: `kv`, `approle`.
    const KIND: &'static str;

    /// Its routes: one static table that feeds router, validation and tests.
    fn routes() -> &'static [Route<Self>];

    /// How others publish values into it, if it stores any.
    fn publisher(&self) -> Option<&dyn Publish> {
        None
    }

    /// How its identities are revoked, if it is an auth method that has some.
    fn identities(&self) -> Option<&dyn Identities> {
        None
    }
}

/// An engine as the kernel sees it. Made from any [`Engine`] by the blanket implementation.
pub trait AnyEngine: Owner {
    /// The type name.
    fn kind(&self) -> &'static str;
    /// What the routes say of themselves, in order.
    fn metas(&self) -> Vec<&'static Meta>;
    /// Whether route `index` tells create from update.
    fn tells(&self, index: usize) -> bool;
    /// Whether the thing that route `index` writes exists; nothing when the route does not tell create from update.
    ///
    /// # Errors
    /// As the route's own.
    fn exists(&self, index: usize, cx: &mut Cx<'_>) -> Option<Result<bool, Refusal>>;
    /// Paths besides the request's own that must be permitted too.
    ///
    /// # Errors
    /// As the route's own.
    fn also(&self, index: usize, cx: &mut Cx<'_>) -> Result<Vec<(Need, base::CanonPath)>, Refusal>;
    /// Runs the handler of route `index`.
    ///
    /// # Errors
    /// As the route's own.
    fn handle(&self, index: usize, cx: &mut Cx<'_>, permit: Permit) -> Result<Answer, Refusal>;
    /// How others publish values into it.
    fn publishing(&self) -> Option<&dyn Publish>;
    /// How its identities are revoked.
    fn identifying(&self) -> Option<&dyn Identities>;
}

impl<E: Engine> AnyEngine for E {
    fn kind(&self) -> &'static str {
        E::KIND
    }

    fn metas(&self) -> Vec<&'static Meta> {
        E::routes().iter().map(|route| &route.meta).collect()
    }

    fn tells(&self, index: usize) -> bool {
        E::routes().get(index).is_some_and(|route| route.exists.is_some())
    }

    fn exists(&self, index: usize, cx: &mut Cx<'_>) -> Option<Result<bool, Refusal>> {
        let ask = E::routes().get(index)?.exists?;
        Some(ask(self, cx))
    }

    fn also(&self, index: usize, cx: &mut Cx<'_>) -> Result<Vec<(Need, base::CanonPath)>, Refusal> {
        match E::routes().get(index).and_then(|route| route.also) {
            Some(also) => also(self, cx),
            None => Ok(Vec::new()),
        }
    }

    fn handle(&self, index: usize, cx: &mut Cx<'_>, permit: Permit) -> Result<Answer, Refusal> {
        match E::routes().get(index) {
            Some(route) => (route.handle)(self, cx, permit),
            None => Err(Refusal::internal(format!("engine `{}` has no route {index}", E::KIND))),
        }
    }

    fn publishing(&self) -> Option<&dyn Publish> {
        self.publisher()
    }

    fn identifying(&self) -> Option<&dyn Identities> {
        self.identities()
    }
}
