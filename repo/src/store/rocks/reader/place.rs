//! Where the files of a view are, and how RocksDB opens them.

use std::path::{Path, PathBuf};

use rocksdb::{ColumnFamilyDescriptor, DB, DBPath, Options};

use crate::error::{Error, Result};
use crate::store::rocks::errors::failed;

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
                let directory = private_directory()?;
                write_list(directory.path())?;
                // The first of them is where the list says that all files are; blob files are sought there too.
                let path = DBPath::new(files, u64::MAX).map_err(failed("open"))?;
                database.set_db_paths(&[path]);
                // RocksDB never removes files of a state that it opened for reading. Other views have files there.
                database.set_delete_obsolete_files_period_micros(u64::MAX);
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

/// A directory that only this user sees, not in the repository, which may be read-only.
fn private_directory() -> Result<tempfile::TempDir> {
    tempfile::tempdir()
        .or_else(|_| tempfile::tempdir_in("/dev/shm"))
        .map_err(Error::io("create a directory in", "/tmp"))
}
