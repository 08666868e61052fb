//! Discovery and the network watch against a real kernel: each test makes network namespaces of its own, so that they
//! neither see nor disturb the machine's network. Without the right to make one a test says so and is skipped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "tests outside `cfg(test)`: a failure is a panic"
)]

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use tokio::sync::{mpsc, watch};
use tributary::discovery::{Candidate, Discovery, DiscoveryConfig, Event};
use tributary::task::Tasks;
use tributary::uplink::{self, Network};

/// Ends a wait that would otherwise hang the test run; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(20);
const SEED: uplink::Seed = [7; 16];

type Events = mpsc::Receiver<Event>;

#[test]
fn two_peers_find_each_other_on_loopback_alone_and_hear_the_goodbye() {
    in_namespace(async || {
        ip("link set lo up");
        let (first, second) = (Tasks::new(), Tasks::new());
        let (one, mut one_hears) = start(&first, 1001, Some("lo")).await;
        let (two, mut two_hears) = start(&second, 1002, Some("lo")).await;
        let begun = Instant::now();
        let (found_two, found_one) = tokio::join!(found(&mut one_hears), found(&mut two_hears));
        eprintln!("loopback: both found after {:?}", begun.elapsed());
        assert_eq!(found_two.instance, two.instance());
        assert_eq!(found_two.addresses, ["127.0.0.1:1002".parse().unwrap()]);
        assert_eq!(found_one.instance, one.instance());
        let begun = Instant::now();
        assert!(second.stop(PATIENCE).await);
        eprintln!("stopped after {:?}", begun.elapsed());
        let gone = Event::Lost {
            instance: two.instance().to_owned(),
        };
        assert_eq!(next(&mut one_hears).await, gone);
        eprintln!("goodbye heard after {:?}", begun.elapsed());
        assert!(first.stop(PATIENCE).await);
    });
}

#[test]
fn four_peers_of_one_process_all_find_each_other() {
    in_namespace(async || {
        ip("link set lo up");
        let tasks = Tasks::new();
        let begun = Instant::now();
        let mut peers = Vec::new();
        for port in 1001..=1004 {
            peers.push(start(&tasks, port, Some("lo")).await);
        }
        for (peer, hears) in &mut peers {
            let mut ports: Vec<u16> = Vec::new();
            for _ in 0..3 {
                ports.push(found(hears).await.addresses[0].port());
            }
            eprintln!("{} found 3 after {:?}", peer.instance(), begun.elapsed());
            ports.sort_unstable();
            ports.dedup();
            assert_eq!(ports.len(), 3);
        }
        assert!(tasks.stop(PATIENCE).await);
    });
}

#[test]
fn peers_on_two_machines_find_each_other_on_the_lan_and_not_on_the_wan() {
    in_namespace(async || {
        ip("link set lo up");
        let there = other_machine("lan0", "wan0");
        ip("addr add 192.168.7.1/24 dev lan0");
        ip("link set lan0 up");
        ip("addr add 203.0.113.1/24 dev wan0");
        ip("link set wan0 up");
        let tasks = Tasks::new();
        let (peer, mut hears) = start(&tasks, 1001, None).await;
        there.up();
        let candidate = settled(&mut hears).await;
        eprintln!("two machines: {candidate:?}");
        assert_eq!(candidate.addresses[0], "192.168.7.2:1002".parse().unwrap());
        for address in &candidate.addresses {
            assert!(!address.ip().to_string().starts_with("203."), "{address}");
        }
        assert_eq!(there.saw(), peer.instance());
        assert!(tasks.stop(PATIENCE).await);
    });
}

/// SEC-F1: whoever asks on the WAN side learns nothing, though the same question on the LAN is answered.
#[test]
fn a_question_on_the_wan_side_is_not_answered() {
    in_namespace(async || {
        ip("link set lo up");
        let there = other_machine("lan0", "wan0");
        ip("addr add 192.168.7.1/24 dev lan0");
        ip("link set lan0 up");
        ip("addr add 203.0.113.1/24 dev wan0");
        ip("link set wan0 up");
        let tasks = Tasks::new();
        let (_peer, mut hears) = start(&tasks, 1001, None).await;
        there.up();
        // Both see each other by now, so the cables work.
        settled(&mut hears).await;
        assert_eq!(there.answers(), "192.168.7.1:5353");
        assert!(tasks.stop(PATIENCE).await);
    });
}

#[test]
fn an_interface_that_comes_later_is_announced_on_at_once() {
    in_namespace(async || {
        ip("link set lo up");
        let there = other_machine("lan0", "wan0");
        there.up();
        let tasks = Tasks::new();
        let (peer, mut hears) = start(&tasks, 1001, None).await;
        ip("addr add 192.168.7.1/24 dev lan0");
        ip("link set lan0 up");
        let begun = Instant::now();
        let candidate = found(&mut hears).await;
        eprintln!("late interface: found after {:?}", begun.elapsed());
        assert_eq!(candidate.addresses[0].port(), 1002);
        assert_eq!(there.saw(), peer.instance());
        assert!(tasks.stop(PATIENCE).await);
    });
}

#[test]
fn the_watch_sees_an_uplink_come_move_and_go() {
    in_namespace(async || {
        ip("link set lo up");
        for name in ["lan0", "wan0"] {
            cable(name);
        }
        let tasks = Tasks::new();
        let mut network = uplink::watch(SEED, no_rules(), &tasks).await;
        assert!(network.borrow().uplinks.is_empty());
        ip("addr add 203.0.113.1/24 dev wan0");
        ip("link set wan0 up");
        ip("route add default via 203.0.113.2 metric 100");
        let begun = Instant::now();
        let seen = until(&mut network, |n| !n.uplinks.is_empty()).await;
        eprintln!("uplink seen after {:?}", begun.elapsed());
        assert_eq!(seen.uplinks[0].name, "wan0");
        assert_eq!(seen.uplinks[0].v4, Some([203, 0, 113, 1].into()));
        assert_eq!(seen.uplinks[0].gateway, "203.0.113.2".parse().ok());
        assert!(
            seen.lan_interfaces(None).is_empty(),
            "a public address is no household"
        );
        let unresolved = seen.uplinks[0].line;

        ip("neigh replace 203.0.113.2 lladdr 02:00:00:00:00:99 dev wan0");
        until(&mut network, |n| n.uplinks[0].line != unresolved).await;

        ip("addr add 192.168.7.1/24 dev lan0");
        ip("link set lan0 up");
        ip("route add default via 192.168.7.2 metric 50");
        let seen = until(&mut network, |n| n.uplinks.len() == 2).await;
        assert_eq!(seen.uplinks[0].name, "lan0", "best metric first");
        assert_eq!(seen.lan_interfaces(None).len(), 1);

        ip("link set wan0 down");
        until(&mut network, |n| n.uplinks.len() == 1).await;
        assert!(tasks.stop(PATIENCE).await);
    });
}

#[test]
fn a_tunnel_without_a_gateway_is_an_uplink_of_a_line_of_its_own() {
    in_namespace(async || {
        ip("link set lo up");
        cable("wan0");
        ip("addr add 198.51.100.2 peer 198.51.100.1 dev wan0");
        ip("link set wan0 up");
        ip("route add default dev wan0 table 100");
        let network = uplink::enumerate(SEED).await.unwrap();
        assert_eq!(network.uplinks[0].v4, Some([198, 51, 100, 2].into()));
        assert_eq!(network.uplinks[0].gateway, None);
        let other = uplink::enumerate([8; 16]).await.unwrap();
        assert_ne!(network.uplinks[0].line, other.uplinks[0].line);
    });
}

async fn start(tasks: &Tasks, port: u16, only: Option<&str>) -> (Discovery, Events) {
    let network = uplink::watch(SEED, no_rules(), tasks).await;
    let config = DiscoveryConfig {
        port,
        interfaces: only.map(|name| vec![name.to_owned()]),
    };
    Discovery::start(config, network, tasks).unwrap()
}

async fn next(events: &mut Events) -> Event {
    tokio::time::timeout(PATIENCE, events.recv())
        .await
        .expect("an event")
        .expect("discovery runs")
}

async fn found(events: &mut Events) -> Candidate {
    loop {
        if let Event::Found(candidate) = next(events).await {
            return candidate;
        }
    }
}

/// The candidate as it is once IPv4 is known, which comes with the first answer over IPv4.
async fn settled(events: &mut Events) -> Candidate {
    loop {
        let candidate = found(events).await;
        if candidate.addresses[0].is_ipv4() {
            return candidate;
        }
    }
}

async fn until(network: &mut watch::Receiver<Arc<Network>>, is: impl Fn(&Network) -> bool) -> Arc<Network> {
    let seen = tokio::time::timeout(PATIENCE, network.wait_for(|n| is(n))).await;
    Arc::clone(&*seen.expect("a change").expect("the watch runs"))
}

/// A peer in a namespace of its own, on a thread of its own, joined to the caller's by a LAN and a WAN cable.
struct OtherMachine {
    go: std::sync::mpsc::Sender<()>,
    saw: std::sync::mpsc::Receiver<String>,
}

impl OtherMachine {
    /// Starts its interfaces and its peer.
    fn up(&self) {
        self.go.send(()).unwrap();
    }

    /// The instance it found; waits for it.
    fn saw(&self) -> String {
        self.saw.recv_timeout(PATIENCE).unwrap()
    }

    /// Who answered when it asked the caller's addresses on the WAN and then on the LAN; waits for answers.
    fn answers(&self) -> String {
        let _found = self.saw();
        self.saw()
    }
}

fn other_machine(lan: &str, wan: &str) -> OtherMachine {
    let (tell_id, id) = std::sync::mpsc::channel();
    let (go, wait) = std::sync::mpsc::channel();
    let (tell_seen, saw) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        in_namespace(async move || {
            tell_id.send(nix::unistd::gettid()).unwrap();
            if wait.recv().is_err() {
                return;
            }
            ip("link set lo up");
            ip("addr add 192.168.7.2/24 dev lan0");
            ip("link set lan0 up");
            ip("addr add 203.0.113.2/24 dev wan0");
            ip("link set wan0 up");
            let tasks = Tasks::new();
            let begun = Instant::now();
            let (_peer, mut hears) = start(&tasks, 1002, None).await;
            let candidate = found(&mut hears).await;
            eprintln!("other machine: found after {:?}: {candidate:?}", begun.elapsed());
            let _ = tell_seen.send(candidate.instance);
            let _ = tell_seen.send(ask("203.0.113.1:5353", "192.168.7.1:5353").await);
            // Until the test is over, so that it can be found.
            let _ = tokio::time::timeout(PATIENCE, tasks.token().cancelled()).await;
        });
    });
    let id = id.recv().unwrap();
    for name in [lan, wan] {
        ip(&format!("link add {name} type veth peer name {name} netns {id}"));
    }
    OtherMachine { go, saw }
}

/// Asks both for our service as a resolver without multicast would, the first one first; says whose answers came. Asked
/// again and again, the second one's answer comes after the first one has had its time.
async fn ask(first: &str, second: &str) -> String {
    let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap();
    let question = b"\0\x07\0\0\0\x01\0\0\0\0\0\0\x0a_tributary\x04_udp\x05local\0\0\x0c\0\x01";
    let mut answered = Vec::new();
    for _ in 0..4 {
        socket.send_to(question, first).await.unwrap();
        socket.send_to(question, second).await.unwrap();
        let mut answer = [0; 1500];
        let came = tokio::time::timeout(PATIENCE, socket.recv_from(&mut answer)).await;
        answered.push(came.expect("an answer").unwrap().1.to_string());
    }
    answered.sort();
    answered.dedup();
    answered.join(" ")
}

/// An interface with a carrier, whose other end nobody uses.
fn no_rules() -> watch::Receiver<uplink::Rules> {
    watch::channel(uplink::Rules::default()).1
}

fn cable(name: &str) {
    ip(&format!("link add {name} type veth peer name {name}-end"));
    ip(&format!("link set {name}-end up"));
}

/// Runs `ip` in this thread's namespace.
fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split_whitespace()).status();
    assert!(done.unwrap().success(), "ip {arguments}");
}

/// Runs `body` on a thread that has a network namespace of its own.
fn in_namespace(body: impl AsyncFnOnce() + Send) {
    let on_thread = || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped: no network namespaces ({error})");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(body());
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(on_thread).join() {
            std::panic::resume_unwind(panic);
        }
    });
}
