//! Parts of a restore that `vbk restore` and `vbk boot --restore` have in common.

use std::fs::File;
use std::path::Path;

use vbk::restore::Behind;
use vbk_inside::overlay::{ChangedDisk, Changes};
use vbk_repo::backup::Image;

use crate::context::Context;
use crate::exit::{Error, Result};
use crate::terminal::units;

/// Opens a file of changes, which must be of the backup with this id and fit these disks of it.
pub fn open_changes(path: &Path, id: &str, images: &[&Image]) -> Result<Changes> {
    let opened = File::open(path).and_then(Changes::open);
    let changes = opened.map_err(Error::io(format!("open {}", path.display())))?;
    if changes.backup() != id {
        return Err(Error::Usage(format!(
            "{} holds changes of another backup: {}; `vbk show` takes that id",
            path.display(),
            changes.backup()
        )));
    }
    for image in images {
        let fits = |disk: &ChangedDisk| disk.name != image.disk.as_str() || disk.size_bytes == image.size_bytes;
        if !changes.disks().iter().all(fits) {
            return Err(Error::Usage(format!(
                "{} is damaged: it names another size for {}",
                path.display(),
                image.disk
            )));
        }
    }
    Ok(changes)
}

/// Describes the space after the end of the disk on a larger device.
pub fn print_behind(context: &Context<'_>, behind: Option<&Behind>, target: &Path) {
    let Some(behind) = behind else {
        return;
    };
    let target = target.display();
    for wiped in &behind.wiped {
        context.say(format_args!(
            "{target}: an old signature after the end of the disk, at {} bytes, was removed: {}",
            wiped.offset_bytes, wiped.what
        ));
    }
    context.say(format_args!(
        "{target} is {} larger than the disk; {} after its end are unchanged{}",
        units::size(behind.bytes),
        if behind.wiped.is_empty() {
            "the bytes"
        } else {
            "the other bytes"
        },
        if behind.gpt_ends_early {
            format!(". `sgdisk -e {target}` moves the second header of its GPT to the end")
        } else {
            String::new()
        }
    ));
}
