//! The household: what one device has fetched, or is fetching, the others get over the LAN.
//!
//! The figures: `cargo test --test household -- --nocapture --test-threads 1`, and with `--ignored` those that take long.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail them")]

#[path = "../lab/mod.rs"]
mod lab;

mod faults;
mod lan;
mod secrecy;
mod speed;

use std::fs;
use std::time::Duration;

use lab::{Lab, Origin, Peer, Process, lanes, peers, uplink};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(15);
const LIMIT: Duration = Duration::from_secs(120);

/// A household of members, each with a line of so many Mbit/s.
fn household(lab: Lab, names: &[&str], mbit: f64) -> Lab {
    let add = |lab: Lab, name: &&str| lab.peer(name, uplink(mbit, mbit).delay_ms(10));
    let lab = names.iter().fold(lab, add);
    for name in names {
        lab.at(name).configure(MEMBER);
    }
    lab
}

/// What makes devices members of one household.
const MEMBER: &str =
    "[trust]\npassphrase = \"correct horse battery staple\"\n[egress]\nallow = [\"203.0.113.0/24\"]\n";

/// Starts daemons there and waits until each knows all the others as members, and has all their lanes.
#[track_caller]
fn members(lab: &Lab, names: &[&str]) -> Vec<Process> {
    let daemons: Vec<Process> = names.iter().map(|name| lab.at(name).spawn_daemon(&[])).collect();
    for name in names {
        wait_for_members(lab.at(name), names.len() - 1);
    }
    daemons
}

#[track_caller]
fn wait_for_members(peer: &Peer, others: usize) {
    peer.wait_status("all are members", SOON, |status| {
        let members = status["peers"].as_array().unwrap();
        let vouched = members.iter().filter(|p| p["tier"] == "member").count();
        vouched == others && peers(status) == others && lanes(status) == others + 1
    });
}

/// Begins to fetch a file of that size; its name is its number there.
#[track_caller]
fn get(peer: &Peer, origin: &Origin, size: &str, file: &str) -> Process {
    peer.spawn_get(&origin.url(size), &["-o", file])
}

/// Waits for a download's end; the file must be right. Gives what it said.
#[track_caller]
fn right(peer: &Peer, origin: &Origin, size: &str, file: &str, get: &mut Process) -> Value {
    let finished = get.wait(LIMIT).ok();
    let bytes = fs::read(peer.directory().join(file)).unwrap();
    assert!(
        sha256(&bytes) == origin.sha256(size),
        "{file} is wrong: {}",
        finished.stderr
    );
    finished.report("done").unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    tributary::types::hex(digest.as_ref())
}

/// Bytes that members' disks brought.
fn from_members(done: &Value) -> u64 {
    let members = done["members"].as_array().unwrap();
    members.iter().map(|m| m["bytes"].as_u64().unwrap()).sum()
}
