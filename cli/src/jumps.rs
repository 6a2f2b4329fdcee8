//! Guests that were changed so much that no rule may forget what they had before: encrypted, wiped, or another one's disks.

use std::collections::BTreeSet;
use std::fmt;

use vbk_repo::ErrorKind;
use vbk_repo::backup::{Backup, Image};
use vbk_repo::catalogue::Catalogue;
use vbk_repo::kept::{Kept, kept};
use vbk_repo::name::{DiskName, GuestName};
use vbk_repo::store::StoreReader;

use crate::args::ForgetArgs;
use crate::exit::Result;

/// Share of what an earlier backup had that must still be in the newest one.
const LEAST: f64 = 0.2;
/// Less data is not looked at: a small disk changes as a whole.
const LEAST_BYTES: u64 = 64 << 20;
/// Age of the older one of two backups that the newest one is compared with: so that a jump is seen for some days, and not only
/// until the next backup.
const BEFORE_SECS: i64 = 7 * 86_400;

/// Finds such guests.
pub struct Jumps<'a> {
    store: &'a dyn StoreReader,
    are_meant: bool,
}

/// A guest that was changed too much.
#[derive(Debug)]
pub struct Jump {
    guest: GuestName,
    /// `None`: all its disks together.
    disk: Option<DiskName>,
    before: String,
    after: String,
    share: f64,
}

impl fmt::Display for Jump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_disk = self.disk.as_ref().map(|disk| format!("disk {disk} of "));
        write!(
            f,
            "only {:.0}% of what {}{} has is still in {}, so no backup of {} was forgotten: the guest may have been encrypted or \
             wiped. If the change was meant, --changed-too forgets by the rules all the same",
            self.share * 100.0,
            of_disk.unwrap_or_default(),
            self.before,
            self.after,
            self.guest
        )
    }
}

/// Two backups, and the image of a disk in each.
type Pair<'e> = [(&'e Backup, &'e Image); 2];

impl<'a> Jumps<'a> {
    pub fn of(store: &'a dyn StoreReader, args: &ForgetArgs) -> Self {
        Self {
            store,
            are_meant: args.changed_too,
        }
    }

    /// Returns whether changes and losses are meant, and stop no rule.
    pub fn are_meant(&self) -> bool {
        self.are_meant
    }

    /// Compares each disk in the newest backup that has it with the one before that, and with the newest one that is a week older.
    pub fn find(&self, catalogue: &Catalogue, guest: &GuestName) -> Result<Option<Jump>> {
        if self.are_meant {
            return Ok(None);
        }
        let all: Vec<&Backup> = catalogue.of(guest).map(|entry| &*entry.backup).collect();
        let disks: BTreeSet<&DiskName> = all
            .iter()
            .flat_map(|backup| &backup.images)
            .map(|image| &image.disk)
            .collect();
        // Small disks count together, if the backups that are compared are the same for all.
        let mut sums = Vec::<(&Backup, &Backup, Kept)>::new();
        for disk in disks {
            for pair @ [(before, _), (after, _)] in pairs(catalogue, &all, disk) {
                let Some(kept) = self.kept(pair)? else { continue };
                if let Some(share) = too_little(&kept) {
                    return Ok(Some(Jump {
                        guest: guest.clone(),
                        disk: Some(disk.clone()),
                        before: before.spec(),
                        after: after.spec(),
                        share,
                    }));
                }
                match sums
                    .iter_mut()
                    .find(|sum| (sum.0.time, sum.1.time) == (before.time, after.time))
                {
                    Some(sum) => sum.2 += kept,
                    None => sums.push((before, after, kept)),
                }
            }
        }
        let jump = sums.iter().find_map(|(before, after, kept)| {
            Some(Jump {
                guest: guest.clone(),
                disk: None,
                before: before.spec(),
                after: after.spec(),
                share: too_little(kept)?,
            })
        });
        Ok(jump)
    }

    /// Compares two images. Returns `None` for what can't be read: that is for `vbk verify` to say.
    fn kept(&self, [(_, before), (_, after)]: Pair<'_>) -> Result<Option<Kept>> {
        match kept(self.store, before, after) {
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
            found => Ok(Some(found?)),
        }
    }
}

/// Returns the share that is the same, if it is too small.
fn too_little(kept: &Kept) -> Option<f64> {
    (kept.before_bytes >= LEAST_BYTES && kept.share() < LEAST).then_some(kept.share())
}

/// Returns the images of a disk to compare: that in the newest backup which has it is the second of each pair. A disk that was left
/// out since is compared too: what was forged before that must not hide it.
fn pairs<'e>(catalogue: &Catalogue, all: &[&'e Backup], disk: &DiskName) -> Vec<Pair<'e>> {
    let image = |backup: &'e Backup| Some((backup, backup.images.iter().find(|image| image.disk == *disk)?));
    let having: Vec<_> = all.iter().filter_map(|backup| image(backup)).collect();
    let [earlier @ .., newest] = &having[..] else {
        return Vec::new();
    };
    let time = catalogue.counted_time(newest.0);
    let week = |(before, _): &(&Backup, &Image)| time.seconds_since(catalogue.counted_time(before)) >= BEFORE_SECS;
    let older = earlier.iter().rposition(week);
    let mut chosen: Vec<usize> = earlier.len().checked_sub(1).into_iter().chain(older).collect();
    chosen.dedup();
    chosen.into_iter().map(|at| [earlier[at], *newest]).collect()
}
