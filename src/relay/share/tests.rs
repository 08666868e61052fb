//! A line in virtual time: what neighbours get of it beside a download that would take all of it.

use proptest::prelude::*;

use super::*;

const STEP: Duration = Duration::from_millis(1);
const WINDOW: Duration = Duration::from_secs(2);
const MILLIS: u64 = 1000;

fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

/// A line that others use as they like, and neighbours as they may.
struct Line {
    share: Share,
    start: Instant,
    /// What others and each neighbour have moved so far.
    others: u64,
    peers: Vec<u64>,
    /// The tunnels of each neighbour: when each of them asks again.
    tunnels: Vec<Vec<Instant>>,
    /// All that others and all that neighbours had moved at the end of each step.
    history: Vec<(u64, u64)>,
}

impl Line {
    fn new(tunnels: &[usize]) -> Self {
        let start = Instant::now();
        Self {
            share: Share::default(),
            start,
            others: 0,
            peers: vec![0; tunnels.len()],
            tunnels: tunnels.iter().map(|n| vec![start; *n]).collect(),
            history: Vec::new(),
        }
    }

    /// One millisecond in which the line carries `bytes`. Others want `wanted` of them: with two connections they have two
    /// parts of it where each tunnel has one, and then what is left.
    fn step(&mut self, bytes: u64, wanted: u64) {
        let now = self.start + STEP * u32::try_from(self.history.len()).unwrap();
        let tunnels: usize = self.tunnels.iter().map(Vec::len).sum();
        let theirs = wanted.min(bytes * 2 / (tunnels as u64 + 2));
        let mut left = bytes - theirs;
        for (n, tunnels) in self.tunnels.iter_mut().enumerate() {
            let id = peer(u8::try_from(n).unwrap());
            for due in tunnels.iter_mut().filter(|due| **due <= now) {
                match self.share.take(Way::Down, id, 64 << 10, [self.others, 0], now) {
                    Ok(granted) => {
                        let moved = granted.min(left);
                        self.share.refund(Way::Down, id, granted - moved);
                        self.peers[n] += moved;
                        left -= moved;
                    }
                    Err(at) => *due = at,
                }
            }
        }
        self.others += theirs + (wanted - theirs).min(left);
        self.history.push((self.others, self.peers.iter().sum()));
    }

    /// The greatest part that neighbours had of what was carried in any [`WINDOW`] from a time on, the floor left out.
    fn worst_part(&self, from: Duration) -> f64 {
        let at = |time: Duration| usize::try_from(time.as_millis()).unwrap();
        let windows = self.history[at(from)..].windows(at(WINDOW));
        let part = |window: &[(u64, u64)]| {
            let (first, last) = (window[0], window[window.len() - 1]);
            let floor = FLOOR * WINDOW.as_secs();
            let (others, class) = (last.0 - first.0, (last.1 - first.1).saturating_sub(floor));
            class as f64 / (others + class).max(1) as f64
        };
        windows.map(part).fold(0.0, f64::max)
    }
}

#[test]
fn sec_a13_neighbours_have_a_quarter_of_a_line_that_is_in_use_over_any_two_seconds() {
    // 20 Mbit/s; many tunnels of many peers, against a download that takes what they leave.
    let mut line = Line::new(&[1, 8, 16, 7]);
    (0..10 * MILLIS).for_each(|_| line.step(2500, u64::MAX));
    let settled = Duration::from_secs(1);
    let worst = line.worst_part(settled);
    let (others, class) = line.history[line.history.len() - 1];
    let part = class as f64 / (others + class) as f64;
    assert!(worst <= 0.26, "{worst} of the line in the worst 2 s");
    assert!(part >= 0.2, "{part} of it in all: a quarter is theirs to have");
}

#[test]
fn neighbours_get_equal_parts_of_it_however_many_tunnels_each_has() {
    let mut line = Line::new(&[1, 16, 4]);
    (0..2 * MILLIS).for_each(|_| line.step(2500, u64::MAX));
    let before = line.peers.clone();
    (0..20 * MILLIS).for_each(|_| line.step(2500, u64::MAX));
    let got: Vec<u64> = line
        .peers
        .iter()
        .zip(&before)
        .map(|(now, before)| now - before)
        .collect();
    let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
    assert!(*least as f64 >= 0.95 * *most as f64, "{got:?}");
}

#[test]
fn a_neighbour_that_waits_for_nothing_takes_nothing_from_the_others() {
    let mut line = Line::new(&[1, 1]);
    (0..2 * MILLIS).for_each(|_| line.step(2500, u64::MAX));
    line.tunnels[1].clear();
    let before = line.peers[0];
    (0..10 * MILLIS).for_each(|_| line.step(2500, u64::MAX));
    let got = (line.peers[0] - before) as f64 / (10.0 * 2_500_000.0);
    assert!((0.23..0.26).contains(&got), "{got} of the line");
}

#[test]
fn a_line_nobody_else_uses_is_all_theirs_before_and_after_it_is_used() {
    let mut line = Line::new(&[2]);
    (0..3 * MILLIS).for_each(|_| line.step(2500, 0));
    assert_eq!(line.peers[0], 7_500_000);
    // What requests now and then move is no use of it.
    (0..3 * MILLIS).for_each(|n| line.step(2500, if n % 500 == 0 { 2000 } else { 0 }));
    let used = line.peers[0];
    assert!(used >= 14_900_000, "{used}");
    (0..5 * MILLIS).for_each(|_| line.step(2500, u64::MAX));
    let shared = line.peers[0] - used;
    assert!(shared <= 5 * 2_500_000 / 3, "{shared}");
    let before = line.peers[0];
    (0..4 * MILLIS).for_each(|_| line.step(2500, 0));
    let after = line.peers[0] - before;
    assert!(
        after >= 2 * 2_500_000,
        "{after} in 4 s, two of which it may take to be sure"
    );
}

#[test]
fn what_others_send_holds_back_what_neighbours_fetch_and_the_reverse() {
    let start = Instant::now();
    for (way, others) in [(Way::Down, [0, 1 << 20]), (Way::Up, [1 << 20, 0])] {
        let mut share = Share::default();
        assert_eq!(share.take(way, peer(1), 1 << 16, [0, 0], start), Ok(1 << 16));
        let now = start + LOOK;
        assert_eq!(share.take(way, peer(1), 1 << 16, others, now), Err(now + AGAIN));
    }
}

#[test]
fn a_days_bytes_are_spent_once_and_there_again_a_day_later() {
    let start = Instant::now();
    let mut quota = Quota::new(ByteSize(1000), start);
    quota.spend(999, start);
    assert!(quota.has_left(start));
    quota.spend(1, start);
    assert!(!quota.has_left(start + DAY - STEP));
    assert_eq!(
        (quota.is_to_be_told(), quota.is_to_be_told()),
        (true, false),
        "said once"
    );
    quota.change(ByteSize(2000));
    assert!(quota.has_left(start), "the owner gave more");
    quota.change(ByteSize(500));
    assert!(!quota.has_left(start));
    assert!(quota.has_left(start + DAY));
    quota.spend(500, start + DAY);
    assert!(!quota.has_left(start + DAY) && quota.is_to_be_told());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the line and whoever is on it: while others use it, neighbours move no more than a third of what those did,
    /// the floor, and what is kept.
    #[test]
    fn sec_a13_the_share_holds_on_any_line_that_changes_as_it_likes(
        tunnels in prop::collection::vec(1usize..6, 1..12),
        // What others want is notable where they get it: less than that beside a lot is no use of a line.
        phases in prop::collection::vec((60u64..20_000, 34u64..20_000), 1..8),
    ) {
        let mut line = Line::new(&tunnels);
        for (bytes, wanted) in phases {
            (0..600).for_each(|_| line.step(bytes, wanted));
        }
        // From the first look on every step is of a line in use, be it one of 500 kbit/s whose others are crowded out.
        let begun = usize::try_from(2 * LOOK.as_millis()).unwrap();
        let kept = KEPT * tunnels.len() as u64;
        let history = &line.history[begun..];
        for (n, (others, class)) in history.iter().enumerate().step_by(37) {
            for (later, (others_then, class_then)) in history.iter().enumerate().skip(n).step_by(211) {
                let floor = FLOOR * (later - n) as u64 / MILLIS;
                let most = (others_then - others) / OTHERS + floor + kept;
                prop_assert!(class_then - class <= most, "{} of {most} between {n} and {later}", class_then - class);
            }
        }
    }
}
