//! What vbk knows of the machine it runs on: where runs are noted, and how volumes say that they are this machine's.

use std::path::PathBuf;

use crate::context::host;
use crate::daemon;
use crate::exit::Result;

/// Where runs of vbk on this machine find each other: on a file system that a reboot empties.
pub fn runtime_dir() -> Result<PathBuf> {
    match std::env::var_os("VBK_RUNTIME_DIR") {
        Some(given) => Ok(PathBuf::from(given)),
        None => daemon::runtime_directory(),
    }
}

/// Where things are that survive a reboot and may be lost: measured speeds of disks, marks of metadata snapshots.
pub fn cache_dir() -> PathBuf {
    let given = |name| std::env::var_os(name).map(PathBuf::from);
    let of_user = || match given("XDG_CACHE_HOME") {
        _ if nix::unistd::geteuid().is_root() => "/var/cache/vbk".into(),
        Some(cache) => cache.join("vbk"),
        None => given("HOME").unwrap_or_else(std::env::temp_dir).join(".cache/vbk"),
    };
    given("VBK_CACHE_DIR").unwrap_or_else(of_user)
}

/// What tells this machine from others that share a volume group with it: the systemd machine id, which stays the same
/// when the machine is renamed; without one the host's name.
pub fn host_id() -> String {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let id = id.trim();
    // `uninitialized` until the first boot is complete (machine-id(5)).
    match id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        // Half of it is enough, and the whole is not for others to see.
        true => id[..16].to_owned(),
        false => host(),
    }
}
