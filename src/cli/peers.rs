//! `tributary peers`: who is of the household, who is only a neighbour, who is blocked, and what each of them lends.

use std::process::ExitCode;
use std::time::Duration;

use console::{Alignment, pad_str};
use tokio_util::sync::CancellationToken;

use crate::api::convert::DAEMON;
use crate::api::{ClientError, Household, Known, Named, Reply, Request};
use crate::trust::Tier;

use super::args::{self, Common};
use super::trust::{Refused, ask};

/// The widest a name is shown.
const MAX_NAME: usize = 24;

pub(super) async fn run(common: &Common, options: &args::Peers, stop: CancellationToken) -> ExitCode {
    match ask(common, &Request::Peers, stop).await {
        // Plain data without maps that could fail.
        Ok(Reply::Peers(household)) if options.json => {
            println!("{}", serde_json::to_string(&household).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Ok(Reply::Peers(household)) => {
            print!("{}", text(&household));
            ExitCode::SUCCESS
        }
        Ok(_) => Refused::Daemon(DAEMON, ClientError::Malformed.to_string()).code(),
        Err(refused) => refused.code(),
    }
}

fn text(household: &Household) -> String {
    let mut text = format!("{}, this device\n", household.device);
    for (tier, title, none) in [
        (
            Tier::Member,
            "Members of the household",
            "none yet: `tributary invite` and `tributary approve` let them in",
        ),
        (
            Tier::Neighbour,
            "Neighbours: they joined by themselves, and get only what cannot hurt",
            "",
        ),
        (Tier::Blocked, "Blocked", ""),
    ] {
        let of_tier = |known: &&Known| known.tier == tier;
        let mut those = household.peers.iter().filter(of_tier).peekable();
        if those.peek().is_none() && none.is_empty() {
            continue;
        }
        text += &format!("\n{title}\n");
        if those.peek().is_none() {
            text += &format!("  {none}\n");
        }
        for known in those {
            text += &line(known, &household.device);
        }
    }
    text
}

/// Those who could be approved, those who ask first.
pub(super) fn candidates(household: &Household) -> String {
    let mut those: Vec<&Known> = household
        .peers
        .iter()
        .filter(|known| known.linked && (known.tier == Tier::Neighbour || known.asks))
        .collect();
    those.sort_by_key(|known| !known.asks);
    if those.is_empty() {
        return "No neighbour is here: nobody is to be approved. `tributary peers` lists the members.\n"
            .into();
    }
    let lines: String = those.iter().map(|known| line(known, &household.device)).collect();
    format!(
        "Neighbours\n{lines}\nRun `tributary approve DEVICE`, with one's name or id, here and on that device, and compare the codes.\n"
    )
}

fn line(known: &Known, device: &Named) -> String {
    let named = known.named();
    let name = if known.name.is_empty() {
        "(no name)"
    } else {
        &known.name
    };
    let mut facts = vec![if known.linked {
        let rtt = known.rtt_ms.map(|ms| format!(", {ms:.1} ms")).unwrap_or_default();
        format!("linked{rtt}")
    } else if let Some(ago) = known.last_seen {
        format!(
            "last seen {} ago",
            about(Duration::from_secs_f64(ago.clamp(0.0, 1e9)))
        )
    } else {
        "not linked".into()
    }];
    if known.asks {
        facts.push("asks to be approved".into());
    }
    if !known.vouched_by.is_empty() {
        let by = |by: &Named| match by {
            by if by.id == device.id => "this device".to_owned(),
            by if by.name.is_empty() => by.short().to_owned(),
            by => by.name.clone(),
        };
        let by: Vec<String> = known.vouched_by.iter().map(by).collect();
        facts.push(format!("vouched for by {}", by.join(", ")));
        if !known.may_vouch {
            facts.push("may not vouch".into());
        }
    }
    if !known.uplinks.is_empty() {
        facts.push(format!("lends {}", known.uplinks.join(", ")));
    }
    let name = pad_str(name, MAX_NAME, Alignment::Left, Some("…"));
    format!("  {name}  {}  {}\n", named.short(), facts.join("; "))
}

fn about(time: Duration) -> String {
    match time.as_secs() {
        s if s < 120 => format!("{s} s"),
        s if s < 7200 => format!("{} min", s / 60),
        s if s < 172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str, tier: Tier) -> Known {
        Known {
            id: format!("{:0<64}", name.len()),
            name: name.into(),
            tier,
            linked: true,
            address: None,
            rtt_ms: Some(0.31),
            last_seen: None,
            vouched_by: vec![],
            may_vouch: false,
            uplinks: vec!["eth0".into()],
            asks: false,
        }
    }

    fn household(peers: Vec<Known>) -> Household {
        let device = Named {
            name: "ann".into(),
            id: "f".repeat(64),
        };
        Household { device, peers }
    }

    #[test]
    fn the_list_says_who_is_what_and_by_whom() {
        let mut member = known("kitchen-pi", Tier::Member);
        member.vouched_by = vec![household(vec![]).device];
        (member.linked, member.last_seen) = (false, Some(7300.0));
        let text = text(&household(vec![member, known("phone", Tier::Neighbour)]));
        for expected in [
            "ann (ffffffff), this device",
            "last seen 2 h ago; vouched for by this device; may not vouch; lends eth0",
            "Neighbours",
            "linked, 0.3 ms",
        ] {
            assert!(text.contains(expected), "`{expected}` is missing in:\n{text}");
        }
        assert!(!text.contains("Blocked"), "{text}");
    }

    #[test]
    fn those_who_ask_come_first_and_members_are_no_candidates() {
        let mut asks = known("phone", Tier::Neighbour);
        asks.asks = true;
        let text = candidates(&household(vec![
            known("kitchen-pi", Tier::Member),
            known("tv", Tier::Neighbour),
            asks,
        ]));
        assert!(
            !text.contains("kitchen-pi") && text.find("phone") < text.find("tv"),
            "{text}"
        );
        assert!(candidates(&household(vec![])).contains("No neighbour"));
    }
}
