//! Superblocks that name other devices, set by hand.

use super::*;

/// Bytes and the offsets they are at.
type Marks<'a> = &'a [(usize, &'a [u8])];

fn with_marks(fs: FsType, marks: Marks) -> Result<FileSystem, String> {
    let mut volume = vec![0; 1 << 20];
    for (at, bytes) in marks {
        volume[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    how_to_mount(fs, &volume.as_slice(), Way::AsItIs).expect("memory is readable")
}

#[test]
fn an_ext4_is_never_mounted_with_a_journal() {
    // Clean, to be replayed, and with a journal on a device of its own (s_journal_inum 0, s_journal_dev 8:1).
    let clean = with_marks(FsType::Ext4, &[(1024 + 92, &[4])]).expect("mounts");
    let dirty = with_marks(FsType::Ext4, &[(1024 + 92, &[4]), (1024 + 96, &[4])]).expect("mounts");
    let elsewhere = with_marks(FsType::Ext3, &[(1024 + 92, &[4]), (1024 + 228, &[1, 8])]).expect("mounts");
    for how in [&clean, &dirty, &elsewhere] {
        assert_eq!(
            (how.kind.as_str(), how.options.as_str()),
            ("ext4", "errors=remount-ro,noload")
        );
        assert_eq!(how.without_journal, None);
    }
    assert_eq!((clean.warning, elsewhere.warning), (None, None));
    assert!(
        dirty
            .warning
            .is_some_and(|warning| warning.contains("journal was not replayed"))
    );
}

#[test]
fn a_file_system_that_names_other_host_devices_is_not_mounted() {
    let sb = 1024;
    let refused: [(FsType, Marks); 7] = [
        // The log at block 0 means none inside the volume; then a realtime device.
        (FsType::Xfs, &[(0, b"XFSB")]),
        (FsType::Xfs, &[(48, &[0, 0, 0, 0, 0, 0, 4, 0]), (23, &[1])]),
        (FsType::F2fs, &[(sb + 2201, b"/dev/sda")]),
        (FsType::F2fs, &[(4096 + sb + 2201 + 68, b"/dev/sdb")]),
        (FsType::Erofs, &[(sb + 86, &[1])]),
        (FsType::Erofs, &[(sb + 80, &[8])]),
        (
            FsType::Reiserfs,
            &[((64 << 10) + 16, &[1, 8]), ((64 << 10) + 52, b"ReIsEr2Fs")],
        ),
    ];
    for (fs, marks) in refused {
        let why = with_marks(fs, marks).expect_err("is refused");
        assert!(why.contains("device"), "{fs}: {why}");
    }
    let mounted: [(FsType, Marks); 4] = [
        (FsType::Xfs, &[(48, &[0, 0, 0, 0, 0, 0, 4, 0])]),
        (FsType::F2fs, &[]),
        (FsType::Erofs, &[]),
        (FsType::Reiserfs, &[((64 << 10) + 52, b"ReIsEr2Fs")]),
    ];
    for (fs, marks) in mounted {
        assert!(with_marks(fs, marks).is_ok(), "{fs}");
    }
}
