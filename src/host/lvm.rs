//! The lvm2 commands: reports on volumes, and the few changes that vbk makes. Decides nothing.
//!
//! All values in lvm2's JSON reports are strings (checked with 2.03.16). What lvm.conf can change in them (times,
//! lists, marks of hidden volumes) is set on the command line.

pub(crate) mod create;
pub(crate) mod names;
pub(crate) mod status;
pub(crate) mod suspended;

use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::host::device::DeviceNumber;
use crate::host::program::{ProgramError, Programs};
pub(crate) use names::is_name;

/// Time limit of a report. It waits for the volume group's lock, which another command may hold for a while.
const REPORT_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 15 } else { 60 });
/// Time limit of a change. After it, the command is asked to end and never killed ([`Programs::change`]): killed
/// between suspend and resume, it would leave devices suspended, and with them the guest. lvm2 does that part within
/// milliseconds and with signals blocked, so a command that hangs this long is probably waiting for a lock.
const CHANGE_LIMIT: Duration = Duration::from_secs(300);
/// Time limit of an extension, so that the guard does not wait for one for ever.
const EXTEND_LIMIT: Duration = Duration::from_secs(60);
/// Chunk size of a thick snapshot: it has few exceptions to store, and a small write does not copy too much
/// (lvcreate(8): 4 to 512 KiB).
pub(crate) const CHUNK_BYTES: u64 = 64 << 10;

const FIELDS: &str = "\
    vg_name,vg_uuid,vg_free,vg_extent_size,lv_name,lv_uuid,lv_path,lv_attr,lv_role,segtype,stripes,lv_size,\
    lv_metadata_size,origin,origin_uuid,pool_lv,thin_id,transaction_id,chunk_size,data_percent,metadata_percent,\
    lv_tags,lv_time,lv_kernel_major,lv_kernel_minor";

/// A logical volume, as `lvs` describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    /// Name of the volume group.
    pub vg: String,
    /// UUID of the group.
    pub vg_uuid: String,
    /// Free bytes of the group.
    pub vg_free_bytes: u64,
    /// Extent size of the group: its unit of allocation.
    pub vg_extent_bytes: u64,
    /// Name, without the brackets of hidden volumes.
    pub name: String,
    /// UUID, which stays the same after a rename.
    pub uuid: String,
    /// Path of its device, e.g. `/dev/vg0/web1`; empty for a hidden volume.
    pub path: String,
    /// Ten letters of attributes (lvs(8)).
    pub attr: String,
    /// Roles, e.g. `public,origin,thickorigin`.
    pub role: String,
    /// Segment type, e.g. `linear`, `striped`, `raid1`, `thin`, `thin-pool`.
    pub segtype: String,
    /// Number of devices across which each segment is striped.
    pub stripes: u32,
    /// Size; of a thick snapshot, the size of its space for changes.
    pub size_bytes: u64,
    /// Size of a thin pool's metadata; 0 for other volumes.
    pub metadata_bytes: u64,
    /// Name of its origin in the same group; empty if it is not a snapshot.
    pub origin: String,
    /// UUID of its origin.
    pub origin_uuid: String,
    /// Name of its thin pool in the same group; empty if it has none.
    pub pool: String,
    /// Device id in the pool.
    pub thin_id: Option<u32>,
    /// Transaction of the pool that created a thin volume.
    pub transaction: Option<u64>,
    /// Chunk size of a thick snapshot or thin pool; 0 for other volumes.
    pub chunk_bytes: u64,
    /// Fill level of its data, 0 to 1.
    pub data_fill: Option<f64>,
    /// Fill level of a pool's metadata, 0 to 1.
    pub metadata_fill: Option<f64>,
    /// Tags.
    pub tags: Vec<String>,
    /// Creation time.
    pub since: Option<Timestamp>,
    /// Number of its device; `None` if it is not active.
    pub device: Option<DeviceNumber>,
}

impl Volume {
    /// Formats its full name: `vg0/web1`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.vg, self.name)
    }

    /// Tests that it lies in a thin pool.
    pub fn is_thin(&self) -> bool {
        self.segtype == "thin"
    }

    /// Tests that it is a snapshot with space of its own.
    pub fn is_thick_snapshot(&self) -> bool {
        self.attr.starts_with(['s', 'S'])
    }

    /// Tests that it has a tag.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|known| known == tag)
    }
}

/// Returns the device mapper's name of a volume: dashes in names are doubled, and a single one separates them.
pub(crate) fn dm_name(vg: &str, lv: &str, layer: &str) -> String {
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
            // -1 for a volume that is not active.
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

/// Runs `lvs` or `vgs` and returns the rows of its report (lvmreport(7)). Whatever lvm.conf says, every value is a
/// string, sizes are in bytes, times in seconds, and lists are separated by commas.
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
    let parts = answer["report"]
        .as_array()
        .ok_or_else(|| wrong(&"it is not a report"))?;
    // The list in the answer of `lvs` is named lv, that of `vgs` is named vg.
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

/// Lists the volumes that match a selection (lvmreport(7)), hidden ones included.
pub(crate) fn volumes(programs: &Programs, selection: &str) -> Result<Vec<Volume>, ProgramError> {
    let rows: Vec<Row> = report(programs, "lvs", FIELDS, &["-a", "-S", selection])?;
    let mut volumes: Vec<Volume> = rows
        .into_iter()
        .map(|row| row.volume().map_err(|what| not_understood("lvs", &what)))
        .collect::<Result<_, _>>()?;
    // A volume with several kinds of segments has a row for each.
    volumes.dedup_by(|later, first| later.uuid == first.uuid);
    Ok(volumes)
}

/// Finds one volume by its name; `None` if it does not exist.
pub(crate) fn volume(programs: &Programs, vg: &str, name: &str) -> Result<Option<Volume>, ProgramError> {
    if !is_name(vg) || !is_name(name) {
        return Ok(None);
    }
    let found = volumes(programs, &named(vg, name))?;
    Ok(found.into_iter().find(|volume| volume.vg == vg && volume.name == name))
}

/// Returns the selection that matches one volume.
pub(crate) fn named(vg: &str, name: &str) -> String {
    // Hidden volumes are in brackets in reports, and their names match with them or without (2.03.16 matches without).
    format!("(vg_name=\"{vg}\" && lv_name=\"{name}\")")
}

/// Replaces by `_` every character that a tag may not have (lvm(8), VALID NAMES: tags).
pub(crate) fn as_tag(text: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+.-/=!:#&".contains(c);
    let text = text.chars().map(|c| if allowed(c) { c } else { '_' });
    // lvm2's limit is 1024.
    text.take(1000).collect()
}

/// Returns a volume group's free space and extent size, both in bytes.
pub(crate) fn free_space(programs: &Programs, vg: &str) -> Result<(u64, u64), ProgramError> {
    let rows: Vec<GroupRow> = report(programs, "vgs", "vg_free,vg_extent_size", &[vg])?;
    let numbers = rows
        .first()
        .and_then(|row| Some((row.vg_free.parse().ok()?, row.vg_extent_size.parse().ok()?)));
    numbers
        .filter(|(_, extent_bytes)| *extent_bytes > 0)
        .ok_or_else(|| not_understood("vgs", "it does not report free space"))
}

/// A snapshot to create: read-only and active.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct NewSnapshot {
    /// Volume group of origin and snapshot.
    pub vg: String,
    /// Name of the origin.
    pub origin: String,
    /// Thin pool of a thin origin.
    pub pool: Option<String>,
    /// Name of the snapshot.
    pub name: String,
    /// Size of its space for changes; `None` in a thin pool.
    pub extents: Option<u64>,
    /// Tags.
    pub tags: Vec<String>,
}

/// Creates a snapshot.
pub(crate) fn create(programs: &Programs, snapshot: &NewSnapshot) -> Result<(), ProgramError> {
    let mut args: Vec<String> = ["-y", "-s", "-p", "r"].map(str::to_owned).into();
    match snapshot.extents {
        Some(extents) => args.extend(["-l".into(), extents.to_string(), "-c".into(), format!("{CHUNK_BYTES}b")]),
        // By default, activation skips thin snapshots, and they are created inactive.
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

/// Removes a volume without asking, if it still is that volume with these tags after lvm2 has locked the group. So
/// success does not mean that it is gone.
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

/// Part of a volume to extend, and by how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extend {
    /// The space of a snapshot, or the data of a pool.
    Data {
        /// Additional extents.
        extents: u64,
    },
    /// A pool's metadata.
    PoolMetadata {
        /// Additional bytes.
        bytes: u64,
    },
}

/// Makes a thick snapshot or thin pool larger.
pub(crate) fn extend(programs: &Programs, vg: &str, name: &str, extend: Extend) -> Result<(), ProgramError> {
    let [option, value] = match extend {
        Extend::Data { extents } => ["-l".to_owned(), format!("+{extents}")],
        Extend::PoolMetadata { bytes } => ["--poolmetadatasize".to_owned(), format!("+{bytes}b")],
    };
    let changed = programs.change("lvextend", &[option, value, format!("{vg}/{name}")], EXTEND_LIMIT);
    suspended::after(programs, vg, &[name], changed)
}

/// Removes and adds tags of a volume in one step.
pub(crate) fn change_tags(
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
    fn names_and_tags_cannot_inject_lvm_arguments() {
        assert!(is_name("web1-root.x+y_z"));
        for bad in ["", "a\"b", "a b", "-x", "a/b", "a&&b", "ä", ".", ".."] {
            assert!(!is_name(bad), "{bad}");
        }
        assert_eq!(as_tag("höst 1,@x"), "h_st_1__x");
    }
}
