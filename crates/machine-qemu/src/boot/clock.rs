//! The time stamp counter, which an emulated machine shares with its host.

#[cfg(target_arch = "x86_64")]
use std::time::{Duration, Instant};

/// How long it is watched: the error is then below one in a thousand.
#[cfg(target_arch = "x86_64")]
const WATCHED: Duration = Duration::from_millis(20);

/// The counter's frequency in kHz, measured. What /proc/cpuinfo calls the
/// frequency may be the core's present one instead.
#[allow(unsafe_code, reason = "there is no safe way to read the counter")]
#[cfg(target_arch = "x86_64")]
pub(super) fn counter_khz() -> Option<u64> {
    // SAFETY: every processor of this architecture has the instruction.
    let read = || unsafe { core::arch::x86_64::_rdtsc() };
    let begin = Instant::now();
    let first = read();
    let mut elapsed = begin.elapsed();
    while elapsed < WATCHED {
        std::hint::spin_loop();
        elapsed = begin.elapsed();
    }
    let ticks = u128::from(read().wrapping_sub(first));
    u64::try_from(ticks * 1_000_000 / elapsed.as_nanos().max(1)).ok()
}

/// Other architectures say the frequency themselves.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn counter_khz() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (one, two) = (counter_khz().unwrap(), counter_khz().unwrap());
        assert!(one > 100_000, "{one}");
        assert!(one.abs_diff(two) < one / 50, "{one} {two}");
    }
}
