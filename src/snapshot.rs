//! Holds the disks of a guest still while they are read.

/// Space for what the guest changes while a thick snapshot is there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SnapshotSize {
    /// A share of the origin's size: 0.2 for 20 %.
    Share(f64),
    /// Bytes.
    Bytes(u64),
}
