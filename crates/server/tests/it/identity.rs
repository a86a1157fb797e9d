//! An identity is cut off, and the auditor's questions are answered: by the server, from an export, and without any program of ours.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::acks::{ack, state};
use crate::operator::{keyward, root};
use crate::rig::{ROOT, Server};
use crate::rotation::{cluster, prepare};

const READER: &str = r#"
    path "secret/data/orders/*" { capabilities = ["read"] }
    path "auth/token/create" { capabilities = ["update"] }
"#;

/// A role whose logins may read the secrets of orders. Gives its ids.
async fn role(server: &Server, name: &str) -> (String, String) {
    if server.call("GET", "sys/auth/approle", ROOT, Value::Null).await.0 != 200 {
        assert_eq!(server.call("POST", "sys/auth/approle", ROOT, json!({"type": "approle"})).await.0, 204);
    }
    assert_eq!(server.call("PUT", "sys/policies/acl/reader", ROOT, json!({"policy": READER})).await.0, 204);
    let path = format!("auth/approle/role/{name}");
    assert_eq!(server.call("POST", &path, ROOT, json!({"token_policies": ["reader"]})).await.0, 204);
    let (_, id) = server.call("GET", &format!("{path}/role-id"), ROOT, Value::Null).await;
    (id["data"]["role_id"].as_str().unwrap().to_owned(), secret_id(server, name).await)
}

async fn secret_id(server: &Server, role: &str) -> String {
    let (status, made) = server.call("POST", &format!("auth/approle/role/{role}/secret-id"), ROOT, json!({})).await;
    assert_eq!(status, 200, "{made}");
    made["data"]["secret_id"].as_str().unwrap().to_owned()
}

async fn login(server: &Server, (role, secret): &(String, String)) -> Result<String, u16> {
    let (status, body) = server.call("POST", "auth/approle/login", "", json!({"role_id": role, "secret_id": secret})).await;
    body["auth"]["client_token"].as_str().map(str::to_owned).ok_or(status)
}

async fn reads(server: &Server, token: &str) -> u16 {
    server.call("GET", "secret/data/orders/db", token, Value::Null).await.0
}

/// Role and secret id destroyed, the stream went on, and the next run waited for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_identity_loses_everything_and_no_run_waits_for_it() {
    let (cluster, _root) = cluster().await;
    let server = Server::start().await;
    prepare(&server, &cluster).await;
    // So long that no run of this test ends because somebody was away for too long.
    assert_eq!(server.call("POST", "sys/lifecycle/rotations/orders-db", ROOT, json!({"holding_ttl": "10h"})).await.0, 204);
    let mut ids = role(&server, "billing").await;
    let token = login(&server, &ids).await.unwrap();
    let (_, made) = server.call("POST", "auth/token/create", &token, json!({})).await;
    let child = made["auth"]["client_token"].as_str().unwrap().to_owned();
    let mut streams = Vec::new();
    for (instance, token) in [("web-1", &token), ("web-2", &child)] {
        let mut lines = server.lines(&format!("sys/lifecycle/watch?instance={instance}&hold=orders-db"), token).await.unwrap();
        // One that has acknowledged a value is waited for.
        let first = state(&mut lines).await;
        assert_eq!(server.call("POST", "sys/lifecycle/ack", token, ack(&first["use"], instance, "L2", "")).await.0, 204);
        streams.push(lines);
    }
    assert_eq!((reads(&server, &token).await, reads(&server, &child).await), (200, 200));
    let (_, opened) = server.call("POST", "sys/lifecycle/rotate/orders-db", ROOT, json!({})).await;
    let run = format!("sys/lifecycle/runs/{}", opened["data"]["run"].as_str().unwrap());
    server.until(&run, |run| run["data"]["waits_for"].to_string().contains("web-")).await;

    let (code, out, error) =
        root(&server, &["revoke", "identity", "approle/billing", "-reason=host 17 was broken into", "-since=1h"]).await;
    assert_eq!(code, Some(0), "{out}{error}");
    for part in [
        "Success! Nothing of it works any more.\n",
        "tokens ended               1\n",
        "tokens below them ended    1\n",
        "streams ended              2\n",
        "secret ids destroyed       1\n",
        "Its policies permit to read\n  secret/data/orders/db  (rotation orders-db)\n",
        "Since 1h it read\n",
        "\n  keyward lifecycle rotate -emergency orders-db '-reason=host 17 was broken into'\n",
    ] {
        assert!(out.contains(part), "{part}: {out}{error}");
    }
    let sum: Vec<_> = out.lines().find(|line| line.starts_with("secret/data/orders/db ")).unwrap().split_whitespace().collect();
    assert_eq!(sum[1], "2", "one read by each of its tokens, also of the one that it made: {out}");
    assert!(sum[2].parse::<u64>().unwrap() >= 2, "{out}");

    for mut lines in streams {
        let ended = async {
            while let Ok(Some(line)) = lines.next().await {
                let line: Value = serde_json::from_slice(line.expose()).unwrap();
                if line["type"] == "bye" {
                    return line["reason"].as_str().unwrap().to_owned();
                }
            }
            "no word".to_owned()
        };
        let reason = tokio::time::timeout(std::time::Duration::from_secs(60), ended).await.unwrap();
        assert_eq!(reason, "the stream is no longer permitted");
    }
    assert_eq!((reads(&server, &token).await, reads(&server, &child).await), (403, 403));
    assert_eq!(login(&server, &ids).await, Err(400));
    let closed = server.until(&run, |run| run["data"]["phase"] == "closed").await;
    assert_eq!((closed["data"]["verdict"].as_str(), closed["data"]["death_proven"].as_bool()), (Some("rotated"), Some(true)), "{closed:#}");
    // Nor does the next one, and who is handed a new secret id is let in.
    let (code, out, error) = root(&server, &["lifecycle", "rotate", "orders-db", "-wait"]).await;
    assert!(code == Some(0) && out.ends_with("closed\n"), "{out}{error}");
    ids.1 = secret_id(&server, "billing").await;
    let token = login(&server, &ids).await.unwrap();
    assert_eq!(reads(&server, &token).await, 200);

    // A role that is deleted takes its identity with it, and says so.
    let (code, out, error) = root(&server, &["delete", "auth/approle/role/billing"]).await;
    assert_eq!(code, Some(0), "{out}{error}");
    assert!(
        error.contains("the identity `approle/billing` was revoked with its role: tokens ended: 1; secret ids destroyed: 1"),
        "{error}"
    );
    assert_eq!((reads(&server, &token).await, login(&server, &ids).await), (403, Err(400)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_revoked_is_said() {
    let server = Server::start().await;
    role(&server, "billing").await;
    for (identity, said) in [
        ("root", "`root` is not revoked as an identity"),
        ("approle/biling", "no identity is named `approle/biling`"),
        ("kubernetes/x", "no auth method is mounted at `auth/kubernetes/`"),
    ] {
        let (code, out, error) = root(&server, &["revoke", "identity", identity, "-reason=x"]).await;
        assert!(code == Some(2) && out.is_empty() && error.contains(said), "{identity}: {out}{error}");
    }
    let (code, _, error) = root(&server, &["revoke", "identity", "approle/billing"]).await;
    assert!(code == Some(1) && error.contains("--reason"), "{error}");
    // Who may revoke and may not read the log is told what is missing, and it is revoked all the same.
    let revoker = server.token("revoker", r#"path "sys/identities/revoke" { capabilities = ["update", "sudo"] }"#).await;
    let (code, out, error) = keyward(&server.address, Some(&revoker), &["revoke", "identity", "approle/billing", "-reason=x"]).await;
    assert!(code == Some(0) && out.contains("secret ids destroyed       1\n"), "{out}{error}");
    assert!(error.contains("`read` on `sys/audit-log/who` is needed"), "{error}");
    server.stop().await;
}

/// A search of the records by path found none of those who had got the secret by a push.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_saw_a_secret_is_answered_by_the_server_and_from_an_export() {
    let (cluster, _root) = cluster().await;
    let server = Server::start().await;
    prepare(&server, &cluster).await;
    let token = login(&server, &role(&server, "billing").await).await.unwrap();
    let mut lines = server.lines("sys/lifecycle/watch?instance=web-1&hold=orders-db", &token).await.unwrap();
    state(&mut lines).await;
    assert_eq!(reads(&server, &token).await, 200);
    let stranger = server.token("stranger", r#"path "else" { capabilities = ["read"] }"#).await;
    assert_eq!(reads(&server, &stranger).await, 403);

    let (code, out, error) = root(&server, &["audit", "who", "secret/orders/db", "-from=1h"]).await;
    assert_eq!(code, Some(0), "{out}{error}");
    let rows: Vec<Vec<&str>> =
        out.lines().skip(2).take_while(|line| !line.is_empty()).map(|line| line.split_whitespace().collect()).collect();
    let without_time: Vec<String> = rows.iter().map(|row| row[1..7].join(" ")).collect();
    assert_eq!(without_time[..2], ["approle/billing approle web-1 pushed 1 sent", "approle/billing approle n/a read 1 done"], "{out}");
    assert!(without_time[2].starts_with("token/") && without_time[2].ends_with("token n/a read n/a refused"), "{out}");
    assert_eq!(rows.len(), 3, "{out}");

    let json = |out: &str| serde_json::from_str::<Value>(out).unwrap();
    let online = json(&root(&server, &["audit", "who", "secret/orders/db", "-format=json"]).await.1);
    // Each row points to its leaf.
    for row in online.as_array().unwrap() {
        let (origin, index) = row["entry"].as_str().unwrap().rsplit_once('/').unwrap();
        let (_, note) = server.bytes(&format!("sys/audit-log/{}/checkpoint", row["tree"].as_str().unwrap())).await;
        assert!(String::from_utf8(note).unwrap().starts_with(&format!("{origin}\n")) && index.parse::<u64>().is_ok(), "{row}");
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("export");
    let export = dir.to_str().unwrap();
    assert_eq!(root(&server, &["audit", "export", export]).await.0, Some(0));
    let (_, keys) = server.bytes("sys/audit-log/vkeys").await;
    let keys = String::from_utf8(keys).unwrap();
    let (code, _, error) = root(&server, &["audit", "who", "secret/nothing"]).await;
    assert_eq!((code, error.as_str()), (Some(0), ""));
    server.stop().await;

    // From here on there is no server, and for the last part no program of ours.
    let nowhere = "http://127.0.0.1:1";
    let flag = |name: &str, value: &str| format!("-{name}={value}");
    let from_export = flag("export", export);
    let (code, out, error) = keyward(nowhere, None, &["audit", "who", "secret/orders/db", &from_export, "-format=json"]).await;
    assert_eq!((code, json(&out)), (Some(0), online.clone()), "{error}");
    assert!(error.contains("The keys came with the export"), "{error}");
    let known: Vec<String> = keys.lines().map(|key| flag("key", key)).collect();
    let ask = ["audit", "who", "secret/data/orders/db", &from_export, &known[0], &known[1]];
    let (code, table, error) = keyward(nowhere, None, &ask).await;
    assert_eq!((code, error.as_str()), (Some(0), ""), "{table}");
    assert_eq!(table.lines().filter(|line| line.contains("approle/billing")).count(), 2, "{table}");
    let (code, out, error) = keyward(nowhere, None, &[&ask[..], &[&flag("to", "2020-01-01T00:00:00Z")]].concat()).await;
    assert!(code == Some(0) && out.starts_with("nobody: "), "{out}{error}");
    let other = flag("key", "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx");
    let (code, out, error) = keyward(nowhere, None, &["audit", "who", "secret/orders/db", &from_export, &other]).await;
    assert!(code == Some(1) && out.is_empty() && error.contains("not trusted"), "{out}{error}");

    let keys: Vec<&str> = keys.lines().collect();
    let (code, said) = python(&dir, &[]);
    assert!(code == Some(0) && said.ends_with("intact, by the keys that came with it\n"), "{said}");
    let (code, said) = python(&dir, &keys);
    assert!(code == Some(0) && said.ends_with("\nintact\n") && said.matches(" entries, origin ").count() == 2, "{said}");
    assert_eq!(python(&dir, &[keys[1]]).0, Some(1), "no key is given for the change tree");

    // Somebody makes another of the one who read it.
    let entries = std::fs::read_dir(dir.join("access/tile/entries/000.p")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&entries).unwrap();
    let at = bytes.windows(15).position(|window| window == b"approle/billing").unwrap();
    bytes[at + 14] ^= 1;
    std::fs::write(&entries, &bytes).unwrap();
    let (code, out, error) = keyward(nowhere, None, &["audit", "who", "secret/orders/db", &from_export]).await;
    assert!(code == Some(1) && out.is_empty() && error.contains("tampered"), "{out}{error}");
    let (code, said) = python(&dir, &keys);
    assert!(code == Some(1) && said.ends_with("access: the entries do not lead to the root of the checkpoint\n"), "{said}");
    bytes[at + 14] ^= 1;
    std::fs::write(&entries, &bytes).unwrap();
    // Or signs another root.
    let checkpoint = dir.join("change/checkpoint");
    let mut note = std::fs::read(&checkpoint).unwrap();
    let last = note.len() - 5;
    note[last] = if note[last] == b'A' { b'B' } else { b'A' };
    std::fs::write(&checkpoint, &note).unwrap();
    let (code, said) = python(&dir, &keys);
    assert!(code == Some(1) && said.contains("change: no key to believe signs the checkpoint"), "{said}");
}

/// What the checker in the documents says: exit code, and both outputs.
fn python(export: &Path, keys: &[&str]) -> (Option<i32>, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/verify.py");
    let output = Command::new("python3").arg(script).arg(export).args(keys).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
}
