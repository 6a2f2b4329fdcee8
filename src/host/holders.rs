//! The users of a disk: a mount, swap, a volume group, or a process that has it open for writing.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use parking_lot::Mutex;
use vbk_repo::mounts::{self, Mount};

use crate::host::device::DeviceNumber;

/// Number of looks at a disk in use, and the time between two of them.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Describes the user of a device who may change its content; `None` if there is none. `look` returns what is open.
pub(crate) fn user_of_device(
    path: &Path,
    device: DeviceNumber,
    look: &dyn Fn() -> Arc<OpenFiles>,
) -> io::Result<Option<String>> {
    // O_EXCL without O_CREAT: the kernel refuses while the device, a partition of it or the disk it is on is mounted
    // (in whatever namespace), swap, or part of a volume group or array (open(2), block/bdev.c).
    let exclusive = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_EXCL.bits())
        .open(path);
    match exclusive {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
            return Ok(Some(claim_of(device).to_string()));
        }
        Err(error) => return Err(error),
    }
    // Programs that write to a disk, as QEMU does, rarely claim it.
    Ok(writer_of_device(device, &look()))
}

/// Repeats the search for a disk's user for a while, because programs such as losetup open a device for a moment when
/// they look for a free or a known one.
pub(crate) fn lasting<E>(user: impl Fn() -> Result<Option<String>, E>) -> Result<Option<String>, E> {
    for _ in 0..LOOKS {
        if user()?.is_none() {
            return Ok(None);
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    user()
}

/// An exclusive use of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Mounted here.
    Mounted(PathBuf),
    /// Swap.
    Swap,
    /// Part of this device, e.g. an array or a logical volume.
    PartOf(String),
    /// Mounted in another namespace, or held by a program.
    Unknown,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted(point) => write!(f, "mounted at {}", point.display()),
            Self::Swap => f.write_str("swap"),
            Self::PartOf(device) => write!(f, "part of {device}"),
            Self::Unknown => f.write_str("by the kernel or by a program that opened it exclusively"),
        }
    }
}

/// Finds the reason why the kernel refuses an exclusive open of a device.
pub(crate) fn claim_of(device: DeviceNumber) -> Claim {
    let related = device.related();
    let is_it = |path: &Path| DeviceNumber::of_block_device(path).is_some_and(|number| related.contains(&number));
    // btrfs makes up a device number, so the source is compared too.
    let uses_it = |mount: &Mount| {
        let source = Path::new(&mount.source);
        related.contains(&mount.device.into()) || source.is_absolute() && is_it(source)
    };
    if let Some(mount) = mounts::read().unwrap_or_default().into_iter().find(uses_it) {
        return Claim::Mounted(mount.mount_point);
    }
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut swaps = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    if swaps.any(|swap| is_it(Path::new(swap))) {
        return Claim::Swap;
    }
    let holders = related
        .iter()
        .filter_map(|device| std::fs::read_dir(device.sysfs("holders")).ok());
    match holders.flatten().flatten().next() {
        Some(holder) => Claim::PartOf(holder.file_name().to_string_lossy().into_owned()),
        None => Claim::Unknown,
    }
}

/// Finds a process that has this device, a partition of it or the disk it is on open for writing.
pub(crate) fn writer_of_device(device: DeviceNumber, open: &OpenFiles) -> Option<String> {
    let devices = device.related();
    open.writer(|file| {
        // Devices only: examining a file of a network file system that hangs would hang too.
        file.named.starts_with("/dev")
            && DeviceNumber::of_block_device(&file.link).is_some_and(|number| devices.contains(&number))
    })
}

/// Finds a process that has this file open for writing, under any name. `identity` is its device and inode, `path` one
/// of its names.
pub(crate) fn writer_of_file(path: &Path, identity: (u64, u64), open: &OpenFiles) -> Option<String> {
    open.writer(|file| {
        // By its inode number first, or by its name before Linux 5.14: see below.
        let is_candidate = match file.inode {
            Some(inode) => inode == identity.1,
            None => file.named.file_name() == path.file_name(),
        };
        is_candidate && std::fs::metadata(&file.link).is_ok_and(|found| (found.dev(), found.ino()) == identity)
    })
}

/// The files and devices that other processes have open for writing, as far as they may be examined.
///
/// The look does not examine what it finds: on a network file system that hangs, that would hang too.
pub struct OpenFiles(Vec<OpenFile>);

struct OpenFile {
    process: u32,
    /// The name that the kernel gives.
    named: PathBuf,
    /// The link in /proc, which leads to the file itself.
    link: PathBuf,
    /// `None` before Linux 5.14.
    inode: Option<u64>,
}

impl OpenFiles {
    /// Looks now.
    pub(crate) fn now() -> Arc<Self> {
        let own = std::process::id();
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let others = processes.filter(|process| *process != own);
        Arc::new(Self(others.flat_map(OpenFile::all_of).collect()))
    }

    /// Describes the first process whose file `is_it` accepts.
    fn writer(&self, is_it: impl Fn(&OpenFile) -> bool) -> Option<String> {
        let OpenFile { process, .. } = self.0.iter().find(|file| is_it(file))?;
        let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        Some(format!("open for writing in process {process}, {}", name.trim_end()))
    }
}

/// Age of a look that still answers questions.
const RECENT: Duration = Duration::from_secs(1);

/// The last look at the open files, which the guests of a run share: with many guests there are also many open files.
///
/// A program may open a disk after any look, a recent one or not, so what is read without a snapshot is checked for
/// writes once more when it was read.
#[derive(Clone, Default)]
pub struct LastLook(Arc<Mutex<Option<Look>>>);

/// What was open, and when the look at it began.
type Look = (Instant, Arc<OpenFiles>);

impl LastLook {
    /// Returns a look that began in the last second.
    pub(crate) fn get(&self) -> Arc<OpenFiles> {
        self.get_at(Instant::now(), OpenFiles::now)
    }

    fn get_at(&self, now: Instant, look: impl FnOnce() -> Arc<OpenFiles>) -> Arc<OpenFiles> {
        // Held during the look: who asks meanwhile waits for it, and uses it too.
        let mut last = self.0.lock();
        match &*last {
            Some((began, open)) if now.saturating_duration_since(*began) < RECENT => Arc::clone(open),
            _ => Arc::clone(&last.insert((Instant::now(), look())).1),
        }
    }
}

impl fmt::Debug for LastLook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastLook")
    }
}

impl OpenFile {
    /// Returns what a process has open for writing.
    fn all_of(process: u32) -> impl Iterator<Item = Self> {
        let links = std::fs::read_dir(format!("/proc/{process}/fd"));
        let links = links.into_iter().flatten().flatten().map(|entry| entry.path());
        links.filter_map(move |link| {
            let named = std::fs::read_link(&link).ok()?;
            // Sockets, pipes and the like have other names than files.
            let text = named.as_os_str().as_encoded_bytes();
            if [&b"socket:"[..], b"pipe:", b"anon_inode:"]
                .iter()
                .any(|kind| text.starts_with(kind))
            {
                return None;
            }
            // See proc_pid_fdinfo(5).
            let info = link.parent()?.with_file_name("fdinfo").join(link.file_name()?);
            let info = std::fs::read_to_string(info).unwrap_or_default();
            let value = |name| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let flags = value("flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok());
            // A process whose flags can't be read counts as a writer.
            let writes = flags.is_none_or(|flags| flags & OFlag::O_ACCMODE.bits() != OFlag::O_RDONLY.bits());
            writes.then(|| Self {
                process,
                named,
                inode: value("ino:").and_then(|inode| inode.parse().ok()),
                link,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_shared_for_a_second() {
        let last = LastLook::default();
        let look = || Arc::new(OpenFiles(Vec::new()));
        let first = last.get_at(Instant::now(), look);
        let began = last.0.lock().as_ref().expect("is there").0;
        assert!(Arc::ptr_eq(&first, &last.get_at(began + RECENT / 2, look)));
        let second = last.get_at(began + RECENT, look);
        assert!(!Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn another_process_that_has_a_file_open_for_writing_is_found_by_any_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let [path, link] = ["a", "b"].map(|name| directory.path().join(name));
        std::fs::write(&path, b"x").expect("writes");
        std::fs::hard_link(&path, &link).expect("links");
        let found = std::fs::metadata(&path).expect("is there");
        let identity = (found.dev(), found.ino());
        assert_eq!(writer_of_file(&path, identity, &OpenFiles::now()), None);
        for (mode, expected) in [("<", false), (">>", true), ("<>", true)] {
            // Its end of the pipe tells that the shell has opened the file.
            let mut child = std::process::Command::new("sh")
                .args(["-c", &format!("exec 3{mode}\"$0\"; echo; exec sleep 600")])
                .arg(&link)
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("starts");
            let mut told = [0];
            let mut output = child.stdout.take().expect("is piped");
            std::io::Read::read_exact(&mut output, &mut told).expect("tells");
            let writer = writer_of_file(&path, identity, &OpenFiles::now());
            child.kill().expect("ends");
            child.wait().expect("ended");
            let id = child.id().to_string();
            assert_eq!(writer.is_some_and(|writer| writer.contains(&id)), expected, "{mode}");
        }
    }
}
