//! How a new process shows that it is ready, and looking for it.
//!
//! Each way says what it can tell and no more:
//!
//! - `notify`: the program says `READY=1` on `NOTIFY_SOCKET`. It alone knows whether its value works, so this is worth most.
//! - accepting from a socket that was handed on: a connection of ours, or of anybody, was accepted by *this* program. An older
//!   process accepts from the same socket, so it is looked up whose descriptor the accepted connection is.
//! - listening on a port of its own: the listening socket is a descriptor of this program.
//! - `http`: a GET is answered with a status of 200 to 299, over a connection that this program has accepted.
//! - `started`: it was started and still runs. Nobody asked it anything.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::Credential;
use egress::{Address, Client, Connection, Ends, Request};
use rustix::process::Pid;
use tokio::time::{Instant, sleep, timeout};

use crate::proc::{self, Tcp, Unix};

/// Between two looks, at first and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// Between two attempts with connections of ours, while an older process may take them.
const ATTEMPT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// How long connections of one attempt are held while nobody takes them.
const ATTEMPT_HELD: Duration = Duration::from_millis(250);
/// Connections of one attempt at most: whoever serves one after the other is busy with the first.
const WIDTH_MAX: usize = 8;
/// Time for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer that are repeated when it was no success.
const ANSWER_BYTES_MAX: usize = 200;
/// How long a program must run to count as started.
const STARTED: Duration = Duration::from_secs(1);

/// How a new process shows that it is ready.
#[derive(Clone, Debug)]
pub enum Ready {
    /// `READY=1` if the program says anything on `NOTIFY_SOCKET`; else it accepts from the sockets that it was handed; else, if
    /// there are none, it listens on a port of its own.
    Auto,
    /// It says `READY=1` on `NOTIFY_SOCKET`.
    Notify,
    /// It accepts connections at this place.
    Tcp(Http),
    /// It answers a GET with a status of 200 to 299.
    Http(Http),
    /// It still runs after this time.
    Started(Duration),
}

/// Where a program is asked, and what.
#[derive(Clone)]
pub struct Http {
    client: Client,
    target: String,
    shown: String,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl std::str::FromStr for Ready {
    type Err = String;

    /// Reads `auto`, `notify`, `tcp:8080`, `tcp:127.0.0.1:8080`, `http://127.0.0.1:8080/healthz`, `started` or `started:5s`.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || format!("`{text}` is no way to be ready; expected `notify`, `tcp:PORT`, `http://HOST:PORT/PATH`, `started` or `auto`");
        match text {
            "auto" => return Ok(Self::Auto),
            "notify" => return Ok(Self::Notify),
            "started" => return Ok(Self::Started(STARTED)),
            _ => {}
        }
        if text.starts_with("http://") {
            let (client, target) = crate::health::url(text)?;
            return Ok(Self::Http(Http { client, target, shown: text.to_owned() }));
        }
        if let Some(span) = text.strip_prefix("started:") {
            return base::ttl::parse(span).map(Self::Started).map_err(|error| error.to_string());
        }
        let place = text.strip_prefix("tcp:").ok_or_else(expected)?;
        let place = if place.bytes().all(|byte| byte.is_ascii_digit()) { format!("127.0.0.1:{place}") } else { place.to_owned() };
        match Address::parse(&format!("http://{place}")) {
            Ok(Address::Tcp { host, port }) if port > 0 && place.ends_with(&format!(":{port}")) => {
                let shown = place.clone();
                let client = Client::new(Address::Tcp { host, port }, egress::Options::default());
                Ok(Self::Tcp(Http { client, target: "/".to_owned(), shown }))
            }
            _ => Err(expected()),
        }
    }
}

impl Ready {
    /// What a program that is not ready has not done, after `it has`.
    pub(crate) fn missing(&self, handed: &[Endpoint]) -> String {
        let notify = "said READY=1 on NOTIFY_SOCKET (sd_notify, `systemd-notify --ready` or `keyward notify READY=1`)";
        match self {
            Self::Notify => format!("it has not {notify}"),
            Self::Auto if handed.is_empty() => format!("it has neither {notify} nor opened a port"),
            Self::Auto => {
                let sockets = handed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                format!(
                    "it has neither {notify} nor accepted a connection from {sockets} (handed on from descriptor 3 upwards, LISTEN_FDS)"
                )
            }
            Self::Tcp(at) => format!("it has accepted no connection on {}", at.shown),
            Self::Http(url) => format!("it has not answered GET {} with a status of 200 to 299", url.shown),
            Self::Started(span) => format!("it has not run for {span:?}"),
        }
    }
}

/// Why a process counts as ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Notified,
    Accepted,
    Listens(String),
    Connected(String),
    Answered(String, u16),
    Started(Duration),
}

impl std::fmt::Display for How {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Notified => write!(f, "notify: it said READY=1"),
            Self::Accepted => write!(f, "accept: it accepted a connection from the socket that it was handed"),
            Self::Listens(at) => write!(f, "listen: it listens on {at}"),
            Self::Connected(at) => write!(f, "tcp: it accepted a connection on {at}"),
            Self::Answered(url, status) => write!(f, "http: it answered GET {url} with status {status}"),
            Self::Started(span) => write!(f, "started: it has run for {span:?}; nobody asked whether it works"),
        }
    }
}

/// A socket that was handed on, by where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(at) => at.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Endpoint {
    fn client(&self) -> Client {
        let address = match self {
            Self::Unix(path) => Address::Unix(path.clone()),
            Self::Tcp(at) => {
                let ip = match at.ip() {
                    IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
                    ip => ip,
                };
                Address::Tcp { host: ip.to_string(), port: at.port() }
            }
        };
        Client::new(address, egress::Options::default())
    }

    /// Whether a TCP connection belongs to this socket.
    fn is_of(&self, row: &Tcp) -> bool {
        let Self::Tcp(at) = self else { return false };
        !row.listens && row.local.port() == at.port() && (at.ip().is_unspecified() || row.local.ip() == at.ip().to_canonical())
    }
}

/// Sockets, and which of them a program holds.
pub(crate) struct View {
    held: BTreeSet<u64>,
    tcp: Vec<Tcp>,
    unix: Vec<Unix>,
}

impl View {
    /// Looks at a program.
    pub(crate) async fn of(first: Pid) -> std::io::Result<Self> {
        let looked = tokio::task::spawn_blocking(move || {
            // The tables first: what they show as accepted is in a descriptor by then, unless it is closed already.
            let (tcp, unix) = (proc::tcp(), proc::unix());
            Ok(Self { held: proc::sockets_of(&proc::program(first))?, tcp, unix })
        });
        looked.await.unwrap_or_else(|broken| Err(std::io::Error::other(broken)))
    }

    /// Connections that the program has accepted from a socket and not closed.
    pub(crate) fn accepted(&self, from: &Endpoint) -> usize {
        match from {
            Endpoint::Tcp(_) => self.tcp.iter().filter(|row| from.is_of(row) && self.held.contains(&row.inode)).count(),
            Endpoint::Unix(path) => {
                let own = |row: &&Unix| row.connected && !row.listens && row.path == *path && self.held.contains(&row.inode);
                self.unix.iter().filter(own).count()
            }
        }
    }

    /// Where the program listens itself, beside what it was handed.
    fn listens(&self, handed: &[Endpoint]) -> Vec<Endpoint> {
        let tcp = self.tcp.iter().filter(|row| row.listens && self.held.contains(&row.inode)).map(|row| Endpoint::Tcp(row.local));
        let unix = self.unix.iter().filter(|row| row.listens && self.held.contains(&row.inode));
        let mut found: Vec<_> = tcp.chain(unix.map(|row| Endpoint::Unix(row.path.clone()))).collect();
        found.retain(|endpoint| !handed.contains(endpoint));
        found
    }

    /// Who has the other end of a connection of ours.
    fn taker(&self, ends: Option<Ends>) -> Taker {
        let Some(ends) = ends else { return Taker::Unseen };
        let (local, peer) = (canonical(ends.local), canonical(ends.peer));
        match self.tcp.iter().find(|row| row.local == peer && row.remote == local) {
            None => Taker::Unseen,
            Some(row) if row.inode == 0 => Taker::Nobody,
            Some(row) if self.held.contains(&row.inode) => Taker::Program,
            Some(_) => Taker::Another,
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Who has accepted a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taker {
    /// It waits.
    Nobody,
    Program,
    Another,
    /// The other end is not on this machine, or not in sight.
    Unseen,
}

/// The process that is looked at.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) first: Pid,
    pub(crate) handed: Arc<[Endpoint]>,
    /// Whether an older process may answer in its place.
    pub(crate) rival: bool,
    /// What was last seen to be missing.
    pub(crate) miss: Miss,
}

/// The newest finding against a process.
#[derive(Clone)]
pub(crate) struct Miss {
    last: Arc<Mutex<Option<String>>>,
    /// Taken out of what the program says.
    value: Arc<Credential>,
}

impl Miss {
    pub(crate) fn new(value: Arc<Credential>) -> Self {
        Self { last: Arc::default(), value }
    }

    /// Notes a finding; the first is logged with what was expected.
    fn note(&self, found: String, expected: &str) {
        let found = self.value.scrub(&found);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none() {
            tracing::info!(found, expected, "not ready yet");
        }
        *last = Some(found);
    }

    /// The newest finding, in parentheses, for the end of a sentence.
    pub(crate) fn shown(&self) -> String {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().map_or_else(String::new, |found| format!(" ({found})"))
    }
}

/// Waits until a process is ready by what can be seen of it. Never ready where only the program can say so.
pub(crate) async fn watch(ready: Ready, subject: Subject) -> How {
    match ready {
        Ready::Notify => std::future::pending().await,
        Ready::Started(span) => {
            sleep(span).await;
            How::Started(span)
        }
        Ready::Auto if subject.handed.is_empty() => listening(&subject, |found| !found.is_empty()).await,
        Ready::Auto => accepting(&subject).await,
        Ready::Tcp(at) => connected(&subject, &at).await,
        Ready::Http(url) => answering(&subject, &url).await,
    }
}

/// Waits until the program listens somewhere itself.
async fn listening(subject: &Subject, enough: impl Fn(&[Endpoint]) -> bool) -> How {
    let mut pause = LOOK.0;
    loop {
        match View::of(subject.first).await {
            Ok(view) => {
                let found = view.listens(&subject.handed);
                if enough(&found) {
                    return How::Listens(found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
                }
            }
            Err(error) => subject.miss.note(unseen(&error), "to see which sockets it holds"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LOOK.1);
    }
}

fn unseen(error: &std::io::Error) -> String {
    format!("its descriptors cannot be looked at: {error}; run it as the user of the supervisor, or let it say READY=1")
}

/// Waits until the program has accepted a connection from each socket that it was handed.
async fn accepting(subject: &Subject) -> How {
    let clients: Vec<_> = subject.handed.iter().map(|endpoint| (endpoint, endpoint.client())).collect();
    let mut missing: Vec<_> = clients.iter().collect();
    let (mut width, mut pause) = (1, ATTEMPT.0);
    loop {
        let mut open = Vec::new();
        for (endpoint, client) in &missing {
            for _ in 0..width {
                match client.connect_alone().await {
                    Ok(connection) => open.push(connection),
                    Err(error) => subject.miss.note(client::explain(&error), &format!("a connection to {endpoint}")),
                }
            }
        }
        let (since, mut look) = (Instant::now(), LOOK.0);
        loop {
            let view = match View::of(subject.first).await {
                Ok(view) => view,
                Err(error) => {
                    subject.miss.note(unseen(&error), "to see which connections it accepts");
                    break;
                }
            };
            missing.retain(|(endpoint, _)| view.accepted(endpoint) == 0);
            if missing.is_empty() {
                return How::Accepted;
            }
            let taken = open.iter().all(|connection| view.taker(connection.ends()) != Taker::Nobody);
            // Without a rival a connection of ours waits for the program: one more for each attempt would only fill its queue.
            if (taken || subject.rival) && since.elapsed() >= if taken { LOOK.0 } else { ATTEMPT_HELD } {
                break;
            }
            sleep(look).await;
            look = (look * 2).min(LOOK.1);
        }
        drop(open);
        sleep(pause).await;
        (width, pause) = ((width * 2).min(WIDTH_MAX), (pause * 2).min(ATTEMPT.1));
    }
}

/// Waits until the program accepts connections at a place.
async fn connected(subject: &Subject, at: &Http) -> How {
    let port = match at.client.address() {
        Address::Tcp { port, .. } => *port,
        Address::Unix(_) => 0,
    };
    let own = listening(subject, move |found| found.iter().any(|one| matches!(one, Endpoint::Tcp(address) if address.port() == port)));
    let taken = async {
        let expected = format!("{} accepts a connection", at.shown);
        let mut attempts = Attempts::new(subject.rival);
        loop {
            match attempts.next(subject, at).await {
                Ok(_) => return How::Connected(at.shown.clone()),
                Err(found) => subject.miss.note(found, &expected),
            }
        }
    };
    tokio::select! {
        how = own => match how {
            How::Listens(_) => How::Listens(at.shown.clone()),
            how => how,
        },
        how = taken => how,
    }
}

/// Waits until the program answers a GET.
async fn answering(subject: &Subject, url: &Http) -> How {
    let expected = format!("GET {} is answered with a status of 200 to 299", url.shown);
    let mut attempts = Attempts::new(subject.rival);
    loop {
        let found = match attempts.next(subject, url).await {
            Ok(connection) => match timeout(ANSWER_TIMEOUT, ask(connection, url)).await {
                Ok(Ok((status, _))) if (200..300).contains(&status) => return How::Answered(url.shown.clone(), status),
                Ok(Ok((status, text))) => format!("it was answered with status {status}: {}", text.trim()),
                Ok(Err(error)) => client::explain(&error),
                Err(_) => format!("no answer within {ANSWER_TIMEOUT:?}"),
            },
            Err(found) => found,
        };
        subject.miss.note(found, &expected);
    }
}

async fn ask(connection: Connection, url: &Http) -> Result<(u16, String), egress::Error> {
    let answer = connection.send(Request::new("GET", &url.target).header("Connection", "close")).await?;
    let status = answer.status;
    let body = answer.body.beginning(ANSWER_BYTES_MAX).await?;
    Ok((status, String::from_utf8_lossy(body.expose()).into_owned()))
}

/// Connections to a place, until one is accepted by the program that is meant.
struct Attempts {
    rival: bool,
    width: usize,
    pause: Option<Duration>,
}

impl Attempts {
    fn new(rival: bool) -> Self {
        Self { rival, width: 1, pause: None }
    }

    /// A connection that the program has accepted. The error says what was found instead.
    async fn next(&mut self, subject: &Subject, at: &Http) -> Result<Connection, String> {
        match self.pause {
            None => self.pause = Some(ATTEMPT.0),
            Some(pause) => {
                sleep(pause).await;
                self.pause = Some((pause * 2).min(ATTEMPT.1));
                if self.rival {
                    self.width = (self.width * 2).min(WIDTH_MAX);
                }
            }
        }
        let mut open = Vec::new();
        for _ in 0..self.width {
            open.push(at.client.connect_alone().await.map_err(|error| client::explain(&error))?);
        }
        let (since, mut look) = (Instant::now(), LOOK.0);
        loop {
            let view = View::of(subject.first).await.map_err(|error| unseen(&error))?;
            let takers: Vec<_> = open.iter().map(|connection| view.taker(connection.ends())).collect();
            if let Some(found) = takers.iter().position(|taker| *taker == Taker::Program) {
                return Ok(open.swap_remove(found));
            }
            if takers.iter().all(|taker| *taker == Taker::Unseen) {
                let first = open.pop().filter(|_| !self.rival);
                return first.ok_or_else(|| format!("it cannot be seen which process answers at {}: stop the old one first (-swap=stop-then-start), or let the program say READY=1", at.shown));
            }
            if takers.iter().all(|taker| *taker == Taker::Another) {
                return Err(format!("another process answers at {}", at.shown));
            }
            if since.elapsed() >= ANSWER_TIMEOUT || self.rival && since.elapsed() >= ATTEMPT_HELD {
                return Err(format!("nobody accepts connections at {}", at.shown));
            }
            sleep(look).await;
            look = (look * 2).min(LOOK.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_read_strictly() {
        for (text, shown) in [
            ("auto", Some("Auto")),
            ("notify", Some("Notify")),
            ("started", Some("Started(1s)")),
            ("started:5s", Some("Started(5s)")),
            ("tcp:8080", Some("Tcp(127.0.0.1:8080)")),
            ("tcp:10.0.0.1:80", Some("Tcp(10.0.0.1:80)")),
            ("tcp:[::1]:80", Some("Tcp([::1]:80)")),
            ("http://127.0.0.1:8080/healthz", Some("Http(http://127.0.0.1:8080/healthz)")),
            ("tcp:", None),
            ("tcp:host", None),
            ("tcp:0", None),
            ("tcp:99999", None),
            ("https://h/", None),
            ("started:soon", None),
            ("ready", None),
        ] {
            let read = text.parse::<Ready>().ok().map(|ready| format!("{ready:?}"));
            assert_eq!(read.as_deref(), shown, "{text}");
        }
    }

    fn subject(handed: &[Endpoint], rival: bool) -> Subject {
        Subject {
            first: rustix::process::getpid(),
            handed: handed.into(),
            rival,
            miss: Miss::new(Arc::new(Credential::from_fields(1, &[]))),
        }
    }

    /// What accepts is looked up by its descriptors, so that an older process on the same socket proves nothing.
    #[tokio::test]
    async fn only_a_connection_that_the_program_itself_has_accepted_counts() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
        for rival in [false, true] {
            let own = subject(std::slice::from_ref(&endpoint), rival);
            let mut waiting = std::pin::pin!(accepting(&own));
            let listener = listener.try_clone().unwrap();
            let accepted = tokio::task::spawn_blocking(move || listener.accept().unwrap());
            let how = timeout(Duration::from_secs(30), &mut waiting).await.unwrap();
            assert_eq!(how, How::Accepted);
            drop(accepted.await.unwrap());
        }
        // somebody else, who never accepts
        let mut other = std::process::Command::new("/bin/sh").args(["-c", "read x"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let alien = Subject { first: Pid::from_child(&other), ..subject(std::slice::from_ref(&endpoint), true) };
        let (asking, _) = (std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap(), ());
        let (held, _) = listener.accept().unwrap();
        let view = View::of(alien.first).await.unwrap();
        let ends = Ends { local: asking.local_addr().unwrap(), peer: asking.peer_addr().unwrap() };
        assert_eq!((view.accepted(&endpoint), view.taker(Some(ends))), (0, Taker::Another));
        let own = View::of(rustix::process::getpid()).await.unwrap();
        assert_eq!((own.accepted(&endpoint) > 0, own.taker(Some(ends))), (true, Taker::Program));
        drop((asking, held));
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[tokio::test]
    async fn a_port_of_ones_own_is_seen() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let own = subject(&[], false);
        assert!(matches!(listening(&own, |found| found.contains(&Endpoint::Tcp(at))).await, How::Listens(_)));
        let Ok(Ready::Tcp(place)) = format!("tcp:{}", at.port()).parse() else { panic!() };
        assert_eq!(connected(&own, &place).await, How::Listens(place.shown.clone()));
        // one that nobody listens on says so
        drop(listener);
        let found = Attempts::new(false).next(&own, &place).await.err().unwrap();
        assert!(found.contains("could not connect"), "{found}");
    }
}
