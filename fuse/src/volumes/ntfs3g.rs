//! Mounts NTFS through ntfs-3g, for kernels without ntfs3 (RHEL and its derivatives have none). Its process serves the
//! mount until that is unmounted, and reads only from the loop device; mount, loop device and teardown are the same as
//! with a kernel driver.

use std::path::Path;
use std::process::{Command, Stdio};

/// Paths of ntfs-3g in the distributions.
const PROGRAMS: [&str; 5] = [
    "/usr/bin/ntfs-3g",
    "/bin/ntfs-3g",
    "/usr/sbin/ntfs-3g",
    "/sbin/ntfs-3g",
    "/run/current-system/sw/bin/ntfs-3g",
];

/// Returns the program, if it is installed.
pub(super) fn program() -> Option<&'static Path> {
    PROGRAMS.into_iter().map(Path::new).find(|program| program.exists())
}

/// Mounts a device; the error is in words. When this returns, the file system answers, and a background process serves
/// it.
pub(super) fn mount(program: &Path, device: &Path, point: &Path, options: &str) -> std::result::Result<(), String> {
    let mut command = Command::new(program);
    command
        .args(["-o", options])
        .arg(device)
        .arg(point)
        .stdin(Stdio::null())
        .env("LC_ALL", "C");
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Err(match said.first() {
        Some(first) => (*first).to_owned(),
        None => output.status.to_string(),
    })
}
