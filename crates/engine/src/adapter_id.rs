//! The content hash that names an adapter everywhere in the engine.

use std::fmt;
use std::str::FromStr;

use base16ct::HexDisplay;
use thiserror::Error;

/// The sha256 of an adapter's content; written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub [u8; 32]);

/// A text that is not an adapter id.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("an adapter id is 64 hexadecimal digits (a sha256), not {0:?}")]
pub struct ParseAdapterIdError(pub String);

impl fmt::Display for AdapterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&HexDisplay(&self.0), f)
    }
}

impl fmt::Debug for AdapterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AdapterId({self})")
    }
}

impl FromStr for AdapterId {
    type Err = ParseAdapterIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut id = [0; 32];
        match base16ct::mixed::decode(text, &mut id) {
            Ok(decoded) if decoded.len() == 32 => Ok(AdapterId(id)),
            _ => Err(ParseAdapterIdError(text.chars().take(80).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_written_and_read_as_64_hex_digits() {
        let mut bytes = [0xa5; 32];
        bytes[0] = 0x01;
        let text = AdapterId(bytes).to_string();
        assert_eq!(
            (text.len(), &text[..6], text.parse()),
            (64, "01a5a5", Ok(AdapterId(bytes)))
        );
        assert_eq!(text.to_uppercase().parse(), Ok(AdapterId(bytes)));
        for wrong in ["", "01", &"g".repeat(64), &"é".repeat(32), &"1".repeat(65)] {
            assert!(wrong.parse::<AdapterId>().is_err(), "{wrong}");
        }
    }
}
