//! The addresses that are no public origin, as data: IANA's special-purpose registries for IPv4 and IPv6, with their
//! names, and the few ranges these leave out (multicast, deprecated and never assigned ones).
//!
//! A range is listed also where the registry calls it globally reachable (AS112, AMT, anycast of protocols): no web
//! origin lives there. Longer prefixes come first, so that the name found is the most exact one.

use std::net::Ipv6Addr;

use crate::relay::cidr::Cidr;

/// A range nobody may be lent a way to.
pub(super) struct Special {
    pub(super) range: Cidr,
    pub(super) name: &'static str,
}

/// Everything refused among IPv4 addresses.
pub(super) const V4: &[Special] = &[
    v4([0, 0, 0, 0], 32, "this host on this network"),
    v4([192, 0, 0, 8], 32, "IPv4 dummy address"),
    v4([192, 0, 0, 9], 32, "port control protocol anycast"),
    v4([192, 0, 0, 10], 32, "TURN anycast"),
    v4([192, 0, 0, 170], 32, "NAT64/DNS64 discovery"),
    v4([192, 0, 0, 171], 32, "NAT64/DNS64 discovery"),
    v4([255, 255, 255, 255], 32, "limited broadcast"),
    v4([192, 0, 0, 0], 29, "IPv4 service continuity"),
    v4([192, 0, 0, 0], 24, "IETF protocol assignments"),
    v4([192, 0, 2, 0], 24, "documentation (TEST-NET-1)"),
    v4([192, 31, 196, 0], 24, "AS112-v4"),
    v4([192, 52, 193, 0], 24, "AMT"),
    v4([192, 88, 99, 0], 24, "deprecated (6to4 relay anycast)"),
    v4([192, 175, 48, 0], 24, "direct delegation AS112 service"),
    v4([198, 51, 100, 0], 24, "documentation (TEST-NET-2)"),
    v4([203, 0, 113, 0], 24, "documentation (TEST-NET-3)"),
    v4([169, 254, 0, 0], 16, "link local"),
    v4([192, 168, 0, 0], 16, "private use"),
    v4([198, 18, 0, 0], 15, "benchmarking"),
    v4([172, 16, 0, 0], 12, "private use"),
    v4([100, 64, 0, 0], 10, "shared address space"),
    v4([0, 0, 0, 0], 8, "this network"),
    v4([10, 0, 0, 0], 8, "private use"),
    v4([127, 0, 0, 0], 8, "loopback"),
    v4([224, 0, 0, 0], 4, "multicast"),
    v4([240, 0, 0, 0], 4, "reserved"),
];

/// What is refused among IPv6 addresses besides everything outside of [`UNICAST`] and [`NAT64`].
pub(super) const V6: &[Special] = &[
    v6([0, 0, 0, 0], 128, "unspecified address"),
    Special {
        range: LOOPBACK,
        name: "loopback address",
    },
    v6([0x2001, 4, 0x112, 0], 48, "AS112-v6"),
    v6([0x2001, 2, 0, 0], 48, "benchmarking"),
    v6([0x2620, 0x4f, 0x8000, 0], 48, "direct delegation AS112 service"),
    v6([0x64, 0xff9b, 1, 0], 48, "IPv4-IPv6 translation"),
    v6([0x100, 0, 0, 0], 64, "discard only"),
    v6([0x100, 0, 0, 1], 64, "dummy IPv6 prefix"),
    v6([0x2001, 0, 0, 0], 32, "TEREDO"),
    v6([0x2001, 3, 0, 0], 32, "AMT"),
    v6([0x2001, 0xdb8, 0, 0], 32, "documentation"),
    v6([0x2001, 0x10, 0, 0], 28, "deprecated (ORCHID)"),
    v6([0x2001, 0x20, 0, 0], 28, "ORCHIDv2"),
    v6([0x2001, 0x30, 0, 0], 28, "drone remote id"),
    v6([0x2001, 0, 0, 0], 23, "IETF protocol assignments"),
    v6([0x3fff, 0, 0, 0], 20, "documentation"),
    v6([0x3ffe, 0, 0, 0], 16, "deprecated (6bone)"),
    v6([0x5f00, 0, 0, 0], 16, "segment routing SIDs"),
    v6([0xfe80, 0, 0, 0], 10, "link-local unicast"),
    v6([0xfec0, 0, 0, 0], 10, "deprecated (site-local unicast)"),
    v6([0xff00, 0, 0, 0], 8, "multicast"),
    v6([0xfc00, 0, 0, 0], 7, "unique local"),
];

/// The only part of IPv6 that IANA has given out for global unicast.
pub(super) const UNICAST: Cidr = Cidr::v6([0x2000, 0, 0, 0], 3);
/// The well-known prefix for IPv4 behind a translator: public if the address inside is.
pub(super) const NAT64: Cidr = Cidr::v6([0x64, 0xff9b, 0, 0], 96);
/// 6to4: the address inside is what the packet is sent to.
pub(super) const SIX_TO_FOUR: Cidr = Cidr::v6([0x2002, 0, 0, 0], 16);

const LOOPBACK: Cidr = Cidr::one(Ipv6Addr::LOCALHOST);

const fn v4(octets: [u8; 4], prefix: u8, name: &'static str) -> Special {
    Special {
        range: Cidr::v4(octets, prefix),
        name,
    }
}

const fn v6(head: [u16; 4], prefix: u8, name: &'static str) -> Special {
    Special {
        range: Cidr::v6(head, prefix),
        name,
    }
}
