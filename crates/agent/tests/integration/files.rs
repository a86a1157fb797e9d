//! `keyward agent`: real files, a program that reads them, values that come over the wire.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::deliver::{Delivery, Options, deliver};
use agent::signals::Order;
use agent::{Destination, Format, Health, Reload};
use base::SecretString;
use client::{Client, WatchOptions};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::fake::{Fake, Heard, PATIENCE, ack, login, logs, offer, state};

/// A program that reads its file at each health question, as one that reloads would: healthy unless the password
/// says otherwise, in which case its answer quotes it.
async fn program(file: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    tokio::spawn(serve(listener, file));
    at
}

async fn serve(listener: TcpListener, file: PathBuf) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut head = [0; 1_024];
        let length = stream.read(&mut head).await.unwrap();
        // whoever asked may have lost patience before the question was sent
        let Some(asked) = String::from_utf8_lossy(&head[..length]).split(' ').nth(1).map(str::to_owned) else { continue };
        let password = std::fs::read_to_string(&file)
            .ok()
            .and_then(|text| serde_json::from_str::<Value>(&text).ok())
            .and_then(|value| value["password"].as_str().map(str::to_owned))
            .unwrap_or_default();
        let (status, body) = match password.split('-').next().unwrap() {
            "poison" => (503, format!("FATAL: {password} may not write")),
            "hang" => std::future::pending().await,
            "verbose" => (200, "status of a part\n".repeat(5_000)),
            _ => (200, format!("ok for {asked}")),
        };
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap_or_default();
    }
}

type NextRead = Arc<Mutex<Option<Result<Vec<Delivery>, agent::Error>>>>;

struct Rig {
    fake: Fake,
    folder: tempfile::TempDir,
    orders: mpsc::UnboundedSender<Order>,
    /// What the configuration says when it is read again.
    next: NextRead,
    done: tokio::task::JoinHandle<Result<(), agent::Error>>,
    keep: bool,
}

impl Rig {
    async fn start(folder: tempfile::TempDir, health: Option<Health>, change: impl FnOnce(&mut Delivery)) -> Self {
        logs();
        let mut fake = Fake::start().await;
        let client = Client::new(&fake.address, Some(SecretString::new("token-0".into()))).unwrap();
        let path = file(&folder);
        // every reload leaves a line behind
        let script = r#"echo "$KEYWARD_GENERATION $(cat "$KEYWARD_FILE" | tr -d '\n' | md5sum)" >> "$(dirname "$KEYWARD_FILE")/reloads""#;
        let mut delivery = Delivery {
            rotation: "p".into(),
            destination: Destination { allow_disk: true, ..Destination::new(path) },
            format: Format::Json,
            reload: Reload::Command(["/bin/sh", "-c", script].map(str::to_owned).to_vec()),
            health,
            keep: false,
        };
        change(&mut delivery);
        let keep = delivery.keep;
        let (orders, ordered) = mpsc::unbounded_channel();
        let next = NextRead::default();
        let read = Arc::clone(&next);
        let watch = WatchOptions { retry_min: Duration::from_millis(5), retry_max: Duration::from_millis(20), ..WatchOptions::default() };
        let done = tokio::spawn(async move {
            let options = Options { watch, wait: false };
            deliver(client, "agent-1", vec![delivery], options, ordered, || read.lock().unwrap().take().unwrap()).await
        });
        assert_eq!(fake.next_watch().await, ["p:0"]);
        Self { fake, folder, orders, next, done, keep }
    }

    fn wants(&self, generation: u64, password: &str) {
        self.fake.send(&state("p", offer(generation, login(password)), Value::Null));
    }

    async fn takes(&mut self, generation: u64, password: &str) {
        self.wants(generation, password);
        assert_eq!(self.fake.next().await, ack("L2", generation));
        assert_eq!(self.content(), format!("{{\"password\":\"{password}\",\"username\":\"app\"}}"));
    }

    async fn refuses(&mut self, generation: u64, password: &str) -> String {
        self.wants(generation, password);
        match self.fake.next().await {
            Heard::Ack { level, generation: told, proven: true, reason } if level == "NACK" && told == generation => reason,
            other => panic!("{other:?}"),
        }
    }

    fn content(&self) -> String {
        std::fs::read_to_string(file(&self.folder)).unwrap()
    }

    /// The generations that the program was made to reload.
    fn reloads(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(self.folder.path().join("reloads")).unwrap_or_default();
        text.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect()
    }

    /// Changes the configuration and orders the agent to take it.
    fn reload(&self, read: Result<Vec<Delivery>, agent::Error>) {
        *self.next.lock().unwrap() = Some(read);
        self.orders.send(Order::Reload).unwrap();
    }

    async fn end(mut self) -> tempfile::TempDir {
        self.orders.send(Order::End).unwrap();
        tokio::time::timeout(PATIENCE, self.done).await.unwrap().unwrap().unwrap();
        if !self.keep {
            assert_eq!(self.fake.next().await, Heard::Goodbye { instance: "agent-1".into() });
        }
        assert!(self.fake.quiet(), "who leaves a file behind is still its holder");
        self.folder
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(std::env::temp_dir().canonicalize().unwrap()).unwrap()
}

fn file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("db.json")
}

fn asks(at: &str) -> Option<Health> {
    asks_for(at, PATIENCE)
}

/// For programs that never become healthy: the deadline is waited for. It is for a program that is healthy, too.
const REFUSED_AFTER: Duration = Duration::from_secs(5);

fn asks_for(at: &str, deadline: Duration) -> Option<Health> {
    let health = Health::http(&format!("http://{at}/healthz?g={{generation}}"), Some("g={generation}".into())).unwrap();
    Some(health.times(PATIENCE, Duration::from_millis(10), deadline))
}

fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

#[tokio::test]
async fn a_file_is_written_reloaded_and_asked_about_then_acknowledged() {
    let folder = folder();
    let at = program(file(&folder)).await;
    let mut rig = Rig::start(folder, asks(&at), |_| {}).await;
    rig.takes(1, "one").await;
    assert_eq!(std::fs::metadata(file(&rig.folder)).unwrap().mode() & 0o7777, 0o400);
    rig.takes(2, "two").await;
    assert_eq!(rig.reloads(), [1, 2]);
    // the same value under a new number, a repetition, and an older number: no file operation, no reload
    let written = std::fs::metadata(file(&rig.folder)).unwrap().ino();
    rig.takes(3, "two").await;
    rig.wants(2, "older");
    rig.takes(4, "two").await;
    assert_eq!((rig.reloads(), std::fs::metadata(file(&rig.folder)).unwrap().ino()), (vec![1, 2], written));
    let folder = rig.end().await;
    assert!(!exists(&file(&folder)), "removed when the agent ends");
}

#[tokio::test]
async fn an_unhealthy_program_gets_its_last_good_file_back_and_the_value_is_refused() {
    let folder = folder();
    let at = program(file(&folder)).await;
    let mut rig = Rig::start(folder, asks_for(&at, REFUSED_AFTER), |_| {}).await;
    rig.takes(1, "good").await;
    let reason = rig.refuses(2, "poison-canary").await;
    assert_eq!(reason, "the health probe was answered with status 503: FATAL: [password] may not write");
    assert_eq!(rig.content(), r#"{"password":"good","username":"app"}"#);
    assert_eq!(rig.reloads(), [1, 2, 2], "the new file and the old one");
    // the run is rolled back: the good value under a new generation changes nothing here
    rig.takes(3, "good").await;
    assert_eq!(rig.reloads(), [1, 2, 2]);
    assert!(!String::from_utf8_lossy(&logs().lock().unwrap()).contains("poison-canary"));

    let reason = rig.refuses(4, "hang").await;
    assert_eq!(reason, "the health probe had no answer within 5s");
    assert_eq!(rig.content(), r#"{"password":"good","username":"app"}"#);
    rig.end().await;
}

#[tokio::test]
async fn a_program_that_does_not_reload_has_not_loaded() {
    let folder = folder();
    let at = program(file(&folder)).await;
    // it answers with the generation that it was asked about, not with the one that is wanted: stale for ever
    let stale = Health::http(&format!("http://{at}/healthz?g=1"), Some("g={generation}".into())).unwrap();
    let stale = stale.times(PATIENCE, Duration::from_millis(10), REFUSED_AFTER);
    let mut rig = Rig::start(folder, Some(stale), |_| {}).await;
    rig.takes(1, "one").await;
    assert_eq!(rig.refuses(2, "two").await, "the health probe was answered without the expected text");
    assert_eq!(rig.content(), r#"{"password":"one","username":"app"}"#);
    rig.end().await;
}

#[tokio::test]
async fn a_reload_command_that_fails_refuses_the_value() {
    let folder = folder();
    let at = program(file(&folder)).await;
    let mut rig = Rig::start(folder, asks(&at), |delivery| {
        let script = r#"! grep -q two "$KEYWARD_FILE""#;
        delivery.reload = Reload::Command(["/bin/sh", "-c", script].map(str::to_owned).to_vec());
    })
    .await;
    rig.takes(1, "one").await;
    assert_eq!(rig.refuses(2, "two").await, "`/bin/sh` ended with exit status: 1");
    assert_eq!(rig.content(), r#"{"password":"one","username":"app"}"#);
    rig.end().await;
}

#[tokio::test]
async fn a_program_that_starts_after_its_file_is_waited_for_without_a_refusal() {
    let folder = folder();
    // a port that refuses connections and cannot become anybody else's
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = socket.local_addr().unwrap();
    let mut rig = Rig::start(folder, asks(&at.to_string()), |_| {}).await;
    rig.wants(1, "one");
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    while !exists(&file(&rig.folder)) {
        ticks.tick().await;
    }
    tokio::spawn(serve(socket.listen(16).unwrap(), file(&rig.folder)));
    assert_eq!(rig.fake.next().await, ack("L2", 1), "not a refusal before");
    // once it was there, its absence is a failure
    rig.end().await;
}

#[tokio::test]
async fn without_a_health_probe_a_value_is_delivered_and_never_called_loaded() {
    let mut rig = Rig::start(folder(), None, |_| {}).await;
    rig.wants(1, "one");
    assert_eq!(rig.fake.next().await, ack("L1", 1));
    rig.end().await;
}

#[tokio::test]
async fn a_long_health_answer_is_an_answer() {
    let folder = folder();
    let at = program(file(&folder)).await;
    let health = Health::http(&format!("http://{at}/healthz"), None).unwrap();
    let mut rig = Rig::start(folder, Some(health), |_| {}).await;
    rig.takes(1, "verbose").await;
    rig.end().await;
}

/// It is there and does not answer: that is no program that has yet to start, however early the deadline ends the question.
#[tokio::test]
async fn a_program_that_hangs_is_refused_also_before_the_first_question_ends() {
    let folder = folder();
    let at = program(file(&folder)).await;
    let health = Health::http(&format!("http://{at}/healthz"), None).unwrap();
    let health = health.times(PATIENCE, Duration::from_millis(10), Duration::from_millis(200));
    let mut rig = Rig::start(folder, Some(health), |_| {}).await;
    assert_eq!(rig.refuses(1, "hang").await, "the health probe had no answer within 200ms");
}

/// Appends to `reloads`, once the file `gate` is there; before it fails, or hangs.
fn gated(otherwise: &str) -> Reload {
    let script = format!(r#"cd "$(dirname "$KEYWARD_FILE")"; [ -e gate ] || {{ {otherwise}; }}; echo "$KEYWARD_GENERATION" >> reloads"#);
    Reload::Command(["/bin/sh", "-c", &script].map(str::to_owned).to_vec())
}

#[tokio::test]
async fn a_reload_that_failed_is_tried_again_before_its_value_counts_as_delivered() {
    let mut rig = Rig::start(folder(), None, |delivery| delivery.reload = gated("exit 3")).await;
    assert_eq!(rig.refuses(1, "one").await, "`/bin/sh` ended with exit status: 3");
    std::fs::write(rig.folder.path().join("gate"), "").unwrap();
    while rig.fake.next().await != ack("L1", 1) {}
    assert_eq!(rig.reloads(), [1]);
    rig.end().await;
}

#[tokio::test]
async fn an_agent_that_ended_between_writing_and_reloading_leaves_the_reload_to_the_next() {
    let rig = Rig::start(folder(), None, |delivery| (delivery.reload, delivery.keep) = (gated("exec sleep 60"), true)).await;
    rig.wants(1, "one");
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    while !exists(&file(&rig.folder)) {
        ticks.tick().await;
    }
    let folder = rig.end().await;
    std::fs::write(folder.path().join("gate"), "").unwrap();
    let mut rig = Rig::start(folder, None, |delivery| (delivery.reload, delivery.keep) = (gated(":"), true)).await;
    rig.wants(1, "one");
    assert_eq!((rig.fake.next().await, rig.reloads()), (ack("L1", 1), vec![1]));
    let folder = rig.end().await;
    assert!(!exists(&folder.path().join(".db.json.unloaded")));
}

/// A service manager removes the folder of a program that stops, with everything in it, and makes it anew.
#[tokio::test]
async fn a_folder_that_was_made_anew_gets_its_file_again() {
    let folder = folder();
    let inside = folder.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    let path = inside.join("db.json");
    let at = program(path.clone()).await;
    let mut rig = Rig::start(folder, asks(&at), |delivery| {
        (delivery.reload, delivery.destination.path) = (Reload::None, path.clone());
    })
    .await;
    rig.wants(1, "one");
    assert_eq!(rig.fake.next().await, ack("L2", 1));
    std::fs::remove_dir_all(&inside).unwrap();
    std::fs::create_dir(&inside).unwrap();
    rig.wants(2, "two");
    assert_eq!(rig.fake.next().await, ack("L2", 2));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), r#"{"password":"two","username":"app"}"#);
    rig.end().await;
    assert!(!exists(&path));
}

#[tokio::test]
async fn a_new_agent_over_a_kept_file_writes_nothing_and_reloads_nothing() {
    let folder = folder();
    let at = program(file(&folder)).await;
    let mut rig = Rig::start(folder, asks(&at), |delivery| delivery.keep = true).await;
    rig.takes(1, "one").await;
    let folder = rig.end().await;
    assert!(exists(&file(&folder)));
    let mut rig = Rig::start(folder, asks_for(&at, REFUSED_AFTER), |delivery| delivery.keep = true).await;
    rig.takes(2, "one").await;
    assert_eq!(rig.reloads(), [1]);
    // what was found is what a refused value is rolled back to
    rig.refuses(3, "poison").await;
    assert_eq!(rig.content(), r#"{"password":"one","username":"app"}"#);
    rig.end().await;
}

#[tokio::test]
async fn at_the_end_every_file_goes_that_can() {
    let (folder, fake) = (folder(), Fake::start().await);
    let deliveries = ["p", "q", "r"].map(|rotation| Delivery {
        rotation: rotation.into(),
        destination: Destination { allow_disk: true, ..Destination::new(folder.path().join(rotation)) },
        format: Format::Json,
        reload: Reload::None,
        health: None,
        keep: false,
    });
    std::fs::create_dir(folder.path().join("q")).unwrap();
    std::fs::write(folder.path().join("r"), "secret").unwrap();
    let client = Client::new(&fake.address, None).unwrap();
    let (orders, ordered) = mpsc::unbounded_channel();
    orders.send(Order::End).unwrap();
    let done = deliver(client, "i", deliveries.to_vec(), Options::default(), ordered, || Ok(Vec::new())).await;
    assert!(matches!(done, Err(agent::Error::File { doing: "remove", .. })), "{done:?}");
    assert!(!exists(&folder.path().join("r")));
}

#[tokio::test]
async fn an_unsafe_destination_stops_the_agent_before_it_starts() {
    let client = Client::new("http://127.0.0.1:1", None).unwrap();
    let delivery = Delivery {
        rotation: "p".into(),
        destination: Destination { mode: 0o644, allow_disk: true, ..Destination::new(folder().path().join("x")) },
        format: Format::Json,
        reload: Reload::None,
        health: None,
        keep: false,
    };
    let (_orders, ordered) = mpsc::unbounded_channel();
    let done = deliver(client, "i", vec![delivery], Options::default(), ordered, || Ok(Vec::new())).await;
    assert!(matches!(done, Err(agent::Error::Unsafe { .. })));
}

/// Deliveries as a configuration gives them.
fn plain(folder: &tempfile::TempDir, rotation: &str, name: &str) -> Delivery {
    Delivery {
        rotation: rotation.into(),
        destination: Destination { allow_disk: true, ..Destination::new(folder.path().join(name)) },
        format: Format::Json,
        reload: Reload::None,
        health: None,
        keep: false,
    }
}

fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}

async fn until(otherwise: &str, mut done: impl FnMut() -> bool) {
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let waiting = async {
        while !done() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect(otherwise);
}

#[tokio::test]
async fn a_configuration_that_is_read_again_disturbs_no_file_that_is_as_it_was() {
    let folder = folder();
    let same = plain(&folder, "p", "db.json");
    let mut rig = Rig::start(folder, None, |delivery| *delivery = same.clone()).await;
    let at = |rig: &Rig, name: &str| rig.folder.path().join(name);
    rig.wants(1, "one");
    assert_eq!(rig.fake.next().await, ack("L1", 1));
    let before = inode(&at(&rig, "db.json"));

    // one more
    let added = plain(&rig.folder, "q", "q.json");
    rig.reload(Ok(vec![same.clone(), added.clone()]));
    assert_eq!(rig.fake.next_watch().await, ["p:1", "q:0"]);
    rig.fake.send(&state("q", offer(7, login("seven")), Value::Null));
    assert_eq!(rig.fake.next().await, ack("L1", 7));

    // one in another way, at another place
    let moved = Delivery { format: Format::Env, ..plain(&rig.folder, "q", "q.env") };
    rig.reload(Ok(vec![same.clone(), moved.clone()]));
    assert_eq!(rig.fake.next_watch().await, ["p:1", "q:0"], "what is not known to be held in the new way is asked for anew");
    rig.fake.send(&state("q", offer(7, login("seven")), Value::Null));
    assert_eq!(rig.fake.next().await, ack("L1", 7));
    assert!(std::fs::read_to_string(at(&rig, "q.env")).unwrap().contains("PASSWORD='seven'"));
    assert!(!exists(&at(&rig, "q.json")));

    // what cannot be taken changes nothing
    let unsafe_one = Delivery { destination: Destination { mode: 0o777, ..moved.destination.clone() }, ..moved.clone() };
    for bad in [Err(agent::Error::Config("`adress` is not a setting".into())), Ok(vec![unsafe_one])] {
        rig.reload(bad);
        until("it was not read", || rig.next.lock().unwrap().is_none()).await;
    }
    rig.wants(2, "two");
    assert_eq!(rig.fake.next().await, ack("L1", 2));
    assert!(exists(&at(&rig, "q.env")));
    assert_ne!(inode(&at(&rig, "db.json")), before, "a new value is a new file");
    let now = inode(&at(&rig, "db.json"));

    // one less
    rig.reload(Ok(vec![same]));
    assert_eq!(rig.fake.next().await, Heard::GoodbyeTo { instance: "agent-1".into(), rotation: "q".into() });
    until("it stays", || !exists(&at(&rig, "q.env"))).await;
    rig.fake.cut();
    assert_eq!(rig.fake.next_watch().await, ["p:2"]);
    assert_eq!(inode(&at(&rig, "db.json")), now, "nobody touched it");
    let said = String::from_utf8_lossy(&logs().lock().unwrap()).into_owned();
    for part in ["took the configuration anew added=[\"q\"]", "changed=[\"q\"]", "removed=[\"q\"]", "`adress` is not a setting"] {
        assert!(said.contains(part), "{part}");
    }
    rig.end().await;
}

#[tokio::test]
async fn an_agent_that_is_refused_at_the_start_says_what_it_asked_for_and_ends() {
    let (folder, fake) = (folder(), Fake::start().await);
    fake.knobs().refuse_streams = Some((403, "permission denied".into()));
    let client = Client::new(&fake.address, Some(SecretString::new("token-0".into()))).unwrap();
    let (_orders, ordered) = mpsc::unbounded_channel();
    let deliveries = vec![plain(&folder, "p", "p.json"), plain(&folder, "q", "q.json")];
    let done = tokio::time::timeout(PATIENCE, deliver(client, "i", deliveries, Options::default(), ordered, || Ok(Vec::new()))).await;
    let error = done.unwrap().unwrap_err().to_string();
    assert!(error.starts_with("one of `p`, `q` is no rotation or this identity may not read its secret"), "{error}");
}
