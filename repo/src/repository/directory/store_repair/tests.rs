use std::sync::atomic::AtomicBool;

use super::*;

use crate::block::BlockSize;
use crate::keys::{Keys, Unlock};
use crate::reader::{ImageReader, ReadResources};
use crate::repository::directory::views::View as Found;
use crate::repository::{CreateOptions, Repository, View};
use crate::store::rocks::RocksReader;
use crate::tests::testing::{backup, mixed_bytes, store_image};

/// No wish to stop.
static GO: AtomicBool = AtomicBool::new(false);

struct Fixture {
    directory: tempfile::TempDir,
    plain: Vec<Vec<u8>>,
}

impl Fixture {
    /// Creates a closed repository with three backups.
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("repo");
        let repository = Repository::create(&path, &CreateOptions::plain(BlockSize::MIN)).expect("creates");
        let plain: Vec<_> = (1..4).map(|seed| mixed_bytes(seed, 300_000)).collect();
        for (day, plain) in plain.iter().enumerate() {
            let writer = repository.writer("test", &mut |_| true).expect("opens");
            let image = store_image(writer.store(), "vda", plain);
            let time = format!("2026-11-2{day}T05-54-00Z");
            let committed = writer.commit(backup("web1", &time, vec![image])).expect("commits");
            assert!(committed.unpublished.is_none());
        }
        Self { directory, plain }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("repo")
    }

    /// Returns a copy with its hard links, to be damaged.
    fn copy(&self) -> PathBuf {
        let copy = self.directory.path().join("copy");
        remove_tree(&copy).expect("removes");
        let mut command = std::process::Command::new("cp");
        let status = command.arg("-a").arg(self.path()).arg(&copy).status();
        assert!(status.expect("cp runs").success());
        copy
    }

    fn files(&self, extensions: &[&str]) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path().join("store")).expect("lists");
        let name = |entry: io::Result<fs::DirEntry>| PathBuf::from("store").join(entry.expect("an entry").file_name());
        let wanted = |path: &PathBuf| {
            let text = path.to_string_lossy().into_owned();
            extensions.iter().any(|end| text.contains(end))
        };
        entries.map(name).filter(wanted).collect()
    }

    fn assert_whole(&self, path: &Path, what: &str) {
        let repository = Repository::open(path).expect("opens");
        let mended = repository.mend(&mut |_| true).expect("mends");
        assert_eq!(mended.left, Vec::<String>::new(), "{what}");
        // A process that another test starts may hold the lock until it runs its program.
        drop(repository.writer("test", &mut |_| true).expect("opens for writing"));
        let view = repository.view().expect("opens");
        assert_reads(&view, &self.plain, &format!("{what}: {mended:?}"));
        let again = repository.mend(&mut |_| true).expect("mends");
        assert_eq!(again, Mended::default(), "{what}: a second repair finds nothing");
        assert_eq!(
            check_tables(path, view.number(), &GO).expect("checks"),
            Vec::<String>::new()
        );
        assert_eq!(
            repository
                .check_stored(&AtomicBool::new(false), &mut |what| panic!("{what}"))
                .ok()
                .map(|n| n > 0),
            Some(true)
        );
    }
}

fn assert_reads(view: &View, all: &[Vec<u8>], what: &str) {
    let catalogue = view.catalogue().expect("loads");
    assert_eq!(catalogue.entries().len(), all.len(), "{what}");
    for (entry, plain) in catalogue.entries().iter().zip(all) {
        let resources = ReadResources::new(1);
        let image = ImageReader::open(view.store(), resources, &entry.backup.images[0]).expect("opens");
        let mut out = vec![0; plain.len()];
        image.read_at(0, &mut out).expect("reads");
        assert!(out == *plain, "{what}");
    }
}

fn store_day(repository: &Repository, time: &str, plain: &[u8]) {
    let writer = repository.writer("test", &mut |_| true).expect("opens");
    let image = store_image(writer.store(), "vda", plain);
    let committed = writer.commit(backup("web1", time, vec![image])).expect("commits");
    assert!(committed.unpublished.is_none(), "{committed:?}");
}

/// Returns the list of the files of a view.
fn list_of(repository: &Path, view: u64) -> PathBuf {
    match views::find(repository, view).expect("reads") {
        Some(Found::File(record, views)) => pool::path_of(&views, record.pool).join(record.manifest),
        other => panic!("{other:?}"),
    }
}

/// Returns the small file of a store or view whose name contains `part`.
fn file_in(directory: &Path, part: &str) -> PathBuf {
    let entries = fs::read_dir(directory).expect("lists");
    let mut paths = entries.map(|entry| entry.expect("an entry").path());
    let file = paths.find(|path| path.to_string_lossy().contains(part));
    file.expect("is there")
}

/// Changes the file itself, and so all its links.
fn harm(path: &Path, how: &str) {
    let mut bytes = fs::read(path).expect("reads");
    match how {
        "flip" if !bytes.is_empty() => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x55;
            fs::write(path, bytes).expect("writes");
        }
        "truncate" => {
            bytes.truncate(bytes.len() / 2);
            fs::write(path, bytes).expect("writes");
        }
        "delete" => fs::remove_file(path).expect("removes"),
        _ => {}
    }
}

#[test]
fn a_table_or_log_or_manifest_that_is_harmed_comes_back() {
    let fixture = Fixture::new();
    let files = fixture.files(&["sst", "MANIFEST", "CURRENT", ".log", "IDENTITY"]);
    assert!(files.len() > 6, "{files:?}");
    for file in &files {
        for how in ["flip", "truncate", "delete"] {
            let copy = fixture.copy();
            harm(&copy.join(file), how);
            fixture.assert_whole(&copy, &format!("{how} {}", file.display()));
        }
    }
}

#[test]
fn files_that_changed_places_find_back() {
    let fixture = Fixture::new();
    let tables = fixture.files(&["sst"]);
    let blobs = fixture.files(&["blob"]);
    for pair in tables.windows(2).chain(blobs.windows(2)) {
        let copy = fixture.copy();
        let (one, other, aside) = (copy.join(&pair[0]), copy.join(&pair[1]), copy.join("aside"));
        fs::rename(&one, &aside).expect("renames");
        fs::rename(&other, &one).expect("renames");
        fs::rename(&aside, &other).expect("renames");
        fixture.assert_whole(&copy, &format!("swap {pair:?}"));
    }
}

#[test]
fn a_blob_file_that_is_gone_from_the_store_is_still_in_the_view() {
    let fixture = Fixture::new();
    for file in fixture.files(&["blob"]) {
        let copy = fixture.copy();
        harm(&copy.join(&file), "delete");
        fixture.assert_whole(&copy, &format!("delete {}", file.display()));
    }
}

#[test]
fn what_can_be_made_again_is_missed_by_nobody() {
    let fixture = Fixture::new();
    for gone in [
        "views",
        "views/current",
        "views/pool-1",
        "spare",
        "lock",
        "waiting",
        "ballast",
        "pruned",
    ] {
        for repairs in [false, true] {
            let copy = fixture.copy();
            fs::create_dir_all(copy.join("waiting")).expect("makes");
            fs::write(copy.join("pruned"), "2026-11-20T00:00:00Z").expect("writes");
            assert!(copy.join(gone).exists(), "{gone}");
            remove_tree(&copy.join(gone)).expect("removes");
            let repository = Repository::open(&copy).expect("opens");
            if repairs {
                let mended = repository.mend(&mut |_| true).expect("mends");
                assert_eq!(mended.left, Vec::<String>::new(), "{gone}");
                let is_named = mended.done.iter().any(|what| what.contains("views/ was gone"));
                assert_eq!(is_named, gone == "views", "{gone}: {mended:?}");
            }
            let view = repository.view().unwrap_or_else(|error| panic!("{gone}: {error}"));
            assert_reads(&view, &fixture.plain, gone);
            store_day(&repository, "2026-11-24T05-54-00Z", &fixture.plain[0]);
            let again = repository.mend(&mut |_| true).expect("mends");
            assert_eq!(again, Mended::default(), "{gone}");
        }
    }
}

#[test]
fn a_directory_without_a_marker_gets_no_views() {
    let fixture = Fixture::new();
    let copy = fixture.copy();
    for gone in ["views", "vbk-repository"] {
        remove_tree(&copy.join(gone)).expect("removes");
    }
    let refused = [Repository::open(&copy), Repository::open_damaged(&copy)];
    for refused in refused {
        let error = refused.expect_err("is none");
        assert!(matches!(error, Error::NotARepository { .. }), "{error}");
    }
    assert!(!copy.join("views").exists());
}

#[test]
fn views_and_second_copies_that_are_harmed_are_made_anew() {
    let fixture = Fixture::new();
    let view = views::current(&fixture.path()).expect("reads").expect("is there");
    for how in ["flip", "truncate", "delete"] {
        for file in [views::path_of(&fixture.path(), view), list_of(&fixture.path(), view)] {
            let copy = fixture.copy();
            let name = file.strip_prefix(fixture.path()).expect("is below");
            harm(&copy.join(name), how);
            fixture.assert_whole(&copy, &format!("{how} {} of the view", name.display()));
        }
        for spare in second_copies::list(&fixture.path()).expect("lists") {
            let copy = fixture.copy();
            harm(&copy.join("spare").join(spare.path.file_name().expect("a name")), how);
            fixture.assert_whole(&copy, &format!("{how} the second copy of {}", spare.table));
        }
    }
}

#[test]
fn a_store_that_lost_what_readers_saw_is_not_shown_to_them() {
    let fixture = Fixture::new();
    let copy = fixture.copy();
    // Simulates an old copy of the store that was put back.
    let old = views::all(&fixture.path()).expect("lists");
    let repository = Repository::open(&copy).expect("opens");
    let before = repository.view().expect("opens").number();
    assert_eq!(old.last(), Some(&before));
    remove_tree(&copy.join("store")).expect("removes");
    let fresh = tempfile::tempdir().expect("a directory");
    let other = fresh.path().join("repo");
    Repository::create(&other, &CreateOptions::plain(BlockSize::MIN)).expect("creates");
    fs::rename(other.join("store"), copy.join("store"))
        .or_else(|_| {
            let mut command = std::process::Command::new("cp");
            command
                .arg("-a")
                .arg(other.join("store"))
                .arg(copy.join("store"))
                .status()
                .map(|_| ())
        })
        .expect("moves");
    let refused = repository.writer("test", &mut |_| true).err().map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::Corrupt));
    assert_eq!(repository.view().expect("opens").number(), before);
    fixture.assert_whole(&copy, "an old store");
}

/// Returns a repository with three backups, a fourth, and views of both states. Neither the newer view nor the store
/// can be opened.
fn with_an_older_view(fixture: &Fixture) -> PathBuf {
    let repository = Repository::open(&fixture.path()).expect("opens");
    let held = repository.view().expect("opens");
    store_day(&repository, "2026-11-24T05-54-00Z", &mixed_bytes(4, 300_000));
    let copy = fixture.copy();
    drop(held);
    let newest = views::current(&copy).expect("reads").expect("is there");
    harm(&file_in(&copy.join("store"), "MANIFEST"), "truncate");
    harm(&list_of(&copy, newest), "truncate");
    copy
}

#[test]
fn what_is_lost_when_only_an_older_view_opens_is_said_and_kept() {
    let fixture = Fixture::new();
    let copy = with_an_older_view(&fixture);
    let newest = views::current(&copy).expect("reads").expect("is there");
    let repository = Repository::open(&copy).expect("opens");
    let mended = repository.mend(&mut |_| true).expect("mends");
    let left = mended.left.join("\n");
    let damaged = format!("views/{newest}.damaged");
    let after = format!("after view {}", newest - 1);
    for part in [&*after, "is lost", "store.damaged", &damaged] {
        assert!(left.contains(part), "{part} in {mended:?}");
    }
    // The fourth backup is not lost: with the original manifests it can be read.
    let old = copy.join("store.damaged");
    let rescued = fixture.directory.path().join("rescued");
    for kept in [old.clone(), copy.join(&damaged)] {
        remove_tree(&rescued).expect("removes");
        let status = std::process::Command::new("cp")
            .arg("-a")
            .arg(&kept)
            .arg(&rescued)
            .status();
        assert!(status.expect("cp runs").success());
        let manifest = file_in(&rescued, "MANIFEST");
        let good = match kept == old {
            true => fixture.path().join("store").join(manifest.file_name().expect("a name")),
            false => list_of(&fixture.path(), newest),
        };
        fs::copy(good, manifest).expect("copies");
        let reader = RocksReader::open(&rescued, None).expect("opens");
        assert_eq!(reader.records().expect("reads").len(), 4, "{}", kept.display());
    }
    // It works like any other repository, and writers and repairs leave the kept files alone.
    assert_reads(&repository.view().expect("opens"), &fixture.plain, "rebuilt");
    store_day(&repository, "2026-11-25T05-54-00Z", b"x");
    assert_eq!(repository.mend(&mut |_| true).expect("mends"), Mended::default());
    assert!(old.exists() && copy.join(&damaged).exists());
}

#[test]
fn second_copies_of_a_state_that_was_lost_are_never_put_in_the_place_of_new_tables() {
    // The number of a table depends on the order in which RocksDB's threads run.
    assert!((0..10).any(|_| tables_get_the_names_of_lost_ones_again()));
}

/// Returns `false` if no table got such a name.
fn tables_get_the_names_of_lost_ones_again() -> bool {
    let fixture = Fixture::new();
    let copy = with_an_older_view(&fixture);
    let other = fixture.directory.path().join("other");
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([&copy, &other])
        .status();
    assert!(status.expect("cp runs").success());
    // RocksDB reuses the names of lost tables. These are the names that the first tables get.
    let before = second_copies::list(&other).expect("lists");
    let repository = Repository::open(&other).expect("opens");
    repository.mend(&mut |_| true).expect("mends");
    let after = second_copies::list(&other).expect("lists");
    let is_new = |spare: &&Spare| before.iter().all(|old| old.table != spare.table);
    let again: Vec<_> = after.iter().filter(is_new).map(|spare| &spare.table).collect();
    assert!(!again.is_empty());
    for table in &again {
        let draft = copy.join("draft");
        fs::write(&draft, "a table that was lost").expect("writes");
        let hash = files::hash_of(&draft).expect("reads").expect("is there");
        fs::rename(draft, copy.join("spare").join(format!("{table}.{hash}"))).expect("renames");
    }
    let repository = Repository::open(&copy).expect("opens");
    repository.mend(&mut |_| true).expect("mends");
    let spares = second_copies::list(&copy).expect("lists");
    let got_again = again
        .iter()
        .any(|again| spares.iter().any(|spare| spare.table == **again));
    let view = repository.view().expect("opens");
    assert_eq!(
        check_tables(&copy, view.number(), &GO).expect("checks"),
        Vec::<String>::new()
    );
    assert_eq!(repository.mend(&mut |_| true).expect("mends"), Mended::default());
    assert_reads(&repository.view().expect("opens"), &fixture.plain, "rebuilt");
    got_again
}

#[test]
fn a_backup_that_was_not_published_is_kept_with_the_store_that_has_it() {
    let fixture = Fixture::new();
    let copy = fixture.copy();
    let before = views::current(&copy).expect("reads").expect("is there");
    {
        let store = RocksStore::open(&copy.join("store")).expect("opens");
        let image = store_image(&store, "vda", b"unpublished");
        let record = crate::store::Record {
            key: "web1@2026-11-24T05-54-00Z".into(),
            bytes: backup("web1", "2026-11-24T05-54-00Z", vec![image]).encode(),
        };
        crate::store::StoreWriter::commit(&store, &record).expect("commits");
    }
    let current = copy.join("store/CURRENT");
    let was = fs::read(&current).expect("reads");
    harm(&current, "truncate");
    let repository = Repository::open(&copy).expect("opens");
    let mended = repository.mend(&mut |_| true).expect("mends");
    assert_eq!(mended.left, Vec::<String>::new());
    assert!(mended.done.concat().contains("kept in store.damaged"), "{mended:?}");
    assert!(repository.view().expect("opens").number() >= before);
    // Repeated, as if the new store had been damaged too: the kept files stay.
    harm(&copy.join("store/CURRENT"), "delete");
    let mended = repository.mend(&mut |_| true).expect("mends");
    assert!(
        mended.done.concat().contains("store.damaged, store.damaged.2"),
        "{mended:?}"
    );
    fs::write(copy.join("store.damaged/CURRENT"), was).expect("writes");
    let old = RocksStore::open(&copy.join("store.damaged")).expect("opens");
    assert_eq!(old.records().expect("reads").len(), 4);
}

#[test]
fn a_link_that_names_a_view_that_never_was_does_not_make_the_store_old() {
    let fixture = Fixture::new();
    let copy = fixture.copy();
    let link = copy.join("views/current");
    fs::remove_file(&link).expect("removes");
    std::os::unix::fs::symlink("95", &link).expect("links");
    fixture.assert_whole(&copy, "a flipped link");
    assert!(!copy.join("store.damaged").exists());
}

#[test]
fn what_can_not_be_read_just_now_is_not_taken_for_damage() {
    let fixture = Fixture::new();
    let newest = views::current(&fixture.path()).expect("reads").expect("is there");
    let list = list_of(&fixture.path(), newest);
    let list = list.strip_prefix(fixture.path()).expect("is below");
    let view = Path::new("views").join(newest.to_string());
    for name in [Path::new("store/CURRENT"), &view, list] {
        let copy = fixture.copy();
        let aside = copy.join("aside");
        fs::rename(copy.join(name), &aside).expect("renames");
        // ELOOP, which like EMFILE and ENOMEM says nothing about the stored data.
        let itself = name.file_name().expect("a name");
        std::os::unix::fs::symlink(itself, copy.join(name)).expect("links");
        let repository = Repository::open(&copy).expect("opens");
        let refused = repository.mend(&mut |_| false).expect_err("gives up");
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{}: {refused}", name.display());
        fs::remove_file(copy.join(name)).expect("removes");
        fs::rename(&aside, copy.join(name)).expect("renames");
        assert_eq!(repository.mend(&mut |_| true).expect("mends"), Mended::default());
        fixture.assert_whole(&copy, "nothing was done");
    }
}

#[test]
fn a_marker_that_is_harmed_is_written_anew_from_what_the_store_says() {
    for encrypted in [false, true] {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("repo");
        let way = Unlock::KeyFile(vec![b'1'; 64].into());
        let slots = vec![("key".to_owned(), way.clone())];
        let options = CreateOptions {
            encryption: encrypted.then(|| (Keys::generate().expect("random"), slots)),
            ..CreateOptions::plain(BlockSize::MIN)
        };
        drop(Repository::create(&path, &options).expect("creates"));
        let marker = path.join("vbk-repository");
        let good = fs::read(&marker).expect("reads");
        let open = || match encrypted {
            true => Repository::open(&path).and_then(|repository| repository.unlock(&way)),
            false => Repository::open(&path),
        };
        // All bytes with a meaning, and some of the text for people.
        let format = good.windows(8).position(|part| part == b"format: ").expect("is there");
        for at in (0..format).step_by(16).chain(format - 1..=good.len()) {
            let mut harmed = good.clone();
            match harmed.get_mut(at) {
                Some(byte) => *byte ^= 4,
                None => harmed.clear(),
            }
            fs::write(&marker, &harmed).expect("writes");
            let what = String::from_utf8_lossy(&harmed).into_owned();
            let opened = open();
            let mended = match Repository::open(&path) {
                // This result is possible.
                Err(error) if error.kind() == ErrorKind::Unsupported => continue,
                Ok(repository) => repository.mend(&mut |_| false),
                Err(_) => Repository::open_damaged(&path).and_then(|repository| repository.mend(&mut |_| false)),
            };
            let mended = mended.expect("mends");
            assert_eq!(mended.left, Vec::<String>::new(), "{what}");
            let repository = open().expect("opens");
            assert_eq!(repository.is_encrypted(), encrypted, "{what}");
            repository.view().expect("opens");
            if !mended.done.is_empty() {
                assert_eq!(fs::read(&marker).expect("reads"), good, "{what}");
            }
            // A wrong check value keeps no reader out before it is repaired.
            let line = what.lines().find(|line| line.starts_with("encryption: "));
            if line.is_some_and(|line| line.split(' ').count() == 3) && what.contains("\nformat: 2\n") {
                opened.and_then(|repository| repository.view()).expect("opens");
            }
        }
    }
}

#[test]
fn a_marker_is_not_made_to_fit_a_plain_store_in_the_place_of_an_encrypted_one() {
    let fixture = Fixture::new();
    let path = fixture.path();
    fs::create_dir(path.join("keys")).expect("creates");
    let refused = Repository::open(&path).expect_err("refused").to_string();
    assert!(refused.contains("is damaged or gone"), "{refused}");
    fs::remove_file(path.join("vbk-repository")).expect("removes");
    let repository = Repository::open_damaged(&path).expect("opens");
    let refused = repository.mend(&mut |_| false);
    assert!(matches!(refused, Err(Error::EncryptionGone { .. })), "{refused:?}");
    assert!(!path.join("vbk-repository").exists());
}

#[test]
fn a_marker_of_an_older_layout_still_says_encrypted_after_a_repair_was_refused() {
    let fixture = Fixture::new();
    let marker = fixture.path().join("vbk-repository");
    let text = fs::read_to_string(&marker)
        .expect("reads")
        .replace("format: 2", "format: 1");
    fs::write(&marker, format!("{text}encryption: aes-256-gcm 0123456789abcdef\n")).expect("writes");
    // The newest view is gone too, so the repair makes one.
    let newest = views::current(&fixture.path()).expect("reads").expect("is there");
    fs::remove_file(views::path_of(&fixture.path(), newest)).expect("removes");
    for _ in 0..2 {
        let repository = Repository::open_damaged(&fixture.path()).expect("opens");
        let refused = repository.mend(&mut |_| false);
        assert!(matches!(refused, Err(Error::EncryptionGone { .. })), "{refused:?}");
        let text = fs::read_to_string(&marker).expect("reads");
        assert!(text.ends_with("\nencryption: aes-256-gcm 0123456789abcdef\n"), "{text}");
    }
}

#[test]
fn a_view_that_is_put_aside_while_a_reader_has_it_is_put_aside_once() {
    let fixture = Fixture::new();
    let copy = with_an_older_view(&fixture);
    let repository = Repository::open(&copy).expect("opens");
    let newest = views::current(&copy).expect("reads").expect("is there");
    let lock = fs::File::open(views::directory(&copy).join(format!("{newest}.lock"))).expect("opens");
    lock.lock_shared().expect("locks");
    let mended = repository.mend(&mut |_| true).expect("mends");
    assert_eq!(mended.left.len(), 1, "{mended:?}");
    let mended = repository.mend(&mut |_| true).expect("mends");
    assert_eq!(mended, Mended::default());
}
