//! The proxy that breaks streams.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vbk_wire::proxy::{Address, Ended, Fault, Faults, Proxy, Stall};

const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that the servers here send at once, and more than any kernel keeps for a client that does not read.
const MANY: usize = 8 << 20;

/// A server that sends [`MANY`] bytes to each of some clients, and returns how many it received from each.
fn server(clients: usize) -> (Address, JoinHandle<Vec<u64>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let thread = thread::spawn(move || {
        let clients = (0..clients).map(|_| listener.accept().unwrap().0);
        let serve = |client: TcpStream| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = (&client).write_all(&vec![1; MANY]);
                });
                count(&client)
            })
        };
        clients.map(serve).collect()
    });
    (address, thread)
}

/// Bytes that come until the end, be it a good or a bad one.
fn count(mut from: impl Read) -> u64 {
    let (mut total, mut buffer) = (0, vec![0; 1 << 16]);
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        total += len as u64;
    }
    total
}

fn connect(proxy: &Proxy) -> TcpStream {
    let Address::Tcp(address) = proxy.address() else {
        panic!("{proxy:?}");
    };
    TcpStream::connect(address).unwrap()
}

fn cut_after(bytes: u64) -> Fault {
    Fault {
        cut_after_bytes: Some(bytes),
        ..Fault::default()
    }
}

#[test]
fn a_cut_comes_after_just_so_many_bytes_of_the_client() {
    for bytes in [0, 1, 1000, 65_536, 65_537, 3_000_000] {
        let (to, server) = server(1);
        let faults = Faults {
            up: cut_after(bytes),
            ..Faults::default()
        };
        let proxy = Proxy::start(to, faults).unwrap();
        let mut client = connect(&proxy);
        // The client sees the cut also if it only writes.
        let write = (0..).find_map(|_| client.write_all(&[2; 10_007]).err());
        assert!(write.is_some());
        assert_eq!(server.join().unwrap(), [bytes]);
        let ended = proxy.next_end(PATIENCE).unwrap();
        assert!(ended.cut);
        assert_eq!(
            (ended.up_bytes, proxy.up_bytes(), proxy.connections()),
            (bytes, bytes, 1)
        );
    }
}

#[test]
fn a_cut_comes_after_just_so_many_bytes_of_the_server() {
    for bytes in [0, 1, 1000, 65_536, 65_537, 3_000_000] {
        let (to, server) = server(1);
        let faults = Faults {
            down: cut_after(bytes),
            ..Faults::default()
        };
        let proxy = Proxy::start(to, faults).unwrap();
        // The client has sent what the server may not have read by the time of the cut.
        let mut client = connect(&proxy);
        let _ = client.write_all(&[2; 100_000]);
        assert_eq!(count(&client), bytes);
        server.join().unwrap();
        assert_eq!(
            (proxy.next_end(PATIENCE).unwrap().down_bytes, proxy.down_bytes()),
            (bytes, bytes)
        );
    }
}

#[test]
fn connections_after_the_broken_ones_are_forwarded_as_they_are() {
    let (to, server) = server(2);
    let faults = Faults {
        up: cut_after(10),
        connections: Some(1),
        ..Faults::default()
    };
    let proxy = Proxy::start(to, faults).unwrap();
    let mut first = connect(&proxy);
    first.write_all(&[2; 20]).unwrap();
    count(&first);
    let mut second = connect(&proxy);
    second.write_all(&[2; 100_000]).unwrap();
    second.shutdown(Shutdown::Write).unwrap();
    assert_eq!(count(&second), MANY as u64);
    assert_eq!(server.join().unwrap(), [10, 100_000]);
    let mut ends = [(); 2].map(|()| proxy.next_end(PATIENCE).unwrap());
    ends.sort_by_key(|ended| ended.connection);
    let second = Ended {
        connection: 1,
        up_bytes: 100_000,
        down_bytes: MANY as u64,
        cut: false,
    };
    assert_eq!((ends[0].cut, ends[1]), (true, second));
}

#[test]
fn a_unix_socket_is_stalled_slowed_and_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || count(listener.accept().unwrap().0));
    let time = Duration::from_millis(300);
    let stall = Stall {
        after_bytes: 1000,
        time,
    };
    let faults = Faults {
        up: Fault {
            cut_after_bytes: Some(5000),
            stall: Some(stall),
            bytes_per_sec: Some(20_000),
        },
        ..Faults::default()
    };
    let proxy = Proxy::start(Address::Unix(path), faults).unwrap();
    let Address::Unix(path) = proxy.address().clone() else {
        panic!("{proxy:?}");
    };
    let start = Instant::now();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(&[2; 10_000]).unwrap();
    assert_eq!(count(&client), 0);
    // 5000 bytes at 20,000 a second; the cut does not wait for the last bytes' time.
    let least = time + Duration::from_millis(200);
    assert!(start.elapsed() >= least, "{:?}", start.elapsed());
    assert_eq!(server.join().unwrap(), 5000);
    drop(proxy);
    assert!(!path.exists());
}

/// Stops at the first byte for longer than any test runs.
fn stalled() -> Fault {
    let stall = Stall {
        after_bytes: 0,
        time: Duration::from_secs(1000),
    };
    Fault {
        stall: Some(stall),
        ..Fault::default()
    }
}

#[test]
fn a_proxy_that_is_dropped_ends_its_connections_also_in_a_stall() {
    let (to, server) = server(1);
    let faults = Faults {
        up: stalled(),
        ..Faults::default()
    };
    let proxy = Proxy::start(to, faults).unwrap();
    let mut client = connect(&proxy);
    client.read_exact(&mut [0]).unwrap();
    drop(proxy);
    assert!(count(&client) < MANY as u64);
    assert_eq!(server.join().unwrap(), [0]);
}

#[test]
fn a_cut_ends_also_a_direction_that_stalls() {
    let (to, server) = server(1);
    let faults = Faults {
        up: stalled(),
        down: cut_after(5),
        ..Faults::default()
    };
    let proxy = Proxy::start(to, faults).unwrap();
    assert_eq!(count(connect(&proxy)), 5);
    assert!(proxy.next_end(PATIENCE).unwrap().cut);
    server.join().unwrap();
}

#[test]
fn the_program_forwards_too() {
    let (to, server) = server(1);
    let mut program = Command::new(env!("CARGO_BIN_EXE_vbk-wire"))
        .args([
            "proxy",
            "--listen",
            "127.0.0.1:0",
            "--cut-down",
            "1234",
            "--to",
            &to.to_string(),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    let client = TcpStream::connect(line.strip_prefix("listening on ").unwrap()).unwrap();
    assert_eq!(count(&client), 1234);
    let line = lines.next().unwrap().unwrap();
    program.kill().unwrap();
    program.wait().unwrap();
    assert_eq!(line, "connection 0 cut: 0 bytes up, 1234 bytes down");
    server.join().unwrap();
}
