//! The samples of `docs/samples`: a service in each language, all of them consumers of one rotation, under load.
//!
//! A sample whose toolchain is missing is left out, and standard error says so. Where `CI` is set that is a failure.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use demo::cluster::Cluster;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{interval, sleep, timeout};

use crate::rig::{ROOT, Server};
use crate::rotation;

/// Bounds a download and a build.
const BUILD_PATIENCE: Duration = Duration::from_secs(600);
/// Bounds everything else.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two requests to one service.
const PACE: Duration = Duration::from_millis(50);
/// Requests that are answered before the rotation begins.
const BEFORE: u64 = 200;
/// Code of a sample's file; imports, comments and blank lines do not count.
const LINES_MAX: usize = 25;

/// How a sample gets its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Run,
    Agent,
}

const SAMPLES: [(&str, By); 4] = [("go", By::Run), ("java", By::Agent), ("node", By::Agent), ("python", By::Run)];

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/samples").join(name).canonicalize().unwrap()
}

#[test]
fn a_sample_is_short() {
    for file in ["go/billing.go", "java/Billing.java", "java/Logins.java", "node/billing.js", "python/billing.py"] {
        let text = fs::read_to_string(source(file)).unwrap();
        // Go's imports stand in a block.
        let text = match text.split_once("import (\n") {
            Some((before, rest)) => format!("{before}{}", rest.split_once("\n)\n").unwrap().1),
            None => text,
        };
        let aside =
            ["//", "/**", "#", "import ", "from ", "package ", "const http = require", "const pg = require", "const { readFileSync }"];
        let code = text.lines().map(str::trim).filter(|line| !line.is_empty() && !aside.iter().any(|start| line.starts_with(start)));
        let lines = code.count();
        assert!(lines <= LINES_MAX, "{file}: {lines} lines of code");
    }
}

/// Runs a program of a toolchain to its end.
async fn made(mut command: Command) -> Result<(), String> {
    let shown = format!("{:?}", command.as_std());
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(BUILD_PATIENCE, running).await.map_err(|_| format!("{shown} took longer than {BUILD_PATIENCE:?}"))?;
    let output = output.map_err(|error| format!("{shown}: {error}"))?;
    let said = || format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(format!("{shown}: {}: {}", output.status, said())) }
}

fn command<'a>(program: &str, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Builds a sample, everything that is downloaded or made below `target`, and gives the command that runs it.
async fn built(name: &str) -> Result<Vec<OsString>, String> {
    let (source, target) = (source(name), Path::new(env!("CARGO_TARGET_TMPDIR")).join("samples").join(name));
    fs::create_dir_all(&target).unwrap();
    let path = |below: &str| target.join(below).into_os_string();
    match name {
        "python" => {
            // Debian's own: its packages are not seen by another one.
            made(command("/usr/bin/python3", ["-c", "import psycopg_pool"])).await?;
            Ok(vec![source.join("billing.py").into()])
        }
        "node" => {
            for file in ["billing.js", "package.json", "package-lock.json"] {
                fs::copy(source.join(file), target.join(file)).unwrap();
            }
            let mut npm = command("npm", ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--silent"]);
            npm.arg("--cache").arg(path("cache")).current_dir(&target);
            made(npm).await?;
            Ok(vec!["node".into(), path("billing.js")])
        }
        "go" => {
            let mut go = command("go", ["build", "-o"]);
            go.arg(path("billing")).current_dir(&source);
            go.env("GOMODCACHE", path("modules")).env("GOCACHE", path("cache")).env("CGO_ENABLED", "0");
            go.env("GOTOOLCHAIN", "local").env("GOFLAGS", "-mod=readonly -modcacherw -buildvcs=false");
            made(go).await?;
            Ok(vec![path("billing")])
        }
        _ => {
            let there = |jar: &str| fs::read_dir(target.join("jars")).is_ok_and(|all| all.flatten().any(|at| at.file_name() == *jar));
            if !there("HikariCP-7.1.0.jar") || !there("postgresql-42.7.14.jar") {
                let mut maven =
                    command("mvn", ["--quiet", "--batch-mode", "--no-transfer-progress", "dependency:copy-dependencies", "--file"]);
                maven.arg(source.join("pom.xml"));
                for (option, below) in [("-Dmaven.repo.local=", "repository"), ("-DoutputDirectory=", "jars")] {
                    maven.arg(joined(option, &path(below)));
                }
                made(maven).await?;
            }
            let mut javac = command("javac", ["-d"]);
            javac.arg(path("classes")).arg("-cp").arg(path("jars/*"));
            made({
                javac.args([source.join("Billing.java"), source.join("Logins.java")]);
                javac
            })
            .await?;
            let classes = joined(&format!("{}:", target.join("classes").display()), &path("jars/*"));
            Ok(vec!["java".into(), "-cp".into(), classes, "Billing".into()])
        }
    }
}

fn joined(first: &str, second: &OsString) -> OsString {
    let mut both = OsString::from(first);
    both.push(second);
    both
}

/// A line for whoever runs the tests: what is printed by a macro is kept by the test runner.
fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Processes that are asked to end, in order, when the test is over or has failed; then what they said is shown.
#[derive(Default)]
struct Children(Vec<(std::process::Child, PathBuf)>);

impl Children {
    fn start(&mut self, mut command: std::process::Command, log: PathBuf) {
        let file = fs::File::create(&log).unwrap();
        self.0.push((command.stdin(Stdio::null()).stderr(file).spawn().unwrap(), log));
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for (child, log) in &mut self.0 {
            // One that has ended by itself is not there to be asked.
            kill_process(Pid::from_child(child), Signal::TERM).unwrap_or_default();
            let ended = child.wait();
            if std::thread::panicking() {
                let said = fs::read_to_string(&*log).unwrap_or_default();
                say(&format!("{}: {ended:?}\n{said}", log.display()));
            }
        }
    }
}

/// What a service answered.
#[derive(Debug, Default)]
struct Tally {
    /// By the login that wrote the row.
    answered: BTreeMap<String, u64>,
    failed: Vec<String>,
}

/// Requests to one service at a steady pace, whether it answers or not; each is sent once.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Tally>,
}

impl Load {
    fn start(address: &str) -> Self {
        let (stop, address) = (Arc::new(AtomicBool::new(false)), address.to_owned());
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (mut pace, mut requests) = (interval(PACE), JoinSet::new());
            while !stopped.load(Ordering::Acquire) {
                pace.tick().await;
                let address = address.clone();
                requests.spawn(async move { timeout(PATIENCE, asked(&address)).await.unwrap_or_else(|_| Err("no answer".to_owned())) });
            }
            let mut tally = Tally::default();
            for answer in requests.join_all().await {
                match answer {
                    Ok(login) => *tally.answered.entry(login).or_default() += 1,
                    Err(reason) => tally.failed.push(reason),
                }
            }
            tally
        });
        Self { stop, task }
    }

    async fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Release);
        self.task.await.unwrap()
    }
}

/// One request over a connection of its own: the login that wrote the invoice.
async fn asked(address: &str) -> Result<String, String> {
    let mut answer = String::new();
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: billing\r\nConnection: close\r\n\r\n").await?;
        stream.read_to_string(&mut answer).await
    };
    let done = asking.await;
    done.map_err(|error| format!("{error} after {answer:?}"))?;
    let written = answer.lines().find_map(|line| line.split_once(" wrote invoice "));
    match written {
        Some((login, _)) if answer.lines().next().is_some_and(|first| first.contains(" 200")) => Ok(login.to_owned()),
        _ => Err(answer),
    }
}

/// Waits for something that must come.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let mut last = String::new();
    let looking = async {
        loop {
            match look().await {
                Ok(found) => return found,
                Err(not_yet) => last = not_yet,
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let found = timeout(PATIENCE, looking).await;
    found.unwrap_or_else(|_| panic!("{what}: {last}"))
}

/// Rotates, and waits for the end of the run.
async fn rotated(server: &Server) -> Value {
    let (status, body) = server.call("POST", "sys/lifecycle/rotate/billing-db", ROOT, json!({"reason": "samples"})).await;
    assert_eq!(status, 200, "{body}");
    let path = format!("sys/lifecycle/runs/{}", body["data"]["run"].as_str().unwrap());
    until("the run stays open", async || {
        let (_, run) = server.call("GET", &path, ROOT, Value::Null).await;
        if run["data"]["phase"] == "closed" { Ok(run["data"].clone()) } else { Err(format!("{run:#}")) }
    })
    .await
}

async fn value(server: &Server) -> Value {
    server.call("GET", "secret/data/billing/db", ROOT, Value::Null).await.1["data"]["data"].clone()
}

/// A server with the rotation of `billing`, whose first value is in force, and the two files of an AppRole that may read it.
async fn prepare(server: &Server, cluster: &Cluster, root: &tokio_postgres::Client, folder: &Path) {
    root.batch_execute(
        "CREATE ROLE billing; GRANT billing TO keyward WITH ADMIN OPTION;
         CREATE TABLE invoices (id bigint GENERATED ALWAYS AS IDENTITY); GRANT SELECT, INSERT ON invoices TO billing;",
    )
    .await
    .unwrap();
    let target = json!({
        "kind": "postgres", "address": format!("{}:{}", cluster.host(), cluster.port()), "database": "postgres",
        "admin_username": "keyward", "admin_password": "admin-password",
    });
    let rotation = json!({
        "path": "secret/data/billing/db", "target": "main", "owner": "billing", "slots": ["billing_a", "billing_b"],
        "canaries": SAMPLES.len(), "soak": "500ms", "quiet_period": "1s", "session_poll": "200ms", "backoff": "100ms",
    });
    let policy = json!({"policy": r#"path "secret/data/billing/db" { capabilities = ["read"] }"#});
    for (path, body) in [
        ("sys/mounts/secret", json!({"type": "kv-v2"})),
        ("sys/lifecycle/targets/main", target),
        ("sys/lifecycle/rotations/billing-db", rotation),
        ("sys/policies/acl/billing", policy),
        ("sys/auth/approle", json!({"type": "approle"})),
        ("auth/approle/role/billing", json!({"token_policies": "billing"})),
    ] {
        let (status, body) = server.call("POST", path, ROOT, body).await;
        assert!(status < 300, "{path}: {body}");
    }
    let (_, role) = server.call("GET", "auth/approle/role/billing/role-id", ROOT, Value::Null).await;
    let (_, secret) = server.call("POST", "auth/approle/role/billing/secret-id", ROOT, json!({})).await;
    for (file, id) in [("role-id", &role["data"]["role_id"]), ("secret-id", &secret["data"]["secret_id"])] {
        fs::write(folder.join(file), id.as_str().unwrap()).unwrap();
    }
    until("there is no first value", async || match value(server).await {
        Value::Null => Err("no value".to_owned()),
        value => Ok(value),
    })
    .await;
}

/// A service and what keeps its value: the address where it will answer.
fn start(children: &mut Children, sample: (&str, By), program: &[OsString], server: &Server, cluster: &Cluster, folder: &Path) -> String {
    let (name, by) = sample;
    let address = free();
    let instance = format!("billing-{name}-1");
    let keyward = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keyward"));
        command.args(arguments).env("VAULT_ADDR", &server.address);
        command
    };
    let settings = |command: &mut std::process::Command| {
        command.env("PGHOST", cluster.host()).env("PGPORT", cluster.port().to_string()).env("PGDATABASE", "postgres");
        command.env("PGAPPNAME", &instance);
    };
    let (role, secret) = (folder.join("role-id"), folder.join("secret-id"));
    if by == By::Run {
        let mut run = keyward(&["run", "-rotation=billing-db", "-log-level=warn"]);
        run.args([format!("-instance={instance}"), format!("-listen={address}")]);
        run.args(["-env", "PGUSER=username", "-env", "PGPASSWORD=password", "-role-id-file"]).arg(role).arg("-secret-id-file").arg(secret);
        settings(run.arg("--").args(program));
        children.start(run, folder.join(format!("{name}.log")));
        return address;
    }
    let own = folder.join(name);
    fs::create_dir(&own).unwrap();
    let mut config = fs::read_to_string(source(name).join("agent.hcl")).unwrap();
    // What is different here.
    for (there, here) in [
        ("http://127.0.0.1:8200", server.address.as_str()),
        ("127.0.0.1:8080", &address),
        ("/etc/billing", folder.to_str().unwrap()),
        ("/run/billing", own.to_str().unwrap()),
    ] {
        assert!(config.contains(there), "{name}/agent.hcl without `{there}`");
        config = config.replace(there, here);
    }
    let file = own.join("agent.hcl");
    fs::write(&file, &config).unwrap();
    let credential = config.lines().find_map(|line| line.trim().strip_prefix("path   = \"")).unwrap().trim_end_matches('"');
    let (first, arguments) = program.split_first().unwrap();
    let mut service = std::process::Command::new(first);
    service.args(arguments).env("CREDENTIAL", credential).env("PORT", address.rsplit(':').next().unwrap());
    let url = format!("jdbc:postgresql://{}:{}/postgres?ApplicationName={instance}", cluster.host(), cluster.port());
    settings(service.env("DATABASE_URL", url));
    children.start(service, folder.join(format!("{name}.log")));
    let mut agent = keyward(&["agent", "-log-level=warn", "-config"]);
    agent.arg(file);
    children.start(agent, folder.join(format!("{name}-agent.log")));
    address
}

async fn invoices(root: &tokio_postgres::Client) -> u64 {
    let row = root.query_one("SELECT count(*) FROM invoices", &[]).await.unwrap();
    row.get::<_, i64>(0).try_into().unwrap()
}

/// A port that is free now.
fn free() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_language_follows_a_rotation_and_refuses_what_does_not_work() {
    let mut building = JoinSet::new();
    for sample in SAMPLES {
        building.spawn(async move { (sample, built(sample.0).await) });
    }
    let (cluster, root) = rotation::cluster().await;
    let server = Server::start().await;
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    prepare(&server, &cluster, &root, folder.path()).await;

    let mut children = Children::default();
    let mut services = Vec::new();
    for (sample, program) in building.join_all().await {
        match program {
            Ok(program) => services.push((sample.0, start(&mut children, sample, &program, &server, &cluster, folder.path()))),
            Err(reason) => {
                assert!(std::env::var_os("CI").is_none(), "{}: {reason}", sample.0);
                say(&format!("samples: {} IS LEFT OUT: {reason}", sample.0));
            }
        }
    }
    for (name, _) in &services {
        until(&format!("{name} does not hold the value"), async || {
            let (_, holdings) = server.call("GET", "sys/lifecycle/holdings/billing-db", ROOT, Value::Null).await;
            let level = &holdings["data"]["key_info"][format!("billing-{name}-1")]["level"];
            if level == "L2" { Ok(()) } else { Err(format!("{holdings:#}")) }
        })
        .await;
    }

    let old = value(&server).await;
    let loads: Vec<_> = services.iter().map(|(name, address)| (*name, Load::start(address))).collect();
    until("the services do not write", async || match invoices(&root).await {
        written if written < BEFORE => Err(format!("{written} invoices")),
        _ => Ok(()),
    })
    .await;
    let run = rotated(&server).await;
    assert_eq!((run["verdict"].as_str(), run["death_proven"].as_bool()), (Some("rotated"), Some(true)), "{run:#}");
    assert_eq!(rotation::login(&cluster, &old).await.map(drop), Err("28P01".to_owned()));

    // The next value can log in and cannot write: nobody may begin to use it.
    root.batch_execute("ALTER ROLE billing_a SET default_transaction_read_only = on").await.unwrap();
    let run = rotated(&server).await;
    assert!(run["verdict"] == "rolled_back" && run["cause"]["refused"].is_object(), "{run:#}");

    let mut answered = 0;
    for (name, load) in loads {
        let tally = load.stop().await;
        assert!(tally.failed.is_empty(), "{name}: {} failed: {:?}", tally.failed.len(), tally.failed.first());
        for login in ["billing_a", "billing_b"] {
            assert!(tally.answered.get(login).is_some_and(|count| *count > 0), "{name}: nothing by `{login}`: {:?}", tally.answered);
        }
        answered += tally.answered.values().sum::<u64>();
    }
    assert_eq!(invoices(&root).await, answered, "each answer is one row, and a trial leaves none");
    drop(children);
    server.stop().await;
}
