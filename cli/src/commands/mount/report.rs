//! The result of `vbk mount`: what is mounted, and what is not and why.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vbk_fuse::volumes::{Outcome as Volume, VolumeReport};
use vbk_inside::volumes::NamedTree;

use crate::context::Context;
use crate::exit::Outcome;

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) mount_point: PathBuf,
    pub(super) pid: u32,
    pub(super) log: Option<PathBuf>,
    pub(super) warnings: Vec<String>,
    pub(super) volumes: Vec<VolumeJson>,
}

#[derive(Serialize)]
pub(super) struct VolumeJson {
    name: PathBuf,
    fs: Option<String>,
    mounted: bool,
    options: Option<String>,
    warning: Option<String>,
    /// Repair that was done on the scratch copy.
    repaired: Option<String>,
    reason: Option<String>,
    /// Path of the guest's root in the mount, if it is not at the top.
    root: Option<PathBuf>,
}

impl VolumeJson {
    pub(super) fn of_tree(tree: &NamedTree) -> Self {
        let remarks = tree.tree.remarks();
        Self {
            name: tree.name.clone().into(),
            fs: Some(tree.fs.clone()),
            mounted: true,
            options: None,
            warning: None,
            repaired: (!remarks.is_empty()).then(|| remarks.join("; ")),
            reason: None,
            root: None,
        }
    }

    pub(super) fn new(report: &VolumeReport) -> Self {
        let (mut options, mut warning, mut repaired, mut reason, mut root) = (None, None, None, None, None);
        let mounted = match report.outcome.clone() {
            Volume::Mounted {
                options: used,
                warning: doubt,
                repaired: repair,
                root: guest_root,
            } => {
                (options, warning, repaired, root) = (Some(used), doubt, repair, guest_root);
                true
            }
            Volume::Skipped { reason: why, .. } => {
                reason = Some(why);
                false
            }
        };
        Self {
            name: report.name.clone(),
            fs: report.fs.clone(),
            mounted,
            options,
            warning,
            repaired,
            reason,
            root,
        }
    }
}

/// Prints the result for each volume.
pub(super) fn tell(
    context: &Context<'_>,
    backup: &str,
    point: &Path,
    warnings: &[String],
    volumes: &[VolumeReport],
) -> Outcome {
    for warning in warnings {
        tracing::warn!("{backup}/{warning}");
    }
    let mut doubts = warnings.len();
    let mut good = 0;
    let mut left_out = Vec::new();
    for volume in volumes {
        // Joining an empty name would end the path with a slash.
        let place: PathBuf = point.components().chain(volume.name.components()).collect();
        let (place, fs) = (place.display(), volume.fs.as_deref().unwrap_or_default());
        match &volume.outcome {
            Volume::Mounted {
                warning,
                repaired,
                root,
                ..
            } => {
                good += 1;
                let repaired = repaired.as_ref().map(|done| format!("; {done}")).unwrap_or_default();
                match root {
                    Some(root) => context.say(format_args!(
                        "{place}  {fs}{repaired}; the guest's root is {place}/{}",
                        root.display()
                    )),
                    None => context.say(format_args!("{place}  {fs}{repaired}")),
                }
                if let Some(warning) = warning {
                    doubts += 1;
                    tracing::warn!("{place}: {warning}");
                }
            }
            Volume::Skipped { reason, may_hold_files } => {
                // Skipped swap needs no attention; a skipped volume that may hold files does.
                doubts += usize::from(*may_hold_files);
                if *may_hold_files && volume.fs.is_none() {
                    left_out.push(format!("{place} ({reason})"));
                }
                context.say(format_args!("{place}  not mounted: {reason}"));
            }
        }
    }
    if !left_out.is_empty() {
        tracing::warn!(
            "left out, although they may hold files: {}; `guestmount --ro -a DISK.img -i DIR` (package guestmount; an -a for each \
             disk) reads LVM, RAID and LUKS from the images that `vbk mount DIR` shows",
            left_out.join(", ")
        );
    }
    if good == 0 {
        tracing::error!("{backup} has no file system that can be mounted; `vbk mount DIR` shows its disks as images");
        return Outcome::Failed;
    }
    let shown = point.display();
    context.say(format_args!("`vbk umount {shown}` unmounts it"));
    match doubts {
        0 => Outcome::Done,
        _ => Outcome::Warnings,
    }
}
