//! A household on this one machine: peers on a LAN, their uplinks' wires, and the internet with its HTTPS origins.
//!
//! ```ignore
//! mod lab;
//! use lab::{Lab, uplink};
//!
//! let Some(lab) = Lab::new() else { return };
//! let lab = lab.peer("borrower", uplink(20.0, 10.0).delay_ms(15)).peer("lender", uplink(50.0, 10.0));
//! let origin = lab.origin("origin.lab");
//! let _lender = lab.at("lender").spawn_daemon(&[]);
//! let finished = lab.at("borrower").get(&origin.url("64MiB"), &[]).ok();
//! ```
//!
//! Everything lives in namespaces that only this process's descriptors keep: the LAN is a bridge (10.77.0.0/24, IPv6
//! link-local), an uplink is a TUN device `wan0`, `wan1`... (198.51.100.0/24, 2001:db8:0:1::/64) whose other end is in the
//! internet's namespace, where origins have addresses in 203.0.113.0/24 and 2001:db8:0:2::/64. It works as root and in a user namespace; where neither is
//! allowed [`Lab::new`] says so and gives nothing, or fails where `TRIBUTARY_LAB=required`.
//!
//! Environment: `TRIBUTARY_LAB=required`; `TRIBUTARY_LAB_KEEP=1` leaves the peers' directories (logs) behind.
//!
//! Invariants: a lab that somebody measures with is the only one of its process; when a lab is dropped, also by a panic,
//! its processes are dead.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "each test file is a crate and uses a part of it"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a lab that cannot be built fails its test"
)]

mod clocks;
mod house;
mod lan;
mod net;
pub mod ns;
mod peer;
mod plug;
mod process;
mod report;
mod router;
mod wire;

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tributary::demo::origin::{self, Authority};
use tributary::task::Tasks;
use tributary::types::{ByteSize, hex};

pub use clocks::Clocks;
pub use house::House;
pub use lan::{Ear, Heard, Recorder, mdns_of};
pub use ns::Namespace;
pub use origin::Options;
pub use peer::{Peer, wait_for};
pub use plug::Plug;
pub use process::{Finished, Memory, Process, cpu, machine_cpu, memory};
pub use report::{lanes, peers};
pub use wire::{Carried, Families, Family, Uplink, Wire, favour_this_thread, uplink};

/// Where the LAN's switch has its ports.
const SWITCH: &str = "lan";
/// An address of the internet without an origin, for whatever a test wants there.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);

/// The user `tributary`, as whom a package's service runs, on the lab's devices.
pub const SERVICE_USER: u32 = 61_001;

/// A household that runs until it is dropped.
#[derive(Debug)]
pub struct Lab {
    peers: Vec<Peer>,
    internet: Arc<Namespace>,
    switch: Arc<Namespace>,
    forwarder: wire::Forwarder,
    nanny: process::Nanny,
    threads: Vec<JoinHandle<()>>,
    wires: usize,
    origins: AtomicU8,
    authority: Arc<Authority>,
    directory: Option<TempDir>,
    files: PathBuf,
    _place: Place,
}

/// Measurements of two labs at once would be of neither. A lab without any mostly waits, and so can another one.
#[derive(Debug)]
#[expect(dead_code, reason = "held, not read")]
enum Place {
    Alone(RwLockWriteGuard<'static, ()>),
    Beside(RwLockReadGuard<'static, ()>),
}

impl Place {
    fn alone() -> Self {
        Self::Alone(PLACES.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn beside() -> Self {
        Self::Beside(PLACES.read().unwrap_or_else(PoisonError::into_inner))
    }
}

static PLACES: RwLock<()> = RwLock::new(());

impl Lab {
    /// An empty household, or `None` (said on standard error) where this machine allows none. Waits while another lab
    /// of this process exists: a test has one.
    pub fn new() -> Option<Self> {
        Self::in_place(Place::alone)
    }

    /// The same for a test whose figures are far from what it judges, or which measures them again where they miss (see
    /// [`measured`]): others of that kind may exist at the same time.
    pub fn beside() -> Option<Self> {
        Self::in_place(Place::beside)
    }

    fn in_place(place: impl FnOnce() -> Place) -> Option<Self> {
        static ALLOWED: OnceLock<Result<(), String>> = OnceLock::new();
        let place = place();
        match ALLOWED.get_or_init(ns::allow) {
            Ok(()) => Some(Self::build(place).unwrap()),
            Err(why) => {
                let required = std::env::var("TRIBUTARY_LAB").is_ok_and(|value| value == "required");
                assert!(
                    !required,
                    "TRIBUTARY_LAB=required, but there are no network namespaces: {why}"
                );
                figure(format_args!("skipped: no network namespaces ({why})"));
                None
            }
        }
    }

    fn build(place: Place) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("tributary-lab-").tempdir()?;
        let files = directory.path().to_owned();
        fs::write(files.join("hosts"), "127.0.0.1 localhost\n")?;
        // Nobody listens there, which is known at once: names that are not in `hosts` fail fast.
        fs::write(
            files.join("resolv.conf"),
            "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
        )?;
        fs::write(files.join("nsswitch.conf"), "hosts: files dns\n")?;
        // The machine's own users, for the programs beside ours.
        let users = fs::read_to_string("/etc/passwd")?;
        let others = users.lines().filter(|user| !user.starts_with("tributary:"));
        let service = format!("tributary:x:{SERVICE_USER}:{SERVICE_USER}::/nonexistent:/usr/sbin/nologin");
        let passwd = others
            .chain([service.as_str()])
            .map(|user| format!("{user}\n"))
            .collect::<String>();
        fs::write(files.join("passwd"), passwd)?;
        let authority = Arc::new(Authority::new().map_err(io::Error::other)?);
        fs::write(files.join("roots.pem"), authority.pem())?;
        let internet = Arc::new(Namespace::network()?);
        internet.run(|| {
            net::tune();
            net::set_up("lo", true)?;
            net::add_address("lo", INTERNET, 32)
        })?;
        let switch = Arc::new(Namespace::network()?);
        switch.run(|| {
            net::tune();
            net::bridge(SWITCH)
        })?;
        let (forwarder, wires_thread) = wire::Forwarder::start()?;
        let (nanny, nanny_thread) = process::Nanny::hire()?;
        Ok(Self {
            peers: Vec::new(),
            internet,
            switch,
            forwarder,
            nanny,
            threads: vec![wires_thread, nanny_thread],
            wires: 0,
            origins: AtomicU8::new(0),
            authority,
            directory: Some(directory),
            files,
            _place: place,
        })
    }

    /// Adds a peer with these uplinks: one, an array or a `Vec` of them, or [`no_uplink`].
    #[track_caller]
    pub fn peer(mut self, name: &str, uplinks: impl Into<Vec<Uplink>>) -> Self {
        self.add(name, &uplinks.into()).unwrap();
        self
    }

    /// The peer of that name.
    #[track_caller]
    pub fn at(&self, name: &str) -> &Peer {
        let peer = self.peers.iter().find(|peer| peer.name() == name);
        peer.unwrap_or_else(|| panic!("the lab has no peer `{name}`"))
    }

    /// All peers, in the order they were added.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// Starts an HTTPS origin of that name, on an address of its own, port 443. It runs until its handle is dropped.
    #[track_caller]
    pub fn origin(&self, name: &str) -> Origin {
        self.origin_with(name, Options::default())
    }

    /// An origin with other content, or with Multipath TCP.
    #[track_caller]
    pub fn origin_with(&self, name: &str, options: Options) -> Origin {
        self.origin_over(name, options, Families::V4)
    }

    /// An origin that can be reached by these versions of IP.
    #[track_caller]
    pub fn origin_over(&self, name: &str, options: Options, families: Families) -> Origin {
        let addresses = self.address(name, families);
        Origin::start(
            name,
            addresses,
            self.internet.clone(),
            self.authority.clone(),
            options,
        )
    }

    /// Gives a host of the internet a name and addresses of its own, on which nobody listens yet: for servers that are not
    /// ours (see [`Lab::outside`], [`Lab::command_outside`] and [`Lab::authority`]).
    #[track_caller]
    pub fn host(&self, name: &str) -> IpAddr {
        self.address(name, Families::V4)[0]
    }

    /// Who signs the certificates of this lab's servers.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    #[track_caller]
    fn address(&self, name: &str, families: Families) -> Vec<IpAddr> {
        let number = 1 + self.origins.fetch_add(1, Ordering::Relaxed);
        let v4 = Ipv4Addr::new(203, 0, 113, number);
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, number.into());
        let mut addresses: Vec<IpAddr> = Vec::new();
        addresses.extend(families.has(Family::V6).then_some(IpAddr::V6(v6)));
        addresses.extend(families.has(Family::V4).then_some(IpAddr::V4(v4)));
        let mut hosts = fs::OpenOptions::new()
            .append(true)
            .open(self.files.join("hosts"))
            .unwrap();
        for address in &addresses {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            self.internet
                .run(|| net::add_address("lo", *address, prefix))
                .unwrap();
            writeln!(hosts, "{address} {name}").unwrap();
        }
        addresses
    }

    /// Does `work` in a thread of the internet's namespace, which always has [`INTERNET`], and waits for it.
    #[track_caller]
    pub fn outside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> T {
        self.internet.run(work).unwrap()
    }

    /// A program that will run in the internet's namespace; see [`Peer::command`] for how long.
    #[track_caller]
    pub fn command_outside(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        self.internet.prepare(&mut command).unwrap();
        command
    }

    /// Lets the switch pass multicast on, or not: as many access points do not. Whoever is there already keeps the
    /// addresses that it knows.
    #[track_caller]
    pub fn lan_multicast(&self, passes: bool) {
        for peer in &self.peers {
            self.switch
                .run(|| net::flood_multicast(&peer.port, passes))
                .unwrap();
        }
    }

    /// What all wires have carried so far.
    pub fn carried(&self) -> Carried {
        let plugs = self.peers.iter().flat_map(|peer| &peer.plugs);
        plugs
            .map(|plug| plug.wire.carried())
            .fold(Carried::default(), |sum, more| Carried {
                down: sum.down + more.down,
                up: sum.up + more.up,
            })
    }

    /// The PEM file with the authority that all origins' certificates are signed by.
    pub fn roots(&self) -> PathBuf {
        self.files.join("roots.pem")
    }

    /// The ids of all its networks, see [`Namespace::id`].
    pub fn networks(&self) -> Vec<u64> {
        let peers = self.peers.iter().map(|peer| &peer.namespace);
        peers
            .chain([&self.internet, &self.switch])
            .flat_map(|namespace| namespace.id())
            .collect()
    }

    fn add(&mut self, name: &str, uplinks: &[Uplink]) -> io::Result<()> {
        let files = self.files.clone();
        let file = |name: &str| files.join(name);
        let seen = [
            (file("hosts"), "/etc/hosts"),
            (file("resolv.conf"), "/etc/resolv.conf"),
            (file("nsswitch.conf"), "/etc/nsswitch.conf"),
            (file("passwd"), "/etc/passwd"),
        ];
        let namespace = Arc::new(Namespace::host(name, &seen)?);
        let number = u8::try_from(self.peers.len() + 1).map_err(io::Error::other)?;
        let lan = Ipv4Addr::new(10, 77, 0, number);
        let port = format!("port{number}");
        namespace.run(|| {
            net::tune();
            net::set_up("lo", true)
        })?;
        self.switch
            .run(|| net::cable(&port, SWITCH, "lan0", &namespace))?;
        namespace.run(|| {
            net::add_address("lan0", lan, 24)?;
            net::set_up("lan0", true)
        })?;
        let mut plugs = Vec::new();
        for (place, uplink) in uplinks.iter().enumerate() {
            plugs.push(Plug::new(
                &namespace,
                &self.internet,
                &self.forwarder,
                (self.wires, place),
                *uplink,
            )?);
            self.wires += 1;
        }
        let peer = Peer {
            name: name.to_owned(),
            namespace,
            switch: self.switch.clone(),
            port,
            lan: Mutex::new(lan),
            internet: self.internet.clone(),
            plugs,
            directory: file(name),
            roots: file("roots.pem"),
            nanny: self.nanny.clone(),
        };
        peer.furnish()?;
        self.peers.push(peer);
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for network in self.networks() {
            // Whatever a test started and forgot; nothing else can be in there.
            for pid in ns::processes_in(network) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        self.forwarder.stop();
        self.peers.clear();
        self.nanny = process::Nanny::dismissed();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        if std::env::var_os("TRIBUTARY_LAB_KEEP").is_some() {
            let kept = self.directory.take().map(TempDir::keep);
            figure(format_args!(
                "the lab's files are in {}",
                kept.unwrap_or_default().display()
            ));
        }
    }
}

/// A running HTTPS origin of the lab. Dropping it stops it; its address stays.
#[derive(Debug)]
#[must_use = "it runs until it is dropped"]
pub struct Origin {
    name: String,
    /// One for each address.
    origins: Vec<Arc<origin::Origin>>,
    tasks: Tasks,
    thread: Option<JoinHandle<()>>,
}

impl Origin {
    fn start(
        name: &str,
        addresses: Vec<IpAddr>,
        internet: Arc<Namespace>,
        authority: Arc<Authority>,
        options: Options,
    ) -> Self {
        let tasks = Tasks::new();
        let (started, start) = mpsc::sync_channel(1);
        let (own_tasks, own_name) = (tasks.clone(), name.to_owned());
        let serve = move || {
            internet.enter().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let start = |address| {
                    let bind = SocketAddr::new(address, 443);
                    let names = [own_name.as_str()];
                    Arc::new(origin::Origin::start(bind, &names, &authority, options, &own_tasks).unwrap())
                };
                started.send(addresses.into_iter().map(start).collect()).unwrap();
                own_tasks.token().cancelled().await;
            });
        };
        let thread = thread::Builder::new().name("origin".into()).spawn(serve).unwrap();
        let origins = start.recv().expect("the origin did not start");
        Self {
            name: name.to_owned(),
            origins,
            tasks,
            thread: Some(thread),
        }
    }

    /// The URL of a file of that size: `64MiB`, `1000`.
    pub fn url(&self, size: &str) -> String {
        format!("https://{}/file/{size}", self.name)
    }

    /// The SHA-256 of the file of that size, in hex.
    #[track_caller]
    pub fn sha256(&self, size: &str) -> String {
        hex(&self.origins[0].content_sha256(self.length(size)))
    }

    /// How many bytes the file of that size has.
    #[track_caller]
    pub fn length(&self, size: &str) -> u64 {
        size.parse()
            .unwrap_or_else(|_| size.parse::<ByteSize>().unwrap().0)
    }

    /// Requests answered so far.
    pub fn requests(&self) -> u64 {
        self.origins.iter().map(|origin| origin.requests()).sum()
    }

    /// TCP connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.origins.iter().map(|origin| origin.connections()).sum()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.tasks.token().cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl From<Uplink> for Vec<Uplink> {
    fn from(uplink: Uplink) -> Self {
        vec![uplink]
    }
}

/// For a peer that owns no way out.
pub const fn no_uplink() -> Vec<Uplink> {
    Vec::new()
}

/// Says a measured figure (or why there is none) past the test harness, which hides what tests print.
pub fn figure(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The binary that `cross/build` makes for a target, whether it is there or not.
pub fn shipped(target: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("target").join(target).join("release/tributary")
}

/// Whether a program is installed; says so where it is not.
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(program).exists());
    if !found {
        figure(format_args!("skipped: `{program}` is not installed"));
    }
    found
}

/// The middle of some figures.
pub fn middle(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// How often a figure is measured at most.
const ATTEMPTS: usize = 3;

/// Measures until the figure holds, [`ATTEMPTS`] times at most, and fails with the last one. A promise is about what can be
/// done, and whatever else a machine does can only spoil a figure of time: a miss (it is said) may be its mood, three in a
/// row are ours.
#[track_caller]
pub fn measured<T: std::fmt::Debug>(
    promise: &str,
    mut measure: impl FnMut() -> T,
    holds: impl Fn(&T) -> bool,
) -> T {
    for _ in 1..ATTEMPTS {
        let measured = measure();
        if holds(&measured) {
            return measured;
        }
        figure(format_args!("missed, measured again: {promise}: {measured:?}"));
    }
    let last = measure();
    assert!(
        holds(&last),
        "{promise}: {last:?}, the last of {ATTEMPTS} attempts"
    );
    last
}

/// Until something that should happen at once is taken to have failed.
pub const SOON: Duration = Duration::from_secs(5);
