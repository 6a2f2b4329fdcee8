//! The data of a mirror of Linux RAID: read from one member, written to all, because the guest will read from any.

use std::io;

use crate::device::{Device, Window};

/// Members of a mirror that have all data; at least one.
pub(super) struct Mirror(pub(super) Vec<Window>);

impl Mirror {
    fn first(&self) -> io::Result<&Window> {
        self.0.first().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Device for Mirror {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.first()?.read_at(offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.0.iter().map(Window::size_bytes).min().unwrap_or(0)
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.0
            .iter()
            .try_for_each(|member| member.write_at(offset_bytes, bytes))
    }

    fn flush(&self) -> io::Result<()> {
        self.0.iter().try_for_each(Window::flush)
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        self.first()?.next_data(offset_bytes)
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        self.first()?.next_hole(offset_bytes)
    }
}
