//! What the real LVM wrote.

use super::image::{EXTENT, Text, extent_at, linear, segment};
use super::lab::Lab;
use super::*;
use crate::probe::Content;
use crate::probe::containers::describe;

/// Returns the fields of a report's lines.
fn report(lab: &Lab, command: &str) -> Vec<Vec<String>> {
    let text = lab.lvm(&format!("{command} --noheadings --separator ; --units b --nosuffix"));
    let lines = text.lines().filter(|line| line.contains(';'));
    lines
        .map(|line| line.trim().split(';').map(str::to_owned).collect())
        .collect()
}

/// Parses `/dev/loop1:4-7`.
fn range(lab: &Lab, text: &str) -> (usize, u64, u64) {
    let (path, extents) = text.rsplit_once(':').unwrap();
    let (first, last) = extents.split_once('-').unwrap();
    let disk = lab.paths().iter().position(|known| *known == path).unwrap();
    (disk, first.parse().unwrap(), last.parse().unwrap())
}

#[test]
fn linear_and_striped_volumes_are_where_lvm_says() {
    let mut lab = Lab::new(&[24, 24]);
    let paths = lab.paths().join(" ");
    lab.lvm(&format!("pvcreate {paths}"));
    lab.lvm(&format!("vgcreate -s 256k my-group {paths}"));
    lab.create("-L 1m -n my-root my-group");
    lab.create("-L 512k -n swap my-group");
    lab.create("-L 2m --type striped -i 2 -I 64k -n striped my-group");
    lab.lvm("lvextend -L 2m my-group/my-root");
    // More than the rest of one disk: the last segment is on the other.
    lab.create("-L 30m -n big my-group");
    let starts: Vec<u64> = report(&lab, "pvs -o pv_name,pe_start")
        .iter()
        .map(|fields| fields[1].parse().unwrap())
        .collect();
    let segments = report(&lab, "lvs -o lv_name,seg_start,seg_size,stripes,seg_pe_ranges my-group");
    let ranges: Vec<Vec<_>> = segments
        .iter()
        .map(|fields| fields[4].split(' ').map(|text| range(&lab, text)).collect())
        .collect();
    let uuid = lab.lvm("vgs --noheadings -o vg_uuid").trim().to_owned();
    let disks = lab.disks();

    // Every byte of every volume is written where the reports say.
    let names = ["my-root", "swap", "striped", "big"];
    let seed = |name: &str| names.iter().position(|known| *known == name).unwrap() as u64;
    for (fields, ranges) in segments.iter().zip(&ranges) {
        let (start, size): (u64, u64) = (fields[1].parse().unwrap(), fields[2].parse().unwrap());
        let legs = ranges.len() as u64;
        assert_eq!(fields[3], legs.to_string());
        for chunk in 0..size >> 16 {
            let (disk, first, last) = ranges[(chunk % legs) as usize];
            let within = (chunk / legs) << 16;
            assert!(within < (last - first + 1) * EXTENT as u64);
            let bytes = pattern(seed(&fields[0]), start + (chunk << 16), 1 << 16);
            disks[disk].put(starts[disk] + first * EXTENT as u64 + within, &bytes);
        }
    }

    let disk: SharedDevice = disks[0].clone();
    let described = describe(Content::LvmMember, &disk).unwrap();
    assert_eq!(described.as_deref(), Some("LVM physical volume of group my-group"));
    let groups = open(&disks);
    let [group] = &groups[..] else {
        panic!("{} groups", groups.len());
    };
    assert_eq!((group.name.as_str(), &group.uuid), ("my-group", &uuid));
    assert_eq!(group.remarks, Vec::<String>::new());
    let found: Vec<&str> = group.volumes.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(found, names);
    for (name, kib) in names.into_iter().zip([2048, 512, 2048, 30 << 10]) {
        assert_eq!(volume(group, name).size_bytes, kib << 10);
        assert_content(
            device(group, name).as_ref(),
            &pattern(seed(name), 0, (kib << 10) as usize),
        );
    }
    assert!(ranges.iter().any(|ranges| ranges.len() == 2) && segments.len() >= 6);

    // Writing goes to the same bytes, across stripes and segments.
    for name in names {
        let device = device(group, name);
        let (at, new) = (device.size_bytes() / 2 - 200_000, pattern(9, 0, 256_000));
        device.write_at(at, &new).unwrap();
        device.flush().unwrap();
        let mut expected = pattern(seed(name), 0, device.size_bytes() as usize);
        expected[at as usize..][..new.len()].copy_from_slice(&new);
        assert_content(device.as_ref(), &expected);
        assert!(device.write_at(device.size_bytes() - 1, b"xy").is_err());
    }
    for (name, seed) in [("my-root", 0), ("big", 3)] {
        // The other volumes still have theirs.
        let start = pattern(seed, 0, 4096);
        let mut read = vec![0; 4096];
        device(group, name).read_at(0, &mut read).unwrap();
        assert_eq!(read, start);
    }

    // Without the second disk, only what lies on the first can be read.
    let groups = open(&disks[..1]);
    assert_eq!(groups[0].volumes.len(), 4);
    device(&groups[0], "swap");
    let expected = format!(
        "physical volume {} is on none of the disks of this backup",
        physical_volume(&*disks[1]).unwrap().uuid
    );
    assert_eq!(reason(&groups[0], "striped"), expected);
    assert_eq!(volume(&groups[0], "striped").size_bytes, 2 << 20);
}

#[test]
fn the_metadata_area_is_a_ring() {
    let mut lab = Lab::new(&[4]);
    let disk = lab.path(0).to_owned();
    lab.lvm(&format!("pvcreate --metadatasize 60k --dataalignment 64k {disk}"));
    lab.lvm(&format!("vgcreate -s 64k ring {disk}"));
    lab.create("-L 64k -n name0 ring");
    let wrapped = |bytes: &[u8]| {
        let word = |at: usize| crate::device::le64(bytes, at);
        word(4096 + 40) + word(4096 + 48) > word(4096 + 32)
    };
    let long = |number: usize| format!("name{number}-{}", "x".repeat(100));
    // A long tag or ten make the text longer, so that it goes around sooner.
    for number in 0..8 {
        lab.lvm(&format!(
            "vgchange --addtag {} ring",
            "t".repeat(1000) + &number.to_string()
        ));
    }
    let mut last = "name0".to_owned();
    for number in 1..=30 {
        lab.lvm(&format!("lvrename ring {last} {}", long(number)));
        last = long(number);
        let bytes = lab.peek(0);
        if wrapped(&bytes) {
            break;
        }
        assert!(number < 30, "the text never reached the end of the area");
    }
    let groups = open(&lab.disks());
    assert_eq!(groups[0].volumes.len(), 1);
    device(&groups[0], &last);
}

#[test]
fn the_newest_metadata_count_wherever_they_are() {
    let mut lab = Lab::new(&[4, 4]);
    let (first, second) = (lab.path(0).to_owned(), lab.path(1).to_owned());
    // The first has an area at each end, the second one has none.
    lab.lvm(&format!("pvcreate --pvmetadatacopies 2 {first}"));
    lab.lvm(&format!("pvcreate --pvmetadatacopies 0 {second}"));
    lab.lvm(&format!("vgcreate -s 64k two {first} {second}"));
    lab.create("-L 64k -n old two");
    let before = lab.peek(0);
    lab.lvm("lvrename two old new");
    lab.create(&format!("-L 64k -n far two {second}"));
    let disks = lab.disks();
    let shared: SharedDevice = Arc::<Memory>::clone(&disks[0]);
    let areas = physical_volume(&*shared).unwrap().metadata_areas;
    assert_eq!(areas.len(), 2);
    let names = |groups: &[Group]| -> Vec<String> {
        let volumes = groups.iter().flat_map(|group| &group.volumes);
        volumes.map(|volume| volume.name.clone()).collect()
    };
    let groups = open(&disks);
    assert_eq!(names(&groups), ["new", "far"]);
    assert_eq!(groups[0].remarks, Vec::<String>::new());
    device(&groups[0], "far");

    // An area that was not written is out of date; one that is damaged is skipped. Both in either order.
    for (number, area) in areas.iter().enumerate() {
        let range = area.offset_bytes as usize..(area.offset_bytes + area.size_bytes) as usize;
        let whole = disks[0].0.lock()[range.clone()].to_vec();
        disks[0].put(area.offset_bytes, &before[range]);
        let groups = open(&disks);
        assert_eq!(names(&groups), ["new", "far"]);
        let remark = format!("metadata area {} of physical volume", number + 1);
        assert!(groups[0].remarks[0].starts_with(&remark) && groups[0].remarks[0].ends_with("is out of date"));

        disks[0].put(area.offset_bytes, &whole);
        let text_at = area.offset_bytes + crate::device::le64(&whole, 40);
        disks[0].put(text_at + 100, b"XXXX");
        let groups = open(&disks);
        assert_eq!(names(&groups), ["new", "far"]);
        assert!(groups[0].remarks[0].contains("the checksum of its text"));
        disks[0].put(area.offset_bytes, &whole);
    }
    // The volume without metadata names no group of its own.
    let shared: SharedDevice = Arc::<Memory>::clone(&disks[1]);
    assert_eq!(physical_volume(&*shared).unwrap().group(), None);
    assert!(open(&disks[1..]).is_empty());
}

#[test]
fn groups_of_one_name_are_told_apart() {
    let mut disks = Vec::new();
    for name in ["here", "there"] {
        let mut lab = Lab::new(&[4]);
        let disk = lab.path(0).to_owned();
        lab.lvm(&format!("vgcreate -s 64k same {disk}"));
        lab.create(&format!("-L 64k -n {name} same"));
        disks.extend(lab.disks());
    }
    let groups = open(&disks);
    assert_eq!(groups.len(), 2);
    assert!(
        groups
            .iter()
            .all(|group| group.name == "same" && group.volumes.len() == 1)
    );
    assert_ne!(groups[0].uuid, groups[1].uuid);
    // A copy of a disk is not a second group.
    let copy = Memory::new(disks[0].0.lock().clone());
    let groups = open(&[Arc::clone(&disks[0]), copy]);
    assert_eq!(groups.len(), 1);
    assert!(groups[0].remarks[0].ends_with("exists more than once; the first is used"));
}

/// Mirrors, arrays, caches, snapshots and pools can't be made without device mapper. LVM restores them from a text,
/// though, and checks it.
#[test]
fn lvm_accepts_the_texts_of_the_other_tests() {
    let mut lab = Lab::new(&[16, 16, 16]);
    let paths = lab.paths().join(" ");
    lab.lvm(&format!("vgcreate -s 256k group {paths}"));
    let members = report(&lab, "pvs -o pv_name,pv_uuid,pv_pe_count");
    let members = members
        .iter()
        .map(|fields| (fields[1].clone(), fields[2].parse().unwrap()));
    let mut text = Text::new(members.collect());
    text.seqno = 7;
    complete(&mut text);
    // The group that exists has a UUID of its own, so its place is taken.
    let group_uuid = lab.lvm("vgs --noheadings -o vg_uuid").trim().to_owned();
    let built = text.build().replace(&super::image::uuid(999), &group_uuid);
    std::fs::write(lab.file("text"), built).unwrap();
    let file = lab.file("text").display().to_string();
    lab.lvm(&format!("vgcfgrestore --force -f {file} group"));
    let shown = report(&lab, "lvs -a -o lv_name,segtype group");
    for (name, kind) in [
        ("mirrored", "mirror"),
        ("raid", "raid1"),
        ("five", "raid5_ls"),
        ("thin1", "thin"),
        ("cached", "cache"),
    ] {
        assert!(
            shown.contains(&vec![name.to_owned(), kind.to_owned()]),
            "{name}: {shown:?}"
        );
    }
    let disks = lab.disks();
    disks[0].put(extent_at(0), &pattern(1, 0, EXTENT));
    let groups = open(&disks);
    assert_eq!(groups.len(), 1);
    let mut start = vec![0; EXTENT];
    for name in ["mirrored", "raid"] {
        device(&groups[0], name);
    }
    device(&groups[0], "mirrored").read_at(0, &mut start).unwrap();
    assert_eq!(start, pattern(1, 0, EXTENT));
    assert_eq!(reason(&groups[0], "thin1"), "damaged: superblock of the thin pool");
    assert_eq!(reason(&groups[0], "snap"), "the snapshot was not yet in use");
}

/// Adds a volume of each kind.
pub(super) fn complete(text: &mut Text) {
    text.hidden("mirrored_mlog", &[linear(0, 1, 2, 0)]);
    text.hidden("mirrored_mimage_0", &[linear(0, 2, 0, 0)]);
    text.hidden("mirrored_mimage_1", &[linear(0, 2, 1, 0)]);
    let fields = "mirror_count = 2\nmirror_log = \"mirrored_mlog\"\nregion_size = 1024\n\
                  mirrors = [\"mirrored_mimage_0\", 0, \"mirrored_mimage_1\", 0]";
    text.visible("mirrored", &[segment(0, 2, "mirror", fields)]);
    array(text, "raid", "raid1", 2, 2, 2);
    array(text, "five", "raid5_ls", 3, 2, 5);
    text.hidden("cached_corig", &[linear(0, 2, 0, 8)]);
    text.hidden("cache_cdata", &[linear(0, 2, 0, 10)]);
    text.hidden("cache_cmeta", &[linear(0, 1, 0, 12)]);
    let fields = "data = \"cache_cdata\"\nmetadata = \"cache_cmeta\"\nchunk_size = 128\nmetadata_format = 2\n\
                  cache_mode = \"writethrough\"\npolicy = \"smq\"";
    text.hidden("cache", &[segment(0, 2, "cache-pool", fields)]);
    let fields = "cache_pool = \"cache\"\norigin = \"cached_corig\"";
    text.visible("cached", &[segment(0, 2, "cache", fields)]);
    text.visible("origin", &[linear(0, 2, 0, 13)]);
    text.hidden("snap", &[linear(0, 2, 0, 15)]);
    let fields = "chunk_size = 8\norigin = \"origin\"\ncow_store = \"snap\"";
    text.visible("snapshot0", &[segment(0, 2, "snapshot", fields)]);
    text.hidden("pool_tmeta", &[linear(0, 8, 1, 8)]);
    text.hidden("pool_tdata", &[linear(0, 16, 1, 16)]);
    let fields = "metadata = \"pool_tmeta\"\npool = \"pool_tdata\"\ntransaction_id = 5\nchunk_size = 128\n\
                  discards = \"passdown\"\nzero_new_blocks = 1";
    text.visible("pool", &[segment(0, 16, "thin-pool", fields)]);
    for (number, origin) in [(1, ""), (2, "\norigin = \"thin1\"")] {
        let fields = format!("thin_pool = \"pool\"\ntransaction_id = {number}\ndevice_id = {number}{origin}");
        text.visible(&format!("thin{number}"), &[segment(0, 40, "thin", &fields)]);
    }
}

/// Adds an array whose devices are on the first physical volumes, each at `extent`: one extent of metadata, and `count`
/// extents of data.
pub(super) fn array(text: &mut Text, name: &str, kind: &str, devices: usize, count: usize, extent: usize) {
    let mut names = Vec::new();
    for device in 0..devices {
        let (meta, image) = (format!("{name}_rmeta_{device}"), format!("{name}_rimage_{device}"));
        text.hidden(&meta, &[linear(0, 1, device, extent)]);
        text.hidden(&image, &[linear(0, count, device, extent + 1)]);
        names.push(format!("\"{meta}\", \"{image}\""));
    }
    let data = match kind {
        "raid1" => 1,
        "raid10" => devices / 2,
        kind if kind.starts_with("raid6") => devices - 2,
        _ => devices - 1,
    };
    let stripe = if kind == "raid1" { "" } else { "stripe_size = 128\n" };
    let fields = format!(
        "device_count = {devices}\nregion_size = 1024\n{stripe}raids = [{}]",
        names.join(", ")
    );
    text.visible(name, &[segment(0, count * data, kind, &fields)]);
}
