//! A household whose daemons run and know each other, and what must be so after anything happened to it: the file is
//! right, nobody panicked, and nothing that was taken for it is still held.

use std::cell::Cell;
use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Lab, Origin, Process, SOON, lanes, peers, wait_for};

/// Resident memory of a daemon of the lab at most: 64 MiB, and one for each connection to an origin.
const MEMORY: u64 = (64 + 16) << 20;
/// Descriptors more than at rest that are nobody's fault: the one that is just being accepted, and a look at the kernel.
const SLACK: usize = 2;
/// Until a daemon must hold no more than at rest.
const AT_REST: Duration = Duration::from_secs(30);

/// The daemons of all peers of a lab.
#[derive(Debug)]
pub struct House<'a> {
    lab: &'a Lab,
    daemons: Vec<Daemon>,
    downloads: Cell<u32>,
}

#[derive(Debug)]
struct Daemon {
    process: Process,
    /// Descriptors at rest.
    rest: usize,
}

impl<'a> House<'a> {
    /// Starts a daemon on every peer and waits until each of them knows all the others and has all `lanes`.
    #[track_caller]
    pub fn new(lab: &'a Lab, lanes: usize) -> Self {
        let daemons = lab.peers().iter().map(|peer| peer.spawn_daemon(&[])).collect();
        Self::of(lab, daemons, lanes)
    }

    /// The same with daemons that were started by the test, in the order of the peers.
    #[track_caller]
    pub fn of(lab: &'a Lab, daemons: Vec<Process>, expected: usize) -> Self {
        for peer in lab.peers() {
            peer.wait_status("all peers and lanes", Duration::from_secs(15), |status| {
                peers(status) == lab.peers().len() - 1 && lanes(status) == expected
            });
        }
        let daemon = |process: Process| Daemon {
            rest: descriptors(process.pid()),
            process,
        };
        Self {
            lab,
            daemons: daemons.into_iter().map(daemon).collect(),
            downloads: Cell::new(0),
        }
    }

    /// The daemon of the peer of that name.
    #[track_caller]
    pub fn daemon(&self, name: &str) -> &Process {
        let mut peers = self.lab.peers().iter();
        let place = peers.position(|peer| peer.name() == name).unwrap();
        &self.daemons[place].process
    }

    /// Begins a download by that peer and waits until `bytes` have come.
    #[track_caller]
    pub fn download(&self, peer: &str, origin: &Origin, size: &str, bytes: u64) -> Process {
        let before = self.lab.carried().down;
        let sha256 = origin.sha256(size);
        self.downloads.set(self.downloads.get() + 1);
        let file = format!("file{}", self.downloads.get());
        let get = self
            .lab
            .at(peer)
            .spawn_get(&origin.url(size), &["-o", &file, "--sha256", &sha256]);
        wait_for("the first bytes", SOON, || {
            self.lab.carried().down - before >= bytes
        });
        get
    }

    /// Waits for the download's end, which must be a good one, and for all daemons to be as before it. Gives what it said.
    #[track_caller]
    pub fn ends_well(&mut self, get: &mut Process) -> Value {
        let done = get.wait(Duration::from_secs(240)).ok().report("done").unwrap();
        self.is_well();
        done
    }

    /// No daemon panicked, or holds more memory or descriptors than it should.
    #[track_caller]
    pub fn is_well(&mut self) {
        for Daemon { process, rest } in &mut self.daemons {
            assert!(process.running(), "a daemon ended: {}", process.stderr());
            assert!(!process.stderr().contains("panicked"), "{}", process.stderr());
            let peak = process.memory().peak;
            assert!(peak <= MEMORY, "{peak} bytes resident");
            let mut now = 0;
            let few = || {
                now = descriptors(process.pid());
                now <= *rest + SLACK
            };
            wait_for("as few descriptors as before", AT_REST, few);
        }
    }

    /// Tells all daemons to end, as systemd does, and waits.
    #[track_caller]
    pub fn stop(self) {
        for mut daemon in self.daemons {
            daemon.process.signal(Signal::SIGTERM);
            daemon.process.wait(Duration::from_secs(6)).ok();
        }
    }

    /// How often that peer's daemon has said this.
    pub fn said(&self, peer: &str, what: &str) -> usize {
        self.daemon(peer).stderr().matches(what).count()
    }
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
