//! Walks the manifests of backups: finds everything that they name.
//!
//! Each segment is read once, however many backups share it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backup::{Entry, Image};
use crate::catalogue::Catalogue;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{BlockId, SegmentId};
use crate::manifest::{Root, SEGMENT_SLOTS, decode_segment};
use crate::mark::stored_ids::Collected;
use crate::pool;
use crate::store::checked::segments;
use crate::store::places::Places;
use crate::store::{Distance, Live, Located, StoreReader};

mod stored_ids;

/// Segments that go to a thread at once: 512 KiB of ids.
const BATCH_SEGMENTS: usize = 16;

/// Threads that wait for a far store at the same time.
const FAR_THREADS: usize = 8;

/// Roots that are read at once: 32 KiB each for a disk of a TiB.
const BATCH_ROOTS: usize = 64;

/// Finds everything that the backups of a catalogue name. Fails with kind Corrupt if it can't read what one of them names, or if
/// a single named block is missing from the index: then a block that was not found is not proved to be unused.
///
/// Reads the index three times in its own order, because looking each block up would be a random read. Memory: 40 bytes per
/// distinct segment, and 5 bytes per block of the store.
pub fn mark(store: &dyn StoreReader, catalogue: &Catalogue, threads: usize, cancel: &AtomicBool) -> Result<Live> {
    if let Some(damaged) = catalogue.damaged().first() {
        return Err(Error::CantTellUnused {
            what: damaged.to_string(),
        });
    }
    let marked = mark_all(store, catalogue, threads, cancel);
    marked.map_err(|error| match error.kind() {
        ErrorKind::Corrupt => Error::CantTellUnused {
            what: error.to_string(),
        },
        _ => error,
    })
}

fn mark_all(store: &dyn StoreReader, catalogue: &Catalogue, threads: usize, cancel: &AtomicBool) -> Result<Live> {
    let survey = |each: &mut dyn FnMut(BlockId, Located)| {
        store.survey(&mut |id, located| {
            each(id, located);
            match cancel.load(Ordering::Relaxed) {
                true => Err(Error::Interrupted),
                false => Ok(()),
            }
        })
    };
    let mut stored = 0;
    survey(&mut |_, _| stored += 1)?;
    let mut ids = Collected::with_room_for(stored);
    survey(&mut |id, _| ids.add(&id))?;
    let stored = ids.finish();
    let images: Vec<&Image> = catalogue.entries().iter().flat_map(images_of).collect();
    let segments = each_segment(store, &images, threads, cancel, &|ids| {
        match ids.iter().find(|id| !stored.name(id)) {
            None => Ok(()),
            // The index lost its row: the block itself may be there still, and a repair can bring it back.
            Some(id) => Err(Error::BlockMissing(*id)),
        }
    })?;
    let mut places = Places::default();
    survey(&mut |id, located| {
        if stored.is_named(&id) {
            places.insert(located.place);
        }
    })?;
    Ok(Live { places, segments })
}

/// The images of a backup and its files.
pub(crate) fn images_of(entry: &Entry) -> impl Iterator<Item = &Image> {
    entry.backup.stored()
}

/// Gives the blocks of each distinct segment of `images` to `each`, which is called from several threads. Gives the
/// names of all roots and segments. The first error, also of damage, ends it.
pub(crate) fn each_segment(
    store: &dyn StoreReader,
    images: &[&Image],
    threads: usize,
    cancel: &AtomicBool,
    each: &(dyn Fn(&[BlockId]) -> Result<()> + Sync),
) -> Result<HashSet<SegmentId>> {
    let hand_out = |send: &mut dyn FnMut(Vec<(SegmentId, usize)>) -> bool| {
        let mut seen = HashSet::new();
        let manifests: Vec<_> = images
            .iter()
            .map(|image| image.manifest)
            .filter(|manifest| seen.insert(*manifest))
            .collect();
        let mut batch = Vec::new();
        for manifests in manifests.chunks(BATCH_ROOTS) {
            for root in roots(store, manifests) {
                let root = root?;
                for (number, &segment) in root.segments.iter().enumerate() {
                    if segment == SegmentId::ZERO || !seen.insert(segment) {
                        continue;
                    }
                    batch.push((segment, root.slots_in(number)));
                    // A thread that fails leaves its own error, which counts.
                    if batch.len() == BATCH_SEGMENTS
                        && (cancel.load(Ordering::SeqCst) || !send(std::mem::take(&mut batch)))
                    {
                        return Err(Error::Interrupted);
                    }
                }
            }
        }
        send(batch);
        Ok(seen)
    };
    let threads = match store.distance() {
        Distance::Near => threads,
        Distance::Far => threads.max(FAR_THREADS),
    };
    pool::feed("vbk-mark", threads, 2 * threads, hand_out, &|batch: Vec<_>| {
        batch_of(store, &batch, each)
    })
}

/// Reads and proves roots with one call of the store.
fn roots(store: &dyn StoreReader, ids: &[SegmentId]) -> Vec<Result<Root>> {
    let decode = |(bytes, &id): (Result<Vec<u8>>, &SegmentId)| Root::decode(store.hashing(), id, &bytes?);
    segments(store, ids).into_iter().zip(ids).map(decode).collect()
}

fn batch_of(
    store: &dyn StoreReader,
    batch: &[(SegmentId, usize)],
    each: &(dyn Fn(&[BlockId]) -> Result<()> + Sync),
) -> Result<()> {
    let ids: Vec<_> = batch.iter().map(|(id, _)| *id).collect();
    let mut blocks = Vec::with_capacity(batch.len() * SEGMENT_SLOTS);
    for (&(id, count), bytes) in batch.iter().zip(segments(store, &ids)) {
        blocks.extend(
            decode_segment(store.hashing(), id, count, &bytes?)?
                .into_iter()
                .flatten(),
        );
    }
    each(&blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Hashing;
    use crate::codec::Sealed;
    use crate::store::StoreManager;
    use crate::store::memory::MemoryStore;
    use crate::store::{Record, StoreWriter, Thrift};
    use crate::tests::testing::{SMALL, backup, mixed_bytes, store_image};
    use crate::writer::SlotReader;

    static CANCEL: AtomicBool = AtomicBool::new(false);

    fn commit(store: &MemoryStore, time: &str, plain: &[u8]) -> Image {
        let image = store_image(store, "vda", plain);
        let backup = backup("web1", time, vec![image.clone()]);
        let record = Record {
            key: backup.spec(),
            bytes: backup.encode(),
        };
        store.commit(&record).expect("commits");
        image
    }

    fn marked(store: &MemoryStore) -> Result<Live> {
        mark(store, &Catalogue::load(store).expect("loads"), 2, &CANCEL)
    }

    #[test]
    fn what_backups_name_is_live_and_the_rest_is_swept() {
        let store = MemoryStore::new(SMALL);
        let (first, second) = (mixed_bytes(1, 5 << 20), mixed_bytes(2, 5 << 20));
        commit(&store, "2026-11-20T05-54-00Z", &first);
        let image = commit(&store, "2026-11-21T05-54-00Z", &second);
        let all = marked(&store).expect("marks");
        store
            .amend(&["web1@2026-11-20T05-54-00Z".into()], &[])
            .expect("forgets");
        let live = marked(&store).expect("marks");
        assert!(live.segments.len() < all.segments.len());
        let thrift = Thrift {
            max_unused: 0.0,
            dry_run: false,
        };
        let swept = store.retain(&live, thrift, &mut |_| Ok(())).expect("sweeps");
        assert!(swept.removed_blocks > 0 && swept.live_blocks > 0, "{swept:?}");
        let slots = SlotReader::open(&store, image.manifest)
            .expect("opens")
            .segment(0)
            .expect("reads");
        let ids: Vec<_> = slots.into_iter().flatten().collect();
        assert!(store.locate(&ids).expect("locates").iter().all(Option::is_some));
        assert_eq!(
            store
                .retain(&live, thrift, &mut |_| Ok(()))
                .expect("sweeps")
                .removed_blocks,
            0
        );
    }

    #[test]
    fn one_index_row_that_is_lost_stops_a_prune_however_much_is_unused() {
        let store = MemoryStore::new(SMALL);
        let mut named = Vec::new();
        let image = commit(&store, "2026-11-20T05-54-00Z", &mixed_bytes(1, 1 << 20));
        let reader = SlotReader::open(&store, image.manifest).expect("opens");
        named.extend(reader.segment(0).expect("reads").into_iter().flatten());
        // Unused blocks, more than a filter of named ones would tell from them.
        let sealed = |number: u32| Sealed {
            id: BlockId(Hashing::Plain.content(&number.to_le_bytes())),
            plain_bytes: 1,
            header: vec![1],
            pages: Vec::new(),
        };
        store.put((0..200_000).map(sealed).collect()).expect("puts");
        marked(&store).expect("all is there");
        for id in named {
            let kept = store.take(id).expect("is stored");
            let error = marked(&store).expect_err("is missed");
            assert!(error.to_string().contains(&id.to_string()), "{error}");
            store.put(vec![kept]).expect("puts");
        }
        let live = marked(&store).expect("all is there again");
        let mut named = 0;
        let count = &mut |_, located: Located| {
            named += u64::from(live.places.contains(located.place));
            Ok(())
        };
        store.survey(count).expect("lists");
        assert!(named < 100, "{named} of 200,000 unused blocks are taken for named");
    }

    #[test]
    fn what_can_not_be_told_is_not_taken_for_unused() {
        let store = MemoryStore::new(SMALL);
        let image = commit(&store, "2026-11-20T05-54-00Z", &mixed_bytes(1, 1 << 20));
        let slots = SlotReader::open(&store, image.manifest)
            .expect("opens")
            .segment(0)
            .expect("reads");
        store.lose(slots.into_iter().flatten().next().expect("a block"));
        assert!(matches!(marked(&store), Err(Error::CantTellUnused { .. })));

        let store = MemoryStore::new(SMALL);
        let record = Record {
            key: "web1@2026-11-20T05-54-00Z".into(),
            bytes: b"{".to_vec(),
        };
        store.commit(&record).expect("commits");
        assert!(matches!(marked(&store), Err(Error::CantTellUnused { .. })));
    }
}
