//! XFS, versions 4 and 5, read without the kernel.
//!
//! Every object of version 5 that is read has its checksum verified, and its own address and UUID compared; an object
//! that fails is [`Error::Damaged`] and does not hide the others.
//!
//! Format: the kernel's libxfs/xfs_format.h, xfs_da_format.h, xfs_log_format.h, named at each structure; and "XFS
//! Algorithms & Data Structures" (kernel.org, xfs-documentation).

use std::ops::ControlFlow;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::SharedDevice;
use crate::error::{Error, Result};
use crate::fs::{Entry, FileKind, FileTree, Identity, Node, Stat, Xattr};

use content::Content;
use inode::Inode;
use log::{Log, Refusal};
use volume::Volume;

mod attributes;
mod checksum;
mod content;
mod directory;
mod extents;
mod inode;
mod link;
mod log;
mod superblock;
mod volume;

#[cfg(test)]
mod tests;

/// The files of an XFS.
pub struct Xfs {
    volume: Arc<Volume>,
    remarks: Vec<String>,
}

/// Opens the XFS on `device`.
pub fn open(device: SharedDevice) -> Result<Xfs> {
    let found = superblock::find(&*device)?;
    let superblock = found.superblock;
    let mut remarks: Vec<_> = found.remark.into_iter().collect();
    if superblock.needs_repair {
        remarks.push("marked as in need of xfs_repair".to_owned());
    }
    let volume = Volume::new(device, superblock);
    let volume = match replayed(&volume) {
        Ok(None) => volume,
        Ok(Some((replayed, remark))) => {
            remarks.push(remark);
            replayed
        }
        Err(Refusal::Io(error)) => return Err(error.into()),
        Err(Refusal::Because(why)) => {
            remarks.push(format!(
                "the log was not replayed: {why}; files of the last minute before the backup may be missing or \
                 inconsistent"
            ));
            volume
        }
    };
    Ok(Xfs {
        volume: Arc::new(volume),
        remarks,
    })
}

/// Tests for a log that must be replayed because the file system was not unmounted; false if that can't be told.
pub fn has_dirty_log(device: &SharedDevice) -> bool {
    let Ok(found) = superblock::find(&**device) else {
        return false;
    };
    let volume = Volume::new(SharedDevice::clone(device), found.superblock);
    let dirty = Log::of(&volume).map(|log| log.map(|log| log.dirty()));
    matches!(dirty, Ok(Some(Ok(Some(_)))))
}

/// Replays the log, if the file system was not unmounted.
fn replayed(volume: &Volume) -> log::LogResult<Option<(Volume, String)>> {
    let log = Log::of(volume)?.ok_or("it is on another device")?;
    let Some(dirty) = log.dirty()? else {
        return Ok(None);
    };
    let (overlay, remark) = log.replay(&volume.superblock, dirty)?;
    let device: SharedDevice = Arc::new(overlay);
    // A file system that grew has its new size in the log.
    let superblock = match superblock::find(&*device) {
        Ok(found) => found.superblock,
        Err(_) => volume.superblock.clone(),
    };
    Ok(Some((Volume::new(device, superblock), remark)))
}

impl Xfs {
    fn inode(&self, node: Node) -> Result<Inode> {
        Inode::read(&self.volume, node.number)
    }
}

impl FileTree for Xfs {
    fn root(&self) -> Node {
        Node {
            space: 0,
            number: self.volume.superblock.root,
        }
    }

    fn identity(&self) -> Identity {
        let superblock = &self.volume.superblock;
        let label = String::from_utf8_lossy(&superblock.label).into_owned();
        Identity {
            uuid: Some(superblock.uuid_text()),
            label: Some(label).filter(|label| !label.is_empty()),
        }
    }

    fn remarks(&self) -> Vec<String> {
        self.remarks.clone()
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        Ok(self.inode(node)?.stat)
    }

    fn list(&self, directory: Node, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        directory::list(&self.volume, &self.inode(directory)?, each)
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        link::read(&self.volume, &self.inode(node)?)
    }

    fn open(self: Arc<Self>, node: Node) -> Result<SharedDevice> {
        let inode = self.inode(node)?;
        if inode.stat.kind != FileKind::File {
            return Err(Error::NotAFile);
        }
        if inode.is_realtime {
            return Err(Error::unsupported("file on the realtime device"));
        }
        let fork = inode.data_fork()?;
        if matches!(fork, extents::Fork::Local(_)) {
            return Err(Error::damaged(format!(
                "inode {}: content inside the inode",
                inode.number
            )));
        }
        Ok(Arc::new(Content {
            volume: self.volume.clone(),
            inode: inode.number,
            fork,
            size_bytes: inode.stat.size_bytes,
            last: Mutex::new(None),
        }))
    }

    fn xattrs(&self, node: Node) -> Result<Vec<Xattr>> {
        attributes::read(&self.volume, &self.inode(node)?)
    }
}
