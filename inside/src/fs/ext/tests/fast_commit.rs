//! Fast commits that the kernel wrote, compared with its own replay, and some made by hand.

use proptest::prelude::*;

use super::journal::copy_of;
use super::*;
use crate::fs::ext::fast_commit::Scan;
use crate::fs::ext::ranges::{Ranges, Run};

pub(super) fn sync(path: &Path) {
    File::open(path).and_then(|file| file.sync_all()).expect("syncs");
}

/// Makes files that a full commit holds, for `change` to change them.
fn prepare(root: &Path) {
    for name in [
        "grown",
        "shrunk",
        "rewritten",
        "moved",
        "removed",
        "linked",
        "replaced",
        "unlinked",
    ] {
        fs::write(root.join(name), noise(40_000, 1)).expect("writes");
    }
    fs::create_dir(root.join("large")).expect("a directory");
    for number in 0..300 {
        fs::write(root.join(format!("large/a file with a number {number}")), b"").expect("writes");
    }
    fs::hard_link(root.join("unlinked"), root.join("other name")).expect("links");
    lsetxattr(root.join("grown"), "user.kept", b"value", XattrFlags::empty()).expect("sets an attribute");
    rustix::fs::syncfs(File::open(root).expect("opens")).expect("syncs");
}

/// Makes changes that fast commits can hold, each in one of its own.
fn change(root: &Path) {
    let at = |name: &str| root.join(name);
    for number in 0..10 {
        fs::write(at(&format!("new {number}")), noise(number * 3000, 2)).expect("writes");
        sync(&at(&format!("new {number}")));
    }
    let file = File::options().append(true).open(at("grown")).expect("opens");
    std::io::Write::write_all(&mut &file, &noise(100_000, 3)).expect("writes");
    file.sync_all().expect("syncs");
    let file = File::options().write(true).open(at("shrunk")).expect("opens");
    file.set_len(5000).expect("truncates");
    file.sync_all().expect("syncs");
    let file = File::options().write(true).open(at("rewritten")).expect("opens");
    file.set_len(0).expect("truncates");
    file.write_all_at(&noise(70_000, 4), 4096).expect("writes");
    file.sync_all().expect("syncs");
    let file = File::create(at("sparse")).expect("creates");
    for number in [3, 700, 1, 90] {
        file.write_all_at(&noise(5000, number), number * 10_000)
            .expect("writes");
        file.sync_all().expect("syncs");
    }
    fs::rename(at("moved"), at("large/moved here")).expect("renames");
    sync(&at("large/moved here"));
    fs::rename(at("new 3"), at("replaced")).expect("renames");
    sync(&at("replaced"));
    fs::hard_link(at("linked"), at("new name")).expect("links");
    sync(&at("linked"));
    fs::remove_file(at("unlinked")).expect("removes");
    fs::remove_file(at("removed")).expect("removes");
    fs::remove_file(at("new 4")).expect("removes");
    for number in (0..300).step_by(3) {
        fs::remove_file(at(&format!("large/a file with a number {number}"))).expect("removes");
    }
    sync(&at("other name"));
    // Its inode is one that was just removed.
    fs::write(at("again"), noise(9000, 5)).expect("writes");
    sync(&at("again"));
    fs::write(at("removed"), b"another").expect("writes");
    for number in 0..100 {
        fs::write(at(&format!("large/a later file {number}")), b"x").expect("writes");
    }
    sync(&at("removed"));
    std::os::unix::fs::chown(at("grown"), Some(7), Some(70_000)).expect("sets the owner");
    fs::set_permissions(at("grown"), fs::Permissions::from_mode(0o4711)).expect("sets the mode");
    sync(&at("grown"));
}

/// Leaves out what the kernel does not record: times and links of directories, and the time of a change of names.
fn recorded(mut files: Files) -> Files {
    for seen in files.values_mut() {
        if seen.kind == FileKind::Directory {
            (seen.times, seen.links, seen.size_bytes) = Default::default();
        }
    }
    files
}

#[test]
fn changes_that_are_only_in_fast_commits_are_as_the_kernel_replays_them() {
    for kind in [
        "-t ext4 -b 4096 -O fast_commit",
        "-t ext4 -b 1024 -O fast_commit,inline_data",
        "-t ext4 -b 4096 -I 128 -O fast_commit,^metadata_csum,^64bit",
    ] {
        let image = Image::new(200 << 20, kind);
        let mounted = image.mount("commit=300");
        prepare(mounted.path());
        change(mounted.path());
        let copy = copy_of(&image);
        drop(mounted);
        let tree = copy.open();
        let remarks = tree.remarks();
        assert_eq!(remarks.len(), 1, "{kind}: {remarks:?}");
        let least = if kind.contains("inline_data") { 1 } else { 20 };
        let commits = remarks[0]
            .split_once(", and ")
            .and_then(|(_, rest)| rest.split(' ').next());
        let commits: usize = commits.and_then(|it| it.parse().ok()).unwrap_or(0);
        assert!(commits >= least, "{kind}: {remarks:?}");
        let ours = recorded(seen_by_reader(&tree, Against::Kernel));
        for (name, node) in ["again", "removed", "large"].map(|name| (name, tree.lookup(tree.root(), name.as_bytes())))
        {
            assert!(node.is_ok(), "{kind}: {name}");
        }
        drop(tree);
        let mounted = copy.mount("rw,noatime");
        assert_same(&ours, &recorded(seen_by_kernel(mounted.path(), Against::Kernel)), kind);
    }
}

#[test]
fn new_directories_and_unwritten_extents_in_fast_commits_are_as_they_were_made() {
    let image = Image::new(200 << 20, "-t ext4 -b 4096 -O fast_commit");
    let mounted = image.mount("commit=300,noatime");
    prepare(mounted.path());
    let root = mounted.path();
    fs::create_dir_all(root.join("new/inner")).expect("a directory");
    fs::write(root.join("new/inner/file"), noise(5000, 1)).expect("writes");
    sync(&root.join("new/inner/file"));
    fs::create_dir(root.join("gone")).expect("a directory");
    fs::remove_dir(root.join("gone")).expect("removes");
    let file = File::create(root.join("unwritten")).expect("creates");
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).expect("allocates");
    file.write_all_at(&noise(9000, 2), 20_000).expect("writes");
    file.sync_all().expect("syncs");
    drop(file);
    let copy = copy_of(&image);
    let made = recorded(seen_by_kernel(root, Against::Kernel));
    drop(mounted);
    let tree = copy.open();
    let remarks = tree.remarks();
    assert!(remarks.len() == 1 && remarks[0].contains("fast commits"), "{remarks:?}");
    assert_same(&recorded(seen_by_reader(&tree, Against::Kernel)), &made, "made");
}

fn tag(number: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("a short value");
    [&number.to_le_bytes()[..], &length.to_le_bytes(), value].concat()
}

fn words(words: &[u32], rest: &[u8]) -> Vec<u8> {
    let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    [&words[..], rest].concat()
}

/// Makes a block with a commit of the tags.
fn block(tags: &[Vec<u8>], sequence: u32) -> Vec<u8> {
    let mut bytes = tags.concat();
    let tail = u16::try_from(4096 - bytes.len() - 4).expect("a part of a block");
    bytes.extend([8_u16, tail].iter().flat_map(|it| it.to_le_bytes()));
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(checksum::crc32c(0, &bytes).to_le_bytes());
    bytes.resize(4096, 0);
    bytes
}

/// Returns the offset of the first block of fast commits, and the number of the transaction to which they belong.
fn fast_commits(image: &Image) -> (u64, u32) {
    let bytes = fs::read(image.path()).expect("reads");
    let head = [9, 0, 8, 0, 0, 0, 0, 0];
    let area = bytes
        .chunks(4096)
        .position(|block| block.starts_with(&head))
        .expect("a fast commit")
        * 4096;
    (area as u64, superblock::u32_at(&bytes, area + 8).expect("a number"))
}

/// A file whose content lies in the inode looks like the root of a tree, and then gets blocks.
#[test]
fn content_in_an_inode_never_becomes_a_map_of_blocks() {
    let image = Image::new(200 << 20, "-t ext4 -b 4096 -O fast_commit,inline_data");
    let mounted = image.mount("commit=300");
    let root = mounted.path();
    fs::write(root.join("secret"), noise(4096, 1)).expect("writes");
    rustix::fs::syncfs(File::open(root).expect("opens")).expect("syncs");
    let tree = image.open();
    let secret = tree.lookup(tree.root(), b"secret").expect("a file").number as u32;
    let blocks = Blocks::new(Inode::read(&tree.volume, secret).expect("an inode"));
    let secret = blocks.run(&tree.volume, 0).expect("a run").block.expect("content");
    let header = [0x0a, 0xf3, 1, 0, 4, 0, 0, 0, 0, 0, 0, 0];
    let extent = [&[0, 0, 0, 0, 1, 0, 0, 0][..], &(secret as u32).to_le_bytes()].concat();
    let content = [&header[..], &extent, &[0; 36]].concat();
    fs::write(root.join("small"), &content).expect("writes");
    rustix::fs::syncfs(File::open(root).expect("opens")).expect("syncs");
    for number in 0..2 {
        fs::write(root.join("new"), noise(9000, number)).expect("writes");
        sync(&root.join("new"));
    }
    let copy = copy_of(&image);
    drop(mounted);
    let tree = copy.open();
    let small = tree.lookup(tree.root(), b"small").expect("a file");
    let read = |tree: Arc<Ext>, length: usize| {
        let mut buf = vec![1; length];
        let file = tree.open(small).expect("opens");
        file.read_at(0, &mut buf).map(|()| buf).expect("reads")
    };
    assert_eq!(read(Arc::clone(&tree), 60), content);
    let (block_of_inode, at) = tree.volume.inode_position(small.number as u32).expect("a position");
    let mut record = vec![0; 160];
    tree.volume.metadata(block_of_inode, at, &mut record).expect("reads");
    record[4..8].copy_from_slice(&4096_u32.to_le_bytes());
    let (area, sequence) = fast_commits(&copy);
    for flags in [0x8_0000_u32, 0] {
        record[0x20..0x24].copy_from_slice(&flags.to_le_bytes());
        let tags = [
            tag(9, &words(&[0, sequence], b"")),
            tag(6, &words(&[small.number as u32], &record)),
        ];
        copy.file().write_all_at(&block(&tags, sequence), area).expect("writes");
        assert!(read(copy.open(), 4096) == [0; 4096], "flags {flags:#x}");
    }
}

#[test]
fn every_tag_counts_up_to_the_first_commit_that_is_not_complete() {
    let image = Image::new(200 << 20, "-t ext4 -b 4096 -O fast_commit");
    let mounted = image.mount("commit=300");
    prepare(mounted.path());
    fs::write(mounted.path().join("new"), b"new").expect("writes");
    sync(&mounted.path().join("new"));
    let copy = copy_of(&image);
    drop(mounted);
    let (area, sequence) = fast_commits(&copy);
    let tree = copy.open();
    let number = |name: &[u8]| tree.lookup(tree.root(), name).map(|node| node.number as u32);
    let (grown, moved) = (number(b"grown").expect("a file"), number(b"moved").expect("a file"));
    let inode = Inode::read(&tree.volume, grown).expect("an inode");
    let run = Blocks::new(inode)
        .run(&tree.volume, 0)
        .expect("a run")
        .block
        .expect("content");
    // A short link, in an inode that is not in use.
    let mut link = vec![0; 128];
    link[..8].copy_from_slice(&[0xff, 0xa1, 0, 0, 5, 0, 0, 0]);
    link[0x1a] = 1;
    link[0x28..0x2d].copy_from_slice(b"short");
    link[0x64] = 1;
    let added = |first: u32, blocks: u32, block: u64| {
        let extent = [first, blocks | ((block >> 32) as u32) << 16, block as u32];
        tag(1, &words(&[grown, extent[0], extent[1], extent[2]], b""))
    };
    let tags = [
        tag(6, &words(&[5000], &link)),
        tag(3, &words(&[2, 5000], b"link")),
        tag(4, &words(&[2, moved], b"second name")),
        tag(5, &words(&[2, moved], b"moved")),
        tag(5, &words(&[2, moved], b"grown")),
        tag(7, &[0xff; 20]),
        // Content, then a hole in it, then blocks that are not written in that.
        added(2, 6, run),
        tag(2, &words(&[grown, 3, 3], b"")),
        added(4, 0x8001, run),
    ];
    let second = block(&tags, sequence);
    copy.file().write_all_at(&second, area + 4096).expect("writes");
    let third = block(&[tag(5, &words(&[2, grown], b"grown"))], sequence);
    let older = block(&[tag(5, &words(&[2, grown], b"grown"))], sequence - 1);
    let mut damaged = third.clone();
    damaged[14] ^= 1;
    let unknown = block(&[tag(0x55, b"value")], sequence);
    let features = block(&[tag(9, &words(&[4, sequence], b""))], sequence);
    for (next, remark) in [
        (&older, ""),
        (&unknown, ""),
        (&vec![0; 4096], ""),
        (&damaged, "wrong checksum"),
        (&features, "unknown features 0x4"),
    ] {
        copy.file().write_all_at(next, area + 8192).expect("writes");
        let tree = copy.open();
        let remarks = tree.remarks();
        assert!(remarks[0].ends_with(", and 2 fast commits)"), "{remarks:?}");
        assert_eq!(remarks.len(), 1 + usize::from(!remark.is_empty()), "{remarks:?}");
        assert!(remarks.last().is_some_and(|it| it.contains(remark)), "{remarks:?}");
        let link = tree.lookup(tree.root(), b"link").expect("a link");
        assert_eq!(tree.read_link(link).expect("a target"), b"short");
        let find = |name: &[u8]| tree.lookup(tree.root(), name);
        assert_eq!(find(b"second name").expect("a name").number, u64::from(moved));
        assert!(matches!(find(b"moved"), Err(Error::NotFound)));
        assert_eq!(find(b"grown").expect("another inode's name").number, u64::from(grown));
        let inode = Inode::read(&tree.volume, grown).expect("an inode");
        let blocks = Blocks::new(inode);
        let found: Vec<_> = (0..10)
            .map(|number| blocks.run(&tree.volume, number).expect("a run"))
            .collect();
        let block_of = |number: usize| {
            found[number]
                .block
                .map(|block| block + number as u64 - found[number].first)
        };
        let expected = [run, run + 1, run, 0, 0, 0, run + 4, run + 5, run + 8, run + 9];
        for (number, expected) in expected.into_iter().enumerate() {
            assert_eq!(block_of(number).unwrap_or(0), expected, "block {number}");
        }
    }
    copy.file().write_all_at(&third, area + 8192).expect("writes");
    let tree = copy.open();
    assert!(matches!(tree.lookup(tree.root(), b"grown"), Err(Error::NotFound)));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ranges_are_those_that_were_set_last(
        changes in proptest::collection::vec((0..60_u64, 1..30_u64, proptest::option::of(0..1000_u64)), 0..40),
    ) {
        let mut ranges = Ranges::default();
        let mut model = [None; 100];
        for (first, length, block) in changes {
            let end = first + length;
            ranges.set(Run { first, end, block });
            for at in first..end {
                model[at as usize] = Some(block.map(|block| block + at - first));
            }
            for (at, expected) in (0..).zip(model) {
                match ranges.at(at) {
                    Ok(run) => prop_assert_eq!(Some(run.block.map(|block| block + at - run.first)), expected),
                    Err((start, end)) => {
                        prop_assert!(start <= at && at < end);
                        let gap = start as usize..end.min(100) as usize;
                        prop_assert!(model[gap].iter().all(Option::is_none));
                    }
                }
            }
        }
    }

    #[test]
    fn no_tags_panic(
        tags in proptest::collection::vec((0..10_u16, proptest::collection::vec(any::<u8>(), 0..40)), 0..25),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let tags: Vec<_> = tags.into_iter().map(|(number, mut value)| {
            let length = match number {
                1 => 16,
                2 => 12,
                6 => 132,
                9 => 8,
                _ => value.len(),
            };
            value.resize(length, 3);
            tag(number, &value)
        }).collect();
        let head = tag(9, &words(&[0, 7], b""));
        let mut scan = Scan::new(7, 256);
        let _ = scan.block(&block(&[&[head][..], &tags].concat(), 7));
        let _ = scan.block(&bytes);
    }
}
