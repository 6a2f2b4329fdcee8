//! Commands with a token that lets them do a part of it: they are refused before they begin, and what they may see is as it is on
//! the server.

use std::ffi::OsString;
use std::fs;

use crate::support::lab::{Lab, str_of};
use crate::support::remote::disk;
use crate::tls::Server;

#[test]
fn what_a_token_for_backups_can_t_read_is_refused_before_anything_is_begun() {
    let mut lab = Lab::new();
    let disk = disk(&lab);
    lab.backup("web1", &disk);
    lab.backup("web1", &disk);
    let server = Server::start(&lab);
    server.use_with(&mut lab, "web", args![]);
    let specs = lab.listed();
    let (one, other) = (&specs[0], &specs[1]);
    let dir = lab.subdir("empty");
    let scratch = lab.path("scratch");
    let out = lab.path("out.img");
    for command in [
        args!["mount", dir],
        args!["mount", dir, "--foreground"],
        args!["mount", one, dir],
        args!["mount", one, dir, "--writable", "--save", scratch],
        args!["mount", one, "--files", dir],
        args!["mount", one, "--files", dir, "--user"],
        args!["mount", one, "--files", dir, "--user", "--foreground"],
        args!["boot", one],
        args!["rehearse", one],
        args!["diff", one, other, "--files"],
        args!["find", "web1", "passwd"],
        args!["ls", one],
        args!["cat", format!("{one}:/etc/passwd")],
        args!["cp", format!("{one}:/etc/passwd"), dir],
        args!["restore", one, out],
        args!["restore", one, dir],
    ] {
        let said = lab
            .run(command)
            .code(1)
            .says(&["the server lets this client add backups and not read them", "`restore`"]);
        assert_eq!(said.stderr.lines().count(), 1, "{said}");
        assert_eq!(said.text(), "", "{said}");
    }
    lab.run(args!["verify"])
        .code(1)
        .says(&["the server does not let this client check", "`verify` or `manage`"]);
    assert_eq!(fs::read_dir(&dir).expect("lists").count(), 0);
    assert!(!out.exists() && !scratch.exists());
    lab.ok(args!["diff", one, other]);
}

#[test]
fn a_status_says_the_same_from_a_client_as_on_the_server() {
    let mut lab = Lab::new();
    let disk = disk(&lab);
    lab.backup("web1", &disk);
    lab.ok(args!["verify"]);
    lab.ok(args!["prune"]);
    let there = lab.json(args!["status"]);
    let server = Server::start(&lab);
    server.use_with(&mut lab, "all", args!["--rights", "manage"]);
    let here = lab.json(args!["status"]);
    let keys = |of: &serde_json::Value| of.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert!(there["last_prune"].is_string(), "{there}");
    // Clients come, the server's own files take room, and other programs use the disk.
    let differs = |key: &str| {
        let is_of_clients = key.starts_with("clients") || key.starts_with("tokens");
        let is_of_the_disk = key.ends_with("_bytes") || ["disk", "file_system"].contains(&key);
        key == "repository" || is_of_clients || is_of_the_disk
    };
    for key in keys(&there) {
        assert!(here.get(&key).is_some(), "{key}: {here}");
        assert!(differs(&key) || here[&key] == there[&key], "{key}: {here} {there}");
    }
    let new: Vec<_> = keys(&here).into_iter().filter(|key| there.get(key).is_none()).collect();
    assert_eq!(new, ["server"]);
    // Times of the repository are for every token.
    server.use_with(&mut lab, "web", args![]);
    assert_eq!(lab.json(args!["status"])["last_prune"], there["last_prune"]);
}

#[test]
fn keys_are_changed_by_the_administrator_alone() {
    let mut lab = Lab::without_repo();
    let (one, two) = (lab.path("one"), lab.path("two"));
    let keyed = |more: Vec<OsString>| args!["--key-file", one].into_iter().chain(more).collect::<Vec<_>>();
    lab.ok(keyed(args!["init", "--encrypt", "--no-recovery-key"]));
    let before = lab.json(args!["key", "list"]);
    let server = Server::start(&lab);
    for rights in ["backup", "manage"] {
        server.use_with(&mut lab, rights, args!["--rights", rights]);
        for command in [
            args!["key", "add", "--new-key-file", two],
            args!["key", "passwd", "--new-key-file", two],
            args!["key", "remove", "key-file"],
        ] {
            let said = lab.run(keyed(command)).code(1);
            assert!(!said.stderr.contains("both open the repository"), "{said}");
        }
        lab.run(keyed(args!["key", "add", "--new-key-file", two]))
            .code(1)
            .says(&["does not let this client add keys", "`vbk key add` on the server"]);
        assert_eq!(lab.json(args!["key", "list"]), before);
    }
}

#[test]
fn the_log_says_which_changes_of_tokens_failed() {
    let lab = Lab::new();
    let add = || lab.run(args!["token", "add", "web", "--host", "dc2.example.com"]);
    add().done();
    add().code(1).says(&["web"]);
    lab.run(args!["token", "revoke", "other"]).code(1);
    let log = fs::read_to_string(lab.repo().join("serve/audit.log")).expect("is there");
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let lines: Vec<_> = lines
        .map(|line| (str_of(&line, "what").to_owned(), line["failed"].is_string()))
        .collect();
    let add = "token add --rights backup";
    let whats: Vec<_> = lines.iter().map(|(what, failed)| (what.as_str(), *failed)).collect();
    assert_eq!(
        whats,
        [
            (add, false),
            (add, false),
            (add, true),
            ("token revoke", false),
            ("token revoke", true)
        ]
    );
}
