//! The lab measured by itself: what it promises about rates, delays and losses must be so before anything else is
//! measured with it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of these tests fail them"
)]

mod lab;

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::{Duration, Instant};

use lab::{INTERNET, Lab, Peer, SOON, figure, installed, measured, no_uplink, uplink};
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, Socket, Type};

/// IP and UDP headers.
const HEADERS: usize = 28;

#[test]
fn a_wire_carries_its_rate_and_not_more() {
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("peer", uplink(20.0, 10.0).delay_ms(15));
    let path = Path::new(&lab, lab.at("peer"), 0);
    for (way, asked) in [(Way::Down, 20.0), (Way::Up, 10.0)] {
        let rate = measured(
            &format!("{way:?}: 0.97 to 1.01 of {asked} Mbit/s"),
            || path.flood(way, 1.5 * asked, Duration::from_secs(2)),
            |rate| (0.97..=1.01).contains(&(rate / asked)),
        );
        figure(format_args!("wire: {way:?} {rate:.2} of {asked} Mbit/s"));
    }
}

#[test]
fn tcp_fills_a_wire() {
    let Some(lab) = Lab::new() else { return };
    if !installed("curl") {
        return;
    }
    let lab = lab.peer("peer", uplink(20.0, 10.0).delay_ms(15));
    let origin = lab.origin("origin.lab");
    let peer = lab.at("peer");
    let fetch = || {
        let mut curl = peer.command("curl");
        curl.args(["-sS", "-o", "file", "-w", "%{time_starttransfer} %{time_total}"])
            .arg(origin.url("10MiB"));
        let finished = peer.run("curl", curl).ok();
        let times: Vec<f64> = finished
            .stdout
            .split(' ')
            .map(|time| time.parse().unwrap())
            .collect();
        let share = 10.0 * 1.048_576 * 8.0 / (times[1] - times[0]) / 20.0;
        figure(format_args!(
            "curl: {share:.3} of 20 Mbit/s, first byte after {:.0} ms, CPU {:?}",
            times[0] * 1e3,
            finished.cpu
        ));
        share
    };
    measured("0.85 to 0.98 of a line by curl", fetch, |share| {
        (0.85..=0.98).contains(share)
    });
    let sum = peer.command("sha256sum").arg("file").output().unwrap();
    assert!(
        String::from_utf8(sum.stdout)
            .unwrap()
            .starts_with(&origin.sha256("10MiB"))
    );
}

#[test]
fn a_wire_delays_what_is_asked() {
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("peer", uplink(50.0, 50.0).delay_ms(15));
    let peer = lab.at("peer");
    let path = Path::new(&lab, peer, 0);
    for one_way in [15, 0, 60] {
        peer.wire(0).set(uplink(50.0, 50.0).delay_ms(one_way));
        let times: Vec<f64> = (0..15)
            .map(|_| path.ping(SOON).expect("an answer").as_secs_f64() * 1e3)
            .collect();
        let asked = 2.0 * one_way as f64;
        // A wire is never too fast, and what a busy machine adds, it does not add to all of them.
        let time = times.into_iter().fold(f64::INFINITY, f64::min);
        figure(format_args!("delay: {time:.2} ms there and back, asked {asked}"));
        assert!((-0.2..2.0).contains(&(time - asked)), "{time} ms");
    }
}

#[test]
fn a_wire_loses_what_is_asked_and_drops_what_does_not_fit() {
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("peer", uplink(100.0, 100.0).loss(0.02).queue(1 << 20));
    let path = Path::new(&lab, lab.at("peer"), 0);
    path.flood(Way::Down, 60.0, Duration::from_secs(2));
    let (carried, lost, dropped) = lab.at("peer").wire(0).packets_down();
    let share = lost as f64 / (carried + lost) as f64;
    figure(format_args!(
        "loss: {lost} of {} packets, {share:.4}, asked 0.02; queue dropped {dropped}",
        carried + lost
    ));
    assert!(carried + lost > 3000 && (0.014..0.026).contains(&share));
    assert_eq!(dropped, 0, "of what the wire can carry");
    lab.at("peer").wire(0).set(uplink(10.0, 10.0));
    path.flood(Way::Down, 20.0, Duration::from_secs(1));
    let (_, lost_now, dropped) = lab.at("peer").wire(0).packets_down();
    assert_eq!(lost_now, lost);
    assert!(dropped > 300, "half of it does not fit: {dropped}");
}

#[test]
fn a_wire_changes_while_it_runs() {
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("peer", uplink(20.0, 10.0).delay_ms(5));
    let wire = lab.at("peer").wire(0);
    let path = Path::new(&lab, lab.at("peer"), 0);
    assert!(path.ping(SOON).is_some());
    wire.cut();
    let before = wire.carried();
    assert!(path.ping(SILENCE).is_none());
    assert_eq!(wire.carried(), before);
    wire.mend();
    assert!(path.ping(SOON).is_some());
    wire.set(wire.get().dark(true, false));
    let before = wire.carried();
    assert!(path.ping(SILENCE).is_none());
    lab::wait_for("the way up", SOON, || wire.carried().up > before.up);
    assert_eq!(wire.carried().down, before.down);
    wire.set(uplink(20.0, 10.0));
    for asked in [20.0, 2.0, 40.0] {
        wire.set(wire.get().down(asked));
        let rate = measured(
            &format!("0.95 to 1.02 of {asked} Mbit/s"),
            || path.flood(Way::Down, 1.5 * asked, Duration::from_secs(1)),
            |rate| (0.95..=1.02).contains(&(rate / asked)),
        );
        figure(format_args!("changed wire: {rate:.2} of {asked} Mbit/s"));
    }
}

#[test]
fn a_wire_counts_each_byte_of_each_way() {
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("peer", [uplink(20.0, 10.0), uplink(20.0, 10.0)]);
    let path = Path::new(&lab, lab.at("peer"), 1);
    let before = lab.at("peer").wire(1).carried();
    for _ in 0..10 {
        path.ping(SOON).unwrap();
    }
    let after = lab.at("peer").wire(1).carried();
    let expected = 10 * (PING.len() + HEADERS) as u64;
    assert_eq!(
        (after.down - before.down, after.up - before.up),
        (expected, expected)
    );
    assert_eq!(lab.carried(), after, "nothing took the other uplink");
}

#[test]
fn a_program_chooses_its_uplink_by_interface() {
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("peer", [uplink(50.0, 10.0), uplink(50.0, 10.0)]);
    let origin = lab.origin("origin.lab");
    let peer = lab.at("peer");
    if !installed("curl") {
        return;
    }
    /// IPv6 asks around by itself.
    const A_PACKET_OR_TWO: u64 = 500;
    for (interface, used) in [(None, 0), (Some("wan1"), 1), (Some("wan0"), 0)] {
        let before = [0, 1].map(|wire| peer.wire(wire).carried().down);
        let mut curl = peer.command("curl");
        curl.args(["-sS", "-o", "/dev/null"]).arg(origin.url("200kB"));
        curl.args(interface.into_iter().flat_map(|name| ["--interface", name]));
        peer.run("curl", curl).ok();
        let carried = [0, 1].map(|wire| peer.wire(wire).carried().down - before[wire]);
        assert!(
            carried[used] > 200_000 && carried[1 - used] < A_PACKET_OR_TWO,
            "{interface:?}: {carried:?}"
        );
    }
    peer.wan_cable(0, false);
    let mut curl = peer.command("curl");
    curl.args(["-sS", "-o", "/dev/null"]).arg(origin.url("200kB"));
    peer.run("curl", curl).ok();
    peer.wan_cable(0, true);
    assert!(Path::new(&lab, peer, 0).ping(SOON).is_some());
}

#[test]
fn the_internet_takes_no_address_but_the_uplinks_own() {
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("peer", [uplink(20.0, 10.0), uplink(20.0, 10.0)]);
    let peer = lab.at("peer");
    let far = lab.outside(|| UdpSocket::bind((INTERNET, 0)));
    // Only bound to the second uplink's address: the route leads it out by the first one.
    let near = peer.inside(|| UdpSocket::bind((peer.wan_address(1), 0)));
    near.send_to(PING, far.local_addr().unwrap()).unwrap();
    assert!(receive(&far, Duration::from_millis(200)).is_none());
    assert!(peer.wire(0).carried().up > 0);
}

#[test]
fn multicast_and_link_local_addresses_work_on_the_lan() {
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("one", uplink(20.0, 10.0)).peer("two", no_uplink());
    let (one, two) = (lab.at("one"), lab.at("two"));
    let (group4, group6) = (
        Ipv4Addr::new(224, 0, 0, 251),
        "ff02::fb".parse::<Ipv6Addr>().unwrap(),
    );
    let index = |peer: &Peer| peer.inside(|| Ok(nix::net::if_::if_nametoindex("lan0")?));
    let (here, there) = (index(one), index(two));
    let listener4 = two.inside(|| UdpSocket::bind("0.0.0.0:5353"));
    listener4.join_multicast_v4(&group4, &two.lan_address()).unwrap();
    let sender4 = one.inside(|| Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)));
    sender4.set_multicast_if_v4(&one.lan_address()).unwrap();
    let listener6 = two.inside(|| {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_only_v6(true)?;
        socket.bind(&"[::]:5353".parse::<SocketAddr>().unwrap().into())?;
        Ok(UdpSocket::from(socket))
    });
    listener6.join_multicast_v6(&group6, there).unwrap();
    let sender6 = one.inside(|| Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)));
    let to4 = SocketAddr::from((group4, 5353));
    let to6 = SocketAddr::from(SocketAddrV6::new(group6, 5353, 0, here));
    for (sender, to, listener) in [(sender4, to4, listener4), (sender6, to6, listener6)] {
        let mut from = None;
        // A switch takes a moment until it passes on what a new port is sent.
        lab::wait_for("multicast across the bridge", SOON, || {
            sender.send_to(b"hello", &to.into()).unwrap();
            from = receive(&listener, Duration::from_millis(50));
            from.is_some()
        });
        let from = from.unwrap().1;
        let link_local = matches!(from, SocketAddr::V6(from) if from.ip().is_unicast_link_local());
        assert!(from.ip() == one.lan_address() || link_local, "{from}");
    }
}

#[test]
fn a_pulled_lan_cable_separates_a_peer_until_it_is_back() {
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("one", no_uplink()).peer("two", no_uplink());
    let address = SocketAddr::from((lab.at("two").lan_address(), 7777));
    let listener = lab.at("two").inside(|| UdpSocket::bind(address));
    let sender = lab.at("one").inside(|| UdpSocket::bind("0.0.0.0:0"));
    let carrier = || {
        lab.at("two")
            .inside(|| fs::read_to_string("/sys/class/net/lan0/carrier"))
    };
    let arrives = |limit| {
        // An unreachable neighbour may be an error already; ARP may still be asking.
        let _ = sender.send_to(b"hello", address);
        receive(&listener, limit).is_some()
    };
    let again = Duration::from_millis(50);
    lab::wait_for("the first packet", SOON, || arrives(again));
    lab.at("two").lan_cable(false);
    assert_eq!(carrier().trim(), "0");
    // What came before is no sign of now.
    while receive(&listener, again).is_some() {}
    assert!(!arrives(Duration::from_millis(200)));
    lab.at("two").lan_cable(true);
    lab::wait_for("the LAN", SOON, || arrives(again));
    assert_eq!(carrier().trim(), "1");
}

#[test]
fn names_resolve_and_unknown_ones_fail_fast() {
    let Some(lab) = Lab::new() else { return };
    if !installed("getent") {
        return;
    }
    let lab = lab.peer("peer", uplink(20.0, 10.0));
    let (_first, _second) = (lab.origin("origin.lab"), lab.origin("origin2.lab"));
    let resolve = |name: &str| {
        let mut getent = lab.at("peer").command("getent");
        getent.args(["ahostsv4", name]);
        lab.at("peer").run("getent", getent)
    };
    assert!(resolve("origin.lab").ok().stdout.starts_with("203.0.113.1 "));
    assert!(resolve("origin2.lab").ok().stdout.starts_with("203.0.113.2 "));
    let unknown = resolve("nowhere.example.org");
    assert!(
        !unknown.status.success() && unknown.elapsed < Duration::from_secs(1),
        "{unknown:?}"
    );
    let host = lab.at("peer").command("uname").arg("-n").output().unwrap();
    assert_eq!(String::from_utf8(host.stdout).unwrap().trim(), "peer");
}

#[test]
fn six_wires_carry_240_megabits_at_little_cost() {
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("peer", vec![uplink(40.0, 10.0).delay_ms(20); 6]);
    let paths: Vec<_> = (0..6)
        .map(|number| Path::new(&lab, lab.at("peer"), number))
        .collect();
    let flood = |path: &Path| path.flood(Way::Down, 44.0, Duration::from_secs(2));
    let six = || {
        let (began, before) = (Instant::now(), wires_cpu());
        let rates: Vec<f64> = thread::scope(|scope| {
            let floods: Vec<_> = paths
                .iter()
                .map(|path| scope.spawn(move || flood(path)))
                .collect();
            floods.into_iter().map(|flood| flood.join().unwrap()).collect()
        });
        let load = (wires_cpu() - before).as_secs_f64() / began.elapsed().as_secs_f64();
        (rates, load)
    };
    let (rates, load) = measured(
        "37.2 to 40.4 Mbit/s each, less than 0.6 of a core",
        six,
        |(rates, load)| rates.iter().all(|rate| (37.2..=40.4).contains(rate)) && *load < 0.6,
    );
    figure(format_args!(
        "six wires: {rates:.1?} of 40 Mbit/s each, {:.0} % of one core",
        load * 100.0
    ));
}

#[test]
fn a_program_is_watched_stopped_continued_and_killed() {
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("peer", no_uplink());
    let start = |script: &str| {
        let mut shell = lab.at("peer").command("sh");
        shell.args(["-c", script]);
        lab.at("peer").start("sh", shell)
    };
    let mut busy = start("echo begun; while :; do :; done");
    lab::wait_for("CPU time", SOON, || busy.cpu() >= Duration::from_millis(50));
    assert_eq!(busy.stdout(), "begun\n");
    assert!(busy.memory().now > 0 && busy.memory().peak >= busy.memory().now);
    busy.signal(Signal::SIGSTOP);
    let state = || fs::read_to_string(format!("/proc/{}/stat", busy.pid())).unwrap();
    lab::wait_for("its stop", SOON, || state().contains(") T "));
    busy.signal(Signal::SIGCONT);
    lab::wait_for("its return", SOON, || !state().contains(") T "));
    busy.signal(Signal::SIGTERM);
    assert_eq!(busy.wait(SOON).status.signal(), Some(Signal::SIGTERM as i32));
    let mut killed = start("sleep 1000");
    killed.kill();
    assert!(!killed.running());
    let failed = start("echo because >&2; exit 3").wait(SOON);
    assert_eq!(
        (failed.status.code(), failed.stderr.as_str()),
        (Some(3), "because\n")
    );
    assert!(start("sleep 1000").try_wait(Duration::from_millis(50)).is_none());
}

#[test]
fn nothing_is_left_when_a_lab_ends() {
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("peer", uplink(20.0, 10.0));
    let origin = lab.origin("origin.lab");
    let (networks, files) = (lab.networks(), lab.roots());
    let mut sleep = lab.at("peer").command("sleep");
    sleep.arg("1000");
    let mut sleep = lab.at("peer").start("sleep", sleep);
    // One that its test forgot.
    let mut forgotten = lab.at("peer").command("sleep").arg("1000").spawn().unwrap();
    assert!(sleep.running());
    assert!(
        networks
            .iter()
            .map(|id| lab::ns::processes_in(*id).len())
            .sum::<usize>()
            == 2
    );
    let panic = thread::scope(|scope| scope.spawn(|| drop(lab_dies_in_panic(origin))).join().is_err());
    assert!(panic);
    drop(lab);
    assert!(!forgotten.wait().unwrap().success());
    lab::wait_for("its end", SOON, || !sleep.running());
    for network in networks {
        assert_eq!(lab::ns::processes_in(network), [0; 0]);
        assert_eq!(held(network).unwrap(), 0, "descriptors and threads of the lab");
    }
    assert!(!files.exists());
}

/// Unwinding drops the origin, and with it its thread in the internet's namespace.
fn lab_dies_in_panic(origin: lab::Origin) -> lab::Origin {
    assert!(origin.requests() > 0, "this panic is part of the test");
    origin
}

/// Descriptors and threads of this process that keep a network.
fn held(network: u64) -> io::Result<usize> {
    let is =
        |path: std::path::PathBuf| fs::metadata(path).is_ok_and(|ns| ns.ino() == network && ns.dev() < 16);
    let descriptors = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter(|entry| is(entry.path()))
        .count();
    let threads = fs::read_dir("/proc/self/task")?.flatten();
    Ok(descriptors + threads.filter(|entry| is(entry.path().join("ns/net"))).count())
}

/// CPU time of the thread that carries the wires.
fn wires_cpu() -> Duration {
    let threads = fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let ours = |path: &std::path::PathBuf| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "wires")
    };
    let stat = threads
        .filter(ours)
        .last()
        .and_then(|path| fs::read_to_string(path.join("schedstat")).ok());
    // Not every kernel counts it.
    let nanos = stat.and_then(|stat| stat.split(' ').next()?.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}

const PING: &[u8] = b"are you there?";
/// So long without an answer is none.
const SILENCE: Duration = Duration::from_millis(150);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Down,
    Up,
}

/// UDP sockets at both ends of an uplink.
struct Path {
    near: UdpSocket,
    far: UdpSocket,
}

impl Path {
    fn new(lab: &Lab, peer: &Peer, number: usize) -> Self {
        let near = peer.inside(|| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            socket.bind_device(Some(format!("wan{number}").as_bytes()))?;
            socket.bind(&SocketAddr::from((peer.wan_address(number), 0)).into())?;
            Ok(UdpSocket::from(socket))
        });
        let far = lab.outside(|| UdpSocket::bind((INTERNET, 0)));
        near.connect(far.local_addr().unwrap()).unwrap();
        far.connect(near.local_addr().unwrap()).unwrap();
        Self { near, far }
    }

    /// There and back, or `None` where one of both ways takes longer than the limit.
    fn ping(&self, limit: Duration) -> Option<Duration> {
        let began = Instant::now();
        self.near.send(PING).unwrap();
        receive(&self.far, limit)?;
        self.far.send(PING).unwrap();
        receive(&self.near, limit)?;
        Some(began.elapsed())
    }

    /// Sends at `rate` Mbit/s for `time`; the rate of what arrives, with IP headers.
    fn flood(&self, way: Way, rate: f64, time: Duration) -> f64 {
        let (from, to) = if way == Way::Down {
            (&self.far, &self.near)
        } else {
            (&self.near, &self.far)
        };
        let packet = [0; 1500 - HEADERS];
        let began = Instant::now();
        thread::scope(|scope| {
            let count = scope.spawn(|| {
                lab::favour_this_thread();
                let mut arrivals = Vec::new();
                while receive(to, Duration::from_millis(300)).is_some() {
                    arrivals.push(began.elapsed().as_secs_f64());
                }
                arrivals
            });
            let bytes = |time: Duration| rate * 1e6 / 8.0 * time.as_secs_f64();
            scope.spawn(move || {
                lab::favour_this_thread();
                let mut sent = 0.0;
                while began.elapsed() < time {
                    // Who was held up does not catch up: so much at once would not fit into any queue.
                    let held_up = began.elapsed().saturating_sub(Duration::from_millis(20));
                    sent = bytes(held_up).max(sent);
                    while sent < bytes(began.elapsed()) {
                        // A full queue of the sender's own is a loss like any other.
                        let _ = from.send(&packet);
                        sent += 1500.0;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let arrivals = count.join().unwrap();
            let span = arrivals[arrivals.len() - 1] - arrivals[0];
            (arrivals.len() - 1) as f64 * 1500.0 * 8.0 / span / 1e6
        })
    }
}

fn receive(socket: &UdpSocket, limit: Duration) -> Option<(usize, SocketAddr)> {
    let mut packet = [0; 2048];
    socket.set_read_timeout(Some(limit)).unwrap();
    match socket.recv_from(&mut packet) {
        Ok(received) => Some(received),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => None,
        Err(error) => panic!("{error}"),
    }
}
