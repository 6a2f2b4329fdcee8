//! The command line of QEMU. Takes only numbers and kinds from the guest's description, and no names.

use std::os::fd::RawFd;
use std::os::unix::fs::chown;
use std::path::Path;

use serde_json::json;

use crate::boot::BootError;
use crate::host::libvirt::hardware::{Bus, Family, Firmware, Hardware};

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// Memory of a guest without a description.
pub const DEFAULT_MEMORY_BYTES: u64 = 1 << 30;
/// Least memory; SeaBIOS and a boot loader run in it.
pub const MIN_MEMORY_BYTES: u64 = 64 << 20;
/// Limit of processors that `pc` machines have.
const MAX_CPUS: u32 = 255;
/// Disks with a PCI function of their own. The 32 slots of the root bus have other devices too; further disks go to the
/// SCSI controller.
const MAX_VIRTIO_DISKS: usize = 16;
/// Ports of an AHCI controller (hw/ide/ich.c).
const AHCI_PORTS: usize = 6;
/// Disks on the two channels of PIIX.
const IDE_DISKS: usize = 4;
/// Most disks: more than any host has slots for.
pub const MAX_DISKS: usize = 64;

/// File with the UEFI variables of this boot.
const VARIABLES: &str = "variables.fd";
/// File with the I/O port to which SeaBIOS copies its screen.
const SERIAL_PORT: &str = "serial-port";

/// Code and template of the variables, as packages install them. 4M first: newer guests have variables of that size.
const OVMF: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
];

/// Processor of the host that runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// The host's own, through /dev/kvm.
    Kvm,
    /// QEMU's translation, ten times slower.
    Tcg,
}

impl Accelerator {
    /// Returns the one that this host has: KVM if its device can be opened.
    pub fn of_host() -> Self {
        let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
        match kvm {
            Ok(_) => Self::Kvm,
            Err(_) => Self::Tcg,
        }
    }

    /// Returns QEMU's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Choices that replace those of the description.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Choices {
    /// Controller of all disks.
    pub bus: Option<Bus>,
    /// Firmware.
    pub firmware: Option<Firmware>,
    /// Family of the machine.
    pub family: Option<Family>,
    /// Memory.
    pub memory_bytes: Option<u64>,
    /// Number of processors.
    pub cpus: Option<u32>,
    /// Limit of memory that the description alone asks for.
    pub limit_bytes: Option<u64>,
}

/// Resources of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Memory that is free for use.
    pub free_bytes: u64,
    /// Number of processors.
    pub cpus: u32,
}

impl Host {
    /// Reads them from /proc/meminfo and the scheduler.
    pub fn now() -> Result<Self, BootError> {
        let path = "/proc/meminfo";
        let text = std::fs::read_to_string(path).map_err(BootError::io("read", path))?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            free_bytes: kib.unwrap_or(0).saturating_mul(1 << 10),
            cpus: u32::try_from(cpus).unwrap_or(1),
        })
    }
}

/// A disk of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its name in the backup.
    pub name: String,
    /// Its controller.
    pub bus: Bus,
}

/// The machine to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Memory.
    pub memory_bytes: u64,
    /// Number of processors.
    pub cpus: u32,
    /// Family.
    pub family: Family,
    /// Firmware.
    pub firmware: Firmware,
    /// Disks in boot order.
    pub disks: Vec<Disk>,
}

impl Machine {
    /// Decides on a machine for the disks of a backup. `default_firmware` is that of a guest whose description does not
    /// tell. Returns what was changed to fit the host too, as sentences.
    pub fn new(
        disks: &[String],
        hardware: &Hardware,
        choices: &Choices,
        default_firmware: Firmware,
        host: Host,
    ) -> Result<(Self, Vec<String>), BootError> {
        let mut remarks = Vec::new();
        let described = hardware.memory_bytes.unwrap_or(DEFAULT_MEMORY_BYTES);
        let allowed = choices.limit_bytes.map_or(described, |limit| described.min(limit));
        let wanted = choices.memory_bytes.unwrap_or(allowed);
        // A quarter stays free for the page cache, the mount and the rest of the host.
        let most = host.free_bytes / 4 * 3;
        if most < MIN_MEMORY_BYTES {
            return Err(BootError::NoMemory {
                free_bytes: host.free_bytes,
            });
        }
        let memory_bytes = wanted.clamp(MIN_MEMORY_BYTES, most) >> 20 << 20;
        if wanted > most {
            let (got, wanted) = (crate::text::size(memory_bytes), crate::text::size(wanted));
            remarks.push(format!(
                "the guest gets {got} of memory instead of {wanted}: the host has no more to spare"
            ));
        }
        if choices.memory_bytes.is_none() && allowed < described {
            let (got, described) = (crate::text::size(memory_bytes), crate::text::size(described));
            remarks.push(format!(
                "the guest gets {got} of memory instead of {described}; --memory gives it more"
            ));
        }
        let wanted = choices.cpus.or(hardware.cpus).unwrap_or(1);
        let cpus = wanted.clamp(1, host.cpus.clamp(1, MAX_CPUS));
        if wanted > cpus {
            remarks.push(format!(
                "the guest gets {cpus} processors instead of {wanted}: the host has no more"
            ));
        }
        if disks.len() > MAX_DISKS {
            remarks.push(format!(
                "only the first {MAX_DISKS} of {} disks are attached",
                disks.len()
            ));
        }
        // Disks with a place in the boot order first, then as the description lists them, then as the backup does.
        let mut found: Vec<_> = disks
            .iter()
            .take(MAX_DISKS)
            .map(|name| {
                let at = hardware.disks.iter().position(|disk| disk.target == *name);
                let order = at.and_then(|at| hardware.disks[at].order).unwrap_or(u32::MAX);
                let bus = at.and_then(|at| hardware.disks[at].bus);
                ((order, at.unwrap_or(usize::MAX)), name, bus)
            })
            .collect();
        found.sort_by_key(|(place, _, _)| *place);
        let disk = |(_, name, bus): (_, &String, Option<Bus>)| Disk {
            name: name.clone(),
            bus: choices.bus.or(bus).unwrap_or(Bus::Virtio),
        };
        let machine = Self {
            memory_bytes,
            cpus,
            family: choices.family.or(hardware.family).unwrap_or(Family::Q35),
            firmware: choices.firmware.or(hardware.firmware).unwrap_or(default_firmware),
            disks: found.into_iter().map(disk).collect(),
        };
        Ok((machine, remarks))
    }

    /// Writes the files that the machine needs into QEMU's directory. `variables` are the guest's own UEFI variables; those
    /// of another size than the template are not used. The files belong to `user`, if QEMU has one of its own.
    pub fn prepare(&self, directory: &Path, variables: Option<&[u8]>, user: Option<Account>) -> Result<(), BootError> {
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            let written = std::fs::write(&path, bytes).and_then(|()| match user {
                Some(user) => chown(&path, Some(user.uid), Some(user.gid)),
                None => Ok(()),
            });
            written.map_err(BootError::io("write", path))
        };
        match self.firmware {
            // COM1, as a little-endian number of 8 bytes (SeaBIOS, src/sercon.c and romfile_loadint).
            Firmware::Bios => write(SERIAL_PORT, &0x3f8_u64.to_le_bytes()),
            Firmware::Uefi => {
                let (_, template) = ovmf()?;
                let template = std::fs::read(template).map_err(BootError::io("read", template))?;
                let own = variables.filter(|own| own.len() == template.len());
                write(VARIABLES, own.unwrap_or(&template))
            }
        }
    }

    /// Returns the arguments of QEMU, whose working directory is the one that was prepared. The guest waits
    /// for the command `cont`.
    pub fn arguments(
        &self,
        accelerator: Accelerator,
        wishes: &Wishes,
        files: &Inherited,
    ) -> Result<Vec<String>, BootError> {
        let mut list = Vec::new();
        let mut add = |words: &[&str]| list.extend(words.iter().map(|&word| word.to_owned()));
        let family = match self.family {
            Family::Pc => "pc",
            Family::Q35 => "q35",
        };
        add(&["-nodefaults", "-no-user-config", "-name", "vbk", "-S"]);
        add(&[
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        ]);
        add(&["-machine", family, "-accel", accelerator.name()]);
        let cpu = match accelerator {
            Accelerator::Kvm => "host",
            Accelerator::Tcg => "max",
        };
        add(&["-cpu", cpu, "-smp", &self.cpus.to_string()]);
        add(&["-m", &format!("{}M", self.memory_bytes >> 20)]);
        // After a poweroff or a panic the screen can still be copied.
        let panic = if wishes.is_kept_after_end { "pause" } else { "shutdown" };
        let end = if wishes.is_kept_after_end { "pause" } else { "poweroff" };
        add(&[
            "-action",
            &format!("reboot=reset,shutdown={end},panic={panic}"),
            "-device",
            "pvpanic",
        ]);
        add(&[
            "-chardev",
            &format!("socket,id=qmp,fd={}", files.monitor),
            "-mon",
            "chardev=qmp,mode=control",
        ]);
        add(&[
            "-chardev",
            "stdio,id=console,signal=off",
            "-serial",
            "chardev:console",
            "-vga",
            "std",
        ]);
        match wishes.vnc {
            Some(display) => add(&["-vnc", &format!("127.0.0.1:{display}")]),
            None => add(&["-display", "none"]),
        }
        add(&["-device", "virtio-serial-pci"]);
        add(&["-chardev", &format!("socket,id=agent,fd={}", files.agent)]);
        add(&["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]);
        // Without it a guest under TCG waits long for randomness.
        add(&["-device", "virtio-rng-pci"]);
        match wishes.network {
            Network::None => {}
            // `restrict` keeps the guest from the host and from all other machines; it finds an address and a gateway.
            Network::User { is_restricted } => {
                let restrict = if is_restricted { "on" } else { "off" };
                add(&[
                    "-netdev",
                    &format!("user,id=net,restrict={restrict}"),
                    "-device",
                    "virtio-net-pci,netdev=net,romfile=",
                ]);
            }
        }
        match self.firmware {
            Firmware::Bios => add(&["-fw_cfg", &format!("name=etc/sercon-port,file={SERIAL_PORT}")]),
            Firmware::Uefi => {
                let (code, _) = ovmf()?;
                add(&[
                    "-drive",
                    &format!("if=pflash,unit=0,format=raw,readonly=on,file={code}"),
                ]);
                add(&["-drive", &format!("if=pflash,unit=1,format=raw,file={VARIABLES}")]);
            }
        }
        list.extend(self.disk_arguments(&files.images));
        Ok(list)
    }

    fn disk_arguments(&self, images: &[RawFd]) -> Vec<String> {
        let mut list = Vec::new();
        let mut add = |option: &str, value: String| list.extend([option.to_owned(), value]);
        let (mut virtio, mut scsi, mut ide, mut sata) = (0, 0, 0, 0);
        for (number, (disk, image)) in self.disks.iter().zip(images).enumerate() {
            let node = format!("disk{number}");
            add("-add-fd", format!("fd={image},set={number}"));
            let file = json!({"driver": "file", "filename": format!("/dev/fdset/{number}")});
            let drive = json!({"driver": "raw", "node-name": node, "discard": "unmap", "file": file});
            add("-blockdev", drive.to_string());
            let mut device = json!({"drive": node, "bootindex": number, "id": format!("drive{number}")});
            let mut set = |name: &str, value: String| device[name] = value.into();
            match disk.bus {
                Bus::Virtio if virtio < MAX_VIRTIO_DISKS => {
                    virtio += 1;
                    set("driver", "virtio-blk-pci".into());
                }
                Bus::Virtio | Bus::Scsi => {
                    if scsi == 0 {
                        add("-device", "virtio-scsi-pci,id=scsi".into());
                    }
                    scsi += 1;
                    set("driver", "scsi-hd".into());
                    set("bus", "scsi.0".into());
                }
                Bus::Ide if self.family == Family::Pc && ide < IDE_DISKS => {
                    set("driver", "ide-hd".into());
                    set("bus", format!("ide.{}", ide / 2));
                    ide += 1;
                }
                Bus::Ide | Bus::Sata => {
                    let (controller, port) = (sata / AHCI_PORTS, sata % AHCI_PORTS);
                    if port == 0 {
                        add("-device", format!("ich9-ahci,id=ahci{controller}"));
                    }
                    sata += 1;
                    set("driver", "ide-hd".into());
                    set("bus", format!("ahci{controller}.{port}"));
                }
            }
            add("-device", device.to_string());
        }
        list
    }
}

/// Numbers of the open files that QEMU inherits: there is no name that its user could not open, or that another process
/// could replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// Image of each disk.
    pub images: Vec<RawFd>,
    /// Socket for QMP.
    pub monitor: RawFd,
    /// Socket for the guest agent.
    pub agent: RawFd,
}

/// User and group of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Number of the user.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
}

/// What the caller wants from QEMU besides the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Network of the guest.
    pub network: Network,
    /// Number of a VNC display on 127.0.0.1.
    pub vnc: Option<u16>,
    /// QEMU stays after the guest's end, until it is killed.
    pub is_kept_after_end: bool,
    /// User that QEMU runs as; none for this one.
    pub user: Option<Account>,
}

/// Network of a guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// No network card.
    #[default]
    None,
    /// A network of its own, in QEMU.
    User {
        /// The guest reaches no other machine.
        is_restricted: bool,
    },
}

fn ovmf() -> Result<(&'static str, &'static str), BootError> {
    let mut known = OVMF.into_iter();
    let found = known.find(|(code, variables)| Path::new(code).exists() && Path::new(variables).exists());
    found.ok_or(BootError::NoOvmf)
}

#[cfg(test)]
mod tests;
