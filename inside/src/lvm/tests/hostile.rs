//! Damaged and made-up disks: nothing panics, loops, or takes more memory than its bounds.

use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::Index;

use super::group::GroupText;
use super::image::{Text, disk, sign, uuid};
use super::real::complete;
use super::thin::{devices, metadata};
use super::*;
use crate::fuzzing;

fn fuzz(bytes: &[u8]) {
    fuzzing::groups(&[Memory::new(bytes.to_vec())]);
}

/// Parses the text of a group, also on a disk that is otherwise good.
fn fuzz_text(text: &[u8]) {
    super::super::fuzz_text(text);
    if text.len() < 500_000 {
        fuzz(&disk(&uuid(0), 18, text));
    }
}

/// Reads a pool by its metadata, whose checksums are corrected.
fn fuzz_thin(metadata: &[u8]) {
    let mut metadata = metadata.to_vec();
    for (number, block) in metadata.chunks_exact_mut(4096).enumerate() {
        block[8..16].copy_from_slice(&(number as u64).to_le_bytes());
        let sum = crc::persistent_data(&block[4..], if number == 0 { 160_774 } else { 121_107 });
        block[..4].copy_from_slice(&sum.to_le_bytes());
    }
    fuzzing::contents(super::super::fuzz_thin(&(Arc::new(metadata) as SharedDevice)));
}

static GROUP: LazyLock<(String, Vec<u8>)> = LazyLock::new(|| {
    let mut text = Text::new(vec![(uuid(0), 40), (uuid(0), 40), (uuid(0), 40)]);
    complete(&mut text);
    (text.build(), disk(&uuid(0), 18, text.build().as_bytes()))
});

/// Metadata up to the last block in use: thin_restore fills its file from the start.
static METADATA: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut devices = devices();
    devices.retain(|number, _| [1, 7, 100].contains(number));
    let mut metadata = metadata(&devices, 31_000, 2);
    let last = metadata
        .chunks(4096)
        .rposition(|block| block.iter().any(|byte| *byte != 0));
    metadata.truncate((last.unwrap() + 1) * 4096);
    metadata
});

/// Changes of bytes: where, and to what.
fn changes() -> impl Strategy<Value = Vec<(Index, u8)>> {
    let byte = prop_oneof![
        any::<u8>(),
        Just(0),
        Just(1),
        Just(0xff),
        Just(b'{'),
        Just(b'}'),
        Just(b'"'),
        Just(b'9')
    ];
    prop::collection::vec((any::<Index>(), byte), 1..8)
}

fn changed(bytes: &[u8], changes: &[(Index, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, byte) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *byte;
    }
    bytes
}

/// Makes the store of a snapshot by the number of sectors of its chunks; returns the offset of its exceptions too.
fn snapshot_store(chunk: u8) -> (Vec<u8>, usize) {
    let mut store = vec![0; 64 << 10];
    store[..16].copy_from_slice(&[0x53, 0x6e, 0x41, 0x70, 1, 0, 0, 0, 1, 0, 0, 0, chunk, 0, 0, 0]);
    let start = usize::from(chunk) * 512;
    for (number, entry) in (2_u64..).zip(store[start..start + 512].chunks_mut(16)) {
        entry[..8].copy_from_slice(&(number * 3).to_le_bytes());
        entry[8..].copy_from_slice(&number.to_le_bytes());
    }
    (store, start)
}

#[test]
fn seeds() {
    let mut text = Text::new(vec![(uuid(0), 40), (uuid(1), 40)]);
    complete(&mut text);
    let disks = text.disks().into_iter().map(|disk| disk as SharedDevice);
    let disks: Vec<_> = disks.collect();
    for target in ["lvm", "find"] {
        fuzzing::seed_disks(target, "group", &disks);
    }
    fuzzing::seed("lvm-text", "group", text.build().as_bytes());
    let mut text = Text::new(vec![(uuid(0), 18)]);
    text.visible("linear", &[super::image::linear(0, 2, 0, 0)]);
    fuzzing::seed("lvm-text", "linear", text.build().as_bytes());
    let small = disk(&uuid(0), 18, text.build().as_bytes());
    fuzzing::seed_disks("lvm", "linear", &[Arc::new(small)]);
    fuzzing::seed_disks("lvm-thin", "metadata", &[Arc::new(METADATA.clone())]);
    for chunk in [1, 8] {
        let store = Arc::new(snapshot_store(chunk).0);
        fuzzing::seed_disks("lvm-snapshot", &format!("chunks-of-{chunk}"), &[store]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_are_no_group(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        fuzz(&bytes);
        fuzz_text(&bytes);
        fuzz_thin(&bytes);
    }

    #[test]
    fn words_of_the_grammar_in_any_order(words in prop::collection::vec(
        prop::sample::select(vec!["{", "}", "[", "]", "=", ",", "\"", "\\", "#", "\n", "a", "-1", "\"x\"", "1.5", "\0", "'"]),
        0..200,
    )) {
        fuzz_text(words.join(" ").as_bytes());
        fuzz_text(words.concat().as_bytes());
    }

    #[test]
    fn damaged_heads(changes in changes(), signed: bool) {
        let mut bytes = GROUP.1.clone();
        let (label, header) = (changed(&bytes[512..640], &changes), changed(&bytes[4096..4196], &changes));
        if changes.len() % 2 == 0 {
            bytes[512..640].copy_from_slice(&label);
        } else {
            bytes[4096..4196].copy_from_slice(&header);
        }
        if signed {
            sign(&mut bytes);
        }
        fuzz(&bytes);
    }

    #[test]
    fn damaged_texts(changes in changes()) {
        fuzz_text(&changed(GROUP.0.as_bytes(), &changes));
    }

    /// Replaces numbers and names by others, so that the text stays one that parses.
    #[test]
    fn texts_with_other_values(edits in prop::collection::vec((any::<Index>(), any::<Index>(), prop_oneof![
        Just(None), Just(Some("0")), Just(Some("-1")), Just(Some("1")), Just(Some("4294967296")),
        Just(Some("9223372036854775807")), Just(Some("\"pv0\"")), Just(Some("\"raid\"")), Just(Some("\"thin1\"")),
    ]), 1..6)) {
        let mut words: Vec<&str> = GROUP.0.split(' ').collect();
        let values: Vec<usize> = (0..words.len()).filter(|at| words[*at].contains('\n')).collect();
        for (at, other, value) in &edits {
            let at = values[at.index(values.len())];
            let other = GROUP.0.split(' ').nth(values[other.index(values.len())]).unwrap();
            // A word with the end of a line is a value and the next key.
            let value = value.unwrap_or_else(|| other.split('\n').next().unwrap());
            let rest = words[at].split_once('\n').unwrap().1;
            words[at] = Box::leak(format!("{value}\n{rest}").into_boxed_str());
        }
        fuzz_text(words.join(" ").as_bytes());
    }

    #[test]
    fn damaged_pools(block in 0_usize..40, changes in changes(), wide: bool) {
        let mut bytes = METADATA.clone();
        let len = if wide { 4096 } else { 64 };
        let piece = changed(&bytes[block * 4096..][..len], &changes);
        bytes[block * 4096..][..len].copy_from_slice(&piece);
        fuzz_thin(&bytes);
    }

    #[test]
    fn damaged_snapshots(changes in changes(), chunk in prop::sample::select(vec![1_u8, 2, 8, 64])) {
        let (mut store, start) = snapshot_store(chunk);
        let piece = changed(&store[start..start + 512], &changes);
        store[start..start + 512].copy_from_slice(&piece);
        fuzzing::contents(super::super::fuzz_snapshot(&(Arc::new(store) as SharedDevice)));
    }
}

#[test]
fn nesting_and_counts_are_bounded() {
    fuzz_text("a {".repeat(100_000).as_bytes());
    fuzz_text("a = [".repeat(100_000).as_bytes());
    assert!(GroupText::parse("a=[1]\n".repeat(300_000).as_bytes()).is_err());
    assert!(GroupText::parse("a{}\n".repeat(600_000).as_bytes()).is_err());
    // Mirrors of mirrors of mirrors: one write would become thousands.
    let mut text = Text::new(vec![(uuid(0), 40)]);
    let mut below = "pv0".to_owned();
    for level in 0..6 {
        let legs = vec![format!("\"{below}\", 0"); 16].join(", ");
        let fields = format!("mirror_count = 16\nmirrors = [{legs}]");
        below = format!("level{level}");
        text.visible(&below, &[super::image::segment(0, 1, "mirror", &fields)]);
    }
    let disks = text.disks();
    let group = open(&disks).remove(0);
    assert!(volume(&group, "level1").device.is_ok());
    assert_eq!(reason(&group, "level5"), "it consists of too many volumes");
    // A tree that leads back to itself.
    let mut loops = METADATA.clone();
    let root = crate::device::le64(&loops, 320) as usize;
    let node = &mut loops[root * 4096..][..4096];
    node[4] = 1;
    node[24] = 8;
    let max = crate::device::le32(node, 20) as usize;
    node[32 + 8 * max..][..8].copy_from_slice(&(root as u64).to_le_bytes());
    fuzz_thin(&loops);
}
