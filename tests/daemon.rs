//! The daemon as its service manager and its owner meet it: what it tells, what it reloads, how it stops, what it logs.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod lab;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::{Lab, Peer, Process, figure, installed, lanes, no_uplink, peers, uplink, wait_for};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

const ALLOW: &str = "[egress]\nallow = [\"203.0.113.0/24\"]\n";
const SOON: Duration = Duration::from_secs(15);
/// A daemon's whole stop, whatever is running.
const STOPS_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn the_service_manager_is_told_of_start_health_reload_and_stop_in_order() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("alone", uplink(20.0, 10.0));
    let alone = lab.at("alone");
    let manager = Manager::at(&alone.directory().join("notify"));
    let mut command = alone.tributary(&["run"]);
    command
        .env("NOTIFY_SOCKET", alone.directory().join("notify"))
        .env("WATCHDOG_USEC", "600000");
    let mut daemon = alone.start("daemon", command);
    let ready = manager.until("READY=1");
    assert!(
        ready.contains("STATUS=0 peers, 1 lane, lending 0 tunnels"),
        "{ready}"
    );
    assert!(alone.status().is_some(), "who is ready answers");
    // Twice in each interval, so that a late one is no death.
    let (first, second) = (manager.when("WATCHDOG=1"), manager.when("WATCHDOG=1"));
    assert!(
        second - first < Duration::from_millis(600),
        "{:?}",
        second - first
    );

    alone.configure(&format!(
        "{ALLOW}[lan]\nport = 9999\n[[uplink]]\ninterface = \"wan0\"\nlend = false\n"
    ));
    daemon.signal(Signal::SIGHUP);
    let reloading = manager.until("RELOADING=1");
    let usec = reloading.split_once("MONOTONIC_USEC=").expect("the time").1;
    assert!(usec.lines().next().unwrap().parse::<u64>().unwrap() > 0);
    let ready = manager.until("READY=1");
    assert!(ready.contains("(restart for lan.port)"), "{ready}");
    assert!(
        daemon
            .stderr()
            .contains("lan.port has changed, which needs a restart")
    );

    alone.configure("[lan]\nport = \"x\"\n");
    daemon.signal(Signal::SIGHUP);
    manager.until("RELOADING=1");
    let ready = manager.until("READY=1");
    assert!(
        ready.contains("configuration not reloaded: ")
            && ready.contains("config.toml:2: lan.port: found \"x\""),
        "{ready}"
    );
    assert!(daemon.stderr().contains("ERROR"), "{}", daemon.stderr());
    assert!(alone.status().is_some(), "it goes on with the old one");

    daemon.signal(Signal::SIGTERM);
    manager.until("STOPPING=1");
    for phase in ["transfers", "links"] {
        manager.until(&format!("STATUS=stopping: {phase}"));
    }
    daemon.wait(STOPS_WITHIN).ok();
}

#[test]
fn a_watchdog_that_is_another_processs_business_is_left_alone() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("alone", uplink(20.0, 10.0));
    let alone = lab.at("alone");
    let manager = Manager::at(&alone.directory().join("notify"));
    let mut command = alone.tributary(&["run"]);
    command
        .env("NOTIFY_SOCKET", alone.directory().join("notify"))
        .env("WATCHDOG_USEC", "200000")
        .env("WATCHDOG_PID", "1");
    let mut daemon = alone.start("daemon", command);
    manager.until("READY=1");
    daemon.signal(Signal::SIGTERM);
    let until_the_end = manager.until_with("STOPPING=1", |message| {
        assert!(!message.contains("WATCHDOG"), "{message}");
    });
    assert!(until_the_end.contains("STATUS="));
    daemon.wait(STOPS_WITHIN).ok();
}

/// The loop writes down whom it met. A disk that hangs is played by a FIFO that nobody reads, in the place of the file
/// that it writes: to open it never returns.
#[test]
fn a_loop_that_hangs_is_not_said_to_be_well_and_a_second_signal_ends_even_that_at_once() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("hanging", uplink(20.0, 10.0)).peer("other", no_uplink());
    let (hanging, other) = (lab.at("hanging"), lab.at("other"));
    let manager = Manager::at(&hanging.directory().join("notify"));
    let mut command = hanging.tributary(&["run"]);
    command
        .env("NOTIFY_SOCKET", hanging.directory().join("notify"))
        .env("WATCHDOG_USEC", "1000000");
    let mut daemon = hanging.start("daemon", command);
    manager.until("READY=1");
    let file = hanging
        .directory()
        .join(format!("state/peers.json.{}.new", daemon.pid()));
    nix::unistd::mkfifo(&file, Mode::S_IRWXU).unwrap();
    let _other = other.spawn_daemon(&[]);
    hanging.wait_status("the other", SOON, |status| peers(status) == 1);
    // It writes every 30 s; then there is one ping more at most, which was under way.
    let began = Instant::now();
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_secs(4) {
        if manager
            .next(Duration::from_secs(1))
            .is_some_and(|m| m.contains("WATCHDOG=1"))
        {
            last = Instant::now();
        }
        assert!(began.elapsed() < Duration::from_secs(60), "the pings went on");
    }
    assert!(
        last.duration_since(began) > Duration::from_millis(500),
        "it was well before"
    );
    assert!(
        daemon.stderr().contains("the node's loop hangs"),
        "{}",
        daemon.stderr()
    );
    // An orderly stop waits a second for the loop; who is asked twice does not.
    daemon.signal(Signal::SIGTERM);
    wait_for("the stop", SOON, || daemon.stderr().contains("stopping: links"));
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    let ended = daemon.wait(SOON);
    assert_eq!(ended.status.code(), Some(143), "{}", ended.stderr);
    assert!(
        began.elapsed() < Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_stop_in_mid_download_tells_peers_and_leaves_a_transfer_that_goes_on_later() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("borrower", uplink(20.0, 10.0).delay_ms(10))
        .peer("lender", uplink(20.0, 10.0).delay_ms(10))
        .peer("silent", uplink(20.0, 10.0).delay_ms(10));
    let origin = lab.origin("origin.lab");
    let [borrower, lender, silent] = ["borrower", "lender", "silent"].map(|name| lab.at(name));
    let sha256 = origin.sha256("32MiB");
    let arguments = ["-o", "file", "--sha256", &sha256];
    let _lender = lender.spawn_daemon(&[]);
    let silent_daemon = silent.spawn_daemon(&[]);
    let mut daemon = borrower.spawn_daemon(&[]);
    borrower.wait_status("both", SOON, |status| peers(status) == 2 && lanes(status) == 3);
    let id = borrower.status().unwrap()["device"]["id"].clone();
    let mut get = borrower.spawn_get(&origin.url("32MiB"), &arguments);
    wait_for("a good part", SOON, || {
        borrower.wire(0).carried().down > 4_000_000
    });
    // One who does not answer any more.
    silent_daemon.signal(Signal::SIGSTOP);
    let began = Instant::now();
    daemon.signal(Signal::SIGTERM);
    let stopped = daemon.wait(STOPS_WITHIN).ok();
    let took = began.elapsed();
    let noticed = lender.wait_status("that the borrower left", Duration::from_secs(2), |s| {
        s["peers"].as_array().unwrap().iter().all(|p| p["id"] != id)
    });
    figure(format_args!(
        "daemon: stopped {:.2} s after SIGTERM in mid-download, beside a peer that hangs; the other saw it leave {:.2} s later",
        took.as_secs_f64(),
        noticed.as_secs_f64()
    ));
    let log = stopped.stderr;
    let order = [
        "stopping: transfers",
        "stopped: transfers",
        "stopping: links",
        "stopped: links",
        "stopped ms=",
    ];
    let places: Vec<_> = order
        .map(|line| {
            log.find(line)
                .unwrap_or_else(|| panic!("`{line}` is missing in:\n{log}"))
        })
        .into();
    assert!(places.is_sorted(), "{log}");
    silent_daemon.signal(Signal::SIGCONT);
    // Whoever asked for it either went on alone or was told to come again; the same command goes on in both cases.
    let asked = get.wait(Duration::from_secs(60));
    if !asked.status.success() {
        let resumed = borrower.get(&origin.url("32MiB"), &arguments);
        resumed.ok();
    }
    assert_eq!(
        fs::metadata(borrower.directory().join("file")).unwrap().len(),
        32 << 20
    );
}

#[test]
fn two_signals_at_once_end_it_at_once() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("alone", uplink(8.0, 2.0));
    let origin = lab.origin("origin.lab");
    let alone = lab.at("alone");
    let mut daemon = alone.spawn_daemon(&[]);
    alone.wait_status("itself", SOON, |status| lanes(status) == 1);
    let _get = alone.spawn_get(&origin.url("64MiB"), &["-o", "file"]);
    wait_for("bytes", SOON, || alone.wire(0).carried().down > 500_000);
    // It sees both in the same moment: which of them is the second one, nobody can say.
    daemon.signal(Signal::SIGSTOP);
    daemon.signal(Signal::SIGTERM);
    daemon.signal(Signal::SIGINT);
    daemon.signal(Signal::SIGCONT);
    let ended = daemon.wait(SOON);
    assert!(
        [Some(130), Some(143)].contains(&ended.status.code()),
        "{:?}",
        ended.status
    );
}

#[test]
fn at_its_usual_level_the_log_says_nothing_of_what_is_downloaded() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("borrower", uplink(20.0, 10.0))
        .peer("lender", uplink(20.0, 10.0));
    let origin = lab.origin("very-private.lab");
    let (borrower, lender) = (lab.at("borrower"), lab.at("lender"));
    let mut daemons: Vec<Process> = [borrower, lender].map(usual_daemon).into();
    borrower.wait_status("both lanes", SOON, |status| lanes(status) == 2);
    let url = format!("{}?token=hush", origin.url("4MiB"));
    borrower.get(&url, &["-o", "secret-name"]).ok();
    // What fails must not tell more.
    let failed = borrower.get("https://unknown-host.lab/secret-path", &["-o", "secret-other"]);
    assert!(!failed.status.success());
    for daemon in &daemons {
        daemon.signal(Signal::SIGTERM);
    }
    for daemon in &mut daemons {
        let log = daemon.wait(STOPS_WITHIN).ok().stderr;
        assert!(
            log.contains("peer joined") && log.contains("peer left"),
            "it logs:\n{log}"
        );
        for private in [
            "very-private",
            "secret",
            "hush",
            "203.0.113",
            "unknown-host",
            "4MiB",
        ] {
            assert!(!log.contains(private), "`{private}` is in the log:\n{log}");
        }
    }
}

#[test]
fn for_the_journal_lines_have_a_priority_and_neither_time_nor_colour() {
    if !installed("sh") {
        return;
    }
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("alone", uplink(20.0, 10.0));
    let alone = lab.at("alone");
    // The journal's pipe is known by its device and inode.
    let script = format!(
        "exec 2>journal; JOURNAL_STREAM=$(stat -L -c %d:%i journal); export JOURNAL_STREAM; exec {} run",
        env!("CARGO_BIN_EXE_tributary")
    );
    let mut command = alone.command("sh");
    command.args(["-c", &script]).env_remove("RUST_LOG");
    let mut daemon = alone.start("daemon", command);
    alone.wait_status("itself", SOON, |status| lanes(status) == 1);
    daemon.signal(Signal::SIGTERM);
    daemon.wait(STOPS_WITHIN).ok();
    let log = fs::read_to_string(alone.directory().join("journal")).unwrap();
    assert!(log.contains("ready"), "{log}");
    for line in log.lines() {
        assert!(line.starts_with("<6>") || line.starts_with("<4>"), "{line}");
        assert!(!line.contains('\u{1b}') && !line.contains("INFO"), "{line}");
    }
}

/// What the hardened unit leaves a service: a user of its own, no capability, no new privileges.
#[test]
fn without_any_privilege_it_lends_and_borrows_as_with_all() {
    if !installed("setpriv") {
        return;
    }
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("borrower", uplink(20.0, 10.0))
        .peer("lender", uplink(20.0, 10.0));
    let origin = lab.origin("origin.lab");
    let (borrower, lender) = (lab.at("borrower"), lab.at("lender"));
    let program = readable_copy(lender);
    let mut command = lender.command("setpriv");
    command
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
        ])
        .args(["--no-new-privs", "--"])
        .arg(program)
        .arg("run")
        .env("TRIBUTARY_STATE_DIR", lender.directory().join("state"));
    for directory in [lender.directory(), lender.directory().parent().unwrap()] {
        fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let _lender = lender.start("daemon", command);
    let _borrower = borrower.spawn_daemon(&[]);
    borrower.wait_status("the lender's lane", SOON, |status| lanes(status) == 2);
    let before = lender.wire(0).carried().down;
    let sha256 = origin.sha256("8MiB");
    borrower
        .get(&origin.url("8MiB"), &["-o", "file", "--sha256", &sha256])
        .ok();
    let lent = lender.wire(0).carried().down - before;
    assert!(
        lent > 2_000_000,
        "{lent} bytes by the uplink of a lender without privileges"
    );
}

/// The build directory is not everybody's to enter.
fn readable_copy(peer: &Peer) -> std::path::PathBuf {
    let copy = peer.directory().join("tributary");
    fs::copy(env!("CARGO_BIN_EXE_tributary"), &copy).unwrap();
    copy
}

/// As a service: no word about the level from anybody.
fn usual_daemon(peer: &Peer) -> Process {
    let mut command: Command = peer.tributary(&["run"]);
    command.env_remove("RUST_LOG");
    peer.start("daemon", command)
}

/// Plays the service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Self {
        Self(UnixDatagram::bind(path).unwrap())
    }

    /// The next message, if one comes within that time.
    fn next(&self, limit: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(limit)).unwrap();
        let mut buffer = [0; 4096];
        match self.0.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8(buffer[..length].to_vec()).unwrap()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits for a message with that in it.
    #[track_caller]
    fn until(&self, what: &str) -> String {
        self.until_with(what, |_| {})
    }

    #[track_caller]
    fn until_with(&self, what: &str, look: impl Fn(&str)) -> String {
        let end = Instant::now() + SOON;
        while let Some(message) = self.next(
            end.saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1)),
        ) {
            look(&message);
            if message.contains(what) {
                return message;
            }
        }
        panic!("the manager was not told `{what}`");
    }

    fn when(&self, what: &str) -> Instant {
        self.until(what);
        Instant::now()
    }
}
