//! Waiting longer each time, never in step with others.

use std::time::Duration;

use base::Rng;
use base::rng::SeededRng;

/// A growing wait with jitter: between half of the step and the whole step, the step doubling up to a cap.
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, attempt: 0 }
    }

    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }

    /// The next wait; `below` draws a number below its argument.
    pub(crate) fn next(&mut self, below: impl Fn(u64) -> u64) -> Duration {
        let step = self.min.saturating_mul(1_u32.checked_shl(self.attempt).unwrap_or(u32::MAX)).min(self.max);
        self.attempt = self.attempt.saturating_add(1).min(31);
        let half = step / 2;
        let micros = u64::try_from(half.as_micros()).unwrap_or(u64::MAX);
        half.saturating_add(Duration::from_micros(below(micros.saturating_add(1))))
    }
}

/// A source of jitter that differs between processes.
pub(crate) fn seeded() -> SeededRng {
    let mut seed = [0; 8];
    // Jitter of a fixed seed is poor, not wrong; a process that cannot draw eight bytes has louder trouble elsewhere.
    if crypto::rng::SystemRng::new().fill(&mut seed).is_err() {
        seed = u64::from(std::process::id()).to_le_bytes();
    }
    SeededRng::new(u64::from_le_bytes(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_stay_within_half() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let rng = SeededRng::new(7);
        let mut backoff = Backoff::new(min, max);
        for step in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            let wait = backoff.next(|bound| rng.below(bound));
            assert!(wait >= Duration::from_millis(step / 2) && wait <= Duration::from_millis(step), "{step}: {wait:?}");
        }
        for _ in 0..100 {
            assert!(backoff.next(|_| 0) == max / 2, "no overflow however long it goes on");
        }
        backoff.reset();
        assert_eq!(backoff.next(|_| 0), min / 2);
    }

    #[test]
    fn two_processes_do_not_wait_in_step() {
        assert_ne!(seeded().next_u64(), seeded().next_u64());
    }
}
