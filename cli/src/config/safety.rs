//! Finds out which users can change a file: anyone who can change a command that runs as root is root.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::exit::{Error, Result};

/// Size limit of a configuration. A disk that was named by mistake is larger.
const MAX_BYTES: u64 = 4 << 20;
/// Number of links that the kernel follows.
const MAX_LINKS: u32 = 40;

/// Reads the text of a file.
pub(super) fn read(path: &Path) -> Result<String> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::Usage(format!("can't read the configuration {}: {error}", path.display()))
    };
    // Before opening: opening a pipe could wait for ever.
    let metadata = std::fs::metadata(path).map_err(|error| failed(&error))?;
    if metadata.is_dir() {
        return Err(failed(&"it is a directory"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| failed(&error))?;
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(&error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(failed(&format_args!("it has more than {MAX_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| failed(&"it is not UTF-8 text"))
}

/// Returns how other users than root and this one could change a file, if they can: by writing to it, or by replacing it, a
/// directory above it, or a link on the way.
pub fn others_may_write(path: &Path) -> Option<String> {
    let describe = |path: &Path, error: std::io::Error| Some(format!("can't examine {}: {error}", path.display()));
    let path = match std::path::absolute(path) {
        Ok(path) => path,
        Err(error) => return describe(path, error),
    };
    // Follows the path as the kernel does (path_resolution(7)). `left` is the rest of it, the next part last.
    let parts = |path: &Path| -> Vec<PathBuf> {
        let parts = path.components().rev();
        parts.map(|part| PathBuf::from(part.as_os_str())).collect()
    };
    let (mut left, mut here, mut links) = (parts(&path), PathBuf::new(), 0);
    while let Some(part) = left.pop() {
        if part == Path::new("..") {
            here.pop();
            continue;
        }
        // A link to an absolute path starts again from the root.
        let place = here.join(part);
        let metadata = match std::fs::symlink_metadata(&place) {
            Ok(metadata) => metadata,
            Err(error) => return describe(&place, error),
        };
        if let Some(why) = opening(&metadata) {
            return Some(format!("{} {why}", place.display()));
        }
        if !metadata.is_symlink() {
            here = place;
            continue;
        }
        links += 1;
        match std::fs::read_link(&place) {
            Ok(_) if links > MAX_LINKS => return Some(format!("{} leads through too many links", path.display())),
            Ok(target) => left.extend(parts(&target)),
            Err(error) => return describe(&place, error),
        }
    }
    None
}

fn opening(metadata: &Metadata) -> Option<String> {
    let mode = metadata.mode();
    if metadata.uid() != 0 && metadata.uid() != geteuid().as_raw() {
        return Some(format!("belongs to user {}", metadata.uid()));
    }
    // The mode of a link means nothing (symlink(7)): its directory decides who may replace it.
    if metadata.is_symlink() {
        return None;
    }
    // In a sticky directory users can't move or remove files of others (inode(7), S_ISVTX).
    if metadata.is_dir() && mode & 0o1000 != 0 {
        return None;
    }
    match (mode & 0o002 != 0, mode & 0o020 != 0 && metadata.gid() != 0) {
        (true, _) => Some(format!("is writable by everybody (mode {:o})", mode & 0o7777)),
        (_, true) => Some(format!(
            "is writable by group {} (mode {:o})",
            metadata.gid(),
            mode & 0o7777
        )),
        (false, false) => None,
    }
}
