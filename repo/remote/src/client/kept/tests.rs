//! Copies on disk: what comes back, what stays, and how much of it.

use std::collections::HashMap;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// Things of up to 16 pieces are kept.
const MAX_BYTES: u64 = 8 * 16 * PIECE_BYTES;

fn node(number: u8) -> Thing {
    Thing::Node(NodeId([number; 32]))
}

fn open(parent: &TempDir, max_bytes: u64) -> Kept {
    Kept::new(parent.path(), max_bytes, Path::new("vbk://dc2"), "id")
}

fn parent() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

/// All files, drafts too, with their lengths.
fn files(parent: &TempDir) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut directories = vec![parent.path().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("lists").flatten() {
            match entry.metadata().expect("is there") {
                metadata if metadata.is_dir() => directories.push(entry.path()),
                metadata => found.push((entry.path(), metadata.len())),
            }
        }
    }
    found
}

fn set_used(kept: &Kept, thing: Thing, used: SystemTime) {
    let file = fs::File::options().write(true).open(kept.path(thing)).expect("opens");
    file.set_modified(used).expect("sets");
}

#[test]
fn what_was_put_comes_back_and_nothing_else() {
    let parent = parent();
    let kept = open(&parent, 1 << 20);
    assert_eq!(kept.get(node(1)), None);
    kept.put(node(1), &[b"o", b"ne"]);
    kept.put(node(2), &[]);
    assert_eq!(kept.get(node(1)), Some((b"one".to_vec(), node_sum(b"one"))));
    assert_eq!(kept.get(node(2)), Some((Vec::new(), node_sum(b""))));
    assert_eq!(kept.get(Thing::Made(NodeId([1; 32]))), None, "the server gave it");
    assert_eq!(kept.node(NodeId([1; 32])).as_deref(), Some(&b"one"[..]));
    let path = kept.path(node(1));
    let whole = fs::read(&path).expect("reads");
    let mut flipped = whole.clone();
    flipped[1] ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() - 1], &whole[..10], &whole[1..], b""] {
        fs::write(&path, damaged).expect("writes");
        assert_eq!(kept.get(node(1)), None);
        assert!(!path.exists());
    }
}

#[test]
fn only_the_first_pages_of_a_block_are_kept_and_given() {
    let parent = parent();
    let kept = open(&parent, 1 << 20);
    let id = BlockId([3; 32]);
    let wanted = |pages| Wanted { id, pages };
    let pages = [&b"zero"[..], b"", b"two"].map(<[u8]>::to_vec);
    let of = |pages: &[Vec<u8>]| Stored {
        header: b"header".to_vec(),
        pages: pages.to_vec(),
        base: None,
    };
    kept.put_block(&wanted(1..3), &of(&pages[1..]));
    assert_eq!(kept.block(&wanted(1..3)), None, "page 0 is missing");
    kept.put_block(&wanted(0..3), &of(&pages[..2]));
    assert_eq!(kept.block(&wanted(0..2)), None, "not what was asked for");
    kept.put_block(&wanted(0..3), &of(&pages));
    for range in [0..3, 0..0, 1..2, 2..3, 3..3] {
        assert_eq!(kept.block(&wanted(range.clone())), Some(of(&pages[range])));
    }
    assert_eq!(kept.block(&wanted(0..4)), None);
    // A file that claims anything.
    for bytes in [
        &[0xFF; 8][..],
        &[1, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0],
        b"",
        &[2, 0, 0, 0],
    ] {
        kept.put(Thing::Block(id), &[bytes]);
        assert_eq!(kept.block(&wanted(0..1)), None);
    }
}

#[test]
fn a_directory_that_can_not_be_written_to_keeps_nothing_and_is_tried_once() {
    let parent = parent();
    let kept = open(&parent, MAX_BYTES);
    fs::write(&kept.directory, "a file").expect("writes");
    kept.put(node(1), &[b"one"]);
    assert_eq!(kept.get(node(1)), None);
    fs::remove_file(&kept.directory).expect("removes");
    kept.put(node(1), &[b"one"]);
    assert!(files(&parent).is_empty());
}

#[test]
fn only_this_user_can_read_it_and_drafts_of_killed_processes_go() {
    use std::os::unix::fs::PermissionsExt;
    let parent = parent();
    let kept = open(&parent, MAX_BYTES);
    kept.put(node(1), &[b"one"]);
    let path = kept.path(node(1));
    let mode = |path: &Path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    assert_eq!((mode(&kept.directory), mode(&path)), (0o700, 0o600));
    let [old, new] = ["draft-1", "draft-2"].map(|name| path.with_file_name(name));
    for draft in [&old, &new] {
        fs::write(draft, "half").expect("writes");
    }
    let file = fs::File::options().write(true).open(&old).expect("opens");
    file.set_modified(SystemTime::now() - 2 * LEFT_AFTER).expect("sets");
    // Another process.
    open(&parent, MAX_BYTES).put(node(2), &[b"two"]);
    assert!(!old.exists() && new.exists() && path.exists());
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u64),
    Get(u8),
    Flip(u8),
    Remove(u8),
}

fn steps() -> impl Strategy<Value = Vec<(bool, Step)>> {
    let step = prop_oneof![
        5 => (0..30_u8, 0..18 * PIECE_BYTES).prop_map(|(number, len)| Step::Put(number, len)),
        3 => (0..30_u8).prop_map(Step::Get),
        1 => (0..30_u8).prop_map(Step::Flip),
        1 => (0..30_u8).prop_map(Step::Remove),
    ];
    prop::collection::vec((any::<bool>(), step), 1..120)
}

/// A thing in the model: its length, and the step that used it last.
struct Known {
    len: u64,
    used: usize,
    must_stay: bool,
}

fn content(number: u8, len: u64) -> Vec<u8> {
    vec![number; len as usize]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn two_processes_keep_what_was_used_last_and_no_more_than_the_limit(steps in steps()) {
        let parent = parent();
        let processes = [(); 2].map(|()| open(&parent, MAX_BYTES));
        let mut model: HashMap<u8, Known> = HashMap::new();
        // Long ago, so that each use counts, and in the order of the steps.
        let past = SystemTime::now() - Duration::from_secs(1_000_000);
        for (number, (process, step)) in steps.into_iter().enumerate() {
            let kept = &processes[usize::from(process)];
            let used = past + Duration::from_secs(number as u64);
            let is_put = matches!(step, Step::Put(..));
            match step {
                Step::Put(thing, len) => {
                    kept.put(node(thing), &[&content(thing, len)]);
                    if room_of(len + SUM_BYTES as u64) <= MAX_BYTES / 8 {
                        model.insert(thing, Known { len, used: number, must_stay: true });
                        set_used(kept, node(thing), used);
                    }
                }
                Step::Get(thing) => match (kept.get(node(thing)), model.get_mut(&thing)) {
                    (Some((bytes, _)), Some(known)) => {
                        prop_assert_eq!(bytes, content(thing, known.len));
                        let marked = fs::metadata(kept.path(node(thing)))?.modified()?;
                        prop_assert!(marked.elapsed().is_ok_and(|age| age < USED_WITHIN));
                        set_used(kept, node(thing), used);
                        (known.used, known.must_stay) = (number, true);
                    }
                    (Some(_), None) => prop_assert!(false, "{thing} was damaged, removed or never put"),
                    (None, _) => drop(model.remove(&thing)),
                },
                Step::Flip(thing) => {
                    let path = kept.path(node(thing));
                    if let Ok(mut bytes) = fs::read(&path) {
                        let at = bytes.len() / 2;
                        bytes[at] ^= 4;
                        fs::write(&path, bytes)?;
                        set_used(kept, node(thing), used);
                        prop_assert_eq!(kept.get(node(thing)), None);
                    }
                    model.remove(&thing);
                }
                Step::Remove(thing) => {
                    kept.remove(node(thing));
                    model.remove(&thing);
                }
            }
            let bytes: u64 = files(&parent).iter().map(|(_, len)| room_of(*len)).sum();
            prop_assert!(bytes <= MAX_BYTES / 8 * 9, "{bytes}");
            // What was used last is there, as far as it fitted at each put, beside a file that was about to be replaced.
            let mut by_use: Vec<_> = model.iter().map(|(thing, known)| (known.used, *thing, known.len)).collect();
            by_use.sort_unstable();
            let mut room = Some(MAX_BYTES / 8 * 6);
            for (_, thing, len) in by_use.into_iter().rev() {
                room = room.and_then(|room| room.checked_sub(room_of(len + SUM_BYTES as u64)));
                if let (None, true, Some(known)) = (room, is_put, model.get_mut(&thing)) {
                    known.must_stay = false;
                }
                prop_assert!(!model[&thing].must_stay || kept.path(node(thing)).exists(), "{thing}");
            }
        }
    }

    #[test]
    fn processes_that_write_at_once_keep_the_limit(lens in prop::collection::vec(0..16 * PIECE_BYTES, 40)) {
        let parent = parent();
        std::thread::scope(|scope| {
            for process in 0..4_u8 {
                let (parent, lens) = (&parent, &lens);
                scope.spawn(move || {
                    let kept = open(parent, MAX_BYTES);
                    for number in 0..40 {
                        // Some of the same things.
                        let thing = number * (1 + process / 2);
                        let bytes = content(thing, lens[usize::from(thing) % lens.len()]);
                        kept.put(node(thing), &[&bytes]);
                        if let Some((found, _)) = kept.get(node(thing)) {
                            assert!(found == bytes, "{thing}");
                        }
                    }
                });
            }
        });
        let bytes: u64 = files(&parent).iter().map(|(_, len)| room_of(*len)).sum();
        prop_assert!(bytes <= MAX_BYTES / 8 * 11, "{bytes}");
        prop_assert!(files(&parent).iter().all(|(path, _)| !path.display().to_string().contains("draft")));
    }
}
