//! Backups of guests that a configuration or libvirt names, from snapshots of the lvm2 of tests/fake-lvm2: of one and of
//! all, with what fails in between. Real volumes: tests/lab.

mod end;
mod hints;
mod host;
mod limits;
mod lvm;
mod nights;
mod notices;

use std::fs;

use serde_json::json;

use crate::support::bytes::{MIB, noise_bytes, write_noise};
use crate::support::lab::{names_in, str_of, u64_of, without_repository};
use host::{Host, of};

const DOMAIN: &str = "<domain type='kvm'><name>web1</name><uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>
<os><nvram>NVRAM</nvram></os><devices>
  <disk type='block' device='disk'><driver type='raw'/><source dev='ROOT'/><target dev='vda'/></disk>
  <disk type='block' device='disk'><driver type='raw'/><source dev='DATA'/><target dev='vdb'/></disk>
</devices></domain>
";

/// A host with the domain web1, which runs and has two volumes.
fn host_with_a_domain() -> Host {
    let mut host = Host::new("1G");
    let (root, data) = (host.volume("web1-root", 12, 1), host.volume("web1-data", 8, 2));
    let xml = DOMAIN
        .replace("ROOT", root.to_str().expect("UTF-8"))
        .replace("DATA", data.to_str().expect("UTF-8"))
        .replace("NVRAM", host.file("vars.fd").to_str().expect("UTF-8"));
    host.write("web1.xml", &xml);
    host.write("domains", "web1\n");
    fs::write(host.file("vars.fd"), noise_bytes(3, 100_000)).expect("writes");
    host.configure("[defaults]\nread-limit = 'none'\n");
    host
}

#[test]
fn a_guest_is_backed_up_with_all_disks_of_one_moment_and_its_domain() {
    let host = host_with_a_domain();
    let made = host.json(0, args!["backup", "web1"]);
    // Frozen only while the snapshots are made, and both are there before the thaw.
    assert_eq!(
        host.changes(),
        [
            "domfsfreeze",
            "lvcreate",
            "lvcreate",
            "domfsthaw",
            "qemu-agent-command",
            "lvremove",
            "lvremove"
        ]
    );
    assert_eq!(host.snapshots(), [] as [&str; 0]);
    assert_eq!(made["consistency"], "file-system");
    assert_eq!(u64_of(&made, "warnings"), 0);
    assert_eq!(u64_of(&made, "read_bytes"), 20 * MIB);
    for (at, disk) in ["vda", "vdb"].iter().enumerate() {
        let image = &made["disks"][at];
        assert_eq!((&image["disk"], &image["snapshot"]), (&json!(disk), &json!("thick")));
    }
    host.assert_latest_is(
        "web1",
        &[("vda", &host.image("web1-root")), ("vdb", &host.image("web1-data"))],
    );

    let images = host.lab.subdir("images");
    host.lab.ok(args!["mount", images]);
    let day = images.join("web1/latest");
    assert_eq!(
        names_in(&day),
        [
            "backup.json",
            "config.xml",
            "disks.json",
            "nvram.fd",
            "vda.img",
            "vdb.img"
        ]
    );
    assert_eq!(
        fs::read_to_string(day.join("config.xml")).expect("reads"),
        host.read("web1.xml")
    );
    assert!(fs::read(day.join("nvram.fd")).expect("reads") == noise_bytes(3, 100_000));
    let disks = fs::read_to_string(day.join("disks.json")).expect("reads");
    let disks: serde_json::Value = serde_json::from_str(&disks).expect("JSON");
    assert_eq!(disks["disks"].as_array().map(Vec::len), Some(2), "{disks}");
    host.lab.umount(&images);

    // A day later nothing is new, and a person reads a line.
    let said = host.run(args!["backup", "web1"]).done().text();
    assert!(
        said.starts_with("web1@") && said.contains(": 20 MiB read, 0 B new"),
        "{said}"
    );
}

#[test]
fn consistency_reached_is_recorded_and_a_lower_one_is_reported() {
    let host = host_with_a_domain();
    let configure = |more: &str| host.configure(&format!("[defaults]\nread-limit = 'none'\n[guest.web1]\n{more}"));
    configure("pre-freeze = 'echo stop $VBK_GUEST >>HERE/log'\npost-thaw = 'echo start $VBK_GUEST >>HERE/log'\n");
    let made = host.json(0, args!["backup", "web1"]);
    assert_eq!(made["consistency"], "application");
    let order = [
        "stop",
        "domfsfreeze",
        "lvcreate",
        "lvcreate",
        "domfsthaw",
        "qemu-agent-command",
        "start",
        "lvremove",
        "lvremove",
    ];
    assert_eq!(host.changes(), order);
    assert!(host.lab.ok(args!["show", "web1@latest"]).contains("application"));

    host.write(
        "no-agent",
        "error: Guest agent is not responding: QEMU guest agent is not connected",
    );
    configure("");
    assert_eq!(
        host.json(0, args!["backup", "web1"])["consistency"],
        "crash",
        "nothing was asked for"
    );
    host.write(
        "no-agent",
        "error: internal error: unable to execute QEMU agent command",
    );
    let said = host.run(args!["backup", "web1"]).code(3);
    said.says(&["web1: the guest agent did not freeze", "crash-consistent"]);

    let before = host.lab.listed();
    configure("guest-agent = true\n");
    host.run(args!["backup", "web1"])
        .code(1)
        .says(&["no backup of web1 was made", "the guest agent"]);
    configure("pre-freeze = 'echo the database does not stop >&2; exit 7'\npost-thaw = 'touch HERE/started'\n");
    let said = host.run(args!["backup", "web1"]).code(1);
    said.says(&["no backup of web1 was made", "pre-freeze", "the database does not stop"]);
    assert!(
        host.file("started").exists(),
        "what pre-freeze may have stopped is started"
    );
    assert_eq!(host.snapshots(), [] as [&str; 0]);
    assert_eq!(host.lab.listed(), before);
}

/// Guests of all kinds; two of them fail.
const MANY: &str = "metrics = 'HERE/vbk.prom'
on-failure = 'echo \"$VBK_GUEST|$VBK_KIND|$VBK_HOST|$VBK_ERROR\" >>HERE/failures'
[defaults]
read-limit = 'none'
exclude = ['test-*']
[guest.gone]
disks = { vda = '/dev/vg0/gone' }
[guest.stuck]
disks = { vda = 'STUCK' }
pre-freeze = 'echo no >&2; false'
[guest.test-1]
disks = { vda = '/dev/null' }
[guest.a1]
disks = { vda = 'A1' }
[guest.b1]
disks = { vda = 'B1' }
[guest.c1]
disks = { vda = 'C1' }
";

fn host_with_many() -> Host {
    let mut host = Host::new("1G");
    let mut text = MANY.to_owned();
    for (seed, name) in ["a1", "b1", "stuck"].into_iter().enumerate() {
        let node = host.volume(name, 8, seed as u64);
        text = text.replace(&format!("'{}'", name.to_uppercase()), &format!("'{}'", node.display()));
    }
    write_noise(&host.lab.path("c1.img"), 9, 4 * MIB);
    host.configure(&text.replace("'C1'", &format!("'{}'", host.lab.path("c1.img").display())));
    host
}

fn metric(host: &Host, name: &str) -> Option<f64> {
    let text = without_repository(&host.read("vbk.prom"));
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.map(|value| value.parse().expect("a number"))
}

#[test]
fn a_failed_guest_is_reported_everywhere_and_stops_no_other() {
    let host = host_with_many();
    let said = host.run(args!["backup", "--all", "--jobs", "4"]).code(3);
    let table = said.text();
    let line = |guest: &str| {
        let line = table.lines().find(|line| line.split(' ').next() == Some(guest));
        line.unwrap_or_else(|| panic!("no {guest} in {table}"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert!(line("a1").starts_with("a1 done 8 MiB 8 MiB "), "{table}");
    assert!(line("c1").starts_with("c1 done 4 MiB 4 MiB "), "{table}");
    for (guest, why) in [("gone", "/dev/vg0/gone"), ("stuck", "its pre-freeze command")] {
        assert!(line(guest).starts_with(&format!("{guest} FAILED - - - ")), "{table}");
        assert!(line(guest).contains(why), "{table}");
    }
    assert_eq!(table.lines().count(), 7, "{table}");
    let last = table.lines().last().unwrap_or_default();
    assert!(last.starts_with("3 guests backed up, 2 failed; "), "{table}");
    assert!(!table.contains("test-1"), "{table}");
    let said = said.says(&["gone: can't open /dev/vg0/gone", "stuck: no backup of stuck was made"]);
    assert!(
        !said.stderr.contains("gone: gone:") && !said.stderr.contains(" a1: "),
        "{said}"
    );
    assert_eq!(host.snapshots(), [] as [&str; 0]);
    let mut listed: Vec<_> = host.lab.listed().iter().map(|name| name[..2].to_owned()).collect();
    listed.sort();
    assert_eq!(listed, ["a1", "b1", "c1"]);

    let name = nix::unistd::gethostname().expect("a name");
    let mut told: Vec<_> = host.read("failures").lines().map(str::to_owned).collect();
    told.sort();
    told.retain(|line| line.contains('|'));
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with(&format!("gone|not-found|{}|can't open", name.to_string_lossy())),
        "{told:?}"
    );
    assert!(told[1].starts_with("stuck|unavailable|"), "{told:?}");

    for (guest, success) in [("a1", 1.0), ("b1", 1.0), ("c1", 1.0), ("gone", 0.0), ("stuck", 0.0)] {
        let of = |name: &str| metric(&host, &format!("vbk_backup_{name}{{guest=\"{guest}\"}}"));
        assert_eq!(of("success"), Some(success), "{guest}");
        assert_eq!(
            of("last_success_timestamp_seconds").is_some(),
            success == 1.0,
            "{guest}"
        );
        assert!(
            of("last_run_timestamp_seconds").is_some() && of("duration_seconds").is_some(),
            "{guest}"
        );
    }
    let bytes = |name: &str| metric(&host, &format!("vbk_backup_{name}_bytes{{guest=\"a1\"}}"));
    assert_eq!(["read", "new", "size"].map(bytes), [Some(8.0 * MIB as f64); 3]);
    assert!(bytes("stored").is_some_and(|stored| stored > 0.0));
    assert_eq!(
        metric(&host, "vbk_backup_snapshot_peak_fill_ratio{guest=\"a1\"}"),
        Some(0.0)
    );
    assert_eq!(metric(&host, "vbk_backup_snapshot_peak_fill_ratio{guest=\"c1\"}"), None);
    assert_eq!(metric(&host, "vbk_run_guests"), Some(5.0));
    assert_eq!(metric(&host, "vbk_run_failed_guests"), Some(2.0));
    assert_eq!(metric(&host, "vbk_run_success"), Some(0.0));

    // As JSON, and a guest that is good no more keeps its last success.
    let last = metric(&host, "vbk_backup_last_success_timestamp_seconds{guest=\"a1\"}");
    host.fault("lvcreate", "fail no way");
    let said = host.run(args!["--json", "backup", "--all"]).code(3);
    let all = said.json();
    assert_eq!((u64_of(&all, "failed"), u64_of(&all, "warnings")), (4, 0), "{said}");
    assert!(str_of(of(&all, "a1"), "error").contains("no way"), "{all}");
    assert!(str_of(of(&all, "gone"), "error").contains("/dev/vg0/gone"), "{all}");
    assert!(str_of(of(&all, "c1"), "backup").starts_with("c1@"), "{all}");
    assert_eq!(u64_of(of(&all, "c1"), "new_bytes"), 0);
    assert_eq!(metric(&host, "vbk_backup_success{guest=\"a1\"}"), Some(0.0));
    assert_eq!(
        metric(&host, "vbk_backup_last_success_timestamp_seconds{guest=\"a1\"}"),
        last
    );
    // Quiet says only what somebody should know.
    let said = host.run(args!["--quiet", "backup", "--all"]).code(3);
    // Random digits in a message may be c1 too.
    let tells_of = |guest: &str| said.text().lines().any(|line| line.starts_with(guest));
    assert!(tells_of("a1 ") && !tells_of("c1 "), "{said}");
}

#[test]
fn the_exit_code_shows_a_run_where_all_failed_or_none_was_found() {
    let mut host = Host::new("64M");
    host.configure("[guest.a1]\ndisks = { vda = '/dev/vg0/a1' }\n[guest.b1]\ndisks = { vda = '/dev/vg0/b1' }\n");
    let said = host.run(args!["backup", "--all"]).code(1);
    assert_eq!(said.text().matches("FAILED").count(), 2, "{said}");
    host.configure("[defaults]\nexclude = ['*']\n[guest.a1]\ndisks = { vda = '/dev/vg0/a1' }\n");
    host.run(args!["backup", "--all"])
        .code(1)
        .says(&["no known guests", "excluded"]);
    host.run(args!["backup", "nobody"])
        .code(1)
        .says(&["no guest nobody is known", "[guest.nobody]"]);
    // What can't be asked may know of more guests: that is no success.
    let node = host.volume("c1", 4, 1);
    host.configure(&format!(
        "metrics = 'HERE/vbk.prom'\n[defaults]\nread-limit = 'none'\n[guest.c1]\ndisks = {{ vda = '{}' }}\n",
        node.display()
    ));
    let said = host.run(args!["backup", "--all"]).done();
    assert_eq!(said.text().lines().count(), 3, "{said}");
    assert_eq!(metric(&host, "vbk_run_success"), Some(1.0));
    // A guest of libvirt's was good once.
    let before = host.read("vbk.prom");
    let success = before
        .lines()
        .find(|line| line.starts_with("vbk_backup_success{guest=\"c1\""));
    let success = success.expect("is there");
    let other = before.replace(success, &format!("{success}\n{}", success.replace("c1", "d1")));
    host.write("vbk.prom", &other);
    host.program(
        "virsh",
        "#!/bin/sh\necho 'error: failed to connect to the hypervisor' >&2; exit 1\n",
    );
    let said = host.run(args!["backup", "--all"]).code(3);
    assert!(said.text().contains("c1") && said.text().contains("done"), "{said}");
    said.says(&["can't list libvirt's guests", "failed to connect"]);
    assert_eq!(metric(&host, "vbk_run_success"), Some(0.0));
    let known = metric(&host, "vbk_backup_success{guest=\"d1\"}");
    assert_eq!(known, Some(1.0), "it is not gone only because libvirt does not answer");
    host.configure("");
    host.run(args!["backup", "--all"])
        .code(1)
        .says(&["no guest was found", "failed to connect"]);
}
