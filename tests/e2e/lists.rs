//! What `vbk list` shows of many backups, and what an administrator does with the history of a guest as a whole.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::bytes::{MIB, noise_bytes, write_at, write_noise};
use crate::support::inside::record_again;
use crate::support::lab::{Lab, VBK, str_of, u64_of};
use crate::support::run::Said;
use crate::tls::Server;

/// A lab with backups of three guests at these times, beside what `vbk backup` made.
fn lab_of_three_guests() -> Lab {
    let lab = Lab::new();
    write_noise(&lab.path("disk"), 1, MIB);
    let made = str_of(&lab.backup("pattern", &lab.path("disk")), "backup");
    for (guest, time) in [
        ("web1", "2024-11-01T23-30-00Z"),
        ("web1", "2024-11-02T23-30-00Z"),
        ("web20", "2024-11-02T01-00-00Z"),
        ("db1", "2024-11-02T02-00-00Z"),
        ("db1", "2024-11-03T02-00-00Z"),
    ] {
        record_again(lab.files(), &made, |record| {
            record.guest = guest.parse().expect("a name");
            record.time = time.parse().expect("a time");
        });
    }
    lab.ok(args!["forget", made, "--last-too"]);
    lab
}

fn backups(list: &Value) -> Vec<String> {
    let list = list["backups"].as_array().expect("backups");
    list.iter().map(|entry| str_of(entry, "backup")).collect()
}

fn times(lab: &Lab, more: Vec<OsString>) -> Vec<String> {
    let mut words = args!["list"];
    words.extend(more);
    let listed = backups(&lab.json(words));
    listed
        .into_iter()
        .map(|backup| backup.replace("2024-11-", "").replace(":00Z", ""))
        .map(|backup| backup.split("T").next().expect("a day").to_owned())
        .collect()
}

#[test]
fn a_list_is_filtered_by_guest_time_state_and_number() {
    let lab = lab_of_three_guests();
    let all = ["db1@02", "db1@03", "web1@01", "web1@02", "web20@02"];
    for (words, wanted) in [
        (args![], &all[..]),
        (args!["web*"], &["web1@01", "web1@02", "web20@02"]),
        (args!["web?", "db1"], &["db1@02", "db1@03", "web1@01", "web1@02"]),
        (args!["--last", "1"], &["db1@03", "web1@02", "web20@02"]),
        (args!["db1", "--last", "5"], &["db1@02", "db1@03"]),
        (
            args!["--since", "2024-11-02", "--until", "2024-11-02"],
            &["db1@02", "web1@02", "web20@02"],
        ),
        (args!["--until", "2024-11-02 01:00"], &["web1@01", "web20@02"]),
        (args!["--since", "2024-11-02", "--last", "1", "web1"], &["web1@02"]),
        (
            args!["--until", "2024-11-02", "--last", "1"],
            &["db1@02", "web1@02", "web20@02"],
        ),
        (
            args!["--by", "time"],
            &["web1@01", "web20@02", "db1@02", "web1@02", "db1@03"],
        ),
        (args!["--state", "unproven"], &all),
        (args!["--state", "damaged,protected"], &[]),
    ] {
        assert_eq!(times(&lab, words.clone()), wanted, "{words:?}");
    }
    lab.ok(args!["protect", "db1@2024-11-02T02-00-00Z"]);
    assert_eq!(times(&lab, args!["--state", "damaged,protected"]), ["db1@02"]);
    lab.ok(args!["verify", "web20@latest"]);
    assert_eq!(times(&lab, args!["--state", "proven"]), ["web20@02"]);
    assert_eq!(
        times(&lab, args!["--state", "protected", "--state", "proven"]),
        ["db1@02", "web20@02"]
    );

    lab.run(args!["list", "web1", "mail*"])
        .code(1)
        .says(&["mail*", "db1", "web20"]);
    lab.run(args!["list", "--state", "lost"])
        .code(2)
        .says(&["unproven", "bootable"]);
    lab.run(args!["list", "--last", "0"]).code(2).says(&["--last"]);
    lab.run(args!["list", "--since", "yesterday"]).code(2).says(&["30d"]);
    assert!(
        lab.ok(args!["list", "--state", "damaged"])
            .contains("no backup is like that")
    );

    lab.ok(args!["forget", "db1@2024-11-03T02-00-00Z"]);
    let bin = lab.json(args!["list", "--forgotten", "db*", "--since", "2024-11-03"]);
    assert_eq!(backups(&bin), ["db1@2024-11-03T02-00-00Z"]);
    assert_eq!(
        backups(&lab.json(args!["list", "--forgotten", "--until", "2024-11-02"])),
        Vec::<String>::new()
    );
}

#[test]
fn the_last_line_of_a_list_sums_it_up() {
    let lab = lab_of_three_guests();
    let text = lab.ok(args!["list"]);
    let stored = u64_of(&lab.json(args!["list", "web20"])["backups"][0], "stored_bytes");
    assert!(stored > MIB && stored < 2 * MIB, "{stored}");
    assert_eq!(text.lines().last(), Some("5 backups of 3 guests, which stored 5 MiB"));
    assert!(
        lab.ok(args!["list", "web20"])
            .ends_with("1 backup of 1 guest, which stored 1 MiB\n")
    );
    let list = lab.json(args!["list"]);
    let sums = ["backups_total", "guests_total", "stored_bytes"].map(|sum| u64_of(&list, sum));
    let stored = list["backups"].as_array().expect("backups").iter();
    let stored = stored.map(|backup| u64_of(backup, "stored_bytes")).sum();
    assert_eq!(sums, [5, 3, stored]);
    assert!(!lab.ok(args!["-q", "list"]).contains("backups of"));
    assert!(lab.ok(args!["list", "--forgotten"]).ends_with("1 backup of 1 guest\n"));
    let one = &lab.json(args!["list", "web20"])["backups"][0];
    assert_eq!(str_of(one, "consistency"), "crash");
    assert!(!str_of(one, "host").is_empty());
}

/// Runs vbk in a time zone.
fn in_zone(lab: &Lab, zone: &str, words: Vec<OsString>) -> Said {
    let mut command = Command::new(VBK);
    command.env("TZ", zone);
    let mut all = args!["--repo", lab.place()];
    all.extend(words);
    lab.start_command(command, all).wait()
}

#[test]
fn local_times_stand_beside_utc_and_the_zone_is_named() {
    let lab = lab_of_three_guests();
    // Two hours east of UTC.
    let zone = "<+02>-2";
    in_zone(&lab, zone, args!["list", "--local"]).done().tells(&[
        "LOCAL",
        "2024-11-02T23-30-00Z  2024-11-03 01:30:00",
        "LOCAL is UTC+02",
    ]);
    let list = in_zone(
        &lab,
        zone,
        args!["list", "--local", "--json", "--since", "2024-11-03", "web1"],
    )
    .done();
    assert_eq!(backups(&list.json()), ["web1@2024-11-02T23-30-00Z"]);
    assert_eq!(
        str_of(&list.json()["backups"][0], "time_local"),
        "2024-11-03T01:30:00+02:00"
    );
    in_zone(&lab, zone, args!["show", "web1@latest"])
        .done()
        .tells(&["2024-11-02 23:30:00 UTC, 2024-11-03 01:30:00 in UTC+02"]);
    in_zone(&lab, zone, args!["forget", "web1", "--keep-daily", "1", "--dry-run"])
        .done()
        .tells(&["daily 2024-11-03", "days begin at midnight in UTC+02"]);
    for words in [
        args!["list", "--local"],
        args!["forget", "web1", "--keep-last", "9", "-n"],
    ] {
        in_zone(&lab, "Nowhere/Foo", words)
            .code(0)
            .says(&["Nowhere/Foo", "UTC is used"]);
    }
    in_zone(&lab, "Nowhere/Foo", args!["list"]).done();
}

#[test]
fn a_narrow_terminal_shows_fewer_columns_and_a_pipe_all() {
    let lab = lab_of_three_guests();
    let on_terminal = |columns: u32| {
        let words = format!(
            "stty cols {columns}; {VBK} --repo {} list",
            lab.place().to_string_lossy()
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &words, "/dev/null"]);
        script.env("TERM", "xterm").env("VBK_STATE_DIR", lab.state_dir());
        let output = script.stdin(Stdio::null()).output().expect("runs script(1)");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).replace('\r', "")
    };
    let headings = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("GUEST")).expect("a heading");
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    let all = "GUEST TIME DISKS SIZE NEW STORED TOOK ID STATE";
    assert_eq!(headings(&lab.ok(args!["list"])), all);
    assert_eq!(headings(&on_terminal(200)), all);
    let narrow = on_terminal(80);
    assert_eq!(headings(&narrow), "GUEST TIME SIZE NEW STORED TOOK STATE");
    assert!(narrow.lines().all(|line| line.chars().count() <= 80), "{narrow}");
    assert_eq!(headings(&on_terminal(20)), "GUEST TIME STORED STATE");
}

#[test]
fn a_dry_run_shows_what_is_asked_for_and_what_a_prune_would_free() {
    let lab = Lab::new();
    let disk = lab.path("disk");
    write_noise(&disk, 1, 4 * MIB);
    let first = str_of(&lab.backup("web1", &disk), "backup");
    write_at(&disk, MIB, &noise_bytes(2, 2 * MIB));
    let second = str_of(&lab.backup("web1", &disk), "backup");
    let rules = |more: Vec<OsString>| {
        let mut words = args!["forget", "--all", "--keep-last", "1", "--dry-run"];
        words.extend(more);
        words
    };
    let kept = lab.ok(rules(args!["--kept"]));
    assert!(kept.contains(&second) && !kept.contains(&first), "{kept}");
    let forgotten = lab.ok(rules(args!["--forgotten"]));
    assert!(
        forgotten.contains(&first) && !forgotten.contains(&second),
        "{forgotten}"
    );
    lab.run(args!["forget", "web1", "--keep-last", "1", "--kept"])
        .code(2)
        .says(&["--dry-run"]);

    let text = lab.ok(rules(args!["--prune"]));
    assert!(
        text.contains(&first)
            && text.contains("2 unused blocks (2 MiB) of 6 MiB would be removed; 0 B unused would stay"),
        "{text}"
    );
    let would = lab.json(rules(args!["--prune"]));
    assert_eq!(
        (&would["dry_run"], &would["prune"]["dry_run"]),
        (&true.into(), &true.into())
    );
    assert_eq!(backups(&would), [first.clone(), second.clone()]);
    assert_eq!(
        (u64_of(&would, "forgotten_total"), u64_of(&would, "kept_total")),
        (1, 1)
    );
    assert_eq!(
        (&would["backups"][0]["reasons"], &would["backups"][1]["reasons"]),
        (
            &serde_json::json!([{"reason": "used-up", "rule": "last", "of": 1}]),
            &serde_json::json!([{"reason": "counted", "rule": "last", "period": would["backups"][1]["reasons"][0]["period"],
                                 "place": 1, "of": 1}])
        )
    );
    assert_eq!(u64_of(&would["prune"], "removed_blocks"), 2);
    assert_eq!(lab.listed().len(), 2);
    // What it says comes true.
    let done = lab.json(args!["forget", "--all", "--keep-last", "1", "--prune"]);
    for field in [
        "backups",
        "unused_blocks",
        "unused_bytes",
        "removed_blocks",
        "removed_bytes",
        "live_bytes",
    ] {
        assert_eq!(u64_of(&would["prune"], field), u64_of(&done["prune"], field), "{field}");
    }
}

#[test]
fn a_backup_that_is_named_twice_is_forgotten_once() {
    let lab = lab_of_three_guests();
    let entry = &lab.json(args!["list", "db1"])["backups"][0];
    let (name, id) = (str_of(entry, "backup"), str_of(entry, "id"));
    let text = lab.ok(args!["forget", name, name, id]);
    assert!(text.contains("1 backup forgotten"), "{text}");
}

#[test]
fn a_guest_is_forgotten_as_a_whole_with_its_metrics() {
    let lab = lab_of_three_guests();
    let metrics = lab.path("vbk.prom");
    let disk = lab.path("disk");
    for guest in ["web1", "db1"] {
        lab.ok(args!["backup", guest, disk, "--metrics", metrics]);
    }
    let has_metrics = |guest: &str| {
        let text = fs::read_to_string(&metrics).expect("was written");
        text.contains(&format!("guest=\"{guest}\""))
    };
    let protected = "web1@2024-11-01T23-30-00Z";
    lab.ok(args!["protect", protected]);
    for words in [
        args!["forget", "--guest", "web1"],
        args!["forget", "--guest", "web1", "--all", "--keep-last", "1"],
        args!["forget", "web1", "--guest", "web1", "--all"],
    ] {
        lab.run(words).code(2);
    }
    lab.run(args!["forget", "--guest", "mail", "--all"])
        .code(1)
        .says(&["mail", "known guests"]);
    let before = lab.listed();
    lab.run(args!["forget", "--guest", "web1", "--all", "-n"])
        .code(3)
        .says(&[protected, "is protected"])
        .tells(&["2 backups would be forgotten, 1 kept", "protected", "all of web1"]);
    assert_eq!(lab.listed(), before);

    let whole = args!["forget", "--guest", "web1", "--all", "--metrics", metrics];
    lab.run(whole.clone()).code(3).says(&[protected, "vbk unprotect"]);
    assert_eq!(backups(&lab.json(args!["list", "web1"])), [protected]);
    assert!(has_metrics("web1"), "it still has a backup");
    lab.ok(args!["unprotect", protected]);
    let text = lab.run(whole).done().text();
    assert!(
        text.contains("web1 has no backup now") && text.contains("vbk unforget"),
        "{text}"
    );
    lab.run(args!["list", "web1"]).code(1).says(&["no guest"]);
    assert!(!has_metrics("web1") && has_metrics("db1"));
    lab.ok(args!["unforget", "web1"]);
    assert_eq!(backups(&lab.json(args!["list", "web1"])).len(), 3);
}

#[test]
fn a_renamed_guest_keeps_its_backups_and_their_protection_and_its_base() {
    let lab = Lab::new();
    let (disk, metrics) = (lab.path("disk"), lab.path("vbk.prom"));
    write_noise(&disk, 1, 4 * MIB);
    let first = str_of(&lab.json(args!["backup", "web1", disk, "--metrics", metrics]), "backup");
    let old = lab.path("old");
    fs::copy(&disk, &old).expect("copies");
    write_at(&disk, MIB, &noise_bytes(2, MIB));
    let second = str_of(&lab.backup("web1", &disk), "backup");
    lab.ok(args!["protect", first]);
    lab.ok(args!["verify"]);
    lab.backup("db1", &disk);
    lab.run(args!["rename", "web1", "db1"])
        .code(2)
        .says(&["db1@", "nothing was renamed"]);
    lab.run(args!["rename", "mail", "post"])
        .code(1)
        .says(&["mail", "known guests"]);
    lab.run(args!["rename", "web1", "a/b"]).code(2);
    assert_eq!(lab.listed().len(), 3);

    let text = lab.ok(args!["rename", "web1", "shop", "--metrics", metrics]);
    assert!(text.contains("web1 is shop now: 2 backups"), "{text}");
    let list = lab.json(args!["list", "shop"]);
    let (first, second) = (first.replace("web1", "shop"), second.replace("web1", "shop"));
    assert_eq!(backups(&list), [first.clone(), second]);
    let list = &list["backups"];
    assert_eq!(list[0]["protected"], true);
    assert!(list[0]["proven"].is_string() && list[1]["proven"].is_string(), "{list}");
    assert!(list[0].get("clock").is_none(), "{list}");
    lab.run(args!["list", "web1"]).code(1).says(&["no guest"]);
    assert!(!fs::read_to_string(&metrics).expect("is there").contains("web1"));
    lab.ok(args!["verify"]);
    let back = lab.path("back");
    lab.ok(args!["restore", first, back]);
    crate::support::bytes::assert_same(&back, &old);
    // By comparison with the latest one under the old name.
    let next = lab.backup("shop", &disk);
    assert_eq!(
        (u64_of(&next, "new_bytes"), u64_of(&next, "unchanged_bytes")),
        (0, 4 * MIB)
    );
    lab.ok(args!["prune", "--max-unused", "0%"]);
    lab.ok(args!["verify"]);
}

#[test]
fn only_a_token_that_may_manage_renames_through_a_server() {
    let lab = Lab::new();
    write_noise(&lab.path("disk"), 1, MIB);
    lab.backup("web1", &lab.path("disk"));
    let server = Server::start(&lab);
    let remote = |token: &Path, words: Vec<OsString>| {
        let address = format!("vbk://127.0.0.1:{}", server.port());
        let mut all = args!["--repo", address, "--token-file", token];
        all.extend(words);
        lab.start_bare(all).wait()
    };
    let adds = server.token(&lab, lab.repo(), "adds", args!["--rights", "backup"]);
    let manages = server.token(&lab, lab.repo(), "manages", args!["--rights", "manage"]);
    remote(&adds, args!["rename", "web1", "shop"]).code(1);
    assert!(lab.listed()[0].starts_with("web1@"));
    remote(&manages, args!["rename", "web1", "shop"]).done();
    let listed = lab.listed();
    assert!(listed.len() == 1 && listed[0].starts_with("shop@"), "{listed:?}");
    lab.ok(args!["verify"]);
    // The server's bin keeps what the client forgot.
    lab.ok(args!["unforget", "web1"]);
    assert_eq!(lab.listed().len(), 2);
}

#[test]
fn a_dry_run_of_a_backup_shows_what_would_be_read_and_does_nothing() {
    let lab = Lab::new();
    let disk = lab.path("disk");
    write_noise(&disk, 1, 3 * MIB);
    let dry = |more: Vec<OsString>| {
        let mut words = args!["backup", "web1", "--dry-run"];
        words.extend(more);
        words
    };
    let metrics = lab.path("vbk.prom");
    let text = lab.ok(dry(args![disk, "--read-limit", "30MB/s", "--metrics", metrics]));
    for word in [
        "web1",
        "never",
        "vda",
        "3 MiB",
        "30 MB/s",
        "1 guest with 1 disk (3 MiB) would be backed up; nothing was done",
    ] {
        assert!(text.contains(word), "no {word:?} in\n{text}");
    }
    assert!(lab.listed().is_empty() && !metrics.exists());
    let made = str_of(&lab.backup("web1", &disk), "backup");
    let json = lab.json(dry(args![disk, "--read-limit", "30MB/s"]));
    assert_eq!(str_of(&json["guests"][0], "last_backup"), made);
    let read = &json["guests"][0]["disks"][0];
    assert_eq!(u64_of(read, "size_bytes"), 3 * MIB);
    assert_eq!(u64_of(read, "read_limit_bytes_per_sec"), 30_000_000);
    assert!(read["snapshot"].is_null() && read["live"] == false, "{read}");
    fs::write(&disk, b"QFI\xfb and the rest of a qcow2 image").expect("writes");
    lab.run(dry(args![disk])).code(1).says(&["qcow2"]);
    lab.run(dry(args![lab.path("nothing")])).code(1).says(&["nothing"]);
    assert_eq!(lab.listed(), [made]);
}

#[test]
fn images_are_imported_with_their_times_the_oldest_first() {
    let lab = Lab::new();
    let disk = lab.path("disk");
    write_noise(&disk, 1, MIB);
    let import = |time: &str| args!["backup", "web1", disk, "--time", time];
    for time in ["2024-03-01", "2024-03-02 02:30"] {
        lab.ok(import(time));
    }
    lab.run(import("2024-03-01 12:00"))
        .code(2)
        .says(&["2024-03-02", "oldest first"]);
    lab.run(import("2024-03-02 02:30")).code(2);
    lab.run(import("2999-01-01")).code(2).says(&["future"]);
    lab.run(import("3d")).code(2).says(&["2026-11-20"]);
    lab.run(args!["backup", "web1", "--time", "2024-03-05"])
        .code(2)
        .says(&["DISK"]);
    let today = str_of(&lab.backup("web1", &disk), "backup");
    let wanted = ["web1@2024-03-01T00-00-00Z", "web1@2024-03-02T02-30-00Z", &today];
    assert_eq!(lab.listed(), wanted);
    assert!(!lab.ok(args!["list"]).contains("clock"));
    lab.ok(args!["forget", "web1", "--keep-daily", "2"]);
    assert_eq!(lab.listed(), wanted[1..]);
}
