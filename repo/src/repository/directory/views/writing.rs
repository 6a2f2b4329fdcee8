//! The writer's side of views: makes them and removes them. The steps are argued in `views.rs`.

mod tidying;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::listing::Listing;
use super::pool::{self, Linked};
use super::record::{Record, View};
use super::{current, remove_tree, scratch};
use crate::block::{Hasher, Hashing};
use crate::error::{Error, Result};
use crate::files::remove_if_there;
use crate::repository::directory::files::{self, digits_of, is_there};
use crate::repository::directory::marker;
use crate::repository::directory::second_copies::SecondCopies;
use crate::store::rocks::manifest::{Changes, StoreFile, Unread, needed};
use crate::store::rocks::{RocksStore, path_in, remove_checkpoint};
use crate::store::{StoreManager, StoreReader};

/// Number of attempts to link files that RocksDB removes meanwhile.
const ATTEMPTS: usize = 100;

/// The views of a repository that is open for writing.
pub(crate) struct Views {
    repository: PathBuf,
    views: PathBuf,
    /// Number of the present pool.
    pool: u64,
    /// Pools that there are, and the names of the lists in each.
    pools: BTreeMap<u64, BTreeSet<String>>,
    listing: Listing,
    /// The pool's copy of the store's list.
    copy: Option<ListCopy>,
    /// The newest view, if it is as it should be.
    newest: Option<(u64, Record)>,
    /// Files of the store that are not in the pool yet.
    unlinked: BTreeSet<StoreFile>,
    /// Files of the pools that the store does not have any more.
    gone: Vec<Gone>,
    second_copies: SecondCopies,
    /// Tables of the newest view that the store does not have any more.
    retired: Vec<u64>,
}

/// The part of a list that was copied.
struct ListCopy {
    name: String,
    file: File,
    length: u64,
    hasher: Hasher,
}

/// A file of a pool that goes as soon as no view names it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gone {
    pool: u64,
    file: StoreFile,
    /// Number of the last view that names it.
    last: u64,
}

impl Views {
    /// Reads what there is, links what the pool lacks, and finds what it has too much. Costs as much as the store has
    /// files. Only the process that holds the writer's lock may have one.
    pub(crate) fn open(repository: &Path, store: &RocksStore) -> Result<Self> {
        let views = super::directory(repository);
        if super::make_directory(repository)? {
            tracing::warn!("{} was gone and is made again", views.display());
        }
        remove_checkpoint(&scratch(repository));
        let lists = |number| Ok((number, pool::manifests(&pool::path_of(&views, number))?));
        let pools: BTreeMap<_, _> = pool::all(&views)?.into_iter().map(lists).collect::<Result<_>>()?;
        let number = pools.last_key_value().map_or(1, |(number, _)| *number);
        let mut opened = Self {
            repository: repository.to_owned(),
            pool: number,
            listing: Listing::new(path_in(repository), scratch(repository)),
            copy: None,
            newest: None,
            unlinked: BTreeSet::new(),
            gone: Vec::new(),
            second_copies: SecondCopies::default(),
            retired: Vec::new(),
            pools,
            views,
        };
        marker::raise_format(repository)?;
        if !opened.pools.contains_key(&number) {
            opened.make_pool(number)?;
        }
        let found = opened.found()?;
        opened.gather_first(store)?;
        opened.compare(&found)?;
        Ok(opened)
    }

    fn pool(&self) -> PathBuf {
        pool::path_of(&self.views, self.pool)
    }

    /// All views that can be read, and those that can't as `None`.
    fn found(&self) -> Result<BTreeMap<u64, Option<View>>> {
        let mut found = BTreeMap::new();
        for number in super::all(&self.repository)? {
            let view = match View::find(&self.views, number) {
                Ok(Some(view)) => Some(view),
                Ok(None) | Err(Error::FileDamaged { .. }) => None,
                Err(error) => return Err(error),
            };
            found.insert(number, view);
        }
        Ok(found)
    }

    /// Learns the files of the store, and links those that the pool lacks.
    fn gather_first(&mut self, store: &RocksStore) -> Result<()> {
        let there = pool::list(&self.pool())?;
        let lost = store.still(|| {
            let changes = self.listing.advance(store)?;
            // After the tables of this moment were written: one of them may have the name of a lost one that the pool has.
            let stored = pool::list(&path_in(&self.repository))?;
            let differs = |file: &StoreFile| match (stored.get(file), there.get(file)) {
                (Some(stored), Some(there)) => stored != there,
                _ => false,
            };
            // Files of a lost state, or a copy of the repository that was made without its links.
            let others: Vec<_> = changes.added.iter().copied().filter(differs).collect();
            if !others.is_empty() {
                self.check_lengths(&others)?;
                self.begin_pool()?;
            } else {
                // A file that the store has lost is kept by the pool.
                self.unlinked = changes
                    .added
                    .into_iter()
                    .filter(|file| !there.contains_key(file))
                    .collect();
            }
            let mut lost = self.listing.files();
            lost.retain(|file| !stored.contains_key(file));
            self.link(store)?;
            Ok(lost)
        })?;
        self.listing.done();
        self.warn_of_lost(&lost);
        Ok(())
    }

    /// Warns of files that are listed and not there, if the store still needs them. Readers have them in the pool, so nothing else
    /// says so.
    fn warn_of_lost(&self, lost: &BTreeSet<StoreFile>) {
        if lost.is_empty() {
            return;
        }
        // A file that is not needed any more goes after it has left the list.
        let still = needed(&path_in(&self.repository));
        match lost.iter().filter(|file| still.contains_key(file)).count() {
            0 => {}
            lost => tracing::warn!(
                "files of the store are missing: {lost}; `vbk verify` names them, `vbk repair` puts them back"
            ),
        }
    }

    /// An error if the pool has one of these files whole and the store does not: the store's would take its place.
    fn check_lengths(&self, files: &[StoreFile]) -> Result<()> {
        let should = self.listing.lengths();
        let length = |path: &Path| fs::metadata(path).map(|found| found.len()).ok();
        for file in files {
            let path = path_in(&self.repository).join(file.name());
            let should = should.get(file).copied();
            let is_whole_here = should.is_some() && length(&self.pool().join(file.name())) == should;
            // One that is not there any more may not be needed any more.
            if is_whole_here && length(&path).is_some_and(|length| Some(length) != should) {
                return Err(Error::FileDamaged { path });
            }
        }
        Ok(())
    }

    /// Compares the views and the pools.
    fn compare(&mut self, found: &BTreeMap<u64, Option<View>>) -> Result<()> {
        let there = pool::list(&self.pool())?;
        let files = self.listing.files();
        let mut last: BTreeMap<StoreFile, u64> = BTreeMap::new();
        let newest = current(&self.repository)?;
        let tables: BTreeSet<u64> = files.iter().filter_map(table_of).collect();
        let mut shown: BTreeSet<u64> = BTreeSet::new();
        for (number, view) in found {
            let Some(View::File(record, _)) = view else {
                continue;
            };
            let view = View::File(record.clone(), self.views.clone());
            let (is_newest, is_here) = (Some(*number) == newest, record.pool == self.pool);
            let named = match view.list() {
                Ok(named) => Some(named),
                // The reader, or a repair, will report it.
                Err(Unread::Error(Error::Io { .. } | Error::FileDamaged { .. })) => None,
                Err(Unread::Error(error)) => return Err(error),
                Err(Unread::Strange(_)) => None,
            };
            if is_here {
                let names_it = |file: &&StoreFile| match &named {
                    Some(named) => named.contains(file),
                    None => file.number() < record.next,
                };
                last.extend(there.keys().filter(names_it).map(|file| (*file, *number)));
            }
            if is_newest && self.is_whole(*number, &view, named.as_ref(), &there)? {
                self.newest = Some((*number, record.clone()));
                shown.extend(named.iter().flatten().filter_map(table_of));
            }
        }
        // Those that went while the store was opened are among them.
        self.gone.clear();
        for file in there.keys().filter(|file| !files.contains(file)) {
            self.gone.push(Gone {
                pool: self.pool,
                file: *file,
                last: last.get(file).copied().unwrap_or(0),
            });
        }
        self.second_copies = SecondCopies::open(&self.repository, tables.union(&shown).copied())?;
        // The newest view has them until there is a newer one.
        self.retired = shown.difference(&tables).copied().collect();
        Ok(())
    }

    /// Returns whether readers can open a view: a copy of the repository may lack some of it.
    fn is_whole(
        &self,
        number: u64,
        view: &View,
        named: Option<&BTreeSet<StoreFile>>,
        there: &BTreeMap<StoreFile, u64>,
    ) -> Result<bool> {
        if !is_there(&self.views.join(format!("{number}.lock")))? {
            return Ok(false);
        }
        let has_files = match (named, view.files() == self.pool()) {
            (None, _) => true,
            (Some(named), true) => named.iter().all(|file| there.contains_key(file)),
            (Some(named), false) => {
                let there = pool::list(&view.files())?;
                named.iter().all(|file| there.contains_key(file))
            }
        };
        match view.check() {
            Ok(()) => Ok(has_files),
            Err(Error::FileDamaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Publishes the store's present state as the newest view, unless it is that already, and tidies up.
    pub(crate) fn publish(&mut self, store: &RocksStore) -> Result<()> {
        if self.newest() != Some(store.generation()?) {
            self.show(store)?;
        }
        // The view is complete without second copies, but damage to a table may cost more; so this is not a reason to fail.
        if let Err(error) = self.second_copies.update(&self.pool()) {
            tracing::warn!("the second copies of the store's tables are not up to date: {error}");
        }
        self.tidy()
    }

    /// Number of the newest view, if readers can open it.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.newest.as_ref().map(|(number, _)| *number)
    }

    /// Length of RocksDB's list of files. The next opening writes a new one, which is copied too.
    pub(crate) fn list_bytes(&self) -> u64 {
        self.listing.end().1
    }

    #[cfg(test)]
    pub(super) fn misunderstand(&mut self) {
        self.listing.misunderstand();
    }

    fn show(&mut self, store: &RocksStore) -> Result<()> {
        let generation = store.generation()?;
        let older = self.views.join(generation.to_string());
        if fs::symlink_metadata(&older).is_ok_and(|found| found.is_dir()) {
            match current(&self.repository)? == Some(generation) {
                // A view of an older vbk, which may have readers. The new one gets a number of its own.
                true => store.amend(&[], &[])?,
                false => remove_tree(&older)?,
            }
        }
        let number = self.gather(store)?;
        let hash = self.copy_list()?;
        let (manifest, length) = self.listing.end();
        let record = Record {
            pool: self.pool,
            manifest: manifest.to_owned(),
            length,
            hash,
            next: self.listing.next(),
        };
        let path = self.views.join(number.to_string());
        let lock = self.views.join(format!("{number}.lock"));
        File::create(&lock).map_err(Error::io("create", &lock))?;
        files::write(&path, &record.encode())?;
        point_to(&self.views, number)?;
        self.newest = Some((number, record));
        for table in self.retired.drain(..) {
            self.second_copies.retire(table);
        }
        Ok(())
    }

    /// Step 1; returns the generation of the state.
    fn gather(&mut self, store: &RocksStore) -> Result<u64> {
        let generation = store.still(|| {
            self.learn(store)?;
            self.link(store)?;
            store.generation()
        })?;
        self.listing.done();
        Ok(generation)
    }

    /// Notes which files came and went.
    fn learn(&mut self, store: &RocksStore) -> Result<()> {
        let Changes { added, removed } = self.listing.advance(store)?;
        let last = self.newest().unwrap_or(0);
        for file in removed {
            if !self.unlinked.remove(&file) {
                let pool = self.pool;
                self.gone.push(Gone { pool, file, last });
            }
            self.retired.extend(table_of(&file));
        }
        for file in added {
            self.unlinked.insert(file);
            table_of(&file)
                .into_iter()
                .for_each(|table| self.second_copies.want(table));
        }
        Ok(())
    }

    /// Links the files that the pool lacks. Called while nothing is logged.
    fn link(&mut self, store: &RocksStore) -> Result<()> {
        // A list of a lost state may have the name of this one.
        let name = self.listing.end().0.to_owned();
        let is_copied = self.copy.as_ref().is_some_and(|copy| copy.name == name);
        if !is_copied && is_there(&self.pool().join(&name))? {
            self.begin_pool()?;
        }
        for _ in 0..ATTEMPTS {
            let Some(lost) = self.link_some()? else {
                return Ok(());
            };
            self.learn(store)?;
            if self.unlinked.contains(&lost) && !is_there(&self.listing.source().join(lost.name()))? {
                let path = path_in(&self.repository).join(lost.name());
                return Err(Error::FileDamaged { path });
            }
        }
        Err(Error::Internal {
            doing: "make a view",
            message: "files come and go too quickly".into(),
        })
    }

    /// Links files until one of them is gone, which is returned.
    fn link_some(&mut self) -> Result<Option<StoreFile>> {
        while let Some(&file) = self.unlinked.first() {
            match pool::link(self.listing.source(), &self.pool(), file)? {
                Linked::Done => {
                    self.unlinked.pop_first();
                }
                Linked::Gone => return Ok(Some(file)),
                Linked::Taken => self.begin_pool()?,
            }
        }
        Ok(None)
    }

    /// Begins a new pool, for all files of the store.
    fn begin_pool(&mut self) -> Result<()> {
        self.make_pool(self.pool + 1)?;
        self.pool += 1;
        self.copy = None;
        self.unlinked = self.listing.files();
        Ok(())
    }

    fn make_pool(&mut self, number: u64) -> Result<()> {
        let path = pool::path_of(&self.views, number);
        fs::create_dir(&path).map_err(Error::io("create", path))?;
        self.pools.insert(number, BTreeSet::new());
        Ok(())
    }

    /// Step 2; returns the hash of the list.
    fn copy_list(&mut self) -> Result<String> {
        let (name, length) = self.listing.end();
        let pool = self.pool();
        let (from, to) = (path_in(&self.repository).join(name), pool.join(name));
        let copied = match self.copy.take_if(|copy| copy.name == name) {
            Some(copied) => copied,
            None => ListCopy {
                name: name.to_owned(),
                file: File::create_new(&to).map_err(Error::io("create", &to))?,
                length: 0,
                hasher: Hashing::Plain.hasher(),
            },
        };
        let copied = self.copy.insert(copied);
        self.pools.entry(self.pool).or_default().insert(copied.name.clone());
        if copied.length < length {
            let mut hasher = copied.hasher.clone();
            let mut list = File::open(&from).map_err(Error::io("open", &from))?;
            let mut append = || {
                list.seek(SeekFrom::Start(copied.length))?;
                // More than that may be there after a failure.
                copied.file.set_len(copied.length)?;
                copied.file.seek(SeekFrom::End(0))?;
                let mut new = io::Read::take(&mut list, length - copied.length);
                files::read_pieces(&mut new, &|error| error, &mut |piece| {
                    hasher.update(piece);
                    copied.file.write_all(piece)
                })?;
                list.sync_data()?;
                copied.file.sync_data()
            };
            append().map_err(Error::io("copy", &from))?;
            (copied.length, copied.hasher) = (length, hasher);
        }
        let hash = digits_of(&copied.hasher);
        files::sync_directory(&pool)?;
        Ok(hash)
    }
}

fn point_to(views: &Path, number: u64) -> Result<()> {
    let (link, new) = (views.join("current"), views.join("current.new"));
    remove_if_there(&new).map_err(Error::io("remove", &new))?;
    std::os::unix::fs::symlink(number.to_string(), &new).map_err(Error::io("create", &new))?;
    fs::rename(&new, &link).map_err(Error::io("replace", &link))?;
    files::sync_directory(views)
}

fn table_of(file: &StoreFile) -> Option<u64> {
    match file {
        StoreFile::Table(number) => Some(*number),
        StoreFile::Blob(_) => None,
    }
}
