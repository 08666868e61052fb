//! FUZ-3: a tunnel's request, from its frame to whether that host and port may be asked for; against the RFCs, read once
//! more and slowly.

use futures_util::FutureExt;
use tributary::link::wire::{self, Open};
use tributary::relay::{check_name, is_public};

use super::address;

/// The bytes as a frame's body, as they come; and as a host name, a port and an address.
pub fn check(data: &[u8]) {
    let frame = [&(data.len() as u32).to_be_bytes()[..], &[0, 16], data].concat();
    if let Some(Ok(open)) = wire::receive_open(&mut &frame[..]).now_or_never() {
        judge(&open);
        let mut again = Vec::new();
        let Some(Ok(())) = wire::send_open(&mut again, &open).now_or_never() else {
            panic!("cannot be said again: {open:?}");
        };
        let heard = wire::receive_open(&mut &again[..]).now_or_never();
        assert_eq!(heard.and_then(Result::ok), Some(open));
    }
    if let Ok(host) = std::str::from_utf8(data) {
        judge_name(host);
    }
}

fn judge(open: &Open) {
    judge_name(&open.host);
    if let Some(pin) = open.pin {
        assert_eq!(is_public(pin).is_ok(), address::is_public(pin), "{pin}");
    }
}

fn judge_name(host: &str) {
    let found = check_name(host).ok();
    assert_eq!(found, slow(host), "{host:?}");
    let Some(name) = found else { return };
    assert_eq!(check_name(&name).as_deref(), Ok(&name[..]), "once more");
    assert!(name.parse::<std::net::IpAddr>().is_err());
    // Browsers' rules for what is an address are the widest there are.
    match url::Host::parse(&name) {
        Ok(url::Host::Domain(_)) | Err(_) => {}
        Ok(other) => panic!("{host:?} is {other:?}"),
    }
}

/// Which host names may be dialled: RFC 1035 2.3.4 (lengths), RFC 1123 2.1 (letters, digits, hyphens within; underscores
/// are in use besides), and nothing whose last label is a number, which resolvers read as an address (WHATWG URL, "ends in
/// a number"); nothing of a single label; none of the domains that are never public.
fn slow(host: &str) -> Option<String> {
    let mut labels = Vec::new();
    let mut label = String::new();
    let mut chars = host.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            'a'..='z' | '0'..='9' | '-' | '_' => label.push(c),
            'A'..='Z' => label.push(char::from(c as u8 + 32)),
            // The root's own, at the end.
            '.' if chars.peek().is_none() => break,
            '.' => labels.push(std::mem::take(&mut label)),
            _ => return None,
        }
    }
    labels.push(label);
    for label in &labels {
        let ends = [label.chars().next()?, label.chars().last()?];
        if ends.contains(&'-') || label.len() > 63 {
            return None;
        }
    }
    let name = labels.join(".");
    // On the wire each label has its length before it, and the root's follows: 255 at most.
    if 1 + labels.iter().map(|l| 1 + l.len()).sum::<usize>() > 255 {
        return None;
    }
    let last = labels.last()?;
    let decimal = last.chars().all(|c| c.is_ascii_digit());
    let hex = last.starts_with("0x") && last.chars().skip(2).all(|c| c.is_ascii_hexdigit());
    if decimal || hex || labels.len() == 1 {
        return None;
    }
    let never: [&[&str]; 8] = [
        &["localhost"],
        &["local"],
        &["internal"],
        &["home", "arpa"],
        &["onion"],
        &["invalid"],
        &["alt"],
        &["localdomain"],
    ];
    let below = |domain: &&[&str]| {
        let tail = labels.len().checked_sub(domain.len());
        tail.is_some_and(|at| labels[at..].iter().eq(domain.iter()))
    };
    if never.iter().any(below) {
        return None;
    }
    Some(name)
}
