//! Thirty devices in one household: how soon they know each other, and what they say to each other when nothing happens.

mod lab;

use std::thread;
use std::time::{Duration, Instant};

use lab::{Heard, Lab, Process, figure, no_uplink, peers};

const DEVICES: usize = 30;
/// From the start of the first until every one of them has a link to every other.
const ALL_WITHIN: Duration = Duration::from_secs(5);
/// Until the start has quietened down: mDNS repeats its first questions and answers for some seconds.
const SETTLE: Duration = Duration::from_secs(20);
/// Bytes of mDNS a second, by all of them together, Ethernet's headers included.
const MDNS_RATE: f64 = 2000.0;

#[test]
fn thirty_peers_started_at_once_all_see_each_other_within_five_seconds() {
    let Some(lab) = household() else { return };
    let ear = lab.listen_on_lan();
    let (daemons, took) = start_all(&lab);
    let used: f64 = daemons.iter().map(|d| d.cpu().as_secs_f64()).sum();
    let heard = ear.heard();
    figure(format_args!(
        "thirty: all {DEVICES} see all others {:.2} s after the first one's start; {used:.2} s of CPU; mDNS {} frames, \
         {:.0} kB; links {} frames, {:.0} kB",
        took.as_secs_f64(),
        heard.mdns,
        heard.mdns_bytes as f64 / 1e3,
        heard.udp,
        heard.udp_bytes as f64 / 1e3
    ));
    for daemon in &daemons {
        let log = daemon.stderr();
        assert!(!log.contains(" WARN "), "thirty are no flood: {log}");
    }
    assert!(took <= ALL_WITHIN, "{took:?}");
}

#[test]
#[ignore = "most of a minute: run by CI"]
fn thirty_idle_peers_say_little() {
    idle(Duration::from_secs(30));
}

#[test]
#[ignore = "ten minutes, past every record's life: run by hand"]
fn thirty_idle_peers_say_little_for_ten_minutes() {
    idle(Duration::from_secs(600));
}

fn idle(time: Duration) {
    let Some(lab) = household() else { return };
    let ear = lab.listen_on_lan();
    let (daemons, _) = start_all(&lab);
    thread::sleep(SETTLE);
    let cpu = || daemons.iter().map(|d| d.cpu().as_secs_f64()).sum::<f64>();
    let (heard, used, began) = (ear.heard(), cpu(), Instant::now());
    let (mut before, mut worst) = (heard, 0_f64);
    while began.elapsed() < time {
        thread::sleep(Duration::from_secs(10));
        let now = ear.heard();
        worst = worst.max((now.mdns_bytes - before.mdns_bytes) as f64 / 10.0);
        before = now;
    }
    let seconds = began.elapsed().as_secs_f64();
    let said = per_second(heard, ear.heard(), seconds);
    figure(format_args!(
        "thirty: idle for {seconds:.0} s: mDNS {:.0} of {MDNS_RATE} B/s ({:.1} frames/s; worst 10 s: {worst:.0} B/s), \
         links {:.0} B/s ({:.0} frames/s, {:.2} for each of 435), CPU {:.2} % of a core for each device",
        said.mdns_bytes,
        said.mdns,
        said.udp_bytes,
        said.udp,
        said.udp / 435.0,
        (cpu() - used) / seconds * 100.0 / DEVICES as f64
    ));
    assert!(said.mdns_bytes < MDNS_RATE, "{said:?}");
}

#[derive(Debug)]
struct Rates {
    mdns: f64,
    mdns_bytes: f64,
    udp: f64,
    udp_bytes: f64,
}

fn per_second(from: Heard, to: Heard, seconds: f64) -> Rates {
    Rates {
        mdns: (to.mdns - from.mdns) as f64 / seconds,
        mdns_bytes: (to.mdns_bytes - from.mdns_bytes) as f64 / seconds,
        udp: (to.udp - from.udp) as f64 / seconds,
        udp_bytes: (to.udp_bytes - from.udp_bytes) as f64 / seconds,
    }
}

fn household() -> Option<Lab> {
    let mut lab = Lab::new()?;
    for number in 1..=DEVICES {
        lab = lab.peer(&format!("peer{number}"), no_uplink());
    }
    Some(lab)
}

/// Starts every device; returns when each has a link to every other, and how long that took.
fn start_all(lab: &Lab) -> (Vec<Process>, Duration) {
    let began = Instant::now();
    let daemons: Vec<_> = lab.peers().iter().map(|peer| peer.spawn_daemon(&[])).collect();
    let mut waiting: Vec<_> = lab.peers().iter().collect();
    while !waiting.is_empty() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{:?}",
            waiting
                .iter()
                .map(|peer| (peer.name(), peer.ask_status().map(|s| peers(&s))))
                .collect::<Vec<_>>()
        );
        // Asking costs the processor that they need, too.
        thread::sleep(Duration::from_millis(50));
        waiting.retain(|peer| peer.ask_status().is_none_or(|s| peers(&s) < DEVICES - 1));
    }
    (daemons, began.elapsed())
}
