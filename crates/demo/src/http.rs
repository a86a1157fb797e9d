//! A small HTTP/1.1 server for the demonstration's services: bodies by `Content-Length`, connections kept, and a drain that loses nothing.
//!
//! While it drains it accepts nobody new, answers one more request on each connection with `Connection: close`, and closes a connection
//! only after it was idle for longer than any client of the demonstration would still use it. So no request meets a closing connection.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Bytes of a request's body.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 32;
/// A client of the demonstration does not use a connection again that was idle for this long.
pub(crate) const CLIENT_IDLE_MAX: Duration = Duration::from_secs(1);
/// A draining server keeps an idle connection for this long: longer than the client would use it.
const DRAIN_IDLE: Duration = Duration::from_secs(3);

/// A request.
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query as they came.
    pub(crate) target: String,
}

impl Request {
    /// The path.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A field of the query, as it came.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(n, _)| *n == name).map(|(_, value)| value)
    }
}

/// An answer.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: String,
}

pub(crate) type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;
pub(crate) type Handler = Arc<dyn Fn(Request) -> Answering + Send + Sync>;

/// Serves until `drain` becomes true, then drains.
pub(crate) async fn serve(listener: TcpListener, handler: Handler, drain: watch::Receiver<bool>) {
    let mut told = drain.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // What goes wrong with one connection is its client's to see.
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(connection(stream, Arc::clone(&handler), drain.clone()));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = told.wait_for(|on| *on) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(mut stream: TcpStream, handler: Handler, mut drain: watch::Receiver<bool>) {
    let mut buffer = Vec::with_capacity(1024);
    // A small answer must not wait for a packet of the other side.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    loop {
        let request = tokio::select! {
            request = read(&mut stream, &mut buffer) => request,
            () = idle(&mut drain) => return,
        };
        let Ok(Some(request)) = request else { return };
        let response = handler(request).await;
        let close = *drain.borrow();
        if write(&mut stream, &response, close).await.is_err() || close {
            return;
        }
    }
}

/// Ends when a draining server may close an idle connection.
async fn idle(drain: &mut watch::Receiver<bool>) {
    // A sender that is gone has nothing left to serve either.
    drain.wait_for(|on| *on).await.map(drop).unwrap_or_default();
    tokio::time::sleep(DRAIN_IDLE).await;
}

/// The next request; nothing at the end of the connection.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    loop {
        if let Some((request, used)) = parse(buffer)? {
            buffer.drain(..used.min(buffer.len()));
            return Ok(Some(request));
        }
        if stream.read_buf(buffer).await? == 0 {
            return if buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}

/// A whole request at the start of `buffer`, and how many bytes it has.
fn parse(buffer: &[u8]) -> io::Result<Option<(Request, usize)>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let head_bytes = match head.parse(buffer).map_err(|_| wrong("not HTTP"))? {
        httparse::Status::Complete(bytes) => bytes,
        httparse::Status::Partial if buffer.len() > HEAD_BYTES_MAX => return Err(wrong("head too large")),
        httparse::Status::Partial => return Ok(None),
    };
    let mut body_bytes = 0_usize;
    for header in head.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            body_bytes = std::str::from_utf8(header.value).ok().and_then(|v| v.parse().ok()).ok_or_else(|| wrong("length"))?;
        }
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(wrong("chunked bodies are not read here"));
        }
    }
    if body_bytes > BODY_BYTES_MAX {
        return Err(wrong("body too large"));
    }
    let whole = head_bytes + body_bytes;
    let (Some(method), Some(target)) = (head.method, head.path) else { return Err(wrong("no target")) };
    Ok((buffer.len() >= whole).then(|| (Request { method: method.to_owned(), target: target.to_owned() }, whole)))
}

async fn write(stream: &mut TcpStream, response: &Response, close: bool) -> io::Result<()> {
    let reason = if response.status == 200 { "OK" } else { "No" };
    let kept = if close { "close" } else { "keep-alive" };
    let text = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: {kept}\r\n\r\n{}",
        response.status,
        response.body.len(),
        response.body
    );
    timeout(Duration::from_secs(10), stream.write_all(text.as_bytes())).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_whole_or_not_at_all() {
        let rows: [(&str, Option<(&str, usize)>); 5] = [
            ("POST /work?id=a HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", Some(("POST /work?id=a", 0))),
            ("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /", Some(("GET /healthz", 5))),
            ("POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nab", None),
            ("POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc", Some(("POST /", 0))),
            ("GET / HT", None),
        ];
        for (text, expect) in rows {
            let got = parse(text.as_bytes()).unwrap().map(|(r, used)| (format!("{} {}", r.method, r.target), text.len() - used));
            assert_eq!(got, expect.map(|(line, rest)| (line.to_owned(), rest)), "{text}");
        }
        for wrong in ["\0\0\0\0", "GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(parse(&vec![b'A'; HEAD_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn the_query_is_found() {
        let request = Request { method: "POST".into(), target: "/work?a=1&id=x-2".into() };
        assert_eq!((request.path(), request.query("id"), request.query("b")), ("/work", Some("x-2"), None));
    }

    /// A kept connection that is drained gets one more answer, with the word that it is the last.
    #[tokio::test]
    async fn a_drain_answers_once_more_and_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, drain) = watch::channel(false);
        let handler: Handler = Arc::new(|r| Box::pin(async move { Response { status: 200, body: r.target } }));
        let server = tokio::spawn(serve(listener, handler, drain));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut answer = vec![0; 1024];
        for (path, kept) in [("/1", "keep-alive"), ("/2", "keep-alive"), ("/3", "close")] {
            if kept == "close" {
                tell.send_replace(true);
                while TcpStream::connect(address).await.is_ok() {
                    tokio::task::yield_now().await;
                }
            }
            stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).await.unwrap();
            let n = stream.read(&mut answer).await.unwrap();
            let text = String::from_utf8_lossy(&answer[..n]).into_owned();
            assert!(text.contains(&format!("connection: {kept}")) && text.ends_with(path), "{text}");
        }
        assert_eq!(stream.read(&mut answer).await.unwrap(), 0);
        timeout(Duration::from_secs(10), server).await.unwrap().unwrap();
    }
}
