use proptest::prelude::*;

use super::*;
use crate::testing::MemoryTree;

fn matches(pattern: &str, path: &str) -> bool {
    Pattern::new(pattern.as_bytes())
        .expect("a pattern")
        .matches(path.as_bytes())
}

#[test]
fn patterns_match_as_in_a_shell() {
    for (pattern, path) in [
        ("nginx.conf", "etc/nginx/nginx.conf"),
        ("*.conf", "/a/b/x.conf"),
        ("*", "a"),
        ("ngin?.conf", "nginx.conf"),
        ("?", "é"),
        ("[a-c]x", "bx"),
        ("[!a-c]x", "dx"),
        ("[]x]", "]"),
        ("[a-]", "-"),
        ("[ä-ö]", "é"),
        ("\\*", "*"),
        ("\\[x", "[x"),
        ("/etc/*", "etc/passwd"),
        ("/etc/**", "etc/a/b/c"),
        ("/**/x", "a/b/x"),
        ("/**/x", "x"),
        ("nginx/*.conf", "etc/nginx/a.conf"),
        ("**/b/**/x", "a/b/x"),
        ("/a/**/b/**/c", "a/1/b/2/b/3/c"),
        ("a*b*c", "a1b2b3c"),
        ("/etc/", "etc"),
    ] {
        assert!(matches(pattern, path), "{pattern} {path}");
    }
    for (pattern, path) in [
        ("nginx.conf", "etc/nginx.conf/x"),
        ("*.conf", "x.conf.d"),
        ("?", "ab"),
        ("[a-c]x", "dx"),
        ("[!a-c]x", "ax"),
        ("/etc/*", "etc/a/b"),
        ("/etc/*", "srv/etc/a"),
        ("/etc/**", "etc"),
        ("/x", "a/x"),
        ("a*b*c", "a1b2b3"),
        ("*", ""),
    ] {
        assert!(!matches(pattern, path), "{pattern} {path}");
    }
}

#[test]
fn bad_patterns_are_refused() {
    for (pattern, error) in [
        ("", BadPattern::Empty),
        ("/", BadPattern::Empty),
        ("[", BadPattern::OpenBracket),
        ("[]", BadPattern::OpenBracket),
        ("a[b-", BadPattern::OpenBracket),
        ("a\\", BadPattern::OpenEscape),
    ] {
        assert_eq!(Pattern::new(pattern.as_bytes()), Err(error), "{pattern}");
    }
    assert_eq!(Pattern::new(&[b'a'; 5000]), Err(BadPattern::TooLong));
}

#[test]
fn a_pattern_with_many_stars_is_fast() {
    let pattern = "*a".repeat(1000) + "b";
    assert!(!matches(&pattern, &"a".repeat(4000)));
    let pattern = "/**/a".repeat(300) + "/b";
    assert!(!matches(&pattern, &"a/".repeat(1000)));
}

#[test]
fn only_the_directory_that_the_pattern_names_is_walked() {
    let mut tree = MemoryTree::new();
    tree.directory("/etc");
    tree.directory("/etc/nginx");
    tree.file("/etc/nginx/nginx.conf", "");
    tree.damaged("/srv", FileKind::Directory);
    tree.link("/link", "etc");
    let found = |pattern: &str| {
        let mut found = Vec::new();
        let pattern = Pattern::new(pattern.as_bytes()).expect("a pattern");
        let searched = search(&tree, &pattern, &mut |it| {
            found.push(match it {
                Found::Match(path, ..) => String::from_utf8_lossy(path).into_owned(),
                Found::Failed(path, _) => format!("{} failed", String::from_utf8_lossy(path)),
            });
            true
        });
        searched.expect("searches");
        found
    };
    assert_eq!(found("/etc/nginx/*.conf"), ["etc/nginx/nginx.conf"]);
    assert_eq!(found("nginx*"), ["etc/nginx", "etc/nginx/nginx.conf", "srv failed"]);
    assert!(found("/nothing/x").is_empty());
    assert_eq!(found("/link/nginx"), ["link/nginx"]);
    // No deeper than the pattern goes.
    assert_eq!(found("/*"), ["etc", "link", "srv"]);
    assert_eq!(found("/*/nginx"), ["etc/nginx", "srv failed"]);
    assert_eq!(found("/srv"), ["srv"]);
}

proptest! {
    #[test]
    fn no_pattern_and_no_path_panics(pattern: Vec<u8>, path: Vec<u8>, text in "[a*?/!\\[\\]\\\\-]{0,20}") {
        for pattern in [&pattern[..], text.as_bytes()] {
            if let Ok(pattern) = Pattern::new(pattern) {
                pattern.matches(&path);
            }
        }
    }
}
