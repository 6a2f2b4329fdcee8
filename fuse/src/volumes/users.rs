//! Finds the processes that keep a mount busy, from /proc alone. Reads links as text and opens no file of the mount,
//! which may be dead.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Processes that a message names at most; the others are counted.
const NAMED: usize = 5;

/// Describes the processes that use files at or below `path`: `bash (1234), less (1240) and 3 more`.
pub(super) fn describe_users(path: &Path) -> String {
    let mut users = processes_using(path);
    let more = users.len().saturating_sub(NAMED);
    users.truncate(NAMED);
    match (users.is_empty(), more) {
        (true, _) => {
            "something outside this machine's list of processes (another namespace, a loop device, a mount)".to_owned()
        }
        (false, 0) => users.join(", "),
        (false, more) => format!("{} and {more} more", users.join(", ")),
    }
}

fn processes_using(path: &Path) -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut users = Vec::new();
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // This process only wants to unmount it, though perhaps from a directory in it.
        if pid == std::process::id() {
            continue;
        }
        let process = process.path();
        if links(&process).any(|link| link.starts_with(path)) || maps(&process, path) {
            let comm = fs::read_to_string(process.join("comm")).unwrap_or_default();
            users.push(format!("{} ({pid})", comm.trim()));
        }
    }
    users
}

/// Returns the working directory, the root, the program and the open files of a process; none for a process that has
/// ended or that we may not examine.
fn links(process: &Path) -> impl Iterator<Item = PathBuf> {
    let own = ["cwd", "root", "exe"].map(|name| process.join(name));
    let open = fs::read_dir(process.join("fd")).into_iter().flatten();
    own.into_iter()
        .chain(open.flatten().map(|entry| entry.path()))
        .filter_map(|link| fs::read_link(link).ok())
}

/// Tests that a process has a file below `path` mapped (proc(5): the sixth field of a line of maps is the path, and may
/// have blanks).
fn maps(process: &Path, path: &Path) -> bool {
    let Ok(maps) = fs::read(process.join("maps")) else {
        return false;
    };
    maps.split(|byte| *byte == b'\n').any(|line| {
        line.iter()
            .position(|byte| *byte == b'/')
            .map(|start| Path::new(std::ffi::OsStr::from_bytes(&line[start..])))
            .is_some_and(|mapped| mapped.starts_with(path))
    })
}
