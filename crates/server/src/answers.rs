//! The shapes of answers, for the document alone: `tests/serving/openapi.rs` holds them against real answers.
#![allow(dead_code, reason = "read by the derive macros, never made")]

use utoipa::ToSchema;

/// An error.
#[derive(ToSchema)]
pub(super) struct ErrorBody {
    error: ErrorDetail,
}

/// What went wrong.
#[derive(ToSchema)]
struct ErrorDetail {
    /// What is wrong, and what would be right.
    message: String,
    /// `invalid_request_error`, `authentication_error`, `permission_error`, `rate_limit_error` or `server_error`.
    r#type: String,
    /// A name for programs, such as `persona_not_found`.
    code: String,
    /// The field that it is about.
    #[schema(required)]
    param: Option<String>,
}

/// An answer of `/generate`.
#[derive(ToSchema)]
pub(super) struct GenerateAnswer {
    /// The text.
    response: String,
    /// Who was asked for, as in the request.
    user_type: String,
    persona: PersonaUse,
    /// `stop`, `length` or `timeout`.
    finish_reason: String,
    usage: GenerateUsage,
    timings: Timings,
}

/// Who answered.
#[derive(ToSchema)]
struct PersonaUse {
    /// A persona, a blend, or the base.
    name: String,
    /// None for a blend and for the base.
    #[schema(required)]
    version: Option<u32>,
    adapters: Vec<AdapterUse>,
}

#[derive(ToSchema)]
struct AdapterUse {
    /// The content hash.
    sha256: String,
    scale: f64,
}

#[derive(ToSchema)]
struct GenerateUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// In milliseconds.
#[derive(ToSchema)]
struct Timings {
    /// Until it was taken up.
    queue_ms: f64,
    /// Until its first token.
    #[schema(required)]
    first_token_ms: Option<f64>,
    total_ms: f64,
}

/// One server-sent event of a stream.
#[derive(ToSchema)]
pub(super) struct StreamEvent {
    /// A JSON object; where the wire is OpenAI's, `[DONE]` at the end.
    data: String,
}

/// A chat's answer, in OpenAI's shape.
#[derive(ToSchema)]
pub(super) struct ChatAnswer {
    id: String,
    /// `chat.completion`.
    object: String,
    /// A Unix time.
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
}

#[derive(ToSchema)]
struct ChatChoice {
    index: u64,
    message: serde_json::Value,
    #[schema(required)]
    logprobs: Option<serde_json::Value>,
    /// `stop`, `length`, `tool_calls` or `timeout`.
    finish_reason: String,
}

/// A text's continuations, in OpenAI's shape.
#[derive(ToSchema)]
pub(super) struct CompletionAnswer {
    id: String,
    /// `text_completion`.
    object: String,
    /// A Unix time.
    created: u64,
    model: String,
    system_fingerprint: String,
    choices: Vec<CompletionChoice>,
    usage: Usage,
}

#[derive(ToSchema)]
struct CompletionChoice {
    index: u64,
    text: String,
    #[schema(required)]
    logprobs: Option<serde_json::Value>,
    /// `stop`, `length` or `timeout`.
    finish_reason: String,
}

#[derive(ToSchema)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
}

#[derive(ToSchema)]
struct PromptDetails {
    /// Tokens that did not run, as an earlier request had begun alike.
    cached_tokens: u64,
}

/// The base and the personas that the key may use.
#[derive(ToSchema)]
pub(super) struct ModelList {
    /// `list`.
    object: String,
    data: Vec<ModelCard>,
}

#[derive(ToSchema)]
struct ModelCard {
    id: String,
    /// `model`.
    object: String,
    /// A Unix time.
    created: u64,
    owned_by: String,
    /// Where the adapter lies, for keys with admin rights; else the base.
    root: String,
    /// The base, for a persona.
    #[schema(required)]
    parent: Option<String>,
    /// The variables of its system prompt, where it has any: their defaults, or `{"required": true}`.
    #[schema(value_type = Option<std::collections::BTreeMap<String, serde_json::Value>>)]
    variables: Option<()>,
}

/// Adapters and the pool that holds them.
#[derive(ToSchema)]
pub(super) struct AdapterList {
    /// `list`.
    object: String,
    data: Vec<AdapterState>,
    pool: serde_json::Value,
}

#[derive(ToSchema)]
struct AdapterState {
    /// The content hash.
    sha256: String,
    /// `lora_adapter`.
    object: String,
    names: Vec<AdapterName>,
    /// Packed and ready.
    resident: bool,
    /// Being read, or next.
    loading: bool,
    /// What it takes in memory.
    bytes: u64,
    /// Requests that hold it.
    leases: u64,
}

#[derive(ToSchema)]
struct AdapterName {
    name: String,
    version: u32,
}

/// The server is alive.
#[derive(ToSchema)]
pub(super) struct Health {
    /// `ok`.
    status: String,
}

/// The server takes requests.
#[derive(ToSchema)]
pub(super) struct Ready {
    /// `ready`.
    status: String,
    /// The base's name.
    base: String,
    /// Only where the server wants no keys.
    personas: Option<Vec<String>>,
}

/// Evaluations, the newest first.
#[derive(ToSchema)]
pub(super) struct EvaluationList {
    /// `list`.
    object: String,
    data: Vec<EvaluationCard>,
}

#[derive(ToSchema)]
struct EvaluationCard {
    /// `evaluation`.
    object: String,
    id: String,
    /// A Unix time.
    time: u64,
    base: String,
    personas: Vec<Evaluated>,
    /// The thresholds that were missed, in words.
    missed: Vec<String>,
}

#[derive(ToSchema)]
struct Evaluated {
    name: String,
    version: u32,
    /// The content hash.
    #[schema(required)]
    adapter: Option<String>,
}

/// Pairs of speakers and the votes on them.
#[derive(ToSchema)]
pub(super) struct VoteList {
    /// `list`.
    object: String,
    data: Vec<TallyShown>,
}

/// How two speakers stand.
#[derive(ToSchema)]
pub(super) struct TallyShown {
    /// `vote.tally`.
    object: String,
    a: String,
    b: String,
    a_wins: u64,
    b_wins: u64,
    ties: u64,
}
