//! Chains of clusters, as FAT and exFAT have them: each cluster's entry in a table names the next one.

use std::ops::ControlFlow;

use crate::error::{Error, Result};
use crate::fs::pages::Pages;
use crate::fs::runs::{Runs, Source};

/// Length of an entry of a directory.
pub(crate) const ENTRY_BYTES: u64 = 32;
/// An entry of a directory. One that begins with 0 ends it.
pub(crate) type RawEntry = [u8; ENTRY_BYTES as usize];

/// A volume whose clusters are in chains.
pub(crate) trait Clusters {
    /// Length of a cluster.
    fn cluster_bytes(&self) -> u64;

    /// Returns the offset of a cluster; `None` if the volume has none of that number.
    fn cluster_at(&self, cluster: u32) -> Option<u64>;

    /// Returns the cluster after `cluster`; `None` at the end of a chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>>;
}

/// Returns the parts of the chain that starts at `first`: up to its end, or to `limit_bytes`. The error is that of the
/// chain's damaged end.
pub(crate) fn chain(volume: &dyn Clusters, first: u32, limit_bytes: u64) -> (Runs, Result<()>) {
    let mut runs = Runs::default();
    let walked = walk(volume, first, limit_bytes, &mut runs);
    (runs, walked)
}

/// Calls `each` with the offset of every entry in the parts of a directory until one is the end or `each` breaks. A part
/// that can't be read does not hide the others; `walked` is the error if nothing ends the directory.
pub(crate) fn each_entry(
    pages: &Pages,
    (runs, walked): (Runs, Result<()>),
    each: &mut dyn FnMut(u64, &RawEntry) -> ControlFlow<()>,
) -> Result<()> {
    let mut failed = walked;
    let mut at = 0;
    // Pieces of a cache page: a part that can't be read costs no more than that.
    let mut piece = vec![0; 4096];
    while let Some((Source::Device(from), left_bytes)) = runs.at(at) {
        let len = left_bytes.min(piece.len() as u64);
        let bytes = &mut piece[..len as usize];
        at += len;
        if let Err(error) = pages.read_at(from, bytes) {
            failed = failed.and(Err(error));
            continue;
        }
        for (index, entry) in bytes.as_chunks().0.iter().enumerate() {
            if entry[0] == 0 || each(from + index as u64 * ENTRY_BYTES, entry).is_break() {
                // A chain that is damaged after the end of the entries loses none.
                return Ok(());
            }
        }
    }
    failed
}

fn walk(volume: &dyn Clusters, first: u32, limit_bytes: u64, runs: &mut Runs) -> Result<()> {
    // A loop passes one of the clusters at which the number of steps is a power of two (Brent's algorithm).
    let (mut cluster, mut watched, mut steps) = (first, None, 0_u64);
    while runs.size_bytes() < limit_bytes {
        if watched == Some(cluster) {
            return Err(Error::damaged(format!("cluster chain: loop at {cluster}")));
        }
        steps += 1;
        if steps.is_power_of_two() {
            watched = Some(cluster);
        }
        let at = volume.cluster_at(cluster);
        let at = at.ok_or_else(|| Error::damaged(format!("cluster chain: no cluster {cluster}")))?;
        runs.push(Source::Device(at), volume.cluster_bytes())?;
        match volume.next(cluster)? {
            Some(next) => cluster = next,
            None => break,
        }
    }
    Ok(())
}
