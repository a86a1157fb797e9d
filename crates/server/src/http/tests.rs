//! Rows of bad input on a raw socket, and the differential: what the guard lets through, hyper reads in the same way.

use std::sync::Mutex;

use http_body_util::BodyExt as _;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use super::*;

/// A service that tells what it was asked.
#[derive(Default)]
struct Echo {
    seen: Mutex<Vec<String>>,
    rejected: Mutex<Vec<String>>,
}

struct Told(u16, audit::Body);

impl Outgoing for Told {
    fn into_parts(self) -> Parts {
        (self.0, vec![("x-from", "service".into())], self.1)
    }
}

fn text(status: u16, text: String) -> Told {
    Told(status, audit::Body::Bytes(text.into()))
}

impl Serve for Echo {
    type Reply = Told;

    async fn serve(self: &Arc<Self>, head: Head, body: Body) -> Told {
        if head.target == "/panic" {
            panic!("on purpose");
        }
        if head.target == "/stream" {
            let (send, frames) = mpsc::channel(1);
            tokio::spawn(async move {
                for frame in ["one", "two"] {
                    // the stream stays open: a reader that sees a frame got it before the end
                    send.send(audit::Frame::bye(frame)).await.unwrap();
                }
                send.closed().await;
            });
            return Told(200, audit::Body::Frames(frames));
        }
        if head.target == "/unread" {
            return text(413, "unread".into());
        }
        let body = match body.read(1 << 20).await {
            Ok(body) => String::from_utf8_lossy(&body).into_owned(),
            Err(kernel::BodyFault::TooSlow) => {
                self.seen.lock().unwrap().push("TooSlow".into());
                return text(408, "late".into());
            }
            Err(fault) => format!("{fault:?}"),
        };
        let line = format!("{} {} {:?} {body}", head.method, head.target, head.headers);
        self.seen.lock().unwrap().push(line.clone());
        text(200, line)
    }

    async fn reject(self: &Arc<Self>, _: SocketAddr, refusal: Refusal) -> Told {
        let line = format!("{:?} {}", refusal.kind, refusal.errors.join(","));
        self.rejected.lock().unwrap().push(line.clone());
        let status = match refusal.kind {
            Kind::Internal => 500,
            Kind::Late => 408,
            _ => 400,
        };
        text(status, line)
    }
}

fn limits() -> Arc<Limits> {
    Arc::new(Limits { header_timeout: Duration::from_secs(5), body_timeout: Duration::from_secs(5), ..Limits::default() })
}

fn open(limits: Arc<Limits>) -> (DuplexStream, Arc<Echo>, tokio::task::JoinHandle<()>) {
    let (ours, theirs) = tokio::io::duplex(4 << 20);
    let echo = Arc::new(Echo::default());
    let connection = serve_io(theirs, ([127, 0, 0, 1], 1).into(), &echo, &limits);
    let task = tokio::spawn(async move {
        let _how_it_ended = connection.await;
    });
    (ours, echo, task)
}

/// Sends bytes, reads until the server closes (`closes`) or until `wait` bytes of an answer are there.
async fn exchange(input: &[u8]) -> (String, Arc<Echo>, bool) {
    let (mut stream, echo, task) = open(limits());
    stream.write_all(input).await.unwrap();
    let mut answer = Vec::new();
    let mut closed = false;
    loop {
        let mut part = [0; 4096];
        match timeout(Duration::from_millis(200), stream.read(&mut part)).await {
            Ok(Ok(0) | Err(_)) => {
                closed = true;
                break;
            }
            Ok(Ok(n)) => answer.extend_from_slice(&part[..n]),
            Err(_) => break,
        }
    }
    drop(stream);
    task.await.unwrap();
    (String::from_utf8_lossy(&answer).into_owned(), echo, closed)
}

const GOOD: &str = "GET /v1/sys/health HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn good_requests_pass_and_the_connection_lives() {
    for (input, expect) in [
        (GOOD.to_owned(), "GET /v1/sys/health [] "),
        (
            "LIST /v1/x%2fy?a=b HTTP/1.1\r\nHost: a\r\nX-Vault-Token: t\r\nX-Other: u\r\n\r\n".into(),
            r#"LIST /v1/x%2fy?a=b [("x-vault-token", "t")] "#,
        ),
        ("POST /v1/a HTTP/1.1\r\nHost: [::1]:8200\r\nContent-Length: 2\r\n\r\n{}".into(), "POST /v1/a [] {}"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\n{\r\n01\r\n}\r\n0\r\n\r\n".into(), "POST /v1/a [] {}"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}".into(), "POST /v1/a [] {}"),
        ("FOO /v1/../a//b HTTP/1.1\r\nHost: a\r\nX-HTTP-Method-Override: DELETE\r\n\r\n".into(), "FOO /v1/../a//b [] "),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Encoding: identity\r\nContent-Length: 0\r\n\r\n".into(), "POST /v1/a [] "),
    ] {
        // twice on one connection: the framing was followed to the byte
        let (answer, echo, closed) = exchange(format!("{input}{input}").as_bytes()).await;
        assert_eq!(*echo.seen.lock().unwrap(), [expect, expect], "{input} → {answer}");
        assert!(!closed && echo.rejected.lock().unwrap().is_empty(), "{input}");
    }
    let (answer, echo, closed) = exchange(b"GET /v1/a HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200") && closed && echo.seen.lock().unwrap().len() == 1, "{answer}");
}

#[tokio::test(start_paused = true)]
async fn bad_heads_are_refused_recorded_and_closed() {
    let long = "a".repeat(20_000);
    let many = "X: y\r\n".repeat(65);
    for (input, expect) in [
        ("GET /v1/a HTTP/1.1\r\n\r\n".to_owned(), "`Host`"),
        ("GET /v1/a HTTP/1.1\r\nHost: a/b\r\n\r\n".into(), "`Host`"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".into(), "twice"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), "`Content-Length`"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n".into(), "`Content-Length`"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello".into(), "twice"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello".into(), "`Content-Length`"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello".into(), "`Content-Length`"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n".into(), "`Content-Length`"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello".into(), "`Content-Length`"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n".into(), "`Content-Length`"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n".into(), "`Content-Length`"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n".into(), "`Transfer-Encoding`"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n".into(), "`Transfer-Encoding`"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".into(), "`Transfer-Encoding`"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n".into(), "line"),
        ("POST /v1/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), "twice"),
        ("POST /v1/a HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), "`Transfer-Encoding`"),
        ("GET /v1/a HTTP/1.1\nHost: a\n\n".into(), "line"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\n\r\n".into(), "line"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\rX: b\r\n\r\n".into(), "line"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nX: a\r\n folded\r\n\r\n".into(), "not an HTTP/1.1"),
        ("GET /v1/a HTTP/1.1\r\n Host: a\r\n\r\n".into(), "not an HTTP/1.1"),
        ("GET /v1/a HTTP/1.1\r\nHost : a\r\n\r\n".into(), "not an HTTP/1.1"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nX Y: a\r\n\r\n".into(), "not an HTTP/1.1"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nX\0Y: a\r\n\r\n".into(), "line"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nX\u{e9}: a\r\n\r\n".into(), "not an HTTP/1.1"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nno-colon\r\n\r\n".into(), "not an HTTP/1.1"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nX-Vault-Token: t\r\nX-Vault-Token: t\r\n\r\n".into(), "twice"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nX-Vault-Token: t\r\nx-vault-token: u\r\n\r\n".into(), "twice"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer t\r\nAuthorization: Bearer u\r\n\r\n".into(), "twice"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nX-Vault-Token: a b\r\n\r\n".into(), "unprintable"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nX-Vault-Token: \u{1f600}\r\n\r\n".into(), "unprintable"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nX-Vault-Token: a\0b\r\n\r\n".into(), "line"),
        (format!("GET /v1/a HTTP/1.1\r\nHost: a\r\nX-Vault-Token: {}\r\n\r\n", "a".repeat(9_000)), "token"),
        (format!("GET /v1/a HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), "too large"),
        (format!("GET /v1/{long} HTTP/1.1\r\nHost: a\r\n\r\n"), "too large"),
        (format!("GET /v1/a HTTP/1.1\r\nHost: a\r\n{many}\r\n"), "too many"),
        ("GET http://a/v1/a HTTP/1.1\r\nHost: a\r\n\r\n".into(), "target"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n".into(), "target"),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n".into(), "target"),
        ("GET //v1/a HTTP/1.1\r\nHost: a\r\n\r\n".into(), "target"),
        ("GET /v1/a#b HTTP/1.1\r\nHost: a\r\n\r\n".into(), "target"),
        ("GET /v1/a\\b HTTP/1.1\r\nHost: a\r\n\r\n".into(), "target"),
        ("GET /v1/{a} HTTP/1.1\r\nHost: a\r\n\r\n".into(), "target"),
        ("GET /v1/a|b HTTP/1.1\r\nHost: a\r\n\r\n".into(), "target"),
        ("GET /v1/\"a\" HTTP/1.1\r\nHost: a\r\n\r\n".into(), "target"),
        ("GET /v1/caf\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n".into(), "target"),
        ("GET /v1/a b HTTP/1.1\r\nHost: a\r\n\r\n".into(), "not an HTTP/1.1"),
        (
            "GET /v1/a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n".into(),
            "upgrades",
        ),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n".into(), "upgrades"),
        ("GET /v1/a HTTP/1.1\r\nHost: a\r\nExpect: a-gift\r\n\r\n".into(), "upgrades"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), "not an HTTP/1.1"),
        ("\x16\x03\x01\x02\0\x01\0".into(), "line"),
        ("GET /v1/a HTTP/1.2\r\nHost: a\r\n\r\n".into(), "not an HTTP/1.1"),
        ("\r\nGET /v1/a HTTP/1.1\r\nHost: a\r\n\r\n".into(), "not an HTTP/1.1"),
        ("nonsense\r\n\r\n".into(), "target"),
    ] {
        // a good request first: its answer comes first, whole; the smuggled one behind is never seen
        let (answer, echo, closed) = exchange(format!("{GOOD}{input}{GOOD}").as_bytes()).await;
        let rejected = echo.rejected.lock().unwrap().clone();
        assert_eq!(rejected.len(), 1, "{input:?} → {answer}");
        assert!(rejected[0].starts_with("Invalid") && rejected[0].contains(expect), "{input:?} → {rejected:?}");
        assert_eq!(echo.seen.lock().unwrap().len(), 1, "{input:?} → {answer}");
        let (_, refused) = answer.split_once("HTTP/1.1 400").expect("refused");
        assert!(answer.starts_with("HTTP/1.1 200") && refused.contains("connection: close"), "{answer}");
        assert_eq!(answer.matches("x-from: service").count(), 2, "{answer}");
        assert!(closed, "{input:?}");
    }
}

/// The control: hyper alone answers these, so the guard is what refuses them.
#[tokio::test(start_paused = true)]
async fn without_the_guard_hyper_repairs() {
    for input in [
        "POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "POST /v1/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nhello\r\n0\r\n\r\n",
        "GET /v1/a HTTP/1.1\nHost: a\n\n",
        "GET /v1/a HTTP/1.1\r\n\r\n",
        "GET /v1/a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a/v1/a HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let (mut ours, theirs) = tokio::io::duplex(1 << 16);
        let service = service_fn(|request: Request<Incoming>| async {
            request.into_body().collect().await.map(|_| Response::new(http_body_util::Empty::<Bytes>::new()))
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(theirs), service));
        ours.write_all(input.as_bytes()).await.unwrap();
        let mut part = [0; 12];
        ours.read_exact(&mut part).await.unwrap();
        assert_eq!(&part, b"HTTP/1.1 200", "{input:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_body_closes_and_nothing_behind_it_is_a_request() {
    let post = "POST /v1/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "5;ext=1\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "\r\n",
        "x\r\n",
        "-5\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "fffffffff\r\n",
        "000000001\r\na\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
    ] {
        let (answer, echo, closed) = exchange(format!("{post}{body}{GOOD}").as_bytes()).await;
        let seen = echo.seen.lock().unwrap().clone();
        assert!(seen.iter().all(|line| line.ends_with("Broken")) && seen.len() <= 1, "{body:?} → {seen:?}");
        assert!(closed && !answer.contains("hello"), "{body:?} → {answer}");
    }
    // a body shorter than announced is never read as a whole one
    let (mut stream, echo, task) = open(limits());
    stream.write_all(b"POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{}").await.unwrap();
    stream.shutdown().await.unwrap();
    task.await.unwrap();
    assert!(echo.seen.lock().unwrap().iter().all(|line| line.ends_with("Broken")));
}

#[tokio::test(start_paused = true)]
async fn compressed_bodies_are_refused() {
    let (answer, echo, _) = exchange(b"POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}").await;
    assert!(echo.seen.lock().unwrap().is_empty());
    assert_eq!(*echo.rejected.lock().unwrap(), ["MediaType `Content-Encoding` is not supported"], "{answer}");
}

#[tokio::test(start_paused = true)]
async fn slow_clients_meet_their_deadlines() {
    // one byte of a head each second
    let (mut stream, echo, task) = open(limits());
    let mut answer = String::new();
    for byte in b"GET /v1/a HTTP/1.1\r\nHost: a" {
        if stream.write_all(&[*byte]).await.is_err() || task.is_finished() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("did not arrive in time"), "{answer}");
    assert_eq!(answer.matches("connection: close\r\n").count(), 1, "{answer}");
    assert_eq!(echo.rejected.lock().unwrap().len(), 1);

    // a body that stops
    let (mut stream, echo, _task) = open(limits());
    stream.write_all(b"POST /v1/a HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(echo.seen.lock().unwrap()[0].ends_with("TooSlow"), "{answer}");
    assert!(answer.starts_with("HTTP/1.1 408") && answer.matches("connection: close\r\n").count() == 1, "{answer}");

    // nothing at all
    let (mut stream, echo, _task) = open(limits());
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.is_empty() && echo.rejected.lock().unwrap().is_empty());
}

/// A stream to a client whose machine had lost its power stayed open until the system gave up sending, after a quarter of an hour.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_that_acknowledges_nothing_is_dropped() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, remote) = listener.accept().await.unwrap();
    let same = rustix::io::dup(&stream).unwrap();
    let _connection = connection(stream, remote, &Arc::new(Echo::default()), &limits());
    assert_eq!(u128::from(rustix::net::sockopt::tcp_user_timeout(&same).unwrap()), guard::STALL_TIME_MAX.as_millis());
}

#[tokio::test(start_paused = true)]
async fn an_answer_under_way_is_not_idle() {
    let (mut stream, _echo, task) = open(limits());
    stream.write_all(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut part = [0; 4096];
    let mut answer = String::new();
    while !answer.contains("two") {
        let n = stream.read(&mut part).await.unwrap();
        answer.push_str(std::str::from_utf8(&part[..n]).unwrap());
    }
    assert_eq!(answer.matches("\r\n1E\r\n{").count(), 2, "each frame is a chunk: {answer}");
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert!(!task.is_finished(), "a push stream must outlive the idle limit");
    drop(stream);
    task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_recorded_500_and_the_server_lives() {
    let (answer, echo, _) = exchange(format!("GET /panic HTTP/1.1\r\nHost: a\r\n\r\n{GOOD}").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert!(!answer.contains("on purpose"));
    assert_eq!(echo.rejected.lock().unwrap().len(), 1);
    assert_eq!(echo.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let server = tokio::spawn(run(listener, Arc::new(Echo::default()), limits(), stopped));
    for head in ["POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 400000\r\n\r\n", "POST /v1/a HTTP/1.1\r\n\r\n"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'x'; 400_000]).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 4") && answer.contains("x-from: service"), "{answer}");
    }
    // a stop lets an idle connection go and ends the task
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(GOOD.as_bytes()).await.unwrap();
    let mut part = [0; 4096];
    assert!(idle.read(&mut part).await.unwrap() > 0);
    stop.send(true).unwrap();
    server.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

/// Pieces of requests, good ones and bad ones.
fn piece() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("GET /v1/a HTTP/1.1"),
        Just("POST /v1/a?b=c HTTP/1.1"),
        Just("LIST /v1/%zz/../x HTTP/1.1"),
        Just("GET /v1/a HTTP/1.0"),
        Just("GET http://x/v1/a HTTP/1.1"),
        Just("GET * HTTP/1.1"),
        Just("get /v1/a? HTTP/1.1"),
        Just("GET /v1/[a]!$&'()*+,;=:@ HTTP/1.1"),
        Just("GET  /v1/a HTTP/1.1"),
        Just("GET /v1/a HTTP/1.1 "),
        Just("GET\t/v1/a HTTP/1.1"),
        Just("HEAD /v1/a?? HTTP/1.1"),
    ];
    let field = prop_oneof![
        4 => Just("Host: a"), 1 => Just("Host: a:1"), 2 => Just("Content-Length: 3"), 1 => Just("Content-Length: 003"), 1 => Just("Content-Length: 3 "),
        1 => Just("content-length:3"), 1 => Just("Content-Length: 3,3"), 2 => Just("Transfer-Encoding: chunked"), 1 => Just("Transfer-Encoding: \tCHUNKED"),
        1 => Just("Transfer-Encoding: identity"), 1 => Just("X-Vault-Token: t"), 1 => Just("X: \u{e9}"), 1 => Just("X:"), 1 => Just(": x"), 1 => Just("X : y"),
        1 => Just("Connection: close"), 1 => Just("Connection: keep-alive"), 1 => Just(" folded"), 1 => Just("Expect: 100-continue"), 1 => Just("TE: trailers"),
        1 => Just("Connection: content-length"), 1 => Just("X-Vault-Namespace: "),
    ];
    let body = prop_oneof![
        4 => Just(""), 3 => Just("abc"), 3 => Just("3\r\nabc\r\n0\r\n\r\n"), 1 => Just("1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"), 1 => Just("003\r\nabc\r\n0\r\n\r\n"),
        1 => Just("3;a=b\r\nabc\r\n0\r\n\r\n"), 1 => Just("A\r\nGET / HTTP\r\n0\r\n\r\n"), 1 => Just("3\r\nabc\r\n0\r\nX: y\r\n\r\n"), 1 => Just("abcd"),
    ];
    let end = prop_oneof![12 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r")];
    (line, prop::collection::vec((field, end.clone()), 0..4), end, body).prop_map(|(line, fields, end, body)| {
        let fields: String = fields.iter().map(|(field, end)| format!("{field}{end}")).collect();
        format!("{line}\r\n{fields}{end}{body}")
    })
}

/// The naive reading of what the guard let through: heads one after the other, framing as announced, nothing tolerated.
fn naive(mut bytes: &[u8]) -> Vec<String> {
    let mut requests = Vec::new();
    while let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        bytes = &bytes[end + 4..];
        let mut lines = head.split("\r\n");
        let mut start = lines.next().unwrap().split(' ');
        let (method, target) = (start.next().unwrap(), start.next().unwrap());
        let (mut length, mut chunked, mut kept) = (0, false, Vec::new());
        for line in lines {
            let (name, value) = line.split_once(':').unwrap();
            let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
            match name.as_str() {
                "content-length" => length = value.parse::<usize>().unwrap(),
                "transfer-encoding" => chunked = true,
                name if FIELDS.contains(&name) => kept.push((name.to_owned(), value)),
                _ => {}
            }
        }
        let mut body = Vec::new();
        if chunked {
            loop {
                let Some(at) = bytes.windows(2).position(|w| w == b"\r\n") else { return requests };
                let size = usize::from_str_radix(std::str::from_utf8(&bytes[..at]).unwrap(), 16).unwrap();
                bytes = &bytes[at + 2..];
                if bytes.len() < size + 2 {
                    return requests;
                }
                body.extend_from_slice(&bytes[..size]);
                bytes = &bytes[size + 2..];
                if size == 0 {
                    break;
                }
            }
        } else {
            if bytes.len() < length {
                return requests;
            }
            body.extend_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
        }
        requests.push(format!("{method} {target} {kept:?} {}", String::from_utf8_lossy(&body)));
    }
    requests
}

/// Runs the guard alone and gives what it passes on, without the synthetic head.
async fn passed(input: &[u8]) -> (Vec<u8>, bool) {
    let (mut ours, theirs) = tokio::io::duplex(1 << 20);
    ours.write_all(input).await.unwrap();
    ours.shutdown().await.unwrap();
    let mut guard = Guard::new(theirs, limits(), Arc::new(Verdicts::default()));
    let mut out = Vec::new();
    let mut part = [0; 7];
    // a poisoned guard is silent for ever: nothing is left to wait for
    while let Ok(Ok(n)) = timeout(Duration::from_millis(10), guard.read(&mut part)).await {
        if n == 0 {
            break;
        }
        out.extend_from_slice(&part[..n]);
    }
    let poison = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
    let poisoned = out.ends_with(poison);
    if poisoned {
        out.truncate(out.len() - poison.len());
    }
    (out, poisoned)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// What the guard passes is a prefix of the input; hyper reads it as the naive reader does, request by request; hyper itself
    /// never has a reason to answer.
    #[test]
    fn hyper_reads_what_the_guard_read(pieces in prop::collection::vec(piece(), 1..4)) {
        let input = pieces.concat();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (passed, poisoned) = passed(input.as_bytes()).await;
            assert!(input.as_bytes().starts_with(&passed));
            let expected = naive(&passed);
            let (answer, echo, _) = exchange(input.as_bytes()).await;
            let seen: Vec<String> = echo.seen.lock().unwrap().iter().filter(|line| !line.ends_with("Broken") && !line.ends_with("TooSlow")).cloned().collect();
            // `Connection: close` ends the connection early: then what was seen is a beginning of what was passed
            let early = passed.to_ascii_lowercase().windows(17).any(|w| w == b"connection: close") || passed.windows(8).any(|w| w == b"HTTP/1.0");
            if early {
                assert!(expected.starts_with(&seen), "{input:?}\n{expected:?}\n{seen:?}");
            } else {
                assert_eq!(expected, seen, "{input:?} {answer}");
                assert_eq!(echo.rejected.lock().unwrap().len(), usize::from(poisoned), "{input:?}");
            }
            let (answers, ours) = (answer.matches("\r\ndate: ").count(), answer.matches("x-from: service").count());
            assert_eq!(answers, ours, "hyper answered on its own: {input:?} {answer}");
        });
    }
}
