//! Whole downloads within a household, in virtual time: who brings what, and how long it takes.

#![expect(clippy::print_stdout, reason = "the figures are what this is for")]

mod house;

use house::{House, MBIT, Member, Outcome};
use tributary::types::{ByteRange, RangeSet};

const MIB: u64 = 1 << 20;
/// Households with other seeds.
const HOUSES: u64 = 40;
/// A spot check.
const SLICE: u64 = 64 << 10;

fn show(what: &str, outcomes: &[Outcome], total: u64) {
    println!("{what}:");
    for (i, out) in outcomes.iter().enumerate().filter(|(_, o)| o.seconds > 0.0) {
        let from: Vec<String> = out
            .from
            .iter()
            .map(|(m, b)| format!("{m}: {:.0}", b / MIB as f64))
            .collect();
        println!(
            "  member {i}: {:.2} s, {:.2} MiB over lines, MiB from {}; wasted {:.2} % in {} requests",
            out.seconds,
            out.over_lines / MIB as f64,
            from.join(" "),
            100.0 * out.wasted / total as f64,
            out.asked.len()
        );
    }
}

/// One slice in every 4 MiB.
fn checks(total: u64) -> RangeSet {
    let at = |i: u64| 4 * MIB * i + (i * 7 + 3) % 64 * SLICE;
    (0..total / (4 * MIB))
        .map(|i| ByteRange::new(at(i), at(i) + SLICE))
        .collect()
}

fn lan(mbit: f64, bytes: u64) -> f64 {
    bytes as f64 / (mbit * MBIT)
}

#[test]
fn beside_a_complete_holder_uplinks_bring_only_the_checks() {
    let total = 256 * MIB;
    let mut reader = Member::new(100.0, Some(0.0)).with_lines(&[0, 1]);
    reader.checks = checks(total);
    let out = House::new(vec![Member::new(100.0, None), reader], &[20.0, 20.0], total, 1).run(100.0);
    show("a complete holder", &out, total);
    let over = out[1].over_lines as u64;
    assert!(over <= total / 64 + 4 * SLICE, "{over} bytes over the lines");
    let least = lan(100.0, total);
    assert!(
        out[1].seconds <= 1.05 * least + 0.5,
        "{} s, the port alone {least} s",
        out[1].seconds
    );
}

#[test]
fn a_holder_that_still_fetches_is_followed_while_uplinks_leave_it_to_it() {
    let total = 64 * MIB;
    let mut first = Member::new(1000.0, Some(0.0)).with_lines(&[0]);
    first.claims_all = true;
    let second = Member::new(1000.0, Some(1.0)).with_lines(&[1]);
    let out = House::new(vec![first, second], &[20.0, 20.0], total, 1).run(100.0);
    show("a holder that grows", &out, total);
    let late = out[1].seconds + 1.0 - out[0].seconds;
    assert!(late <= 0.3, "{late} s after the holder");
    assert!(
        out[1].over_lines < 1.0,
        "{} bytes over its own line",
        out[1].over_lines
    );
}

#[test]
fn a_holder_that_falls_silent_is_replaced_by_uplinks_within_two_seconds() {
    let total = 128 * MIB;
    let mut holder = Member::new(100.0, None);
    holder.silent_from = 3.0;
    let reader = Member::new(100.0, Some(0.0)).with_lines(&[0, 1]);
    let out = House::new(vec![holder, reader], &[20.0, 20.0], total, 1).run(200.0);
    show("a holder that falls silent", &out, total);
    let first = out[1].asked.iter().find(|a| a.1).unwrap().0;
    assert!((3.0..5.0).contains(&first), "first asked of a line at {first} s");
    let rest = (total as f64 - out[1].from[&0]) / (40.0 * MBIT);
    assert!(
        out[1].seconds <= 5.0 + 1.05 * rest + 1.0,
        "{} s, {rest} s for the rest",
        out[1].seconds
    );
}

#[test]
fn eight_readers_of_one_holder_are_done_in_little_more_than_twice_the_time_of_one() {
    let total = 64 * MIB;
    let one = House::new(
        vec![Member::new(100.0, None), Member::new(100.0, Some(0.0))],
        &[],
        total,
        1,
    )
    .run(100.0);
    let mut times = Vec::new();
    let mut wasted = 0.0;
    for seed in 1..=HOUSES {
        let members = (0..9).map(|i| Member::new(100.0, (i > 0).then_some(0.0)));
        let out = House::new(members.collect(), &[], total, seed).run(100.0);
        times.push(out.iter().map(|o| o.seconds).fold(0.0, f64::max) / one[1].seconds);
        wasted += out.iter().map(|o| o.wasted).sum::<f64>();
    }
    times.sort_by(f64::total_cmp);
    println!(
        "eight readers against one alone ({:.2} s): best {:.2}, median {:.2}, worst {:.2} of {HOUSES}; wasted {:.2} %",
        one[1].seconds,
        times[0],
        times[times.len() / 2],
        times[times.len() - 1],
        100.0 * wasted / (8 * total * HOUSES) as f64
    );
    assert!(times.iter().all(|t| *t < 2.2), "{times:?}");
}

#[test]
fn two_members_share_the_work_and_no_piece_crosses_the_internet_twice() {
    let total = 64 * MIB;
    let alone = House::new(
        vec![Member::new(1000.0, Some(0.0)).with_lines(&[0, 1])],
        &[20.0, 20.0],
        total,
        1,
    )
    .run(100.0);
    for (seed, after) in [(1, 0.0), (2, 0.05), (3, 0.5), (4, 1.0), (5, 3.0), (6, 8.0)] {
        let members = vec![
            Member::new(1000.0, Some(0.0)).with_lines(&[0, 1]),
            Member::new(1000.0, Some(after)).with_lines(&[0, 1]),
        ];
        let out = House::new(members, &[20.0, 20.0], total, seed).run(100.0);
        show(&format!("two members, the second {after} s later"), &out, total);
        let over: f64 = out.iter().map(|o| o.over_lines).sum();
        let last = out[0].seconds.max(out[1].seconds + after);
        println!(
            "  one alone {:.2} s, both {last:.2} s, {:.3} x over the lines",
            alone[0].seconds,
            over / total as f64
        );
        assert!(over <= 1.08 * total as f64, "{over} bytes over the lines");
        assert!(last <= 1.15 * alone[0].seconds + 1.0, "{last} s");
    }
}

#[test]
fn where_sources_are_far_slower_than_the_uplinks_these_help_out() {
    let total = 64 * MIB;
    let mut holder = Member::new(100.0, None);
    holder.sends = 5.0 * MBIT;
    let reader = Member::new(100.0, Some(0.0)).with_lines(&[0, 1]);
    let out = House::new(vec![holder, reader], &[20.0, 20.0], total, 1).run(200.0);
    show("a slow holder", &out, total);
    // The lines alone take 13.4 s; it takes a moment until the holder is known to be slow.
    let lines = lan(40.0, total);
    assert!(
        out[1].seconds <= 1.1 * lines + 2.0,
        "{} s, the lines alone {lines} s",
        out[1].seconds
    );
    assert!(
        out[1].from[&0] > 4.0 * MIB as f64,
        "the holder goes on beside them"
    );
}

#[test]
fn the_last_pieces_of_a_slow_source_are_taken_over_by_a_fast_one() {
    let total = 64 * MIB;
    let mut slow = Member::new(100.0, None);
    slow.sends = 1.0 * MBIT;
    let out = House::new(
        vec![Member::new(100.0, None), slow, Member::new(100.0, Some(0.0))],
        &[],
        total,
        1,
    )
    .run(200.0);
    show("a fast and a slow holder", &out, total);
    let least = lan(100.0, total);
    assert!(
        out[2].seconds <= 1.1 * least + 0.5,
        "{} s, the port {least} s",
        out[2].seconds
    );
}
