//! The reading end: durable records in order, while the writing end goes on.

use std::sync::{Arc, PoisonError, RwLock};

use crate::Error;
use crate::record::{FRAME_BYTES, claimed_size, read_frame};
use crate::segment::{HEADER_BLOCK, MARK_EVERY, Segment};

/// What the two ends share.
#[derive(Default)]
pub(crate) struct Shared(RwLock<State>);

#[derive(Default)]
struct State {
    segments: Vec<Known>,
    /// Records below this are durable.
    durable: u64,
}

struct Known {
    segment: Segment,
    /// (index, offset) of every so many records.
    marks: Vec<(u64, u64)>,
}

impl Shared {
    pub(crate) fn add_segment(&self, segment: &Segment, marks: Vec<(u64, u64)>) {
        self.write().segments.push(Known { segment: segment.clone(), marks });
    }

    pub(crate) fn set_durable(&self, next: u64) {
        self.write().durable = next;
    }

    /// Remembers where some records of a written batch begin.
    pub(crate) fn add_batch(&self, first: u64, offset: u64, frames: &[u8]) {
        let mut state = self.write();
        let Some(known) = state.segments.last_mut() else { return };
        let (mut index, mut at) = (first, 0_usize);
        while let Some(size) = frames.get(at..).and_then(claimed_size) {
            if index.saturating_sub(known.segment.header.first).is_multiple_of(MARK_EVERY) {
                known.marks.push((index, offset.saturating_add(at as u64)));
            }
            index += 1;
            at = at.saturating_add(size);
        }
    }

    fn durable(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).durable
    }

    /// The segment that holds a record, and the nearest known place at or before it.
    fn locate(&self, index: u64) -> Option<(Segment, u64, u64)> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let behind = state.segments.partition_point(|known| known.segment.header.first <= index);
        let known = state.segments.get(behind.checked_sub(1)?)?;
        let marks = known.marks.partition_point(|mark| mark.0 <= index);
        let (from, offset) =
            marks.checked_sub(1).and_then(|mark| known.marks.get(mark)).copied().unwrap_or((known.segment.header.first, HEADER_BLOCK));
        Some((known.segment.clone(), from, offset))
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads durable records. A clone reads the same log.
#[derive(Clone)]
pub struct Reader(Arc<Shared>);

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// How many records are durable.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.0.durable()
    }

    /// The records from `index` on that are durable now.
    #[must_use]
    pub fn read_from(&self, index: u64) -> Records {
        Records { shared: Arc::clone(&self.0), next: index, end: self.durable(), place: None, chunk: Vec::new(), at: 0 }
    }
}

/// Records in order, each with its index. Ends after the first error.
pub struct Records {
    shared: Arc<Shared>,
    next: u64,
    end: u64,
    place: Option<Place>,
    /// Bytes of the segment, of which those before `at` are done with.
    chunk: Vec<u8>,
    at: usize,
}

struct Place {
    segment: Segment,
    /// The record that `offset` is the place of.
    index: u64,
    offset: u64,
}

impl Iterator for Records {
    type Item = Result<(u64, Vec<u8>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.end {
            match self.step() {
                Ok(Some(record)) => {
                    let index = self.next;
                    self.next += 1;
                    return Some(Ok((index, record)));
                }
                Ok(None) => {}
                Err(error) => {
                    self.end = self.next;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl Records {
    /// Reads one frame; `None` when it lies before the wanted record.
    fn step(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let corrupt = |place: &Place, what| Error::Corrupt {
            file: place.segment.name.as_ref().to_owned(),
            offset: place.offset,
            index: place.index,
            what,
        };
        let mut place = match self.place.take() {
            Some(place) => place,
            None => self.seek()?,
        };
        let rest = self.chunk.get(self.at..).unwrap_or_default();
        if claimed_size(rest).is_none_or(|size| size > rest.len()) && !self.refill(&place)? {
            // The segment is read to its end: the wanted record is in the next one.
            let here = place.segment.header.ordinal;
            let elsewhere = self.shared.locate(place.index).is_some_and(|found| found.0.header.ordinal != here);
            return if elsewhere { Ok(None) } else { Err(corrupt(&place, "the record is missing")) };
        }
        let rest = self.chunk.get(self.at..).unwrap_or_default();
        let Some(frame) = read_frame(rest, place.segment.header.incarnation).filter(|frame| frame.index == place.index) else {
            return Err(corrupt(&place, "the record is damaged"));
        };
        let record = (frame.index == self.next).then(|| frame.record.to_vec());
        self.at = self.at.saturating_add(frame.size);
        place.offset = place.offset.saturating_add(frame.size as u64);
        place.index += 1;
        self.place = Some(place);
        Ok(record)
    }

    fn seek(&mut self) -> Result<Place, Error> {
        self.chunk.clear();
        self.at = 0;
        let (segment, index, offset) = self.shared.locate(self.next).ok_or_else(|| Error::Corrupt {
            file: String::new(),
            offset: 0,
            index: self.next,
            what: "no segment holds the record",
        })?;
        Ok(Place { segment, index, offset })
    }

    /// Reads on at the place; false at the end of the segment's records.
    fn refill(&mut self, place: &Place) -> Result<bool, Error> {
        let Segment { file, name, header } = &place.segment;
        let left = header.bytes.saturating_sub(place.offset);
        let read = |len: u64| {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            file.read_at(place.offset, &mut bytes).map_err(Error::io("read", name))?;
            Ok::<_, Error>(bytes)
        };
        self.chunk = read(left.min(CHUNK))?;
        self.at = 0;
        let Some(size) = claimed_size(&self.chunk).map(|size| size as u64) else {
            return Ok(self.chunk.iter().take(FRAME_BYTES).any(|byte| *byte != 0));
        };
        if size > self.chunk.len() as u64 {
            self.chunk = read(size.min(left))?;
        }
        Ok(true)
    }
}

/// How much is read at once.
const CHUNK: u64 = 256 << 10;
