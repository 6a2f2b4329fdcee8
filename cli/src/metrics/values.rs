//! Content of a metrics file, and its text: the values of each repository, of its guests, and of the runs over all guests. In
//! Prometheus' text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::repository::OF_A_REPOSITORY;
use super::{GuestRun, RehearsalRun, seconds};

/// Label that distinguishes the repositories.
const REPOSITORY: &str = "repository";
/// Label of the values of a guest.
const GUEST: &str = "guest";

/// Metrics of each guest: name and meaning.
pub(super) const OF_A_GUEST: [(&str, &str); 9] = [
    (
        "vbk_backup_last_success_timestamp_seconds",
        "End of the last successful backup of the guest, in seconds since 1970.",
    ),
    (
        "vbk_backup_last_run_timestamp_seconds",
        "End of the last attempt to back the guest up, in seconds since 1970.",
    ),
    ("vbk_backup_success", "1 if the last attempt made a backup, 0 if not."),
    ("vbk_backup_duration_seconds", "Duration of the last attempt."),
    (
        "vbk_backup_read_bytes",
        "Bytes that the last successful backup read from the disks.",
    ),
    (
        "vbk_backup_new_bytes",
        "Uncompressed bytes of the blocks that the last successful backup added to the repository.",
    ),
    ("vbk_backup_stored_bytes", "Bytes that those blocks take in the store."),
    (
        "vbk_backup_size_bytes",
        "Size of all disks of the guest at the last successful backup.",
    ),
    (
        "vbk_backup_snapshot_peak_fill_ratio",
        "Peak fill of a snapshot, or of its thin pool, in the last attempt that had one; 1 is full.",
    ),
];

/// Metrics of each guest's rehearsals.
pub(super) const OF_A_REHEARSAL: [(&str, &str); 4] = [
    (
        "vbk_rehearsal_last_proof_timestamp_seconds",
        "Time of the last rehearsal in which a backup of the guest booted, in seconds since 1970.",
    ),
    (
        "vbk_rehearsal_last_run_timestamp_seconds",
        "Time of the last rehearsal of the guest, in seconds since 1970.",
    ),
    (
        "vbk_rehearsal_success",
        "1 if the guest booted in its last rehearsal, 0 if not.",
    ),
    (
        "vbk_rehearsal_duration_seconds",
        "Duration of the boot in the last rehearsal.",
    ),
];

/// Metrics of a run over all guests.
pub(super) const OF_A_RUN: [(&str, &str); 5] = [
    (
        "vbk_run_start_timestamp_seconds",
        "Start of the last run over all guests, in seconds since 1970.",
    ),
    (
        "vbk_run_end_timestamp_seconds",
        "End of the last run over all guests, in seconds since 1970.",
    ),
    (
        "vbk_run_guests",
        "Guests that the last run over all guests had to back up.",
    ),
    (
        "vbk_run_failed_guests",
        "Guests that the last run over all guests could not back up.",
    ),
    (
        "vbk_run_success",
        "1 if the last run over all guests backed all of them up without a warning, 0 if not.",
    ),
];

/// Content of a file, by the label of the repository.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Values(pub(super) BTreeMap<String, OfRepository>);

/// Values of one repository.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct OfRepository {
    pub(super) guests: BTreeMap<String, [Option<f64>; OF_A_GUEST.len()]>,
    pub(super) rehearsals: BTreeMap<String, [Option<f64>; OF_A_REHEARSAL.len()]>,
    pub(super) run: [Option<f64>; OF_A_RUN.len()],
    pub(super) repository: [Option<f64>; OF_A_REPOSITORY.len()],
}

impl OfRepository {
    /// Adds the result for a guest.
    pub(super) fn add(&mut self, guest: &str, run: &GuestRun) {
        let [success_at, run_at, success, duration, read, new, stored, size, peak] =
            self.guests.entry(guest.to_owned()).or_default();
        let ended = Some(seconds(run.ended));
        *run_at = ended;
        *success = Some(if run.made.is_some() { 1.0 } else { 0.0 });
        *duration = Some(run.duration.as_secs_f64());
        if run.snapshot_peak_fill.is_some_and(f64::is_finite) || run.made.is_some() {
            *peak = run.snapshot_peak_fill.filter(|fill| fill.is_finite());
        }
        if let Some(made) = run.made {
            *success_at = ended;
            for (value, bytes) in [
                (read, made.read_bytes),
                (new, made.new_bytes),
                (stored, made.stored_bytes),
                (size, made.size_bytes),
            ] {
                *value = Some(bytes as f64);
            }
        }
    }

    /// Adds the result of a rehearsal.
    pub(super) fn add_rehearsal(&mut self, guest: &str, run: &RehearsalRun) {
        let [proof_at, run_at, success, duration] = self.rehearsals.entry(guest.to_owned()).or_default();
        let at = Some(seconds(run.at));
        *run_at = at;
        *success = Some(if run.is_proven { 1.0 } else { 0.0 });
        *duration = Some(run.duration_ms as f64 / 1000.0);
        if run.is_proven {
            *proof_at = at;
        }
    }

    /// Returns the place of a value; `None` for a metric that has other labels.
    fn slot(&mut self, name: &str, guest: Option<String>) -> Option<&mut Option<f64>> {
        let index = |names: &[(&str, &str)]| names.iter().position(|(known, _)| *known == name);
        match guest {
            Some(guest) => match (index(&OF_A_GUEST), index(&OF_A_REHEARSAL)) {
                (Some(index), _) => Some(&mut self.guests.entry(guest).or_default()[index]),
                (None, Some(index)) => Some(&mut self.rehearsals.entry(guest).or_default()[index]),
                (None, None) => None,
            },
            None => match (index(&OF_A_RUN), index(&OF_A_REPOSITORY)) {
                (Some(index), _) => Some(&mut self.run[index]),
                (None, Some(index)) => Some(&mut self.repository[index]),
                (None, None) => None,
            },
        }
    }
}

impl Values {
    /// Returns the text of the file. A metric without values is left out.
    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        for (index, metric) in OF_A_GUEST.into_iter().enumerate() {
            let of_guests = self.0.iter().flat_map(|(repository, values)| {
                let guests = values.guests.iter();
                guests.map(move |(guest, values)| (repository, Some(guest), values[index]))
            });
            add_metric(&mut text, metric, of_guests);
        }
        for (index, metric) in OF_A_REHEARSAL.into_iter().enumerate() {
            let of_guests = self.0.iter().flat_map(|(repository, values)| {
                let guests = values.rehearsals.iter();
                guests.map(move |(guest, values)| (repository, Some(guest), values[index]))
            });
            add_metric(&mut text, metric, of_guests);
        }
        for (index, metric) in OF_A_RUN.into_iter().enumerate() {
            let of_runs = self.0.iter();
            add_metric(
                &mut text,
                metric,
                of_runs.map(|(label, of)| (label, None, of.run[index])),
            );
        }
        for (index, metric) in OF_A_REPOSITORY.into_iter().enumerate() {
            let of_all = self.0.iter();
            add_metric(
                &mut text,
                metric,
                of_all.map(|(label, of)| (label, None, of.repository[index])),
            );
        }
        text
    }

    /// Parses the output of [`Values::render`]; `None` if any line is different. A metric that only a later version of vbk
    /// knows is left out; that version adds it again.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut values = Self::default();
        if !text.is_empty() && !text.ends_with('\n') {
            return None;
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name_and_labels, value) = line.rsplit_once(' ')?;
            let value: f64 = value.parse().ok().filter(|value: &f64| value.is_finite())?;
            let (name, labels) = name_and_labels.split_once('{').unwrap_or((name_and_labels, "}"));
            let mut known = OF_A_RUN
                .iter()
                .chain(&OF_A_GUEST)
                .chain(&OF_A_REHEARSAL)
                .chain(&OF_A_REPOSITORY);
            if name.starts_with("vbk_") && !known.any(|(known, _)| *known == name) {
                continue;
            }
            let mut labels = parse_labels(labels)?;
            let repository = labels.remove(REPOSITORY)?;
            let guest = labels.remove(GUEST);
            let slot = values.0.entry(repository).or_default().slot(name, guest)?;
            if !labels.is_empty() || slot.replace(value).is_some() {
                return None;
            }
        }
        Some(values)
    }
}

/// Adds a metric with its series, each with the labels of its repository and of its guest.
fn add_metric<'a>(
    text: &mut String,
    (name, help): (&str, &str),
    series: impl Iterator<Item = (&'a String, Option<&'a String>, Option<f64>)>,
) {
    let with_value = series.filter_map(|(repository, guest, value)| Some((repository, guest, value?)));
    for (number, (repository, guest, value)) in with_value.enumerate() {
        if number == 0 {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        }
        let _ = write!(text, "{name}{{");
        if let Some(guest) = guest {
            let _ = write!(text, "{GUEST}=\"{}\",", escape(guest));
        }
        let _ = writeln!(text, "{REPOSITORY}=\"{}\"}} {value}", escape(repository));
    }
}

/// Parses `NAME="VALUE",NAME="VALUE"}`; `None` if it is anything else, or has a name twice.
fn parse_labels(text: &str) -> Option<BTreeMap<&str, String>> {
    let mut labels = BTreeMap::new();
    let mut left = text;
    while left != "}" {
        let (name, value) = left.split_once("=\"")?;
        let mut is_escaped = false;
        let end = value.find(|letter| {
            let is_end = letter == '"' && !is_escaped;
            is_escaped = letter == '\\' && !is_escaped;
            is_end
        })?;
        if labels.insert(name, unescape(&value[..end])?).is_some() {
            return None;
        }
        left = &value[end + 1..];
        if let Some(next) = left.strip_prefix(',') {
            left = next;
        } else if left != "}" {
            return None;
        }
    }
    Some(labels)
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn unescape(label: &str) -> Option<String> {
    let mut text = String::new();
    let mut letters = label.chars();
    while let Some(letter) = letters.next() {
        text.push(match letter {
            '\\' => match letters.next()? {
                'n' => '\n',
                letter @ ('\\' | '"') => letter,
                _ => return None,
            },
            '"' => return None,
            letter => letter,
        });
    }
    Some(text)
}
