//! Keeps from the mDNS library what does not come from the link (G2; RFC 6762, section 11).
//!
//! The library takes any packet that reaches its port, and answers a question sent to this device alone wherever it came
//! from: a host behind a router could ask who is here, and have the answer, which is larger, sent to somebody else
//! (CVE-2017-6519 was that in another responder). A filter at its sockets lets the kernel throw such packets away, before
//! anything of them is read. The library has no way to ask for that, so its sockets are found by their port among this
//! process's descriptors.
//!
//! Invariants: only what comes from a prefix of a household interface, or from an IPv6 link-local address, passes, and of
//! answers only those from mDNS's own port; what the kernel cannot filter stays as the library has it.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::libc;
use socket2::{Protocol, SockFilter, SockRef};

/// Where mDNS is spoken, and answered from.
const PORT: u16 = 5353;
/// Prefixes that are let in; a household's interfaces have fewer. Each costs a few instructions of the kernel's 4096.
const MAX_PREFIXES: usize = 64;

// What a filter is made of (linux/filter.h): loads, a mask, jumps and the end.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
/// From here on, offsets count from the start of the IP header; others from that of UDP's.
const IP_HEADER: u32 = 0xfff0_0000;
const SOURCE_V4: u32 = IP_HEADER + 12;
const SOURCE_V6: u32 = IP_HEADER + 8;
const UDP_HEADER: u32 = 8;
/// In the third byte of a DNS message: this is an answer.
const ANSWER: u32 = 0x80;

/// The library's sockets of one life, seen through other descriptors.
#[derive(Debug)]
pub(super) struct Sieve {
    sockets: Vec<Port>,
}

/// A UDP socket at mDNS's port.
#[derive(Debug)]
struct Port {
    socket: OwnedFd,
    /// The kernel's name for it, whatever the descriptor.
    name: PathBuf,
    v6: bool,
}

/// Which sockets one life made is known by comparing before and after: two at once, as in the demo, would take each other's.
static MAKING: Mutex<()> = Mutex::new(());

impl Sieve {
    /// Begins a life with `make`, and lets only these prefixes through to the sockets that it makes.
    pub(super) fn around<T>(make: impl FnOnce() -> T, prefixes: &[(IpAddr, u8)]) -> (T, Self) {
        let _alone = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let before = ports();
        let made = make();
        let mut sockets = ports();
        sockets.retain(|port| before.iter().all(|old| old.name != port.name));
        let sieve = Self { sockets };
        sieve.let_in(prefixes);
        (made, sieve)
    }

    /// Lets only these prefixes through from now on.
    pub(super) fn let_in(&self, prefixes: &[(IpAddr, u8)]) {
        for port in &self.sockets {
            let program = program(prefixes, port.v6);
            if let Err(error) = SockRef::from(&port.socket).attach_filter(&program) {
                tracing::debug!(%error, "mDNS from other networks is not filtered");
            }
        }
    }
}

/// This process's UDP sockets at mDNS's port.
fn ports() -> Vec<Port> {
    let Ok(directory) = fs::read_dir("/proc/self/fd") else {
        return Vec::new();
    };
    let numbers = directory.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let port = |number: RawFd| {
        let socket = duplicate(number)?;
        let known = SockRef::from(&socket);
        let address = known.local_addr().ok()?.as_socket()?;
        let udp = known.protocol().ok()? == Some(Protocol::UDP);
        let name = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).ok()?;
        // Those that ask only have a port of their own.
        (udp && address.port() == PORT).then_some(Port {
            v6: address.is_ipv6(),
            name,
            socket,
        })
    };
    numbers.filter_map(port).collect()
}

/// The same socket under another number; `None` where there is none under that one any more.
fn duplicate(number: RawFd) -> Option<OwnedFd> {
    #[expect(unsafe_code, reason = "the library shows its descriptors to nobody")]
    // SAFETY: makes a number for whatever is open under this one, or fails, and touches no memory; what it returns is
    // open and nobody else's.
    unsafe {
        let own = libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0);
        (own >= 0).then(|| OwnedFd::from_raw_fd(own))
    }
}

fn program(prefixes: &[(IpAddr, u8)], v6: bool) -> Vec<SockFilter> {
    let mut program = vec![
        SockFilter::new(LOAD_HALF, 0, 0, 0),
        SockFilter::new(JUMP_IF_EQUAL, 3, 0, PORT.into()),
        SockFilter::new(LOAD_BYTE, 0, 0, UDP_HEADER + 2),
        SockFilter::new(JUMP_IF_ANY_BIT, 0, 1, ANSWER),
        reject(),
    ];
    let link_local = (IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 0]), 10);
    let household = prefixes.iter().filter(|(ip, _)| ip.is_ipv6() == v6);
    let all = household.take(MAX_PREFIXES).chain(v6.then_some(&link_local));
    for (ip, length) in all {
        program.extend(passes(*ip, *length));
    }
    program.push(reject());
    program
}

const fn reject() -> SockFilter {
    SockFilter::new(RETURN, 0, 0, 0)
}

/// Lets the packet through if its source is in the prefix; else what follows decides.
fn passes(ip: IpAddr, length: u8) -> Vec<SockFilter> {
    let (start, words) = match ip {
        IpAddr::V4(ip) => (SOURCE_V4, vec![ip.to_bits()]),
        IpAddr::V6(ip) => (
            SOURCE_V6,
            (0..4_u32)
                .map(|n| (ip.to_bits() >> (96 - 32 * n)) as u32)
                .collect(),
        ),
    };
    let mut left = u32::from(length);
    let mut tests = Vec::new();
    for (offset, word) in (start..).step_by(4).zip(words) {
        let bits = left.min(32);
        left -= bits;
        if bits > 0 {
            tests.push((offset, word, u32::MAX << (32 - bits)));
        }
    }
    let mut program = Vec::new();
    let mut remaining = 3 * tests.len();
    for (offset, word, mask) in tests {
        remaining -= 3;
        program.push(SockFilter::new(LOAD_WORD, 0, 0, offset));
        program.push(SockFilter::new(AND, 0, 0, mask));
        // At most four tests: it fits.
        let miss = u8::try_from(remaining + 1).unwrap_or(u8::MAX);
        program.push(SockFilter::new(JUMP_IF_EQUAL, 0, miss, word & mask));
    }
    program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    program
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};

    use socket2::{Domain, Socket, Type};

    use super::*;

    /// A socket of the kernel's with that filter; whether it hears `message` sent from `from` to `to`.
    fn hears(prefixes: &[&str], from: &str, to: &str, message: &[u8]) -> bool {
        let prefixes: Vec<(IpAddr, u8)> = prefixes
            .iter()
            .map(|p| p.split_once('/').unwrap())
            .map(|(ip, length)| (ip.parse().unwrap(), length.parse().unwrap()))
            .collect();
        let hears = UdpSocket::bind(to).unwrap();
        hears.set_nonblocking(true).unwrap();
        let v6 = hears.local_addr().unwrap().is_ipv6();
        SockRef::from(&hears)
            .attach_filter(&program(&prefixes, v6))
            .unwrap();
        // On loopback it has arrived when `send_to` returns.
        let says = UdpSocket::bind(from).unwrap();
        says.send_to(message, hears.local_addr().unwrap()).unwrap();
        hears.recv(&mut [0; 64]).is_ok()
    }

    const QUESTION: &[u8] = &[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    const REPLY: &[u8] = &[0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0];

    #[test]
    fn sec_f2_a_question_passes_from_a_household_prefix_only_and_an_answer_from_no_other_port() {
        for (prefixes, from, passes) in [
            (&["127.0.0.0/8"][..], "127.0.0.9:0", true),
            (&["10.0.0.0/24", "127.0.0.8/29"], "127.0.0.9:0", true),
            (&["10.0.0.0/24", "127.0.0.8/32"], "127.0.0.9:0", false),
            (&["127.0.0.9/32"], "127.0.0.9:0", true),
            (&["127.0.1.0/24"], "127.0.0.9:0", false),
            (&["0.0.0.0/0"], "127.0.0.9:0", true),
            (&[], "127.0.0.9:0", false),
            (&["::/0"], "127.0.0.9:0", false),
        ] {
            assert_eq!(
                hears(prefixes, from, "127.0.0.1:0", QUESTION),
                passes,
                "{prefixes:?}"
            );
            assert!(
                !hears(prefixes, from, "127.0.0.1:0", REPLY),
                "not from mDNS's port"
            );
        }
    }

    #[test]
    fn sec_f2_ipv6_prefixes_are_told_apart_by_every_bit() {
        if UdpSocket::bind("[::1]:0").is_err() {
            return;
        }
        for (prefix, passes) in [
            ("::1/128", true),
            ("::/127", true),
            ("::/64", true),
            ("::2/128", false),
            ("0:0:0:1::/64", false),
            ("fd00::/8", false),
            ("::8000:0:0/82", false),
            ("127.0.0.0/8", false),
        ] {
            assert_eq!(
                hears(&[prefix], "[::1]:0", "[::1]:0", QUESTION),
                passes,
                "{prefix}"
            );
        }
    }

    #[test]
    fn only_the_sockets_that_a_life_made_are_touched() {
        // As every responder does: another one may run here.
        let shared = |address: [u8; 4]| -> UdpSocket {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&SocketAddr::from((address, PORT)).into()).unwrap();
            socket.into()
        };
        let other = shared([127, 0, 0, 2]);
        let make = || {
            let there = UdpSocket::bind("127.0.0.1:0").unwrap();
            (shared([127, 0, 0, 4]), there)
        };
        let ((made, there), sieve) = Sieve::around(make, &[]);
        let asks = |to: &UdpSocket| {
            to.set_nonblocking(true).unwrap();
            let to_address = to.local_addr().unwrap();
            let from = UdpSocket::bind("127.0.0.3:0").unwrap();
            from.send_to(QUESTION, to_address).unwrap();
            to.recv(&mut [0; 64]).is_ok()
        };
        assert_eq!((sieve.sockets.len(), asks(&made)), (1, false));
        assert!(asks(&other) && asks(&there));
        sieve.let_in(&[("127.0.0.0".parse().unwrap(), 8)]);
        assert!(asks(&made));
    }
}
