//! Superblocks that name other devices, set by hand.

use super::*;

/// Bytes and the offsets they are at.
type Marks<'a> = &'a [(usize, &'a [u8])];

fn with_marks(fs: FsType, marks: Marks) -> Result<FileSystem, String> {
    with_marks_on(fs, marks, Way::AsItIs)
}

fn with_marks_on(fs: FsType, marks: Marks, way: Way) -> Result<FileSystem, String> {
    let mut volume = vec![0; 1 << 20];
    for (at, bytes) in marks {
        volume[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    how_to_mount(fs, &volume.as_slice(), way).expect("memory is readable")
}

/// An ext4 with a journal: clean, to be replayed, and with one on a device of its own (s_journal_dev 8:1).
fn ext4(way: Way) -> [FileSystem; 3] {
    let magic: (usize, &[u8]) = (1024 + 56, &[0x53, 0xef]);
    let journal: (usize, &[u8]) = (1024 + 92, &[4]);
    let inside: (usize, &[u8]) = (1024 + 224, &[8]);
    let dirty: (usize, &[u8]) = (1024 + 96, &[4]);
    let elsewhere: (usize, &[u8]) = (1024 + 228, &[1, 8]);
    let of = |marks: Marks| with_marks_on(FsType::Ext4, marks, way).expect("mounts");
    [
        of(&[magic, journal, inside]),
        of(&[magic, journal, inside, dirty]),
        of(&[magic, journal, dirty, elsewhere]),
    ]
}

#[test]
fn a_journal_is_left_alone_on_a_read_only_device() {
    let [clean, dirty, elsewhere] = ext4(Way::AsItIs);
    for how in [&clean, &dirty, &elsewhere] {
        let options = (how.kind.as_str(), how.options.as_str(), how.backing, how.read_write);
        assert_eq!(options, ("ext4", "errors=remount-ro,noload", Backing::ReadOnly, false));
        assert_eq!((&how.without_journal, &how.repaired), (&None, &None));
    }
    assert_eq!(clean.warning, None);
    for how in [dirty, elsewhere] {
        assert!(
            how.warning
                .is_some_and(|warning| warning.contains("journal was not replayed"))
        );
    }
}

#[test]
fn a_journal_is_replayed_only_where_it_is_inside() {
    let [clean, dirty, elsewhere] = ext4(Way::Replayed);
    assert_eq!((clean.backing, clean.repaired), (Backing::ReadOnly, None));
    assert_eq!(dirty.options, "errors=remount-ro");
    assert_eq!(
        (dirty.backing, dirty.read_write, dirty.warning),
        (Backing::Writable, false, None)
    );
    assert!(dirty.repaired.is_some());
    assert_eq!(
        (elsewhere.backing, elsewhere.options.as_str()),
        (Backing::ReadOnly, "errors=remount-ro,noload")
    );

    let [clean, dirty, elsewhere] = ext4(Way::Writable);
    assert!(clean.read_write && dirty.read_write && !elsewhere.read_write);
    assert_eq!(elsewhere.options, "errors=remount-ro,noload");
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
