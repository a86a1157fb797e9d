//! `lifecycle watch`: a real run on a screen, and in lines.

use std::process::{Command, Stdio};

use demo::cluster::Cluster;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::rig::{ROOT, Server};
use crate::rotation;
use crate::terminal::Terminal;

fn watch(server: &Server, token: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
    command.args(["lifecycle", "watch"]).args(args).env("VAULT_ADDR", &server.address).env("VAULT_TOKEN", token).env_remove("NO_COLOR");
    command
}

/// A run with a consumer, that waits because somebody is logged in with the old value: the stream of the one and the session of the other.
async fn waiting(server: &Server, cluster: &Cluster) -> (String, egress::Lines, tokio_postgres::Client) {
    let (_, value) = server.call("GET", "secret/data/orders/db", ROOT, Value::Null).await;
    let session = rotation::login(cluster, &value["data"]["data"]).await.unwrap();
    let stream = server.lines("sys/lifecycle/watch?instance=web-1&hold=orders-db:0", ROOT).await.unwrap();
    let (status, body) = server.call("POST", "sys/lifecycle/rotate/orders-db", ROOT, json!({"reason": "test"})).await;
    assert_eq!(status, 200, "{body}");
    (body["data"]["run"].as_str().unwrap().to_owned(), stream, session)
}

async fn goodbye(server: &Server) {
    assert_eq!(server.call("POST", "sys/lifecycle/goodbye", ROOT, json!({"instance": "web-1"})).await.0, 204);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_seen_from_its_beginning_to_its_end() {
    let (cluster, _superuser) = rotation::cluster().await;
    let server = Server::start().await;
    rotation::prepare(&server, &cluster).await;

    let terminal = Terminal::open(80, 24);
    let mut child = terminal.start(&mut watch(&server, ROOT, &["orders-db"]));
    terminal.until("the wait for a run", |screen| screen.contains("no run is open: waiting for the next")).await;
    let (run, stream, session) = waiting(&server, &cluster).await;
    // A picture comes in pieces: what is waited for is all of it.
    let of_run = format!(" run {run} ");
    terminal
        .until("the held run", |screen| {
            let row = screen.lines().any(|line| line.contains("web-1 ") && line.contains("- "));
            let parts = ["HELD in drain", "=[drain]-revoke-", &of_run, ": 1 session on slot orders_a\n"];
            row && parts.iter().all(|part| screen.contains(part))
        })
        .await;
    // Another window: everything is still there, drawn for it.
    terminal.resize(130, 40);
    terminal
        .until("the wider screen", |screen| {
            let is_wide = screen.lines().nth(1).is_some_and(|line| line.chars().count() == 130);
            is_wide && screen.contains("HELD in drain") && screen.lines().count() == 40
        })
        .await;
    drop(stream);
    goodbye(&server).await;
    drop(session);
    let parts = ["the old value is proven dead", "web-1 says goodbye", "plan=prepare=", "=prove\n"];
    terminal.until("the closed run", |screen| parts.iter().all(|part| screen.contains(part))).await;
    terminal.press("q");
    assert_eq!(terminal.end(&mut child).await.code(), Some(0));
    terminal.until_plain(&format!("{run}: rotated in ")).await;
    terminal.assert_put_back();
    server.stop().await;
}

/// However it ends: signal, refusal, or Ctrl-C. And without colours where they are not wanted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_terminal_is_put_back() {
    let (cluster, _superuser) = rotation::cluster().await;
    let server = Server::start().await;
    rotation::prepare(&server, &cluster).await;
    let rules = "path \"sys/lifecycle/rotations/orders-db\" { capabilities = [\"read\"] }
                 path \"sys/lifecycle/runs/*\" { capabilities = [\"read\"] }";
    let token = server.token("watcher", rules).await;
    for (how, code, said) in [
        ("TERM", 1, "ended by SIGTERM"),
        ("HUP", 1, "ended by SIGHUP"),
        ("INT", 1, "ended by SIGINT"),
        ("Ctrl-C", 0, ""),
        ("refused", 2, "* permission denied"),
    ] {
        let terminal = Terminal::open(80, 24);
        let mut child = terminal.start(&mut watch(&server, &token, &["orders-db"]));
        terminal.until("the screen", |screen| screen.contains("no run is open")).await;
        let signal = |signal| kill_process(Pid::from_child(&child), signal).unwrap();
        match how {
            "TERM" => signal(Signal::TERM),
            "HUP" => signal(Signal::HUP),
            "INT" => signal(Signal::INT),
            "Ctrl-C" => terminal.press("\u{3}"),
            _ => assert_eq!(server.call("DELETE", "sys/policies/acl/watcher", ROOT, Value::Null).await.0, 204),
        }
        assert_eq!(terminal.end(&mut child).await.code(), Some(code), "{how}: {}", terminal.plain());
        terminal.until_plain(said).await;
        terminal.assert_put_back();
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elsewhere_it_is_lines() {
    let (cluster, _superuser) = rotation::cluster().await;
    let server = Server::start().await;
    rotation::prepare(&server, &cluster).await;
    let run = |token: &str, args: &[&str]| {
        let mut command = watch(&server, token, args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        tokio::task::spawn_blocking(move || {
            let output = child.wait_with_output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
        })
    };
    let (code, out, error) = run(ROOT, &["nosuch"]).await.unwrap();
    assert!(code == Some(2) && out.is_empty() && error.starts_with("No run and no rotation named: nosuch; "), "{code:?} {out}{error}");

    // Who may see the run and not the table of holdings sees the run.
    let token = server.token("runs", "path \"sys/lifecycle/runs/*\" { capabilities = [\"read\"] }").await;
    let (id, stream, session) = waiting(&server, &cluster).await;
    let (by_name, by_run, as_json) = (run(ROOT, &["orders-db"]), run(&token, &[&id]), run(ROOT, &["-format=json", &id]));
    server.until(&format!("sys/lifecycle/runs/{id}"), |run| run["data"]["held"] == true).await;
    drop(stream);
    goodbye(&server).await;
    drop(session);
    for watching in [by_name, by_run] {
        let (code, out, error) = watching.await.unwrap();
        assert_eq!(code, Some(0), "{out}{error}");
        for part in [
            " s  plan                is the idle role nobody's, does the value in force work?\n",
            " s  drain               web-1 says goodbye\n",
            " s  prove               dead: it worked before, is a wrong password now, and no session is left\n",
        ] {
            assert!(out.contains(part), "{part}:\n{out}");
        }
        assert!(out.lines().last().unwrap().starts_with("rotated in "), "{out}");
    }
    let (code, out, _) = as_json.await.unwrap();
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &told["data"]["verdict"], &told["data"]["run"]), (Some(0), &json!("rotated"), &json!(id)));
    server.stop().await;
}
