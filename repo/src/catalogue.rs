//! All backups of a repository, and the ways in which people name one of them.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::backup::{Backup, Entry};
use crate::block::Hashing;
use crate::error::{Error, Result};
use crate::name::{BackupTime, GuestName, matches};
use crate::store::{Received, Record, StoreReader};

/// Number of candidates that an error lists.
const MAX_CANDIDATES: usize = 20;

/// Tolerated lead of the latest backup over the clock, below which no warning is due: of several backups started in one
/// second, the later ones get the following seconds.
pub const CLOCK_SLACK: SignedDuration = SignedDuration::from_secs(60);

/// The backups of a repository, by guest and then in the order in which they were made, see [`Backup::order`].
#[derive(Debug, Default)]
pub struct Catalogue {
    entries: Vec<Entry>,
    damaged: Vec<Error>,
    received: HashMap<String, Received>,
    generation: u64,
}

/// Time that a doubted backup may be older than its commit, so that its own time counts. A client that makes times up can reach
/// one day before the present one.
const DOUBT_BACK: SignedDuration = SignedDuration::from_hours(24);
/// The same for a backup that is younger.
const DOUBT_AHEAD: SignedDuration = SignedDuration::from_mins(15);

/// Reason to doubt the time of a backup. Which of two clocks was wrong is not known. As JSON it is an object with the variant's name
/// as `reason`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum ClockDoubt {
    /// The time is later than now.
    Future,
    /// The time is before that of the named backup, which was made earlier.
    MadeAfter {
        /// That backup, as `GUEST@TIME`.
        backup: String,
    },
}

impl fmt::Display for ClockDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Future => {
                f.write_str("dated in the future: the clock was ahead when the backup was made, or is behind now")
            }
            Self::MadeAfter { backup } => write!(f, "made after {backup}, which has a later time: a clock was wrong"),
        }
    }
}

/// Name of a backup as people write it, optionally with one disk: `GUEST@WHEN`, `GUEST@WHEN/DISK`, `ID` or `ID/DISK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupSpec {
    which: Which,
    /// The disk, if one was named.
    pub disk: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Which {
    /// The first digits of a backup's id.
    Id(String),
    Latest(GuestName),
    /// The first characters of a backup's time as it is written.
    Time(GuestName, String),
}

impl FromStr for BackupSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::BadSpec { spec: text.to_owned() };
        let (backup, disk) = match text.split_once('/') {
            Some((_, "")) => return Err(bad()),
            Some((backup, disk)) => (backup, Some(disk.to_owned())),
            None => (text, None),
        };
        let which = match backup.split_once('@') {
            Some((_, "")) => return Err(bad()),
            Some((guest, "latest")) => Which::Latest(GuestName::new(guest)?),
            // Other programs print 2026-11-20 05:54 and 2026-11-20T05:54.
            Some((guest, when)) if when.starts_with(|c: char| c.is_ascii_digit()) => {
                Which::Time(GuestName::new(guest)?, when.replace(':', "-").replace(' ', "T"))
            }
            Some(_) => return Err(bad()),
            None if backup.len() >= 4 && backup.chars().all(|c| c.is_ascii_hexdigit()) => {
                Which::Id(backup.to_ascii_lowercase())
            }
            None => return Err(bad()),
        };
        Ok(Self { which, disk })
    }
}

impl BackupSpec {
    /// Returns whether it means the most recent backup, and gives neither a time nor an id.
    pub fn is_latest(&self) -> bool {
        matches!(self.which, Which::Latest(_))
    }
}

impl fmt::Display for BackupSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.which {
            Which::Id(digits) => write!(f, "{digits}"),
            Which::Latest(guest) => write!(f, "{guest}@latest"),
            Which::Time(guest, when) => write!(f, "{guest}@{when}"),
        }
    }
}

/// By guest, and then in the order in which they were made.
fn in_order(one: &Entry, other: &Entry) -> Ordering {
    (&one.backup.guest, one.backup.order()).cmp(&(&other.backup.guest, other.backup.order()))
}

impl Catalogue {
    /// Reads all records. Sets a damaged record aside; it hides no other. A missing record, or one that was put back,
    /// counts as damage too if the store can detect that.
    pub fn load(store: &dyn StoreReader) -> Result<Self> {
        let mut catalogue = Self::default();
        let listing = store.listing(false)?;
        catalogue.add(store.hashing(), listing.records);
        catalogue.received = listing.received.into_iter().collect();
        for entry in &mut catalogue.entries {
            // No record has a generation that the store has not reached; such a record would hide all later ones until then.
            if entry.backup.sequence > listing.generation {
                Arc::make_mut(&mut entry.backup).sequence = 0;
            }
        }
        for what in listing.foreign_changes {
            catalogue.damaged.push(Error::ForeignChanges { what });
        }
        catalogue.entries.sort_by(in_order);
        catalogue.generation = listing.generation;
        Ok(catalogue)
    }

    /// Returns the generation of the store that this is the catalogue of.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the catalogue of the next generation, which a backup came with. No record of this one is damaged.
    pub(crate) fn followed_by(&self, entry: Entry, received: Vec<(String, Received)>) -> Self {
        let mut next = Self {
            entries: self.entries.clone(),
            damaged: Vec::new(),
            received: self.received.clone(),
            generation: self.generation + 1,
        };
        let place = next.entries.partition_point(|other| in_order(other, &entry).is_lt());
        next.entries.insert(place, entry);
        next.received.extend(received);
        next
    }

    /// Adds records, for what they name: not in any order.
    pub(crate) fn add(&mut self, hashing: Hashing, records: Vec<Record>) {
        for record in records {
            match Entry::decode(hashing, &record.key, &record.bytes) {
                Ok(entry) => self.entries.push(entry),
                Err(error) => self.damaged.push(error),
            }
        }
    }

    /// Returns the same backups, and those of more records, for what they name: not in any order. No record of this catalogue is
    /// damaged.
    pub(crate) fn with(&self, hashing: Hashing, records: Vec<Record>) -> Self {
        let mut all = Self {
            entries: self.entries.clone(),
            damaged: Vec::new(),
            received: HashMap::new(),
            generation: self.generation,
        };
        all.add(hashing, records);
        all
    }

    /// Returns the same without some backups, named as `GUEST@TIME`. Fails if another record is damaged: what it needs is not known.
    pub(crate) fn without(&self, forgotten: &HashSet<String>) -> Result<Self> {
        for error in &self.damaged {
            match error {
                Error::RecordDamaged { backup, .. } if forgotten.contains(backup) => {}
                _ => {
                    return Err(Error::CantTellUnused {
                        what: error.to_string(),
                    });
                }
            }
        }
        let is_left = |entry: &&Entry| !forgotten.contains(&entry.backup.spec());
        Ok(Self {
            entries: self.entries.iter().filter(is_left).cloned().collect(),
            damaged: Vec::new(),
            received: HashMap::new(),
            generation: self.generation,
        })
    }

    /// Returns all backups, by guest and in the order in which they were made.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns the errors of the records that can't be read.
    pub fn damaged(&self) -> &[Error] {
        &self.damaged
    }

    /// Returns the names of all guests, in order.
    pub fn guests(&self) -> Vec<&GuestName> {
        let mut guests: Vec<_> = self.entries.iter().map(|entry| &entry.backup.guest).collect();
        guests.dedup();
        guests
    }

    /// Returns the backups of a guest, in the order in which they were made.
    pub fn of(&self, guest: &GuestName) -> std::slice::Iter<'_, Entry> {
        let first = self.entries.partition_point(|entry| entry.backup.guest < *guest);
        let end = self.entries.partition_point(|entry| entry.backup.guest <= *guest);
        self.entries[first..end].iter()
    }

    /// Returns the backup of a guest that was made last, whatever its time says.
    pub fn latest(&self, guest: &GuestName) -> Option<&Entry> {
        self.of(guest).next_back()
    }

    /// Returns the backup that was made last, of all guests.
    pub fn newest(&self) -> Option<&Entry> {
        self.entries.iter().max_by_key(|entry| entry.backup.order())
    }

    /// Returns the time at which a backup was committed, by the clock of the store's host; `None` if an older vbk committed it.
    pub fn received(&self, backup: &Backup) -> Option<Received> {
        self.received.get(&backup.spec()).copied()
    }

    /// Returns the time that counts for a backup in a policy: its own one, or that of its commit if it came from a client that is
    /// not believed and does not fit that.
    pub fn counted_time(&self, backup: &Backup) -> BackupTime {
        match self.received(backup).filter(|received| received.is_doubted) {
            Some(received) => {
                let ahead = backup.time.timestamp().duration_since(received.time);
                match (-DOUBT_BACK..=DOUBT_AHEAD).contains(&ahead) {
                    true => backup.time,
                    false => BackupTime::new(received.time),
                }
            }
            None => backup.time,
        }
    }

    /// Returns the evidence that a clock was wrong when a backup was made; `None` if its time fits the others' and
    /// `now`. A backup from the future casts no doubt on others: its own time is known to be wrong.
    pub fn doubt(&self, backup: &Backup, now: Timestamp) -> Option<ClockDoubt> {
        let is_future = |time: BackupTime| time.timestamp().duration_since(now) > CLOCK_SLACK;
        if is_future(backup.time) {
            return Some(ClockDoubt::Future);
        }
        let earlier = self.of(&backup.guest).map(|entry| &entry.backup);
        let earlier = earlier.take_while(|earlier| earlier.order() < backup.order());
        let later_dated = earlier.filter(|earlier| earlier.time > backup.time && !is_future(earlier.time));
        let farthest = later_dated.max_by_key(|earlier| earlier.time)?;
        Some(ClockDoubt::MadeAfter {
            backup: farthest.spec(),
        })
    }

    /// Returns the time for a backup of `guest` that starts now: `now`, or the first free second after the latest
    /// backup if that is less than a minute ahead. If the clock is further behind, returns the first free second from
    /// `now` on.
    pub fn free_time(&self, guest: &GuestName, now: Timestamp) -> BackupTime {
        let mut time = BackupTime::new(now);
        if let Some(latest) = self.latest(guest).map(|entry| entry.backup.time)
            && latest >= time
            && latest.seconds_since(time) < CLOCK_SLACK.as_secs()
        {
            time = latest.next();
        }
        while self.of(guest).any(|entry| entry.backup.time == time) {
            time = time.next();
        }
        time
    }

    /// Returns an error if the guest has no backups.
    pub fn check_guest(&self, guest: &GuestName) -> Result<()> {
        if self.latest(guest).is_some() {
            return Ok(());
        }
        let known = match self.guests()[..] {
            [] => "none yet; `vbk backup GUEST DISK` makes the first backup".to_owned(),
            ref guests => {
                let names: Vec<_> = guests.iter().map(|guest| guest.as_str()).collect();
                shorten(&names, ", ")
            }
        };
        Err(Error::NoSuchGuest {
            guest: guest.to_string(),
            known,
        })
    }

    /// Returns the guests with these names, or with names that match these patterns of [`matches()`]. An error for one that no guest
    /// has.
    pub fn guests_like(&self, patterns: &[GuestName]) -> Result<BTreeSet<&GuestName>> {
        let known = self.guests();
        let mut found = BTreeSet::new();
        for pattern in patterns {
            // A name may have a star in it.
            let is_like = |guest: &GuestName| match self.latest(pattern) {
                Some(_) => guest == pattern,
                None => matches(pattern.as_str(), guest.as_str()),
            };
            let like: Vec<_> = known.iter().copied().filter(|guest| is_like(guest)).collect();
            if like.is_empty() {
                self.check_guest(pattern)?;
            }
            found.extend(like);
        }
        Ok(found)
    }

    /// Returns the doubts about all backups, in the order of [`Catalogue::entries`]: see [`Catalogue::doubt`].
    pub fn doubts(&self, now: Timestamp) -> Vec<Option<ClockDoubt>> {
        let is_future = |backup: &Backup| backup.time.timestamp().duration_since(now) > CLOCK_SLACK;
        // The backup with the latest time of those of the guest that were made before.
        let mut farthest: Option<&Backup> = None;
        let mut doubts = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let backup = &*entry.backup;
            farthest = farthest.filter(|other| other.guest == backup.guest);
            if is_future(backup) {
                doubts.push(Some(ClockDoubt::Future));
                continue;
            }
            match farthest {
                Some(other) if other.time > backup.time => {
                    doubts.push(Some(ClockDoubt::MadeAfter { backup: other.spec() }))
                }
                _ => {
                    doubts.push(None);
                    farthest = Some(backup);
                }
            }
        }
        doubts
    }

    /// Returns the one backup that `spec` means.
    pub fn find(&self, spec: &BackupSpec) -> Result<&Entry> {
        let missing = |hint: String| Error::NoSuchBackup {
            spec: spec.to_string(),
            hint,
        };
        let found: Vec<_> = match &spec.which {
            Which::Latest(guest) => {
                self.check_guest(guest)?;
                self.latest(guest).into_iter().collect()
            }
            Which::Time(guest, when) => {
                self.check_guest(guest)?;
                self.of(guest)
                    .filter(|entry| entry.backup.time.to_string().starts_with(when))
                    .collect()
            }
            Which::Id(digits) => self
                .entries
                .iter()
                .filter(|entry| entry.id.to_string().starts_with(digits))
                .collect(),
        };
        match found[..] {
            [only] => Ok(only),
            [] => Err(missing(match &spec.which {
                Which::Latest(guest) | Which::Time(guest, _) => {
                    format!("`vbk list {guest}` lists its backups")
                }
                Which::Id(digits) => {
                    let mut guests = self.guests().into_iter();
                    match guests.find(|guest| guest.as_str().eq_ignore_ascii_case(digits)) {
                        Some(guest) => format!("{guest} is a guest, and {guest}@latest is its newest backup"),
                        None => "`vbk list` lists all backups; \
                                 name a guest's backup as GUEST@latest or GUEST@TIME"
                            .into(),
                    }
                }
            })),
            ref several => {
                let named = several.iter().map(|entry| match spec.which {
                    Which::Id(_) => format!("{} ({})", entry.id, entry.backup.spec()),
                    Which::Latest(_) | Which::Time(..) => entry.backup.spec(),
                });
                let mut candidates: Vec<_> = named.take(MAX_CANDIDATES).collect();
                if several.len() > MAX_CANDIDATES {
                    candidates.push(format!("... and {} more", several.len() - MAX_CANDIDATES));
                }
                Err(Error::Ambiguous {
                    spec: spec.to_string(),
                    candidates,
                })
            }
        }
    }
}

fn shorten(names: &[&str], separator: &str) -> String {
    match names.get(..MAX_CANDIDATES) {
        Some(first) if names.len() > MAX_CANDIDATES => format!(
            "{}{separator}... and {} more",
            first.join(separator),
            names.len() - MAX_CANDIDATES
        ),
        _ => names.join(separator),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockSize;
    use crate::store::memory::MemoryStore;
    use crate::store::{Record, StoreWriter};
    use crate::tests::testing::backup;

    /// Returns a catalogue of backups made in this order.
    fn made_in_order(times: &[&str]) -> Catalogue {
        let store = MemoryStore::new(BlockSize::DEFAULT);
        for (sequence, time) in (1..).zip(times) {
            let backup = Backup {
                sequence,
                ..backup("web1", time, Vec::new())
            };
            let (key, bytes) = (backup.spec(), backup.encode());
            store.commit(&Record { key, bytes }).expect("commits");
        }
        Catalogue::load(&store).expect("loads")
    }

    #[test]
    fn the_latest_is_the_one_that_was_made_last_whatever_the_clock_said() {
        for times in [
            // The clock was ahead once; it was behind; it was ahead, then behind.
            ["2026-11-20T05-54-00Z", "2031-05-05T10-00-00Z", "2026-11-21T05-54-00Z"],
            ["2026-11-19T05-54-00Z", "2026-11-20T05-54-00Z", "1970-01-01T00-00-09Z"],
            ["2031-05-05T10-00-00Z", "2026-11-20T05-54-00Z", "2020-11-20T05-54-00Z"],
        ] {
            let catalogue = made_in_order(&times);
            let order: Vec<_> = catalogue
                .entries()
                .iter()
                .map(|entry| entry.backup.time.to_string())
                .collect();
            assert_eq!(order, times);
            let spec = format!("web1@{}", times[2]);
            assert_eq!(find(&catalogue, "web1@latest").expect("found"), spec);
        }
    }

    #[test]
    fn a_record_from_a_generation_that_is_still_to_come_hides_no_other() {
        let store = MemoryStore::new(BlockSize::DEFAULT);
        for (sequence, time) in [
            (u64::MAX, "2026-11-22T05-54-00Z"),
            (3, "2026-11-23T05-54-00Z"),
            (3, "2026-11-20T05-54-00Z"),
        ] {
            let backup = Backup {
                sequence,
                ..backup("web1", time, Vec::new())
            };
            let (key, bytes) = (backup.spec(), backup.encode());
            store.commit(&Record { key, bytes }).expect("commits");
        }
        let catalogue = Catalogue::load(&store).expect("loads");
        assert_eq!(
            find(&catalogue, "web1@latest").expect("found"),
            "web1@2026-11-23T05-54-00Z"
        );
        assert_eq!(catalogue.entries()[0].backup.sequence, 0);
    }

    #[test]
    fn a_time_that_does_not_fit_is_told() {
        let catalogue = made_in_order(&["2026-11-20T05-54-00Z", "2031-05-05T10-00-00Z", "2026-11-21T05-54-00Z"]);
        let now = "2026-11-21T05:53:30Z".parse().expect("a time");
        let doubts = catalogue
            .entries()
            .iter()
            .map(|entry| catalogue.doubt(&entry.backup, now));
        assert_eq!(doubts.collect::<Vec<_>>(), [None, Some(ClockDoubt::Future), None]);
        let behind = made_in_order(&["2026-11-20T05-54-00Z", "2020-01-01T00-00-00Z", "2026-11-21T05-54-00Z"]);
        let doubts: Vec<_> = behind
            .entries()
            .iter()
            .map(|entry| behind.doubt(&entry.backup, now))
            .collect();
        assert!(doubts[0].is_none() && doubts[2].is_none(), "{doubts:?}");
        assert_eq!(
            doubts[1],
            Some(ClockDoubt::MadeAfter {
                backup: "web1@2026-11-20T05-54-00Z".into()
            })
        );
    }

    #[test]
    fn the_doubts_about_all_backups_are_those_about_each() {
        let now = "2026-11-21T05:53:30Z".parse().expect("a time");
        for times in [
            &["2026-11-20T05-54-00Z", "2031-05-05T10-00-00Z", "2026-11-21T05-54-00Z"][..],
            &[
                "2026-11-20T05-54-00Z",
                "2020-01-01T00-00-00Z",
                "2021-01-01T00-00-00Z",
                "2026-11-20T05-54-01Z",
            ],
            &["2026-11-19T05-54-00Z", "2026-11-20T05-54-00Z", "1970-01-01T00-00-09Z"],
        ] {
            let catalogue = made_in_order(times);
            let each: Vec<_> = catalogue
                .entries()
                .iter()
                .map(|entry| catalogue.doubt(&entry.backup, now))
                .collect();
            assert_eq!(catalogue.doubts(now), each, "{times:?}");
            assert!(each.iter().any(Option::is_some));
        }
        let two = catalogue(&[("db", "2026-11-20T05-54-00Z"), ("web", "2026-11-19T05-54-00Z")]);
        assert_eq!(two.doubts(now), [None, None]);
    }

    #[test]
    fn guests_are_found_by_patterns() {
        let all = catalogue(&[
            ("db1", "2026-11-20T05-54-00Z"),
            ("web*", "2026-11-20T05-54-00Z"),
            ("web1", "2026-11-20T05-54-00Z"),
            ("web20", "2026-11-20T05-54-00Z"),
        ]);
        let like = |patterns: &[&str]| {
            let names: Vec<GuestName> = patterns.iter().map(|name| name.parse().expect("a name")).collect();
            let found = all.guests_like(&names)?;
            Ok(found.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        let good = |result: Result<String>| result.expect("found");
        assert_eq!(good(like(&["web?", "db1"])), "db1 web* web1");
        assert_eq!(good(like(&["*1", "*b1"])), "db1 web1");
        assert_eq!(good(like(&["web*"])), "web*", "a name of its own");
        let error = like(&["web1", "mail*"]).expect_err("none").to_string();
        assert!(error.contains("mail*") && error.contains("db1"), "{error}");
    }

    fn catalogue(backups: &[(&str, &str)]) -> Catalogue {
        let store = MemoryStore::new(BlockSize::DEFAULT);
        for (guest, time) in backups {
            let backup = backup(guest, time, Vec::new());
            let record = Record {
                key: backup.spec(),
                bytes: backup.encode(),
            };
            store.commit(&record).expect("commits");
        }
        Catalogue::load(&store).expect("loads")
    }

    fn find(catalogue: &Catalogue, spec: &str) -> Result<String> {
        let spec: BackupSpec = spec.parse()?;
        catalogue.find(&spec).map(|entry| entry.backup.spec())
    }

    #[test]
    fn a_backup_is_found_by_any_part_of_its_time_that_is_enough() {
        let days = catalogue(&[
            ("web1", "2026-11-20T05-54-00Z"),
            ("web1", "2026-11-21T05-54-00Z"),
            ("web10", "2026-11-22T05-54-00Z"),
        ]);
        for spec in ["web1@2026-11-20", "web1@2026-11-20T05:54", "web1@2026-11-20 05:54:00Z"] {
            assert_eq!(find(&days, spec).expect("found"), "web1@2026-11-20T05-54-00Z");
        }
        assert_eq!(find(&days, "web1@latest").expect("found"), "web1@2026-11-21T05-54-00Z");
        let id = days.entries()[2].id.to_string();
        assert_eq!(find(&days, &id[..8]).expect("found"), "web10@2026-11-22T05-54-00Z");
    }

    #[test]
    fn what_is_not_clear_lists_the_candidates() {
        let days = catalogue(&[("web1", "2026-11-20T05-54-00Z"), ("web1", "2026-11-21T05-54-00Z")]);
        let error = find(&days, "web1@2026-11").expect_err("two match").to_string();
        assert!(
            error.contains("web1@2026-11-20T05-54-00Z\n  web1@2026-11-21T05-54-00Z"),
            "{error}"
        );
        let error = find(&days, "web1@2025").expect_err("none match").to_string();
        assert!(error.contains("vbk list web1"), "{error}");
        let error = find(&days, "db@latest").expect_err("no such guest").to_string();
        assert!(error.contains("known guests: web1"), "{error}");
        // A name that could be the digits of an id.
        let error = find(&catalogue(&[("cafe", "2026-11-20T05-54-00Z")]), "cafe");
        let error = error.expect_err("no such id").to_string();
        assert!(error.contains("cafe@latest is its newest backup"), "{error}");
    }

    #[test]
    fn nonsense_is_told_how_a_backup_is_named() {
        for bad in ["", "web1", "web1@", "web1@yesterday", "web1@latest/", "@latest", "abc"] {
            assert!(bad.parse::<BackupSpec>().is_err(), "{bad}");
        }
        let spec: BackupSpec = "web1@latest/vda".parse().expect("good");
        assert_eq!(spec.disk.as_deref(), Some("vda"));
    }

    #[test]
    fn a_damaged_record_hides_no_other() {
        let store = MemoryStore::new(BlockSize::DEFAULT);
        let record = Record {
            key: "web1@2026-11-20T05-54-00Z".into(),
            bytes: b"{".to_vec(),
        };
        store.commit(&record).expect("commits");
        let catalogue = Catalogue::load(&store).expect("loads");
        assert_eq!((catalogue.entries().len(), catalogue.damaged().len()), (0, 1));
    }
}
