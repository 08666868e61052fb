//! From facts to verdicts. Pure: each function sees one kind of fact and makes one check of it.
//!
//! Every problem and note says what it means and, where there is something to do, a step that can be typed or clicked.
//! Texts are ASCII; names of devices may be anything.

mod device;
mod lan;
mod lines;

use super::Check;
use super::facts::Facts;

/// Names shown of a longer list.
const MAX_NAMES: usize = 6;

/// One check of each kind, from this device outwards.
pub(super) fn all(facts: &Facts) -> Vec<Check> {
    vec![
        device::daemon(&facts.daemon),
        device::state(&facts.state, &facts.daemon),
        device::kernel(&facts.kernel),
        device::clock(&facts.clock),
        device::limits(&facts.limits),
        lan::lan(&facts.lan),
        lan::port(&facts.port),
        lan::multicast(&facts.multicast),
        lan::peers(&facts.household),
        lan::firewall(&facts.household, &facts.firewalls, facts.port.wanted),
        lines::lines(&facts.lines),
        lines::uplinks(&facts.probe),
        lines::names(&facts.probe),
    ]
}

/// `a, b and c`, or as many as are worth reading.
fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let mut items: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
    if items.len() > MAX_NAMES {
        let more = items.len() - MAX_NAMES;
        items.truncate(MAX_NAMES);
        items.push(format!("{more} more"));
    }
    match items.pop() {
        None => "none".into(),
        Some(last) if items.is_empty() => last,
        Some(last) => format!("{} and {last}", items.join(", ")),
    }
}

/// `1 peer`, `2 peers`.
fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(list([1, 2, 3]), "1, 2 and 3");
        assert_eq!(list(["one"]), "one");
        assert_eq!(list(Vec::<u8>::new()), "none");
        assert_eq!(list(1..=9), "1, 2, 3, 4, 5, 6 and 3 more");
    }
}
