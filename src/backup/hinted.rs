//! Takes over the blocks that a hint says are unchanged from the previous backup, after a sample of them was read and
//! found to be the same.
//!
//! The sample comes first: if one block of it has changed, nothing has been taken over yet, and the whole disk is read
//! as if there were no hint.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vbk_repo::backup::{Entry, Image};
use vbk_repo::block::{BlockIndex, BlockSize, is_zero};
use vbk_repo::id::BlockId;
use vbk_repo::manifest::Slot;

use super::{DiskCopy, Previous, Worker};
use crate::disk::source::Source;
use crate::error::Result;
use crate::hints::Hint;
use crate::hints::audit::Sample;
use crate::observer::{Counts, Event};

/// Progress of reading the sample.
#[derive(Default)]
pub(super) struct Audit {
    next_group: AtomicU64,
    wrong: AtomicBool,
}

/// Checks that a hint applies to the previous image and to the disk that is read now. The error is the reason why it
/// does not.
pub(super) fn check(
    hint: &Hint,
    known: Option<(&Entry, &Image)>,
    previous: Option<&Previous<'_>>,
    source: &Source,
    block_size: BlockSize,
) -> std::result::Result<(), &'static str> {
    let (Some((entry, image)), Some(previous)) = (known, previous) else {
        return Err("there is no earlier backup of it that change hints could refer to");
    };
    let sizes = [image.size_bytes, previous.size_bytes(), hint.unchanged.size_bytes()];
    if entry.id != hint.since {
        Err("the change hints refer to another backup than the latest")
    } else if sizes != [source.size_bytes(); 3] {
        Err("its size differs from that of the latest backup")
    } else if hint.unchanged.block_size() != block_size {
        Err("the change hints were made for blocks of another size")
    } else {
        Ok(())
    }
}

impl DiskCopy<'_> {
    /// Reads the sample. Drops the hint if one block of it has changed, and returns `true` then.
    pub(super) fn audit(&mut self) -> Result<bool> {
        if self.hint.is_none() {
            return Ok(false);
        }
        self.in_workers(Self::audit_some)?;
        let wrong = self.audit.wrong.load(Ordering::SeqCst);
        if wrong {
            self.hint = None;
        }
        Ok(wrong)
    }

    fn audit_some(&self, worker: &mut Worker<'_>) -> Result<()> {
        let Some((sample, previous)) = self.hint.map(Sample::of).zip(self.previous.as_ref()) else {
            return Ok(());
        };
        while self.continues(worker)? && !self.audit.wrong.load(Ordering::SeqCst) {
            let group = self.audit.next_group.fetch_add(1, Ordering::SeqCst);
            if group >= sample.groups() {
                break;
            }
            let slots = sample
                .block_of(group)
                .and_then(|index| Some((index, previous.slots(index, 1)?)));
            let Some((index, slots)) = slots else {
                continue;
            };
            let plain = self.read(index, &mut worker.buffers[0], worker.stop)?;
            self.count(Counts {
                read_bytes: plain.len() as u64,
                ..Counts::default()
            });
            let found = (!is_zero(plain)).then(|| self.hashing.block(plain).id);
            if slots != [found] && !self.audit.wrong.swap(true, Ordering::SeqCst) {
                let name = self.disk.name.as_str();
                self.job.observer.event(Event::HintsWrong { name });
                self.job.observer.event(Event::Warning(&format!(
                    "the change hints for disk {name} are WRONG: they say that the block at {} bytes is unchanged, but \
                     it is not. The whole disk is read instead, and hints are not used for it for some time. Earlier \
                     backups that were made with hints may lack changes; this points to a fault in the volume manager, \
                     the file system or vbk",
                    self.block_size.offset_of(index)
                )));
            }
        }
        Ok(())
    }

    /// Takes over the slots of blocks of one segment. Reads the blocks that can't be taken over: those that the store
    /// no longer has, or that were found damaged.
    pub(super) fn take_over(&self, first: BlockIndex, count: u64, worker: &mut Worker<'_>) -> Result<Counts> {
        let sample = self.hint.map(Sample::of);
        let slots = self
            .previous
            .as_ref()
            .and_then(|previous| previous.slots(first, count as usize));
        let (Some(sample), Some(slots)) = (sample, slots) else {
            return self.read_all(first, count, worker);
        };
        let known = self.known_lengths(&slots)?;
        let mut counts = Counts::default();
        let mut place = 0;
        while place < slots.len() {
            let index = |place: usize| BlockIndex(first.0 + place as u64);
            let len = |place: usize| self.block_size.len_of(index(place), self.source.size_bytes()) as u64;
            let good = |place: usize| match slots[place] {
                None => true,
                Some(id) => known.get(&id) == Some(&len(place)),
            };
            let is_good = good(place);
            let end = (place..slots.len())
                .find(|&place| good(place) != is_good)
                .unwrap_or(slots.len());
            if is_good {
                for (place, slot) in (place..).zip(&slots[place..end]) {
                    match slot {
                        None => counts.zero_bytes += len(place),
                        Some(_) => counts.unchanged_bytes += len(place),
                    }
                    if !sample.contains(index(place)) {
                        counts.skipped_bytes += len(place);
                    }
                }
                self.slots.set(index(place), &slots[place..end])?;
            } else {
                counts += self.read_all(index(place), (end - place) as u64, worker)?;
            }
            place = end;
        }
        Ok(counts)
    }

    /// Returns the plain lengths of the blocks that are stored and need not be stored again.
    fn known_lengths(&self, slots: &[Slot]) -> Result<HashMap<BlockId, u64>> {
        let mut ids: Vec<BlockId> = slots.iter().copied().flatten().collect();
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| !self.job.condemned.contains(id));
        let places = self.store.locate(&ids)?;
        let known = ids.into_iter().zip(places);
        Ok(known
            .filter_map(|(id, place)| Some((id, u64::from(place?.plain_bytes))))
            .collect())
    }

    /// Reads blocks, as many at a time as there are buffers.
    fn read_all(&self, first: BlockIndex, count: u64, worker: &mut Worker<'_>) -> Result<Counts> {
        let mut counts = Counts::default();
        let mut done = 0;
        while done < count && self.continues(worker)? {
            let now = (count - done).min(self.runs.blocks as u64);
            // No comparison with the previous backup: the store may no longer have the blocks that it names.
            counts += self.back_up(BlockIndex(first.0 + done), now, None, worker)?;
            done += now;
        }
        Ok(counts)
    }
}
