//! A backup that runs in QEMU, for `vbk boot` and `vbk rehearse`: its directory, the process that serves its disks, and the
//! guest. They end together, in the reverse order, and the next run removes what a killed one left.

pub mod behind;
mod directory;
mod images;
mod users;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nix::unistd::{User, geteuid};
use vbk::boot::machine::{Accelerator, Account, Choices, Host, Machine, Network, PROGRAM, Wishes};
use vbk::boot::process::{Place, Running};
use vbk::guest::files::{CONFIG_NAME, NVRAM_NAME};
use vbk::host::libvirt::hardware::{Bus, Family, Firmware, Hardware};
use vbk_fuse::{PartitionTable, partition_table};
use vbk_repo::backup::{Backup, Entry};
use vbk_repo::reader::{ImageReader, ReadResources};
use vbk_repo::repository::{Repository, View};
use vbk_repo::state::BootAccelerator;

use crate::args::{AccelArg, BusArg, FamilyArg, FirmwareArg, MachineArgs, NetworkArg};
use crate::exit::{Error, Result};
use crate::machine;

use self::directory::BootDirectory;
use self::images::{ImageServer, ServerOptions};
use self::users::QemuUser;

/// Largest file of a backup that is read for a boot. Descriptions have kilobytes, UEFI variables 528 KiB.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Boot code of an MBR.
const BOOT_CODE_BYTES: usize = 440;

/// A guest that runs, and everything that it needs. Dropped, it is killed and taken down.
pub struct Booted {
    // Dropped in this order.
    /// The guest.
    pub guest: Running,
    _images: ImageServer,
    _directory: BootDirectory,
}

/// Wishes of a command.
pub struct BootOptions<'a> {
    /// The virtual machine.
    pub machine: &'a MachineArgs,
    /// File for the guest's writes.
    pub save: Option<PathBuf>,
    /// Number of a VNC display.
    pub vnc: Option<u16>,
    /// QEMU stays after the guest's end.
    pub is_kept_after_end: bool,
    /// Limit of memory that the backed-up description alone asks for.
    pub limit_bytes: Option<u64>,
    /// Limit of the file for the guest's writes.
    pub scratch_bytes: Option<u64>,
    /// Typed options for the way to the repository.
    pub way: &'a [OsString],
}

/// Starts the guest of a backup. Gives up once `cancelled` returns true.
pub fn start(
    repository: &Repository,
    view: &View,
    entry: &Entry,
    options: &BootOptions<'_>,
    cancelled: &mut dyn FnMut() -> bool,
) -> Result<Booted> {
    let program = find_qemu()?;
    let directory = BootDirectory::create(qemu_user(options.machine.qemu_user.as_deref())?)?;
    let user = directory.user;
    let resources = ReadResources::new(1);
    let backup = &entry.backup;
    let hardware = hardware(view, &resources, backup);
    let disks: Vec<_> = backup.images.iter().map(|image| image.disk.to_string()).collect();
    let default_firmware = firmware_of_disks(view, &resources, backup);
    let choices = Choices {
        limit_bytes: options.limit_bytes,
        ..choices(options.machine)
    };
    let (machine, remarks) = Machine::new(&disks, &hardware, &choices, default_firmware, Host::now()?)?;
    for remark in remarks {
        tracing::warn!("{remark}");
    }
    let variables = read_file(view, &resources, backup, NVRAM_NAME);
    let work = directory.work();
    machine.prepare(&work, variables.as_deref(), user)?;
    directory.give_work()?;
    let server = ServerOptions {
        save: options.save.as_deref(),
        scratch_bytes: options.scratch_bytes,
        allow_other: user.is_some(),
        way: options.way,
    };
    let disks = directory.disks();
    let images = ImageServer::start(repository, entry, &disks, &server, cancelled)?;
    let wishes = Wishes {
        network: match options.machine.network {
            NetworkArg::None => Network::None,
            NetworkArg::User => Network::User { is_restricted: true },
        },
        vnc: options.vnc,
        is_kept_after_end: options.is_kept_after_end,
        user,
    };
    let accelerator = options.machine.accel.map(|accel| match accel {
        AccelArg::Kvm => Accelerator::Kvm,
        AccelArg::Tcg => Accelerator::Tcg,
    });
    let place = Place {
        work: &work,
        disks: &disks,
    };
    let guest = Running::start(&program, &machine, &wishes, accelerator, place, cancelled)?;
    Ok(Booted {
        guest,
        _images: images,
        _directory: directory,
    })
}

fn find_qemu() -> Result<PathBuf> {
    let path = machine::path();
    let mut found = std::env::split_paths(&path).map(|directory| directory.join(PROGRAM));
    let found = found.find(|program| program.is_file());
    Ok(found.ok_or(vbk::boot::BootError::NoQemu)?)
}

/// Returns the user that QEMU is to run as. Root's QEMU never gets libvirt's unless it is asked for: to that user the disks of
/// the host's running guests belong.
fn qemu_user(given: Option<&str>) -> Result<QemuUser> {
    let Some(name) = given else {
        return Ok(match geteuid().is_root() {
            true => QemuUser::Own,
            false => QemuUser::This,
        });
    };
    if !geteuid().is_root() {
        return Err(Error::Usage("only root can start QEMU as another user".into()));
    }
    let found = User::from_name(name).map_err(|errno| Error::io(format!("look up user {name}"))(errno.into()))?;
    let found = found.ok_or_else(|| Error::Usage(format!("--qemu-user {name}: there is no such user")))?;
    Ok(match found.uid.is_root() {
        true => QemuUser::This,
        false => QemuUser::Given(Account {
            uid: found.uid.as_raw(),
            gid: found.gid.as_raw(),
        }),
    })
}

/// Returns what the description of the guest asks for; nothing if there is none that can be read.
fn hardware(view: &View, resources: &Arc<ReadResources>, backup: &Backup) -> Hardware {
    let Some(bytes) = read_file(view, resources, backup, CONFIG_NAME) else {
        return Hardware::default();
    };
    let parsed = String::from_utf8(bytes)
        .map_err(|_| "it is no text".to_owned())
        .and_then(|xml| Hardware::parse(&xml).map_err(|error| error.to_string()));
    parsed.unwrap_or_else(|error| {
        tracing::warn!("{CONFIG_NAME} of the backup is not used: {error}");
        Hardware::default()
    })
}

fn read_file(view: &View, resources: &Arc<ReadResources>, backup: &Backup, name: &str) -> Option<Vec<u8>> {
    let file = backup.files.iter().find(|file| file.disk.as_str() == name)?;
    if file.size_bytes > MAX_FILE_BYTES {
        tracing::warn!("{name} of the backup is not used: it has more than {MAX_FILE_BYTES} bytes");
        return None;
    }
    let reader = ImageReader::open(view.store(), Arc::clone(resources), file);
    match reader.and_then(|reader| reader.read_file(name)) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            tracing::warn!("{name} of the backup is not used: {error}");
            None
        }
    }
}

/// Returns the firmware that the disks of a backup are made for: UEFI if one has an EFI system partition, and none has boot
/// code in its first sector.
fn firmware_of_disks(view: &View, resources: &Arc<ReadResources>, backup: &Backup) -> Firmware {
    let (mut has_esp, mut has_code) = (false, false);
    for image in &backup.images {
        let looked = ImageReader::open(view.store(), Arc::clone(resources), image)
            .map_err(io::Error::other)
            .and_then(|reader| {
                let mut sector = [0; BOOT_CODE_BYTES];
                if image.size_bytes >= BOOT_CODE_BYTES as u64 {
                    reader.read_at(0, &mut sector).map_err(io::Error::other)?;
                }
                Ok((sector.iter().any(|&byte| byte != 0), partition_table(&reader)?))
            });
        match looked {
            Ok((code, table)) => {
                has_code |= code;
                has_esp |= holds_esp(&table);
            }
            Err(error) => tracing::warn!("can't read the partition table of {}: {error}", image.disk),
        }
    }
    match has_esp && !has_code {
        true => Firmware::Uefi,
        false => Firmware::Bios,
    }
}

fn holds_esp(table: &PartitionTable) -> bool {
    // UEFI 2.10, tables 5.3 and 5.7.
    const TYPES: [&str; 2] = ["GPT type C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "MBR type 0xef"];
    let mut kinds = table.partitions.iter().map(|partition| partition.kind.to_string());
    kinds.any(|kind| TYPES.contains(&kind.as_str()))
}

fn choices(args: &MachineArgs) -> Choices {
    Choices {
        bus: args.bus.map(|bus| match bus {
            BusArg::Virtio => Bus::Virtio,
            BusArg::Scsi => Bus::Scsi,
            BusArg::Sata => Bus::Sata,
            BusArg::Ide => Bus::Ide,
        }),
        firmware: args.firmware.map(|firmware| match firmware {
            FirmwareArg::Bios => Firmware::Bios,
            FirmwareArg::Uefi => Firmware::Uefi,
        }),
        family: args.machine.map(|family| match family {
            FamilyArg::Pc => Family::Pc,
            FamilyArg::Q35 => Family::Q35,
        }),
        memory_bytes: args.memory,
        cpus: args.cpus,
        limit_bytes: None,
    }
}

/// Returns the accelerator as a result names it.
pub fn accelerator(accelerator: Accelerator) -> BootAccelerator {
    match accelerator {
        Accelerator::Kvm => BootAccelerator::Kvm,
        Accelerator::Tcg => BootAccelerator::Tcg,
    }
}

/// Refuses a backup of one disk: a guest boots from all of its disks.
pub fn check_whole(spec: &vbk_repo::catalogue::BackupSpec) -> Result<()> {
    match &spec.disk {
        Some(disk) => Err(Error::Usage(format!(
            "a guest boots with all its disks; leave /{disk} out"
        ))),
        None => Ok(()),
    }
}
