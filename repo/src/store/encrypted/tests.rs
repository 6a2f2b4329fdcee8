use super::super::memory::MemoryStore;
use super::*;
use crate::backup::Entry;
use crate::block::BlockSize;
use crate::catalogue::Catalogue;
use crate::error::ErrorKind;
use crate::reader::read_whole;
use crate::state::{PartRead, Rotation, State, States, note_of, note_of_rotation, note_without};
use crate::testing::{SMALL, backup, mixed_bytes, store_image};
use crate::writer::SlotReader;

fn encrypted() -> (Arc<MemoryStore>, Encrypted<MemoryStore>) {
    let store = Arc::new(MemoryStore::new(SMALL));
    let keys = Keys::generate().expect("random bytes");
    (Arc::clone(&store), Encrypted::new(store, &keys))
}

#[test]
fn an_encrypted_store_keeps_the_rules_of_the_seam() {
    super::super::conformance::check(|size: BlockSize| {
        let keys = Keys::generate().expect("random bytes");
        Box::new(Encrypted::new(Arc::new(MemoryStore::new(size)), &keys))
    });
}

#[test]
fn nothing_that_was_put_can_be_seen_below() {
    let (below, store) = encrypted();
    let word = b"a secret that stands in every page of the disk; ";
    let plain: Vec<u8> = word.iter().copied().cycle().take(4 * SMALL.bytes()).collect();
    let image = store_image(&store, "vda", &plain);
    let made = backup("secret-guest", "2026-11-20T05-54-00Z", vec![image]);
    let record = Record {
        key: made.spec(),
        bytes: made.encode(),
    };
    store.commit(&record).expect("commits");
    let note = Note {
        name: "backup/secret-guest@x".into(),
        value: Some(b"a secret note".to_vec()),
    };
    store.amend(&[], &[note]).expect("notes");
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for record in below.records().expect("lists") {
        seen.extend([record.key.into_bytes(), record.bytes]);
    }
    for note in below.notes().expect("lists") {
        seen.extend([note.name.into_bytes(), note.value.unwrap_or_default()]);
    }
    let mut ids = Vec::new();
    below
        .survey(&mut |id, _| {
            ids.push(id);
            Ok(())
        })
        .expect("surveys");
    assert!(!ids.is_empty());
    for id in ids {
        let stored = below.get(&[Wanted { id, pages: 0..1 }]).remove(0).expect("is there");
        seen.push(stored.header);
        seen.extend(stored.pages);
    }
    seen.extend(below.segments(&[made.images[0].manifest]).remove(0).ok());
    for bytes in seen {
        for secret in [&b"secret"[..], &plain[..16]] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret));
        }
    }
    let catalogue = Catalogue::load(&store).expect("loads");
    assert_eq!(catalogue.entries()[0].backup, made);
    // The same bytes have other names elsewhere.
    assert_ne!(store.hashing().content(b"x"), Hashing::Plain.content(b"x"));
}

#[test]
fn the_parts_of_a_block_do_not_tell_its_pages_apart() {
    let (below, store) = encrypted();
    // A page of noise and pages of zeros, in two orders; SMALL blocks have one page, so these are larger.
    let size = BlockSize::DEFAULT.bytes();
    let mut lengths = Vec::new();
    for at in [0, 5 * crate::block::PAGE_BYTES] {
        let mut plain = vec![0; size];
        plain[at..at + 1000].copy_from_slice(&mixed_bytes(9, 1000));
        let hashes = store.hashing().block(&plain);
        let mut sealer = crate::codec::Sealer::new(crate::codec::Compression::default()).expect("works");
        store
            .put(vec![sealer.seal(&plain, &hashes).expect("seals")])
            .expect("puts");
        let all = Wanted {
            id: hashes.id,
            pages: 0..16,
        };
        let stored = below.get(&[all]).remove(0).expect("is there");
        lengths.push(stored.pages.iter().map(Vec::len).collect::<Vec<_>>());
        // Each page alone, whatever fragment it lies in.
        for number in 0..16 {
            let one = Wanted {
                id: hashes.id,
                pages: number..number + 1,
            };
            let stored = store.get(&[one]).remove(0).expect("opens");
            let header = crate::codec::Header::prove(store.hashing(), hashes.id, size, &stored.header).expect("proves");
            let mut out = vec![0xEE; header.page_len(number)];
            header.open_page(number, &stored.pages[0], &mut out).expect("opens");
            assert_eq!(out, plain[number * out.len()..][..out.len()]);
        }
    }
    assert_eq!(lengths[0], lengths[1]);
    assert!(lengths[0].iter().all(|length| *length == lengths[0][0] && *length > 0));
}

#[test]
fn what_was_changed_below_is_damage_and_never_data() {
    let (below, store) = encrypted();
    let plain = mixed_bytes(5, 20 * SMALL.bytes());
    let image = store_image(&store, "vda", &plain);
    let slots = SlotReader::open(&store, image.manifest)
        .expect("opens")
        .segment(0)
        .expect("reads");
    let ids: Vec<_> = slots.into_iter().flatten().collect();
    let read = |id| {
        let mut out = vec![0; SMALL.bytes()];
        read_whole(&store, id, &mut out).map_err(|error| error.kind())
    };
    below.damage(ids[0], |sealed| sealed.header[30] ^= 1);
    below.damage(ids[1], |sealed| sealed.header[3] ^= 1);
    below.damage(ids[2], |sealed| {
        sealed
            .pages
            .iter_mut()
            .filter(|page| !page.is_empty())
            .for_each(|page| page[0] ^= 1)
    });
    below.damage(ids[3], |sealed| sealed.pages.iter_mut().for_each(Vec::clear));
    below.damage(ids[4], |sealed| sealed.header.truncate(10));
    for id in &ids[..5] {
        assert_eq!(read(*id), Err(ErrorKind::Corrupt));
    }
    assert_eq!(read(ids[5]), Ok(()));
    let other = Encrypted::new(below, &Keys::generate().expect("random bytes"));
    assert!(SlotReader::open(&other, image.manifest).is_err());
}

#[test]
fn a_note_that_can_not_be_read_is_known_by_its_backup_and_can_be_set_anew() {
    let (below, store) = encrypted();
    let made = backup("web1", "2026-11-20T05-54-00Z", Vec::new());
    let (key, bytes) = (made.spec(), made.encode());
    store.commit(&Record { key, bytes }).expect("commits");
    let protected = State {
        protected: true,
        ..State::default()
    };
    let rotation = note_of_rotation(&Rotation {
        parts: vec![Some(PartRead {
            at: jiff::Timestamp::UNIX_EPOCH,
            generation: 1,
        })],
    });
    let notes = [note_of(&made.spec(), protected), note_of("gone@x", protected), rotation];
    store.amend(&[], &notes).expect("notes");
    let mut sealed = below.notes().expect("lists");
    for note in &mut sealed {
        note.value.as_mut().expect("a value")[30] ^= 1;
    }
    below.amend(&[], &sealed).expect("notes");
    let states = States::load(&store).expect("loads");
    assert_eq!(states.unread().collect::<Vec<_>>(), [made.spec()]);
    assert!(states.of(&made).protected && states.rotation == Rotation::default());
    let [stray] = states.strays() else { panic!("{states:?}") };
    let anew = [note_of(&made.spec(), State::default()), note_without(stray)];
    store.amend(&[], &anew).expect("notes");
    let states = States::load(&store).expect("loads");
    assert!(states.strays().is_empty() && states.unread().next().is_none());
    assert_eq!(states.of(&made), State::default());
}

#[test]
fn a_record_that_can_not_be_read_can_be_removed() {
    let (below, store) = encrypted();
    let key = "00ff".repeat(16);
    let record = Record {
        key: key.clone(),
        bytes: vec![1; 100],
    };
    below.commit(&record).expect("commits");
    let catalogue = Catalogue::load(&store).expect("loads");
    assert!(matches!(&catalogue.damaged()[0], Error::RecordDamaged { backup, .. } if *backup == key));
    assert!(Entry::decode(store.hashing(), &key, &record.bytes).is_err());
    store.amend(&[key], &[]).expect("removes");
    assert_eq!(store.records().expect("lists"), []);
}

#[test]
fn a_segment_is_sealed_again_only_when_it_is_not_whole() {
    let (below, store) = encrypted();
    let image = store_image(&store, "vda", &mixed_bytes(5, 3 * SMALL.bytes()));
    let id = [image.manifest];
    let plain = store.segments(&id).remove(0).expect("is there");
    let sealed = below.segments(&id).remove(0).expect("is there");
    store.put_segments(vec![(id[0], plain.clone())]).expect("puts");
    assert_eq!(below.segments(&id).remove(0).expect("is there"), sealed);
    let mut other = sealed;
    *other.last_mut().expect("not empty") ^= 1;
    below.put_segments(vec![(id[0], other)]).expect("puts");
    assert!(store.segments(&id)[0].is_err());
    store.put_segments(vec![(id[0], plain.clone())]).expect("puts");
    assert_eq!(store.segments(&id).remove(0).expect("is there"), plain);
}
