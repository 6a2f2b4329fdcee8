//! Copies images between repositories that name things differently: the names of blocks are found by reading the blocks.
//!
//! Which name a block has there is known where a disk did not change since a backup that both have, and for blocks that were
//! read lately. Manifests are written again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use quick_cache::sync::Cache;

use super::blocks::{Fault, Mover, Piece, Task};
use crate::block::BlockIndex;
use crate::error::{Error, ErrorKind};
use crate::id::{BlockId, NodeId};
use crate::manifest::{Manifest, SEGMENT_SLOTS, Segment, SegmentSlots, Slot, damaged};
use crate::slots::{SlotReader, read_manifest, read_segments};
use crate::writer::{Base, ImageWriter};

/// Segments that are read in one call.
const SEGMENTS_AT_ONCE: usize = 16;

/// The largest image: 1 PiB with blocks of 1 MiB. A few bytes of a root may stand for any size, and each segment takes memory.
const MAX_SEGMENTS: usize = 1 << 20;

/// Blocks whose other names are remembered, about 100 bytes each.
const MAX_NAMES: usize = 200_000;

/// The other names of blocks that were read lately.
pub(super) struct Renamed {
    names: Cache<BlockId, BlockId>,
}

impl Default for Renamed {
    fn default() -> Self {
        Self {
            names: Cache::new(MAX_NAMES),
        }
    }
}

/// An earlier image of the disk: in both repositories.
struct Before<'a> {
    from: Manifest,
    to: Arc<Copy<'a>>,
}

/// The copy of an earlier image.
struct Copy<'a> {
    reader: SlotReader<'a>,
    /// Segments that were read, until the new manifest is compared with them.
    read: Mutex<BTreeMap<usize, Arc<SegmentSlots>>>,
}

impl Base for Copy<'_> {
    fn reader(&self) -> &SlotReader<'_> {
        &self.reader
    }

    fn segment(&self, number: usize) -> Option<Arc<SegmentSlots>> {
        let read = self.read.lock().remove(&number);
        // Each is asked for once.
        read.or_else(|| Some(Arc::new(self.reader.segments(number..number + 1).pop()?.ok()?)))
    }
}

type Indices = Vec<BlockIndex>;
type HandOut<'a> = dyn FnMut(Task<Indices>) -> std::result::Result<(), Fault> + 'a;

impl Renamed {
    /// Starts again with nothing.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Puts everything that an image needs, and returns the name of its manifest there. `before` are the names of an earlier
    /// manifest of the disk, in both repositories.
    pub(super) fn copy(
        &self,
        mover: &Mover<'_>,
        manifest: &Manifest,
        before: Option<(NodeId, NodeId)>,
    ) -> std::result::Result<NodeId, Fault> {
        if manifest.block_size() != mover.block_size {
            let root = manifest.pages().first().copied().unwrap_or(NodeId::ZERO);
            return Err(Fault::Backup(damaged(root, "its image has another block size")));
        }
        if manifest.segments() > MAX_SEGMENTS {
            return Err(Fault::Backup(Error::Store {
                kind: ErrorKind::Unsupported,
                doing: "copy an image",
                message:
                    "it is larger than 2^20 segments, which is too much to be copied to a repository with another key"
                        .into(),
            }));
        }
        let before = match before {
            Some((from, to)) => open(mover, from, to)?,
            None => None,
        };
        let base = before
            .as_ref()
            .map(|before| Arc::clone(&before.to) as Arc<dyn Base + '_>);
        let slots = ImageWriter::after(mover.to, mover.block_size, manifest.size_bytes(), base);
        let walk = Walk {
            mover,
            renamed: self,
            manifest,
            before: before.as_ref(),
            slots: &slots,
        };
        mover.work(|hand_out| walk.image(hand_out), &|pieces| walk.blocks(pieces))?;
        slots.finish().map_err(Fault::To)
    }
}

/// Opens an earlier image; `None` if one of its roots is damaged.
fn open<'a>(mover: &Mover<'a>, from: NodeId, to: NodeId) -> std::result::Result<Option<Before<'a>>, Fault> {
    let theirs = match read_manifest(mover.from, from) {
        Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(None),
        read => read.map_err(Fault::From)?,
    };
    let reader = match SlotReader::open(mover.to, to) {
        Err(error) if error.kind() == ErrorKind::Corrupt => return Ok(None),
        read => read.map_err(Fault::To)?,
    };
    let copy = Copy {
        reader,
        read: Mutex::default(),
    };
    Ok(Some(Before {
        from: theirs,
        to: Arc::new(copy),
    }))
}

struct Walk<'a> {
    mover: &'a Mover<'a>,
    renamed: &'a Renamed,
    manifest: &'a Manifest,
    before: Option<&'a Before<'a>>,
    slots: &'a ImageWriter<'a>,
}

impl Walk<'_> {
    fn image(&self, hand_out: &mut HandOut<'_>) -> std::result::Result<(), Fault> {
        let mut changed = Vec::new();
        for number in 0..self.manifest.segments() {
            let names = self.manifest.segment(number).map_err(Fault::Backup)?;
            if names == Segment::ZERO {
                let count = self.manifest.slots_in(number) as u64;
                self.slots.set_zero(first_of(number), count)?;
            } else if !self.keep(number, names)? {
                changed.push((number, names));
                if changed.len() == SEGMENTS_AT_ONCE {
                    self.segments(&std::mem::take(&mut changed), hand_out)?;
                }
            }
        }
        self.segments(&changed, hand_out)
    }

    /// Takes a segment over that did not change.
    fn keep(&self, number: usize, names: Segment) -> std::result::Result<bool, Fault> {
        let Some(before) = self.before else {
            return Ok(false);
        };
        let is_same = before.from.segment(number).is_ok_and(|before| before == names)
            && before.from.slots_in(number) == self.manifest.slots_in(number);
        Ok(is_same && self.slots.keep(number)?)
    }

    /// Reads segments, sets the slots whose other names are known, and hands out the blocks of the rest.
    fn segments(&self, segments: &[(usize, Segment)], hand_out: &mut HandOut<'_>) -> std::result::Result<(), Fault> {
        let counted = segments
            .iter()
            .map(|&(number, names)| (names, self.manifest.slots_in(number)));
        let read = read_segments(self.mover.from, &counted.collect::<Vec<_>>());
        let before = self.segments_before(segments)?;
        let mut unknown: HashMap<(BlockId, usize), Indices> = HashMap::new();
        for ((&(number, _), read), before) in segments.iter().zip(read).zip(before) {
            let slots = read.map_err(Fault::of_source)?.slots;
            for (inside, (index, id)) in (first_of(number).0..).map(BlockIndex).zip(&slots).enumerate() {
                let other = match id {
                    None => Some(None),
                    Some(id) => self.other_name(*id, inside, before.as_ref()).map(Some),
                };
                match (other, id) {
                    (Some(other), _) => self.slots.set(index, &[other])?,
                    (None, Some(id)) => {
                        let len = self.manifest.block_size().len_of(index, self.manifest.size_bytes());
                        unknown.entry((*id, len)).or_default().push(index);
                    }
                    (None, None) => {}
                }
            }
        }
        let piece = |((id, len), with)| Piece { id, len, with };
        let mut pieces: Vec<_> = unknown.into_iter().map(piece).collect();
        pieces.sort_by_key(|piece| piece.with.first().copied());
        self.mover.sort(&mut pieces)?;
        hand_out(Task::Blocks(pieces))
    }

    /// Returns the other name of a block, if it is known.
    fn other_name(&self, id: BlockId, inside: usize, before: Option<&[Vec<Slot>; 2]>) -> Option<BlockId> {
        let slot = |slots: &[Slot]| slots.get(inside).copied().flatten();
        let unchanged = before.filter(|[from, _]| slot(from) == Some(id));
        let of_before = unchanged.and_then(|[_, to]| slot(to));
        let other = of_before.or_else(|| self.renamed.names.get(&id))?;
        (!self.mover.is_condemned(other)).then_some(other)
    }

    /// Returns the slots that segments had before, in both repositories; `None` where they are of no use.
    fn segments_before(
        &self,
        segments: &[(usize, Segment)],
    ) -> std::result::Result<Vec<Option<[Vec<Slot>; 2]>>, Fault> {
        let Some(before) = self.before else {
            return Ok(segments.iter().map(|_| None).collect());
        };
        let theirs = before.to.reader.manifest();
        let names = |number: usize| {
            let count = self.manifest.slots_in(number);
            let is_alike = before.from.slots_in(number) == count && theirs.slots_in(number) == count;
            let names = (before.from.segment(number).ok()?, theirs.segment(number).ok()?);
            let is_useful = is_alike && names.0 != Segment::ZERO && names.1 != Segment::ZERO;
            is_useful.then_some((number, count, names))
        };
        let useful: Vec<_> = segments.iter().map(|(number, _)| names(*number)).collect();
        let (mut from, mut to) = (Vec::new(), Vec::new());
        for (_, count, names) in useful.iter().flatten() {
            from.push((names.0, *count));
            to.push((names.1, *count));
        }
        let mut from = read_segments(self.mover.from, &from).into_iter();
        let mut to = read_segments(self.mover.to, &to).into_iter();
        let slots = |useful: Option<(usize, usize, _)>| {
            let (number, ..) = useful?;
            // Both answers are taken, also after an error: a segment that can't be read is of no use.
            let (from, to) = (from.next()?.ok(), to.next()?.ok());
            let (from, to) = (from?, Arc::new(to?));
            before.to.read.lock().insert(number, Arc::clone(&to));
            Some([from.slots, to.slots.clone()])
        };
        Ok(useful.into_iter().map(slots).collect())
    }

    /// Reads blocks, puts those that the other store lacks, and sets their slots.
    fn blocks(&self, pieces: Vec<Piece<Indices>>) -> std::result::Result<(), Fault> {
        let sealed = self.mover.read(&pieces)?;
        let ids: Vec<_> = sealed.iter().map(|block| block.id).collect();
        let mut missing = self.mover.are_missing(&ids)?.into_iter();
        let mut put = sealed;
        put.retain(|_| missing.next().unwrap_or(true));
        self.mover.put(put)?;
        for (piece, other) in pieces.into_iter().zip(ids) {
            self.renamed.names.insert(piece.id, other);
            for index in piece.with {
                self.slots.set(index, &[Some(other)])?;
            }
        }
        Ok(())
    }
}

fn first_of(segment: usize) -> BlockIndex {
    BlockIndex(segment as u64 * SEGMENT_SLOTS as u64)
}
