//! System calls of this crate for which neither the standard library nor nix has a safe function. The only file of this
//! crate with `unsafe`.

#![allow(
    unsafe_code,
    reason = "system calls without a safe function; see the SAFETY comments"
)]

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

mod ioctl {
    // linux/fs.h
    nix::ioctl_read!(blk_get_size_64, 0x12, 114, u64);
    nix::ioctl_write_ptr_bad!(blk_zero_out, nix::request_code_none!(0x12, 127), [u64; 2]);
    // linux/loop.h
    nix::ioctl_read_bad!(loop_get_status_64, 0x4C05, super::LoopInfo);
    nix::ioctl_write_int_bad!(
        ficlone,
        nix::request_code_write!(0x94, 9, size_of::<nix::libc::c_int>())
    );
    // asm-generic/ioctls.h
    nix::ioctl_read_bad!(get_window_size, nix::libc::TIOCGWINSZ, nix::libc::winsize);
    // The number tells the size of the head alone.
    nix::ioctl_readwrite_bad!(fs_fiemap, nix::request_code_readwrite!(b'f', 11, 32), super::FileMap);
}

/// Makes an empty file share all extents of another one, at one moment (`FICLONE`, ioctl_ficlone(2)).
pub(crate) fn clone_file(source: &File, copy: &File) -> io::Result<()> {
    // SAFETY: the argument is a file descriptor by value, open as long as `source` is borrowed; no memory is touched.
    unsafe { ioctl::ficlone(copy.as_raw_fd(), source.as_raw_fd()) }?;
    Ok(())
}

/// Returns the number of columns of a terminal (`TIOCGWINSZ`, ioctl_tty(2)); 0 if the terminal does not know it.
pub(crate) fn window_columns(terminal: BorrowedFd<'_>) -> io::Result<u16> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the kernel writes one `struct winsize` to the pointer, which is valid for that (drivers/tty/tty_io.c, tiocgwinsz).
    unsafe { ioctl::get_window_size(terminal.as_raw_fd(), &raw mut size) }?;
    Ok(size.ws_col)
}

/// The size of a block device in bytes (`BLKGETSIZE64`).
pub(crate) fn device_size_bytes(device: &File) -> io::Result<u64> {
    let mut size = 0;
    // SAFETY: the kernel writes one u64 to the pointer, which is valid for that (block/ioctl.c, put_u64).
    unsafe { ioctl::blk_get_size_64(device.as_raw_fd(), &raw mut size) }?;
    Ok(size)
}

/// Makes a range of a block device read as zeros (`BLKZEROOUT`): unmaps it where the device guarantees zeros after
/// that, and writes zeros elsewhere. Both numbers must be multiples of the logical sector size.
pub(crate) fn zero_device_range(device: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let range = [offset_bytes, len_bytes];
    // SAFETY: the kernel reads two u64 from the pointer (block/ioctl.c, blk_ioctl_zeroout).
    unsafe { ioctl::blk_zero_out(device.as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// `struct loop_info64` (linux/loop.h); only its first three numbers are read.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    rest: [u64; 26],
}

/// Returns the backing file of a loop device as the kernel holds it: its file system and inode, and its device number
/// if it is itself a device. The numbers are those of stat(2) (`LOOP_GET_STATUS64`).
pub(crate) fn loop_backing(device: &File) -> io::Result<(u64, u64, u64)> {
    let mut info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        rest: [0; 26],
    };
    // SAFETY: the kernel writes one `struct loop_info64` of 232 bytes to the pointer, which is valid for that
    // (drivers/block/loop.c, loop_get_status64).
    unsafe { ioctl::loop_get_status_64(device.as_raw_fd(), &raw mut info) }?;
    // The kernel's own encoding (linux/kdev_t.h, huge_encode_dev).
    let decode = |number: u64| {
        libc::makedev(
            ((number >> 8) & 0xfff) as u32,
            ((number & 0xff) | ((number >> 12) & 0xf_ff00)) as u32,
        )
    };
    Ok((decode(info.device), info.inode, decode(info.rdevice)))
}

/// Opens for reading a file that only this user or root can have put there. Follows no link and does not wait for a
/// pipe.
pub(crate) fn open_own(path: &Path) -> io::Result<File> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    match is_own_file(&file.metadata()?) {
        true => Ok(file),
        false => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "another user may have put it there",
        )),
    }
}

/// Tests that only this user or root can have made or changed a file. A file with a second hard link fails: it may be
/// another user's file.
pub(crate) fn is_own_file(file: &Metadata) -> bool {
    let is_owner = file.uid() == 0 || file.uid() == nix::unistd::geteuid().as_raw();
    file.is_file() && file.nlink() == 1 && file.mode() & 0o022 == 0 && is_owner
}

/// Calls pread(2) such that it adds nothing to the page cache (`RWF_DONTCACHE`, Linux 6.14; preadv2(2)). Fails with
/// `EOPNOTSUPP` or `EINVAL` where the kernel or the file system does not support this.
pub(crate) fn read_dont_cache(file: &File, buffer: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
    let part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let offset = libc::off_t::try_from(offset_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the one iovec describes `buffer`, which is borrowed mutably for the call (preadv2(2)).
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_DONTCACHE) };
    // preadv2 returns -1 for an error and the number of bytes otherwise.
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// linux/ioprio.h: the `who` that means a thread, and the class in the upper bits.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_IDLE: libc::c_int = 3;
const IOPRIO_CLASS_SHIFT: libc::c_int = 13;

/// Puts this thread into the idle I/O class (ioprio_set(2)).
pub(crate) fn set_idle_io_class() -> io::Result<()> {
    let class = IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT;
    // SAFETY: three numbers and no pointer; 0 is the calling thread (ioprio_set(2)).
    match unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, class) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Tests that this thread is in the idle I/O class.
#[cfg(test)]
pub(crate) fn is_io_class_idle() -> bool {
    // SAFETY: two numbers and no pointer; 0 is the calling thread (ioprio_get(2)).
    let priority = unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) };
    priority >> IOPRIO_CLASS_SHIFT == libc::c_long::from(IOPRIO_CLASS_IDLE)
}

/// Sets the niceness of this thread (setpriority(2): on Linux each thread has its own).
pub(crate) fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: three numbers and no pointer; 0 is the calling thread (setpriority(2)).
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes this process and all that it starts ignore the signals that ask a process to end (signal(7)).
pub(crate) fn ignore_ending_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: no handler of ours is installed; to ignore a signal is always sound (signal(2)).
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Locks all memory of this process, present and future, into RAM as far as permitted (mlockall(2)): it then continues
/// when the host is out of memory, without swap and page cache.
pub(crate) fn lock_memory() {
    // SAFETY: flags and no pointer; contents of memory do not change.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) };
}

/// Makes the allocator map what has this size or more alone, so that its memory is free again when it is (mallopt(3)). Not for
/// sizes that are used all the time: each use then costs the page faults.
pub(crate) fn map_allocations_from(bytes: usize) {
    #[cfg(target_env = "gnu")]
    if let Ok(bytes) = libc::c_int::try_from(bytes) {
        // SAFETY: two numbers and no pointer; the allocator takes its own lock, and what is allocated already stays where it is.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}

/// Lifts the resource limits that end a process by a signal, as far as permitted (setrlimit(2)).
pub(crate) fn lift_limits() {
    for resource in [libc::RLIMIT_CPU, libc::RLIMIT_FSIZE] {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: both calls use one rlimit that lives through them.
        unsafe {
            let unlimited = libc::rlimit {
                rlim_cur: libc::RLIM_INFINITY,
                rlim_max: libc::RLIM_INFINITY,
            };
            if libc::setrlimit(resource, &raw const unlimited) != 0 && libc::getrlimit(resource, &raw mut limit) == 0 {
                limit.rlim_cur = limit.rlim_max;
                libc::setrlimit(resource, &raw const limit);
            }
        }
    }
}

/// Makes a child process get a signal when the thread that starts it ends (`PR_SET_PDEATHSIG`, prctl(2)).
pub(crate) fn die_with_parent(command: &mut std::process::Command, signal: nix::sys::signal::Signal) {
    let parent = nix::unistd::getpid();
    let before_exec = move || {
        nix::sys::prctl::set_pdeathsig(signal)?;
        // The parent may have ended before the call.
        match nix::unistd::getppid() == parent {
            true => Ok(()),
            false => Err(nix::errno::Errno::ESRCH.into()),
        }
    };
    // SAFETY: after the fork the closure makes two system calls and allocates nothing (signal-safety(7)).
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, before_exec) };
}

/// Makes a child process inherit open files, under their numbers here. The caller keeps them open until the child runs.
pub(crate) fn inherit(command: &mut std::process::Command, files: Vec<std::os::fd::RawFd>) {
    let before_exec = move || {
        files.iter().try_for_each(|file| {
            // SAFETY: two numbers and no pointer; an fd that is not open is an error (fcntl(2)).
            match unsafe { libc::fcntl(*file, libc::F_SETFD, 0) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    };
    // SAFETY: after the fork the closure makes system calls and allocates nothing (signal-safety(7)).
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, before_exec) };
}

/// Extents that [`file_extents`] returns at most.
const MAP_EXTENTS: usize = 256;

/// `struct fiemap` with room for extents (linux/fiemap.h).
#[repr(C)]
struct FileMap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FileExtent; MAP_EXTENTS],
}

/// `struct fiemap_extent`: position of one part of a file.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileExtent {
    /// Offset in the file, in bytes.
    pub(crate) logical: u64,
    /// Offset on the file system, in bytes.
    pub(crate) physical: u64,
    /// Length in bytes.
    pub(crate) length: u64,
    reserved64: [u64; 2],
    /// `FIEMAP_EXTENT_*`.
    pub(crate) flags: u32,
    reserved: [u32; 3],
}

impl FileExtent {
    /// Makes an extent whose reserved fields are zero.
    pub(crate) const fn new(logical: u64, physical: u64, length: u64, flags: u32) -> Self {
        Self {
            logical,
            physical,
            length,
            reserved64: [0; 2],
            flags,
            reserved: [0; 3],
        }
    }
}

/// Returns the extents of a file that end after `from_bytes`, a few hundred at most; none if there are no more. Dirty
/// pages of the file are written first (`FS_IOC_FIEMAP`; Documentation/filesystems/fiemap.rst).
pub(crate) fn file_extents(file: &File, from_bytes: u64) -> io::Result<Vec<FileExtent>> {
    const FIEMAP_FLAG_SYNC: u32 = 1;
    let mut map = Box::new(FileMap {
        start: from_bytes,
        length: u64::MAX - from_bytes,
        flags: FIEMAP_FLAG_SYNC,
        mapped_extents: 0,
        extent_count: MAP_EXTENTS as u32,
        reserved: 0,
        extents: [FileExtent::new(0, 0, 0, 0); MAP_EXTENTS],
    });
    // SAFETY: the kernel reads the head and writes it and at most `extent_count` extents, for which there is room
    // (fs/ioctl.c, ioctl_fiemap and fiemap_fill_next_extent).
    unsafe { ioctl::fs_fiemap(file.as_raw_fd(), &raw mut *map) }?;
    let mapped = (map.mapped_extents as usize).min(MAP_EXTENTS);
    Ok(map.extents[..mapped].to_vec())
}

/// Number of cachestat(2), which Linux has from 6.5 on; the same on all architectures but alpha.
const SYS_CACHESTAT: libc::c_long = 451;

/// Tests whether the page cache has some of a range of a file (cachestat(2)). Fails with `ENOSYS` where the kernel does not have the
/// call, and with `EPERM` for a file that this user may only read.
pub(crate) fn is_cached(file: &File, offset_bytes: u64, len: usize) -> io::Result<bool> {
    let range = [offset_bytes, len as u64];
    // The first is the number of cached pages, dirty ones included.
    let mut found = [0_u64; 5];
    // SAFETY: the kernel reads `struct cachestat_range`, two u64, and writes `struct cachestat`, five; the pointers are valid for
    // that (linux/mman.h).
    let result = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut found, 0) };
    match result {
        0 => Ok(found[0] > 0),
        _ => Err(io::Error::last_os_error()),
    }
}
