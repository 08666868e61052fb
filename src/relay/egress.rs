//! The address filter: which origins a borrower may be connected to. Pure: it is told the network, asks nobody.
//!
//! Numbers decide, never spellings: whatever a name or address looked like, what is judged is the address that will be
//! dialled, and every IPv4 address wrapped in it. Invariant: an address that passes is a public one, or its owner has
//! allowed it by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::relay::cidr::Cidr;
use crate::relay::special::{NAT64, SIX_TO_FOUR, Special, UNICAST, V4, V6};
use crate::uplink::Network;

/// Why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// In a range of IANA's registries.
    #[error("it is not public: {0}")]
    Special(&'static str),
    /// An IPv6 address outside of what is given out.
    #[error("it is not global unicast")]
    Unassigned,
    /// An address of this device.
    #[error("it is this device's own")]
    Own,
    /// A neighbour of this device, however public it looks.
    #[error("it is on a directly connected network")]
    OnLink,
    /// The router of one of the uplinks.
    #[error("it is a gateway's")]
    Gateway,
}

/// Whether `ip` is a public unicast address, judged by its number and by any IPv4 address wrapped in it.
///
/// # Errors
/// Which range it lies in.
pub fn is_public(ip: IpAddr) -> Result<(), Why> {
    let ip = canonical(ip);
    if ip.is_ipv6() {
        special(V6, ip)?;
        if !UNICAST.contains(ip) && !NAT64.contains(ip) {
            return Err(Why::Unassigned);
        }
    }
    match inner(ip) {
        Some(v4) => special(V4, IpAddr::V4(v4)),
        None => Ok(()),
    }
}

/// The address that a connection to `ip` really goes to: a v4-mapped one is IPv4.
fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// What the device itself is made of, in addresses; no borrower gets there.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    own: Vec<IpAddr>,
    on_link: Vec<Cidr>,
    gateways: Vec<IpAddr>,
}

impl Surroundings {
    /// From a snapshot. Interfaces that are down count too: what they had may still be known to others.
    pub fn of(network: &Network) -> Self {
        let addresses = network.interfaces.iter().flat_map(|i| &i.addresses);
        let gateways = network.uplinks.iter();
        let gateways = gateways.flat_map(|u| u.gateway.iter().chain(&u.gateway_addresses));
        let mut new = Self::new(addresses.copied(), gateways.copied());
        let routes = network.interfaces.iter().flat_map(|i| &i.on_link);
        new.on_link
            .extend(routes.map(|(ip, prefix)| Cidr::around(canonical(*ip), *prefix)));
        new
    }

    /// From addresses with their prefixes, and gateways.
    pub fn new(
        addresses: impl IntoIterator<Item = (IpAddr, u8)>,
        gateways: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let mut new = Self {
            gateways: gateways.into_iter().map(canonical).collect(),
            ..Self::default()
        };
        for (ip, prefix) in addresses {
            new.own.push(canonical(ip));
            // A prefix of 0 bits is how some tunnels say "everything is behind me": that is a route, not a neighbourhood.
            if prefix > 0 {
                new.on_link.push(Cidr::around(canonical(ip), prefix));
            }
        }
        new
    }

    fn check(&self, ip: IpAddr) -> Result<(), Why> {
        match () {
            () if self.own.contains(&ip) => Err(Why::Own),
            () if self.gateways.contains(&ip) => Err(Why::Gateway),
            () if self.on_link.iter().any(|link| link.contains(ip)) => Err(Why::OnLink),
            () => Ok(()),
        }
    }
}

/// The filter with the owner's exceptions.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    allow: Vec<Cidr>,
}

impl Filter {
    /// Ranges in `allow` pass whatever they are: private, on-link or this device's own. They are matched against the
    /// address as dialled, not against one wrapped in it.
    pub const fn new(allow: Vec<Cidr>) -> Self {
        Self { allow }
    }

    /// Judges one address and returns it as it is to be dialled.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn check(&self, ip: IpAddr, around: &Surroundings) -> Result<IpAddr, Why> {
        let ip = canonical(ip);
        if self.allow.iter().any(|range| range.contains(ip)) {
            return Ok(ip);
        }
        is_public(ip)?;
        around.check(ip)?;
        if let Some(v4) = inner(ip) {
            around.check(IpAddr::V4(v4))?;
        }
        Ok(ip)
    }

    /// Judges a whole answer: one address that is refused spoils all of it, since whoever made the answer put it there.
    ///
    /// # Errors
    /// Why the first bad one is refused.
    pub fn check_all(&self, ips: &[IpAddr], around: &Surroundings) -> Result<Vec<IpAddr>, Why> {
        ips.iter().map(|ip| self.check(*ip, around)).collect()
    }
}

/// The IPv4 address that a packet to `ip` ends up at, as far as its number tells.
fn inner(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(v6) if NAT64.contains(ip) => Some(low(v6.to_bits())),
        IpAddr::V6(v6) if SIX_TO_FOUR.contains(ip) => Some(low(v6.to_bits() >> 80)),
        IpAddr::V6(v6) => mapped_or_compatible(v6),
    }
}

/// `::ffff:a.b.c.d` and the deprecated `::a.b.c.d`.
fn mapped_or_compatible(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let head = v6.to_bits() >> 32;
    (head == 0 || head == 0xffff).then(|| low(v6.to_bits()))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the low 32 bits are what is wanted"
)]
const fn low(bits: u128) -> Ipv4Addr {
    Ipv4Addr::from_bits(bits as u32)
}

fn special(table: &[Special], ip: IpAddr) -> Result<(), Why> {
    match table.iter().find(|special| special.range.contains(ip)) {
        Some(special) => Err(Why::Special(special.name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::uplink::{Interface, Uplink};

    fn ip(text: &str) -> IpAddr {
        text.parse()
            .unwrap_or_else(|_| panic!("{text} is not an address"))
    }

    const PRIVATE: &[&str] = &[
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.0.9",
        "192.0.0.170",
        "192.0.2.1",
        "192.31.196.1",
        "192.52.193.1",
        "192.88.99.1",
        "192.168.0.1",
        "192.168.255.255",
        "192.175.48.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
    ];
    const PUBLIC: &[&str] = &[
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.3.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
    ];

    #[test]
    fn sec_a5_private_ipv4_is_refused_in_every_wrapping() {
        for text in PRIVATE {
            let IpAddr::V4(v4) = ip(text) else {
                panic!("{text}")
            };
            let [a, b, c, d] = v4.octets();
            let (high, tail) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            for wrapped in [
                text.to_string(),
                format!("::ffff:{text}"),
                format!("::ffff:{high:x}:{tail:x}"),
                format!("::{text}"),
                format!("64:ff9b::{text}"),
                format!("64:ff9b::{high:x}:{tail:x}"),
                format!("64:ff9b:1::{text}"),
                format!("64:ff9b:1:{high:x}:{tail:x}::"),
                format!("2002:{high:x}:{tail:x}::1"),
                format!("2002:{high:x}:{tail:x}:1:2:3:4:5"),
                format!("2001:0:{high:x}:{tail:x}::1"),
            ] {
                assert!(is_public(ip(&wrapped)).is_err(), "{wrapped} passed");
            }
        }
    }

    #[test]
    fn sec_a6_whatever_a_route_or_an_alias_says_is_near_is_refused_however_public_it_looks() {
        let network = Network {
            interfaces: vec![Interface {
                index: 2,
                name: "eth0".into(),
                kind: crate::types::UplinkKind::Wired,
                up: true,
                loopback: false,
                point_to_point: false,
                multicast: true,
                // As by DHCPv6: the network is announced by the router alone.
                addresses: vec![(ip("2600:1::5"), 128), (ip("9.9.9.10"), 29)],
                on_link: vec![(ip("2600:1::"), 64)],
                default_route: true,
                router: crate::uplink::Router::Unknown,
                away: false,
            }],
            uplinks: vec![Uplink {
                gateway: Some(ip("8.8.4.4")),
                gateway_addresses: vec![ip("2600:2::1"), ip("8.8.4.4")],
                ..Uplink::fixture(2, "eth0")
            }],
        };
        let around = Surroundings::of(&network);
        let why = |text: &str| Filter::default().check(ip(text), &around).err();
        for (text, expected) in [
            ("2600:1::5", Why::Own),
            ("2600:1::6", Why::OnLink),
            ("9.9.9.11", Why::OnLink),
            ("64:ff9b::9.9.9.11", Why::OnLink),
            ("8.8.4.4", Why::Gateway),
            ("2600:2::1", Why::Gateway),
        ] {
            assert_eq!(why(text), Some(expected), "{text}");
        }
        for text in ["2600:1:0:1::6", "9.9.9.16", "8.8.8.8"] {
            assert_eq!(why(text), None, "{text}");
        }
    }

    #[test]
    fn sec_a5_private_ipv6_is_refused() {
        for text in [
            "::",
            "::1",
            "::2",
            "::ffff:0:0",
            "64:ff9b:1::1",
            "100::1",
            "100:0:0:1::1",
            "2001::1",
            "2001:1::1",
            "2001:2::1",
            "2001:3::1",
            "2001:4:112::1",
            "2001:10::1",
            "2001:20::1",
            "2001:30::1",
            "2001:db8::1",
            "2001:1ff::1",
            "2620:4f:8000::1",
            "3ffe::1",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "5f00::1",
            "6000::1",
            "fc00::1",
            "fd00::1",
            "fdff:ffff::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
            "1fff:ffff::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "::8.8.8.8",
            "64:ff9b:0:1::8.8.8.8",
        ] {
            assert!(is_public(ip(text)).is_err(), "{text} passed");
        }
    }

    #[test]
    fn public_addresses_pass_also_behind_a_translator() {
        for text in PUBLIC {
            assert_eq!(is_public(ip(text)), Ok(()), "{text}");
            assert_eq!(
                is_public(ip(&format!("64:ff9b::{text}"))),
                Ok(()),
                "64:ff9b::{text}"
            );
            assert_eq!(is_public(ip(&format!("::ffff:{text}"))), Ok(()), "::ffff:{text}");
        }
        for text in [
            "2000::1",
            "2001:200::1",
            "2606:4700::1111",
            "2a00:1450::1",
            "3ffd::1",
            "2620:4f:7fff::1",
        ] {
            assert_eq!(is_public(ip(text)), Ok(()), "{text}");
        }
    }

    #[test]
    fn a_refused_address_is_named_as_the_registry_does() {
        assert_eq!(
            is_public(ip("0.0.0.0")),
            Err(Why::Special("this host on this network"))
        );
        assert_eq!(
            is_public(ip("::ffff:100.64.1.1")),
            Err(Why::Special("shared address space"))
        );
        assert_eq!(is_public(ip("2001::1")), Err(Why::Special("TEREDO")));
        assert_eq!(is_public(ip("::1")), Err(Why::Special("loopback address")));
        let text = is_public(ip("192.168.1.1")).unwrap_err().to_string();
        assert_eq!(text, "it is not public: private use");
    }

    fn home() -> Surroundings {
        let addresses = [
            (ip("192.168.1.7"), 24),
            (ip("8.20.30.40"), 22),
            (ip("2a00:1:2:3::7"), 64),
            (ip("2a00:9::7"), 128),
            (ip("9.9.9.9"), 0),
        ];
        Surroundings::new(addresses, [ip("2a00:77::1"), ip("8.20.30.1")])
    }

    #[test]
    fn sec_a6_own_on_link_and_gateway_addresses_are_refused_however_public_they_look() {
        let filter = Filter::default();
        for (text, why) in [
            ("8.20.30.40", Why::Own),
            ("::ffff:8.20.30.40", Why::Own),
            ("64:ff9b::8.20.30.40", Why::Own),
            ("2002:814:1e28::1", Why::Own),
            ("9.9.9.9", Why::Own),
            ("2a00:1:2:3::7", Why::Own),
            ("2a00:9::7", Why::Own),
            ("8.20.31.255", Why::OnLink),
            ("64:ff9b::8.20.28.9", Why::OnLink),
            ("2a00:1:2:3:ffff::1", Why::OnLink),
            ("2a00:77::1", Why::Gateway),
            ("8.20.30.1", Why::Gateway),
        ] {
            assert_eq!(filter.check(ip(text), &home()), Err(why), "{text}");
        }
        for text in [
            "8.20.32.0",
            "2a00:1:2:4::1",
            "2a00:9::8",
            "2a00:77::2",
            "9.9.9.10",
        ] {
            assert_eq!(filter.check(ip(text), &home()), Ok(ip(text)), "{text}");
        }
    }

    #[test]
    fn one_bad_address_spoils_the_whole_answer() {
        let filter = Filter::default();
        let check =
            |list: &[&str]| filter.check_all(&list.iter().map(|t| ip(t)).collect::<Vec<_>>(), &home());
        assert_eq!(
            check(&["1.1.1.1", "::ffff:1.0.0.1"]),
            Ok(vec![ip("1.1.1.1"), ip("1.0.0.1")])
        );
        assert!(check(&["1.1.1.1", "10.0.0.1"]).is_err());
        assert!(check(&["fe80::1", "1.1.1.1"]).is_err());
    }

    #[test]
    fn sec_b5_only_the_owner_opens_a_way_to_the_lan() {
        let filter = Filter::new(vec![
            "192.168.1.0/28".parse().unwrap(),
            "203.0.113.0/24".parse().unwrap(),
        ]);
        for text in ["192.168.1.7", "192.168.1.1", "::ffff:192.168.1.1", "203.0.113.9"] {
            assert!(filter.check(ip(text), &home()).is_ok(), "{text}");
        }
        for text in [
            "192.168.1.16",
            "169.254.169.254",
            "64:ff9b::192.168.1.1",
            "2002:c0a8:101::1",
            "127.0.0.1",
        ] {
            assert!(filter.check(ip(text), &home()).is_err(), "{text}");
        }
    }

    /// The IPv4 rules once more, from the RFCs and without a table.
    fn v4_is_public(bits: u32) -> bool {
        let [a, b, c, _] = bits.to_be_bytes();
        let v4 = Ipv4Addr::from_bits(bits);
        let by_std = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast();
        let documents = v4.is_documentation() || (a == 198 && b & 0xfe == 18);
        let services = matches!(
            (a, b, c),
            (192, 0, 0) | (192, 31, 196) | (192, 52, 193) | (192, 88, 99) | (192, 175, 48)
        );
        !(by_std || documents || services || a == 0 || a >= 240 || (a == 100 && b & 0xc0 == 64))
    }

    /// How an address can be written: groups with and without leading zeros, in capitals, with any one run of zeros left out,
    /// and with its end as IPv4.
    fn spellings(ip: IpAddr) -> Vec<String> {
        let IpAddr::V6(v6) = ip else {
            return vec![ip.to_string()];
        };
        let groups = v6.segments();
        let tail = low(v6.to_bits());
        let hex = |groups: &[u16]| {
            groups
                .iter()
                .map(|g| format!("{g:x}"))
                .collect::<Vec<_>>()
                .join(":")
        };
        let padded = groups.map(|g| format!("{g:04X}")).join(":");
        let mut all = vec![
            ip.to_string(),
            padded,
            hex(&groups),
            format!("{}:{tail}", hex(&groups[..6])),
        ];
        for from in 0..8 {
            let zeros = groups[from..].iter().take_while(|g| **g == 0).count();
            for to in from + 1..=from + zeros {
                all.push(format!("{}::{}", hex(&groups[..from]), hex(&groups[to..])));
            }
        }
        all
    }

    /// Addresses near the borders of ranges, where mistakes live.
    fn near_a_border() -> impl Strategy<Value = u32> {
        let v4 = V4.iter().map(|s| match s.range.first_and_last() {
            (IpAddr::V4(first), IpAddr::V4(last)) => [first.to_bits(), last.to_bits()],
            other => panic!("{other:?}"),
        });
        let borders: Vec<u32> = v4.flatten().collect();
        (prop::sample::select(borders), -2i64..=2).prop_map(|(at, off)| (i64::from(at) + off) as u32)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn ipv4_is_judged_as_the_rfcs_do(anywhere: u32, border in near_a_border()) {
            for bits in [anywhere, border] {
                let v4 = Ipv4Addr::from_bits(bits);
                prop_assert_eq!(is_public(v4.into()).is_ok(), v4_is_public(bits), "{}", v4);
                prop_assert_eq!(is_public(v4.to_ipv6_mapped().into()).is_ok(), v4_is_public(bits));
                let nat64 = Ipv6Addr::from_bits((0x0064_ff9b << 96) | u128::from(bits));
                prop_assert_eq!(is_public(nat64.into()).is_ok(), v4_is_public(bits));
                let six_to_four = Ipv6Addr::from_bits((0x2002 << 112) | (u128::from(bits) << 80) | 1);
                prop_assert_eq!(is_public(six_to_four.into()).is_ok(), v4_is_public(bits));
                prop_assert!(is_public(v4.to_ipv6_compatible().into()).is_err());
            }
        }

        #[test]
        fn ipv6_outside_of_global_unicast_never_passes(bits: u128) {
            let v6 = Ipv6Addr::from_bits(bits);
            let unicast = bits >> 125 == 1;
            prop_assert!(unicast || is_public(v6.into()).is_err());
            let documented = v6.segments()[0] == 0x2001 && (v6.segments()[1] < 0x200 || v6.segments()[1] == 0xdb8);
            let listed = documented || matches!(v6.segments()[0], 0x2002 | 0x2620 | 0x3ffe | 0x3fff);
            prop_assert!(!unicast || listed || is_public(v6.into()).is_ok(), "{}", v6);
            // The same bits moved into 2001::/16, where the exceptions are dense.
            let dense = Ipv6Addr::from_bits((0x2001 << 112) | (bits >> 16));
            let refused = dense.segments()[1] < 0x200 || dense.segments()[1] == 0xdb8;
            prop_assert_eq!(is_public(dense.into()).is_err(), refused, "{}", dense);
        }

        #[test]
        fn prop_5_what_passes_is_not_special_and_neither_is_what_is_wrapped_in_it(bits: u128, border in near_a_border(), prefix in 0usize..7) {
            // Anywhere, and where addresses are wrapped in others.
            let wrapped = u128::from(border);
            let bits = match prefix {
                0 => bits,
                1 => wrapped,
                2 => (0xffff << 32) | wrapped,
                3 => (0x0064_ff9b << 96) | wrapped,
                4 => (0x2002 << 112) | (wrapped << 80) | (bits & 0xffff),
                5 => (0x2001 << 112) | (bits >> 16),
                _ => (1 << 125) | (bits >> 3),
            };
            let v6 = Ipv6Addr::from_bits(bits);
            for ip in [IpAddr::V6(v6), Ipv4Addr::from_bits(border).into()] {
                if is_public(ip).is_err() {
                    continue;
                }
                let really = ip.to_canonical();
                let mut listed = V4.iter().chain(V6).filter(|special| special.range.contains(really));
                prop_assert!(listed.next().is_none(), "{} passed", ip);
                // By hand, not by `inner`.
                let within = match v6.segments() {
                    _ if really.is_ipv4() => None,
                    [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Some(low(bits)),
                    [0x2002, ..] => Some(low(bits >> 80)),
                    _ => None,
                };
                if let Some(v4) = within {
                    prop_assert_eq!(is_public(v4.into()), Ok(()), "{} within {}", v4, ip);
                }
            }
        }

        #[test]
        fn prop_5_every_spelling_of_an_address_is_judged_as_its_number_is(bits: u128, border in near_a_border(), sparse in any::<u8>(), dense: bool) {
            // Whole groups of zeros, so that there is something to leave out.
            let mut groups = Ipv6Addr::from_bits(bits).segments();
            for (n, group) in groups.iter_mut().enumerate() {
                *group *= u16::from(sparse >> n & 1);
            }
            groups[0] = if dense { 0x2001 } else { groups[0] };
            let v4 = Ipv4Addr::from_bits(border);
            let [a, b, c, d] = v4.octets();
            let nat64 = format!("64:ff9b::{v4}");
            for number in [IpAddr::from(groups), v4.into(), v4.to_ipv6_mapped().into(), ip(&nat64)] {
                for text in spellings(number) {
                    prop_assert_eq!(is_public(ip(&text)), is_public(number), "{} as {}", number, text);
                }
            }
            let judged = is_public(v4.into());
            for text in [
                format!("::ffff:{a:x}{b:02x}:{c:x}{d:02x}"),
                format!("0:0:0:0:0:FFFF:{v4}"),
                format!("64:ff9b::{a:02X}{b:02X}:{c:02x}{d:02x}"),
                format!("2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1"),
            ] {
                prop_assert_eq!(is_public(ip(&text)), judged, "{}", text);
            }
        }

        #[test]
        fn whatever_passes_is_public_or_allowed(bits: u128, small: u32) {
            let filter = Filter::new(vec!["203.0.113.0/24".parse().unwrap()]);
            for ip in [IpAddr::from(Ipv6Addr::from_bits(bits)), Ipv4Addr::from_bits(small).into()] {
                if let Ok(passed) = filter.check(ip, &home()) {
                    prop_assert!(is_public(passed).is_ok() || filter.allow[0].contains(passed));
                    prop_assert!(!home().own.contains(&passed));
                }
            }
        }
    }
}
