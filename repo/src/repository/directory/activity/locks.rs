//! Holders of a flock(2) lock, from the kernel's own list. Testing the lock itself would mean taking it for a moment,
//! and a writer that starts in that moment would find it taken.
//!
//! A line of `/proc/locks` (proc_locks(5); `lock_get_status` in fs/locks.c) names the process that took the lock and
//! the file, by device and inode; `->` marks one that waits:
//!
//! ```text
//! 1: FLOCK  ADVISORY  READ 27600 fe:00:611 0 EOF
//! 1: -> FLOCK  ADVISORY  WRITE 27611 fe:00:611 0 EOF
//! ```
//!
//! The list has limits; where they matter, the lock itself is tested after all. The list omits processes of other PID
//! namespaces and of other machines, and for btrfs and overlays it shows another device than stat(2).

use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC,
    fstatfs,
};

use crate::error::{Error, Result};

/// Not in linux/magic.h: from OpenZFS, include/sys/fs/zfs.h.
const ZFS_SUPER_MAGIC: FsType = FsType(0x2fc1_2fc1);

/// File systems whose locks are all taken on this machine.
const LOCAL: [FsType; 7] = [
    EXT4_SUPER_MAGIC,
    XFS_SUPER_MAGIC,
    BTRFS_SUPER_MAGIC,
    ZFS_SUPER_MAGIC,
    F2FS_SUPER_MAGIC,
    TMPFS_MAGIC,
    OVERLAYFS_SUPER_MAGIC,
];

/// The PID namespace in which all processes are visible (`PROC_PID_INIT_INO` in linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Number of attempts to read the list when it changes meanwhile.
const READINGS: usize = 100;

/// Mode of a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Held by any number of processes.
    Shared,
    /// Held by one process.
    Exclusive,
}

/// A device as `/proc/locks` writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Device {
    major: u64,
    minor: u64,
}

/// A held lock of flock(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    access: Access,
    /// Unknown for a process of another machine or PID namespace.
    pid: Option<u32>,
    device: Device,
    inode: u64,
}

/// The locks that are held on one file system.
#[derive(Debug)]
pub(super) struct Locks {
    held: Vec<Held>,
    /// The file system's device number according to stat(2).
    device: u64,
    /// A lock that is not in `held` is known to be free.
    is_complete: bool,
    /// A lock in `held` is known to belong to exactly that file: inode numbers of btrfs are only unique in a subvolume.
    is_exact: bool,
}

impl Locks {
    /// Reads the locks on the file system of `directory`, which must be a directory that no process locks.
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let file = File::open(directory).map_err(Error::io("open", directory))?;
        let metadata = file.metadata().map_err(Error::io("read", directory))?;
        let mut locks = Self {
            held: Vec::new(),
            device: metadata.dev(),
            is_complete: false,
            is_exact: false,
        };
        // A lock of this process shows how the list names this file system, and that the list can be relied on.
        if file.try_lock_shared().is_err() {
            return Ok(locks);
        }
        let listing = settle(&mut read_list);
        drop(file);
        // Without the list, each lock is tested itself.
        let Ok(listing) = listing else {
            return Ok(locks);
        };
        let listed = parse(&listing.text);
        let own = listed.iter().find(|held| {
            held.pid == Some(std::process::id()) && held.inode == metadata.ino() && held.access == Access::Shared
        });
        if let Some(&Held { device, .. }) = own {
            locks.is_complete = listing.is_whole && is_local(directory) && sees_all_processes();
            locks.is_exact = device.major == major(metadata.dev()) && device.minor == minor(metadata.dev());
            locks.held = listed.into_iter().filter(|held| held.device == device).collect();
        }
        Ok(locks)
    }

    /// Returns the processes that hold the lock on a file, in order and each once; `None` among them stands for one or
    /// more that can't be identified. A missing file has no holders.
    pub(super) fn holders(&self, path: &Path, access: Access) -> Result<Vec<Option<u32>>> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let listed = self.listed(&metadata, access);
        let is_told = match listed.is_empty() {
            true => self.is_complete,
            false => self.is_exact,
        };
        if is_told && metadata.dev() == self.device {
            return Ok(listed);
        }
        match is_held(path, access)? {
            false => Ok(Vec::new()),
            true if listed.is_empty() => Ok(vec![None]),
            true => Ok(listed),
        }
    }

    fn listed(&self, file: &Metadata, access: Access) -> Vec<Option<u32>> {
        let same = |held: &&Held| held.inode == file.ino() && held.access == access && file.dev() == self.device;
        let mut pids: Vec<_> = self.held.iter().filter(same).map(|held| held.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

/// Tests the lock itself, by taking it for a moment.
fn is_held(path: &Path, access: Access) -> Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    let taken = match access {
        Access::Exclusive => file.try_lock_shared(),
        Access::Shared => file.try_lock(),
    };
    match taken {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", path)(error)),
    }
}

/// Text of `/proc/locks`, and whether it is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listing {
    text: String,
    is_whole: bool,
}

/// Reads the list until it is known to be complete, or the attempts are used up.
fn settle(read: &mut dyn FnMut() -> io::Result<Listing>) -> io::Result<Listing> {
    let mut listing = read()?;
    for _ in 1..READINGS {
        if listing.is_whole {
            break;
        }
        let again = read()?;
        // The list did not change between the two readings.
        let is_whole = again.is_whole || again.text == listing.text;
        listing = Listing { is_whole, ..again };
    }
    Ok(listing)
}

fn read_list() -> io::Result<Listing> {
    let mut file = File::open("/proc/locks")?;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 65_536];
    let mut reads = 0;
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..length]);
        reads += 1;
    }
    Ok(Listing {
        text: String::from_utf8_lossy(&bytes).into_owned(),
        // The list is locked for one read, which returns a page at most. The next read counts again from the first lock
        // (fs/seq_file.c), and so skips one lock for each that was removed before that position.
        is_whole: reads <= 1,
    })
}

/// Returns the held flock(2) locks in the text of `/proc/locks`. Skips lines of other kinds and lines that it can't
/// parse.
fn parse(text: &str) -> Vec<Held> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Held> {
    let mut words = line.split_ascii_whitespace();
    words.next()?.strip_suffix(':')?.parse::<u64>().ok()?;
    if words.next()? != "FLOCK" || words.next()? != "ADVISORY" {
        return None;
    }
    let access = match words.next()? {
        "READ" => Access::Shared,
        "WRITE" => Access::Exclusive,
        _ => return None,
    };
    let pid: i64 = words.next()?.parse().ok()?;
    let mut place = words.next()?.split(':');
    let device = Device {
        major: u64::from_str_radix(place.next()?, 16).ok()?,
        minor: u64::from_str_radix(place.next()?, 16).ok()?,
    };
    let inode = place.next()?.parse().ok()?;
    place.next().is_none().then_some(Held {
        access,
        pid: u32::try_from(pid).ok().filter(|&pid| pid != 0),
        device,
        inode,
    })
}

fn is_local(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| fstatfs(&file).is_ok_and(|fs| LOCAL.contains(&fs.filesystem_type())))
}

fn sees_all_processes() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace.as_os_str() == FIRST_PID_NAMESPACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(access: Access, pid: Option<u32>, major: u64, minor: u64, inode: u64) -> Held {
        Held {
            access,
            pid,
            device: Device { major, minor },
            inode,
        }
    }

    #[test]
    fn held_locks_are_read_and_nothing_else() {
        let text = "\
1: FLOCK  ADVISORY  READ 27600 fe:00:611 0 EOF
1: -> FLOCK  ADVISORY  WRITE 27611 fe:00:611 0 EOF
2: POSIX  ADVISORY  WRITE 1 fe:00:611 0 EOF
3: OFDLCK ADVISORY  READ -1 00:06:8 0 EOF
4: LEASE  ACTIVE    READ 3 fe:00:611 0 EOF
5: FLOCK  ADVISORY  WRITE 4194304 103:1f:18446744073709551615 0 EOF
6: FLOCK  ADVISORY  READ 0 00:2b:7 0 EOF
7: FLOCK  ADVISORY  READ -9 00:2b:7 0 EOF
";
        let expected = [
            held(Access::Shared, Some(27_600), 0xfe, 0, 611),
            held(Access::Exclusive, Some(4_194_304), 0x103, 0x1f, u64::MAX),
            held(Access::Shared, None, 0, 0x2b, 7),
            held(Access::Shared, None, 0, 0x2b, 7),
        ];
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn odd_lines_are_left_out() {
        for line in [
            "",
            ":",
            "1",
            "1:",
            "x: FLOCK ADVISORY READ 1 fe:00:1 0 EOF",
            "1 FLOCK ADVISORY READ 1 fe:00:1 0 EOF",
            "1: flock ADVISORY READ 1 fe:00:1 0 EOF",
            "1: FLOCK MSNFS READ 1 fe:00:1 0 EOF",
            "1: FLOCK ADVISORY UNLCK 1 fe:00:1 0 EOF",
            "1: FLOCK ADVISORY READ one fe:00:1 0 EOF",
            "1: FLOCK ADVISORY READ 99999999999999999999 fe:00:1 0 EOF",
            "1: FLOCK ADVISORY READ 1 <none>:0 0 EOF",
            "1: FLOCK ADVISORY READ 1 fe:00 0 EOF",
            "1: FLOCK ADVISORY READ 1 fe:00:1:2 0 EOF",
            "1: FLOCK ADVISORY READ 1 fe:zz:1 0 EOF",
            "1: FLOCK ADVISORY READ 1 fe:00:-1 0 EOF",
            "1: FLOCK ADVISORY READ 1",
            "1: FLOCK ADVISORY READ 1 ::: 0 EOF",
            "\u{fffd}\0: \u{202e}",
        ] {
            assert_eq!(parse(line), [], "{line:?}");
        }
    }

    #[test]
    fn a_list_that_came_in_pieces_is_whole_when_it_comes_twice_the_same() {
        let readings = |texts: &[(&str, bool)]| {
            let mut left = texts.iter();
            let listing = settle(&mut || {
                let &(text, is_whole) = left.next().expect("no more readings than needed");
                let text = text.to_owned();
                Ok(Listing { text, is_whole })
            });
            let Listing { text, is_whole } = listing.expect("reads");
            (text, is_whole, left.len())
        };
        assert_eq!(readings(&[("a", true)]), ("a".into(), true, 0));
        assert_eq!(
            readings(&[("a", false), ("b", false), ("b", false)]),
            ("b".into(), true, 0)
        );
        assert_eq!(readings(&[("a", false), ("b", true)]), ("b".into(), true, 0));
        let never: Vec<_> = [("a", false), ("b", false)]
            .into_iter()
            .cycle()
            .take(READINGS + 1)
            .collect();
        assert_eq!(readings(&never), ("b".into(), false, 1));
    }

    #[test]
    fn a_lock_of_another_open_file_is_seen_as_long_as_it_is_held() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let file = File::create(&path).expect("creates");
        let now = |access| {
            let locks = Locks::read(directory.path()).expect("reads");
            locks.holders(&path, access).expect("tells")
        };
        assert_eq!(now(Access::Shared), []);
        file.lock_shared().expect("locks");
        assert_eq!(now(Access::Shared), [Some(std::process::id())]);
        assert_eq!(now(Access::Exclusive), []);
        file.lock().expect("locks");
        assert_eq!(now(Access::Exclusive), [Some(std::process::id())]);
        file.unlock().expect("unlocks");
        assert_eq!(now(Access::Exclusive), []);
        fs::remove_file(&path).expect("removes");
        assert_eq!(now(Access::Exclusive), []);
    }

    #[test]
    fn where_the_list_is_complete_no_lock_is_asked() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let file = File::create(&path).expect("creates");
        file.lock().expect("locks");
        let complete = Locks {
            held: Vec::new(),
            device: file.metadata().expect("metadata").dev(),
            is_complete: true,
            is_exact: true,
        };
        for access in [Access::Shared, Access::Exclusive] {
            assert_eq!(complete.holders(&path, access).expect("tells"), []);
        }
    }

    #[test]
    fn where_the_list_tells_nothing_the_lock_is_asked() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let file = File::create(&path).expect("creates");
        let blind = Locks {
            held: Vec::new(),
            device: 0,
            is_complete: false,
            is_exact: false,
        };
        for access in [Access::Shared, Access::Exclusive] {
            assert_eq!(blind.holders(&path, access).expect("tells"), []);
            match access {
                Access::Shared => file.lock_shared().expect("locks"),
                Access::Exclusive => file.lock().expect("locks"),
            }
            assert_eq!(blind.holders(&path, access).expect("tells"), [None]);
            file.unlock().expect("unlocks");
        }
    }

    #[test]
    fn a_listed_lock_that_may_be_another_files_is_asked_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let file = File::create(&path).expect("creates");
        let metadata = file.metadata().expect("metadata");
        let doubtful = Locks {
            held: vec![held(Access::Exclusive, Some(7), 0, 42, metadata.ino())],
            device: metadata.dev(),
            is_complete: true,
            is_exact: false,
        };
        assert_eq!(doubtful.holders(&path, Access::Exclusive).expect("tells"), []);
        file.lock().expect("locks");
        assert_eq!(doubtful.holders(&path, Access::Exclusive).expect("tells"), [Some(7)]);
    }
}
