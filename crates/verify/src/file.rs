//! Reading what somebody else wrote: files only, and never more of one than it can rightly hold.

use std::fs::File;
use std::io::{Error, Read, Result};
use std::path::Path;

/// The bytes of a file, or one byte more than `most` of a longer one: enough to see that it is too long.
pub(crate) fn read(path: &Path, most: usize) -> Result<Vec<u8>> {
    // A pipe would be waited for and a device has no end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(Error::other("is not a file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
