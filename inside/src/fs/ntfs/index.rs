//! Directories: the index `$I30`, a B-tree of file names.
//!
//! A listing takes the blocks of the index in the order of the disk, because a damaged block then hides its own names
//! only. A search descends the tree.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use crate::device::{le16, le32, le64};
use crate::error::{Error, Result};
use crate::fs::runs::Source;
use crate::fs::{Entry, FileKind, Node, is_name, utf16};

use super::record::{Record, fix_up, number};
use super::stream::{Stream, Streams};
use super::{DATA, FIRST_USER_RECORD, node_of};

/// `AT_FILE_NAME`.
pub(super) const FILE_NAME: u32 = 0x30;
const INDEX_ROOT: u32 = 0x90;
const INDEX_ALLOCATION: u32 = 0xa0;
const BITMAP: u32 = 0xb0;
/// Name of the index, `$I30`.
const I30: &[u8] = b"$\0I\x003\x000\0";

/// Namespace of a name that is the DOS double of another one (`FILE_NAME_DOS`).
pub(super) const DOS: u8 = 2;

/// Number of `$UpCase`, and its length: a unit for each of 2^16.
const UPCASE: u64 = 10;
const UPCASE_BYTES: u64 = 128 << 10;

/// The node is not a leaf; the entry is the last one of its node (`INDEX_ENTRY_NODE`, `_END`).
const HAS_CHILD: u16 = 1;
const IS_LAST: u16 = 2;

/// `FILE_ATTR_DIRECTORY` of an index entry (`FILE_ATTR_I30_INDEX_PRESENT`), and `FILE_ATTR_REPARSE_POINT`, `_SYSTEM`.
const IS_DIRECTORY: u32 = 0x1000_0000;
const MAY_BE_SPECIAL: u32 = 0x404;

/// Deepest tree. A node has at least five entries, so that no volume needs more.
const MAX_DEPTH: usize = 24;

/// Returns the table that names are compared by; an empty one, which changes nothing, if it is damaged.
pub(super) fn read_upcase(streams: &Streams) -> Vec<u16> {
    let record = streams.record(UPCASE);
    let stream = record.and_then(|record| streams.stream(&record, DATA, &[]));
    let bytes = stream.and_then(|stream| stream.read_all(streams, UPCASE_BYTES));
    bytes.map(|bytes| utf16::units(&bytes).collect()).unwrap_or_default()
}

/// An entry of an index.
struct Found<'a> {
    reference: u64,
    flags: u16,
    /// A value of the type [`FILE_NAME`].
    key: &'a [u8],
    /// Number of the block with the names before this one.
    child: Option<u64>,
}

impl Found<'_> {
    fn units(&self) -> Vec<u16> {
        utf16::units(&self.key[66..]).collect()
    }

    /// Tests for a name that is shown.
    fn is_visible(&self) -> bool {
        self.flags & IS_LAST == 0 && self.key[65] != DOS && number(self.reference) >= FIRST_USER_RECORD
    }
}

/// Calls `each` for the entries of a node, which starts with its header (`struct INDEX_HEADER`), until one is damaged
/// or `each` breaks. Returns false for a damaged one.
fn entries<'a>(node: &'a [u8], each: &mut dyn FnMut(Found<'a>) -> ControlFlow<()>) -> bool {
    let Some(head) = node.get(..16) else {
        return false;
    };
    let used = le32(head, 4) as usize;
    let Some(mut rest) = node.get(le32(head, 0) as usize..used.min(node.len())) else {
        return false;
    };
    loop {
        let Some(head) = rest.get(..16) else {
            return false;
        };
        let (len, key_len, flags) = (usize::from(le16(head, 8)), usize::from(le16(head, 10)), le16(head, 12));
        let Some(entry) = rest.get(..len).filter(|entry| entry.len() >= 16) else {
            return false;
        };
        let child = if flags & HAS_CHILD == 0 {
            None
        } else {
            entry[16..].last_chunk()
        };
        if flags & HAS_CHILD != 0 && child.is_none() {
            return false;
        }
        let mut key: &[u8] = &[];
        if flags & IS_LAST == 0 {
            let whole = entry.get(16..16 + key_len).filter(|key| key.len() >= 66);
            let named = whole.and_then(|key| key.get(..66 + usize::from(key[64]) * 2));
            let Some(named) = named else {
                return false;
            };
            key = named;
        }
        let found = Found {
            reference: le64(head, 0),
            flags,
            key,
            child: child.copied().map(u64::from_le_bytes),
        };
        if each(found).is_break() || flags & IS_LAST != 0 {
            return true;
        }
        rest = &rest[len..];
    }
}

/// The index of a directory.
struct Index<'a> {
    streams: &'a Streams,
    root: Vec<u8>,
    /// Blocks, if there are any.
    blocks: Option<Stream>,
    block_bytes: u64,
    /// Unit of the numbers of blocks: a cluster, or 512 bytes if a block is smaller than a cluster.
    number_bytes: u64,
    number: u64,
}

impl<'a> Index<'a> {
    fn open(streams: &'a Streams, record: &Record) -> Result<Self> {
        if !record.is_directory() {
            return Err(Error::NotADirectory);
        }
        let bad = || Error::damaged(format!("file record {}: index root", record.number));
        let root = match streams.stream(record, INDEX_ROOT, I30) {
            Err(Error::NotFound) => return Err(bad()),
            root => root?.read_all(streams, 64 << 10)?,
        };
        if root.len() < 32 {
            return Err(bad());
        }
        let block_bytes = u64::from(le32(&root, 8));
        if !block_bytes.is_power_of_two() || !(512..=64 << 10).contains(&block_bytes) {
            return Err(bad());
        }
        let blocks = match streams.stream(record, INDEX_ALLOCATION, I30) {
            Err(Error::NotFound) => None,
            blocks => Some(blocks?),
        };
        let cluster_bytes = streams.cluster_bytes();
        Ok(Self {
            streams,
            root,
            blocks,
            block_bytes,
            number_bytes: if block_bytes < cluster_bytes {
                512
            } else {
                cluster_bytes
            },
            number: record.number,
        })
    }

    fn bad(&self, at_bytes: u64) -> Error {
        Error::damaged(format!("file record {}: index block at {at_bytes}", self.number))
    }

    /// Returns the block at an offset of the index.
    fn block(&self, blocks: &Stream, at_bytes: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.block_bytes as usize];
        blocks.read_at(self.streams, at_bytes, &mut bytes)?;
        let is_whole = fix_up(&mut bytes, b"INDX");
        if !is_whole || le64(&bytes, 16).checked_mul(self.number_bytes) != Some(at_bytes) {
            return Err(self.bad(at_bytes));
        }
        Ok(bytes)
    }
}

/// Calls `each` for every entry of a directory.
pub(super) fn list(streams: &Streams, record: &Record, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
    let index = Index::open(streams, record)?;
    let mut result = Ok(());
    let mut broken = false;
    let mut node = |node: &[u8], at_bytes: u64, result: &mut Result<()>| {
        let whole = entries(node, &mut |found| {
            if !found.is_visible() {
                return ControlFlow::Continue(());
            }
            let name = utf16::to_utf8(utf16::units(&found.key[66..]));
            if !is_name(&name) {
                *result = Err(index.bad(at_bytes));
                return ControlFlow::Continue(());
            }
            let attributes = le32(found.key, 56);
            let directory = attributes & IS_DIRECTORY != 0;
            let kind = if directory { FileKind::Directory } else { FileKind::File };
            let flow = each(Entry {
                name,
                node: node_of(found.reference),
                kind: (attributes & MAY_BE_SPECIAL == 0).then_some(kind),
            });
            broken = flow.is_break();
            flow
        });
        if !whole {
            *result = Err(index.bad(at_bytes));
        }
        if broken {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    if node(&index.root[16..], 0, &mut result).is_break() {
        return Ok(());
    }
    let Some(blocks) = &index.blocks else {
        return result;
    };
    let bitmap = streams.stream(record, BITMAP, I30).ok();
    // Runs may name the same clusters many times; a true index is never longer than the volume.
    let mut left_bytes = streams.pages.device().size_bytes();
    let mut at_bytes = 0;
    while at_bytes < blocks.size_bytes.min(blocks.runs.size_bytes()) {
        let Some((source, run_bytes)) = blocks.runs.at(at_bytes) else {
            break;
        };
        if !matches!(source, Source::Device(_)) {
            result = Err(index.bad(at_bytes));
            let next = at_bytes.checked_add(run_bytes);
            match next.and_then(|next| next.checked_next_multiple_of(index.block_bytes)) {
                Some(next) => at_bytes = next,
                None => break,
            }
            continue;
        }
        left_bytes = left_bytes
            .checked_sub(index.block_bytes)
            .ok_or_else(|| index.bad(at_bytes))?;
        if index.is_used(bitmap.as_ref(), at_bytes) {
            match index.block(blocks, at_bytes) {
                Ok(block) => {
                    if node(&block[24..], at_bytes, &mut result).is_break() {
                        return Ok(());
                    }
                }
                Err(error) => result = Err(error),
            }
        }
        at_bytes += index.block_bytes;
    }
    if blocks.runs.size_bytes() < blocks.size_bytes {
        result = Err(index.bad(at_bytes));
    }
    result
}

impl Index<'_> {
    /// Tests the bit of a block. Without the bitmap, all blocks count: those never used have no mark.
    fn is_used(&self, bitmap: Option<&Stream>, at_bytes: u64) -> bool {
        let bit = at_bytes / self.block_bytes;
        let mut byte = [0xff];
        if let Some(bitmap) = bitmap {
            let _ = bitmap.read_at(self.streams, bit / 8, &mut byte);
        }
        byte[0] >> (bit % 8) & 1 != 0
    }
}

/// Compares names as the index is sorted.
fn compare(left: &[u16], right: &[u16], upcase: &[u16]) -> Ordering {
    let up = |unit: &u16| upcase.get(usize::from(*unit)).copied().unwrap_or(*unit);
    left.iter().map(up).cmp(right.iter().map(up))
}

/// Finds a name: the exact one, or else one that Windows regards as the same. An error says that a part of the tree on
/// the way to it is damaged.
pub(super) fn find(streams: &Streams, record: &Record, name: &[u8], upcase: &[u16]) -> Result<Option<Node>> {
    let index = Index::open(streams, record)?;
    let Ok(text) = std::str::from_utf8(name) else {
        return Err(Error::damaged("name that is not UTF-8"));
    };
    let wanted: Vec<u16> = text.encode_utf16().collect();
    let mut other = None;
    let mut node = index.root.clone();
    let mut start = 16;
    for _ in 0..MAX_DEPTH {
        let mut exact = None;
        let mut child = None;
        let whole = entries(&node[start..], &mut |found| {
            child = found.child;
            if found.flags & IS_LAST != 0 {
                return ControlFlow::Break(());
            }
            let units = found.units();
            let order = compare(&units, &wanted, upcase);
            if order == Ordering::Equal && found.is_visible() {
                other = other.or(Some(found.reference));
                if units == wanted {
                    exact = Some(found.reference);
                    return ControlFlow::Break(());
                }
            }
            // Names that differ in case only are sorted by their units.
            if order.then_with(|| units.cmp(&wanted)) == Ordering::Greater {
                return ControlFlow::Break(());
            }
            child = None;
            ControlFlow::Continue(())
        });
        if let Some(reference) = exact {
            return Ok(Some(node_of(reference)));
        }
        if !whole {
            return Err(index.bad(0));
        }
        let Some(child) = child else {
            return Ok(other.map(node_of));
        };
        let at_bytes = child.checked_mul(index.number_bytes).ok_or_else(|| index.bad(0))?;
        let blocks = index.blocks.as_ref().ok_or_else(|| index.bad(at_bytes))?;
        node = index.block(blocks, at_bytes)?;
        start = 24;
    }
    Err(index.bad(0))
}
