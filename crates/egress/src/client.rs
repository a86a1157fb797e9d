//! One server, a few kept connections.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base::SecretBytes;
use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::guard::{Guard, dial};
use crate::{Address, Body, Error};

/// Connections kept for the next request at most.
const IDLE_MAX: usize = 8;
/// What [`Error::Timeout`] says when no connection came about.
pub(crate) const CONNECTION: &str = "connection";

/// What an exchange may cost.
#[derive(Clone, Debug)]
pub struct Options {
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time from the request to the head of the answer.
    pub head_timeout: Duration,
    /// Time from the head to the end of the body. Lines are exempt: whoever reads a stream sets its own.
    pub body_timeout: Duration,
    /// Bytes of an answer at most.
    pub body_bytes_max: usize,
    /// An idle connection is not used again after this long: servers close theirs about then, and a request must not race that.
    pub idle_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            body_bytes_max: 32 << 20,
            idle_timeout: Duration::from_secs(20),
        }
    }
}

/// A request to be sent. Built in pieces; what cannot be sent is refused by [`Client::send`].
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, HeaderText)>,
    body: SecretBytes,
}

enum HeaderText {
    Plain(String),
    Secret(base::SecretString),
}

impl Request {
    /// Any method (`GET`, `LIST`, …) on a target in origin form: `/path?query`, already percent-encoded.
    #[must_use]
    pub fn new(method: &str, target: &str) -> Self {
        Self { method: method.to_owned(), target: target.to_owned(), headers: Vec::new(), body: SecretBytes::new(Vec::new()) }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), HeaderText::Plain(value.to_owned())));
        self
    }

    /// Adds a header that no log may show.
    #[must_use]
    pub fn secret_header(mut self, name: &str, value: &base::SecretString) -> Self {
        self.headers.push((name.to_owned(), HeaderText::Secret(value.clone())));
        self
    }

    /// Sets the body. It is wiped when it has been sent.
    #[must_use]
    pub fn body(mut self, body: SecretBytes) -> Self {
        self.body = body;
        self
    }

    fn build(self, authority: &str) -> Result<http::Request<Full<Bytes>>, Error> {
        let refuse = |what| move || Error::Request { what };
        let method = http::Method::from_bytes(self.method.as_bytes()).map_err(|_| refuse("the method")())?;
        // A fragment would be cut off in silence and a target in absolute form would name another server.
        let origin = self.target.starts_with('/') && !self.target.starts_with("//") && !self.target.contains('#');
        let target: http::Uri = self.target.parse().ok().filter(|_| origin).ok_or_else(refuse("the target"))?;
        let mut request = http::Request::new(Full::new(Bytes::from_owner(Wiped(self.body))));
        *request.method_mut() = method;
        *request.uri_mut() = target;
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_str(authority).map_err(|_| refuse("the host name")())?);
        for (name, text) in self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refuse("the name of a header")())?;
            let (text, secret) = match &text {
                HeaderText::Plain(text) => (text, false),
                HeaderText::Secret(text) => (text.expose(), true),
            };
            let mut value = HeaderValue::from_str(text).map_err(|_| refuse("the value of a header")())?;
            value.set_sensitive(secret);
            headers.append(name, value);
        }
        Ok(request)
    }
}

/// Bytes that are wiped when the last reference goes.
struct Wiped(SecretBytes);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        self.0.expose()
    }
}

/// The head of an answer, and its body still to be read.
pub struct Response {
    /// The status.
    pub status: u16,
    headers: HeaderMap,
    /// What follows the head.
    pub body: Body,
}

impl Response {
    /// The first header of this name, if it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// An HTTP/1.1 client of one server that the operator named. Clones share the kept connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    address: Address,
    options: Options,
    idle: Mutex<Vec<(Sender, Instant)>>,
}

type Sender = SendRequest<Full<Bytes>>;

/// A connection in use. It returns to the idle ones when its body was read to the end.
pub(crate) struct Lent {
    sender: Sender,
    home: Option<Arc<Shared>>,
}

impl Lent {
    pub(crate) fn give_back(self) {
        let Some(home) = self.home else { return };
        if self.sender.is_closed() {
            return;
        }
        let mut idle = home.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push((self.sender, Instant::now()));
        }
    }
}

impl Client {
    /// A client of the server at `address`. Connects when first used.
    #[must_use]
    pub fn new(address: Address, options: Options) -> Self {
        Self { shared: Arc::new(Shared { address, options, idle: Mutex::new(Vec::new()) }) }
    }

    /// Where the server is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// Sends a request and waits for the head of the answer. A redirect is an answer like any other.
    ///
    /// A kept connection that turns out to be closed before anything was written is replaced by a fresh one; nothing that
    /// may have reached the server is sent again.
    ///
    /// # Errors
    /// [`Error`]; [`Error::never_sent`] tells whether the server can have acted.
    pub async fn send(&self, request: Request) -> Result<Response, Error> {
        let mut request = request.build(&self.shared.address.authority())?;
        while let Some(sender) = self.idle() {
            match self.exchange(sender, request, true).await {
                Exchange::Answered(response) => return Ok(response),
                Exchange::Failed(error) => return Err(error),
                Exchange::Unsent(back, _) => request = back,
            }
        }
        self.fresh(request, true).await
    }

    /// Sends a request on a connection of its own, which is closed afterwards. For streams, and for probes that must not
    /// profit from a connection made earlier.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn send_alone(&self, request: Request) -> Result<Response, Error> {
        self.fresh(request.build(&self.shared.address.authority())?, false).await
    }

    /// Opens a connection of its own and sends nothing yet: for who must see first which process takes it.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn connect_alone(&self) -> Result<Connection, Error> {
        let (sender, ends) = self.connect().await?;
        Ok(Connection { client: self.clone(), sender, ends })
    }

    async fn fresh(&self, request: http::Request<Full<Bytes>>, keep: bool) -> Result<Response, Error> {
        let (sender, _) = self.connect().await?;
        self.over(sender, request, keep).await
    }

    async fn over(&self, sender: Sender, request: http::Request<Full<Bytes>>, keep: bool) -> Result<Response, Error> {
        match self.exchange(sender, request, keep).await {
            Exchange::Answered(response) => Ok(response),
            Exchange::Failed(error) => Err(error),
            Exchange::Unsent(_, source) => Err(Error::Broken { doing: "sending the request", source }),
        }
    }

    async fn exchange(&self, mut sender: Sender, request: http::Request<Full<Bytes>>, keep: bool) -> Exchange {
        let after = self.shared.options.head_timeout;
        let sent = async {
            if let Err(source) = sender.ready().await {
                return Err(Exchange::Unsent(request, source));
            }
            sender.try_send_request(request).await.map_err(|mut error| match error.take_message() {
                Some(request) => Exchange::Unsent(request, error.into_error()),
                None => Exchange::Failed(Error::Broken { doing: "waiting for the answer", source: error.into_error() }),
            })
        };
        match tokio::time::timeout(after, sent).await {
            Ok(Ok(response)) => {
                let (head, incoming) = response.into_parts();
                let lent = Lent { sender, home: keep.then(|| Arc::clone(&self.shared)) };
                let body = Body::new(incoming, lent, self.shared.options.body_timeout, self.shared.options.body_bytes_max);
                Exchange::Answered(Response { status: head.status.as_u16(), headers: head.headers, body })
            }
            Ok(Err(other)) => other,
            Err(_) => Exchange::Failed(Error::Timeout { what: "head of the answer", after }),
        }
    }

    fn idle(&self) -> Option<Sender> {
        let mut idle = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < self.shared.options.idle_timeout);
        idle.pop().map(|(sender, _)| sender)
    }

    async fn connect(&self) -> Result<(Sender, Option<Ends>), Error> {
        let within = self.shared.options.connect_timeout;
        match &self.shared.address {
            Address::Tcp { host, port } => {
                let guard = Guard::new().allow(host, *port);
                let stream = dial(host, *port, &guard, within).await?;
                let ends = stream.local_addr().and_then(|local| Ok(Ends { local, peer: stream.peer_addr()? })).ok();
                Ok((self.handshake(stream).await?, ends))
            }
            Address::Unix(path) => {
                let stream = tokio::time::timeout(within, UnixStream::connect(path))
                    .await
                    .map_err(|_| Error::Timeout { what: CONNECTION, after: within })?
                    .map_err(|source| Error::Connect { address: self.shared.address.to_string(), source })?;
                Ok((self.handshake(stream).await?, None))
            }
        }
    }

    async fn handshake<S>(&self, stream: S) -> Result<Sender, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| Error::Broken { doing: "opening the connection", source })?;
        // What goes wrong on the connection reaches the request or body that waits for it.
        tokio::spawn(async move { connection.await.unwrap_or_default() });
        Ok(sender)
    }
}

/// The two ends of a TCP connection, as this side sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// This side.
    pub local: SocketAddr,
    /// The other side.
    pub peer: SocketAddr,
}

/// An open connection on which nothing was sent yet. Dropped, it is closed.
pub struct Connection {
    client: Client,
    sender: Sender,
    ends: Option<Ends>,
}

impl Connection {
    /// Its ends; a unix socket has none.
    #[must_use]
    pub fn ends(&self) -> Option<Ends> {
        self.ends
    }

    /// Sends the one request of this connection, and waits for the head of the answer.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn send(self, request: Request) -> Result<Response, Error> {
        let request = request.build(&self.client.shared.address.authority())?;
        self.client.over(self.sender, request, false).await
    }
}

enum Exchange {
    Answered(Response),
    Unsent(http::Request<Full<Bytes>>, hyper::Error),
    Failed(Error),
}

#[cfg(test)]
mod tests;
