//! FUZ-7, FUZ-8: from services as the library resolves them to the table of candidates and what is told of it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use mdns_sd::ServiceInfo;
use tokio::time::Instant;
use tributary::discovery::{Candidate, Event, SERVICE};
use tributary::fuzzing::Memory;
use tributary::types::UplinkKind;
use tributary::uplink::{Interface, Network};

use super::input::Input;

/// A household's device: two networks that are its own, one that is its provider's.
pub fn network() -> Network {
    let interface = |index, name: &str, addresses: &[(IpAddr, u8)]| Interface {
        index,
        name: name.into(),
        kind: UplinkKind::Wired,
        up: true,
        loopback: false,
        point_to_point: false,
        multicast: true,
        addresses: addresses.to_vec(),
        on_link: addresses.to_vec(),
        default_route: false,
        away: false,
        router: Default::default(),
    };
    let home = [
        ([192, 168, 1, 7].into(), 24),
        ([0xfd00, 0, 0, 0, 0, 0, 0, 7].into(), 64),
        ([0xfe80, 0, 0, 0, 0, 0, 0, 7].into(), 64),
    ];
    Network {
        interfaces: vec![
            interface(2, "eth0", &home),
            interface(3, "wlan0", &[([10, 0, 0, 7].into(), 8)]),
            interface(4, "wan0", &[([203, 0, 113, 7].into(), 24)]),
        ],
        uplinks: vec![],
    }
}

/// A sequence of sightings, farewells and questions: the table stays bounded, nobody off the LAN gets into it, and who
/// follows what is told knows what the table knows.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let network = network();
    // The first instant a clock may give.
    let mut now = Instant::from_std(*START);
    let mut memory = Memory::new(now);
    let mut flooded = false;
    let mut told: HashMap<String, Candidate> = HashMap::new();
    while !input.is_empty() {
        match input.u8() % 8 {
            0 => {
                now += Duration::from_millis(input.u16().into());
            }
            1 => {
                let name = String::from_utf8_lossy(input.short()).into_owned();
                if let Some(instance) = memory.removed(&name) {
                    judge_name(&instance);
                }
            }
            2 => {
                hear(&mut memory, &mut told);
            }
            3 if !flooded => {
                flooded = true;
                // A flood: 256 names at addresses next to each other. Once: a full table takes a while for each newcomer.
                let [a, b] = input.array();
                for n in 0..=u8::MAX {
                    let ip = [10, a, b, n];
                    seen(
                        &mut memory,
                        &format!("{n:02x}{a:02x}{b:02x}00"),
                        &[ip.into()],
                        7,
                        &network,
                        now,
                    );
                }
            }
            _ => {
                let name = String::from_utf8_lossy(input.short()).into_owned();
                let port = input.u16();
                let count = input.u8() % 16;
                let addresses: Vec<IpAddr> = (0..count).map(|_| address(&mut input)).collect();
                let first = seen(&mut memory, &name, &addresses, port, &network, now);
                let sizes = memory.sizes();
                let again = seen(&mut memory, &name, &addresses, port, &network, now);
                if first == Some(true) {
                    assert_eq!(again, first, "one that is known is never refused");
                    assert_eq!(memory.sizes(), sizes, "the same twice grows nothing");
                }
            }
        }
        let (entries, untold) = memory.sizes();
        assert!(
            entries <= Memory::MOST.0 && untold <= Memory::MOST.1,
            "{entries}, {untold}"
        );
    }
    hear(&mut memory, &mut told);
    assert_eq!(memory.sizes().1, 0);
}

static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);

fn address(input: &mut Input<'_>) -> IpAddr {
    let [kind, a, b] = input.array();
    match kind % 6 {
        0 => [192, 168, 1, b].into(),
        1 => [10, 0, a, b].into(),
        2 => [0xfd00, 0, 0, 0, 0, 0, a.into(), b.into()].into(),
        3 => [0xfe80, 0, 0, 0, 0, 0, a.into(), b.into()].into(),
        4 => [0, 0, 0, 0, 0, 0xffff, 0xc0a8, u16::from_be_bytes([a, b])].into(),
        _ => IpAddr::from(input.array::<16>()),
    }
}

fn seen(
    memory: &mut Memory,
    name: &str,
    addresses: &[IpAddr],
    port: u16,
    network: &Network,
    now: Instant,
) -> Option<bool> {
    let service = ServiceInfo::new(SERVICE, name, "00000000.local.", addresses, port, None);
    let service = service.ok()?.as_resolved_service();
    let (candidate, taken) = memory.resolved(&service, network, now)?;
    judge(&candidate);
    Some(taken)
}

/// Of a candidate: a name that is safe to show, and 1 to 8 addresses to dial, all on-link.
pub fn judge(candidate: &Candidate) {
    judge_name(&candidate.instance);
    assert!((1..=8).contains(&candidate.addresses.len()));
    for (place, address) in candidate.addresses.iter().enumerate() {
        let ip = address.ip();
        assert!(address.port() != 0 && !ip.is_multicast() && !ip.is_unspecified());
        assert!(network().is_on_link(ip, None), "{ip} is not here");
        assert!(!candidate.addresses[..place].contains(address), "{address} twice");
    }
}

fn judge_name(instance: &str) {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    assert!(
        (1..=32).contains(&instance.len()) && instance.bytes().all(plain),
        "{instance:?}"
    );
}

/// Whoever listens knows of no more than the table does.
fn hear(memory: &mut Memory, told: &mut HashMap<String, Candidate>) {
    while let Some(event) = memory.next_event() {
        match event {
            Event::Found(candidate) => {
                judge(&candidate);
                // The same again: it was lost, and came back before anybody was told.
                told.insert(candidate.instance.clone(), candidate);
            }
            Event::Lost { instance } => {
                assert!(
                    told.remove(&instance).is_some(),
                    "{instance} was lost and never found"
                );
            }
        }
    }
}
