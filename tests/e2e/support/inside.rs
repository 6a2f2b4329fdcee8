//! What no command does to a repository: the only file of these tests that knows the library.

use std::path::Path;

use vbk_repo::backup::Backup;
use vbk_repo::repository::Repository;
use vbk_repo::store::rocks::{RocksStore, path_in};
use vbk_repo::store::{Note, StoreManager, StoreReader};

// A server that was started for ssh clients has the repository for another 10 s, so both wait.

/// Notes something that vbk would not.
pub fn write_note(repo: &Path, name: &str, value: &[u8]) {
    let writer = Repository::open(repo).and_then(|repository| repository.manager("test", &mut |_| true));
    let note = Note {
        name: name.to_owned(),
        value: Some(value.to_vec()),
    };
    writer.and_then(|writer| writer.amend(&[], &[note])).expect("notes");
}

/// Records a backup that exists a second time, with changes that no vbk on this machine would make.
pub fn record_again(repo: &Path, backup: &str, change: impl FnOnce(&mut Backup)) -> String {
    let writer = Repository::open(repo).and_then(|repository| repository.manager("test", &mut |_| true));
    let writer = writer.expect("opens");
    let catalogue = writer.catalogue().expect("loads");
    let found = catalogue.find(&backup.parse().expect("names a backup"));
    let mut record = Backup::clone(&found.expect("is there").backup);
    change(&mut record);
    let made = writer.writer().commit(record).expect("commits");
    assert!(made.unpublished.is_none());
    made.entry.backup.spec()
}

/// Deletes a record or a note of an encrypted repository without its key, as a program could that writes to the storage: the
/// first of the names that it has stored. The next writer shows it to readers.
pub fn delete_without_key(repo: &Path, what: Row) {
    let store = RocksStore::open(&path_in(repo)).expect("opens");
    let record = match what {
        Row::Record => store
            .records()
            .expect("lists")
            .into_iter()
            .next()
            .map(|record| record.key),
        Row::Notes => None,
    };
    let notes = match what {
        Row::Record => Vec::new(),
        Row::Notes => store.notes().expect("lists"),
    };
    let gone: Vec<_> = notes.into_iter().map(|note| Note { value: None, ..note }).collect();
    store.amend(record.as_slice(), &gone).expect("deletes");
}

/// What [`delete_without_key`] deletes.
#[derive(Clone, Copy)]
pub enum Row {
    Record,
    Notes,
}
