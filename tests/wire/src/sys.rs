//! System calls of this crate for which neither the standard library nor nix has a safe function: namespaces, TUN
//! devices, and the end of a child with its parent. The only file of this crate with `unsafe`; it makes no decisions.

#![allow(
    unsafe_code,
    reason = "system calls without a safe function; see the SAFETY comments"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::libc::{self, c_int, c_short};
use nix::mount::{MsFlags, mount};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// Bytes of an interface's name with the zero at its end (`IFNAMSIZ`, linux/if.h).
const NAME_BYTES: usize = libc::IFNAMSIZ;

mod ioctl {
    use nix::libc;

    nix::ioctl_write_ptr_bad!(set_tun, libc::TUNSETIFF, super::FlagsRequest);
    nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);
    nix::ioctl_read_bad!(unsent, libc::TIOCOUTQ, libc::c_int);
}

/// `struct ifreq` (linux/if.h) with its member `ifr_flags`.
#[repr(C)]
struct FlagsRequest {
    name: [u8; NAME_BYTES],
    flags: c_short,
    rest: [u8; 22],
}

// The kernel copies a whole `struct ifreq` from the pointer.
const _: () = assert!(size_of::<FlagsRequest>() == size_of::<libc::ifreq>());

fn interface(name: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    for (to, from) in bytes[..NAME_BYTES - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn unshare(what: c_int) -> io::Result<()> {
    // SAFETY: unshare(2) takes a number and touches no memory of the process.
    Errno::result(unsafe { libc::unshare(what) })?;
    Ok(())
}

/// Moves the calling thread alone into a new network namespace (`CLONE_NEWNET`).
pub(crate) fn unshare_network() -> io::Result<()> {
    unshare(libc::CLONE_NEWNET)
}

/// Makes the next child of the calling thread the first process of a new process namespace (`CLONE_NEWPID`): when it
/// ends, the kernel kills everything in there. The thread can start no other thread after this.
pub fn unshare_processes() -> io::Result<()> {
    unshare(libc::CLONE_NEWPID)
}

/// Gives the process mounts of its own, which nobody outside sees, and a `/proc` of its own process namespace.
pub fn unshare_mounts() -> io::Result<()> {
    unshare(libc::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none)?;
    Ok(())
}

/// Moves the calling thread alone into a network namespace.
pub(crate) fn enter(namespace: impl AsFd) -> io::Result<()> {
    // SAFETY: setns(2) takes a file descriptor, open as long as it is borrowed, and touches no memory of the process.
    Errno::result(unsafe { libc::setns(namespace.as_fd().as_raw_fd(), libc::CLONE_NEWNET) })?;
    Ok(())
}

/// Makes the command start in a network namespace.
pub fn start_in(command: &mut Command, namespace: OwnedFd) {
    // SAFETY: between fork and exec only async-signal-safe functions may be called: setns is a bare system call, and
    // an error number becomes an io::Error without an allocation.
    unsafe { command.pre_exec(move || enter(&namespace)) };
}

/// Makes the kernel kill the command when the thread that starts it ends (`PR_SET_PDEATHSIG`).
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: as in start_in; prctl is a bare system call too.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
}

/// Makes a TUN device in the network namespace of the calling thread. Each read and write is one IP packet behind a
/// `struct virtio_net_hdr` of 10 bytes. The kernel hands over TCP of up to 64 KiB at once, with its checksum open, as
/// it would to a network card (`TUN_F_TSO4`). The device is gone when the file is closed.
pub(crate) fn tun_device(name: &str) -> io::Result<File> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let request = FlagsRequest {
        name: interface(name),
        flags: (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as c_short,
        rest: [0; 22],
    };
    // SAFETY: the kernel reads one struct ifreq (drivers/net/tun.c, __tun_chr_ioctl) and writes the name back into it;
    // the size is asserted above, and nothing reads the request afterwards.
    unsafe { ioctl::set_tun(device.as_raw_fd(), &raw const request) }?;
    let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4;
    // SAFETY: the argument is a number (drivers/net/tun.c, set_offload).
    unsafe { ioctl::set_offload(device.as_raw_fd(), offload as c_int) }?;
    Ok(device)
}

/// Bytes written to a socket that the other end's kernel has not acknowledged yet (`SIOCOUTQ`, tcp(7)).
pub(crate) fn unacknowledged_bytes(socket: impl AsFd) -> io::Result<u64> {
    let mut bytes = 0;
    // SAFETY: the kernel writes one int to the pointer, which is valid for that (net/ipv4/tcp.c, tcp_ioctl).
    unsafe { ioctl::unsent(socket.as_fd().as_raw_fd(), &raw mut bytes) }?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}
