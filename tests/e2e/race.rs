//! `scripts/bench` comes to its end and prints every figure. None of them is looked at but for being one.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::support::lab::{Lab, VBK};
use crate::support::tools::try_tool;

const LINES: [&str; 12] = [
    "first",
    "warm",
    "next",
    "unchanged",
    "verify",
    "restore",
    "dd",
    "random1",
    "random8",
    "size",
    "added",
    "memory",
];

/// A small race of a program against this one. Leaves the machine's page cache as it is: other tests are running.
fn race(lab: &Lab, program: &str, options: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/bench");
    let mut args = args![
        "--quick",
        "--warm",
        "--no-build",
        "--size=160M",
        "--rounds=1",
        "--program",
        program,
        "--cache",
        lab.dir().join("cache"),
        "--dir",
        lab.dir()
    ];
    args.extend(options.iter().map(Into::into));
    try_tool(script.to_str().expect("a plain path"), args)
}

/// The names in the lab's directory.
fn left_in(lab: &Lab) -> Vec<String> {
    let entries = fs::read_dir(lab.dir()).expect("lists the directory");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_race_gives_a_figure_for_every_line_and_leaves_only_its_disk() {
    let lab = Lab::without_repo();
    let path_of = |name: &str| lab.dir().join(name).to_str().expect("a plain path").to_owned();
    let (json, svg) = (path_of("race.json"), path_of("race.svg"));
    let options = ["--base-program", VBK, "--json", &json, "--svg", &svg];
    let output = race(&lab, VBK, &options);
    assert!(output.status.success(), "{output:?}");

    let result: Value = serde_json::from_slice(&fs::read(&json).expect("reads the figures")).expect("JSON");
    let lines = result["lines"].as_array().expect("lines");
    let keys: Vec<_> = lines.iter().filter_map(|line| line["key"].as_str()).collect();
    assert_eq!(keys, LINES);
    let printed = String::from_utf8_lossy(&output.stdout);
    for line in lines {
        for contender in ["here", "base"] {
            let median = &line["contenders"][contender]["median"];
            assert!(median.as_f64().is_some_and(|median| median > 0.0), "{line}");
        }
        let key = line["key"].as_str().expect("a key");
        let ratio = &result["regress"]["ratios"][key];
        assert!(ratio.as_f64().is_some_and(|ratio| ratio > 0.0), "{key}: {ratio}");
        let title = line["title"].as_str().expect("a title");
        assert!(printed.matches(title).count() >= 2, "{title} is missing in {printed}");
        if !["added", "memory"].contains(&key) {
            assert!(
                line["limit"]["value"].as_f64().is_some_and(|limit| limit > 0.0),
                "{line}"
            );
        }
    }
    let chart = fs::read_to_string(&svg).expect("reads the chart");
    assert!(chart.starts_with("<svg ") && chart.contains("next day"), "{chart}");
    assert_eq!(left_in(&lab), ["cache", "race.json", "race.svg"]);
}

#[test]
fn a_race_with_a_program_that_fails_fails_too_and_says_which() {
    let lab = Lab::without_repo();
    let failing = lab.dir().join("failing");
    fs::write(&failing, "#!/bin/sh\ntest \"$1\" = --version && echo vbk 0\n").expect("writes a program");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&failing, executable).expect("makes it executable");
    let output = race(&lab, failing.to_str().expect("a plain path"), &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("failing init ended with 1"), "{said}");
    assert_eq!(left_in(&lab), ["cache", "failing"]);
}
