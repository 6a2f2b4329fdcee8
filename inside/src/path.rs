//! Paths in a tree of files, resolved as the guest's kernel would: links lead to files of the same tree, `..` never
//! above its root.

use std::collections::VecDeque;
use std::io;

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::fs::{FileKind, FileTree, Node};

#[cfg(test)]
mod tests;

/// Links that one path may lead through (`MAXSYMLINKS` of linux/namei.h).
pub const MAX_LINKS: usize = 40;

/// Treatment of a link at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Its target is meant, as by stat(2).
    Follow,
    /// It is meant itself, as by lstat(2), unless a slash follows.
    Keep,
}

/// An object that a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The object.
    pub node: Node,
    /// Its kind.
    pub kind: FileKind,
    /// Its path from the root, without links, `.` and `..`: `/` or `/a/b`.
    pub path: Vec<u8>,
}

/// Resolves a path from the directory `root`, which absolute links start from too. Errors: [`Error::NotFound`],
/// [`Error::NotADirectory`], `ELOOP` for too many links, and those of the tree.
pub fn resolve(tree: &dyn FileTree, root: Node, path: &[u8], last: Last) -> Result<Resolved> {
    // Each directory on the way, with the length of its path. At most 40 links of 4096 bytes add to the path.
    let mut above = vec![(root, 0)];
    let mut kind = tree.stat(root)?.kind;
    let mut resolved = Vec::new();
    let mut todo = VecDeque::new();
    push_front(&mut todo, path);
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        let (current, length) = *above.last().unwrap_or(&(root, 0));
        if kind != FileKind::Directory {
            return Err(Error::NotADirectory);
        }
        match &part[..] {
            b"." => continue,
            b".." => {
                if above.len() > 1 {
                    above.pop();
                }
                resolved.truncate(above.last().map_or(0, |(_, length)| *length));
                continue;
            }
            _ => {}
        }
        let node = tree.lookup(current, &part)?;
        kind = tree.stat(node)?.kind;
        if kind == FileKind::Link && (last == Last::Follow || !todo.is_empty()) {
            links += 1;
            if links > MAX_LINKS {
                return Err(io::Error::from(Errno::LOOP).into());
            }
            let target = tree.read_link(node)?;
            if target.starts_with(b"/") {
                above.truncate(1);
                resolved.clear();
            }
            kind = FileKind::Directory;
            push_front(&mut todo, &target);
            continue;
        }
        resolved.truncate(length);
        resolved.push(b'/');
        resolved.extend(&part);
        above.push((node, resolved.len()));
    }
    if resolved.is_empty() {
        resolved.push(b'/');
    }
    let (node, _) = *above.last().unwrap_or(&(root, 0));
    Ok(Resolved {
        node,
        kind,
        path: resolved,
    })
}

/// Puts the parts of a path before the others. A slash at the end means that a directory is expected, as `.` does.
fn push_front(todo: &mut VecDeque<Vec<u8>>, path: &[u8]) {
    if path.ends_with(b"/") {
        todo.push_front(b".".to_vec());
    }
    for part in path.rsplit(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        todo.push_front(part.to_vec());
    }
}
