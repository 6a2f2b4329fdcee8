//! Journals that the kernel wrote and did not write back: an image is copied while it is mounted.

use super::*;

/// A copy of an image as it is while the kernel uses it.
pub(super) fn copy_of(image: &Image) -> Image {
    let dir = tempfile::tempdir().expect("a directory");
    let copy = Image { dir };
    fs::create_dir(copy.mount_point()).expect("a directory");
    let args = ["--sparse=always".into(), image.path(), copy.path()];
    run("cp", &args.each_ref().map(|arg: &PathBuf| arg.as_os_str()));
    copy
}

/// Changes files so that metadata is in the journal, then freed. Then fills the file system, so that content lies in
/// those blocks: older metadata in the journal must not count.
fn change(root: &Path, is_filled: bool) {
    let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all()).expect("syncs");
    for round in 0..3 {
        let dir = root.join(format!("round {round}"));
        fs::create_dir(&dir).expect("a directory");
        for number in 0..200 {
            fs::write(dir.join(format!("file {number}")), noise(number * 50, 1)).expect("writes");
        }
        sync(&dir);
    }
    // The blocks of this directory are revoked.
    fs::remove_dir_all(root.join("round 1")).expect("removes");
    sync(root);
    for number in 0..20 {
        let path = root.join(format!("later {number}"));
        // The journal escapes blocks that begin with its magic number.
        let mut content = noise(20_000, number);
        content[..4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
        content[8192..8196].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
        fs::write(&path, content).expect("writes");
        sync(&path);
    }
    fs::rename(root.join("round 2/file 7"), root.join("renamed")).expect("renames");
    fs::remove_file(root.join("round 0/file 8")).expect("removes");
    lsetxattr(root.join("renamed"), "user.new", b"value", XattrFlags::empty()).expect("sets an attribute");
    sync(&root.join("renamed"));
    if is_filled {
        let file = File::create(root.join("filler")).expect("creates");
        let content = noise(64 << 10, 99);
        let full = (0..).find(|number| file.write_all_at(&content, number * (64 << 10)).is_err());
        assert!(full.is_some_and(|number| number > 100));
        file.sync_all().expect("syncs");
    }
}

#[test]
fn files_that_are_only_in_the_journal_are_as_the_kernel_replays_them() {
    for (kind, options) in [
        ("-t ext3 -b 1024", "data=ordered"),
        ("-t ext3 -b 4096", "data=journal"),
        ("-t ext4 -b 4096", "data=ordered"),
        ("-t ext4 -b 1024", "data=journal"),
        ("-t ext4 -b 4096 -O ^metadata_csum", "journal_checksum"),
        (
            "-t ext4 -b 4096 -O ^metadata_csum,^64bit",
            "journal_async_commit,data=writeback",
        ),
        ("-t ext4 -b 4096", "journal_async_commit,data=writeback"),
    ] {
        let what = format!("{kind} {options}");
        let image = Image::new(48 << 20, kind);
        let mounted = image.mount(&format!("{options},commit=300"));
        // Content that is journaled would push the rest out of the journal.
        change(mounted.path(), !options.contains("data=journal"));
        let copy = copy_of(&image);
        drop(mounted);
        let tree = copy.open();
        let remarks = tree.remarks();
        assert_eq!(remarks.len(), 1, "{what}: {remarks:?}");
        assert!(
            remarks[0].starts_with("the journal was replayed ("),
            "{what}: {remarks:?}"
        );
        let ours = seen_by_reader(&tree, Against::Kernel);
        assert!(ours.contains_key(&b"/renamed"[..]));
        // A copy of the superblock does not say that the journal is needed. 48 MiB of larger blocks are one group.
        if kind.contains("-b 1024") {
            let headless = copy_of(&copy);
            headless.file().write_all_at(&[0; 1024], 1024).expect("writes");
            let headless = headless.open();
            assert_eq!(headless.remarks().len(), 2, "{:?}", headless.remarks());
            assert_same(&ours, &seen_by_reader(&headless, Against::Kernel), &what);
        }
        drop(tree);
        let mounted = copy.mount("rw,noatime");
        assert_same(&ours, &seen_by_kernel(mounted.path(), Against::Kernel), &what);
    }
}

/// Returns the offset of the journal's block with this type that has the highest number.
fn last_block(image: &Image, kind: u32) -> u64 {
    let bytes = fs::read(image.path()).expect("reads");
    let blocks = bytes.chunks_exact(1024).zip((0..).step_by(1024));
    let of_log = blocks.filter(|(block, _)| {
        superblock::be32_at(block, 0) == Some(0xc03b_3998) && superblock::be32_at(block, 4) == Some(kind)
    });
    let last = of_log.max_by_key(|(block, _)| superblock::be32_at(block, 8));
    last.expect("the log has such a block").1
}

fn flip(image: &Image, offset_bytes: u64) {
    let mut byte = [0];
    image.file().read_exact_at(&mut byte, offset_bytes).expect("reads");
    image.file().write_all_at(&[byte[0] ^ 1], offset_bytes).expect("writes");
}

#[test]
fn the_log_ends_before_a_damaged_transaction() {
    let image = Image::new(48 << 20, "-t ext4 -b 1024");
    let mounted = image.mount("commit=300");
    for name in ["first", "second", "third"] {
        let path = mounted.path().join(name);
        fs::write(&path, name).expect("writes");
        File::open(&path).and_then(|file| file.sync_all()).expect("syncs");
    }
    let copies = [copy_of(&image), copy_of(&image)];
    drop(mounted);
    // A byte of the last commit block, and one of the last descriptor block.
    for (copy, offset_bytes) in copies
        .iter()
        .zip([last_block(&image, 2) + 60, last_block(&image, 1) + 1000])
    {
        let whole = copy.open();
        assert_eq!(whole.remarks().len(), 1);
        assert!(whole.lookup(whole.root(), b"third").is_ok());
        flip(copy, offset_bytes);
        let tree = copy.open();
        let remarks = tree.remarks();
        assert_eq!(remarks.len(), 2, "{remarks:?}");
        assert!(
            remarks[1].starts_with("the journal is damaged (wrong checksum in transaction"),
            "{remarks:?}"
        );
        assert!(tree.lookup(tree.root(), b"second").is_ok());
        assert!(matches!(tree.lookup(tree.root(), b"third"), Err(Error::NotFound)));
    }
}

#[test]
fn the_superblock_in_the_journal_counts() {
    const LARGE_FILE: u32 = 0x2;
    let image = Image::new(48 << 20, "-t ext4 -b 1024 -O ^large_file,^huge_file");
    let mounted = image.mount("commit=300");
    // The first file of that length changes the superblock.
    let file = File::create(mounted.path().join("large")).expect("creates");
    file.write_all_at(b"end", 3 << 30).expect("writes");
    file.sync_all().expect("syncs");
    let copy = copy_of(&image);
    drop(file);
    drop(mounted);
    let outside = Superblock::read(&copy.file(), 1024).expect("a superblock");
    assert!(!outside.has_ro_compat(LARGE_FILE));
    assert!(copy.open().volume.superblock.has_ro_compat(LARGE_FILE));
}
