use super::*;

fn disk(name: &str) -> Disk {
    Disk {
        name: name.to_owned(),
        device: Arc::new(vec![0; 1 << 20]),
    }
}

#[test]
fn a_disk_that_can_not_be_opened_keeps_its_position() {
    let closed = Disk::unreadable("first".into(), 1 << 20, "a block is damaged".into());
    let found = find(&[closed, disk("second")], &Secrets::default());
    assert!(!found.is_complete);
    let [(0, error)] = &found.failed[..] else {
        panic!("{:?}", found.failed);
    };
    assert_eq!(error.to_string(), "a block is damaged");
    let [volume] = &found.volumes[..] else {
        panic!("{} volumes", found.volumes.len());
    };
    assert_eq!(volume.disks, [1]);
    for (name, is_known) in [("/dev/second", true), ("/dev/vdb", true), ("/dev/sda", false)] {
        assert_eq!(volume.names.iter().any(|it| it == name), is_known, "{name}");
    }
    assert!(find(&[disk("first"), disk("second")], &Secrets::default()).is_complete);
}
