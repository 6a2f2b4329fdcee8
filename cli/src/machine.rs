//! What vbk knows of the machine it runs on: where runs are noted, and how volumes say that they are this machine's.

use std::ffi::OsString;
use std::path::PathBuf;

use vbk::program::Programs;

use crate::daemon;
use crate::exit::Result;

/// Where lvm2 and others are on Debian, though root's cron jobs and some shells do not look there.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// The programs of this machine.
pub fn programs() -> Programs {
    Programs::found_in(path())
}

/// Where they are looked for: by PATH, and then where the system's own are.
pub fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    path.push(":");
    path.push(SYSTEM_PATH);
    path
}

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

/// Where this machine remembers which repositories it uses. Not below /var/lib/vbk, where many have the repository itself:
/// what lies in the storage can be put back together with it. `None` if this user has no place of that kind.
pub fn trust_dir() -> Option<PathBuf> {
    let given = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let of_user = || match given("XDG_STATE_HOME") {
        _ if nix::unistd::geteuid().is_root() => Some("/var/lib/vbk-trust".into()),
        Some(state) => Some(state.join("vbk/trust")),
        None => Some(given("HOME")?.join(".local/state/vbk/trust")),
    };
    given("VBK_STATE_DIR").map(|state| state.join("trust")).or_else(of_user)
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

/// The name of this machine.
pub fn host() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_where_the_system_has_them_but_after_those_of_the_path() {
        let said = programs().run("sh", &["-c", "echo $PATH"], std::time::Duration::from_secs(20));
        let path = std::env::var("PATH").expect("a path");
        let expected = format!("{path}:/usr/local/sbin:/usr/sbin:/sbin\n");
        assert_eq!(said.expect("runs"), expected);
    }
}
