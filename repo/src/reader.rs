//! Reads images back. Every byte that leaves here was proved against its block's id.
//!
//! | memory | bound |
//! |---|---|
//! | pages that were read at random | [`PAGE_CACHE_BYTES`], shared by all images of a process |
//! | slots of segments | [`SEGMENT_CACHE_BYTES`], shared |
//! | blocks read ahead | [`READ_AHEAD_BYTES`], shared |

mod ahead;

use std::ops::Range;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

pub use ahead::Stream;

use crate::backup::{Image, MAX_FILE_BYTES};
use crate::block::{BlockIndex, BlockSize, PAGE_BYTES, pages_in};
use crate::codec::Header;
use crate::error::{Error, Result};
use crate::id::{BlockId, SegmentId};
use crate::manifest::{Root, SEGMENT_SLOTS, Slot};
use crate::store::checked::{get_one, segment_one};
use crate::store::{StoreReader, Wanted};
use crate::writer::SlotReader;

/// Pages kept for readers who jump about.
pub const PAGE_CACHE_BYTES: u64 = 64 << 20;
/// Slots kept: those of about a TiB of disk with the default block size.
pub const SEGMENT_CACHE_BYTES: u64 = 32 << 20;
/// Blocks decoded before they are asked for, in all streams together.
pub const READ_AHEAD_BYTES: usize = 64 << 20;

type PageKey = (BlockId, u16);

#[derive(Clone)]
struct ByLength;

impl Weighter<PageKey, Arc<[u8]>> for ByLength {
    fn weight(&self, _: &PageKey, page: &Arc<[u8]>) -> u64 {
        page.len() as u64
    }
}

impl Weighter<SegmentId, Arc<[Slot]>> for ByLength {
    fn weight(&self, _: &SegmentId, slots: &Arc<[Slot]>) -> u64 {
        size_of_val::<[Slot]>(slots) as u64
    }
}

/// Caches and threads that the images of a process share. What is cached is named by its content, so it serves all
/// views of a repository.
pub struct ReadResources {
    pages: Cache<PageKey, Arc<[u8]>, ByLength>,
    segments: Cache<SegmentId, Arc<[Slot]>, ByLength>,
    ahead: ahead::Pool,
}

impl ReadResources {
    /// Starts `threads` threads for reading ahead; they end when this is dropped.
    pub fn new(threads: usize) -> Arc<Self> {
        let pages = PAGE_CACHE_BYTES as usize / PAGE_BYTES;
        let segments = SEGMENT_CACHE_BYTES as usize / (SEGMENT_SLOTS * size_of::<Slot>());
        Arc::new(Self {
            pages: Cache::with_weighter(pages, PAGE_CACHE_BYTES, ByLength),
            segments: Cache::with_weighter(segments, SEGMENT_CACHE_BYTES, ByLength),
            ahead: ahead::Pool::start(threads, READ_AHEAD_BYTES),
        })
    }
}

/// One disk as it was. May be used by many threads at once.
pub struct ImageReader {
    store: Arc<dyn StoreReader>,
    resources: Arc<ReadResources>,
    root: Root,
}

impl ImageReader {
    /// Opens the image of a backup in `store`.
    pub fn open(store: Arc<dyn StoreReader>, resources: Arc<ReadResources>, image: &Image) -> Result<Self> {
        let root = SlotReader::open(&*store, image.manifest)?.root().clone();
        Ok(Self { store, resources, root })
    }

    /// The disk's size.
    pub fn size_bytes(&self) -> u64 {
        self.root.size_bytes
    }

    /// The size of its blocks.
    pub fn block_size(&self) -> BlockSize {
        self.root.block_size
    }

    /// What a block of the image is; `None` for zeros, also past the end.
    pub fn slot(&self, index: BlockIndex) -> Result<Slot> {
        let number = (index.0 / SEGMENT_SLOTS as u64) as usize;
        let Some(&id) = self.root.segments.get(number) else {
            return Ok(None);
        };
        if id == SegmentId::ZERO {
            return Ok(None);
        }
        let slots = match self.resources.segments.get(&id) {
            Some(slots) => slots,
            None => {
                let bytes = segment_one(&*self.store, id)?;
                let count = self.root.slots_in(number);
                let slots: Arc<[Slot]> =
                    crate::manifest::decode_segment(self.store.hashing(), id, count, &bytes)?.into();
                self.resources.segments.insert(id, Arc::clone(&slots));
                slots
            }
        };
        let inside = (index.0 % SEGMENT_SLOTS as u64) as usize;
        Ok(slots.get(inside).copied().flatten())
    }

    /// Reads a whole block into `out`, which has just its length. Nothing of it is kept.
    pub fn read_block(&self, index: BlockIndex, out: &mut [u8]) -> Result<()> {
        match self.slot(index)? {
            None => out.fill(0),
            Some(id) => read_whole(&*self.store, id, out)?,
        }
        Ok(())
    }

    /// Reads from `offset_bytes` on; less than `out` holds only at the end of the image. Gives the number of bytes.
    pub fn read_at(&self, offset_bytes: u64, out: &mut [u8]) -> Result<usize> {
        let len = self.readable(offset_bytes, out.len());
        for piece in self.pieces(offset_bytes, len) {
            self.read_piece(&piece, &mut out[piece.out.clone()])?;
        }
        Ok(len)
    }

    /// All of a small image: a file that is kept with a backup. `name` is for the error of one that is larger than
    /// [`MAX_FILE_BYTES`], as a record from elsewhere may say.
    pub fn read_file(&self, name: &str) -> Result<Vec<u8>> {
        let have_bytes = self.size_bytes();
        if have_bytes > MAX_FILE_BYTES {
            return Err(Error::FileTooLarge {
                name: name.to_owned(),
                have_bytes,
                limit_bytes: MAX_FILE_BYTES,
            });
        }
        let mut bytes = vec![0; have_bytes as usize];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Where the next stored block begins at or after `offset_bytes`, or where the bytes from there on begin;
    /// `None` if there are only zero blocks up to the end.
    pub fn next_data(&self, offset_bytes: u64) -> Result<Option<u64>> {
        self.next(offset_bytes, |slot| slot.is_some())
    }

    /// Where the next zero block begins at or after `offset_bytes`; the end of the image counts as one.
    pub fn next_hole(&self, offset_bytes: u64) -> Result<u64> {
        let found = self.next(offset_bytes, |slot| slot.is_none())?;
        Ok(found.unwrap_or(self.root.size_bytes))
    }

    fn next(&self, offset_bytes: u64, wanted: impl Fn(&Slot) -> bool) -> Result<Option<u64>> {
        let size = self.block_size();
        let count = size.blocks_in(self.root.size_bytes);
        let first = size.index_of(offset_bytes);
        let mut index = first.0;
        while index < count {
            let segment = (index / SEGMENT_SLOTS as u64) as usize;
            if self.root.segments[segment] == SegmentId::ZERO && !wanted(&None) {
                index = (segment as u64 + 1) * SEGMENT_SLOTS as u64;
                continue;
            }
            if wanted(&self.slot(BlockIndex(index))?) {
                return Ok(Some(offset_bytes.max(size.offset_of(BlockIndex(index)))));
            }
            index += 1;
        }
        Ok(None)
    }

    fn readable(&self, offset_bytes: u64, wanted: usize) -> usize {
        let left = self.root.size_bytes.saturating_sub(offset_bytes);
        wanted.min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// Cuts a range, which must lie in the image, at the borders of blocks.
    fn pieces(&self, offset_bytes: u64, len: usize) -> impl Iterator<Item = Piece> + use<> {
        let size = self.block_size();
        let size_bytes = self.root.size_bytes;
        let mut done = 0;
        std::iter::from_fn(move || {
            if done == len {
                return None;
            }
            let at = offset_bytes + done as u64;
            let index = size.index_of(at);
            let inside = (at - size.offset_of(index)) as usize;
            let block_len = size.len_of(index, size_bytes);
            let now = (block_len - inside).min(len - done);
            let piece = Piece {
                index,
                block_len,
                inside: inside..inside + now,
                out: done..done + now,
            };
            done += now;
            Some(piece)
        })
    }

    fn read_piece(&self, piece: &Piece, out: &mut [u8]) -> Result<()> {
        let Some(id) = self.slot(piece.index)? else {
            out.fill(0);
            return Ok(());
        };
        if out.len() == piece.block_len {
            return read_whole(&*self.store, id, out);
        }
        let pages = piece.inside.start / PAGE_BYTES..pages_in(piece.inside.end);
        let mut page = pages.start;
        while page < pages.end {
            if let Some(cached) = self.resources.pages.get(&(id, page as u16)) {
                copy_page(page, &cached, &piece.inside, out);
                page += 1;
                continue;
            }
            let missing = (page..pages.end)
                .take_while(|&page| !self.resources.pages.contains_key(&(id, page as u16)))
                .count()
                .max(1);
            for (read, bytes) in self.read_pages(id, piece.block_len, page..page + missing)? {
                copy_page(read, &bytes, &piece.inside, out);
            }
            page += missing;
        }
        Ok(())
    }

    fn read_pages(&self, id: BlockId, block_len: usize, pages: Range<usize>) -> Result<Vec<(usize, Arc<[u8]>)>> {
        let wanted = Wanted {
            id,
            pages: pages.clone(),
        };
        let stored = get_one(&*self.store, wanted)?;
        let header = Header::prove(self.store.hashing(), id, block_len, &stored.header)?;
        pages
            .zip(&stored.pages)
            .map(|(page, stored)| {
                let mut bytes = vec![0; header.page_len(page)];
                header.open_page(page, stored, &mut bytes)?;
                let bytes: Arc<[u8]> = bytes.into();
                let key = (id, page as u16);
                self.resources.pages.insert(key, Arc::clone(&bytes));
                Ok((page, bytes))
            })
            .collect()
    }
}

/// The part of a read that falls into one block.
struct Piece {
    index: BlockIndex,
    block_len: usize,
    /// Which bytes of the block.
    inside: Range<usize>,
    /// Where they go in the reader's buffer.
    out: Range<usize>,
}

fn copy_page(page: usize, bytes: &[u8], inside: &Range<usize>, out: &mut [u8]) {
    let start = page * PAGE_BYTES;
    let from = inside.start.max(start);
    let to = inside.end.min(start + bytes.len());
    out[from - inside.start..to - inside.start].copy_from_slice(&bytes[from - start..to - start]);
}

/// Reads and proves all of a block whose length is that of `out`.
pub(crate) fn read_whole(store: &dyn StoreReader, id: BlockId, out: &mut [u8]) -> Result<()> {
    let wanted = Wanted {
        id,
        pages: 0..pages_in(out.len()),
    };
    let stored = get_one(store, wanted)?;
    let header = Header::prove(store.hashing(), id, out.len(), &stored.header)?;
    for (number, page) in out.chunks_mut(PAGE_BYTES).enumerate() {
        // `get_one` gave as many pages as `out` has.
        header.open_page(number, &stored.pages[number], page)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
