use std::sync::atomic::AtomicBool;

use super::*;
use crate::block::BlockSize;
use crate::reader::{ImageReader, ReadResources};
use crate::repository::{CreateOptions, Repository};
use crate::testing::{backup, mixed_bytes, store_image};

struct Fixture {
    directory: tempfile::TempDir,
    plain: Vec<Vec<u8>>,
}

impl Fixture {
    /// A closed repository with three backups.
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("repo");
        let repository = Repository::create(&path, &CreateOptions::plain(BlockSize::MIN)).expect("creates");
        let plain: Vec<_> = (1..4).map(|seed| mixed_bytes(seed, 300_000)).collect();
        for (day, plain) in plain.iter().enumerate() {
            let writer = repository.writer("test", &mut |_| false).expect("opens");
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

    /// A copy with its hard links, to be harmed.
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
        let mended = repository.mend(&mut |_| false).expect("mends");
        assert_eq!(mended.left, Vec::<String>::new(), "{what}");
        drop(repository.writer("test", &mut |_| false).expect("opens for writing"));
        let view = repository.view().expect("opens");
        let catalogue = view.catalogue().expect("loads");
        assert_eq!(catalogue.entries().len(), 3, "{what}: {mended:?}");
        for (entry, plain) in catalogue.entries().iter().zip(&self.plain) {
            let resources = ReadResources::new(1);
            let image = ImageReader::open(view.store(), resources, &entry.backup.images[0]).expect("opens");
            let mut out = vec![0; plain.len()];
            image.read_at(0, &mut out).expect("reads");
            assert!(out == *plain, "{what}");
        }
        let again = repository.mend(&mut |_| false).expect("mends");
        assert_eq!(again, Mended::default(), "{what}: a second repair finds nothing");
        assert_eq!(check_tables(path, view.number()).expect("checks"), Vec::<String>::new());
        assert_eq!(
            repository
                .check_stored(&AtomicBool::new(false), &mut |what| panic!("{what}"))
                .ok()
                .map(|n| n > 0),
            Some(true)
        );
    }
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
fn views_and_second_copies_that_are_harmed_are_made_anew() {
    let fixture = Fixture::new();
    let view = views::current(&fixture.path()).expect("reads").expect("is there");
    for how in ["flip", "truncate", "delete"] {
        for name in ["CURRENT", "MANIFEST"] {
            let copy = fixture.copy();
            let entries = fs::read_dir(views::path_of(&copy, view)).expect("lists");
            let mut files = entries.map(|entry| entry.expect("an entry").path());
            let file = files
                .find(|path| path.to_string_lossy().contains(name))
                .expect("is there");
            harm(&file, how);
            fixture.assert_whole(&copy, &format!("{how} {name} of the view"));
        }
        for spare in spare::list(&fixture.path()).expect("lists") {
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
    // As when somebody put back an old copy of the store.
    let old = views::all(&fixture.path()).expect("lists");
    let repository = Repository::open(&copy).expect("opens");
    let before = repository.view().expect("opens").number();
    assert_eq!(old.last().map(|(number, _)| *number), Some(before));
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
    let refused = repository
        .writer("test", &mut |_| false)
        .err()
        .map(|error| error.kind());
    assert_eq!(refused, Some(ErrorKind::Corrupt));
    assert_eq!(repository.view().expect("opens").number(), before);
    fixture.assert_whole(&copy, "an old store");
}
