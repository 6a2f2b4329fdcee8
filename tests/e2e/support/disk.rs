//! Disk images as a guest has them: with a partition table and file systems that the kernel made.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::bytes::{MIB, make_hole};
use super::kernel;
use super::lab::{Lab, sync, u64_of};
use super::tools::{command, tool, try_tool, wait_until};

/// XFS is never made smaller than that (mkfs.xfs of xfsprogs 5.19 and later).
pub const XFS_MIB: u64 = 304;

/// A part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub number: u32,
    pub start_bytes: u64,
    pub size_bytes: u64,
}

/// An image with its partitions; one without a table has a single part, numbered 0.
#[derive(Debug, Clone)]
pub struct Disk {
    pub path: PathBuf,
    pub parts: Vec<Part>,
}

impl Disk {
    /// An image with a partition table as sfdisk's script says.
    pub fn partitioned(path: PathBuf, size_mib: u64, script: &str) -> Self {
        make_hole(&path, size_mib * MIB);
        let mut sfdisk = command("sfdisk", args!["--quiet", path]);
        let mut sfdisk = sfdisk.stdin(Stdio::piped()).spawn().expect("runs sfdisk");
        let mut stdin = sfdisk.stdin.take().expect("piped");
        stdin.write_all(script.as_bytes()).expect("writes the script");
        drop(stdin);
        assert!(sfdisk.wait().expect("a child").success(), "sfdisk of\n{script}");
        let parts = read_table(&path);
        Self { path, parts }
    }

    /// An image without a table, as one part.
    pub fn plain(path: PathBuf, size_mib: u64) -> Self {
        make_hole(&path, size_mib * MIB);
        let part = Part {
            number: 0,
            start_bytes: 0,
            size_bytes: size_mib * MIB,
        };
        Self {
            path,
            parts: vec![part],
        }
    }

    /// The disk of a common server: GPT with ext4, XFS and swap, and a file in each file system.
    pub fn of_a_server(lab: &Lab, name: &str) -> Self {
        let script = format!("label: gpt\nsize=64MiB\nsize={XFS_MIB}MiB\nsize=8MiB, type=swap\n");
        let disk = Self::partitioned(lab.path(name), XFS_MIB + 64 + 8 + 4, &script);
        disk.format(1, "mkfs.ext4");
        disk.format(2, "mkfs.xfs");
        disk.format(3, "mkswap");
        disk
    }

    #[track_caller]
    pub fn part(&self, number: u32) -> Part {
        let found = self.parts.iter().find(|part| part.number == number);
        *found.unwrap_or_else(|| panic!("no partition {number} in {:?}", self.parts))
    }

    /// Makes a file system in a part.
    #[track_caller]
    pub fn format(&self, number: u32, mkfs: &str) {
        let device = self.attach(number);
        let mut args = match mkfs {
            "mkfs.xfs" | "mkfs.btrfs" => args!["-q", "-f"],
            "mkfs.ext4" => args!["-q", "-F"],
            _ => args![],
        };
        args.extend(args![device.node]);
        tool(mkfs, args);
        device.detach();
    }

    /// A loop device of just this part.
    pub fn attach(&self, number: u32) -> LoopDevice {
        LoopDevice::of_part(&self.path, self.part(number))
    }

    /// Mounts a part for writing, at a directory that is made for it.
    #[track_caller]
    pub fn mount(&self, lab: &Lab, number: u32) -> Mount {
        let point = tempfile::Builder::new().prefix("change-").tempdir_in(lab.dir());
        let point = point.expect("makes a directory").keep();
        let device = self.attach(number);
        // Day two of a disk has the UUIDs of day one, which may be mounted.
        let is_xfs = tool("blkid", args!["-p", "-o", "value", "-s", "TYPE", device.node]) == "xfs";
        let options = if is_xfs { "nouuid" } else { "rw" };
        tool("mount", args!["-o", options, device.node, point]);
        Mount {
            point,
            device: Some(device),
        }
    }

    /// Changes files in a part through a loop mount.
    #[track_caller]
    pub fn change(&self, lab: &Lab, number: u32, change: impl FnOnce(&Path)) {
        let mount = self.mount(lab, number);
        change(&mount.point);
        mount.unmount();
    }
}

fn read_table(image: &Path) -> Vec<Part> {
    let table: Value = serde_json::from_str(&tool("sfdisk", args!["--json", image])).expect("sfdisk gives JSON");
    let table = &table["partitiontable"];
    let sector_bytes = table["sectorsize"].as_u64().unwrap_or(512);
    let partitions = table["partitions"].as_array().expect("partitions");
    let part = |entry: &Value| Part {
        number: {
            let node = entry["node"].as_str().expect("a node");
            let digits = node
                .strip_prefix(image.to_str().expect("UTF-8"))
                .expect("the image's name");
            digits.trim_start_matches('p').parse().expect("a number")
        },
        start_bytes: u64_of(entry, "start") * sector_bytes,
        size_bytes: u64_of(entry, "size") * sector_bytes,
    };
    partitions.iter().map(part).collect()
}

/// An attached loop device, detached when dropped.
pub struct LoopDevice {
    pub node: PathBuf,
    backing: PathBuf,
}

impl LoopDevice {
    pub fn of_file(file: &Path) -> Self {
        Self::attach(file, args!["--find", "--show", file])
    }

    pub fn of_part(image: &Path, part: Part) -> Self {
        let (offset, size) = (part.start_bytes.to_string(), part.size_bytes.to_string());
        Self::attach(
            image,
            args!["--find", "--show", "--offset", offset, "--sizelimit", size, image],
        )
    }

    fn attach(backing: &Path, args: Vec<std::ffi::OsString>) -> Self {
        // losetup loses the race for a free device now and then.
        let mut last = String::new();
        for _ in 0..20 {
            let output = try_tool("losetup", args.clone());
            if output.status.success() {
                let node = String::from_utf8_lossy(&output.stdout).trim_end().into();
                return Self {
                    node,
                    backing: backing.to_owned(),
                };
            }
            last = String::from_utf8_lossy(&output.stderr).into_owned();
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("losetup {args:?} failed: {last}");
    }

    /// Detaches, and waits until the device is free.
    #[track_caller]
    pub fn detach(self) {
        let (node, backing) = (self.node.clone(), self.backing.clone());
        drop(self);
        let free = wait_until(Duration::from_secs(5), || !kernel::loops_of(&backing).contains(&node));
        assert!(free, "{} stays attached", node.display());
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // What was written must be in the backing file before somebody reads that past this device.
        if let Ok(device) = File::open(&self.node) {
            let _ = device.sync_all();
        }
        try_tool("losetup", args!["--detach", self.node]);
    }
}

/// A mounted part of an image, unmounted when dropped.
pub struct Mount {
    pub point: PathBuf,
    device: Option<LoopDevice>,
}

impl Mount {
    /// Mounts a whole device with a file system.
    pub fn of_device(device: LoopDevice, point: PathBuf) -> Self {
        tool("mount", args![device.node, point]);
        Self {
            point,
            device: Some(device),
        }
    }

    pub fn node(&self) -> &Path {
        &self.device.as_ref().expect("there until it is unmounted").node
    }

    #[track_caller]
    pub fn unmount(mut self) {
        sync(&self.point);
        tool("umount", args![self.point]);
        self.device.take().expect("unmounted once").detach();
        std::fs::remove_dir(&self.point).expect("removes a mount point");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.device.is_some() {
            try_tool("umount", args!["--lazy", self.point]);
        }
    }
}
