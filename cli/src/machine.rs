//! What vbk knows of the machine it runs on: where runs are noted, and how volumes say that they are this machine's.

use std::path::PathBuf;

use crate::context::host;

/// Where runs of vbk on this machine find each other: on a file system that a reboot empties.
pub fn runtime_dir() -> PathBuf {
    std::env::var_os("VBK_RUNTIME_DIR").map_or_else(|| "/run/vbk".into(), PathBuf::from)
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
