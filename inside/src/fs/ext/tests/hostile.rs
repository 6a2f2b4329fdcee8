//! Damaged and hostile file systems.

use std::ops::Range;
use std::sync::OnceLock;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::fuzzing;

fn fuzz(bytes: &[u8]) {
    fuzzing::files(open(Arc::new(bytes.to_vec())));
}

/// Small images with everything in them. The journals were not written back, of which the last has fast commits.
fn images() -> &'static [Vec<u8>] {
    static IMAGES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let kinds = [
            "-t ext2 -b 1024",
            "-t ext4 -b 1024 -J size=1 -O ^metadata_csum,^resize_inode,inline_data -I 256",
            "-t ext4 -b 1024 -J size=1 -O metadata_csum,^resize_inode,ea_inode",
            "-t ext4 -b 1024 -J size=2,fast_commit_size=256 -O fast_commit,metadata_csum,^resize_inode",
        ];
        let image = |kind: &str| {
            let image = Image::new(6 << 20, kind);
            // ext2 has no journal to commit.
            let mounted = image.mount(if kind.contains("ext2") { "rw" } else { "commit=300" });
            let root = mounted.path();
            for number in 0..150 {
                let path = root.join(format!("a long name to have an index {number}"));
                fs::write(path, noise(number, 1)).expect("writes");
            }
            symlink("x".repeat(100), root.join("link")).expect("links");
            fs::create_dir(root.join("inside")).expect("a directory");
            fs::write(root.join("inside/file"), b"content").expect("writes");
            lsetxattr(root.join("link"), "trusted.a", &noise(500, 2), XattrFlags::empty()).expect("sets an attribute");
            lsetxattr(
                root.join("inside"),
                "system.posix_acl_access",
                &acl(),
                XattrFlags::empty(),
            )
            .expect("sets a list");
            let file = File::create(root.join("fragments")).expect("creates");
            for number in 0..300 {
                file.write_all_at(b"data", number * 4096).expect("writes");
            }
            file.sync_all().expect("syncs");
            fs::remove_dir_all(root.join("inside")).expect("removes");
            let root = File::open(root).expect("opens");
            root.sync_all().expect("syncs");
            // ext2 has no journal, and fast commits follow a whole one.
            if kind.contains("ext2") || kind.contains("fast_commit") {
                rustix::fs::syncfs(&root).expect("syncs");
            }
            if kind.contains("fast_commit") {
                let at = |name: String| mounted.path().join(name);
                for number in 0..3 {
                    let old = at(format!("a long name to have an index {number}"));
                    fs::rename(old, at(format!("renamed {number}"))).expect("renames");
                    fs::write(at(format!("new {number}")), noise(3000, number)).expect("writes");
                    fs::remove_file(at(format!("a long name to have an index 1{number}"))).expect("removes");
                    fast_commit::sync(&at(format!("new {number}")));
                }
            }
            fs::read(image.path()).expect("reads the image")
        };
        kinds.into_iter().map(image).collect()
    })
}

#[test]
fn seeds() {
    for (name, image) in ["ext2", "inline-data", "journal", "fast-commits"].iter().zip(images()) {
        fuzzing::seed_disks("ext", name, &[Arc::new(image.clone())]);
    }
    let remarks = open(Arc::new(images()[3].clone())).expect("opens").remarks();
    assert!(remarks.concat().contains(" fast commits"), "{remarks:?}");
}

/// Returns the parts of an image that hold anything, outside the content of files.
fn used(image: &[u8]) -> Vec<Range<usize>> {
    let blocks = image.chunks(1024).enumerate();
    blocks
        .filter(|(_, block)| block.iter().any(|byte| *byte != 0))
        .map(|(number, _)| number * 1024..number * 1024 + 1024)
        .collect()
}

/// Offset in the image of some byte that is not zero: part of a field.
fn field(image: &[u8], blocks: &[Range<usize>], block: Index, byte: Index) -> usize {
    let block = block.get(blocks).clone();
    let used: Vec<usize> = block.clone().filter(|at| image[*at] != 0).collect();
    // An earlier mutation may have cleared the block.
    if used.is_empty() { block.start } else { *byte.get(&used) }
}

#[derive(Debug, Clone)]
struct Mutation {
    block: Index,
    byte: Index,
    value: Vec<u8>,
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let value = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..5),
        Just(vec![0; 4]),
        Just(vec![0xff; 4]),
        Just(vec![0xff, 0xff, 0xff, 0x7f]),
        Just(vec![0x80]),
    ];
    (any::<Index>(), any::<Index>(), value).prop_map(|(block, byte, value)| Mutation { block, byte, value })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_makes_the_reader_panic(
        which in 0..images().len(),
        mutations in proptest::collection::vec(mutation(), 1..20),
    ) {
        let mut image = images()[which].clone();
        let blocks = used(&image);
        for Mutation { block, byte, value } in mutations {
            let at = field(&image, &blocks, block, byte);
            let end = (at + value.len()).min(image.len());
            image[at..end].copy_from_slice(&value[..end - at]);
        }
        fuzz(&image);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(mut bytes in proptest::collection::vec(any::<u8>(), 1024..8192), log in 0..7_u32) {
        // Without these few fields nothing is tried.
        bytes.resize(8192, 0);
        bytes[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        bytes[1024 + 0x14..1024 + 0x1c].fill(0);
        bytes[1024 + 0x18..1024 + 0x1c].copy_from_slice(&log.to_le_bytes());
        bytes[1024 + 0x28..1024 + 0x2c].copy_from_slice(&[16, 0, 0, 0]);
        bytes[1024 + 0x58..1024 + 0x5a].copy_from_slice(&[0, 1]);
        bytes[1024 + 0x60..1024 + 0x68].copy_from_slice(&[0x46, 0, 0, 0, 0, 0, 0, 0]);
        fuzz(&bytes);
    }
}

/// An image with checksums, and its tree.
fn with_checksums() -> (Image, Arc<Ext>) {
    let dir = tempfile::tempdir().expect("a directory");
    populate(dir.path(), 500, 1 << 30);
    let image = Image::new(
        300 << 20,
        &format!("-t ext4 -b 1024 -d {}", dir.path().to_str().expect("a path")),
    );
    let tree = image.open();
    (image, tree)
}

fn flip(image: &Image, offset_bytes: u64) {
    let file = image.file();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset_bytes).expect("reads");
    file.write_all_at(&[byte[0] ^ 0x10], offset_bytes).expect("writes");
}

fn is_damaged<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Damaged(_)))
}

fn count(tree: &Ext, directory: Node) -> (usize, Result<()>) {
    let mut count = 0;
    let listed = tree.list(directory, &mut |_| {
        count += 1;
        ControlFlow::Continue(())
    });
    (count, listed)
}

#[test]
fn damage_hides_only_what_it_hits() {
    let (image, tree) = with_checksums();
    let find = |name: &str| tree.lookup(tree.root(), name.as_bytes()).expect("a name");
    let inode = |node: Node| Inode::read(&tree.volume, node.number as u32).expect("an inode");
    let (content, many, tiny, sparse) = (find("content"), find("many"), find("tiny"), find("sparse"));

    let (block, at) = tree.volume.inode_position(tiny.number as u32).expect("a position");
    flip(&image, block * 1024 + at + 0x10);
    let blocks = Blocks::new(inode(many));
    let third = blocks.run(&tree.volume, 2).expect("a run");
    flip(&image, (third.block.expect("data") + 2 - third.first) * 1024 + 20);
    flip(&image, inode(content).xattr_block() * 1024 + 0x20);
    let names = count(&tree, many).0;

    let tree = image.open();
    assert_eq!(tree.remarks(), [""; 0]);
    assert!(is_damaged(tree.stat(tiny)));
    assert!(is_damaged(tree.xattrs(content)));
    assert!(tree.stat(content).is_ok() && tree.stat(sparse).is_ok());
    let (left, listed) = count(&tree, many);
    assert!(
        is_damaged(listed) && left > names * 9 / 10 && left < names,
        "{left} of {names}"
    );
    assert!(is_damaged(tree.lookup(many, b"no such name")));
}

#[test]
fn a_damaged_extent_node_hides_only_its_part_of_the_file() {
    let image = Image::new(64 << 20, "-t ext4 -b 1024");
    let fill = |root: &Path| {
        let file = File::create(root.join("fragments")).expect("creates");
        for number in 0..1000 {
            file.write_all_at(&[1; 1024], number * 2048).expect("writes");
        }
    };
    fill(image.mount("rw").path());
    let tree = image.open();
    let node = tree.lookup(tree.root(), b"fragments").expect("the file");
    let inode = Inode::read(&tree.volume, node.number as u32).expect("an inode");
    // The second entry of the root.
    let leaf = superblock::u32_at(inode.map(), 12 + 12 + 4).expect("a leaf");
    let first = u64::from(superblock::u32_at(inode.map(), 12 + 12).expect("a block"));
    flip(&image, u64::from(leaf) * 1024 + 100);
    let tree = image.open();
    let file = Arc::clone(&tree).open(node).expect("opens");
    let mut buf = [0; 1024];
    assert!(file.read_at(0, &mut buf).is_ok() && buf == [1; 1024]);
    assert!(file.read_at((first - 2) * 1024, &mut buf).is_ok() && buf == [1; 1024]);
    let error = file.read_at(first * 1024, &mut buf).expect_err("damaged");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert!(file.read_at(1998 * 1024, &mut buf).is_ok() && buf == [1; 1024]);
    assert_eq!(file.next_data(first * 1024).expect("seeks"), Some(first * 1024));
}

#[test]
fn a_damaged_group_descriptor_is_replaced_by_its_copy() {
    let (image, intact) = with_checksums();
    for group in [0, 1] {
        flip(&image, 2048 + group * 64 + 8);
    }
    let tree = image.open();
    let ours = seen_by_reader(&tree, Against::Kernel);
    assert_same(&ours, &seen_by_reader(&intact, Against::Kernel), "a copy");
}

#[test]
fn a_superblock_with_a_wrong_checksum_is_replaced_by_its_copy() {
    let (image, _) = with_checksums();
    flip(&image, 1024 + 0x78);
    assert_eq!(
        image.open().remarks(),
        ["the superblock is damaged; opened by the copy at block 8193"]
    );
    // A small file system has no copy.
    let image = Image::new(4 << 20, "-t ext4 -b 1024");
    flip(&image, 1024 + 0x78);
    assert_eq!(image.open().remarks().len(), 1);
}

#[test]
fn what_is_no_file_system_of_files_is_refused_by_name() {
    let image = Image::new(4 << 20, "-b 1024 -O journal_dev");
    let error = open(Arc::new(image.file())).err().expect("refused").to_string();
    assert_eq!(error, "not supported: journal of another ext4 file system");
    let image = Image::new(4 << 20, "-t ext2 -b 1024");
    image
        .file()
        .write_all_at(&[0x42, 0, 0, 0x80], 1024 + 0x60)
        .expect("writes");
    let error = open(Arc::new(image.file())).err().expect("refused").to_string();
    assert_eq!(
        error,
        "not supported: ext4 with the unknown incompatible features 0x80000000"
    );
    assert!(is_damaged(open(Arc::new(vec![0; 1 << 20]))));
    assert!(is_damaged(open(Arc::new(Vec::new()))));
}

#[test]
fn encrypted_files_are_unsupported_and_the_others_readable() {
    let dir = tempfile::tempdir().expect("a directory");
    populate(dir.path(), 10, 1 << 20);
    let image = Image::new(
        64 << 20,
        &format!("-t ext4 -O encrypt -d {}", dir.path().to_str().expect("a path")),
    );
    for name in ["page", "link 61", "few"] {
        let flags = if name == "link 61" || name == "few" {
            0x8_0800
        } else {
            0x800
        };
        let command = format!("set_inode_field \"{name}\" flags {flags}");
        let args = ["-w", "-R", &command].map(OsStr::new);
        let path = image.path();
        let args: Vec<&OsStr> = args.into_iter().chain([path.as_os_str()]).collect();
        run("debugfs", &args);
    }
    let tree = image.open();
    let find = |name: &str| tree.lookup(tree.root(), name.as_bytes()).expect("a name");
    let file = Arc::clone(&tree).open(find("page"));
    assert!(matches!(file, Err(Error::Unsupported(what)) if what == "encrypted file"));
    let link = tree.read_link(find("link 61"));
    assert!(matches!(link, Err(Error::Unsupported(what)) if what == "encrypted symbolic link"));
    assert_eq!(count(&tree, find("few")).0, 4);
    assert!(tree.stat(find("page")).is_ok());
    assert!(Arc::clone(&tree).open(find("hundred")).is_ok());
}

/// A device with a few bytes that can't be read.
struct Unreadable(Vec<u8>, Range<u64>);

impl Device for Unreadable {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> std::io::Result<()> {
        if offset_bytes < self.1.end && self.1.start < offset_bytes + buf.len() as u64 {
            return Err(std::io::Error::other("damaged page"));
        }
        self.0.read_at(offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
}

#[test]
fn an_unreadable_block_hides_only_itself() {
    let bytes = images()[0].clone();
    let tree = open(Arc::new(bytes.clone())).expect("opens");
    let node = tree
        .lookup(tree.root(), b"a long name to have an index 7")
        .expect("the file");
    let other = tree
        .lookup(tree.root(), b"a long name to have an index 99")
        .expect("the file");
    let (block, _) = tree.volume.inode_position(node.number as u32).expect("a position");
    let tree = open(Arc::new(Unreadable(bytes, block * 1024..block * 1024 + 1024))).expect("opens");
    assert!(matches!(tree.stat(node), Err(Error::Io(_))));
    tree.stat(other).expect("readable");
    assert!(count(&tree, tree.root()).1.is_ok());
}
