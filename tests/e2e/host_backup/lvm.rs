//! Every way in which lvm2 can fail a backup.

use super::host::Host;
use crate::support::bytes::MIB;
use crate::support::lab::{u64_of, without_repository};

/// The guest web1 with two volumes of 8 MiB.
fn host(group_size: &str) -> Host {
    let mut host = Host::new(group_size);
    configure(&mut host, "");
    host
}

fn configure(host: &mut Host, more: &str) {
    let (root, data) = (host.volume("root", 8, 1), host.volume("data", 8, 2));
    host.configure(&format!(
        "metrics = 'HERE/vbk.prom'\n[guest.web1]\nread-limit = 'none'\ndisks = {{ vda = '{}', vdb = '{}' }}\n{more}",
        root.display(),
        data.display()
    ));
}

#[track_caller]
fn assert_nothing_new(host: &Host) {
    assert_eq!(host.snapshots(), [] as [&str; 0]);
    assert_eq!(host.lab.listed(), [] as [&str; 0]);
}

#[test]
fn a_group_without_room_is_refused_with_the_figures_before_anything_is_made() {
    let host = host("20M");
    let said = host.run(args!["backup", "web1"]).code(1);
    said.says(&[
        "volume group vg0 has 4 MiB free",
        "snapshots of vda, vdb need 8 MiB",
        "nothing was changed",
        "--snapshot-size",
    ]);
    assert_eq!(host.changes(), [] as [&str; 0], "not even a pre-freeze command");
    assert_nothing_new(&host);
}

#[test]
fn a_failed_second_snapshot_removes_the_first() {
    let host = host("1G");
    host.fault("lvcreate", "after 1 there is something wrong with the group");
    let said = host.run(args!["backup", "web1"]).code(1);
    said.says(&["lvcreate", "there is something wrong with the group"]);
    assert_eq!(host.changes().iter().filter(|word| *word == "lvremove").count(), 1);
    assert_nothing_new(&host);
}

#[test]
fn an_overflowed_snapshot_never_becomes_a_backup() {
    let mut host = Host::new("1G");
    // After the snapshots were made, and before anything is read.
    configure(
        &mut host,
        "post-thaw = 'for one in HERE/dev/vg0/vbk-root*; do fake-lv set vg0/${one##*/} invalid=true used=4194304; done'\n",
    );
    let said = host.run(args!["backup", "web1"]).code(1);
    said.says(&["of vg0/root has overflowed and is invalid", "--snapshot-size"]);
    assert_nothing_new(&host);
    assert!(
        !host
            .read("vbk.prom")
            .contains("vbk_backup_last_success_timestamp_seconds{")
    );
}

#[test]
fn a_filling_snapshot_is_extended_and_a_full_group_stops_the_run() {
    // The snapshots have 4 MiB each.
    let fills = "post-thaw = 'for one in HERE/dev/vg0/vbk-root*; do fake-lv set vg0/${one##*/} used=USED; done'\n";
    let mut host = Host::new("24M");
    configure(&mut host, &fills.replace("USED", "4000000"));
    let said = host.run(args!["backup", "web1", "--read-limit", "2M"]).code(1);
    said.says(&[
        "is 95 % full and could not be extended",
        "before it overflows",
        "volume group vg0",
    ]);
    assert_nothing_new(&host);
    let peak = without_repository(&host.read("vbk.prom"));
    let peak = peak
        .lines()
        .find(|line| line.starts_with("vbk_backup_snapshot_peak_fill_ratio{guest=\"web1\"} 0.95"));
    assert!(peak.is_some(), "{}", host.read("vbk.prom"));

    let mut host = Host::new("1G");
    configure(&mut host, &fills.replace("USED", "3000000"));
    let made = host.json(0, args!["backup", "web1", "--read-limit", "4M"]);
    assert!(
        host.changes().iter().any(|word| word == "lvextend"),
        "{:?}",
        host.changes()
    );
    let used = made["disks"][0]["snapshot_used_bytes"].as_u64();
    assert!(
        used.is_some_and(|used| (2_900_000..=3_000_000).contains(&used)),
        "{made}"
    );
}

#[test]
fn blocks_of_a_discarded_backup_are_not_stored_again() {
    let host = host("1G");
    host.fault("dmsetup", "garbage");
    host.run(args!["backup", "web1"])
        .code(1)
        .says(&["the answer of dmsetup"]);
    assert_nothing_new(&host);
    host.fault("dmsetup", "");
    let made = host.json(0, args!["backup", "web1"]);
    assert_eq!((u64_of(&made, "new_bytes"), u64_of(&made, "read_bytes")), (0, 16 * MIB));
    host.assert_latest_is("web1", &[("vda", &host.image("root")), ("vdb", &host.image("data"))]);
}

#[test]
fn an_unremovable_snapshot_is_named_and_removed_by_the_next_run() {
    let mut host = Host::new("1G");
    let node = host.volume("root", 8, 1);
    host.configure(&format!(
        "[guest.web1]\nread-limit = 'none'\ndisks = {{ vda = '{}' }}\n",
        node.display()
    ));
    // It is tried again for some seconds.
    host.fault("lvremove", "fail Logical volume contains a filesystem in use.");
    let made = host.run(args!["backup", "web1"]).code(3);
    let left = host.snapshots();
    assert_eq!(left.len(), 1);
    let said = made.says(&[&format!("type: lvremove {}", left[0]), "in use"]);
    assert_eq!(said.stderr.matches("could not be removed").count(), 1, "{said}");
    assert_eq!(host.lab.listed().len(), 1, "the backup is good");
    let said = host.run(args!["backup", "web1"]).code(3);
    said.says(&[&format!(
        "can't remove snapshot {}, which a run had left behind",
        left[0]
    )]);
    let left = host.snapshots();
    host.fault("lvremove", "");
    let said = host.run(args!["backup", "web1"]).code(0);
    said.tells(&[
        &format!("removed snapshot {}", left[0]),
        &format!("removed snapshot {}", left[1]),
    ]);
    assert_eq!(host.snapshots(), [] as [&str; 0]);
}

#[test]
fn garbled_lvm2_is_reported_and_devices_need_no_lvm2() {
    let mut host = host("1G");
    // Of a device of the device mapper that would be an error; the kernel knows that these are none.
    for (fault, what) in [
        ("garbage", "the answer of lvs is not understood"),
        ("fail /dev/sdz: read failed", "read failed"),
    ] {
        host.fault("lvs", fault);
        host.run(args!["backup", "web1"])
            .code(3)
            .says(&["can't look for old snapshots", what]);
    }
    assert_eq!(host.changes(), [] as [&str; 0]);
    host.fault("lvs", "");
    // A device that is no volume needs no lvm2, and a volume that is not there is told.
    let other = host.device("plain", 4, 3);
    host.without_lvm2();
    let made = host.json(0, args!["backup", "plain1", other, "--read-limit", "none"]);
    assert_eq!(
        (&made["disks"][0]["snapshot"], &made["consistency"]),
        (&serde_json::Value::Null, &"crash".into())
    );
    host.configure("[guest.web1]\ndisks = { vda = '/dev/vg0/root' }\nread-limit = 'none'\n");
    host.run(args!["backup", "web1"])
        .code(1)
        .says(&["can't open /dev/vg0/root"]);
}
