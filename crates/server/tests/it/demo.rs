//! The demonstration as a process. What it plays is judged by its own script, the last step of `cargo xtask test`; here is how it ends.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::terminal::Terminal;

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
    // The server, two agents, two supervisors, twelve services.
    assert!(left_over(&of_demo).len() >= 17, "{:#?}", left_over(&of_demo));
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

fn live(terminal: &Terminal) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
    terminal.start(command.args(["demo", "-seed", "4"]).env_remove("NO_COLOR"))
}

/// The numbers in a line.
fn numbers(line: &str) -> Vec<u64> {
    line.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// The live screen in somebody's hands: rotations on both sides, harm by keys, four lines at the end, and the terminal as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_live_screen_takes_keys_and_ends_with_four_lines() {
    let terminal = Terminal::open(120, 40);
    let mut demo = live(&terminal);
    let directory = std::env::temp_dir().join(format!("keyward-demo-{}", demo.id()));
    terminal
        .until("the first rotation and its failures on the other side", |screen| {
            screen.contains("old password was tried: 28P01") && screen.contains(" fails: 28P01")
        })
        .await;
    terminal.press("d");
    let parts = ["with the dead password: 28P01", "with the password in force: works"];
    let tried = terminal.until("the trial", |screen| parts.iter().all(|part| screen.contains(part))).await;

    // The second replica is stopped: the next rotation waits for it by name, until it goes on.
    let name = tried.lines().nth(6).unwrap().trim_start_matches('│').split_whitespace().next().unwrap().to_owned();
    terminal.press("\u{1b}[B");
    terminal.press("s");
    terminal.until("the stopped replica", |screen| screen.contains(&format!("{name} is stopped")) && screen.contains("STOP")).await;
    terminal.press("r");
    let parts = [format!("waits for {name}:"), format!(">{name}")];
    terminal.until("the held run", |screen| parts.iter().all(|part| screen.contains(part))).await;
    terminal.press("k");
    terminal.until("the dead server", |screen| screen.contains("the Keyward server is killed (-9)")).await;
    terminal.until("the server", |screen| screen.contains("the server is back")).await;
    terminal.press("s");
    terminal.until("the replica goes on", |screen| screen.contains(&format!("{name} continues"))).await;
    terminal.until("the second rotation", |screen| screen.contains("2 passwords proven dead")).await;
    terminal.press("q");
    let status = terminal.end(&mut demo).await;
    let plain = terminal.until_plain("Proof: ").await;
    assert_eq!(status.code(), Some(0), "{plain}");
    terminal.assert_put_back();
    let line =
        |start: &str| plain.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no `{start}`: {plain}")).to_owned();
    let [usual, keyward, dead] = ["Usual rotation: ", "Keyward: ", "Proven dead: "].map(|start| numbers(&line(start)));
    assert!(usual[0] > 0 && usual[1] > usual[0], "{plain}");
    assert!(keyward[0] == 0 && keyward[1] > 100 && keyward[2] >= 2, "{plain}");
    assert!(dead[0] >= 2, "{plain}");
    let proof = PathBuf::from(line("Proof: ").trim_end().rsplit(' ').next().unwrap());
    assert!(proof.join("change").is_dir(), "{plain}");
    fs::remove_dir_all(proof).unwrap();
    assert_eq!((directory.exists(), left_over(&[directory.display().to_string()])), (false, Vec::new()));
}

/// Also before anything stands, a signal leaves a terminal that can be used, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_puts_the_terminal_back() {
    for (signal, said) in [(Signal::TERM, "asked to end"), (Signal::HUP, "the terminal is gone"), (Signal::INT, "interrupted")] {
        let terminal = Terminal::open(80, 24);
        let mut demo = live(&terminal);
        terminal.until("the screen", |screen| screen.contains("Keyward demo") && screen.contains("q end")).await;
        kill_process(Pid::from_child(&demo), signal).unwrap();
        let status = terminal.end(&mut demo).await;
        let plain = terminal.until_plain(said).await;
        assert_eq!(status.code(), Some(1), "{plain}");
        terminal.assert_put_back();
    }
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
