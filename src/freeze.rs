//! Brings a guest to rest for the moment in which its disks are snapshotted.
