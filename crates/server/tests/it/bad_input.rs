//! Bad input on a raw socket, through the whole server: what is refused, that it is recorded, that the server lives, that nothing repeats it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::{ROOT, Server};

const CANARY: &str = "canary-5ecret";

async fn send(server: &Server, bytes: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(server.address.strip_prefix("http://").unwrap()).await.unwrap();
    // A server that has refused already may close before all is written.
    stream.write_all(bytes).await.unwrap_or_default();
    let mut answer = Vec::new();
    let mut part = [0; 16_384];
    while let Ok(Ok(n @ 1..)) = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut part)).await {
        answer.extend_from_slice(&part[..n]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).and_then(|n| n.parse().ok()).unwrap_or(0);
            if body.len() >= length {
                break;
            }
        }
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    (text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), text)
}

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\nX-Vault-Token: {ROOT}\r\n\r\n").into_bytes()
}

fn post(target: &str, body: &str) -> Vec<u8> {
    format!("POST {target} HTTP/1.1\r\nHost: a\r\nX-Vault-Token: {ROOT}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn refused_recorded_never_repeated() {
    let server = Server::start().await;
    server.call("POST", "sys/mounts/secret", ROOT, json!({"type": "kv-v2"})).await;
    let big = |bytes: usize| format!("{{\"data\":{{\"k\":\"{}\"}}}}", "x".repeat(bytes));
    let deep = format!("{{\"data\":{{\"k\":{}{}}}}}", "[".repeat(40), "]".repeat(40));
    let many = format!("{{\"data\":{{\"k\":[{}\"\"]}}}}", "\"\",".repeat(1_001));
    let rows: Vec<(Vec<u8>, u16)> = vec![
        (get("/v1/secret/data/../../sys/mounts"), 400),
        (get("/v1/secret/data/%2e%2e/%2e%2e/sys/mounts"), 400),
        (get("/v1/secret/data/%252e%252e/x"), 404),
        (get("//v1/secret/data/x"), 400),
        (get("/v1//sys/health"), 400),
        (get("/v1/secret//data/x"), 400),
        (get("/v1/secret/data/a%2fb"), 400),
        (get("/v1/secret/data/a%00b"), 400),
        (get("/v1/secret/data/a\\b"), 400),
        (get("/v1/secret/data/a%5Cb"), 400),
        (get("/v1/secret/data/a%0d%0ab"), 400),
        (get("/v1/secret/data/cafe%CC%81"), 400),
        (get("/v1/secret/data/a%"), 400),
        (get(&format!("/v1/{}x", "a/".repeat(300))), 400),
        (get("/V1/sys/health"), 404),
        (get("/"), 404),
        (get("/v2/sys/health"), 404),
        (get("/v1/sys/health?list=maybe"), 400),
        (b"GET /v1/sys/health HTTP/1.1\r\n\r\n".to_vec(), 400),
        (b"GET /v1/sys/health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_vec(), 400),
        (b"POST /v1/secret/data/a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(), 400),
        (format!("GET /v1/a HTTP/1.1\r\nHost: a\r\nX-Vault-Token: {CANARY}\r\nX-Vault-Token: {CANARY}\r\n\r\n").into_bytes(), 400),
        (format!("GET /v1/a HTTP/1.1\r\nHost: a\r\nX-Vault-Token: {}\r\n\r\n", CANARY.repeat(1_000)).into_bytes(), 400),
        (format!("GET /v1/a HTTP/1.1\r\nHost: a\r\nX-Vault-Token: {CANARY}\u{1f600}\r\n\r\n").into_bytes(), 400),
        (format!("FOO /v1/a HTTP/1.1\r\nHost: a\r\nX-Vault-Token: {ROOT}\r\n\r\n").into_bytes(), 405),
        (format!("list /v1/a HTTP/1.1\r\nHost: a\r\nX-Vault-Token: {ROOT}\r\n\r\n").into_bytes(), 405),
        (b"TRACE /v1/a HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 405),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 400),
        (b"POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n".to_vec(), 415),
        (post("/v1/secret/data/a", &format!("{{\"a\":1,\"a\":\"{CANARY}\"}}")), 400),
        (post("/v1/secret/data/a", &format!("{{\"data\":{{\"a\":1,\"\\u0061\":\"{CANARY}\"}}}}")), 400),
        (post("/v1/secret/data/a", &format!("{{\"data\":\"{CANARY}\"}}")), 400),
        (post("/v1/secret/data/a", &format!("{{\"data\":{{\"k\":\"{CANARY}")), 400),
        (post("/v1/secret/data/a", &format!("[\"{CANARY}\"]")), 400),
        (post("/v1/secret/data/a", CANARY), 400),
        (post("/v1/secret/data/a", &format!("{{\"data\":{{\"k\":\"\\ud800{CANARY}\"}}}}")), 400),
        (post("/v1/secret/data/a", &format!("{{\"data\":{{}},\"options\":\"{CANARY}\"}}")), 400),
        (post("/v1/secret/data/a", &format!("{{\"data\":{{}},\"options\":{{\"cas\":\"{CANARY}\"}}}}")), 400),
        (post("/v1/secret/data/a", &deep), 400),
        (post("/v1/secret/data/a", &many), 400),
        (post("/v1/secret/data/a", &big((1 << 20) + 1)), 413),
        (post("/v1/secret/data/a", &big(900_000)), 200),
        // the texts of policies and types are public: records keep them readable
        (post("/v1/sys/policies/acl/a", r#"{"policy":"path \"unclosed"}"#), 400),
        (post("/v1/sys/policies/acl/a", r#"{"policy":"path \"a\" { capabilities = [\"fly\"] }"}"#), 400),
        (post("/v1/sys/mounts/auth", "{\"type\":\"kv-v2\"}"), 400),
        (post("/v1/sys/mounts/sys", "{\"type\":\"kv-v2\"}"), 400),
        (post("/v1/sys/mounts/secret/below", "{\"type\":\"kv-v2\"}"), 400),
        (post("/v1/sys/mounts/x", r#"{"type":"nonsense"}"#), 400),
        (post("/v1/auth/token/create", &format!("{{\"ttl\":\"{CANARY}\"}}")), 400),
        (post("/v1/auth/token/create", &format!("{{\"policies\":{{\"a\":\"{CANARY}\"}}}}")), 400),
    ];
    for (input, expect) in rows {
        let (status, answer) = send(&server, &input).await;
        let shown: String = String::from_utf8_lossy(&input).chars().take(200).collect();
        assert_eq!(status, expect, "{shown:?} → {answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nx-audit-entry: "), "recorded: {shown:?} → {head}");
        for field in ["cache-control: no-store", "x-content-type-options: nosniff", "content-security-policy: default-src 'none'"] {
            assert!(head.contains(&format!("\r\n{field}")), "{field}: {head}");
        }
        assert!(!answer.contains(CANARY), "repeated: {shown:?} → {answer}");
        if status >= 400 {
            assert!(serde_json::from_str::<Value>(body).unwrap()["errors"].is_array(), "{body}");
        }
    }
    assert_eq!(server.call("GET", "sys/health", "", Value::Null).await.0, 200);
    // the records hold no canary either
    let (_, checkpoint) = send(&server, &get("/v1/sys/audit-log/access/checkpoint")).await;
    let size: u64 = checkpoint.split("\r\n\r\n").nth(1).and_then(|note| note.lines().nth(1)).and_then(|n| n.parse().ok()).unwrap();
    assert!(size > 40, "{checkpoint}");
    let (status, entries) = send(&server, &get(&format!("/v1/sys/audit-log/access/tile/entries/000.p/{size}"))).await;
    assert_eq!(status, 200, "{entries}");
    assert!(entries.contains("\"response\"") && !entries.contains(ROOT));
    let at = entries.find(CANARY).map(|at| entries.split_at(at.saturating_sub(300)).1.chars().take(400).collect::<String>());
    assert_eq!(at, None, "a record repeats what was sent");
    server.stop().await;
}

#[tokio::test]
async fn without_a_token_nothing_is_told_and_no_body_is_read() {
    let server = Server::start().await;
    server.call("POST", "sys/mounts/secret", ROOT, json!({"type": "kv-v2"})).await;
    server.call("POST", "secret/data/there", ROOT, json!({"data": {"k": "v"}})).await;
    let ask = |target: &str, token: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n{token}\r\n\r\n").into_bytes();
    let bare = |answer: String| {
        answer.lines().filter(|l| !l.starts_with("x-audit-entry") && !l.starts_with("date")).collect::<Vec<_>>().join("\n")
    };
    let mut answers = std::collections::BTreeSet::new();
    for target in ["/v1/secret/data/there", "/v1/secret/data/not-there", "/v1/nowhere/x", "/v1/sys/mounts", "/v1/auth/token/lookup-self"] {
        for token in ["X-A: b", "X-Vault-Token: hvs.unknown", "Authorization: Bearer s.unknown", "X-Vault-Token:"] {
            let (status, answer) = send(&server, &ask(target, token)).await;
            assert_eq!(status, 403, "{target} {token}");
            answers.insert(bare(answer));
        }
    }
    assert_eq!(answers.len(), 1, "one answer for all: {answers:?}");
    // the answer comes before a body that would never end
    let head = "POST /v1/secret/data/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n";
    let (status, answer) = send(&server, head.as_bytes()).await;
    assert_eq!(status, 403, "{answer}");
    let node = ["127.0.0.1", "localhost", "hostname"];
    let (_, answer) = send(&server, b"GET /v1/x HTTP/1.0\r\n\r\n").await;
    assert!(node.iter().all(|name| !answer.contains(name)), "{answer}");
    server.stop().await;
}
