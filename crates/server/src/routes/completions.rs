//! `POST /v1/completions`: OpenAI's older wire format. The model continues texts or token ids, without a template and without a system
//! prompt. Measurements use it too.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::answer_stream::{AnswerStream, StreamEvent, StreamFormat};
use crate::app_state::AppState;
use crate::completion_object::{Completion, CompletionMetadata};
use crate::error::ApiError;
use crate::json::{Biases, Body, Texts};
use crate::logprobs::{self, Columns, CompletionLogprobs};
use crate::middleware::auth::ApiCaller;
use crate::neutral_fields::{self, shared_neutral_fields};
use crate::stream_options::StreamOptions;
use crate::token_limit::TokenLimit;
use crate::usage::Usage;
use crate::with_sampling::{AcceptsSampling, WithSampling};
use crate::work::Work;
use formats::tokenizer::{Detokenizer, Special};
use sampling::{Interface, SamplingParams};
use service::{
    Conversation, Delta, End, FieldNames, GenerateRequest, MAX_LOGPROBS, ModelIdentity,
    requested_name,
};

/// OpenAI's default.
const DEFAULT_MAX_TOKENS: usize = 16;
/// The most prompts of a request.
const MAX_PROMPTS: usize = 16;

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CompletionRequest {
    model: String,
    prompt: Prompt,
    max_tokens: Option<TokenLimit>,
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
    /// Prompts with different salts share no cached prefix; 1 to 256 bytes.
    cache_salt: Option<String>,
    ignore_eos: Option<bool>,
    /// Whether texts of control tokens, such as `<|im_end|>`, become the tokens. The default is true.
    parse_special: Option<bool>,
    // Labels; they change nothing.
    #[serde(rename = "user")]
    _user: Option<Value>,
    #[serde(rename = "metadata")]
    _metadata: Option<Value>,
    #[serde(rename = "request_id")]
    _request_id: Option<Value>,
    // Of OpenAI and of other servers: only the values that change nothing.
    suffix: Option<Value>,
    add_special_tokens: Option<bool>,
    bad_words: Option<Value>,
    cache_prompt: Option<Value>,
    early_stopping: Option<Value>,
    extra_body: Option<Value>,
    guided_choice: Option<Value>,
    guided_grammar: Option<Value>,
    guided_json: Option<Value>,
    guided_regex: Option<Value>,
    include_stop_str_in_output: Option<Value>,
    length_penalty: Option<Value>,
    min_tokens: Option<Value>,
    prompt_logprobs: Option<Value>,
    return_token_ids: Option<Value>,
    return_tokens_as_token_ids: Option<Value>,
    skip_special_tokens: Option<Value>,
    spaces_between_special_tokens: Option<Value>,
    stop_token_ids: Option<Value>,
    structured_outputs: Option<Value>,
    truncate_prompt_tokens: Option<Value>,
    use_beam_search: Option<Value>,
}

// A doc comment would wrap the schema in an `allOf`.
#[derive(Serialize, ToSchema)]
#[schema(as = CompletionAnswer)]
pub(super) struct CompletionResponse(#[schema(inline)] Completion<CompletionChoice>);

#[derive(Debug, Serialize, ToSchema)]
struct CompletionChoice {
    index: u64,
    text: String,
    #[schema(required, value_type = Option<serde_json::Value>)]
    logprobs: Option<CompletionLogprobs>,
    /// `stop`, `length` or `timeout`.
    #[schema(required, value_type = String)]
    finish_reason: Option<&'static str>,
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
    fn conversations(self, special: Special) -> Vec<Conversation> {
        let continued = |text| Conversation::Text { text, special };
        match self {
            Prompt::Text(text) => vec![continued(text)],
            Prompt::Tokens(ids) => vec![Conversation::Tokens(ids)],
            Prompt::Texts(texts) => texts.into_iter().map(continued).collect(),
            Prompt::TokenLists(lists) => lists.into_iter().map(Conversation::Tokens).collect(),
        }
    }
}

impl AcceptsSampling for CompletionRequest {
    const INTERFACE: Interface = Interface::OpenAi;
}

impl CompletionRequest {
    /// Refuses what is not supported, by field.
    fn check(&self) -> Result<(), ApiError> {
        neutral_fields::check(&[("suffix", &self.suffix)])?;
        neutral_fields::check(&shared_neutral_fields!(self))?;
        if self.add_special_tokens == Some(false) {
            // vLLM's default is true here, and false for conversations, whose template writes the token.
            let message = "add_special_tokens must be true: a text begins with the base's beginning token; send token ids to leave it out";
            return Err(ApiError::unsupported("add_special_tokens", message));
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

    /// A request to the service for each prompt.
    fn into_requests(self, sampling: SamplingParams) -> Result<Vec<GenerateRequest>, ApiError> {
        self.check()?;
        // As vLLM and llama.cpp do: programs that render a template themselves send its text.
        let special = match self.parse_special {
            Some(false) => Special::AsText,
            _ => Special::Parse,
        };
        let prompts = self.prompt.conversations(special);
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
        let logprobs = logprobs.transpose()?;
        let max_tokens = self.max_tokens;
        let max_tokens = max_tokens.unwrap_or(TokenLimit::Tokens(DEFAULT_MAX_TOKENS));
        let request = GenerateRequest {
            sampling,
            stop: self.stop.map(|Texts(stops)| stops),
            max_new_tokens: max_tokens.tokens(),
            fill_context: max_tokens == TokenLimit::Context,
            choices: self.n.unwrap_or(1),
            logprobs,
            max_logprobs: MAX_LOGPROBS / prompts.len().max(1),
            logit_bias: self.logit_bias.map_or(Vec::new(), |Biases(biases)| biases),
            echo: self.echo == Some(true),
            ignore_eos: self.ignore_eos == Some(true),
            priority: self.priority.unwrap_or(0),
            timeout_ms: self.timeout_ms,
            cache_salt: self.cache_salt,
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

/// Continue a text, in OpenAI's wire format
///
/// Uses no template and no system prompt; `model` names the persona whose adapter is used.
#[utoipa::path(
    post,
    path = "/v1/completions",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The continuations", content(
            (CompletionResponse = "application/json"),
            (StreamEvent = "text/event-stream"),
        )),
    )
)]
pub(super) async fn completions(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Body(WithSampling { request, sampling }): Body<WithSampling<CompletionRequest>>,
) -> Result<Response, ApiError> {
    let service = state.service()?;
    let stream = request.stream == Some(true);
    let usage = StreamOptions::usage(&request.stream_options);
    let model = requested_name(&request.model).to_owned();
    let requests = request.into_requests(sampling)?;
    let logprobs = requests.first().and_then(|request| request.logprobs);
    let texts = service.base().tokenizer.detokenizer();
    let answers = AnswerStream::submit_all(service, caller, &work, requests).await?;
    let metadata = CompletionMetadata::new("cmpl", "text_completion", model, &answers.identity);
    if stream {
        return Ok(answers.into_events(Chunks {
            metadata,
            logprobs,
            texts,
            columns: Vec::new(),
            usage,
        }));
    }
    let (answers, usage) = answers.collect().await?;
    let choices = answers.into_iter().enumerate().map(|(index, answer)| {
        let columns = logprobs.map(|top| Columns::new(top, &texts));
        let logprobs = columns.map(|mut columns| columns.next(answer.tokens));
        CompletionChoice {
            index: index as u64,
            text: answer.text,
            logprobs,
            finish_reason: Some(answer.end.reason.name()),
        }
    });
    let completion = metadata.completion(choices.collect(), usage);
    Ok(Json(CompletionResponse(completion)).into_response())
}

/// The chunks of a stream.
struct Chunks {
    metadata: CompletionMetadata,
    /// As the request asked for.
    logprobs: Option<u8>,
    texts: Detokenizer,
    /// The positions of each answer's log-probabilities, if they were requested.
    columns: Vec<Columns>,
    /// Whether a last chunk has the usage.
    usage: bool,
}

impl StreamFormat for Chunks {
    fn begin(&mut self, answers: usize) -> Vec<String> {
        if let Some(top) = self.logprobs {
            self.columns = vec![Columns::new(top, &self.texts); answers];
        }
        Vec::new()
    }

    fn delta(&mut self, number: usize, delta: &Delta) -> String {
        let columns = self.columns.get_mut(number);
        let choice = CompletionChoice {
            index: number as u64,
            text: delta.text.clone(),
            logprobs: columns.map(|columns| columns.next(delta.tokens.clone())),
            finish_reason: None,
        };
        self.metadata.chunk(choice, self.usage)
    }

    fn end(&mut self, number: usize, _identity: &ModelIdentity, end: &End) -> Vec<String> {
        let choice = CompletionChoice {
            index: number as u64,
            text: String::new(),
            logprobs: None,
            finish_reason: Some(end.reason.name()),
        };
        vec![self.metadata.chunk(choice, self.usage)]
    }

    fn last(&mut self, usage: &Usage) -> Vec<String> {
        self.metadata.last(self.usage.then_some(usage))
    }
}
