use super::super::memory::MemoryStore;
use super::*;
use crate::backup::Entry;
use crate::block::BlockSize;
use crate::catalogue::Catalogue;
use crate::error::ErrorKind;
use crate::reader::read_whole;
use crate::slots::SlotReader;
use crate::state::{PartRead, Rotation, State, States, note_of, note_of_rotation, note_without};
use crate::tests::testing::{SMALL, backup, mixed_bytes, store_image};

fn encrypted() -> (Arc<MemoryStore>, Encrypted<MemoryStore>) {
    let (store, identity) = MemoryStore::sealed(SMALL, true);
    let keys = Keys::generate().expect("random bytes");
    (Arc::clone(&store), Encrypted::new(store, &keys, &identity))
}

#[test]
fn an_encrypted_store_keeps_the_rules_of_the_seam() {
    for has_sums in [true, false] {
        super::super::conformance::check(|size: BlockSize| {
            let keys = Keys::generate().expect("random bytes");
            let (store, identity) = MemoryStore::sealed(size, has_sums);
            Box::new(Encrypted::new(store, &keys, &identity))
        });
    }
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
    seen.extend(below.nodes(&[made.images[0].manifest]).remove(0).ok());
    for bytes in seen {
        for secret in [&b"secret"[..], &plain[..16]] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret));
        }
    }
    let catalogue = Catalogue::load(&store).expect("loads");
    assert_eq!(*catalogue.entries()[0].backup, made);
    // A plain repository gives the same bytes other names.
    assert_ne!(store.hashing().content(b"x"), Hashing::Plain.content(b"x"));
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
    let identity = below.identity().expect("has one");
    let other = Encrypted::new(below, &Keys::generate().expect("random bytes"), &identity);
    assert!(SlotReader::open(&other, image.manifest).is_err());
}

#[test]
fn what_can_be_read_without_the_key_can_not_be_changed_without_it() {
    let (below, store) = encrypted();
    let image = store_image(&store, "vda", &mixed_bytes(5, 20 * SMALL.bytes()));
    let made = backup("web1", "2026-11-20T05-54-00Z", vec![image.clone()]);
    let (key, bytes) = (made.spec(), made.encode());
    store.commit(&Record { key, bytes }).expect("commits");
    let sealed = below.records().expect("lists").remove(0);
    assert_eq!(roots_below(&sealed.bytes), Some(vec![image.manifest]));
    for at in [0, 1, 4, 35] {
        let mut other = sealed.clone();
        other.bytes[at] ^= 1;
        below.amend(std::slice::from_ref(&sealed.key), &[]).expect("removes");
        below.commit(&other).expect("commits");
        let catalogue = Catalogue::load(&store).expect("loads");
        assert_eq!(
            (catalogue.entries().len(), catalogue.damaged().is_empty()),
            (0, false),
            "byte {at}"
        );
    }
    let root = below.nodes(&[image.manifest]).remove(0).expect("is there");
    for at in [0, 1, 2, 4, 8, 39, 40] {
        let mut other = root.clone();
        other[at] ^= 1;
        below.put_nodes(vec![(image.manifest, other)]).expect("puts");
        assert!(SlotReader::open(&store, image.manifest).is_err(), "byte {at}");
    }
    below.put_nodes(vec![(image.manifest, root)]).expect("puts");
    SlotReader::open(&store, image.manifest).expect("opens");
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
    let notes = [
        note_of(&made.spec(), protected.clone()),
        note_of("gone@x", protected),
        rotation,
    ];
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
    let plain = store.nodes(&id).remove(0).expect("is there");
    let sealed = below.nodes(&id).remove(0).expect("is there");
    store.put_nodes(vec![(id[0], plain.clone())]).expect("puts");
    assert_eq!(below.nodes(&id).remove(0).expect("is there"), sealed);
    let mut other = sealed;
    *other.last_mut().expect("not empty") ^= 1;
    below.put_nodes(vec![(id[0], other)]).expect("puts");
    assert!(store.nodes(&id)[0].is_err());
    store.put_nodes(vec![(id[0], plain.clone())]).expect("puts");
    assert_eq!(store.nodes(&id).remove(0).expect("is there"), plain);
}

/// Returns a store with two backups and two notes, and the store below it.
fn filled() -> (Arc<MemoryStore>, Encrypted<MemoryStore>) {
    let (below, store) = encrypted();
    store.accept().expect("begins");
    for time in ["2026-11-20T05-54-00Z", "2026-11-21T05-54-00Z"] {
        let made = backup("web1", time, Vec::new());
        let (key, bytes) = (made.spec(), made.encode());
        store.commit(&Record { key, bytes }).expect("commits");
        store
            .amend(&[], &[note_of(&made.spec(), State::default().protect())])
            .expect("notes");
    }
    (below, store)
}

impl State {
    fn protect(mut self) -> Self {
        self.protected = true;
        self
    }
}

fn reopened(below: &Arc<MemoryStore>, store: &Encrypted<MemoryStore>) -> Encrypted<MemoryStore> {
    Encrypted {
        full_header_bytes: store.full_header_bytes,
        has_sums: store.has_sums,
        store: Arc::clone(below),
        hashing: store.hashing,
        cipher: store.cipher.clone(),
        name_key: store.name_key,
        epoch_key: store.epoch_key,
        has_begun: true,
        seen: Default::default(),
    }
}

#[test]
fn every_change_of_records_and_notes_without_the_key_is_noticed_until_it_is_accepted() {
    type Tamper = fn(&MemoryStore, &Encrypted<MemoryStore>);
    let tampers: [(&str, Tamper, &str); 7] = [
        (
            "a record is deleted",
            |below, _| {
                let key = below.records().expect("lists").remove(0).key;
                below.amend(&[key], &[]).expect("deletes");
            },
            "1 of 2 records of backups are missing",
        ),
        (
            "a note is deleted",
            |below, store| {
                let epoch = store.hidden(NOTE, epoch::NAME);
                let mut notes = below.notes().expect("lists");
                notes.retain(|note| note.name != epoch);
                let note = Note {
                    value: None,
                    ..notes.remove(0)
                };
                below.amend(&[], &[note]).expect("deletes");
            },
            "1 of 2 notes are missing",
        ),
        (
            "an older note is put back",
            |below, store| {
                let name = note_of("web1@2026-11-20T05-54-00Z", State::default()).name;
                let hidden = store.hidden(NOTE, &name);
                let older = below.notes().expect("lists");
                let older = older.into_iter().find(|note| note.name == hidden).expect("is there");
                let anew = note_of("web1@2026-11-20T05-54-00Z", State::default().protect());
                store.amend(&[], &[anew]).expect("changes");
                below.amend(&[], &[older]).expect("puts back");
            },
            "at least one of the 2 notes was replaced",
        ),
        (
            "a forgotten record is put back",
            |below, store| {
                let forgotten = below.records().expect("lists").remove(0);
                let plain = store.records().expect("lists").remove(0);
                let one = below.records().expect("lists").len();
                store.amend(std::slice::from_ref(&plain.key), &[]).expect("forgets");
                // It does not matter which of the two records it was.
                if below
                    .records()
                    .expect("lists")
                    .iter()
                    .any(|record| record.key == forgotten.key)
                {
                    let other = store.seal_named(RECORD, &plain.key, &plain.bytes).expect("seals");
                    below
                        .commit(&Record {
                            key: other.0,
                            bytes: other.1,
                        })
                        .expect("puts back");
                } else {
                    below.commit(&forgotten).expect("puts back");
                }
                assert_eq!(below.records().expect("lists").len(), one);
            },
            "there are 2 records of backups instead of 1",
        ),
        (
            "an older epoch is put back",
            |below, store| {
                let hidden = store.hidden(NOTE, epoch::NAME);
                let notes = below.notes().expect("lists");
                let older = notes.into_iter().find(|note| note.name == hidden).expect("is there");
                let made = backup("web2", "2026-11-22T05-54-00Z", Vec::new());
                let (key, bytes) = (made.spec(), made.encode());
                store.commit(&Record { key, bytes }).expect("commits");
                below.amend(&[], &[older]).expect("puts back");
            },
            "there are 3 records of backups instead of 2",
        ),
        (
            "the epoch is deleted",
            |below, store| {
                let name = store.hidden(NOTE, epoch::NAME);
                below.amend(&[], &[Note { name, value: None }]).expect("deletes");
            },
            "missing or damaged",
        ),
        (
            "everything is deleted",
            |below, _| {
                let keys: Vec<_> = below
                    .records()
                    .expect("lists")
                    .into_iter()
                    .map(|record| record.key)
                    .collect();
                let notes = below.notes().expect("lists").into_iter();
                let notes: Vec<_> = notes.map(|note| Note { value: None, ..note }).collect();
                below.amend(&keys, &notes).expect("deletes");
            },
            "missing or damaged",
        ),
    ];
    for (what, tamper, said) in tampers {
        let (below, store) = filled();
        assert_eq!(store.foreign_changes().expect("reads"), [""; 0], "before {what}");
        tamper(&below, &store);
        let store = reopened(&below, &store);
        let found = store.foreign_changes().expect("reads");
        assert!(found.len() == 1 && found[0].contains(said), "{what}: {found:?}");
        // A commit does not make the store forget it.
        let before = store.epoch().expect("reads");
        let made = backup("web3", "2026-11-23T05-54-00Z", Vec::new());
        let (key, bytes) = (made.spec(), made.encode());
        store.commit(&Record { key, bytes }).expect("commits");
        assert!(store.epoch().expect("reads") > before, "{what}");
        assert_ne!(
            reopened(&below, &store).foreign_changes().expect("reads"),
            [""; 0],
            "{what}"
        );
        let catalogue = Catalogue::load(&store).expect("loads");
        assert!(
            catalogue
                .damaged()
                .iter()
                .any(|error| matches!(error, Error::ForeignChanges { .. })),
            "{what}"
        );
        let live = crate::mark::mark(&store, &catalogue, 1, &std::sync::atomic::AtomicBool::new(false));
        assert!(live.is_err(), "{what}");
        assert_ne!(store.accept().expect("accepts"), [""; 0], "{what}");
        assert_eq!(
            reopened(&below, &store).foreign_changes().expect("reads"),
            [""; 0],
            "{what}"
        );
        assert_eq!(store.accept().expect("accepts"), [""; 0], "{what}");
    }
}

#[test]
fn a_change_that_failed_leaves_the_set_and_its_epoch_as_they_were() {
    use crate::store::faulty::{Calls, Fault, FaultyStore};
    let (below, identity) = MemoryStore::sealed(SMALL, true);
    let faulty = Arc::new(FaultyStore::new(Arc::clone(&below) as Arc<dyn StoreManager>));
    let store = Encrypted::new(Arc::clone(&faulty), &Keys::generate().expect("random bytes"), &identity);
    let made = backup("web1", "2026-11-20T05-54-00Z", Vec::new());
    let (key, bytes) = (made.spec(), made.encode());
    let record = Record { key, bytes };
    store.commit(&record).expect("commits");
    let epoch = store.epoch().expect("is known");
    store.commit(&record).expect("commits the same again");
    assert_eq!(store.epoch().expect("is known"), epoch);
    let other = Record {
        bytes: b"other".to_vec(),
        ..record.clone()
    };
    assert!(matches!(store.commit(&other), Err(Error::BackupExists(_))));
    faulty.arm(Fault {
        calls: Calls::Writing,
        after: 0,
        kind: ErrorKind::NoSpace,
        lasting: true,
    });
    assert!(store.amend(std::slice::from_ref(&record.key), &[]).is_err());
    faulty.disarm();
    let epoch = store.epoch().expect("reads");
    assert_eq!(store.foreign_changes().expect("reads"), [""; 0]);
    store.amend(&[record.key], &[]).expect("removes");
    assert_eq!(store.foreign_changes().expect("reads"), [""; 0]);
    assert!(store.epoch().expect("reads") > epoch);
}

#[test]
fn many_writers_at_once_leave_one_set_and_its_epoch() {
    let (below, store) = encrypted();
    let stores: Vec<_> = (0..4).map(|_| reopened(&below, &store)).collect();
    store.accept().expect("begins");
    std::thread::scope(|scope| {
        for (number, store) in stores.iter().enumerate() {
            scope.spawn(move || {
                for second in 0..20 {
                    let made = backup(
                        &format!("web{number}"),
                        &format!("2026-11-20T05-54-{second:02}Z"),
                        Vec::new(),
                    );
                    let (key, bytes) = (made.spec(), made.encode());
                    let note = note_of(&key, State::default().protect());
                    store
                        .commit_at(
                            &Record {
                                key: key.clone(),
                                bytes,
                            },
                            &[note],
                            None,
                        )
                        .expect("commits");
                    if second % 3 == 0 {
                        store.amend(&[key], &[]).expect("forgets");
                    }
                }
            });
        }
    });
    assert_eq!(store.foreign_changes().expect("reads"), [""; 0]);
    assert_eq!(store.records().expect("lists").len(), 4 * 13);
    assert_eq!(store.epoch().expect("is known"), Some(1 + 4 * 27));
    // A change that is bound to what its caller read is refused, and not repeated by itself.
    let at = store.generation().expect("is known");
    stores[0].amend(&[], &[]).expect("changes");
    assert!(matches!(store.amend_at(&[], &[], Some(at)), Err(Error::Moved)));
}

#[test]
fn blocks_that_compress_a_little_differently_look_the_same_below() {
    let lengths = |kind: u8| {
        let (below, store) = encrypted();
        // Seven pages of noise, one of text with some noise in it, and eight of zeros.
        let mut noise = 1_u32;
        let mut byte = || {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (noise >> 24) as u8
        };
        let mut plain = vec![0; BlockSize::DEFAULT.bytes()];
        plain[..7 * 65_536].fill_with(&mut byte);
        plain[7 * 65_536..8 * 65_536].fill(b'x');
        plain[7 * 65_536..7 * 65_536 + usize::from(kind)].fill_with(&mut byte);
        let hashes = store.hashing().block(&plain);
        let sealed = crate::codec::Sealer::new(crate::codec::Compression::default())
            .and_then(|mut sealer| sealer.seal(&plain, &hashes))
            .expect("seals");
        let exact: Vec<_> = sealed.pages.iter().map(Vec::len).collect();
        store.put(vec![sealed]).expect("puts");
        let id = hashes.id;
        let stored = below.get(&[Wanted { id, pages: 0..40 }]).remove(0).expect("is there");
        let lengths: Vec<_> = stored.pages.iter().map(Vec::len).collect();
        (exact, stored.header.len(), lengths)
    };
    let (one, other) = (lengths(0), lengths(77));
    assert_ne!(one.0, other.0, "they are told apart without padding");
    assert_eq!((one.1, one.2), (other.1, other.2));
}

#[test]
fn small_files_of_different_lengths_look_the_same_below() {
    let lengths = |length: usize| {
        let (below, store) = encrypted();
        let image = store_image(&store, "config.xml", &vec![b'x'; length]);
        let mut seen = Vec::new();
        below
            .survey(&mut |id, located| {
                seen.push((id, located));
                Ok(())
            })
            .expect("surveys");
        let (id, located) = seen[0];
        let stored = below.get(&[Wanted { id, pages: 0..40 }]).remove(0).expect("is there");
        let manifest = below.nodes(&[image.manifest]).remove(0).expect("is there").len();
        let rows: Vec<_> = stored.pages.iter().map(Vec::len).collect();
        let found = store.locate(&[id]).expect("locates")[0].expect("is there");
        assert_eq!(found.plain_bytes as usize, length);
        assert_ne!(located.plain_bytes as usize, length, "by chance in one of 2^32 runs");
        (stored.header.len(), rows, located.stored_bytes, manifest)
    };
    assert_eq!(lengths(300), lengths(9000));
}
