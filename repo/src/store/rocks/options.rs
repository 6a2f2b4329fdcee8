//! How RocksDB is set up, and why.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, InfoLogger, LogLevel, Options, WriteOptions,
};

const FAMILIES: [&str; 6] = ["blocks", "index", "segments", "backups", "notes", "meta"];

/// One write buffer of `blocks`; at most [`BUFFERS`] of them are in memory.
const BUFFER_BYTES: usize = 48 << 20;
const BUFFERS: i32 = 3;
/// Index, filters and small values that were read.
const BLOCK_CACHE_BYTES: usize = 32 << 20;
/// Smaller values stay in the sorted files: headers always, pages that shrank to next to nothing too.
const MIN_BLOB_BYTES: u64 = 1024;
/// Descriptors that RocksDB may hold, whatever the number of its files.
const MAX_OPEN_FILES: i32 = 768;
/// What the write-ahead logs may have in them before tables are written instead. A batch may be larger.
const LOG_BYTES: u64 = 1 << 20;
/// What the list of files is made longer by.
const MANIFEST_BYTES: usize = 64 << 10;
/// A sorted file of `blocks`.
const TABLE_BYTES: u64 = 2 << 20;

/// Options for the database and its column families. `direct`: flush and compact with direct I/O. `create`: make what is
/// missing.
pub(super) fn database(direct: bool, create: bool) -> (Options, Vec<ColumnFamilyDescriptor>) {
    let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
    // Every table would have the name of this host in it.
    let made = Options::default().get_options_from_string("db_host_id=vbk");
    let mut options = made.expect("RocksDB knows its own option");
    options.create_if_missing(create);
    options.create_missing_column_families(create);
    options.set_max_open_files(MAX_OPEN_FILES);
    options.set_max_background_jobs(4);
    // RocksDB sets as much disk space aside for its log, and the other for its list of files, each time it opens; where
    // less is free it takes the rest, and then a prune has no room to work. The log has index rows in it, and no pages.
    options.set_max_total_wal_size(LOG_BYTES);
    options.set_manifest_preallocation_size(MANIFEST_BYTES);
    options.set_stats_dump_period_sec(0);
    // Twice as fast as buffered for blobs, and the host's page cache stays as it was.
    options.set_use_direct_io_for_flush_and_compaction(direct);
    // RocksDB would otherwise keep log files in the directory, also when it only reads.
    options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, |_, text| {
        tracing::debug!(target: "rocksdb", "{}", text.trim_end());
    }));
    let families = FAMILIES.map(|name| ColumnFamilyDescriptor::new(name, family(name, &cache)));
    (options, families.into())
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
        // Most ids that are asked for are new: answer without touching the disk.
        table.set_bloom_filter(10.0, false);
        options.set_write_buffer_size(16 << 20);
    }
    if name == "blocks" {
        options.set_write_buffer_size(BUFFER_BYTES);
        options.set_max_write_buffer_number(BUFFERS);
        // Not for segments: every backup would leave a small file of them for ever, and compaction merges rows.
        options.set_enable_blob_files(true);
        options.set_min_blob_size(MIN_BLOB_BYTES);
        options.set_blob_compression_type(DBCompressionType::None);
        // A block of 1 MiB takes about 1.3 KB in the sorted files. Compaction works on whole files, so they are small
        // where each byte stands for many in blob files that a sweep would have to move.
        options.set_target_file_size_base(TABLE_BYTES);
    }
    options.set_block_based_table_factory(&table);
    options
}

/// Whether files in this directory can be written with O_DIRECT: not on every kind of file system.
pub(super) fn can_write_direct(directory: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let probe = directory.join(".direct-io-probe");
    let opened = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(nix::fcntl::OFlag::O_DIRECT.bits())
        .open(&probe);
    // The file is of no use to anybody, so one that stays behind does no harm.
    let _ = std::fs::remove_file(&probe);
    opened.is_ok()
}

/// Durable when the write returns.
pub(super) fn logged() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

/// Durable with the next flush; a crash before it loses the write.
pub(super) fn unlogged() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}
