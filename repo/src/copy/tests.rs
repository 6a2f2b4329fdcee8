mod sealed;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

use super::*;
use crate::block::BlockSize;
use crate::codec::Sealed;
use crate::error::ErrorKind;
use crate::id::BlockId;
use crate::keys::Keys;
use crate::reader::{ImageReader, ReadResources};
use crate::repository::home::StoreHome;
use crate::repository::{CreateOptions, Repository};
use crate::slots::SlotReader;
use crate::state::{BootAccelerator, BootProof, PartRead, Rehearsed, Rotation, note_of_rotation};
use crate::store::delayed::Delayed;
use crate::store::encrypted::Encrypted;
use crate::store::faulty::{Calls, Fault as Injected, FaultyStore};
use crate::store::memory::MemoryStore;
use crate::store::{
    Identity, Live, Located, Note, PruneOptions, Record, STORE_FORMAT, StoreManager, StoreWriter, Stored, Swept, Wanted,
};
use crate::tests::testing::{SMALL, backup, mixed_bytes, store_image_after, store_image_over};
use crate::verify::{Scope, verify};

/// A repository of a test: what keeps it, and the key.
struct Place {
    memory: Arc<MemoryStore>,
    keys: Option<Keys>,
    /// Generation of the new repository.
    begun: u64,
}

impl Place {
    fn new(id: &str, keys: Option<&Keys>) -> Self {
        let identity = Identity {
            format: STORE_FORMAT,
            features: Identity::features_of_new(keys.is_some()),
            id: id.into(),
            block_size: SMALL,
            created: Timestamp::UNIX_EPOCH,
            key_check: keys.map(Keys::check),
        };
        let memory = Arc::new(MemoryStore::with_identity(identity.clone()));
        if let Some(keys) = keys {
            let store = Encrypted::new(Arc::clone(&memory), keys, &identity);
            store.accept().expect("begins");
        }
        Self {
            begun: memory.generation().expect("has one"),
            memory,
            keys: keys.cloned(),
        }
    }

    fn repository(&self) -> Repository {
        self.through(Arc::clone(&self.memory))
    }

    /// Opens the repository through another store.
    fn through(&self, below: Arc<impl StoreManager + 'static>) -> Repository {
        let repository = Repository::at(Arc::new(StoreHome::new(below).expect("a home")));
        match &self.keys {
            Some(keys) => repository.with_keys(keys.clone()),
            None => repository,
        }
    }

    fn faulty(&self) -> (Arc<FaultyStore>, Repository) {
        let store = Arc::new(FaultyStore::new(self.memory.clone()));
        (Arc::clone(&store), self.through(store))
    }

    /// Makes a backup by comparison with the one before.
    fn back_up(&self, guest: &str, time: &str, plain: &[u8]) {
        self.back_up_with(guest, time, plain, false);
    }

    /// The same, with differences from the blocks of the one before.
    fn back_up_over(&self, guest: &str, time: &str, plain: &[u8]) {
        self.back_up_with(guest, time, plain, true);
    }

    fn back_up_with(&self, guest: &str, time: &str, plain: &[u8], has_differences: bool) {
        let writer = writer(&self.repository());
        let catalogue = writer.catalogue().expect("loads");
        let made = backup(guest, time, Vec::new());
        let before = catalogue
            .latest(&made.guest)
            .map(|entry| entry.backup.images[0].clone());
        let image = match before.as_ref().filter(|_| has_differences) {
            Some(before) => store_image_over(writer.store(), "vda", plain, before),
            None => store_image_after(writer.store(), "vda", plain, before.as_ref()),
        };
        let file = store_image_after(writer.store(), "guest.xml", time.as_bytes(), None);
        let made = Backup {
            images: vec![image],
            files: vec![file],
            host: "host7".into(),
            ..made
        };
        writer.commit(made).expect("commits");
    }

    fn content(&self) -> BTreeMap<String, Vec<Vec<u8>>> {
        content_of(&self.repository())
    }

    fn backups(&self) -> Vec<Backup> {
        let catalogue = self.repository().view().expect("opens").catalogue().expect("loads");
        let backups = catalogue.entries().iter().map(|entry| Backup::clone(&entry.backup));
        backups.collect()
    }

    /// Returns the blocks that are stored as differences, with their bases.
    fn differences(&self) -> BTreeMap<BlockId, BlockId> {
        differences_in(&*self.memory)
    }

    /// Returns the names of the blocks of a guest's latest backup.
    fn blocks(&self, guest: &str) -> Vec<BlockId> {
        let view = self.repository().view().expect("opens");
        let catalogue = view.catalogue().expect("loads");
        let latest = catalogue.latest(&guest.parse().expect("a name")).expect("has backups");
        let store = view.store();
        let reader = SlotReader::open(&*store, latest.backup.images[0].manifest).expect("opens");
        reader.segment(0).expect("reads").into_iter().flatten().collect()
    }
}

fn differences_in(store: &dyn StoreReader) -> BTreeMap<BlockId, BlockId> {
    let mut found = BTreeMap::new();
    let survey = store.survey(&mut |id, located| {
        found.extend(located.base.map(|base| (id, base)));
        Ok(())
    });
    survey.expect("surveys");
    found
}

/// Returns the content of every backup, by its name. Fails if anything is missing or damaged.
fn content_of(repository: &Repository) -> BTreeMap<String, Vec<Vec<u8>>> {
    let view = repository.view().expect("opens");
    let catalogue = view.catalogue().expect("loads");
    assert!(catalogue.damaged().is_empty(), "{:?}", catalogue.damaged());
    let resources = ReadResources::new(1);
    let read = |image: &Image| {
        let reader = ImageReader::open(view.store(), Arc::clone(&resources), image).expect("opens");
        let mut bytes = vec![0; image.size_bytes as usize];
        assert_eq!(reader.read_at(0, &mut bytes).expect("reads"), bytes.len());
        bytes
    };
    let entries = catalogue.entries().iter();
    let content = entries.map(|entry| (entry.backup.spec(), entry.backup.stored().map(read).collect()));
    let content = content.collect();
    let report = verify(
        &*view.store(),
        catalogue.entries(),
        &Scope::All,
        2,
        &|_| (),
        &AtomicBool::new(false),
    );
    assert_eq!(report.expect("verifies").damage, []);
    content
}

fn writer(repository: &Repository) -> Writer {
    repository.writer("test", &mut |_| true).expect("opens")
}

/// Copies what is `wanted`; returns the plan's numbers too.
fn copy_some(
    from: &Repository,
    to: &Repository,
    wanted: &dyn Fn(&Backup) -> bool,
) -> std::result::Result<Copied, CopyError> {
    let from = from.view().map_err(CopyError::From)?;
    let to = to.writer("copy", &mut |_| false).map_err(CopyError::To)?;
    let theirs = from.catalogue().map_err(CopyError::From)?;
    let ours = to.catalogue().map_err(CopyError::To)?;
    let plan = Plan::new(&theirs, &ours, wanted);
    let options = CopyOptions {
        threads: 2,
        cancel: &AtomicBool::new(false),
        observer: &|_| (),
        check_room: &|| Ok(()),
    };
    copy(&*from.store(), &to, plan, options)
}

fn copy_all(from: &Repository, to: &Repository) -> std::result::Result<Copied, CopyError> {
    copy_some(from, to, &|_| true)
}

/// Kinds of repositories to copy between: without a key, with one, with another.
fn pairs() -> Vec<(Place, Place)> {
    let keys = [1, 2].map(|_| Keys::generate().expect("random bytes"));
    let place = |id, keys: Option<&Keys>| Place::new(id, keys);
    vec![
        (place("a", None), place("b", None)),
        (place("a", Some(&keys[0])), place("b", Some(&keys[0]))),
        (place("a", None), place("b", Some(&keys[0]))),
        (place("a", Some(&keys[0])), place("b", None)),
        (place("a", Some(&keys[0])), place("b", Some(&keys[1]))),
    ]
}

const BLOCKS: usize = 30;

/// A disk of an odd length, of which some blocks change from day to day.
fn disk(seed: u32, day: u32) -> Vec<u8> {
    let mut plain = mixed_bytes(seed, BLOCKS * SMALL.bytes() - 5);
    for change in 1..=day {
        let at = (change as usize * 7 % BLOCKS) * SMALL.bytes();
        plain[at..at + 600].copy_from_slice(&mixed_bytes(seed + 100 * change, 600));
        plain[at] |= 1;
    }
    plain
}

/// Makes backups of two guests on three days.
fn three_days(place: &Place) {
    for day in 0..3 {
        for (seed, guest) in [(1, "web1"), (2, "db1")] {
            place.back_up(guest, &format!("2026-11-2{day}T00-00-00Z"), &disk(seed, day));
        }
    }
}

#[test]
fn copies_are_equal_whatever_the_keys_and_a_second_copy_has_nothing_to_do() {
    for (number, (from, to)) in pairs().into_iter().enumerate() {
        three_days(&from);
        let before = from.content();
        let copied = copy_all(&from.repository(), &to.repository()).expect("copies");
        assert_eq!((copied.backups, copied.failed.len()), (6, 0), "pair {number}");
        assert!(copied.sent.blocks > 40 && copied.sent.stored_bytes > 0);
        assert_eq!(to.content(), before, "pair {number}");
        let again = copy_all(&from.repository(), &to.repository()).expect("copies");
        assert_eq!((again.backups, again.sent), (0, Sent::default()));

        // Another day: its blocks alone, though the manifest of the other repository is not the same.
        from.back_up("web1", "2026-11-23T00-00-00Z", &disk(1, 3));
        let next = copy_all(&from.repository(), &to.repository()).expect("copies");
        assert_eq!(
            (next.backups, next.sent.blocks),
            (1, 2),
            "a block of the disk and one of the file"
        );
        assert_eq!(to.content(), from.content());
        let same = from.backups().into_iter().zip(to.backups());
        assert!(same.into_iter().all(|(one, other)| is_same(&one, &other)));
    }
}

#[test]
fn what_is_a_difference_becomes_a_whole_block() {
    for (number, (from, to)) in pairs().into_iter().enumerate() {
        for day in 0..4 {
            let time = format!("2026-11-2{day}T00-00-00Z");
            from.back_up_over("web1", &time, &disk(1, day));
        }
        assert!(!from.differences().is_empty());
        let copied = copy_all(&from.repository(), &to.repository()).expect("copies");
        assert_eq!((copied.backups, copied.failed.len()), (4, 0), "pair {number}");
        assert_eq!(to.content(), from.content(), "pair {number}");
        assert!(to.differences().is_empty());
        // Compressed as ever.
        let same = Place::new("c", to.keys.as_ref());
        for day in 0..4 {
            same.back_up("web1", &format!("2026-11-2{day}T00-00-00Z"), &disk(1, day));
        }
        let (copied, made) = (to.memory.stored_bytes(), same.memory.stored_bytes());
        assert!(copied < made + made / 20, "{copied} bytes, and not {made}");
    }
}

#[test]
fn only_the_wanted_backups_are_copied_and_the_older_ones_stay_the_older_ones() {
    for (from, to) in pairs() {
        three_days(&from);
        let web1 = |backup: &Backup| backup.guest.as_str() == "web1";
        let since = |day: &'static str| move |backup: &Backup| web1(backup) && backup.time.to_string().as_str() >= day;
        let last = since("2026-11-22");
        assert_eq!(
            copy_some(&from.repository(), &to.repository(), &last)
                .expect("copies")
                .backups,
            1
        );
        let first = |backup: &Backup| web1(backup) && !since("2026-11-21")(backup);
        assert_eq!(
            copy_some(&from.repository(), &to.repository(), &first)
                .expect("copies")
                .backups,
            1
        );
        assert_eq!(
            copy_some(&from.repository(), &to.repository(), &web1)
                .expect("copies")
                .backups,
            1
        );
        let view = to.repository().view().expect("opens");
        let catalogue = view.catalogue().expect("loads");
        let times: Vec<_> = catalogue.entries().iter().map(|entry| entry.backup.spec()).collect();
        assert_eq!(
            times,
            [
                "web1@2026-11-20T00-00-00Z",
                "web1@2026-11-21T00-00-00Z",
                "web1@2026-11-22T00-00-00Z"
            ]
        );
        let doubts = catalogue.entries().iter();
        assert!(
            doubts
                .into_iter()
                .all(|entry| catalogue.doubt(&entry.backup, Timestamp::MAX).is_none())
        );

        // What was read before they came says nothing about them.
        let read = |generation| PartRead {
            at: Timestamp::UNIX_EPOCH,
            generation,
        };
        let proven = |generation| {
            let rotation = Rotation {
                parts: vec![Some(read(generation))],
            };
            let mut states = view.states().expect("loads");
            states.rotation = rotation;
            let of = |entry: &Entry| states.of(&entry.backup).proven.is_some();
            catalogue.entries().iter().map(of).collect::<Vec<_>>()
        };
        let before = to.begun;
        assert_eq!(proven(before + 1), [false, false, true]);
        assert_eq!(proven(before + 2), [true, false, true]);
        assert_eq!(proven(before + 3), [true, true, true]);
        assert_eq!(to.content().len(), 3);
    }
}

#[test]
fn what_is_said_about_the_content_is_copied_and_nothing_else() {
    let (from, to) = (Place::new("a", None), Place::new("b", None));
    three_days(&from);
    let keys = [
        "web1@2026-11-20T00-00-00Z",
        "web1@2026-11-21T00-00-00Z",
        "web1@2026-11-22T00-00-00Z",
    ];
    let rehearsed = Rehearsed {
        at: Timestamp::UNIX_EPOCH,
        proof: Some(BootProof::Login),
        duration_ms: 5,
        accelerator: BootAccelerator::Kvm,
    };
    let of_bytes = State {
        proven: Some(Timestamp::UNIX_EPOCH),
        damaged: Some(Timestamp::UNIX_EPOCH),
        unstarted: Some(Timestamp::UNIX_EPOCH),
        ..State::default()
    };
    let first = State {
        protected: true,
        rehearsed: Some(rehearsed),
        ..of_bytes.clone()
    };
    let unreadable = Note {
        name: format!("backup/{}", keys[2]),
        value: Some(b"{".to_vec()),
    };
    let notes = [
        note_of(keys[0], first),
        note_of(keys[1], of_bytes),
        unreadable,
        note_of_rotation(&Rotation::default()),
    ];
    from.memory.amend(&[], &notes).expect("notes");
    let guessed = Mutex::new(Vec::new());
    let (theirs, ours) = (from.repository().view().expect("opens"), writer(&to.repository()));
    let plan = Plan::new(&theirs.catalogue().expect("loads"), &Catalogue::default(), &|_| true);
    let options = CopyOptions {
        threads: 1,
        cancel: &AtomicBool::new(false),
        observer: &|step| {
            if let Step::Guessed(backup) = step {
                guessed.lock().push(backup.spec());
            }
        },
        check_room: &|| Ok(()),
    };
    copy(&*theirs.store(), &ours, plan, options).expect("copies");
    assert_eq!(guessed.into_inner(), keys[2..]);
    let states = to.repository().view().expect("opens").states().expect("loads");
    let wanted = State {
        protected: true,
        rehearsed: Some(rehearsed),
        ..State::default()
    };
    assert_eq!(states.noted(keys[0]), wanted);
    assert_eq!(states.noted(keys[1]), State::default());
    assert!(states.noted(keys[2]).protected && !states.is_unread(keys[2]));
    assert_eq!(to.memory.notes().expect("lists").len(), 2);
}

#[test]
fn damage_costs_the_backups_that_have_it_and_never_gets_into_the_copy() {
    type Damage = fn(&MemoryStore, BlockId);
    let damages: [Damage; 4] = [
        |store, id| store.lose(id),
        |store, id| store.damage(id, |sealed| sealed.header[40] ^= 1),
        |store, id| store.damage(id, |sealed| sealed.pages.iter_mut().for_each(|page| page.push(0))),
        |store, id| store.damage(id, |sealed| sealed.pages.iter_mut().for_each(Vec::clear)),
    ];
    for damage in damages {
        for (number, (from, to)) in pairs().into_iter().enumerate() {
            three_days(&from);
            let changed: Vec<_> = from.blocks("web1");
            from.back_up("web1", "2026-11-23T00-00-00Z", &disk(1, 3));
            let new: Vec<_> = from
                .blocks("web1")
                .into_iter()
                .filter(|id| !changed.contains(id))
                .collect();
            assert_eq!(new.len(), 1);
            let whole = from.content();
            damage(&from.memory, new[0]);
            let copied = copy_all(&from.repository(), &to.repository()).expect("goes on");
            assert_eq!((copied.backups, copied.failed.len()), (6, 1), "pair {number}");
            let (backup, error) = &copied.failed[0];
            assert_eq!(backup, "web1@2026-11-23T00-00-00Z");
            assert!(error.to_string().contains(&new[0].to_string()), "{error}");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            let there = to.content();
            assert!(there.len() == 6 && there.iter().all(|(backup, content)| whole[backup] == *content));
        }
    }
}

#[test]
fn a_damaged_manifest_costs_the_backups_that_have_it() {
    for (from, to) in pairs() {
        three_days(&from);
        let view = from.repository().view().expect("opens");
        let catalogue = view.catalogue().expect("loads");
        let (web1, db1) = ("web1".parse().expect("a name"), "db1".parse().expect("a name"));
        let root = catalogue.latest(&web1).expect("has backups").backup.images[0].manifest;
        let other = catalogue.latest(&db1).expect("has backups").backup.images[0].manifest;
        let bytes = from.memory.nodes(&[other]).remove(0).expect("reads");
        from.memory.put_nodes(vec![(root, bytes)]).expect("puts another");
        let copied = copy_all(&from.repository(), &to.repository()).expect("goes on");
        assert_eq!((copied.backups, copied.failed.len()), (5, 1));
        assert!(
            copied.failed[0].1.to_string().contains(&root.to_string()),
            "{}",
            copied.failed[0].1
        );
        assert_eq!(to.content().len(), 5);
    }
}

#[test]
fn a_copy_that_ended_at_any_call_is_continued_and_leaves_only_whole_backups() {
    for (number, (from, to)) in pairs().into_iter().enumerate() {
        three_days(&from);
        let wanted = from.content();
        for (calls, is_source) in [(Calls::Any, true), (Calls::Any, false), (Calls::Writing, false)] {
            let mut at = 0;
            loop {
                let to = Place::new("b", to.keys.as_ref());
                let ((source, theirs), (target, ours)) = (from.faulty(), to.faulty());
                let faulty = if is_source { &source } else { &target };
                faulty.arm(Injected {
                    calls,
                    after: at,
                    kind: ErrorKind::Unavailable,
                    lasting: at % 2 == 0,
                });
                let ended = copy_all(&theirs, &ours);
                let has_failed = faulty.disarm();
                match ended {
                    Ok(copied) => assert!(copied.backups == 6 || has_failed, "pair {number}, call {at}"),
                    Err(CopyError::From(error)) => assert!(is_source, "call {at}: {error}"),
                    Err(CopyError::To(error)) => assert!(!is_source, "call {at}: {error}"),
                    Err(error) => panic!("call {at}: {error}"),
                }
                for (backup, content) in to.content() {
                    assert_eq!(content, wanted[&backup], "pair {number}, call {at}");
                }
                // The process ended, and the store is opened again.
                let copied = copy_all(&from.repository(), &to.repository()).expect("continues");
                assert!(copied.failed.is_empty());
                assert_eq!(to.content(), wanted, "pair {number}, call {at}");
                if !has_failed {
                    break;
                }
                at += 1 + at / 3;
            }
            assert!(at > 10, "{at} calls");
        }
    }
}

#[test]
fn blocks_of_an_unfinished_copy_are_not_sent_again() {
    let (from, to) = (Place::new("a", None), Place::new("b", None));
    three_days(&from);
    let (target, ours) = to.faulty();
    target.arm(Injected {
        calls: Calls::Writing,
        after: 9,
        kind: ErrorKind::Unavailable,
        lasting: true,
    });
    assert!(matches!(copy_all(&from.repository(), &ours), Err(CopyError::To(_))));
    let mut there = 0;
    to.memory
        .survey(&mut |_, _| {
            there += 1;
            Ok(())
        })
        .expect("surveys");
    assert!(there > 4, "{there}");
    let copied = copy_all(&from.repository(), &to.repository()).expect("continues");
    let mut all = 0;
    to.memory
        .survey(&mut |_, _| {
            all += 1;
            Ok(())
        })
        .expect("surveys");
    assert_eq!(copied.sent.blocks, all - there);
    assert!(copied.found_blocks >= there);
}

#[test]
fn the_latest_of_ten_thousand_backups_costs_a_few_calls() {
    for keys in [None, Some(Keys::generate().expect("random bytes"))] {
        let (from, to) = (Place::new("a", None), Place::new("b", keys.as_ref()));
        from.back_up("web1", "2026-01-01T00-00-00Z", &disk(1, 0));
        copy_all(&from.repository(), &to.repository()).expect("copies");
        let first_of = |place: &Place| place.backups()[0].clone();
        let (first, there) = (first_of(&from), first_of(&to));
        let start = first.time.timestamp();
        let is_renamed = keys.is_some();
        // Encryption writes its note about all records with each commit.
        let count = if keys.is_some() { 300 } else { 10_000 };
        for (place, like) in [(&from, &first), (&to, &there)] {
            let writer = writer(&place.repository());
            for number in 1..count {
                let time = BackupTimeOf(start, number).time();
                let backup = Backup {
                    time,
                    sequence: number,
                    ..like.clone()
                };
                let (key, bytes) = (backup.spec(), backup.encode());
                writer.store().commit(&Record { key, bytes }).expect("commits");
            }
        }
        if is_renamed {
            // As a copy leaves it.
            let view = from.repository().view().expect("opens");
            let last = view
                .catalogue()
                .expect("loads")
                .latest(&first.guest)
                .cloned()
                .expect("is there");
            let state = State {
                copy_of: Some(last.id),
                ..State::default()
            };
            let manager = to.repository().manager("test", &mut |_| true).expect("opens");
            manager
                .store()
                .amend(&[], &[note_of(&last.backup.spec(), state)])
                .expect("notes");
        }
        from.back_up("web1", "2026-12-01T00-00-00Z", &disk(1, 1));
        let far =
            |place: &Place| Arc::new(Delayed::new(place.memory.clone(), Duration::from_millis(1)).expect("starts"));
        let (source, target) = (far(&from), far(&to));
        let (theirs, ours) = (from.through(Arc::clone(&source)), to.through(Arc::clone(&target)));
        let before = (source.calls(), target.calls());
        let copied = copy_all(&theirs, &ours).expect("copies");
        assert_eq!((copied.backups, copied.sent.blocks), (1, 2));
        let after = (source.calls(), target.calls());
        assert_eq!(after.0.blocks - before.0.blocks, 2, "only what changed is read");
        let waits = (after.0.waits - before.0.waits, after.1.waits - before.1.waits);
        assert!(waits.0 <= 30 && waits.1 <= 40, "{waits:?}");
        // Nothing to do.
        copy_all(&theirs, &ours).expect("copies");
        let last = (
            source.calls().waits - after.0.waits,
            target.calls().waits - after.1.waits,
        );
        assert!(last.0 <= 12 && last.1 <= 12, "{last:?}");
    }
}

struct BackupTimeOf(Timestamp, u64);

impl BackupTimeOf {
    fn time(&self) -> crate::name::BackupTime {
        crate::name::BackupTime::new(self.0 + jiff::SignedDuration::from_secs(self.1 as i64))
    }
}

#[test]
fn unchanged_parts_of_a_disk_are_neither_read_nor_looked_for() {
    let keys = Keys::generate().expect("random bytes");
    for to_keys in [None, Some(&keys)] {
        let (from, to) = (Place::new("a", None), Place::new("b", to_keys));
        // Three segments, mostly zeros.
        let mut plain = vec![0; 2100 * SMALL.bytes()];
        for segment in 0..3 {
            let at = segment * 1024 * SMALL.bytes();
            plain[at..at + 10 * SMALL.bytes()].copy_from_slice(&mixed_bytes(segment as u32, 10 * SMALL.bytes()));
        }
        from.back_up("web1", "2026-11-20T00-00-00Z", &plain);
        copy_all(&from.repository(), &to.repository()).expect("copies");
        let at = 1030 * SMALL.bytes();
        plain[at..at + 100].fill(7);
        from.back_up("web1", "2026-11-21T00-00-00Z", &plain);
        let before = to.content();
        let copied = copy_all(&from.repository(), &to.repository()).expect("copies");
        assert_eq!(copied.sent.blocks, 2);
        // The blocks of the one segment that changed, at most.
        assert!(copied.found_blocks <= 11, "{}", copied.found_blocks);
        let after = to.content();
        assert_eq!(after, from.content());
        assert!(before.iter().all(|(backup, content)| after[backup] == *content));
    }
}

#[test]
fn a_backup_that_only_looks_like_a_copy_changes_no_copy() {
    for (from, to) in pairs() {
        from.back_up("web1", "2026-11-20T00-00-00Z", &disk(1, 0));
        let first = from.backups().remove(0);
        // Somebody who may add backups there knows the record, and has other content for it.
        let writer = writer(&to.repository());
        let other = |image: &Image| {
            let bytes = disk(77, 0)[..image.size_bytes as usize].to_vec();
            let manifest = store_image_after(writer.store(), "vda", &bytes, None).manifest;
            Image {
                manifest,
                ..image.clone()
            }
        };
        let forged = Backup {
            images: first.images.iter().map(other).collect(),
            files: first.files.iter().map(other).collect(),
            ..first.clone()
        };
        assert!(is_same(&first, &forged));
        let (key, bytes) = (forged.spec(), forged.encode());
        writer.store().commit(&Record { key, bytes }).expect("commits");
        drop(writer);
        for day in 1..3 {
            from.back_up("web1", &format!("2026-11-2{day}T00-00-00Z"), &disk(1, day));
            copy_all(&from.repository(), &to.repository()).expect("copies");
        }
        let (mut wanted, mut there) = (from.content(), to.content());
        assert_eq!((wanted.len(), there.len()), (3, 3));
        // It stays what it is.
        assert!(wanted.remove(&first.spec()) != there.remove(&first.spec()));
        assert!(wanted == there, "a later copy has another content");
    }
}

#[test]
fn condemned_blocks_are_sent_again() {
    for (from, to) in pairs() {
        three_days(&from);
        copy_all(&from.repository(), &to.repository()).expect("copies");
        let id = to.blocks("web1")[3];
        to.memory.damage(id, |sealed| sealed.header[30] ^= 1);
        to.memory.condemn(&[id]).expect("condemns");
        from.back_up("web1", "2026-11-23T00-00-00Z", &disk(1, 3));
        let copied = copy_all(&from.repository(), &to.repository()).expect("copies");
        assert_eq!(copied.sent.blocks, 3);
        assert_eq!(to.content(), from.content());
        assert_eq!(to.memory.condemned().expect("lists"), []);
    }
}

#[test]
fn another_backup_of_the_same_name_stays_as_it_is() {
    let (from, to) = (Place::new("a", None), Place::new("b", None));
    three_days(&from);
    to.back_up("web1", "2026-11-21T00-00-00Z", &disk(7, 0)[SMALL.bytes()..]);
    let before = to.content();
    let (theirs, ours) = (
        from.repository().view().expect("opens"),
        to.repository().view().expect("opens"),
    );
    let catalogues = (theirs.catalogue().expect("loads"), ours.catalogue().expect("loads"));
    let plan = Plan::new(&catalogues.0, &catalogues.1, &|_| true);
    assert_eq!((plan.missing.len(), plan.present), (5, 0));
    assert_eq!(plan.taken, ["web1@2026-11-21T00-00-00Z"]);
    copy_all(&from.repository(), &to.repository()).expect("copies");
    let after = to.content();
    assert_eq!(after.len(), 6);
    assert_eq!(after["web1@2026-11-21T00-00-00Z"], before["web1@2026-11-21T00-00-00Z"]);

    // Another process made it after the plan.
    let writer = writer(&to.repository());
    to.memory
        .amend(&["db1@2026-11-20T00-00-00Z".into()], &[])
        .expect("removes");
    let plan = Plan::new(&catalogues.0, &writer.catalogue().expect("loads"), &|_| true);
    to.back_up("db1", "2026-11-20T00-00-00Z", b"another");
    let options = CopyOptions {
        threads: 1,
        cancel: &AtomicBool::new(false),
        observer: &|_| (),
        check_room: &|| Ok(()),
    };
    let copied = copy(&*theirs.store(), &writer, plan, options).expect("goes on");
    assert_eq!((copied.backups, copied.failed.len()), (0, 1));
    assert!(matches!(copied.failed[0].1, Error::BackupExists(_)));
}

#[test]
fn one_repository_and_other_block_sizes_are_refused() {
    let (from, to) = (Place::new("a", None), Place::new("a", None));
    three_days(&from);
    assert!(matches!(
        copy_all(&from.repository(), &to.repository()),
        Err(CopyError::Same { .. })
    ));
    let other = Place {
        memory: Arc::new(MemoryStore::new(BlockSize::DEFAULT)),
        keys: None,
        begun: 0,
    };
    assert!(matches!(
        copy_all(&from.repository(), &other.repository()),
        Err(CopyError::BlockSizes { from: 65536, .. })
    ));
    assert_eq!(other.memory.records().expect("lists"), []);
}

#[test]
fn a_copy_that_is_stopped_ends_soon_and_a_full_disk_ends_it_before_anything_is_written() {
    let (from, to) = (Place::new("a", None), Place::new("b", None));
    three_days(&from);
    let (theirs, ours) = (from.repository().view().expect("opens"), writer(&to.repository()));
    let plan = || Plan::new(&theirs.catalogue().expect("loads"), &Catalogue::default(), &|_| true);
    let cancel = AtomicBool::new(false);
    let full = || {
        Err(Error::NearlyFull {
            path: "/b".into(),
            free_bytes: 1,
            reserve_bytes: 2,
        })
    };
    let options = CopyOptions {
        threads: 2,
        cancel: &cancel,
        observer: &|step| {
            if matches!(step, Step::Copied(..)) {
                cancel.store(true, Ordering::SeqCst);
            }
        },
        check_room: &full,
    };
    let ended = copy(&*theirs.store(), &ours, plan(), options);
    assert!(matches!(ended, Err(CopyError::To(Error::NearlyFull { .. }))));
    assert_eq!(to.memory.records().expect("lists"), []);
    let options = CopyOptions {
        check_room: &|| Ok(()),
        ..options
    };
    let ended = copy(&*theirs.store(), &ours, plan(), options);
    assert!(matches!(ended, Err(CopyError::To(Error::Interrupted))));
    assert_eq!(to.content().len(), 1);
}

/// A store that loses what was put once, at the first commit, like a server that was restarted.
struct Forgetful {
    store: Arc<MemoryStore>,
    put: Mutex<Vec<BlockId>>,
    tries: Mutex<u32>,
}

impl StoreReader for Forgetful {
    fn identity(&self) -> Result<Identity> {
        self.store.identity()
    }
    fn generation(&self) -> Result<u64> {
        self.store.generation()
    }
    fn locate(&self, ids: &[BlockId]) -> Result<Vec<Option<Located>>> {
        self.store.locate(ids)
    }
    fn survey_from(&self, from: BlockId, each: &mut dyn FnMut(BlockId, Located) -> Result<()>) -> Result<()> {
        self.store.survey_from(from, each)
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

impl StoreWriter for Forgetful {
    fn put(&self, blocks: Vec<Sealed>) -> Result<()> {
        self.put.lock().extend(blocks.iter().map(|block| block.id));
        self.store.put(blocks)
    }
    fn put_nodes(&self, nodes: Vec<(NodeId, Vec<u8>)>) -> Result<()> {
        self.store.put_nodes(nodes)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn commit_at(&self, record: &Record, notes: &[Note], at: Option<u64>) -> Result<()> {
        let mut tries = self.tries.lock();
        if *tries == 0 {
            return self.store.commit_at(record, notes, at);
        }
        *tries -= 1;
        let blocks = std::mem::take(&mut *self.put.lock());
        blocks.iter().for_each(|id| self.store.lose(*id));
        Err(Error::Missing {
            blocks,
            nodes: Vec::new(),
        })
    }
}

impl StoreManager for Forgetful {
    fn amend_at(&self, remove_records: &[String], notes: &[Note], at: Option<u64>) -> Result<()> {
        self.store.amend_at(remove_records, notes, at)
    }
    fn condemn(&self, ids: &[BlockId]) -> Result<()> {
        self.store.condemn(ids)
    }
    fn pardon(&self, ids: &[BlockId]) -> Result<()> {
        self.store.pardon(ids)
    }
    fn retain(&self, live: &Live, options: PruneOptions, step: &mut dyn FnMut(&Swept) -> Result<()>) -> Result<Swept> {
        self.store.retain(live, options, step)
    }
}

#[test]
fn what_the_other_store_lost_meanwhile_is_sent_again() {
    for (from, to) in pairs() {
        three_days(&from);
        let web1_once = |backup: &Backup| backup.spec() == "web1@2026-11-20T00-00-00Z";
        copy_some(&from.repository(), &to.repository(), &web1_once).expect("copies");
        let forgetful = |tries| {
            Arc::new(Forgetful {
                store: to.memory.clone(),
                put: Mutex::default(),
                tries: Mutex::new(tries),
            })
        };
        let ended = copy_all(&from.repository(), &to.through(forgetful(1 + MOST_TRIES)));
        assert!(
            matches!(ended, Err(CopyError::To(Error::Missing { .. }))),
            "not for ever"
        );
        assert_eq!(to.content().len(), 1);
        let copied = copy_all(&from.repository(), &to.through(forgetful(2))).expect("copies");
        assert_eq!((copied.backups, copied.failed.len()), (5, 0));
        assert_eq!(to.content(), from.content());
    }
}

#[test]
fn blocks_of_a_copy_that_was_stopped_are_on_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = CreateOptions::plain(SMALL);
    let make = |name: &str| Repository::create(&directory.path().join(name), &options).expect("creates");
    let (from, to) = (make("from"), make("to"));
    let source = writer(&from);
    // Runs of a copy have 64 blocks.
    let image = store_image_after(source.store(), "vda", &mixed_bytes(1, 1000 * SMALL.bytes()), None);
    let made = backup("web1", "2026-11-20T00-00-00Z", vec![image]);
    source.commit(made).expect("commits");
    drop(source);
    let mut sent = Vec::new();
    for stops in [true, false] {
        let (theirs, ours) = (from.view().expect("opens"), writer(&to));
        let plan = Plan::new(&theirs.catalogue().expect("loads"), &Catalogue::default(), &|_| true);
        let (cancel, blocks) = (AtomicBool::new(false), Mutex::new(0));
        let options = CopyOptions {
            threads: 1,
            cancel: &cancel,
            observer: &|step| {
                if let Step::Read(bytes) = step {
                    let mut read = blocks.lock();
                    *read += bytes / SMALL.bytes() as u64;
                    cancel.store(stops && *read > 200, Ordering::SeqCst);
                }
            },
            check_room: &|| Ok(()),
        };
        let ended = copy(&*theirs.store(), &ours, plan, options);
        assert_eq!(ended.is_err(), stops);
        sent.push(blocks.into_inner());
    }
    assert!(sent[0] > 200 && sent[1] > 0, "{sent:?}");
    let stored = {
        let mut stored = 0;
        let store = to.view().expect("opens").store();
        store
            .survey(&mut |_, _| {
                stored += 1;
                Ok(())
            })
            .expect("surveys");
        stored
    };
    assert_eq!(sent[0] + sent[1], stored, "nothing is sent twice: {sent:?}");
}
