//! NTFS through ntfs-3g, for kernels without ntfs3 (RHEL and its kin have none). Its process serves the mount until that is unmounted, and
//! reads from the loop device alone; mount, loop device and teardown are the same as with a driver of the kernel.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::{Command, Stdio};

/// Where distributions put ntfs-3g.
const PROGRAMS: [&str; 5] = [
    "/usr/bin/ntfs-3g",
    "/bin/ntfs-3g",
    "/usr/sbin/ntfs-3g",
    "/sbin/ntfs-3g",
    "/run/current-system/sw/bin/ntfs-3g",
];

/// Options it is given.
pub const OPTIONS: &str = "ro,nodev,nosuid,noexec";

/// The program, if it is installed.
pub fn program() -> Option<&'static Path> {
    PROGRAMS.into_iter().map(Path::new).find(|program| program.exists())
}

/// Mounts a device; the error is in words. When this returns, the file system answers, and a process in the background serves it.
pub fn mount(program: &Path, device: &Path, point: &Path) -> std::result::Result<(), String> {
    let mut command = Command::new(program);
    command
        .args(["-o", OPTIONS])
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
