//! Encryption at rest: a store whose content another store keeps without being able to read it.
//!
//! Who has the store below and no key sees how many blocks, segments, records and notes there are and in which order they
//! came, and of each block its plain length, which is the block size for all but the last of an image, and one of a few
//! stored lengths (`fragments.rs`). Ids are keyed hashes ([`Hashing::Keyed`]), so equal content can't be compared with
//! content outside. What is left to tell from is the sequence of the blocks' stored lengths: too little for a file of a
//! few MiB, and enough for a disk image that is known byte by byte. What seals is described in `cipher.rs`; SALT is 24
//! random bytes.
//!
//! | what | name of the sealed thing | as it is stored |
//! |---|---|---|
//! | block | `B`, id | header: SALT, sealed header (part 0); in the place of page n: sealed fragment n (part n + 1), see `fragments.rs` |
//! | segment | `S`, id | SALT, sealed segment (part 0) |
//! | record | `R`, key as stored | SALT, sealed (length of the key as u16, little-endian; key; record) (part 0) |
//! | note | `N`, name as stored | SALT, sealed (length of the name; name; value) (part 0) |
//!
//! Keys of records and names of notes are stored as 64 hexadecimal digits: the keyed hash of `R` or `N` and the key or
//! name.

mod fragments;

use std::ops::Range;
use std::sync::Arc;

use self::fragments::Layout;
use super::{BlockStore, Identity, Live, Located, Note, Record, StoreReader, Stored, Swept, Thrift, Wanted};
use crate::block::{Hashing, keyed_hash};
use crate::cipher::{Cipher, OpenKey, SALT_BYTES};
use crate::codec::Sealed;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, SegmentId, to_hex};
use crate::keys::Keys;

/// A store that encrypts what it gives to `S`.
pub struct Encrypted<S> {
    store: Arc<S>,
    hashing: Hashing,
    cipher: Cipher,
    name_key: [u8; 32],
}

impl<S> Encrypted<S> {
    /// Opens what is in `store` with the keys that it was made with.
    pub fn new(store: Arc<S>, keys: &Keys) -> Self {
        Self {
            store,
            hashing: Hashing::Keyed(keys.hashing_key()),
            cipher: keys.cipher(),
            name_key: keys.name_key(),
        }
    }

    fn hidden(&self, kind: u8, name: &str) -> String {
        // The stored name of what can't be read. The names of records have an @ in them; those of notes are no digits.
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

    /// `None` if it is not what was sealed under this name.
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
        let sealed = self.seal(kind, hidden.as_bytes(), plain)?;
        Ok((hidden, sealed))
    }

    fn open_named(&self, kind: u8, hidden: &str, bytes: &[u8]) -> Option<(String, Vec<u8>)> {
        let (_, plain) = self.open(kind, hidden.as_bytes(), bytes)?;
        let (length, rest) = plain.split_first_chunk()?;
        let (name, bytes) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        Some((String::from_utf8(name.to_vec()).ok()?, bytes.to_vec()))
    }

    /// Opens the header of a block of which the store gave the fragments from number `first` on.
    fn open_header(&self, wanted: &Wanted, first: usize, stored: Stored) -> Result<OpenBlock> {
        let damaged = |what: String| Error::BlockDamaged { id: wanted.id, what };
        let (key, header) = self
            .open(BLOCK, &wanted.id.0, &stored.header)
            .ok_or_else(|| damaged("its header can't be decrypted".into()))?;
        let layout = Layout::of(&header).ok_or_else(|| damaged("its header is not one".into()))?;
        let needed = layout
            .fragments(&wanted.pages)
            .ok_or_else(|| damaged(format!("it has fewer than {} pages", wanted.pages.end)))?;
        let given = first..first + stored.pages.len();
        let has_all = needed.is_empty() || (given.start <= needed.start && needed.end <= given.end);
        let given = stored.pages.into_iter().skip(needed.start.saturating_sub(first));
        Ok(OpenBlock {
            fragments: has_all.then(|| Ok(given.take(needed.len()).collect())),
            key,
            header,
            layout,
            needed,
        })
    }
}

/// A block whose header was opened, and whose fragments are still sealed.
struct OpenBlock {
    key: OpenKey,
    header: Vec<u8>,
    layout: Layout,
    /// The fragments in which the wanted pages lie.
    needed: Range<usize>,
    /// Those, if all of them were given, or why they can't be read.
    fragments: Option<Result<Vec<Vec<u8>>>>,
}

impl OpenBlock {
    /// Opens the fragments and gives the pages in them.
    fn pages(self, wanted: &Wanted) -> Result<Stored> {
        let id = wanted.id;
        let damaged = |what: String| Error::BlockDamaged { id, what };
        // None: the store gave fewer answers than were asked for.
        let mut fragments = self.fragments.unwrap_or_else(|| Ok(Vec::new()))?;
        for (number, fragment) in self.needed.clone().zip(&mut fragments) {
            let part = fragment_part(number);
            let opened = self.key.open(part, fragment);
            opened.ok_or_else(|| damaged(format!("part {part} of it can't be decrypted")))?;
        }
        let page = |number| self.layout.page(number, self.needed.start, &fragments);
        let pages: Option<Vec<_>> = wanted.pages.clone().map(page).collect();
        Ok(Stored {
            header: self.header,
            pages: pages.ok_or_else(|| damaged("parts of it are missing".into()))?,
        })
    }
}

const BLOCK: u8 = b'B';
const SEGMENT: u8 = b'S';
const RECORD: u8 = b'R';
const NOTE: u8 = b'N';

fn thing(kind: u8, name: &[u8]) -> Vec<u8> {
    [&[kind], name].concat()
}

fn fragment_part(number: usize) -> u32 {
    // At most 256, as many as pages.
    number as u32 + 1
}

impl<S: StoreReader> StoreReader for Encrypted<S> {
    fn identity(&self) -> Result<Identity> {
        self.store.identity()
    }

    fn generation(&self) -> Result<u64> {
        self.store.generation()
    }

    fn hashing(&self) -> Hashing {
        self.hashing
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        self.store.locate(ids)
    }

    fn survey(&self, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.store.survey(each)
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.store.condemned()
    }

    /// Asks for the fragments that have the numbers of the pages. All of a block is then there in one answer, and of a few
    /// pages most; the rest is asked for when the headers say where it lies, for all blocks at once.
    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        let mut blocks: Vec<_> = self
            .store
            .get(wanted)
            .into_iter()
            .zip(wanted)
            .map(|(stored, wanted)| match stored {
                // Damage to a fragment in which the pages do not lie keeps none of them back.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    let pages = 0..0;
                    let header = self
                        .store
                        .get(&[Wanted {
                            pages,
                            ..wanted.clone()
                        }])
                        .pop();
                    self.open_header(wanted, 0, header.unwrap_or(Err(error))?)
                }
                stored => self.open_header(wanted, wanted.pages.start, stored?),
            })
            .collect();
        let lacking: Vec<_> = blocks
            .iter_mut()
            .zip(wanted)
            .filter_map(|(block, wanted)| {
                Some((block.as_mut().ok()?, wanted.id)).filter(|(block, _)| block.fragments.is_none())
            })
            .collect();
        let rest: Vec<_> = lacking
            .iter()
            .map(|(block, id)| Wanted {
                id: *id,
                pages: block.needed.clone(),
            })
            .collect();
        if !rest.is_empty() {
            for ((block, _), answer) in lacking.into_iter().zip(self.store.get(&rest)) {
                block.fragments = Some(answer.map(|stored| stored.pages));
            }
        }
        blocks
            .into_iter()
            .zip(wanted)
            .map(|(block, wanted)| block?.pages(wanted))
            .collect()
    }

    fn segments(&self, ids: &[SegmentId]) -> Vec<Result<Vec<u8>>> {
        let open = |(bytes, &id): (Result<Vec<u8>>, &SegmentId)| {
            let opened = self.open(SEGMENT, &id.0, &bytes?);
            opened.map(|(_, plain)| plain).ok_or_else(|| Error::SegmentDamaged {
                id,
                what: "it can't be decrypted".into(),
            })
        };
        self.store.segments(ids).into_iter().zip(ids).map(open).collect()
    }

    fn records(&self) -> Result<Vec<Record>> {
        let mut records: Vec<_> = self
            .store
            .records()?
            .into_iter()
            .map(|record| match self.open_named(RECORD, &record.key, &record.bytes) {
                Some((key, bytes)) => Record { key, bytes },
                // Whoever decodes it will say that it is damaged.
                None => record,
            })
            .collect();
        records.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(records)
    }

    fn notes(&self) -> Result<Vec<Note>> {
        let mut notes: Vec<_> = self
            .store
            .notes()?
            .into_iter()
            .map(
                |note| match self.open_named(NOTE, &note.name, note.value.as_deref().unwrap_or_default()) {
                    Some((name, value)) => Note {
                        name,
                        value: Some(value),
                    },
                    // Dropped, it would look as if nothing had ever been noted.
                    None => note,
                },
            )
            .collect();
        notes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(notes)
    }

    fn stored_note_name(&self, name: &str) -> String {
        self.hidden(NOTE, name)
    }
}

impl<S: BlockStore> BlockStore for Encrypted<S> {
    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        let mut sealed = Vec::with_capacity(blocks.len());
        for mut block in blocks {
            let (salt, mut key) = self.cipher.fresh(&thing(BLOCK, &block.id.0))?;
            key.seal(0, &mut block.header)?;
            block.header = [&salt[..], &block.header].concat();
            block.pages = fragments::cut(&block.pages);
            for (number, fragment) in block.pages.iter_mut().enumerate() {
                key.seal(fragment_part(number), fragment)?;
            }
            sealed.push(block);
        }
        self.store.put(sealed)
    }

    fn put_segments(&self, segments: Vec<(SegmentId, Vec<u8>)>) -> Result<()> {
        // Sealed again it would differ from what is stored, and be stored again.
        let ids: Vec<_> = segments.iter().map(|(id, _)| *id).collect();
        let stored = self.segments(&ids);
        let changed = segments.into_iter().zip(stored);
        let changed = changed.filter(|((_, bytes), stored)| !stored.as_ref().is_ok_and(|stored| stored == bytes));
        let seal = |((id, bytes), _): ((SegmentId, Vec<u8>), _)| Ok((id, self.seal(SEGMENT, &id.0, bytes)?));
        self.store.put_segments(changed.map(seal).collect::<Result<_>>()?)
    }

    fn flush(&self) -> Result<()> {
        self.store.flush()
    }

    fn commit(&self, record: &Record) -> Result<()> {
        let (key, bytes) = self.seal_named(RECORD, &record.key, &record.bytes)?;
        self.store.commit(&Record { key, bytes }).map_err(|error| match error {
            Error::BackupExists(_) => Error::BackupExists(record.key.clone()),
            error => error,
        })
    }

    fn amend(&self, remove_records: &[String], notes: &[Note]) -> Result<()> {
        let remove: Vec<_> = remove_records.iter().map(|key| self.hidden(RECORD, key)).collect();
        let mut hidden = Vec::with_capacity(notes.len());
        for note in notes {
            hidden.push(match &note.value {
                Some(value) => {
                    let (name, value) = self.seal_named(NOTE, &note.name, value)?;
                    Note {
                        name,
                        value: Some(value),
                    }
                }
                None => Note {
                    name: self.hidden(NOTE, &note.name),
                    value: None,
                },
            });
        }
        self.store.amend(&remove, &hidden)
    }

    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        self.store.condemn(ids)
    }

    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        self.store.pardon(ids)
    }

    fn retain(&self, live: &Live, thrift: Thrift, step: &mut dyn FnMut(u64) -> Result<()>) -> Result<Swept> {
        self.store.retain(live, thrift, step)
    }
}

#[cfg(test)]
mod tests;
