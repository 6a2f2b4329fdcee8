//! Encrypted repositories: what opens them is not lost by accident, and encryption does not switch itself off.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::bytes::{MIB, write_noise};
use crate::support::lab::{Lab, VBK, str_of, u64_of};
use crate::support::tools::wait_until;

#[test]
fn an_encrypted_repository_replaced_by_a_plain_one_is_refused() {
    let lab = Lab::without_repo();
    let (key, plain) = (lab.path("key"), lab.path("plain"));
    write_noise(&lab.path("disk"), 1, MIB);
    lab.ok(args!["--key-file", key, "init", "--encrypt", "--no-recovery-key"]);
    lab.start_bare(args!["--repo", plain, "init"]).wait().done();
    for name in ["store", "views"] {
        fs::remove_dir_all(lab.files().join(name)).expect("removes");
        fs::rename(plain.join(name), lab.repo().join(name)).expect("renames");
    }
    // The repository itself notices it too.
    lab.forget_known_repositories();
    for command in [args!["backup", "web", lab.path("disk")], args!["list"], args!["verify"]] {
        let mut args = args!["--key-file", key];
        args.extend(command);
        lab.run(args)
            .code(4)
            .says(&["not encrypted, although the repository is"]);
    }
}

#[test]
fn a_key_option_for_a_plain_repository_is_refused() {
    let lab = Lab::without_repo();
    let (key, disk) = (lab.path("key"), lab.path("disk"));
    write_noise(&disk, 1, MIB);
    fs::write(&key, "1".repeat(64)).expect("writes");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("sets the mode");
    for option in ["--key-file", "--passphrase-file"] {
        lab.run(args![option, key, "init"]).code(2).says(&[option, "--encrypt"]);
    }
    assert!(!lab.repo().exists());
    lab.ok(args!["init"]);
    for option in ["--key-file", "--passphrase-file"] {
        let said = lab.run(args![option, key, "backup", "web", disk]).code(2);
        said.says(&["is not encrypted", option]);
        let said = lab.run(args!["backup", "web", disk, option, key]).code(2);
        said.says(&["is not encrypted", option]);
    }
    assert!(lab.listed().is_empty());
    let credentials = lab.subdir("credentials");
    let with = |name: &str, value: &Path, args: Vec<OsString>| {
        let mut command = Command::new(VBK);
        command.env(name, value);
        let mut all = args!["--repo", lab.place()];
        all.extend(args);
        lab.start_command(command, all).wait()
    };
    for name in ["VBK_KEY_FILE", "VBK_PASSPHRASE_FILE"] {
        for args in [
            args!["backup", "web", disk],
            args!["list"],
            args!["init", lab.path("new")],
        ] {
            with(name, &key, args).code(2).says(&[name]);
        }
    }
    // What the units recommend. An empty directory of credentials is that of a unit which loads others.
    with("CREDENTIALS_DIRECTORY", &credentials, args!["list"]).done();
    for name in ["vbk-passphrase", "vbk-key-file"] {
        fs::copy(&key, credentials.join(name)).expect("copies");
        for args in [
            args!["backup", "web", disk],
            args!["list"],
            args!["init", lab.path("new")],
        ] {
            with("CREDENTIALS_DIRECTORY", &credentials, args).code(2).says(&[name]);
        }
        fs::remove_file(credentials.join(name)).expect("removes");
    }
    assert!(lab.listed().is_empty() && !lab.path("new").exists());
}

#[test]
fn an_unreadable_key_is_an_error_that_names_the_other_ways() {
    let lab = Lab::without_repo();
    let (key, none) = (lab.path("key"), lab.path("none"));
    lab.ok(args!["--key-file", key, "init", "--encrypt", "--no-recovery-key"]);
    let text = lab.path("text");
    fs::write(&text, "not a key\n").expect("writes");
    fs::set_permissions(&text, fs::Permissions::from_mode(0o600)).expect("sets the mode");
    for option in ["--key-file", "--passphrase-file"] {
        for file in [&none, &lab.dir().to_owned(), &text, &lab.path("key/x")] {
            let said = lab.run(args![option, file, "list"]).code(1);
            assert!(!said.stderr.contains("bug"), "{said}");
            said.says(&["vbk key list", "recovery key", "exported key"]);
        }
    }
    for (args, word) in [
        (args!["key", "add", "--new-passphrase-file", none], "none"),
        (args!["key", "add", "--new-key-file", lab.path("no/dir/key")], "no/dir"),
        (args!["key", "export", text], "text"),
        (args!["key", "export", lab.path("no/dir/key")], "no/dir"),
    ] {
        let mut all = args!["--key-file", key];
        all.extend(args);
        let said = lab.run(all).code(1).says(&[word]);
        assert!(!said.stderr.contains("bug"), "{said}");
    }
    assert_eq!(fs::read_to_string(&text).expect("reads"), "not a key\n");
    // It shows what there is without a key.
    lab.run(args!["key", "list"]).done().tells(&["key-file"]);
}

#[test]
fn a_key_file_that_others_can_read_is_a_warning() {
    let lab = Lab::without_repo();
    let (key, phrase) = (lab.path("key"), lab.path("phrase"));
    lab.ok(args!["--key-file", key, "init", "--encrypt", "--no-recovery-key"]);
    fs::write(&phrase, "correct horse\n").expect("writes");
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("sets the mode");
    mode(&phrase, 0o600);
    lab.ok(args!["--key-file", key, "key", "add", "--new-passphrase-file", phrase]);
    for (option, file) in [("--key-file", &key), ("--passphrase-file", &phrase)] {
        for bits in [0o640, 0o604] {
            mode(file, bits);
            lab.run(args![option, file, "list"])
                .code(0)
                .says(&["other users can read", "chmod 600"]);
        }
        mode(file, 0o400);
        lab.run(args![option, file, "list"]).done();
        std::os::unix::fs::chown(file, Some(65_534), None).expect("root may");
        lab.run(args![option, file, "list"])
            .code(0)
            .says(&["belongs to user 65534"]);
    }
}

#[test]
fn a_process_with_a_key_leaves_no_core_file() {
    let lab = Lab::without_repo();
    let (key, plain) = (lab.path("key"), lab.path("plain"));
    lab.ok(args!["--key-file", key, "init", "--encrypt", "--no-recovery-key"]);
    lab.ok(args!["init", plain]);
    for (repo, holds_key) in [(lab.repo(), true), (plain.as_path(), false)] {
        let dir = lab.subdir(if holds_key { "with" } else { "without" });
        let mut args = args!["--json", "--repo", repo, "mount", dir];
        if holds_key {
            args.extend(args!["--key-file", key]);
        }
        let pid = u64_of(&lab.start_bare(args).wait().done().json(), "pid");
        // Whether it is dumpable as well shows nowhere: root owns its files in /proc in any case.
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("reads");
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .expect("is there");
        let words: Vec<_> = core.split_whitespace().collect();
        // A test may run where cores are switched off for all.
        let own = fs::read_to_string("/proc/self/limits").expect("reads");
        assert!(own.contains(core) || words[4..6] == ["0", "0"], "{core}");
        assert!(!holds_key || words[4..6] == ["0", "0"], "{core}");
        lab.umount(&dir);
    }
}

#[test]
fn removing_a_key_requires_another_one() {
    let lab = Lab::without_repo();
    let (key, other, exported) = (lab.path("key"), lab.path("other"), lab.path("exported"));
    lab.ok(args!["--key-file", key, "init", "--encrypt", "--no-recovery-key"]);
    lab.ok(args![
        "--key-file",
        key,
        "key",
        "add",
        "--name",
        "other",
        "--new-key-file",
        other
    ]);
    lab.ok(args!["--key-file", key, "key", "export", exported]);
    let remove = |name: &str| args!["key", "remove", name];
    let with = |key, name: &str| {
        let mut args = args!["--key-file", key];
        args.extend(remove(name));
        args
    };
    lab.run(remove("other")).code(1).says(&["no key was given"]);
    lab.run(with(&key, "key-file"))
        .code(1)
        .says(&["only slot \"key-file\"", "vbk key add"]);
    lab.ok(with(&other, "key-file"));
    lab.run(with(&key, "other")).code(1).says(&["no key slot"]);
    lab.run(with(&other, "other")).code(1);
    lab.ok(args!["--key-file", other, "list"]);
    lab.ok(with(&exported, "other"));
}

#[test]
fn a_recovery_key_that_could_not_be_shown_is_reported() {
    let lab = Lab::without_repo();
    let key = lab.path("key");
    let run = |args: Vec<std::ffi::OsString>| {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("opens");
        let mut command = Command::new(VBK);
        command.env("VBK_STATE_DIR", lab.state_dir());
        command.arg("--repo").arg(lab.repo()).args(args).stdout(full);
        let output = command.output().expect("runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = run(args!["--key-file", key, "init", "--encrypt"]);
    assert!(said.contains("vbk key remove recovery"), "{said}");
    for json in [&["--json"][..], &[]] {
        let mut args: Vec<_> = json.iter().map(std::ffi::OsString::from).collect();
        let name = format!("paper{}", json.len());
        args.extend(args!["--key-file", key, "key", "add", "--recovery", "--name", name]);
        let said = run(args);
        assert!(said.contains(&format!("vbk key remove {name}")), "{said}");
        lab.ok(args!["--key-file", key, "key", "remove", name]);
    }
    lab.ok(args!["--key-file", key, "key", "remove", "recovery"]);
    let added = lab.json(args!["--key-file", key, "key", "add", "--recovery"]);
    assert!(!str_of(&added, "recovery_key").is_empty());
}

/// Passphrase files with these words, readable by their owner alone.
fn phrases<const N: usize>(lab: &Lab, words: [&str; N]) -> [PathBuf; N] {
    words.map(|word| {
        let file = lab.path(word);
        fs::write(&file, format!("{word}\n")).expect("writes");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("sets the mode");
        file
    })
}

/// Makes a repository that only a passphrase opens.
fn init_with(lab: &Lab, passphrase: &Path) {
    lab.ok(args![
        "--passphrase-file",
        passphrase,
        "init",
        "--encrypt",
        "--no-recovery-key"
    ]);
}

/// Names of the key slots.
fn slots(lab: &Lab) -> Vec<String> {
    let listed = lab.json(args!["key", "list"]);
    let listed = listed["keys"].as_array().expect("keys").iter();
    listed.map(|slot| str_of(slot, "name")).collect()
}

#[test]
fn a_changed_key_opens_the_repository_and_the_old_one_does_not() {
    let lab = Lab::without_repo();
    let [first, second, third] = phrases(&lab, ["first", "second", "third"]);
    let (key, other, exported) = (lab.path("key"), lab.path("other"), lab.path("exported"));
    init_with(&lab, &first);
    let with = |phrase: &PathBuf, more: Vec<OsString>| [args!["--passphrase-file", phrase], more].concat();
    let said = lab.ok(with(&first, args!["key", "passwd", "--new-passphrase-file", second]));
    assert!(
        said.contains("key passphrase-2 (passphrase) replaces key passphrase"),
        "{said}"
    );
    assert_eq!(slots(&lab), ["passphrase-2"]);
    lab.run(with(&first, args!["list"]))
        .code(1)
        .says(&["opens with this passphrase"]);
    let changed = lab.json(with(&second, args!["key", "passwd", "--new-passphrase-file", third]));
    assert_eq!(
        changed,
        serde_json::json!({"name": "passphrase", "kind": "passphrase", "replaces": "passphrase-2"})
    );
    lab.ok(with(&third, args!["list"]));

    // Of key files the same, and one that is not there is made.
    lab.ok(with(&third, args!["key", "add", "--new-key-file", key]));
    lab.ok(args![
        "--key-file",
        key,
        "key",
        "passwd",
        "--new-key-file",
        other,
        "--name",
        "host2"
    ]);
    assert_eq!(slots(&lab), ["host2", "passphrase"]);
    lab.run(args!["--key-file", key, "list"]).code(1);
    lab.ok(args!["--key-file", other, "list"]);

    // What is no passphrase of a person names what it changes.
    lab.ok(args!["--key-file", other, "key", "export", exported]);
    let by = |more: Vec<OsString>| [args!["--key-file", exported, "key", "passwd"], more].concat();
    lab.run(by(args!["--new-passphrase-file", first]))
        .code(2)
        .says(&["exported key", "host2, passphrase"]);
    lab.run(by(args!["nothing", "--new-passphrase-file", first]))
        .code(1)
        .says(&["nothing", "host2, passphrase"]);
    assert_eq!(slots(&lab), ["host2", "passphrase"]);
    lab.ok(by(args!["passphrase", "--new-passphrase-file", first]));
    assert_eq!(slots(&lab), ["host2", "passphrase-2"]);
    lab.ok(with(&first, args!["list"]));
    lab.run(with(&third, args!["list"])).code(1);
    // Nothing is changed by a new key that can't be read.
    lab.run(with(
        &first,
        args!["key", "passwd", "--new-passphrase-file", lab.path("none")],
    ))
    .code(1);
    lab.ok(with(&first, args!["list"]));
}

#[test]
fn a_change_that_is_killed_leaves_both_keys() {
    let lab = Lab::without_repo();
    let [first, second] = phrases(&lab, ["first", "second"]);
    init_with(&lab, &first);
    let args = || {
        args![
            "--passphrase-file",
            first,
            "key",
            "passwd",
            "--new-passphrase-file",
            second
        ]
    };
    let running = lab.start(args());
    // From then on it proves for a second that the new key opens the repository.
    let slot = lab.files().join("keys/passphrase-2.json");
    assert!(wait_until(Duration::from_secs(60), || slot.exists()));
    running.signal(Signal::SIGKILL);
    running.wait();
    assert_eq!(slots(&lab), ["passphrase", "passphrase-2"]);
    for phrase in [&first, &second] {
        lab.ok(args!["--passphrase-file", phrase, "list"]);
    }
    // The next change is complete again.
    lab.ok(args());
    assert_eq!(slots(&lab), ["passphrase-2", "passphrase-3"]);
    lab.run(args!["--passphrase-file", first, "list"]).code(1);
    lab.ok(args!["--passphrase-file", second, "list"]);
}

#[test]
fn a_recovery_key_is_changed_only_if_the_new_one_was_shown() {
    let lab = Lab::without_repo();
    let key = lab.path("key");
    lab.ok(args!["--key-file", key, "init", "--encrypt"]);
    let change = |recovery: &str| args!["--key-file", key, "key", "passwd", recovery, "--recovery"];
    for json in [&["--json"][..], &[]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("opens");
        let mut command = Command::new(VBK);
        command.env("VBK_STATE_DIR", lab.state_dir());
        command
            .args(json)
            .arg("--repo")
            .arg(lab.repo())
            .args(change("recovery"))
            .stdout(full);
        assert_eq!(command.output().expect("runs").status.code(), Some(1));
        assert_eq!(slots(&lab), ["key-file", "recovery", "recovery-2"]);
        lab.ok(args!["--key-file", key, "key", "remove", "recovery-2"]);
    }
    let changed = lab.json(change("recovery"));
    assert_eq!(slots(&lab), ["key-file", "recovery-2"]);
    let [paper] = phrases(&lab, ["paper"]);
    fs::write(&paper, str_of(&changed, "recovery_key")).expect("writes");
    lab.ok(args!["--passphrase-file", paper, "list"]);
    lab.run(args![
        "--passphrase-file",
        paper,
        "key",
        "passwd",
        "--new-key-file",
        lab.path("new")
    ])
    .code(2)
    .says(&["opened with a recovery key", "vbk key passwd NAME"]);
}
