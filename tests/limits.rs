//! An owner's limits hold on the wire, for lent bytes as for own ones.

mod lab;

use std::thread;
use std::time::{Duration, Instant};

use lab::{Lab, Process, Wire, figure, lanes, no_uplink, uplink, wait_for};
use nix::sys::signal::Signal;

const ALLOW: &str = "[egress]\nallow = [\"203.0.113.0/24\"]\n";
const SOON: Duration = Duration::from_secs(15);
const LIMIT: f64 = 5.0;
/// What is promised: over any 2 s no more than this, in Mbit/s of IP packets.
const PROMISED: f64 = 5.2;
const WINDOW: Duration = Duration::from_secs(2);
/// A limit is to be used, too.
const AT_LEAST: f64 = 4.5;
const EVERY: Duration = Duration::from_millis(10);
const FILE: &str = "8MiB";
/// Until 8 MiB have come over 5 Mbit/s, and more.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_lent_uplink_carries_no_more_than_its_limit_over_any_two_seconds() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("borrower", no_uplink())
        .peer("lender", uplink(20.0, 10.0).delay_ms(15));
    let origin = lab.origin("origin.lab");
    let (borrower, lender) = (lab.at("borrower"), lab.at("lender"));
    lender.configure(&limited());
    let _daemons = [lender.spawn_daemon(&[]), borrower.spawn_daemon(&[])];
    borrower.wait_status("the lender's lane", SOON, |status| lanes(status) == 1);
    let sha256 = origin.sha256(FILE);
    let get = borrower.spawn_get(&origin.url(FILE), &["-o", "file", "--sha256", &sha256]);
    judge("lent", &watch(get, lender.wire(0)));
}

#[test]
fn an_own_uplink_carries_no_more_than_its_limit_over_any_two_seconds() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab.peer("alone", uplink(20.0, 10.0).delay_ms(15));
    let origin = lab.origin("origin.lab");
    let alone = lab.at("alone");
    alone.configure(&limited());
    let sha256 = origin.sha256(FILE);
    let get = alone.spawn_get(&origin.url(FILE), &["-o", "file", "--sha256", &sha256]);
    judge("own", &watch(get, alone.wire(0)));
}

#[test]
fn a_limit_holds_for_all_borrowers_together() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("ann", no_uplink())
        .peer("bob", no_uplink())
        .peer("lender", uplink(20.0, 10.0).delay_ms(15));
    let origin = lab.origin("origin.lab");
    let lender = lab.at("lender");
    lender.configure(&limited());
    let _lender = lender.spawn_daemon(&[]);
    let borrowers = ["ann", "bob"].map(|name| lab.at(name));
    let _daemons = borrowers.map(|peer| peer.spawn_daemon(&[]));
    for peer in borrowers {
        peer.wait_status("the lender's lane", SOON, |status| lanes(status) == 1);
    }
    let mut other = borrowers[0].spawn_get(&origin.url("4MiB"), &["-o", "file"]);
    let get = borrowers[1].spawn_get(&origin.url("4MiB"), &["-o", "file"]);
    let samples = watch(get, lender.wire(0));
    other.wait(PATIENCE).ok();
    judge("two borrowers", &samples);
}

#[test]
fn what_the_owner_says_later_is_felt_by_downloads_that_run() {
    let Some(lab) = Lab::beside() else { return };
    let lab = lab
        .peer("borrower", no_uplink())
        .peer("lender", uplink(20.0, 10.0).delay_ms(15));
    let origin = lab.origin("origin.lab");
    let (borrower, lender) = (lab.at("borrower"), lab.at("lender"));
    let daemon = lender.spawn_daemon(&[]);
    let _borrower = borrower.spawn_daemon(&[]);
    borrower.wait_status("the lender's lane", SOON, |status| lanes(status) == 1);
    let mut get = borrower.spawn_get(&origin.url("64MiB"), &["-o", "file"]);
    wait_for("a good part", SOON, || lender.wire(0).carried().down > 8_000_000);
    let free = rate_over(lender.wire(0), WINDOW);
    lender.configure(&limited());
    reload(&daemon, "configuration reloaded", 1);
    // What was in the buffers when the limit came.
    thread::sleep(Duration::from_millis(500));
    let limited = rate_over(lender.wire(0), WINDOW);
    lender.configure(ALLOW);
    reload(&daemon, "configuration reloaded", 2);
    thread::sleep(Duration::from_millis(500));
    let again = rate_over(lender.wire(0), WINDOW);
    figure(format_args!(
        "limits: by reload, in mid-download: {free:.1}, then {limited:.2}, then {again:.1} Mbit/s"
    ));
    assert!(free > 15.0, "{free}");
    assert!((4.0..=PROMISED).contains(&limited), "{limited}");
    assert!(again > 10.0, "{again}");
    // An uplink that is taken back is no lane any more, for a download that runs neither.
    lender.configure(&format!(
        "{ALLOW}[[uplink]]\ninterface = \"wan0\"\nlend = false\n"
    ));
    reload(&daemon, "configuration reloaded", 3);
    borrower.wait_status("no lane", SOON, |status| lanes(status) == 0);
    // What was on its way when the origin was told.
    thread::sleep(Duration::from_millis(500));
    let before = lender.wire(0).carried().down;
    thread::sleep(Duration::from_millis(500));
    let after = lender.wire(0).carried().down - before;
    assert!(
        after < 20_000,
        "{after} bytes went on over an uplink that is not lent any more"
    );
    get.signal(Signal::SIGINT);
    get.wait(SOON);
}

fn limited() -> String {
    format!("{ALLOW}[[uplink]]\ninterface = \"wan0\"\nmax_down = \"5 Mbit/s\"\n")
}

/// Tells the daemon to read its configuration again, and waits until it says so for the `nth` time.
fn reload(daemon: &Process, expected: &str, nth: usize) {
    daemon.signal(Signal::SIGHUP);
    wait_for("word of the reload", SOON, || {
        daemon.stderr().matches(expected).count() >= nth
    });
}

/// In Mbit/s.
fn rate_over(wire: &Wire, time: Duration) -> f64 {
    let began = Instant::now();
    let before = wire.carried().down;
    thread::sleep(time);
    (wire.carried().down - before) as f64 * 8.0 / 1e6 / began.elapsed().as_secs_f64()
}

/// What a wire had carried down at some moment between two.
#[derive(Clone, Copy, Debug)]
struct Sample {
    from: Duration,
    to: Duration,
    down: u64,
}

/// Looks at the wire until the download has ended well.
fn watch(mut get: Process, wire: &Wire) -> Vec<Sample> {
    let began = Instant::now();
    let mut samples = Vec::new();
    loop {
        // A machine that is busy may make the look itself last.
        let from = began.elapsed();
        let down = wire.carried().down;
        let to = began.elapsed();
        samples.push(Sample { from, to, down });
        if !get.running() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "it takes too long");
        thread::sleep(EVERY);
    }
    get.wait(SOON).ok();
    samples
}

fn judge(what: &str, samples: &[Sample]) {
    let mut worst: f64 = 0.0;
    for (place, first) in samples.iter().enumerate() {
        // To the first look after its end. Where that came late, what went by until then is more, and so is the time.
        let Some(last) = samples[place..]
            .iter()
            .find(|s| s.from.saturating_sub(first.to) >= WINDOW)
        else {
            break;
        };
        worst = worst.max(rate(first, last));
    }
    let moved: Vec<_> = samples
        .windows(2)
        .filter(|pair| pair[1].down > pair[0].down)
        .collect();
    let average = rate(&moved[0][0], &moved[moved.len() - 1][1]);
    figure(format_args!(
        "limits: {what}: limit {LIMIT} Mbit/s: {worst:.3} in the worst 2 s, {average:.3} on average"
    ));
    assert!(worst <= PROMISED, "{worst} Mbit/s over 2 s");
    assert!(average >= AT_LEAST, "{average} Mbit/s of {LIMIT}");
}

/// In Mbit/s.
fn rate(first: &Sample, last: &Sample) -> f64 {
    (last.down - first.down) as f64 * 8.0 / 1e6 / (last.to - first.from).as_secs_f64()
}
