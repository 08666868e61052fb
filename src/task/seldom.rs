//! Few lines for what may happen often: whoever can cause a line in the log must not be able to fill a disk with them.
//!
//! [`Seldom`] is one place's throttle: a `static` beside the line it guards. Invariant: in any stretch of `per`, no more than
//! twice `most` are let through, and each one that was not is counted in the next that is.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets a few lines pass in each stretch of time. For a `static`:
///
/// ```
/// # use std::time::Duration;
/// # use tributary::task::Seldom;
/// static NEWS: Seldom = Seldom::new(10, Duration::from_secs(60));
/// if let Some(more) = NEWS.pass() {
///     tracing::info!(more, "it happened");
/// }
/// ```
#[derive(Debug)]
pub struct Seldom(Mutex<Throttle>);

impl Seldom {
    /// Lets `most` pass in each `per`.
    pub const fn new(most: u32, per: Duration) -> Self {
        Self(Mutex::new(Throttle::new(most, per)))
    }

    /// Whether this one may pass; then, how many were held back since the last that did, if any were: a line is not to
    /// end in `more=0`.
    pub fn pass(&self) -> Option<Option<u64>> {
        let mut throttle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = throttle.pass(Instant::now())?;
        Some(Some(held).filter(|held| *held > 0))
    }
}

/// The same without a clock.
#[derive(Debug)]
struct Throttle {
    most: u32,
    per: Duration,
    since: Option<Instant>,
    passed: u32,
    held: u64,
}

impl Throttle {
    const fn new(most: u32, per: Duration) -> Self {
        Self {
            most,
            per,
            since: None,
            passed: 0,
            held: 0,
        }
    }

    fn pass(&mut self, now: Instant) -> Option<u64> {
        if self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= self.per)
        {
            self.since = Some(now);
            self.passed = 0;
        }
        if self.passed >= self.most {
            self.held += 1;
            return None;
        }
        self.passed += 1;
        Some(std::mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_few_pass_and_the_rest_are_counted_in_the_next() {
        let minute = Duration::from_secs(60);
        let start = Instant::now();
        let mut throttle = Throttle::new(3, minute);
        let passed: Vec<_> = (0..40).map(|_| throttle.pass(start)).collect();
        assert_eq!(passed[..4], [Some(0), Some(0), Some(0), None]);
        assert!(passed[4..].iter().all(Option::is_none));
        assert_eq!(throttle.pass(start + minute), Some(37), "and 37 more");
        assert_eq!(throttle.pass(start + minute), Some(0));
    }
}
