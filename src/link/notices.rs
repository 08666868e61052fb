//! What only the owner can mend, for the log and the status: devices that show the same key, and devices of another
//! version.
//!
//! Two devices have one key where somebody copied a state directory, with its SD card say. Both cannot be the device, and
//! which of them is the copy only their owner knows. So the one that came second is refused, and everybody who notices
//! says so.
//!
//! And how often the log speaks of one peer's comings and goings.
//!
//! Pure. Invariants: bounded; one matter is said in the log once in [`SAY_AGAIN`], and no more than [`MAX_NOTICES`] in
//! that time; it is in the status as long as it is seen, which is asked again at least every [`SEEN_WITHIN`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::types::PeerId;

/// More than any household has; what a mischief-maker adds beyond is not remembered.
const MAX_NOTICES: usize = 8;
/// Between two lines in the log about the same matter: nobody reads it more often.
const SAY_AGAIN: Duration = Duration::from_secs(600);
/// A device that is there is dialled again within a minute, and that takes 5 s at most.
const SEEN_WITHIN: Duration = Duration::from_secs(150);
/// Lines about one peer in [`LINES_IN`]: it came, it left, twice over and a half (SEC-A18).
const LINES: usize = 5;
const LINES_IN: Duration = Duration::from_secs(60);
/// Peers whose lines are counted: as many as there are links, and those that left in that time.
const SPOKEN_OF: usize = 128;
const REMEDY: &str = "On the copy, stop tributary, delete `identity.key` in its state directory, and start it again: \
                      it then gets a key of its own";

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Matter {
    Key(PeerId),
    Version,
}

#[derive(Clone, Debug)]
struct Notice {
    what: String,
    seen: Instant,
    said: Option<Instant>,
}

/// What was seen lately.
#[derive(Debug, Default)]
pub(super) struct Notices {
    notices: BTreeMap<Matter, Notice>,
    spoken_of: BTreeMap<PeerId, Vec<Instant>>,
}

impl Notices {
    /// Another device has this device's own key.
    pub(super) fn copy_of_us(&mut self, us: PeerId, there: SocketAddr, now: Instant) {
        let what = format!(
            "the device at {} has this device's own key ({}): one of them is a copy, such as a cloned SD card, and the \
             others take only one of the two. {REMEDY}",
            there.ip(),
            us.short()
        );
        self.note(Matter::Key(us), what, now);
    }

    /// A peer has refused this device, because it has a link to another one with the same key.
    pub(super) fn refused(&mut self, us: PeerId, (name, peer): (&str, SocketAddr), now: Instant) {
        let what = format!(
            "{name:?} at {} refuses this device, because another one with the same key ({}) was there first: one of the \
             two is a copy, such as a cloned SD card. {REMEDY}",
            peer.ip(),
            us.short()
        );
        self.note(Matter::Key(us), what, now);
    }

    /// Two other devices have one key; the first is used.
    pub(super) fn copy_of(
        &mut self,
        peer: PeerId,
        (name, used): (&str, SocketAddr),
        refused: SocketAddr,
        now: Instant,
    ) {
        let what = format!(
            "the devices at {} ({name:?}) and {} have the same key ({}): one of them is a copy, such as a cloned SD \
             card. The one at {} is refused. {REMEDY}",
            used.ip(),
            refused.ip(),
            peer.short(),
            refused.ip()
        );
        self.note(Matter::Key(peer), what, now);
    }

    /// Somebody there speaks a later or an earlier protocol than this program.
    pub(super) fn other_version(&mut self, there: SocketAddr, now: Instant) {
        let what = format!(
            "the device at {} speaks another version of tributary's protocol, so the two cannot lend to each other: \
             update the older one",
            there.ip()
        );
        self.note(Matter::Version, what, now);
    }

    /// Whether the log may say that this peer came or left; counts it if so.
    pub(super) fn may_speak_of(&mut self, peer: PeerId, now: Instant) -> bool {
        let lately = |said: &Instant| now.saturating_duration_since(*said) < LINES_IN;
        if !self.spoken_of.contains_key(&peer) && self.spoken_of.len() >= SPOKEN_OF {
            self.spoken_of.retain(|_, said| said.last().is_some_and(lately));
            if self.spoken_of.len() >= SPOKEN_OF {
                return false;
            }
        }
        let said = self.spoken_of.entry(peer).or_default();
        said.retain(lately);
        let may = said.len() < LINES;
        if may {
            said.push(now);
        }
        may
    }

    /// What the owner should know now.
    pub(super) fn warnings(&self, now: Instant) -> Vec<String> {
        let lately = |notice: &&Notice| now.saturating_duration_since(notice.seen) < SEEN_WITHIN;
        let notices = self.notices.values().filter(lately);
        notices.map(|notice| notice.what.clone()).collect()
    }

    fn note(&mut self, matter: Matter, what: String, now: Instant) {
        let lately = |said: Option<Instant>| said.filter(|s| now.saturating_duration_since(*s) < SAY_AGAIN);
        let before = self.notices.get(&matter).and_then(|notice| notice.said);
        let lines = self.notices.values().filter(|n| lately(n.said).is_some()).count();
        let said = match lately(before) {
            None if lines < MAX_NOTICES => {
                tracing::warn!("{what}");
                Some(now)
            }
            _ => before,
        };
        if !self.notices.contains_key(&matter) && self.notices.len() >= MAX_NOTICES {
            // Those that were said count against further lines; they go when their time is over.
            let old = self.notices.iter().find(|(_, n)| lately(n.said).is_none());
            let Some(old) = old.map(|(matter, _)| *matter) else {
                return;
            };
            self.notices.remove(&old);
        }
        let notice = Notice {
            what,
            seen: now,
            said,
        };
        self.notices.insert(matter, notice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 7436))
    }

    #[test]
    fn two_devices_with_one_key_are_told_with_both_addresses_and_what_to_do_while_both_are_seen() {
        let now = Instant::now();
        let mut notices = Notices::default();
        notices.copy_of(PeerId([1; 32]), ("attic", at(2)), at(3), now);
        notices.copy_of_us(PeerId([2; 32]), at(4), now);
        let told = notices.warnings(now);
        for expected in ["10.0.0.2", "10.0.0.3", "attic", "identity.key"] {
            assert!(told[0].contains(expected), "{told:?}");
        }
        assert!(
            told[1].contains("10.0.0.4") && told[1].contains("own key"),
            "{told:?}"
        );
        assert!(notices.warnings(now + SEEN_WITHIN).is_empty(), "gone, or mended");
    }

    #[test]
    fn sec_a18_a_peer_that_comes_and_goes_all_the_time_is_spoken_of_five_times_a_minute() {
        let start = Instant::now();
        let mut notices = Notices::default();
        let mut of = |n: u16, at| {
            let mut id = [0; 32];
            id[..2].copy_from_slice(&n.to_be_bytes());
            notices.may_speak_of(PeerId(id), at)
        };
        assert_eq!((0..1000).filter(|_| of(1, start)).count(), LINES);
        assert!(of(2, start), "another one");
        assert!(of(1, start + LINES_IN));
        for n in 0..10_000 {
            of(n, start + LINES_IN);
        }
        assert_eq!(notices.spoken_of.len(), SPOKEN_OF);
    }

    #[test]
    fn what_is_remembered_and_said_is_bounded_whatever_comes() {
        let now = Instant::now();
        let mut notices = Notices::default();
        for n in 0..250 {
            notices.copy_of_us(PeerId([n; 32]), at(n), now);
        }
        assert_eq!(notices.notices.len(), MAX_NOTICES);
        let later = now + SAY_AGAIN;
        notices.other_version(at(1), later);
        assert_eq!(notices.notices.len(), MAX_NOTICES);
        assert_eq!(
            notices.warnings(later).len(),
            1,
            "those of ten minutes ago are over"
        );
    }

    #[test]
    fn prop_12_a_hundred_thousand_hostile_devices_leave_few_notices_and_few_lines() {
        let start = Instant::now();
        let mut notices = Notices::default();
        for n in 0..100_000_u32 {
            let now = start + Duration::from_millis(n.into());
            let peer = PeerId([(n % 251) as u8; 32]);
            match n % 4 {
                0 => notices.copy_of_us(peer, at(1), now),
                1 => notices.refused(peer, ("x", at(2)), now),
                2 => notices.copy_of(peer, ("y", at(3)), at(4), now),
                _ => notices.other_version(at(5), now),
            }
            assert!(notices.notices.len() <= MAX_NOTICES);
            let said = |notice: &&Notice| notice.said.is_some_and(|s| now < s + SAY_AGAIN);
            assert!(notices.notices.values().filter(said).count() <= MAX_NOTICES);
        }
        assert!(!notices.warnings(start + Duration::from_secs(100)).is_empty());
    }
}
