//! The index of a large directory: a tree over the hashes of names, inside the directory's own blocks (`struct dx_root`,
//! `struct dx_node`, fs/ext4/namei.c). Without it, to look up every name of a directory would take the square of its
//! length.

use super::index_at;
use crate::fs::ext::content::Blocks;
use crate::fs::ext::inode::{FLAG_CASEFOLD, FLAG_ENCRYPT, FLAG_INDEX, FLAG_INLINE_DATA};
use crate::fs::ext::superblock::{HashSeed, u16_at, u32_at};
use crate::fs::ext::volume::Volume;

/// Most levels below the root, with the feature largedir (`EXT4_HTREE_LEVEL`).
const MAX_LEVELS: u8 = 3;

/// Returns the blocks of the directory in which a name would be: one, or those of names with the same hash. Empty if
/// there is no index that could be used; the caller then reads the whole directory.
pub(in crate::fs::ext) fn blocks_of(volume: &Volume, blocks: &Blocks, name: &[u8]) -> Vec<u64> {
    find(volume, blocks, name).unwrap_or_default()
}

fn find(volume: &Volume, blocks: &Blocks, name: &[u8]) -> Option<Vec<u64>> {
    let inode = &blocks.inode;
    // Those names are hashed in another form.
    if !inode.has(FLAG_INDEX) || inode.has(FLAG_INLINE_DATA | FLAG_CASEFOLD | FLAG_ENCRYPT) {
        return None;
    }
    let mut node = read(volume, blocks, 0)?;
    let version = *node.get(28)?;
    let levels = node.get(30).copied().filter(|levels| *levels <= MAX_LEVELS)?;
    let hash = hash(&volume.superblock.hash, version, name)?;
    let mut level = 0;
    loop {
        let entries = index_at(&node)?;
        let count = usize::from(u16_at(&node, entries + 2)?);
        // The first entry has the limit and the count in place of its hash, which is 0.
        let hash_of = |index: usize| match index {
            0 => Some(0),
            index => u32_at(&node, entries + index * 8),
        };
        let block_of = |index: usize| Some(u64::from(u32_at(&node, entries + index * 8 + 4)? & 0x0fff_ffff));
        let after = (1..count)
            .find(|index| hash_of(*index).is_none_or(|it| it > hash))
            .unwrap_or(count.max(1));
        let child = block_of(after - 1)?;
        if level == levels {
            // The lowest bit of a hash says that names with the hash before are in this block too.
            let more = (after..count).take_while(|index| hash_of(*index) == Some(hash | 1));
            let more: Option<Vec<u64>> = more.map(block_of).collect();
            return Some([vec![child], more?].concat());
        }
        node = read(volume, blocks, child)?;
        level += 1;
    }
}

fn read(volume: &Volume, blocks: &Blocks, number: u64) -> Option<Vec<u8>> {
    let run = blocks.run(volume, number).ok()?;
    volume.block(run.block? + (number - run.first)).ok()
}

/// Hashes a name (`ext4fs_dirhash`, fs/ext4/hash.c).
fn hash(seed: &HashSeed, version: u8, name: &[u8]) -> Option<u32> {
    let is_unsigned = seed.is_unsigned || (3..=5).contains(&version);
    let mut state = match seed.seed {
        [0, 0, 0, 0] => [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476],
        seed => seed,
    };
    let hash = match version {
        0 | 3 => legacy(name, is_unsigned),
        1 | 4 => {
            for at in (0..name.len()).step_by(32) {
                half_md4(&mut state, &words::<8>(name.get(at..)?, is_unsigned));
            }
            state[1]
        }
        2 | 5 => {
            for at in (0..name.len()).step_by(16) {
                tea(&mut state, &words::<4>(name.get(at..)?, is_unsigned));
            }
            state[0]
        }
        _ => return None,
    };
    // The highest hash means the end of the directory.
    Some(if hash & !1 == 0xffff_fffe {
        0xffff_fffc
    } else {
        hash & !1
    })
}

fn widen(byte: u8, is_unsigned: bool) -> u32 {
    if is_unsigned { byte.into() } else { byte as i8 as u32 }
}

/// Packs the start of a name into words, filled up with its length (`str2hashbuf_signed`).
fn words<const N: usize>(name: &[u8], is_unsigned: bool) -> [u32; N] {
    let length = name.len() as u32 & 0xff;
    let pad = length | length << 8;
    let pad = pad | pad << 16;
    let mut words = [pad; N];
    for (word, bytes) in words.iter_mut().zip(name.chunks(4)) {
        for byte in bytes {
            *word = (*word << 8).wrapping_add(widen(*byte, is_unsigned));
        }
    }
    words
}

fn legacy(name: &[u8], is_unsigned: bool) -> u32 {
    let (mut last, mut before) = (0x12a3_fe2d_u32, 0x37ab_e8f9_u32);
    for byte in name {
        let hash = before.wrapping_add(last ^ widen(*byte, is_unsigned).wrapping_mul(7_152_373));
        before = last;
        last = if hash & 0x8000_0000 != 0 {
            hash.wrapping_sub(0x7fff_ffff)
        } else {
            hash
        };
    }
    last << 1
}

fn tea(state: &mut [u32; 4], input: &[u32; 4]) {
    let (mut low, mut high, mut sum) = (state[0], state[1], 0_u32);
    let mix = |value: u32, sum: u32, first: u32, second: u32| {
        (value << 4).wrapping_add(first) ^ value.wrapping_add(sum) ^ (value >> 5).wrapping_add(second)
    };
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        low = low.wrapping_add(mix(high, sum, input[0], input[1]));
        high = high.wrapping_add(mix(low, sum, input[2], input[3]));
    }
    state[0] = state[0].wrapping_add(low);
    state[1] = state[1].wrapping_add(high);
}

/// Three rounds of MD4 with half of its input.
fn half_md4(state: &mut [u32; 4], input: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    let rounds: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (
            |x, y, z| (x & y).wrapping_add((x ^ y) & z),
            0x5a82_7999,
            [1, 3, 5, 7, 0, 2, 4, 6],
            [3, 5, 9, 13],
        ),
        (
            |x, y, z| x ^ y ^ z,
            0x6ed9_eba1,
            [3, 7, 2, 6, 1, 5, 0, 4],
            [3, 9, 11, 15],
        ),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in rounds {
        for (step, at) in order.into_iter().enumerate() {
            let sum = a
                .wrapping_add(mix(b, c, d))
                .wrapping_add(input[at])
                .wrapping_add(constant);
            // The word that was changed becomes the second of the next step.
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    for (word, added) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(added);
    }
}
