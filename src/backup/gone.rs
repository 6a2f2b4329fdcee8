//! Blocks that were stored for a backup and are gone before its record could be committed: another process has the repository
//! open now, and never had them.
//!
//! The manifests of this backup name the places of its blocks, so only those blocks are read again. If a part of a manifest is
//! gone, or a block is named a second time because the disk has other bytes there now, the disks are read again in whole.

use std::collections::HashSet;

use vbk_repo::backup::Image;
use vbk_repo::block::BlockIndex;
use vbk_repo::id::{BlockId, NodeId};
use vbk_repo::manifest::SEGMENT_SLOTS;
use vbk_repo::slots::SlotReader;

use super::{DiskCopy, DiskPlan, Job, Worker, copy_disks};
use crate::disk::source::Source;
use crate::error::{Error, Result};
use crate::observer::{Counts, Event};

/// Segments of a manifest that are read in one call: 2.2 MiB.
const SEGMENTS: usize = 64;

/// Stores again what is gone.
pub(super) fn store_again(
    job: &mut Job<'_>,
    sources: &[(&DiskPlan, Source)],
    images: &mut Vec<Image>,
    counts: &mut Counts,
    blocks: Vec<BlockId>,
    nodes: &[NodeId],
) -> Result<()> {
    let only_blocks = nodes.is_empty() && blocks.iter().all(|id| !job.condemned.contains(id));
    job.observer.event(Event::Note(&format!(
        "{} blocks and {} parts of manifests that were stored for this backup are gone, because the process that has the repository \
         open was restarted; {} again",
        blocks.len(),
        nodes.len(),
        match only_blocks {
            true => "these blocks are read",
            false => "the disks are read",
        }
    )));
    // From now on they are put whatever the store says, those of files too.
    job.condemned.extend(&blocks);
    if !only_blocks {
        // Nothing counts as known that is not found in the store.
        job.previous = None;
        *counts = counts.to_read_again();
        *images = copy_disks(job, sources, counts)?;
        return Ok(());
    }
    let mut gone: HashSet<BlockId> = blocks.into_iter().collect();
    for ((disk, source), image) in sources.iter().zip(images) {
        let copy = DiskCopy::new(job, disk, source);
        counts.read_bytes += copy.store_again(image, &mut gone)?;
    }
    Ok(())
}

impl DiskCopy<'_> {
    /// Puts the blocks of this disk that are among `gone`, and takes them out of there. Returns the bytes that were read.
    fn store_again(&self, image: &Image, gone: &mut HashSet<BlockId>) -> Result<u64> {
        let stop = std::sync::atomic::AtomicBool::new(false);
        let mut worker = Worker::new(self, &stop);
        let slots = SlotReader::open(self.store, image.manifest)?;
        let manifest = slots.manifest();
        // What is as it was at the previous backup is there.
        let before = |number| self.previous.as_ref()?.names(number);
        let changed: Vec<usize> = (0..manifest.segments())
            .filter(|number| manifest.segment(*number).ok() != before(*number))
            .collect();
        let mut read_bytes = 0;
        for run in changed.chunk_by(|one, next| one + 1 == *next) {
            for numbers in run.chunks(SEGMENTS) {
                let range = numbers[0]..numbers[0] + numbers.len();
                for (number, segment) in numbers.iter().zip(slots.segments(range)) {
                    for (inside, slot) in segment?.slots.into_iter().enumerate() {
                        if !slot.is_some_and(|id| gone.contains(&id)) {
                            continue;
                        }
                        if self.is_stopped() {
                            return Err(Error::Interrupted);
                        }
                        let index = BlockIndex((number * SEGMENT_SLOTS + inside) as u64);
                        let plain = self.read(index, &mut worker.buffers[0], &stop)?;
                        read_bytes += plain.len() as u64;
                        let hashes = self.hashing.block(plain);
                        // Not if the disk is one that changes while it is read.
                        if gone.remove(&hashes.id) {
                            let sealed = self.job.seal(|sealer| sealer.seal(plain, &hashes))?;
                            self.store.put(vec![sealed])?;
                        }
                    }
                }
            }
        }
        Ok(read_bytes)
    }
}
