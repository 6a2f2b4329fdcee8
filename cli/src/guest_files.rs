//! The files inside a backup, for the commands that read them without a mount.

use std::sync::Arc;

use vbk_inside::fs::{FileKind, FileTree, Node};
use vbk_inside::guest::{Guest, NoRoot, compose};
use vbk_inside::path::{Last, resolve};
use vbk_inside::volumes::{Secrets, Trees};
use vbk_repo::backup::{Entry, Image};
use vbk_repo::catalogue::BackupSpec;
use vbk_repo::reader::ReadResources;
use vbk_repo::repository::View;

use crate::exit::{Error, Result};
use crate::file_forms::shown;

/// The files inside one backup, or on one disk of it.
pub struct BackupFiles {
    /// Name of the backup: `web1@2026-11-20T05-54-00Z`.
    pub spec: String,
    /// The volumes.
    pub trees: Trees,
    /// Their files as the guest saw them, if it is known how.
    pub guest: std::result::Result<Guest, NoRoot>,
}

/// An object that a path leads to.
pub struct Located {
    /// Its tree: the guest's, or that of a volume.
    pub tree: Arc<dyn FileTree>,
    /// The object.
    pub node: Node,
    /// Its kind.
    pub kind: FileKind,
    /// Its path in the tree without links, from a slash on.
    pub path: Vec<u8>,
    /// Name of the volume, if the path began with it.
    pub volume: Option<String>,
}

/// A tree among those that make up all files of a backup.
pub struct Root {
    /// Name of the volume; `None` for the guest's own root.
    pub volume: Option<String>,
    /// Its files.
    pub tree: Arc<dyn FileTree>,
}

impl Root {
    /// Returns a path below it as [`BackupFiles::locate`] takes it.
    pub fn path(&self, below: &[u8]) -> Vec<u8> {
        full_path(self.volume.as_deref(), below)
    }
}

impl Located {
    /// Returns a path below this object as [`BackupFiles::locate`] takes it; without `below` its own path.
    pub fn below(&self, below: &[u8]) -> Vec<u8> {
        let own = self.path.strip_prefix(b"/").unwrap_or(&self.path);
        let parts: Vec<_> = [own, below].into_iter().filter(|part| !part.is_empty()).collect();
        full_path(self.volume.as_deref(), &parts.join(&b'/'))
    }
}

fn full_path(volume: Option<&str>, below: &[u8]) -> Vec<u8> {
    let mut path = volume.unwrap_or_default().as_bytes().to_vec();
    if volume.is_none() || !below.is_empty() {
        path.push(b'/');
    }
    path.extend(below);
    path
}

impl BackupFiles {
    /// Opens the files of a backup, or of the disk that `spec` names.
    pub fn open(
        view: &View,
        resources: &Arc<ReadResources>,
        entry: &Entry,
        spec: Option<&BackupSpec>,
        secrets: &Secrets,
    ) -> Result<Self> {
        let disk = spec.and_then(|spec| spec.disk.as_deref());
        let trees = vbk_fuse::contents::trees(view, resources, entry, disk, secrets)?;
        let guest = compose(&trees);
        let spec = entry.backup.spec();
        for warning in &trees.warnings {
            tracing::info!("{spec}: {warning}");
        }
        for named in &trees.trees {
            for remark in named.tree.remarks() {
                tracing::info!("{spec}: {}: {remark}", named.name);
            }
        }
        if let Ok(guest) = &guest {
            for remark in &guest.remarks {
                tracing::info!("{spec}: fstab: {remark}");
            }
        }
        Ok(Self { spec, trees, guest })
    }

    /// Finds an object. A path with a slash at its start is the guest's, another one begins with the name of a volume.
    pub fn locate(&self, path: &[u8], last: Last) -> Result<Located> {
        if path.starts_with(b"/") {
            let guest = self
                .guest
                .as_ref()
                .map_err(|why| Error::NoRoot(format!("{}: {why}", self.spec)))?;
            return self.located(&guest.tree, path, last, None);
        }
        let (name, rest) = match path.iter().position(|byte| *byte == b'/') {
            Some(at) => path.split_at(at),
            None => (path, &b""[..]),
        };
        if let Some(named) = self.trees.trees.iter().find(|named| named.name.as_bytes() == name) {
            return self.located(&named.tree, rest, last, Some(named.name.clone()));
        }
        if let Some((name, why)) = self
            .trees
            .left_out
            .iter()
            .find(|(left_out, _)| left_out.as_bytes() == name)
        {
            return Err(Error::NoRoot(format!("{}:{name} can't be read: {why}", self.spec)));
        }
        let known: Vec<_> = self.trees.trees.iter().map(|named| &named.name[..]).collect();
        Err(Error::NoRoot(format!(
            "{} has no volume {} that can be read; its volumes: {}. A path of the guest begins with a slash",
            self.spec,
            shown(name),
            if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            }
        )))
    }

    fn located(&self, tree: &Arc<dyn FileTree>, path: &[u8], last: Last, volume: Option<String>) -> Result<Located> {
        let what = || match &volume {
            Some(volume) => format!("{}:{volume}{}", self.spec, shown(path)),
            None => format!("{}:{}", self.spec, shown(path)),
        };
        match resolve(&**tree, tree.root(), path, last) {
            Ok(found) => Ok(Located {
                tree: Arc::clone(tree),
                node: found.node,
                kind: found.kind,
                path: found.path,
                volume,
            }),
            Err(source @ vbk_inside::Error::NotFound) => match self.missing_mount(path) {
                Some(remark) => Err(Error::NoRoot(format!("{}: {source}; fstab: {remark}", what()))),
                None => Err(Error::Inside { what: what(), source }),
            },
            Err(source) => Err(Error::Inside { what: what(), source }),
        }
    }

    /// Returns the remark on a mount point that a path leads through, whose volume could not be mounted.
    fn missing_mount(&self, path: &[u8]) -> Option<&String> {
        let guest = self.guest.as_ref().ok()?;
        guest.remarks.iter().find(|remark| {
            let point = remark.split(':').next().unwrap_or_default();
            path.strip_prefix(point.as_bytes())
                .is_some_and(|rest| rest.first().is_none_or(|byte| *byte == b'/'))
        })
    }

    /// Returns the trees that together have all files: the guest's, the volumes that it does not mount, and of those of
    /// which it mounts only subvolumes the others.
    pub fn roots(&self) -> Vec<Root> {
        let of_volume = |volume: usize| Root {
            volume: Some(self.trees.trees[volume].name.clone()),
            tree: Arc::clone(&self.trees.trees[volume].tree),
        };
        match &self.guest {
            Ok(guest) => {
                let own = Root {
                    volume: None,
                    tree: Arc::clone(&guest.tree),
                };
                let rest = guest.rest.iter().map(|(volume, tree)| Root {
                    tree: Arc::clone(tree),
                    ..of_volume(*volume)
                });
                std::iter::once(own)
                    .chain(guest.unmounted.iter().map(|volume| of_volume(*volume)))
                    .chain(rest)
                    .collect()
            }
            Err(_) => (0..self.trees.trees.len()).map(of_volume).collect(),
        }
    }
}

/// Returns whether two backups have the same disks with the same content, as far as that is known without reading them.
pub fn same_disks(one: &[Image], other: &[Image]) -> bool {
    let key = |image: &Image| (image.disk.clone(), image.size_bytes, image.manifest);
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| key(one) == key(other))
}
