//! What is between this device and its peers: interfaces, the port, multicast, firewalls, access points.

use std::net::SocketAddr;

use crate::uplink::NotLan;

use super::super::Check;
use super::super::facts::{
    Asked, Firewall, Household, Lan, Multicast, MulticastFailure, Port, PortState, Reach, Source,
};
use super::{count, list};

const SECONDS: &str = "within 2 s";
const PEERS: &str = "peers";
const UNUSUAL_PORT: &str = "A firewall's rule for the usual port does not match, and whoever knows only this device's \
                            address looks at the usual port.";

pub(super) fn lan(lan: &Lan) -> Check {
    let name = "lan";
    if let Some(error) = &lan.error {
        return Check::problem(
            name,
            error.clone(),
            "Without the kernel's tables no uplink and no LAN is known.",
        )
        .advise("Let the service or container use AF_NETLINK sockets");
    }
    let others = lan.others.iter().filter(|(_, why)| *why != NotLan::Loopback);
    let others = others.map(|(name, why)| format!("{name} ({})", reason(*why)));
    let others: Vec<String> = others.collect();
    let beside = if others.is_empty() {
        String::new()
    } else {
        format!("; not used: {}", list(&others))
    };
    if !lan.used.is_empty() {
        let used = list(lan.used.iter().map(|(name, ip)| format!("{name} ({ip})")));
        return Check::fine(name, format!("peers are met on {used}{beside}"));
    }
    let means = "Peers can neither be found nor reached: this device has its own uplinks only, and lends them to nobody.";
    let check = Check::problem(
        name,
        format!("no interface on which peers could be met{beside}"),
        means,
    );
    if let Some(named) = &lan.named {
        return check.advise(format!(
            "The configuration names {}: see which there are (ip -br address), or remove [lan] interfaces",
            list(named)
        ));
    }
    let check = check.advise("Plug in the cable, or join the household's Wi-Fi");
    if others.is_empty() {
        check
    } else {
        check.advise(
            "If one of those is the household's after all: [lan] interfaces = [\"NAME\"] in tributary.toml",
        )
    }
}

const fn reason(why: NotLan) -> &'static str {
    match why {
        NotLan::Down => "down, or no cable",
        NotLan::Loopback => "loopback",
        NotLan::Plumbing => "a tunnel, or a container's network",
        NotLan::Cellular => "a mobile network",
        NotLan::NoMulticast => "cannot multicast",
        NotLan::Public => "a public address, so a provider's side",
        NotLan::NoAddress => "no private address",
        NotLan::Away => "another network than this device's home",
        NotLan::NotNamed => "not named in the configuration",
    }
}

pub(super) fn port(port: &Port) -> Check {
    let name = "port";
    let wanted = port.wanted;
    match &port.state {
        PortState::Free => Check::fine(name, format!("UDP port {wanted} is free")),
        PortState::Daemon(used) if *used == wanted => {
            Check::fine(name, format!("UDP port {wanted} is the daemon's"))
        }
        PortState::Daemon(used) => {
            let found = format!(
                "the daemon has UDP port {used}, because another program had {wanted} when it started"
            );
            let means = format!("Peers that hear it by mDNS find it all the same. {UNUSUAL_PORT}");
            elsewhere(Check::note(name, found, means), wanted)
        }
        PortState::TakenPerhapsByDaemon(user) => Check::fine(
            name,
            format!(
                "UDP port {wanted} is in use{}, by the daemon as it seems",
                of(user.as_ref())
            ),
        ),
        PortState::Taken(user) => {
            let found = format!(
                "UDP port {wanted} is taken by another program{}",
                of(user.as_ref())
            );
            let check = if port.fixed {
                let means = "The configuration names this port, so the daemon does not start.";
                Check::problem(name, found, means)
            } else {
                Check::note(
                    name,
                    found,
                    format!("A free port is taken instead, and announced. {UNUSUAL_PORT}"),
                )
            };
            elsewhere(check, wanted)
        }
        PortState::Refused(why) => Check::problem(
            name,
            format!("UDP port {wanted} cannot be opened: {why}"),
            "Without it there are no links with peers.",
        )
        .advise("Ports below 1024 need a privilege: choose a larger one, [lan] port in tributary.toml"),
    }
}

fn of(user: Option<&String>) -> String {
    user.map(|u| format!(" of user {u}")).unwrap_or_default()
}

fn elsewhere(check: Check, wanted: u16) -> Check {
    check
        .advise(format!(
            "See which program has it: sudo ss -ulpn 'sport = :{wanted}'"
        ))
        .advise("If it is another tributary of yours, stop one of them")
}

pub(super) fn multicast(interfaces: &[Multicast]) -> Check {
    let name = "multicast";
    if interfaces.is_empty() {
        return Check::note(name, "not tried: there is no LAN interface", "See lan.");
    }
    let mut all = Check::fine(name, String::new());
    let mut found = Vec::new();
    let mut means: Vec<String> = Vec::new();
    for interface in interfaces {
        let one = on_interface(interface);
        found.push(one.found);
        all.verdict = all.verdict.max(one.verdict);
        means.extend(one.means.filter(|m| !means.contains(m)));
        for step in one.advice {
            if !all.advice.contains(&step) {
                all.advice.push(step);
            }
        }
    }
    Check {
        found: found.join("; "),
        means: (!means.is_empty()).then(|| means.join(" ")),
        ..all
    }
}

fn on_interface(on: &Multicast) -> Check {
    let (name, interface) = ("multicast", &on.interface);
    let heard = match &on.heard {
        Ok(heard) => heard,
        Err(MulticastFailure::PortTaken) => {
            return Check::problem(
                name,
                format!("{interface}: another program has UDP port 5353 for itself"),
                "Peers cannot be found by mDNS from this device.",
            )
            .advise("See which: sudo ss -ulpn 'sport = :5353'")
            .advise(
                "If it is avahi: disallow-other-stacks=no in /etc/avahi/avahi-daemon.conf, then restart it",
            );
        }
        Err(MulticastFailure::Other(why)) => {
            return Check::problem(
                name,
                format!("{interface}: multicast cannot be sent or heard: {why}"),
                "Peers cannot be found by mDNS on it.",
            )
            .advise(format!(
                "See whether it is up and has MULTICAST: ip link show {interface}"
            ));
        }
    };
    if !heard.itself {
        return Check::problem(
            name,
            format!("{interface}: this device does not hear its own question"),
            "A firewall on this device drops mDNS (UDP port 5353), so peers are not heard either.",
        )
        .advise("With ufw: sudo ufw allow 5353/udp")
        .advise(
            "With firewalld: sudo firewall-cmd --permanent --add-service=mdns && sudo firewall-cmd --reload",
        );
    }
    if !on.unheard.is_empty() {
        let found = if heard.hosts == 0 {
            format!(
                "{interface}: {} there and was not heard {SECONDS}, nor was anybody else",
                are(&on.unheard)
            )
        } else {
            format!(
                "{interface}: {} there and was not heard {SECONDS}; {} heard",
                are(&on.unheard),
                were(heard.hosts)
            )
        };
        let means = "Multicast does not pass between these devices: new ones do not find each other, only those that met \
                     before or are named.";
        let check = if heard.hosts == 0 {
            Check::problem(name, found, means)
        } else {
            Check::note(
                name,
                found,
                "Some multicast gets lost on the way, as on a weak Wi-Fi.",
            )
        };
        let named = on.unheard.first().map(ToString::to_string).unwrap_or_default();
        return open_up(check).advise(format!(
            "Or name them, on one of each two: [lan] peers = [\"{named}\"] in tributary.toml"
        ));
    }
    if heard.hosts == 0 {
        return open_up(Check::note(
            name,
            format!("{interface}: nobody else was heard {SECONDS}"),
            "Either no other device there is switched on and speaks mDNS, or the access point or switch does not pass \
             multicast on.",
        ))
        .advise("Or name a peer by its address: [lan] peers = [\"192.168.1.7\"] in tributary.toml");
    }
    let peers = match heard.peers {
        0 => "none announces tributary".to_owned(),
        1 => "1 announces tributary".to_owned(),
        many => format!("{many} announce tributary"),
    };
    Check::fine(name, format!("{interface}: {} heard, {peers}", were(heard.hosts)))
}

fn open_up(check: Check) -> Check {
    check.advise(
        "In the access point's or switch's settings, let multicast pass: IGMP snooping off or with a querier, no multicast \
         filter, no isolation of clients",
    )
}

fn are(peers: &[std::net::IpAddr]) -> String {
    let verb = if peers.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", list(peers))
}

fn were(hosts: usize) -> String {
    let verb = if hosts == 1 { "was" } else { "were" };
    format!("{} {verb}", count(hosts, "other device"))
}

pub(super) fn peers(household: &Household) -> Check {
    if let Some(why) = &household.error {
        let means = "A daemon or a download would meet the same.";
        return Check::problem(PEERS, format!("could not be looked for: {why}"), means);
    }
    let kinds = [isolated, blocked, strange, named, waiting];
    if let Some(check) = kinds.iter().find_map(|kind| kind(household)) {
        return check;
    }
    if !household.linked.is_empty() {
        return Check::fine(PEERS, linked(household));
    }
    gone(household).unwrap_or_else(|| {
        Check::note(
            PEERS,
            "no other tributary was found",
            "This device has its own uplinks only. To pool, a second device with a line of its own is needed, or a second \
             line here.",
        )
        .advise("Start it on another device of this LAN: tributary run")
    })
}

fn linked(household: &Household) -> String {
    let peers = household.linked.as_slice();
    let names = peers
        .iter()
        .map(|p| format!("{} ({})", p.name, p.address.ip().to_canonical()));
    match peers {
        [] => "linked with nobody".to_owned(),
        _ => format!("linked with {}: {}", count(peers.len(), "peer"), list(names)),
    }
}

/// Those of whom `wanted` is so; `None` where it is so of nobody.
fn which(household: &Household, wanted: fn(&Asked) -> bool) -> Option<Vec<&Asked>> {
    let asked: Vec<&Asked> = household.asked.iter().filter(|a| wanted(a)).collect();
    (!asked.is_empty()).then_some(asked)
}

fn isolated(household: &Household) -> Option<Check> {
    let met = which(household, |a| a.source != Source::Neighbour)?;
    if household.lonely.is_empty() {
        return None;
    }
    let (on, met) = (list(&household.lonely), addresses(&met));
    let check = Check::problem(
        PEERS,
        format!(
            "{}; on {on} the router answers, {met} not even for its address",
            linked(household)
        ),
        "This looks like client isolation: the access point lets its clients speak with the internet and not with each \
         other. [lan] peers does not help. (Or all of those devices are switched off.)",
    );
    let step = "In the access point: switch off client isolation (also: AP isolation, guest network, privacy separator)";
    Some(
        check
            .advise(step)
            .advise("Or connect the devices by cable, or to the main network instead of the guests'"),
    )
}

fn blocked(household: &Household) -> Option<Check> {
    let blocked = which(household, |a| {
        a.source == Source::Heard && matches!(a.reach, Reach::Silent | Reach::Closed)
    })?;
    let port = blocked.first()?.address.port();
    let check = Check::problem(
        PEERS,
        format!(
            "{}; {}: announced by mDNS, and no answer to our packets",
            linked(household),
            addresses(&blocked)
        ),
        "A firewall on one of the two devices drops the links' packets. Both dial, so it is enough if one of them lets UDP in.",
    );
    Some(allow(check, &[], port, "on both"))
}

fn strange(household: &Household) -> Option<Check> {
    let (address, why) = household.asked.iter().find_map(|a| match &a.reach {
        Reach::NoLink(why) => Some((a.address, why)),
        _ => None,
    })?;
    let check = Check::problem(
        PEERS,
        format!(
            "{}; {address} answers, and yet there is no link: {why}",
            linked(household)
        ),
        "It is no tributary, or one of a version that does not understand this one.",
    );
    Some(check.advise("Compare the versions on both devices: tributary --version"))
}

fn named(household: &Household) -> Option<Check> {
    let mute = which(household, |a| {
        a.source == Source::Named && matches!(a.reach, Reach::Silent | Reach::Closed)
    })?;
    let found = format!(
        "{}; named in the configuration, and no answer: {}",
        linked(household),
        addresses(&mute)
    );
    Some(missing(Check::note(PEERS, found, whereabouts(&mute))))
}

fn waiting(household: &Household) -> Option<Check> {
    let waiting = which(household, |a| {
        a.source != Source::Neighbour && a.reach == Reach::Answers
    })?;
    let check = Check::note(
        PEERS,
        format!(
            "{}; {} answers and is not linked",
            linked(household),
            addresses(&waiting)
        ),
        "It has only just come, or is linked by another of its addresses; else the two do not understand each other.",
    );
    Some(check.advise("Run this again; if it stays so, compare the versions: tributary --version"))
}

fn gone(household: &Household) -> Option<Check> {
    let gone = which(household, |a| a.source == Source::Met)?;
    let found = format!("no answer from where peers were met before: {}", addresses(&gone));
    Some(missing(Check::note(PEERS, found, whereabouts(&gone))))
}

fn addresses(asked: &[&Asked]) -> String {
    list(asked.iter().map(|a| {
        let address = SocketAddr::new(a.address.ip().to_canonical(), a.address.port());
        match &a.interface {
            Some(interface) => format!("{address} on {interface}"),
            None => address.to_string(),
        }
    }))
}

/// What can be told of devices that should be peers and are silent.
fn whereabouts(asked: &[&Asked]) -> &'static str {
    let on = asked.iter().find(|a| a.there == Some(true));
    match on.map(|a| &a.reach) {
        None => "They are switched off, or have other addresses now.",
        Some(Reach::Closed) => {
            "The device is on, but says that nobody listens there: tributary does not run on it, or has another port."
        }
        Some(_) => {
            "The device is on, but that port is silent: a firewall on it drops UDP, or tributary does not run there."
        }
    }
}

fn missing(check: Check) -> Check {
    check
        .advise("On that device, see whether it runs and which port it has: tributary status")
        .advise("And run this there: tributary doctor")
}

pub(super) fn firewall(household: &Household, firewalls: &[Firewall], port: u16) -> Check {
    let name = "firewall";
    let linked = household.linked.len();
    if !household.inbound.is_empty() {
        return Check::fine(
            name,
            format!("lets peers in: {} came by itself", list(&household.inbound)),
        );
    }
    if household.by_daemon && linked > 0 {
        return Check::fine(name, format!("{} linked: packets pass", count(linked, "peer")));
    }
    if linked > 0 {
        let check = Check::note(
            name,
            format!("{} when asked; none came by itself {SECONDS}", answered(linked)),
            "A firewall on this device may keep peers out. It is enough that they let this device in, as long as they do.",
        );
        return allow(check, firewalls, port, "here");
    }
    if household.asked.iter().any(|a| a.source == Source::Heard) {
        let check = Check::note(
            name,
            "peers announce themselves, and none came in",
            "A firewall on this device or on theirs drops the links' packets (see peers).",
        );
        return allow(check, firewalls, port, "here");
    }
    let on: Vec<&str> = firewalls.iter().map(|f| f.name()).collect();
    if on.is_empty() {
        return Check::fine(
            name,
            "none seen; only a peer could try it from outside, and none is there",
        );
    }
    let check = Check::note(
        name,
        format!(
            "{} is on; whether it lets peers in only a peer could try, and none is there",
            list(&on)
        ),
        format!("Peers need UDP port {port} for links and 5353 for mDNS."),
    );
    allow(check, firewalls, port, "here")
}

fn answered(linked: usize) -> String {
    let verb = if linked == 1 { "answers" } else { "answer" };
    format!("{} {verb}", count(linked, "peer"))
}

impl Firewall {
    const fn name(self) -> &'static str {
        match self {
            Self::Ufw => "ufw",
            Self::Firewalld => "firewalld",
            Self::OpenWrt => "OpenWrt's firewall",
        }
    }
}

/// How to let UDP in, for the firewalls that are on, or the usual ones where none is known.
fn allow(mut check: Check, on: &[Firewall], port: u16, place: &str) -> Check {
    let usual = [Firewall::Ufw, Firewall::Firewalld, Firewall::OpenWrt];
    for firewall in if on.is_empty() { &usual } else { on } {
        let command = match firewall {
            Firewall::Ufw => format!("sudo ufw allow {port}/udp"),
            Firewall::Firewalld => {
                format!("sudo firewall-cmd --permanent --add-port={port}/udp && sudo firewall-cmd --reload")
            }
            Firewall::OpenWrt => {
                format!(
                    "Network > Firewall > Traffic Rules: accept UDP port {port} from zone lan to this device"
                )
            }
        };
        check = check.advise(format!("With {}, {place}: {command}", firewall.name()));
    }
    check
}

#[cfg(test)]
mod tests {
    use super::super::super::Verdict;
    use super::super::super::facts::{Heard, Linked};
    use super::*;

    fn fine(check: &Check) -> bool {
        check.verdict == Verdict::Fine && check.means.is_none() && check.advice.is_empty()
    }

    #[test]
    fn the_lan_interfaces_are_named_with_why_the_others_are_none() {
        let check = lan(&Lan {
            used: vec![("eth0".into(), [192, 168, 1, 7].into())],
            others: vec![
                ("lo".into(), NotLan::Loopback),
                ("wwan0".into(), NotLan::Cellular),
                ("docker0".into(), NotLan::Plumbing),
            ],
            ..Lan::default()
        });
        assert!(fine(&check));
        assert_eq!(
            check.found,
            "peers are met on eth0 (192.168.1.7); not used: wwan0 (a mobile network) and docker0 (a tunnel, or a \
             container's network)"
        );
    }

    #[test]
    fn without_a_lan_interface_each_one_says_why_it_is_none() {
        let down = Lan {
            others: vec![("eth0".into(), NotLan::Down)],
            ..Lan::default()
        };
        let check = lan(&down);
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(check.found.contains("eth0 (down, or no cable)"));
        assert!(check.advice[0].contains("cable") && check.advice[1].contains("[lan] interfaces"));
        let check = lan(&Lan {
            named: Some(vec!["eth7".into()]),
            ..Lan::default()
        });
        assert!(check.advice[0].contains("names eth7"));
        let check = lan(&Lan {
            error: Some("no netlink".into()),
            ..Lan::default()
        });
        assert_eq!(check.verdict, Verdict::Problem);
    }

    fn of_port(state: PortState, fixed: bool) -> Check {
        port(&Port {
            wanted: 7436,
            fixed,
            state,
        })
    }

    #[test]
    fn the_port_is_fine_where_it_is_free_or_the_daemons() {
        assert!(fine(&of_port(PortState::Free, false)));
        assert!(fine(&of_port(PortState::Daemon(7436), true)));
    }

    #[test]
    fn a_port_that_another_program_has_is_noted_and_one_that_was_asked_for_is_a_problem() {
        let taken = || PortState::Taken(Some("ann".into()));
        let check = of_port(taken(), false);
        assert_eq!(check.verdict, Verdict::Note);
        assert!(
            check
                .found
                .contains("7436 is taken by another program of user ann")
        );
        assert!(check.advice[0].contains("ss -ulpn 'sport = :7436'"));
        assert_eq!(of_port(taken(), true).verdict, Verdict::Problem);
        let check = of_port(PortState::Daemon(40123), false);
        assert!(check.verdict == Verdict::Note && check.found.contains("40123"));
        assert_eq!(
            of_port(PortState::Refused("no".into()), true).verdict,
            Verdict::Problem
        );
    }

    fn heard(itself: bool, hosts: usize, peers: usize, unheard: &[u8]) -> Multicast {
        Multicast {
            interface: "wlan0".into(),
            heard: Ok(Heard { itself, hosts, peers }),
            unheard: unheard.iter().map(|n| [10, 77, 0, *n].into()).collect(),
        }
    }

    #[test]
    fn multicast_is_fine_where_others_are_heard() {
        let check = multicast(&[heard(true, 3, 1, &[])]);
        assert!(fine(&check));
        assert_eq!(
            check.found,
            "wlan0: 3 other devices were heard, 1 announces tributary"
        );
        assert!(fine(&multicast(&[heard(true, 1, 0, &[])])));
    }

    #[test]
    fn a_peer_that_is_there_and_not_heard_shows_that_multicast_is_blocked() {
        let check = multicast(&[heard(true, 0, 0, &[2])]);
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(check.found.contains("10.77.0.2 is there and was not heard"));
        assert!(check.means.unwrap().contains("Multicast does not pass"));
        assert!(check.advice[0].contains("IGMP snooping"));
        assert!(check.advice[1].contains("[lan] peers = [\"10.77.0.2\"]"));
        assert_eq!(multicast(&[heard(true, 2, 0, &[2])]).verdict, Verdict::Note);
    }

    #[test]
    fn hearing_nobody_alone_proves_nothing() {
        let check = multicast(&[heard(true, 0, 0, &[])]);
        assert_eq!(check.verdict, Verdict::Note);
        assert!(check.means.unwrap().starts_with("Either no other device"));
    }

    #[test]
    fn not_hearing_oneself_is_this_devices_firewall() {
        let check = multicast(&[heard(false, 0, 0, &[2])]);
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(check.means.unwrap().contains("firewall on this device"));
        assert!(check.advice[0].contains("ufw allow 5353/udp"));
    }

    #[test]
    fn an_unshared_mdns_port_names_avahis_setting_and_the_worst_interface_decides() {
        let taken = Multicast {
            interface: "eth0".into(),
            heard: Err(MulticastFailure::PortTaken),
            unheard: vec![],
        };
        let check = multicast(&[heard(true, 1, 1, &[]), taken]);
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(check.found.contains("wlan0: 1 other device was heard"));
        assert!(check.found.contains("eth0: another program has UDP port 5353"));
        assert!(
            check
                .advice
                .iter()
                .any(|a| a.contains("disallow-other-stacks=no"))
        );
        let failed = Multicast {
            interface: "eth0".into(),
            heard: Err(MulticastFailure::Other("no such device".into())),
            unheard: vec![],
        };
        assert!(multicast(&[failed]).found.contains("no such device"));
        assert_eq!(multicast(&[]).verdict, Verdict::Note);
    }

    fn asked(source: Source, reach: Reach, there: Option<bool>) -> Asked {
        Asked {
            address: ([10, 77, 0, 2], 7436).into(),
            source,
            reach,
            there,
            interface: Some("wlan0".into()),
        }
    }

    fn linked(names: &[&str]) -> Vec<Linked> {
        let link = |name: &&str| Linked {
            name: (*name).into(),
            address: ([10, 77, 0, 3], 7436).into(),
        };
        names.iter().map(link).collect()
    }

    fn with(asked: Vec<Asked>) -> Household {
        Household {
            asked,
            ..Household::default()
        }
    }

    #[test]
    fn linked_peers_are_named() {
        let check = peers(&Household {
            linked: linked(&["kitchen-pi"]),
            ..Household::default()
        });
        assert!(fine(&check));
        assert_eq!(check.found, "linked with 1 peer: kitchen-pi (10.77.0.3)");
    }

    #[test]
    fn a_peer_that_announces_itself_and_does_not_answer_is_behind_a_firewall() {
        for reach in [Reach::Silent, Reach::Closed] {
            let household = with(vec![asked(Source::Heard, reach, Some(true))]);
            let check = peers(&household);
            assert_eq!(check.verdict, Verdict::Problem);
            assert!(check.found.contains("10.77.0.2:7436 on wlan0"), "{}", check.found);
            assert!(check.means.unwrap().contains("firewall on one of the two"));
            for (step, expected) in [
                (0, "ufw allow 7436/udp"),
                (1, "--add-port=7436/udp"),
                (2, "OpenWrt"),
            ] {
                assert!(check.advice[step].contains(expected), "{}", check.advice[step]);
            }
            assert_eq!(firewall(&household, &[], 7436).verdict, Verdict::Note);
        }
    }

    #[test]
    fn a_router_that_answers_where_no_peer_does_any_more_looks_like_client_isolation() {
        let check = peers(&Household {
            lonely: vec!["wlan0".into()],
            asked: vec![asked(Source::Met, Reach::Silent, Some(false))],
            ..Household::default()
        });
        assert_eq!(check.verdict, Verdict::Problem);
        let means = check.means.unwrap();
        assert!(means.contains("client isolation") && means.contains("[lan] peers does not help"));
    }

    #[test]
    fn whoever_answers_without_a_link_may_be_of_another_version() {
        let check = peers(&with(vec![asked(
            Source::Met,
            Reach::NoLink("no".into()),
            Some(true),
        )]));
        assert_eq!(check.verdict, Verdict::Problem);
        assert!(check.advice[0].contains("--version"));
        let check = peers(&with(vec![asked(Source::Heard, Reach::Answers, Some(true))]));
        assert_eq!(check.verdict, Verdict::Note);
        assert!(check.found.contains("answers and is not linked"));
    }

    #[test]
    fn a_silent_named_or_known_peer_is_noted_with_what_is_known_of_its_device() {
        for source in [Source::Named, Source::Met] {
            for (reach, there, expected) in [
                (Reach::Silent, Some(false), "switched off"),
                (Reach::Silent, Some(true), "a firewall on it drops UDP"),
                (Reach::Closed, Some(true), "nobody listens there"),
            ] {
                let check = peers(&with(vec![asked(source, reach, there)]));
                assert_eq!(check.verdict, Verdict::Note);
                assert!(check.found.contains("10.77.0.2:7436"));
                assert!(check.means.unwrap().contains(expected), "{expected}");
            }
        }
        let other = Household {
            linked: linked(&["kitchen-pi"]),
            asked: vec![asked(Source::Met, Reach::Silent, Some(false))],
            ..Household::default()
        };
        assert!(
            fine(&peers(&other)),
            "one that was met long ago need not be there"
        );
    }

    #[test]
    fn a_device_alone_is_told_to_get_company() {
        let check = peers(&with(vec![asked(Source::Neighbour, Reach::Silent, Some(true))]));
        assert_eq!(check.verdict, Verdict::Note);
        assert!(check.advice[0].contains("tributary run"));
        let check = peers(&Household {
            error: Some("no sockets".into()),
            ..Household::default()
        });
        assert!(check.verdict == Verdict::Problem && check.found.contains("no sockets"));
    }

    #[test]
    fn the_firewall_is_only_judged_by_who_came_in() {
        let came = Household {
            inbound: vec!["kitchen-pi".into()],
            linked: linked(&["kitchen-pi"]),
            ..Household::default()
        };
        assert!(fine(&firewall(&came, &[Firewall::Ufw], 7436)));
        let by_daemon = Household {
            by_daemon: true,
            linked: linked(&["kitchen-pi"]),
            ..Household::default()
        };
        assert!(fine(&firewall(&by_daemon, &[Firewall::Ufw], 7436)));
        let dialled = Household {
            linked: linked(&["kitchen-pi"]),
            ..Household::default()
        };
        let check = firewall(&dialled, &[Firewall::Ufw], 7436);
        assert_eq!((check.verdict, check.advice.len()), (Verdict::Note, 1));
        assert!(check.advice[0].contains("ufw allow 7436/udp"));
    }

    #[test]
    fn without_a_peer_nothing_is_claimed_about_the_firewall() {
        let nobody = Household::default();
        assert!(fine(&firewall(&nobody, &[], 7436)));
        let check = firewall(&nobody, &[Firewall::Firewalld], 7436);
        assert_eq!(check.verdict, Verdict::Note);
        assert!(check.found.contains("firewalld is on") && check.advice[0].contains("7436/udp"));
    }
}
