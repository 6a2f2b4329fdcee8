//! Measures TCP over the wire, with stock settings of Linux: `throughput [ROUND-TRIP [SECONDS [CONGESTION [RATE]]]]`,
//! e.g. `throughput 100ms 5 bbr 1000`, with 1, 4 and 8 connections.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vbk_wire::settings::{parse_rate, parse_time};
use vbk_wire::{Direction, SERVER, Settings, Side, Wire};

const PORT: u16 = 5000;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: &str| arguments.next().unwrap_or(default.to_owned());
    let settings = Settings {
        delay: parse_time(&next("0")).expect("the first argument is a time, e.g. 100ms"),
        ..Settings::default()
    };
    let seconds: f64 = next("5").parse().expect("the second argument is a number of seconds");
    let settings = Settings {
        congestion: next("cubic"),
        rate_mbit_per_sec: Some(next(""))
            .filter(|rate| !rate.is_empty())
            .map(|rate| parse_rate(&rate).expect("a rate")),
        ..settings
    };
    for connections in [1, 4, 8] {
        measure(&settings, connections, Duration::from_secs_f64(seconds));
    }
}

/// Sends for a time over some connections and prints what arrived.
fn measure(settings: &Settings, connections: usize, time: Duration) {
    let wire = Wire::new(settings).expect("root and /dev/net/tun");
    let listener = wire.within(Side::Server, || TcpListener::bind((SERVER, PORT)));
    let listener = listener.and_then(|listener| listener).expect("the server listens");
    let arrived = AtomicU64::new(0);
    thread::scope(|scope| {
        let arrived = &arrived;
        for _ in 0..connections {
            let client = wire.within(Side::Client, || TcpStream::connect((SERVER, PORT)));
            let mut client = client.and_then(|client| client).expect("the client connects");
            let (mut server, _) = listener.accept().expect("the server accepts");
            scope.spawn(move || {
                let mut buffer = vec![0; 1 << 18];
                while let Ok(len @ 1..) = server.read(&mut buffer) {
                    arrived.fetch_add(len as u64, Ordering::Relaxed);
                }
            });
            scope.spawn(move || {
                let buffer = vec![7; 1 << 18];
                let start = Instant::now();
                while start.elapsed() < time && client.write_all(&buffer).is_ok() {}
            });
        }
        // The start of TCP, in which it looks for the rate, is not what a long transfer sees.
        thread::sleep(time / 3);
        let (before, start) = (arrived.load(Ordering::Relaxed), Instant::now());
        thread::sleep(time / 2);
        let bytes = arrived.load(Ordering::Relaxed) - before;
        let rate = bytes as f64 / 1e6 / start.elapsed().as_secs_f64();
        let counts = wire.counts(Direction::Up);
        println!(
            "{connections} connections, {} ms, {}: {rate:.0} MB/s; {} packets, {} lost, {} overflowed",
            settings.delay.as_millis(),
            settings.congestion,
            counts.packets,
            counts.lost,
            counts.overflowed
        );
    });
}
