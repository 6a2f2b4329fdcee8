//! What a volume holds besides the directories of it that the guest mounts: subvolumes of a btrfs that fstab does not
//! name, e.g. snapshots.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::device::SharedDevice;
use crate::error::{Error, Result};
use crate::fs::{Entry, FileTree, Identity, Node, Stat, Xattr};

/// A tree without some of its directories.
pub(super) struct Rest {
    pub tree: Arc<dyn FileTree>,
    pub without: Vec<Node>,
}

impl FileTree for Rest {
    fn root(&self) -> Node {
        self.tree.root()
    }

    fn identity(&self) -> Identity {
        self.tree.identity()
    }

    fn remarks(&self) -> Vec<String> {
        self.tree.remarks()
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        self.tree.stat(node)
    }

    fn list(&self, directory: Node, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        self.tree
            .list(directory, &mut |entry| match self.without.contains(&entry.node) {
                true => ControlFlow::Continue(()),
                false => each(entry),
            })
    }

    fn lookup(&self, directory: Node, name: &[u8]) -> Result<Node> {
        let found = self.tree.lookup(directory, name)?;
        match self.without.contains(&found) {
            true => Err(Error::NotFound),
            false => Ok(found),
        }
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        self.tree.read_link(node)
    }

    fn open(self: Arc<Self>, node: Node) -> Result<SharedDevice> {
        Arc::clone(&self.tree).open(node)
    }

    fn xattrs(&self, node: Node) -> Result<Vec<Xattr>> {
        self.tree.xattrs(node)
    }
}
