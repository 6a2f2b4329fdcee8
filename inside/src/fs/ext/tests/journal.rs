//! Journals that the kernel wrote and did not write back: an image is copied while it is mounted.

use super::*;

/// A copy of an image as it is while the kernel uses it.
fn copy_of(image: &Image) -> Image {
    let dir = tempfile::tempdir().expect("a directory");
    let copy = Image { dir };
    fs::create_dir(copy.mount_point()).expect("a directory");
    let args = ["--sparse=always".into(), image.path(), copy.path()];
    run("cp", &args.each_ref().map(|arg: &PathBuf| arg.as_os_str()));
    copy
}

/// Changes files so that metadata is in the journal, then freed, then used for content.
fn change(root: &Path) {
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
        let image = Image::new(200 << 20, kind);
        let mounted = image.mount(&format!("{options},commit=300"));
        change(mounted.path());
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
        // A copy without its primary superblock does not say that the journal is needed.
        let headless = copy_of(&copy);
        headless.file().write_all_at(&[0; 1024], 1024).expect("writes");
        let headless = headless.open();
        assert_eq!(headless.remarks().len(), 2, "{:?}", headless.remarks());
        assert_same(&ours, &seen_by_reader(&headless, Against::Kernel), &what);
        drop(tree);
        let mounted = copy.mount("rw,noatime");
        assert_same(&ours, &seen_by_kernel(mounted.path(), Against::Kernel), &what);
    }
}

#[test]
fn fast_commits_are_reported() {
    let image = Image::new(200 << 20, "-t ext4 -b 4096 -O fast_commit");
    let mounted = image.mount("commit=300");
    for number in 0..5 {
        let path = mounted.path().join(format!("file {number}"));
        fs::write(&path, noise(5000, number)).expect("writes");
        File::open(&path).and_then(|file| file.sync_all()).expect("syncs");
    }
    let copy = copy_of(&image);
    drop(mounted);
    let remarks = copy.open().remarks();
    assert!(
        remarks.iter().any(|remark| remark.contains("fast commits")),
        "{remarks:?}"
    );
}
