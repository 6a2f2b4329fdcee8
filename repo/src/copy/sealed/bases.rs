//! Puts what differences depend on before them.

use std::collections::BTreeSet;

use super::Job;
use crate::copy::blocks::{Fault, Piece};
use crate::error::{Error, ErrorKind};
use crate::id::BlockId;
use crate::store::{Located, MOST_BASES, MOST_BASES_READ};

impl Job<'_> {
    /// Puts blocks, and before them what they are differences from and the other store lacks.
    pub(super) fn put_run(&self, pieces: &[Piece<Located>]) -> std::result::Result<(), Fault> {
        let mut runs = vec![pieces.to_vec()];
        while let Some(mut bases) = runs.last().map(|run| bases_of(run)).filter(|bases| !bases.is_empty()) {
            let mut missing = self.mover.are_missing(&bases)?.into_iter();
            bases.retain(|_| missing.next().unwrap_or(true));
            // Each is a difference from one that has fewer below it.
            if bases.is_empty() || runs.len() > MOST_BASES {
                break;
            }
            let located = self.from.locate(&bases).map_err(Fault::of_source)?;
            let piece = |(id, located): (BlockId, Option<Located>)| match located {
                Some(with) => Ok(Piece {
                    id,
                    len: with.stored_bytes as usize,
                    with,
                }),
                None => Err(Fault::Backup(Error::BlockMissing(id))),
            };
            runs.push(
                bases
                    .into_iter()
                    .zip(located)
                    .map(piece)
                    .collect::<std::result::Result<_, _>>()?,
            );
        }
        runs.into_iter().rev().try_for_each(|run| {
            self.check_no_circle(&run)?;
            match self.mover.put(self.read(&run)?) {
                // Too many blocks depend on each other.
                Err(Fault::To(error)) if error.kind() == ErrorKind::Corrupt => Err(Fault::Backup(error)),
                put => put,
            }
        })
    }

    /// An error if a difference can't take the place of its damaged block there, because its base depends on that one there.
    fn check_no_circle(&self, pieces: &[Piece<Located>]) -> std::result::Result<(), Fault> {
        let replaced = pieces.iter().filter(|piece| self.mover.is_condemned(piece.id));
        let mut bases: Vec<_> = replaced
            .filter_map(|piece| Some((piece.id, piece.with.base?)))
            .collect();
        for _ in 0..MOST_BASES_READ {
            if let Some((id, _)) = bases.iter().find(|(id, base)| id == base) {
                return Err(Fault::Backup(Error::BlockDamaged {
                    id: *id,
                    what: "here it is a difference from a block that depends on it there; copy with the key, or repair there".into(),
                }));
            }
            if bases.is_empty() {
                break;
            }
            let ids: Vec<_> = bases.iter().map(|(_, base)| *base).collect();
            let located = self.mover.to.locate(&ids).map_err(Fault::To)?;
            let below = bases
                .iter()
                .zip(located)
                .filter_map(|((id, _), there)| Some((*id, there?.base?)));
            bases = below.collect();
        }
        Ok(())
    }
}

/// Returns the blocks that some blocks are differences from, each once.
fn bases_of(pieces: &[Piece<Located>]) -> Vec<BlockId> {
    let bases: BTreeSet<_> = pieces.iter().filter_map(|piece| piece.with.base).collect();
    bases.into_iter().collect()
}
