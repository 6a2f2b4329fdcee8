use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::*;
use crate::block::{Hashing, PAGE_BYTES};
use crate::codec::{Compression, Sealed, Sealer};
use crate::store::StoreWriter;
use crate::store::rocks::tests::Fixture;

/// Pages of a block.
const PAGES: usize = 16;

/// A block of 1 MiB in which each page differs; the last one is zeros.
fn block(seed: u8) -> Sealed {
    let plain: Vec<u8> = (0..PAGES * PAGE_BYTES)
        .map(|i| match i / PAGE_BYTES {
            page if page == PAGES - 1 => 0,
            page => (i * 7 % 251) as u8 ^ seed ^ page as u8,
        })
        .collect();
    Sealer::new(Compression::None)
        .and_then(|mut sealer| sealer.seal(&plain, &Hashing::Plain.block(&plain)))
        .expect("seals")
}

fn wanted(block: &Sealed, pages: std::ops::Range<usize>) -> Wanted {
    Wanted { id: block.id, pages }
}

/// Returns the blocks, and a view of a store that has them in this order.
fn stored(fixture: &Fixture, count: u8) -> (Vec<Sealed>, PathBuf) {
    let blocks: Vec<_> = (1..=count).map(block).collect();
    fixture.store().put(blocks.clone()).expect("puts");
    fixture.store().flush().expect("flushes");
    let path = fixture.directory.path().join("view");
    fixture.store().checkpoint(&path).expect("makes a view");
    (blocks, path)
}

/// Opens a view to read it through. Needs a temporary directory on a file system that knows O_DIRECT.
fn scan(path: &Path) -> Scan {
    let view = Arc::new(RocksReader::open(path, None).expect("opens"));
    Scan::open(&view).expect("the temporary directory can be read with direct I/O")
}

/// Number of reads that this thread has asked the kernel for (proc(5), `/proc/pid/io`).
fn reads() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").expect("the kernel counts reads");
    let count = io.lines().find_map(|line| line.strip_prefix("syscr: "));
    count.and_then(|count| count.parse().ok()).expect("a number")
}

#[test]
fn a_scan_gives_what_the_view_gives() {
    let fixture = Fixture::new();
    let (blocks, path) = stored(&fixture, 5);
    let scan = scan(&path);
    let missing = Wanted {
        id: BlockId([7; 32]),
        pages: 0..2,
    };
    let wanted = [
        wanted(&blocks[4], 0..PAGES),
        wanted(&blocks[0], 3..5),
        missing,
        wanted(&blocks[2], 0..0),
        // Wanted twice, and a block of a disk may well be.
        wanted(&blocks[0], 0..PAGES),
        wanted(&blocks[4], PAGES - 2..PAGES),
    ];
    let text = |answers: Vec<Result<Stored>>| {
        let text = answers
            .into_iter()
            .map(|answer| answer.map_err(|error| error.to_string()));
        text.collect::<Vec<_>>()
    };
    let found = text(scan.get(&wanted));
    assert_eq!(found, text(scan.view.get(&wanted)));
    assert_eq!(found.iter().filter(|answer| answer.is_ok()).count(), 5);
}

#[test]
fn blocks_that_lie_together_are_read_together() {
    let fixture = Fixture::new();
    let (blocks, path) = stored(&fixture, 8);
    let scan = scan(&path);
    let wanted: Vec<_> = blocks.iter().map(|block| wanted(block, 0..PAGES)).collect();
    // Opens the files.
    assert!(scan.get(&wanted[..1])[0].is_ok());
    let before = reads();
    assert!(scan.get(&wanted).iter().all(Result::is_ok));
    let scanned = reads() - before;
    let before = reads();
    assert!(scan.view.get(&wanted).iter().all(Result::is_ok));
    let paged = reads() - before;
    let pages = (8 * (PAGES - 1)) as u64;
    assert!(paged >= pages, "{paged} reads of {pages} pages");
    // RocksDB takes 32 pages together. A few more are those of the count itself.
    assert!(scanned <= 12, "{scanned} reads of 8 blocks");
}

#[test]
fn a_wrong_byte_costs_only_its_own_block() {
    let fixture = Fixture::new();
    let (blocks, path) = stored(&fixture, 4);
    let blob = std::fs::read_dir(&path)
        .expect("lists")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.extension().is_some_and(|extension| extension == "blob"))
        .expect("a blob file");
    let bytes = std::fs::read(&blob).expect("reads");
    let page = &blocks[1].pages[3];
    let at = bytes
        .windows(page.len())
        .position(|window| window == page)
        .expect("is stored");
    let file = std::fs::File::options().write(true).open(&blob).expect("opens");
    file.write_all_at(&[!bytes[at + 500]], at as u64 + 500).expect("writes");

    let scan = scan(&path);
    let wanted: Vec<_> = blocks.iter().map(|block| wanted(block, 0..PAGES)).collect();
    for (number, answer) in scan.get(&wanted).iter().enumerate() {
        match (number, answer) {
            (1, Err(Error::BlockDamaged { id, .. })) => assert_eq!(*id, blocks[1].id),
            (number, answer) => assert!(number != 1 && answer.is_ok(), "{number}: {answer:?}"),
        }
    }
}

#[test]
fn a_direct_read_that_fails_is_made_again_by_the_view() {
    let fixture = Fixture::new();
    let (blocks, path) = stored(&fixture, 2);
    let view = Arc::new(RocksReader::open(&path, None).expect("opens"));
    let wanted: Vec<_> = blocks.iter().map(|block| wanted(block, 0..PAGES)).collect();
    assert!(view.get(&wanted).iter().all(Result::is_ok));
    // Opened where the files then are not, while the view has them open.
    let other = fixture.directory.path().join("other");
    fixture.store().checkpoint(&other).expect("makes a view");
    let elsewhere = scan(&other);
    for entry in std::fs::read_dir(&other).expect("lists") {
        std::fs::remove_file(entry.expect("an entry").path()).expect("removes");
    }
    let Scan { direct, view: gone } = elsewhere;
    drop(gone);
    let scan = Scan { direct, view };
    let answers = scan.get(&wanted);
    for (answer, block) in answers.iter().zip(&blocks) {
        let stored = answer.as_ref().expect("the view has it");
        assert_eq!(stored.pages, block.pages);
    }
}
