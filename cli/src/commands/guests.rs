//! `vbk guests`

use jiff::Timestamp;
use serde::Serialize;
use vbk::guest::discover::{FoundBy, FoundGuest, LeftOut, discover};
use vbk_repo::catalogue::Catalogue;

use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::machine;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;

#[derive(Serialize)]
struct Report<'a> {
    guests: Vec<Guest<'a>>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct Guest<'a> {
    guest: &'a str,
    from: FoundBy,
    disks: Vec<Disk<'a>>,
    left_out: &'a [LeftOut],
    domain: Option<&'a str>,
    running: Option<bool>,
    /// Excluded from `vbk backup --all`.
    excluded: bool,
    /// A repository was read, so a missing backup means that there is none.
    #[serde(skip)]
    is_known: bool,
    last_backup: Option<Last>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct Disk<'a> {
    disk: &'a str,
    path: String,
    size_bytes: Option<u64>,
    speed_bytes_per_sec: Option<u64>,
    speed_from: Option<FoundBy>,
}

#[derive(Serialize)]
struct Last {
    backup: String,
    time: Timestamp,
    age_secs: i64,
}

/// Lists what can be backed up.
pub fn run(context: &Context<'_>) -> Result<Outcome> {
    let config = context.config()?;
    let mut found = discover(&machine::programs(), &config.known_guests());
    let catalogue = match catalogue(context) {
        Ok(catalogue) => catalogue,
        Err(error) => {
            found
                .notes
                .push(format!("last backups are unknown: {}", error.message()));
            None
        }
    };
    let now = Timestamp::now();
    let guest = |guest| Guest::new(guest, catalogue.as_ref(), now, config.excludes(&guest.name));
    let guests: Vec<_> = found.guests.iter().map(guest).collect();
    let mut table = Table::new(&[
        ("GUEST", Align::Left),
        ("FROM", Align::Left),
        ("DISKS", Align::Left),
        ("SIZE", Align::Right),
        ("SPEED", Align::Right),
        ("LAST BACKUP", Align::Left),
        ("NOTE", Align::Left),
    ]);
    for guest in &guests {
        table.row(guest.row());
    }
    if guests.is_empty() {
        context.say(
            "no guests found in the configuration ([guest.NAME]), libvirt or the tags of volumes; see `vbk guests --help`",
        );
    } else {
        context.print(table);
    }
    for note in &found.notes {
        tracing::warn!("{note}");
    }
    context.json_result(&Report {
        guests,
        notes: &found.notes,
    })?;
    Ok(match found.notes.is_empty() {
        true => Outcome::Done,
        false => Outcome::Warnings,
    })
}

/// Returns the backups, if a repository is named.
fn catalogue(context: &Context<'_>) -> Result<Option<Catalogue>> {
    match context.names_repository()? {
        true => Ok(Some(context.view()?.catalogue()?)),
        false => Ok(None),
    }
}

impl<'a> Guest<'a> {
    fn new(guest: &'a FoundGuest, catalogue: Option<&Catalogue>, now: Timestamp, excluded: bool) -> Self {
        let last = catalogue.and_then(|catalogue| catalogue.latest(&guest.name));
        let disks = guest.disks.iter().map(|disk| Disk {
            disk: disk.name.as_str(),
            path: disk.path.display().to_string(),
            size_bytes: disk.size_bytes,
            speed_bytes_per_sec: disk.speed.map(|(speed, _)| speed),
            speed_from: disk.speed.map(|(_, from)| from),
        });
        Self {
            guest: guest.name.as_str(),
            from: guest.from,
            disks: disks.collect(),
            left_out: &guest.left_out,
            domain: guest.domain.as_ref().map(|domain| domain.name.as_str()),
            running: guest.running,
            excluded,
            is_known: catalogue.is_some(),
            last_backup: last.map(|entry| {
                let time = entry.backup.time.timestamp();
                Last {
                    backup: entry.backup.spec(),
                    time,
                    age_secs: now.as_second() - time.as_second(),
                }
            }),
            notes: &guest.notes,
        }
    }

    fn row(&self) -> Vec<String> {
        let or_none = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned());
        let names: Vec<_> = self.disks.iter().map(|disk| disk.disk).collect();
        let sizes: Option<Vec<u64>> = self.disks.iter().map(|disk| disk.size_bytes).collect();
        let size = sizes.filter(|sizes| !sizes.is_empty());
        let size = size.map(|sizes| units::size(sizes.into_iter().fold(0, u64::saturating_add)));
        let speeds = self
            .disks
            .iter()
            .map(|disk| disk.speed_bytes_per_sec.map_or("-".to_owned(), units::rate));
        let mut speeds: Vec<_> = speeds.collect();
        speeds.dedup();
        let last = match &self.last_backup {
            Some(last) => Some(format!("{} ({})", units::time(last.time), units::age(last.age_secs))),
            None if self.is_known => Some("never".to_owned()),
            None => None,
        };
        vec![
            self.guest.to_owned(),
            self.from.to_string(),
            or_none(Some(names.join(" "))),
            or_none(size),
            or_none(Some(speeds.join(" "))),
            or_none(last),
            self.remarks().join("; "),
        ]
    }

    fn remarks(&self) -> Vec<String> {
        let left_out = self.left_out.iter().filter(|disk| !disk.is_meant);
        let left_out = left_out.map(|disk| format!("{} {}", disk.name, disk.why));
        let excluded = self.excluded.then(|| "not in --all".to_owned());
        excluded
            .into_iter()
            .chain(left_out)
            .chain(self.notes.iter().cloned())
            .collect()
    }
}
