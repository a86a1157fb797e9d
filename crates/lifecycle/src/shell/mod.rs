//! The shell around the pure core: an engine at `sys/lifecycle/` that keeps runs, values and holdings in the store, turns the core's
//! effects into duties and their outcomes into events, and offers generations to consumers.
//!
//! It decides nothing about a rotation: every step is [`crate::core::step`], run in the transaction that writes its result.

mod ack;
mod acts;
mod dismiss;
mod drive;
mod emergency;
mod feed;
mod holdings;
mod records;
mod rotations;
mod runs;
mod targets;
#[cfg(test)]
mod walk;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use base::Refusal;
use engine::{Answer, Cx, Duty, Engine, Field, FieldKind, Op, Outcome, Owner, Route, TargetKind, Work};

/// The engine that answers `sys/lifecycle/`.
pub struct Lifecycle {
    kinds: BTreeMap<&'static str, Arc<dyn TargetKind>>,
    /// Streams that are open in this process, by their ids.
    live: Arc<Mutex<BTreeSet<String>>>,
}

impl Lifecycle {
    /// With the kinds of targets that this server knows.
    #[must_use]
    pub fn new(kinds: impl IntoIterator<Item = Arc<dyn TargetKind>>) -> Self {
        Self { kinds: kinds.into_iter().map(|kind| (kind.name(), kind)).collect(), live: Arc::default() }
    }

    fn kind(&self, name: &str) -> Result<&Arc<dyn TargetKind>, Refusal> {
        let known = || self.kinds.keys().copied().collect::<Vec<_>>().join(", ");
        self.kinds.get(name).ok_or_else(|| Refusal::invalid(format!("field `kind`: expected one of: {}", known())))
    }

    fn is_live(&self, stream: &str) -> bool {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).contains(stream)
    }
}

const NO: &[Field] = &[];
/// The fields of a target depend on its kind, which checks them itself.
const TARGET: &[Field] =
    &[Field::public("kind", FieldKind::Text, "the kind of target: `postgres`"), Field::new("*", FieldKind::Any, "its fields")];
const REASON: &[Field] = &[Field::public("reason", FieldKind::Text, "why, for the record")];
const EMERGENCY: &[Field] = &[
    Field::public("reason", FieldKind::Text, "why, for the record"),
    Field::public("deadline", FieldKind::Duration, "how long after now the old value is revoked at the latest; 3 s without it"),
];
const ABORT: &[Field] = &[
    Field::public("reason", FieldKind::Text, "why, for the record"),
    Field::public("confirm", FieldKind::Bool, "in an emergency: yes, the old value is to stay in force"),
];
const CLOSE: &[Field] = &[
    Field::public("reason", FieldKind::Text, "why, for the record"),
    Field::public("confirm", FieldKind::Bool, "yes, the run is to end where it is"),
    Field::public("accept_unproven", FieldKind::Bool, "yes, what is not proven is given up"),
];
const DISMISS: &[Field] = &[
    Field::public("instance", FieldKind::Text, "the name of the running copy"),
    Field::public("reason", FieldKind::Text, "why, for the record"),
    Field::public("rotation", FieldKind::Text, "one rotation; without it all that know the instance"),
];
const WATCH: &[Field] = &[
    Field::public("instance", FieldKind::Text, "the name of this running copy"),
    Field::public("hold", FieldKind::List, "`rotation:generation` for each rotation followed; generation 0 or none when nothing is held"),
];
const ACK: &[Field] = &[
    Field::public("rotation", FieldKind::Text, "the rotation; `policy` is its older name"),
    Field::public("policy", FieldKind::Text, "the older name of `rotation`"),
    Field::public("instance", FieldKind::Text, "the name of this running copy"),
    Field::public("generation", FieldKind::Int, "the generation spoken of"),
    Field::public("level", FieldKind::Text, "`L1`, `L2` or `NACK`"),
    Field::public("nonce", FieldKind::Text, "the nonce that came with the generation"),
    Field::new("mac", FieldKind::Text, "HMAC-SHA-256 under the generation's `ack_key`, in base64"),
    Field::public("reason", FieldKind::Text, "why it was refused"),
];
const GOODBYE: &[Field] = &[
    Field::public("instance", FieldKind::Text, "the name of this running copy"),
    Field::public("rotation", FieldKind::Text, "what it leaves; without it: everything"),
];

static ROUTES: &[Route<Lifecycle>] = &[
    Route::new(Op::List, "targets", NO, "names of all targets", targets::list),
    Route::new(Op::Read, "targets/:name", NO, "one target, without its secrets", targets::read),
    Route::new(Op::Write, "targets/:name", TARGET, "write a target; it is checked before it is accepted", targets::write),
    Route::new(Op::Delete, "targets/:name", NO, "forget a target that no rotation uses", targets::delete),
    Route::new(Op::List, "rotations", NO, "names of all rotations", rotations::list),
    Route::new(Op::Read, "rotations/:name", NO, "one rotation", rotations::read),
    Route::new(Op::Write, "rotations/:name", rotations::FIELDS, "write a rotation; the first one opens its first run", rotations::write)
        .strict()
        .also(rotations::also),
    Route::new(Op::Delete, "rotations/:name", NO, "give the secret back", rotations::delete).also(rotations::also),
    // The older name of `rotations`.
    Route::new(Op::List, "policies", NO, "names of all rotations", rotations::list),
    Route::new(Op::Read, "policies/:name", NO, "one rotation", rotations::read),
    Route::new(Op::Write, "policies/:name", rotations::FIELDS, "write a rotation; the first one opens its first run", rotations::write)
        .strict()
        .also(rotations::also),
    Route::new(Op::Delete, "policies/:name", NO, "give the secret back", rotations::delete).also(rotations::also),
    Route::new(Op::Write, "rotate/:rotation", REASON, "open a run", runs::rotate).strict(),
    Route::new(Op::Read, "emergency/:rotation", NO, "what an emergency would do now, and to whom", emergency::preview),
    Route::new(Op::Write, "emergency/:rotation", EMERGENCY, "let the value in force die as soon as it can", emergency::declare).strict(),
    Route::new(Op::List, "runs", NO, "all runs, the newest first", runs::list),
    Route::new(Op::Read, "runs", NO, "all runs, the newest first", runs::list),
    Route::new(Op::Read, "runs/:id", NO, "one run with its evidence", runs::read),
    Route::new(Op::Write, "runs/:id/resume", NO, "try again what a run waits for", runs::resume),
    Route::new(Op::Write, "runs/:id/abort", ABORT, "stop a run, going back where it must", runs::abort).strict(),
    Route::new(Op::Write, "runs/:id/close", CLOSE, "end a run where it is, giving up what is not proven", runs::close_by_hand).strict(),
    Route::new(Op::Write, "dismiss", DISMISS, "take a consumer out of the set", dismiss::write).strict(),
    Route::new(Op::Read, "holdings/:rotation", NO, "who holds which generation", holdings::read),
    Route::new(Op::Read, "watch", WATCH, "follow secrets: a stream of JSON lines", watch::open).strict(),
    Route::new(Op::Write, "ack", ACK, "acknowledge or refuse a generation", ack::write).strict(),
    Route::new(Op::Write, "goodbye", GOODBYE, "leave in order", ack::goodbye).strict(),
];

impl Engine for Lifecycle {
    const KIND: &'static str = "lifecycle";

    fn routes() -> &'static [Route<Self>] {
        ROUTES
    }
}

impl Owner for Lifecycle {
    fn perform(&self, cx: &mut Cx<'_>, duty: &Duty) -> Result<Work, Refusal> {
        match duty.kind.as_str() {
            acts::ACT => acts::perform(self, cx, duty),
            targets::CHECK => targets::check(self, cx, duty),
            rotations::ADOPT => rotations::adopt(self, cx, duty),
            drive::TIMER | holdings::LAPSE | runs::PERIOD => Ok(Box::pin(std::future::ready(Outcome::done(&true)))),
            other => Err(Refusal::internal(format!("`sys/lifecycle/` owes no duty of the kind `{other}`"))),
        }
    }

    fn settle(&self, cx: &mut Cx<'_>, duty: &Duty, outcome: &Outcome) -> Result<Answer, Refusal> {
        match duty.kind.as_str() {
            acts::ACT => acts::settle(cx, duty, outcome),
            targets::CHECK => targets::checked(cx, duty, outcome),
            rotations::ADOPT => rotations::adopted(self, cx, duty, outcome),
            drive::TIMER => drive::tick(cx, duty),
            holdings::LAPSE => holdings::lapse(self, cx, duty),
            runs::PERIOD => runs::period(cx, duty),
            other => Err(Refusal::internal(format!("`sys/lifecycle/` owes no duty of the kind `{other}`"))),
        }
    }
}

/// A name of a target or rotation: what a path segment, a file name and a `hold` can carry without escapes.
fn name(text: &str, field: &str) -> Result<String, Refusal> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |c: char| c.is_ascii_alphanumeric();
    if !text.is_empty() && text.len() <= 64 && text.chars().all(inner) && text.starts_with(ends) && text.ends_with(ends) {
        Ok(text.to_owned())
    } else {
        Err(Refusal::invalid(format!(
            "field `{field}`: up to 64 letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit"
        )))
    }
}
