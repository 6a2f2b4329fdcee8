//! The lvm2 commands: what volumes there are, and the few changes that vbk makes. Decides nothing.
//!
//! All values of lvm2's JSON reports are strings (checked with 2.03.16). What lvm.conf can change of them (times, lists,
//! marks of hidden volumes) is set on the command line.

pub mod status;
pub mod suspended;

use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::host::device::DeviceNumber;
use crate::host::program::{ProgramError, Programs};

/// For a report. It waits for the volume group's lock, which another command may hold for a while.
const REPORT_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 15 } else { 60 });
/// For a change, which is asked to end then and never killed ([`Programs::change`]): between suspend and resume that would
/// leave devices suspended, and with them the guest. lvm2 does that part with signals blocked and in milliseconds, so what
/// hangs this long mostly waits for a lock.
const CHANGE_LIMIT: Duration = Duration::from_secs(300);
/// For an extension: the guard does not go on for ever with one.
const EXTEND_LIMIT: Duration = Duration::from_secs(60);
/// Chunks of a thick snapshot: few exceptions to keep, and not too much copied for a small write (lvcreate(8): 4 to 512
/// KiB).
pub const CHUNK_BYTES: u64 = 64 << 10;

const FIELDS: &str = "vg_name,vg_uuid,vg_free,vg_extent_size,lv_name,lv_uuid,lv_path,lv_attr,lv_role,segtype,stripes,\
                      lv_size,lv_metadata_size,origin,origin_uuid,pool_lv,thin_id,transaction_id,chunk_size,data_percent,metadata_percent,lv_tags,\
                      lv_time,lv_kernel_major,lv_kernel_minor";

/// A logical volume, as `lvs` describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    /// Its volume group.
    pub vg: String,
    /// The group's UUID.
    pub vg_uuid: String,
    /// Free bytes of the group.
    pub vg_free_bytes: u64,
    /// The unit in which the group gives space.
    pub vg_extent_bytes: u64,
    /// Its name, without the brackets of hidden volumes.
    pub name: String,
    /// Stays the same however it is renamed.
    pub uuid: String,
    /// Its device, as in `/dev/vg0/web1`; empty for a hidden one.
    pub path: String,
    /// The ten letters of lvs(8).
    pub attr: String,
    /// As in `public,origin,thickorigin`.
    pub role: String,
    /// As in `linear`, `striped`, `raid1`, `thin`, `thin-pool`.
    pub segtype: String,
    /// Over how many devices each segment goes.
    pub stripes: u32,
    /// Its size; of a thick snapshot the space for what changes.
    pub size_bytes: u64,
    /// Of a thin pool: the size of its metadata.
    pub metadata_bytes: u64,
    /// What it is a snapshot of, in the same group; empty if of nothing.
    pub origin: String,
    /// The UUID of that.
    pub origin_uuid: String,
    /// Its thin pool, in the same group; empty if it has none.
    pub pool: String,
    /// Its number in the pool.
    pub thin_id: Option<u32>,
    /// Of a thin volume: the pool's transaction that made it.
    pub transaction: Option<u64>,
    /// Chunks of a thick snapshot or thin pool; 0 for others.
    pub chunk_bytes: u64,
    /// How full it is, 0 to 1: data.
    pub data_fill: Option<f64>,
    /// How full it is, 0 to 1: metadata of a pool.
    pub metadata_fill: Option<f64>,
    /// Its tags.
    pub tags: Vec<String>,
    /// When it was made.
    pub since: Option<Timestamp>,
    /// Number of its device; `None` if it is not active.
    pub device: Option<DeviceNumber>,
}

impl Volume {
    /// `vg0/web1`
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.vg, self.name)
    }

    /// Whether it lies in a thin pool.
    pub fn is_thin(&self) -> bool {
        self.segtype == "thin"
    }

    /// Whether it is a snapshot with space of its own.
    pub fn is_thick_snapshot(&self) -> bool {
        self.attr.starts_with(['s', 'S'])
    }

    /// Whether it has a tag.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|known| known == tag)
    }
}

/// A name as the device mapper has it: dashes in names are doubled, and one stands between them.
pub fn dm_name(vg: &str, lv: &str, layer: &str) -> String {
    let [vg, lv] = [vg, lv].map(|name| name.replace('-', "--"));
    match layer {
        "" => format!("{vg}-{lv}"),
        layer => format!("{vg}-{lv}-{layer}"),
    }
}

#[derive(Deserialize)]
struct GroupRow {
    vg_free: String,
    vg_extent_size: String,
}

#[derive(Deserialize)]
struct Row {
    vg_name: String,
    vg_uuid: String,
    vg_free: String,
    vg_extent_size: String,
    lv_name: String,
    lv_uuid: String,
    lv_path: String,
    lv_attr: String,
    lv_role: String,
    segtype: String,
    stripes: String,
    lv_size: String,
    lv_metadata_size: String,
    origin: String,
    origin_uuid: String,
    pool_lv: String,
    thin_id: String,
    transaction_id: String,
    chunk_size: String,
    data_percent: String,
    metadata_percent: String,
    lv_tags: String,
    lv_time: String,
    lv_kernel_major: String,
    lv_kernel_minor: String,
}

impl Row {
    fn volume(self) -> Result<Volume, String> {
        let bytes = |field: &str, text: &str| match text {
            "" => Ok(0),
            text => text.parse::<u64>().map_err(|_| format!("{field} is {text:?}")),
        };
        let share = |text: &str| text.parse::<f64>().ok().map(|percent| percent / 100.0);
        let size_bytes = bytes("lv_size", &self.lv_size)?;
        let vg_extent_bytes = bytes("vg_extent_size", &self.vg_extent_size)?;
        if size_bytes == 0 || vg_extent_bytes == 0 {
            return Err(format!("{}/{} has no size", self.vg_name, self.lv_name));
        }
        Ok(Volume {
            vg_free_bytes: bytes("vg_free", &self.vg_free)?,
            vg_extent_bytes,
            size_bytes,
            metadata_bytes: bytes("lv_metadata_size", &self.lv_metadata_size)?,
            chunk_bytes: bytes("chunk_size", &self.chunk_size)?,
            thin_id: self.thin_id.parse().ok(),
            transaction: self.transaction_id.parse().ok(),
            origin_uuid: self.origin_uuid,
            data_fill: share(&self.data_percent),
            metadata_fill: share(&self.metadata_percent),
            tags: split(&self.lv_tags),
            since: self
                .lv_time
                .parse()
                .ok()
                .and_then(|secs| Timestamp::from_second(secs).ok()),
            // -1 for what is not active.
            device: DeviceNumber::parse(&format!("{}:{}", self.lv_kernel_major, self.lv_kernel_minor)),
            name: self.lv_name.trim_matches(['[', ']']).to_owned(),
            vg: self.vg_name,
            vg_uuid: self.vg_uuid,
            uuid: self.lv_uuid,
            path: self.lv_path,
            attr: self.lv_attr,
            role: self.lv_role,
            segtype: self.segtype,
            stripes: self.stripes.parse().unwrap_or(1),
            origin: self.origin.trim_matches(['[', ']']).to_owned(),
            pool: self.pool_lv.trim_matches(['[', ']']).to_owned(),
        })
    }
}

fn split(list: &str) -> Vec<String> {
    list.split(',')
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The rows of a report of `lvs` or `vgs` (lvmreport(7)): every value is a string, sizes are in bytes, times in seconds, and
/// lists have commas, whatever lvm.conf says.
pub(crate) fn report<T: DeserializeOwned>(
    programs: &Programs,
    program: &str,
    fields: &str,
    args: &[&str],
) -> Result<Vec<T>, ProgramError> {
    let fixed = [
        "--reportformat",
        "json",
        "--units",
        "b",
        "--nosuffix",
        "--config",
        "report{time_format=\"%s\" list_item_separator=\",\" prefixes=0 headings=1 \
         compact_output=0 compact_output_cols=\"\"}",
        "-o",
        fields,
    ];
    let all: Vec<&str> = fixed.iter().chain(args).copied().collect();
    let run = programs.run(program, &all, REPORT_LIMIT);
    let text = run.map_err(|error| error.about(format!("{program} {}", args.join(" "))))?;
    let wrong = |what: &dyn std::fmt::Display| not_understood(program, &what.to_string());
    let answer: serde_json::Value = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
    let parts = answer["report"].as_array().ok_or_else(|| wrong(&"it is no report"))?;
    // `lvs` answers with a list named lv, `vgs` with vg.
    let rows = parts
        .iter()
        .filter_map(|part| part[program.trim_end_matches('s')].as_array());
    rows.flatten()
        .map(|row| T::deserialize(row).map_err(|error| wrong(&error)))
        .collect()
}

fn not_understood(program: &str, what: &str) -> ProgramError {
    ProgramError::Answer {
        command: program.to_owned(),
        what: what.to_owned(),
    }
}

/// The volumes that a selection finds (lvmreport(7)), hidden ones too.
pub fn volumes(programs: &Programs, selection: &str) -> Result<Vec<Volume>, ProgramError> {
    let rows: Vec<Row> = report(programs, "lvs", FIELDS, &["-a", "-S", selection])?;
    let mut volumes: Vec<Volume> = rows
        .into_iter()
        .map(|row| row.volume().map_err(|what| not_understood("lvs", &what)))
        .collect::<Result<_, _>>()?;
    // A volume of several kinds of segments has a row for each.
    volumes.dedup_by(|later, first| later.uuid == first.uuid);
    Ok(volumes)
}

/// One volume by its name; `None` if there is none.
pub fn volume(programs: &Programs, vg: &str, name: &str) -> Result<Option<Volume>, ProgramError> {
    if !is_name(vg) || !is_name(name) {
        return Ok(None);
    }
    let found = volumes(programs, &named(vg, name))?;
    Ok(found.into_iter().find(|volume| volume.vg == vg && volume.name == name))
}

/// The selection of one volume.
pub fn named(vg: &str, name: &str) -> String {
    // Hidden volumes are in brackets in reports, and their names match with them or without (2.03.16 matches without).
    format!("(vg_name=\"{vg}\" && lv_name=\"{name}\")")
}

/// Whether text is made of what names may have (lvm(8), VALID NAMES), so that it is safe in a selection.
pub fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte);
    !text.is_empty() && !text.starts_with('-') && text != "." && text != ".." && text.bytes().all(allowed)
}

/// Text in which everything that a tag may not have is `_` (lvm(8), VALID NAMES: tags).
pub fn as_tag(text: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+.-/=!:#&".contains(c);
    let text = text.chars().map(|c| if allowed(c) { c } else { '_' });
    // 1024 at most.
    text.take(1000).collect()
}

/// What a volume group has: free bytes, and bytes of an extent.
pub fn free_space(programs: &Programs, vg: &str) -> Result<(u64, u64), ProgramError> {
    let rows: Vec<GroupRow> = report(programs, "vgs", "vg_free,vg_extent_size", &[vg])?;
    let numbers = rows
        .first()
        .and_then(|row| Some((row.vg_free.parse().ok()?, row.vg_extent_size.parse().ok()?)));
    numbers.ok_or_else(|| not_understood("vgs", "it names no free space"))
}

/// A snapshot to be made: read-only and active.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NewSnapshot {
    /// The group of origin and snapshot.
    pub vg: String,
    /// The origin.
    pub origin: String,
    /// The pool of a thin origin.
    pub pool: Option<String>,
    /// The snapshot.
    pub name: String,
    /// Its space; `None` in a thin pool.
    pub extents: Option<u64>,
    /// Its tags.
    pub tags: Vec<String>,
}

/// Makes a snapshot.
pub fn create(programs: &Programs, snapshot: &NewSnapshot) -> Result<(), ProgramError> {
    let mut args: Vec<String> = ["-y", "-s", "-p", "r"].map(str::to_owned).into();
    match snapshot.extents {
        Some(extents) => args.extend(["-l".into(), extents.to_string(), "-c".into(), format!("{CHUNK_BYTES}b")]),
        // Thin snapshots are skipped by activation unless told otherwise, and not active.
        None => args.extend(["-kn".into(), "-ay".into()]),
    }
    for tag in &snapshot.tags {
        args.extend(["--addtag".into(), tag.clone()]);
    }
    args.extend([
        "-n".into(),
        snapshot.name.clone(),
        format!("{}/{}", snapshot.vg, snapshot.origin),
    ]);
    let changed = programs.change("lvcreate", &args, CHANGE_LIMIT);
    let pool = snapshot.pool.as_deref().unwrap_or_default();
    suspended::after(
        programs,
        &snapshot.vg,
        &[&snapshot.origin, &snapshot.name, pool],
        changed,
    )
}

/// Removes a volume without asking, if it is still that one with these tags when lvm2 has locked the group: success does
/// not mean that it is gone.
pub(crate) fn remove(programs: &Programs, volume: &Volume, tags: &[&str]) -> Result<(), ProgramError> {
    let tags = tags.iter().map(|tag| format!(" && lv_tags={{{tag}}}"));
    let selection = format!("(lv_uuid=\"{}\"{})", volume.uuid, tags.collect::<String>());
    let args = ["-f", "-S", &selection, "--", &volume.full_name()];
    let changed = programs.change("lvremove", &args, CHANGE_LIMIT);
    suspended::after(
        programs,
        &volume.vg,
        &[&volume.origin, &volume.name, &volume.pool],
        changed,
    )
}

/// What of a volume to extend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extend {
    /// A snapshot's space, or a pool's data.
    Data {
        /// By so much.
        extents: u64,
    },
    /// A pool's metadata.
    PoolMetadata {
        /// By so much.
        bytes: u64,
    },
}

/// Makes a thick snapshot or thin pool larger.
pub fn extend(programs: &Programs, vg: &str, name: &str, extend: Extend) -> Result<(), ProgramError> {
    let [option, value] = match extend {
        Extend::Data { extents } => ["-l".to_owned(), format!("+{extents}")],
        Extend::PoolMetadata { bytes } => ["--poolmetadatasize".to_owned(), format!("+{bytes}b")],
    };
    let changed = programs.change("lvextend", &[option, value, format!("{vg}/{name}")], EXTEND_LIMIT);
    suspended::after(programs, vg, &[name], changed)
}

/// Takes tags from a volume and gives it others, at once.
pub fn change_tags(
    programs: &Programs,
    vg: &str,
    name: &str,
    remove: &[String],
    add: &[String],
) -> Result<(), ProgramError> {
    let removed = remove.iter().flat_map(|tag| ["--deltag", tag.as_str()]);
    let added = add.iter().flat_map(|tag| ["--addtag", tag.as_str()]);
    let volume = format!("{vg}/{name}");
    let args: Vec<&str> = removed.chain(added).chain([volume.as_str()]).collect();
    programs.change("lvchange", &args, CHANGE_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_mapper_names_double_their_dashes() {
        assert_eq!(dm_name("vg-0", "web1-root", "cow"), "vg--0-web1--root-cow");
        assert_eq!(dm_name("vg0", "pool_tmeta", ""), "vg0-pool_tmeta");
    }

    #[test]
    fn names_and_tags_hold_nothing_that_lvm_would_read_as_more() {
        assert!(is_name("web1-root.x+y_z"));
        for bad in ["", "a\"b", "a b", "-x", "a/b", "a&&b", "ä", ".", ".."] {
            assert!(!is_name(bad), "{bad}");
        }
        assert_eq!(as_tag("höst 1,@x"), "h_st_1__x");
    }
}
