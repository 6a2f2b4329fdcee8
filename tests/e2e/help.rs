//! The help texts are the manual: every command and option is in them; what is not in them is a usage error.

use crate::support::lab::Lab;

const GLOBAL: [&str; 4] = ["--repo", "--json", "--quiet", "--verbose"];

const COMMANDS: [(&str, &[&str]); 24] = [
    ("init", &["--block-size", "1M", "64K", "16M"]),
    ("backup", &["--compression", "--no-wait", "19", "none", "vda"]),
    ("list", &["guest", "--last", "--since", "--state", "--by", "--local"]),
    ("show", &["backup"]),
    (
        "mount",
        &[
            "--files",
            "--user",
            "--writable",
            "--scratch-size",
            "--save",
            "--luks-key-file",
            "--foreground",
            "--allow-other",
        ],
    ),
    ("mounts", &[]),
    ("umount", &["--lazy", "--all"]),
    ("ls", &["--recursive", "--long", "web1@latest:/etc"]),
    ("cat", &["web1@latest:/etc/fstab"]),
    ("cp", &["--recursive", "--force", "owners"]),
    (
        "copy",
        &[
            "--since",
            "--from-key-file",
            "--from-token-file",
            "--dry-run",
            "init",
            "verify",
            "protection",
            "vbk://",
        ],
    ),
    ("find", &["--since", "--all-guests", "pattern"]),
    (
        "restore",
        &["--force", "latest", "--differential", "--dry-run", "qcow2"],
    ),
    ("verify", &["backup"]),
    ("forget", &["--last-too", "--all", "latest", "--guest", "--kept"]),
    (
        "boot",
        &[
            "--bus",
            "--firmware",
            "--network",
            "--vnc",
            "--save",
            "--restore",
            "--qemu-user",
            "qemu-system-x86",
        ],
    ),
    (
        "rehearse",
        &["--rotate", "--expect", "--timeout", "login prompt", "proven bootable"],
    ),
    (
        "serve",
        &["--listen", "8484", "--root", "--stdio", "--rights", "token add"],
    ),
    ("token", &["add", "list", "revoke", "rotate", "--token-file", "0600"]),
    ("unforget", &["--since", "--all", "vbk policy"]),
    ("note", &["--remove", "before the upgrade"]),
    ("rename", &["old", "new", "ids", "--no-wait"]),
    ("policy", &["--bin", "token", "administrator"]),
    ("trust", &["--forget", "/var/lib/vbk-trust"]),
];

#[test]
fn the_help_names_every_command_option_and_exit_code() {
    let lab = Lab::without_repo();
    for flag in ["--help", "-h", "help"] {
        let help = lab.start_bare(args![flag]).wait().done().text();
        let commands = COMMANDS.map(|(command, _)| command);
        for word in commands
            .iter()
            .chain(&GLOBAL)
            .chain(&["VBK_REPO", "75", "130", "GUEST@latest"])
        {
            assert!(help.contains(word), "no {word} in {flag}:\n{help}");
        }
    }
    for (command, words) in COMMANDS {
        let help = lab.start_bare(args![command, "--help"]).wait().done().text();
        for word in words.iter().chain(&GLOBAL) {
            let there = help.to_lowercase().contains(&word.to_lowercase());
            assert!(there, "no {word} in the help of {command}:\n{help}");
        }
        assert_eq!(lab.start_bare(args!["help", command]).wait().done().text(), help);
    }
    assert!(
        lab.start_bare(args!["--version"])
            .wait()
            .done()
            .text()
            .starts_with("vbk ")
    );
}

#[test]
fn help_fits_a_terminal_of_80_columns() {
    let lab = Lab::without_repo();
    let mut all = vec![args!["--help"], args!["-h"]];
    for (command, _) in COMMANDS {
        all.extend([args![command, "--help"], args![command, "-h"]]);
    }
    for args in all {
        for columns in [80, 100] {
            let mut command = std::process::Command::new(crate::support::lab::VBK);
            command.env("COLUMNS", columns.to_string());
            let help = lab.start_command(command, args.clone()).wait().done().text();
            for line in help.lines() {
                assert!(line.chars().count() <= columns, "{args:?}: {line}");
            }
        }
    }
}

#[test]
fn the_help_has_groups_of_commands_and_examples() {
    let lab = Lab::without_repo();
    let help = lab.start_bare(args!["--help"]).wait().done().text();
    for group in [
        "Back up",
        "Find and restore",
        "Keep",
        "Set up and serve",
        "Options of every command",
    ] {
        assert!(help.contains(&format!("\n{group}:\n")), "no {group} in:\n{help}");
    }
    for option in ["--key-file", "--passphrase-file"] {
        let short = lab.start_bare(args!["-h"]).wait().done().text();
        assert!(short.contains(option), "no {option} in:\n{short}");
    }
    let help = lab.start_bare(args!["list", "--help"]).wait().done().text();
    assert!(
        help.contains("\nGlobal options: ") && !help.contains("VBK_BANDWIDTH"),
        "{help}"
    );
    assert!(help.contains("\nExamples:\n  vbk list"), "{help}");
}

#[test]
fn other_programs_words_and_swapped_arguments_are_answered_with_the_right_command() {
    let lab = Lab::without_repo();
    let cases = [
        (args!["rm", "web1@latest"], "vbk forget"),
        (args!["check"], "vbk verify"),
        (args!["extract"], "vbk restore"),
        (args!["version"], "vbk --version"),
        (args!["backup", "/srv/web1.img"], "`vbk backup web1 /srv/web1.img`"),
        (args!["backup", "/srv/a.img", "web1"], "`vbk backup web1 /srv/a.img`"),
        (
            args!["restore", "new.img", "web1@latest"],
            "`vbk restore web1@latest new.img`",
        ),
        (args!["show", "web1"], "`vbk show web1@latest`"),
        (args!["list", "web1@latest"], "`vbk show web1@latest`"),
    ];
    for (typed, meant) in cases {
        lab.start_bare(typed).wait().code(2).says(&["tip:", meant]);
    }
    let swapped = lab.start_bare(args!["limit", "50MB/s", "web1"]).wait().code(2);
    swapped.says(&["`vbk limit web1 50MB/s`"]);
    let said = lab.start_bare(args!["list", "--last-one"]).wait().code(2);
    assert!(!said.stderr.contains("as a value"), "{said}");
    // clap would show what only the environment names.
    let words = args![
        format!("VBK_REPO={}", lab.dir().display()),
        crate::support::lab::VBK,
        "diff"
    ];
    let said = lab
        .start_command(std::process::Command::new("env"), words)
        .wait()
        .code(2);
    assert!(
        said.stderr.contains("Usage: vbk diff [OPTIONS] <BEFORE> <AFTER>"),
        "{said}"
    );
}

#[test]
fn unknown_arguments_are_a_usage_error() {
    let lab = Lab::without_repo();
    let commands = [
        args![],
        args!["backup"],
        args!["frobnicate"],
        args!["list", "--frobnicate"],
        args!["--frobnicate"],
        args!["mount"],
        args!["umount"],
        args!["restore", "web1@latest"],
        args!["show"],
        args!["list", "--state", "lost"],
        args!["init", "--block-size"],
        args!["list", "--quiet", "--verbose"],
    ];
    for command in commands {
        let said = lab.start_bare(command).wait().code(2);
        assert!(said.stdout.is_empty(), "{said}");
        assert!(
            said.stderr.contains("--help") || said.stderr.contains("Usage"),
            "{said}"
        );
    }
    for (command, _) in COMMANDS {
        lab.start_bare(args![command, "--no-such-option"])
            .wait()
            .code(2)
            .says(&["--no-such-option"]);
    }
}

#[test]
fn a_misspelled_command_is_refused_with_the_nearest_one() {
    let lab = Lab::without_repo();
    lab.start_bare(args!["bakcup"]).wait().code(2).says(&["backup"]);
    // What is for a whole guest is no option of a single disk's restore.
    for whole in [args!["--as", "web2"], args!["--thin-pool", "pool"], args!["--define"]] {
        let mut all = args!["restore", "web1@latest", "out.img"];
        all.extend(whole);
        lab.start_bare(all).wait().code(2).says(&["--create-in"]);
    }
    lab.start_bare(args!["list", "--jsn"]).wait().code(2).says(&["--json"]);
    // A backup where a directory is meant: the option that was forgotten is named.
    lab.start(args!["mount", "web1@latest"])
        .wait()
        .code(2)
        .says(&["--files"]);
}
