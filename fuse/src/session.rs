//! A mounted tree, from the mount until the kernel releases it.

use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use nix::sys::stat::{major, minor};
use vbk_repo::reader::ReadResources;

use crate::adapter::Adapter;
use crate::adapter::files::FilesAdapter;
use crate::error::{Error, Result};
use crate::file_tree::{FileFs, ROOT};
use crate::tree::{IDLE, ImageFs};

/// Interval at which a mount looks for a newer view, so that it does not keep the space of removed backups, and frees what
/// idle files hold.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);

/// A FUSE server can't ask for more than the kernel's default of 128 KiB, which costs a round trip each.
const READ_AHEAD_KIB: u32 = 512;

/// Source of a mount of files that are read in user space, as the kernel lists it.
pub const FILES_WITHOUT_KERNEL: &str = "vbk:files";

/// Options of mounting a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// Admit users other than the one who mounts.
    pub allow_other: bool,
    /// Number of requests that are processed at once.
    pub threads: usize,
}

/// A mounted tree. It stays mounted when this value is dropped; [`crate::volumes::unmount`] takes it down.
pub struct Session {
    /// Releases what is not needed now.
    tidy: Box<dyn Fn() + Send + Sync>,
    /// Never dropped: on drop, fuser 0.18 unmounts by path, even if the kernel has released the mount already and
    /// something else is mounted there by then (its `is_mounted` takes POLLERR for "mounted").
    background: ManuallyDrop<BackgroundSession>,
    ended: Receiver<()>,
}

impl Session {
    /// Mounts a tree of images at a directory. The mount answers when this returns.
    pub fn mount(tree: Arc<ImageFs>, point: &Path, options: SessionOptions) -> Result<Self> {
        let writable = tree.is_writable();
        let (ended, receiver) = end_signal();
        let adapter = Adapter::new(Arc::clone(&tree), ended);
        let tidy = Box::new(move || tree.tidy());
        Self::start(adapter, point, options, ("vbk", writable, true), (tidy, receiver))
    }

    /// Mounts a tree of files, read-only. The mount answers when this returns. Without `allow_other`, its owner may read
    /// all files, whatever their modes say: the owner can read the backup itself.
    pub fn mount_files(
        tree: Arc<FileFs>,
        resources: Arc<ReadResources>,
        point: &Path,
        options: SessionOptions,
    ) -> Result<Self> {
        let (ended, receiver) = end_signal();
        let adapter = FilesAdapter::new(tree, options.allow_other, ended);
        let tidy = Box::new(move || resources.drop_idle(IDLE));
        let session = Self::start(
            adapter,
            point,
            options,
            (FILES_WITHOUT_KERNEL, false, options.allow_other),
            (tidy, receiver),
        )?;
        read_ahead(point);
        Ok(session)
    }

    fn start(
        adapter: impl fuser::Filesystem,
        point: &Path,
        options: SessionOptions,
        (source, writable, checks_modes): (&str, bool, bool),
        (tidy, ended): (Box<dyn Fn() + Send + Sync>, Receiver<()>),
    ) -> Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![
            if writable { MountOption::RW } else { MountOption::RO },
            MountOption::FSName(source.into()),
            // As root, fuser leaves `Subtype` out.
            MountOption::CUSTOM("subtype=vbk".into()),
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoExec,
        ];
        if checks_modes {
            config.mount_options.push(MountOption::DefaultPermissions);
        }
        config.acl = if options.allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        config.n_threads = Some(options.threads.max(1));
        let background = fuser::spawn_mount(adapter, point, &config).map_err(|source| Error::Fuse {
            point: point.to_owned(),
            source,
        })?;
        Ok(Self {
            tidy,
            background: ManuallyDrop::new(background),
            ended,
        })
    }

    /// Waits until the tree is unmounted and no thread works on it any more.
    pub fn wait(&self) {
        while let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(REFRESH_INTERVAL) {
            (self.tidy)();
        }
        // Its threads still hold the tree for a moment. The program must not end before they release it: the store's
        // own threads would outlive the memory they use.
        while !self.background.guard.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Ends the mount with this device number ([`crate::volumes::device_at`]), also one that is detached already: programs that still
/// have files of it open get errors from then on. [`Session::wait`] returns. Needs the kernel's control file system for FUSE
/// (`Documentation/filesystems/fuse.rst`), which systemd mounts.
pub fn abort((_, number): (u32, u32)) -> io::Result<()> {
    std::fs::write(format!("/sys/fs/fuse/connections/{number}/abort"), "1")
}

/// Makes the kernel read ahead by [`READ_AHEAD_KIB`] in the files of a mount. Only root may, and needs a writable sysfs:
/// others have the kernel's default.
fn read_ahead(point: &Path) {
    let Ok(top) = std::fs::metadata(point) else { return };
    // Not the disk of the directory below, should the mount be gone already: FUSE has unnamed devices, which have major
    // number 0.
    if major(top.dev()) == 0 && top.ino() == ROOT {
        let setting = format!("/sys/class/bdi/0:{}/read_ahead_kb", minor(top.dev()));
        let _ = std::fs::write(setting, READ_AHEAD_KIB.to_string());
    }
}

/// Returns a call for the end of the mount, and its receiver.
fn end_signal() -> (Box<dyn FnOnce() + Send + Sync>, Receiver<()>) {
    let (end, ended) = channel();
    let send = move || {
        // The receiver may be gone; then the message is not needed.
        let _ = end.send(());
    };
    (Box::new(send), ended)
}

#[cfg(test)]
mod tests;
