//! What a peer's memory is while it works and while it rests: a Pi Zero has 512 MB, a router less.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail them")]

mod lab;

use std::fs;
use std::thread;
use std::time::Duration;

use lab::{Lab, Process, figure, lanes, uplink};

const MIB: f64 = 1_048_576.0;
const BORROWER: f64 = 48.0;
const LENDER: f64 = 32.0;
/// Resident, its code included.
const AT_REST: f64 = 12.0;
/// The code of a build for tests is so much larger.
const UNOPTIMISED: f64 = if cfg!(debug_assertions) { 6.0 } else { 0.0 };
/// Nothing shapes the lines: the wires' thread and the processor set the pace.
const UNSHAPED: f64 = 2000.0;
const LENDERS: [&str; 3] = ["ann", "bob", "cat"];

#[test]
fn a_fast_download_of_256_mib_needs_little_memory() {
    download("256MiB");
}

#[test]
#[ignore = "1 GiB, half a minute: run by CI"]
fn a_fast_download_of_1_gib_needs_little_memory() {
    download("1GiB");
}

fn download(size: &str) {
    let Some(lab) = Lab::new() else { return };
    let mut lab = lab.peer("borrower", uplink(UNSHAPED, UNSHAPED));
    for name in LENDERS {
        lab = lab.peer(name, uplink(UNSHAPED, UNSHAPED));
    }
    let origin = lab.origin("origin.lab");
    let lenders = LENDERS.map(|name| lab.at(name).spawn_daemon(&[]));
    for name in LENDERS {
        lab.at(name)
            .wait_status("the other lenders", Duration::from_secs(15), |status| {
                lanes(status) == LENDERS.len()
            });
    }
    // Time for what the start took to be given back.
    thread::sleep(Duration::from_secs(3));
    let rest = lenders.each_ref().map(|lender| lender.memory());
    let own = rest.map(|memory| mib(memory.own)).into_iter().fold(0.0, f64::max);
    let rest = rest.map(|memory| mib(memory.now)).into_iter().fold(0.0, f64::max);
    figure(format_args!(
        "memory: at rest {rest:.1} of {AT_REST} MiB, the program's code apart {own:.1}"
    ));
    // Without a daemon, and with one.
    let borrower = lab.at("borrower");
    for daemon in [false, true] {
        let running = daemon.then(|| borrower.spawn_daemon(&[]));
        if daemon {
            borrower.wait_status("all lanes", Duration::from_secs(15), |status| lanes(status) == 4);
        }
        let mut get = borrower.spawn_get(&origin.url(size), &["-o", "file"]);
        let finished = get.wait(Duration::from_secs(170)).ok();
        let peak = running
            .as_ref()
            .map_or(finished.peak_memory, |daemon: &Process| daemon.memory().peak);
        let done = finished.report("done").unwrap();
        let lent = lenders
            .iter()
            .map(|lender| mib(lender.memory().peak))
            .fold(0.0, f64::max);
        figure(format_args!(
            "memory: {size} {} at {:.0} Mbit/s over {} lanes: borrower {:.1} of {BORROWER} MiB, a lender {lent:.1} of \
             {LENDER}",
            if daemon { "by the daemon" } else { "standalone" },
            done["rate"].as_f64().unwrap() / 1e6,
            done["lanes"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|lane| lane["bytes"].as_u64().unwrap() > 0)
                .count(),
            mib(peak)
        ));
        assert!(mib(peak) <= BORROWER && lent <= LENDER && rest <= AT_REST + UNOPTIMISED);
        fs::remove_file(borrower.directory().join("file")).unwrap();
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}
