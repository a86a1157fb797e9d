//! One file of a log: a header block, then frames, then zeros up to its fixed size.

use std::sync::Arc;

use crate::disk::{Disk, File};
use crate::record::{ALIGN, claimed_size, read_frame};
use crate::{Error, LogName};

/// The header has a block of its own, so that no later write touches its page.
pub(crate) const HEADER_BLOCK: u64 = 4096;

/// A file of the log that is, or is about to be, in use.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn File>,
    pub(crate) name: Arc<str>,
    pub(crate) header: Header,
}

/// What the header block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) ordinal: u64,
    pub(crate) incarnation: u64,
    /// The index of the first record.
    pub(crate) first: u64,
    /// The file's length.
    pub(crate) bytes: u64,
}

impl Header {
    pub(crate) fn encode(&self, log: &LogName) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for number in [self.ordinal, self.incarnation, self.first, self.bytes] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(log.as_str().as_bytes());
        bytes.resize(HEADER_BYTES - 4, 0);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8], log: &LogName) -> Option<Self> {
        let number = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?));
        let header = Self { ordinal: number(8)?, incarnation: number(16)?, first: number(24)?, bytes: number(32)? };
        (bytes.get(..HEADER_BYTES)? == header.encode(log).as_slice()).then_some(header)
    }
}

/// What a file found at opening is.
pub(crate) enum Found {
    /// In use.
    Used(Scan),
    /// Zero-filled ahead, never used.
    Spare(Segment),
}

/// A used segment, read to its end.
pub(crate) struct Scan {
    pub(crate) segment: Segment,
    /// The index behind the last good record.
    pub(crate) next: u64,
    /// The offset behind the last good record.
    pub(crate) end: u64,
    /// The end of whatever else is there: equal to `end` when only zeros follow.
    pub(crate) dirt: u64,
    /// A good record of a later batch lies behind `end`: what is bad at `end` was synced once.
    pub(crate) succeeded: bool,
    /// (index, offset) of some records, to begin reading at.
    pub(crate) marks: Vec<(u64, u64)>,
}

/// How many records lie between two marks.
pub(crate) const MARK_EVERY: u64 = 64;

pub(crate) fn file_name(log: &LogName, ordinal: u64) -> String {
    format!("{}-{ordinal:016x}{SEGMENT}", log.as_str())
}

/// The ordinal in a file name of this log, and whether the file is finished (or was abandoned while being made).
pub(crate) fn parse_name(log: &LogName, name: &str) -> Option<(u64, bool)> {
    let rest = name.strip_prefix(log.as_str())?.strip_prefix('-')?;
    let (digits, finished) = match rest.strip_suffix(SEGMENT) {
        Some(digits) => (digits, true),
        None => (rest.strip_suffix(UNFINISHED)?, false),
    };
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten().map(|ordinal| (ordinal, finished))
}

/// Makes a zero-filled, synced file under its final name.
pub(crate) fn make(disk: &dyn Disk, log: &LogName, ordinal: u64, bytes: u64) -> Result<Segment, Error> {
    let name = file_name(log, ordinal);
    let unfinished = name.replace(SEGMENT, UNFINISHED);
    let file = disk.create(&unfinished).map_err(Error::io("create", &unfinished))?;
    let zeros = vec![0; usize::try_from(bytes.min(1 << 20)).unwrap_or(1 << 20)];
    let mut at = 0;
    while at < bytes {
        let len = (bytes - at).min(zeros.len() as u64);
        let chunk = zeros.get(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
        file.write_at(at, chunk).map_err(Error::io("fill", &unfinished))?;
        at += len;
    }
    file.sync().map_err(Error::io("sync", &unfinished))?;
    disk.rename(&unfinished, &name).map_err(Error::io("rename", &unfinished))?;
    disk.sync_dir().map_err(Error::io("sync the directory of", &name))?;
    Ok(Segment { file, name: name.into(), header: Header { ordinal, incarnation: 0, first: 0, bytes } })
}

/// Reads a file found at opening.
pub(crate) fn examine(disk: &dyn Disk, log: &LogName, ordinal: u64) -> Result<Found, Error> {
    let name = file_name(log, ordinal);
    let file = disk.open(&name).map_err(Error::io("open", &name))?;
    let bytes = file.len().map_err(Error::io("measure", &name))?;
    let corrupt = |offset, index, what| Error::Corrupt { file: name.clone(), offset, index, what };
    let mut content = vec![0; usize::try_from(bytes).map_err(|_| corrupt(0, 0, "the file is too large"))?];
    file.read_at(0, &mut content).map_err(Error::io("read", &name))?;
    if content.iter().all(|byte| *byte == 0) {
        let header = Header { ordinal, incarnation: 0, first: 0, bytes };
        return Ok(Found::Spare(Segment { file, name: name.into(), header }));
    }
    let header = Header::decode(&content, log).ok_or_else(|| corrupt(0, 0, "the header is damaged"))?;
    if header.ordinal != ordinal || header.bytes != bytes {
        return Err(corrupt(0, header.first, "the header belongs to another file"));
    }
    let segment = Segment { file, name: name.into(), header };
    Ok(Found::Used(scan(segment, &content)))
}

fn scan(segment: Segment, content: &[u8]) -> Scan {
    let incarnation = segment.header.incarnation;
    let (mut next, mut at) = (segment.header.first, usize::try_from(HEADER_BLOCK).unwrap_or(usize::MAX));
    let mut marks = Vec::new();
    while let Some(frame) = content.get(at..).and_then(|rest| read_frame(rest, incarnation)).filter(|frame| frame.index == next) {
        if (next - segment.header.first).is_multiple_of(MARK_EVERY) {
            marks.push((next, at as u64));
        }
        next += 1;
        at = at.saturating_add(frame.size);
    }
    let rest = content.get(at..).unwrap_or_default();
    let dirt = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
    let succeeded = (0..dirt).step_by(ALIGN).any(|from| {
        let later = rest.get(from..).unwrap_or_default();
        claimed_size(later).is_some() && read_frame(later, incarnation).is_some_and(|frame| frame.batch > next)
    });
    Scan { segment, next, end: at as u64, dirt: at.saturating_add(dirt) as u64, succeeded, marks }
}

const MAGIC: &[u8; 8] = b"KWJRNL\x00\x01";
const HEADER_BYTES: usize = 76;
const SEGMENT: &str = ".segment";
const UNFINISHED: &str = ".unfinished";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        let log = LogName::new("changes").unwrap();
        assert_eq!(file_name(&log, 255), "changes-00000000000000ff.segment");
        assert_eq!(parse_name(&log, "changes-00000000000000ff.segment"), Some((255, true)));
        assert_eq!(parse_name(&log, "changes-00000000000000ff.unfinished"), Some((255, false)));
        for other in ["access-00000000000000ff.segment", "changes-ff.segment", "changes-00000000000000fg.segment", "LOCK", "index.redb"] {
            assert_eq!(parse_name(&log, other), None, "{other}");
        }
    }

    #[test]
    fn a_header_belongs_to_one_log_and_no_bit_of_it_flips_unseen() {
        let log = LogName::new("changes").unwrap();
        let header = Header { ordinal: 3, incarnation: 4, first: 5, bytes: 8192 };
        let bytes = header.encode(&log);
        assert_eq!(bytes.len(), HEADER_BYTES);
        assert_eq!(Header::decode(&bytes, &log), Some(header));
        assert_eq!(Header::decode(&bytes, &LogName::new("access").unwrap()), None);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bad, &log), None, "bit {bit}");
        }
    }
}
