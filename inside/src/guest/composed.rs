//! Trees mounted on directories of others, as one tree.
//!
//! As in the kernel, a mount covers a directory of one other mount: a file system that is mounted twice is walked twice,
//! and never leads back into itself.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::device::SharedDevice;
use crate::error::{Error, Result};
use crate::fs::{Entry, FileKind, FileTree, Identity, Node, Stat, Xattr};

/// Spaces of all mounts together, e.g. subvolumes; each costs about 60 bytes.
const MAX_SPACES: usize = 1 << 20;

/// A tree at its mount point.
struct Mount {
    tree: Arc<dyn FileTree>,
    start: Node,
}

/// Several trees as one. A node's space is the number of a mount and a space of that mount's tree.
pub(super) struct Composed {
    mounts: Vec<Mount>,
    /// The mount that covers a directory of a mount.
    covered: HashMap<(usize, Node), usize>,
    spaces: RwLock<Spaces>,
}

#[derive(Default)]
struct Spaces {
    known: Vec<(usize, u64)>,
    numbers: HashMap<(usize, u64), u64>,
}

impl Spaces {
    fn number_of(&mut self, mount: usize, space: u64) -> Result<u64> {
        if let Some(number) = self.numbers.get(&(mount, space)) {
            return Ok(*number);
        }
        if self.known.len() >= MAX_SPACES {
            return Err(Error::unsupported(format!("more than {MAX_SPACES} subvolumes")));
        }
        let number = self.known.len() as u64;
        self.known.push((mount, space));
        self.numbers.insert((mount, space), number);
        Ok(number)
    }
}

impl Composed {
    /// Makes a tree of the directory `start` of another.
    pub fn new(tree: Arc<dyn FileTree>, start: Node) -> Self {
        let first = (0, start.space);
        Self {
            mounts: vec![Mount { tree, start }],
            covered: HashMap::new(),
            spaces: RwLock::new(Spaces {
                known: vec![first],
                numbers: HashMap::from([(first, 0)]),
            }),
        }
    }

    /// Mounts the directory `start` of a tree on a directory of this one.
    pub fn mount(&mut self, point: Node, tree: Arc<dyn FileTree>, start: Node) -> Result<()> {
        let (mount, node) = self.inner(point)?;
        self.mounts.push(Mount { tree, start });
        self.covered.insert((mount, node), self.mounts.len() - 1);
        Ok(())
    }

    fn inner(&self, node: Node) -> Result<(usize, Node)> {
        let spaces = self.spaces.read();
        let known = usize::try_from(node.space)
            .ok()
            .and_then(|number| spaces.known.get(number));
        let (mount, space) = *known.ok_or(Error::NotFound)?;
        let number = node.number;
        Ok((mount, Node { space, number }))
    }

    fn tree_of(&self, node: Node) -> Result<(&Arc<dyn FileTree>, usize, Node)> {
        let (mount, node) = self.inner(node)?;
        let tree = self.mounts.get(mount).map(|mount| &mount.tree);
        Ok((tree.ok_or(Error::NotFound)?, mount, node))
    }

    /// Returns the node that stands for a node of a mount: the root of the last mount that covers it, or itself. Ends,
    /// because a mount only ever covers directories of earlier ones.
    fn outer(&self, mut mount: usize, mut node: Node) -> Result<(Node, bool)> {
        let mut is_covered = false;
        while let Some(next) = self.covered.get(&(mount, node)) {
            is_covered = true;
            mount = *next;
            node = self.mounts.get(mount).map(|mount| mount.start).ok_or(Error::NotFound)?;
        }
        let known = self.spaces.read().numbers.get(&(mount, node.space)).copied();
        let space = match known {
            Some(space) => space,
            None => self.spaces.write().number_of(mount, node.space)?,
        };
        let number = node.number;
        Ok((Node { space, number }, is_covered))
    }
}

impl FileTree for Composed {
    fn root(&self) -> Node {
        // Space 0 is that of the first mount's start. Nothing covers it: an entry for `/` is not mounted again.
        Node {
            space: 0,
            number: self.mounts.first().map_or(0, |mount| mount.start.number),
        }
    }

    fn identity(&self) -> Identity {
        self.mounts
            .first()
            .map(|mount| mount.tree.identity())
            .unwrap_or_default()
    }

    fn remarks(&self) -> Vec<String> {
        self.mounts.iter().flat_map(|mount| mount.tree.remarks()).collect()
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        let (tree, _, node) = self.tree_of(node)?;
        tree.stat(node)
    }

    fn list(&self, directory: Node, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        let (tree, mount, directory) = self.tree_of(directory)?;
        let mut failed = None;
        let listed = tree.list(directory, &mut |mut entry| {
            match self.outer(mount, entry.node) {
                Ok((node, is_covered)) => {
                    entry.node = node;
                    if is_covered {
                        entry.kind = Some(FileKind::Directory);
                    }
                }
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
            each(entry)
        });
        match failed {
            Some(error) => Err(error),
            None => listed,
        }
    }

    fn lookup(&self, directory: Node, name: &[u8]) -> Result<Node> {
        let (tree, mount, directory) = self.tree_of(directory)?;
        let (node, _) = self.outer(mount, tree.lookup(directory, name)?)?;
        Ok(node)
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        let (tree, _, node) = self.tree_of(node)?;
        tree.read_link(node)
    }

    fn open(self: Arc<Self>, node: Node) -> Result<SharedDevice> {
        let (tree, _, node) = self.tree_of(node)?;
        Arc::clone(tree).open(node)
    }

    fn xattrs(&self, node: Node) -> Result<Vec<Xattr>> {
        let (tree, _, node) = self.tree_of(node)?;
        tree.xattrs(node)
    }
}
