//! Sizes of thick snapshots.

use super::SnapshotSize;
use crate::host::lvm::CHUNK_BYTES;

/// Share of the origin's size that a snapshot without history gets.
const DEFAULT_SHARE: f64 = 0.2;
/// With history: multiple of the use of the last runs, and the least share of the origin.
const PEAK_FACTOR: u64 = 2;
const PEAK_SHARE: f64 = 0.05;
/// Least size; a smaller snapshot overflows at once.
const MIN_BYTES: u64 = 4 << 20;

/// Extents that a snapshot should get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Want {
    /// The least that makes sense.
    pub min: u64,
    /// Enough.
    pub want: u64,
}

/// Space with which a snapshot of `origin_bytes` can't overflow: all chunks, for each an exception of 16 bytes, and the
/// header (drivers/md/dm-snap-persistent.c).
pub(super) fn full_bytes(origin_bytes: u64) -> u64 {
    let chunks = origin_bytes.div_ceil(CHUNK_BYTES);
    let exceptions = chunks.div_ceil(CHUNK_BYTES / 16);
    (chunks + exceptions + 2).saturating_mul(CHUNK_BYTES)
}

/// Extents to ask for: the given size, or twice the peak of the last runs, or 20 % of the origin.
pub(super) fn want(origin_bytes: u64, extent_bytes: u64, given: Option<SnapshotSize>, peak_bytes: Option<u64>) -> Want {
    // Saturates, and no number becomes 0.
    let share = |share: f64| (origin_bytes as f64 * share) as u64;
    let bytes = match (given, peak_bytes) {
        (Some(SnapshotSize::Bytes(bytes)), _) => bytes,
        (Some(SnapshotSize::Share(given)), _) => share(given),
        (None, Some(peak)) => peak.saturating_mul(PEAK_FACTOR).max(share(PEAK_SHARE)),
        (None, None) => share(DEFAULT_SHARE),
    };
    let full = full_bytes(origin_bytes).div_ceil(extent_bytes);
    let least = MIN_BYTES.div_ceil(extent_bytes).min(full);
    let want = bytes.div_ceil(extent_bytes).clamp(least, full);
    Want {
        min: if given.is_some() { want } else { least },
        want,
    }
}

/// Shares out the free extents of a group; the error is the number that is needed.
pub(super) fn share_out(free: u64, wants: &[Want]) -> Result<Vec<u64>, u64> {
    let sum = |of: fn(&Want) -> u64| wants.iter().map(|want| u128::from(of(want))).sum::<u128>();
    let (min, want, free) = (sum(|want| want.min), sum(|want| want.want), u128::from(free));
    if min > free {
        return Err(u64::try_from(min).unwrap_or(u64::MAX));
    }
    if want <= free {
        return Ok(wants.iter().map(|want| want.want).collect());
    }
    // What is left above the least of all, by what each would like above its own. Not zero: want > free >= min.
    let part = |each: &Want| {
        let more = u128::from(each.want - each.min) * (free - min) / (want - min);
        each.min + u64::try_from(more).unwrap_or(0)
    };
    Ok(wants.iter().map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const EXTENT: u64 = 4 * MIB;

    #[test]
    fn the_size_comes_from_the_option_or_history_or_the_origin() {
        let of = |given, peak| want(1000 * EXTENT, EXTENT, given, peak);
        assert_eq!(of(None, None), Want { min: 1, want: 200 });
        assert_eq!(of(None, Some(100 * EXTENT)), Want { min: 1, want: 200 });
        assert_eq!(of(None, Some(0)), Want { min: 1, want: 50 });
        assert_eq!(
            of(Some(SnapshotSize::Bytes(EXTENT + 1)), Some(0)),
            Want { min: 2, want: 2 }
        );
        assert_eq!(of(Some(SnapshotSize::Share(0.1)), None), Want { min: 100, want: 100 });
        // As lvm2 computes it: 32 MiB need 9 extents (seen with 2.03.16).
        let all = want(32 * MIB, EXTENT, Some(SnapshotSize::Share(7.0)), None);
        assert_eq!(all, Want { min: 9, want: 9 });
        assert_eq!(of(Some(SnapshotSize::Share(f64::NAN)), None).want, 1);
    }

    #[test]
    fn a_group_without_minimum_room_is_refused_with_the_figure() {
        let wants = [Want { min: 5, want: 5 }, Want { min: 1, want: 9 }];
        assert_eq!(share_out(5, &wants), Err(6));
        assert_eq!(share_out(6, &wants), Ok(vec![5, 1]));
        assert_eq!(share_out(10, &wants), Ok(vec![5, 5]));
        assert_eq!(share_out(100, &wants), Ok(vec![5, 9]));
        assert_eq!(share_out(0, &[]), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn shared_out_space_fits_the_free_space(free: u64, sizes in prop::collection::vec((0..u64::MAX, 0..u64::MAX), 0..9)) {
            let wants: Vec<Want> = sizes.iter().map(|(a, b)| Want { min: *a.min(b), want: *a.max(b) }).collect();
            if let Ok(parts) = share_out(free, &wants) {
                prop_assert!(parts.iter().map(|part| u128::from(*part)).sum::<u128>() <= u128::from(free));
                for (part, want) in parts.iter().zip(&wants) {
                    prop_assert!((want.min..=want.want).contains(part));
                }
            }
        }
    }
}
