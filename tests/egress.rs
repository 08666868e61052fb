//! What a lender lets out for others, against the real daemon: refused targets see not one packet, whoever asks and however
//! the target is spelled; and what neighbours get beside the owner. Each test is a row of the catalogue of threats.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "the helpers of these tests fail them"
)]

mod borrower;
mod lab;

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use borrower::{Borrower, Syns, client_hello, inside, name_there, vouch};
use lab::{INTERNET, Lab, Peer, figure, lanes, measured, no_uplink, uplink, wait_for};
use nix::net::if_::if_nametoindex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tributary::identity::DeviceKey;
use tributary::link::Refusal;

const SOON: Duration = Duration::from_secs(15);
/// The rule of the lab's origins, without which nothing there is public.
const ALLOW: &str = "[egress]\nallow = [\"203.0.113.0/24\"]\n";
const HOST: &str = "origin.lab";

/// IPv4 addresses of no public host, each to be tried in every wrapping there is.
const PRIVATE: &[&str] = &[
    "0.0.0.0",
    "10.0.0.1",
    "10.77.0.1",
    "10.77.0.2",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.170",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
];
/// IPv6 addresses of no public host.
const PRIVATE_V6: &[&str] = &[
    "::",
    "::1",
    "fe80::1",
    "fec0::1",
    "fd00::1",
    "ff02::1",
    "100::1",
    "2001:db8::1",
    "2001::1",
    "3fff::1",
    "5f00::1",
    "64:ff9b:1::a00:1",
];
/// Addresses as names, in whatever spelling: what a resolver may read as a number, and what is answered on the LAN.
const NO_NAMES: &[&str] = &[
    "192.168.1.1",
    "192.168.1.1.",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "017700000001",
    "0177.0.0.1",
    "[::ffff:10.0.0.1]",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "2002:0a00:0001::",
    "2001:0:a00:1::1",
    "fe80::1%lan0",
    "localhost",
    "localhost.",
    "x.localhost",
    "nas.local",
    "printer.LOCAL.",
    "router",
    "router.lan.127",
    "nas.home.arpa",
    "203.0.113.1",
    "user@origin.lab",
    "origin.lab:80",
    "origin.lab/",
    "origin.lab\0",
    "",
    ".",
    "127\u{3002}0\u{3002}0\u{3002}1",
];

/// An address in every wrapping that some network turns back into it.
fn wrapped(text: &str) -> Vec<IpAddr> {
    let v4: Ipv4Addr = text.parse().unwrap();
    let [a, b, c, d] = v4.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let wrapped = [
        text.to_owned(),
        format!("::ffff:{text}"),
        format!("::{text}"),
        format!("64:ff9b::{text}"),
        format!("2002:{high:x}:{low:x}::1"),
        format!("2001:0:{high:x}:{low:x}::1"),
    ];
    wrapped.iter().map(|text| text.parse().unwrap()).collect()
}

// --- SEC-A5 ---

#[test]
fn sec_a5_not_one_syn_leaves_for_any_spelling_of_an_address_that_is_not_public() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("lender", uplink(20.0, 10.0))
        .peer("mallory", no_uplink());
    let origin = lab.origin(HOST);
    let (lender, mallory) = (lab.at("lender"), lab.at("mallory"));
    lender.configure("[egress]\nallow = [\"203.0.113.1\"]\n");
    let pins: Vec<IpAddr> = PRIVATE.iter().flat_map(|text| wrapped(text)).collect();
    let v6 = PRIVATE_V6.iter().map(|text| text.parse().unwrap());
    let own = [lender.wan_address(0), lender.lan_address(), INTERNET];
    let pins: Vec<IpAddr> = pins.into_iter().chain(v6).chain(own.map(IpAddr::V4)).collect();
    for (number, pin) in pins.iter().enumerate() {
        name_there(lender, &format!("a{number}.private.lab"), *pin);
    }
    let _daemon = lender.spawn_daemon(&[]);
    lender.wait_status("itself", SOON, |s| lanes(s) == 1);
    let syns = Syns::of(lender);
    let (names, addresses) = inside(mallory, async || {
        let mallory = Borrower::link(lender, &DeviceKey::ephemeral().unwrap()).await;
        for name in NO_NAMES {
            let refused = mallory.refused(name, 443, None).await;
            assert_eq!(refused, Refusal::Name, "{name:?}");
        }
        for (number, pin) in pins.iter().enumerate() {
            // 80 is where routers and printers are.
            let refused = mallory.refused(HOST, 80, Some(*pin)).await;
            assert_eq!(refused, Refusal::Address, "{pin}");
            // Some of these no resolver takes out of its file.
            let refused = mallory
                .refused(&format!("a{number}.private.lab"), 443, None)
                .await;
            assert!(
                matches!(refused, Refusal::Address | Refusal::Resolve),
                "{pin}: {refused:?}"
            );
        }
        (NO_NAMES.len(), pins.len())
    });
    assert_eq!(syns.seen(), []);
    assert_eq!(lender.wire(0).carried().up, 0, "nothing at all has left");
    // What may be reached can be: else the figures above would say nothing.
    inside(mallory, async || {
        let mallory = Borrower::link(lender, &DeviceKey::ephemeral().unwrap()).await;
        mallory.tunnel(HOST, 443, None).await.unwrap();
    });
    let seen = syns.seen();
    // It may be the origin's turn only now.
    wait_for("the origin has it", SOON, || origin.connections() == 1);
    figure(format_args!(
        "SEC-A5: {names} spellings as names, {addresses} addresses as pins and by name: 0 SYN; 1 for the origin"
    ));
    assert_eq!(seen, ["203.0.113.1:443".parse().unwrap()]);
}

// --- SEC-A6 ---

#[test]
fn sec_a6_what_looks_public_and_is_this_devices_own_its_neighbours_or_its_gateways_is_refused() {
    if !lab::installed("ip") {
        return;
    }
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("lender", uplink(20.0, 10.0))
        .peer("mallory", no_uplink());
    let _origin = lab.origin(HOST);
    let (lender, mallory) = (lab.at("lender"), lab.at("mallory"));
    // A provider's addresses: the device's own on both sides, a gateway, and a /64 that is only announced as on-link, as
    // beside an address from DHCPv6.
    for command in [
        "addr add 9.9.9.10/29 dev wan0",
        "route add default via 9.9.9.9 dev wan0 metric 50",
        "-6 addr add 2600:1::1/64 dev lan0 nodad",
        "-6 addr add 2600:2::1/128 dev lan0 nodad",
        "-6 route add 2600:2::/64 dev lan0",
        "-6 route add default via 2600:2::fe dev lan0 metric 9000",
    ] {
        ip(lender, command);
    }
    ip(mallory, "-6 addr add 2600:1::2/64 dev lan0 nodad");
    ip(mallory, "-6 addr add 2600:2::2/64 dev lan0 nodad");
    let _daemon = lender.spawn_daemon(&[]);
    lender.wait_status("itself", SOON, |s| lanes(s) > 0);
    let syns = Syns::of(lender);
    let targets = [
        "2600:1::1",
        "2600:1::2",
        "2600:2::1",
        "2600:2::2",
        "2600:2::fe",
        "9.9.9.9",
        "9.9.9.10",
        "9.9.9.11",
        "::ffff:9.9.9.10",
        "64:ff9b::9.9.9.9",
        "2002:909:90a::1",
    ];
    inside(mallory, async || {
        let mallory = Borrower::link(lender, &DeviceKey::ephemeral().unwrap()).await;
        for target in targets {
            for uplink in mallory.offered() {
                let refused = mallory
                    .refused_over(uplink, HOST, 443, Some(target.parse().unwrap()))
                    .await;
                assert_eq!(refused, Refusal::Address, "{target}");
            }
        }
    });
    figure(format_args!(
        "SEC-A6: {} own, on-link and gateway's addresses that look public: {} SYN",
        targets.len(),
        syns.seen().len()
    ));
    assert_eq!(syns.seen(), []);
}

// --- SEC-A7 ---

#[test]
fn sec_a7_a_name_server_that_alternates_leads_the_daemon_to_no_private_address() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("lender", uplink(20.0, 10.0))
        .peer("mallory", no_uplink());
    let (lender, mallory) = (lab.at("lender"), lab.at("mallory"));
    let origin = lab.outside(|| TcpListener::bind((INTERNET, 443)));
    let _names = borrower::Rebinder::start(lender);
    let _daemon = lender.spawn_daemon(&[]);
    lender.wait_status("itself", SOON, |s| lanes(s) == 1);
    let syns = Syns::of(lender);
    const ASKED: usize = 60;
    let reached = inside(mallory, async || {
        let mallory = Borrower::link(lender, &DeviceKey::ephemeral().unwrap()).await;
        let mut reached = 0;
        for _ in 0..ASKED {
            match mallory.patiently(HOST, 443, None).await {
                Ok((address, _)) => {
                    assert_eq!(address.ip(), IpAddr::V4(INTERNET));
                    reached += 1;
                }
                Err(refused) => assert_eq!(refused, Refusal::Address),
            }
        }
        reached
    });
    let (public, private): (Vec<_>, Vec<_>) = syns
        .seen()
        .into_iter()
        .partition(|to| to.ip() == IpAddr::V4(INTERNET));
    figure(format_args!(
        "SEC-A7: {ASKED} dials of a name whose answers alternate: {} SYN to the public address, {} to private ones",
        public.len(),
        private.len()
    ));
    assert_eq!((public.len(), private), (reached, vec![]));
    assert!(
        (1..ASKED).contains(&reached),
        "{reached}: it must have alternated"
    );
    drop(origin);
}

#[test]
fn sec_a7_ten_thousand_alternating_answers_of_a_real_resolver_lead_to_no_private_address() {
    const ASKED: usize = 10_000;
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("lender", uplink(200.0, 200.0));
    let lender = lab.at("lender");
    let origin = lab.outside(|| TcpListener::bind((INTERNET, 443)));
    let accepting = thread::spawn(move || {
        // Each stays until the borrower leaves: one that ended first would be cut off at once.
        let held = origin
            .incoming()
            .flatten()
            .map(|mut stream| stream.read(&mut [0; 1]));
        held.take(ASKED / 4).count()
    });
    let names = borrower::Rebinder::start(lender);
    let syns = Syns::of(lender);
    let source = lender.wan_address(0);
    let (reached, refused) = inside(lender, async || borrower::rebound(source, ASKED).await);
    let (public, private): (Vec<_>, Vec<_>) = syns
        .seen()
        .into_iter()
        .partition(|to| to.ip() == IpAddr::V4(INTERNET));
    figure(format_args!(
        "SEC-A7: {ASKED} alternating answers: {reached} public ones dialled with {} SYN, {refused} refused, {} SYN to \
         private addresses; the name server was asked {} times",
        public.len(),
        private.len(),
        names.asked()
    ));
    assert_eq!((reached, refused, private), (ASKED / 4, ASKED * 3 / 4, vec![]));
    assert_eq!(
        (public.len(), names.asked()),
        (reached, ASKED),
        "resolved once, dialled once"
    );
    assert_eq!(accepting.join().unwrap(), ASKED / 4);
}

// --- SEC-A8 ---

#[test]
fn sec_a8_other_ports_see_no_syn_and_other_first_bytes_never_reach_the_origin() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("lender", uplink(20.0, 10.0))
        .peer("mallory", no_uplink());
    let (lender, mallory) = (lab.at("lender"), lab.at("mallory"));
    name_there(lender, "raw.lab", INTERNET.into());
    let _daemon = lender.spawn_daemon(&[]);
    lender.wait_status("itself", SOON, |s| lanes(s) == 1);
    let syns = Syns::of(lender);
    inside(mallory, async || {
        let mallory = Borrower::link(lender, &DeviceKey::ephemeral().unwrap()).await;
        for port in [0, 22, 25, 53, 81, 445, 8080, 8443, 65_535] {
            assert_eq!(
                mallory.refused("raw.lab", port, None).await,
                Refusal::Port,
                "{port}"
            );
        }
        mallory.leave().await;
    });
    assert_eq!(syns.seen(), []);
    assert_eq!(lender.wire(0).carried().up, 0);

    let other_name = client_hello("other.lab");
    let no_name = client_hello("203.0.113.254");
    let right = client_hello("raw.lab");
    let to = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    let cases: [(&str, u16, Vec<u8>, bool); 8] = [
        ("the right ClientHello", 443, right, true),
        ("TLS to another name", 443, other_name, false),
        ("TLS without a name", 443, no_name, false),
        ("plain HTTP on 443", 443, to("raw.lab"), false),
        ("SSH on 443", 443, b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), false),
        ("the right request", 80, to("raw.lab"), true),
        ("a request to another host", 80, to("other.lab"), false),
        ("SSH on 80", 80, b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), false),
    ];
    for (what, port, first, passes) in cases {
        let origin = lab.outside(|| TcpListener::bind((INTERNET, port)));
        let (ended, end) = oneshot::channel();
        let expected = first.len();
        let serving = thread::spawn(move || {
            let (mut stream, _) = origin.accept().unwrap();
            let mut got = vec![0; expected];
            let read = stream.read_exact(&mut got);
            // Whoever waits for a reset need not wait any longer.
            let _ = ended.send(());
            read.map(|()| got).map_err(|error| error.kind())
        });
        let first = &first;
        inside(mallory, async move || {
            let mallory = Borrower::link(lender, &DeviceKey::ephemeral().unwrap()).await;
            let (_, mut tunnel) = mallory.tunnel("raw.lab", port, None).await.unwrap();
            tunnel.write_all(first).await.unwrap();
            if passes {
                end.await.unwrap();
            } else {
                // Cut off, not ended.
                assert!(tunnel.read(&mut [0; 1]).await.is_err(), "{what}");
            }
            mallory.leave().await;
        });
        match (serving.join().unwrap(), passes) {
            (Ok(got), true) => assert_eq!(got, *first, "{what}"),
            (Err(io::ErrorKind::ConnectionReset), false) => {}
            (other, _) => panic!("{what}: {other:?}"),
        }
    }
    figure("SEC-A8: 9 other ports: 0 SYN; 6 kinds of other first bytes: 0 bytes at the origin, each reset");
}

// --- SEC-A9 ---

#[test]
fn sec_a9_ten_thousand_dials_leave_no_faster_than_a_neighbour_may_dial() {
    const DIALS: usize = 10_000;
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("lender", uplink(20.0, 10.0))
        .peer("mallory", no_uplink());
    let _origin = lab.origin(HOST);
    let (lender, mallory) = (lab.at("lender"), lab.at("mallory"));
    let _daemon = lender.spawn_daemon(&[]);
    lender.wait_status("itself", SOON, |s| lanes(s) == 1);
    for (identities, share) in [(1, 1), (3, 2)] {
        let syns = Syns::of(lender);
        let (opened, took) = inside(mallory, async || {
            let mut links = Vec::new();
            for _ in 0..identities {
                links.push(Borrower::link(lender, &DeviceKey::ephemeral().unwrap()).await);
            }
            let (began, mut opened) = (Instant::now(), 0);
            for n in 0..DIALS {
                match links[n % identities].tunnel(HOST, 443, None).await {
                    Ok(_) => opened += 1,
                    Err(refused) => assert_eq!(refused, Refusal::Busy),
                }
            }
            (opened, began.elapsed().as_secs_f64())
        });
        let left = syns.seen().len();
        let most = f64::from(share) * (32.0 + 4.0 * took);
        figure(format_args!(
            "SEC-A9: {DIALS} dials of {identities} neighbour(s) in {took:.1} s: {left} SYN, {most:.0} allowed"
        ));
        assert!(
            left >= 32 && left as f64 <= most.ceil(),
            "{left} SYN, {most} allowed"
        );
        assert_eq!(left, opened);
    }
}

// --- SEC-A10 ---

#[test]
fn sec_a10_a_metered_uplink_is_no_neighbours_and_a_members_only_where_the_owner_says_so() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("lender", [uplink(20.0, 10.0), uplink(20.0, 10.0)])
        .peer("guest", no_uplink());
    let _origin = lab.origin(HOST);
    let (lender, guest) = (lab.at("lender"), lab.at("guest"));
    let metered = lender.inside(|| Ok(if_nametoindex("wan1")?));
    let member = DeviceKey::ephemeral().unwrap();
    vouch(lender, member.id());
    for (lend, members_too) in [
        ("", false),
        ("lend = true\n", false),
        ("lend = \"members\"\n", true),
    ] {
        lender.configure(&format!(
            "{ALLOW}[[uplink]]\ninterface = \"wan1\"\nmetered = true\n{lend}"
        ));
        let _daemon = lender.spawn_daemon(&[]);
        lender.wait_status("itself", SOON, |s| lanes(s) == 2);
        let before = lender.wire(1).carried();
        inside(guest, async || {
            let neighbour = Borrower::link(lender, &DeviceKey::ephemeral().unwrap()).await;
            assert_eq!(neighbour.offered().len(), 1);
            assert!(!neighbour.offered().contains(&metered));
            for forged in [metered, 0, 1, metered + 1, u32::MAX] {
                let refused = neighbour.refused_over(forged, HOST, 443, None).await;
                assert_eq!(refused, Refusal::Uplink, "{forged}");
            }
            neighbour.tunnel(HOST, 443, None).await.unwrap();
        });
        assert_eq!(lender.wire(1).carried(), before, "{lend}");
        inside(guest, async || {
            let member = Borrower::link(lender, &member).await;
            assert_eq!(member.offered().contains(&metered), members_too);
            match members_too {
                true => drop(member.over(metered, HOST, 443, None).await.unwrap()),
                false => {
                    let refused = member.refused_over(metered, HOST, 443, None).await;
                    assert_eq!(refused, Refusal::Uplink);
                }
            }
        });
        let moved = lender.wire(1).carried() != before;
        assert_eq!(moved, members_too, "{lend}");
    }
    figure(
        "SEC-A10: a metered uplink is not offered, refused by every number, 0 bytes on it; members by the owner's word",
    );
}

// --- SEC-B5 ---

#[test]
fn sec_b5_a_member_gets_more_ports_and_no_more_addresses_and_the_lan_by_the_owners_rule_only() {
    let Some(lab) = Lab::beside() else { return };
    // The lender's way out is its LAN interface, as most are: nothing but the filter keeps others from the LAN.
    let lab = lab
        .peer("router", uplink(20.0, 10.0))
        .peer("lender", no_uplink())
        .peer("nas", no_uplink())
        .peer("member", no_uplink())
        .behind("lender", "router");
    let _origin = lab.origin(HOST);
    let (lender, nas, guest) = (lab.at("lender"), lab.at("nas"), lab.at("member"));
    let key = DeviceKey::ephemeral().unwrap();
    vouch(lender, key.id());
    let disk = nas.inside(|| TcpListener::bind("0.0.0.0:8443"));
    let private: Vec<IpAddr> = PRIVATE.iter().flat_map(|text| wrapped(text)).collect();
    let v6 = PRIVATE_V6.iter().map(|text| text.parse().unwrap());
    let lan = [nas, guest, lab.at("router")].map(|peer| IpAddr::V4(peer.lan_address()));
    let private: Vec<IpAddr> = private.into_iter().chain(v6).chain(lan).collect();
    lender.configure("[egress]\nallow = [\"203.0.113.0/24\"]\nports = [80, 443, 8443]\n");
    let daemon = lender.spawn_daemon(&[]);
    lender.wait_status("itself", SOON, |s| lanes(s) == 1);
    let syns = Syns::of(lender);
    inside(guest, async || {
        let member = Borrower::link(lender, &key).await;
        for name in NO_NAMES {
            assert_eq!(member.refused(name, 8443, None).await, Refusal::Name, "{name:?}");
        }
        for pin in &private {
            assert_eq!(
                member.refused(HOST, 8443, Some(*pin)).await,
                Refusal::Address,
                "{pin}"
            );
        }
        assert_eq!(member.refused(HOST, 22, None).await, Refusal::Port);
        let neighbour = Borrower::link(lender, &DeviceKey::ephemeral().unwrap()).await;
        assert_eq!(neighbour.refused(HOST, 8443, None).await, Refusal::Port);
        // Nobody listens there, which only a SYN finds out.
        assert_eq!(syns.seen(), []);
        assert_eq!(member.refused(HOST, 8443, None).await, Refusal::Connect);
    });
    assert_eq!(syns.seen(), ["203.0.113.1:8443".parse().unwrap()]);
    drop(daemon);
    // With the owner's word for exactly that device.
    let rule = nas.lan_address();
    lender.configure(&format!("[egress]\nallow = [\"{rule}\"]\nports = [443, 8443]\n"));
    let _daemon = lender.spawn_daemon(&[]);
    lender.wait_status("itself", SOON, |s| lanes(s) == 1);
    inside(guest, async || {
        let member = Borrower::link(lender, &key).await;
        member.tunnel(HOST, 8443, Some(rule.into())).await.unwrap();
        let others = private.iter().filter(|ip| ip.to_canonical() != IpAddr::V4(rule));
        for pin in others.take(20) {
            assert_eq!(
                member.refused(HOST, 8443, Some(*pin)).await,
                Refusal::Address,
                "{pin}"
            );
        }
    });
    let (_, from) = disk.accept().unwrap();
    assert_eq!(from.ip(), IpAddr::V4(lender.lan_address()));
    figure(format_args!(
        "SEC-B5: a member: {} private targets refused with 0 SYN, a port more than neighbours; the LAN by the owner's rule only",
        private.len()
    ));
}

// --- The class's share ---

#[test]
fn sec_a13_the_owners_download_keeps_most_of_its_line_beside_a_neighbours() {
    /// Mbit/s.
    const LINE: f64 = 20.0;
    const WINDOW: Duration = Duration::from_secs(6);
    let parts = measured(
        "the owner has at least 70 % of a line it uses, and a neighbour all of one it does not use",
        || {
            let lab = Lab::new()?;
            let lab = lab
                .peer("owner", uplink(LINE, 10.0).delay_ms(15))
                .peer("neighbour", no_uplink());
            let origin = lab.origin(HOST);
            let (owner, neighbour) = (lab.at("owner"), lab.at("neighbour"));
            let _daemons = [owner.spawn_daemon(&[]), neighbour.spawn_daemon(&[])];
            neighbour.wait_status("the owner's lane", SOON, |s| lanes(s) == 1);
            let _theirs = neighbour.spawn_get(&origin.url("128MiB"), &["-o", "file"]);
            wait_for("a good part", SOON, || owner.wire(0).carried().down > 4_000_000);
            let alone = lent_part(owner, Duration::from_secs(2)).1 / LINE;
            let _own = owner.spawn_get(&origin.url("128MiB"), &["-o", "file"]);
            // It begins, its line is found to be in use, and what was sent ahead for the neighbour is gone.
            thread::sleep(Duration::from_secs(2));
            let (lent, rate) = lent_part(owner, WINDOW);
            figure(format_args!(
                "class: a neighbour alone has {:.0} % of a {LINE} Mbit/s line, beside the owner's download {:.1} % of the \
                 {rate:.1} Mbit/s it carries",
                alone * 1e2,
                lent * 1e2
            ));
            Some((lent, rate / LINE, alone))
        },
        |parts| parts.is_none_or(|(lent, all, alone)| lent <= 0.3 && all >= 0.8 && alone >= 0.8),
    );
    // A share that is nothing would be none.
    assert!(parts.is_none_or(|(lent, _, _)| lent >= 0.05), "{parts:?}");
}

/// Of what the wire carries over that time, the part that is lent, and the rate of all of it in Mbit/s.
fn lent_part(owner: &Peer, time: Duration) -> (f64, f64) {
    let lent = || owner.ask_status().unwrap()["lent"]["down"].as_u64().unwrap();
    let (began, before, lent_before) = (Instant::now(), owner.wire(0).carried().down, lent());
    thread::sleep(time);
    let (all, lent) = (owner.wire(0).carried().down - before, lent() - lent_before);
    let rate = all as f64 * 8.0 / 1e6 / began.elapsed().as_secs_f64();
    (lent as f64 / all as f64, rate)
}

#[track_caller]
fn ip(peer: &Peer, arguments: &str) {
    let mut command = peer.command("ip");
    command.args(arguments.split_whitespace());
    peer.run("ip", command).ok();
}
