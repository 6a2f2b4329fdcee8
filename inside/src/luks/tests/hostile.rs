//! Headers that are damaged or made to attack. Checksums are made to fit, so that what they protect is reached.

use serde_json::{Value, json};

use super::*;
use crate::fuzzing;

const COPY: usize = 16 << 10;

/// Makes the checksum of the copy at `at` fit.
fn seal(image: &mut [u8], at: usize) {
    let length = usize::try_from(crate::device::be64(&image[at..], 8)).unwrap_or(usize::MAX);
    let Some(copy) = image
        .get_mut(at..at.saturating_add(length))
        .filter(|copy| copy.len() >= 4096)
    else {
        return;
    };
    copy[448..512].fill(0);
    let digest = Hash::Sha256.digest(&[copy]);
    copy[448..480].copy_from_slice(&digest);
}

fn metadata(image: &[u8]) -> Value {
    let json = image[4096..COPY].split(|byte| *byte == 0).next().expect("a part");
    serde_json::from_slice(json).expect("JSON")
}

/// Puts JSON into both copies.
fn put(image: &mut [u8], json: &[u8]) {
    for at in [0, COPY] {
        let area = &mut image[at + 4096..at + COPY];
        area.fill(0);
        area[..json.len()].copy_from_slice(json);
        seal(image, at);
    }
}

fn edited(image: &[u8], edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut image = image.to_vec();
    let mut json = metadata(&image);
    edit(&mut json);
    put(&mut image, json.to_string().as_bytes());
    image
}

/// Sets one value, by its JSON pointer.
fn with(image: &[u8], pointer: &str, value: Value) -> Vec<u8> {
    edited(image, |json| {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        json.pointer_mut(parent).expect("a parent")[key] = value;
    })
}

fn luks2() -> (Vec<u8>, Vec<u8>) {
    let lab = Lab::new();
    let plain = lab.encrypt(&[&FAST, &["--sector-size", "512"]]);
    (lab.bytes(), plain)
}

fn unlock(image: Vec<u8>) -> Result<Option<SharedDevice>> {
    let device: SharedDevice = Memory::shared(image);
    header(&device)?.unlock(device, PASSPHRASE)
}

#[test]
fn a_damaged_copy_of_the_header_is_replaced_by_the_other() {
    let (image, plain) = luks2();
    let open = |image: Vec<u8>| {
        let device: SharedDevice = Memory::shared(image);
        let header = header(&device).expect("a header");
        assert!(all(&*opened(device, PASSPHRASE)).starts_with(&plain));
        header.remarks().join("; ")
    };
    let mut first = image.clone();
    first[5000] ^= 1;
    let remark =
        "the first LUKS header can't be used (damaged: checksum of the LUKS header); opened by the copy at 16384";
    assert_eq!(open(first), remark);
    let mut gone = image.clone();
    gone[..COPY].fill(0);
    assert!(open(gone).starts_with("the first LUKS header can't be used (damaged: no LUKS header)"));
    let mut second = image.clone();
    second[COPY + 5000] ^= 1;
    assert!(open(second).starts_with("the second LUKS header can't be used"));
    let mut newer = image.clone();
    newer[COPY + 23] += 1;
    seal(&mut newer, COPY);
    assert_eq!(
        open(newer),
        "the first LUKS header is older; opened by the copy at 16384"
    );
    let mut both = image;
    both[5000] ^= 1;
    both[COPY + 5000] ^= 1;
    assert_eq!(message(unlock(both)), "damaged: checksum of the LUKS header");
}

#[test]
fn a_truncated_device_is_an_error_or_a_shorter_one() {
    let (image, plain) = luks2();
    let cut = |length: usize| unlock(image[..length].to_vec());
    assert_eq!(message(cut(0)), "damaged: no LUKS header");
    assert_eq!(message(cut(4096)), "damaged: LUKS header that passes the end");
    assert_eq!(message(cut(COPY)), "damaged: LUKS volume that ends before its data");
    assert_eq!(message(cut(2 << 20)), "damaged: LUKS volume that ends before its data");
    let device = cut((2 << 20) + 10_000).expect("no error").expect("open");
    assert_eq!(device.size_bytes(), 9728);
    assert_eq!(all(&*device), plain[..9728]);
    // The segment may lie before the end while an area does not.
    let area = with(
        &image,
        "/keyslots/0/area/offset",
        json!((image.len() - 512).to_string()),
    );
    assert_eq!(message(unlock(area)), "damaged: key slot 0: area that passes the end");
}

#[test]
fn segments_of_a_fixed_size_and_another_first_sector_are_read() {
    let (image, plain) = luks2();
    let image = with(&image, "/segments/0/offset", json!(((2 << 20) + 4096).to_string()));
    let image = with(&image, "/segments/0/iv_tweak", json!("8"));
    let image = with(&image, "/segments/0/size", json!("8192"));
    let device = unlock(image.clone()).expect("no error").expect("open");
    assert_eq!(all(&*device), plain[4096..12_288]);
    // A size past the end is that of the device; a first sector near the end of all wraps, as in the kernel.
    let image = with(&image, "/segments/0/size", json!(u64::MAX.to_string()));
    let image = with(&image, "/segments/0/iv_tweak", json!(u64::MAX.to_string()));
    let device = unlock(image.clone()).expect("no error").expect("open");
    assert_eq!(device.size_bytes(), image.len() as u64 - (2 << 20) - 4096);
    all(&*device);
}

#[test]
fn features_that_are_not_known_are_refused_by_name() {
    let (image, _) = luks2();
    let cases = [
        (
            "/config/requirements",
            json!({"mandatory": ["new\u{1b}feature"]}),
            "LUKS requirement newfeature",
        ),
        (
            "/segments/0/integrity",
            json!({"type": "hmac(sha256)"}),
            "LUKS volume with integrity",
        ),
        ("/segments/0/type", json!("hw-opal"), "LUKS segment of type hw-opal"),
        (
            "/segments/0/flags",
            json!(["in-reencryption"]),
            "LUKS segment with the flag in-reencryption",
        ),
        ("/segments/0/offset", json!("0"), "detached LUKS header"),
        (
            "/segments/0/encryption",
            json!("cipher_null-ecb"),
            "cipher cipher_null-ecb with a key of 64 bytes",
        ),
        (
            "/segments/0/encryption",
            json!("aes-xts-random"),
            "cipher aes-xts-random with a key of 64 bytes",
        ),
        (
            "/keyslots/0/area/encryption",
            json!("cipher_null-ecb"),
            "key slot 0: cipher cipher_null-ecb with a key of 64 bytes",
        ),
        (
            "/keyslots/0/kdf/type",
            json!("scrypt"),
            "key slot 0: key derivation scrypt",
        ),
        ("/keyslots/0/kdf/hash", json!("md5"), "key slot 0: hash md5"),
        ("/keyslots/0/type", json!("reencrypt"), "key slot 0: type reencrypt"),
        (
            "/keyslots/0/af/stripes",
            json!(4001),
            "key slot 0: splitter luks1 of 4001 stripes",
        ),
    ];
    for (pointer, value, expected) in cases {
        assert_eq!(
            message(unlock(with(&image, pointer, value))),
            format!("not supported: {expected}"),
            "{pointer}"
        );
    }
    let two = edited(&image, |json| {
        let segment = json["segments"]["0"].clone();
        json["segments"]["1"] = segment;
    });
    assert_eq!(message(unlock(two)), "not supported: LUKS volume of 2 segments");
}

#[test]
fn work_and_memory_that_a_header_asks_for_are_bounded() {
    let (image, _) = luks2();
    let argon2 = |memory: u64, time: u64, cpus: u64| {
        let salt = "AAAAAAAAAAAAAAAAAAAAAA==";
        let kdf = json!({"type": "argon2id", "time": time, "memory": memory, "cpus": cpus, "salt": salt});
        message(unlock(with(&image, "/keyslots/0/kdf", kdf)))
    };
    let memory = "not supported: key slot 0: Argon2 with 4194305 KiB of memory; the limit is 4194304";
    assert_eq!(argon2((4 << 20) + 1, 4, 4), memory);
    assert!(argon2(1 << 20, 1 << 20, 4).contains("key derivation of 1099511627776 rounds"));
    assert!(argon2(1 << 20, u64::MAX, 4).contains("rounds"));
    for (memory, time, cpus) in [
        (0, 1, 1),
        (7, 1, 1),
        (64, 0, 1),
        (64, 1, 0),
        (64, 1, 9),
        (64, 1, 1 << 40),
    ] {
        assert!(
            argon2(memory, time, cpus).starts_with("damaged: key slot 0: Argon2"),
            "{memory} {time} {cpus}"
        );
    }
    for pointer in ["/keyslots/0/kdf/iterations", "/digests/0/iterations"] {
        for iterations in [1 << 29, u64::MAX] {
            let error = message(unlock(with(&image, pointer, json!(iterations))));
            assert!(
                error.starts_with("not supported: key slot 0: key derivation of"),
                "{error}"
            );
        }
        let error = message(unlock(with(&image, pointer, json!(0))));
        assert_eq!(error, "damaged: key slot 0: PBKDF2 of 0 iterations");
    }
    assert!(key::check_memory(1 << 20, Some((1 << 20) + (128 << 10))).is_ok());
    assert!(key::check_memory(1 << 20, None).is_ok());
    let refused = key::check_memory(1 << 20, Some(1 << 20)).expect_err("refused");
    assert_eq!(
        Error::from(refused).to_string(),
        "not supported: Argon2 with 1024 MiB of memory, of which 1024 MiB are available"
    );
    // The bound is for all slots together.
    let mut budget = Budget::new();
    let kdf = Kdf::Pbkdf2 {
        hash: Hash::Sha256,
        iterations: 1000,
    };
    for _ in 0..3 {
        kdf.derive(b"", b"", 64, &mut budget).expect("within the bound");
    }
    let left = Kdf::Pbkdf2 {
        hash: Hash::Sha256,
        iterations: (1 << 27) - 2999,
    };
    assert!(left.derive(b"", b"", 64, &mut budget).is_err());
}

#[test]
fn one_bad_key_slot_leaves_the_others() {
    let lab = Lab::new();
    lab.encrypt(&[&FAST]);
    lab.cryptsetup(&[&["luksAddKey", "--key-file", "key"], &FAST, &["img", "other"]]);
    let image = lab.bytes();
    for bad in [json!(7), json!({}), json!({"type": "luks2"}), json!({"type": "luks3"})] {
        let device: SharedDevice = Memory::shared(with(&image, "/keyslots/0", bad));
        let header = header(&device).expect("a header");
        assert!(header.unlock(Arc::clone(&device), OTHER).expect("no error").is_some());
        let error = message(header.unlock(device, b"wrong"));
        assert!(error.contains("key slot 0"), "{error}");
    }
}

#[test]
fn a_digest_that_would_fit_any_key_is_refused() {
    let (image, _) = luks2();
    let short = with(&image, "/digests/0/digest", json!(""));
    assert_eq!(message(unlock(short)), "damaged: key slot 0: digest of 0 bytes");
    let none = with(&image, "/digests", json!({}));
    assert_eq!(message(unlock(none)), "damaged: no digest of the segment's key");
}

#[test]
fn odd_json_is_damage() {
    let (image, _) = luks2();
    let deep = [b"{\"tokens\":".as_slice(), &b"[".repeat(8000)].concat();
    let slots: String = (0..400).map(|slot| format!("\"{slot}\":0,")).collect();
    let many = format!("{{\"keyslots\":{{{slots}\"x\":0}},\"segments\":{{}},\"digests\":{{}}}}");
    for json in [b"".as_slice(), b"{", b"[]", b"\xff\xfe", &deep, many.as_bytes()] {
        let mut image = image.clone();
        put(&mut image, json);
        let error = message(unlock(image));
        assert!(error.starts_with("damaged: "), "{error}");
    }
    for pointer in ["/keyslots", "/segments", "/digests"] {
        for value in [json!(null), json!(1), json!([]), json!("x")] {
            message(unlock(with(&image, pointer, value)));
        }
    }
    message(unlock(with(&image, "/config/requirements", json!("x"))));
}

/// A device whose first bytes can't be read.
struct Unreadable(Vec<u8>);

impl Device for Unreadable {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset_bytes < COPY as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.0.read_at(offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
}

#[test]
fn a_first_copy_that_the_backup_lost_is_replaced_by_the_other() {
    let (image, plain) = luks2();
    let device: SharedDevice = Arc::new(Unreadable(image));
    assert!(all(&*opened(device, PASSPHRASE)).starts_with(&plain));
    let device: SharedDevice = Arc::new(Unreadable(vec![0; 1 << 20]));
    assert!(matches!(header(&device), Err(Error::Io(_))));
}

#[test]
fn odd_binary_headers_are_damage() {
    let (image, _) = luks2();
    for length in [0, 1, 4096, (16 << 10) + 1, 8 << 20, u64::MAX] {
        let mut image = image.clone();
        image[8..16].copy_from_slice(&length.to_be_bytes());
        image[COPY..COPY + 6].fill(0);
        seal(&mut image, 0);
        let error = message(unlock(image));
        assert!(
            error.starts_with(&format!("damaged: LUKS header of {length} bytes")),
            "{error}"
        );
    }
    let mut version = image.clone();
    version[7] = 3;
    version[COPY..COPY + 6].fill(0);
    assert_eq!(message(unlock(version)), "not supported: LUKS version 3");
}

#[test]
fn odd_luks1_headers_are_refused() {
    let lab = Lab::new();
    lab.format(4 << 20, &[&["--type", "luks1"], &FAST[2..]]);
    let image = lab.bytes();
    let patched = |at: usize, bytes: &[u8]| {
        let mut image = image.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        message(unlock(image))
    };
    assert_eq!(
        patched(4, b"\xde\xad"),
        "not supported: LUKS volume whose reencryption is not finished"
    );
    assert_eq!(patched(104, &[0; 4]), "not supported: detached LUKS header");
    assert_eq!(
        patched(104, &[0xff; 4]),
        "damaged: LUKS volume that ends before its data"
    );
    for key_bytes in [[0; 4], [0xff; 4], [0, 0, 0, 129]] {
        assert!(patched(108, &key_bytes).starts_with("damaged: key slot 0: key of"));
    }
    assert!(patched(108, &[0, 0, 0, 17]).starts_with("not supported: key slot 0: cipher"));
    assert!(patched(208, &[1; 4]).starts_with("damaged: key slot 0: state"));
    assert!(patched(208 + 4, &[0xff; 4]).starts_with("not supported: key slot 0: key derivation"));
    assert!(patched(208 + 40, &[0xff; 4]).starts_with("damaged: key slot 0: area"));
    assert!(patched(208 + 44, &[0xff; 4]).starts_with("damaged: key slot 0: 4294967295 stripes"));
    assert!(patched(72, b"md5\0").starts_with("not supported: hash md5"));
    assert!(patched(8, b"\x1b[2J").starts_with("damaged: name of the cipher"));
    assert!(message(unlock(image[..500].to_vec())).contains("passes the end"));
}

/// Opens any bytes, at the start of a device of a GiB.
fn fuzz(bytes: &[u8]) {
    let device: SharedDevice = Memory::with_size(bytes.to_vec(), 1 << 30);
    fuzzing::contents(super::super::fuzz(&device));
}

#[test]
fn seeds() {
    let lab = Lab::new();
    for (name, size_bytes, fast) in [("luks1", 4 << 20, &FAST[2..]), ("luks2", 20 << 20, &FAST[..])] {
        lab.format(size_bytes, &[&["--type", name], fast]);
        // Without the key material, which is noise.
        let mut image = lab.bytes();
        image.truncate(32 << 10);
        let device: SharedDevice = Memory::with_size(image, size_bytes);
        fuzzing::seed_disks("luks", name, &[Arc::clone(&device)]);
        fuzzing::seed_disks("find", name, &[device]);
    }
}

#[test]
fn no_bytes_make_it_panic() {
    let (mut luks2, _) = luks2();
    luks2.truncate(1 << 20);
    let lab = Lab::new();
    lab.format(4 << 20, &[&["--type", "luks1"], &FAST[2..]]);
    let mut luks1 = lab.bytes();
    luks1.truncate(300_000);
    let json_bytes = metadata(&luks2).to_string().len() + 50;
    let config = ProptestConfig::with_cases(300);
    let mutations = || proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    proptest!(config.clone(), |(bytes in proptest::collection::vec(any::<u8>(), 0..6000), version in 1..3u8)| {
        fuzz(&bytes);
        let mut bytes = bytes;
        if bytes.len() > 8 {
            bytes[..8].copy_from_slice(&[b'L', b'U', b'K', b'S', 0xba, 0xbe, 0, version]);
        }
        fuzz(&bytes);
    });
    proptest!(config.clone(), |(mutations in mutations())| {
        let mut image = luks1.clone();
        for (at, byte) in mutations {
            image[at.index(592)] = byte;
        }
        fuzz(&image);
    });
    proptest!(config.clone(), |(mutations in mutations())| {
        let mut image = luks2.clone();
        for (at, byte) in mutations {
            image[4096 + at.index(json_bytes)] = byte;
        }
        seal(&mut image, 0);
        fuzz(&image);
    });
    proptest!(config, |(mutations in mutations())| {
        let mut image = luks2.clone();
        for (at, byte) in mutations {
            image[at.index(512)] = byte;
        }
        seal(&mut image, 0);
        fuzz(&image);
    });
}
