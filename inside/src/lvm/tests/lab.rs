//! Real physical volumes: files, which are loop devices while LVM works on them.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use super::*;

pub(super) struct Lab {
    dir: tempfile::TempDir,
    files: Vec<PathBuf>,
    loops: Vec<String>,
}

impl Lab {
    pub(super) fn new(sizes_mib: &[u64]) -> Self {
        let mut lab = Self {
            dir: tempfile::tempdir().unwrap(),
            files: Vec::new(),
            loops: Vec::new(),
        };
        for (number, mib) in sizes_mib.iter().enumerate() {
            let path = lab.dir.path().join(format!("disk{number}"));
            File::create(&path).unwrap().set_len(mib << 20).unwrap();
            lab.files.push(path.clone());
            let shown = run(Command::new("losetup").args(["--find", "--show"]).arg(path));
            lab.loops.push(shown.trim().to_owned());
        }
        lab
    }

    /// Returns the path of a disk as LVM knows it.
    pub(super) fn path(&self, disk: usize) -> &str {
        &self.loops[disk]
    }

    pub(super) fn paths(&self) -> Vec<&str> {
        self.loops.iter().map(String::as_str).collect()
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command of LVM, which sees no device but those of this lab, and never asks the kernel.
    pub(super) fn lvm(&self, command: &str) -> String {
        let accepted = self.loops.iter().map(|path| format!("\"a|^{path}$|\","));
        let config = format!(
            "devices{{filter=[{}\"r|.*|\"] use_devicesfile=0}} activation{{udev_sync=0}} \
             backup{{backup=0 archive=0}} global{{locking_dir=\"{}\" event_activation=0 use_lvmpolld=0}}",
            accepted.collect::<String>(),
            self.file("lock").display(),
        );
        let mut lvm = Command::new("lvm");
        lvm.env("LVM_SYSTEM_DIR", self.dir.path());
        lvm.env("LVM_SUPPRESS_FD_WARNINGS", "1");
        lvm.args(command.split_whitespace());
        run(lvm.args(["--driverloaded", "n", "--config", &config]))
    }

    /// Makes a volume that nothing activates.
    pub(super) fn create(&self, arguments: &str) {
        self.lvm(&format!("lvcreate -an -Zn -Wn -y {arguments}"));
    }

    /// Takes the disks out of the loop devices, and reads them.
    pub(super) fn disks(&mut self) -> Vec<Arc<Memory>> {
        self.detach();
        let read = |path| Memory::new(std::fs::read(path).unwrap());
        self.files.iter().map(read).collect()
    }

    /// Reads the disks while they are attached.
    pub(super) fn peek(&self, disk: usize) -> Vec<u8> {
        run(Command::new("blockdev").arg("--flushbufs").arg(&self.loops[disk]));
        std::fs::read(&self.files[disk]).unwrap()
    }

    fn detach(&mut self) {
        for path in self.loops.drain(..) {
            run(Command::new("losetup").arg("--detach").arg(path));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for path in self.loops.drain(..) {
            let _ = Command::new("losetup").arg("--detach").arg(path).status();
        }
    }
}

pub(super) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}
