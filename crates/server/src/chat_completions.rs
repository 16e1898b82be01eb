//! `POST /v1/chat/completions`: OpenAI's wire format, whole and streamed.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::answers::{ChatAnswer, StreamEvent};
use crate::app_state::AppState;
use crate::chat_request::ChatRequest;
use crate::envelope::{Envelope, random_id};
use crate::error::ApiError;
use crate::events::{Incoming, Usage, Wire};
use crate::json::Body;
use crate::logprobs;
use crate::middleware::auth::ApiCaller;
use crate::with_sampling::WithSampling;
use service::{Delta, End, ModelIdentity, ToolCall, ToolCallDelta};

/// Answer a chat, in OpenAI's wire format
///
/// `model` names a persona, a version of one, a blend, or the base.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answers", content(
            (ChatAnswer = "application/json"),
            (StreamEvent = "text/event-stream"),
        )),
    )
)]
pub(super) async fn chat_completions(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Body(WithSampling { request, sampling }): Body<WithSampling<ChatRequest>>,
) -> Result<Response, ApiError> {
    let service = state.service()?;
    let stream = request.stream == Some(true);
    let usage = request.usage();
    let model = request.model.clone();
    let request = request.into_request(sampling)?;
    let logprobs = request.logprobs.is_some();
    let incoming = Incoming::submit(service, caller, request).await?;
    if stream {
        let envelope = Envelope::new(
            "chatcmpl",
            "chat.completion.chunk",
            model,
            &incoming.identity,
        );
        return Ok(incoming.stream(Chunks {
            envelope,
            logprobs,
            usage,
        }));
    }
    let envelope = Envelope::new("chatcmpl", "chat.completion", model, &incoming.identity);
    let (answers, usage) = incoming.whole().await?;
    let choices = answers.iter().enumerate().map(|(index, answer)| {
        json!({
            "index": index,
            "message": message(&answer.text, &answer.calls),
            "logprobs": logprobs.then(|| logprobs::of_chat(&answer.tokens)),
            "finish_reason": answer.end.reason.name(),
        })
    });
    let mut body = envelope.with(choices.collect());
    body["usage"] = usage.json();
    Ok(Json(body).into_response())
}

/// A whole answer; one that only calls tools has no content.
fn message(text: &str, calls: &[ToolCall]) -> Value {
    let mut message = json!({"role": "assistant", "content": text, "refusal": null});
    if !calls.is_empty() {
        let calls = calls.iter().map(|call| {
            json!({
                "id": random_id("call"),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            })
        });
        if text.is_empty() {
            message["content"] = Value::Null;
        }
        message["tool_calls"] = calls.collect();
    }
    message
}

/// A stream's chunks.
struct Chunks {
    envelope: Envelope,
    /// Whether the request asked for log-probabilities.
    logprobs: bool,
    /// Whether a last chunk tells the usage.
    usage: bool,
}

impl Chunks {
    fn chunk(&self, choices: Vec<Value>) -> Value {
        let mut chunk = self.envelope.with(choices);
        if self.usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn choice(&self, index: usize, delta: Value, logprobs: Value, reason: Option<&str>) -> Value {
        self.chunk(vec![json!({
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": reason,
        })])
    }
}

impl Wire for Chunks {
    fn begin(&mut self, answers: usize) -> Vec<String> {
        let delta = || json!({"role": "assistant", "content": "", "refusal": null});
        (0..answers)
            .map(|index| self.choice(index, delta(), Value::Null, None).to_string())
            .collect()
    }

    fn delta(&mut self, number: usize, delta: &Delta) -> Value {
        let logprobs = match self.logprobs {
            true => logprobs::of_chat(&delta.tokens),
            false => Value::Null,
        };
        self.choice(number, json!({"content": delta.text}), logprobs, None)
    }

    fn call(&mut self, number: usize, call: &ToolCallDelta) -> Option<Value> {
        let call = match call {
            ToolCallDelta::Begin { index, name } => json!({
                "index": index,
                "id": random_id("call"),
                "type": "function",
                "function": {"name": name, "arguments": ""},
            }),
            ToolCallDelta::Arguments { index, text } => {
                json!({"index": index, "function": {"arguments": text}})
            }
        };
        Some(self.choice(number, json!({"tool_calls": [call]}), Value::Null, None))
    }

    fn end(&mut self, number: usize, _identity: &ModelIdentity, end: &End) -> Vec<String> {
        let reason = Some(end.reason.name());
        vec![
            self.choice(number, json!({}), Value::Null, reason)
                .to_string(),
        ]
    }

    fn last(&mut self, usage: &Usage) -> Vec<String> {
        self.envelope.last(self.usage.then_some(usage))
    }
}
