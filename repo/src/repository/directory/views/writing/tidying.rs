//! Removes what no view needs any more.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;

use super::super::pool;
use super::super::record::{Record, View};
use super::super::remove_tree;
use super::{Gone, Views};
use crate::error::{Error, Result};

impl Views {
    /// Steps 5 and 6.
    pub(super) fn tidy(&mut self) -> Result<()> {
        let left = self.remove_unused()?;
        // A view that can't be read may name anything.
        let names = |view: &(u64, Option<Record>), gone: &Gone| match view {
            (_, None) => true,
            (number, Some(record)) => {
                record.pool == gone.pool && *number <= gone.last && gone.file.number() < record.next
            }
        };
        let (kept, over): (Vec<_>, Vec<_>) = std::mem::take(&mut self.gone)
            .into_iter()
            .partition(|gone| left.iter().any(|view| names(view, gone)));
        self.gone = kept;
        let mut over = over.into_iter();
        for gone in over.by_ref() {
            let pool = pool::path_of(&self.views, gone.pool);
            if let Err(error) = pool::remove(&pool, &gone.file.name()) {
                self.gone.push(gone);
                self.gone.extend(over);
                return Err(error);
            }
        }
        if left.iter().all(|(_, record)| record.is_some()) {
            let records: Vec<_> = left.iter().flat_map(|(_, record)| record).collect();
            self.remove_lists(&records)?;
            self.remove_pools(&records)?;
        }
        Ok(())
    }

    /// Removes the lists that no view names.
    fn remove_lists(&mut self, records: &[&Record]) -> Result<()> {
        let copied = self.copy.as_ref().map(|copy| (self.pool, &copy.name));
        for (number, lists) in &mut self.pools {
            let is_named = |name: &String| {
                let named = records
                    .iter()
                    .any(|record| record.pool == *number && record.manifest == *name);
                named || copied == Some((*number, name))
            };
            let over: Vec<_> = lists.iter().filter(|name| !is_named(name)).cloned().collect();
            for name in over {
                pool::remove(&pool::path_of(&self.views, *number), &name)?;
                lists.remove(&name);
            }
        }
        Ok(())
    }

    /// Removes the pools that no view names.
    fn remove_pools(&mut self, records: &[&Record]) -> Result<()> {
        let is_named = |number: u64| records.iter().any(|record| record.pool == number);
        let over: Vec<_> = self
            .pools
            .keys()
            .copied()
            .filter(|number| *number != self.pool && !is_named(*number))
            .collect();
        for number in over {
            remove_tree(&pool::path_of(&self.views, number))?;
            self.pools.remove(&number);
            self.gone.retain(|gone| gone.pool != number);
        }
        Ok(())
    }

    /// Removes older views without a reader. Returns those that are left and name files of pools, each with its record if
    /// that can be read.
    fn remove_unused(&self) -> Result<Vec<(u64, Option<Record>)>> {
        let keep = self.newest();
        let mut left = BTreeSet::new();
        let entries = fs::read_dir(&self.views).map_err(Error::io("list", &self.views))?;
        for entry in entries {
            let name = entry.map_err(Error::io("list", &self.views))?.file_name();
            // `N`, `N.lock`, and drafts of `N`. Other files are not vbk's to remove.
            let first = name.to_str().and_then(|name| name.split('.').next());
            let Some(number) = first.and_then(|number| number.parse::<u64>().ok()) else {
                continue;
            };
            let path = self.views.join(format!("{number}.lock"));
            let held = match File::open(&path) {
                _ if Some(number) == keep => {
                    left.insert(number);
                    continue;
                }
                Ok(lock) => match lock.try_lock() {
                    Ok(()) => Some(lock),
                    Err(_) => {
                        left.insert(number);
                        continue;
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                // The lock can't be tested, so the view may have a reader.
                Err(_) => {
                    left.insert(number);
                    continue;
                }
            };
            for ending in ["", ".tmp", ".new"] {
                remove_tree(&self.views.join(format!("{number}{ending}")))?;
            }
            let _ = fs::remove_file(&path);
            drop(held);
        }
        let mut records = Vec::new();
        for number in left {
            match View::find(&self.views, number) {
                Ok(Some(View::File(record, _))) => records.push((number, Some(record))),
                Ok(Some(View::Directory(_)) | None) => {}
                Err(Error::FileDamaged { .. }) => records.push((number, None)),
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }
}
