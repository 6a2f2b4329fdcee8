//! Snapshots and copies that outlive their run: those that a killed run left, and those that are kept as bases.

use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::sys::statfs::statfs;

use super::SnapshotError;
use crate::host::lvm;
use crate::host::program::Programs;
use crate::host::run::RunInfo;

/// A snapshot or copy that outlives its run.
pub(crate) trait Remains: fmt::Debug + Send {
    /// Removes it, after a look whether it is still the same; false if another process is using it or cleaning.
    fn remove(&self, programs: &Programs) -> Result<bool, SnapshotError>;

    /// Room that it takes ever more of, as its disk is overwritten; `None` if it fills nothing but itself.
    fn room(&self) -> Option<Room> {
        None
    }

    /// Group and name of each volume that its removal suspends for a moment.
    fn volumes(&self) -> Vec<(&str, &str)> {
        Vec::new()
    }
}

/// Room that bases take.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Room {
    /// A thin pool.
    Pool {
        /// Its volume group.
        vg: String,
        /// Its name.
        pool: String,
    },
    /// The file system of a file.
    FileSystem {
        /// The file, or one beside it.
        beside: PathBuf,
    },
}

impl Room {
    /// Fill, 0 to 1, of a pool's data or metadata or of a file system; `None` if it can't be known now.
    pub(crate) fn fill(&self, programs: &Programs) -> Result<Option<f64>, SnapshotError> {
        match self {
            Self::Pool { vg, pool } => {
                let pool = lvm::volume(programs, vg, pool)?;
                let fills = pool
                    .map(|pool| [pool.data_fill, pool.metadata_fill])
                    .unwrap_or_default();
                Ok(fills.into_iter().flatten().reduce(f64::max))
            }
            Self::FileSystem { beside } => Ok(fill_beside(beside)),
        }
    }

    /// Returns whether it is the thin pool of that name, e.g. `vg0/pool`.
    pub(super) fn is_pool(&self, name: &str) -> bool {
        match self {
            Self::Pool { vg, pool } => format!("{vg}/{pool}") == name,
            Self::FileSystem { .. } => false,
        }
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool { vg, pool } => write!(f, "thin pool {vg}/{pool}"),
            Self::FileSystem { .. } => f.write_str("its file system"),
        }
    }
}

/// Fill of a file's file system for users other than root, 0 to 1.
fn fill_beside(file: &Path) -> Option<f64> {
    let stat = statfs(file.parent()?).ok()?;
    let (all, free, left) = (stat.blocks(), stat.blocks_free(), stat.blocks_available());
    // As df(1) counts: what is reserved for root is neither used nor free.
    let used = all.saturating_sub(free);
    (used + left > 0).then(|| used as f64 / (used + left) as f64)
}

/// A snapshot or copy that vbk made.
#[derive(Debug)]
pub struct Leftover {
    /// `vg0/vbk-web1-...`, or the path of a copy.
    pub name: String,
    /// Its origin, e.g. `vg0/web1`; empty if unknown.
    pub of: String,
    /// Time at which it was made, as far as known.
    pub since: Option<Timestamp>,
    /// Fill, 0 to 1; of a thick snapshot only.
    pub fill: Option<f64>,
    /// It has overflowed and is of no use.
    pub invalid: bool,
    /// The run that made it.
    pub run: Option<String>,
    /// That run's own description, where it still can be read.
    pub info: Option<RunInfo>,
    /// Reason for which it exists.
    pub state: State,
    pub(super) remains: Box<dyn Remains>,
}

/// Reason for which a snapshot exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its run is at work.
    InUse,
    /// Its run ended without removing it.
    LeftBehind,
    /// Kept on purpose as the base of change hints.
    Kept,
    /// Another machine's vbk made it; only that one removes it.
    OtherHost,
    /// It lost some of its tags; vbk leaves it alone.
    Unclear,
}

/// Directories in which vbk notes what it made, and this machine.
#[derive(Debug, Clone, Copy)]
pub struct Directories<'a> {
    /// Notes of the runs, e.g. `/run/vbk`.
    pub runtime_dir: &'a Path,
    /// Notes that are to survive a reboot and may be lost, e.g. `/var/cache/vbk`.
    pub cache: &'a Path,
    /// This machine.
    pub host_id: &'a str,
}
