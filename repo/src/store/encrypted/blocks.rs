//! Seals the header and the rows of a block, and opens the rows that contain the wanted pages.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::rows::{Layout, lay_out, most_rows};
use super::{Encrypted, row_part, sums, thing};
use crate::block::is_zero;
use crate::cipher::OpenKey;
use crate::codec::{Sealed, header_bytes};
use crate::error::{Error, Result};
use crate::id::BlockId;
use crate::store::{Distance, StoreReader, StoreWriter, Stored, Wanted};

/// Number of attempts to read a block that is stored again meanwhile.
const READINGS: usize = 3;

const STORED_ANEW: &str = "it was stored again while it was read";

impl<S: ?Sized> Encrypted<S> {
    /// Returns the same content in another store.
    pub(super) fn over(&self, store: Arc<dyn StoreReader>) -> Encrypted<dyn StoreReader> {
        Encrypted {
            store,
            hashing: self.hashing,
            cipher: self.cipher.clone(),
            name_key: self.name_key,
            epoch_key: self.epoch_key,
            full_header_bytes: self.full_header_bytes,
            has_sums: self.has_sums,
            has_begun: self.has_begun,
            seen: Mutex::default(),
        }
    }

    fn open_header(&self, wanted: &Wanted, stored: Vec<u8>, base: Option<BlockId>) -> Result<Opened> {
        let id = wanted.id;
        let (kind, name) = sums::block_name(id, base);
        let damaged = |what: &str| Error::BlockDamaged { id, what: what.into() };
        // The key proves more than the sum.
        let sealed = match self.has_sums {
            true => stored.len().checked_sub(sums::SUM_BYTES).map(|end| &stored[..end]),
            false => Some(&stored[..]),
        };
        let (key, mut header) = sealed
            .and_then(|sealed| self.open(kind, &name, sealed))
            .ok_or_else(|| damaged("its header can't be decrypted"))?;
        let length = header_bytes(&header).ok_or_else(|| damaged("its header is cut off"))?;
        if !is_zero(&header[length..]) {
            return Err(damaged("its header is not padded with zeros"));
        }
        header.truncate(length);
        let layout = Layout::of(&header).ok_or_else(|| damaged("its header is cut off"))?;
        Ok(Opened {
            rows: layout.rows(&wanted.pages),
            stored,
            key,
            header,
            layout,
            base,
        })
    }
}

/// A block whose header was opened, and whose rows have not been read yet.
struct Opened {
    /// The header in its stored form.
    stored: Vec<u8>,
    key: OpenKey,
    header: Vec<u8>,
    layout: Layout,
    /// The rows that contain the wanted pages.
    rows: Range<usize>,
    base: Option<BlockId>,
}

impl Opened {
    /// Opens the rows, and cuts the pages out of them.
    fn pages(self, wanted: &Wanted, stored: Stored) -> Result<Stored> {
        let id = wanted.id;
        let damaged = |what: String| Error::BlockDamaged { id, what };
        if stored.header != self.stored || stored.pages.len() != self.rows.len() {
            return Err(damaged(STORED_ANEW.into()));
        }
        let mut opened = stored.pages;
        for (number, row) in self.rows.clone().zip(&mut opened) {
            self.key
                .open(row_part(number), row)
                .ok_or_else(|| damaged(format!("row {number} of its pages can't be decrypted")))?;
        }
        let pages = self
            .layout
            .cut(&wanted.pages, self.rows.start, &opened)
            .ok_or_else(|| damaged("its rows are not as its header says".into()))?;
        Ok(Stored {
            header: self.header,
            pages,
            base: self.base,
        })
    }
}

impl<S: StoreReader + ?Sized> Encrypted<S> {
    /// Reads the headers and the largest possible number of rows with one call, though most blocks have fewer rows: a
    /// second call to a far store would take longer than the transfer of the rows that are not needed.
    fn get_from_far(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        let ask = |wanted: &Wanted| Wanted {
            id: wanted.id,
            pages: 0..most_rows(wanted.pages.end),
        };
        let asked: Vec<_> = wanted.iter().map(ask).collect();
        let open = |(stored, wanted): (Result<Stored>, &Wanted)| {
            let mut stored = stored?;
            let opened = self.open_header(wanted, stored.header, stored.base)?;
            let rows = opened.rows.clone();
            let missing = || Error::BlockDamaged {
                id: wanted.id,
                what: "it has more rows than a block of its length".into(),
            };
            stored.pages.truncate(rows.end);
            stored.pages = stored.pages.get(rows.start..).ok_or_else(missing)?.to_vec();
            stored.header = opened.stored.clone();
            opened.pages(wanted, stored)
        };
        self.store.get(&asked).into_iter().zip(wanted).map(open).collect()
    }

    /// Reads the headers of blocks, which say which rows contain the pages, and then those rows.
    fn get_all(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        let ask = |wanted: &Wanted, pages: Range<usize>| Wanted { id: wanted.id, pages };
        let headers: Vec<_> = wanted.iter().map(|wanted| ask(wanted, 0..0)).collect();
        let found: Vec<Result<Opened>> = self
            .store
            .get(&headers)
            .into_iter()
            .zip(wanted)
            .map(|(stored, wanted)| {
                let Stored { header, base, .. } = stored?;
                self.open_header(wanted, header, base)
            })
            .collect();
        let asked: Vec<_> = found
            .iter()
            .zip(wanted)
            .filter_map(|(found, wanted)| Some(ask(wanted, found.as_ref().ok()?.rows.clone())))
            .collect();
        let mut stored = self.store.get(&asked).into_iter();
        found
            .into_iter()
            .zip(wanted)
            .map(|(found, wanted)| {
                let found = found?;
                let missing = || Error::BlockMissing(wanted.id);
                found.pages(wanted, stored.next().ok_or_else(missing)??)
            })
            .collect()
    }

    /// Returns one answer per wanted block, in order.
    pub(super) fn read_blocks(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        if self.store.distance() == Distance::Far {
            return self.get_from_far(wanted);
        }
        let mut answers = self.get_all(wanted);
        for (answer, wanted) in answers.iter_mut().zip(wanted) {
            // This happens only in a store that a repair is writing to.
            for _ in 1..READINGS {
                match answer {
                    Err(Error::BlockDamaged { what, .. }) if what == STORED_ANEW => {
                        *answer = self.get_all(std::slice::from_ref(wanted)).remove(0);
                    }
                    _ => break,
                }
            }
        }
        answers
    }
}

impl<S: StoreWriter + ?Sized> Encrypted<S> {
    pub(super) fn seal_blocks(&self, blocks: Vec<Sealed>) -> Result<Vec<Sealed>> {
        let mut sealed = Vec::with_capacity(blocks.len());
        for mut block in blocks {
            let (kind, name) = sums::block_name(block.id, block.base);
            let (salt, mut key) = self.cipher.fresh(&thing(kind, &name))?;
            block.header.resize(self.full_header_bytes.max(block.header.len()), 0);
            key.seal(0, &mut block.header)?;
            block.header = [&salt[..], &block.header].concat();
            block.plain_bytes = self.hidden_length(block.id, block.plain_bytes);
            block.pages = lay_out(&block.pages);
            for (number, row) in block.pages.iter_mut().enumerate() {
                key.seal(row_part(number), row)?;
            }
            if self.has_sums {
                sums::add_to_block(&mut block);
            }
            sealed.push(block);
        }
        Ok(sealed)
    }
}
