use super::*;

const SIZE: u64 = 200 * MIB + 12 * KIB;
const END: u64 = 100 * MIB;

fn device(size_bytes: u64) -> File {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(size_bytes).expect("grows");
    file
}

#[test]
fn every_signature_behind_the_image_is_wiped_and_none_inside_it() {
    for spot in spots(SIZE) {
        for mark in spot.marks {
            let disk = device(SIZE);
            let at = spot.start + spot.mark_at;
            disk.write_all_at(mark, at).expect("writes");
            let wiped = wipe(&disk, END, SIZE).expect("wipes");
            let mut left = vec![0; mark.len()];
            disk.read_exact_at(&mut left, at).expect("reads");
            let is_zero = left.iter().all(|byte| *byte == 0);
            assert_eq!(is_zero, at >= END, "{} at {at}", spot.what);
            assert_eq!(wiped.is_empty(), at < END, "{} at {at}: {wiped:?}", spot.what);
        }
    }
}

#[test]
fn other_bytes_behind_the_image_stay() {
    let disk = device(SIZE);
    let noise = vec![0xAA; (SIZE - END) as usize];
    disk.write_all_at(&noise, END).expect("writes");
    assert_eq!(wipe(&disk, END, SIZE).expect("wipes"), []);
    let mut read = vec![0; noise.len()];
    disk.read_exact_at(&mut read, END).expect("reads");
    assert!(read == noise);
}

#[test]
fn signatures_written_by_the_tools_are_found_at_the_end() {
    // mdadm's numbers for a device of 200 MiB and 12 KiB.
    let starts = |what: &str| {
        let found = spots(SIZE).into_iter().filter(|spot| spot.what == what);
        found.map(|spot| spot.start).collect::<Vec<_>>()
    };
    assert_eq!(starts("Linux RAID 0.90"), [200 * MIB - 64 * KIB]);
    assert_eq!(starts("Linux RAID 1.0"), [200 * MIB + 4 * KIB]);
    assert_eq!(starts("second header of a GPT"), [SIZE - 512, SIZE - 4096]);
    let zfs = starts("ZFS");
    assert!(zfs.contains(&(200 * MIB - 384 * KIB)) && zfs.contains(&(200 * MIB - 128 * KIB)));
}

#[test]
fn tiny_devices_cause_no_error() {
    for size in [0, 1, 511, 512, 513, 4096, 70_000, MIB + 1] {
        for end in [0, 1, size / 2, size] {
            wipe(&device(size), end, size).unwrap_or_else(|error| panic!("{size}, {end}: {error}"));
            has_gpt(&device(size), size).expect("looks");
        }
    }
}
