//! The clock of a machine with a kernel of its own, which nothing else keeps
//! right: its hardware counts whole seconds, and it stands while the node sleeps.

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

const NANOS_PER_SECOND: i64 = 1_000_000_000;
/// A smaller difference is the way of the message.
const TOLERATED_NANOS: i64 = 1_000_000;

/// Sets the clock to the caller's time, in nanoseconds since the epoch, unless it
/// says the same already.
pub(crate) fn follow(time_nanos: i64) {
    let now = clock_gettime(ClockId::Realtime);
    let Some(time) = setting(now, time_nanos) else {
        return;
    };
    // Without the right to, as in a test, the clock stays as it is.
    let _unchanged = clock_settime(ClockId::Realtime, time);
}

/// What the clock is to be set to, if it is to be set.
fn setting(now: Timespec, time_nanos: i64) -> Option<Timespec> {
    let now_nanos = now.tv_sec.checked_mul(NANOS_PER_SECOND)?.checked_add(now.tv_nsec)?;
    let off = time_nanos > 0 && now_nanos.abs_diff(time_nanos) > TOLERATED_NANOS.unsigned_abs();
    off.then_some(Timespec { tv_sec: time_nanos / NANOS_PER_SECOND, tv_nsec: time_nanos % NANOS_PER_SECOND })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_is_off_is_set() {
        let now = Timespec { tv_sec: 100, tv_nsec: 5 };
        for (time, expected) in [
            (0, None),
            (-1, None),
            (100_000_000_005, None),
            (100_000_900_000, None),
            (100_100_000_005, Some((100, 100_000_005))),
            (99_000_000_001, Some((99, 1))),
        ] {
            let found = setting(now, time).map(|time| (time.tv_sec, time.tv_nsec));
            assert_eq!(found, expected, "{time}");
        }
    }
}
