//! FUZ-4: which addresses are public, against IANA's registries once more: written as text, compared as numbers, and asked
//! about by every spelling that an address has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use tributary::relay::{check_name, is_public as judged};

use super::input::Input;

/// The special-purpose registry for IPv4 (RFC 6890 and its successors), multicast (RFC 5771), and what was withdrawn.
const V4: &str = "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 \
    192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 \
    203.0.113.0/24 224.0.0.0/4 240.0.0.0/4";
/// Within 2000::/3, which is all that is given out for unicast: the special-purpose registry for IPv6, and what was
/// withdrawn.
const V6: &str = "2001:0::/23 2001:db8::/32 2620:4f:8000::/48 3ffe::/16 3fff::/20";

/// An address by its number in every spelling, and a text that may be one.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let how = input.u8();
    if how & 1 == 0 {
        judge_text(input.0);
        return;
    }
    let bits = u128::from_be_bytes(input.array());
    let low = Ipv4Addr::from_bits(bits as u32);
    for ip in [IpAddr::from(Ipv6Addr::from_bits(bits)), IpAddr::from(low)] {
        judge(ip);
        for text in spellings(ip) {
            let Ok(read) = text.parse::<IpAddr>() else {
                panic!("{text} is a spelling of {ip}");
            };
            assert_eq!(judged(read).is_ok(), judged(ip).is_ok(), "{text}");
            assert!(check_name(&text).is_err(), "{text} is no name");
        }
    }
    // What else resolvers take for that address.
    let number = low.to_bits();
    let [a, b, c, d] = low.octets();
    for text in [
        format!("{number}"),
        format!("{number:#x}"),
        format!("0{number:o}"),
        format!("{a}.{b}.{}", u16::from_be_bytes([c, d])),
        format!("{a}.{}", number & 0xff_ffff),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("{a:#x}.{b:#X}.{c:#x}.{d:#x}."),
        format!("[{low}]"),
    ] {
        assert!(check_name(&text).is_err(), "{text} is no name");
    }
}

fn judge_text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(ip) = text.parse::<IpAddr>() {
        judge(ip);
        assert!(check_name(text).is_err(), "{text} is no name");
        let shown = ip.to_string().parse::<IpAddr>();
        assert_eq!(
            shown.as_ref().map(|ip| judged(*ip).is_ok()),
            Ok(judged(ip).is_ok())
        );
    }
}

fn judge(ip: IpAddr) {
    assert_eq!(judged(ip).is_ok(), is_public(ip), "{ip}");
}

static RANGES: LazyLock<[Vec<(u128, u128)>; 2]> = LazyLock::new(|| [ranges(V4), ranges(V6)]);

/// By the registries.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => outside(&RANGES[0], v4.to_bits().into()),
        IpAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h] = v6.segments();
            let v4 = |high: u16, low: u16| {
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                is_public(Ipv4Addr::new(a, b, c, d).into())
            };
            match [a, b, c, d, e, f] {
                // RFC 4291 2.5.5.2, RFC 6052 2.1, RFC 3056 2: a packet to these goes to the address inside.
                [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => v4(g, h),
                [0x2002, high, low, ..] => v4(high, low),
                _ => (0x2000..0x4000).contains(&a) && outside(&RANGES[1], v6.to_bits()),
            }
        }
    }
}

/// Whether a number lies in none of these ranges.
fn outside(ranges: &[(u128, u128)], number: u128) -> bool {
    ranges
        .iter()
        .all(|(first, size)| number < *first || number - first >= *size)
}

/// First numbers and sizes.
fn ranges(text: &str) -> Vec<(u128, u128)> {
    let range = |range: &str| {
        let (first, prefix) = range.split_once('/')?;
        let (first, width) = match first.parse().ok()? {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        Some((first, 1 << (width - prefix.parse::<u32>().ok()?)))
    };
    text.split_whitespace()
        .map(|r| range(r).unwrap_or_else(|| panic!("{r} is no range")))
        .collect()
}

/// Every way to write an address that the standard's grammar has (RFC 4291 2.2).
pub fn spellings(ip: IpAddr) -> Vec<String> {
    let v6 = match ip {
        IpAddr::V4(v4) => {
            let mapped = v4.to_ipv6_mapped();
            let mut all = spellings(mapped.into());
            all.push(v4.to_string());
            return all;
        }
        IpAddr::V6(v6) => v6,
    };
    let groups = v6.segments();
    let hex = |range: &[u16]| {
        range
            .iter()
            .map(|g| format!("{g:x}"))
            .collect::<Vec<_>>()
            .join(":")
    };
    let padded = groups.map(|g| format!("{g:04x}")).join(":");
    let tail = Ipv4Addr::from_bits(v6.to_bits() as u32);
    let mut all = vec![
        v6.to_string(),
        hex(&groups),
        padded.to_uppercase(),
        padded,
        format!("{}:{tail}", hex(&groups[..6])),
    ];
    // Each run of zeros may be the one that is left out.
    for from in 0..8 {
        for to in from + 1..=8 {
            if groups[from..to].iter().all(|g| *g == 0) {
                all.push(format!("{}::{}", hex(&groups[..from]), hex(&groups[to..])));
                if to <= 6 {
                    let middle = hex(&groups[to..6]);
                    let colon = if middle.is_empty() { "" } else { ":" };
                    all.push(format!("{}::{middle}{colon}{tail}", hex(&groups[..from])));
                }
            }
        }
    }
    all
}
