//! Walks through directories in the order of their names, with bounded memory however many entries they have.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;

use crate::error::{Error, Result};
use crate::fs::{Entry, FileKind, FileTree, Node};

#[cfg(test)]
mod tests;

/// Deepest directory that is entered. Programs nest directories less than 100 deep; each level of a copy holds an open
/// file.
pub const MAX_DEPTH: usize = 512;
/// Memory for the entries of one directory, up to [`WIDE_LEVELS`] deep: about 50,000 entries with names of 20 bytes.
const WIDE_BYTES: usize = 4 << 20;
/// Levels with that much memory; a deeper one has [`NARROW_BYTES`]. Together at most 128 MiB.
const WIDE_LEVELS: usize = 16;
/// Memory for the entries of one deeper directory.
const NARROW_BYTES: usize = 128 << 10;
/// Memory of an entry besides its name.
const ENTRY_BYTES: usize = 80;
/// Directories that one walk enters; 20 bytes each are kept to see one that comes twice.
const MAX_DIRECTORIES: usize = 8 << 20;

/// The entries of a directory in the order of their names. Of equal names only the first on disk counts, as for a
/// lookup.
pub struct Entries {
    directory: Node,
    limit_bytes: usize,
    batch: Vec<Entry>,
    /// Name of the last entry of the batch, if there may be later ones.
    more_after: Option<Vec<u8>>,
    is_read: bool,
    error: Option<Error>,
}

impl Entries {
    /// Returns the entries of a directory that is `depth` levels below the start of a walk.
    pub fn new(directory: Node, depth: usize) -> Self {
        Self {
            directory,
            limit_bytes: if depth < WIDE_LEVELS { WIDE_BYTES } else { NARROW_BYTES },
            batch: Vec::new(),
            more_after: None,
            is_read: false,
            error: None,
        }
    }

    /// Returns no entries: those of a directory that does not exist.
    pub fn none() -> Self {
        let nothing = Node { space: 0, number: 0 };
        Self {
            is_read: true,
            ..Self::new(nothing, 0)
        }
    }

    /// Returns the next entry. Lists the directory once for each few megabytes of names.
    pub fn next(&mut self, tree: &dyn FileTree) -> Option<Entry> {
        if self.batch.is_empty() && (!self.is_read || self.more_after.is_some()) {
            self.fill(tree);
        }
        self.batch.pop()
    }

    /// Returns the error that ended the listing early. The entries that could be read come all the same.
    pub fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }

    /// Keeps the entries with the smallest names after those that were returned.
    fn fill(&mut self, tree: &dyn FileTree) {
        let after = self.more_after.take();
        let mut kept: BTreeMap<Vec<u8>, Entry> = BTreeMap::new();
        let (mut kept_bytes, mut is_cut) = (0, false);
        let limit_bytes = self.limit_bytes;
        let listed = tree.list(self.directory, &mut |entry| {
            let is_late = after.as_ref().is_none_or(|after| entry.name > *after);
            if is_late && !kept.contains_key(&entry.name) {
                kept_bytes += ENTRY_BYTES + 2 * entry.name.len();
                kept.insert(entry.name.clone(), entry);
                while kept_bytes > limit_bytes && kept.len() > 1 {
                    is_cut = true;
                    kept_bytes -= kept.pop_last().map_or(0, |(name, _)| ENTRY_BYTES + 2 * name.len());
                }
            }
            ControlFlow::Continue(())
        });
        // The same error ends each listing of the directory.
        if let (Err(error), false) = (listed, self.is_read) {
            self.error = Some(error);
        }
        self.is_read = true;
        if is_cut {
            self.more_after = kept.last_key_value().map(|(name, _)| name.clone());
        }
        self.batch = kept.into_values().rev().collect();
    }
}

/// The directories that a walk entered. A directory has one name, so a damaged or malicious file system could otherwise
/// be walked for ever.
#[derive(Default)]
pub struct Entered(HashSet<Node>);

impl Entered {
    /// Notes that a directory is entered `depth` levels below the start; an error if it must not be.
    pub fn enter(&mut self, directory: Node, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::unsupported(format!(
                "directories more than {MAX_DEPTH} levels deep"
            )));
        }
        if self.0.len() >= MAX_DIRECTORIES {
            return Err(Error::unsupported(format!(
                "more than {MAX_DIRECTORIES} directories at once"
            )));
        }
        if !self.0.insert(directory) {
            return Err(Error::damaged("the directory has several names"));
        }
        Ok(())
    }
}

/// Step of a walk. The path is that of the walk: [`Walk::path`].
#[derive(Debug)]
pub enum Step {
    /// An entry with its kind. A directory is entered next, unless [`Walk::skip`] is called.
    Found(Node, FileKind),
    /// The entry or the rest of the directory can't be read.
    Failed(Error),
}

/// A walk through all that is below a directory, parents before their children, in the order of names.
pub struct Walk<'a> {
    tree: &'a dyn FileTree,
    levels: Vec<(Entries, usize)>,
    entered: Entered,
    path: Vec<u8>,
    next: Option<Node>,
}

impl<'a> Walk<'a> {
    /// Starts at a directory, which is not itself a step.
    pub fn new(tree: &'a dyn FileTree, directory: Node) -> Self {
        Self {
            tree,
            levels: Vec::new(),
            entered: Entered::default(),
            path: Vec::new(),
            next: Some(directory),
        }
    }

    /// Returns the path of the last step from the start, without a slash before or after it; empty for the start itself.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Returns the number of directories between the start and the last step.
    pub fn depth(&self) -> usize {
        self.levels.len().saturating_sub(1)
    }

    /// Does not enter the directory that the last step returned.
    pub fn skip(&mut self) {
        self.next = None;
    }

    /// Takes the next step.
    pub fn step(&mut self) -> Option<Step> {
        if let Some(directory) = self.next.take() {
            let depth = self.levels.len();
            if let Err(error) = self.entered.enter(directory, depth) {
                return Some(Step::Failed(error));
            }
            self.levels.push((Entries::new(directory, depth), self.path.len()));
        }
        loop {
            let (entries, length) = self.levels.last_mut()?;
            self.path.truncate(*length);
            let entry = entries.next(self.tree);
            if let Some(error) = entries.take_error() {
                entries.batch.extend(entry);
                return Some(Step::Failed(error));
            }
            let Some(entry) = entry else {
                self.levels.pop();
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend(&entry.name);
            let kind = match entry.kind {
                Some(kind) => Ok(kind),
                None => self.tree.stat(entry.node).map(|stat| stat.kind),
            };
            return Some(match kind {
                Err(error) => Step::Failed(error),
                Ok(kind) => {
                    self.next = Some(entry.node).filter(|_| kind == FileKind::Directory);
                    Step::Found(entry.node, kind)
                }
            });
        }
    }
}
