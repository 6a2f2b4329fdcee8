//! List of the copies that a run has made, in the run's directory. Lost by a reboot.
//!
//! For what can't carry tags as a volume does: `vbk snapshots` finds it here. A path is noted before anything is made
//! of that name, so a kill leaves at worst a note of a file that does not exist.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::SnapshotError;
use crate::host::run::Run;

/// The list; each path ends with a zero byte.
const LIST: &str = "copies";

/// Notes a copy that a run is about to make.
pub(super) fn add(run: &Run, path: &Path) -> Result<(), SnapshotError> {
    let list = run.dir().join(LIST);
    let mut line = path.as_os_str().as_bytes().to_vec();
    line.push(0);
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(&list)
        .and_then(|mut file| file.write_all(&line))
        .map_err(SnapshotError::io("write", list))
}

/// The copies that a run noted, as far as they exist.
pub(super) fn of(run_dir: &Path) -> Vec<PathBuf> {
    let list = std::fs::read(run_dir.join(LIST)).unwrap_or_default();
    let paths = list.split(|byte| *byte == 0).filter(|path| !path.is_empty());
    let paths = paths.map(|path| PathBuf::from(OsStr::from_bytes(path)));
    paths
        .filter(|path| path.is_absolute() && path.symlink_metadata().is_ok())
        .collect()
}
