//! `POST /generate`: one prompt to one persona.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use formats::decimal::shortest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::answer_stream::{AnswerStream, StreamEvent, StreamFormat, event_data};
use crate::app_state::AppState;
use crate::error::ApiError;
use crate::json::{Body, Texts};
use crate::middleware::auth::ApiCaller;
use crate::milliseconds::milliseconds;
use crate::usage::Usage;
use crate::with_sampling::{AcceptsSampling, WithSampling};
use crate::work::Work;
use sampling::{Interface, SamplingParams};
use service::{Conversation, Delta, End, GenerateRequest, ModelIdentity, requested_name};

/// A prompt to a persona.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, expecting = "struct GenerateRequest")]
#[schema(as = GenerateRequest)]
pub(super) struct GenerateBody {
    /// The question or instruction.
    prompt: String,
    /// A persona, `persona@version`, a blend such as `customer*0.7+partner*0.3`, or the base.
    user_type: String,
    /// The text that the prompt is about.
    #[serde(default)]
    input: Option<String>,
    /// Values for the variables of the persona's system prompt, by name.
    variables: Option<BTreeMap<String, String>>,
    /// The most tokens of the answer; by default the persona's setting.
    max_new_tokens: Option<usize>,
    /// At most 4 texts of at most 256 bytes that end the answer and are not part of it.
    stop: Option<Texts>,
    /// Waiting requests with a lower number go first; below 0 needs admin rights.
    priority: Option<i32>,
    /// 1 to 86400000; after this time the answer ends as it is.
    timeout_ms: Option<u64>,
    /// Prompts with different salts share no cached prefix; 1 to 256 bytes.
    cache_salt: Option<String>,
    /// Whether the answer is sent as server-sent events.
    #[serde(default)]
    stream: Option<bool>,
}

/// An answer of `/generate`.
#[derive(Serialize, ToSchema)]
#[schema(as = GenerateAnswer)]
pub(super) struct GenerateResponse {
    /// The text. The last event of a stream does not repeat it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required, value_type = String)]
    response: Option<String>,
    /// The persona as in the request.
    user_type: String,
    persona: PersonaUse,
    /// `stop`, `length` or `timeout`.
    finish_reason: &'static str,
    usage: GenerateUsage,
    timings: Timings,
}

/// What answered.
#[derive(Serialize, ToSchema)]
struct PersonaUse {
    /// A persona, a blend, or the base.
    name: String,
    /// None for a blend and for the base.
    #[schema(required)]
    version: Option<u32>,
    adapters: Vec<AdapterUse>,
}

#[derive(Serialize, ToSchema)]
struct AdapterUse {
    /// The content hash.
    sha256: String,
    scale: f64,
}

#[derive(Serialize, ToSchema)]
struct GenerateUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// In milliseconds.
#[derive(Serialize, ToSchema)]
struct Timings {
    /// Until it was scheduled.
    queue_ms: f64,
    /// Until its first token.
    #[schema(required)]
    first_token_ms: Option<f64>,
    total_ms: f64,
}

impl GenerateResponse {
    fn new(
        response: Option<String>,
        user_type: &str,
        identity: &ModelIdentity,
        end: &End,
    ) -> GenerateResponse {
        let adapters = identity.adapters.iter().map(|adapter| AdapterUse {
            sha256: adapter.id.to_string(),
            scale: shortest(adapter.scale),
        });
        GenerateResponse {
            response,
            user_type: user_type.to_owned(),
            persona: PersonaUse {
                name: identity.name.clone(),
                version: identity.version,
                adapters: adapters.collect(),
            },
            finish_reason: end.reason.name(),
            usage: GenerateUsage {
                prompt_tokens: end.prompt_tokens as u64,
                completion_tokens: end.completion_tokens as u64,
            },
            timings: Timings {
                queue_ms: milliseconds(end.timings.queue),
                first_token_ms: end.timings.first_token.map(milliseconds),
                total_ms: milliseconds(end.timings.total),
            },
        }
    }
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
            cache_salt: self.cache_salt,
            ..GenerateRequest::new(Some(&self.user_type), "")
        }
    }
}

/// Send a prompt to a persona
///
/// With `stream` the answer is sent as events: `{"delta"}` for each piece of text, then the object without `response`.
#[utoipa::path(
    post,
    path = "/generate",
    request_body = GenerateBody,
    responses(
        (status = 200, description = "The answer", content(
            (GenerateResponse = "application/json"),
            (StreamEvent = "text/event-stream"),
        )),
    )
)]
pub(super) async fn generate(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Body(WithSampling { request, sampling }): Body<WithSampling<GenerateBody>>,
) -> Result<Response, ApiError> {
    let service = state.service()?;
    let user_type = requested_name(&request.user_type).to_owned();
    let stream = request.stream.unwrap_or(false);
    let answers =
        AnswerStream::submit(service, caller, &work, request.into_request(sampling)).await?;
    if stream {
        return Ok(answers.into_events(Events { user_type }));
    }
    let (answers, _) = answers.collect().await?;
    let answer = answers.into_iter().next();
    let answer = answer.ok_or_else(|| ApiError::internal("the engine returned no answer"))?;
    let identity = &answer.identity;
    let response = GenerateResponse::new(Some(answer.text), &user_type, identity, &answer.end);
    Ok(Json(response).into_response())
}

/// The events of a stream.
struct Events {
    user_type: String,
}

#[derive(Serialize)]
struct DeltaEvent<'a> {
    delta: &'a str,
}

impl StreamFormat for Events {
    fn begin(&mut self, _answers: usize) -> Vec<String> {
        Vec::new()
    }

    fn delta(&mut self, _number: usize, delta: &Delta) -> String {
        event_data(&DeltaEvent { delta: &delta.text })
    }

    fn end(&mut self, _number: usize, identity: &ModelIdentity, end: &End) -> Vec<String> {
        let response = GenerateResponse::new(None, &self.user_type, identity, end);
        vec![event_data(&response)]
    }

    fn last(&mut self, _usage: &Usage) -> Vec<String> {
        Vec::new()
    }
}
