//! What a client holds, and what is kept of it.
//!
//! A secret that Lory makes has 256 random bits, so its plain SHA-256 tells nothing that could be tried out: no salt and no slow
//! hash would add anything, as they do for passwords that people choose. That is why short secrets are refused.

use std::fmt;

use base16ct::HexDisplay;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// What secrets of Lory's own making begin with, so that scanners of leaked secrets can find them.
pub const PREFIX: &str = "lory_";
/// The least characters of a secret that someone else made.
pub const MIN_CHARACTERS: usize = 32;
/// The most characters of a secret.
pub const MAX_CHARACTERS: usize = 256;

/// A fresh secret: [`PREFIX`] and 64 hexadecimal digits.
///
/// # Errors
/// The system has no random numbers to give.
pub fn fresh() -> Result<String, getrandom::Error> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{PREFIX}{:x}", HexDisplay(&bytes)))
}

/// The SHA-256 of a secret: all that is kept of it.
#[derive(Clone, Copy)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of a secret.
    #[must_use]
    pub fn of(secret: &str) -> Digest {
        Digest(Sha256::digest(secret.as_bytes()).into())
    }

    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Digest> {
        let mut bytes = [0; 32];
        let decoded = base16ct::mixed::decode(text, &mut bytes).ok()?;
        (decoded.len() == 32).then_some(Digest(bytes))
    }

    /// Whether both are the same, in a time that does not tell where they differ.
    #[must_use]
    pub fn is(&self, other: &Digest) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&HexDisplay(&self.0), f)
    }
}

/// Not for logs: whoever prints a key for debugging shall not spread even its hash.
impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        // printf abc | sha256sum
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let digest = Digest::of("abc");
        assert_eq!(digest.to_string(), abc);
        assert!(Digest::parse(abc).unwrap().is(&digest));
        assert!(!Digest::of("abd").is(&digest));
        for wrong in [
            "",
            "ba78",
            &abc[1..],
            &abc.replace('b', "g"),
            &"é".repeat(32),
        ] {
            assert!(Digest::parse(wrong).is_none(), "{wrong}");
        }
        assert!(!format!("{digest:?}").contains("ba78"));
    }

    #[test]
    fn secrets_are_long_and_never_the_same() {
        let (one, two) = (fresh().unwrap(), fresh().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.len(), PREFIX.len() + 64);
        assert!(one.len() >= MIN_CHARACTERS);
    }
}
