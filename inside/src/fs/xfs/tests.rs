//! Tests on file systems that mkfs.xfs and the kernel made (packages xfsprogs, mount). They need root.

mod images;

use std::sync::Arc;

use images::{Image, compare, populate, reflink, run};

use crate::error::Error;
use crate::fs::{FileTree, Node};

#[test]
fn everything_that_the_kernel_writes_is_read() {
    let cases: [(&[&str], bool); 4] = [
        (&["-L", "etikett"], true),
        (&["-m", "crc=0", "-n", "ftype=0"], false),
        (&["-m", "crc=1,reflink=1,rmapbt=1,bigtime=0,inobtcount=0", "-b", "size=1024", "-n", "size=8192"], true),
        (&["-m", "crc=0", "-b", "size=512", "-n", "size=4096", "-i", "size=256"], false),
    ];
    for (args, has_reflinks) in cases {
        let image = Image::new(args);
        {
            let mount = image.mount("noatime");
            populate(mount.path());
            if has_reflinks {
                reflink(mount.path());
            }
        }
        let xfs = image.open();
        assert_eq!(xfs.remarks(), Vec::<String>::new());
        let mount = image.mount("ro,noatime,norecovery");
        assert!(compare(&xfs, mount.path()) > 5_500, "{args:?}");
    }
}

#[test]
fn the_identity_is_that_of_blkid() {
    let image = Image::new(&["-L", "etikett", "-m", "uuid=01234567-89ab-cdef-0123-456789abcdef"]);
    let identity = image.open().identity();
    assert_eq!(identity.label.as_deref(), Some("etikett"));
    assert_eq!(identity.uuid.as_deref(), Some("01234567-89ab-cdef-0123-456789abcdef"));
    let path = image.path();
    run("xfs_admin", &["-U", "fedcba98-7654-3210-fedc-ba9876543210", path.to_str().unwrap()]);
    let xfs = image.open();
    assert_eq!(xfs.identity().uuid.as_deref(), Some("fedcba98-7654-3210-fedc-ba9876543210"));
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
    assert!(xfs.stat(Node { space: 0, number: u64::MAX }).is_err());
}
