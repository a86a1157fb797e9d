//! Time as an argument: wall-clock instants for expiry, monotonic ones for deadlines inside a process.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Microseconds since 1970-01-01T00:00:00Z, leap seconds not counted. Below 2^53, so it is exact in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The beginning of 1970.
    pub const ZERO: Self = Self(0);

    /// From whole seconds since 1970.
    #[must_use]
    pub fn from_unix_seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Whole seconds since 1970, rounded down.
    #[must_use]
    pub fn unix_seconds(self) -> u64 {
        self.0 / 1_000_000
    }

    /// `self + span`, ending at the largest timestamp instead of wrapping.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// `self - span`, ending at the beginning of 1970.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// RFC 3339 in UTC with trailing zeros of the fraction dropped, the spelling that Go's `RFC3339Nano` gives:
    /// `2026-01-02T03:04:05.123456Z`.
    #[must_use]
    pub fn rfc3339(self) -> String {
        let micros = i64::try_from(self.0).unwrap_or(i64::MAX);
        jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MAX).to_string()
    }

    /// Reads what [`Timestamp::rfc3339`] writes, and any other RFC 3339 time with an offset.
    #[must_use]
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let at: jiff::Timestamp = text.parse().ok()?;
        u64::try_from(at.as_microsecond()).ok().map(Self)
    }
}

/// The clocks of a process.
pub trait Clock: Send + Sync {
    /// The wall clock. May jump; who decides expiry by it takes the maximum with the last committed time.
    fn now(&self) -> Timestamp;
    /// The monotonic clock, for deadlines inside this process.
    fn instant(&self) -> Instant;
}

/// The clocks of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::ZERO.after(since)
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
    fn instant(&self) -> Instant {
        Instant::now()
    }
}

/// A clock that a test moves. It starts at 2026-01-01T00:00:00Z.
#[derive(Debug)]
pub struct ManualClock {
    start: Instant,
    state: Mutex<(Timestamp, Duration)>,
}

impl ManualClock {
    /// A clock standing still at the start.
    #[must_use]
    pub fn new() -> Self {
        Self { start: SystemClock.instant(), state: Mutex::new((Timestamp::from_unix_seconds(1_767_225_600), Duration::ZERO)) }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, span: Duration) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *state = (state.0.after(span), state.1.saturating_add(span));
    }

    /// Sets the wall clock alone, forwards or backwards, as an operator or a bad time server would.
    pub fn jump(&self, to: Timestamp) {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0 = to;
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).0
    }

    fn instant(&self) -> Instant {
        let passed = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1;
        self.start.checked_add(passed).unwrap_or(self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_is_what_vault_clients_read() {
        for (micros, text) in [
            (1_767_323_045_123_456, "2026-01-02T03:04:05.123456Z"),
            (1_767_323_045_000_000, "2026-01-02T03:04:05Z"),
            (1_767_323_045_120_000, "2026-01-02T03:04:05.12Z"),
            (0, "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(Timestamp(micros).rfc3339(), text);
            assert_eq!(Timestamp::parse_rfc3339(text), Some(Timestamp(micros)));
        }
    }

    #[test]
    fn arithmetic_never_wraps() {
        assert_eq!(Timestamp(u64::MAX).after(Duration::MAX), Timestamp(u64::MAX));
        assert_eq!(Timestamp(1).since(Timestamp(5)), Duration::ZERO);
        assert_eq!((Timestamp(1).before(Duration::MAX), Timestamp(5).before(Duration::from_micros(2))), (Timestamp::ZERO, Timestamp(3)));
    }

    #[test]
    fn a_jump_moves_the_wall_clock_alone() {
        let clock = ManualClock::new();
        let before = clock.instant();
        clock.jump(Timestamp::from_unix_seconds(4_000_000_000));
        assert_eq!(clock.instant(), before);
        clock.advance(Duration::from_secs(2));
        assert_eq!(clock.instant() - before, Duration::from_secs(2));
    }
}
