//! What stands between a PostgreSQL server and the driver: the driver believes the server, this does not.
//!
//! Until the server says that the login is done, every message is read whole and judged before the driver sees it. Only SCRAM-SHA-256 may
//! be asked for (a server that wants the password itself, or its MD5, gets nothing), with a bounded amount of work. Over the whole
//! connection a bounded number of bytes is read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are read from one connection.
pub(crate) const BYTES_MAX: usize = 4 << 20;
/// Bytes of one message before the login is done.
pub(crate) const LOGIN_MESSAGE_BYTES_MAX: usize = 16 << 10;
/// Iterations of PBKDF2 that a server may ask for: they run on our processor.
pub(crate) const SCRAM_ITERATIONS_MAX: u32 = 100_000;

/// Why the connection was given up. Holds nothing that the server sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Breach {
    #[error("asks for the password itself or its MD5 (`password` or `md5` in pg_hba.conf, or an MD5 verifier): only scram-sha-256 is used")]
    Method,
    #[error("asks for more than {SCRAM_ITERATIONS_MAX} iterations of SCRAM")]
    Iterations,
    #[error("does not speak PostgreSQL's protocol")]
    Protocol,
    #[error("sent more than {BYTES_MAX} bytes")]
    Bytes,
}

impl Breach {
    fn into_io(self) -> io::Error {
        io::Error::other(self)
    }
}

/// A guarded connection.
pub(crate) struct Guarded<S> {
    inner: S,
    left: usize,
    /// Nothing once the login is done.
    login: Option<Vec<u8>>,
    ready: Vec<u8>,
    proven: Arc<AtomicBool>,
}

impl<S> Guarded<S> {
    /// Guards `inner`. The flag becomes true when the server has made us prove the password and has proven that it knows it.
    pub(crate) fn new(inner: S) -> (Self, Arc<AtomicBool>) {
        let proven = Arc::new(AtomicBool::new(false));
        (Self { inner, left: BYTES_MAX, login: Some(Vec::new()), ready: Vec::new(), proven: Arc::clone(&proven) }, proven)
    }
}

impl<S: AsyncRead + Unpin> Guarded<S> {
    fn poll_some(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if let Some(left) = self.left.checked_sub(buf.filled().len() - before) {
            self.left = left;
            return Poll::Ready(Ok(()));
        }
        // A reader that fails has filled nothing.
        buf.set_filled(before);
        Poll::Ready(Err(Breach::Bytes.into_io()))
    }

    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let n = self.ready.len().min(buf.remaining());
        buf.put_slice(self.ready.get(..n).unwrap_or_default());
        self.ready.drain(..n);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.ready.is_empty() {
                this.give(buf);
                return Poll::Ready(Ok(()));
            }
            if this.login.is_none() {
                return this.poll_some(cx, buf);
            }
            let mut chunk = [0_u8; 4096];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(this.poll_some(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            let mut held = this.login.take().unwrap_or_default();
            held.extend_from_slice(chunk.filled());
            let done = judge(&mut held, &mut this.ready, &this.proven).map_err(Breach::into_io)?;
            if done {
                this.ready.append(&mut held);
            } else {
                this.login = Some(held);
            }
        }
    }
}

/// Moves the whole messages of `held` to `ready` after judging each; true when the login is done.
fn judge(held: &mut Vec<u8>, ready: &mut Vec<u8>, proven: &AtomicBool) -> Result<bool, Breach> {
    loop {
        let Some((head, rest)) = held.split_first_chunk::<5>() else { return Ok(false) };
        let [tag, length @ ..] = *head;
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| Breach::Protocol)?;
        let body = length.checked_sub(4).filter(|body| *body <= LOGIN_MESSAGE_BYTES_MAX).ok_or(Breach::Protocol)?;
        if !matches!(tag, b'R' | b'E' | b'N' | b'v') {
            return Err(Breach::Protocol);
        }
        let Some(body) = rest.get(..body) else { return Ok(false) };
        let done = tag == b'R' && request(body, proven)?;
        ready.extend(held.drain(..=length));
        if done {
            return Ok(true);
        }
    }
}

/// Judges an authentication request; true for `AuthenticationOk`.
fn request(body: &[u8], proven: &AtomicBool) -> Result<bool, Breach> {
    let Some((code, data)) = body.split_first_chunk::<4>() else { return Err(Breach::Protocol) };
    match u32::from_be_bytes(*code) {
        0 => return Ok(true),
        10 => {}
        11 => {
            let text = std::str::from_utf8(data).map_err(|_| Breach::Protocol)?;
            let iterations = text.split(',').find_map(|part| part.strip_prefix("i=")).ok_or(Breach::Protocol)?;
            match iterations.parse::<u32>() {
                Ok(1..=SCRAM_ITERATIONS_MAX) => {}
                _ => return Err(Breach::Iterations),
            }
        }
        // The driver checks the server's signature in this message and ends the login when it is wrong.
        12 => proven.store(true, Ordering::Release),
        _ => return Err(Breach::Method),
    }
    Ok(false)
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        out.extend(body);
        out
    }

    fn auth(code: u32, data: &[u8]) -> Vec<u8> {
        message(b'R', &[&code.to_be_bytes()[..], data].concat())
    }

    /// What comes out of the guard, and whether the password was proven.
    async fn pass(input: &[u8]) -> (Result<Vec<u8>, Option<Breach>>, bool) {
        let (mut guarded, proven) = Guarded::new(input);
        let mut out = Vec::new();
        let result = guarded.read_to_end(&mut out).await;
        let breach = |e: io::Error| e.get_ref().and_then(|e| e.downcast_ref::<Breach>()).cloned();
        (result.map(|_| out).map_err(breach), proven.load(Ordering::Acquire))
    }

    #[tokio::test]
    async fn rows() {
        let scram = [auth(10, b"SCRAM-SHA-256\0\0"), auth(11, b"r=x,s=eA==,i=4096"), auth(12, b"v=x"), auth(0, b""), b"anything".to_vec()];
        let rows = [
            ("scram, then anything", scram.concat(), Ok(()), true),
            ("trust", [auth(0, b""), b"xyz".to_vec()].concat(), Ok(()), false),
            ("clear", auth(3, b""), Err(Breach::Method), false),
            ("md5", auth(5, b"salt"), Err(Breach::Method), false),
            ("gss", auth(7, b""), Err(Breach::Method), false),
            ("much work", auth(11, b"r=x,s=eA==,i=2000000000"), Err(Breach::Iterations), false),
            ("no work", auth(11, b"r=x,s=eA==,i=0"), Err(Breach::Iterations), false),
            ("http", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), Err(Breach::Protocol), false),
            ("huge message", b"R\x7f\xff\xff\xff\0\0\0\0".to_vec(), Err(Breach::Protocol), false),
            ("length below its own size", b"R\0\0\0\x03xxxxxxx".to_vec(), Err(Breach::Protocol), false),
            ("rows before login", message(b'D', b""), Err(Breach::Protocol), false),
        ];
        for (name, input, expect, proven) in rows {
            let (got, was) = pass(&input).await;
            assert_eq!(was, proven, "{name}");
            match expect {
                Ok(()) => assert_eq!(got.unwrap(), input, "{name}"),
                Err(breach) => assert_eq!(got.unwrap_err(), Some(breach), "{name}"),
            }
        }
    }

    #[tokio::test]
    async fn an_endless_stream_ends() {
        let mut input = auth(0, b"");
        input.resize(BYTES_MAX, 0);
        assert!(pass(&input).await.0.is_ok());
        input.push(0);
        assert_eq!(pass(&input).await.0.unwrap_err(), Some(Breach::Bytes));
    }
}
