//! Guests of a host whose `virsh` and `lvs` give prepared answers.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A host: a directory of programs and disks.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn programs(&self) -> Programs {
        Programs::found_in(format!("{}:/usr/bin:/bin", self.dir.path().join("bin").display()))
    }

    fn program(&self, name: &str, script: &str) {
        let bin = self.path("bin");
        fs::create_dir_all(&bin).expect("makes a directory");
        let path = bin.join(name);
        fs::write(
            &path,
            format!("#!/bin/sh\ncd '{}'\n{script}\n", self.dir.path().display()),
        )
        .expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets the mode");
    }

    fn disk(&self, name: &str, size_bytes: u64) -> PathBuf {
        let path = self.path(name);
        fs::File::create(&path)
            .and_then(|file| file.set_len(size_bytes))
            .expect("makes a disk");
        path
    }

    /// libvirt with these domains, of which the first runs.
    fn domains(&self, domains: &[(&str, &str)]) {
        for (name, devices) in domains {
            let name_in_xml = name.replace('&', "&amp;");
            let xml = format!(
                "<domain><name>{name_in_xml}</name><uuid>u-{name_in_xml}</uuid><devices>{devices}</devices></domain>"
            );
            fs::write(self.path(&format!("domain {name}")), xml).expect("writes");
        }
        let names: Vec<_> = domains.iter().map(|(name, _)| *name).collect();
        fs::write(self.path("all"), names.join("\n") + "\n\n").expect("writes");
        fs::write(self.path("running"), format!("{}\n\n", names[0])).expect("writes");
        self.program(
            "virsh",
            r#"case "$*" in
                 "list --all --name") cat all ;;
                 "list --name") cat running ;;
                 "dumpxml --inactive --security-info --domain "*) cat "domain $5" ;;
                 "dumpxml --domain "*) cat "running $3" 2>/dev/null || cat "domain $3" ;;
                 *) echo "error: unknown command $*" >&2; exit 1 ;;
               esac"#,
        );
    }

    /// lvm2 with these volumes: name, path, tags.
    fn volumes(&self, volumes: &[(&str, PathBuf, &str)]) {
        let rows = volumes.iter().map(|(name, path, tags)| {
            serde_json::json!({
                "lv_full_name": name, "lv_path": path, "lv_tags": tags, "lv_size": "1073741824",
            })
        });
        let report = serde_json::json!({"report": [{"lv": rows.collect::<Vec<_>>()}]});
        fs::write(self.path("volumes"), report.to_string()).expect("writes");
        self.program(
            "lvs",
            r#"fields=lv_full_name,lv_path,lv_tags,lv_size
[ "$1 $2 $3 $4 $5 $6 $8 $9" = "--reportformat json --units b --nosuffix --config -o $fields" ] || exit 5
               cat volumes"#,
        );
    }
}

fn raw(target: &str, path: &Path) -> String {
    format!(
        "<disk type='file' device='disk'><driver type='raw'/><source file='{}'/><target dev='{target}'/>\
         <iotune><read_bytes_sec>1000000</read_bytes_sec></iotune></disk>",
        path.display()
    )
}

fn guest(name: &str) -> GuestName {
    GuestName::new(name).expect("a name")
}

fn disk(name: &str) -> DiskName {
    DiskName::new(name).expect("a name")
}

fn configured(name: &str, disks: Option<Vec<(DiskName, PathBuf)>>) -> ConfiguredGuest {
    ConfiguredGuest {
        name: guest(name),
        disks,
        skip_disks: Vec::new(),
        domain: None,
        device_bytes_per_sec: None,
    }
}

fn names(found: &Found) -> Vec<(&str, FoundBy, Vec<&str>)> {
    let guests = found.guests.iter();
    guests
        .map(|guest| {
            (
                guest.name.as_str(),
                guest.from,
                guest.disks.iter().map(|disk| disk.name.as_str()).collect(),
            )
        })
        .collect()
}

#[test]
fn a_host_without_libvirt_and_lvm_has_the_configured_guests() {
    let host = Host::new();
    let known = Known {
        guests: vec![configured("web1", Some(vec![(disk("vda"), host.disk("a", 5 << 20))]))],
        device_bytes_per_sec: Some(7),
    };
    let empty = Programs::found_in(host.path("none"));
    let found = discover(&empty, &known);
    assert_eq!(found.notes, [""; 0]);
    assert_eq!(names(&found), [("web1", FoundBy::Configured, vec!["vda"])]);
    assert_eq!(found.guests[0].disks[0].size_bytes, Some(5 << 20));
    assert_eq!((found.guests[0].running, &found.guests[0].domain), (None, &None));
    let error = resolve(&empty, &known, &guest("db")).expect_err("is unknown");
    assert!(error.to_string().contains("vbk_guest=db/vda"), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn the_configuration_precedes_libvirt_and_libvirt_precedes_tags() {
    let host = Host::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| host.disk(name, 1 << 20));
    host.domains(&[
        ("web1", &raw("vda", &a)),
        (
            "db",
            &(raw("vda", &b) + "<disk device='cdrom'><target dev='sda'/></disk>"),
        ),
        ("Old one & more", &raw("vda", &c)),
        ("prod-mail", &raw("vda", &c)),
    ]);
    host.volumes(&[
        ("vg0/db", b.clone(), "vbk_guest=db/vdz"),
        ("vg0/files", c.clone(), "other,vbk_guest=files/vda"),
        ("vg0/web1", a.clone(), "vbk_guest=web1/vdz"),
        ("vg0/plain", a.clone(), "other"),
    ]);
    let mut mail = configured("mail", None);
    mail.domain = Some("prod-mail".into());
    let known = Known {
        guests: vec![
            configured("web1", Some(vec![(disk("root"), a.clone())])),
            mail,
            configured("nothing", None),
        ],
        device_bytes_per_sec: None,
    };
    let found = discover(&host.programs(), &known);
    assert_eq!(
        names(&found),
        [
            ("db", FoundBy::Libvirt, vec!["vda"]),
            ("files", FoundBy::Tags, vec!["vda"]),
            ("mail", FoundBy::Configured, vec!["vda"]),
            ("nothing", FoundBy::Configured, vec![]),
            ("web1", FoundBy::Configured, vec!["root"]),
        ]
    );
    let of = |name: &str| {
        found
            .guests
            .iter()
            .find(|guest| guest.name.as_str() == name)
            .expect("found")
    };
    assert_eq!(
        (of("web1").running, of("db").running, of("files").running),
        (Some(true), Some(false), None)
    );
    // libvirt's limit holds for the disk that is configured under another name, because it is the same file.
    assert_eq!(of("web1").disks[0].speed, Some((1_000_000, FoundBy::Libvirt)));
    assert_eq!(
        of("mail").domain.as_ref().map(|domain| domain.name.as_str()),
        Some("prod-mail")
    );
    assert_eq!(of("files").disks[0].size_bytes, Some(1 << 30));
    assert_eq!(of("db").left_out[0].why, "is a CD drive");
    assert!(of("db").left_out[0].is_meant);
    assert!(of("nothing").notes[0].contains("it has no disks"));
    assert_eq!(found.notes.len(), 1, "{:?}", found.notes);
    assert!(
        found.notes[0].contains("[guest.NAME] with domain = \"Old one & more\""),
        "{:?}",
        found.notes
    );
    // Each alone is the same.
    for one in &found.guests {
        match resolve(&host.programs(), &known, &one.name) {
            Ok(resolved) => assert_eq!(resolved, *one),
            Err(error) => {
                assert_eq!(one.name.as_str(), "nothing");
                assert!(error.to_string().contains("it has no disks"), "{error}");
            }
        }
    }
    // A missing domain is reported only if libvirt is there.
    let empty = Programs::found_in(host.path("none"));
    let said = |programs: &Programs| {
        let mut web9 = configured("web9", Some(vec![(disk("vda"), a.clone())]));
        web9.domain = Some("prod-web9".into());
        let known = Known {
            guests: vec![web9],
            device_bytes_per_sec: None,
        };
        let notes = resolve(programs, &known, &guest("web9")).expect("has a disk").notes;
        let of_all = discover(programs, &known).guests;
        let of_all = of_all
            .iter()
            .find(|found| found.name.as_str() == "web9")
            .expect("found");
        assert_eq!(notes, of_all.notes);
        notes
    };
    assert_eq!(said(&host.programs()), ["libvirt has no domain prod-web9"]);
    assert_eq!(said(&empty), [""; 0]);
    // That domain belongs to another guest.
    let mut known = known;
    known.guests[1].domain = Some("db".into());
    let resolved = resolve(&host.programs(), &known, &guest("db")).expect("the tags are left");
    assert_eq!(resolved.from, FoundBy::Tags);
    known.guests.push(configured("db", None));
    let found = discover(&host.programs(), &known);
    let from = |name: &str| {
        let found = found
            .guests
            .iter()
            .find(|found| found.name.as_str() == name)
            .expect("found");
        (
            found.domain.as_ref().map(|domain| domain.name.clone()),
            found.disks[0].name.to_string(),
        )
    };
    assert_eq!(from("mail"), (Some("db".into()), "vda".into()));
    assert_eq!(from("db"), (None, "vdz".into()));
}

#[test]
fn disks_left_out_are_named() {
    let host = Host::new();
    let a = host.disk("a", 1 << 20);
    let qcow2 = "<disk type='file'><driver type='qcow2'/><source file='/x'/><target dev='vdb'/></disk>";
    let odd = raw("vda.p1", &a) + &raw("vda", &a);
    host.domains(&[("web1", &(raw("vda", &a) + &raw("vdc", &a) + qcow2 + &odd))]);
    let mut web1 = configured("web1", None);
    web1.skip_disks = vec![disk("vdc"), disk("vdb"), disk("vdx")];
    web1.device_bytes_per_sec = Some(200_000_000);
    let known = Known {
        guests: vec![web1],
        device_bytes_per_sec: None,
    };
    let found = resolve(&host.programs(), &known, &guest("web1")).expect("found");
    assert_eq!(found.disks.len(), 1);
    assert_eq!(found.disks[0].speed, Some((200_000_000, FoundBy::Configured)));
    let left_out: Vec<_> = found
        .left_out
        .iter()
        .map(|disk| (disk.name.as_str(), disk.is_meant))
        .collect();
    assert_eq!(
        left_out,
        [("vdb", true), ("vda.p1", false), ("vda", false), ("vdc", true)]
    );
    assert!(found.left_out[2].why.contains("second disk"));
    assert_eq!(found.notes, ["it has no disk vdx to skip"]);

    let known = Known {
        guests: vec![configured("web1", Some(vec![(disk("vdc"), host.path("gone"))]))],
        device_bytes_per_sec: None,
    };
    let found = resolve(&host.programs(), &known, &guest("web1")).expect("found");
    assert_eq!(found.disks[0].size_bytes, None);
    assert!(found.notes[0].ends_with("gone does not exist"), "{:?}", found.notes);
    let why = "is in libvirt, but not among the disks that the configuration names";
    assert_eq!(
        (found.left_out[0].name.as_str(), found.left_out[0].why.as_str()),
        ("vda", why)
    );
}

#[test]
fn a_tag_on_two_volumes_selects_neither() {
    let host = Host::new();
    let a = host.disk("a", 1 << 20);
    host.volumes(&[
        ("vg0/one", a.clone(), "vbk_guest=web1/vda"),
        ("vg0/two", a.clone(), "vbk_guest=web1/vda"),
        ("vg0/good", a.clone(), "vbk_guest=web1/vdb"),
        ("vg0/off", host.path("inactive"), "vbk_guest=web1/vdc"),
        ("vg0/bad", a.clone(), "vbk_guest=web1"),
        ("vg0/bad2", a.clone(), "vbk_guest=../x/vda"),
        ("vg0/both", a.clone(), "vbk_guest=x/vda,vbk_guest=y/vda"),
        ("vg0/part", PathBuf::new(), "vbk_guest=x/vda"),
    ]);
    let found = discover(&host.programs(), &Known::default());
    assert_eq!(names(&found), [("web1", FoundBy::Tags, vec!["vdb", "vdc"])]);
    let web1 = &found.guests[0];
    assert!(web1.left_out[0].why.contains("vg0/one, vg0/two"), "{:?}", web1.left_out);
    assert!(
        web1.notes[0].contains("lvchange --activate y vg0/off"),
        "{:?}",
        web1.notes
    );
    let volumes: Vec<_> = found
        .notes
        .iter()
        .map(|note| note.split_once(" is left out").expect("words").0)
        .collect();
    assert_eq!(
        volumes,
        [
            "volume vg0/bad",
            "volume vg0/bad2",
            "volume vg0/both",
            "volume vg0/part"
        ]
    );
}

#[test]
fn a_silent_source_hides_no_guest_of_the_others() {
    let host = Host::new();
    let a = host.disk("a", 1 << 20);
    let known = Known {
        guests: vec![configured("web1", Some(vec![(disk("vda"), a.clone())]))],
        device_bytes_per_sec: None,
    };
    host.program("virsh", "echo 'error: failed to connect to the hypervisor' >&2; exit 1");
    host.program("lvs", "echo '{'");
    let found = discover(&host.programs(), &known);
    assert_eq!(found.guests.len(), 1);
    assert!(found.notes[0].contains("failed to connect") && found.notes[1].contains("lvs is not understood"));
    let error = resolve(&host.programs(), &known, &guest("db"))
        .expect_err("is unknown")
        .to_string();
    assert!(error.contains("failed to connect"), "{error}");
    // A configured guest with disks does not need lvm2.
    let resolved = resolve(&host.programs(), &known, &guest("web1")).expect("found");
    assert_eq!(resolved.notes.len(), 1);
    // One domain that can't be read hides no other.
    host.domains(&[("a", "<disk"), ("b", &raw("vda", &a))]);
    let found = discover(&host.programs(), &Known::default());
    assert_eq!(names(&found), [("b", FoundBy::Libvirt, vec!["vda"])]);
    assert!(
        found.notes.iter().any(|note| note.starts_with("domain a is left out")),
        "{:?}",
        found.notes
    );
}

#[test]
fn disks_attached_or_moved_while_running_are_reported() {
    let host = Host::new();
    let (vda, moved, vdb) = (host.disk("a", 1), host.disk("moved", 7), host.disk("b", 1));
    host.domains(&[("web1", &raw("vda", &vda))]);
    let known = Known::default();
    let of = || resolve(&host.programs(), &known, &guest("web1")).expect("is found");
    assert_eq!(of().notes, Vec::<String>::new());
    let link = host.path("link");
    std::os::unix::fs::symlink(&vda, &link).expect("links");
    let runs_with = |devices: String| {
        let xml = format!("<domain><name>web1</name><uuid>u-web1</uuid><devices>{devices}</devices></domain>");
        fs::write(host.path("running web1"), xml).expect("writes");
    };
    runs_with(raw("vda", &link));
    assert_eq!(of().notes, Vec::<String>::new(), "another name of the same disk");
    runs_with(raw("vda", &moved) + &raw("vdb", &vdb));
    let found = of();
    assert_eq!(
        (found.disks.len(), &found.disks[0].path, found.disks[0].size_bytes),
        (1, &moved, Some(7))
    );
    assert!(found.notes[0].contains("it is read from"), "{:?}", found.notes);
    let left_out = |found: &FoundGuest| {
        let left_out = found.left_out.iter().filter(|disk| !disk.is_meant);
        left_out
            .map(|disk| format!("{} {}", disk.name, disk.why))
            .collect::<Vec<_>>()
    };
    assert!(
        left_out(&found)[0].contains("vdb was attached while the guest was running"),
        "{:?}",
        left_out(&found)
    );
    let qcow2 = |target: &str| {
        format!("<disk type='file'><driver type='qcow2'/><source file='/overlay'/><target dev='{target}'/></disk>")
    };
    runs_with(raw("vda", &vda) + &qcow2("vdb"));
    assert!(
        left_out(&of())[0].contains("vdb was attached while the guest was running, and is a qcow2 image"),
        "{:?}",
        left_out(&of())
    );

    // The raw volume's content is older than the guest's.
    runs_with(qcow2("vda"));
    let error = resolve(&host.programs(), &known, &guest("web1"));
    let error = error.expect_err("has no good disk").to_string();
    assert!(
        error.contains("vda is a qcow2 image") && error.contains("is stale"),
        "{error}"
    );
    let found = discover(&host.programs(), &known).guests.remove(0);
    assert_eq!((found.disks.len(), left_out(&found).len()), (0, 1));

    // A disk named in the configuration takes precedence, with a note.
    let named = |name: &str| Known {
        guests: vec![configured("web1", Some(vec![(disk(name), vda.clone())]))],
        ..Known::default()
    };
    for name in ["vda", "root"] {
        let of = || resolve(&host.programs(), &named(name), &guest("web1")).expect("is found");
        runs_with(raw("vda", &link));
        assert_eq!((of().notes, of().left_out), (vec![], vec![]));
        for devices in [qcow2("vda"), raw("vda", &moved)] {
            runs_with(devices);
            let found = of();
            assert_eq!((&found.disks[0].path, left_out(&found).len()), (&vda, 0));
            assert!(found.notes.join("; ").contains("is stale"), "{:?}", found.notes);
        }
        runs_with(raw("vda", &vda) + &raw("vdb", &vdb));
        assert!(left_out(&of())[0].contains("vdb was attached"), "{:?}", left_out(&of()));
    }
}

#[test]
fn a_configured_disk_that_libvirt_has_elsewhere_is_reported() {
    let host = Host::new();
    let [old, new] = ["old", "new"].map(|name| host.disk(name, 1));
    let link = host.path("link");
    std::os::unix::fs::symlink(&old, &link).expect("links");
    let other = |target: &str, rest: &str| format!("<disk {rest}<target dev='{target}'/></disk>");
    let qcow2 = format!(
        "type='file'><driver type='qcow2'/><source file='{}'/>",
        host.disk("q", 1).display()
    );
    let known = Known {
        guests: vec![configured(
            "web1",
            Some(vec![(disk("vda"), link), (disk("data"), host.path("q"))]),
        )],
        ..Known::default()
    };
    let of = |devices: &str| {
        host.domains(&[("web1", devices)]);
        let found = resolve(&host.programs(), &known, &guest("web1")).expect("is found");
        assert_eq!(found.disks.len(), 2);
        let left_out: Vec<_> = found
            .left_out
            .iter()
            .map(|disk| (disk.name.clone(), disk.is_meant))
            .collect();
        (found.notes, left_out)
    };
    // Two names of one device, a volume whose path only its owner knows, and an image that is one of the disks.
    let volume = other("vda", "type='volume'><source pool='p' volume='v'/>");
    for devices in [raw("vda", &old), volume, other("vdb", &qcow2)] {
        assert_eq!(of(&devices), (vec![], vec![]));
    }
    let (notes, left_out) = of(&raw("vda", &new));
    assert!(
        notes.len() == 1 && notes[0].contains("/new according to libvirt") && left_out.is_empty(),
        "{notes:?}"
    );
    let rbd = other("vdc", "type='network'><source protocol='rbd' name='x'/>");
    let drive = other("sda", "type='file' device='cdrom'>");
    assert_eq!(
        of(&(raw("vda", &old) + &rbd + &drive)),
        (vec![], vec![("vdc".into(), false), ("sda".into(), true)])
    );
}
