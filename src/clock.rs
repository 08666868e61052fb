//! What the system's clocks tell beside the time: whether the device slept, whether its calendar was moved, and whether
//! that can be right at all.
//!
//! Everything that waits in this program goes by the monotonic clock ([`Instant`]), which neither a user nor NTP can
//! move, but which stands still while the device is suspended. So three clocks are read together and compared with how
//! they stood before. Pure but for [`Reading::now`].

use std::time::{Duration, Instant, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// A shorter sleep than this broke nothing: peers keep a link for 3.5 s.
const MIN_SLEEP: Duration = Duration::from_secs(3);
/// A calendar that is drawn near by NTP (0.05 %) never moves so far from one look to the next.
const MIN_MOVE: Duration = Duration::from_secs(5);
/// 2026-01-01, in seconds after 1970: this program did not exist before, so a calendar that says so was never set. A Pi
/// has no battery for its clock: it says 1970, or when it was last switched off.
const PROGRAM: u64 = 1_767_225_600;
const DAY: u64 = 86_400;

/// How the clocks stood at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Stands still while the device is suspended.
    pub running: Instant,
    /// Goes on while the device is suspended; `None` where the kernel does not say.
    pub since_boot: Option<Duration>,
    /// The calendar, which anybody may set.
    pub calendar: SystemTime,
}

/// What happened between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jump {
    /// The device was suspended for so long: whatever was open to others may be dead.
    Slept(Duration),
    /// The calendar was set anew; nothing else happened.
    Moved,
}

/// Compares each reading with the one before.
#[derive(Debug, Default)]
pub struct Jumps(Option<Reading>);

impl Reading {
    /// Reads the clocks.
    pub fn now() -> Self {
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
        Self {
            running: Instant::now(),
            since_boot: boot.ok(),
            calendar: SystemTime::now(),
        }
    }
}

impl Jumps {
    /// What happened since the last call; at the first one, nothing.
    pub fn look(&mut self, now: Reading) -> Option<Jump> {
        let before = self.0.replace(now)?;
        let ran = now.running.saturating_duration_since(before.running);
        let boot = now.since_boot.zip(before.since_boot);
        let slept = boot.map_or(Duration::ZERO, |(now, before)| {
            now.saturating_sub(before).saturating_sub(ran)
        });
        if slept >= MIN_SLEEP {
            return Some(Jump::Slept(slept));
        }
        let expected = before.calendar + ran + slept;
        let off = match now.calendar.duration_since(expected) {
            Ok(ahead) => ahead,
            Err(behind) => behind.duration(),
        };
        (off >= MIN_MOVE).then_some(Jump::Moved)
    }
}

/// Whether the calendar may be right: it says no date before this program was made.
pub fn is_set(calendar: SystemTime) -> bool {
    let since_1970 = calendar.duration_since(SystemTime::UNIX_EPOCH);
    since_1970.is_ok_and(|since| since.as_secs() >= PROGRAM)
}

/// The date that the calendar says (UTC), as `1970-01-01`.
pub fn date(calendar: SystemTime) -> String {
    let days = match calendar.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => (since.as_secs() / DAY).cast_signed(),
        Err(before) => -before.duration().as_secs().div_ceil(DAY).cast_signed(),
    };
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of a day counted from 1970-01-01 in the Gregorian calendar. Years are taken to begin in March, so
/// that the leap day is a year's last one; 400 of them are an era of always the same length.
const fn civil(days: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    let from_march = days + 719_468;
    let (era, day) = (from_march.div_euclid(ERA), from_march.rem_euclid(ERA));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let first = (153 * month + 2) / 5;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + next, month, day - first + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// So long after `before` by each clock.
    fn later(before: Reading, running: Duration, boot: Duration, calendar: Duration) -> Reading {
        Reading {
            running: before.running + running,
            since_boot: before.since_boot.map(|since| since + boot),
            calendar: before.calendar + calendar,
        }
    }

    fn start() -> Reading {
        Reading {
            running: Instant::now(),
            since_boot: Some(100 * SECOND),
            calendar: at(PROGRAM),
        }
    }

    fn jump(then: Reading, now: Reading) -> Option<Jump> {
        let mut jumps = Jumps::default();
        assert_eq!(
            jumps.look(then),
            None,
            "there is nothing to compare the first with"
        );
        jumps.look(now)
    }

    #[test]
    fn time_that_passes_by_all_clocks_is_no_jump() {
        let then = start();
        for seconds in [0, 1, 3_600, 1_000_000] {
            let passed = seconds * SECOND;
            assert_eq!(jump(then, later(then, passed, passed, passed)), None);
        }
        let drawn = later(then, SECOND, SECOND, SECOND + SECOND / 2_000);
        assert_eq!(jump(then, drawn), None, "NTP draws the calendar near");
    }

    #[test]
    fn a_suspended_hour_is_told_from_a_calendar_that_was_set() {
        let then = start();
        let hour = 3_600 * SECOND;
        let slept = later(then, SECOND, SECOND + hour, SECOND + hour);
        assert_eq!(jump(then, slept), Some(Jump::Slept(hour)));
        let moved = later(then, SECOND, SECOND, SECOND + hour);
        assert_eq!(jump(then, moved), Some(Jump::Moved));
        let mut back = later(then, SECOND, SECOND, SECOND);
        back.calendar -= hour;
        assert_eq!(jump(then, back), Some(Jump::Moved));
        let short = later(then, SECOND, 3 * SECOND, 3 * SECOND);
        assert_eq!(jump(then, short), None, "links outlive two seconds");
    }

    #[test]
    fn a_kernel_that_does_not_count_sleep_shows_a_moved_calendar() {
        let then = Reading {
            since_boot: None,
            ..start()
        };
        let hour = 3_600 * SECOND;
        assert_eq!(jump(then, later(then, SECOND, hour, hour)), Some(Jump::Moved));
    }

    #[test]
    fn a_date_before_this_program_was_made_is_no_date() {
        assert!(!is_set(SystemTime::UNIX_EPOCH) && !is_set(SystemTime::UNIX_EPOCH - SECOND));
        assert!(!is_set(at(PROGRAM - 1)) && is_set(at(PROGRAM)) && is_set(at(4_000_000_000)));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01"),
            (PROGRAM - 1, "2025-12-31"),
            (PROGRAM, "2026-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(date(at(seconds)), text);
        }
        assert_eq!(date(SystemTime::UNIX_EPOCH - SECOND), "1969-12-31");
    }
}
