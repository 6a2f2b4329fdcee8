//! RocksDB's settings, and the reasons for them.

use std::path::Path;

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, InfoLogger, LogLevel,
    LruCacheOptions, Options, WriteOptions,
};

pub(super) const FAMILIES: [&str; 6] = ["blocks", "index", "nodes", "backups", "notes", "meta"];

/// The column family of headers and pages.
pub(super) const BLOCKS: &str = "blocks";

/// Size of one write buffer of `blocks`; at most [`BUFFERS`] of them are in memory.
const BUFFER_BYTES: usize = 48 << 20;
const BUFFERS: i32 = 3;
/// Cache of the index, filters and small values.
const BLOCK_CACHE_BYTES: usize = 32 << 20;
/// Parts of that cache, each with its lock.
const CACHE_PARTS: u32 = 4;
/// Size of the pieces in which the filter of a sorted file of the index, and its table of contents, are read.
const PIECE_BYTES: usize = 16 << 10;
/// Smaller values stay in the sorted files: always headers, and also pages that compressed to almost nothing.
const MIN_BLOB_BYTES: u64 = 1024;
/// Descriptors that RocksDB may hold, whatever the number of its files.
const MAX_OPEN_FILES: i32 = 768;
/// Size of the write-ahead logs above which tables are written. A batch may be larger.
const LOG_BYTES: u64 = 1 << 20;
/// Preallocation step of the list of files.
const MANIFEST_BYTES: usize = 64 << 10;
/// Size of a sorted file of `blocks`.
const TABLE_BYTES: u64 = 2 << 20;
/// Most bytes of a blob file that a compaction writes. What is moved at once is hardly more.
pub(super) const BLOB_FILE_BYTES: u64 = 1 << 30;

/// Returns options for a database that is written to, and its column families. `direct`: flush and compact with direct I/O.
/// `create`: create missing parts.
pub(super) fn database(direct: bool, create: bool) -> (Options, Vec<ColumnFamilyDescriptor>) {
    let cache = cache();
    let mut options = common();
    options.create_if_missing(create);
    options.create_missing_column_families(create);
    // Twice as fast as buffered I/O for blobs, and the host's page cache is left unchanged.
    options.set_use_direct_io_for_flush_and_compaction(direct);
    let family = |name: &str| match name {
        // With each flush, RocksDB would compare all files of this column family with the blob files that they name: half of what
        // a commit costs with 10,000 files. It compares them for each reader of a view, when it opens it.
        BLOCKS => with(family(name, &cache), "force_consistency_checks=false"),
        _ => family(name, &cache),
    };
    let families = FAMILIES.map(|name| ColumnFamilyDescriptor::new(name, family(name)));
    (options, families.into())
}

/// Returns the cache of a database. Several may share it that have the same files open: its keys are made of what stands in the
/// files.
pub(super) fn cache() -> Cache {
    let mut options = LruCacheOptions::default();
    options.set_capacity(BLOCK_CACHE_BYTES);
    // By default a cache of this size has 64 parts, and what is larger than a part is read again each time.
    options.set_num_shard_bits(CACHE_PARTS.ilog2() as i32);
    Cache::new_lru_cache_opts(&options)
}

/// Returns options for a view, which is only read, and its column families.
pub(super) fn view(cache: &Cache) -> (Options, Vec<ColumnFamilyDescriptor>) {
    let families = FAMILIES.map(|name| ColumnFamilyDescriptor::new(name, family(name, cache)));
    (common(), families.into())
}

fn common() -> Options {
    // By default every table would contain this host's name.
    let mut options = with(Options::default(), "db_host_id=vbk");
    options.set_max_open_files(MAX_OPEN_FILES);
    options.set_max_background_jobs(4);
    // Each time it opens, RocksDB preallocates about LOG_BYTES for its log and MANIFEST_BYTES for its list of files; on
    // a disk with less free space it takes all of it, and then a prune has no room to work. The log contains index
    // rows, and no pages.
    options.set_max_total_wal_size(LOG_BYTES);
    options.set_manifest_preallocation_size(MANIFEST_BYTES);
    options.set_stats_dump_period_sec(0);
    options.set_info_logger(quiet());
    options
}

/// Adds what the crate has no function for.
fn with(mut options: Options, text: &str) -> Options {
    let with = options.get_options_from_string(text);
    with.expect("RocksDB knows its own option")
}

/// By default RocksDB would keep log files in the directory, even if it only reads.
fn quiet() -> InfoLogger {
    InfoLogger::new_callback_logger(LogLevel::Warn, |_, text| {
        tracing::debug!(target: "rocksdb", "{}", text.trim_end());
    })
}

fn family(name: &str, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(4 << 20);
    if name == "index" {
        // Most of the requested ids are new: the filter answers without reading the disk.
        table.set_bloom_filter(10.0, false);
        // In pieces: the filter of a file of a million rows has more than a MiB, and those of a large store are more than the cache
        // can hold.
        table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        table.set_partition_filters(true);
        table.set_metadata_block_size(PIECE_BYTES);
        table.set_pin_top_level_index_and_filter(true);
        options.set_write_buffer_size(16 << 20);
    }
    if name == BLOCKS {
        options.set_write_buffer_size(BUFFER_BYTES);
        options.set_max_write_buffer_number(BUFFERS);
        // Not for nodes: every backup would leave a small blob file of them for ever, whereas compaction merges
        // rows.
        options.set_enable_blob_files(true);
        options.set_min_blob_size(MIN_BLOB_BYTES);
        options.set_blob_file_size(BLOB_FILE_BYTES);
        options.set_blob_compression_type(DBCompressionType::None);
        // A block of 1 MiB takes about 1.3 KB in the sorted files. Compaction works on whole files, so they are kept
        // small: each of their bytes stands for many in blob files that a sweep would have to move.
        options.set_target_file_size_base(TABLE_BYTES);
    }
    options.set_block_based_table_factory(&table);
    options
}

/// Returns options for reading the pages of a view with direct I/O. `cache` is that of the view.
pub(super) fn scan(cache: &Cache) -> (Options, ColumnFamilyDescriptor) {
    let mut options = Options::default();
    options.set_max_open_files(MAX_OPEN_FILES);
    options.set_use_direct_reads(true);
    options.set_info_logger(quiet());
    (options, ColumnFamilyDescriptor::new(BLOCKS, family(BLOCKS, cache)))
}

/// Files that are opened to find out if their directory can be read with O_DIRECT.
const PROBES: usize = 8;

/// Returns whether files in this directory can be read with O_DIRECT.
pub(super) fn can_read_direct(directory: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let mut direct = std::fs::OpenOptions::new();
    direct.read(true).custom_flags(nix::fcntl::OFlag::O_DIRECT.bits());
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    // One of them may be removed meanwhile.
    files.take(PROBES).any(|file| direct.open(file.path()).is_ok())
}

/// Returns whether files in this directory can be written with O_DIRECT, which some file systems do not support.
pub(super) fn can_write_direct(directory: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let probe = directory.join(".direct-io-probe");
    let opened = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(nix::fcntl::OFlag::O_DIRECT.bits())
        .open(&probe);
    // The file is empty and unused, so one that is left behind does no harm.
    let _ = std::fs::remove_file(&probe);
    opened.is_ok()
}

/// Returns options for a write that is durable when it returns.
pub(super) fn logged() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

/// Returns options for a write that is durable with the next flush; a crash before that loses the write.
pub(super) fn unlogged() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

#[cfg(test)]
mod tests {
    use rocksdb::{DB, IteratorMode};

    use super::*;
    use crate::tests::testing::noise;

    #[test]
    fn an_index_in_pieces_is_read_by_versions_that_make_none() {
        const ROWS: usize = 40_000;
        let directory = tempfile::tempdir().expect("a directory");
        let ids = noise(1, 64 * ROWS);
        // Every second one is stored.
        let stored = || ids.chunks_exact(32).step_by(2);
        let (options, families) = database(false, true);
        let db = DB::open_cf_descriptors(&options, directory.path(), families).expect("creates");
        let index = db.cf_handle("index").expect("is there");
        stored().for_each(|id| db.put_cf_opt(index, id, &id[..16], &unlogged()).expect("puts"));
        db.flush_cf(index).expect("flushes");
        drop(db);
        let older = |name: &str| {
            let mut table = BlockBasedOptions::default();
            table.set_cache_index_and_filter_blocks(true);
            table.set_bloom_filter(10.0, false);
            let mut options = Options::default();
            options.set_block_based_table_factory(&table);
            ColumnFamilyDescriptor::new(name, options)
        };
        let db = DB::open_cf_descriptors(&Options::default(), directory.path(), FAMILIES.map(older)).expect("opens");
        let index = db.cf_handle("index").expect("is there");
        for pair in ids.chunks_exact(64) {
            let (id, other) = pair.split_at(32);
            assert_eq!(db.get_cf(index, id).expect("reads").as_deref(), Some(&id[..16]));
            assert_eq!(db.get_cf(index, other).expect("reads"), None);
        }
        assert_eq!(db.iterator_cf(index, IteratorMode::Start).count(), ROWS);
        let pieces = db.property_value_cf(index, "rocksdb.aggregated-table-properties");
        let pieces = pieces.expect("reads").unwrap_or_default();
        assert!(pieces.contains("index partitions"), "{pieces}");
    }
}
