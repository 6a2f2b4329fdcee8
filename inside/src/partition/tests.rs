//! Partition tables made by hand, by sfdisk, sgdisk and fdisk (packages fdisk and gdisk), and at random.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// For the tests of this crate that let a real tool make an image.
impl Device for File {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, offset_bytes)
    }

    fn size_bytes(&self) -> u64 {
        self.metadata().expect("a test's own file has metadata").len()
    }
}

/// A large disk of zeros except for a few sectors.
struct SparseDisk {
    size_bytes: u64,
    sectors: BTreeMap<u64, [u8; 512]>,
}

impl Device for SparseDisk {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        assert!(offset_bytes + buf.len() as u64 <= self.size_bytes);
        for (at, byte) in (offset_bytes..).zip(buf) {
            let sector = self.sectors.get(&(at / 512));
            *byte = sector.map_or(0, |sector| sector[(at % 512) as usize]);
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

struct Unreadable(Vec<u8>, u64);

impl Device for Unreadable {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        if (offset_bytes..offset_bytes + buf.len() as u64).contains(&self.1) {
            return Err(io::Error::other("damaged block"));
        }
        self.0.read_at(offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
}

fn mbr(entries: &[(u8, u32, u32)]) -> [u8; 512] {
    let mut sector = [0; 512];
    for (slot, (kind, start, sectors)) in entries.iter().enumerate() {
        let entry = &mut sector[446 + 16 * slot..][..16];
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn disk(sectors: usize, pieces: &[(usize, [u8; 512])]) -> Vec<u8> {
    let mut disk = vec![0; sectors * 512];
    for (at, sector) in pieces {
        disk[at * 512..][..512].copy_from_slice(sector);
    }
    disk
}

/// (type byte, name, first LBA, last LBA); type 0 leaves the entry unused.
type GptEntry<'a> = (u8, &'a str, u64, u64);

fn gpt_disk(sector_bytes: usize, sectors: usize, entries: &[GptEntry]) -> Vec<u8> {
    let mut disk = vec![0; sector_bytes * sectors];
    disk[..512].copy_from_slice(&mbr(&[(0xee, 1, sectors as u32 - 1)]));
    let mut table = vec![0; 128 * 128];
    for (entry, (kind, name, first, last)) in table.chunks_exact_mut(128).zip(entries) {
        entry[0] = *kind;
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
        for (unit, at) in name.encode_utf16().zip((56..128).step_by(2)) {
            entry[at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
    }
    let last = sectors - 1;
    let table_sectors = table.len() / sector_bytes;
    for (lba, other, table_lba) in [(1, last, 2), (last, 1, last - table_sectors)] {
        let header = &mut disk[lba * sector_bytes..][..92];
        header[..8].copy_from_slice(b"EFI PART");
        header[12..16].copy_from_slice(&92u32.to_le_bytes());
        header[24..32].copy_from_slice(&(lba as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(other as u64).to_le_bytes());
        header[72..80].copy_from_slice(&(table_lba as u64).to_le_bytes());
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32(&table).to_le_bytes());
        disk[table_lba * sector_bytes..][..table.len()].copy_from_slice(&table);
        sign(&mut disk, lba * sector_bytes);
    }
    disk
}

/// Corrects the header's own checksum.
fn sign(disk: &mut [u8], header_at: usize) {
    let header = &mut disk[header_at..][..92];
    header[16..20].fill(0);
    let crc = crc32(header).to_le_bytes();
    header[16..20].copy_from_slice(&crc);
}

/// (number, offset, size) in sectors of 512 bytes.
fn layout(table: &PartitionTable) -> Vec<(u32, u64, u64)> {
    let sectors = |p: &Partition| (p.number, p.offset_bytes / 512, p.size_bytes / 512);
    table.partitions.iter().map(sectors).collect()
}

fn read(disk: &dyn Device) -> PartitionTable {
    read_table(disk).expect("the disk is readable")
}

/// Invariants that hold whatever the bytes.
fn check_bounds(disk: &dyn Device) -> PartitionTable {
    let table = read(disk);
    assert!(table.partitions.len() <= MAX_GPT_ENTRIES);
    assert!(table.warnings.len() <= MAX_WARNINGS + 1);
    assert!(table.partitions.is_sorted_by_key(|p| p.number));
    for p in &table.partitions {
        assert!(p.size_bytes > 0 && p.offset_bytes + p.size_bytes <= disk.size_bytes());
        assert!(p.label.iter().all(|label| !label.contains(['/', '\0'])));
    }
    table
}

#[test]
fn a_disk_too_small_or_empty_has_no_table() {
    for size in [0, 1, 511, 512, 1024, 1 << 20] {
        let table = read(&vec![0_u8; size]);
        assert_eq!((table.kind, table.warnings), (TableKind::None, vec![]));
    }
}

#[test]
fn primary_partitions_keep_the_number_of_their_slot() {
    let table = read(&disk(
        100,
        &[(0, mbr(&[(0, 0, 0), (0x83, 10, 20), (0, 0, 0), (7, 30, 40)]))],
    ));
    assert_eq!(
        (table.kind, layout(&table)),
        (TableKind::Mbr, vec![(2, 10, 20), (4, 30, 40)])
    );
    assert_eq!(table.partitions[1].kind.to_string(), "MBR type 0x07");
    assert!(table.warnings.is_empty());
}

#[test]
fn logical_partitions_count_from_five_and_their_container_is_not_shown() {
    let pieces = [
        (0, mbr(&[(0x83, 1, 9), (0x0f, 100, 900)])),
        (100, mbr(&[(0x83, 2, 10), (0x05, 50, 30)])),
        (150, mbr(&[(0x82, 1, 20), (0x85, 80, 30)])),
        (180, mbr(&[(0x83, 1, 25)])),
    ];
    let table = read(&disk(1000, &pieces));
    assert_eq!(layout(&table), [(1, 1, 9), (5, 102, 10), (6, 151, 20), (7, 181, 25)]);
    assert!(table.warnings.is_empty());
}

#[test]
fn a_cyclic_chain_of_logical_partitions_is_read_once() {
    let pieces = [
        (0, mbr(&[(0x05, 100, 900)])),
        (100, mbr(&[(0x83, 2, 10), (0x05, 50, 30)])),
        (150, mbr(&[(0x83, 2, 10), (0x05, 0, 30)])),
    ];
    let table = check_bounds(&disk(1000, &pieces));
    assert_eq!(layout(&table), [(5, 102, 10), (6, 152, 10)]);
    assert!(
        table.warnings[0].contains("returns to sector 100"),
        "{:?}",
        table.warnings
    );

    let own_tail = [(0, mbr(&[(0x05, 0, 900)]))];
    assert!(check_bounds(&disk(1000, &own_tail)).partitions.is_empty());
}

#[test]
fn a_chain_ends_after_a_hundred_links() {
    let mut sectors = BTreeMap::from([(0, mbr(&[(0x05, 1, u32::MAX)]))]);
    for link in 0..10_000 {
        sectors.insert(1 + link * 2, mbr(&[(0x83, 1, 1), (0x05, (link as u32 + 1) * 2, 2)]));
    }
    let size_bytes = 1 << 40;
    let table = check_bounds(&SparseDisk { size_bytes, sectors });
    assert_eq!(table.partitions.len(), MAX_LINKS);
    assert!(table.warnings[0].contains("more than 100 links"));
}

#[test]
fn no_more_than_128_mbr_partitions_are_shown() {
    let data = (0x83, 1, 1);
    let mut pieces = vec![(0, mbr(&[(0x05, 1, 900)]))];
    for link in 0..80 {
        let next = (0x05, (link as u32 + 1) * 2, 2);
        pieces.push((1 + link * 2, mbr(&[data, data, next])));
    }
    let table = check_bounds(&disk(1000, &pieces));
    assert_eq!(table.partitions.len(), MAX_MBR_PARTITIONS);
    assert!(
        table
            .warnings
            .iter()
            .any(|warning| warning.contains("exceeds the limit"))
    );
}

#[test]
fn a_chain_that_leaves_the_disk_or_finds_no_record_ends_there() {
    let first = (100, mbr(&[(0x83, 2, 10), (0x05, 5000, 30)]));
    let table = read(&disk(1000, &[(0, mbr(&[(0x05, 100, 900)])), first]));
    assert_eq!(layout(&table), [(5, 102, 10)]);
    assert!(table.warnings[0].contains("leaves the disk"));

    let first = (100, mbr(&[(0x83, 2, 10), (0x05, 500, 30)]));
    let table = read(&disk(1000, &[(0, mbr(&[(0x05, 100, 900)])), first]));
    assert!(table.warnings[0].contains("holds no table"));

    let never_used = read(&disk(1000, &[(0, mbr(&[(0x05, 100, 900)]))]));
    assert_eq!((never_used.kind, never_used.warnings), (TableKind::Mbr, vec![]));
}

#[test]
fn entries_past_the_end_are_cut_off_or_left_out_and_keep_their_numbers() {
    let pieces = [
        (
            0,
            mbr(&[
                (0x83, 90, 20),
                (0x83, 100, 1),
                (0x05, 50, 40),
                (0x83, u32::MAX, u32::MAX),
            ]),
        ),
        (50, mbr(&[(0x83, u32::MAX, u32::MAX), (0x05, 10, 30)])),
        (60, mbr(&[(0x83, 1, 2)])),
    ];
    let table = check_bounds(&disk(100, &pieces));
    assert_eq!(layout(&table), [(1, 90, 10), (6, 61, 2)]);
    assert_eq!(table.warnings.len(), 4, "{:?}", table.warnings);
}

#[test]
fn overlapping_partitions_are_shown_with_one_warning_for_each() {
    let table = read(&disk(
        100,
        &[(0, mbr(&[(0x83, 10, 80), (0x83, 20, 5), (0x83, 10, 80)]))],
    ));
    assert_eq!(layout(&table), [(1, 10, 80), (2, 20, 5), (3, 10, 80)]);
    assert_eq!(
        table.warnings,
        ["partitions 1 and 3 overlap", "partitions 1 and 2 overlap"]
    );
}

#[test]
fn the_boot_sector_of_a_file_system_is_not_a_table() {
    // The kernel's rule: a boot indicator is 00 or 80.
    let mut sector = mbr(&[(0x83, 1, 9)]);
    sector[446] = b'A';
    assert_eq!(read(&disk(100, &[(0, sector)])).kind, TableKind::None);
    // mkfs.fat: zeros where the entries would be.
    assert_eq!(read(&disk(100, &[(0, mbr(&[]))])).kind, TableKind::None);
    // A name, and entries that can't be valid.
    for (at, name) in BOOT_SECTOR_NAMES {
        let mut sector = mbr(&[(0x73, 0x2065_6572, 0x6474_6f6f)]);
        sector[at..at + name.len()].copy_from_slice(name);
        assert_eq!(read(&disk(100, &[(0, sector)])).kind, TableKind::None);
        // GPT's type in the bytes of an entry proves nothing either.
        sector[446 + 4] = 0xee;
        assert_eq!(read(&disk(100, &[(0, sector)])).kind, TableKind::None);
    }
    // A FAT disk that was partitioned later and kept its fields.
    let mut sector = mbr(&[(0x83, 1, 9)]);
    sector[0x52..0x57].copy_from_slice(b"FAT32");
    assert_eq!(read(&disk(100, &[(0, sector)])).kind, TableKind::Mbr);
}

#[test]
fn gpt_is_read_with_sectors_of_512_and_of_4096_bytes() {
    for sector_bytes in [512, 4096] {
        let entries = [(1, "root", 40, 49), (0, "", 0, 0), (2, "../a\u{202e}b/ ü", 50, 50)];
        let table = check_bounds(&gpt_disk(sector_bytes, 200, &entries));
        let unit = sector_bytes as u64 / 512;
        let expected = vec![(1, 40 * unit, 10 * unit), (3, 50 * unit, unit)];
        assert_eq!((table.kind, layout(&table)), (TableKind::Gpt, expected));
        assert_eq!(table.partitions[0].label.as_deref(), Some("root"));
        assert_eq!(table.partitions[1].label.as_deref(), Some(".._a_b_ ü"));
        assert_eq!(table.warnings, [""; 0]);
    }
}

#[test]
fn a_hybrid_mbr_is_read_as_gpt() {
    let mut disk = gpt_disk(512, 200, &[(1, "", 40, 49)]);
    disk[..512].copy_from_slice(&mbr(&[(0x83, 40, 10), (0xee, 1, 39), (0x0c, 60, 10)]));
    let table = read(&disk);
    assert_eq!((table.kind, layout(&table)), (TableKind::Gpt, vec![(1, 40, 10)]));
}

#[test]
fn a_damaged_primary_header_or_table_leads_to_the_backup() {
    for sector_bytes in [512, 4096] {
        // Signature, a field, the entries.
        for at in [sector_bytes, sector_bytes + 60, 2 * sector_bytes + 700] {
            let mut disk = gpt_disk(sector_bytes, 200, &[(1, "root", 40, 49)]);
            disk[at] ^= 0x10;
            let table = read(&disk);
            assert_eq!(table.kind, TableKind::Gpt);
            assert_eq!(table.partitions[0].offset_bytes, 40 * sector_bytes as u64);
            assert_eq!(table.warnings.len(), 1);
            assert!(table.warnings[0].contains("the backup in sector 199 is used"));
        }
    }
}

#[test]
fn the_backup_is_found_on_a_disk_that_has_grown() {
    let mut disk = gpt_disk(512, 200, &[(1, "root", 40, 49)]);
    disk.resize(400 * 512, 0);
    // The header is damaged but still points to its backup.
    disk[512 + 60] ^= 1;
    assert_eq!(layout(&read(&disk)), [(1, 40, 10)]);
    // The header says nothing, but the protective MBR does.
    disk[512..1024].fill(0);
    assert_eq!(layout(&read(&disk)), [(1, 40, 10)]);
}

#[test]
fn a_gpt_without_a_good_header_is_reported_as_damaged() {
    let mut disk = gpt_disk(512, 200, &[(1, "root", 40, 49)]);
    disk[512 + 60] ^= 1;
    disk[199 * 512 + 60] ^= 1;
    let table = read(&disk);
    assert_eq!((table.kind, table.partitions.len()), (TableKind::Gpt, 0));
    assert!(table.warnings[0].contains("no backup"), "{:?}", table.warnings);
}

#[test]
fn a_gpt_header_with_oversized_table_is_damaged() {
    // (entries, bytes of one): more than memory, more than the disk, none, sizes that UEFI does not allow.
    for (count, size) in [
        (u32::MAX, 128),
        (32768, 128),
        (0, 128),
        (128, 0),
        (128, 130),
        (1, u32::MAX),
        (128, 64),
    ] {
        let mut disk = gpt_disk(512, 200, &[(1, "root", 40, 49)]);
        disk[512 + 80..][..4].copy_from_slice(&u32::to_le_bytes(count));
        disk[512 + 84..][..4].copy_from_slice(&u32::to_le_bytes(size));
        sign(&mut disk, 512);
        let table = check_bounds(&disk);
        assert_eq!(layout(&table), [(1, 40, 10)]);
        assert!(
            table.warnings[0].contains("backup"),
            "{count} {size}: {:?}",
            table.warnings
        );
    }
    let mut disk = gpt_disk(512, 200, &[(1, "root", 40, 49)]);
    disk[512 + 72..][..8].copy_from_slice(&u64::MAX.to_le_bytes());
    sign(&mut disk, 512);
    assert!(check_bounds(&disk).warnings[0].contains("outside the disk"));
}

#[test]
fn invalid_gpt_entries_are_left_out() {
    let entries = [
        (1, "cut", 150, 250),
        (1, "past", 200, 300),
        (1, "reversed", 60, 50),
        (1, "huge", u64::MAX, u64::MAX),
        (1, "all", 0, u64::MAX),
        (1, "empty", 60, 59),
        (1, "good", 60, 69),
    ];
    let table = check_bounds(&gpt_disk(512, 200, &entries));
    assert_eq!(layout(&table), [(1, 150, 50), (5, 0, 200), (7, 60, 10)]);
    assert_eq!(table.warnings.len(), 7, "{:?}", table.warnings);
}

#[test]
fn an_unreadable_block_is_an_error_and_not_a_missing_table() {
    let gpt = gpt_disk(512, 200, &[(1, "root", 40, 49)]);
    for at in [0, 512, 1024] {
        assert!(read_table(&Unreadable(gpt.clone(), at)).is_err());
    }
    let mbr = disk(100, &[(0, mbr(&[(0x05, 50, 40)]))]);
    assert!(read_table(&Unreadable(mbr, 50 * 512)).is_err());
}

// Real tools

fn sparse_file(size_bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new()
        .suffix("_disk")
        .tempfile()
        .expect("a temporary file");
    file.as_file().set_len(size_bytes).expect("a sparse file");
    file
}

fn run(tool: &str, args: &[&str], path: &Path, input: &str) -> String {
    let mut child = Command::new(tool)
        .args(args)
        .arg(path)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("this test needs {tool}: {e}"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(input.as_bytes()).expect("the tool reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("the tool ends");
    assert!(output.status.success(), "{tool} failed");
    String::from_utf8(output.stdout).expect("the tool writes UTF-8")
}

/// (number, start, size, type) according to sfdisk; without the extended partition.
fn sfdisk_layout(path: &Path) -> Vec<(u32, u64, u64, String)> {
    let json: serde_json::Value =
        serde_json::from_str(&run("sfdisk", &["--json"], path, "")).expect("sfdisk writes JSON");
    let prefix = path.to_str().expect("a plain path");
    let mut layout = Vec::new();
    for p in json["partitiontable"]["partitions"].as_array().expect("a list") {
        let kind = p["type"].as_str().expect("a type").to_owned();
        let number = p["node"]
            .as_str()
            .and_then(|node| node.strip_prefix(prefix)?.parse().ok());
        let (start, size) = (p["start"].as_u64(), p["size"].as_u64());
        if !["5", "f", "85"].contains(&kind.as_str()) {
            layout.push((
                number.expect("a number"),
                start.expect("a start"),
                size.expect("a size"),
                kind,
            ));
        }
    }
    layout.sort();
    layout
}

fn our_layout(path: &Path) -> Vec<(u32, u64, u64, String)> {
    let table = check_bounds(&File::open(path).expect("the image opens"));
    assert_eq!(table.warnings, [""; 0]);
    let kind = |kind: PartitionKind| match kind {
        PartitionKind::Mbr(byte) => format!("{byte:x}"),
        PartitionKind::Gpt(_) => kind.to_string().replace("GPT type ", ""),
    };
    let ours = |p: &Partition| (p.number, p.offset_bytes / 512, p.size_bytes / 512, kind(p.kind));
    table.partitions.iter().map(ours).collect()
}

#[test]
fn an_mbr_with_logical_partitions_agrees_with_sfdisk() {
    let image = sparse_file(4 << 30);
    let script = "label: dos\nsize=100M,type=83,bootable\nsize=200M,type=82\ntype=5,size=3G\ntype=8e\n\
                  size=300M,type=83\nsize=1M,type=7\nsize=1G,type=fd\ntype=83\n";
    run("sfdisk", &["--quiet"], image.path(), script);
    let expected = sfdisk_layout(image.path());
    assert_eq!(expected.iter().map(|p| p.0).collect::<Vec<_>>(), [1, 2, 4, 5, 6, 7, 8]);
    assert_eq!(our_layout(image.path()), expected);

    // Without the second, the chain has a gap and the rest move up.
    let path = image.path().to_str().expect("a plain path");
    let status = Command::new("/usr/sbin/sfdisk")
        .args(["--quiet", "--delete", path, "6"])
        .status();
    assert!(status.expect("this test needs sfdisk").success());
    let expected = sfdisk_layout(image.path());
    assert_eq!(expected.iter().map(|p| p.0).collect::<Vec<_>>(), [1, 2, 4, 5, 6, 7]);
    assert_eq!(our_layout(image.path()), expected);
}

#[test]
fn a_gpt_of_sfdisk_and_sgdisk_agrees_with_sfdisk() {
    let image = sparse_file(8 << 40);
    let script = "label: gpt\nsize=1M,type=21686148-6449-6E6F-744E-656564454649\nsize=512M,type=U,name=\"EFI\"\n\
                  size=5T,type=L,name=\"daten/größe\"\ntype=V\n";
    run("sfdisk", &["--quiet"], image.path(), script);
    let expected = sfdisk_layout(image.path());
    assert_eq!((expected.len(), our_layout(image.path())), (4, expected));
    let table = read(&File::open(image.path()).expect("the image opens"));
    assert_eq!(table.partitions[2].label.as_deref(), Some("daten_größe"));

    let image = sparse_file(1 << 30);
    let args = ["-o", "-n3:0:+8M", "-n128:0:+8M", "-n7:0:+8M", "-t7:8e00"];
    run("sgdisk", &args, image.path(), "");
    let expected = sfdisk_layout(image.path());
    assert_eq!(expected.iter().map(|p| p.0).collect::<Vec<_>>(), [3, 7, 128]);
    assert_eq!(our_layout(image.path()), expected);

    // Primary destroyed: everything as before, and a warning.
    let file = File::options().write(true).open(image.path()).expect("the image opens");
    file.write_all_at(&[0; 16896], 512).expect("the image is writable");
    let table = read(&File::open(image.path()).expect("the image opens"));
    let expected: Vec<_> = expected.iter().map(|p| (p.0, p.1, p.2)).collect();
    assert_eq!((layout(&table), table.warnings.len()), (expected, 1));
}

#[test]
fn a_gpt_that_fdisk_makes_with_sectors_of_4096_bytes_is_read() {
    let image = sparse_file(1 << 30);
    let keys = "g\nn\n1\n256\n+1023\nn\n5\n2048\n+4095\nw\n";
    run("fdisk", &["--sector-size", "4096", "--noauto-pt"], image.path(), keys);
    let table = read(&File::open(image.path()).expect("the image opens"));
    assert_eq!(layout(&table), [(1, 256 * 8, 1024 * 8), (5, 2048 * 8, 4096 * 8)]);
    assert_eq!(table.warnings, [""; 0]);
}

// Random tables

/// A chain of four links in the first 200 sectors, or a GPT of either sector size.
fn valid_disk(which: usize) -> Vec<u8> {
    let pieces = [
        (0, mbr(&[(0x83, 1, 9), (0x0f, 100, 100), (0x05, 20, 50), (7, 12, 5)])),
        (20, mbr(&[(0x83, 1, 5), (0x05, 10, 10)])),
        (30, mbr(&[(0x83, 1, 5)])),
        (100, mbr(&[(0x83, 2, 10), (0x05, 50, 30)])),
        (150, mbr(&[(0x82, 1, 20), (0x85, 80, 30)])),
        (180, mbr(&[(0x83, 1, 15), (0, 0, 0), (0x83, 1, 2), (0x83, 3, 4)])),
    ];
    let entries = [
        (1, "root", 40, 49),
        (2, "swap", 50, 60),
        (0, "", 0, 0),
        (3, "data", 70, 90),
    ];
    match which {
        0 => disk(200, &pieces),
        1 => gpt_disk(512, 200, &entries),
        _ => gpt_disk(4096, 100, &entries),
    }
}

#[test]
fn seeds() {
    for (which, name) in ["mbr", "gpt", "gpt-4096"].iter().enumerate() {
        crate::fuzzing::seed_disks("partitions", name, &[std::sync::Arc::new(valid_disk(which))]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..20_000), kinds in any::<[u8; 4]>()) {
        check_bounds(&bytes);
        // The same, with the fields that pass the first checks.
        if bytes.len() >= 512 {
            bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
            for (slot, kind) in kinds.into_iter().enumerate() {
                bytes[446 + 16 * slot] &= 0x80;
                bytes[446 + 16 * slot + 4] = [0x05, 0xee, 0x83, kind][usize::from(kind) % 4];
                // Small numbers, so that they lead to something.
                bytes[446 + 16 * slot + 9..][..3].fill(0);
            }
            check_bounds(&bytes);
        }
    }

    #[test]
    fn a_valid_table_with_changed_fields_never_panics(
        which in 0..3usize,
        changes in prop::collection::vec(
            (any::<Index>(), prop_oneof![Just(0), Just(0xff), Just(5), any::<u8>()]),
            0..12,
        ),
        resized in prop::option::of(any::<Index>()),
    ) {
        let mut disk = valid_disk(which);
        let sector_bytes = if which == 2 { 4096 } else { 512 };
        // Targets of the damage: sectors with records, headers and entries.
        let spots: Vec<usize> = (0..disk.len()).filter(|at| disk[*at] != 0 || at % 512 > 440).collect();
        for (index, value) in changes {
            disk[spots[index.index(spots.len())]] = value;
        }
        if which > 0 {
            // Entries and headers with correct checksums, as an attacker would make them.
            let entries = crc32(&disk[2 * sector_bytes..][..16384]).to_le_bytes();
            disk[sector_bytes + 88..][..4].copy_from_slice(&entries);
            sign(&mut disk, sector_bytes);
        }
        if let Some(resized) = resized {
            let size = resized.index(disk.len());
            disk.truncate(size);
        }
        check_bounds(&disk);
    }

    #[test]
    fn any_gpt_entry_stays_inside_the_disk(
        ranges in prop::collection::vec((any::<u64>(), any::<u64>(), 0..250u64, 0..250u64), 0..40),
    ) {
        let pairs = ranges.iter().map(|(a, b, c, d)| [(1, "", *a, *b), (1, "", *c, *d)]);
        let entries: Vec<GptEntry> = pairs.flatten().collect();
        check_bounds(&gpt_disk(512, 200, &entries));
    }
}
