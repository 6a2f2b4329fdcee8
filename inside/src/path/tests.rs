use super::*;
use crate::testing::MemoryTree;

fn tree() -> MemoryTree {
    let mut tree = MemoryTree::new();
    for path in ["/a", "/a/b", "/usr", "/usr/bin"] {
        tree.directory(path);
    }
    tree.file("/a/b/file", "x");
    tree.file("/usr/bin/sh", "x");
    tree.link("/bin", "usr/bin");
    tree.link("/a/up", "../../../../usr");
    tree.link("/a/absolute", "/a/b/");
    tree.link("/loop", "/loop");
    tree.link("/dangling", "nothing");
    tree.link("/to-file", "a/b/file");
    tree
}

fn at(path: &str, last: Last) -> std::result::Result<String, String> {
    let tree = tree();
    match resolve(&tree, tree.root(), path.as_bytes(), last) {
        Ok(found) => {
            let canonical = String::from_utf8(found.path).expect("text");
            assert_eq!(found.node, tree.node(&canonical));
            Ok(canonical)
        }
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn links_and_dots_lead_to_files_of_the_same_tree() {
    for (path, expected) in [
        ("/", "/"),
        ("", "/"),
        ("/../..", "/"),
        ("/a/./b//file", "/a/b/file"),
        ("/bin/sh", "/usr/bin/sh"),
        ("/a/up/bin/../bin/sh", "/usr/bin/sh"),
        ("/a/absolute/file", "/a/b/file"),
        ("/a/absolute/..", "/a"),
        ("to-file", "/a/b/file"),
        ("/a/b/..", "/a"),
    ] {
        assert_eq!(at(path, Last::Follow), Ok(expected.to_owned()), "{path}");
    }
    for (path, expected) in [
        ("/bin", "/bin"),
        ("/bin/", "/usr/bin"),
        ("/bin/.", "/usr/bin"),
        ("/loop", "/loop"),
    ] {
        assert_eq!(at(path, Last::Keep), Ok(expected.to_owned()), "{path}");
    }
}

#[test]
fn bad_paths_are_errors() {
    for (path, expected) in [
        ("/nothing", "not found"),
        ("/dangling", "not found"),
        ("/a/b/file/", "not a directory"),
        ("/a/b/file/..", "not a directory"),
        ("/to-file/x", "not a directory"),
        ("/loop", "Too many levels of symbolic links (os error 40)"),
        ("/loop/x", "Too many levels of symbolic links (os error 40)"),
    ] {
        assert_eq!(at(path, Last::Follow), Err(expected.to_owned()), "{path}");
    }
}

#[test]
fn forty_links_are_followed_and_no_more() {
    let mut tree = MemoryTree::new();
    tree.file("/0", "");
    for number in 1..=41 {
        tree.link(&format!("/{number}"), &(number - 1).to_string());
    }
    let resolve = |path: &[u8]| resolve(&tree, tree.root(), path, Last::Follow);
    assert!(resolve(b"/40").is_ok());
    assert!(resolve(b"/41").is_err());
}
