//! Recognises another disk on the target of a restore, so that it is not overwritten by a mistyped name.
//!
//! A blank device, one with unknown content, and the disk's own device are accepted: each identity on the target must
//! be one that the backup has too. Reads the image only if the target has any.

use std::io;
use std::path::Path;

use vbk_inside::device::Device;
use vbk_inside::signature::{Signature, signatures};
use vbk_repo::reader::ImageReader;

use crate::disk::target::OldDisk;
use crate::error::Error;

/// Number of identities that a message names.
const SHOWN: usize = 4;

/// Identities on a target, and whether they are of another disk.
#[derive(Default)]
pub(super) struct Holds {
    /// Identities on the target, for people.
    pub(super) found: Vec<String>,
    /// Error of a restore without `force` and `overwrite`.
    pub(super) refusal: Option<Error>,
}

/// Compares the content of a device with an image.
pub(super) fn compare(path: &Path, old: &OldDisk<'_>, image: &ImageReader) -> Holds {
    let refusal = |what: String| {
        Some(Error::TargetHolds {
            path: path.to_owned(),
            what,
        })
    };
    // What can't be read can't be recognised, and is written again.
    let found = signatures(old).signatures;
    if found.is_empty() {
        return Holds::default();
    }
    let own = signatures(&Whole(image));
    let other = || {
        found
            .iter()
            .filter(|it| !own.signatures.iter().any(|own| own.is_same(it)))
    };
    let refused = match (other().next(), own.error) {
        (None, _) => None,
        (Some(_), None) => refusal(format!("another disk: {}", list(other()))),
        (Some(_), Some(error)) => refusal(format!(
            "{}, which can't be compared with the backup's disk ({error})",
            list(other())
        )),
    };
    Holds {
        found: found.iter().map(ToString::to_string).collect(),
        refusal: refused,
    }
}

fn list<'a>(signatures: impl Iterator<Item = &'a Signature>) -> String {
    let all: Vec<_> = signatures.map(ToString::to_string).collect();
    let more = all.len().saturating_sub(SHOWN);
    let shown = all[..all.len() - more].join(", ");
    match more {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// A whole image as a device.
struct Whole<'a>(&'a ImageReader);

impl Device for Whole<'_> {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
}

#[cfg(test)]
mod tests;
