//! Read limits that change while a backup runs.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::host::Host;
use crate::support::bytes::MIB;

/// The guest slow, whose disk takes two minutes to read.
fn host() -> (Host, String) {
    let mut host = Host::new("1G");
    let node = host.volume("slow", 60, 1);
    let text = format!("[guest.slow]\ndisks = {{ vda = '{}' }}\nread-limit = ", node.display());
    host.configure(&format!("{text}'500K'\n"));
    (host, text)
}

#[test]
fn a_changed_configuration_applies_from_sighup() {
    let (host, text) = host();
    let clock = Instant::now();
    let mut running = host.start(args!["backup", "slow"]);
    assert!(running.wait_until_read(3 * MIB));
    // One that can't be used changes nothing, and does not end the run.
    host.configure("nonsense");
    running.signal(Signal::SIGHUP);
    running.wait_until_says("read limits stay as they are");
    assert!(!running.has_ended());
    host.configure(&format!("{text}'none'\n"));
    running.signal(Signal::SIGHUP);
    let said = running.wait().code(0);
    assert!(clock.elapsed() < Duration::from_secs(60), "{:?}", clock.elapsed());
    assert!(said.text().contains("60 MiB read"), "{said}");
    assert!(said.text().contains("slow: read limit 512 kB/s"), "{said}");
    said.says(&["read limits stay as they are", "config.toml:1"]);
}

#[test]
fn the_limit_command_speeds_up_a_running_backup() {
    let (host, _) = host();
    let clock = Instant::now();
    let mut running = host.start(args!["backup", "slow"]);
    assert!(running.wait_until_read(3 * MIB));
    let other = host.run(args!["limit", "other", "none"]).code(1);
    assert!(
        other
            .text()
            .contains("no backup of other is running; nothing was changed"),
        "{other}"
    );
    let said = host.run(args!["limit", "slow", "none"]).done().text();
    assert!(said.contains("backup slow: read limit of slow is now none"), "{said}");
    running.wait().code(0);
    assert!(clock.elapsed() < Duration::from_secs(60), "{:?}", clock.elapsed());
    let said = host.run(args!["limit", "none"]).code(1);
    assert!(said.text().contains("no backup is running"), "{said}");
}
