//! `tributary status`: who is there, what they bring, what is running.

use std::process::ExitCode;

use crate::api::convert::DAEMON;
use crate::api::{Reply, Request, Status};
use crate::types::{ByteSize, Rate};

use super::args::{self, Common};
use super::{daemon, fail};

pub(super) async fn run(common: &Common, options: &args::Status) -> ExitCode {
    let answer = match daemon::ask(common, &Request::Status).await {
        Ok(mut client) => client.reply().await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(Some(Reply::Status(status))) => match print(&status, options.json) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Ok(_) => {
            eprintln!("tributary: the daemon hung up without an answer");
            ExitCode::from(DAEMON)
        }
        Err(error) => {
            eprintln!(
                "tributary: {error} (looked at {}); start one with `tributary run`",
                daemon::places(common)
            );
            ExitCode::from(DAEMON)
        }
    }
}

fn print(status: &Status, json: bool) -> serde_json::Result<()> {
    if json {
        println!("{}", serde_json::to_string(status)?);
    } else {
        print!("{}", text(status));
    }
    Ok(())
}

fn text(status: &Status) -> String {
    let mut out = format!(
        "{} ({}), tributary {}, UDP port {}\n",
        status.device.name,
        status.device.id.get(..8).unwrap_or_default(),
        status.version,
        status.device.port
    );
    out += &match status.peers.len() {
        0 => "\nNo other peer on this LAN yet.\n".to_owned(),
        1 => "\n1 peer:\n".to_owned(),
        n => format!("\n{n} peers:\n"),
    };
    for peer in &status.peers {
        let uplinks = if peer.uplinks.is_empty() {
            "nothing".into()
        } else {
            peer.uplinks.join(", ")
        };
        out += &format!(
            "  {:<24} {:<28} {:>7.1} ms  lends {uplinks}\n",
            peer.name, peer.address, peer.rtt_ms
        );
    }
    out += "\nLanes:\n";
    if status.lanes.is_empty() {
        out += "  none: this device has no default route, and no peer lends one\n";
    }
    for lane in &status.lanes {
        let rate = lane
            .rate
            .map_or_else(|| "not measured yet".to_owned(), |r| Rate::bits(r).to_string());
        let metered = if lane.metered { "  metered" } else { "" };
        out += &format!("  {:<24} {:<16} {rate}{metered}\n", lane.owner, lane.uplink);
    }
    for transfer in &status.transfers {
        let name = transfer.name.as_deref().unwrap_or("(asking the origin)");
        let total = transfer
            .total
            .map_or_else(|| "?".to_owned(), |t| ByteSize(t).to_string());
        out += &format!(
            "\nDownloading {name}: {} of {total}, {}\n",
            ByteSize(transfer.done),
            Rate::bits(transfer.rate)
        );
    }
    let lent = status.lent;
    out += &format!(
        "\nLent since the start: {} down, {} up, {} tunnels open\n",
        ByteSize(lent.down),
        ByteSize(lent.up),
        lent.tunnels
    );
    out
}

#[cfg(test)]
mod tests {
    use crate::api::{Device, Lane, Lent, Peer, Progress};
    use crate::types::UplinkKind;

    use super::*;

    #[test]
    fn the_status_names_every_peer_lane_and_transfer() {
        let status = Status {
            version: "0.1.0".into(),
            device: Device {
                id: "ab".repeat(32),
                name: "desk".into(),
                port: 7436,
            },
            peers: vec![Peer {
                id: "cd".repeat(32),
                name: "kitchen-pi".into(),
                address: "10.77.0.2:7436".into(),
                rtt_ms: 0.4,
                uplinks: vec!["wwan0".into()],
            }],
            lanes: vec![Lane {
                owner: "kitchen-pi".into(),
                uplink: "wwan0".into(),
                lent: true,
                kind: UplinkKind::Cellular,
                metered: true,
                rate: Some(20_000_000),
            }],
            transfers: vec![Progress {
                name: Some("big.iso".into()),
                total: Some(4 << 20),
                done: 1 << 20,
                ..Progress::default()
            }],
            lent: Lent {
                tunnels: 1,
                down: 3 << 20,
                up: 9,
            },
        };
        let text = text(&status);
        for expected in [
            "desk (abababab)",
            "1 peer:",
            "kitchen-pi",
            "lends wwan0",
            "20.0 Mbit/s  metered",
            "big.iso: 1.0 MiB of 4.0 MiB",
            "3.0 MiB down",
        ] {
            assert!(text.contains(expected), "`{expected}` is missing in:\n{text}");
        }
    }
}
