use vbk_repo::backup::{Backup, Consistency, Image, RECORD_FORMAT};
use vbk_repo::block::{BlockIndex, BlockSize, Hashing, is_zero};
use vbk_repo::codec::{Compression, Sealer};
use vbk_repo::repository::Writer;
use vbk_repo::writer::ImageWriter;

use super::*;
use vbk_repo::repository::CreateOptions;

const MIB: usize = 1 << 20;

struct Fixture {
    _directory: tempfile::TempDir,
    repository: Repository,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let repository = Repository::create(
            &directory.path().join("repo"),
            &CreateOptions::plain(BlockSize::DEFAULT),
        )
        .expect("creates");
        Self {
            _directory: directory,
            repository,
        }
    }

    fn backup(&self, guest: &str, time: &str, disks: &[(&str, &[u8])]) {
        self.backup_with_files(guest, time, disks, &[]);
    }

    fn backup_with_files(&self, guest: &str, time: &str, disks: &[(&str, &[u8])], files: &[(&str, &[u8])]) {
        let writer = self.repository.writer("test", &mut |_| false).expect("opens");
        let [images, files] = [disks, files].map(|named| {
            let stored = named.iter().map(|(name, plain)| store(&writer, name, plain));
            stored.collect::<Vec<_>>()
        });
        let backup = Backup {
            format: RECORD_FORMAT,
            guest: guest.parse().expect("a name"),
            time: time.parse().expect("a time"),
            sequence: 0,
            duration_ms: 1,
            host: "host".into(),
            vbk_version: "0".into(),
            consistency: Consistency::Live,
            images,
            files,
        };
        writer.commit(backup).expect("commits");
    }

    fn tree(&self) -> ImageFs {
        self.tree_with(TreeOptions::default())
    }

    fn tree_with(&self, options: TreeOptions) -> ImageFs {
        let view = self.repository.view().expect("opens");
        let catalogue = view.catalogue().expect("loads");
        ImageFs::new(
            self.repository.clone(),
            (view, &catalogue),
            options,
            ReadResources::new(1),
        )
    }
}

fn store(writer: &Writer, disk: &str, plain: &[u8]) -> Image {
    let slots = ImageWriter::create(writer.store(), BlockSize::DEFAULT, plain.len() as u64);
    let mut sealer = Sealer::new(Compression::None).expect("a sealer");
    for (index, block) in (0..).zip(plain.chunks(MIB)) {
        let slot = (!is_zero(block)).then(|| {
            let hashes = Hashing::Plain.block(block);
            let sealed = sealer.seal(block, &hashes).expect("seals");
            writer.store().put(vec![sealed]).expect("puts");
            hashes.id
        });
        slots.set(BlockIndex(index), &[slot]).expect("sets");
    }
    Image {
        data_bytes: MIB as u64,
        ..Image::new(
            disk.parse().expect("a name"),
            "/dev/x",
            plain.len() as u64,
            slots.finish().expect("finishes"),
        )
    }
}

/// 8 MiB with an MBR whose first partition is the second MiB; every sector after the table contains its own number.
fn disk() -> Vec<u8> {
    let mut disk: Vec<u8> = (0..8 * MIB / 512)
        .flat_map(|sector| [(sector % 250) as u8 + 1; 512])
        .collect();
    disk[..512].fill(0);
    disk[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]);
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    disk[4 * MIB..6 * MIB].fill(0);
    disk
}

fn names(tree: &ImageFs, directory: u64) -> Vec<String> {
    tree.list(directory)
        .expect("lists")
        .into_iter()
        .map(|name| name.name)
        .collect()
}

fn find(tree: &ImageFs, path: &[&str]) -> Result<Attributes> {
    let mut found = tree.attributes(ROOT)?;
    for name in path {
        found = tree.lookup(found.number, name)?;
    }
    Ok(found)
}

fn read(tree: &ImageFs, path: &[&str]) -> Vec<u8> {
    let found = find(tree, path).expect("is there");
    let handle = tree.open_file(found.number).expect("opens");
    let mut bytes = vec![0; found.size_bytes as usize + 10];
    let len = tree.read(handle, 0, &mut bytes).expect("reads");
    tree.close_file(handle);
    bytes.truncate(len);
    bytes
}

const DAY: &str = "2026-11-20T05-54-00Z";

#[test]
fn backups_are_directories_with_disks_and_partitions() {
    let fixture = Fixture::new();
    fixture.backup("web1", DAY, &[("vda", &disk()), ("vdb", &[1; 1000])]);
    let tree = fixture.tree();
    assert_eq!(names(&tree, ROOT), ["web1"]);
    assert_eq!(
        names(&tree, find(&tree, &["web1"]).expect("is there").number),
        [DAY, "latest"]
    );
    let day = find(&tree, &["web1", DAY]).expect("is there");
    assert_eq!(
        names(&tree, day.number),
        ["backup.json", "vda.img", "vda.p1.img", "vdb.img"]
    );
    let link = find(&tree, &["web1", "latest"]).expect("is there");
    assert_eq!(
        (link.kind, tree.link(link.number).expect("leads").as_str()),
        (Kind::Link, DAY)
    );

    assert_eq!(read(&tree, &["web1", DAY, "vda.img"]), disk());
    assert_eq!(read(&tree, &["web1", DAY, "vda.p1.img"]), disk()[MIB..2 * MIB]);
    assert_eq!(read(&tree, &["web1", DAY, "vdb.img"]), [1; 1000]);
    let record: serde_json::Value = serde_json::from_slice(&read(&tree, &["web1", DAY, "backup.json"])).expect("JSON");
    assert_eq!(record["guest"], "web1");
}

#[test]
fn an_image_has_the_size_and_time_of_its_backup() {
    let fixture = Fixture::new();
    fixture.backup("web1", DAY, &[("vda", &disk())]);
    let tree = fixture.tree();
    let file = find(&tree, &["web1", DAY, "vda.img"]).expect("is there");
    assert_eq!(
        (file.kind, file.size_bytes, file.data_bytes),
        (Kind::File, 8 << 20, 1 << 20)
    );
    for path in [&["web1"][..], &["web1", DAY], &["web1", DAY, "vda.p1.img"], &[]] {
        let modified = find(&tree, path).expect("is there").modified;
        assert_eq!(modified.to_string(), "2026-11-20T05:54:00Z", "{path:?}");
    }
}

#[test]
fn a_new_backup_appears_and_open_files_stay_readable() {
    let fixture = Fixture::new();
    fixture.backup("web1", DAY, &[("vda", &disk())]);
    let tree = fixture.tree();
    let old = find(&tree, &["web1", "latest"]).expect("is there");
    let file = find(&tree, &["web1", DAY, "vda.img"]).expect("is there");
    let handle = tree.open_file(file.number).expect("opens");

    let later = "2026-11-21T05-54-00Z";
    fixture.backup("web1", later, &[("vda", &[9; MIB])]);
    fixture.backup("db", later, &[("vda", &[7; MIB])]);
    assert_eq!(names(&tree, ROOT), ["db", "web1"]);
    assert_eq!(tree.link(old.number).expect("leads"), later);
    assert_eq!(read(&tree, &["web1", later, "vda.img"]), vec![9; MIB]);
    assert_eq!(
        find(&tree, &["web1", DAY, "vda.img"]).expect("is there").number,
        file.number
    );
    let mut bytes = vec![0; 100];
    assert_eq!(tree.read(handle, 5000, &mut bytes).expect("reads"), 100);
    assert_eq!(bytes, disk()[5000..5100]);
}

#[test]
fn one_backup_can_be_shown_alone() {
    let fixture = Fixture::new();
    fixture.backup("web1", DAY, &[("vda", &disk())]);
    fixture.backup("db", DAY, &[("vda", &disk())]);
    let catalogue = fixture
        .repository
        .view()
        .and_then(|view| view.catalogue())
        .expect("loads");
    let only = Some(catalogue.entries()[1].id);
    let tree = fixture.tree_with(TreeOptions {
        only,
        ..TreeOptions::default()
    });
    assert_eq!(names(&tree, ROOT), ["web1"]);
}

#[test]
fn kept_files_are_listed_beside_the_disks() {
    let fixture = Fixture::new();
    let (xml, nvram) = (b"<domain/>\n".as_slice(), vec![3; 2 * MIB + 5]);
    let files = [("config.xml", xml), ("nvram.fd", &nvram)];
    fixture.backup_with_files("web1", DAY, &[("vda", &disk()), ("vdb", &[1; 1000])], &files);
    fixture.backup("db", DAY, &[("vda", &disk())]);
    let catalogue = fixture.repository.view().and_then(|view| view.catalogue());
    let only = Some(catalogue.expect("loads").entries()[1].id);
    for only in [None, only] {
        let tree = fixture.tree_with(TreeOptions {
            only,
            ..TreeOptions::default()
        });
        let day = find(&tree, &["web1", DAY]).expect("is there");
        assert_eq!(
            names(&tree, day.number),
            [
                "backup.json",
                "vda.img",
                "vda.p1.img",
                "vdb.img",
                "config.xml",
                "nvram.fd"
            ]
        );
        assert_eq!(read(&tree, &["web1", DAY, "config.xml"]), xml);
        assert_eq!(read(&tree, &["web1", DAY, "nvram.fd"]), nvram);
        assert_eq!(read(&tree, &["web1", DAY, "vdb.img"]), [1; 1000]);
        let file = find(&tree, &["web1", DAY, "config.xml"]).expect("is there");
        assert_eq!((file.kind, file.size_bytes), (Kind::File, xml.len() as u64));
        assert!(find(&tree, &["web1", DAY, "disks.json"]).is_err());
    }
}

#[test]
fn missing_names_are_not_found() {
    let fixture = Fixture::new();
    fixture.backup("web1", DAY, &[("vda", &disk())]);
    let tree = fixture.tree();
    let paths: [&[&str]; 7] = [
        &["db"],
        &[".."],
        &["web1", "2026"],
        &["web1", "2026-11-21T05-54-00Z"],
        &["web1", DAY, "vdb.img"],
        &["web1", DAY, "vda.p2.img"],
        &["web1", "latest", "vda.img"],
    ];
    for path in paths {
        let kind = find(&tree, path).map_err(|error| error.kind());
        assert_eq!(kind.err(), Some(ErrorKind::NotFound), "{path:?}");
    }
    assert!(tree.attributes(0).is_err() && tree.attributes(u64::MAX).is_err());
    assert!(tree.open_file(ROOT).is_err() && tree.list(99).is_err());
    assert!(tree.read(77, 0, &mut [0]).is_err());
}

#[test]
fn zeros_are_holes_in_partitions_too() {
    let fixture = Fixture::new();
    fixture.backup("web1", DAY, &[("vda", &disk())]);
    let tree = fixture.tree();
    let open = |name| {
        let file = find(&tree, &["web1", DAY, name]).expect("is there");
        tree.open_file(file.number).expect("opens")
    };
    let mib = |n: u64| n << 20;
    let whole = open("vda.img");
    assert_eq!(tree.next_hole(whole, 0).expect("seeks"), Some(mib(4)));
    assert_eq!(tree.next_data(whole, mib(4) + 5).expect("seeks"), Some(mib(6)));
    assert_eq!(tree.next_hole(whole, mib(6)).expect("seeks"), Some(mib(8)));
    assert_eq!(tree.next_data(whole, mib(8)).expect("seeks"), None);
    let part = open("vda.p1.img");
    assert_eq!(tree.next_hole(part, 0).expect("seeks"), Some(mib(1)));
    assert_eq!(tree.next_data(part, 77).expect("seeks"), Some(77));
    assert_eq!(tree.next_hole(part, mib(1)).expect("seeks"), None);
    let record = open("backup.json");
    assert_eq!(tree.next_data(record, 3).expect("seeks"), Some(3));
}

#[test]
fn a_partition_with_false_bounds_stays_inside_the_disk() {
    let fixture = Fixture::new();
    let mut lying = disk();
    // 4 GiB long, from the second MiB on.
    lying[458..462].copy_from_slice(&[0, 0, 128, 0]);
    fixture.backup("web1", DAY, &[("vda", &lying)]);
    let tree = fixture.tree();
    let day = find(&tree, &["web1", DAY]).expect("is there");
    for name in tree.list(day.number).expect("lists") {
        let bytes = read(&tree, &["web1", DAY, &name.name]);
        assert!(bytes.len() <= lying.len());
    }
}
