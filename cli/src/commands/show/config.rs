//! `vbk show --config` and `--file`: the files that describe the guest, and the partitions of its disks.

use std::sync::Arc;

use serde::Serialize;
use vbk_fuse::PartitionTable;
use vbk_fuse::TableKind;
use vbk_fuse::partition_table;
use vbk_repo::backup::{Entry, Image};
use vbk_repo::reader::{ImageReader, ReadResources};
use vbk_repo::repository::View;

use crate::context::Context;
use crate::exit::{Outcome, Result};
use crate::partition_types;
use crate::terminal::output;
use crate::terminal::table::{Align, Table};
use crate::terminal::units;

#[derive(Serialize)]
struct Report {
    backup: String,
    files: Vec<FileJson>,
    disks: Vec<DiskJson>,
}

#[derive(Serialize)]
struct FileJson {
    name: String,
    size_bytes: u64,
    /// Content of a text file.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct DiskJson {
    disk: String,
    table: &'static str,
    partitions: Vec<PartitionJson>,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct PartitionJson {
    number: u32,
    offset_bytes: u64,
    size_bytes: u64,
    kind: String,
    /// Name of the kind, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind_name: Option<&'static str>,
    label: Option<String>,
}

/// Writes a file to standard output, unchanged.
pub fn write_file(view: &View, entry: &Entry, name: &str) -> Result<Outcome> {
    let bytes = read(view, &ReadResources::new(1), entry.backup.file(name)?)?;
    output::write_bytes(&bytes);
    Ok(Outcome::Done)
}

/// Prints the text files and the partitions. A part that can't be read is named, and the others are printed.
pub fn show(context: &Context<'_>, view: &View, entry: &Entry) -> Result<Outcome> {
    let resources = ReadResources::new(1);
    let backup = &entry.backup;
    let files: Vec<_> = backup
        .files
        .iter()
        .map(|file| {
            let bytes = read(view, &resources, file);
            FileJson {
                name: file.disk.to_string(),
                size_bytes: file.size_bytes,
                error: bytes.as_ref().err().map(|error| error.to_string()),
                text: bytes.ok().and_then(text_of),
            }
        })
        .collect();
    let disks: Vec<_> = backup
        .images
        .iter()
        .map(|image| {
            let table = ImageReader::open(view.store(), Arc::clone(&resources), image)
                .map_err(|error| error.to_string())
                .and_then(|reader| partition_table(&reader).map_err(|error| error.to_string()));
            disk_json(image, table)
        })
        .collect();
    if files.is_empty() {
        context.say(format_args!("{} has no files\n", backup.spec()));
    }
    for file in &files {
        context.print(format_args!("--- {} ({})\n", file.name, units::size(file.size_bytes)));
        match (&file.text, &file.error) {
            (Some(text), _) => context.print(format_args!("{text}{}", if text.ends_with('\n') { "" } else { "\n" })),
            (None, Some(error)) => context.print(format_args!("can't be read: {error}\n")),
            (None, None) => context.print(format_args!(
                "not text; `vbk show {} --file {} > FILE` writes it\n",
                backup.spec(),
                file.name
            )),
        }
    }
    for disk in &disks {
        print_partitions(context, disk);
    }
    let damaged = files.iter().any(|file| file.error.is_some()) || disks.iter().any(|disk| disk.error.is_some());
    context.json_result(&Report {
        backup: backup.spec(),
        files,
        disks,
    })?;
    Ok(match damaged {
        true => Outcome::Damage,
        false => Outcome::Done,
    })
}

fn read(view: &View, resources: &Arc<ReadResources>, file: &Image) -> vbk_repo::Result<Vec<u8>> {
    ImageReader::open(view.store(), Arc::clone(resources), file)?.read_file(file.disk.as_str())
}

/// Returns the text of a file, if it is text and can't drive a terminal.
fn text_of(bytes: Vec<u8>) -> Option<String> {
    let text = String::from_utf8(bytes).ok()?;
    let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t' | '\r');
    text.chars().all(harmless).then_some(text)
}

fn disk_json(image: &Image, table: std::result::Result<PartitionTable, String>) -> DiskJson {
    let mut disk = DiskJson {
        disk: image.disk.to_string(),
        table: "unknown",
        partitions: Vec::new(),
        warnings: Vec::new(),
        error: None,
    };
    match table {
        Ok(table) => {
            disk.table = match table.kind {
                TableKind::None => "none",
                TableKind::Mbr => "mbr",
                TableKind::Gpt => "gpt",
            };
            disk.warnings = table.warnings;
            let partitions = table.partitions.into_iter().map(|partition| {
                let kind = partition.kind.to_string();
                PartitionJson {
                    number: partition.number,
                    offset_bytes: partition.offset_bytes,
                    size_bytes: partition.size_bytes,
                    kind_name: partition_types::name(&kind),
                    kind,
                    label: partition.label,
                }
            });
            disk.partitions = partitions.collect();
        }
        Err(error) => disk.error = Some(error),
    }
    disk
}

fn print_partitions(context: &Context<'_>, disk: &DiskJson) {
    let kind = match (disk.table, &disk.error) {
        (_, Some(error)) => format!("can't be read: {error}"),
        ("none", None) => "no partition table".to_owned(),
        (kind, None) => kind.to_uppercase(),
    };
    context.print(format_args!("--- partitions of {} ({kind})\n", disk.disk));
    for warning in &disk.warnings {
        context.print(format_args!("{warning}\n"));
    }
    if disk.partitions.is_empty() {
        return;
    }
    let mut table = Table::new(&[
        ("NUMBER", Align::Right),
        ("START", Align::Right),
        ("SIZE", Align::Right),
        ("BYTES", Align::Right),
        ("TYPE", Align::Left),
        ("NAME", Align::Left),
    ]);
    for partition in &disk.partitions {
        table.row(vec![
            partition.number.to_string(),
            partition.offset_bytes.to_string(),
            units::size(partition.size_bytes),
            partition.size_bytes.to_string(),
            partition
                .kind_name
                .map_or_else(|| partition.kind.clone(), str::to_owned),
            partition.label.clone().unwrap_or_default(),
        ]);
    }
    context.print(table);
}
