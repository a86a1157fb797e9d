//! Generated passwords.

use base::{Rng, RngFault, Secret, SecretString};

/// Characters of a generated password: 40 of 62 kinds are 238 bits.
pub const LENGTH: usize = 40;

/// A password of `len` characters from `0-9A-Za-z`, each equally likely.
///
/// # Errors
/// When the source of randomness fails.
pub fn generate(rng: &dyn Rng, len: usize) -> Result<SecretString, RngFault> {
    base::id::base62(rng, len).map(Secret::new)
}
