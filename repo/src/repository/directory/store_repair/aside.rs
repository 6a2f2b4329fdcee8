//! What a repair sets aside: it never removes a file that may have a backup in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Mended, places_of};
use crate::error::{Error, Result};
use crate::repository::directory::files;
use crate::repository::directory::second_copies;
use crate::repository::directory::views::record::Record;
use crate::repository::directory::views::{self, View, pool, remove_tree};
use crate::store::rocks::path_in;

/// Name of the old store once there is a new one.
pub(super) const OLD_STORE: &str = "store.damaged";

/// Suffix of views that are set aside.
const ASIDE: &str = "damaged";

pub(super) const UNTIL_REMOVED: &str =
    "remove it once everything is repaired; until then its space can't be freed, not even by a prune";

/// Keeps views that are newer than the store, which the next publication would remove, as directories with all that may be
/// theirs, and reports the loss. Readers that hold one may fail on files that they have not opened yet.
pub(super) fn put_aside(
    repository: &Path,
    views: &[u64],
    generation: u64,
    newest: u64,
    mended: &mut Mended,
) -> Result<()> {
    for number in views.iter().filter(|number| **number > generation) {
        let path = views::path_of(repository, *number);
        let aside = free_name(&path.with_extension(ASIDE))?;
        match views::find(repository, *number) {
            Ok(Some(View::File(record, _))) => gather(&places_of(repository, &[*number])?, Some(&record), &aside)?,
            Ok(_) => {
                fs::rename(&path, aside).map_err(Error::io("rename", &path))?;
                continue;
            }
            Err(Error::FileDamaged { .. }) => gather(&places_of(repository, views)?, None, &aside)?,
            Err(error) => return Err(error),
        }
        // So the next repair does not put it aside again. Its readers have it open.
        fs::rename(&path, aside.join("view")).map_err(Error::io("rename", &path))?;
    }
    let directory = repository.join("views");
    files::sync_directory(&directory)?;
    second_copies::keep_only(repository, &path_in(repository))?;
    let views = names_in(&directory, |name| {
        let number = name.split_once('.').filter(|(_, rest)| rest.starts_with(ASIDE));
        number.is_some_and(|(number, _)| number.parse().is_ok_and(|number: u64| number > generation))
    })?;
    let mut kept = names_in(repository, |name| name.starts_with(OLD_STORE))?;
    kept.extend(views.iter().map(|name| format!("views/{name}")));
    mended.left.push(match kept.as_slice() {
        [] => format!("everything stored after view {generation}, up to view {newest}, is lost"),
        kept => format!(
            "everything stored after view {generation}, up to view {newest}, is lost, unless it can be recovered from \
             files that could not be opened and are kept in {}; {UNTIL_REMOVED}",
            kept.join(", ")
        ),
    });
    Ok(())
}

/// Makes a directory of the files that a view may have, which are in the last of these places, and of the lists there. If the
/// list is damaged, it is not known which they are.
fn gather(places: &[PathBuf], record: Option<&Record>, to: &Path) -> Result<()> {
    let draft = to.with_extension("tmp");
    remove_tree(&draft)?;
    fs::create_dir(&draft).map_err(Error::io("create", &draft))?;
    let Some(from) = places.last().filter(|place| place.exists()) else {
        return fs::rename(&draft, to).map_err(Error::io("rename", draft));
    };
    for file in pool::list(from)?.into_keys() {
        if record.is_none_or(|record| file.number() < record.next) {
            let (from, to) = (from.join(file.name()), draft.join(file.name()));
            fs::hard_link(&from, &to).map_err(Error::io("link", &to))?;
        }
    }
    let lists = pool::manifests(from)?.into_iter();
    let lists: Vec<_> = lists
        .filter(|name| record.is_none_or(|record| record.manifest == *name))
        .collect();
    for name in &lists {
        let (from, to) = (from.join(name), draft.join(name));
        let bytes = fs::read(&from).map_err(Error::io("read", from))?;
        files::write(&to, &bytes)?;
    }
    if let Some(last) = lists.last() {
        files::write(&draft.join("CURRENT"), format!("{last}\n").as_bytes())?;
    }
    files::sync_directory(&draft)?;
    fs::rename(&draft, to).map_err(Error::io("rename", draft))
}

/// Returns the name itself, or the first free one of `NAME.2`, `NAME.3`, ...
pub(super) fn free_name(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut free = path.to_owned();
    for number in 2.. {
        match free.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            found => found.map_err(Error::io("read", &free))?,
        };
        free = path.with_file_name(format!("{name}.{number}"));
    }
    Ok(free)
}

pub(super) fn names_in(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let name = entry.map_err(Error::io("list", directory))?.file_name();
        names.extend(name.into_string().ok().filter(|name| wanted(name)));
    }
    names.sort();
    Ok(names)
}
