//! The network gate and discovery under attack: who is not on the household's link finds nobody there, whatever it sends,
//! and what passes over the link tells nobody who is who.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail them")]

mod attack;
mod lab;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use attack::{HELLO, WHO_IS_THERE, answered, frame, hello, inside};
use lab::{INTERNET, Lab, Peer, figure, lanes, no_uplink, peers, uplink};
use nix::mount::{MsFlags, mount};
use serde_json::Value;
use tokio::sync::watch;
use tributary::identity::DeviceKey;
use tributary::link::{DEFAULT_PORT, LinkConfig, Links};
use tributary::task::Tasks;
use tributary::trust::Trust;
use tributary::types::bytes_from_hex;

const SOON: Duration = Duration::from_secs(15);
/// Whoever answers at all answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
const MDNS: u16 = 5353;

fn quic(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, DEFAULT_PORT)
}

// --- SEC-F1 ---

#[test]
fn sec_f1_a_scan_from_the_wan_side_or_from_behind_a_router_finds_nobody() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("router", uplink(50.0, 50.0))
        .peer("host", no_uplink())
        .peer("guest", no_uplink())
        .behind("host", "router");
    let daemons = ["router", "host"].map(|name| lab.at(name).spawn_daemon(&[]));
    let (router, host, guest) = (lab.at("router"), lab.at("host"), lab.at("guest"));
    host.wait_status("each other", SOON, |s| peers(s) == 1);
    let here = host.lan_address();
    let question = [WHO_IS_THERE.to_vec()];
    let scan = |address: Ipv4Addr| {
        let mut bytes = answered(quic(address), &attack::quic_probes(quic(address)), PATIENCE);
        bytes.extend(answered(SocketAddrV4::new(address, MDNS), &question, PATIENCE));
        bytes
    };
    // From the LAN they are answered: the probes are good ones. Nobody answers a packet of no connection.
    let near = guest.inside(|| Ok(scan(here)));
    assert!(near[0] > 0 && near[1] > 0 && near[3] > 0, "{near:?}");
    // The internet reaches both: an echo comes back.
    for (peer, address) in [(router, router.wan_address(0)), (host, here)] {
        let echo = peer.inside(|| std::net::UdpSocket::bind("0.0.0.0:4000"));
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut packet = [0; 64];
                let (length, from) = echo.recv_from(&mut packet).unwrap();
                echo.send_to(&packet[..length], from).unwrap();
            });
            let back = lab.outside(|| {
                Ok(answered(
                    SocketAddrV4::new(address, 4000),
                    &[vec![1; 9]],
                    Duration::from_millis(500),
                ))
            });
            assert_eq!(back, [9], "{address}");
        });
        let far = lab.outside(|| Ok(scan(address)));
        let open = lab.outside(|| Ok(open_ports(address)));
        let listening = peer.inside(listening);
        figure(format_args!(
            "SEC-F1: {address} from outside: {far:?} bytes in answer to unknown version, first packet, stray packet and \
             mDNS question (from the LAN {near:?}); open TCP ports: {open:?}, listening sockets: {listening}"
        ));
        assert_eq!((far, open, listening), (vec![0; 4], vec![], 0));
    }
    // Who answers nobody outside cannot be dialled from there either, whatever the dialler thinks of addresses.
    let refused = lab.outside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(async { stranger().dial(&[quic(here).into()]).await.is_err() }))
    });
    assert!(refused && peers(&host.ask_status().unwrap()) == 1);
    drop(daemons);
}

/// TCP ports that accept a connection, of those that anything here could use.
fn open_ports(address: Ipv4Addr) -> Vec<u16> {
    let ports = (1..=1024).chain([DEFAULT_PORT, MDNS, 6800, 8080, 8443]);
    let open = |port: &u16| {
        let address = SocketAddr::from((address, *port));
        TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
    };
    ports.filter(open).collect()
}

/// How many TCP sockets listen in this namespace.
fn listening() -> io::Result<usize> {
    let mut count = 0;
    for table in ["tcp", "tcp6"] {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{table}"))?;
        count += table
            .lines()
            .filter(|line| line.split_whitespace().nth(3) == Some("0A"))
            .count();
    }
    Ok(count)
}

fn stranger() -> Links {
    let key = DeviceKey::ephemeral().unwrap();
    let config = LinkConfig {
        port: 0,
        name: "mallory".into(),
        offers: watch::channel(tributary::link::Lends::default()).1,
        home: watch::channel(tributary::link::Home::default()).1,
        gate: Arc::new(|_| true),
        trust: Trust::none(&key),
    };
    Links::start(config, &key, &Tasks::new()).unwrap().0
}

// --- SEC-F2, SEC-F3 ---

#[test]
fn sec_f2_an_unproved_source_gets_no_more_than_three_times_what_it_sent() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("ann", no_uplink()).peer("mallory", no_uplink());
    let (ann, mallory) = (lab.at("ann"), lab.at("mallory"));
    let _daemon = ann.spawn_daemon(&[]);
    ann.wait_status("itself", SOON, |_| true);
    let there = quic(ann.lan_address());
    let probes = attack::quic_probes(there);
    // Longer than the handshake's timeout: all that is ever sent again is counted.
    let came = mallory.inside(|| Ok(answered(there, &probes, Duration::from_secs(8))));
    let times: Vec<f64> = probes
        .iter()
        .zip(&came)
        .map(|(sent, came)| *came as f64 / sent.len() as f64)
        .collect();
    figure(format_args!(
        "SEC-F2: bytes in answer to unknown version, first packet and stray packet: {came:?}, {times:.2?} times what was \
         sent, of 3 allowed"
    ));
    assert!(
        came[1] > 0 && times.iter().all(|times| *times <= 3.0),
        "{times:?}"
    );
}

#[test]
fn sec_f3_a_source_that_is_spoofed_completes_nothing_and_costs_its_owner_nothing() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("ann", no_uplink())
        .peer("bob", no_uplink())
        .peer("mallory", no_uplink());
    let (ann, bob, mallory) = (lab.at("ann"), lab.at("bob"), lab.at("mallory"));
    let daemons = [ann, bob].map(|peer| peer.spawn_daemon(&[]));
    ann.wait_status("bob", SOON, |s| peers(s) == 1);
    let there = quic(ann.lan_address());
    let first = attack::initial(there);
    mallory.inside(|| {
        for port in 1000..1200 {
            // bob's own port among them.
            let port = if port % 2 == 0 { DEFAULT_PORT } else { port };
            attack::spoof(SocketAddrV4::new(bob.lan_address(), port), there, &first)?;
        }
        Ok(())
    });
    // Longer than a link that lost its other end lives, and than a handshake.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        assert_eq!(peers(&ann.ask_status().unwrap()), 1);
        thread::sleep(Duration::from_millis(100));
    }
    let joined = daemons[0].stderr().matches("peer joined").count();
    figure(format_args!(
        "SEC-F3: 200 first packets in bob's name: no link came of them, and bob's own stands ({joined} joined)"
    ));
    assert_eq!(joined, 1);
}

// --- SEC-A16 ---

#[test]
fn sec_a16_malformed_foreign_and_stray_mdns_kills_nothing_and_is_no_candidate() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("ann", no_uplink())
        .peer("bob", no_uplink())
        .peer("mallory", no_uplink());
    let (ann, bob, mallory) = (lab.at("ann"), lab.at("bob"), lab.at("mallory"));
    let recorder = lab.record_lan();
    let mut daemons = [ann, bob].map(|peer| peer.spawn_daemon(&[]));
    ann.wait_status("bob", SOON, |s| peers(s) == 1);
    let bob_is = names_of(&recorder.frames(), bob);
    assert!(bob_is.len() >= 2, "{bob_is:?}");
    let elsewhere = Ipv4Addr::new(192, 0, 2, 9);
    let called = inside(mallory, async || {
        ip("addr add 192.0.2.9/32 dev lan0");
        let key = DeviceKey::ephemeral().unwrap();
        let endpoints = [(); 3].map(|()| attack::endpoint(&key, tributary::identity::ALPN, true));
        let port = |n: usize| endpoints[n].local_addr().unwrap().port();
        let group: SocketAddr = ([224, 0, 0, 251], MDNS).into();
        let here = mallory.lan_address();
        let stray = attack::mdns_socket_at(here, 5354).unwrap();
        let foreign = attack::mdns_socket_at(elsewhere, MDNS).unwrap();
        let good = attack::mdns_socket().unwrap();
        for round in 0..20 {
            for packet in malformed() {
                good.send_to(&packet, group).unwrap();
            }
            // bob takes his leave, and his records are flushed, by somebody else's word.
            for name in &bob_is {
                good.send_to(&farewell(name), group).unwrap();
            }
            let packet = attack::announcement("aaaa0001", here, port(0), &["v=1"]);
            stray.send_to(&packet, group).unwrap();
            let packet = attack::announcement("aaaa0002", here, port(1), &["v=1"]);
            foreign.send_to(&packet, group).unwrap();
            let off_link = attack::announcement(&format!("bbbb{round:04}"), INTERNET, DEFAULT_PORT, &["v=1"]);
            good.send_to(&off_link, group).unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // The same word from mDNS's port and from the link is believed: the record was a good one.
        let call = attack::called(&endpoints[2], "aaaa0003", here, &["v=1"]).await;
        call.ignore();
        let mut called = Vec::new();
        for endpoint in &endpoints[..2] {
            let call = tokio::time::timeout(Duration::from_millis(200), endpoint.accept());
            called.push(call.await.is_ok());
        }
        called
    });
    let log = daemons[0].stderr();
    figure(format_args!(
        "SEC-A16: malformed, foreign and stray mDNS twenty times over: called by word from another port and from another \
         network: {called:?}; bob joined {} time(s)",
        log.matches("peer joined").count()
    ));
    assert_eq!(called, [false, false]);
    assert!(daemons.iter_mut().all(lab::Process::running));
    assert_eq!(
        (
            log.matches("peer joined").count(),
            log.matches("peer left").count()
        ),
        (1, 0),
        "{log}"
    );
    assert!(
        !log.contains("panicked") && !log.contains(&INTERNET.to_string()),
        "{log}"
    );
    assert_eq!(peers(&ann.ask_status().unwrap()), 1);
}

/// The random names that a peer uses in what it says by mDNS.
fn names_of(frames: &[Vec<u8>], peer: &Peer) -> Vec<String> {
    let packets = frames.iter().filter_map(|f| lab::mdns_of(f, peer.lan_address()));
    let mut names: Vec<String> = packets.flat_map(words).filter(|word| is_random(word)).collect();
    names.sort();
    names.dedup();
    names
}

fn is_random(word: &str) -> bool {
    word.len() == 8 && word.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Packets that no DNS message is.
fn malformed() -> Vec<Vec<u8>> {
    let service = ["_tributary", "_udp", "local"];
    let with = |answers: u8, rest: &[u8]| [attack::header(answers), rest.to_vec()].concat();
    let to_itself = [&[0xc0, 12][..], &[0, 12, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]].concat();
    let two_steps = [&[0xc0, 14, 0xc0, 12][..], &[0, 33, 0, 1, 0, 0, 0, 9, 0, 0]].concat();
    let mut cut = attack::record(&service, 12, 1, 4500, &attack::name(&service));
    cut.truncate(cut.len() - 4);
    let mut long = attack::record(&service, 12, 1, 4500, &[]);
    let at = long.len() - 2;
    long[at..].copy_from_slice(&[0xff, 0xff]);
    let label = "x".repeat(63);
    let labels = vec![label.as_str(); 10];
    vec![
        vec![],
        vec![0],
        vec![0xff; 9000],
        with(255, &[]),
        with(1, &to_itself),
        with(1, &two_steps),
        with(1, &[0xff; 30]),
        with(1, &cut),
        with(1, &long),
        with(1, &attack::record(&labels, 12, 1, 4500, &[])),
        with(1, &attack::record(&service, 33, 0x8001, 120, &[0, 0])),
        with(1, &attack::record(&service, 16, 0x8001, u32::MAX, &[0xff])),
        with(1, &attack::record(&service, 1, 0x8001, 0, &[1, 2, 3])),
        with(
            1,
            &attack::record(&service, 12, 0x8001, 0, &attack::name(&service)),
        ),
    ]
}

/// Word that a peer is gone, and that all that is known of it is out of date.
fn farewell(instance: &str) -> Vec<u8> {
    let service = ["_tributary", "_udp", "local"];
    let full = [&[instance], &service[..]].concat();
    let mut packet = attack::header(2);
    packet.extend(attack::record(&service, 12, 1, 0, &attack::name(&full)));
    packet.extend(attack::record(&full, 33, 0x8001, 0, &[0, 0, 0, 0, 0, 0, 0]));
    packet
}

// --- SEC-G1, SEC-G2 ---

#[test]
fn sec_g_what_passes_over_the_lan_names_neither_devices_nor_keys_nor_what_is_fetched() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("borrower-of-ours", no_uplink())
        .peer("lender-of-ours", uplink(60.0, 30.0));
    let origin = lab.origin("origin.lab");
    let (borrower, lender) = (lab.at("borrower-of-ours"), lab.at("lender-of-ours"));
    let recorder = lab.record_lan();
    let daemons = [borrower, lender].map(|peer| peer.spawn_daemon(&[]));
    borrower.wait_status("a lane", SOON, |s| lanes(s) == 1);
    let url = origin.url("6MiB");
    borrower.get(&url, &["-o", "a-telling-name"]).ok();
    let ids: Vec<String> = [borrower, lender]
        .map(|p| id_of(&p.ask_status().unwrap()))
        .to_vec();
    let frames = recorder.frames();
    let mut needles: Vec<(String, Vec<u8>)> = Vec::new();
    for text in [
        "borrower-of-ours",
        "lender-of-ours",
        "origin.lab",
        "a-telling-name",
        "/file/",
    ] {
        needles.push((text.into(), text.into()));
    }
    for id in &ids {
        let key = bytes_from_hex(id).unwrap();
        assert_eq!(key.len(), 32);
        needles.push((format!("the key {id}"), key));
        needles.push((format!("the id {id}"), id.as_bytes()[..8].to_vec()));
    }
    let carried: usize = frames.iter().map(Vec::len).sum();
    assert!(carried > 6 << 20, "the download passed here: {carried} bytes");
    for (what, needle) in &needles {
        let found = frames
            .iter()
            .position(|f| f.windows(needle.len()).any(|w| w == needle));
        assert_eq!(found, None, "{what} is in a frame");
    }
    let mut said = Vec::new();
    for peer in [borrower, lender] {
        let packets = frames.iter().filter_map(|f| lab::mdns_of(f, peer.lan_address()));
        said.extend(packets.flat_map(words));
    }
    said.sort();
    said.dedup();
    let known = ["_tributary", "_udp", "local", "v=1", "_services", "_dns-sd"];
    let unknown = |word: &&String| !known.contains(&word.as_str()) && !is_random(word);
    let others: Vec<_> = said.iter().filter(unknown).collect();
    figure(format_args!(
        "SEC-G1, SEC-G2: {} frames, {:.1} MB: no name, key, host or file in them; mDNS said {said:?}",
        frames.len(),
        carried as f64 / 1e6
    ));
    assert!(said.iter().filter(|w| is_random(w)).count() >= 4, "{said:?}");
    assert!(others.is_empty(), "{others:?}");
    drop(daemons);
}

/// All text of a DNS message: a name, a text or a part of one is a byte of length and as many that can be read.
fn words(message: &[u8]) -> Vec<String> {
    let mut words = Vec::new();
    let mut at = 12;
    while at < message.len() {
        let length = usize::from(message[at]);
        let text = message.get(at + 1..at + 1 + length).unwrap_or_default();
        if length >= 3 && text.len() == length && text.iter().all(u8::is_ascii_graphic) {
            words.push(String::from_utf8_lossy(text).into_owned());
            at += length;
        }
        at += 1;
    }
    words
}

// --- G3 ---

#[test]
fn g3_a_device_with_a_battery_is_deaf_and_silent_away_from_home_and_says_so() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("router", uplink(20.0, 10.0))
        .peer("laptop", no_uplink())
        .peer("guest", no_uplink())
        .behind("laptop", "router");
    let (router, laptop, guest) = (lab.at("router"), lab.at("laptop"), lab.at("guest"));
    // One that is there for the kernel alone, like in any laptop.
    let power = laptop.directory().join("power");
    fs::create_dir_all(power.join("BAT0")).unwrap();
    fs::write(power.join("BAT0/type"), "Battery\n").unwrap();
    laptop.inside(|| {
        let nothing = None::<&str>;
        Ok(mount(
            Some(&power),
            "/sys/class/power_supply",
            nothing,
            MsFlags::MS_BIND,
            nothing,
        )?)
    });
    let _router = router.spawn_daemon(&[]);
    let mut daemon = laptop.spawn_daemon(&[]);
    laptop.wait_status("at home", SOON, |s| peers(s) == 1 && warnings(s).is_empty());
    assert!(laptop.directory().join("state/homes.json").exists());
    let here = quic(laptop.lan_address());
    let probe = |probes: &[Vec<u8>], to: SocketAddrV4| guest.inside(|| Ok(answered(to, probes, PATIENCE)));
    let asks = || {
        let mut bytes = probe(&attack::quic_probes(here), here);
        bytes.extend(probe(
            &[WHO_IS_THERE.to_vec()],
            SocketAddrV4::new(laptop.lan_address(), MDNS),
        ));
        bytes
    };
    let at_home = asks();
    assert!(at_home[0] > 0 && at_home[1] > 0 && at_home[3] > 0, "{at_home:?}");

    // Another router with the same addresses: what the next café has.
    let carry = |mac: &str| {
        router.inside(|| {
            ip(&format!("link set lan0 address {mac}"));
            Ok(())
        });
        laptop.inside(|| {
            ip("neigh flush dev lan0");
            Ok(())
        });
    };
    let mac = router.inside(|| fs::read_to_string("/sys/class/net/lan0/address"));
    carry("02:00:00:ca:fe:01");
    let noticed = laptop.wait_status("away", SOON, |s| peers(s) == 0 && !warnings(s).is_empty());
    let away = asks();
    let status = laptop.ask_status().unwrap();
    let told = warnings(&status)[0].as_str().unwrap();
    assert!(
        told.contains("anywhere = true") && told.contains("lan0"),
        "{told}"
    );
    figure(format_args!(
        "G3: away after {:.1} s: answers to version, first packet, stray packet and mDNS question {away:?} bytes (at home \
         {at_home:?})",
        noticed.as_secs_f64()
    ));
    assert_eq!(away, [0; 4]);
    assert!(
        daemon.running() && lanes(&status) > 0,
        "alone it works on: {status}"
    );

    // Back home all is as before, without a word.
    carry(mac.trim());
    let back = laptop.wait_status("home again", SOON, |s| peers(s) == 1 && warnings(s).is_empty());
    figure(format_args!("G3: home again after {:.1} s", back.as_secs_f64()));

    // What the warning says to do is enough, also when it is undone.
    carry("02:00:00:ca:fe:02");
    laptop.wait_status("away", SOON, |s| peers(s) == 0);
    for (config, what) in [("[lan]\nanywhere = true\n", "anywhere"), ("", "known by now")] {
        daemon.kill();
        laptop.configure(config);
        daemon = laptop.spawn_daemon(&[]);
        laptop.wait_status(what, SOON, |s| peers(s) == 1 && warnings(s).is_empty());
    }
}

// --- SEC-A1 ---

#[test]
fn sec_a1_who_announces_itself_as_another_is_filed_under_its_own_key_and_the_other_stays() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("ann", no_uplink())
        .peer("bob", no_uplink())
        .peer("mallory", no_uplink());
    let (ann, bob, mallory) = (lab.at("ann"), lab.at("bob"), lab.at("mallory"));
    let recorder = lab.record_lan();
    let daemons = [ann, bob].map(|peer| peer.spawn_daemon(&[]));
    ann.wait_status("bob", SOON, |s| peers(s) == 1);
    let bobs = id_of(&bob.ask_status().unwrap());
    let said = names_of(&recorder.frames(), bob);
    assert!(!said.is_empty());
    let key = DeviceKey::ephemeral().unwrap();
    let mallorys = key.id().to_string();
    let stands = |status: &Value| {
        let all = status["peers"].as_array().unwrap();
        all.iter().any(|p| {
            p["id"] == bobs
                && p["address"]
                    .as_str()
                    .unwrap()
                    .starts_with(&bob.lan_address().to_string())
        })
    };
    let (looks, filed) = inside(mallory, async || {
        let endpoint = attack::endpoint(&key, tributary::identity::ALPN, true);
        let port = endpoint.local_addr().unwrap().port();
        let socket = attack::mdns_socket().unwrap();
        let group: SocketAddr = ([224, 0, 0, 251], MDNS).into();
        let (mut looks, mut filed, mut held) = (0, false, Vec::new());
        for round in 0..100 {
            let name = &said[round % said.len()];
            let packet =
                attack::announcement(name, mallory.lan_address(), port, &["v=1", &format!("id={bobs}")]);
            socket.send_to(&packet, group).unwrap();
            if let Ok(Some(call)) = tokio::time::timeout(Duration::from_millis(50), endpoint.accept()).await
                && let Ok(link) = call.await
            {
                let mut control = link.open_uni().await.unwrap();
                control
                    .write_all(&frame(HELLO, &hello("bob", 7), &[]))
                    .await
                    .unwrap();
                held.push((link, control));
            }
            let status = ann.ask_status().unwrap();
            assert!(stands(&status), "after {round} spoofed announcements: {status}");
            let all = status["peers"].as_array().unwrap();
            filed |= all.iter().any(|p| p["id"] == mallorys);
            looks += 1;
        }
        (looks, filed)
    });
    let log = daemons[0].stderr();
    let bob_left = log
        .lines()
        .filter(|l| l.contains("peer left") && l.contains(&bobs[..8]))
        .count();
    figure(format_args!(
        "SEC-A1: bob announced 100 times by another: his link stood at each of {looks} looks, the other is filed under \
         its own key: {filed}"
    ));
    assert_eq!(bob_left, 0, "{log}");
}

// --- what they share ---

fn warnings(status: &Value) -> &[Value] {
    status["warnings"].as_array().map_or(&[], Vec::as_slice)
}

fn id_of(status: &Value) -> String {
    status["device"]["id"].as_str().unwrap().to_owned()
}

/// Runs `ip` in this thread's namespace.
fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split_whitespace()).status();
    assert!(done.unwrap().success(), "ip {arguments}");
}
