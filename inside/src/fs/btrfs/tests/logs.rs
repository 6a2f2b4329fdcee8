//! Logs of fsync(2): copies of mounted file systems, compared with what the kernel shows after its own replay.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, XattrFlags};

use super::images::{Image, compare_without_times, random, run, text};
use crate::fs::FileTree;

fn sync(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

fn write(path: PathBuf, bytes: &[u8]) {
    fs::write(&path, bytes).unwrap();
    sync(&path);
}

/// A change and what it is.
type Named = (&'static str, fn(&Path));

/// Lets the kernel replay the log of a copy, and compares.
fn replays_like_the_kernel(image: &Image, what: &str) -> bool {
    let copy = image.copy();
    let fs = copy.open();
    let remarks = fs.remarks();
    // The kernel commits the transaction where a log can't express a change.
    if remarks.is_empty() {
        return false;
    }
    assert!(
        remarks[0].starts_with("the log tree was replayed ("),
        "{what}: {remarks:?}"
    );
    // The copy has the same identity, so the original must be unmounted: the caller saw to it.
    let mount = copy.mount("noatime");
    compare_without_times(&fs, mount.path());
    true
}

/// Makes a base, syncs it, lets `change` work, and keeps the devices as they are then.
fn logged(args: &[&str], options: &str, base: impl Fn(&Path), change: impl Fn(&Path)) -> Image {
    let image = Image::new(1, 128 << 20, args);
    let mount = image.mount(&format!("noatime,commit=300,{options}"));
    base(mount.path());
    run("btrfs", &["filesystem", "sync", mount.path().to_str().unwrap()]);
    change(mount.path());
    image.copy()
}

#[test]
fn synced_changes_of_files_are_replayed() {
    let base = |top: &Path| {
        fs::write(top.join("appended"), text(10_000, 1)).unwrap();
        fs::write(top.join("rewritten"), random(600_000, 2)).unwrap();
        fs::write(top.join("cut"), text(300_000, 3)).unwrap();
        fs::write(top.join("punched"), random(300_000, 4)).unwrap();
        fs::write(top.join("inline"), "short").unwrap();
        fs::write(top.join("not synced"), "old").unwrap();
        fs::write(top.join("tagged"), "old").unwrap();
        rustix::fs::lsetxattr(top.join("tagged"), "user.old", b"1", XattrFlags::empty()).unwrap();
    };
    let change = |top: &Path| {
        let open = |name: &str| File::options().write(true).open(top.join(name)).unwrap();
        write(top.join("new"), &text(200_000, 5));
        write(top.join("new inline"), b"few");
        fs::create_dir_all(top.join("dir/below")).unwrap();
        write(top.join("dir/below/new"), b"in new directories");
        let file = open("appended");
        file.write_all_at(&random(50_000, 6), 10_000).unwrap();
        file.sync_all().unwrap();
        let file = open("rewritten");
        for at in [100, 200_000, 599_000] {
            file.write_all_at(&text(30_000, at), at).unwrap();
        }
        file.sync_all().unwrap();
        let file = open("cut");
        file.set_len(12_345).unwrap();
        file.sync_all().unwrap();
        file.set_len(50_000).unwrap();
        file.sync_all().unwrap();
        let file = open("punched");
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, flags, 40_000, 100_000).unwrap();
        file.sync_all().unwrap();
        let file = open("inline");
        file.write_all_at(&random(9000, 7), 3).unwrap();
        file.sync_all().unwrap();
        fs::write(top.join("not synced"), "lost").unwrap();
        let path = top.join("tagged");
        rustix::fs::lremovexattr(&path, "user.old").unwrap();
        rustix::fs::lsetxattr(&path, "user.new", &random(500, 8), XattrFlags::empty()).unwrap();
        sync(&path);
    };
    let cases: [(&[&str], &str); 3] = [
        (&["-O", "^no-holes"], "compress-force=zstd"),
        (&["-O", "no-holes", "-n", "4096"], "compress=no"),
        (&["--csum", "sha256"], "nodatacow"),
    ];
    for (args, options) in cases {
        let image = logged(args, options, base, change);
        assert!(replays_like_the_kernel(&image, options), "{options}");
    }
}

#[test]
fn synced_changes_of_names_are_replayed() {
    let base = |top: &Path| {
        for dir in ["a", "b", "gone", "gone/below"] {
            fs::create_dir(top.join(dir)).unwrap();
        }
        for file in ["a/1", "a/2", "a/3", "a/linked", "b/1", "gone/file", "gone/below/file"] {
            fs::write(top.join(file), file).unwrap();
        }
        fs::hard_link(top.join("gone/below/file"), top.join("b/also")).unwrap();
    };
    let changes: [Named; 8] = [
        ("link", |top| {
            fs::hard_link(top.join("a/linked"), top.join("b/second")).unwrap();
            fs::hard_link(top.join("a/linked"), top.join(format!("b/{}", "x".repeat(250)))).unwrap();
            sync(&top.join("a/linked"));
        }),
        ("rename", |top| {
            fs::rename(top.join("a/1"), top.join("b/moved")).unwrap();
            sync(&top.join("b/moved"));
        }),
        ("rename in the directory", |top| {
            fs::rename(top.join("a/1"), top.join("a/moved")).unwrap();
            sync(&top.join("a/moved"));
        }),
        ("replace", |top| {
            fs::write(top.join("a/temporary"), random(5000, 1)).unwrap();
            sync(&top.join("a/temporary"));
            fs::rename(top.join("a/temporary"), top.join("a/2")).unwrap();
            sync(&top.join("a/2"));
        }),
        ("remove", |top| {
            fs::remove_file(top.join("a/1")).unwrap();
            fs::write(top.join("a/new"), "new").unwrap();
            symlink("new", top.join("a/link")).unwrap();
            sync(&top.join("a"));
        }),
        ("remove a tree", |top| {
            fs::remove_dir_all(top.join("gone")).unwrap();
            sync(top);
        }),
        ("many", |top| {
            for number in 0..300 {
                fs::write(top.join(format!("a/many {number}")), number.to_string()).unwrap();
            }
            sync(&top.join("a"));
            for number in 0..150 {
                fs::remove_file(top.join(format!("a/many {}", number * 2))).unwrap();
            }
            sync(&top.join("a"));
        }),
        ("rename a directory", |top| {
            fs::rename(top.join("gone/below"), top.join("a/below")).unwrap();
            fs::write(top.join("a/below/new"), "x").unwrap();
            sync(&top.join("a/below/new"));
            sync(&top.join("a"));
        }),
    ];
    let mut replayed = 0;
    for (what, change) in changes {
        let image = logged(&[], "compress=no", base, change);
        replayed += usize::from(replays_like_the_kernel(&image, what));
    }
    assert!(replayed >= 4, "only {replayed} had a log");
}

/// Numbers of a seed.
struct Choices(std::vec::IntoIter<u8>);

impl Choices {
    fn next(&mut self, below: usize) -> usize {
        usize::from(self.0.next().unwrap()) % below
    }
}

fn random_changes(top: &Path, seed: u64, steps: usize) {
    let mut choices = Choices(random(steps * 8, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into_iter());
    for _ in 0..steps {
        let dirs = ["", "a/", "b/", "a/c/"];
        let path = |choices: &mut Choices| {
            top.join(format!(
                "{}{}",
                dirs[choices.next(4)],
                ["f", "g", "h", "i"][choices.next(4)]
            ))
        };
        let one = path(&mut choices);
        let other = path(&mut choices);
        // Most of these fail now and then, because a file exists or does not.
        let _ = match choices.next(11) {
            0 | 1 => fs::write(&one, text(choices.next(40) * 500, seed)),
            2 => fs::remove_file(&one),
            3 => fs::rename(&one, &other),
            4 => fs::hard_link(&one, &other),
            5 => File::options().write(true).open(&one).and_then(|file| {
                file.write_all_at(&random(choices.next(20) * 700, seed), choices.next(200) as u64 * 100)
            }),
            6 => File::options()
                .write(true)
                .open(&one)
                .and_then(|file| file.set_len(choices.next(250) as u64 * 50)),
            7 => File::options().write(true).open(&one).and_then(|file| {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(
                    &file,
                    flags,
                    choices.next(5) as u64 * 4096,
                    8192,
                )?)
            }),
            8 => fs::create_dir(&other),
            _ => File::open(if choices.next(3) == 0 {
                one.parent().unwrap()
            } else {
                &one
            })
            .and_then(|file| file.sync_all()),
        };
    }
    let _ = File::open(top.join("f")).and_then(|file| file.sync_all());
    sync(top);
}

fn random_logs(seeds: std::ops::Range<u64>) -> usize {
    let base = |top: &Path| {
        fs::create_dir_all(top.join("a/c")).unwrap();
        fs::create_dir(top.join("b")).unwrap();
        for (name, len) in [("f", 100), ("a/f", 30_000), ("b/g", 9000), ("a/c/h", 5000)] {
            fs::write(top.join(name), text(len, len as u64)).unwrap();
        }
    };
    let replayed = seeds.filter(|seed| {
        let options = if seed % 2 == 0 {
            "compress=no"
        } else {
            "compress-force=lzo"
        };
        let image = logged(&[], options, base, |top| {
            random_changes(top, *seed, 10 + (*seed as usize % 30))
        });
        replays_like_the_kernel(&image, &format!("seed {seed}"))
    });
    replayed.count()
}

#[test]
fn random_changes_are_replayed_like_the_kernel() {
    assert!(random_logs(0..4) > 0);
}

/// `cargo test --release -p vbk-inside many_random -- --ignored`: some minutes.
#[test]
#[ignore = "takes minutes"]
fn many_random_changes_are_replayed_like_the_kernel() {
    assert!(random_logs(100..400) > 100);
}
