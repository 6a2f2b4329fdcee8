//! Repositories that are not what the host knew: an older copy, another one, a plain one in the place of an encrypted one.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::bytes::{MIB, assert_is_noise, write_noise};
use crate::support::lab::{Lab, VBK, names_in, str_of};
use crate::support::run::Said;
use crate::support::tools::tool;

/// A repository with two backups of web1, and a copy of it as it was after the first.
fn lab_with_an_older_copy() -> (Lab, PathBuf) {
    let lab = Lab::new();
    let disk = lab.path("disk");
    write_noise(&disk, 1, MIB);
    lab.backup("web1", &disk);
    let old = lab.path("old");
    tool("cp", args!["-a", lab.files(), old]);
    write_noise(&disk, 2, MIB);
    lab.backup("web1", &disk);
    (lab, old)
}

/// Puts a repository into the place of the lab's own, which goes to `away`.
fn replace_repository_with(lab: &Lab, other: &Path) {
    fs::rename(lab.files(), lab.path("away")).expect("moves");
    fs::rename(other, lab.repo()).expect("moves");
}

/// What is in a repository's directory, but for what a server notes of its clients, and what may be read or locked without a trace.
fn content_of(repo: &Path) -> Vec<String> {
    let mut all = names_in(repo);
    all.retain(|name| name != "serve");
    for directory in ["store", "views", "keys"] {
        if repo.join(directory).exists() {
            all.extend(names_in(&repo.join(directory)));
        }
    }
    all
}

/// What writes is refused and changes nothing; what reads warns and works.
fn assert_doubted(lab: &Lab, words: &[&str], reading: &[&str]) {
    let disk = lab.path("disk");
    let before = content_of(lab.files());
    let commands = [
        args!["backup", "web1", disk],
        args!["forget", "web1@latest"],
        args!["forget", "--all", "--keep-last", "1", "--prune"],
        args!["prune"],
        args!["protect", "web1@latest"],
    ];
    // A repair is made on the repository's own host, which knows what that host has seen.
    let repair = (!lab.is_through_ssh()).then(|| args!["repair"]);
    for command in commands.into_iter().chain(repair) {
        let said = lab.run(command).code(1).says(words);
        said.says(&["vbk --repo", "trust", "nothing was written", "older copy"]);
    }
    assert_eq!(content_of(lab.files()), before, "nothing was written");
    for command in reading {
        let words_of = command.split(' ').map(Into::into).collect();
        let said = lab.run(words_of).says(words).says(&["trust"]);
        assert_eq!(said.status.code(), Some(3), "{said}");
        assert_eq!(said.stderr.matches("is not what this host knows").count(), 1, "{said}");
    }
    let json = lab.run(args!["--json", "backup", "web1", disk]).code(1).says(words);
    assert!(json.stdout.is_empty(), "{json}");
    assert!(lab.run(args!["--json", "list"]).code(3).json()["backups"].is_array());
}

#[test]
fn an_older_copy_of_a_repository_is_read_only_until_trusted() {
    let (lab, old) = lab_with_an_older_copy();
    replace_repository_with(&lab, &old);
    let words = ["its newest state was number 2 and is number 1 now"];
    assert_doubted(
        &lab,
        &words,
        &[
            "list",
            "show web1@latest",
            "verify",
            "stats",
            "status",
            "guests",
            "verify --without-key",
        ],
    );
    // The worst day: what is there comes back.
    let out = lab.path("out");
    lab.run(args!["restore", "web1@latest", out]).code(3).says(&words);
    assert_is_noise(&out, 1, MIB);
    let dir = lab.subdir("images");
    let said = lab.run(args!["mount", dir]).code(3).says(&words);
    assert_eq!(said.stderr.matches("is not what this host knows").count(), 1, "{said}");
    assert_is_noise(&dir.join("web1/latest/vda.img"), 1, MIB);
    lab.umount(&dir);
    // What was seen of it meanwhile is not what the host knows now.
    lab.run(args!["prune"]).code(1).says(&words);

    let trusted = lab.json(args!["trust"]);
    assert_eq!(
        (&trusted["was"]["generation"], &trusted["is"]["generation"]),
        (&2.into(), &1.into())
    );
    assert_eq!(trusted["was"]["id"], trusted["is"]["id"]);
    lab.backup("web1", &lab.path("disk"));
    lab.ok(args!["verify"]);
    // Accepting once is no licence for the next time.
    let accepted = lab.path("accepted");
    tool("cp", args!["-a", lab.files(), accepted]);
    lab.backup("web1", &lab.path("disk"));
    fs::remove_dir_all(lab.files()).expect("removes");
    fs::rename(accepted, lab.repo()).expect("moves");
    lab.run(args!["backup", "web1", lab.path("disk")])
        .code(1)
        .says(&["its newest state was number"]);
}

#[test]
fn an_original_that_is_put_back_is_told_from_a_copy_with_as_many_changes() {
    let (lab, old) = lab_with_an_older_copy();
    replace_repository_with(&lab, &old);
    lab.ok(args!["trust"]);
    // The same in the same second would be the same state.
    write_noise(&lab.path("disk"), 3, MIB);
    lab.backup("web1", &lab.path("disk"));
    lab.ok(args!["verify", "--sample", "1%"]);
    // Now both have the same number of changes, and the copy is what the host knows.
    let original = lab.path("original");
    fs::rename(lab.path("away"), &original).expect("moves");
    replace_repository_with(&lab, &original);
    assert_doubted(
        &lab,
        &["its newest state, number 2, is not the one of that number"],
        &["list", "verify"],
    );
    lab.ok(args!["trust"]);
    lab.backup("web1", &lab.path("disk"));
    // What an older vbk remembered is no doubt, and is added to.
    let memory = lab.state_dir().join("trust/known.json");
    let text = fs::read_to_string(&memory).expect("reads");
    let mut known: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let first = known["repositories"][0].as_object_mut().expect("an object");
    assert!(first.remove("state").is_some(), "{text}");
    fs::write(&memory, known.to_string()).expect("writes");
    lab.ok(args!["list"]);
    assert!(fs::read_to_string(&memory).expect("reads").contains("\"state\""));
}

#[test]
fn a_replaced_repository_gets_no_backup() {
    let (lab, _) = lab_with_an_older_copy();
    let other = lab.path("other");
    lab.ok(args!["init", other]);
    replace_repository_with(&lab, &other);
    assert_doubted(&lab, &["its id was"], &["list"]);
    lab.ok(args!["trust"]);
    lab.backup("web1", &lab.path("disk"));
}

#[test]
fn a_plain_repository_in_place_of_an_encrypted_one_is_refused() {
    let lab = Lab::without_repo();
    let (disk, key, plain) = (lab.path("disk"), lab.path("key"), lab.path("plain"));
    write_noise(&disk, 1, MIB);
    lab.ok(args!["--key-file", key, "init", "--encrypt", "--no-recovery-key"]);
    let of_owner = |args: Vec<OsString>| -> Said {
        let mut all = args!["--key-file", key];
        all.extend(args);
        lab.run(all)
    };
    of_owner(args!["backup", "web1", disk]).done();
    // With as many commits, by somebody else.
    lab.ok(args!["init", plain]);
    lab.start_bare(args!["--repo", plain, "backup", "web1", disk])
        .wait()
        .done();
    replace_repository_with(&lab, &plain);
    // Without a word about keys, as at a terminal where a passphrase would have been asked for.
    assert_doubted(&lab, &["it was encrypted and is not encrypted now"], &["list"]);
    // Not even where the store and the marker are all that is there.
    fs::remove_file(lab.files().join("vbk-repository")).expect("removes");
    if !lab.is_through_ssh() {
        lab.run(args!["repair"]).code(1).says(&["is not encrypted now"]);
    }
    assert_eq!(
        fs::read_dir(lab.repo())
            .expect("lists")
            .filter(|entry| entry.is_err())
            .count(),
        0
    );
    // And the other way round, and one with another key.
    fs::rename(lab.files(), lab.path("theirs")).expect("moves");
    lab.ok(args!["trust", "--forget"]);
    let (other, other_key) = (lab.path("other"), lab.path("other-key"));
    lab.ok(args![
        "--key-file",
        other_key,
        "init",
        other,
        "--encrypt",
        "--no-recovery-key"
    ]);
    fs::rename(lab.path("away"), lab.repo()).expect("moves");
    of_owner(args!["list"]).done();
    replace_owners_repository_with(&lab, &other);
    let said = lab.run(args!["--key-file", other_key, "backup", "web1", disk]).code(1);
    said.says(&["another master key"]);
    // No key is asked for either.
    lab.run(args!["backup", "web1", disk])
        .code(1)
        .says(&["another master key"]);
}

fn replace_owners_repository_with(lab: &Lab, other: &Path) {
    fs::rename(lab.files(), lab.path("owners")).expect("moves");
    fs::rename(other, lab.repo()).expect("moves");
}

#[test]
fn no_repository_is_created_where_one_vanished() {
    let (lab, _) = lab_with_an_older_copy();
    let away = lab.path("away");
    for empty in [false, true] {
        fs::rename(lab.files(), &away).expect("moves");
        if empty {
            fs::create_dir(lab.repo()).expect("makes");
        }
        for args in [args!["list"], args!["backup", "web1", lab.path("disk")]] {
            let said = lab
                .run(args)
                .code(1)
                .says(&["not a vbk repository", "is its file system mounted?"]);
            assert!(!said.stderr.contains("vbk init"), "{said}");
        }
        for args in [args!["init"], args!["init", "--parents"], args!["init", "--encrypt"]] {
            lab.run(args)
                .code(2)
                .says(&["is its file system mounted?", "trust --forget"]);
        }
        assert_eq!(lab.repo().exists(), empty);
        if empty {
            fs::remove_dir(lab.repo()).expect("is empty");
        }
        fs::rename(&away, lab.repo()).expect("moves");
        assert_eq!(lab.listed().len(), 2);
    }
    fs::remove_dir_all(lab.files()).expect("removes");
    lab.ok(args!["trust", "--forget"]);
    lab.ok(args!["init"]);
    lab.backup("web1", &lab.path("disk"));
}

#[test]
fn a_copy_at_another_path_is_a_separate_repository() {
    let (lab, old) = lab_with_an_older_copy();
    lab.start_bare(args!["--repo", old, "list"]).wait().done();
    lab.ok(args!["list"]);
    // Read-only, as on a disk that was brought here.
    let mounted = lab.subdir("usb");
    tool("mount", args!["--bind", old, mounted]);
    tool("mount", args!["-o", "remount,bind,ro", mounted]);
    let said = lab.start_bare(args!["--repo", mounted, "list"]).wait();
    tool("umount", args![mounted]);
    said.done();
    // And one repository by two ways to it.
    let link = lab.path("link");
    std::os::unix::fs::symlink(lab.repo(), &link).expect("links");
    lab.start_bare(args!["--repo", link, "backup", "web1", lab.path("disk")])
        .wait()
        .done();
    lab.ok(args!["backup", "web1", lab.path("disk")]);
    lab.start_bare(args!["--repo", link, "list"]).wait().done();
}

#[test]
fn a_host_without_memory_warns_and_backs_up() {
    let (lab, _) = lab_with_an_older_copy();
    let run = |args: Vec<OsString>| {
        let mut command = Command::new(VBK);
        // A file is in the way.
        command.env("VBK_STATE_DIR", lab.path("disk"));
        let mut all = args!["--repo", lab.place()];
        all.extend(args);
        lab.start_command(command, all).wait()
    };
    run(args!["backup", "web1", lab.path("disk")])
        .code(0)
        .says(&["can't notice if the repository is replaced"]);
    run(args!["list"]).done();
    run(args!["trust"]).code(1).says(&["disk/trust"]);
    assert_eq!(lab.listed().len(), 3);
    // What is damaged is told once, kept for people, and begun again.
    let known = lab.state_dir().join("trust/known.json");
    fs::write(&known, "{").expect("writes");
    lab.run(args!["list"]).code(0).says(&["damaged"]);
    lab.ok(args!["list"]);
    assert!(known.with_file_name("known.json.damaged").exists());
}

#[test]
fn the_newest_state_is_remembered_despite_concurrent_and_killed_runs() {
    let (lab, _) = lab_with_an_older_copy();
    let generation = || {
        let text = fs::read_to_string(lab.state_dir().join("trust/known.json")).expect("reads");
        let known: serde_json::Value = serde_json::from_str(&text).expect("is JSON");
        known["repositories"][0]["generation"].as_u64().expect("is known")
    };
    let disk = lab.path("disk");
    // Of guests of their own: two equal backups of one guest in one second are one backup.
    let writers = ["new1", "new2", "new3"].map(|guest| lab.start(args!["backup", guest, disk]));
    let readers: Vec<_> = (0..3).map(|_| lab.start(args!["list"])).collect();
    for run in writers.into_iter().chain(readers) {
        run.wait().code(0);
    }
    assert_eq!(generation(), 5);
    // One that is killed after its commit has noted nothing, and is no reason to doubt.
    let mut killed = lab.start(args!["backup", "web2", disk, "--read-limit", "none"]);
    let view = || fs::read_link(lab.repo().join("views/current")).expect("a link");
    let before = view();
    while view() == before && !killed.has_ended() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    if !killed.has_ended() {
        killed.signal(Signal::SIGKILL);
    }
    killed.wait();
    assert_eq!(lab.listed().len(), 6);
    assert_eq!(generation(), 6);
    lab.ok(args!["prune"]);
    lab.backup("web1", &disk);
}

#[test]
fn a_store_of_another_repository_under_the_old_marker_is_not_written() {
    let (lab, _) = lab_with_an_older_copy();
    let other = lab.path("other");
    lab.ok(args!["init", other]);
    for _ in 0..3 {
        lab.start_bare(args!["--repo", other, "backup", "web1", lab.path("disk")])
            .wait()
            .done();
    }
    for name in ["store", "views", "spare"] {
        fs::remove_dir_all(lab.files().join(name)).expect("removes");
        fs::rename(other.join(name), lab.repo().join(name)).expect("moves");
    }
    let said = lab.run(args!["backup", "web1", lab.path("disk")]);
    assert!(matches!(said.status.code(), Some(1 | 4)), "{said}");
    said.says(&["nothing was written"]);
    let marker = || fs::read_to_string(lab.repo().join("vbk-repository")).expect("reads");
    if !lab.is_through_ssh() {
        let theirs = marker();
        lab.run(args!["repair"]).code(1).says(&["its id was"]);
        assert_eq!(marker(), theirs, "nothing was put right");
    }
    let known = || fs::read_to_string(lab.state_dir().join("trust/known.json")).expect("reads");
    let before = known();
    let listed = lab.run(args!["list"]).code(3).says(&["its id was"]);
    assert_eq!(known(), before, "nothing of it was noted");
    assert!(listed.text().contains("web1 "), "{listed}");
    // Also on a host that knows nothing: the marker says that it is another's.
    lab.forget_known_repositories();
    lab.run(args!["backup", "web1", lab.path("disk")])
        .code(4)
        .says(&["another store was put there", "nothing was written"]);
    let id = str_of(&lab.json(args!["trust"])["is"], "id");
    lab.run(args!["repair"]).code(0);
    assert!(marker().contains(&id), "{}", marker());
    lab.backup("web1", &lab.path("disk"));
}

#[test]
fn every_command_warns_of_a_second_repository_that_is_not_the_known_one() {
    let lab = Lab::without_repo();
    let key = lab.path("key");
    let [from, like, to, third] = ["from", "like", "to", "third"].map(|name| lab.path(name));
    let run = |args: Vec<OsString>| {
        let mut keyed = args!["--key-file", key];
        keyed.extend(args);
        lab.start_bare(keyed).wait()
    };
    let locked = |args: Vec<OsString>| lab.start_bare(args).wait();
    run(args!["init", from, "--encrypt", "--no-recovery-key"]).done();
    for path in [&like, &to] {
        run(args!["init", path, "--like", from, "--no-recovery-key"]).done();
    }
    run(args!["copy", from, to]).done();
    locked(args!["copy", "--without-key", from, to]).done();
    fs::rename(&from, lab.path("away")).expect("moves");
    fs::rename(&like, &from).expect("moves");
    for (said, command) in [
        (run(args!["copy", from, to]), "copy"),
        (locked(args!["copy", "--without-key", from, to]), "copy --without-key"),
        (run(args!["--repo", to, "repair", "--from", from]), "repair --from"),
        (
            run(args!["init", third, "--like", from, "--no-recovery-key"]),
            "init --like",
        ),
    ] {
        assert_eq!(said.status.code(), Some(3), "{command}: {said}");
        said.says(&["is not what this host knows", "its id was"]);
    }
    // The run's own repository is not doubted for that, and what was written to it is remembered.
    run(args!["--repo", to, "verify"]).done();
}
