//! Files of a repository's directory that are read, hashed and written whole, with errors that name them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::block::{Hasher, Hashing};
use crate::error::{Error, Result};
use crate::files::{self, Mode, Synced};
use crate::id::to_hex;

/// Digits of a hash in names and in lists: enough against chance.
pub(crate) const HASH_DIGITS: usize = 16;
/// Piece of a file that is read at a time: tables may be large.
const PIECE_BYTES: usize = 1 << 20;

/// Returns whether a path exists; an error if that can't be told.
pub(crate) fn is_there(path: &Path) -> Result<bool> {
    path.try_exists().map_err(Error::io("read", path))
}

/// Writes a file that is complete once it has its name. Its directory is not synced yet: a caller that writes several
/// files syncs it once. The draft has the extension [`files::DRAFT`], by which other code finds drafts of killed
/// writers.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    files::write_whole(path, bytes, Mode::Umask, Synced::File).map_err(Error::io("write", path))
}

/// Makes renames in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    files::sync_directory(path).map_err(Error::io("sync", path))
}

/// Returns the bytes of a file; `None` if the file is gone or the disk can't read it any more. Any other failure is an
/// error, as it says nothing about the file.
pub(crate) fn content(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_lost(&error) => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Returns whether a file is gone or unreadable on the disk. Any other failure says nothing about the file.
pub(crate) fn is_lost(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || matches!(error.raw_os_error(), Some(nix::libc::EIO | nix::libc::EUCLEAN))
}

/// Returns the hash of a file's bytes as used in names; `None` if the file is gone or the disk can't read it any more.
pub(crate) fn hash_of(path: &Path) -> Result<Option<String>> {
    match File::open(path).and_then(|file| read_through(file, &mut |_| Ok(()))) {
        Ok(hasher) => Ok(Some(digits_of(&hasher))),
        Err(error) if is_lost(&error) => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Passes the bytes of a file to `each`, a piece at a time, and hashes them.
pub(crate) fn read_through(mut file: File, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<Hasher> {
    let mut hasher = Hashing::Plain.hasher();
    read_pieces(&mut file, &|error| error, &mut |piece| {
        hasher.update(piece);
        each(piece)
    })?;
    Ok(hasher)
}

/// Passes everything to `each`, a piece at a time. `failed` makes the error of a read.
pub(crate) fn read_pieces<E>(
    from: &mut dyn Read,
    failed: &dyn Fn(io::Error) -> E,
    each: &mut dyn FnMut(&[u8]) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(len) => each(&piece[..len])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Returns the digits of a hash that names and records have.
pub(crate) fn hash_of_bytes(bytes: &[u8]) -> String {
    name_of(&Hashing::Plain.content(bytes))
}

/// The same for bytes that were hashed a piece at a time.
pub(crate) fn digits_of(hasher: &Hasher) -> String {
    name_of(hasher.finalize().as_bytes())
}

fn name_of(hash: &[u8; 32]) -> String {
    to_hex(&hash[..HASH_DIGITS / 2])
}
