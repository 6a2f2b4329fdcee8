//! The machine that vbk runs on: its directories, its programs, and the id that marks volumes as its own.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;

use nix::unistd::geteuid;
use vbk::host::program::Programs;

use crate::exit::{Error, Result};

/// Directories of lvm2 and others on Debian, which the PATH of root's cron jobs and some shells lacks.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Variable that is set for the process in the background: the file for its log.
pub const BACKGROUND_LOG: &str = "VBK_BACKGROUND_LOG";

/// Returns the programs of this machine.
pub fn programs() -> Programs {
    Programs::found_in(path())
}

/// Returns a variable of the environment. An empty one counts as not set.
pub fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Returns the directories of programs: PATH, and then the system's own.
pub fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    path.push(":");
    path.push(SYSTEM_PATH);
    path
}

/// Returns the directory in which runs of vbk on this machine find each other. It is on a file system that a reboot
/// empties.
pub fn runtime_dir() -> Result<PathBuf> {
    match variable("VBK_RUNTIME_DIR") {
        Some(given) => Ok(PathBuf::from(given)),
        None => runtime_directory(),
    }
}

/// Returns the directory for this user's runs and mounts, whose content must not survive a reboot.
pub fn runtime_directory() -> Result<PathBuf> {
    match variable("XDG_RUNTIME_DIR") {
        _ if geteuid().is_root() => Ok(PathBuf::from(vbk_fuse::files::HIDDEN_ROOT)),
        Some(own) => Ok(PathBuf::from(own).join("vbk")),
        None => own_directory(std::env::temp_dir().join(format!("vbk-{}", geteuid()))),
    }
}

/// Creates a directory in a place that every user can write to, or takes the existing one if no other user can have put
/// anything into it, e.g. links that redirect vbk's writes to other files.
fn own_directory(path: PathBuf) -> Result<PathBuf> {
    let cant = |error: io::Error| Error::io(format!("create {}", path.display()))(error);
    match std::fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(cant(error)),
        _ => {}
    }
    let found = path.symlink_metadata().map_err(cant)?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(Error::Usage(format!(
            "{} is not a directory that only you can use (mode 0700), and others could mislead vbk with it; nothing was done. \
             Remove it, or set XDG_RUNTIME_DIR to a directory of your own",
            path.display()
        )));
    }
    Ok(path)
}

/// Returns the effective user of a process; `None` if there is no such process.
pub fn user_of_process(pid: u32) -> Option<u32> {
    // Not the owner of the directory: that is root for a process that keeps its memory to itself (proc(5)).
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_whitespace().nth(1)?.parse().ok()
}

/// Returns whether this process is the one in the background.
pub fn is_background() -> bool {
    std::env::var_os(BACKGROUND_LOG).is_some()
}

/// Returns the directory for data that survives a reboot and may be lost: measured speeds of disks, marks of metadata
/// snapshots, and [`copies_dir`].
pub fn cache_dir() -> PathBuf {
    let given = |name| variable(name).map(PathBuf::from);
    let of_user = || match given("XDG_CACHE_HOME") {
        _ if geteuid().is_root() => "/var/cache/vbk".into(),
        Some(cache) => cache.join("vbk"),
        None => given("HOME").unwrap_or_else(std::env::temp_dir).join(".cache/vbk"),
    };
    given("VBK_CACHE_DIR").unwrap_or_else(of_user)
}

/// Returns the directory for copies of what this machine has sent to repositories on others and read from them: see
/// [`RemoteHome::with_cache`](vbk_remote::client::RemoteHome::with_cache). `None` if this user has no place for it.
pub fn copies_dir() -> Option<PathBuf> {
    // Not below /tmp, where another user may have made it.
    let has_place = geteuid().is_root()
        || ["VBK_CACHE_DIR", "XDG_CACHE_HOME", "HOME"]
            .iter()
            .any(|name| variable(name).is_some());
    has_place.then(|| cache_dir().join("copies"))
}

/// Returns the directory in which this machine remembers its repositories. It is not below /var/lib/vbk, where many keep the
/// repository itself: anything in that storage could be set back together with it. `None` if this user has no such
/// directory.
pub fn trust_dir() -> Option<PathBuf> {
    let given = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let of_user = || match given("XDG_STATE_HOME") {
        _ if geteuid().is_root() => Some("/var/lib/vbk-trust".into()),
        Some(state) => Some(state.join("vbk/trust")),
        None => Some(given("HOME")?.join(".local/state/vbk/trust")),
    };
    given("VBK_STATE_DIR").map(|state| state.join("trust")).or_else(of_user)
}

/// Returns the directory for the consoles and screens of rehearsals; it is beside [`trust_dir`].
pub fn rehearsals_dir() -> Option<PathBuf> {
    beside_trust("rehearsals")
}

/// Returns the directory for the writes of guests whose disks are restored while they run; it is beside [`trust_dir`]. Not
/// /var/tmp, from which the system removes old files.
pub fn changes_dir() -> Option<PathBuf> {
    beside_trust("changes")
}

fn beside_trust(name: &str) -> Option<PathBuf> {
    let trust = trust_dir()?;
    Some(match trust.file_name().is_some_and(|name| name == "vbk-trust") {
        true => trust.with_file_name(format!("vbk-{name}")),
        false => trust.with_file_name(name),
    })
}

/// Returns the id that distinguishes this machine from others that share a volume group with it: the systemd machine id,
/// which stays when the machine is renamed, or else the host's name.
pub fn host_id() -> String {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let id = id.trim();
    // `uninitialized` until the first boot is complete (machine-id(5)).
    match id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        // Half of it is enough, and the whole is confidential.
        true => id[..16].to_owned(),
        false => host(),
    }
}

/// Returns the name of this machine.
pub fn host() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn system_directories_are_searched_after_those_of_path() {
        let said = programs().run("sh", &["-c", "echo $PATH"], std::time::Duration::from_secs(20));
        let path = std::env::var("PATH").expect("a path");
        let expected = format!("{path}:/usr/local/sbin:/usr/sbin:/sbin\n");
        assert_eq!(said.expect("runs"), expected);
    }

    #[test]
    fn a_runtime_directory_that_others_could_fill_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("vbk-1000");
        let of = || own_directory(path.clone()).map_err(|error| error.to_string());
        assert_eq!(of(), Ok(path.clone()));
        assert_eq!(of(), Ok(path.clone()), "it is there already");
        fs::set_permissions(&path, Permissions::from_mode(0o770)).expect("sets");
        assert!(of().is_err_and(|text| text.contains("XDG_RUNTIME_DIR")));
        fs::rename(&path, dir.path().join("other")).expect("renames");
        fs::set_permissions(dir.path().join("other"), Permissions::from_mode(0o700)).expect("sets");
        symlink("other", &path).expect("links");
        assert!(of().is_err());
        fs::remove_file(&path).expect("removes");
        fs::create_dir(&path).expect("makes");
        fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("sets");
        // Only root can give one away.
        if geteuid().is_root() {
            chown(&path, Some(65_534), None).expect("gives it away");
            assert!(of().is_err());
        }
    }
}
