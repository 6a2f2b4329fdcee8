//! Images made by mkfs.vfat and mtools (packages dosfstools and mtools), damaged images, and random bytes.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::fs::compared::{self, Terms, compare, device, run};
use crate::fuzzing;

const MIB: u64 = 1 << 20;

/// FAT has times of two seconds.
const TERMS: Terms = Terms {
    time_nanos: 2_000_000_000,
    owners: false,
    links: false,
};

fn write_original(dir: &Path, many: usize) {
    fs::create_dir_all(dir.join("Sub Directory/deep/deeper")).unwrap();
    fs::create_dir(dir.join("many")).unwrap();
    for index in 0..many {
        fs::write(dir.join(format!("many/f{index}.txt")), index.to_string()).unwrap();
    }
    let content: Vec<u8> = (0..300_000_u32).flat_map(|index| (index / 3).to_le_bytes()).collect();
    fs::write(dir.join("large.bin"), &content).unwrap();
    fs::write(dir.join("SHORT.TXT"), "8.3").unwrap();
    fs::write(dir.join("lower.txt"), "8.3 in lower case").unwrap();
    fs::write(dir.join("MiXed.TxT"), "not 8.3").unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    fs::write(dir.join("Grüße an Zoë.txt"), "héllo").unwrap();
    fs::write(dir.join("σ"), "0xe5 in code page 437").unwrap();
    fs::write(
        dir.join("Sub Directory/deep/deeper/x".to_owned() + &"y".repeat(200)),
        "long",
    )
    .unwrap();
    fs::write(dir.join(".hidden"), "dot").unwrap();
}

/// An image of a directory, and that directory.
fn made(size_bytes: u64, mkfs: &[&str], many: usize) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("original");
    write_original(&original, many);
    let image = compared::image(dir.path(), size_bytes);
    let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"-n", &"LAB VOL", &"-i", &"1a2b3c4d"];
    args.extend(mkfs.iter().map(|arg| arg as &dyn AsRef<std::ffi::OsStr>));
    args.push(&image);
    run("mkfs.vfat", &args);
    let mut args: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"-s", &"-m", &"-i", &image];
    let entries: Vec<_> = fs::read_dir(&original)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    args.extend(entries.iter().map(|path| path as &dyn AsRef<std::ffi::OsStr>));
    args.push(&"::/");
    run("mcopy", &args);
    (dir, image)
}

fn check(size_bytes: u64, mkfs: &[&str], many: usize, width: Width) {
    let (dir, image) = made(size_bytes, mkfs, many);
    let fat = Arc::new(open(device(&image)).unwrap());
    assert_eq!(fat.boot.width, width);
    assert_eq!(fat.remarks(), Vec::<String>::new());
    assert_eq!(fat.identity().uuid.as_deref(), Some("1A2B-3C4D"));
    assert_eq!(fat.identity().label.as_deref(), Some("LAB VOL"));
    assert_eq!(
        compare(&fat, fat.root(), &dir.path().join("original"), &TERMS),
        many + 13
    );
    let large = fat.lookup(fat.root(), b"LARGE.BIN").unwrap();
    assert_eq!(Some(large), fat.lookup(fat.root(), b"large.bin").ok());
    assert!(matches!(fat.lookup(fat.root(), b"missing"), Err(Error::NotFound)));
    assert!(matches!(fat.lookup(large, b"x"), Err(Error::NotADirectory)));
}

#[test]
fn a_fat12_reads_as_its_original() {
    check(4 * MIB, &["-F", "12"], 40, Width::Fat12);
}

#[test]
fn a_fat16_reads_as_its_original() {
    check(32 * MIB, &["-F", "16"], 100, Width::Fat16);
}

#[test]
fn a_fat32_with_many_files_reads_as_its_original() {
    check(64 * MIB, &["-F", "32", "-s", "1"], 4100, Width::Fat32);
}

#[test]
fn fragments_deleted_entries_and_a_name_that_starts_with_0xe5_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let image = compared::image(dir.path(), 2 * MIB);
    run("mkfs.vfat", &[&"-F", &"12", &"-s", &"1", &image]);
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.path().join("new");
        fs::write(&path, bytes).unwrap();
        run("mcopy", &[&"-o", &"-i", &image, &path, &format!("::{name}")]);
    };
    for index in 0..60 {
        put(&format!("F{index}"), &[index; 512]);
    }
    for index in (0..60).step_by(2) {
        run("mdel", &[&"-i", &image, &format!("::F{index}")]);
    }
    let content: Vec<u8> = (0..40_000_u32).map(|index| (index / 7) as u8).collect();
    put("FRAGMENT", &content);
    put("SIGMA", b"sigma");
    // mtools knows no characters beyond 16 bits: the two units of the emoji take the place of two others.
    put("smile \u{e001}\u{e002}.txt", b"smile");
    let mut bytes = fs::read(&image).unwrap();
    let at = bytes.windows(11).position(|name| name == b"SIGMA      ").unwrap();
    bytes[at] = 0x05;
    let at = bytes
        .windows(4)
        .position(|units| units == [0x01, 0xe0, 0x02, 0xe0])
        .unwrap();
    bytes[at..at + 4].copy_from_slice(&[0x3d, 0xd8, 0x00, 0xde]);
    let fat = Arc::new(open(Arc::new(bytes)).unwrap());
    let names = compared::names(&*fat, fat.root());
    assert_eq!(names.len(), 33);
    assert!(names.iter().any(|(name, _)| name == "smile 😀.txt".as_bytes()));
    let node = fat.lookup(fat.root(), b"fragment").unwrap();
    let (runs, walked) = chain(&*fat, fat.raw(node).unwrap().first_cluster(Width::Fat12), 40_000);
    walked.unwrap();
    assert_eq!(runs.size_bytes(), 40_448);
    let file = Arc::clone(&fat).open(node).unwrap();
    assert_eq!(compared::content(&*file).unwrap(), content);
    let node = fat.lookup(fat.root(), "σIGMA".as_bytes()).unwrap();
    assert_eq!(compared::content(&*fat.open(node).unwrap()).unwrap(), b"sigma");
}

#[test]
fn a_loop_of_clusters_is_damage_after_its_start() {
    let (_dir, image) = made(64 * MIB, &["-F", "32", "-s", "1"], 4);
    let mut bytes = fs::read(image).unwrap();
    let fat = open(Arc::new(bytes.clone())).unwrap();
    let node = fat.lookup(ROOT, b"large.bin").unwrap();
    let first = fat.raw(node).unwrap().first_cluster(Width::Fat32);
    for table in fat.tables {
        let at = (table + u64::from(first + 5) * 4) as usize;
        bytes[at..at + 4].copy_from_slice(&(first + 2).to_le_bytes());
    }
    let fat = Arc::new(open(Arc::new(bytes)).unwrap());
    let file = fat.open(node).unwrap();
    assert_eq!(file.size_bytes(), 1_200_000);
    let mut head = [0; 3072];
    file.read_at(0, &mut head).unwrap();
    assert_eq!(head[3068..], 255_u32.to_le_bytes());
    let error = file.read_at(100_000, &mut head).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}

#[test]
fn the_second_table_and_the_boot_sector_s_copy_are_used() {
    let (dir, image) = made(64 * MIB, &["-F", "32", "-s", "1"], 4);
    let mut bytes = fs::read(image).unwrap();
    let fat = open(Arc::new(bytes.clone())).unwrap();
    let [first, second] = fat.tables.map(|at| at as usize);
    bytes[first..second].fill(0);
    bytes[..512].fill(0);
    let fat = Arc::new(open(Arc::new(bytes)).unwrap());
    assert_eq!(compare(&fat, fat.root(), &dir.path().join("original"), &TERMS), 17);
    assert_eq!(fat.remarks().len(), 2, "{:?}", fat.remarks());
}

/// Counts the reads of a device.
struct Counting(Vec<u8>, std::sync::atomic::AtomicU32);

impl crate::device::Device for Counting {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0.read_at(offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
}

#[test]
fn content_in_one_piece_is_read_at_once() {
    let (_dir, image) = made(64 * MIB, &["-F", "32", "-s", "1"], 4);
    let device = Arc::new(Counting(fs::read(image).unwrap(), 0.into()));
    let fat = Arc::new(open(Arc::clone(&device) as SharedDevice).unwrap());
    let node = fat.lookup(fat.root(), b"large.bin").unwrap();
    let file = fat.open(node).unwrap();
    device.1.store(0, std::sync::atomic::Ordering::Relaxed);
    compared::content(&*file).unwrap();
    assert_eq!(device.1.load(std::sync::atomic::Ordering::Relaxed), 1);
}

fn fuzz(bytes: &[u8]) {
    fuzzing::files(open(Arc::new(bytes.to_vec())));
}

/// A small image of two widths.
static IMAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let kinds: [(u64, &[&str]); 2] = [(4 * MIB, &["-F", "12"]), (34 * MIB, &["-F", "32", "-s", "1"])];
    kinds
        .map(|(size_bytes, mkfs)| fs::read(made(size_bytes, mkfs, 9).1).unwrap())
        .into()
});

#[test]
fn seeds() {
    for (name, image) in ["fat12", "fat32"].iter().zip(&*IMAGES) {
        fuzzing::seed_disks("fat", name, &[Arc::new(image.clone())]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn damaged_images_do_no_harm(changes in prop::collection::vec(any::<(u16, u8)>(), 1..60), head in any::<bool>()) {
        for image in &*IMAGES {
            // The two tables of FAT32 take 1.1 MB.
            let metadata = if head { 100 } else { 1_200_000 };
            fuzz(&compared::mutated(image, metadata, &changes));
        }
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        fuzz(&bytes);
        let mut image = IMAGES[0].clone();
        image[512..512 + bytes.len()].copy_from_slice(&bytes);
        fuzz(&image);
    }
}
