//! Names of partition types. The GUIDs are those of the Discoverable Partitions Specification (uapi-group.org), of UEFI and of
//! Microsoft's documentation of `PARTITION_INFORMATION_GPT`.

/// Types by the text in which they are shown otherwise.
const NAMES: [(&str, &str); 24] = [
    ("GPT type C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "EFI system"),
    ("GPT type 21686148-6449-6E6F-744E-656564454649", "BIOS boot"),
    ("GPT type BC13C2FF-59E6-4262-A352-B275FD6F7172", "Linux boot"),
    ("GPT type 0FC63DAF-8483-4772-8E79-3D69D8477DE4", "Linux filesystem"),
    ("GPT type 4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "Linux root (x86-64)"),
    ("GPT type B921B045-1DF0-41C3-AF44-4C6F280D3FAE", "Linux root (ARM64)"),
    ("GPT type 933AC7E1-2EB4-4F13-B844-0E14E2AEF915", "Linux home"),
    ("GPT type 0657FD6D-A4AB-43C4-84E5-0933C84B4F4F", "Linux swap"),
    ("GPT type E6D6D379-F507-44C2-A23C-238F2A3DF928", "Linux LVM"),
    ("GPT type A19D880F-05FC-4D3B-A006-743F0F84911E", "Linux RAID"),
    ("GPT type CA7D7CCB-63ED-4C53-861C-1742536059CC", "LUKS"),
    ("GPT type EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "Windows data"),
    ("GPT type E3C9E316-0B5C-4DB8-817D-F92DF00215AE", "Windows reserved"),
    ("GPT type DE94BBA4-06D1-4D40-A16A-BFD50179D6AC", "Windows recovery"),
    ("MBR type 0x05", "extended"),
    ("MBR type 0x07", "NTFS or exFAT"),
    ("MBR type 0x0b", "FAT32"),
    ("MBR type 0x0c", "FAT32"),
    ("MBR type 0x0f", "extended"),
    ("MBR type 0x82", "Linux swap"),
    ("MBR type 0x83", "Linux"),
    ("MBR type 0x8e", "Linux LVM"),
    ("MBR type 0xef", "EFI system"),
    ("MBR type 0xfd", "Linux RAID"),
];

/// Returns the name of a type, which is given as `GPT type ...` or `MBR type ...`.
pub fn name(kind: &str) -> Option<&'static str> {
    let found = NAMES.iter().find(|(known, _)| *known == kind);
    found.map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use vbk_inside::partition::PartitionKind;

    use super::*;

    #[test]
    fn a_type_is_named_as_the_reader_of_the_table_writes_it() {
        // As on the disk: the first three fields are little-endian.
        let linux = PartitionKind::Gpt([
            0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
        ]);
        assert_eq!(name(&linux.to_string()), Some("Linux filesystem"));
        assert_eq!(name(&PartitionKind::Mbr(0x83).to_string()), Some("Linux"));
        assert_eq!(name(&PartitionKind::Mbr(0x42).to_string()), None);
    }
}
