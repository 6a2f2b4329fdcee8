//! What no command does to a repository: the only file of these tests that knows the library.

use std::path::Path;

use vbk_repo::repository::Repository;
use vbk_repo::store::rocks::{RocksStore, path_in};
use vbk_repo::store::{BlockStore, Note, StoreReader};

/// Notes something that vbk would not.
pub fn write_note(repo: &Path, name: &str, value: &[u8]) {
    let writer = Repository::open(repo).and_then(|repository| repository.writer("test", &mut |_| false));
    let note = Note {
        name: name.to_owned(),
        value: Some(value.to_vec()),
    };
    writer.and_then(|writer| writer.amend(&[], &[note])).expect("notes");
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
