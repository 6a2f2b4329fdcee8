use super::*;

fn visitor(name: &str, way: Way, pid: Option<u32>, sees_all: bool) -> Visitor {
    Visitor {
        name: name.into(),
        way,
        address: Some("10.0.0.1".into()),
        pid,
        sees_all,
    }
}

fn names(clients: &[ClientStatus]) -> Vec<&str> {
    clients.iter().map(|client| &*client.name).collect()
}

/// What another process would have written.
fn other_process(repository: &Path, pid: u32, clients: Vec<ClientStatus>) -> OwnFile {
    let mut file = OwnFile::create(repository).expect("creates");
    let total = clients.len() as u64;
    file.write(&Published { pid, total, clients }).expect("writes");
    file
}

fn status(name: &str, way: Way, pid: Option<u32>) -> ClientStatus {
    Counts::new(visitor(name, way, pid, false), Instant::now()).status(Instant::now())
}

#[test]
fn clients_of_all_processes_are_seen_until_they_leave() {
    let dir = tempfile::tempdir().expect("a directory");
    let registries = Registries::default();
    let one = registries.enter(dir.path(), visitor("web", Way::Tls, None, true));
    let two = registries.enter(dir.path(), visitor("db", Way::Tls, None, false));
    registries.publish();
    assert_eq!(names(&all_in(dir.path()).0), ["web", "db"]);
    let other = other_process(dir.path(), 7, vec![status("ssh", Way::Ssh, None)]);
    assert_eq!(names(&one.seen().0), ["web", "db", "ssh"]);
    assert_eq!(one.seen().1, 3);
    assert_eq!((names(&two.seen().0), two.seen().1), (vec!["db"], 1), "only itself");
    drop((one, other));
    registries.publish();
    assert_eq!(names(&all_in(dir.path()).0), ["db"]);
    drop(two);
    registries.publish();
    assert_eq!(fs::read_dir(directory_in(dir.path())).expect("lists").count(), 0);
    assert!(registries.all.lock().is_empty());
}

#[test]
fn a_killed_process_has_no_clients_and_what_it_left_is_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let killed = other_process(dir.path(), 7, vec![status("web", Way::Tls, None)]);
    let json = killed.path.clone();
    let (text, lock) = (fs::read(&json).expect("reads"), json.with_extension("lock"));
    drop(killed);
    fs::write(&json, text).expect("writes");
    fs::write(&lock, "").expect("writes");
    assert_eq!(all_in(dir.path()), (Vec::new(), 0));
    assert!(!json.exists() && !lock.exists());
    // Neither is a file that is none, or no JSON, and nothing else is touched.
    let good = other_process(dir.path(), 8, vec![status("web", Way::Tls, None)]);
    fs::write(&good.path, "{").expect("writes");
    assert_eq!(all_in(dir.path()), (Vec::new(), 0));
    assert!(good.path.exists());
}

#[test]
fn the_way_of_a_server_s_own_clients_to_the_store_is_not_a_client() {
    let dir = tempfile::tempdir().expect("a directory");
    let _ssh = other_process(dir.path(), 7, vec![status("web", Way::Ssh, None)]);
    let local = [Some(7), Some(8), Some(9)].map(|pid| status("root", Way::Local, pid));
    let _owner = other_process(dir.path(), 8, local.into());
    let (clients, total) = all_in(dir.path());
    let mut shown: Vec<_> = clients.iter().map(|client| (client.way, client.pid)).collect();
    shown.sort_by_key(|(_, pid)| *pid);
    assert_eq!(shown, [(Way::Ssh, None), (Way::Local, Some(9))]);
    assert_eq!(total, 2);
}

#[test]
fn more_clients_than_are_named_are_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let registries = Registries::default();
    let all: Vec<_> = (0..NAMED + 3)
        .map(|_| registries.enter(dir.path(), visitor("web", Way::Tls, None, true)))
        .collect();
    registries.publish();
    let (clients, total) = all_in(dir.path());
    assert_eq!((clients.len(), total), (NAMED, all.len() as u64));
}

#[test]
fn rates_are_those_of_the_last_seconds() {
    let start = Instant::now();
    let counts = Counts::new(visitor("web", Way::Tls, None, true), start);
    let mut last = 0;
    for second in 1..=20 {
        counts.asked(1_000_000);
        counts.answered();
        last = counts.status(start + Duration::from_secs(second)).received_per_second;
    }
    assert!((990_000..=1_010_000).contains(&last), "{last}");
    for second in 21..=40 {
        last = counts.status(start + Duration::from_secs(second)).received_per_second;
    }
    let status = counts.status(start + Duration::from_secs(41));
    assert_eq!((last, status.received_bytes, status.questions), (0, 20_000_000, 0));
}

#[test]
fn what_a_client_says_of_itself_is_bounded_and_harmless() {
    let counts = Counts::new(visitor("web", Way::Tls, None, true), Instant::now());
    counts.greeted(&"\u{1b}[2J".repeat(1000));
    counts.opened(1, "backup\n");
    counts.opened(2, "prune");
    let status = counts.status(Instant::now());
    assert_eq!(status.program.chars().count(), MAX_TEXT);
    assert!(!status.program.contains('\u{1b}'));
    assert_eq!(status.command.as_deref(), Some("prune"));
    counts.closed(2);
    assert_eq!(counts.status(Instant::now()).command.as_deref(), Some("backup?"));
}
