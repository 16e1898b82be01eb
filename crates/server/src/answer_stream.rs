//! From the engine's thread to a response: the text of a request's answers as an async channel, and as server-sent events. When the
//! client disconnects, the response is dropped and with it the tickets, which cancels the request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::IntoResponse;
use axum::response::Response;
use axum::response::sse::{Event, KeepAlive, Sse};
use engine::Flow;
use futures_util::{Stream, stream};
use serde::Serialize;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::error::ApiError;
use crate::usage::Usage;
use crate::work::Work;
use crate::work_pool::RunningWork;
use service::{
    Answer, AnswerBuilder, Caller, Delta, End, GenerateRequest, MAX_CHOICES, ModelIdentity,
    RequestError, RequestLog, Service, TextEvent, TextSink, Tickets, ToolCallDelta,
};

/// The interval of keep-alive comments in a silent stream, so that proxies do not close it.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// One server-sent event of a stream.
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "only the derived schema is used")]
pub(crate) struct StreamEvent {
    /// A JSON object. In OpenAI's wire formats `[DONE]` at the end.
    data: String,
}

/// The answers to a request as they arrive, by number: those to the first prompt, then those to the next.
pub(crate) struct AnswerStream {
    pub identity: ModelIdentity,
    events: UnboundedReceiver<(usize, TextEvent)>,
    /// How each answer ended.
    ends: Vec<Option<End>>,
    /// The number of answers to each prompt.
    choices: usize,
    /// The log of the request, for an error after the response has begun.
    log: Option<Arc<RequestLog>>,
    _tickets: Vec<Tickets>,
}

impl AnswerStream {
    /// Queues one request.
    pub async fn submit(
        service: Arc<Service>,
        caller: Caller,
        work: &Work,
        request: GenerateRequest,
    ) -> Result<AnswerStream, ApiError> {
        AnswerStream::submit_all(service, caller, work, vec![request]).await
    }

    /// Queues requests that share one response: the same request for several prompts. Tokenizing, loading adapters and waiting for them
    /// happen off the async threads, and end early if the client disconnects.
    pub async fn submit_all(
        service: Arc<Service>,
        caller: Caller,
        work: &Work,
        mut requests: Vec<GenerateRequest>,
    ) -> Result<AnswerStream, ApiError> {
        // The key's limit counts answers, not HTTP requests. A request that is above it is not prepared.
        let answers = requests
            .iter()
            .map(|request| request.choices.clamp(1, MAX_CHOICES));
        let answers: usize = answers.sum();
        caller.check_answers(answers)?;
        for request in &mut requests {
            request.caller = caller.clone();
        }
        // Each answer has at most `max_new_tokens` events, which bounds the channel.
        let (sender, events) = unbounded_channel();
        let choices = requests.first().map_or(1, |request| request.choices);
        let body = work.body().clone();
        let submit = move |running: &RunningWork| {
            let mut sinks = |prompt: usize, choice: usize| -> TextSink {
                let sender = sender.clone();
                let number = prompt * choices + choice;
                Box::new(move |event| match sender.send((number, event)) {
                    Ok(()) => Flow::Continue,
                    Err(_) => Flow::Stop,
                })
            };
            // While a request waits for its adapters, its key may prepare another one.
            let prepared = || running.free_slot();
            let cancelled = running.cancelled();
            let accepted = service.submit_all(&requests, &mut sinks, cancelled, &prepared);
            drop(requests);
            body.free();
            accepted
        };
        let accepted = work.prepare(submit).await??;
        let answers = accepted.len() * choices;
        let no_prompt = || ApiError::internal("the request has no prompt");
        Ok(AnswerStream {
            identity: accepted.first().ok_or_else(no_prompt)?.identity.clone(),
            events,
            ends: vec![None; answers],
            choices,
            log: caller.log(),
            _tickets: accepted
                .into_iter()
                .map(|accepted| accepted.tickets)
                .collect(),
        })
    }

    /// The number of answers.
    pub fn answers(&self) -> usize {
        self.ends.len()
    }

    /// Waits for the next event; [`RequestError::Stopped`] if the engine is gone.
    async fn next(&mut self) -> Result<(usize, TextEvent), RequestError> {
        let (number, event) = self.events.recv().await.ok_or(RequestError::Stopped)?;
        if let TextEvent::End(end) = &event {
            end.check()?;
            self.ends[number] = Some(end.clone());
        }
        Ok((number, event))
    }

    /// The usage, once all answers have ended.
    fn usage(&self) -> Option<Usage> {
        let all = self.ends.iter().all(Option::is_some);
        all.then(|| Usage::of(&self.ends, self.choices))
    }

    /// Waits for all answers, by number.
    pub async fn collect(mut self) -> Result<(Vec<Answer>, Usage), ApiError> {
        let mut partial: Vec<AnswerBuilder> = Vec::new();
        partial.resize_with(self.answers(), AnswerBuilder::default);
        let usage = loop {
            match self.next().await? {
                (number, TextEvent::Delta(delta)) => partial[number].push(delta),
                (number, TextEvent::ToolCall(call)) => partial[number].push_call(call),
                (_, TextEvent::End(_)) => {
                    if let Some(usage) = self.usage() {
                        break usage;
                    }
                }
            }
        };
        let mut answers = Vec::with_capacity(partial.len());
        for (answer, end) in partial.into_iter().zip(self.ends.into_iter().flatten()) {
            answers.push(answer.finish(self.identity.clone(), end)?);
        }
        Ok((answers, usage))
    }

    /// The answers as server-sent events in a format.
    pub fn into_events(self, mut format: impl StreamFormat) -> Response {
        let first = format.begin(self.answers());
        let state = EventStream {
            incoming: Some(self),
            format,
            ready: first.into(),
        };
        let events = stream::unfold(state, |mut state| async {
            let event = state.next().await?;
            Some((Ok::<_, Infallible>(event), state))
        });
        with_keep_alive(events, KEEP_ALIVE)
    }
}

fn with_keep_alive(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
    interval: Duration,
) -> Response {
    let keep_alive = KeepAlive::new().interval(interval).text("keep-alive");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // Tells proxies that buffer responses not to.
    let headers = response.headers_mut();
    headers.insert(
        "x-accel-buffering",
        axum::http::HeaderValue::from_static("no"),
    );
    response
}

/// The stream of an interface. Each method returns the data of events: JSON texts, see [`event_data`].
pub(crate) trait StreamFormat: Send + 'static {
    /// The events before any text, for this number of answers.
    fn begin(&mut self, answers: usize) -> Vec<String>;
    /// More text of an answer.
    fn delta(&mut self, number: usize, delta: &Delta) -> String;
    /// More of an answer's tool calls, if the interface has tools.
    fn call(&mut self, _number: usize, _call: &ToolCallDelta) -> Option<String> {
        None
    }
    /// The events after all of an answer.
    fn end(&mut self, number: usize, identity: &ModelIdentity, end: &End) -> Vec<String>;
    /// The events after all answers.
    fn last(&mut self, usage: &Usage) -> Vec<String>;
}

/// The data of an event.
pub(crate) fn event_data(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

struct EventStream<F> {
    /// None after the end.
    incoming: Option<AnswerStream>,
    format: F,
    /// The data of events to send next.
    ready: VecDeque<String>,
}

impl<F: StreamFormat> EventStream<F> {
    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() {
            let incoming = self.incoming.as_mut()?;
            match incoming.next().await {
                Ok((number, TextEvent::Delta(delta))) => {
                    let data = self.format.delta(number, &delta);
                    self.ready.push_back(data);
                }
                Ok((number, TextEvent::ToolCall(call))) => {
                    self.ready.extend(self.format.call(number, &call));
                }
                Ok((number, TextEvent::End(end))) => {
                    self.ready
                        .extend(self.format.end(number, &incoming.identity, &end));
                    if let Some(usage) = incoming.usage() {
                        self.ready.extend(self.format.last(&usage));
                        self.incoming = None;
                    }
                }
                // The status was sent already, so the error is an event.
                Err(error) => {
                    let error = ApiError::from(error);
                    if let Some(log) = &incoming.log {
                        log.update(|entry| entry.code = Some(error.code()));
                    }
                    self.ready.push_back(event_data(&error.body()));
                    self.incoming = None;
                }
            }
        }
        let data = self.ready.pop_front()?;
        Some(Event::default().data(data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_stream_gets_keep_alive_comments() {
        let silent = stream::pending::<Result<Event, Infallible>>();
        let response = with_keep_alive(silent, Duration::from_millis(1));
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let mut body = response.into_body().into_data_stream();
        for _ in 0..2 {
            let comment =
                std::future::poll_fn(|context| std::pin::Pin::new(&mut body).poll_next(context));
            assert_eq!(comment.await.unwrap().unwrap(), ": keep-alive\n\n");
        }
    }
}
