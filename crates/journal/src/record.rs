//! One record's frame: length, checksum, position, batch, bytes, padding.

/// The largest record. Larger things do not belong into a log.
pub const RECORD_BYTES_MAX: usize = (1 << 24) - 1;

/// Bytes in front of a record.
pub(crate) const FRAME_BYTES: usize = 24;
/// Frames begin at multiples of this.
pub(crate) const ALIGN: usize = 8;
/// Marks the first word of a frame, so that zeros are never one.
const TAG: u32 = 0x4b00_0000;

/// A frame whose checksum holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) index: u64,
    /// The first record of the batch that this one was synced with.
    pub(crate) batch: u64,
    pub(crate) record: &'a [u8],
    /// Bytes up to the next frame.
    pub(crate) size: usize,
}

/// Bytes that a record of this length takes.
pub(crate) fn frame_size(record: usize) -> usize {
    FRAME_BYTES.saturating_add(record).next_multiple_of(ALIGN)
}

/// Appends a frame to `into`. The caller has checked the record's length.
pub(crate) fn write_frame(into: &mut Vec<u8>, incarnation: u64, index: u64, batch: u64, record: &[u8]) {
    let word = TAG | u32::try_from(record.len()).unwrap_or(u32::MAX >> 8);
    let end = into.len().saturating_add(frame_size(record.len()));
    into.extend_from_slice(&word.to_be_bytes());
    into.extend_from_slice(&checksum(incarnation, word, index, batch, record).to_be_bytes());
    into.extend_from_slice(&index.to_be_bytes());
    into.extend_from_slice(&batch.to_be_bytes());
    into.extend_from_slice(record);
    into.resize(end, 0);
}

/// Bytes that the frame at the start of `bytes` claims to take, if it looks like one at all.
pub(crate) fn claimed_size(bytes: &[u8]) -> Option<usize> {
    let word = u32::from_be_bytes(*bytes.first_chunk()?);
    let len = usize::try_from(word & !(u32::MAX << 24)).ok()?;
    (word & (u32::MAX << 24) == TAG && len > 0).then(|| frame_size(len))
}

/// The frame at the start of `bytes`, if it is whole and of this incarnation.
pub(crate) fn read_frame(bytes: &[u8], incarnation: u64) -> Option<Frame<'_>> {
    let size = claimed_size(bytes)?;
    let word = u32::from_be_bytes(*bytes.first_chunk()?);
    let len = usize::try_from(word & !(u32::MAX << 24)).ok()?;
    let frame = bytes.get(..size)?;
    let sum = u32::from_be_bytes(frame.get(4..8)?.try_into().ok()?);
    let index = u64::from_be_bytes(frame.get(8..16)?.try_into().ok()?);
    let batch = u64::from_be_bytes(frame.get(16..24)?.try_into().ok()?);
    let record = frame.get(FRAME_BYTES..FRAME_BYTES.checked_add(len)?)?;
    (batch <= index && checksum(incarnation, word, index, batch, record) == sum).then_some(Frame { index, batch, record, size })
}

fn checksum(incarnation: u64, word: u32, index: u64, batch: u64, record: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&incarnation.to_be_bytes());
    sum.update(&word.to_be_bytes());
    sum.update(&index.to_be_bytes());
    sum.update(&batch.to_be_bytes());
    sum.update(record);
    sum.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(record: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, 7, 12, 10, record);
        bytes
    }

    #[test]
    fn a_frame_reads_back() {
        for len in [1, 7, 8, 9, 1000] {
            let record = vec![0xab; len];
            let bytes = frame(&record);
            assert_eq!(bytes.len() % ALIGN, 0);
            let read = read_frame(&bytes, 7).unwrap();
            assert_eq!(read, Frame { index: 12, batch: 10, record: &record, size: bytes.len() });
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let bytes = frame(b"some record");
        let used = FRAME_BYTES + b"some record".len();
        for at in 0..used {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert_eq!(read_frame(&bad, 7), None, "byte {at} bit {bit}");
            }
        }
        for len in 0..bytes.len() {
            assert_eq!(read_frame(&bytes[..len], 7), None, "cut at {len}");
        }
        assert_eq!(read_frame(&bytes, 8), None, "another incarnation");
    }

    #[test]
    fn zeros_are_no_frame() {
        assert_eq!(read_frame(&[0; 64], 0), None);
        assert_eq!(claimed_size(&[0; 64]), None);
    }
}
