//! Bodies in both directions: a request's, read only when the kernel asks and only as far as it allows; an answer's, whole or in frames.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use kernel::{BodyFault, BodySource};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::guard::Verdicts;

/// The body of a request, not read yet.
#[derive(Debug)]
pub struct Body {
    incoming: Incoming,
    time_max: Duration,
}

impl Body {
    pub(super) fn new(incoming: Incoming, time_max: Duration) -> Self {
        Self { incoming, time_max }
    }

    /// Reads all of it. What announces itself as too large is refused before a byte of it is read.
    ///
    /// # Errors
    /// [`BodyFault`].
    pub async fn read(self, bytes_max: usize) -> Result<Bytes, BodyFault> {
        let Self { incoming, time_max } = self;
        if incoming.size_hint().lower() > bytes_max as u64 {
            return Err(BodyFault::TooLarge);
        }
        timeout(time_max, collect(incoming, bytes_max)).await.unwrap_or(Err(BodyFault::TooSlow))
    }
}

impl BodySource for Body {
    fn read(self: Box<Self>, bytes_max: usize) -> engine::BoxFuture<'static, Result<Bytes, BodyFault>> {
        Box::pin(async move { Body::read(*self, bytes_max).await })
    }
}

async fn collect(mut incoming: Incoming, bytes_max: usize) -> Result<Bytes, BodyFault> {
    let announced = usize::try_from(incoming.size_hint().lower()).unwrap_or(0).min(bytes_max);
    let mut whole: Option<BytesMut> = None;
    let mut first: Option<Bytes> = None;
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame.map_err(|_| BodyFault::Broken)?.into_data() else { continue };
        let so_far = whole.as_ref().map_or_else(|| first.as_ref().map_or(0, Bytes::len), BytesMut::len);
        if so_far.saturating_add(data.len()) > bytes_max {
            return Err(BodyFault::TooLarge);
        }
        match (&mut whole, first.take()) {
            (Some(whole), _) => whole.extend_from_slice(&data),
            (None, None) => first = Some(data),
            (None, Some(first)) => {
                let mut bytes = BytesMut::with_capacity(announced.max(first.len() + data.len()));
                bytes.extend_from_slice(&first);
                bytes.extend_from_slice(&data);
                whole = Some(bytes);
            }
        }
    }
    Ok(whole.map(BytesMut::freeze).or(first).unwrap_or_default())
}

/// The body of an answer on its way out. Tells the guard when it is gone, so that the connection counts as idle again.
pub(super) struct ReplyBody {
    payload: audit::Body,
    verdicts: Arc<Verdicts>,
}

impl ReplyBody {
    pub(super) fn new(payload: audit::Body, verdicts: Arc<Verdicts>) -> Self {
        Self { payload, verdicts }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        self.verdicts.answered();
    }
}

impl HttpBody for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.get_mut().payload {
            audit::Body::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            audit::Body::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            audit::Body::Frames(frames) => Poll::Ready(ready!(next(frames, cx)).map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.payload, audit::Body::Bytes(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.payload {
            audit::Body::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            audit::Body::Frames(_) => SizeHint::default(),
        }
    }
}

/// The next frame that is not empty: an empty one would end a chunked body.
fn next(frames: &mut mpsc::Receiver<audit::Frame>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
    loop {
        match ready!(frames.poll_recv(cx)) {
            Some(frame) => match frame.into_bytes() {
                empty if empty.is_empty() => {}
                bytes => return Poll::Ready(Some(bytes)),
            },
            None => return Poll::Ready(None),
        }
    }
}
