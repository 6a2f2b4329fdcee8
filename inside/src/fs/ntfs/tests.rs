//! Images made by mkntfs and written through ntfs-3g (package ntfs-3g; FUSE, root; setfattr of package attr), damaged
//! images, and random bytes.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::fs::compared::{self, Mount, Terms, compare, device, run};
use crate::fuzzing;

const MIB: u64 = 1 << 20;

const TERMS: Terms = Terms {
    time_nanos: 100,
    owners: false,
    links: true,
};

/// An empty volume.
fn formatted(dir: &Path, size_bytes: u64, cluster_bytes: &str) -> PathBuf {
    let image = compared::image(dir, size_bytes);
    run("mkntfs", &[&"-F", &"-Q", &"-L", &"Läb", &"-c", &cluster_bytes, &image]);
    image
}

fn mounted(dir: &Path, image: &Path) -> Mount {
    let at = dir.join("mount");
    fs::create_dir_all(&at).unwrap();
    run("ntfs-3g", &[&"-o", &"compression", &image, &at]);
    Mount(at)
}

fn text(len: usize) -> Vec<u8> {
    (0..)
        .flat_map(|line: u64| format!("line {} of {}\n", line, line / 7).into_bytes())
        .take(len)
        .collect()
}

/// Bytes that no compression makes shorter.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn write_original(dir: &Path, many: usize) {
    fs::create_dir_all(dir.join("Sub Directory/deep")).unwrap();
    fs::create_dir(dir.join("many")).unwrap();
    for index in 0..many {
        fs::write(dir.join(format!("many/file number {index}.text")), index.to_string()).unwrap();
    }
    fs::write(dir.join("large.bin"), noise(3_000_000)).unwrap();
    fs::write(dir.join("resident"), "a few bytes").unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    fs::write(dir.join("Grüße an Zoë 😀.txt"), "héllo").unwrap();
    fs::write(dir.join("case"), "lower").unwrap();
    fs::write(dir.join("CASE"), "upper").unwrap();
    fs::write(dir.join("Sub Directory/deep/".to_owned() + &"ü".repeat(120)), "long").unwrap();
    fs::hard_link(dir.join("resident"), dir.join("Sub Directory/hard")).unwrap();
    symlink("../large.bin", dir.join("Sub Directory/link")).unwrap();
    symlink("/absolute/Grüße", dir.join("absolute")).unwrap();
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len(5_000_000).unwrap();
    sparse.write_all_at(&noise(70_000), 1 << 20).unwrap();
    sparse.write_all_at(b"end", 4_999_000).unwrap();
}

/// An image of a directory, and that directory.
fn made(size_bytes: u64, cluster_bytes: &str, many: usize) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let original = dir.path().join("original");
    write_original(&original, many);
    let image = formatted(dir.path(), size_bytes, cluster_bytes);
    let mount = mounted(dir.path(), &image);
    run("cp", &[&"-a", &"--sparse=auto", &original.join("."), &mount.0]);
    drop(mount);
    (dir, image)
}

#[test]
fn a_volume_with_many_files_reads_as_its_original() {
    let (dir, image) = made(32 * MIB, "4096", 4200);
    let ntfs = Arc::new(open(device(&image)).unwrap());
    assert_eq!(ntfs.remarks(), Vec::<String>::new());
    assert_eq!(ntfs.identity().label.as_deref(), Some("Läb"));
    let output = std::process::Command::new("/usr/sbin/blkid")
        .args(["-p", "-o", "value", "-s", "UUID"])
        .arg(&image)
        .output()
        .unwrap();
    assert_eq!(
        ntfs.identity().uuid,
        Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    );
    assert_eq!(
        compare(&ntfs, ntfs.root(), &dir.path().join("original"), &TERMS),
        4200 + 14
    );

    let root = ntfs.root();
    assert_eq!(
        ntfs.lookup(root, b"LARGE.bin").ok(),
        ntfs.lookup(root, b"large.bin").ok()
    );
    let umlaut = ntfs.lookup(root, "GRÜSSE".as_bytes());
    assert!(matches!(umlaut, Err(Error::NotFound)));
    assert!(ntfs.lookup(root, "GRÜßE AN ZOË 😀.TXT".as_bytes()).is_ok());
    let hard = ntfs
        .lookup(ntfs.lookup(root, b"sub directory").unwrap(), b"hard")
        .unwrap();
    assert_eq!(hard, ntfs.lookup(root, b"resident").unwrap());

    let node = ntfs.lookup(root, b"sparse").unwrap();
    let sparse = ntfs.open(node).unwrap();
    assert_eq!(sparse.next_data(0).unwrap(), Some(1 << 20));
    let hole = sparse.next_hole(1 << 20).unwrap();
    assert!(((1 << 20) + 70_000..(1 << 20) + 80_000).contains(&hole), "{hole}");
    assert!(sparse.next_data(hole).unwrap().is_some_and(|data| data > 4_900_000));
    assert_eq!(sparse.next_hole(4_999_000).unwrap(), 5_000_000);
}

#[test]
fn small_clusters_read_as_their_original() {
    let (dir, image) = made(24 * MIB, "512", 300);
    let ntfs = Arc::new(open(device(&image)).unwrap());
    assert_eq!(
        compare(&ntfs, ntfs.root(), &dir.path().join("original"), &TERMS),
        300 + 14
    );
}

#[test]
fn compressed_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let image = formatted(dir.path(), 16 * MIB, "4096");
    let mut mixed = text(200_000);
    mixed.extend(noise(100_000));
    mixed.extend(vec![0; 150_000]);
    mixed.extend(text(99_999));
    let files = [
        ("text", text(1_000_001)),
        ("noise", noise(150_000)),
        ("mixed", mixed),
        ("short", text(5000)),
    ];
    let mount = mounted(dir.path(), &image);
    let compressed = mount.0.join("compressed");
    fs::create_dir(&compressed).unwrap();
    run(
        "setfattr",
        &[&"-n", &"system.ntfs_attrib_be", &"-v", &"0x00000800", &compressed],
    );
    for (name, bytes) in &files {
        fs::write(compressed.join(name), bytes).unwrap();
    }
    drop(mount);
    let ntfs = Arc::new(open(device(&image)).unwrap());
    let parent = ntfs.lookup(ntfs.root(), b"compressed").unwrap();
    for (name, bytes) in &files {
        let node = ntfs.lookup(parent, name.as_bytes()).unwrap();
        let stream = ntfs.streams.stream(&ntfs.record(node).unwrap(), DATA, &[]).unwrap();
        assert_eq!(stream.unit_bytes, 65536, "{name}");
        assert_eq!(ntfs.stat(node).unwrap().size_bytes, bytes.len() as u64);
        let file = Arc::clone(&ntfs).open(node).unwrap();
        assert!(compared::content(&*file).unwrap() == *bytes, "{name}");
        let mut middle = vec![0; 1500];
        file.read_at(3000, &mut middle).unwrap();
        assert!(middle == bytes[3000..4500]);
        let mut at = 0;
        let mut holes = 0;
        while at < file.size_bytes() {
            let data = file.next_data(at).unwrap().unwrap_or(file.size_bytes());
            holes += data - at;
            assert!(bytes[at as usize..data as usize].iter().all(|byte| *byte == 0));
            at = file.next_hole(data).unwrap();
        }
        assert_eq!(holes > 0, *name == "mixed", "{name}");
    }
}

#[test]
fn a_fragmented_file_with_a_list_of_attributes_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let image = formatted(dir.path(), 6 * MIB, "512");
    let mount = mounted(dir.path(), &image);
    // Fills the volume, frees every second file, and fills it again with one file.
    let mut count = 0;
    while fs::write(mount.0.join(format!("{count}")), [7; 1500]).is_ok() {
        count += 1;
    }
    for index in (0..count).step_by(2) {
        fs::remove_file(mount.0.join(format!("{index}"))).unwrap();
    }
    let content = noise(4 << 20);
    let mut file = File::create(mount.0.join("fragments")).unwrap();
    let mut written = 0;
    while file.write_all(&content[written..written + 512]).is_ok() {
        written += 512;
    }
    drop(file);
    let size_bytes = fs::metadata(mount.0.join("fragments")).unwrap().len();
    drop(mount);
    let ntfs = Arc::new(open(device(&image)).unwrap());
    let node = ntfs.lookup(ntfs.root(), b"fragments").unwrap();
    let parts = ntfs.streams.parts(&ntfs.record(node).unwrap(), DATA, &[]).unwrap();
    assert!(parts.len() > 1, "{} parts of {written} bytes", parts.len());
    assert_eq!(ntfs.stat(node).unwrap().size_bytes, size_bytes);
    let bytes = compared::content(&*ntfs.open(node).unwrap()).unwrap();
    assert!(bytes[..written] == content[..written]);
}

#[test]
fn the_mirror_and_the_boot_sector_s_copy_are_used() {
    let (dir, image) = made(16 * MIB, "4096", 30);
    let mut bytes = fs::read(image).unwrap();
    let boot = Boot::parse(bytes[..512].try_into().unwrap(), bytes.len() as u64).unwrap();
    bytes[boot.mft_at as usize] = b'B';
    bytes[..512].fill(0);
    let ntfs = Arc::new(open(Arc::new(bytes)).unwrap());
    assert_eq!(ntfs.remarks().len(), 2, "{:?}", ntfs.remarks());
    assert_eq!(
        compare(&ntfs, ntfs.root(), &dir.path().join("original"), &TERMS),
        30 + 14
    );
}

#[test]
fn a_damaged_index_block_hides_its_own_names_only() {
    let (_dir, image) = made(16 * MIB, "4096", 300);
    let mut bytes = fs::read(image).unwrap();
    let blocks: Vec<_> = (0..bytes.len())
        .step_by(4096)
        .filter(|at| bytes[*at..].starts_with(b"INDX"))
        .collect();
    bytes[blocks[blocks.len() / 2]] = b'B';
    let ntfs = open(Arc::new(bytes)).unwrap();
    let many = ntfs.lookup(ntfs.root(), b"many").unwrap();
    let mut count = 0;
    let listed = ntfs.list(many, &mut |_| {
        count += 1;
        ControlFlow::Continue(())
    });
    assert!(matches!(listed, Err(Error::Damaged(_))));
    assert!((200..300).contains(&count), "{count}");
    let found = (0..300).filter(|index| {
        ntfs.lookup(many, format!("file number {index}.text").as_bytes())
            .is_ok()
    });
    assert_eq!(found.count(), count);
}

#[test]
fn a_dirty_volume_is_remarked() {
    let dir = tempfile::tempdir().unwrap();
    let image = formatted(dir.path(), 4 * MIB, "4096");
    let mut bytes = fs::read(image).unwrap();
    let boot = Boot::parse(bytes[..512].try_into().unwrap(), bytes.len() as u64).unwrap();
    let record = boot.mft_at as usize + VOLUME as usize * boot.record_bytes;
    // The attribute's type and length, then its value.
    let head = [0x70, 0, 0, 0, 0x28, 0, 0, 0];
    let at = bytes[record..record + 1024]
        .windows(8)
        .position(|bytes| bytes == head)
        .unwrap();
    bytes[record + at + 24 + 10] |= 1;
    let ntfs = open(Arc::new(bytes)).unwrap();
    assert!(ntfs.remarks()[0].contains("dirty"), "{:?}", ntfs.remarks());
}

#[test]
fn links_of_windows_have_slashes() {
    let point = |tag: u32, skipped: usize, target: &str| {
        let units: Vec<u8> = target.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let len = units.len() as u16;
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend([0, len, len, 0].map(u16::to_le_bytes).as_flattened());
        bytes.resize(skipped, 0);
        bytes.extend(units);
        parse_link(&bytes)
    };
    fn parse_link(bytes: &[u8]) -> String {
        match reparse::parse(bytes).unwrap() {
            Special::Link(target) => String::from_utf8(target).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(point(0xa000_000c, 20, r"..\a\b"), "../a/b");
    assert_eq!(point(0xa000_0003, 16, r"\??\C:\Users"), "C:/Users");
    let foreign = reparse::parse(&[0x17, 0, 0, 0x80, 0, 0, 0, 0]).unwrap();
    assert_eq!(foreign, Special::Foreign("file compressed by Windows (WOF)".to_owned()));
}

fn fuzz(bytes: &[u8]) {
    fuzzing::files(open(Arc::new(bytes.to_vec())));
}

/// A small image with the fixups undone, and the offsets of its records and index blocks.
static IMAGE: LazyLock<(Vec<u8>, Vec<usize>)> = LazyLock::new(|| {
    let (_dir, image) = made(12 * MIB, "512", 40);
    let bytes = fs::read(image).unwrap();
    let marked = |at: &usize| bytes[*at..].starts_with(b"FILE0") || bytes[*at..].starts_with(b"INDX(");
    let places = (0..bytes.len()).step_by(512).filter(marked).collect();
    (bytes, places)
});

#[test]
fn seeds() {
    fuzzing::seed_disks("ntfs", "ntfs", &[Arc::new(IMAGE.0.clone())]);
    // A chunk of three bytes and their repetition, and a junction to `\??\C:`.
    let chunk = [0x05, 0xb0, 0x08, b'a', b'b', b'c', 0x00, 0x20];
    assert!(compressed::decompress(&chunk, 4096).unwrap().starts_with(b"abcabc"));
    fuzzing::seed("ntfs-stream", "chunk", &chunk);
    let junction = b"\x03\0\0\xa0\x18\0\0\0\0\0\x0c\0\x0c\0\0\0\\\0?\0?\0\\\0C\0:\0";
    assert!(reparse::parse(junction).is_ok());
    fuzzing::seed("ntfs-stream", "junction", junction);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Changes no byte that the fixups protect, so that they hold.
    #[test]
    fn damaged_records_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), 0..4096_usize, any::<u8>()), 1..80)) {
        let (image, places) = &*IMAGE;
        let mut bytes = image.clone();
        for (place, at, value) in changes {
            let place = *place.get(places);
            let len = if bytes[place] == b'F' { 424 } else { 4096 };
            let at = at % len;
            if at >= 8 && at % 512 < 510 {
                bytes[place + at] = value;
            }
        }
        fuzz(&bytes);
    }

    #[test]
    fn damaged_volumes_do_no_harm(changes in prop::collection::vec(any::<(u16, u8)>(), 1..80), head in any::<bool>()) {
        let metadata_bytes = if head { 90 } else { IMAGE.0.len() };
        fuzz(&compared::mutated(&IMAGE.0, metadata_bytes, &changes));
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        fuzz(&bytes);
        let _ = compressed::decompress(&bytes, 65536);
        let _ = reparse::parse(&bytes);
        let _ = reparse::parse_interix(&bytes);
    }
}
