//! Measures backups, restores, reads and verification through a store behind a long way: how much plain data a second, and how
//! many calls were waited for.
//!
//! Usage: far [MIB] [DELAY_MS]      (default: 512 MiB, 100 ms)

#![allow(clippy::print_stdout, reason = "this is a command")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use vbk::backup::{BackupPlan, DiskPlan, backup};
use vbk::limit::Pace;
use vbk::restore::{RestoreOptions, restore};
use vbk_repo::backup::{Consistency, Entry};
use vbk_repo::block::BlockSize;
use vbk_repo::codec::Compression;
use vbk_repo::name::{DiskName, GuestName};
use vbk_repo::reader::{ImageReader, ReadResources, Stream};
use vbk_repo::repository::Repository;
use vbk_repo::repository::home::StoreHome;
use vbk_repo::store::delayed::Delayed;
use vbk_repo::store::memory::MemoryStore;
use vbk_repo::verify::{Scope, verify};

type Failure = Box<dyn std::error::Error>;

static STOP: AtomicBool = AtomicBool::new(false);

struct Bench {
    store: Arc<Delayed<MemoryStore>>,
    repository: Repository,
    threads: usize,
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let mib: u64 = arguments.next().map_or(Ok(512), |mib| mib.parse())?;
    let delay: u64 = arguments.next().map_or(Ok(100), |delay| delay.parse())?;
    let memory = Arc::new(MemoryStore::new(BlockSize::DEFAULT));
    let store = Arc::new(Delayed::new(memory, Duration::from_millis(delay))?);
    let bench = Bench {
        repository: Repository::at(Arc::new(StoreHome::new(Arc::clone(&store))?)),
        store,
        threads: std::thread::available_parallelism()?.get(),
    };
    let directory = tempfile::tempdir()?;
    let (disk, target) = (directory.path().join("disk.img"), directory.path().join("restored.img"));
    write_disk(&disk, mib, 0)?;
    println!("{mib} MiB of data, {delay} ms a call");
    let bytes = mib << 20;
    bench.measure("first backup", bytes, || bench.backup(&disk))?;
    // A thirtieth of the disk is new.
    write_disk(&disk, mib / 30, 1)?;
    bench.measure("next day", bytes, || bench.backup(&disk))?;
    let entry = bench.measure("unchanged", bytes, || bench.backup(&disk))?;
    bench.measure("restore", bytes, || bench.restore(&entry, &target))?;
    if fs::read(&disk)? != fs::read(&target)? {
        return Err("the restored disk differs".into());
    }
    bench.measure("mount, in order", bytes, || bench.read(&entry))?;
    bench.measure("verify", bytes, || bench.verify(&entry))?;
    Ok(())
}

/// Half of each MiB is noise, and half of it repeats, so that it compresses about as disks do.
fn write_disk(path: &Path, mib: u64, seed: u64) -> Result<(), Failure> {
    let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for number in 0..mib {
        let mut piece = vec![0_u8; 1 << 20];
        for word in piece[..1 << 19].chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        for (place, byte) in piece[1 << 19..].iter_mut().enumerate() {
            *byte = (place as u64 / 64 + number + seed) as u8;
        }
        file.write_all(&piece)?;
    }
    Ok(())
}

impl Bench {
    fn measure<T>(&self, name: &str, bytes: u64, run: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let before = self.store.calls().waits;
        let clock = Instant::now();
        let result = run()?;
        let seconds = clock.elapsed().as_secs_f64();
        let rate = bytes as f64 / seconds / 1e6;
        let waits = self.store.calls().waits - before;
        println!("{name:16} {seconds:6.2} s  {rate:6.0} MB/s  {waits:4} calls waited for");
        Ok(result)
    }

    fn backup(&self, disk: &Path) -> Result<Entry, Failure> {
        let writer = self.repository.writer("bench", &mut |_| false)?;
        let plan = BackupPlan {
            guest: GuestName::new("web1")?,
            disks: vec![DiskPlan {
                name: DiskName::new("vda")?,
                source: disk.to_owned(),
                read: disk.to_owned(),
                snapshot: None,
                pace: Pace::default(),
                hint: None,
            }],
            files: Vec::new(),
            consistency: Consistency::Live,
            compression: Compression::default(),
            host: String::new(),
            version: String::new(),
            started: jiff::Timestamp::now(),
            threads: self.threads,
            buffers: Default::default(),
        };
        let made = backup(&writer, &plan, &|| Ok(BTreeMap::new()), &[&STOP], &())?;
        Ok(made.entry)
    }

    fn open(&self, entry: &Entry) -> Result<ImageReader, Failure> {
        let resources = ReadResources::new(self.threads);
        Ok(ImageReader::open(
            self.repository.view()?.store(),
            resources,
            &entry.backup.images[0],
        )?)
    }

    fn restore(&self, entry: &Entry, target: &Path) -> Result<(), Failure> {
        let options = RestoreOptions {
            label: entry.backup.spec(),
            format: Default::default(),
            changes: None,
            force: false,
            overwrite: false,
            fill: Default::default(),
            damaged: Default::default(),
            threads: self.threads,
        };
        restore(
            &self.open(entry)?,
            entry.backup.images[0].data_bytes,
            target,
            &options,
            &STOP,
            &(),
        )?;
        Ok(())
    }

    /// Reads as the kernel reads a mounted image: 128 KiB at a time.
    fn read(&self, entry: &Entry) -> Result<(), Failure> {
        let stream = Stream::new(Arc::new(self.open(entry)?));
        let (mut offset, mut bytes) = (0, vec![0; 128 << 10]);
        loop {
            match stream.read_at(offset, &mut bytes)? {
                0 => return Ok(()),
                read => offset += read as u64,
            }
        }
    }

    fn verify(&self, entry: &Entry) -> Result<(), Failure> {
        let view = self.repository.view()?;
        let entries = std::slice::from_ref(entry);
        let report = verify(&*view.store(), entries, &Scope::All, self.threads, &|_| {}, &STOP)?;
        match report.damage.is_empty() {
            true => Ok(()),
            false => Err("damage where there is none".into()),
        }
    }
}
