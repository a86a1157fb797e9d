//! Key and value secrets with versions (kv version 2).
//!
//! A value is the raw JSON object that came in; nothing here takes it apart except a merge patch. Paths that a rotation has
//! claimed are written by that rotation alone, see [`publish`].

mod config;
mod data;
mod delete;
mod destroy;
mod elsewhere;
mod metadata;
mod publish;
mod record;
mod undelete;

use base::Refusal;
use engine::{Answer, Cx, Duty, Engine, Outcome, Owner, Publish, Route, Work};

/// The engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kv;

impl Engine for Kv {
    const KIND: &'static str = "kv";

    fn routes() -> &'static [Route<Self>] {
        static ROUTES: [Route<Kv>; 21] = [
            config::READ,
            config::WRITE,
            data::READ,
            data::WRITE,
            data::PATCH,
            data::DELETE,
            delete::WRITE,
            undelete::WRITE,
            destroy::WRITE,
            metadata::READ,
            metadata::LIST,
            metadata::WRITE,
            metadata::PATCH,
            metadata::DELETE,
            elsewhere::READ,
            elsewhere::WRITE,
            elsewhere::PATCH,
            elsewhere::DELETE,
            elsewhere::LIST,
            elsewhere::ROOT_READ,
            elsewhere::ROOT_LIST,
        ];
        &ROUTES
    }

    fn publisher(&self) -> Option<&dyn Publish> {
        Some(self)
    }
}

impl Owner for Kv {
    fn perform(&self, _: &mut Cx<'_>, duty: &Duty) -> Result<Work, Refusal> {
        Err(Refusal::internal(format!("kv owes no duty of kind `{}`", duty.kind)))
    }

    fn settle(&self, _: &mut Cx<'_>, duty: &Duty, _: &Outcome) -> Result<Answer, Refusal> {
        Err(Refusal::internal(format!("kv owes no duty of kind `{}`", duty.kind)))
    }
}
