//! What there is to pool: lines, whether they reach the internet, and names.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::super::Check;
use super::super::facts::{Lines, Probe};
use super::{count, list};

/// Each file's first connection waits for a name.
const SLOW: Duration = Duration::from_secs(1);
const ANOTHER_LINE: &str =
    "Add a line to any device that runs tributary: a phone by USB, an LTE stick, another router's Wi-Fi";

pub(super) fn lines(lines: &Lines) -> Check {
    let name = "lines";
    let own = lines.own.iter().map(|w| format!("this device's {}", w.uplink));
    let lent = lines.lent.iter().map(|w| format!("{}'s {}", w.owner, w.uplink));
    let ways = list(own.chain(lent));
    let ids = lines.own.iter().map(|w| w.line);
    let named = lines.lent.iter().filter_map(|w| w.line);
    let distinct: BTreeSet<_> = ids.chain(named).collect();
    let number = distinct.len() + lines.lent.iter().filter(|w| w.line.is_none()).count();
    let ways_out = lines.own.len() + lines.lent.len();
    let check = match (number, ways_out) {
        (0, _) => Check::problem(
            name,
            "no way out: this device has no default route, and no peer lends one",
            "There is nothing to download over.",
        )
        .advise("See whether there is a line beginning with default: ip route")
        .advise("Or run tributary on a device of this LAN that has a line"),
        (1, 1) => Check::problem(
            name,
            format!("1 line in the whole household: {ways}"),
            "Pooling cannot make anything faster here: there is nothing to add to it.",
        )
        .advise(ANOTHER_LINE),
        (1, _) => Check::problem(
            name,
            format!(
                "{}, but they end in the same line: {ways}",
                count(ways_out, "way") + " out"
            ),
            "Pooling cannot make anything faster here: they share one router's speed.",
        )
        .advise(ANOTHER_LINE),
        _ => Check::fine(name, format!("{}: {ways}", count(number, "line"))),
    };
    kept_back(check, lines)
}

/// Adds what this device has and does not lend.
fn kept_back(mut check: Check, lines: &Lines) -> Check {
    let metered: Vec<&str> = own(lines, |metered, lent| metered && !lent);
    let dead_end: Vec<&str> = own(lines, |metered, lent| !metered && !lent);
    let mut means = Vec::new();
    if !metered.is_empty() {
        let who = list(&metered);
        means.push(format!("Counted as metered and so not lent to peers: {who}."));
        let first = metered.first().copied().unwrap_or_default();
        check = check.advise(format!(
            "If its bytes cost nothing, put at the top of tributary.toml: uplink = [{{ interface = \"{first}\", metered = \
             false }}]"
        ));
    }
    if !dead_end.is_empty() {
        let who = list(&dead_end);
        means.push(format!(
            "Not lent to peers: {who} (kept back, or without a router behind it)."
        ));
    }
    if means.is_empty() {
        return check;
    }
    let means = check.means.take().into_iter().chain(means);
    Check {
        means: Some(means.collect::<Vec<_>>().join(" ")),
        verdict: check.verdict.max(super::super::Verdict::Note),
        ..check
    }
}

fn own(lines: &Lines, which: impl Fn(bool, bool) -> bool) -> Vec<&str> {
    let ways = lines.own.iter().filter(|w| which(w.metered, w.lent));
    ways.map(|w| w.uplink.as_str()).collect()
}

pub(super) fn uplinks(probe: &Probe) -> Check {
    let name = "uplinks";
    let Some(host) = &probe.host else {
        return Check::note(
            name,
            "not tried (--offline)",
            "Whether they reach the internet is not known.",
        );
    };
    let tried: Vec<_> = probe
        .uplinks
        .iter()
        .filter_map(|t| Some((&t.uplink, t.result.as_ref()?)))
        .collect();
    if probe.uplinks.is_empty() {
        return Check::fine(name, "this device has none of its own");
    }
    if tried.is_empty() {
        return Check::note(
            name,
            format!(
                "{} cannot be tried: {host} has no address here (see names)",
                list(probe.uplinks.iter().map(|u| &u.uplink))
            ),
            "Whether they reach the internet is not known.",
        )
        .advise("Try an address instead of a name: tributary doctor --probe ADDRESS");
    }
    let works = tried.iter().filter_map(|(uplink, result)| {
        let took = result.as_ref().ok()?;
        Some(format!("{uplink} in {} ms", took.as_millis()))
    });
    let works: Vec<String> = works.collect();
    let fails: Vec<_> = tried
        .iter()
        .filter_map(|(uplink, r)| Some((*uplink, r.as_ref().err()?)))
        .collect();
    let reached = format!("reached {host}:443 by {}", list(&works));
    let Some((first, _)) = fails.first() else {
        return Check::fine(name, reached);
    };
    let failed = list(fails.iter().map(|(uplink, why)| format!("{uplink} ({why})")));
    let found = if works.is_empty() {
        format!("{host}:443 cannot be reached by {failed}")
    } else {
        format!("{host}:443 cannot be reached by {failed}; {reached}")
    };
    let means = if works.is_empty() {
        "No way out of this device works now, or that host alone is down."
    } else {
        "What does not reach the internet brings nothing, although the system lists it as a way out."
    };
    Check::problem(name, found, means)
        .advise("Look at its modem, router or SIM card: is it online, is the contract's volume used up?")
        .advise(format!("Try it alone: curl --interface {first} https://{host}/"))
}

pub(super) fn names(probe: &Probe) -> Check {
    let name = "names";
    let (Some(host), Some(resolved)) = (&probe.host, &probe.resolved) else {
        return Check::note(
            name,
            "not tried (--offline)",
            "Whether names are resolved is not known.",
        );
    };
    if host.parse::<IpAddr>().is_ok() {
        return Check::note(
            name,
            format!("not tried: {host} is no name"),
            "Whether names are resolved is not known.",
        );
    }
    let took = resolved.took.as_millis();
    match &resolved.answer {
        Ok(ips) if resolved.took < SLOW => {
            Check::fine(name, format!("{host} is {}, found in {took} ms", list(ips)))
        }
        Ok(ips) => Check::note(
            name,
            format!("{host} is {}, found in {took} ms", list(ips)),
            "Every new connection may wait so long; often the first name server does not answer and the second does.",
        )
        .advise("See which are asked, the slow one first: cat /etc/resolv.conf"),
        Err(why) => Check::problem(
            name,
            format!("{host} is not found: {why}"),
            "Without names nothing can be downloaded by this device, nor by others through it.",
        )
        .advise("See which name servers are asked: cat /etc/resolv.conf; resolvectl status")
        .advise(format!("Try one by hand: nslookup {host} 9.9.9.9")),
    }
}

#[cfg(test)]
mod tests {
    use crate::types::LineId;

    use super::super::super::Verdict;
    use super::super::super::facts::{LentWay, OwnWay, Resolved, Tried};
    use super::*;

    fn own_way(uplink: &str, line: u8) -> OwnWay {
        OwnWay {
            uplink: uplink.into(),
            metered: false,
            lent: true,
            line: LineId([line; 8]),
        }
    }

    fn lent_way(owner: &str, line: Option<u8>) -> LentWay {
        LentWay {
            owner: owner.into(),
            uplink: "eth0".into(),
            line: line.map(|l| LineId([l; 8])),
        }
    }

    fn of(own: Vec<OwnWay>, lent: Vec<LentWay>) -> Check {
        lines(&Lines { own, lent })
    }

    #[test]
    fn two_lines_are_fine_whoever_they_belong_to() {
        let check = of(vec![own_way("eth0", 1)], vec![lent_way("kitchen-pi", Some(2))]);
        assert_eq!(check.verdict, Verdict::Fine);
        assert_eq!(check.found, "2 lines: this device's eth0 and kitchen-pi's eth0");
        assert_eq!(
            of(vec![own_way("a", 1), own_way("b", 2)], vec![]).verdict,
            Verdict::Fine
        );
        let borrowed = of(vec![], vec![lent_way("x", Some(1)), lent_way("y", Some(2))]);
        assert_eq!(borrowed.verdict, Verdict::Fine);
        assert_eq!(
            of(vec![own_way("a", 1)], vec![lent_way("x", None)]).verdict,
            Verdict::Fine
        );
    }

    #[test]
    fn one_line_makes_nothing_faster_however_many_devices_share_it() {
        for (check, expected) in [
            (
                of(vec![own_way("eth0", 1)], vec![]),
                "1 line in the whole household",
            ),
            (of(vec![], vec![lent_way("x", Some(1))]), "x's eth0"),
            (
                of(
                    vec![own_way("eth0", 1)],
                    vec![lent_way("x", Some(1)), lent_way("y", Some(1))],
                ),
                "3 ways out, but they end in the same line",
            ),
        ] {
            assert_eq!(check.verdict, Verdict::Problem);
            assert!(check.found.contains(expected), "{}", check.found);
            assert!(check.means.unwrap().contains("cannot make anything faster here"));
            assert!(!check.advice.is_empty());
        }
    }

    #[test]
    fn no_way_out_at_all_is_a_problem_of_its_own() {
        let check = of(vec![], vec![]);
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(check.found.contains("no default route"));
    }

    #[test]
    fn a_metered_uplink_is_noted_with_how_to_lend_it() {
        let stick = OwnWay {
            metered: true,
            lent: false,
            ..own_way("wwan0", 2)
        };
        let check = of(vec![own_way("eth0", 1), stick], vec![]);
        assert_eq!(check.verdict, Verdict::Note);
        assert!(check.found.starts_with("2 lines"));
        assert!(check.means.unwrap().contains("not lent to peers: wwan0"));
        assert!(check.advice[0].contains("uplink = [{ interface = \"wwan0\", metered = false }]"));
    }

    #[test]
    fn an_uplink_without_a_router_is_noted_and_does_not_hide_a_problem() {
        let stub = OwnWay {
            lent: false,
            ..own_way("eth1", 1)
        };
        let check = of(vec![stub], vec![]);
        assert_eq!(check.verdict, Verdict::Problem);
        let means = check.means.unwrap();
        assert!(
            means.contains("faster here") && means.contains("Not lent to peers: eth1"),
            "{means}"
        );
    }

    fn tried(results: &[(&str, Option<Result<u64, &str>>)]) -> Check {
        let tried = results.iter().map(|(uplink, result)| Tried {
            uplink: (*uplink).into(),
            result: result.map(|r| r.map(Duration::from_millis).map_err(str::to_owned)),
        });
        uplinks(&Probe {
            host: Some("example.com".into()),
            resolved: None,
            uplinks: tried.collect(),
        })
    }

    #[test]
    fn each_uplink_that_reaches_nothing_is_named_with_why() {
        let check = tried(&[("eth0", Some(Ok(12))), ("wwan0", Some(Err("no answer in 3 s")))]);
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(
            check
                .found
                .contains("cannot be reached by wwan0 (no answer in 3 s)")
        );
        assert!(check.found.contains("reached example.com:443 by eth0 in 12 ms"));
        assert!(check.advice[1].contains("curl --interface wwan0"));
        let check = tried(&[("eth0", Some(Ok(12)))]);
        assert_eq!(check.verdict, Verdict::Fine);
        let check = tried(&[("eth0", Some(Err("x")))]);
        assert!(check.means.unwrap().contains("No way out of this device works"));
    }

    #[test]
    fn what_could_not_be_tried_is_no_verdict() {
        let check = tried(&[("eth0", None)]);
        assert_eq!(check.verdict, Verdict::Note);
        assert!(check.advice[0].contains("--probe ADDRESS"));
        assert_eq!(tried(&[]).verdict, Verdict::Fine);
        for check in [uplinks(&Probe::default()), names(&Probe::default())] {
            assert_eq!(check.verdict, Verdict::Note);
            assert!(check.found.contains("--offline"));
        }
    }

    #[test]
    fn names_that_are_slow_are_noted_and_such_that_fail_are_a_problem() {
        let with = |ms, answer: Result<&str, &str>| {
            names(&Probe {
                host: Some("example.com".into()),
                resolved: Some(Resolved {
                    took: Duration::from_millis(ms),
                    answer: answer.map(|ip| vec![ip.parse().unwrap()]).map_err(str::to_owned),
                }),
                uplinks: vec![],
            })
        };
        assert_eq!(
            with(20, Ok("192.0.2.1")).found,
            "example.com is 192.0.2.1, found in 20 ms"
        );
        assert_eq!(with(20, Ok("192.0.2.1")).verdict, Verdict::Fine);
        assert_eq!(with(1500, Ok("192.0.2.1")).verdict, Verdict::Note);
        let address = Probe {
            host: Some("192.0.2.1".into()),
            resolved: Some(Resolved {
                took: Duration::ZERO,
                answer: Ok(vec![[192, 0, 2, 1].into()]),
            }),
            uplinks: vec![],
        };
        assert!(names(&address).found.contains("192.0.2.1 is no name"));
        let check = with(2500, Err("no answer"));
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(check.advice[0].contains("/etc/resolv.conf"));
    }
}
