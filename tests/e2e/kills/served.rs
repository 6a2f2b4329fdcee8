//! Backups, a forget and a prune run at once through one server, and the server or one of them is killed at a random moment. With
//! the next server the others go on: every backup that was not killed ends with 0, and nothing acknowledged is lost.

use std::fs::File;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;

use super::content::{Content, Dice};
use super::number_from;
use crate::support::lab::Lab;
use crate::support::run::Running;

const GUESTS: usize = 3;
/// More backups than that are not kept.
const MOST_BACKUPS: usize = 12;
/// Kills of one lab: its watchdog allows a few minutes.
const EPOCH: u64 = 10;
/// A round without a kill takes about this long.
const LONGEST: u64 = 1500;

/// A backup that is listed, and what its disk had.
struct Made {
    name: String,
    content: Rc<Content>,
}

#[test]
fn acknowledged_backups_survive_kills_of_the_server_and_of_its_clients() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = number_from("VBK_SEED").unwrap_or_else(|| now.expect("after 1970").as_secs());
    let wanted = number_from("VBK_KILLS").unwrap_or(6);
    eprintln!("seed {seed}");
    let mut dice = Dice::new(seed);
    let (mut kills, mut of_server, mut restored) = (0, 0, 0);
    let started = Instant::now();
    while kills < wanted {
        let mut epoch = Epoch::new(&mut dice);
        let end = wanted.min(kills + EPOCH);
        while kills < end {
            if let Some(is_server) = epoch.round(&mut dice) {
                kills += 1;
                of_server += u64::from(is_server);
            }
        }
        restored += epoch.end();
        super::print_progress(kills, wanted, seed);
    }
    println!(
        "figures: {kills} kills in {:.0} s, {of_server} of them of the server; {restored} backups restored and compared; seed {seed}",
        started.elapsed().as_secs_f64()
    );
}

/// One repository.
struct Epoch {
    lab: Lab,
    server: Option<Running>,
    contents: Vec<Rc<Content>>,
    made: Vec<Made>,
}

fn serve(lab: &Lab) -> Running {
    let mut server = lab.start_bare(args!["serve", lab.repo()]);
    server.wait_until_prints("is open for all commands");
    server
}

impl Epoch {
    fn new(dice: &mut Dice) -> Self {
        let lab = Lab::new();
        Self {
            server: Some(serve(&lab)),
            lab,
            contents: (0..GUESTS).map(|_| Rc::new(Content::new(dice))).collect(),
            made: Vec::new(),
        }
    }

    /// Some commands at once, and a kill. Returns whether it hit the server; `None` if all had ended before it.
    fn round(&mut self, dice: &mut Dice) -> Option<bool> {
        for number in 0..GUESTS {
            let mut changed = (*self.contents[number]).clone();
            changed.change(dice, &self.contents[(number + 1) % GUESTS]);
            self.contents[number] = Rc::new(changed);
        }
        let mut running: Vec<Running> = Vec::new();
        for (number, content) in self.contents.iter().enumerate() {
            let disk = self.lab.path(&format!("disk{number}.img"));
            content.write(&disk);
            running.push(self.lab.start(args!["backup", format!("web{number}"), disk, "--raw"]));
        }
        // A backup of this second may get the name of one that was forgotten in it.
        let second = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ").to_string();
        let older: Vec<_> = self
            .made
            .iter()
            .filter(|made| made.name.rsplit('@').next() < Some(&second))
            .collect();
        let forgotten = (older.len() > MOST_BACKUPS).then(|| {
            let name = older[dice.index(older.len())].name.clone();
            running.push(self.lab.start(args!["forget", name, "--last-too"]));
            name
        });
        running.push(self.lab.start(args!["prune", "--max-unused", "0%"]));
        std::thread::sleep(Duration::from_millis(dice.below(LONGEST)));
        let is_server = dice.percent(60);
        let victim = (!is_server).then(|| dice.index(running.len()));
        let hits = match victim {
            None => running.iter_mut().any(|one| !one.has_ended()),
            Some(victim) => !running[victim].has_ended(),
        };
        match victim {
            None => {
                let server = self.server.take().expect("runs");
                server.signal(Signal::SIGKILL);
                server.wait();
                self.server = Some(serve(&self.lab));
            }
            Some(victim) if hits => running[victim].signal(Signal::SIGKILL),
            Some(_) => {}
        }
        let prune = running.len() - 1;
        let mut acknowledged = [true; GUESTS];
        let mut was_forgotten = true;
        let mut said_by_forget = String::new();
        for (number, one) in running.into_iter().enumerate() {
            let said = one.wait();
            let was_killed = victim == Some(number) && hits;
            match number {
                // It is not asked again when its server is gone.
                _ if number == prune => assert!(was_killed || is_server || said.status.code() == Some(0), "{said}"),
                _ if was_killed && number < GUESTS => acknowledged[number] = false,
                _ if was_killed => was_forgotten = false,
                _ if number < GUESTS => drop(said.went_well()),
                _ => said_by_forget = said.code(0).to_string(),
            }
        }
        let forgotten = forgotten.map(|name| (name, was_forgotten));
        self.see(&acknowledged, forgotten, &said_by_forget);
        hits.then_some(is_server)
    }

    /// Compares the list with what was acknowledged in a round.
    fn see(&mut self, acknowledged: &[bool; GUESTS], forgotten: Option<(String, bool)>, said_by_forget: &str) {
        let listed = self.lab.listed();
        if let Some((name, is_sure)) = forgotten {
            let is_there = listed.contains(&name);
            assert!(
                !(is_there && is_sure),
                "{name} was forgotten, and is there: {said_by_forget}"
            );
            if !is_there {
                self.made.retain(|made| made.name != name);
            }
        }
        for made in &self.made {
            assert!(listed.contains(&made.name), "{} is lost", made.name);
        }
        let new: Vec<_> = listed
            .into_iter()
            .filter(|name| !self.made.iter().any(|made| made.name == *name))
            .collect();
        for (number, is_sure) in acknowledged.iter().enumerate() {
            let of = |name: &&String| name.starts_with(&format!("web{number}@"));
            let count = new.iter().filter(of).count();
            assert!(count == 1 || (count == 0 && !is_sure), "web{number}: {new:?}");
        }
        for name in new {
            let number: usize = name[3..4].parse().expect("the guest's number");
            let content = Rc::clone(&self.contents[number]);
            self.made.push(Made { name, content });
        }
        let verified = self.lab.json(args!["verify"]);
        assert_eq!(verified["damage"].as_array().map(Vec::len), Some(0), "{verified}");
    }

    /// Ends the server, and compares all backups.
    fn end(mut self) -> u64 {
        let server = self.server.take().expect("runs");
        server.signal(Signal::SIGTERM);
        server.wait().done();
        self.lab.ok(args!["prune", "--max-unused", "0%"]);
        self.lab.ok(args!["verify"]);
        let back = self.lab.path("back.img");
        for Made { name, content } in &self.made {
            self.lab.ok(args!["restore", name, back]);
            let file = File::open(&back).expect("was restored");
            content
                .compare(&file)
                .unwrap_or_else(|difference| panic!("{name}: {difference}"));
            std::fs::remove_file(&back).expect("removes");
        }
        self.made.len() as u64
    }
}
