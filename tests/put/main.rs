//! Uploads over a household's lines, to real servers: how fast they are, and what may go wrong meanwhile.
//!
//! The figures: `cargo test --test put -- --ignored --nocapture`.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests fail them")]

#[path = "../lab/mod.rs"]
mod lab;
#[path = "../s3_server/mod.rs"]
mod s3_server;
#[path = "../targets/mod.rs"]
mod targets;

mod faults;
mod resume;
mod speed;

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use lab::{House, Lab, Peer, Process, uplink};
use ring::digest;
use s3_server::{ACCESS_KEY, BUCKET, Deed, S3Server, SECRET_KEY};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Mbit/s upstream of the household's four lines.
const UP: [(&str, f64); 4] = [("borrower", 12.0), ("ann", 8.0), ("bob", 6.0), ("cat", 4.0)];
/// Their sum.
const SUM: f64 = 30.0;
/// Of what passes a wire, what is left for content after IP, TCP and TLS.
const CONTENT: f64 = 0.955;

/// The household: each device has one line.
fn household(lab: Lab) -> Lab {
    let add = |lab: Lab, (name, up)| lab.peer(name, uplink(40.0, up).delay_ms(15));
    UP.into_iter().fold(lab, add)
}

/// An S3 service in the lab's internet.
fn s3(lab: &Lab) -> S3Server {
    let address = lab.host("s3.lab");
    let listener = lab.outside(|| TcpListener::bind((address, 443)));
    let certificate = lab.authority().issue(&["s3.lab"]).unwrap();
    S3Server::start_on(listener, "s3.lab", Some(&certificate), |_| Deed::Serve)
}

/// A file of that length whose blocks all differ.
fn file(peer: &Peer, name: &str, length: u64) -> PathBuf {
    let path = peer.directory().join(name);
    fs::write(&path, bytes(length, 0)).unwrap();
    path
}

/// So many bytes, of which no eight are like any others.
fn bytes(length: u64, seed: u64) -> Vec<u8> {
    (0..length.div_ceil(8))
        .flat_map(|n| {
            (n + (seed << 32))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_le_bytes()
        })
        .take(usize::try_from(length).unwrap())
        .collect()
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}

/// `tributary put --json FILE s3://BUCKET/KEY …` on the borrower.
fn put_s3(peer: &Peer, name: &str, args: &[&str]) -> Command {
    let target = format!("s3://{BUCKET}/{name}");
    let all = [
        &["put", name, &target, "--endpoint", "https://s3.lab", "--json"],
        args,
    ]
    .concat();
    let mut command = peer.tributary(&all);
    command
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    command
}

/// How far an upload is, in bytes; 0 before its first report.
fn sent(put: &mut Process) -> u64 {
    let report = put.report("progress").unwrap_or(Value::Null);
    report["done"].as_u64().unwrap_or(0)
}

/// The object is the file, made once, and nothing else is left at the service.
#[track_caller]
fn assert_stored(server: &S3Server, name: &str, source: &PathBuf) {
    let object = server.object(name).unwrap();
    assert!(
        sha256(&object) == sha256(&fs::read(source).unwrap()),
        "another content"
    );
    assert_eq!(server.count(s3_server::Kind::Complete), 1, "completions");
    assert_eq!(server.unfinished(), 0, "unfinished uploads");
    assert!(server.orphans().is_empty(), "{:?}", server.orphans());
}

/// The daemons of all devices, each knowing all lanes.
fn daemons(lab: &Lab) -> House<'_> {
    House::new(lab, UP.len())
}
