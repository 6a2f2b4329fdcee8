//! The files that are kept with a backup because --attach names them.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use vbk_repo::backup::MAX_FILE_BYTES;
use vbk_repo::name::DiskName;

use crate::exit::{Error, Result};
use crate::terminal::units;

/// Reads the named files.
pub fn read(named: &[(DiskName, PathBuf)]) -> Result<Vec<(DiskName, Vec<u8>)>> {
    let mut files: Vec<(DiskName, Vec<u8>)> = Vec::new();
    for (name, path) in named {
        if files.iter().any(|(known, _)| known == name) {
            return Err(Error::Usage(format!("--attach {name}=... is given twice")));
        }
        let bytes = read_file(path).map_err(|what| Error::Usage(format!("--attach {}: {what}", path.display())))?;
        files.push((name.clone(), bytes));
    }
    Ok(files)
}

/// Reads one file, or returns the reason why it can't be kept.
pub fn read_file(path: &Path) -> std::result::Result<Vec<u8>, String> {
    // A pipe would wait for its writer.
    let options = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path);
    let file: File = options.map_err(|error| error.to_string())?;
    if !file.metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    // One byte more shows that a file is larger, even if it grows meanwhile.
    let read = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!(
            "it is larger than {}, the limit for a file kept with a backup; back it up as a disk instead, e.g. data=FILE",
            units::size(MAX_FILE_BYTES)
        ));
    }
    Ok(bytes)
}
