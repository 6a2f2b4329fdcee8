//! Makes devices from the segments of a group's text. A segment that can't be read makes its volume a phrase that says
//! why; other volumes are not affected.

mod copies;
mod layers;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::LogicalVolume;
use super::group::{GroupText, is_name};
use super::map::{Blank, Chain, Part, Whole};
use super::snapshot::{Room, Snapshot};
use super::stripes::{Layout, Stripes};
use super::text::{Section, Value};
use crate::device::SharedDevice;

/// Deepest nesting of volumes. A thin volume in a cached pool on RAID with checksums has seven levels.
const MAX_DEPTH: usize = 16;
/// Most devices of one segment (`DEFAULT_RAID_MAX_IMAGES` and the kernel's limit are 253).
const MAX_LEGS: usize = 256;
/// Most reads or writes of physical volumes that one of a volume's may lead to, apart from its own length. Mirrors of
/// mirrors would multiply them, and so would pools whose metadata lie in pools.
const MAX_COST: u64 = 4096;
/// Most remarks on a group.
const MAX_REMARKS: usize = 100;

/// Result of building: the reason is a phrase for people.
pub(super) type Built<T = Base> = Result<T, String>;

/// A volume or a part of one, and what it lies on.
#[derive(Clone)]
pub(super) struct Base {
    pub(super) device: SharedDevice,
    /// Physical volumes, by their index.
    pub(super) members: BTreeSet<usize>,
    /// Bound of the operations below for one on this device.
    pub(super) cost: u64,
}

impl Base {
    /// Makes the base of a device that is made of others, whose costs add up.
    pub(super) fn over(device: SharedDevice, below: &[Base]) -> Built {
        let cost = below.iter().map(|base| base.cost).fold(0, u64::saturating_add);
        let members = below.iter().flat_map(|base| &base.members).copied().collect();
        Self::with_cost(device, members, cost)
    }

    /// Makes the base of a device each of whose bytes lies on one of those below.
    pub(super) fn beside(device: SharedDevice, below: &[Base]) -> Built {
        let cost = below.iter().map(|base| base.cost).max().unwrap_or(0);
        let members = below.iter().flat_map(|base| &base.members).copied().collect();
        Self::with_cost(device, members, cost)
    }

    /// Returns the same with a multiple of the cost.
    pub(super) fn times(&self, factor: u64) -> Self {
        let cost = self.cost.saturating_mul(factor);
        Self { cost, ..self.clone() }
    }

    fn with_cost(device: SharedDevice, members: BTreeSet<usize>, cost: u64) -> Built {
        if cost > MAX_COST {
            return Err("it consists of too many volumes".to_owned());
        }
        Ok(Self { device, members, cost })
    }
}

enum State {
    Unknown,
    /// Asking for it again means that it is part of itself.
    Building,
    Known(Built),
}

/// The physical volumes that are there: their devices by UUID.
pub(super) struct Members {
    pub(super) devices: Vec<SharedDevice>,
    pub(super) by_uuid: HashMap<String, usize>,
}

pub(super) struct Builder<'a> {
    pub(super) group: &'a GroupText,
    members: &'a Members,
    states: Vec<State>,
    pub(super) pools: HashMap<usize, Built<layers::OpenPool>>,
    /// Origins of snapshots, by the volumes that are their stores.
    origins: HashMap<usize, usize>,
    /// Stores of snapshots that are being merged, by their origins, and all those stores.
    merging: HashMap<usize, usize>,
    merging_stores: HashSet<usize>,
    /// Volumes that are devices of arrays.
    claimed: HashSet<usize>,
    /// Memory for the changed chunks of all snapshots.
    room: Room,
    depth: usize,
    /// Extents in use: physical volume, offset, length, and the volume that has them.
    extents: Vec<(usize, u64, u64, usize)>,
    pub(super) remarks: Vec<String>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(group: &'a GroupText, members: &'a Members) -> Self {
        let (mut origins, mut merging) = (HashMap::new(), HashMap::new());
        for (_, section) in &group.volumes {
            for (_, segment) in section.sections() {
                let named = |key| segment.text(key).and_then(|name| group.find(name));
                let Some(origin) = named("origin").filter(|_| kind(segment) == "snapshot") else {
                    continue;
                };
                if let Some(store) = named("cow_store") {
                    origins.insert(store, origin);
                } else if let Some(store) = named("merging_store") {
                    merging.insert(origin, store);
                }
            }
        }
        Self {
            group,
            members,
            states: group.volumes.iter().map(|_| State::Unknown).collect(),
            pools: HashMap::new(),
            origins,
            merging_stores: merging.values().copied().collect(),
            merging,
            claimed: HashSet::new(),
            room: Room::default(),
            depth: 0,
            extents: Vec::new(),
            remarks: Vec::new(),
        }
    }

    pub(super) fn remark(&mut self, remark: String) {
        if self.remarks.len() < MAX_REMARKS && !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    /// Builds all volumes that the guest's own system shows.
    pub(super) fn volumes(&mut self) -> Vec<LogicalVolume> {
        let mut volumes = Vec::new();
        let group = self.group;
        for (index, (name, section)) in group.volumes.iter().enumerate() {
            let kind = section.sections().first().map_or("", |(_, segment)| kind(segment));
            // Pools have no content of their own, and LVM keeps a volume for each relation of a snapshot to its origin.
            let is_content = !kind.ends_with("-pool") && kind != "snapshot";
            if !self.is_visible(index, section) || !is_content || group.find(name) != Some(index) {
                continue;
            }
            if !is_name(name) {
                self.remark("a volume has an invalid name".to_owned());
                continue;
            }
            let built = self.view(index);
            let size_bytes = match &built {
                Ok(base) => base.device.size_bytes(),
                Err(_) => self.size_bytes(self.origins.get(&index).copied().unwrap_or(index)),
            };
            let device = built.map(|base| -> SharedDevice {
                let bases = base
                    .members
                    .iter()
                    .map(|member| Arc::clone(&self.members.devices[*member]));
                Arc::new(Whole {
                    bases: bases.collect(),
                    device: base.device,
                })
            });
            volumes.push(LogicalVolume {
                name: name.clone(),
                size_bytes,
                device,
            });
        }
        self.find_overlaps();
        volumes
    }

    /// Tests that LVM shows a volume (`lv_is_visible`, lib/metadata/metadata.c). The store of a snapshot has no flag for
    /// it, and while a snapshot is being merged, only its origin is shown.
    fn is_visible(&self, index: usize, section: &Section) -> bool {
        !self.merging_stores.contains(&index) && (self.origins.contains_key(&index) || section.has_flag("VISIBLE"))
    }

    fn size_bytes(&self, index: usize) -> u64 {
        let segments = self.group.volumes[index].1.sections().iter();
        let extents = segments.filter_map(|(_, segment)| segment.number("extent_count"));
        let bytes = extents.map(|extents| extents.saturating_mul(self.group.extent_bytes));
        bytes.fold(0, u64::saturating_add)
    }

    /// Remarks on extents that two volumes have: LVM would refuse the group, and one of the two has foreign content.
    fn find_overlaps(&mut self) {
        let mut extents = std::mem::take(&mut self.extents);
        extents.sort_unstable();
        let Some(mut last) = extents
            .first()
            .map(|(member, start, _, volume)| (*member, *start, *volume))
        else {
            return;
        };
        // The end of all extents so far on that physical volume, and the volume that reaches there.
        for (member, start_bytes, size_bytes, volume) in extents {
            if member == last.0 && start_bytes < last.1 {
                let names = [self.name(last.2).to_owned(), self.name(volume).to_owned()];
                self.remark(format!("volumes {} and {} share extents", names[0], names[1]));
            }
            let end_bytes = start_bytes.saturating_add(size_bytes);
            if member != last.0 || end_bytes > last.1 {
                last = (member, end_bytes, volume);
            }
        }
    }

    /// Returns a volume's name for a phrase.
    pub(super) fn name(&self, index: usize) -> &str {
        let name = &self.group.volumes[index].0;
        if is_name(name) { name } else { "of an invalid name" }
    }

    /// Builds a volume as the guest's system shows it: a store of a snapshot shows the snapshot.
    fn view(&mut self, index: usize) -> Built {
        let (origin, store) = match (self.origins.get(&index), self.merging.get(&index)) {
            (Some(origin), _) => (*origin, index),
            (None, Some(store)) => (index, *store),
            (None, None) => return self.volume(index),
        };
        let below = [self.volume(origin)?, self.volume(store)?];
        let [origin, store] = &below;
        let snapshot = Snapshot::open(Arc::clone(&origin.device), Arc::clone(&store.device), &self.room);
        let snapshot = snapshot.map_err(|error| error.to_string())??;
        Base::over(Arc::new(snapshot), &below)
    }

    /// Builds a volume from its segments.
    pub(super) fn volume(&mut self, index: usize) -> Built {
        match &self.states[index] {
            State::Known(built) => return built.clone(),
            State::Building => return Err(format!("volume {} is part of itself", self.name(index))),
            State::Unknown => {}
        }
        if self.depth >= MAX_DEPTH {
            return Err(format!("volumes nested in more than {MAX_DEPTH} levels"));
        }
        self.states[index] = State::Building;
        self.depth += 1;
        let built = self.segments(index);
        self.depth -= 1;
        self.states[index] = State::Known(built.clone());
        built
    }

    fn segments(&mut self, index: usize) -> Built {
        let section = &self.group.volumes[index].1;
        let mut segments = Vec::new();
        for (_, segment) in section.sections() {
            let (start, count) = (segment.number("start_extent"), segment.number("extent_count"));
            segments.push((start, count.unwrap_or(0), segment));
        }
        segments.sort_by_key(|(start, _, _)| *start);
        if segments.is_empty() || section.number("segment_count") != Some(segments.len() as u64) {
            return Err("its metadata lack segments".to_owned());
        }
        let is_simple = |segment: &Section| matches!(kind(segment), "striped" | "linear" | "mirror" | "zero" | "error");
        let (mut next, is_only) = (0_u64, segments.len() == 1);
        let mut bases = Vec::new();
        for (start, count, segment) in segments {
            if start != Some(next) || count == 0 {
                return Err("its segments overlap or leave a gap".to_owned());
            }
            if !is_only && !is_simple(segment) {
                return Err(format!(
                    "segment type {} in a part of it is not supported",
                    kind_name(segment)
                ));
            }
            let end = next.checked_add(count).filter(|end| self.bytes(*end).is_some());
            next = end.ok_or("it is larger than any device")?;
            bases.push(self.segment(index, segment, count)?);
        }
        if is_only && let Some(base) = bases.pop() {
            return Ok(base);
        }
        let parts = bases.iter().map(|base| Arc::clone(&base.device)).collect();
        let chain = Chain::new(parts).ok_or("it is larger than any device")?;
        Base::beside(Arc::new(chain), &bases)
    }

    /// Returns the length of extents.
    fn bytes(&self, extents: u64) -> Option<u64> {
        extents.checked_mul(self.group.extent_bytes)
    }

    fn segment(&mut self, index: usize, segment: &Section, extents: u64) -> Built {
        let size_bytes = self.bytes(extents).ok_or("it is larger than any device")?;
        match kind(segment) {
            "striped" | "linear" => self.striped(index, segment, size_bytes),
            "mirror" => {
                let moved = segment.number("extents_moved");
                self.mirror(index, segment, size_bytes, moved == Some(extents))
            }
            blank @ ("zero" | "error") => {
                let is_zero = blank == "zero";
                Base::beside(Arc::new(Blank { size_bytes, is_zero }), &[])
            }
            "thin" => layers::thin(self, index, segment, size_bytes),
            "cache" => layers::cache(self, segment, size_bytes),
            "writecache" => Err(format!(
                "its newest data may be in the cache {}",
                self.named(segment, "writecache")
            )),
            "integrity" => Err("volumes with checksums (dm-integrity) are not supported".to_owned()),
            "vdo" => Err("deduplicated volumes (VDO) are not supported".to_owned()),
            pool if pool.ends_with("-pool") => Err("it is a pool of volumes".to_owned()),
            raid if raid.starts_with("raid") => copies::raid(self, index, segment, size_bytes),
            _ => Err(format!("segment type {} is not supported", kind_name(segment))),
        }
    }

    /// Returns the name in a field, for a phrase.
    fn named<'s>(&self, segment: &'s Section, key: &str) -> &'s str {
        segment
            .text(key)
            .filter(|name| is_name(name))
            .unwrap_or("of an invalid name")
    }

    /// Finds the logical volume that a field names.
    pub(super) fn find(&self, name: Option<&str>) -> Built<usize> {
        let found = name.and_then(|name| self.group.find(name));
        found.ok_or_else(|| {
            let name = name.filter(|name| is_name(name)).unwrap_or("without a name");
            format!("its part {name} is not in the metadata")
        })
    }

    /// Parses a list of names and extents: `text_import_areas`, lib/format_text/import_vsn1.c.
    fn areas<'s>(segment: &'s Section, key: &str, count_key: &str) -> Built<Vec<(&'s str, u64)>> {
        let mut areas = Vec::new();
        for pair in segment.list(key).chunks(2) {
            match pair {
                [Value::Text(name), Value::Number(extent)] => {
                    areas.push((name.as_str(), u64::try_from(*extent).map_err(|_| "negative extent")?));
                }
                _ => return Err(format!("its list of {key} is damaged")),
            }
        }
        if !(1..=MAX_LEGS).contains(&areas.len()) || segment.number(count_key) != Some(areas.len() as u64) {
            return Err(format!("its list of {key} is damaged"));
        }
        Ok(areas)
    }

    /// Builds a part of a physical volume or of another logical one.
    fn area(&mut self, index: usize, (name, extent): (&str, u64), size_bytes: u64) -> Built {
        let damaged = || "its extents are outside of its devices".to_owned();
        let offset_bytes = self.bytes(extent).ok_or_else(damaged)?;
        let end_bytes = offset_bytes.checked_add(size_bytes).ok_or_else(damaged)?;
        let Some(member) = self.group.members.get(name) else {
            let base = self.find(Some(name)).and_then(|part| self.volume(part))?;
            if end_bytes > base.device.size_bytes() {
                return Err(damaged());
            }
            let part = Part::new(Arc::clone(&base.device), offset_bytes, size_bytes).ok_or_else(damaged)?;
            return Base::beside(Arc::new(part), &[base]);
        };
        if self
            .bytes(member.extents)
            .is_none_or(|member_bytes| end_bytes > member_bytes)
        {
            return Err(damaged());
        }
        let Some(number) = self.members.by_uuid.get(&member.uuid).copied() else {
            return Err(format!(
                "physical volume {} is on none of the disks of this backup",
                member.uuid
            ));
        };
        let start_bytes = member.start_bytes.checked_add(offset_bytes).ok_or_else(damaged)?;
        let device = Arc::clone(&self.members.devices[number]);
        if start_bytes
            .checked_add(size_bytes)
            .is_none_or(|end_bytes| end_bytes > device.size_bytes())
        {
            let uuid = &member.uuid;
            self.remark(format!(
                "physical volume {uuid} is smaller than the group's metadata say"
            ));
        }
        let part = Part::new(device, start_bytes, size_bytes).ok_or_else(damaged)?;
        self.extents.push((number, start_bytes, size_bytes, index));
        Base::with_cost(Arc::new(part), BTreeSet::from([number]), 1)
    }

    fn striped(&mut self, index: usize, segment: &Section, size_bytes: u64) -> Built {
        let areas = Self::areas(segment, "stripes", "stripe_count")?;
        let count = areas.len() as u64;
        if let [area] = areas[..] {
            return self.area(index, area, size_bytes);
        }
        let damaged = "its stripes do not fill its size";
        if !size_bytes.is_multiple_of(count) {
            return Err(damaged.to_owned());
        }
        let legs: Built<Vec<_>> = areas
            .into_iter()
            .map(|area| self.area(index, area, size_bytes / count))
            .collect();
        let legs = legs?;
        let devices = legs.iter().map(|leg| Some(Arc::clone(&leg.device))).collect();
        let stripes = Stripes::new(devices, Layout::Plain, chunk_bytes(segment), size_bytes).ok_or(damaged)?;
        Base::beside(Arc::new(stripes), &legs)
    }

    /// Builds a mirror of the old kind. Its first copy is always right, because the kernel resynchronises from it. While
    /// pvmove works, this is the source, and when it has finished, only the copy is in use (lib/mirror/mirrored.c).
    fn mirror(&mut self, index: usize, segment: &Section, size_bytes: u64, is_moved: bool) -> Built {
        let areas = Self::areas(segment, "mirrors", "mirror_count")?;
        let used = areas.into_iter().skip(usize::from(is_moved));
        let legs: Vec<_> = used.map(|area| self.area(index, area, size_bytes)).collect();
        if let [Err(_), others @ ..] = &legs[..]
            && others.iter().any(Result::is_ok)
        {
            let name = self.name(index).to_owned();
            self.remark(format!(
                "{name}: the first copy of the mirror is missing; another may be out of date"
            ));
        }
        copies::copies(legs, 1, size_bytes)
    }

    /// Builds the device of an array, which no other array may have.
    pub(super) fn claim(&mut self, index: usize) -> Built {
        if !self.claimed.insert(index) {
            return Err(format!("volume {} is part of two arrays", self.name(index)));
        }
        self.volume(index)
    }
}

/// Returns the type of a segment without the flags that newer versions append (`cache+CACHE_USES_CACHEVOL`).
pub(super) fn kind(segment: &Section) -> &str {
    let kind = segment.text("type").unwrap_or("striped");
    kind.split('+').next().unwrap_or_default()
}

/// Returns the type of a segment for a phrase.
fn kind_name(segment: &Section) -> &str {
    Some(kind(segment))
        .filter(|kind| is_name(kind))
        .unwrap_or("of an invalid name")
}

/// Returns the length of a segment's stripes; 0 if it has none.
pub(super) fn chunk_bytes(segment: &Section) -> u64 {
    let sectors = segment.number("stripe_size").unwrap_or(0);
    sectors.checked_mul(512).unwrap_or(0)
}
