//! Second copies of the store's tables.
//!
//! RocksDB keeps headers, the index, manifests and records in sorted files, which together take about a thousandth of
//! the space of the blocks: so little that one damaged file can cost much and a second copy costs almost nothing. Each
//! table of the newest view has one in `REPO/spare/`, named `NUMBER.sst.HASH` with the first 16 digits of the BLAKE3
//! hash of its bytes, which shows which of the two copies is right.
//!
//! RocksDB's small files, above all `MANIFEST`, exist twice anyway: in the store and in the view. But RocksDB does not
//! notice all damage to them. A record whose damaged length points past the end of the file counts as the end of the
//! records, so RocksDB shows an older state; and a record of certain types that RocksDB never writes makes it hang. So
//! a view has a file `sums` with a line for each of them, 16 digits of its hash and its name ([`check_view`]), and the
//! store's files are compared with those of the view ([`check_store`]).
//!
//! A copy is written under another name, synced and renamed, so a file with such a name is complete.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::files::{is_there, sync_directory, write};
use crate::block::Hashing;
use crate::error::{Error, Result};
use crate::files::DRAFT;
use crate::id::to_hex;

const EXTENSION: &str = "sst";
const HASH_DIGITS: usize = 16;
/// Piece of a table that is read at a time: tables may be large.
const PIECE_BYTES: usize = 1 << 20;
const SUMS: &str = "sums";

/// RocksDB's log format (log_format.h), in which `MANIFEST` and logs are written, has blocks that no record crosses,
/// and records that start with CRC, length (u16, little-endian) and type.
const LOG_BLOCK_BYTES: usize = 32 << 10;
const LOG_HEADER_BYTES: usize = 7;

/// One table and its second copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spare {
    /// Name of the table, e.g. `000012.sst`.
    pub(crate) table: String,
    /// Hash that the table's bytes must have.
    pub(crate) hash: String,
    /// Path of the second copy.
    pub(crate) path: PathBuf,
}

fn directory(repository: &Path) -> PathBuf {
    repository.join("spare")
}

/// Returns the bytes of a file; `None` if the file is gone or the disk can't read it any more. Any other failure is an
/// error, as it says nothing about the file.
fn content(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_lost(&error) => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Returns whether a file is gone or unreadable on the disk. Any other failure says nothing about the file.
fn is_lost(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::EIO)
}

/// Returns the hash of a file's bytes as used in names; `None` if the file is gone or the disk can't read it any more.
pub(crate) fn hash_of(path: &Path) -> Result<Option<String>> {
    match File::open(path).and_then(|file| read_through(file, &mut |_| Ok(()))) {
        Ok(hash) => Ok(Some(hash)),
        Err(error) if is_lost(&error) => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Passes the bytes of a file to `each`, a piece at a time, and returns their hash.
fn read_through(mut file: File, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<String> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut hasher = Hashing::Plain.hasher();
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(name_of(hasher.finalize().as_bytes())),
            Ok(len) => {
                hasher.update(&piece[..len]);
                each(&piece[..len])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Copies a table, synced, and returns its hash. Copies byte by byte, because the kernel's own copy may share the bytes
/// on the disk (copy_file_range(2)), and then both files would be one copy.
fn copy(from: &Path, to: &Path) -> Result<String> {
    let open = File::open(from).map_err(Error::io("read", from))?;
    let mut copy = File::create(to).map_err(Error::io("create", to))?;
    let hash = read_through(open, &mut |piece| copy.write_all(piece)).map_err(Error::io("copy", from))?;
    copy.sync_all().map_err(Error::io("write", to))?;
    Ok(hash)
}

fn hash(bytes: &[u8]) -> String {
    name_of(&Hashing::Plain.content(bytes))
}

fn name_of(hash: &[u8; 32]) -> String {
    to_hex(&hash[..HASH_DIGITS / 2])
}

/// Returns all second copies, by name.
pub(crate) fn list(repository: &Path) -> Result<Vec<Spare>> {
    let directory = directory(repository);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("list", &directory))?,
    };
    let mut spares = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("list", &directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // Any other file is a draft that a killed writer left.
        let is_spare = |(table, hash): &(&str, &str)| {
            is_table(Path::new(table))
                && hash.len() == HASH_DIGITS
                && hash.bytes().all(|digit| digit.is_ascii_hexdigit())
        };
        if let Some((table, hash)) = name.rsplit_once('.').filter(is_spare) {
            spares.push(Spare {
                table: table.to_owned(),
                hash: hash.to_owned(),
                path: path.clone(),
            });
        }
    }
    spares.sort_by(|one, other| one.table.cmp(&other.table));
    Ok(spares)
}

fn is_draft(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == DRAFT)
}

fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION)
}

/// Creates the missing second copies of the tables of `view`, the newest one, and removes those of other tables.
pub(crate) fn update(repository: &Path, view: &Path) -> Result<()> {
    seal(view)?;
    let directory = directory(repository);
    match fs::create_dir(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("create", directory)(error));
        }
        _ => {}
    }
    let mut old: HashMap<String, Spare> = list(repository)?
        .into_iter()
        .map(|spare| (spare.table.clone(), spare))
        .collect();
    let mut changed = false;
    for entry in fs::read_dir(view).map_err(Error::io("list", view))? {
        let path = entry.map_err(Error::io("list", view))?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if !is_table(&path) || old.remove(&name).is_some() {
            continue;
        }
        // Not by `write`: a table is large, and the name of its copy has the hash, which is known when all is copied.
        let draft = directory.join(format!("{name}.{DRAFT}"));
        let spare = directory.join(format!("{name}.{}", copy(&path, &draft)?));
        fs::rename(&draft, &spare).map_err(Error::io("rename", draft))?;
        changed = true;
    }
    remove_drafts(&directory)?;
    for spare in old.into_values() {
        fs::remove_file(&spare.path).map_err(Error::io("remove", spare.path))?;
    }
    if changed {
        sync_directory(&directory)?;
    }
    Ok(())
}

/// Removes the second copies of tables that `directory` lacks or has with other bytes. A store that is rebuilt from an
/// older view reuses their names, and [`update`], which compares names, would take them for copies of the new tables. A
/// damaged second copy stays if its table exists: it shows that the table can't be trusted.
pub(crate) fn keep_only(repository: &Path, directory: &Path) -> Result<()> {
    for spare in list(repository)? {
        let is_of_it = match hash_of(&directory.join(&spare.table))? {
            Some(hash) => hash == spare.hash || hash_of(&spare.path)?.as_ref() != Some(&spare.hash),
            None => is_there(&directory.join(&spare.table))?,
        };
        if !is_of_it {
            fs::remove_file(&spare.path).map_err(Error::io("remove", spare.path))?;
        }
    }
    Ok(())
}

/// Returns whether the file is one that [`seal`] writes.
pub(crate) fn is_sums(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == SUMS)
}

/// Writes the hashes of a view's small files, unless they are written already.
pub(crate) fn seal(view: &Path) -> Result<()> {
    let path = view.join(SUMS);
    if path.exists() {
        return Ok(());
    }
    let mut lines = Vec::new();
    for entry in fs::read_dir(view).map_err(Error::io("list", view))? {
        let path = entry.map_err(Error::io("list", view))?.path();
        let blob = path.extension().is_some_and(|extension| extension == "blob");
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !blob && !is_table(&path) && !is_draft(&path) {
            let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
            lines.push(format!("{} {name}\n", hash(&bytes)));
        }
    }
    lines.sort();
    write(&path, lines.concat().as_bytes())?;
    sync_directory(view)
}

/// Fails if a small file of a view differs from what it was when the view was made. A view without sums was made just
/// now, or by a run that was killed before it wrote them.
pub(crate) fn check_view(view: &Path) -> Result<()> {
    let sums = view.join(SUMS);
    if !is_there(&sums)? {
        return Ok(());
    }
    let bytes = content(&sums)?.ok_or_else(|| damaged(&sums))?;
    let text = String::from_utf8_lossy(&bytes);
    for line in text.lines() {
        let file = line.split_once(' ').map(|(hash, name)| (hash, view.join(name)));
        let Some((hash, path)) = file else {
            return Err(damaged(&sums));
        };
        if hash_of(&path)?.as_deref() != Some(hash) {
            return Err(damaged(&path));
        }
    }
    // A truncated list would check fewer files; RocksDB's CURRENT and MANIFEST always exist.
    match text.ends_with('\n') && text.contains(" CURRENT\n") && text.contains(" MANIFEST-") {
        true => Ok(()),
        false => Err(damaged(&sums)),
    }
}

/// Fails if RocksDB would read something else in the store's small files than it wrote. `view` is the newest one.
pub(crate) fn check_store(store: &Path, view: Option<&Path>) -> Result<()> {
    let current = store.join("CURRENT");
    let text = String::from_utf8(content(&current)?.unwrap_or_default()).unwrap_or_default();
    let manifest = text.strip_suffix('\n').filter(|name| name.starts_with("MANIFEST-"));
    match manifest {
        Some(name) if is_there(&store.join(name))? => {}
        _ => return Err(damaged(&current)),
    }
    for entry in fs::read_dir(store).map_err(Error::io("list", store))? {
        let path = entry.map_err(Error::io("list", store))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_manifest = name.starts_with("MANIFEST-");
        if !is_manifest && !name.ends_with(".log") {
            continue;
        }
        let bytes = content(&path)?.ok_or_else(|| damaged(&path))?;
        // RocksDB only appends to MANIFEST, so the file begins with its content at the time of the view.
        let old = view.filter(|_| is_manifest).map(|view| view.join(name));
        let old = old
            .map(|path| content(&path))
            .transpose()?
            .flatten()
            .unwrap_or_default();
        if !bytes.starts_with(&old) || has_strange_record(&bytes) {
            return Err(damaged(&path));
        }
    }
    Ok(())
}

fn damaged(path: &Path) -> Error {
    Error::FileDamaged { path: path.to_owned() }
}

/// Returns whether a record has a type that RocksDB does not write here: some of them would make RocksDB hang.
fn has_strange_record(bytes: &[u8]) -> bool {
    for block in bytes.chunks(LOG_BLOCK_BYTES) {
        let mut rest = block;
        while let Some((&[_, _, _, _, low, high, kind], after)) = rest.split_first_chunk::<LOG_HEADER_BYTES>() {
            let len = usize::from(u16::from_le_bytes([low, high]));
            match kind {
                // Preallocated space that was not used.
                0 if len == 0 => break,
                // Complete records, and the first, middle and last piece of one.
                1..=4 => rest = after.get(len..).unwrap_or_default(),
                _ => return true,
            }
        }
    }
    false
}

/// Removes files that a killed writer did not finish.
fn remove_drafts(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let path = entry.map_err(Error::io("list", directory))?.path();
        if is_draft(&path) {
            fs::remove_file(&path).map_err(Error::io("remove", path))?;
        }
    }
    Ok(())
}
