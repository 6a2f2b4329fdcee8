use proptest::prelude::*;

use super::*;
use crate::fuzzing;
use crate::testing::{Content, MemoryTree};

fn linux(uuid: &str, fstab: &str) -> MemoryTree {
    let mut tree = MemoryTree::with_uuid(uuid);
    tree.directory("/etc");
    tree.file("/etc/fstab", fstab);
    tree
}

fn with_file(uuid: &str, path: &str) -> MemoryTree {
    let mut tree = MemoryTree::with_uuid(uuid);
    tree.file(path, path);
    tree
}

fn of(trees: Vec<NamedTree>) -> std::result::Result<Guest, NoRoot> {
    compose(&Trees {
        trees,
        ..Trees::default()
    })
}

fn all(guest: &Guest) -> Vec<String> {
    let mut walk = Walk::new(&*guest.tree, guest.tree.root());
    let mut paths = Vec::new();
    while let Some(step) = walk.step() {
        assert!(matches!(step, Step::Found(..)), "{step:?}");
        paths.push(String::from_utf8_lossy(walk.path()).into_owned());
    }
    paths
}

#[test]
fn volumes_are_mounted_as_fstab_says() {
    let fstab = "UUID=r / ext4\nLABEL=logs /var/log ext4\n/dev/vda3 /var xfs\nPARTUUID=4 /srv/my\\040data ext4 nofail\n\
        /srv /var/srv none bind\ntmpfs /tmp tmpfs\nUUID=gone /gone ext4\nUUID=cd /media udf noauto\nUUID=h /no/such ext4\n";
    let mut root = linux("r", fstab);
    for path in ["/var", "/var/hidden", "/srv", "/srv/my data", "/gone", "/media"] {
        root.directory(path);
    }
    let mut var = with_file("v", "/in-var");
    var.directory("/log");
    let mut logs = with_file("l", "/syslog");
    logs.identity.label = Some("logs".into());
    let guest = of(vec![
        logs.named("p1", &[]),
        var.named("p3", &["/dev/vda3"]),
        with_file("d", "/in-data").named("p4", &["PARTUUID=4"]),
        with_file("h", "/x").named("p5", &[]),
        root.named("p2", &[]),
    ]);
    let guest = guest.expect("has a root");
    assert_eq!(
        all(&guest),
        [
            "etc",
            "etc/fstab",
            "gone",
            "media",
            "srv",
            "srv/my data",
            "srv/my data/in-data",
            "var",
            "var/in-var",
            "var/log",
            "var/log/syslog"
        ]
    );
    let mounts: Vec<_> = guest
        .mounts
        .iter()
        .map(|it| (it.volume, String::from_utf8_lossy(&it.point).into_owned()))
        .collect();
    let expected = [(4, "/"), (1, "/var"), (0, "/var/log"), (2, "/srv/my data")];
    assert_eq!(mounts, expected.map(|(volume, point)| (volume, point.to_owned())));
    assert_eq!(guest.unmounted, [3]);
    assert_eq!(
        guest.remarks,
        [
            "/gone: UUID=gone is none of the volumes that can be read",
            "/no/such: mount point of p5: not found"
        ]
    );
    let found = resolve(&*guest.tree, guest.tree.root(), b"/var/log/../log/syslog", Last::Follow).expect("found");
    assert_eq!(
        guest.tree.stat(found.node).expect("stat").size_bytes,
        "/syslog".len() as u64
    );
    let content = Arc::clone(&guest.tree).open(found.node).expect("opens");
    assert_eq!(content.size_bytes(), 7);
}

#[test]
fn the_root_is_the_volume_that_names_itself() {
    let old = || linux("old", "UUID=new / ext4\n").named("p1", &[]);
    let new = || linux("new", "UUID=new / ext4\n").named("p2", &[]);
    let guest = of(vec![old(), new()]).expect("has a root");
    assert_eq!(guest.mounts[0].volume, 1);
    // One fstab, whatever it names; or one file system.
    let guest = of(vec![with_file("x", "/x").named("p1", &[]), old()]).expect("has a root");
    assert_eq!(guest.mounts[0].volume, 1);
    let guest = of(vec![with_file("x", "/x").named("p1", &[])]).expect("has a root");
    assert_eq!(all(&guest), ["x"]);
    let error = of(vec![new(), new()]).err().expect("two roots").to_string();
    assert_eq!(
        error,
        "p2 may be the root; name one of the volumes p2 (ext4), p2 (ext4)"
    );
    let two = vec![
        with_file("x", "/x").named("p1", &[]),
        with_file("y", "/x").named("p2", &[]),
    ];
    let error = of(two).err().expect("no root").to_string();
    assert!(
        error.contains("no /etc/fstab") && error.contains("p1 (ext4), p2 (ext4)"),
        "{error}"
    );
    let nothing = Trees {
        left_out: vec![("p1".into(), "swap space".into()), ("p2".into(), "empty".into())],
        ..Trees::default()
    };
    let error = compose(&nothing).err().expect("no root").to_string();
    assert_eq!(error, "no file system that can be read: p1: swap space; p2: empty");
}

/// A btrfs with subvolumes 256 `@`, 257 `@home` and 258 `snapshot`, a copy of `@`.
fn btrfs(fstab: &str) -> MemoryTree {
    let mut tree = MemoryTree::with_uuid("b");
    for (name, space) in [("/@", 256), ("/@home", 257), ("/snapshot", 258)] {
        tree.directory(name).space = space;
    }
    for root in ["/@", "/snapshot"] {
        tree.directory(&format!("{root}/etc"));
        tree.file(&format!("{root}/etc/fstab"), fstab);
        tree.directory(&format!("{root}/home"));
        tree.directory(&format!("{root}/top"));
    }
    tree.file("/@home/mine", "x");
    tree
}

#[test]
fn subvolumes_are_mounted_by_path_and_number() {
    for home in [
        "subvol=@home",
        "subvol=/@home,compress",
        "subvolid=257",
        "subvolid=257,subvol=/@home",
    ] {
        let fstab = format!("UUID=b / btrfs subvol=@\nUUID=b /home btrfs {home}\nUUID=b /top btrfs subvolid=5\n");
        let guest = of(vec![btrfs(&fstab).named("p1", &[])]).expect("has a root");
        assert!(guest.remarks.is_empty(), "{:?}", guest.remarks);
        let paths = all(&guest);
        for path in [
            "etc/fstab",
            "home/mine",
            "top/@/etc/fstab",
            "top/@home/mine",
            "top/snapshot/etc",
        ] {
            assert!(paths.iter().any(|it| it == path), "{path} in {paths:?}");
        }
        // The mount of the top covers nothing in the subvolumes as they are seen below it.
        assert!(!paths.iter().any(|path| path.starts_with("top/@/top/")), "{paths:?}");
    }
}

#[test]
fn a_root_in_the_default_subvolume_is_found_and_the_others_are_the_rest() {
    let mut tree = MemoryTree::with_uuid("b");
    for (name, space) in [("/odd name", 300), ("/home", 301), ("/snapshot", 302)] {
        tree.directory(name).space = space;
    }
    tree.directory("/odd name/etc");
    tree.directory("/odd name/home");
    tree.file(
        "/odd name/etc/fstab",
        "UUID=b / btrfs\nUUID=b /home btrfs subvol=home\n",
    );
    tree.file("/home/mine", "x");
    tree.file("/snapshot/older", "x");
    tree.default = Some("/odd name");
    let guest = of(vec![tree.named("p1", &[])]).expect("has a root");
    assert!(guest.remarks.is_empty(), "{:?}", guest.remarks);
    assert_eq!(all(&guest), ["etc", "etc/fstab", "home", "home/mine"]);
    let [(0, rest)] = &guest.rest[..] else {
        panic!("{} others", guest.rest.len());
    };
    let rest = Guest {
        tree: Arc::clone(rest),
        ..guest
    };
    assert_eq!(all(&rest), ["snapshot", "snapshot/older"]);
    assert!(matches!(
        rest.tree.lookup(rest.tree.root(), b"home"),
        Err(Error::NotFound)
    ));
}

#[test]
fn a_malicious_fstab_leads_to_the_guests_own_files_only() {
    let fstab = "UUID=r / ext4\nUUID=r /a ext4\nUUID=r /a/a ext4\nUUID=x /link/in ext4\nUUID=x /up ext4\nUUID=x /loop ext4\n\
        UUID=x ../../etc ext4\nUUID=x /file ext4\nUUID=r / ext4\nUUID=x /a btrfs subvol=../../..\n";
    let mut root = linux("r", fstab);
    root.directory("/a");
    root.directory("/a/a");
    root.directory("/b");
    root.directory("/b/in");
    root.link("/link", "/../../b");
    root.link("/up", "../../../..");
    root.link("/loop", "loop");
    root.file("/file", "");
    let guest = of(vec![root.named("p1", &[]), with_file("x", "/x").named("p2", &[])]).expect("has a root");
    let paths = all(&guest);
    assert!(paths.iter().any(|path| path == "b/in/x"), "{paths:?}");
    assert!(paths.len() < 100, "{}", paths.len());
    assert!(
        guest.remarks.iter().any(|remark| remark.starts_with("/loop: ")),
        "{:?}",
        guest.remarks
    );
    assert!(
        guest.remarks.iter().any(|remark| remark.starts_with("/file: ")),
        "{:?}",
        guest.remarks
    );
}

#[test]
fn an_fstab_that_is_too_long_or_damaged_is_a_remark() {
    let mut tree = linux("r", "");
    tree.at("/etc/fstab").content = Content::File(2 << 20, Vec::new());
    let guest = of(vec![tree.named("p1", &[])]).expect("has a root");
    assert_eq!(guest.remarks, ["/etc/fstab: larger than 1024 KiB"]);
    let mut tree = linux("r", "");
    tree.at("/etc/fstab").content = Content::Damaged;
    let guest = of(vec![tree.named("p1", &[])]).expect("has a root");
    assert_eq!(guest.remarks, ["/etc/fstab: a block of a test is damaged"]);
}

/// Lines as they are in the fstab of a guest.
#[test]
fn seeds() {
    let fstab = "# a comment\nUUID=r / ext4 defaults 0 1\n/dev/vdb /a\\040b btrfs subvol=/@,noauto 0 0\nUUID=x /a none bind\n\
        /dev/vdb /b/../a xfs subvolid=256\nLABEL=\"x\" none swap sw\n";
    fuzzing::seed("fstab", "lines", fstab.as_bytes());
}

proptest! {
    #[test]
    fn no_fstab_panics_or_loops(bytes: Vec<u8>) {
        fuzzing::fstab(&bytes);
    }

    #[test]
    fn no_plausible_fstab_panics_or_loops(lines in prop::collection::vec("(UUID=[rx]|/dev/vd[ab]) (/|/a|/b|/a/a|/b/../a|/etc|a|/x\\\\0) btrfs (subvol=[@/a.]*|subvolid=[0-9]*|bind)", 0..12)) {
        fuzzing::fstab(lines.join("\n").as_bytes());
    }
}
