//! A daemon at rest: what it holds, what it computes, what it writes, while nothing happens.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail them")]

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use lab::{Lab, Process, figure, lanes, peers, uplink};

const MIB: f64 = 1_048_576.0;
/// Resident, its code included.
const RESIDENT: f64 = 12.0;
/// Of that, what is not its code.
const OWN: f64 = 3.0;
/// The code of a build for tests is so much larger: its file has seven times the length.
const UNOPTIMISED: f64 = if cfg!(debug_assertions) { 6.0 } else { 0.0 };
/// Of one core.
const BUSY: f64 = 0.005;
const NAMES: [&str; 3] = ["ann", "bob", "cat"];
/// Past the start: the first questions of mDNS, and the note of who was met, which is written within 30 s.
const SETTLE: Duration = Duration::from_secs(35);

#[test]
#[ignore = "a minute of waiting: run by CI"]
fn a_daemon_at_rest_among_three_peers_holds_and_does_little() {
    rest(Duration::from_secs(20));
}

#[test]
#[ignore = "eleven minutes: run by hand"]
fn a_daemon_at_rest_writes_nothing_in_ten_minutes() {
    rest(Duration::from_secs(600));
}

fn rest(time: Duration) {
    let Some(mut lab) = Lab::new() else { return };
    for name in NAMES {
        lab = lab.peer(name, uplink(20.0, 10.0));
    }
    let daemons = NAMES.map(|name| {
        let peer = lab.at(name);
        let mut command = peer.tributary(&["run"]);
        // As it is installed, not as tests want it: a line in the log is a write to a disk.
        command.env("RUST_LOG", "info");
        peer.start("daemon", command)
    });
    for name in NAMES {
        lab.at(name)
            .wait_status("the others", Duration::from_secs(15), |s| {
                peers(s) == 2 && lanes(s) == 3
            });
    }
    thread::sleep(SETTLE);
    let before = daemons.each_ref().map(Used::of);
    let files = NAMES.map(|name| files(lab.at(name).directory()));
    thread::sleep(time);
    let mut worst = (0_f64, 0_f64);
    for (place, name) in NAMES.iter().enumerate() {
        let now = Used::of(&daemons[place]);
        let memory = daemons[place].memory();
        let seconds = time.as_secs_f64();
        let share = (now.cpu - before[place].cpu) / seconds;
        let (resident, own) = (memory.now as f64 / MIB, memory.own as f64 / MIB);
        figure(format_args!(
            "rest: {name} for {seconds:.0} s: {resident:.1} of {RESIDENT} MiB resident ({:.1} without the program's file), \
             {:.2} of {:.2} % of a core, {:.1} wake-ups/s, {} threads, {} bytes written",
            own,
            share * 100.0,
            BUSY * 100.0,
            (now.switches - before[place].switches) as f64 / seconds,
            now.threads,
            now.written - before[place].written
        ));
        assert_eq!(now.written, before[place].written, "{name} wrote");
        assert_eq!(self::files(lab.at(name).directory()), files[place], "{name}");
        assert!(own <= OWN, "{name} holds {own:.1} MiB besides its code");
        worst = (worst.0.max(resident), worst.1.max(share));
    }
    assert!(worst.0 <= RESIDENT + UNOPTIMISED, "{worst:?}");
    assert!(worst.1 <= BUSY, "{worst:?}");
}

#[derive(Clone, Copy, Debug)]
struct Used {
    /// Seconds.
    cpu: f64,
    /// Times that one of its threads went to sleep: it had been woken.
    switches: u64,
    /// Bytes that it caused to be written to a disk, or to a file on its way there.
    written: u64,
    threads: usize,
}

impl Used {
    fn of(daemon: &Process) -> Self {
        let pid = daemon.pid();
        let mut switches = 0;
        let mut threads = 0;
        let mut cpu = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let task = task.unwrap().path();
            switches += field(&task.join("status"), "voluntary_ctxt_switches:");
            // Nanoseconds on a processor: the other count is of ticks of 10 ms.
            let schedule = fs::read_to_string(task.join("schedstat")).unwrap();
            cpu += schedule
                .split_whitespace()
                .next()
                .unwrap()
                .parse::<u64>()
                .unwrap();
            threads += 1;
        }
        // What `write` was given goes to pipes and sockets, too: `write_bytes` is storage, and a memory's file system
        // has none. So the files are looked at as well.
        let written = field(Path::new(&format!("/proc/{pid}/io")), "write_bytes:");
        Self {
            cpu: cpu as f64 / 1e9,
            switches,
            written,
            threads,
        }
    }
}

fn field(file: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().parse().unwrap()
}

/// Every file below, with its size and when it was last written.
fn files(directory: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let about = fs::metadata(&path).unwrap();
        if about.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path, (about.len(), about.modified().unwrap()));
        }
    }
    found
}
