//! The marker of a repository: see `directory.rs`.

use std::fs;
use std::io;
use std::path::Path;

use super::files;
use crate::error::{Error, Result};
use crate::store::Identity;

/// The newest directory layout that this vbk reads, and the one it writes. Up to 1 each view was a directory with a link to
/// every file of the store.
pub const LAYOUT_FORMAT: u32 = 2;

pub(crate) const MARKER: &str = "vbk-repository";

/// The number of the layout that a marker states.
pub(super) fn format_in(text: &str) -> Option<u32> {
    let format = text
        .lines()
        .find_map(|line| line.strip_prefix("format: ")?.trim().parse().ok());
    format.filter(|format| *format > 0)
}

/// States the present layout in the marker of an older repository, before anything of that layout is written: an older vbk
/// refuses the repository from then on. Everything else in the marker stays, because it may be truer than the store, which
/// somebody may have replaced. A marker that is missing or damaged stays: a repair writes it again.
pub(super) fn raise_format(path: &Path) -> Result<()> {
    let marker = path.join(MARKER);
    let text = match fs::read(&marker) {
        Err(error) if error.kind() == io::ErrorKind::NotFound || files::is_lost(&error) => return Ok(()),
        read => read.map_err(Error::io("read", &marker))?,
    };
    let Ok(text) = String::from_utf8(text) else {
        return Ok(());
    };
    match format_in(&text) {
        Some(format) if format < LAYOUT_FORMAT => {
            let raised: String = text.split_inclusive('\n').map(raised).collect();
            files::write(&marker, raised.as_bytes())?;
            files::sync_directory(path)
        }
        _ => Ok(()),
    }
}

/// Returns a line of a marker as it is in one of the present layout.
fn raised(line: &str) -> String {
    match line.starts_with("format: ") {
        true => format!("format: {LAYOUT_FORMAT}\n"),
        false => line.to_owned(),
    }
}

/// Writes the marker, replacing a damaged one.
pub(super) fn write_marker(path: &Path, identity: &Identity) -> Result<()> {
    let marker = path.join(MARKER);
    let (id, key_check) = (&identity.id, identity.key_check.as_deref());
    let encryption = key_check.map_or(String::new(), |check| format!("encryption: aes-256-gcm {check}\n"));
    let text = format!(
        "This directory is a repository of vbk, with backups of virtual servers.\n\
         `vbk list --repo DIRECTORY` shows what is in it. Change nothing here by hand.\n\
         format: {LAYOUT_FORMAT}\nid: {id}\n{encryption}"
    );
    files::write(&marker, text.as_bytes())?;
    files::sync_directory(path)
}
