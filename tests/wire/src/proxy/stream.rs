//! TCP and unix sockets as one kind of stream.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::sys;

/// Time for a server to answer; a proxy that is dropped waits for it.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// An address of a stream: `HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl Address {
    /// An address of the same kind for a proxy in front of this one.
    pub(super) fn beside(&self) -> Address {
        match self {
            Address::Tcp(_) => Address::Tcp((Ipv4Addr::LOCALHOST, 0).into()),
            Address::Unix(path) => {
                let mut name = path.clone().into_os_string();
                name.push(".proxy");
                Address::Unix(name.into())
            }
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Address::Unix(path.into()));
        }
        let mut addresses = text
            .to_socket_addrs()
            .map_err(|error| format!("{text:?} is not HOST:PORT or unix:PATH: {error}"))?;
        let address = addresses.next().ok_or_else(|| format!("{text:?} has no address"))?;
        Ok(Address::Tcp(address))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(formatter),
            Address::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// A socket that accepts.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    pub(super) fn bind(address: &Address) -> io::Result<Listener> {
        let listener = match address {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Listener::Tcp(listener)
            }
            Address::Unix(path) => {
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Listener::Unix(listener, path.clone())
            }
        };
        Ok(listener)
    }

    pub(super) fn address(&self) -> io::Result<Address> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Listener::Unix(_, path) => Ok(Address::Unix(path.clone())),
        }
    }

    pub(super) fn accept(&self) -> io::Result<Stream> {
        let stream = match self {
            Listener::Tcp(listener) => Stream::tcp(listener.accept()?.0)?,
            Listener::Unix(listener, _) => Stream::Unix(listener.accept()?.0),
        };
        Ok(stream)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(super) fn connect(address: &Address) -> io::Result<Stream> {
        match address {
            Address::Tcp(address) => Stream::tcp(TcpStream::connect_timeout(address, CONNECT_TIME)?),
            Address::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
        }
    }

    fn tcp(stream: TcpStream) -> io::Result<Stream> {
        // The proxy must not be slower than the program behind it.
        stream.set_nodelay(true)?;
        Ok(Stream::Tcp(stream))
    }

    /// Ends one or both directions; one that has ended already stays so.
    pub(super) fn shutdown(&self, how: Shutdown) {
        let _ = match self {
            Stream::Tcp(stream) => stream.shutdown(how),
            Stream::Unix(stream) => stream.shutdown(how),
        };
    }

    /// Bytes that the other end's kernel does not have yet. Those of a unix socket are there when they are written.
    pub(super) fn unacknowledged_bytes(&self) -> u64 {
        match self {
            Stream::Tcp(stream) => sys::unacknowledged_bytes(stream).unwrap_or(0),
            Stream::Unix(_) => 0,
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).read(bytes),
            Stream::Unix(stream) => (&*stream).read(bytes),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).write(bytes),
            Stream::Unix(stream) => (&*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
