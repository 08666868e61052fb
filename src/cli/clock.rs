//! The time of day where the user is, for "until 10:42".

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::libc;

/// The local time of day, hours and minutes, so long from now; with seconds where it is less than a minute.
pub(super) fn in_so_long(wait: Duration) -> String {
    let at = SystemTime::now() + wait;
    let Some((hour, minute, second)) = local(at) else {
        return format!("in {} s", wait.as_secs());
    };
    if wait < Duration::from_secs(60) {
        format!("{hour:02}:{minute:02}:{second:02}")
    } else {
        format!("{hour:02}:{minute:02}")
    }
}

fn local(at: SystemTime) -> Option<(i32, i32, i32)> {
    let seconds = at.duration_since(UNIX_EPOCH).ok()?.as_secs();
    // `time_t`, whose width differs between C libraries.
    let seconds = seconds.try_into().ok()?;
    let mut fields = std::mem::MaybeUninit::<libc::tm>::zeroed();
    #[expect(unsafe_code, reason = "neither std nor nix knows time zones")]
    // SAFETY: both pointers are valid for the call, and all zeros is a `tm`; this program changes no environment
    // variable, which is what the function reads besides.
    let fields = unsafe {
        if libc::localtime_r(&raw const seconds, fields.as_mut_ptr()).is_null() {
            return None;
        }
        fields.assume_init()
    };
    Some((fields.tm_hour, fields.tm_min, fields.tm_sec))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_day_is_hours_and_minutes_and_seconds_where_they_matter() {
        assert_eq!(in_so_long(Duration::from_secs(600)).len(), 5);
        assert_eq!(in_so_long(Duration::from_secs(5)).len(), 8);
    }
}
