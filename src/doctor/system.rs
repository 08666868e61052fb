//! Reads what this device says about itself: kernel, ports, state directory, limits, neighbours. Nothing is written.
//!
//! What the kernel's text files say is parsed by pure functions; a file that is missing or reads otherwise is `None`, and the
//! check then says nothing about it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::unistd::{AccessFlags, Uid, User, access, geteuid};
use socket2::{Domain, Protocol, Socket, Type};

use crate::task::Tasks;
use crate::uplink::Network;

use super::facts::{Bind, BindFailure, Firewall, Kernel, PortState, State};

/// A directory on a network that is gone must not hold up everything else.
const FILE_SYSTEM: Duration = Duration::from_secs(2);

/// The kernel's version, and whether a socket can be bound to each uplink's interface.
pub(super) fn kernel(network: &Network) -> Kernel {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
    let bind = |name: &str| Bind {
        uplink: name.to_owned(),
        failure: bind_device(name).err().map(|error| BindFailure {
            denied: error.kind() == io::ErrorKind::PermissionDenied,
            text: error.to_string(),
        }),
    };
    Kernel {
        release: release.map(|r| r.trim().to_owned()),
        binds: network.uplinks.iter().map(|u| bind(&u.name)).collect(),
    }
}

fn bind_device(name: &str) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind_device(Some(name.as_bytes()))
}

/// Whether the port can be had; as links open it: both families, or IPv4 where there is no IPv6.
pub(super) fn port(wanted: u16) -> PortState {
    let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, wanted));
    let bound = match v6 {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, wanted))
        }
        decided => decided,
    };
    match bound {
        Ok(_) => PortState::Free,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let holder = udp_sockets().into_iter().find(|s| s.port == wanted);
            PortState::Taken(holder.map(|s| user_name(s.uid)))
        }
        Err(error) => PortState::Refused(error.to_string()),
    }
}

/// How many packets the socket of this port lost for want of room.
pub(super) fn dropped(port: u16) -> Option<u64> {
    let mut ours = udp_sockets().into_iter().filter(|s| s.port == port).peekable();
    ours.peek()?;
    Some(ours.map(|s| s.drops).sum())
}

/// What a socket gets when it asks for a receive buffer of `wanted` bytes.
pub(super) fn receive_buffer(wanted: usize) -> Option<u64> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).ok()?;
    socket.set_recv_buffer_size(wanted).ok()?;
    // The kernel counts its own bookkeeping as much again.
    Some(socket.recv_buffer_size().ok()? as u64 / 2)
}

/// How many files this process may have open, or the one of that number.
pub(super) fn open_files(pid: Option<i32>) -> Option<u64> {
    let process = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    limit_of(&fs::read_to_string(format!("/proc/{process}/limits")).ok()?)
}

/// `Max open files            1024                 524288               files`
fn limit_of(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// The state directory as this user finds it.
pub(super) async fn state(path: &Path, tasks: &Tasks) -> State {
    let asked = path.to_owned();
    let look = tasks.blocking(move || look_at(&asked));
    let user = user_name(geteuid().as_raw());
    match tokio::time::timeout(FILE_SYSTEM, look).await {
        Ok(Ok(state)) => state,
        _ => State {
            path: path.to_owned(),
            writable: None,
            exists: false,
            owner: None,
            free: None,
            user,
        },
    }
}

fn look_at(path: &Path) -> State {
    // Where it is missing, it is made in the nearest directory that is there.
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(path);
    let there = if there == Path::new("") {
        Path::new(".")
    } else {
        there
    };
    let space = nix::sys::statvfs::statvfs(there).ok();
    // The types differ from one kind of processor to another.
    #[allow(clippy::useless_conversion, reason = "32-bit systems have 32-bit counts")]
    let free = space.map(|s| u64::from(s.blocks_available()).saturating_mul(u64::from(s.fragment_size())));
    State {
        path: path.to_owned(),
        writable: Some(access(there, AccessFlags::W_OK | AccessFlags::X_OK).is_ok()),
        exists: path.exists(),
        owner: fs::metadata(there).ok().map(|m| user_name(m.uid())),
        free,
        user: user_name(geteuid().as_raw()),
    }
}

/// A user's name, or the number where it has none.
pub(super) fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| format!("number {uid}"), |u| u.name)
}

/// When this program came here.
pub(super) fn installed() -> Option<SystemTime> {
    fs::metadata(std::env::current_exe().ok()?).ok()?.modified().ok()
}

/// Firewalls that are switched on, as far as everybody may see it.
pub(super) fn firewalls() -> Vec<Firewall> {
    let ufw = fs::read_to_string("/etc/ufw/ufw.conf").is_ok_and(|text| enabled(&text));
    let marks = [
        (ufw, Firewall::Ufw),
        (Path::new("/run/firewalld").exists(), Firewall::Firewalld),
        (Path::new("/etc/config/firewall").exists(), Firewall::OpenWrt),
    ];
    marks
        .into_iter()
        .filter_map(|(there, firewall)| there.then_some(firewall))
        .collect()
}

fn enabled(ufw: &str) -> bool {
    ufw.lines()
        .any(|line| line.trim().eq_ignore_ascii_case("ENABLED=yes"))
}

/// A neighbour that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) ip: IpAddr,
    pub(super) interface: String,
    /// Whether it answered.
    pub(super) there: bool,
}

/// The kernel's table of IPv4 neighbours.
pub(super) fn neighbours() -> Vec<Neighbour> {
    neighbours_in(&fs::read_to_string("/proc/net/arp").unwrap_or_default())
}

/// `IP address  HW type  Flags  HW address  Mask  Device`, below such a heading.
fn neighbours_in(arp: &str) -> Vec<Neighbour> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [ip, _, flags, mac, .., interface] = fields.as_slice() else {
            return None;
        };
        let flags = u32::from_str_radix(flags.strip_prefix("0x")?, 16).ok()?;
        Some(Neighbour {
            ip: ip.parse().ok()?,
            interface: (*interface).to_owned(),
            // 2: complete. An address that failed keeps no MAC.
            there: flags & 2 != 0 && mac.bytes().any(|b| !matches!(b, b'0' | b':')),
        })
    };
    arp.lines().filter_map(line).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct UdpEntry {
    port: u16,
    uid: u32,
    drops: u64,
}

fn udp_sockets() -> Vec<UdpEntry> {
    let both = ["/proc/net/udp", "/proc/net/udp6"];
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    both.iter().flat_map(|path| udp_in(&text(path))).collect()
}

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ref pointer drops`; the port in hexadecimal
/// behind the local address.
fn udp_in(table: &str) -> Vec<UdpEntry> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = fields.get(1)?.rsplit_once(':')?.1;
        Some(UdpEntry {
            port: u16::from_str_radix(port, 16).ok()?,
            uid: fields.get(7)?.parse().ok()?,
            drops: fields.get(12)?.parse().ok()?,
        })
    };
    table.lines().filter_map(line).collect()
}

/// The address without its port, in a family that says IPv4 where it is.
pub(super) const fn ip_of(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_the_soft_one() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max processes             7                    8                    processes\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(limit_of(limits), Some(1024));
        assert_eq!(
            limit_of("Max open files    unlimited  unlimited  files"),
            Some(u64::MAX)
        );
        assert_eq!(limit_of(""), None);
        assert!(open_files(None).unwrap() > 0, "this process has one");
    }

    #[test]
    fn a_udp_sockets_port_owner_and_losses_are_read() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout \
                     inode ref pointer drops\n \
                     1234: 00000000:1D0C 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 4711 2 \
                     0000000000000000 42\n";
        let expected = UdpEntry {
            port: 7436,
            uid: 1000,
            drops: 42,
        };
        assert_eq!(udp_in(table), [expected]);
    }

    #[test]
    fn a_port_that_somebody_has_is_taken_by_a_user_and_else_it_is_free() {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
            .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
            .unwrap();
        let number = socket.local_addr().unwrap().port();
        let user = user_name(geteuid().as_raw());
        assert_eq!(port(number), PortState::Taken(Some(user)));
        assert_eq!(dropped(number), Some(0));
        drop(socket);
        assert_eq!(port(number), PortState::Free);
        assert_eq!(dropped(number), None);
    }

    #[test]
    fn neighbours_that_did_not_answer_are_told_from_those_that_did() {
        let arp = "IP address       HW type     Flags       HW address            Mask     Device\n\
                   10.77.0.2        0x1         0x2         02:00:00:00:00:01     *        lan0\n\
                   10.77.0.3        0x1         0x0         00:00:00:00:00:00     *        lan0\n";
        let seen: Vec<_> = neighbours_in(arp)
            .into_iter()
            .map(|n| (n.ip.to_string(), n.there))
            .collect();
        assert_eq!(
            seen,
            [("10.77.0.2".to_owned(), true), ("10.77.0.3".to_owned(), false)]
        );
    }

    #[test]
    fn a_missing_state_directory_is_judged_by_where_it_would_be_made() {
        let home = tempfile::tempdir().unwrap();
        let state = look_at(&home.path().join("a/b"));
        assert_eq!((state.exists, state.writable), (false, Some(true)));
        assert!(state.free.unwrap() > 0);
        assert!(!home.path().join("a").exists(), "nothing was made");
        assert!(look_at(home.path()).exists);
    }

    #[test]
    fn ufw_counts_where_it_is_switched_on() {
        assert!(enabled("# comment\nENABLED=yes\nLOGLEVEL=low\n"));
        assert!(!enabled("ENABLED=no\n"));
    }
}
