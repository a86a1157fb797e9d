//! Open streams: every line is recorded before it leaves, like any other answer. How many there may be at once is kept here too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use audit::{Kind as RecordKind, Recorded, Released, Reply};
use base::{Kind, Limits, Refusal, Seq};
use engine::{Call, Cx, Feed};
use store::CommitError;
use tokio::sync::mpsc;

use crate::Kernel;
use crate::serve::ATTEMPTS_MAX;
use crate::tap::Watch;

/// Frames that may wait for a slow reader before its stream is closed.
pub const QUEUE_MAX: usize = 64;

/// A stream that was answered and is about to open.
pub struct Opening {
    /// What it tells.
    pub feed: Box<dyn Feed>,
    /// The request that asked for it.
    pub call: Arc<Call>,
    /// Its place, held until it has ended.
    pub place: Place,
}

/// Who holds how many streams.
#[derive(Default)]
pub struct Places {
    taken: Mutex<BTreeMap<String, usize>>,
}

/// The place of one stream. It is free again when this is dropped, however the stream came to its end.
pub struct Place {
    places: Arc<Places>,
    principal: String,
}

impl Places {
    /// Takes a place for a stream of `principal`.
    ///
    /// # Errors
    /// 429 when the principal, or the server, has as many streams open as the limits allow.
    pub fn take(self: &Arc<Self>, principal: &str, limits: &Limits) -> Result<Place, Refusal> {
        let mut taken = self.lock();
        let full = |whose: &str| Refusal::of(Kind::Overloaded, format!("{whose} has too many streams open: end one, or try again later"));
        if taken.get(principal).is_some_and(|own| *own >= limits.streams_per_principal_max) {
            return Err(full("this identity"));
        }
        if taken.values().sum::<usize>() >= limits.streams_max {
            return Err(full("the server"));
        }
        *taken.entry(principal.to_owned()).or_default() += 1;
        Ok(Place { places: Arc::clone(self), principal: principal.to_owned() })
    }

    /// How many streams these principals have open.
    pub fn count<'a>(&self, principals: impl Iterator<Item = &'a str>) -> usize {
        let taken = self.lock();
        principals.filter_map(|principal| taken.get(principal)).sum()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(own) = taken.get_mut(&self.principal) {
            *own = own.saturating_sub(1);
        }
        taken.retain(|_, own| *own > 0);
    }
}

/// Opens a stream and returns its head.
pub fn open(kernel: &Arc<Kernel>, opening: Opening, reply: Reply, recorded: &Recorded) -> Released {
    let (send, frames) = mpsc::channel(QUEUE_MAX);
    let head = kernel.shared.trail.release_stream(reply, recorded.clone(), frames);
    let its = Arc::clone(kernel);
    kernel.tasks.spawn(async move {
        let Opening { feed, call, place } = opening;
        drive(&its, feed, &call, send).await;
        drop(place);
    });
    head
}

async fn drive(kernel: &Arc<Kernel>, mut feed: Box<dyn Feed>, call: &Arc<Call>, send: mpsc::Sender<audit::Frame>) {
    let mut watch = kernel.shared.tap.watch();
    // Its own clock: a stream may be looked at all the time and have nothing to say for long.
    let mut pulse = tokio::time::interval(feed.heartbeat());
    pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    pulse.reset();
    let reason = loop {
        match poll(kernel, &mut feed, call, &send, &mut watch).await {
            Ok(Polled::Nothing) => {}
            Ok(Polled::Sent) => pulse.reset(),
            Ok(Polled::Ended) => break "the stream has ended",
            Err(refusal) => break why(call, &refusal),
        }
        let stopping = tokio::select! {
            () = watch.changed() => false,
            _ = pulse.tick() => match beat(kernel, call, &send) {
                Ok(()) => false,
                Err(refusal) => break why(call, &refusal),
            },
            () = send.closed() => break "",
            () = kernel.shared.stopping.wait() => true,
        };
        if stopping {
            break "the server is stopping";
        }
    };
    if !reason.is_empty() && send.try_send(audit::Frame::bye(reason)).is_err() {
        tracing::debug!(request = %call.id, "the reader of a stream had gone");
    }
    drop(send);
    if let Err(refusal) = close(kernel, feed.as_ref(), call).await {
        tracing::warn!(request = %call.id, reason = ?refusal.log, "the end of a stream could not be noted");
    }
}

/// Why a refusal ends a stream, for its reader.
fn why(call: &Call, refusal: &Refusal) -> &'static str {
    if let Some(reason) = &refusal.log {
        tracing::error!(request = %call.id, %reason, "a stream failed");
    }
    if refusal.kind.is_ours() { "the server could not go on with the stream" } else { "the stream is no longer permitted" }
}

/// A line with its end.
fn line(frame: &engine::Frame) -> Vec<u8> {
    let mut line = Vec::with_capacity(frame.line.expose().len() + 1);
    line.extend_from_slice(frame.line.expose());
    line.push(b'\n');
    line
}

/// What a look at a feed came to.
enum Polled {
    Nothing,
    Sent,
    Ended,
}

/// Sends what is due.
async fn poll(
    kernel: &Arc<Kernel>,
    feed: &mut Box<dyn Feed>,
    call: &Arc<Call>,
    send: &mpsc::Sender<audit::Frame>,
    watch: &mut Watch,
) -> Result<Polled, Refusal> {
    for attempt in 0..ATTEMPTS_MAX {
        let _turn = kernel.turn(attempt).await;
        let mut tx = kernel.shared.store.begin()?;
        kernel.still_permitted(&mut tx, call)?;
        let mut cx = Cx::new(&mut tx, call, kernel.as_ref());
        let batch = feed.poll(&mut cx)?;
        watch.look(tx.reads());
        let Some(batch) = batch else { return Ok(Polled::Nothing) };
        let as_of = tx.snapshot();
        // One record for each line that says something of its own: names in a record are there once.
        let mut parts = batch.frames.split_inclusive(|frame| !frame.facts.is_empty());
        let mut part = parts.next().unwrap_or_default();
        let Some(mut recorded) = record(kernel, tx, call, part).await? else { continue };
        loop {
            for frame in part {
                let frame = kernel.shared.trail.release_frame(line(frame), recorded.clone());
                // A reader that does not read gets its stream closed: it comes back and says what it holds.
                if send.try_send(frame).is_err() {
                    return Ok(Polled::Ended);
                }
            }
            let Some(next) = parts.next() else { break };
            part = next;
            recorded = record_access(kernel, pushed(kernel, call, part), as_of).await?;
        }
        feed.sent();
        return Ok(if batch.last { Polled::Ended } else { Polled::Sent });
    }
    Err(CommitError::Conflict.into())
}

/// A heartbeat carries no value, so it needs no record; the stream must be permitted all the same.
fn beat(kernel: &Arc<Kernel>, call: &Arc<Call>, send: &mpsc::Sender<audit::Frame>) -> Result<(), Refusal> {
    kernel.still_permitted(&mut kernel.shared.store.begin()?, call)?;
    let pulse = kernel.shared.trail.pulse().map_err(|e| Refusal::internal(e.to_string()))?;
    send.try_send(pulse).map_err(|_| Refusal::of(Kind::Overloaded, "the reader of a stream does not read"))
}

/// What is recorded of these lines.
fn pushed(kernel: &Arc<Kernel>, call: &Call, frames: &[engine::Frame]) -> audit::Record {
    let mut record = kernel.shared.trail.record(RecordKind::Push);
    record.fact("request", &call.id).count("frames", u64::try_from(frames.len()).unwrap_or(u64::MAX));
    if let Some(caller) = &call.caller {
        record.fact("principal", &caller.principal);
        record.auth(audit::Auth {
            principal: caller.principal.clone(),
            display: caller.display_name.clone(),
            accessor: caller.accessor.clone(),
            token_type: "service".into(),
            ..audit::Auth::default()
        });
    }
    for (name, value) in frames.iter().flat_map(|frame| &frame.facts) {
        record.fact(name, value);
        if *name == "refused" {
            record.error(value);
        }
    }
    record
}

/// Records the lines, in the commit if the feed wrote something. `None` for a conflict.
async fn record(kernel: &Arc<Kernel>, tx: store::Tx, call: &Call, frames: &[engine::Frame]) -> Result<Option<Recorded>, Refusal> {
    let record = pushed(kernel, call, frames);
    if tx.is_read_only() {
        return record_access(kernel, record, tx.snapshot()).await.map(Some);
    }
    let leaf: store::LeafFn = Box::new(move |stamp| audit::change_leaf(&record, stamp.seq, stamp.time, &stamp.changes));
    match kernel.shared.store.commit(tx, leaf).await {
        Ok(committed) => Ok(Some(committed.durable.into())),
        Err(CommitError::Conflict) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

async fn record_access(kernel: &Arc<Kernel>, mut record: audit::Record, as_of: Seq) -> Result<Recorded, Refusal> {
    record.as_of(as_of);
    kernel.shared.trail.record_access(record).await.map_err(|e| Refusal::internal(e.to_string()))
}

async fn close(kernel: &Arc<Kernel>, feed: &dyn Feed, call: &Arc<Call>) -> Result<(), Refusal> {
    for attempt in 0..ATTEMPTS_MAX {
        let _turn = kernel.turn(attempt).await;
        let mut tx = kernel.shared.store.begin()?;
        feed.closed(&mut Cx::new(&mut tx, call, kernel.as_ref()))?;
        if tx.is_read_only() {
            return Ok(());
        }
        if record(kernel, tx, call, &[]).await?.is_some() {
            return Ok(());
        }
    }
    Err(CommitError::Conflict.into())
}
