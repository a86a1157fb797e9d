//! Reading an answer: whole, or line by line while it is still being sent.

use std::time::Duration;

use base::SecretBytes;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::Error;
use crate::client::Lent;

/// The body of an answer. Dropped before its end it closes its connection; read to the end it gives the connection back.
pub struct Body {
    incoming: Incoming,
    lent: Option<Lent>,
    timeout: Duration,
    bytes_max: usize,
}

impl Body {
    pub(crate) fn new(incoming: Incoming, lent: Lent, timeout: Duration, bytes_max: usize) -> Self {
        Self { incoming, lent: Some(lent), timeout, bytes_max }
    }

    /// The whole body.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Timeout`] when the end does not come in time, [`Error::Broken`].
    pub async fn bytes(self) -> Result<SecretBytes, Error> {
        let limit = self.bytes_max;
        self.bytes_within(limit).await
    }

    /// The whole body if it has at most `limit` bytes.
    ///
    /// # Errors
    /// As [`Body::bytes`].
    pub async fn bytes_within(self, limit: usize) -> Result<SecretBytes, Error> {
        let read = self.read_beyond(limit).await?;
        if read.expose().len() > limit { Err(Error::TooLarge { limit, per: "" }) } else { Ok(read) }
    }

    /// The first `limit` bytes of the body, or all of a shorter one. What follows is not waited for.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Broken`].
    pub async fn beginning(self, limit: usize) -> Result<SecretBytes, Error> {
        let read = self.read_beyond(limit).await?;
        Ok(SecretBytes::new(read.expose().get(..limit).unwrap_or(read.expose()).to_vec()))
    }

    /// Reads to the end, or to the first chunk that passes `limit`.
    async fn read_beyond(mut self, limit: usize) -> Result<SecretBytes, Error> {
        let after = self.timeout;
        let read = async {
            let mut chunks = Vec::new();
            let mut total = 0_usize;
            while total <= limit
                && let Some(chunk) = self.chunk().await?
            {
                total = total.saturating_add(chunk.len());
                chunks.push(chunk);
            }
            let mut whole = Vec::with_capacity(total);
            chunks.iter().for_each(|chunk| whole.extend_from_slice(chunk));
            Ok(SecretBytes::new(whole))
        };
        tokio::time::timeout(after, read).await.unwrap_or(Err(Error::Timeout { what: "end of the body", after }))
    }

    /// The body as lines of at most `line_bytes_max` bytes each; the body as a whole has no limit.
    #[must_use]
    pub fn lines(self, line_bytes_max: usize) -> Lines {
        Lines { body: self, buffer: Vec::new(), start: 0, scanned: 0, line_bytes_max }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.incoming.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(source)) => return Err(Error::Broken { doing: "reading the body", source }),
                None => {
                    if let Some(lent) = self.lent.take() {
                        lent.give_back();
                    }
                    return Ok(None);
                }
            }
        }
    }
}

/// Lines of a body that is still being sent.
pub struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// Where the next line begins; what is before was given out and is wiped.
    start: usize,
    /// Up to where there is no end of a line.
    scanned: usize,
    line_bytes_max: usize,
}

impl Lines {
    /// The next line without its end; `None` when the body ends (a last line without an end is dropped: it may be cut).
    ///
    /// Cancel safe: a dropped call loses nothing.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for an over-long line, [`Error::Broken`].
    pub async fn next(&mut self) -> Result<Option<SecretBytes>, Error> {
        loop {
            if let Some(at) = self.buffer.iter().skip(self.scanned).position(|byte| *byte == b'\n') {
                let end = self.scanned + at;
                let found = self.buffer.get_mut(self.start..end).unwrap_or_default();
                let line = SecretBytes::new(found.strip_suffix(b"\r").unwrap_or(found).to_vec());
                found.fill(0);
                (self.start, self.scanned) = (end + 1, end + 1);
                return if line.expose().len() > self.line_bytes_max { Err(self.too_large()) } else { Ok(Some(line)) };
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() - self.start > self.line_bytes_max {
                return Err(self.too_large());
            }
            match self.body.chunk().await? {
                Some(chunk) => self.take(&chunk),
                None => return Ok(None),
            }
        }
    }

    /// Appends to the beginning of a line. A buffer that must grow, or holds lines that were given out, is wiped after the move.
    fn take(&mut self, chunk: &[u8]) {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let needed = rest.len() + chunk.len();
        if self.start > 0 || needed > self.buffer.capacity() {
            let mut moved = Vec::with_capacity(needed.next_power_of_two());
            moved.extend_from_slice(rest);
            self.scanned -= self.start;
            self.start = 0;
            drop(SecretBytes::new(std::mem::replace(&mut self.buffer, moved)));
        }
        self.buffer.extend_from_slice(chunk);
    }

    fn too_large(&self) -> Error {
        Error::TooLarge { limit: self.line_bytes_max, per: " in one line" }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        drop(SecretBytes::new(std::mem::take(&mut self.buffer)));
    }
}
