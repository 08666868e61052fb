//! Wires: what lies between a TUN device of a peer and one of the internet, with rate, delay, loss and a queue.
//!
//! One thread carries all wires of a lab. A packet's times follow from the one before it and not from when the thread
//! got to run, so a busy machine makes a wire uneven, never slower than asked nor faster.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

/// Larger than any packet: the devices' MTU is 1500.
const PACKET: usize = 2048;
/// While packets flow, the thread looks this often: several packets each time, and a delay wrong by no more.
const TICK: u64 = 200_000;
/// A packet is taken to have come when the thread last looked, but no longer ago than this.
const MAX_BACKDATE: u64 = 2_000_000;
/// Packets taken from one device before the others have their turn.
const BURST: usize = 256;
/// The least a queue holds unless asked otherwise.
const MIN_QUEUE: u64 = 64 * 1024;
const SECOND: u64 = 1_000_000_000;
/// The number of TCP, and its flag that breaks a connection off.
const TCP: u8 = 6;
const RST: u8 = 4;
/// Different source addresses remembered of a line: a test that sends more has seen enough.
const MAX_SOURCES: usize = 64;

/// An uplink's nature. Rates count IP headers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Uplink {
    down: f64,
    up: f64,
    delay: u64,
    loss: f64,
    queue: Option<u64>,
    dark: (bool, bool),
    families: Families,
    mute: Option<Family>,
}

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4 = 4,
    V6 = 6,
}

/// Which versions of IP there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    V4,
    V6,
    Both,
}

impl Families {
    /// Whether it is among them.
    pub const fn has(self, family: Family) -> bool {
        match (self, family) {
            (Self::Both, _) | (Self::V4, Family::V4) | (Self::V6, Family::V6) => true,
            (Self::V4, Family::V6) | (Self::V6, Family::V4) => false,
        }
    }
}

/// An uplink of `down` and `up` Mbit/s, without delay or loss, whose queue holds 1.5 × rate × round trip or 64 KiB.
pub const fn uplink(down: f64, up: f64) -> Uplink {
    Uplink {
        down,
        up,
        delay: 0,
        loss: 0.0,
        queue: None,
        dark: (false, false),
        families: Families::V4,
        mute: None,
    }
}

impl Uplink {
    /// The delay of each way, in milliseconds.
    pub const fn delay_ms(mut self, ms: u64) -> Self {
        self.delay = ms * 1_000_000;
        self
    }

    /// The share of packets that get lost on each way: 0.01 is one in a hundred.
    pub const fn loss(mut self, share: f64) -> Self {
        self.loss = share;
        self
    }

    /// How many bytes may wait at each end; what comes when it is full is dropped.
    pub const fn queue(mut self, bytes: u64) -> Self {
        self.queue = Some(bytes);
        self
    }

    /// Another rate down, in Mbit/s.
    pub const fn down(mut self, rate: f64) -> Self {
        self.down = rate;
        self
    }

    /// Another rate up, in Mbit/s.
    pub const fn up(mut self, rate: f64) -> Self {
        self.up = rate;
        self
    }

    /// Swallows everything towards the peer (`down`) and from it (`up`), while the interface stays up.
    pub const fn dark(mut self, down: bool, up: bool) -> Self {
        self.dark = (down, up);
        self
    }

    /// Which versions of IP it has, from its beginning; IPv4 unless asked otherwise.
    pub const fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// Swallows one version of IP both ways, while its addresses and routes stay; `None`: none.
    pub const fn mute(mut self, family: Option<Family>) -> Self {
        self.mute = family;
        self
    }

    /// Which versions of IP it has.
    pub const fn versions(&self) -> Families {
        self.families
    }

    /// Mbit/s down.
    pub const fn rate_down(&self) -> f64 {
        self.down
    }

    fn lines(&self) -> [Nature; 2] {
        let nature = |rate: f64, dark| {
            let round_trip = 2.0 * self.delay as f64 / SECOND as f64;
            let product = (1.5 * round_trip * rate * 1e6 / 8.0) as u64;
            Nature {
                nanos_per_byte: 8000.0 / rate,
                delay: self.delay,
                loss: self.loss,
                queue: self.queue.unwrap_or(product.max(MIN_QUEUE)),
                dark,
                mute: self.mute,
            }
        };
        [nature(self.down, self.dark.0), nature(self.up, self.dark.1)]
    }
}

/// What a wire has carried to its other end, in bytes of IP packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// From the internet to the peer.
    pub down: u64,
    /// From the peer to the internet.
    pub up: u64,
}

/// A wire of a running lab. Clones are the same wire.
#[derive(Clone, Debug)]
pub struct Wire {
    number: usize,
    state: Arc<Mutex<Uplink>>,
    counters: [Arc<Counters>; 2],
    forwarder: Forwarder,
}

impl Wire {
    /// What it is like now.
    pub fn get(&self) -> Uplink {
        *self.state.lock().unwrap()
    }

    /// Makes it another one. In force when this returns; what waits goes on at the new rate, darkness swallows it.
    pub fn set(&self, uplink: Uplink) {
        *self.state.lock().unwrap() = uplink;
        self.forwarder.tell(|done| Order::Set(self.number, uplink, done));
    }

    /// Swallows everything both ways, as when the line is cut beyond the router.
    pub fn cut(&self) {
        self.set(self.get().dark(true, true));
    }

    /// Undoes [`Wire::cut`].
    pub fn mend(&self) {
        self.set(self.get().dark(false, false));
    }

    /// What it has carried since the lab began.
    pub fn carried(&self) -> Carried {
        let of = |way: usize| self.counters[way].carried.load(Ordering::Relaxed);
        Carried {
            down: of(0),
            up: of(1),
        }
    }

    /// The source addresses of all that the peer has sent into it: those of another uplink left by the wrong one.
    pub fn sources(&self) -> Vec<IpAddr> {
        self.counters[1].sources.lock().unwrap().clone()
    }

    /// Which versions of IP it has.
    pub fn versions(&self) -> Families {
        self.get().versions()
    }

    /// Pulls the peer's device out of it: without a descriptor the device is gone.
    pub fn unplug(&self) {
        // One that is never readable takes its place.
        let nothing = std::os::unix::net::UnixDatagram::unbound().unwrap();
        self.plug(File::from(std::os::fd::OwnedFd::from(nothing)));
    }

    /// Puts another device of the peer's in.
    pub fn plug(&self, device: File) {
        self.forwarder.tell(|done| Order::Plug(self.number, device, done));
    }

    /// Packets that came to the peer's end and that did not, by loss or a full queue: (carried, lost, dropped).
    pub fn packets_down(&self) -> (u64, u64, u64) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters[0];
        (of(&counters.packets), of(&counters.lost), of(&counters.dropped))
    }
}

#[derive(Debug, Default)]
struct Counters {
    carried: AtomicU64,
    packets: AtomicU64,
    lost: AtomicU64,
    dropped: AtomicU64,
    sources: Mutex<Vec<IpAddr>>,
}

impl Counters {
    /// Resets are left out: for a connection that is gone the kernel itself sends them, by whatever way its routes say.
    fn note_source(&self, packet: &[u8]) {
        let version = packet.first().map_or(0, |byte| byte >> 4);
        let at = |range: std::ops::Range<usize>| packet.get(range);
        let (source, protocol, header) = match version {
            4 => (
                at(12..16).map(|b| <[u8; 4]>::try_from(b).unwrap().into()),
                packet.get(9),
                4 * usize::from(packet[0] & 0xf),
            ),
            6 => (
                at(8..24).map(|b| <[u8; 16]>::try_from(b).unwrap().into()),
                packet.get(6),
                40,
            ),
            _ => return,
        };
        let is_reset =
            protocol == Some(&TCP) && packet.get(header + 13).is_some_and(|flags| flags & RST != 0);
        let source: Option<IpAddr> = source.filter(|_| !is_reset);
        let mut sources = self.sources.lock().unwrap();
        if let Some(source) = source
            && sources.len() < MAX_SOURCES
            && !sources.contains(&source)
        {
            sources.push(source);
        }
    }
}

/// The thread that carries a lab's wires. Clones are handles of the same.
#[derive(Clone, Debug)]
pub struct Forwarder {
    orders: Sender<Order>,
    bell: Arc<PipeWriter>,
}

/// Says that an order is carried out.
type Done = SyncSender<()>;

#[derive(Debug)]
enum Order {
    /// The devices' descriptors: the internet's end, the peer's end.
    Add([File; 2], Uplink, [Arc<Counters>; 2], Done),
    Set(usize, Uplink, Done),
    /// Another device at the peer's end.
    Plug(usize, File, Done),
    Stop(Done),
}

impl Forwarder {
    /// Starts the thread; it runs until [`Forwarder::stop`].
    pub fn start() -> io::Result<(Self, JoinHandle<()>)> {
        let (bell_rung, bell) = io::pipe()?;
        let (orders, inbox) = mpsc::channel();
        let thread = thread::Builder::new().name("wires".into()).spawn(move || {
            favour_this_thread();
            carry(&inbox, bell_rung);
        })?;
        Ok((
            Self {
                orders,
                bell: Arc::new(bell),
            },
            thread,
        ))
    }

    /// Adds wire `number` (counted from 0, without gaps) between two TUN devices.
    pub fn add(&self, number: usize, internet: File, peer: File, uplink: Uplink) -> Wire {
        let counters = [Arc::default(), Arc::default()];
        self.tell(|done| Order::Add([internet, peer], uplink, counters.clone(), done));
        Wire {
            number,
            state: Arc::new(Mutex::new(uplink)),
            counters,
            forwarder: self.clone(),
        }
    }

    /// Ends the thread and closes the devices.
    pub fn stop(&self) {
        self.tell(Order::Stop);
    }

    fn tell(&self, order: impl FnOnce(Done) -> Order) {
        let (done, wait) = mpsc::sync_channel(1);
        // After the lab's end there is nobody to tell, and nothing to wait for.
        if self.orders.send(order(done)).is_ok() && (&*self.bell).write_all(&[1]).is_ok() {
            let _ = wait.recv();
        }
    }
}

/// One way of a wire, without devices: a queue, a serialiser and the packets under way.
#[derive(Debug)]
struct Line {
    nature: Nature,
    waiting: VecDeque<(u64, Vec<u8>)>,
    waiting_bytes: u64,
    /// When the serialiser is free again.
    free_at: u64,
    flying: VecDeque<(u64, Vec<u8>)>,
    /// When its device was last empty.
    looked_at: u64,
    random: u64,
    counters: Arc<Counters>,
}

#[derive(Clone, Copy, Debug)]
struct Nature {
    nanos_per_byte: f64,
    delay: u64,
    loss: f64,
    queue: u64,
    dark: bool,
    mute: Option<Family>,
}

impl Line {
    fn new(nature: Nature, seed: u64, counters: Arc<Counters>) -> Self {
        Self {
            nature,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            free_at: 0,
            flying: VecDeque::new(),
            looked_at: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            counters,
        }
    }

    fn set(&mut self, nature: Nature, now: u64) {
        self.advance(now);
        self.nature = nature;
        if nature.dark {
            self.waiting.clear();
            self.flying.clear();
            self.waiting_bytes = 0;
        }
    }

    /// A packet came.
    fn push(&mut self, packet: &[u8], now: u64, buffers: &mut Vec<Vec<u8>>) {
        let version = packet.first().map(|byte| byte >> 4);
        if self.nature.dark || (self.nature.mute.is_some() && version == self.nature.mute.map(|f| f as u8)) {
            return;
        }
        self.counters.note_source(packet);
        let length = packet.len() as u64;
        if self.waiting_bytes + length > self.nature.queue {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut buffer = buffers.pop().unwrap_or_else(|| Vec::with_capacity(PACKET));
        buffer.clear();
        buffer.extend_from_slice(packet);
        let arrival = self.looked_at.max(now.saturating_sub(MAX_BACKDATE)).min(now);
        self.waiting.push_back((arrival, buffer));
        self.waiting_bytes += length;
    }

    /// When the packet at the head of the queue will have left.
    fn departure(&self) -> Option<u64> {
        let (arrival, packet) = self.waiting.front()?;
        let takes = (packet.len() as f64 * self.nature.nanos_per_byte) as u64;
        Some(self.free_at.max(*arrival) + takes)
    }

    /// Puts under way what has left by `now`.
    fn advance(&mut self, now: u64) {
        while let Some(departure) = self.departure().filter(|at| *at <= now) {
            let Some((_, packet)) = self.waiting.pop_front() else {
                return;
            };
            self.free_at = departure;
            self.waiting_bytes -= packet.len() as u64;
            if self.chance() < self.nature.loss {
                self.counters.lost.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            // A wire never reorders, not even when its delay shrinks.
            let last = self.flying.back().map_or(0, |(due, _)| *due);
            self.flying
                .push_back((last.max(departure + self.nature.delay), packet));
        }
    }

    /// The next packet that is due.
    fn pop(&mut self, now: u64) -> Option<Vec<u8>> {
        self.flying.front().filter(|(due, _)| *due <= now)?;
        let (_, packet) = self.flying.pop_front()?;
        self.counters
            .carried
            .fetch_add(packet.len() as u64, Ordering::Relaxed);
        self.counters.packets.fetch_add(1, Ordering::Relaxed);
        Some(packet)
    }

    /// When there will be one.
    fn due(&self) -> Option<u64> {
        match self.flying.front() {
            Some((due, _)) => Some(*due),
            None => self.departure().map(|departure| departure + self.nature.delay),
        }
    }

    /// From 0 to 1: xorshift, so that a lab's losses are the same each time.
    fn chance(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn carry(inbox: &Receiver<Order>, mut bell: PipeReader) {
    let start = Instant::now();
    let clock = || start.elapsed().as_nanos() as u64;
    // Line n reads from device n and writes to its neighbour: 0 and 1 are the first wire's ends, and so on.
    let mut devices: Vec<File> = Vec::new();
    let mut lines: Vec<Line> = Vec::new();
    let mut buffers = Vec::new();
    loop {
        match inbox.recv() {
            Ok(Order::Add(ends, uplink, counters, done)) => {
                for (nature, counters) in uplink.lines().into_iter().zip(counters) {
                    lines.push(Line::new(nature, lines.len() as u64 + 1, counters));
                }
                devices.extend(ends);
                let _ = done.send(());
            }
            Ok(Order::Set(number, uplink, done)) => {
                for (line, nature) in lines[2 * number..].iter_mut().zip(uplink.lines()) {
                    line.set(nature, clock());
                }
                let _ = done.send(());
            }
            Ok(Order::Plug(number, device, done)) => {
                devices[2 * number + 1] = device;
                let _ = done.send(());
            }
            Ok(Order::Stop(done)) => {
                drop((devices, lines));
                let _ = done.send(());
                return;
            }
            Err(_) => return,
        }
        // One ring for each order, this one's first; the next one ends the forwarding.
        if bell.read_exact(&mut [0]).is_err() {
            return;
        }
        forward(&devices, &mut lines, &mut buffers, &clock, &bell);
    }
}

/// Carries packets until the bell rings.
fn forward(
    devices: &[File],
    lines: &mut [Line],
    buffers: &mut Vec<Vec<u8>>,
    clock: &impl Fn() -> u64,
    bell: &PipeReader,
) {
    let mut polls: Vec<_> = devices
        .iter()
        .map(|device| PollFd::new(device.as_fd(), PollFlags::POLLIN))
        .collect();
    polls.push(PollFd::new(bell.as_fd(), PollFlags::POLLIN));
    let readable = |poll: &PollFd<'_>| poll.any() == Some(true);
    while !polls.last().is_some_and(readable) {
        let mut next = u64::MAX;
        let mut flowing = false;
        for (number, line) in lines.iter_mut().enumerate() {
            if readable(&polls[number]) {
                flowing |= take(&devices[number], line, buffers, clock());
                line.looked_at = clock();
            }
            let now = clock();
            line.advance(now);
            while let Some(packet) = line.pop(now) {
                // A device that is down or whose kernel has no room loses it, as a real one does.
                let _ = (&devices[number ^ 1]).write(&packet);
                buffers.push(packet);
            }
            next = next.min(line.due().unwrap_or(u64::MAX));
        }
        if flowing {
            pause(&mut [], Some(TICK));
            pause(&mut polls, Some(0));
        } else {
            let wait = next.saturating_sub(clock()).max(TICK / 2);
            pause(&mut polls, (next != u64::MAX).then_some(wait));
        }
        let now = clock();
        for (line, poll) in lines.iter_mut().zip(&polls) {
            // What ended a wait came just now; what is found after a tick may have come at its beginning.
            if !flowing || !readable(poll) {
                line.looked_at = now;
            }
        }
    }
}

/// Reads what a device holds into the line; whether there was something.
fn take(device: &File, line: &mut Line, buffers: &mut Vec<Vec<u8>>, now: u64) -> bool {
    let mut packet = [0; PACKET];
    for count in 0..BURST {
        match (&*device).read(&mut packet) {
            Ok(length) if length > 0 => line.push(&packet[..length], now, buffers),
            _ => return count > 0,
        }
    }
    true
}

fn pause(polls: &mut [PollFd<'_>], nanos: Option<u64>) {
    let wait = nanos.map(|nanos| TimeSpec::from_duration(Duration::from_nanos(nanos)));
    // An interrupted wait is a short one.
    let _ = ppoll(polls, wait, None);
}

/// A wire is no program, nor is what measures it: they must not wait for the processor behind those they are there to
/// test. Needs root.
pub fn favour_this_thread() {
    let _ = nix::sys::prctl::set_timerslack(1);
    #[expect(unsafe_code, reason = "nix does not wrap setpriority")]
    // SAFETY: takes three numbers; who = 0 is the calling thread.
    unsafe {
        nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, -15);
    }
}
