//! The door: what can be checked without the key, of what a client puts, of what is on the disk, and of what is copied.
//!
//! | | plain repository | encrypted | encrypted, with sums |
//! |---|---|---|---|
//! | block | each page is decoded and hashed: it is what its id says | lengths | it is what was sealed once |
//! | difference | the same, with the pages of its base | lengths | it is what was sealed once, with this base |
//! | node of a manifest | hashed | the form of its head | it is what was sealed once |
//! | record | its form | ROOTS | it is what was sealed once |
//!
//! Decoding takes bounded memory: a page at a time, and differences 4 MiB at a time. A part of a manifest names no more than one of
//! its kind can: a proof or a prune that follows what hostile ones name would need more memory than any disk does.

use super::encrypted::{Sums, roots_below};
use super::{Identity, Located, MOST_BASES_READ, Note, Record, StoreReader, Stored, Wanted, checked, whole};
use crate::backup::Entry;
use crate::block::{Hashing, PAGE_BYTES, pages_in};
use crate::codec::{Header, Sealed};
use crate::error::{Error, Result};
use crate::id::{BlockId, NodeId};
use crate::manifest::{self, Head, Kind, PAGE_SEGMENTS, SEGMENT_SLOTS, damaged};

/// Longest node: the root of an image of 2 PiB.
const MAX_NODE_BYTES: usize = 1 << 20;

/// Plain bytes of the differences that are decoded at once; at least one block. Their bases are read with one call.
const OVER_BYTES: usize = 4 << 20;

/// The checks of one repository.
#[derive(Debug, Clone, Copy)]
pub struct Door {
    block_bytes: usize,
    /// Of an encrypted repository.
    sums: Option<Sums>,
}

impl Door {
    /// Returns the checks for the repository with this identity.
    pub fn of(identity: &Identity) -> Self {
        Self {
            block_bytes: identity.block_size.bytes(),
            sums: identity.is_encrypted().then(|| Sums::of(identity)),
        }
    }

    /// Returns whether the repository is encrypted.
    pub fn is_sealed(&self) -> bool {
        self.sums.is_some()
    }

    /// Returns whether every changed byte of a block is noticed.
    pub fn proves(&self) -> bool {
        self.sums.is_none_or(|sums| sums.has_sums())
    }

    /// Returns the question for a whole block. The answer may end with empty pages that the block does not have.
    pub fn whole(&self, id: BlockId, located: Located) -> Wanted {
        let pages = match self.sums {
            Some(sums) => sums.max_rows(),
            None => pages_in(located.plain_bytes as usize),
        };
        Wanted { id, pages: 0..pages }
    }

    /// Checks the answer to [`Door::whole`], and returns the block in the form in which it was put. `store` has its base.
    pub fn check_stored(
        &self,
        id: BlockId,
        located: Located,
        stored: Stored,
        store: &(impl StoreReader + ?Sized),
    ) -> Result<Sealed> {
        let Stored {
            header,
            mut pages,
            base,
        } = stored;
        while self.sums.is_some() && pages.last().is_some_and(Vec::is_empty) {
            pages.pop();
        }
        let block = Sealed {
            id,
            plain_bytes: located.plain_bytes,
            header,
            pages,
            base,
        };
        self.check_blocks(std::slice::from_ref(&block), store)?;
        Ok(block)
    }

    /// Reads a stored block, and what it depends on, and checks them.
    pub fn check_whole(&self, store: &(impl StoreReader + ?Sized), id: BlockId, located: Located) -> Result<()> {
        let mut next = Some((id, located));
        for _ in 0..=MOST_BASES_READ {
            let Some((id, located)) = next else { break };
            let stored = checked::get(store, &[self.whole(id, located)]).swap_remove(0)?;
            let base = self.check_stored(id, located, stored, store)?.base;
            // That of a plain block was read with it.
            let Some(base) = base.filter(|_| self.is_sealed()) else {
                break;
            };
            let located = store.locate(&[base])?.pop().flatten();
            next = Some((base, located.ok_or(Error::BlockMissing(base))?));
        }
        Ok(())
    }

    /// An error unless they are the blocks that their ids say, as far as that can be told. `store` has the bases of those that are
    /// differences.
    pub fn check_blocks(&self, blocks: &[Sealed], store: &(impl StoreReader + ?Sized)) -> Result<()> {
        if let Some(sums) = self.sums {
            return blocks.iter().try_for_each(|block| sums.check_block(block));
        }
        let (over, alone): (Vec<_>, Vec<_>) = blocks.iter().partition(|block| block.base.is_some());
        alone.into_iter().try_for_each(|block| self.check_plain(block))?;
        for over in over.chunks((OVER_BYTES / self.block_bytes).max(1)) {
            self.check_over(over, store)?;
        }
        Ok(())
    }

    /// Checks differences of a plain repository.
    fn check_over(&self, blocks: &[&Sealed], store: &(impl StoreReader + ?Sized)) -> Result<()> {
        let is_longer = |block: &&&Sealed| block.pages.iter().any(|page| page.len() > PAGE_BYTES);
        if let Some(block) = blocks.iter().find(is_longer) {
            return Err(Error::BlockDamaged {
                id: block.id,
                what: "a page is longer than its plain bytes".into(),
            });
        }
        let bases: Vec<_> = blocks.iter().filter_map(|block| block.base).collect();
        if let Some((base, _)) = bases
            .iter()
            .zip(store.locate(&bases)?)
            .find(|(_, located)| located.is_none())
        {
            return Err(Error::BlockMissing(*base));
        }
        let wanted = blocks.iter().map(|block| Wanted {
            id: block.id,
            pages: 0..block.pages.len(),
        });
        let stored = blocks.iter().map(|block| {
            Ok(Stored {
                header: block.header.clone(),
                pages: block.pages.clone(),
                base: block.base,
            })
        });
        let mut stored: Vec<Result<Stored>> = stored.collect();
        whole::complete(store, &wanted.collect::<Vec<_>>(), &mut stored);
        for (block, stored) in blocks.iter().zip(stored) {
            let Stored { header, pages, .. } = stored?;
            self.check_plain(&Sealed {
                id: block.id,
                plain_bytes: block.plain_bytes,
                header,
                pages,
                base: None,
            })?;
        }
        Ok(())
    }

    fn check_plain(&self, block: &Sealed) -> Result<()> {
        let plain_bytes = block.plain_bytes as usize;
        if plain_bytes == 0 || plain_bytes > self.block_bytes || block.pages.len() != pages_in(plain_bytes) {
            return Err(Error::BlockDamaged {
                id: block.id,
                what: "it has another length".into(),
            });
        }
        let header = Header::prove(Hashing::Plain, block.id, plain_bytes, &block.header)?;
        let mut page = vec![0; PAGE_BYTES];
        for (number, stored) in block.pages.iter().enumerate() {
            // A decoder skips what does not belong to it, so the hash does not bound the stored length; no answer would have room
            // for such a block, for all who have it.
            if stored.len() > header.page_len(number) {
                return Err(Error::BlockDamaged {
                    id: block.id,
                    what: format!("page {number} is longer than its plain bytes"),
                });
            }
            header.open_page(number, stored, &mut page[..header.page_len(number)])?;
        }
        Ok(())
    }

    /// An error unless it is the node that its id says, as far as that can be told.
    pub fn check_node(&self, id: NodeId, bytes: &[u8]) -> Result<()> {
        if bytes.len() > MAX_NODE_BYTES {
            return Err(damaged(id, "it is too long"));
        }
        let Some((head, _)) = Head::split(bytes) else {
            return Err(damaged(id, "it is of an unknown kind or version, or cut off"));
        };
        if !is_possible(&head) {
            return Err(damaged(id, "it names more than one of its kind can"));
        }
        match self.sums {
            None => manifest::prove(Hashing::Plain, id, bytes).map(drop),
            Some(sums) => sums.check_node(id, bytes),
        }
    }

    /// An error unless it can be a record.
    pub fn check_record(&self, record: &Record) -> Result<()> {
        let damaged = |what: &str| Error::RecordDamaged {
            backup: record.key.clone(),
            what: what.into(),
        };
        match self.sums {
            None => Entry::decode(Hashing::Plain, &record.key, &record.bytes).map(drop),
            Some(_) if roots_below(&record.bytes).is_none() => Err(damaged("it is cut off")),
            Some(sums) if sums.fits_record(record) => Ok(()),
            Some(_) => Err(damaged("it does not match its sum")),
        }
    }

    /// An error unless each can be a note.
    pub fn check_notes(&self, notes: &[Note]) -> Result<()> {
        let is_damaged = |note: &&Note| self.sums.is_some_and(|sums| !sums.fits_note(note));
        match notes.iter().find(is_damaged) {
            None => Ok(()),
            Some(note) => Err(Error::NoteDamaged {
                name: note.name.clone(),
            }),
        }
    }
}

/// Returns whether a manifest can have a part with this head. A root is only as long as a node may be.
fn is_possible(head: &Head) -> bool {
    let (names, drops) = match head.kind {
        Kind::Full => (SEGMENT_SLOTS, 0),
        Kind::Delta => (SEGMENT_SLOTS, SEGMENT_SLOTS),
        // Pairs.
        Kind::Page => (2 * PAGE_SEGMENTS, 0),
        Kind::Root => (usize::MAX, 0),
    };
    head.names.len() <= names && head.drops.len() <= drops
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::codec::{Compression, Sealer};
    use crate::error::ErrorKind;
    use crate::keys::Keys;
    use crate::store::encrypted::Encrypted;
    use crate::store::memory::MemoryStore;
    use crate::store::{StoreManager, StoreReader};
    use crate::tests::testing::{SMALL, backup, mixed_bytes, store_image};

    /// Everything that a repository with one backup has.
    struct Things {
        door: Door,
        store: Arc<MemoryStore>,
        blocks: Vec<(BlockId, Located, Stored)>,
        nodes: Vec<(NodeId, Vec<u8>)>,
        records: Vec<Record>,
        notes: Vec<Note>,
    }

    impl Things {
        fn of(identity: &Identity, store: Arc<MemoryStore>) -> Self {
            let door = Door::of(identity);
            let mut blocks = Vec::new();
            store
                .survey(&mut |id, located| {
                    let stored = store.get(&[door.whole(id, located)]).remove(0)?;
                    blocks.push((id, located, stored));
                    Ok(())
                })
                .expect("surveys");
            let ids = store.node_ids();
            let nodes = store.nodes(&ids).into_iter().map(|node| node.expect("reads"));
            let (records, notes) = (store.records().expect("lists"), store.notes().expect("lists"));
            Self {
                door,
                blocks,
                nodes: ids.iter().copied().zip(nodes).collect(),
                records,
                notes,
                store,
            }
        }

        fn sealed(has_sums: bool) -> Self {
            let (below, identity) = MemoryStore::sealed(SMALL, has_sums);
            let store = Encrypted::new(Arc::clone(&below), &Keys::generate().expect("random bytes"), &identity);
            fill(&store);
            Self::of(&identity, below)
        }

        fn plain() -> Self {
            let store = Arc::new(MemoryStore::new(SMALL));
            fill(&*store);
            Self::of(&store.identity().expect("has one"), store)
        }

        fn check(&self) -> Result<()> {
            let blocks = &self.blocks;
            blocks.iter().try_for_each(|(id, located, stored)| {
                self.door
                    .check_stored(*id, *located, stored.clone(), &*self.store)
                    .map(drop)
            })?;
            self.nodes
                .iter()
                .try_for_each(|(id, bytes)| self.door.check_node(*id, bytes))?;
            self.records
                .iter()
                .try_for_each(|record| self.door.check_record(record))?;
            self.door.check_notes(&self.notes)
        }

        /// Every string of bytes that a store keeps.
        fn strings(&mut self) -> Vec<&mut Vec<u8>> {
            let blocks = self.blocks.iter_mut().flat_map(|(_, _, stored)| {
                std::iter::once(&mut stored.header).chain(stored.pages.iter_mut().filter(|page| !page.is_empty()))
            });
            let nodes = self.nodes.iter_mut().map(|(_, bytes)| bytes);
            let records = self.records.iter_mut().map(|record| &mut record.bytes);
            let notes = self.notes.iter_mut().filter_map(|note| note.value.as_mut());
            blocks.chain(nodes).chain(records).chain(notes).collect()
        }
    }

    fn fill(store: &dyn StoreManager) {
        let image = store_image(store, "vda", &mixed_bytes(1, 3 * SMALL.bytes() + 5));
        let made = backup("web1", "2026-11-20T05-54-00Z", vec![image]);
        let record = Record {
            key: made.spec(),
            bytes: made.encode(),
        };
        store.commit(&record).expect("commits");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn any_changed_byte_is_noticed_without_the_key(
            which in any::<prop::sample::Index>(),
            at in any::<prop::sample::Index>(),
            flip in 1..=255_u8,
            cut in any::<bool>(),
        ) {
            let mut things = Things::sealed(true);
            prop_assert!(things.door.proves());
            things.check()?;
            let mut strings = things.strings();
            let which = which.index(strings.len());
            let string = &mut strings[which];
            let at = at.index(string.len());
            match cut {
                true => string.truncate(at),
                false => string[at] ^= flip,
            }
            prop_assert_eq!(things.check().map_err(|error| error.kind()), Err(ErrorKind::Corrupt));
        }
    }

    #[test]
    fn a_row_is_missed_and_no_thing_takes_the_place_of_another() {
        let things = Things::sealed(true);
        let [(one, located, stored), (other, ..)] = &things.blocks[..2] else {
            panic!("two blocks");
        };
        assert!(
            things
                .door
                .check_stored(*other, *located, stored.clone(), &*things.store)
                .is_err()
        );
        for row in 0..stored.pages.len() {
            let mut less = stored.clone();
            less.pages[row].clear();
            let is_padding = stored.pages[row].is_empty();
            assert_eq!(
                things.door.check_stored(*one, *located, less, &*things.store).is_ok(),
                is_padding
            );
        }
        let longer = Located {
            plain_bytes: located.plain_bytes ^ 1,
            ..*located
        };
        assert!(
            things
                .door
                .check_stored(*one, longer, stored.clone(), &*things.store)
                .is_err()
        );
        assert!(things.door.check_node(things.nodes[0].0, &things.nodes[1].1).is_err());
    }

    #[test]
    fn without_sums_lengths_are_checked_and_without_encryption_everything_is() {
        let mut things = Things::sealed(false);
        assert!(!things.door.proves());
        things.check().expect("passes");
        things.blocks[0].2.header.pop();
        assert!(things.check().is_err());
        let mut things = Things::plain();
        assert!(things.door.proves());
        things.check().expect("passes");
        for number in 0..things.strings().len() - things.notes.len() {
            let mut strings = things.strings();
            let last = strings[number].len() - 1;
            strings[number][last] ^= 1;
            assert!(things.check().is_err(), "string {number}");
            let mut strings = things.strings();
            strings[number][last] ^= 1;
        }
    }

    #[test]
    fn a_page_of_another_block_size_is_refused() {
        let door = Things::plain().door;
        let plain = mixed_bytes(1, 2 * SMALL.bytes());
        let sealed = Sealer::new(Compression::None)
            .expect("makes")
            .seal(&plain, &Hashing::Plain.block(&plain));
        let store = MemoryStore::new(SMALL);
        assert!(door.check_blocks(&[sealed.expect("seals")], &store).is_err());
    }
}
