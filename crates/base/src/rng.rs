//! Randomness as an argument.

use std::sync::atomic::{AtomicU64, Ordering};

/// The source of randomness failed. Nothing may be made without it: callers stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RngFault;

impl std::fmt::Display for RngFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the source of randomness failed")
    }
}

impl std::error::Error for RngFault {}

/// A source of random bytes. The one for secrets is `crypto::rng::SystemRng`.
pub trait Rng: Send + Sync {
    /// Fills `out` completely.
    ///
    /// # Errors
    /// When the source fails; `out` must then not be used.
    fn fill(&self, out: &mut [u8]) -> Result<(), RngFault>;
}

/// A repeatable source for tests, load and jitter. **Never for secrets**: its output is predictable.
#[derive(Debug)]
pub struct SeededRng(AtomicU64);

impl SeededRng {
    /// Starts from `seed`; equal seeds give equal bytes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next 64 bits (the SplitMix64 sequence).
    pub fn next_u64(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound` (0 when `bound` is 0); slightly uneven for huge bounds.
    pub fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }
}

impl Rng for SeededRng {
    fn fill(&self, out: &mut [u8]) -> Result<(), RngFault> {
        for chunk in out.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(bytes) {
                *to = from;
            }
        }
        Ok(())
    }
}
