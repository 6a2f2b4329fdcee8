//! Commands that make no sense: each is told what is wrong with which thing, and what to do next.

use std::ffi::OsString;
use std::fs;

use crate::support::bytes::{MIB, write_noise};
use crate::support::lab::{Lab, names_in, str_of};

fn lab_with_two_backups() -> (Lab, Vec<String>) {
    let lab = Lab::new();
    for seed in 0..2 {
        write_noise(&lab.path("disk.img"), seed, MIB);
        lab.backup("web1", &lab.path("disk.img"));
    }
    let listed = lab.listed();
    (lab, listed)
}

#[test]
fn an_unknown_guest_is_told_which_there_are() {
    let (lab, _) = lab_with_two_backups();
    let dir = lab.subdir("files");
    let out = lab.path("out.img");
    let commands = [
        args!["list", "nobody"],
        args!["show", "nobody@latest"],
        args!["show", "nobody@2026"],
        args!["restore", "nobody@latest", out],
        args!["mount", "nobody@latest", "--files", dir],
        args!["verify", "nobody@latest"],
    ];
    for command in commands {
        lab.run(command).code(1).says(&["nobody", "web1"]);
    }
    assert!(!out.exists());
    // In a new repository there is none.
    let empty = Lab::new();
    empty
        .run(args!["show", "web1@latest"])
        .code(1)
        .says(&["web1", "vbk backup"]);
}

#[test]
fn a_time_that_fits_several_backups_lists_them() {
    let (lab, listed) = lab_with_two_backups();
    let year = &listed[0][.."web1@2026".len()];
    let out = lab.path("out.img");
    let dir = lab.subdir("files");
    let commands = [
        args!["show", year],
        args!["restore", year, out],
        args!["mount", year, "--files", dir],
        args!["verify", year],
    ];
    for command in commands {
        let said = lab.run(command).says(&[&listed[0], &listed[1]]);
        assert!(matches!(said.status.code(), Some(1 | 2)), "{said}");
    }
    assert!(!out.exists());
    lab.run(args!["show", "web1@1999"])
        .code(1)
        .says(&["web1@1999", "vbk list web1"]);
    lab.run(args!["show", "ffffffffffff"])
        .code(1)
        .says(&["ffffffffffff", "vbk list"]);
}

#[test]
fn words_that_name_no_backup_are_told_how_to_name_one() {
    let (lab, _) = lab_with_two_backups();
    for bad in ["web1", "web1@", "web1@yesterday", "abc", "web1@latest/"] {
        let said = lab.run(args!["show", bad]).says(&["GUEST@latest"]);
        assert!(matches!(said.status.code(), Some(1 | 2)), "{said}");
    }
    lab.run(args!["show", "@latest"]).code(2).says(&["guest name"]);
    lab.run(args!["show", "web1@latest/vdx"]).code(1).says(&["vdx", "vda"]);
    let dir = lab.subdir("files");
    lab.run(args!["mount", "web1@latest/vdx", "--files", dir])
        .code(1)
        .says(&["vdx", "vda"]);
}

#[test]
fn a_directory_that_is_no_repository_is_named() {
    let lab = Lab::without_repo();
    let (dir, file) = (lab.subdir("just a directory"), lab.path("file"));
    fs::write(&file, "x").expect("writes");
    for place in [&dir, &file, &lab.path("nowhere")] {
        for command in [args!["list"], args!["verify"], args!["backup", "web1", file]] {
            let mut all = args!["--repo", place];
            all.extend(command);
            let said = lab.start_bare(all).wait().code(1);
            said.says(&["not a vbk repository", "vbk init", place.to_str().expect("UTF-8")]);
        }
    }
    assert!(names_in(&dir).is_empty());
    assert!(!lab.path("nowhere").exists());
}

#[test]
fn without_a_repository_the_two_ways_to_name_one_are_told() {
    let lab = Lab::without_repo();
    let (disk, dir) = (lab.path("disk.img"), lab.subdir("images"));
    write_noise(&disk, 1, MIB);
    let commands = [
        args!["init"],
        args!["backup", "web1", disk],
        args!["list"],
        args!["show", "web1@latest"],
        args!["mount", dir],
        args!["mount", "web1@latest", "--files", dir],
        args!["restore", "web1@latest", lab.path("out.img")],
        args!["verify"],
    ];
    for command in commands {
        lab.start_bare(command).wait().code(2).says(&["--repo", "VBK_REPO"]);
    }
}

#[test]
fn the_environment_names_a_repository_and_the_option_wins() {
    let (lab, listed) = lab_with_two_backups();
    let run = |repo: &std::path::Path, args: Vec<OsString>| {
        // The child's environment, and not the test's, which the other tests share.
        let mut all = args![format!("VBK_REPO={}", repo.display()), crate::support::lab::VBK];
        all.extend(args);
        lab.start_command(std::process::Command::new("env"), all).wait()
    };
    let said = run(lab.repo(), args!["list", "--json"]).done().json();
    assert_eq!(str_of(&said[0], "backup"), listed[0]);
    let said = run(&lab.path("nowhere"), args!["--repo", lab.repo(), "list", "--json"])
        .done()
        .json();
    assert_eq!(str_of(&said[0], "backup"), listed[0]);
    run(&lab.path("nowhere"), args!["list"]).code(1).says(&["nowhere"]);
    // `init PATH` names its own.
    let own = lab.path("own");
    run(&lab.path("nowhere"), args!["init", own]).done();
    assert!(own.join("vbk-repository").exists() && !lab.path("nowhere").exists());
}

#[test]
fn a_repository_of_a_newer_format_is_left_alone() {
    let (lab, _) = lab_with_two_backups();
    let marker = lab.repo().join("vbk-repository");
    let text = fs::read_to_string(&marker).expect("is there");
    fs::write(&marker, text.replace("format: 1", "format: 99")).expect("writes");
    let dir = lab.subdir("images");
    let out = lab.path("out.img");
    let commands = [
        args!["list"],
        args!["show", "web1@latest"],
        args!["backup", "web1", lab.path("disk.img")],
        args!["mount", dir],
        args!["restore", "web1@latest", out],
        args!["verify"],
    ];
    for command in commands {
        lab.run(command)
            .code(1)
            .says(&["99", "newer vbk", lab.repo().to_str().expect("UTF-8")]);
    }
    fs::write(&marker, text).expect("writes");
    assert_eq!(lab.listed().len(), 2);
}

#[test]
fn a_repository_is_made_only_in_an_empty_directory() {
    let lab = Lab::without_repo();
    let full = lab.subdir("full");
    fs::write(full.join("precious"), "mine").expect("writes");
    let said = lab.run(args!["init", full]).says(&["full", "not empty"]);
    assert!(matches!(said.status.code(), Some(1 | 2)), "{said}");
    assert_eq!(names_in(&full), ["precious"]);
    lab.ok(args!["init"]);
    let before = names_in(lab.repo());
    lab.run(args!["init"]).says(&["repo"]).code(1);
    assert_eq!(names_in(lab.repo()), before);
    let file = lab.path("file");
    fs::write(&file, "mine").expect("writes");
    lab.run(args!["init", file]).code(1).says(&["file"]);
    assert_eq!(fs::read_to_string(&file).expect("reads"), "mine");
}

#[test]
fn a_bad_block_size_names_the_nearest_good_one() {
    let lab = Lab::without_repo();
    let cases = [
        ("100000", "131072"),
        ("1000K", "1048576"),
        ("3M", "4194304"),
        ("32K", "65536"),
        ("0", "65536"),
        ("17M", "16777216"),
        ("1G", "16777216"),
        ("1X", "1M"),
        ("banana", "64K"),
        ("-1", ""),
        ("99999999999999999999", ""),
    ];
    for (size, word) in cases {
        let said = lab.run(args!["init", format!("--block-size={size}")]).says(&[word]);
        assert_eq!(said.status.code(), Some(2), "{said}");
        assert!(!lab.repo().exists(), "{size}: nothing is made");
    }
}

#[test]
fn a_bad_compression_names_the_good_ones() {
    let (lab, listed) = lab_with_two_backups();
    for level in ["0", "20", "fast", "-3", ""] {
        let option = format!("--compression={level}");
        lab.run(args!["backup", "web1", lab.path("disk.img"), option])
            .code(2)
            .says(&["19", "none"]);
    }
    assert_eq!(lab.listed(), listed);
}
