//! Which lines are really different: shared ones are named and counted once, what they bring together is foretold, and of
//! the lanes on one line another takes over where the one at work dies.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail them")]

mod lab;

use std::time::{Duration, Instant};

use lab::{
    Finished, Lab, Origin, Peer, Process, figure, lanes, measured, no_uplink, peers, uplink, wait_for,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(15);
const LIMIT: Duration = Duration::from_secs(120);
const MIB: f64 = 1_048_576.0;
/// A download over lines that are really different reaches this part of their rates' sum.
const SHARE: f64 = 0.9;
/// The speed-up that is foretold is so near to the one measured.
const FORETOLD: f64 = 0.15;
/// Of two lanes on one line, the other one has taken over this long after the first one's death.
const TAKEN_OVER: Duration = Duration::from_secs(4);

#[test]
fn two_peers_behind_one_router_and_one_with_its_own_line_are_two_lines_and_it_is_told_what_they_bring() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("router", uplink(20.0, 10.0).delay_ms(10))
        .peer("desk", no_uplink())
        .peer("kitchen", no_uplink())
        .peer("attic", uplink(12.0, 6.0).delay_ms(15))
        .behind("desk", "router")
        .behind("kitchen", "router");
    let origin = lab.origin("origin.lab");
    let desk = lab.at("desk");
    let running = ["desk", "kitchen", "attic"].map(|name| lab.at(name).spawn_daemon(&[]));
    let took = desk.wait_status("two lines", SOON, |status| {
        lines(status) == 2 && lanes(status) == 3
    });
    figure(format_args!(
        "lines: both behind the router know their gateway {:.2} s after the start",
        took.as_secs_f64()
    ));
    let status = desk.status().unwrap();
    assert_eq!(
        status["forecast"]["text"],
        "3 devices, 2 lines: not measured yet; a download will tell"
    );
    let shared = lane(&status, "kitchen");
    assert_eq!(
        (shared["used"].as_bool(), shared["why"].as_str()),
        (Some(false), Some("shares this device's line"))
    );
    let ids = ["desk", "kitchen"].map(|name| own_line(&lab.at(name).status().unwrap()));
    assert_eq!(ids[0], ids[1], "both name their line alike");

    get(desk, &origin, "24MiB", &[]);
    let status = desk.status().unwrap();
    let (expected, times) = (number(&status, "expected"), number(&status, "times"));
    let compare = || {
        let alone = get(desk, &origin, "32MiB", &["--no-pool"]);
        let pooled = get(desk, &origin, "64MiB", &[]);
        let gain = pooled / alone;
        figure(format_args!(
            "lines: {}; foretold {:.1} Mbit/s, {times:.2}x; measured {pooled:.1} of 32 Mbit/s ({:.3}), alone {alone:.1}, {gain:.2}x",
            status["forecast"]["text"],
            expected / 1e6,
            pooled / 32.0
        ));
        (pooled, gain)
    };
    measured("0.9 of the sum, and as foretold", compare, |(pooled, gain)| {
        pooled / 32.0 >= SHARE && (times / gain - 1.0).abs() <= FORETOLD
    });
    let kitchen = lab.at("kitchen");
    kitchen.wait_status("what the attic's line brings, in its own words", SOON, |status| {
        lane(status, "attic")["rate"]
            .as_f64()
            .is_some_and(|r| (10e6..13e6).contains(&r))
    });
    let text = desk.run("status", desk.tributary(&["status"])).ok().stdout;
    figure(format_args!("{text}"));
    assert!(text.contains("shares this device's line"), "{text}");
    assert!(text.contains("3 devices, 2 lines: expect up to"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    drop(running);
}

#[test]
fn a_device_whose_gateway_is_a_peer_ends_in_that_peers_line() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("router", uplink(20.0, 10.0).delay_ms(10))
        .peer("desk", no_uplink())
        .peer("attic", uplink(12.0, 6.0).delay_ms(15))
        .behind("desk", "router");
    let (router, desk, attic) = (lab.at("router"), lab.at("desk"), lab.at("attic"));
    let mut first = router.spawn_daemon(&[]);
    let others = [desk, attic].map(|peer| peer.spawn_daemon(&[]));
    for peer in [desk, attic] {
        peer.wait_status("two lines of three lanes", SOON, |status| {
            lines(status) == 2 && lanes(status) == 3
        });
    }
    let line = own_line(&router.status().unwrap());
    assert_eq!(own_line(&desk.status().unwrap()), line);
    let status = attic.status().unwrap();
    assert_eq!(lane(&status, "desk")["line"], line.as_str());
    let idle: Vec<_> = ["desk", "router"]
        .into_iter()
        .filter(|name| !lane(&status, name)["used"].as_bool().unwrap())
        .collect();
    assert_eq!(idle.len(), 1, "{status}");
    let origin = lab.origin("origin.lab");
    let fetch = || {
        let before = router.wire(0).carried().down;
        let rate = get(attic, &origin, "24MiB", &[]);
        let routed = (router.wire(0).carried().down - before) as f64 / (24.0 * MIB);
        figure(format_args!(
            "lines: behind a peer: {rate:.1} of 32 Mbit/s, {routed:.2} of the file by the shared line"
        ));
        rate
    };
    measured("more than 0.8 of the sum", fetch, |rate| rate / 32.0 > 0.8);
    // Without the router's own word its MAC address tells the line again; lanes stay what they are.
    first.signal(Signal::SIGTERM);
    first.wait(Duration::from_secs(6)).ok();
    desk.wait_status("a line of its own word", SOON, |status| {
        peers(status) == 1 && own_line(status) != line
    });
    drop(others);
}

#[test]
fn of_two_lenders_on_one_line_the_other_takes_over_when_the_one_at_work_is_killed() {
    for fault in [Signal::SIGKILL, Signal::SIGSTOP] {
        let Some(lab) = Lab::beside() else { return };
        let lab = lab
            .peer("router", uplink(20.0, 10.0).delay_ms(10))
            .peer("ann", no_uplink())
            .peer("bob", no_uplink())
            .peer("borrower", no_uplink())
            .behind("ann", "router")
            .behind("bob", "router");
        let origin = lab.origin("origin.lab");
        let mut lenders = ["ann", "bob"].map(|name| (name, lab.at(name).spawn_daemon(&[])));
        let borrower = lab.at("borrower");
        let _daemon = borrower.spawn_daemon(&[]);
        borrower.wait_status("both lanes, one line", SOON, |s| lanes(s) == 2 && lines(s) == 1);
        let sha256 = origin.sha256("24MiB");
        let mut get = borrower.spawn_get(&origin.url("24MiB"), &["-o", "file", "--sha256", &sha256]);
        let wire = lab.at("router").wire(0);
        wait_for("half of it", SOON, || wire.carried().down > 12 << 20);
        let at_work = working(&get).unwrap();
        let victim = lenders.iter_mut().find(|(name, _)| *name == at_work).unwrap();
        victim.1.signal(fault);
        let struck = Instant::now();
        // The wire says nothing here: the kernel of a stopped lender goes on receiving.
        wait_for("the other one's first bytes", SOON, || brings(&get, &at_work));
        let took = struck.elapsed();
        let finished = get.wait(LIMIT).ok();
        let done = finished.report("done").unwrap();
        let brought = |name: &str| {
            let lanes = done["lanes"].as_array().unwrap();
            let of = |l: &&Value| l["owner"] == name;
            lanes
                .iter()
                .filter(of)
                .map(|l| l["bytes"].as_u64().unwrap())
                .sum::<u64>()
        };
        figure(format_args!(
            "lines: {fault}: the other one brings bytes {:.2} s later; ann brought {:.1} MiB, bob {:.1} MiB",
            took.as_secs_f64(),
            brought("ann") as f64 / MIB,
            brought("bob") as f64 / MIB
        ));
        if fault == Signal::SIGSTOP {
            victim.1.signal(Signal::SIGCONT);
        }
        assert!(brought("ann") > 0 && brought("bob") > 0);
        assert!(took <= TAKEN_OVER, "{took:?}");
    }
}

#[test]
fn two_cables_of_one_device_to_one_router_are_one_line_and_either_will_do() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("router", uplink(20.0, 10.0).delay_ms(10))
        .peer("desk", no_uplink())
        .behind("desk", "router")
        .behind_twice("desk", "router");
    let origin = lab.origin("origin.lab");
    let desk = lab.at("desk");
    let _daemon = desk.spawn_daemon(&[]);
    desk.wait_status("two lanes, one line", SOON, |s| lanes(s) == 2 && lines(s) == 1);
    let status = desk.status().unwrap();
    assert_eq!(status["forecast"]["text"], "1 device, 1 line: nothing to pool");
    let idle = |l: &&Value| l["why"] == "shares this device's line";
    assert_eq!(
        status["lanes"].as_array().unwrap().iter().filter(idle).count(),
        1,
        "{status}"
    );
    let router = lab.at("router").lan_address();
    assert!(desk.knows("lan0", router) && desk.knows("lan1", router));
    let sha256 = origin.sha256("16MiB");
    let mut get = desk.spawn_get(&origin.url("16MiB"), &["-o", "file", "--sha256", &sha256]);
    let wire = lab.at("router").wire(0);
    wait_for("a part of it", SOON, || wire.carried().down > 6 << 20);
    desk.lan_cable(false);
    let done = get.wait(LIMIT).ok().report("done").unwrap();
    figure(format_args!(
        "lines: the first of two cables pulled: {:.1} s for 16 MiB of 20 Mbit/s",
        done["elapsed"].as_f64().unwrap()
    ));
    let used = done["lanes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|l| l["bytes"] != 0);
    assert_eq!(used.count(), 2, "{done}");
}

#[test]
fn a_device_alone_with_two_lines_of_its_own_pools_them_and_says_so() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer(
        "alone",
        [uplink(20.0, 10.0).delay_ms(10), uplink(12.0, 6.0).delay_ms(20)],
    );
    let origin = lab.origin("origin.lab");
    let alone = lab.at("alone");
    let _daemon = alone.spawn_daemon(&[]);
    alone.wait_status("both lines", SOON, |s| lanes(s) == 2 && lines(s) == 2);
    get(alone, &origin, "16MiB", &[]);
    let rate = measured(
        "0.9 of the sum",
        || get(alone, &origin, "64MiB", &[]),
        |rate| rate / 32.0 >= SHARE,
    );
    let status = alone.status().unwrap();
    let text = status["forecast"]["text"].as_str().unwrap();
    figure(format_args!("lines: alone: {rate:.1} of 32 Mbit/s; {text}"));
    assert!(
        text.starts_with("1 device, 2 lines: expect up to 3") && text.ends_with("x the best line"),
        "{text}"
    );
    let times = number(&status, "times");
    assert!((times / 1.6 - 1.0).abs() <= FORETOLD, "{times}");
}

#[test]
fn rates_are_remembered_over_a_restart_and_a_status_that_is_watched_waits_for_the_daemon() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("desk", uplink(20.0, 10.0).delay_ms(5))
        .peer("attic", uplink(10.0, 10.0).delay_ms(5));
    let origin = lab.origin("origin.lab");
    let desk = lab.at("desk");
    let mut watched = desk.start("watch", desk.tributary(&["status", "--watch"]));
    let json = desk.start("watch-json", desk.tributary(&["status", "-w", "--json"]));
    wait_for("a word", SOON, || watched.stdout() == "waiting for the daemon\n");
    let lender = lab.at("attic").spawn_daemon(&[]);
    let mut daemon = desk.spawn_daemon(&[]);
    desk.wait_status("two lines", SOON, |s| lines(s) == 2);
    get(desk, &origin, "16MiB", &[]);
    let said = desk.status().unwrap()["forecast"]["text"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(said.starts_with("2 devices, 2 lines: expect up to"), "{said}");
    wait_for("the same, watched", SOON, || watched.stdout().contains(&said));
    daemon.signal(Signal::SIGTERM);
    daemon.wait(Duration::from_secs(6)).ok();
    wait_for("a word of its end", SOON, || {
        watched.stdout().ends_with("\nwaiting for the daemon\n")
    });
    let _daemon = desk.spawn_daemon(&[]);
    desk.wait_status("what was measured before", SOON, |s| {
        lines(s) == 2 && s["forecast"]["times"].as_f64().is_some()
    });
    let blocks = watched.stdout().len();
    wait_for("one more block", SOON, || watched.stdout().len() > blocks);
    for line in watched.stdout().lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    watched.signal(Signal::SIGINT);
    watched.wait(SOON).ok();
    let objects = json
        .stdout()
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).is_ok())
        .collect::<Vec<_>>();
    assert!(
        objects.len() > 2 && objects.iter().all(|ok| *ok),
        "{}",
        json.stdout()
    );
    drop(lender);
}

/// Downloads a file, which must be right; gives the content's Mbit/s.
#[track_caller]
fn get(peer: &Peer, origin: &Origin, size: &str, args: &[&str]) -> f64 {
    let sha256 = origin.sha256(size);
    let _ = std::fs::remove_file(peer.directory().join("file"));
    let fixed = ["-o", "file", "--sha256", &sha256];
    let finished: Finished = peer
        .spawn_get(&origin.url(size), &[&fixed, args].concat())
        .wait(LIMIT)
        .ok();
    origin.length(size) as f64 * 8.0 / finished.elapsed.as_secs_f64() / 1e6
}

/// Who the download gets bytes from.
fn working(get: &Process) -> Option<String> {
    let progress = get.report("progress")?;
    let lanes = progress["lanes"].as_array()?;
    let lane = lanes.iter().find(|l| l["state"] == "active")?;
    Some(lane["owner"].as_str()?.to_owned())
}

/// Whether anybody else than that lender has brought something.
fn brings(get: &Process, other_than: &str) -> bool {
    let progress = get.report("progress").unwrap_or_default();
    let mut lanes = progress["lanes"].as_array().into_iter().flatten();
    lanes.any(|l| l["owner"] != other_than && l["bytes"].as_u64().is_some_and(|bytes| bytes > 0))
}

fn lines(status: &Value) -> u64 {
    status["forecast"]["lines"].as_u64().unwrap_or_default()
}

fn number(status: &Value, field: &str) -> f64 {
    status["forecast"][field].as_f64().unwrap_or(f64::NAN)
}

fn lane<'a>(status: &'a Value, owner: &str) -> &'a Value {
    let mut lanes = status["lanes"].as_array().unwrap().iter();
    lanes.find(|lane| lane["owner"] == owner).unwrap_or(&Value::Null)
}

fn own_line(status: &Value) -> String {
    lane(status, "this device")["line"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}
