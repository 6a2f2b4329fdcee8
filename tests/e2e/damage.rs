//! Bytes in the repository that are no longer what was written: found, named, never given out, and no harm to the rest.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde_json::Value;

use crate::support::bytes::{KIB, MIB, assert_is_noise, assert_same_range, noise_bytes, read_at, size_of, write_noise};
use crate::support::disk::LoopDevice;
use crate::support::lab::{Lab, names_in, str_of, u64_of};
use crate::support::tools::tool;

const SIZE: u64 = 48 * MIB;
/// The page that is damaged: the fifth of its block.
const BLOCK_AT: u64 = 20 * MIB;
const PAGE: u64 = 64 * KIB;
const PAGE_AT: u64 = BLOCK_AT + 4 * PAGE;

/// A file of the store and a place in it.
pub struct Place {
    file: PathBuf,
    offset: u64,
}

impl Place {
    /// Where these bytes are in the blob files.
    pub fn of(repo: &Path, needle: &[u8]) -> Self {
        for file in store_files(repo)
            .into_iter()
            .filter(|file| file.extension().is_some_and(|ext| ext == "blob"))
        {
            let bytes = fs::read(&file).expect("reads");
            let mut places = (0..bytes.len().saturating_sub(needle.len())).filter(|at| bytes[*at] == needle[0]);
            if let Some(at) = places.find(|at| bytes[*at..].starts_with(needle)) {
                return Self {
                    file,
                    offset: at as u64,
                };
            }
        }
        panic!("raw content is in no blob file");
    }

    /// Flips all bits of a byte, in all hard links of the file.
    pub fn flip(&self) {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.file)
            .expect("opens");
        let mut byte = [0];
        file.read_exact_at(&mut byte, self.offset).expect("reads");
        file.write_all_at(&[!byte[0]], self.offset).expect("writes");
        file.sync_all().expect("syncs");
    }
}

fn store_files(repo: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(repo.join("store")).expect("the store is a directory");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

/// A good guest and one whose only disk has a flipped byte.
struct Damaged {
    lab: Lab,
    place: Place,
    backup: String,
}

fn damaged() -> Damaged {
    let lab = Lab::new();
    for (seed, guest) in [(1, "good"), (2, "bad")] {
        write_noise(&lab.path(guest), seed, SIZE);
        lab.ok(args!["backup", guest, lab.path(guest), "--compression", "none"]);
    }
    let backup = str_of(&lab.json(args!["show", "bad@latest"]), "backup");
    let content = noise_bytes(2, PAGE_AT + PAGE);
    let in_page = (PAGE_AT + 30_000) as usize;
    let place = Place::of(lab.files(), &content[in_page..in_page + 32]);
    place.flip();
    Damaged { lab, place, backup }
}

#[test]
fn verify_names_backup_disk_and_offset_of_a_flipped_byte() {
    let Damaged { lab, backup, place } = damaged();
    let found = lab.run(args!["--json", "verify"]).code(4).json();
    let damage = found["damage"].as_array().expect("a list");
    assert_eq!(damage.len(), 1, "{found}");
    assert_eq!(str_of(&damage[0], "backup"), backup);
    assert_eq!(str_of(&damage[0], "disk"), "vda");
    let (at, len) = (u64_of(&damage[0], "offset_bytes"), u64_of(&damage[0], "len_bytes"));
    assert!(at <= PAGE_AT && PAGE_AT + PAGE <= at + len && len <= MIB, "{found}");
    let said = lab.run(args!["verify"]).code(4);
    let text = said.text();
    for word in [backup.as_str(), "vda", &at.to_string()] {
        assert!(text.contains(word), "no {word} in\n{said}");
    }
    // One backup of several.
    lab.ok(args!["verify", "good@latest"]);
    lab.run(args!["verify", "bad@latest"]).code(4);
    // With the byte as it was all is good again.
    place.flip();
    lab.ok(args!["verify"]);
}

#[test]
fn only_the_page_of_a_flipped_byte_is_unreadable_in_a_mount() {
    let Damaged { lab, .. } = damaged();
    let dir = lab.subdir("images");
    let mounted = lab.json(args!["mount", dir]);
    let image = dir.join("bad/latest/vda.img");
    let content = noise_bytes(2, SIZE);
    let file = File::open(&image).expect("opens");
    let errno = |at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, at)
            .err()
            .and_then(|error| error.raw_os_error())
    };
    for (at, len) in [
        (PAGE_AT, PAGE),
        (PAGE_AT, 1),
        (PAGE_AT + 30_000, 1),
        (PAGE_AT + PAGE - 1, 1),
    ] {
        assert_eq!(errno(at, len), Some(Errno::EIO as i32), "{len} bytes at {at}");
    }
    for page in 0..SIZE / PAGE {
        let at = page * PAGE;
        if at != PAGE_AT {
            let expected = &content[at as usize..(at + PAGE) as usize];
            let bytes = read_at(&image, at, PAGE).unwrap_or_else(|error| panic!("page at {at}: {error}"));
            assert!(bytes == expected, "page at {at}");
        }
    }
    // A program that reads it all stops there, and had only true bytes before.
    let out = lab.path("dd.img");
    let (from, to) = (format!("if={}", image.display()), format!("of={}", out.display()));
    let dd = crate::support::tools::try_tool("dd", args![from, to, "bs=1M"]);
    assert!(!dd.status.success());
    assert!(String::from_utf8_lossy(&dd.stderr).contains("Input/output error"));
    assert_same_range(&out, 0, &lab.path("bad"), 0, size_of(&out));
    assert_is_noise(&dir.join("good/latest/vda.img"), 1, SIZE);
    drop(file);
    lab.umount(&dir);
    // Its log names the damage, and stays for people to read.
    let log = mounted["log"].as_str().expect("a log");
    let text = fs::read_to_string(log).expect("reads");
    assert!(
        text.contains("bad@") && text.contains("vda.img") && text.contains("block "),
        "{text}"
    );
    fs::remove_file(log).expect("removes");
}

#[test]
fn a_disk_with_a_flipped_byte_is_not_restored_and_the_others_are() {
    let Damaged { lab, .. } = damaged();
    let dir = lab.subdir("restored");
    let out = dir.join("out.img");
    let said = lab
        .run(args!["restore", "bad@latest", out])
        .says(&["damaged", "vbk verify"]);
    assert!(matches!(said.status.code(), Some(1 | 4)), "{said}");
    assert_eq!(names_in(&dir), Vec::<String>::new());
    // What is there already is not given up for it.
    fs::write(&out, "mine").expect("writes");
    let said = lab.run(args!["restore", "bad@latest", out, "--force"]);
    assert!(matches!(said.status.code(), Some(1 | 4)), "{said}");
    assert_eq!(fs::read_to_string(&out).expect("reads"), "mine");
    let said = lab.run(args!["restore", "bad@latest", "-"]);
    assert!(matches!(said.status.code(), Some(1 | 4)), "{said}");
    let content = noise_bytes(2, SIZE);
    assert!(
        content.starts_with(&said.stdout) && said.stdout.len() as u64 <= PAGE_AT,
        "only true bytes"
    );
    lab.ok(args!["restore", "good@latest", out, "--force"]);
    assert_is_noise(&out, 1, SIZE);
}

#[test]
fn shared_damage_is_named_for_each_backup() {
    let Damaged { lab, .. } = damaged();
    // The next day has the same block; it is told that it is not to be had.
    lab.ok(args!["backup", "bad", lab.path("bad")]);
    let found = lab.run(args!["--json", "verify"]).code(4).json();
    let named: Vec<_> = found["damage"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|it| str_of(it, "backup"))
        .collect();
    let listed = lab.listed();
    assert_eq!(named, listed[..2], "both days of bad, not good: {found}");
}

/// Everything that can be asked of a repository with some damage: whatever the answer is, it is never wrong bytes.
fn assert_no_wrong_bytes(lab: &Lab, what: &str) -> bool {
    let verified = lab.run(args!["--json", "verify"]);
    let code = verified.status.code();
    assert!(matches!(code, Some(0 | 1 | 4)), "{what}: {verified}");
    let mut intact = code == Some(0);
    for (seed, guest) in [(1, "one"), (2, "two")] {
        let out = lab.path("out.img");
        let said = lab.run(args!["restore", format!("{guest}@latest"), out, "--force"]);
        match said.status.code() {
            Some(0) => assert_is_noise(&out, seed, size_of(&lab.path(guest))),
            Some(1 | 4) => {
                assert_ne!(code, Some(0), "{what}: verify found nothing, but {said}");
                intact = false;
            }
            _ => panic!("{what}: {said}"),
        }
        let _ = fs::remove_file(out);
    }
    intact
}

/// With its hard links, in the place of what is there.
fn copy_repository(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).expect("removes");
    }
    tool("cp", args!["-a", from, to]);
}

/// A repository whose files are damaged one after the other; each file is put back from a copy.
fn every_file(harm: impl Fn(&File, u64)) {
    let lab = Lab::new();
    for (seed, guest) in [(1, "one"), (2, "two")] {
        write_noise(&lab.path(guest), seed, 3 * MIB + 512);
        lab.ok(args!["backup", guest, lab.path(guest), "--compression", "none"]);
    }
    assert!(assert_no_wrong_bytes(&lab, "untouched"));
    let pristine = lab.path("pristine");
    copy_repository(lab.files(), &pristine);
    let mut found = Vec::new();
    for path in store_files(lab.files()) {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let size = size_of(&path);
        // Logs for people and options that are written anew; an empty file has nothing to damage.
        if size == 0 || name.starts_with("LOG") || name.starts_with("OPTIONS") {
            continue;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("opens");
        harm(&file, size);
        drop(file);
        if !assert_no_wrong_bytes(&lab, &name) {
            found.push(name);
        }
        // The whole of it, because what finds damage also notes it.
        copy_repository(&pristine, lab.files());
        lab.forget_known_repositories();
    }
    assert!(found.iter().any(|name| name.ends_with(".blob")), "found in {found:?}");
    assert!(found.iter().any(|name| name.ends_with(".sst")), "found in {found:?}");
    assert!(assert_no_wrong_bytes(&lab, "as it was"));
}

#[test]
fn a_flipped_byte_in_any_store_file_is_never_returned() {
    every_file(|file, size| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, size / 2).expect("reads");
        file.write_all_at(&[!byte[0]], size / 2).expect("writes");
    });
}

#[test]
fn a_truncated_store_file_is_never_returned_as_data() {
    every_file(|file, size| file.set_len(size / 2).expect("cuts"));
}

#[test]
fn a_zeroed_store_file_is_never_returned_as_data() {
    every_file(|file, size| file.write_all_at(&vec![0; size as usize], 0).expect("writes"));
}

#[test]
fn a_missing_store_file_is_a_clear_failure() {
    let lab = Lab::new();
    write_noise(&lab.path("disk.img"), 1, 4 * MIB);
    lab.ok(args!["backup", "web1", lab.path("disk.img"), "--compression", "none"]);
    let blob = Place::of(lab.files(), &noise_bytes(1, 32)).file;
    let name = blob.file_name().expect("a name").to_owned();
    let views = fs::read_dir(lab.files().join("views")).expect("is there");
    let mut links: Vec<_> = views.map(|view| view.expect("an entry").path().join(&name)).collect();
    links.push(blob);
    links.iter().for_each(|link| drop(fs::remove_file(link)));
    let said = lab.run(args!["verify"]);
    assert!(matches!(said.status.code(), Some(1 | 4)), "{said}");
    assert!(
        format!("{}{}", said.text(), said.stderr).contains(&*name.to_string_lossy()),
        "names the file: {said}"
    );
    let out = lab.path("out.img");
    let said = lab.run(args!["restore", "web1@latest", out]);
    assert!(matches!(said.status.code(), Some(1 | 4)) && !out.exists(), "{said}");
    let said: Value = serde_json::json!(names_in(lab.dir()));
    assert!(!said.to_string().contains(".vbk-"), "{said}");
}

/// The bad disk with other bytes in place of its damaged page.
fn with_page(page: &[u8]) -> Vec<u8> {
    let mut content = noise_bytes(2, SIZE);
    content[PAGE_AT as usize..(PAGE_AT + PAGE) as usize].copy_from_slice(page);
    content
}

#[test]
fn restore_with_skip_damaged_restores_the_rest_of_a_disk() {
    let Damaged { lab, .. } = damaged();
    let out = lab.path("out.img");
    lab.run(args!["restore", "bad@latest", out])
        .code(4)
        .says(&["--skip-damaged"]);
    let said = lab.run(args!["restore", "bad@latest", out, "--skip-damaged"]).code(4);
    let said = said.says(&[&format!("damaged at {PAGE_AT} bytes, 64 KiB"), "1 range", "zeros"]);
    assert!(
        fs::read(&out).expect("reads") == with_page(&[0; PAGE as usize]),
        "{said}"
    );
    let answer = lab
        .run(args![
            "--json",
            "restore",
            "bad@latest",
            out,
            "--force",
            "--skip-damaged"
        ])
        .code(4)
        .json();
    let damaged = answer["damaged"].as_array().expect("a list");
    assert_eq!(damaged.len(), 1, "{answer}");
    let range = (u64_of(&damaged[0], "offset_bytes"), u64_of(&damaged[0], "len_bytes"));
    assert_eq!(range, (PAGE_AT, PAGE));
    let said = lab.run(args!["restore", "bad@latest", "-", "--skip-damaged"]).code(4);
    assert!(said.stdout == with_page(&[0; PAGE as usize]));
    said.says(&["damaged at"]);
    // A good disk has nothing to skip.
    let good = lab.path("good.img");
    lab.ok(args!["restore", "good@latest", good, "--skip-damaged"]);
    assert_is_noise(&good, 1, SIZE);
}

#[test]
fn restore_can_keep_the_target_bytes_of_damaged_ranges() {
    let Damaged { lab, .. } = damaged();
    let own = noise_bytes(7, SIZE);
    let page = &own[PAGE_AT as usize..(PAGE_AT + PAGE) as usize];
    for how in ["file", "device"] {
        let target = lab.path(how);
        write_noise(&target, 7, SIZE);
        let device = (how == "device").then(|| LoopDevice::of_file(&target));
        let to = device.as_ref().map_or(&target, |device| &device.node);
        lab.run(args!["restore", "bad@latest", to, "--force", "--skip-damaged=keep"])
            .code(4)
            .says(&["damaged at", "as they were"]);
        if let Some(device) = device {
            device.detach();
        }
        assert!(fs::read(&target).expect("reads") == with_page(page), "{how}");
    }
    lab.run(args!["restore", "bad@latest", "-", "--skip-damaged=keep"])
        .code(2);
}

/// Names of the blob files in a directory.
fn blob_files(directory: &Path) -> Vec<String> {
    let mut names = names_in(directory);
    names.retain(|name| name.ends_with(".blob"));
    names
}

#[test]
fn a_store_that_lost_its_blob_files_is_damage_and_a_repair_puts_them_back() {
    let lab = Lab::new();
    write_noise(&lab.path("disk"), 1, 3 * MIB);
    lab.backup("web1", &lab.path("disk"));
    lab.end_server();
    let store = lab.files().join("store");
    let lost = blob_files(&store);
    assert!(!lost.is_empty());
    for name in &lost {
        fs::remove_file(store.join(name)).expect("removes");
    }
    for verify in [args!["verify"], args!["verify", "--without-key"]] {
        let said = lab.run(verify).code(4);
        lost.iter().fold(said, |said, name| {
            said.tells(&[name, "missing in store/", "`vbk repair` puts it back"])
        });
    }
    let said = lab.run(args!["verify"]).code(4);
    assert!(!said.text().contains("all good"), "{said}");
    let said = lab.run(args!["note", "web1@latest", "kept"]).code(0);
    if !lab.is_through_ssh() {
        said.says(&["files of the store are missing", "vbk repair"]);
    }
    let found = lab.run(args!["verify", "--json"]).code(4).json();
    assert_eq!(
        found["damaged_tables"].as_array().map(Vec::len),
        Some(lost.len()),
        "{found}"
    );
    // Readers have the files.
    let out = lab.path("out");
    lab.ok(args!["restore", "web1@latest", out]);
    assert_is_noise(&out, 1, 3 * MIB);
    lab.ok(args!["repair"]);
    assert_eq!(blob_files(&store), lost);
    lab.ok(args!["verify"]);
    lab.ok(args!["prune", "--max-unused", "0%"]);
    lab.ok(args!["verify"]);
}

#[test]
fn a_file_that_is_cut_short_is_noticed() {
    let lab = Lab::new();
    write_noise(&lab.path("disk"), 1, 3 * MIB);
    lab.backup("web1", &lab.path("disk"));
    lab.end_server();
    // All its links are cut with it.
    let store = lab.files().join("store");
    let file = OpenOptions::new().write(true).open(store.join(&blob_files(&store)[0]));
    file.and_then(|file| file.set_len(1000)).expect("cuts it");
    lab.run(args!["verify"]).code(4).tells(&["damaged"]);
}

#[test]
fn a_repository_without_its_views_works_and_makes_them_again() {
    let lab = Lab::new();
    write_noise(&lab.path("disk"), 1, MIB);
    lab.backup("web1", &lab.path("disk"));
    lab.end_server();
    let views = lab.files().join("views");
    let list = args!["list"];
    let backup = args!["backup", "web1", lab.path("disk")];
    for command in [args!["repair"], list, backup, args!["verify"], args!["prune"]] {
        fs::remove_dir_all(&views).expect("removes");
        lab.run(command).code(0);
        assert!(views.join("current").exists());
        lab.ok(args!["verify"]);
    }
    // Without the marker it may be a file system that is not mounted.
    fs::remove_dir_all(&views).expect("removes");
    fs::remove_file(lab.files().join("vbk-repository")).expect("removes");
    for command in [args!["list"], args!["repair"]] {
        lab.run(command).code(1).says(&["not a vbk repository"]);
    }
    assert!(!views.exists());
}
