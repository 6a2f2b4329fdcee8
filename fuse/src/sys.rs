//! System calls of this crate: loop device ioctls, mount(2) and umount2(2). The only file of this crate with `unsafe`,
//! and the only one that calls mount and umount; it makes no decisions.

#![allow(unsafe_code, reason = "ioctls without a safe function; see the SAFETY comments")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::mount::{MntFlags, MsFlags};

pub(crate) use nix::errno::Errno;

/// Bytes of a name in `struct loop_info64` (`LO_NAME_SIZE`, linux/loop.h).
const LO_NAME_SIZE: usize = 64;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo64 {
    lo_device: u64,
    lo_inode: u64,
    lo_rdevice: u64,
    lo_offset: u64,
    lo_sizelimit: u64,
    lo_number: u32,
    lo_encrypt_type: u32,
    lo_encrypt_key_size: u32,
    lo_flags: u32,
    lo_file_name: [u8; LO_NAME_SIZE],
    lo_crypt_name: [u8; LO_NAME_SIZE],
    lo_encrypt_key: [u8; 32],
    lo_init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h (Linux 5.8 and newer).
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

// The sizes of linux/loop.h on every 64-bit architecture: the kernel copies exactly this much.
const _: () = assert!(size_of::<LoopInfo64>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);

mod ioctl {
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, super::LoopConfig);
    nix::ioctl_none_bad!(loop_clr_fd, 0x4C01);
    nix::ioctl_write_ptr!(btrfs_forget_dev, 0x94, 5, super::BtrfsVolArgs);
}

/// Bytes of a path in `struct btrfs_ioctl_vol_args` (`BTRFS_PATH_NAME_MAX` and a zero, linux/btrfs.h).
const BTRFS_PATH_BYTES: usize = 4088;

/// `struct btrfs_ioctl_vol_args` of linux/btrfs.h.
#[repr(C)]
struct BtrfsVolArgs {
    fd: i64,
    name: [u8; BTRFS_PATH_BYTES],
}

const _: () = assert!(size_of::<BtrfsVolArgs>() == 4096);

/// Returns the number of a loop device that was free a moment ago; the kernel makes a new one if all are in use
/// (`LOOP_CTL_GET_FREE`, loop(4)). Another process may take it first, so configuring it can fail with `EBUSY`.
pub(crate) fn loop_free_number(control: &File) -> Result<u32, Errno> {
    // SAFETY: LOOP_CTL_GET_FREE has no argument and touches no memory of ours (loop(4)); the fd is open while `control`
    // is borrowed.
    let number = unsafe { ioctl::loop_ctl_get_free(control.as_raw_fd()) }?;
    u32::try_from(number).map_err(|_| Errno::EINVAL)
}

/// Binds `backing` to the loop device in one step: cleared by the kernel when its last user closes it
/// (`LOOP_CONFIGURE`). `name` is only for people to read; the kernel keeps its first 63 bytes. The device is read-only
/// also if one of the two files is not open for writing.
pub(crate) fn loop_configure(
    device: &File,
    backing: &File,
    name: &Path,
    block_size_bytes: u32,
    (read_only, direct): (bool, bool),
) -> Result<(), Errno> {
    let mut lo_file_name = [0; LO_NAME_SIZE];
    let bytes = name.as_os_str().as_bytes();
    let kept = bytes.len().min(LO_NAME_SIZE - 1);
    lo_file_name[..kept].copy_from_slice(&bytes[..kept]);
    let mut lo_flags = LO_FLAGS_AUTOCLEAR;
    if read_only {
        lo_flags |= LO_FLAGS_READ_ONLY;
    }
    if direct {
        lo_flags |= LO_FLAGS_DIRECT_IO;
    }
    let config = LoopConfig {
        fd: u32::try_from(backing.as_raw_fd()).map_err(|_| Errno::EBADF)?,
        block_size: block_size_bytes,
        info: LoopInfo64 {
            lo_device: 0,
            lo_inode: 0,
            lo_rdevice: 0,
            lo_offset: 0,
            lo_sizelimit: 0,
            lo_number: 0,
            lo_encrypt_type: 0,
            lo_encrypt_key_size: 0,
            lo_flags,
            lo_file_name,
            lo_crypt_name: [0; LO_NAME_SIZE],
            lo_encrypt_key: [0; 32],
            lo_init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config` from the pointer and keeps nothing of it (lo_ioctl,
    // drivers/block/loop.c); `config` has that layout (checked above) and lives through the call, and both descriptors
    // are open while they are borrowed.
    unsafe { ioctl::loop_configure(device.as_raw_fd(), &raw const config) }?;
    Ok(())
}

/// Detaches the backing file from the loop device; a device in use is cleared when its last user closes it
/// (`LOOP_CLR_FD`, loop(4)).
pub(crate) fn loop_clear(device: &File) -> Result<(), Errno> {
    // SAFETY: LOOP_CLR_FD has no argument and touches no memory of ours (loop(4)); the fd is open while `device` is
    // borrowed.
    unsafe { ioctl::loop_clr_fd(device.as_raw_fd()) }?;
    Ok(())
}

/// Marks this thread, and those that it starts, as one that writeback waits for (`PR_SET_IO_FLUSHER`, prctl(2), Linux
/// 5.6): its allocations then never wait for writeback themselves.
pub(crate) fn set_io_flusher() -> Result<(), Errno> {
    const PR_SET_IO_FLUSHER: nix::libc::c_int = 57;
    // SAFETY: PR_SET_IO_FLUSHER reads its number arguments and touches no memory of ours (prctl(2)).
    let done = unsafe { nix::libc::prctl(PR_SET_IO_FLUSHER, 1_u64, 0_u64, 0_u64, 0_u64) };
    Errno::result(done).map(drop)
}

/// Makes the kernel forget that an unmounted device held a btrfs (`BTRFS_IOC_FORGET_DEV`, Linux 5.4). `control` is
/// /dev/btrfs-control.
pub(crate) fn btrfs_forget(control: &File, device: &Path) -> Result<(), Errno> {
    let path = device.as_os_str().as_bytes();
    let mut arguments = BtrfsVolArgs {
        fd: 0,
        name: [0; BTRFS_PATH_BYTES],
    };
    let room = arguments
        .name
        .get_mut(..path.len())
        .filter(|_| path.len() < BTRFS_PATH_BYTES);
    room.ok_or(Errno::ENAMETOOLONG)?.copy_from_slice(path);
    // SAFETY: BTRFS_IOC_FORGET_DEV reads one `struct btrfs_ioctl_vol_args` from the pointer and keeps nothing of it
    // (btrfs_control_ioctl, fs/btrfs/super.c); `arguments` has that layout (checked above), its path ends with a zero,
    // and the fd is open while it is borrowed.
    unsafe { ioctl::btrfs_forget_dev(control.as_raw_fd(), &raw const arguments) }?;
    Ok(())
}

/// Makes the node of a loop device (block, major 7) at `path`, for a /dev that is not a devtmpfs.
pub(crate) fn make_loop_node(path: &Path, number: u32) -> Result<(), Errno> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let owner_only = Mode::S_IRUSR | Mode::S_IWUSR;
    mknod(path, SFlag::S_IFBLK, owner_only, makedev(7, number.into()))
}

/// Write mode of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writable {
    /// Writes are refused.
    No,
    /// Writes are possible: only for the short time in which the empty frame of a mount is built.
    Yes,
    /// Writes are possible and programs can be started: a guest's file system on a scratch copy, for chroot.
    WithPrograms,
}

fn flags(writable: Writable) -> MsFlags {
    // Not MS_NOSYMFOLLOW: /bin, /lib and much of /etc of a guest are symbolic links.
    let safe = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    match writable {
        Writable::No => safe | MsFlags::MS_RDONLY,
        Writable::Yes => safe,
        Writable::WithPrograms => safe - MsFlags::MS_NOEXEC,
    }
}

/// Mounts `source` at `target`, always `nodev,nosuid`, and `noexec` unless `writable` says otherwise (mount(2)).
pub(crate) fn mount(source: &Path, target: &Path, fs_type: &str, writable: Writable, data: &str) -> Result<(), Errno> {
    nix::mount::mount(Some(source), target, Some(fs_type), flags(writable), Some(data))
}

/// Makes the mount at `target` and its file system read-only (mount(2), `MS_REMOUNT`).
pub(crate) fn remount_read_only(target: &Path) -> Result<(), Errno> {
    let flags = flags(Writable::No) | MsFlags::MS_REMOUNT;
    nix::mount::mount(None::<&Path>, target, None::<&Path>, flags, None::<&Path>)
}

/// Unmounts the top mount at `target`, which may be dead: the last part of the path is looked up without asking its
/// file system (`UMOUNT_NOFOLLOW`, umount2(2)). With `detach`, it and all mounts below it disappear at once, and the
/// kernel releases them after their last user. `target` is a path of the kernel's table, which has no links: one that the
/// owner of a directory has put there since is not followed to another mount.
pub(crate) fn unmount(target: &Path, detach: bool) -> Result<(), Errno> {
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    if detach {
        flags |= MntFlags::MNT_DETACH;
    }
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return nix::mount::umount2(target, flags);
    };
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let parent = match nix::fcntl::openat2(nix::fcntl::AT_FDCWD, parent, how) {
        // Before Linux 5.6.
        Err(Errno::ENOSYS) => return nix::mount::umount2(target, flags),
        opened => opened?,
    };
    let target = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string());
    nix::mount::umount2(&target.join(name), flags)
}

/// Time that a file system has to answer before it counts as alive but slow.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Tests that the file system at `path` has lost the process that serves it (`ENOTCONN`, fuse(4)). One that does not
/// answer in time is not dead: its process exists, and may be stopped or slow.
pub(crate) fn is_dead(path: &Path) -> bool {
    let (answer, answered) = std::sync::mpsc::channel();
    let path = path.to_owned();
    // Not joined: it waits as long as the other process takes. A signal or the end of this process ends it.
    let asked = std::thread::Builder::new().name("vbk-statfs".into()).spawn(move || {
        let dead = matches!(nix::sys::statfs::statfs(&path), Err(Errno::ENOTCONN));
        // After the timeout the receiver is gone.
        let _ = answer.send(dead);
    });
    asked.is_ok() && answered.recv_timeout(ANSWER_TIMEOUT).unwrap_or(false)
}

/// Tests that this process may mount: `CAP_SYS_ADMIN`, bit 21 of its effective capabilities (capabilities(7), proc(5)).
pub(crate) fn may_mount() -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    Ok(effective.is_some_and(|set| set & (1 << 21) != 0))
}
