//! What no command does to a repository: the only file of these tests that knows the library.

use std::path::Path;

use vbk_repo::repository::Repository;
use vbk_repo::store::Note;

/// Notes something that vbk would not.
pub fn write_note(repo: &Path, name: &str, value: &[u8]) {
    let writer = Repository::open(repo).and_then(|repository| repository.writer("test", &mut |_| false));
    let note = Note {
        name: name.to_owned(),
        value: Some(value.to_vec()),
    };
    writer.and_then(|writer| writer.amend(&[], &[note])).expect("notes");
}
