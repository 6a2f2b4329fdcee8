//! Counts the content of a repository: the size of the guests' disks, the data left when repetitions are counted once,
//! and the space that it takes in the store.
//!
//! Reads manifests and the index, but no blocks. Memory: 2 bytes per block of the store, a bit per block, 40 bytes per
//! full segment of the largest guest.

use std::sync::atomic::AtomicBool;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde::Serialize;

use crate::backup::Entry;
use crate::catalogue::Catalogue;
use crate::error::{Error, Result};
use crate::id::BlockId;
use crate::mark::each_segment;
use crate::store::places::{Place, PlaceNumbers, Places};
use crate::store::{Located, MOST_BASES_READ, StoreReader};

/// Amount of blocks, each counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Number of blocks.
    pub blocks: u64,
    /// Plain bytes of the blocks.
    pub plain_bytes: u64,
    /// Bytes that they take in the store.
    pub stored_bytes: u64,
}

impl Amount {
    fn add(&mut self, located: Located) {
        self.blocks += 1;
        self.plain_bytes += u64::from(located.plain_bytes);
        self.stored_bytes += u64::from(located.stored_bytes);
    }
}

/// Content of the repository that belongs to one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuestStats {
    /// Name of the guest.
    pub guest: String,
    /// Number of its backups.
    pub backups: u64,
    /// Sum of the sizes of all disks in all its backups.
    pub logical_bytes: u64,
    /// All blocks that its backups name, and those that they are stored as differences from.
    pub unique: Amount,
    /// Blocks that only its backups name: the space that forgetting the guest would free.
    pub own: Amount,
}

/// Content of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Number of backups.
    pub backups: u64,
    /// Sum of the sizes of all disks in all backups.
    pub logical_bytes: u64,
    /// The same without zeros: the data if each backup had its own blocks.
    pub data_bytes: u64,
    /// All blocks that a backup names.
    pub unique: Amount,
    /// Blocks that no backup names any more.
    pub unreferenced: Amount,
    /// Bytes that the backups of the last [`GROWTH_DAYS`] days added to the store.
    pub recent_stored_bytes: u64,
    /// Days that this covers: less than [`GROWTH_DAYS`] in a younger repository.
    pub recent_days: u64,
    /// Content by guest.
    pub guests: Vec<GuestStats>,
}

/// Days over which growth is measured.
pub const GROWTH_DAYS: i64 = 30;

/// Owner of the block at each place in the store: none, one guest by its number, or several guests.
#[derive(Default)]
struct Owners(PlaceNumbers);

const NOBODY: u16 = 0;
const SEVERAL: u16 = u16::MAX;

impl Owners {
    fn get(&self, place: Place) -> u16 {
        self.0.get(place)
    }

    fn add(&mut self, place: Place, guest: u16) {
        let owner = self.0.at(place);
        *owner = match *owner {
            NOBODY => guest,
            one if one == guest => guest,
            _ => SEVERAL,
        };
    }
}

/// Counts the content. Damage to a manifest ends the count with an error, because the blocks that it names are not
/// known.
pub fn stats(
    store: &dyn StoreReader,
    catalogue: &Catalogue,
    threads: usize,
    now: Timestamp,
    cancel: &AtomicBool,
) -> Result<Stats> {
    let owners = Mutex::new(Owners::default());
    let mut guests = Vec::new();
    for guest in catalogue.guests() {
        // With more guests than numbers, the last guests share one number and own nothing.
        let number = u16::try_from(guests.len() + 1).unwrap_or(SEVERAL);
        let entries: Vec<&Entry> = catalogue.of(guest).collect();
        let seen: Mutex<(Places, Amount)> = Mutex::default();
        each_segment(store, &entries, threads, cancel, &mut |_| (), &|ids| {
            let all_located = locate_with_bases(store, ids)?;
            let mut seen = seen.lock();
            let mut owners = owners.lock();
            for located in all_located {
                if seen.0.insert(located.place) {
                    seen.1.add(located);
                    owners.add(located.place, number);
                }
            }
            Ok(())
        })?;
        guests.push(GuestStats {
            guest: guest.to_string(),
            backups: entries.len() as u64,
            logical_bytes: sum(entries.iter().map(|entry| entry.backup.size_bytes())),
            unique: seen.into_inner().1,
            own: Amount::default(),
        });
    }
    let owners = owners.into_inner();
    let (mut unique, mut unreferenced) = (Amount::default(), Amount::default());
    store.survey(&mut |_, located| {
        match owners.get(located.place) {
            NOBODY => {
                unreferenced.add(located);
                return Ok(());
            }
            SEVERAL => {}
            number => guests[usize::from(number) - 1].own.add(located),
        }
        unique.add(located);
        Ok(())
    })?;
    let entries = catalogue.entries();
    let since = now - SignedDuration::from_hours(24 * GROWTH_DAYS);
    let recent = entries.iter().filter(|entry| entry.backup.time.timestamp() >= since);
    let age = store.identity()?.created.duration_until(now).as_hours() / 24;
    Ok(Stats {
        backups: entries.len() as u64,
        logical_bytes: sum(entries.iter().map(|entry| entry.backup.size_bytes())),
        data_bytes: sum(entries.iter().map(|entry| entry.backup.data_bytes())),
        unique,
        unreferenced,
        recent_stored_bytes: sum(recent.map(|entry| entry.backup.stored_bytes())),
        recent_days: age.clamp(1, GROWTH_DAYS) as u64,
        guests,
    })
}

/// Looks blocks up, and what they are stored as differences from.
fn locate_with_bases(store: &dyn StoreReader, ids: &[BlockId]) -> Result<Vec<Located>> {
    let (mut all, mut ids) = (Vec::new(), ids.to_vec());
    for _ in 0..=MOST_BASES_READ {
        if ids.is_empty() {
            break;
        }
        let located = ids.iter().zip(store.locate(&ids)?);
        let located = located.map(|(id, located)| located.ok_or(Error::BlockMissing(*id)));
        let located: Vec<_> = located.collect::<Result<_>>()?;
        ids = located.iter().filter_map(|located| located.base).collect();
        all.extend(located);
    }
    Ok(all)
}

/// Sums numbers from records, which may have any value.
fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{Record, StoreWriter};
    use crate::tests::testing::{SMALL, backup, store_image};

    /// Returns a disk with blocks of these contents, none of them zero.
    fn disk(contents: &[u8]) -> Vec<u8> {
        contents
            .iter()
            .flat_map(|content| std::iter::repeat_n(*content, SMALL.bytes()))
            .collect()
    }

    #[test]
    fn what_guests_share_is_nobodys_own_and_counted_once() {
        let store = MemoryStore::new(SMALL);
        let days = [
            ("db", "2026-11-20T05-54-00Z", &[1, 2, 3][..]),
            ("db", "2026-11-21T05-54-00Z", &[1, 2, 4, 4]),
            ("web", "2026-11-21T05-54-00Z", &[2, 5]),
        ];
        for (guest, time, contents) in days {
            let made = backup(guest, time, vec![store_image(&store, "vda", &disk(contents))]);
            let record = Record {
                key: made.spec(),
                bytes: made.encode(),
            };
            store.commit(&record).expect("commits");
        }
        store_image(&store, "vda", &disk(&[9, 9]));
        let catalogue = Catalogue::load(&store).expect("loads");
        let now = "2026-11-22T00:00:00Z".parse().expect("a time");
        let all = stats(&store, &catalogue, 2, now, &AtomicBool::new(false)).expect("counts");
        let block = SMALL.bytes() as u64;
        assert_eq!((all.backups, all.logical_bytes), (3, 9 * block));
        assert_eq!((all.unique.blocks, all.unreferenced.blocks), (5, 1));
        assert_eq!(all.unique.plain_bytes, 5 * block);
        let counts: Vec<_> = all
            .guests
            .iter()
            .map(|one| (one.backups, one.unique.blocks, one.own.blocks))
            .collect();
        assert_eq!(counts, [(2, 4, 3), (1, 2, 1)]);
        let live = all.guests.iter().map(|one| one.own.stored_bytes).sum::<u64>();
        assert!(live < all.unique.stored_bytes);
    }
}
