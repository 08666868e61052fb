//! Small files: pooling must not cost what it cannot win back. A whole `tributary get`, start of the process and its end
//! included, against a whole `curl` over the best line.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail them")]

mod lab;

use std::fs;
use std::time::Duration;

use lab::{Lab, Origin, Peer, figure, installed, middle, uplink};

/// Its middle counts.
const RUNS: usize = 5;
/// Tens of milliseconds are measured, and another process can only add to them: a second look tells it from ours.
const ATTEMPTS: usize = 3;
/// What may be added to 1.1 times curl's time.
const GRACE: f64 = 0.05;

#[test]
fn a_small_file_takes_hardly_longer_than_with_curl() {
    if !installed("curl") {
        return;
    }
    let Some(lab) = Lab::new() else { return };
    let lab = lab
        .peer("borrower", uplink(40.0, 20.0).delay_ms(8))
        .peer("lender", uplink(20.0, 10.0).delay_ms(15))
        .peer("other", uplink(10.0, 5.0).delay_ms(25));
    let origin = lab.origin("origin.lab");
    let borrower = lab.at("borrower");
    let _lenders = ["lender", "other"].map(|name| lab.at(name).spawn_daemon(&[]));
    lab.at("lender")
        .wait_status("sees the other", Duration::from_secs(10), |status| {
            status["peers"].as_array().is_some_and(|peers| peers.len() == 1)
        });
    let mut failures = Vec::new();
    for daemon in [false, true] {
        let way = if daemon { "by the daemon" } else { "standalone" };
        let running = daemon.then(|| borrower.spawn_daemon(&[]));
        if daemon {
            borrower.wait_status("all lanes", Duration::from_secs(10), |status| {
                status["lanes"].as_array().is_some_and(|lanes| lanes.len() == 3)
            });
        }
        for (name, bytes) in [("10 KB", 10_000), ("1 MB", 1_000_000), ("4 MB", 4_000_000)] {
            let holds = (0..ATTEMPTS).any(|_| {
                // In turns, so that the machine's moods hit both alike.
                let pairs =
                    (0..RUNS).map(|_| (curl(borrower, &origin, bytes), get(borrower, &origin, bytes)));
                let (curls, gets): (Vec<f64>, Vec<f64>) = pairs.unzip();
                let (curl, get) = (middle(curls), middle(gets));
                let limit = 1.1 * curl + GRACE;
                figure(format_args!(
                    "small: {name} {way}: {:.0} ms, curl {:.0} ms, limit {:.0} ms",
                    get * 1e3,
                    curl * 1e3,
                    limit * 1e3
                ));
                get <= limit
            });
            if !holds {
                failures.push(format!("{name} {way}"));
            }
        }
        drop(running);
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

fn curl(peer: &Peer, origin: &Origin, bytes: u64) -> f64 {
    let mut curl = peer.command("curl");
    curl.args(["-sS", "-o", "by-curl"])
        .arg(origin.url(&bytes.to_string()));
    peer.run("curl", curl).ok().elapsed.as_secs_f64()
}

fn get(peer: &Peer, origin: &Origin, bytes: u64) -> f64 {
    let finished = peer
        .get(&origin.url(&bytes.to_string()), &["-o", "by-tributary"])
        .ok();
    let file = peer.directory().join("by-tributary");
    assert_eq!(fs::metadata(&file).unwrap().len(), bytes);
    fs::remove_file(file).unwrap();
    finished.elapsed.as_secs_f64()
}
