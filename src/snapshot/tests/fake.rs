//! A machine with one volume group of 1 GiB, as tests/fake-lvm2 plays it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::super::*;
use crate::host::program::Programs;
use crate::observer::Event;

pub(super) const HOST: &str = "0a1b2c";
const PROGRAMS: [&str; 8] = [
    "lvs", "vgs", "lvcreate", "lvremove", "lvextend", "lvchange", "dmsetup", "fake-lv",
];

pub(super) struct Fake {
    dir: TempDir,
    runtime: PathBuf,
    pub programs: Programs,
    devices: AtomicU32,
}

impl Fake {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).expect("is made");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake-lvm2/fake-lvm2");
        for program in PROGRAMS {
            symlink(&script, bin.join(program)).expect("is linked");
        }
        let fake = Self {
            programs: Programs::found_in(format!("{}:/usr/bin:/bin", bin.display())),
            runtime: dir.path().join("run"),
            dir,
            devices: AtomicU32::new(0),
        };
        fake.fake(&["vg", "vg0", "1G"]);
        fake
    }

    pub fn fake(&self, args: &[&str]) -> String {
        self.try_fake(args).expect("the fake does it")
    }

    fn try_fake(&self, args: &[&str]) -> Option<String> {
        self.programs
            .run("fake-lv", args, std::time::Duration::from_secs(60))
            .ok()
    }

    pub fn set(&self, volume: &str, key: &str, value: impl std::fmt::Display) {
        self.fake(&["set", volume, &format!("{key}={value}")]);
    }

    pub fn fault(&self, program: &str, text: &str) {
        let mut args = vec!["fault", program];
        args.extend(text.split(' ').filter(|word| !word.is_empty()));
        self.fake(&args);
    }

    pub fn remove_program(&self, program: &str) {
        std::fs::remove_file(self.dir.path().join("bin").join(program)).expect("is removed");
    }

    pub fn is_there(&self, volume: &str) -> bool {
        self.try_fake(&["get", volume]).is_some()
    }

    pub fn log(&self) -> Vec<String> {
        self.fake(&["log"]).lines().map(str::to_owned).collect()
    }

    pub fn called(&self, program: &str) -> usize {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines()
            .filter(|line| line.split(' ').next() == Some(program))
            .count()
    }

    /// A device node with numbers for local use (Documentation/admin-guide/devices.txt), which nobody opens.
    fn node(&self) -> PathBuf {
        let number = self.devices.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.path().join(format!("node{number}"));
        let device = makedev(240, 5000 + u64::from(number));
        mknod(&path, SFlag::S_IFBLK, Mode::from_bits_truncate(0o600), device).expect("root can make a device node");
        path
    }

    pub fn volume(&self, name: &str, size: &str) -> PathBuf {
        let node = self.node();
        self.fake(&["lv", name, size, &node.display().to_string()]);
        node
    }

    /// In a pool of 100 MiB, and 4 MiB for its metadata.
    pub fn thin_volume(&self, name: &str, size: &str) -> PathBuf {
        let node = self.node();
        self.fake(&["pool", "vg0/pool", "100M", "4M"]);
        self.fake(&["thin", name, size, "pool", &node.display().to_string()]);
        node
    }

    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    pub fn directories(&self) -> Directories<'_> {
        Directories {
            runtime_dir: &self.runtime,
            cache: &self.runtime,
            host_id: HOST,
        }
    }

    pub fn run(&self) -> Run {
        Run::begin(self.runtime(), HOST, "backup web1").expect("begins")
    }

    pub fn disks(disks: &[(&str, &Path)]) -> Vec<(DiskName, PathBuf)> {
        let disk = |(name, path): &(&str, &Path)| (name.parse().expect("a name"), path.to_path_buf());
        disks.iter().map(disk).collect()
    }

    pub fn plan(&self, disks: &[(&str, &Path)]) -> Result<Plan, SnapshotError> {
        plan(&self.programs, &Self::disks(disks), &SnapshotOptions::default())
    }
}

/// The volumes that there are.
pub(super) fn names(fake: &Fake) -> Vec<String> {
    let state = std::fs::read_to_string(fake.dir.path().join("state.json")).expect("there is a state");
    let state: serde_json::Value = serde_json::from_str(&state).expect("is JSON");
    state["lvs"].as_object().expect("volumes").keys().cloned().collect()
}

/// Collects the warnings of a run.
#[derive(Default)]
pub(super) struct Warnings(Mutex<Vec<String>>);

impl Warnings {
    /// The warnings until now.
    pub fn all(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

impl Observer for Warnings {
    fn event(&self, event: Event<'_>) {
        if let Event::Warning(text) = event {
            self.0.lock().push(text.to_owned());
        }
    }
}
