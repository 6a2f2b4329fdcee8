//! What changed between two days.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::support::bytes::{MIB, write_noise};
use crate::support::inside::record_again;
use crate::support::lab::{Lab, str_of, u64_of};

#[test]
fn a_diff_names_the_changed_ranges_of_each_disk() {
    let lab = Lab::new();
    let disk = lab.path("disk.img");
    write_noise(&disk, 1, 16 * MIB);
    let first = lab.backup("web1", &disk);
    let file = File::options().write(true).open(&disk).expect("opens");
    file.write_all_at(b"changed", 5 * MIB + 100).expect("writes");
    file.write_all_at(b"changed", 7 * MIB - 3).expect("writes");
    file.write_all_at(&vec![0; MIB as usize], 10 * MIB).expect("writes");
    file.set_len(18 * MIB).expect("grows");
    drop(file);
    lab.backup("web1", &disk);

    let before = str_of(&first, "backup").to_owned();
    let found = lab.json(args!["diff", "--ranges", before, "web1@latest"]);
    let disk = &found["disks"][0];
    assert_eq!(str_of(disk, "disk"), "vda");
    assert_eq!(u64_of(disk, "after_bytes"), 18 * MIB);
    assert_eq!(u64_of(disk, "differing_bytes"), 6 * MIB);
    let ranges: Vec<_> = disk["ranges"]
        .as_array()
        .expect("an array")
        .iter()
        .map(|range| {
            (
                u64_of(range, "offset_bytes") / MIB,
                u64_of(range, "len_bytes") / MIB,
                str_of(range, "kind"),
            )
        })
        .collect();
    let expected = [(5, 3, "changed"), (10, 1, "zeroed"), (16, 2, "grown")];
    assert_eq!(ranges, expected.map(|(start, len, kind)| (start, len, kind.to_owned())));

    let same = lab.json(args!["diff", "web1@latest", "web1@latest/vda"]);
    assert_eq!(u64_of(&same["disks"][0], "differing_bytes"), 0);
    lab.run(args!["diff", before, "web1@latest/vdz"])
        .code(1)
        .says(&["vdz", "vda"]);
}

#[test]
fn disks_and_files_that_only_one_backup_has_are_named_too() {
    let lab = Lab::new();
    let disk = |name: &str, seed, mib| {
        write_noise(&lab.path(name), seed, mib * MIB);
        format!("{name}={}", lab.path(name).display())
    };
    let (root, data) = (disk("vda", 1, 4), disk("vdb", 2, 3));
    lab.ok(args!["backup", "web1", root, data]);
    let before = lab.listed().remove(0);
    let more = disk("vdc", 3, 2);
    // One disk of the latest backup is gone each time.
    lab.run(args!["backup", "web1", root, more]).code(3);

    let found = lab.json(args!["diff", before, "web1@latest"]);
    let disks = found["disks"].as_array().expect("an array");
    let of = |name: &str| disks.iter().find(|disk| disk["disk"] == name).expect("is named");
    assert_eq!(disks.len(), 3);
    assert_eq!(
        (str_of(of("vda"), "what"), u64_of(of("vda"), "differing_bytes")),
        ("same".into(), 0)
    );
    assert_eq!(
        (str_of(of("vdb"), "what"), u64_of(of("vdb"), "before_bytes")),
        ("removed".into(), 3 * MIB)
    );
    assert_eq!(
        (str_of(of("vdc"), "what"), u64_of(of("vdc"), "after_bytes")),
        ("added".into(), 2 * MIB)
    );
    assert!(of("vdb")["after_bytes"].is_null() && of("vdc")["before_bytes"].is_null());
    let text = lab.ok(args!["diff", before, "web1@latest"]);
    for (disk, what) in [("vda", "same"), ("vdb", "removed"), ("vdc", "added")] {
        let line = text
            .lines()
            .find(|line| line.starts_with(disk))
            .unwrap_or_else(|| panic!("{text}"));
        assert!(line.ends_with(what), "{line}");
    }
    // A disk that is named is compared alone.
    let one = lab.json(args!["diff", before, "web1@latest/vda"]);
    assert_eq!(one["disks"].as_array().expect("an array").len(), 1);
    lab.run(args!["diff", before, "web1@latest/vdc"]).code(1).says(&["vdc"]);

    // Nothing in common is a difference, and no error.
    lab.run(args!["backup", "web1", more]).code(3);
    let text = lab.ok(args!["diff", before, "web1@latest"]);
    assert!(
        text.contains("no disk of the same name") && text.contains("removed"),
        "{text}"
    );

    // Files that are kept with a backup: one that grows, one that goes.
    let small = record_again(lab.files(), "web1@latest", |record| {
        record.time = record.time.next();
        let mut file = record.images[0].clone();
        file.disk = "config.xml".parse().expect("a name");
        record.files = vec![file];
    });
    let gone = lab.json(args!["diff", small, "web1@latest"]);
    assert!(gone.get("files").is_none(), "the same backup");
    let file = &lab.json(args!["diff", "web1@latest", before])["files"][0];
    assert_eq!(
        (str_of(file, "what"), u64_of(file, "before_bytes")),
        ("gone".into(), 2 * MIB)
    );
    let file = &lab.json(args!["diff", before, "web1@latest"])["files"][0];
    assert_eq!(
        (str_of(file, "what"), u64_of(file, "after_bytes")),
        ("new".into(), 2 * MIB)
    );
}
