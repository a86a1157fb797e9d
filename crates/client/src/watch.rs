//! The push stream: connected for as long as possible, resumed by stating what is held, never believed to be alive without a
//! heartbeat.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};

use crate::backoff::Backoff;
use crate::frame::{self, Frame, State};
use crate::{Client, Error, explain};

/// Events waiting for whoever reads them; then the stream itself waits.
const QUEUE: usize = 64;
/// A stream is dead when this many heartbeats in a row are missing.
const MISSED_HEARTBEATS: u32 = 3;

/// Who watches what.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// The name of this instance; it belongs to one principal.
    pub instance: String,
    /// The rotations to watch.
    pub rotations: Vec<String>,
}

/// How to watch.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// The first wait before connecting again.
    pub retry_min: Duration,
    /// The longest. A stream that lasted this long makes the next wait the first again.
    pub retry_max: Duration,
    /// Time from connecting to the first line.
    pub hello_timeout: Duration,
    /// Bytes of one line at most.
    pub line_bytes_max: usize,
    /// Signed checkpoints to keep.
    pub checkpoints_kept: usize,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
            hello_timeout: Duration::from_secs(10),
            line_bytes_max: 1 << 20,
            checkpoints_kept: 16,
        }
    }
}

/// What the stream brings.
pub enum Event {
    /// The stream is open.
    Connected,
    /// A wanted state.
    State(Box<State>),
    /// One rotation is refused; the others go on. A [`Event::State`] of it follows when it is delivered after all.
    Refused {
        /// The rotation.
        rotation: String,
        /// What the server said.
        reason: String,
    },
    /// The stream ended; another attempt follows.
    Lost {
        /// Why, without any content of the stream.
        reason: String,
        /// When.
        retry_in: Duration,
        /// What the server said when it refused what was asked for, instead of being away or ending a stream.
        refusal: Option<Refusal>,
    },
}

/// The server's answer to a stream that it does not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The texts of the server.
    pub errors: Vec<String>,
    /// Whether the same request will be refused again, until somebody changes something: a request that is wrong, or one that a
    /// fresh token was refused too.
    pub lasting: bool,
}

impl Refusal {
    fn of(error: &Error, token_is_spent: bool) -> Option<Self> {
        let Error::Refused { status, errors, .. } = error else { return None };
        // Too slow and too many pass by themselves, like everything from 500 on.
        let refused = (400..500).contains(status) && !matches!(status, 408 | 429);
        let lasting = token_is_spent || !matches!(status, 401 | 403);
        refused.then(|| Self { status: *status, errors: errors.clone(), lasting })
    }
}

/// An open subscription. Dropped, it closes the stream.
pub struct Watch {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    held: Mutex<BTreeMap<String, u64>>,
    checkpoints: Mutex<Checkpoints>,
    reconnect: Notify,
}

impl Watch {
    /// Starts watching.
    #[must_use]
    pub fn open(client: Client, subscription: Subscription, options: WatchOptions) -> (Self, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(QUEUE);
        let held = subscription.rotations.iter().map(|rotation| (rotation.clone(), 0)).collect();
        let checkpoints = Checkpoints { kept: VecDeque::new(), most: options.checkpoints_kept.max(1), rewound: None };
        let shared = Arc::new(Shared { held: Mutex::new(held), checkpoints: Mutex::new(checkpoints), reconnect: Notify::new() });
        let stream = Stream { client, instance: subscription.instance, options, shared: Arc::clone(&shared), events };
        (Self { shared, task: tokio::spawn(stream.run()) }, receiver)
    }

    /// States from now on that `generation` of the rotation is in use and acknowledged.
    pub fn hold(&self, rotation: &str, generation: u64) {
        if let Some(held) = lock(&self.shared.held).get_mut(rotation) {
            *held = generation.max(*held);
        }
    }

    /// Follows one rotation more, of which nothing is held, from the next stream on.
    pub fn follow(&self, rotation: &str) {
        lock(&self.shared.held).insert(rotation.to_owned(), 0);
    }

    /// Follows one rotation less from the next stream on.
    pub fn forget(&self, rotation: &str) {
        lock(&self.shared.held).remove(rotation);
    }

    /// Closes the stream and opens it again, so that the server sends anew what is not held.
    pub fn reconnect(&self) {
        self.shared.reconnect.notify_one();
    }

    /// The newest signed checkpoints of the server's access log, oldest first: evidence that the server cannot take back.
    #[must_use]
    pub fn checkpoints(&self) -> Vec<String> {
        lock(&self.shared.checkpoints).kept.iter().map(|checkpoint| checkpoint.text.clone()).collect()
    }

    /// Two checkpoints that cannot both be of one append-only log, if such were seen: the log shrank, or changed.
    #[must_use]
    pub fn contradiction(&self) -> Option<(String, String)> {
        lock(&self.shared.checkpoints).rewound.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Stream {
    client: Client,
    instance: String,
    options: WatchOptions,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
}

/// Why a stream ended.
enum End {
    /// Nobody listens any more.
    Unheard,
    /// Asked for by [`Watch::reconnect`].
    Asked,
    Bye(String),
    Closed,
    Silent(Duration),
    NoHello,
    Frame(frame::Error),
    Failed(Error),
}

impl Stream {
    async fn run(self) {
        let mut backoff = Backoff::new(self.options.retry_min, self.options.retry_max);
        loop {
            let token = self.client.token();
            let end = match self.begin(token.is_none(), &mut backoff).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            let mut spent = false;
            if matches!(&end, End::Failed(Error::Refused { status: 401 | 403, .. })) {
                match self.client.login_again(token.as_ref()).await {
                    Ok(()) => {}
                    Err(Error::NoLogin | Error::LoginTooSoon { .. }) => spent = true,
                    Err(error) => tracing::warn!(instance = self.instance, error = explain(&error), "could not log in again"),
                }
            }
            let refusal = if let End::Failed(error) = &end { Refusal::of(error, spent) } else { None };
            let reason = match end {
                End::Unheard => return,
                End::Asked => "asked to connect again".to_owned(),
                End::Bye(reason) => format!("the server said goodbye: {reason}"),
                End::Closed => "the server closed the stream".to_owned(),
                End::Silent(after) => format!("nothing was heard for {after:?}"),
                End::NoHello => "the stream did not begin with a greeting".to_owned(),
                End::Frame(error) => error.to_string(),
                End::Failed(error) => explain(&error),
            };
            let retry_in = backoff.next(|bound| self.client.below(bound));
            if self.events.send(Event::Lost { reason, retry_in, refusal }).await.is_err() {
                return;
            }
            tokio::time::sleep(retry_in).await;
        }
    }

    /// Logs in first where that was left for later, then follows.
    async fn begin(&self, stranger: bool, backoff: &mut Backoff) -> Result<std::convert::Infallible, End> {
        if stranger
            && let Err(error) = self.client.login_again(None).await
            && !matches!(error, Error::NoLogin)
        {
            return Err(End::Failed(error));
        }
        self.follow(backoff).await
    }

    /// Follows one stream to its end.
    async fn follow(&self, backoff: &mut Backoff) -> Result<std::convert::Infallible, End> {
        let first = self.options.hello_timeout;
        let opening = async {
            let holds: Vec<_> = lock(&self.shared.held).iter().map(|(rotation, generation)| format!("{rotation}:{generation}")).collect();
            let mut query = vec![("instance", self.instance.as_str())];
            query.extend(holds.iter().map(|hold| ("hold", hold.as_str())));
            let mut lines = self.client.stream("sys/lifecycle/watch", &query, self.options.line_bytes_max).await.map_err(End::Failed)?;
            match self.frame(&mut lines).await? {
                Frame::Hello { heartbeat, .. } => Ok((lines, heartbeat)),
                Frame::Bye { reason } => Err(End::Bye(reason)),
                _ => Err(End::NoHello),
            }
        };
        let (mut lines, heartbeat) = timeout(first, opening).await.unwrap_or(Err(End::Silent(first)))?;
        self.tell(Event::Connected).await?;
        let since = Instant::now();
        let silence = heartbeat * MISSED_HEARTBEATS;
        loop {
            let frame = tokio::select! {
                frame = timeout(silence, self.frame(&mut lines)) => frame.unwrap_or(Err(End::Silent(silence)))?,
                () = self.shared.reconnect.notified() => return Err(End::Asked),
                () = self.events.closed() => return Err(End::Unheard),
            };
            // A stream that begins well proves little: two that take an instance from each other both begin so, for ever.
            if since.elapsed() >= self.options.retry_max {
                backoff.reset();
            }
            match frame {
                Frame::State(state) => self.tell(Event::State(state)).await?,
                Frame::Refused { rotation, reason } => self.tell(Event::Refused { rotation, reason }).await?,
                Frame::Heartbeat { checkpoint } => checkpoint.into_iter().for_each(|text| self.pin(text)),
                Frame::Bye { reason } => return Err(End::Bye(reason)),
                Frame::Hello { .. } | Frame::Unknown => {}
            }
        }
    }

    async fn frame(&self, lines: &mut egress::Lines) -> Result<Frame, End> {
        loop {
            let failed = |source| End::Failed(Error::Transport { address: self.client.address(), source });
            let line = lines.next().await.map_err(failed)?.ok_or(End::Closed)?;
            if !line.expose().is_empty() {
                return frame::parse(line.expose()).map_err(End::Frame);
            }
        }
    }

    async fn tell(&self, event: Event) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Unheard)
    }

    fn pin(&self, text: String) {
        let mut checkpoints = lock(&self.shared.checkpoints);
        if checkpoints.pin(text) {
            tracing::error!(instance = self.instance, "the server's access log went back or changed: both checkpoints are kept");
        }
    }
}

/// The newest checkpoints, and the first contradiction among them.
struct Checkpoints {
    kept: VecDeque<Checkpoint>,
    most: usize,
    rewound: Option<(String, String)>,
}

struct Checkpoint {
    text: String,
    /// Of the signed note's body: origin, size, root hash.
    claim: Option<(String, u64, String)>,
}

impl Checkpoints {
    /// Keeps a checkpoint; true when it is the first to contradict the one before.
    fn pin(&mut self, text: String) -> bool {
        if self.kept.back().is_some_and(|last| last.text == text) {
            return false;
        }
        let next = Checkpoint { claim: claim(&text), text };
        let contradicts = self.kept.back().is_some_and(|last| match (&last.claim, &next.claim) {
            (Some((origin, size, root)), Some((next_origin, next_size, next_root))) => {
                origin == next_origin && (next_size < size || (next_size == size && next_root != root))
            }
            _ => false,
        });
        let first = contradicts && self.rewound.is_none();
        if first && let Some(last) = self.kept.back() {
            self.rewound = Some((last.text.clone(), next.text.clone()));
        }
        if self.kept.len() >= self.most {
            self.kept.pop_front();
        }
        self.kept.push_back(next);
        first
    }
}

fn claim(text: &str) -> Option<(String, u64, String)> {
    let mut lines = text.lines();
    let (origin, size, root) = (lines.next()?, lines.next()?, lines.next()?);
    Some((origin.to_owned(), size.parse().ok()?, root.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_pinned_and_a_log_that_goes_back_is_noticed() {
        let note = |size: u64, root: &str| format!("keyward/access\n{size}\n{root}\n\n— keyward sig\n");
        let fresh = || Checkpoints { kept: VecDeque::new(), most: 2, rewound: None };
        for (what, second, contradicts) in [
            ("grown", note(11, "b"), false),
            ("the same", note(10, "a"), false),
            ("signed again", note(10, "a") + "— other sig\n", false),
            ("smaller", note(9, "z"), true),
            ("the same size, another root", note(10, "b"), true),
            ("another log", note(1, "b").replace("access", "other"), false),
            ("not a checkpoint", "x".to_owned(), false),
        ] {
            let mut checkpoints = fresh();
            assert!(!checkpoints.pin(note(10, "a")));
            assert_eq!(checkpoints.pin(second), contradicts, "{what}");
            assert_eq!(checkpoints.rewound.is_some(), contradicts, "{what}");
        }
        let mut checkpoints = fresh();
        for size in 0..5 {
            checkpoints.pin(note(size, "r"));
        }
        assert_eq!(checkpoints.kept.iter().map(|kept| kept.claim.as_ref().unwrap().1).collect::<Vec<_>>(), [3, 4]);
    }
}
