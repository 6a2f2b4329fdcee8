//! What a server lets its clients destroy: the bin, the policy and the audit log.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use crate::support::bytes::{MIB, assert_same, noise_bytes, write_at, write_noise};
use crate::support::lab::{Lab, VBK, str_of, u64_of};
use crate::support::remote::disk;
use crate::tls::Server;

#[test]
fn a_forgotten_backup_comes_back_until_it_is_pruned() {
    let lab = Lab::new();
    let disk = disk(&lab);
    let first = str_of(&lab.backup("web1", &disk), "backup");
    let old = lab.path("old.img");
    fs::copy(&disk, &old).expect("copies");
    write_at(&disk, 5 * MIB, &noise_bytes(2, MIB));
    let second = str_of(&lab.backup("web1", &disk), "backup");
    assert!(lab.ok(args!["list", "--forgotten"]).contains("nothing was forgotten"));
    assert!(lab.ok(args!["forget", first]).contains("vbk unforget"));
    assert_eq!(lab.listed(), std::slice::from_ref(&second));
    let bin = lab.json(args!["list", "--forgotten"]);
    assert_eq!(str_of(&bin["backups"][0], "backup"), first);
    assert!(lab.ok(args!["list", "--forgotten"]).contains("the next prune"));
    lab.run(args!["unforget", "web2"]).code(1).says(&["not in the bin"]);
    let part = first.split_once('T').expect("a time").0;
    lab.run(args!["unforget", part]).code(2).says(&[
        part,
        "only a part of a backup's name",
        &first,
        "Nothing was brought back",
    ]);
    lab.ok(args!["unforget", first]);
    assert_eq!(lab.listed(), [first.clone(), second.clone()]);
    lab.ok(args!["verify"]);
    let back = lab.path("back.img");
    lab.ok(args!["restore", first, back]);
    assert_same(&back, &old);
    assert_eq!(lab.json(args!["list", "--forgotten"])["backups_total"], 0);

    // `latest` is what was made last, also after the other came back.
    lab.ok(args!["restore", "web1@latest", back, "--force"]);
    assert_same(&back, &disk);

    lab.ok(args!["forget", first]);
    assert!(u64_of(&lab.json(args!["prune", "--max-unused", "0%"]), "removed_blocks") >= 1);
    lab.run(args!["unforget", "--all"]).done();
    assert_eq!(lab.listed(), [second]);
}

#[test]
fn a_backup_comes_back_with_its_note_and_its_proof() {
    for is_encrypted in [false, true] {
        let lab = Lab::without_repo();
        let keyed = |more: Vec<OsString>| match is_encrypted {
            true => args!["--key-file", lab.path("key")].into_iter().chain(more).collect(),
            false => more,
        };
        match is_encrypted {
            true => lab.ok(keyed(args!["init", "--encrypt", "--no-recovery-key"])),
            false => lab.ok(args!["init"]),
        };
        let disk = disk(&lab);
        let made = str_of(&lab.json(keyed(args!["backup", "web1", disk])), "backup");
        lab.ok(keyed(args!["backup", "web1", disk]));
        lab.ok(keyed(args!["verify"]));
        lab.ok(keyed(args!["note", made, "keep for audit"]));
        let shown = || lab.json(keyed(args!["show", made]))["state"].clone();
        let before = shown();
        assert!(!before["proven"].is_null(), "{before}");
        lab.ok(keyed(args!["forget", made]));
        let bin = lab.ok(keyed(args!["list", "--forgotten"]));
        assert!(bin.contains("NOTE") && bin.contains("keep for audit"), "{bin}");
        let bin = lab.run(keyed(args!["--json", "list", "--forgotten"])).done().text();
        assert!(bin.contains("keep for audit"), "{bin}");
        lab.ok(keyed(args!["unforget", made]));
        let after = shown();
        assert_eq!((&after["note"], &after["proven"]), (&before["note"], &before["proven"]));
        // Once a prune has emptied the bin, nothing is left of it: another one of the name would begin without a note.
        lab.ok(keyed(args!["forget", made]));
        lab.ok(keyed(args!["prune"]));
        lab.ok(keyed(args!["verify"]));
    }
}

#[test]
fn what_a_client_forgot_survives_every_prune_but_one_that_empties_the_bin() {
    for is_encrypted in [false, true] {
        let lab = Lab::without_repo();
        let key = lab.path("key");
        let keyed = |more: Vec<OsString>| match is_encrypted {
            true => args!["--key-file", key].into_iter().chain(more).collect(),
            false => more,
        };
        match is_encrypted {
            true => lab.ok(keyed(args!["init", "--encrypt", "--no-recovery-key"])),
            false => lab.ok(args!["init"]),
        };
        let disk = disk(&lab);
        let names: Vec<_> = (0..2)
            .map(|number| {
                write_at(&disk, 5 * MIB, &noise_bytes(number, MIB));
                str_of(&lab.json(keyed(args!["backup", "web1", disk])), "backup")
            })
            .collect();
        let server = Server::start(&lab);
        let all = server.token(&lab, lab.repo(), "thief", args!["--rights", "manage"]);
        let remote = |more: Vec<OsString>| {
            let address = format!("vbk://127.0.0.1:{}", server.port());
            let mut words = args!["--repo", address, "--token-file", all];
            words.extend(keyed(more));
            lab.start_bare(words).wait()
        };
        // A dry run counts the same over the network.
        let would = || args!["--json", "forget", "web1", "--keep-last", "1", "--dry-run", "--prune"];
        let (here, there) = (lab.run(keyed(would())).done().json(), remote(would()).done().json());
        for field in [
            "backups",
            "live_blocks",
            "unused_blocks",
            "removed_blocks",
            "removed_bytes",
        ] {
            assert_eq!(here["prune"][field], there["prune"][field], "{field}: {here} {there}");
        }
        assert!(u64_of(&here["prune"], "removed_blocks") >= 1, "{here}");
        // A thief forgets all, and prunes.
        remote(args!["forget", names[0], names[1], "--last-too"]).done();
        remote(args!["prune", "--max-unused", "0%"]).done();
        remote(args!["prune", "--empty-bin"]).code(1).says(&["empty the bin"]);
        // The server's own prune of that night.
        lab.ok(keyed(args!["prune", "--max-unused", "0%"]));
        assert_eq!(lab.json(keyed(args!["list"]))["backups_total"], 0);
        lab.ok(keyed(args!["unforget", "web1", "--since", "1h"]));
        lab.ok(keyed(args!["verify"]));
        let restored = lab.path("restored.img");
        lab.ok(keyed(args!["restore", "web1@latest", restored]));
        assert_same(&restored, &disk);

        remote(args!["forget", names[0]]).done();
        assert!(remote(args!["list", "--forgotten"]).text().contains("or longer"));
        lab.ok(keyed(args!["prune", "--max-unused", "0%", "--empty-bin"]));
        lab.run(keyed(args!["unforget", "web1"]))
            .code(1)
            .says(&["not in the bin"]);

        let log = fs::read_to_string(lab.repo().join("serve/audit.log")).expect("is there");
        let lines: Vec<serde_json::Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .filter(|line: &serde_json::Value| line["client"] == "thief")
            .collect();
        let what: Vec<_> = lines.iter().map(|line| str_of(line, "what")).collect();
        assert_eq!(what, ["forget", "prune", "forget"], "{log}");
        assert_eq!(lines[0]["address"], "127.0.0.1");
        assert_eq!(lines[0]["of"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            log.contains(&names[0]),
            !is_encrypted,
            "names are hidden from the server"
        );
        let refused = fs::read_to_string(lab.repo().join("serve/refused.log")).expect("is there");
        assert!(refused.contains("empty the bin"), "{refused}");
    }
}

#[test]
fn a_policy_is_shown_and_set_on_the_server() {
    let lab = Lab::new();
    assert_eq!(u64_of(&lab.json(args!["policy"]), "bin_secs"), 7 * 86400);
    lab.ok(args!["policy", "--bin", "30d"]);
    assert!(lab.ok(args!["policy"]).contains("bin 30d"));
    lab.start_bare(args!["--repo", "vbk://h", "policy"])
        .wait()
        .code(2)
        .says(&["set there"]);
    let log = fs::read_to_string(lab.repo().join("serve/audit.log")).expect("is there");
    assert!(log.contains("policy: bin 30d"), "{log}");
}

#[test]
fn a_client_that_only_adds_can_not_push_good_backups_out_of_the_rules() {
    let lab = Lab::new();
    let disk = disk(&lab);
    let at = |clock: &str, words: Vec<OsString>| {
        let mut command = Command::new("faketime");
        command.arg(clock).arg(VBK);
        let mut all = args!["--json"];
        all.extend(words);
        lab.start_command(command, all).wait()
    };
    let back_up = |clock: &str| {
        let said = at(clock, args!["--repo", lab.place(), "backup", "web1", disk]);
        str_of(&said.done().json(), "backup")
    };
    let good = ["2026-11-01", "2026-11-02", "2026-11-03"].map(|day| back_up(&format!("{day} 02:00:00")));
    let server = Server::start(&lab);
    let token = server.token(&lab, lab.repo(), "stolen", args!["--rights", "backup"]);
    // Each would be the newest one of its day.
    for day in ["2026-11-03", "2026-11-04", "2026-11-05"] {
        let address = format!("vbk://127.0.0.1:{}", server.port());
        at(
            &format!("{day} 23:00:00"),
            args!["--repo", address, "--token-file", token, "backup", "web1", disk],
        )
        .done();
    }
    lab.run(args!["forget", "web1", "--keep-daily", "4"])
        .code(3)
        .says(&["from a client that may only add", "that time counts"]);
    let left = lab.listed();
    assert!(good.iter().all(|name| left.contains(name)), "{left:?}");
    assert_eq!(left.len(), 4, "{left:?}");
}

#[test]
fn nothing_is_forgotten_of_a_guest_that_changed_as_a_whole() {
    let lab = Lab::new();
    let disk = lab.path("disk");
    write_noise(&disk, 1, 80 * MIB);
    let old = str_of(&lab.backup("web1", &disk), "backup");
    lab.backup("web1", &disk);
    write_noise(&disk, 2, 80 * MIB);
    let new = str_of(&lab.backup("web1", &disk), "backup");
    for dry_run in [args!["--dry-run"], args![]] {
        let mut words = args!["forget", "web1", "--keep-last", "1"];
        words.extend(dry_run);
        lab.run(words).code(3).says(&["only 0%", "encrypted", "--changed-too"]);
        assert_eq!(lab.listed().len(), 3);
    }
    // Named ones are meant, and so is what the option says.
    lab.ok(args!["forget", old]);
    lab.ok(args!["forget", "web1", "--keep-last", "1", "--changed-too"]);
    assert_eq!(lab.listed(), [new]);
}
