use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::ErrorKind;
use crate::block::BlockSize;
use crate::repository::directory::store_repair::{Mended, check_files};
use crate::repository::directory::views;
use crate::repository::{CreateOptions, Repository};
use crate::tests::testing::{backup, mixed_bytes, store_image};

struct Fixture {
    /// Removed in the end.
    _directory: tempfile::TempDir,
    repository: Repository,
}

impl Fixture {
    /// A closed repository with a few tables and blob files.
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("repo");
        let repository = Repository::create(&path, &CreateOptions::plain(BlockSize::MIN)).expect("creates");
        let fixture = Self {
            _directory: directory,
            repository,
        };
        (1..4).for_each(|day| fixture.store_day(day));
        fixture
    }

    fn path(&self) -> &Path {
        self.repository.path()
    }

    fn store_day(&self, day: u8) {
        let writer = self.repository.writer("test", &mut |_| true).expect("opens");
        let image = store_image(writer.store(), "vda", &mixed_bytes(u32::from(day), 300_000));
        let made = backup("web1", &format!("2026-11-2{day}T05-54-00Z"), vec![image]);
        assert!(writer.commit(made).expect("commits").unpublished.is_none());
    }

    fn copied(&self, how: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("repo");
        let status = Command::new("cp").args(how).arg(self.path()).arg(&path).status();
        assert!(status.expect("cp runs").success());
        let repository = Repository::open(&path).expect("opens");
        Self {
            _directory: directory,
            repository,
        }
    }

    /// Directories of the store and of the newest view's files, and the files that both have.
    fn files(&self) -> ([PathBuf; 2], Vec<StoreFile>) {
        let newest = views::current(self.path()).expect("reads").expect("is there");
        let view = views::find(self.path(), newest).expect("reads").expect("is there");
        let files = view.lengths().expect("reads").into_keys().collect();
        ([path_in(self.path()), view.files()], files)
    }

    fn found(&self) -> Vec<String> {
        let view = self.repository.view().expect("opens");
        check_files(self.path(), view.number()).expect("checks")
    }

    /// Finds only that, repairs it, and finds nothing.
    fn assert_found(&self, parts: &[&str]) {
        let found = self.found();
        assert_eq!(found.len(), 1, "{parts:?}: {found:?}");
        for part in parts {
            assert!(found[0].contains(part), "{part:?} is not in {found:?}");
        }
        let mended = self.repository.mend(&mut |_| true).expect("mends");
        assert_eq!((mended.done.len(), mended.left.len()), (1, 0), "{parts:?}: {mended:?}");
        assert_eq!(self.found(), [""; 0], "{mended:?}");
        assert_eq!(self.repository.mend(&mut |_| true).expect("mends"), Mended::default());
        self.store_day(9);
        assert_eq!(self.found(), [""; 0]);
    }
}

#[test]
fn a_file_that_the_store_or_its_view_lacks_is_named_and_comes_back() {
    let fixture = Fixture::new();
    assert_eq!(fixture.found(), [""; 0]);
    let (_, files) = fixture.files();
    let kinds = files.iter().filter(|file| matches!(file, StoreFile::Blob(_))).count();
    assert!(kinds > 0 && kinds < files.len(), "{files:?}");
    for file in files {
        for in_view in [false, true] {
            let copy = fixture.copied(&["-a"]);
            let place = copy.files().0[usize::from(in_view)].join(file.name());
            // The store merges tables as it is closed, and the reader needs a table to open the view.
            if !place.exists() || in_view && matches!(file, StoreFile::Table(_)) {
                continue;
            }
            fs::remove_file(&place).expect("removes");
            let missing = match in_view {
                false => "missing in store/; the newest view has it, and `vbk repair`",
                true => "missing in the newest view; store/ has it, and `vbk repair`",
            };
            copy.assert_found(&[&file.name(), missing]);
        }
    }
}

#[test]
fn a_file_of_another_length_in_one_place_is_named_and_no_writer_takes_it_for_the_right_one() {
    let fixture = Fixture::new();
    let (_, files) = fixture.files();
    for file in files.into_iter().filter(|file| matches!(file, StoreFile::Blob(_))) {
        for in_view in [false, true] {
            let copy = fixture.copied(&["-a"]);
            let place = copy.files().0[usize::from(in_view)].join(file.name());
            let bytes = fs::read(&place).expect("reads");
            fs::remove_file(&place).expect("removes");
            fs::write(&place, &bytes[..bytes.len() - 100]).expect("writes");
            if !in_view {
                let refused = copy.repository.writer("test", &mut |_| true).err();
                assert_eq!(refused.map(|error| error.kind()), Some(ErrorKind::Corrupt));
            }
            let lengths = format!("has {} bytes instead of {}", bytes.len() - 100, bytes.len());
            copy.assert_found(&[&file.name(), &lengths]);
        }
    }
}

#[test]
fn another_file_in_the_place_of_one_is_found_and_both_stay() {
    let fixture = Fixture::new();
    let (_, files) = fixture.files();
    let file = files.into_iter().find(|file| matches!(file, StoreFile::Blob(_)));
    let file = file.expect("has one");
    let place = fixture.files().0[0].join(file.name());
    let mut bytes = fs::read(&place).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&place).expect("removes");
    fs::write(&place, &bytes).expect("writes");
    let found = fixture.found().concat();
    assert!(
        found.contains(&file.name()) && found.contains("is not the file that the newest view has"),
        "{found}"
    );
    let mended = fixture.repository.mend(&mut |_| true).expect("mends");
    assert!(mended.left.concat().contains("both stay"), "{mended:?}");
    assert_eq!(fs::read(place).expect("stays"), bytes);
}

#[test]
fn a_copy_without_links_or_with_some_is_as_good() {
    let fixture = Fixture::new();
    let copy = fixture.copied(&["-r"]);
    assert_eq!(copy.found(), [""; 0]);
    // A file that was put back from elsewhere.
    let (_, files) = fixture.files();
    let place = fixture.files().0[0].join(files.last().expect("has one").name());
    let bytes = fs::read(&place).expect("reads");
    fs::remove_file(&place).expect("removes");
    fs::write(&place, bytes).expect("writes");
    assert_eq!(fixture.found(), [""; 0]);
}

#[test]
fn files_that_come_and_go_while_a_writer_works_are_no_damage() {
    let fixture = Fixture::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            (4..9).for_each(|day| fixture.store_day(day));
            let manager = fixture.repository.manager("test", &mut |_| true).expect("opens");
            for day in 1..8 {
                let gone = [format!("web1@2026-11-2{day}T05-54-00Z")];
                manager.amend(&gone, &[]).expect("forgets");
            }
            drop(manager);
            let mut manager = fixture.repository.manager("test", &mut |_| true).expect("opens");
            let options = crate::store::PruneOptions {
                max_unused: 0.0,
                dry_run: false,
                empty_bin: true,
            };
            manager.prune(options, 1, &Default::default(), &|_| {}).expect("prunes");
        });
        while !writer.is_finished() {
            assert_eq!(fixture.found(), [""; 0]);
        }
        writer.join().expect("writes to its end");
    });
}
