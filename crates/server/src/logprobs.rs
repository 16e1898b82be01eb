//! Log-probabilities in OpenAI's two shapes.

use std::borrow::Cow;
use std::cell::Cell;

use formats::tokenizer::Detokenizer;
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};
use serde_json::{Map, json};

use crate::error::ApiError;
use service::TokenLogprob;

/// OpenAI's value for minus infinity, which JSON cannot express.
const LOWEST: f32 = -9999.0;

/// Checks a request's number of alternatives.
pub(super) fn count(field: &str, asked: u64) -> Result<u8, ApiError> {
    let most = engine::MAX_TOP_LOGPROBS;
    match u8::try_from(asked) {
        Ok(count) if count <= most => Ok(count),
        _ => Err(ApiError::bad_request(
            "invalid_value",
            format!("{field} must be from 0 to {most}, not {asked}"),
            Some(field.to_owned()),
        )),
    }
}

/// The texts of tokens.
pub(super) trait TokenTexts: Clone {
    /// A token's bytes, which may be part of a character.
    fn bytes(&self, id: u32) -> &[u8];
    /// Whether it is a control token, which has no text.
    fn is_special(&self, id: u32) -> bool;
}

impl TokenTexts for Detokenizer {
    fn bytes(&self, id: u32) -> &[u8] {
        Detokenizer::bytes(self, id)
    }

    fn is_special(&self, id: u32) -> bool {
        Detokenizer::is_special(self, id)
    }
}

/// `choices[].logprobs` of a chat completion. Texts are made while it is written: they take many times the memory of ids.
#[derive(Debug)]
pub(super) struct ChatLogprobs<T = Detokenizer> {
    tokens: Vec<TokenLogprob>,
    texts: T,
}

impl<T: TokenTexts> Serialize for ChatLogprobs<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("ChatLogprobs", 2)?;
        let rows = self
            .tokens
            .iter()
            .map(|token| TokenRow::new(token, &self.texts));
        fields.serialize_field("content", &Sequence::new(rows))?;
        fields.serialize_field("refusal", &None::<&str>)?;
        fields.end()
    }
}

#[derive(Serialize)]
struct TokenRow<'a> {
    #[serde(flatten)]
    token: ChatToken<'a>,
    top_logprobs: Vec<ChatToken<'a>>,
}

impl<'a> TokenRow<'a> {
    fn new(token: &TokenLogprob, texts: &'a impl TokenTexts) -> TokenRow<'a> {
        let top = token.top.iter();
        TokenRow {
            // A chat echoes no prompt, so every token has one.
            token: ChatToken::new(texts.bytes(token.id), token.logprob.unwrap_or(LOWEST)),
            top_logprobs: top
                .map(|(id, logprob)| ChatToken::new(texts.bytes(*id), *logprob))
                .collect(),
        }
    }
}

#[derive(Serialize)]
struct ChatToken<'a> {
    token: Cow<'a, str>,
    logprob: f64,
    bytes: &'a [u8],
}

impl<'a> ChatToken<'a> {
    fn new(bytes: &'a [u8], logprob: f32) -> ChatToken<'a> {
        ChatToken {
            token: String::from_utf8_lossy(bytes),
            logprob: finite(logprob),
            bytes,
        }
    }
}

/// Writes the items of an iterator one by one.
struct Sequence<I>(Cell<Option<I>>);

impl<I> Sequence<I> {
    fn new(items: I) -> Self {
        Sequence(Cell::new(Some(items)))
    }
}

impl<I: Iterator<Item: Serialize>> Serialize for Sequence<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.take().into_iter().flatten())
    }
}

fn finite(logprob: f32) -> f64 {
    logprob.max(LOWEST).into()
}

/// The log-probabilities of these tokens of a chat.
pub(super) fn of_chat<T: TokenTexts>(tokens: Vec<TokenLogprob>, texts: &T) -> ChatLogprobs<T> {
    let texts = texts.clone();
    ChatLogprobs { tokens, texts }
}

/// `choices[].logprobs` of a completion: a column for each field. Texts are made while it is written.
#[derive(Debug)]
pub(super) struct CompletionLogprobs<T = Detokenizer> {
    tokens: Vec<TokenLogprob>,
    text_offset: Vec<usize>,
    /// Whether alternatives were asked for.
    top: bool,
    texts: T,
}

impl<T: TokenTexts> Serialize for CompletionLogprobs<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = |id: u32| name(self.texts.bytes(id));
        let mut fields = serializer.serialize_struct("CompletionLogprobs", 4)?;
        let texts = self.tokens.iter().map(|token| name(token.id));
        fields.serialize_field("tokens", &Sequence::new(texts))?;
        let logprobs = self.tokens.iter().map(|token| token.logprob.map(finite));
        fields.serialize_field("token_logprobs", &Sequence::new(logprobs))?;
        let top = self.tokens.iter().map(|token| {
            token.logprob?;
            let top = token.top.iter();
            let top = top.map(|(id, logprob)| (name(*id), json!(finite(*logprob))));
            Some(top.collect::<Map<_, _>>())
        });
        fields.serialize_field("top_logprobs", &self.top.then(|| Sequence::new(top)))?;
        fields.serialize_field("text_offset", &self.text_offset)?;
        fields.end()
    }
}

/// Makes [`CompletionLogprobs`] across the chunks of a stream.
#[derive(Debug, Clone)]
pub(super) struct Columns<T = Detokenizer> {
    /// Whether alternatives were asked for.
    top: bool,
    texts: T,
    /// The number of characters before the next token.
    offset: usize,
    /// The first bytes of a character that the next token continues.
    pending: Vec<u8>,
}

impl<T: TokenTexts> Columns<T> {
    /// At the start of a text, with this number of alternatives.
    pub fn new(top: u8, texts: &T) -> Columns<T> {
        Columns {
            top: top > 0,
            texts: texts.clone(),
            offset: 0,
            pending: Vec::new(),
        }
    }

    /// The columns of these tokens.
    pub fn next(&mut self, tokens: Vec<TokenLogprob>) -> CompletionLogprobs<T> {
        let mut offsets = Vec::with_capacity(tokens.len());
        for token in &tokens {
            offsets.push(self.offset);
            if self.texts.is_special(token.id) {
                continue;
            }
            self.pending.extend_from_slice(self.texts.bytes(token.id));
            let text = String::from_utf8_lossy(&self.pending);
            // An incomplete character at the end counts with its last token.
            let whole = match std::str::from_utf8(&self.pending) {
                Err(error) if error.error_len().is_none() => error.valid_up_to(),
                _ => self.pending.len(),
            };
            let partial = usize::from(whole < self.pending.len());
            self.offset += text.chars().count() - partial;
            self.pending.drain(..whole);
        }
        CompletionLogprobs {
            tokens,
            text_offset: offsets,
            top: self.top,
            texts: self.texts.clone(),
        }
    }
}

/// A token's text. A token that is not valid UTF-8 is written byte by byte, as OpenAI does, so that names are unique.
fn name(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let spelled = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
            format!("bytes:{}", spelled.collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Texts of tokens, by id; the last one is a control token.
    #[derive(Debug, Clone)]
    struct Texts(Vec<Vec<u8>>);

    impl TokenTexts for Texts {
        fn bytes(&self, id: u32) -> &[u8] {
            &self.0[id as usize]
        }

        fn is_special(&self, id: u32) -> bool {
            id as usize + 1 == self.0.len()
        }
    }

    fn texts(texts: &[&[u8]]) -> Texts {
        Texts(texts.iter().map(|text| text.to_vec()).collect())
    }

    /// A token and, as its alternatives, itself and token 0.
    fn token(id: u32, logprob: f32) -> TokenLogprob {
        TokenLogprob {
            id,
            logprob: Some(logprob),
            top: vec![(id, logprob), (0, f32::NEG_INFINITY)],
        }
    }

    #[test]
    fn chat_logprobs_have_a_row_for_each_token() {
        let smile = "😊".as_bytes();
        let texts = texts(&[b"x", b" a", &smile[..2], b"<s>"]);
        let value = json!(of_chat(vec![token(1, -0.5), token(2, -1.0)], &texts));
        let content = &value["content"];
        assert_eq!(content[0]["token"], " a");
        assert_eq!(content[0]["logprob"], -0.5);
        assert_eq!(content[0]["top_logprobs"][1]["logprob"], -9999.0);
        assert_eq!(content[1]["bytes"], json!([0xf0, 0x9f]));
        assert_eq!(content[1]["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(value["refusal"], Value::Null);
    }

    #[test]
    fn text_offsets_count_characters_even_if_tokens_split_them() {
        let smile = "é😊".as_bytes();
        let texts = texts(&[
            b"x",
            b"ab",
            &smile[..3],
            &smile[3..5],
            &smile[5..],
            b"c",
            b"<s>",
        ]);
        let tokens = [
            token(1, -0.5),
            token(2, -1.0),
            token(3, -1.0),
            token(4, -1.0),
            token(5, -2.0),
        ];
        let mut columns = Columns::new(2, &texts);
        let first = json!(columns.next(tokens[..2].to_vec()));
        let rest = json!(columns.next(tokens[2..].to_vec()));
        assert_eq!(first["text_offset"], json!([0, 2]));
        assert_eq!(rest["text_offset"], json!([3, 3, 4]));
        assert_eq!(first["tokens"], json!(["ab", "bytes:\\xc3\\xa9\\xf0"]));
        assert_eq!(first["top_logprobs"][0], json!({"ab": -0.5, "x": -9999.0}));
        assert_eq!(first["token_logprobs"], json!([-0.5, -1.0]));
        let without = json!(Columns::new(0, &texts).next(tokens[..1].to_vec()));
        assert_eq!(without["top_logprobs"], Value::Null);
        // The first token of a prompt, and a control token, which has no text.
        let begin = TokenLogprob {
            logprob: None,
            top: Vec::new(),
            ..token(6, 0.0)
        };
        let echoed = json!(Columns::new(1, &texts).next(vec![begin, token(5, -1.0)]));
        assert_eq!(echoed["text_offset"], json!([0, 0]));
        assert_eq!(echoed["token_logprobs"], json!([null, -1.0]));
        assert_eq!(echoed["top_logprobs"][0], Value::Null);
    }

    #[test]
    fn stored_log_probabilities_take_few_bytes_a_token() {
        let top: Vec<(u32, f32)> = (0..20).map(|id| (id, -1.0)).collect();
        let bytes = size_of::<TokenLogprob>() + std::mem::size_of_val(&*top);
        assert!(bytes <= 208, "{bytes}");
    }

    #[test]
    fn counts_out_of_range_are_rejected() {
        assert_eq!(count("logprobs", 20).unwrap(), 20);
        for wrong in [21, 256, u64::MAX] {
            let error = count("logprobs", wrong).unwrap_err().body();
            let error = json!(error);
            assert_eq!(error["error"]["param"], "logprobs");
        }
    }
}
