//! A mount namespace with a runtime directory of its own. What vbk finds there is the test's alone: mounts, records and
//! directories of tests that run at the same time are neither seen nor cleaned.

use std::ffi::OsString;

use super::lab::{Lab, VBK};
use super::run::Said;
use super::tools::command;

/// Takes the namespace's copies of other tests' mounts down, and hides their runtime directory.
const PRELUDE: &str = "set -e
    # `set -e` does not heed `!`.
    not() { if \"$@\"; then return 1; fi; }
    frame() {
        sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \\([^ ]*\\) .* - tmpfs vbk-files:.*/\\1/p' /proc/self/mountinfo | head -n 1
    }
    while point=$(frame) && [ -n \"$point\" ]; do umount -l \"$(printf %b \"$point\")\"; done
    umount -a -l -t fuse,fuse.vbk 2>/dev/null || true
    mkdir -p /run/vbk
    mount -t tmpfs tmpfs /run/vbk
";

/// Runs a script for sh(1) there, which finds the program in `$vbk`, the repository in `$repo` and these arguments in `$1` and
/// so on, and `not` before a command that must fail. It fails with the first command that does.
pub fn run_apart(lab: &Lab, script: &str, arguments: Vec<OsString>) -> Said {
    let script = format!("{PRELUDE}{script}");
    let mut unshare = command(
        "unshare",
        args!["-m", "--propagation", "private", "sh", "-c", script, "sh"],
    );
    unshare.env("vbk", VBK).env("repo", lab.repo());
    lab.start_command(unshare, arguments).wait()
}
