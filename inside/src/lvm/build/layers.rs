//! Volumes on top of others: cached ones, and those of thin pools.

use std::sync::Arc;

use super::{Base, Builder, Built, kind};
use crate::error::Error;
use crate::lvm::map::Part;
use crate::lvm::text::Section;
use crate::lvm::thin::{Pool, Thin};

/// Most thin pools of a group: each keeps nodes in memory.
const MAX_POOLS: usize = 64;
/// Bound of the nodes that are read to find one block: ten of two paths.
const LOOKUP_COST: u64 = 20;

/// A thin pool, and what it lies on.
pub(super) type OpenPool = (Arc<Pool>, Base);

/// Builds a cached volume from its origin, if that has all data.
pub(super) fn cache(builder: &mut Builder, segment: &Section, size_bytes: u64) -> Built {
    let pool = builder.find(segment.text("cache_pool"))?;
    // A pool has the mode in its own segment; with a plain volume as cache, it is in the segment of the cached one.
    let pool_segment = builder.group.volumes[pool].1.sections().first();
    let pool_mode = pool_segment.and_then(|(_, segment)| segment.text("cache_mode"));
    match segment.text("cache_mode").or(pool_mode) {
        Some("writethrough" | "passthrough") => {}
        _ => {
            let pool = builder.name(pool);
            return Err(format!("its newest data may be in the cache {pool} (mode writeback)"));
        }
    }
    let origin = builder
        .find(segment.text("origin"))
        .and_then(|origin| builder.volume(origin))?;
    if origin.device.size_bytes() < size_bytes {
        return Err("its extents are outside of its devices".to_owned());
    }
    // After a write here, the cache would have the old bytes, and the guest would read those.
    let part = Part::new(Arc::clone(&origin.device), 0, size_bytes).ok_or("it is larger than any device")?;
    Base::beside(Arc::new(part.read_only()), &[origin])
}

/// Builds a volume of a thin pool.
pub(super) fn thin(builder: &mut Builder, index: usize, segment: &Section, size_bytes: u64) -> Built {
    let pool_index = builder.find(segment.text("thin_pool"))?;
    let (pool, base) = known_pool(builder, pool_index)?;
    let pool_name = builder.name(pool_index).to_owned();
    let device = segment
        .number("device_id")
        .ok_or("its number in the thin pool is damaged")?;
    let mut below = vec![base];
    let mut origin = None;
    if let Some(name) = segment.text("external_origin") {
        let base = builder.find(Some(name)).and_then(|origin| builder.volume(origin))?;
        origin = Some(Arc::clone(&base.device));
        below.push(base);
    }
    if segment.text("merge").is_some() {
        let name = builder.name(index).to_owned();
        builder.remark(format!(
            "{name}: a snapshot is to be merged into it, which has not begun"
        ));
    }
    match Thin::open(pool, device, size_bytes, origin) {
        Ok(thin) => Base::over(Arc::new(thin), &below),
        Err(Error::NotFound) => Err(format!("thin pool {pool_name} has no volume {device}")),
        Err(error) => Err(error.to_string()),
    }
}

fn known_pool(builder: &mut Builder, index: usize) -> Built<OpenPool> {
    if let Some(known) = builder.pools.get(&index) {
        return known.clone();
    }
    if builder.pools.len() >= MAX_POOLS {
        return Err(format!("more than {MAX_POOLS} thin pools are not supported"));
    }
    let pool = open_pool(builder, index);
    builder.pools.insert(index, pool.clone());
    pool
}

fn open_pool(builder: &mut Builder, index: usize) -> Built<OpenPool> {
    let name = builder.name(index).to_owned();
    let [(_, segment)] = builder.group.volumes[index].1.sections() else {
        return Err(format!("thin pool {name} has more than one segment"));
    };
    if kind(segment) != "thin-pool" {
        return Err(format!("volume {name} is not a thin pool"));
    }
    let metadata = builder
        .find(segment.text("metadata"))
        .and_then(|part| builder.volume(part))?;
    let data = builder
        .find(segment.text("pool"))
        .and_then(|part| builder.volume(part))?;
    let pool = Pool::open(Arc::clone(&metadata.device), Arc::clone(&data.device));
    let pool = pool.map_err(|error| error.to_string())?;
    let block_sectors = segment.number("chunk_size").or(segment.number("data_block_size"));
    if block_sectors.and_then(|sectors| sectors.checked_mul(512)) != Some(pool.block_bytes) {
        return Err(format!(
            "thin pool {name}: its metadata have another block size than the group"
        ));
    }
    if pool.needs_check {
        builder.remark(format!(
            "thin pool {name}: the guest's kernel found its metadata damaged (needs_check)"
        ));
    }
    // LVM writes its own metadata first, with messages that the kernel is yet to execute.
    let transaction = segment.number("transaction_id").unwrap_or(0);
    let pending = u64::from(!segment.sections().is_empty());
    if transaction != pool.transaction && pool.transaction.checked_add(pending) != Some(transaction) {
        builder.remark(format!(
            "thin pool {name}: transaction {}, but {transaction} in the group's metadata",
            pool.transaction
        ));
    }
    let device = Arc::clone(&data.device);
    Ok((
        Arc::new(pool),
        Base::over(device, &[metadata.times(LOOKUP_COST), data])?,
    ))
}
