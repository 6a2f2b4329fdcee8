//! The kernel's tables: what is mounted, which loop devices there are, which processes run.

use std::fs;
use std::path::{Path, PathBuf};

/// A line of /proc/self/mountinfo.
#[derive(Debug, Clone)]
pub struct Mounted {
    pub point: PathBuf,
    pub options: String,
    pub fs_type: String,
    pub source: String,
}

pub fn mounts() -> Vec<Mounted> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    table.lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<Mounted> {
    let (place, what) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(4);
    let mut what = what.split(' ');
    Some(Mounted {
        point: unescape(place.next()?).into(),
        options: place.next()?.to_owned(),
        fs_type: what.next()?.to_owned(),
        source: unescape(what.next()?),
    })
}

/// The kernel writes space, tab, newline and backslash as octal numbers.
fn unescape(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let plain = |text: String, (escape, plain): &(&str, &str)| text.replace(escape, plain);
    escapes.iter().fold(text.to_owned(), plain)
}

/// What is mounted right at `point`, the topmost last.
pub fn mounts_at(point: &Path) -> Vec<Mounted> {
    mounts().into_iter().filter(|mount| mount.point == point).collect()
}

/// Mounts at or below `path`, and those made of something in it.
pub fn mounts_of(path: &Path) -> Vec<Mounted> {
    let inside = |mount: &Mounted| mount.point.starts_with(path) || Path::new(&mount.source).starts_with(path);
    mounts().into_iter().filter(inside).collect()
}

/// Loop devices whose backing file is at or below `path`, also if it was deleted.
pub fn loops_of(path: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").expect("/sys is mounted").flatten();
    let ours = devices.filter(|device| {
        let backing = fs::read_to_string(device.path().join("loop/backing_file"));
        backing.is_ok_and(|backing| Path::new(backing.trim_end()).starts_with(path))
    });
    ours.map(|device| Path::new("/dev").join(device.file_name())).collect()
}

/// Processes of vbk that were started with `path` somewhere in an argument.
pub fn processes_of(path: &Path) -> Vec<i32> {
    let path = path.to_str().expect("paths of tests are UTF-8");
    processes(|arguments| arguments.iter().any(|argument| argument.contains(path)))
}

/// Processes that vbk started itself to have the repository at `path` open for clients that come by ssh.
pub fn servers_for_ssh(path: &Path) -> Vec<i32> {
    let path = path.to_str().expect("paths of tests are UTF-8");
    processes(|arguments| {
        let has = |word: &str| arguments.contains(&word);
        has("serve") && has("--quiet") && has("--idle-exit") && has(path)
    })
}

/// Returns whether a process of any program was started with `path` somewhere in an argument.
pub fn is_named_by_a_process(path: &Path) -> bool {
    let path = path.to_str().expect("paths of tests are UTF-8");
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let mut arguments = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    arguments.any(|arguments| String::from_utf8_lossy(&arguments).contains(path))
}

/// Processes of vbk with such arguments.
fn processes(is_wanted: impl Fn(&[&str]) -> bool) -> Vec<i32> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let wanted = processes.filter_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let arguments = fs::read(process.path().join("cmdline")).ok()?;
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        let (program, arguments) = arguments.split_once('\0')?;
        let arguments: Vec<_> = arguments.split('\0').collect();
        let is_vbk = Path::new(program).file_name()? == "vbk";
        (is_vbk && is_wanted(&arguments) && !is_zombie(pid)).then_some(pid)
    });
    wanted.collect()
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

pub fn process_exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists() && !is_zombie(pid)
}

/// How many bytes a process has read so far, by any means.
pub fn bytes_read_by(pid: u32) -> Option<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let count = io.lines().find_map(|line| line.strip_prefix("rchar: "))?;
    count.trim().parse().ok()
}

/// The most memory that a process had at once.
pub fn peak_bytes_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = peak.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// All control groups, of all hierarchies.
pub fn control_groups() -> Vec<PathBuf> {
    let mut groups = vec![PathBuf::from("/sys/fs/cgroup")];
    let mut next = 0;
    while let Some(group) = groups.get(next) {
        let entries = fs::read_dir(group).into_iter().flatten().flatten();
        let inside: Vec<_> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        groups.extend(inside);
        next += 1;
    }
    groups
}
