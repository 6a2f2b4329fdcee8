//! The file system of backups as such: names, attributes and reads. Independent of the kernel.
//!
//! ```text
//! GUEST/latest -> TIME    the backup made last, whatever the clock said
//! GUEST/TIME/backup.json
//! GUEST/TIME/DISK.img
//! GUEST/TIME/DISK.pN.img
//! GUEST/TIME/VG-LV.img    a volume inside the disks, e.g. a logical volume
//! GUEST/TIME/FILE         e.g. config.xml, if it was backed up too
//! ```
//!
//! A tree of one backup alone may be flat, without GUEST/TIME, and writable: writes go to a scratch file, and the image
//! of a disk, of its partitions and of its volumes show the same bytes.
//!
//! Every access to a directory first checks whether the repository has a newer view, so a new backup appears at once.
//! An open file keeps the view in which it was opened.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard, RwLock};
use quick_cache::sync::Cache;
use vbk_repo::backup::Entry;
use vbk_repo::catalogue::Catalogue;
use vbk_repo::id::BackupId;
use vbk_repo::name::{BackupTime, GuestName};
use vbk_repo::reader::ReadResources;
use vbk_repo::repository::{Repository, View};
use vbk_repo::{Error, ErrorKind, Result};

use crate::contents::BackedDisk;
use crate::listing::{self, FileContent, FileInfo, OpenDisks};
use open::{OpenContent, OpenFile, from_io};
use state::State;
use vbk_inside::btrfs::{self, NewFsid};
use vbk_inside::device::{SharedDevice, Window};
use vbk_inside::overlay::{Overlay, Scratch};
use vbk_inside::volumes::{self, Secrets, Volumes};

mod fsids;
mod open;
mod state;

/// Inode number of the top directory.
pub(crate) const ROOT: u64 = 1;

/// Time after which an open file that is not read gives back what was read ahead for it.
pub(crate) const IDLE: Duration = Duration::from_secs(10);
/// Backups whose file lists are cached.
const LISTINGS: usize = 4096;
/// Object that a name refers to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Node {
    Root,
    Guest(GuestName),
    Latest(GuestName),
    Backup(GuestName, BackupTime),
    File(GuestName, BackupTime, String),
}

/// Kind of an object in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
}

/// Attributes for stat(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Inode number, the same as long as the tree lives.
    pub number: u64,
    /// Kind of the object.
    pub kind: Kind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes outside zero blocks, as far as known.
    pub data_bytes: u64,
    /// Time at which the disk had this content.
    pub modified: Timestamp,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    /// Inode number.
    pub number: u64,
    /// Kind of the object.
    pub kind: Kind,
    /// Name in the directory.
    pub name: String,
}

/// Inode numbers of names, assigned at the first lookup and kept.
#[derive(Default)]
struct Numbers {
    nodes: Vec<Node>,
    numbers: HashMap<Node, u64>,
}

/// Options of a tree.
#[derive(Default)]
pub struct TreeOptions {
    /// The only backup to show; all if `None`.
    pub only: Option<BackupId>,
    /// Show the files of the only backup at the top.
    pub flat: bool,
    /// File systems to show under another identity.
    pub fsids: Vec<NewFsid>,
    /// Passphrases for encrypted volumes.
    pub secrets: Secrets,
    /// Place for writes to the disks of the only backup; without it, the tree is read-only. Its disks have the numbers
    /// that they have in the backup.
    pub scratch: Option<Arc<Scratch>>,
}

/// The backups of a repository as files. May be used by many threads at once.
pub struct ImageFs {
    repository: Repository,
    options: TreeOptions,
    /// What is inside the disks of the only backup: opening encrypted volumes takes seconds.
    inside: Mutex<Option<Arc<Volumes>>>,
    /// Identities that file systems had before they got new ones, in a writable tree.
    old_fsids: Mutex<Vec<(NewFsid, btrfs::Identity, SharedDevice)>>,
    resources: Arc<ReadResources>,
    state: RwLock<Arc<State>>,
    refreshing: Mutex<()>,
    numbers: Mutex<Numbers>,
    listings: Cache<BackupId, Arc<Vec<FileInfo>>>,
    open: RwLock<HashMap<u64, Arc<OpenFile>>>,
    next_handle: AtomicU64,
}

impl ImageFs {
    /// Makes the tree of a view of a repository, whose backups were read.
    pub fn new(
        repository: Repository,
        (view, catalogue): (View, &Catalogue),
        options: TreeOptions,
        resources: Arc<ReadResources>,
    ) -> Self {
        let state = RwLock::new(Arc::new(State::of(view, catalogue, options.only)));
        let tree = Self {
            repository,
            options,
            state,
            inside: Mutex::default(),
            old_fsids: Mutex::default(),
            resources,
            refreshing: Mutex::default(),
            numbers: Mutex::default(),
            listings: Cache::new(LISTINGS),
            open: RwLock::default(),
            next_handle: AtomicU64::new(1),
        };
        let top = match tree.state().only_backup().filter(|_| tree.options.flat) {
            Some((guest, time)) => Node::Backup(guest, time),
            None => Node::Root,
        };
        let root = tree.number(top);
        debug_assert_eq!(root, ROOT);
        tree
    }

    /// Tests whether files can be written.
    pub fn is_writable(&self) -> bool {
        self.options.scratch.is_some()
    }

    /// Releases what idle files hold, and an old view.
    pub(crate) fn tidy(&self) {
        self.resources.drop_idle(IDLE);
        self.refresh();
    }

    /// Switches to the newest view, if there is a newer one. The old view is released when no open file needs it, and
    /// with it the space of what was removed from the repository since.
    pub(crate) fn refresh(&self) {
        if let Err(error) = self.try_refresh() {
            // The present view is still good.
            tracing::warn!("can't look for new backups: {error}");
        }
    }

    fn try_refresh(&self) -> Result<()> {
        let newest = self.repository.newest_view()?;
        if newest.is_none_or(|newest| newest == self.state().view.number()) {
            return Ok(());
        }
        let _one = self.refreshing.lock();
        if newest == Some(self.state().view.number()) {
            return Ok(());
        }
        let state = Arc::new(State::load(self.repository.view()?, self.options.only)?);
        *self.state.write() = state;
        Ok(())
    }

    /// Finds a name in a directory.
    pub(crate) fn lookup(&self, directory: u64, name: &str) -> Result<Attributes> {
        self.refresh();
        let state = self.state();
        let node = match self.node(directory)? {
            Node::Root => Node::Guest(name.parse().map_err(|_| not_found(name))?),
            Node::Guest(guest) if name == "latest" => Node::Latest(guest),
            Node::Guest(guest) => Node::Backup(guest, name.parse().map_err(|_| not_found(name))?),
            Node::Backup(guest, time) => Node::File(guest, time, name.to_owned()),
            Node::Latest(_) | Node::File(..) => return Err(not_found(name)),
        };
        self.attributes_of(&state, &node)
    }

    /// Returns the attributes of an object.
    pub(crate) fn attributes(&self, number: u64) -> Result<Attributes> {
        let node = self.node(number)?;
        self.refresh();
        match self.attributes_of(&self.state(), &node) {
            // The backup was forgotten while a program reads it: an open file stays unchanged.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let files = self.open.read();
                let mut open = files.values().filter(|file| file.attributes.number == number);
                open.next().map(|file| file.attributes.clone()).ok_or(error)
            }
            result => result,
        }
    }

    /// Returns the target of a link.
    pub(crate) fn link(&self, number: u64) -> Result<String> {
        self.refresh();
        match self.node(number)? {
            Node::Latest(guest) => Ok(self.state().latest(&guest)?.backup.time.to_string()),
            Node::Root | Node::Guest(_) | Node::Backup(..) | Node::File(..) => Err(not_found("link")),
        }
    }

    /// Lists a directory.
    pub(crate) fn list(&self, directory: u64) -> Result<Vec<Name>> {
        self.refresh();
        let state = self.state();
        let name = |node: Node, kind, name: String| Name {
            number: self.number(node),
            kind,
            name,
        };
        Ok(match self.node(directory)? {
            Node::Root => {
                let guests = state.guests.keys();
                guests
                    .map(|guest| name(Node::Guest(guest.clone()), Kind::Directory, guest.to_string()))
                    .collect()
            }
            Node::Guest(guest) => {
                let times = state.backups(&guest)?.keys();
                let backups = times.map(|time| {
                    let node = Node::Backup(guest.clone(), *time);
                    name(node, Kind::Directory, time.to_string())
                });
                let latest = name(Node::Latest(guest.clone()), Kind::Link, "latest".into());
                backups.chain([latest]).collect()
            }
            Node::Backup(guest, time) => {
                let files = self.files(&state, state.backup(&guest, time)?);
                let file = |file: &FileInfo| {
                    let node = Node::File(guest.clone(), time, file.name.clone());
                    name(node, Kind::File, file.name.clone())
                };
                files.iter().map(file).collect()
            }
            Node::Latest(_) | Node::File(..) => return Err(not_found("directory")),
        })
    }

    /// Opens a file; the returned handle is valid until [`Self::close_file`].
    pub(crate) fn open_file(&self, number: u64) -> Result<u64> {
        let Node::File(guest, time, name) = self.node(number)? else {
            return Err(not_found("file"));
        };
        let state = self.state();
        let entry = state.backup(&guest, time)?;
        let file = self.file(&state, entry, &name)?;
        let content = match file.content {
            FileContent::Record => OpenContent::Bytes(listing::record_json(entry)),
            _ => {
                let device = self.device(&state, entry, &file)?;
                let patches = self.patches(&file, &device)?;
                OpenContent::Device { device, patches }
            }
        };
        let open = OpenFile {
            attributes: self.attributes_of(&state, &self.node(number)?)?,
            label: format!("{}/{name}", entry.backup.spec()),
            content,
            reported: Mutex::default(),
        };
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let mut files = self.open.write();
        files.insert(handle, Arc::new(open));
        Ok(handle)
    }

    /// Opens the bytes of a file that is part of the disks, or was backed up beside them.
    fn device(&self, state: &State, entry: &Entry, file: &FileInfo) -> Result<SharedDevice> {
        match &file.content {
            FileContent::Record => Err(not_found(&file.name)),
            FileContent::Image(number) => self.disk(state, entry, *number),
            FileContent::Partition { disk, offset_bytes } => {
                let disk = self.disk(state, entry, *disk)?;
                Ok(Arc::new(Window::new(disk, *offset_bytes, file.size_bytes)))
            }
            FileContent::Volume(name) => {
                let inside = self.inside(state, entry);
                let mut volumes = inside.volumes.iter();
                let volume = volumes.find(|volume| volume.image == *name);
                volume
                    .map(|volume| Arc::clone(&volume.device))
                    .ok_or_else(|| not_found(&file.name))
            }
        }
    }

    /// Opens an image of a backup, with the changes made to it.
    fn disk(&self, state: &State, entry: &Entry, number: usize) -> Result<SharedDevice> {
        let image = entry.backup.stored().nth(number).ok_or_else(|| not_found("disk"))?;
        let disk = BackedDisk::open(state.view.store(), &self.resources, image)?;
        let number = u16::try_from(number)
            .ok()
            .filter(|_| number < entry.backup.images.len());
        Ok(match (&self.options.scratch, number) {
            (Some(scratch), Some(number)) => Arc::new(Overlay::new(disk, number, Arc::clone(scratch))),
            _ => disk,
        })
    }

    fn open_disks(&self, state: &State, entry: &Entry) -> OpenDisks {
        OpenDisks::open(entry, |number| self.disk(state, entry, number))
    }

    /// Returns what is inside the disks of a backup.
    fn inside(&self, state: &State, entry: &Entry) -> Arc<Volumes> {
        let find = || {
            Arc::new(volumes::find(
                &self.open_disks(state, entry).disks,
                &self.options.secrets,
            ))
        };
        if self.options.only.is_none() {
            return find();
        }
        let mut known = self.inside.lock();
        if let Some(known) = &*known {
            return Arc::clone(known);
        }
        let found = find();
        // What could not be read is looked for again: the store may have been away.
        if found.is_complete {
            *known = Some(Arc::clone(&found));
        }
        found
    }

    /// Returns the bytes that replace those of a file. An error prevents opening the file: it must never show its own
    /// identity where another was requested. In a writable tree the disks have them already: see
    /// [`Self::write_fsids`].
    fn patches(&self, file: &FileInfo, device: &SharedDevice) -> Result<Vec<btrfs::Patch>> {
        let mut patches = Vec::new();
        if self.is_writable() {
            return Ok(patches);
        }
        for new in self.options.fsids.iter().filter(|new| new.file == file.name) {
            patches.extend(btrfs::patches(&**device, new.fsid).map_err(from_io("read the superblock of", &file.name))?);
        }
        Ok(patches)
    }

    /// Closes an open file.
    pub(crate) fn close_file(&self, handle: u64) {
        let mut files = self.open.write();
        let closed = files.remove(&handle);
        // This may free a whole view, so not under the lock.
        drop(files);
        drop(closed);
    }

    /// Reads from an open file and returns the number of bytes; fewer than `out` holds only at the end.
    pub(crate) fn read(&self, handle: u64, offset_bytes: u64, out: &mut [u8]) -> Result<usize> {
        let file = self.opened(handle)?;
        let result = file.read(offset_bytes, out);
        result.inspect_err(|error| file.report(offset_bytes, out.len(), "reading", error))
    }

    /// Writes to an open file of a writable tree.
    pub(crate) fn write(&self, handle: u64, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        let file = self.opened(handle)?;
        let result = file.write(offset_bytes, bytes);
        result.inspect_err(|error| file.report(offset_bytes, bytes.len(), "writing", error))
    }

    /// Makes what was written to an open file durable, if the scratch file is kept.
    pub(crate) fn flush(&self, handle: u64) -> Result<()> {
        self.opened(handle)?.flush()
    }

    /// Returns the next offset with data at or after `offset_bytes`; `None` if only zeros follow.
    pub(crate) fn next_data(&self, handle: u64, offset_bytes: u64) -> Result<Option<u64>> {
        self.opened(handle)?.next_data(offset_bytes)
    }

    /// Returns the next offset of zeros at or after `offset_bytes`, at most the end of the file; `None` past the end.
    pub(crate) fn next_hole(&self, handle: u64, offset_bytes: u64) -> Result<Option<u64>> {
        self.opened(handle)?.next_hole(offset_bytes)
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read())
    }

    fn opened(&self, handle: u64) -> Result<Arc<OpenFile>> {
        let files = self.open.read();
        files.get(&handle).cloned().ok_or_else(|| not_found("open file"))
    }

    fn attributes_of(&self, state: &State, node: &Node) -> Result<Attributes> {
        let directory = |modified| (Kind::Directory, 0, 0, modified);
        let (kind, size_bytes, data_bytes, modified) = match node {
            Node::Root => directory(state.newest()),
            Node::Guest(guest) => directory(state.latest(guest)?.backup.time.timestamp()),
            Node::Backup(guest, time) => directory(state.backup(guest, *time)?.backup.time.timestamp()),
            Node::Latest(guest) => {
                let time = state.latest(guest)?.backup.time;
                let len = time.to_string().len() as u64;
                (Kind::Link, len, len, time.timestamp())
            }
            Node::File(guest, time, name) => {
                let file = self.file(state, state.backup(guest, *time)?, name)?;
                (Kind::File, file.size_bytes, file.data_bytes, time.timestamp())
            }
        };
        Ok(Attributes {
            number: self.number(node.clone()),
            kind,
            size_bytes,
            data_bytes,
            modified,
        })
    }

    fn file(&self, state: &State, entry: &Entry, name: &str) -> Result<FileInfo> {
        let files = self.files(state, entry);
        let found = files.iter().find(|file| file.name == name);
        found.cloned().ok_or_else(|| not_found(name))
    }

    fn files(&self, state: &State, entry: &Entry) -> Arc<Vec<FileInfo>> {
        if let Some(files) = self.listings.get(&entry.id) {
            return files;
        }
        let (files, complete) = listing::list(entry, &self.open_disks(state, entry), &self.inside(state, entry));
        let files = Arc::new(files);
        // A list that could not be read completely may be readable later.
        if complete {
            self.listings.insert(entry.id, Arc::clone(&files));
        }
        files
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock()
    }

    fn node(&self, number: u64) -> Result<Node> {
        let place = number.checked_sub(ROOT).and_then(|place| usize::try_from(place).ok());
        let node = place.and_then(|place| self.numbers().nodes.get(place).cloned());
        node.ok_or_else(|| not_found("entry"))
    }

    fn number(&self, node: Node) -> u64 {
        let mut numbers = self.numbers();
        if let Some(number) = numbers.numbers.get(&node) {
            return *number;
        }
        let number = ROOT + numbers.nodes.len() as u64;
        numbers.nodes.push(node.clone());
        numbers.numbers.insert(node, number);
        number
    }
}

pub(crate) fn not_found(name: &str) -> Error {
    Error::NotInTree(name.to_owned())
}

#[cfg(test)]
mod tests;
