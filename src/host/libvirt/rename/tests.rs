use super::*;

const XML: &str = r#"<?xml version='1.0'?>
<!-- the shop's first server: web1 -->
<domain type='kvm' xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>web1</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid>
  <title>web1 &amp; friends</title>
  <metadata><x:name xmlns:x="urn:x">web1</x:name></metadata>
  <memory unit='KiB'>4194304</memory>
  <sysinfo type='smbios'>
    <system>
      <entry name='manufacturer'>Shop</entry>
      <entry name='uuid'>11111111-2222-3333-4444-555555555555</entry>
    </system>
  </sysinfo>
  <os firmware='efi'>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none' io='native'/>
      <source dev='/dev/vg0/web1-root' index='1'/>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
      <alias name='ua-root'/>
    </disk>
    <disk device='disk' type="file">
      <driver name='qemu' type='raw'/>
      <source  file = "/srv/a&amp;b/web1-data.img" startupPolicy='optional'>
        <seclabel model='dac' relabel='no'/>
      </source>
      <backingStore type='file'><format type='raw'/><source file='/srv/base.img'/></backingStore>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='network' device='disk'>
      <source protocol='rbd' name='pool/web1'>
        <host name='ceph1'/>
      </source>
      <target dev='vdc'/>
    </disk>
    <disk type='file' device='cdrom'>
      <source file='/srv/iso/debian.iso'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:aa:bb:01'/>
      <source bridge='br0'/>
    </interface>
    <interface type='network'>
      <source network='default'/>
      <mac address="52:54:00:aa:bb:02"/>
    </interface>
    <serial type='pty'><target port='0'/></serial>
  </devices>
  <qemu:commandline><qemu:arg value='-foo'/></qemu:commandline>
</domain>
"#;

fn plan() -> RenamePlan {
    let disks = [
        ("/dev/vg0/web1-root", "/dev/vg1/web2-root"),
        ("/srv/a&b/web1-data.img", "/dev/vg1/web2-data"),
        ("vdc", "/dev/vg1/web2-vdc"),
    ];
    RenamePlan {
        name: "web2".into(),
        uuid: Some("99999999-8888-4777-8666-555555555555".into()),
        macs: vec!["52:54:00:00:00:01".into(), "52:54:00:00:00:02".into()],
        disks: disks.map(|(old, new)| (old.to_owned(), new.into())).into(),
        nvram: Some("/var/lib/libvirt/qemu/nvram/web2_VARS.fd".into()),
    }
}

/// The lines that differ, old and new.
fn changed(old: &str, new: &str) -> Vec<(String, String)> {
    assert_eq!(old.lines().count(), new.lines().count(), "{new}");
    let both = old.lines().zip(new.lines()).filter(|(old, new)| old != new);
    both.map(|(old, new)| (old.trim().to_owned(), new.trim().to_owned()))
        .collect()
}

#[test]
fn disks_missing_from_plan_or_domain_are_named() {
    assert_eq!(unplaced(XML, &plan()).expect("a domain"), Unplaced::default());
    let mut other = plan();
    other.disks.remove("vdc");
    // The path takes precedence over the target's name, so this one is not used.
    other.disks.insert("vda".into(), "/dev/vg1/web2-boot".into());
    let expected = Unplaced {
        new: vec!["/dev/vg1/web2-boot".into()],
        kept: vec![("vdc".into(), "pool/web1".into())],
    };
    assert_eq!(unplaced(XML, &other).expect("a domain"), expected);
    assert!(rewrite(XML, &other).is_err());
    other.name = "web1".into();
    let kept = rewrite(XML, &other).expect("the same server keeps its disk");
    assert!(kept.contains("name='pool/web1'"), "{kept}");
}

#[test]
fn identifiers_are_replaced_and_all_other_bytes_kept() {
    // The network disk's source is replaced as a whole, which takes two lines.
    let new = rewrite(XML, &plan()).expect("rewrites");
    let (old_rbd, new_rbd) = (
        "<source protocol='rbd' name='pool/web1'>\n        <host name='ceph1'/>\n      </source>",
        "<source dev='/dev/vg1/web2-vdc'/>",
    );
    assert!(XML.contains(old_rbd) && new.contains(new_rbd), "{new}");
    let found = changed(&XML.replace(old_rbd, new_rbd), &new);
    let uuid = "99999999-8888-4777-8666-555555555555";
    let expected = [
        ("<name>web1</name>", "<name>web2</name>".to_owned()),
        (
            "<uuid>11111111-2222-3333-4444-555555555555</uuid>",
            format!("<uuid>{uuid}</uuid>"),
        ),
        (
            "<genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid>",
            "<genid></genid>".into(),
        ),
        (
            "<entry name='uuid'>11111111-2222-3333-4444-555555555555</entry>",
            format!("<entry name='uuid'>{uuid}</entry>"),
        ),
        (
            "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram>",
            "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/web2_VARS.fd</nvram>".into(),
        ),
        (
            "<source dev='/dev/vg0/web1-root' index='1'/>",
            "<source dev='/dev/vg1/web2-root' index='1'/>".into(),
        ),
        (
            "<disk device='disk' type=\"file\">",
            "<disk device='disk' type=\"block\">".into(),
        ),
        (
            "<source  file = \"/srv/a&amp;b/web1-data.img\" startupPolicy='optional'>",
            "<source  dev='/dev/vg1/web2-data' startupPolicy='optional'>".into(),
        ),
        (
            "<disk type='network' device='disk'>",
            "<disk type='block' device='disk'>".into(),
        ),
        (
            "<mac address='52:54:00:aa:bb:01'/>",
            "<mac address='52:54:00:00:00:01'/>".into(),
        ),
        (
            "<mac address=\"52:54:00:aa:bb:02\"/>",
            "<mac address=\"52:54:00:00:00:02\"/>".into(),
        ),
    ];
    let expected: Vec<_> = expected.map(|(old, new)| (old.to_owned(), new)).into();
    assert_eq!(found, expected);
    let again = identity(&new).expect("is a domain");
    assert_eq!(
        (again.name.as_str(), again.uuid.as_deref(), again.macs.len()),
        ("web2", Some(uuid), 2)
    );
}

#[test]
fn the_identity_of_a_domain_is_read() {
    let found = identity(XML).expect("is a domain");
    let disks = [
        ("/dev/vg0/web1-root", "vda"),
        ("/srv/a&b/web1-data.img", "vdb"),
        ("pool/web1", "vdc"),
    ];
    assert_eq!(
        found.disks,
        disks.map(|(source, target)| (Some(source.to_owned()), target.to_owned()))
    );
    assert_eq!(found.macs, ["52:54:00:aa:bb:01", "52:54:00:aa:bb:02"]);
    assert_eq!(
        found.nvram.as_deref(),
        Some(Path::new("/var/lib/libvirt/qemu/nvram/web1_VARS.fd"))
    );
}

#[test]
fn a_replacement_of_a_lost_server_keeps_identity_and_other_disks() {
    let same = RenamePlan {
        name: "web1".into(),
        disks: [("vda".to_owned(), "/dev/vg0/web1-root".into())].into(),
        ..RenamePlan::default()
    };
    let new = rewrite(XML, &same).expect("rewrites");
    let found = changed(XML, &new);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].1, "<genid></genid>");
}

#[test]
fn a_second_server_never_receives_a_disk_of_the_first() {
    let mut without = plan();
    without.disks.remove("vdc");
    let error = rewrite(XML, &without).expect_err("is refused");
    assert!(
        matches!(&error, RenameError::DiskLeft { target, .. } if target == "vdc"),
        "{error}"
    );
    // Read-only and shareable disks may stay.
    let shared = XML.replace("<target dev='vdc'/>", "<target dev='vdc'/><shareable/>");
    assert!(rewrite(&shared, &without).expect("rewrites").contains("pool/web1"));
}

#[test]
fn nvram_in_the_newer_form_is_found_too() {
    let newer = XML.replace(
        "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram>",
        "<nvram type='file'>\n<source file='/n/web1.fd'/>\n</nvram>",
    );
    let new = rewrite(&newer, &plan()).expect("rewrites");
    assert!(
        new.contains("<nvram type='file'>\n<source file='/var/lib/libvirt/qemu/nvram/web2_VARS.fd'/>\n</nvram>"),
        "{new}"
    );
    let none = XML.replace(
        "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/web1_VARS.fd</nvram>",
        "<nvram template='x'/>",
    );
    assert_eq!(identity(&none).expect("is a domain").nvram, None);
    let block = none.replace(
        "<nvram template='x'/>",
        "<nvram type='block'><source dev='/b'/></nvram>",
    );
    assert_eq!(identity(&block).expect("is a domain").nvram, None);
    assert!(
        rewrite(&none, &plan())
            .expect("rewrites")
            .contains("<nvram template='x'/>")
    );
}

#[test]
fn names_and_paths_are_escaped_in_the_xml() {
    let mut evil = plan();
    evil.name = "a</name><x>&".into();
    evil.disks
        .insert("vda".into(), "/dev/vg1/unused-since-the-path-goes-first".into());
    evil.disks
        .insert("/dev/vg0/web1-root".into(), "/dev/vg1/it's<\">".into());
    let new = rewrite(XML, &evil).expect("rewrites");
    let found = identity(&new).expect("is still a domain");
    assert_eq!(found.name, "a</name><x>&");
    assert_eq!(found.disks[0].0.as_deref(), Some("/dev/vg1/it's<\">"));
}

#[test]
fn xml_that_is_not_a_domain_is_refused() {
    for bad in [
        "",
        "x",
        "<domain/>",
        "<domain><name>a</name>",
        "<network><name>a</name></network>",
        "<domain><name>a</nam></domain>",
        "<a><domain><name>a</name></domain></a>",
        "<domain><name>a</name><devices><disk type='a' type='b'/></devices></domain>",
        "<domain><name>&nosuch;</name></domain>",
        "<domain><name>a</name></domain><domain/>",
        "<!DOCTYPE domain [<!ENTITY x 'y'>]><domain><name>a</name></domain>",
        &format!(
            "<domain><name>a</name>{}{}</domain>",
            "<a>".repeat(100_000),
            "</a>".repeat(100_000)
        ),
    ] {
        assert!(
            matches!(identity(bad), Err(RenameError::NotADomain(_))),
            "{bad}: {:?}",
            identity(bad)
        );
    }
    let many: String = (0..100_000).map(|number| format!(" a{number}=''")).collect();
    let many = format!("<domain><name>a</name><devices><disk><source{many}/></disk></devices></domain>");
    let error = identity(&many).expect_err("too many attributes").to_string();
    assert!(error.contains("256 attributes"), "{error}");
    let mut few = plan();
    few.macs.pop();
    assert!(matches!(
        rewrite(XML, &few),
        Err(RenameError::Macs { cards: 2, given: 1 })
    ));
}

#[test]
fn elements_of_another_namespace_are_not_the_domains() {
    let inserted = "<qemu:disk type='file'><qemu:source file='/x'/></qemu:disk><disk qemu:device='cdrom'";
    let xml = XML.replacen("<disk device='disk'", inserted, 1);
    let found = |xml| identity(xml).expect("is a domain");
    assert_eq!(found(&xml), found(XML));
    let new = rewrite(&xml, &plan()).expect("rewrites");
    assert!(new.contains(inserted), "{new}");
}

#[test]
fn new_identities_are_well_formed() {
    assert_eq!(uuid_of([0xFF; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    assert_eq!(uuid_of([0; 16]), "00000000-0000-4000-8000-000000000000");
    assert_eq!(mac_like("00:16:3E:11:22:33", [1, 0xAB, 255]), "00:16:3E:01:ab:ff");
    assert_eq!(mac_like("nonsense", [1, 2, 3]), "52:54:00:01:02:03");
}

proptest::proptest! {
    #[test]
    fn rename_never_panics_on_any_text(text in "(<|>|/|'|\"|=| |&|;|domain|name|devices|disk|source|dev|target|é|mac){0,40}") {
        let whole = format!("<domain><name>a</name><devices><disk>{text}</disk></devices></domain>");
        for xml in [&text, &whole] {
            let _ = identity(xml);
            let _ = rewrite(xml, &plan());
        }
    }
}
