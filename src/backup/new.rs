//! Stores the blocks that the previous backup lacks, unless the repository has them.

use vbk_repo::block::BlockHashes;
use vbk_repo::differences::{New, bases, put, seal, step_bytes};
use vbk_repo::id::BlockId;
use vbk_repo::manifest::Slot;

use super::{DiskCopy, Worker};
use crate::error::Result;
use crate::observer::Counts;

/// A block of a run that the previous backup lacks at its place.
pub(super) struct Candidate {
    /// Number of its buffer.
    pub(super) number: usize,
    pub(super) len: usize,
    pub(super) hashes: BlockHashes,
    /// The block that the previous backup has there.
    pub(super) before: Slot,
}

impl DiskCopy<'_> {
    /// Stores those candidates that the repository does not have.
    pub(super) fn store_new(
        &self,
        mut candidates: Vec<Candidate>,
        worker: &Worker<'_>,
        counts: &mut Counts,
    ) -> Result<()> {
        while !candidates.is_empty() {
            let ids: Vec<BlockId> = candidates.iter().map(|candidate| candidate.hashes.id).collect();
            let taken = self.job.writer.storing().take(&ids);
            let (mine, others): (Vec<_>, Vec<_>) = candidates
                .into_iter()
                .partition(|candidate| taken.has(candidate.hashes.id));
            self.store_taken(&mine, worker, counts)?;
            // These are looked up when the thread that has them now is done.
            candidates = others;
        }
        Ok(())
    }

    fn store_taken(&self, candidates: &[Candidate], worker: &Worker<'_>, counts: &mut Counts) -> Result<()> {
        let ids: Vec<BlockId> = candidates.iter().map(|candidate| candidate.hashes.id).collect();
        let places = self.store.locate(&ids)?;
        let mut new: Vec<&Candidate> = Vec::new();
        for (candidate, place) in candidates.iter().zip(places) {
            let id = candidate.hashes.id;
            let is_stored = place.is_some() && !self.job.condemned.contains(&id);
            match is_stored || new.iter().any(|block| block.hashes.id == id) {
                true => counts.unchanged_bytes += candidate.len as u64,
                false => new.push(candidate),
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        let condemned = &self.job.condemned;
        let blocks = new.iter().map(|block| New {
            plain: &worker.buffers[block.number].as_slice()[..block.len],
            hashes: &block.hashes,
            before: block.before.filter(|_| !condemned.contains(&block.hashes.id)),
        });
        let blocks: Vec<_> = blocks.collect();
        let bases = bases(self.store, condemned, &blocks)?;
        let step_bytes = step_bytes(self.job.writer.identity());
        let sealed = self.job.seal(|sealer| seal(sealer, step_bytes, &blocks, &bases))?;
        let whole = || {
            let none: Vec<_> = blocks.iter().map(|_| None).collect();
            self.job.seal(|sealer| seal(sealer, step_bytes, &blocks, &none))
        };
        counts.stored_bytes += put(self.store, sealed, whole)?;
        counts.new_bytes += new.iter().map(|block| block.len as u64).sum::<u64>();
        Ok(())
    }
}
