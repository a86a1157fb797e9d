//! The load: requests at their own pace, never twice.
//!
//! Arrivals do not wait for answers (an open loop), so a service that stalls meets a queue as in life. A request is sent once; its answer is
//! waited for up to a minute; anything but 200 has failed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::rng::SeededRng;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::http::CLIENT_IDLE_MAX;

/// How long an answer is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Failures that are kept with their reasons.
const REASONS_MAX: usize = 200;

/// One request that got no 200.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) id: String,
    pub(crate) replica: String,
    pub(crate) after: Duration,
    pub(crate) reason: String,
}

/// What was sent and what came of it.
pub(crate) struct Tally {
    pub(crate) sent: u64,
    /// Ids of the requests that were answered with 200.
    pub(crate) answered: BTreeSet<String>,
    pub(crate) failed: u64,
    pub(crate) failures: Vec<Failure>,
    /// Microseconds from sending to the answer, sorted.
    pub(crate) latencies: Vec<u64>,
}

impl Tally {
    /// The latency that this share of the answers stayed below.
    pub(crate) fn latency(&self, percent: usize) -> Duration {
        let at = (self.latencies.len() * percent / 100).min(self.latencies.len().saturating_sub(1));
        Duration::from_micros(self.latencies.get(at).copied().unwrap_or(0))
    }
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
    results: Mutex<Results>,
    replicas: Vec<OfReplica>,
}

/// What came of the requests to one replica.
#[derive(Default)]
struct OfReplica {
    answered: AtomicU64,
    failed: AtomicU64,
}

/// Reads the figures of a load, also when that is in other hands.
#[derive(Clone)]
pub(crate) struct Meter(Arc<Counts>);

impl Meter {
    pub(crate) fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.0.failed.load(Ordering::Relaxed)
    }

    /// For each replica how many requests were answered, and how many failed.
    pub(crate) fn of_replicas(&self) -> Vec<(u64, u64)> {
        let read = |of: &OfReplica| (of.answered.load(Ordering::Relaxed), of.failed.load(Ordering::Relaxed));
        self.0.replicas.iter().map(read).collect()
    }

    /// The newest failure of which the reason is known.
    pub(crate) fn last_failure(&self) -> Option<Failure> {
        self.0.results.lock().unwrap_or_else(PoisonError::into_inner).last.clone()
    }
}

#[derive(Default)]
struct Results {
    answered: BTreeSet<String>,
    failures: Vec<Failure>,
    last: Option<Failure>,
    latencies: Vec<u64>,
}

/// A load that runs.
pub(crate) struct Load {
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

/// A replica as the load sees it.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) name: String,
    /// `127.0.0.1:port`.
    pub(crate) address: String,
}

impl Load {
    /// Starts to send `per_second` requests on average to `replicas` in turn. Ids start with `prefix`.
    pub(crate) fn start(replicas: &[Replica], per_second: u64, prefix: &str, seed: u64) -> Result<Self, egress::Error> {
        let options = egress::Options {
            connect_timeout: PATIENCE,
            head_timeout: PATIENCE,
            body_timeout: PATIENCE,
            body_bytes_max: 64 << 10,
            idle_timeout: CLIENT_IDLE_MAX,
        };
        let clients = replicas
            .iter()
            .map(|r| Ok((r.clone(), egress::Client::new(egress::Address::parse(&format!("http://{}", r.address))?, options.clone()))))
            .collect::<Result<Vec<_>, egress::Error>>()?;
        let of_replicas = clients.iter().map(|_| OfReplica::default()).collect();
        let counts = Arc::new(Counts { replicas: of_replicas, ..Counts::default() });
        let task = tokio::spawn(run(clients, per_second, prefix.to_owned(), SeededRng::new(seed), Arc::clone(&counts)));
        Ok(Self { counts, task })
    }

    /// A load that sends nothing.
    pub(crate) fn none() -> Self {
        Self { counts: Arc::default(), task: tokio::spawn(std::future::ready(())) }
    }

    pub(crate) fn meter(&self) -> Meter {
        Meter(Arc::clone(&self.counts))
    }

    #[cfg(test)]
    pub(crate) fn sent(&self) -> u64 {
        self.counts.sent.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn answered(&self) -> u64 {
        self.counts.answered.load(Ordering::Relaxed)
    }

    /// Sends nothing more and waits for all answers.
    pub(crate) async fn stop(self) -> Tally {
        self.counts.stop.store(true, Ordering::Release);
        let ended = self.task.await;
        let (answered, mut failures, mut latencies) = {
            let mut results = self.counts.results.lock().unwrap_or_else(PoisonError::into_inner);
            let Results { answered, failures, latencies, .. } = &mut *results;
            (std::mem::take(answered), std::mem::take(failures), std::mem::take(latencies))
        };
        if let Err(error) = ended {
            let reason = format!("the load generator broke: {error}");
            failures.push(Failure { id: String::new(), replica: String::new(), after: Duration::ZERO, reason });
        }
        latencies.sort_unstable();
        let sent = self.counts.sent.load(Ordering::Acquire);
        let failed = sent.saturating_sub(u64::try_from(answered.len()).unwrap_or(u64::MAX));
        Tally { sent, answered, failed, failures, latencies }
    }
}

async fn run(clients: Vec<(Replica, egress::Client)>, per_second: u64, prefix: String, rng: SeededRng, counts: Arc<Counts>) {
    let mut requests = JoinSet::new();
    let mut due = Instant::now();
    for (n, (at, (replica, client))) in clients.iter().enumerate().cycle().enumerate() {
        due += gap(&rng, per_second);
        sleep_until(due).await;
        if counts.stop.load(Ordering::Acquire) {
            break;
        }
        while requests.try_join_next().is_some() {}
        counts.sent.fetch_add(1, Ordering::AcqRel);
        requests.spawn(one((at, replica.name.clone()), client.clone(), format!("{prefix}-{n}"), Arc::clone(&counts)));
    }
    while requests.join_next().await.is_some() {}
}

/// The time to the next arrival: exponential, so that arrivals are independent; at most ten times the mean.
fn gap(rng: &SeededRng, per_second: u64) -> Duration {
    const PARTS: u64 = 1 << 20;
    #[expect(clippy::cast_precision_loss, reason = "numbers of twenty bits")]
    let unit = (rng.below(PARTS) + 1) as f64 / PARTS as f64;
    #[expect(clippy::cast_precision_loss, reason = "a rate is small")]
    let mean = 1.0 / per_second.max(1) as f64;
    Duration::from_secs_f64((-unit.ln()).min(10.0) * mean)
}

async fn one((at, replica): (usize, String), client: egress::Client, id: String, counts: Arc<Counts>) {
    let since = Instant::now();
    let outcome = tokio::time::timeout(PATIENCE, ask(&client, &id)).await.unwrap_or_else(|_| Err("no answer within a minute".to_owned()));
    let after = since.elapsed();
    let mut results = counts.results.lock().unwrap_or_else(PoisonError::into_inner);
    match outcome {
        Ok(()) => {
            counts.answered.fetch_add(1, Ordering::Relaxed);
            counts.replicas.get(at).map(|of| of.answered.fetch_add(1, Ordering::Relaxed));
            results.latencies.push(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
            results.answered.insert(id);
        }
        Err(reason) => {
            counts.failed.fetch_add(1, Ordering::Relaxed);
            counts.replicas.get(at).map(|of| of.failed.fetch_add(1, Ordering::Relaxed));
            let failure = Failure { id, replica, after, reason };
            if results.failures.len() < REASONS_MAX {
                results.failures.push(failure.clone());
            }
            results.last = Some(failure);
        }
    }
}

async fn ask(client: &egress::Client, id: &str) -> Result<(), String> {
    let request = egress::Request::new("POST", &format!("/work?id={id}"));
    let response = client.send(request).await.map_err(|e| crate::explain(&e))?;
    let status = response.status;
    let body = response.body.bytes().await.map_err(|e| crate::explain(&e))?;
    if status == 200 { Ok(()) } else { Err(format!("{status}: {}", String::from_utf8_lossy(body.expose()))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Handler, Response, serve};
    use tokio::net::TcpListener;
    use tokio::sync::watch;

    async fn server(handler: Handler) -> (String, watch::Sender<bool>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tell, drain) = watch::channel(false);
        tokio::spawn(serve(listener, handler, drain));
        (address, tell)
    }

    fn replica(name: &str, address: &str) -> Replica {
        Replica { name: name.into(), address: address.into() }
    }

    #[test]
    fn arrivals_are_seeded_and_have_their_mean() {
        let draw = |seed| {
            let rng = SeededRng::new(seed);
            (0..20_000).map(|_| gap(&rng, 200)).collect::<Vec<_>>()
        };
        let (a, b) = (draw(1), draw(1));
        assert_eq!(a, b);
        assert_ne!(a, draw(2));
        let mean = a.iter().sum::<Duration>() / 20_000;
        assert!(mean > Duration::from_micros(4_800) && mean < Duration::from_micros(5_200), "{mean:?}");
    }

    #[tokio::test]
    async fn every_request_is_sent_once_and_counted() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let handler: Handler = Arc::new(move |r| {
            let id = r.query("id").unwrap().to_owned();
            log.lock().unwrap().push(id.clone());
            let bad = id.ends_with('6');
            Box::pin(async move { Response { status: if bad { 500 } else { 200 }, body: "the reason".into() } })
        });
        let (address, _drain) = server(handler).await;
        let gone = { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string() };
        let load = Load::start(&[replica("here", &address), replica("gone", &gone)], 400, "t", 1).unwrap();
        while load.answered() < 50 {
            tokio::task::yield_now().await;
        }
        let meter = load.meter();
        let tally = load.stop().await;
        let seen = seen.lock().unwrap();
        let unique: BTreeSet<_> = seen.iter().cloned().collect();
        assert_eq!(unique.len(), seen.len(), "something was sent twice");
        assert_eq!(tally.sent, u64::try_from(tally.answered.len()).unwrap() + tally.failed);
        assert!(tally.answered.iter().all(|id| !id.ends_with('6') && unique.contains(id)));
        assert!(tally.failures.iter().any(|f| f.reason == "500: the reason" && f.replica == "here"), "{:?}", tally.failures);
        assert!(tally.failures.iter().any(|f| f.reason.contains("could not connect") && f.replica == "gone"));
        // What a screen reads is what the tally says, for each replica as well.
        let sums = meter.of_replicas().iter().fold((0, 0), |(a, b), (answered, failed)| (a + answered, b + failed));
        assert_eq!(sums, (u64::try_from(tally.answered.len()).unwrap(), tally.failed));
        assert_eq!((meter.sent(), meter.failed()), (tally.sent, tally.failed));
        assert_eq!(meter.of_replicas()[1].0, 0, "nobody listens there");
        assert!(["here", "gone"].contains(&meter.last_failure().unwrap().replica.as_str()));
        assert!(tally.latency(50) <= tally.latency(99) && tally.latency(99) > Duration::ZERO);
    }

    /// The hand-over of a restart: connections of a draining server lose nothing, whenever the drain begins.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_drain_costs_no_request() {
        let first = TcpListener::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
        let address = first.local_addr().unwrap().to_string();
        let handler: Handler = Arc::new(|_| Box::pin(async { Response { status: 200, body: String::new() } }));
        let load = Load::start(&[replica("r", &address)], 1_000, "d", 3).unwrap();
        let mut servers = Vec::new();
        for round in 1..=20_u64 {
            // The socket is shared, as a supervisor does it: the next server accepts before the former drains.
            let (tell, drain) = watch::channel(false);
            let listener = TcpListener::from_std(first.try_clone().unwrap()).unwrap();
            servers.push((tell, tokio::spawn(serve(listener, Arc::clone(&handler), drain))));
            if let [.., (former, _), _] = &servers[..] {
                former.send_replace(true);
            }
            while load.sent() < round * 50 {
                tokio::task::yield_now().await;
            }
        }
        let tally = load.stop().await;
        assert_eq!(tally.failed, 0, "{:?}", tally.failures.first());
        assert!(tally.sent >= 1_000);
    }
}
