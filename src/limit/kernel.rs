//! The read limit once more, in the kernel: should the bucket fail, the disk is still not read faster.
//!
//! The kernel limits what a cgroup reads from a block device (Documentation/admin-guide/cgroup-v2.rst, `io.max`; version 1:
//! cgroup-v1/blkio-controller.rst, `blkio.throttle.read_bps_device`). The limit is set on what is read, a snapshot's own
//! device, so that it hits nothing else, and it holds for reads through the page cache too.
//!
//! The process, as a whole and once for all its limits, goes into a group of its own below the one it is in, and back when
//! the last limit is dropped. Where it may not, a [`Refusal`] says why; that is no error.
//!
//! # What is there when vbk is killed
//!
//! 1. The group is made. Killed here: an empty group, named after a process that is gone.
//! 2. The process enters. Killed here: the same, since processes leave groups when they end.
//! 3. Limits are set. They go with their group.
//! 4. Version 2: `+io` stays in the group above. That group is one that was delegated to us, and goes when its unit ends; or
//!    it is the root, where `+io` always stays: others may have begun to use it meanwhile, and would lose their limits.
//!
//! The next run below the same group removes empty groups of processes that are gone.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::host::device::DeviceNumber;
use crate::host::mounts::{self, Mount};

/// How much more than the bucket the kernel allows. With the same rate the two would wait for each other; with this one
/// the kernel holds what the bucket promises of any one second, and the bucket does the rest.
const FACTOR: f64 = 1.1;
/// What groups of ours are called, before the number of their process.
const PREFIX: &str = "vbk-";
/// How often a group that is still in use is tried again: a process that ends leaves it a moment later.
const REMOVE_TRIES: u32 = 40;

/// Why the kernel does not limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

/// A limit of the kernel on what this process reads from one device; taken away when it is dropped.
#[derive(Debug)]
pub struct KernelLimit {
    device: DeviceNumber,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "cgroup v1",
            Self::Two => "cgroup v2",
        })
    }
}

/// The group of this process and how many limits need it. A process is in one group, so there is one of these.
static HELD: Mutex<Option<(Group, u32)>> = Mutex::new(None);

fn held() -> MutexGuard<'static, Option<(Group, u32)>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KernelLimit {
    /// Limits what this process reads from a device, a little above `bytes_per_sec`.
    pub fn begin(device: DeviceNumber, bytes_per_sec: u64) -> Result<Self, Refusal> {
        let mut held = held();
        let (group, users) = match held.take() {
            Some(held) => held,
            None => (Group::enter(&Layout::of_this_process())?, 0),
        };
        let limit = Self {
            device,
            version: group.version,
        };
        let done = group.limit(device, Some(bytes_per_sec));
        match (&done, users) {
            (Err(_), 0) => group.leave(),
            (Err(_), _) => *held = Some((group, users)),
            (Ok(()), _) => *held = Some((group, users + 1)),
        }
        drop(held);
        match done {
            Ok(()) => Ok(limit),
            Err(refusal) => {
                // There is no limit to take away.
                std::mem::forget(limit);
                Err(refusal)
            }
        }
    }

    /// Changes the limit.
    pub fn set(&self, bytes_per_sec: u64) -> Result<(), Refusal> {
        match held().as_ref() {
            Some((group, _)) => group.limit(self.device, Some(bytes_per_sec)),
            None => Err(Refusal("the group is gone".to_owned())),
        }
    }
}

impl fmt::Display for KernelLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on device {}", self.version, self.device)
    }
}

impl Drop for KernelLimit {
    fn drop(&mut self) {
        let mut held = held();
        let Some((group, users)) = held.take() else {
            return;
        };
        if users > 1 {
            // The device may be gone already; then so is its limit.
            let _ = group.limit(self.device, None);
            *held = Some((group, users - 1));
        } else {
            group.leave();
        }
    }
}

/// What the kernel is told, a little above what the bucket allows.
fn above(bytes_per_sec: u64) -> u64 {
    // Version 1 takes 0 for no limit.
    ((bytes_per_sec as f64 * FACTOR) as u64).max(1)
}

/// A group that this process is in.
#[derive(Debug)]
struct Group {
    version: Version,
    parent: PathBuf,
    path: PathBuf,
    /// Whether the controller was turned on in the parent for this, and is to be turned off.
    enabled: bool,
}

impl Group {
    fn enter(layout: &Layout) -> Result<Self, Refusal> {
        let two = layout
            .unified
            .as_deref()
            .ok_or_else(|| Refusal("cgroup v2 is not mounted".to_owned()));
        let refused_by_two = match two.and_then(Self::enter_v2) {
            Ok(group) => return Ok(group),
            Err(refusal) => refusal,
        };
        match layout.blkio.as_deref() {
            Some(parent) => Self::enter_v1(parent),
            None => Err(refused_by_two),
        }
    }

    fn enter_v1(parent: &Path) -> Result<Self, Refusal> {
        let group = Self::make(Version::One, parent)?;
        if let Err(refusal) = group.take_in(std::process::id()) {
            group.leave();
            return Err(refusal);
        }
        Ok(group)
    }

    /// No process may be in a group whose children have a controller, but for the root (cgroup-v2.rst, "No Internal
    /// Process Constraint"). So all that is in ours goes into the child, and it must be ours to be moved.
    fn enter_v2(parent: &Path) -> Result<Self, Refusal> {
        let read = |file: &str| fs::read_to_string(parent.join(file)).unwrap_or_default();
        if !read("cgroup.controllers").split_whitespace().any(|name| name == "io") {
            return Err(Refusal(format!(
                "the io controller is not delegated to {} (in a systemd unit: Delegate=io)",
                parent.display()
            )));
        }
        // Only the root has no type.
        let is_root = !parent.join("cgroup.type").exists();
        let inside = processes_in(parent);
        if !is_root && let Some(stranger) = inside.iter().find(|pid| !is_ours(**pid)) {
            return Err(Refusal(format!(
                "{} has other processes, as {stranger}; run it as a systemd unit with Delegate=io",
                parent.display()
            )));
        }
        let mut group = Self::make(Version::Two, parent)?;
        let moved = match is_root {
            true => vec![std::process::id()],
            false => inside,
        };
        // One that ended meanwhile need not be moved; our own did not.
        for pid in moved.into_iter().filter(|pid| *pid != std::process::id()) {
            let _ = group.take_in(pid);
        }
        let entered = group.take_in(std::process::id()).and_then(|()| {
            if !read("cgroup.subtree_control")
                .split_whitespace()
                .any(|name| name == "io")
            {
                write(&parent.join("cgroup.subtree_control"), "+io")?;
                group.enabled = !is_root;
            }
            Ok(())
        });
        if let Err(refusal) = entered {
            group.leave();
            return Err(refusal);
        }
        Ok(group)
    }

    /// Makes an empty group for this process.
    fn make(version: Version, parent: &Path) -> Result<Self, Refusal> {
        remove_left_behind(parent);
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        match fs::create_dir(&path) {
            // One of a killed process that had our number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Refusal(format!("can't make {}: {error}", path.display()))),
            Ok(()) => {}
        }
        Ok(Self {
            version,
            parent: parent.to_owned(),
            path,
            enabled: false,
        })
    }

    fn take_in(&self, pid: u32) -> Result<(), Refusal> {
        write(&self.path.join("cgroup.procs"), &pid.to_string())
    }

    /// Sets, changes or takes away the limit of a device.
    fn limit(&self, device: DeviceNumber, bytes_per_sec: Option<u64>) -> Result<(), Refusal> {
        let (file, line) = match (self.version, bytes_per_sec.map(above)) {
            (Version::One, rate) => (
                "blkio.throttle.read_bps_device",
                format!("{device} {}", rate.unwrap_or(0)),
            ),
            (Version::Two, Some(rate)) => ("io.max", format!("{device} rbps={rate}")),
            (Version::Two, None) => ("io.max", format!("{device} rbps=max")),
        };
        write(&self.path.join(file), &line).map_err(|refusal| match device.sysfs("partition").exists() {
            true => Refusal(format!(
                "device {device} is a partition; the kernel limits only whole devices"
            )),
            false => refusal,
        })
    }

    /// Moves everything that is in the group back and removes it.
    fn leave(self) {
        if self.enabled && self.version == Version::Two {
            // First: nothing may enter a group whose children have a controller.
            let _ = write(&self.parent.join("cgroup.subtree_control"), "-io");
        }
        for _ in 0..REMOVE_TRIES {
            // Programs that we started, and that go on, are in it too.
            for pid in processes_in(&self.path) {
                let _ = write(&self.parent.join("cgroup.procs"), &pid.to_string());
            }
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => std::thread::sleep(Duration::from_millis(5)),
                _ => return,
            }
        }
        tracing::warn!(
            "the control group {} can't be removed; the next run tries again",
            self.path.display()
        );
    }
}

/// Removes groups of runs that were killed.
fn remove_left_behind(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        let Some(pid) = pid.filter(|pid| !Path::new("/proc").join(pid.to_string()).exists()) else {
            continue;
        };
        // What the killed process had started and still runs.
        for orphan in processes_in(&entry.path()) {
            let _ = write(&parent.join("cgroup.procs"), &orphan.to_string());
        }
        match fs::remove_dir(entry.path()) {
            Ok(()) => tracing::info!("removed the control group of process {pid}, which was killed"),
            // In use after all, perhaps by a process that can't be seen from this container.
            Err(error) => tracing::debug!(%error, "{} stays", entry.path().display()),
        }
    }
}

/// Without processes that can't be seen from here: they read as 0, and to write that would move us.
fn processes_in(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid != 0)
        .collect()
}

/// Whether a process is this one, or was started by it, directly or not.
fn is_ours(pid: u32) -> bool {
    let (mut pid, mut seen) = (pid, HashSet::new());
    while pid > 1 && seen.insert(pid) {
        if pid == std::process::id() {
            return true;
        }
        // The name before it is in brackets and may have brackets itself (proc_pid_stat(5)).
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        pid = parent.unwrap_or(0);
    }
    false
}

fn write(path: &Path, text: &str) -> Result<(), Refusal> {
    // In one write and never truncated: these are not files.
    let written = OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| Refusal(format!("can't write {text:?} to {}: {error}", path.display())))
}

/// The directory of this process's group in the unified hierarchy.
pub(super) fn own_unified_group() -> Option<PathBuf> {
    Layout::of_this_process().unified
}

/// Where this process is in the hierarchies that count.
#[derive(Debug, Default, PartialEq, Eq)]
struct Layout {
    unified: Option<PathBuf>,
    blkio: Option<PathBuf>,
}

impl Layout {
    fn of_this_process() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::parse(&groups, &mounts::read())
    }

    /// From cgroups(7).
    fn parse(groups: &str, mounts: &[Mount]) -> Self {
        let mut layout = Self::default();
        for line in groups.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(number), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            if number == "0" && controllers.is_empty() {
                layout.unified = directory_of(group, mounts, |mount| mount.kind == "cgroup2");
            } else if controllers.split(',').any(|name| name == "blkio") {
                layout.blkio = directory_of(group, mounts, |mount| {
                    mount.kind == "cgroup" && mount.has_option("blkio")
                });
            }
        }
        layout
    }
}

/// Where a group of a hierarchy is in the file system.
fn directory_of(group: &str, mounts: &[Mount], is_wanted: impl Fn(&Mount) -> bool) -> Option<PathBuf> {
    // One outside of this container's part of the hierarchy.
    if Path::new(group)
        .components()
        .any(|part| part == std::path::Component::ParentDir)
    {
        return None;
    }
    mounts.iter().filter(|mount| is_wanted(mount)).find_map(|mount| {
        // A container sees a part of the hierarchy, or the whole of it, mounted.
        let below = Path::new(group).strip_prefix(&mount.root).ok()?;
        // Without the slash that joining nothing would leave at the end.
        Some(if below.as_os_str().is_empty() {
            mount.point.clone()
        } else {
            mount.point.join(below)
        })
    })
}

#[cfg(test)]
mod tests;
