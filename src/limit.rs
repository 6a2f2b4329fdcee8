//! How fast disks are read: the guest's own reads and writes come first.

/// What the reading of a disk may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ReadLimit {
    /// A share of the speed that the disk was allocated: 0.6 for 60 %.
    Share(f64),
    /// Bytes per second.
    BytesPerSec(u64),
    /// As fast as it goes.
    Unlimited,
}
