//! A client's secret, and the hash of it that the server stores.
//!
//! A generated secret has 256 random bits, so nobody can guess it from its plain SHA-256. A salt or a slow hash protects passwords
//! that people choose and would add nothing here. That is why short secrets are refused.

use std::fmt;

use base16ct::HexDisplay;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// The beginning of generated secrets, so that scanners for leaked secrets can find them.
pub const PREFIX: &str = "lory_";
/// The fewest characters of a secret that was not generated here.
pub const MIN_CHARACTERS: usize = 32;
/// The most characters of a secret.
pub const MAX_CHARACTERS: usize = 256;

/// A new secret: [`PREFIX`] and 64 hexadecimal digits.
///
/// # Errors
/// The system has no random numbers.
pub fn generate() -> Result<String, getrandom::Error> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{PREFIX}{:x}", HexDisplay(&bytes)))
}

/// The SHA-256 of a secret. The secret itself is not stored.
#[derive(Clone, Copy)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// The hash of a secret.
    #[must_use]
    pub fn of(secret: &str) -> SecretHash {
        SecretHash(Sha256::digest(secret.as_bytes()).into())
    }

    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<SecretHash> {
        let mut bytes = [0; 32];
        let decoded = base16ct::mixed::decode(text, &mut bytes).ok()?;
        (decoded.len() == 32).then_some(SecretHash(bytes))
    }

    /// Whether both are equal, in constant time.
    #[must_use]
    pub fn matches(&self, other: &SecretHash) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&HexDisplay(&self.0), f)
    }
}

/// Hides the hash, so that debug output of a key does not leak it.
impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_read_back_as_it_is_written() {
        // printf abc | sha256sum
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest = SecretHash::of("abc");
        assert_eq!(digest.to_string(), abc);
        assert!(SecretHash::parse(abc).unwrap().matches(&digest));
        assert!(!SecretHash::of("abd").matches(&digest));
        for wrong in [
            "",
            "ba78",
            &abc[1..],
            &abc.replace('b', "g"),
            &"é".repeat(32),
        ] {
            assert!(SecretHash::parse(wrong).is_none(), "{wrong}");
        }
        assert!(!format!("{digest:?}").contains("ba78"));
    }

    #[test]
    fn generated_secrets_are_long_and_unique() {
        let (one, two) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.len(), PREFIX.len() + 64);
        assert!(one.len() >= MIN_CHARACTERS);
    }
}
