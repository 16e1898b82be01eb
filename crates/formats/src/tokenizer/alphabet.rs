//! GPT-2's byte alphabet: each byte is written as a visible character. Printable bytes are themselves, the other 68 are U+0100
//! and the following, in order. So a space is written `Ġ` (U+0120).

/// The character of a byte.
pub(super) fn char_of(byte: u8) -> char {
    let hidden = |byte: &u8| !matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if hidden(&byte) {
        let place = (0..byte).filter(hidden).count() as u32;
        char::from_u32(256 + place).unwrap_or(char::REPLACEMENT_CHARACTER)
    } else {
        char::from(byte)
    }
}

/// The bytes of a token. A token with a character outside the alphabet is its own text, as in Hugging Face's library.
pub(super) fn bytes_of(token: &str, byte_of: impl Fn(char) -> Option<u8>) -> Vec<u8> {
    token
        .chars()
        .map(byte_of)
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The inverse of [`char_of`], as a table over the characters below U+0144.
pub(super) fn byte_table() -> impl Fn(char) -> Option<u8> {
    let mut table = [None; 0x144];
    for byte in 0..=255 {
        table[char_of(byte) as usize] = Some(byte);
    }
    move |character| table.get(character as usize).copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_round_trips() {
        assert_eq!(char_of(b' '), 'Ġ');
        assert_eq!(char_of(b'\n'), 'Ċ');
        assert_eq!(char_of(b'a'), 'a');
        assert_eq!(char_of(0xAD), '\u{143}');
        let table = byte_table();
        for byte in 0..=255 {
            assert_eq!(table(char_of(byte)), Some(byte));
        }
        assert_eq!(table('漢'), None);
        assert_eq!(bytes_of("Ġé", &table), b" \xe9");
        assert_eq!(bytes_of("漢", &table), "漢".as_bytes());
    }
}
