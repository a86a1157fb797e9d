//! SCRAM-SHA-256 verifiers (RFC 5802, RFC 7677) in the form that PostgreSQL stores, so that a password never travels in a statement.

use std::num::NonZeroU32;

use aws_lc_rs::pbkdf2;
use base::SecretString;

use crate::{encode::base64, hash::sha256, mac};

/// PostgreSQL's default number of iterations.
pub const ITERATIONS: NonZeroU32 = NonZeroU32::new(4_096).unwrap();

/// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>` for an ASCII password.
///
/// PostgreSQL applies SASLprep to the password; for ASCII that changes nothing, so other passwords give nothing.
#[must_use]
pub fn verifier(password: &SecretString, salt: &[u8; 16], iterations: NonZeroU32) -> Option<String> {
    if !password.expose().is_ascii() {
        return None;
    }
    let mut salted = zeroize::Zeroizing::new([0_u8; 32]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password.expose().as_bytes(), salted.as_mut());
    let key = mac::Key::new(salted.as_ref());
    let stored = sha256(&mac::sign(&key, b"Client Key"));
    let server = mac::sign(&key, b"Server Key");
    Some(format!("SCRAM-SHA-256${iterations}:{}${}:{}", base64(salt), base64(&stored), base64(&server)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::from_base64;

    /// RFC 7677 section 3: user `user`, password `pencil`, the server's signature is `6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=`.
    #[test]
    fn rfc_7677_exchange() {
        let salt: [u8; 16] = from_base64("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap().try_into().unwrap();
        let text = verifier(&"pencil".to_owned().into(), &salt, ITERATIONS).unwrap();
        let server = from_base64(text.rsplit(':').next().unwrap()).unwrap();
        let message = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let signature = mac::sign(&mac::Key::new(&server), message.as_bytes());
        assert_eq!(crate::encode::base64(&signature), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert!(text.starts_with("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"));
    }

    #[test]
    fn other_alphabets_are_refused() {
        assert!(verifier(&"pässword".to_owned().into(), &[0; 16], ITERATIONS).is_none());
    }
}
