//! Options of TCP connections, the same on both sides.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, TcpKeepalive};

use crate::DEAD_AFTER;

/// Buffers of a connection, in the kernel. With Linux's defaults (`tcp_wmem` of 4 MiB) one connection gets 26 MB/s through a
/// round trip of 100 ms, with these 350.
const BUFFER_BYTES: usize = 32 << 20;

/// Buffers for a client that has not said who it is.
const STRANGER_BYTES: usize = 256 << 10;

/// Bytes that the kernel takes before they can be sent. What is in there can't be overtaken by a short message.
const NOT_SENT_BYTES: u32 = 256 << 10;

/// Time without traffic after which the kernel asks whether the other side is there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Sets the options that need no right. Each only makes a connection faster or notices its end sooner, so errors are ignored.
pub(crate) fn set_options(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE));
    let _ = socket.set_tcp_notsent_lowat(NOT_SENT_BYTES);
    // It counts a peer that takes nothing (a window of 0) as dead too: tcp(7), TCP_USER_TIMEOUT.
    let _ = socket.set_tcp_user_timeout(Some(DEAD_AFTER));
}

/// Makes the buffers large, where this process may (CAP_NET_ADMIN). Before a socket connects or listens, because the
/// scale of the window is agreed on with the first packet.
pub(crate) fn enlarge(socket: &impl AsFd) {
    set_buffers(socket, BUFFER_BYTES);
}

/// Makes the buffers of an accepted connection small, until it is known who is there.
pub(crate) fn restrain(socket: &impl AsFd) {
    set_buffers(socket, STRANGER_BYTES);
}

fn set_buffers(socket: &impl AsFd, bytes: usize) {
    let _ = setsockopt(socket, sockopt::SndBufForce, &bytes);
    let _ = setsockopt(socket, sockopt::RcvBufForce, &bytes);
}
