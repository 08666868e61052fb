//! The binaries that are shipped, on the processors they are for: each lends its line to a borrower of this machine, and
//! borrows one itself, in the lab, as qemu's user emulation runs it.
//!
//! Needs what `cross/build` makes, so it is run by hand and by CI: `cargo test --test cross -- --ignored`. It tries each
//! target whose binary is there; `TRIBUTARY_TARGETS` (names, separated by spaces) says which must be.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod lab;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lab::{House, Lab, Peer, SOON, figure, installed, peers, shipped, uplink};

const MIB: f64 = 1_048_576.0;
/// What the emulated peer's line must have carried of the file: most of what its share is.
const SHARE: f64 = 0.5;
/// Resident at rest, the emulator and what it translated included; the program itself is a third of that.
const RESIDENT: f64 = 64.0;

/// One line of `cross/targets`.
struct Target {
    name: String,
    emulator: String,
    cpu: String,
}

impl Target {
    fn binary(&self) -> PathBuf {
        shipped(&self.name)
    }

    /// The command line that runs it here, without its arguments.
    fn runs(&self) -> Vec<String> {
        let mut words = Vec::new();
        if !self.name.starts_with(std::env::consts::ARCH) {
            words.extend([format!("qemu-{}-static", self.emulator), "-cpu".into()]);
            words.push(self.cpu.clone());
        }
        words.push(self.binary().display().to_string());
        words
    }

    /// That program on this peer.
    fn on(&self, peer: &Peer, args: &[&str]) -> Command {
        let words = self.runs();
        let mut command = peer.command(&words[0]);
        command.args(&words[1..]).args(args);
        command
    }
}

/// Those that are to be tried.
fn targets() -> Vec<Target> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("cross/targets")).unwrap();
    let required = std::env::var("TRIBUTARY_TARGETS").ok();
    let required = required
        .as_deref()
        .map(|names| names.split_whitespace().collect::<Vec<_>>());
    let mut found = Vec::new();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let [name, emulator, cpu] =
            std::array::from_fn(|i| line.split_whitespace().nth(i).unwrap().to_owned());
        let target = Target { name, emulator, cpu };
        let wanted = match &required {
            Some(names) => names.contains(&target.name.as_str()),
            None => target.binary().exists(),
        };
        if wanted {
            assert!(target.binary().exists(), "run cross/build {}", target.name);
            let runner = &target.runs()[0];
            assert!(
                installed(runner) || Path::new(runner).exists(),
                "{runner} is missing: run cross/setup"
            );
            found.push(target);
        }
    }
    assert!(!found.is_empty(), "no binary is there: run cross/build");
    found
}

#[test]
#[ignore = "needs cross/build's binaries: run by hand and by CI"]
fn each_shipped_binary_lends_its_line_and_borrows_another() {
    for target in targets() {
        // A new household for each: the lab can be had once at a time.
        let Some(lab) = Lab::new() else { return };
        let lab = lab
            .peer("here", uplink(8.0, 8.0).delay_ms(10))
            .peer("board", uplink(16.0, 16.0).delay_ms(10));
        let origin = lab.origin("origin.lab");
        let (here, board) = (lab.at("here"), lab.at("board"));
        let began = Instant::now();
        let shipped = board.start("daemon", target.on(board, &["run"]));
        board.wait_status("itself", SOON, |_| true);
        let started = began.elapsed();
        let mut house = House::of(&lab, vec![here.spawn_daemon(&[]), shipped], 2);
        let rest = house.daemon("board").memory();

        let before = board.wire(0).carried().down;
        let mut get = house.download("here", &origin, "16MiB", 0);
        house.ends_well(&mut get);
        let lent = (board.wire(0).carried().down - before) as f64 / (16.0 * MIB);

        // Its own CLI hands the work to its own daemon, and the origin's certificate is checked by it.
        let before = here.wire(0).carried().down;
        let sha256 = origin.sha256("8MiB");
        let mut get = board.start(
            "get",
            target.on(
                board,
                &[
                    "get",
                    &origin.url("8MiB"),
                    "-o",
                    "file",
                    "--sha256",
                    &sha256,
                    "--json",
                ],
            ),
        );
        let done = get.wait(Duration::from_secs(120)).ok().report("done").unwrap();
        let borrowed = (here.wire(0).carried().down - before) as f64 / (8.0 * MIB);
        let status = board.status().unwrap();
        figure(format_args!(
            "cross: {} on a {}: {} bytes; answers {:.2} s after its start; at rest {:.1} MiB resident, emulator included; \
             lent {:.0} % of 16 MiB, borrowed {:.0} % of 8 MiB at {} Mbit/s of 24",
            target.name,
            if target.runs().len() > 1 {
                &target.cpu
            } else {
                "processor of this machine"
            },
            fs::metadata(target.binary()).unwrap().len(),
            started.as_secs_f64(),
            rest.now as f64 / MIB,
            lent * 100.0,
            borrowed * 100.0,
            done["rate"].as_u64().unwrap() / 1_000_000,
        ));
        assert_eq!(peers(&status), 1, "{status}");
        assert!(lent > SHARE, "{}: lent {lent}", target.name);
        assert!(borrowed > 0.1, "{}: borrowed {borrowed}", target.name);
        assert!(
            rest.now as f64 / MIB <= RESIDENT,
            "{}: {} bytes at rest",
            target.name,
            rest.now
        );
        house.stop();
    }
}
