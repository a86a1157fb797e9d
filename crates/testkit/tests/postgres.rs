//! The throw-away PostgreSQL, tried with the real one.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::postgres::{Cluster, Error, Mode, Options, Superuser};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};

/// One question over a fresh connection, answered as text.
async fn ask(at: &Superuser, question: &str) -> Result<String, tokio_postgres::Error> {
    let (client, connection) =
        Config::new().host(&at.host).port(at.port).user(&at.user).password(&at.password).dbname(&at.database).connect(NoTls).await?;
    let driven = tokio::spawn(connection);
    let row = client.query_one(question, &[]).await;
    drop(client);
    driven.await.unwrap()?;
    Ok(row?.get(0))
}

fn wrong(at: &Superuser) -> Superuser {
    Superuser { password: "not the password".to_owned(), ..at.clone() }
}

fn processes_of(directory: &Path) -> Vec<u32> {
    let needle = directory.to_str().unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.parse().ok()?;
            let arguments = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
            arguments.contains(needle).then_some(id)
        })
        .collect()
}

#[tokio::test]
async fn starts_answers_stops_and_leaves_nothing() {
    let mut cluster = Cluster::create().unwrap();
    let superuser = cluster.superuser();
    let directory = cluster.directory().to_owned();
    assert!(cluster.is_running());
    assert!(cluster.socket_directory().join(".s.PGSQL.65535").as_os_str().len() < 100);

    let version = ask(&superuser, "select current_setting('server_version')").await.unwrap();
    assert!(version.starts_with(cluster.version()), "{version}");
    // PostgreSQL's defaults: durable, and failed statements are logged with their text.
    for (setting, value) in
        [("fsync", "on"), ("log_min_error_statement", "error"), ("log_statement", "none"), ("password_encryption", "scram-sha-256")]
    {
        let found = ask(&superuser, &format!("select current_setting('{setting}')")).await;
        assert_eq!(found.unwrap(), value, "{setting}");
    }

    let refused = ask(&wrong(&superuser), "select '1'").await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::INVALID_PASSWORD));

    let broken = ask(&superuser, "select 'canary' from nowhere").await.unwrap_err();
    assert_eq!(broken.code(), Some(&SqlState::UNDEFINED_TABLE));
    let log = cluster.log().unwrap();
    assert!(log.contains("STATEMENT:  select 'canary' from nowhere"), "{log}");
    assert!(!log.contains(&superuser.password));

    cluster.stop(Mode::Fast).unwrap();
    assert!(!cluster.is_running());
    let gone = ask(&superuser, "select '1'").await.unwrap_err();
    assert!(gone.code().is_none() && gone.to_string().contains("connect"), "{gone}");
    assert!(matches!(cluster.hba(&[]), Err(Error::Stopped)));

    cluster.start().unwrap();
    assert_eq!(cluster.port(), superuser.port);
    assert_eq!(ask(&superuser, "select 'back'").await.unwrap(), "back");

    assert!(directory.exists() && !processes_of(&directory).is_empty());
    drop(cluster);
    assert!(!directory.exists());
    assert_eq!(processes_of(&directory), Vec::<u32>::new());
}

#[tokio::test]
async fn rules_apply_to_the_very_next_connection() {
    let mut cluster = Cluster::create_with(&Options {
        danger_fsync_off: true,
        settings: vec![("application_name".to_owned(), "it's a 'test'".to_owned())],
        parent: None,
    })
    .unwrap();
    let superuser = cluster.superuser();
    assert_eq!(ask(&superuser, "select current_setting('fsync')").await.unwrap(), "off");
    assert_eq!(ask(&superuser, "select reset_val from pg_settings where name = 'application_name'").await.unwrap(), "it's a 'test'");
    for round in 0..5 {
        let refused = ask(&wrong(&superuser), "select '1'").await.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::INVALID_PASSWORD), "round {round}");

        cluster.hba(&["host all all 127.0.0.1/32 trust"]).unwrap();
        assert_eq!(ask(&wrong(&superuser), "select 'in'").await.unwrap(), "in", "round {round}");

        cluster.hba(&["host all nobody 127.0.0.1/32 trust"]).unwrap();
        let refused = ask(&superuser, "select '1'").await.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION), "round {round}");
        cluster.hba_default().unwrap();
    }

    let refused = cluster.hba(&["host all all nonsense"]).unwrap_err();
    assert!(matches!(refused, Error::Rules { .. }), "{refused}");
    // The old rules hold on, also over a restart.
    cluster.stop(Mode::Fast).unwrap();
    cluster.start().unwrap();
    assert_eq!(ask(&superuser, "select 'still'").await.unwrap(), "still");
}

#[tokio::test]
async fn a_kill_takes_every_process_and_loses_no_committed_row() {
    let mut cluster = Cluster::create().unwrap();
    let superuser = cluster.superuser();
    let directory = cluster.directory().to_owned();
    ask(&superuser, "with made as (select 1) select 'x' from made").await.unwrap();
    let (client, connection) = Config::new()
        .host(&superuser.host)
        .port(superuser.port)
        .user(&superuser.user)
        .password(&superuser.password)
        .dbname(&superuser.database)
        .connect(NoTls)
        .await
        .unwrap();
    let driven = tokio::spawn(connection);
    client.batch_execute("create table t (n int); insert into t values (7)").await.unwrap();

    cluster.kill().unwrap();
    assert!(!cluster.is_running());
    assert_eq!(processes_of(&directory), Vec::<u32>::new());
    assert!(client.batch_execute("select 1").await.is_err());
    driven.await.unwrap().ok();

    cluster.start().unwrap();
    assert_eq!(ask(&superuser, "select n::text from t").await.unwrap(), "7");
    assert!(cluster.log().unwrap().contains("was not properly shut down"));
    cluster.stop(Mode::Smart).unwrap();
    cluster.stop(Mode::Smart).unwrap();
}

#[test]
fn several_live_side_by_side() {
    let quick = Options { danger_fsync_off: true, ..Options::default() };
    let one = Cluster::create_with(&quick).unwrap();
    let other = Cluster::create_with(&quick).unwrap();
    assert_ne!(one.port(), other.port());
    assert_ne!(one.directory(), other.directory());
    assert_ne!(one.superuser().password, other.superuser().password);
    let kept = other.directory().to_owned();
    drop(one);
    assert!(kept.join("data/postmaster.pid").exists());
}

#[test]
fn nothing_of_it_is_open_to_others() {
    use std::os::unix::fs::MetadataExt;
    let cluster = Cluster::create().unwrap();
    let home = std::fs::metadata(cluster.directory()).unwrap();
    assert_eq!(home.mode() & 0o777, 0o700);
    let server = std::fs::metadata(format!("/proc/{}", cluster.process_id().unwrap())).unwrap();
    assert_ne!(server.uid(), 0, "the server runs as root");
    assert_eq!(server.uid(), home.uid());
    let arguments = std::fs::read(format!("/proc/{}/cmdline", cluster.process_id().unwrap())).unwrap();
    assert!(!String::from_utf8_lossy(&arguments).contains(&cluster.superuser().password));
    assert!(!cluster.directory().join("password").exists());
    assert!(!format!("{cluster:?} {:?}", cluster.superuser()).contains(&cluster.superuser().password));
}

#[test]
fn a_setting_that_the_server_refuses_is_reported_with_its_words() {
    let failed = Cluster::create_with(&Options { settings: vec![("max_connections".to_owned(), "many".to_owned())], ..Options::default() })
        .unwrap_err();
    assert!(matches!(&failed, Error::EndedEarly { said, .. } if said.contains("max_connections")), "{failed}");
}

const HOLD: &str = "KEYWARD_TEST_HOLD_A_CLUSTER";

/// Not a test of its own: the process that `an_owner_killed_outright…` kills.
#[test]
fn hold_a_cluster_until_killed() {
    let Some(parent) = std::env::var_os(HOLD) else {
        return;
    };
    let options = Options { parent: Some(PathBuf::from(parent)), ..Options::default() };
    // From a thread that ends at once: the cluster belongs to the process, not to the thread that made it.
    let cluster = std::thread::spawn(move || Cluster::create_with(&options).unwrap()).join().unwrap();
    println!("\nHELD {} {}", cluster.process_id().unwrap(), cluster.directory().display());
    std::io::Read::read(&mut std::io::stdin(), &mut [0]).unwrap();
}

#[test]
fn an_owner_killed_outright_takes_the_server_with_it() {
    use std::io::BufRead;
    use std::os::unix::fs::PermissionsExt;
    // A parent of its own, or a neighbour's sweep would come first.
    let parent = PathBuf::from(format!("/tmp/keyward-held-{}", std::process::id()));
    std::fs::create_dir(&parent).unwrap();
    std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(0o711)).unwrap();
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hold_a_cluster_until_killed", "--nocapture"])
        .env(HOLD, &parent)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(owner.stdout.take().unwrap()).lines();
    let held = lines.find_map(|line| line.unwrap().strip_prefix("HELD ").map(str::to_owned)).unwrap();
    let (id, directory) = held.split_once(' ').unwrap();
    let directory = PathBuf::from(directory);
    let id = rustix::process::Pid::from_raw(id.parse().unwrap()).unwrap();
    let server = rustix::process::pidfd_open(id, rustix::process::PidfdFlags::empty()).unwrap();
    assert!(!processes_of(&directory).is_empty());

    owner.kill().unwrap();
    owner.wait().unwrap();
    let limit = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
    let mut watched = [rustix::event::PollFd::new(&server, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut watched, Some(&limit)).unwrap(), 1, "the server lives on");

    // What it left behind goes with the next cluster that is made there.
    assert!(directory.exists());
    let next = Cluster::create_with(&Options { parent: Some(parent.clone()), ..Options::default() }).unwrap();
    assert!(!directory.exists());
    drop(next);
    std::fs::remove_dir(&parent).unwrap();
}
