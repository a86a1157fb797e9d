//! README's rotation and the guide to two slots, word for word: their blocks are typed into two shells of a user who has a PostgreSQL.
//!
//! What the texts say comes out must come out: the service answers during the rotation, no request fails, the old password is refused, the
//! proof verifies, and after README's end PostgreSQL is as it was.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use demo::cluster::Cluster;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::json;
use tokio_postgres::NoTls;

use crate::rotation;

/// README's sections that are tried.
const LOOK: &str = "A first look";
const ROTATION: &str = "A rotation of your own";
/// Bounds a block, and the start of the service.
const PATIENCE: Duration = Duration::from_secs(180);

fn read(file: &str) -> String {
    fs::read_to_string(checkout().join(file)).unwrap()
}

fn checkout() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A section of README.
fn section(title: &str) -> String {
    let text = read("README.md");
    let (_, section) = text.split_once(&format!("\n## {title}\n")).unwrap();
    section.split("\n## ").next().unwrap().to_owned()
}

/// The blocks of a text with this language, as they stand.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let start = format!("{language}\n");
    let blocks = text.split("\n```").skip(1).step_by(2).filter_map(|part| part.strip_prefix(&start));
    blocks.map(|block| format!("{block}\n")).collect()
}

/// A shell as a user has it: an own process group, what it says in one stream.
struct Shell {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    said: String,
}

/// Ends what a block said: not a word that a program says.
const DONE: &str = "::done::";
/// Precedes a command that failed.
const FAILED: &str = "::failed::";

impl Shell {
    fn start(checkout: &Path, home: &Path) -> Self {
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc"]).current_dir(checkout).env_clear().process_group(0);
        command.env("HOME", home).env("PATH", "/usr/local/bin:/usr/bin:/bin");
        let (reader, writer) = std::io::pipe().unwrap();
        command.stdin(Stdio::piped()).stdout(writer.try_clone().unwrap()).stderr(writer);
        let mut child = command.spawn().unwrap();
        // The pipe's ends here go with the command.
        drop(command);
        let input = child.stdin.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || BufReader::new(reader).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut shell = Self { child, input, lines, said: String::new() };
        shell.type_in(&format!("trap 'echo \"{FAILED} $BASH_COMMAND\"' ERR\n"));
        shell
    }

    fn type_in(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).unwrap();
    }

    /// Types a block and gives what was said until it was done.
    fn run(&mut self, block: &str) -> String {
        self.type_in(&format!("{block}echo {DONE}\n"));
        self.until_done(block)
    }

    fn until_done(&mut self, block: &str) -> String {
        let before = self.said.len();
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{error} after:\n{block}\n{}", self.said));
            if line == DONE {
                return self.said.split_off(before);
            }
            self.said.push_str(&line);
            self.said.push('\n');
        }
    }

    /// Types a block whose last program stays in the foreground and listens.
    fn leave(&mut self, block: &str, port: u16) {
        self.type_in(&format!("{block}echo {DONE}\n"));
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.said.push_str(&format!("{line}\n"));
            assert!(!line.starts_with(FAILED) && line != DONE, "{}", self.said);
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return;
            }
        }
        panic!("nobody listens:\n{}", self.said);
    }

    /// Ctrl-C.
    fn interrupt(&mut self) -> String {
        kill_process_group(Pid::from_child(&self.child), Signal::INT).unwrap();
        self.until_done("Ctrl-C")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Nothing is left where all went well.
        kill_process_group(Pid::from_child(&self.child), Signal::TERM).unwrap_or_default();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.said.push_str(&format!("{line}\n")),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => kill_process_group(Pid::from_child(&self.child), Signal::KILL).unwrap_or_default(),
            }
        }
        self.child.wait().unwrap();
        if std::thread::panicking() {
            say(&self.said);
        }
    }
}

/// Text for whoever runs the tests: what a macro prints is kept by the test runner.
fn say(text: &str) {
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}

/// The commands that failed.
fn failed(said: &str) -> Vec<&str> {
    said.lines().filter_map(|line| line.strip_prefix(FAILED)).map(str::trim).collect()
}

fn free() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A user: a home, a checkout that is built, a PostgreSQL.
struct User {
    folder: tempfile::TempDir,
    cluster: Cluster,
    root: tokio_postgres::Client,
    /// The port of the service.
    port: u16,
    /// The port of Keyward.
    server: u16,
    /// All that is not typed as it stands.
    differs: [(&'static str, String); 3],
}

impl User {
    /// Nothing where a program is missing, which is said, and a failure where `CI` is set.
    async fn new() -> Option<Self> {
        let missing = ["psql", "curl"].into_iter().find(|program| Command::new(program).arg("--version").output().is_err());
        let psycopg = Command::new("/usr/bin/python3").args(["-c", "import psycopg_pool"]).output().is_ok_and(|done| done.status.success());
        if let Some(what) = missing.or_else(|| (!psycopg).then_some("python3-psycopg-pool")) {
            assert!(std::env::var_os("CI").is_none(), "`{what}` is missing");
            say(&format!("readme: LEFT OUT: `{what}` is missing"));
            return None;
        }
        let cluster = tokio::task::spawn_blocking(Cluster::create).await.unwrap().unwrap();
        let root = superuser(&cluster).await;
        let folder = tempfile::tempdir().unwrap();
        let (home, place) = (folder.path().join("home"), folder.path().join("keyward"));
        fs::create_dir_all(place.join("target")).unwrap();
        fs::create_dir(&home).unwrap();
        symlink(binaries(), place.join("target/debug")).unwrap();
        symlink(checkout().join("docs"), place.join("docs")).unwrap();
        // The superuser's password where psql looks for it.
        let pass = home.join(".pgpass");
        fs::write(&pass, format!("{}:{}:*:postgres:{}\n", cluster.host(), cluster.port(), cluster.superuser().password)).unwrap();
        fs::set_permissions(&pass, fs::Permissions::from_mode(0o600)).unwrap();
        let (port, server) = (free(), free());
        let differs = [
            ("127.0.0.1:8200", format!("127.0.0.1:{server}")),
            ("127.0.0.1:8080", format!("127.0.0.1:{port}")),
            ("PGPORT=5432", format!("PGPORT={}", cluster.port())),
        ];
        Some(Self { folder, cluster, root, port, server, differs })
    }

    /// What is typed for these blocks.
    fn typed(&self, blocks: Vec<String>) -> Vec<String> {
        let typed = |block: String| self.differs.iter().fold(block, |block, (there, here)| block.replace(there, here));
        blocks.into_iter().map(typed).collect()
    }

    fn shell(&self) -> Shell {
        Shell::start(&self.folder.path().join("keyward"), &self.folder.path().join("home"))
    }

    /// Roles, and what is in the schema.
    async fn inventory(&self) -> Vec<String> {
        let sql = "SELECT rolname::text FROM pg_roles UNION ALL SELECT relname::text FROM pg_class
                   WHERE relnamespace = 'public'::regnamespace ORDER BY 1";
        self.root.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }
}

/// The sample that README shows is the one that it runs.
#[test]
fn the_service_in_the_text_is_the_sample() {
    assert_eq!(blocks(&section(ROTATION), "python"), [read("docs/samples/python/billing.py")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_look_shows_what_it_says() {
    let Some(user) = User::new().await else { return };
    let typed = user.typed(blocks(&section(LOOK), "sh"));
    let [serve, look] = typed.as_slice() else { panic!("{typed:#?}") };
    let (mut first, mut second) = (user.shell(), user.shell());
    first.leave(serve, user.server);
    let said = second.run(look);
    assert!(failed(&said).is_empty(), "{said}");
    for shown in ["\ns3cret", "\"password\":\"s3cret\"", "Uploaded policy: orders", "hvs.", "\nintact\n"] {
        assert!(said.contains(shown), "`{shown}` is missing: {said}");
    }
    let end = first.interrupt();
    assert!(failed(&end).is_empty(), "{end}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rotation_in_the_text_is_what_it_says() {
    let Some(user) = User::new().await else { return };
    let before = user.inventory().await;
    let typed = user.typed(blocks(&section(ROTATION), "sh"));
    let (first, second, port) = (user.shell(), user.shell(), user.port);
    tokio::task::spawn_blocking(move || rotate(&typed, first, second, port)).await.unwrap();
    assert_eq!(user.inventory().await, before, "PostgreSQL is not as it was");
}

/// Types README's blocks; the first line of each says into which shell.
fn rotate(blocks: &[String], mut first: Shell, mut second: Shell, port: u16) {
    let mut said = Vec::new();
    for block in blocks {
        if block.starts_with("# the second shell") {
            second.leave(block, port);
            continue;
        }
        assert!(block.starts_with("# the first shell"), "into which shell?\n{block}");
        if block.contains("kill $server") {
            let end = second.interrupt();
            assert!(failed(&end).is_empty(), "{end}");
        }
        said.push(first.run(block));
    }
    let [server, roles, rotation, rotated, proof, end] = said.as_slice() else { panic!("{said:#?}") };
    for said in [server, roles, rotation, rotated, end] {
        assert!(failed(said).is_empty(), "{said}");
    }

    let counts = |what: &str| rotated.lines().find_map(|line| line.trim().strip_suffix(what)?.trim().parse::<u64>().ok());
    assert!(counts("answered").is_some_and(|answered| answered > 20) && counts("FAILED").is_none(), "{rotated}");
    assert!(rotated.contains("\nrollout\n") && rotated.contains("\nclosed\n"), "{rotated}");
    assert!(rotated.starts_with("billing_a wrote invoice 2\n") && rotated.contains("\nbilling_b wrote invoice "), "{rotated}");

    let refused = failed(proof);
    assert!(refused.len() == 1 && refused[0].starts_with("PGPASSWORD=\"$old\" psql -U billing_a"), "{proof}");
    assert!(proof.contains("password authentication failed for user \"billing_a\""), "{proof}");
    assert!(proof.contains("billing-1: generation 3") && proof.contains("\nintact\n"), "{proof}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guide_leads_to_two_slots() {
    let Some(user) = User::new().await else { return };
    let before = "CREATE ROLE shop LOGIN PASSWORD 'typed-years-ago'; GRANT USAGE, CREATE ON SCHEMA public TO shop; SET ROLE shop;
                  CREATE TABLE invoices (id bigint GENERATED ALWAYS AS IDENTITY)";
    superuser(&user.cluster).await.batch_execute(before).await.unwrap();
    // A replica that has not moved.
    let old = json!({"username": "shop", "password": "typed-years-ago"});
    let session = rotation::login(&user.cluster, &old).await.unwrap();
    session.execute("INSERT INTO invoices DEFAULT VALUES", &[]).await.unwrap();

    // Its server is the one of README's first block.
    let mut typed = blocks(&section(ROTATION), "sh");
    typed.truncate(1);
    typed.extend(blocks(&read("docs/guide-two-slots.md"), "sh"));
    let typed = user.typed(typed);
    let (first, second, port) = (user.shell(), user.shell(), user.port);
    let moved = tokio::task::spawn_blocking(move || move_to_slots(&typed, first, second, port, session)).await.unwrap();
    assert!(moved.contains("password authentication failed for user \"shop\""), "{moved}");
    assert_eq!(rotation::login(&user.cluster, &old).await.map(drop), Err("28P01".to_owned()));
}

/// Types the guide's blocks; gives what was said when the old password was tried.
fn move_to_slots(blocks: &[String], mut first: Shell, mut second: Shell, port: u16, session: tokio_postgres::Client) -> String {
    let mut session = Some(session);
    let mut refused = None;
    for block in blocks {
        if block.starts_with("# the second shell") {
            second.leave(block, port);
            continue;
        }
        assert!(block.starts_with("# the first shell"), "into which shell?\n{block}");
        if block.contains("lifecycle rotate") {
            // The first run ends when the service has acknowledged.
            let mut early = first.run(block);
            while early.contains("is still open") {
                early = first.run(block);
            }
            assert!(
                failed(&early).len() == 1 && early.contains("ended as `aborted`") && early.contains("somebody is logged in to the slot"),
                "{early}"
            );
            session = None;
            first.run(
                "until ! psql -U postgres -Atc \"SELECT FROM pg_stat_activity WHERE usename = 'shop'\" | grep -q ''; do sleep 0.1; done\n",
            );
        }
        let said = first.run(block);
        if block.contains("typed-years-ago") {
            assert_eq!(failed(&said).len(), 1, "{said}");
            refused = Some(said);
        } else {
            assert!(failed(&said).is_empty(), "{said}");
        }
    }
    assert!(session.is_none());
    let served = first.run(&format!("curl -sS 127.0.0.1:{port}\n"));
    assert!(served.starts_with("shop wrote invoice "), "{served}");
    let end = second.interrupt() + &first.run("kill $server\n");
    assert!(failed(&end).is_empty(), "{end}");
    refused.unwrap()
}

/// Where `cargo build` has put both binaries. The verifier is no part of this package, so it may have to be built.
fn binaries() -> &'static Path {
    let binaries = Path::new(env!("CARGO_BIN_EXE_keyward")).parent().unwrap();
    if !binaries.join("keyward-verify").exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "--quiet", "--package=keyward-verify", "--target-dir"]).arg(binaries.parent().unwrap());
        assert!(cargo.status().unwrap().success());
    }
    binaries
}

async fn superuser(cluster: &Cluster) -> tokio_postgres::Client {
    let root = cluster.superuser();
    let mut config = tokio_postgres::Config::new();
    config.host(&root.host).port(root.port).user(&root.user).password(&root.password).dbname(&root.database);
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
