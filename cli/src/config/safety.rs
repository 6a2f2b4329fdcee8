//! Who can change a file: whoever can change what is run as root is root.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::geteuid;

use crate::exit::{Error, Result};

/// A configuration is not larger than this; a disk that was named by mistake is.
const MAX_BYTES: u64 = 4 << 20;

/// The text of a file.
pub(super) fn read(path: &Path) -> Result<String> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::Usage(format!("can't read the configuration {}: {error}", path.display()))
    };
    // Before opening: to open a pipe could wait for ever.
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

/// How others than root and this user could change a file, if they could: by writing to it, or by putting another one in
/// its place or in that of a directory above it.
pub fn others_may_write(path: &Path) -> Option<String> {
    let describe = |path: &Path, error: std::io::Error| Some(format!("can't look at {}: {error}", path.display()));
    let path = match std::path::absolute(path) {
        Ok(path) => path,
        Err(error) => return describe(path, error),
    };
    // Where a link stands matters as much as where it leads to.
    let place = path.parent().map(Path::canonicalize).transpose();
    let (target, place) = match (path.canonicalize(), place) {
        (Ok(target), Ok(place)) => (target, place),
        (Err(error), _) | (_, Err(error)) => return describe(&path, error),
    };
    let above = place.iter().flat_map(|place| place.ancestors());
    for part in target.ancestors().chain(above) {
        match std::fs::symlink_metadata(part) {
            Ok(metadata) => {
                if let Some(why) = opening(&metadata) {
                    return Some(format!("{} {why}", part.display()));
                }
            }
            Err(error) => return describe(part, error),
        }
    }
    None
}

fn opening(metadata: &Metadata) -> Option<String> {
    let mode = metadata.mode();
    if metadata.uid() != 0 && metadata.uid() != geteuid().as_raw() {
        return Some(format!("belongs to user {}", metadata.uid()));
    }
    // In a sticky directory nobody can move or remove what others own (inode(7), S_ISVTX).
    if metadata.is_dir() && mode & 0o1000 != 0 {
        return None;
    }
    match (mode & 0o002 != 0, mode & 0o020 != 0 && metadata.gid() != 0) {
        (true, _) => Some(format!("can be written by everybody (mode {:o})", mode & 0o7777)),
        (_, true) => Some(format!(
            "can be written by group {} (mode {:o})",
            metadata.gid(),
            mode & 0o7777
        )),
        (false, false) => None,
    }
}
