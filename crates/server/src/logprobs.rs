//! Log-probabilities in OpenAI's two shapes.

use serde::Serialize;
use serde_json::{Map, Value, json};

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

/// `choices[].logprobs` of a chat completion.
#[derive(Debug, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<TokenRow>,
    refusal: Option<String>,
}

#[derive(Debug, Serialize)]
struct TokenRow {
    #[serde(flatten)]
    token: ChatToken,
    top_logprobs: Vec<ChatToken>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
}

impl ChatToken {
    fn new(bytes: &[u8], logprob: f32) -> ChatToken {
        ChatToken {
            token: String::from_utf8_lossy(bytes).into_owned(),
            logprob: finite(logprob),
            bytes: bytes.to_vec(),
        }
    }
}

fn finite(logprob: f32) -> f64 {
    logprob.max(LOWEST).into()
}

/// The log-probabilities of these tokens of a chat.
pub(super) fn of_chat(tokens: &[TokenLogprob]) -> ChatLogprobs {
    let row = |token: &TokenLogprob| {
        let top = token.top.iter();
        TokenRow {
            // A chat echoes no prompt, so every token has one.
            token: ChatToken::new(&token.bytes, token.logprob.unwrap_or(LOWEST)),
            top_logprobs: top
                .map(|(bytes, logprob)| ChatToken::new(bytes, *logprob))
                .collect(),
        }
    };
    ChatLogprobs {
        content: tokens.iter().map(row).collect(),
        refusal: None,
    }
}

/// `choices[].logprobs` of a completion: a column for each field.
#[derive(Debug, Serialize)]
pub(super) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Option<Vec<Option<Map<String, Value>>>>,
    text_offset: Vec<usize>,
}

/// Makes [`CompletionLogprobs`] across the chunks of a stream.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    /// Whether alternatives were asked for.
    top: bool,
    /// The number of characters before the next token.
    offset: usize,
    /// The first bytes of a character that the next token continues.
    pending: Vec<u8>,
}

impl Columns {
    /// At the start of a text, with this number of alternatives.
    pub fn new(top: u8) -> Columns {
        Columns {
            top: top > 0,
            offset: 0,
            pending: Vec::new(),
        }
    }

    /// The columns of these tokens.
    pub fn next(&mut self, tokens: &[TokenLogprob]) -> CompletionLogprobs {
        let mut offsets = Vec::with_capacity(tokens.len());
        for token in tokens {
            offsets.push(self.offset);
            if token.special {
                continue;
            }
            self.pending.extend_from_slice(&token.bytes);
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
        let top = |token: &TokenLogprob| {
            token.logprob?;
            let top = token.top.iter();
            let top = top.map(|(bytes, logprob)| (name(bytes), json!(finite(*logprob))));
            Some(top.collect::<Map<_, _>>())
        };
        let logprobs = tokens.iter().map(|token| token.logprob);
        CompletionLogprobs {
            tokens: tokens.iter().map(|token| name(&token.bytes)).collect(),
            token_logprobs: logprobs.map(|logprob| logprob.map(finite)).collect(),
            top_logprobs: self.top.then(|| tokens.iter().map(top).collect()),
            text_offset: offsets,
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

    fn token(bytes: &[u8], logprob: f32) -> TokenLogprob {
        TokenLogprob {
            bytes: bytes.to_vec(),
            special: false,
            logprob: Some(logprob),
            top: vec![
                (bytes.to_vec(), logprob),
                (b"x".to_vec(), f32::NEG_INFINITY),
            ],
        }
    }

    #[test]
    fn chat_logprobs_have_a_row_for_each_token() {
        let smile = "😊".as_bytes();
        let value = json!(of_chat(&[token(b" a", -0.5), token(&smile[..2], -1.0)]));
        let content = &value["content"];
        assert_eq!(content[0]["token"], " a");
        assert_eq!(content[0]["logprob"], -0.5);
        assert_eq!(content[0]["top_logprobs"][1]["logprob"], -9999.0);
        assert_eq!(content[1]["bytes"], json!([0xf0, 0x9f]));
        assert_eq!(content[1]["top_logprobs"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn text_offsets_count_characters_even_if_tokens_split_them() {
        let smile = "é😊".as_bytes();
        let tokens = [
            token(b"ab", -0.5),
            token(&smile[..3], -1.0),
            token(&smile[3..5], -1.0),
            token(&smile[5..], -1.0),
            token(b"c", -2.0),
        ];
        let mut columns = Columns::new(2);
        let first = json!(columns.next(&tokens[..2]));
        let rest = json!(columns.next(&tokens[2..]));
        assert_eq!(first["text_offset"], json!([0, 2]));
        assert_eq!(rest["text_offset"], json!([3, 3, 4]));
        assert_eq!(first["tokens"], json!(["ab", "bytes:\\xc3\\xa9\\xf0"]));
        assert_eq!(first["top_logprobs"][0], json!({"ab": -0.5, "x": -9999.0}));
        assert_eq!(first["token_logprobs"], json!([-0.5, -1.0]));
        let without = json!(Columns::new(0).next(&tokens[..1]));
        assert_eq!(without["top_logprobs"], Value::Null);
        // The first token of a prompt, and a control token, which has no text.
        let begin = TokenLogprob {
            special: true,
            logprob: None,
            top: Vec::new(),
            ..token(b"<s>", 0.0)
        };
        let echoed = json!(Columns::new(1).next(&[begin, token(b"a", -1.0)]));
        assert_eq!(echoed["text_offset"], json!([0, 0]));
        assert_eq!(echoed["token_logprobs"], json!([null, -1.0]));
        assert_eq!(echoed["top_logprobs"][0], Value::Null);
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
