//! What commands say where there is nothing to do, on a terminal, and to monitoring programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::bytes::{MIB, make_hole, write_noise};
use crate::support::lab::{Lab, VBK, str_of};

fn lab_with_a_backup() -> Lab {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 4 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    lab
}

/// What the program writes on a terminal, whose user types `typed`, with its exit code. script(1) makes the terminal.
fn on_a_terminal(lab: &Lab, words: &str, typed: &str, variables: &[(&str, &str)]) -> (String, i32) {
    let words = format!("{VBK} --repo {} {words}", lab.files().display());
    let input = lab.path("typed");
    fs::write(&input, typed).expect("writes");
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &words, "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .env("VBK_STATE_DIR", lab.state_dir())
        .env("VBK_RUNTIME_DIR", lab.runtime_dir())
        .envs(variables.iter().copied())
        .stdin(Stdio::from(fs::File::open(&input).expect("opens")))
        .output()
        .expect("runs script(1)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (text, output.status.code().expect("ends"))
}

/// A file with the passphrase, which only its owner can read.
fn passphrase(lab: &Lab) -> PathBuf {
    let file = lab.path("passphrase");
    fs::write(&file, "correct horse\n").expect("writes");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("sets the mode");
    file
}

#[test]
fn an_empty_bin_and_a_search_without_a_hit_say_so() {
    let lab = lab_with_a_backup();
    lab.run(args!["unforget", "--all"]).done().tells(&["the bin is empty"]);
    let first = lab.listed();
    lab.ok(args!["forget", first[0], "--last-too"]);
    lab.run(args!["unforget", "web2"])
        .code(1)
        .says(&["web2 is not in the bin"]);
    let bin = lab.ok(args!["list", "--forgotten"]);
    assert!(bin.contains("web1"), "{bin}");
    lab.ok(args!["unforget", "--all"]);
    assert_eq!(lab.listed(), first);
    lab.run(args!["find", "web1", "nosuch"])
        .code(1)
        .says(&["nothing is named like that in 1 backup of 1 guest"]);
    let quiet = lab.run(args!["-q", "find", "web1", "nosuch"]).code(1);
    assert!(quiet.stdout.is_empty() && quiet.stderr.is_empty(), "{quiet}");
    let json = lab.run(args!["--json", "find", "web1", "nosuch"]).code(1);
    assert_eq!(json.text(), "{\"files\": []}\n");
}

#[test]
fn monitoring_gets_a_line_and_a_code() {
    let lab = Lab::new();
    lab.run(args!["status", "--check"])
        .code(2)
        .tells(&["VBK CRITICAL - no backups"]);
    write_noise(&lab.path("disk.img"), 1, MIB);
    lab.backup("web1", &lab.path("disk.img"));
    lab.run(args!["status", "--check"])
        .code(0)
        .tells(&["VBK OK - 1 backup of 1 guest"]);
    make_hole(&lab.path("old.img"), MIB);
    lab.ok(args![
        "backup",
        "old",
        lab.path("old.img"),
        "--time",
        "2026-01-01T00-00-00Z"
    ]);
    lab.run(args!["status", "--check"])
        .code(1)
        .tells(&["VBK WARNING - 1 of 2 guests without a backup in the last", ": old"]);
    lab.run(args!["status", "--check", "--except", "o*"]).code(0);
    let json = lab.run(args!["--json", "status", "--check"]).code(1).json();
    assert_eq!(json["check"]["state"], "warning");
    assert_eq!(json["check"]["late"], serde_json::json!(["old"]));
    // The import was made last, and is not the newest.
    assert!(str_of(&json, "last_backup").starts_with("web1@"), "{json}");
    assert_eq!(json["made_last"], "old@2026-01-01T00-00-00Z");
    let people = lab.ok(args!["status"]);
    assert!(people.contains("made last: old@2026-01-01T00-00-00Z"), "{people}");
    let nowhere = args!["--repo", lab.path("nowhere"), "status", "--check"];
    let said = lab.start_bare(nowhere).wait().code(3);
    said.tells(&["VBK UNKNOWN - "]);
}

#[test]
fn a_run_says_why_a_guest_failed_and_ends_with_sums() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 2 * MIB);
    let config = lab.path("config.toml");
    let text = format!(
        "[guest.web1]\ndisks = {{ vda = {:?} }}\n[guest.db1]\ndisks = {{ vda = {:?} }}\n",
        lab.path("disk.img"),
        lab.path("missing.img")
    );
    fs::write(&config, text).expect("writes");
    let said = lab.run(args!["--config-file", config, "backup", "--all"]).code(3);
    assert_eq!(said.stderr.matches("missing.img").count(), 1, "{said}");
    said.tells(&[
        "can't open",
        "missing.img: No such file",
        "1 guest backed up, 1 failed; 2 MiB read, 2 MiB new",
    ]);
}

#[test]
fn the_log_has_colours_on_a_terminal_unless_the_user_wants_none() {
    let lab = lab_with_a_backup();
    for (variables, colours) in [
        (&[][..], true),
        (&[("NO_COLOR", "")], true),
        (&[("NO_COLOR", "1")], false),
    ] {
        // Warns that it will be a raw image.
        let words = format!("restore web1@latest {} -n", lab.path("new.qcow2").display());
        let (text, code) = on_a_terminal(&lab, &words, "", variables);
        assert_eq!(code, 3, "{text}");
        let warning = text.lines().find(|line| line.contains("WARN"));
        let warning = warning.unwrap_or_else(|| panic!("no warning in {text}"));
        assert_eq!(warning.contains("\u{1b}[33m"), colours, "{warning:?}");
    }
}

#[test]
fn a_wrong_passphrase_may_be_typed_again_twice() {
    let lab = Lab::without_repo();
    let file = passphrase(&lab);
    lab.ok(args![
        "--passphrase-file",
        file,
        "init",
        "--encrypt",
        "--no-recovery-key"
    ]);
    let (text, code) = on_a_terminal(&lab, "list", "wrong\nworse\ncorrect horse\n", &[]);
    assert_eq!((text.matches("try again").count(), code), (2, 0), "{text}");
    let (text, code) = on_a_terminal(&lab, "list", "wrong\nworse\nworst\ncorrect horse\n", &[]);
    assert_eq!(
        (text.matches("Passphrase or recovery key").count(), code),
        (3, 1),
        "{text}"
    );
    fs::write(&file, "\n").expect("writes");
    lab.run(args!["--passphrase-file", file, "list"])
        .code(1)
        .says(&["passphrase", "is empty"]);
}

#[test]
fn the_last_key_but_one_is_not_removed_without_a_word() {
    let lab = Lab::without_repo();
    let file = passphrase(&lab);
    let with = |words: Vec<std::ffi::OsString>| [args!["--passphrase-file", file], words].concat();
    lab.ok(with(args!["init", "--encrypt", "--no-recovery-key"]));
    lab.ok(with(args!["key", "add", "--recovery", "--name", "safe"]));
    lab.run(with(args!["key", "remove", "safe"]))
        .done()
        .tells(&["key safe is removed", "one key is left, passphrase"]);
}

#[test]
fn a_prune_shows_its_work_on_a_terminal() {
    let lab = lab_with_a_backup();
    write_noise(&lab.path("disk.img"), 2, 4 * MIB);
    lab.backup("web1", &lab.path("disk.img"));
    let first = lab.listed();
    lab.ok(args!["forget", first[1], "-q"]);
    let (text, code) = on_a_terminal(&lab, "prune --max-unused 0%", "", &[]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("unused blocks"), "{text}");
    assert!(
        text.contains("finding unused blocks") || text.contains("removing unused blocks"),
        "{text}"
    );
}

#[test]
fn running_limits_are_listed() {
    let lab = lab_with_a_backup();
    lab.run(args!["limit"]).done().tells(&["no backup is running"]);
    assert_eq!(lab.json(args!["limit"])["runs"], serde_json::json!([]));
    lab.run(args!["limit", "fast"]).code(2).says(&["60%", "default"]);
}

#[test]
fn umount_from_a_directory_of_the_mount_names_the_shell_and_not_itself() {
    let lab = lab_with_a_backup();
    let dir = lab.mount("mnt");
    let mut shell = Command::new("sh");
    shell.current_dir(&dir);
    let said = lab
        .start_command(shell, args!["-c", "\"$0\" umount \"$1\"; exit $?", VBK, dir])
        .wait();
    assert!(
        said.stderr.contains("in use by sh (") && !said.stderr.contains("vbk ("),
        "{said}"
    );
    lab.umount(&dir);
}
