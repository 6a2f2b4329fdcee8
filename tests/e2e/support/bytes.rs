//! Content that zstd can't make smaller, the same for the same seed, and comparisons that say where two things differ.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;

/// An endless stream of noise.
pub fn noise(seed: u64) -> impl Read {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof()
}

/// The first bytes of a stream of noise.
pub fn noise_bytes(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    noise(seed).read_exact(&mut bytes).expect("noise never ends");
    bytes
}

/// Makes or replaces a file of noise.
pub fn write_noise(path: &Path, seed: u64, len: u64) {
    let mut file = File::create(path).expect("creates an image");
    let mut source = noise(seed).take(len);
    let mut buffer = vec![0; MIB as usize];
    loop {
        let read = source.read(&mut buffer).expect("noise");
        if read == 0 {
            return;
        }
        file.write_all(&buffer[..read]).expect("writes an image");
    }
}

/// Writes into a file that is there, or makes it.
pub fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(path);
    let file = file.expect("opens an image");
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).expect("writes an image");
}

pub fn read_at(path: &Path, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    std::os::unix::fs::FileExt::read_exact_at(&File::open(path)?, &mut bytes, offset)?;
    Ok(bytes)
}

/// The size of a file or device.
pub fn size_of(path: &Path) -> u64 {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("can't open {}: {error}", path.display()));
    file.seek(SeekFrom::End(0)).expect("has a size")
}

/// Makes a file of this size with nothing but a hole in it.
pub fn make_hole(path: &Path, len: u64) {
    File::create(path)
        .and_then(|file| file.set_len(len))
        .expect("makes a sparse file");
}

/// A copy with the same holes.
pub fn copy_sparse(from: &Path, to: &Path) {
    super::tools::tool("cp", args!["--sparse=always", from, to]);
}

/// Fails unless both have the same size and bytes.
#[track_caller]
pub fn assert_same(actual: &Path, expected: &Path) {
    assert_eq!(size_of(actual), size_of(expected), "size of {}", actual.display());
    assert_same_range(actual, 0, expected, 0, size_of(expected));
}

/// Fails unless a range of one has the bytes of a range of the other.
#[track_caller]
pub fn assert_same_range(actual: &Path, actual_at: u64, expected: &Path, expected_at: u64, len: u64) {
    let open = |path: &Path, at: u64| {
        let mut file = File::open(path).unwrap_or_else(|error| panic!("can't open {}: {error}", path.display()));
        file.seek(SeekFrom::Start(at)).expect("seeks");
        file.take(len)
    };
    let differ = first_difference(open(actual, actual_at), open(expected, expected_at));
    match differ {
        Ok(None) => {}
        Ok(Some(at)) => panic!(
            "{} differs from {} at byte {at} of {len}",
            actual.display(),
            expected.display()
        ),
        Err(error) => panic!(
            "can't compare {} with {}: {error}",
            actual.display(),
            expected.display()
        ),
    }
}

/// Fails unless the file is the noise of this seed.
#[track_caller]
pub fn assert_is_noise(path: &Path, seed: u64, len: u64) {
    assert_eq!(size_of(path), len, "size of {}", path.display());
    let file = File::open(path).expect("opens");
    let differ = first_difference(file, noise(seed).take(len)).expect("compares");
    assert_eq!(differ, None, "{} differs from noise {seed}", path.display());
}

fn first_difference(mut one: impl Read, mut other: impl Read) -> io::Result<Option<u64>> {
    let (mut left, mut right) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    let mut at = 0;
    loop {
        let (left_len, right_len) = (fill(&mut one, &mut left)?, fill(&mut other, &mut right)?);
        if left[..left_len] != right[..right_len] {
            let same = left[..left_len].iter().zip(&right[..right_len]);
            return Ok(Some(at + same.take_while(|(a, b)| a == b).count() as u64));
        }
        if left_len == 0 {
            return Ok(None);
        }
        at += left_len as u64;
    }
}

fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match source.read(&mut buffer[done..])? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}
