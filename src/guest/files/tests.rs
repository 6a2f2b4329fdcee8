use super::*;

fn volume(lv: &str) -> VolumeInfo {
    VolumeInfo {
        vg: "vg0".into(),
        lv: lv.into(),
        uuid: "abcdef-0123".into(),
        size_bytes: 4 << 20,
        segtype: "thin".into(),
        stripes: 1,
        pool: Some("pool0".into()),
        tags: vec!["prod".into()],
    }
}

fn disks(lv: &str) -> Disks {
    Disks {
        format: 1,
        disks: vec![DiskInfo {
            name: "vda".parse().expect("a name"),
            source: "/dev/vg0/web1-root".into(),
            size_bytes: 4 << 20,
            kind: DiskKind::LvmThin,
            volume: Some(volume(lv)),
        }],
    }
}

fn image(source: &str) -> Image {
    serde_json::from_value(serde_json::json!({
        "disk": "vda", "source": source, "size_bytes": 1, "manifest": "00".repeat(32),
        "data_bytes": 0, "new_bytes": 0, "stored_bytes": 0
    }))
    .expect("an image")
}

#[test]
fn a_stored_guest_file_is_read_back() {
    let (name, bytes) = disks("web1-root").to_file();
    assert_eq!(name.as_str(), DISKS_NAME);
    assert_eq!(Disks::parse(&bytes).expect("parses"), disks("web1-root"));
    let json: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    assert_eq!(json["disks"][0]["kind"], "lvm-thin");
}

#[test]
fn names_reserved_by_lvm_are_refused() {
    for bad in [
        "-f",
        "--yes",
        "",
        ".",
        "..",
        "a b",
        "a/b",
        "a;b",
        "ä",
        "a\n",
        "x_tmeta",
        "snapshot",
        &"x".repeat(128),
    ] {
        let stored = serde_json::to_vec(&disks(bad)).expect("JSON");
        let refused = Disks::parse(&stored);
        assert!(matches!(refused, Err(GuestFilesError::Name(_))), "{bad:?}");
    }
    for (field, value) in [("vg", "-x"), ("pool", "--force")] {
        let mut stored = serde_json::to_value(disks("web1-root")).expect("JSON");
        stored["disks"][0]["volume"][field] = value.into();
        assert!(Disks::parse(stored.to_string().as_bytes()).is_err(), "{field}");
    }
    for good in ["web1-root", "a", "lvol0", "a+b_c.d"] {
        names::check_volume(good).expect(good);
    }
    let mut newer = disks("a");
    newer.format = 2;
    for bad in [
        serde_json::to_vec(&newer).expect("JSON"),
        b"{}".to_vec(),
        b"\xFF".to_vec(),
    ] {
        assert!(matches!(Disks::parse(&bad), Err(GuestFilesError::Bad(_))));
    }
}

#[test]
fn a_volume_is_named_by_its_description_or_its_path() {
    let name = |source, disks: Option<Disks>| volume_name_of(&image(source), disks.as_ref());
    assert_eq!(name("/dev/x", Some(disks("web1-root"))), Some("web1-root".into()));
    assert_eq!(name("/dev/vg0/web1", None), Some("web1".into()));
    for other in ["/dev/sda", "/dev/mapper/vg0-web1", "/dev/disk/by-id/x", "/srv/web1.img"] {
        assert_eq!(name(other, None), None, "{other}");
    }
}
