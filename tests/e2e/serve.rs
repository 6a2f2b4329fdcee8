//! A repository that one process has open for all commands of the machine.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::bytes::{MIB, assert_same, write_noise};
use crate::support::lab::{Lab, str_of, u64_of};
use crate::support::run::Running;
use crate::support::tools::wait_until;

const LARGE: u64 = 256 * MIB;

fn serve(lab: &Lab) -> Running {
    let mut server = lab.start_bare(args!["serve", lab.files()]);
    server.wait_until_prints("is open for all commands");
    server
}

/// A server, two backups of `web1` and one of `web2`, and a backup of `busy1` that is stopped in the middle of its work.
fn lab_with_a_stopped_writer() -> (Lab, Running, Running) {
    let lab = Lab::new();
    let server = serve(&lab);
    for (guest, seed) in [("web1", 1), ("web2", 2)] {
        write_noise(&lab.path(&format!("{guest}.img")), seed, 8 * MIB);
        lab.backup(guest, &lab.path(&format!("{guest}.img")));
    }
    write_noise(&lab.path("large.img"), 3, LARGE);
    let image = lab.path("large.img");
    let writer = lab.start(args![
        "backup",
        "busy1",
        image,
        "--compression",
        "none",
        "--read-limit",
        "64MB/s"
    ]);
    // Less than the server writes to its disk at a time.
    let has_received = || {
        let told = lab.json(args!["status"]);
        let clients = told["clients"].as_array().expect("an array").iter();
        clients.map(|client| u64_of(client, "received_bytes")).max() > Some(8 * MIB)
    };
    assert!(wait_until(Duration::from_secs(100), has_received), "nothing arrives");
    writer.signal(Signal::SIGSTOP);
    (lab, server, writer)
}

#[test]
fn backups_forgets_and_prunes_run_beside_a_backup() {
    let (lab, server, writer) = lab_with_a_stopped_writer();
    let socket = fs::metadata(lab.repo().join("serve.sock")).expect("is there");
    assert!(socket.file_type().is_socket());
    write_noise(&lab.path("web3.img"), 4, 8 * MIB);
    // None of them waits: the writer is stopped.
    lab.ok(args!["backup", "web3", lab.path("web3.img"), "--no-wait"]);
    lab.ok(args!["protect", "web3@latest", "--no-wait"]);
    lab.ok(args!["forget", "web1@latest", "--last-too", "--no-wait"]);
    let pruned = lab.json(args!["prune", "--no-wait"]);
    assert_eq!(u64_of(&pruned, "removed_blocks"), 8, "{pruned}");
    lab.ok(args!["verify"]);
    writer.signal(Signal::SIGCONT);
    writer.wait().done();
    let verified = lab.json(args!["verify"]);
    assert_eq!(verified["damage"].as_array().map(Vec::len), Some(0), "{verified}");
    lab.ok(args!["restore", "busy1@latest", lab.path("back.img")]);
    assert_same(&lab.path("back.img"), &lab.path("large.img"));
    let list = lab.json(args!["list"]);
    let guests: Vec<_> = list["backups"]
        .as_array()
        .expect("an array")
        .iter()
        .map(|one| str_of(one, "guest"))
        .collect();
    assert_eq!(guests, ["busy1", "web2", "web3"]);
    server.signal(Signal::SIGTERM);
    server.wait().done();
    assert!(!lab.repo().join("serve.sock").exists());
    // Without it everything is as it always was.
    lab.backup("web2", &lab.path("web2.img"));
}

#[test]
fn a_backup_goes_on_with_the_next_server_after_one_was_killed() {
    let (lab, server, writer) = lab_with_a_stopped_writer();
    server.signal(Signal::SIGKILL);
    server.wait();
    // What was put since the last barrier went with it.
    let server = serve(&lab);
    writer.signal(Signal::SIGCONT);
    let said = writer.wait().code(0);
    said.tells(&["these blocks are read again"])
        .says(&["is lost", "is open again, and this command goes on"]);
    let verified = lab.json(args!["verify"]);
    assert_eq!(verified["damage"].as_array().map(Vec::len), Some(0), "{verified}");
    lab.ok(args!["restore", "busy1@latest", lab.path("back.img")]);
    assert_same(&lab.path("back.img"), &lab.path("large.img"));
    server.signal(Signal::SIGTERM);
    server.wait().done();
}

#[test]
fn a_second_server_of_a_repository_is_refused_and_a_killed_one_replaced() {
    let lab = Lab::new();
    let server = serve(&lab);
    let said = lab.start_bare(args!["serve", lab.repo()]).wait().code(2);
    said.says(&["another `vbk serve` has", lab.repo().to_str().expect("UTF-8")]);
    server.signal(Signal::SIGKILL);
    server.wait();
    // The socket that it left is no server.
    write_noise(&lab.path("web1.img"), 1, 8 * MIB);
    lab.backup("web1", &lab.path("web1.img"));
    let server = serve(&lab);
    lab.backup("web1", &lab.path("web1.img"));
    server.signal(Signal::SIGINT);
    server.wait().done();
    assert_eq!(lab.listed().len(), 2);
}

#[test]
fn a_server_that_nobody_uses_lets_others_have_the_repository_and_ends_when_it_was_told_to() {
    let lab = Lab::new();
    let mut server = lab.start_bare(args!["serve", lab.repo(), "--idle-exit", "20s"]);
    server.wait_until_prints("is open for all commands");
    write_noise(&lab.path("web1.img"), 1, 8 * MIB);
    lab.backup("web1", &lab.path("web1.img"));
    // It has the store open for a moment longer, and a repair waits for it.
    lab.run(args!["repair"]).code(0);
    assert!(!server.has_ended());
    assert!(wait_until(Duration::from_secs(60), || server.has_ended()));
    server.wait().done();
}

#[test]
fn a_night_whose_server_is_killed_opens_the_repository_itself_and_backs_up_every_guest() {
    let lab = Lab::new();
    let server = serve(&lab);
    let etc = tempfile::tempdir().expect("a directory");
    let config = etc.path().join("config.toml");
    let guests = ["web1", "web2", "web3"];
    let mut text = String::new();
    for (guest, seed) in guests.iter().zip(1..) {
        let image = lab.path(&format!("{guest}.img"));
        write_noise(&image, seed, 48 * MIB);
        text += &format!("[guest.{guest}]\ndisks = {{ vda = \"{}\" }}\n", image.display());
    }
    fs::write(&config, text).expect("writes");
    let night = args![
        "backup",
        "--all",
        "--jobs",
        "1",
        "--config-file",
        config,
        "--compression",
        "none",
        "--read-limit",
        "16MB/s"
    ];
    let mut night = lab.start(night);
    assert!(night.wait_until_read(16 * MIB), "the backup ended early");
    server.signal(Signal::SIGKILL);
    server.wait();
    night.wait_until_says("then this command opens the repository itself");
    let said = night.wait();
    let what = lab.repo().display().to_string();
    let said = said.says(&[&what, "is open again, and this command goes on"]);
    // 3: blocks that went with the server are read again, which is warned of.
    assert!(matches!(said.status.code(), Some(0 | 3)), "{said}");
    assert_eq!(lab.listed().len(), guests.len());
    lab.ok(args!["verify"]);
    for guest in guests {
        let restored = lab.path(&format!("{guest}.back"));
        lab.ok(args!["restore", format!("{guest}@latest"), restored]);
        assert_same(&restored, &lab.path(&format!("{guest}.img")));
    }
}

#[test]
fn a_server_that_is_told_to_end_says_how_many_clients_it_had() {
    let (lab, server, writer) = lab_with_a_stopped_writer();
    server.signal(Signal::SIGTERM);
    server.wait().done().tells(&["ended with 1 client"]);
    writer.signal(Signal::SIGCONT);
    writer.wait().says(&["is open again"]);
    lab.ok(args!["restore", "busy1@latest", lab.path("back.img")]);
    assert_same(&lab.path("back.img"), &lab.path("large.img"));
}
