//! Programs of the system that the tests stand on, and the check that they and the rights to use them are there.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::lab::VBK;

/// Where the tools are, whatever PATH the caller has: on Debian a user's PATH has no sbin.
const TOOL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const TOOLS: [&str; 25] = [
    "sshd",
    "sfdisk",
    "sgdisk",
    "mkfs.ext4",
    "mkfs.xfs",
    "mkfs.btrfs",
    "btrfs",
    "mkfs.ntfs",
    "ntfscp",
    "pvcreate",
    "mkswap",
    "losetup",
    "mount",
    "umount",
    "setpriv",
    "dd",
    "cmp",
    "perl",
    "cryptsetup",
    "mkfs.vfat",
    "mcopy",
    "genisoimage",
    "lvm",
    "debugfs",
    "jq",
];

/// Fails, naming what is missing, unless the tests can do their work here. Never skips.
pub fn require_rights() {
    static MISSING: OnceLock<Vec<String>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| {
        let mut missing = Vec::new();
        if !nix::unistd::geteuid().is_root() {
            missing.push("root (run them with sudo)".to_owned());
        }
        for device in ["/dev/fuse", "/dev/loop-control"] {
            if let Err(error) = OpenOptions::new().read(true).write(true).open(device) {
                missing.push(format!("{device} ({error})"));
            }
        }
        let found = |tool: &&str| TOOL_PATH.split(':').any(|dir| Path::new(dir).join(tool).exists());
        let tools = TOOLS.iter().filter(|tool| !found(tool));
        missing.extend(tools.map(|tool| format!("the program {tool}")));
        missing
    });
    assert!(
        missing.is_empty(),
        "the end-to-end tests can't run here, these are missing: {}",
        missing.join(", ")
    );
}

/// A command of a system tool, in plain English.
pub fn command(program: &str, args: Vec<OsString>) -> Command {
    let mut command = Command::new(program);
    command.args(args).env("PATH", TOOL_PATH).env("LC_ALL", "C");
    command
}

/// Runs a tool that may fail.
pub fn try_tool(program: &str, args: Vec<OsString>) -> Output {
    let output = command(program, args).output();
    output.unwrap_or_else(|error| panic!("can't run {program}: {error}"))
}

/// Runs a tool that must succeed and gives what it printed.
#[track_caller]
pub fn tool(program: &str, args: Vec<OsString>) -> String {
    let output = try_tool(program, args.clone());
    assert!(
        output.status.success(),
        "{program} {args:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Copies vbk for another user, who may not reach this one. Not in this process: what another test starts at that moment would have
/// the copy open for writing too, and it could not be executed.
pub fn copy_program(to: &Path) {
    tool("cp", args![VBK, to]);
}

/// Asks until the answer is yes; false if it is still no after `timeout`.
pub fn wait_until(timeout: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + timeout;
    while !done() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
