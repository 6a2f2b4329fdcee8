//! Finds and resumes devices that an lvm2 command left suspended: it was killed or failed between the two steps of a
//! change. All I/O of the guest waits for such a device, for ever.

use std::time::Duration;

use crate::host::program::{ProgramError, Programs, resume_commands};

use super::dm_name;

/// Time limit of a query to the device mapper, and of a resume.
const LIMIT: Duration = Duration::from_secs(20);
/// Number of looks. Every lvm2 change suspends devices for milliseconds, so a device found suspended each time stays
/// so.
const LOOKS: u32 = 4;
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(300);

/// Completes the result of a change of volumes in a group with the devices that it left suspended. They are resumed if
/// the command has ended and no other command works on the group.
pub(super) fn after(
    programs: &Programs,
    vg: &str,
    volumes: &[&str],
    changed: Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    let source = match changed {
        Ok(()) => return Ok(()),
        // The change was not started.
        Err(error @ (ProgramError::Missing { .. } | ProgramError::Start { .. })) => return Err(error),
        Err(error) => error,
    };
    let still_runs = matches!(source, ProgramError::StillRunning { .. });
    let bases: Vec<(&str, &str)> = volumes.iter().map(|volume| (vg, *volume)).collect();
    let devices = match lasting(programs, &bases) {
        Ok(devices) => devices,
        Err(error) => {
            tracing::warn!("can't tell whether a device of {vg} was left suspended: {error}");
            return Err(source);
        }
    };
    if devices.is_empty() {
        return Err(source);
    }
    // A report waits for the group's lock: when it returns, no change that started earlier is in progress.
    let resumed = !still_runs && super::free_space(programs, vg).is_ok() && {
        let still = lasting(programs, &bases).unwrap_or_default();
        let each: Vec<bool> = still.iter().map(|device| resume(programs, device)).collect();
        each.into_iter().all(|resumed| resumed)
    };
    Err(ProgramError::Suspended {
        source: Box::new(source),
        devices,
        resumed,
    })
}

fn resume(programs: &Programs, device: &str) -> bool {
    tracing::warn!("resuming {device}, which an lvm2 command left suspended");
    let resumed = programs.act("dmsetup", &["resume", device], LIMIT);
    resumed.inspect_err(|error| tracing::error!("{error}")).is_ok()
}

/// Reports in a sentence the suspended devices of these volumes, given as group and name; `None` if there are none.
pub(crate) fn report(programs: &Programs, volumes: &[(&str, &str)]) -> Option<String> {
    let devices = match lasting(programs, volumes) {
        Ok(devices) => devices,
        Err(error) => {
            tracing::debug!("can't tell whether a device is suspended: {error}");
            return None;
        }
    };
    (!devices.is_empty()).then(|| {
        format!(
            "{} IS SUSPENDED, SO WHAT USES IT HANGS: an lvm2 command was killed or hangs; when no lvm2 command runs \
             any more, type: {}",
            devices.join(", "),
            resume_commands(&devices)
        )
    })
}

/// Returns the devices of these volumes that stay suspended, in the order in which to resume them.
fn lasting(programs: &Programs, volumes: &[(&str, &str)]) -> Result<Vec<String>, ProgramError> {
    let mut found = suspended(programs, volumes)?;
    for _ in 1..LOOKS {
        if found.is_empty() {
            break;
        }
        std::thread::sleep(PAUSE);
        let now = suspended(programs, volumes)?;
        found.retain(|device| now.contains(device));
    }
    // Devices below others come first.
    found.sort_by_key(|device| match device {
        device if device.ends_with("-tpool") => 1,
        device if volumes.iter().any(|(vg, name)| *device == dm_name(vg, name, "")) => 2,
        _ => 0,
    });
    Ok(found)
}

fn suspended(programs: &Programs, volumes: &[(&str, &str)]) -> Result<Vec<String>, ProgramError> {
    if volumes.is_empty() {
        return Ok(Vec::new());
    }
    let args = ["info", "-c", "--noheadings", "--separator", "/", "-o", "name,suspended"];
    let answer = programs.run("dmsetup", &args, LIMIT)?;
    let all = answer.lines().filter_map(|line| line.trim().rsplit_once('/'));
    let names = all.filter(|(_, state)| *state == "Suspended").map(|(name, _)| name);
    let of_volumes = names.filter(|device| volumes.iter().any(|(vg, name)| is_of(device, vg, name)));
    Ok(of_volumes.map(str::to_owned).collect())
}

/// Tests that a device is that of a volume or one of its layers: `-real`, `-cow`, `-tpool`, `_tdata`, `_tmeta`.
fn is_of(device: &str, vg: &str, name: &str) -> bool {
    let rest = device.strip_prefix(&dm_name(vg, name, "")).filter(|_| !name.is_empty());
    rest.is_some_and(|rest| {
        matches!(rest, "" | "_tdata" | "_tmeta")
            || rest
                .strip_prefix('-')
                .is_some_and(|layer| !layer.is_empty() && !layer.starts_with('-'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_belong_to_their_volume_and_other_volumes_do_not() {
        for device in [
            "vg0-web1",
            "vg0-web1-real",
            "vg0-web1-cow",
            "vg0-web1-tpool",
            "vg0-web1_tmeta",
        ] {
            assert!(is_of(device, "vg0", "web1"), "{device}");
        }
        for device in ["vg0-web10", "vg0-web1--root", "vg0-web1_x", "vg1-web1", "vg0-web1-"] {
            assert!(!is_of(device, "vg0", "web1"), "{device}");
        }
        assert!(!is_of("vg0-", "vg0", ""));
    }
}
