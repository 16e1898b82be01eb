//! `POST /v1/completions`: OpenAI's older wire format. Texts, or token ids, that the model goes on with: no template and no
//! system prompt, which is also what a measurement wants.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answers::{CompletionAnswer, StreamEvent};
use crate::app_state::AppState;
use crate::chat_request::StreamOptions;
use crate::envelope::Envelope;
use crate::error::ApiError;
use crate::events::{Incoming, Usage, Wire};
use crate::json::{Biases, Body, Texts};
use crate::logprobs::{self, Columns};
use crate::middleware::auth::ApiCaller;
use crate::with_sampling::{AcceptsSampling, WithSampling};
use sampling::{Interface, SamplingParams};
use service::{Conversation, Delta, End, FieldNames, GenerateRequest, ModelIdentity, TokenLogprob};

/// OpenAI's default, where a request does not say.
const DEFAULT_MAX_TOKENS: usize = 16;
/// The most prompts of a request.
const MAX_PROMPTS: usize = 16;

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CompletionRequest {
    model: String,
    prompt: Prompt,
    max_tokens: Option<usize>,
    stop: Option<Texts>,
    logit_bias: Option<Biases>,
    logprobs: Option<u64>,
    echo: Option<bool>,
    n: Option<usize>,
    best_of: Option<usize>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    // Not OpenAI's; servers of open models take them.
    priority: Option<i32>,
    timeout_ms: Option<u64>,
    ignore_eos: Option<bool>,
    // A label, which changes nothing.
    #[serde(rename = "user")]
    _user: Option<Value>,
    // Not done here.
    suffix: Option<Value>,
}

/// One text or token ids, or several of either.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a text, a list of token ids, or a list of either"
)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

impl utoipa::PartialSchema for Prompt {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        utoipa::openapi::OneOfBuilder::new()
            .item(<String as utoipa::PartialSchema>::schema())
            .item(<Vec<u32> as utoipa::PartialSchema>::schema())
            .item(<Vec<String> as utoipa::PartialSchema>::schema())
            .item(<Vec<Vec<u32>> as utoipa::PartialSchema>::schema())
            .into()
    }
}

impl utoipa::ToSchema for Prompt {}

impl Prompt {
    fn conversations(self) -> Vec<Conversation> {
        match self {
            Prompt::Text(text) => vec![Conversation::Text(text)],
            Prompt::Tokens(ids) => vec![Conversation::Tokens(ids)],
            Prompt::Texts(texts) => texts.into_iter().map(Conversation::Text).collect(),
            Prompt::TokenLists(lists) => lists.into_iter().map(Conversation::Tokens).collect(),
        }
    }
}

impl AcceptsSampling for CompletionRequest {
    const INTERFACE: Interface = Interface::OpenAi;
}

impl CompletionRequest {
    /// Refuses what is not done here, by name.
    fn check(&self) -> Result<(), ApiError> {
        let suffix = self.suffix.as_ref();
        if suffix.is_some_and(|suffix| suffix != &json!("")) {
            let message = "suffix is not supported; leave it out";
            return Err(ApiError::unsupported("suffix", message));
        }
        if let Some(best_of) = self
            .best_of
            .filter(|best_of| *best_of != self.n.unwrap_or(1))
        {
            let message = format!(
                "best_of must be n ({}), not {best_of}: every answer is returned; ask for more with n",
                self.n.unwrap_or(1)
            );
            return Err(ApiError::unsupported("best_of", message));
        }
        StreamOptions::check(&self.stream_options, self.stream)
    }

    /// One request for each prompt, in the service's words.
    fn into_requests(self, sampling: SamplingParams) -> Result<Vec<GenerateRequest>, ApiError> {
        self.check()?;
        let prompts = self.prompt.conversations();
        if prompts.len() > MAX_PROMPTS {
            let message = format!(
                "prompt has {} prompts; give at most {MAX_PROMPTS} in one request",
                prompts.len()
            );
            let param = Some("prompt".to_owned());
            return Err(ApiError::bad_request("invalid_value", message, param));
        }
        let logprobs = self
            .logprobs
            .map(|asked| logprobs::count("logprobs", asked));
        let request = GenerateRequest {
            sampling,
            stop: self.stop.map(|Texts(stops)| stops),
            max_new_tokens: Some(self.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)),
            choices: self.n.unwrap_or(1),
            logprobs: logprobs.transpose()?,
            logit_bias: self.logit_bias.map_or(Vec::new(), |Biases(biases)| biases),
            echo: self.echo == Some(true),
            ignore_eos: self.ignore_eos == Some(true),
            priority: self.priority.unwrap_or(0),
            timeout_ms: self.timeout_ms,
            names: FieldNames {
                persona: "model",
                prompt: "prompt",
                max_new_tokens: "max_tokens",
            },
            ..GenerateRequest::new(Some(&self.model), "")
        };
        let with = |conversation| GenerateRequest {
            conversation,
            ..request.clone()
        };
        Ok(prompts.into_iter().map(with).collect())
    }
}

/// Go on with a text, in OpenAI's wire format
///
/// No template and no system prompt; `model` names whose adapters write.
#[utoipa::path(
    post,
    path = "/v1/completions",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The continuations", content(
            (CompletionAnswer = "application/json"),
            (StreamEvent = "text/event-stream"),
        )),
    )
)]
pub(super) async fn completions(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Body(WithSampling { request, sampling }): Body<WithSampling<CompletionRequest>>,
) -> Result<Response, ApiError> {
    let service = state.service()?;
    let stream = request.stream == Some(true);
    let usage = StreamOptions::usage(&request.stream_options);
    let model = request.model.clone();
    let requests = request.into_requests(sampling)?;
    let logprobs = requests.first().and_then(|request| request.logprobs);
    let incoming = Incoming::submit_all(service, caller, requests).await?;
    let envelope = Envelope::new("cmpl", "text_completion", model, &incoming.identity);
    if stream {
        return Ok(incoming.stream(Chunks {
            envelope,
            logprobs,
            columns: Vec::new(),
            usage,
        }));
    }
    let (answers, usage) = incoming.whole().await?;
    let choices = answers.iter().enumerate().map(|(index, answer)| {
        let mut columns = logprobs.map(Columns::new);
        let logprobs = logprobs_of(columns.as_mut(), &answer.tokens);
        choice(
            index,
            &answer.text,
            logprobs,
            Some(answer.end.reason.name()),
        )
    });
    let mut body = envelope.with(choices.collect());
    body["usage"] = usage.json();
    Ok(Json(body).into_response())
}

fn choice(index: usize, text: &str, logprobs: Value, finish_reason: Option<&str>) -> Value {
    json!({
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
    })
}

fn logprobs_of(columns: Option<&mut Columns>, tokens: &[TokenLogprob]) -> Value {
    columns.map_or(Value::Null, |columns| columns.next(tokens))
}

/// A stream's chunks.
struct Chunks {
    envelope: Envelope,
    /// As the request asked for.
    logprobs: Option<u8>,
    /// Where each answer's log-probabilities are, if they were asked for.
    columns: Vec<Columns>,
    /// Whether a last chunk tells the usage.
    usage: bool,
}

impl Chunks {
    fn chunk(&self, choice: Value) -> Value {
        let mut chunk = self.envelope.with(vec![choice]);
        if self.usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

impl Wire for Chunks {
    fn begin(&mut self, answers: usize) -> Vec<String> {
        if let Some(top) = self.logprobs {
            self.columns = vec![Columns::new(top); answers];
        }
        Vec::new()
    }

    fn delta(&mut self, number: usize, delta: &Delta) -> Value {
        let logprobs = logprobs_of(self.columns.get_mut(number), &delta.tokens);
        self.chunk(choice(number, &delta.text, logprobs, None))
    }

    fn end(&mut self, number: usize, _identity: &ModelIdentity, end: &End) -> Vec<String> {
        let choice = choice(number, "", Value::Null, Some(end.reason.name()));
        vec![self.chunk(choice).to_string()]
    }

    fn last(&mut self, usage: &Usage) -> Vec<String> {
        self.envelope.last(self.usage.then_some(usage))
    }
}
