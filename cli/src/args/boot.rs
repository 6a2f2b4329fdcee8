//! The arguments of `vbk boot` and `vbk rehearse`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use vbk::retention::Age;
use vbk_repo::catalogue::BackupSpec;

use crate::args::parse::{parse_minutes, parse_seconds, parse_size};

/// The virtual machine.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// Controller of the disks [default: as in the libvirt XML that was backed up with the guest; virtio without one]
    #[arg(long, value_name = "BUS")]
    pub bus: Option<BusArg>,

    /// Firmware [default: as in the libvirt XML; without one, uefi if a disk has an EFI system partition and no boot code]
    #[arg(long)]
    pub firmware: Option<FirmwareArg>,

    /// Kind of the machine; QEMU's newest of that kind is used [default: as in the libvirt XML; q35 without one]
    #[arg(long)]
    pub machine: Option<FamilyArg>,

    /// Memory, e.g. 2G; at most three quarters of the host's free memory [default: as in the libvirt XML, for a rehearsal at
    /// most 4G; 1G without one]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,

    /// Processors, at most those of the host [default: as in the libvirt XML; 1 without one]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: Option<u32>,

    /// The host's processor (kvm), or a slow translation that works everywhere (tcg) [default: kvm if it works, else tcg]
    #[arg(long)]
    pub accel: Option<AccelArg>,

    /// Network: none, or user for a network of its own in which the guest finds an address, but no other machine and not this
    /// host
    #[arg(long, value_enum, default_value_t = NetworkArg::None)]
    pub network: NetworkArg,

    /// Limit of the file that takes the guest's writes, at most nine tenths of the free space [default: 8G; with --restore only
    /// that]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub scratch_size: Option<u64>,

    /// User that QEMU runs as, if vbk is root; never one that owns something, e.g. the disks of other guests [default: a number
    /// from 61184 to 65519 that no account and no other process has]
    #[arg(long, value_name = "USER", hide_short_help = true)]
    pub qemu_user: Option<String>,
}

/// Controller of disks.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum BusArg {
    Virtio,
    Scsi,
    Sata,
    Ide,
}

/// Firmware.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FirmwareArg {
    Bios,
    Uefi,
}

/// Family of machines.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum FamilyArg {
    Pc,
    Q35,
}

/// Accelerator.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AccelArg {
    Kvm,
    Tcg,
}

/// Network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NetworkArg {
    None,
    User,
}

/// Arguments of `vbk boot`.
#[derive(Debug, Args)]
#[command(after_help = BOOT_HELP)]
pub struct BootArgs {
    /// The backup
    pub backup: BackupSpec,

    #[command(flatten)]
    pub machine: MachineArgs,

    /// Show the screen by VNC, as display N of 127.0.0.1 (port 5900 + N). Every user of this host can connect
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=99))]
    pub vnc: Option<u16>,

    /// Keep the guest's writes in this new file; `vbk restore --changes FILE` restores the backup with them
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,

    /// Restore to this device or new file while the guest runs, and add the guest's writes once it is off; DISK=TARGET, for
    /// each disk, if there are several
    #[arg(long, value_name = "[DISK=]TARGET")]
    pub restore: Vec<String>,

    /// With --restore: replace an existing file, or write to a device that a program has open for writing
    #[arg(long, short, requires = "restore")]
    pub force: bool,

    /// With --restore: overwrite a device that holds another disk, if nobody uses it
    #[arg(long, requires = "restore")]
    pub overwrite: bool,

    /// Time that the guest has to power off after Ctrl-C, e.g. 90s or 2min; then it is killed. A plain number is seconds
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_seconds)]
    pub grace: Duration,
}

const BOOT_HELP: &str = "\
The guest runs from the backup at once, in QEMU; nothing is restored first. Its
writes go to a scratch file, and are gone when it ends unless --save keeps them.
The terminal is its serial console (a Linux needs console=ttyS0 for one); Ctrl-C
presses its power button, a second Ctrl-C ends it at once. It has no network
unless --network user is given. Its disks are what matters: network cards,
passed-through devices and shared directories of the libvirt XML are left out.

With --restore the disks are restored behind the running guest, slowly, so that
it is not held up. Until then its writes are in the file of --save, or in one in
/var/lib/vbk-changes: what the guest has flushed is safe there, whatever fails.
Power the guest off when the restore is complete: its writes are then added, and
it can be started from the target. If anything fails before that, vbk prints the
command that finishes it: vbk restore BACKUP TARGET --changes FILE.

Needs the packages qemu-system-x86 and, for UEFI, ovmf. Where vbk is root, each
QEMU runs as a user of its own, with the group of /dev/kvm (--qemu-user).";

/// Arguments of `vbk rehearse`.
#[derive(Debug, Args)]
#[command(after_help = REHEARSE_HELP)]
pub struct RehearseArgs {
    /// The backup
    #[arg(required_unless_present = "rotate", conflicts_with = "rotate")]
    pub backup: Option<BackupSpec>,

    /// Rehearse the newest backup of one guest: of those that were not proven bootable within this time, e.g. 30d, the one
    /// whose last rehearsal is the longest ago. Does nothing if there is none; run it every night
    #[arg(long, value_name = "AGE")]
    pub rotate: Option<Age>,

    /// Wait for this regular expression on the serial console, and take nothing else as proof
    #[arg(long, value_name = "REGEX")]
    pub expect: Option<String>,

    /// Time limit of the boot, e.g. 15min; a plain number is minutes [default: 10min, without KVM 30min]
    #[arg(long, value_name = "TIME", value_parser = parse_minutes)]
    pub timeout: Option<Duration>,

    /// Add the result to this file of metrics for Prometheus [default: that of the configuration, if it names one]
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,

    #[command(flatten)]
    pub machine: MachineArgs,
}

const REHEARSE_HELP: &str = "\
Boots the backup in QEMU as `vbk boot` does, without a network, and waits for a
proof that it is up: a login prompt on the serial console (a Linux needs
console=ttyS0 for one), an answer of the QEMU guest agent, or the pattern of
--expect. A kernel panic, emergency mode, a firmware that finds no bootable
disk, a third reset, or no proof in time: the backup did not boot (exit code 4).

The result is noted in the repository: `vbk list` and `vbk show` then say
\"proven bootable 2026-11-20\". The console and the screen of a guest's last
rehearsal are kept in /var/lib/vbk-rehearsals, as GUEST.log and GUEST.png.

Needs the packages qemu-system-x86 and, for UEFI, ovmf.";
