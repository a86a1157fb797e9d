//! From the stream to the acknowledgement: one consumer of one or more rotations.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch as slot};
use tokio::task::JoinSet;

use crate::ack::{Ack, Level};
use crate::backoff::Backoff;
use crate::desk::{Desk, Step};
use crate::frame::{Offer, State};
use crate::watch::{Event, Refusal, Subscription, Watch, WatchOptions};
use crate::{Client, Credential, Error, explain};

/// Waits between attempts to have something acknowledged, or to get the first value to work.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Time for the last words.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(3);
/// What to look at when the server has refused every stream so far; it does not say more to whom it refuses.
const UNMET: &str = "the server has refused every stream so far; check: the rotation exists, this identity may read its secret, \
    the token is good, no other identity has used this instance's name";

/// Why a candidate was not taken into use. Values of the candidate are taken out before it leaves the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    text: String,
    not_yet: bool,
}

impl Reason {
    /// The candidate does not work here: it is refused.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), not_yet: false }
    }

    /// Nobody is there yet who could use it. While nothing is in use it is tried again without a word to the server;
    /// afterwards it is a refusal like any other.
    #[must_use]
    pub fn not_yet(text: impl Into<String>) -> Self {
        Self { text: text.into(), not_yet: true }
    }

    /// Whether it was made by [`Reason::not_yet`].
    #[must_use]
    pub fn is_not_yet(&self) -> bool {
        self.not_yet
    }
}

/// How a value is taken into use here.
pub trait Apply: Send + 'static {
    /// Takes the candidate into use and returns when it is proven to work; or leaves everything as it was and says why.
    /// Must end by itself: it is not given up from outside, except when the consumer is closed.
    fn apply(&mut self, candidate: &Arc<Credential>) -> impl Future<Output = Result<(), Reason>> + Send;

    /// What a success of [`Apply::apply`] proves: [`Level::L1`] where nobody can tell whether the value was loaded.
    fn proves(&self) -> Level {
        Level::L2
    }

    /// Resolves when what is in use is proven better than `said`, the level that the server was told: [`Apply::proves`] is asked
    /// again then, and the server is told. May be dropped at any time.
    fn improved(&mut self, _said: Level) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// The candidate was taken into use and the server knows it (or wants something newer by now). What is left of the old
    /// value may go.
    fn settle(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// A running consumer.
pub struct Consumer {
    client: Client,
    instance: String,
    watch: Arc<Watch>,
    slots: Slots,
    events: JoinSet<()>,
    workers: BTreeMap<String, JoinSet<()>>,
    refusal: slot::Receiver<Option<Refusal>>,
}

/// Where the newest state of each rotation is put for its worker.
type Slots = Arc<Mutex<BTreeMap<String, slot::Sender<Option<Arc<State>>>>>>;

impl Consumer {
    /// Starts to consume rotations under one instance name. Must be called inside a runtime.
    #[must_use]
    pub fn start<A: Apply>(client: Client, instance: &str, appliers: Vec<(String, A)>, options: WatchOptions) -> Self {
        let rotations = appliers.iter().map(|(rotation, _)| rotation.clone()).collect();
        let subscription = Subscription { instance: instance.to_owned(), rotations };
        let (watch, events) = Watch::open(client.clone(), subscription, options);
        let slots = Slots::default();
        let (put, refusal) = slot::channel(None);
        let mut listening = JoinSet::new();
        listening.spawn(listen(instance.to_owned(), events, Arc::clone(&slots), put));
        let instance = instance.to_owned();
        let mut consumer = Self { client, instance, watch: Arc::new(watch), slots, events: listening, workers: BTreeMap::new(), refusal };
        for (rotation, applier) in appliers {
            consumer.work(rotation, applier);
        }
        consumer
    }

    /// Consumes one rotation more, or the same one in another way. What the others hold stays as it is.
    pub fn add<A: Apply>(&mut self, rotation: &str, applier: A) {
        self.watch.follow(rotation);
        self.work(rotation.to_owned(), applier);
        self.watch.reconnect();
    }

    /// Stops consuming a rotation. When it returns nothing is applied any more. The server goes on counting this instance as a
    /// holder until [`Client::goodbye_to`].
    pub async fn remove(&mut self, rotation: &str) {
        lock(&self.slots).remove(rotation);
        if let Some(mut worker) = self.workers.remove(rotation) {
            worker.shutdown().await;
        }
        self.watch.forget(rotation);
    }

    /// Waits for a lasting refusal of the stream before it was ever open. Never ready once it was.
    pub async fn refused(&self) -> Refusal {
        let mut refusal = self.refusal.clone();
        let found = refusal.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        match found {
            Some(refusal) => refusal,
            None => std::future::pending().await,
        }
    }

    fn work<A: Apply>(&mut self, rotation: String, applier: A) {
        let (put, take) = slot::channel(None);
        let worker = Worker {
            client: self.client.clone(),
            watch: Arc::clone(&self.watch),
            rotation: rotation.clone(),
            instance: self.instance.clone(),
            desk: Desk::new(applier.proves()),
            applier,
            states: take,
            stale: Backoff::new(RETRY.0, RETRY.1),
        };
        lock(&self.slots).insert(rotation.clone(), put);
        self.workers.entry(rotation).or_default().spawn(worker.run());
    }

    /// The stream below.
    #[must_use]
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Stops consuming and leaves in order: nobody here uses the value any more.
    pub async fn close(self) {
        let (client, instance) = (self.client.clone(), self.instance.clone());
        self.stop().await;
        match tokio::time::timeout(GOODBYE_TIMEOUT, client.goodbye(&instance)).await {
            Ok(Ok(())) => tracing::info!(instance, "left"),
            Ok(Err(error)) => tracing::warn!(instance, error = explain(&error), "could not say goodbye"),
            Err(_) => tracing::warn!(instance, "could not say goodbye in time"),
        }
    }

    /// Stops consuming without a word: the value stays in use, and the server goes on counting this instance as its holder.
    pub async fn stop(mut self) {
        self.events.shutdown().await;
        for worker in self.workers.values_mut() {
            worker.shutdown().await;
        }
    }
}

/// Hands each state to its worker, and says what happens to the stream.
async fn listen(instance: String, mut events: mpsc::Receiver<Event>, slots: Slots, refused: slot::Sender<Option<Refusal>>) {
    let mut met = false;
    // What is refused on its own, and why: said once, not at each stream.
    let mut barred: BTreeMap<String, String> = BTreeMap::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Connected => {
                met = true;
                tracing::info!(instance, "watching");
            }
            Event::Lost { reason, retry_in, refusal } => {
                let what = match (met, &refusal) {
                    (true, _) => "lost the stream",
                    (false, Some(_)) => UNMET,
                    (false, None) => "no stream yet",
                };
                let rotations = lock(&slots).keys().cloned().collect::<Vec<_>>().join(", ");
                tracing::warn!(instance, rotations, reason, retry_ms = retry_in.as_millis(), "{what}");
                if let Some(lasting) = refusal.filter(|refusal| refusal.lasting && !met) {
                    refused.send_replace(Some(lasting));
                }
            }
            Event::Refused { rotation, reason } => {
                if barred.insert(rotation.clone(), reason.clone()).as_ref() != Some(&reason) {
                    tracing::error!(instance, rotation, reason, "the server does not deliver this rotation; the others go on");
                }
            }
            // Only the newest state counts: a worker that was busy finds it when it looks next.
            Event::State(state) => {
                if barred.remove(&state.rotation).is_some() {
                    tracing::info!(instance, rotation = state.rotation, "the server delivers this rotation now");
                }
                match lock(&slots).get(&state.rotation) {
                    Some(put) => drop(put.send_replace(Some(Arc::new(*state)))),
                    None => tracing::warn!(instance, rotation = state.rotation, "not watched: state ignored"),
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Worker<A> {
    client: Client,
    watch: Arc<Watch>,
    rotation: String,
    instance: String,
    applier: A,
    desk: Desk,
    states: slot::Receiver<Option<Arc<State>>>,
    stale: Backoff,
}

impl<A: Apply> Worker<A> {
    async fn run(mut self) {
        loop {
            let improved = tokio::select! {
                changed = self.states.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    false
                }
                () = self.applier.improved(self.desk.level()) => true,
            };
            if improved {
                self.desk.prove(self.applier.proves());
            }
            let Some(state) = self.states.borrow_and_update().clone() else { continue };
            self.handle(&state).await;
        }
    }

    /// First what is to be used, then what is to be held ready: a server that goes away between the two must not keep a value that is here out
    /// of use.
    async fn handle(&mut self, state: &State) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while self.take(state).await {
            let wait = backoff.next(|bound| self.client.below(bound));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stand_by(state) => return,
            }
        }
        self.deliver(state).await;
    }

    /// Takes what is wanted into use. Returns whether that is to be tried again: while nothing at all is in use.
    async fn take(&mut self, state: &State) -> bool {
        let Some(offer) = &state.wanted else { return false };
        match self.desk.step(state) {
            Step::Rest => {}
            Step::Adopt => {
                self.desk.accept(&offer.credential);
                self.say(self.desk.level(), offer, "").await;
            }
            Step::Refuse(reason) => self.say(Level::Nack, offer, &reason).await,
            Step::Try => return self.attempt(offer).await,
        }
        false
    }

    /// Tries a candidate; one that fails is refused. Returns whether it is to be tried again.
    async fn attempt(&mut self, offer: &Offer) -> bool {
        let generation = offer.credential.generation();
        match self.applier.apply(&offer.credential).await {
            Ok(()) => {
                self.desk.prove(self.applier.proves());
                let level = self.desk.level().as_str();
                tracing::info!(rotation = self.rotation, instance = self.instance, generation, level, "in use");
                self.desk.accept(&offer.credential);
                self.say(self.desk.level(), offer, "").await;
                self.applier.settle().await;
            }
            Err(Reason { text, not_yet: true }) if self.desk.accepted_generation().is_none() => {
                let reason = offer.credential.scrub(&text);
                tracing::info!(rotation = self.rotation, instance = self.instance, generation, reason, "not in use yet");
            }
            Err(Reason { text, .. }) => {
                let reason = offer.credential.scrub(&text);
                tracing::warn!(rotation = self.rotation, instance = self.instance, generation, reason, "refused");
                self.desk.refuse(generation, reason.clone());
                self.say(Level::Nack, offer, &reason).await;
            }
        }
        self.desk.accepted_generation().is_none()
    }

    /// Says that the value to hold ready is here, unless that was said.
    async fn deliver(&mut self, state: &State) {
        if self.desk.owes_delivery(state)
            && let Some(offer) = &state.standby
        {
            self.say(Level::L1, offer, "").await;
        }
    }

    /// Delivers, and returns when something newer has come.
    async fn stand_by(&mut self, state: &State) {
        self.deliver(state).await;
        peek(&mut self.states).await;
    }

    /// Says something until the server took it or something newer is wanted. What the server refuses for good is said again
    /// after it was offered again.
    async fn say(&mut self, level: Level, offer: &Offer, reason: &str) {
        let generation = offer.credential.generation();
        let ack = Ack {
            rotation: self.rotation.clone(),
            instance: self.instance.clone(),
            generation,
            level,
            nonce: offer.nonce.clone(),
            reason: reason.to_owned(),
        };
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut asked_login = false;
        loop {
            let token = self.client.token();
            let sent = tokio::select! {
                sent = self.client.ack(&ack, &offer.ack_key) => sent,
                _ = peek(&mut self.states) => return,
            };
            let wait = match sent {
                Ok(()) => {
                    self.desk.confirm(level, generation, &offer.nonce);
                    self.stale.reset();
                    if level == self.desk.level() && self.desk.accepted_generation() == Some(generation) {
                        self.watch.hold(&self.rotation, generation);
                    }
                    return;
                }
                Err(Error::Refused { status: 401 | 403, .. }) if !asked_login && self.client.login_again(token.as_ref()).await.is_ok() => {
                    asked_login = true;
                    Duration::ZERO
                }
                // 408 and 429 pass by themselves.
                Err(error @ Error::Refused { status: 400..=407 | 409..=428 | 430..=499, .. }) => {
                    let wait = self.stale.next(|bound| self.client.below(bound));
                    self.unheard(&ack, &error, wait, "acknowledgement refused: asking for the state again");
                    tokio::select! {
                        () = tokio::time::sleep(wait) => self.watch.reconnect(),
                        _ = peek(&mut self.states) => {}
                    }
                    return;
                }
                Err(error) => {
                    let wait = backoff.next(|bound| self.client.below(bound));
                    self.unheard(&ack, &error, wait, "could not acknowledge");
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = peek(&mut self.states) => return,
            }
        }
    }

    /// Logs that an acknowledgement was not taken.
    fn unheard(&self, ack: &Ack, error: &Error, wait: Duration, what: &str) {
        let Ack { rotation, instance, generation, level, .. } = ack;
        let (level, retry_ms) = (level.as_str(), wait.as_millis());
        tracing::warn!(rotation, instance, generation, level, error = explain(error), retry_ms, "{what}");
    }
}

/// Waits for something newer without taking it. Never ready when nothing can come any more.
async fn peek(states: &mut slot::Receiver<Option<Arc<State>>>) {
    if states.changed().await.is_ok() {
        states.mark_changed();
    } else {
        std::future::pending::<()>().await;
    }
}
