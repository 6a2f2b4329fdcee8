//! Finds other users of a target: before the first byte is written, every few seconds during the restore, and at the
//! end.

use std::path::Path;

use super::place::Identity;
use crate::error::{Error, Result};
use crate::host::device::DeviceNumber;
use crate::host::holders::{OpenFiles, lasting, writer_of_device, writer_of_file};
use crate::host::loops;

/// The target that no other process may use.
#[derive(Debug, Clone, Copy)]
pub(super) enum Used {
    /// A block device.
    Device {
        device: DeviceNumber,
        /// True to accept programs that write to it.
        force: bool,
    },
    /// A file to be replaced: a process that writes to it would continue to write to a file without a name.
    File(Identity),
    /// A file to be changed in place.
    InPlace(Identity),
}

/// Describes the user of a target, if there is one, and how to end that use.
pub(super) fn user_of(path: &Path, used: Used) -> Result<Option<String>> {
    let shown = match used {
        // Two loop devices may show the same file, and the kernel does not know that they are one disk.
        Used::Device { device, .. } => loops::sibling_of_device(device),
        // A file that backs a loop device is in use, though only that device shows it.
        Used::File(identity) | Used::InPlace(identity) => loops::showing_file(identity, false),
    };
    if let Some(node) = shown {
        let node = node.display();
        return Ok(Some(format!(
            "loop device {node} shows it too; `losetup -d {node}` first"
        )));
    }
    let writer = lasting(|| {
        Ok::<_, Error>(match used {
            Used::Device { force: true, .. } => None,
            // QEMU does not claim the disks of a running guest.
            Used::Device { device, .. } => writer_of_device(device, &OpenFiles::now()),
            Used::File(identity) | Used::InPlace(identity) => writer_of_file(path, identity, &OpenFiles::now()),
        })
    })?;
    let advice = match used {
        Used::Device { .. } => "shut that down first; --force writes all the same",
        Used::File(_) => "shut that down first, or move the file away to keep it",
        Used::InPlace(_) => "shut that down first",
    };
    Ok(writer.map(|writer| format!("{writer}; {advice}")))
}
