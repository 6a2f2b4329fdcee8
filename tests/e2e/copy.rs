//! `vbk copy`: backups in a second repository, in the same place or another.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::damage::Place;
use crate::ssh::Sshd;
use crate::support::bytes::{MIB, assert_same, noise_bytes, write_at, write_noise};
use crate::support::inside::record_again;
use crate::support::lab::{Lab, str_of, u64_of};
use crate::support::run::Said;
use crate::tls::Server;

/// Backs up two guests on two days. Returns their disks.
fn two_days(lab: &Lab, keyed: &[OsString]) -> [PathBuf; 2] {
    let disks = ["web1", "db1"].map(|guest| lab.path(&format!("{guest}.img")));
    for (seed, disk) in (1..).zip(&disks) {
        fs::write(disk, noise_bytes(seed, 9 * MIB + 512)).expect("writes");
    }
    for day in 0..2 {
        for (guest, disk) in ["web1", "db1"].iter().zip(&disks) {
            write_at(disk, (day + 3) * MIB, &noise_bytes(10 + day, 1000));
            lab.ok(with(keyed, args!["backup", guest, disk, "--compression", "none"]));
        }
    }
    disks
}

fn with(first: impl AsRef<[OsString]>, more: Vec<OsString>) -> Vec<OsString> {
    first.as_ref().iter().cloned().chain(more).collect()
}

/// Runs a command with another repository than the lab's.
fn at(lab: &Lab, repo: &Path, more: Vec<OsString>) -> Said {
    lab.start_bare(with(args!["--repo", repo], more)).wait()
}

fn bare(lab: &Lab, more: Vec<OsString>) -> Said {
    lab.start_bare(more).wait()
}

fn listed(said: &Said) -> Vec<String> {
    let list = said.json();
    let list = list["backups"].as_array().expect("a list");
    list.iter().map(|entry| str_of(entry, "backup")).collect()
}

/// Fails unless a repository has exactly the lab's backups, whole.
fn assert_copied(lab: &Lab, to: &Path, keyed: &[OsString], disks: &[PathBuf; 2]) {
    let specs = listed(&at(lab, to, with(keyed, args!["list", "--json"])).done());
    assert_eq!(specs.len(), 4);
    at(lab, to, with(keyed, args!["verify"])).done();
    for (guest, disk) in ["web1", "db1"].iter().zip(disks) {
        let restored = lab.path("restored.img");
        at(
            lab,
            to,
            with(keyed, args!["restore", format!("{guest}@latest"), restored]),
        )
        .done();
        assert_same(disk, &restored);
        fs::remove_file(restored).expect("removes");
    }
}

fn copied(report: &Value) -> (usize, u64, u64) {
    let copied = report["copied"].as_array().expect("a list").len();
    (copied, u64_of(report, "present"), u64_of(report, "sent_blocks"))
}

#[test]
fn a_second_repository_gets_what_it_lacks_and_keeps_what_it_has() {
    let lab = Lab::new();
    let disks = two_days(&lab, &[]);
    let (repo, to) = (lab.repo(), lab.path("replica"));
    bare(&lab, args!["init", to, "--like", repo]).done();
    bare(&lab, args!["copy", repo, to, "web9"])
        .code(1)
        .says(&["web9", "db1, web1"]);
    bare(&lab, args!["copy", repo, to, "--dry-run"])
        .done()
        .tells(&["would copy web1@", "4 backups would be copied"]);
    let report = bare(&lab, args!["--json", "copy", repo, to, "web*"]).done().json();
    assert_eq!((copied(&report).0, copied(&report).1), (2, 0));
    assert!(copied(&report).2 >= 11, "{report}");
    let text = bare(&lab, args!["copy", repo, to]).done();
    text.tells(&["copied db1@", "2 backups copied, 2 were there already"]);
    assert_copied(&lab, &to, &[], &disks);
    let again = bare(&lab, args!["--json", "copy", repo, to]).done().json();
    assert_eq!(copied(&again), (0, 4, 0));

    // What is forgotten here stays there, and protection goes with a new copy.
    let specs = lab.listed();
    lab.ok(args!["protect", "web1@latest"]);
    lab.ok(args!["forget", "db1@latest", "--last-too"]);
    bare(&lab, args!["copy", repo, to]).done();
    assert_eq!(listed(&at(&lab, &to, args!["list", "--json"])), specs);
    let third = lab.path("third");
    bare(&lab, args!["init", third]).done();
    bare(&lab, args!["copy", to, third, "--since", "1d"]).done();
    bare(&lab, args!["copy", repo, third]).done();
    let other = lab.path("other");
    bare(&lab, args!["init", other]).done();
    bare(&lab, args!["copy", repo, other]).done();
    at(&lab, &other, args!["forget", "web1@latest", "--last-too"])
        .code(2)
        .says(&["is protected"]);

    // The way back.
    let json = bare(&lab, args!["--json", "copy", third, repo]).done().json();
    assert_eq!((copied(&json).0, copied(&json).1), (1, 3));
    lab.ok(args!["verify"]);
}

#[test]
fn what_can_not_be_copied_is_refused_and_changes_nothing() {
    let lab = Lab::new();
    two_days(&lab, &[]);
    let repo = lab.repo();
    let link = lab.path("link");
    std::os::unix::fs::symlink(repo, &link).expect("links");
    bare(&lab, args!["copy", repo, link])
        .code(2)
        .says(&["the same repository"]);
    let small = lab.path("small");
    bare(&lab, args!["init", small, "--block-size", "64K"]).done();
    bare(&lab, args!["copy", repo, small])
        .code(2)
        .says(&["1 MiB", "64 KiB", "vbk init DIRECTORY --like"]);
    bare(&lab, args!["copy", repo, lab.path("nowhere")])
        .code(1)
        .says(&["nowhere"]);
    bare(&lab, args!["copy", lab.path("nowhere"), small])
        .code(1)
        .says(&["nowhere"]);
    bare(&lab, args!["copy", repo]).code(2);
    bare(&lab, args!["--repo", repo, "copy", repo, small])
        .code(2)
        .says(&["--repo", "FROM and TO"]);
    lab.run(args!["repair", "--from-key-file", "x"])
        .code(2)
        .says(&["--from"]);
    let to = lab.path("to");
    bare(&lab, args!["init", to]).done();
    bare(&lab, args!["copy", repo, to, "--reserve", "99%"])
        .code(1)
        .says(&["nearly full"]);
    assert_eq!(listed(&at(&lab, &to, args!["list", "--json"])), [""; 0]);
    // What is there stays there, and another backup of the same name is no copy.
    at(&lab, &to, args!["backup", "mail1", lab.path("db1.img")]).done();
    let spec = lab
        .listed()
        .into_iter()
        .find(|spec| spec.starts_with("web1@"))
        .expect("is there");
    record_again(&to, "mail1@latest", |backup| {
        let (guest, time) = spec.split_once('@').expect("GUEST@TIME");
        backup.guest = guest.parse().expect("a name");
        backup.time = time.parse().expect("a time");
        backup.host = "elsewhere".into();
    });
    for (now, present) in [(3, 0), (0, 3)] {
        let report = bare(&lab, args!["--json", "copy", repo, to]).code(1);
        let report = report.says(&[&spec, "was not copied", "has another backup"]).json();
        assert_eq!((copied(&report).0, copied(&report).1), (now, present));
    }
    at(&lab, &to, args!["show", spec]).done().tells(&["elsewhere"]);
    assert_eq!(listed(&at(&lab, &to, args!["list", "--json"])).len(), 5);
}

#[test]
fn encrypted_repositories_are_copied_with_one_key_and_with_two() {
    let lab = Lab::without_repo();
    let (key, other_key) = (lab.path("key"), lab.path("other-key"));
    let keyed = args!["--key-file", key];
    lab.ok(with(&keyed, args!["init", "--encrypt", "--no-recovery-key"]));
    let disks = two_days(&lab, &keyed);
    let repo = lab.repo();
    let other_keyed = args!["--key-file", other_key];
    let [alike, other, plain] = ["alike", "other", "plain"].map(|name| lab.path(name));
    // The same master key, and a key file of its own.
    let like = args![
        "init",
        alike,
        "--like",
        repo,
        "--like-key-file",
        key,
        "--no-recovery-key"
    ];
    bare(&lab, with(&other_keyed, like)).done().tells(&["encrypted"]);
    let init = args!["init", other, "--encrypt", "--no-recovery-key"];
    bare(&lab, with(&other_keyed, init)).done();
    bare(&lab, args!["init", plain, "--block-size", "1M"]).done();

    // FROM's key opens a repository of the same master key.
    let from = args!["--from-key-file", key];
    bare(&lab, with(args!["copy", repo, alike], from.clone())).done();
    assert_copied(&lab, &alike, &other_keyed, &disks);
    let both = with(args!["--key-file", other_key, "copy", repo, other], from.clone());
    bare(&lab, both.clone()).done();
    assert_copied(&lab, &other, &other_keyed, &disks);
    assert_eq!(
        copied(&bare(&lab, with(args!["--json"], both)).done().json()),
        (0, 4, 0)
    );
    bare(&lab, with(args!["copy", repo, plain], from)).done();
    assert_copied(&lab, &plain, &[], &disks);

    // The other direction, and what is missing.
    let again = lab.path("again");
    let init = args!["init", again, "--encrypt", "--no-recovery-key"];
    bare(&lab, with(&keyed, init)).done();
    bare(&lab, with(&keyed, args!["copy", plain, again])).done();
    assert_copied(&lab, &again, &keyed, &disks);
    bare(&lab, args!["copy", repo, plain])
        .code(1)
        .says(&["encrypted", "no key"]);
    bare(&lab, with(&other_keyed, args!["copy", repo, other]))
        .code(2)
        .says(&["--from-key-file"]);
    bare(&lab, args!["copy", plain, again, "--from-key-file", key])
        .code(2)
        .says(&["is not encrypted", "--from-key-file"]);
    bare(&lab, args!["init", lab.path("x"), "--no-recovery-key"]).code(2);
    bare(
        &lab,
        args!["init", lab.path("x"), "--like", plain, "--block-size", "64K"],
    )
    .code(2);
    assert!(!lab.path("x").exists());

    // Nothing of another key can be fetched.
    lab.run(with(
        &keyed,
        args!["repair", "--from", other, "--from-key-file", other_key],
    ))
    .code(2)
    .says(&["another key"]);
}

#[test]
fn a_machine_without_the_key_copies_verifies_and_prunes() {
    let mut lab = Lab::without_repo();
    let key = lab.path("key");
    let keyed = args!["--key-file", key];
    lab.ok(with(&keyed, args!["init", "--encrypt", "--no-recovery-key"]));
    let disks = two_days(&lab, &keyed);
    let sshd = Sshd::start(&lab);
    let repo = lab.repo().to_owned();
    let [pushed, pulled, third, other] = ["pushed", "pulled", "third", "other"].map(|name| lab.path(name));
    lab.use_remote(sshd.way("all", &repo));
    let address = |path: &Path| sshd.way("all", path).address;
    for path in [&pushed, &pulled, &third] {
        let like = args!["init", path, "--like", repo, "--no-recovery-key"];
        bare(&lab, with(&keyed, like)).done();
    }
    let copy = |from: &Path, to: &Path| args!["--json", "copy", "--without-key", from, to];
    let (far, far_pushed) = (PathBuf::from(address(&repo)), PathBuf::from(address(&pushed)));
    for (from, to, at) in [(&repo, &far_pushed, &pushed), (&far, &pulled, &pulled)] {
        let planned = bare(&lab, with(copy(from, to), args!["--dry-run"])).done().json();
        assert_eq!(copied(&planned).0, 4);
        let report = bare(&lab, copy(from, to)).done().json();
        assert_eq!((copied(&report).0, copied(&report).1), (4, 0), "{report}");
        assert_copied(&lab, at, &keyed, &disks);
        assert_eq!(copied(&bare(&lab, copy(from, to)).done().json()), (0, 4, 0));
    }

    // Whoever has the key goes on there as if it had been a copy with the key.
    at(&lab, &pulled, with(&keyed, args!["forget", "web1", "--keep-last", "1"])).done();
    at(&lab, &pulled, with(&keyed, args!["backup", "db1", disks[1]])).done();
    let gone = lab.path("gone.img");
    write_noise(&gone, 9, MIB);
    at(&lab, &pulled, with(&keyed, args!["backup", "gone", gone])).done();
    at(
        &lab,
        &pulled,
        with(&keyed, args!["forget", "gone@latest", "--last-too"]),
    )
    .done();
    let said = at(&lab, &pulled, with(&keyed, args!["list"])).done();
    assert!(!said.stderr.contains("without the key"), "{said}");
    let pruned = at(
        &lab,
        &pulled,
        args!["--json", "prune", "--without-key", "--max-unused", "0%"],
    );
    assert!(u64_of(&pruned.done().json(), "removed_blocks") >= 1);
    at(&lab, &pulled, args!["verify", "--without-key"]).done();
    at(&lab, &pulled, with(&keyed, args!["verify"])).done();

    // What is damaged is found without the key.
    let bytes = fs::read(largest_blob(&pushed)).expect("reads");
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    fs::write(largest_blob(&pushed), &damaged).expect("writes");
    at(&lab, &pushed, args!["verify", "--without-key"])
        .code(4)
        .tells(&["block "]);
    bare(&lab, copy(&pushed, &third)).code(4);
    at(&lab, &third, with(&keyed, args!["verify"])).done();
    fs::write(largest_blob(&pushed), &bytes).expect("writes");
    bare(&lab, copy(&pushed, &third)).done();
    assert_copied(&lab, &third, &keyed, &disks);

    let init = args!["init", other, "--encrypt", "--no-recovery-key"];
    bare(&lab, with(args!["--key-file", lab.path("other-key")], init)).done();
    bare(&lab, copy(&repo, &other))
        .code(2)
        .says(&["do not have the same key", "--like"]);
    bare(&lab, with(copy(&repo, &pulled), args!["web1"])).code(2);
}

/// Returns the largest blob file of a repository's store.
fn largest_blob(repo: &Path) -> PathBuf {
    let files = fs::read_dir(repo.join("store")).expect("lists");
    let blobs = files.map(|file| file.expect("an entry").path());
    let blobs = blobs.filter(|path| path.extension().is_some_and(|extension| extension == "blob"));
    let size = |path: &PathBuf| fs::metadata(path).expect("is there").len();
    blobs.max_by_key(size).expect("has blobs")
}

#[test]
fn copies_are_pushed_and_pulled_through_ssh() {
    let mut lab = Lab::new();
    let disks = two_days(&lab, &[]);
    let sshd = Sshd::start(&lab);
    let repo = lab.repo().to_owned();
    let [pushed, pulled] = ["pushed", "pulled"].map(|name| lab.path(name));
    lab.use_remote(sshd.way("all", &repo));
    let address = |path: &Path| sshd.way("all", path).address;
    for path in [&pushed, &pulled] {
        bare(&lab, args!["init", path, "--like", address(&repo)]).done();
    }
    bare(&lab, args!["copy", repo, address(&pushed)]).done();
    assert_copied(&lab, &pushed, &[], &disks);
    bare(&lab, args!["copy", address(&repo), pulled]).done();
    assert_copied(&lab, &pulled, &[], &disks);
    let third = args!["--json", "copy", address(&repo), address(&pushed)];
    assert_eq!(copied(&bare(&lab, third).done().json()), (0, 4, 0));
    bare(&lab, args!["copy", address(&repo), repo])
        .code(2)
        .says(&["the same repository"]);
}

#[test]
fn copies_are_pushed_and_pulled_through_tls_and_each_token_keeps_its_rights() {
    for is_encrypted in [false, true] {
        let lab = Lab::without_repo();
        let key = lab.path("key");
        let keyed = match is_encrypted {
            true => args!["--key-file", key],
            false => args![],
        };
        let init = match is_encrypted {
            true => args!["init", "--encrypt", "--no-recovery-key"],
            false => args!["init"],
        };
        lab.ok(with(&keyed, init));
        let disks = two_days(&lab, &keyed);
        let repo = lab.repo().to_owned();
        let server = Server::start(&lab);
        let reads = server.token(&lab, &repo, "reads", args!["--rights", "restore"]);
        let adds = server.token(&lab, &repo, "adds", args![]);
        let address = server.way(&reads, "").address;
        let pulled = lab.path("pulled");
        let like = args!["init", pulled, "--like", address, "--like-token-file", reads];
        let like = match is_encrypted {
            true => with(&like, args!["--no-recovery-key"]),
            false => like,
        };
        bare(&lab, with(&keyed, like)).done();
        let pull = |token: &Path| with(&keyed, args!["copy", address, pulled, "--from-token-file", token]);
        bare(&lab, pull(&adds))
            .code(1)
            .says(&["vbk://127.0.0.1", "lets this client add backups"]);
        assert_eq!(
            listed(&at(&lab, &pulled, with(&keyed, args!["list", "--json"]))),
            [""; 0]
        );
        bare(&lab, pull(&reads)).done();
        assert_copied(&lab, &pulled, &keyed, &disks);

        // Back to where one of them was lost, with the right to add alone.
        lab.ok(with(&keyed, args!["forget", "web1@latest", "--last-too"]));
        let push = |token: &Path| with(&keyed, args!["copy", pulled, address, "--token-file", token]);
        bare(&lab, push(&reads)).code(1).says(&["this client"]);
        let report = bare(&lab, with(args!["--json"], push(&adds))).done().json();
        assert_eq!((copied(&report).0, copied(&report).1), (1, 3), "{report}");
        assert_copied(&lab, &repo, &keyed, &disks);
    }
}

/// Backs up two guests on two days; returns their disks, which have 240 MiB, and 30 MiB more that changed.
fn two_large_days(lab: &Lab) -> [PathBuf; 2] {
    let disks = [lab.path("web1.img"), lab.path("db1.img")];
    for (seed, disk) in (1..).zip(&disks) {
        write_noise(disk, seed, 120 * MIB);
    }
    for day in 0..2 {
        for (guest, disk) in ["web1", "db1"].iter().zip(&disks) {
            write_at(disk, day * 40 * MIB, &noise_bytes(20 + day, 30 * MIB));
            lab.ok(args!["backup", guest, disk]);
        }
    }
    disks
}

#[test]
fn a_killed_copy_leaves_whole_backups_and_is_continued() {
    let lab = Lab::new();
    let disks = two_large_days(&lab);
    let (repo, to) = (lab.repo(), lab.path("replica"));
    bare(&lab, args!["init", to]).done();
    let total = 240 + 2 * 30;
    let mut copy = lab.start_bare(args!["copy", repo, to]);
    copy.wait_until_prints("copied web1@");
    copy.signal(Signal::SIGKILL);
    copy.wait();
    // Readers see what the killed run showed them, the next writer everything that is whole.
    let there = listed(&at(&lab, &to, args!["list", "--json"]).done());
    assert!(there.len() < 4, "{there:?}");
    at(&lab, &to, args!["verify"]).done();
    let report = bare(&lab, args!["--json", "copy", repo, to]).done().json();
    let (now, present, sent) = copied(&report);
    assert_eq!(now as u64 + present, 4);
    assert!(present >= 1, "{report}");
    assert!(sent <= total - 100, "{report}");
    assert_copied(&lab, &to, &[], &disks);
}

#[test]
fn a_copy_goes_on_after_the_server_that_it_writes_to_was_killed() {
    let mut lab = Lab::new();
    let disks = two_large_days(&lab);
    let (repo, to) = (lab.repo().to_owned(), lab.path("replica"));
    bare(&lab, args!["init", to]).done();
    lab.use_repo(&to);
    let server = Server::start(&lab);
    let adds = server.token(&lab, &to, "adds", args![]);
    let (address, port) = (server.way(&adds, "").address, server.port());
    let mut copy = lab.start_bare(args!["copy", repo, address, "--token-file", adds]);
    copy.wait_until_prints("copied web1@");
    server.kill();
    copy.wait_until_says("is lost");
    let _server = Server::at(&lab, args![to], port);
    copy.wait().code(0).says(&["is back"]).tells(&["4 backups copied"]);
    assert_copied(&lab, &to, &[], &disks);
}

#[test]
fn damage_in_one_repository_is_named_and_comes_back_from_the_other() {
    let mut lab = Lab::new();
    let disks = two_days(&lab, &[]);
    let repo = lab.repo().to_owned();
    let whole = lab.path("whole");
    bare(&lab, args!["init", whole]).done();
    bare(&lab, args!["copy", repo, whole]).done();

    // A block of both days of one guest.
    let content = noise_bytes(1, 9 * MIB);
    let place = Place::of(&repo, &content[6_000_000..6_000_032]);
    place.flip();
    let to = lab.path("to");
    bare(&lab, args!["init", to]).done();
    let said = bare(&lab, args!["copy", repo, to]).code(4);
    said.tells(&["2 backups copied", "2 can't be copied"])
        .says(&["web1@", "can't be copied: block", "is damaged"]);
    let report = bare(&lab, args!["--json", "copy", repo, to]).code(4).json();
    assert_eq!(report["failed"].as_array().map(Vec::len), Some(2), "{report}");
    at(&lab, &to, args!["verify"]).done();
    assert_eq!(listed(&at(&lab, &to, args!["list", "--json"])).len(), 2);

    // From another place, first without the right to read there.
    lab.use_repo(&whole);
    let server = Server::start(&lab);
    let reads = server.token(&lab, &whole, "reads", args!["--rights", "restore"]);
    let adds = server.token(&lab, &whole, "adds", args![]);
    let address = server.way(&reads, "").address;
    let repair = |token: &Path| args!["repair", "--from", address, "--from-token-file", token];
    at(&lab, &repo, repair(&adds))
        .code(1)
        .says(&["vbk://127.0.0.1", "this client"]);
    at(&lab, &repo, repair(&reads))
        .done()
        .tells(&["1 damaged block restored"]);
    at(&lab, &repo, args!["verify"]).done();
    Place::of(&repo, &content[6_000_000..6_000_032]);
    drop(server);

    let place = Place::of(&repo, &content[7_000_000..7_000_032]);
    place.flip();
    let sshd = Sshd::start(&lab);
    lab.use_remote(sshd.way("all", &whole));
    let address = sshd.way("all", &whole).address;
    at(&lab, &repo, args!["repair", "--from", address])
        .done()
        .tells(&["1 damaged block restored"]);
    bare(&lab, args!["copy", repo, to]).done().tells(&["2 backups copied"]);
    assert_copied(&lab, &to, &[], &disks);
}
