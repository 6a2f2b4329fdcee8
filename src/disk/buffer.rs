//! Memory that the kernel reads into and writes from without a copy: O_DIRECT requires aligned addresses.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_long_enough() {
        for len in [1, 512, 4096, 4097, 1 << 20] {
            let mut buffer = AlignedBuffer::new(len);
            assert!(buffer.as_mut_slice().len() >= len);
            assert_eq!(buffer.as_slice().as_ptr() as usize % ALIGN, 0);
        }
    }
}
