//! The metadata of one device of a RAID volume: `struct dm_raid_superblock` (drivers/md/dm-raid.c), at the start of the
//! hidden volume `_rmeta_`.

use std::io;

use crate::device::{Device, le32, le64, read_array};

/// `DM_RAID_MAGIC`.
const MAGIC: u32 = 0x6452_6d44;
/// `FEATURE_FLAG_SUPPORTS_V190`: the fields from the flags on are valid.
const EXTENDED: u32 = 1;
/// `SB_FLAG_RESHAPE_ACTIVE`.
const RESHAPING: u32 = 1;
/// An offset that says that nothing is left to do (`MaxSector`).
const COMPLETE: u64 = u64::MAX;

/// What the superblock of one device says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Superblock {
    /// Counter of changes; the highest one of an array is right.
    pub(super) events: u64,
    /// The whole device has been rebuilt.
    pub(super) is_rebuilt: bool,
    /// Copies and parity have been computed for the whole array.
    pub(super) is_synchronised: bool,
    /// The array is being changed to another layout, or its data do not start at the start.
    pub(super) is_reshaped: bool,
    /// Level and layout, in the kernel's numbers.
    pub(super) layout: (u32, u32),
    failed: [u64; 4],
}

impl Superblock {
    /// Reads a superblock; `None` if there is none, as on a device that was added and not used yet.
    pub(super) fn read(device: &dyn Device) -> io::Result<Option<Self>> {
        let bytes = read_array::<512>(device, 0)?;
        Ok(bytes.filter(|bytes| le32(bytes, 0) == MAGIC).map(|bytes| {
            let extended = le32(&bytes, 4) & EXTENDED != 0;
            let if_extended = |at| if extended { le64(&bytes, at) } else { 0 };
            Self {
                events: le64(&bytes, 16),
                is_rebuilt: le64(&bytes, 32) == COMPLETE,
                is_synchronised: le64(&bytes, 40) == COMPLETE,
                is_reshaped: extended && (le32(&bytes, 60) & RESHAPING != 0 || le64(&bytes, 96) != 0),
                layout: (le32(&bytes, 48), le32(&bytes, 52)),
                failed: [le64(&bytes, 24), if_extended(120), if_extended(128), if_extended(136)],
            }
        }))
    }

    /// Tests that the array has stopped using a device.
    pub(super) fn has_failed(&self, device: usize) -> bool {
        let word = self.failed.get(device / 64);
        word.is_some_and(|word| word >> (device % 64) & 1 != 0)
    }
}
