//! Disks made by the real programs (packages fdisk, gdisk, e2fsprogs, xfsprogs, btrfs-progs, dosfstools, util-linux,
//! cryptsetup-bin, lvm2).

use std::fs::File;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// The identities of a disk that can be read.
fn found(disk: &dyn Device) -> Vec<Signature> {
    let found = signatures(disk);
    assert!(found.error.is_none(), "{found:?}");
    found.signatures
}

const UUID: &str = "6b1a2f0e-0d1f-4c55-9a5e-1d2c3b4a5f60";

fn empty(size_bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(size_bytes).expect("a sparse file");
    file
}

fn run(tool: &str, args: &[&str], file: &tempfile::NamedTempFile) {
    let output = Command::new(tool)
        .args(args)
        .arg(file.path())
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap_or_else(|e| panic!("this test needs {tool}: {e}"));
    assert!(output.status.success(), "{tool}: {output:?}");
}

/// The signatures of a volume that a program has formatted.
fn made_by(tool: &str, args: &[&str]) -> Vec<Signature> {
    let file = empty(160 << 20);
    run(tool, args, &file);
    found(&File::open(file.path()).expect("opens"))
}

#[test]
fn each_program_s_uuid_and_label_are_found() {
    let made = [
        ("mkfs.ext4", vec!["-q", "-U", UUID, "-L", "data"], "ext4", UUID),
        ("mkfs.ext2", vec!["-q", "-U", UUID, "-L", "data"], "ext2", UUID),
        (
            "mkfs.xfs",
            vec![
                "-q",
                "-m",
                "uuid=6b1a2f0e-0d1f-4c55-9a5e-1d2c3b4a5f60",
                "-L",
                "data",
                "--unsupported",
            ],
            "XFS",
            UUID,
        ),
        ("mkfs.btrfs", vec!["-q", "-U", UUID, "-L", "data"], "Btrfs", UUID),
        ("mkswap", vec!["-U", UUID, "-L", "data"], "swap space", UUID),
        (
            "mkfs.fat",
            vec!["-F", "32", "-i", "1a2b3c4d", "-n", "data"],
            "FAT",
            "1A2B-3C4D",
        ),
        (
            "mkfs.fat",
            vec!["-F", "16", "-i", "1a2b3c4d", "-n", "data"],
            "FAT",
            "1A2B-3C4D",
        ),
    ];
    for (tool, args, what, id) in made {
        let expected = Signature {
            partition: None,
            what: what.to_owned(),
            id: Some(id.to_owned()),
            label: Some("data".to_owned()),
        };
        assert_eq!(made_by(tool, &args), [expected], "{tool}");
    }
}

#[test]
fn a_luks_volume_has_its_uuid() {
    let file = empty(32 << 20);
    let key = tempfile::NamedTempFile::new().expect("a key file");
    std::fs::write(key.path(), "secret").expect("writes");
    let key = key.path().to_str().expect("UTF-8");
    let args = [
        "luksFormat",
        "-q",
        "--type",
        "luks2",
        "--pbkdf",
        "pbkdf2",
        "--pbkdf-force-iterations",
        "1000",
    ];
    run(
        "cryptsetup",
        &[&args[..], &["--uuid", UUID, "--key-file", key]].concat(),
        &file,
    );
    let all = found(&File::open(file.path()).expect("opens"));
    assert_eq!(
        all.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("LUKS {UUID}")]
    );
}

#[test]
fn a_table_and_its_partitions_are_named() {
    let file = empty(64 << 20);
    let disk = "11223344-5566-7788-99AA-BBCCDDEEFF00";
    let offset = format!("offset={}", 1 << 20);
    run("mkfs.ext4", &["-q", "-L", "it's", "-E", &offset, "-F"], &file);
    // Afterwards, because mkfs.ext4 clears the first sectors of the file.
    run(
        "sgdisk",
        &["-o", "-U", disk, "-n", "1:2048:+16M", "-n", "5:0:+16M"],
        &file,
    );
    let all = found(&File::open(file.path()).expect("opens"));
    let shown: Vec<_> = all.iter().map(ToString::to_string).collect();
    assert_eq!(shown, [format!("GPT {disk}"), "ext4 'it_s' on partition 1".to_owned()]);

    let mut mbr = vec![0; 1 << 20];
    mbr[440..444].copy_from_slice(&[0x78, 0x56, 0x34, 0x12]);
    mbr[446 + 4] = 0x83;
    mbr[446 + 8] = 8;
    mbr[446 + 12] = 8;
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    let all = found(&mbr);
    assert_eq!(
        all.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["MBR 12345678"]
    );
}

/// A disk whose bytes from an offset on can't be read.
struct Broken(Vec<u8>, u64);

impl Device for Broken {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        match offset_bytes + buf.len() as u64 > self.1 {
            true => Err(io::Error::other("broken")),
            false => self.0.read_at(offset_bytes, buf),
        }
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
}

#[test]
fn what_can_not_be_read_does_not_hide_the_rest() {
    let mut mbr = vec![0; 1 << 20];
    mbr[440] = 7;
    mbr[446 + 4] = 0x83;
    // Sector 1024.
    mbr[446 + 9] = 4;
    mbr[446 + 12] = 8;
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (readable_bytes, count) in [(4096, 1), (0, 0)] {
        let found = signatures(&Broken(mbr.clone(), readable_bytes));
        assert!(found.error.is_some() && found.signatures.len() == count, "{found:?}");
    }
}

#[test]
fn a_blank_or_unknown_disk_has_none() {
    assert_eq!(found(&vec![0; 1 << 20]), []);
    assert_eq!(found(&vec![0xa5; 1 << 20]), []);
    assert_eq!(found(&vec![0; 3]), []);
}

#[test]
fn the_same_uuid_is_the_same_whatever_the_rest_says() {
    let of = |what: &str, id: Option<&str>, label: Option<&str>| Signature {
        partition: None,
        what: what.into(),
        id: id.map(str::to_owned),
        label: label.map(str::to_owned),
    };
    let old = of("ext3", Some(UUID), Some("old"));
    assert!(old.is_same(&of("ext4", Some(UUID), Some("new"))));
    assert!(!old.is_same(&of("ext3", Some("another"), Some("old"))));
    assert!(!old.is_same(&of("ext3", None, Some("old"))));
    assert!(of("UDF", None, None).is_same(&of("UDF", None, None)));
    assert!(!of("UDF", None, None).is_same(&of("SquashFS", None, None)));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(at in 0usize..200_000, bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut disk = vec![0; 1 << 18];
        disk[..4].copy_from_slice(b"XFSB");
        disk[at..at + bytes.len()].copy_from_slice(&bytes);
        prop_assert!(signatures(&disk).error.is_none());
    }
}
