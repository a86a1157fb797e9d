//! The demonstration as a process. What it plays is judged by its own script, the last step of `cargo xtask test`; here is how it ends.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Processes that name this demonstration's directory in their arguments, and its PostgreSQL.
fn left_over(words: &[String]) -> Vec<String> {
    let lines = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| words.iter().any(|word| line.contains(word))).collect()
}

/// Whoever kills the demonstration with -9 ends its server, agents, services and PostgreSQL as well.
#[tokio::test]
async fn nothing_outlives_a_killed_demonstration() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
    let mut demo = command.args(["demo", "-script", "-seed", "5"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let directory = std::env::temp_dir().join(format!("keyward-demo-{}", demo.id()));
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let serving = tokio::task::spawn_blocking(move || lines.find(|line| line.as_ref().is_ok_and(|l| l.contains("replicas serve"))));
    serving.await.unwrap().unwrap().unwrap();

    let of_demo = [directory.display().to_string()];
    // The server, two agents, two supervisors, six services.
    assert!(left_over(&of_demo).len() >= 11, "{:#?}", left_over(&of_demo));
    let postgres = children_named(demo.id(), "postgres");
    assert_eq!(postgres.len(), 1, "{postgres:?}");
    demo.kill().unwrap();
    demo.wait().unwrap();
    let gone = async {
        while !left_over(&of_demo).is_empty() || postgres.iter().any(|pid| pid.exists()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(30), gone).await;
    assert!(ended.is_ok(), "still there: {:#?} {postgres:?}", left_over(&of_demo));
    // Another demonstration that begins meanwhile clears away what is left of this one.
    fs::remove_dir_all(&directory).unwrap_or_default();
    assert!(!directory.exists());
}

/// The children of a process that run this program, as folders of `/proc`.
fn children_named(parent: u32, name: &str) -> Vec<PathBuf> {
    let of = |stat: &str| {
        let (comm, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        Some(comm == name && rest.split(' ').nth(1)?.parse() == Ok(parent))
    };
    let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    all.filter(|path| fs::read_to_string(path.join("stat")).ok().and_then(|stat| of(&stat)).unwrap_or(false)).collect()
}
