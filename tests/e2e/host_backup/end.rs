//! How runs over all guests end early: by a person, by the clock, by a kill; and two of them at once.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::host::{Host, of};
use crate::support::bytes::MIB;
use crate::support::lab::{str_of, u64_of};
use crate::support::tools::wait_until;

/// The guest `quick`, then `slow`, which is read at this rate, then `waits`. It has 64 MiB, the others 8.
fn host(slow: &str) -> Host {
    let mut host = Host::new("1G");
    let mut text =
        "on-failure = 'echo $VBK_GUEST $VBK_KIND >>HERE/failures'\n[defaults]\nread-limit = 'none'\n".to_owned();
    for (seed, name) in ["quick", "slow", "waits"].into_iter().enumerate() {
        let node = host.volume(name, if name == "slow" { 64 } else { 8 }, seed as u64);
        text += &format!("[guest.{name}]\ndisks = {{ vda = '{}' }}\n", node.display());
        if name == "slow" {
            text += &format!("read-limit = '{slow}'\n");
        }
    }
    host.configure(&text);
    host
}

fn wait_for_snapshot_of(host: &Host, name: &str) {
    let begins = format!("vg0/vbk-{name}-");
    let there = wait_until(Duration::from_secs(60), || {
        host.snapshots().iter().any(|snapshot| snapshot.starts_with(&begins))
    });
    assert!(there, "no snapshot of {name}");
}

#[test]
fn an_interrupted_run_removes_its_snapshots_and_lists_only_whole_backups() {
    let host = host("500K");
    let running = host.start(args!["backup", "--all"]);
    wait_for_snapshot_of(&host, "slow");
    let pid = running.pid().to_string();
    let second = host.run(args!["backup", "--all"]).code(75);
    second.says(&["another `vbk backup --all` is running since", &pid]);
    let listed = host.run(args!["snapshots"]).done().text();
    assert!(
        listed.contains("backup --all") && listed.contains(&format!("in use by process {pid}")),
        "{listed}"
    );
    let clock = Instant::now();
    running.signal(Signal::SIGTERM);
    let said = running.wait().code(130);
    assert!(clock.elapsed() < Duration::from_secs(20), "{:?}", clock.elapsed());
    assert_eq!(host.snapshots(), [] as [&str; 0]);
    assert!(!host.changes().iter().any(|word| word == "lvextend"));
    let table = said.text();
    assert!(
        table.contains("quick") && table.matches("FAILED").count() == 2,
        "{table}"
    );
    assert_eq!(table.matches("interrupted").count(), 2, "{table}");
    assert_eq!(said.stderr.matches("vbk: interrupted").count(), 1, "{said}");
    // A person knows; of the run that did not begin perhaps nobody.
    assert_eq!(host.read("failures"), "--all locked\n");
    let listed = host.lab.listed();
    assert!(listed.len() == 1 && listed[0].starts_with("quick@"), "{listed:?}");
    host.lab.ok(args!["verify"]);
}

#[test]
fn a_run_ends_at_its_time_limit() {
    let host = host("3M");
    let all = host.json(3, args!["backup", "--all", "--time-limit", "15s", "--jobs", "1"]);
    assert_eq!(u64_of(&all, "failed"), 2);
    assert!(str_of(of(&all, "quick"), "backup").starts_with("quick@"), "{all}");
    for guest in ["slow", "waits"] {
        let error = str_of(of(&all, guest), "error");
        assert!(error.contains("the time limit was reached"), "{all}");
    }
    assert_eq!(host.snapshots(), [] as [&str; 0]);
    assert_eq!(host.read("failures"), "slow time-limit\n--all time-limit\n");
    assert_eq!(host.lab.listed().len(), 1);
    // One guest alone; what was stored is not stored again.
    let said = host.run(args!["backup", "slow", "--time-limit", "1s"]).code(1);
    said.says(&["the time limit was reached", "not stored again"]);
    assert_eq!(host.snapshots(), [] as [&str; 0]);
    let made = host.json(0, args!["backup", "slow", "--read-limit", "none"]);
    assert!(u64_of(&made, "new_bytes") < 64 * MIB, "{made}");
    host.assert_latest_is("slow", &[("vda", &host.image("slow"))]);
}

#[test]
fn the_next_run_removes_and_reports_leftovers_of_a_killed_run() {
    let host = host("500K");
    let running = host.start(args!["backup", "--all"]);
    wait_for_snapshot_of(&host, "slow");
    running.signal(Signal::SIGKILL);
    running.wait();
    let left = host.snapshots();
    assert_eq!(left.len(), 1);
    let listed = host.run(args!["snapshots"]).done().text();
    assert!(
        listed.contains("left behind; `vbk snapshots --clean` removes it"),
        "{listed}"
    );
    let said = host.run(args!["backup", "quick"]).code(0);
    said.tells(&[&format!("removed snapshot {}, which a run had left behind", left[0])]);
    assert_eq!(host.snapshots(), [] as [&str; 0]);
    // The lock of the killed run is nobody's. The guests without a backup come first.
    let all = host.json(3, args!["backup", "--all", "--time-limit", "8s", "--jobs", "2"]);
    assert!(str_of(of(&all, "waits"), "backup").starts_with("waits@"), "{all}");
}

#[test]
fn a_guest_waiting_for_its_turn_is_not_frozen_after_a_signal() {
    let mut host = Host::new("1G");
    let mut text = "[defaults]\nread-limit = 'none'\npre-freeze = 'echo $VBK_GUEST >>HERE/began; sleep 3'\n\
                    post-thaw = 'echo $VBK_GUEST >>HERE/ended'\n"
        .to_owned();
    for name in ["a1", "b1", "c1"] {
        let node = host.volume(name, 4, 1);
        text += &format!("[guest.{name}]\ndisks = {{ vda = '{}' }}\n", node.display());
    }
    host.configure(&text);
    let running = host.start(args!["backup", "--all", "--jobs", "3"]);
    assert!(wait_until(Duration::from_secs(60), || host.file("began").exists()));
    running.signal(Signal::SIGTERM);
    running.wait().code(130);
    assert_eq!(host.read("began").lines().count(), 1);
    assert_eq!(host.read("ended"), host.read("began"), "it goes again");
    assert_eq!(host.snapshots(), [] as [&str; 0]);
    assert_eq!(host.lab.listed(), [] as [&str; 0]);
}
