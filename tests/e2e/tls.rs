//! Repositories on another host without ssh: `vbk serve --listen`, tokens, and `vbk://` addresses.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::damage::Place;
use crate::support::bytes::{MIB, assert_same, noise_bytes, write_at, write_noise};
use crate::support::kernel::peak_bytes_of;
use crate::support::lab::{Lab, Remote, VBK, str_of, u64_of};
use crate::support::remote::{disk, main_job};
use crate::support::run::Running;
use crate::support::tools::wait_until;

/// A server of this test.
pub struct Server {
    running: Option<Running>,
    port: u16,
}

impl Server {
    /// Serves the lab's repository.
    pub fn start(lab: &Lab) -> Self {
        Self::of(lab, args![lab.repo()])
    }

    fn of(lab: &Lab, what: Vec<OsString>) -> Self {
        // Free a moment ago; the test fails if another process was faster.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .expect("a port")
            .port();
        Self::at(lab, what, port)
    }

    pub fn at(lab: &Lab, what: Vec<OsString>, port: u16) -> Self {
        let mut all = args!["serve", "--listen", format!("127.0.0.1:{port}")];
        all.extend(what);
        // It would refuse what another server has open.
        lab.end_server();
        let mut running = lab.start_bare(all);
        running.wait_until_prints("fingerprint");
        Self {
            running: Some(running),
            port,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes a token for a repository in a file.
    pub fn token(&self, lab: &Lab, repository: &Path, name: &str, more: Vec<OsString>) -> PathBuf {
        let file = lab.path(&format!("{name}.token"));
        let host = format!("127.0.0.1:{}", self.port);
        let mut all = args![
            "--repo", repository, "token", "add", name, "--host", host, "--out", file
        ];
        all.extend(more);
        lab.start_bare(all).wait().done();
        file
    }

    pub fn way(&self, token: &Path, repository: &str) -> Remote {
        Remote {
            address: format!("vbk://127.0.0.1:{}{repository}", self.port),
            rsh: "false".into(),
            token: Some(token.to_owned()),
        }
    }

    /// Makes the lab use its repository with a new token.
    pub fn use_with(&self, lab: &mut Lab, name: &str, more: Vec<OsString>) -> PathBuf {
        let token = self.token(lab, lab.repo(), name, more);
        lab.use_remote(self.way(&token, ""));
        token
    }

    /// Ends it as a power cut does.
    pub fn kill(mut self) {
        let running = self.running.take().expect("runs");
        running.signal(Signal::SIGKILL);
        running.wait();
    }

    /// Ends it as systemd does.
    fn stop(mut self) {
        let running = self.running.take().expect("runs");
        running.signal(Signal::SIGTERM);
        // A panic in one client's task would be said on stderr and nowhere else.
        running.wait().done();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.signal(Signal::SIGTERM);
            let said = running.wait();
            if !std::thread::panicking() {
                said.done();
            }
        }
    }
}

#[test]
fn a_server_starts_beside_the_process_that_has_the_repository_open_and_follows_it() {
    let mut lab = Lab::new();
    // As the first client over ssh starts it.
    let mut first = lab.start_bare(args!["serve", lab.repo(), "--idle-exit", "600s"]);
    first.wait_until_prints("is open for all commands");
    let server = Server::start(&lab);
    let _token = server.use_with(&mut lab, "all", args!["--rights", "manage"]);
    let disk = disk(&lab);
    lab.backup("web1", &disk);
    // Its clients are asked again by the next one, with nothing lost.
    first.signal(Signal::SIGTERM);
    first.wait().done();
    let socket = lab.repo().join("serve.sock");
    assert!(wait_until(Duration::from_secs(60), || socket.exists()));
    lab.backup("web1", &disk);
    assert_eq!(lab.listed().len(), 2);
    // A local command finds it there.
    lab.start_bare(args!["--repo", lab.repo(), "backup", "web2", disk])
        .wait()
        .done();
    server.stop();
    assert!(!socket.exists());
}

#[test]
fn every_command_works_with_a_repository_behind_tls() {
    let mut lab = Lab::new();
    let server = Server::start(&lab);
    // The main job frees what it forgot.
    lab.ok(args!["policy", "--bin", "0"]);
    server.use_with(&mut lab, "all", args!["--rights", "manage"]);
    // The process of its mount in the background has the token too.
    main_job(&lab);
    // They need the files of the repository.
    lab.run(args!["repair"])
        .code(2)
        .says(&["vbk://127.0.0.1", "`vbk repair DIR`, where DIR is"]);
    lab.ok(args!["verify", "--without-key"]);
    lab.run(args!["init"])
        .code(2)
        .says(&["is made there", "vbk init ssh://127.0.0.1/"]);
    lab.run(args!["token", "list"]).code(2).says(&["made there"]);
    server.stop();
    lab.run(args!["list"])
        .code(1)
        .says(&["vbk://127.0.0.1", "can't connect"]);
}

#[test]
fn a_token_for_backups_makes_them_and_can_do_nothing_else() {
    for is_encrypted in [false, true] {
        let mut lab = Lab::without_repo();
        let key = lab.path("key");
        let keyed = match is_encrypted {
            true => args!["--key-file", key],
            false => args![],
        };
        let with_key = |more: Vec<OsString>| keyed.iter().cloned().chain(more).collect::<Vec<_>>();
        match is_encrypted {
            true => lab.ok(with_key(args!["init", "--encrypt", "--no-recovery-key"])),
            false => lab.ok(args!["init"]),
        };
        let server = Server::start(&lab);
        server.use_with(&mut lab, "web", args![]);
        let disk = disk(&lab);
        let config = lab.path("guest.xml");
        fs::write(&config, "<domain/>").expect("writes");
        let attached = format!("guest.xml={}", config.display());
        let backup = || with_key(args!["backup", "web1", disk, "--attach", attached]);
        lab.ok(backup());
        write_at(&disk, 5 * MIB, &noise_bytes(2, MIB));
        let second = lab.json(backup());
        assert!(u64_of(&second, "new_bytes") <= 2 * MIB, "{second}");
        lab.ok(with_key(args!["list"]));
        lab.ok(with_key(args!["show", "web1@latest"]));
        for command in [
            args!["forget", "web1@latest"],
            args!["prune"],
            args!["protect", "web1@latest"],
            args!["restore", "web1@latest", lab.path("restored.img")],
            args!["stats"],
        ] {
            let said = lab.run(with_key(command));
            assert_ne!(said.status.code(), Some(0), "{said}");
            said.says(&["this client"]);
        }
        // Nothing happened to what is there.
        server.use_with(&mut lab, "all", args!["--rights", "manage"]);
        let restored = lab.path("again.img");
        lab.ok(with_key(args!["verify"]));
        lab.ok(with_key(args!["restore", "web1@latest", restored]));
        assert_same(&disk, &restored);
    }
}

#[test]
fn a_server_tells_who_is_connected_and_who_was_and_other_clients_only_themselves() {
    let mut lab = Lab::new();
    let server = Server::start(&lab);
    let all = server.token(&lab, lab.repo(), "all", args!["--rights", "manage"]);
    server.token(&lab, lab.repo(), "never", args![]);
    let web = server.use_with(&mut lab, "web", args![]);
    write_noise(&lab.path("large.img"), 3, 256 * MIB);
    let backup = args![
        "--connections",
        "1",
        "backup",
        "web1",
        lab.path("large.img"),
        "--compression",
        "none"
    ];
    let mut writer = lab.start(backup);
    assert!(writer.wait_until_read(48 * MIB), "the backup ended early");
    writer.signal(Signal::SIGSTOP);
    let names = |status: &serde_json::Value| -> Vec<String> {
        let clients = status["clients"].as_array().expect("an array").iter();
        clients.map(|client| str_of(client, "name").to_owned()).collect()
    };
    let told = lab.json(args!["status"]);
    assert_eq!(names(&told), ["web", "web"], "{told}");
    assert!(
        told["views"].is_null() && told["tokens"] == serde_json::json!([]),
        "{told}"
    );
    assert!(
        u64_of(&told, "used_bytes") > 0 && u64_of(&told, "free_bytes") > 0,
        "{told}"
    );
    lab.use_remote(server.way(&all, ""));
    let told = lab.json(args!["status"]);
    assert_eq!(names(&told), ["web", "all"], "{told}");
    let client = &told["clients"][0];
    assert_eq!(
        (str_of(client, "way"), str_of(client, "command")),
        ("tls".into(), "backup web1".into()),
        "{told}"
    );
    assert!(
        u64_of(client, "received_bytes") > 0 && told["writer"].is_object(),
        "{told}"
    );
    lab.run(args!["status"])
        .done()
        .tells(&["web", "tls 127.0.0.1", "backup", "never"]);
    // The same on the server itself, whose own way to the store is no client.
    let local = || {
        let said = lab.start_bare(args!["--repo", lab.repo(), "--json", "status"]).wait();
        serde_json::from_slice::<serde_json::Value>(&said.stdout).expect("JSON")
    };
    assert!(
        wait_until(Duration::from_secs(20), || names(&local()) == ["web"]),
        "{}",
        local()
    );
    writer.signal(Signal::SIGCONT);
    writer.wait().done();
    assert!(
        wait_until(Duration::from_secs(20), || names(&local()).is_empty()),
        "{}",
        local()
    );
    let token = &local()["tokens"][2];
    assert_eq!(
        (str_of(token, "name"), str_of(token, "last_address")),
        ("web".into(), "127.0.0.1".into())
    );
    assert!(
        token["is_connected"] == false && token["last_seen"].is_string(),
        "{token}"
    );
    assert!(local()["tokens"][1]["last_seen"].is_null());
    fs::remove_file(web).expect("is there");
    lab.start_bare(args!["--repo", lab.repo(), "status"])
        .wait()
        .done()
        .tells(&["TOKEN", "127.0.0.1"]);
}

#[test]
fn a_token_for_some_guests_shows_and_takes_those_alone() {
    let mut lab = Lab::new();
    let server = Server::start(&lab);
    server.use_with(&mut lab, "all", args!["--rights", "manage"]);
    let disk = disk(&lab);
    lab.backup("db1", &disk);
    server.use_with(&mut lab, "web", args!["--rights", "manage", "--guests", "web*"]);
    assert_eq!(lab.listed(), [""; 0]);
    let made = lab.backup("web1", &disk);
    assert_eq!(lab.listed(), [str_of(&made, "backup")]);
    lab.run(args!["backup", "db1", disk]).code(1).says(&["web*", "db1"]);
    lab.run(args!["prune"]).code(1).says(&["does not let this client"]);
    lab.ok(args!["restore", "web1@latest", lab.path("restored.img")]);
    lab.ok(args!["forget", "web1", "--keep-last", "1"]);

    let sealed = lab.path("sealed");
    let key = lab.path("key");
    lab.start_bare(args![
        "--key-file",
        key,
        "init",
        sealed,
        "--encrypt",
        "--no-recovery-key"
    ])
    .wait()
    .done();
    lab.start_bare(args!["--repo", sealed, "token", "add", "web", "--guests", "web*"])
        .wait()
        .code(2)
        .says(&["encrypted", "--root"]);
}

#[test]
fn tokens_are_made_listed_replaced_and_revoked() {
    let mut lab = Lab::new();
    let server = Server::start(&lab);
    let repo = lab.repo().to_owned();
    let token = |more: Vec<OsString>| {
        let mut all = args!["--repo", repo, "token"];
        all.extend(more);
        all
    };
    let file = server.use_with(&mut lab, "web", args!["--guests", "web*"]);
    assert_eq!(
        fs::metadata(&file).expect("is there").permissions().mode() & 0o777,
        0o600
    );
    lab.ok(args!["list"]);
    let listed = lab.start_bare(token(args!["list", "--json"])).wait().done().json();
    let entry = &listed["tokens"][0];
    assert_eq!(
        (str_of(entry, "name"), str_of(entry, "rights")),
        ("web".into(), "backup".into())
    );
    assert!(
        entry["last_seen"].is_string() && entry["guests"][0] == "web*",
        "{entry}"
    );
    lab.start_bare(token(args!["list"]))
        .wait()
        .done()
        .tells(&["web", "backup", "web*"]);
    // A second one of the name leaves no file.
    let other = lab.path("other");
    let again = args!["add", "web", "--host", "127.0.0.1", "--out", other];
    lab.start_bare(token(again)).wait().code(1).says(&["rotate web"]);
    assert!(!other.exists());

    let host = format!("127.0.0.1:{}", server.port);
    let said = lab
        .start_bare(token(args!["rotate", "web", "--host", host]))
        .wait()
        .done();
    let line = said.text();
    assert!(
        line.starts_with("vbk1:127.0.0.1:") && line.lines().count() == 1,
        "{line}"
    );
    let refused = lab.run(args!["list"]).code(1).says(&["does not accept this token"]);
    fs::write(&file, &line).expect("writes");
    lab.ok(args!["list"]);
    lab.start_bare(token(args!["revoke", "web"])).wait().done();
    let again = lab.run(args!["list"]).code(1);
    assert_eq!(again.stderr, refused.stderr);
    lab.start_bare(token(args!["revoke", "web"]))
        .wait()
        .code(1)
        .says(&["no token web"]);

    // Files that are not used.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("sets");
    lab.run(args!["list"]).code(2).says(&["chmod 600"]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("sets");
    fs::write(&file, line.replace("127.0.0.1", "127.0.0.2")).expect("writes");
    lab.run(args!["list"]).code(2).says(&["no valid token"]);
    lab.use_remote(Remote {
        token: None,
        ..server.way(&file, "")
    });
    lab.run(args!["list"]).code(2).says(&["--token-file", "vbk token add"]);
}

#[test]
fn a_token_is_found_in_each_of_its_places() {
    let mut lab = Lab::new();
    let server = Server::start(&lab);
    let token = server.use_with(&mut lab, "vbk", args![]);
    let address = format!("vbk://127.0.0.1:{}", server.port);
    lab.use_remote(Remote {
        token: None,
        ..server.way(&token, "")
    });
    let vbk = || Command::new(VBK);
    let list = || args!["--repo", address, "list"];
    assert_eq!(lab.start_command(vbk(), list()).wait().status.code(), Some(2));
    let with = |more: Vec<OsString>| more.into_iter().chain(list()).collect::<Vec<_>>();
    assert_eq!(
        lab.start_command(vbk(), with(args!["--token-file", token]))
            .wait()
            .status
            .code(),
        Some(0)
    );
    let config = lab.path("config.toml");
    let text = format!("repository = \"{address}\"\ntoken-file = \"{}\"\n", token.display());
    fs::write(&config, text).expect("writes");
    for command in [args!["list"], args!["config", "check"]] {
        let mut all = args!["--config-file", config];
        all.extend(command);
        let said = lab.start_command(vbk(), all).wait();
        assert!(
            !said.stderr.contains("repository") && !said.stderr.contains("token"),
            "{said}"
        );
    }
    // systemd's have modes of their own.
    let credentials = lab.subdir("credentials");
    fs::copy(&token, credentials.join("vbk-token")).expect("copies");
    fs::set_permissions(credentials.join("vbk-token"), fs::Permissions::from_mode(0o440)).expect("sets");
    let mut command = vbk();
    command.env("CREDENTIALS_DIRECTORY", credentials);
    lab.start_command(command, list()).wait().done();
}

#[test]
fn a_backup_goes_on_after_its_server_was_killed() {
    let mut lab = Lab::new();
    let server = Server::start(&lab);
    server.use_with(&mut lab, "all", args!["--rights", "manage"]);
    let port = server.port;
    let disk = disk(&lab);
    lab.backup("web1", &disk);
    fs::write(&disk, noise_bytes(2, 20 * MIB + 512)).expect("writes");
    let mut backup = lab.start(args!["backup", "web1", disk, "--read-limit", "4MB/s"]);
    assert!(backup.wait_until_read(8 * MIB));
    server.kill();
    backup.wait_until_says("is lost");
    let what = args![lab.repo()];
    let _server = Server::at(&lab, what, port);
    backup.wait().code(0).says(&["vbk://127.0.0.1", "is back"]);
    assert_eq!(lab.listed().len(), 2);
    lab.ok(args!["verify"]);
    let restored = lab.path("restored.img");
    lab.ok(args!["restore", "web1@latest", restored]);
    assert_same(&disk, &restored);
}

#[test]
fn many_clients_at_once_end_and_the_server_takes_a_bounded_memory() {
    const CLIENTS: usize = 24;
    /// What a server takes with a hundred.
    const MOST_BYTES: u64 = 600 << 20;
    let mut lab = Lab::new();
    let server = Server::start(&lab);
    let disks: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let disk = lab.path(&format!("disk{number}.img"));
            fs::write(&disk, noise_bytes(number as u64, 12 * MIB)).expect("writes");
            disk
        })
        .collect();
    // More of one address than are heard at once.
    let token = |lab: &Lab, number: usize| server.token(lab, lab.repo(), &format!("web{number}"), args![]);
    let tokens: Vec<_> = (0..CLIENTS).map(|number| token(&lab, number)).collect();
    let mut running = Vec::new();
    for (number, (disk, token)) in disks.iter().zip(&tokens).enumerate() {
        lab.use_remote(server.way(token, ""));
        running.push(lab.start(args!["backup", format!("web{number}"), disk]));
    }
    for client in running {
        client.wait().done();
    }
    let peak_bytes = peak_bytes_of(server.running.as_ref().expect("runs").pid()).expect("runs");
    assert!(peak_bytes <= MOST_BYTES, "{peak_bytes} bytes");
    server.use_with(&mut lab, "all", args!["--rights", "manage"]);
    assert_eq!(lab.listed().len(), CLIENTS);
    let restored = lab.path("restored.img");
    lab.ok(args!["restore", format!("web{}@latest", CLIENTS / 2), restored]);
    assert_same(&disks[CLIENTS / 2], &restored);
}

#[test]
fn tokens_belong_to_the_owner_of_the_repository() {
    let lab = Lab::new();
    chown(lab.repo(), Some(65534), None).expect("gives it away");
    // What root makes there, the server of that user could not read.
    for command in [args!["token", "add", "web"], args!["token", "list"]] {
        let is_list = command.contains(&"list".into());
        let said = lab.run(command);
        match is_list {
            true => drop(said.code(0)),
            false => drop(said.code(1).says(&["user 65534", "as that user"])),
        }
    }
    assert!(!lab.repo().join("serve/tokens").exists());
    chown(lab.repo(), Some(0), None).expect("takes it back");
}

#[test]
fn a_server_of_many_repositories_keeps_them_apart() {
    let mut lab = Lab::without_repo();
    let root = lab.subdir("root");
    for name in ["shop", "bank"] {
        lab.start_bare(args!["init", root.join(name)]).wait().done();
    }
    lab.start_bare(args!["init", lab.path("outside")]).wait().done();
    symlink(lab.path("outside"), root.join("link")).expect("links");
    let server = Server::of(&lab, args!["--root", root]);
    let shop = server.token(
        &lab,
        &root.join("shop"),
        "shop",
        args!["--under-root", "--rights", "manage"],
    );
    let bank = server.token(&lab, &root.join("bank"), "bank", args!["--under-root"]);
    let disk = disk(&lab);
    for (token, repository) in [(&shop, "/shop"), (&shop, ""), (&bank, "/bank")] {
        lab.use_remote(server.way(token, repository));
        lab.backup("web1", &disk);
    }
    assert_eq!(lab.listed().len(), 1, "bank");
    lab.use_remote(server.way(&shop, "/shop"));
    assert_eq!(lab.listed().len(), 2);
    lab.use_remote(server.way(&shop, "/bank"));
    lab.run(args!["list"]).code(1).says(&["for the repository shop"]);
    for path in ["/link", "/../outside", "/shop/keys"] {
        lab.use_remote(server.way(&shop, path));
        let said = lab.run(args!["list"]);
        assert!(matches!(said.status.code(), Some(1 | 2)), "{said}");
    }
}

#[test]
fn what_was_read_once_is_read_again_from_this_host_but_by_a_verification() {
    let mut lab = Lab::new();
    let server = Server::start(&lab);
    server.use_with(&mut lab, "all", args!["--rights", "manage"]);
    let disk = disk(&lab);
    lab.backup("web1", &disk);
    let at = (5 * MIB + 70_000) as usize;
    let expected = fs::read(&disk).expect("reads")[at..at + 4096].to_vec();
    let read = |name: &str, more: Vec<OsString>| {
        let dir = lab.subdir(name);
        let mut all = more;
        all.extend(args!["mount", "web1@latest", dir]);
        lab.run(all).done();
        let image = fs::File::open(dir.join("vda.img")).expect("opens");
        let mut bytes = vec![0; 4096];
        let read = image.read_exact_at(&mut bytes, at as u64);
        drop(image);
        lab.umount(&dir);
        read.map(|()| bytes)
    };
    assert_eq!(read("first", Vec::new()).expect("reads"), expected);
    // The server has it no more.
    let port = server.port();
    server.stop();
    Place::of(lab.repo(), &expected[..32]).flip();
    let _server = Server::at(&lab, args![lab.repo()], port);
    assert_eq!(read("again", Vec::new()).expect("reads"), expected);
    assert!(read("off", args!["--cache", "off"]).is_err());
    lab.run(args!["verify"]).code(4);
    assert_eq!(read("verified", Vec::new()).expect("reads"), expected);
}

#[test]
fn a_server_ends_in_order_while_clients_are_connected() {
    let mut lab = Lab::new();
    let server = Server::start(&lab);
    server.use_with(&mut lab, "all", args!["--rights", "manage"]);
    let disk = disk(&lab);
    lab.backup("web1", &disk);
    let images = lab.mount("images");
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        &[0; 9000],
        &[0xFF; 20],
    ] {
        let mut stranger = TcpStream::connect(("127.0.0.1", server.port)).expect("connects");
        // The server may have hung up already.
        let _ = stranger
            .write_all(bytes)
            .and_then(|()| stranger.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP"));
    }
    let stalled = TcpStream::connect(("127.0.0.1", server.port)).expect("connects");
    server.stop();
    drop(stalled);
    lab.umount(&images);
    let again = lab.run(args!["list"]).code(1);
    assert!(again.stderr.contains("can't connect"), "{again}");
}

#[test]
fn a_line_for_ssh_is_printed_in_place_of_a_token() {
    let lab = Lab::new();
    let key = lab.path("key.pub");
    fs::write(&key, "ssh-ed25519 AAAA root@web\n").expect("writes");
    let line = lab.ok(args!["token", "add", "web", "--ssh-key", key]);
    let repo = lab.repo().canonicalize().expect("is there");
    assert_eq!(
        line,
        format!(
            "restrict,command=\"vbk serve --stdio --rights backup --as 'web' -- '{}'\" ssh-ed25519 AAAA root@web\n",
            repo.display()
        )
    );
    assert_eq!(lab.json(args!["token", "list"]), serde_json::json!({"tokens": []}));
    fs::write(&key, "-----BEGIN OPENSSH PRIVATE KEY-----\n").expect("writes");
    lab.run(args!["token", "add", "web", "--ssh-key", key])
        .code(2)
        .says(&[".pub"]);
}
