//! Where a repository can be harmed, and how.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::bytes::{size_of, write_at};
use crate::support::lab::names_in;
use crate::support::tools::tool;

/// What is done to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    Flip,
    Truncate,
    Delete,
    Swap,
}

/// What is harmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Blob,
    Table,
    Manifest,
    Current,
    Log,
    Spare,
    /// The link that names the newest view.
    Link,
    Marker,
}

/// A file, and another one of its kind, all as seen from the repository.
#[derive(Debug)]
pub struct Place {
    pub kind: Kind,
    pub file: PathBuf,
    pub other: Option<PathBuf>,
}

impl Place {
    /// Whether everything can be read while it is harmed: it is needed only by a writer, or not at all.
    pub fn costs_readers_nothing(&self) -> bool {
        match self.kind {
            Kind::Spare | Kind::Log => true,
            Kind::Manifest | Kind::Current => self.file.starts_with("store"),
            Kind::Blob | Kind::Table | Kind::Link | Kind::Marker => false,
        }
    }
}

/// The files of every kind that have something in them; logs of a closed repository never do. Each has one of the
/// same kind to change places with, if there is one.
pub fn places_of(repo: &Path) -> Vec<Place> {
    let mut places = Vec::new();
    let view = fs::read_link(repo.join("views/current")).expect("a link");
    let view = Path::new("views").join(view);
    let pool = Path::new("views").join("pool-1");
    let mut of = |kind: Kind, directory: &Path, part: &str| {
        let names = names_in(&repo.join(directory)).into_iter();
        let files: Vec<_> = names
            .filter(|name| name.contains(part))
            .map(|name| directory.join(name))
            .filter(|file| size_of(&repo.join(file)) > 0)
            .collect();
        for (number, file) in files.iter().enumerate() {
            let other = files.get((number + 1) % files.len()).filter(|other| *other != file);
            let other = match kind {
                // A store has one of each, and so has its view.
                Kind::Manifest if directory == Path::new("store") => twin(repo, &pool, "MANIFEST-"),
                Kind::Manifest => twin(repo, Path::new("store"), "MANIFEST-"),
                Kind::Current => twin(repo, directory, "MANIFEST-"),
                _ => other.cloned(),
            };
            places.push(Place {
                kind,
                file: file.clone(),
                other,
            });
        }
    };
    let (store, spare) = (Path::new("store"), Path::new("spare"));
    of(Kind::Blob, store, ".blob");
    of(Kind::Table, store, ".sst");
    of(Kind::Manifest, store, "MANIFEST-");
    of(Kind::Manifest, &pool, "MANIFEST-");
    of(Kind::Current, store, "CURRENT");
    of(Kind::Log, store, ".log");
    of(Kind::Spare, spare, ".sst.");
    // It names the list of its files, as CURRENT does.
    places.push(Place {
        kind: Kind::Current,
        other: twin(repo, &pool, "MANIFEST-"),
        file: view,
    });
    places.push(Place {
        kind: Kind::Link,
        file: "views/current".into(),
        other: None,
    });
    places.push(Place {
        kind: Kind::Marker,
        file: "vbk-repository".into(),
        other: None,
    });
    places
}

/// The file of a directory whose name has this part.
fn twin(repo: &Path, directory: &Path, part: &str) -> Option<PathBuf> {
    let names = names_in(&repo.join(directory)).into_iter();
    names
        .filter(|name| name.contains(part))
        .map(|name| directory.join(name))
        .next_back()
}

/// With its hard links, in the place of what is there.
pub fn copy(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).expect("removes");
    }
    tool("cp", args!["-a", from, to]);
}

/// Every name of a file.
fn links_of(repo: &Path, file: &Path) -> Vec<PathBuf> {
    let inode = fs::metadata(repo.join(file)).expect("is there").ino();
    let mut links = Vec::new();
    let mut directories = vec![repo.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("lists") {
            let path = entry.expect("an entry").path();
            let data = path.symlink_metadata().expect("is there");
            if data.is_dir() {
                directories.push(path);
            } else if data.ino() == inode {
                links.push(path);
            }
        }
    }
    links
}

/// Harms the bytes of a file, for all its names at once. False if there is nothing to do that to.
pub fn do_harm(repo: &Path, harm: Harm, place: &Place) -> bool {
    let path = repo.join(&place.file);
    if place.kind == Kind::Link {
        let target = fs::read_link(&path).expect("a link").to_string_lossy().into_owned();
        fs::remove_file(&path).expect("removes");
        match harm {
            // Another number is a view that is not there.
            Harm::Flip => symlink(format!("9{target}"), &path).expect("links"),
            Harm::Truncate => symlink("x", &path).expect("links"),
            Harm::Delete => {}
            // As a program leaves it that follows links, or that knows none.
            Harm::Swap => fs::write(&path, target).expect("writes"),
        }
        return true;
    }
    let size = size_of(&path);
    match harm {
        Harm::Flip => {
            let mut bytes = fs::read(&path).expect("reads");
            bytes[size as usize / 2] ^= 0xFF;
            // Into the same inode.
            write_at(&path, 0, &bytes);
        }
        Harm::Truncate => File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(size / 2))
            .expect("cuts"),
        Harm::Delete => links_of(repo, &place.file)
            .iter()
            .for_each(|link| fs::remove_file(link).expect("removes")),
        Harm::Swap => {
            let Some(other) = place.other.as_ref().map(|other| repo.join(other)) else {
                return false;
            };
            let (one, two) = (fs::read(&path).expect("reads"), fs::read(&other).expect("reads"));
            fs::write(&path, two).expect("writes");
            fs::write(&other, one).expect("writes");
        }
    }
    true
}
