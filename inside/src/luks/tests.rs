//! Volumes made by cryptsetup (package cryptsetup-bin) and qemu-img (package qemu-utils), both in user space: headers,
//! key slots and encrypted content are theirs.

mod hostile;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::volumes::Secrets;

const PASSPHRASE: &[u8] = b"correct horse";
const OTHER: &[u8] = b"battery staple\n";
/// Derivation that takes no time.
const FAST: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
const ARGON2: [&str; 6] = [
    "--pbkdf-memory",
    "1024",
    "--pbkdf-force-iterations",
    "4",
    "--pbkdf-parallel",
    "2",
];

/// A device in memory that counts its reads, and may be longer than its bytes: zeros follow.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    size_bytes: u64,
    reads: AtomicUsize,
}

impl Memory {
    fn shared(bytes: Vec<u8>) -> Arc<Self> {
        let size_bytes = bytes.len() as u64;
        Self::with_size(bytes, size_bytes)
    }

    fn with_size(bytes: Vec<u8>, size_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            size_bytes,
            reads: AtomicUsize::new(0),
        })
    }
}

impl Device for Memory {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.reads.fetch_add(1, Relaxed);
        if offset_bytes.saturating_add(buf.len() as u64) > self.size_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let bytes = self.bytes.lock();
        let from = bytes.get(offset_bytes as usize..).unwrap_or_default();
        let there = from.len().min(buf.len());
        buf[..there].copy_from_slice(&from[..there]);
        buf[there..].fill(0);
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn write_at(&self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        let at = offset_bytes as usize;
        self.bytes.lock()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// A directory with the passphrases and a volume.
struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("key"), PASSPHRASE).expect("written");
        fs::write(dir.path().join("other"), OTHER).expect("written");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, tool: &str, args: &[&str]) -> Output {
        let output = Command::new(tool)
            .args(args)
            .current_dir(self.dir.path())
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output()
            .unwrap_or_else(|e| panic!("this test needs {tool}: {e}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool} {args:?} failed: {errors}");
        output
    }

    fn cryptsetup(&self, args: &[&[&str]]) -> Output {
        let args = [&["-q"], args.concat().as_slice()].concat();
        self.run("cryptsetup", &args)
    }

    /// Makes the volume `img` with a header and nothing else.
    fn format(&self, size_bytes: u64, args: &[&[&str]]) {
        fs::write(self.path("img"), b"").expect("written");
        let file = fs::File::options().write(true).open(self.path("img")).expect("opens");
        file.set_len(size_bytes).expect("a sparse file");
        self.cryptsetup(&[&["luksFormat"], args.concat().as_slice(), &["img", "key"]]);
    }

    /// Makes the volume `img` of LUKS2 with encrypted content, which is returned.
    fn encrypt(&self, args: &[&[&str]]) -> Vec<u8> {
        let plain = content(256 << 10);
        let mut image = plain.clone();
        image.resize((256 << 10) + (4 << 20), 0);
        fs::write(self.path("img"), image).expect("written");
        let fixed: &[&str] = &["--type", "luks2", "--reduce-device-size", "4M", "--key-file", "key"];
        self.cryptsetup(&[&["reencrypt", "--encrypt"], fixed, args.concat().as_slice(), &["img"]]);
        plain
    }

    /// Makes the volume `img` of LUKS1 with encrypted content, which is returned.
    fn qemu(&self, options: &str) -> Vec<u8> {
        let plain = content(256 << 10);
        fs::write(self.path("plain"), &plain).expect("written");
        let options = format!("key-secret=s,iter-time=10,{options}");
        let secret = "secret,id=s,file=key";
        self.run(
            "qemu-img",
            &[
                "convert", "--object", secret, "-f", "raw", "-O", "luks", "-o", &options, "plain", "img",
            ],
        );
        plain
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path("img")).expect("the image")
    }

    fn device(&self) -> SharedDevice {
        Memory::shared(self.bytes())
    }

    /// Returns the volume's key as cryptsetup prints it.
    fn volume_key(&self) -> Vec<u8> {
        let output = self.cryptsetup(&[&["luksDump", "--dump-volume-key", "--key-file", "key", "img"]]);
        let output = String::from_utf8(output.stdout).expect("text");
        let (_, dump) = output.split_once("MK dump:").expect("a key");
        dump.split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).expect("a byte"))
            .collect()
    }
}

/// Bytes without a period that a sector or a block has.
fn content(length: usize) -> Vec<u8> {
    (0..length as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

fn opened(device: SharedDevice, passphrase: &[u8]) -> SharedDevice {
    let header = header(&device).expect("a header");
    header
        .unlock(device, passphrase)
        .expect("no error")
        .expect("the passphrase opens it")
}

fn all(device: &dyn Device) -> Vec<u8> {
    let mut bytes = vec![0; device.size_bytes() as usize];
    device.read_at(0, &mut bytes).expect("readable");
    bytes
}

/// Reads ranges of all kinds and compares them.
fn assert_reads(device: &dyn Device, plain: &[u8]) {
    assert!(all(device).starts_with(plain));
    for (offset, length) in [
        (0, 1),
        (511, 2),
        (4095, 1),
        (4096, 4096),
        (1000, 9000),
        (12_288, 777),
        (262_143, 1),
        (5, 0),
    ] {
        let mut buf = vec![0; length];
        device.read_at(offset as u64, &mut buf).expect("readable");
        assert_eq!(buf, plain[offset..offset + length], "{length} bytes at {offset}");
    }
    for (offset, length) in [(device.size_bytes(), 1), (u64::MAX, 1), (device.size_bytes() - 1, 2)] {
        let error = device.read_at(offset, &mut vec![0; length]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

fn message<T>(result: Result<T>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn luks2_volumes_are_read() {
    let argon2i = [&["--pbkdf", "argon2i"], ARGON2.as_slice()].concat();
    let argon2id = [&["--pbkdf", "argon2id"], ARGON2.as_slice()].concat();
    let cases: [(&str, &str, &str, &[&str]); 5] = [
        ("aes-xts-plain64", "512", "512", &argon2id),
        ("aes-xts-plain64", "256", "4096", &argon2i),
        ("aes-cbc-essiv:sha256", "256", "1024", &FAST),
        (
            "aes-xts-plain64",
            "512",
            "4096",
            &[&FAST[..], &["--hash", "sha512"]].concat(),
        ),
        ("aes-cbc-plain64", "128", "2048", &FAST),
    ];
    for (cipher, key_bits, sector_bytes, kdf) in cases {
        let lab = Lab::new();
        let fixed = [
            "--cipher",
            cipher,
            "--key-size",
            key_bits,
            "--sector-size",
            sector_bytes,
        ];
        let plain = lab.encrypt(&[&fixed, kdf, &["--label", "vault"]]);
        let device = lab.device();
        let header = header(&device).expect("a header");
        assert_eq!(header.describe(), format!("LUKS2 {cipher}"));
        assert_eq!((header.version(), header.label()), (2, Some("vault")));
        assert!(header.remarks().is_empty());
        let uuid = lab.cryptsetup(&[&["luksUUID", "img"]]).stdout;
        assert_eq!(header.uuid(), String::from_utf8_lossy(&uuid).trim());
        assert!(
            header
                .unlock(Arc::clone(&device), b"wrong")
                .expect("no error")
                .is_none()
        );
        assert_reads(&*opened(device, PASSPHRASE), &plain);
    }
}

#[test]
fn luks1_volumes_are_read_and_written() {
    let cases = [
        (
            "aes-cbc-essiv:sha256",
            "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha1",
        ),
        (
            "serpent-xts-plain64",
            "cipher-alg=serpent-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha512",
        ),
        (
            "twofish-cbc-plain",
            "cipher-alg=twofish-128,cipher-mode=cbc,ivgen-alg=plain,hash-alg=ripemd160",
        ),
    ];
    std::thread::scope(|scope| {
        for (cipher, options) in cases {
            scope.spawn(move || {
                let lab = Lab::new();
                let mut plain = lab.qemu(options);
                let below = Memory::shared(lab.bytes());
                let header = header(&(below.clone() as SharedDevice)).expect("a header");
                assert_eq!(header.describe(), format!("LUKS1 {cipher}"));
                assert_eq!((header.version(), header.label()), (1, None));
                let device = opened(below.clone(), PASSPHRASE);
                assert_reads(&*device, &plain);
                let patch = content(3000);
                device.write_at(777, &patch).expect("written");
                plain[777..3777].copy_from_slice(&patch);
                fs::write(lab.path("img"), below.bytes.lock().as_slice()).expect("written");
                let image = "driver=luks,file.filename=img,key-secret=s";
                let secret = "secret,id=s,file=key";
                lab.run(
                    "qemu-img",
                    &[
                        "convert",
                        "--object",
                        secret,
                        "--image-opts",
                        image,
                        "-O",
                        "raw",
                        "back",
                    ],
                );
                assert!(fs::read(lab.path("back")).expect("read") == plain, "{cipher}");
            });
        }
    });
}

#[test]
fn the_key_is_that_which_cryptsetup_prints() {
    let cases: [&[&str]; 4] = [
        // 4000 stripes of 24 bytes are no whole number of sectors.
        &[
            "--type",
            "luks1",
            "--cipher",
            "aes-cbc-plain64",
            "--key-size",
            "192",
            "--hash",
            "sha1",
        ],
        &[
            "--type",
            "luks1",
            "--cipher",
            "aes-xts-plain64",
            "--key-size",
            "512",
            "--hash",
            "sha512",
        ],
        &[
            "--type",
            "luks2",
            "--cipher",
            "aes-xts-plain64",
            "--key-size",
            "256",
            "--hash",
            "ripemd160",
        ],
        &[
            "--type",
            "luks1",
            "--cipher",
            "aes-xts-essiv:sha256",
            "--key-size",
            "256",
            "--hash",
            "whirlpool",
        ],
    ];
    for args in cases {
        let lab = Lab::new();
        let pbkdf2 = if args.contains(&"luks2") { &FAST[..] } else { &FAST[2..] };
        lab.format(40 << 20, &[args, pbkdf2]);
        let device = lab.device();
        let key = header(&device)
            .expect("a header")
            .key(&*device, PASSPHRASE, &mut Budget::new());
        assert_eq!(*key.expect("no error").expect("a key"), lab.volume_key(), "{args:?}");
    }
}

#[test]
fn each_key_slot_opens_until_it_is_removed() {
    for version in ["luks1", "luks2"] {
        let lab = Lab::new();
        let pbkdf2 = if version == "luks2" { &FAST[..] } else { &FAST[2..] };
        lab.format(40 << 20, &[&["--type", version], pbkdf2]);
        lab.cryptsetup(&[&["luksAddKey", "--key-file", "key"], pbkdf2, &["img", "other"]]);
        let same = |passphrases: [&[u8]; 4]| {
            let device = lab.device();
            let header = header(&device).expect("a header");
            passphrases.map(|passphrase| {
                header
                    .key(&*device, passphrase, &mut Budget::new())
                    .expect("no error")
                    .is_some()
            })
        };
        // A line feed at the end of a passphrase is a part of it.
        let passphrases = [PASSPHRASE, OTHER, OTHER.trim_ascii(), b""];
        assert_eq!(same(passphrases), [true, true, false, false]);
        if version == "luks2" {
            lab.cryptsetup(&[&["config", "--priority", "ignore", "--key-slot", "0", "img"]]);
            lab.cryptsetup(&[&["config", "--priority", "prefer", "--key-slot", "1", "img"]]);
            assert_eq!(same(passphrases), [true, true, false, false]);
        }
        lab.cryptsetup(&[&["luksKillSlot", "--key-file", "other", "img", "0"]]);
        assert_eq!(same(passphrases), [false, true, false, false]);
        lab.cryptsetup(&[&["luksErase", "img"]]);
        let device = lab.device();
        let unlocked = header(&device).expect("a header").unlock(device, PASSPHRASE);
        assert_eq!(message(unlocked), "not supported: LUKS volume without a key slot");
    }
}

#[test]
fn a_key_slot_of_something_else_does_not_open() {
    let lab = Lab::new();
    lab.encrypt(&[&FAST]);
    let unbound = [
        "luksAddKey",
        "--unbound",
        "--key-size",
        "256",
        "--key-slot",
        "5",
        "--key-file",
        "other",
    ];
    lab.cryptsetup(&[&unbound, &FAST, &["img", "other"]]);
    let device = lab.device();
    let header = header(&device).expect("a header");
    assert!(header.unlock(device, OTHER).expect("no error").is_none());
}

#[test]
fn a_luks1_header_that_became_luks2_opens() {
    let lab = Lab::new();
    lab.format(8 << 20, &[&["--type", "luks1", "--hash", "sha1"], &FAST[2..]]);
    let key = lab.volume_key();
    lab.cryptsetup(&[&["convert", "--type", "luks2", "img"]]);
    let device = lab.device();
    let header = header(&device).expect("a header");
    assert_eq!(header.version(), 2);
    assert_eq!(
        *header
            .key(&*device, PASSPHRASE, &mut Budget::new())
            .expect("no error")
            .expect("a key"),
        key
    );
}

#[test]
fn a_volume_amid_reencryption_is_refused() {
    let lab = Lab::new();
    lab.encrypt(&[&FAST, &["--init-only"]]);
    let device = lab.device();
    let header = header(&device).expect("a header");
    assert_eq!(header.describe(), "LUKS2");
    let refused = message(header.unlock(device, PASSPHRASE));
    assert_eq!(refused, "not supported: LUKS volume whose reencryption is not finished");
}

#[test]
fn a_large_read_is_one_read_below_and_nothing_is_a_hole() {
    let lab = Lab::new();
    lab.encrypt(&[&FAST, &["--sector-size", "4096"]]);
    let below = Memory::shared(lab.bytes());
    let device = opened(below.clone(), PASSPHRASE);
    let before = below.reads.load(Relaxed);
    device.read_at(0, &mut vec![0; 200 << 10]).expect("readable");
    device.read_at(100, &mut vec![0; 200 << 10]).expect("readable");
    assert_eq!(below.reads.load(Relaxed) - before, 2);
    assert_eq!(device.next_data(5).expect("known"), Some(5));
    assert_eq!(device.next_hole(5).expect("known"), device.size_bytes());
}

#[test]
fn writes_of_parts_of_a_sector_do_not_undo_each_other() {
    let lab = Lab::new();
    let plain = lab.encrypt(&[&FAST, &["--sector-size", "4096"]]);
    let device = opened(lab.device(), PASSPHRASE);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let device = &device;
            scope.spawn(move || {
                // Each thread writes every fourth run of 100 bytes, across the edges of sectors.
                for run in (u64::from(thread)..400).step_by(4) {
                    device.write_at(run * 100, &[thread; 100]).expect("written");
                }
            });
        }
    });
    let bytes = all(&*device);
    for run in 0..400 {
        assert!(
            bytes[run * 100..][..100]
                .iter()
                .all(|byte| usize::from(*byte) == run % 4),
            "run {run}"
        );
    }
    assert!(bytes[40_000..].starts_with(&plain[40_000..]));
}

#[test]
fn random_writes_are_those_of_plain_memory() {
    for cipher in ["aes-xts-plain64", "aes-cbc-essiv:sha256"] {
        let lab = Lab::new();
        lab.encrypt(&[
            &FAST,
            &["--sector-size", "1024", "--cipher", cipher, "--key-size", "256"],
        ]);
        let device = opened(lab.device(), PASSPHRASE);
        let model = Mutex::new(all(&*device));
        let size = model.lock().len();
        proptest!(ProptestConfig::with_cases(64), |(at in 0..size, length in 0..9000usize, byte: u8)| {
            let bytes = vec![byte; length];
            let written = device.write_at(at as u64, &bytes);
            prop_assert_eq!(written.is_ok(), at + length <= size);
            if written.is_ok() {
                model.lock()[at..at + length].fill(byte);
            }
        });
        let large = content(size);
        assert!(all(&*device) == *model.lock());
        device.write_at(0, &large).expect("written");
        device.flush().expect("flushed");
        assert!(all(&*device) == large);
    }
}

#[test]
fn a_write_past_the_run_length_is_whole() {
    let cipher = cipher::cipher("aes-xts-plain64", &[7; 64]).expect("known");
    let device = Plain::new(Memory::shared(vec![0; 4 << 20]), 4096, u64::MAX, 4096, 0, cipher);
    let plain = content(3 << 20);
    device.write_at(1234, &plain).expect("written");
    let mut back = vec![0; plain.len()];
    device.read_at(1234, &mut back).expect("readable");
    assert!(back == plain);
}

#[test]
fn nothing_secret_is_shown() {
    let lab = Lab::new();
    lab.format(40 << 20, &[&["--type", "luks2"], &FAST]);
    let device = lab.device();
    let header = header(&device).expect("a header");
    let key = lab.volume_key();
    header.unlock(device, PASSPHRASE).expect("no error");
    let shown = format!("{header:?}");
    assert!(!shown.contains(&format!("{key:?}")) && !shown.contains("correct horse"));
}

#[test]
fn vectors_of_ieee_1619_hold() {
    // IEEE 1619-2007, annex B: vector 1 (zeros) and vector 2.
    let cases = [
        (
            [0; 32],
            0,
            [0; 32],
            "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e",
        ),
        (
            std::array::from_fn(|at| if at < 16 { 0x11 } else { 0x22 }),
            0x33_3333_3333,
            [0x44; 32],
            "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0",
        ),
    ];
    for (key, sector, plain, expected) in cases {
        let cipher = cipher::cipher("aes-xts-plain64", &key).expect("known");
        let mut bytes = plain.to_vec();
        bytes.resize(512, 0);
        cipher.encrypt(512, sector, &mut bytes);
        let shown: String = bytes[..32].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(shown, expected);
        cipher.decrypt(512, sector, &mut bytes);
        assert_eq!(bytes[..32], plain);
    }
}

#[test]
fn a_key_is_derived_once_for_all_backups_of_a_volume() {
    let lab = Lab::new();
    lab.encrypt(&[&FAST]);
    let passphrases = [OTHER, PASSPHRASE].map(|it| Zeroizing::new(it.to_vec()));
    let secrets = Secrets::new(passphrases.into());
    let open = |bytes: Vec<u8>, budget: &mut Budget| {
        let device: SharedDevice = Memory::shared(bytes);
        secrets.open("p1", &header(&device).expect("a header"), &device, budget)
    };
    let is_open = |opened: Result<Option<SharedDevice>>| opened.expect("no error").is_some();
    // A backup that lost the key slot says nothing about the others.
    let mut damaged = lab.bytes();
    damaged[32 << 10..288 << 10].fill(0xee);
    assert!(!is_open(open(damaged, &mut Budget::new())));
    assert!(is_open(open(lab.bytes(), &mut Budget::new())));
    // Nothing is left to spend.
    let mut spent = Budget::new();
    spent.limit(0);
    let plain = open(lab.bytes(), &mut spent).expect("no error").expect("it opens");
    assert!(plain.read_at(0, &mut [0; 512]).is_ok());
    // A header that changed is another one.
    lab.cryptsetup(&[&["luksChangeKey", "--key-file", "key"], &FAST, &["img", "other"]]);
    assert!(open(lab.bytes(), &mut spent).is_err());
    assert!(is_open(open(lab.bytes(), &mut Budget::new())));
}
