//! A saturated uplink stays usable: what a ping over it becomes while an upload fills it, over own and lent lanes, with BBR
//! and without.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail them")]

mod lab;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use lab::{INTERNET, Lab, Peer, figure, measured, middle, no_uplink, uplink};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tributary::identity::DeviceKey;
use tributary::lane::{Lane, LaneInfo, OwnLane, PeerLane, Target, Tunnel};
use tributary::link::{DEFAULT_PORT, Home, Lends, LinkConfig, Links};
use tributary::relay::{Config, Relay};
use tributary::task::Tasks;
use tributary::trust::Trust;
use tributary::types::{LaneId, LineId, UplinkKind};
use tributary::uplink::limit::Limiter;
use tributary::uplink::resolve::{Names, Resolver};
use tributary::uplink::{Lend, Network, Uplink, without_bbr};

/// Mbit/s of IP packets.
const RATE: f64 = 10.0;
/// A second's worth.
const QUEUE: u64 = 1_250_000;
const DELAY_MS: u64 = 15;
/// Of full packets, what is content.
const CONTENT: f64 = 1448.0 / 1500.0;
/// What is promised: the median ping rises by no more, in ms...
const RISE: f64 = 60.0;
/// ...and the upload has this part of the rate at least.
const SHARE: f64 = 0.9;
/// One connection for so long, then two.
const PHASE: Duration = Duration::from_secs(6);
/// Pings before anything is sent.
const IDLE: Duration = Duration::from_secs(1);
const EVERY: Duration = Duration::from_millis(20);
/// A ping that is not back by then is lost.
const LOST: Duration = Duration::from_millis(1500);
const HOST: &str = "sink.lab";
const ECHO: u16 = 7;
const WEB: u16 = 80;
const UPLINK: u32 = 7;
/// What counts as sent and has not reached the origin: what a full queue would hold is far more.
const ON_THE_WAY: i64 = 300 << 10;

/// How the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A socket as any program has it, with what most kernels come with.
    Plain,
    Own,
    Lent,
}

/// What was seen: of one connection, then of two.
#[derive(Debug)]
struct Seen {
    way: Way,
    /// The median ping without an upload, in ms, and by how much it rose.
    idle: f64,
    rise: [f64; 2],
    lost: usize,
    /// Content that arrived, in Mbit/s.
    rate: [f64; 2],
    /// What counted as sent more than had arrived, at the end; `None`: nobody knows what a plain socket has sent.
    ahead: Option<i64>,
}

#[test]
fn a_ping_beside_an_upload_stays_short_and_the_upload_loses_little() {
    let Some(lab) = Lab::beside() else { return };
    let line = || uplink(40.0, RATE).delay_ms(DELAY_MS).queue(QUEUE);
    let lab = lab
        .peer("plain", line())
        .peer("own", line())
        .peer("lender", line())
        .peer("borrower", no_uplink());
    let internet = Internet::open(&lab);
    let plain = run(&lab, &internet, &[Way::Plain]);
    figure(format_args!("bufferbloat: {}", told(&plain[0])));
    let holds = |seen: &Vec<Seen>| {
        seen.iter().all(|seen| {
            seen.rise.iter().all(|rise| *rise <= RISE)
                && seen.rate.iter().all(|rate| *rate >= SHARE * RATE * CONTENT)
                && seen.ahead.is_none_or(|ahead| ahead <= ON_THE_WAY)
        })
    };
    let measure = |how: &str| {
        let seen = run(&lab, &internet, &[Way::Own, Way::Lent]);
        for seen in &seen {
            figure(format_args!("bufferbloat, {how}: {}", told(seen)));
        }
        seen
    };
    measured("a short ping with the kernel's BBR", || measure("BBR"), holds);
    without_bbr();
    measured("a short ping without BBR", || measure("paced"), holds);
}

fn told(seen: &Seen) -> String {
    let Seen {
        way,
        idle,
        rise,
        lost,
        rate,
        ahead,
    } = seen;
    format!(
        "{way:?}: ping {idle:.1} ms, + {:.1} ms at the median beside one connection ({:.2} Mbit/s), + {:.1} ms beside two \
         ({:.2} Mbit/s) of {:.2}; {lost} pings lost{}",
        rise[0],
        rate[0],
        rise[1],
        rate[1],
        RATE * CONTENT,
        ahead.map_or(String::new(), |ahead| format!(
            "; at the end {} KiB counted as sent had not arrived",
            ahead >> 10
        ))
    )
}

/// Measures these ways at once, each over a wire of its own.
fn run(lab: &Lab, internet: &Internet, ways: &[Way]) -> Vec<Seen> {
    thread::scope(|scope| {
        let runs: Vec<_> = ways
            .iter()
            .map(|way| scope.spawn(move || run_one(lab, internet, *way)))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

fn run_one(lab: &Lab, internet: &Internet, way: Way) -> Seen {
    let owner = match way {
        Way::Plain => "plain",
        Way::Own => "own",
        Way::Lent => "lender",
    };
    let owner = lab.at(owner);
    let from = IpAddr::from(owner.wan_address(0));
    let arrived = || i64::try_from(internet.arrived(from)).unwrap();
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        let pings = scope.spawn(move || owner.inside(|| ping(stop)));
        thread::sleep(IDLE);
        let began = Instant::now();
        let zero = arrived();
        let sending = scope.spawn(move || match way {
            Way::Plain => {
                owner.inside(|| plain(began));
                None
            }
            Way::Own => Some(inside(owner, async || send(&own(owner), began).await)),
            Way::Lent => Some(lend(owner, lab.at("borrower"), began)),
        });
        let mut counts = vec![zero];
        for phase in 1..=2 {
            thread::sleep((began + phase * PHASE).saturating_duration_since(Instant::now()));
            counts.push(arrived());
        }
        let sent = sending.join().unwrap();
        let ahead = sent.map(|sent| i64::try_from(sent).unwrap() - (counts[2] - zero));
        stop.store(true, Ordering::Relaxed);
        let pings = pings.join().unwrap();
        let within = |from: Instant, to: Instant| {
            let some = pings.iter().filter(|(at, _)| (from..to).contains(at));
            middle(
                some.filter_map(|(_, took)| *took)
                    .map(|took| took.as_secs_f64() * 1e3)
                    .collect(),
            )
        };
        let idle = within(began - IDLE, began);
        Seen {
            way,
            idle,
            rise: [
                within(began, began + PHASE) - idle,
                within(began + PHASE, began + 2 * PHASE) - idle,
            ],
            lost: pings.iter().filter(|(_, took)| took.is_none()).count(),
            rate: [0, 1].map(|n| (counts[n + 1] - counts[n]) as f64 * 8e-6 / PHASE.as_secs_f64()),
            ahead,
        }
    })
}

/// What answers pings and swallows uploads, until it is dropped.
struct Internet {
    arrived: Arc<Mutex<BTreeMap<IpAddr, u64>>>,
}

impl Internet {
    fn open(lab: &Lab) -> Self {
        let arrived = Arc::new(Mutex::new(BTreeMap::new()));
        let counts = Arc::clone(&arrived);
        // Its threads end with the test's process: they hold nothing but sockets.
        lab.outside(move || {
            let echo = UdpSocket::bind((INTERNET, ECHO))?;
            thread::spawn(move || {
                lab::favour_this_thread();
                let mut packet = [0; 64];
                while let Ok((n, from)) = echo.recv_from(&mut packet) {
                    let _ = echo.send_to(&packet[..n], from);
                }
            });
            let sink = TcpListener::bind((INTERNET, WEB))?;
            thread::spawn(move || {
                for stream in sink.incoming().flatten() {
                    let counts = Arc::clone(&counts);
                    thread::spawn(move || swallow(stream, &counts));
                }
            });
            Ok(())
        });
        Self { arrived }
    }

    fn arrived(&self, from: IpAddr) -> u64 {
        self.arrived.lock().unwrap().get(&from).copied().unwrap_or(0)
    }
}

fn swallow(mut stream: TcpStream, counts: &Mutex<BTreeMap<IpAddr, u64>>) {
    let Ok(from) = stream.peer_addr() else { return };
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        *counts.lock().unwrap().entry(from.ip()).or_default() += n as u64;
    }
}

/// Pings over the uplink until it is told to stop: when each was sent, and how long it took.
fn ping(stop: &AtomicBool) -> io::Result<Vec<(Instant, Option<Duration>)>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((INTERNET, ECHO))?;
    socket.set_read_timeout(Some(EVERY))?;
    let hear = socket.try_clone()?;
    let (done, over) = mpsc::channel::<()>();
    let answers = thread::spawn(move || {
        lab::favour_this_thread();
        let mut answers: BTreeMap<u32, Instant> = BTreeMap::new();
        let mut number = [0; 4];
        while over.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
            if let Ok(4) = hear.recv(&mut number) {
                answers.insert(u32::from_be_bytes(number), Instant::now());
            }
        }
        answers
    });
    let mut asked = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = u32::try_from(asked.len()).map_err(io::Error::other)?;
        asked.push(Instant::now());
        // A full queue of the device's is a lost ping.
        let _ = socket.send(&number.to_be_bytes());
        thread::sleep(EVERY);
    }
    thread::sleep(LOST);
    drop(done);
    let answers = answers.join().unwrap();
    let took = |(number, at): (usize, &Instant)| {
        let back = answers.get(&u32::try_from(number).unwrap());
        (*at, back.map(|back| back.duration_since(*at)))
    };
    Ok(asked.iter().enumerate().map(took).collect())
}

/// Sends over plain sockets.
fn plain(began: Instant) -> io::Result<()> {
    let connect = || {
        let stream = TcpStream::connect((INTERNET, WEB))?;
        let socket = SockRef::from(&stream);
        socket
            .set_tcp_congestion(b"cubic")
            .or_else(|_| socket.set_tcp_congestion(b"reno"))?;
        stream.set_write_timeout(Some(EVERY))?;
        Ok::<_, io::Error>(stream)
    };
    let mut streams = vec![connect()?];
    let content = vec![0; 1 << 16];
    while began.elapsed() < 2 * PHASE {
        if began.elapsed() > PHASE && streams.len() == 1 {
            streams.push(connect()?);
        }
        for stream in &mut streams {
            let _ = stream.write(&content);
        }
    }
    Ok(())
}

/// Sends over a lane; gives what it counts as sent.
async fn send(lane: &dyn Lane, began: Instant) -> u64 {
    let first = open(lane).await;
    let mut sent = vec![first.sent.clone()];
    let until = |phase: u32| tokio::time::sleep_until((began + phase * PHASE).into());
    let second = async {
        until(1).await;
        let second = open(lane).await;
        sent.push(second.sent.clone());
        pour(second).await;
    };
    tokio::select! {
        () = pour(first) => {}
        () = second => {}
        () = until(2) => {}
    }
    sent.iter().map(tributary::lane::Sent::bytes).sum()
}

async fn open(lane: &dyn Lane) -> Tunnel {
    let target = Target {
        host: HOST.into(),
        port: WEB,
        pin: None,
    };
    let mut tunnel = lane.dial(&target).await.unwrap();
    let head = format!("PUT / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000000\r\n\r\n");
    tunnel.stream.write_all(head.as_bytes()).await.unwrap();
    tunnel
}

async fn pour(mut tunnel: Tunnel) {
    let content = vec![0; 1 << 16];
    while tunnel.stream.write_all(&content).await.is_ok() {}
}

fn names() -> Names {
    [(HOST.to_owned(), vec![INTERNET.into()])].into()
}

fn wan(owner: &Peer) -> Uplink {
    Uplink {
        index: UPLINK,
        name: "wan0".into(),
        kind: UplinkKind::Wired,
        metered: false,
        lend: Lend::All,
        line: LineId([0; 8]),
        line_named: false,
        v4: Some(owner.wan_address(0)),
        v6: None,
        gateway: None,
        gateway_addresses: Vec::new(),
        metric: 0,
        bind: false,
    }
}

fn info() -> LaneInfo {
    LaneInfo {
        id: LaneId(1),
        peer: None,
        tier: None,
        owner: "somebody".into(),
        uplink: "wan0".into(),
        kind: UplinkKind::Wired,
        metered: false,
        line: LineId([0; 8]),
        hint: None,
    }
}

fn own(owner: &Peer) -> OwnLane {
    let resolver = Resolver::new(names(), &Tasks::new());
    OwnLane::new(info(), wan(owner), resolver, Limiter::default())
}

/// Sends over what `owner` lends to `borrower`.
fn lend(owner: &Peer, borrower: &Peer, began: Instant) -> u64 {
    thread::scope(|scope| {
        let (ready, is_ready) = mpsc::channel();
        let over = tokio_util::sync::CancellationToken::new();
        let until = over.clone();
        scope.spawn(move || {
            inside(owner, async || {
                let (key, tasks) = (DeviceKey::ephemeral().unwrap(), Tasks::new());
                let (links, mut news, mut requests) = Links::start(device(&key), &key, &tasks).unwrap();
                let network = Network {
                    interfaces: Vec::new(),
                    uplinks: vec![wan(owner)],
                };
                let config = Config {
                    allow: vec!["203.0.113.0/24".parse().unwrap()],
                    names: names(),
                    ..Config::default()
                };
                let relay = Relay::new(config, watch::channel(Arc::new(network)).1, &tasks);
                ready.send(()).unwrap();
                loop {
                    tokio::select! {
                        Some(request) = requests.recv() => relay.serve(request),
                        Some(_) = news.recv() => {}
                        () = until.cancelled() => break,
                    }
                }
                links.close().await;
                tasks.stop(Duration::from_secs(1)).await;
            });
        });
        is_ready.recv().unwrap();
        let sent = inside(borrower, async || {
            let key = DeviceKey::ephemeral().unwrap();
            let (links, _news, _requests) = Links::start(device(&key), &key, &Tasks::new()).unwrap();
            let address = SocketAddr::from((owner.lan_address(), DEFAULT_PORT));
            links.dial(&[address]).await.unwrap();
            let lane = PeerLane::new(info(), links.all().remove(0), UPLINK);
            let sent = send(&lane, began).await;
            links.close().await;
            sent
        });
        over.cancel();
        sent
    })
}

fn device(key: &DeviceKey) -> LinkConfig {
    LinkConfig {
        port: DEFAULT_PORT,
        name: "device".into(),
        offers: watch::channel(Lends::default()).1,
        home: watch::channel(Home::default()).1,
        gate: Arc::new(|_: SocketAddr| true),
        trust: Trust::none(key),
    }
}

/// Does async `work` in a thread in the peer's namespaces and waits for it.
fn inside<T: Send>(peer: &Peer, work: impl AsyncFnOnce() -> T + Send) -> T {
    peer.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(runtime.block_on(work()))
    })
}
