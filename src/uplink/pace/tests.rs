//! Uplinks imitated in steps of a millisecond: each connection's bytes wait in one queue, and their acknowledgements come a
//! round trip later.

use std::collections::VecDeque;

use super::*;

/// Bytes a second.
const MBIT: f64 = 125_000.0;
const STEP: f64 = 0.001;
const BASE: f64 = 0.030;

/// A line with one queue.
struct Line {
    rate: f64,
    waiting: f64,
    now: f64,
    flows: Vec<Flow>,
    /// Bytes a second of somebody who sends whatever happens.
    others: f64,
    /// What the round trip varies by, in seconds.
    jitter: f64,
}

struct Flow {
    pace: Pace,
    rate: f64,
    /// No more than this is there to be sent, in bytes a second.
    most: f64,
    /// When bytes are acknowledged, and how many.
    flying: VecDeque<(f64, f64)>,
    acked: f64,
    srtt: f64,
    active: bool,
}

impl Flow {
    fn new() -> Self {
        Self {
            pace: Pace::default(),
            rate: 0.0,
            most: f64::MAX,
            flying: VecDeque::new(),
            acked: 0.0,
            srtt: BASE,
            active: true,
        }
    }
}

/// What happened in some time: the median wait in ms, the flows' part of the line, and the longest wait.
struct Seen {
    median_ms: f64,
    share: f64,
    most_ms: f64,
}

impl Line {
    fn new(mbit: f64, flows: usize) -> Self {
        Self {
            rate: mbit * MBIT,
            waiting: 0.0,
            now: 0.0,
            flows: (0..flows).map(|_| Flow::new()).collect(),
            others: 0.0,
            jitter: 0.0,
        }
    }

    fn acked(&self) -> f64 {
        self.flows.iter().map(|flow| flow.acked).sum()
    }

    fn run(&mut self, epoch: Instant, seconds: f64) -> Seen {
        let (began, before) = (self.now, self.acked());
        let mut waits = Vec::new();
        while self.now < began + seconds {
            self.step(epoch);
            waits.push(self.waiting / self.rate * 1e3);
        }
        waits.sort_by(f64::total_cmp);
        Seen {
            median_ms: waits[waits.len() / 2],
            share: (self.acked() - before) / seconds / self.rate,
            most_ms: *waits.last().unwrap(),
        }
    }

    fn step(&mut self, epoch: Instant) {
        self.now += STEP;
        // Alternately early and late, each for 100 ms.
        let late = if ((self.now * 10.0) as u64).is_multiple_of(2) {
            self.jitter
        } else {
            0.0
        };
        self.waiting = (self.waiting + (self.others - self.rate) * STEP).max(0.0);
        for flow in self.flows.iter_mut().filter(|flow| flow.active) {
            // The kernel's slow start, which does not end where nothing is lost.
            let window = 14_480.0 + flow.acked - flow.flying.iter().map(|(_, bytes)| bytes).sum::<f64>();
            let bytes = (flow.rate.min(flow.most) * STEP).min(window.max(0.0));
            self.waiting += bytes;
            let delay = BASE + self.waiting / self.rate + late;
            flow.flying.push_back((self.now + delay, bytes));
            while let Some((_, bytes)) = flow.flying.pop_front_if(|(at, _)| *at <= self.now) {
                flow.acked += bytes;
                flow.srtt += (delay - flow.srtt) / 16.0;
            }
            let now = epoch + Duration::from_secs_f64(self.now);
            if flow.pace.is_due(now) {
                let sample = Sample {
                    acked: flow.acked as u64,
                    rtt: Duration::from_secs_f64(flow.srtt),
                    min_rtt: Duration::from_secs_f64(BASE),
                };
                flow.rate = flow.pace.sample(sample, now) as f64;
            }
        }
    }
}

#[test]
fn an_uplink_of_any_rate_is_used_up_and_its_queue_stays_short() {
    for mbit in [1.0, 4.0, 10.0, 40.0, 200.0] {
        let (mut line, epoch) = (Line::new(mbit, 1), Instant::now());
        let start = line.run(epoch, 3.0);
        assert!(start.most_ms < 250.0, "{mbit}: {:.0} ms at first", start.most_ms);
        let steady = line.run(epoch, 10.0);
        assert!(steady.median_ms < 40.0, "{mbit}: {:.0} ms", steady.median_ms);
        assert!(steady.share > 0.95, "{mbit}: {:.3}", steady.share);
    }
}

#[test]
fn several_connections_share_a_short_queue() {
    let (mut line, epoch) = (Line::new(10.0, 4), Instant::now());
    for flow in &mut line.flows[1..] {
        flow.active = false;
    }
    for n in 1..4 {
        line.run(epoch, 3.0);
        line.flows[n].active = true;
        let joined = line.run(epoch, 2.0);
        assert!(joined.most_ms < 200.0, "{n}: {:.0} ms", joined.most_ms);
    }
    let steady = line.run(epoch, 10.0);
    assert!(
        steady.median_ms < 45.0 && steady.share > 0.95,
        "{:.0} ms, {:.3}",
        steady.median_ms,
        steady.share
    );
}

#[test]
fn an_uplink_that_changes_its_rate_is_followed() {
    let (mut line, epoch) = (Line::new(10.0, 1), Instant::now());
    line.run(epoch, 5.0);
    line.rate = 2.0 * MBIT;
    line.run(epoch, 5.0);
    let slow = line.run(epoch, 5.0);
    assert!(
        slow.median_ms < 45.0 && slow.share > 0.9,
        "{:.0} ms, {:.3}",
        slow.median_ms,
        slow.share
    );
    line.rate = 20.0 * MBIT;
    line.run(epoch, 5.0);
    let fast = line.run(epoch, 5.0);
    assert!(
        fast.median_ms < 45.0 && fast.share > 0.95,
        "{:.0} ms, {:.3}",
        fast.median_ms,
        fast.share
    );
}

#[test]
fn a_queue_that_others_keep_full_is_no_reason_to_give_way_for_ever() {
    let (mut line, epoch) = (Line::new(10.0, 1), Instant::now());
    line.run(epoch, 5.0);
    // Half a second's worth, kept there by somebody whom our giving way only helps.
    let mut share = 0.0;
    for _ in 0..30 * 1000 {
        line.others = if line.waiting < 0.5 * line.rate {
            line.rate
        } else {
            0.5 * line.rate
        };
        let before = line.acked();
        line.step(epoch);
        share += (line.acked() - before) / line.rate / 30.0;
    }
    assert!(share > 0.1, "{share:.3} of the line is left");
    line.others = 0.0;
    line.run(epoch, 5.0);
    let alone = line.run(epoch, 5.0);
    assert!(
        alone.median_ms < 45.0 && alone.share > 0.95,
        "{:.0} ms, {:.3}",
        alone.median_ms,
        alone.share
    );
}

#[test]
fn a_line_whose_round_trips_vary_is_used_up_too() {
    let (mut line, epoch) = (Line::new(10.0, 1), Instant::now());
    line.jitter = 0.050;
    line.run(epoch, 5.0);
    let steady = line.run(epoch, 20.0);
    assert!(
        steady.share > 0.9 && steady.median_ms < 100.0,
        "{:.3}, {:.0} ms",
        steady.share,
        steady.median_ms
    );
}

#[test]
fn a_queue_that_stays_while_rates_are_not_kept_to_is_nobodys_yet() {
    let (epoch, ms) = (Instant::now(), Duration::from_millis);
    for settles in [true, false] {
        let mut pace = Pace::default();
        let mut at = |n: u64| {
            pace.cannot_tell(settles && n < 30);
            // 10 Mbit/s are carried, and 70 ms wait whatever we do.
            let sample = Sample {
                acked: n * 125_000,
                rtt: ms(100),
                min_rtt: ms(30),
            };
            pace.sample(sample, epoch + ms(100 * n)) as f64 / 1_250_000.0
        };
        let rates: Vec<f64> = (0..31).map(&mut at).collect();
        let gave_up = rates[5..].iter().any(|part| *part >= 1.0);
        assert_eq!(gave_up, !settles, "{settles}: {rates:.2?}");
    }
}

#[test]
fn what_is_not_used_up_is_not_raised_and_a_pause_forgets_nothing() {
    let (mut line, epoch) = (Line::new(10.0, 1), Instant::now());
    line.flows[0].most = 1.0 * MBIT;
    line.run(epoch, 20.0);
    let unused = line.flows[0].rate;
    assert!(unused < 8.0 * MBIT, "{:.1} Mbit/s", unused / MBIT);
    let acked = line.flows[0].acked as u64;
    let later = epoch + Duration::from_secs(100);
    let sample = Sample {
        acked,
        rtt: Duration::from_secs_f64(BASE),
        min_rtt: Duration::from_secs_f64(BASE),
    };
    let rate = line.flows[0].pace.sample(sample, later);
    assert_eq!(rate, unused as u64);
}

#[test]
fn whatever_the_kernel_says_a_rate_is_one() {
    let epoch = Instant::now();
    let mut pace = Pace::default();
    for n in 0..1000_u64 {
        let sample = Sample {
            acked: n.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            rtt: Duration::from_micros(n * 7919 % 2_000_000),
            min_rtt: Duration::from_micros(n * 104_729 % 3_000_000),
        };
        let rate = pace.sample(sample, epoch + Duration::from_millis(n * n % 700));
        assert!((LEAST..=MOST).contains(&rate), "{rate}");
    }
}

#[test]
fn who_sends_alone_is_known() {
    let (epoch, ms) = (Instant::now(), Duration::from_millis);
    let [first, second] = [1, 2].map(|port| SocketAddr::from(([192, 0, 2, 1], port)));
    let mut senders = Senders::default();
    assert!(senders.is_alone(first, epoch));
    assert!(senders.is_alone(second, epoch + ms(500)), "it may be taking over");
    for at in [900, 1_300, 1_700] {
        assert!(senders.is_alone(first, epoch + ms(at)));
        assert!(senders.is_alone(second, epoch + ms(at)));
    }
    assert!(!senders.is_alone(second, epoch + ms(2_000)), "both go on");
    assert!(!senders.is_alone(first, epoch + ms(2_000)));
    assert!(!senders.is_alone(second, epoch + ms(2_999)));
    assert!(
        senders.is_alone(second, epoch + ms(3_000)),
        "the first one has stopped"
    );
    assert!(senders.is_alone(first, epoch + ms(3_100)), "it begins anew");
}

#[test]
fn who_joins_others_is_waited_for_and_not_again_at_once() {
    let (epoch, ms) = (Instant::now(), Duration::from_millis);
    let [first, second, third] = [1, 2, 3].map(|port| SocketAddr::from(([192, 0, 2, 1], port)));
    let mut senders = Senders::default();
    senders.is_alone(first, epoch);
    assert!(!senders.are_gathering(epoch), "nobody else sends");
    senders.is_alone(second, epoch + ms(500));
    assert!(senders.are_gathering(epoch + ms(500)));
    for at in (600..=11_000).step_by(100) {
        let now = epoch + ms(at);
        let senders_now = if at == 3_000 { third } else { first };
        senders.is_alone(senders_now, now);
        assert_eq!(senders.are_gathering(now), at < 3_500, "{at}");
    }
    senders.is_alone(second, epoch + ms(11_100));
    assert!(senders.are_gathering(epoch + ms(11_100)));
}

#[test]
fn the_shortest_round_trip_is_common_to_the_connections_of_a_way_and_grows_old() {
    let epoch = Instant::now();
    let (ms, minute) = (Duration::from_millis, Duration::from_secs(60));
    let (here, there) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
    let mut floors = Floors::default();
    assert_eq!(floors.learn(here, ms(30), epoch), ms(30));
    assert_eq!(floors.learn(here, ms(70), epoch + minute), ms(30));
    assert_eq!(floors.learn(there, ms(70), epoch + minute), ms(70));
    assert_eq!(floors.learn(here, ms(60), epoch + 6 * minute), ms(60));
    for n in 0..200 {
        floors.learn(IpAddr::from([198, 51, 100, n]), ms(1), epoch + 7 * minute);
    }
    assert!(floors.0.len() <= MAX_FLOORS);
    assert_eq!(
        floors.learn(here, ms(90), epoch + 7 * minute),
        ms(90),
        "the oldest made room"
    );
}
