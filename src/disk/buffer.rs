//! Memory that the kernel reads into and writes from without a copy: O_DIRECT requires aligned addresses.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::Mutex;

/// Alignment that is enough for every device and file system.
pub(crate) const ALIGN: usize = 4096;

/// A buffer whose bytes start at a multiple of 4096.
pub(crate) struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// Makes a buffer of `len` zero bytes, rounded up to a multiple of 4096.
    pub(crate) fn new(len: usize) -> Self {
        let len = len.next_multiple_of(ALIGN);
        let bytes = vec![0; len + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, start, len }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Buffers that several backups use one after the other: to get fresh memory from the kernel takes as long as to hash what is
/// read into it. Clones share them. There are never more than were in use at once.
#[derive(Clone, Default)]
pub struct Buffers(Arc<Mutex<Vec<AlignedBuffer>>>);

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffers({} idle)", self.0.lock().len())
    }
}

impl Buffers {
    /// Returns a buffer of `len` bytes, rounded up to a multiple of 4096, with any content.
    pub(crate) fn take(&self, len: usize) -> Buffer {
        let len = len.next_multiple_of(ALIGN);
        let idle = {
            let mut idle = self.0.lock();
            // That which was used last may still be in the processor's cache.
            let place = idle.iter().rposition(|buffer| buffer.len == len);
            place.map(|place| idle.remove(place))
        };
        Buffer {
            buffer: Some(idle.unwrap_or_else(|| AlignedBuffer::new(len))),
            home: self.clone(),
        }
    }
}

/// A buffer of [`Buffers`], which returns to them when it is dropped.
pub(crate) struct Buffer {
    /// `None` only while it is dropped.
    buffer: Option<AlignedBuffer>,
    home: Buffers,
}

impl Deref for Buffer {
    type Target = AlignedBuffer;

    fn deref(&self) -> &AlignedBuffer {
        self.buffer.as_ref().expect("it is not dropped yet")
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut AlignedBuffer {
        self.buffer.as_mut().expect("it is not dropped yet")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.0.lock().extend(self.buffer.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_by_who_needs_one_of_its_length() {
        let buffers = Buffers::default();
        let [one, two] = [buffers.take(5000), buffers.take(5000)];
        let address = |buffer: &Buffer| buffer.as_slice().as_ptr();
        let addresses = [address(&one), address(&two)];
        drop(one);
        drop(two);
        let other = buffers.clone().take(9000);
        assert_eq!(other.as_slice().len(), 12288);
        let again = [buffers.take(8192), buffers.take(8000)];
        assert_eq!([address(&again[1]), address(&again[0])], addresses);
        assert_eq!(buffers.0.lock().len(), 0);
    }

    #[test]
    fn buffers_are_aligned_and_long_enough() {
        for len in [1, 512, 4096, 4097, 1 << 20] {
            let mut buffer = AlignedBuffer::new(len);
            assert!(buffer.as_mut_slice().len() >= len);
            assert_eq!(buffer.as_slice().as_ptr() as usize % ALIGN, 0);
        }
    }
}
