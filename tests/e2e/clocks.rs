//! Clocks that are wrong: the latest backup is the one that was made last, and none is forgotten because its time is.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::bytes::{MIB, write_at, write_noise};
use crate::support::inside::{record_again, write_note};
use crate::support::lab::{Lab, VBK, str_of};
use crate::support::run::Said;
use crate::support::tools::{tool, wait_until};

fn lab_with_a_disk() -> Lab {
    let lab = Lab::new();
    write_noise(&lab.path("disk"), 1, 2 * MIB);
    lab
}

/// Backs up what begins with this text, with a clock that says so.
fn backup_at(lab: &Lab, clock: &str, text: &str) -> Said {
    write_at(&lab.path("disk"), 0, text.as_bytes());
    let mut command = Command::new("faketime");
    command.arg(clock).arg(VBK);
    let args = args!["--repo", lab.place(), "--json", "backup", "web", lab.path("disk")];
    lab.start_command(command, args).wait()
}

fn assert_begins_with(path: &Path, text: &str) {
    let bytes = fs::read(path).expect("reads");
    assert_eq!(String::from_utf8_lossy(&bytes[..text.len()]), text);
}

fn made(said: Said) -> String {
    str_of(&said.json(), "backup")
}

#[test]
fn latest_is_the_backup_made_last_despite_wrong_clocks() {
    let lab = lab_with_a_disk();
    let first = str_of(&lab.backup("web", &lab.path("disk")), "backup");
    let ahead = made(backup_at(&lab, "2031-05-05 10:00:00", "ahead").code(0));
    lab.run(args!["show", "web@latest"])
        .code(0)
        .says(&[&ahead, "dated in the future"]);

    write_at(&lab.path("disk"), 0, b"right");
    let said = lab.run(args!["--json", "backup", "web", lab.path("disk")]).code(3);
    let right = made(said.says(&["the clock is behind the latest backup", &ahead]));
    let behind = made(backup_at(&lab, "2020-01-01 10:00:00", "behind").code(3));
    assert!(behind.starts_with("web@2020-01-01"), "{behind}");

    assert_eq!(lab.listed(), [&first, &ahead, &right, &behind].map(String::as_str));
    let dir = lab.subdir("images");
    let told = [
        &*format!("web@latest is {behind}"),
        &*format!("made after {right}"),
        "a clock was wrong",
    ];
    lab.run(args!["mount", dir]).code(0).says(&told);
    let link = fs::read_link(dir.join("web/latest")).expect("is a link");
    assert_eq!(format!("web@{}", link.display()), behind);
    assert_begins_with(&dir.join("web/latest/vda.img"), "behind");
    lab.umount(&dir);
    let said = lab.run(args!["restore", "web@latest", lab.path("out")]).code(0);
    said.says(&told);
    assert_begins_with(&lab.path("out"), "behind");
    let list = lab.run(args!["list"]).code(0);
    list.tells(&["dated in the future", &format!("made after {right}")]);

    // Two backups in one second: the other one takes the next second, and until then it is one from the future too.
    let now = || tool("date", args!["--utc", "+web@%Y-%m-%dT%H-%M-%SZ"]);
    assert!(wait_until(Duration::from_secs(60), || now().trim() >= &*right));
    // A policy forgets neither the last one because it looks old, nor the others because of the one from the future.
    lab.ok(args!["forget", "web", "--keep-last", "2"]);
    assert_eq!(lab.listed(), [&ahead, &right, &behind].map(String::as_str));
    lab.ok(args!["forget", "web", "--keep-within", "1d"]);
    assert_eq!(lab.listed(), [&ahead, &right, &behind].map(String::as_str));

    // Right again, and nobody needs to be told any more.
    write_at(&lab.path("disk"), 0, b"again");
    lab.ok(args!["backup", "web", lab.path("disk")]);
    lab.run(args!["restore", "web@latest", lab.path("out"), "--force"])
        .code(0);
    assert_begins_with(&lab.path("out"), "again");
}

#[test]
fn a_clock_behind_backups_of_other_hosts_is_reported() {
    let lab = lab_with_a_disk();
    let first = str_of(&lab.backup("db", &lab.path("disk")), "backup");
    let said = backup_at(&lab, "2020-01-01 10:00:00", "behind").code(3);
    said.says(&["the clock", "is behind the newest backup", &first]);
}

#[test]
fn a_rotation_proves_only_backups_made_before_its_parts_were_read() {
    let lab = lab_with_a_disk();
    lab.backup("web", &lab.path("disk"));
    let proven = |backup: &str| lab.json(args!["show", backup])["state"].get("proven").is_some();
    lab.ok(args!["verify", "--rotate", "2d"]);
    assert!(!proven("web@latest"));
    // Dated long before that part was read.
    let old = record_again(lab.files(), "web@latest", |record| {
        record.time = "2020-01-01T00-00-00Z".parse().expect("a time");
    });
    lab.ok(args!["verify", "--rotate", "2d"]);
    let listed = lab.listed();
    assert!(proven(&listed[0]), "both parts were read after it came");
    assert!(!proven(&old), "one of the parts was read before it came");
    lab.ok(args!["verify", "--rotate", "2d"]);
    assert!(proven(&old));
    // What can't be read is no rotation.
    write_note(
        lab.files(),
        "rotation",
        b"{\"parts\": [\"2026-11-21T00:00:00Z\", \"2026-11-21T00:00:00Z\"]}",
    );
    assert!(!proven(&old));
}
