//! What is noted of a backup besides its record, when it can't be read: the backup may be protected, and stays.

use crate::support::bytes::{MIB, write_noise};
use crate::support::inside::write_note;
use crate::support::lab::{Lab, str_of};

#[test]
fn a_protected_backup_whose_note_is_damaged_is_not_forgotten() {
    let lab = Lab::new();
    write_noise(&lab.path("disk"), 1, MIB);
    let old = str_of(&lab.backup("web", &lab.path("disk")), "backup");
    lab.backup("web", &lab.path("disk"));
    lab.backup("db", &lab.path("disk"));
    let policy = |what: &str| args!["forget", what, "--keep-last", "1"];
    let harm = || write_note(lab.files(), &format!("backup/{old}"), b"{\"protected\": tr");

    lab.ok(args!["protect", old]);
    harm();
    for dry in [&[][..], &["--dry-run"]] {
        for mut args in [
            policy("web"),
            args!["forget", old],
            args!["forget", "--all", "--keep-last", "1"],
        ] {
            args.extend(dry.iter().map(std::ffi::OsString::from));
            lab.run(args)
                .code(4)
                .says(&[&old, "vbk protect", "nothing was forgotten"]);
        }
    }
    for (command, words) in [
        (args!["list"], "unreadable, may be protected"),
        (args!["show", old], "unreadable"),
    ] {
        let said = lab.run(command).code(4);
        assert!(said.text().contains(words), "{said}");
    }
    // It says nothing of other guests.
    lab.ok(policy("db"));

    lab.ok(args!["protect", old]);
    assert!(lab.ok(args!["list"]).contains("protected"));
    lab.ok(policy("web"));
    assert_eq!(lab.listed().len(), 3);

    // A command that reads everything replaces the state, on the safe side.
    for (command, code) in [("verify", 4), ("repair", 0)] {
        harm();
        lab.run(args![command]).code(code).says(&[&old, "protected now"]);
        lab.ok(args![command]);
        lab.ok(policy("web"));
        assert_eq!(lab.listed().len(), 3);
    }
    harm();
    lab.ok(args!["unprotect", old]);
    lab.ok(policy("web"));
    assert_eq!(lab.listed().len(), 2);
}

#[test]
fn a_note_of_an_unknown_backup_blocks_forget_until_repair() {
    let lab = Lab::new();
    write_noise(&lab.path("disk"), 1, MIB);
    let old = str_of(&lab.backup("web", &lab.path("disk")), "backup");
    lab.backup("web", &lab.path("disk"));
    let stray = "0123456789abcdef".repeat(4);
    write_note(lab.files(), &stray, b"noise");
    let policy = args!["forget", "web", "--keep-last", "1"];
    lab.run(policy.clone()).code(4).says(&[&stray, "vbk repair"]);
    let said = lab.run(args!["verify"]).code(4);
    assert!(said.text().contains(&stray), "{said}");
    lab.run(args!["repair"]).code(0).says(&[&stray]);
    lab.ok(args!["verify"]);
    lab.ok(policy);
    assert!(!lab.listed().contains(&old));
}

#[test]
fn a_note_is_shown_until_it_is_removed() {
    let lab = Lab::new();
    write_noise(&lab.path("disk"), 1, MIB);
    let backup = str_of(&lab.backup("web", &lab.path("disk")), "backup");
    assert!(!lab.ok(args!["list"]).contains("NOTE"));
    lab.ok(args!["protect", backup]);
    lab.ok(args!["note", "web@latest", "before the upgrade"]);
    assert!(lab.ok(args!["list"]).contains("protected  before the upgrade"));
    assert!(
        lab.ok(args!["show", backup])
            .contains("Note:        before the upgrade")
    );
    assert_eq!(
        str_of(&lab.json(args!["list"])["backups"][0], "note"),
        "before the upgrade"
    );
    lab.ok(args!["verify"]);
    let state = lab.json(args!["show", backup])["state"].clone();
    assert_eq!(
        (str_of(&state, "note"), &state["protected"]),
        ("before the upgrade".into(), &true.into())
    );
    lab.run(args!["note", backup, "two\nlines"]).code(2).says(&["one line"]);
    lab.run(args!["note", backup]).code(2).says(&["--remove"]);
    lab.ok(args!["note", backup, "--remove"]);
    assert!(lab.json(args!["list"])["backups"][0].get("note").is_none());
    // A state that can't be read may have protected the backup.
    write_note(lab.files(), &format!("backup/{backup}"), b"{\"protected\": tr");
    lab.run(args!["note", backup, "again"]).code(3).says(&["protected now"]);
    assert_eq!(lab.json(args!["list"])["backups"][0]["protected"], true);
}
