//! The content of a file: only its data is read and written, its holes stay holes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Stopped, Trouble};
use crate::device::Device;
use crate::error::Error;

/// Bytes that are read at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// Copies all data of a file; returns the number of written bytes.
pub(super) fn copy(
    content: &dyn Device,
    to: &File,
    buffer: &mut Vec<u8>,
    cancel: &AtomicBool,
    written: &dyn Fn(u64),
) -> Result<u64, Trouble> {
    let source = |error| Trouble::from(Error::Io(error));
    let size_bytes = content.size_bytes();
    let mut total_bytes = 0;
    let mut at_bytes = 0;
    while at_bytes < size_bytes {
        let Some(start_bytes) = content.next_data(at_bytes).map_err(source)? else {
            break;
        };
        let start_bytes = start_bytes.max(at_bytes);
        let end_bytes = content.next_hole(start_bytes).map_err(source)?.min(size_bytes);
        if start_bytes >= end_bytes {
            // Holes and data contradict each other, e.g. at the end of the file.
            if start_bytes >= size_bytes {
                break;
            }
            return Err(Error::damaged(format!(
                "no data at {start_bytes} bytes of the file, where there should be"
            ))
            .into());
        }
        at_bytes = start_bytes;
        while at_bytes < end_bytes {
            if cancel.load(Ordering::Relaxed) {
                return Err(Trouble::Stopped(Stopped::Interrupted));
            }
            let length = (end_bytes - at_bytes).min(CHUNK_BYTES);
            // At most a chunk, which fits.
            buffer.resize(length as usize, 0);
            content.read_at(at_bytes, buffer).map_err(source)?;
            to.write_all_at(buffer, at_bytes)?;
            at_bytes += length;
            total_bytes += length;
            written(length);
        }
    }
    to.set_len(size_bytes)?;
    Ok(total_bytes)
}
