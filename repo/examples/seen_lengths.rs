//! What the lengths of sealed blocks tell about known content, and what hiding them costs: seals a file as an encrypted
//! repository does, and counts the blocks that no other block of it could be taken for.
//!
//! Usage: `seen_lengths FILE`

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use vbk_repo::block::BlockSize;
use vbk_repo::codec::{Compression, Sealer};
use vbk_repo::keys::Keys;
use vbk_repo::store::encrypted::Encrypted;
use vbk_repo::store::memory::MemoryStore;
use vbk_repo::store::{BlockStore, StoreReader, Wanted};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let path = std::env::args().nth(1).ok_or("usage: seen_lengths FILE")?;
    let size = BlockSize::DEFAULT;
    let mut file = File::open(&path)?;
    let mut sealer = Sealer::new(Compression::default())?;
    let (mut of_pages, mut of_blocks) = (Vec::new(), Vec::new());
    let (mut plain_bytes, mut page_bytes, mut sealed_bytes) = (0, 0, 0);
    loop {
        let mut plain = Vec::with_capacity(size.bytes());
        (&mut file).take(size.bytes() as u64).read_to_end(&mut plain)?;
        if plain.len() < size.bytes() {
            break;
        }
        if plain.iter().all(|byte| *byte == 0) {
            continue;
        }
        let below = Arc::new(MemoryStore::new(size));
        let store = Encrypted::new(Arc::clone(&below), &Keys::generate()?);
        let hashes = store.hashing().block(&plain);
        let block = sealer.seal(&plain, &hashes)?;
        let pages: Vec<usize> = block.pages.iter().map(Vec::len).collect();
        store.put(vec![block])?;
        let all = Wanted {
            id: hashes.id,
            pages: 0..pages.len(),
        };
        let seen = below.get(&[all]).pop().ok_or("no answer")??;
        let sealed: Vec<usize> = seen.pages.iter().map(Vec::len).collect();
        plain_bytes += plain.len();
        page_bytes += pages.iter().sum::<usize>();
        sealed_bytes += sealed.iter().sum::<usize>();
        of_pages.push(pages);
        of_blocks.push(sealed);
    }
    let mib = |bytes: usize| bytes >> 20;
    println!(
        "{} blocks of {path}: {} MiB, compressed {} MiB, sealed {} MiB ({:.1} % more)",
        of_pages.len(),
        mib(plain_bytes),
        mib(page_bytes),
        mib(sealed_bytes),
        100.0 * (sealed_bytes as f64 / page_bytes as f64 - 1.0)
    );
    for run in [1, 2, 4, 8, 16] {
        println!(
            "runs of {run} blocks that their lengths tell from all others: {} by the lengths of pages, {} by what is seen",
            unique(&of_pages, run),
            unique(&of_blocks, run)
        );
    }
    Ok(())
}

/// How many of the runs of so many blocks have lengths that no other run has, in percent.
fn unique(lengths: &[Vec<usize>], run: usize) -> String {
    let mut count: HashMap<&[Vec<usize>], u32> = HashMap::new();
    lengths.windows(run).for_each(|run| *count.entry(run).or_default() += 1);
    let alone = count.values().filter(|count| **count == 1).count();
    let all = lengths.windows(run).len().max(1);
    format!("{:.1} %", 100.0 * alone as f64 / all as f64)
}
