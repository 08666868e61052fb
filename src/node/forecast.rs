//! What pooling will bring: the honest sum over lines that are really different, from measured rates.
//!
//! Invariants: pure; a line counts once, however many lanes lead over it; what was never measured is said and not guessed;
//! no speed-up is claimed where there is none.

use std::collections::BTreeMap;
use std::fmt;

use crate::types::{LineId, Rate};

/// A lane, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Where it ends.
    pub(super) line: LineId,
    /// Whether it is a peer's.
    pub(super) lent: bool,
    /// Whether a download would use it; of the lanes of one line one is.
    pub(super) used: bool,
    /// What it can bring; `None` where that was not measured yet.
    pub(super) rate: Option<Rate>,
}

/// What to expect of a download over everything there is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Forecast {
    /// This device and the peers it has links with.
    pub(super) devices: usize,
    /// Different lines that a download would use.
    pub(super) lines: usize,
    /// Of these, this device's own.
    pub(super) own: usize,
    /// Of the lines, those whose rate is not known.
    pub(super) unmeasured: usize,
    /// Sum of the known rates. `None`: none is known.
    pub(super) expected: Option<Rate>,
    /// What this device's own lines bring together; where nothing but own ones are there, what the best of them brings.
    /// `None`: it has none, or not all of them are known.
    pub(super) alone: Option<Rate>,
    /// `expected` as a multiple of `alone`, where there is something to multiply and every line is known.
    pub(super) times: Option<f64>,
}

/// A line that would be used: whether it is an own one, and its rate.
#[derive(Clone, Copy, Debug)]
struct Line {
    own: bool,
    rate: Option<Rate>,
}

/// What these lanes will bring together.
pub(super) fn forecast(devices: usize, parts: &[Part]) -> Forecast {
    let mut lines: BTreeMap<LineId, Line> = BTreeMap::new();
    for part in parts.iter().filter(|p| p.used) {
        // Another lane of the line may have been measured where the one in use was not.
        let others = parts
            .iter()
            .filter(|p| p.line == part.line)
            .filter_map(|p| p.rate);
        let rate = part.rate.or_else(|| others.max());
        let own = !part.lent;
        lines.entry(part.line).or_insert(Line { own, rate });
    }
    let own: Vec<Line> = lines.values().copied().filter(|l| l.own).collect();
    let unmeasured = lines.values().filter(|l| l.rate.is_none()).count();
    let expected = (unmeasured < lines.len()).then(|| sum(lines.values()));
    let own_known = !own.is_empty() && own.iter().all(|l| l.rate.is_some());
    let alone = own_known.then(|| {
        if own.len() == lines.len() {
            own.iter().filter_map(|l| l.rate).max().unwrap_or_default()
        } else {
            sum(own.iter())
        }
    });
    let alone = alone.filter(|a| a.as_bits() > 0);
    let whole = expected.filter(|_| unmeasured == 0 && lines.len() > 1);
    let times = whole.zip(alone);
    Forecast {
        devices,
        lines: lines.len(),
        own: own.len(),
        unmeasured,
        expected,
        alone,
        times: times.map(|(all, alone)| all.as_bits() as f64 / alone.as_bits() as f64),
    }
}

fn sum<'a>(lines: impl Iterator<Item = &'a Line>) -> Rate {
    let bits = lines.filter_map(|l| l.rate).map(Rate::as_bits);
    Rate::bits(bits.fold(0, u64::saturating_add))
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { devices, lines, .. } = *self;
        write!(f, "{}, {}", count(devices, "device"), count(lines, "line"))?;
        let Some(expected) = self.expected else {
            return match (devices, lines) {
                (_, 0) => f.write_str(": no way out"),
                (1, 1) => f.write_str(": nothing to pool"),
                (_, 1) => f.write_str(": pooling adds nothing here; a second line would"),
                _ => f.write_str(": not measured yet; a download will tell"),
            };
        };
        match (devices, lines, self.unmeasured) {
            (1, 1, _) => f.write_str(": nothing to pool"),
            (_, 1, _) if self.own == 0 => write!(f, ": expect up to {}, all of it lent", about(expected)),
            (_, 1, _) => f.write_str(": pooling adds nothing here; a second line would"),
            (.., 0) => {
                write!(f, ": expect up to {}", about(expected))?;
                match self.times {
                    Some(times) if self.own == lines => write!(f, ", {times:.1}x the best line"),
                    Some(times) => write!(f, ", {times:.1}x this device alone"),
                    None => f.write_str(", all of it lent"),
                }
            }
            (.., unknown) => write!(
                f,
                ": expect {} and what {} not measured yet {}",
                about(expected),
                count(unknown, "line"),
                if unknown == 1 { "brings" } else { "bring" }
            ),
        }
    }
}

fn count(n: usize, what: &str) -> String {
    match n {
        0 => format!("no {what}"),
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    }
}

/// A rate as far as a forecast can know it: two or three digits.
fn about(rate: Rate) -> String {
    let units = [
        (1_000_000_000, "Gbit/s"),
        (1_000_000, "Mbit/s"),
        (1_000, "kbit/s"),
    ];
    let bits = rate.as_bits();
    let (step, unit) = units
        .into_iter()
        .find(|(step, _)| bits >= *step)
        .unwrap_or((1, "bit/s"));
    let value = bits as f64 / step as f64;
    if value < 9.95 && step > 1 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const M: u64 = 1_000_000;

    fn part(line: u8, lent: bool, used: bool, mbit: Option<u64>) -> Part {
        Part {
            line: LineId([line; 8]),
            lent,
            used,
            rate: mbit.map(|m| Rate::bits(m * M)),
        }
    }

    fn told(devices: usize, parts: &[Part]) -> String {
        forecast(devices, parts).to_string()
    }

    #[test]
    fn lanes_of_one_line_count_once() {
        let parts = [
            part(1, false, true, Some(20)),
            part(1, true, false, Some(18)),
            part(2, true, true, Some(12)),
        ];
        let known = forecast(3, &parts);
        assert_eq!((known.lines, known.expected), (2, Some(Rate::bits(32 * M))));
        assert_eq!(
            known.to_string(),
            "3 devices, 2 lines: expect up to 32 Mbit/s, 1.6x this device alone"
        );
    }

    #[test]
    fn where_pooling_adds_nothing_it_says_so() {
        let own = part(1, false, true, Some(20));
        let shared = part(1, true, false, Some(20));
        assert_eq!(told(1, &[]), "1 device, no line: no way out");
        assert_eq!(told(1, &[own]), "1 device, 1 line: nothing to pool");
        assert_eq!(
            told(1, &[part(1, false, true, None)]),
            "1 device, 1 line: nothing to pool"
        );
        let nothing = "3 devices, 1 line: pooling adds nothing here; a second line would";
        assert_eq!(told(3, &[own, shared, shared]), nothing);
        assert_eq!(forecast(3, &[own, shared, shared]).times, None);
    }

    #[test]
    fn what_was_not_measured_is_said_and_not_guessed() {
        let (own, lent) = (part(1, false, true, None), part(2, true, true, None));
        assert_eq!(
            told(2, &[own, lent]),
            "2 devices, 2 lines: not measured yet; a download will tell"
        );
        let half = [part(1, false, true, Some(20)), lent];
        assert_eq!(
            told(2, &half),
            "2 devices, 2 lines: expect 20 Mbit/s and what 1 line not measured yet brings"
        );
        assert_eq!(forecast(2, &half).times, None);
    }

    #[test]
    fn a_line_is_known_when_any_of_its_lanes_was_measured() {
        let parts = [
            part(1, true, true, None),
            part(1, true, false, Some(7)),
            part(2, false, true, Some(7)),
        ];
        assert_eq!(forecast(3, &parts).expected, Some(Rate::bits(14 * M)));
    }

    #[test]
    fn own_lines_are_compared_with_the_best_of_them_and_lent_ones_with_nothing() {
        let own = [part(1, false, true, Some(30)), part(2, false, true, Some(10))];
        assert_eq!(
            told(1, &own),
            "1 device, 2 lines: expect up to 40 Mbit/s, 1.3x the best line"
        );
        let lent = [part(1, true, true, Some(30)), part(2, true, true, Some(10))];
        assert_eq!(
            told(3, &lent),
            "3 devices, 2 lines: expect up to 40 Mbit/s, all of it lent"
        );
        assert_eq!(
            told(2, &lent[..1]),
            "2 devices, 1 line: expect up to 30 Mbit/s, all of it lent"
        );
    }

    #[test]
    fn rates_are_told_with_as_many_digits_as_a_forecast_has() {
        for (bits, text) in [
            (999, "999 bit/s"),
            (6_400_000, "6.4 Mbit/s"),
            (9_960_000, "10 Mbit/s"),
            (1_200_000_000, "1.2 Gbit/s"),
        ] {
            assert_eq!(about(Rate::bits(bits)), text);
        }
    }

    prop_compose! {
        fn any_part()(line in 0u8..5, lent: bool, used: bool, mbit in prop::option::of(0u64..1000)) -> Part {
            part(line, lent, used, mbit)
        }
    }

    proptest! {
        #[test]
        fn a_forecast_is_the_sum_of_different_lines_and_never_claims_what_is_not_there(
            devices in 1usize..40, parts in prop::collection::vec(any_part(), 0..12)
        ) {
            let known = forecast(devices, &parts);
            let used: std::collections::BTreeSet<_> = parts.iter().filter(|p| p.used).map(|p| p.line).collect();
            prop_assert_eq!(known.lines, used.len());
            prop_assert!(known.own <= known.lines && known.unmeasured <= known.lines);
            let most: u64 = used.iter().map(|line| {
                let rates = parts.iter().filter(|p| p.line == *line).filter_map(|p| p.rate);
                rates.max().unwrap_or_default().as_bits()
            }).sum();
            prop_assert!(known.expected.unwrap_or_default().as_bits() <= most);
            prop_assert!(known.alone.unwrap_or_default() <= known.expected.unwrap_or_default());
            if let Some(times) = known.times {
                prop_assert!(times >= 1.0 && known.lines > 1 && known.unmeasured == 0);
            }
            prop_assert!(known.to_string().chars().count() <= 79, "{}", known);
        }

        #[test]
        fn a_lane_more_on_a_line_that_is_there_changes_nothing(
            parts in prop::collection::vec(any_part(), 1..8), lent: bool
        ) {
            let known: Vec<Part> = parts.iter().copied().filter(|p| p.rate.is_some()).collect();
            prop_assume!(known.iter().any(|p| p.used));
            let used = known.iter().copied().find(|p| p.used);
            let twin = used.map(|p| Part { used: false, lent, ..p });
            let more: Vec<Part> = known.iter().copied().chain(twin).collect();
            prop_assert_eq!(forecast(3, &known), forecast(3, &more));
        }
    }
}
