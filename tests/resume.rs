//! A download that is interrupted in any way goes on where it was, and the final name never holds a part of a file.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail them")]

mod lab;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::{Finished, Lab, Origin, Peer, Process, SOON, figure, lanes, uplink, wait_for};
use nix::sys::signal::Signal;

const MIB: f64 = 1_048_576.0;
/// What the program may take to end after Ctrl-C.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// On the wires, for each byte of content: headers, TLS, requests, and what is under way when something ends.
const OVERHEAD: f64 = 1.06;
/// The latest moment of a kill, in seconds: the journal's second entry is due then.
const LATEST: f64 = 6.0;
/// Mbit/s of the borrower's line, and of its lender's.
const RATE: f64 = 40.0;

#[test]
fn a_killed_borrower_resumes_at_four_moments() {
    killed_at_random(4, "96MiB");
}

#[test]
#[ignore = "20 moments, two minutes: run by CI"]
fn a_killed_borrower_resumes_at_twenty_moments() {
    killed_at_random(20, "448MiB");
}

#[test]
fn ctrl_c_leaves_a_part_that_is_hardly_fetched_again() {
    let Some(house) = House::new() else { return };
    let file = house.file();
    let size = 16.0 * MIB;
    let mut get = house.get("16MiB", true);
    house.wait_content(0.5 * size);
    get.signal(Signal::SIGINT);
    let stopped = get.wait(ENDS_WITHIN);
    assert_eq!(stopped.status.code(), Some(130), "{}", stopped.stderr);
    assert!(!file.exists() && house.part().exists());
    let done = finish(house.get("16MiB", true));
    let carried = house.content();
    figure(format_args!(
        "resume: after Ctrl-C {:.1} of 16 MiB were kept; on the wires {:.3} of the file",
        done["resumed"].as_f64().unwrap() / MIB,
        carried / size
    ));
    assert!(done["resumed"].as_f64().unwrap() > 0.3 * size);
    // Two requests a line that were cut off: what was under way, in queues, and in blocks not yet written.
    assert!(
        carried < OVERHEAD * size + 2.0 * MIB,
        "{carried} bytes for {size}"
    );
    assert!(!house.part().exists());
}

#[test]
fn a_wrong_checksum_fails_and_leaves_no_file() {
    let Some(house) = House::new() else { return };
    let mut get = house.borrower().spawn_get(
        &house.origin.url("1MiB"),
        &["-o", "file", "--sha256", &"ab".repeat(32)],
    );
    let finished = get.wait(Duration::from_secs(30));
    assert_eq!(finished.status.code(), Some(5), "{}", finished.stderr);
    assert_eq!(finished.report("failed").unwrap()["code"], 5);
    assert!(!house.file().exists());
    figure(format_args!(
        "resume: wrong checksum: {}",
        finished.stderr.lines().last().unwrap_or_default()
    ));
}

#[test]
fn a_daemon_takes_a_download_over_and_its_end_does_not_lose_it() {
    let Some(house) = House::new() else { return };
    let daemon = |count| {
        let daemon = house.borrower().spawn_daemon(&[]);
        house
            .borrower()
            .wait_status("its lanes", Duration::from_secs(10), |s| lanes(s) == count);
        daemon
    };
    let size = 16.0 * MIB;
    let mut first = daemon(2);
    // A get that stops, stops the daemon's work too, resumably.
    let mut get = house.get("16MiB", true);
    house.wait_content(0.25 * size);
    get.signal(Signal::SIGINT);
    assert_eq!(get.wait(ENDS_WITHIN).status.code(), Some(130));
    wait_for("the daemon let go of it", SOON, || {
        let status = house.borrower().status().unwrap();
        status["transfers"].as_array().unwrap().is_empty()
    });
    assert!(house.part().exists() && !house.file().exists());
    // A daemon that dies leaves the work to the get that asked it.
    let get = house.get("16MiB", true);
    house.wait_content(0.5 * size);
    first.kill();
    let finished = house.finished(get);
    assert!(
        finished.status.success() && house.file().exists(),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("without it"),
        "says so: {}",
        finished.stderr
    );
    house.check("16MiB");
    figure(format_args!(
        "resume: stopped, then its daemon killed: on the wires {:.3} of the file",
        house.content() / size
    ));
    // And one that is told to end gives its work back in order.
    fs::remove_file(house.file()).unwrap();
    let second = daemon(2);
    let before = house.content();
    let get = house.get("16MiB", true);
    house.wait_content(before + 0.5 * size);
    second.signal(Signal::SIGTERM);
    let finished = house.finished(get);
    let code = finished.status.code();
    figure(format_args!(
        "resume: its daemon told to end: exit code {code:?}, {}",
        finished.stderr.lines().last().unwrap_or_default()
    ));
    assert!(code == Some(0) || code == Some(130), "{}", finished.stderr);
    if code == Some(130) {
        assert!(!house.file().exists());
        assert!(finish(house.get("16MiB", true))["resumed"].as_u64().unwrap() > 0);
    }
    house.check("16MiB");
}

fn killed_at_random(kills: u32, size: &str) {
    let Some(house) = House::new() else { return };
    let bytes = size.trim_end_matches("MiB").parse::<f64>().unwrap() * MIB;
    let file = house.file();
    let mut random = 0x5eed_u64;
    let mut alive = 0.0;
    for kill in 0..kills {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Before the first byte, in the middle of writing, around a journal's entry: each moment has its turn.
        let turn = f64::from(kill * 7 % kills) + (random >> 33) as f64 / (1_u64 << 31) as f64;
        let after = Duration::from_secs_f64(turn / f64::from(kills) * LATEST);
        let mut get = house.get(size, false);
        let ended = get.wait_until(Instant::now() + after);
        assert!(ended.is_none(), "the file is too small for so many kills");
        alive += after.as_secs_f64();
        get.kill();
        assert!(
            !file.exists(),
            "an incomplete file has the final name, after {after:?}"
        );
    }
    let done = finish(house.get(size, true));
    house.check(size);
    let carried = house.content();
    let again = carried / bytes - 1.0;
    figure(format_args!(
        "resume: {kills} kills in {alive:.1} s: {:.1} of {} kept at the end, on the wires {:.3} of the file, {:.2} MiB \
         again for each kill",
        done["resumed"].as_f64().unwrap() / MIB,
        size,
        carried / bytes,
        again * bytes / MIB / f64::from(kills)
    ));
    // What is not journalled is what came in since: 3 s of both lines at most, and never more than came at all.
    let unjournalled = f64::from(kills) * 3.0 * 2.0 * RATE * 1e6 / 8.0;
    let bound = unjournalled.min(alive * 2.0 * RATE * 1e6 / 8.0);
    assert!(done["resumed"].as_u64().unwrap() > 0);
    assert!(carried <= OVERHEAD * bytes + bound, "{carried} for {bytes}");
    assert!(!house.part().exists() && !house.journal().exists());
}

/// What the download that a resumed command ended says.
fn finish(mut get: Process) -> serde_json::Value {
    let finished = get.wait(Duration::from_secs(120)).ok();
    finished.report("done").unwrap()
}

/// A borrower with a line of its own, and a lender.
#[derive(Debug)]
struct House {
    // First dropped.
    _lender: Process,
    origin: Origin,
    before: u64,
    lab: Lab,
}

impl House {
    fn new() -> Option<Self> {
        let lab = Lab::beside()?
            .peer("borrower", uplink(RATE, 10.0).delay_ms(10))
            .peer("lender", uplink(RATE, 10.0).delay_ms(10));
        let lender = lab.at("lender").spawn_daemon(&[]);
        lab.at("lender")
            .wait_status("itself", Duration::from_secs(10), |s| lanes(s) == 1);
        Some(Self {
            _lender: lender,
            origin: lab.origin("origin.lab"),
            before: lab.carried().down,
            lab,
        })
    }

    fn borrower(&self) -> &Peer {
        self.lab.at("borrower")
    }

    fn get(&self, size: &str, checked: bool) -> Process {
        let sha256 = self.origin.sha256(size);
        let check = ["--sha256", sha256.as_str()];
        let args: &[&str] = if checked { &check } else { &[] };
        self.borrower()
            .spawn_get(&self.origin.url(size), &[&["-o", "file"], args].concat())
    }

    fn finished(&self, mut get: Process) -> Finished {
        get.wait(Duration::from_secs(60))
    }

    /// Bytes on all wires so far.
    fn content(&self) -> f64 {
        (self.lab.carried().down - self.before) as f64
    }

    fn wait_content(&self, bytes: f64) {
        wait_for("so many bytes", Duration::from_secs(30), || {
            self.content() >= bytes
        });
    }

    fn file(&self) -> PathBuf {
        self.borrower().directory().join("file")
    }

    fn part(&self) -> PathBuf {
        self.borrower().directory().join("file.part")
    }

    fn journal(&self) -> PathBuf {
        self.borrower().directory().join("file.part.journal")
    }

    fn check(&self, size: &str) {
        let sum = Command::new("sha256sum").arg(self.file()).output().unwrap();
        let sum = String::from_utf8(sum.stdout).unwrap();
        assert!(sum.starts_with(&self.origin.sha256(size)), "{sum}");
    }
}
