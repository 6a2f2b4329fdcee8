//! Reads images back. Every returned byte was proved against its block's id.
//!
//! | memory | bound |
//! |---|---|
//! | pages that were read at random offsets | [`PAGE_CACHE_BYTES`], shared by all images of a process |
//! | slots of segments | [`SEGMENT_CACHE_BYTES`], shared |
//! | blocks decoded as a whole: ahead of a sequential reader, and those that are read often | [`DECODED_BYTES`], shared |

mod ahead;
mod source;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

pub use ahead::Stream;
use source::Source;

use crate::backup::{Image, MAX_FILE_BYTES};
use crate::block::{BlockIndex, BlockSize, Hashing, PAGE_BYTES, pages_in};
use crate::codec::Header;
use crate::error::{Error, ErrorKind, Result};
use crate::id::BlockId;
use crate::manifest::{Manifest, SEGMENT_SLOTS, Segment, Slot};
use crate::store::whole;
use crate::store::{Distance, StoreReader, Stored, Wanted};

/// Cache of pages for random reads.
pub const PAGE_CACHE_BYTES: u64 = 64 << 20;
/// Cache of slots: enough for about a TiB of disk with the default block size.
pub const SEGMENT_CACHE_BYTES: u64 = 32 << 20;
/// Blocks decoded as a whole, in all streams together.
pub const DECODED_BYTES: usize = 96 << 20;

/// Segments that a sequential reader loads in one call.
const SEGMENTS_AT_ONCE: usize = 16;

type PageKey = (BlockId, u16);

#[derive(Clone)]
struct ByLength;

impl Weighter<PageKey, Arc<[u8]>> for ByLength {
    fn weight(&self, _: &PageKey, page: &Arc<[u8]>) -> u64 {
        page.len() as u64
    }
}

impl Weighter<Segment, Arc<[Slot]>> for ByLength {
    fn weight(&self, _: &Segment, slots: &Arc<[Slot]>) -> u64 {
        size_of_val::<[Slot]>(slots) as u64
    }
}

/// Caches and threads that the images of a process share. Cached objects are named by their content, so one cache
/// serves all views of a repository.
pub struct ReadResources {
    pages: Cache<PageKey, Arc<[u8]>, ByLength>,
    segments: Cache<Segment, Arc<[Slot]>, ByLength>,
    ahead: ahead::Pool,
}

impl ReadResources {
    /// Starts `threads` threads for reading ahead; they end when the value is dropped.
    pub fn new(threads: usize) -> Arc<Self> {
        let pages = PAGE_CACHE_BYTES as usize / PAGE_BYTES;
        let segments = SEGMENT_CACHE_BYTES as usize / (SEGMENT_SLOTS * size_of::<Slot>());
        Arc::new(Self {
            pages: Cache::with_weighter(pages, PAGE_CACHE_BYTES, ByLength),
            segments: Cache::with_weighter(segments, SEGMENT_CACHE_BYTES, ByLength),
            ahead: ahead::Pool::start(threads, DECODED_BYTES),
        })
    }

    /// Frees the blocks that were read ahead for streams that were not read for this time.
    pub fn drop_idle(&self, idle: std::time::Duration) {
        self.ahead.drop_idle(idle);
    }
}

/// Content of one disk at the time of a backup. May be used by many threads at once.
pub struct ImageReader {
    source: Source,
    resources: Arc<ReadResources>,
    manifest: Manifest,
}

impl ImageReader {
    /// Opens the image of a backup in `store`.
    pub fn open(store: Arc<dyn StoreReader>, resources: Arc<ReadResources>, image: &Image) -> Result<Self> {
        resources.ahead.prepare(store.distance());
        let source = Source::new(store);
        Ok(Self {
            manifest: source.manifest(image.manifest)?,
            source,
            resources,
        })
    }

    /// Returns the disk's size.
    pub fn size_bytes(&self) -> u64 {
        self.manifest.size_bytes()
    }

    /// Returns the size of the image's blocks.
    pub fn block_size(&self) -> BlockSize {
        self.manifest.block_size()
    }

    /// Returns the function that gives the ids of the image's blocks, to compare other bytes with them.
    pub fn hashing(&self) -> Hashing {
        self.source.store().hashing()
    }

    /// Returns the distance of the store that the image is read from.
    pub fn distance(&self) -> Distance {
        self.source.store().distance()
    }

    /// Returns the id of a block of the image; `None` for zeros, and past the end.
    pub fn slot(&self, index: BlockIndex) -> Result<Slot> {
        let number = (index.0 / SEGMENT_SLOTS as u64) as usize;
        let names = self.manifest.segment(number)?;
        if names == Segment::ZERO {
            return Ok(None);
        }
        let slots = match self.resources.segments.get(&names) {
            Some(slots) => slots,
            None => self.load(number)?,
        };
        let inside = (index.0 % SEGMENT_SLOTS as u64) as usize;
        Ok(slots.get(inside).copied().flatten())
    }

    /// Reads the slots of segment `number`, and of the following segments for a sequential reader.
    fn load(&self, number: usize) -> Result<Arc<[Slot]>> {
        let in_order = number == 0 || self.is_loaded(number - 1);
        let count = if in_order { SEGMENTS_AT_ONCE } else { 1 };
        let all = self.load_all(self.manifest.clamp(number..number + count));
        // The errors of the others are dropped; a reader that reaches such a segment gets its error then.
        all.into_iter().next().unwrap_or_else(|| Ok(Arc::from([])))
    }

    fn is_loaded(&self, number: usize) -> bool {
        let names = self.manifest.segment(number);
        names.is_ok_and(|names| names == Segment::ZERO || self.resources.segments.contains_key(&names))
    }

    /// Reads and caches segments that the image has, with one call of the store: one result for each.
    fn load_all(&self, numbers: impl IntoIterator<Item = usize>) -> Vec<Result<Arc<[Slot]>>> {
        let names = |number| Ok((self.manifest.segment(number)?, self.manifest.slots_in(number)));
        let names: Vec<Result<(Segment, usize)>> = numbers.into_iter().map(names).collect();
        let wanted: Vec<_> = names.iter().flatten().copied().collect();
        let mut read = self.source.segments(&wanted).into_iter();
        let keep = |names: Result<(Segment, usize)>| {
            let (names, _) = names?;
            let slots: Arc<[Slot]> = read.next().expect("there is one for each")?.slots.into();
            if names != Segment::ZERO {
                self.resources.segments.insert(names, Arc::clone(&slots));
            }
            Ok(slots)
        };
        names.into_iter().map(keep).collect()
    }

    /// Reads a whole block into `out`, which must have exactly its length. Caches nothing.
    pub fn read_block(&self, index: BlockIndex, out: &mut [u8]) -> Result<()> {
        self.read_blocks(&mut [(index, out)]).swap_remove(0)
    }

    /// Reads whole blocks with one call of the store, each into a buffer of exactly its length. Returns one result for
    /// each, in order; the content of a buffer whose result is an error is undefined. Caches nothing.
    pub fn read_blocks(&self, blocks: &mut [(BlockIndex, &mut [u8])]) -> Vec<Result<()>> {
        let mut answers: Vec<Result<()>> = Vec::with_capacity(blocks.len());
        let mut stored = Vec::new();
        for (number, (index, out)) in blocks.iter_mut().enumerate() {
            answers.push(match self.slot(*index) {
                Ok(None) => {
                    out.fill(0);
                    Ok(())
                }
                Ok(Some(id)) => {
                    stored.push((number, id, &mut **out));
                    Ok(())
                }
                Err(error) => Err(error),
            });
        }
        let (numbers, mut stored): (Vec<_>, Vec<_>) =
            stored.into_iter().map(|(number, id, out)| (number, (id, out))).unzip();
        for (number, read) in numbers.into_iter().zip(read_all(&**self.source.store(), &mut stored)) {
            answers[number] = read;
        }
        answers
    }

    /// Reads from `offset_bytes` on, and returns the number of bytes; it is less than the length of `out` only at the
    /// end of the image.
    pub fn read_at(&self, offset_bytes: u64, out: &mut [u8]) -> Result<usize> {
        let len = self.readable(offset_bytes, out.len());
        for piece in self.pieces(offset_bytes, len) {
            self.read_piece(&piece, &mut out[piece.out.clone()])?;
        }
        Ok(len)
    }

    /// Fills `out` from `offset_bytes` on; fails if that passes the end, or a block can't be read.
    pub fn read_exact_at(&self, offset_bytes: u64, out: &mut [u8]) -> io::Result<()> {
        let wanted = out.len();
        filled(wanted, self.read_at(offset_bytes, out))
    }

    /// Reads all of a small image: a file stored with a backup. `name` is used in the error for an image larger than
    /// [`MAX_FILE_BYTES`], which a record from elsewhere may claim.
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

    /// Returns the offset of the next stored block at or after `offset_bytes`, or `offset_bytes` itself if it lies in
    /// one; `None` if only zero blocks follow up to the end.
    pub fn next_data(&self, offset_bytes: u64) -> Result<Option<u64>> {
        self.next(offset_bytes, |slot| slot.is_some())
    }

    /// Returns the offset of the next zero block at or after `offset_bytes`; the end of the image counts as one.
    pub fn next_hole(&self, offset_bytes: u64) -> Result<u64> {
        let found = self.next(offset_bytes, |slot| slot.is_none())?;
        Ok(found.unwrap_or(self.manifest.size_bytes()))
    }

    fn next(&self, offset_bytes: u64, wanted: impl Fn(&Slot) -> bool) -> Result<Option<u64>> {
        let size = self.block_size();
        let count = size.blocks_in(self.manifest.size_bytes());
        let first = size.index_of(offset_bytes);
        let mut index = first.0;
        while index < count {
            let segment = (index / SEGMENT_SLOTS as u64) as usize;
            if !wanted(&None) && self.manifest.segment(segment)? == Segment::ZERO {
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
        let left = self.manifest.size_bytes().saturating_sub(offset_bytes);
        wanted.min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// Cuts a range, which must lie in the image, at the boundaries of blocks.
    fn pieces(&self, offset_bytes: u64, len: usize) -> impl Iterator<Item = Piece> + use<> {
        let size = self.block_size();
        let size_bytes = self.manifest.size_bytes();
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

    /// Tests for pages that need not be decoded.
    fn is_cached(&self, id: BlockId, piece: &Piece) -> bool {
        let mut pages = piece.inside.start / PAGE_BYTES..pages_in(piece.inside.end);
        pages.all(|page| self.resources.pages.contains_key(&(id, page as u16)))
    }

    fn read_piece(&self, piece: &Piece, out: &mut [u8]) -> Result<()> {
        let Some(id) = self.slot(piece.index)? else {
            out.fill(0);
            return Ok(());
        };
        if out.len() == piece.block_len {
            return self.source.read(id, |store| read_whole(store, id, out));
        }
        let pages = piece.inside.start / PAGE_BYTES..pages_in(piece.inside.end);
        let mut page = pages.start;
        while page < pages.end {
            let cached = self.resources.pages.get(&(id, page as u16));
            // Another length: this manifest gives a shorter or longer block the same id. The store's answer is the error.
            if let Some(cached) = cached.filter(|cached| cached.len() == piece.page_len(page)) {
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

    /// Reads pages, and caches them. From a far store all pages of the block are read, because the round trip takes
    /// longer than their transfer; only the wanted pages must be intact.
    fn read_pages(&self, id: BlockId, block_len: usize, pages: Range<usize>) -> Result<Vec<(usize, Arc<[u8]>)>> {
        let read = |all: Range<usize>| {
            let wanted = Wanted { id, pages: all };
            self.source.read(id, |store| {
                // `get` returns as many answers as there are questions.
                let stored = whole::get(store, std::slice::from_ref(&wanted)).swap_remove(0)?;
                self.open_pages(&wanted, block_len, &stored, &pages)
            })
        };
        let whole = 0..pages_in(block_len);
        if self.distance() == Distance::Near || pages == whole {
            return read(pages.clone());
        }
        match read(whole) {
            // The store gives nothing of what it can't read as a whole.
            Err(error) if error.kind() == ErrorKind::Corrupt => read(pages.clone()),
            read => read,
        }
    }

    /// Proves and caches the pages of a block that were read, and returns those that are `needed`.
    fn open_pages(
        &self,
        read: &Wanted,
        block_len: usize,
        stored: &Stored,
        needed: &Range<usize>,
    ) -> Result<Vec<(usize, Arc<[u8]>)>> {
        let header = Header::prove(self.hashing(), read.id, block_len, &stored.header)?;
        let mut opened = Vec::with_capacity(needed.len());
        for (page, stored) in read.pages.clone().zip(&stored.pages) {
            let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, header.page_len(page)).collect();
            let new = Arc::get_mut(&mut bytes).expect("a new value has one holder");
            match header.open_page(page, stored, new) {
                Err(error) if needed.contains(&page) => return Err(error),
                Err(_) => continue,
                Ok(()) => {}
            }
            self.resources.pages.insert((read.id, page as u16), Arc::clone(&bytes));
            if needed.contains(&page) {
                opened.push((page, bytes));
            }
        }
        Ok(opened)
    }

    /// Reads the pages at these offsets, if the store is far, for small reads that follow: one after the other, each of those
    /// would wait for a round trip. What can't be read is left to them.
    pub fn will_read(&self, offsets_bytes: &[u64]) {
        if self.distance() == Distance::Near {
            return;
        }
        let (size, size_bytes) = (self.block_size(), self.size_bytes());
        let inside = offsets_bytes.iter().filter(|offset| **offset < size_bytes);
        let at = inside.map(|offset| {
            let index = size.index_of(*offset);
            (index, (offset - size.offset_of(index)) as usize / PAGE_BYTES)
        });
        let mut at: Vec<(BlockIndex, usize)> = at.collect();
        at.sort_unstable();
        at.dedup();
        let mut segments: Vec<_> = at
            .iter()
            .map(|(index, _)| (index.0 / SEGMENT_SLOTS as u64) as usize)
            .collect();
        segments.dedup();
        segments.retain(|segment| !self.is_loaded(*segment));
        self.load_all(segments);
        let wanted = at.into_iter().filter_map(|(index, page)| {
            let id = self.slot(index).ok()??;
            let is_cached = self.resources.pages.contains_key(&(id, page as u16));
            let pages = page..page + 1;
            (!is_cached).then(|| (Wanted { id, pages }, size.len_of(index, size_bytes)))
        });
        let (wanted, lens): (Vec<_>, Vec<_>) = wanted.unzip();
        if wanted.is_empty() {
            return;
        }
        let stored = whole::get(&**self.source.of_run(0), &wanted);
        for ((wanted, len), stored) in wanted.iter().zip(lens).zip(stored) {
            let opened = stored.and_then(|stored| self.open_pages(wanted, len, &stored, &wanted.pages));
            if let Err(error) = opened {
                tracing::debug!("{error}");
            }
        }
    }
}

/// The part of a read that falls into one block.
struct Piece {
    index: BlockIndex,
    block_len: usize,
    /// Range within the block.
    inside: Range<usize>,
    /// Range in the reader's buffer.
    out: Range<usize>,
}

impl Piece {
    /// Returns the length of a page of the block.
    fn page_len(&self, page: usize) -> usize {
        self.block_len.saturating_sub(page * PAGE_BYTES).min(PAGE_BYTES)
    }
}

/// A reading in the words of the standard library: all that was wanted, or an error.
fn filled(wanted: usize, read: Result<usize>) -> io::Result<()> {
    match read {
        Ok(len) if len == wanted => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn copy_page(page: usize, bytes: &[u8], inside: &Range<usize>, out: &mut [u8]) {
    let start = page * PAGE_BYTES;
    let from = inside.start.max(start);
    let to = inside.end.min(start + bytes.len());
    out[from - inside.start..to - inside.start].copy_from_slice(&bytes[from - start..to - start]);
}

/// Reads and proves a whole block, whose length must be that of `out`.
pub(crate) fn read_whole(store: &dyn StoreReader, id: BlockId, out: &mut [u8]) -> Result<()> {
    // There is one answer for one block.
    read_all(store, &mut [(id, out)]).swap_remove(0)
}

/// Reads and proves blocks with one call of the store, each of the length of its buffer. Returns one result for each,
/// in order.
pub(crate) fn read_all(store: &dyn StoreReader, blocks: &mut [(BlockId, &mut [u8])]) -> Vec<Result<()>> {
    if blocks.is_empty() {
        return Vec::new();
    }
    let wanted: Vec<_> = blocks
        .iter()
        .map(|(id, out)| Wanted {
            id: *id,
            pages: 0..pages_in(out.len()),
        })
        .collect();
    let open = |((id, out), stored): (&mut (BlockId, &mut [u8]), Result<Stored>)| {
        let stored = stored?;
        let header = Header::prove(store.hashing(), *id, out.len(), &stored.header)?;
        // `whole` proved that there are as many pages as were wanted.
        let mut pages = out.chunks_mut(PAGE_BYTES).zip(&stored.pages).enumerate();
        pages.try_for_each(|(number, (page, stored))| header.open_page(number, stored, page))
    };
    blocks.iter_mut().zip(whole::get(store, &wanted)).map(open).collect()
}

#[cfg(test)]
mod tests;
