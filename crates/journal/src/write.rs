//! The writing end: one owner, buffered appends, one write and one sync per batch.

use std::sync::Arc;

use crate::disk::Disk;
use crate::group::Sink;
use crate::read::{Reader, Records, Shared};
use crate::record::{FRAME_BYTES, RECORD_BYTES_MAX, frame_size, write_frame};
use crate::segment::{self, Found, HEADER_BLOCK, Header, Scan, Segment};
use crate::{Durable, Error, LogName};

/// How to open a journal.
#[derive(Clone, Debug)]
pub struct Options {
    /// The log's name.
    pub name: LogName,
    /// The size of a segment; a record that needs more gets a larger one of its own.
    pub segment_bytes: u64,
    /// A number that nobody can guess and that no earlier opening used: it goes into every checksum, so stale or planted bytes never
    /// pass for records.
    pub incarnation: u64,
    /// How many records are known to have been durable. A log that holds fewer refuses to open.
    pub checkpoint: u64,
}

impl Options {
    /// The usual ones.
    #[must_use]
    pub fn new(name: LogName, incarnation: u64) -> Self {
        Self { name, segment_bytes: 4 << 20, incarnation, checkpoint: 0 }
    }
}

/// A log open for writing. There is one per log; the disk's lock keeps other processes out.
pub struct Journal {
    disk: Arc<dyn Disk>,
    options: Options,
    current: Segment,
    /// Where the next batch goes in `current`.
    end: u64,
    spare: Option<Segment>,
    /// Frames that are appended but not written.
    buffer: Vec<u8>,
    /// The first record in `buffer`.
    batch: u64,
    next: u64,
    /// The first record whose durability was not handed out yet.
    owed: u64,
    poison: Option<String>,
    shared: Arc<Shared>,
}

impl Journal {
    /// Opens the log, or makes it. Every segment is read and checked.
    ///
    /// What a crash left behind the last synced batch is cut off. Damage before that is refused.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Self, Error> {
        let (mut used, mut spare) = survey(&*disk, &options.name)?;
        let shared = Arc::new(Shared::default());
        for scan in &used {
            shared.add_segment(&scan.segment, scan.marks.clone());
        }
        let name = options.name.as_str();
        let (current, end, next) = match used.pop() {
            Some(scan) => {
                settle(&scan)?;
                (scan.segment, scan.end, scan.next)
            }
            None => {
                let fresh = match spare.take() {
                    Some(spare) => spare,
                    None => segment::make(&*disk, &options.name, FIRST_ORDINAL, options.segment_bytes.max(HEADER_BLOCK * 2))?,
                };
                let fresh = take_into_use(fresh, &options, 0)?;
                shared.add_segment(&fresh, Vec::new());
                (fresh, HEADER_BLOCK, 0)
            }
        };
        // The process before may have died between a rename and this.
        disk.sync_dir().map_err(Error::io("sync the directory of", name))?;
        if next < options.checkpoint {
            return Err(Error::Short { log: name.to_owned(), found: next, expected: options.checkpoint });
        }
        shared.set_durable(next);
        Ok(Self { disk, options, current, end, spare, buffer: Vec::new(), batch: next, next, owed: next, poison: None, shared })
    }

    /// The index that the next record gets.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        self.next
    }

    /// The log's name.
    #[must_use]
    pub fn name(&self) -> &LogName {
        &self.options.name
    }

    /// A reading end, to be used beside this one.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.shared))
    }

    /// The durable records from `index` on.
    #[must_use]
    pub fn read_from(&self, index: u64) -> Records {
        self.reader().read_from(index)
    }

    /// Adds a record to the batch. It is not durable, and may not be on the medium at all, before [`Journal::sync`].
    pub fn append(&mut self, record: &[u8]) -> Result<u64, Error> {
        self.check()?;
        if record.is_empty() || record.len() > RECORD_BYTES_MAX {
            return Err(Error::RecordSize { bytes: record.len() });
        }
        let size = frame_size(record.len()) as u64;
        if self.end.saturating_add(self.buffer.len() as u64).saturating_add(size) > self.current.header.bytes {
            // A batch never spans two segments: what is in use later is synced later.
            let moved = self.flush().and_then(|()| self.rotate(size));
            self.or_poison(moved)?;
        }
        let index = self.next;
        write_frame(&mut self.buffer, self.current.header.incarnation, index, self.batch, record);
        self.next += 1;
        Ok(index)
    }

    /// Writes the batch and syncs it: proof for every record appended since the last call.
    pub fn sync(&mut self) -> Result<Vec<Durable>, Error> {
        self.check()?;
        let flushed = self.flush();
        self.or_poison(flushed)?;
        let log = &self.options.name;
        let proofs = (self.owed..self.next).map(|index| Durable::new(log.clone(), index)).collect();
        self.owed = self.next;
        Ok(proofs)
    }

    /// Makes the next segment ready, so that no commit has to wait for it. To be called between batches.
    pub fn prepare(&mut self) -> Result<(), Error> {
        self.check()?;
        let prepared = self.fill_spare(0);
        self.or_poison(prepared)
    }

    /// Why the journal failed, if it did.
    #[must_use]
    pub fn poison(&self) -> Option<&str> {
        self.poison.as_deref()
    }

    fn check(&self) -> Result<(), Error> {
        match &self.poison {
            Some(reason) => Err(Error::Poisoned { log: self.options.name.as_str().to_owned(), reason: reason.clone() }),
            None => Ok(()),
        }
    }

    // INVARIANT: after a failed write or sync nothing is ever written again. The kernel may have dropped the pages and forgotten the
    // error, so a second sync that succeeds proves nothing.
    fn or_poison(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        if let Err(error) = &result {
            let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
            self.poison = Some(format!("{error}{cause}"));
        }
        result
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let Segment { file, name, .. } = &self.current;
        file.write_at(self.end, &self.buffer).map_err(Error::io("write", name))?;
        file.sync().map_err(Error::io("sync", name))?;
        self.shared.add_batch(self.batch, self.end, &self.buffer);
        self.end = self.end.saturating_add(self.buffer.len() as u64);
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_KEPT);
        self.batch = self.next;
        self.shared.set_durable(self.next);
        Ok(())
    }

    fn rotate(&mut self, frame: u64) -> Result<(), Error> {
        self.fill_spare(frame)?;
        if let Some(spare) = self.spare.take() {
            self.current = take_into_use(spare, &self.options, self.next)?;
            self.end = HEADER_BLOCK;
            self.shared.add_segment(&self.current, Vec::new());
        }
        Ok(())
    }

    /// Makes sure of a spare with room for a frame of this size.
    fn fill_spare(&mut self, frame: u64) -> Result<(), Error> {
        let needed = HEADER_BLOCK.saturating_add(frame.max(FRAME_BYTES as u64)).next_multiple_of(HEADER_BLOCK);
        if let Some(small) = self.spare.take_if(|spare| spare.header.bytes < needed) {
            self.disk.remove(&small.name).map_err(Error::io("remove", &small.name))?;
        }
        if self.spare.is_none() {
            let ordinal = self.current.header.ordinal.saturating_add(1);
            self.spare = Some(segment::make(&*self.disk, &self.options.name, ordinal, needed.max(self.options.segment_bytes))?);
        }
        Ok(())
    }
}

impl Sink for Journal {
    fn next_index(&self) -> u64 {
        self.next
    }

    fn write(&mut self, records: &[Vec<u8>]) -> Result<Vec<Durable>, Error> {
        for record in records {
            self.append(record)?;
        }
        self.sync()
    }

    fn rest(&mut self) -> Result<(), Error> {
        self.prepare()
    }
}

/// All segments of a log in order, and the spare behind them. Refuses gaps and damage.
fn survey(disk: &dyn Disk, log: &LogName) -> Result<(Vec<Scan>, Option<Segment>), Error> {
    let mut ordinals = Vec::new();
    for name in disk.list().map_err(Error::io("list the files of", log.as_str()))? {
        match segment::parse_name(log, &name) {
            Some((ordinal, true)) => ordinals.push(ordinal),
            // Abandoned while being made: nothing was ever written to it.
            Some((_, false)) => disk.remove(&name).map_err(Error::io("remove", &name))?,
            None => {}
        }
    }
    ordinals.sort_unstable();
    let (mut used, mut spare) = (Vec::<Scan>::new(), None);
    let mut expected = FIRST_ORDINAL;
    for ordinal in ordinals {
        let next = used.last().map_or(0, |scan| scan.next);
        let corrupt = |offset, what| Error::Corrupt { file: segment::file_name(log, ordinal), offset, index: next, what };
        if ordinal != expected {
            return Err(corrupt(0, "a segment before this one is missing"));
        }
        expected = expected.saturating_add(1);
        if spare.is_some() {
            return Err(corrupt(0, "the segment before this one was wiped"));
        }
        match segment::examine(disk, log, ordinal)? {
            Found::Spare(segment) => spare = Some(segment),
            Found::Used(scan) => {
                if let Some(last) = used.last() {
                    whole(last)?;
                }
                if scan.segment.header.first != next {
                    return Err(corrupt(24, "records before this segment are missing"));
                }
                used.push(scan);
            }
        }
    }
    Ok((used, spare))
}

/// A segment with a successor was synced to its end before the successor came into use.
fn whole(scan: &Scan) -> Result<(), Error> {
    if scan.dirt > scan.end { Err(damage(scan, "a bad record in a finished segment")) } else { Ok(()) }
}

/// Cuts what a crash left in the last segment, and makes sure of what stays: the process before may have died between writing it and
/// syncing it.
fn settle(scan: &Scan) -> Result<(), Error> {
    if scan.succeeded {
        return Err(damage(scan, "a bad record before good ones of a later batch"));
    }
    let Segment { file, name, .. } = &scan.segment;
    if scan.dirt > scan.end {
        let len = usize::try_from(scan.dirt - scan.end).unwrap_or(usize::MAX);
        file.write_at(scan.end, &vec![0; len]).map_err(Error::io("cut", name))?;
    }
    file.sync().map_err(Error::io("sync", name))
}

fn damage(scan: &Scan, what: &'static str) -> Error {
    Error::Corrupt { file: scan.segment.name.as_ref().to_owned(), offset: scan.end, index: scan.next, what }
}

/// Writes and syncs the header of a zero-filled segment.
fn take_into_use(segment: Segment, options: &Options, first: u64) -> Result<Segment, Error> {
    let Segment { file, name, header } = segment;
    // Distinct for every segment of every opening, as long as `options.incarnation` is.
    let incarnation = options.incarnation ^ header.ordinal.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let header = Header { incarnation, first, ..header };
    file.write_at(0, &header.encode(&options.name)).map_err(Error::io("write the header of", &name))?;
    file.sync().map_err(Error::io("sync", &name))?;
    Ok(Segment { file, name, header })
}

const FIRST_ORDINAL: u64 = 1;
/// Room that the batch buffer keeps between batches.
const BUFFER_KEPT: usize = 1 << 20;
