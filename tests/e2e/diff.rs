//! What changed between two days.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::support::bytes::{MIB, write_noise};
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
    let found = lab.json(args!["diff", before, "web1@latest"]);
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
