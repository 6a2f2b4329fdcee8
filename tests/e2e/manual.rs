//! The manual pages, as man(1) and mandoc(1) read them, and the example of a configuration.

use std::fs;
use std::path::PathBuf;

use crate::support::lab::Lab;
use crate::support::tools::{command, try_tool};

fn pages(lab: &Lab) -> Vec<PathBuf> {
    let dir = lab.subdir("man");
    lab.start_bare(args!["generate", "man", dir]).wait().done();
    let mut pages: Vec<_> = fs::read_dir(dir)
        .expect("lists")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    pages.sort();
    pages
}

#[test]
fn readers_of_manual_pages_have_nothing_to_complain_of() {
    let lab = Lab::without_repo();
    let pages = pages(&lab);
    let names: Vec<_> = pages.iter().filter_map(|page| page.file_name()?.to_str()).collect();
    for page in [
        "vbk.1",
        "vbk-backup.1",
        "vbk-key-add.1",
        "vbk-config-check.1",
        "vbk-config.5",
    ] {
        assert!(names.contains(&page), "no {page} in {names:?}");
    }
    for page in &pages {
        let read = try_tool("man", args!["--warnings=w", "-E", "UTF-8", "-l", page]);
        let (text, complaints) = (
            String::from_utf8_lossy(&read.stdout),
            String::from_utf8_lossy(&read.stderr),
        );
        assert!(
            read.status.success() && complaints.is_empty(),
            "{}: {complaints}",
            page.display()
        );
        assert!(
            text.contains("NAME") && text.contains("SEE ALSO"),
            "{}: {text}",
            page.display()
        );
        let linted = command("mandoc", args!["-T", "lint", "-W", "warning", page])
            .output()
            .expect("runs mandoc");
        let complaints = String::from_utf8_lossy(&linted.stdout);
        assert!(linted.status.success(), "{complaints}");
    }
}

#[test]
fn the_example_of_a_configuration_is_accepted_and_changes_nothing() {
    let lab = Lab::without_repo();
    let example = lab.start_bare(args!["config", "example"]).wait().done().text();
    let (file, none) = (lab.path("example.toml"), lab.path("empty.toml"));
    fs::write(&file, example).expect("writes");
    fs::write(&none, "").expect("writes");
    let check = |path: &PathBuf| {
        let said = lab
            .start_bare(args!["--json", "--config-file", path, "config", "check"])
            .wait()
            .code(3);
        let mut meaning = said.json();
        meaning["file"] = serde_json::Value::Null;
        meaning
    };
    assert_eq!(check(&file), check(&none));
}
