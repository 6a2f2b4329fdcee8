//! Removes the remains of mounts whose process was killed: file systems, loop devices, directories and logs.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use vbk_fuse::files::{HIDDEN_ROOT, clean_directories};
use vbk_fuse::volumes;

use crate::machine::runtime_directory;
use crate::servers;

/// Time for which the log and the record of a mount that ended are kept for people.
const LOG_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Removes the remains of killed mounts, which no mount point leads to any more.
pub fn clean_leftovers() {
    let root = Path::new(HIDDEN_ROOT);
    if !root.exists() || !nix::unistd::geteuid().is_root() {
        return;
    }
    match volumes::clean_leftovers(root) {
        Ok(cleaned) => {
            for gone in cleaned.mounts.iter().chain(&cleaned.loops) {
                tracing::info!("removed {}, which a killed mount left behind", gone.display());
            }
        }
        Err(error) => tracing::warn!("can't remove what killed mounts left behind: {error}"),
    }
    clean_directories(root);
    clean_logs();
}

/// Removes the logs and records of processes that have ended: empty logs at once, others after a week.
pub fn clean_logs() {
    let Ok(directory) = runtime_directory() else {
        return;
    };
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let is_record = servers::is_record(&name.to_string_lossy());
        let is_log = name.to_string_lossy().starts_with("mount-") && name.to_string_lossy().ends_with(".log");
        let (Ok(file), Ok(log)) = (File::open(entry.path()), entry.metadata()) else {
            continue;
        };
        let age = log.modified().ok().and_then(|last| last.elapsed().ok());
        // A record is empty until its mount is there.
        let useless = is_log && log.len() == 0 || age.is_some_and(|age| age > LOG_AGE);
        if (is_log || is_record) && useless && file.try_lock().is_ok() {
            // Another process may have removed it.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
