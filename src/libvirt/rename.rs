//! Turns a guest's description into that of a second guest beside it: what must be unique gets new values, what two
//! guests can't have at once goes, and everything else stays byte for byte.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::libvirt::xml::{self, Edits, Element};
use crate::libvirt::{Domain, LibvirtError};

/// What is new about a guest that is restored under another name.
#[derive(Debug, Clone, Default)]
pub struct RenamePlan {
    /// Its name.
    pub name: String,
    /// A fresh UUID.
    pub uuid: String,
    /// Fresh MAC addresses, at least as many as it has interfaces; `52:54:00` is the prefix that QEMU's have.
    pub macs: Vec<String>,
    /// Where its disks are now, by what libvirt calls them. A disk that the guest could write to and that is not here is
    /// taken out of the description: two guests writing to one disk destroy it.
    pub disks: BTreeMap<String, NewDisk>,
    /// Where the variables of its UEFI are now; without it libvirt makes new ones from the template.
    pub nvram: Option<PathBuf>,
}

/// Where a disk was restored to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDisk {
    /// The block device or raw file.
    pub path: PathBuf,
    /// Whether it is a block device.
    pub is_block: bool,
}

/// A new description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renamed {
    /// The description, as `virsh define` takes it.
    pub xml: String,
    /// What somebody should look at before the guest starts, one sentence each.
    pub notes: Vec<String>,
}

impl Domain {
    /// The description of another guest with the same hardware.
    pub fn rewrite(xml: &str, plan: &RenamePlan) -> Result<Renamed, LibvirtError> {
        let domain = Self::parse(xml)?;
        let failed = |what| LibvirtError::Description {
            domain: domain.name.clone(),
            what,
        };
        let root = xml::parse(xml).map_err(failed)?;
        let interfaces = root.all("devices").flat_map(|devices| devices.all("interface"));
        let needed = interfaces.count();
        if plan.macs.len() < needed {
            return Err(LibvirtError::FewMacs {
                domain: domain.name,
                needed,
                given: plan.macs.len(),
            });
        }
        let mut rewriter = Rewriter {
            plan,
            old_uuid: &domain.uuid,
            edits: Edits::new(xml),
            notes: Vec::new(),
        };
        rewriter.domain(&root);
        let mut macs = plan.macs.iter();
        for device in root.all("devices").flat_map(|devices| &devices.children) {
            match device.name.as_str() {
                "disk" => rewriter.disk(device),
                "interface" => rewriter.interface(device, macs.next()),
                _ => rewriter.device(device),
            }
        }
        Ok(Renamed {
            xml: rewriter.edits.apply(),
            notes: rewriter.notes,
        })
    }
}

struct Rewriter<'a> {
    plan: &'a RenamePlan,
    old_uuid: &'a str,
    edits: Edits<'a>,
    notes: Vec<String>,
}

impl Rewriter<'_> {
    fn domain(&mut self, root: &Element) {
        // The number of a running domain.
        self.edits.remove_attribute(root, "id");
        for child in &root.children {
            match child.name.as_str() {
                "name" => self.edits.set_text(child, &self.plan.name),
                "uuid" => self.edits.set_text(child, &self.plan.uuid),
                // Tells the guest's system that it is a copy (Windows domain controllers need that); libvirt fills it.
                "genid" => self.edits.replace(child, "<genid/>"),
                "os" => self.firmware(child),
                "sysinfo" => self.sysinfo(child),
                "seclabel" => self.label(child),
                "qemu:commandline" => self.note("it passes options to QEMU, which may name what the first guest uses"),
                _ => {}
            }
        }
    }

    fn firmware(&mut self, os: &Element) {
        let Some(nvram) = os.child("nvram") else {
            return;
        };
        match (&self.plan.nvram, nvram.child("source")) {
            (Some(path), None) => self.edits.set_text(nvram, &path.to_string_lossy()),
            (Some(path), Some(source)) => {
                self.edits.set_attribute(nvram, "type", "file");
                self.edits.remove_attribute(source, "dev");
                self.edits.set_attribute(source, "file", &path.to_string_lossy());
            }
            (None, source) => {
                match source {
                    Some(_) => self.edits.remove(nvram),
                    None => self.edits.set_text(nvram, ""),
                }
                self.note("its UEFI starts with new variables: there are none in the backup");
            }
        }
    }

    /// libvirt refuses a description with two UUIDs that differ.
    fn sysinfo(&mut self, sysinfo: &Element) {
        let entries = sysinfo.all("system").flat_map(|system| system.all("entry"));
        for entry in entries.filter(|entry| entry.is("name", "uuid")) {
            if entry
                .trimmed()
                .is_some_and(|uuid| uuid.eq_ignore_ascii_case(self.old_uuid))
            {
                self.edits.set_text(entry, &self.plan.uuid);
            }
        }
    }

    /// Labels that libvirt had given by itself; it gives new ones.
    fn label(&mut self, label: &Element) {
        if label.is("type", "dynamic") {
            for child in label.all("label").chain(label.all("imagelabel")) {
                self.edits.remove(child);
            }
        }
    }

    fn disk(&mut self, disk: &Element) {
        let target = disk.child("target").and_then(|target| target.attribute("dev"));
        let target = target.unwrap_or_default();
        let Some(new) = self.plan.disks.get(target) else {
            let may_share = disk.is("device", "cdrom") || disk.child("readonly").is_some();
            if !may_share {
                self.edits.remove(disk);
                self.note(&format!(
                    "disk {target} was taken out: it is not among those that were restored"
                ));
            }
            return;
        };
        let (kind, attribute) = if new.is_block {
            ("block", "dev")
        } else {
            ("file", "file")
        };
        let path = new.path.to_string_lossy();
        let was = disk.attribute("type").unwrap_or("file");
        self.edits.set_attribute(disk, "type", kind);
        match disk.child("source") {
            Some(source) if was == kind => self.edits.set_attribute(source, attribute, &path),
            // What else is said of a file is not true of a device, and the other way round.
            Some(source) => {
                let path = quick_xml::escape::escape(path.as_ref());
                self.edits.replace(source, &format!("<source {attribute}='{path}'/>"));
            }
            None => {
                if let Some(target) = disk.child("target") {
                    let path = quick_xml::escape::escape(path.as_ref());
                    self.edits
                        .insert_before(target, &format!("<source {attribute}='{path}'/>"));
                }
            }
        }
        // What is restored is raw and has nothing behind it.
        if let Some(driver) = disk.child("driver").filter(|driver| !driver.is("type", "raw")) {
            self.edits.set_attribute(driver, "type", "raw");
        }
        if let Some(backing) = disk
            .child("backingStore")
            .filter(|backing| !backing.children.is_empty())
        {
            self.edits.remove(backing);
        }
    }

    fn interface(&mut self, interface: &Element, mac: Option<&String>) {
        let Some(new) = mac else {
            return;
        };
        match interface.child("mac") {
            Some(mac) => self.edits.set_attribute(mac, "address", new),
            None => self.edits.insert_first(interface, &format!("<mac address='{new}'/>")),
        }
        // The name of its end on the host. An unmanaged one was made by somebody who has to make the next one too.
        if let Some(target) = interface.child("target") {
            if target.is("managed", "no") {
                let name = target.attribute("dev").unwrap_or_default();
                self.note(&format!("its interface {name} on the host is that of the first guest"));
            } else if target.attributes.len() > 1 {
                self.edits.remove_attribute(target, "dev");
            } else {
                self.edits.remove(target);
            }
        }
        // What Open vSwitch knows the port by; libvirt makes a new one.
        let ports = interface.all("virtualport").flat_map(|port| port.all("parameters"));
        for parameters in ports {
            self.edits.remove_attribute(parameters, "interfaceid");
        }
        if interface.is("type", "hostdev") {
            self.note("a network device of the host is passed through to it; two guests can't have it at once");
        }
    }

    fn device(&mut self, device: &Element) {
        match device.name.as_str() {
            "graphics" => self.graphics(device),
            "channel" if device.is("type", "unix") => {
                // The socket of the guest agent: the second guest to start would take it from the first.
                if let Some(source) = device.child("source").filter(|source| source.is("mode", "bind")) {
                    self.edits.remove(source);
                }
            }
            "serial" | "console" | "parallel" | "channel" => {
                let source = device.child("source");
                let place = source.and_then(|source| source.attribute("path").or_else(|| source.attribute("service")));
                if let Some(place) = place.filter(|_| !matches!(device.attribute("type"), Some("pty" | "dev"))) {
                    self.note(&format!(
                        "its {} device uses {place}, as that of the first guest",
                        device.name
                    ));
                }
            }
            "hostdev" => self.note("a device of the host is passed through to it; two guests can't have it at once"),
            "vsock" => {
                if let Some(cid) = device.child("cid") {
                    self.edits.replace(cid, "<cid auto='yes'/>");
                }
            }
            "tpm" => self.note("its TPM starts empty: what was sealed in the first guest's can't be opened"),
            "memory"
                if device
                    .child("source")
                    .is_some_and(|source| source.child("path").is_some()) =>
            {
                self.note("its persistent memory is that of the first guest");
            }
            _ => {}
        }
    }

    /// Ports and sockets are given out by libvirt, which knows the free ones.
    fn graphics(&mut self, graphics: &Element) {
        let ports = ["port", "tlsPort", "websocket"];
        if ports
            .iter()
            .any(|port| graphics.attribute(port).is_some_and(|port| port != "-1"))
        {
            for port in ports.into_iter().filter(|port| graphics.attribute(port).is_some()) {
                self.edits.set_attribute(graphics, port, "-1");
            }
            self.edits.set_attribute(graphics, "autoport", "yes");
        }
        self.edits.remove_attribute(graphics, "socket");
        for listen in graphics.all("listen") {
            self.edits.remove_attribute(listen, "socket");
        }
    }

    fn note(&mut self, text: &str) {
        if !self.notes.iter().any(|note| note == text) {
            self.notes.push(text.to_owned());
        }
    }
}
