//! What an operator at a terminal is told: exit codes, errors, and runs as people read them.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, Stdio};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use serde_json::{Value, json};

use crate::rig::{ROOT, Server};
use crate::rotation;

/// What a command gave: exit code, standard output, standard error.
pub type Said = (Option<i32>, String, String);

/// A command of somebody whose home is empty.
pub async fn keyward(address: &str, token: Option<&str>, args: &[&str]) -> Said {
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
    command.current_dir(home.path()).env_clear().env("HOME", home.path()).stdin(Stdio::null());
    command.env("VAULT_ADDR", address).envs(token.map(|token| ("VAULT_TOKEN", token))).args(args);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// The same as root.
pub async fn root(server: &Server, args: &[&str]) -> Said {
    keyward(&server.address, Some(ROOT), args).await
}

const NOWHERE: &str = "http://127.0.0.1:1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_be_reached_is_2_and_1_of_status() {
    for args in [
        &["kv", "get", "secret/a"][..],
        &["kv", "put", "secret/a", "k=v"],
        &["read", "secret/a"],
        &["write", "secret/a", "k=v"],
        &["list", "secret"],
        &["delete", "secret/a"],
        &["token", "lookup"],
        &["policy", "list"],
        &["secrets", "list"],
        &["lifecycle", "runs"],
        &["lifecycle", "rotate", "p"],
        &["login", "x"],
    ] {
        let (code, out, error) = keyward(NOWHERE, Some(ROOT), args).await;
        assert!(code == Some(2) && out.is_empty() && error.starts_with("Error: "), "{args:?}: {code:?} {out}{error}");
    }
    let (code, _, error) = keyward(NOWHERE, Some(ROOT), &["status"]).await;
    assert!(code == Some(1) && error.starts_with("Error: GET http://127.0.0.1:1/v1/sys/seal-status: "), "{code:?} {error}");
}

/// Whether it is answered or interrupted, a prompt that hides what is typed leaves a terminal that shows it.
#[test]
fn a_prompt_gives_the_terminal_back() {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let terminal =
        File::options().read(true).write(true).custom_flags(OFlags::NOCTTY.bits().cast_signed()).open(name.to_str().unwrap()).unwrap();
    let shows = || tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ECHO);
    assert!(shows());
    for (answer, code, said) in [(Some("hvs.x\n"), 2, "Error: "), (None, 1, "Interrupted")] {
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
        command.current_dir(home.path()).env_clear().env("HOME", home.path()).env("VAULT_ADDR", NOWHERE).arg("login");
        let mut login = command.stdin(terminal.try_clone().unwrap()).stderr(Stdio::piped()).spawn().unwrap();
        let mut error = BufReader::new(login.stderr.take().unwrap());
        let mut line = String::new();
        error.read_line(&mut line).unwrap();
        assert!(line.starts_with("Token (will be hidden)") && !shows(), "{line}");
        match answer {
            Some(answer) => assert_eq!(rustix::io::write(&controller, answer.as_bytes()), Ok(answer.len())),
            None => kill_process(Pid::from_child(&login), Signal::INT).unwrap(),
        }
        line.clear();
        error.read_line(&mut line).unwrap();
        assert_eq!(login.wait().unwrap().code(), Some(code), "{line}");
        assert!(line.starts_with(said) && shows(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_say_what_is_wrong_once() {
    let server = Server::start().await;
    assert_eq!(server.call("POST", "sys/mounts/secret", ROOT, json!({"type": "kv-v2"})).await.0, 204);
    let asked = format!("URL: GET {}/v1/sys/internal/ui/mounts/secret/a\nCode: 403. Errors:\n\n* ", server.address);
    let missing = "No token is configured: set VAULT_TOKEN or BAO_TOKEN, or run `keyward login`.\n";
    for args in [&["kv", "get", "secret/a"][..], &["kv", "put", "secret/a", "k=v"]] {
        let (code, _, error) = keyward(&server.address, Some("hvs.wrong"), args).await;
        assert_eq!(code, Some(2), "{error}");
        assert!(error.starts_with(&format!("Error making API request.\n\n{asked}")), "{error}");
        assert!(!error.contains(missing), "{error}");
        let (code, _, error) = keyward(&server.address, None, args).await;
        assert!(code == Some(2) && error.contains(&asked) && error.ends_with(missing), "{error}");
    }
    let (code, _, error) = keyward(&server.address, None, &["login", "-method=approle", "role_id=x"]).await;
    assert!(code == Some(2) && !error.contains(missing), "{error}");
    for (args, said) in [
        (["abort", "nosuch"], "No run named: nosuch\n"),
        (["resume", "nosuch"], "No run named: nosuch\n"),
        (["rotate", "nosuch"], "No rotation named: nosuch\n"),
    ] {
        assert_eq!(root(&server, &[&["lifecycle"][..], &args].concat()).await, (Some(2), String::new(), said.to_owned()));
    }
    server.stop().await;
}

/// An empty list said "No value found" with exit code 2, and a path that leads nowhere that permission was denied, to root.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_said_as_it_is() {
    let server = Server::start().await;
    for list in [&["lifecycle", "runs"][..], &["lifecycle", "target", "list"], &["lifecycle", "rotation", "list"]] {
        assert_eq!(root(&server, list).await, (Some(0), "none yet\n".into(), String::new()), "{list:?}");
        let (code, out, _) = root(&server, &[list, &["-format=json"]].concat()).await;
        assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap()), (Some(0), json!({"data": {"keys": []}})));
    }
    let stranger = server.token("stranger", r#"path "else" { capabilities = ["read"] }"#).await;
    let (code, out, error) = keyward(&server.address, Some(&stranger), &["lifecycle", "runs"]).await;
    assert!(code == Some(2) && out.is_empty() && error.contains("permission denied"), "{out}{error}");
    for (args, said) in [
        (&["lifecycle", "show", "p-1"][..], "No run named: p-1\n"),
        (&["lifecycle", "holdings", "orders"], "No rotation named: orders\n"),
        (&["lifecycle", "target", "read", "main"], "No target named: main\n"),
    ] {
        assert_eq!(root(&server, args).await, (Some(2), String::new(), said.to_owned()), "{args:?}");
    }

    // Nothing is mounted there: said to who may see the mounts, and to nobody else.
    let nowhere = "No engine is mounted at `secret/`: keyward secrets enable -path=secret kv-v2\n";
    for args in [
        &["kv", "put", "secret/app", "k=v"][..],
        &["kv", "get", "-mount=secret", "app"],
        &["write", "secret/data/app", "k=v"],
        &["list", "secret"],
    ] {
        assert_eq!(root(&server, args).await, (Some(2), String::new(), nowhere.to_owned()), "{args:?}");
        let (code, _, error) = keyward(&server.address, Some(&stranger), args).await;
        assert!(code == Some(2) && error.contains("Code: 403") && !error.contains("No engine"), "{args:?}: {error}");
    }
    assert_eq!(root(&server, &["secrets", "enable", "-path=secrets", "kv-v2"]).await.0, Some(0));
    let (_, _, error) = root(&server, &["kv", "put", "secret/app", "k=v"]).await;
    assert_eq!(error, format!("{nowhere}Did you mean `secrets/app`?\n"));
    assert_eq!(root(&server, &["kv", "get", "secrets/app"]).await.2, "No value found at secrets/data/app\n");
    let (code, _, error) = root(&server, &["kv", "list", "secrets"]).await;
    assert!(code == Some(2) && error.starts_with("No value found"), "as Vault says it: {error}");
    for (args, there) in [(["auth", "enable", "kubernetes"], "there is: `approle`"), (["secrets", "enable", "pki"], "there is: `kv-v2`")] {
        let (code, _, error) = root(&server, &args).await;
        assert!(code == Some(2) && error.contains(there), "{error}");
    }
    server.stop().await;
}

/// What a server of one answer is asked by a command that succeeds.
async fn answered(args: &[&str], body: &'static str) -> Value {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = String::new();
        while !asked.ends_with('}') {
            let mut bytes = [0; 4096];
            let read = stream.read(&mut bytes).unwrap();
            assert!(read > 0, "{asked}");
            asked.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        stream.write_all(format!("HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
        asked
    });
    let said = keyward(&address, Some(ROOT), args).await;
    assert_eq!(said.0, Some(0), "{said:?}");
    let asked = answering.join().unwrap();
    serde_json::from_str(asked.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reasons_are_sent() {
    for (args, body) in [
        (&["lifecycle", "rotate", "p", "-reason=leaked in a log"][..], json!({"reason": "leaked in a log"})),
        (&["lifecycle", "rotate", "p"], json!({})),
        (&["lifecycle", "abort", "p-1", "-reason", "wrong policy"], json!({"reason": "wrong policy", "confirm": false})),
        (&["lifecycle", "abort", "p-1"], json!({"confirm": false})),
    ] {
        assert_eq!(answered(args, r#"{"data":{"run":"p-1"}}"#).await, body, "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_followed_to_its_end() {
    let (cluster, superuser) = rotation::cluster().await;
    let server = Server::start().await;
    rotation::prepare(&server, &cluster).await;
    for args in [
        &["lifecycle", "rotate", "orders-bd"][..],
        &["lifecycle", "holdings", "orders-bd"],
        &["lifecycle", "rotation", "read", "orders-bd"],
    ] {
        let (code, _, error) = root(&server, args).await;
        assert_eq!((code, error.as_str()), (Some(2), "No rotation named: orders-bd\nDid you mean `orders-db`?\n"), "{args:?}");
    }
    let wait = ["lifecycle", "rotate", "orders-db", "-wait", "-reason=test"];
    let (code, out, error) = root(&server, &wait).await;
    assert_eq!(code, Some(0), "{out}{error}");
    assert_eq!(out, "plan\nprepare\nset\nverify\nstage\ncanary\nrollout\ndrain\nrevoke\nprove\nclosed\n");

    // Somebody uses the slot that the next run would set: the run ends without it, and says so.
    superuser.batch_execute("ALTER ROLE orders_a LOGIN PASSWORD 'known'").await.unwrap();
    let session = rotation::login(&cluster, &json!({"username": "orders_a", "password": "known"})).await.unwrap();
    let (code, out, error) = root(&server, &wait).await;
    drop(session);
    assert!(code == Some(2) && out.ends_with("closed\n"), "{code:?} {out}{error}");
    assert!(error.contains("ended as `aborted`: target: "), "{error}");
    let (_, table, _) = root(&server, &["lifecycle", "runs"]).await;
    assert!(table.contains("target: ") && !table.contains("map["), "{table}");
    let run = table.lines().find(|line| line.contains("rotated")).unwrap().split(' ').next().unwrap();
    for (args, parts) in
        [(["show", run], ["\nPhases\n", "\nDeath of the old value\n"]), (["holdings", "orders-db"], ["\nInstances\n", "  none\n"])]
    {
        let (code, out, _) = root(&server, &[&["lifecycle"][..], &args].concat()).await;
        assert!(code == Some(0) && parts.iter().all(|part| out.contains(part)) && !out.contains("map["), "{out}");
    }
    server.stop().await;
}
