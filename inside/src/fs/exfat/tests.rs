//! Images made by mkfs.exfat and written through exfat-fuse (packages exfatprogs and exfat-fuse; FUSE, loop devices,
//! root), damaged images, and random bytes.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::fs::compared::{self, Loop, Mount, Terms, compare, device, run};
use crate::fuzzing;

const MIB: u64 = 1 << 20;

/// exfat-fuse writes times of two seconds.
const TERMS: Terms = Terms {
    time_nanos: 2_000_000_000,
    owners: false,
    links: false,
};

fn write_original(dir: &Path, many: usize) {
    fs::create_dir_all(dir.join("Sub Directory/deep")).unwrap();
    fs::create_dir(dir.join("many")).unwrap();
    for index in 0..many {
        fs::write(dir.join(format!("many/file number {index}.text")), index.to_string()).unwrap();
    }
    let content: Vec<u8> = (0..300_000_u32).flat_map(|index| (index / 3).to_le_bytes()).collect();
    fs::write(dir.join("large.bin"), &content).unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    fs::write(dir.join("Grüße an Zoë 😀.txt"), "héllo").unwrap();
    fs::write(dir.join("Sub Directory/deep/".to_owned() + &"ü".repeat(120)), "long").unwrap();
    // Two files that grow in turn are fragments.
    let mut files = ["one", "two"].map(|name| File::create(dir.join(name)).unwrap());
    for round in 0..20 {
        for file in &mut files {
            file.write_all(&[round; 5000]).unwrap();
        }
    }
}

/// An image of a directory, and that directory.
fn made(size_bytes: u64, cluster_bytes: &str, many: usize) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("original");
    fs::create_dir(&original).unwrap();
    let image = compared::image(dir.path(), size_bytes);
    run("mkfs.exfat", &[&"-L", &"Läb", &"-c", &cluster_bytes, &image]);
    let at = dir.path().join("mount");
    fs::create_dir(&at).unwrap();
    let on = Loop::new(&image);
    run("mount.exfat-fuse", &[&on.0, &at]);
    let mount = Mount(at);
    write_original(&mount.0, many);
    run("cp", &[&"-a", &mount.0.join("."), &original]);
    drop(mount);
    drop(on);
    (dir, image)
}

#[test]
fn a_volume_with_many_files_reads_as_its_original() {
    let (dir, image) = made(32 * MIB, "4096", 1200);
    let exfat = Arc::new(open(device(&image)).unwrap());
    assert_eq!(exfat.remarks(), Vec::<String>::new());
    assert_eq!(exfat.identity().label.as_deref(), Some("Läb"));
    let output = std::process::Command::new("/usr/sbin/blkid")
        .args(["-p", "-o", "value", "-s", "UUID"])
        .arg(&image)
        .output()
        .unwrap();
    assert_eq!(
        exfat.identity().uuid,
        Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    );
    assert_eq!(
        compare(&exfat, exfat.root(), &dir.path().join("original"), &TERMS),
        1200 + 9
    );
    let root = exfat.root();
    let large = exfat.lookup(root, b"LARGE.bin").unwrap();
    assert_eq!(Some(large), exfat.lookup(root, b"large.bin").ok());
    assert!(matches!(exfat.lookup(large, b"x"), Err(Error::NotADirectory)));
}

#[test]
fn small_clusters_and_the_copy_of_the_boot_region_read_as_their_original() {
    let (dir, image) = made(8 * MIB, "512", 60);
    let mut bytes = fs::read(&image).unwrap();
    bytes[64] ^= 1;
    let exfat = Arc::new(open(Arc::new(bytes)).unwrap());
    assert_eq!(exfat.remarks().len(), 1);
    assert_eq!(
        compare(&exfat, exfat.root(), &dir.path().join("original"), &TERMS),
        60 + 9
    );
    let two = exfat.lookup(exfat.root(), b"two").unwrap();
    let (runs, walked) = exfat.parts(&exfat.set(two).unwrap(), u64::MAX);
    walked.unwrap();
    assert!(runs.at(0).is_some_and(|(_, run_bytes)| run_bytes < 100_000));
}

/// Makes the checksum of the entry set at an offset right again.
fn seal_set(bytes: &mut [u8], at: usize) {
    let count = usize::from(bytes[at + 1]) + 1;
    let Some(set) = bytes.get_mut(at..at + count * 32) else {
        return;
    };
    let covered = set.iter().enumerate().filter(|(at, _)| !matches!(at, 2 | 3));
    let sum = covered.fold(0_u16, |sum, (_, byte)| {
        sum.rotate_right(1).wrapping_add(u16::from(*byte))
    });
    set[2..4].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn bytes_never_written_are_zeros_and_zones_count() {
    let (_dir, image) = made(8 * MIB, "4096", 1);
    let mut bytes = fs::read(&image).unwrap();
    let exfat = open(Arc::new(bytes.clone())).unwrap();
    let node = exfat.lookup(ROOT, b"large.bin").unwrap();
    let before = exfat.stat(node).unwrap().modified;
    let at = node.number as usize;
    let hundredths = i128::from(bytes[at + 21]);
    bytes[at + 40..at + 48].copy_from_slice(&5000_u64.to_le_bytes());
    // Two hours east of Greenwich, and 1.5 seconds.
    (bytes[at + 23], bytes[at + 21]) = (0x80 | 8, 150);
    seal_set(&mut bytes, at);
    let exfat = Arc::new(open(Arc::new(bytes)).unwrap());
    let passed = before.duration_since(exfat.stat(node).unwrap().modified).as_millis();
    assert_eq!(passed, 7_200_000 - 1500 + 10 * hundredths);
    let file = exfat.open(node).unwrap();
    let content = compared::content(&*file).unwrap();
    assert_eq!(content[4996..5000], (1249_u32 / 3).to_le_bytes());
    assert!(content.len() == 1_200_000 && content[5000..].iter().all(|byte| *byte == 0));
    assert_eq!(file.next_hole(0).unwrap(), 5000);
    assert_eq!(file.next_data(5000).unwrap(), None);
}

fn fuzz(bytes: &[u8]) {
    fuzzing::files(open(Arc::new(bytes.to_vec())));
}

/// A small image, and the offsets of its entry sets.
static IMAGE: LazyLock<(Vec<u8>, Vec<usize>)> = LazyLock::new(|| {
    let (_dir, image) = made(4 * MIB, "512", 30);
    let bytes = fs::read(image).unwrap();
    let is_set = |at: &usize| bytes[*at] == 0x85 && bytes.get(*at + 32) == Some(&0xc0);
    let sets = (0..bytes.len()).step_by(32).filter(is_set).collect();
    (bytes, sets)
});

/// Makes the checksum of the boot region right again.
fn seal_boot(bytes: &mut [u8]) {
    let sum = boot::checksum(&bytes[..11 * 512]).to_le_bytes();
    bytes[11 * 512..11 * 512 + 4].copy_from_slice(&sum);
}

#[test]
fn seeds() {
    fuzzing::seed_disks("exfat", "exfat", &[Arc::new(IMAGE.0.clone())]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn damaged_sets_and_boot_regions_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..96_usize, any::<u8>()), 1..40),
        boot in prop::collection::vec((64..112_usize, any::<u8>()), 0..3),
    ) {
        let (image, sets) = &*IMAGE;
        let mut bytes = image.clone();
        for (set, at, value) in changes {
            bytes[*set.get(sets) + at] = value;
        }
        for at in sets {
            seal_set(&mut bytes, *at);
        }
        fuzz(&bytes);
        for (at, value) in boot {
            bytes[at] = value;
        }
        seal_boot(&mut bytes);
        fuzz(&bytes);
    }

    #[test]
    fn damaged_volumes_do_no_harm(changes in prop::collection::vec(any::<(u16, u8)>(), 1..80)) {
        let tables_bytes = 2 << 20;
        fuzz(&compared::mutated(&IMAGE.0, tables_bytes, &changes));
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        fuzz(&bytes);
        let mut image = IMAGE.0.clone();
        let start = 1 << 20;
        image[start..start + bytes.len()].copy_from_slice(&bytes);
        fuzz(&image);
    }
}
