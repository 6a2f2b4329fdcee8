//! The files inside a backup as one tree, read in user space: a directory for each volume, or the guest's own tree at
//! the top. Independent of the kernel.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use vbk_inside::device::SharedDevice;
use vbk_inside::fs::{FileKind, FileTree, Node, Stat, Xattr};
use vbk_inside::volumes::NamedTree;
use vbk_inside::{Error, Result};

/// Inode number of the top directory.
pub(crate) const ROOT: u64 = 1;
/// Contents that are kept for the next read: the kernel does not say which files are open. The runs of a file that was
/// made to be hostile take 24 MiB.
const RECENT_CONTENTS: usize = 4;

/// An object of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Object {
    /// The top directory above several volumes.
    Top,
    /// A node of the volume with this number.
    In(usize, Node),
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) object: Object,
    /// Inode number, for people: the kernel does not know it.
    pub(crate) number: u64,
    pub(crate) kind: FileKind,
    pub(crate) name: Vec<u8>,
}

/// Numbers of the objects that the kernel knows. It says when it has forgotten one, so memory is bounded by what the
/// kernel itself keeps.
#[derive(Default)]
struct Numbers {
    objects: HashMap<u64, (Object, u64)>,
    numbers: HashMap<Object, u64>,
    next: u64,
}

/// The files inside a backup. May be used by many threads at once.
pub struct FileFs {
    volumes: Vec<NamedTree>,
    made: Timestamp,
    numbers: Mutex<Numbers>,
    /// Contents of the files that are read, the one read last at the end.
    recent: Mutex<VecDeque<(Object, SharedDevice)>>,
}

impl FileFs {
    /// Shows each volume in a directory of its name. `made` is the time of the backup.
    pub fn of_volumes(volumes: Vec<NamedTree>, made: Timestamp) -> Self {
        Self::new(volumes, false, made)
    }

    /// Shows one tree at the top.
    pub fn of_tree(tree: NamedTree, made: Timestamp) -> Self {
        Self::new(vec![tree], true, made)
    }

    fn new(volumes: Vec<NamedTree>, is_flat: bool, made: Timestamp) -> Self {
        let mut numbers = Numbers {
            next: ROOT,
            ..Numbers::default()
        };
        let top = match volumes.first().filter(|_| is_flat) {
            Some(only) => Object::In(0, only.tree.root()),
            None => Object::Top,
        };
        numbers.number(top);
        Self {
            volumes,
            made,
            numbers: Mutex::new(numbers),
            recent: Mutex::default(),
        }
    }

    fn tree(&self, volume: usize) -> Result<&Arc<dyn FileTree>> {
        self.volumes
            .get(volume)
            .map(|volume| &volume.tree)
            .ok_or(Error::NotFound)
    }

    fn object(&self, number: u64) -> Result<Object> {
        let numbers = self.numbers.lock();
        numbers
            .objects
            .get(&number)
            .map(|(object, _)| *object)
            .ok_or(Error::NotFound)
    }

    fn node(&self, number: u64) -> Result<(&Arc<dyn FileTree>, Node)> {
        match self.object(number)? {
            Object::Top => Err(Error::NotAFile),
            Object::In(volume, node) => Ok((self.tree(volume)?, node)),
        }
    }

    /// Finds a name in a directory. The kernel then knows the object until [`Self::forget`].
    pub(crate) fn lookup(&self, directory: u64, name: &[u8]) -> Result<(u64, Stat)> {
        let object = match self.object(directory)? {
            Object::Top => {
                let mut volumes = self.volumes.iter().enumerate();
                let found = volumes.find(|(_, volume)| volume.name.as_bytes() == name);
                let (volume, named) = found.ok_or(Error::NotFound)?;
                Object::In(volume, named.tree.root())
            }
            Object::In(volume, node) => Object::In(volume, self.tree(volume)?.lookup(node, name)?),
        };
        let stat = self.stat_of(object)?;
        Ok((self.numbers.lock().number(object), stat))
    }

    /// Looks up an object that [`Self::list`] gave. The kernel knows it until [`Self::forget`], also without attributes.
    pub(crate) fn found(&self, object: Object) -> (u64, Result<Stat>) {
        let stat = self.stat_of(object);
        (self.numbers.lock().number(object), stat)
    }

    #[cfg(test)]
    pub(crate) fn known(&self) -> usize {
        self.numbers.lock().objects.len()
    }

    /// Drops `times` lookups of an object.
    pub(crate) fn forget(&self, number: u64, times: u64) {
        if number != ROOT {
            self.numbers.lock().forget(number, times);
        }
    }

    /// Returns the attributes of an object.
    pub(crate) fn stat(&self, number: u64) -> Result<Stat> {
        self.stat_of(self.object(number)?)
    }

    fn stat_of(&self, object: Object) -> Result<Stat> {
        match object {
            Object::In(volume, node) => self.tree(volume)?.stat(node),
            Object::Top => Ok(Stat {
                links: 2,
                ..Stat::of_directory(self.made)
            }),
        }
    }

    /// Calls `each` with the names in a directory until it breaks.
    pub(crate) fn list(&self, directory: u64, each: &mut dyn FnMut(Name) -> ControlFlow<()>) -> Result<()> {
        match self.object(directory)? {
            Object::Top => {
                for (number, volume) in self.volumes.iter().enumerate() {
                    let name = Name {
                        object: Object::In(number, volume.tree.root()),
                        number: u64::MAX,
                        kind: FileKind::Directory,
                        name: volume.name.clone().into_bytes(),
                    };
                    if each(name).is_break() {
                        break;
                    }
                }
                Ok(())
            }
            Object::In(volume, node) => self.tree(volume)?.list(node, &mut |entry| {
                each(Name {
                    object: Object::In(volume, entry.node),
                    number: entry.node.number,
                    kind: entry.kind.unwrap_or(FileKind::File),
                    name: entry.name,
                })
            }),
        }
    }

    /// Returns the target of a link.
    pub(crate) fn read_link(&self, number: u64) -> Result<Vec<u8>> {
        let (tree, node) = self.node(number)?;
        tree.read_link(node)
    }

    /// Returns the extended attributes of an object.
    pub(crate) fn xattrs(&self, number: u64) -> Result<Vec<Xattr>> {
        match self.object(number)? {
            Object::Top => Ok(Vec::new()),
            Object::In(volume, node) => self.tree(volume)?.xattrs(node),
        }
    }

    /// Returns the content of a file.
    pub(crate) fn content(&self, number: u64) -> Result<SharedDevice> {
        let object = self.object(number)?;
        let mut recent = self.recent.lock();
        let known = recent.iter().position(|(known, _)| *known == object);
        if let Some(known) = known.and_then(|known| recent.remove(known)) {
            let content = Arc::clone(&known.1);
            recent.push_back(known);
            return Ok(content);
        }
        drop(recent);
        let (tree, node) = self.node(number)?;
        let content = Arc::clone(tree).open(node)?;
        let mut recent = self.recent.lock();
        let dropped = (recent.len() == RECENT_CONTENTS).then(|| recent.pop_front());
        recent.push_back((object, Arc::clone(&content)));
        drop(recent);
        drop(dropped);
        Ok(content)
    }
}

impl Numbers {
    fn number(&mut self, object: Object) -> u64 {
        if let Some(number) = self.numbers.get(&object) {
            if let Some((_, lookups)) = self.objects.get_mut(number) {
                *lookups += 1;
            }
            return *number;
        }
        let number = self.next;
        self.next += 1;
        self.objects.insert(number, (object, 1));
        self.numbers.insert(object, number);
        number
    }

    fn forget(&mut self, number: u64, times: u64) {
        let Some((object, lookups)) = self.objects.get_mut(&number) else {
            return;
        };
        *lookups = lookups.saturating_sub(times);
        if *lookups == 0 {
            self.numbers.remove(object);
            self.objects.remove(&number);
        }
    }
}
