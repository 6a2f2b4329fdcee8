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
fn an_unknown_guest_is_refused_with_the_known_names() {
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
fn an_invalid_backup_name_is_refused_with_the_syntax() {
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
fn a_directory_that_is_not_a_repository_is_named() {
    let lab = Lab::without_repo();
    let (dir, file) = (lab.subdir("just a directory"), lab.path("file"));
    fs::write(&file, [b'x'; 512]).expect("writes");
    for place in [&dir, &file, &lab.path("nowhere")] {
        for command in [args!["list"], args!["verify"], args!["backup", "web1", file]] {
            let mut all = args!["--repo", place];
            all.extend(command.clone());
            let said = lab.start_bare(all).wait().code(1);
            said.says(&["not a vbk repository", "vbk init", place.to_str().expect("UTF-8")]);
            if place == &file {
                continue;
            }
            // A place that is always used is there when its file system is.
            let mut all = args![format!("VBK_REPO={}", place.display()), crate::support::lab::VBK];
            all.extend(command);
            let said = lab.start_command(std::process::Command::new("env"), all).wait().code(1);
            assert!(!said.stderr.contains("vbk init"), "{said}");
            said.says(&["is its file system mounted?", place.to_str().expect("UTF-8")]);
        }
    }
    assert!(names_in(&dir).is_empty());
    assert!(!lab.path("nowhere").exists());
}

#[test]
fn a_missing_repository_option_is_refused_with_both_ways_to_set_it() {
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
fn an_empty_variable_counts_as_not_set() {
    let (lab, listed) = lab_with_two_backups();
    let run = |args: Vec<OsString>| {
        let names = [
            "VBK_REPO",
            "VBK_KEY_FILE",
            "VBK_CONFIG",
            "VBK_BANDWIDTH",
            "VBK_TIME_ZONE",
            "VBK_LOG",
            "VBK_CACHE",
        ];
        let mut all: Vec<OsString> = names.iter().map(|name| format!("{name}=").into()).collect();
        all.push(crate::support::lab::VBK.into());
        all.extend(args);
        lab.start_command(std::process::Command::new("env"), all).wait()
    };
    run(args!["list"]).code(2).says(&["no repository named", "VBK_REPO"]);
    let said = run(args!["--repo", lab.repo(), "list", "--json"]).done().json();
    assert_eq!(str_of(&said["backups"][0], "backup"), listed[0]);
    run(args!["--repo", lab.repo(), "forget", "-n", "web1", "--keep-last", "1"]).done();
}

#[test]
fn the_backup_that_was_meant_is_named_where_the_words_show_it() {
    let (lab, _) = lab_with_two_backups();
    let (m, disk) = (lab.subdir("m"), lab.path("disk.img"));
    lab.run(args!["mount", m, "web1@latest"])
        .code(2)
        .says(&[&format!("mount web1@latest {}`", m.display())]);
    lab.run(args!["mount", "web1", m]).code(2).says(&["mount web1@latest "]);
    for command in ["show", "protect"] {
        lab.run(args![command, "web1"])
            .code(2)
            .says(&[&format!("{command} web1@latest`")]);
    }
    lab.run(args!["restore", "web1", lab.path("out.img")])
        .code(2)
        .says(&["restore web1@latest "]);
    lab.run(args!["ls", "web1:/etc"])
        .code(2)
        .says(&["ls web1@latest:/etc`"]);
    assert!(!lab.path("out.img").exists());
    // Names without a slash: the files show which of them is the disk.
    let mut command = std::process::Command::new(crate::support::lab::VBK);
    command.current_dir(disk.parent().expect("has one"));
    lab.start_command(command, args!["--repo", lab.repo(), "backup", "disk.img", "web1"])
        .wait()
        .code(2)
        .says(&["backup web1 disk.img`"]);
}

#[test]
fn a_guest_is_verified_with_all_its_backups() {
    let (lab, _) = lab_with_two_backups();
    lab.backup("db", &lab.path("disk.img"));
    for (what, count) in [(args!["web1"], 2), (args!["web1", "db@latest"], 3), (args!["db"], 1)] {
        let said = lab.json([args!["verify"], what].concat());
        assert_eq!(said["backups"], count);
    }
    lab.run(args!["verify", "nobody"]).code(1).says(&["nobody", "web1"]);
    lab.run(args!["verify", "latest"])
        .code(2)
        .says(&["verify GUEST@latest`"]);
}

#[test]
fn a_disk_that_is_given_twice_or_is_empty_causes_a_warning() {
    let lab = Lab::new();
    let (disk, empty) = (lab.path("disk.img"), lab.path("empty.img"));
    write_noise(&disk, 1, MIB);
    fs::write(&empty, "").expect("writes");
    std::os::unix::fs::symlink(&disk, lab.path("link.img")).expect("links");
    let vda = format!("vda={}", disk.display());
    let vdb = format!("vdb={}", lab.path("link.img").display());
    lab.run(args!["backup", "web1", vda, vdb])
        .code(3)
        .says(&["disks vda and vdb are the same", "link.img"]);
    lab.run(args!["backup", "web2", empty])
        .code(3)
        .says(&["disk vda is empty (0 bytes)", "empty.img", "right file?"]);
    assert_eq!(lab.listed().len(), 2);
}

#[test]
fn sizes_and_ages_have_one_grammar() {
    let (lab, _) = lab_with_two_backups();
    let disk = lab.path("disk.img");
    for (args, words) in [
        (
            args!["backup", "web1", disk, "--reserve", "20"],
            "20G or 20M, or 20B for bytes",
        ),
        (args!["backup", "web1", disk, "--read-limit", "50Mb/s"], "50MB/s"),
        (
            args!["forget", "web1", "-n", "--keep-within", "6m"],
            "write 6mo or 6min",
        ),
        (args!["find", "web1", "fstab", "--since", "6m"], "write 6mo or 6min"),
        (args!["verify", "--rotate", "30"], "has no unit"),
    ] {
        lab.run(args).code(2).says(&[words]);
    }
    lab.ok(args!["forget", "web1", "-n", "--keep-within", "6 months"]);
    lab.ok(args!["forget", "web1", "-n", "--keep-within", "1y6m"]);
    lab.ok(args![
        "backup",
        "web1",
        disk,
        "--reserve",
        "1KB",
        "--time-limit",
        "6hours"
    ]);
    lab.ok(args!["backup", "web1", disk, "--reserve", "0", "--time-limit", "90m"]);
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
    assert_eq!(str_of(&said["backups"][0], "backup"), listed[0]);
    let said = run(&lab.path("nowhere"), args!["--repo", lab.repo(), "list", "--json"])
        .done()
        .json();
    assert_eq!(str_of(&said["backups"][0], "backup"), listed[0]);
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
    let format = text.lines().find(|line| line.starts_with("format: ")).expect("has one");
    fs::write(&marker, text.replace(format, "format: 99")).expect("writes");
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
fn a_bad_compression_is_refused_with_the_valid_levels() {
    let (lab, listed) = lab_with_two_backups();
    for level in ["0", "20", "fast", "-3", ""] {
        let option = format!("--compression={level}");
        lab.run(args!["backup", "web1", lab.path("disk.img"), option])
            .code(2)
            .says(&["19", "none"]);
    }
    assert_eq!(lab.listed(), listed);
}

#[test]
fn a_remote_address_is_not_created_as_a_directory() {
    let lab = Lab::new();
    let disk = lab.path("disk.img");
    write_noise(&disk, 1, MIB);
    let before = names_in(lab.dir());
    for name in [
        "user@host:/srv/repo",
        "host:repo",
        "sftp:host:/x",
        "s3:bucket",
        "rest:https://host/",
    ] {
        for args in [
            args!["init", name],
            args!["init", "--parents", name],
            args!["--repo", name, "init"],
            args!["--repo", name, "list"],
            args!["--repo", name, "backup", "web1", disk],
            args!["--repo", name, "status"],
            args!["--repo", name, "trust", "--forget"],
        ] {
            lab.start_bare(args).wait().code(2).says(&[name, "ssh://[USER@]HOST"]);
        }
        let args = args![format!("VBK_REPO={name}"), crate::support::lab::VBK, "list"];
        let said = lab.start_command(std::process::Command::new("env"), args).wait();
        said.code(2).says(&[name, "ssh://[USER@]HOST"]);
    }
    for args in [args!["init", "ssh://host"], args!["--repo", "ssh://host", "list"]] {
        lab.start_bare(args).wait().code(2).says(&["ssh://host"]);
    }
    assert_eq!(names_in(lab.dir()), before, "nothing was made");
    // Whoever means it says so.
    lab.start_bare(args!["init", "./a:b"]).wait().done();
    lab.start_bare(args!["--repo", "./a:b", "list"]).wait().done();
}

#[test]
fn init_creates_parents_only_on_request() {
    let lab = Lab::without_repo();
    let deep = lab.path("mnt/usb/repo");
    for args in [args!["init", deep], args!["init", "--encrypt", deep]] {
        lab.run(args).code(1).says(&["mnt/usb", "mounted?", "--parents"]);
    }
    assert!(names_in(lab.dir()).is_empty());
    lab.ok(args!["init", "--parents", deep]);
    lab.start_bare(args!["--repo", deep, "list"]).wait().done();
}

#[test]
fn forget_refuses_a_partial_name() {
    let (lab, listed) = lab_with_two_backups();
    let year = &listed[0][.."web1@2026".len()];
    let almost = &listed[0][..listed[0].len() - 1];
    let id = str_of(&lab.json(args!["show", listed[0]]), "id");
    for dry in [&[][..], &["-n"]] {
        for (what, code) in [(year, 1), (almost, 2), (&id[..12], 2)] {
            let mut args = args!["forget", "--last-too", what];
            args.extend(dry.iter().map(OsString::from));
            lab.run(args).code(code).says(&[&listed[0]]);
        }
    }
    assert_eq!(lab.listed(), listed);
    lab.ok(args!["forget", id]);
    assert_eq!(lab.listed(), listed[1..]);
}

#[test]
fn forgetting_the_last_good_backup_needs_another_option() {
    let (lab, listed) = lab_with_two_backups();
    lab.backup("db", &lab.path("disk.img"));
    for dry in [&[][..], &["-n"]] {
        for what in [args![listed[0], listed[1]], args!["db@latest"]] {
            let mut args = args!["forget"];
            args.extend(what);
            args.extend(dry.iter().map(OsString::from));
            lab.run(args)
                .code(2)
                .says(&["last good backup of", "--last-too", "nothing was forgotten"]);
        }
    }
    assert_eq!(lab.listed().len(), 3);
    let said = lab.run(args!["forget", "--last-too", "-n", "db@latest"]).done();
    said.tells(&["db would be left with no backup"]);
    let said = lab.ok(args!["forget", "web1@latest"]);
    assert!(!said.contains("no backup"), "{said}");
    lab.run(args!["forget", "web1@latest"])
        .code(2)
        .says(&["last good backup of web1"]);
    let said = lab
        .run(args!["forget", "--last-too", "web1@latest", "db@latest"])
        .done();
    said.tells(&["web1 has no backup now", "db has no backup now"]);
    assert!(lab.listed().is_empty());
}
