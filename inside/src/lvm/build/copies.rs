//! Volumes with redundancy: mirrors, and RAID 0 to 10 with their hidden volumes for data and metadata.

use std::sync::Arc;

use super::{Base, Builder, Built, chunk_bytes, kind};
use crate::lvm::map::Copies;
use crate::lvm::raid::Superblock;
use crate::lvm::stripes::{Layout, Parity, Stripes};
use crate::lvm::text::{Section, Value};

/// Most devices of an array (`MAX_RAID_DEVICES`, drivers/md/dm-raid.c).
const MAX_DEVICES: usize = 253;

/// Makes a device of copies, of which those from the first on are complete. Copies that are missing are left out.
pub(super) fn copies(legs: Vec<Built>, readable: usize, size_bytes: u64) -> Built {
    let readable = legs.iter().take(readable).filter(|leg| leg.is_ok()).count().max(1);
    let (mut found, mut missing) = (Vec::new(), None);
    for leg in legs {
        match leg {
            Ok(leg) => found.push(leg),
            Err(reason) => missing = missing.or(Some(reason)),
        }
    }
    let devices = found.iter().map(|leg| Arc::clone(&leg.device)).collect();
    match Copies::new(devices, readable, size_bytes) {
        Some(copies) => Base::over(Arc::new(copies), &found),
        None => Err(missing.unwrap_or_else(|| "it has no copy".to_owned())),
    }
}

/// A device of an array.
struct Leg {
    data: Built,
    superblock: Option<Superblock>,
    /// LVM asked the kernel to rebuild it.
    is_rebuilding: bool,
    /// To be read only if there is no other.
    is_last_choice: bool,
}

/// Builds a RAID volume.
pub(super) fn raid(builder: &mut Builder, index: usize, segment: &Section, size_bytes: u64) -> Built {
    let name = builder.name(index).to_owned();
    let legs = legs(builder, segment)?;
    let count = legs.len() as u64;
    let (layout, leg_bytes) = match kind(segment) {
        "raid0" | "raid0_meta" => return plain(legs, segment, size_bytes),
        "raid1" => (None, size_bytes),
        "raid10" | "raid10_near" => {
            let copies = segment.number("data_copies").unwrap_or(2);
            let all_bytes = size_bytes
                .checked_mul(copies)
                .ok_or("its number of copies is damaged")?;
            (Some(Layout::Near(copies)), all_bytes / count)
        }
        kind => {
            let parity = Parity::of_type(kind);
            let parity = parity.ok_or_else(|| "a RAID layout of this kind is not supported".to_owned())?;
            let data = count.checked_sub(parity.count()).filter(|data| *data > 0);
            let data = data.ok_or("its array has too few devices")?;
            (Some(Layout::Parity(parity)), size_bytes / data)
        }
    };
    check_size(&legs, leg_bytes)?;
    let superblocks = || legs.iter().filter_map(|leg| leg.superblock);
    let newest = superblocks().max_by_key(|superblock| superblock.events);
    let is_moved = ["reshape_count", "data_offset"]
        .iter()
        .any(|key| segment.number(key).is_some());
    if is_moved || superblocks().any(|superblock| superblock.is_reshaped) {
        return Err("its array is being reshaped".to_owned());
    }
    let number = match layout {
        Some(Layout::Parity(parity)) => Some(parity.number()),
        Some(Layout::Near(copies)) => u32::try_from(copies).ok().map(|copies| (10, 0x100 | copies)),
        _ => None,
    };
    if newest.is_some_and(|newest| number.is_some_and(|number| number != newest.layout)) {
        return Err("its array has another layout than the metadata say".to_owned());
    }
    let is_synchronised = newest.is_none_or(|newest| newest.is_synchronised);
    let is_complete = |number: usize, leg: &Leg| {
        let is_current = match (newest, leg.superblock) {
            // A change of the count is written to one device after the other, and a backup may be made between them.
            (Some(newest), Some(own)) => {
                let is_late = own.events.saturating_add(1) < newest.events;
                own.is_rebuilt && !is_late && !newest.has_failed(number)
            }
            (Some(_), None) => false,
            (None, _) => true,
        };
        leg.data.is_ok() && is_current && !leg.is_rebuilding
    };
    let complete: Vec<bool> = legs
        .iter()
        .enumerate()
        .map(|(number, leg)| is_complete(number, leg))
        .collect();
    let missing = complete.iter().filter(|is_complete| !**is_complete).count();
    let no_leg = legs.iter().find_map(|leg| leg.data.as_ref().err().cloned());
    let no_leg = no_leg.unwrap_or_else(|| "the devices of its array are not complete".to_owned());
    if missing > 0 {
        builder.remark(format!(
            "{name}: {missing} of the array's {count} devices are missing or out of date"
        ));
    }
    let Some(layout) = layout else {
        return mirror(builder, &name, legs, &complete, is_synchronised, size_bytes).unwrap_or(Err(no_leg));
    };
    if missing > 0 && !is_synchronised {
        return Err(no_leg);
    }
    let found: Vec<Option<Base>> = legs
        .into_iter()
        .zip(complete)
        .map(|(leg, is_complete)| leg.data.ok().filter(|_| is_complete))
        .collect();
    let devices = found.iter().map(|leg| leg.as_ref().map(|leg| Arc::clone(&leg.device)));
    let stripes = Stripes::new(devices.collect(), layout, chunk_bytes(segment), size_bytes).ok_or(if missing > 0 {
        no_leg
    } else {
        "its stripes do not fill its size".to_owned()
    })?;
    let found: Vec<Base> = found.into_iter().flatten().collect();
    if missing > 0 {
        Base::over(Arc::new(stripes), &found)
    } else {
        Base::beside(Arc::new(stripes), &found)
    }
}

fn check_size(legs: &[Leg], leg_bytes: u64) -> Built<()> {
    let is_small = |leg: &Leg| leg.data.as_ref().is_ok_and(|data| data.device.size_bytes() < leg_bytes);
    if legs.iter().any(is_small) {
        return Err("its extents are outside of its devices".to_owned());
    }
    Ok(())
}

/// Builds RAID 0, where no device can be out of date.
fn plain(legs: Vec<Leg>, segment: &Section, size_bytes: u64) -> Built {
    check_size(&legs, size_bytes / legs.len() as u64)?;
    let legs: Vec<Base> = legs.into_iter().map(|leg| leg.data).collect::<Built<_>>()?;
    let devices = legs.iter().map(|leg| Some(Arc::clone(&leg.device))).collect();
    let stripes = Stripes::new(devices, Layout::Plain, chunk_bytes(segment), size_bytes);
    let stripes = stripes.ok_or("its stripes do not fill its size")?;
    Base::beside(Arc::new(stripes), &legs)
}

/// Builds RAID 1 from the complete devices; `None` if there is none.
fn mirror(
    builder: &mut Builder,
    name: &str,
    legs: Vec<Leg>,
    complete: &[bool],
    is_synchronised: bool,
    size_bytes: u64,
) -> Option<Built> {
    let mut found: Vec<Leg> = legs
        .into_iter()
        .zip(complete)
        .filter_map(|(leg, is_complete)| is_complete.then_some(leg))
        .collect();
    found.sort_by_key(|leg| leg.is_last_choice);
    if !is_synchronised {
        builder.remark(format!(
            "{name}: its copies were not synchronised yet; the first one is read"
        ));
    }
    let readable = if is_synchronised { found.len() } else { 1 };
    let found: Vec<Built> = found.into_iter().map(|leg| leg.data).collect();
    (!found.is_empty()).then(|| copies(found, readable, size_bytes))
}

/// Parses the list of devices: each is a volume of data, after its volume of metadata if it has one
/// (`_raid_text_import_areas`, lib/raid/raid.c).
fn legs(builder: &mut Builder, segment: &Section) -> Built<Vec<Leg>> {
    let damaged = || "its list of devices is damaged".to_owned();
    let key = if kind(segment) == "raid0" { "raid0_lvs" } else { "raids" };
    let mut names = Vec::new();
    for value in segment.list(key) {
        match value {
            Value::Text(name) => names.push(name.as_str()),
            _ => return Err(damaged()),
        }
    }
    let mut legs = Vec::new();
    let mut names = names.into_iter();
    while let Some(mut name) = names.next() {
        let mut superblock = None;
        if name.contains("_rmeta_") {
            // Without its metadata, a device is not known to be complete.
            let metadata = builder.find(Some(name)).and_then(|part| builder.claim(part));
            let read = metadata.map(|metadata| Superblock::read(metadata.device.as_ref()));
            superblock = read.ok().and_then(Result::ok).flatten();
            name = names.next().ok_or_else(damaged)?;
        }
        let part = builder.find(Some(name))?;
        let group = builder.group;
        let flags = &group.volumes[part].1;
        legs.push(Leg {
            data: builder.claim(part),
            superblock,
            is_rebuilding: flags.has_flag("REBUILD"),
            is_last_choice: flags.has_flag("WRITEMOSTLY"),
        });
        if legs.len() > MAX_DEVICES {
            return Err(damaged());
        }
    }
    let count = segment.number("device_count").or(segment.number("stripe_count"));
    if legs.is_empty() || count != Some(legs.len() as u64) {
        return Err(damaged());
    }
    Ok(legs)
}
