//! Thin pools whose metadata thin_restore made from a mapping that is known.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::Command;

use super::super::thin::{Pool, Thin};
use super::image::{EXTENT, Text, extent_at, uuid};
use super::lab::run;
use super::real::complete;
use super::*;

pub(super) const BLOCK: u64 = 64 << 10;

/// A large device with the bytes of [`pattern`].
pub(super) struct Numbered(pub(super) u64);

impl Device for Numbered {
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset_bytes.saturating_add(buf.len() as u64) > self.0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (at, byte) in (offset_bytes..).zip(buf) {
            let block = at / BLOCK;
            *byte = (block ^ (block >> 8) ^ at) as u8 | 1;
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.0
    }
}

/// Blocks of a volume and of the pool's data.
type Mapping = BTreeMap<u64, u64>;

/// Makes metadata with thin_restore.
pub(super) fn metadata(devices: &BTreeMap<u64, Mapping>, data_blocks: u64, mib: u64) -> Vec<u8> {
    let mut xml = format!(
        "<superblock uuid=\"\" time=\"3\" transaction=\"5\" version=\"2\" data_block_size=\"128\" \
         nr_data_blocks=\"{data_blocks}\">\n"
    );
    for (device, mapping) in devices {
        xml += &format!(
            "<device dev_id=\"{device}\" mapped_blocks=\"{}\" transaction=\"0\" creation_time=\"0\" snap_time=\"1\">\n",
            mapping.len()
        );
        for (block, data) in mapping {
            xml += &format!(
                "<single_mapping origin_block=\"{block}\" data_block=\"{data}\" time=\"{}\"/>\n",
                block % 4
            );
        }
        xml += "</device>\n";
    }
    xml += "</superblock>\n";
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("xml"), dir.path().join("metadata"));
    std::fs::write(&from, xml).unwrap();
    File::create(&to).unwrap().set_len(mib << 20).unwrap();
    run(Command::new("thin_restore").arg("-i").arg(&from).arg("-o").arg(&to));
    std::fs::read(&to).unwrap()
}

/// Several volumes: a large one in pieces, a snapshot of it with some changes, an empty one, and a few more.
pub(super) fn devices() -> BTreeMap<u64, Mapping> {
    let mut large = Mapping::new();
    for run in 0..700_u64 {
        // Runs of one to seven blocks, whose data go up, down and around; 12,000 blocks in three levels of nodes.
        for block in 0..1 + run % 7 {
            large.insert(run * run % 977 * 40 + block, (run * 7919 % 1000) * 8 + block);
        }
    }
    for block in 0..9000 {
        large.insert(1_000_000 + block, 10_000 + block);
    }
    large.insert(1 << 36, 30_001);
    let mut snapshot = large.clone();
    snapshot.insert(3, 30_002);
    snapshot.remove(&1_000_100);
    let small = Mapping::from([(0, 30_003), (2, 30_004), (3, 30_005)]);
    let mut devices = BTreeMap::from([(1, large), (2, snapshot), (7, Mapping::new()), (0xff_ffff, small)]);
    for device in 100..400 {
        devices.insert(device, Mapping::from([(device, 20_000 + device)]));
    }
    devices
}

const DATA_BLOCKS: u64 = 31_000;

fn pool(metadata: Vec<u8>) -> Arc<Pool> {
    let data: SharedDevice = Arc::new(Numbered(DATA_BLOCKS * BLOCK));
    Arc::new(Pool::open(Arc::new(metadata), data).unwrap())
}

#[test]
fn volumes_of_a_pool_are_what_thin_restore_mapped() {
    let devices = devices();
    let pool = pool(metadata(&devices, DATA_BLOCKS, 8));
    assert_eq!(
        (pool.block_bytes, pool.transaction, pool.needs_check),
        (BLOCK, 5, false)
    );
    let data = Numbered(DATA_BLOCKS * BLOCK);
    for (number, mapping) in &devices {
        let blocks = (1 << 36) + 1;
        let thin = Thin::open(Arc::clone(&pool), *number, blocks * BLOCK, None).unwrap();
        // The runs of the volume are those of the mapping.
        let mut at = 0;
        let mut found = Mapping::new();
        while let Some(start) = thin.next_data(at).unwrap() {
            assert_eq!(start % BLOCK, 0);
            at = thin.next_hole(start).unwrap();
            assert!(at > start && at % BLOCK == 0);
            for block in start / BLOCK..at / BLOCK {
                found.insert(block, mapping[&block]);
            }
        }
        assert_eq!(&found, mapping);
        // A few bytes of each block, of the block before and of the block after.
        for block in mapping
            .keys()
            .flat_map(|block| [block.saturating_sub(1), *block, block + 1])
        {
            let offset = block * BLOCK + BLOCK - 5;
            if offset + 10 > thin.size_bytes() {
                continue;
            }
            let mut read = [0xee; 10];
            thin.read_at(offset, &mut read).unwrap();
            let mut expected = [0; 10];
            for (half, block) in expected.chunks_mut(5).zip([block, block + 1]) {
                if let Some(mapped) = mapping.get(&block) {
                    let within = (offset + 5) % BLOCK;
                    let within = if within == 0 && half.len() == 5 {
                        BLOCK - 5
                    } else {
                        within
                    };
                    let at = if block * BLOCK > offset {
                        mapped * BLOCK
                    } else {
                        mapped * BLOCK + within
                    };
                    data.read_at(at, half).unwrap();
                }
            }
            assert_eq!(read, expected, "block {block} of device {number}");
        }
    }
    let absent = Thin::open(Arc::clone(&pool), 8, BLOCK, None);
    assert!(matches!(absent.err(), Some(Error::NotFound)));
}

#[test]
fn large_reads_cross_runs_and_holes() {
    let devices = devices();
    let pool = pool(metadata(&devices, DATA_BLOCKS, 8));
    let data = Numbered(DATA_BLOCKS * BLOCK);
    let thin = Thin::open(pool, 1, 2_000_000 * BLOCK, None).unwrap();
    for (first, blocks) in [(0, 60_usize), (38_000, 100), (999_990, 40), (1_008_980, 30)] {
        let mut read = vec![0xee; blocks * BLOCK as usize - 7];
        thin.read_at(first * BLOCK + 3, &mut read).unwrap();
        let mut expected = vec![0; blocks * BLOCK as usize];
        for (block, bytes) in (first..).zip(expected.chunks_mut(BLOCK as usize)) {
            if let Some(mapped) = devices[&1].get(&block) {
                data.read_at(mapped * BLOCK, bytes).unwrap();
            }
        }
        assert!(read == expected[3..expected.len() - 4], "at block {first}");
    }
}

#[test]
fn an_external_origin_has_what_is_not_mapped() {
    let devices = BTreeMap::from([(1, Mapping::from([(1, 5)]))]);
    let pool = pool(metadata(&devices, DATA_BLOCKS, 4));
    let origin: SharedDevice = Arc::new(vec![7_u8; 2 * BLOCK as usize + 100]);
    let thin = Thin::open(pool, 1, 4 * BLOCK, Some(origin)).unwrap();
    let mut expected = vec![0; 4 * BLOCK as usize];
    expected[..2 * BLOCK as usize + 100].fill(7);
    let mapped = &mut expected[BLOCK as usize..2 * BLOCK as usize];
    Numbered(DATA_BLOCKS * BLOCK).read_at(5 * BLOCK, mapped).unwrap();
    assert_content(&thin, &expected);
}

#[test]
fn thin_volumes_of_a_group() {
    let mut text = Text::new((0..3).map(|number| (uuid(number), 60)).collect());
    complete(&mut text);
    let disks = text.disks();
    let devices = BTreeMap::from([
        (1, Mapping::from([(0, 3), (1, 4), (9, 60)])),
        (2, Mapping::from([(0, 3), (1, 7)])),
    ]);
    // The metadata have 2 MiB, from extent 8 of the second disk on; the data 4 MiB from extent 16 on.
    let metadata = metadata(&devices, 64, 2);
    disks[1].put(extent_at(8), &metadata);
    disks[1].put(extent_at(16), &pattern(5, 0, 16 * EXTENT));
    let group = open(&disks).remove(0);
    let names: Vec<_> = group.volumes.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(
        names,
        ["mirrored", "raid", "five", "cached", "origin", "snap", "thin1", "thin2"]
    );
    assert_eq!(group.remarks, Vec::<String>::new());
    for (number, mapping) in &devices {
        let mut expected = vec![0; 40 * EXTENT];
        for (block, data) in mapping {
            let bytes = pattern(5, data * BLOCK, BLOCK as usize);
            expected[(block * BLOCK) as usize..][..BLOCK as usize].copy_from_slice(&bytes);
        }
        let device = device(&group, &format!("thin{number}"));
        assert_content(device.as_ref(), &expected);
        let refused = device.write_at(0, &[0; 8]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
    }

    // Flags and other transactions give remarks; a damaged node gives errors for what it maps.
    let mut changed = metadata.clone();
    changed[4] = 1;
    changed[48] = 9;
    let sum = crc::persistent_data(&changed[4..4096], 160_774);
    changed[..4].copy_from_slice(&sum.to_le_bytes());
    disks[1].put(extent_at(8), &changed);
    let remarks = open(&disks).remove(0).remarks;
    assert!(
        remarks[0].contains("needs_check") && remarks[1].contains("transaction 9, but 5"),
        "{remarks:?}"
    );
    changed[4096..].fill(0x55);
    disks[1].put(extent_at(8), &changed);
    let group = open(&disks).remove(0);
    assert!(reason(&group, "thin1").starts_with("damaged: block "));
    device(&group, "raid");
}
