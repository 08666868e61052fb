//! `cargo bench --bench relay`: what one lender moves for one borrower over an unshaped LAN, beside `ssh -D`.
//!
//! The borrower has no way out of its own; the lender's is a plain cable to the internet. Both contenders carry the same
//! HTTPS download end to end: `tributary get` through the relay, and curl through ssh's SOCKS proxy with the cipher that
//! is fastest for ssh. They take turns; the table shows the middle of their runs. CPU seconds are the whole machine's
//! (the origin's included), so nothing else should run.
//!
//! `-- --size 1GiB --runs 5` choose.

#![expect(
    clippy::unwrap_used,
    reason = "a bench that cannot go on has nothing to hand an error to"
)]

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::fs;
use std::time::Duration;

use clap::Parser;
use lab::{Finished, Lab, Origin, Process, figure, installed, machine_cpu, middle, no_uplink, wait_for};

/// The SOCKS port of `ssh -D` on the borrower.
const SOCKS: &str = "127.0.0.1:1080";

/// One lender and one borrower, compared with ssh.
#[derive(Debug, Parser)]
struct Args {
    /// Size of the file.
    #[arg(long, default_value = "1GiB")]
    size: String,
    /// Runs of each contender; the middle one counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Sample {
    rate: f64,
    cpu: f64,
}

fn main() {
    let args = Args::parse();
    let _ = args.bench;
    let Some(lab) = Lab::new() else { return };
    let lab = lab.peer("borrower", no_uplink()).peer("lender", no_uplink());
    cable_to_the_internet(&lab);
    let origin = lab.origin("origin.lab");
    let _daemons: Vec<Process> = lab.peers().iter().map(|peer| peer.spawn_daemon(&[])).collect();
    lab.at("borrower")
        .wait_status("the lender's lane", lab::SOON, |status| {
            status["lanes"].as_array().is_some_and(|lanes| lanes.len() == 1)
        });
    let ssh = installed("sshd").then(|| ssh(&lab));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..args.runs {
        ours.push(measure(&origin, &args.size, || {
            tributary(&lab, &origin, &args.size)
        }));
        if ssh.is_some() {
            theirs.push(measure(&origin, &args.size, || curl(&lab, &origin, &args.size)));
        }
    }
    figure(format_args!(
        "{} over HTTPS through one lender, middle of {} runs\n",
        args.size, args.runs
    ));
    figure("| through | MiB/s | all runs | CPU s / GiB, whole machine |");
    figure("| --- | --- | --- | --- |");
    row("tributary", &ours);
    row("ssh -D, aes128-gcm", &theirs);
}

fn row(name: &str, samples: &[Sample]) {
    if samples.is_empty() {
        return;
    }
    let all: Vec<String> = samples.iter().map(|s| format!("{:.0}", s.rate)).collect();
    let rate = middle(samples.iter().map(|s| s.rate).collect());
    let cpu = middle(samples.iter().map(|s| s.cpu).collect());
    figure(format_args!(
        "| {name} | {rate:.0} | {} | {cpu:.2} |",
        all.join(" ")
    ));
}

fn measure(origin: &Origin, size: &str, download: impl Fn() -> Finished) -> Sample {
    let before = machine_cpu().unwrap_or_default();
    let finished = download().ok();
    let cpu = machine_cpu().unwrap_or_default().saturating_sub(before);
    let bytes = origin.length(size) as f64;
    Sample {
        rate: bytes / finished.elapsed.as_secs_f64() / f64::from(1 << 20),
        cpu: cpu.as_secs_f64() / (bytes / f64::from(1 << 30)),
    }
}

fn tributary(lab: &Lab, origin: &Origin, size: &str) -> Finished {
    let borrower = lab.at("borrower");
    let _ = fs::remove_file(borrower.directory().join("download"));
    borrower.get(&origin.url(size), &["-o", "download"])
}

fn curl(lab: &Lab, origin: &Origin, size: &str) -> Finished {
    let borrower = lab.at("borrower");
    let _ = fs::remove_file(borrower.directory().join("download"));
    let mut curl = borrower.command("curl");
    curl.args([
        "-sS",
        "--socks5-hostname",
        SOCKS,
        "-o",
        "download",
        &origin.url(size),
    ]);
    borrower.run("curl", curl)
}

/// A cable between lender and internet, without a wire's rate.
fn cable_to_the_internet(lab: &Lab) {
    let mut anchor = lab.command_outside("sleep").arg("infinity").spawn().unwrap();
    let lender = lab.at("lender");
    let ip = |text: &str| {
        let output = lender.command("ip").args(text.split(' ')).output().unwrap();
        assert!(
            output.status.success(),
            "ip {text}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    ip(&format!(
        "link add wan0 type veth peer name up0 netns {}",
        anchor.id()
    ));
    ip("address add 198.51.100.201/30 dev wan0");
    ip("link set wan0 up");
    for text in ["address add 198.51.100.202/30 dev up0", "link set up0 up"] {
        let output = lab.command_outside("ip").args(text.split(' ')).output().unwrap();
        assert!(
            output.status.success(),
            "ip {text}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    ip("route add default via 198.51.100.202 dev wan0");
    anchor.kill().unwrap();
    anchor.wait().unwrap();
}

/// An sshd on the lender and an `ssh -D` to it on the borrower.
fn ssh(lab: &Lab) -> [Process; 2] {
    let (lender, borrower) = (lab.at("lender"), lab.at("borrower"));
    for (peer, key) in [(lender, "host"), (borrower, "user")] {
        let mut keygen = peer.command("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", key]);
        peer.run("ssh-keygen", keygen).ok();
    }
    let authorized = lender.directory().join("authorized");
    fs::copy(borrower.directory().join("user.pub"), &authorized).unwrap();
    let _ = fs::create_dir_all("/run/sshd");
    let mut sshd = lender.command("/usr/sbin/sshd");
    sshd.args([
        "-D",
        "-e",
        "-f",
        "/dev/null",
        "-o",
        "Port=2222",
        "-o",
        "StrictModes=no",
        "-o",
        "UsePAM=no",
    ]);
    sshd.arg("-o")
        .arg(format!("HostKey={}", lender.directory().join("host").display()));
    sshd.arg("-o")
        .arg(format!("AuthorizedKeysFile={}", authorized.display()));
    let sshd = lender.start("sshd", sshd);
    let mut ssh = borrower.command("ssh");
    ssh.args([
        "-N",
        "-D",
        SOCKS,
        "-c",
        "aes128-gcm@openssh.com",
        "-p",
        "2222",
        "-i",
        "user",
    ]);
    ssh.args([
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "ConnectionAttempts=20",
    ]);
    ssh.arg(format!("root@{}", lender.lan_address()));
    let ssh = borrower.start("ssh", ssh);
    wait_for("ssh's proxy", Duration::from_secs(20), || {
        borrower.inside(|| Ok(std::net::TcpStream::connect(SOCKS).is_ok()))
    });
    [sshd, ssh]
}
