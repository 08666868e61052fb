//! Holds back uplinks that come and go: a way out that is lost every few seconds costs a transfer more, in connections
//! begun and bytes thrown away, than it brings.
//!
//! Pure: time is an argument. Invariants: an uplink's first return is immediate, and so is that of one that has stayed for
//! [`FORGIVEN`]; each loss before that doubles the wait after the next return, from [`FIRST`] to [`LONGEST`]; an uplink that
//! stays is let in. One is known by its name, for a stick put in again has another index.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::uplink::Network;

/// The wait after the second loss.
const FIRST: Duration = Duration::from_secs(2);
/// However often it was lost: a minute of staying is enough to be worth a try.
const LONGEST: Duration = Duration::from_secs(60);
/// Who stays for so long begins anew.
const FORGIVEN: Duration = Duration::from_secs(120);
/// Names remembered; a device that makes up more than so many in [`FORGIVEN`] has no way out worth waiting for.
const MAX_NAMES: usize = 64;

/// What is remembered of an uplink.
#[derive(Clone, Copy, Debug)]
struct History {
    /// Since when it is there. `None`: it is not.
    here: Option<Instant>,
    /// When it was lost last.
    lost: Instant,
    /// How often in a row.
    losses: u32,
}

/// All uplinks seen lately.
#[derive(Debug, Default)]
pub(super) struct HoldDown {
    known: BTreeMap<String, History>,
}

impl HoldDown {
    /// What of `network` may be used now, and when to ask again because somebody's wait is over.
    pub(super) fn admitted(&mut self, network: &Network, now: Instant) -> (Network, Option<Instant>) {
        self.note(network, now);
        let mut admitted = network.clone();
        admitted
            .uplinks
            .retain(|u| self.held_until(&u.name, now).is_none());
        let next = network
            .uplinks
            .iter()
            .filter_map(|u| self.held_until(&u.name, now))
            .min();
        (admitted, next)
    }

    fn note(&mut self, network: &Network, now: Instant) {
        for (name, history) in &mut self.known {
            let is_here = network.uplinks.iter().any(|u| u.name == *name);
            if !is_here && let Some(since) = history.here.take() {
                let stayed = now.saturating_duration_since(since) >= FORGIVEN;
                history.losses = if stayed {
                    1
                } else {
                    history.losses.saturating_add(1)
                };
                history.lost = now;
            }
        }
        self.known
            .retain(|_, h| h.here.is_some() || now.saturating_duration_since(h.lost) < FORGIVEN);
        for uplink in &network.uplinks {
            let full = self.known.len() >= MAX_NAMES;
            if let Some(history) = self.known.get_mut(&uplink.name) {
                if history.here.is_none() {
                    history.here = Some(now);
                    let wait = history.wait();
                    if !wait.is_zero() {
                        tracing::info!(uplink = %uplink.name, losses = history.losses,
                            "comes and goes: not used before it has stayed for {wait:?}");
                    }
                }
            } else if !full {
                let history = History {
                    here: Some(now),
                    lost: now,
                    losses: 0,
                };
                self.known.insert(uplink.name.clone(), history);
            }
        }
    }

    fn held_until(&self, name: &str, now: Instant) -> Option<Instant> {
        let history = self.known.get(name)?;
        let until = history.here? + history.wait();
        (until > now).then_some(until)
    }
}

impl History {
    fn wait(&self) -> Duration {
        let Some(doublings) = self.losses.checked_sub(2) else {
            return Duration::ZERO;
        };
        let factor = 2_u32.checked_pow(doublings).unwrap_or(u32::MAX);
        FIRST.saturating_mul(factor).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use crate::uplink::Uplink;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn network(names: &[&str]) -> Network {
        let uplink = |name: &&str| Uplink::fixture(1, name);
        Network {
            interfaces: vec![],
            uplinks: names.iter().map(uplink).collect(),
        }
    }

    /// A device whose `wan` is or is not there, beside one that stays.
    struct House {
        held: HoldDown,
        now: Instant,
        wan: bool,
        next: Option<Instant>,
    }

    impl House {
        fn new() -> Self {
            let mut house = Self {
                held: HoldDown::default(),
                now: Instant::now(),
                wan: true,
                next: None,
            };
            assert!(house.has_wan());
            house
        }

        fn after(&mut self, wait: Duration, wan: bool) -> bool {
            (self.now, self.wan) = (self.now + wait, wan);
            self.has_wan()
        }

        fn has_wan(&mut self) -> bool {
            let all: &[&str] = if self.wan { &["home", "wan"] } else { &["home"] };
            let (admitted, next) = self.held.admitted(&network(all), self.now);
            self.next = next;
            let names: Vec<_> = admitted.uplinks.iter().map(|u| u.name.as_str()).collect();
            assert_eq!(names[0], "home", "who stays is never held back");
            names.contains(&"wan")
        }

        /// How long it is held back after it was lost and came back `times`, a second each.
        fn wait_after(&mut self, times: u32) -> Duration {
            for _ in 0..times {
                self.after(SECOND, false);
                self.after(SECOND, true);
            }
            self.next.map_or(Duration::ZERO, |next| next - self.now)
        }
    }

    #[test]
    fn the_first_return_is_immediate_and_each_one_after_it_waits_twice_as_long() {
        let mut house = House::new();
        let waits: Vec<_> = (0..9).map(|_| house.wait_after(1).as_secs()).collect();
        assert_eq!(waits, [0, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(house.wait_after(1_000), LONGEST, "and no arithmetic overflows");
    }

    #[test]
    fn who_stays_as_long_as_it_has_to_is_let_in() {
        let mut house = House::new();
        assert_eq!(house.wait_after(3), 4 * SECOND);
        assert!(!house.after(4 * SECOND - Duration::from_millis(1), true));
        assert!(house.after(Duration::from_millis(1), true));
        assert_eq!(house.next, None);
    }

    #[test]
    fn two_seconds_up_and_two_down_end_after_one_return() {
        let mut house = House::new();
        let mut used = 0;
        for _ in 0..30 {
            house.after(2 * SECOND, false);
            used += u32::from(house.after(2 * SECOND, true));
            // Just before it goes again.
            used += u32::from(house.after(2 * SECOND - Duration::from_millis(1), true));
        }
        assert_eq!(used, 2, "the first return, and no other");
    }

    #[test]
    fn who_stayed_for_two_minutes_is_forgiven_and_so_is_who_was_away_for_as_long() {
        let mut house = House::new();
        assert_eq!(house.wait_after(5), 16 * SECOND);
        assert!(house.after(FORGIVEN, true));
        assert_eq!(house.wait_after(1), Duration::ZERO);
        assert_eq!(house.wait_after(4), 16 * SECOND);
        assert!(!house.after(SECOND, false));
        house.after(FORGIVEN, false);
        assert!(house.after(SECOND, true));
        assert_eq!(house.held.known.len(), 2);
    }

    #[test]
    fn a_device_that_makes_up_names_is_not_remembered_for_ever() {
        let mut held = HoldDown::default();
        let now = Instant::now();
        for n in 0..10_000 {
            let name = format!("wan{n}");
            let (admitted, _) = held.admitted(&network(&[&name]), now + n * Duration::from_millis(10));
            assert_eq!(admitted.uplinks.len(), 1);
            assert!(held.known.len() <= MAX_NAMES);
        }
    }
}
