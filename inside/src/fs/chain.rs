//! Chains of clusters, as FAT and exFAT have them: each cluster's entry in a table names the next one.

use crate::error::{Error, Result};
use crate::fs::runs::{Runs, Source};

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
