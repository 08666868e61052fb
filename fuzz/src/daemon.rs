//! FUZ-7, FUZ-8, the whole way: packets to the mDNS library's thread as it runs, over a socket, and from what it resolves
//! to candidates. A thread for each input, so that an input says the same each time.
//!
//! Only for the fuzzer: it takes a socket, and a millisecond.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use mdns_sd::{IfKind, Metrics, ServiceDaemon, ServiceEvent};
use tokio::time::Instant;
use tributary::discovery::{Candidate, SERVICE};
use tributary::fuzzing::Memory;
use tributary::types::UplinkKind;
use tributary::uplink::{Interface, Network};

use super::seeds::announcement;

/// The library answers in microseconds, on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a packet may leave behind, of each kind of record: a record takes 11 bytes of it at least.
const LEAST_RECORD: i64 = 11;

/// One packet, twice: the library's cache holds no more than the packet does.
pub fn check(data: &[u8]) {
    if data.len() > 8000 {
        return;
    }
    let life = Life::begin();
    let once = life.hear(data, MARKS[0]);
    let twice = life.hear(data, MARKS[1]);
    let most = data.len() as i64 / LEAST_RECORD * 2 + MARK_RECORDS;
    assert!(once.records <= most, "{} records", once.records);
    // Not more than it holds, however often it comes; a farewell in it may leave less the first time.
    assert!(
        twice.records - MARK_RECORDS <= most,
        "{} records became {}",
        once.records,
        twice.records
    );
    life.end();
}

/// A peer's announcement with this TXT record: it is found where it says, whatever that record says.
pub fn check_txt(data: &[u8]) {
    if data.len() > 8000 {
        return;
    }
    let life = Life::begin();
    let heard = life.hear(
        &announcement("0badcafe", 7436, 120, data, Ipv4Addr::LOCALHOST),
        MARKS[0],
    );
    if !data.is_empty() {
        let found: Vec<_> = heard
            .found
            .iter()
            .map(|c| (c.instance.as_str(), &c.addresses[..]))
            .collect();
        assert_eq!(
            found,
            [("0badcafe", &[(Ipv4Addr::LOCALHOST, 7436).into()][..])],
            "TXT {data:02x?}"
        );
    }
    life.end();
}

/// Peers that nobody else is.
const MARKS: [&str; 2] = ["5ca1ab1e5ca1ab1e", "5ca1ab1f5ca1ab1f"];
const MARK_RECORDS: i64 = 4;

struct Heard {
    records: i64,
    found: Vec<Candidate>,
}

struct Life {
    daemon: ServiceDaemon,
    events: mdns_sd::Receiver<ServiceEvent>,
    socket: UdpSocket,
    port: u16,
}

impl Life {
    fn begin() -> Self {
        let socket = ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)));
        // Unlike any other's on this machine.
        let port = ok(ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).local_addr()).port();
        let daemon = ok(ServiceDaemon::new_with_port(port));
        ok(daemon.disable_interface(IfKind::All));
        ok(daemon.enable_interface(IfKind::IndexV4(1)));
        let events = ok(daemon.browse(SERVICE));
        let life = Self {
            daemon,
            events,
            socket,
            port,
        };
        life.records();
        life
    }

    /// Sends a packet, and after it a peer's announcement: when that was found, the packet was heard.
    fn hear(&self, packet: &[u8], mark: &str) -> Heard {
        for packet in [packet, &announcement(mark, 7436, 120, b"", Ipv4Addr::LOCALHOST)] {
            ok(self.socket.send_to(packet, (Ipv4Addr::LOCALHOST, self.port)));
        }
        let now = Instant::now();
        let mut memory = Memory::new(now);
        let mut found = Vec::new();
        loop {
            match ok(self.events.recv_timeout(PATIENCE)) {
                ServiceEvent::ServiceResolved(service) => {
                    if let Some((candidate, _)) =
                        memory.resolved_on(&service, &loopback(), &["lo".into()], now)
                    {
                        assert!((1..=8).contains(&candidate.addresses.len()));
                        if candidate.instance == mark {
                            break;
                        }
                        found.push(candidate);
                    }
                }
                ServiceEvent::ServiceRemoved(_, fullname) => drop(memory.removed(&fullname)),
                _ => {}
            }
        }
        let records = self.records();
        Heard { records, found }
    }

    fn records(&self) -> i64 {
        let metrics: Metrics = ok(ok(self.daemon.get_metrics()).recv_timeout(PATIENCE));
        metrics
            .iter()
            .filter(|(name, _)| name.starts_with("cached-"))
            .map(|(_, n)| *n)
            .sum()
    }

    fn end(self) {
        ok(ok(self.daemon.shutdown()).recv_timeout(PATIENCE));
    }
}

fn loopback() -> Network {
    let lo = Interface {
        index: 1,
        name: "lo".into(),
        kind: UplinkKind::Virtual,
        up: true,
        loopback: true,
        point_to_point: false,
        multicast: false,
        addresses: vec![(Ipv4Addr::LOCALHOST.into(), 8)],
        on_link: vec![],
        default_route: false,
        away: false,
        router: Default::default(),
    };
    Network {
        interfaces: vec![lo],
        uplinks: vec![],
    }
}

fn ok<T, E: std::fmt::Debug>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error:?}"),
    }
}
