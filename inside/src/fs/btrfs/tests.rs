//! Tests on file systems that mkfs.btrfs and the kernel made (packages btrfs-progs, mount). They need root.

mod damage;
mod hostile;
mod images;
mod logs;
mod profiles;

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::Arc;

use images::{Image, compare, populate, run};

use super::super::{FileTree, Node};
use super::open;

#[test]
fn mkfs_with_a_directory_shows_its_files() {
    let source = tempfile::tempdir().unwrap();
    populate(source.path());
    // mkfs writes other numbers of links and sizes of directories than the kernel would, so the kernel is asked.
    for args in [&["--csum", "crc32c"][..], &["--csum", "sha256", "-n", "4096"]] {
        let path = source.path().to_str().unwrap();
        let image = Image::new(
            1,
            128 << 20,
            &[args, &["-q", "-L", "etikett", "--rootdir", path]].concat(),
        );
        let fs = image.open();
        assert_eq!(fs.identity().label.as_deref(), Some("etikett"));
        assert_eq!(fs.identity().uuid, Some(image.uuid()));
        assert_eq!(fs.remarks(), Vec::<String>::new());
        let mount = image.mount("ro,noatime");
        assert!(compare(&fs, mount.path()) > 150);
    }
}

#[test]
fn everything_that_the_kernel_writes_is_read() {
    let cases: [(&[&str], &str); 5] = [
        (&["-O", "no-holes"], "compress-force=zlib"),
        (
            &["-O", "^no-holes", "--csum", "xxhash"],
            "compress-force=lzo,max_inline=4095",
        ),
        (&["--csum", "blake2", "-m", "single"], "compress-force=zstd"),
        (&["--mixed", "-n", "4096", "-s", "4096"], "nodatacow"),
        (&["-n", "65536"], "max_inline=0"),
    ];
    for (args, options) in cases {
        let image = Image::new(1, 128 << 20, args);
        {
            let mount = image.mount(&format!("noatime,{options}"));
            populate(mount.path());
        }
        let fs = image.open();
        let mount = image.mount("ro,noatime");
        assert!(compare(&fs, mount.path()) > 150, "{args:?} {options}");
    }
}

#[test]
fn a_large_directory_and_deep_paths_are_read() {
    let image = Image::new(1, 128 << 20, &["-n", "4096", "-s", "4096"]);
    {
        let mount = image.mount("noatime");
        let many = mount.path().join("many");
        fs::create_dir(&many).unwrap();
        for number in 0..5000 {
            fs::write(many.join(format!("file with number {number}")), number.to_string()).unwrap();
        }
        let mut deep = mount.path().to_owned();
        for level in 0..100 {
            deep.push(format!("level {level}"));
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("bottom"), "reached").unwrap();
    }
    let fs = image.open();
    let mount = image.mount("ro,noatime");
    assert_eq!(compare(&fs, mount.path()), 5102);
    let many = fs.lookup(fs.root(), b"many").unwrap();
    let mut seen = 0;
    fs.list(many, &mut |_| {
        seen += 1;
        if seen < 10 {
            std::ops::ControlFlow::Continue(())
        } else {
            std::ops::ControlFlow::Break(())
        }
    })
    .unwrap();
    assert_eq!(seen, 10);
    assert!(matches!(fs.lookup(many, b"absent"), Err(crate::Error::NotFound)));
}

#[test]
fn subvolumes_snapshots_and_reflinks_are_read() {
    let image = Image::new(1, 128 << 20, &[]);
    let default;
    {
        let mount = image.mount("noatime");
        let top = mount.path();
        let btrfs = |args: &[&str]| run("btrfs", &[&["-q", "subvolume"], args].concat());
        let path = |path: &str| top.join(path).to_str().unwrap().to_owned();
        fs::create_dir(top.join("dir")).unwrap();
        btrfs(&["create", &path("dir/sub")]);
        btrfs(&["create", &path("dir/sub/inner")]);
        populate(&top.join("dir/sub"));
        fs::write(top.join("dir/sub/inner/file"), "inside").unwrap();
        btrfs(&["snapshot", "-r", &path("dir/sub"), &path("before")]);
        fs::write(top.join("dir/sub/later"), "not in the snapshot").unwrap();
        btrfs(&["snapshot", &path("dir/sub"), &path("after")]);
        fs::write(top.join("after/only here"), "x").unwrap();
        btrfs(&["create", &path("gone")]);
        btrfs(&["delete", &path("gone")]);
        run("btrfs", &["subvolume", "set-default", &path("dir/sub/inner")]);
        let original = fs::File::open(top.join("dir/sub/random")).unwrap();
        let mut copy = fs::File::create(top.join("reflink")).unwrap();
        rustix::fs::ioctl_ficlone(&copy, &original).unwrap();
        std::io::Seek::seek(&mut copy, std::io::SeekFrom::Start(0)).unwrap();
        copy.write_all_at(b"changed in the middle", 123_456).unwrap();
        default = std::os::unix::fs::MetadataExt::ino(&fs::metadata(top.join("dir/sub/inner")).unwrap());
    }
    assert_eq!(default, 256);
    let fs = image.open();
    assert_eq!(
        fs.remarks(),
        ["the default subvolume is not the top one but number 257, path dir/sub/inner"]
    );
    let named = ["dir", "sub", "inner"]
        .iter()
        .try_fold(fs.root(), |at, name| fs.lookup(at, name.as_bytes()));
    assert_eq!(fs.default_root(), named.unwrap());
    let mount = image.mount("ro,noatime,subvolid=5");
    assert!(compare(&fs, mount.path()) > 450);
    // The empty directory that a snapshot has in place of a subvolume.
    let before = fs.lookup(fs.root(), b"before").unwrap();
    let stub = fs.lookup(before, b"inner").unwrap();
    assert_eq!(stub.space, before.space);
    assert!(matches!(fs.lookup(stub, b"file"), Err(crate::Error::NotFound)));
    assert!(matches!(Arc::clone(&fs).open(stub), Err(crate::Error::NotAFile)));
}

#[test]
fn a_sparse_file_of_many_gib_and_reserved_space_are_read_with_their_holes() {
    let image = Image::new(1, 128 << 20, &[]);
    {
        let mount = image.mount("noatime");
        let file = fs::File::create(mount.path().join("sparse")).unwrap();
        file.write_all_at(b"start", 0).unwrap();
        file.write_all_at(&[7; 10_000], 5 << 30).unwrap();
        file.set_len(6 << 40).unwrap();
        let file = fs::File::create(mount.path().join("reserved")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 8 << 20).unwrap();
        file.write_all_at(&[9; 70_000], 3 << 20).unwrap();
        let file = fs::File::create(mount.path().join("beyond")).unwrap();
        file.write_all_at(&[1; 20_000], 0).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, 8 << 20).unwrap();
        file.set_len(12_345).unwrap();
    }
    let fs = image.open();
    let mount = image.mount("ro,noatime");
    assert_eq!(compare(&fs, mount.path()), 3);
}

#[test]
fn wrong_kinds_of_files_are_errors() {
    let image = Image::new(1, 128 << 20, &["-q"]);
    {
        let mount = image.mount("noatime");
        fs::write(mount.path().join("file"), "content").unwrap();
        symlink("target", mount.path().join("link")).unwrap();
    }
    let fs = image.open();
    let (file, link) = (
        fs.lookup(fs.root(), b"file").unwrap(),
        fs.lookup(fs.root(), b"link").unwrap(),
    );
    let open = |node| Arc::clone(&fs).open(node).map(|_| ());
    assert!(matches!(open(fs.root()), Err(crate::Error::NotAFile)));
    assert!(matches!(open(link), Err(crate::Error::NotAFile)));
    assert!(matches!(fs.lookup(file, b"x"), Err(crate::Error::NotADirectory)));
    assert!(fs.read_link(file).is_err());
    let content = Arc::clone(&fs).open(file).unwrap();
    assert!(content.read_at(1, &mut [0; 7]).is_err(), "beyond the end");
    assert!(content.write_at(0, b"x").is_err());
    let unknown = Node { space: 5, number: 9999 };
    assert!(fs.stat(unknown).is_err());
    assert!(
        fs.stat(Node {
            space: 1234,
            number: 256
        })
        .is_err()
    );
    assert!(open_nothing().is_err());
    assert!(Path::new("/proc/filesystems").exists());
}

/// Finds two names whose hashes are equal, so that they share an item.
fn colliding(prefix: &str) -> [String; 2] {
    let mut seen = std::collections::HashMap::new();
    for number in 0_u32.. {
        let name = format!("{prefix}{:x}", number.wrapping_mul(0x9e37_79b1));
        if let Some(other) = seen.insert(super::key::name_hash(name.as_bytes()), name.clone()) {
            return [name, other];
        }
    }
    unreachable!("there are more names than hashes")
}

#[test]
fn names_with_equal_hashes_are_told_apart() {
    let image = Image::new(1, 128 << 20, &[]);
    let files = colliding("file ");
    {
        let mount = image.mount("noatime");
        for name in &files {
            fs::write(mount.path().join(name), name).unwrap();
        }
        for name in colliding("user.") {
            let value = name.as_bytes();
            rustix::fs::lsetxattr(
                mount.path().join(&files[0]),
                &name,
                value,
                rustix::fs::XattrFlags::empty(),
            )
            .unwrap();
        }
    }
    let fs = image.open();
    let mount = image.mount("ro,noatime");
    assert_eq!(compare(&fs, mount.path()), 2);
}

#[test]
fn a_changed_fsid_is_that_of_the_identity() {
    let image = Image::new(1, 128 << 20, &[]);
    populate(image.mount("noatime").path());
    let before = image.uuid();
    run("btrfstune", &["-f", "-m", image.paths[0].to_str().unwrap()]);
    assert_ne!(image.uuid(), before);
    let fs = image.open();
    assert_eq!(fs.identity().uuid, Some(image.uuid()));
    let mount = image.mount("ro,noatime");
    assert!(compare(&fs, mount.path()) > 150);
}

#[test]
fn a_converted_ext4_is_read() {
    let source = tempfile::tempdir().unwrap();
    populate(source.path());
    let image = Image::new(1, 128 << 20, &[]);
    let path = image.paths[0].to_str().unwrap();
    run(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-d",
            source.path().to_str().unwrap(),
            path,
        ],
    );
    run("btrfs-convert", &[path]);
    let fs = image.open();
    let mount = image.mount("ro,noatime");
    assert!(compare(&fs, mount.path()) > 150);
}

fn open_nothing() -> crate::Result<super::Btrfs> {
    open(Vec::new())
}
