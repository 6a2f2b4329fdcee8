use std::io::Write;
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const ID: &str = "8f3c";

fn disk(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 % 251) as u8).collect()
}

fn scratch(limit_bytes: u64) -> Arc<Scratch> {
    let file = tempfile::tempfile().expect("a file");
    Arc::new(Scratch::create(file, limits(limit_bytes), None).expect("creates"))
}

fn limits(bytes: u64) -> Limits {
    Limits { bytes, floor_bytes: 0 }
}

fn read(device: &dyn Device, offset_bytes: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    device.read_at(offset_bytes, &mut bytes).expect("reads");
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_overlay_reads_as_the_disk_with_all_writes(
        size in 1_usize..3_000_000,
        writes in prop::collection::vec((any::<u32>(), 1_usize..20_000, any::<u8>()), 1..60),
    ) {
        let mut model = disk(size);
        let overlay = Overlay::new(Arc::new(model.clone()), 0, scratch(1 << 30));
        for (at, len, byte) in writes {
            let at = at as usize % size;
            let len = len.min(size - at);
            overlay.write_at(at as u64, &vec![byte; len]).expect("writes");
            model[at..at + len].fill(byte);
        }
        prop_assert!(read(&overlay, 0, size) == model);
        let (from, len) = (size / 3, size / 2);
        prop_assert!(read(&overlay, from as u64, len) == model[from..from + len]);
    }
}

#[test]
fn a_kept_file_names_exactly_the_pages_that_were_written() {
    let file = tempfile::tempfile().expect("a file");
    let again = file.try_clone().expect("clones");
    let size = 5_000_000;
    let disks = ["vda", "vdb"].map(|name| ChangedDisk {
        name: name.into(),
        size_bytes: size as u64,
    });
    let scratch = Arc::new(Scratch::create(file, limits(1 << 30), Some((ID, &disks))).expect("creates"));
    let mut model = disk(size);
    let overlay = Overlay::new(Arc::new(model.clone()), 1, Arc::clone(&scratch));
    // More than one group, and the part of a page at the disk's end.
    for at in (0..size).rev().step_by(4096).chain([17, size - 3]) {
        let len = 3.min(size - at);
        overlay.write_at(at as u64, &[9; 3][..len]).expect("writes");
        model[at..at + len].fill(9);
    }
    scratch.close().expect("closes");
    drop((overlay, scratch));

    let changes = Changes::open(again).expect("opens");
    assert_eq!((changes.backup(), changes.disks()), (ID, disks.as_slice()));
    assert!(changes.is_closed());
    let mut restored = disk(size);
    let mut pages = 0;
    let mut apply = |at: u64, bytes: &[u8]| {
        restored[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        pages += 1;
        Ok::<(), io::Error>(())
    };
    changes.pages("vdb", &mut apply).expect("applies");
    changes
        .pages("vda", &mut |_, _| panic!("vda is unchanged"))
        .unwrap_or_else(|error: io::Error| panic!("{error}"));
    assert!(restored == model);
    assert_eq!(pages, size.div_ceil(PAGE_BYTES));
}

#[test]
fn writes_beyond_the_limit_fail_and_change_nothing() {
    let model = disk(1 << 20);
    let overlay = Overlay::new(Arc::new(model.clone()), 0, scratch(8 * PAGE));
    overlay.write_at(0, &[1; 8 * PAGE_BYTES]).expect("fits");
    let error = overlay.write_at(9 * PAGE, &[1]).expect_err("is full");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    overlay
        .write_at(PAGE, &[2; 100])
        .expect("a page that is there can be written again");
    assert!(read(&overlay, 9 * PAGE, 5000) == model[9 * PAGE_BYTES..9 * PAGE_BYTES + 5000]);
    assert!(overlay.write_at((1 << 20) - 1, &[0; 2]).is_err(), "past the end");
}

/// Number of slots that hold no page and will never again be taken.
fn lost_slots(scratch: &Scratch) -> u32 {
    let next = scratch.next.lock();
    let free: u32 = next.free.iter().map(|free| free.end - free.start).sum();
    next.slot - free - scratch.slots.read().len() as u32
}

#[test]
fn a_write_that_fails_gives_its_space_back() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let read_only = File::open(file.path()).expect("opens");
    let scratch = Arc::new(Scratch::create(read_only, limits(8 * PAGE), None).expect("creates"));
    let overlay = Overlay::new(Arc::new(disk(1 << 20)), 0, Arc::clone(&scratch));
    for page in 0..20 {
        let error = overlay.write_at(page * PAGE, &[1; 3 * PAGE_BYTES]).expect_err("fails");
        assert_ne!(error.kind(), io::ErrorKind::StorageFull, "there is room");
    }
    assert_eq!(lost_slots(&scratch), 0);
}

#[test]
fn no_page_is_added_when_the_host_has_no_room() {
    let file = tempfile::tempfile().expect("a file");
    let none = Limits {
        bytes: 1 << 30,
        floor_bytes: u64::MAX,
    };
    let scratch = Arc::new(Scratch::create(file, none, None).expect("creates"));
    let overlay = Overlay::new(Arc::new(disk(1 << 20)), 0, Arc::clone(&scratch));
    for _ in 0..2 {
        let error = overlay.write_at(0, &[1]).expect_err("is full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
    assert_eq!(lost_slots(&scratch), 0);
}

#[test]
fn pages_in_scattered_slots_are_read_back() {
    let scratch = scratch(16 * PAGE);
    scratch.next.lock().slot = 10;
    scratch.give_back([1..3, 7..8, 4..6]);
    let overlay = Overlay::new(Arc::new(disk(1 << 20)), 0, Arc::clone(&scratch));
    let bytes: Vec<u8> = (0..9 * PAGE_BYTES).map(|at| (at / 1000) as u8).collect();
    overlay.write_at(5 * PAGE, &bytes).expect("fits");
    assert!(read(&overlay, 5 * PAGE, bytes.len()) == bytes);
    let error = overlay.write_at(20 * PAGE, &[1; 3 * PAGE_BYTES]);
    assert_eq!(error.map_err(|error| error.kind()), Err(io::ErrorKind::StorageFull));
    overlay
        .write_at(20 * PAGE, &[1; 2 * PAGE_BYTES])
        .expect("two slots are left");
}

#[test]
fn writers_of_parts_of_one_page_lose_nothing() {
    let scratch = scratch(1 << 30);
    let overlay = Overlay::new(Arc::new(vec![0; 64 * PAGE_BYTES]), 0, Arc::clone(&scratch));
    std::thread::scope(|scope| {
        for part in 0..8_u64 {
            let overlay = &overlay;
            scope.spawn(move || {
                for page in 0..64 {
                    overlay
                        .write_at(page * PAGE + part * 512, &[part as u8 + 1; 512])
                        .expect("writes");
                }
            });
        }
    });
    let all = read(&overlay, 0, 64 * PAGE_BYTES);
    assert!(
        all.iter()
            .enumerate()
            .all(|(at, byte)| usize::from(*byte) == at % PAGE_BYTES / 512 + 1)
    );
    assert_eq!(lost_slots(&scratch), 0);
}

#[test]
fn a_file_that_is_cut_or_damaged_is_refused() {
    let make = || {
        let file = tempfile::tempfile().expect("a file");
        let disks = [ChangedDisk {
            name: "vda".into(),
            size_bytes: 1 << 20,
        }];
        let scratch =
            Scratch::create(file.try_clone().expect("clones"), limits(1 << 30), Some((ID, &disks))).expect("creates");
        let scratch = Arc::new(scratch);
        let overlay = Overlay::new(Arc::new(disk(1 << 20)), 0, Arc::clone(&scratch));
        overlay.write_at(0, &[1; 3 * PAGE_BYTES]).expect("writes");
        overlay.flush().expect("flushes");
        file
    };
    assert!(Changes::open(make()).is_ok());
    let damages: [&dyn Fn(&File); 4] = [
        &|file| file.set_len(page_offset(2) + 1).expect("cuts"),
        &|file| file.set_len(100).expect("cuts"),
        &|file| {
            file.write_all_at(&Page { disk: 1, number: 0 }.entry().to_le_bytes(), HEADER_BYTES)
                .expect("writes")
        },
        &|file| {
            file.write_all_at(&Page { disk: 0, number: 1 }.entry().to_le_bytes(), HEADER_BYTES)
                .expect("writes")
        },
    ];
    for damage in damages {
        let file = make();
        damage(&file);
        assert_eq!(
            Changes::open(file).err().map(|error| error.kind()),
            Some(io::ErrorKind::InvalidData)
        );
    }
}

/// A file system of 1 MiB.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Self {
        let small = Self(tempfile::tempdir().expect("a directory"));
        let arguments = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        let mounted = Command::new("mount").args(arguments).arg(small.0.path()).status();
        assert!(mounted.expect("mount of package mount").success(), "root can mount");
        small
    }

    fn fill(&self) {
        let mut filler = File::create(self.0.path().join("filler")).expect("creates");
        while filler.write_all(&[1; PAGE_BYTES]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.path().join("filler")).expect("removes");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// Writes three pages to a disk whose changes are kept on a small file system. Returns the file too.
fn three_pages_on(small: &Small) -> (Arc<Scratch>, Overlay, File) {
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    let file = options.open(small.0.path().join("kept")).expect("creates");
    let disks = [ChangedDisk {
        name: "vda".into(),
        size_bytes: 1 << 20,
    }];
    let kept = file.try_clone().expect("clones");
    let scratch = Arc::new(Scratch::create(kept, limits(1 << 30), Some((ID, &disks))).expect("creates"));
    let overlay = Overlay::new(Arc::new(disk(1 << 20)), 0, Arc::clone(&scratch));
    overlay.write_at(5 * PAGE, &[7; 3 * PAGE_BYTES]).expect("writes");
    (scratch, overlay, file)
}

/// Number and first byte of each changed page.
fn pages_of(changes: &Changes) -> Vec<(u64, u8)> {
    let mut pages = Vec::new();
    let mut each = |at: u64, bytes: &[u8]| {
        pages.push((at / PAGE, bytes[0]));
        Ok::<(), io::Error>(())
    };
    changes.pages("vda", &mut each).expect("reads");
    pages
}

#[test]
fn a_full_disk_takes_no_page_and_keeps_those_that_it_took() {
    let small = Small::mount();
    let (scratch, overlay, file) = three_pages_on(&small);
    small.fill();
    let error = overlay.write_at(20 * PAGE, &[8; PAGE_BYTES]).expect_err("is full");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    overlay.write_at(6 * PAGE, &[9; PAGE_BYTES]).expect("has its page");
    scratch.close().expect("needs no room");
    drop((scratch, overlay));
    let changes = Changes::open(file).expect("opens");
    assert!(changes.is_closed());
    assert_eq!(pages_of(&changes), [(5, 7), (6, 9), (7, 7)]);
}

#[test]
fn a_group_that_finds_no_room_for_its_index_is_not_begun() {
    let small = Small::mount();
    let (scratch, overlay, _file) = three_pages_on(&small);
    scratch.next.lock().slot = GROUP_PAGES as u32;
    small.fill();
    let error = overlay.write_at(20 * PAGE, &[8; PAGE_BYTES]).expect_err("is full");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(scratch.next.lock().slot, GROUP_PAGES as u32);
    small.make_room();
    overlay.write_at(20 * PAGE, &[8; PAGE_BYTES]).expect("there is room");
}

#[test]
fn an_index_that_finds_no_room_is_written_by_the_next_flush() {
    let small = Small::mount();
    let (scratch, overlay, file) = three_pages_on(&small);
    // As on a file system that can't overwrite in place.
    let mode = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, mode, index_offset(0), PAGE).expect("takes the room away");
    small.fill();
    for _ in 0..2 {
        let error = overlay.flush().expect_err("is full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
    small.make_room();
    overlay.write_at(20 * PAGE, &[8; PAGE_BYTES]).expect("there is room");
    overlay.flush().expect("there is room");
    drop((scratch, overlay));
    let changes = Changes::open(file).expect("opens");
    assert!(!changes.is_closed());
    assert_eq!(pages_of(&changes), [(5, 7), (6, 7), (7, 7), (20, 8)]);
}
