//! `keyward run` and `keyward agent` as a user runs them: the real binary, a real server, real rotations, programs that know nothing
//! of Keyward.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::rig::{ROOT, Server};
use crate::rotation;

/// Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(90);
const BINARY: &str = env!("CARGO_BIN_EXE_keyward");

/// May follow and read the one secret.
const POLICY: &str = r#"path "secret/data/orders/db" { capabilities = ["read"] }"#;

/// A server with one rotation on a PostgreSQL of its own.
struct Rig {
    server: Server,
    token: String,
    _cluster: demo::cluster::Cluster,
}

impl Rig {
    async fn start() -> Self {
        let (cluster, _root) = rotation::cluster().await;
        let server = Server::start().await;
        rotation::prepare(&server, &cluster).await;
        let token = server.token("orders", POLICY).await;
        Self { server, token, _cluster: cluster }
    }

    async fn password(&self) -> String {
        let (_, body) = self.server.call("GET", "secret/data/orders/db", ROOT, Value::Null).await;
        body["data"]["data"]["password"].as_str().unwrap().to_owned()
    }

    /// Rotates and gives the closed run.
    async fn rotate(&self) -> Value {
        let (status, body) = self.server.call("POST", "sys/lifecycle/rotate/orders-db", ROOT, json!({"reason": "test"})).await;
        assert_eq!(status, 200, "{body}");
        let run = format!("sys/lifecycle/runs/{}", body["data"]["run"].as_str().unwrap());
        self.server.until(&run, |run| run["data"]["phase"] == "closed").await["data"].clone()
    }

    async fn holders(&self) -> Value {
        self.server.call("GET", "sys/lifecycle/holdings/orders-db", ROOT, Value::Null).await.1["data"]["keys"].clone()
    }

    fn run(&self, instance: &str, flags: &[&str], command: &[&str]) -> Running {
        let mut args = vec!["run", "-rotation=orders-db", "-env=PGUSER=username", "-env=PGPASSWORD=password"];
        let instance = format!("-instance={instance}");
        args.push(&instance);
        args.extend(flags);
        args.push("--");
        args.extend(command);
        Running::start(&self.server.address, &self.token, &args)
    }
}

/// A command that goes on, and what it says.
struct Running {
    child: Child,
    said: Arc<Mutex<String>>,
    home: tempfile::TempDir,
}

impl Running {
    fn start(address: &str, token: &str, args: &[&str]) -> Self {
        Self::of(Command::new(BINARY).args(args), address, token)
    }

    fn of(command: &mut Command, address: &str, token: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        command.env_remove("BAO_ADDR").env_remove("BAO_TOKEN").env("VAULT_ADDR", address).env("VAULT_TOKEN", token);
        command.env("KEYWARD_TEST_HOME", home.path()).env("KEYWARD_TEST_BINARY", BINARY);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let (lines, into) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&said));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                into.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self { child, said, home }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits for a line that says all of it, and gives the newest.
    async fn says(&self, parts: &[&str]) -> String {
        let mut found = None;
        until(|| {
            found = self.said().lines().rfind(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned);
            found.is_some()
        })
        .await
        .unwrap_or_else(|()| panic!("{parts:?} was not said:\n{}", self.said()));
        found.unwrap()
    }

    /// A file that the program wrote, when it says all of it.
    async fn wrote(&self, name: &str, enough: impl Fn(&str) -> bool) -> String {
        let read = || std::fs::read_to_string(self.home.path().join(name)).unwrap_or_default();
        until(|| enough(&read())).await.unwrap_or_else(|()| panic!("`{name}` holds {:?}\n{}", read(), self.said()));
        read()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        let ended = until(|| {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        ended.await.unwrap_or_else(|()| panic!("it did not end:\n{}", self.said()));
        status.unwrap()
    }

    async fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().unwrap();
    }
}

/// Looks every few milliseconds.
async fn until(mut done: impl FnMut() -> bool) -> Result<(), ()> {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let waiting = async {
        while !done() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.map_err(|_| ())
}

/// A port that nobody else gets, and where nobody listens yet.
fn port() -> (tokio::net::TcpSocket, u16) {
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.set_reuseaddr(true).unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = held.local_addr().unwrap().port();
    (held, port)
}

/// One question on a connection of its own. Nothing is asked twice.
fn get(at: SocketAddr) -> Result<String, String> {
    let mut stream = TcpStream::connect(at).map_err(|error| format!("connect: {error}"))?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let failed = |error: std::io::Error| format!("exchange: {error}");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no answer: {answer:?}"))?;
    if !head.contains(" 200 ") {
        return Err(head.to_owned());
    }
    // node sends short bodies in chunks
    Ok(body.lines().max_by_key(|line| line.len()).unwrap_or_default().to_owned())
}

/// Asks without pause, from several threads, and never again what failed.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn on(at: SocketAddr) -> Self {
        let (stop, answered, failed) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<String>>>::default());
        let threads = (0..3).map(|_| {
            let (stop, answered, failed) = (Arc::clone(&stop), Arc::clone(&answered), Arc::clone(&failed));
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    match get(at) {
                        Ok(_) => drop(answered.fetch_add(1, Ordering::SeqCst)),
                        Err(why) => failed.lock().unwrap().push(why),
                    }
                }
            })
        });
        Self { threads: threads.collect(), stop, answered, failed }
    }

    async fn proceeds(&self, more: usize) {
        let goal = self.answered.load(Ordering::SeqCst) + more;
        until(|| self.answered.load(Ordering::SeqCst) >= goal).await.unwrap_or_else(|()| panic!("nobody answers"));
    }

    /// How many were answered, and what failed.
    fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        (self.answered.load(Ordering::SeqCst), std::mem::take(&mut self.failed.lock().unwrap()))
    }
}

/// `http.server` of Python's library on the socket that it inherits. It handles no signal.
const PYTHON: &str = r#"
import http.server, os, socket
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ["PGPASSWORD"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = http.server.HTTPServer(("", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=3)
server.serve_forever()
"#;
/// The same with a port of its own.
const PYTHON_OWN_PORT: &str = r#"
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ["PGPASSWORD"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
if os.path.exists(os.environ["KEYWARD_TEST_HOME"] + "/broken"):
    sys.exit(9)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;
/// A server of Node on the socket that it inherits.
const NODE: &str = "require('http').createServer((_, answer) => answer.end(process.env.PGPASSWORD)).listen({fd: 3})";
/// The same, which says that it is ready, and drains.
const NODE_NOTIFIES: &str = "
const server = require('http').createServer((_, answer) => answer.end(process.env.PGPASSWORD));
process.on('SIGTERM', () => server.close());
server.listen({fd: 3}, () =>
  require('child_process').execFileSync(process.env.KEYWARD_TEST_BINARY, ['notify', 'STATUS=serving', 'READY=1']));
";

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if !found {
        println!("`{program}` is not there: its rows are left out");
    }
    found
}

/// A name, flags for a port, the program, and what the log says of why it is ready.
type Way<'a> = (&'a str, &'a dyn Fn(u16) -> Vec<String>, [&'a str; 3], &'a str);

/// A rotation under a load that never retries, in every way to be ready that promises it. Prints a row for each.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_fails_while_a_plain_program_changes() {
    let rig = Rig::start().await;
    let python = ["python3", "-c", PYTHON];
    let url = |port: u16| format!("-ready=http://127.0.0.1:{port}/");
    let rows: [Way; 7] = [
        ("python-auto", &|_| vec![], python, "accept: it accepted a connection"),
        ("node-auto", &|_| vec![], ["node", "-e", NODE], "accept: it accepted a connection"),
        ("node-notify", &|_| vec!["-ready=notify".into()], ["node", "-e", NODE_NOTIFIES], "notify: it said READY=1"),
        ("python-http", &|port| vec![url(port)], python, "http: it answered GET"),
        ("python-tcp", &|port| vec![format!("-ready=tcp:{port}")], python, "tcp: it accepted a connection"),
        ("python-started", &|_| vec!["-ready=started:2s".into()], python, "started: it has run for 2s"),
        ("node-stopped-first", &|_| vec!["-swap=stop-then-start".into()], ["node", "-e", NODE_NOTIFIES], "notify: it said READY=1"),
    ];
    for (name, flags, command, how) in rows {
        if !has(command[0]) {
            continue;
        }
        let (_held, port) = port();
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let flags: Vec<String> = [format!("-listen={at}")].into_iter().chain(flags(port)).collect();
        let running = rig.run(name, &flags.iter().map(String::as_str).collect::<Vec<_>>(), &command);
        running.says(&["in use", "level=\"L2\""]).await;
        running.says(&["ready", "process=1", how]).await;
        let before = rig.password().await;
        assert_eq!(get(at), Ok(before.clone()), "{name}");
        let load = Load::on(at);
        load.proceeds(20).await;
        let run = rig.rotate().await;
        assert_eq!(run["verdict"], "rotated", "{name}: {run:#}\n{}", running.said());
        running.says(&["ready", "process=2", how]).await;
        load.proceeds(50).await;
        let after = rig.password().await;
        until(|| get(at).as_ref() == Ok(&after)).await.unwrap_or_else(|()| panic!("{name}: the old value is served"));
        let (answered, failed) = load.end();
        println!("{name:20} answered {answered:6} failed {}", failed.len());
        assert!(failed.is_empty(), "{name}: {failed:?}\n{}", running.said());
        assert_ne!(before, after);
        let said = running.said();
        assert!(!said.contains(&before) && !said.contains(&after), "{name}");
        let idle = running
            .said()
            .lines()
            .find(|line| line.contains("the old process holds no connection: ") || line.contains("never without"))
            .unwrap_or_default()
            .to_owned();
        println!("    {}", idle.split_once(" INFO ").map_or("", |(_, line)| line));
        running.stop().await;
    }
    rig.server.stop().await;
}

/// Notes every signal, and ends with 5 on SIGTERM.
const NOTES_SIGNALS: &str = r#"
import os, signal, subprocess, sys
home = os.environ["KEYWARD_TEST_HOME"]
def note(number, _):
    with open(home + "/signals", "a") as log:
        log.write(signal.Signals(number).name + "\n")
    if number == signal.SIGTERM:
        sys.exit(5)
for name in ["HUP", "INT", "TERM", "QUIT", "USR1", "USR2", "WINCH", "CONT", "TSTP", "ALRM"]:
    signal.signal(getattr(signal, "SIG" + name), note)
with open(home + "/pid", "a") as pid:
    pid.write("%d\n" % os.getpid())
subprocess.run([os.environ["KEYWARD_TEST_BINARY"], "notify", "READY=1"], check=True)
while True:
    signal.pause()
"#;

/// The state of a process by one letter; nothing when it is gone.
fn state_of(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next().filter(|state| *state != 'Z')
}

fn pid(text: &str) -> i32 {
    text.lines().last().unwrap().trim().parse().unwrap()
}

/// What each signal to `run` does to the program and to `run`. Prints the table of docs/agent.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_reach_the_program_and_end_nothing_by_accident() {
    let rig = Rig::start().await;
    let start = async |instance: &str| {
        // a shell in front, which would end by itself and leave the program alone
        let script = format!("python3 -c '{NOTES_SIGNALS}' & p=$!; sleep 600 & wait $p");
        let running = rig.run(instance, &["-ready=notify"], &["/bin/sh", "-c", &script]);
        running.says(&["in use", "level=\"L2\""]).await;
        let program = pid(&running.wrote("pid", |text| text.ends_with('\n')).await);
        (running, program)
    };
    let times = |text: &str, name: &str| text.lines().filter(|line| *line == name).count();
    let mut table = Vec::new();

    let (running, program) = start("signals-1").await;
    let own = i32::try_from(running.child.id()).unwrap();
    for (signal, name) in [
        (Signal::HUP, "SIGHUP"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::USR1, "SIGUSR1"),
        (Signal::USR2, "SIGUSR2"),
        (Signal::WINCH, "SIGWINCH"),
        (Signal::ALARM, "SIGALRM"),
        (Signal::CONT, "SIGCONT"),
    ] {
        for time in 1..=2 {
            running.signal(signal);
            running.wrote("signals", |text| times(text, name) >= time).await;
        }
        assert_eq!((state_of(program), running.said().contains("crashed")), (Some('S'), false), "{name}");
        table.push((name, "got it, each time".to_owned(), "goes on"));
    }
    running.signal(Signal::TSTP);
    running.wrote("signals", |text| times(text, "SIGTSTP") == 1).await;
    until(|| state_of(own) == Some('T')).await.unwrap();
    running.signal(Signal::CONT);
    running.wrote("signals", |text| times(text, "SIGCONT") == 3).await;
    until(|| state_of(own) == Some('S')).await.unwrap();
    table.push(("SIGTSTP", "got it, and SIGCONT after".to_owned(), "stopped until SIGCONT"));
    running.signal(Signal::STOP);
    until(|| state_of(own) == Some('T')).await.unwrap();
    kill_process(Pid::from_raw(program).unwrap(), Signal::USR1).unwrap();
    running.wrote("signals", |text| times(text, "SIGUSR1") == 3).await;
    running.signal(Signal::CONT);
    running.wrote("signals", |text| times(text, "SIGCONT") == 4).await;
    table.push(("SIGSTOP", "went on, got SIGCONT after".to_owned(), "stopped until SIGCONT"));
    let rotated = rig.rotate().await;
    assert_eq!(rotated["verdict"], "rotated", "none of this has harmed anything: {rotated:#}\n{}", running.said());
    drop(running);

    for (signal, name) in [(Signal::INT, "SIGINT"), (Signal::TERM, "SIGTERM")] {
        let (mut running, program) = start(name).await;
        running.signal(signal);
        let status = running.ended().await;
        assert_eq!(running.wrote("signals", |text| times(text, "SIGTERM") == 1).await.lines().count(), 1);
        assert_eq!((status.code(), state_of(program)), (Some(5), None), "{}", running.said());
        table.push((name, "got SIGTERM, drained".to_owned(), "ended with its status"));
    }
    let (mut running, program) = start("SIGKILL").await;
    running.signal(Signal::KILL);
    running.ended().await;
    until(|| state_of(program).is_none()).await.expect("the program goes on alone");
    table.push(("SIGKILL", "killed, with all of its group".to_owned(), "gone"));

    println!("{:10} {:32} run", "signal", "program");
    for (signal, program, run) in table {
        println!("{signal:10} {program:32} {run}");
    }
    rig.server.stop().await;
}

/// Everything that a killed `run` leaves: nothing, unless it was told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_outlives_a_run_that_is_killed() {
    let rig = Rig::start().await;
    // the first process, one below it, and one whose parent has gone
    let script = r#"cd "$KEYWARD_TEST_HOME"; (sleep 600 & echo $! > orphan); sleep 600 & echo $! > below; echo $$ > first; wait"#;
    for (flag, alive) in [("-on-supervisor-death=end", false), ("-on-supervisor-death=leave", true)] {
        let mut running = rig.run("killed", &["-ready=started", flag], &["/bin/sh", "-c", script]);
        running.says(&["in use", "level=\"L2\""]).await;
        let mut pids = Vec::new();
        for name in ["first", "below", "orphan"] {
            pids.push(pid(&running.wrote(name, |text| text.ends_with('\n')).await));
        }
        running.signal(Signal::KILL);
        running.ended().await;
        if alive {
            assert!(pids.iter().all(|pid| state_of(*pid).is_some()), "{pids:?}");
            pids.iter().for_each(|pid| kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL).unwrap());
        } else {
            until(|| pids.iter().all(|pid| state_of(*pid).is_none())).await.unwrap_or_else(|()| panic!("{pids:?} live on"));
        }
    }
    rig.server.stop().await;
}

/// As the first process of a container: orphans are waited for, signals reach the program, the end is clean.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_the_first_process_of_a_container_it_is_an_init() {
    let unshare = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    if !Command::new("unshare").args(unshare).arg("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        println!("namespaces may not be made here: left out");
        return;
    }
    let rig = Rig::start().await;
    let script = format!(
        r#"cd "$KEYWARD_TEST_HOME"; for i in 1 2 3 4 5; do (setsid sleep 1 &); done; touch orphans; exec python3 -c '{NOTES_SIGNALS}'"#
    );
    let mut command = Command::new("unshare");
    command.args(unshare).args([BINARY, "run", "-rotation=orders-db", "-instance=init", "-ready=notify", "--", "/bin/sh", "-c", &script]);
    let mut running = Running::of(&mut command, &rig.server.address, &rig.token);
    running.says(&["in use", "level=\"L2\""]).await;
    let outer = running.child.id();
    let children = |of: u32| -> Vec<(i32, char)> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let stats = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
        let parsed = stats.filter_map(|stat| {
            let pid = stat.split(' ').next()?.parse().ok()?;
            let mut rest = stat.rsplit_once(") ")?.1.split(' ');
            let (state, parent) = (rest.next()?.chars().next()?, rest.next()?.parse::<u32>().ok()?);
            (parent == of).then_some((pid, state))
        });
        parsed.collect()
    };
    let init = children(outer)[0].0;
    let inner = || children(u32::try_from(init).unwrap());
    running.wrote("orphans", |_| true).await;
    // the program and its guard stay; the orphans end, and nobody is left unwaited for
    let mut most = 0;
    until(|| {
        most = most.max(inner().len());
        most >= 7 && inner().len() == 2 && inner().iter().all(|(_, state)| *state != 'Z')
    })
    .await
    .unwrap_or_else(|()| panic!("{most} {:?}\n{}", inner(), running.said()));
    kill_process(Pid::from_raw(init).unwrap(), Signal::USR1).unwrap();
    running.wrote("signals", |text| text.contains("SIGUSR1")).await;
    kill_process(Pid::from_raw(init).unwrap(), Signal::TERM).unwrap();
    assert_eq!(running.ended().await.code(), Some(5), "{}", running.said());
    rig.server.stop().await;
}

/// The first start: a program that ends, one that stays silent and speaks later, a field that is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_says_what_is_wrong() {
    let rig = Rig::start().await;

    // it ends: so does the run, with its code, and nothing is refused
    let mut ends = rig.run("ends", &[], &["/bin/sh", "-c", "exit 3"]);
    assert_eq!(ends.ended().await.code(), Some(3), "{}", ends.said());
    assert!(ends.said().contains("ended before it was ever ready") && !ends.said().contains("refused"), "{}", ends.said());
    let mut done = rig.run("done", &[], &["/bin/sh", "-c", "exit 0"]);
    assert_eq!(done.ended().await.code(), Some(0), "{}", done.said());

    // unless it is to be started again
    let again = rig.run(
        "again",
        &["-restart", "-ready=started"],
        &[
            "/bin/sh",
            "-c",
            r#"cd "$KEYWARD_TEST_HOME"; [ -e third ] && exec sleep 600; [ -e second ] && touch third; touch second; exit 3"#,
        ],
    );
    again.says(&["in use", "level=\"L2\""]).await;
    assert_eq!(again.said().matches("starting it again").count(), 2, "{}", again.said());
    again.stop().await;

    // it is silent: it goes on, L1 is said, and what is missing; when it speaks, L2 is said
    let script = r#"until [ -e "$KEYWARD_TEST_HOME/go" ]; do sleep 0.05; done; "$KEYWARD_TEST_BINARY" notify READY=1; sleep 600"#;
    let silent = rig.run("silent", &["-ready-deadline=1s"], &["/bin/sh", "-c", script]);
    let line = silent.says(&["running, but not known to be ready"]).await;
    assert!(line.contains("READY=1") && line.contains("nor opened a port") && line.contains("-ready"), "{line}");
    silent.says(&["in use", "level=\"L1\""]).await;
    let level = async |wanted: &str| {
        let asked = rig.server.until("sys/lifecycle/holdings/orders-db", |body| body["data"]["key_info"]["silent"]["level"] == wanted);
        asked.await
    };
    level("L1").await;
    std::fs::write(silent.home.path().join("go"), "").unwrap();
    silent.says(&["ready", "process=1", "notify: it said READY=1"]).await;
    level("L2").await;
    silent.stop().await;

    // a field that is not there is named with those that are; no value is refused, and the instance is gone
    let mut typo = rig.run("typo", &["-env=PGHOST=hst"], &["/bin/sh", "-c", "touch \"$KEYWARD_TEST_HOME/ran\""]);
    assert_eq!(typo.ended().await.code(), Some(1));
    let expected = "Error: rotation `orders-db`: `-env PGHOST=hst`: the secret has no field `hst`; its fields are `password`, `username`";
    assert!(typo.said().contains(expected) && !typo.home.path().join("ran").exists(), "{}", typo.said());
    assert_eq!(rig.holders().await, json!([]), "all have said goodbye");
    assert_eq!(rig.rotate().await["verdict"], "rotated");
    rig.server.stop().await;
}

/// What waiting does not mend ends the command with a sentence that names the flag, the value and what was expected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_for_good_ends_the_command_with_a_sentence() {
    let server = Server::start().await;
    let token = server.token("orders", POLICY).await;
    let start = |rotation: &str, more: &[&str]| {
        let args = [&["run", rotation, "-instance=i"], more, &["--", "true"]].concat();
        Running::start(&server.address, &token, &args)
    };
    for (rotation, parts) in [
        (
            "-rotation=secret/data/orders/db",
            [
                "Error: `-rotation=secret/data/orders/db`: `secret/data/orders/db` was refused; expected the name of a rotation, not a path",
                "status 400",
            ],
        ),
        (
            "-rotation=nosuch",
            ["Error: `-rotation=nosuch`: no rotation named `nosuch` or this identity may not read its secret", "permission denied"],
        ),
    ] {
        let mut running = start(rotation, &[]);
        assert_eq!(running.ended().await.code(), Some(2), "{}", running.said());
        for part in parts {
            assert!(running.said().contains(part), "{part} in {}", running.said());
        }
    }
    let waiting = start("-rotation=nosuch", &["-wait"]);
    until(|| waiting.said().matches("the server has refused every stream so far").count() >= 3).await.unwrap();
    assert_eq!(waiting.stop().await.code(), Some(0), "stopped before there was a value");
    server.stop().await;
}

/// A program that opens its port itself: the old one ends first, and runs again when the new one fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_with_a_port_of_its_own_is_stopped_first() {
    let rig = Rig::start().await;
    let (_held, port) = port();
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let number = port.to_string();
    let command = ["python3", "-c", PYTHON_OWN_PORT, &number];
    let running = rig.run("own-port", &["-swap=stop-then-start"], &command);
    running.says(&["ready", "process=1", &format!("listen: it listens on {at}")]).await;
    running.says(&["in use", "level=\"L2\""]).await;
    let before = rig.password().await;
    assert_eq!(get(at), Ok(before.clone()));
    // the control of the test above: without a socket of the supervisor, requests between the two are refused, and the load sees it
    let load = Load::on(at);
    load.proceeds(20).await;
    let run = rig.rotate().await;
    assert_eq!(run["verdict"], "rotated", "{run:#}\n{}", running.said());
    load.proceeds(20).await;
    let (answered, failed) = load.end();
    println!("{:20} answered {answered:6} failed {}", "own port", failed.len());
    assert!(failed.iter().any(|why| why.contains("connect: ")), "{failed:?}");
    let after = rig.password().await;
    assert_eq!(get(at), Ok(after.clone()));

    std::fs::write(running.home.path().join("broken"), "").unwrap();
    let run = {
        let (_, body) = rig.server.call("POST", "sys/lifecycle/rotate/orders-db", ROOT, json!({"reason": "test"})).await;
        running.says(&["starting the old value again"]).await;
        std::fs::remove_file(running.home.path().join("broken")).unwrap();
        body["data"]["run"].as_str().unwrap().to_owned()
    };
    let run = rig.server.until(&format!("sys/lifecycle/runs/{run}"), |run| run["data"]["phase"] == "closed").await;
    assert_eq!(run["data"]["verdict"], "rolled_back", "{run:#}\n{}", running.said());
    until(|| get(at).as_ref() == Ok(&after)).await.unwrap_or_else(|()| panic!("the old value does not serve: {}", running.said()));
    running.stop().await;

    // without that, a second process beside the first finds the port taken, and the message says what to do
    let running = rig.run("own-port-2", &[], &command);
    running.says(&["in use", "level=\"L2\""]).await;
    let (_, body) = rig.server.call("POST", "sys/lifecycle/rotate/orders-db", ROOT, json!({"reason": "test"})).await;
    let line = running.says(&["refused", "ended with exit status: 1"]).await;
    assert!(line.contains("use -swap=stop-then-start"), "{line}");
    let run = format!("sys/lifecycle/runs/{}", body["data"]["run"].as_str().unwrap());
    rig.server.until(&run, |run| run["data"]["phase"] == "closed").await;
    running.stop().await;
    rig.server.stop().await;
}

/// The agent as a daemon: SIGHUP reads the configuration again, other signals change nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_reads_its_configuration_again() {
    let rig = Rig::start().await;
    let call = async |method: &str, path: &str, body: Value| {
        let (status, body) = rig.server.call(method, path, ROOT, body).await;
        assert!(status < 300, "{path}: {body}");
        body["data"].clone()
    };
    call("POST", "sys/auth/approle", json!({"type": "approle"})).await;
    call("POST", "auth/approle/role/orders", json!({"token_policies": ["orders"]})).await;
    let role = call("GET", "auth/approle/role/orders/role-id", Value::Null).await["role_id"].as_str().unwrap().to_owned();
    let secret = call("POST", "auth/approle/role/orders/secret-id", json!({})).await["secret_id"].as_str().unwrap().to_owned();
    let folder = tempfile::tempdir_in(std::env::temp_dir().canonicalize().unwrap()).unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("role"), role).unwrap();
    std::fs::write(at("secret"), secret).unwrap();
    let configure = |format: &str| {
        let text = format!(
            "address = \"{}\"\ninstance = \"agent-1\"\napprole {{\n role_id_file = \"{}\"\n secret_id_file = \"{}\"\n}}\n\
             file \"orders-db\" {{\n path = \"{}\"\n allow_disk = true\n format = \"{format}\"\n}}\n",
            rig.server.address,
            at("role"),
            at("secret"),
            at("db")
        );
        std::fs::write(at("agent.hcl"), text).unwrap();
    };
    configure("json");
    let mut agent = Running::start(&rig.server.address, "", &["agent", &format!("-config={}", at("agent.hcl"))]);
    agent.says(&["in use"]).await;
    assert!(std::fs::read_to_string(at("db")).unwrap().starts_with("{\"password\":"));
    for signal in [Signal::QUIT, Signal::USR1, Signal::USR2] {
        agent.signal(signal);
    }
    until(|| agent.said().matches("ignored: SIGHUP reads the configuration again").count() == 3).await.unwrap();
    configure("yaml");
    agent.signal(Signal::HUP);
    agent.says(&["the configuration is not taken; the one in use stays", "`format`"]).await;
    assert!(std::fs::read_to_string(at("db")).unwrap().starts_with("{\"password\":"));
    configure("env");
    agent.signal(Signal::HUP);
    agent.says(&["took the configuration anew", "changed=[\"orders-db\"]"]).await;
    until(|| std::fs::read_to_string(at("db")).is_ok_and(|text| text.starts_with("PASSWORD='"))).await.unwrap();
    agent.signal(Signal::TERM);
    assert_eq!(agent.ended().await.code(), Some(0), "{}", agent.said());
    assert!(!folder.path().join("db").exists());
    rig.server.stop().await;
}
