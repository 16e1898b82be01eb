//! Log-probabilities in OpenAI's two shapes.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use service::TokenLogprob;

/// What stands for minus infinity, which JSON has no number for; OpenAI's own.
const LOWEST: f32 = -9999.0;

/// A request's number of alternatives, in its range.
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
pub(super) fn of_chat(tokens: &[TokenLogprob]) -> Value {
    let one = |bytes: &[u8], logprob: f32| {
        json!({
            "token": String::from_utf8_lossy(bytes),
            "logprob": logprob.max(LOWEST),
            "bytes": bytes,
        })
    };
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let top = token.top.iter();
            let top: Vec<Value> = top.map(|(bytes, logprob)| one(bytes, *logprob)).collect();
            // Nothing is echoed in a chat, so every token has one.
            let mut value = one(&token.bytes, token.logprob.unwrap_or(LOWEST));
            value["top_logprobs"] = top.into();
            value
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// `choices[].logprobs` of a completion, across the chunks of a stream.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    /// Whether alternatives were asked for.
    top: bool,
    /// Characters of the text before the next token.
    offset: usize,
    /// Bytes of a character that the next token goes on with.
    pending: Vec<u8>,
}

impl Columns {
    /// From the beginning of a text.
    pub fn new(top: u8) -> Columns {
        Columns {
            top: top > 0,
            offset: 0,
            pending: Vec::new(),
        }
    }

    /// The columns of these tokens.
    pub fn next(&mut self, tokens: &[TokenLogprob]) -> Value {
        let mut offsets = Vec::with_capacity(tokens.len());
        for token in tokens {
            offsets.push(self.offset);
            if token.special {
                continue;
            }
            self.pending.extend_from_slice(&token.bytes);
            let text = String::from_utf8_lossy(&self.pending);
            // A character at the end that is not whole yet counts with its last token.
            let whole = match std::str::from_utf8(&self.pending) {
                Err(error) if error.error_len().is_none() => error.valid_up_to(),
                _ => self.pending.len(),
            };
            let partial = usize::from(whole < self.pending.len());
            self.offset += text.chars().count() - partial;
            self.pending.drain(..whole);
        }
        let top = |token: &TokenLogprob| -> Value {
            if token.logprob.is_none() {
                return Value::Null;
            }
            let top = token.top.iter();
            top.map(|(bytes, logprob)| (name(bytes), json!(logprob.max(LOWEST))))
                .collect::<Map<_, _>>()
                .into()
        };
        let alternatives: Option<Vec<Value>> = self.top.then(|| tokens.iter().map(top).collect());
        let names: Vec<String> = tokens.iter().map(|token| name(&token.bytes)).collect();
        let logprobs = tokens.iter().map(|token| token.logprob);
        let logprobs: Vec<Option<f32>> = logprobs
            .map(|logprob| logprob.map(|logprob| logprob.max(LOWEST)))
            .collect();
        json!({
            "tokens": names,
            "token_logprobs": logprobs,
            "top_logprobs": alternatives,
            "text_offset": offsets,
        })
    }
}

/// A token's text; one that is no text by itself is spelled byte by byte, as OpenAI does, so that no two are called alike.
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
    fn a_chat_has_a_row_for_each_token() {
        let smile = "😊".as_bytes();
        let value = of_chat(&[token(b" a", -0.5), token(&smile[..2], -1.0)]);
        let content = &value["content"];
        assert_eq!(content[0]["token"], " a");
        assert_eq!(content[0]["logprob"], -0.5);
        assert_eq!(content[0]["top_logprobs"][1]["logprob"], -9999.0);
        assert_eq!(content[1]["bytes"], json!([0xf0, 0x9f]));
        assert_eq!(content[1]["top_logprobs"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn offsets_count_characters_whatever_tokens_cut() {
        let smile = "é😊".as_bytes();
        let tokens = [
            token(b"ab", -0.5),
            token(&smile[..3], -1.0),
            token(&smile[3..5], -1.0),
            token(&smile[5..], -1.0),
            token(b"c", -2.0),
        ];
        let mut columns = Columns::new(2);
        let first = columns.next(&tokens[..2]);
        let rest = columns.next(&tokens[2..]);
        assert_eq!(first["text_offset"], json!([0, 2]));
        assert_eq!(rest["text_offset"], json!([3, 3, 4]));
        assert_eq!(first["tokens"], json!(["ab", "bytes:\\xc3\\xa9\\xf0"]));
        assert_eq!(first["top_logprobs"][0], json!({"ab": -0.5, "x": -9999.0}));
        assert_eq!(first["token_logprobs"], json!([-0.5, -1.0]));
        let without = Columns::new(0).next(&tokens[..1]);
        assert_eq!(without["top_logprobs"], Value::Null);
        // The first token of a prompt, and a control token, which has no text.
        let begin = TokenLogprob {
            special: true,
            logprob: None,
            top: Vec::new(),
            ..token(b"<s>", 0.0)
        };
        let echoed = Columns::new(1).next(&[begin, token(b"a", -1.0)]);
        assert_eq!(echoed["text_offset"], json!([0, 0]));
        assert_eq!(echoed["token_logprobs"], json!([null, -1.0]));
        assert_eq!(echoed["top_logprobs"][0], Value::Null);
    }

    #[test]
    fn the_count_has_its_range() {
        assert_eq!(count("logprobs", 20).unwrap(), 20);
        for wrong in [21, 256, u64::MAX] {
            let error = count("logprobs", wrong).unwrap_err().json();
            assert_eq!(error["error"]["param"], "logprobs");
        }
    }
}
