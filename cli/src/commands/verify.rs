//! `vbk verify`

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use vbk_repo::ErrorKind;
use vbk_repo::backup::Entry;
use vbk_repo::catalogue::Catalogue;
use vbk_repo::id::BlockId;
use vbk_repo::repository::directory::store_repair::check_tables;
use vbk_repo::repository::{Manager, Repository};
use vbk_repo::state::{PartRead, Rotation, States, note_of, note_of_rotation};
use vbk_repo::store::StoreReader;
use vbk_repo::verify::{Damage, VerifyReport, part_of, verify};

use crate::args::VerifyArgs;
use crate::commands::unreadable_notes;
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::signals;
use crate::terminal::progress::{Progress, Words};
use crate::terminal::units;

/// The longest rotation.
const MAX_ROTATION_DAYS: usize = 366;

/// How long to wait for another writer before the result is not noted.
const NOTE_TIMEOUT: Duration = Duration::from_secs(2);

/// Places that are printed without -v; --json has all of them.
const SHOWN: usize = 50;

#[derive(Serialize)]
struct Report<'a> {
    backups: u64,
    blocks: u64,
    bytes: u64,
    damage: Vec<DamageJson<'a>>,
    damaged_records: Vec<String>,
    damaged_tables: Vec<String>,
}

/// A damaged place.
#[derive(Serialize)]
pub struct DamageJson<'a> {
    backup: &'a str,
    disk: &'a str,
    offset_bytes: u64,
    len_bytes: u64,
    what: &'a str,
}

/// Verifies backups.
pub fn run(context: &Context<'_>, args: &VerifyArgs) -> Result<Outcome> {
    if args.without_key {
        return check_stored(context);
    }
    let clock = Instant::now();
    let started = jiff::Timestamp::now();
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let repository = context.repository()?;
    let view = context.view_of(&repository)?;
    let (catalogue, states) = (view.catalogue()?, view.states()?);
    let entries = choose(&catalogue, args)?;
    let mut scope = Scope::new(args, states.rotation.clone(), started)?;
    let total = new_bytes(&entries);
    let progress = Progress::new(context.quiet(), (total as f64 * scope.share()) as u64, Words::Plain);
    let suspects = Suspects::of(&*view.store())?;
    let report = verify(
        &*view.store(),
        &entries,
        &|id| scope.has(id) && suspects.is_read(id),
        threads(),
        &|done| progress.set(done.bytes),
        &cancel,
    );
    progress.finish();
    let report = report?;
    let records: Vec<_> = match args.backups.as_slice() {
        [] => {
            let records = catalogue.damaged().iter().map(ToString::to_string);
            records.chain(unreadable_notes(&states)).collect()
        }
        _ => Vec::new(),
    };
    let mut tables = check_tables(repository.path(), view.number())?;
    scope.done(PartRead {
        at: started,
        generation: view.number(),
    });
    // Into a repository that is not the one this host knows nothing is written.
    let noted = match context.is_doubted() {
        true => Ok(()),
        false => note(&repository, &entries, args, &scope, &report, &suspects, started),
    };
    let noted = match noted {
        // Readers do without the store's own files, so this is where damage to them shows.
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            tables.push(format!("nothing can be written to the repository: {error}"));
            Ok(())
        }
        noted => noted,
    };
    for table in &tables {
        context.print(format_args!("{table}\n"));
    }
    print(context, &report, &records, &scope, clock);
    if !tables.is_empty() {
        context.print("`vbk repair` puts the store's own files right from their second copies\n");
    }
    context.json_result(&Report {
        backups: report.read.backups,
        blocks: report.read.blocks,
        bytes: report.read.bytes,
        damage: report.damage.iter().map(DamageJson::new).collect(),
        damaged_records: records.clone(),
        damaged_tables: tables.clone(),
    })?;
    match noted {
        Ok(()) => {}
        // Who reads does not wait, and needs no room.
        Err(error) if report.damage.is_empty() && matches!(error.kind(), ErrorKind::Locked | ErrorKind::NoSpace) => {
            context.say(format_args!("this was not noted: {error}"));
        }
        Err(error) => tracing::warn!("what was found was not noted, so `list` will not show it: {error}"),
    }
    Ok(
        match (report.damage.as_slice(), records.as_slice(), tables.as_slice()) {
            ([], [], []) => Outcome::Done,
            _ => Outcome::Damage,
        },
    )
}

#[derive(Serialize)]
struct StoredReport {
    bytes: u64,
    damage: Vec<String>,
}

/// As far as can be told without a key.
fn check_stored(context: &Context<'_>) -> Result<Outcome> {
    let clock = Instant::now();
    let cancel = signals::cancel_flag().map_err(Error::io("watch for signals"))?;
    let mut damage = Vec::new();
    let bytes = context
        .locked_repository()?
        .check_stored(&cancel, &mut |what| damage.push(what))?;
    for what in &damage {
        context.print(format_args!("{what}\n"));
    }
    let took = units::duration(clock.elapsed());
    match damage.len() {
        0 => context.say(format_args!(
            "{} read in {took}: all checksums are right",
            units::size(bytes)
        )),
        found => context.print(format_args!(
            "{} read in {took}: damaged in {found} places\n",
            units::size(bytes)
        )),
    }
    let outcome = if damage.is_empty() {
        Outcome::Done
    } else {
        Outcome::Damage
    };
    context.json_result(&StoredReport { bytes, damage })?;
    Ok(outcome)
}

/// What was new in each backup is what is stored, near enough for a bar. Records may say any numbers.
pub fn new_bytes(entries: &[Entry]) -> u64 {
    let new = entries.iter().map(|entry| entry.backup.new_bytes());
    new.fold(0, u64::saturating_add)
}

/// Blocks that were found damaged before; those that are now read and found whole are no more.
pub struct Suspects {
    condemned: HashSet<BlockId>,
    read: Mutex<HashSet<BlockId>>,
}

impl Suspects {
    /// What is condemned in a store.
    pub fn of(store: &dyn StoreReader) -> Result<Self> {
        Ok(Self {
            condemned: store.condemned()?.into_iter().collect(),
            read: Mutex::default(),
        })
    }

    /// To be called of every block that is about to be read; always `true`.
    pub fn is_read(&self, id: BlockId) -> bool {
        if self.condemned.contains(&id) {
            self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        }
        true
    }

    /// Takes the note of damage from what was read whole. What no backup names was not read, and stays.
    pub fn pardon(&self, writer: &Manager, report: &VerifyReport) -> Result<()> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let sound: Vec<_> = read
            .iter()
            .filter(|id| !report.bad_blocks.contains_key(id))
            .copied()
            .collect();
        if !sound.is_empty() {
            writer.store().pardon(&sound)?;
        }
        Ok(())
    }
}

/// Which blocks are read.
enum Scope {
    All,
    /// A random share; the number changes which.
    Sample(f64, u64),
    /// Parts of a rotation.
    Parts(Rotation, Vec<usize>),
}

impl Scope {
    fn new(args: &VerifyArgs, mut rotation: Rotation, now: jiff::Timestamp) -> Result<Self> {
        if let Some(share) = args.sample {
            return Ok(Self::Sample(share, now.as_nanosecond() as u64 | 1));
        }
        let Some(age) = args.rotate else {
            return Ok(Self::All);
        };
        let zoned = now.to_zoned(jiff::tz::TimeZone::UTC);
        let days = now.duration_since(age.before(&zoned)).as_hours() / 24;
        match usize::try_from(days) {
            Ok(days @ 1..=MAX_ROTATION_DAYS) => {
                let due = rotation.due(days, now);
                Ok(Self::Parts(rotation, due))
            }
            _ => Err(Error::Usage(format!(
                "--rotate takes a time from 1d to {MAX_ROTATION_DAYS}d, as in 30d"
            ))),
        }
    }

    fn has(&self, id: BlockId) -> bool {
        match self {
            Self::All => true,
            Self::Sample(share, salt) => {
                let mixed =
                    id.0.first_chunk()
                        .map_or(0, |first| u64::from_be_bytes(*first))
                        .wrapping_mul(*salt);
                ((mixed >> 11) as f64) < *share * (1_u64 << 53) as f64
            }
            Self::Parts(rotation, due) => due.contains(&part_of(id, rotation.parts.len())),
        }
    }

    fn share(&self) -> f64 {
        match self {
            Self::All => 1.0,
            Self::Sample(share, _) => *share,
            Self::Parts(rotation, due) => due.len() as f64 / rotation.parts.len() as f64,
        }
    }

    /// All of it was read.
    fn done(&mut self, read: PartRead) {
        if let Self::Parts(rotation, due) = self {
            due.iter().for_each(|&part| rotation.parts[part] = Some(read));
        }
    }
}

/// Notes what was found where `list`, policies and the next backup see it.
fn note(
    repository: &Repository,
    entries: &[Entry],
    args: &VerifyArgs,
    scope: &Scope,
    report: &VerifyReport,
    suspects: &Suspects,
    started: jiff::Timestamp,
) -> Result<()> {
    let deadline = Instant::now() + NOTE_TIMEOUT;
    let writer = match repository.manager("verify", &mut |_| Instant::now() < deadline) {
        // Where nobody may write there is nothing to note.
        Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::ReadOnly) => return Ok(()),
        writer => writer?,
    };
    let hurt: HashSet<&str> = report.damage.iter().map(|damage| damage.backup.as_str()).collect();
    let states = writer.states()?;
    let mut notes = Vec::new();
    // Forgotten meanwhile, it must not get a state again.
    let catalogue = writer.catalogue()?;
    let there: HashSet<String> = catalogue.entries().iter().map(|entry| entry.backup.spec()).collect();
    // A backup of which only a disk was read is not proven by that.
    let whole = matches!(scope, Scope::All) && args.backups.iter().all(|spec| spec.disk.is_none());
    for key in entries
        .iter()
        .map(|entry| entry.backup.spec())
        .filter(|key| there.contains(key))
    {
        let mut state = states.noted(&key);
        if hurt.contains(key.as_str()) {
            state.damaged = Some(started);
        } else if whole {
            state.damaged = None;
            state.proven = Some(started);
        }
        if state != states.noted(&key) {
            warn_of_guess(&states, &key);
            notes.push(note_of(&key, state));
        }
    }
    if let Scope::Parts(rotation, _) = scope {
        notes.push(note_of_rotation(rotation));
    }
    let bad: Vec<_> = report.bad_blocks.keys().copied().collect();
    if !bad.is_empty() {
        writer.store().condemn(&bad)?;
    }
    suspects.pardon(&writer, report)?;
    Ok(writer.amend(&[], &notes)?)
}

/// Called when a state is set anew that can't be read, by who does not know what it was.
pub fn warn_of_guess(states: &States, backup: &str) {
    if states.is_unread(backup) {
        tracing::warn!(
            "the state of backup {backup} could not be read, so it is protected now; `vbk unprotect {backup}` takes that away"
        );
    }
}

fn choose(catalogue: &Catalogue, args: &VerifyArgs) -> Result<Vec<Entry>> {
    if args.backups.is_empty() {
        return Ok(catalogue.entries().to_vec());
    }
    args.backups
        .iter()
        .map(|spec| {
            let mut entry = catalogue.find(spec)?.clone();
            if let Some(disk) = &spec.disk {
                entry.backup = entry.backup.only(disk)?;
            }
            Ok(entry)
        })
        .collect()
}

fn print(context: &Context<'_>, report: &VerifyReport, records: &[String], scope: &Scope, clock: Instant) {
    for record in records {
        context.print(format_args!("{record}\n"));
    }
    print_damage(context, &report.damage);
    let part = match scope {
        Scope::All => String::new(),
        Scope::Sample(share, _) => format!(" in a sample of {}%", (share * 1000.0).round() / 10.0),
        Scope::Parts(rotation, due) => {
            let missing = rotation.parts.iter().filter(|part| part.is_none()).count();
            let left = match missing {
                0 => String::new(),
                missing => format!(", {missing} not read yet"),
            };
            format!(" in {} of {} parts{left}", due.len(), rotation.parts.len())
        }
    };
    let read = format!(
        "{} verified{part}, {} ({}) read in {}",
        units::count(report.read.backups, "backup"),
        units::count(report.read.blocks, "block"),
        units::size(report.read.bytes),
        units::duration(clock.elapsed())
    );
    if report.damage.is_empty() && records.is_empty() {
        context.say(format_args!("{read}: all good"));
        return;
    }
    let hurt: HashSet<_> = report.damage.iter().map(|damage| &damage.backup).collect();
    context.print(format_args!(
        "{read}: {} damaged in {}; everything else that was read is good. `vbk repair` gets back what can be found elsewhere\n",
        units::count(report.damage.len() as u64, "place"),
        units::count((hurt.len() + records.len()) as u64, "backup"),
    ));
}

impl<'a> DamageJson<'a> {
    /// For JSON.
    pub fn new(damage: &'a Damage) -> Self {
        Self {
            backup: &damage.backup,
            disk: &damage.disk,
            offset_bytes: damage.offset_bytes,
            len_bytes: damage.len_bytes,
            what: &damage.what,
        }
    }
}

/// Prints damaged places, the first of them.
pub fn print_damage(context: &Context<'_>, all: &[Damage]) {
    let shown = if context.verbose() { usize::MAX } else { SHOWN };
    for damage in all.iter().take(shown) {
        context.print(format_args!(
            "{}/{}: {} at {} ({} bytes): {}\n",
            damage.backup,
            damage.disk,
            units::size(damage.len_bytes),
            units::size(damage.offset_bytes),
            damage.offset_bytes,
            damage.what
        ));
    }
    if all.len() > shown {
        context.print(format_args!("... and {} more; -v shows all\n", all.len() - shown));
    }
}
