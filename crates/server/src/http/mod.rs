//! HTTP/1.1 on a listener: connections, limits, framing. What a request means is the kernel's; what leaves is what it released.
//!
//! INVARIANT: every answer that a client reads was made by [`Serve`]; hyper and this module make none.

mod body;
pub mod guard;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use base::{Kind, Limits, Refusal};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

pub use body::Body;
use body::ReplyBody;
use guard::{Guard, Verdicts};
use kernel::Head;

/// Time to wait before accepting again when the system has run out of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time for answers under way to leave when the server stops.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
/// Header fields that the kernel reads. All others stay here.
const FIELDS: [&str; 7] =
    ["x-vault-token", "authorization", "x-vault-namespace", "x-vault-wrap-ttl", "content-type", "x-vault-request", "user-agent"];

/// An answer in parts: status, header fields, body.
pub type Parts = (u16, Vec<(&'static str, String)>, audit::Body);

/// What can be sent. Implemented for released answers, and for nothing else outside tests.
pub trait Outgoing: Send {
    /// Takes the answer apart.
    fn into_parts(self) -> Parts;
}

impl Outgoing for audit::Released {
    fn into_parts(self) -> Parts {
        Self::into_parts(self)
    }
}

/// Who answers. One value serves all connections.
pub trait Serve: Send + Sync + 'static {
    /// What it answers with.
    type Reply: Outgoing;
    /// Answers a request whose head passed the guard.
    fn serve(self: &Arc<Self>, head: Head, body: Body) -> impl Future<Output = Self::Reply> + Send;
    /// Answers, and records, a request that is not served: malformed, late, or one whose handler panicked.
    fn reject(self: &Arc<Self>, remote: SocketAddr, refusal: Refusal) -> impl Future<Output = Self::Reply> + Send;
}

/// Serves `listener` until `stop` becomes true, then lets answers under way leave for a while.
pub async fn run<S: Serve>(listener: TcpListener, service: Arc<S>, limits: Arc<Limits>, mut stop: watch::Receiver<bool>) {
    let connections = Arc::new(Semaphore::new(limits.connections_max));
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, remote)) => {
                let connection = connection(stream, remote, &service, &limits);
                let watched = graceful.watch(connection);
                tokio::spawn(async move {
                    if let Err(error) = watched.await {
                        tracing::debug!(%remote, %error, "connection ended early");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if timeout(DRAIN_TIME_MAX, graceful.shutdown()).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
}

fn connection<S: Serve>(
    stream: TcpStream,
    remote: SocketAddr,
    service: &Arc<S>,
    limits: &Arc<Limits>,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> + Send + 'static {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%remote, %error, "could not switch off Nagle's algorithm");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = drop_when_gone(&stream) {
        tracing::debug!(%remote, %error, "could not bound the time for which a client may be silent");
    }
    serve_io(stream, remote, service, limits)
}

/// A client that vanished without a word takes nothing any more, but what is sent to it fits the system's buffer for long: so the system is
/// told how long bytes may stay unacknowledged, or a stream to nobody would keep its place for a quarter of an hour.
#[cfg(target_os = "linux")]
fn drop_when_gone(stream: &TcpStream) -> io::Result<()> {
    let millis = u32::try_from(guard::STALL_TIME_MAX.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(stream, millis).map_err(Into::into)
}

/// One connection over anything that reads and writes.
pub(crate) fn serve_io<S: Serve, IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static>(
    io: IO,
    remote: SocketAddr,
    service: &Arc<S>,
    limits: &Arc<Limits>,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> + Send + 'static {
    let verdicts = Arc::new(Verdicts::default());
    let guard = Guard::new(io, Arc::clone(limits), Arc::clone(&verdicts));
    let (service, limits, served) = (Arc::clone(service), Arc::clone(limits), AtomicU64::new(0));
    let service = service_fn(move |request| {
        let number = served.fetch_add(1, Ordering::AcqRel);
        answer(Arc::clone(&service), request, remote, number, Arc::clone(&verdicts), Arc::clone(&limits))
    });
    // Time for heads is kept by the guard, which answers; hyper would only close.
    http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(None).serve_connection(TokioIo::new(guard), service)
}

async fn answer<S: Serve>(
    service: Arc<S>,
    request: Request<Incoming>,
    remote: SocketAddr,
    number: u64,
    verdicts: Arc<Verdicts>,
    limits: Arc<Limits>,
) -> Result<Response<ReplyBody>, io::Error> {
    let refused = match verdicts.fault(number) {
        Some(fault) => Some(fault.refusal()),
        // Nothing is decompressed here, so nothing small grows large.
        None if encoded(&request) => Some(Refusal::of(Kind::MediaType, "`Content-Encoding` is not supported")),
        None => None,
    };
    let outcome = match refused {
        Some(refusal) => Err(refusal),
        None => {
            let (head, body) = split(request, remote, &limits);
            caught(timeout(limits.request_timeout, service.serve(head, body))).await
        }
    };
    let reply = match outcome {
        Ok(reply) => reply,
        Err(refusal) => service.reject(remote, refusal).await,
    };
    respond(reply.into_parts(), verdicts)
}

/// Waits for an answer; a panic and a missed deadline become refusals.
async fn caught<R>(answer: impl Future<Output = Result<R, tokio::time::error::Elapsed>>) -> Result<R, Refusal> {
    match Caught(pin!(answer)).await {
        Some(Ok(reply)) => Ok(reply),
        Some(Err(_)) => Err(Refusal::of(Kind::Unavailable, "the request took too long")),
        None => {
            tracing::error!("a request handler panicked");
            Err(Refusal::internal("a request handler panicked"))
        }
    }
}

/// A future whose panics end here. Nothing of it is used after one, so no half-changed state is seen.
struct Caught<F>(F);

impl<F: Future + Unpin> Future for Caught<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.0).poll(cx))) {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        }
    }
}

fn encoded(request: &Request<Incoming>) -> bool {
    request.headers().get(http::header::CONTENT_ENCODING).is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

fn split(request: Request<Incoming>, remote: SocketAddr, limits: &Limits) -> (Head, Body) {
    let (parts, incoming) = request.into_parts();
    let headers = parts
        .headers
        .iter()
        .filter(|(name, _)| FIELDS.contains(&name.as_str()))
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), std::str::from_utf8(value.as_bytes()).ok()?.to_owned())))
        .collect();
    let target = parts.uri.path_and_query().map(|target| target.as_str().to_owned()).unwrap_or_default();
    (Head { method: parts.method.as_str().to_owned(), target, headers, remote }, Body::new(incoming, limits.body_timeout))
}

fn respond((status, headers, body): Parts, verdicts: Arc<Verdicts>) -> Result<Response<ReplyBody>, io::Error> {
    let broken = |_| io::Error::other("a released answer has an impossible status or header");
    let mut response = Response::new(ReplyBody::new(body, verdicts));
    *response.status_mut() = StatusCode::from_u16(status).map_err(|e| broken(http::Error::from(e)))?;
    // Everything here may be a secret: no cache keeps it. Nothing here is a page: no browser makes one of it.
    let headers_out = response.headers_mut();
    headers_out.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers_out.insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers_out.insert(http::header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    if response.status() == StatusCode::REQUEST_TIMEOUT {
        // What is missing of the request may still come, and must not be read as the next one (RFC 9110, section 15.5.9).
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| broken(http::Error::from(e)))?;
        let value = HeaderValue::from_maybe_shared(Bytes::from(value)).map_err(|e| broken(http::Error::from(e)))?;
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}
