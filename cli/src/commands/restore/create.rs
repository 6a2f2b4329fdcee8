//! `vbk restore --create-in`: a whole guest, on new volumes, under its own name or another.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use vbk::guest::files::{CONFIG_NAME, DISKS_NAME, DiskKind, Disks, NVRAM_NAME, volume_name_of};
use vbk::guest::volumes::{NewVolume, VolumesPlan, tags_of, volume_name};
use vbk::host::libvirt::define::{define, is_defined};
use vbk::host::libvirt::rename::{RenamePlan, identity, mac_like, rewrite, unplaced, uuid_of};
use vbk::host::program::Programs;
use vbk::restore::guest::{DiskToWrite, write};
use vbk::restore::{Fill, RestoreOptions};
use vbk_repo::backup::Backup;
use vbk_repo::name::GuestName;
use vbk_repo::reader::{ImageReader, ReadResources};
use vbk_repo::repository::View;

use super::{RangeJson, damaged_wish, milliseconds, ranges_json, tell_damaged};
use crate::args::{RestoreArgs, SkipDamaged};
use crate::commands::warn_of_clock;
use crate::context::{Context, threads};
use crate::exit::{Error, Outcome, Result};
use crate::machine;
use crate::signals;
use crate::terminal::progress::{Progress, Words};
use crate::terminal::units;

#[derive(Serialize)]
struct Report<'a> {
    backup: String,
    guest: &'a str,
    volumes: Vec<VolumeJson<'a>>,
    /// The domain's XML, if one was kept.
    domain: Option<&'a str>,
    defined: bool,
    duration_ms: u64,
}

#[derive(Serialize)]
struct VolumeJson<'a> {
    disk: &'a str,
    volume: &'a str,
    path: PathBuf,
    size_bytes: u64,
    /// What could not be read back.
    damaged: Vec<RangeJson>,
}

/// A domain to be.
struct Domain {
    name: String,
    xml: String,
    /// Its UEFI variables, and where they go.
    nvram: Option<(PathBuf, Vec<u8>)>,
    /// Restored disks that it does not have.
    nowhere: Vec<String>,
    /// Disks of it that are not restored.
    kept: Vec<String>,
}

/// Restores a guest into the volume group `group`.
pub fn run(context: &Context<'_>, args: &RestoreArgs, group: &str) -> Result<Outcome> {
    let clock = Instant::now();
    if args.skip_damaged == Some(SkipDamaged::Keep) {
        // A thick volume holds what others left in its place.
        return Err(Error::Usage(
            "new volumes hold nothing that could be kept; --skip-damaged writes zeros".into(),
        ));
    }
    let cancel = signals::cancel_flag_with_hangup().map_err(Error::io("watch for signals"))?;
    let view = context.view()?;
    let catalogue = view.catalogue()?;
    crate::commands::warn_of_foreign_changes(&catalogue);
    let entry = catalogue.find(&args.backup)?;
    warn_of_clock(&catalogue, &args.backup, entry);
    let mut backup = entry.backup.clone();
    if let Some(disk) = &args.backup.disk {
        backup.image(disk)?;
        backup = backup.only(disk)?;
    }
    let guest = args.as_guest.as_ref().unwrap_or(&backup.guest);
    let resources = ReadResources::new(threads());
    let stored = Stored {
        backup: &backup,
        view: &view,
        resources: &resources,
    };
    let programs = machine::programs();
    let mut random = random()?;
    let disks = described(&stored)?;
    let plan = VolumesPlan {
        group: group.to_owned(),
        pool: args.thin_pool.clone(),
        volumes: volumes(&stored, disks.as_ref(), guest)?,
        tag_id: random.run(),
        devices: "/dev".into(),
    };
    let was_thin = disks
        .iter()
        .flat_map(|disks| &disks.disks)
        .any(|disk| disk.kind == DiskKind::LvmThin);
    if was_thin && plan.pool.is_none() {
        context.say("disks that were thin volumes become thick ones; --thin-pool makes thin ones");
    }
    let mut warnings = 0;
    // Before anything is made: what can't be defined later is told now.
    let domain = match domain(&stored, guest, &plan, &mut random) {
        Ok(domain) => domain,
        Err(error) if args.define => return Err(error),
        Err(error) => {
            tracing::warn!("the disks alone are restored: {error}");
            warnings += 1;
            None
        }
    };
    if args.define {
        check_define(&programs, domain.as_ref(), &backup)?;
    }
    for remark in domain
        .iter()
        .flat_map(|domain| domain.nowhere.iter().chain(&domain.kept))
    {
        tracing::warn!("{remark}");
        warnings += 1;
    }
    let readers = backup.images.iter().map(|image| {
        let reader = ImageReader::open(view.store(), Arc::clone(&resources), image);
        Ok((image, reader?))
    });
    let readers: Vec<_> = readers.collect::<Result<_>>()?;
    let disks: Vec<_> = readers
        .iter()
        .map(|(image, reader)| DiskToWrite {
            name: image.disk.as_str(),
            label: format!("{}/{}", backup.spec(), image.disk),
            image: reader,
            data_bytes: image.data_bytes,
        })
        .collect();
    let options = RestoreOptions {
        label: String::new(),
        force: false,
        fill: Fill::Device,
        damaged: damaged_wish(args),
        threads: threads(),
    };
    let volumes = plan.create(&programs).map_err(vbk::Error::from)?;
    let progress = Progress::new(context.quiet(), backup.size_bytes(), Words::Plain);
    let written = write(volumes, &disks, &options, &cancel, &progress);
    progress.finish();
    let (volumes, restored) = written?;
    if let Err(error) = volumes.keep() {
        tracing::warn!("the restored volumes keep a tag of this run: {error}");
        warnings += 1;
    }
    let took = clock.elapsed();
    for (image, volume) in backup.images.iter().zip(&plan.volumes) {
        context.say(format_args!(
            "{}/{}: {} ({} of data) restored to {}",
            backup.spec(),
            image.disk,
            units::size(image.size_bytes),
            units::size(image.data_bytes),
            plan.path_of(volume).display()
        ));
    }
    let mut outcome = Outcome::Done;
    for (disk, restored) in disks.iter().zip(&restored) {
        if tell_damaged(&disk.label, &restored.damaged, "they are zeros") == Outcome::Damage {
            outcome = Outcome::Damage;
        }
    }
    context.say(format_args!("{guest} restored in {}", units::duration(took)));
    if let (Some(domain), true) = (&domain, args.define) {
        let scratch = std::env::temp_dir().join(format!("vbk-{}.xml", plan.tag_id));
        let nvram = domain.nvram.as_ref().map(|(path, bytes)| (path.as_path(), &bytes[..]));
        let defined = define(&programs, &domain.xml, nvram, &scratch);
        defined.map_err(|error| {
            tracing::error!("the disks of {guest} are restored and stay, but its domain could not be defined");
            context.print(&domain.xml);
            vbk::Error::from(error)
        })?;
        context.say(format_args!(
            "domain {} defined; `virsh start {0}` starts it",
            domain.name
        ));
    } else if let Some(domain) = &domain {
        if let Some((path, _)) = &domain.nvram {
            context.say(format_args!(
                "the domain below has UEFI variables: `vbk show {} --file {NVRAM_NAME} > {}` writes them",
                backup.spec(),
                path.display()
            ));
        }
        context.print(&domain.xml);
        if !domain.xml.ends_with('\n') {
            context.print("\n");
        }
    }
    context.json_result(&Report {
        backup: backup.spec(),
        guest: guest.as_str(),
        volumes: backup
            .images
            .iter()
            .zip(&plan.volumes)
            .zip(&restored)
            .map(|((image, volume), restored)| VolumeJson {
                disk: image.disk.as_str(),
                volume: &volume.name,
                path: plan.path_of(volume),
                size_bytes: image.size_bytes,
                damaged: ranges_json(&restored.damaged),
            })
            .collect(),
        domain: domain.as_ref().map(|domain| domain.xml.as_str()),
        defined: args.define,
        duration_ms: milliseconds(took),
    })?;
    Ok(match warnings + progress.warnings() {
        _ if outcome == Outcome::Damage => outcome,
        0 => outcome,
        _ => Outcome::Warnings,
    })
}

/// A backup that can be read.
struct Stored<'a> {
    backup: &'a Backup,
    view: &'a View,
    resources: &'a Arc<ReadResources>,
}

impl Stored<'_> {
    /// A file that was kept, if it was.
    fn file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Ok(file) = self.backup.file(name) else {
            return Ok(None);
        };
        let reader = ImageReader::open(self.view.store(), Arc::clone(self.resources), file)?;
        Ok(Some(reader.read_file(name)?))
    }
}

/// What the disks were made of, as far as it can be read.
fn described(stored: &Stored<'_>) -> Result<Option<Disks>> {
    let bytes = stored.file(DISKS_NAME)?;
    Ok(bytes.and_then(|bytes| {
        let parsed = Disks::parse(&bytes);
        parsed
            .inspect_err(|error| tracing::warn!("new volumes are named after the paths of the disks: {error}"))
            .ok()
    }))
}

fn volumes(stored: &Stored<'_>, disks: Option<&Disks>, guest: &GuestName) -> Result<Vec<NewVolume>> {
    let (was, guest) = (stored.backup.guest.as_str(), guest.as_str());
    let volumes = stored.backup.images.iter().map(|image| {
        let old = volume_name_of(image, disks);
        let name = volume_name(old.as_deref(), was, guest, image.disk.as_str());
        Ok(NewVolume {
            name: name.map_err(vbk::Error::from)?,
            size_bytes: image.size_bytes,
            data_bytes: image.data_bytes,
            block_bytes: stored.view.identity().block_size.into(),
            tags: disks
                .and_then(|disks| disks.of(&image.disk)?.volume.as_ref())
                .map(|volume| tags_of(&volume.tags, was, guest))
                .unwrap_or_default(),
        })
    });
    volumes.collect()
}

/// The domain as it is to be, if one was kept.
fn domain(stored: &Stored<'_>, guest: &GuestName, plan: &VolumesPlan, random: &mut Random) -> Result<Option<Domain>> {
    let backup = stored.backup;
    let Some(xml) = stored.file(CONFIG_NAME)? else {
        return Ok(None);
    };
    let xml = String::from_utf8(xml).map_err(|_| Error::Usage(format!("the stored {CONFIG_NAME} is not UTF-8")))?;
    let was = identity(&xml).map_err(vbk::Error::from)?;
    let mut rename = RenamePlan {
        name: was.name.clone(),
        ..RenamePlan::default()
    };
    let mut nvram = was.nvram.clone();
    if *guest != backup.guest {
        guest.as_str().clone_into(&mut rename.name);
        rename.uuid = Some(uuid_of(random.bytes()));
        rename.macs = was.macs.iter().map(|mac| mac_like(mac, random.bytes())).collect();
        nvram = nvram.map(|path| path.with_file_name(format!("{guest}_VARS.fd")));
        rename.nvram.clone_from(&nvram);
    }
    for (image, volume) in backup.images.iter().zip(&plan.volumes) {
        let path = plan.path_of(volume);
        let is_known = |(source, _): &(Option<String>, String)| source.as_deref() == Some(image.source.as_str());
        // A disk that goes by another name in the backup than in the domain is known by its path alone.
        let key = match was.disks.iter().any(is_known) {
            true => &image.source,
            false => image.disk.as_str(),
        };
        rename.disks.insert(key.to_owned(), path);
    }
    let unplaced = unplaced(&xml, &rename).map_err(vbk::Error::from)?;
    let targets: Vec<_> = was.disks.iter().map(|(_, target)| target.as_str()).collect();
    let volumes = backup
        .images
        .iter()
        .zip(plan.volumes.iter().map(|volume| plan.path_of(volume)));
    let nowhere = volumes
        .filter(|(_, path)| unplaced.new.contains(path))
        .map(|(image, path)| {
            format!(
                "disk {} of the backup ({}), new at {}, is none of the disks of the stored domain ({})",
                image.disk,
                image.source,
                path.display(),
                targets.join(", ")
            )
        });
    let nowhere = nowhere.collect();
    let kept = unplaced.kept.iter();
    let kept = kept.map(|(target, old)| format!("disk {target} of the domain is not restored, and stays {old}"));
    let xml = rewrite(&xml, &rename).map_err(vbk::Error::from)?;
    let nvram = match (nvram, stored.file(NVRAM_NAME)?) {
        (Some(path), Some(bytes)) => Some((path, bytes)),
        _ => None,
    };
    Ok(Some(Domain {
        name: rename.name,
        xml,
        nvram,
        nowhere,
        kept: kept.collect(),
    }))
}

/// Whether the domain can be defined when its disks are there.
fn check_define(programs: &Programs, domain: Option<&Domain>, backup: &Backup) -> Result<()> {
    let Some(domain) = domain else {
        return Err(Error::Usage(format!(
            "no {CONFIG_NAME} is kept with {}, so there is no domain to define; leave --define out",
            backup.spec()
        )));
    };
    // It would start with the old disk.
    if !domain.nowhere.is_empty() {
        return Err(Error::Usage(format!(
            "{}; leave --define out, write it into the XML that is printed, and define that by hand",
            domain.nowhere.join("; ")
        )));
    }
    if is_defined(programs, &domain.name).map_err(vbk::Error::from)? {
        return Err(Error::Usage(format!(
            "libvirt has a domain {} already; restore with --as another name, or `virsh undefine --keep-nvram {0}` first \
             if it is lost",
            domain.name
        )));
    }
    match &domain.nvram {
        // A repository may come from elsewhere, and what root writes under a name like authorized_keys counts.
        Some((path, _)) if !is_nvram_name(path) => Err(Error::Usage(format!(
            "the stored domain wants its UEFI variables in {}, which is no name for such a file ({}); leave --define out and \
             do that by hand",
            path.display(),
            NVRAM_ENDINGS.join(", ")
        ))),
        Some((path, _)) if path.exists() => Err(Error::Usage(format!(
            "{} exists; move it away, or restore with --as another name",
            path.display()
        ))),
        Some((path, _)) if !path.parent().is_some_and(Path::is_dir) => Err(Error::Usage(format!(
            "there is no directory for the UEFI variables, {}; make it first",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// How libvirt's files of UEFI variables end.
const NVRAM_ENDINGS: [&str; 4] = [".fd", ".bin", ".img", ".qcow2"];

/// Whether a path may be that of UEFI variables, and of nothing that a program of the host reads as its own.
fn is_nvram_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let ends = |name: &str| NVRAM_ENDINGS.iter().any(|ending| name.ends_with(ending));
    path.is_absolute() && name.is_some_and(ends)
}

/// Bytes from the system's random source.
struct Random(std::fs::File);

fn random() -> Result<Random> {
    let opened = std::fs::File::open("/dev/urandom").and_then(|mut source| {
        // Once now, so that later reads do not fail.
        source.read_exact(&mut [0])?;
        Ok(Random(source))
    });
    opened.map_err(Error::io("read /dev/urandom"))
}

impl Random {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0
            .read_exact(&mut bytes)
            .expect("the random source gave bytes before and never ends");
        bytes
    }

    /// Tells this run from others.
    fn run(&mut self) -> String {
        format!("{:016x}", u64::from_le_bytes(self.bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uefi_variables_go_only_where_nothing_else_looks_for_something() {
        for (path, is_good) in [
            ("/var/lib/libvirt/qemu/nvram/web1_VARS.fd", true),
            ("/srv/web1/vars.4m.qcow2", true),
            ("/root/.ssh/authorized_keys", false),
            ("/etc/cron.d/web1", false),
            ("/etc/systemd/system/x.service", false),
            ("web1_VARS.fd", false),
            ("/", false),
        ] {
            assert_eq!(is_nvram_name(Path::new(path)), is_good, "{path}");
        }
    }
}
