//! The household's switch: what passes over it, and how it falls into two halves.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::Value;

use super::peer::Peer;
use super::{Lab, SWITCH, net};

/// The switch of the other half.
const OTHER: &str = "other";
/// mDNS's port.
const MDNS: u16 = 5353;
/// Outgoing copies of a frame, which was counted when it came in.
const OUTGOING: u8 = 4;
const ETHERNET: usize = 14;
const UDP: u8 = 17;

impl Lab {
    /// Moves these peers' cables to a switch of their own: everybody stays plugged in, and the two halves do not hear
    /// each other. [`Lab::join_lan`] undoes it.
    #[track_caller]
    pub fn split_lan(&self, apart: &[&str]) {
        let made = self.switch.run(|| net::bridge(OTHER));
        // It stays from the last time.
        if let Err(error) = made {
            assert!(error.to_string().contains("exists"), "{error}");
        }
        for name in apart {
            let port = &self.at(name).port;
            self.switch.run(|| net::plug(port, OTHER)).unwrap();
        }
    }

    /// Puts every cable back into the one switch.
    #[track_caller]
    pub fn join_lan(&self) {
        for peer in &self.peers {
            self.switch.run(|| net::plug(&peer.port, SWITCH)).unwrap();
        }
    }

    /// Lets each peer's LAN port pass so many Mbit/s each way. False: this kernel cannot.
    #[track_caller]
    pub fn limit_lan_ports(&self, mbit: u32) -> bool {
        let limit = |device: &str, mut command: std::process::Command| {
            let rate = format!("{mbit}mbit");
            let words = ["qdisc", "replace", "dev", device, "root", "tbf", "rate", &rate];
            command.args(words).args(["burst", "64kb", "latency", "50ms"]);
            command.status().is_ok_and(|status| status.success())
        };
        self.peers.iter().all(|peer| {
            let mut there = std::process::Command::new("tc");
            self.switch.prepare(&mut there).unwrap();
            limit("lan0", peer.command("tc")) && limit(&peer.port, there)
        })
    }

    /// Begins to count what peers send on the LAN.
    #[track_caller]
    pub fn listen_on_lan(&self) -> Ear {
        self.switch.run(Ear::open).unwrap()
    }

    /// Begins to keep whole frames that peers send on the LAN, some megabytes of them.
    #[track_caller]
    pub fn record_lan(&self) -> Recorder {
        self.switch.run(Recorder::open).unwrap()
    }
}

impl Peer {
    /// What the daemon says of itself, asked by this process: no program is started for it.
    pub fn ask_status(&self) -> Option<Value> {
        let socket = self.directory.join("state/control.sock");
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(b"\"status\"\n").ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        let reply: Value = serde_json::from_str(&line).ok()?;
        reply.get("status").cloned()
    }
}

/// What was heard: frames and their bytes, Ethernet's headers included. Each frame is counted once, where it comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// mDNS: frames.
    pub mdns: u64,
    /// mDNS: bytes.
    pub mdns_bytes: u64,
    /// Every other UDP (links): frames.
    pub udp: u64,
    /// Every other UDP: bytes.
    pub udp_bytes: u64,
    /// Everything else, ARP say: frames.
    pub rest: u64,
}

/// Counts what passes over the switch until it is dropped.
#[derive(Debug)]
pub struct Ear {
    counts: Arc<[AtomicU64; 5]>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Keeps frames until it is asked for them.
#[derive(Debug)]
pub struct Recorder {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Vec<u8>>>,
}

impl Recorder {
    /// More frames than this are not kept.
    const MOST: usize = 20_000;

    fn open() -> io::Result<Self> {
        let tap = tap()?;
        let end = Arc::<AtomicBool>::default();
        let own_end = Arc::clone(&end);
        let record = move || {
            let (mut frames, mut frame) = (Vec::new(), vec![0; 1 << 16]);
            while !own_end.load(Ordering::Relaxed) {
                let came = recvfrom::<LinkAddr>(tap.as_raw_fd(), &mut frame);
                if let Ok((length, Some(from))) = came
                    && from.pkttype() != OUTGOING
                    && frames.len() < Self::MOST
                {
                    frames.push(frame[..length].to_vec());
                }
            }
            frames
        };
        let thread = thread::Builder::new().name("recorder".into()).spawn(record)?;
        Ok(Self { end, thread })
    }

    /// Ends it; gives every frame it heard.
    #[track_caller]
    pub fn frames(self) -> Vec<Vec<u8>> {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// What an mDNS packet says, if the frame is one that came from that address.
pub fn mdns_of(frame: &[u8], from: std::net::Ipv4Addr) -> Option<&[u8]> {
    let (source, _) = udp_ports(frame)?;
    let ip = frame.get(ETHERNET..)?;
    let header = usize::from(ip.first()? & 15) * 4;
    let theirs = frame.get(12..14)? == [0x08, 0x00] && ip.get(12..16)? == from.octets();
    (theirs && source == MDNS).then(|| ip.get(header + 8..)).flatten()
}

fn tap() -> io::Result<OwnedFd> {
    let tap = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    let _ = setsockopt(&tap, sockopt::RcvBufForce, &(16 << 20));
    setsockopt(&tap, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100))?;
    Ok(tap)
}

impl Ear {
    fn open() -> io::Result<Self> {
        let tap = tap()?;
        let switches: Vec<usize> = [SWITCH, OTHER]
            .iter()
            .flat_map(|name| nix::net::if_::if_nametoindex(*name))
            .map(|index| index as usize)
            .collect();
        let (counts, end) = (Arc::<[AtomicU64; 5]>::default(), Arc::<AtomicBool>::default());
        let (own_counts, own_end) = (Arc::clone(&counts), Arc::clone(&end));
        let count = move || listen(&tap, &switches, &own_counts, &own_end);
        let thread = thread::Builder::new().name("ear".into()).spawn(count)?;
        Ok(Self {
            counts,
            end,
            thread: Some(thread),
        })
    }

    /// Everything since it began.
    pub fn heard(&self) -> Heard {
        let of = |place: usize| self.counts[place].load(Ordering::Relaxed);
        Heard {
            mdns: of(0),
            mdns_bytes: of(1),
            udp: of(2),
            udp_bytes: of(3),
            rest: of(4),
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(tap: &OwnedFd, switches: &[usize], counts: &[AtomicU64; 5], end: &AtomicBool) {
    let mut frame = [0; 2048];
    while !end.load(Ordering::Relaxed) {
        let Ok((length, Some(from))) = recvfrom::<LinkAddr>(tap.as_raw_fd(), &mut frame) else {
            continue;
        };
        if from.pkttype() == OUTGOING || switches.contains(&from.ifindex()) {
            continue;
        }
        let bytes = length as u64;
        match udp_ports(&frame[..length]) {
            Some((from, to)) if from == MDNS || to == MDNS => {
                counts[0].fetch_add(1, Ordering::Relaxed);
                counts[1].fetch_add(bytes, Ordering::Relaxed);
            }
            Some(_) => {
                counts[2].fetch_add(1, Ordering::Relaxed);
                counts[3].fetch_add(bytes, Ordering::Relaxed);
            }
            None => {
                counts[4].fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn udp_ports(frame: &[u8]) -> Option<(u16, u16)> {
    let packet = frame.get(ETHERNET..)?;
    let udp = match frame.get(12..14)? {
        [0x08, 0x00] if packet.get(9) == Some(&UDP) => packet.get(usize::from(packet.first()? & 15) * 4..)?,
        [0x86, 0xdd] if packet.get(6) == Some(&UDP) => packet.get(40..)?,
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    Some((port(0)?, port(2)?))
}
