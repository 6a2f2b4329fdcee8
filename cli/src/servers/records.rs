//! The files of records, as vbk finds them: those of this user, and for root also those of users who have mounted something.
//!
//! A user can put anything into their own directory, at any time, and root reads it. So:
//!
//! 1. Root follows no link there and enters no other mount, least of all a FUSE file system of that user, which need never
//!    answer (openat2(2)). What it opens is a small regular file of that user.
//! 2. Root only reads such a record. It believes it only about FUSE mounts that the kernel says that user has made, and follows
//!    no path in it.
//! 3. Root waits for the owner's process not longer than for one that saves nothing.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::unistd::geteuid;

use crate::machine::runtime_directory;

/// Beginning and end of a record's name.
const NAME: (&str, &str) = ("mount-", ".json");
/// Records of one user that root reads.
const MAX_OF_USER: usize = 256;

/// An open record.
pub(super) struct Found {
    pub(super) file: File,
    /// Path, for a record of this user.
    pub(super) path: Option<PathBuf>,
    /// User who wrote it.
    pub(super) owner: u32,
}

/// Returns the name of a record.
pub(super) fn name(middle: &str) -> String {
    format!("{}{middle}{}", NAME.0, NAME.1)
}

/// Tests whether a file in the runtime directory is a record.
pub fn is_record(name: &str) -> bool {
    name.starts_with(NAME.0) && name.ends_with(NAME.1)
}

/// Opens the records of this user.
pub(super) fn own() -> Vec<Found> {
    let Ok(root) = runtime_directory() else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let records = entries.filter(|entry| is_record(&entry.file_name().to_string_lossy()));
    let open = |path: PathBuf| {
        Some(Found {
            file: File::open(&path).ok()?,
            path: Some(path),
            owner: geteuid().as_raw(),
        })
    };
    records.filter_map(|entry| open(entry.path())).collect()
}

/// Opens the records of another user, as far as they are where vbk puts them without an unusual XDG_RUNTIME_DIR.
pub(super) fn of_user(user: u32) -> Vec<Found> {
    let places = [
        (PathBuf::from(format!("/run/user/{user}")), "vbk".to_owned()),
        (std::env::temp_dir(), format!("vbk-{user}")),
    ];
    let found = places.iter().filter_map(|(above, name)| in_place(above, name, user));
    found.flatten().collect()
}

fn in_place(above: &Path, name: &str, user: u32) -> Option<Vec<Found>> {
    let directory = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let above = open(AT_FDCWD, above, directory | OFlag::O_PATH, ResolveFlag::empty())?;
    // Its owner may have mounted something over it.
    if is_fuse(&above)? {
        return None;
    }
    let root = open(above, Path::new(name), directory, ResolveFlag::RESOLVE_NO_XDEV)?;
    let root = File::from(root);
    if root.metadata().ok()?.uid() != user {
        return None;
    }
    let listed = Path::new("/proc/self/fd").join(root.as_raw_fd().to_string());
    let names = std::fs::read_dir(listed).ok()?.flatten().map(|entry| entry.file_name());
    let names = names
        .filter(|name| is_record(&name.to_string_lossy()))
        .take(MAX_OF_USER);
    let found = names.filter_map(|name| {
        // A FIFO would wait for a writer.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = File::from(open(&root, Path::new(&name), flags, ResolveFlag::RESOLVE_NO_XDEV)?);
        let found = file.metadata().ok()?;
        (found.is_file() && found.uid() == user).then_some(Found {
            file,
            path: None,
            owner: user,
        })
    });
    Some(found.collect())
}

fn open(at: impl AsFd, path: &Path, flags: OFlag, resolve: ResolveFlag) -> Option<OwnedFd> {
    let resolve = resolve | ResolveFlag::RESOLVE_NO_SYMLINKS;
    openat2(at, path, OpenHow::new().flags(flags).resolve(resolve)).ok()
}

/// Tests whether a directory is in a FUSE file system, which is not asked.
fn is_fuse(directory: &OwnedFd) -> Option<bool> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", directory.as_raw_fd())).ok()?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    let id: u64 = id.trim().parse().ok()?;
    let mounts = vbk_repo::mounts::read().ok()?;
    let mount = mounts.iter().find(|mount| mount.id == id)?;
    Some(mount.fs_type.starts_with("fuse"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    const OWNER: u32 = 60_901;

    #[test]
    fn only_regular_files_of_the_user_are_read() {
        assert!(geteuid().is_root(), "root gives files away");
        let above = tempfile::tempdir().expect("a directory");
        let root = above.path().join("vbk-x");
        std::fs::create_dir(&root).expect("makes");
        let record = |name: &str, owner: u32| {
            let path = root.join(super::name(name));
            std::fs::write(&path, name).expect("writes");
            chown(&path, Some(owner), None).expect("gives it away");
            path
        };
        record("good", OWNER);
        let foreign = record("of-root", 0);
        symlink(&foreign, root.join(name("link"))).expect("links");
        std::fs::create_dir(root.join(name("directory"))).expect("makes");
        nix::unistd::mkfifo(&root.join(name("fifo")), nix::sys::stat::Mode::S_IRWXU).expect("makes");
        chown(root.join(name("fifo")), Some(OWNER), None).expect("gives it away");
        let read = |name: &str| {
            let found = in_place(above.path(), name, OWNER).unwrap_or_default();
            let text = |found: Found| std::io::read_to_string(found.file).expect("reads");
            found.into_iter().map(text).collect::<Vec<_>>()
        };
        assert!(read("vbk-x").is_empty(), "a directory of another user");
        chown(&root, Some(OWNER), None).expect("gives it away");
        assert_eq!(read("vbk-x"), ["good"]);
        symlink("vbk-x", above.path().join("vbk-y")).expect("links");
        assert!(read("vbk-y").is_empty());
    }
}
