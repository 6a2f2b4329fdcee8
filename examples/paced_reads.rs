//! Reads a block device as a backup does, limited by the bucket, by the kernel or by both, and prints how well the limit
//! was kept. scripts/bench-limit runs it.

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "this is a command")]

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vbk::host::device::DeviceNumber;
use vbk::limit::bucket::Bucket;
use vbk::limit::kernel::KernelLimit;
use vbk::limit::parse_rate;
use vbk::text;

const BLOCK_BYTES: usize = 1 << 20;
const USAGE: &str = "usage: paced_reads DEVICE bucket|kernel|both RATE SECONDS THREADS";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [device, way, rate, seconds, threads] = args.as_slice() else {
        return Err(USAGE.into());
    };
    let rate = parse_rate(rate)?;
    let time = Duration::from_secs(seconds.parse()?);
    let number = DeviceNumber::of_block_device(Path::new(device)).ok_or("not a block device")?;
    let kernel = match way.as_str() {
        "bucket" => None,
        "kernel" | "both" => Some(KernelLimit::begin(number, rate)?),
        _ => return Err(USAGE.into()),
    };
    let bucket = Bucket::new((way != "kernel").then_some(rate));
    let file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_DIRECT)
        .open(device)?;
    let blocks = number.attribute("size").ok_or("no size")?.parse::<u64>()? * 512 / BLOCK_BYTES as u64;

    let (next, clock, reads) = (AtomicU64::new(0), Instant::now(), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads.parse().unwrap_or(4) {
            scope.spawn(|| {
                // O_DIRECT wants an aligned address.
                let mut memory = vec![0; BLOCK_BYTES + 4096];
                let start = memory.as_ptr().align_offset(4096);
                let buffer = &mut memory[start..start + BLOCK_BYTES];
                while clock.elapsed() < time {
                    let at = next.fetch_add(1, Ordering::Relaxed) % blocks * BLOCK_BYTES as u64;
                    let mut done = 0;
                    while done < BLOCK_BYTES && clock.elapsed() < time {
                        let piece = bucket.piece_bytes().min(BLOCK_BYTES - done);
                        bucket.take(piece as u64, &|| false);
                        file.read_exact_at(&mut buffer[done..done + piece], at + done as u64)
                            .expect("reads");
                        reads
                            .lock()
                            .expect("no thread panics")
                            .push((clock.elapsed(), piece as u64));
                        done += piece;
                    }
                }
            });
        }
    });
    drop(kernel);

    let mut reads = reads.into_inner()?;
    reads.sort();
    let total: u64 = reads.iter().filter(|(at, _)| *at <= time).map(|(_, bytes)| bytes).sum();
    let per_sec = total as f64 / time.as_secs_f64();
    let percent = |rate_measured: f64| rate_measured * 100.0 / rate as f64;
    println!(
        "{way:7} {:>10}  {threads:>2} threads  measured {:>10}  {:6.2} %  worst second {:6.2} %  worst 100 ms {:6.2} %",
        text::rate(rate),
        text::rate(per_sec as u64),
        percent(per_sec),
        percent(worst(&reads, Duration::from_secs(1)) as f64),
        percent(worst(&reads, Duration::from_millis(100)) as f64 * 10.0),
    );
    Ok(())
}

/// The most bytes that came in any time of this length.
fn worst(reads: &[(Duration, u64)], window: Duration) -> u64 {
    let (mut worst, mut sum, mut first) = (0, 0, 0);
    for (at, bytes) in reads {
        sum += bytes;
        while reads[first].0 + window <= *at {
            sum -= reads[first].1;
            first += 1;
        }
        worst = worst.max(sum);
    }
    worst
}
