//! Durations as Vault clients write them: whole seconds, or Go's grammar with a `d` for days.

use std::time::Duration;

/// A duration that could not be read. Says what is wrong without repeating the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TtlError {
    /// Empty, no number, or an unknown unit.
    Grammar,
    /// Below zero.
    Negative,
    /// Above [`TTL_MAX`].
    TooLong,
    /// More than nothing, and less than a nanosecond.
    TooShort,
}

impl std::fmt::Display for TtlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Grammar => "expected seconds or a duration such as `90s`, `1h30m`, `7d`",
            Self::Negative => "a duration cannot be negative",
            Self::TooLong => "a duration cannot be longer than 100 years",
            Self::TooShort => "a duration that is not 0 cannot be shorter than a nanosecond",
        })
    }
}

impl std::error::Error for TtlError {}

/// The longest duration that is accepted: 100 years.
pub const TTL_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Reads `"90"` (seconds), `"1h30m"`, `"1.5s"`, `"500ms"`, `"7d"`.
///
/// # Errors
/// [`TtlError`] says which rule was broken.
pub fn parse(text: &str) -> Result<Duration, TtlError> {
    if let Some(rest) = text.strip_prefix('-') {
        return Err(if rest.is_empty() { TtlError::Grammar } else { TtlError::Negative });
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return seconds(text.parse().map_err(|_| TtlError::TooLong)?);
    }
    let mut rest = text;
    let mut nanos: u128 = 0;
    if rest.is_empty() {
        return Err(TtlError::Grammar);
    }
    while !rest.is_empty() {
        let (number, after) = split(rest, |b| b.is_ascii_digit() || b == b'.');
        let (unit, after) = split(after, |b| !(b.is_ascii_digit() || b == b'.'));
        rest = after;
        let scale: u128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            _ => return Err(TtlError::Grammar),
        };
        nanos = nanos.saturating_add(scaled(number, scale)?);
    }
    if nanos > TTL_MAX.as_nanos() {
        return Err(TtlError::TooLong);
    }
    // Nothing often means "for ever" or "as is usual": what asks for something must not come to that.
    if nanos == 0 && text.bytes().any(|b| matches!(b, b'1'..=b'9')) {
        return Err(TtlError::TooShort);
    }
    Ok(Duration::from_nanos(u64::try_from(nanos).map_err(|_| TtlError::TooLong)?))
}

/// A whole number of seconds, up to [`TTL_MAX`].
///
/// # Errors
/// [`TtlError::TooLong`].
pub fn seconds(seconds: u64) -> Result<Duration, TtlError> {
    let span = Duration::from_secs(seconds);
    if span > TTL_MAX { Err(TtlError::TooLong) } else { Ok(span) }
}

/// `span` in whole seconds, a part of one counted as one: where times are kept in seconds, and none means for ever, half a second is not
/// none.
#[must_use]
pub fn whole_seconds(span: Duration) -> Duration {
    Duration::from_secs(span.as_secs().saturating_add(u64::from(span.subsec_nanos() > 0)))
}

fn split(text: &str, keep: impl Fn(u8) -> bool) -> (&str, &str) {
    let end = text.bytes().position(|b| !keep(b)).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

fn scaled(number: &str, scale: u128) -> Result<u128, TtlError> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(TtlError::Grammar);
    }
    let digits = |text: &str| -> Result<u128, TtlError> {
        match text.len() {
            0 => Ok(0),
            1..=18 => text.parse().map_err(|_| TtlError::Grammar),
            _ => Err(TtlError::TooLong),
        }
    };
    let power = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0).min(18));
    Ok(digits(whole)?.saturating_mul(scale).saturating_add(digits(fraction)?.saturating_mul(scale) / power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_clients_write() {
        for (text, millis) in [
            ("0", 0),
            ("90", 90_000),
            ("1h30m", 5_400_000),
            ("500ms", 500),
            ("1.5s", 1_500),
            ("7d", 604_800_000),
            (".5s", 500),
            ("768h", 2_764_800_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["", "-", "h", "1y", "1.2.3s", ".s", "1 h", "1h 1m", "١h", "1e9", "0x10s", "+5s"] {
            assert_eq!(parse(text), Err(TtlError::Grammar), "{text}");
        }
        assert_eq!(parse("-1"), Err(TtlError::Negative));
        for text in ["999999999h", "99999999999999999999", "9999999999999999999999999s"] {
            assert_eq!(parse(text), Err(TtlError::TooLong), "{text}");
        }
        for text in ["0.0000000001ns", "0.0000000001s", "0h0.1ns"] {
            assert_eq!(parse(text), Err(TtlError::TooShort), "{text}");
        }
        for text in ["0.0ns", "0h0m0s", "0.0000000000s"] {
            assert_eq!(parse(text), Ok(Duration::ZERO), "{text}");
        }
    }

    #[test]
    fn a_part_of_a_second_counts_as_one() {
        for (millis, seconds) in [(0, 0), (1, 1), (500, 1), (1_000, 1), (1_001, 2)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), Duration::from_secs(seconds), "{millis}");
        }
    }
}
