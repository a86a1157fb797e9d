//! Comparison that takes the same time wherever the difference is.

/// Whether two byte strings are equal; the time depends on their lengths only.
#[must_use]
pub fn eq(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}
