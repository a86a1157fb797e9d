//! The runner of duties: loads what is due, performs it, settles it in a commit, tells the request that waits.
//!
//! Nothing is scanned at start but what is due. An act that an earlier process owed may have been begun by it: its outcome is unknown,
//! and that is what its owner is told, who then probes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use audit::{Kind as RecordKind, Recorded};
use base::{Kind, Refusal, Rng, Timestamp};
use engine::{Answer, Body, Call, Cx, Duty, DutyKey, Mount, Op, Outcome, duty};
use store::CommitError;
use tokio::sync::{Notify, oneshot};

use crate::serve::ATTEMPTS_MAX;
use crate::{Kernel, mounts};

/// Duties loaded at first in one turn, and the most that are looked at when those before them cannot begin.
const LOADED_MAX: usize = 256;
const LOOKED_AT_MAX: usize = 1 << 16;
/// Performances at once.
pub const RUNNING_MAX: usize = 64;
/// The longest first pause before a duty is performed again; it doubles up to [`PAUSE_MAX`], and jitter takes up to half of it.
pub const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest pause before a duty is performed again.
pub const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The pause of a duty of which nothing at all could be written: it keeps its lane so long.
const PAUSE_UNWRITTEN: Duration = Duration::from_secs(5);

/// What a duty came to, for the request that waits for it.
pub struct Settled {
    /// What its owner answered.
    pub answer: Result<Answer, Refusal>,
    /// Warnings for the caller.
    pub warnings: Vec<String>,
    /// The commit that settled it.
    pub recorded: Recorded,
}

/// The runner's state. The duties themselves are in the store.
#[derive(Default)]
pub struct Duties {
    wake: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: BTreeSet<DutyKey>,
    lanes: BTreeSet<String>,
    waiting: BTreeMap<DutyKey, oneshot::Sender<Settled>>,
    stopped: bool,
}

impl Duties {
    /// Something in the table changed.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Registers for the outcome of a duty that is about to be owed: before the commit, since it may be settled at once. Nothing is told
    /// when this process will not come to it.
    pub fn expect(&self, id: &DutyKey) -> oneshot::Receiver<Settled> {
        let (tell, told) = oneshot::channel();
        let mut state = self.lock();
        if !state.stopped {
            state.waiting.insert(id.clone(), tell);
        }
        told
    }

    /// Forgets who waits for a duty. Who still does gets nothing to read, and looks at the table.
    pub fn forget(&self, id: &DutyKey) {
        self.lock().waiting.remove(id);
    }

    /// No further duty is begun, and nobody waits for one that was not.
    pub fn stop(&self) {
        let mut state = self.lock();
        let State { running, waiting, stopped, .. } = &mut *state;
        *stopped = true;
        waiting.retain(|id, _| running.contains(id));
        drop(state);
        self.wake();
    }

    fn begin(&self, duty: &Duty) -> bool {
        let mut state = self.lock();
        if state.stopped || state.running.len() >= RUNNING_MAX || state.running.contains(&duty.id) {
            return false;
        }
        if duty.act && !state.lanes.insert(duty.lane.clone()) {
            return false;
        }
        state.running.insert(duty.id.clone())
    }

    fn end(&self, duty: &Duty) {
        let mut state = self.lock();
        state.running.remove(&duty.id);
        if duty.act {
            state.lanes.remove(&duty.lane);
        }
        if state.stopped {
            state.waiting.remove(&duty.id);
        }
        drop(state);
        self.wake();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until the kernel is stopped.
pub async fn run(kernel: Arc<Kernel>) {
    loop {
        if kernel.duties.lock().stopped {
            return;
        }
        let next = match turn(&kernel) {
            Ok(next) => next,
            Err(refusal) => {
                tracing::error!(reason = ?refusal.log.as_ref().or(refusal.errors.first()), "the duty table could not be read");
                Some(PAUSE_MAX)
            }
        };
        let sleep = tokio::time::sleep(next.unwrap_or(Duration::from_secs(3_600)));
        tokio::select! {
            () = kernel.duties.wake.notified() => {}
            () = sleep => {}
        }
    }
}

/// Begins what is due. Returns the time until something more is due.
fn turn(kernel: &Arc<Kernel>) -> Result<Option<Duration>, Refusal> {
    let mut tx = kernel.shared.store.begin()?;
    let now = tx.now();
    let mut limit = LOADED_MAX;
    let mut rows = tx.scan(&duty::all(), None, limit)?;
    // Parked duties, and those that wait for their lane, must not hide what lies behind them.
    while rows.len() == limit && limit < LOOKED_AT_MAX && rows.last().is_some_and(|row| is_due(&row.id, now)) {
        limit = limit.saturating_mul(4);
        rows = tx.scan(&duty::all(), None, limit)?;
    }
    for row in rows {
        let Ok(duty) = serde_json::from_slice::<Duty>(row.value.expose()) else {
            tracing::error!(duty = %row.id, "a duty could not be read; it stays in the table");
            continue;
        };
        if duty.due > now {
            return Ok(Some(duty.due.since(now)));
        }
        if !duty.parked.is_empty() || !kernel.duties.begin(&duty) {
            continue;
        }
        let its = Arc::clone(kernel);
        kernel.tasks.spawn(async move { care_for(&its, duty).await });
    }
    Ok(None)
}

/// By the first identifier of its key, without opening it.
fn is_due(id: &str, now: Timestamp) -> bool {
    u64::from_str_radix(id, 16).is_ok_and(|due| due <= now.0)
}

/// Performs and settles. Whatever happens, the lane is free afterwards and the duty does not come back at once.
async fn care_for(kernel: &Arc<Kernel>, duty: Duty) {
    let (its, owed) = (Arc::clone(kernel), duty.clone());
    let written = match kernel.tasks.spawn(async move { perform(&its, &owed).await }).await {
        Ok(written) => written,
        Err(_) => {
            tracing::error!(duty = %duty.id.key, kind = %duty.kind, "the act of a duty panicked; it is parked");
            park(kernel, &duty, "the act panicked").await
        }
    };
    if !written {
        tokio::select! {
            () = tokio::time::sleep(PAUSE_UNWRITTEN) => {}
            () = kernel.shared.stopping.wait() => {}
        }
    }
    kernel.duties.end(&duty);
}

/// Whether what came of it is written.
async fn perform(kernel: &Arc<Kernel>, duty: &Duty) -> bool {
    let outcome = match prepare(kernel, duty) {
        Ok(Some(work)) => work.await,
        Ok(None) => return true,
        Err(refusal) => {
            let reason = refusal.log.unwrap_or_else(|| refusal.errors.join("; "));
            tracing::error!(duty = %duty.id.key, kind = %duty.kind, %reason, "a duty could not be understood and is parked");
            return park(kernel, duty, &reason).await;
        }
    };
    match settle(kernel, duty, &outcome).await {
        Ok(()) => true,
        // It may have been done and will be done again, which acts must bear; but not at once.
        Err(reason) => later(kernel, duty, &reason).await,
    }
}

/// Puts a duty off, the longer the more often.
async fn later(kernel: &Arc<Kernel>, duty: &Duty, reason: &str) -> bool {
    put_back(kernel, duty, |duty, now| {
        duty.attempts = duty.attempts.saturating_add(1);
        reason.clone_into(&mut duty.last);
        duty.boot.clone_from(&kernel.shared.boot);
        duty.due = now.after(pause(duty.attempts, kernel.shared.rng.as_ref()));
    })
    .await
}

/// Puts a duty aside, and answers who waits for it.
async fn park(kernel: &Arc<Kernel>, duty: &Duty, reason: &str) -> bool {
    let written = put_back(kernel, duty, |duty, _| reason.clone_into(&mut duty.parked)).await;
    kernel.duties.forget(&duty.id);
    written
}

/// The act; nothing when the duty is no longer owed.
fn prepare(kernel: &Arc<Kernel>, duty: &Duty) -> Result<Option<engine::Work>, Refusal> {
    let mut tx = kernel.shared.store.begin()?;
    if still_owed(&mut tx, duty)?.is_none() {
        return Ok(None);
    }
    if duty.act && duty.boot != kernel.shared.boot {
        let text = "owed before this process began: it may have been done".to_owned();
        return Ok(Some(Box::pin(std::future::ready(Outcome::Unknown { text }))));
    }
    let Some(call) = call(kernel, &mut tx, duty)? else {
        return Ok(Some(Box::pin(std::future::ready(Outcome::Unknown { text: "its owner is no longer mounted".into() }))));
    };
    let engine = Arc::clone(&kernel.engine(&call.mount.kind)?.engine);
    let mut cx = Cx::new(&mut tx, &call, kernel.as_ref());
    engine.perform(&mut cx, duty).map(Some)
}

/// The duty as it is in the table; nothing when it was withdrawn, or withdrawn and owed anew, since it was loaded.
fn still_owed(tx: &mut store::Tx, duty: &Duty) -> Result<Option<Duty>, Refusal> {
    Ok(duty::find(tx, &duty.id)?.filter(|owed| (owed.due, owed.owed) == (duty.due, duty.owed)))
}

/// Doubles with each attempt. Somewhere between half and the whole, so that duties that failed together do not come back together; the
/// whole when there is no randomness, since waiting needs none.
fn pause(attempts: u32, rng: &dyn Rng) -> Duration {
    let whole = PAUSE_MIN.saturating_mul(1_u32.checked_shl(attempts.saturating_sub(1).min(16)).unwrap_or(u32::MAX)).min(PAUSE_MAX);
    let mut bytes = [0; 4];
    match rng.fill(&mut bytes) {
        Ok(()) => whole / 2 + (whole / 2).mul_f64(f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)),
        Err(_) => whole,
    }
}

async fn put_back(kernel: &Arc<Kernel>, duty: &Duty, change: impl Fn(&mut Duty, Timestamp) + Send) -> bool {
    for attempt in 0..ATTEMPTS_MAX {
        let _turn = kernel.turn(attempt).await;
        let done = async {
            let mut tx = kernel.shared.store.begin()?;
            let Some(mut owed) = still_owed(&mut tx, duty)? else { return Ok::<bool, Refusal>(true) };
            duty::remove(&mut tx, &duty.id)?;
            let now = tx.now();
            change(&mut owed, now);
            duty::put(&mut tx, &owed)?;
            commit(kernel, tx, &owed, if owed.parked.is_empty() { "retry" } else { "parked" }, &owed.last, &BTreeMap::new())
                .await
                .map(|c| c.is_some())
        };
        match done.await {
            Ok(true) => return true,
            Ok(false) => {}
            Err(refusal) => {
                tracing::error!(duty = %duty.id.key, reason = ?refusal.log, "a duty could not be put back");
                return false;
            }
        }
    }
    false
}

/// Why it could not be settled, if so.
async fn settle(kernel: &Arc<Kernel>, duty: &Duty, outcome: &Outcome) -> Result<(), String> {
    for attempt in 0..ATTEMPTS_MAX {
        let _turn = kernel.turn(attempt).await;
        match try_settle(kernel, duty, outcome).await {
            Ok(Tried::Settled(settled)) => {
                if let Some(tell) = kernel.duties.lock().waiting.remove(&duty.id)
                    && tell.send(*settled).is_err()
                {
                    tracing::info!(duty = %duty.id.key, "a duty was settled after the request that waited for it had gone");
                }
                return Ok(());
            }
            Ok(Tried::NotOwed) => {
                kernel.duties.forget(&duty.id);
                return Ok(());
            }
            Ok(Tried::Conflict) => {}
            Err(refusal) => {
                let reason = refusal.log.unwrap_or_else(|| refusal.errors.join("; "));
                tracing::error!(duty = %duty.id.key, %reason, "a duty could not be settled; it stays owed");
                return Err(reason);
            }
        }
    }
    tracing::warn!(duty = %duty.id.key, "a duty met too many conflicts; it stays owed");
    Err("too many conflicts".to_owned())
}

/// What an attempt to settle a duty comes to.
enum Tried {
    Settled(Box<Settled>),
    Conflict,
    /// It was withdrawn while it was performed, and perhaps owed anew for another time.
    NotOwed,
}

async fn try_settle(kernel: &Arc<Kernel>, duty: &Duty, outcome: &Outcome) -> Result<Tried, Refusal> {
    let mut tx = kernel.shared.store.begin()?;
    let Some(owed) = still_owed(&mut tx, duty)? else { return Ok(Tried::NotOwed) };
    // Removed first: a settlement may owe the same name anew (a timer that repeats).
    duty::remove(&mut tx, &duty.id)?;
    let (answer, warnings, facts) = match call(kernel, &mut tx, duty)? {
        None => (Err(Refusal::missing()), Vec::new(), BTreeMap::new()),
        Some(call) => {
            let engine = Arc::clone(&kernel.engine(&call.mount.kind)?.engine);
            let mut cx = Cx::new(&mut tx, &call, kernel.as_ref());
            let answer = engine.settle(&mut cx, &owed, outcome);
            // Only a refusal that is an answer to the request ends a duty. After any other nothing is settled, and it stays owed.
            if let Err(refusal) = &answer
                && refusal.kind.is_ours()
            {
                return Err(refusal.clone());
            }
            let (warnings, facts) = (std::mem::take(&mut cx.warnings), std::mem::take(&mut cx.facts));
            (answer, warnings, facts)
        }
    };
    if answer.is_err() {
        tx.refuse();
        duty::remove(&mut tx, &duty.id)?;
    }
    let (word, text) = match outcome {
        Outcome::Done(_) => ("done", String::new()),
        Outcome::Refused { code, text } => ("refused", format!("{code}: {text}")),
        Outcome::Unknown { text } => ("unknown", text.clone()),
    };
    let recorded = commit(kernel, tx, &owed, word, &text, &facts).await?;
    // A look that brought no news is not worth a line.
    let news = facts.contains_key("report") || !matches!(outcome, Outcome::Done(_));
    if recorded.is_some() && owed.act && news {
        let facts = facts.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ");
        tracing::info!(duty = %owed.id.key, outcome = word, reason = %text, %facts, "an act was settled");
    }
    Ok(recorded.map_or(Tried::Conflict, |recorded| Tried::Settled(Box::new(Settled { answer, warnings, recorded }))))
}

async fn commit(
    kernel: &Arc<Kernel>,
    tx: store::Tx,
    duty: &Duty,
    word: &str,
    text: &str,
    facts: &BTreeMap<&'static str, String>,
) -> Result<Option<Recorded>, Refusal> {
    let mut record = kernel.shared.trail.record(RecordKind::Duty);
    record.fact("duty", &duty.id.key).fact("kind", &duty.kind).fact("outcome", word).fact("lane", &duty.lane);
    if !duty.request.is_empty() {
        record.fact("request", &duty.request);
    }
    if !text.is_empty() {
        record.error(text);
    }
    for (name, value) in facts {
        record.fact(name, value);
    }
    let leaf: store::LeafFn = Box::new(move |stamp| audit::change_leaf(&record, stamp.seq, stamp.time, &stamp.changes));
    match kernel.shared.store.commit(tx, leaf).await {
        Ok(committed) => Ok(Some(committed.durable.into())),
        Err(CommitError::Conflict) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

/// The call in whose name a duty is performed and settled; nothing when its owner is no longer mounted.
fn call(kernel: &Arc<Kernel>, tx: &mut store::Tx, duty: &Duty) -> Result<Option<Call>, Refusal> {
    let mount = if duty.id.owner == base::MountId::KERNEL { Some(Kernel::own_mount()?) } else { mounts::by_id(tx, duty.id.owner)? };
    Ok(mount.map(|mount| Call {
        id: if duty.request.is_empty() { kernel.request_id() } else { duty.request.clone() },
        op: Op::Write,
        mount,
        path: None,
        captures: engine::Captures::default(),
        body: Body::default(),
        caller: None,
        remote: None,
    }))
}

impl Kernel {
    /// What a request is told whose duty was not settled while it waited.
    pub(crate) fn unsettled(&self, id: &DutyKey) -> Refusal {
        let owed = self.shared.store.begin().map_err(Refusal::from).and_then(|mut tx| duty::find(&mut tx, id));
        let text = match owed {
            Ok(Some(duty)) if !duty.parked.is_empty() => {
                "the act at the outside system could not be begun or failed in the server, and is put aside: `sys/duties` says why"
            }
            Ok(None) => "the act at the outside system is owed no longer: look at its state",
            _ => "the act at the outside system has not ended yet; it is owed and goes on: look at its state later",
        };
        Refusal::of(Kind::Unavailable, text)
    }

    /// The mount in whose name the kernel itself owes duties (expiring tokens).
    fn own_mount() -> Result<Mount, Refusal> {
        Ok(Mount {
            id: base::MountId::KERNEL,
            namespace: base::NamespaceId::ROOT,
            path: base::CanonPath::from_plain("auth/token/").map_err(|e| Refusal::internal(e.to_string()))?,
            kind: "token".into(),
            accessor: String::new(),
            options: BTreeMap::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use base::rng::SeededRng;
    use base::{Rng, RngFault};
    use proptest::prelude::*;

    use super::*;

    struct NoRng;

    impl Rng for NoRng {
        fn fill(&self, _: &mut [u8]) -> Result<(), RngFault> {
            Err(RngFault)
        }
    }

    struct Always(u8);

    impl Rng for Always {
        fn fill(&self, out: &mut [u8]) -> Result<(), RngFault> {
            out.fill(self.0);
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn a_pause_grows_up_to_a_cap_and_spreads(attempts in prop_oneof![1..16_u32, 1..u32::MAX], seed: u64) {
            let (least, most) = (pause(attempts, &Always(0)), pause(attempts, &Always(u8::MAX)));
            prop_assert_eq!(most, pause(attempts, &NoRng), "without randomness the whole");
            prop_assert_eq!(least, most / 2);
            prop_assert!(most <= PAUSE_MAX && least >= PAUSE_MIN / 2);
            prop_assert_eq!(most == PAUSE_MAX, attempts >= 10, "200 ms doubled nine times is more than a minute");
            // Not even the luckiest draw makes the next pause shorter than this one, until the cap is near.
            prop_assert!(pause(attempts + 1, &Always(0)) >= most.min(PAUSE_MAX / 2));
            let rng = SeededRng::new(seed);
            let drawn: BTreeSet<Duration> = (0..64).map(|_| pause(attempts, &rng)).collect();
            prop_assert!(drawn.iter().all(|pause| (least..=most).contains(pause)));
            prop_assert!(drawn.len() > 48, "{} of 64 differ", drawn.len());
            let quarter = (most - least) / 4;
            prop_assert!(drawn.first().is_some_and(|first| *first < least + quarter) && drawn.last().is_some_and(|last| *last > most - quarter));
        }
    }
}
