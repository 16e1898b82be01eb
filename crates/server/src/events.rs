//! From the engine's thread to a response: the text of a request's answers as an async channel, and as server-sent events. A
//! response that is dropped (the client is gone) drops its tickets, and so cancels the request.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::response::IntoResponse;
use axum::response::Response;
use axum::response::sse::{Event, KeepAlive, Sse};
use engine::Flow;
use futures_util::{Stream, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::error::ApiError;
use service::{
    Answer, AnswerBuilder, Caller, Delta, End, GenerateRequest, ModelIdentity, RequestError,
    Service, TextEvent, TextSink, Tickets, ToolCallDelta,
};

/// A stream that is silent for so long gets a comment, so that nothing between takes it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The answers to a request as they come, by number: those to the first prompt, then those to the next.
pub(super) struct Incoming {
    pub identity: ModelIdentity,
    events: UnboundedReceiver<(usize, TextEvent)>,
    /// How each ended.
    ends: Vec<Option<End>>,
    /// Answers to each prompt.
    choices: usize,
    _tickets: Vec<Tickets>,
}

/// What a request took. Each prompt counts once, however many answers it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Usage {
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
}

impl Usage {
    fn of(ends: &[Option<End>], choices: usize) -> Usage {
        let mut usage = Usage::default();
        for (choice, end) in ends.iter().enumerate() {
            let Some(end) = end else { continue };
            if choice % choices == 0 {
                usage.prompt_tokens += end.prompt_tokens;
                usage.cached_tokens += end.cached_tokens;
            }
            usage.completion_tokens += end.completion_tokens;
        }
        usage
    }

    /// In OpenAI's shape.
    pub fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        })
    }
}

impl Incoming {
    /// Queues one request.
    pub async fn submit(
        service: Arc<Service>,
        caller: Caller,
        request: GenerateRequest,
    ) -> Result<Incoming, ApiError> {
        Incoming::submit_all(service, caller, vec![request]).await
    }

    /// Queues requests that one response answers; they ask the same of several prompts. Tokenizing, reading adapters and waiting
    /// for them happen off the async threads; if the client leaves meanwhile, the wait ends.
    pub async fn submit_all(
        service: Arc<Service>,
        caller: Caller,
        mut requests: Vec<GenerateRequest>,
    ) -> Result<Incoming, ApiError> {
        for request in &mut requests {
            request.caller = caller.clone();
        }
        // At most `max_new_tokens` events of each answer, so the channel is bounded by what the request may hold.
        let (sender, events) = unbounded_channel();
        let client = Client::default();
        let gone = Arc::clone(&client.gone);
        let choices = requests.first().map_or(1, |request| request.choices);
        let submit = move || {
            let accepted = requests.iter().enumerate().map(|(prompt, request)| {
                let mut sinks = |choice: usize| -> TextSink {
                    let sender = sender.clone();
                    let number = prompt * choices + choice;
                    Box::new(move |event| match sender.send((number, event)) {
                        Ok(()) => Flow::Continue,
                        Err(_) => Flow::Stop,
                    })
                };
                service.submit_choices(request, &mut sinks, &gone)
            });
            accepted.collect::<Result<Vec<_>, RequestError>>()
        };
        let submitted = tokio::task::spawn_blocking(submit).await;
        let accepted =
            submitted.map_err(|_| ApiError::internal("the request could not be read"))??;
        let answers = accepted.len() * choices;
        let nobody = || ApiError::internal("the request has no prompt");
        Ok(Incoming {
            identity: accepted.first().ok_or_else(nobody)?.identity.clone(),
            events,
            ends: vec![None; answers],
            choices,
            _tickets: accepted
                .into_iter()
                .map(|accepted| accepted.tickets)
                .collect(),
        })
    }

    /// How many answers come.
    pub fn answers(&self) -> usize {
        self.ends.len()
    }

    /// Waits for more; [`RequestError::Stopped`] if the engine is gone.
    async fn next(&mut self) -> Result<(usize, TextEvent), RequestError> {
        let (number, event) = self.events.recv().await.ok_or(RequestError::Stopped)?;
        if let TextEvent::End(end) = &event {
            end.check()?;
            self.ends[number] = Some(end.clone());
        }
        Ok((number, event))
    }

    /// What it took, once all answers have ended.
    fn usage(&self) -> Option<Usage> {
        let all = self.ends.iter().all(Option::is_some);
        all.then(|| Usage::of(&self.ends, self.choices))
    }

    /// Waits for all answers, by number.
    pub async fn whole(mut self) -> Result<(Vec<Answer>, Usage), ApiError> {
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

    /// The answers as server-sent events, in the words of `wire`.
    pub fn stream(self, mut wire: impl Wire) -> Response {
        let first = wire.begin(self.answers());
        let state = Streaming {
            incoming: Some(self),
            wire,
            ready: first.into(),
        };
        let events = stream::unfold(state, |mut state| async {
            let event = state.next().await?;
            Some((Ok::<_, Infallible>(event), state))
        });
        kept_alive(events, KEEP_ALIVE)
    }
}

fn kept_alive(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
    interval: Duration,
) -> Response {
    let keep_alive = KeepAlive::new().interval(interval).text("keep-alive");
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // Proxies that gather responses would hold a stream back; this header turns it off in those that know it.
    let headers = response.headers_mut();
    headers.insert(
        "x-accel-buffering",
        axum::http::HeaderValue::from_static("no"),
    );
    response
}

/// Whoever waits for a response; dropped, it says so.
#[derive(Default)]
struct Client {
    gone: Arc<AtomicBool>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// How an interface words its stream.
pub(super) trait Wire: Send + 'static {
    /// What comes before any text of so many answers.
    fn begin(&mut self, answers: usize) -> Vec<String>;
    /// More of an answer.
    fn delta(&mut self, number: usize, delta: &Delta) -> Value;
    /// More of an answer's calls, where the interface offers tools.
    fn call(&mut self, _number: usize, _call: &ToolCallDelta) -> Option<Value> {
        None
    }
    /// What comes after all of an answer.
    fn end(&mut self, number: usize, identity: &ModelIdentity, end: &End) -> Vec<String>;
    /// What comes after all answers.
    fn last(&mut self, usage: &Usage) -> Vec<String>;
}

struct Streaming<W> {
    /// None after the end.
    incoming: Option<Incoming>,
    wire: W,
    /// Data of events to be sent first.
    ready: VecDeque<String>,
}

impl<W: Wire> Streaming<W> {
    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() {
            let incoming = self.incoming.as_mut()?;
            match incoming.next().await {
                Ok((number, TextEvent::Delta(delta))) => {
                    let data = self.wire.delta(number, &delta);
                    self.ready.push_back(data.to_string());
                }
                Ok((number, TextEvent::ToolCall(call))) => {
                    let data = self.wire.call(number, &call);
                    self.ready.extend(data.map(|data| data.to_string()));
                }
                Ok((number, TextEvent::End(end))) => {
                    self.ready
                        .extend(self.wire.end(number, &incoming.identity, &end));
                    if let Some(usage) = incoming.usage() {
                        self.ready.extend(self.wire.last(&usage));
                        self.incoming = None;
                    }
                }
                // The status has been sent, so the error is an event of its own.
                Err(error) => {
                    self.ready
                        .push_back(ApiError::from(error).json().to_string());
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
    async fn a_stream_that_is_silent_for_long_gets_comments() {
        let silent = stream::pending::<Result<Event, Infallible>>();
        let response = kept_alive(silent, Duration::from_millis(1));
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let mut body = response.into_body().into_data_stream();
        for _ in 0..2 {
            let comment =
                std::future::poll_fn(|context| std::pin::Pin::new(&mut body).poll_next(context));
            assert_eq!(comment.await.unwrap().unwrap(), ": keep-alive\n\n");
        }
    }

    #[test]
    fn a_prompt_counts_once_however_many_answers_it_got() {
        let end = |prompt_tokens, cached_tokens, completion_tokens| {
            Some(End {
                reason: service::FinishReason::Stop,
                prompt_tokens,
                cached_tokens,
                completion_tokens,
                timings: engine::Timings {
                    queue: Duration::ZERO,
                    first_token: None,
                    total: Duration::ZERO,
                },
            })
        };
        let ends = [end(10, 2, 3), end(10, 8, 4), end(20, 0, 5), end(20, 16, 6)];
        let usage = Usage::of(&ends, 2).json();
        assert_eq!(
            usage,
            json!({
                "prompt_tokens": 30, "completion_tokens": 18, "total_tokens": 48,
                "prompt_tokens_details": {"cached_tokens": 2},
            })
        );
    }
}
