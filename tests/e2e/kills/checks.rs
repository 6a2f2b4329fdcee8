//! What must be true of the repository after a kill, now and then, and at the end.

use std::fs::{self, File};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::content::Content;
use super::model::Id;
use super::{Driver, FLOOR_BYTES, Held, KIB, MIB};
use crate::support::lab::{names_in, u64_of};
use crate::support::tools::tool;

impl Driver<'_> {
    /// Lists, and holds the list against the model.
    pub(super) fn see(&mut self, settled: bool) {
        let listed = self.listed();
        let mut model = std::mem::take(&mut self.model);
        let answers = model.see(&listed, settled, |entry, content| {
            let restored = self.restore(&entry.name, content);
            self.note(format!("     appeared: {} {restored:?}", entry.name));
            restored.is_ok()
        });
        self.model = model;
        self.figures.appeared += answers.appeared;
        self.figures.vanished += answers.vanished;
    }

    /// Restores and compares; gives how many bytes.
    fn restore(&self, name: &str, content: &Content) -> Result<u64, String> {
        let out = self.lab.path("restored.img");
        self.ok(args!["restore", name, out, "--force"]);
        let compared = content.compare(&File::open(&out).expect("is there"));
        fs::remove_file(out).expect("removes");
        compared
    }

    fn check_backup(&mut self, id: &Id) {
        let kept = self.model.kept[id].clone();
        match self.restore(&kept.name, &kept.content) {
            Ok(bytes) => {
                self.figures.restored += 1;
                self.figures.compared_bytes += bytes;
            }
            Err(error) => panic!("{} restored is not what was backed up: {error}", kept.name),
        }
    }

    fn verify(&mut self) {
        self.ok(args!["verify"]);
        self.figures.verified += 1;
        // It notes what it found, so it is a writer and may have answered a question.
        self.see(false);
    }

    pub(super) fn check_after_kill(&mut self) {
        // A listed backup is whole, also one that a killed run was to forget.
        let ids: Vec<_> = self.model.kept.keys().cloned().collect();
        for _ in 0..2.min(ids.len()) {
            let id = self.dice.pick(&ids).clone();
            self.check_backup(&id);
        }
        self.verify();
    }

    /// All backups, and the space they take.
    pub(super) fn check_everything(&mut self) {
        if self.held.is_some() {
            self.check_held_mount();
        }
        let ids: Vec<_> = self.model.kept.keys().cloned().collect();
        ids.iter().for_each(|id| self.check_backup(id));
        self.verify();
        self.check_space();
        self.see(true);
        let ids = self.model.certain();
        ids.iter().for_each(|id| self.check_backup(id));
        self.verify();
    }

    fn check_space(&mut self) {
        let before = used_bytes(self.lab.repo());
        let pruned = self.json(args!["prune", "--max-unused", "0%"]);
        let live = u64_of(&pruned, "live_bytes");
        let used = used_bytes(self.lab.repo());
        let over = used.saturating_sub(live);
        self.note(format!(
            "     pruned to the last byte: {} KiB to {} KiB, live {} KiB",
            before / KIB,
            used / KIB,
            live / KIB
        ));
        let files = || tool("ls", args!["-lsi", self.lab.repo().join("store")]);
        assert!(
            used <= live + live / 10 + FLOOR_BYTES,
            "{used} bytes are used for {live} live ones; {pruned}\n{}",
            files()
        );
        let views = names_in(&self.lab.repo().join("views"));
        let number = views.first().expect("a view").clone();
        let pool = views
            .last()
            .filter(|name| name.starts_with("pool-"))
            .expect("a pool")
            .clone();
        assert_eq!(
            views,
            [number.clone(), format!("{number}.lock"), "current".into(), pool]
        );
        self.figures.space_checks += 1;
        self.figures.most_over_bytes = self.figures.most_over_bytes.max(over);
    }

    /// Mounts all backups and opens each image, reading nothing yet.
    pub(super) fn hold_mount(&mut self) {
        let listed = self.listed();
        let dir = self.lab.path("images");
        let _ = fs::create_dir(&dir);
        self.ok(args!["mount", dir]);
        let open = |entry: &super::Listed| {
            let time = entry.name.split_once('@').expect("GUEST@TIME").1;
            let image = dir.join(&entry.guest).join(time).join("vda.img");
            let file = File::open(&image).unwrap_or_else(|error| panic!("can't open {}: {error}", image.display()));
            (entry.name.clone(), file, Rc::clone(&self.model.kept[&entry.id].content))
        };
        let images = listed.iter().map(open).collect();
        self.note("     a mount is held".into());
        self.held = Some(Held { dir, images, steps: 0 });
    }

    /// What was opened before is all there, whatever was forgotten and pruned since.
    pub(super) fn check_held_mount(&mut self) {
        let held = self.held.take().expect("asked for where there is one");
        for (name, file, content) in &held.images {
            match content.compare(file) {
                Ok(bytes) => self.figures.compared_bytes += bytes,
                Err(error) => panic!("{name}, opened before, is not what was backed up: {error}"),
            }
            self.figures.read_from_mounts += 1;
        }
        drop(held.images);
        self.ok(args!["umount", held.dir]);
        self.note("     the held mount is read and gone".into());
    }

    /// `scripts/crash` shows these lines.
    pub(super) fn print_figures(&self, took: Duration) {
        let figures = &self.figures;
        println!(
            "figures: seed {}, {} kills in {:.0} s",
            self.trace.seed,
            figures.kills,
            took.as_secs_f64()
        );
        for (kind, (killed, done)) in &figures.by_kind {
            println!("figures: {kind:?}: {killed} killed, {done} came to their end");
        }
        println!(
            "figures: killed all the same done: {} backups made, {} forgotten",
            figures.appeared, figures.vanished
        );
        println!(
            "figures: {} backups restored, {} read from mounts held over prunes, {} MiB compared, {} verifications",
            figures.restored,
            figures.read_from_mounts,
            figures.compared_bytes / MIB,
            figures.verified
        );
        println!(
            "figures: {} times pruned to the last byte, at most {} KiB more used than live",
            figures.space_checks,
            figures.most_over_bytes / KIB
        );
    }
}

/// What a directory takes on its file system, hard links counted once.
fn used_bytes(dir: &Path) -> u64 {
    let kib = tool("du", args!["-sk", dir]);
    let kib = kib.split_whitespace().next().expect("a number");
    kib.parse::<u64>().expect("a number") * KIB
}
