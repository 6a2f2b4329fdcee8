//! Random work on one repository, killed at random moments: nothing acknowledged is lost, nothing else appears, and
//! what the killed runs left does not add up.
//!
//! VBK_KILLS says how many kills must hit (20 without it), VBK_SEED which sequence; `scripts/crash` sets both. The
//! sequence of operations is the same for the same seed; the moments are not quite, because they hang on the machine.
//!
//! SIGKILL loses nothing that reached the kernel, so this proves the order of writes only as far as one process sees
//! it; what a loss of power leaves is another proof.

mod checks;
mod content;
mod model;
mod served;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use self::content::{Content, Dice};
use self::model::{Id, Listed, Model};
use crate::support::bytes::{KIB, MIB};
use crate::support::lab::{Lab, names_in, str_of};
use crate::support::run::Said;

const GUESTS: usize = 4;
/// More backups than that are not kept, so that all of them can be restored often.
const MOST_BACKUPS: usize = 20;
/// What a repository takes besides its blocks: 16 MiB of ballast. The rest of an empty one takes 150 KiB: options (twice 44),
/// tables and directories.
/// Lists of a few dozen backups, and the log that the last writer left, fit into the rest.
const FLOOR_BYTES: u64 = 17 * MIB;
/// Kills between two looks at everything. A lab of its own for each: its watchdog allows a few minutes.
const EPOCH: u64 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Backup,
    Forget,
    ForgetAndPrune,
    Prune,
    Protect,
    Verify,
}

#[derive(Debug, Clone)]
enum Operation {
    Backup { guest: usize },
    ForgetNamed { ids: Vec<Id> },
    ForgetByPolicy { guest: usize, keep: usize, prune: bool },
    Prune { max_unused: &'static str },
    Protect { id: Id, protect: bool },
    Verify,
}

impl Operation {
    fn kind(&self) -> Kind {
        match self {
            Self::Backup { .. } => Kind::Backup,
            Self::ForgetNamed { .. } => Kind::Forget,
            Self::ForgetByPolicy { prune, .. } => match prune {
                true => Kind::ForgetAndPrune,
                false => Kind::Forget,
            },
            Self::Prune { .. } => Kind::Prune,
            Self::Protect { .. } => Kind::Protect,
            Self::Verify => Kind::Verify,
        }
    }
}

/// When a run is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    After(Duration),
    /// As soon as so many entries came or went in a directory: files written by a flush or a compaction in `store`, a
    /// new state being shown to readers in `views`.
    Changes {
        directory: &'static str,
        count: usize,
    },
}

struct Guest {
    name: String,
    content: Rc<Content>,
}

/// A mount from before, with every image opened before anything was removed.
struct Held {
    dir: PathBuf,
    images: Vec<(String, File, Rc<Content>)>,
    steps: u32,
}

#[derive(Debug, Default)]
struct Figures {
    kills: u64,
    by_kind: BTreeMap<Kind, (u64, u64)>,
    appeared: u64,
    vanished: u64,
    restored: u64,
    read_from_mounts: u64,
    compared_bytes: u64,
    verified: u64,
    space_checks: u64,
    most_over_bytes: u64,
}

struct Driver<'a> {
    lab: Lab,
    home: &'a Path,
    dice: Dice,
    key: Vec<OsString>,
    guests: Vec<Guest>,
    model: Model,
    took: BTreeMap<Kind, Duration>,
    held: Option<Held>,
    figures: Figures,
    trace: &'a Trace,
}

/// What was done, printed when it ends in a failure.
struct Trace {
    seed: u64,
    kills: u64,
    lines: std::cell::RefCell<Vec<String>>,
}

impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.lines.borrow();
            let last = &lines[lines.len().saturating_sub(25)..];
            eprintln!("the last of {} steps:\n{}", lines.len(), last.join("\n"));
            eprintln!("again: scripts/crash --kills {} --seed {}", self.kills, self.seed);
        }
    }
}

fn number_from(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Prints a line for `scripts/crash`.
fn print_progress(kills: u64, wanted: u64, seed: u64) {
    println!("progress: {kills} of {wanted} kills, seed {seed}");
}

#[test]
fn acknowledged_backups_survive_random_kills() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let trace = Trace {
        seed: number_from("VBK_SEED").unwrap_or_else(|| now.expect("after 1970").as_secs()),
        kills: number_from("VBK_KILLS").unwrap_or(20),
        lines: std::cell::RefCell::default(),
    };
    let mut name = tempfile::Builder::new();
    let home = name.prefix("vbk-e2e-kills-").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    let home: TempDir = home.expect("makes a directory");
    let started = Instant::now();
    let mut driver = Driver::new(home.path(), &trace);
    while driver.figures.kills < trace.kills {
        let end = trace.kills.min(driver.figures.kills + EPOCH);
        while driver.figures.kills < end {
            driver.step();
        }
        driver.check_everything();
        print_progress(driver.figures.kills, trace.kills, trace.seed);
        driver.lab = driver.new_lab();
    }
    driver.print_figures(started.elapsed());
}

impl<'a> Driver<'a> {
    fn new(home: &'a Path, trace: &'a Trace) -> Self {
        let mut dice = Dice::new(trace.seed);
        let names = (1..=GUESTS).map(|number| format!("web{number}"));
        let guest = |name| Guest {
            name,
            content: Rc::new(Content::new(&mut dice)),
        };
        let guests = names.map(guest).collect();
        let mut driver = Self {
            lab: Lab::below(home),
            home,
            dice,
            key: Vec::new(),
            guests,
            model: Model::default(),
            took: BTreeMap::new(),
            held: None,
            figures: Figures::default(),
            trace,
        };
        driver.lab = driver.new_lab();
        // With blocks of 16 MiB a run has several of the windows that a prune works on.
        let block_size = *driver.dice.pick(&["64K", "1M", "16M"]);
        let mut init = args!["init", "--block-size", block_size];
        if trace.seed.is_multiple_of(2) {
            driver.key = args!["--key-file", home.join("key")];
            init.extend(args!["--encrypt", "--no-recovery-key"]);
        }
        driver.note(format!("{init:?}"));
        driver.ok(init);
        driver
    }

    fn new_lab(&self) -> Lab {
        let mut lab = Lab::below(self.home);
        lab.use_repo(&self.home.join("repo"));
        lab
    }

    fn note(&self, line: String) {
        self.trace.lines.borrow_mut().push(line);
    }

    fn with_key(&self, args: Vec<OsString>) -> Vec<OsString> {
        self.key.iter().cloned().chain(args).collect()
    }

    fn ok(&self, args: Vec<OsString>) -> String {
        self.lab.ok(self.with_key(args))
    }

    fn json(&self, args: Vec<OsString>) -> Value {
        self.lab.json(self.with_key(args))
    }

    /// One operation, killed or not, and what must be true after it.
    fn step(&mut self) {
        let operation = self.choose();
        let moment = self.dice.percent(75).then(|| self.moment(operation.kind()));
        self.note(format!("{:4} {operation:?} {moment:?}", self.figures.kills));
        let (said, is_whole) = self.carry_out(&operation, moment);
        match is_whole {
            true => self.acknowledged(&operation, &said.went_well()),
            false => self.killed(&operation),
        }
        let settled = is_whole && operation.kind() != Kind::Verify;
        self.see(settled);
        if !is_whole {
            self.check_after_kill();
        }
        if let Some(held) = &mut self.held {
            held.steps += 1;
            if held.steps > 4 {
                self.check_held_mount();
            }
        } else if self.dice.percent(8) {
            self.hold_mount();
        }
    }

    fn choose(&mut self) -> Operation {
        let certain = self.model.certain();
        let named: Vec<_> = certain
            .into_iter()
            .filter(|id| self.model.kept[id].protected == Some(false))
            .collect();
        let guest = self.dice.index(GUESTS);
        let roll = self.dice.below(100);
        if self.model.kept.len() > MOST_BACKUPS {
            return Operation::ForgetByPolicy {
                guest: self.fullest_guest(),
                keep: 1,
                prune: roll < 50,
            };
        }
        match roll {
            45..60
                if self
                    .model
                    .kept
                    .values()
                    .any(|kept| kept.guest == self.guests[guest].name && kept.certain) =>
            {
                Operation::ForgetByPolicy {
                    guest,
                    keep: 1 + self.dice.index(3),
                    prune: roll < 50,
                }
            }
            60..67 if named.len() > 2 => {
                let mut ids: Vec<_> = (0..=self.dice.index(3))
                    .map(|_| self.dice.pick(&named).clone())
                    .collect();
                ids.sort();
                ids.dedup();
                Operation::ForgetNamed { ids }
            }
            67..87 => Operation::Prune {
                max_unused: self.dice.pick::<&str>(&["0%", "5%", "30%", "100%"]),
            },
            87..93 if !named.is_empty() => Operation::Protect {
                id: self.dice.pick(&named).clone(),
                protect: true,
            },
            93..96 => {
                let protected = |id: &Id| self.model.kept[id].protected == Some(true);
                let protected = self.model.certain().into_iter().find(protected);
                protected.map_or(Operation::Verify, |id| Operation::Protect { id, protect: false })
            }
            96.. => Operation::Verify,
            _ => Operation::Backup { guest },
        }
    }

    fn fullest_guest(&self) -> usize {
        let count = |guest: &usize| self.model.of_guest(&self.guests[*guest].name).len();
        (0..GUESTS).max_by_key(count).expect("there are guests")
    }

    /// Anywhere in the run, or where it commits, shows readers its work, or removes files.
    fn moment(&mut self, kind: Kind) -> Moment {
        let took = self.took.get(&kind).copied().unwrap_or(Duration::from_millis(80));
        match self.dice.below(10) {
            0..4 => Moment::After(took.mul_f64(self.dice.share() * 1.1)),
            4..6 => Moment::After(took.mul_f64(0.7 + self.dice.share() * 0.4)),
            6..8 => Moment::Changes {
                directory: "store",
                count: 1 + self.dice.index(16),
            },
            _ => Moment::Changes {
                directory: "views",
                count: 1 + self.dice.index(6),
            },
        }
    }

    fn command(&mut self, operation: &Operation) -> Vec<OsString> {
        let name_of = |id: &Id| self.model.kept[id].name.clone();
        let args = match operation {
            Operation::Backup { guest } => {
                let other = Rc::clone(&self.dice.pick(&self.guests).content);
                let guest = &mut self.guests[*guest];
                let mut content = (*guest.content).clone();
                content.change(&mut self.dice, &other);
                guest.content = Rc::new(content);
                let disk = self.lab.path("disk.img");
                guest.content.write(&disk);
                let compression = self.dice.pick::<&str>(&["1", "3", "none"]);
                args!["backup", guest.name, disk, "--raw", "--compression", compression]
            }
            Operation::ForgetNamed { ids } => {
                let names = ids.iter().map(|id| name_of(id).into());
                ["forget".into(), "--last-too".into()]
                    .into_iter()
                    .chain(names)
                    .collect()
            }
            Operation::ForgetByPolicy { guest, keep, prune } => {
                let mut args = args![
                    "forget",
                    self.guests[*guest].name,
                    "--changed-too",
                    "--keep-last",
                    keep.to_string()
                ];
                args.extend(prune.then(|| "--prune".into()));
                args
            }
            Operation::Prune { max_unused } => args!["prune", "--max-unused", max_unused],
            Operation::Protect { id, protect: true } => args!["protect", name_of(id)],
            Operation::Protect { id, protect: false } => args!["unprotect", name_of(id)],
            Operation::Verify => args!["verify"],
        };
        std::iter::once("--json".into()).chain(args).collect()
    }

    /// Gives what was said, and whether it came to its end.
    fn carry_out(&mut self, operation: &Operation, moment: Option<Moment>) -> (Said, bool) {
        let args = self.command(operation);
        let started = Instant::now();
        let watched = moment.and_then(|moment| match moment {
            Moment::Changes { directory, .. } => Some(names_in(&self.lab.repo().join(directory))),
            Moment::After(_) => None,
        });
        let mut running = self.lab.start(self.with_key(args));
        match moment {
            Some(Moment::After(time)) => std::thread::sleep(time),
            Some(Moment::Changes { directory, count }) => {
                let (mut last, mut changes) = (watched.expect("looked at before"), 0);
                while changes < count && !running.has_ended() {
                    let now = names_in(&self.lab.repo().join(directory));
                    changes += now.iter().filter(|name| !last.contains(name)).count();
                    changes += last.iter().filter(|name| !now.contains(name)).count();
                    last = now;
                }
            }
            None => {}
        }
        if moment.is_some() && !running.has_ended() {
            running.signal(Signal::SIGKILL);
        }
        let said = running.wait();
        let is_whole = said.status.code().is_some();
        if is_whole {
            let now = started.elapsed();
            let took = self.took.entry(operation.kind()).or_insert(now);
            *took = took.mul_f64(0.7) + now.mul_f64(0.3);
        }
        let (killed, done) = self.figures.by_kind.entry(operation.kind()).or_default();
        match is_whole {
            true => *done += 1,
            false => *killed += 1,
        }
        self.figures.kills += u64::from(!is_whole);
        (said, is_whole)
    }

    fn acknowledged(&mut self, operation: &Operation, said: &Said) {
        match operation {
            Operation::Backup { guest } => self.model.made(&said.json(), &self.guests[*guest].content),
            Operation::ForgetNamed { ids } => ids.iter().for_each(|id| self.model.forgotten(id)),
            Operation::ForgetByPolicy { keep, prune, .. } => {
                let answer = said.json();
                assert_eq!(answer["prune"].is_object(), *prune, "{answer}");
                self.judged(&answer["backups"], *keep);
            }
            Operation::Protect { id, protect } => {
                self.model.kept.get_mut(id).expect("chosen from these").protected = Some(*protect);
            }
            Operation::Prune { .. } | Operation::Verify => {}
        }
    }

    /// A policy must have forgotten just what it says, and nothing that is protected.
    fn judged(&mut self, verdicts: &Value, keep: usize) {
        let mut verdicts: Vec<_> = verdicts.as_array().expect("a verdict for each").iter().collect();
        verdicts.sort_by_key(|verdict| std::cmp::Reverse(str_of(verdict, "backup")));
        for (rank, verdict) in verdicts.into_iter().enumerate() {
            let name = str_of(verdict, "backup");
            // One that a killed run made may be unknown here; it is the newest and stays.
            let id = self.model.id_of(&name);
            let protected = id.as_ref().and_then(|id| self.model.kept[id].protected);
            let forgets = str_of(verdict, "action") == "forget";
            match protected {
                Some(protected) => assert_eq!(forgets, rank >= keep && !protected, "{name}: {verdict}"),
                None => assert!(!forgets || rank >= keep, "{name}: {verdict}"),
            }
            if forgets {
                let id = id.unwrap_or_else(|| panic!("{name} was forgotten and nobody made it"));
                self.model.forgotten(&id);
            }
        }
    }

    fn killed(&mut self, operation: &Operation) {
        match operation {
            Operation::Backup { guest } => {
                let guest = &self.guests[*guest];
                self.model.may_be_made(&guest.name, &guest.content);
            }
            Operation::ForgetNamed { ids } => self.model.may_be_forgotten(ids),
            Operation::ForgetByPolicy { guest, keep, .. } => {
                self.model.may_be_forgotten_by_policy(&self.guests[*guest].name, *keep);
            }
            Operation::Protect { id, .. } => {
                self.model.kept.get_mut(id).expect("chosen from these").protected = None;
            }
            Operation::Prune { .. } | Operation::Verify => {}
        }
    }

    fn listed(&self) -> Vec<Listed> {
        Listed::all(&self.json(args!["list"]))
    }
}
