//! The help texts are the manual: every command and option is in them; what is not in them is a usage error.

use crate::support::lab::Lab;

const GLOBAL: [&str; 4] = ["--repo", "--json", "--quiet", "--verbose"];

const COMMANDS: [(&str, &[&str]); 22] = [
    ("init", &["--block-size", "1M", "64K", "16M"]),
    ("backup", &["--compression", "--no-wait", "19", "none", "vda"]),
    ("list", &["guest"]),
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
    ("forget", &["--last-too", "--all", "latest"]),
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
    for args in [args!["--help"], args!["backup", "--help"], args!["mount", "--help"]] {
        let mut command = std::process::Command::new(crate::support::lab::VBK);
        command.env("COLUMNS", "80");
        let help = lab.start_command(command, args).wait().done().text();
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
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
        args!["list", "one", "two"],
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
