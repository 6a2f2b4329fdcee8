//! The virtual hardware that a domain's description asks for, as far as a boot needs it: sizes and kinds, never a path, a
//! device, a network or an option of the host. Format: <https://libvirt.org/formatdomain.html>.

use crate::host::libvirt::LibvirtError;
use crate::host::libvirt::xml::{self, Element};

/// Hardware of a guest. Every field is a number or one of a few kinds, so nothing of the description's text reaches QEMU,
/// except the names of disks, which are only compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hardware {
    /// Memory.
    pub memory_bytes: Option<u64>,
    /// Number of virtual processors.
    pub cpus: Option<u32>,
    /// Family of the machine.
    pub family: Option<Family>,
    /// Firmware.
    pub firmware: Option<Firmware>,
    /// Disks in the order of the description.
    pub disks: Vec<HardDisk>,
}

/// Family of machines; QEMU's newest of the family is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// i440FX: `pc`.
    Pc,
    /// Q35.
    Q35,
}

/// Firmware of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF, without Secure Boot.
    Uefi,
}

/// Controller that a disk is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk.
    Virtio,
    /// virtio-scsi.
    Scsi,
    /// AHCI.
    Sata,
    /// PIIX; AHCI on Q35, which has no other.
    Ide,
}

/// A hard disk of the description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HardDisk {
    /// Name in libvirt: `vda`. Any text.
    pub target: String,
    /// Its controller.
    pub bus: Option<Bus>,
    /// Position in the boot order.
    pub order: Option<u32>,
}

impl Hardware {
    /// Parses a description as it was kept with a backup. Fails if the guest's processor is not an x86.
    pub fn parse(xml: &str) -> Result<Self, LibvirtError> {
        let failed = |what: String| LibvirtError::Description {
            domain: "the guest".to_owned(),
            what,
        };
        let document = xml::parse(xml).map_err(failed)?;
        let root = Element::root(&document);
        if !root.is_named("domain") {
            return Err(failed(format!("it is a <{}>", root.name())));
        }
        let os = root.child("os");
        let kind = os.and_then(|os| os.child("type"));
        match kind.and_then(|kind| kind.attribute("arch")) {
            None | Some("x86_64" | "i686") => {}
            Some(arch) => return Err(failed(format!("its processor is {arch:.40}; only x86 can be booted"))),
        }
        let machine = kind.and_then(|kind| kind.attribute("machine"));
        let vcpu = root.child("vcpu").and_then(Element::trimmed);
        Ok(Self {
            memory_bytes: root.child("memory").and_then(memory),
            cpus: vcpu.and_then(|count| count.parse().ok()).filter(|&count| count > 0),
            family: machine.map(|machine| match machine.contains("q35") {
                true => Family::Q35,
                false => Family::Pc,
            }),
            firmware: os.map(firmware),
            disks: root.all("devices/disk").into_iter().filter_map(disk).collect(),
        })
    }
}

/// Returns the size in an element such as `<memory unit='MiB'>512</memory>`. Without a unit it is KiB.
fn memory(element: Element<'_>) -> Option<u64> {
    let factor = match element.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1_u64 << 40,
        _ => return None,
    };
    let count: u64 = element.trimmed()?.parse().ok()?;
    count.checked_mul(factor)
}

fn firmware(os: Element<'_>) -> Firmware {
    let is_uefi = os.is("firmware", "efi")
        || os.child("nvram").is_some()
        || os.child("loader").is_some_and(|loader| loader.is("type", "pflash"));
    match is_uefi {
        true => Firmware::Uefi,
        false => Firmware::Bios,
    }
}

fn disk(disk: Element<'_>) -> Option<HardDisk> {
    if !matches!(disk.attribute("device"), None | Some("disk" | "lun")) {
        return None;
    }
    let target = disk.child("target")?;
    let order = disk.child("boot").and_then(|boot| boot.attribute("order"));
    Some(HardDisk {
        target: target.attribute("dev")?.to_owned(),
        bus: match target.attribute("bus") {
            Some("virtio") => Some(Bus::Virtio),
            Some("scsi") => Some(Bus::Scsi),
            Some("sata") => Some(Bus::Sata),
            Some("ide") => Some(Bus::Ide),
            _ => None,
        },
        order: order.and_then(|order| order.parse().ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(inside: &str) -> Hardware {
        Hardware::parse(&format!("<domain>{inside}</domain>")).expect("parses")
    }

    #[test]
    fn hardware_is_read_from_a_description_of_libvirt() {
        let hardware = Hardware::parse(include_str!("samples/web1.xml")).expect("parses");
        let disk = hardware.disks.first().expect("a disk");
        assert_eq!((disk.target.as_str(), disk.bus), ("vda", Some(Bus::Virtio)));
        assert!(
            hardware.disks.iter().all(|disk| disk.target != "sda"),
            "a CD drive is no hard disk"
        );
        assert_eq!(
            (hardware.memory_bytes, hardware.cpus, hardware.family, hardware.firmware),
            (Some(4 << 30), Some(2), Some(Family::Q35), Some(Firmware::Uefi))
        );
    }

    #[test]
    fn sizes_have_units_and_absurd_ones_are_left_out() {
        for (text, bytes) in [
            ("<memory>1048576</memory>", Some(1 << 30)),
            ("<memory unit='MiB'> 512 </memory>", Some(512 << 20)),
            ("<memory unit='bytes'>5</memory>", Some(5)),
            ("<memory unit='TiB'>99999999999999</memory>", None),
            ("<memory>-1</memory>", None),
            ("<memory>1,file=/etc/shadow</memory>", None),
            ("<memory unit='G,x=y'>1</memory>", None),
            ("", None),
        ] {
            assert_eq!(parse(text).memory_bytes, bytes, "{text}");
        }
        for (text, cpus) in [
            ("4", Some(4)),
            ("0", None),
            ("4,sockets=9", None),
            ("99999999999", None),
        ] {
            assert_eq!(parse(&format!("<vcpu>{text}</vcpu>")).cpus, cpus, "{text}");
        }
    }

    #[test]
    fn firmware_buses_and_order_are_kinds_and_never_text() {
        let os = |text: &str| {
            parse(&format!(
                "<os>{text}<type machine='pc-i440fx-7.2,accel=x'>hvm</type></os>"
            ))
        };
        assert_eq!(
            (os("").firmware, os("").family),
            (Some(Firmware::Bios), Some(Family::Pc))
        );
        assert_eq!(
            os("<loader type='pflash'>/etc/shadow</loader>").firmware,
            Some(Firmware::Uefi)
        );
        let disks = parse(
            "<devices><disk><target dev='a,b&#10;' bus='virtio,x=y'/><boot order='2,1'/></disk><disk><target dev='sda' \
             bus='scsi'/><boot order='1'/></disk><disk device='floppy'><target dev='fda'/></disk><disk/></devices>",
        );
        let found: Vec<_> = disks
            .disks
            .iter()
            .map(|disk| (disk.target.as_str(), disk.bus, disk.order))
            .collect();
        assert_eq!(found, [("a,b\n", None, None), ("sda", Some(Bus::Scsi), Some(1))]);
    }

    #[test]
    fn other_processors_and_other_documents_are_refused() {
        for xml in [
            "<network/>",
            "<domain><os><type arch='aarch64'>hvm</type></os></domain>",
            "<domain>",
            "",
        ] {
            assert!(Hardware::parse(xml).is_err(), "{xml}");
        }
    }
}
