//! A directory whose writers go another way than that of [`Directory`] itself.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::Directory;
use crate::error::Result;
use crate::keys::{Keys, SlotFile, Unlock};
use crate::repository::home::{DiskUsage, Home, Marker, Reserve, Session, Snapshot, Wait};
use crate::store::{StoreManager, StoreWriter};

/// The way of the writers: see [`Home::write`] and [`Home::manage`].
pub trait Writers: std::fmt::Debug + Send + Sync {
    /// Opens the store for adding backups.
    fn write(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreWriter>>;

    /// Opens the store for changes and removals.
    fn manage(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreManager>>;
}

/// A home that reads a directory as always, and writes by `W`.
#[derive(Debug)]
pub struct Through<W> {
    directory: Arc<Directory>,
    writers: W,
}

impl<W: Writers> Through<W> {
    /// Puts a directory and the way of its writers together.
    pub fn new(directory: Arc<Directory>, writers: W) -> Self {
        Self { directory, writers }
    }
}

impl<W: Writers> Home for Through<W> {
    fn name(&self) -> &Path {
        self.directory.name()
    }

    fn marker(&self) -> &Marker {
        self.directory.marker()
    }

    fn newest(&self) -> Result<Option<u64>> {
        self.directory.newest()
    }

    fn key_slots(&self) -> Result<Vec<SlotFile>> {
        self.directory.key_slots()
    }

    fn unlock(&self, way: &Unlock, check: Option<&str>) -> Result<Keys> {
        self.directory.unlock(way, check)
    }

    fn check_reserve(&self, reserve: Reserve) -> Result<()> {
        self.directory.check_reserve(reserve)
    }

    fn disk_usage(&self) -> Result<DiskUsage> {
        self.directory.disk_usage()
    }

    fn check_tables(&self, snapshot: u64, cancel: &AtomicBool) -> Result<Vec<String>> {
        self.directory.check_tables(snapshot, cancel)
    }

    fn check_stored(&self, cancel: &AtomicBool, each: &mut dyn FnMut(String)) -> Result<u64> {
        self.directory.check_stored(cancel, each)
    }

    fn add_key_slot(&self, slot: &SlotFile) -> Result<()> {
        self.directory.add_key_slot(slot)
    }

    fn remove_key_slot(&self, name: &str, stays: Option<&SlotFile>) -> Result<()> {
        self.directory.remove_key_slot(name, stays)
    }

    fn read_as_it_is(&self) -> Result<Option<Snapshot>> {
        self.directory.read_as_it_is()
    }

    fn read(&self) -> Result<Snapshot> {
        self.directory.read()
    }

    fn write(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreWriter>> {
        self.writers.write(command, wait)
    }

    fn manage(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreManager>> {
        self.writers.manage(command, wait)
    }
}
