//! Differences between two trees: names that only one has, and objects that changed.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use blake2::digest::consts::U32;
use blake2::{Blake2b, Digest};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::fs::{Entry, FileKind, FileTree, Node, Stat};
use crate::walk::{Entered, Entries};

#[cfg(test)]
mod tests;

/// Bytes that are compared at once.
const CHUNK_BYTES: u64 = 256 << 10;

/// Choices of a comparison.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompareOptions {
    /// Read all files. Otherwise files of the same size, time of modification and time of change count as the same: the
    /// latter can't be set by a program of the guest.
    pub all_content: bool,
}

/// Difference of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Only the second tree has it.
    Added,
    /// Only the first tree has it.
    Removed,
    /// It is of another kind.
    Kind,
    /// Its content, its target or its device number differs.
    Content,
    /// Only these attributes differ, e.g. `mode`.
    Attributes(Vec<&'static str>),
}

/// A result of a comparison, with the path without a leading slash.
#[derive(Debug)]
pub enum Compared<'a> {
    /// An object that differs, with its attributes in each tree that has it.
    Differs(&'a [u8], Change, Option<&'a Stat>, Option<&'a Stat>),
    /// An object that can't be read.
    Failed(&'a [u8], Error),
}

/// A tree and an object in it.
pub type Side<'a> = (&'a Arc<dyn FileTree>, Node);

struct Level {
    entries: [Entries; 2],
    /// The next entry of each side.
    heads: [Option<Entry>; 2],
    path_length: usize,
}

struct Comparison<'a> {
    trees: [&'a Arc<dyn FileTree>; 2],
    options: CompareOptions,
    entered: [Entered; 2],
    path: Vec<u8>,
    each: &'a mut dyn FnMut(Compared<'_>) -> ControlFlow<()>,
}

/// Compares two directories and all below them, in the order of names, and calls `each` for every difference until it
/// breaks. What is in a directory that only one tree has is listed too.
pub fn compare(
    before: Side<'_>,
    after: Side<'_>,
    options: CompareOptions,
    each: &mut dyn FnMut(Compared<'_>) -> ControlFlow<()>,
) {
    let mut comparison = Comparison {
        trees: [before.0, after.0],
        options,
        entered: [Entered::default(), Entered::default()],
        path: Vec::new(),
        each,
    };
    // Breaking is the caller's wish, and no failure.
    let _ = comparison.run([Some(before.1), Some(after.1)]);
}

impl Comparison<'_> {
    fn failed(&mut self, error: Error) -> ControlFlow<()> {
        (self.each)(Compared::Failed(&self.path, error))
    }

    fn run(&mut self, roots: [Option<Node>; 2]) -> ControlFlow<()> {
        let mut levels = Vec::new();
        if let Some(level) = self.enter(roots, 0)? {
            levels.push(level);
        }
        while let Some(level) = levels.last_mut() {
            self.path.truncate(level.path_length);
            for (side, tree) in self.trees.into_iter().enumerate() {
                if level.heads[side].is_none() {
                    level.heads[side] = level.entries[side].next(&**tree);
                }
                if let Some(error) = level.entries[side].take_error() {
                    (self.each)(Compared::Failed(&self.path, error))?;
                }
            }
            let name = level.heads.iter().flatten().map(|entry| entry.name.clone()).min();
            let Some(name) = name else {
                levels.pop();
                continue;
            };
            let nodes = level.heads.each_mut().map(|head| {
                let is_next = head.as_ref().is_some_and(|entry| entry.name == name);
                is_next.then(|| head.take().map(|entry| entry.node)).flatten()
            });
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend(&name);
            let depth = levels.len();
            if let Some(level) = self.pair(nodes, depth)? {
                levels.push(level);
            }
        }
        ControlFlow::Continue(())
    }

    /// Prepares the comparison of two directories, or of one with nothing.
    fn enter(&mut self, nodes: [Option<Node>; 2], depth: usize) -> ControlFlow<(), Option<Level>> {
        for (side, node) in nodes.into_iter().enumerate() {
            if let Some(node) = node
                && let Err(error) = self.entered[side].enter(node, depth)
            {
                self.failed(error)?;
                return ControlFlow::Continue(None);
            }
        }
        ControlFlow::Continue(Some(Level {
            entries: nodes.map(|node| node.map_or_else(Entries::none, |node| Entries::new(node, depth))),
            heads: [None, None],
            path_length: self.path.len(),
        }))
    }

    /// Compares two objects of one name, or one with nothing; returns directories to enter.
    fn pair(&mut self, nodes: [Option<Node>; 2], depth: usize) -> ControlFlow<(), Option<Level>> {
        let mut stats = [None, None];
        for side in 0..2 {
            if let Some(node) = nodes[side] {
                match self.trees[side].stat(node) {
                    Ok(stat) => stats[side] = Some(stat),
                    Err(error) => {
                        self.failed(error)?;
                        return ControlFlow::Continue(None);
                    }
                }
            }
        }
        let [before, after] = [stats[0].as_ref(), stats[1].as_ref()];
        let change = match (before, after) {
            (Some(one), Some(other)) if one.kind != other.kind => Ok(Some(Change::Kind)),
            (Some(one), Some(other)) => self.changed(nodes, one, other),
            (None, _) => Ok(Some(Change::Added)),
            (_, None) => Ok(Some(Change::Removed)),
        };
        match change {
            Ok(Some(change)) => (self.each)(Compared::Differs(&self.path, change, before, after))?,
            Ok(None) => {}
            Err(error) => self.failed(error)?,
        }
        let directory = |side: usize, stat: Option<&Stat>| {
            nodes[side].filter(|_| stat.is_some_and(|stat| stat.kind == FileKind::Directory))
        };
        match [directory(0, before), directory(1, after)] {
            [None, None] => ControlFlow::Continue(None),
            directories => self.enter(directories, depth),
        }
    }

    /// Returns the change of an object that both trees have, of the same kind.
    fn changed(&self, nodes: [Option<Node>; 2], one: &Stat, other: &Stat) -> Result<Option<Change>> {
        let (Some(before), Some(after)) = (nodes[0], nodes[1]) else {
            return Ok(None);
        };
        let looks_same =
            (one.size_bytes, one.modified, one.changed) == (other.size_bytes, other.modified, other.changed);
        let [first, second] = self.trees;
        let is_other = match one.kind {
            FileKind::File if one.size_bytes != other.size_bytes => true,
            FileKind::File if looks_same && !self.options.all_content => false,
            FileKind::File => {
                let (one, other) = (Arc::clone(first).open(before)?, Arc::clone(second).open(after)?);
                !same_content(&*one, &*other)?
            }
            FileKind::Link => first.read_link(before)? != second.read_link(after)?,
            FileKind::CharDevice | FileKind::BlockDevice => one.device != other.device,
            FileKind::Directory | FileKind::Fifo | FileKind::Socket => false,
        };
        if is_other {
            return Ok(Some(Change::Content));
        }
        let is_directory = one.kind == FileKind::Directory;
        let mut attributes = Vec::new();
        let mut differ = |differs: bool, name| attributes.extend(differs.then_some(name));
        differ(one.mode != other.mode, "mode");
        differ(one.uid != other.uid, "owner");
        differ(one.gid != other.gid, "group");
        // The time of a directory changes with each entry, which is listed anyway.
        differ(one.modified != other.modified && !is_directory, "time");
        if one.changed != other.changed || self.options.all_content {
            differ(
                xattrs(&**first, before)? != xattrs(&**second, after)?,
                "extended attributes",
            );
        }
        Ok(Some(attributes)
            .filter(|attributes| !attributes.is_empty())
            .map(Change::Attributes))
    }
}

/// Returns the extended attributes of an object in the order of their names.
fn xattrs(tree: &dyn FileTree, node: Node) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut xattrs: Vec<_> = tree
        .xattrs(node)?
        .into_iter()
        .map(|xattr| (xattr.name, xattr.value))
        .collect();
    xattrs.sort();
    Ok(xattrs)
}

/// Compares the content of two files. Holes that both have are not read.
pub fn same_content(one: &dyn Device, other: &dyn Device) -> io::Result<bool> {
    let size_bytes = one.size_bytes();
    if size_bytes != other.size_bytes() {
        return Ok(false);
    }
    let mut buffers = [Vec::new(), Vec::new()];
    let mut at_bytes = 0;
    while at_bytes < size_bytes {
        let starts = [one.next_data(at_bytes)?, other.next_data(at_bytes)?];
        let Some(start) = starts.into_iter().flatten().min() else {
            break;
        };
        at_bytes = start.max(at_bytes);
        let length = size_bytes.saturating_sub(at_bytes).min(CHUNK_BYTES);
        for (device, buffer) in [one, other].into_iter().zip(&mut buffers) {
            // At most a chunk, which fits.
            buffer.resize(length as usize, 0);
            device.read_at(at_bytes, buffer)?;
        }
        if buffers[0] != buffers[1] {
            return Ok(false);
        }
        at_bytes += length;
    }
    Ok(true)
}

/// Returns a hash of a file's content, which is the same whether zeros are stored or holes. Only a comparison within one
/// run may use it: its form may change.
pub fn content_hash(content: &dyn Device) -> io::Result<[u8; 32]> {
    let size_bytes = content.size_bytes();
    let mut hash = Blake2b::<U32>::new();
    hash.update(size_bytes.to_le_bytes());
    let mut buffer = Vec::new();
    let mut at_bytes = 0;
    while at_bytes < size_bytes {
        let Some(start_bytes) = content.next_data(at_bytes)? else {
            break;
        };
        // Chunks begin at multiples of their length, so that holes do not move them.
        let chunk = start_bytes.max(at_bytes) / CHUNK_BYTES * CHUNK_BYTES;
        let length = size_bytes.saturating_sub(chunk).min(CHUNK_BYTES);
        // At most a chunk, which fits.
        buffer.resize(length as usize, 0);
        content.read_at(chunk, &mut buffer)?;
        if buffer.iter().any(|byte| *byte != 0) {
            hash.update(chunk.to_le_bytes());
            hash.update(&buffer);
        }
        at_bytes = chunk.saturating_add(CHUNK_BYTES);
    }
    Ok(hash.finalize().into())
}
