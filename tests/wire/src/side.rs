//! One end of the wire: a network namespace of its own with a TUN device, an address, and stock settings of Linux.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;

use crate::sys;

/// Name of the device in each namespace.
const DEVICE: &str = "wire0";
/// Pieces that the device holds for the wire's thread: more than TCP has on the way, so that only the wire drops.
const DEVICE_PIECES: u16 = 16384;
const CONGESTIONS: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";
/// The kernel's own defaults for TCP's buffers on a machine with memory (tcp(7); 6 MiB up to Linux 6.15), in place of
/// those of this machine.
const STOCK: [(&str, &str); 3] = [
    ("/proc/sys/net/ipv4/tcp_wmem", "4096 16384 4194304"),
    ("/proc/sys/net/ipv4/tcp_rmem", "4096 131072 6291456"),
    // Otherwise the kernel itself sends packets for IPv6 that no test expects.
    ("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"),
];

/// One end of the wire.
#[derive(Debug)]
pub(crate) struct End {
    /// Keeps the namespace as long as it is open.
    pub(crate) namespace: File,
    /// The device; packets sent in the namespace are read from it.
    pub(crate) device: File,
}

impl End {
    /// Makes a namespace. It is gone when the end is dropped and no process and no socket is left in it.
    pub(crate) fn new(address: Ipv4Addr, congestion: &str) -> io::Result<End> {
        in_thread(|| {
            context("a network namespace", sys::unshare_network())?;
            let namespace = File::open("/proc/thread-self/ns/net")?;
            let device = context("/dev/net/tun", sys::tun_device(DEVICE))?;
            for (name, value) in STOCK {
                // A kernel without IPv6 has nothing to turn off.
                if fs::exists(name)? {
                    context(name, fs::write(name, value))?;
                }
            }
            configure(address, congestion)?;
            Ok(End { namespace, device })
        })
    }

    /// Runs a function in the namespace.
    pub(crate) fn within<T: Send>(&self, function: impl FnOnce() -> T + Send) -> io::Result<T> {
        in_thread(|| {
            sys::enter(&self.namespace)?;
            Ok(function())
        })
    }
}

/// Gives the device its address, in the namespace of the calling thread. The congestion control is a property of the
/// route: as the namespace's default the kernel takes only those that the host allows, and by default not bbr
/// (net/ipv4/tcp_cong.c, tcp_set_default_congestion_control).
fn configure(address: Ipv4Addr, congestion: &str) -> io::Result<()> {
    let known = fs::read_to_string(CONGESTIONS)?;
    if !known.split_whitespace().any(|name| name == congestion) {
        let known = known.trim().replace(' ', ", ");
        let message = format!("congestion control {congestion:?} is not available; those of this kernel: {known}");
        return Err(io::Error::other(message));
    }
    let [a, b, c, _] = address.octets();
    ip("link set lo up")?;
    ip(&format!("link set {DEVICE} up mtu 1500 txqueuelen {DEVICE_PIECES}"))?;
    ip(&format!("address add {address}/24 dev {DEVICE} noprefixroute"))?;
    ip(&format!(
        "route add {a}.{b}.{c}.0/24 dev {DEVICE} src {address} congctl {congestion}"
    ))
}

fn ip(arguments: &str) -> io::Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = context("ip (package iproute2)", output)?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("ip {arguments}: {}", error.trim())))
}

/// Runs a function in a thread of its own, which may change its namespace.
fn in_thread<T: Send>(function: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(function).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn context<T>(what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
}
