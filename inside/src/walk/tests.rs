use super::*;
use crate::testing::{Content, MemoryTree};

fn paths(tree: &MemoryTree) -> Vec<String> {
    let mut walk = Walk::new(tree, tree.root());
    let mut paths = Vec::new();
    while let Some(step) = walk.step() {
        let path = String::from_utf8_lossy(walk.path()).into_owned();
        paths.push(match step {
            Step::Found(..) => path,
            Step::Failed(error) => format!("{path}: {error}"),
        });
    }
    paths
}

#[test]
fn a_walk_visits_all_in_the_order_of_names() {
    let mut tree = MemoryTree::new();
    for path in ["/b", "/a", "/a/c"] {
        tree.directory(path);
    }
    tree.file("/a/c/z", "");
    tree.link("/a/b", "/b");
    tree.file("/a-", "");
    assert_eq!(paths(&tree), ["a", "a/b", "a/c", "a/c/z", "a-", "b"]);
}

#[test]
fn a_directory_larger_than_the_memory_is_listed_in_order() {
    let mut tree = MemoryTree::new();
    // In no order, several times what one batch holds.
    for number in 0..5000 {
        tree.file(&format!("/{:04}", number * 7 % 5000), "");
    }
    // 17 levels deep, so that a batch is small.
    let mut entries = Entries::new(tree.root(), WIDE_LEVELS + 1);
    let mut names = Vec::new();
    while let Some(entry) = entries.next(&tree) {
        assert!(entries.batch.len() * (ENTRY_BYTES + 8) <= NARROW_BYTES);
        names.push(String::from_utf8(entry.name).expect("text"));
    }
    let expected: Vec<_> = (0..5000).map(|number| format!("{number:04}")).collect();
    assert!(names == expected);
}

#[test]
fn of_equal_names_the_first_counts() {
    let mut tree = MemoryTree::new();
    tree.file("/x", "1");
    tree.directory("/x");
    assert_eq!(paths(&tree), ["x"]);
    assert_eq!(tree.lookup(tree.root(), b"x").expect("found"), tree.node("/x"));
}

#[test]
fn a_directory_inside_itself_ends_the_walk_there() {
    let mut tree = MemoryTree::new();
    tree.directory("/a");
    let a = tree.find("/a");
    tree.entry(a, b"root", 0);
    tree.entry(a, b"self", a);
    // 2^60 paths, if each were walked.
    let mut above = a;
    for _ in 0..60 {
        let below = tree.add(FileKind::Directory, Content::Directory(Vec::new()));
        tree.entry(above, b"1", below);
        tree.entry(above, b"2", below);
        above = below;
    }
    let paths = paths(&tree);
    assert!(paths.len() < 200, "{}", paths.len());
    for end in ["a/root: damaged", "a/self: damaged"] {
        assert!(paths.iter().any(|path| path.starts_with(end)), "{paths:?}");
    }
}

#[test]
fn a_tree_that_is_too_deep_is_left_with_an_error() {
    let mut tree = MemoryTree::new();
    let mut above = 0;
    for _ in 0..MAX_DEPTH + 10 {
        let below = tree.add(FileKind::Directory, Content::Directory(Vec::new()));
        tree.entry(above, b"d", below);
        above = below;
    }
    tree.file("/z", "");
    let paths = paths(&tree);
    assert_eq!(paths.len(), MAX_DEPTH + 3);
    assert!(paths[MAX_DEPTH + 1].contains("levels deep"), "{}", paths[MAX_DEPTH + 1]);
    assert_eq!(paths.last().map(String::as_str), Some("z"));
}

#[test]
fn a_damaged_directory_does_not_hide_the_others() {
    let mut tree = MemoryTree::new();
    tree.damaged("/a", FileKind::Directory);
    tree.file("/b", "");
    assert_eq!(paths(&tree), ["a", "a: damaged: a directory of a test", "b"]);
}
