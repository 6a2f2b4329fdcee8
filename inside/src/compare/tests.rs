use super::*;
use crate::testing::{Content, MemoryTree};

fn differences(before: MemoryTree, after: MemoryTree, all_content: bool) -> Vec<String> {
    let (before, after) = (before.shared(), after.shared());
    let mut found = Vec::new();
    let options = CompareOptions { all_content };
    compare((&before, before.root()), (&after, after.root()), options, &mut |it| {
        found.push(match it {
            Compared::Differs(path, change, ..) => format!("{} {change:?}", String::from_utf8_lossy(path)),
            Compared::Failed(path, error) => format!("{} {error}", String::from_utf8_lossy(path)),
        });
        ControlFlow::Continue(())
    });
    found
}

fn tree() -> MemoryTree {
    let mut tree = MemoryTree::new();
    tree.directory("/a");
    tree.directory("/b");
    tree.file("/a/one", "1");
    tree.file("/a/two", "2");
    tree.link("/b/link", "one");
    tree
}

fn touch(tree: &mut MemoryTree, path: &str) {
    tree.at(path).stat.modified += jiff::SignedDuration::from_nanos(1);
}

#[test]
fn equal_trees_do_not_differ() {
    assert!(differences(tree(), tree(), false).is_empty());
    assert!(differences(tree(), tree(), true).is_empty());
}

#[test]
fn each_kind_of_change_is_named() {
    let (mut before, mut after) = (tree(), tree());
    before.directory("/a-old");
    before.file("/a-old/file", "x");
    after.directory("/c");
    after.file("/c/file", "x");
    after.at("/a/one").content = Content::File(1, vec![(0, b"X".to_vec())]);
    touch(&mut after, "/a/one");
    touch(&mut after, "/a/two");
    after.at("/b").stat.mode = 0o700;
    after.at("/b/link").content = Content::Link(b"two".to_vec());
    before.file("/kind", "");
    after.directory("/kind");
    after.file("/kind/x", "");
    let expected = [
        "a/one Content",
        "a/two Attributes([\"time\"])",
        "a-old Removed",
        "a-old/file Removed",
        "b Attributes([\"mode\"])",
        "b/link Content",
        "c Added",
        "c/file Added",
        "kind Kind",
        "kind/x Added",
    ];
    assert_eq!(differences(before, after, false), expected);
}

#[test]
fn content_with_all_times_kept_is_compared_only_on_request() {
    let change = || {
        let mut after = tree();
        after.at("/a/one").content = Content::File(1, vec![(0, b"X".to_vec())]);
        after
    };
    assert!(differences(tree(), change(), false).is_empty());
    assert_eq!(differences(tree(), change(), true), ["a/one Content"]);
}

#[test]
fn what_can_not_be_read_is_named_and_the_rest_compared() {
    let mut before = tree();
    before.damaged("/a/bad", FileKind::Directory);
    let mut after = tree();
    after.damaged("/a/bad", FileKind::Directory);
    after.file("/z", "");
    let found = differences(before, after, false);
    let error = "a/bad damaged: a directory of a test";
    assert_eq!(found, [error, error, "z Added"]);
}

#[test]
fn holes_are_equal_to_zeros() {
    let device = |data: Vec<(u64, Vec<u8>)>| {
        let mut tree = MemoryTree::new();
        tree.file("/x", "").content = Content::File(1 << 40, data);
        let node = tree.node("/x");
        tree.shared().open(node).expect("opens")
    };
    let sparse = device(vec![(1 << 39, b"data".to_vec())]);
    let zeros = device(vec![(5, vec![0; 10_000]), (1 << 39, b"data".to_vec())]);
    let other = device(vec![(5, vec![0; 10_000]), (1 << 39, b"Data".to_vec())]);
    assert!(same_content(&*sparse, &*zeros).expect("reads"));
    assert!(!same_content(&*sparse, &*other).expect("reads"));
    let hash = |device: &dyn Device| content_hash(device).expect("reads");
    assert_eq!(hash(&*sparse), hash(&*zeros));
    assert_ne!(hash(&*sparse), hash(&*other));
}
