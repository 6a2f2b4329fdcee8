//! A home that shows and takes no more than a client may have: what its right allows (`rights.rs`), and only the guests that a
//! token is for. It logs what the client changes or removes, and what is refused to it (`audit.rs`).
//!
//! Guests are limited in plain repositories alone: in an encrypted one a server can't read their names.
//!
//! A client that can't read all blocks of a plain repository does not see what they are stored as differences from: with the id of
//! a block it could read that. The server makes such blocks whole for it. Nor may it put a difference from a block that it can't
//! read: whether that is accepted would tell it what the block contains. In an encrypted repository only the key tells.
//!
//! What stays possible: a client may ask whether a block or a part of a manifest with a known hash is stored, whosever it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;
use vbk_repo::backup::Entry;
use vbk_repo::block::Hashing;
use vbk_repo::codec::Sealed;
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::keys::SlotFile;
use vbk_repo::name::matches;
use vbk_repo::repository::home::{Home, Keeper, Marker, Room, Session, Snapshot, Wait};
use vbk_repo::repository::{DiskUsage, Pruned, Reserve};
use vbk_repo::store::door::Door;
use vbk_repo::store::{
    Distance, Forgotten, Identity, Listing, Live, Located, Note, PruneOptions, Record, StoreManager, StoreReader,
    StoreWriter, Stored, Swept, Terms, Wanted, whole,
};
use vbk_repo::{Error, ErrorKind, Result};

use super::audit::{AuditLog, Who};
use super::policy::Policy;
use super::quota::{Meter, Over, Quota};
use super::registry::Visitor;
use super::rights::Allowed;
use crate::status::Way;

/// Start of the name of a note about a backup (`vbk_repo::state`).
const NOTE_OF_BACKUP: &str = "backup/";

/// A client that the server let in.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Its name and address.
    pub who: Who,
    /// What it may do.
    pub rights: Allowed,
    /// Patterns of the guests that it may have; none: all guests.
    pub guests: Vec<String>,
    /// The repository's policy does not bind it: it could write to the directory itself.
    pub is_administrator: bool,
    /// What it may add in a day.
    pub quota: Quota,
}

impl Admission {
    /// The client for the list of those that are connected.
    pub(super) fn visitor(&self, way: Way) -> Visitor {
        Visitor {
            name: self.who.name.clone(),
            way,
            address: self.who.address.clone(),
            pid: None,
            sees_all: self.is_administrator || (self.rights.manages() && self.guests.is_empty()),
        }
    }
}

/// Returns the home as a client sees it. `log` is the directory whose audit log it gets into.
pub(super) fn limit(home: Arc<dyn Home>, admission: &Admission, log: Option<&Path>) -> Result<Arc<dyn Home>> {
    let Admission {
        who,
        rights,
        guests,
        is_administrator,
        quota,
    } = admission;
    let meter = match log.filter(|_| !quota.is_none()) {
        Some(directory) => Some(Meter::new(directory, &who.name, *quota)?),
        None => None,
    };
    let limits = Limits {
        rights: *rights,
        is_administrator: *is_administrator,
        guests: guests.clone(),
        policy_of: log.filter(|_| !is_administrator).map(Path::to_owned),
        meter,
        audit: log
            .filter(|_| !is_administrator)
            .map(|directory| AuditLog::of(directory, who.clone())),
    };
    if !guests.is_empty() && home.marker().key_check.is_some() {
        return Err(limits.denied(
            "the token is for some guests, but the repository is encrypted: a server can't read the names in it",
        ));
    }
    Ok(Arc::new(Limited {
        inner: home,
        limits: Arc::new(limits),
    }))
}

#[derive(Debug)]
struct Limits {
    rights: Allowed,
    is_administrator: bool,
    /// Patterns; none: all guests.
    guests: Vec<String>,
    /// Directory of the repository whose policy binds the client.
    policy_of: Option<PathBuf>,
    meter: Option<Meter>,
    audit: Option<AuditLog>,
}

impl Limits {
    fn has_all_guests(&self) -> bool {
        self.guests.is_empty()
    }

    /// Tells whether `GUEST@TIME` is of a guest that the client may have.
    fn has(&self, key: &str) -> bool {
        let guest = key.split_once('@').map(|(guest, _)| guest);
        self.has_all_guests() || guest.is_some_and(|guest| self.guests.iter().any(|pattern| matches(pattern, guest)))
    }

    fn has_note(&self, name: &str) -> bool {
        self.has_all_guests() || name.strip_prefix(NOTE_OF_BACKUP).is_some_and(|key| self.has(key))
    }

    fn check_keys<'a>(&self, keys: impl IntoIterator<Item = &'a str>) -> Result<()> {
        match keys.into_iter().find(|key| !self.has(key)) {
            Some(key) => Err(self.denied(&format!(
                "the server lets this client have only guests that match {}; {key} is another",
                self.guests.join(", ")
            ))),
            None => Ok(()),
        }
    }

    fn check_notes(&self, notes: &[Note]) -> Result<()> {
        match notes.iter().find(|note| !self.has_note(&note.name)) {
            Some(note) => Err(self.denied(&format!(
                "the server does not let this client change the note {}: it is not about its guests",
                note.name
            ))),
            None => Ok(()),
        }
    }

    /// An error for a client that may not see all of the repository.
    fn check_whole(&self, what: &str) -> Result<()> {
        match self.has_all_guests() && self.rights.reads_whole_store() {
            true => Ok(()),
            false => Err(self.denied(&format!(
                "the server does not let this client {what}; a token or key for all guests with the rights `verify` or `manage` can"
            ))),
        }
    }

    /// Returns whether the client may know what a block is stored as a difference from.
    fn sees_bases(&self, is_encrypted: bool) -> bool {
        is_encrypted || (self.has_all_guests() && self.rights.reads_blocks())
    }

    fn check_manages(&self, what: &str) -> Result<()> {
        match self.rights.manages() {
            true => Ok(()),
            false => Err(self.denied(&format!(
                "the server does not let this client {what}; a token or key with the right `manage` can"
            ))),
        }
    }

    /// The policy as it is now.
    fn policy(&self) -> Result<Policy> {
        self.policy_of.as_deref().map_or(Ok(Policy::NONE), Policy::load)
    }

    /// Counts something on the client's quota.
    fn count(&self, count: impl FnOnce(&Meter) -> std::result::Result<(), Over>) -> Result<()> {
        match self.meter.as_ref().map_or(Ok(()), count) {
            Ok(()) => Ok(()),
            Err(Over::Failed(error)) => Err(error),
            Err(Over::Quota(message)) => Err(self.denied(&message)),
        }
    }

    /// The error for a refusal, which is logged.
    fn denied(&self, message: &str) -> Error {
        if let Some(audit) = &self.audit {
            audit.refused(message);
        }
        denied(message)
    }

    /// Makes a change, which is logged.
    fn noted<T>(&self, what: &str, of: &[String], make: impl FnOnce() -> Result<T>) -> Result<T> {
        match &self.audit {
            Some(audit) => audit.noted(what, of, make),
            None => make(),
        }
    }
}

fn denied(message: &str) -> Error {
    Error::Remote {
        kind: ErrorKind::Denied,
        message: message.to_owned(),
    }
}

/// A thing as a limited client sees it.
#[derive(Debug)]
struct Limited<T: ?Sized> {
    limits: Arc<Limits>,
    inner: Arc<T>,
}

impl<T: ?Sized> Limited<T> {
    fn around<U: ?Sized>(&self, inner: Arc<U>) -> Arc<Limited<U>> {
        Arc::new(Limited {
            limits: Arc::clone(&self.limits),
            inner,
        })
    }
}

impl Home for Limited<dyn Home> {
    fn name(&self) -> &Path {
        self.inner.name()
    }

    fn marker(&self) -> &Marker {
        self.inner.marker()
    }

    fn newest(&self) -> Result<Option<u64>> {
        self.inner.newest()
    }

    fn key_slots(&self) -> Result<Vec<SlotFile>> {
        self.inner.key_slots()
    }

    fn check_reserve(&self, reserve: Reserve) -> Result<()> {
        self.inner.check_reserve(reserve)
    }

    fn disk_usage(&self) -> Result<DiskUsage> {
        self.limits.check_whole("see the space that the repository takes")?;
        self.inner.disk_usage()
    }

    fn check_tables(&self, snapshot: u64, cancel: &AtomicBool) -> Result<Vec<String>> {
        self.limits.check_whole("check the repository's tables")?;
        self.inner.check_tables(snapshot, cancel)
    }

    fn check_stored(&self, cancel: &AtomicBool, each: &mut dyn FnMut(String)) -> Result<u64> {
        self.limits.check_whole("check what is stored")?;
        self.inner.check_stored(cancel, each)
    }

    fn add_key_slot(&self, slot: &SlotFile) -> Result<()> {
        // A thief of this client's key would have one of its own, which still opens the repository when the stolen one is changed.
        if !self.limits.is_administrator {
            return Err(self.limits.denied(
                "the server does not let this client add keys: each opens all backups until it is removed. `vbk key add` on the server \
                 can, and so can who logs in there by ssh without a forced command",
            ));
        }
        self.inner.add_key_slot(slot)
    }

    fn remove_key_slot(&self, name: &str, stays: Option<&SlotFile>) -> Result<()> {
        // The bin keeps from a client that was broken into what it forgets; without a key that would be of no use.
        if !self.limits.is_administrator {
            return Err(self.limits.denied(
                "the server does not let this client remove keys: without them all backups are lost at once. `vbk key remove` on \
                 the server can, and so can who logs in there by ssh without a forced command",
            ));
        }
        self.inner.remove_key_slot(name, stays)
    }

    fn read_as_it_is(&self) -> Result<Option<Snapshot>> {
        let snapshot = self.inner.read_as_it_is()?;
        Ok(snapshot.map(|Snapshot { store, number }| Snapshot {
            store: self.around(store),
            number,
        }))
    }

    fn read(&self) -> Result<Snapshot> {
        let Snapshot { store, number } = self.inner.read()?;
        Ok(Snapshot {
            store: self.around(store),
            number,
        })
    }

    fn write(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreWriter>> {
        if !self.limits.rights.adds() {
            return Err(self
                .limits
                .denied("the server lets this client read and not write; a token or key with the right `backup` can"));
        }
        let Session { store, keeper } = self.inner.write(command, wait)?;
        store.set_terms(Terms {
            doubts_times: !self.limits.rights.manages(),
            keeps_nodes: self.limits.policy_of.is_some(),
            ..Terms::default()
        });
        Ok(Session {
            store: self.around(store),
            keeper: self.around(keeper),
        })
    }

    fn manage(&self, command: &str, wait: Wait<'_>) -> Result<Session<dyn StoreManager>> {
        self.limits.check_manages("change or remove backups")?;
        let policy = self.limits.policy()?;
        let Session { store, keeper } = self.inner.manage(command, wait)?;
        store.set_terms(Terms {
            keep_removed_secs: policy.bin_secs,
            doubts_times: false,
            keeps_nodes: self.limits.policy_of.is_some(),
        });
        Ok(Session {
            store: self.around(store),
            keeper: self.around(keeper),
        })
    }
}

impl Keeper for Limited<dyn Keeper> {
    fn publish(&self) -> Result<()> {
        self.inner.publish()
    }

    fn room(&self) -> Result<Room> {
        self.inner.room()
    }

    fn free_bytes(&self) -> Result<u64> {
        self.inner.free_bytes()
    }

    fn prune(&self, options: PruneOptions, cancel: &AtomicBool, progress: &dyn Fn(u64)) -> Option<Result<Pruned>> {
        let checked = self
            .limits
            .check_manages("prune")
            .and_then(|()| self.limits.check_whole("prune"));
        if let Err(error) = checked {
            return Some(Err(error));
        }
        if options.empty_bin && self.limits.policy_of.is_some() {
            return Some(Err(self.limits.denied(
                "the server does not let this client empty the bin; `vbk prune --empty-bin` on the server can",
            )));
        }
        if options.dry_run {
            return self.inner.prune(options, cancel, progress);
        }
        let pruned = self
            .limits
            .noted("prune", &[], || match self.inner.prune(options, cancel, progress) {
                Some(pruned) => pruned.map(Some),
                None => Ok(None),
            });
        pruned.transpose()
    }
}

impl<S: StoreReader + ?Sized> Limited<S> {
    fn sees_bases(&self) -> Result<bool> {
        Ok(self.limits.sees_bases(self.inner.identity()?.is_encrypted()))
    }
}

impl<S: StoreReader + ?Sized> StoreReader for Limited<S> {
    fn identity(&self) -> Result<Identity> {
        self.inner.identity()
    }

    fn generation(&self) -> Result<u64> {
        self.inner.generation()
    }

    fn hashing(&self) -> Hashing {
        self.inner.hashing()
    }

    fn distance(&self) -> Distance {
        self.inner.distance()
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        let mut located = self.inner.locate(ids)?;
        if located.iter().flatten().any(|located| located.base.is_some()) && !self.sees_bases()? {
            located.iter_mut().flatten().for_each(|located| located.base = None);
        }
        Ok(located)
    }

    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        // With all ids, a client that may read blocks could read everything.
        self.limits.check_whole("list all blocks of the repository")?;
        self.inner.survey_from(from, each)
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.inner.condemned()
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        if self.limits.rights.reads_blocks() {
            return match self.limits.has_all_guests() {
                true => self.inner.get(wanted),
                // Only a plain repository has clients for some guests.
                false => whole::get_compressed(&*self.inner, wanted),
            };
        }
        let what = "the server lets this client add backups and not read them; a token or key with the rights `restore`, `verify` or \
                    `manage` can";
        let mut refused = (!wanted.is_empty()).then(|| self.limits.denied(what));
        let refused = |_: &Wanted| Err(refused.take().unwrap_or_else(|| denied(what)));
        wanted.iter().map(refused).collect()
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        self.inner.nodes(ids)
    }

    fn records(&self) -> Result<Vec<Record>> {
        let mut records = self.inner.records()?;
        records.retain(|record| self.limits.has(&record.key));
        Ok(records)
    }

    fn notes(&self) -> Result<Vec<Note>> {
        let mut notes = self.inner.notes()?;
        notes.retain(|note| self.limits.has_note(&note.name));
        Ok(notes)
    }

    fn foreign_changes(&self) -> Result<Vec<String>> {
        self.inner.foreign_changes()
    }

    fn listing(&self, with_notes: bool) -> Result<Listing> {
        let mut listing = self.inner.listing(with_notes)?;
        listing.records.retain(|record| self.limits.has(&record.key));
        listing.notes.retain(|note| self.limits.has_note(&note.name));
        listing.received.retain(|(key, _)| self.limits.has(key));
        Ok(listing)
    }

    fn forgotten(&self) -> Result<Vec<Forgotten>> {
        let mut forgotten = self.inner.forgotten()?;
        forgotten.retain(|forgotten| self.limits.has(&forgotten.record.key));
        Ok(forgotten)
    }

    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        let mut found = self.inner.lookup(record_keys, note_names)?;
        found.records.retain(|record| self.limits.has(&record.key));
        found.notes.retain(|note| self.limits.has_note(&note.name));
        found.received.retain(|(key, _)| self.limits.has(key));
        Ok(found)
    }

    fn epoch(&self) -> Result<Option<u64>> {
        self.inner.epoch()
    }

    fn stored_note_name(&self, name: &str) -> String {
        self.inner.stored_note_name(name)
    }
}

impl<S: StoreWriter + ?Sized> StoreWriter for Limited<S> {
    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        if blocks.iter().any(|block| block.base.is_some()) && !self.sees_bases()? {
            return Err(self.limits.denied(
                "the server does not let this client put blocks as differences from others, which it may not read",
            ));
        }
        let bytes = blocks.iter().map(Sealed::stored_bytes).sum();
        self.limits.count(|meter| meter.put(bytes, Timestamp::now()))?;
        self.inner.put(blocks)
    }

    fn takes_differences(&self) -> bool {
        self.inner.takes_differences() && self.sees_bases().unwrap_or(false)
    }

    fn put_nodes(&self, nodes: Vec<(NodeId, Vec<u8>)>) -> Result<()> {
        let bytes = nodes.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        self.limits.count(|meter| meter.put(bytes, Timestamp::now()))?;
        self.inner.put_nodes(nodes)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    /// Without effect: the server sets them, and not the client.
    fn set_terms(&self, _: Terms) {}

    fn builds_on(&self, record_key: &str) -> Result<()> {
        self.limits.check_keys([record_key])?;
        self.inner.builds_on(record_key)
    }

    fn commit_at(&self, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()> {
        // An encrypted commit brings the note that lists all, under a hidden name.
        let most = usize::from(self.inner.identity()?.key_check.is_some());
        if !self.limits.rights.manages() && notes.len() > most {
            return Err(self
                .limits
                .denied("the server does not let this client change notes, also not with a backup"));
        }
        self.limits.check_keys([&*record.key])?;
        if !self.limits.has_all_guests() {
            self.limits.check_notes(notes)?;
        }
        let is_bound = !self.limits.has_all_guests() || !self.limits.rights.manages();
        if most == 0 && is_bound {
            // The guest in it is the one of its key, and those who list backups find no record that is none.
            Entry::decode(Hashing::Plain, &record.key, &record.bytes)?;
        }
        let values = notes.iter().filter_map(|note| note.value.as_ref());
        let bytes = record.bytes.len() + values.map(Vec::len).sum::<usize>();
        self.limits.count(|meter| meter.put(bytes as u64, Timestamp::now()))?;
        self.limits.count(|meter| meter.commit(Timestamp::now()))?;
        let commit = || self.inner.commit_at(record, notes, at);
        let committed = match notes.len() > most {
            true => {
                let names: Vec<_> = notes.iter().map(|note| note.name.clone()).collect();
                self.limits.noted("note", &names, commit)
            }
            false => commit(),
        };
        if let (Err(_), Some(meter)) = (&committed, &self.limits.meter) {
            meter.not_committed(Timestamp::now());
        }
        committed
    }
}

impl<S: StoreManager + ?Sized> Limited<S> {
    /// Returns those of some blocks that the server itself finds damaged: the next put of a condemned block takes its place, so
    /// that a client could put others' blocks away. In an encrypted repository without sums the server can't tell.
    fn damaged_of(&self, ids: &[BlockId]) -> Result<Vec<BlockId>> {
        let identity = self.inner.identity()?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let door = Door::of(&identity);
        if !door.proves() {
            return Err(self.limits.denied(
                "the server does not let this client mark blocks of an encrypted repository as damaged: it can't check that. Run \
                 `vbk verify` on the server, or by an ssh login of its administrator",
            ));
        }
        let mut damaged = Vec::new();
        for (id, located) in ids.iter().zip(self.inner.locate(ids)?) {
            let Some(located) = located else {
                continue;
            };
            // With what it depends on.
            match door.check_whole(&*self.inner, *id, located) {
                Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
                Err(_) => damaged.push(*id),
                Ok(()) => {}
            }
        }
        Ok(damaged)
    }

    /// An error if the policy does not let the client forget one of these backups yet. Their age counts from their commit, by the
    /// server's clock. A backup of an older vbk has its own time; in an encrypted repository that can't be read, and the backup
    /// counts as old.
    fn check_age(&self, keys: &[String]) -> Result<()> {
        let min_age_secs = match keys {
            [] => 0,
            _ => self.limits.policy()?.min_age_secs,
        };
        if min_age_secs == 0 {
            return Ok(());
        }
        let found = self.inner.lookup(keys, &[])?;
        let own = |record: &Record| Entry::decode(self.inner.hashing(), &record.key, &record.bytes);
        let own = found
            .records
            .iter()
            .filter_map(|record| Some((&record.key, own(record).ok()?.backup.time.timestamp())));
        let mut times: BTreeMap<_, _> = own.collect();
        times.extend(found.received.iter().map(|(key, received)| (key, received.time)));
        let now = Timestamp::now().as_second();
        let old_at = |time: &Timestamp| time.as_second().saturating_add_unsigned(min_age_secs);
        match times.iter().find(|(_, time)| old_at(time) > now) {
            Some((key, time)) => Err(self.limits.denied(&format!(
                "the server does not let this client forget {key} yet: the server received it at {time}, and clients may forget \
                 backups after {} hours. The administrator of the server can",
                min_age_secs.div_ceil(3600)
            ))),
            None => Ok(()),
        }
    }
}

impl<S: StoreManager + ?Sized> StoreManager for Limited<S> {
    fn amend_at(&self, remove_records: &[String], notes: &[Note], at: Option<u64>) -> Result<()> {
        self.limits.check_keys(remove_records.iter().map(String::as_str))?;
        self.limits.check_notes(notes)?;
        self.check_age(remove_records)?;
        let names: Vec<_> = notes.iter().map(|note| note.name.clone()).collect();
        let amend = || self.inner.amend_at(remove_records, notes, at);
        match remove_records {
            [] => self.limits.noted("note", &names, amend),
            _ => self.limits.noted("forget", remove_records, amend),
        }
    }

    fn accept(&self) -> Result<Vec<String>> {
        self.limits.check_whole("accept changes of others")?;
        self.limits.noted("accept", &[], || self.inner.accept())
    }

    fn held(&self) -> Vec<Record> {
        self.inner.held()
    }

    fn empty_bin(&self, time: Timestamp, up_to: u64) -> Result<()> {
        self.limits.check_whole("empty the bin")?;
        self.inner.empty_bin(time, up_to)
    }

    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        self.limits
            .check_whole("mark blocks as damaged, which others may share")?;
        let ids = match self.limits.policy_of.is_some() {
            true => &self.damaged_of(ids)?,
            false => ids,
        };
        match ids {
            [] => Ok(()),
            ids => self.limits.noted("condemn", &names_of(ids), || self.inner.condemn(ids)),
        }
    }

    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        self.limits
            .check_whole("mark blocks as whole, which others may share")?;
        self.limits.noted("pardon", &names_of(ids), || self.inner.pardon(ids))
    }

    fn retain(&self, live: &Live, options: PruneOptions, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Swept> {
        // What is live was marked without the backups that this client does not see.
        self.limits
            .check_whole("prune a repository that it does not see all of")?;
        self.inner.retain(live, options, step)
    }
}

fn names_of(ids: &[BlockId]) -> Vec<String> {
    ids.iter().map(ToString::to_string).collect()
}
