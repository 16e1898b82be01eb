//! Converts text to token ids and back: BPE over bytes or SentencePiece's pieces, built from a GGUF's metadata or from a
//! `tokenizer.json`.
//!
//! The ids equal those of the model's Hugging Face tokenizer, with which it was trained. Text is split at the added tokens
//! first, then normalized and pre-tokenized by its family's rules, then merged:
//!
//! ```text
//! "<|im_start|>Hi 42" -> [1] "Hi 42" -> "Hi" "Ġ" "4" "2" -> [1, 18281, 216, 36, 34]
//! ```
//!
//! This module knows no templates and adds no tokens; the caller that builds a prompt does.

mod alphabet;
mod control_tokens;
mod detokenizer;
mod error;
mod family;
mod pre_tokenizer;
mod steps;
mod vocabulary;

pub use detokenizer::Detokenizer;
pub use error::TokenizerError;
pub use vocabulary::Roles;

use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;
use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;

use crate::gguf::Gguf;
use control_tokens::Kind;
use detokenizer::Pieces;
use pre_tokenizer::PreTokenizer;
use vocabulary::Vocabulary;

/// How the text of a control token, such as `<|im_end|>`, is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// As the control token; for text that a template rendered.
    Parse,
    /// As plain text; for text that a user wrote.
    AsText,
}

/// A tokenizer. It is immutable and may be shared between threads.
pub struct Tokenizer {
    vocabulary: Vocabulary,
    bpe: BPE,
    pre_tokenizer: PreTokenizer,
    /// Finds control and user-defined tokens, and their ids.
    added: Finder,
    /// Finds user-defined tokens alone.
    user_defined: Finder,
    pieces: Arc<Pieces>,
    /// Texts of control tokens, longest first.
    control_tokens: Vec<String>,
    hash: String,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("pre_tokenizer", &self.pre_tokenizer.name())
            .field("tokens", &self.vocab_size())
            .finish()
    }
}

impl Tokenizer {
    /// Builds the tokenizer that a model file describes.
    ///
    /// # Errors
    /// [`TokenizerError`]: metadata that is missing, contradictory, or of a kind that is not supported, by name.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, TokenizerError> {
        let pre_tokenizer = PreTokenizer::from_gguf(gguf)?;
        let vocabulary = Vocabulary::from_gguf(gguf, &pre_tokenizer)?;
        Tokenizer::build(pre_tokenizer, vocabulary, gguf.origin())
    }

    /// Builds the tokenizer of a `tokenizer.json`; `origin` names the file in errors.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`].
    pub fn from_json(
        json: &Value,
        roles: &Roles,
        origin: &str,
    ) -> Result<Tokenizer, TokenizerError> {
        let pre_tokenizer = PreTokenizer::from_json(json, origin)?;
        let vocabulary = Vocabulary::from_json(json, roles, origin, &pre_tokenizer)?;
        Tokenizer::build(pre_tokenizer, vocabulary, origin)
    }

    fn build(
        pre_tokenizer: PreTokenizer,
        vocabulary: Vocabulary,
        origin: &str,
    ) -> Result<Tokenizer, TokenizerError> {
        let bpe = vocabulary.bpe(origin, &pre_tokenizer)?;
        let invalid = |problem: String| TokenizerError::Invalid {
            origin: origin.to_owned(),
            key: vocabulary::TOKENS,
            problem,
        };
        let control = |kind| kind == Kind::Control;
        let user_defined = |kind| kind == Kind::UserDefined;
        let added = Finder::new(&vocabulary, |kind| control(kind) || user_defined(kind))
            .map_err(invalid)?;
        let user_defined = Finder::new(&vocabulary, user_defined).map_err(invalid)?;
        let pieces = Arc::new(Pieces::new(
            &vocabulary,
            pre_tokenizer.spelling(),
            pre_tokenizer.has_prefix(),
        ));
        let mut control_tokens: Vec<String> = vocabulary
            .tokens
            .iter()
            .zip(&vocabulary.kinds)
            .filter(|(text, kind)| **kind == Kind::Control && !text.is_empty())
            .map(|(text, _)| text.clone())
            .collect();
        control_tokens.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let hash = vocabulary.hash(&pre_tokenizer);
        Ok(Tokenizer {
            vocabulary,
            bpe,
            pre_tokenizer,
            added,
            user_defined,
            pieces,
            control_tokens,
            hash,
        })
    }

    /// The ids of a text. No beginning or end token is added; see [`Tokenizer::add_bos`].
    ///
    /// Bytes for which the vocabulary has no token (some control characters, in some models) are dropped, as Hugging
    /// Face's tokenizer does.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`]; no known text causes it.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, TokenizerError> {
        self.encode_part(text, special, true)
    }

    /// [`Tokenizer::encode`] of a part of a text. `begins`: the part is the beginning of the text, before which some tokenizers
    /// insert a space.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_part(
        &self,
        text: &str,
        special: Special,
        begins: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let finder = match special {
            Special::Parse => &self.added,
            Special::AsText => &self.user_defined,
        };
        let mut ids = Vec::new();
        let mut from = 0;
        for (start, end, id) in finder.find(text) {
            self.encode_plain(&text[from..start], begins && from == 0, from > 0, &mut ids)?;
            ids.push(id);
            from = end;
        }
        self.encode_plain(&text[from..], begins && from == 0, from > 0, &mut ids)?;
        Ok(ids)
    }

    fn encode_plain(
        &self,
        text: &str,
        begins: bool,
        follows: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if text.is_empty() {
            return Ok(());
        }
        for word in self
            .pre_tokenizer
            .words(text, begins, follows)
            .map_err(|error| TokenizerError::Encode(error.to_string()))?
        {
            let tokens = self
                .bpe
                .tokenize(&word)
                .map_err(|error| TokenizerError::Encode(error.to_string()))?;
            ids.extend(tokens.iter().map(|token| token.id));
        }
        Ok(())
    }

    /// The text of ids. Invalid UTF-8 becomes U+FFFD; ids past the vocabulary have no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(self.pieces.bytes(id, skip_special));
        }
        if self.pieces.prefixed() && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A decoder for single ids, which skips control tokens.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.pieces))
    }

    /// Number of tokens. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.tokens.len()
    }

    /// The token that begins a text, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.vocabulary.bos
    }

    /// Whether a prompt must begin with [`Tokenizer::bos`]. A chat template may have written it already.
    pub fn add_bos(&self) -> bool {
        self.vocabulary.add_bos && self.vocabulary.bos.is_some()
    }

    /// The token that ends a text, if there is one.
    pub fn eos(&self) -> Option<u32> {
        self.vocabulary.eos
    }

    /// Every token that ends an answer (end of text, of turn, of message), sorted.
    pub fn end_ids(&self) -> &[u32] {
        &self.vocabulary.end_ids
    }

    /// The tokenizer with one more token that ends an answer, which a chat template shows. A token that the file does not mark becomes a control
    /// token; only this changes the hash.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`].
    pub fn with_end_id(mut self, id: u32) -> Result<Tokenizer, TokenizerError> {
        if self.vocabulary.kinds.get(id as usize) == Some(&Kind::Normal) {
            self.vocabulary.mark(id);
            self = Tokenizer::build(self.pre_tokenizer, self.vocabulary, "the tokenizer")?;
        }
        let ends = &mut self.vocabulary.end_ids;
        if let Err(place) = ends.binary_search(&id) {
            ends.insert(place, id);
        }
        Ok(self)
    }

    /// The token of this text, if it is spelled like a control token (`<...>`) and the file does not mark it as one.
    pub(crate) fn unmarked_token(&self, text: &str) -> Option<u32> {
        self.vocabulary.unmarked(text)
    }

    /// The id of a token by its text in the vocabulary, where a space is `Ġ`.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.vocabulary
            .tokens
            .iter()
            .position(|text| text == token)
            .map(|index| index as u32)
    }

    /// A token's text in the vocabulary, where a space is `Ġ`.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.vocabulary.tokens.get(id as usize).map(String::as_str)
    }

    /// The bytes of the longest token, at least 1.
    pub fn longest_token(&self) -> usize {
        let ids = 0..self.vocab_size() as u32;
        ids.map(|id| self.token_bytes(id).len())
            .max()
            .unwrap_or(1)
            .max(1)
    }

    /// A token's bytes in a text; those of control tokens, too.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.pieces.bytes(id, false)
    }

    /// Whether a token is a control token, which has no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.kinds.get(id as usize) == Some(&Kind::Control)
    }

    /// Whether the text of a control or user-defined token is in a text.
    pub(crate) fn has_added_token(&self, text: &str) -> bool {
        self.added.find(text).next().is_some()
    }

    /// The texts of the control tokens, longest first.
    pub fn control_tokens(&self) -> &[String] {
        &self.control_tokens
    }

    /// The sha256, in hex, of everything that determines ids.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

/// Finds added tokens in a text: the leftmost match, and the longest of those.
struct Finder {
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl Finder {
    fn new(vocabulary: &Vocabulary, wanted: impl Fn(Kind) -> bool) -> Result<Finder, String> {
        let (ids, texts): (Vec<u32>, Vec<&str>) = (0u32..)
            .zip(&vocabulary.tokens)
            .zip(&vocabulary.kinds)
            .filter(|((_, text), kind)| wanted(**kind) && !text.is_empty())
            .map(|((id, text), _)| (id, text.as_str()))
            .unzip();
        let automaton = match texts.is_empty() {
            true => None,
            false => Some(
                AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostLongest)
                    .build(texts)
                    .map_err(|error| format!("the added tokens cannot be searched for: {error}"))?,
            ),
        };
        Ok(Finder { automaton, ids })
    }

    /// Start, end and id of every added token in the text.
    fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, usize, u32)> + 'a {
        let matches = self
            .automaton
            .iter()
            .flat_map(move |automaton| automaton.find_iter(text));
        matches.map(|found| {
            (
                found.start(),
                found.end(),
                self.ids[found.pattern().as_usize()],
            )
        })
    }
}
