//! Images made by genisoimage (package genisoimage), damaged images, and random bytes.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::fs::compared::{self, Terms, compare, device, run};
use crate::fuzzing;

fn write_original(dir: &Path, many: usize) {
    let deep = dir.join("1/2/3/4/5/6/7/8/9/10");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("deep file"), "deep").unwrap();
    fs::create_dir(dir.join("many")).unwrap();
    for index in 0..many {
        fs::write(dir.join(format!("many/file number {index}.text")), index.to_string()).unwrap();
    }
    let content: Vec<u8> = (0..300_000_u32).flat_map(|index| (index / 3).to_le_bytes()).collect();
    fs::write(dir.join("large.bin"), &content).unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    fs::write(dir.join("Grüße an Zoë 😀.txt"), "héllo").unwrap();
    fs::write(dir.join("x".repeat(250)), "long name").unwrap();
    fs::write(dir.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(dir.join("script"), fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(dir.join("script"), Some(1234), Some(70_000)).unwrap();
    symlink("../large.bin", dir.join("1/link")).unwrap();
    symlink("/absolute/./../path", dir.join("absolute")).unwrap();
    // genisoimage writes a wrong length beyond 255 bytes in a field.
    symlink("component/".repeat(25) + "end", dir.join("long link")).unwrap();
    fs::hard_link(dir.join("large.bin"), dir.join("hard")).unwrap();
    run("mkfifo", &[&dir.join("fifo")]);
    run("mknod", &[&dir.join("device"), &"b", &"259", &"70"]);
}

/// An image of a directory.
fn made(dir: &Path, original: &Path, options: &[&str]) -> PathBuf {
    let image = dir.join("image.iso");
    let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"-quiet", &"-input-charset", &"utf-8"];
    args.extend(options.iter().map(|option| option as &dyn AsRef<std::ffi::OsStr>));
    args.extend([
        &"-V" as &dyn AsRef<std::ffi::OsStr>,
        &"Lab disc",
        &"-o",
        &image,
        &original,
    ]);
    run("genisoimage", &args);
    image
}

fn blkid(image: &Path, tag: &str) -> Option<String> {
    let output = std::process::Command::new("/usr/sbin/blkid")
        .args(["-p", "-o", "value", "-s", tag])
        .arg(image)
        .output()
        .unwrap();
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

#[test]
fn rock_ridge_reads_as_its_original() {
    for options in [&["-R"][..], &["-R", "-J", "-joliet-long"]] {
        let dir = tempfile::tempdir().unwrap();
        let original = dir.path().join("original");
        write_original(&original, 4100);
        let image = made(dir.path(), &original, options);
        let iso = Arc::new(open(device(&image)).unwrap());
        assert_eq!(iso.names, Names::Rock(0));
        assert_eq!(iso.remarks(), Vec::<String>::new());
        assert_eq!(iso.identity().uuid, blkid(&image, "UUID"));
        assert_eq!(iso.identity().label, blkid(&image, "LABEL"));
        // genisoimage makes a directory for those that are moved because of their depth.
        fs::create_dir(original.join("rr_moved")).unwrap();
        let moved = iso.lookup(iso.root(), b"rr_moved").unwrap();
        assert!(compared::names(&*iso, moved).is_empty());
        let time = std::time::SystemTime::from(iso.stat(moved).unwrap().modified);
        File::open(original.join("rr_moved"))
            .unwrap()
            .set_modified(time)
            .unwrap();
        fs::set_permissions(
            original.join("rr_moved"),
            fs::Permissions::from_mode(iso.stat(moved).unwrap().mode.into()),
        )
        .unwrap();
        let terms = Terms {
            time_nanos: 1_000_000_000,
            owners: true,
            links: true,
        };
        assert_eq!(compare(&iso, iso.root(), &original, &terms), 4100 + 24);
        let stat = |name: &[u8]| iso.stat(iso.lookup(iso.root(), name).unwrap()).unwrap();
        assert_eq!(
            (stat(b"device").kind, stat(b"device").device),
            (FileKind::BlockDevice, (259, 70))
        );
        assert_eq!(stat(b"fifo").kind, FileKind::Fifo);
        assert!(matches!(iso.lookup(iso.root(), b"LARGE.BIN"), Err(Error::NotFound)));
    }
}

#[test]
fn joliet_and_plain_names_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("original");
    fs::create_dir_all(original.join("Sub Dir")).unwrap();
    fs::write(original.join("Sub Dir/Grüße an Zoë.txt"), "hello").unwrap();
    fs::write(original.join("plain.txt"), "plain").unwrap();
    let image = made(dir.path(), &original, &["-J"]);
    let iso = Arc::new(open(device(&image)).unwrap());
    assert_eq!(iso.names, Names::Joliet);
    assert_eq!(iso.identity().label, blkid(&image, "LABEL"));
    let terms = Terms {
        time_nanos: 1_000_000_000,
        ..Terms::default()
    };
    assert_eq!(compare(&iso, iso.root(), &original, &terms), 3);
    assert!(iso.lookup(iso.root(), b"PLAIN.TXT").is_ok());

    let image = made(dir.path(), &original, &[]);
    let iso = Arc::new(open(device(&image)).unwrap());
    assert_eq!(iso.names, Names::Plain);
    let names: Vec<_> = compared::names(&*iso, iso.root())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, [b"plain.txt".to_vec(), b"sub_dir".to_vec()]);
    let file = iso.lookup(iso.root(), b"plain.txt").unwrap();
    assert_eq!(compared::content(&*iso.open(file).unwrap()).unwrap(), b"plain");
}

#[test]
fn a_file_of_several_extents_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("original");
    fs::create_dir(&original).unwrap();
    fs::write(original.join("other"), "other").unwrap();
    // A real one has more than 4 GiB: the record of a small file is divided by hand.
    let content: Vec<u8> = (0..10_000_u32).map(|index| (index / 40) as u8).collect();
    fs::write(original.join("large"), &content).unwrap();
    fs::write(original.join("largf"), "replaced").unwrap();
    let mut bytes = fs::read(made(dir.path(), &original, &[])).unwrap();
    let iso = open(Arc::new(bytes.clone())).unwrap();
    let [first, second] = [&b"large"[..], b"largf"].map(|name| iso.lookup(iso.root(), name).unwrap().number as usize);
    let block = u32::from_le_bytes(bytes[first + 2..first + 6].try_into().unwrap());
    bytes[first + 10..first + 14].copy_from_slice(&4096_u32.to_le_bytes());
    bytes[first + 25] |= 0x80;
    bytes[second + 2..second + 6].copy_from_slice(&(block + 2).to_le_bytes());
    bytes[second + 10..second + 14].copy_from_slice(&5904_u32.to_le_bytes());
    let iso = Arc::new(open(Arc::new(bytes)).unwrap());
    assert_eq!(compared::names(&*iso, iso.root()).len(), 2);
    let node = iso.lookup(iso.root(), b"large").unwrap();
    assert_eq!(iso.stat(node).unwrap().size_bytes, 10_000);
    assert!(compared::content(&*iso.open(node).unwrap()).unwrap() == content);
}

fn fuzz(bytes: &[u8]) {
    fuzzing::files(open(Arc::new(bytes.to_vec())));
}

/// Small images with Rock Ridge and with Joliet.
static IMAGES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("original");
    write_original(&original, 20);
    let joliet = ["-J", "-joliet-long", "-D"];
    [&["-R"][..], &joliet].map(|options| fs::read(made(dir.path(), &original, options)).unwrap())
});

#[test]
fn seeds() {
    for (name, image) in ["rock-ridge", "joliet"].iter().zip(&*IMAGES) {
        fuzzing::seed_disks("iso9660", name, &[Arc::new(image.clone())]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_images_do_no_harm(changes in prop::collection::vec(any::<(u16, u8)>(), 1..80)) {
        for image in &*IMAGES {
            // After the empty sectors at the start come descriptors, path tables and directories.
            let mut bytes = image[..32 << 10].to_vec();
            bytes.extend(compared::mutated(&image[32 << 10..], 80 << 10, &changes));
            fuzz(&bytes);
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..4096), sector in 16..60_usize) {
        fuzz(&bytes);
        let mut image = IMAGES[0].clone();
        image[sector * 2048..sector * 2048 + bytes.len()].copy_from_slice(&bytes);
        fuzz(&image);
    }
}
