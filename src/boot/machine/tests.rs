use proptest::prelude::*;

use super::*;
use crate::host::libvirt::hardware::HardDisk;

const HOST: Host = Host {
    free_bytes: 8 << 30,
    cpus: 4,
};

fn files() -> Inherited {
    Inherited {
        images: vec![10; MAX_DISKS],
        monitor: 11,
        agent: 12,
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn machine(disks: &[&str], hardware: &Hardware, choices: &Choices) -> (Machine, Vec<String>) {
    Machine::new(&names(disks), hardware, choices, Firmware::Bios, HOST).expect("fits")
}

fn arguments(machine: &Machine) -> Vec<String> {
    machine
        .arguments(Accelerator::Tcg, &Wishes::default(), &files())
        .expect("arguments")
}

#[test]
fn without_a_description_there_are_defaults() {
    let (machine, remarks) = machine(&["vda"], &Hardware::default(), &Choices::default());
    assert_eq!(remarks, Vec::<String>::new());
    assert_eq!(
        machine,
        Machine {
            memory_bytes: DEFAULT_MEMORY_BYTES,
            cpus: 1,
            family: Family::Q35,
            firmware: Firmware::Bios,
            disks: vec![Disk {
                name: "vda".to_owned(),
                bus: Bus::Virtio
            }],
        }
    );
    let line = arguments(&machine).join(" ");
    for words in [
        "-nodefaults -no-user-config",
        "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine q35 -accel tcg -cpu max -smp 1 -m 1024M",
        "-add-fd fd=10,set=0",
        "\"filename\":\"/dev/fdset/0\"",
        "\"driver\":\"virtio-blk-pci\"",
    ] {
        assert!(line.contains(words), "no {words} in {line}");
    }
    assert!(!line.contains("-netdev") && !line.contains("-vnc"), "{line}");
}

#[test]
fn memory_and_processors_are_bounded_by_the_host() {
    let hardware = Hardware {
        memory_bytes: Some(u64::MAX),
        cpus: Some(u32::MAX),
        ..Hardware::default()
    };
    let (big, remarks) = machine(&["vda"], &hardware, &Choices::default());
    assert_eq!((big.memory_bytes, big.cpus, remarks.len()), (6 << 30, 4, 2));
    let choices = Choices {
        memory_bytes: Some(1),
        cpus: Some(1),
        ..Choices::default()
    };
    let (small, remarks) = machine(&["vda"], &hardware, &choices);
    assert_eq!(
        (small.memory_bytes, small.cpus, remarks.len()),
        (MIN_MEMORY_BYTES, 1, 0)
    );
    let choices = Choices {
        limit_bytes: Some(1 << 30),
        cpus: Some(1),
        ..Choices::default()
    };
    let (limited, remarks) = machine(&["vda"], &hardware, &choices);
    assert_eq!((limited.memory_bytes, remarks.len()), (1 << 30, 1));
    let asked = Choices {
        memory_bytes: Some(2 << 30),
        ..choices
    };
    let (more, remarks) = machine(&["vda"], &hardware, &asked);
    assert_eq!((more.memory_bytes, remarks.len()), (2 << 30, 0));
    let poor = Host {
        free_bytes: 10 << 20,
        cpus: 1,
    };
    let error = Machine::new(&names(&["vda"]), &hardware, &choices, Firmware::Bios, poor);
    assert!(matches!(error, Err(BootError::NoMemory { .. })));
}

#[test]
fn disks_have_the_order_and_the_buses_of_the_description() {
    let disk = |target: &str, bus, order| HardDisk {
        target: target.to_owned(),
        bus: Some(bus),
        order,
    };
    let hardware = Hardware {
        family: Some(Family::Pc),
        disks: vec![
            disk("sda", Bus::Sata, None),
            disk("hda", Bus::Ide, Some(2)),
            disk("sdb", Bus::Scsi, Some(1)),
            disk("vdz", Bus::Virtio, None),
        ],
        ..Hardware::default()
    };
    let (found, _) = machine(&["vda", "sda", "hda", "sdb"], &hardware, &Choices::default());
    let disks: Vec<_> = found.disks.iter().map(|disk| (disk.name.as_str(), disk.bus)).collect();
    assert_eq!(
        disks,
        [
            ("sdb", Bus::Scsi),
            ("hda", Bus::Ide),
            ("sda", Bus::Sata),
            ("vda", Bus::Virtio),
        ]
    );
    let line = arguments(&found).join(" ");
    for words in [
        "virtio-scsi-pci,id=scsi",
        "\"bus\":\"ide.0\"",
        "\"bus\":\"ahci0.0\"",
        "\"bootindex\":3",
    ] {
        assert!(line.contains(words), "no {words} in {line}");
    }
    let all_sata = Choices {
        bus: Some(Bus::Sata),
        ..Choices::default()
    };
    let (found, _) = machine(&["vda", "sda"], &hardware, &all_sata);
    assert!(found.disks.iter().all(|disk| disk.bus == Bus::Sata));
}

/// What may come from a description or a backup must not become an option.
#[test]
fn hostile_text_becomes_no_option() {
    let evil = "a,file=/etc/shadow\n-netdev user\"}";
    let xml = format!(
        "<domain><memory unit='G,x'>1</memory><vcpu>2,maxcpus=9</vcpu><os firmware='efi,x'><type \
         machine='pc,accel=kvm,usb=on -netdev user,id=x'>hvm</type><loader>/etc/shadow</loader></os><devices><emulator>/bin/sh</emulator>\
         <disk><source file='/etc/shadow'/><target dev='{evil}' bus='virtio'/><boot order='1'/></disk><interface type='user'/><hostdev/>\
         <filesystem/></devices></domain>",
        evil = "a,file=/etc/shadow&#10;-netdev user&quot;}"
    );
    let hardware = Hardware::parse(&xml).expect("parses");
    let (machine, _) = machine(&[evil], &hardware, &Choices::default());
    let list = arguments(&machine);
    for words in ["shadow", "-netdev", "/bin/sh", "usb=on"] {
        assert!(!list.iter().any(|word| word.contains(words)), "{words} in {list:?}");
    }
}

#[test]
fn many_disks_get_controllers_that_have_room() {
    let all: Vec<_> = (0..100).map(|number| format!("d{number}")).collect();
    for bus in [Bus::Virtio, Bus::Scsi, Bus::Sata, Bus::Ide] {
        let choices = Choices {
            bus: Some(bus),
            family: Some(Family::Pc),
            ..Choices::default()
        };
        let (machine, remarks) =
            Machine::new(&all, &Hardware::default(), &choices, Firmware::Bios, HOST).expect("fits");
        assert_eq!((machine.disks.len(), remarks.len()), (MAX_DISKS, 1));
        let list = arguments(&machine);
        let devices = list.iter().filter(|word| word.contains("\"drive\":"));
        let places: std::collections::HashSet<_> = devices
            .map(|word| {
                let device: serde_json::Value = serde_json::from_str(word).expect("is JSON");
                (device["bus"].to_string(), device["bootindex"].to_string())
            })
            .collect();
        assert_eq!(places.len(), MAX_DISKS, "{bus:?}");
    }
}

#[test]
fn a_network_and_a_screen_are_there_only_when_told() {
    let (machine, _) = machine(&["vda"], &Hardware::default(), &Choices::default());
    let wishes = Wishes {
        network: Network::User { is_restricted: true },
        vnc: Some(7),
        is_kept_after_end: true,
        user: None,
    };
    let line = machine
        .arguments(Accelerator::Kvm, &wishes, &files())
        .expect("arguments")
        .join(" ");
    for words in [
        "-netdev user,id=net,restrict=on",
        "-vnc 127.0.0.1:7",
        "-accel kvm -cpu host",
        "shutdown=pause",
    ] {
        assert!(line.contains(words), "no {words} in {line}");
    }
}

/// Entry for a fuzzer: a description and the names of disks become a command line without a panic, and with all disks.
fn fuzz(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(hardware) = Hardware::parse(&text) else {
        return;
    };
    let disks: Vec<_> = hardware.disks.iter().map(|disk| disk.target.clone()).collect();
    let made = Machine::new(&disks, &hardware, &Choices::default(), Firmware::Bios, HOST);
    let (mut machine, _) = made.expect("the host has enough memory");
    // OVMF is not installed everywhere.
    machine.firmware = Firmware::Bios;
    let list = arguments(&machine);
    let images = list.iter().filter(|word| word.contains("/dev/fdset/"));
    assert_eq!(images.count(), machine.disks.len());
}

const SAMPLE: &[u8] = include_bytes!("../../host/libvirt/samples/web1.xml");

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_descriptions_make_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        fuzz(&bytes);
    }

    #[test]
    fn mutated_descriptions_make_no_panic(
        changes in proptest::collection::vec((0..SAMPLE.len(), prop_oneof![Just(b','), Just(b'9'), Just(b'\n'), 32..127_u8]), 0..6),
    ) {
        let mut bytes = SAMPLE.to_vec();
        for (place, byte) in changes {
            bytes[place] = byte;
        }
        fuzz(&bytes);
    }
}
