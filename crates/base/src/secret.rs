//! Secrets have their own type: wiped on drop, without `Debug` and `Serialize`, opened by a word one can search for.

use zeroize::Zeroize;

/// A value that must not be seen by accident. [`Secret::expose`] is the only way in.
///
/// Copies made while a buffer grows are not wiped: build the value at its final size.
pub struct Secret<T: Zeroize>(T);

/// Secret text.
pub type SecretString = Secret<String>;
/// Secret bytes.
pub type SecretBytes = Secret<Vec<u8>>;

impl<T: Zeroize> Secret<T> {
    /// Takes `value` into custody.
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// Opens the secret. Each call is a place where it can leak.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize + Clone> Clone for Secret<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}
