//! From what was written to what is meant: each value checked, everything that is wrong collected.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;

use crate::link::{DEFAULT_PORT, wire};
use crate::relay::Cidr;
use crate::types::{ByteSize, LineId, Period, Rate};
use crate::uplink::Lend;

use super::error::{Source, Wrong};
use super::raw::{self, Raw, Said, Written};
use super::{Config, PeerAddress};

/// Of [`Config::egress`]: a device that lends more at once than this needs more memory than such a device has.
const MOST_TUNNELS: i64 = 1024;
/// A link carries no more streams of one peer.
const MOST_TUNNELS_PER_PEER: i64 = 64;
/// Shorter, and a tunnel between two requests is lost; longer, and dead ones are kept.
const IDLE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3600));
/// Below, not even a handshake gets through within a borrower's patience.
const LEAST_RATE: Rate = Rate::bits(64_000);
/// The kernel's `IFNAMSIZ`, less the zero at its end.
const MAX_INTERFACE_NAME: usize = 15;
/// Less is no lending: `lend_to_neighbours = false` says that.
const LEAST_PER_DAY: ByteSize = ByteSize(1 << 20);
/// Shorter, and a copy is gone before anybody asks for it; longer, and it is for ever.
const CACHE_AGE: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(365 * 24 * 3600));
const MAX_LINE_NAME: usize = 63;
/// More than any household writes by hand.
const MAX_LIST: usize = 256;

const NAME: &str = "a text of 1 to 63 bytes without control characters, such as \"kitchen-pi\"";
const PORT: &str = "a number from 1 to 65535";
const INTERFACE: &str = "an interface's name as `ip link` shows it, such as \"wlan0\"";
const YES_NO: &str = "true or false";
const LEND: &str = "true, false or \"members\"";
const FILE: &str = "a file's path that begins with /, or \"\" for none";
pub(super) const PASSPHRASE: &str = "a text of 8 to 256 bytes, the same on every device of the household";
const CACHE: &str = "a size with its unit (MB, GB, GiB), such as \"20 GB\", or \"0 B\" for none";
const CIDR: &str = "an address with a prefix, such as \"203.0.113.0/24\"";

/// Takes over what `raw` says into `config`: what it does not say stays. Gives everything that is wrong.
pub(super) fn check(raw: &Raw, source: &Source<'_>, config: &mut Config) -> Vec<Wrong> {
    let mut check = Check {
        source,
        wrongs: Vec::new(),
    };
    let (device, lan, egress) = (&raw.device, &raw.lan, &raw.egress);
    if let Some(name) = check.text("device.name", &device.name, NAME, |name| {
        wire::clean(name) == name
    }) {
        config.device.name = Some(name);
    }
    if let Some(port) = check.number("lan.port", &lan.port, 1, 65_535, PORT) {
        config.lan.port = Some(port);
    }
    if let Some(names) = check.list("lan.interfaces", &lan.interfaces, INTERFACE, interface) {
        config.lan.interfaces = Some(names);
    }
    if let Some(peers) = check.list("lan.peers", &lan.peers, &peer_allowed(), peer) {
        config.lan.peers = peers;
    }
    if let Some(anywhere) = check.yes_no("lan.anywhere", &lan.anywhere) {
        config.lan.anywhere = anywhere;
    }
    if let Some(allow) = check.list("egress.allow", &egress.allow, CIDR, parsed::<Cidr>) {
        config.egress.allow = allow;
    }
    if let Some(ports) = check.list("egress.ports", &egress.ports, PORT, port) {
        config.egress.ports = ports;
    }
    let most = format!("a number from 1 to {MOST_TUNNELS}");
    if let Some(tunnels) = check.number("egress.tunnels", &egress.tunnels, 1, MOST_TUNNELS, &most) {
        config.egress.tunnels = tunnels;
    }
    let most = format!("a number from 1 to {MOST_TUNNELS_PER_PEER}");
    let (key, said) = ("egress.tunnels_per_peer", &egress.tunnels_per_peer);
    if let Some(tunnels) = check.number(key, said, 1, MOST_TUNNELS_PER_PEER, &most) {
        config.egress.tunnels_per_peer = tunnels;
    }
    if let Some(idle) = check.period("egress.idle", &egress.idle, IDLE, "2 min") {
        config.egress.idle = idle;
    }
    let least = format!("a size of at least {LEAST_PER_DAY}, with its unit (MB, GB, GiB), such as \"20 GB\"");
    let fits = |size: &ByteSize| *size >= LEAST_PER_DAY;
    let (key, said) = ("egress.neighbours_per_day", &egress.neighbours_per_day);
    if let Some(size) = check.quantity(key, said, &least, fits) {
        config.egress.neighbours_per_day = size;
    }
    check.trust(&raw.trust, &mut config.trust);
    check.share(&raw.share, &mut config.share);
    check.uplinks(&raw.uplink, config);
    check.wrongs
}

struct Check<'a> {
    source: &'a Source<'a>,
    wrongs: Vec<Wrong>,
}

impl Check<'_> {
    fn trust(&mut self, said: &raw::Trust, trust: &mut super::Trust) {
        let doors = [
            ("trust.neighbours", &said.neighbours, &mut trust.neighbours),
            (
                "trust.lend_to_neighbours",
                &said.lend_to_neighbours,
                &mut trust.lend_to_neighbours,
            ),
            (
                "trust.borrow_from_neighbours",
                &said.borrow_from_neighbours,
                &mut trust.borrow_from_neighbours,
            ),
        ];
        for (key, said, value) in doors {
            if let Some(open) = self.yes_no(key, said) {
                *value = open;
            }
        }
        if let Some(words) = self.secret("trust.passphrase", &said.passphrase) {
            trust.passphrase = Some(words).filter(|words| !words.is_empty());
        }
        let fits = |path: &str| path.is_empty() || path.starts_with('/');
        let key = "trust.passphrase_file";
        if let Some(path) = self.text(key, &said.passphrase_file, FILE, fits) {
            trust.passphrase_file = (!path.is_empty()).then(|| path.into());
        }
        let both = trust.passphrase.is_some() && trust.passphrase_file.is_some();
        let second = said.passphrase_file.as_ref().or(said.passphrase.as_ref());
        if let Some(second) = second.filter(|_| both) {
            let why =
                "found both trust.passphrase and trust.passphrase_file; allowed: one of the two".to_owned();
            let wrong = self.source.wrong(second.span().start, key, why);
            self.wrongs.push(wrong);
        }
    }

    fn share(&mut self, said: &raw::Share, share: &mut crate::share::Config) {
        if let Some(enabled) = self.yes_no("share.enabled", &said.enabled) {
            share.enabled = enabled;
        }
        if let Some(cache) = self.quantity("share.cache", &said.cache, CACHE, |_: &ByteSize| true) {
            share.cache = cache;
        }
        if let Some(age) = self.period("share.cache_age", &said.cache_age, CACHE_AGE, "720 h") {
            share.cache_age = age.0;
        }
    }

    /// A text that no message repeats.
    fn secret(&mut self, key: &str, said: &Said) -> Option<String> {
        let said = said.as_ref()?;
        match said.get_ref() {
            Written::Text(text) if text.is_empty() || is_passphrase(text) => Some(text.clone()),
            _ => {
                let why =
                    format!("what stands there is not shown here; allowed: {PASSPHRASE}, or \"\" for none");
                let wrong = self.source.wrong(said.span().start, key, why);
                self.wrongs.push(wrong);
                None
            }
        }
    }

    fn uplinks(&mut self, uplinks: &[Spanned<raw::Uplink>], config: &mut Config) {
        let mut seen = BTreeSet::new();
        for entry in uplinks {
            let said = entry.get_ref();
            let key = "uplink.interface";
            if said.interface.is_none() {
                let why = format!("it is missing; allowed: {INTERFACE}");
                let wrong = self.source.wrong(entry.span().start, key, why);
                self.wrongs.push(wrong);
            }
            let named = self.text(key, &said.interface, INTERFACE, is_interface);
            // What is wrong with an entry is said even where nobody knows which interface it is about.
            let mut nowhere = crate::uplink::Rule::new("");
            let rule = match &named {
                Some(name) if !seen.insert(name.clone()) => {
                    let why = format!("found {name:?} a second time; allowed: one entry for each interface");
                    let at = said.interface.as_ref().map_or(0, |s| s.span().start);
                    let wrong = self.source.wrong(at, key, why);
                    self.wrongs.push(wrong);
                    &mut nowhere
                }
                Some(name) => config.uplinks.entry(name),
                None => &mut nowhere,
            };
            self.uplink(said, rule);
        }
    }

    fn uplink(&mut self, said: &raw::Uplink, rule: &mut crate::uplink::Rule) {
        let rate = format!(
            "a rate of at least {LEAST_RATE}, with its unit (kbit/s, Mbit/s, Gbit/s), such as \"20 Mbit/s\""
        );
        let fits = |rate: &Rate| *rate >= LEAST_RATE;
        if let Some(lend) = self.lend(&said.lend) {
            rule.lend = lend;
        }
        if let Some(metered) = self.yes_no("uplink.metered", &said.metered) {
            rule.metered = Some(metered);
        }
        if let Some(down) = self.quantity("uplink.max_down", &said.max_down, &rate, fits) {
            rule.cap.down = Some(down);
        }
        if let Some(up) = self.quantity("uplink.max_up", &said.max_up, &rate, fits) {
            rule.cap.up = Some(up);
        }
        let allowed = "a text of 1 to 63 bytes, the same for all uplinks of that line, such as \"cable\"";
        let fits = |name: &str| (1..=MAX_LINE_NAME).contains(&name.len());
        if let Some(name) = self.text("uplink.line", &said.line, allowed, fits) {
            rule.line = Some(LineId::named(&name));
        }
    }

    fn text(&mut self, key: &str, said: &Said, allowed: &str, fits: impl Fn(&str) -> bool) -> Option<String> {
        self.value(key, said.as_ref()?, allowed, |written| match written {
            Written::Text(text) if fits(text) => Some(text.clone()),
            _ => None,
        })
    }

    fn number<T: TryFrom<i64>>(
        &mut self,
        key: &str,
        said: &Said,
        least: i64,
        most: i64,
        allowed: &str,
    ) -> Option<T> {
        self.value(key, said.as_ref()?, allowed, |written| match written {
            Written::Number(number) if (least..=most).contains(number) => T::try_from(*number).ok(),
            _ => None,
        })
    }

    fn yes_no(&mut self, key: &str, said: &Said) -> Option<bool> {
        self.value(key, said.as_ref()?, YES_NO, |written| match written {
            Written::YesNo(value) => Some(*value),
            _ => None,
        })
    }

    fn lend(&mut self, said: &Said) -> Option<Lend> {
        self.value("uplink.lend", said.as_ref()?, LEND, |written| match written {
            Written::YesNo(true) => Some(Lend::All),
            Written::YesNo(false) => Some(Lend::Nobody),
            Written::Text(text) if text == "members" => Some(Lend::Members),
            _ => None,
        })
    }

    fn quantity<T: FromStr>(
        &mut self,
        key: &str,
        said: &Said,
        allowed: &str,
        fits: impl Fn(&T) -> bool,
    ) -> Option<T> {
        self.value(key, said.as_ref()?, allowed, |written| match written {
            Written::Text(text) => text.parse().ok().filter(fits),
            _ => None,
        })
    }

    fn period(
        &mut self,
        key: &str,
        said: &Said,
        (least, most): (Duration, Duration),
        such_as: &str,
    ) -> Option<Period> {
        let allowed = format!(
            "a time from {} to {}, with its unit (ms, s, min, h), such as \"{such_as}\"",
            Period(least),
            Period(most)
        );
        self.quantity(key, said, &allowed, |period: &Period| {
            (least..=most).contains(&period.0)
        })
    }

    /// A list with each of its elements checked; `None` too where one of them is wrong.
    fn list<T>(
        &mut self,
        key: &str,
        said: &Said,
        allowed: &str,
        element: impl Fn(&Written) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let said = said.as_ref()?;
        let Written::List(list) = said.get_ref() else {
            self.refuse(key, said, &format!("a list, each element of it {allowed}"));
            return None;
        };
        if list.len() > MAX_LIST {
            let why = format!("found {} elements; allowed: {MAX_LIST} at most", list.len());
            let wrong = self.source.wrong(said.span().start, key, why);
            self.wrongs.push(wrong);
            return None;
        }
        let before = self.wrongs.len();
        let mut checked = Vec::new();
        for written in list {
            match element(written.get_ref()) {
                Ok(value) => checked.push(value),
                Err(more) => self.refuse(key, written, &format!("{allowed}{more}")),
            }
        }
        (self.wrongs.len() == before).then_some(checked)
    }

    fn value<T>(
        &mut self,
        key: &str,
        said: &Spanned<Written>,
        allowed: &str,
        take: impl FnOnce(&Written) -> Option<T>,
    ) -> Option<T> {
        let value = take(said.get_ref());
        if value.is_none() {
            self.refuse(key, said, allowed);
        }
        value
    }

    fn refuse(&mut self, key: &str, said: &Spanned<Written>, allowed: &str) {
        let why = format!("found {}; allowed: {allowed}", said.get_ref());
        let wrong = self.source.wrong(said.span().start, key, why);
        self.wrongs.push(wrong);
    }
}

/// What no element says more about: it is not what is allowed.
fn otherwise<T>(value: Option<T>) -> Result<T, String> {
    value.ok_or_else(String::new)
}

/// Also of what a passphrase file holds, without the end of its line.
pub(super) fn is_passphrase(text: &str) -> bool {
    (8..=256).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn is_interface(name: &str) -> bool {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '/';
    (1..=MAX_INTERFACE_NAME).contains(&name.len()) && name.chars().all(plain) && name != "." && name != ".."
}

fn interface(written: &Written) -> Result<String, String> {
    otherwise(match written {
        Written::Text(name) if is_interface(name) => Some(name.clone()),
        _ => None,
    })
}

fn port(written: &Written) -> Result<u16, String> {
    otherwise(match written {
        Written::Number(number) => u16::try_from(*number).ok().filter(|port| *port != 0),
        _ => None,
    })
}

fn parsed<T: FromStr<Err: Display>>(written: &Written) -> Result<T, String> {
    match written {
        Written::Text(text) => text.parse().map_err(|error| format!(" ({error})")),
        _ => Err(String::new()),
    }
}

fn peer_allowed() -> String {
    format!(
        "a peer's IP address, with a port if it is not {DEFAULT_PORT}, such as \"192.168.1.7\" or \"192.168.1.7:7000\""
    )
}

fn peer(written: &Written) -> Result<PeerAddress, String> {
    let Written::Text(text) = written else {
        return Err(String::new());
    };
    let with_port = text.parse::<SocketAddr>();
    let address = with_port.or_else(|_| text.parse::<IpAddr>().map(|ip| (ip, DEFAULT_PORT).into()));
    let dialable = |a: &SocketAddr| a.port() != 0 && !a.ip().is_unspecified() && !a.ip().is_multicast();
    otherwise(address.ok().filter(dialable).map(PeerAddress))
}
