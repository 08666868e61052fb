//! What the hot loops cost on the processors of Pis and routers, in instructions for each byte: qemu counts them
//! (`cross/count`), so the figure is the same on every machine and in every run, which a time under an emulator is not.
//! An instruction is no cycle: it compares ciphers and versions of the code with each other, not processors.
//!
//! Run by hand, after `cross/build all`: `cargo test --test instructions -- --ignored --nocapture`. Needs `qemu-user`
//! (the one with plugins) and `qemu-user-static`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panicking"
)]

mod lab;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::{Lab, Options, Peer, Process, SOON, figure, installed, lanes, no_uplink, shipped, uplink};
use nix::sys::signal::Signal;
use rustls::CipherSuite;

/// Two sizes: what start and handshakes cost falls out of their difference.
const SIZES: [(&str, f64); 2] = [("8MiB", 8.0), ("40MiB", 40.0)];
const MIB: f64 = 1_048_576.0;
const LIMIT: Duration = Duration::from_secs(120);
/// Far more than any good loop needs: a count above it is a loop gone wrong.
const MOST: f64 = 2_000.0;

/// A processor, the emulator with plugins for it, and the binary for it.
#[derive(Clone, Copy)]
struct Board {
    cpu: &'static str,
    emulator: &'static str,
    target: &'static str,
}

const A53: Board = Board {
    cpu: "cortex-a53",
    emulator: "qemu-aarch64",
    target: "aarch64-unknown-linux-musl",
};
const ARM11: Board = Board {
    cpu: "arm1176",
    emulator: "qemu-arm",
    target: "arm-unknown-linux-musleabihf",
};

impl Board {
    /// Whether the tools and the binary are there; says what is not.
    fn is_there(self) -> bool {
        let tool = installed(self.emulator);
        if !tool || !shipped(self.target).exists() {
            figure(format_args!(
                "skipped: {} or cross/build {} is missing",
                self.emulator, self.target
            ));
            return false;
        }
        true
    }

    /// `tributary` on that board, its instructions counted into `count`.
    fn counted(self, peer: &Peer, plugin: &Path, count: &Path, args: &[&str]) -> Command {
        let mut command = peer.command(self.emulator);
        command.args(["-cpu", self.cpu, "-d", "plugin", "-D"]).arg(count);
        command
            .arg("-plugin")
            .arg(plugin)
            .arg(shipped(self.target))
            .args(args);
        command
    }
}

/// The plugin, compiled.
fn plugin(lab: &Lab) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cross/count/insn.c");
    let made = lab.peers()[0].directory().join("insn.so");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&made).arg(source);
    assert!(cc.status().unwrap().success(), "cc failed");
    made
}

fn counted(file: &Path) -> f64 {
    let text = fs::read_to_string(file).unwrap();
    let count = text.trim().strip_prefix("instructions: ");
    count
        .unwrap_or_else(|| panic!("no count in {text:?}"))
        .parse()
        .unwrap()
}

/// Instructions for each byte, from the counts of both sizes.
fn each_byte(count: impl Fn(&str) -> f64) -> f64 {
    let [(small, s), (large, l)] = SIZES;
    (count(large) - count(small)) / ((l - s) * MIB)
}

#[test]
#[ignore = "minutes under emulators, and cross/build's binaries: run by hand"]
fn what_a_download_costs_for_each_byte() {
    for board in [A53, ARM11] {
        if !board.is_there() {
            continue;
        }
        let Some(lab) = Lab::new() else { return };
        let lab = lab.peer("board", uplink(100.0, 20.0).delay_ms(2));
        let plugin = plugin(&lab);
        let mut told = String::new();
        for (name, cipher) in [
            ("AES-128-GCM", CipherSuite::TLS13_AES_128_GCM_SHA256),
            ("ChaCha20-Poly1305", CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
        ] {
            let options = Options {
                cipher: Some(cipher),
                ..Options::default()
            };
            let origin = lab.origin_with(&format!("{}.lab", name.to_lowercase()), options);
            let peer = lab.at("board");
            let cost = each_byte(|size| {
                let (count, sha256) = (peer.directory().join("count"), origin.sha256(size));
                let _ = fs::remove_file(peer.directory().join("file"));
                let args = [
                    "get",
                    "--standalone",
                    &origin.url(size),
                    "-o",
                    "file",
                    "--sha256",
                    &sha256,
                    "-q",
                ];
                let get = board.counted(peer, &plugin, &count, &args);
                peer.start("get", get).wait(LIMIT).ok();
                counted(&count)
            });
            told += &format!(", {name} {cost:.1}");
            assert!((1.0..MOST).contains(&cost), "{cost}");
        }
        figure(format_args!(
            "instructions: a download (TLS, BLAKE3, SHA-256, file) on a {}, for each byte{told}",
            board.cpu
        ));
    }
}

#[test]
#[ignore = "minutes under emulators, and cross/build's binaries: run by hand"]
fn what_lending_costs_for_each_byte() {
    let without_aes = "x86_64-unknown-linux-musl";
    if !A53.is_there() || !installed("qemu-x86_64-static") || !shipped(without_aes).exists() {
        return;
    }
    let mut told = String::new();
    // The end without AES decides for ChaCha20.
    for (name, borrower_has_aes) in [("AES-128-GCM", true), ("ChaCha20-Poly1305", false)] {
        let cost = each_byte(|size| {
            let lab = Lab::new().unwrap();
            let lab = lab
                .peer("borrower", no_uplink())
                .peer("lender", uplink(100.0, 20.0).delay_ms(2));
            let plugin = plugin(&lab);
            let origin = lab.origin("origin.lab");
            let (borrower, lender) = (lab.at("borrower"), lab.at("lender"));
            let start = |args: &[&str]| -> Process {
                let mut command = if borrower_has_aes {
                    borrower.tributary(&[])
                } else {
                    let mut command = borrower.command("qemu-x86_64-static");
                    command.args(["-cpu", "qemu64"]).arg(shipped(without_aes));
                    command
                };
                command.args(args);
                borrower.start("borrower", command)
            };
            // By address: qemu does not pass on what mDNS must know of a packet, so two emulated peers do not hear each other.
            borrower.configure(&format!("[lan]\npeers = [\"{}\"]\n", lender.lan_address()));
            let count = lender.directory().join("count");
            let mut lends = lender.start("lender", A53.counted(lender, &plugin, &count, &["run"]));
            let borrows = start(&["run"]);
            borrower.wait_status("the lane", SOON, |status| lanes(status) == 1);
            let sha256 = origin.sha256(size);
            start(&["get", &origin.url(size), "-o", "file", "--sha256", &sha256, "-q"])
                .wait(LIMIT)
                .ok();
            drop(borrows);
            lends.signal(Signal::SIGTERM);
            lends.wait(LIMIT).ok();
            counted(&count)
        });
        told += &format!(", {name} {cost:.1}");
        assert!((1.0..MOST).contains(&cost), "{cost}");
    }
    figure(format_args!(
        "instructions: lending (TCP to QUIC) on a {}, for each byte{told}",
        A53.cpu
    ));
}
