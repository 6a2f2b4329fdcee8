//! Guests that were changed so much that no rule may forget what they had before: encrypted, wiped, or another one's disks.

use std::fmt;

use vbk_repo::ErrorKind;
use vbk_repo::backup::Entry;
use vbk_repo::catalogue::Catalogue;
use vbk_repo::kept::kept;
use vbk_repo::name::GuestName;
use vbk_repo::store::StoreReader;

use crate::args::ForgetArgs;
use crate::exit::Result;

/// Share of what an earlier backup had that must still be in the newest one.
const LEAST: f64 = 0.2;
/// Guests with less data are not looked at: a small disk changes as a whole.
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
    before: String,
    after: String,
    share: f64,
}

impl fmt::Display for Jump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "only {:.0}% of what {} has is still in {}, so no backup of {} was forgotten: the guest may have been encrypted or \
             wiped. If the change was meant, --changed-too forgets by the rules all the same",
            self.share * 100.0,
            self.before,
            self.after,
            self.guest
        )
    }
}

impl<'a> Jumps<'a> {
    pub fn of(store: &'a dyn StoreReader, args: &ForgetArgs) -> Self {
        Self {
            store,
            are_meant: args.changed_too,
        }
    }

    /// Compares the newest backup of a guest with the one before it, and with the newest one that is a week older.
    pub fn find(&self, catalogue: &Catalogue, guest: &GuestName) -> Result<Option<Jump>> {
        let all: Vec<&Entry> = catalogue.of(guest).collect();
        let [earlier @ .., newest] = &all[..] else {
            return Ok(None);
        };
        if self.are_meant {
            return Ok(None);
        }
        let time = catalogue.counted_time(&newest.backup);
        let week = |entry: &&&Entry| time.seconds_since(catalogue.counted_time(&entry.backup)) >= BEFORE_SECS;
        let older = earlier.iter().rev().find(week);
        for before in earlier.last().into_iter().chain(older) {
            let found = match kept(self.store, &before.backup, &newest.backup) {
                // What can't be read is for `vbk verify` to say.
                Err(error) if error.kind() == ErrorKind::Corrupt => continue,
                found => found?,
            };
            if found.before_bytes >= LEAST_BYTES && found.share() < LEAST {
                return Ok(Some(Jump {
                    guest: guest.clone(),
                    before: before.backup.spec(),
                    after: newest.backup.spec(),
                    share: found.share(),
                }));
            }
        }
        Ok(None)
    }
}
