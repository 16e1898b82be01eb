//! `POST /v1/chat/completions`: OpenAI's wire format, whole and streamed.

mod request;
mod response;
mod tools;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::answer_stream::{AnswerStream, StreamEvent, StreamFormat};
use crate::app_state::AppState;
use crate::completion_object::CompletionMetadata;
use crate::error::ApiError;
use crate::json::Body;
use crate::logprobs::{self, ChatLogprobs};
use crate::middleware::auth::ApiCaller;
use crate::usage::Usage;
use crate::with_sampling::WithSampling;
use crate::work::Work;
use formats::tokenizer::Detokenizer;
use request::ChatRequest;
use response::{ChatChoice, ChatResponse, ChunkChoice, ChunkDelta};
use service::{Delta, End, ModelIdentity, ToolCallDelta, requested_name};

/// Answer a chat, in OpenAI's wire format
///
/// `model` names a persona, a version of one, a blend, or the base.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answers", content(
            (ChatResponse = "application/json"),
            (StreamEvent = "text/event-stream"),
        )),
    )
)]
pub(super) async fn chat_completions(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Body(WithSampling { request, sampling }): Body<WithSampling<ChatRequest>>,
) -> Result<Response, ApiError> {
    let service = state.service()?;
    let stream = request.stream == Some(true);
    let usage = request.usage();
    let model = requested_name(&request.model).to_owned();
    caller.log_ignored_keys(request.ignored_keys());
    let request = request.into_request(sampling)?;
    let logprobs = request.logprobs.is_some();
    let texts = service.base().tokenizer.detokenizer();
    let answers = AnswerStream::submit(service, caller, &work, request).await?;
    if stream {
        let metadata = CompletionMetadata::new(
            "chatcmpl",
            "chat.completion.chunk",
            model,
            &answers.identity,
        );
        return Ok(answers.into_events(Chunks {
            metadata,
            logprobs,
            texts,
            usage,
        }));
    }
    let metadata = CompletionMetadata::new("chatcmpl", "chat.completion", model, &answers.identity);
    let (answers, usage) = answers.collect().await?;
    let choices = answers.into_iter().enumerate().map(|(index, mut answer)| {
        let logprobs =
            logprobs.then(|| logprobs::of_chat(std::mem::take(&mut answer.tokens), &texts));
        ChatChoice::new(index, answer, logprobs)
    });
    let completion = metadata.completion(choices.collect(), usage);
    Ok(Json(ChatResponse(completion)).into_response())
}

/// The chunks of a stream.
struct Chunks {
    metadata: CompletionMetadata,
    /// Whether the request asked for log-probabilities.
    logprobs: bool,
    texts: Detokenizer,
    /// Whether a last chunk has the usage.
    usage: bool,
}

impl Chunks {
    fn chunk(
        &self,
        index: usize,
        delta: ChunkDelta,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<&'static str>,
    ) -> String {
        let choice = ChunkChoice {
            index,
            delta,
            logprobs,
            finish_reason,
        };
        self.metadata.chunk(choice, self.usage)
    }
}

impl StreamFormat for Chunks {
    fn begin(&mut self, answers: usize) -> Vec<String> {
        (0..answers)
            .map(|index| self.chunk(index, ChunkDelta::begin(), None, None))
            .collect()
    }

    fn delta(&mut self, number: usize, delta: &Delta) -> String {
        let logprobs = self
            .logprobs
            .then(|| logprobs::of_chat(delta.tokens.clone(), &self.texts));
        self.chunk(number, ChunkDelta::text(&delta.text), logprobs, None)
    }

    fn call(&mut self, number: usize, call: &ToolCallDelta) -> Option<String> {
        Some(self.chunk(number, ChunkDelta::call(call), None, None))
    }

    fn end(&mut self, number: usize, _identity: &ModelIdentity, end: &End) -> Vec<String> {
        let reason = Some(end.reason.name());
        vec![self.chunk(number, ChunkDelta::End {}, None, reason)]
    }

    fn last(&mut self, usage: &Usage) -> Vec<String> {
        self.metadata.last(self.usage.then_some(usage))
    }
}
