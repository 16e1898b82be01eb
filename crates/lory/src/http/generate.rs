//! `POST /generate`: one question to one persona.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Slot;
use super::error::ApiError;
use super::events::{Incoming, Usage, Wire};
use super::json::{Body, Texts};
use crate::service::{Ask, Caller, Conversation, Delta, End, Overrides, Speaker};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GenerateRequest {
    prompt: String,
    user_type: String,
    #[serde(default)]
    input: Option<String>,
    max_new_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    seed: Option<u64>,
    stop: Option<Texts>,
    priority: Option<i32>,
    timeout_ms: Option<u64>,
    #[serde(default)]
    stream: Option<bool>,
}

impl GenerateRequest {
    fn into_ask(self) -> Ask {
        Ask {
            conversation: Conversation::Prompt {
                prompt: self.prompt,
                input: self.input.unwrap_or_default(),
            },
            overrides: Overrides {
                temperature: self.temperature,
                top_p: self.top_p,
                top_k: self.top_k,
                seed: self.seed,
                ..Overrides::default()
            },
            stop: self.stop.map(|Texts(stops)| stops),
            max_new_tokens: self.max_new_tokens,
            priority: self.priority.unwrap_or(0),
            timeout_ms: self.timeout_ms,
            ..Ask::new(Some(&self.user_type), "")
        }
    }
}

pub(super) async fn generate(
    State(slot): State<Slot>,
    caller: Caller,
    Body(request): Body<GenerateRequest>,
) -> Result<Response, ApiError> {
    let service = slot.service()?;
    let user_type = request.user_type.clone();
    let stream = request.stream.unwrap_or(false);
    let incoming = Incoming::submit(service, caller, request.into_ask()).await?;
    if stream {
        return Ok(incoming.stream(Events { user_type }));
    }
    let (answers, _) = incoming.whole().await?;
    let one = answers
        .first()
        .ok_or_else(|| ApiError::internal("there is no answer"))?;
    let mut body = json!({"response": one.text});
    append(&mut body, summary(&user_type, &one.speaker, &one.end));
    Ok(Json(body).into_response())
}

/// Everything but the text.
fn summary(user_type: &str, speaker: &Speaker, end: &End) -> Value {
    let adapters: Vec<Value> = speaker
        .adapters
        .iter()
        .map(|adapter| json!({"sha256": adapter.id.to_string(), "scale": adapter.scale}))
        .collect();
    let ms = |time: std::time::Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    json!({
        "user_type": user_type,
        "persona": {
            "name": speaker.name,
            "version": speaker.version,
            "adapters": adapters,
        },
        "finish_reason": end.reason.name(),
        "usage": {
            "prompt_tokens": end.prompt_tokens,
            "completion_tokens": end.completion_tokens,
        },
        "timings": {
            "queue_ms": ms(end.timings.queue),
            "first_token_ms": end.timings.first_token.map(ms),
            "total_ms": ms(end.timings.total),
        },
    })
}

fn append(body: &mut Value, more: Value) {
    if let (Value::Object(body), Value::Object(more)) = (body, more) {
        body.extend(more);
    }
}

struct Events {
    user_type: String,
}

impl Wire for Events {
    fn begin(&mut self, _answers: usize) -> Vec<String> {
        Vec::new()
    }

    fn delta(&mut self, _number: usize, delta: &Delta) -> Value {
        json!({"delta": delta.text})
    }

    fn end(&mut self, _number: usize, speaker: &Speaker, end: &End) -> Vec<String> {
        vec![summary(&self.user_type, speaker, end).to_string()]
    }

    fn last(&mut self, _usage: &Usage) -> Vec<String> {
        Vec::new()
    }
}
