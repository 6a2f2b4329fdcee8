//! Flips bits in a byte of a closed repository, one byte at a time, and reads everything in it: every result must be
//! true or an error.
//!
//! `VBK_FLIPS` sets the number of bytes, `VBK_FLIPS_SEED` their choice; `scripts/damage` prints the figures of a long
//! run.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::backup::Entry;
use crate::block::BlockSize;
use crate::catalogue::Catalogue;
use crate::error::Result;
use crate::id::BlockId;
use crate::keys::{Keys, Unlock, create_key_file};
use crate::reader::{ImageReader, ReadResources};
use crate::repository::{CreateOptions, Repository, View};
use crate::state::{State, States, note_of};
use crate::tests::testing::{backup, mixed_bytes, store_image, store_image_over};

/// Number of flips in the tests, plain and encrypted together.
const FLIPS: u64 = 1000;

/// One flip in this many is also examined by a writer and by a repair, which work on a copy.
const WRITER_EVERY: u64 = 50;

/// Longer than any examination takes; after this time it counts as hung.
const HANGS: Duration = Duration::from_secs(60);

/// Kinds of files, and the weight with which each is chosen: by size alone, the small ones would never be.
const KINDS: [(&str, &[&str], u64); 9] = [
    ("tables", &[".sst"], 30),
    ("blob files", &[".blob"], 20),
    ("MANIFEST", &["MANIFEST-"], 15),
    ("CURRENT", &["CURRENT"], 8),
    ("logs", &[".log"], 5),
    ("marker", &["vbk-repository"], 8),
    ("key slots", &["keys/"], 6),
    ("second copies", &["spare/"], 4),
    ("all else", &[""], 4),
];

/// Result of reading everything.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    True,
    Error(String),
    /// Wrong data without an error.
    Wrong(String),
}

/// A closed repository, and its expected content.
struct Specimen {
    directory: tempfile::TempDir,
    unlock: Option<Unlock>,
    entries: Vec<(Entry, State, Vec<Vec<u8>>)>,
    /// The files of each of [`KINDS`], each inode once, empty files excluded.
    files: Vec<Vec<PathBuf>>,
}

impl Specimen {
    fn new(encrypted: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut options = CreateOptions::plain(BlockSize::new(256 << 10).expect("a block size"));
        let unlock = encrypted.then(|| {
            let unlock = create_key_file(&directory.path().join("key")).expect("makes a key file");
            let keys = Keys::generate().expect("generates");
            options.encryption = Some((keys, vec![("key-file".into(), unlock.clone())]));
            unlock
        });
        let path = directory.path().join("repo");
        let repository = Repository::create(&path, &options).expect("creates");
        let one = mixed_bytes(1, 1_000_000);
        let mut changed = one.clone();
        changed[300_000..310_000].fill(7);
        // Days that share blocks, a guest with two disks, and a copy of another guest's disk.
        let days = [
            ("web1", "2026-11-20T00-00-00Z", vec![one.clone()]),
            ("web1", "2026-11-21T00-00-00Z", vec![changed]),
            ("db1", "2026-11-21T00-00-01Z", vec![mixed_bytes(2, 700_001), one]),
        ];
        let mut entries: Vec<(Entry, State, Vec<Vec<u8>>)> = Vec::new();
        for (guest, time, disks) in days {
            let writer = repository.manager("test", &mut |_| true).expect("opens");
            let before: Option<&Entry> = entries.last().map(|(entry, ..)| entry);
            let before = before.filter(|entry| entry.backup.guest.as_str() == guest);
            let images = disks.iter().zip(["vda", "vdb"]);
            // The second day of a guest has differences.
            let images = images.map(|(plain, disk)| match before {
                Some(before) => store_image_over(writer.store(), disk, plain, &before.backup.images[0]),
                None => store_image(writer.store(), disk, plain),
            });
            let committed = writer
                .writer()
                .commit(backup(guest, time, images.collect()))
                .expect("commits");
            let state = State {
                protected: guest == "db1",
                ..State::default()
            };
            let note = note_of(&committed.entry.backup.spec(), state.clone());
            writer.amend(&[], &[note]).expect("notes");
            entries.push((committed.entry, state, disks));
        }
        let mut specimen = Self {
            directory,
            unlock,
            entries,
            files: vec![Vec::new(); KINDS.len()],
        };
        specimen.find_files(&path, &mut HashSet::new());
        let mut differences = 0;
        let view = specimen
            .open(&path)
            .and_then(|repository| repository.view())
            .expect("opens");
        let survey = view.store().survey(&mut |_, located| {
            differences += usize::from(located.base.is_some());
            Ok(())
        });
        survey.expect("surveys");
        assert_eq!(differences, 1);
        specimen
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("repo")
    }

    fn find_files(&mut self, directory: &Path, seen: &mut HashSet<u64>) {
        let entries = fs::read_dir(directory).expect("lists");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        for path in paths {
            let data = path.symlink_metadata().expect("is there");
            if data.is_dir() {
                self.find_files(&path, seen);
            } else if data.is_file() && data.len() > 0 && seen.insert(data.ino()) {
                let name = path.strip_prefix(self.path()).expect("is below").to_owned();
                let text = name.to_string_lossy();
                // The name of a second copy contains the name of its table.
                let spare = text.starts_with("spare/");
                let is = |(kind, parts, _): &(&str, &[&str], u64)| {
                    (*kind == "second copies") >= spare && parts.iter().any(|part| text.contains(part))
                };
                let kind = KINDS.iter().position(is).expect("the last is for all");
                self.files[kind].push(name);
            }
        }
    }

    fn open(&self, path: &Path) -> Result<Repository> {
        let repository = Repository::open(path)?;
        match &self.unlock {
            Some(unlock) => repository.unlock(unlock),
            None => Ok(repository),
        }
    }

    /// Reads everything as a reader does.
    fn read(&self, path: &Path) -> Seen {
        match self.open(path).and_then(|repository| repository.view()) {
            Ok(view) => self.read_view(&view),
            Err(error) => Seen::Error(error.to_string()),
        }
    }

    fn read_view(&self, view: &View) -> Seen {
        let (catalogue, states) = match view.catalogue().and_then(|all| Ok((all, view.states()?))) {
            Ok(both) => both,
            Err(error) => return Seen::Error(error.to_string()),
        };
        let mut seen = self.look_up(&catalogue, &states);
        // New for each flip: cached data of an earlier one would be correct.
        let resources = ReadResources::new(1);
        for (entry, _, disks) in &self.entries {
            if !catalogue.entries().contains(entry) {
                continue;
            }
            for (image, plain) in entry.backup.images.iter().zip(disks) {
                let mut out = vec![0xAA; plain.len() + 1];
                let read = ImageReader::open(view.store(), resources.clone(), image)
                    .and_then(|image| image.read_at(0, &mut out));
                match read {
                    Ok(len) if out[..len] == plain[..] => {}
                    Ok(_) => return Seen::Wrong(format!("{} of {}", image.disk, entry.backup.spec())),
                    Err(error) if seen == Seen::True => seen = Seen::Error(error.to_string()),
                    Err(_) => {}
                }
            }
        }
        seen
    }

    /// Compares all backups and their states with what was stored.
    fn look_up(&self, catalogue: &Catalogue, states: &States) -> Seen {
        let damaged = catalogue.damaged();
        let known: Vec<_> = self.entries.iter().map(|(entry, ..)| entry).collect();
        if let Some(strange) = catalogue.entries().iter().find(|entry| !known.contains(entry)) {
            return Seen::Wrong(format!("there is a backup {}", strange.backup.spec()));
        }
        let missing = known.len() - catalogue.entries().len();
        if missing > damaged.len() {
            return Seen::Wrong(format!("{missing} backups are missing, and {damaged:?} is said"));
        }
        for (entry, state, _) in &self.entries {
            let spec = entry.backup.spec();
            if states.noted(&spec) != *state {
                return Seen::Wrong(format!("the state of {spec} is {:?}", states.noted(&spec)));
            }
        }
        match damaged.first() {
            None => Seen::True,
            Some(error) => Seen::Error(error.to_string()),
        }
    }

    /// Returns what a writer sees, and what readers see after it; then the same after a repair of the store's files.
    fn write(&self) -> Vec<Seen> {
        let copy = self.directory.path().join("copy");
        let mut all = Vec::new();
        for mends in [false, true] {
            let _ = fs::remove_dir_all(&copy);
            copy_tree(&self.path(), &copy, &mut HashMap::new());
            let repository = match self.open(&copy) {
                Ok(repository) => repository,
                Err(error) => return vec![Seen::Error(error.to_string())],
            };
            if mends && let Err(error) = repository.mend(&mut |_| false) {
                all.push(Seen::Error(error.to_string()));
            }
            all.push(match repository.writer("test", &mut |_| false) {
                Err(error) => Seen::Error(error.to_string()),
                Ok(writer) => match (writer.catalogue(), writer.states()) {
                    (Ok(catalogue), Ok(states)) => self.look_up(&catalogue, &states),
                    (Err(error), _) | (_, Err(error)) => Seen::Error(error.to_string()),
                },
            });
            all.push(self.read(&copy));
        }
        all
    }
}

impl Specimen {
    /// Flips bits of a byte, examines the repository, and flips them back; an error if a thread panics or hangs.
    fn flip(
        self: &Arc<Self>,
        name: &Path,
        at: u64,
        mask: u8,
        writes: bool,
    ) -> std::result::Result<Vec<Seen>, &'static str> {
        let open = File::options().read(true).write(true).open(self.path().join(name));
        let file = open.expect("opens");
        let mut was = [0];
        file.read_exact_at(&mut was, at).expect("reads");
        file.write_all_at(&[was[0] ^ mask], at).expect("writes");
        let (specimen, (done, seen)) = (Arc::clone(self), mpsc::channel());
        std::thread::spawn(move || {
            let mut seen = vec![specimen.read(&specimen.path())];
            if writes {
                seen.extend(specimen.write());
            }
            let _ = done.send(seen);
        });
        let seen = seen.recv_timeout(HANGS);
        file.write_all_at(&was, at).expect("writes");
        seen.map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => "it does not end",
            mpsc::RecvTimeoutError::Disconnected => "a panic",
        })
    }
}

/// Copies with hard links. cp(1) would not do: a new process briefly holds the locks of all other tests.
fn copy_tree(from: &Path, to: &Path, links: &mut HashMap<u64, PathBuf>) {
    fs::create_dir(to).expect("creates");
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("an entry");
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        let data = path.symlink_metadata().expect("is there");
        if data.is_dir() {
            copy_tree(&path, &copy, links);
        } else if data.is_symlink() {
            let target = fs::read_link(&path).expect("reads");
            std::os::unix::fs::symlink(target, &copy).expect("links");
        } else if let Some(known) = links.get(&data.ino()) {
            fs::hard_link(known, &copy).expect("links");
        } else {
            fs::copy(&path, &copy).expect("copies");
            links.insert(data.ino(), copy);
        }
    }
}

/// Numbers of flips without an effect, and of detected ones.
#[derive(Default)]
struct Figures {
    harmless: u64,
    found: u64,
    wrong: Vec<String>,
}

/// Returns a number below `end`, a different one each time.
fn below(random: &mut u64, end: u64) -> u64 {
    // splitmix64, https://prng.di.unimi.it/splitmix64.c
    *random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *random;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (mixed ^ (mixed >> 31)) % end
}

fn number_from_environment(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

fn flip_bytes(encrypted: bool) {
    let what = if encrypted { "encrypted" } else { "plain" };
    let specimen = Arc::new(Specimen::new(encrypted));
    assert_eq!(specimen.read(&specimen.path()), Seen::True, "untouched");
    assert_eq!(specimen.write(), [const { Seen::True }; 4], "untouched");
    let count = number_from_environment("VBK_FLIPS", FLIPS).div_ceil(2);
    let mut random = number_from_environment("VBK_FLIPS_SEED", 1) ^ u64::from(encrypted) << 32;
    let mut figures = BTreeMap::<usize, Figures>::new();
    let mut written = 0;
    // A plain repository has no key slots.
    let kinds = KINDS.iter().zip(&specimen.files);
    let weight = |((.., weight), files): (&(_, _, u64), &Vec<PathBuf>)| if files.is_empty() { 0 } else { *weight };
    let weights: Vec<u64> = kinds.map(weight).collect();
    for number in 0..count {
        let mut choice = below(&mut random, weights.iter().sum());
        let chosen = weights.iter().position(|weight| {
            let here = choice < *weight;
            choice = choice.saturating_sub(*weight);
            here
        });
        let kind = chosen.expect("the choice is below the sum of all weights");
        let len = specimen.files[kind].len() as u64;
        let name = &specimen.files[kind][below(&mut random, len) as usize];
        let at = below(
            &mut random,
            fs::metadata(specimen.path().join(name)).expect("is there").len(),
        );
        // A single bit as often as several.
        let mask = match below(&mut random, 2) {
            0 => 1 << below(&mut random, 8),
            _ => 1 + below(&mut random, 255) as u8,
        };
        // Readers open none of the store's own files, so a writer examines those more often.
        let own = name.starts_with("store") && !matches!(kind, 0 | 1);
        let writes = number % WRITER_EVERY == 0 || own && number % 5 == 0;
        written += u64::from(writes);
        let flip = format!("{what}, flip {number}: {} at {at} ^ {mask:#x}", name.display());
        let seen = specimen
            .flip(name, at, mask, writes)
            .unwrap_or_else(|bad| panic!("{flip}: {bad}"));
        let figures = figures.entry(kind).or_default();
        let wrong = seen.iter().find(|seen| matches!(seen, Seen::Wrong(_)));
        match wrong {
            Some(wrong) => figures.wrong.push(format!("{flip}: {wrong:?}")),
            None if seen.iter().all(|seen| *seen == Seen::True) => figures.harmless += 1,
            None => figures.found += 1,
        }
    }
    assert_eq!(specimen.read(&specimen.path()), Seen::True, "as it was");
    println!("{what}: {count} flips, {written} also written to and repaired");
    println!(
        "{:<25} {:>7} {:>7} {:>9} {:>6}",
        "", "flips", "found", "harmless", "wrong"
    );
    for (kind, Figures { harmless, found, wrong }) in &figures {
        let (name, all) = (KINDS[*kind].0, harmless + found + wrong.len() as u64);
        println!(
            "{what:<10} {name:<14} {all:>7} {found:>7} {harmless:>9} {:>6}",
            wrong.len()
        );
    }
    let wrong: Vec<_> = figures.into_values().flat_map(|figures| figures.wrong).collect();
    assert!(wrong.is_empty(), "{} silent:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_flipped_byte_of_a_plain_repository_is_never_given_out() {
    flip_bytes(false);
}

#[test]
fn a_flipped_byte_of_an_encrypted_repository_is_never_given_out() {
    flip_bytes(true);
}

/// RocksDB takes a length past the end of the file for its end, and hangs on some types.
#[test]
fn lengths_and_types_in_a_manifest_that_rocksdb_would_trust_are_damage() {
    let specimen = Arc::new(Specimen::new(false));
    let manifests = KINDS
        .iter()
        .position(|(kind, ..)| *kind == "MANIFEST")
        .expect("is a kind");
    for name in &specimen.files[manifests] {
        let bytes = fs::read(specimen.path().join(name)).expect("reads");
        let mut records = Vec::new();
        let mut at = 0;
        while let Some(header) = bytes.get(at..at + 7) {
            records.push(at as u64);
            at += 7 + usize::from(u16::from_le_bytes([header[4], header[5]]));
        }
        assert!(records.len() > 20, "{records:?}");
        // All cases with readers. With a writer only the last, after which the fewest records could be missed.
        let is_store = name.starts_with("store");
        let chosen = records.iter().skip(if is_store { records.len() - 3 } else { 0 });
        for record in chosen {
            for (at, mask) in [(record + 5, 0x40), (record + 6, 4)] {
                let seen = specimen.flip(name, at, mask, is_store);
                let seen = seen.unwrap_or_else(|bad| panic!("{} at {at}: {bad}", name.display()));
                let wrong = seen.iter().find(|seen| matches!(seen, Seen::Wrong(_)));
                assert_eq!(wrong, None, "{} at {at}", name.display());
            }
        }
    }
}

/// The state that a writer leaves when it is killed between a commit and the publication of its view.
#[test]
fn a_log_that_rocksdb_would_not_come_back_from_is_damage() {
    let specimen = Specimen::new(false);
    let repository = specimen.open(&specimen.path()).expect("opens");
    let writer = repository.manager("test", &mut |_| true).expect("opens");
    // The block does not exist, so nothing depends on it.
    writer.store().condemn(&[BlockId([7; 32])]).expect("notes");
    drop(writer);
    let logs = fs::read_dir(specimen.path().join("store")).expect("lists");
    let mut logs = logs.map(|entry| entry.expect("an entry").path());
    let is_log = |path: &PathBuf| path.extension().is_some_and(|end| end == "log");
    let log = logs.find(|path| is_log(path) && fs::metadata(path).is_ok_and(|data| data.len() > 0));
    let log = log.expect("a log with something in it");
    let name = log.strip_prefix(specimen.path()).expect("is below").to_owned();
    let specimen = Arc::new(specimen);
    for at in 4..7 {
        for mask in [0x40, 4] {
            let seen = specimen.flip(&name, at, mask, true);
            let seen = seen.unwrap_or_else(|bad| panic!("{} at {at} ^ {mask}: {bad}", name.display()));
            assert!(!seen.iter().any(|seen| matches!(seen, Seen::Wrong(_))), "{seen:?}");
        }
    }
}
