//! Proves backups: reads every block that they name once, decodes it and checks its hash.
//!
//! Of the second and each later backup of a disk, only the blocks are looked up whose slots differ from the backup before: the
//! time of the walk follows what changed.
//!
//! Memory: 2 bytes per block of the store, 40 bytes per distinct segment, 64 KiB for each TiB of a guest's disks, two runs of
//! blocks per thread within 64 MiB, and the list of damaged ranges.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::backup::{Entry, Image};
use crate::block::{BlockIndex, BlockSize};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, NodeId};
use crate::manifest::{Manifest, SEGMENT_SLOTS, Segment, SegmentSlots, Slot};
use crate::name::GuestName;
use crate::pool;
use crate::reader::read_all;
use crate::runs::Runs;
use crate::slots::{Changed, read_before, read_manifests, read_segments};
use crate::store::places::PlaceNumbers;
use crate::store::{Distance, MOST_BASES_READ, Place, StoreReader};
use crate::verify::places::{BadBlocks, damaged_ranges};

mod places;
mod scope;

pub use scope::{MAX_PARTS, Scope};

/// Plain bytes that are read from a near store with one call: as many as RocksDB reads at once, see `store/rocks/reader/scan.rs`.
const NEAR_RUN_BYTES: usize = 2 << 20;

/// Threads beyond those that can compute, because some wait for a near disk.
const WAITING: usize = 4;

/// Images whose manifests are read in one call: 64 KiB each for a disk of a TiB.
const BATCH_IMAGES: usize = 16;

/// Segments that are read in one call, and whose blocks are looked up in one.
const BATCH_SEGMENTS: usize = 16;

/// Progress of a verification.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Backups whose blocks were all handed out.
    pub backups: u64,
    /// Blocks read and proved, or found damaged.
    pub blocks: u64,
    /// Their plain bytes.
    pub bytes: u64,
}

/// Range of a backup that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The backup, as `GUEST@TIME`.
    pub backup: String,
    /// The disk.
    pub disk: String,
    /// Offset on the disk.
    pub offset_bytes: u64,
    /// Bytes that may be lost: a block, or all blocks of a segment.
    pub len_bytes: u64,
    /// Description of the fault.
    pub what: String,
}

/// Result of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Blocks and bytes that were read.
    pub read: VerifyProgress,
    /// Every damaged range of every backup.
    pub damage: Vec<Damage>,
    /// The damaged or missing blocks behind it, and their plain length. Some may be named by no backup: others are stored as
    /// differences from them.
    pub bad_blocks: HashMap<BlockId, usize>,
    /// The damaged or missing nodes of manifests behind it. The blocks that they name are unknown.
    pub bad_nodes: HashSet<NodeId>,
    /// Blocks that were found damaged before and were read whole now.
    pub sound_again: Vec<BlockId>,
}

/// Returns the plain bytes that the backups stored anew: about as many as a verification of all blocks reads. Only an
/// estimate, because records may name any numbers.
pub fn expected_bytes(entries: &[Entry]) -> u64 {
    let new = entries.iter().map(|entry| entry.backup.new_bytes());
    new.fold(0, u64::saturating_add)
}

struct Findings<'a> {
    scope: &'a Scope,
    /// Blocks that a thread reads with one call of the store.
    run_blocks: usize,
    /// Blocks that were found damaged before.
    condemned: HashSet<BlockId>,
    /// Buffers for the plain bytes of a run: fewer than there are threads.
    spare: Mutex<Vec<Vec<u8>>>,
    blocks: Mutex<BadBlocks>,
    sound_again: Mutex<Vec<BlockId>>,
    blocks_read: AtomicU64,
    bytes_read: AtomicU64,
}

/// Verifies the blocks of `entries` in `scope`, with `threads` threads. `progress` is called now and then from the
/// caller's thread. Returns [`Error::Interrupted`] soon after `cancel` is set, and the error of a store that can't be
/// read at all; a damaged block or manifest is in the report instead.
pub fn verify(
    store: &dyn StoreReader,
    entries: &[Entry],
    scope: &Scope,
    threads: usize,
    progress: &dyn Fn(VerifyProgress),
    cancel: &AtomicBool,
) -> Result<VerifyReport> {
    let block_size = store.identity()?.block_size;
    let runs = Runs::new(block_size, store.distance(), threads + WAITING);
    let findings = Findings {
        scope,
        run_blocks: match store.distance() {
            Distance::Near => (NEAR_RUN_BYTES / block_size.bytes()).max(1),
            Distance::Far => runs.blocks,
        },
        condemned: store.condemned()?.into_iter().collect(),
        spare: Mutex::default(),
        blocks: Mutex::default(),
        sound_again: Mutex::default(),
        blocks_read: AtomicU64::new(0),
        bytes_read: AtomicU64::new(0),
    };
    let hand_out = |send: &mut dyn FnMut(Vec<(BlockId, usize)>) -> bool| {
        let mut walk = Walk::new(store, findings.run_blocks);
        walk.backups(entries, &mut |backups, blocks| {
            let batch = findings.sort_out(blocks);
            // A thread that fails leaves its own error, which counts.
            if cancel.load(Ordering::SeqCst) || !batch.is_empty() && !send(batch) {
                return Err(Error::Interrupted);
            }
            progress(findings.read(backups));
            Ok(())
        })?;
        Ok(walk.bad_nodes)
    };
    let check = |batch: Vec<_>| findings.check(store, &batch);
    let bad_nodes = pool::feed("vbk-verify", runs.workers, 2 * runs.workers, hand_out, &check)?;
    let read = findings.read(entries.len() as u64);
    let bad = std::mem::take(&mut *findings.blocks.lock());
    // A block that was read at two places counts as damaged if either of them is.
    let mut sound_again = std::mem::take(&mut *findings.sound_again.lock());
    sound_again.retain(|id| !bad.contains_key(id));
    Ok(VerifyReport {
        read,
        damage: damaged_ranges(store, entries, &bad, &bad_nodes, cancel)?,
        bad_blocks: bad.into_iter().map(|(id, (len, _))| (id, len)).collect(),
        bad_nodes,
        sound_again,
    })
}

impl Findings<'_> {
    /// Returns the blocks in scope that are stored, with their plain length, and notes those that are missing.
    fn sort_out(&self, blocks: &[Located]) -> Vec<(BlockId, usize)> {
        let mut stored = Vec::with_capacity(blocks.len());
        for &(id, len, place) in blocks {
            match place {
                None => self.note(id, len, &Error::BlockMissing(id)),
                Some(_) if self.scope.contains(id) => stored.push((id, len)),
                Some(_) => {}
            }
        }
        stored
    }

    /// Reads blocks and proves them.
    fn check(&self, store: &dyn StoreReader, run: &[(BlockId, usize)]) -> Result<()> {
        let mut buffer = self.spare.lock().pop().unwrap_or_default();
        buffer.resize(run.iter().map(|(_, len)| len).sum(), 0);
        let mut rest = &mut buffer[..];
        let mut wanted = Vec::with_capacity(run.len());
        for &(id, len) in run {
            let (plain, behind) = rest.split_at_mut(len);
            wanted.push((id, plain));
            rest = behind;
        }
        for (&(id, len), read) in run.iter().zip(read_all(store, &mut wanted)) {
            match read {
                Ok(()) if self.condemned.contains(&id) => self.sound_again.lock().push(id),
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.note(id, len, &error);
                    self.check_bases(store, id)?;
                }
                // An unreachable store says nothing about the block.
                Err(error) => return Err(error),
            }
            self.blocks_read.fetch_add(1, Ordering::Relaxed);
            self.bytes_read.fetch_add(len as u64, Ordering::Relaxed);
        }
        self.spare.lock().push(buffer);
        Ok(())
    }

    /// Notes which of the blocks that a damaged one is stored as a difference from are damaged. No backup need name them, so
    /// nothing else finds them; and until they are condemned, new differences and copies rely on them.
    fn check_bases(&self, store: &dyn StoreReader, id: BlockId) -> Result<()> {
        let locate = |id| match store.locate(&[id]) {
            // Damage to the index has been noted with the block.
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
            located => located.map(|mut located| located.pop().flatten()),
        };
        let mut next = locate(id)?.and_then(|located| located.base);
        for _ in 0..MOST_BASES_READ {
            let Some(base) = next.filter(|base| !self.blocks.lock().contains_key(base)) else {
                break;
            };
            let Some(located) = locate(base)? else { break };
            let mut plain = vec![0; (located.plain_bytes as usize).min(BlockSize::MAX.bytes())];
            match read_all(store, &mut [(base, &mut plain)]).swap_remove(0) {
                Err(error) if error.kind() == ErrorKind::Corrupt => self.note(base, plain.len(), &error),
                read => read?,
            }
            next = located.base;
        }
        Ok(())
    }

    fn note(&self, id: BlockId, len: usize, error: &Error) {
        self.blocks.lock().insert(id, (len, error.to_string()));
    }

    fn read(&self, backups: u64) -> VerifyProgress {
        VerifyProgress {
            backups,
            blocks: self.blocks_read.load(Ordering::Relaxed),
            bytes: self.bytes_read.load(Ordering::Relaxed),
        }
    }
}

type Located = (BlockId, usize, Option<Place>);

/// Walks manifests and hands out each block once, those of some segments at a time in the order of the store.
struct Walk<'a> {
    store: &'a dyn StoreReader,
    /// Blocks that are handed out at once. Workers that take neighbours read one part of the disk together.
    run_blocks: usize,
    /// The starts of the names of a segment's nodes: enough to tell segments apart.
    seen_segments: HashSet<[u8; 32]>,
    /// For each place in the store, a few bits of the id of the block that was handed out. If damage makes another block
    /// claim the same place, that one is handed out too, and found to be missing.
    seen: PlaceNumbers,
    bad_nodes: HashSet<NodeId>,
}

impl<'a> Walk<'a> {
    fn new(store: &'a dyn StoreReader, run_blocks: usize) -> Self {
        Self {
            store,
            run_blocks,
            seen_segments: HashSet::new(),
            seen: PlaceNumbers::default(),
            bad_nodes: HashSet::new(),
        }
    }

    /// Hands out the blocks of backups, each with the number of backups before it.
    fn backups(&mut self, entries: &[Entry], hand_out: &mut dyn FnMut(u64, &[Located]) -> Result<()>) -> Result<()> {
        let images = (0..).zip(entries).flat_map(|(number, entry)| {
            let images = entry.backup.stored();
            images.map(move |image| (number, &entry.backup.guest, image))
        });
        let images: Vec<(u64, &GuestName, &Image)> = images.collect();
        // The image before of each disk of a guest.
        let mut before: (Option<&GuestName>, HashMap<&str, Manifest>) = Default::default();
        for images in images.chunks(BATCH_IMAGES) {
            let ids: Vec<_> = images.iter().map(|(.., image)| image.manifest).collect();
            // Nothing to hand out: a chance to end the walk.
            hand_out(images[0].0, &[])?;
            for (&(number, guest, image), manifest) in images.iter().zip(read_manifests(self.store, &ids)) {
                if before.0.replace(guest) != Some(guest) {
                    before.1.clear();
                }
                match manifest {
                    Ok(manifest) => {
                        let of = before.1.remove(image.disk.as_str());
                        self.image(&manifest, of.as_ref(), &mut |blocks| hand_out(number, blocks))?;
                        before.1.insert(image.disk.as_str(), manifest);
                    }
                    Err(error) => self.bad([image.manifest], error)?,
                }
            }
        }
        Ok(())
    }

    /// Hands out the blocks of an image. `before` is one of the same disk, whose blocks were handed out.
    fn image(
        &mut self,
        manifest: &Manifest,
        before: Option<&Manifest>,
        hand_out: &mut dyn FnMut(&[Located]) -> Result<()>,
    ) -> Result<()> {
        let mut unseen = Vec::new();
        for number in 0..manifest.segments() {
            match manifest.segment(number) {
                Ok(Segment::ZERO) => {}
                Ok(names) if self.seen_segments.insert(start_of(names)) => unseen.push((number, names)),
                Ok(_) => {}
                Err(error) => self.bad([], error)?,
            }
        }
        for segments in unseen.chunks(BATCH_SEGMENTS) {
            let wanted: Vec<_> = segments
                .iter()
                .map(|&(number, names)| (names, manifest.slots_in(number)))
                .collect();
            let mut read = Vec::with_capacity(segments.len());
            for (&(number, names), segment) in segments.iter().zip(read_segments(self.store, &wanted)) {
                match segment {
                    Ok(segment) => read.push((number, names, segment)),
                    Err(error) => self.bad(names.nodes(), error)?,
                }
            }
            let blocks = self.changed_blocks(manifest, before, &read)?;
            self.hand_out_new(blocks, hand_out)?;
        }
        Ok(())
    }

    /// Returns the blocks of segments, without those that the same slots had `before`.
    fn changed_blocks(
        &self,
        manifest: &Manifest,
        before: Option<&Manifest>,
        read: &[(usize, Segment, SegmentSlots)],
    ) -> Result<Vec<(BlockId, usize)>> {
        // The same slot may stand for another length at the end of a disk of another size.
        let before = before.filter(|before| before.size_bytes() == manifest.size_bytes());
        let changed = |(number, names, read): &'_ (usize, Segment, SegmentSlots)| {
            let before = self.handed_out(before?, *number, read.slots.len())?;
            Some((*number, *names, before))
        };
        let changed: Vec<_> = read.iter().map(changed).collect();
        let wanted = read.iter().zip(&changed).filter_map(|((.., read), changed)| {
            let (_, names, before) = (*changed)?;
            Some(Changed { names, read, before })
        });
        let wanted: Vec<_> = wanted.collect();
        let mut answers = read_before(self.store, &wanted).into_iter();
        let mut blocks = Vec::new();
        for ((number, _, read), changed) in read.iter().zip(&changed) {
            let before = match changed.and_then(|_| answers.next()) {
                // It was whole when its blocks were handed out. Now all blocks of this one are looked up.
                Some(Err(error)) if error.kind() == ErrorKind::Corrupt => None,
                before => before.transpose()?,
            };
            blocks.extend(blocks_in(manifest, *number, &read.slots, before.as_deref()));
        }
        Ok(blocks)
    }

    /// Returns the names of a segment that was handed out, if it has so many slots.
    fn handed_out(&self, manifest: &Manifest, number: usize, slots: usize) -> Option<Segment> {
        let names = manifest.segment(number).ok()?;
        let is_bad = |id| self.bad_nodes.contains(&id);
        // What could not be read then was not handed out, even if it can be read now.
        (manifest.slots_in(number) == slots && names != Segment::ZERO && !names.nodes().any(is_bad)).then_some(names)
    }

    /// Hands out the blocks that were not handed out before.
    fn hand_out_new(
        &mut self,
        blocks: Vec<(BlockId, usize)>,
        hand_out: &mut dyn FnMut(&[Located]) -> Result<()>,
    ) -> Result<()> {
        let ids: Vec<_> = blocks.iter().map(|(id, _)| *id).collect();
        let places = self.store.locate(&ids)?;
        let mut blocks: Vec<Located> = blocks
            .into_iter()
            .zip(places)
            .map(|((id, len), located)| (id, len, located.map(|located| located.place)))
            .filter(|(id, _, place)| place.is_none_or(|place| self.is_new(*id, place)))
            .collect();
        blocks.sort_by_key(|(_, _, place)| *place);
        blocks.chunks(self.run_blocks).try_for_each(hand_out)
    }

    fn is_new(&mut self, id: BlockId, place: Place) -> bool {
        let seen = self.seen.at(place);
        let now = u16::from_le_bytes([id.0[30], id.0[31]]).max(1);
        std::mem::replace(seen, now) != now
    }

    /// Notes the node that an error names, or if it names none, those that were read.
    fn bad(&mut self, read: impl IntoIterator<Item = NodeId>, error: Error) -> Result<()> {
        match error {
            Error::NodeDamaged { id, .. } => self.bad_nodes.extend([id]),
            error if error.kind() == ErrorKind::Corrupt => self.bad_nodes.extend(read),
            // The walk notes damage and continues; another error, e.g. an unreachable store, ends it.
            error => return Err(error),
        }
        Ok(())
    }
}

/// Returns the blocks of a segment, with their plain length, but not those of slots that are as they were `before`.
fn blocks_in(manifest: &Manifest, number: usize, slots: &[Slot], before: Option<&[Slot]>) -> Vec<(BlockId, usize)> {
    let first = number as u64 * SEGMENT_SLOTS as u64;
    let len = |index| manifest.block_size().len_of(BlockIndex(index), manifest.size_bytes());
    let is_new = |slot: usize| before.is_none_or(|before| before.get(slot) != slots.get(slot));
    let blocks = (first..).zip(slots).enumerate().filter(|(slot, _)| is_new(*slot));
    blocks
        .filter_map(|(_, (index, slot))| slot.map(|id| (id, len(index))))
        .collect()
}

fn start_of(segment: Segment) -> [u8; 32] {
    let mut start = [0; 32];
    start[..16].copy_from_slice(&segment.full.0[..16]);
    start[16..].copy_from_slice(&segment.delta.0[..16]);
    start
}

#[cfg(test)]
mod tests;
