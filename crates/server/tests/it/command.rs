//! The binary as a user runs it: a data directory that looks after itself, exit codes, and secrets that stay out of sight.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const CANARY: &str = "hunter2-canary";

struct Server {
    child: Child,
    lines: BufReader<ChildStdout>,
    address: String,
    said: String,
}

impl Server {
    fn start(home: &Path, args: &[&str]) -> Self {
        Self::running(keyward(home).arg("server").args(args))
    }

    fn running(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let (mut said, mut address) = (String::new(), None);
        while address.is_none() {
            let mut line = String::new();
            if lines.read_line(&mut line).unwrap() == 0 {
                let mut errors = String::new();
                child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
                panic!("the server ended: {said}{errors}");
            }
            address = line
                .split_whitespace()
                .find_map(|word| word.find("http://").map(|at| word.split_at(at).1.trim_end_matches('\'').to_owned()));
            said.push_str(&line);
        }
        Self { child, lines, address: address.unwrap(), said }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn stop(mut self, signal: Signal) -> (Option<i32>, String) {
        kill_process(self.pid(), signal).unwrap();
        let status = self.child.wait().unwrap();
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut rest).unwrap();
        (status.code(), format!("{}{rest}", self.said))
    }
}

fn keyward(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
    command.current_dir(home).env_clear().env("HOME", home).stdin(Stdio::null());
    command
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    (output.status.code(), String::from_utf8(output.stdout.clone()).unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

/// The usual soft limit of open files is below the number of connections that are allowed.
#[test]
fn the_limit_of_open_files_is_raised() {
    let temp = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    let start =
        format!("ulimit -Sn 100 && ulimit -Hn 900 && exec {} server -dev -listen-address=127.0.0.1:0", env!("CARGO_BIN_EXE_keyward"));
    shell.args(["-c", &start]).current_dir(temp.path()).env_clear().env("HOME", temp.path()).stdin(Stdio::null());
    let server = Server::running(&mut shell);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.child.id())).unwrap();
    let files: Vec<_> = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[..2], ["900", "900"]);
    let (code, said) = server.stop(Signal::TERM);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("fewer files may be open"), "{said}");
}

#[test]
fn a_data_directory_looks_after_itself() {
    let temp = tempfile::tempdir().unwrap();
    let home = temp.path();
    let args = ["-data", "d", "-listen-address", "127.0.0.1:0"];
    let server = Server::start(home, &args);
    let token = std::fs::read_to_string(home.join("d/root-token")).unwrap().trim().to_owned();
    let run = |address: &str, args: &[&str]| {
        said(&keyward(home).env("VAULT_ADDR", address).env("BAO_ADDR", "").env("VAULT_TOKEN", &token).args(args).output().unwrap())
    };
    let at = server.address.clone();
    assert_eq!(
        run(&at, &["secrets", "enable", "-path=secret", "kv-v2"]),
        (Some(0), "Success! Enabled the kv secrets engine at: secret/\n".into(), String::new())
    );

    // a secret goes in through standard input: it is never an argument
    let mut put = keyward(home)
        .env("VAULT_ADDR", &at)
        .env("VAULT_TOKEN", &token)
        .args(["kv", "put", "secret/app", "password=-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    put.stdin.take().unwrap().write_all(CANARY.as_bytes()).unwrap();
    let (code, out, _) = said(&put.wait_with_output().unwrap());
    assert!(
        code == Some(0) && out.starts_with("= Secret Path =\nsecret/data/app\n\n======= Metadata =======\nKey                Value\n"),
        "{out}"
    );
    assert_eq!(run(&at, &["kv", "get", "-field=password", "secret/app"]), (Some(0), CANARY.into(), String::new()));
    assert_eq!(run(&at, &["kv", "get", "secret/none"]), (Some(2), String::new(), "No value found at secret/data/none\n".into()));
    assert_eq!(run(&at, &["read", "-field=x", "secret/data/app"]).0, Some(1));
    assert_eq!(run(&at, &["status"]).0, Some(0));
    assert_eq!(run("http://127.0.0.1:1", &["status"]).0, Some(1));
    let (code, out, _) = run(&at, &["kv", "list", "-format=json", "secret"]);
    assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap()), (Some(0), serde_json::json!(["app"])));
    let (code, out, error) =
        said(&keyward(home).env("VAULT_ADDR", &at).env("VAULT_TOKEN", "hvs.wrong").args(["read", "secret/data/app"]).output().unwrap());
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(
        error.starts_with(&format!(
            "Error reading secret/data/app: Error making API request.\n\nURL: GET {at}/v1/secret/data/app\nCode: 403. Errors:\n\n* "
        )),
        "{error}"
    );

    // login keeps the token where only its owner reads it, and the next command finds it there
    let login = |flag: &str| said(&keyward(home).env("BAO_ADDR", &at).args(["login", flag, &token]).output().unwrap());
    assert_eq!(login("-token-only"), (Some(0), token.clone(), String::new()));
    assert!(!home.join(".vault-token").exists(), "who asks for the token alone keeps it elsewhere");
    assert_eq!(login("-no-print"), (Some(0), String::new(), String::new()));
    assert_eq!(std::fs::metadata(home.join(".vault-token")).unwrap().permissions().mode() & 0o777, 0o600);
    let (code, _, error) =
        said(&keyward(home).env("BAO_ADDR", &at).env("VAULT_ADDR", "http://127.0.0.1:1").args(["token", "lookup"]).output().unwrap());
    assert_eq!(code, Some(0), "OpenBao's names come first: {error}");

    let (code, out, error) = run(&at, &["audit", "export", "proof"]);
    assert_eq!(code, Some(0), "{out}{error}");
    for file in ["vkeys", "manifest.json", "change/checkpoint", "access/checkpoint"] {
        assert!(home.join("proof").join(file).is_file(), "{file}");
    }

    // a second server may not use the same data
    let second = said(&keyward(home).arg("server").args(args).output().unwrap());
    assert!(second.0 == Some(1) && second.2.contains("Error opening the data"), "{second:?}");

    let (code, all) = server.stop(Signal::TERM);
    assert_eq!(code, Some(0), "{all}");
    assert!(!all.contains(&token) && !all.contains(CANARY) && all.contains("root-token"), "{all}");

    // after a kill it is simply there
    let server = Server::start(home, &args);
    let at = server.address.clone();
    assert_eq!(run(&at, &["kv", "get", "-field=password", "secret/app"]).1, CANARY);
    kill_process(server.pid(), Signal::KILL).unwrap();
    assert_eq!(server.stop(Signal::KILL).0, None);
    let server = Server::start(home, &args);
    assert_eq!(run(&server.address, &["kv", "get", "-field=password", "secret/app"]).1, CANARY);
    server.stop(Signal::INT);

    // without its key file it does not start, and nothing of the data is readable as it lies there
    std::fs::rename(home.join("d/keyward.key"), home.join("key")).unwrap();
    let without = said(&keyward(home).arg("server").args(args).output().unwrap());
    assert!(without.0 == Some(1) && without.2.contains("stays sealed"), "{without:?}");
    let elsewhere = Server::start(home, &[&args[..], &["-key-file", "key"]].concat());
    elsewhere.stop(Signal::TERM);
    for entry in std::fs::read_dir(home.join("d/data")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(CANARY.len()).any(|w| w == CANARY.as_bytes()), "{}", path.display());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
    }
}

#[test]
fn dev_mode_is_in_memory() {
    let temp = tempfile::tempdir().unwrap();
    let home = temp.path();
    let server = Server::start(home, &["-dev", "-dev-root-token-id=root", "-dev-listen-address=127.0.0.1:0"]);
    let run =
        |args: &[&str]| said(&keyward(home).env("VAULT_ADDR", &server.address).env("VAULT_TOKEN", "root").args(args).output().unwrap());
    assert_eq!(run(&["kv", "put", "-mount=secret", "a/b", "k=v"]).0, Some(0));
    assert_eq!(run(&["kv", "get", "-field=k", "secret/a/b"]).1, "v");
    for value in ["k=w", "k=x"] {
        assert_eq!(run(&["kv", "put", "secret/a/b", value]).0, Some(0));
    }
    let deleted = "Success! Data deleted (if it existed) at: secret/data/a/b\n".to_owned();
    assert_eq!(run(&["kv", "delete", "-versions=1,2", "secret/a/b"]), (Some(0), deleted, String::new()));
    let there = ["1", "2", "3"].map(|version| run(&["kv", "get", "-version", version, "secret/a/b"]).0);
    assert_eq!(there, [Some(2), Some(2), Some(0)]);
    assert_eq!(run(&["login", "-no-print", "root"]), (Some(0), String::new(), String::new()));
    std::fs::remove_file(home.join(".vault-token")).unwrap();
    assert_eq!(run(&["login", "-no-print", "-no-store", "root"]).0, Some(1));
    assert!(!home.join(".vault-token").exists());
    assert_eq!(run(&["auth", "enable", "approle"]).1, "Success! Enabled approle auth method at: approle/\n");
    assert_eq!(run(&["write", "-f", "auth/approle/role/web"]).1, "Success! Data written to: auth/approle/role/web\n");
    let role = run(&["read", "-field=role_id", "auth/approle/role/web/role-id"]).1;
    let secret = run(&["write", "-f", "-field=secret_id", "auth/approle/role/web/secret-id"]).1;
    let (code, token, error) =
        run(&["login", "-token-only", "-method=approle", &format!("role_id={role}"), &format!("secret_id={secret}")]);
    assert!(code == Some(0) && token.starts_with("hvs."), "{error}");
    assert!(!home.join(".vault-token").exists());
    let (code, all) = server.stop(Signal::TERM);
    assert!(code == Some(0) && all.contains("Root Token: root"), "{all}");
    assert_eq!(std::fs::read_dir(home).unwrap().count(), 0, "nothing is left behind");
}

/// HUP and USR1 ended the server at once, without a line in the log.
#[test]
fn signals_end_nothing_by_accident_and_are_answered_in_the_log() {
    let temp = tempfile::tempdir().unwrap();
    let home = temp.path();
    let level = home.join("level");
    for (flag, reloads) in [("-log-level=info", false), ("-log-level=@level", true)] {
        std::fs::write(&level, "warn").unwrap();
        let mut server = Server::start(home, &["-dev", "-dev-root-token-id=root", "-dev-listen-address=127.0.0.1:0", flag]);
        let mut log = BufReader::new(server.child.stderr.take().unwrap());
        // A server that ends instead closes its log, which fails the test.
        let mut after = |server: &Server, signal: Signal, said: &str| {
            kill_process(server.pid(), signal).unwrap();
            let mut line = String::new();
            while !line.contains(said) {
                line.clear();
                assert!(log.read_line(&mut line).unwrap() > 0, "{signal:?}: the log ended without `{said}`");
            }
        };
        for (signal, name) in [(Signal::USR1, "SIGUSR1"), (Signal::USR2, "SIGUSR2"), (Signal::QUIT, "SIGQUIT"), (Signal::USR1, "SIGUSR1")] {
            after(&server, signal, name);
        }
        if reloads {
            std::fs::write(&level, "debug\n").unwrap();
            after(&server, Signal::HUP, "the log level was read again");
            std::fs::write(&level, "a=b=c").unwrap();
            after(&server, Signal::HUP, "the log level stays as it is");
        } else {
            after(&server, Signal::HUP, "nothing is read again");
        }
        let status =
            |args: &[&str]| keyward(home).env("VAULT_ADDR", &server.address).env("VAULT_TOKEN", "root").args(args).output().unwrap();
        assert_eq!(status(&["status"]).status.code(), Some(0), "it serves as before");
        kill_process(server.pid(), Signal::TERM).unwrap();
        assert_eq!(server.child.wait().unwrap().code(), Some(0));
        let mut rest = String::new();
        log.read_to_string(&mut rest).unwrap();
        assert_eq!(rest.contains("a request was answered"), reloads, "the new level counts: {rest}");
    }
}

#[test]
fn shells_complete_commands_and_help_is_a_command() {
    let temp = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| said(&keyward(temp.path()).args(args).output().unwrap());
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, error) = run(&["completion", shell]);
        assert!(code == Some(0) && script.contains("lifecycle") && script.contains("revoke"), "{error}");
        assert!(!script.contains("exec-shim") && !script.contains("demo__subcmd__service"), "hidden from people");
        std::fs::write(temp.path().join(shell), script).unwrap();
    }
    let complete = r#"source ./bash; COMP_WORDS=(keyward kv me); COMP_CWORD=2; _keyward keyward me kv; echo "${COMPREPLY[*]}""#;
    let output = Command::new("bash").current_dir(temp.path()).args(["-c", complete]).output().unwrap();
    assert_eq!(said(&output), (Some(0), "metadata\n".into(), String::new()));
    assert_eq!(run(&["completion", "tcsh"]).0, Some(1));
    let (code, out, _) = run(&["help", "lifecycle", "rotate"]);
    assert!(code == Some(0) && out.contains("Rotate now what a rotation manages"), "{out}");
    let (code, _, error) = run(&["lifecyle", "runs"]);
    assert!(code == Some(1) && error.contains("tip: ") && error.contains("'lifecycle'"), "{error}");
}

#[test]
fn a_key_file_may_be_named_without_a_folder() {
    let temp = tempfile::tempdir().unwrap();
    let args = ["-data", "d", "-key-file", "key", "-listen-address", "127.0.0.1:0"];
    for word in ["initialised", "unsealed"] {
        let server = Server::start(temp.path(), &args);
        let (code, said) = server.stop(Signal::TERM);
        assert!(code == Some(0) && said.contains(word), "{said}");
    }
    assert_eq!(std::fs::metadata(temp.path().join("key")).unwrap().permissions().mode() & 0o777, 0o600);
}

/// Scripts unseal what answers 2. A server that cannot answer, or is none of ours, must not look like a sealed one.
#[test]
fn status_says_2_of_a_sealed_server_only() {
    let temp = tempfile::tempdir().unwrap();
    for (status, body, code) in [
        (200, r#"{"sealed":false}"#, 0),
        (200, r#"{"sealed":true}"#, 2),
        (503, r#"{"errors":["the audit log is not available"]}"#, 1),
        (404, r#"{"errors":[]}"#, 1),
        (200, "<html>a router</html>", 1),
        (200, "{}", 1),
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 4096];
            assert!(stream.read(&mut head).unwrap() > 0);
            let length = body.len();
            stream.write_all(format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes()).unwrap();
        });
        let output = keyward(temp.path()).args(["status", "-address", &address]).output().unwrap();
        answering.join().unwrap();
        assert_eq!(output.status.code(), Some(code), "{status} {body}: {output:?}");
    }
}
