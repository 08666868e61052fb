//! The text of `tributary status`: what to expect on top, then who is there, each lane with its state, what is running.
//!
//! Invariant: no line is wider than asked, whatever names peers and interfaces have and whatever script they are in.

use std::fmt::Write;
use std::time::Duration;

use console::{Alignment, measure_text_width, pad_str, truncate_str};

use crate::api::{Lane, LaneProgress, Peer, Progress, Savings, Status};
use crate::types::{ByteSize, Rate};

/// What everything fits into: a terminal's usual width.
pub(super) const USUAL_WIDTH: usize = 80;
/// Below this, columns make no sense any more; lines are cut.
const LEAST_WIDTH: usize = 40;
/// The widest an owner's name is shown.
const MAX_OWNER: usize = 18;
/// As long as Linux lets an interface's name be.
const MAX_UPLINK: usize = 15;
/// `999.9 Mbit/s`, `not measured`.
const RATE: usize = 12;

/// The whole status. `clock` tells the time of day so long from now.
pub(super) fn text(status: &Status, width: usize, clock: impl Fn(Duration) -> String) -> String {
    let mut page = Page::new(width);
    let device = &status.device;
    page.line(&format!(
        "{} ({}), tributary {}, UDP port {}",
        short(&device.name, MAX_OWNER),
        device.id.get(..8).unwrap_or_default(),
        status.version,
        device.port
    ));
    page.wrapped("", &status.forecast.text);
    for warning in &status.warnings {
        page.line("");
        page.wrapped("Warning: ", warning);
    }
    page.line("");
    peers(&mut page, &status.peers);
    page.line("");
    lanes(&mut page, status, &clock);
    for transfer in &status.transfers {
        page.line("");
        running(&mut page, transfer, &clock);
    }
    page.line("");
    let lent = status.lent;
    let open = if lent.tunnels == 1 { "tunnel" } else { "tunnels" };
    page.line(&format!(
        "Lent since the start: {} down, {} up, {} {open} open",
        ByteSize(lent.down),
        ByteSize(lent.up),
        lent.tunnels
    ));
    if status.savings != Savings::default() {
        let all = savings(&status.savings);
        all.lines().for_each(|line| page.wrapped("", line));
    }
    page.text
}

/// What the household brought, in two lines.
pub(super) fn savings(savings: &Savings) -> String {
    let Savings {
        from_members,
        over_uplinks,
        served,
    } = *savings;
    let percent = match from_members.saturating_add(over_uplinks) {
        0 => String::new(),
        all => format!(
            " ({:.0} % of WAN saved)",
            from_members as f64 * 100.0 / all as f64
        ),
    };
    format!(
        "From members: {}, beside {} over lines{percent}\nTo members: {}\n",
        ByteSize(from_members),
        ByteSize(over_uplinks),
        ByteSize(served)
    )
}

fn peers(page: &mut Page, peers: &[Peer]) {
    page.line(&match peers.len() {
        0 => "No other peer on this LAN yet".to_owned(),
        1 => "1 peer".to_owned(),
        n => format!("{n} peers"),
    });
    let owner = widest(peers.iter().map(|p| p.name.as_str()), MAX_OWNER);
    for peer in peers {
        let lends = if peer.uplinks.is_empty() {
            "nothing".to_owned()
        } else {
            peer.uplinks.join(", ")
        };
        page.wrapped(
            &format!("  {}  {:>6.1} ms  ", column(&peer.name, owner), peer.rtt_ms),
            &format!("lends {lends}; {}", peer.address),
        );
    }
}

fn lanes(page: &mut Page, status: &Status, clock: &impl Fn(Duration) -> String) {
    page.line("Lanes");
    if status.lanes.is_empty() {
        page.wrapped(
            "  ",
            "none: this device has no default route, and no peer lends one",
        );
    }
    let owner = widest(status.lanes.iter().map(|l| l.owner.as_str()), MAX_OWNER);
    let uplink = widest(status.lanes.iter().map(|l| l.uplink.as_str()), MAX_UPLINK);
    for lane in &status.lanes {
        let rate = lane
            .rate
            .map_or_else(|| "not measured".to_owned(), |r| Rate::bits(r).to_string());
        page.wrapped(
            &format!(
                "  {}  {}  {rate:>RATE$}  ",
                column(&lane.owner, owner),
                column(&lane.uplink, uplink)
            ),
            &standing(lane, status, clock),
        );
    }
}

/// What a lane does, or why it does nothing.
fn standing(lane: &Lane, status: &Status, clock: &impl Fn(Duration) -> String) -> String {
    let same = |l: &LaneProgress| {
        !l.household && (&l.owner, &l.uplink, l.lent) == (&lane.owner, &lane.uplink, lane.lent)
    };
    let mut lanes = status.transfers.iter().flat_map(|t| &t.lanes);
    let state = match &lane.why {
        Some(why) => until(why, lane.parked_for, clock),
        None if lanes.any(|l| same(l) && l.state == "active") => "in use".to_owned(),
        None => "ready".to_owned(),
    };
    if lane.metered {
        format!("{state}; metered")
    } else {
        state
    }
}

fn until(why: &str, seconds: Option<f64>, clock: &impl Fn(Duration) -> String) -> String {
    let wait = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    wait.map_or_else(|| why.to_owned(), |wait| format!("{why} until {}", clock(wait)))
}

fn running(page: &mut Page, transfer: &Progress, clock: &impl Fn(Duration) -> String) {
    let far = match transfer.total.filter(|&t| t > 0) {
        Some(total) => format!(
            "{:.0} % of {}",
            transfer.done as f64 * 100.0 / total as f64,
            ByteSize(total)
        ),
        None => ByteSize(transfer.done).to_string(),
    };
    let end = format!(": {far}, {}", Rate::bits(transfer.rate));
    let (doing, asking) = if transfer.upload {
        ("Uploading", "(asking the server)")
    } else {
        ("Downloading", "(asking the origin)")
    };
    let name = transfer.name.as_deref().unwrap_or(asking);
    let room = page.width.saturating_sub(doing.len() + 1 + end.len());
    page.line(&format!("{doing} {}{end}", short(name, room)));
    let owner = widest(transfer.lanes.iter().map(|l| l.owner.as_str()), MAX_OWNER);
    let uplink = widest(transfer.lanes.iter().map(|l| l.uplink.as_str()), MAX_UPLINK);
    for lane in &transfer.lanes {
        let state = match &lane.why {
            Some(why) => until(why, lane.parked_for, clock),
            None => lane.state.clone(),
        };
        page.wrapped(
            &format!(
                "  {}  {}  {:>RATE$}  {:>9}  ",
                column(&lane.owner, owner),
                column(&lane.uplink, uplink),
                Rate::bits(lane.rate).to_string(),
                ByteSize(lane.bytes).to_string()
            ),
            &state,
        );
    }
}

/// Lines of at most a width.
struct Page {
    text: String,
    /// What things are laid out for.
    width: usize,
    /// Where lines are cut.
    cut: usize,
}

impl Page {
    fn new(width: usize) -> Self {
        Self {
            text: String::new(),
            width: width.max(LEAST_WIDTH),
            cut: width,
        }
    }

    fn line(&mut self, line: &str) {
        // A string takes whatever is written.
        let _ = writeln!(self.text, "{}", short(line.trim_end(), self.cut));
    }

    /// `text` behind `before`, its further lines below its first.
    fn wrapped(&mut self, before: &str, text: &str) {
        // What is left of a narrow window is too little for words: then they get a line of their own.
        let indent = measure_text_width(before);
        let indent = if self.width < indent + LEAST_WIDTH / 3 {
            4
        } else {
            indent
        };
        let mut line = before.to_owned();
        let mut empty = indent == measure_text_width(before);
        for word in text.split(' ') {
            if !empty && measure_text_width(&line) + 1 + measure_text_width(word) > self.width {
                self.line(&line);
                line = " ".repeat(indent);
                empty = true;
            }
            if !empty {
                line.push(' ');
            }
            line.push_str(word);
            empty = false;
        }
        self.line(&line);
    }
}

fn widest<'a>(names: impl Iterator<Item = &'a str>, most: usize) -> usize {
    names.map(measure_text_width).max().unwrap_or_default().min(most)
}

fn column(text: &str, width: usize) -> String {
    pad_str(text, width, Alignment::Left, Some("…")).into_owned()
}

fn short(text: &str, width: usize) -> String {
    truncate_str(text, width, "…").into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::api::{Device, Forecast, Lent};
    use crate::types::UplinkKind;

    use super::*;

    fn lane(owner: &str, uplink: &str, lent: bool, mbit: Option<u64>) -> Lane {
        Lane {
            owner: owner.into(),
            uplink: uplink.into(),
            lent,
            kind: UplinkKind::Wired,
            metered: false,
            rate: mbit.map(|m| m * 1_000_000),
            line: "00".repeat(8),
            used: true,
            why: None,
            parked_for: None,
            failures: None,
        }
    }

    fn part(owner: &str, uplink: &str, rate: u64, bytes: u64) -> LaneProgress {
        LaneProgress {
            owner: owner.into(),
            uplink: uplink.into(),
            lent: owner != "this device",
            rate,
            bytes,
            state: "active".into(),
            why: None,
            parked_for: None,
            failures: None,
            household: false,
        }
    }

    fn household() -> Status {
        let peer = |name: &str, address: &str, uplinks: &[&str]| Peer {
            id: "cd".repeat(32),
            name: name.into(),
            address: address.into(),
            tier: crate::trust::Tier::Neighbour,
            rtt_ms: 0.4,
            uplinks: uplinks.iter().map(|u| (*u).into()).collect(),
        };
        let shared = Lane {
            used: false,
            why: Some("shares this device's line".into()),
            ..lane("kitchen-pi", "eth0", true, Some(19))
        };
        let parked = Lane {
            why: Some("parked after 3 failures".into()),
            parked_for: Some(90.0),
            failures: Some(3),
            metered: true,
            ..lane("attic", "wwan0", true, None)
        };
        Status {
            version: "0.2.0".into(),
            device: Device {
                id: "ab".repeat(32),
                name: "desk".into(),
                port: 7436,
            },
            peers: vec![
                peer("kitchen-pi", "10.77.0.2:7436", &["eth0"]),
                peer("attic", "[fe80::1234:5678:9abc:def0%2]:7436", &["wlan0", "wwan0"]),
                peer("listener", "10.77.0.9:7436", &[]),
            ],
            lanes: vec![
                lane("this device", "enp3s0", false, Some(20)),
                lane("attic", "wlan0", true, Some(12)),
                shared,
                parked,
            ],
            transfers: vec![Progress {
                name: Some("debian-13-netinst-with-a-name-that-does-not-end.iso".into()),
                total: Some(400 << 20),
                done: 100 << 20,
                rate: 31_000_000,
                lanes: vec![
                    part("this device", "enp3s0", 19_000_000, 70 << 20),
                    part("attic", "wlan0", 12_000_000, 30 << 20),
                    LaneProgress {
                        why: Some(
                            "the origin may tie the link to one address: answered 403 Forbidden here".into(),
                        ),
                        state: "ineligible: the origin".into(),
                        ..part("attic", "wwan0", 0, 0)
                    },
                ],
                upload: false,
            }],
            lent: Lent {
                tunnels: 1,
                down: 3 << 20,
                up: 9,
            },
            forecast: Forecast {
                text: "4 devices, 2 lines: expect up to 32 Mbit/s, 1.6x this device alone".into(),
                ..Forecast::default()
            },
            savings: Savings {
                from_members: 95 << 30,
                over_uplinks: 5 << 30,
                served: 2 << 30,
            },
            warnings: vec![
                "another device has this device's key: remove identity.key from one of the two and start it again".into(),
            ],
        }
    }

    #[test]
    fn the_status_says_what_to_expect_who_is_there_and_why_each_idle_lane_is() {
        let text = text(&household(), USUAL_WIDTH, |_| "10:42".into());
        let expected = "\
desk (abababab), tributary 0.2.0, UDP port 7436
4 devices, 2 lines: expect up to 32 Mbit/s, 1.6x this device alone

Warning: another device has this device's key: remove identity.key from one of
         the two and start it again

3 peers
  kitchen-pi     0.4 ms  lends eth0; 10.77.0.2:7436
  attic          0.4 ms  lends wlan0, wwan0; [fe80::1234:5678:9abc:def0%2]:7436
  listener       0.4 ms  lends nothing; 10.77.0.9:7436

Lanes
  this device  enp3s0   20.0 Mbit/s  in use
  attic        wlan0    12.0 Mbit/s  in use
  kitchen-pi   eth0     19.0 Mbit/s  shares this device's line
  attic        wwan0   not measured  parked after 3 failures until 10:42;
                                     metered

Downloading debian-13-netinst-with-a-name-that-do…: 25 % of 400 MiB, 31.0 Mbit/s
  this device  enp3s0   19.0 Mbit/s   70.0 MiB  active
  attic        wlan0    12.0 Mbit/s   30.0 MiB  active
  attic        wwan0        0 bit/s        0 B  the origin may tie the link to
                                                one address: answered 403
                                                Forbidden here

Lent since the start: 3.0 MiB down, 9 B up, 1 tunnel open
From members: 95.0 GiB, beside 5.0 GiB over lines (95 % of WAN saved)
To members: 2.0 GiB
";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_upload_is_called_one() {
        let mut status = household();
        status.transfers[0].upload = true;
        let told = text(&status, USUAL_WIDTH, |_| String::new());
        assert!(
            told.contains("Uploading debian-13") && !told.contains("Downloading"),
            "{told}"
        );
        status.transfers[0].name = None;
        let told = text(&status, USUAL_WIDTH, |_| String::new());
        assert!(told.contains("Uploading (asking the server): 25 %"), "{told}");
    }

    #[test]
    fn a_device_alone_is_told_so() {
        let alone = Status {
            peers: vec![],
            lanes: vec![],
            transfers: vec![],
            ..household()
        };
        let text = text(&alone, USUAL_WIDTH, |_| String::new());
        assert!(text.contains("No other peer on this LAN yet"), "{text}");
        assert!(text.contains("no default route"), "{text}");
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_asked(width in 5usize..200, name in "\\PC{0,70}", why in "[a-z漢 ]{0,120}") {
            let mut status = household();
            status.device.name.clone_from(&name);
            status.peers[0].name.clone_from(&name);
            status.peers[1].uplinks = vec![name.clone(); 16];
            status.lanes[1].owner.clone_from(&name);
            status.lanes[1].why = Some(why.clone());
            status.lanes[2].uplink.clone_from(&name);
            status.transfers[0].name = Some(name.clone());
            status.transfers[0].lanes[0].owner = name;
            status.transfers[0].lanes[1].why = Some(why);
            for line in text(&status, width, |_| "10:42".into()).lines() {
                prop_assert!(measure_text_width(line) <= width, "{} > {width}: {line}", measure_text_width(line));
            }
        }
    }
}
