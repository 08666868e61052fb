//! Rates, sizes and times as people write them: `20 Mbit/s`, `50 GB`, `30 s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A speed in bits a second, written with decimal units: `20 Mbit/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Rate(u64);

impl Rate {
    /// From bits a second.
    pub const fn bits(bits_per_second: u64) -> Self {
        Self(bits_per_second)
    }

    /// From bytes a second; negative and non-finite count as 0.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "float to integer saturates"
    )]
    pub fn bytes_f64(bytes_per_second: f64) -> Self {
        Self((bytes_per_second * 8.0).round() as u64)
    }

    /// `bytes` in `time`; 0 where no time passed.
    pub fn of(bytes: u64, time: Duration) -> Self {
        if time.is_zero() {
            Self(0)
        } else {
            Self::bytes_f64(bytes as f64 / time.as_secs_f64())
        }
    }

    /// Bits a second.
    pub const fn as_bits(self) -> u64 {
        self.0
    }

    /// Bytes a second.
    pub fn as_bytes_f64(self) -> f64 {
        self.0 as f64 / 8.0
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0, 1000, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s"])
    }
}

/// A number of bytes, written with decimal (`50 GB`) or binary (`64 MiB`) units; shown with binary ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0, 1024, &["B", "KiB", "MiB", "GiB", "TiB"])
    }
}

/// A length of time, written with its unit: `30 s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Period(pub Duration);

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let whole = [(3_600_000, "h"), (60_000, "min"), (1000, "s")]
            .into_iter()
            .find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit));
        let (unit, name) = whole.unwrap_or((1, "ms"));
        f.pad(&format!("{} {name}", ms / unit))
    }
}

/// A quantity that could not be read; says what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a {what}: write a number and a unit, such as {example}")]
pub struct UnitError {
    found: String,
    what: &'static str,
    example: &'static str,
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const UNITS: &[(&str, u64)] = &[
            ("bit/s", 1),
            ("kbit/s", 1_000),
            ("Mbit/s", 1_000_000),
            ("Gbit/s", 1_000_000_000),
        ];
        parse(text, UNITS).map(Self).ok_or_else(|| UnitError {
            found: text.chars().take(40).collect(),
            what: "rate",
            example: "`20 Mbit/s` (units: bit/s, kbit/s, Mbit/s, Gbit/s)",
        })
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const UNITS: &[(&str, u64)] = &[
            ("B", 1),
            ("kB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
        ];
        parse(text, UNITS).map(Self).ok_or_else(|| UnitError {
            found: text.chars().take(40).collect(),
            what: "size",
            example: "`50 GB` or `64 MiB` (units: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)",
        })
    }
}

impl FromStr for Period {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const UNITS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("min", 60_000), ("h", 3_600_000)];
        let period = parse(text, UNITS).map(|ms| Self(Duration::from_millis(ms)));
        period.ok_or_else(|| UnitError {
            found: text.chars().take(40).collect(),
            what: "time",
            example: "`30 s` (units: ms, s, min, h)",
        })
    }
}

fn scaled(f: &mut fmt::Formatter<'_>, value: u64, step: u64, units: &[&str]) -> fmt::Result {
    let mut scale = 1;
    let mut unit = 0;
    while unit + 1 < units.len() && value / scale >= step {
        scale *= step;
        unit += 1;
    }
    let text = match (unit, value as f64 / scale as f64) {
        (0, _) => format!("{value} {}", units[0]),
        (_, v) if v < 100.0 => format!("{v:.1} {}", units[unit]),
        (_, v) => format!("{v:.0} {}", units[unit]),
    };
    f.pad(&text)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be in range"
)]
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(split);
    let factor = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    let value = number.parse::<f64>().ok()? * factor as f64;
    (value.is_finite() && value < 1e18).then_some(value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_sizes_are_read_as_people_write_them() {
        assert_eq!("20 Mbit/s".parse(), Ok(Rate::bits(20_000_000)));
        assert_eq!("0.5Gbit/s".parse(), Ok(Rate::bits(500_000_000)));
        assert_eq!("50 GB".parse(), Ok(ByteSize(50_000_000_000)));
        assert_eq!("1.5 MiB".parse(), Ok(ByteSize(1_572_864)));
    }

    #[test]
    fn a_quantity_without_unit_or_with_a_wrong_one_is_refused_with_the_allowed_ones() {
        for bad in [
            "",
            "20",
            "Mbit/s",
            "20 mbit",
            "-1 Mbit/s",
            "1e9 bit/s",
            "99999999999999999999 Gbit/s",
        ] {
            let error = bad.parse::<Rate>().unwrap_err().to_string();
            assert!(error.contains("Mbit/s, Gbit/s"), "{bad}: {error}");
        }
        assert!("12 XB".parse::<ByteSize>().is_err());
    }

    #[test]
    fn times_are_read_and_shown_with_their_unit() {
        for (text, ms, shown) in [
            ("30 s", 30_000, "30 s"),
            ("1.5min", 90_000, "90 s"),
            ("2 h", 7_200_000, "2 h"),
            ("250 ms", 250, "250 ms"),
            ("120 s", 120_000, "2 min"),
        ] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.0, Duration::from_millis(ms), "{text}");
            assert_eq!(period.to_string(), shown);
        }
        for bad in ["30", "s", "30 sec", "-1 s", "1 d"] {
            let error = bad.parse::<Period>().unwrap_err().to_string();
            assert!(error.contains("`30 s` (units: ms, s, min, h)"), "{bad}: {error}");
        }
    }

    #[test]
    fn quantities_are_shown_with_a_fitting_unit() {
        assert_eq!(Rate::bits(999).to_string(), "999 bit/s");
        assert_eq!(Rate::bits(20_000_000).to_string(), "20.0 Mbit/s");
        assert_eq!(ByteSize(64 << 20).to_string(), "64.0 MiB");
        assert_eq!(ByteSize(999 << 30).to_string(), "999 GiB");
        assert_eq!(format!("{:>12}|", Rate::bits(5_000)), "  5.0 kbit/s|");
    }
}
