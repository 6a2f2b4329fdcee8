//! Micro-benchmarks of what a backup does to every byte, on one thread: hash a block, seal it, open its pages, and write and read
//! the segments of manifests.
//!
//! `cargo bench --package vbk-repo --bench formats [FILTER]`

use divan::counter::BytesCount;
use divan::{Bencher, black_box};

use vbk_repo::block::{Hashing, PAGE_BYTES};
use vbk_repo::codec::{Compression, Header, Sealed, Sealer};
use vbk_repo::id::BlockId;
use vbk_repo::manifest::{Full, SEGMENT_SLOTS, Slot};

const BLOCK_BYTES: usize = 1 << 20;

fn main() {
    divan::main();
}

/// Content of a block.
#[derive(Debug, Clone, Copy)]
enum Content {
    Text,
    Random,
    Zeros,
}

const CONTENTS: [Content; 3] = [Content::Text, Content::Random, Content::Zeros];
const HASHINGS: [Hashing; 2] = [Hashing::Plain, Hashing::Keyed([7; 32])];

/// Numbers that are the same in each run: xorshift64, Marsaglia 2003.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn block(content: Content) -> Vec<u8> {
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    match content {
        Content::Zeros => vec![0; BLOCK_BYTES],
        Content::Random => (0..BLOCK_BYTES / 8)
            .flat_map(|_| numbers.next().to_le_bytes())
            .collect(),
        // Lines of a log: zstd makes them a quarter.
        Content::Text => {
            let mut text = String::new();
            while text.len() < BLOCK_BYTES {
                let number = numbers.next();
                let (host, page, bytes) = (number % 250, number >> 8 & 0xff, number >> 40 & 0xffff);
                text += &format!(
                    "10.0.3.{host} - - [21/Nov/2026:05:54:00 +0000] \"GET /{page:x}/index HTTP/1.1\" 200 {bytes}\n"
                );
            }
            text.into_bytes()[..BLOCK_BYTES].to_vec()
        }
    }
}

fn sealer() -> Sealer {
    Sealer::new(Compression::default()).expect("zstd has this level")
}

fn sealed(content: Content) -> Sealed {
    let plain = block(content);
    sealer()
        .seal(&plain, &Hashing::Plain.block(&plain))
        .expect("a block can be sealed")
}

#[divan::bench(args = HASHINGS)]
fn hash(bencher: Bencher<'_, '_>, hashing: &Hashing) {
    let plain = block(Content::Random);
    bencher
        .counter(BytesCount::new(BLOCK_BYTES))
        .bench_local(|| hashing.block(black_box(&plain)));
}

#[divan::bench(args = CONTENTS)]
fn seal(bencher: Bencher<'_, '_>, content: &Content) {
    let plain = block(*content);
    let hashes = Hashing::Plain.block(&plain);
    let mut sealer = sealer();
    bencher
        .counter(BytesCount::new(BLOCK_BYTES))
        .bench_local(|| sealer.seal(black_box(&plain), &hashes));
}

#[divan::bench(args = CONTENTS)]
fn open_page(bencher: Bencher<'_, '_>, content: &Content) {
    let sealed = sealed(*content);
    let header = Header::prove(Hashing::Plain, sealed.id, BLOCK_BYTES, &sealed.header).expect("the header is good");
    let mut out = vec![0; PAGE_BYTES];
    bencher
        .counter(BytesCount::new(PAGE_BYTES))
        .bench_local(|| header.open_page(3, black_box(&sealed.pages[3]), &mut out));
}

#[divan::bench]
fn prove_header(bencher: Bencher<'_, '_>) {
    let sealed = sealed(Content::Text);
    bencher.bench_local(|| Header::prove(Hashing::Plain, sealed.id, BLOCK_BYTES, black_box(&sealed.header)));
}

/// The slots of 1 GiB of disk, every fourth of zeros.
fn slots() -> Vec<Slot> {
    let mut numbers = Numbers(1);
    (0..SEGMENT_SLOTS)
        .map(|slot| {
            let id = std::array::from_fn(|_| numbers.next() as u8);
            (slot % 4 != 0).then_some(BlockId(id))
        })
        .collect()
}

#[divan::bench]
fn encode_segment(bencher: Bencher<'_, '_>) {
    let slots = slots();
    bencher.bench_local(|| Full::of(black_box(&slots)).map(|full| full.encode(Hashing::Plain)));
}

#[divan::bench]
fn decode_segment(bencher: Bencher<'_, '_>) {
    let full = Full::of(&slots()).expect("it has blocks");
    let (id, bytes) = full.encode(Hashing::Plain);
    bencher.bench_local(|| Full::decode(Hashing::Plain, id, SEGMENT_SLOTS, black_box(&bytes)).map(|full| full.slots()));
}
