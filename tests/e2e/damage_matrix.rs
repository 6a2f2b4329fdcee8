//! One thing wrong in a closed repository, of every kind and in every place: what is given out is true, what is wrong is
//! named, and a repair that may look at the disks or at another repository gets everything back.

mod places;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use self::places::{Harm, Kind, Place, copy, do_harm, places_of};
use crate::support::bytes::{KIB, assert_same, copy_sparse, noise_bytes, write_at, write_noise};
use crate::support::lab::{Lab, str_of};
use crate::support::run::Said;

/// An image of a backup, as `GUEST@TIME/DISK`, and the file that it is of.
struct Image {
    spec: String,
    disk: PathBuf,
}

/// A repository in a lab that is harmed again and again.
struct Matrix {
    lab: Lab,
    key: Option<PathBuf>,
    images: Vec<Image>,
}

impl Matrix {
    fn new(encrypted: bool) -> Self {
        let lab = Lab::without_repo();
        let key = encrypted.then(|| lab.path("key"));
        let mut matrix = Self {
            lab,
            key,
            images: Vec::new(),
        };
        let disk = |name: &str| matrix.lab.path(name);
        write_noise(&disk("monday"), 1, 700 * KIB + 512);
        copy_sparse(&disk("monday"), &disk("tuesday"));
        write_at(&disk("tuesday"), 130 * KIB, &noise_bytes(2, 70 * KIB));
        write_noise(&disk("db"), 3, 500 * KIB);
        // Which is also what the copy has.
        copy_sparse(&disk("monday"), &disk("copy"));
        matrix.init(matrix.lab.repo());
        matrix.back_up();
        matrix.ok(args!["verify"]);
        matrix.ok(args!["protect", "web@latest"]);
        let listed = matrix.ok(args!["--json", "list"]).json();
        let listed: Vec<_> = listed["backups"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|it| str_of(it, "backup"))
            .collect();
        let image = |spec: &str, name: &str| Image {
            spec: spec.to_owned(),
            disk: matrix.lab.path(name),
        };
        let [db, monday, tuesday] = &listed[..] else {
            panic!("{listed:?}");
        };
        matrix.images = vec![
            image(&format!("{monday}/vda"), "monday"),
            image(&format!("{tuesday}/vda"), "tuesday"),
            image(&format!("{db}/vda"), "db"),
            image(&format!("{db}/vdb"), "copy"),
        ];
        copy(matrix.lab.files(), &matrix.lab.path("pristine"));
        if encrypted {
            // Another repository has other keys, and so other names for the same blocks. A copy has the same.
            copy(matrix.lab.repo(), &matrix.lab.path("other"));
        } else {
            let other = matrix.lab.path("other");
            matrix.init(&other);
            for (guest, name) in [("a", "db"), ("b", "tuesday"), ("b", "copy")] {
                let args = args!["--repo", other, "backup", guest, matrix.lab.path(name)];
                matrix.lab.start_bare(args).wait().done();
            }
        }
        matrix
    }

    fn init(&self, path: &Path) {
        let mut args = args!["init", path, "--block-size", "64K"];
        if self.key.is_some() {
            args.extend(args!["--encrypt", "--no-recovery-key"]);
        }
        self.ok(args);
    }

    /// Two days of a guest, then one of another with two disks; small pages, so that some stay in tables.
    fn back_up(&self) {
        for day in ["monday", "tuesday"] {
            self.ok(args!["backup", "web", self.lab.path(day)]);
        }
        self.ok(self.backup_db());
    }

    fn backup_db(&self) -> Vec<OsString> {
        let of = |disk: &str, name: &str| format!("{disk}={}", self.lab.path(name).display());
        args!["backup", "db", of("vda", "db"), of("vdb", "copy")]
    }

    fn key_args(&self) -> Vec<OsString> {
        match &self.key {
            Some(key) => args!["--key-file", key],
            None => Vec::new(),
        }
    }

    fn run(&self, args: Vec<OsString>) -> Said {
        let mut all = self.key_args();
        all.extend(args);
        self.lab.run(all)
    }

    #[track_caller]
    fn ok(&self, args: Vec<OsString>) -> Said {
        self.run(args).code(0)
    }

    /// Runs it; it does its work, fails or finds damage, and nothing else.
    #[track_caller]
    fn try_run(&self, args: Vec<OsString>) -> Said {
        let said = self.run(args);
        match said.status.code() {
            Some(0) => {}
            // 3: a backup is stored, and damaged tables keep the store from making the view that lists it.
            Some(1 | 3 | 4) => assert!(!words_of(&said).trim().is_empty(), "without a word, {said}"),
            _ => panic!("{said}"),
        }
        said
    }

    /// Restores all images. What is there is true; gives what could not be restored.
    fn restore_all(&self, what: &str) -> Vec<&Image> {
        let out = self.lab.path("out.img");
        let mut lost = Vec::new();
        for image in &self.images {
            let said = self.try_run(args!["restore", image.spec, out]);
            match said.status.code() {
                Some(0) => assert_same(&out, &image.disk),
                _ => {
                    assert!(!out.exists(), "{what}: {said}");
                    lost.push(image);
                }
            }
            let _ = fs::remove_file(&out);
        }
        lost
    }

    /// Reads all images from a mount. What is there is true; gives how many could not be read whole.
    fn read_mounted(&self, what: &str) -> usize {
        let dir = self.lab.subdir("images");
        let said = self.try_run(args!["mount", dir]);
        let mut lost = self.images.len();
        if said.status.success() {
            for image in &self.images {
                let (backup, disk) = image.spec.split_once('/').expect("backup and disk");
                let (guest, time) = backup.split_once('@').expect("guest and time");
                match fs::read(dir.join(guest).join(time).join(format!("{disk}.img"))) {
                    Ok(bytes) => {
                        assert!(
                            bytes == fs::read(&image.disk).expect("reads"),
                            "{what}: {} in the mount",
                            image.spec
                        );
                        lost -= 1;
                    }
                    Err(error) => assert!(
                        matches!(error.raw_os_error(), Some(2 | 5)),
                        "{what}: {}: {error}",
                        image.spec
                    ),
                }
            }
            self.lab.umount(&dir);
        }
        fs::remove_dir(dir).expect("removes");
        lost
    }

    /// All that can be done with a harmed repository, from looking at it to having it whole again.
    fn check(&self, harm: Harm, place: &Place) {
        let repo = self.lab.repo();
        copy(&self.lab.path("pristine"), self.lab.files());
        self.lab.forget_known_repositories();
        if !do_harm(repo, harm, place) {
            return;
        }
        let what = format!("{harm:?} {}", place.file.display());
        if place.kind == Kind::Marker {
            return self.check_marker(harm, &what);
        }
        self.try_run(args!["list"]);
        self.try_run(args!["show", self.images[0].spec.split('/').next().expect("a backup")]);
        let lost = self.restore_all(&what);
        let lost_mounted = self.read_mounted(&what);
        assert_eq!(lost.len(), lost_mounted, "{what}: a mount shows what can be restored");
        if place.costs_readers_nothing() {
            assert!(lost.is_empty(), "{what} costs {}", lost.len());
        }
        let verified = self.try_run(args!["verify"]);
        if !lost.is_empty() {
            assert!(
                !verified.status.success(),
                "{what}: {} can't be restored, but {verified}",
                lost[0].spec
            );
            self.names_the_damage(&verified, place, &lost);
        }

        // The next day. What verify found is stored anew, and what says that it was done was done.
        let again = [
            self.try_run(args!["backup", "web", self.lab.path("tuesday")]),
            self.try_run(self.backup_db()),
        ];
        for (said, disk) in again.iter().zip([1, 2]) {
            assert!(
                said.status.success() || !verified.status.success(),
                "{what}: {verified}\nand then {said}"
            );
            let image = &self.images[disk];
            let guest = image.spec.split('@').next().expect("a guest");
            let out = self.lab.path("out.img");
            if said.status.success() {
                let restored = self.try_run(args!["restore", format!("{guest}@latest/vda"), out]);
                assert!(restored.status.success(), "{what}: {said}\nand then {restored}");
                assert_same(&out, &image.disk);
                fs::remove_file(out).expect("removes");
            }
        }
        self.try_run(args!["verify"]);

        // With what the repository has itself; then with all there is.
        let repaired = self.try_run(args!["repair"]);
        if repaired.status.success() {
            let lost = self.restore_all(&what);
            assert!(lost.is_empty(), "{what}: {} is lost, but {repaired}", lost[0].spec);
        } else {
            assert_eq!(
                place.kind,
                Kind::Blob,
                "{what}: all else is there twice, but {repaired}"
            );
            for image in self.restore_all(&what) {
                assert!(
                    words_of(&repaired).contains(&image.spec),
                    "{what}: {} is not named, {repaired}",
                    image.spec
                );
            }
        }
        copy(&self.lab.path("pristine"), self.lab.files());
        self.lab.forget_known_repositories();
        do_harm(repo, harm, place);
        let mut repair = args!["repair"];
        match place.file.to_string_lossy().bytes().fold(harm as u8, u8::wrapping_add) % 2 {
            0 => repair.extend(args!["--from", self.lab.path("other")]),
            _ => {
                for name in ["monday", "tuesday", "db"] {
                    repair.extend(args!["--from-source", format!("x={}", self.lab.path(name).display())]);
                }
            }
        }
        let repaired = self.try_run(repair);
        assert!(repaired.status.success(), "{what}: {repaired}");
        assert_eq!(self.restore_all(&what).len(), 0, "{what}: {repaired}");
        let verified = self.try_run(args!["verify"]);
        assert!(verified.status.success(), "{what}: {repaired}\nand then {verified}");
        assert_eq!(self.read_mounted(&what), 0, "{what}");
        for args in [args!["backup", "web", self.lab.path("tuesday")], self.backup_db()] {
            let said = self.try_run(args);
            assert!(said.status.success(), "{what}: {repaired}\nand then {said}");
        }
    }

    fn names_the_damage(&self, verified: &Said, place: &Place, lost: &[&Image]) {
        let text = words_of(verified);
        let name = place.file.file_name().expect("a name").to_string_lossy();
        let directory = place.file.parent().expect("a directory").to_string_lossy();
        let names_images = lost.iter().all(|image| text.contains(&image.spec));
        let names_file = text.contains(&*name) || text.contains(&*directory);
        assert!(
            names_images || names_file || place.kind == Kind::Link && text.contains("view"),
            "{} is not named: {verified}",
            place.file.display()
        );
    }

    /// Without it nothing is read and nothing harmed; a repair writes it anew, and all is as it was.
    fn check_marker(&self, harm: Harm, what: &str) {
        for (args, needs_it) in [
            (args!["list"], true),
            (args!["verify"], true),
            (args!["backup", "web", self.lab.path("tuesday")], true),
            (args!["repair"], false),
            (args!["backup", "web", self.lab.path("tuesday")], false),
        ] {
            let said = self.try_run(args);
            match harm {
                Harm::Delete | Harm::Truncate if !needs_it => assert!(said.status.success(), "{what}: {said}"),
                Harm::Delete | Harm::Truncate => {
                    let said = said.code(4);
                    said.says(&["vbk-repository is damaged or gone", "vbk repair"]);
                }
                // In its text for people, or in its number.
                _ => {
                    let text = words_of(&said);
                    assert!(said.status.success() || text.contains("repository"), "{what}: {said}");
                }
            }
        }
        fs::copy(
            self.lab.path("pristine/vbk-repository"),
            self.lab.files().join("vbk-repository"),
        )
        .expect("copies");
        assert_eq!(self.restore_all(what).len(), 0, "{what}");
        self.ok(args!["verify"]);
    }
}

/// What it said, to people on both streams.
fn words_of(said: &Said) -> String {
    format!("{}{}", said.text(), said.stderr)
}

/// Every place in some way, every kind in this one.
fn every_kind(harm: Harm, encrypted: bool) {
    let matrix = Matrix::new(encrypted);
    let mut numbers = std::collections::HashMap::new();
    for place in places_of(matrix.lab.files()) {
        let number = numbers.entry(place.kind as u8).or_insert(0_usize);
        *number += 1;
        // There are many tables, and what harms one in one way harms another in another.
        let every = match place.kind {
            Kind::Table | Kind::Spare => 4,
            _ => 1,
        };
        if *number % every == harm as usize % every {
            matrix.check(harm, &place);
        }
    }
}

#[test]
fn a_flipped_byte_anywhere_is_named_and_repaired() {
    every_kind(Harm::Flip, false);
}

#[test]
fn a_flipped_byte_anywhere_in_an_encrypted_repository_is_named_and_repaired() {
    every_kind(Harm::Flip, true);
}

#[test]
fn a_truncated_file_is_named_and_repaired() {
    every_kind(Harm::Truncate, false);
}

#[test]
fn a_truncated_file_of_an_encrypted_repository_is_named_and_repaired() {
    every_kind(Harm::Truncate, true);
}

#[test]
fn a_missing_file_is_named_and_repaired() {
    every_kind(Harm::Delete, false);
}

#[test]
fn a_missing_file_of_an_encrypted_repository_is_named_and_repaired() {
    every_kind(Harm::Delete, true);
}

#[test]
fn swapped_files_are_named_and_repaired() {
    every_kind(Harm::Swap, false);
}

#[test]
fn swapped_files_of_an_encrypted_repository_are_named_and_repaired() {
    every_kind(Harm::Swap, true);
}

#[test]
fn a_damaged_key_slot_disables_only_that_key() {
    let lab = Lab::without_repo();
    let (key, exported, recovery) = (lab.path("key"), lab.path("exported"), lab.path("recovery"));
    let made = lab.json(args!["--key-file", key, "init", "--encrypt"]);
    fs::write(&recovery, str_of(&made, "recovery_key")).expect("writes");
    write_noise(&lab.path("disk"), 1, 300 * KIB);
    lab.ok(args!["--key-file", key, "backup", "web", lab.path("disk")]);
    lab.ok(args!["--key-file", key, "key", "export", exported]);
    let pristine = lab.path("pristine");
    copy(lab.files(), &pristine);
    let ways = [
        ("key-file", args!["--key-file", key]),
        ("recovery", args!["--passphrase-file", recovery]),
        ("", args!["--key-file", exported]),
    ];
    for harm in [Harm::Flip, Harm::Truncate, Harm::Delete, Harm::Swap] {
        for slot in ["key-file", "recovery"] {
            copy(&pristine, lab.files());
            lab.forget_known_repositories();
            let of = |name: &str| PathBuf::from(format!("keys/{name}.json"));
            let place = Place {
                kind: Kind::Marker,
                file: of(slot),
                other: Some(of(if slot == "recovery" { "key-file" } else { "recovery" })),
            };
            do_harm(lab.repo(), harm, &place);
            let what = format!("{harm:?} {slot}");
            for (name, way) in &ways {
                let mut args = way.clone();
                let out = lab.path("out.img");
                args.extend(args!["restore", "web@latest", out]);
                let said = lab.run(args);
                if said.status.success() {
                    assert_same(&out, &lab.path("disk"));
                    fs::remove_file(out).expect("removes");
                    continue;
                }
                assert!(
                    *name == slot || harm == Harm::Swap && !name.is_empty(),
                    "{what}: {said}"
                );
                assert!(matches!(said.status.code(), Some(1 | 4)), "{what}: {said}");
                if harm != Harm::Delete {
                    assert!(said.stderr.contains(&format!("keys/{name}.json")), "{what}: {said}");
                }
            }
            let listed = lab.run(args!["key", "list"]);
            match harm {
                Harm::Delete => assert!(!listed.text().contains(slot), "{what}: {listed}"),
                _ => {
                    assert!(listed.stderr.contains(&format!("keys/{slot}.json")), "{what}: {listed}");
                    assert_eq!(listed.status.code(), Some(4), "{what}: {listed}");
                }
            }
            // The way in is made anew from another one.
            if harm != Harm::Swap {
                let mut add = args!["--key-file", exported, "key", "add", "--name", "new"];
                add.extend(match slot {
                    "recovery" => args!["--recovery"],
                    _ => args!["--new-key-file", key],
                });
                lab.ok(add);
                if harm != Harm::Delete {
                    lab.ok(args!["--key-file", exported, "key", "remove", slot]);
                }
                lab.ok(args!["--key-file", key, "verify"]);
                lab.ok(args!["key", "list"]);
            }
        }
    }
}
