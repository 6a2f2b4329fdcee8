//! Copies without the key.

use std::path::Path;

use super::*;
use crate::copy::{SealedCopied, SealedPlan, copy_sealed};
use crate::repository::CreateOptions;
use crate::store::encrypted::uncounted;
use crate::store::{Note, Record};

/// A repository on the disk, because its store proves what a commit needs.
struct Target {
    directory: tempfile::TempDir,
    keys: Keys,
}

impl Target {
    fn new(keys: &Keys) -> Self {
        let target = Self {
            directory: tempfile::tempdir().expect("a directory"),
            keys: keys.clone(),
        };
        let options = CreateOptions {
            block_size: SMALL,
            encryption: Some((keys.clone(), Vec::new())),
            parents: false,
        };
        Repository::create(&target.path(), &options).expect("creates");
        target
    }

    fn path(&self) -> std::path::PathBuf {
        Path::new(self.directory.path()).join("repo")
    }

    fn without_key(&self) -> Repository {
        Repository::open(&self.path()).expect("opens")
    }

    fn repository(&self) -> Repository {
        self.without_key().with_keys(self.keys.clone())
    }

    fn foreign_changes(&self) -> Vec<String> {
        let view = self.repository().view().expect("opens");
        view.store().foreign_changes().expect("compares")
    }

    fn list(&self) -> Option<Note> {
        let view = self.without_key().sealed_view().expect("opens");
        let found = view.store.lookup(&[], &[uncounted::NAME.into()]).expect("looks up");
        found.notes.into_iter().next()
    }

    /// Changes records and notes without the key.
    fn change(&self, records: &[Record], notes: &[Note]) {
        let writer = self.without_key().sealed_writer("test", &mut |_| true).expect("opens");
        for record in records {
            writer.store.commit_at(record, notes, None).expect("commits");
        }
        writer.keeper.publish().expect("publishes");
    }
}

fn copy_to(from: &Repository, to: &Target, cancel: &AtomicBool) -> std::result::Result<SealedCopied, CopyError> {
    let from = from.sealed_view().map_err(CopyError::From)?;
    let to = to.without_key();
    let to = to.sealed_writer("copy", &mut |_| true).map_err(CopyError::To)?;
    let theirs = from.store.listing(false).map_err(CopyError::From)?;
    let plan = SealedPlan::new(theirs, &to.store.listing(false).map_err(CopyError::To)?, None);
    let options = CopyOptions {
        threads: 2,
        cancel,
        observer: &|_| (),
        check_room: &|| Ok(()),
    };
    copy_sealed(&from, &to, plan, options, &mut |_, _| ())
}

fn copied(from: &Place, to: &Target) -> SealedCopied {
    let copied = copy_to(&from.repository(), to, &AtomicBool::new(false)).expect("copies");
    assert!(copied.unpublished.is_none());
    copied
}

/// Copies one backup, and no other fails.
fn assert_one_copied(from: &Place, to: &Target) {
    let SealedCopied { copied, failed, .. } = copied(from, to);
    assert_eq!((copied.len(), failed.len()), (1, 0), "{failed:?}");
}

#[test]
fn a_copy_without_the_key_is_whole_for_those_who_have_it() {
    let keys = Keys::generate().expect("random bytes");
    let (from, to) = (Place::new("a", Some(&keys)), Target::new(&keys));
    three_days(&from);
    let first = copied(&from, &to);
    assert_eq!(first.copied.len(), from.content().len());
    assert!(first.failed.is_empty(), "{:?}", first.failed);
    assert_eq!(content_of(&to.repository()), from.content());
    assert_eq!(to.foreign_changes(), [""; 0]);
    assert!(to.list().is_some());
    assert_eq!(copied(&from, &to).copied, []);

    // A day later only what changed travels.
    from.back_up("web1", "2026-11-23T00-00-00Z", &disk(1, 3));
    let later = copied(&from, &to);
    assert_eq!(later.copied.len(), 1);
    // The changed block, and the small file beside the disk.
    assert_eq!(later.sent.blocks, 2);
    assert_eq!(content_of(&to.repository()), from.content());

    // Whoever has the key counts them with the next change, and the list is gone.
    let manager = to.repository().manager("test", &mut |_| true).expect("opens");
    manager
        .amend(&["web1@2026-11-23T00-00-00Z".into()], &[])
        .expect("forgets");
    drop(manager);
    assert_eq!((to.foreign_changes(), to.list()), (vec![], None));
    let content = content_of(&to.repository());
    assert_eq!(content.len() + 1, from.content().len());
    let sealed = to
        .without_key()
        .sealed_view()
        .expect("opens")
        .store
        .records()
        .expect("lists");
    assert_eq!(sealed.len(), content.len());
}

#[test]
fn a_copy_without_the_key_reads_every_node_once() {
    let keys = Keys::generate().expect("random bytes");
    let (from, to) = (Place::new("a", Some(&keys)), Target::new(&keys));
    for (day, time) in ["2026-11-20T00-00-00Z", "2026-11-21T00-00-00Z"].into_iter().enumerate() {
        from.back_up("web1", time, &disk(1, day as u32));
    }
    let far = Arc::new(Delayed::new(from.memory.clone(), Duration::from_millis(1)).expect("starts"));
    let repository = from.through(Arc::clone(&far));
    let before = far.calls().nodes;
    let copied = copy_to(&repository, &to, &AtomicBool::new(false)).expect("copies");
    assert_eq!(copied.copied.len(), 2);
    assert_eq!(far.calls().nodes - before, from.memory.node_ids().len() as u64);
    assert_eq!(content_of(&to.repository()), from.content());
}

#[test]
fn a_copy_without_the_key_that_ended_is_continued() {
    let keys = Keys::generate().expect("random bytes");
    let (from, to) = (Place::new("a", Some(&keys)), Target::new(&keys));
    three_days(&from);
    let ended = copy_to(&from.repository(), &to, &AtomicBool::new(true));
    assert!(matches!(ended, Err(CopyError::To(Error::Interrupted))));
    assert!(content_of(&to.repository()).is_empty());
    assert_eq!(to.foreign_changes(), [""; 0]);
    copied(&from, &to);
    assert_eq!(content_of(&to.repository()), from.content());
}

#[test]
fn damage_costs_the_sealed_backups_that_have_it() {
    let keys = Keys::generate().expect("random bytes");
    let (from, to) = (Place::new("a", Some(&keys)), Target::new(&keys));
    three_days(&from);
    let last = from.blocks("web1");
    from.back_up("web2", "2026-11-23T00-00-00Z", &disk(77, 0));
    from.memory.damage(last[3], |sealed| sealed.pages[0][5] ^= 1);
    let done = copied(&from, &to);
    assert!(!done.failed.is_empty() && !done.copied.is_empty());
    assert!(done.failed.iter().all(|(_, error)| error.kind() == ErrorKind::Corrupt));
    let content = content_of(&to.repository());
    assert_eq!(content.len(), done.copied.len());
    assert!(content.keys().any(|backup| backup.starts_with("web2@2026-11-23")));
    // Sent again once it is whole there.
    from.memory.damage(last[3], |sealed| sealed.pages[0][5] ^= 1);
    copied(&from, &to);
    assert_eq!(content_of(&to.repository()), from.content());
}

#[test]
fn only_repositories_with_one_key_and_sums_are_copied_without_it() {
    let keys = [1, 2].map(|_| Keys::generate().expect("random bytes"));
    let (from, to) = (Place::new("a", Some(&keys[0])), Target::new(&keys[1]));
    three_days(&from);
    let none = AtomicBool::new(false);
    assert!(matches!(
        copy_to(&from.repository(), &to, &none),
        Err(CopyError::OtherKey)
    ));
    let plain = Place::new("a", None);
    let refused = copy_to(&plain.repository(), &to, &none);
    assert!(
        matches!(refused, Err(CopyError::From(Error::NotEncrypted { .. }))),
        "{refused:?}"
    );
}

#[test]
fn the_list_of_uncounted_records_hides_no_change() {
    let keys = Keys::generate().expect("random bytes");
    let (from, to) = (Place::new("a", Some(&keys)), Target::new(&keys));
    three_days(&from);
    copied(&from, &to);
    // Counted from here on.
    let repository = to.repository();
    repository
        .manager("test", &mut |_| true)
        .expect("opens")
        .amend(&[], &[])
        .expect("counts");
    assert_eq!((to.foreign_changes(), to.list()), (vec![], None));
    let sealed = to
        .without_key()
        .sealed_view()
        .expect("opens")
        .store
        .records()
        .expect("lists");
    let listed = |names: &[&str]| uncounted::note(&names.iter().map(|name| (*name).to_owned()).collect());

    // A record that was never sealed.
    let mut garbage = sealed[0].clone();
    garbage
        .key
        .replace_range(..1, if garbage.key.starts_with('0') { "1" } else { "0" });
    to.change(std::slice::from_ref(&garbage), &[listed(&[&garbage.key])]);
    assert_eq!(to.foreign_changes().len(), 1);
    let manager = repository.manager("test", &mut |_| true).expect("opens");
    assert_eq!(manager.store().accept().expect("accepts").len(), 1);
    manager.writer().publish().expect("publishes");
    drop(manager);
    assert_eq!((to.foreign_changes(), to.list()), (vec![], None));

    // A counted record on the list does not make up for a lost one.
    let other = Record {
        key: "1".repeat(64),
        bytes: sealed[0].bytes.clone(),
    };
    to.change(&[other], &[listed(&[&sealed[0].key])]);
    assert_ne!(to.foreign_changes(), [""; 0]);
}

#[test]
fn a_copy_without_the_key_takes_differences_and_their_bases() {
    let keys = Keys::generate().expect("random bytes");
    let (from, to) = (Place::new("a", Some(&keys)), Target::new(&keys));
    let differences = |target: &Target| differences_in(&*target.without_key().sealed_view().expect("opens").store);
    for day in 0..3 {
        let time = format!("2026-11-2{day}T00-00-00Z");
        from.back_up_over("web1", &time, &disk(1, day));
    }
    // The blocks that the first two have alone are in no backup that is copied.
    let old = ["2026-11-20T00-00-00Z", "2026-11-21T00-00-00Z"].map(|time| format!("web1@{time}"));
    let manager = from.repository().manager("test", &mut |_| true).expect("opens");
    manager.amend(&old, &[]).expect("forgets");
    assert!(!from.differences().is_empty());
    assert_one_copied(&from, &to);
    assert_eq!(differences(&to), from.differences());
    assert_eq!(content_of(&to.repository()), from.content());
    assert_eq!(to.foreign_changes(), [""; 0]);
    // A prune there keeps the bases.
    let mut manager = to.repository().manager("test", &mut |_| true).expect("opens");
    let options = crate::store::PruneOptions {
        max_unused: 0.0,
        dry_run: false,
        empty_bin: true,
    };
    manager
        .prune(options, 2, &AtomicBool::new(false), &|_| ())
        .expect("prunes");
    assert_eq!(content_of(&to.repository()), from.content());
}

#[test]
fn a_repository_that_has_the_base_as_a_difference_takes_others_from_it() {
    let keys = Keys::generate().expect("random bytes");
    let (from, to) = (Place::new("a", Some(&keys)), Target::new(&keys));
    for day in 0..2 {
        from.back_up_over("web1", &format!("2026-11-2{day}T00-00-00Z"), &disk(1, day));
    }
    assert_eq!(copied(&from, &to).failed.len(), 0);
    let (one, _) = from.differences().pop_first().expect("there is one");
    // It is damaged and stored again, as a whole, where it comes from.
    let manager = from.repository().manager("test", &mut |_| true).expect("opens");
    manager.store().condemn(&[one]).expect("condemns");
    store_image_after(manager.store(), "vda", &disk(1, 1), None);
    drop(manager);
    assert!(!from.differences().contains_key(&one));
    // A block of the next day is a difference from it.
    let mut next = disk(1, 1);
    let at = 7 * SMALL.bytes() + 40_000;
    next[at..at + 10].copy_from_slice(b"a new text");
    from.back_up_over("web1", "2026-11-22T00-00-00Z", &next);
    assert!(
        from.differences().values().any(|base| *base == one),
        "{:?}",
        from.differences()
    );
    assert_one_copied(&from, &to);
    assert_eq!(content_of(&to.repository()), from.content());
}

/// Stores two disks without a backup, the second as differences from the first, and condemns a block, but not what depends on it.
/// Returns all differences.
fn store_over(to: &Target, disks: [&[u8]; 2], condemned: BlockId, base: BlockId) -> BTreeMap<BlockId, BlockId> {
    let manager = to.repository().manager("test", &mut |_| true).expect("opens");
    let first = store_image_after(manager.store(), "vda", disks[0], None);
    manager.store().flush().expect("flushes");
    store_image_over(manager.store(), "vda", disks[1], &first);
    manager.store().flush().expect("flushes");
    manager.store().condemn(&[condemned]).expect("condemns");
    manager.store().pardon(&[base]).expect("pardons");
    differences_in(manager.store())
}

#[test]
fn a_damaged_block_is_replaced_by_a_difference_unless_that_depends_on_it() {
    let keys = Keys::generate().expect("random bytes");
    for in_a_circle in [false, true] {
        let (from, to) = (Place::new("a", Some(&keys)), Target::new(&keys));
        let days = [disk(1, 0), disk(1, 1)];
        for (day, plain) in days.iter().enumerate() {
            from.back_up_over("web1", &format!("2026-11-2{day}T00-00-00Z"), plain);
        }
        from.back_up("db1", "2026-11-25T00-00-00Z", &disk(2, 0));
        let (one, base) = from.differences().pop_first().expect("there is one");
        match in_a_circle {
            // The block is there as a whole.
            false => assert_eq!(store_over(&to, [&days[1], &days[1]], one, base), [].into()),
            // And the base is a difference from it.
            true => assert_eq!(store_over(&to, [&days[1], &days[0]], one, base), [(base, one)].into()),
        }
        let copied = copied(&from, &to);
        let failed: Vec<_> = copied.failed.iter().map(|failed| format!("{failed:?}")).collect();
        match in_a_circle {
            false => {
                assert_eq!(failed, [""; 0]);
                assert_eq!(content_of(&to.repository()), from.content());
                let view = to.without_key().sealed_view().expect("opens");
                assert_eq!(differences_in(&*view.store), [(one, base)].into());
                assert_eq!(view.store.condemned().expect("lists"), []);
            }
            true => {
                assert_eq!(failed.len(), 1, "{failed:?}");
                assert!(failed[0].contains("depends on it there"), "{failed:?}");
                let copied: Vec<_> = content_of(&to.repository()).into_keys().collect();
                assert!(copied.iter().any(|key| key.starts_with("db1")), "{copied:?}");
            }
        }
    }
}
