//! Slots, key files and exported keys on a real file system.

use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::error::ErrorKind;

const CHEAP: PassphraseCost = PassphraseCost {
    memory_kib: 8,
    passes: 1,
    lanes: 1,
};

fn passphrase(text: &str) -> Unlock {
    Unlock::Passphrase(text.to_owned().into())
}

fn key_file(text: &[u8]) -> Unlock {
    Unlock::KeyFile(text.to_vec().into())
}

fn recovery() -> Unlock {
    Unlock::Recovery(RecoveryKey::generate().expect("random"))
}

/// One of each kind.
fn each_kind() -> [Unlock; 3] {
    let dir = TempDir::new().expect("a directory");
    let file = create_key_file(&dir.path().join("key")).expect("creates");
    [passphrase("correct horse"), file, recovery()]
}

struct Repo {
    dir: TempDir,
    keys: Keys,
}

impl Repo {
    fn new() -> Self {
        Self {
            dir: TempDir::new().expect("a directory"),
            keys: Keys::generate().expect("random"),
        }
    }

    fn with(name: &str, way: &Unlock) -> Self {
        let repo = Self::new();
        repo.add(name, way).expect("adds");
        repo
    }

    fn add(&self, name: &str, way: &Unlock) -> Result<()> {
        add(self.dir.path(), name, &self.keys, way, CHEAP)
    }

    fn unlock(&self, way: &Unlock) -> Result<Keys> {
        unlock(self.dir.path(), way, Some(&self.keys.check()))
    }

    fn remove(&self, name: &str, way: &Unlock) -> Result<()> {
        remove(self.dir.path(), name, way, &self.keys.check())
    }

    fn opens(&self, way: &Unlock) -> bool {
        self.unlock(way).is_ok_and(|keys| *keys.master == *self.keys.master)
    }

    fn file(&self, name: &str) -> PathBuf {
        slot_path(self.dir.path(), name)
    }

    fn edit(&self, name: &str, edit: impl FnOnce(String) -> String) {
        let text = fs::read_to_string(self.file(name)).expect("reads");
        fs::write(self.file(name), edit(text)).expect("writes");
    }

    /// Edits a slot as an attacker would who can compute the checksum.
    fn forge(&self, name: &str, from: &str, to: &str) {
        self.edit(name, |text| {
            assert!(text.contains(from), "{text}");
            String::from_utf8(Slot::forge(text.replace(from, to).as_bytes())).expect("text")
        });
    }
}

#[test]
fn each_kind_goes_there_and_back_and_opens_no_other_slot() {
    let ways = each_kind();
    let strangers = [
        passphrase("Correct horse"),
        key_file("5".repeat(64).as_bytes()),
        recovery(),
    ];
    for (number, way) in ways.iter().enumerate() {
        let repo = Repo::with("main", way);
        assert!(repo.opens(way));
        for other in ways
            .iter()
            .chain(&strangers)
            .enumerate()
            .filter(|(other, _)| *other != number)
        {
            let error = repo.unlock(other.1).expect_err("refused");
            assert!(matches!(error, Error::WrongKey { .. }), "{error}");
            assert_eq!(error.kind(), ErrorKind::Denied);
        }
    }
    let repo = Repo::new();
    for (way, name) in ways.iter().zip(["c", "a", "b"]) {
        repo.add(name, way).expect("adds");
    }
    assert!(ways.iter().all(|way| repo.opens(way)));
    let slots: Vec<_> = slots(repo.dir.path())
        .expect("lists")
        .into_iter()
        .map(|slot| slot.expect("good"))
        .collect();
    let seen: Vec<_> = slots.iter().map(|slot| (slot.name.as_str(), slot.kind)).collect();
    assert_eq!(
        seen,
        [
            ("a", SlotKind::KeyFile),
            ("b", SlotKind::Recovery),
            ("c", SlotKind::Passphrase)
        ]
    );
}

#[test]
fn several_slots_of_a_kind_are_all_tried() {
    let repo = Repo::new();
    for name in ["ann", "bob", "cem"] {
        repo.add(name, &passphrase(name)).expect("adds");
    }
    assert!(["ann", "bob", "cem"].iter().all(|name| repo.opens(&passphrase(name))));
    repo.remove("bob", &passphrase("ann")).expect("removes");
    assert!(!repo.opens(&passphrase("bob")) && repo.opens(&passphrase("cem")));
}

#[test]
fn only_the_owner_can_read_slots_and_key_files() {
    let repo = Repo::with("main", &passphrase("x"));
    let mode = |path: &Path| path.metadata().expect("is there").permissions().mode() & 0o777;
    assert_eq!(mode(&repo.file("main")), 0o600);
    assert_eq!(mode(&repo.dir.path().join(DIRECTORY)), 0o700);
    let path = repo.dir.path().join("key");
    let way = create_key_file(&path).expect("creates");
    assert_eq!(mode(&path), 0o600);
    let Unlock::KeyFile(bytes) = &way else {
        panic!("{way:?}")
    };
    assert_eq!(fs::read(&path).expect("reads"), **bytes);
    assert_eq!(create_key_file(&path).expect_err("refused").kind(), ErrorKind::Invalid);
    assert_eq!(fs::read(&path).expect("reads"), **bytes);
}

#[test]
fn a_flipped_byte_of_a_slot_gives_an_error_or_the_right_key() {
    for way in each_kind() {
        let repo = Repo::with("main", &way);
        let good = fs::read(repo.file("main")).expect("reads");
        let mut refused = 0;
        for place in 0..good.len() {
            for flip in (0..8).map(|bit| 1 << bit).chain([0xFF]) {
                let mut bytes = good.clone();
                bytes[place] ^= flip;
                fs::write(repo.file("main"), &bytes).expect("writes");
                // Without the check, so that only the slot itself can refuse another key.
                match unlock(repo.dir.path(), &way, None) {
                    Ok(keys) => assert_eq!(*keys.master, *repo.keys.master, "byte {place}"),
                    Err(Error::KeySlotDamaged { path, .. }) => {
                        refused += 1;
                        assert_eq!(path, repo.file("main"));
                    }
                    Err(error) => panic!("byte {place}: {error}"),
                }
            }
        }
        assert!(refused > good.len() * 6, "{refused}");
    }
}

#[test]
fn a_flipped_byte_with_a_corrected_checksum_never_gives_another_key() {
    for way in each_kind() {
        let repo = Repo::with("main", &way);
        let good = fs::read(repo.file("main")).expect("reads");
        for place in 0..good.len() {
            let mut bytes = good.clone();
            bytes[place] ^= 1;
            if serde_json::from_slice::<Slot>(&bytes).is_err() {
                continue;
            }
            fs::write(repo.file("main"), Slot::forge(&bytes)).expect("writes");
            match unlock(repo.dir.path(), &way, None) {
                Ok(keys) => assert_eq!(*keys.master, *repo.keys.master, "byte {place}"),
                Err(error) => assert!(
                    matches!(error, Error::WrongKey { .. } | Error::KeySlotDamaged { .. }),
                    "{error}"
                ),
            }
        }
    }
}

#[test]
fn a_slot_changed_on_purpose_opens_with_nothing() {
    let repo = Repo::with("main", &passphrase("x"));
    repo.forge("main", "\"passes\": 1", "\"passes\": 2");
    assert!(matches!(repo.unlock(&passphrase("x")), Err(Error::WrongKey { .. })));
    let way = recovery();
    let repo = Repo::with("main", &way);
    let year = Timestamp::now().strftime("%Y-").to_string();
    repo.forge("main", &year, "1999-");
    assert!(matches!(repo.unlock(&way), Err(Error::WrongKey { .. })));
    repo.forge("main", "\"recovery\"", "\"key-file\"");
    assert!(matches!(repo.unlock(&way), Err(Error::WrongKey { .. })));
}

#[test]
fn a_slot_under_another_name_is_damaged() {
    let way = recovery();
    let repo = Repo::with("main", &way);
    fs::rename(repo.file("main"), repo.file("other")).expect("renames");
    let error = repo.unlock(&way).expect_err("refused");
    assert!(
        error.to_string().contains("it belongs to a key named \"main\""),
        "{error}"
    );
    repo.forge("other", "\"main\"", "\"other\"");
    assert!(matches!(repo.unlock(&way), Err(Error::WrongKey { .. })));
}

#[test]
fn cut_empty_and_endless_files_are_damaged() {
    for way in each_kind() {
        let repo = Repo::with("main", &way);
        let good = fs::read(repo.file("main")).expect("reads");
        // Everything except the line end.
        for len in 0..good.len() - 1 {
            fs::write(repo.file("main"), &good[..len]).expect("writes");
            let error = repo.unlock(&way).expect_err("refused");
            assert!(matches!(error, Error::KeySlotDamaged { .. }), "{len}: {error}");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
        let mut long = good.clone();
        long.resize(10 << 20, b' ');
        fs::write(repo.file("main"), long).expect("writes");
        assert!(matches!(repo.unlock(&way), Err(Error::KeySlotDamaged { .. })));
    }
}

#[test]
fn a_slot_can_not_ask_for_all_memory_or_a_day() {
    let big = u32::MAX.to_string();
    for (field, values) in [
        ("\"memory_kib\": 8", ["0", "7", "1048577", big.as_str()]),
        ("\"passes\": 1", ["0", "17", "99999", big.as_str()]),
        ("\"lanes\": 1", ["0", "2", "17", big.as_str()]),
    ] {
        for value in values {
            let repo = Repo::with("main", &passphrase("x"));
            let to = format!("{} {value}", field.split_once(' ').expect("a space").0);
            repo.forge("main", field, &to);
            let error = repo.unlock(&passphrase("x")).expect_err("refused");
            assert!(matches!(error, Error::KeySlotDamaged { .. }), "{to}: {error}");
        }
    }
    let cost = PassphraseCost {
        memory_kib: u32::MAX,
        ..CHEAP
    };
    let repo = Repo::new();
    let error = add(repo.dir.path(), "main", &repo.keys, &passphrase("x"), cost).expect_err("refused");
    assert!(matches!(error, Error::BadKey { .. }) && slots(repo.dir.path()).expect("lists").is_empty());
}

#[test]
fn damaged_slots_are_skipped_and_named_when_nothing_opens() {
    let repo = Repo::with("good", &passphrase("x"));
    for name in ["bad1", "bad2"] {
        repo.add(name, &passphrase("y")).expect("adds");
        repo.edit(name, |text| {
            text.replace("main", "").replace("\"format\": 1", "\"format\": 2")
        });
    }
    assert!(repo.opens(&passphrase("x")));
    let error = repo.unlock(&passphrase("y")).expect_err("refused");
    let text = error.to_string();
    assert!(
        matches!(error, Error::WrongKey { .. }) && text.contains("bad1.json") && text.contains("bad2.json"),
        "{text}"
    );
    // There is no intact slot of this kind, so the damage is the cause.
    let error = repo.unlock(&recovery()).expect_err("refused");
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(text.contains("bad1.json") && text.contains("bad2.json"), "{text}");
    let listed = slots(repo.dir.path()).expect("lists");
    assert_eq!(
        listed.iter().map(|slot| slot.is_ok()).collect::<Vec<_>>(),
        [false, false, true]
    );
}

#[test]
fn a_key_of_the_wrong_kind_hears_what_there_is() {
    let repo = Repo::with("paper", &recovery());
    let text = repo.unlock(&passphrase("x")).expect_err("refused").to_string();
    assert!(
        text.ends_with("is for a passphrase; existing slots: paper (recovery key)"),
        "{text}"
    );
    let text = Repo::new().unlock(&passphrase("x")).expect_err("refused").to_string();
    assert!(text.contains("has no key slots"), "{text}");
}

#[test]
fn a_slot_of_another_repository_is_refused() {
    let way = passphrase("the same in both");
    let (repo, other) = (Repo::with("main", &way), Repo::with("main", &way));
    fs::copy(other.file("main"), repo.file("main")).expect("copies");
    let error = repo.unlock(&way).expect_err("refused");
    assert!(
        matches!(error, Error::WrongKey { .. }) && error.to_string().contains("another repository"),
        "{error}"
    );
}

#[test]
fn a_slot_goes_when_the_key_at_hand_opens_another_one() {
    let repo = Repo::with("one", &passphrase("1"));
    let last = |name, way: &Unlock| matches!(repo.remove(name, way), Err(Error::LastKey(last)) if last == name);
    let refused = |name, way: &Unlock| matches!(repo.remove(name, way), Err(Error::WrongKey { .. }));
    assert!(last("one", &passphrase("1")));
    repo.add("two", &passphrase("2")).expect("adds");
    // An intact slot is not enough: its secret may be lost.
    assert!(last("one", &passphrase("1")) && last("two", &passphrase("2")));
    assert!(refused("one", &passphrase("3")) && refused("two", &recovery()));
    assert!(repo.opens(&passphrase("1")) && repo.opens(&passphrase("2")));
    repo.edit("two", |text| text.replace('a', "b"));
    assert!(refused("one", &passphrase("2")) && last("one", &passphrase("1")));
    repo.remove("two", &passphrase("1")).expect("a damaged slot goes");
    repo.add("two", &passphrase("2")).expect("adds");
    repo.remove("one", &passphrase("2")).expect("removes");
    assert!(!repo.opens(&passphrase("1")) && repo.opens(&passphrase("2")));
}

#[test]
fn a_slot_of_another_repository_is_no_way_in_that_is_left() {
    let way = passphrase("the same in both");
    let (repo, other) = (Repo::with("one", &way), Repo::with("two", &way));
    fs::copy(other.file("two"), repo.file("two")).expect("copies");
    assert!(matches!(repo.remove("one", &way), Err(Error::LastKey(_))));
    assert!(repo.opens(&way));
    repo.remove("two", &way).expect("removes");
}

#[test]
fn an_exported_key_removes_any_slot() {
    let repo = Repo::with("one", &passphrase("1"));
    let stranger = export(&Repo::new().keys, "d0b3b8c0");
    assert!(repo.remove("one", &key_file(stranger.as_bytes())).is_err());
    let exported = key_file(export(&repo.keys, "d0b3b8c0").as_bytes());
    repo.edit("one", |text| text.replace('a', "b"));
    repo.remove("one", &exported).expect("removes");
    repo.add("one", &passphrase("1")).expect("adds");
    assert!(repo.opens(&passphrase("1")));
}

#[test]
fn names_are_checked_and_known_ones_told() {
    let repo = Repo::with("one", &passphrase("1"));
    for bad in ["", "../x", ".hidden", "a/b", "a b"] {
        assert!(matches!(
            repo.add(bad, &passphrase("2")),
            Err(Error::BadName { what: "key", .. })
        ));
        assert!(matches!(repo.remove(bad, &passphrase("1")), Err(Error::BadName { .. })));
    }
    assert!(matches!(repo.add("one", &passphrase("2")), Err(Error::KeyExists(_))));
    let error = repo.remove("two", &passphrase("1")).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().ends_with("known keys: one"), "{error}");
    assert!(matches!(
        remove(&repo.dir.path().join("nowhere"), "x", &passphrase("1"), ""),
        Err(Error::NoSuchKey { .. })
    ));
    assert!(slots(&repo.dir.path().join("nowhere")).expect("lists").is_empty());
}

#[test]
fn what_a_killed_add_left_is_in_nobodys_way() {
    let repo = Repo::with("one", &passphrase("1"));
    let draft = repo.dir.path().join(DIRECTORY).join(".two.json.tmp");
    fs::write(&draft, "{").expect("writes");
    assert_eq!(slots(repo.dir.path()).expect("lists").len(), 1);
    repo.add("two", &passphrase("2")).expect("adds");
    assert!(!draft.exists() && repo.opens(&passphrase("2")));
}

#[test]
fn an_exported_key_opens_without_slots_and_only_its_repository() {
    let repo = Repo::new();
    let text = export(&repo.keys, "d0b3b8c0");
    let way = key_file(text.as_bytes());
    assert!(repo.opens(&way));
    assert!(repo.opens(&key_file(text.replace('\n', "\r\n  ").as_bytes())));
    let error = Repo::new().unlock(&way).expect_err("refused");
    assert!(
        matches!(error, Error::WrongKey { .. }) && error.to_string().contains("d0b3b8c0"),
        "{error}"
    );
    assert!(matches!(repo.add("main", &way), Err(Error::BadKey { .. })));
}

#[test]
fn a_changed_exported_key_is_the_same_or_none() {
    let repo = Repo::new();
    let text = export(&repo.keys, "d0b3b8c0");
    for place in 0..text.len() {
        for flip in [1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80, 0xFF] {
            let mut bytes = text.as_bytes().to_vec();
            bytes[place] ^= flip;
            match unlock(repo.dir.path(), &key_file(&bytes), None) {
                Ok(keys) => assert_eq!(*keys.master, *repo.keys.master),
                Err(error) => assert!(matches!(error, Error::BadKey { .. }), "{error}"),
            }
        }
        // A file that is cut off inside its last line has lost digits of the checksum.
        if place < text.len() - 1 {
            let cut = unlock(repo.dir.path(), &key_file(&text.as_bytes()[..place]), None);
            assert!(matches!(cut, Err(Error::BadKey { .. })), "{place}");
        }
    }
}

#[test]
fn a_key_file_is_read_as_people_leave_it_and_refused_with_its_line() {
    let digits = "0123456789abcdef".repeat(4);
    let repo = Repo::with("main", &key_file(digits.as_bytes()));
    for text in [
        format!("# x\r\n\r\n  {digits}\r\n"),
        format!("\u{FEFF}{digits}\n#"),
        digits.to_uppercase(),
    ] {
        assert!(repo.opens(&key_file(text.as_bytes())), "{text:?}");
    }
    for (text, says) in [
        (String::new(), "has no key in it"),
        ("# only words\n".to_owned(), "has no key in it"),
        (format!("# x\n{}", &digits[1..]), "line 2 "),
        (format!("{digits}\n{digits}\n"), "line 2 "),
        (format!("+{}", &digits[1..]), "line 1 "),
    ] {
        let error = repo.unlock(&key_file(text.as_bytes())).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(matches!(repo.unlock(&key_file(&[0xFF; 64])), Err(Error::BadKey { .. })));
    assert!(matches!(repo.add("empty", &passphrase("")), Err(Error::BadKey { .. })));
}

#[test]
fn secrets_are_not_shown() {
    let repo = Repo::new();
    let way = passphrase("hunter2");
    let shown = format!("{:?} {:?} {:?} {:?}", repo.keys, way, recovery(), repo.keys.cipher());
    assert_eq!(shown, "Keys(..) Unlock(passphrase) Unlock(recovery key) Cipher(..)");
}

#[test]
fn every_purpose_has_its_own_key_and_always_the_same() {
    let keys = Keys::of([7; 32].into());
    assert_eq!(keys.check(), "281604bf8b118845");
    let derived = |purpose: &str| derive(&format!("vbk 2026-11-21 v1 {purpose}"), &[7; 32]);
    assert_eq!(keys.hashing_key(), derived("hashing"));
    assert_eq!(keys.name_key(), derived("record names"));
    assert_ne!(keys.hashing_key(), keys.name_key());
    assert_ne!(Keys::of([8; 32].into()).check(), keys.check());
}

#[test]
fn the_default_cost_opens_what_it_sealed() {
    let repo = Repo::new();
    let way = passphrase("slow");
    add(repo.dir.path(), "main", &repo.keys, &way, PassphraseCost::default()).expect("adds");
    assert!(repo.opens(&way));
}

proptest! {
    #[test]
    fn any_file_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Slot::from_json("main", &bytes).is_err());
        let way = key_file(&bytes);
        prop_assert!(unlock(Path::new("/nowhere"), &way, None).is_err());
    }

    #[test]
    fn any_passphrase_opens_its_own_slot_only(one in ".{1,40}", other in ".{1,40}") {
        let repo = Repo::with("main", &passphrase(&one));
        prop_assert!(repo.opens(&passphrase(&one)));
        prop_assert_eq!(repo.opens(&passphrase(&other)), one == other);
    }
}

#[test]
fn a_slot_elsewhere_goes_only_while_the_one_that_stays_is_there() {
    let repo = Repo::with("one", &passphrase("1"));
    let (dir, check) = (repo.dir.path(), repo.keys.check());
    let files = || slot_files(dir).expect("reads");
    let proof = |name: &str, way: &Unlock| opened_without(dir, &files(), name, way, &check);
    assert!(matches!(proof("one", &passphrase("1")), Err(Error::LastKey(_))));
    assert!(matches!(proof("none", &passphrase("1")), Err(Error::NoSuchKey { .. })));
    let second = seal("two", &repo.keys, &passphrase("2"), CHEAP).expect("seals");
    add_file(dir, &second).expect("adds");
    assert!(repo.opens(&passphrase("2")));
    assert!(matches!(proof("one", &passphrase("3")), Err(Error::WrongKey { .. })));
    // Both are proved before either is removed.
    let without_one = proof("one", &passphrase("2")).expect("opens");
    let without_two = proof("two", &passphrase("1")).expect("opens");
    assert_eq!(without_one.as_ref(), Some(&second));
    remove_file(dir, "one", without_one.as_ref()).expect("removes");
    let refused = remove_file(dir, "two", without_two.as_ref()).expect_err("the last one");
    assert!(refused.to_string().contains("nothing was removed"), "{refused}");
    // A slot is no reason to remove itself, and a changed one is another.
    assert!(remove_file(dir, "two", Some(&second)).is_err());
    repo.add("one", &passphrase("1")).expect("adds");
    let mut changed = second.clone();
    changed.bytes.push(b' ');
    assert!(remove_file(dir, "one", Some(&changed)).is_err());
    let exported = key_file(export(&repo.keys, "d0b3b8c0").as_bytes());
    assert_eq!(proof("two", &exported).expect("opens"), None);
    remove_file(dir, "two", None).expect("removes");
    assert!(repo.opens(&passphrase("1")) && !repo.opens(&passphrase("2")));
}

#[test]
fn the_slot_that_a_key_opens_is_found_by_the_key() {
    let repo = Repo::with("one", &passphrase("1"));
    let (dir, check) = (repo.dir.path(), repo.keys.check());
    repo.add("two", &passphrase("2")).expect("adds");
    let file = create_key_file(&dir.join("key")).expect("creates");
    repo.add("three", &file).expect("adds");
    let of = |way: &Unlock| opened_by(dir, &slot_files(dir).expect("reads"), way, &check);
    assert_eq!(of(&passphrase("2")).expect("opens").as_deref(), Some("two"));
    assert_eq!(of(&file).expect("opens").as_deref(), Some("three"));
    assert!(matches!(of(&passphrase("3")), Err(Error::WrongKey { .. })));
    let exported = key_file(export(&repo.keys, "d0b3b8c0").as_bytes());
    assert_eq!(of(&exported).expect("opens"), None);
    // A change: the new one proves that the old one may go, and not the other way round.
    repo.add("two-2", &passphrase("new")).expect("adds");
    assert!(repo.opens(&passphrase("2")) && repo.opens(&passphrase("new")));
    repo.remove("two", &passphrase("new")).expect("removes");
    assert!(!repo.opens(&passphrase("2")) && repo.opens(&passphrase("new")));
    assert!(matches!(
        repo.remove("two-2", &passphrase("new")),
        Err(Error::LastKey(_))
    ));
}

#[test]
fn nothing_but_a_slot_is_kept_for_a_peer() {
    let repo = Repo::with("one", &passphrase("1"));
    let dir = repo.dir.path();
    let good = seal("two", &repo.keys, &passphrase("2"), CHEAP).expect("seals");
    let named = |name: &str| SlotFile {
        name: name.into(),
        bytes: good.bytes.clone(),
    };
    for name in [
        "", ".", "..", "../two", "/etc/x", "a/b", ".two", "three", "two.json", "a\nb",
    ] {
        add_file(dir, &named(name)).expect_err(name);
        remove_file(dir, name, None).expect_err(name);
    }
    for bytes in [
        Vec::new(),
        b"{}".to_vec(),
        vec![b' '; 1 << 20],
        good.bytes[1..].to_vec(),
    ] {
        let file = SlotFile { bytes, ..good.clone() };
        assert!(matches!(add_file(dir, &file), Err(Error::KeySlotDamaged { .. })));
    }
    assert!(add_file(dir, &named("one")).is_err());
    assert_eq!(slots(dir).expect("lists").len(), 1);
    for number in 1..MAX_SLOTS {
        repo.add(&format!("n{number}"), &recovery()).expect("adds");
    }
    let refused = add_file(dir, &good).expect_err("too many");
    assert!(refused.to_string().contains("64 keys already"), "{refused}");
    repo.remove("n1", &passphrase("1")).expect("removes");
    add_file(dir, &good).expect("adds");
    assert!(matches!(add_file(dir, &good), Err(Error::KeyExists(_))));
}
