//! A server that speaks the wire of delivery over a real socket and misbehaves on demand.
//!
//! It accepts one AppRole (`role`, `secret-N` for any N), hands out the tokens `token-1`, `token-2`, …, checks every proof of
//! possession as the real server does, and tells the test everything that it heard, in order.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Longest wait for anything; only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What the server heard.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Login { secret_id: String },
    Renew { token: String },
    Watch { instance: String, holds: Vec<String>, token: String },
    Ack { level: String, generation: u64, proven: bool, reason: String },
    Goodbye { instance: String },
    GoodbyeTo { instance: String, rotation: String },
    Other { method: String, target: String, body: String },
}

pub fn ack(level: &str, generation: u64) -> Heard {
    Heard::Ack { level: level.to_owned(), generation, proven: true, reason: String::new() }
}

pub struct Fake {
    pub address: String,
    pub knobs: Arc<Mutex<Knobs>>,
    heard: mpsc::UnboundedReceiver<Heard>,
    lines: Lines,
}

pub struct Knobs {
    /// First line of each stream.
    pub hello: String,
    /// Sent right after the greeting of each stream; the front one is used up.
    pub after_hello: VecDeque<String>,
    /// Statuses of the next acknowledgements; 204 when used up.
    pub ack_statuses: VecDeque<u16>,
    pub refused_tokens: BTreeSet<String>,
    /// What every stream is refused with, and the text.
    pub refuse_streams: Option<(u16, String)>,
    pub refuse_renewals: bool,
    pub lease_seconds: u64,
    pub logins: u64,
    /// Statuses of everything else: (status, body).
    pub other: (u16, String),
}

impl Fake {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (tell, heard) = mpsc::unbounded_channel();
        let knobs = Arc::new(Mutex::new(Knobs {
            hello: r#"{"type":"hello","stream":"s","heartbeat_seconds":60}"#.to_owned(),
            after_hello: VecDeque::new(),
            ack_statuses: VecDeque::new(),
            refused_tokens: BTreeSet::new(),
            refuse_streams: None,
            refuse_renewals: false,
            lease_seconds: 3_600,
            logins: 0,
            other: (200, r#"{"data":{}}"#.to_owned()),
        }));
        let lines = Arc::new(Mutex::new(None));
        let fake = Self { address, knobs: Arc::clone(&knobs), heard, lines: Arc::clone(&lines) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, Arc::clone(&knobs), tell.clone(), Arc::clone(&lines)));
            }
        });
        fake
    }

    /// The next thing that was heard.
    pub async fn next(&mut self) -> Heard {
        tokio::time::timeout(PATIENCE, self.heard.recv()).await.expect("the server heard nothing more").unwrap()
    }

    /// The next stream, skipping nothing.
    pub async fn next_watch(&mut self) -> Vec<String> {
        match self.next().await {
            Heard::Watch { holds, .. } => holds,
            other => panic!("expected a stream, heard {other:?}"),
        }
    }

    /// Whether anything was heard that nobody asked for.
    pub fn quiet(&mut self) -> bool {
        match self.heard.try_recv() {
            Err(_) => true,
            Ok(heard) => panic!("unexpected: {heard:?}"),
        }
    }

    /// Sends a line on the newest stream.
    pub fn send(&self, line: &str) {
        self.raw(&format!("{line}\n"));
    }

    pub fn raw(&self, text: &str) {
        self.lines.lock().unwrap().as_ref().expect("no stream is open").send(Some(text.to_owned())).unwrap();
    }

    /// Drops the newest stream.
    pub fn cut(&self) {
        self.lines.lock().unwrap().take().expect("no stream is open").send(None).unwrap_or_default();
    }

    pub fn knobs(&self) -> std::sync::MutexGuard<'_, Knobs> {
        self.knobs.lock().unwrap()
    }
}

/// The key that the server delivers with a generation.
fn key(generation: u64) -> String {
    format!("key of {generation}")
}

pub fn offer(generation: u64, value: Value) -> Value {
    offer_with(generation, value, &format!("nonce-{generation}"))
}

pub fn offer_with(generation: u64, value: Value, nonce: &str) -> Value {
    json!({"generation": generation, "run": "r", "version": generation, "value": value,
        "ack_key": crypto::encode::base64(key(generation).as_bytes()), "nonce": nonce})
}

pub fn login(password: &str) -> Value {
    json!({"username": "app", "password": password})
}

/// A state line.
pub fn state(rotation: &str, wanted: Value, standby: Value) -> String {
    json!({"type": "state", "rotation": rotation, "path": "secret/data/x", "use": wanted, "standby": standby, "required_level": "L2"})
        .to_string()
}

type Lines = Arc<Mutex<Option<mpsc::UnboundedSender<Option<String>>>>>;

async fn connection(mut stream: TcpStream, knobs: Arc<Mutex<Knobs>>, tell: mpsc::UnboundedSender<Heard>, lines: Lines) {
    while let Some(request) = Request::read(&mut stream).await {
        let say = |heard| tell.send(heard).unwrap_or_default();
        let (status, body) = match (request.method.as_str(), request.path()) {
            ("GET", "/v1/sys/lifecycle/watch") => {
                let (holds, instance) = (request.query("hold"), request.query("instance").join(","));
                let refusal = if refused(&knobs, &request) {
                    Some((403, "permission denied".to_owned()))
                } else {
                    knobs.lock().unwrap().refuse_streams.clone()
                };
                // A test that heard of the stream can use it at once.
                let (put, take) = mpsc::unbounded_channel();
                if refusal.is_none() {
                    *lines.lock().unwrap() = Some(put);
                }
                say(Heard::Watch { instance, holds, token: request.token.clone() });
                let Some((status, why)) = refusal else { return push(stream, &knobs, take).await };
                (status, json!({"errors": [why]}).to_string())
            }
            ("POST", "/v1/sys/lifecycle/ack") => {
                let said = heard_ack(&request.body);
                let status = if refused(&knobs, &request) { 403 } else { knobs.lock().unwrap().ack_statuses.pop_front().unwrap_or(204) };
                say(said);
                (status, if status == 204 { String::new() } else { r#"{"errors":["no"]}"#.to_owned() })
            }
            ("POST", "/v1/sys/lifecycle/goodbye") => {
                let body: Value = serde_json::from_str(&request.body).unwrap();
                let instance = body["instance"].as_str().unwrap().to_owned();
                say(match body["rotation"].as_str() {
                    Some(rotation) => Heard::GoodbyeTo { instance, rotation: rotation.to_owned() },
                    None => Heard::Goodbye { instance },
                });
                (204, String::new())
            }
            ("POST", "/v1/auth/approle/login") => {
                let body: Value = serde_json::from_str(&request.body).unwrap();
                let secret_id = body["secret_id"].as_str().unwrap().to_owned();
                let good = body["role_id"] == "role" && secret_id.starts_with("secret-");
                say(Heard::Login { secret_id });
                if good { (200, grant(&knobs)) } else { (400, r#"{"errors":["invalid role or secret ID"]}"#.to_owned()) }
            }
            ("POST", "/v1/auth/token/renew-self") => {
                say(Heard::Renew { token: request.token.clone() });
                let (refuse, lease) = {
                    let knobs = knobs.lock().unwrap();
                    (knobs.refuse_renewals, knobs.lease_seconds)
                };
                if refuse {
                    (403, r#"{"errors":["permission denied"]}"#.to_owned())
                } else {
                    (200, json!({"auth": {"client_token": request.token, "lease_duration": lease, "renewable": true}}).to_string())
                }
            }
            _ => {
                say(Heard::Other { method: request.method.clone(), target: request.target.clone(), body: request.body.clone() });
                knobs.lock().unwrap().other.clone()
            }
        };
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        if stream.write_all((head + &body).as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Streams lines until the test cuts it or the client goes.
async fn push(mut stream: TcpStream, knobs: &Mutex<Knobs>, mut take: mpsc::UnboundedReceiver<Option<String>>) {
    let (hello, after) = {
        let mut knobs = knobs.lock().unwrap();
        (knobs.hello.clone(), knobs.after_hello.pop_front())
    };
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n{hello}\n{}", after.unwrap_or_default());
    if stream.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    let mut scratch = [0; 1];
    loop {
        tokio::select! {
            line = take.recv() => match line.flatten() {
                Some(text) => if stream.write_all(text.as_bytes()).await.is_err() { return },
                None => return,
            },
            gone = stream.read(&mut scratch) => if matches!(gone, Ok(0) | Err(_)) { return },
        }
    }
}

fn refused(knobs: &Mutex<Knobs>, request: &Request) -> bool {
    knobs.lock().unwrap().refused_tokens.contains(&request.token)
}

fn grant(knobs: &Mutex<Knobs>) -> String {
    let mut knobs = knobs.lock().unwrap();
    knobs.logins += 1;
    json!({"auth": {"client_token": format!("token-{}", knobs.logins), "accessor": "a", "policies": ["default"],
        "lease_duration": knobs.lease_seconds, "renewable": true}})
    .to_string()
}

/// The proof is computed here from the document, not by the code under test.
fn heard_ack(body: &str) -> Heard {
    let body: Value = serde_json::from_str(body).unwrap();
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let generation = body["generation"].as_u64().unwrap();
    let (level, reason) = (text("level"), text("reason"));
    let message = format!("keyward-ack-v1\n{}\n{}\n{generation}\n{level}\n{}\n{reason}", text("rotation"), text("instance"), text("nonce"));
    let tag = crypto::encode::from_base64(&text("mac")).unwrap_or_default();
    let proven = crypto::mac::verify(&crypto::mac::Key::new(key(generation).as_bytes()), message.as_bytes(), &tag);
    Heard::Ack { level, generation, proven, reason }
}

struct Request {
    method: String,
    target: String,
    token: String,
    body: String,
}

impl Request {
    async fn read(stream: &mut TcpStream) -> Option<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).ok()?;
        let header = |name: &str| {
            head.lines()
                .find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()))
        };
        let length = header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        let mut first = head.lines().next()?.split(' ');
        Some(Self {
            method: first.next()?.to_owned(),
            target: first.next()?.to_owned(),
            token: header("x-vault-token").unwrap_or_default(),
            body: String::from_utf8(body).ok()?,
        })
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    fn query(&self, name: &str) -> Vec<String> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.replace("%3A", ":")).collect()
    }
}

/// Collects every log line of the process, so that a test can look for what must not be there.
pub fn logs() -> Arc<Mutex<Vec<u8>>> {
    static LOGS: std::sync::OnceLock<Arc<Mutex<Vec<u8>>>> = std::sync::OnceLock::new();
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    Arc::clone(LOGS.get_or_init(|| {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&kept);
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
        subscriber.with_writer(move || Sink(Arc::clone(&sink))).init();
        kept
    }))
}
