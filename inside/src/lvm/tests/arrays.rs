//! Mirrors, arrays, caches and snapshots, from texts like those that the real LVM accepted.

use super::super::stripes::{Layout, Stripes};
use super::image::{EXTENT, Text, extent_at, linear, segment, uuid};
use super::real::{array, complete};
use super::*;

const CHUNK: usize = 64 << 10;

fn text(members: usize) -> Text {
    Text::new((0..members).map(|number| (uuid(number), 60)).collect())
}

/// State of a device of an array: events, failed devices, recovery and resync offset, level and layout.
fn superblock(events: u64, failed: u64, offsets: (u64, u64), layout: (u32, u32)) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    bytes[..4].copy_from_slice(&0x6452_6d44_u32.to_le_bytes());
    bytes[4] = 1;
    for (at, number) in [(16, events), (24, failed), (32, offsets.0), (40, offsets.1)] {
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    bytes[48..52].copy_from_slice(&layout.0.to_le_bytes());
    bytes[52..56].copy_from_slice(&layout.1.to_le_bytes());
    bytes
}

const DONE: (u64, u64) = (u64::MAX, u64::MAX);

#[test]
fn a_mirror_is_read_from_its_first_copy_and_written_to_all() {
    let mut text = text(3);
    complete(&mut text);
    let disks = text.disks();
    let content = pattern(1, 0, 2 * EXTENT);
    disks[0].put(extent_at(0), &content);
    disks[1].put(extent_at(0), &pattern(2, 0, 2 * EXTENT));
    let groups = open(&disks);
    let mirrored = device(&groups[0], "mirrored");
    assert_content(mirrored.as_ref(), &content);
    mirrored.write_at(EXTENT as u64 - 8, &pattern(3, 0, 16)).unwrap();
    for disk in &disks[..2] {
        let mut read = vec![0; 16];
        disk.read_at(extent_at(1) - 8, &mut read).unwrap();
        assert_eq!(read, pattern(3, 0, 16));
    }
    // Without the first disk, the second copy may be older.
    let groups = open(&disks[1..]);
    let mut read = vec![0; 8];
    device(&groups[0], "mirrored").read_at(0, &mut read).unwrap();
    assert_eq!(read, pattern(2, 0, 8));
    assert!(
        groups[0]
            .remarks
            .iter()
            .any(|remark| remark.starts_with("mirrored: the first copy"))
    );
}

#[test]
fn while_pvmove_works_the_source_is_read() {
    let mut text = text(2);
    for (name, moved, at) in [("pvmove0", 0, 0), ("pvmove1", 2, 2)] {
        let fields = format!(
            "mirror_count = 2\nextents_moved = {moved}\nmirrors = [\"pv0\", {at}, \"pv1\", {}]",
            at + 10
        );
        text.flagged(name, "PVMOVE", &[segment(0, 2, "mirror", &fields)]);
        let fields = format!("stripe_count = 1\nstripes = [\"{name}\", 1]");
        text.visible(&format!("root{moved}"), &[segment(0, 1, "striped", &fields)]);
    }
    let disks = text.disks();
    disks[0].put(extent_at(1), &pattern(1, 0, EXTENT));
    disks[1].put(extent_at(13), &pattern(2, 0, EXTENT));
    let groups = open(&disks);
    assert_eq!(groups[0].volumes.len(), 2);
    assert_content(device(&groups[0], "root0").as_ref(), &pattern(1, 0, EXTENT));
    assert_content(device(&groups[0], "root2").as_ref(), &pattern(2, 0, EXTENT));
    assert_eq!(groups[0].remarks, Vec::<String>::new());
}

#[test]
fn raid_1_is_read_from_a_complete_copy() {
    let mut text = text(2);
    array(&mut text, "raid", "raid1", 2, 2, 0);
    let disks = text.disks();
    for (disk, seed) in disks.iter().zip([1, 2]) {
        disk.put(extent_at(1), &pattern(seed, 0, 2 * EXTENT));
    }
    let cases = [
        // Both are complete; the first is read.
        (superblock(9, 0, DONE, (1, 0)), superblock(9, 0, DONE, (1, 0)), Ok(1)),
        (superblock(9, 0, DONE, (1, 0)), superblock(10, 0, DONE, (1, 0)), Ok(1)),
        // The first is being rebuilt, has failed, or was not there for a while.
        (
            superblock(9, 0, (5, u64::MAX), (1, 0)),
            superblock(9, 0, DONE, (1, 0)),
            Ok(2),
        ),
        (superblock(9, 0, DONE, (1, 0)), superblock(10, 1, DONE, (1, 0)), Ok(2)),
        (superblock(7, 0, DONE, (1, 0)), superblock(9, 0, DONE, (1, 0)), Ok(2)),
        (vec![0; 512], superblock(9, 0, DONE, (1, 0)), Ok(2)),
        // The array never finished its first synchronisation.
        (
            superblock(9, 0, (u64::MAX, 5), (1, 0)),
            superblock(9, 0, (u64::MAX, 5), (1, 0)),
            Ok(1),
        ),
        (superblock(9, 3, DONE, (1, 0)), superblock(9, 3, DONE, (1, 0)), Err(())),
    ];
    for (number, (first, second, expected)) in cases.into_iter().enumerate() {
        disks[0].put(extent_at(0), &first);
        disks[1].put(extent_at(0), &second);
        let groups = open(&disks);
        match expected {
            Ok(seed) => {
                let device = device(&groups[0], "raid");
                assert!(
                    read_all(device.as_ref()) == pattern(seed, 0, 2 * EXTENT),
                    "case {number}"
                );
            }
            Err(()) => assert_eq!(reason(&groups[0], "raid"), "the devices of its array are not complete"),
        }
        let has_remark = groups[0].remarks.iter().any(|remark| remark.starts_with("raid: "));
        assert_eq!(has_remark, number > 1, "case {number}: {:?}", groups[0].remarks);
    }
    // Of two complete copies, each has what the other's disk has lost.
    for disk in &disks {
        disk.put(extent_at(0), &superblock(9, 0, DONE, (1, 0)));
    }
    let groups = open(&disks[1..]);
    assert_content(device(&groups[0], "raid").as_ref(), &pattern(2, 0, 2 * EXTENT));
}

/// Rows of the layouts, as drivers/md/raid5.c computes them: digits and letters are data chunks in order, `p` and `q`
/// parity.
const LAYOUTS: [(&str, &[&str], (u32, u32)); 14] = [
    ("raid4", &["p0123", "p4567", "p89ab", "pcdef", "pghij"], (5, 4)),
    ("raid5_n", &["0123p", "4567p", "89abp", "cdefp", "ghijp"], (5, 5)),
    ("raid5_la", &["0123p", "456p7", "89pab", "cpdef", "pghij"], (5, 0)),
    ("raid5_ra", &["p0123", "4p567", "89pab", "cdepf", "ghijp"], (5, 1)),
    ("raid5_ls", &["0123p", "567p4", "abp89", "fpcde", "pghij"], (5, 2)),
    ("raid5_rs", &["p0123", "7p456", "abp89", "defpc", "ghijp"], (5, 3)),
    ("raid6_zr", &["pq012", "3pq45", "67pq8", "9abpq", "qcdep"], (6, 8)),
    ("raid6_nr", &["012pq", "34pq5", "6pq78", "pq9ab", "qcdep"], (6, 9)),
    ("raid6_nc", &["012qp", "45qp3", "8qp67", "qp9ab", "pcdeq"], (6, 10)),
    ("raid6_la_6", &["012pq", "34p5q", "6p78q", "p9abq"], (6, 16)),
    ("raid6_ra_6", &["p012q", "3p45q", "67p8q", "9abpq"], (6, 17)),
    ("raid6_ls_6", &["012pq", "45p3q", "8p67q", "p9abq"], (6, 18)),
    ("raid6_rs_6", &["p012q", "5p34q", "78p6q", "9abpq"], (6, 19)),
    ("raid6_n_6", &["012pq", "345pq", "678pq", "9abpq", "cdepq"], (6, 5)),
];

#[test]
fn arrays_with_parity_have_the_layouts_of_the_kernel() {
    for (kind, rows, layout) in LAYOUTS {
        let mut text = text(5);
        // The rows of the table, over and over.
        array(&mut text, "raid", kind, 5, 5, 0);
        let disks = text.disks();
        let parities = if kind.starts_with("raid6") { 2 } else { 1 };
        let size = (5 - parities) * 5 * EXTENT;
        let content = pattern(4, 0, size);
        for disk in &disks {
            disk.put(extent_at(0), &superblock(3, 0, DONE, layout));
        }
        let row_count = 5 * EXTENT / CHUNK;
        for row in 0..row_count {
            let first = row / rows.len() * rows.len() * (5 - parities);
            let (mut parity, mut parity_at) = (vec![0; CHUNK], 0);
            for (device, symbol) in rows[row % rows.len()].chars().enumerate() {
                let bytes = match symbol {
                    'p' => {
                        parity_at = device;
                        continue;
                    }
                    'q' => vec![0x51; CHUNK],
                    data => {
                        let chunk = first + data.to_digit(36).unwrap() as usize;
                        content[chunk * CHUNK..][..CHUNK].to_vec()
                    }
                };
                if symbol != 'q' {
                    parity.iter_mut().zip(&bytes).for_each(|(sum, byte)| *sum ^= byte);
                }
                disks[device].put(extent_at(1) + (row * CHUNK) as u64, &bytes);
            }
            disks[parity_at].put(extent_at(1) + (row * CHUNK) as u64, &parity);
        }
        let groups = open(&disks);
        assert_content(device(&groups[0], "raid").as_ref(), &content);
        let refused = device(&groups[0], "raid").write_at(0, &[0; 8]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        for missing in 0..5 {
            let mut others = disks.clone();
            others.remove(missing);
            let groups = open(&others);
            assert_content(device(&groups[0], "raid").as_ref(), &content);
            assert!(groups[0].remarks[0].contains("1 of the array's 5 devices"));
            others.remove(0);
            assert!(reason(&open(&others)[0], "raid").ends_with("is on none of the disks of this backup"));
        }
        disks[0].put(extent_at(0), &superblock(9, 0, DONE, (5, 77)));
        let groups = open(&disks);
        assert_eq!(
            reason(&groups[0], "raid"),
            "its array has another layout than the metadata say"
        );
    }
}

#[test]
fn raid_10_has_each_chunk_twice() {
    let mut text = text(4);
    array(&mut text, "raid", "raid10", 4, 2, 0);
    let disks = text.disks();
    let content = pattern(6, 0, 4 * EXTENT);
    for (chunk, bytes) in content.chunks(CHUNK).enumerate() {
        for copy in 0..2 {
            let device = chunk * 2 % 4 + copy;
            disks[device].put(extent_at(1) + (chunk * 2 / 4 * CHUNK) as u64, bytes);
        }
    }
    assert_content(device(&open(&disks)[0], "raid").as_ref(), &content);
    for (missing, can_be_read) in [
        ([0, 2], true),
        ([1, 2], true),
        ([1, 3], true),
        ([0, 1], false),
        ([2, 3], false),
    ] {
        let others: Vec<_> = (0..4)
            .filter(|disk| !missing.contains(disk))
            .map(|disk| Arc::clone(&disks[disk]))
            .collect();
        let groups = open(&others);
        if can_be_read {
            assert_content(device(&groups[0], "raid").as_ref(), &content);
        } else {
            reason(&groups[0], "raid");
        }
    }
}

#[test]
fn copies_wrap_to_the_next_row_of_three_devices() {
    // Documentation/admin-guide/device-mapper/dm-raid.rst has this table for three devices.
    let rows = ["112", "233", "445", "566"];
    let legs = (0..3).map(|device| -> Option<SharedDevice> {
        let column = rows.iter().flat_map(|row| [row.as_bytes()[device]; 512]);
        Some(Arc::new(column.collect::<Vec<u8>>()))
    });
    let legs: Vec<_> = legs.collect();
    let expected: Vec<u8> = b"123456".iter().flat_map(|chunk| [*chunk; 512]).collect();
    for missing in [None, Some(0), Some(1), Some(2)] {
        let mut legs = legs.clone();
        if let Some(missing) = missing {
            legs[missing] = None;
        }
        let near = Stripes::new(legs, Layout::Near(2), 512, 6 * 512).unwrap();
        assert_content(&near, &expected);
    }
    assert!(Stripes::new(vec![None, None, legs[2].clone()], Layout::Near(2), 512, 6 * 512).is_none());
    assert!(Stripes::new(legs, Layout::Near(2), 512, 7 * 512).is_none());
}

#[test]
fn raid_0_is_striped() {
    let mut text = text(3);
    for device in 0..3 {
        text.hidden(&format!("raid_rimage_{device}"), &[linear(0, 1, device, 0)]);
    }
    let fields =
        "stripe_count = 3\nstripe_size = 128\nraid0_lvs = [\"raid_rimage_0\", \"raid_rimage_1\", \"raid_rimage_2\"]";
    text.visible("raid", &[segment(0, 3, "raid0", fields)]);
    let disks = text.disks();
    let mut content = pattern(6, 0, 3 * EXTENT);
    content[CHUNK..4 * CHUNK].fill(0);
    for (chunk, bytes) in content.chunks(CHUNK).enumerate() {
        disks[chunk % 3].put(extent_at(0) + (chunk / 3 * CHUNK) as u64, bytes);
    }
    let groups = open(&disks);
    let device = device(&groups[0], "raid");
    assert_content(device.as_ref(), &content);
    assert_eq!(device.next_hole(0).unwrap(), CHUNK as u64);
    assert_eq!(device.next_data(CHUNK as u64 + 9).unwrap(), Some(4 * CHUNK as u64));
}

#[test]
fn a_cache_counts_if_it_may_have_the_newest_data() {
    for (mode, can_be_read) in [
        ("writethrough", true),
        ("passthrough", true),
        ("writeback", false),
        ("", false),
    ] {
        let mut text = text(1);
        text.hidden("corig", &[linear(0, 2, 0, 0)]);
        text.hidden("fast_cvol", &[linear(0, 1, 0, 5)]);
        let mode = format!("cache_mode = \"{mode}\"");
        let mode = if mode.len() > 15 { mode.as_str() } else { "" };
        let fields = format!("cache_pool = \"fast_cvol\"\norigin = \"corig\"\nchunk_size = 128\n{mode}");
        text.visible("cached", &[segment(0, 2, "cache+CACHE_USES_CACHEVOL", &fields)]);
        let fields = "origin = \"corig\"\nwritecache = \"fast_cvol\"\nwritecache_block_size = 4096";
        text.visible("written", &[segment(0, 2, "writecache", fields)]);
        text.visible("vdo", &[segment(0, 2, "vdo", "vdo_pool = \"x\"\nvdo_offset = 0")]);
        text.visible("odd", &[segment(0, 2, "strange", "")]);
        let disks = text.disks();
        disks[0].put(extent_at(0), &pattern(1, 0, 2 * EXTENT));
        let group = open(&disks).remove(0);
        if can_be_read {
            assert_content(device(&group, "cached").as_ref(), &pattern(1, 0, 2 * EXTENT));
            assert!(device(&group, "cached").write_at(0, &[0; 8]).is_err());
        } else {
            let expected = "its newest data may be in the cache fast_cvol (mode writeback)";
            assert_eq!(reason(&group, "cached"), expected);
        }
        assert_eq!(
            reason(&group, "written"),
            "its newest data may be in the cache fast_cvol"
        );
        assert_eq!(reason(&group, "vdo"), "deduplicated volumes (VDO) are not supported");
        assert_eq!(reason(&group, "odd"), "segment type strange is not supported");
    }
}

/// Writes a snapshot's store with chunks of 4 KiB.
fn store(disk: &Memory, at: u64, exceptions: &[(u64, u64)]) {
    let mut header = [0; 16];
    for (field, number) in header.chunks_mut(4).zip([0x7041_6e53_u32, 1, 1, 8]) {
        field.copy_from_slice(&number.to_le_bytes());
    }
    disk.put(at, &header);
    for (number, (old, new)) in exceptions.iter().enumerate() {
        let (table, slot) = (number as u64 / 256, number as u64 % 256);
        let entry = at + ((1 + table * 257) << 12) + slot * 16;
        disk.put(entry, &old.to_le_bytes());
        disk.put(entry + 8, &new.to_le_bytes());
        disk.put(at + (new << 12), &pattern(100 + old % 50, old << 12, 4096));
    }
}

#[test]
fn a_snapshot_has_the_old_chunks_from_its_store() {
    let mut text = text(1);
    text.visible("origin", &[linear(0, 10, 0, 0)]);
    text.hidden("snap", &[linear(0, 6, 0, 20)]);
    let fields = "chunk_size = 8\norigin = \"origin\"\ncow_store = \"snap\"";
    text.visible("snapshot0", &[segment(0, 10, "snapshot", fields)]);
    text.visible("changing", &[linear(0, 2, 0, 30)]);
    text.visible("back", &[linear(0, 2, 0, 40)]);
    let fields = "chunk_size = 8\norigin = \"changing\"\nmerging_store = \"back\"";
    text.visible("snapshot1", &[segment(0, 2, "snapshot", fields)]);
    let disks = text.disks();
    let origin = pattern(1, 0, 10 * EXTENT);
    disks[0].put(extent_at(0), &origin);
    // More chunks than one table has; the tables are at chunks 1 and 258.
    let exceptions: Vec<_> = (0..300_u64)
        .map(|number| (number * 7 % 640, if number < 256 { 2 + number } else { 3 + number }))
        .collect();
    store(&disks[0], extent_at(20), &exceptions);
    store(&disks[0], extent_at(40), &[(5, 2)]);
    let group = open(&disks).remove(0);
    let names: Vec<_> = group.volumes.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["origin", "snap", "changing"]);
    assert_content(device(&group, "origin").as_ref(), &origin);
    let mut expected = origin.clone();
    for (old, _) in &exceptions {
        expected[(old << 12) as usize..][..4096].copy_from_slice(&pattern(100 + old % 50, old << 12, 4096));
    }
    assert_eq!(volume(&group, "snap").size_bytes, 10 * EXTENT as u64);
    assert_content(device(&group, "snap").as_ref(), &expected);
    assert!(device(&group, "snap").write_at(0, &[0; 8]).is_err());
    let mut expected = vec![0; 2 * EXTENT];
    expected[5 << 12..6 << 12].copy_from_slice(&pattern(105, 5 << 12, 4096));
    assert_content(device(&group, "changing").as_ref(), &expected);
    disks[0].put(extent_at(20) + 4, &[0]);
    let group = open(&disks).remove(0);
    assert_eq!(reason(&group, "snap"), "the snapshot is invalid: its store was full");
}

#[test]
fn impossible_groups_have_reasons() {
    let mut text = text(1);
    let refer = |name: &str, extent: i64| {
        let fields = format!("stripe_count = 1\nstripes = [\"{name}\", {extent}]");
        segment(0, 1, "striped", &fields)
    };
    text.visible("good", &[linear(0, 1, 0, 0)]);
    text.visible("circle1", &[refer("circle2", 0)]);
    text.visible("circle2", &[refer("circle1", 0)]);
    text.visible("gap", &[linear(0, 1, 0, 1), linear(2, 1, 0, 2)]);
    text.visible("twice", &[linear(0, 2, 0, 1), linear(1, 2, 0, 5)]);
    text.visible("far", &[linear(0, 1, 0, 60)]);
    text.visible("negative", &[refer("pv0", -1)]);
    text.visible("huge", &[segment(0, usize::MAX >> 2, "zero", "")]);
    text.visible("nowhere", &[refer("absent", 0)]);
    text.visible("inner", &[refer("good", 1)]);
    text.visible("overlap", &[linear(0, 2, 0, 10)]);
    text.visible("overlaps", &[linear(0, 2, 0, 11)]);
    text.visible("zeros", &[segment(0, 2, "zero", "")]);
    text.visible("errors", &[linear(0, 1, 0, 20), segment(1, 1, "error", "")]);
    text.visible("..", &[linear(0, 1, 0, 30)]);
    for level in 0..20 {
        let below = if level == 0 {
            "good".to_owned()
        } else {
            format!("level{}", level - 1)
        };
        text.hidden(&format!("level{level}"), &[refer(&below, 0)]);
    }
    text.visible("deep", &[refer("level19", 0)]);
    let group = open(&text.disks()).remove(0);
    for (name, expected) in [
        ("circle1", "volume circle1 is part of itself"),
        ("gap", "its segments overlap or leave a gap"),
        ("twice", "its segments overlap or leave a gap"),
        ("far", "its extents are outside of its devices"),
        ("negative", "negative extent"),
        ("huge", "it is larger than any device"),
        ("nowhere", "its part absent is not in the metadata"),
        ("inner", "its extents are outside of its devices"),
        ("deep", "volumes nested in more than 16 levels"),
    ] {
        assert_eq!(reason(&group, name), expected, "{name}");
    }
    device(&group, "good");
    assert_content(device(&group, "zeros").as_ref(), &vec![0; 2 * EXTENT]);
    let errors = device(&group, "errors");
    errors.read_at(0, &mut vec![0; EXTENT]).unwrap();
    assert!(errors.read_at(1, &mut vec![0; EXTENT]).is_err());
    assert!(
        group
            .remarks
            .contains(&"volumes overlap and overlaps share extents".to_owned())
    );
    assert!(group.remarks.contains(&"a volume has an invalid name".to_owned()));
    assert!(!group.volumes.iter().any(|volume| volume.name == ".."));
}

#[test]
fn a_disk_that_lost_its_end_is_readable_before_it() {
    let mut text = text(1);
    text.visible("root", &[linear(0, 40, 0, 0)]);
    let disks = text.disks();
    disks[0].put(extent_at(0), &pattern(1, 0, 40 * EXTENT));
    disks[0].0.lock().truncate(extent_at(20) as usize);
    let group = open(&disks).remove(0);
    let root = device(&group, "root");
    let mut start = vec![0; 20 * EXTENT];
    root.read_at(0, &mut start).unwrap();
    assert!(start == pattern(1, 0, start.len()));
    assert!(root.read_at(20 * EXTENT as u64, &mut [0]).is_err());
    assert_eq!(root.next_data(30 * EXTENT as u64).unwrap(), Some(30 * EXTENT as u64));
    assert!(group.remarks[0].ends_with("is smaller than the group's metadata say"));
}

/// A disk whose backup has a damaged block.
struct Damaged(Arc<Memory>, std::ops::Range<u64>);

impl Device for Damaged {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset_bytes < self.1.end && offset_bytes + buf.len() as u64 > self.1.start {
            return Err(io::Error::other("a damaged block"));
        }
        self.0.read_at(offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
}

#[test]
fn a_damaged_block_does_not_hide_the_rest() {
    let mut text = text(2);
    array(&mut text, "raid", "raid1", 2, 2, 0);
    text.visible("root", &[linear(0, 2, 0, 10)]);
    let disks = text.disks();
    for disk in &disks {
        disk.put(extent_at(1), &pattern(1, 0, 2 * EXTENT));
    }
    let cases = [
        (0..512, None),
        (
            4096..8192,
            Some("metadata area 1 of physical volume aaaaaa-bbbb-cccc-dddd-eeee-ffff-000000: a damaged block"),
        ),
        (extent_at(1)..extent_at(2), None),
    ];
    for (range, remark) in cases {
        let first: SharedDevice = Arc::new(Damaged(Arc::clone(&disks[0]), range.clone()));
        let second: SharedDevice = Arc::<Memory>::clone(&disks[1]);
        let Ok(head) = physical_volume(&*first) else {
            assert_eq!(range.start, 0);
            continue;
        };
        let members = vec![(head, first), (physical_volume(&*second).unwrap(), second)];
        let group = assemble(members).remove(0);
        assert_eq!(group.remarks.first().map(String::as_str), remark);
        device(&group, "root").read_at(0, &mut [0; 8]).unwrap();
        // The other copy has what the block had.
        assert!(read_all(device(&group, "raid").as_ref()) == pattern(1, 0, 2 * EXTENT));
    }
}
