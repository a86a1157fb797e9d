//! The random source for secrets.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base::{Rng, RngFault};

/// The library's generator, seeded by the operating system. Its failure stops whatever wanted the bytes.
#[derive(Clone, Debug, Default)]
pub struct SystemRng(SystemRandom);

impl SystemRng {
    /// Opens the source.
    #[must_use]
    pub fn new() -> Self {
        Self(SystemRandom::new())
    }
}

impl Rng for SystemRng {
    fn fill(&self, out: &mut [u8]) -> Result<(), RngFault> {
        self.0.fill(out).map_err(|_| RngFault)
    }
}
