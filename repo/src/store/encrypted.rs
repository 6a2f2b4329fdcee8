//! Encryption at rest: wraps another store, which keeps the content without being able to read it.
//!
//! The store below sees the number of blocks, nodes of manifests, records and notes, the times when they were stored, their
//! order, their padded lengths, and what they name. Ids are keyed hashes ([`Hashing::Keyed`]), so it can't compare them with those of
//! known files. `cipher.rs` describes the sealing; SALT is 24 random bytes.
//!
//! | what | name of the sealed thing | as it is stored |
//! |---|---|---|
//! | block | `B`, id | header: SALT, sealed header (part 0), with zeros up to the length of a full block's; row n of its pages, see `rows.rs`: sealed (part n + 1) |
//! | block that is a difference | `D`, id, id of the base | the same |
//! | node of a manifest | `S`, id | head, see [`crate::manifest`]; SALT, sealed body (part 0), padded |
//! | record | `R`, key as stored, ROOTS | ROOTS; SALT, sealed (length of the key as u16, little-endian; key; record) (part 0), padded |
//! | note | `N`, name as stored | SALT, sealed (length of the name; name; value) (part 0), padded |
//!
//! Keys of records and names of notes are stored as 64 hexadecimal digits: the keyed hash of `R` or `N` and the key or
//! name. A block's plain length is given to the store below XORed with the start of the keyed hash of `L` and its id.
//! In a repository with the feature [`SUMS`] a sum follows: see `sums.rs`.
//!
//! The padded form is: length as u32, little-endian; bytes; zeros up to a multiple of 4 KiB for a record, and of 512
//! bytes for a node or note. All padding is sealed, and proved when it is read. ROOTS are the manifests that a record
//! names: their number as u32, little-endian, and their ids, ascending.
//!
//! # What can be followed without the key
//!
//! ROOTS and the heads of nodes say which blocks a backup needs ([`roots_below`]), so the holder of the store can mark
//! what is live, and copy a backup or check that all of it is there. It learns how many disks and files a backup has,
//! which backups are of one disk, which guests share blocks, and which blocks belong to one GiB of a disk and differ from
//! one backup to the next, or are stored as the difference from which other. Their order on the disk is sealed, but blocks are mostly stored in that order.
//!
//! # Information in the lengths
//!
//! The lengths reveal the number of 64 KiB steps that a block takes: one of 16 for a block of 1 MiB. That is less than
//! 4 bits, so a single block is not recognized. A known file or disk of dozens of blocks still is: by the steps of its
//! blocks in the order in which they were stored. `examples/lengths.rs` measures both.
//!
//! # Completeness
//!
//! `epoch.rs` describes the note that lists records and notes. [`StoreReader::foreign_changes`] checks it.

mod blocks;
mod epoch;
mod roots;
pub mod rows;
mod set;
mod sums;
pub(crate) mod uncounted;

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    Distance, Forgotten, Identity, Listing, Live, Located, Note, PruneOptions, Received, Record, SUMS, StoreManager,
    StoreReader, StoreWriter, Stored, Swept, Terms, Wanted,
};
use crate::block::{Hashing, keyed_hash};
use crate::cipher::{Cipher, OpenKey, SALT_BYTES};
use crate::codec::{Sealed, full_header_bytes};
use crate::error::{Error, Result};
use crate::id::{BlockId, NodeId, to_hex};
use crate::keys::Keys;
use crate::manifest::Head;
use epoch::Epoch;
pub use roots::roots_below;
use roots::roots_of;
use rows::{pad, unpad};
pub use sums::Sums;

/// Records are padded to a multiple of this.
const RECORD_UNIT: usize = 4096;

/// Notes and nodes of manifests are padded to a multiple of this.
const SMALL_UNIT: usize = 512;

/// A store that encrypts what it gives to `S`.
pub struct Encrypted<S: ?Sized> {
    store: Arc<S>,
    hashing: Hashing,
    cipher: Cipher,
    name_key: [u8; 32],
    epoch_key: [u8; 32],
    /// Length of a full block's header before it is sealed.
    full_header_bytes: usize,
    has_sums: bool,
    /// A missing epoch is damage: every repository has one from its creation on.
    has_begun: bool,
    /// The epoch that was read or written last, and the generation that it belongs to: it saves a far store a call.
    seen: Mutex<Option<(u64, Epoch)>>,
}

impl<S: ?Sized> Encrypted<S> {
    /// Opens the content of `store`, which has this identity, with the keys that it was created with.
    pub fn new(store: Arc<S>, keys: &Keys, identity: &Identity) -> Self {
        Self {
            store,
            hashing: Hashing::Keyed(keys.hashing_key()),
            cipher: keys.cipher(),
            name_key: keys.name_key(),
            epoch_key: keys.epoch_key(),
            full_header_bytes: full_header_bytes(identity.block_size.bytes()),
            has_sums: identity.has(SUMS),
            has_begun: false,
            seen: Mutex::default(),
        }
    }

    /// Returns the same store for a repository that was created before, in which a missing epoch is damage.
    pub(crate) fn begun(mut self) -> Self {
        self.has_begun = true;
        self
    }

    fn hidden_length(&self, id: BlockId, plain_bytes: u32) -> u32 {
        let mask = keyed_hash(&self.name_key, &[&[LENGTH], &id.0]);
        plain_bytes ^ u32::from_le_bytes([mask[0], mask[1], mask[2], mask[3]])
    }

    fn located(&self, id: BlockId, located: Located) -> Located {
        Located {
            plain_bytes: self.hidden_length(id, located.plain_bytes),
            ..located
        }
    }

    fn hidden(&self, kind: u8, name: &str) -> String {
        // An unreadable object is listed under its stored name. The names of records contain an @, and those of notes
        // are not digits.
        let is_stored_name = match kind {
            RECORD => !name.contains('@'),
            _ => name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()),
        };
        if is_stored_name {
            return name.to_owned();
        }
        to_hex(&keyed_hash(&self.name_key, &[&[kind], name.as_bytes()]))
    }

    fn seal(&self, kind: u8, name: &[u8], mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        let (salt, mut key) = self.cipher.fresh(&thing(kind, name))?;
        key.seal(0, &mut bytes)?;
        Ok([&salt[..], &bytes].concat())
    }

    /// Adds the sum to what is stored under a name.
    fn add_sum(&self, kind: u8, name: &[u8], mut bytes: Vec<u8>) -> Vec<u8> {
        if self.has_sums {
            sums::add(kind, name, &mut bytes);
        }
        bytes
    }

    /// Takes the sum off what is stored under a name; `None` if it does not match.
    fn without_sum<'a>(&self, kind: u8, name: &[u8], bytes: &'a [u8]) -> Option<&'a [u8]> {
        match self.has_sums {
            true => sums::without_sum(kind, name, bytes),
            false => Some(bytes),
        }
    }

    /// Opens a sealed object; `None` if it was not sealed under this name.
    fn open(&self, kind: u8, name: &[u8], bytes: &[u8]) -> Option<(OpenKey, Vec<u8>)> {
        let (salt, sealed) = bytes.split_first_chunk::<SALT_BYTES>()?;
        let key = self.cipher.reopen(&thing(kind, name), salt);
        let mut plain = sealed.to_vec();
        key.open(0, &mut plain)?;
        Some((key, plain))
    }

    fn seal_named(&self, kind: u8, name: &str, bytes: &[u8]) -> Result<(String, Vec<u8>)> {
        let hidden = self.hidden(kind, name);
        let length = u16::try_from(name.len()).expect("names have at most 255 characters");
        let plain = [&length.to_le_bytes()[..], name.as_bytes(), bytes].concat();
        let (roots, unit) = match kind {
            RECORD => (roots_of(bytes), RECORD_UNIT),
            _ => (Vec::new(), SMALL_UNIT),
        };
        let sealed = self.seal(kind, &[hidden.as_bytes(), &roots].concat(), pad(&plain, unit))?;
        let stored = self.add_sum(kind, hidden.as_bytes(), [roots, sealed].concat());
        Ok((hidden, stored))
    }

    fn open_named(&self, kind: u8, hidden: &str, bytes: &[u8]) -> Option<(String, Vec<u8>)> {
        let bytes = self.without_sum(kind, hidden.as_bytes(), bytes)?;
        let roots = match kind {
            RECORD => 4 + 32 * roots_below(bytes)?.len(),
            _ => 0,
        };
        let (roots, sealed) = bytes.split_at_checked(roots)?;
        let (_, plain) = self.open(kind, &[hidden.as_bytes(), roots].concat(), sealed)?;
        let plain = unpad(&plain)?;
        let (length, rest) = plain.split_first_chunk()?;
        let (name, bytes) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        // Whoever has the key could have named others, and a prune without the key would follow those.
        if kind == RECORD && roots != roots_of(bytes) {
            return None;
        }
        Some((String::from_utf8(name.to_vec()).ok()?, bytes.to_vec()))
    }
}

impl<S: StoreReader + ?Sized> Encrypted<S> {
    /// Reads records and notes as they are stored, and compares them with the epoch.
    fn compare(&self) -> Result<(Listing, Vec<String>)> {
        let below = self.store.listing(true)?;
        let set = self.set_of(&below.records, &below.notes);
        *self.seen.lock() = set.seen_at(below.generation);
        Ok((below, set.differences()))
    }

    fn open_records(&self, records: Vec<Record>) -> Vec<Record> {
        let mut records: Vec<_> = records.into_iter().map(|record| self.open_record(record)).collect();
        records.sort_by(|one, other| one.key.cmp(&other.key));
        records
    }

    fn open_record(&self, record: Record) -> Record {
        match self.open_named(RECORD, &record.key, &record.bytes) {
            Some((key, bytes)) => Record { key, bytes },
            // Decoding it will report the damage.
            None => record,
        }
    }

    /// Returns the times under the keys of the opened records.
    fn open_received(&self, received: Vec<(String, Received)>, opened: &[Record]) -> Vec<(String, Received)> {
        let hidden: HashMap<_, _> = received.into_iter().collect();
        let of = |record: &Record| Some((record.key.clone(), *hidden.get(&self.hidden(RECORD, &record.key))?));
        opened.iter().filter_map(of).collect()
    }

    fn open_notes(&self, notes: Vec<Note>) -> Vec<Note> {
        let epoch = self.hidden(NOTE, epoch::NAME);
        let mut notes: Vec<_> = notes
            .into_iter()
            .filter(|note| note.name != epoch && note.name != uncounted::NAME)
            .map(
                |note| match self.open_named(NOTE, &note.name, note.value.as_deref().unwrap_or_default()) {
                    Some((name, value)) => Note {
                        name,
                        value: Some(value),
                    },
                    // A dropped note would look as if it had never been written.
                    None => note,
                },
            )
            .collect();
        notes.sort_by(|one, other| one.name.cmp(&other.name));
        notes
    }

    fn has_record(&self, record: &Record) -> Result<bool> {
        let hidden = self.hidden(RECORD, &record.key);
        let stored = self.store.lookup(&[hidden], &[])?.records.pop();
        let opened = stored.and_then(|stored| self.open_named(RECORD, &stored.key, &stored.bytes));
        Ok(opened.is_some_and(|(_, bytes)| bytes == record.bytes))
    }
}

const LENGTH: u8 = b'L';
const BLOCK: u8 = b'B';
const NODE: u8 = b'S';
const RECORD: u8 = b'R';
const NOTE: u8 = b'N';

fn thing(kind: u8, name: &[u8]) -> Vec<u8> {
    [&[kind], name].concat()
}

fn row_part(number: usize) -> u32 {
    // A block has at most 512 rows.
    number as u32 + 1
}

impl<S: StoreReader + ?Sized> StoreReader for Encrypted<S> {
    fn identity(&self) -> Result<Identity> {
        self.store.identity()
    }

    fn generation(&self) -> Result<u64> {
        self.store.generation()
    }

    fn state_at(&self, generation: u64) -> Result<Option<String>> {
        self.store.state_at(generation)
    }

    fn hashing(&self) -> Hashing {
        self.hashing
    }

    fn distance(&self) -> Distance {
        self.store.distance()
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        let located = self.store.locate(ids)?.into_iter().zip(ids);
        Ok(located
            .map(|(located, id)| located.map(|located| self.located(*id, located)))
            .collect())
    }

    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.store
            .survey_from(from, &mut |id, located| each(id, self.located(id, located)))
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.store.condemned()
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        self.read_blocks(wanted)
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        let open = |(bytes, &id): (Result<Vec<u8>>, &NodeId)| {
            let bytes = bytes?;
            let plain = || {
                let bytes = self.without_sum(NODE, &id.0, &bytes)?;
                let (head, body) = bytes.split_at_checked(Head::len_in(bytes)?)?;
                let (_, body) = self.open(NODE, &id.0, body)?;
                Some([head, &unpad(&body)?].concat())
            };
            plain().ok_or_else(|| Error::NodeDamaged {
                id,
                what: "it can't be decrypted".into(),
            })
        };
        self.store.nodes(ids).into_iter().zip(ids).map(open).collect()
    }

    fn to_scan(self: Arc<Self>) -> Option<Arc<dyn StoreReader>> {
        Some(Arc::new(self.over(Arc::clone(&self.store).to_scan()?)))
    }

    fn with_copies(self: Arc<Self>) -> Option<Arc<dyn StoreReader>> {
        Some(Arc::new(self.over(Arc::clone(&self.store).with_copies()?)))
    }

    fn drop_copies(&self, blocks: &[BlockId], nodes: &[NodeId]) {
        self.store.drop_copies(blocks, nodes);
    }

    fn records(&self) -> Result<Vec<Record>> {
        Ok(self.open_records(self.store.records()?))
    }

    fn listing(&self, with_notes: bool) -> Result<Listing> {
        let (below, foreign_changes) = self.compare()?;
        let records = self.open_records(below.records);
        Ok(Listing {
            received: self.open_received(below.received, &records),
            records,
            notes: match with_notes {
                true => self.open_notes(below.notes),
                false => Vec::new(),
            },
            foreign_changes,
            generation: below.generation,
        })
    }

    fn notes(&self) -> Result<Vec<Note>> {
        Ok(self.open_notes(self.store.notes()?))
    }

    fn foreign_changes(&self) -> Result<Vec<String>> {
        Ok(self.compare()?.1)
    }

    fn lookup(&self, record_keys: &[String], note_names: &[String]) -> Result<Listing> {
        let hidden = |kind, names: &[String]| names.iter().map(|name| self.hidden(kind, name)).collect::<Vec<_>>();
        let below = self
            .store
            .lookup(&hidden(RECORD, record_keys), &hidden(NOTE, note_names))?;
        let records = self.open_records(below.records);
        Ok(Listing {
            received: self.open_received(below.received, &records),
            records,
            notes: self.open_notes(below.notes),
            foreign_changes: Vec::new(),
            generation: below.generation,
        })
    }

    fn forgotten(&self) -> Result<Vec<Forgotten>> {
        let open = |forgotten: Forgotten| Forgotten {
            record: self.open_record(forgotten.record),
            ..forgotten
        };
        Ok(self.store.forgotten()?.into_iter().map(open).collect())
    }

    fn epoch(&self) -> Result<Option<u64>> {
        let hidden = self.hidden(NOTE, epoch::NAME);
        let note = self.store.lookup(&[], &[hidden])?.notes.pop();
        let opened = note.and_then(|note| self.open_named(NOTE, &note.name, &note.value?));
        Ok(opened
            .and_then(|(_, plain)| Epoch::decode(&plain))
            .map(|epoch| epoch.counter))
    }

    fn stored_note_name(&self, name: &str) -> String {
        self.hidden(NOTE, name)
    }
}

impl<S: StoreWriter + ?Sized> StoreWriter for Encrypted<S> {
    fn takes_differences(&self) -> bool {
        self.store.takes_differences()
    }

    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        self.store.put(self.seal_blocks(blocks)?)
    }

    fn put_nodes(&self, nodes: Vec<(NodeId, Vec<u8>)>) -> Result<()> {
        // A node that is sealed again differs from the stored one, and would be stored again.
        let ids: Vec<_> = nodes.iter().map(|(id, _)| *id).collect();
        let stored = self.nodes(&ids);
        let changed = nodes.into_iter().zip(stored);
        let changed = changed.filter(|((_, bytes), stored)| !stored.as_ref().is_ok_and(|stored| stored == bytes));
        let seal = |((id, bytes), _): ((NodeId, Vec<u8>), _)| {
            let (head, body) = bytes.split_at(Head::len_in(&bytes).unwrap_or(0));
            let sealed = self.seal(NODE, &id.0, pad(body, SMALL_UNIT))?;
            Ok((id, self.add_sum(NODE, &id.0, [head, &sealed].concat())))
        };
        self.store.put_nodes(changed.map(seal).collect::<Result<_>>()?)
    }

    fn builds_on(&self, record_key: &str) -> Result<()> {
        self.store.builds_on(&self.hidden(RECORD, record_key))
    }

    fn set_terms(&self, terms: Terms) {
        self.store.set_terms(terms);
    }

    fn flush(&self) -> Result<()> {
        self.store.flush()
    }

    fn commit_at(&self, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()> {
        let (key, bytes) = self.seal_named(RECORD, &record.key, &record.bytes)?;
        let (mut change, hidden) = self.hide(notes)?;
        change
            .records
            .push((key.clone(), Some(self.element(RECORD, &key, &bytes))));
        let sealed = Record { key, bytes };
        let written = self.with_epoch(&change, at, &|epoch, at| {
            let notes = [&hidden[..], epoch].concat();
            self.store.commit_at(&sealed, &notes, Some(at))
        });
        match written {
            // The same record sealed again has other bytes, so the store below can't recognize it.
            Err(Error::BackupExists(_) | Error::Moved) if self.has_record(record)? => Ok(()),
            Err(Error::BackupExists(_)) => Err(Error::BackupExists(record.key.clone())),
            written => written,
        }
    }
}

impl<S: StoreManager + ?Sized> StoreManager for Encrypted<S> {
    fn amend_at(&self, remove_records: &[String], notes: &[Note], at: Option<u64>) -> Result<()> {
        let remove: Vec<_> = remove_records.iter().map(|key| self.hidden(RECORD, key)).collect();
        let (mut change, hidden) = self.hide(notes)?;
        change.records = remove.iter().map(|key| (key.clone(), None)).collect();
        self.with_epoch(&change, at, &|epoch, at| {
            let notes = [&hidden[..], epoch].concat();
            self.store.amend_at(&remove, &notes, Some(at))
        })
    }

    fn held(&self) -> Vec<Record> {
        self.open_records(self.store.held())
    }

    fn empty_bin(&self, time: jiff::Timestamp, up_to: u64) -> Result<()> {
        self.store.empty_bin(time, up_to)
    }

    fn accept(&self) -> Result<Vec<String>> {
        self.accept_set()
    }

    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        self.store.condemn(ids)
    }

    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        self.store.pardon(ids)
    }

    fn retain(&self, live: &Live, options: PruneOptions, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Swept> {
        self.store.retain(live, options, step)
    }
}

#[cfg(test)]
mod tests;
