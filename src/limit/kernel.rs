//! The read limit set in the kernel as well: if the bucket fails, the disk is still not read faster.
//!
//! The kernel limits a cgroup's reads from a block device (Documentation/admin-guide/cgroup-v2.rst, `io.max`; version
//! 1: cgroup-v1/blkio-controller.rst, `blkio.throttle.read_bps_device`). The limit is set on the device that is read,
//! e.g. a snapshot's own, so that it affects nothing else. It also holds for reads through the page cache.
//!
//! The process, as a whole and once for all its limits, enters its own group below its present one, and returns when
//! the last limit is dropped. If that is not possible, a [`Refusal`] gives the reason; that is not an error.
//!
//! # State after vbk is killed
//!
//! 1. The group is created. Killed here: an empty group remains, named after a process that is gone.
//! 2. The process enters it. Killed here: the same, because processes leave groups when they end.
//! 3. Limits are set. They disappear with their group.
//! 4. Version 2: `+io` stays in the parent group. That group was delegated to us and disappears when its unit ends; or
//!    it is the root, where `+io` always stays: other processes may have begun to use it, and would lose their limits.
//!
//! The next run below the same parent removes empty groups of processes that are gone.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use vbk_repo::mounts::{self, Mount};

use crate::host::device::DeviceNumber;

/// Ratio of the kernel's limit to the bucket's. With the same rate the two would wait for each other; with this one the
/// kernel enforces what the bucket promises for any single second, and the bucket does the rest.
const FACTOR: f64 = 1.1;
/// Prefix of our groups' names; the process id follows.
const PREFIX: &str = "vbk-";
/// Attempts to remove a group that is still in use: a process that ends leaves it a moment later.
const REMOVE_TRIES: u32 = 40;

/// Reason why the kernel does not limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

/// A kernel limit on this process's reads from one device; removed when it is dropped.
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

/// Group of this process, and the number of limits that need it. A process is in one group, so there is only one.
static HELD: Mutex<Option<(Group, u32)>> = Mutex::new(None);

fn held() -> MutexGuard<'static, Option<(Group, u32)>> {
    HELD.lock()
}

impl KernelLimit {
    /// Limits this process's reads from a device, a little above `bytes_per_sec`.
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
                // There is no limit to remove.
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
            // The device may be gone already, and its limit with it.
            let _ = group.limit(self.device, None);
            *held = Some((group, users - 1));
        } else {
            group.leave();
        }
    }
}

/// Returns the kernel's limit, a little above the bucket's.
fn above(bytes_per_sec: u64) -> u64 {
    // In version 1, 0 means no limit.
    ((bytes_per_sec as f64 * FACTOR) as u64).max(1)
}

/// A group that holds this process.
#[derive(Debug)]
struct Group {
    version: Version,
    parent: PathBuf,
    path: PathBuf,
    /// True if the controller was enabled in the parent for this group, and is to be disabled.
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

    /// Except for the root, a group whose children have a controller can't hold processes (cgroup-v2.rst, "No Internal
    /// Process Constraint"). So all processes of ours go into the child, and all must be ours to move.
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
                "{} has other processes, e.g. {stranger}; run it as a systemd unit with Delegate=io",
                parent.display()
            )));
        }
        let mut group = Self::make(Version::Two, parent)?;
        let moved = match is_root {
            true => vec![std::process::id()],
            false => inside,
        };
        // A process that ended in the meantime need not be moved; our own did not end.
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

    /// Creates an empty group for this process.
    fn make(version: Version, parent: &Path) -> Result<Self, Refusal> {
        remove_left_behind(parent);
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        match fs::create_dir(&path) {
            // It is the group of a killed process that had our number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Refusal(format!("can't create {}: {error}", path.display()))),
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

    /// Sets, changes or removes the limit of a device.
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

    /// Moves all processes of the group back and removes it.
    fn leave(self) {
        if self.enabled && self.version == Version::Two {
            // First, because no process may enter a group whose children have a controller.
            let _ = write(&self.parent.join("cgroup.subtree_control"), "-io");
        }
        for _ in 0..REMOVE_TRIES {
            // Programs that we started, and that still run, are in it too.
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

/// Removes groups of killed runs.
fn remove_left_behind(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        let Some(pid) = pid.filter(|pid| !Path::new("/proc").join(pid.to_string()).exists()) else {
            continue;
        };
        // Programs that the killed process started may still run.
        for orphan in processes_in(&entry.path()) {
            let _ = write(&parent.join("cgroup.procs"), &orphan.to_string());
        }
        match fs::remove_dir(entry.path()) {
            Ok(()) => tracing::info!("removed the control group of process {pid}, which was killed"),
            // Still in use, perhaps by a process that can't be seen from this container.
            Err(error) => tracing::debug!(%error, "{} stays", entry.path().display()),
        }
    }
}

/// Lists the processes of a group. Processes invisible from here read as 0, and writing 0 would move us, so they are
/// left out.
fn processes_in(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid != 0)
        .collect()
}

/// Tests that a process is this one or a descendant of it.
fn is_ours(pid: u32) -> bool {
    let (mut pid, mut seen) = (pid, HashSet::new());
    while pid > 1 && seen.insert(pid) {
        if pid == std::process::id() {
            return true;
        }
        // The name before it is in brackets and may contain brackets (proc_pid_stat(5)).
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        pid = parent.unwrap_or(0);
    }
    false
}

fn write(path: &Path, text: &str) -> Result<(), Refusal> {
    // In one write and never truncated: these are not regular files.
    let written = OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| Refusal(format!("can't write {text:?} to {}: {error}", path.display())))
}

/// Returns the directory of this process's group in the unified hierarchy.
pub(super) fn own_unified_group() -> Option<PathBuf> {
    Layout::of_this_process().unified
}

/// Groups of this process in the hierarchies that matter.
#[derive(Debug, Default, PartialEq, Eq)]
struct Layout {
    unified: Option<PathBuf>,
    blkio: Option<PathBuf>,
}

impl Layout {
    fn of_this_process() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::parse(&groups, &mounts::read().unwrap_or_default())
    }

    /// Parses cgroups(7).
    fn parse(groups: &str, mounts: &[Mount]) -> Self {
        let mut layout = Self::default();
        for line in groups.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(number), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            if number == "0" && controllers.is_empty() {
                layout.unified = directory_of(group, mounts, |mount| mount.fs_type == "cgroup2");
            } else if controllers.split(',').any(|name| name == "blkio") {
                layout.blkio = directory_of(group, mounts, |mount| {
                    mount.fs_type == "cgroup" && mount.has_option("blkio")
                });
            }
        }
        layout
    }
}

/// Returns the directory of a hierarchy's group.
fn directory_of(group: &str, mounts: &[Mount], is_wanted: impl Fn(&Mount) -> bool) -> Option<PathBuf> {
    // The group is outside of this container's part of the hierarchy.
    if Path::new(group)
        .components()
        .any(|part| part == std::path::Component::ParentDir)
    {
        return None;
    }
    mounts.iter().filter(|mount| is_wanted(mount)).find_map(|mount| {
        // A container has a part of the hierarchy, or all of it, mounted.
        let below = Path::new(group).strip_prefix(&mount.root).ok()?;
        // Joining an empty path would leave a slash at the end.
        Some(if below.as_os_str().is_empty() {
            mount.mount_point.clone()
        } else {
            mount.mount_point.join(below)
        })
    })
}

#[cfg(test)]
mod tests;
