//! `keyward run`: real processes, a real socket, values that come over the wire.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use agent::run::{Ask, Listen, Options, open, supervise_opened};
use base::SecretString;
use client::{Client, WatchOptions};
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::fake::{Fake, Heard, PATIENCE, ack, login, logs, offer, state};
use crate::program::{service, shim};

struct Rig {
    fake: Fake,
    at: SocketAddr,
    asks: mpsc::UnboundedSender<Ask>,
    done: tokio::task::JoinHandle<Result<u8, agent::Error>>,
}

fn options() -> Options {
    Options {
        listen: vec![Listen::Tcp("127.0.0.1:0".parse().unwrap())],
        socket_as_stdin: true,
        variables: vec!["USERNAME_FROM_KEYWARD=username".parse().unwrap(), "PASSWORD=password".parse().unwrap()],
        ready_deadline: Duration::from_secs(20),
        watch: WatchOptions { retry_min: Duration::from_millis(5), retry_max: Duration::from_millis(20), ..WatchOptions::default() },
        ..Options::new("p", "web-1", service(), shim())
    }
}

async fn rig_with(options: Options) -> Rig {
    logs();
    let mut fake = Fake::start().await;
    let client = Client::new(&fake.address, Some(SecretString::new("token-0".into()))).unwrap();
    let opened = open(&options).unwrap();
    let at = opened.addresses.first().copied().unwrap_or_else(|| "127.0.0.1:1".parse().unwrap());
    let (asks, asked) = mpsc::unbounded_channel();
    let done = tokio::spawn(supervise_opened(client, options, opened, asked));
    assert_eq!(fake.next_watch().await, ["p:0"]);
    Rig { fake, at, asks, done }
}

async fn rig() -> Rig {
    rig_with(options()).await
}

impl Rig {
    fn wants(&self, generation: u64, password: &str) {
        self.fake.send(&state("p", offer(generation, login(password)), Value::Null));
    }

    async fn takes(&mut self, generation: u64, password: &str) {
        self.wants(generation, password);
        assert_eq!(self.fake.next().await, ack("L2", generation));
    }

    async fn refuses(&mut self, generation: u64, password: &str) -> String {
        self.wants(generation, password);
        match self.fake.next().await {
            Heard::Ack { level, generation: told, proven: true, reason } if level == "NACK" && told == generation => reason,
            other => panic!("{other:?}"),
        }
    }

    async fn ask(&self, question: &'static str) -> String {
        let at = self.at;
        tokio::task::spawn_blocking(move || ask(at, question).unwrap()).await.unwrap()
    }

    async fn end(mut self) -> u8 {
        self.asks.send(Ask::End(Signal::TERM)).unwrap_or_default();
        let code = tokio::time::timeout(PATIENCE, &mut self.done).await.unwrap().unwrap().unwrap();
        assert_eq!(self.fake.next().await, Heard::Goodbye { instance: "web-1".into() });
        assert!(self.fake.quiet());
        code
    }
}

fn ask(at: SocketAddr, question: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{question}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Asks without pause from several threads until told to stop. Each connection counts.
struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<[AtomicUsize; 3]>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Counts {
    answered: usize,
    refused: usize,
    broken: usize,
}

impl Load {
    fn on(at: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new([const { AtomicUsize::new(0) }; 3]);
        let threads = (0..3)
            .map(|_| {
                let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
                std::thread::spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        let at = match ask(at, "who") {
                            Ok(answer) if !answer.is_empty() => 0,
                            Err(error) if error.kind() == ErrorKind::ConnectionRefused => 1,
                            Ok(_) | Err(_) => 2,
                        };
                        counts[at].fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        Self { stop, counts, threads }
    }

    fn answered(&self) -> usize {
        self.counts[0].load(Ordering::SeqCst)
    }

    /// Waits until that many more were answered.
    async fn proceeds(&self, more: usize) {
        let goal = self.answered() + more;
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        tokio::time::timeout(PATIENCE, async {
            while self.answered() < goal {
                ticks.tick().await;
            }
        })
        .await
        .expect("nobody answers");
    }

    fn end(self) -> Counts {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        let [answered, refused, broken] = [0, 1, 2].map(|at: usize| self.counts[at].load(Ordering::SeqCst));
        Counts { answered, refused, broken }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_gets_its_secret_and_its_socket_and_nothing_else() {
    let mut rig = rig().await;
    rig.takes(5, "good-canary").await;
    assert_eq!(rig.ask("about").await, "user=app pid-is-own=true fds=1 fd3-is-stdin=true withheld=true argv-clean=true");
    assert!(rig.ask("who").await.starts_with("good-canary "));
    assert!(!std::fs::read_to_string("/proc/self/environ").unwrap().contains("good-canary"), "the supervisor's own environment");
    assert_eq!(rig.end().await, 0);
    assert!(!String::from_utf8_lossy(&logs().lock().unwrap()).contains("good-canary"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_is_refused_while_the_program_changes() {
    let mut rig = rig().await;
    rig.takes(1, "v1").await;
    let load = Load::on(rig.at);
    for generation in 2..=6 {
        load.proceeds(20).await;
        rig.takes(generation, &format!("v{generation}")).await;
    }
    load.proceeds(20).await;
    let counts = load.end();
    assert!(counts.answered >= 100 && counts.refused == 0 && counts.broken == 0, "{counts:?}");
    // what drains may take a question too
    while !rig.ask("who").await.starts_with("v6 ") {}
    assert_eq!(rig.end().await, 0);
}

/// The control of the test above: the same program and load, but each process opens the socket itself and the old one ends
/// before the new one starts, as without a supervisor. If this shows no refusal, the other test is blind.
#[tokio::test(flavor = "multi_thread")]
async fn control_a_restart_that_closes_the_socket_refuses_connections() {
    // held, so that it becomes nobody else's, and not listening, so that it keeps nobody from listening there
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.set_reuseaddr(true).unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = held.local_addr().unwrap();
    let start = |generation: u64| {
        let command = service();
        let mut child = std::process::Command::new(&command[0]);
        child.args(&command[1..]).env("KEYWARD_TEST_BIND", at.to_string()).env("PASSWORD", format!("v{generation}"));
        child.stdin(std::process::Stdio::null()).spawn().unwrap()
    };
    let mut child = start(1);
    let load = Load::on(at);
    for generation in 2..=6 {
        load.proceeds(20).await;
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap();
        child = start(generation);
    }
    load.proceeds(20).await;
    let counts = load.end();
    child.kill().unwrap();
    child.wait().unwrap();
    drop(held);
    assert!(counts.refused > 0, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_with_the_old_value_is_finished_with_it() {
    let mut rig = rig().await;
    rig.takes(1, "old").await;
    let at = rig.at;
    let mut held = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(b"hold\n").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert_eq!(line, "holding\n");
        stream
    })
    .await
    .unwrap();
    rig.takes(2, "new").await;
    // the old one was asked to drain: sooner or later every new connection goes to the new one
    while !rig.ask("who").await.starts_with("new ") {}
    held.write_all(b"go\n").unwrap();
    let mut answer = String::new();
    held.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "old held");
    assert_eq!(rig.end().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_ends_refuses_the_value_and_the_old_one_goes_on() {
    let mut rig = rig().await;
    rig.takes(1, "good").await;
    let before = rig.ask("who").await;
    let load = Load::on(rig.at);
    assert_eq!(rig.refuses(2, "broken-canary").await, "the new process ended with exit status: 3 before it was ready");
    rig.fake.send(&state("p", offer(4, serde_json::json!({"username": "only"})), Value::Null));
    let missing = "`-env PASSWORD=password`: the secret has no field `password`; its fields are `username`";
    assert!(matches!(rig.fake.next().await, Heard::Ack { level, reason, .. } if level == "NACK" && reason == missing));
    assert_eq!(rig.ask("who").await, before, "the same process");
    load.proceeds(5).await;
    let counts = load.end();
    assert!(counts.refused == 0 && counts.broken == 0, "{counts:?}");
    rig.takes(5, "better").await;
    assert_eq!(rig.end().await, 0);
    assert!(!String::from_utf8_lossy(&logs().lock().unwrap()).contains("-canary"));
}

/// The deadline is waited for, and it is for the good start too.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_stays_silent_refuses_the_value_and_the_old_one_goes_on() {
    let mut rig = rig_with(Options { ready_deadline: Duration::from_secs(10), ..options() }).await;
    rig.takes(1, "good").await;
    let before = rig.ask("who").await;
    let reason = rig.refuses(2, "silent-canary").await;
    assert!(reason.starts_with("the new process was not ready within 10s: it has not said READY=1 on NOTIFY_SOCKET"), "{reason}");
    assert_eq!(rig.ask("who").await, before, "the same process");
    assert_eq!(rig.end().await, 0);
    assert!(!String::from_utf8_lossy(&logs().lock().unwrap()).contains("silent-canary"));
}

/// Status 0 is the end of the run when nothing else starts, and no crash when something does.
#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ends_well_while_its_successor_starts_is_not_called_crashed() {
    let mut rig = rig().await;
    rig.takes(70, "good").await;
    rig.wants(71, "silent");
    logged(&["starting a process with the new value generation=71"]).await;
    assert_eq!(rig.ask("quit").await, "");
    logged(&["WARN", "the program ended before the next one was ready", "status=exit status: 0"]).await;
    assert!(rig.ask("who").await.starts_with("good "), "the value in use goes on");
    assert_eq!(rig.end().await, 0);
}

/// Waits for a line of the log that says all of it.
async fn logged(parts: &[&str]) {
    let said = || String::from_utf8_lossy(&logs().lock().unwrap()).lines().any(|line| parts.iter().all(|part| line.contains(part)));
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let waiting = async {
        while !said() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("nothing of the kind was logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_restarts_the_program_with_the_value_in_use_and_says_nothing_new() {
    let mut rig = rig().await;
    rig.takes(1, "good").await;
    let before = rig.ask("who").await;
    assert_eq!(rig.ask("crash").await, "");
    // the socket stays open: the next question waits for the new process
    let after = rig.ask("who").await;
    assert!(after.starts_with("good ") && after != before, "{after}");
    assert!(rig.fake.quiet());
    assert_eq!(rig.end().await, 0);
}

/// Temporary folders are emptied by people and by timers.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_sockets_that_was_tidied_away_keeps_no_program_from_starting() {
    let runtime = tempfile::tempdir().unwrap();
    let mut rig = rig_with(Options { runtime_folder: runtime.path().to_owned(), ..options() }).await;
    let tidy = || {
        let entries: Vec<_> = std::fs::read_dir(runtime.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(entries.len(), 1);
        std::fs::remove_dir_all(&entries[0]).unwrap();
        entries[0].clone()
    };
    // a program that serves has no more to say on its socket
    rig.takes(1, "one").await;
    assert!(rig.ask("who").await.starts_with("one "));
    // one of somebody else in its place is neither used nor removed
    let taken = tidy();
    std::fs::create_dir(&taken).unwrap();
    std::fs::set_permissions(&taken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    rig.takes(2, "two").await;
    assert_eq!(std::fs::read_dir(&taken).unwrap().count(), 0);
    std::fs::remove_dir(&taken).unwrap();
    let is_two = |who: &String| who.starts_with("two ");
    let mut before = rig.ask("who").await;
    while !is_two(&before) {
        before = rig.ask("who").await;
    }
    tidy();
    // what still drains may take a question too
    let mut after = String::new();
    while !is_two(&after) || after == before {
        assert_eq!(rig.ask("crash").await, "");
        after = rig.ask("who").await;
    }
    assert_eq!(rig.end().await, 0);
    assert_eq!(std::fs::read_dir(runtime.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_code_of_the_program_is_the_code_of_the_run() {
    let mut seven = rig().await;
    seven.takes(1, "seven").await;
    assert_eq!(seven.end().await, 7);

    let mut done = rig().await;
    done.wants(1, "done");
    let code = tokio::time::timeout(PATIENCE, &mut done.done).await.unwrap().unwrap().unwrap();
    assert_eq!(code, 0, "it ended by itself");

    let mut missing = rig_with(Options { command: vec!["/nowhere/program".into()], ..options() }).await;
    missing.wants(1, "x");
    let code = tokio::time::timeout(PATIENCE, &mut missing.done).await.unwrap().unwrap().unwrap();
    assert_eq!(code, 127);
    assert_eq!(missing.fake.next().await, Heard::Goodbye { instance: "web-1".into() }, "a typing mistake is no refusal of a value");

    let idle = rig().await;
    assert_eq!(idle.end().await, 0, "stopped before there was a value");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_does_not_drain_is_killed() {
    let mut rig = rig_with(Options { drain_deadline: Duration::from_millis(300), ..options() }).await;
    rig.takes(1, "deaf").await;
    assert_eq!(rig.end().await, 128 + 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_while_a_new_process_starts_refuses_nothing() {
    let mut rig = rig().await;
    rig.takes(1, "good").await;
    rig.wants(81, "silent");
    // heard by the supervisor before the end
    logged(&["starting a process with the new value generation=81"]).await;
    assert_eq!(rig.end().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unix_sockets_are_handed_on_and_nothing_in_the_way_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("s"), folder.path().join("file"));
    let at = |path: &std::path::Path| Options { listen: vec![Listen::Unix(path.to_owned())], ..options() };
    // what an earlier run left behind is ours to replace
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let opened = open(&at(&path)).unwrap();
    assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    // one that somebody listens on is theirs
    assert!(matches!(open(&at(&path)), Err(agent::Error::Listen { .. })));
    assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    drop(opened);
    drop(open(&at(&path)).unwrap());
    std::fs::write(&other, "precious").unwrap();
    std::os::unix::fs::symlink(&path, folder.path().join("link")).unwrap();
    for path in [&other, &folder.path().join("link")] {
        assert!(matches!(open(&at(path)), Err(agent::Error::Unsafe { .. })));
    }
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "precious");
}
