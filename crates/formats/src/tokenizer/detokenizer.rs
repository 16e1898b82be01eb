//! Converts ids to text one by one, in whole characters.

use std::sync::Arc;

use super::alphabet;
use super::control_tokens::Kind;
use super::pre_tokenizer::{SPACE, Spelling};
use super::vocabulary::{Vocabulary, byte_token};

/// The bytes of every token, end to end.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where token `i` starts; one more than there are tokens.
    starts: Vec<usize>,
    control: Vec<bool>,
    /// Whether the tokenizer inserts a space before a text.
    prefixed: bool,
}

impl Pieces {
    pub(super) fn new(vocabulary: &Vocabulary, spelling: Spelling, prefixed: bool) -> Pieces {
        let table = alphabet::byte_table();
        let mut pieces = Pieces {
            bytes: Vec::new(),
            starts: vec![0],
            control: Vec::new(),
            prefixed,
        };
        for (token, kind) in vocabulary.tokens.iter().zip(&vocabulary.kinds) {
            match kind {
                // Added tokens are their own text.
                Kind::Control | Kind::UserDefined => {
                    pieces.bytes.extend_from_slice(token.as_bytes())
                }
                Kind::Normal => match (spelling, byte_token(token)) {
                    (Spelling::Bytes, _) => {
                        pieces.bytes.extend(alphabet::bytes_of(token, &table));
                    }
                    (Spelling::Pieces, Some(byte)) => pieces.bytes.push(byte),
                    (Spelling::Pieces, None) => {
                        let text = token.replace(SPACE, " ");
                        pieces.bytes.extend_from_slice(text.as_bytes());
                    }
                },
            }
            pieces.starts.push(pieces.bytes.len());
            pieces.control.push(*kind == Kind::Control);
        }
        pieces
    }

    /// Whether the tokenizer inserts a space before a text.
    pub(super) fn prefixed(&self) -> bool {
        self.prefixed
    }

    fn is_special(&self, id: u32) -> bool {
        self.control.get(id as usize) == Some(&true)
    }

    /// The bytes of a token; empty for an id past the vocabulary, or a control token to be skipped.
    pub(super) fn bytes(&self, id: u32, skip_special: bool) -> &[u8] {
        let id = id as usize;
        if id >= self.control.len() || (skip_special && self.control[id]) {
            return &[];
        }
        &self.bytes[self.starts[id]..self.starts[id + 1]]
    }
}

/// Turns ids into text one by one. A character whose bytes come from several tokens appears with the last of them.
#[derive(Clone)]
pub struct Detokenizer {
    pieces: Arc<Pieces>,
    /// The beginning of a character: at most three bytes between calls.
    pending: Vec<u8>,
    /// Whether no text was returned yet.
    fresh: bool,
}

impl std::fmt::Debug for Detokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Detokenizer")
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

impl Detokenizer {
    pub(super) fn new(pieces: Arc<Pieces>) -> Detokenizer {
        Detokenizer {
            pieces,
            pending: Vec::new(),
            fresh: true,
        }
    }

    /// The text that this id completes; empty while a character is incomplete, and for control tokens.
    pub fn push(&mut self, id: u32) -> String {
        let mut bytes = self.pieces.bytes(id, true);
        if self.fresh && !bytes.is_empty() {
            self.fresh = false;
            if self.pieces.prefixed() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
        }
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let (whole, rest) = self.pending.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(whole));
                    let Some(broken) = error.error_len() else {
                        self.pending = rest.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.pending = rest[broken..].to_vec();
                }
            }
        }
    }

    /// A token's bytes in a text; those of control tokens, too.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.pieces.bytes(id, false)
    }

    /// Whether a token is a control token, which has no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }

    /// The rest at the end: U+FFFD for an incomplete character.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}
