//! Encrypted repositories: what opens them is not lost by accident, and encryption does not switch itself off.

use std::fs;
use std::process::Command;

use crate::support::bytes::{MIB, write_noise};
use crate::support::lab::{Lab, VBK, str_of};

#[test]
fn an_encrypted_repository_that_became_a_plain_one_gets_no_backup() {
    let lab = Lab::without_repo();
    let (key, plain) = (lab.path("key"), lab.path("plain"));
    write_noise(&lab.path("disk"), 1, MIB);
    lab.ok(args!["--key-file", key, "init", "--encrypt", "--no-recovery-key"]);
    lab.start_bare(args!["--repo", plain, "init"]).wait().done();
    for name in ["store", "views"] {
        fs::remove_dir_all(lab.repo().join(name)).expect("removes");
        fs::rename(plain.join(name), lab.repo().join(name)).expect("renames");
    }
    for command in [args!["backup", "web", lab.path("disk")], args!["list"], args!["verify"]] {
        let mut args = args!["--key-file", key];
        args.extend(command);
        lab.run(args)
            .code(4)
            .says(&["not encrypted, although the repository is"]);
    }
}

#[test]
fn a_key_on_the_command_line_is_for_an_encrypted_repository_and_one_in_the_environment_for_any() {
    let lab = Lab::without_repo();
    let (key, disk) = (lab.path("key"), lab.path("disk"));
    write_noise(&disk, 1, MIB);
    fs::write(&key, "1".repeat(64)).expect("writes");
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
    for name in ["VBK_KEY_FILE", "VBK_PASSPHRASE_FILE"] {
        let mut command = Command::new(VBK);
        command.env(name, &key);
        let args = args!["--repo", lab.repo(), "backup", "web", disk];
        lab.start_command(command, args).wait().done();
    }
}

#[test]
fn who_removes_a_key_has_another_one() {
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
        .says(&["\"key-file\" alone", "vbk key add"]);
    lab.ok(with(&other, "key-file"));
    lab.run(with(&key, "other")).code(1).says(&["no key slot"]);
    lab.run(with(&other, "other")).code(1);
    lab.ok(args!["--key-file", other, "list"]);
    lab.ok(with(&exported, "other"));
}

#[test]
fn a_recovery_key_that_could_not_be_shown_is_not_left_unsaid() {
    let lab = Lab::without_repo();
    let key = lab.path("key");
    let run = |args: Vec<std::ffi::OsString>| {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("opens");
        let mut command = Command::new(VBK);
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
