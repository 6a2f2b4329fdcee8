//! The directory of a boot: the mount of the disks, and QEMU's own directory with its UEFI variables.

use std::collections::HashSet;
use std::fs::{DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use vbk::boot::machine::Account;
use vbk_fuse::volumes::{self, WhenBusy};

use super::users::{self, QemuUser};
use crate::exit::{Error, Result};
use crate::machine::runtime_directory;

/// Root's directory of them. Not below /run/vbk, whose mounts `vbk mount --files` examines as its own.
const ROOT: &str = "/run/vbk-boot";
/// File that the run holds a lock on, to its end.
const LOCK: &str = "lock";
/// Directory that only this user can enter, with the mount point of the disks in it.
const PRIVATE: &str = "private";
/// Mount point of the disks.
const DISKS: &str = "disks";
/// QEMU's directory, which belongs to its user.
const WORK: &str = "work";
/// What stands before the number of QEMU's own user in the name of a directory.
const OF_USER: &str = "-u";

/// A directory that is removed when this is dropped, with the mount in it.
pub struct BootDirectory {
    path: PathBuf,
    /// User that QEMU is to run as; none for that of this process.
    pub user: Option<Account>,
    _lock: File,
}

impl BootDirectory {
    /// Creates one, and removes those of runs that were killed. As long as it exists, no other boot gets its QEMU's own user.
    pub fn create(user: QemuUser) -> Result<Self> {
        // Where QEMU has a user of its own, that one must get through to its directory; also while other runs have none.
        let mode = if geteuid().is_root() { 0o711 } else { 0o700 };
        let root = root()?;
        let made = DirBuilder::new().mode(mode).recursive(true).create(&root);
        let made = made.and_then(|()| std::fs::set_permissions(&root, Permissions::from_mode(mode)));
        made.map_err(Error::io(format!("create {}", root.display())))?;
        // Held until the new directory is locked: another run would take it for a leftover before, or choose the same user.
        let failed = || Error::io(format!("lock {}", root.display()));
        let making = File::open(&root).map_err(failed())?;
        making.lock().map_err(failed())?;
        clean_leftovers(&root);
        let stamp = jiff::Timestamp::now().as_nanosecond();
        let mut name = format!("{}-{stamp:x}", std::process::id());
        let user = match user {
            QemuUser::This => None,
            QemuUser::Given(account) => Some(account),
            QemuUser::Own => {
                let account = users::choose(&name, &users_in(&root))?;
                name += &format!("{OF_USER}{}", account.uid);
                Some(account)
            }
        };
        let path = root.join(name);
        make(&path, mode)?;
        let lock = path.join(LOCK);
        let failed = || Error::io(format!("lock {}", lock.display()));
        let file = File::create(&lock).map_err(failed())?;
        file.try_lock().map_err(|error| failed()(error.into()))?;
        let directory = Self {
            path,
            user,
            _lock: file,
        };
        make(&directory.path.join(PRIVATE), 0o700)?;
        make(&directory.disks(), 0o700)?;
        make(&directory.work(), 0o700)?;
        Ok(directory)
    }

    /// Returns QEMU's directory.
    pub fn work(&self) -> PathBuf {
        self.path.join(WORK)
    }

    /// Gives QEMU's directory to its user. Afterwards that user can put anything there, e.g. links.
    pub fn give_work(&self) -> Result<()> {
        let Some(user) = self.user else {
            return Ok(());
        };
        let work = self.work();
        let given = chown(&work, Some(user.uid), Some(user.gid));
        given.map_err(Error::io(format!("set the owner of {}", work.display())))
    }

    /// Returns the mount point of the disks.
    pub fn disks(&self) -> PathBuf {
        disks_in(&self.path)
    }
}

impl Drop for BootDirectory {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn root() -> Result<PathBuf> {
    match geteuid().is_root() {
        true => Ok(PathBuf::from(ROOT)),
        false => Ok(runtime_directory()?.join("boot")),
    }
}

/// Returns the users that other boots have chosen.
fn users_in(root: &Path) -> HashSet<u32> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let user = |name: &str| name.rsplit_once(OF_USER)?.1.parse().ok();
    entries.filter_map(|entry| user(entry.file_name().to_str()?)).collect()
}

fn make(path: &Path, mode: u32) -> Result<()> {
    let made = DirBuilder::new().mode(mode).create(path);
    made.map_err(Error::io(format!("create {}", path.display())))
}

fn disks_in(path: &Path) -> PathBuf {
    path.join(PRIVATE).join(DISKS)
}

/// Removes the directories of runs that were killed. QEMU and the process with the disks end with their run. The caller holds
/// the lock without which no directory is made.
fn clean_leftovers(root: &Path) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let is_held = File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_err());
        if !is_held {
            remove(&entry.path());
            tracing::info!("removed {}, which a killed run left behind", entry.path().display());
        }
    }
}

/// Removes a directory. Never removes anything below a mount, and follows no links.
fn remove(path: &Path) {
    let disks = disks_in(path);
    // Nothing is mounted there after a clean end.
    let _ = volumes::unmount(&disks, WhenBusy::Detach);
    // The system refuses to remove a mount point.
    let gone = match std::fs::remove_dir(&disks) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::remove_dir_all(path),
    };
    if let Err(error) = gone {
        tracing::warn!("can't remove {}: {error}", path.display());
    }
}
