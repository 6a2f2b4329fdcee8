//! Repositories as they were made when their format was released: each is read, checked, written to and pruned as ever.
//!
//! `scripts/golden` makes the archives; what is in one stands in its README.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::bytes::assert_same;
use crate::support::lab::{Lab, names_in, str_of, u64_of};
use crate::support::run::Said;
use crate::support::tools::{command, tool};

const ARCHIVES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");

/// An unpacked archive.
struct Golden {
    lab: Lab,
    dir: PathBuf,
    key: Vec<OsString>,
}

impl Golden {
    fn unpack(archive: &Path, key: impl Fn(&Path) -> Vec<OsString>) -> Self {
        let mut lab = Lab::without_repo();
        let dir = lab.subdir("golden");
        tool("tar", args!["--zstd", "-xf", archive, "-C", dir]);
        lab.use_repo(&dir.join("repo"));
        Self {
            key: key(&dir),
            lab,
            dir,
        }
    }

    fn run(&self, args: Vec<OsString>) -> Said {
        let mut all = self.key.clone();
        all.extend(args);
        self.lab.run(all)
    }

    #[track_caller]
    fn ok(&self, args: Vec<OsString>) -> Said {
        self.run(args).done()
    }

    /// The images, as `GUEST@TIME` and the disk.
    fn images(&self) -> Vec<(String, String)> {
        let sums = fs::read_to_string(self.dir.join("sums")).expect("reads");
        let image = |line: &str| {
            let name = line.split_whitespace().nth(1).expect("a hash and a name");
            let (spec, disk) = name
                .strip_suffix(".img")
                .and_then(|name| name.rsplit_once('.'))
                .expect("a name");
            (spec.to_owned(), disk.to_owned())
        };
        sums.lines().map(image).collect()
    }

    /// The files that were kept with backups, as `GUEST@TIME/FILE`, and their hashes. Records of format 1 have none.
    fn files(&self) -> Vec<(String, String)> {
        let sums = fs::read_to_string(self.dir.join("files")).unwrap_or_default();
        let file = |line: &str| {
            let (sum, name) = line.split_once("  ").expect("a hash and a name");
            (name.to_owned(), sum.to_owned())
        };
        sums.lines().map(file).collect()
    }

    /// Restores all images into a new directory; they have the hashes that were noted.
    fn restore_all(&self, name: &str) -> PathBuf {
        let out = self.lab.subdir(name);
        for (spec, disk) in self.images() {
            self.ok(args![
                "-q",
                "restore",
                format!("{spec}/{disk}"),
                out.join(format!("{spec}.{disk}.img"))
            ]);
        }
        let mut sum = command(
            "sha256sum",
            args!["--check", "--strict", "--quiet", self.dir.join("sums")],
        );
        let checked = sum.current_dir(&out).output().expect("runs sha256sum");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        out
    }

    fn use_it(&self) {
        let listed = self.ok(args!["--json", "list"]).json();
        let listed = listed["backups"].as_array().expect("a list");
        let mut specs: Vec<_> = self.images().into_iter().map(|(spec, _)| spec).collect();
        specs.dedup();
        specs.sort();
        let [db, web_one, web_two] = &specs[..] else {
            panic!("{specs:?}");
        };
        let names: Vec<_> = listed.iter().map(|entry| str_of(entry, "backup")).collect();
        assert_eq!(names, specs);
        for entry in listed {
            assert_eq!(entry["protected"], str_of(entry, "backup") == *web_one, "{entry}");
            assert!(entry["proven"].is_string(), "{entry}");
        }
        self.ok(args!["verify"]);
        self.ok(args!["verify", "--without-key"]);
        let restored = self.restore_all("restored");

        let images = self.lab.subdir("images");
        self.ok(args!["mount", images]);
        let in_mount = |spec: &str, file: &str| images.join(spec.replace('@', "/")).join(file);
        let two = restored.join(format!("{web_two}.vda.img"));
        assert_same(&in_mount(web_two, "vda.img"), &two);
        assert_eq!(
            names_in(&in_mount(web_two, "")),
            ["backup.json", "vda.img", "vda.p1.img"]
        );
        for (file, sum) in self.files() {
            let (spec, name) = file.split_once('/').expect("a backup and a file");
            let sum_of = |path: &Path| tool("sha256sum", args![path]).split(' ').next().map(str::to_owned);
            assert_eq!(sum_of(&in_mount(spec, name)).as_ref(), Some(&sum), "{file}");
            let out = self.lab.path(name);
            fs::write(&out, self.ok(args!["show", spec, "--file", name]).stdout).expect("writes");
            assert_eq!(sum_of(&out).as_ref(), Some(&sum), "{file}");
        }
        self.lab.umount(&images);
        let files = self.lab.subdir("files");
        self.ok(args!["mount", web_one, "--files", files]);
        self.lab.note_hidden(&files);
        let text = fs::read_to_string(files.join("p1/etc/nginx.conf")).expect("reads");
        assert_eq!(text, "worker_processes auto;\n");
        self.lab.umount(&files);

        // What is stored is known again.
        let backed_up = self.ok(args!["--json", "backup", "web", two]).json();
        assert_eq!(u64_of(&backed_up, "new_bytes"), 0, "{backed_up}");
        self.ok(args!["forget", web_two]);
        let refused = self.run(args!["forget", web_one]);
        assert_ne!(refused.status.code(), Some(0), "it is protected: {refused}");
        self.ok(args!["forget", "--last-too", db]);
        self.ok(args!["prune", "--max-unused", "0"]);
        self.ok(args!["verify"]);
        let again = self.lab.path("again.img");
        for (spec, same) in [(web_one.as_str(), web_one), ("web@latest", web_two)] {
            self.ok(args!["restore", "--force", spec, again]);
            assert_same(&again, &restored.join(format!("{same}.vda.img")));
        }
        self.ok(args!["repair"]);
    }
}

/// The archives of one kind, of every format that was released.
fn archives(kind: &str) -> Vec<PathBuf> {
    let names = names_in(Path::new(ARCHIVES)).into_iter();
    let archives: Vec<_> = names
        .filter(|name| name.starts_with(kind))
        .map(|name| Path::new(ARCHIVES).join(name))
        .collect();
    assert!(!archives.is_empty(), "no {kind} archive in {ARCHIVES}");
    archives
}

#[test]
fn a_golden_repository_is_read_and_written() {
    for archive in archives("plain-") {
        Golden::unpack(&archive, |_| Vec::new()).use_it();
    }
}

#[test]
fn a_golden_encrypted_repository_is_read_and_written() {
    for archive in archives("encrypted-") {
        Golden::unpack(&archive, |dir| args!["--key-file", dir.join("key-file")]).use_it();
    }
}

#[test]
fn a_golden_encrypted_repository_opens_with_passphrase_and_recovery_key() {
    for archive in archives("encrypted-") {
        for way in ["passphrase", "recovery-key"] {
            let golden = Golden::unpack(&archive, |dir| args!["--passphrase-file", dir.join(way)]);
            golden.restore_all("restored");
        }
        let golden = Golden::unpack(&archive, |_| Vec::new());
        let said = golden.run(args!["key", "list"]).done();
        assert_eq!(said.text().lines().count(), 1 + 3, "{said}");
        golden.run(args!["list"]).code(1).says(&["encrypted", "no key"]);
    }
}

#[test]
fn at_least_one_golden_repository_has_files() {
    let all = archives("plain-").into_iter();
    let files = all.map(|archive| Golden::unpack(&archive, |_| Vec::new()).files().len());
    assert_eq!(files.max(), Some(2));
}

#[test]
fn a_repository_of_a_newer_format_is_refused_by_every_command() {
    for archive in archives("plain-") {
        let golden = Golden::unpack(&archive, |_| Vec::new());
        let marker = golden.dir.join("repo/vbk-repository");
        let text = fs::read_to_string(&marker).expect("reads");
        let format = |text: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix("format: ")?.parse::<u32>().ok())
        };
        let number = format(&text).expect("a format");
        fs::write(&marker, text.replace(&format!("format: {number}"), "format: 4000000")).expect("writes");
        let (dir, disk) = (golden.lab.subdir("dir"), golden.lab.path("disk"));
        fs::write(&disk, [0; 512]).expect("writes");
        for args in [
            args!["list"],
            args!["show", "web@latest"],
            args!["backup", "web", disk],
            args!["restore", "web@latest", golden.lab.path("out")],
            args!["mount", dir],
            args!["verify"],
            args!["verify", "--without-key"],
            args!["repair"],
            args!["prune"],
            args!["forget", "web@latest"],
        ] {
            golden.run(args).code(1).says(&["format 4000000", "use a newer vbk"]);
        }
        // Nothing was done to it.
        fs::write(&marker, text).expect("writes");
        golden.restore_all("restored");
    }
}
