//! Descriptions in libvirt's format, invalid ones, and a `virsh` with prepared answers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const WEB1: &str = include_str!("samples/web1.xml");

fn minimal(devices: &str) -> String {
    format!("<domain type='kvm'><name>w</name><uuid>u</uuid><devices>{devices}</devices></domain>")
}

#[test]
fn the_domain_xml_lists_disks_and_their_speed() {
    let domain = Domain::parse(WEB1).expect("parses");
    assert_eq!(domain.name, "web1");
    assert_eq!(domain.uuid, "4dea22b3-1d52-d8f3-2516-782e98ab3fa0");
    assert_eq!(
        domain.nvram.as_deref(),
        Some(Path::new("/var/lib/libvirt/qemu/nvram/web1_VARS.fd"))
    );
    assert_eq!(domain.xml, WEB1);
    let raw = |path: &str| Medium::Raw(path.into());
    let other = |why: &str, path: Option<&str>| Medium::Other {
        why: why.into(),
        path: path.map(Into::into),
    };
    let disks: Vec<_> = domain
        .disks
        .iter()
        .map(|disk| (disk.target.as_str(), disk.medium.clone(), disk.read_bytes_per_sec))
        .collect();
    assert_eq!(
        disks,
        [
            ("vda", raw("/dev/vg0/web1-root"), Some(300_000_000)),
            ("vdb", raw("/srv/images/web1 data 'b'.img"), Some(200_000_000)),
            (
                "vdc",
                other(
                    "is a qcow2 image; only raw ones can be backed up",
                    Some("/var/lib/libvirt/images/web1.qcow2")
                ),
                None
            ),
            ("vdd", other("is on the network (rbd)", None), None),
            ("vde", raw("/dev/vg0/templates"), None),
            ("sda", other("is a CD drive", Some("/srv/iso/debian-12.iso")), None),
            (
                "vdf",
                other(
                    "is a volume of a storage pool; name its path as one of the guest's disks",
                    None
                ),
                None
            ),
        ]
    );
    let flags = |at: usize| (domain.disks[at].read_only, domain.disks[at].is_drive);
    assert_eq!([1, 4, 5].map(flags), [(false, false), (true, false), (true, true)]);
}

#[test]
fn the_smaller_of_two_read_limits_applies() {
    for (iotune, expected) in [
        (
            "<read_bytes_sec>5</read_bytes_sec><total_bytes_sec>7</total_bytes_sec>",
            Some(5),
        ),
        (
            "<read_bytes_sec>9</read_bytes_sec><total_bytes_sec> 7\n</total_bytes_sec>",
            Some(7),
        ),
        (
            "<read_bytes_sec>0</read_bytes_sec><total_bytes_sec>7</total_bytes_sec>",
            Some(7),
        ),
        ("<write_bytes_sec>7</write_bytes_sec>", None),
        ("<read_bytes_sec>-1</read_bytes_sec>", None),
        ("<read_bytes_sec/>", None),
    ] {
        let xml = minimal(&format!("<disk><iotune>{iotune}</iotune></disk>"));
        let domain = Domain::parse(&xml).expect("parses");
        assert_eq!(domain.disks[0].read_bytes_per_sec, expected, "{iotune}");
        assert_eq!(
            domain.disks[0].medium,
            Medium::Other {
                why: "is empty".into(),
                path: None
            }
        );
    }
}

#[test]
fn an_nvram_source_element_is_read() {
    for (os, expected) in [
        ("<nvram type='file'><source file='/a'/></nvram>", Some("/a")),
        ("<nvram type='block'><source dev='/b'/></nvram>", Some("/b")),
        ("<nvram template='/t'/>", None),
        ("<nvram>relative</nvram>", None),
    ] {
        let xml = format!("<domain><name>w</name><uuid>u</uuid><os>{os}</os></domain>");
        let nvram = Domain::parse(&xml).expect("parses").nvram;
        assert_eq!(nvram.as_deref(), expected.map(Path::new), "{os}");
    }
}

#[test]
fn invalid_domain_xml_is_refused_with_the_reason() {
    for (xml, words) in [
        ("", "the document does not have a root node"),
        ("<network><name>n</name></network>", "it is a <network>"),
        ("<domain><uuid>u</uuid></domain>", "it has no name"),
        (
            "<domain><name>w1</name></domain>",
            "can't parse the description of w1: it has no UUID",
        ),
    ] {
        let error = Domain::parse(xml).expect_err("is refused").to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// A directory with a `virsh` that runs this script.
fn virsh(script: &str) -> (tempfile::TempDir, Programs) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("virsh");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("writes");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets the mode");
    let programs = Programs::found_in(format!("{}:/usr/bin:/bin", dir.path().display()));
    (dir, programs)
}

#[test]
fn a_numeric_domain_name_is_not_an_id() {
    // Domain "7" does not run, and a running one has the id 7.
    let script = r#"
case "$*" in
  "list --all --name") printf 'other\n7\n\n' ;;
  "list --all --uuid") printf 'uuid-other\nuuid-7\n\n' ;;
  "dumpxml --inactive --security-info --domain 7") echo "<domain><name>other</name><uuid>uuid-other</uuid></domain>" ;;
  "dumpxml --inactive --security-info --domain uuid-other")
    echo "<domain><name>other</name><uuid>uuid-other</uuid></domain>" ;;
  "dumpxml --inactive --security-info --domain uuid-7")
    [ ! -e "${0%/*}/late" ] || { (sleep 9; echo late) & exit 0; }
    echo "<domain><name>7</name><uuid>uuid-7</uuid></domain>" ;;
  "dumpxml --domain 7") echo "<domain><name>other</name><uuid>uuid-other</uuid></domain>" ;;
  "dumpxml --domain uuid-7") echo "<domain><name>7</name><uuid>uuid-7</uuid></domain>" ;;
  *) echo "error: failed to get domain" >&2; exit 1 ;;
esac"#;
    let (dir, programs) = virsh(script);
    let libvirt = Libvirt::new(&programs);
    assert_eq!(libvirt.names().expect("names"), ["other", "7"]);
    let found = libvirt.domain("7").expect("found");
    assert_eq!(found.uuid, "uuid-7");
    assert_eq!(libvirt.running_domain(&found).expect("runs").name, "7");
    let error = libvirt.domain("gone").expect_err("is not there");
    assert!(matches!(error, LibvirtError::NoSuchDomain(_)), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // Without its answer, the domain may exist.
    fs::write(dir.path().join("late"), "").expect("writes");
    let error = libvirt.domain("7").expect_err("did not answer");
    assert!(
        matches!(error, LibvirtError::Program(ProgramError::Answer { .. })),
        "{error}"
    );
}

#[test]
fn a_domain_name_may_contain_spaces() {
    let (_dir, programs) = virsh(
        r#"case "$*" in
          "list --all --name") printf 'web \n\n' ;;
          "dumpxml "*"--domain web ") echo "<domain><name>web </name><uuid>u</uuid></domain>" ;;
          *) exit 1 ;;
        esac"#,
    );
    let libvirt = Libvirt::new(&programs);
    let names = libvirt.names().expect("names");
    assert_eq!(names, ["web "]);
    assert_eq!(libvirt.domain(&names[0]).expect("found").name, "web ");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// No content of a description makes reading or rewriting it panic, and a rewritten one can be read.
    #[test]
    fn corrupted_domain_xml_is_read_or_refused(
        spoils in prop::collection::vec((any::<prop::sample::Index>(), 0..5_u8, any::<prop::sample::Index>()), 1..6)
    ) {
        let mut text = WEB1.to_owned();
        for (place, how, other) in spoils {
            if text.is_empty() {
                break;
            }
            let floor = |text: &str, at: usize| {
                let mut before = (0..=at.min(text.len())).rev();
                before.find(|&at| text.is_char_boundary(at)).unwrap_or(0)
            };
            let at = |index: &prop::sample::Index, text: &str| floor(text, index.index(text.len()));
            let (from, to) = (at(&place, &text), at(&other, &text));
            match how {
                0 => text.replace_range(from.min(to)..from.max(to), ""),
                1 => text.insert(from, ['<', '>', '\'', '"', '&', '/', '\0', 'ä'][to % 8]),
                2 => text.truncate(from),
                3 => {
                    let part = text[from.min(to)..floor(&text, from.max(to).min(from.min(to) + 200))].to_owned();
                    text.insert_str(at(&place, &text), &part);
                }
                _ => {
                    let end = text[from..].chars().next().map_or(from, |c| from + c.len_utf8());
                    text.replace_range(from..end, "&#x41;");
                }
            }
        }
        if let Ok(domain) = Domain::parse(&text) {
            prop_assert_eq!(&domain.xml, &text);
        }
    }
}

#[test]
fn a_domain_with_thousands_of_disks_is_refused() {
    let domain = |count: usize| {
        let disks = "<disk type='block'><source dev='/dev/x'/><target dev='vda'/></disk>".repeat(count);
        Domain::parse(&format!(
            "<domain><name>web1</name><uuid>x</uuid><devices>{disks}</devices></domain>"
        ))
    };
    assert!(domain(1024).is_ok());
    let error = domain(1025).expect_err("is refused").to_string();
    assert!(
        error.contains("web1") && error.contains("1025 disks, more than 1024"),
        "{error}"
    );
}
