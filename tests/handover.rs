//! A daemon downloads into files that belong to whoever asked, and uploads such files: it has their descriptors and nothing
//! else. Whichever of the two ends first, what was fetched stays.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of these tests fail them"
)]

mod lab;
mod put_server;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::{Finished, Lab, Origin, Peer, Process, SOON, figure, installed, lanes, uplink, wait_for};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::geteuid;
use put_server::Server;
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// Mbit/s of the one line.
const RATE: f64 = 40.0;
/// On the wire, for each byte of content: headers, TLS, requests, and what is under way when something ends.
const OVERHEAD: f64 = 1.06;
const LIMIT: Duration = Duration::from_secs(60);
/// How often a daemon looks whether what it shares is still there.
const SHELF_LOOKS: Duration = Duration::from_secs(60);
/// The daemon's user, its client, and one who may do nothing.
const DAEMON: u32 = lab::SERVICE_USER;
const CLIENT: u32 = 61002;
const STRANGER: u32 = 61003;

#[test]
fn a_daemon_that_can_see_nothing_writes_a_file_that_is_its_clients() {
    let Some(house) = House::of_users() else { return };
    let daemon = house.start();
    for (user, group) in [(0, 0), (CLIENT, DAEMON)] {
        let home = house.home_of(user);
        let url = house.origin.url("4MiB");
        let sha256 = house.origin.sha256("4MiB");
        for target in ["named", "4MiB"] {
            let file = home.join(target);
            let (path, directory) = (file.to_str().unwrap(), home.to_str().unwrap());
            let to = match target {
                "named" => ["-o", path],
                _ => ["-d", directory],
            };
            let args = [&to[..], &["--sha256", &sha256]].concat();
            let finished = house.get_as(user, group, &url, &args).wait(LIMIT).ok();
            assert_eq!(sha256sum(&file), sha256);
            let metadata = fs::metadata(&file).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (user, user));
            assert_eq!(finished.report("done").unwrap()["path"], path);
            assert!(!finished.stderr.contains("without it"), "{}", finished.stderr);
            assert_eq!(names(&home), [target], "nothing lies beside it");
            fs::remove_file(file).unwrap();
        }
    }
    // What the daemon cannot see, it must not keep: it shares what was downloaded while that is there, and looks each minute.
    let descriptors = PathBuf::from(format!("/proc/{}/fd", daemon.pid()));
    let homes = house.scratch.path().join("homes");
    let open = || {
        let entries = fs::read_dir(&descriptors).unwrap();
        // One that was closed since they were listed is none.
        let paths = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        paths.filter(|path| path.starts_with(&homes)).collect::<Vec<_>>()
    };
    assert!(
        open().len() <= 1,
        "more than what is shared is open: {:?}",
        open()
    );
    wait_for("deleted files to be let go of", SHELF_LOOKS + SOON, || {
        open().is_empty()
    });
}

#[test]
fn what_a_client_finds_wrong_is_told_as_without_a_daemon() {
    let Some(house) = House::of_one_user() else { return };
    let _daemon = house.start();
    let url = house.origin.url("1MiB");
    let run = |args: &[&str]| house.get(&url, args).wait(LIMIT);
    fs::write(house.dir().join("there"), "precious").unwrap();
    for (args, code, message) in [
        (vec!["-o", "there"], 6, "exists already"),
        (vec!["-o", "missing/x"], 6, "missing/x"),
        (vec!["-o", "x", "--sha256", &"ab".repeat(32)], 5, "wrong checksum"),
    ] {
        let (by_daemon, alone) = (run(&args), run(&[&args[..], &["--standalone"]].concat()));
        for finished in [&by_daemon, &alone] {
            assert_eq!(
                finished.status.code(),
                Some(code),
                "{args:?}: {}",
                finished.stderr
            );
            assert!(finished.stderr.contains(message), "{args:?}: {}", finished.stderr);
        }
        let last = |finished: &Finished| finished.report("failed").unwrap()["message"].clone();
        assert_eq!(last(&by_daemon), last(&alone));
    }
    assert_eq!(fs::read(house.dir().join("there")).unwrap(), b"precious");
    assert!(!house.part().exists());
}

#[test]
fn a_killed_client_stops_the_daemons_work_and_the_same_command_resumes() {
    let Some(house) = House::of_one_user() else { return };
    let _daemon = house.start();
    let (url, size) = (house.origin.url("16MiB"), 16.0 * MIB as f64);
    for round in 1..=2 {
        let mut get = house.get(&url, &["-o", "file"]);
        house.wait_carried(f64::from(round) * 0.25 * size);
        get.kill();
    }
    // At once: the daemon may still be bringing its last bytes to the disk.
    let done = house.get(&url, &["-o", "file"]).wait(LIMIT).ok();
    let resumed = done.report("done").unwrap()["resumed"].as_f64().unwrap();
    let carried = house.carried();
    figure(format_args!(
        "handover: client killed twice: {:.1} of 16 MiB were kept, on the wire {:.3} of the file",
        resumed / MIB as f64,
        carried / size
    ));
    assert!(!done.stderr.contains("without it"), "{}", done.stderr);
    assert_eq!(sha256sum(&house.dir().join("file")), house.origin.sha256("16MiB"));
    assert!(resumed > 0.3 * size, "{resumed}");
    // For each kill: what was under way, in queues, and in blocks not yet written.
    assert!(carried < OVERHEAD * size + 4.0 * MIB as f64, "{carried}");
}

#[test]
fn a_killed_daemon_leaves_its_work_to_its_client() {
    let Some(house) = House::of_one_user() else { return };
    let mut daemon = house.start();
    let (url, size) = (house.origin.url("32MiB"), 32.0 * MIB as f64);
    let mut get = house.get(&url, &["-o", "file"]);
    // Something is in the journal by then: the first entry comes after 3 s.
    house.wait_carried(0.6 * size);
    daemon.kill();
    let done = get.wait(LIMIT).ok();
    assert!(done.stderr.contains("downloading without it"), "{}", done.stderr);
    assert_eq!(sha256sum(&house.dir().join("file")), house.origin.sha256("32MiB"));
    let resumed = done.report("done").unwrap()["resumed"].as_f64().unwrap();
    figure(format_args!(
        "handover: daemon killed at {:.0} of 32 MiB: {:.1} MiB were kept, on the wire {:.3} of the file",
        0.6 * 32.0,
        resumed / MIB as f64,
        house.carried() / size
    ));
    assert!(resumed > 0.0);
}

#[test]
fn when_both_are_killed_a_later_get_resumes() {
    let Some(house) = House::of_one_user() else { return };
    let mut daemon = house.start();
    let (url, size) = (house.origin.url("32MiB"), 32.0 * MIB as f64);
    let mut get = house.get(&url, &["-o", "file"]);
    house.wait_carried(0.6 * size);
    daemon.signal(Signal::SIGSTOP);
    get.kill();
    daemon.kill();
    assert!(house.part().exists() && !house.dir().join("file").exists());
    let _second = house.start();
    let done = house.get(&url, &["-o", "file"]).wait(LIMIT).ok();
    let resumed = done.report("done").unwrap()["resumed"].as_f64().unwrap();
    figure(format_args!(
        "handover: both killed: {:.1} of 32 MiB were kept",
        resumed / MIB as f64
    ));
    assert!(resumed > 0.0);
    assert_eq!(sha256sum(&house.dir().join("file")), house.origin.sha256("32MiB"));
}

#[test]
fn a_daemon_that_is_told_to_end_gives_its_work_back() {
    let Some(house) = House::of_one_user() else { return };
    let daemon = house.start();
    let (url, size) = (house.origin.url("16MiB"), 16.0 * MIB as f64);
    let mut get = house.get(&url, &["-o", "file"]);
    house.wait_carried(0.4 * size);
    daemon.signal(Signal::SIGTERM);
    let done = get.wait(LIMIT).ok();
    assert!(
        done.stderr
            .contains("the daemon is ending; downloading without it"),
        "{}",
        done.stderr
    );
    assert!(done.report("done").unwrap()["resumed"].as_f64().unwrap() > 0.2 * size);
    assert_eq!(sha256sum(&house.dir().join("file")), house.origin.sha256("16MiB"));
}

/// As when a package is upgraded: were the port taken, the new daemon would get another, or none at all.
#[test]
fn a_get_that_goes_on_alone_leaves_the_port_to_the_daemon_that_comes_back() {
    let Some(house) = House::of_users() else { return };
    let file = house.scratch.path().join("config.toml");
    let config = fs::read_to_string(&file).unwrap() + "\n[lan]\nport = 7436\n";
    fs::write(&file, config).unwrap();
    let daemon = house.start();
    let (url, size) = (house.origin.url("32MiB"), 32.0 * MIB as f64);
    let to = house.home_of(CLIENT).join("file");
    let mut get = house.get_as(CLIENT, DAEMON, &url, &["-o", to.to_str().unwrap()]);
    house.wait_carried(0.3 * size);
    daemon.signal(Signal::SIGTERM);
    house.wait_carried(0.5 * size);
    drop(daemon);
    let _second = house.start();
    assert!(
        get.running(),
        "the download is over: the port is free in any case"
    );
    let done = get.wait(LIMIT).ok();
    assert!(done.stderr.contains("downloading without it"), "{}", done.stderr);
    assert_eq!(sha256sum(&to), house.origin.sha256("32MiB"));
}

#[test]
fn http_30_of_two_gets_of_one_file_the_second_is_told_that_it_is_busy() {
    let Some(house) = House::of_one_user() else { return };
    let _daemon = house.start();
    // Longer than both of the others wait for it to let go.
    let url = house.origin.url("80MiB");
    let mut first = house.get(&url, &["-o", "file"]);
    wait_for("the first has begun", SOON, || house.part().exists());
    for how in [&["-o", "file"][..], &["-o", "file", "--standalone"]] {
        let second = house.get(&url, how).wait(LIMIT);
        assert_eq!(second.status.code(), Some(6), "{}", second.stderr);
        let expected = "file.part: another tributary is writing this file";
        assert!(second.stderr.contains(expected), "{}", second.stderr);
    }
    first.wait(LIMIT).ok();
    assert_eq!(sha256sum(&house.dir().join("file")), house.origin.sha256("80MiB"));
}

#[test]
fn who_may_not_open_the_socket_is_told_so_and_downloads_alone() {
    let Some(house) = House::of_users() else { return };
    let _daemon = house.start();
    let url = house.origin.url("1MiB");
    let file = house.home_of(STRANGER).join("file");
    let to = ["-o", file.to_str().unwrap()];
    let done = house.get_as(STRANGER, STRANGER, &url, &to).wait(LIMIT).ok();
    let expected =
        format!("may not be opened by this user (it needs the group `{DAEMON}`); downloading without it");
    assert!(done.stderr.contains(&expected), "{}", done.stderr);
    assert_eq!(sha256sum(&file), house.origin.sha256("1MiB"));
    assert_eq!(fs::metadata(file).unwrap().uid(), STRANGER);
}

#[test]
fn standalone_does_without_a_daemon_that_is_there() {
    let Some(house) = House::of_one_user() else { return };
    let daemon = house.start();
    let mut get = house.get(&house.origin.url("8MiB"), &["-o", "file", "--standalone"]);
    let met = wait_for("it is a peer of its own", SOON, || {
        let status = house.peer().status();
        status.is_some_and(|s| s["transfers"].as_array().unwrap().is_empty()) && house.carried() > 1e6
    });
    get.wait(LIMIT).ok();
    figure(format_args!(
        "handover: standalone beside a daemon: under way after {met:?}"
    ));
    drop(daemon);
    // Who names a socket is told that nobody is there.
    let done = house
        .get(&house.origin.url("10"), &["-o", "ten", "--socket", "nowhere"])
        .wait(LIMIT)
        .ok();
    assert!(
        done.stderr
            .contains("no daemon is running at nowhere; downloading without it"),
        "{}",
        done.stderr
    );
}

#[test]
fn nonsense_on_the_socket_is_bounded_and_leaves_the_daemon_well() {
    let Some(house) = House::of_one_user() else { return };
    let daemon = house.start();
    let url = house.origin.url("4MiB");
    let descriptors = || {
        fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
            .unwrap()
            .count()
    };
    let before = descriptors();
    // Before a request: garbage, a line without end, descriptors by the dozen.
    assert!(
        Talk::with(&house)
            .send("garbage")
            .refusal()
            .contains("does not understand the request")
    );
    let mut endless = Talk::with(&house);
    let sent = (0..1000)
        .take_while(|_| endless.0.write_all(&[b'x'; 4096]).is_ok())
        .count();
    assert!(sent < 1000, "4 MB without a line's end were taken");
    let open = |path: &Path| {
        let mut options = fs::OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap()
    };
    let file = open(&house.dir().join("plain"));
    let many = Talk::with(&house)
        .pass("\"status\"", &[file.as_raw_fd(); 100])
        .refusal();
    assert!(many.contains("too many descriptors"), "{many}");
    // In answer to the daemon's questions.
    let fifo = house.dir().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = open(&fifo);
    let (plain, pipe) = (file.as_raw_fd(), fifo.as_raw_fd());
    for (passed, expected) in [
        (vec![], "3 descriptors were expected, 0 came"),
        (vec![plain; 2], "2 came"),
        (vec![plain; 4], "too many descriptors"),
        (vec![pipe, plain, plain], "the data is not a plain file"),
        (vec![plain, pipe, plain], "the journal is not a plain file"),
        (vec![plain, plain, pipe], "the lock is not a plain file"),
    ] {
        let mut talk = Talk::about(&house, &url);
        let opened = json!({"opened": {"name": "x", "path": "/x.part", "created": false}});
        let refusal = talk.pass(&opened.to_string(), &passed).refusal();
        assert!(refusal.contains(expected), "{refusal}");
    }
    for (answer, expected) in [
        ("garbage", "does not understand the answer"),
        ("\"discarded\"", "makes no sense"),
        ("{\"peeked\":null}\n{\"peeked\":null}", "makes no sense"),
    ] {
        let refusal = Talk::about(&house, &url).send(answer).refusal();
        assert!(
            refusal.contains(expected) || refusal.contains("without having asked"),
            "{answer}: {refusal}"
        );
    }
    // An answer that nobody asked for: while bytes flow.
    let refusal = Talk::with(&house)
        .send(&request(&url))
        .send("\"discarded\"")
        .send("\"discarded\"")
        .refusal();
    assert!(
        refusal.contains("without having asked") || refusal.contains("makes no sense"),
        "{refusal}"
    );
    assert_eq!(
        fs::metadata(house.dir().join("plain")).unwrap().len(),
        0,
        "nothing was written"
    );
    wait_for("all descriptors are closed again", SOON, || {
        descriptors() <= before
    });
    house.get(&url, &["-o", "file"]).wait(LIMIT).ok();
    assert_eq!(sha256sum(&house.dir().join("file")), house.origin.sha256("4MiB"));
}

#[test]
fn one_user_cannot_take_all_places() {
    let Some(house) = House::of_users() else { return };
    let _daemon = house.start();
    // Root is one user as any other.
    let mut held: Vec<Talk> = (0..8)
        .map(|_| Talk::about(&house, &house.origin.url("1MiB")))
        .collect();
    let refusal = Talk::with(&house).send("\"status\"").refusal();
    assert!(refusal.contains("busy with 8 requests of this user"), "{refusal}");
    let url = house.origin.url("1MiB");
    let file = house.home_of(CLIENT).join("file");
    let to = ["-o", file.to_str().unwrap()];
    let done = house.get_as(CLIENT, DAEMON, &url, &to).wait(LIMIT).ok();
    assert!(!done.stderr.contains("without it"), "{}", done.stderr);
    held.pop();
    wait_for(
        "a place is free again",
        SOON,
        || matches!(Talk::with(&house).send("\"status\"").line(), Some(line) if line.get("status").is_some()),
    );
}

#[test]
fn a_daemon_that_can_see_nothing_sends_what_only_its_client_may_read() {
    let Some(house) = House::of_users() else { return };
    let _daemon = house.start();
    let server = Server::start(&house.lab, "files.lab");
    for (user, group) in [(0, 0), (CLIENT, DAEMON)] {
        let home = house.home_of(user);
        let (file, place) = (home.join("mine"), format!("/{user}/mine"));
        fs::write(&file, format!("of {user}")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        chown(&file, Some(user), Some(user)).unwrap();
        let args = [file.to_str().unwrap(), &server.url(&place)];
        let done = house.put_as(user, group, &args).wait(LIMIT).ok();
        assert!(!done.stderr.contains("without it"), "{}", done.stderr);
        assert_eq!(server.at(&place), Some(format!("of {user}").into_bytes()));
        assert_eq!(done.report("done").unwrap()["path"], json!(file));
    }
    // What the client may not read, nobody reads for it.
    let foreign = house.home_of(CLIENT).join("foreign");
    fs::write(&foreign, "precious").unwrap();
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o600)).unwrap();
    let refused = house
        .put_as(
            CLIENT,
            DAEMON,
            &[foreign.to_str().unwrap(), &server.url("/foreign")],
        )
        .wait(LIMIT);
    assert_eq!(refused.status.code(), Some(6), "{}", refused.stderr);
    assert!(refused.stderr.contains("Permission denied"), "{}", refused.stderr);
    assert_eq!(server.at("/foreign"), None);
}

#[test]
fn an_upload_ends_with_its_client_and_goes_on_without_its_daemon() {
    let Some(house) = House::of_one_user() else { return };
    let mut daemon = house.start();
    let server = Server::start(&house.lab, "files.lab");
    fs::write(house.dir().join("file"), vec![7; 1 << 20]).unwrap();
    let put = |path: &str| {
        let args = ["put", "--json", "file", &server.url(path)];
        house.peer().start("put", house.peer().tributary(&args))
    };
    let mut killed = put("/hold/killed");
    wait_for("it is being sent", SOON, || server.was_asked("PUT /hold/killed"));
    killed.kill();
    house.peer().wait_status("it is over", SOON, |status| {
        status["transfers"].as_array().unwrap().is_empty()
    });
    let mut left = put("/hold/left");
    wait_for("it is being sent", SOON, || server.was_asked("PUT /hold/left"));
    daemon.kill();
    wait_for("it goes on alone", SOON, || {
        left.stderr().contains("uploading without it")
    });
    left.signal(Signal::SIGINT);
    let stopped = left.wait(LIMIT);
    assert_eq!(stopped.status.code(), Some(130), "{}", stopped.stderr);
}

#[test]
fn nonsense_about_what_is_to_be_sent_is_not_taken() {
    let Some(house) = House::of_one_user() else { return };
    let daemon = house.start();
    let server = Server::start(&house.lab, "files.lab");
    let descriptors = || {
        fs::read_dir(format!("/proc/{}/fd", daemon.pid()))
            .unwrap()
            .count()
    };
    let before = descriptors();
    let path = house.dir().join("plain");
    fs::write(&path, "12345").unwrap();
    let open = |options: &mut fs::OpenOptions| options.open(&path).unwrap();
    let reading = open(fs::OpenOptions::new().read(true));
    let writing = open(fs::OpenOptions::new().write(true));
    let both = open(fs::OpenOptions::new().read(true).write(true));
    let folder = fs::File::open(house.dir()).unwrap();
    let (pipe, _kept) = std::io::pipe().unwrap();
    let fd = |file: &dyn AsRawFd| file.as_raw_fd();
    let url = server.url("/x");
    for (passed, expected) in [
        (vec![], "1 descriptor was expected, 0 came"),
        (vec![fd(&reading); 2], "2 came"),
        (vec![fd(&reading); 4], "too many descriptors"),
        (vec![fd(&writing)], "not opened for reading only"),
        (vec![fd(&both)], "not opened for reading only"),
        (vec![fd(&folder)], "not a plain file"),
        (vec![fd(&pipe)], "not a plain file"),
    ] {
        let refusal = Talk::to_send(&house, &url, &listed("x", 5))
            .pass("\"source\"", &passed)
            .refusal();
        assert!(refusal.contains(expected), "{refusal}, not: {expected}");
    }
    let endless = json!({"listed": {"directory": true, "items": [], "left_out": [], "more": true}});
    for (answer, expected) in [
        (listed("../x", 5), "makes no sense"),
        (listed("/x", 5), "makes no sense"),
        (endless.to_string(), "a page of the list is empty"),
        ("\"source\"".into(), "makes no sense"),
        ("garbage".into(), "does not understand the answer"),
        (json!({"failed": "no list"}).to_string(), "no list"),
    ] {
        let refusal = Talk::to_list(&house, &url).send(&answer).refusal();
        assert!(refusal.contains(expected), "{refusal}, not: {expected}");
    }
    // Another length than was listed is a change of the file, which its user is told of.
    let mut talk = Talk::to_send(&house, &url, &listed("x", 6));
    talk.pass("\"source\"", &[fd(&reading)]);
    let failed = std::iter::from_fn(|| talk.line()).find_map(|line| line.get("failed").cloned());
    let failed = failed.unwrap();
    assert_eq!(failed["code"], 6, "{failed}");
    assert!(
        failed["message"].as_str().unwrap().contains("from 6 to 5 bytes"),
        "{failed}"
    );
    assert_eq!(server.paths(), [""; 0]);
    wait_for("all descriptors are closed again", SOON, || {
        descriptors() <= before
    });
    let args = ["put", "--json", "plain", &url];
    house.peer().run("put", house.peer().tributary(&args)).ok();
    assert_eq!(server.at("/x"), Some(b"12345".to_vec()));
}

fn put_request(url: &str) -> String {
    json!({"put": {"target": url, "pool": true}}).to_string()
}

/// The answer that one file is to be sent, as it was last changed.
fn listed(name: &str, size: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let modified = (now.unwrap().as_secs(), 0);
    let items = json!([{"name": name, "size": size, "modified": modified}]);
    json!({"listed": {"directory": false, "items": items, "left_out": [], "more": false}}).to_string()
}

/// A connection to the control socket.
struct Talk(UnixStream, BufReader<UnixStream>);

impl Talk {
    fn with(house: &House) -> Self {
        let stream = UnixStream::connect(&house.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self(stream, reader)
    }

    /// Until the daemon has asked for the file to be opened.
    fn about(house: &House, url: &str) -> Self {
        let mut talk = Self::with(house);
        talk.send(&request(url));
        loop {
            let line = talk.line().unwrap_or_else(|| panic!("the daemon hung up"));
            if line["files"].get("peek").is_some() {
                talk.send("{\"peeked\":null}");
            } else if line["files"].get("open").is_some() {
                return talk;
            }
        }
    }

    /// Until the daemon has asked for the list of what is to be sent.
    fn to_list(house: &House, url: &str) -> Self {
        let mut talk = Self::with(house);
        talk.send(&put_request(url)).until("list");
        talk
    }

    /// Until the daemon has asked for the file that is to be sent.
    fn to_send(house: &House, url: &str, listed: &str) -> Self {
        let mut talk = Self::to_list(house, url);
        talk.send(listed).until("source");
        talk
    }

    fn until(&mut self, question: &str) {
        while let Some(line) = self.line() {
            assert!(line.get("failed").is_none(), "{line}");
            if line["files"].get(question).is_some() {
                return;
            }
        }
        panic!("the daemon hung up");
    }

    fn send(&mut self, line: &str) -> &mut Self {
        self.pass(line, &[])
    }

    fn pass(&mut self, line: &str, descriptors: &[i32]) -> &mut Self {
        let line = format!("{line}\n");
        let slices = [std::io::IoSlice::new(line.as_bytes())];
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() { &[] } else { &rights[..] };
        // It may have hung up already: what it said is what counts.
        let _ = sendmsg::<()>(self.0.as_raw_fd(), &slices, rights, MsgFlags::MSG_NOSIGNAL, None);
        self
    }

    fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.1.read_line(&mut line) {
            Ok(1..) => Some(serde_json::from_str(&line).unwrap()),
            _ => None,
        }
    }

    /// What it is refused with: it must be the daemon that does not do it.
    fn refusal(&mut self) -> String {
        while let Some(line) = self.line() {
            if let Some(failed) = line.get("failed") {
                assert_eq!(failed["code"], 7, "{line}");
                return failed["message"].as_str().unwrap().to_owned();
            }
        }
        panic!("it hung up without a word");
    }
}

fn request(url: &str) -> String {
    json!({"get": {"url": url, "headers": [], "sha256": null, "pool": true}}).to_string()
}

/// One device with one line; its daemon may be another user than its clients.
struct House {
    origin: Origin,
    lab: Lab,
    scratch: TempDir,
    socket: PathBuf,
    daemon: Option<u32>,
}

impl House {
    fn of_one_user() -> Option<Self> {
        Some(Self::new(Lab::beside()?, None))
    }

    /// A daemon of a user of its own; needs root, and `setpriv`.
    fn of_users() -> Option<Self> {
        if !installed("setpriv") {
            return None;
        }
        // Known only now: the lab may have had to enter a namespace of its own for users.
        let lab = Lab::beside()?;
        let mapped = fs::read_to_string("/proc/self/uid_map").unwrap();
        if !geteuid().is_root() || mapped.split_whitespace().last() == Some("1") {
            figure(format_args!("skipped: there is only one user here"));
            return None;
        }
        Some(Self::new(lab, Some(DAEMON)))
    }

    fn new(lab: Lab, daemon: Option<u32>) -> Self {
        let lab = lab.peer("device", uplink(RATE, 10.0).delay_ms(10));
        // Where everybody may look, and not in memory: a stranger's file there would rightly not be taken.
        let scratch = TempDir::new_in("/var/tmp").unwrap();
        let house = Self {
            origin: lab.origin("origin.lab"),
            socket: match daemon {
                Some(_) => scratch.path().join("run/control.sock"),
                None => lab.at("device").directory().join("state/control.sock"),
            },
            lab,
            scratch,
            daemon,
        };
        if daemon.is_some() {
            house.furnish();
        }
        house
    }

    fn furnish(&self) {
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(self.scratch.path(), 0o711);
        for (name, user, mode) in [
            ("state", DAEMON, 0o700),
            ("run", DAEMON, 0o755),
            ("homes", 0, 0o711),
            ("homes/0", 0, 0o700),
            ("homes/61002", CLIENT, 0o700),
            ("homes/61003", STRANGER, 0o700),
        ] {
            let path = self.scratch.path().join(name);
            fs::create_dir(&path).unwrap();
            chown(&path, Some(user), Some(user)).unwrap();
            set(&path, mode);
        }
        for name in ["config.toml", "roots.pem"] {
            let from = match name {
                "roots.pem" => self.lab.roots(),
                _ => self.peer().directory().join(name),
            };
            fs::copy(from, self.scratch.path().join(name)).unwrap();
            set(&self.scratch.path().join(name), 0o644);
        }
        // The program too must be somewhere where everybody may look.
        let program = self.scratch.path().join("tributary");
        fs::copy(env!("CARGO_BIN_EXE_tributary"), &program).unwrap();
        set(&program, 0o755);
    }

    fn peer(&self) -> &Peer {
        self.lab.at("device")
    }

    fn start(&self) -> Process {
        let process = match self.daemon {
            None => self.peer().spawn_daemon(&[]),
            Some(user) => {
                let mut command = self.program_as(user, user);
                command
                    .args(["run", "--socket"])
                    .arg(&self.socket)
                    .env("TRIBUTARY_STATE_DIR", self.scratch.path().join("state"));
                self.peer().start("daemon", command)
            }
        };
        wait_for("the daemon answers", Duration::from_secs(10), || {
            let mut status = self.peer().tributary(&["status", "--json", "--socket"]);
            status.arg(&self.socket);
            let finished = self.peer().run("status", status);
            serde_json::from_str(&finished.stdout).is_ok_and(|status| lanes(&status) == 1)
        });
        process
    }

    /// Starts `get --json` as the one user, in [`House::dir`].
    fn get(&self, url: &str, args: &[&str]) -> Process {
        self.peer().spawn_get(url, args)
    }

    /// Starts `get --json` as that user, in its home.
    fn get_as(&self, user: u32, group: u32, url: &str, args: &[&str]) -> Process {
        self.at_home(user, group, &[&["get", "--json", url], args].concat())
    }

    /// Starts `put --json` as that user, in its home.
    fn put_as(&self, user: u32, group: u32, args: &[&str]) -> Process {
        self.at_home(user, group, &[&["put", "--json"], args].concat())
    }

    fn at_home(&self, user: u32, group: u32, args: &[&str]) -> Process {
        let home = self.home_of(user);
        let state = self.scratch.path().join(format!("state-{user}"));
        fs::create_dir_all(&state).unwrap();
        chown(&state, Some(user), Some(user)).unwrap();
        let mut command = self.program_as(user, group);
        command
            .args(args)
            .arg("--socket")
            .arg(&self.socket)
            .current_dir(&home)
            .env("HOME", &home)
            .env("TRIBUTARY_STATE_DIR", state);
        self.peer().start(args[0], command)
    }

    /// The program as that user, which is in that group besides its own.
    fn program_as(&self, user: u32, group: u32) -> Command {
        let mut command = self.peer().command("setpriv");
        command
            .args(["--reuid", &user.to_string(), "--regid", &user.to_string()])
            .args(["--groups", &group.to_string(), "--"])
            .arg(self.scratch.path().join("tributary"))
            .current_dir("/")
            .env("TRIBUTARY_CONFIG", self.scratch.path().join("config.toml"))
            .env("SSL_CERT_FILE", self.scratch.path().join("roots.pem"));
        command
    }

    fn home_of(&self, user: u32) -> PathBuf {
        self.scratch.path().join(format!("homes/{user}"))
    }

    fn dir(&self) -> &Path {
        self.peer().directory()
    }

    fn part(&self) -> PathBuf {
        self.dir().join("file.part")
    }

    /// Bytes on the line so far.
    fn carried(&self) -> f64 {
        self.lab.carried().down as f64
    }

    fn wait_carried(&self, bytes: f64) {
        wait_for("so many bytes", Duration::from_secs(30), || {
            self.carried() >= bytes
        });
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn sha256sum(file: &Path) -> String {
    let sum = Command::new("sha256sum").arg(file).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    sum.split_whitespace().next().unwrap_or_default().to_owned()
}
