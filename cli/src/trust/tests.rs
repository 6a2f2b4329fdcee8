use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn standing(id: &str, generation: u64) -> Standing {
    Standing {
        id: Some(id.into()),
        key_check: Some("k".into()),
        generation: Some(generation),
        ..Standing::default()
    }
}

fn now() -> Timestamp {
    "2026-11-21T02:10:30Z".parse().expect("is a time")
}

fn place() -> (tempfile::TempDir, Memory) {
    let dir = tempfile::tempdir().expect("a directory");
    let memory = Memory::at(dir.path().join("state/trust"));
    (dir, memory)
}

fn known(memory: &Memory, path: &Path) -> Option<Standing> {
    memory.get(path).expect("reads").map(|known| known.standing)
}

#[test]
fn a_remembered_state_never_becomes_older() {
    let (dir, memory) = place();
    let repo = dir.path().join("repo");
    assert_eq!(known(&memory, &repo), None);
    assert!(!memory.directory().exists(), "reading makes nothing");
    for (seen, kept) in [(3, 3), (5, 5), (4, 5)] {
        memory.note(&repo, &standing("a", seen), now()).expect("notes");
        assert_eq!(known(&memory, &repo), Some(standing("a", kept)));
    }
    // Another repository in its place is not noted by itself.
    memory.note(&repo, &standing("b", 9), now()).expect("notes");
    assert_eq!(known(&memory, &repo), Some(standing("a", 5)));
    let before = memory.replace(&repo, &standing("b", 1), now()).expect("notes");
    assert_eq!(before.map(|known| known.standing), Some(standing("a", 5)));
    assert_eq!(known(&memory, &repo), Some(standing("b", 1)));
    memory.forget(&repo, now()).expect("forgets");
    assert_eq!(known(&memory, &repo), None);
    let mode = |name: &str| {
        let data = fs::metadata(memory.directory().join(name)).expect("is there");
        data.permissions().mode() & 0o777
    };
    assert_eq!(
        (mode(""), mode("known.json"), mode("known.lock")),
        (0o700, 0o600, 0o600)
    );
}

#[test]
fn a_repository_is_remembered_by_real_path_even_when_unmounted() {
    let (dir, memory) = place();
    let (repo, link) = (dir.path().join("repo"), dir.path().join("link"));
    fs::create_dir(&repo).expect("makes");
    symlink("repo", &link).expect("links");
    memory.note(&link, &standing("a", 1), now()).expect("notes");
    assert_eq!(known(&memory, &repo), Some(standing("a", 1)));
    fs::remove_dir(&repo).expect("removes");
    assert_eq!(known(&memory, &repo), Some(standing("a", 1)));
    assert_eq!(known(&memory, &dir.path().join("./other/../repo")), None);
    assert_eq!(known(&memory, &dir.path().join("other")), None);
}

#[test]
fn concurrent_updates_of_the_memory_lose_nothing() {
    let (dir, memory) = place();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (memory, dir) = (memory.clone(), dir.path());
            scope.spawn(move || {
                for round in 0..10 {
                    let seen = standing("a", round * 4 + thread);
                    memory.note(&dir.join("shared"), &seen, now()).expect("notes");
                    let own = dir.join(format!("own{thread}"));
                    memory.note(&own, &standing("b", round), now()).expect("notes");
                }
            });
        }
    });
    assert_eq!(known(&memory, &dir.path().join("shared")), Some(standing("a", 39)));
    for thread in 0..4 {
        let own = dir.path().join(format!("own{thread}"));
        assert_eq!(known(&memory, &own), Some(standing("b", 9)));
    }
}

#[test]
fn a_damaged_memory_is_set_aside_and_a_newer_format_is_untouched() {
    let (dir, memory) = place();
    let repo = dir.path().join("repo");
    memory.note(&repo, &standing("a", 1), now()).expect("notes");
    let file = memory.directory().join("known.json");
    fs::write(&file, "{\"format\": 1, \"repo").expect("writes");
    let error = memory.get(&repo).expect_err("is damaged");
    assert!(error.to_string().contains("damaged"), "{error}");
    memory.replace(&repo, &standing("a", 2), now()).expect("notes");
    assert_eq!(known(&memory, &repo), Some(standing("a", 2)));
    assert!(memory.directory().join("known.json.damaged").exists());
    fs::write(&file, "{\"format\": 2, \"repositories\": []}").expect("writes");
    memory.replace(&repo, &standing("a", 3), now()).expect_err("is newer");
    assert!(fs::read_to_string(&file).expect("reads").contains("\"format\": 2"));
}

#[test]
fn a_memory_is_not_written_through_a_symlink() {
    let (dir, memory) = place();
    fs::create_dir_all(memory.directory()).expect("makes");
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").expect("writes");
    symlink(&victim, memory.directory().join("known.json.new")).expect("links");
    let repo = dir.path().join("repo");
    memory.note(&repo, &standing("a", 1), now()).expect("replaces the link");
    assert_eq!(known(&memory, &repo), Some(standing("a", 1)));
    let lock = memory.directory().join("known.lock");
    fs::remove_file(&lock).expect("removes");
    symlink(&victim, &lock).expect("links");
    memory.note(&repo, &standing("a", 2), now()).expect_err("is a link");
    assert_eq!(fs::read_to_string(victim).expect("reads"), "precious");
}
