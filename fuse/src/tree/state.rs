//! The backups of one view of the repository.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use vbk_repo::Result;
use vbk_repo::backup::Entry;
use vbk_repo::catalogue::Catalogue;
use vbk_repo::id::BackupId;
use vbk_repo::name::{BackupTime, GuestName};
use vbk_repo::repository::View;

use super::not_found;

/// The backups of one view.
pub(super) struct State {
    pub(super) view: View,
    pub(super) guests: BTreeMap<GuestName, BTreeMap<BackupTime, Arc<Entry>>>,
}

impl State {
    pub(super) fn load(view: View, only: Option<BackupId>) -> Result<Self> {
        let catalogue = view.catalogue()?;
        Ok(Self::of(view, &catalogue, only))
    }

    /// The same, whose backups were read.
    pub(super) fn of(view: View, catalogue: &Catalogue, only: Option<BackupId>) -> Self {
        for error in catalogue.damaged() {
            tracing::warn!("not shown: {error}");
        }
        let mut guests: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for entry in catalogue.entries() {
            if only.is_none_or(|only| only == entry.id) {
                let backups = guests.entry(entry.backup.guest.clone()).or_default();
                backups.insert(entry.backup.time, Arc::new(entry.clone()));
            }
        }
        Self { view, guests }
    }

    pub(super) fn backups(&self, guest: &GuestName) -> Result<&BTreeMap<BackupTime, Arc<Entry>>> {
        self.guests.get(guest).ok_or_else(|| not_found(guest.as_str()))
    }

    pub(super) fn backup(&self, guest: &GuestName, time: BackupTime) -> Result<&Arc<Entry>> {
        let found = self.backups(guest)?.get(&time);
        found.ok_or_else(|| not_found(&time.to_string()))
    }

    pub(super) fn latest(&self, guest: &GuestName) -> Result<&Arc<Entry>> {
        let found = self.backups(guest)?.values().max_by_key(|entry| entry.backup.order());
        found.ok_or_else(|| not_found("latest"))
    }

    /// Returns the backup, if there is exactly one.
    pub(super) fn only_backup(&self) -> Option<(GuestName, BackupTime)> {
        let mut all = self
            .guests
            .iter()
            .flat_map(|(guest, backups)| backups.keys().map(move |time| (guest, *time)));
        let (guest, time) = all.next()?;
        all.next().is_none().then(|| (guest.clone(), time))
    }

    pub(super) fn newest(&self) -> Timestamp {
        let all = self.guests.values().flat_map(|backups| backups.values());
        let newest = all.max_by_key(|entry| entry.backup.order());
        newest.map_or(self.view.identity().created, |entry| entry.backup.time.timestamp())
    }
}
