use std::sync::atomic::AtomicBool;

use super::*;
use crate::catalogue::Catalogue;
use crate::error::ErrorKind;
use crate::id::BlockId;
use crate::mark::mark;
use crate::reader::{ImageReader, ReadResources};
use crate::repair::Repair;
use crate::slots::SlotReader;
use crate::store::memory::MemoryStore;
use crate::store::{PruneOptions, Record, StoreManager, StoreReader, StoreWriter};
use crate::tests::testing::{SMALL, backup, mixed_bytes, store_image};
use crate::verify::{Scope, VerifyReport, verify};

const FRIDAY: &str = "2026-11-20T05-54-00Z";
const SATURDAY: &str = "2026-11-21T05-54-00Z";

fn image(name: &str) -> Image {
    Image::new(name.parse().expect("a name"), "", 0, NodeId([1; 32]))
}

fn record(images: &[&str], files: &[&str]) -> Backup {
    let mut made = backup("web1", FRIDAY, images.iter().map(|name| image(name)).collect());
    made.files = files.iter().map(|name| image(name)).collect();
    made
}

/// A day of a disk, with a configuration file; committed.
fn day(store: &MemoryStore, time: &str, disk: u32, file: &[u8]) -> Entry {
    let mut made = backup(
        "web1",
        time,
        vec![store_image(store, "vda", &mixed_bytes(disk, 3 << 20))],
    );
    made.files = vec![store_image(store, "config.xml", file)];
    let key = made.spec();
    let bytes = made.encode();
    let entry = Entry::decode(store.hashing(), &key, &bytes).expect("is good");
    store.commit(&Record { key, bytes }).expect("commits");
    entry
}

fn read_file(store: &std::sync::Arc<MemoryStore>, entry: &Entry) -> Result<Vec<u8>> {
    let file = entry.backup.file("config.xml")?;
    ImageReader::open(store.clone(), ReadResources::new(1), file)?.read_file("config.xml")
}

fn block_of_file(store: &MemoryStore, entry: &Entry) -> BlockId {
    let file = entry.backup.file("config.xml").expect("is there");
    let slots = SlotReader::open(store, file.manifest).expect("opens").segment(0);
    slots.expect("reads")[0].expect("not zero")
}

fn check(store: &MemoryStore, entries: &[Entry]) -> VerifyReport {
    verify(store, entries, &Scope::All, 2, &|_| (), &AtomicBool::new(false)).expect("runs")
}

#[test]
fn a_record_leaves_out_what_it_does_not_have() {
    let (without, with) = (record(&["vda"], &[]), record(&["vda"], &["config.xml"]));
    let text = String::from_utf8(without.encode()).expect("JSON");
    for optional in ["files", "snapshot", "skipped_bytes", "hints_wrong"] {
        assert!(!text.contains(optional), "{text}");
    }
    assert!(String::from_utf8(with.encode()).expect("JSON").contains("\"files\""));
}

#[test]
fn names_that_would_hide_others_are_refused_also_in_a_record_from_elsewhere() {
    let refused = [
        record(&["vda"], &["backup.json"]),
        record(&["vda"], &["vda.img"]),
        record(&["vda"], &["vda.p1.img"]),
        record(&["vda"], &["other.img"]),
        record(&["vda"], &["vda"]),
        record(&["vda"], &["config.xml", "config.xml"]),
        record(&["vda", "vda"], &[]),
    ];
    for bad in refused {
        assert!(bad.check().is_err(), "{bad:?}");
        let decoded = Entry::decode(Hashing::Plain, &bad.spec(), &bad.encode());
        assert!(matches!(decoded, Err(Error::RecordDamaged { .. })), "{decoded:?}");
    }
    for name in ["../x", "a/b", ".hidden", "-x"] {
        let text = String::from_utf8(record(&["vda"], &["config.xml"]).encode()).expect("JSON");
        let bad = text.replace("config.xml", name);
        assert!(
            Entry::decode(Hashing::Plain, &format!("web1@{FRIDAY}"), bad.as_bytes()).is_err(),
            "{name}"
        );
    }
    let good = record(&["vda", "vdb"], &["config.xml", "nvram.fd", "disks.json", "img"]);
    Entry::decode(Hashing::Plain, &good.spec(), &good.encode()).expect("is good");
}

#[test]
fn one_disk_or_file_can_be_picked_out() {
    let all = record(&["vda", "vdb"], &["config.xml"]);
    let vdb = all.only("vdb").expect("is there");
    assert_eq!((vdb.images.len(), vdb.files.len()), (1, 0));
    let file = all.only("config.xml").expect("is there");
    assert_eq!((file.images.len(), file.files.len()), (0, 1));
    assert_eq!(all.only("vdc").map_err(|error| error.kind()), Err(ErrorKind::NotFound));
    assert_eq!(
        all.file("nvram.fd").map_err(|error| error.to_string()).err(),
        Some(format!(
            "backup web1@{FRIDAY} has no file \"nvram.fd\"; its files: config.xml"
        ))
    );
}

#[test]
fn a_file_survives_a_prune_after_another_backup_was_forgotten() {
    let store = std::sync::Arc::new(MemoryStore::new(SMALL));
    let (old, new) = (mixed_bytes(7, 100_000), mixed_bytes(8, 100_000));
    let first = day(&store, FRIDAY, 1, &old);
    let second = day(&store, SATURDAY, 2, &new);
    store.amend(&[first.backup.spec()], &[]).expect("forgets");
    let live = mark(
        &*store,
        &Catalogue::load(&*store).expect("loads"),
        2,
        &AtomicBool::new(false),
    );
    let options = PruneOptions {
        max_unused: 0.0,
        dry_run: false,
        empty_bin: false,
    };
    let swept = store.retain(&live.expect("marks"), options, &mut |_| Ok(()));
    assert!(swept.expect("sweeps").removed_blocks > 0);
    assert_eq!(read_file(&store, &second).expect("reads"), new);
    assert_eq!(check(&store, &[second]).damage, []);
    assert!(
        read_file(&store, &first).is_err(),
        "the forgotten one's file is gone too"
    );
}

#[test]
fn damage_to_a_file_is_named_by_its_name_and_can_be_repaired() {
    let store = std::sync::Arc::new(MemoryStore::new(SMALL));
    let text = mixed_bytes(7, 60_000);
    let entry = day(&store, FRIDAY, 1, &text);
    store.damage(block_of_file(&store, &entry), |sealed| sealed.pages[0][5] ^= 1);
    assert!(read_file(&store, &entry).is_err(), "a damaged file is never returned");
    let found = check(&store, std::slice::from_ref(&entry));
    let named: Vec<_> = found.damage.iter().map(|one| (&*one.disk, one.len_bytes)).collect();
    assert_eq!(named, [("config.xml", 60_000)]);
    let write = |change: &mut dyn FnMut(&dyn StoreManager) -> crate::Result<()>| change(&*store);
    let mut repair = Repair::start(store.hashing(), &write, &found).expect("starts");
    assert!(repair.offer(&text).expect("takes"));
    repair.finish().expect("finishes");
    assert_eq!(check(&store, std::slice::from_ref(&entry)).damage, []);
    assert_eq!(read_file(&store, &entry).expect("reads"), text);
}

#[test]
fn a_file_that_claims_to_be_huge_is_not_read_into_memory() {
    let store = std::sync::Arc::new(MemoryStore::new(SMALL));
    let huge = store_image(&*store, "config.xml", &vec![0; MAX_FILE_BYTES as usize + 1]);
    let reader = ImageReader::open(store, ReadResources::new(1), &huge).expect("opens");
    let error = reader.read_file("config.xml").expect_err("is refused");
    assert!(matches!(error, Error::FileTooLarge { .. }), "{error}");
}
