//! Tests on file systems that mkfs.xfs and the kernel made (packages xfsprogs, mount). They need root.

mod damage;
pub(super) mod images;

use std::ops::ControlFlow;
use std::sync::Arc;

use images::{Image, append_durably, compare, noise, populate_with, reflink, run};

use crate::error::Error;
use crate::fs::{FileKind, FileTree, Node};

#[test]
fn everything_that_the_kernel_writes_is_read() {
    let cases: [(&[&str], u32); 2] = [
        (&["-i", "nrext64=1"], 5000),
        (
            &[
                "-m",
                "rmapbt=1,bigtime=0,inobtcount=0",
                "-b",
                "size=1024",
                "-n",
                "size=8192",
                "-i",
                "nrext64=0",
            ],
            1000,
        ),
    ];
    for (args, many) in cases {
        let image = Image::new(args);
        {
            let mount = image.mount("noatime");
            populate_with(mount.path(), many);
            reflink(mount.path());
        }
        let xfs = image.open();
        assert_eq!(xfs.remarks(), Vec::<String>::new());
        let mount = image.mount("ro,noatime");
        assert!(compare(&xfs, mount.path()) > 550 + many as usize, "{args:?}");
    }
}

/// Kernels without `CONFIG_XFS_SUPPORT_V4` do not mount version 4, so mkfs.xfs writes the files and xfs_db the
/// attributes.
#[test]
fn version_4_is_read() {
    let cases: [&[&str]; 3] = [
        &["-m", "crc=0", "-n", "ftype=0"],
        &[
            "-m",
            "crc=0",
            "-b",
            "size=512",
            "-n",
            "size=4096,ftype=1",
            "-i",
            "size=256",
        ],
        &["-m", "crc=0", "-b", "size=1024", "-n", "size=8192", "-l", "version=1"],
    ];
    for args in cases {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::write(dir.path().join("noise"), noise(300_001, 7)).unwrap();
        let content = dir.path().join("noise");
        let mut prototype = String::from("/stand/diskboot\n0 0\nd--755 3 4\n");
        let (long, content) = ("y/".repeat(300), content.to_str().unwrap());
        prototype += &format!("file -u-644 1000 4000000000 {content}\nshort l--777 0 0 file\nlong l--777 0 0 {long}\n");
        prototype += "fifo p--600 0 0\nchar c--640 0 0 259 70000\ndisk b--640 0 0 8 1\nmany d--755 0 0\n";
        let count = 3000;
        for number in 0..count {
            prototype += &format!("file-with-the-number-{number} ---600 0 0 /dev/null\n");
        }
        prototype += "$\n$\n";
        let path = dir.path().join("prototype");
        std::fs::write(&path, prototype).unwrap();
        let image = Image::new(&[args, &["-p", path.to_str().unwrap()]].concat());
        let disk = image.path();
        for (name, len) in [("small", "10"), ("large", "5000")] {
            let command = format!("attr_set -u {name} -v {len}");
            run(
                "xfs_db",
                &["-x", "-c", "path /file", "-c", &command, disk.to_str().unwrap()],
            );
        }
        let xfs = image.open();
        assert_eq!(xfs.remarks(), Vec::<String>::new(), "{args:?}");
        let find = |name: &[u8]| xfs.lookup(xfs.root(), name).unwrap();
        let stat = xfs.stat(find(b"file")).unwrap();
        assert_eq!(
            (stat.mode, stat.uid, stat.gid, stat.size_bytes),
            (0o4644, 1000, 4_000_000_000, 300_001)
        );
        let mut bytes = vec![0; 300_001];
        Arc::clone(&xfs)
            .open(find(b"file"))
            .unwrap()
            .read_at(0, &mut bytes)
            .unwrap();
        assert!(bytes == noise(300_001, 7), "{args:?}");
        assert_eq!(xfs.read_link(find(b"short")).unwrap(), b"file");
        assert_eq!(xfs.read_link(find(b"long")).unwrap(), long.as_bytes());
        assert_eq!(xfs.stat(find(b"char")).unwrap().device, (259, 70_000));
        assert_eq!(xfs.stat(find(b"disk")).unwrap().kind, FileKind::BlockDevice);
        assert_eq!(xfs.stat(find(b"fifo")).unwrap().kind, FileKind::Fifo);
        let many = find(b"many");
        let mut names = 0;
        xfs.list(many, &mut |entry| {
            names += 1;
            assert_eq!(entry.kind.is_some(), !args.contains(&"ftype=0"));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(names, count, "{args:?}");
        let xattrs = xfs.xattrs(find(b"file")).unwrap();
        let mut lengths: Vec<_> = xattrs
            .iter()
            .map(|xattr| (xattr.name.clone(), xattr.value.len()))
            .collect();
        lengths.sort();
        assert_eq!(lengths, [(b"user.large".to_vec(), 5000), (b"user.small".to_vec(), 10)]);
    }
}

#[test]
fn the_log_is_replayed_as_the_kernel_does_it() {
    for args in [
        &["-i", "size=2048", "-l", "su=32k"][..],
        &["-m", "rmapbt=1", "-b", "size=1024", "-n", "size=8192"],
    ] {
        let image = Image::new(args);
        let copy = {
            let mount = image.mount("noatime");
            let top = mount.path();
            std::fs::create_dir(top.join("before")).unwrap();
            for number in 0..300 {
                std::fs::write(top.join(format!("before/{number}")), noise(3000, number)).unwrap();
            }
            // The first part is written to its final places, the second to the log only.
            run("sync", &["-f", top.to_str().unwrap()]);
            populate_with(top, 1000);
            reflink(top);
            std::fs::remove_dir_all(top.join("before")).unwrap();
            std::fs::rename(top.join("few"), top.join("block/few")).unwrap();
            append_durably(&top.join("noise"), b"the end");
            run("xfs_io", &["-x", "-c", "shutdown -f", top.to_str().unwrap()]);
            drop(mount);
            image.copy()
        };
        let xfs = image.open();
        let remarks = xfs.remarks();
        assert!(
            remarks[0].starts_with("the log was replayed in memory ("),
            "{remarks:?}"
        );
        let mount = copy.mount("noatime");
        assert!(compare(&xfs, mount.path()) > 1_500, "{args:?}");
    }
}

#[test]
fn the_identity_is_that_of_blkid() {
    let image = Image::new(&["-L", "etikett", "-m", "uuid=01234567-89ab-cdef-0123-456789abcdef"]);
    let identity = image.open().identity();
    assert_eq!(identity.label.as_deref(), Some("etikett"));
    assert_eq!(identity.uuid.as_deref(), Some("01234567-89ab-cdef-0123-456789abcdef"));
    let path = image.path();
    run(
        "xfs_admin",
        &["-U", "fedcba98-7654-3210-fedc-ba9876543210", path.to_str().unwrap()],
    );
    let xfs = image.open();
    assert_eq!(
        xfs.identity().uuid.as_deref(),
        Some("fedcba98-7654-3210-fedc-ba9876543210")
    );
    assert!(xfs.stat(xfs.root()).is_ok(), "metadata bears the old UUID");
}

#[test]
fn wrong_kinds_of_files_are_errors() {
    let image = Image::new(&[]);
    {
        let mount = image.mount("noatime");
        std::fs::write(mount.path().join("file"), "content").unwrap();
    }
    let xfs = image.open();
    let file = xfs.lookup(xfs.root(), b"file").unwrap();
    assert!(matches!(Arc::clone(&xfs).open(xfs.root()), Err(Error::NotAFile)));
    assert!(matches!(xfs.lookup(file, b"x"), Err(Error::NotADirectory)));
    assert!(matches!(xfs.lookup(xfs.root(), b"absent"), Err(Error::NotFound)));
    assert!(xfs.read_link(file).is_err());
    let content = Arc::clone(&xfs).open(file).unwrap();
    assert!(content.read_at(1, &mut [0; 7]).is_err(), "beyond the end");
    assert!(xfs.stat(Node { space: 0, number: 5 }).is_err());
    assert!(
        xfs.stat(Node {
            space: 0,
            number: u64::MAX
        })
        .is_err()
    );
}
