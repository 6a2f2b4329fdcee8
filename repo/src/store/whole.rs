//! Reads blocks as a whole: what is stored as a difference comes with the pages that it does not have from its base.
//!
//! This is the one place where content is read from a store: all that wants the bytes of blocks uses it. What wants them as they
//! are stored, to copy or to check them without a key, asks the store.
//!
//! A difference costs the header and the pages of its base that it needs, which are read for all wanted blocks with one more call.
//! While they are opened this takes twice the memory of the answer at most.

use super::checked;
use super::{Distance, MOST_BASES_READ, StoreReader, Stored, Wanted};
use crate::codec::{Compression, Over, Sealer, make_whole, over_base};
use crate::error::{Error, ErrorKind, Result};
use crate::id::BlockId;

/// Reads pages of blocks. Returns one result for each, in order, without a base.
pub fn get(store: &(impl StoreReader + ?Sized), wanted: &[Wanted]) -> Vec<Result<Stored>> {
    let mut answers = checked::get(store, wanted);
    complete(store, wanted, &mut answers);
    answers
}

/// Like [`get`], but the pages that come from bases are compressed again: for who passes them on.
pub fn get_compressed(store: &(impl StoreReader + ?Sized), wanted: &[Wanted]) -> Vec<Result<Stored>> {
    let mut answers = checked::get(store, wanted);
    complete_with(store, wanted, &mut answers, MOST_BASES_READ, true);
    answers
}

/// Makes what was read whole. The answers must be those to `wanted`, in order.
pub(crate) fn complete(store: &(impl StoreReader + ?Sized), wanted: &[Wanted], answers: &mut [Result<Stored>]) {
    complete_with(store, wanted, answers, MOST_BASES_READ, false);
}

fn complete_with(
    store: &(impl StoreReader + ?Sized),
    wanted: &[Wanted],
    answers: &mut [Result<Stored>],
    most_bases: usize,
    compresses: bool,
) {
    let (mut numbers, mut bases) = (Vec::new(), Vec::new());
    for (number, (wanted, answer)) in wanted.iter().zip(&mut *answers).enumerate() {
        let Ok(stored) = answer else { continue };
        let Some(id) = stored.base.take() else { continue };
        if let Some(mut pages) = over_base(&stored.header, &wanted.pages) {
            if store.distance() == Distance::Far {
                // It is kept on this host if it begins with the first page.
                pages.start = 0;
            }
            numbers.push(number);
            bases.push(Wanted { id, pages });
        }
    }
    if bases.is_empty() {
        return;
    }
    let mut sealer = compresses.then(|| Sealer::new(Compression::default()));
    for ((number, base), over) in numbers.into_iter().zip(&bases).zip(open(store, &bases, most_bases)) {
        let id = wanted[number].id;
        let first = wanted[number].pages.start;
        let sealer = sealer.as_mut().map(Result::as_mut).transpose();
        let Ok(stored) = &mut answers[number] else { continue };
        let made = sealer.map_err(|error| no_sealer(id, error)).and_then(|sealer| {
            let made =
                over.and_then(|over| make_whole(id, &mut stored.header, first, &mut stored.pages, &over, sealer));
            let Err(error) = made else { return Ok(()) };
            if error.kind() == ErrorKind::Corrupt {
                store.drop_copies(&[base.id], &[]);
                // A page that is not needed may be the damaged one.
                if base.pages.len() > 1 {
                    return by_pages(store, base.id, &wanted[number], stored, most_bases);
                }
            }
            Err(error)
        });
        if let Err(error) = made {
            answers[number] = Err(of_base(id, error));
        }
    }
}

/// Reads pages of bases, and opens them.
fn open(store: &(impl StoreReader + ?Sized), bases: &[Wanted], most_bases: usize) -> Vec<Result<Over>> {
    let mut read = match most_bases {
        0 => bases.iter().map(|base| Err(too_many(base.id))).collect(),
        _ => checked::get(store, bases),
    };
    complete_with(store, bases, &mut read, most_bases.saturating_sub(1), false);
    let open = |(base, read): (&Wanted, Result<Stored>)| {
        let read = read?;
        Over::open(store.hashing(), base.id, &read.header, base.pages.start, &read.pages)
    };
    bases.iter().zip(read).map(open).collect()
}

/// Makes the pages of one block whole one by one, so that only the pages of the base that they need must be.
fn by_pages(
    store: &(impl StoreReader + ?Sized),
    base: BlockId,
    wanted: &Wanted,
    stored: &mut Stored,
    most_bases: usize,
) -> Result<()> {
    for (number, page) in wanted.pages.clone().zip(&mut stored.pages) {
        let Some(pages) = over_base(&stored.header, &(number..number + 1)) else {
            continue;
        };
        let over = open(store, &[Wanted { id: base, pages }], most_bases).swap_remove(0)?;
        make_whole(
            wanted.id,
            &mut stored.header,
            number,
            std::slice::from_mut(page),
            &over,
            None,
        )?;
    }
    Ok(())
}

/// What is damaged is the block that was asked for, as far as its reader is concerned, who may not know the id of the base.
fn of_base(id: BlockId, error: Error) -> Error {
    let what = match error {
        Error::BlockDamaged { id: of, what } if of == id => what,
        Error::BlockDamaged { what, .. } => {
            format!("it is stored as a difference from a block that is damaged: {what}")
        }
        Error::BlockMissing(_) => "it is stored as a difference from a block that is missing".into(),
        error if error.kind() == ErrorKind::Corrupt => {
            format!("it is stored as a difference from a block that can't be read: {error}")
        }
        error => return error,
    };
    Error::BlockDamaged { id, what }
}

fn no_sealer(id: BlockId, error: &Error) -> Error {
    Error::Internal {
        doing: "compress a block",
        message: format!("{id}: {error}"),
    }
}

fn too_many(id: BlockId) -> Error {
    Error::BlockDamaged {
        id,
        what: format!("more than {MOST_BASES_READ} blocks depend on each other"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockSize, PAGE_BYTES};
    use crate::codec::{Header, Sealed};
    use crate::store::StoreWriter;
    use crate::store::memory::MemoryStore;
    use crate::tests::testing::noise;

    const PAGES: usize = 4;

    fn seal(store: &MemoryStore, plain: &[u8], over: Option<&Sealed>) -> Sealed {
        let hashes = store.hashing().block(plain);
        let mut sealer = Sealer::new(Compression::default()).expect("a sealer");
        let Some(over) = over else {
            return sealer.seal(plain, &hashes).expect("seals");
        };
        let over = Over::open(store.hashing(), over.id, &over.header, 0, &over.pages).expect("opens");
        let sealed = sealer.seal_over(plain, &hashes, &over, 1).expect("seals");
        sealed.expect("saves much")
    }

    #[test]
    fn a_damaged_page_of_a_base_costs_only_the_blocks_that_need_it() {
        let store = MemoryStore::new(BlockSize::DEFAULT);
        let before = noise(1, PAGES * PAGE_BYTES);
        // The second page has nothing in common with that of the base.
        let mut plain = before.clone();
        plain[PAGE_BYTES..2 * PAGE_BYTES].copy_from_slice(&noise(2, PAGE_BYTES));
        plain[3 * PAGE_BYTES] ^= 1;
        let mut other = before.clone();
        other[0] ^= 1;
        let base = seal(&store, &before, None);
        store.put(vec![base.clone()]).expect("puts");
        let [one, other] = [&plain, &other].map(|plain| seal(&store, plain, Some(&base)));
        store.put(vec![one.clone(), other.clone()]).expect("puts");
        store.damage(base.id, |sealed| sealed.pages[1][5] ^= 1);
        let wanted = [&one, &other].map(|block| Wanted {
            id: block.id,
            pages: 0..PAGES,
        });
        for read in [get, get_compressed] {
            let mut answers = read(&store, &wanted).into_iter();
            let stored = answers.next().expect("an answer").expect("it does not need that page");
            let header = Header::prove(store.hashing(), one.id, plain.len(), &stored.header).expect("proves");
            for (number, page) in stored.pages.iter().enumerate() {
                let mut out = vec![0; PAGE_BYTES];
                header.open_page(number, page, &mut out).expect("opens");
                assert!(out == plain[number * PAGE_BYTES..][..PAGE_BYTES], "{number}");
            }
            let error = answers.next().expect("an answer").expect_err("it needs that page");
            let is_of_it = matches!(&error, Error::BlockDamaged { id, .. } if *id == other.id);
            assert!(is_of_it, "{error}");
            let names_base = error.to_string().contains(&base.id.to_string());
            assert!(!names_base, "who reads the block may not know its base: {error}");
        }
    }
}
