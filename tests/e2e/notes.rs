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
