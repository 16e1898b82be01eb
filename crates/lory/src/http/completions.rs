//! `POST /v1/completions`: OpenAI's older wire format. A text, or token ids, that the model goes on with: no template and no
//! system prompt, which is also what a measurement wants.

use std::hash::{BuildHasher, Hasher, RandomState};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat_completions::{StreamOptions, usage_of};
use super::error::ApiError;
use super::events::{Incoming, Wire};
use super::json::{Body, Texts};
use super::{Slot, seconds_since_1970};
use crate::service::{Ask, Conversation, End, FieldNames, Overrides, Speaker};

/// OpenAI's default, where a request does not say.
const DEFAULT_MAX_TOKENS: usize = 16;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CompletionRequest {
    model: String,
    prompt: Prompt,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<Texts>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    n: Option<u64>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    // Not OpenAI's; servers of open models take them.
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    priority: Option<i32>,
    timeout_ms: Option<u64>,
    ignore_eos: Option<bool>,
    // A label, which changes nothing.
    #[serde(rename = "user")]
    _user: Option<Value>,
    // Not done here.
    best_of: Option<Value>,
    echo: Option<Value>,
    logit_bias: Option<Value>,
    logprobs: Option<Value>,
    suffix: Option<Value>,
}

/// A text or token ids.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of token ids")]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl CompletionRequest {
    /// Refuses what is not done here, by name.
    fn check(&self) -> Result<(), ApiError> {
        type Neutral<'a> = &'a dyn Fn(&Value) -> bool;
        let fields: [(&str, &Option<Value>, Neutral<'_>); 5] = [
            ("best_of", &self.best_of, &|v| v == &json!(1)),
            ("echo", &self.echo, &|v| v == &json!(false)),
            ("logit_bias", &self.logit_bias, &|v| v == &json!({})),
            ("logprobs", &self.logprobs, &|_| false),
            ("suffix", &self.suffix, &|v| v == &json!("")),
        ];
        for (field, value, neutral) in fields {
            if value.as_ref().is_some_and(|value| !neutral(value)) {
                let message = format!("{field} is not supported; leave it out");
                return Err(ApiError::unsupported(field, message));
            }
        }
        if let Some(n) = self.n.filter(|n| *n != 1) {
            let message = format!("n must be 1, not {n}; ask again for another answer");
            return Err(ApiError::unsupported("n", message));
        }
        if self.stream_options.is_some() && self.stream != Some(true) {
            let message = "stream_options is only for requests with \"stream\": true";
            return Err(ApiError::unsupported("stream_options", message));
        }
        Ok(())
    }

    fn into_ask(self) -> Ask {
        Ask {
            persona: Some(self.model),
            conversation: match self.prompt {
                Prompt::Text(text) => Conversation::Text(text),
                Prompt::Tokens(ids) => Conversation::Tokens(ids),
            },
            overrides: Overrides {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                frequency_penalty: self.frequency_penalty,
                presence_penalty: self.presence_penalty,
                seed: self.seed.map(i64::cast_unsigned),
            },
            stop: self.stop.map(|Texts(stops)| stops),
            max_new_tokens: Some(self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)),
            ignore_eos: self.ignore_eos == Some(true),
            priority: self.priority.unwrap_or(0),
            timeout_ms: self.timeout_ms,
            names: FieldNames {
                persona: "model",
                prompt: "prompt",
                max_new_tokens: "max_tokens",
            },
        }
    }
}

pub(super) async fn completions(
    State(slot): State<Slot>,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    let service = slot.service()?;
    request.check()?;
    let stream = request.stream == Some(true);
    let options = request.stream_options.as_ref();
    let envelope = Envelope {
        id: format!("cmpl-{:016x}", RandomState::new().build_hasher().finish()),
        created: seconds_since_1970(),
        model: request.model.clone(),
        usage: options.and_then(|options| options.include_usage) == Some(true),
    };
    let incoming = Incoming::submit(service, request.into_ask()).await?;
    if stream {
        return Ok(incoming.stream(envelope));
    }
    let answer = incoming.whole().await?;
    let mut body = envelope.choice(&answer.text, Some(answer.end.reason.name()));
    body["usage"] = usage_of(&answer.end);
    Ok(Json(body).into_response())
}

/// What every chunk of a stream repeats.
struct Envelope {
    id: String,
    created: u64,
    model: String,
    /// Whether a last chunk tells the usage.
    usage: bool,
}

impl Envelope {
    fn chunk(&self, choices: Value, usage: Value) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if self.usage {
            chunk["usage"] = usage;
        }
        chunk
    }

    fn choice(&self, text: &str, finish_reason: Option<&str>) -> Value {
        let choice = json!({
            "index": 0,
            "text": text,
            "logprobs": null,
            "finish_reason": finish_reason,
        });
        self.chunk(json!([choice]), Value::Null)
    }
}

impl Wire for Envelope {
    fn begin(&self) -> Vec<String> {
        Vec::new()
    }

    fn delta(&self, text: &str) -> Value {
        self.choice(text, None)
    }

    fn end(&self, _speaker: &Speaker, end: &End) -> Vec<String> {
        let mut data = vec![self.choice("", Some(end.reason.name())).to_string()];
        if self.usage {
            data.push(self.chunk(json!([]), usage_of(end)).to_string());
        }
        data.push("[DONE]".to_owned());
        data
    }
}
