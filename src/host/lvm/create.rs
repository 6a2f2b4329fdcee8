//! Volumes of a restore: creates them with a tag, finds them by it, and removes them. Asks for less than
//! [`super::volumes`] does, so that it works in a group whose other volumes have values that vbk does not know.

use std::time::Duration;

use serde::Deserialize;

use super::{not_understood, report, split};
use crate::host::program::{ProgramError, Programs};

/// Time limit of a change: lvm2 waits for its own locks and for udev.
const LIMIT: Duration = Duration::from_secs(120);

/// A volume by its name.
pub(crate) struct Named {
    /// Name, without the brackets of hidden volumes.
    pub(crate) name: String,
    pub(crate) tags: Vec<String>,
}

#[derive(Deserialize)]
struct NamedRow {
    lv_name: String,
    lv_tags: String,
}

impl From<NamedRow> for Named {
    fn from(row: NamedRow) -> Self {
        Self {
            name: row.lv_name.trim_matches(['[', ']']).to_owned(),
            tags: split(&row.lv_tags),
        }
    }
}

fn named(programs: &Programs, args: &[&str]) -> Result<Vec<Named>, ProgramError> {
    let rows: Vec<NamedRow> = report(programs, "lvs", "lv_name,lv_tags", args)?;
    Ok(rows.into_iter().map(Named::from).collect())
}

/// Lists all volumes of a group, hidden ones included: their names are taken too.
pub(crate) fn all_in(programs: &Programs, group: &str) -> Result<Vec<Named>, ProgramError> {
    named(programs, &["-a", "--", group])
}

/// Lists the volumes of a group that have a tag.
pub(crate) fn tagged(programs: &Programs, group: &str, tag: &str) -> Result<Vec<Named>, ProgramError> {
    let mut found = named(programs, &["-S", &format!("lv_tags={tag}"), "--", group])?;
    found.retain(|volume| volume.tags.iter().any(|known| known == tag));
    Ok(found)
}

/// Creates a tagged volume in a group, or a thin one in a pool of the group. `size_bytes` is a whole number of extents.
pub(crate) fn create_tagged(
    programs: &Programs,
    (group, pool): (&str, Option<&str>),
    name: &str,
    size_bytes: u64,
    tag: &str,
) -> Result<(), ProgramError> {
    let size = format!("{size_bytes}b");
    let mut args = vec!["--yes", "--name", name, "--addtag", tag];
    match pool {
        Some(pool) => args.extend(["--virtualsize", &size, "--thinpool", pool]),
        // An old signature at its offset could be taken for a part of an array or group, and be held open.
        None => args.extend(["--size", &size, "--wipesignatures", "y", "--zero", "y"]),
    }
    args.extend(["--", group]);
    programs.change("lvcreate", &args, LIMIT)
}

/// Removes a volume if it still has the tag when lvm2 has locked the group.
pub(crate) fn remove_tagged(programs: &Programs, group: &str, name: &str, tag: &str) -> Result<(), ProgramError> {
    let (selection, name) = (format!("lv_tags={tag}"), format!("{group}/{name}"));
    programs.change("lvremove", &["--yes", "-S", &selection, "--", &name], LIMIT)
}

/// Answer to the question for a thin pool.
pub(crate) enum FoundPool {
    /// No volume has the name.
    Absent,
    /// The volume has another segment type.
    Other(String),
    /// It is a thin pool.
    Pool(Pool),
}

/// A thin pool.
pub(crate) struct Pool {
    pub(crate) chunk_bytes: u64,
    /// True if new chunks are zeroed before their first use.
    pub(crate) zeroes: bool,
    pub(crate) data_free_bytes: u64,
    pub(crate) metadata_free_bytes: u64,
}

#[derive(Deserialize)]
struct PoolRow {
    segtype: String,
    lv_size: String,
    data_percent: String,
    lv_metadata_size: String,
    metadata_percent: String,
    chunk_size: String,
    zero: String,
}

/// Finds a thin pool of a group.
pub(crate) fn pool(programs: &Programs, group: &str, name: &str) -> Result<FoundPool, ProgramError> {
    let fields = "segtype,lv_size,data_percent,lv_metadata_size,metadata_percent,chunk_size,zero";
    let rows: Vec<PoolRow> = report(programs, "lvs", fields, &["--", &format!("{group}/{name}")])?;
    let Some(row) = rows.into_iter().next() else {
        return Ok(FoundPool::Absent);
    };
    if row.segtype != "thin-pool" {
        return Ok(FoundPool::Other(row.segtype));
    }
    Ok(FoundPool::Pool(Pool {
        chunk_bytes: number(&row.chunk_size)?.max(1),
        zeroes: matches!(row.zero.as_str(), "zero" | "1"),
        data_free_bytes: free_of(number(&row.lv_size)?, &row.data_percent)?,
        metadata_free_bytes: free_of(number(&row.lv_metadata_size)?, &row.metadata_percent)?,
    }))
}

/// Returns the free part of a size of which `percent` is used, e.g. `12.34`; rounded down.
fn free_of(size_bytes: u64, percent: &str) -> Result<u64, ProgramError> {
    // An inactive pool reports nothing, and then no volume is created in it.
    let used: f64 = percent.parse().map_err(|_| not_a_number(percent))?;
    Ok((size_bytes as f64 * (1.0 - used.clamp(0.0, 100.0) / 100.0)) as u64)
}

fn number(text: &str) -> Result<u64, ProgramError> {
    text.parse().map_err(|_| not_a_number(text))
}

fn not_a_number(text: &str) -> ProgramError {
    not_understood("lvs", &format!("{text:?} is not a number"))
}
