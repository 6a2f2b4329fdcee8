use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use vbk_repo::backup::Image;
use vbk_repo::block::{BlockIndex, BlockSize, Hashing, is_zero};
use vbk_repo::codec::{Compression, Sealer};
use vbk_repo::reader::ReadResources;
use vbk_repo::store::StoreWriter;
use vbk_repo::store::memory::MemoryStore;
use vbk_repo::writer::ImageWriter;

use super::*;
use crate::guest::volumes::{NewVolume, VolumesError, VolumesPlan, tags_of, volume_name};
use crate::host::program::Programs;
use crate::restore::Damaged;
use vbk_repo::ErrorKind;

const MIB: u64 = 1 << 20;
const EXTENT: u64 = 4 * MIB;

/// lvm2, with files for volumes: `vg0/NAME`, and its tags in `tags/NAME`. `fail/NAME` makes lvcreate fail before it did
/// anything, `late/NAME` after it, `stuck/NAME` lvremove.
const FAKES: [(&str, &str); 5] = [
    (
        "vgs",
        r#"[ "$last" = vg0 ] || { echo "Volume group \"$last\" not found" >&2; exit 5; }
echo '{"report":[{"vg":[{"vg_free":"'$(cat "$dir/free")'","vg_extent_size":"4194304"}]}]}'"#,
    ),
    (
        "lvs",
        r#"case $last in
vg0/pool0) cat "$dir/pool.json"; exit ;;
vg0/*) echo "Failed to find logical volume \"$last\"" >&2; exit 5 ;;
esac
rows=
for volume in $(ls "$dir/vg0"); do
    tags=$(cat "$dir/tags/$volume")
    case $select in '' | "lv_tags=$tags") rows="$rows,{\"lv_name\":\"$volume\",\"lv_tags\":\"$tags\"}" ;; esac
done
echo "{\"report\":[{\"lv\":[${rows#,}]}]}""#,
    ),
    (
        "lvcreate",
        r#"[ ! -e "$dir/fail/$name" ] || { echo "insufficient luck" >&2; exit 5; }
truncate --size="${size%b}" "$dir/vg0/$name"
echo "$addtag" >"$dir/tags/$name"
[ ! -e "$dir/late/$name" ] || { echo "udev did not answer" >&2; exit 5; }"#,
    ),
    (
        "lvremove",
        r#"volume=${last#vg0/}
[ ! -e "$dir/stuck/$volume" ] || { echo "$last is in use" >&2; exit 5; }
[ "$select" = "lv_tags=$(cat "$dir/tags/$volume")" ] && rm "$dir/vg0/$volume" "$dir/tags/$volume""#,
    ),
    (
        "lvchange",
        r#"[ "$deltag" = "$(cat "$dir/tags/${last#vg0/}")" ] && : >"$dir/tags/${last#vg0/}""#,
    ),
];

const OPTIONS: &str = r#"
echo "$(basename "$0") $*" >>"$dir/log"
while [ $# -gt 0 ]; do
    last=$1
    case $1 in
    --name) name=$2; shift ;;
    --addtag) addtag=$2; shift ;;
    --deltag) deltag=$2; shift ;;
    --size | --virtualsize) size=$2; shift ;;
    -S) select=$2; shift ;;
    esac
    shift
done
"#;

const POOL: &str = r#"{"report":[{"lv":[{"segtype":"thin-pool","lv_size":"104857600","data_percent":"40.00",
    "lv_metadata_size":"4194304","metadata_percent":"10.00","chunk_size":"65536","zero":"zero"}]}]}"#;

struct Host {
    dir: tempfile::TempDir,
    programs: Programs,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["bin", "vg0", "tags", "fail", "late", "stuck"] {
            fs::create_dir(dir.path().join(name)).expect("makes");
        }
        for (name, script) in FAKES {
            let path = dir.path().join("bin").join(name);
            let text = format!("#!/bin/sh\ndir={}\n{OPTIONS}\n{script}\n", dir.path().display());
            fs::write(&path, text).expect("writes");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets");
        }
        let path = std::env::var("PATH").expect("a path");
        let programs = Programs::found_in(format!("{}:{path}", dir.path().join("bin").display()));
        let host = Self { dir, programs };
        host.put("free", &(100 * MIB).to_string());
        host.put("pool.json", POOL);
        host.put("vg0/web1-root", "the first server");
        host.put("tags/web1-root", "");
        host
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).expect("writes");
    }

    fn plan(&self, names: &[&str]) -> VolumesPlan {
        let volume = |name: &&str| NewVolume {
            name: (*name).to_owned(),
            size_bytes: 6 * MIB + 5,
            data_bytes: 2 * MIB,
            block_bytes: MIB,
            tags: Vec::new(),
        };
        VolumesPlan {
            group: "vg0".into(),
            pool: None,
            volumes: names.iter().map(volume).collect(),
            tag_id: "a1b2".into(),
            devices: self.dir.path().to_owned(),
        }
    }

    fn volumes(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("vg0")).expect("lists");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    fn tags(&self, name: &str) -> String {
        let text = fs::read_to_string(self.dir.path().join("tags").join(name)).expect("reads");
        text.trim().to_owned()
    }

    fn log(&self, program: &str) -> Vec<String> {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let lines = log.lines().filter(|line| line.split(' ').next() == Some(program));
        lines.map(str::to_owned).collect()
    }

    fn size_of(&self, name: &str) -> u64 {
        fs::metadata(self.dir.path().join("vg0").join(name))
            .expect("stat")
            .len()
    }
}

fn image(plain: &[u8]) -> ImageReader {
    let store = Arc::new(MemoryStore::new(BlockSize::DEFAULT));
    let writer = ImageWriter::create(&*store, BlockSize::DEFAULT, plain.len() as u64);
    let mut sealer = Sealer::new(Compression::None).expect("a sealer");
    for (index, block) in (0..).zip(plain.chunks(MIB as usize)) {
        let slot = (!is_zero(block)).then(|| {
            let hashes = Hashing::Plain.block(block);
            store
                .put(vec![sealer.seal(block, &hashes).expect("seals")])
                .expect("puts");
            hashes.id
        });
        writer.set(BlockIndex(index), &[slot]).expect("sets");
    }
    let manifest = writer.finish().expect("finishes");
    let image: Image = serde_json::from_value(serde_json::json!({
        "disk": "vda", "source": "", "size_bytes": plain.len(), "manifest": manifest,
        "data_bytes": 0, "new_bytes": 0, "stored_bytes": 0
    }))
    .expect("an image");
    ImageReader::open(store, ReadResources::new(1), &image).expect("opens")
}

fn plain(seed: u8) -> Vec<u8> {
    let mut plain: Vec<u8> = (0..6 * MIB + 5).map(|at| (at % 251) as u8 ^ seed).collect();
    plain[MIB as usize..3 * MIB as usize].fill(0);
    plain
}

fn write_images<'a>(volumes: Volumes<'a>, images: &[ImageReader], cancel: bool) -> Result<Volumes<'a>> {
    let disks: Vec<_> = images
        .iter()
        .map(|image| DiskToWrite {
            name: "vda".into(),
            label: "web1@x/vda".into(),
            image,
            data_bytes: 0,
        })
        .collect();
    // The volumes are files here, and are replaced.
    let options = RestoreOptions {
        label: String::new(),
        format: Format::Raw,
        changes: None,
        force: true,
        overwrite: false,
        fill: Fill::Image,
        damaged: Damaged::Refuse,
        threads: 2,
    };
    write(volumes, &disks, &options, &AtomicBool::new(cancel), &()).map(|(volumes, _)| volumes)
}

#[test]
fn disks_are_written_to_new_volumes_which_lose_their_tag_at_the_end() {
    let host = Host::new();
    let mut plan = host.plan(&["web2-root", "web2-data"]);
    plan.volumes[0].tags = vec!["prod".into()];
    let volumes = plan.create(&host.programs).expect("makes");
    assert_eq!(host.tags("web2-root"), "vbk_restore_a1b2");
    assert_eq!(host.size_of("web2-data"), 2 * EXTENT, "a whole number of extents");
    let (one, two) = (plain(1), plain(2));
    let written = write_images(volumes, &[image(&one), image(&two)], false).expect("writes");
    assert_eq!(
        host.tags("web2-root"),
        "vbk_restore_a1b2",
        "until all is known to be good"
    );
    written.keep().expect("keeps");
    assert_eq!((host.tags("web2-root"), host.tags("web2-data")), ("".into(), "".into()));
    let tagged = host.log("lvchange");
    assert!(
        tagged[0].contains("--addtag prod") && !tagged[1].contains("--addtag"),
        "{tagged:?}"
    );
    let read = |name: &str| fs::read(host.dir.path().join("vg0").join(name)).expect("reads");
    assert!(read("web2-root") == one && read("web2-data") == two);
    assert!(host.log("lvremove").is_empty());
    let made = host.log("lvcreate");
    assert_eq!(
        made[0],
        "lvcreate --yes --name web2-root --addtag vbk_restore_a1b2 --size 8388608b --wipesignatures y --zero y -- vg0"
    );
}

#[test]
fn nothing_is_made_if_a_name_is_taken_or_there_is_no_room() {
    let host = Host::new();
    host.put("vg0/left", "");
    host.put("tags/left", "vbk_restore_0000");
    let refused = |plan: &VolumesPlan| plan.create(&host.programs).expect_err("is refused").to_string();
    let taken = refused(&host.plan(&["new", "web1-root"]));
    assert_eq!(taken, "vg0/web1-root exists; nothing was made");
    let left = refused(&host.plan(&["left"]));
    assert!(
        left.contains("did not end") && left.contains("lvremove vg0/left"),
        "{left}"
    );
    assert!(refused(&host.plan(&["a", "a"])).contains("two disks"));

    host.put("free", &(3 * EXTENT).to_string());
    let full = host.plan(&["a", "b"]).create(&host.programs).expect_err("is refused");
    assert_eq!(
        full.to_string(),
        "volume group vg0 has 12 MiB free, 16 MiB are needed; nothing was made"
    );
    assert_eq!(full.kind(), ErrorKind::NoSpace);
    let mut elsewhere = host.plan(&["a"]);
    elsewhere.group = "vg9".into();
    assert!(refused(&elsewhere).contains("not found"));
    for bad in ["-f", "vg0/x", ""] {
        elsewhere.group = bad.into();
        assert!(refused(&elsewhere).contains("volume group name"), "{bad}");
    }
    assert!(refused(&host.plan(&["--yes"])).contains("begins with a dash"));
    assert_eq!(host.volumes(), ["left", "web1-root"]);
    assert!(host.log("lvcreate").is_empty());
}

#[test]
fn a_failure_in_the_middle_removes_what_was_made_and_nothing_else() {
    let host = Host::new();
    for (dir, why) in [("fail", "insufficient luck"), ("late", "udev did not answer")] {
        host.put(&format!("{dir}/c"), "");
        // Another restore is running.
        host.put("vg0/other", "");
        host.put("tags/other", "vbk_restore_ffff");
        let plan = host.plan(&["a", "b", "c", "d"]);
        let error = plan.create(&host.programs).expect_err("fails").to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(host.volumes(), ["other", "web1-root"], "{dir}");
        fs::remove_file(host.dir.path().join(dir).join("c")).expect("removes");
    }
    for removal in host.log("lvremove") {
        assert!(
            removal.contains("-S lv_tags=vbk_restore_a1b2 -- vg0/"),
            "only by the tag: {removal}"
        );
    }
}

#[test]
fn an_interrupted_restore_leaves_no_volume() {
    let host = Host::new();
    let plan = host.plan(&["web2-root", "web2-data"]);
    let volumes = plan.create(&host.programs).expect("makes");
    let images = [image(&plain(1)), image(&plain(2))];
    let result = write_images(volumes, &images, true).map(drop);
    assert!(matches!(result, Err(crate::Error::Interrupted)), "{result:?}");
    assert_eq!(host.volumes(), ["web1-root"]);
}

#[test]
fn a_volume_that_can_not_be_removed_is_named() {
    struct Hears(parking_lot::Mutex<Vec<String>>);
    impl Observer for Hears {
        fn event(&self, event: Event<'_>) {
            if let Event::Warning(text) = event {
                self.0.lock().push(text.to_owned());
            }
        }
    }
    let host = Host::new();
    host.put("stuck/a", "");
    let plan = host.plan(&["a", "b"]);
    let volumes = plan.create(&host.programs).expect("makes");
    let heard = Hears(parking_lot::Mutex::default());
    let one = image(&plain(1));
    let disk = DiskToWrite {
        name: "vda".into(),
        label: String::new(),
        image: &one,
        data_bytes: 0,
    };
    let options = RestoreOptions {
        label: String::new(),
        format: Format::Raw,
        changes: None,
        force: true,
        overwrite: false,
        fill: Fill::Image,
        damaged: Damaged::Refuse,
        threads: 1,
    };
    let result = write(volumes, &[disk], &options, &AtomicBool::new(true), &heard);
    assert!(result.is_err());
    let heard = heard.0.into_inner();
    assert!(
        heard.len() == 1 && heard[0].contains("vg0/a") && heard[0].contains("is in use"),
        "{heard:?}"
    );
    assert_eq!(
        host.volumes(),
        ["a", "web1-root"],
        "the other one is removed all the same"
    );
}

#[test]
fn a_thin_pool_is_never_over_filled() {
    let host = Host::new();
    let mut plan = host.plan(&["a", "b"]);
    plan.pool = Some("pool0".into());
    let volumes = plan.create(&host.programs).expect("makes");
    assert!(volumes.read_zero(), "the pool zeroes what is new");
    volumes.remove().expect("removes");
    let made = host.log("lvcreate");
    assert_eq!(
        made[0],
        "lvcreate --yes --name a --addtag vbk_restore_a1b2 --virtualsize 8388608b --thinpool pool0 -- vg0"
    );

    let with = |from: &str, to: &str| {
        host.put("pool.json", &POOL.replace(from, to));
        plan.create(&host.programs).map(|volumes| {
            let read_zero = volumes.read_zero();
            volumes.remove().expect("removes");
            read_zero
        })
    };
    // 4 MiB of data in 2 volumes: 4 % of the pool.
    assert!(with("40.00", "95.99").is_ok());
    let full = with("40.00", "96.01").expect_err("is refused");
    assert!(
        matches!(full, VolumesError::PoolRoom { what: "data", need_bytes, .. } if need_bytes == 4 * MIB),
        "{full}"
    );
    // Without zeroing, all 12 MiB are written.
    assert!(!with("\"zero\":\"zero\"", "\"zero\":\"\"").expect("makes"));
    let metadata = with("10.00", "99.99").expect_err("is refused");
    assert!(metadata.to_string().contains("--poolmetadatasize"), "{metadata}");
    assert!(matches!(
        with("thin-pool", "linear"),
        Err(VolumesError::NotAPool { .. })
    ));
    assert!(with("40.00", "").is_err(), "a pool that tells nothing");
    assert_eq!(host.volumes(), ["web1-root"]);
}

#[test]
fn new_volumes_have_the_tags_that_still_mean_them() {
    let old = [
        "vbk_guest=web1/vda",
        "vbk_guest=other/vda",
        "prod",
        "vbk",
        "vbk_host_0a",
        "vbk_restore_a1b2",
        "-x",
        "a b",
        "",
    ];
    let of = |guest| tags_of(&old.map(str::to_owned), "web1", guest);
    assert_eq!(of("web1"), ["vbk_guest=web1/vda", "prod"]);
    assert_eq!(of("web2"), ["vbk_guest=web2/vda"]);
    assert_eq!(of("mün"), [] as [&str; 0], "lvm2 has no such tags");
}

#[test]
fn new_volumes_are_named_after_the_old_ones() {
    for (old, disk, name) in [
        (Some("web1-root"), "vda", "web2-root"),
        (Some("prod_web1_root"), "vda", "prod_web2_root"),
        (Some("web1"), "vda", "web2"),
        (Some("web10-root"), "vda", "web2-vda"),
        (Some("web10-web1"), "vda", "web10-web2"),
        (Some("lvol0"), "vdb", "web2-vdb"),
        (None, "vdb", "web2-vdb"),
    ] {
        assert_eq!(volume_name(old, "web1", "web2", disk).expect("a name"), name, "{old:?}");
    }
    assert_eq!(
        volume_name(Some("web1-root"), "web1", "web1", "vda").expect("a name"),
        "web1-root"
    );
    // A lost volume is restored under its own name, whatever that is.
    assert_eq!(
        volume_name(Some("lvol0"), "web1", "web1", "vda").expect("a name"),
        "lvol0"
    );
    for (guest, disk) in [("münchen", "vda"), ("web2", "vd+ä"), ("web2_tmeta", "vda")] {
        assert!(volume_name(None, "web1", guest, disk).is_err(), "{guest}");
    }
}

#[test]
fn without_lvm2_the_package_is_named() {
    let host = Host::new();
    let programs = Programs::found_in(Path::new("/nonexistent"));
    let error = host.plan(&["a"]).check(&programs).expect_err("fails");
    assert!(error.to_string().contains("apt install lvm2"), "{error}");
}
