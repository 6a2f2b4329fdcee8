//! Choices for the snapshots of a guest.

use std::collections::BTreeMap;

use vbk_repo::name::DiskName;

use crate::host::holders::LastLook;

/// Space for what the guest changes while a thick snapshot exists.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SnapshotSize {
    /// A share of the origin's size: 0.2 for 20 %.
    Share(f64),
    /// Bytes.
    Bytes(u64),
}

/// Choice of how disks are held still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// By what each disk is.
    #[default]
    Auto,
    /// Not at all: disks that are in use are refused, unless they are to be read live.
    None,
}

/// Choices for the snapshots of a guest.
#[derive(Debug, Clone)]
pub struct SnapshotOptions {
    /// Space of thick snapshots; `None`: twice the use of the last runs, or 20 % of the origin, as far as there is
    /// room.
    pub size: Option<SnapshotSize>,
    /// Highest use of each disk's thick snapshot in the last runs.
    pub peak_bytes: BTreeMap<DiskName, u64>,
    /// Fill, 0 to 1, from which on snapshots and pools are extended; `None`: never.
    pub extend_at: Option<f64>,
    /// Fill from which on the run is stopped.
    pub stop_at: f64,
    /// Read disks that are in use as they are.
    pub live: bool,
    /// Choice of how disks are held still.
    pub method: Method,
    /// What other processes had open a moment ago, where several guests share it; otherwise each plan looks itself.
    pub last_look: Option<LastLook>,
}

impl Default for SnapshotOptions {
    fn default() -> Self {
        Self {
            size: None,
            peak_bytes: BTreeMap::new(),
            extend_at: Some(0.6),
            stop_at: 0.9,
            live: false,
            method: Method::Auto,
            last_look: None,
        }
    }
}
