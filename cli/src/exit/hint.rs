//! What to do next about an error, where its message does not say it.

use vbk_repo::ErrorKind;

use super::{Error, is_of_repository};

impl Error {
    /// Returns the next step for the user, where the message does not say it.
    pub(super) fn hint(&self) -> Option<&'static str> {
        match self.kind() {
            _ if matches!(self, Self::Distrusted(_)) => None,
            _ if self.is_of_key() => Some(
                "another key file, a passphrase, the recovery key (given as a passphrase) or an exported key may open the \
                 repository; `vbk key list` lists its key slots without a key",
            ),
            ErrorKind::NoSpace
                if matches!(
                    self,
                    Self::Engine(vbk::Error::NoRoom { .. } | vbk::Error::Target { .. } | vbk::Error::Volumes(_))
                ) =>
            {
                Some("make room there, or restore to another target")
            }
            ErrorKind::NoSpace if matches!(self, Self::Repository(vbk_repo::Error::NearlyFull { .. })) => {
                Some("`vbk forget` and `vbk prune` free space; --reserve sets how much must stay free")
            }
            ErrorKind::NoSpace if matches!(self, Self::Engine(vbk::Error::Snapshot(_))) => None,
            ErrorKind::NoSpace if matches!(self, Self::Engine(_)) => Some(
                "`vbk forget` and `vbk prune` free space; or make room and run it again: blocks that are stored already are not \
                 stored again",
            ),
            ErrorKind::NoSpace if matches!(self, Self::Io { .. }) => Some("make room there, or choose another target"),
            ErrorKind::NoSpace => Some("make room on the repository's file system and run it again"),
            ErrorKind::Denied if matches!(self, Self::Repository(vbk_repo::Error::KeyNeeded { .. })) => Some(
                "give it with --passphrase-file FILE (VBK_PASSPHRASE_FILE) or --key-file FILE (VBK_KEY_FILE), as the \
                 systemd credential vbk-passphrase or vbk-key-file, or at a terminal",
            ),
            // The server says what is denied, and it is no file of this machine.
            ErrorKind::Denied if self.is_of_server() => None,
            ErrorKind::Denied if nix::unistd::geteuid().is_root() => Some(
                "access was denied even to root: check the attributes of the file (`lsattr`), AppArmor or SELinux rules, the \
                 capabilities of the container, and whether a network file system refuses root (root_squash)",
            ),
            ErrorKind::Denied => Some("this user lacks permission; run as root, or as the owner of the file"),
            ErrorKind::ReadOnly if matches!(self, Self::Engine(vbk::Error::TargetReadOnly(_))) => None,
            ErrorKind::ReadOnly => Some(
                "its file system is mounted read-only; `mount -o remount,rw MOUNTPOINT` makes it writable, unless the kernel \
                 set it read-only after an error (see `dmesg`) or its disk is read-only (`blockdev --setrw`)",
            ),
            ErrorKind::Corrupt if matches!(self, Self::Engine(vbk::Error::ReadImage { .. })) => Some(
                "`vbk verify` lists the damage; `vbk restore --skip-damaged` restores the rest of the disk, with zeros in \
                 place of the damaged ranges",
            ),
            ErrorKind::Unsupported if self.is_too_large() => Some(
                "the file is larger than its file system or a limit (`ulimit -f`) allows; free space is not the problem",
            ),
            ErrorKind::Corrupt
                if matches!(
                    self,
                    Self::Repository(
                        vbk_repo::Error::NoteDamaged { .. }
                            | vbk_repo::Error::OtherStore { .. }
                            | vbk_repo::Error::EncryptionGone { .. }
                            | vbk_repo::Error::MarkerDamaged { .. }
                    )
                ) =>
            {
                None
            }
            ErrorKind::Corrupt if matches!(self, Self::Inside { source, .. } if !is_of_repository(source)) => {
                Some("the guest's own file system is damaged there; another backup may have it whole")
            }
            ErrorKind::Corrupt if self.is_of_store_files() => {
                Some("the store's own files are damaged: `vbk repair` puts them back as far as it finds them elsewhere")
            }
            ErrorKind::Corrupt => Some(
                "`vbk verify` lists the damage, and `vbk repair` mends what it can; backups that `verify` does not name are good",
            ),
            ErrorKind::Internal => Some("this is a bug in vbk; please report it with the output of -vv"),
            ErrorKind::NotFound
            | ErrorKind::Locked
            | ErrorKind::Unavailable
            | ErrorKind::Invalid
            | ErrorKind::Unsupported
            | ErrorKind::Interrupted => None,
        }
    }

    /// Returns whether the store did not open: no command can then say which backups are good.
    fn is_of_store_files(&self) -> bool {
        let own = match self {
            Self::Repository(error) | Self::Engine(vbk::Error::Repository(error)) => Some(error),
            _ => None,
        };
        matches!(own, Some(vbk_repo::Error::Store { doing: "open", .. }))
    }

    /// Returns whether the key that was given does not open the repository.
    fn is_of_key(&self) -> bool {
        match self {
            Self::KeyFile { .. } | Self::Unopened(_) => true,
            Self::Repository(error) | Self::Other { source: error, .. } => {
                matches!(error, vbk_repo::Error::WrongKey { .. })
            }
            _ => false,
        }
    }

    /// Returns whether a server, or the way to it, is the cause.
    fn is_of_server(&self) -> bool {
        let is_remote = |error: &vbk_repo::Error| matches!(error, vbk_repo::Error::Remote { .. });
        // A transparent error is not among its own sources.
        let own = match self {
            Self::Repository(error)
            | Self::Unopened(error)
            | Self::Other { source: error, .. }
            | Self::Engine(vbk::Error::Repository(error))
            | Self::Mount(vbk_fuse::Error::Repository(error)) => Some(error),
            _ => None,
        };
        if own.is_some_and(is_remote) {
            return true;
        }
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            if error.downcast_ref::<vbk_repo::Error>().is_some_and(is_remote) {
                return true;
            }
            let io = match error.downcast_ref::<vbk_inside::Error>() {
                Some(vbk_inside::Error::Io(io)) => Some(io),
                _ => error.downcast_ref::<std::io::Error>(),
            };
            // The same goes for what an I/O error wraps.
            source = match io.and_then(std::io::Error::get_ref) {
                Some(wrapped) => Some(wrapped),
                None => error.source(),
            };
        }
        false
    }

    /// Returns whether the system refused a file for its size (`EFBIG`).
    fn is_too_large(&self) -> bool {
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            let io = error.downcast_ref::<std::io::Error>();
            if io.is_some_and(|error| error.kind() == std::io::ErrorKind::FileTooLarge) {
                return true;
            }
            source = error.source();
        }
        false
    }
}
