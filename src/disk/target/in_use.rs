//! Who else uses a target: asked before the first byte is written, every few seconds while it is written, and at the end.

use std::path::Path;

use super::place::Identity;
use crate::error::{Error, Result};
use crate::host::device::DeviceNumber;
use crate::host::holders::{lasting, writer_of_device, writer_of_file};
use crate::host::loops;

/// What must not be used by others.
#[derive(Debug, Clone, Copy)]
pub(super) enum Used {
    /// A block device.
    Device {
        device: DeviceNumber,
        /// Programs that write to it are accepted.
        force: bool,
    },
    /// A file that is to be replaced: who writes to it would write on to a file without a name.
    File(Identity),
}

/// Names the user of a target, if there is one, and says how to end that.
pub(super) fn user_of(path: &Path, used: Used) -> Result<Option<String>> {
    let shown = match used {
        // Two loop devices may show the same file, and the kernel does not see that they are one disk.
        Used::Device { device, .. } => loops::sibling_of_device(device),
        // A file that is a loop device's disk is in use, though nothing but that device says so.
        Used::File(identity) => loops::showing_file(identity, false),
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
            // QEMU does not claim the disks of a guest that runs.
            Used::Device { device, .. } => writer_of_device(device),
            Used::File(identity) => writer_of_file(path, identity),
        })
    })?;
    let advice = match used {
        Used::Device { .. } => "shut that down first; --force writes all the same",
        Used::File(_) => "shut that down first, or move the file away to keep it",
    };
    Ok(writer.map(|writer| format!("{writer}; {advice}")))
}
