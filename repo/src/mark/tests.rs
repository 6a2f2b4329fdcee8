use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::backup::Image;
use crate::block::Hashing;
use crate::codec::Sealed;
use crate::keys::Keys;
use crate::manifest::Head;
use crate::slots::SlotReader;
use crate::store::StoreManager;
use crate::store::encrypted::{Encrypted, roots_below};
use crate::store::memory::MemoryStore;
use crate::store::{Identity, Located, Note, PruneOptions, Record, StoreWriter, Stored, Wanted};
use crate::tests::testing::{SMALL, backup, mixed_bytes, store_image, store_image_after};

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
    assert!(live.nodes() < all.nodes());
    let options = PruneOptions {
        max_unused: 0.0,
        dry_run: false,
        empty_bin: false,
    };
    let swept = store.retain(&live, options, &mut |_| Ok(())).expect("sweeps");
    assert!(swept.removed_blocks > 0 && swept.live_blocks > 0, "{swept:?}");
    let slots = SlotReader::open(&store, image.manifest)
        .expect("opens")
        .segment(0)
        .expect("reads");
    let ids: Vec<_> = slots.into_iter().flatten().collect();
    assert!(store.locate(&ids).expect("locates").iter().all(Option::is_some));
    assert_eq!(
        store
            .retain(&live, options, &mut |_| Ok(()))
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
        named += u64::from(live.has_block_at(located.place));
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

type Each<'a> = &'a mut dyn FnMut(BlockId, Located) -> Result<()>;

/// A store whose index is read in another way.
struct Read<S> {
    store: MemoryStore,
    survey: S,
}

impl<S: Fn(&MemoryStore, BlockId, Each<'_>) -> Result<()> + Send + Sync> StoreReader for Read<S> {
    fn survey_from(&self, from: BlockId, each: Each<'_>) -> Result<()> {
        (self.survey)(&self.store, from, each)
    }

    fn identity(&self) -> Result<Identity> {
        self.store.identity()
    }

    fn generation(&self) -> Result<u64> {
        self.store.generation()
    }

    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        self.store.locate(ids)
    }

    fn condemned(&self) -> Result<Vec<BlockId>> {
        self.store.condemned()
    }

    fn get(&self, wanted: &[Wanted]) -> Vec<Result<Stored>> {
        self.store.get(wanted)
    }

    fn nodes(&self, ids: &[NodeId]) -> Vec<Result<Vec<u8>>> {
        self.store.nodes(ids)
    }

    fn records(&self) -> Result<Vec<Record>> {
        self.store.records()
    }

    fn notes(&self) -> Result<Vec<Note>> {
        self.store.notes()
    }
}

fn sealed(number: u32) -> Sealed {
    Sealed {
        id: BlockId(Hashing::Plain.content(&number.to_le_bytes())),
        plain_bytes: 1,
        header: vec![1],
        pages: Vec::new(),
        base: None,
    }
}

#[test]
fn a_block_that_moves_while_others_are_marked_stays_live() {
    let mut moments = 0;
    loop {
        let store = MemoryStore::new(SMALL);
        let image = commit(&store, "2026-11-20T05-54-00Z", &mixed_bytes(1, 500 * SMALL.bytes()));
        let reader = SlotReader::open(&store, image.manifest).expect("opens");
        let named = reader
            .segment(0)
            .expect("reads")
            .into_iter()
            .flatten()
            .next()
            .expect("a block");
        let again = store.take(named).expect("is stored");
        store.put(vec![again.clone()]).expect("puts");
        let catalogue = Catalogue::load(&store).expect("loads");
        let reads = AtomicUsize::new(0);
        let survey = |store: &MemoryStore, from, each: Each<'_>| {
            let surveyed = store.survey_from(from, each);
            if reads.fetch_add(1, Ordering::SeqCst) == moments {
                store.condemn(&[named])?;
                store.put(vec![again.clone(), sealed(1)])?;
            }
            surveyed
        };
        let store = Read { store, survey };
        let live = mark(&store, &catalogue, 1, &CANCEL).expect("marks");
        if reads.load(Ordering::SeqCst) <= moments {
            break;
        }
        let located = store.store.locate(&[named]).expect("locates")[0].expect("is stored");
        assert!(live.has_block_at(located.place), "after {moments} reads");
        moments += 1;
    }
    assert!(moments > 12, "several slices, each in several ranges: {moments}");
}

#[test]
fn an_index_that_is_out_of_order_is_damage() {
    let store = MemoryStore::new(SMALL);
    commit(&store, "2026-11-20T05-54-00Z", &mixed_bytes(1, 10 << 20));
    let catalogue = Catalogue::load(&store).expect("loads");
    let survey = |store: &MemoryStore, _, each: Each<'_>| {
        let mut all = Vec::new();
        store.survey(&mut |id, located| {
            all.push((id, located));
            Ok(())
        })?;
        all.into_iter().rev().try_for_each(|(id, located)| each(id, located))
    };
    let marked = mark(&Read { store, survey }, &catalogue, 1, &CANCEL);
    assert!(matches!(marked, Err(Error::CantTellUnused { .. })), "{marked:?}");
}

/// Returns everything that the records of a store without its key need: blocks, and nodes of manifests.
fn needed_below(below: &MemoryStore) -> (HashSet<BlockId>, HashSet<NodeId>) {
    let head = |id: &NodeId| {
        let bytes = below.nodes(&[*id]).remove(0).expect("is there");
        Head::split(&bytes).expect("has a head").0
    };
    let records = below.records().expect("lists");
    let mut nodes: HashSet<_> = records
        .iter()
        .flat_map(|record| roots_below(&record.bytes).expect("has roots"))
        .collect();
    let pages: Vec<_> = nodes.iter().flat_map(|root| head(root).names).map(NodeId).collect();
    let mut groups: HashMap<NodeId, HashSet<NodeId>> = HashMap::new();
    for segment in pages.iter().flat_map(|page| Page::pairs(&head(page))) {
        groups.entry(segment.full).or_default().insert(segment.delta);
    }
    nodes.extend(pages);
    let mut blocks = HashSet::new();
    for (full, mut deltas) in groups {
        let mut needs = Needs::new(deltas.remove(&NodeId::ZERO));
        for node in std::iter::once(full).chain(deltas) {
            needs.add(node, head(&node)).expect("adds");
            nodes.insert(node);
        }
        blocks.extend(needs.blocks());
    }
    (blocks, nodes)
}

#[test]
fn a_store_without_the_key_finds_the_same_blocks_and_nodes() {
    let below = Arc::new(MemoryStore::new(SMALL));
    let keys = Keys::generate().expect("random bytes");
    let store = Encrypted::new(Arc::clone(&below), &keys, &below.identity().expect("has one"));
    store.accept().expect("begins");
    let mut plain = mixed_bytes(1, 300 * SMALL.bytes());
    let mut base: Option<Image> = None;
    for day in 20..26_u8 {
        plain[0] = day;
        let image = store_image_after(&store, "vda", &plain, base.as_ref());
        let backup = backup("web1", &format!("2026-11-{day}T05-54-00Z"), vec![image.clone()]);
        let (key, bytes) = (backup.spec(), backup.encode());
        store.commit(&Record { key, bytes }).expect("commits");
        base = Some(image);
    }
    let gone = ["20", "23"].map(|day| format!("web1@2026-11-{day}T05-54-00Z"));
    store.amend(&gone, &[]).expect("forgets");
    let live = mark(&store, &Catalogue::load(&store).expect("loads"), 2, &CANCEL).expect("marks");
    let (blocks, nodes) = needed_below(&below);
    let sealed = mark_sealed(&*below, &below.records().expect("lists"), 2, &CANCEL).expect("marks");
    assert_eq!(sealed.nodes(), live.nodes());
    assert!(nodes.iter().all(|id| sealed.has_node(id)));
    // A full segment, four deltas, four pages, four roots.
    assert_eq!((nodes.len(), live.nodes()), (13, 13));
    assert!(nodes.iter().all(|id| live.has_node(id)));
    let (mut stored, mut dead) = (0, 0);
    let survey = store.survey(&mut |id, located| {
        stored += 1;
        dead += usize::from(!live.has_block_at(located.place));
        assert_eq!(live.has_block_at(located.place), blocks.contains(&id));
        assert_eq!(sealed.has_block_at(located.place), blocks.contains(&id));
        Ok(())
    });
    survey.expect("surveys");
    assert_eq!(
        (stored - dead, dead),
        (blocks.len(), 2),
        "blocks that only the forgotten backups had"
    );
}
