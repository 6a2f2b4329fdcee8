//! Seals the new blocks of a backup: as differences from what was at the same offset of the disk before, where that saves much.
//!
//! The base is the block of the earlier backup, or, if that is a difference, the block that it is one from: so it is a whole block,
//! and no chain grows from day to day. A base is read back for this; a page is read only if it changed. It is not a condemned one,
//! and one that turns out to be damaged is not used.
//!
//! Only a store that is near takes differences ([`StoreWriter::takes_differences`]). From a far one, each changed block would have
//! to travel here first.
//!
//! The look-up of a base keeps it from removal until the session ends, see `store/rocks/sessions.rs`.
//!
//! Memory: the changed pages of the bases of the blocks that are sealed at once.

use std::collections::HashSet;
use std::ops::Range;

use crate::block::BlockHashes;
use crate::codec::{Over, Sealed, Sealer};
use crate::error::{Error, ErrorKind, Result};
use crate::id::BlockId;
use crate::store::encrypted::rows::STEP_BYTES;
use crate::store::{Identity, Located, StoreWriter, Wanted, whole};

/// A block that is to be stored.
#[derive(Debug, Clone, Copy)]
pub struct New<'a> {
    /// Its plain bytes.
    pub plain: &'a [u8],
    /// Their hashes.
    pub hashes: &'a BlockHashes,
    /// The block that was in its place before. `None` if it must be stored as a whole: because it takes the place of a damaged
    /// block, on which others may depend.
    pub before: Option<BlockId>,
}

/// Reads what blocks, which `store` lacks, may be stored as differences from. `condemned` are its condemned blocks.
pub fn bases(store: &dyn StoreWriter, condemned: &HashSet<BlockId>, new: &[New<'_>]) -> Result<Vec<Option<Over>>> {
    match store.takes_differences() {
        true => bases_of(store, condemned, new),
        false => Ok(new.iter().map(|_| None).collect()),
    }
}

/// Seals blocks, in order, with their [`bases`]. They take room in steps of `step_bytes`, see [`step_bytes`].
pub fn seal(sealer: &mut Sealer, step_bytes: usize, new: &[New<'_>], bases: &[Option<Over>]) -> Result<Vec<Sealed>> {
    let seal = |(new, base): (&New<'_>, &Option<Over>)| {
        let difference = match base {
            Some(base) => sealer.seal_over(new.plain, new.hashes, base, step_bytes)?,
            None => None,
        };
        difference.map_or_else(|| sealer.seal(new.plain, new.hashes), Ok)
    };
    new.iter().zip(bases).map(seal).collect()
}

/// Puts blocks, and returns their stored bytes. Those that were sealed as differences are put as `whole` seals them, with all others,
/// if a verification has found a base damaged meanwhile.
pub fn put<E: From<Error>>(
    store: &dyn StoreWriter,
    sealed: Vec<Sealed>,
    whole: impl FnOnce() -> std::result::Result<Vec<Sealed>, E>,
) -> std::result::Result<u64, E> {
    let stored_bytes = |sealed: &[Sealed]| sealed.iter().map(Sealed::stored_bytes).sum();
    let (bytes, has_bases) = (stored_bytes(&sealed), sealed.iter().any(|block| block.base.is_some()));
    match store.put(sealed) {
        Err(Error::BlockMissing(_)) if has_bases => {
            let sealed = whole()?;
            let bytes = stored_bytes(&sealed);
            store.put(sealed)?;
            Ok(bytes)
        }
        put => Ok(put.map(|()| bytes)?),
    }
}

/// Returns the steps in which the blocks of a repository take room.
pub fn step_bytes(identity: &Identity) -> usize {
    match identity.is_encrypted() {
        true => STEP_BYTES,
        false => 1,
    }
}

/// Reads the bases of blocks, with the pages that these do not have in common with them.
fn bases_of(store: &dyn StoreWriter, condemned: &HashSet<BlockId>, new: &[New<'_>]) -> Result<Vec<Option<Over>>> {
    let bases = whole_before(store, condemned, new)?;
    // The headers first: they tell which pages changed.
    let headers = read(
        store,
        &bases.iter().map(|base| Some(((*base)?, 0..0))).collect::<Vec<_>>(),
    )?;
    let changed = bases.iter().zip(headers).zip(new).map(|((base, header), new)| {
        let pages = header?.differing(new.plain.len(), new.hashes)?;
        Some(((*base)?, pages))
    });
    read(store, &changed.collect::<Vec<_>>())
}

/// Reads blocks; `None` for one that is damaged, or may not be read.
fn read(store: &dyn StoreWriter, wanted: &[Option<(BlockId, Range<usize>)>]) -> Result<Vec<Option<Over>>> {
    let all = wanted.iter().flatten().cloned();
    let all: Vec<_> = all.map(|(id, pages)| Wanted { id, pages }).collect();
    if all.is_empty() {
        return Ok(wanted.iter().map(|_| None).collect());
    }
    let mut stored = whole::get(store, &all).into_iter();
    let open = |wanted: &Option<(BlockId, Range<usize>)>| {
        let Some((id, pages)) = wanted else { return Ok(None) };
        let missing = || Err(Error::BlockMissing(*id));
        let opened = stored
            .next()
            .unwrap_or_else(missing)
            .and_then(|stored| Over::open(store.hashing(), *id, &stored.header, pages.start, &stored.pages));
        match opened {
            Ok(over) => Ok(Some(over)),
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Denied) => Ok(None),
            Err(error) => Err(error),
        }
    };
    wanted.iter().map(open).collect()
}

/// Returns the whole block that each block may be stored as a difference from.
fn whole_before(
    store: &dyn StoreWriter,
    condemned: &HashSet<BlockId>,
    new: &[New<'_>],
) -> Result<Vec<Option<BlockId>>> {
    let before: Vec<_> = new.iter().map(|new| new.before).collect();
    let located = look_up(store, &before)?;
    let below: Vec<_> = located.iter().map(|located| located.as_ref()?.base).collect();
    // A copy without the key may have put one that is a difference again.
    let is_whole = look_up(store, &below)?
        .into_iter()
        .map(|located| located.is_some_and(|located| located.base.is_none()));
    let found = before.into_iter().zip(located);
    let bases = found
        .zip(below)
        .zip(is_whole)
        .map(|(((before, located), below), is_whole)| {
            located?;
            let base = match below {
                Some(below) => Some(below).filter(|_| is_whole),
                None => before,
            };
            // A difference that is known to be damaged may be so because of its base, of which only a part is read here.
            let is_good = |id: &BlockId| !condemned.contains(id);
            base.filter(is_good).filter(|_| before.as_ref().is_none_or(is_good))
        });
    Ok(bases.collect())
}

/// Looks up those blocks that there are.
fn look_up(store: &dyn StoreWriter, ids: &[Option<BlockId>]) -> Result<Vec<Option<Located>>> {
    let all: Vec<_> = ids.iter().flatten().copied().collect();
    let mut located = match &all[..] {
        [] => Vec::new(),
        all => store.locate(all)?,
    }
    .into_iter();
    Ok(ids.iter().map(|id| id.and_then(|_| located.next().flatten())).collect())
}

#[cfg(test)]
mod tests;
