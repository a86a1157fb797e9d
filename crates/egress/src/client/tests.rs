//! Against servers that are bytes on a socket, so that each can misbehave exactly as told.

use base::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;

/// What a scripted server saw: one entry per connection and per request head.
#[derive(Debug, PartialEq)]
enum Seen {
    Connection,
    Request(String),
}

/// Answers the n-th request of each connection with the n-th text, then closes it.
async fn server(answers: &'static [&'static str]) -> (Client, mpsc::UnboundedReceiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                tell.send(Seen::Connection).unwrap();
                for answer in answers {
                    let Some(request) = read_request(&mut stream).await else { return };
                    tell.send(Seen::Request(request)).unwrap();
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (client(port), seen)
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    loop {
        let byte = stream.read_u8().await.ok()?;
        text.push(byte);
        if let Some(at) = text.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&text[..at]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.ok()?;
            text.extend(body);
            return String::from_utf8(text).ok();
        }
    }
}

/// Only a failing test waits this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// For what never comes.
const SOON: Duration = Duration::from_millis(200);

fn client(port: u16) -> Client {
    client_within(port, PATIENCE, PATIENCE)
}

fn client_within(port: u16, head_timeout: Duration, body_timeout: Duration) -> Client {
    let options = Options { connect_timeout: PATIENCE, head_timeout, body_timeout, body_bytes_max: 64, ..Options::default() };
    Client::new(Address::Tcp { host: "127.0.0.1".into(), port }, options)
}

fn drain(seen: &mut mpsc::UnboundedReceiver<Seen>) -> Vec<Seen> {
    std::iter::from_fn(|| seen.try_recv().ok()).collect()
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn method_target_headers_and_body_arrive_as_given() {
    let (client, mut seen) = server(&[OK]).await;
    let token = SecretString::new("hvs.x".to_owned());
    let request = Request::new("LIST", "/v1/a%2fb?x=%20").header("X-Vault-Request", "true").secret_header("X-Vault-Token", &token);
    let answer = client.send(request.body(SecretBytes::new(b"{}".to_vec()))).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("Content-Length"), Some("2"));
    assert_eq!(answer.body.bytes().await.unwrap().expose(), b"ok");
    let seen = drain(&mut seen);
    let Seen::Request(text) = &seen[1] else { panic!("{seen:?}") };
    assert!(text.starts_with("LIST /v1/a%2fb?x=%20 HTTP/1.1\r\n"), "{text}");
    for part in ["host: 127.0.0.1:", "x-vault-request: true\r\n", "x-vault-token: hvs.x\r\n", "content-length: 2\r\n", "\r\n\r\n{}"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[tokio::test]
async fn a_connection_is_used_again_when_the_body_was_read_and_only_then() {
    let (client, mut seen) = server(&[OK, OK, OK]).await;
    for _ in 0..2 {
        let answer = client.send(Request::new("GET", "/")).await.unwrap();
        answer.body.bytes().await.unwrap();
    }
    assert_eq!(drain(&mut seen).iter().filter(|seen| **seen == Seen::Connection).count(), 1);

    drop(client.send(Request::new("GET", "/")).await.unwrap());
    client.send(Request::new("GET", "/")).await.unwrap().body.bytes().await.unwrap();
    assert_eq!(drain(&mut seen).iter().filter(|seen| **seen == Seen::Connection).count(), 1, "a body left unread cost its connection");

    client.send_alone(Request::new("GET", "/")).await.unwrap().body.bytes().await.unwrap();
    assert!(drain(&mut seen).contains(&Seen::Connection), "alone means a connection of its own");
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closed_is_replaced() {
    let (client, mut seen) = server(&[OK]).await;
    for _ in 0..3 {
        client.send(Request::new("POST", "/")).await.unwrap().body.bytes().await.unwrap();
    }
    let seen = drain(&mut seen);
    assert_eq!(seen.iter().filter(|seen| **seen != Seen::Connection).count(), 3, "each request arrived once: {seen:?}");
}

#[tokio::test]
async fn what_may_have_arrived_is_not_sent_again() {
    let (client, mut seen) = server(&[""]).await;
    let error = client.send(Request::new("POST", "/")).await.err().unwrap();
    assert!(matches!(error, Error::Broken { .. }), "{error}");
    assert!(!error.never_sent());
    assert_eq!(drain(&mut seen).len(), 2, "one connection, one request");
}

#[tokio::test]
async fn a_connection_can_be_looked_at_before_anything_is_sent() {
    let (client, mut seen) = server(&["HTTP/1.1 204 X\r\n\r\n"]).await;
    let connection = client.connect_alone().await.unwrap();
    assert_eq!(seen.recv().await, Some(Seen::Connection));
    let ends = connection.ends().unwrap();
    assert_eq!(format!("http://{}", ends.peer), client.address().to_string());
    assert_eq!(connection.send(Request::new("GET", "/x")).await.unwrap().status, 204);
    assert!(matches!(seen.recv().await, Some(Seen::Request(text)) if text.starts_with("GET /x ")));
}

#[tokio::test]
async fn a_redirect_is_an_answer() {
    let (client, mut seen) = server(&["HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"]).await;
    let answer = client.send(Request::new("GET", "/")).await.unwrap();
    assert_eq!((answer.status, answer.header("location")), (307, Some("http://127.0.0.1:1/")));
    assert_eq!(drain(&mut seen).len(), 2);
}

#[tokio::test]
async fn every_wait_has_an_end() {
    // no head
    let (client, _seen) = server(&["HTTP/1.1 200 OK\r\n"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = client_within(listener.local_addr().unwrap().port(), SOON, PATIENCE);
    assert!(matches!(silent.send(Request::new("GET", "/")).await, Err(Error::Timeout { what: "head of the answer", .. })));
    // a head that never ends because the connection does
    assert!(matches!(client.send(Request::new("GET", "/")).await, Err(Error::Broken { .. })));
    // a body that never ends
    let stalled = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client_within(stalled.local_addr().unwrap().port(), PATIENCE, SOON);
    let held = tokio::spawn(async move {
        let (mut stream, _) = stalled.accept().await.unwrap();
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        std::future::pending::<()>().await;
    });
    let answer = client.send(Request::new("GET", "/")).await.unwrap();
    assert!(matches!(answer.body.bytes().await, Err(Error::Timeout { what: "end of the body", .. })));
    held.abort();
}

#[tokio::test]
async fn nobody_there_is_known_to_be_unsent() {
    // a port that refuses connections and cannot become anybody else's
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = held.local_addr().unwrap().port();
    let error = client(port).send(Request::new("GET", "/")).await.err().unwrap();
    assert!(matches!(error, Error::Connect { .. }) && error.never_sent(), "{error}");
    let unix = Client::new(Address::Unix("/nowhere/keyward.sock".into()), Options::default());
    assert!(unix.send(Request::new("GET", "/")).await.err().unwrap().never_sent());
}

#[tokio::test]
async fn an_answer_over_the_limit_is_refused() {
    let (client, _seen) =
        server(&["HTTP/1.1 200 OK\r\ncontent-length: 65\r\n\r\n.................................................................", OK])
            .await;
    let answer = client.send(Request::new("GET", "/")).await.unwrap();
    assert!(matches!(answer.body.bytes().await, Err(Error::TooLarge { limit: 64, .. })));
    let answer = client.send(Request::new("GET", "/")).await.unwrap();
    assert!(matches!(answer.body.bytes_within(64).await, Err(Error::TooLarge { .. })));
}

#[tokio::test]
async fn lines_come_one_by_one_whatever_the_chunks() {
    // chunks: `on` `e\ntwo\r\n` `\nlast without an end`
    let (client, _seen) =
        server(&["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\non\r\n7\r\ne\ntwo\r\n\r\n6\r\n\nlast.\r\n0\r\n\r\n"]).await;
    let mut lines = client.send_alone(Request::new("GET", "/")).await.unwrap().body.lines(16);
    for expected in ["one", "two", ""] {
        assert_eq!(lines.next().await.unwrap().unwrap().expose(), expected.as_bytes());
    }
    assert!(lines.next().await.unwrap().is_none(), "a cut line is not a line");
}

/// Each line used to move all that came behind it, so a server that sent nothing but line ends kept its clients busy for minutes.
#[tokio::test(flavor = "multi_thread")]
async fn many_lines_cost_no_more_each_than_few() {
    const MANY: usize = 4 << 20;
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {MANY}\r\n\r\n{}", "\n".repeat(MANY));
    let (client, _seen) = server(Vec::leak(vec![&*String::leak(answer)])).await;
    let reading = tokio::spawn(async move {
        let mut lines = client.send_alone(Request::new("GET", "/")).await.unwrap().body.lines(16);
        let mut count = 0;
        while lines.next().await.unwrap().is_some() {
            count += 1;
        }
        count
    });
    assert_eq!(tokio::time::timeout(PATIENCE, reading).await.unwrap().unwrap(), MANY);
}

#[tokio::test]
async fn a_line_has_a_limit_even_if_it_never_ends() {
    let (client, _seen) = server(&["HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\nshort\n.......................\n"]).await;
    let mut lines = client.send_alone(Request::new("GET", "/")).await.unwrap().body.lines(16);
    assert_eq!(lines.next().await.unwrap().unwrap().expose(), b"short");
    assert!(matches!(lines.next().await, Err(Error::TooLarge { limit: 16, .. })));
}

#[tokio::test]
async fn what_cannot_stand_in_a_request_is_refused_before_anything_is_sent() {
    let (client, mut seen) = server(&[OK]).await;
    for request in [
        Request::new("GE T", "/"),
        Request::new("GET", "v1"),
        Request::new("GET", ""),
        Request::new("GET", "//other/v1"),
        Request::new("GET", "http://other/v1"),
        Request::new("GET", "/v1/a b"),
        Request::new("GET", "/v1/a\r\nx: y"),
        Request::new("GET", "/v1/a#b"),
        Request::new("GET", "/").header("a b", "c"),
        Request::new("GET", "/").header("a", "c\r\nd: e"),
        Request::new("GET", "/").secret_header("a", &SecretString::new("x\ny".to_owned())),
    ] {
        let error = client.send(request).await.err().unwrap();
        assert!(matches!(error, Error::Request { .. }) && error.never_sent(), "{error}");
    }
    assert!(drain(&mut seen).is_empty());
}

#[tokio::test]
async fn unix_sockets_speak_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 16];
        stream.read_exact(&mut head).await.unwrap();
        stream.write_all(OK.as_bytes()).await.unwrap();
    });
    let client = Client::new(Address::parse(&format!("unix://{}", path.display())).unwrap(), Options::default());
    assert_eq!(client.send(Request::new("GET", "/")).await.unwrap().body.bytes().await.unwrap().expose(), b"ok");
}
