//! Pages and roots, and the manifest that they make up.

use std::ops::Range;

use super::{Head, Kind, SEGMENT_SLOTS, damaged, is_ascending, named, numbers, prove_kind};
use crate::block::{BlockSize, Hashing};
use crate::error::{Error, ErrorKind, Result};
use crate::id::NodeId;

/// Segments in a page; the last one of an image may have fewer.
pub const PAGE_SEGMENTS: usize = 64;

/// The names of a segment's nodes. All zero: only zero blocks, nothing is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// The full segment.
    pub full: NodeId,
    /// The delta; zero if the slots are those of the full segment.
    pub delta: NodeId,
}

impl Segment {
    /// A segment of zero blocks.
    pub const ZERO: Self = Self {
        full: NodeId::ZERO,
        delta: NodeId::ZERO,
    };

    /// Returns the names of the stored nodes: none, one or two.
    pub fn nodes(self) -> impl Iterator<Item = NodeId> {
        [self.full, self.delta].into_iter().filter(|id| *id != NodeId::ZERO)
    }
}

/// Consecutive segments of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page(pub Vec<Segment>);

impl Page {
    /// Returns the bytes to store, and the name to store them under; `None` if all segments are zero.
    pub fn encode(&self, hashing: Hashing) -> Option<(NodeId, Vec<u8>)> {
        let mut pairs: Vec<_> = self.0.iter().copied().filter(|pair| *pair != Segment::ZERO).collect();
        if pairs.is_empty() {
            return None;
        }
        pairs.sort_unstable();
        pairs.dedup();
        let head = Head {
            kind: Kind::Page,
            names: pairs.iter().flat_map(|pair| [pair.full.0, pair.delta.0]).collect(),
            drops: Vec::new(),
        };
        let mut bytes = head.encode();
        let number = |pair: &Segment| pairs.binary_search(pair).map_or(u16::MAX, |number| number as u16);
        bytes.extend(self.0.iter().flat_map(|pair| number(pair).to_le_bytes()));
        Some(named(hashing, bytes))
    }

    /// Reads and proves a page that must have `count` segments.
    pub fn decode(hashing: Hashing, id: NodeId, count: usize, bytes: &[u8]) -> Result<Self> {
        let (head, body) = prove_kind(hashing, id, Kind::Page, bytes)?;
        let pairs = Self::pairs(&head);
        if pairs.iter().any(|pair| pair.full == NodeId::ZERO) {
            return Err(damaged(id, "a delta has no full segment"));
        }
        let segment = |number: u16| match number {
            u16::MAX => Some(Segment::ZERO),
            number => pairs.get(usize::from(number)).copied(),
        };
        let found: Option<Vec<_>> = numbers(body).into_iter().map(segment).collect();
        let page = Self(found.ok_or_else(|| damaged(id, "a segment has no name"))?);
        if page.0.len() != count || body.len() != 2 * count {
            return Err(damaged(id, "it gives another number of segments"));
        }
        // There is one way to write a page, so it names what it needs and nothing else.
        match page.encode(hashing) {
            Some((same, _)) if same == id => Ok(page),
            _ => Err(damaged(id, "it does not name its segments")),
        }
    }

    /// Returns the segments that a page's head names.
    pub fn pairs(head: &Head) -> Vec<Segment> {
        let (pairs, _) = head.names.as_chunks();
        let pair = |[full, delta]: &[[u8; 32]; 2]| Segment {
            full: NodeId(*full),
            delta: NodeId(*delta),
        };
        pairs.iter().map(pair).collect()
    }
}

/// Root of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The size of the blocks.
    pub block_size: BlockSize,
    /// The size of the image.
    pub size_bytes: u64,
    /// The pages in order; zero for one of zero blocks.
    pub pages: Vec<NodeId>,
}

impl Root {
    /// Returns the bytes to store, and the name to store them under.
    pub fn encode(&self, hashing: Hashing) -> (NodeId, Vec<u8>) {
        let mut names: Vec<_> = self.pages.iter().map(|id| id.0).filter(|id| *id != [0; 32]).collect();
        names.sort_unstable();
        names.dedup();
        let number = |id: &NodeId| names.binary_search(&id.0).map_or(u32::MAX, |number| number as u32);
        let mut body = Vec::new();
        body.extend((self.block_size.bytes() as u32).to_le_bytes());
        body.extend(self.size_bytes.to_le_bytes());
        body.extend(self.pages.iter().flat_map(|id| number(id).to_le_bytes()));
        let head = Head {
            kind: Kind::Root,
            names,
            drops: Vec::new(),
        };
        named(hashing, [head.encode(), body].concat())
    }

    /// Reads and proves a root.
    pub fn decode(hashing: Hashing, id: NodeId, bytes: &[u8]) -> Result<Self> {
        let (head, body) = prove_kind(hashing, id, Kind::Root, bytes)?;
        let cut_off = || damaged(id, "it is cut off");
        let (block_size, body) = body.split_first_chunk().ok_or_else(cut_off)?;
        let (size_bytes, body) = body.split_first_chunk().ok_or_else(cut_off)?;
        let (block_size, size_bytes) = (u32::from_le_bytes(*block_size), u64::from_le_bytes(*size_bytes));
        let page = |number: &[u8; 4]| match u32::from_le_bytes(*number) {
            u32::MAX => Some(NodeId::ZERO),
            number => head.names.get(number as usize).copied().map(NodeId),
        };
        let (numbers, left) = body.as_chunks();
        let found: Option<Vec<_>> = numbers.iter().map(page).collect();
        let root = Self {
            block_size: BlockSize::new(block_size.into()).map_err(|_| damaged(id, "it gives a wrong block size"))?,
            size_bytes,
            pages: found.ok_or_else(|| damaged(id, "a page has no name"))?,
        };
        if !left.is_empty() || root.pages.len() as u64 != root.segments().div_ceil(PAGE_SEGMENTS as u64) {
            return Err(damaged(id, "it gives another number of pages"));
        }
        match is_ascending(&head.names) && root.encode(hashing).0 == id {
            true => Ok(root),
            false => Err(damaged(id, "it does not name its pages")),
        }
    }

    /// Returns the number of segments.
    pub fn segments(&self) -> u64 {
        segment_count(self.block_size, self.size_bytes)
    }

    /// Returns the number of segments in page `number`.
    pub fn segments_in(&self, number: usize) -> usize {
        let before = number as u64 * PAGE_SEGMENTS as u64;
        self.segments().saturating_sub(before).min(PAGE_SEGMENTS as u64) as usize
    }
}

/// Returns the number of segments of an image.
pub fn segment_count(block_size: BlockSize, size_bytes: u64) -> u64 {
    block_size.blocks_in(size_bytes).div_ceil(SEGMENT_SLOTS as u64)
}

/// Returns the number of slots of segment `number` of an image; none past its end.
pub fn slots_in(block_size: BlockSize, size_bytes: u64, number: usize) -> usize {
    let before = number as u64 * SEGMENT_SLOTS as u64;
    let left = block_size.blocks_in(size_bytes).saturating_sub(before);
    left.min(SEGMENT_SLOTS as u64) as usize
}

/// Root and pages of an image. A damaged page costs its own segments only.
#[derive(Debug, Clone)]
pub struct Manifest {
    root: Root,
    pages: Vec<std::result::Result<Page, String>>,
}

impl Manifest {
    /// Combines a root with its pages as they were read, one result for each page. Fails with the first error that is not
    /// damage.
    pub fn new(root: Root, pages: Vec<Result<Page>>) -> Result<Self> {
        let page = |page: Result<Page>| match page {
            Ok(page) => Ok(Ok(page)),
            Err(Error::NodeDamaged { what, .. }) => Ok(Err(what)),
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(Err(error.to_string())),
            Err(error) => Err(error),
        };
        let pages = pages.into_iter().map(page).collect::<Result<_>>()?;
        Ok(Self { root, pages })
    }

    /// Returns the size of the blocks.
    pub fn block_size(&self) -> BlockSize {
        self.root.block_size
    }

    /// Returns the size of the image.
    pub fn size_bytes(&self) -> u64 {
        self.root.size_bytes
    }

    /// Returns the names of the pages.
    pub fn pages(&self) -> &[NodeId] {
        &self.root.pages
    }

    /// Returns the names of the pages that could be read.
    pub fn good_pages(&self) -> impl Iterator<Item = NodeId> {
        let read = self.root.pages.iter().zip(&self.pages);
        read.filter(|(_, page)| page.is_ok()).map(|(id, _)| *id)
    }

    /// Returns the names of the pages that could not be read.
    pub fn bad_pages(&self) -> impl Iterator<Item = NodeId> {
        let read = self.root.pages.iter().zip(&self.pages);
        read.filter(|(_, page)| page.is_err()).map(|(id, _)| *id)
    }

    /// Returns the number of segments.
    pub fn segments(&self) -> usize {
        self.root.segments() as usize
    }

    /// Returns the names of segment `number`'s nodes; zero past the end. The error is that of a damaged page.
    pub fn segment(&self, number: usize) -> Result<Segment> {
        let page = number / PAGE_SEGMENTS;
        match self.pages.get(page) {
            Some(Ok(page)) => Ok(page.0.get(number % PAGE_SEGMENTS).copied().unwrap_or(Segment::ZERO)),
            Some(Err(what)) => Err(damaged(self.root.pages[page], what)),
            None => Ok(Segment::ZERO),
        }
    }

    /// Returns the number of slots of segment `number`.
    pub fn slots_in(&self, number: usize) -> usize {
        slots_in(self.block_size(), self.size_bytes(), number)
    }

    /// Cuts a range of segments at the end of the image.
    pub fn clamp(&self, numbers: Range<usize>) -> Range<usize> {
        numbers.start.min(self.segments())..numbers.end.min(self.segments())
    }
}
