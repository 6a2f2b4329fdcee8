//! Space that a repository takes on disk, by part: the store, the current view, and other views.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::repository::directory::views::{self, View};
use crate::repository::home::DiskUsage;
use crate::store::rocks;

/// Measures the space of a repository. Does not follow links, stays on one file system, and skips files that vanish
/// meanwhile and directories that may not be entered, such as `lost+found`.
pub fn disk_usage(repository: &Path) -> Result<DiskUsage> {
    let root = fs::canonicalize(repository).map_err(Error::io("read", repository))?;
    let mut counted = Counted::default();
    let store_bytes = counted.add(&rocks::path_in(&root))?;
    let directory = root.join("views");
    let mut current_view_bytes = 0;
    if let Some(number) = views::current(&root)? {
        current_view_bytes = counted.add(&directory.join(number.to_string()))?;
        for path in views::find(&root, number).ok().flatten().iter().flat_map(in_pool) {
            current_view_bytes += counted.add(&path)?;
        }
    }
    let mut other_views_bytes = 0;
    // A copy of the repository may lack the views.
    let others = fs::read_dir(&directory).into_iter().flatten().flatten();
    for view in others.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        other_views_bytes += counted.add(&view.path())?;
    }
    let rest_bytes = counted.add(&root)?;
    Ok(DiskUsage {
        total_bytes: store_bytes + current_view_bytes + other_views_bytes + rest_bytes,
        store_bytes,
        current_view_bytes,
        other_views_bytes,
    })
}

/// Returns the files of a view in its pool.
fn in_pool(view: &View) -> Vec<PathBuf> {
    let View::File(record, _) = view else {
        return Vec::new();
    };
    let files = view.files();
    let mut paths = vec![files.join(&record.manifest)];
    match view.list() {
        Ok(list) => paths.extend(list.into_iter().map(|file| files.join(file.name()))),
        // Some of it may be that of other views.
        Err(_) => paths.push(files),
    }
    paths
}

/// Files counted so far, by device and inode.
#[derive(Default)]
struct Counted(HashSet<(u64, u64)>);

impl Counted {
    /// Counts all files at and below a path that were not counted before; returns their allocated bytes.
    fn add(&mut self, root: &Path) -> Result<u64> {
        let mut bytes = 0;
        let mut device = None;
        let mut todo = vec![root.to_owned()];
        while let Some(path) = todo.pop() {
            let found = match fs::symlink_metadata(&path) {
                Ok(found) => found,
                Err(error) if has_vanished(&error) => continue,
                Err(error) => return Err(Error::io("read", path)(error)),
            };
            // Another file system that is mounted here is not part of the repository.
            if *device.get_or_insert(found.dev()) != found.dev() {
                continue;
            }
            if self.0.insert((found.dev(), found.ino())) {
                // stat(2): in units of 512 bytes, whatever the file system's block size.
                bytes += found.blocks() * 512;
            }
            if !found.is_dir() {
                continue;
            }
            match fs::read_dir(&path) {
                Ok(entries) => {
                    for entry in entries {
                        match entry {
                            Ok(entry) => todo.push(entry.path()),
                            Err(error) if has_vanished(&error) => break,
                            Err(error) => return Err(Error::io("list", path)(error)),
                        }
                    }
                }
                Err(error) if has_vanished(&error) || error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(Error::io("list", path)(error)),
            }
        }
        Ok(bytes)
    }
}

fn has_vanished(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::StaleNetworkFileHandle
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    fn total(path: &Path) -> u64 {
        disk_usage(path).expect("counts").total_bytes
    }

    #[test]
    fn hard_links_count_once_and_sparse_files_by_what_is_allocated() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        let empty = total(path);
        fs::write(path.join("one"), vec![1; 1 << 20]).expect("writes");
        File::open(path.join("one"))
            .and_then(|file| file.sync_all())
            .expect("syncs");
        let one = total(path);
        assert!((1 << 20..(1 << 20) + 65_536).contains(&(one - empty)), "{empty} {one}");
        fs::create_dir(path.join("view")).expect("creates");
        let before = total(path);
        fs::hard_link(path.join("one"), path.join("view/one")).expect("links");
        std::os::unix::fs::symlink("../one", path.join("view/link")).expect("links");
        std::os::unix::fs::symlink("..", path.join("view/up")).expect("links");
        let mut sparse = File::create(path.join("sparse")).expect("creates");
        sparse.set_len(1 << 40).expect("grows");
        sparse.write_all(b"x").and_then(|()| sparse.sync_all()).expect("writes");
        let all = total(path);
        assert!(all > before && all - before < 262_144, "{before} {all}");
    }

    #[test]
    fn a_link_to_a_directory_is_followed_at_the_top_alone_and_none_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::create_dir(&real).expect("creates");
        fs::write(real.join("x"), vec![1; 1 << 20]).expect("writes");
        std::os::unix::fs::symlink(&real, &link).expect("links");
        assert_eq!(total(&link), total(&real));
        assert!(disk_usage(&directory.path().join("none")).is_err());
    }

    #[test]
    fn files_that_come_and_go_while_it_counts_are_no_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        std::thread::scope(|scope| {
            let counts = scope.spawn(|| (0..300).try_for_each(|_| disk_usage(path).map(drop)));
            while !counts.is_finished() {
                let deep = path.join("a/b/c");
                fs::create_dir_all(&deep).expect("creates");
                fs::write(deep.join("x"), "x").expect("writes");
                fs::remove_dir_all(path.join("a")).expect("removes");
            }
            counts.join().expect("joins").expect("counts");
        });
    }
}
