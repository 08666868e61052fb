//! What was found, before anybody judges it. Plain data: a check's test writes it by hand.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::types::LineId;
use crate::uplink::NotLan;

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) daemon: Daemon,
    pub(super) state: State,
    pub(super) kernel: Kernel,
    pub(super) lan: Lan,
    pub(super) port: Port,
    pub(super) multicast: Vec<Multicast>,
    pub(super) household: Household,
    pub(super) firewalls: Vec<Firewall>,
    pub(super) lines: Lines,
    pub(super) probe: Probe,
    pub(super) clock: Clock,
    pub(super) limits: Limits,
}

/// Whether a daemon runs here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Daemon {
    /// One answers.
    Answers { version: String, port: u16 },
    /// There is one, and its socket is not for this user.
    NotAllowed { socket: PathBuf, group: Option<String> },
    /// Something listens that does not answer as a daemon does.
    Broken { socket: PathBuf, why: String },
    /// None.
    None,
}

/// The state directory.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) path: PathBuf,
    /// It, or what is there of the path to it, may be written to by this user. `None`: the file system did not answer.
    pub(super) writable: Option<bool>,
    pub(super) exists: bool,
    pub(super) owner: Option<String>,
    /// Bytes that this user may still write.
    pub(super) free: Option<u64>,
    /// Who asks.
    pub(super) user: String,
}

/// The kernel, and what it lets us do with each uplink.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// As `uname -r` has it.
    pub(super) release: Option<String>,
    pub(super) binds: Vec<Bind>,
}

/// A socket that was to be bound to an uplink's interface.
#[derive(Clone, Debug)]
pub(super) struct Bind {
    pub(super) uplink: String,
    /// `None`: it was.
    pub(super) failure: Option<BindFailure>,
}

#[derive(Clone, Debug)]
pub(super) struct BindFailure {
    /// For want of a privilege.
    pub(super) denied: bool,
    pub(super) text: String,
}

/// The interfaces on which peers may be met, and why the others are none.
#[derive(Clone, Debug, Default)]
pub(super) struct Lan {
    /// Why the kernel's tables could not be read.
    pub(super) error: Option<String>,
    /// Name and an address of each.
    pub(super) used: Vec<(String, IpAddr)>,
    pub(super) others: Vec<(String, NotLan)>,
    /// The interfaces that the configuration names, if it does.
    pub(super) named: Option<Vec<String>>,
}

/// The UDP port of the links.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) wanted: u16,
    /// Whether the configuration names it: then no other is taken.
    pub(super) fixed: bool,
    pub(super) state: PortState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PortState {
    /// Nobody has it.
    Free,
    /// The daemon that answers has this one.
    Daemon(u16),
    /// Somebody has it: a user's name, where the kernel tells.
    Taken(Option<String>),
    /// The same, and there is a daemon that does not answer this user.
    TakenPerhapsByDaemon(Option<String>),
    /// It cannot be opened for another reason.
    Refused(String),
}

/// What mDNS on one LAN interface brought.
#[derive(Clone, Debug)]
pub(super) struct Multicast {
    pub(super) interface: String,
    pub(super) heard: Result<Heard, MulticastFailure>,
    /// Devices on this interface that are peers for certain, by another way than mDNS, and were not heard.
    pub(super) unheard: Vec<IpAddr>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    /// Our own question came back to us.
    pub(super) itself: bool,
    /// Other devices that said anything.
    pub(super) hosts: usize,
    /// Those of them that announce tributary.
    pub(super) peers: usize,
}

#[derive(Clone, Debug)]
pub(super) enum MulticastFailure {
    /// Another program has UDP port 5353 for itself.
    PortTaken,
    /// Anything else.
    Other(String),
}

/// Who is there.
#[derive(Clone, Debug, Default)]
pub(super) struct Household {
    /// Whether a daemon told; else a guest looked for itself.
    pub(super) by_daemon: bool,
    /// Why no guest could look.
    pub(super) error: Option<String>,
    /// Peers with a link.
    pub(super) linked: Vec<Linked>,
    /// Names of those that reached our port before anything was sent to them.
    pub(super) inbound: Vec<String>,
    /// Others that were asked whether they are there.
    pub(super) asked: Vec<Asked>,
    /// Wi-Fi interfaces of the LAN whose router is there and on which nobody else is: neither by mDNS nor by address.
    pub(super) lonely: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Linked {
    pub(super) name: String,
    pub(super) address: SocketAddr,
}

/// An address where a peer should or could be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) address: SocketAddr,
    pub(super) source: Source,
    pub(super) reach: Reach,
    /// Whether that device answers for its address on the LAN (ARP), where this could be seen.
    pub(super) there: Option<bool>,
    /// The LAN interface it is on.
    pub(super) interface: Option<String>,
}

/// How an address became known, the most certain first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// It announces itself right now.
    Heard,
    /// The configuration names it.
    Named,
    /// A peer was met there before.
    Met,
    /// Some device of the LAN; nothing says that it is a peer.
    Neighbour,
}

/// What came back from an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// A QUIC endpoint answers.
    Answers,
    /// It answers, and yet there is no link with it: why.
    NoLink(String),
    /// The device says that nobody listens there, or that nobody may come in.
    Closed,
    /// Nothing.
    Silent,
}

/// Programs that keep a firewall on this device, by the files they keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Firewall {
    Ufw,
    Firewalld,
    OpenWrt,
}

/// The ways out, own and lent.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    pub(super) own: Vec<OwnWay>,
    pub(super) lent: Vec<LentWay>,
}

#[derive(Clone, Debug)]
pub(super) struct OwnWay {
    pub(super) uplink: String,
    pub(super) metered: bool,
    /// Whether peers may use it.
    pub(super) lent: bool,
    pub(super) line: LineId,
}

#[derive(Clone, Debug)]
pub(super) struct LentWay {
    pub(super) owner: String,
    pub(super) uplink: String,
    /// `None`: whoever told did not say; then it counts as one of its own.
    pub(super) line: Option<LineId>,
}

/// What was tried of the internet.
#[derive(Clone, Debug, Default)]
pub(super) struct Probe {
    /// `None`: the user wanted nothing to be sent.
    pub(super) host: Option<String>,
    pub(super) resolved: Option<Resolved>,
    pub(super) uplinks: Vec<Tried>,
}

#[derive(Clone, Debug)]
pub(super) struct Resolved {
    pub(super) took: Duration,
    pub(super) answer: Result<Vec<IpAddr>, String>,
}

/// A connection by one uplink.
#[derive(Clone, Debug)]
pub(super) struct Tried {
    pub(super) uplink: String,
    /// How long the connection took, or why there is none. `None`: there was no address to connect to.
    pub(super) result: Option<Result<Duration, String>>,
}

/// What time it is, and what else knows.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    pub(super) now: SystemTime,
    /// When this program was installed.
    pub(super) installed: Option<SystemTime>,
    /// What a web server said the time was, when it was `now`; and which.
    pub(super) server: Option<(SystemTime, String)>,
}

/// What the system grants.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    /// Open files of the daemon, or of this process where there is none.
    pub(super) files: Option<u64>,
    /// What a socket gets of the receive buffer that links ask for, and how much they ask for.
    pub(super) buffer: Option<u64>,
    pub(super) wanted: u64,
    /// Packets that the daemon's socket lost because nobody fetched them in time.
    pub(super) dropped: Option<u64>,
}
