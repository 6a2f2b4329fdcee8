//! Volumes made by the real mkfs programs (packages e2fsprogs, xfsprogs, btrfs-progs, dosfstools, util-linux), marks
//! set by hand where a program is not available, and random volumes.

use std::fs::File;
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::fuzzing::seed_disks;

/// An empty volume after `tool` has formatted it.
fn made_by(size_bytes: u64, tool: &str, args: &[&str]) -> Content {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(size_bytes).expect("a sparse file");
    let output = Command::new(tool)
        .args(args)
        .arg(file.path())
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap_or_else(|e| panic!("this test needs {tool}: {e}"));
    assert!(
        output.status.success(),
        "{tool} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    probe(&File::open(file.path()).expect("the volume opens")).expect("the volume is readable")
}

/// Bytes and their offsets.
type Marks<'a> = &'a [(usize, &'a [u8])];

/// A volume of 1 MiB of zeros except for these bytes.
fn with_marks(marks: Marks) -> Content {
    let mut volume = vec![0; 1 << 20];
    for (at, bytes) in marks {
        volume[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    probe(&volume.as_slice()).expect("memory is readable")
}

fn fs(fs_type: FsType) -> Content {
    Content::FileSystem(fs_type)
}

#[test]
fn ext2_ext3_and_ext4_are_distinguished() {
    let mib = 1 << 20;
    assert_eq!(made_by(16 * mib, "mkfs.ext2", &["-q"]), fs(FsType::Ext2));
    assert_eq!(made_by(16 * mib, "mkfs.ext3", &["-q"]), fs(FsType::Ext3));
    assert_eq!(made_by(16 * mib, "mkfs.ext4", &["-q"]), fs(FsType::Ext4));
    assert_eq!(
        made_by(16 * mib, "mkfs.ext4", &["-q", "-O", "^has_journal"]),
        fs(FsType::Ext4)
    );
    assert_eq!(
        made_by(16 * mib, "mke2fs", &["-q", "-b", "4096", "-O", "journal_dev"]),
        Content::Journal
    );
}

#[test]
fn xfs_and_btrfs_are_recognized() {
    let mib = 1 << 20;
    assert_eq!(made_by(320 * mib, "mkfs.xfs", &["-q"]), fs(FsType::Xfs));
    assert_eq!(made_by(128 * mib, "mkfs.btrfs", &["-q"]), fs(FsType::Btrfs));
}

#[test]
fn fat_of_every_size_is_recognized() {
    let mib = 1 << 20;
    for bits in ["12", "16", "32"] {
        let size = if bits == "12" { mib } else { 64 * mib };
        assert_eq!(made_by(size, "mkfs.vfat", &["-F", bits]), fs(FsType::Vfat));
    }
}

#[test]
fn a_fat_disk_without_a_table_has_none() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(64 << 20).expect("a sparse file");
    let status = Command::new("/usr/sbin/mkfs.vfat").arg("-I").arg(file.path()).output();
    assert!(status.expect("this test needs mkfs.vfat").status.success());
    let disk = File::open(file.path()).expect("the image opens");
    let table = crate::partition::read_table(&disk).expect("the image is readable");
    assert_eq!(table.kind, crate::partition::TableKind::None);
}

#[test]
fn swap_is_recognized_with_the_reason_not_to_mount_it() {
    let swap = made_by(1 << 20, "mkswap", &[]);
    assert_eq!(swap, Content::Swap);
    assert_eq!(swap.why_not_mountable(), Some("swap space"));
    assert_eq!(made_by(4 << 20, "mkswap", &["-p", "65536"]), Content::Swap);
}

/// A superblock of md metadata 1.x for that offset: level 1, 256 KiB of data at 512 KiB, this device in sync.
fn md1(at: u64) -> [u8; 258] {
    let mut sb = [0; 258];
    sb[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
    sb[4] = 1;
    sb[32..37].copy_from_slice(b"web:0");
    sb[72] = 1;
    sb[80..88].copy_from_slice(&512_u64.to_le_bytes());
    sb[128..136].copy_from_slice(&1024_u64.to_le_bytes());
    sb[144..152].copy_from_slice(&(at / 512).to_le_bytes());
    sb[200] = 7;
    sb[220] = 1;
    seal(&mut sb);
    sb
}

fn seal(sb: &mut [u8]) {
    let sum = containers::md1_sum(sb);
    sb[216..220].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn seeds() {
    for (name, at) in [("first", 0), ("third", 4096), ("second", (1 << 20) - 0x2000)] {
        let mut volume = vec![0; 1 << 20];
        volume[at..at + 258].copy_from_slice(&md1(at as u64));
        for target in ["md", "find", "probe"] {
            seed_disks(target, name, &[Arc::new(volume.clone())]);
        }
    }
    for (name, at, mark) in [
        ("f2fs", 1024, &b"\x10\x20\xf5\xf2"[..]),
        ("zfs", 132 << 10, b"\x0c\xb1\xba\x00\x00\x00\x00\x00"),
        (
            "bcache",
            4120,
            b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
        ),
        ("udf", 0x8001, b"BEA01"),
        ("swap", 4086, b"SWAPSPACE2"),
    ] {
        let mut volume = vec![0; 1 << 20];
        volume[at..at + mark.len()].copy_from_slice(mark);
        seed_disks("probe", name, &[Arc::new(volume)]);
    }
}

#[test]
fn mirror_members_are_recognized_with_their_data_offset() {
    // Metadata 1.2, 1.1 and 1.0: each records its own sector.
    for at in [4096, 0, (1 << 20) - 0x2000] {
        let sb = md1(at as u64);
        assert_eq!(with_marks(&[(at, &sb), (1080, b"\x53\xef")]), Content::MdMember);
        assert_ne!(with_marks(&[(at + 512, &sb)]), Content::MdMember);
        // Bytes that only resemble a superblock.
        let mut damaged = sb;
        damaged[90] ^= 1;
        assert_ne!(with_marks(&[(at, &damaged)]), Content::MdMember);

        let member = |sb: &[u8]| {
            let mut volume = vec![0; 1 << 20];
            volume[at..at + sb.len()].copy_from_slice(sb);
            containers::md_member(&volume.as_slice())
                .expect("memory is readable")
                .expect("a member")
        };
        let found = member(&sb);
        assert_eq!(found.describe(), "member of a Linux RAID 1 array web:0");
        assert_eq!((found.events, found.whole_data), (7, Some((512 << 10, 256 << 10))));
        // A spare, one that is being rebuilt, a stripe, and data past the end: none has all the data.
        for (place, byte) in [(257, 0xff), (8, 2), (72, 0), (83, 1)] {
            let mut other = sb;
            other[place] = byte;
            seal(&mut other);
            assert_eq!(member(&other).whole_data, None, "byte {place}");
        }
    }
    let mut md0 = vec![0; 4096];
    let mut set = |word: usize, value: u32| md0[4 * word..4 * word + 4].copy_from_slice(&value.to_le_bytes());
    set(0, 0xa92b_4efc);
    set(2, 90);
    set(7, 1);
    set(8, 900);
    set(39, 5);
    set(996, 6);
    let at = (1 << 20) - 0x10000;
    assert_eq!(with_marks(&[(at, &md0)]), Content::MdMember);
    let mut volume = vec![0; 1 << 20];
    volume[at..at + 4096].copy_from_slice(&md0);
    let found = containers::md_member(&volume.as_slice())
        .expect("readable")
        .expect("a member");
    assert_eq!((found.events, found.whole_data), (5, Some((0, 900 << 10))));
}

#[test]
fn containers_are_recognized_by_their_signatures() {
    let cases: [(Marks, Content); 7] = [
        (&[(0, b"LUKS\xba\xbe\x00\x02")], Content::Luks),
        (&[(512, b"LABELONE"), (536, b"LVM2 001")], Content::LvmMember),
        (&[(0, b"\xeb\x58\x90-FVE-FS-")], Content::BitLocker),
        (
            &[(0, b"\xeb\x58\x90MSWIN4.1"), (441, b"\x02"), (512, b"-FVE-FS-")],
            Content::BitLocker,
        ),
        (
            &[(
                4120,
                b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
            )],
            Content::BcacheMember,
        ),
        (&[(132 << 10, b"\x0c\xb1\xba\x00\x00\x00\x00\x00")], Content::ZfsMember),
        (&[(0, b"\x00\x00\x00ReFS\x00")], Content::Refs),
    ];
    for (marks, content) in cases {
        assert_eq!(with_marks(marks), content);
        assert!(content.why_not_mountable().is_some());
    }
}

#[test]
fn file_systems_without_mkfs_here_are_recognized_by_signature() {
    let sector = 2048;
    let cases: [(Marks, FsType); 11] = [
        (&[(3, b"NTFS    \x00\x02\x08")], FsType::Ntfs),
        (&[(3, b"EXFAT   ")], FsType::Exfat),
        (&[(0x8001, b"CD001")], FsType::Iso9660),
        (
            &[
                (0x8001, b"CD001"),
                (0x8001 + sector, b"BEA01"),
                (0x8001 + 2 * sector, b"NSR03"),
            ],
            FsType::Udf,
        ),
        (&[(0, b"hsqs"), (28, b"\x04\x00")], FsType::Squashfs),
        (&[(1024, b"\x10\x20\xf5\xf2")], FsType::F2fs),
        (&[(1024, b"\xe2\xe1\xf5\xe0")], FsType::Erofs),
        (&[(0x10034, b"ReIsEr2Fs")], FsType::Reiserfs),
        (
            &[
                (0x8000, b"JFS1"),
                (0x8010, b"\x00\x10\0\0\x0c"),
                (0x8018, b"\x00\x02\0\0\x09"),
            ],
            FsType::Jfs,
        ),
        (&[(1024, b"H+\x00\x04")], FsType::Hfsplus),
        (&[(65536 + 1372, b"\x19\x01\x54\x19")], FsType::Ufs),
    ];
    for (marks, fs_type) in cases {
        assert_eq!(with_marks(marks), fs(fs_type));
    }
    let bcachefs = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";
    assert_eq!(with_marks(&[(4120, bcachefs)]), fs(FsType::Bcachefs));
    assert_eq!(fs(FsType::Ntfs).to_string(), "NTFS file system");
}

/// A user's data may have any bytes anywhere.
#[test]
fn a_weak_signature_in_data_does_not_beat_a_superblock() {
    let mut swap_page = vec![0; 4096];
    swap_page[1024] = 1;
    swap_page[1028] = 255;
    swap_page[4086..].copy_from_slice(b"SWAPSPACE2");
    let with = |tool: &str, args: &[&str], at: u64, bytes: &[u8]| {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(320 << 20).expect("a sparse file");
        let made = Command::new(tool)
            .args(args)
            .arg(file.path())
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .output();
        assert!(made.expect("this test needs the mkfs programs").status.success());
        std::os::unix::fs::FileExt::write_all_at(file.as_file(), bytes, at).expect("writes");
        probe_all(&File::open(file.path()).expect("opens")).expect("readable")
    };
    for (tool, args, kind) in [
        ("mkfs.xfs", &["-q"][..], FsType::Xfs),
        ("mkfs.ntfs", &["-q", "-F"], FsType::Ntfs),
        ("mkfs.f2fs", &["-q"], FsType::F2fs),
        ("mkfs.ext4", &["-q", "-F"], FsType::Ext4),
    ] {
        let found = with(tool, args, 61440, &swap_page);
        assert_eq!(
            found,
            Probed {
                content: fs(kind),
                also: Vec::new()
            },
            "{tool} with a page of swap"
        );
        let found = with(tool, args, 64 << 10, &[&[0; 64][..], b"_BHRfS_M"].concat());
        assert_eq!(found.content, fs(kind), "{tool}");
        assert_eq!(found.also, [fs(FsType::Btrfs)], "{tool}");
    }
}

/// Compares the result for every available mkfs program with blkid's.
#[test]
fn the_probe_agrees_with_blkid() {
    let cases: [(u64, &str, &[&str], &str); 15] = [
        (16, "mkfs.ext2", &["-q", "-F"], "ext2"),
        (16, "mkfs.ext3", &["-q", "-F"], "ext3"),
        (16, "mkfs.ext4", &["-q", "-F"], "ext4"),
        (16, "mke2fs", &["-q", "-F", "-O", "journal_dev"], "jbd"),
        (320, "mkfs.xfs", &["-q"], "xfs"),
        (128, "mkfs.btrfs", &["-q"], "btrfs"),
        (64, "mkfs.vfat", &["-F", "32"], "vfat"),
        (64, "mkfs.ntfs", &["-q", "-F"], "ntfs"),
        (64, "mkfs.f2fs", &["-q"], "f2fs"),
        (64, "mkfs.exfat", &[], "exfat"),
        (64, "mkfs.udf", &[], "udf"),
        (64, "mkfs.jfs", &["-q"], "jfs"),
        (16, "mkswap", &[], "swap"),
        (64, "mkfs.fat", &["-F", "16"], "vfat"),
        (16, "mkfs.fat", &["-F", "12"], "vfat"),
    ];
    for (mib, tool, args, name) in cases {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(mib << 20).expect("a sparse file");
        let run = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            command
                .args(args)
                .arg(file.path())
                .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
            command
                .output()
                .unwrap_or_else(|error| panic!("this test needs {program}: {error}"))
        };
        assert!(run(tool, args).status.success(), "{tool}");
        let blkid = run("blkid", &["-p", "-o", "value", "-s", "TYPE"]);
        assert_eq!(String::from_utf8_lossy(&blkid.stdout).trim(), name, "{tool}, by blkid");
        let found = probe_all(&File::open(file.path()).expect("opens")).expect("readable");
        assert_eq!((blkid_name(found.content), found.also), (name, Vec::new()), "{tool}");
    }
}

fn blkid_name(content: Content) -> &'static str {
    match content {
        Content::FileSystem(FsType::Ext2) => "ext2",
        Content::FileSystem(FsType::Ext3) => "ext3",
        Content::FileSystem(FsType::Ext4) => "ext4",
        Content::FileSystem(FsType::Xfs) => "xfs",
        Content::FileSystem(FsType::Btrfs) => "btrfs",
        Content::FileSystem(FsType::Vfat) => "vfat",
        Content::FileSystem(FsType::Ntfs) => "ntfs",
        Content::FileSystem(FsType::F2fs) => "f2fs",
        Content::FileSystem(FsType::Exfat) => "exfat",
        Content::FileSystem(FsType::Udf) => "udf",
        Content::FileSystem(FsType::Jfs) => "jfs",
        Content::Journal => "jbd",
        Content::Swap => "swap",
        _ => "something else",
    }
}

#[test]
fn zeros_are_empty_and_anything_else_is_unknown() {
    for size in [0, 1, 100, 511, 4096, 5000, 65536, 1 << 20] {
        assert_eq!(
            probe(&vec![0; size].as_slice()).expect("memory is readable"),
            Content::Empty
        );
        if size > 0 {
            assert_eq!(
                probe(&vec![b'x'; size].as_slice()).expect("memory is readable"),
                Content::Unknown
            );
        }
    }
}

#[test]
fn a_partition_table_is_not_taken_for_fat() {
    // The boot code of a real MBR starts with a jump, too.
    assert_eq!(
        with_marks(&[(0, b"\xeb\x63\x90"), (510, b"\x55\xaa")]),
        Content::Unknown
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_of_any_length_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..80_000),
        cut in 0..3000usize,
    ) {
        probe(&bytes.as_slice()).expect("memory is readable");
        probe(&&bytes[..cut.min(bytes.len())]).expect("memory is readable");
    }

    #[test]
    fn a_truncated_signature_never_panics(size in 0..70_000usize, fill in any::<u8>()) {
        let marks: [(usize, &[u8]); 9] = [
            (0, b"\xeb\x58\x90MSWIN4.1"), (0, b"XFSB"), (1080, b"\x53\xef"), (4086, b"SWAPSPACE2"), (440, &[0xff; 8]),
            (0x8001, b"BEA01"), (0x8801, b"NSR02"), (0x10040, b"_BHRfS_M"), (510, b"\x55\xaa"),
        ];
        let mut volume = vec![fill; 70_000];
        for (at, bytes) in marks {
            volume[at..at + bytes.len()].copy_from_slice(bytes);
        }
        volume.truncate(size);
        probe(&volume.as_slice()).expect("memory is readable");
    }
}
