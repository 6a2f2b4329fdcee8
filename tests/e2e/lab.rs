//! What needs a kernel with device mapper and LVM of its own: scripts of `tests/lab/lvm` in a virtual machine.
//!
//! The first run downloads the machine's packages (`scripts/lab --help`).

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::support::lab::VBK;

/// One at a time: a machine has two processors and takes both of ours.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

struct Machine {
    dir: TempDir,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        Self { dir }
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Boots and runs a script; gives its exit code and output.
    fn run(&self, options: &[&str], script: &str) -> (Option<i32>, String) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
        let scripts = root.join("tests/lab/lvm");
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Output { status, stdout, stderr } = Command::new(root.join("scripts/lab"))
            .args(["--vbk", VBK, "--memory", "1536", "--time-limit", "600"])
            .args(options)
            .arg(scripts.join(script))
            .arg(scripts.join("lib"))
            .stdin(Stdio::null())
            .output()
            .expect("scripts/lab runs");
        let text = [stdout, stderr].concat();
        (status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    #[track_caller]
    fn passes(&self, options: &[&str], script: &str) {
        let (code, said) = self.run(options, script);
        assert!(code == Some(0) && said.contains("== done"), "{script} ended with {code:?}:\n{said}");
    }
}

#[test]
fn thick_snapshots_hold_a_busy_guest_still_and_never_overflow_unseen() {
    Machine::new().passes(&["--disk", "1G", "--disk", "64M"], "thick");
}

#[test]
fn thin_volumes_are_read_as_far_as_they_changed() {
    Machine::new().passes(&["--disk", "1G"], "thin");
}

#[test]
fn the_kernel_limits_the_snapshots_own_device() {
    Machine::new().passes(&["--disk", "512M"], "limits");
}

#[test]
fn two_disks_are_snapshotted_within_one_freeze_that_ends_whatever_happens() {
    Machine::new().passes(&["--disk", "1G"], "freeze");
}

#[test]
fn what_a_killed_machine_leaves_is_removed_by_the_next_run() {
    let machine = Machine::new();
    let disk = format!("{}:512M", machine.disk("vda").display());
    let (code, said) = machine.run(
        &["--disk", &disk, "--env", "ROUND=1", "--kill-at", "cut the power"],
        "killed",
    );
    assert_eq!(code, Some(137), "{said}");
    machine.passes(&["--disk", &disk, "--env", "ROUND=2"], "killed");
}
