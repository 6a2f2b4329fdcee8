//! The wire between two real network namespaces. Needs root and `/dev/net/tun`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use vbk_wire::link::Link;
use vbk_wire::packet::{Frame, VNET_BYTES};
use vbk_wire::{CLIENT, Direction, SERVER, Settings, Side, Wire, control};

const PORT: u16 = 5000;
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "never came: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn wire(settings: Settings) -> Wire {
    Wire::new(&settings).expect("root and /dev/net/tun")
}

fn udp(wire: &Wire, side: Side, address: Ipv4Addr) -> UdpSocket {
    let socket = wire.within(side, || UdpSocket::bind((address, PORT))).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn tcp(wire: &Wire) -> (TcpStream, TcpStream) {
    let listener = wire.within(Side::Server, || TcpListener::bind((SERVER, PORT))).unwrap();
    let listener = listener.unwrap();
    let client = wire
        .within(Side::Client, || TcpStream::connect((SERVER, PORT)))
        .unwrap();
    let (client, (server, _)) = (client.unwrap(), listener.accept().unwrap());
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    (client, server)
}

/// Round trips of datagrams that the server sends back, from the shortest to the longest.
fn round_trips(client: &UdpSocket, server: &UdpSocket) -> Vec<Duration> {
    let mut buffer = [0; 100];
    let mut times: Vec<Duration> = (0..7)
        .map(|number| {
            let start = Instant::now();
            client.send_to(&[number], (SERVER, PORT)).unwrap();
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..len], from).unwrap();
            assert_eq!(client.recv_from(&mut buffer).unwrap().0, 1);
            assert_eq!(buffer[0], number);
            start.elapsed()
        })
        .collect();
    times.sort();
    times
}

#[test]
fn a_round_trip_takes_the_delay_and_hardly_more() {
    let delay = Duration::from_millis(100);
    let wire = wire(Settings {
        delay,
        ..Settings::default()
    });
    let (client, server) = (udp(&wire, Side::Client, CLIENT), udp(&wire, Side::Server, SERVER));
    let long = round_trips(&client, &server);
    assert!(long[0] >= delay, "{long:?}");
    control::command(&wire, "delay 0").unwrap();
    let short = round_trips(&client, &server);
    assert!(short[3] < long[3] / 2, "{short:?} {long:?}");
}

#[test]
fn a_cut_lets_nothing_pass_and_tcp_goes_on_when_it_is_mended() {
    let wire = wire(Settings::default());
    let (mut client, mut server) = tcp(&wire);
    let mut buffer = [0; 5];
    client.write_all(b"first").unwrap();
    server.read_exact(&mut buffer).unwrap();

    control::command(&wire, "cut").unwrap();
    let before = [Direction::Up, Direction::Down].map(|direction| wire.counts(direction));
    client.write_all(b"later").unwrap();
    wait_until("TCP tries twice", || {
        wire.counts(Direction::Up).cut >= before[0].cut + 2
    });
    let after = [Direction::Up, Direction::Down].map(|direction| wire.counts(direction));
    for (before, after) in before.iter().zip(after) {
        assert_eq!(before.packets, after.packets);
    }
    server.set_nonblocking(true).unwrap();
    assert_eq!(server.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    server.set_nonblocking(false).unwrap();

    control::command(&wire, "mend").unwrap();
    server.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"later");
}

#[test]
fn a_half_open_wire_carries_one_direction() {
    let wire = wire(Settings::default());
    let (client, server) = (udp(&wire, Side::Client, CLIENT), udp(&wire, Side::Server, SERVER));
    let mut buffer = [0; 5];
    control::command(&wire, "half-open").unwrap();
    client.send_to(b"there", (SERVER, PORT)).unwrap();
    assert_eq!(server.recv(&mut buffer).unwrap(), 5);
    server.send_to(b"back?", (CLIENT, PORT)).unwrap();
    wait_until("the answer is lost", || wire.counts(Direction::Down).cut == 1);
    control::command(&wire, "mend").unwrap();
    control::command(&wire, "half-open up").unwrap();
    server.send_to(b"back!", (CLIENT, PORT)).unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), 5);
    assert_eq!(&buffer, b"back!");
    client.send_to(b"there", (SERVER, PORT)).unwrap();
    wait_until("the question is lost", || wire.counts(Direction::Up).cut == 1);
    let stats = control::command(&wire, "stats").unwrap();
    assert_eq!(
        stats,
        "up packets=1 bytes=33 lost=0 overflowed=0 cut=1\ndown packets=1 bytes=33 lost=0 overflowed=0 cut=1"
    );
}

#[test]
fn loss_by_chance_is_that_of_the_seed() {
    let settings = Settings {
        loss: 0.05,
        seed: 7,
        ..Settings::default()
    };
    let mut expected = Link::new(&settings, settings.seed);
    for _ in 0..3000 {
        expected.offer(Instant::now(), Frame::new(vec![0; VNET_BYTES + 28], VNET_BYTES + 28));
    }
    let expected = expected.counts().lost;
    assert!((100..200).contains(&expected), "{expected}");

    let wire = wire(settings);
    let (client, _server) = (udp(&wire, Side::Client, CLIENT), udp(&wire, Side::Server, SERVER));
    for _ in 0..3000 {
        client.send_to(&[], (SERVER, PORT)).unwrap();
    }
    wait_until("all packets are counted", || {
        let counts = wire.counts(Direction::Up);
        counts.packets + counts.lost == 3000
    });
    assert_eq!(wire.counts(Direction::Up).lost, expected);
}

#[test]
fn tcp_brings_every_byte_over_a_slow_and_lossy_wire() {
    let wire = wire(Settings {
        delay: Duration::from_millis(4),
        rate_mbit_per_sec: Some(400.0),
        loss: 0.01,
        queue_bytes: Some(64 << 10),
        ..Settings::default()
    });
    let (mut client, mut server) = tcp(&wire);
    let sent: Vec<u8> = (0..3 << 20)
        .map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let received = thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&sent).unwrap();
            drop(client);
        });
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        received
    });
    assert!(received == sent);
    let counts = wire.counts(Direction::Up);
    assert!(counts.lost > 0 && counts.bytes > 3 << 20, "{counts:?}");
}

/// The program, with a command that shows the namespaces of both sides and leaves a process in each.
fn run(last: &str) -> (Child, BufReader<ChildStdout>, [String; 2]) {
    let script = format!(
        "setsid -f sleep 1000; $VBK_WIRE server -- setsid -f sleep 1000
        readlink /proc/self/ns/net; $VBK_WIRE server -- readlink /proc/self/ns/net
        {last}"
    );
    let mut child = Command::new(env!("CARGO_BIN_EXE_vbk-wire"))
        .args(["--delay", "2ms", "--", "sh", "-c", &script])
        .env("VBK_WIRE", env!("CARGO_BIN_EXE_vbk-wire"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let namespaces = [(); 2].map(|()| {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.starts_with("net:["), "{line}");
        line.trim().to_owned()
    });
    (child, lines, namespaces)
}

/// True if a process of this host is in the namespace, or has it open.
fn is_used(namespace: &str) -> bool {
    let links = |folder: String| fs::read_dir(folder).into_iter().flatten().flatten();
    links("/proc".to_owned()).any(|process| {
        let process = process.path();
        let shows = |path: std::path::PathBuf| fs::read_link(path).is_ok_and(|link| link.as_os_str() == namespace);
        shows(process.join("ns/net")) || links(format!("{}/fd", process.display())).any(|file| shows(file.path()))
    })
}

fn host_has_no_device() {
    assert!(!fs::read_to_string("/proc/net/dev").unwrap().contains("wire0:"));
}

#[test]
fn nothing_is_left_when_the_command_ends() {
    let (mut child, mut lines, namespaces) = run("echo ready; read answer; exit 7");
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let [client, server] = &namespaces;
    assert!(client != server && is_used(client) && is_used(server));
    host_has_no_device();
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(7));
    wait_until("both namespaces are gone", || !is_used(client) && !is_used(server));
    host_has_no_device();
}

#[test]
fn nothing_is_left_when_the_program_is_killed() {
    let (mut child, _lines, namespaces) = run("exec sleep 1000");
    child.kill().unwrap();
    child.wait().unwrap();
    for namespace in namespaces {
        wait_until("the namespace is gone", || !is_used(&namespace));
    }
    host_has_no_device();
}

#[test]
fn the_command_controls_its_wire() {
    let script = "$VBK_WIRE control cut 30s && $VBK_WIRE control mend && $VBK_WIRE control loss 0.1% &&
        $VBK_WIRE control delay 1ms && $VBK_WIRE control stats | grep -q '^down packets=0 ' &&
        ! $VBK_WIRE control tear && echo $VBK_WIRE_SERVER";
    let output = Command::new(env!("CARGO_BIN_EXE_vbk-wire"))
        .args(["--", "sh", "-c", script])
        .env("VBK_WIRE", env!("CARGO_BIN_EXE_vbk-wire"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("\"tear\" is not one of:\ncut [TIME]"),
        "{text}"
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\nok\nok\nok\n10.77.0.2\n");
}

#[test]
fn an_unknown_congestion_control_names_the_known_ones() {
    let error = Wire::new(&Settings {
        congestion: "hurry".to_owned(),
        ..Settings::default()
    });
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("\"hurry\" is not available") && error.contains("reno"),
        "{error}"
    );
}
