//! ROOTS: the manifests that a sealed record names, which can be read without the key.

use crate::backup::Backup;
use crate::id::NodeId;

/// Returns the manifests that a record names, in the form that is stored with it.
pub(super) fn roots_of(record: &[u8]) -> Vec<u8> {
    let backup = serde_json::from_slice::<Backup>(record);
    let mut roots: Vec<_> = backup
        .iter()
        .flat_map(|backup| backup.stored().map(|image| image.manifest.0))
        .collect();
    roots.sort_unstable();
    roots.dedup();
    [&(roots.len() as u32).to_le_bytes(), roots.as_flattened()].concat()
}

/// Returns the manifests that a sealed record names. Needs no key and proves nothing; `None` if the record is cut off.
pub fn roots_below(sealed_record: &[u8]) -> Option<Vec<NodeId>> {
    let (count, rest) = sealed_record.split_first_chunk()?;
    let roots = rest.get(..(u32::from_le_bytes(*count) as usize).checked_mul(32)?)?;
    let (roots, _) = roots.as_chunks();
    Some(roots.iter().copied().map(NodeId).collect())
}
