//! `cargo bench --bench pooling`: one download over all uplinks of a household, beside what there is today.
//!
//! For each row of DESIGN's table the lab gets two households with the same uplinks: tributary's, where the borrower
//! owns the first one and each other one belongs to a lender; and one box that owns all of them itself, as curl (its best
//! uplink only), aria2 and kernel MPTCP need it. The contenders take turns; the table shows the middle of their runs.
//!
//! `-- --size 256MiB --runs 5 --row 3 --only curl --only tributary` choose; `--help` explains.

#![expect(
    clippy::unwrap_used,
    reason = "a bench that cannot go on has nothing to hand an error to"
)]

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use lab::{
    Finished, Lab, Options, Origin, Peer, Process, Uplink, figure, installed, machine_cpu, middle, uplink,
};
use ring::digest;

/// How long the lenders have to be found before a download starts without them.
const MEETING: Duration = Duration::from_secs(10);

/// Downloads over all uplinks of a household, compared.
#[derive(Debug, Parser)]
struct Args {
    /// Size of the file: `64MiB`, `10kB`.
    #[arg(long, default_value = "64MiB")]
    size: String,
    /// Runs of each contender; the middle one counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only this row of the table (counted from 1); may be given again.
    #[arg(long)]
    row: Vec<usize>,
    /// Only this contender; may be given again.
    #[arg(long)]
    only: Vec<Contender>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Contender {
    /// This project, its daemons running on every peer.
    Tributary,
    /// curl over the best uplink.
    Curl,
    /// aria2 with 4 connections over all uplinks.
    Aria2X4,
    /// aria2 with 16 connections over all uplinks.
    Aria2X16,
    /// curl over kernel Multipath TCP, the origin having it too.
    Mptcp,
}

/// A row of DESIGN's table: its uplinks' rate down (Mbit/s), delay of each way (ms) and loss.
struct Row {
    name: &'static str,
    uplinks: &'static [(f64, u64, f64)],
    /// The share of the summed rates to reach with 64 MiB.
    goal: f64,
}

const ROWS: &[Row] = &[
    Row {
        name: "20@15 ×4",
        uplinks: &[(20.0, 15, 0.0); 4],
        goal: 0.92,
    },
    Row {
        name: "40@8, 20@15, 10@25, 5@40",
        uplinks: &[(40.0, 8, 0.0), (20.0, 15, 0.0), (10.0, 25, 0.0), (5.0, 40, 0.0)],
        goal: 0.92,
    },
    Row {
        name: "50@10, 2@150",
        uplinks: &[(50.0, 10, 0.0), (2.0, 150, 0.0)],
        goal: 0.91,
    },
    Row {
        name: "30@12, 20@20, 12@30, 8@25, 4@60, 1@90",
        uplinks: &[
            (30.0, 12, 0.0),
            (20.0, 20, 0.0),
            (12.0, 30, 0.0),
            (8.0, 25, 0.0),
            (4.0, 60, 0.0),
            (1.0, 90, 0.0),
        ],
        goal: 0.90,
    },
    Row {
        name: "30@10, 30@40 with 1 % loss",
        uplinks: &[(30.0, 10, 0.0), (30.0, 40, 0.01)],
        goal: 0.91,
    },
];

/// One run of one contender.
struct Sample {
    /// Of the summed raw rates.
    share: f64,
    /// Bytes that all WANs carried to the peers, for each byte of the file.
    carried: f64,
    /// CPU seconds of the whole machine.
    cpu: f64,
}

fn main() {
    let args = Args::parse();
    let _ = args.bench;
    let rows = ROWS
        .iter()
        .enumerate()
        .filter(|(place, _)| args.row.is_empty() || args.row.contains(&(place + 1)));
    figure(format_args!(
        "{} over HTTPS, middle of {} runs, share of the summed raw rates\n",
        args.size, args.runs
    ));
    figure(
        "| uplinks (down Mbit/s @ one-way ms) | contender | share | all runs | WAN bytes / file | CPU s | goal |",
    );
    figure("| --- | --- | --- | --- | --- | --- | --- |");
    for (_, row) in rows {
        let Some(lab) = Lab::new() else { return };
        Household::new(lab, row, &args.size).compete(row, &args);
    }
}

/// Both households of a row, and the origins.
struct Household {
    lab: Lab,
    origin: Origin,
    multipath: Origin,
    size: String,
    sha256: String,
    sum: f64,
    best: usize,
}

impl Household {
    fn new(lab: Lab, row: &Row, size: &str) -> Self {
        let uplinks: Vec<Uplink> = row.uplinks.iter().map(|link| nature(*link)).collect();
        let mut lab = lab.peer("box", uplinks.clone()).peer("borrower", uplinks[0]);
        for (place, uplink) in uplinks.iter().enumerate().skip(1) {
            lab = lab.peer(&format!("lender{place}"), *uplink);
        }
        let origin = lab.origin("origin.lab");
        let multipath = lab.origin_with(
            "multipath.lab",
            Options {
                multipath: true,
                ..Options::default()
            },
        );
        prepare_box(&lab);
        let by_rate = |a: &usize, b: &usize| {
            let key = |place: usize| (row.uplinks[place].0, -row.uplinks[place].2);
            key(*a).partial_cmp(&key(*b)).unwrap()
        };
        Self {
            sha256: origin.sha256(size),
            size: size.to_owned(),
            sum: row.uplinks.iter().map(|link| link.0).sum(),
            best: (0..row.uplinks.len()).rev().max_by(by_rate).unwrap(),
            lab,
            origin,
            multipath,
        }
    }

    fn compete(&self, row: &Row, args: &Args) {
        let chosen = |c: &&Contender| args.only.is_empty() || args.only.contains(c);
        let contenders: Vec<_> = Contender::value_variants()
            .iter()
            .filter(chosen)
            .filter(|c| c.installed())
            .collect();
        let mut samples: Vec<Vec<Sample>> = contenders.iter().map(|_| Vec::new()).collect();
        let mut failures = vec![None; contenders.len()];
        for _ in 0..args.runs {
            for (place, contender) in contenders.iter().enumerate() {
                match self.measure(**contender) {
                    Ok(sample) => samples[place].push(sample),
                    Err(why) => failures[place] = Some(why),
                }
            }
        }
        for ((contender, samples), failure) in contenders.iter().zip(samples).zip(failures) {
            let of = |what: fn(&Sample) -> f64| middle(samples.iter().map(what).collect());
            let all: Vec<_> = samples
                .iter()
                .map(|sample| format!("{:.3}", sample.share))
                .collect();
            let goal = if **contender == Contender::Tributary {
                format!("{:.2}", row.goal)
            } else {
                String::new()
            };
            let name = contender
                .to_possible_value()
                .map(|value| value.get_name().to_owned())
                .unwrap_or_default();
            figure(format_args!(
                "| {} | {name} | {:.3} | {} | {:.3} | {:.1} | {goal} |",
                row.name,
                of(|sample| sample.share),
                all.join(" "),
                of(|sample| sample.carried),
                of(|sample| sample.cpu),
            ));
            if let Some(failure) = failure {
                figure(format_args!("{name} failed: {failure}"));
            }
        }
    }

    fn measure(&self, contender: Contender) -> Result<Sample, String> {
        let peer = self.lab.at(if contender == Contender::Tributary {
            "borrower"
        } else {
            "box"
        });
        let file = peer.directory().join("download");
        let _ = fs::remove_file(&file);
        let daemons = if contender == Contender::Tributary {
            self.start_daemons()
        } else {
            Vec::new()
        };
        let (carried, cpu) = (self.lab.carried().down, machine_cpu().unwrap_or_default());
        let finished = self.download(contender, peer);
        let cpu = machine_cpu().unwrap_or_default().saturating_sub(cpu);
        let carried = self.lab.carried().down - carried;
        drop(daemons);
        if !finished.status.success() {
            return Err(format!(
                "{}: {}{}",
                finished.status, finished.stderr, finished.stdout
            ));
        }
        let (hash, length) = sha256(&file).map_err(|error| format!("no file: {error}"))?;
        if hash != self.sha256 {
            return Err(format!(
                "WRONG CONTENT: sha256 {hash} of {length} bytes, not {}",
                self.sha256
            ));
        }
        let rate = length as f64 * 8.0 / finished.elapsed.as_secs_f64() / 1e6;
        Ok(Sample {
            share: rate / self.sum,
            carried: carried as f64 / length as f64,
            cpu: cpu.as_secs_f64(),
        })
    }

    fn download(&self, contender: Contender, peer: &Peer) -> Finished {
        let url = self.origin.url(&self.size);
        match contender {
            Contender::Tributary => peer.get(&url, &["-o", "download"]),
            Contender::Curl => {
                let mut curl = peer.command("curl");
                curl.args([
                    "-sS",
                    "--interface",
                    &format!("wan{}", self.best),
                    "-o",
                    "download",
                    &url,
                ]);
                peer.run("curl", curl)
            }
            Contender::Aria2X4 => self.aria2(peer, 4, &url),
            Contender::Aria2X16 => self.aria2(peer, 16, &url),
            Contender::Mptcp => {
                let mut curl = peer.command("mptcpize");
                curl.args([
                    "run",
                    "curl",
                    "-sS",
                    "-o",
                    "download",
                    &self.multipath.url(&self.size),
                ]);
                peer.run("mptcp", curl)
            }
        }
    }

    fn aria2(&self, peer: &Peer, connections: usize, url: &str) -> Finished {
        let interfaces: Vec<_> = (0..peer.uplinks()).map(|number| format!("wan{number}")).collect();
        let mut aria2 = peer.command("aria2c");
        aria2
            .args([
                "--quiet",
                "--no-conf",
                "--async-dns=false",
                "--file-allocation=none",
                "--min-split-size=1M",
            ])
            .arg(format!("--max-connection-per-server={connections}"))
            .arg(format!("--split={connections}"))
            .arg(format!("--multiple-interface={}", interfaces.join(",")))
            .arg(format!("--ca-certificate={}", self.lab.roots().display()))
            .args(["--out=download", url]);
        peer.run("aria2", aria2)
    }

    /// A daemon on every peer but the box, and the borrower knowing all lenders.
    fn start_daemons(&self) -> Vec<Process> {
        let peers = self.lab.peers().iter().filter(|peer| peer.name() != "box");
        let daemons: Vec<_> = peers.map(|peer| peer.spawn_daemon(&[])).collect();
        let borrower = self.lab.at("borrower");
        let known = || {
            borrower
                .status()
                .and_then(|status| status["peers"].as_array().map(Vec::len))
        };
        let began = Instant::now();
        while known().is_none_or(|count| count + 1 < daemons.len()) {
            if began.elapsed() > MEETING {
                figure(format_args!(
                    "the borrower has not found all lenders: {:?}",
                    borrower.status()
                ));
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        daemons
    }
}

impl Contender {
    fn installed(self) -> bool {
        match self {
            Self::Tributary => true,
            Self::Curl => installed("curl"),
            Self::Aria2X4 | Self::Aria2X16 => installed("aria2c") && installed("ip"),
            Self::Mptcp => installed("mptcpize") && installed("ip"),
        }
    }
}

fn nature((down, delay, loss): (f64, u64, f64)) -> Uplink {
    uplink(down, (down / 2.0).max(1.0)).delay_ms(delay).loss(loss)
}

/// What its owner would have to set up: aria2 binds addresses, so each needs a route of its own; MPTCP needs to be told
/// which addresses to use, and allowed as many at both ends.
fn prepare_box(lab: &Lab) {
    let owner = lab.at("box");
    let ip = |text: &str| {
        let status = owner.command("ip").args(text.split(' ')).output();
        if !status.is_ok_and(|output| output.status.success()) {
            figure(format_args!("`ip {text}` failed: the comparison is unfair"));
        }
    };
    ip("mptcp limits set subflows 8 add_addr_accepted 8");
    let _ = lab
        .command_outside("ip")
        .args(["mptcp", "limits", "set", "subflows", "8"])
        .output();
    for number in 0..owner.uplinks() {
        let address = owner.wan_address(number);
        ip(&format!(
            "route add default dev wan{number} table {}",
            100 + number
        ));
        ip(&format!("rule add from {address} table {}", 100 + number));
        if number > 0 {
            ip(&format!("mptcp endpoint add {address} dev wan{number} subflow"));
        }
    }
}

fn sha256(path: &Path) -> std::io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        context.update(&buffer[..count]);
        length += count as u64;
    }
    Ok((
        context
            .finish()
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        length,
    ))
}
