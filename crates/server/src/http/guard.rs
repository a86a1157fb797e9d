//! The guard in front of hyper: judges every request head and follows the framing, byte by byte, before hyper sees anything.
//!
//! hyper repairs what a store of secrets refuses: Content-Length beside Transfer-Encoding, equal duplicates, bare line feeds, a
//! missing Host, absolute targets, chunk extensions. Whatever is read in two ways by two parties is how requests are smuggled, so
//! here only one spelling passes. A head that does not pass is replaced by a synthetic one that closes the connection; the
//! service asks [`Verdicts::fault`] which request that was and has it recorded and refused. A fault inside a body closes.
//!
//! What a path, a token or a body means is left to the kernel.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base::{Kind, Limits, Refusal};
use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Bytes read from the socket at once.
const READ_BYTES: usize = 8 << 10;
/// Digits of the size of one chunk at most.
const CHUNK_DIGITS_MAX: usize = 8;
/// Bytes thrown away after a refusal, so that the client can read it before the connection is reset.
const LINGER_BYTES_MAX: usize = 1 << 20;
/// Time for the same.
const LINGER_TIME_MAX: Duration = Duration::from_secs(2);
/// A connection without a request is closed after this time.
const IDLE_TIME_MAX: Duration = Duration::from_secs(75);
/// A client that takes nothing for this time is dropped.
pub(super) const STALL_TIME_MAX: Duration = Duration::from_secs(30);
/// What hyper reads in the place of a refused head.
const POISON: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
/// Fields that mean something to the framing or to the kernel and may come once only.
const SINGULAR: [&str; 11] = [
    "host",
    "content-length",
    "transfer-encoding",
    "content-type",
    "content-encoding",
    "expect",
    "authorization",
    "x-vault-token",
    "x-vault-namespace",
    "x-vault-wrap-ttl",
    "x-vault-request",
];

/// Why a head was refused. Never holds input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not a request head (RFC 9112).
    Syntax,
    /// A line that does not end in CR LF, or a control byte.
    Line,
    /// Larger than the limit for heads.
    TooLarge,
    /// More fields than the limit.
    TooMany,
    /// The token is longer than the limit.
    TokenTooLong,
    /// A field that the kernel reads holds something else than printable ASCII.
    Value,
    /// No Host, or one that is no host.
    Host,
    /// Not a path, or raw bytes in it that must be escaped.
    Target,
    /// Content-Length is no number, or stands beside Transfer-Encoding.
    Length,
    /// Transfer-Encoding is something else than `chunked`.
    Coding,
    /// A field that may come once came twice.
    Twice,
    /// An upgrade of the protocol, or an expectation other than `100-continue`.
    Upgrade,
    /// The head did not arrive in time.
    Late,
}

impl Fault {
    /// The answer to this fault.
    #[must_use]
    pub fn refusal(self) -> Refusal {
        let kind = if self == Self::Late { Kind::Late } else { Kind::Invalid };
        let text = match self {
            Self::Syntax => "malformed request: not an HTTP/1.1 request head",
            Self::Line => "malformed request: a header line ends or contains what it must not",
            Self::TooLarge => "malformed request: the header block is too large",
            Self::TooMany => "malformed request: too many header fields",
            Self::TokenTooLong => "malformed request: the token is too long",
            Self::Value => "malformed request: a header field holds unprintable bytes",
            Self::Host => "malformed request: exactly one valid `Host` is needed",
            Self::Target => "malformed request: the target must be an absolute path in escaped ASCII",
            Self::Length => "malformed request: `Content-Length` must be one number and stand without `Transfer-Encoding`",
            Self::Coding => "malformed request: `Transfer-Encoding` can only be `chunked`",
            Self::Twice => "malformed request: a header field is given twice",
            Self::Upgrade => "malformed request: upgrades and expectations are not offered",
            Self::Late => "the header block did not arrive in time",
        };
        Refusal::of(kind, text)
    }
}

/// What the guard tells the service of the same connection. Requests are counted from 0 in the order of the wire.
#[derive(Debug, Default)]
pub struct Verdicts {
    passed: AtomicU64,
    done: AtomicU64,
    fault: Mutex<Option<(u64, Fault)>>,
}

impl Verdicts {
    /// The fault of request `number`, if it is the one whose head was replaced.
    pub fn fault(&self, number: u64) -> Option<Fault> {
        let fault = *self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.filter(|(at, _)| *at == number).map(|(_, fault)| fault)
    }

    /// One more answer has left, or its reader has gone.
    pub fn answered(&self) {
        self.done.fetch_add(1, Ordering::AcqRel);
    }

    fn pass(&self) {
        self.passed.fetch_add(1, Ordering::AcqRel);
    }

    fn poison(&self, fault: Fault) {
        let number = self.passed.fetch_add(1, Ordering::AcqRel);
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some((number, fault));
    }

    fn idle(&self) -> bool {
        self.passed.load(Ordering::Acquire) == self.done.load(Ordering::Acquire)
    }
}

/// How long the body of a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waiting for the end of a head; this many bytes hold no line end of interest.
    Head { scanned: usize },
    /// This many bytes of a body are left.
    Body(u64),
    /// At the start of a chunk's size.
    ChunkSize,
    /// This many bytes of a chunk are left.
    ChunkData(u64),
    /// At the line end after a chunk.
    ChunkEnd,
    /// At the line end after the last chunk. No trailers.
    LastEnd,
    /// A head was refused: nothing of this connection is read as a request again.
    Poisoned,
    /// The framing of a body was violated.
    Broken,
}

/// A connection whose reading side has been judged.
pub struct Guard<IO> {
    io: IO,
    limits: Arc<Limits>,
    verdicts: Arc<Verdicts>,
    state: State,
    input: BytesMut,
    ready: BytesMut,
    deadline: Option<(Wait, Pin<Box<Sleep>>)>,
    stall: Option<Pin<Box<Sleep>>>,
    linger: Option<Pin<Box<Sleep>>>,
    lingered: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Idle,
    Head,
}

impl<IO> Guard<IO> {
    /// Puts a guard before `io`.
    pub fn new(io: IO, limits: Arc<Limits>, verdicts: Arc<Verdicts>) -> Self {
        Self {
            io,
            limits,
            verdicts,
            state: State::Head { scanned: 0 },
            input: BytesMut::new(),
            ready: BytesMut::new(),
            deadline: None,
            stall: None,
            linger: None,
            lingered: 0,
        }
    }

    /// Moves what can be judged from `input` to `ready`. Returns when nothing more can be said without more bytes.
    fn judge(&mut self) {
        while self.state != State::Poisoned && self.state != State::Broken && self.step() {}
    }

    fn step(&mut self) -> bool {
        if self.input.is_empty() {
            return false;
        }
        match self.state {
            State::Head { scanned } => match end_of_head(&self.input, scanned, &self.limits) {
                Ok(None) => {
                    self.state = State::Head { scanned: self.input.len() };
                    false
                }
                Ok(Some(end)) => {
                    let head = self.input.split_to(end);
                    match read_head(&head, &self.limits) {
                        Ok(framing) => {
                            self.ready.extend_from_slice(&head);
                            self.verdicts.pass();
                            self.deadline = None;
                            self.state = match framing {
                                Framing::Length(0) => State::Head { scanned: 0 },
                                Framing::Length(n) => State::Body(n),
                                Framing::Chunked => State::ChunkSize,
                            };
                            true
                        }
                        Err(fault) => self.poison(fault),
                    }
                }
                Err(fault) => self.poison(fault),
            },
            State::Body(left) => {
                let left = self.copy(left);
                self.state = if left == 0 { State::Head { scanned: 0 } } else { State::Body(left) };
                true
            }
            State::ChunkData(left) => {
                let left = self.copy(left);
                self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                true
            }
            State::ChunkSize => match chunk_size(&self.input) {
                Ok(None) => false,
                Ok(Some((line, size))) => {
                    self.ready.extend_from_slice(&self.input.split_to(line));
                    self.state = if size == 0 { State::LastEnd } else { State::ChunkData(size) };
                    true
                }
                Err(()) => self.break_off(),
            },
            State::ChunkEnd => self.line_end(State::ChunkSize),
            State::LastEnd => self.line_end(State::Head { scanned: 0 }),
            State::Poisoned | State::Broken => false,
        }
    }

    fn copy(&mut self, left: u64) -> u64 {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(self.input.len());
        self.ready.extend_from_slice(&self.input.split_to(n));
        left.saturating_sub(n as u64)
    }

    fn line_end(&mut self, next: State) -> bool {
        if self.input.len() >= 2 && self.input.starts_with(b"\r\n") {
            self.ready.extend_from_slice(&self.input.split_to(2));
            self.state = next;
            return true;
        }
        if b"\r\n".starts_with(&self.input) {
            return false;
        }
        self.break_off()
    }

    fn poison(&mut self, fault: Fault) -> bool {
        self.verdicts.poison(fault);
        self.ready.extend_from_slice(POISON);
        self.input.clear();
        self.deadline = None;
        self.state = State::Poisoned;
        false
    }

    fn break_off(&mut self) -> bool {
        self.input.clear();
        self.state = State::Broken;
        false
    }

    /// Starts, keeps or ends the timer of what is being waited for. `Ready` when it has run out.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Wait> {
        let wanted = match self.state {
            State::Head { .. } if !self.input.is_empty() => Some((Wait::Head, self.limits.header_timeout)),
            State::Head { .. } if self.verdicts.idle() => Some((Wait::Idle, IDLE_TIME_MAX)),
            _ => None,
        };
        match (wanted, &self.deadline) {
            (None, _) => self.deadline = None,
            (Some((wait, _)), Some((running, _))) if wait == *running => {}
            (Some((wait, time)), _) => self.deadline = Some((wait, Box::pin(sleep(time)))),
        }
        match &mut self.deadline {
            Some((wait, timer)) => {
                let wait = *wait;
                timer.as_mut().poll(cx).map(|()| wait)
            }
            None => Poll::Pending,
        }
    }
}

impl<IO: AsyncRead + Unpin> Guard<IO> {
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [0_u8; READ_BYTES];
        let mut buf = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
        let read = buf.filled();
        if self.state != State::Poisoned && self.state != State::Broken {
            self.input.extend_from_slice(read);
        }
        Poll::Ready(Ok(read.len()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.ready.is_empty() {
                let n = this.ready.len().min(buf.remaining());
                if let Some(part) = this.ready.get(..n) {
                    buf.put_slice(part);
                }
                this.ready.advance(n);
                return Poll::Ready(Ok(()));
            }
            match this.state {
                // The answer is on its way and closes the connection; what else comes is thrown away in `poll_shutdown`.
                State::Poisoned => return Poll::Pending,
                State::Broken => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the framing of a body was violated"))),
                _ => {}
            }
            match this.poll_input(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(_)) => this.judge(),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => match ready!(this.poll_deadline(cx)) {
                    Wait::Idle => return Poll::Ready(Ok(())),
                    Wait::Head => {
                        this.poison(Fault::Late);
                    }
                },
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.io).poll_write(cx, buf);
        this.watch(cx, done)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.watch(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    /// Says that nothing more comes, then throws away what the client is still sending: closing a socket with unread bytes resets
    /// the connection, and the client would never read why it was refused.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            if matches!(this.state, State::Head { .. }) {
                return Poll::Ready(Ok(()));
            }
            this.state = State::Broken;
        }
        let timer = this.linger.get_or_insert_with(|| Box::pin(sleep(LINGER_TIME_MAX)));
        if timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        while this.lingered < LINGER_BYTES_MAX {
            match ready!(this.poll_input(cx)) {
                Ok(0) | Err(_) => break,
                Ok(n) => this.lingered += n,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO> Guard<IO> {
    fn watch(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if done.is_ready() {
            self.stall = None;
            return done;
        }
        let timer = self.stall.get_or_insert_with(|| Box::pin(sleep(STALL_TIME_MAX)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

/// Where the head ends, looking only at bytes from `scanned` on.
fn end_of_head(input: &[u8], scanned: usize, limits: &Limits) -> Result<Option<usize>, Fault> {
    let mut previous = scanned.checked_sub(1).and_then(|at| input.get(at)).copied();
    for (at, byte) in input.iter().copied().enumerate().skip(scanned) {
        if at >= limits.header_bytes_max {
            return Err(Fault::TooLarge);
        }
        match (previous, byte) {
            (Some(b'\r'), b'\n') if input.get(..=at).is_some_and(|head| head.ends_with(b"\r\n\r\n")) => return Ok(Some(at + 1)),
            (Some(b'\r'), b'\n') => {}
            (Some(b'\r'), _) | (_, b'\n' | 0x7f) => return Err(Fault::Line),
            (_, control) if control < b' ' && control != b'\r' && control != b'\t' => return Err(Fault::Line),
            _ => {}
        }
        previous = Some(byte);
    }
    Ok(None)
}

fn read_head(head: &[u8], limits: &Limits) -> Result<Framing, Fault> {
    // httparse and hyper pass over empty lines before a request; we do not.
    if head.starts_with(b"\r\n") {
        return Err(Fault::Syntax);
    }
    let mut fields = vec![httparse::EMPTY_HEADER; limits.header_fields_max];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(n)) if n == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Fault::TooMany),
        Err(httparse::Error::Token) if head.first().is_some_and(u8::is_ascii_alphabetic) => return Err(Fault::Target),
        _ => return Err(Fault::Syntax),
    }
    let target = request.path.unwrap_or_default();
    if !target.starts_with('/') || target.starts_with("//") || !target.bytes().all(stands_in_target) {
        return Err(Fault::Target);
    }
    let old = request.version == Some(0);
    let mut seen = [false; SINGULAR.len()];
    let (mut length, mut chunked, mut host) = (None, false, false);
    for field in request.headers.iter() {
        let name = field.name.to_ascii_lowercase();
        if let Some(seen) = SINGULAR.iter().position(|n| *n == name).and_then(|at| seen.get_mut(at)) {
            if std::mem::replace(seen, true) {
                return Err(Fault::Twice);
            }
            if !field.value.iter().all(|b| matches!(b, b' '..=b'~')) {
                return Err(Fault::Value);
            }
        }
        match name.as_str() {
            "host" if field.value.iter().all(|b| stands_in_host(*b)) => host = true,
            "host" => return Err(Fault::Host),
            "content-length" => length = Some(number(field.value).ok_or(Fault::Length)?),
            "transfer-encoding" if field.value.eq_ignore_ascii_case(b"chunked") && !old => chunked = true,
            "transfer-encoding" => return Err(Fault::Coding),
            "upgrade" => return Err(Fault::Upgrade),
            "expect" if !field.value.eq_ignore_ascii_case(b"100-continue") || old => return Err(Fault::Upgrade),
            "x-vault-token" | "authorization" if field.value.len() > limits.token_bytes_max => return Err(Fault::TokenTooLong),
            "x-vault-token" if field.value.contains(&b' ') => return Err(Fault::Value),
            _ => {}
        }
    }
    if !host && !old {
        return Err(Fault::Host);
    }
    match (length, chunked) {
        (Some(_), true) => Err(Fault::Length),
        (None, true) => Ok(Framing::Chunked),
        (length, false) => Ok(Framing::Length(length.unwrap_or(0))),
    }
}

/// `1*DIGIT`, nothing else: no sign, no list, no space.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 18 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// RFC 3986 path and query, and nothing that some party cuts, turns or escapes on its own.
fn stands_in_target(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%[]".contains(&byte)
}

fn stands_in_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]%".contains(&byte)
}

/// The length of a chunk's first line and the size that it gives. No extensions, no spaces.
fn chunk_size(input: &[u8]) -> Result<Option<(usize, u64)>, ()> {
    let digits = input.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if digits > CHUNK_DIGITS_MAX {
        return Err(());
    }
    let (hex, rest) = input.split_at_checked(digits).ok_or(())?;
    match rest {
        [] => Ok(None),
        [b'\r'] if digits > 0 => Ok(None),
        [b'\r', b'\n', ..] if digits > 0 => {
            let hex = std::str::from_utf8(hex).map_err(drop)?;
            Ok(Some((digits + 2, u64::from_str_radix(hex, 16).map_err(drop)?)))
        }
        _ => Err(()),
    }
}
