//! `POST /generate`: one question to one persona.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use formats::decimal::shortest;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answers::{GenerateAnswer, StreamEvent};
use crate::app_state::AppState;
use crate::error::ApiError;
use crate::events::{Incoming, Usage, Wire};
use crate::json::{Body, Texts};
use crate::middleware::auth::ApiCaller;
use crate::with_sampling::{AcceptsSampling, WithSampling};
use sampling::{Interface, SamplingParams};
use service::{Conversation, Delta, End, GenerateRequest, ModelIdentity};

/// A question.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(rename = "GenerateRequest", deny_unknown_fields)]
#[schema(as = GenerateRequest)]
pub(super) struct GenerateBody {
    /// What is asked.
    prompt: String,
    /// A persona, `persona@version`, a blend such as `customer*0.7+partner*0.3`, or the base.
    user_type: String,
    /// What the question is about.
    #[serde(default)]
    input: Option<String>,
    /// Values for the variables of the persona's system prompt, by name.
    variables: Option<BTreeMap<String, String>>,
    /// The most tokens of the answer; without, as the persona says.
    max_new_tokens: Option<usize>,
    /// At most 4 texts of at most 256 bytes that end the answer and are not shown.
    stop: Option<Texts>,
    /// The lower goes first, where requests wait; below 0 needs admin rights.
    priority: Option<i32>,
    /// 1 to 86400000: the answer ends then as it is.
    timeout_ms: Option<u64>,
    /// Whether the answer comes as server-sent events.
    #[serde(default)]
    stream: Option<bool>,
}

impl AcceptsSampling for GenerateBody {
    const INTERFACE: Interface = Interface::Generate;
}

impl GenerateBody {
    fn into_request(self, sampling: SamplingParams) -> GenerateRequest {
        GenerateRequest {
            conversation: Conversation::Prompt {
                prompt: self.prompt,
                input: self.input.unwrap_or_default(),
            },
            variables: self.variables.unwrap_or_default(),
            sampling,
            stop: self.stop.map(|Texts(stops)| stops),
            max_new_tokens: self.max_new_tokens,
            priority: self.priority.unwrap_or(0),
            timeout_ms: self.timeout_ms,
            ..GenerateRequest::new(Some(&self.user_type), "")
        }
    }
}

/// Ask one question of one persona
///
/// With `stream` the answer comes as events: `{"delta"}` for each piece of text, then the whole object without `response`.
#[utoipa::path(
    post,
    path = "/generate",
    request_body = GenerateBody,
    responses(
        (status = 200, description = "The answer", content(
            (GenerateAnswer = "application/json"),
            (StreamEvent = "text/event-stream"),
        )),
    )
)]
pub(super) async fn generate(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Body(WithSampling { request, sampling }): Body<WithSampling<GenerateBody>>,
) -> Result<Response, ApiError> {
    let service = state.service()?;
    let user_type = request.user_type.clone();
    let stream = request.stream.unwrap_or(false);
    let incoming = Incoming::submit(service, caller, request.into_request(sampling)).await?;
    if stream {
        return Ok(incoming.stream(Events { user_type }));
    }
    let (answers, _) = incoming.whole().await?;
    let one = answers
        .first()
        .ok_or_else(|| ApiError::internal("there is no answer"))?;
    let mut body = json!({"response": one.text});
    append(&mut body, summary(&user_type, &one.identity, &one.end));
    Ok(Json(body).into_response())
}

/// Everything but the text.
fn summary(user_type: &str, identity: &ModelIdentity, end: &End) -> Value {
    let adapters: Vec<Value> = identity
        .adapters
        .iter()
        .map(|adapter| json!({"sha256": adapter.id.to_string(), "scale": shortest(adapter.scale)}))
        .collect();
    let ms = |time: std::time::Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    json!({
        "user_type": user_type,
        "persona": {
            "name": identity.name,
            "version": identity.version,
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

    fn end(&mut self, _number: usize, identity: &ModelIdentity, end: &End) -> Vec<String> {
        vec![summary(&self.user_type, identity, end).to_string()]
    }

    fn last(&mut self, _usage: &Usage) -> Vec<String> {
        Vec::new()
    }
}
