//! A kernel in memory or in a directory, a clock to move, and an engine that does what a test wants.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base::time::ManualClock;
use base::{Limits, Refusal, SecretBytes, SecretString, Timestamp};
use bytes::Bytes;
use engine::{
    Access, Answer, Batch, Cx, Duty, DutyKey, Engine, Feed, Field, FieldKind, Frame, Host, Identities, Key, Mount, NewDuty, Op, Outcome,
    Owner, Permit, Removed, Route, Tx, Work,
};
use journal::{Disk, File, MemoryDisk};
use kernel::{Config, Head, Kernel, Lifetimes, Place};
use serde_json::{Value, json};
use tokio::sync::Notify;

pub const ROOT: &str = "root-token";

/// What acts at the pretended outside system do, set by the test.
#[derive(Default)]
pub struct World {
    /// How often a feed was asked.
    pub looks: AtomicU64,
    pub acts: AtomicU64,
    /// Settlements that fail from now on.
    pub failures: AtomicU64,
    pub held: Mutex<Option<Arc<Notify>>>,
    pub outcomes: Mutex<Vec<String>>,
}

pub struct Probe(pub Arc<World>);

const ANY: &[Field] = &[Field::public("n", FieldKind::Int, "a number"), Field::new("secret", FieldKind::Text, "a secret")];

static ROUTES: &[Route<Probe>] = &[
    Route::new(Op::Read, "count", &[], "read the counter", |_, cx, _| {
        let n: u64 = cx.tx.read(&counter(cx))?.unwrap_or(0);
        cx.note("count", n);
        Answer::data(&json!({ "count": n }))
    }),
    Route::new(Op::Write, "count", ANY, "add one", |_, cx, _| {
        let key = counter(cx);
        let n: u64 = cx.tx.read(&key)?.unwrap_or(0);
        cx.tx.write(&key, &(n + 1))?;
        Answer::data(&json!({ "count": n + 1 }))
    })
    .exists(|_, cx| {
        let key = counter(cx);
        Ok(cx.tx.exists(&key)?)
    }),
    Route::new(Op::Write, "refuse", ANY, "write, then refuse", refuse),
    Route::new(Op::Write, "act/:name", ANY, "owe an act and wait for it", act),
    Route::new(Op::Delete, "act/:name", &[], "withdraw it", |_, cx, _| {
        let id = DutyKey { owner: cx.call.mount.id, key: cx.call.capture("name").to_owned() };
        engine::duty::remove(cx.tx, &id)?;
        Ok(Answer::Nothing)
    }),
    Route::new(Op::Write, "spoil/:name", &[], "write what is no duty among the duties", |_, cx, _| {
        let key = Key::new(engine::Scope::KERNEL, "due", &["0", "0", cx.call.capture("name")]);
        cx.tx.put(&key, b"no duty")?;
        Ok(Answer::Nothing)
    }),
    Route::new(Op::Write, "later/:name", ANY, "owe an act of an hour from now", |_, cx, _| {
        let due = cx.now().after(Duration::from_secs(3_600));
        owe_act(cx, due)?;
        Ok(Answer::Nothing)
    }),
    Route::new(Op::Read, "watch", &[], "follow the counter", |probe, cx, _| Ok(follow(probe, cx, Duration::from_secs(3_600)))),
    Route::new(Op::Read, "quiet", &[], "follow the counter, with a quick heartbeat", |probe, cx, _| {
        Ok(follow(probe, cx, Duration::from_millis(100)))
    }),
    Route::new(Op::Read, "beside", &[], "follow the counter, if `probe/also` may be read", |probe, cx, _| {
        Ok(follow(probe, cx, Duration::from_secs(3_600)))
    })
    .also(|_, _| Ok(vec![(engine::Need::Read, base::CanonPath::from_plain("probe/also").unwrap())])),
    Route::new(Op::Read, "broken", &[], "a stream that fails", |_, _, _| Ok(Answer::Stream(Box::new(Broken)))),
    Route::new(Op::Read, "pair", &[], "tells of two things at once", |_, _, _| Ok(Answer::Stream(Box::new(Pair(false))))),
    Route::new(Op::Read, "choosy", &[], "refuses every input", |_, _, _| Ok(Answer::Nothing)).also(|_, _| Err(Refusal::invalid("wrong"))),
    Route::new(Op::Write, "noise", &[], "write what is followed, as it is", |_, cx, _| {
        let key = counter(cx);
        let n: u64 = cx.tx.read(&key)?.unwrap_or(0);
        cx.tx.write(&key, &n)?;
        Ok(Answer::Nothing)
    }),
    Route::new(Op::Write, "elsewhere", &[], "touch the mount and nothing that is followed", |_, cx, _| {
        let key = Key::new(cx.call.mount.scope(), "elsewhere", &["n"]);
        cx.tx.write(&key, &true)?;
        Ok(Answer::Nothing)
    }),
    Route::new(Op::Write, "owe/:name", ANY, "owe an act of a lane of its own, and do not wait", owe),
    Route::new(Op::Read, "open", &[], "for anybody", |_, _, _| Ok(Answer::Nothing)).access(Access::Anonymous),
    Route::new(Op::Write, "guarded", ANY, "needs sudo", |_, _, _| Ok(Answer::Nothing)).access(Access::Sudo),
    Route::new(Op::Write, "strict", ANY, "refuses unknown fields", |_, _, _| Ok(Answer::Nothing)).strict(),
];

fn follow(probe: &Probe, cx: &Cx<'_>, heartbeat: Duration) -> Answer {
    Answer::Stream(Box::new(Follow { key: counter(cx), found: u64::MAX, seen: u64::MAX, heartbeat, world: Arc::clone(&probe.0) }))
}

fn counter(cx: &Cx<'_>) -> Key {
    Key::new(cx.call.mount.scope(), "count", &["n"])
}

fn refuse(_: &Probe, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let kept = Key::new(cx.call.mount.scope(), "kept", &["n"]);
    let n: u64 = cx.tx.read(&kept)?.unwrap_or(0);
    cx.tx.write(&kept, &(n + 1))?;
    cx.tx.keep();
    let key = counter(cx);
    cx.tx.write(&key, &999_u64)?;
    Err(Refusal::invalid(format!("refused {} times", n + 1)))
}

fn act(_: &Probe, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let due = cx.now();
    owe_act(cx, due).map(Answer::After)
}

fn owe_act(cx: &mut Cx<'_>, due: Timestamp) -> Result<DutyKey, Refusal> {
    let duty = NewDuty {
        key: cx.call.capture("name").to_owned(),
        kind: "act",
        due,
        act: true,
        lane: "world".into(),
        payload: engine::answer::raw(&cx.call.capture("name"))?,
    };
    let mount = cx.call.mount.clone();
    cx.host.owe(cx.tx, &mount, duty)
}

fn owe(_: &Probe, cx: &mut Cx<'_>, _: Permit) -> Result<Answer, Refusal> {
    let (name, n) = (cx.call.capture("name").to_owned(), cx.call.body.int("n")?.unwrap_or(1));
    let mount = cx.call.mount.clone();
    for n in 0..n {
        let (key, lane) = (format!("{name}-{n}"), format!("lane-{name}"));
        let duty = NewDuty { payload: engine::answer::raw(&key)?, key, kind: "act", due: cx.now(), act: true, lane };
        cx.host.owe(cx.tx, &mount, duty)?;
    }
    Ok(Answer::Nothing)
}

impl Engine for Probe {
    const KIND: &'static str = "probe";

    fn routes() -> &'static [Route<Self>] {
        ROUTES
    }
}

impl Owner for Probe {
    fn perform(&self, _: &mut Cx<'_>, duty: &Duty) -> Result<Work, Refusal> {
        let (world, name) = (Arc::clone(&self.0), duty.id.key.clone());
        if name.starts_with("odd") {
            return Err(Refusal::internal("nobody understands this"));
        }
        let held = world.held.lock().unwrap().clone();
        Ok(Box::pin(async move {
            world.acts.fetch_add(1, Ordering::SeqCst);
            if let Some(held) = held {
                held.notified().await;
            }
            match name.as_str() {
                "panic" => panic!("an act that panics"),
                "no" => Outcome::Refused { code: "42501".into(), text: "must not".into() },
                _ => Outcome::done(&name),
            }
        }))
    }

    fn settle(&self, cx: &mut Cx<'_>, duty: &Duty, outcome: &Outcome) -> Result<Answer, Refusal> {
        let word = match outcome {
            Outcome::Done(_) => "done",
            Outcome::Refused { .. } => "refused",
            Outcome::Unknown { .. } => "unknown",
        };
        if self.0.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(Refusal::internal("a record could not be read"));
        }
        self.0.outcomes.lock().unwrap().push(format!("{} {word}", duty.id.key));
        let key = Key::new(cx.call.mount.scope(), "acted", &[&duty.id.key]);
        cx.tx.write(&key, &word)?;
        match outcome {
            Outcome::Refused { code, text } => Err(Refusal::invalid(format!("{code}: {text}"))),
            _ => Answer::data(&json!({ "outcome": word })),
        }
    }
}

/// An auth method whose login asks for whatever token the caller names. Its type has the name of one that may be enabled.
pub struct Door;

const WISHES: &[Field] = &[
    Field::public("ttl", FieldKind::Duration, "time to live"),
    Field::public("ttl_max", FieldKind::Duration, "the longest life by renewal"),
    Field::public("explicit_ttl_max", FieldKind::Duration, "the longest life"),
    Field::public("period", FieldKind::Duration, "the life after each renewal"),
    Field::public("policies", FieldKind::List, "policies"),
];

static DOOR: &[Route<Door>] = &[Route::new(Op::Write, "login", WISHES, "log in", |_, cx, _| {
    let body = &cx.call.body;
    let span = |name: &str| Ok::<_, Refusal>(body.duration(name)?.unwrap_or_default());
    Ok(Answer::Login(engine::Grant {
        principal: "door/somebody".into(),
        policies: body.list("policies")?.unwrap_or_default(),
        ttl: span("ttl")?,
        ttl_max: span("ttl_max")?,
        explicit_ttl_max: span("explicit_ttl_max")?,
        period: span("period")?,
        path: "auth/door/login".into(),
        ..engine::Grant::default()
    }))
})
.access(Access::Anonymous)];

impl Engine for Door {
    const KIND: &'static str = "approle";

    fn routes() -> &'static [Route<Self>] {
        DOOR
    }

    fn identities(&self) -> Option<&dyn Identities> {
        Some(self)
    }
}

impl Identities for Door {
    fn principal(&self, _: &Mount, name: &str) -> Result<String, Refusal> {
        Ok(format!("door/{name}"))
    }

    fn policies(&self, _: &mut Tx, _: &Mount, name: &str) -> Result<Option<Vec<String>>, Refusal> {
        Ok((name == "somebody").then(|| vec!["door".to_owned()]))
    }

    fn disarm(&self, _: &mut Tx, _: &dyn Host, _: &Mount, _: &str) -> Result<Removed, Refusal> {
        Ok(Removed { count: 7, more: false })
    }
}

impl Owner for Door {
    fn perform(&self, _: &mut Cx<'_>, _: &Duty) -> Result<Work, Refusal> {
        Ok(Box::pin(std::future::ready(Outcome::done(&()))))
    }

    fn settle(&self, _: &mut Cx<'_>, _: &Duty, _: &Outcome) -> Result<Answer, Refusal> {
        Ok(Answer::Nothing)
    }
}

struct Follow {
    key: Key,
    found: u64,
    seen: u64,
    heartbeat: Duration,
    world: Arc<World>,
}

impl Feed for Follow {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Result<Option<Batch>, Refusal> {
        self.world.looks.fetch_add(1, Ordering::SeqCst);
        let n: u64 = cx.tx.read(&self.key)?.unwrap_or(0);
        self.found = n;
        if n == self.seen {
            return Ok(None);
        }
        let line = SecretBytes::new(format!("{{\"count\":{n}}}").into_bytes());
        Ok(Some(Batch { frames: vec![Frame { line, facts: [("count", n.to_string())].into() }], last: n >= 3 }))
    }

    fn sent(&mut self) {
        self.seen = self.found;
    }

    fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    fn closed(&self, cx: &mut Cx<'_>) -> Result<(), Refusal> {
        let key = Key::new(cx.call.mount.scope(), "closed", &["n"]);
        Ok(cx.tx.write(&key, &true)?)
    }
}

/// Whether it has told of both.
struct Pair(bool);

impl Feed for Pair {
    fn poll(&mut self, cx: &mut Cx<'_>) -> Result<Option<Batch>, Refusal> {
        if self.0 {
            return Ok(None);
        }
        let key = Key::new(cx.call.mount.scope(), "pair", &["n"]);
        cx.tx.write(&key, &true)?;
        let frame =
            |name: &str| Frame { line: SecretBytes::new(format!("\"{name}\"").into_bytes()), facts: [("policy", name.to_owned())].into() };
        let greeting = Frame { facts: [].into(), ..frame("hello") };
        Ok(Some(Batch { frames: vec![greeting, frame("one"), frame("two")], last: false }))
    }

    fn sent(&mut self) {
        self.0 = true;
    }

    fn heartbeat(&self) -> Duration {
        Duration::from_secs(3_600)
    }

    fn closed(&self, _: &mut Cx<'_>) -> Result<(), Refusal> {
        Ok(())
    }
}

struct Broken;

impl Feed for Broken {
    fn poll(&mut self, _: &mut Cx<'_>) -> Result<Option<Batch>, Refusal> {
        Err(Refusal::internal("a record could not be read"))
    }

    fn sent(&mut self) {}

    fn heartbeat(&self) -> Duration {
        Duration::from_secs(3_600)
    }

    fn closed(&self, _: &mut Cx<'_>) -> Result<(), Refusal> {
        Ok(())
    }
}

/// A disk whose commit log can be broken: every write to it fails from then on. The access journal stays whole.
#[derive(Default)]
pub struct BrokenDisk {
    inner: MemoryDisk,
    pub broken: Arc<AtomicBool>,
}

struct BrokenFile {
    inner: Arc<dyn File>,
    broken: Arc<AtomicBool>,
}

impl BrokenDisk {
    fn wrap(&self, name: &str, inner: Arc<dyn File>) -> Arc<dyn File> {
        if name.starts_with("changes") { Arc::new(BrokenFile { inner, broken: Arc::clone(&self.broken) }) } else { inner }
    }
}

impl Disk for BrokenDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(name, self.inner.create(name)?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(name, self.inner.open(name)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.inner.sync_dir()
    }
}

impl File for BrokenFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { self.inner.write_at(offset, bytes) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
}

pub struct Rig {
    pub kernel: Arc<Kernel>,
    pub clock: Arc<ManualClock>,
    pub world: Arc<World>,
    pub key: SecretBytes,
}

pub fn open(place: Place, clock: &Arc<ManualClock>, world: &Arc<World>) -> Arc<Kernel> {
    open_with(place, Limits::default(), clock, world)
}

fn open_with(place: Place, limits: Limits, clock: &Arc<ManualClock>, world: &Arc<World>) -> Arc<Kernel> {
    Kernel::open(Config {
        place,
        limits,
        lifetimes: Lifetimes { default: Duration::from_secs(3_600), max: Duration::from_secs(7_200) },
        version: "1.21.4".into(),
        cluster_name: "test".into(),
        heartbeat: Duration::from_secs(3_600),
        grace: Duration::from_secs(8),
        clock: clock.clone(),
        rng: Arc::new(crypto::rng::SystemRng::new()),
        engines: vec![Arc::new(Probe(Arc::clone(world))), Arc::new(Door)],
    })
    .unwrap()
}

impl Rig {
    /// A kernel in memory with the engine mounted at `probe/`.
    pub async fn new() -> Self {
        Self::at(Place::Memory).await
    }

    pub async fn at(place: Place) -> Self {
        Self::with(place, Limits::default()).await
    }

    pub async fn with(place: Place, limits: Limits) -> Self {
        let (clock, world) = (Arc::new(ManualClock::new()), Arc::new(World::default()));
        let kernel = open_with(place, limits, &clock, &world);
        let made = kernel.initialise(Some(SecretString::new(ROOT.into()))).await.unwrap();
        let rig = Self { kernel, clock, world, key: made.root_key };
        assert_eq!(rig.call("POST", "sys/mounts/probe", ROOT, json!({"type": "probe"})).await.0, 204);
        rig
    }

    /// The same directory opened by another process.
    pub async fn again(dir: &Path, old: Self) -> Self {
        let Self { kernel, clock, world, key } = old;
        kernel.shutdown().await;
        drop(kernel);
        let kernel = open(Place::Directory(dir.to_owned()), &clock, &world);
        kernel.unseal(&key).await.unwrap();
        Self { kernel, clock, world, key }
    }

    pub async fn call(&self, method: &str, path: &str, token: &str, body: Value) -> (u16, Value) {
        let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(&body).unwrap() };
        let (status, _, body) = self.raw(method, &format!("/v1/{path}"), token, bytes).await;
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub async fn raw(&self, method: &str, target: &str, token: &str, body: Vec<u8>) -> (u16, Vec<(&'static str, String)>, Bytes) {
        let released = self.kernel.serve(head(method, target, token), Box::new(Bytes::from(body))).await;
        let (status, headers, body) = released.into_parts();
        match body {
            audit::Body::Bytes(bytes) => (status, headers, bytes),
            audit::Body::Frames(_) => panic!("a stream"),
        }
    }

    /// A token with a policy of this text.
    pub async fn token(&self, name: &str, policy: &str) -> String {
        let (status, body) = self.call("PUT", &format!("sys/policies/acl/{name}"), ROOT, json!({"policy": policy})).await;
        assert_eq!(status, 204, "{body}");
        let (status, body) = self.call("POST", "auth/token/create", ROOT, json!({"policies": [name]})).await;
        assert_eq!(status, 200, "{body}");
        body["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    /// The token of a login at the auth method `door`, which is enabled with this configuration if it is not there.
    pub async fn login(&self, config: Value, wishes: Value) -> Value {
        if self.call("GET", "sys/auth/door", ROOT, Value::Null).await.0 != 200 {
            let (status, body) = self.call("POST", "sys/auth/door", ROOT, json!({"type": "approle", "config": config})).await;
            assert_eq!(status, 204, "{body}");
        }
        let (status, body) = self.call("POST", "auth/door/login", "", wishes).await;
        assert_eq!(status, 200, "{body}");
        body["auth"].clone()
    }

    /// All leaves of a tree, as text.
    pub async fn leaves(&self, tree: &str) -> Vec<String> {
        let (status, _, note) = self.raw("GET", &format!("/v1/sys/audit-log/{tree}/checkpoint"), ROOT, Vec::new()).await;
        assert_eq!(status, 200);
        let size: u64 = String::from_utf8(note.to_vec()).unwrap().lines().nth(1).unwrap().parse().unwrap();
        let mut leaves = Vec::new();
        for (bundle, start) in (0..size).step_by(256).enumerate() {
            let width = (size - start).min(256);
            let partial = if width == 256 { String::new() } else { format!(".p/{width}") };
            let target = format!("/v1/sys/audit-log/{tree}/tile/entries/{bundle:03}{partial}");
            let (status, _, bytes) = self.raw("GET", &target, ROOT, Vec::new()).await;
            assert_eq!(status, 200, "{target}");
            let mut rest = &bytes[..];
            while let Some((length, tail)) = rest.split_first_chunk::<2>() {
                let (leaf, tail) = tail.split_at(usize::from(u16::from_be_bytes(*length)));
                leaves.push(String::from_utf8(leaf.to_vec()).unwrap());
                rest = tail;
            }
        }
        leaves
    }
}

pub fn head(method: &str, target: &str, token: &str) -> Head {
    let headers = if token.is_empty() { Vec::new() } else { vec![("x-vault-token".to_owned(), token.to_owned())] };
    Head { method: method.into(), target: target.into(), headers, remote: ([127, 0, 0, 1], 4_000).into() }
}
