//! What lvm2 and kept bases could do to guests and pools.

use vbk_repo::ErrorKind;

use super::super::*;
use super::MIB;
use super::fake::{Fake, HOST, names};
use crate::host::lvm::Volume;

/// Makes a snapshot as a run does, with more tags.
fn snapshot(fake: &Fake, name: &str, of: &str, tags: &str) {
    let mut args = vec!["-s", "-kn", "-l", "2", "-n", name];
    tags.split(' ').for_each(|tag| args.extend(["--addtag", tag]));
    args.push(of);
    let made = fake.programs.act("lvcreate", &args, std::time::Duration::from_secs(60));
    made.expect("makes");
}

#[test]
fn an_origin_left_suspended_is_resumed_and_reported() {
    let fake = Fake::new();
    let path = fake.volume("vg0/web1-root", "40M");
    fake.volume("vg0/web1", "40M");
    let plan = fake.plan(&[("vda", &path)]).expect("plans");
    // As when lvcreate is killed between its two steps; the other volume is none of ours.
    fake.fault("lvcreate", "fail killed in the midst");
    fake.set("vg0/web1-root", "suspended", "true");
    fake.set("vg0/web1", "suspended", "true");
    let error = plan.take(&fake.run(), &()).expect_err("fails");
    let text = error.to_string();
    for part in ["killed in the midst", "left vg0-web1--root suspended, resumed now"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let is_suspended = |name: &str| fake.fake(&["get", name]).contains("\"suspended\": true");
    assert!(!is_suspended("vg0/web1-root") && is_suspended("vg0/web1"));
}

#[test]
fn an_origin_that_cannot_be_resumed_is_reported_with_the_command() {
    let fake = Fake::new();
    let path = fake.volume("vg0/x", "40M");
    let plan = fake.plan(&[("vda", &path)]).expect("plans");
    fake.fault("lvcreate", "fail killed");
    fake.set("vg0/x", "suspended", "true");
    // Whether another lvm2 command is at work can't be asked.
    fake.fault("vgs", "fail busy");
    let text = plan.take(&fake.run(), &()).expect_err("fails").to_string();
    assert!(
        text.contains("LEFT vg0-x SUSPENDED") && text.contains("type: dmsetup resume vg0-x"),
        "{text}"
    );
}

#[test]
fn a_cleaning_reports_a_suspended_origin() {
    let fake = Fake::new();
    fake.volume("vg0/x", "40M");
    snapshot(
        &fake,
        "vbk-x",
        "vg0/x",
        &format!("vbk vbk_host_{HOST} vbk_run_0123456789ab"),
    );
    fake.set("vg0/x", "suspended", "true");
    let cleaned = clean(&fake.programs, fake.directories(), false).expect("cleans");
    let told = cleaned.suspended.expect("is told");
    assert!(
        told.contains("vg0-x IS SUSPENDED") && told.contains("dmsetup resume vg0-x"),
        "{told}"
    );
    assert_eq!(cleaned.removed, ["vg0/vbk-x"]);
    assert_eq!(
        clean(&fake.programs, fake.directories(), false)
            .expect("cleans")
            .suspended,
        None
    );
}

#[test]
fn only_our_bases_in_a_nearly_full_pool_are_removed() {
    let fake = Fake::new();
    fake.thin_volume("vg0/db", "200M");
    snapshot(
        &fake,
        "vbk-base",
        "vg0/db",
        &format!("vbk vbk_host_{HOST} vbk_base vbk_backup_1"),
    );
    snapshot(&fake, "vbk-other", "vg0/db", "vbk vbk_host_other vbk_base vbk_backup_1");
    snapshot(&fake, "mine", "vg0/db", "precious");
    fake.set("vg0/pool", "data_used", 85 * MIB);
    let give_up = |above, pool| {
        give_up(&fake.programs, fake.directories(), above, pool)
            .expect("looks")
            .removed
    };
    assert_eq!(give_up(0.9, None), [""; 0]);
    assert_eq!(give_up(0.8, Some("vg0/another")), [""; 0]);
    assert_eq!(give_up(0.8, None), ["vg0/vbk-base"]);
    assert_eq!(names(&fake), ["vg0/db", "vg0/mine", "vg0/pool", "vg0/vbk-other"]);
    // The metadata can be full too.
    snapshot(
        &fake,
        "vbk-base",
        "vg0/db",
        &format!("vbk vbk_host_{HOST} vbk_base vbk_backup_1"),
    );
    fake.set("vg0/pool", "data_used", 0);
    fake.set("vg0/pool", "meta_used", 4_000_000);
    assert_eq!(give_up(0.9, Some("vg0/pool")), ["vg0/vbk-base"]);
}

#[test]
fn a_volume_whose_tags_or_uuid_changed_at_the_last_moment_is_not_removed() {
    let fake = Fake::new();
    fake.volume("vg0/x", "40M");
    snapshot(&fake, "vbk-x", "vg0/x", "vbk vbk_run_0123456789ab");
    let volume = lvm::volume(&fake.programs, "vg0", "vbk-x")
        .expect("answers")
        .expect("is there");
    let remove = |volume: &Volume, tag| lvm::remove(&fake.programs, volume, &["vbk", tag]).expect("does nothing");
    remove(&volume, "vbk_base");
    let mut other = volume.clone();
    other.uuid = "another".to_owned();
    remove(&other, "vbk_run_0123456789ab");
    assert!(fake.is_there("vg0/vbk-x"));
    remove(&volume, "vbk_run_0123456789ab");
    assert!(!fake.is_there("vg0/vbk-x"));
}
