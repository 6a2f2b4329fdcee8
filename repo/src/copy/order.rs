//! The order of a guest's backups in the repository that they are copied to.

use std::collections::HashMap;

use crate::backup::{Backup, Entry};
use crate::catalogue::Catalogue;
use crate::name::{BackupTime, GuestName};

/// Orders of the backups of two repositories.
#[derive(Debug)]
pub(super) struct Order {
    /// Positions in the order in which the backups were made, by their names.
    ranks: HashMap<String, usize>,
    there: HashMap<GuestName, Vec<There>>,
}

/// A backup of the repository that is copied to.
#[derive(Debug)]
struct There {
    /// Its position, if the other repository has it too.
    rank: Option<usize>,
    time: BackupTime,
    sequence: u64,
}

impl Order {
    /// Compares two repositories. Returns all backups of the first one too, in order.
    pub(super) fn of<'a>(from: &'a Catalogue, to: &Catalogue) -> (Self, Vec<&'a Entry>) {
        let mut ranked: Vec<_> = from.entries().iter().collect();
        ranked.sort_by_key(|entry| (entry.backup.order(), &entry.backup.guest));
        let ranks = ranked.iter().enumerate();
        let mut order = Self {
            ranks: ranks.map(|(rank, entry)| (entry.backup.spec(), rank)).collect(),
            there: HashMap::new(),
        };
        for entry in to.entries() {
            order.add(&entry.backup, entry.backup.sequence);
        }
        (order, ranked)
    }

    /// Returns the position of a backup.
    pub(super) fn rank(&self, backup: &Backup) -> usize {
        self.ranks.get(&backup.spec()).copied().unwrap_or(usize::MAX)
    }

    /// Notes a backup that the repository has now.
    pub(super) fn add(&mut self, backup: &Backup, sequence: u64) {
        let rank = self.ranks.get(&backup.spec()).copied();
        let there = self.there.entry(backup.guest.clone()).or_default();
        there.push(There {
            rank,
            time: backup.time,
            sequence,
        });
    }

    /// Returns the `sequence` of a backup to be copied, if one is there that was made after it; `None`: its generation.
    pub(super) fn sequence_of(&self, backup: &Backup) -> Option<u64> {
        let rank = self.rank(backup);
        let there = self.there.get(&backup.guest)?;
        let is_later = |there: &&There| match there.rank {
            Some(other) => other > rank,
            None => there.time > backup.time,
        };
        let (later, earlier): (Vec<_>, Vec<_>) = there.iter().partition(is_later);
        let next = later.iter().map(|there| there.sequence).min()?;
        // Backups of one sequence are in the order of their times.
        let last = earlier.iter().map(|there| there.sequence).max();
        Some(last.unwrap_or(0).min(next))
    }
}
