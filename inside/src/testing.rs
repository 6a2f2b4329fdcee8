//! A tree of files in memory, which may be malformed in every way that the trait allows.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use jiff::Timestamp;

use crate::device::{Device, SharedDevice};
use crate::error::{Error, Result};
use crate::fs::{Entry, FileKind, FileTree, Identity, Node, Stat, Xattr};
use crate::volumes::NamedTree;

pub enum Content {
    Directory(Vec<(Vec<u8>, usize)>),
    /// Data at its offsets; the rest are holes.
    File(u64, Vec<(u64, Vec<u8>)>),
    Link(Vec<u8>),
    Other,
    /// Its attributes can be read, and nothing else.
    Damaged,
}

pub struct Object {
    pub stat: Stat,
    pub space: u64,
    pub content: Content,
    pub xattrs: Vec<Xattr>,
}

#[derive(Default)]
pub struct MemoryTree {
    pub objects: Vec<Object>,
    /// Path of the default subvolume.
    pub default: Option<&'static str>,
    pub identity: Identity,
}

impl MemoryTree {
    pub fn new() -> Self {
        let mut tree = Self::default();
        tree.add(FileKind::Directory, Content::Directory(Vec::new()));
        tree
    }

    pub fn with_uuid(uuid: &str) -> Self {
        let mut tree = Self::new();
        tree.identity.uuid = Some(uuid.to_owned());
        tree
    }

    pub fn add(&mut self, kind: FileKind, content: Content) -> usize {
        let at = Timestamp::new(1_700_000_000, 123_456_789).expect("a time");
        let size_bytes = match &content {
            Content::File(size_bytes, _) => *size_bytes,
            Content::Link(to) => to.len() as u64,
            _ => 0,
        };
        self.objects.push(Object {
            stat: Stat {
                kind,
                mode: if kind == FileKind::Directory { 0o755 } else { 0o644 },
                uid: 0,
                gid: 0,
                links: 1,
                size_bytes,
                device: (0, 0),
                modified: at,
                changed: at,
                accessed: at,
            },
            space: 0,
            content,
            xattrs: Vec::new(),
        });
        self.objects.len() - 1
    }

    /// Finds a path without following links.
    pub fn find(&self, path: &str) -> usize {
        path.split('/')
            .filter(|name| !name.is_empty())
            .fold(0, |at, name| match &self.objects[at].content {
                Content::Directory(entries) => {
                    let found = entries.iter().find(|(entry, _)| entry == name.as_bytes());
                    found.unwrap_or_else(|| panic!("no {path}")).1
                }
                _ => panic!("no directory in {path}"),
            })
    }

    pub fn at(&mut self, path: &str) -> &mut Object {
        let number = self.find(path);
        &mut self.objects[number]
    }

    pub fn node(&self, path: &str) -> Node {
        self.node_of(self.find(path))
    }

    fn node_of(&self, number: usize) -> Node {
        Node {
            space: self.objects[number].space,
            number: number as u64,
        }
    }

    pub fn entry(&mut self, directory: usize, name: &[u8], number: usize) {
        match &mut self.objects[directory].content {
            Content::Directory(entries) => entries.push((name.to_vec(), number)),
            _ => panic!("not a directory"),
        }
    }

    fn put(&mut self, path: &str, kind: FileKind, content: Content) -> &mut Object {
        let (above, name) = path.rsplit_once('/').expect("an absolute path");
        let above = self.find(above);
        let space = self.objects[above].space;
        let number = self.add(kind, content);
        self.objects[number].space = space;
        self.entry(above, name.as_bytes(), number);
        &mut self.objects[number]
    }

    pub fn directory(&mut self, path: &str) -> &mut Object {
        self.put(path, FileKind::Directory, Content::Directory(Vec::new()))
    }

    pub fn file(&mut self, path: &str, content: &str) -> &mut Object {
        let data = vec![(0, content.as_bytes().to_vec())];
        self.put(path, FileKind::File, Content::File(content.len() as u64, data))
    }

    pub fn link(&mut self, path: &str, to: &str) -> &mut Object {
        self.put(path, FileKind::Link, Content::Link(to.as_bytes().to_vec()))
    }

    pub fn other(&mut self, path: &str, kind: FileKind) -> &mut Object {
        self.put(path, kind, Content::Other)
    }

    pub fn damaged(&mut self, path: &str, kind: FileKind) -> &mut Object {
        self.put(path, kind, Content::Damaged)
    }

    pub fn hard_link(&mut self, path: &str, old: &str) {
        let number = self.find(old);
        let (above, name) = path.rsplit_once('/').expect("an absolute path");
        let above = self.find(above);
        self.entry(above, name.as_bytes(), number);
        self.objects[number].stat.links += 1;
    }

    pub fn shared(self) -> Arc<dyn FileTree> {
        Arc::new(self)
    }

    pub fn named(self, name: &str, names: &[&str]) -> NamedTree {
        NamedTree {
            name: name.to_owned(),
            fs: "ext4".to_owned(),
            size_bytes: 0,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            tree: Arc::new(self),
        }
    }

    fn get(&self, node: Node) -> Result<&Object> {
        let number = usize::try_from(node.number).ok();
        let found = number.and_then(|number| self.objects.get(number));
        found.filter(|found| found.space == node.space).ok_or(Error::NotFound)
    }
}

impl FileTree for MemoryTree {
    fn root(&self) -> Node {
        self.node_of(0)
    }

    fn default_root(&self) -> Node {
        self.default.map_or_else(|| self.root(), |path| self.node(path))
    }

    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    fn stat(&self, node: Node) -> Result<Stat> {
        Ok(self.get(node)?.stat.clone())
    }

    fn list(&self, directory: Node, each: &mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<()> {
        let entries = match &self.get(directory)?.content {
            Content::Directory(entries) => entries,
            Content::Damaged => return Err(Error::damaged("a directory of a test")),
            _ => return Err(Error::NotADirectory),
        };
        for (name, number) in entries {
            let entry = Entry {
                name: name.clone(),
                node: self.node_of(*number),
                kind: None,
            };
            if each(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn read_link(&self, node: Node) -> Result<Vec<u8>> {
        match &self.get(node)?.content {
            Content::Link(to) => Ok(to.clone()),
            _ => Err(Error::damaged("a link of a test")),
        }
    }

    fn open(self: Arc<Self>, node: Node) -> Result<SharedDevice> {
        match &self.get(node)?.content {
            Content::File(size_bytes, data) => Ok(Arc::new(Sparse {
                size_bytes: *size_bytes,
                data: data.clone(),
            })),
            Content::Damaged => Ok(Arc::new(Broken)),
            _ => Err(Error::NotAFile),
        }
    }

    fn xattrs(&self, node: Node) -> Result<Vec<Xattr>> {
        Ok(self.get(node)?.xattrs.clone())
    }
}

struct Sparse {
    size_bytes: u64,
    data: Vec<(u64, Vec<u8>)>,
}

impl Device for Sparse {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(0);
        let end_bytes = offset_bytes + buf.len() as u64;
        if end_bytes > self.size_bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (start, data) in &self.data {
            let from = offset_bytes.max(*start);
            let to = end_bytes.min(start + data.len() as u64);
            if from < to {
                let length = (to - from) as usize;
                let (at, data_at) = ((from - offset_bytes) as usize, (from - start) as usize);
                buf[at..at + length].copy_from_slice(&data[data_at..data_at + length]);
            }
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        let mut after = self
            .data
            .iter()
            .filter(|(start, data)| start + data.len() as u64 > offset_bytes);
        Ok(after.next().map(|(start, _)| offset_bytes.max(*start)))
    }

    fn next_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        let inside = |(start, data): &&(u64, Vec<u8>)| (*start..start + data.len() as u64).contains(&offset_bytes);
        let found = self.data.iter().find(inside);
        Ok(found.map_or(offset_bytes, |(start, data)| start + data.len() as u64))
    }
}

struct Broken;

impl Device for Broken {
    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::Error::other("a block of a test is damaged"))
    }

    fn size_bytes(&self) -> u64 {
        100
    }
}
