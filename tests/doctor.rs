//! `tributary doctor` in households where something is wrong, each in one way: it must name that, and nothing else.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of these tests fail them"
)]

mod lab;

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use lab::{Finished, Lab, Peer, figure, installed, lanes, no_uplink, peers, uplink};
use nix::sys::signal::Signal;
use serde_json::Value;
use tributary::discovery::{Discovery, DiscoveryConfig};
use tributary::task::Tasks;
use tributary::uplink as ways;

const SOON: Duration = Duration::from_secs(15);
/// The doctor's own promise, and what a busy machine adds.
const DONE_WITHIN: Duration = Duration::from_millis(6_500);
/// The checks, in their order: scripts rely on these.
const CHECKS: [&str; 13] = [
    "daemon",
    "state",
    "kernel",
    "clock",
    "limits",
    "lan",
    "port",
    "multicast",
    "peers",
    "firewall",
    "lines",
    "uplinks",
    "names",
];

#[test]
fn in_a_healthy_household_everything_is_fine() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("ann", uplink(20.0, 10.0).delay_ms(10))
        .peer("bob", uplink(20.0, 10.0).delay_ms(10));
    let _origin = lab.origin("origin.lab");
    let (ann, bob) = (lab.at("ann"), lab.at("bob"));
    let _daemons = together(ann, bob);
    let report = examined(ann);
    for check in checks(&report.json) {
        assert_eq!(check["verdict"], "fine", "{check}");
        assert_eq!(check["means"], Value::Null, "{check}");
        assert_eq!(check["advice"], Value::Array(vec![]), "{check}");
    }
    assert_eq!(report.code, Some(0));
    assert!(found(&report.json, "peers").contains("bob (10.77.0.2)"));
    assert!(found(&report.json, "lines").starts_with("2 lines: "));
    assert!(found(&report.json, "uplinks").contains("reached origin.lab:443 by wan0 in "));
    assert!(found(&report.json, "multicast").contains("1 announces tributary"));
    let status = ann.status().unwrap();
    assert_eq!(peers(&status), 1, "no guest beside a daemon: {status}");
    figure(format_args!(
        "doctor: a healthy household of two, with a daemon: {:.1} s",
        report.elapsed.as_secs_f64()
    ));
}

#[test]
fn the_report_is_an_object_of_a_stable_shape_and_the_text_fits_a_terminal() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("ann", uplink(20.0, 10.0));
    let ann = lab.at("ann");
    let report = examined(ann).json;
    let names: Vec<_> = checks(&report)
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, CHECKS);
    for check in checks(&report) {
        let mut fields: Vec<_> = check.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["advice", "found", "means", "name", "verdict"]);
        assert!(["fine", "note", "problem"].contains(&check["verdict"].as_str().unwrap()));
        assert!(!check["found"].as_str().unwrap().is_empty());
        let fine = check["verdict"] == "fine";
        assert_eq!(check["means"].is_null(), fine, "{check}");
        assert!(check["advice"].is_array());
    }
    let problems = checks(&report)
        .iter()
        .filter(|c| c["verdict"] == "problem")
        .count();
    let notes = checks(&report).iter().filter(|c| c["verdict"] == "note").count();
    assert_eq!(report["problems"], problems);
    assert_eq!(report["notes"], notes);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));

    for (locale, ascii) in [("C.UTF-8", false), ("C", true)] {
        let mut command = ann.tributary(&["doctor", "--offline"]);
        command.env("LC_ALL", locale);
        let text = ann.run("doctor", command).stdout;
        assert_eq!(text.is_ascii(), ascii, "{locale}: {text}");
        assert!(!text.contains('\u{1b}'), "no colours in a file: {text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("not tried (--offline)"), "{text}");
        for name in CHECKS {
            assert!(text.contains(&format!(" {name} ")), "{name}: {text}");
        }
    }
    let state = ann.directory().join("state");
    assert!(!state.exists(), "nothing was written");
}

#[test]
fn without_a_daemon_it_joins_as_a_guest_and_sees_who_comes_in() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("ann", uplink(20.0, 10.0))
        .peer("bob", uplink(20.0, 10.0));
    let _origin = lab.origin("origin.lab");
    let (ann, bob) = (lab.at("ann"), lab.at("bob"));
    let _daemon = bob.spawn_daemon(&[]);
    bob.wait_status("itself", SOON, |_| true);
    let report = examined(ann);
    assert_eq!(report.of("daemon"), "note");
    for fine in [
        "lan",
        "port",
        "multicast",
        "peers",
        "firewall",
        "lines",
        "uplinks",
    ] {
        assert_eq!(report.of(fine), "fine", "{}", report.json);
    }
    assert!(found(&report.json, "firewall").contains("bob came by itself"));
    assert_eq!(
        found(&report.json, "lines"),
        "2 lines: this device's wan0 and bob's wan0"
    );
    assert_eq!(report.code, Some(0), "notes are no problems");
    bob.wait_status("the guest's farewell", SOON, |status| peers(status) == 0);
    figure(format_args!(
        "doctor: as a guest: {:.1} s",
        report.elapsed.as_secs_f64()
    ));
}

#[test]
fn multicast_that_does_not_pass_is_named_by_a_peer_that_is_there_all_the_same() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("ann", uplink(20.0, 10.0))
        .peer("bob", uplink(20.0, 10.0));
    let _origin = lab.origin("origin.lab");
    let (ann, bob) = (lab.at("ann"), lab.at("bob"));
    let mut daemons = together(ann, bob);
    lab.lan_multicast(false);
    for daemon in [true, false] {
        if !daemon {
            // What remains is where bob was met.
            daemons.0.signal(Signal::SIGTERM);
            daemons.0.wait(SOON).ok();
        }
        let report = examined(ann);
        assert_eq!(report.problems(), ["multicast"], "{}", report.json);
        assert!(found(&report.json, "multicast").contains("10.77.0.2 is there and was not heard"));
        assert!(report.advice("multicast").contains("peers = [\"10.77.0.2\"]"));
        assert_eq!(report.of("peers"), "fine", "{}", report.json);
        assert_eq!(report.code, Some(1));
    }
}

#[test]
fn a_port_that_another_program_has_is_named_with_how_to_find_it() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("ann", uplink(20.0, 10.0));
    let ann = lab.at("ann");
    let _squatter = ann.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7436)));
    for (config, verdict) in [("", "note"), ("[lan]\nport = 7436\n", "problem")] {
        ann.configure(config);
        let report = examined(ann);
        assert_eq!(report.of("port"), verdict, "{}", report.json);
        assert!(found(&report.json, "port").contains("UDP port 7436 is taken"));
        assert!(report.advice("port").contains("ss -ulpn 'sport = :7436'"));
    }
    ann.configure("");
    let _daemon = ann.spawn_daemon(&[]);
    ann.wait_status("itself", SOON, |_| true);
    let report = examined(ann);
    assert_eq!(report.of("port"), "note", "{}", report.json);
    assert!(found(&report.json, "port").starts_with("the daemon has UDP port "));
}

#[test]
fn an_mdns_port_that_is_not_shared_is_named() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("ann", uplink(20.0, 10.0));
    let ann = lab.at("ann");
    let _selfish = ann.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5353)));
    let report = examined(ann);
    assert_eq!(report.of("multicast"), "problem", "{}", report.json);
    assert!(found(&report.json, "multicast").contains("another program has UDP port 5353"));
    assert!(report.advice("multicast").contains("disallow-other-stacks=no"));
}

#[test]
fn a_lan_cable_that_is_out_is_named() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("ann", uplink(20.0, 10.0))
        .peer("bob", uplink(20.0, 10.0));
    let ann = lab.at("ann");
    ann.lan_cable(false);
    let report = examined(ann);
    assert_eq!(report.of("lan"), "problem", "{}", report.json);
    let lan = found(&report.json, "lan");
    assert!(lan.contains("lan0 (down, or no cable)"), "{lan}");
    assert!(lan.contains("wan0 (a tunnel, or a container's network)"), "{lan}");
}

#[test]
fn a_household_of_one_line_is_told_that_nothing_can_be_faster() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("ann", uplink(20.0, 10.0)).peer("bob", no_uplink());
    let _origin = lab.origin("origin.lab");
    let (ann, bob) = (lab.at("ann"), lab.at("bob"));
    let daemons = (ann.spawn_daemon(&[]), bob.spawn_daemon(&[]));
    for peer in [ann, bob] {
        peer.wait_status("the other", SOON, |s| peers(s) == 1 && lanes(s) == 1);
    }
    for (peer, whose) in [(ann, "this device's wan0"), (bob, "ann's wan0")] {
        let report = examined(peer);
        assert_eq!(report.problems(), ["lines"], "{}", report.json);
        let expected = format!("1 line in the whole household: {whose}");
        assert_eq!(found(&report.json, "lines"), expected);
        assert!(
            report.json["checks"][10]["means"]
                .as_str()
                .unwrap()
                .contains("cannot make anything faster")
        );
    }
    drop(daemons);
}

#[test]
fn an_uplink_that_reaches_nothing_is_named_and_the_other_is_not() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("ann", [uplink(20.0, 10.0), uplink(20.0, 10.0)]);
    let _origin = lab.origin("origin.lab");
    let ann = lab.at("ann");
    ann.wire(1).cut();
    let report = examined(ann);
    assert_eq!(report.problems(), ["uplinks"], "{}", report.json);
    let uplinks = found(&report.json, "uplinks");
    assert!(
        uplinks.contains("cannot be reached by wan1 (no answer in 3 s)"),
        "{uplinks}"
    );
    assert!(uplinks.contains("reached origin.lab:443 by wan0"), "{uplinks}");
    assert!(report.advice("uplinks").contains("curl --interface wan1"));
}

#[test]
fn a_name_that_is_not_found_is_named_and_the_uplinks_are_not_blamed() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("ann", [uplink(20.0, 10.0), uplink(20.0, 10.0)]);
    let ann = lab.at("ann");
    let report = examined(ann);
    assert_eq!(report.problems(), ["names"], "{}", report.json);
    assert_eq!(report.of("uplinks"), "note");
}

#[test]
fn a_peer_that_announces_a_port_where_nothing_gets_in_is_behind_a_firewall() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("ann", uplink(20.0, 10.0))
        .peer("bob", uplink(20.0, 10.0));
    let _origin = lab.origin("origin.lab");
    let (ann, bob) = (lab.at("ann"), lab.at("bob"));
    // Mute, as behind a firewall that drops; and closed, as behind one that refuses.
    let mute = bob.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)));
    let closed = bob.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.local_addr());
    for port in [mute.local_addr().unwrap().port(), closed.port()] {
        let announced = announce(bob, port);
        let report = examined(ann);
        drop(announced);
        assert!(report.problems().contains(&"peers".to_owned()), "{}", report.json);
        let found = found(&report.json, "peers");
        assert!(
            found.contains(&format!("10.77.0.2:{port} on lan0: announced by mDNS")),
            "{found}"
        );
        assert!(report.advice("peers").contains(&format!("ufw allow {port}/udp")));
        assert_eq!(report.of("multicast"), "fine");
    }
}

#[test]
fn whatever_listens_and_is_no_daemon_is_named() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("ann", uplink(20.0, 10.0));
    let ann = lab.at("ann");
    let state = ann.directory().join("state");
    fs::create_dir_all(&state).unwrap();
    let other = UnixListener::bind(state.join("control.sock")).unwrap();
    let answering = thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        let _ = stream.write_all(b"220 hello\n");
    });
    let report = examined(ann);
    answering.join().unwrap();
    assert_eq!(report.of("daemon"), "problem", "{}", report.json);
    assert!(found(&report.json, "daemon").contains("control.sock"));
}

/// Without root: the daemon is another user's, and everything else works all the same.
#[test]
fn a_user_who_may_not_ask_the_daemon_is_told_how_to_be_allowed() {
    if !installed("setpriv") {
        return;
    }
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("ann", uplink(20.0, 10.0))
        .peer("bob", uplink(20.0, 10.0));
    let _origin = lab.origin("origin.lab");
    let (ann, bob) = (lab.at("ann"), lab.at("bob"));
    let as_nobody = |arguments: &[&str]| {
        let mut command = ann.command("setpriv");
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
            .args(arguments)
            .env_remove("TRIBUTARY_CONFIG")
            .env_remove("HOME");
        ann.run("nobody", command)
    };
    let program = env!("CARGO_BIN_EXE_tributary");
    if !as_nobody(&[program, "--version"]).status.success() {
        figure("skipped: this program cannot be run as another user here");
        return;
    }
    let _daemons = together(ann, bob);
    let finished = as_nobody(&[program, "doctor", "--json", "--probe", "origin.lab"]);
    let json: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert!(finished.elapsed <= DONE_WITHIN, "{:?}", finished.elapsed);
    assert!(found(&json, "daemon").contains("may not open"), "{json}");
    assert!(
        check(&json, "daemon")["advice"]
            .to_string()
            .contains("usermod -aG")
    );
    for fine in [
        "state",
        "kernel",
        "lan",
        "port",
        "multicast",
        "peers",
        "lines",
        "uplinks",
        "names",
    ] {
        assert_eq!(check(&json, fine)["verdict"], "fine", "{json}");
    }
    // The own daemon beside it, which links with the guest as well, is no peer and no second line.
    assert_eq!(found(&json, "peers"), "linked with 1 peer: bob (10.77.0.2)");
    assert_eq!(
        found(&json, "lines"),
        "2 lines: this device's wan0 and bob's wan0"
    );
}

/// What the doctor said of one device.
struct Report {
    json: Value,
    code: Option<i32>,
    elapsed: Duration,
}

impl Report {
    fn of(&self, name: &str) -> &str {
        check(&self.json, name)["verdict"].as_str().unwrap()
    }

    fn advice(&self, name: &str) -> String {
        check(&self.json, name)["advice"]
            .to_string()
            .replace("\\\"", "\"")
    }

    /// The checks that are problems.
    fn problems(&self) -> Vec<String> {
        let problems = checks(&self.json).iter().filter(|c| c["verdict"] == "problem");
        problems.map(|c| c["name"].as_str().unwrap().to_owned()).collect()
    }
}

#[track_caller]
fn examined(peer: &Peer) -> Report {
    let arguments = ["doctor", "--json", "--probe", "origin.lab"];
    let Finished {
        status,
        stdout,
        stderr,
        elapsed,
        ..
    } = peer.run("doctor", peer.tributary(&arguments));
    let json = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}\n{stderr}"));
    assert!(elapsed <= DONE_WITHIN, "{elapsed:?}");
    let report = Report {
        json,
        code: status.code(),
        elapsed,
    };
    assert_eq!(report.code, Some(i32::from(!report.problems().is_empty())));
    report
}

fn checks(report: &Value) -> &[Value] {
    report["checks"].as_array().unwrap()
}

#[track_caller]
fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let found = checks(report).iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no check `{name}` in {report}"))
}

fn found<'a>(report: &'a Value, name: &str) -> &'a str {
    check(report, name)["found"].as_str().unwrap()
}

/// Both daemons, once they are linked.
fn together(ann: &Peer, bob: &Peer) -> (lab::Process, lab::Process) {
    let daemons = (ann.spawn_daemon(&[]), bob.spawn_daemon(&[]));
    for peer in [ann, bob] {
        peer.wait_status("the other", SOON, |s| peers(s) == 1 && lanes(s) == 2);
    }
    daemons
}

/// Announces tributary on a peer's LAN until it is dropped.
struct Announced {
    tasks: Tasks,
    thread: Option<thread::JoinHandle<()>>,
}

fn announce(peer: &Peer, port: u16) -> Announced {
    let tasks = Tasks::new();
    let (own, namespace) = (tasks.clone(), peer.namespace());
    let announce = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let network = ways::watch(
                [0; 16],
                tokio::sync::watch::channel(ways::Rules::default()).1,
                &own,
            )
            .await;
            let interfaces = None;
            let _announced = Discovery::start(DiscoveryConfig { port, interfaces }, network, &own).unwrap();
            own.token().cancelled().await;
            own.stop(Duration::from_secs(2)).await;
        });
        Ok(())
    };
    let thread = thread::spawn(move || namespace.run(announce).unwrap());
    Announced {
        tasks,
        thread: Some(thread),
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.tasks.token().cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
