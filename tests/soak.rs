//! A household in which nothing stays as it is: peers come, go, crash and hang, lines and cables break, while downloads
//! run. Every file must be right, and those who lived through it all must have lost nothing and kept nothing.
//!
//! `TRIBUTARY_SOAK_MINUTES` says for how long (default 2), `TRIBUTARY_SOAK_SEED` repeats a run's choices (what happens
//! while a choice is carried out is the machine's).

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail them")]

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lab::{Lab, Origin, Process, figure, lanes, peers, uplink};
use nix::sys::signal::Signal;

const MIB: f64 = 1_048_576.0;
/// They run from the beginning to the end: the first borrows, the second lends, and both live through it all.
const LASTING: [&str; 2] = ["home", "ann"];
/// They come and go.
const PASSING: [&str; 4] = ["bob", "cat", "dan", "eve"];
/// Mbit/s of each line.
const RATE: f64 = 25.0;
const SIZES: [&str; 4] = ["1MiB", "3MiB", "8MiB", "20MiB"];
/// Downloads at once.
const MOST_GETS: usize = 3;
/// Until a download that nothing disturbs any more is taken to hang.
const FINISH: Duration = Duration::from_secs(90);
/// Quiet before anything is measured: idle connections are closed, caches let go.
const QUIET: Duration = Duration::from_secs(15);
/// What a daemon may hold more than after its first downloads: the allocator's shreds, not what grows.
const MORE_MEMORY: f64 = 6.0;
/// Descriptors and threads: one or two come and go with the blocking pool.
const MORE_HANDLES: usize = 3;
/// Exit codes that a disturbed download may have: no uplink reaches the origin; stopped; and, for one that is begun again
/// at once, that its predecessor has not let go of the file yet.
const EXCUSED: [i32; 3] = [4, 130, 6];

#[test]
#[ignore = "two minutes or more: run by CI"]
fn whatever_happens_every_file_is_right_and_nothing_is_kept() {
    let minutes = number("TRIBUTARY_SOAK_MINUTES").unwrap_or(2);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("TRIBUTARY_SOAK_SEED").unwrap_or(now.as_secs());
    figure(format_args!("soak: {minutes} min, TRIBUTARY_SOAK_SEED={seed}"));
    let Some(mut lab) = Lab::new() else { return };
    for name in LASTING.into_iter().chain(PASSING) {
        lab = lab.peer(name, uplink(RATE, 10.0).delay_ms(10));
    }
    let origin = lab.origin("origin.lab");
    let mut soak = Soak::new(&lab, &origin, seed);
    soak.warm_up();
    let before = soak.held();
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    while Instant::now() < end {
        soak.step();
    }
    soak.settle();
    let after = soak.held();
    soak.report(&before, &after);
    for (name, held) in &after {
        let was = &before[name];
        assert!(
            held.memory - was.memory <= MORE_MEMORY,
            "{name}: {was:?} -> {held:?}"
        );
        assert!(
            held.handles <= was.handles + MORE_HANDLES,
            "{name}: {was:?} -> {held:?}"
        );
        assert!(
            held.threads <= was.threads + MORE_HANDLES,
            "{name}: {was:?} -> {held:?}"
        );
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What a daemon holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// MiB of its own.
    memory: f64,
    handles: usize,
    threads: usize,
}

/// A download that is to be finished, however often it must be begun.
struct Get<'a> {
    peer: &'a str,
    size: &'a str,
    file: String,
    /// Beside the daemon, by itself.
    standalone: bool,
    process: Process,
}

struct Soak<'a> {
    lab: &'a Lab,
    origin: &'a Origin,
    sha256: BTreeMap<&'a str, String>,
    lasting: BTreeMap<&'a str, Process>,
    /// `None` while it is away.
    passing: BTreeMap<&'a str, Option<Process>>,
    frozen: Vec<&'a str>,
    gets: Vec<Get<'a>>,
    random: u64,
    count: BTreeMap<&'static str, u64>,
    bytes: u64,
}

impl<'a> Soak<'a> {
    fn new(lab: &'a Lab, origin: &'a Origin, seed: u64) -> Self {
        let start = |name: &'a str| (name, lab.at(name).spawn_daemon(&[]));
        Self {
            lab,
            origin,
            sha256: SIZES.iter().map(|size| (*size, origin.sha256(size))).collect(),
            lasting: LASTING.into_iter().map(start).collect(),
            passing: PASSING
                .into_iter()
                .map(start)
                .map(|(n, p)| (n, Some(p)))
                .collect(),
            frozen: Vec::new(),
            gets: Vec::new(),
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            count: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Some downloads by everybody, so that what is measured before has done once all that it will do.
    fn warm_up(&mut self) {
        self.wait_for_all();
        for peer in LASTING {
            for _ in 0..3 {
                self.begin(peer, "20MiB", false);
            }
            self.finish_all();
        }
        thread::sleep(QUIET);
    }

    /// One thing happens, and a moment passes.
    fn step(&mut self) {
        match self.below(14) {
            0 | 1 => self.toggle_a_daemon(Signal::SIGKILL),
            2 | 3 => self.toggle_a_daemon(Signal::SIGTERM),
            4 => self.freeze_or_thaw(),
            5 | 6 => self.change_a_line(),
            7 => self.pull_or_plug(),
            8 => self.kill_a_get(),
            _ => self.begin_any(),
        }
        let pause = 100 + self.below(700);
        thread::sleep(Duration::from_millis(pause));
        self.look_after_gets();
    }

    fn toggle_a_daemon(&mut self, signal: Signal) {
        let name = self.pick(&PASSING);
        self.thaw(name);
        let slot = self.passing.get_mut(name).unwrap();
        if let Some(mut daemon) = slot.take() {
            daemon.signal(signal);
            let ended = daemon.wait(Duration::from_secs(6));
            assert!(
                signal == Signal::SIGKILL || ended.status.success(),
                "{name}: {ended:?}"
            );
            self.note(if signal == Signal::SIGKILL {
                "killed"
            } else {
                "left"
            });
        } else {
            *slot = Some(self.lab.at(name).spawn_daemon(&[]));
            self.note("joined");
        }
    }

    fn freeze_or_thaw(&mut self) {
        let name = self.pick(&PASSING);
        if self.frozen.contains(&name) {
            self.thaw(name);
        } else if let Some(daemon) = &self.passing[name] {
            daemon.signal(Signal::SIGSTOP);
            self.frozen.push(name);
            self.note("frozen");
        }
    }

    fn thaw(&mut self, name: &str) {
        self.frozen.retain(|frozen| *frozen != name);
        if let Some(Some(daemon)) = self.passing.get(name) {
            daemon.signal(Signal::SIGCONT);
        }
    }

    fn change_a_line(&mut self) {
        let everybody = [&LASTING[..], &PASSING[..]].concat();
        let wire = self.lab.at(self.pick(&everybody)).wire(0);
        match self.below(4) {
            0 => {
                wire.cut();
                self.note("line cut");
            }
            1 => wire.set(wire.get().down(RATE / 10.0)),
            _ => {
                wire.set(wire.get().down(RATE));
                wire.mend();
                self.note("line mended");
            }
        }
    }

    fn pull_or_plug(&mut self) {
        let everybody = [&LASTING[1..], &PASSING[..]].concat();
        let peer = self.lab.at(self.pick(&everybody));
        let plugged = self.below(2) == 0;
        peer.lan_cable(plugged);
        self.note(if plugged { "cable plugged" } else { "cable pulled" });
    }

    fn kill_a_get(&mut self) {
        if self.gets.is_empty() {
            return;
        }
        let place = self.below(self.gets.len() as u64) as usize;
        let signal = [Signal::SIGKILL, Signal::SIGINT][self.below(2) as usize];
        self.gets[place].process.signal(signal);
        self.note("get stopped");
    }

    fn begin_any(&mut self) {
        if self.gets.len() >= MOST_GETS {
            return;
        }
        let peer = self.pick(&LASTING);
        let size = self.pick(&SIZES);
        let standalone = self.below(3) == 0;
        self.begin(peer, size, standalone);
    }

    fn begin(&mut self, peer: &'a str, size: &'a str, standalone: bool) {
        self.note(if standalone { "get alone" } else { "get" });
        let file = format!("file{}", self.count.values().sum::<u64>());
        let process = self.spawn(peer, size, &file, standalone);
        self.gets.push(Get {
            peer,
            size,
            file,
            standalone,
            process,
        });
    }

    fn spawn(&self, peer: &str, size: &str, file: &str, standalone: bool) -> Process {
        let mut args = vec!["-o", file, "--sha256", &self.sha256[size]];
        if standalone {
            // A state directory without a daemon.
            args.extend(["--state-dir", "alone"]);
        }
        self.lab.at(peer).spawn_get(&self.origin.url(size), &args)
    }

    /// Takes in what has ended: right, or to be begun again.
    fn look_after_gets(&mut self) {
        for mut get in std::mem::take(&mut self.gets) {
            if let Some(finished) = get.process.wait_until(Instant::now()) {
                let path = self.lab.at(get.peer).directory().join(&get.file);
                if finished.status.success() {
                    let length = fs::metadata(&path).unwrap().len();
                    assert_eq!(length, self.origin.length(get.size), "{}", get.file);
                    self.bytes += length;
                    fs::remove_file(path).unwrap();
                    self.note("files right");
                    continue;
                }
                let code = finished.status.code();
                // A signal leaves no code: it was ours.
                let excused = code.is_none_or(|code| EXCUSED.contains(&code));
                assert!(excused && !path.exists(), "{}: {finished:?}", get.file);
                self.note("begun again");
                get.process = self.spawn(get.peer, get.size, &get.file, get.standalone);
            }
            self.gets.push(get);
        }
    }

    /// Everything is mended, everybody is there, every download comes to its end.
    fn settle(&mut self) {
        for peer in self.lab.peers() {
            peer.wire(0).set(peer.wire(0).get().down(RATE));
            peer.wire(0).mend();
            peer.lan_cable(true);
        }
        for name in PASSING {
            self.thaw(name);
            if self.passing[name].is_none() {
                self.passing
                    .insert(name, Some(self.lab.at(name).spawn_daemon(&[])));
            }
        }
        self.wait_for_all();
        self.finish_all();
        for name in LASTING {
            let left = fs::read_dir(self.lab.at(name).directory()).unwrap();
            let left: Vec<_> = left
                .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
                .filter(|n| n.contains(".part"))
                .collect();
            assert!(left.is_empty(), "{name}: {left:?}");
        }
        thread::sleep(QUIET);
    }

    fn wait_for_all(&self) {
        let others = LASTING.len() + PASSING.len() - 1;
        for name in LASTING {
            self.lab
                .at(name)
                .wait_status("everybody", Duration::from_secs(30), |s| {
                    peers(s) == others && lanes(s) == others + 1
                });
        }
    }

    fn finish_all(&mut self) {
        let limit = Instant::now() + FINISH;
        while !self.gets.is_empty() {
            let hanging: Vec<_> = self.gets.iter().map(|get| &get.file).collect();
            assert!(Instant::now() < limit, "{hanging:?}");
            thread::sleep(Duration::from_millis(50));
            self.look_after_gets();
        }
    }

    fn held(&mut self) -> BTreeMap<&'a str, Held> {
        for (name, daemon) in &mut self.lasting {
            assert!(daemon.running(), "{name} has ended: {}", daemon.stderr());
        }
        let held = |daemon: &Process| {
            let count = |of: &str| {
                fs::read_dir(format!("/proc/{}/{of}", daemon.pid()))
                    .unwrap()
                    .count()
            };
            Held {
                memory: daemon.memory().own as f64 / MIB,
                handles: count("fd"),
                threads: count("task"),
            }
        };
        self.lasting
            .iter()
            .map(|(name, daemon)| (*name, held(daemon)))
            .collect()
    }

    fn report(&self, before: &BTreeMap<&str, Held>, after: &BTreeMap<&str, Held>) {
        figure(format_args!(
            "soak: {:.0} MiB in files that were right; {:?}",
            self.bytes as f64 / MIB,
            self.count
        ));
        for (name, held) in after {
            let was = before[name];
            figure(format_args!(
                "soak: {name}: {:.1} -> {:.1} MiB, {} -> {} descriptors, {} -> {} threads; {:.1} s of CPU",
                was.memory,
                held.memory,
                was.handles,
                held.handles,
                was.threads,
                held.threads,
                self.lasting[name].cpu().as_secs_f64()
            ));
        }
    }

    fn note(&mut self, what: &'static str) {
        *self.count.entry(what).or_default() += 1;
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % limit
    }
}
