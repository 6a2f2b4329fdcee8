//! [`Place`] tells where the files of a view are, and how RocksDB opens them.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rocksdb::{ColumnFamilyDescriptor, DB, DBPath, Options};
use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::store::rocks::errors::failed;

/// RocksDB adds this to the present time, in 64 bits.
const NEVER_MICROS: u64 = i64::MAX as u64;

/// Writes RocksDB's list of a view's files, and what names that list, into a directory.
pub(crate) type WriteList = Box<dyn Fn(&Path) -> Result<()> + Send + Sync>;

/// The files of a view.
pub(super) enum Place {
    /// All in one directory.
    Together(PathBuf),
    /// Tables and blob files in a directory, which may have those of other views too, and the list of them apart.
    Apart(PathBuf, WriteList),
}

impl Place {
    /// Opens the view for reading.
    pub(super) fn open(&self, mut database: Options, families: Vec<ColumnFamilyDescriptor>) -> Result<DB> {
        match self {
            Self::Together(path) => DB::open_cf_descriptors_read_only(&database, path, families, false),
            Self::Apart(files, write_list) => {
                // RocksDB reads it only while it opens.
                let directory = with_list(write_list)?;
                // The first of them is where the list says that all files are; blob files are sought there too.
                let path = DBPath::new(files, u64::MAX).map_err(failed("open"))?;
                database.set_db_paths(&[path]);
                // RocksDB never removes files of a state that it opened for reading. Other views have files there.
                database.set_delete_obsolete_files_period_micros(NEVER_MICROS);
                DB::open_cf_descriptors_read_only(&database, directory.path(), families, false)
            }
        }
        .map_err(failed("open"))
    }

    /// Directory of its tables and blob files.
    pub(super) fn files(&self) -> &Path {
        match self {
            Self::Together(path) | Self::Apart(path, _) => path,
        }
    }
}

/// Makes a directory with the list in it: not in the repository, which may be read-only or full, and for this user alone,
/// because the list has names of guests. A full disk is no reason to fail: its backups are read when space is needed.
fn with_list(write_list: &WriteList) -> Result<TempDir> {
    let made_in = |parent| {
        let directory = private_directory(parent)?;
        write_list(directory.path())?;
        Ok(directory)
    };
    // In memory then, where a failure says less than the first one.
    made_in(None).or_else(|error| made_in(Some(Path::new("/dev/shm"))).map_err(|_| error))
}

/// Makes it in `parent`, or where this user has temporary files.
fn private_directory(parent: Option<&Path>) -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("vbk-view-").permissions(Permissions::from_mode(0o700));
    let made = parent.map_or_else(|| builder.tempdir(), |parent| builder.tempdir_in(parent));
    made.map_err(Error::io(
        "create a directory in",
        parent.unwrap_or(Path::new("$TMPDIR")),
    ))
}
