//! Blocks that were stored since the newest view: by a run that ended early, or by one that is still at work.
//!
//! No backup names them yet, and no view has them. The next backup finds those that it needs and does not store them again; a prune
//! removes them. They are read from the store itself, beside its writer: RocksDB allows that, and writes and removes nothing
//! then. So this needs no lock. Blocks that no barrier covered are not counted: the next writer removes them.

use serde::{Deserialize, Serialize};

use super::Repository;
use super::directory::views;
use crate::error::Result;
use crate::store::rocks::{RocksReader, path_in};
use crate::store::{Located, StoreReader};

/// Blocks that were stored since the newest view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// Number of blocks.
    pub blocks: u64,
    /// Bytes that they take in the store.
    pub stored_bytes: u64,
}

impl Unfinished {
    /// Tests for none.
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }
}

impl Repository {
    /// Counts the blocks that were stored since a view, and passes them on to `each` in the order in which they were stored. `None`
    /// if they are not known: the repository is on another host, or a backup was committed meanwhile. Then `each` may have got some
    /// of them. Their plain lengths are hidden in an encrypted repository.
    pub fn unfinished(&self, view: u64, each: &mut dyn FnMut(Located)) -> Option<Unfinished> {
        match self.survey(view, each) {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "can't count what was stored since the newest view");
                None
            }
        }
    }

    fn survey(&self, view: u64, each: &mut dyn FnMut(Located)) -> Result<Option<Unfinished>> {
        let Ok(path) = self.local_path() else {
            return Ok(None);
        };
        let Some(held) = views::open(path)?.filter(|held| held.number == view) else {
            return Ok(None);
        };
        let store = RocksReader::open(&path_in(path), None)?;
        if store.generation()? != held.reader.generation()? {
            return Ok(None);
        }
        let mut found = Unfinished::default();
        store.survey_since(&held.reader, &mut |located| {
            found.blocks += 1;
            found.stored_bytes += u64::from(located.stored_bytes);
            each(located);
        })?;
        Ok(Some(found))
    }
}
