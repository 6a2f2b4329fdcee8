//! Volumes made by the real mkfs programs (packages e2fsprogs, xfsprogs, btrfs-progs, dosfstools, util-linux), marks set
//! by hand where a maker is not at hand, and chance.

use std::fs::File;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// What `tool` made of an empty volume.
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

/// Bytes and the offsets they are at.
type Marks<'a> = &'a [(usize, &'a [u8])];

/// A volume of 1 MiB of zeros but for these.
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
fn ext_file_systems_are_told_apart() {
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
    assert_eq!(FsType::Ext2.kernel_name(), "ext4");
}

#[test]
fn xfs_and_btrfs_are_known() {
    let mib = 1 << 20;
    assert_eq!(made_by(320 * mib, "mkfs.xfs", &["-q"]), fs(FsType::Xfs));
    assert_eq!(made_by(128 * mib, "mkfs.btrfs", &["-q"]), fs(FsType::Btrfs));
}

#[test]
fn fat_of_every_size_is_known() {
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
fn swap_is_known_and_says_why_it_is_not_mounted() {
    let swap = made_by(1 << 20, "mkswap", &[]);
    assert_eq!(swap, Content::Swap);
    assert_eq!(swap.why_not_mountable(), Some("swap space"));
    assert_eq!(made_by(4 << 20, "mkswap", &["-p", "65536"]), Content::Swap);
}

#[test]
fn containers_are_known_by_their_marks() {
    let mut md1 = [0; 256];
    md1[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
    md1[4] = 1;
    // Metadata 1.2, 1.1 and 1.0: each tells the sector where it is.
    for at in [4096, 0, (1 << 20) - 0x2000] {
        md1[144..152].copy_from_slice(&(at as u64 / 512).to_le_bytes());
        assert_eq!(with_marks(&[(at, &md1), (1080, b"\x53\xef")]), Content::MdMember);
        assert_ne!(with_marks(&[(at + 512, &md1)]), Content::MdMember);
    }
    let mut md0 = [0; 256];
    md0[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
    md0[8] = 90;
    assert_eq!(with_marks(&[((1 << 20) - 0x10000, &md0)]), Content::MdMember);

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
fn file_systems_without_a_maker_here_are_known_by_their_marks() {
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
        (&[(0x8000, b"JFS1")], FsType::Jfs),
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
    fn random_bytes_of_any_length_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..80_000), cut in 0..3000usize) {
        probe(&bytes.as_slice()).expect("memory is readable");
        probe(&&bytes[..cut.min(bytes.len())]).expect("memory is readable");
    }

    #[test]
    fn a_mark_cut_short_does_no_harm(size in 0..70_000usize, fill in any::<u8>()) {
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
